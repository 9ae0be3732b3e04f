"""Parameters of each task; what is left out is the model's own default."""

from collections.abc import Sequence
from typing import Literal, TypedDict


class Options(TypedDict, total=False):
    """Of every task: which ``model`` is asked, and how long it may take with all retries."""

    model: str
    timeout_s: float


class ClassifyOptions(Options, total=False):
    """How many classes, and the least score of one."""

    top_k: int
    threshold: float


class DetectOptions(Options, total=False):
    """How many objects, the least score of one, and only those of these labels (names or ids)."""

    top_k: int
    threshold: float
    labels: str | Sequence[str | int]


class SegmentOptions(Options, total=False):
    """See docs/client.md and the server's own /docs."""

    mode: Literal["panoptic", "instance", "semantic"]
    detail: Literal["exact", "fast"]
    threshold: float
    overlap_threshold: float
    labels: str | Sequence[str | int]
    mask_format: Literal["none", "png", "rle", "polygon"]
    segment_map: bool


class EmbedOptions(Options, total=False):
    """Whether the vector is divided by its length."""

    normalize: bool


class AttentionOptions(Options, total=False):
    """Which map: its kind, layer and head, and the query or point (x, y) that looks."""

    kind: str
    layer: int | str
    head: int | str
    query: int | str
    point: tuple[float, float]
