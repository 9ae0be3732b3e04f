"""What loading a checkpoint gives, and what its config says of the head."""

from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from models.checkpoints.errors import CheckpointError

Activation = Literal["softmax", "sigmoid"]


@dataclass
class Loaded:
    """A network with its weights, in eval mode and fp32.

    ``architecture`` is the name in the checkpoint's config; ``activation`` turns logits into
    scores and is None without a head; ``ignored`` names the weights deliberately not used.
    """

    model: nn.Module
    family: str
    architecture: str
    labels: dict[int, str]
    activation: Activation | None
    ignored: list[str]


def labels_of(config: dict[str, Any]) -> dict[int, str]:
    """Class id to name; transformers' placeholder names where the config counts without naming."""
    if not config.get("id2label"):
        return {index: f"LABEL_{index}" for index in range(config.get("num_labels", 2))}
    return named_classes(config["id2label"], "id2label")


def named_classes(named: Any, source: str) -> dict[int, str]:
    """Class id to name, in the order of the ids, from an object of both; ``source`` says whose.

    Raises CheckpointError unless there is every id from 0 on.
    """
    if not isinstance(named, dict) or not all(str(index).isdecimal() for index in named):
        raise CheckpointError(
            f"{source} is {str(named)[:80]}; expected an object of ids from 0 on and their names"
        )
    labels = {int(index): str(name) for index, name in named.items()}
    if not labels:
        raise CheckpointError(f"{source} names no classes")
    if sorted(labels) != list(range(len(labels))):
        raise CheckpointError(
            f"{source} names {len(labels)} classes with ids from {min(labels)} to {max(labels)}; "
            f"expected every id from 0 to {len(labels) - 1}"
        )
    return dict(sorted(labels.items()))


def activation_of(config: dict[str, Any]) -> Activation:
    """How logits become scores, by the config's ``problem_type``."""
    problem = config.get("problem_type")
    if problem not in (None, "single_label_classification", "multi_label_classification"):
        raise CheckpointError(
            f"problem_type {problem!r} is not supported; supported are "
            "single_label_classification and multi_label_classification"
        )
    return "sigmoid" if problem == "multi_label_classification" else "softmax"
