"""The client against a real server of the demo models."""

import asyncio
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from saccade_client import AsyncClient, Client, Refused, Unreachable
from saccade_client.results import Detections, Segmentation
from tests.conftest import Server

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),  # pycocotools
    pytest.mark.filterwarnings("ignore:OpenCV:UserWarning"),  # supervision
]


@pytest.fixture
def star(demo_scenes: dict[str, Any]) -> Path:
    path: Path = demo_scenes["star.jpg"]["path"]
    return path


@pytest.fixture
def client(demo_server: Server) -> Any:
    with Client(demo_server.url) as client:
        yield client


def test_a_scene_is_classified_as_what_it_shows(client: Client, star: Path) -> None:
    found = client.classify(star, top_k=3)
    assert len(found) == 3
    assert found.predictions[0].label == "star"
    assert (found.width, found.height) == (480, 480)
    assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)


def test_a_named_model_answers_and_an_unknown_one_is_refused(client: Client, star: Path) -> None:
    assert client.classify(star, model="vit-scenes").model == "vit-scenes"
    with pytest.raises(Refused, match="there is no model 'resnet'") as raised:
        client.classify(star, model="resnet")
    assert raised.value.code == "unknown_model"
    assert len(raised.value.request_id) == 16


def test_boxes_lie_where_the_objects_are(client: Client, demo_scenes: dict[str, Any]) -> None:
    scene = demo_scenes["star.jpg"]
    found = client.detect(scene["path"], labels=["star"])
    assert {one.label for one in found} == {"star"}
    truth = [box["box_xyxy_px"] for box in scene["boxes"] if box["label"] == "star"]
    best = found.predictions[0].box
    assert max(_iou(best, box) for box in truth) > 0.7


def test_every_pixel_of_a_map_is_in_the_mask_of_its_segment(client: Client, star: Path) -> None:
    found = client.segment(star)
    assert found.ids is not None
    assert found.ids.shape == (found.height, found.width)
    assert {one.id for one in found} == set(np.unique(found.ids).tolist()) - {0}
    for one in found:
        mask = found.mask(one)
        assert mask.sum() == one.area
        rows, columns = np.nonzero(mask)
        assert (columns.min(), rows.min()) == one.bbox[:2]


@pytest.mark.parametrize("mask_format", ["rle", "png"])
def test_masks_are_the_same_in_every_format(client: Client, star: Path, mask_format: Any) -> None:
    mapped = client.segment(star)
    encoded = client.segment(star, mask_format=mask_format, segment_map=False)
    assert encoded.ids is None
    for one, other in zip(mapped, encoded, strict=True):
        assert np.array_equal(mapped.mask(one), encoded.mask(other))


def test_a_polygon_covers_nearly_the_same_pixels(client: Client, star: Path) -> None:
    found = client.segment(star, mask_format="polygon")
    one = max(found, key=lambda one: one.area)
    assert found.ids is not None
    drawn, truth = found.mask(one), found.ids == one.id
    assert (drawn & truth).sum() / (drawn | truth).sum() > 0.9


def test_a_vector_of_length_one_is_an_array(client: Client, star: Path) -> None:
    found = client.embed(star, normalize=True)
    assert np.linalg.norm(np.asarray(found)) == pytest.approx(1, abs=1e-4)
    assert len(found) == len(found.json["embedding"])


def test_attention_maps_lie_on_the_picture(client: Client, star: Path) -> None:
    found = client.attention(star, model="vit-scenes", head="all")
    assert len(found) > 1
    assert {one.head for one in found} == set(range(len(found)))
    assert all(one.values.min() >= 0 for one in found)
    assert found.draw().size == (found.width, found.height)


def test_the_asynchronous_client_gives_equal_answers_many_at_once(
    client: Client, demo_server: Server, demo_scenes: dict[str, Any]
) -> None:
    paths = [scene["path"] for scene in demo_scenes.values()]

    async def detect_all() -> list[Detections]:
        async with AsyncClient(demo_server.url) as many:
            return await asyncio.gather(*(many.detect(path) for path in paths))

    for path, found in zip(paths, asyncio.run(detect_all()), strict=True):
        alone = client.detect(path)
        assert [one.label for one in found] == [one.label for one in alone]
        assert _boxes(found) == pytest.approx(_boxes(alone), abs=0.5)


def test_models_and_readiness_can_be_asked(client: Client) -> None:
    assert client.ready()
    names = {model["name"] for model in client.models()}
    assert {"detr-scenes", "vit-scenes"} <= names
    assert client.model("detr-scenes")["manifest"]["labels"][0]["name"] == "circle"


