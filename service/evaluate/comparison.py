"""Two models, or two precisions of one, on the same pictures."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools import mask as run_lengths

from saccade_client.masks import read_id_map
from service.evaluate.bootstrap import interval
from service.evaluate.report import (
    TITLES,
    Document,
    about,
    answerer,
    figures_of,
    percent,
    speed_table,
    table,
)
from service.evaluate.running import Evaluated
from service.predict.journal import REFUSED

Row = dict[str, Any]
PIXELS = 0.01
"""Maps differ where more than this share of the pixels is of another class."""
OVERLAP = 0.5
"""Boxes and masks of one label with at least this IoU are the same object."""
RULES = {
    "classify": "the first label is another",
    "detect": f"an object of one has no partner of its label with an IoU of {OVERLAP} in the other",
    "segment": f"more than {PIXELS:.0%} of the pixels are of another class",
}


@dataclass(frozen=True)
class Difference:
    """A picture about which two models do not agree; ``amount`` in 0..1 says how much."""

    name: str
    amount: float


def compare(first: Evaluated, second: Evaluated) -> Document:
    """Both documents, and the second less the first with intervals from the same resamples, of the
    figures that both have.
    """
    differing = differences(first, second)
    before, after = first.scorer.figures(), second.scorer.figures()
    rows = {}
    for name in (name for name in before if name in after):  # a detector has no masks
        row: Document = {"difference": after[name] - before[name]}
        bounds = interval(second.draws[name] - first.draws[name], row["difference"])
        rows[_title(name)] = row if bounds is None else row | {"interval": list(bounds)}
    speeds = [one.speed["images_per_s"] for one in (first, second)]
    return {
        "first": first.document,
        "second": second.document,
        "differences": rows,
        "differing": {
            "rule": rule_of(first, second),
            "pictures": len(differing),
            "share": len(differing) / first.pictures,
            "files": [{"file": one.name, "amount": round(one.amount, 6)} for one in differing],
        },
        "speed_ratio": round(speeds[1] / speeds[0], 4) if all(speeds) else None,
    }


def differences(first: Evaluated, second: Evaluated) -> list[Difference]:
    """The pictures that the two answer otherwise, those that differ most first."""
    differ = _differ(first, second)
    found = []
    for (name, one), (_, other) in zip(first.answers(), second.answers(), strict=True):
        refused = (REFUSED in one) + (REFUSED in other)
        amount = float(refused == 1)
        if not refused:
            amount = differ(_classes_of(first, one), _classes_of(second, other))
        if amount > 0:
            found.append(Difference(name, amount))
    return sorted(found, key=lambda one: -one.amount)


def rule_of(first: Evaluated, second: Evaluated) -> str:
    """When pictures count as different, in words."""
    task = "detect" if _has_objects(first) else first.run.plan.task
    if task != "detect":
        return RULES[task]
    least = dict.fromkeys(f"{shown_from(one):g}" for one in (first, second))
    return f"{RULES[task]} (of those with a score of at least {' and '.join(least)})"


def shown_from(evaluated: Evaluated) -> float:
    """The score from which objects are looked at one by one: what the model shows by itself."""
    manifest = evaluated.run.manifest
    if evaluated.run.plan.task == "detect":
        return float(manifest["defaults"]["threshold"])
    return float(manifest["segmentation"].get("instance_threshold") or 0.5)


def to_markdown(document: Document) -> str:
    """What a person needs to choose: differences and how sure they are, disagreement, speed."""
    first, second = document["first"], document["second"]
    names = names_of(first, second)
    before, after = figures_of(first), figures_of(second)
    rows = []
    for name, row in document["differences"].items():
        bounds = " to ".join(f"{100 * edge:+.2f}" for edge in row.get("interval", ()))
        nothing = before[name] < 0 or after[name] < 0
        change = "-" if nothing else f"{100 * row['difference']:+.2f}"
        rows.append((name, percent(before[name]), percent(after[name]), change, bounds))
    differing = document["differing"]
    heads = ("figure, %", *names, "difference", "95 % interval")
    shown = [(one["file"], f"{one['amount']:.3f}") for one in differing["files"][:20]]
    parts = [
        f"# {names[0]} and {names[1]} on {first['data']}",
        verdict(document),
        about(first),
        *([about(second)] if second["remarks"] or second["task"] != first["task"] else []),
        table(heads, rows),
        f"A picture differs where {differing['rule']}.",
        *([table(("differs most", "by"), shown)] if shown else []),
        "## Speed",
        speed_table([(names[0], first["speed"]), (names[1], second["speed"])]),
    ]
    return "\n\n".join(parts) + "\n"


def names_of(first: Document, second: Document) -> tuple[str, str]:
    """What to call the two, which is never the same."""
    names = answerer(first), answerer(second)
    if names[0] != names[1]:
        return names
    places = [one["by"].get("url") or one["by"]["repository"] for one in (first, second)]
    apart = [f"at {place}" for place in places]
    if places[0] == places[1]:
        apart = ["first", "second"]
    return f"{names[0]}, {apart[0]}", f"{names[1]}, {apart[1]}"


def verdict(document: Document) -> str:
    """The three figures to choose by, in one paragraph."""
    name = next(iter(document["differences"]))
    row = document["differences"][name]
    differing, ratio = document["differing"], document["speed_ratio"]
    change = f"**{name}: there is nothing to find**"
    if "interval" in row:
        low, high = (100 * edge for edge in row["interval"])
        sure = "the interval holds 0: no difference is shown" if low <= 0 <= high else "it is not 0"
        change = (
            f"**{name} {100 * row['difference']:+.2f} points** (95 % interval {low:+.2f} to "
            f"{high:+.2f}; {sure})"
        )
    speed = f"; the second answers **{ratio:.2f} times** as many pictures a second" if ratio else ""
    return (
        f"{change}; the two differ on **{differing['share']:.1%}** of the pictures "
        f"({differing['pictures']} of {document['first']['pictures']}){speed}."
    )


def _title(name: str) -> str:
    kind, _, plain = name.rpartition(" ")
    return f"{TITLES[kind]} {plain}" if kind else plain


def _has_objects(evaluated: Evaluated) -> bool:
    """Whether its answers are boxes or masks of their own, not classes or maps."""
    return evaluated.run.dataset.kind == "coco"


def _differ(first: Evaluated, second: Evaluated) -> Callable[[Row, Row], float]:
    """How much two answers differ, 0 where they count as the same."""
    if _has_objects(first):
        least = shown_from(first), shown_from(second)
        return lambda one, other: _found(one, other, least)
    return _classified if first.run.plan.task == "classify" else _mapped


def _classes_of(evaluated: Evaluated, answer: Row) -> Row:
    """An answer whose ids are those of the data's classes, so that two models may name their labels
    otherwise; below -1 where a label is no class.
    """
    ids, part = evaluated.run.matching.category_ids, "segments"
    if part not in answer:
        part = "predictions"
    rows = [
        row | {"label_id": ids.get(row["label_id"], -2 - row["label_id"])} for row in answer[part]
    ]
    return answer | {part: rows}


def _classified(one: Row, other: Row) -> float:
    first, second = ((row["predictions"] or [None])[0] for row in (one, other))
    if first is None or second is None:
        return float(first is not second)
    same = first["label_id"] == second["label_id"]
    return 0.0 if same else max((first["score"] + second["score"]) / 2, 1e-6)


def _found(one: Row, other: Row, least: tuple[float, float]) -> float:
    """Share of objects without a partner; the best score chooses first. ``least`` are the scores
    from which each one's objects count.
    """
    objects = [
        answer["segments" if "segments" in answer else "predictions"] for answer in (one, other)
    ]
    objects = [
        [row for row in rows if row["score"] >= lowest]
        for rows, lowest in zip(objects, least, strict=True)
    ]
    left = list(range(len(objects[1])))
    ious = _ious(*objects)
    matched = 0
    for place, row in enumerate(objects[0]):
        same = [i for i in left if objects[1][i]["label_id"] == row["label_id"]]
        best = max(same, key=lambda i: ious[place][i], default=None)
        if best is not None and ious[place][best] >= OVERLAP:
            left.remove(best)
            matched += 1
    alone = len(objects[0]) + len(objects[1]) - 2 * matched
    return alone / max(len(objects[0]) + len(objects[1]), 1)


def _ious(rows: list[Row], columns: list[Row]) -> Any:
    if not rows or not columns:
        return np.zeros((len(rows), len(columns)))
    masks = all("mask" in row for row in (*rows, *columns))
    shapes = [[row["mask"] if masks else _box(row) for row in side] for side in (rows, columns)]
    return run_lengths.iou(*shapes, [0] * len(columns))


def _box(row: Row) -> list[float]:
    """x, y, width, height of an object or segment."""
    if "box" not in row:
        return [float(side) for side in row["bbox"]]
    box = row["box"]
    return [box["xmin"], box["ymin"], box["xmax"] - box["xmin"], box["ymax"] - box["ymin"]]


def _mapped(one: Row, other: Row) -> float:
    classes = [_classes(row) for row in (one, other)]
    share = float((classes[0] != classes[1]).mean())
    return share if share > PIXELS else 0.0


def _classes(row: Row) -> Any:  # (H, W)
    """The label of each pixel's segment, -1 for none."""
    table_of = np.full(max((one["id"] for one in row["segments"]), default=0) + 1, -1)
    for one in row["segments"]:
        table_of[one["id"]] = one["label_id"]
    return table_of[read_id_map(row["segment_map"])]
