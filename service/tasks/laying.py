"""What the graph merged at the resolution of the masks, laid on the picture: every pixel gets the
cell under its centre.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from service.tasks.framing import Frame
from service.tasks.instances import Instance
from service.tasks.merging import Segments, numbered
from service.worker.runtimes.base import Array


def lay_panoptic(frame: Frame, drawn: Array, classes: Array, scores: Array) -> Segments:
    """A graph's ``panoptic_map`` (h, w), ``panoptic_classes`` and ``panoptic_scores`` (Q,), with
    ids from 1 on; a segment that no pixel's centre meets is left out.
    """
    return numbered(lay(frame, drawn.astype(np.uint16)), np.arange(len(classes)), classes, scores)


def lay_instances(
    frame: Frame, masks: Array, classes: Array, scores: Array, queries: Array
) -> list[Instance]:
    """A graph's ``instance_masks`` (T, h, w) and its classes, scores and queries (T,), best first;
    an instance that no pixel's centre meets is left out.
    """
    kept = np.flatnonzero(classes >= 0)
    order = kept[np.argsort(-scores[kept], kind="stable")]
    rows, columns = _axes(frame, masks.shape[1:])
    found = []
    for row in order:
        bits = np.packbits(masks[row][:, columns] > 0, axis=1)[rows]  # packed before rows repeat
        if bits.any():
            values = int(classes[row]), float(scores[row]), int(queries[row])
            found.append(Instance(*values, bits, frame.picture[1]))
    return found


def lay_semantic(frame: Frame, drawn: Array) -> NDArray[np.uint16]:
    """A graph's ``semantic_map`` (h, w): the class index of every pixel (H, W)."""
    return lay(frame, drawn.astype(np.uint16))


def lay(frame: Frame, drawn: Array) -> Array:  # (h, w) -> (H, W)
    """The cells under the centres of the picture's pixels."""
    rows, columns = _axes(frame, drawn.shape)
    return drawn.take(columns, axis=1).take(rows, axis=0)


def _axes(frame: Frame, grid: Sequence[int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The row of cells under each row of pixels, and the same for columns."""
    down, across = (
        _cells(*sides) for sides in zip(grid, frame.canvas, frame.valid, frame.picture, strict=True)
    )
    return down, across


def _cells(cells: int, canvas: int, valid: int, picture: int) -> NDArray[np.int64]:
    """In whole numbers: (i + 1/2) * valid / picture * cells / canvas, rounded down."""
    return (2 * np.arange(picture) + 1) * valid * cells // (2 * picture * canvas)
