"""LitServe: workers that batch, behind one API process."""

from typing import Annotated, Any

import litserve
from fastapi import Body

from bench.peers.engine import Answer, Array, Engine, read_options


class Classifier(litserve.LitAPI):
    """Pictures are decoded in the worker, which is where LitServe calls ``decode_request``."""

    def setup(self, device: str) -> None:
        """Load the model, in a worker."""
        self.engine = Engine(read_options())

    def decode_request(self, request: Annotated[bytes, Body(media_type="image/jpeg")]) -> Array:
        """One body to one picture."""
        return self.engine.decode(request)

    def batch(self, inputs: list[Array]) -> list[Array]:
        """The engine stacks them itself."""
        return inputs

    def predict(self, x: list[Array]) -> list[Answer]:
        """A batch."""
        return self.engine.run(x)

    def unbatch(self, output: list[Answer]) -> list[Answer]:
        """One answer each."""
        return output

    def encode_response(self, output: Answer) -> Any:
        """Already what JSON can hold."""
        return output


def main() -> None:
    """Serve until told to stop."""
    options = read_options()
    api = Classifier(
        max_batch_size=options.max_batch, batch_timeout=options.wait_s, api_path="/classify"
    )
    server = litserve.LitServer(
        api, accelerator="cpu", workers_per_device=options.workers, timeout=options.timeout_s
    )
    server.run(
        host="127.0.0.1",
        port=options.port,
        num_api_servers=1,
        generate_client_file=False,
        log_level="warning",
    )


if __name__ == "__main__":
    main()