def test_nobody_at_an_address_is_said_in_time() -> None:
    with Client("http://127.0.0.1:9", timeout_s=0.3) as client:
        assert not client.ready()
        with pytest.raises(Unreachable, match="no answer from the server"):
            client.models()


def test_a_key_opens_a_server_that_asks_for_one(
    start_server: Any, tmp_path: Path, star: Path
) -> None:
    keys = tmp_path / "keys"
    keys.write_text("tester:a-key-of-the-test\n")
    server = start_server("--api-keys-file", str(keys))
    with Client(server.url) as nobody, pytest.raises(Refused, match="401 unauthorized"):
        nobody.classify(star)
    with Client(server.url, api_key="a-key-of-the-test") as tester:
        assert tester.classify(star).predictions[0].label == "star"


def test_drawn_boxes_change_the_picture_only_around_them(client: Client, star: Path) -> None:
    found = client.detect(star, top_k=1)
    before = _pixels(star).astype(int)
    changed = np.abs(np.asarray(found.draw()).astype(int) - before).sum(axis=-1) > 0
    xmin, ymin, xmax, ymax = found.predictions[0].box
    assert changed[round(ymin) + 1 : round(ymax) - 1, round(xmin) + 1].all()
    middle = round((xmin + xmax) / 2), round((ymin + ymax) / 2)
    assert not changed[middle[1], middle[0]]


def test_drawn_masks_tint_what_they_cover(client: Client, star: Path) -> None:
    found = client.segment(star)
    before = _pixels(star).astype(int)
    changed = np.abs(np.asarray(found.draw()).astype(int) - before).sum(axis=-1) > 0
    assert changed[found.mask(found.segments[0])].mean() > 0.95


def test_a_notebook_shows_the_drawn_picture(client: Client, star: Path) -> None:
    for found in (client.classify(star), client.detect(star), client.segment(star)):
        shown = found._repr_png_()
        assert shown is not None
        assert Image.open(io.BytesIO(shown)).size == (found.width, found.height)
        assert len(repr(found)) < 3000
    assert Detections.of(client.detect(star).json)._repr_png_() is None  # there is no picture


def test_cocos_own_tools_read_boxes_and_masks(client: Client, star: Path) -> None:
    from pycocotools.coco import COCO

    detections, segments = client.detect(star), client.segment(star)
    scene = {"id": 7, "file_name": "star.jpg", "width": 480, "height": 480}
    labels = client.model("detr-scenes")["manifest"]["labels"]
    truth = COCO()
    truth.dataset = {"images": [scene], "categories": labels, "annotations": [], "info": {}}
    truth.createIndex()
    rows = truth.loadRes(detections.to_coco(7)).loadAnns([1])
    xmin, ymin, xmax, ymax = detections.predictions[0].box
    assert rows[0]["bbox"] == pytest.approx([xmin, ymin, xmax - xmin, ymax - ymin])
    things = [row for row in segments.to_coco(7) if row["segmentation"]]
    loaded = truth.loadRes(things)
    for number, one in enumerate(segments, 1):
        mask = loaded.annToMask(loaded.loadAnns([number])[0])
        assert np.array_equal(mask.astype(bool), segments.mask(one))


def test_supervision_takes_classes_boxes_and_masks(client: Client, star: Path) -> None:
    boxes = client.detect(star).to_supervision()
    assert boxes.xyxy.shape == (len(client.detect(star)), 4)
    assert "star" in boxes.data["class_name"]
    segments = client.segment(star)
    masks = segments.to_supervision()
    assert masks.mask.shape == (len(segments), segments.height, segments.width)
    assert masks.area.tolist() == [one.area for one in segments]
    assert client.classify(star).to_supervision().get_top_k(1)[0] == [
        client.classify(star).predictions[0].label_id
    ]


def test_nothing_found_is_converted_and_drawn_too(client: Client, star: Path) -> None:
    nothing = client.detect(star, threshold=1.0)
    assert len(nothing) == 0
    assert nothing.to_coco() == []
    assert len(nothing.to_supervision()) == 0
    assert np.array_equal(np.asarray(nothing.draw()), _pixels(star))
    assert len(client.segment(star, mode="panoptic", threshold=1.0).to_supervision()) == 0


def test_masks_that_nobody_asked_for_are_missed_with_a_sentence(client: Client, star: Path) -> None:
    found: Segmentation = client.segment(star, segment_map=False)
    with pytest.raises(ValueError, match="ask with segment_map or a mask_format"):
        found.mask(found.segments[0])


def _pixels(path: Path) -> Any:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def _boxes(found: Detections) -> Any:
    return np.array([one.box for one in found])


def _iou(one: tuple[float, ...], other: list[float]) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    both = max(width, 0) * max(height, 0)
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
    return both / (areas - both)
