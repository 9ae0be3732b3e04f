"""What merging must know of a model and of a picture, and the ways from masks to the picture."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from service.bundle import Manifest, Mode, Profile, Rule
from service.geometry import Placement
from service.tasks.resampling import Maps, Taps, bilinear, resized
from service.worker.runtimes.base import Array

HF_SIDE = 384  # to which transformers brings the masks of every Mask2Former

Axes = tuple[Taps, Taps]


@dataclass(frozen=True)
class Merging:
    """Whose rule, in whose code, for which classes.

    ``things`` (K,) tells things from stuff. ``fused`` are classes of which all segments become one
    under "hf", as transformers takes ``label_ids_to_fuse``; the reference fuses stuff.
    """

    rule: Rule
    profile: Profile
    modes: tuple[Mode, ...]
    things: tuple[bool, ...]
    fused: frozenset[int] = frozenset()

    @classmethod
    def of(cls, manifest: Manifest) -> Self:
        """What a bundle's manifest says; a class of which it says nothing is a thing."""
        assert manifest.segmentation is not None
        things = tuple(label.isthing is not False for label in manifest.labels)
        segmentation = manifest.segmentation
        return cls(segmentation.rule, manifest.profile, tuple(segmentation.modes), things)

    def fuses(self, index: int) -> bool:
        """Whether all segments of a class become one."""
        return index in self.fused if self.profile == "hf" else not self.things[index]


@dataclass(frozen=True)
class Frame:
    """Heights and widths: of the ``canvas`` that the network saw, of its ``valid`` top left part
    that shows the picture, and of the ``picture``.
    """

    canvas: tuple[int, int]
    valid: tuple[int, int]
    picture: tuple[int, int]

    @classmethod
    def of(cls, placement: Placement) -> Self:
        """Of a picture that was placed whole, squashed or padded."""
        sizes = placement.canvas, placement.valid, placement.image
        return cls(*((size.height, size.width) for size in sizes))

    def cells(self, grid: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of a grid over the canvas that show the picture."""
        down, across = (
            -(-valid * cells // canvas)
            for valid, cells, canvas in zip(self.valid, grid, self.canvas, strict=True)
        )
        return down, across


def softmax(logits: Array) -> Maps:
    """Over the last axis."""
    raised = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return raised / raised.sum(axis=-1, keepdims=True)


def axes(
    resize: Callable[[int, int], Taps], sources: Sequence[int], targets: Sequence[int]
) -> Axes:
    down, across = (resize(*pair) for pair in zip(sources, targets, strict=True))
    return down, across


def composed(outer: Axes, inner: Axes) -> Axes:
    return outer[0].after(inner[0]), outer[1].after(inner[1])


def on_canvas(frame: Frame, grid: Sequence[int]) -> Axes:
    """From the grid to the canvas, of which the valid part is cut out."""
    down, across = axes(bilinear, grid, frame.canvas)
    return down.first(frame.valid[0]), across.first(frame.valid[1])


def cropped(frame: Frame, masks: Maps) -> Maps:
    rows, columns = frame.cells((masks.shape[1], masks.shape[2]))
    return masks[:, :rows, :columns]


def hf_maps(merging: Merging, frame: Frame, masks: Maps) -> tuple[Maps, Taps, Taps]:
    """Logits where transformers takes their probability, and the resize from there."""
    maps = cropped(frame, masks)
    if merging.rule == "mask2former":
        maps = resized(maps, *axes(bilinear, maps.shape[1:], (HF_SIDE, HF_SIDE)))
    return maps, *axes(bilinear, maps.shape[1:], frame.picture)
