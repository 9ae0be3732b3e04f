"""The table of every published network that can be loaded, as docs/models.md shows it.

    python -m bench.zoo [--out docs/models.md]

Parameters and multiply-accumulates are counted anew from the definitions, without memory for
weights. Measured scores are those of ``bench/results/accuracy/VARIANT.json`` (or
``VARIANT.*.json`` for several of one network), as ``saccade evaluate --out`` writes them.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

from models.macs import count_macs, count_parameters
from models.zoo import ZOO, Variant, build
from models.zoo.papers import FROM_REPOSITORIES, PAPERS, PRINTED, Printed
from service.bundle import Accuracy, Manifest, load_repository
from service.evaluate.report import figures_of
from service.settings import DEMO_REPOSITORY

PAGE = Path("docs/models.md")
MEASURED = Path(__file__).parent / "results" / "accuracy"
DEMO_INT8 = Path(__file__).parent / "results" / "demo-int8.json"

Counts = Mapping[str, tuple[int, int]]
"""Parameters and multiply-accumulates by variant."""

_SIZED = ("detr", "deformable_detr")
"""Families whose networks take the valid sizes of pictures, too."""
_SHOWN = ("top-1", "top-5", "box AP", "mask AP", "PQ", "SQ", "RQ", "mIoU")
_HEAD = """# Models

Made by `python -m bench.zoo`; a test compares it with the code.

Every published network that is defined here, with its size and its scores. Weights come from the
hub ([exporting](exporting.md)); a network without any was published elsewhere, or not at all. Other
checkpoints of the same classes load, too.

- **Parameters** and **MACs** (multiply-accumulates of one picture that fills the canvas) are
  counted from our definition by `models/macs.py`, on the canvas that stands there. In brackets is
  what the authors printed, as coarse as they printed it; they call MACs FLOPs. Where the two differ
  by more than a rounding, a line under the table says why.
- **Published** is in percent. ImageNet networks: top-1, by what they were trained on ("linear" is a
  linear classifier on frozen features). COCO networks: val2017. ADE20K: its validation set. An
  asterisk: the figure is that of the authors' repository.
