"""BentoML: a service of several workers, whose adaptive batching dispatches to them."""

from pathlib import Path
from typing import Annotated

import bentoml

from bench.peers.engine import Answer, Engine, read_options

OPTIONS = read_options()


@bentoml.service(
    workers=OPTIONS.workers,
    traffic={"timeout": OPTIONS.timeout_s},
    metrics={"enabled": False},
)
class Classifier:
    """One model per worker."""

    def __init__(self) -> None:
        self.engine = Engine(OPTIONS)

    @bentoml.api(
        batchable=True,
        max_batch_size=OPTIONS.max_batch,
        max_latency_ms=OPTIONS.timeout_s * 1000,
        route="/classify",
    )
    def classify(
        self, images: list[Annotated[Path, bentoml.validators.ContentType("image/jpeg")]]
    ) -> list[Answer]:
        """Files as they were uploaded, since its picture type would decode them on its own."""
        return self.engine.run([self.engine.decode(path.read_bytes()) for path in images])
