"""What is known of a published network besides its weights."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Variant:
    """One published network at one canvas; ``config`` is that of its module in ``models``.

    ``hub_ids`` hold its weights in a layout that ``models.checkpoints`` reads; none where they were
    never published, or only outside the hub. ``parameters`` and ``macs`` are counted from the
    definition, for one image that fills the canvas. ``top1`` is the published ImageNet-1k accuracy
    in percent by what the network was trained on ("linear": a linear classifier on frozen
    features); ``published`` are other figures of the papers by metric ("box AP", "PQ", "mIoU").
    """

    name: str
    family: str
    config: Any
    parameters: int
    macs: int
    hub_ids: tuple[str, ...] = ()
    top1: Mapping[str, float] = field(default_factory=dict)
    published: Mapping[str, float] = field(default_factory=dict)