- **Measured** is what this project measured through its own graphs. It stays empty until someone
  with the data has run [`saccade evaluate`](#fill-in-a-score) and committed the file.
"""
_NOTES = {
    "vit": "ViT-L/16 is printed with 307 M whatever its patches; ViT-H/14 with what it counts at\n"
    "224, where its position table is 1.4 M shorter than at 518.",
    "dinov2": "ViT-S/14 is printed with 21 M, its size without the position table of 518 x 518.",
    "swin": "Swin-T's 28.3 M is printed 29 M.",
    "detr": "The authors did not count the 0.2 M of the backbone's stem and first stage, which\n"
    "they did not train, and cut to whole millions.",
    "deformable_detr": "The authors do not say at which size they counted: at 800 x 1120 all of\n"
    "their MACs come out within 2%. They print 40 M for all forms with four levels, which is the\n"
    "first's.",
    "maskformer": "The authors' MACs hold semantic inference, the product of every query's\n"
    "classes with its mask at the size of the picture: queries x classes x pixels, 4 to 12 G.\n"
    "With it all nine agree within 3%. It belongs to the answer, not to the network.",
}
_DEMO = """## The demo models

Trained by this project on scenes that it draws itself, and measured on 2048 of them that were held
out, by `python -m export.demo.accuracy`: these are the `accuracy` entries of their manifests. int8
is not packaged: `saccade models quantize` makes it for the two classifiers, and refuses the others
([numerics](numerics.md#the-demo-models)).

| Model | Parameters | MACs | Runtime | Precision | Held-out scores |
|---|---|---|---|---|---|"""
_TAIL = """## Fill in a score

```sh
saccade export facebook/detr-resnet-50 --out models-repository
saccade evaluate detr-resnet-50 --repository models-repository --data coco:COCO_FOLDER \\
  --out bench/results/accuracy/detr-r50.json
python -m bench.zoo
```

Commit the JSON and the page. The file is named after the variant; `detr-r50.bf16.json` is a second
one of the same network.
"""


def main() -> None:
    """Count everything and write the page."""
    parser = argparse.ArgumentParser(prog="python -m bench.zoo")
    parser.add_argument("--out", type=Path, default=PAGE)
    asked = parser.parse_args()
    asked.out.write_text(page({name: count(name) for name in ZOO}), encoding="utf-8")


def count(name: str) -> tuple[int, int]:
    """Parameters and multiply-accumulates of a variant, from its definition."""
    with torch.device("meta"):
        model = build(name)
        inputs = [torch.empty(1, 3, *ZOO[name].config.canvas)]
        if ZOO[name].family in _SIZED:
            inputs.append(torch.empty(1, 2, dtype=torch.int32))
    return count_parameters(model), count_macs(model, *inputs)


def page(counts: Counts) -> str:
    """The whole page."""
    families = groupby(ZOO.values(), key=lambda variant: variant.family)
    sections = [section(family, list(variants), counts) for family, variants in families]
    return "\n".join([_HEAD, *sections, demo_section(), _TAIL])


def section(family: str, variants: Sequence[Variant], counts: Counts) -> str:
    """Heading, table and notes of one family."""
    paper = PAPERS[family]
    lines = [
        f"## {paper.title}",
        "",
        f"{paper.authors}, [arXiv {paper.arxiv}](https://arxiv.org/abs/{paper.arxiv}).",
        "",
        "| Variant | Weights | Canvas | Parameters | MACs | Published | Measured |",
        "|---|---|---|---|---|---|---|",
        *(row(variant, *counts[variant.name]) for variant in variants),
        "",
    ]
    if family in _NOTES:
        lines += [_NOTES[family], ""]
    return "\n".join(lines)


def row(variant: Variant, parameters: int, macs: int) -> str:
    """One line of a table."""
    printed = PRINTED.get(variant.name, Printed())
    height, width = variant.config.canvas
    cells = [
        f"`{variant.name}`",
        "<br>".join(f"`{hub_id}`" for hub_id in variant.hub_ids),
        f"{height} x {width}",
        f"{parameters / 1e6:.1f} M{_printed(printed.parameters)}",
        f"{macs / 1e9:.{1 if macs >= 1e10 else 2}f} G{_printed(printed.macs)}",
        published(variant),
        "<br>".join(measured(variant.name)),
    ]
    return f"| {' | '.join(cells)} |".replace("|  |", "| |").replace("|  |", "| |")


def published(variant: Variant) -> str:
    """What the authors state."""
    scores = [f"{value} ({data})" for data, value in variant.top1.items()]
    cell = f"top-1 {', '.join(scores)}" if scores else ""
    cell += ", ".join(f"{metric} {value}" for metric, value in variant.published.items())
    return cell + " \\*" * (variant.name in FROM_REPOSITORIES)


def measured(name: str, folder: Path = MEASURED) -> list[str]:
    """What this project measured, a line each."""
    files = sorted({*folder.glob(f"{name}.json"), *folder.glob(f"{name}.*.json")})
    return [_measured(json.loads(path.read_bytes())) for path in files]


def demo_section() -> str:
    """The packaged models' scores in all that runs them, and in int8 where that was measured."""
    lines = [_DEMO]
    found = json.loads(DEMO_INT8.read_bytes())["models"] if DEMO_INT8.exists() else []
    int8 = {row["model"]: row for row in found}
    for bundle in load_repository(DEMO_REPOSITORY):
        manifest = bundle.manifest
        also = int8.get(manifest.name, {})
        scores = [Accuracy.model_validate(one) for one in also.get("accuracy", [])]
        lines += _demo_rows(manifest, [*manifest.accuracy, *scores])
        if "refused" in also:
            lines.append(_demo_row(manifest, "any", "int8", "refused by the gate"))
    return "\n".join([*lines, ""])


def _demo_rows(manifest: Manifest, scores: Sequence[Accuracy]) -> list[str]:
    rows = []
    for (runtime, precision), group in groupby(
        scores, key=lambda one: (one.runtime, one.precision)
    ):
        cell = ", ".join(f"{one.metric} {one.value:.4f}" for one in group)
        rows.append(_demo_row(manifest, runtime, precision, cell))
    return rows


def _demo_row(manifest: Manifest, runtime: str, precision: str, scores: str) -> str:
    sizes = f"{manifest.parameters / 1e6:.2f} M | {manifest.macs / 1e9:.3f} G"
    return f"| `{manifest.name}` | {sizes} | {runtime} | {precision} | {scores} |"


def _measured(document: dict[str, Any]) -> str:
    figures = figures_of(document)
    shown = ", ".join(f"{name} {100 * figures[name]:.1f}" for name in _SHOWN if name in figures)
    where = f"{document['model']['runtime']} {document['model']['precision']}"
    return f"{shown} ({where}, {document['pictures']} pictures)"


def _printed(figure: float | None) -> str:
    return "" if figure is None else f" ({figure:g})"


if __name__ == "__main__":
    main()
