"""Boxes over HTTP: JSON, pictures, and what is refused."""

import base64
import io
import json
from typing import Any

import numpy as np
import pytest
from PIL import Image

from service.api.files import MAX_HEADER_BYTES
from service.worker.runtimes.base import Arrays
from tests.service.fake_app import FakeApp, picture
from tests.service.sample_bundle import PAD, detector_of, segmenter_of

PHOTO = picture(red=90, green=90, blue=90, size=(120, 60))
FOUND: Arrays = {
    "scores": np.array([0.625, 0.875, 0.25, 0.75]),
    "classes": np.array([0, 1, 2, 1], np.int32),
    "boxes": np.array(
        [[0.25, 0.5, 0.5, 1.0], [0.5, 0.25, 1.25, 0.75], [0, 0, 1, 1], [1.5, 0, 2, 1]]
    ),
    "queries": np.array([0, 1, 2, 3], np.int32),
    "logits": np.zeros((4, 4)),
}


def app(*manifests: dict[str, Any], **settings: Any) -> FakeApp:
    fake = FakeApp(list(manifests) or [detector_of()], **settings)
    fake.link.answer = FOUND
    return fake


def queries(answer: dict[str, Any]) -> list[int]:
    return [one["query"] for one in answer["predictions"]]


def test_objects_come_best_first_with_boxes_in_pixels_of_the_picture() -> None:
    fake = app()
    with fake.client() as client:
        response = client.post("/v1/detect", content=PHOTO)
    assert response.status_code == 200
    assert response.json() == {
        "model": "boxes",
        "version": "1",
        "precision": "bf16",
        "image": {"width": 120, "height": 60},
        "predictions": [
            {
                "label": "bee",
                "label_id": 1,
                "score": 0.875,
                "box": {"xmin": 60, "ymin": 15, "xmax": 120, "ymax": 45},
                "query": 1,
            },
            {
                "label": "ant",
                "label_id": 0,
                "score": 0.625,
                "box": {"xmin": 30, "ymin": 30, "xmax": 60, "ymax": 60},
                "query": 0,
            },
        ],
    }
    assert fake.link.wanted == [("scores", "classes", "boxes", "queries")]
    assert fake.link.asked[0][1].keys() == {"images"}


def test_parameters_choose_among_what_was_found() -> None:
    with app().client() as client:
        low = client.post("/v1/detect?threshold=0.2", content=PHOTO).json()
        best = client.post("/v1/detect?threshold=0&top_k=1", content=PHOTO).json()
        cats = client.post("/v1/detect?threshold=0&labels=cat,ant", content=PHOTO).json()
        body = {"image": base64.b64encode(PHOTO).decode(), "labels": ["cat", 0], "threshold": 0}
        by_json = client.post("/v1/detect", json=body).json()
        form = client.post("/v1/detect", files={"f": ("x", PHOTO)}, data={"labels": '["bee"]'})
    assert (queries(low), queries(best)) == ([1, 0, 2], [1])
    assert queries(cats) == queries(by_json) == [0, 2]
    assert queries(form.json()) == [1]


def test_a_padded_picture_tells_the_graph_its_size_and_the_metrics_its_padding() -> None:
    fake = app(detector_of(geometry=PAD))
    with fake.client() as client:
        answer = client.post("/v1/detect", content=PHOTO).json()
        text = client.get("/metrics").text
    inputs = fake.link.asked[0][1]
    assert inputs["sizes"].tolist() == [4, 8]
    assert inputs["sizes"].dtype == np.int32
    assert (inputs["images"][4:] == 0).all()
    assert answer["predictions"][0]["box"] == {"xmin": 60, "ymin": 15, "xmax": 120, "ymax": 45}
    assert 'saccade_padding_ratio_sum{model="boxes"} 0.5' in text


def test_a_model_of_two_tasks_gets_all_inputs_of_its_graph() -> None:
    both = segmenter_of()
    both["tasks"] = ["detect", "segment"]
    fake = app(both)
    with fake.client() as client:
        client.post("/v1/detect", content=PHOTO)
    inputs = fake.link.asked[0][1]
    assert inputs.keys() == {"images", "threshold", "overlap_threshold"}
    assert (float(inputs["threshold"]), float(inputs["overlap_threshold"])) == (0.5, 0.75)
    assert inputs["threshold"].dtype == np.float32


