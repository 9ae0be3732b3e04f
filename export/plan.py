"""What a loaded network can be asked, and the graph that answers."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from export.heads import Detect, Entry, Merge, Segment, Serve
from export.label_sets import things_of
from models.checkpoints import Loaded
from models.deformable_detr import DeformableDetr
from models.detr import Detr
from models.mask2former import Mask2Former
from models.maskformer import MaskFormer
from service import bundle
from service.errors import StartError
from service.geometry import Size

MODES: tuple[bundle.Mode, ...] = ("panoptic", "instance", "semantic")
_MOST_BOXES = 100
_BOX_THRESHOLD = 0.5


@dataclass(frozen=True)
class Wishes:
    """How a model is to be served; None where its own nature decides.

    ``modes`` are those of a segmenter, the default first; ``stuff`` names the classes that are not
    counted, see ``things_of``; ``threshold`` is the least score of a box or segment where a request
    names none.
    """

    profile: bundle.Profile = "reference"
    tasks: Sequence[bundle.Task] | None = None
    modes: Sequence[bundle.Mode] | None = None
    stuff: Collection[str] | None = None
    threshold: float | None = None


def tasks_of(loaded: Loaded, wanted: Sequence[bundle.Task] | None = None) -> list[bundle.Task]:
    """What the network can do, narrowed to ``wanted``, the task it is known for first.

    Raises:
        StartError: it cannot do what is wanted.
    """
    model = loaded.model
    possible: list[bundle.Task]
    if isinstance(model, Detr) and model.config.masks:
        possible = ["segment", "detect", "attention"]
    elif isinstance(model, Detr | DeformableDetr):
        possible = ["detect", "attention"]
    elif isinstance(model, MaskFormer | Mask2Former):
        possible = ["segment", "attention"]
    else:
        possible = ["classify", "attention", "embed"] if loaded.labels else ["attention", "embed"]
    impossible = [task for task in wanted or [] if task not in possible]
    if impossible:
        raise StartError(
            f"{loaded.architecture} cannot do {', '.join(impossible)}; "
            f"it can do {', '.join(possible)}"
        )
    return [task for task in possible if not wanted or task in wanted]


def narrowed(loaded: Loaded, wishes: Wishes) -> Loaded:
    """The network without what none of the wanted tasks needs: a DETR that is not to segment has no
    mask head.

    Raises:
        StartError: it cannot do what is wanted.
    """
    model = loaded.model
    tasks = tasks_of(loaded, wishes.tasks)
    if not isinstance(model, Detr) or model.mask_head is None or "segment" in tasks:
        return loaded
    ignored = [f"mask_head.{name}" for name in model.mask_head.state_dict()]
    model.drop_masks()
    return replace(loaded, ignored=[*loaded.ignored, *ignored])


def segmentation_of(loaded: Loaded, wishes: Wishes) -> bundle.Segmentation | None:
    """The section of the manifest; thresholds are those of the authors, or of transformers."""
    rule = _rule(loaded)
    if rule is None:
        return None
    authors: float = {"detr": 0.85, "maskformer": 0.8, "mask2former": 0.8}[rule]
    threshold = 0.5 if wishes.profile == "hf" else authors
    return bundle.Segmentation(
        rule=rule,
        modes=list(dict.fromkeys(wishes.modes or MODES)),
        threshold=threshold if wishes.threshold is None else wishes.threshold,
    )


def defaults_of(loaded: Loaded, wishes: Wishes) -> bundle.Defaults:
    """Parameters of a request for classes or boxes that names none."""
    if isinstance(loaded.model, Detr | DeformableDetr):
        threshold = _BOX_THRESHOLD if wishes.threshold is None else wishes.threshold
        return bundle.Defaults(top_k=_MOST_BOXES, threshold=threshold)
    return bundle.Defaults()


def labels_of(loaded: Loaded, wishes: Wishes) -> list[bundle.Label]:
    """The classes, and for a segmenter which of them are things."""
    if _rule(loaded) is None:
        return [bundle.Label(id=i, name=name) for i, name in loaded.labels.items()]
    things = things_of(loaded.labels, wishes.stuff)
    return [
        bundle.Label(id=i, name=name, isthing=thing)
        for (i, name), thing in zip(loaded.labels.items(), things, strict=True)
    ]


def serving_head(loaded: Loaded, entry: Entry, canvas: Size, wishes: Wishes) -> nn.Module:
    """The module whose graph serves: entry, network and the arithmetic of its tasks."""
    model = loaded.model
    segmentation = segmentation_of(loaded, wishes)
    if segmentation is not None:
        merge = Merge(
            segmentation.rule,
            wishes.profile,
            segmentation.modes,
            things_of(loaded.labels, wishes.stuff),
            (canvas.height, canvas.width),
        )
        return Segment(entry, model, merge, takes_sizes=takes_sizes(model))
    if isinstance(model, Detr | DeformableDetr):
        return Detect(entry, model, loaded.activation or "softmax")
    return Serve(entry, model, loaded.activation or "softmax")


def takes_sizes(model: nn.Module) -> bool:
    """Whether the network itself is told which part of the canvas shows the picture."""
    return isinstance(model, Detr | DeformableDetr)


def serving_examples(head: nn.Module, canvas: Size, padded: bool) -> dict[str, Tensor]:
    """Inputs of a serving graph, two pictures, for the tracer."""
    images = torch.zeros(2, canvas.height, canvas.width, 3, dtype=torch.uint8)
    examples = {"images": images}
    if isinstance(head, Segment):
        examples |= {"threshold": torch.full((2,), 0.5), "overlap_threshold": torch.full((2,), 0.8)}
    if padded:
        size = torch.tensor([canvas.height, canvas.width], dtype=torch.int32)
        examples["sizes"] = size.repeat(2, 1)
    return examples


def _rule(loaded: Loaded) -> bundle.Rule | None:
    model = loaded.model
    if isinstance(model, Detr) and model.config.masks:
        return "detr"
    if isinstance(model, Mask2Former):
        return "mask2former"
    return "maskformer" if isinstance(model, MaskFormer) else None
