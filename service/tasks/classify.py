"""Classification: the best classes of a row of probabilities."""

from dataclasses import dataclass

import numpy as np

from service.bundle import Manifest
from service.worker.runtimes.base import Array


@dataclass(frozen=True)
class Prediction:
    """One class and its probability."""

    label: str
    label_id: int
    score: float


def answer(manifest: Manifest, scores: Array, top_k: int, threshold: float) -> list[Prediction]:
    """The ``top_k`` classes of ``scores`` (K,) that reach ``threshold``, best first.

    Equal scores come in the order of their label ids.
    """
    best = np.argsort(-scores, kind="stable")[:top_k]
    return [
        Prediction(manifest.labels[index].name, manifest.labels[index].id, float(scores[index]))
        for index in best
        if scores[index] >= threshold
    ]
