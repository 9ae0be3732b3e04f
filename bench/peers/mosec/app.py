"""mosec: decoding and running in processes of their own, behind a server in Rust."""

from mosec import Server, ValidationError, Worker

from bench.peers.engine import Answer, Array, Engine, decode, read_options


class Decode(Worker):
    """Bodies to pictures, one by one."""

    def __init__(self) -> None:
        self.runtime = read_options().runtime

    def deserialize(self, data: bytes) -> bytes:
        """A body is a picture, not JSON."""
        return data

    def forward(self, data: bytes) -> Array:
        """One picture.

        Raises:
            ValidationError: it is none, which is the client's fault.
        """
        try:
            return decode(data, self.runtime)
        except OSError as error:
            raise ValidationError(f"this is no picture: {error}") from error


class Run(Worker):
    """Pictures to answers, in batches."""

    def __init__(self) -> None:
        self.engine = Engine(read_options())

    def forward(self, data: list[Array]) -> list[Answer]:
        """A batch."""
        return self.engine.run(data)


def main() -> None:
    """Serve until told to stop; address and port are arguments that mosec reads."""
    options = read_options()
    server = Server()
    server.append_worker(Decode, num=options.workers)
    server.append_worker(
        Run,
        num=options.workers,
        max_batch_size=options.max_batch,
        max_wait_time=round(options.wait_s * 1000),
    )
    server.run()


if __name__ == "__main__":
    main()
