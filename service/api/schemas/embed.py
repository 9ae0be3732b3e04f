"""Embedding."""

from pydantic import Field

from service.api.schemas.base import ABOUT_EXAMPLE, Answer, Options, Rounded, example


class EmbedOptions(Options):
    """Parameters of embedding."""

    normalize: bool = Field(default=False, description="Divide by the Euclidean norm")


class EmbedAnswer(Answer):
    """A vector for the picture."""

    model_config = example(ABOUT_EXAMPLE | {"embedding": [0.12045, -0.731002, 0.044871]})

    embedding: list[Rounded]
