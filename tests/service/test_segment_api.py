"""Segments over HTTP: JSON with masks, the map of ids, overlays, and what is refused."""

import asyncio
import base64
import io
import json
import threading
import time
from email import message_from_bytes, policy
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco

from service.api import serving
from service.api.tasks import segment as segment_api
from service.tasks import masks, segment
from tests.service.fake_app import FakeApp, picture
from tests.service.sample_bundle import PAD, segmenter_of
from tests.service.test_segment import DRAWN, INSTANCES, PANOPTIC, SEMANTIC, raw

pytestmark = pytest.mark.filterwarnings(  # pycocotools decodes into a class of NumPy 1's time
    "ignore:__array__ implementation:DeprecationWarning"
)

PHOTO = picture(red=90, green=90, blue=90, size=(8, 8))
IDS = [[3, 3, 3, 3], [3, 2, 2, 3], [0, 2, 2, 1], [0, 0, 1, 1]]  # of PANOPTIC, every second pixel


def app(manifest: dict[str, Any] | None = None, **settings: Any) -> FakeApp:
    fake = FakeApp([manifest or segmenter_of()], **settings)
    fake.link.answer = PANOPTIC | INSTANCES | SEMANTIC | raw()
    return fake


def ids_of(png: bytes) -> NDArray[np.int64]:
    image = Image.open(io.BytesIO(png))
    assert (image.format, image.mode) == ("PNG", "RGB")
    ids: NDArray[np.int64] = np.array(image).astype(np.int64) @ np.array([1, 256, 65536])
    return ids


def parts_of(response: Any) -> list[Any]:
    head = f"Content-Type: {response.headers['content-type']}\r\n\r\n".encode()
    message = message_from_bytes(head + response.content, policy=policy.HTTP)
    assert message.get_content_type() == "multipart/mixed"
    return list(message.iter_parts())


def test_panoptic_segments_come_with_their_map() -> None:
    fake = app()
    with fake.client() as client:
        response = client.post("/v1/segment", content=PHOTO)
    assert response.status_code == 200
    answer = response.json()
    ids = ids_of(base64.b64decode(answer.pop("segment_map")))
    assert ids[::2, ::2].tolist() == IDS
    assert set(ids.ravel().tolist()) - {0} == {one["id"] for one in answer["segments"]}
    about = {"label": "sky", "label_id": 12, "score": 0.5, "isthing": False, "query": 3}
    assert answer["segments"][2] == about | {"id": 3, "area": 24, "bbox": [0, 0, 8, 4]}
    assert [one["label"] for one in answer["segments"]] == ["ant", "bee", "sky"]
    del answer["segments"]
    assert answer == {
        "model": "masks",
        "version": "1",
        "precision": "bf16",
        "image": {"width": 8, "height": 8},
        "mode": "panoptic",
        "detail": "fast",
    }
    assert fake.link.wanted == [("panoptic_map", "panoptic_classes", "panoptic_scores")]


def test_instances_have_a_default_threshold_of_their_own() -> None:
    manifest = segmenter_of()
    manifest["segmentation"] |= {"threshold": 0.8, "instance_threshold": 0.3}
    fake = app(manifest)
    with fake.client() as client:
        for mode in ("panoptic", "instance"):
            client.post(f"/v1/segment?mode={mode}", content=PHOTO)
    assert [float(inputs["threshold"]) for _, inputs, _ in fake.link.asked] == pytest.approx(
        [0.8, 0.3]
    )


def test_thresholds_go_to_the_graph_with_each_picture() -> None:
    fake = app(segmenter_of(geometry=PAD))
    with fake.client() as client:
        client.post("/v1/segment?threshold=0.25", content=PHOTO)
        client.post("/v1/segment?overlap_threshold=0.5&detail=exact", content=PHOTO)
    first, second = (inputs for _, inputs, _ in fake.link.asked)
    assert first.keys() == second.keys() == {"images", "sizes", "threshold", "overlap_threshold"}
    assert [
        (float(one["threshold"]), float(one["overlap_threshold"])) for one in (first, second)
    ] == [
        (0.25, 0.75),
        (0.5, 0.5),
    ]
    assert {one["threshold"].dtype for one in (first, second)} == {np.dtype(np.float32)}
    assert fake.link.wanted[1] == ("logits", "masks")
    assert len({group for group, _, _ in fake.link.asked}) == 1  # they may share a batch


def test_exact_answers_are_merged_here() -> None:
    with app().client() as client:
        answer = client.post("/v1/segment?detail=exact", content=PHOTO).json()
    assert answer["detail"] == "exact"
    assert {one["query"] for one in answer["segments"]} == {0, 1, 3}
    assert ids_of(base64.b64decode(answer["segment_map"])).shape == (8, 8)


