"""Mean intersection over union of semantic maps, summed over all pictures as the papers do."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.errors import BadSettings

VOID = -1
IGNORED = 255
"""Void in maps of fewer classes, as training programs write it."""
Counts = NDArray[np.float64]
"""Pixels in both, in truth and in the answer, in the last axis (..., 3)."""


class MeanIou:
    """Pixel counts of every class in every picture."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = list(names)
        self.pictures: list[Counts] = []
        self._total = np.zeros((len(self.names), 3))

    def add(self, truth: NDArray[np.integer], found: NDArray[np.integer]) -> None:
        """Note one answer: class indices of every pixel (H, W), ``VOID`` for none. Where the truth
        is void nothing counts.
        """
        seen = truth != VOID
        true, said = truth[seen].astype(np.int64), found[seen].astype(np.int64)
        classes = len(self.names)
        both = np.bincount(true[true == said], minlength=classes)
        answered = np.bincount(said[said != VOID], minlength=classes)
        columns = both, np.bincount(true, minlength=classes), answered
        self.pictures.append(np.stack(columns, axis=-1).astype(np.float64))
        self._total += self.pictures[-1]

    def figures(self) -> dict[str, float]:
        """mIoU, mean accuracy of the classes (mAcc), and of all pixels (aAcc), in 0..1."""
        return {name: float(value) for name, value in self.summarize(self.total()).items()}

    def total(self) -> Counts:
        """Counts of all pictures together (K, 3)."""
        return self._total.copy()

    def summarize(self, counts: Counts) -> dict[str, NDArray[np.float64]]:
        """The figures of counts (..., K, 3), each (...); a class that nobody names is left out."""
        both, true, said = np.moveaxis(counts, -1, 0)
        union = true + said - both
        return {
            "mIoU": _mean(both, union),
            "mAcc": _mean(both, true),
            "aAcc": both.sum(axis=-1) / np.maximum(true.sum(axis=-1), 1),
        }

    def per_class(self) -> list[dict[str, float]]:
        """IoU and accuracy of every class, -1 for one that does not occur."""
        rows = []
        for both, true, said in self.total().tolist():
            union = true + said - both
            accuracy = both / true if true else -1.0
            rows.append({"IoU": both / union if union else -1.0, "Acc": accuracy})
        return rows


def read_classes(path: Path, classes: int) -> NDArray[np.int64]:  # (H, W)
    """Class indices of a map that counts them from 1 on; ``VOID`` for 0, and for ``IGNORED``.

    Raises:
        BadSettings: it is no such map, or has a class beyond ``classes``.
    """
    try:
        with Image.open(path) as image:
            pixels = np.asarray(image)
    except OSError as error:
        raise BadSettings(f"cannot read the map {path}: {error.strerror or error}") from None
    if pixels.ndim != 2:
        raise BadSettings(
            f"{path} is a picture in colour; a map has the number of a class in each pixel"
        )
    indices = pixels.astype(np.int64) - 1
    if classes < IGNORED:
        indices[pixels == IGNORED] = VOID
    if indices.size and (most := int(indices.max())) >= classes:
        raise BadSettings(f"{path} has the class {most + 1}, and the data has {classes}")
    return indices


def _mean(parts: NDArray[np.float64], wholes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean share over the classes (last axis) that have a whole."""
    shares = np.where(wholes > 0, parts / np.maximum(wholes, 1), 0)
    return np.asarray(shares.sum(axis=-1) / np.maximum((wholes > 0).sum(axis=-1), 1))
