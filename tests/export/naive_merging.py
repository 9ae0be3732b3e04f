"""Merging restated as loops over queries, for masks that have their final size already."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from service.bundle import Profile, Rule

Maps = NDArray[np.float32]


@dataclass
class Answer:
    """``map`` (H, W): 0 for void, else query + 1 of the segment; ``classes`` of the segments, by
    query, in the order in which they were found.
    """

    map: NDArray[np.int64]
    classes: dict[int, int] = field(default_factory=dict)


@dataclass
class Row:
    """One instance."""

    query: int
    index: int
    score: float
    mask: NDArray[np.bool_]


def softmax(logits: Maps) -> Maps:
    raised = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return raised / raised.sum(axis=-1, keepdims=True)


def sigmoid(logits: Maps) -> Maps:
    return (1 / (1 + np.exp(-logits.astype(np.float64)))).astype(np.float32)


def kept_queries(logits: Maps, threshold: float) -> list[tuple[int, int, float]]:
    """(Query, class, score) of those that may become segments."""
    kept = []
    for query, row in enumerate(softmax(logits)):
        best = int(row.argmax())
        if best != len(row) - 1 and row[best] > threshold:
            kept.append((query, best, float(row[best])))
    return kept


def panoptic(
    rule: Rule,
    profile: Profile,
    logits: Maps,
    probabilities: Maps,
    things: tuple[bool, ...],
    threshold: float,
    overlap_threshold: float,
) -> Answer:
    """MaskFormer's and Mask2Former's rule, and transformers' for all; ``probabilities`` (Q, H, W)
    are those of the masks.
    """
    answer = Answer(np.zeros(probabilities.shape[1:], dtype=np.int64))
    kept = kept_queries(logits, threshold)
    if not kept:
        return answer
    weighted = np.stack([probabilities[query] * np.float32(score) for query, _, score in kept])
    winners = weighted.argmax(axis=0)
    stuff: dict[int, int] = {}
    for place, (query, index, _) in enumerate(kept):
        own = weighted[place] if profile == "hf" else probabilities[query]
        won = winners == place
        area, own_area = int(won.sum()), int((own >= 0.5).sum())
        if area == 0 or own_area == 0:
            continue
        if profile == "hf" and area / own_area <= overlap_threshold:
            continue
        if profile == "reference" and area / own_area < overlap_threshold:
            continue
        if (rule, profile) == ("mask2former", "reference"):
            won &= probabilities[query] >= 0.5
            if not won.any():
                continue
        if profile == "reference" and not things[index] and index in stuff:
            answer.map[won] = stuff[index] + 1
            continue
        stuff[index] = query
        answer.classes[query] = index
        answer.map[won] = query + 1
    return answer


def detr_panoptic(
    logits: Maps, masks: Maps, things: tuple[bool, ...], threshold: float, small_area: float
) -> Answer:
    """DETR's rule, repeated for as long as anything is dropped; ``masks`` (Q, H, W) are logits."""
    alive = kept_queries(logits, threshold)
    answer = Answer(np.zeros(masks.shape[1:], dtype=np.int64))
    fuse = True
    while alive:
        owners = np.stack([masks[query] for query, _, _ in alive]).argmax(axis=0)
        for place, (_, index, _) in enumerate(alive):
            if fuse and not things[index]:
                first = next(other for other, row in enumerate(alive) if row[1] == index)
                owners[owners == place] = first
        large = [row for place, row in enumerate(alive) if (owners == place).sum() > small_area]
        if len(large) == len(alive):
            for place, (query, index, _) in enumerate(alive):
                answer.map[owners == place] = query + 1
                answer.classes[query] = index
            break
        alive, fuse = large, False
    return answer


def best_pairs(
    logits: Maps, masks: Maps, allowed: list[bool], threshold: float, most: int
) -> list[Row]:
    """The best pairs of query and class, weighed by their mask; ``masks`` (Q, H, W) are logits."""
    pairs = softmax(logits)[:, :-1]
    ranking = sorted(
        ((-score, place) for place, score in enumerate(pairs.ravel().tolist())),
    )[:most]
    rows = []
    for negative, place in ranking:
        query, index = divmod(place, pairs.shape[1])
        mask = masks[query] > 0
        inside = sigmoid(masks[query])[mask]
        score = -negative * float(inside.sum()) / (inside.size + 1e-6)
        if allowed[index] and mask.any() and score >= threshold:
            rows.append(Row(query, index, score, mask))
    return rows


def best_classes(logits: Maps, masks: Maps, threshold: float) -> list[Row]:
    """One row for every query, as DETR gives them."""
    pairs = softmax(logits)[:, :-1]
    return [
        Row(query, int(row.argmax()), float(row.max()), masks[query] > 0)
        for query, row in enumerate(pairs)
        if row.max() >= threshold and (masks[query] > 0).any()
    ]


def drawn_over(rows: list[Row]) -> list[Row]:
    """Each row without the pixels of those after it."""
    left = []
    for place, row in enumerate(rows):
        mask = row.mask.copy()
        for later in rows[place + 1 :]:
            mask &= ~later.mask
        if mask.any():
            left.append(Row(row.query, row.index, row.score, mask))
    return left


def semantic(logits: Maps, masks: Maps) -> NDArray[np.int64]:
    """The best class of every pixel."""
    pairs, probabilities = softmax(logits)[:, :-1], sigmoid(masks)
    sums = np.zeros((pairs.shape[1], *masks.shape[1:]))
    for query in range(len(pairs)):
        for index in range(pairs.shape[1]):
            sums[index] += pairs[query, index] * probabilities[query]
    return sums.argmax(axis=0)