def test_a_semantic_map_has_a_row_for_every_class_in_it() -> None:
    with app().client() as client:
        answer = client.post("/v1/segment?mode=semantic", content=PHOTO).json()
    assert answer["segments"] == [
        {
            "id": 1,
            "label": "bee",
            "label_id": 11,
            "area": 32,
            "bbox": [0, 2, 8, 6],
            "isthing": True,
        },
        {
            "id": 2,
            "label": "sky",
            "label_id": 12,
            "area": 24,
            "bbox": [0, 0, 8, 4],
            "isthing": False,
        },
        {"id": 3, "label": "ant", "label_id": 10, "area": 8, "bbox": [0, 6, 4, 2], "isthing": True},
    ]
    assert ids_of(base64.b64decode(answer["segment_map"]))[7].tolist() == [3] * 4 + [1] * 4


def test_instances_have_run_lengths_and_no_map() -> None:
    with app().client() as client:
        answer = client.post("/v1/segment?mode=instance", content=PHOTO).json()
        bare = client.post("/v1/segment?mode=instance&mask_format=none", content=PHOTO).json()
    assert "segment_map" not in answer
    assert [(one["query"], one["score"]) for one in answer["segments"]] == [
        (3, 0.75),
        (0, 0.625),
        (3, 0.5),
    ]
    first = answer["segments"][0]["mask"]
    assert first["size"] == [8, 8]
    decoded = coco.decode({"size": first["size"], "counts": first["counts"].encode()})
    assert np.array_equal(decoded, np.greater(DRAWN, 0).repeat(2, axis=0).repeat(2, axis=1))
    assert not any("mask" in one for one in bare["segments"])


def test_masks_come_as_png_or_polygons_too() -> None:
    with app().client() as client:
        png = client.post("/v1/segment?mask_format=png", content=PHOTO).json()["segments"]
        polygon = client.post("/v1/segment?mask_format=polygon", content=PHOTO).json()["segments"]
    image = Image.open(io.BytesIO(base64.b64decode(png[1]["mask"])))
    assert image.mode == "1"
    assert np.array_equal(np.array(image)[::2, ::2], np.equal(DRAWN, 1))
    (outline,) = polygon[1]["mask"]
    assert (min(outline), max(outline)) == (2.0, 6.0)
    assert len(outline) == 16


def test_labels_choose_what_is_told_and_drawn() -> None:
    with app().client() as client:
        answer = client.post("/v1/segment?labels=bee", content=PHOTO).json()
        nothing = client.post("/v1/segment?mode=instance&labels=sky", content=PHOTO).json()
    assert [(one["id"], one["label"]) for one in answer["segments"]] == [(1, "bee")]
    expected = np.equal(DRAWN, 1).astype(int)
    assert np.array_equal(ids_of(base64.b64decode(answer["segment_map"]))[::2, ::2], expected)
    assert nothing["segments"] == []


def test_the_map_may_be_left_out() -> None:
    with app().client() as client:
        answer = client.post("/v1/segment?segment_map=false", content=PHOTO).json()
    assert "segment_map" not in answer
    assert len(answer["segments"]) == 3


def test_a_png_is_the_map_of_ids_and_a_header_says_what_they_are() -> None:
    with app().client() as client:
        response = client.post("/v1/segment", content=PHOTO, headers={"accept": "image/png"})
    assert response.headers["content-type"] == "image/png"
    assert ids_of(response.content)[::2, ::2].tolist() == IDS
    about = json.loads(response.headers["x-saccade-answer"])
    assert [(one["id"], one["label"]) for one in about["segments"]] == [
        (1, "ant"),
        (2, "bee"),
        (3, "sky"),
    ]
    assert about["mode"] == "panoptic"


def test_multipart_holds_the_picture_and_the_whole_answer() -> None:
    with app().client() as client:
        headers = {"accept": "multipart/mixed"}
        response = client.post("/v1/segment?mask_format=rle", content=PHOTO, headers=headers)
        overlay = client.post(
            "/v1/segment?render=overlay&mode=instance", content=PHOTO, headers=headers
        )
    image, document = parts_of(response)
    assert image.get_content_type() == "image/png"
    assert ids_of(image.get_payload(decode=True))[::2, ::2].tolist() == IDS
    answer = json.loads(document.get_payload(decode=True))
    assert document.get_content_type() == "application/json"
    assert all(one["mask"]["size"] == [8, 8] for one in answer["segments"])
    assert "segment_map" not in answer
    image, document = parts_of(overlay)
    assert Image.open(io.BytesIO(image.get_payload(decode=True))).size == (8, 8)
    rows = json.loads(document.get_payload(decode=True))["segments"]
    assert [one["query"] for one in rows] == [3, 0, 3]


