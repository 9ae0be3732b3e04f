"""The names of classes, and which of them are things and which stuff: asked for, or known of the
published label sets.

Checkpoints do not say which is which. A thing is counted (two cups are two segments), stuff is not
(two patches of sky are one).
"""

import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path

from models.checkpoints import CheckpointError
from models.checkpoints.loaded import named_classes
from service.errors import StartError

_CITYSCAPES = ("person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle")

# ADE20K's 50 of 150 classes that are stuff, by their ids from 0, as Mask2Former's authors register
# them (mask2former/data/datasets/register_ade20k_panoptic.py). Names are written in several ways
# ("road, route" or "road"; "window " or "windowpane"), so the set is recognised by a few of them.
# fmt: off
_ADE20K_STUFF = {
    0, 1, 2, 3, 4, 5, 6, 9, 11, 13, 16, 17, 21, 25, 26, 28, 29, 34, 40, 46, 48, 51, 52, 54, 59, 60,
    61, 63, 68, 77, 79, 84, 91, 94, 96, 99, 100, 101, 105, 106, 109, 113, 114, 117, 122, 128, 131,
    140, 141, 145,
}
# fmt: on
_ADE20K_MARKS = {0: "wall", 6: "road", 12: "person", 76: "boat", 126: "animal", 149: "flag"}


def things_of(labels: Mapping[int, str], stuff: Collection[str] | None = None) -> list[bool]:
    """For each label, in order, whether it is a thing.

    ``stuff`` names the classes that are not (an empty collection: every class is a thing), each by
    its name or id, or several at once with commas between; a name may have commas itself. Without
    it the label sets of COCO panoptic (contiguous, or with its own ids as DETR has them), ADE20K
    and Cityscapes are recognised; every class of another set counts as a thing.

    Raises:
        StartError: ``stuff`` names a class that there is not.
    """
    names = list(labels.values())
    if stuff is not None:
        uncounted = {i for item in stuff for i in _named_by(item, labels)}
        return [index not in uncounted for index in labels]
    if len(names) == 133 and (names[0], names[79]) == ("person", "toothbrush"):
        return [index < 80 for index in range(133)]
    if len(names) in (201, 250) and names[1] == "person":  # category ids; things end at 90
        return [index <= 90 for index in range(len(names))]
    if len(names) == 150 and all(
        names[index].split(",")[0].strip() == name for index, name in _ADE20K_MARKS.items()
    ):
        return [index not in _ADE20K_STUFF for index in range(150)]
    if len(names) == 19 and set(_CITYSCAPES) <= set(names):
        return [name in _CITYSCAPES for name in names]
    return [True] * len(names)


def lines_of(file: Path) -> list[str]:
    """What a text file lists, a name a line; empty lines at its end do not count.

    Raises:
        StartError: it cannot be read.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise StartError(f"{file} cannot be read as text: {error}") from None
    return [line.strip() for line in text.rstrip().splitlines()]


def read_labels(file: Path, classes: int) -> dict[int, str]:
    """Class names from a file: a name a line, a JSON list, or a JSON object of ids and names, which
    may be the ``id2label`` of a config.json.

    Raises:
        StartError: it cannot be read, or does not name exactly so many ``classes``.
    """
    lines = lines_of(file)
    try:
        named = json.loads("\n".join(lines)) if lines and lines[0][:1] in ("[", "{") else lines
        if isinstance(named, dict):
            labels = named_classes(named.get("id2label", named), f"--labels {file}")
        else:
            labels = dict(enumerate(map(str, named)))
    except (CheckpointError, ValueError) as error:
        raise StartError(f"--labels {file}: {error}") from None
    if len(labels) != classes:
        raise StartError(f"--labels {file} names {len(labels)} classes; the model has {classes}")
    empty = [str(index) for index, name in labels.items() if not name]
    if empty:
        raise StartError(f"--labels {file} has no name for class {', '.join(empty)}")
    return labels


def are_placeholders(labels: Mapping[int, str]) -> bool:
    """Whether the classes are only counted, as transformers names them that have no names."""
    return bool(labels) and all(re.fullmatch(r"LABEL_\d+", name) for name in labels.values())


def _named_by(item: str, labels: Mapping[int, str]) -> set[int]:
    """The classes that one entry of ``--stuff`` names; a name stands for all that bear it."""
    ids: dict[str, set[int]] = {}
    for index, name in labels.items():
        ids.setdefault(name.strip(), set()).add(index)
    ids = {str(index): {index} for index in labels} | ids
    if item.strip() in ids:
        return ids[item.strip()]
    parts = [part.strip() for part in item.split(",") if part.strip()]
    unknown = sorted(set(parts) - ids.keys())
    if unknown:
        raise StartError(
            f"--stuff names {', '.join(unknown)}; the classes are {', '.join(labels.values())}"
        )
    return {index for part in parts for index in ids[part]}