@pytest.mark.parametrize(
    ("query", "parameter", "says"),
    [
        ("labels=wasp", "labels", "no label 'wasp'; allowed are ant (0), bee (1), cat (2)"),
        ("threshold=2", "threshold", "less than or equal to 1"),
        ("top_k=0", "top_k", "greater than or equal to 1"),
        ("render=boxes", "render", "'none' or 'overlay'"),
        ("mask_format=rle", "mask_format", "allowed are labels, model, render, threshold"),
    ],
)
def test_a_wrong_parameter_is_refused_with_what_is_allowed(
    query: str, parameter: str, says: str
) -> None:
    fake = app()
    with fake.client() as client:
        response = client.post(f"/v1/detect?{query}", content=PHOTO)
    problem = response.json()
    assert (response.status_code, problem["code"]) == (422, "invalid_parameter")
    assert parameter in (problem.get("parameter"), *problem.get("parameters", []))
    assert says in problem["detail"]
    assert fake.link.asked == []


@pytest.mark.parametrize(
    ("query", "accept", "kind"),
    [
        ("", "image/png", "PNG"),
        ("", "image/*", "PNG"),
        ("", "image/jpeg", "JPEG"),
        ("", "image/webp, application/json;q=0.5", "WEBP"),
        ("?render=overlay", "*/*", "PNG"),
        ("?render=overlay", "image/jpeg, */*;q=0.1", "JPEG"),
    ],
)
def test_boxes_are_drawn_where_a_picture_is_asked_for(query: str, accept: str, kind: str) -> None:
    with app().client() as client:
        response = client.post(f"/v1/detect{query}", content=PHOTO, headers={"accept": accept})
    assert response.status_code == 200
    image = Image.open(io.BytesIO(response.content))
    assert (image.format, image.size) == (kind, (120, 60))
    assert response.headers["content-type"] == f"image/{kind.lower()}"
    drawn = np.asarray(image.convert("RGB")).astype(int)
    assert np.abs(drawn[17:44, 62:64] - 90).max() > 60  # the left line of the first box
    assert np.abs(drawn[25:35, 90:100] - 90).max() < 5
    about = json.loads(response.headers["x-saccade-answer"])
    assert [one["label"] for one in about["predictions"]] == ["bee", "ant"]
    assert "encode" in response.headers["server-timing"]


def test_a_header_holds_what_fits_and_counts_the_rest() -> None:
    fake = app(detector_of(labels=[{"id": i, "name": "ä" * 40 + str(i)} for i in range(3)]))
    fake.link.answer = FOUND | {
        "scores": np.linspace(1, 0.5, 100),
        "classes": np.zeros(100, np.int32),
        "boxes": np.tile([[0.1, 0.1, 0.9, 0.9]], (100, 1)),
        "queries": np.arange(100, dtype=np.int32),
    }
    with fake.client() as client:
        response = client.post("/v1/detect", content=PHOTO, headers={"accept": "image/png"})
    header = response.headers["x-saccade-answer"]
    about = json.loads(header)
    assert MAX_HEADER_BYTES * 0.8 < len(header) <= MAX_HEADER_BYTES
    assert queries(about) == list(range(len(about["predictions"])))
    assert len(about["predictions"]) + about["left_out"] == 100


@pytest.mark.parametrize(
    ("query", "accept", "offered"),
    [
        ("", "text/html", ["application/json", "image/png", "image/jpeg", "image/webp"]),
        ("", "multipart/mixed", ["application/json", "image/png", "image/jpeg", "image/webp"]),
        ("?render=overlay", "application/json", ["image/png", "image/jpeg", "image/webp"]),
    ],
)
def test_an_accept_header_that_cannot_be_met_is_refused(
    query: str, accept: str, offered: list[str]
) -> None:
    fake = app()
    with fake.client() as client:
        response = client.post(f"/v1/detect{query}", content=PHOTO, headers={"accept": accept})
        text = client.get("/metrics").text
    assert (response.status_code, response.json()["allowed"]) == (406, offered)
    assert fake.link.asked == []
    assert 'task="detect"' in text
    assert 'status="406"' in text


def test_many_pictures_get_json_each_and_never_a_picture() -> None:
    fake = app()
    images = {"images": [base64.b64encode(data).decode() for data in (PHOTO, b"no", PHOTO)]}
    with fake.client() as client:
        results = client.post("/v1/detect", json=images).json()["results"]
        drawn = client.post("/v1/detect", json=images, headers={"accept": "image/png"})
    assert [queries(results[i]) for i in (0, 2)] == [[1, 0], [1, 0]]
    assert results[1]["code"] == "unsupported_format"
    assert (drawn.status_code, drawn.json()["code"]) == (400, "invalid_body")
    assert len(fake.link.asked) == 2  # the second request ended before it cost anything