@pytest.mark.parametrize(
    ("mode", "accept", "kind"),
    [
        ("panoptic", "*/*", "PNG"),
        ("instance", "image/jpeg", "JPEG"),
        ("semantic", "image/webp", "WEBP"),
    ],
)
def test_an_overlay_is_drawn_for_every_mode(mode: str, accept: str, kind: str) -> None:
    photo = picture(red=90, green=90, blue=90, size=(160, 120))
    with app().client() as client:
        response = client.post(
            f"/v1/segment?render=overlay&mode={mode}", content=photo, headers={"accept": accept}
        )
    image = Image.open(io.BytesIO(response.content))
    assert (image.format, image.size) == (kind, (160, 120))
    assert image.convert("RGB").getpixel((80, 50)) != (90, 90, 90)
    assert len(json.loads(response.headers["x-saccade-answer"])["segments"]) == 3


@pytest.mark.parametrize(
    ("query", "parameter", "says"),
    [
        ("mode=panoptic", "mode", "this model has instance, semantic"),
        ("mode=depth", "mode", "'panoptic', 'instance' or 'semantic'"),
        ("mask_format=bmp", "mask_format", "'none', 'png', 'rle' or 'polygon'"),
        ("detail=rough", "detail", "'fast' or 'exact'"),
        ("overlap_threshold=-1", "overlap_threshold", "greater than or equal to 0"),
        ("labels=dog", "labels", "ant (10), bee (11), sky (12)"),
        ("segment_map=true", "segment_map", "may overlap"),
        ("top_k=3", "top_k", "there is no parameter 'top_k'"),
    ],
)
def test_a_wrong_parameter_is_refused_with_what_is_allowed(
    query: str, parameter: str, says: str
) -> None:
    segmentation = segmenter_of()["segmentation"] | {"modes": ["instance", "semantic"]}
    fake = app(segmenter_of(segmentation=segmentation))
    with fake.client() as client:
        response = client.post(f"/v1/segment?{query}", content=PHOTO)
    problem = response.json()
    assert (response.status_code, problem["code"]) == (422, "invalid_parameter")
    assert parameter in (problem.get("parameter"), *problem.get("parameters", []))
    assert says in problem["detail"]
    assert fake.link.asked == []


@pytest.mark.parametrize("query", ["mask_format=rle", "segment_map=true&render=overlay"])
def test_a_picture_alone_refuses_what_it_has_no_place_for(query: str) -> None:
    with app().client() as client:
        response = client.post(
            f"/v1/segment?{query}", content=PHOTO, headers={"accept": "image/png"}
        )
    assert (response.status_code, response.json()["code"]) == (422, "invalid_parameter")
    assert "multipart/mixed" in response.json()["detail"]


@pytest.mark.parametrize(
    ("query", "accept", "offered"),
    [
        ("", "text/html", ["application/json", "image/png", "image/jpeg"]),
        ("", "image/jpeg", ["application/json", "image/png", "multipart/mixed"]),
        ("mode=instance", "image/png", ["application/json"]),
        ("render=overlay", "application/json", ["image/png", "image/jpeg", "image/webp"]),
    ],
)
def test_an_accept_header_that_cannot_be_met_is_refused(
    query: str, accept: str, offered: list[str]
) -> None:
    fake = app()
    with fake.client() as client:
        response = client.post(f"/v1/segment?{query}", content=PHOTO, headers={"accept": accept})
    assert (response.status_code, response.json()["code"]) == (406, "not_acceptable")
    assert response.json()["allowed"][: len(offered)] == offered
    assert fake.link.asked == []


def test_instances_of_transformers_have_a_map_too() -> None:
    fake = app(segmenter_of(profile="hf"))
    masks = np.stack([np.equal(DRAWN, row) for row in (2, 1, 4, 3)]).astype(np.uint8)
    assert fake.link.answer is not None
    fake.link.answer["instance_masks"] = masks
    with fake.client() as client:
        answer = client.post("/v1/segment?mode=instance", content=PHOTO).json()
    ids = ids_of(base64.b64decode(answer["segment_map"]))
    assert ids[::2, ::2].tolist() == [[1, 1, 1, 1], [1, 2, 2, 1], [0, 2, 2, 3], [0, 0, 3, 3]]


