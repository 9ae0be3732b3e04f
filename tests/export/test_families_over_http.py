"""Seven classes of transformers, exported and asked over HTTP about a photograph, answer as
transformers' own model and processor do.
"""

import base64
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from export.build import export_bundle
from export.plan import Wishes
from tests.conftest import Server, running_server
from tests.export.family_checkpoints import KINDS, Written, write

CANVASES = {  # what the photograph, 480 x 640, becomes: it is not padded then
    "DetrForObjectDetection": (160, 213),
    "DetrForSegmentation": (160, 213),
    "DeformableDetrForObjectDetection": (160, 213),
    "MaskFormerForInstanceSegmentation": (160, 224),
    "Mask2FormerForUniversalSegmentation": (160, 224),
}
CLASSIFIERS = [kind for kind in KINDS if kind.endswith("ImageClassification")]
DETECTORS = [kind for kind in KINDS if kind.startswith("D")]
SEGMENTERS = [kind for kind in KINDS if kind.endswith("Segmentation")]
THRESHOLD = 0.3
OVERLAP = 0.1  # random masks keep little of theirs against others


@dataclass(frozen=True)
class World:
    """The seven checkpoints, a server of their exports, and the photograph."""

    written: dict[str, Written]
    server: Server
    photograph: Path

    def ask(self, task: str, kind: str, **parameters: Any) -> Any:
        response = httpx.post(
            f"{self.server.url}/v1/{task}",
            params={"model": kind, **parameters},
            content=self.photograph.read_bytes(),
            headers={"content-type": "image/png"},
            timeout=60,
        )
        assert response.status_code == 200, response.text
        return response.json()

    def reference(self, kind: str) -> Any:
        written = self.written[kind]
        inputs = written.processor(Image.open(self.photograph).convert("RGB"), return_tensors="pt")
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
    photograph = shared_data / "hf_coco_fixtures" / "000000039769.png"
    with running_server("--repository", str(root / "repository"), "--precision", "fp32") as server:
        yield World(written, server, photograph)


@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_a_classifier_gives_the_probabilities_of_transformers(world: World, kind: str) -> None:
    expected = world.reference(kind).logits.softmax(dim=-1)[0]
    answer = world.ask("classify", kind, top_k=100)
    found = {p["label_id"]: p["score"] for p in answer["predictions"]}
    assert len(found) == len(expected)
    assert [found[i] for i in range(len(expected))] == pytest.approx(expected.tolist(), abs=1e-4)


@pytest.mark.parametrize("kind", DETECTORS)
def test_a_detector_gives_the_boxes_of_transformers(world: World, kind: str) -> None:
    processor = world.written[kind].processor
    output = world.reference(kind)
    expected = processor.post_process_object_detection(
        output, threshold=THRESHOLD, target_sizes=[(480, 640)]
    )[0]
    order = expected["scores"].argsort(descending=True)
    found = world.ask("detect", kind, threshold=THRESHOLD)["predictions"]
    assert len(found) == len(order) > 2
    assert [p["label_id"] for p in found] == expected["labels"][order].tolist()
    assert [p["score"] for p in found] == pytest.approx(
        expected["scores"][order].tolist(), abs=1e-4
    )
    boxes = np.array([list(p["box"].values()) for p in found])
    clipped = expected["boxes"][order].numpy().clip(0, [640, 480, 640, 480])
    assert np.abs(boxes - clipped).max() < 0.5


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
