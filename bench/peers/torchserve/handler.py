"""TorchServe: a handler that is given a batch of requests."""

from typing import Any

from ts.torch_handler.base_handler import BaseHandler

from bench.peers.engine import Answer, Engine, read_options


class Classifier(BaseHandler):
    """Everything but the engine's part of the base handler's work is left out."""

    def initialize(self, context: Any) -> None:
        """Load the model, in a worker."""
        self.engine = Engine(read_options())
        self.context = context
        self.manifest = context.manifest
        self.initialized = True

    def handle(self, data: list[dict[str, Any]], context: Any) -> list[Answer]:
        """A batch of bodies to as many answers."""
        return self.engine.run([self.engine.decode(bytes(part["body"])) for part in data])