def test_many_pictures_get_their_maps_in_json_and_no_picture() -> None:
    images = {"images": [base64.b64encode(data).decode() for data in (PHOTO, b"no", PHOTO)]}
    with app().client() as client:
        results = client.post("/v1/segment", json=images).json()["results"]
        drawn = client.post("/v1/segment", json=images, headers={"accept": "image/png"})
    assert [len(results[i]["segments"]) for i in (0, 2)] == [3, 3]
    assert results[1]["status"] == 415
    assert (drawn.status_code, drawn.json()["code"]) == (400, "invalid_body")


def test_times_of_merging_and_encoding_are_told() -> None:
    with app().client() as client:
        timing = client.post("/v1/segment", content=PHOTO).headers["server-timing"]
    stages = [part.split(";")[0] for part in timing.split(", ")]
    assert stages[-5:-1] == ["postprocess-wait", "postprocess", "encode-wait", "encode"]


def test_work_ends_when_the_client_leaves() -> None:
    fake = app()
    waiting = asyncio.Event()

    async def scenario() -> None:
        cancelled = False

        async def before() -> None:
            nonlocal cancelled
            waiting.set()
            try:
                await asyncio.Event().wait()
            finally:
                cancelled = True

        fake.link.before = before
        messages: list[dict[str, Any]] = [{"type": "http.request", "body": PHOTO}]

        async def receive() -> dict[str, Any]:
            if messages:
                return messages.pop()
            await waiting.wait()
            return {"type": "http.disconnect"}

        sent = await asyncio.wait_for(fake.call("/v1/segment", {}, receive), 30)
        assert sent[0]["status"] == 499
        assert cancelled

    asyncio.run(scenario())


class Clock:
    """Stands in for ``time``: the real one, moved on by ``ahead_s``."""

    def __init__(self) -> None:
        self.ahead_s = 0.0

    def monotonic(self) -> float:
        return time.monotonic() + self.ahead_s


@pytest.mark.parametrize(("late_after", "merged"), [("infer", 0), ("merge", 1)])
def test_what_is_late_is_neither_merged_nor_encoded(
    late_after: str, merged: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, merge = Clock(), segment.answer
    merges: list[Any] = []
    encoded: list[Any] = []

    async def before() -> None:
        clock.ahead_s += 100 if late_after == "infer" else 0

    def slow_merge(*arguments: Any) -> segment.Segmentation:
        merges.append(arguments)
        clock.ahead_s += 100
        return merge(*arguments)

    monkeypatch.setattr(serving, "time", clock)
    monkeypatch.setattr(segment, "answer", slow_merge)
    monkeypatch.setattr(masks, "id_map_png", encoded.append)
    fake = app(timeout_s=5)
    fake.link.before = before
    with fake.client() as client:
        response = client.post("/v1/segment", content=PHOTO)
    assert (response.status_code, response.json()["code"]) == (504, "deadline_exceeded")
    assert len(merges) == merged
    assert encoded == []


def test_segments_are_not_encoded_for_a_client_that_left(monkeypatch: pytest.MonkeyPatch) -> None:
    fake, merge, left = app(), segment.answer, threading.Event()
    encoded: list[Any] = []

    async def scenario() -> None:
        merging, loop = asyncio.Event(), asyncio.get_running_loop()

        def merge_until_left(*arguments: Any) -> segment.Segmentation:
            loop.call_soon_threadsafe(merging.set)
            assert left.wait(30)
            return merge(*arguments)

        monkeypatch.setattr(segment, "answer", merge_until_left)
        monkeypatch.setattr(masks, "id_map_png", encoded.append)
        messages: list[dict[str, Any]] = [{"type": "http.request", "body": PHOTO}]

        async def receive() -> dict[str, Any]:
            if messages:
                return messages.pop()
            await merging.wait()
            return {"type": "http.disconnect"}

        sent = await asyncio.wait_for(fake.call("/v1/segment", {}, receive), 30)
        assert sent[0]["status"] == 499

    asyncio.run(scenario())
    left.set()
    count = fake.metrics.registry.get_sample_value(
        "saccade_cancellations_total", {"stage": "postprocess"}
    )
    assert count == 1
    assert encoded == []


@pytest.mark.parametrize("accept", ["application/json", "image/png", "multipart/mixed"])
def test_answers_are_written_off_the_event_loop(
    accept: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    writers = []

    def noted(make: Any) -> Any:
        def make_here(*arguments: Any) -> Any:
            writers.append(threading.current_thread().name)
            return make(*arguments)

        return make_here

    for name in ("dump", "picture_response", "mixed_response"):
        monkeypatch.setattr(segment_api, name, noted(getattr(segment_api, name)))
    with app().client() as client:
        response = client.post("/v1/segment", content=PHOTO, headers={"accept": accept})
    assert response.status_code == 200
    assert writers
    assert all(name.startswith("decode") for name in writers)
