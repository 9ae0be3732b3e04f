"""Ray Serve: replicas that batch, behind its own proxy."""

import signal
import threading

import ray
from ray import serve
from starlette.requests import Request

from bench.peers.engine import Answer, Engine, read_options

OPTIONS = read_options()
STORE_BYTES = 200 * 2**20
IN_FLIGHT = 64
"""Requests per replica; the default of 5 would keep batches below their size."""


@serve.deployment(
    num_replicas=OPTIONS.workers,
    max_ongoing_requests=IN_FLIGHT,
    ray_actor_options={"num_cpus": 1},
)
class Classifier:
    """One model per replica."""

    def __init__(self) -> None:
        self.engine = Engine(OPTIONS)

    @serve.batch(max_batch_size=OPTIONS.max_batch, batch_wait_timeout_s=OPTIONS.wait_s)
    async def classify(self, bodies: list[bytes]) -> list[Answer]:
        """A batch."""
        return self.engine.run([self.engine.decode(data) for data in bodies])

    async def __call__(self, request: Request) -> Answer:
        return await self.classify(await request.body())


def main() -> None:
    """Serve until told to stop."""
    ray.init(
        num_cpus=OPTIONS.workers + 2,  # proxy and controller take a part of what is left
        include_dashboard=False,
        _node_ip_address="127.0.0.1",
        object_store_memory=STORE_BYTES,
        log_to_driver=False,
    )
    serve.start(
        http_options={
            "host": "127.0.0.1",
            "port": OPTIONS.port,
            "request_timeout_s": OPTIONS.timeout_s,
        }
    )
    serve.run(Classifier.bind(), route_prefix="/classify")
    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())  # in place of Ray's own
    stopped.wait()
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main()
