"""Seven classes of transformers, exported and asked over HTTP about a photograph, answer as
transformers' own model and processor do.
"""

import base64
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from export.build import export_bundle
from export.plan import Wishes
from tests.conftest import Server, running_server
from tests.export.family_checkpoints import KINDS, Written, write

pytestmark = pytest.mark.timeout(1200)  # the first test waits for sixteen graphs to be traced

CANVASES = {  # what the photograph, 480 x 640, becomes: it is not padded then
    "DetrForObjectDetection": (160, 213),
    "DetrForSegmentation": (160, 213),
    "DeformableDetrForObjectDetection": (160, 213),
    "MaskFormerForInstanceSegmentation": (160, 224),
    "Mask2FormerForUniversalSegmentation": (160, 224),
}
CLASSIFIERS = [kind for kind in KINDS if kind.endswith("ImageClassification")]
PADDED = ["DetrForObjectDetection", "DeformableDetrForObjectDetection"]
PADDED_CANVAS = (160, 256)
DETECTORS = [kind for kind in KINDS if kind.startswith("D")]
SEGMENTERS = [kind for kind in KINDS if kind.endswith("Segmentation")]
THRESHOLD = 0.3
OVERLAP = 0.1  # random masks keep little of theirs against others


@dataclass(frozen=True)
class World:
    """The seven checkpoints, a server of their exports, and the photograph."""

    written: dict[str, Written]
    server: Server
    repository: Path
    photograph: Path

    def ask(self, task: str, model: str, **parameters: Any) -> Any:
        response = httpx.post(
            f"{self.server.url}/v1/{task}",
            params={"model": model, **parameters},
            content=self.photograph.read_bytes(),
            headers={"content-type": "image/png"},
            timeout=60,
        )
        assert response.status_code == 200, response.text
        return response.json()

    def reference(self, kind: str, **options: Any) -> Any:
        written = self.written[kind]
        image = Image.open(self.photograph).convert("RGB")
        inputs = written.processor(image, return_tensors="pt", **options)
        with torch.inference_mode():
            return written.model(**inputs)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, shared_data: Path) -> Iterator[World]:
    """Tracing is what costs: one server for all tests."""
    root = tmp_path_factory.mktemp("families")
    written = {kind: write(kind, root / "checkpoints" / kind) for kind in KINDS}
    for kind, checkpoint in written.items():
        export_bundle(
            checkpoint.folder,
            root / "repository",
            canvases=[CANVASES[kind]] if kind in CANVASES else None,
            precisions=["fp32"],
            wishes=Wishes(profile="hf"),
        )
    for kind in PADDED:
        export_bundle(
            written[kind].folder,
            root / "repository",
            name=f"{kind}-padded",
            canvases=[PADDED_CANVAS],
            precisions=["fp32"],
            wishes=Wishes(profile="hf", tasks=["detect"]),
        )
    photograph = shared_data / "hf_coco_fixtures" / "000000039769.png"
    with running_server("--repository", str(root / "repository"), "--precision", "fp32") as server:
        yield World(written, server, root / "repository", photograph)


@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_a_classifier_gives_the_probabilities_of_transformers(world: World, kind: str) -> None:
    expected = world.reference(kind).logits.softmax(dim=-1)[0]
    answer = world.ask("classify", kind, top_k=100)
    found = {p["label_id"]: p["score"] for p in answer["predictions"]}
    assert len(found) == len(expected)
    assert [found[i] for i in range(len(expected))] == pytest.approx(expected.tolist(), abs=1e-4)


@pytest.mark.parametrize("kind", DETECTORS)
def test_a_detector_gives_the_boxes_of_transformers(world: World, kind: str) -> None:
    _has_the_boxes_of(world, kind, kind, world.reference(kind))


@pytest.mark.parametrize("kind", PADDED)
def test_a_padded_picture_has_the_boxes_that_transformers_finds_with_a_mask(
    world: World, kind: str
) -> None:
    height, width = PADDED_CANVAS
    output = world.reference(kind, pad_size={"height": height, "width": width})
    _has_the_boxes_of(world, f"{kind}-padded", kind, output)
    metrics = httpx.get(f"{world.server.url}/metrics").text
    (padding,) = re.findall(rf'padding_ratio_sum\{{model="{kind}-padded"\}} ([\d.]+)', metrics)
    assert float(padding) == pytest.approx(1 - 213 / 256)


