"""Scores as a JSON document and as Markdown, with the columns of the papers."""

from collections.abc import Iterable, Sequence
from typing import Any

from service.evaluate.bootstrap import Draws, Figures, interval
from service.evaluate.categories import Category
from service.evaluate.scorers import Scores

Document = dict[str, Any]
TITLES = {"bbox": "box", "segm": "mask"}
"""What COCO's kinds are called in papers."""
_PLAIN = ("found", "invented", "missed")
"""Columns that count; all others are shares, shown in percent."""


def describe_scores(scores: Scores, categories: Sequence[Category], draws: Draws) -> Document:
    """Figures in 0..1, their intervals of 95 % from ``draws`` where they have them, and those of
    every class by its id.

    Of boxes and masks each kind has a member of its own; the first one's figures are at the top as
    well. -1 stands where there is nothing to find.
    """
    kind = scores.headline.rpartition(" ")[0]
    names = {category.id: category.name for category in categories}
    figures = scores.figures()
    intervals = {
        name: list(bounds) for name in draws if (bounds := interval(draws[name], figures[name]))
    }
    return {
        **nested(figures, kind),
        "intervals": nested(intervals, kind),
        "resamples": scores.resamples,
        "per_class": {
            str(category_id): {"name": names[category_id], **nested(row, kind)}
            for category_id, row in scores.per_class().items()
        },
    }


def nested(figures: dict[str, Any], kind: str) -> dict[str, Any]:
    """Figures called like "bbox AP" in members by their first word, and those of ``kind`` at the
    top as well; others as they are.
    """
    top: dict[str, Any] = {}
    groups: dict[str, dict[str, Any]] = {}
    for name, value in figures.items():
        group, _, plain = name.rpartition(" ")
        if group:
            groups.setdefault(group, {})[plain] = value
        if group == kind:
            top[plain] = value
    return top | groups


def figures_of(document: Document) -> Figures:
    """The figures of a document by the names of papers: "box AP", "PQ", "top-1"."""
    groups = {title: document[kind] for kind, title in TITLES.items() if kind in document}
    if groups:
        return {f"{title} {n}": value for title, row in groups.items() for n, value in row.items()}
    return {name: value for name, value in document.items() if isinstance(value, float)}


def intervals_of(document: Document) -> dict[str, tuple[float, float]]:
    """Intervals by the same names."""
    rows = document["intervals"]
    groups = {title: rows[kind] for kind, title in TITLES.items() if kind in rows}
    if groups:
        return {f"{title} {n}": tuple(v) for title, row in groups.items() for n, v in row.items()}
    return {name: tuple(value) for name, value in rows.items()}


def to_markdown(document: Document) -> str:
    """One evaluation as a page."""
    parts = [f"# {title_of(document)}", about(document), figure_table(document)]
    if "speed" in document:
        parts += ["## Speed", speed_table([("", document["speed"])])]
    return "\n\n".join([*parts, "## Classes", class_table(document)]) + "\n"


def title_of(document: Document) -> str:
    """What was evaluated, in a few words."""
    model = document.get("model")
    if model is None:
        return f"{document['predictions']} on {document['data']}"
    return f"{answerer(document)} on {document['data']}"


def answerer(document: Document) -> str:
    """Model, version and what ran it."""
    model = document["model"]
    ran = " ".join(model[name] for name in ("runtime", "precision", "device") if model.get(name))
    return f"{model['name']} {model['version']} ({ran})"


def about(document: Document) -> str:
    """How many pictures, what was asked, and what was odd, in sentences."""
    lines = [f"{document['pictures']} pictures. Intervals hold 95 % of resamples of the pictures."]
    if document.get("parameters"):
        asked = ", ".join(f"{name}={value}" for name, value in document["parameters"].items())
        lines.append(f"Asked: {document['task']}, {asked}.")
    if document.get("refused"):
        lines.append(f"{document['refused']} pictures could not be answered and count as wrong.")
    lines += [f"{remark[0].upper()}{remark[1:]}." for remark in document.get("remarks", [])]
    return " ".join(lines)


def figure_table(document: Document) -> str:
    """Every figure in percent with its interval."""
    intervals = intervals_of(document)
    rows = []
    for name, value in figures_of(document).items():
        bounds = " to ".join(percent(edge) for edge in intervals.get(name, ()))
        rows.append((name, percent(value), bounds))
    return table(("figure", "%", "95 % interval"), rows)


def speed_table(speeds: Sequence[tuple[str, Document]]) -> str:
    """Milliseconds a picture by stage, and pictures a second, a column for each name."""
    columns = [one for _, one in speeds]
    stages = list(dict.fromkeys(stage for one in columns for stage in one["stages_s"]))
    names = [name or "ms" for name, _ in speeds]
    rows = [
        (stage, *(_milliseconds(one["stages_s"].get(stage)) for one in columns)) for stage in stages
    ]
    for name in ("mean", "p50", "p95"):
        seen = (_milliseconds(one["latency_s"].get(name)) for one in columns)
        rows.append((f"request, {name}", *seen))
    rows.append(("under way at a time", *(str(one["concurrency"]) for one in columns)))
    rate = (f"{one['images_per_s']:.1f}" for one in columns)
    return table(("mean ms of a stage", *names), [*rows, ("pictures/s", *rate)])


def class_table(document: Document) -> str:
    """Figures of the classes that occur."""
    rows, titles = [], list[str]()
    for row in document["per_class"].values():
        values = {name: value for name, value in row.items() if not isinstance(value, str | dict)}
        if any(isinstance(value, dict) for value in row.values()):
            values = figures_of(row)
        titles = titles or list(values)
        occurs = any(value > 0 for value in values.values()) or (
            min(values.values()) >= 0 and not any(name in values for name in _PLAIN)
        )
        if occurs:
            shown = (
                str(value) if name in _PLAIN else percent(value) for name, value in values.items()
            )
            rows.append((row["name"], *shown))
    return table(("class", *titles), rows)


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table in Markdown, whose first column is to the left and all others to the right."""
    titles = list(head)
    lines = [titles, ["---", *["---:"] * (len(titles) - 1)], *map(list, rows)]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in c) + " |" for c in lines
    )


def percent(value: float) -> str:
    """A share with one digit more than papers print; "-" where there is nothing to find."""
    return "-" if value < 0 else f"{100 * value:.2f}"


def _milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1000:.1f}"
