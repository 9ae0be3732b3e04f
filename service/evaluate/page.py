"""The pictures on which two models differ, as one HTML page that loads nothing from anywhere."""

import base64
import io
from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from saccade_client import drawing
from saccade_client.masks import read_mask
from saccade_client.pictures import upright_of
from saccade_client.results import Classification, Detections, Segmentation
from service.evaluate import average_precision
from service.evaluate.comparison import Difference, names_of, rule_of, shown_from, verdict
from service.evaluate.datasets import Dataset
from service.evaluate.report import Document
from service.evaluate.running import Evaluated, Run
from service.evaluate.scorers import segments_of
from service.evaluate.semantic import read_classes
from service.predict.journal import REFUSED
from service.predict.sources import Source

MOST = 60
"""Pictures on the page: those that differ most."""
SIDE_PX = 420

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem; color: #1c1c1c; background: #fff }
h1 { font-size: 1.3rem } h2 { font-size: 1rem; margin: 2rem 0 .5rem; overflow-wrap: anywhere }
.row { display: flex; flex-wrap: wrap; gap: 1rem }
figure { margin: 0; max-width: 420px } img { max-width: 100%; display: block }
figcaption { font-size: .85rem; color: #555; overflow-wrap: anywhere }
@media (prefers-color-scheme: dark) {
  body { color: #eee; background: #161616 } figcaption { color: #aaa }
}
"""


def to_html(
    document: Document, first: Evaluated, second: Evaluated, found: Sequence[Difference]
) -> str:
    """Truth and both answers of the pictures that differ most, side by side."""
    names = names_of(first.document, second.document)
    title = f"{names[0]} and {names[1]} on {first.run.data}"
    wanted = {one.name: one for one in found[:MOST]}
    sources = {source.name: source for source in first.run.dataset.sources}
    answers: dict[str, list[dict[str, Any]]] = {name: [] for name in wanted}
    for evaluated in (first, second):
        for name, answer in evaluated.answers():
            if name in wanted:
                answers[name].append(answer)
    parts = [
        _section(one, sources[name], (first, second), answers[name], names)
        for name, one in wanted.items()
    ]
    more = f", the {MOST} that differ most" if len(found) > MOST else ""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(_POLICY)}">\n'
        '<meta name="viewport" content="width=device-width">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{escape(title)}</h1>\n<p>{escape(verdict(document).replace('*', ''))}</p>\n"
        f"<p>A picture differs where {escape(rule_of(first, second))}. Here are {len(wanted)} of "
        f"{len(found)}{more}.</p>\n" + "\n".join(parts) + "\n</body>\n</html>\n"
    )


def _section(
    one: Difference,
    source: Source,
    both: Sequence[Evaluated],
    answers: Sequence[dict[str, Any]],
    names: Sequence[str],
) -> str:
    try:
        picture = upright_of(source.path)
    except (OSError, ValueError, Image.DecompressionBombError):
        return f"<h2>{escape(one.name)}</h2>\n<p>The picture cannot be opened.</p>"
    truth, caption = _truth(both[0].run, source.name, picture)
    figures = [_figure(truth, caption)]
    for evaluated, answer, name in zip(both, answers, names, strict=True):
        if REFUSED in answer:
            figures.append(_figure(picture, f"{name}: {answer[REFUSED].get('detail', 'refused')}"))
        else:
            figures.append(_figure(_drawn(evaluated, answer, picture), name))
    return (
        f"<h2>{escape(one.name)}, differs by {one.amount:.3f}</h2>\n"
        f'<div class="row">\n{"".join(figures)}</div>'
    )


def _figure(picture: Image.Image, caption: str) -> str:
    small = picture.copy()
    small.thumbnail((SIDE_PX, SIDE_PX))
    file = io.BytesIO()
    small.save(file, "JPEG", quality=80)
    data = base64.b64encode(file.getvalue()).decode()
    text = escape(caption)
    return (
        f'<figure><img alt="{text}" src="data:image/jpeg;base64,{data}">'
        f"<figcaption>{text}</figcaption></figure>\n"
    )


def _drawn(evaluated: Evaluated, answer: dict[str, Any], picture: Image.Image) -> Image.Image:
    """What the model would show by itself."""
    task = evaluated.run.plan.task
    if task == "classify":
        return Classification.of(answer).draw(picture)
    if task == "segment" and "segment_map" in answer:
        return Segmentation.of(answer).draw(picture)
    least, part = shown_from(evaluated), "segments" if task == "segment" else "predictions"
    shown = answer | {part: [row for row in answer[part] if row["score"] >= least]}
    return (Segmentation if task == "segment" else Detections).of(shown).draw(picture)


def _truth(run: Run, name: str, picture: Image.Image) -> tuple[Image.Image, str]:
    """The picture with what is known of it, and what to write below."""
    dataset = run.dataset
    names = {category.id: category.name for category in dataset.categories}
    truth = dataset.truth[name]
    if dataset.kind in ("imagenet", "folder"):
        return picture, f"truth: {names[truth]}"
    if dataset.kind == "coco":
        masks = run.plan.task == "segment"
        return _true_objects(dataset, truth, names, picture, masks), "truth"
    size = picture.size[::-1]
    ids: NDArray[np.integer]
    if dataset.kind == "coco-panoptic":
        assert dataset.maps is not None  # this kind of data comes with them
        ids, kinds = dataset.maps.read(truth["file_name"]), segments_of(truth)
        regions = [(ids == one.id, names[one.category_id], one.category_id) for one in kinds]
    else:
        ids = read_classes(truth, len(names))
        present = [int(kind) for kind in np.unique(ids) if kind in names]
        regions = [(ids == kind, names[kind], kind) for kind in present]
    if ids.shape != size:
        return picture, "truth of another size than the picture"
    return drawing.draw_masks(picture, regions), "truth"


def _true_objects(
    dataset: Dataset,
    truth: dict[str, Any],
    names: dict[int, str],
    picture: Image.Image,
    masks: bool,
) -> Image.Image:
    rows = [row for row in dataset.document["annotations"] if row["image_id"] == truth["id"]]
    height, width = truth["height"], truth["width"]

    def name_of(row: dict[str, Any]) -> str:
        return names.get(row["category_id"], str(row["category_id"]))

    if masks and (width, height) == picture.size and all(row.get("segmentation") for row in rows):
        encoded = (average_precision.encode(row["segmentation"], height, width) for row in rows)
        drawn = (
            (read_mask(mask, height, width), name_of(row), row["category_id"])
            for mask, row in zip(encoded, rows, strict=True)
        )
        return drawing.draw_masks(picture, drawn)
    boxes = []
    for row in rows:
        left, top, across, down = row["bbox"]
        box = (left, top, left + across, top + down)
        boxes.append((box, name_of(row), row["category_id"]))
    return drawing.draw_boxes(picture, boxes)