def test_every_graph_has_a_dynamic_batch_and_an_opset_from_17_to_19(world: World) -> None:
    paths = sorted(world.repository.glob("*/*/*.onnx"))
    assert len(paths) == 2 * len(KINDS) + len(PADDED)
    for path in paths:
        model = onnx.load(path, load_external_data=False)
        (opset,) = [entry.version for entry in model.opset_import if not entry.domain]
        assert 17 <= opset <= 19
        for value in [*model.graph.input, *model.graph.output]:
            assert value.type.tensor_type.shape.dim[0].dim_param == "batch"


@pytest.mark.parametrize("kind", SEGMENTERS)
@pytest.mark.parametrize("mode", ["panoptic", "instance", "semantic"])
def test_a_segmenter_gives_the_maps_of_transformers(world: World, kind: str, mode: str) -> None:
    expected_map, expected_labels = _reference_map(world, kind, mode)
    answer = world.ask(
        "segment",
        kind,
        mode=mode,
        threshold=THRESHOLD,
        overlap_threshold=OVERLAP,
        mask_format="png",
    )
    if mode == "instance":
        found = np.zeros((480, 640), dtype=np.int64)
        for segment in answer["segments"]:
            found[_mask(segment)] = segment["id"]
    else:
        found = _ids(answer["segment_map"])
    labels = {segment["id"]: segment["label_id"] for segment in answer["segments"]} | {0: -1}
    by_label = np.vectorize(labels.__getitem__)(found)
    expected_by_label = np.vectorize(expected_labels.__getitem__)(expected_map)
    assert (by_label == expected_by_label).mean() >= 0.999
    assert len(set(labels)) == len(answer["segments"]) + 1
    if mode != "semantic":  # ids are names: the same parts are told from each other
        pairs = np.unique(
            np.stack([expected_map, found]).reshape(2, -1), axis=1, return_counts=True
        )
        assert _one_to_one(*pairs) >= 0.999 * found.size


def _has_the_boxes_of(world: World, model: str, kind: str, output: Any) -> None:
    expected = world.written[kind].processor.post_process_object_detection(
        output, threshold=THRESHOLD, target_sizes=[(480, 640)]
    )[0]
    order = expected["scores"].argsort(descending=True)
    found = world.ask("detect", model, threshold=THRESHOLD)["predictions"]
    assert len(found) == len(order) > 2
    assert [p["label_id"] for p in found] == expected["labels"][order].tolist()
    scores = expected["scores"][order].tolist()
    assert [p["score"] for p in found] == pytest.approx(scores, abs=1e-4)
    boxes = np.array([list(p["box"].values()) for p in found])
    clipped = expected["boxes"][order].numpy().clip(0, [640, 480, 640, 480])
    assert np.abs(boxes - clipped).max() < 0.5


def _reference_map(world: World, kind: str, mode: str) -> tuple[NDArray[np.int64], dict[int, int]]:
    """Ids of transformers' own post-processing (480, 640), and the label of each; void is -1."""
    processor, output = world.written[kind].processor, world.reference(kind)
    sizes = [(480, 640)]
    if mode == "semantic":
        classes = processor.post_process_semantic_segmentation(output, target_sizes=sizes)[0]
        return classes.numpy(), {int(i): int(i) for i in classes.unique()}
    process = getattr(processor, f"post_process_{mode}_segmentation")
    with pytest.MonkeyPatch.context() as patch:
        # Instances are drawn in the order of a topk that need not sort; ours come sorted.
        patch.setattr(torch.Tensor, "topk", lambda scores, k, sorted: torch.topk(scores, k))
        found = process(
            output,
            threshold=THRESHOLD,
            overlap_mask_area_threshold=OVERLAP,
            target_sizes=sizes,
        )[0]
    ids = found["segmentation"].numpy().astype(np.int64)
    assert found["segments_info"]
    labels = {info["id"]: info["label_id"] for info in found["segments_info"]}
    return ids, {0: -1, -1: -1} | labels


def _ids(png: str) -> NDArray[np.int64]:
    colors = np.asarray(
        Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB"), dtype=np.int64
    )
    ids: NDArray[np.int64] = colors @ np.array([1, 256, 65536])
    return ids


def _mask(segment: dict[str, Any]) -> NDArray[np.bool_]:
    picture = Image.open(io.BytesIO(base64.b64decode(segment["mask"])))
    return np.asarray(picture.convert("L")) > 0


def _one_to_one(pairs: NDArray[np.int64], counts: NDArray[np.int64]) -> int:
    """Pixels that agree when every expected id is matched with the id that covers it most."""
    best = {int(a): 0 for a in pairs[0]}
    for expected, count in zip(pairs[0], counts, strict=True):
        best[int(expected)] = max(best[int(expected)], int(count))
    return sum(best.values())
