"""Which label of a model is which class of a data set."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from service.errors import BadSettings

Match = Literal["name", "id"]


@dataclass(frozen=True)
class Category:
    """One class of a data set."""

    id: int
    name: str
    isthing: bool | None = None


@dataclass(frozen=True)
class Matching:
    """The class for each label id that has one, and classes that the model does not know."""

    category_ids: dict[int, int]
    unknown: list[str]


def match_labels(
    labels: Sequence[dict[str, Any]], categories: Sequence[Category], by: Match
) -> Matching:
    """Pair the labels of a manifest with classes, by name or by id.

    Names are compared without case, underscores and what follows a comma (as in "bus, coach").

    Raises:
        BadSettings: none has a partner.
    """
    if by == "id":
        known = {category.id for category in categories}
        pairs = {label["id"]: label["id"] for label in labels if label["id"] in known}
    else:
        ids: dict[str, int] = {}
        for spelling in (_short, _plain):  # a full name goes before a shortened one
            ids |= {spelling(category.name): category.id for category in categories}
        pairs = {}
        for label in labels:
            found = ids.get(_plain(label["name"]), ids.get(_short(label["name"])))
            if found is not None:
                pairs[label["id"]] = found
    if not pairs:
        raise BadSettings(_nothing(labels, categories, by))
    reached = set(pairs.values())
    return Matching(pairs, [one.name for one in categories if one.id not in reached])


def _plain(name: str) -> str:
    return " ".join(name.casefold().replace("_", " ").split())


def _short(name: str) -> str:
    return _plain(name.partition(",")[0])


def _nothing(labels: Sequence[dict[str, Any]], categories: Sequence[Category], by: Match) -> str:
    said = ", ".join(f"{label['id']} {label['name']}" for label in labels[:3])
    wanted = ", ".join(f"{category.id} {category.name}" for category in categories[:3])
    other = "id" if by == "name" else "name"
    return (
        f"no label of the model ({said}, ...) is a class of the data ({wanted}, ...) by {by}; "
        f"--match {other} compares them by {other}"
    )
