"""BentoML without its batching: each worker runs what it is given, in threads."""

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

    @bentoml.api(route="/classify")
    def classify(
        self, image: Annotated[Path, bentoml.validators.ContentType("image/jpeg")], /
    ) -> Answer:
        """The body is the file."""
        return self.engine.classify(image.read_bytes())
