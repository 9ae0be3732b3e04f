"""The Hugging Face front door around a link that answers at once."""

import base64
import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.service.fake_app import FakeApp, picture
from tests.service.sample_bundle import detector_of, manifest_of, segmenter_of
from tests.service.test_detect_api import FOUND
from tests.service.test_segment import INSTANCES, PANOPTIC, SEMANTIC, raw

RED = picture(red=255)


def with_logits() -> dict[str, Any]:
    manifest = manifest_of()
    logits = {"name": "logits", "role": "logits", "dtype": "float32", "shape": [-1, 3]}
    manifest["graphs"][0]["outputs"].append(logits)
    return manifest


def segmenter() -> FakeApp:
    fake = FakeApp([segmenter_of()])
    fake.link.answer = PANOPTIC | INSTANCES | SEMANTIC | raw()
    return fake


def ask(fake: FakeApp, name: str, data: bytes = RED, **parameters: Any) -> Any:
    """JSON when there are parameters, and the bare bytes otherwise, as the client does it."""
    with fake.client() as client:
        if not parameters:
            return client.post(f"/models/{name}", content=data)
        document = {"inputs": base64.b64encode(data).decode(), "parameters": parameters}
        return client.post(f"/models/{name}", json=document)


def test_classes_are_a_bare_array_best_first() -> None:
    response = ask(FakeApp(), "tiny")
    assert response.headers["content-type"] == "application/json"
    assert response.json() == [{"label": "ant", "score": 1.0}, {"label": "bee", "score": 0.0}]
    assert len(ask(FakeApp(), "tiny", top_k=3).json()) == 3
    assert len(ask(FakeApp(), "tiny", top_k=1).json()) == 1


@pytest.mark.parametrize(
    ("function", "scores", "fetched"),
    [
        ("softmax", [0.5, 0.25], "scores"),  # as the model was trained
        ("sigmoid", [1 / (1 + np.exp(-2)), 0.5], "logits"),
        ("none", [2, 0], "logits"),
    ],
)
def test_logits_become_scores_as_is_asked(function: str, scores: list[float], fetched: str) -> None:
    fake = FakeApp([with_logits()])
    fake.link.answer = {"scores": np.array([0.25, 0.5, 0.1]), "logits": np.array([0.0, 2.0, -900])}
    found = ask(fake, "tiny", function_to_apply=function).json()
    assert [one["label"] for one in found] == ["bee", "ant"]
    assert [one["score"] for one in found] == pytest.approx(scores, abs=1e-6)
    assert fake.link.wanted == [(fetched,)]


def test_a_model_of_sigmoids_can_give_its_softmax() -> None:
    fake = FakeApp([with_logits() | {"activation": "sigmoid"}])
    fake.link.answer = {"logits": np.log([1.0, 2.0, 1.0])}
    found = ask(fake, "tiny", function_to_apply="softmax").json()
    assert [one["score"] for one in found] == pytest.approx([0.5, 0.25])


def test_a_graph_without_logits_says_that_they_are_missing() -> None:
    response = ask(FakeApp(), "tiny", function_to_apply="none")
    assert response.status_code == 422
    assert "needs logits, which this model's graph does not give" in response.json()["error"]


def test_objects_have_boxes_in_whole_pixels() -> None:
    fake = FakeApp([detector_of()])
    fake.link.answer = FOUND
    photo = picture(size=(121, 61))
    assert ask(fake, "boxes", photo).json() == [
        {
            "label": "bee",
            "score": 0.875,
            "box": {"xmin": 60, "ymin": 15, "xmax": 121, "ymax": 45},
        },
        {
            "label": "ant",
            "score": 0.625,
            "box": {"xmin": 30, "ymin": 30, "xmax": 60, "ymax": 61},
        },
    ]
    assert len(ask(fake, "boxes", photo, threshold=0.7).json()) == 1
    assert len(ask(fake, "boxes", photo, threshold=0).json()) == 3  # one box has no area


def test_segments_have_masks_of_the_picture_in_black_and_white() -> None:
    found = ask(segmenter(), "masks", picture(size=(8, 8))).json()
    assert [(one["label"], one["score"]) for one in found] == [
        ("ant", 0.875),
        ("bee", 0.75),
        ("sky", 0.5),
    ]
    assert found[0].keys() == {"label", "score", "mask"}
    masks = [Image.open(io.BytesIO(base64.b64decode(one["mask"]))) for one in found]
    assert {(mask.format, mask.mode, mask.size) for mask in masks} == {("PNG", "L", (8, 8))}
    drawn = np.stack([np.array(mask)[::2, ::2] for mask in masks])
    ids = np.array([[3, 3, 3, 3], [3, 2, 2, 3], [0, 2, 2, 1], [0, 0, 1, 1]])
    assert np.array_equal(drawn, np.stack([ids == number for number in (1, 2, 3)]) * 255)


def test_subtask_and_thresholds_are_the_models_own_parameters() -> None:
    fake = segmenter()
    semantic = ask(fake, "masks", subtask="semantic").json()
    assert {one["score"] for one in semantic} == {None}
    assert fake.link.wanted == [("semantic_map",)]
    ask(fake, "masks", threshold=0.25, overlap_mask_area_threshold=0.5, mask_threshold=0.5)
    inputs = fake.link.asked[-1][1]
    assert (float(inputs["threshold"]), float(inputs["overlap_threshold"])) == (0.25, 0.5)


def test_a_model_of_several_tasks_is_asked_by_the_name_of_a_pipeline() -> None:
    both = segmenter_of()
    both["tasks"] = ["detect", "segment"]
    fake = FakeApp([both])
    fake.link.answer = FOUND | PANOPTIC
    with fake.client() as client:
        first = client.post("/models/masks", content=RED).json()
        named = client.post("/models/masks/pipeline/image-segmentation", content=RED).json()
        other = client.post("/models/masks/pipeline/image-classification", content=RED)
        unknown = client.post("/models/masks/pipeline/text-generation", content=RED)
    assert first[0].keys() == {"label", "score", "box"}
    assert named[0].keys() == {"label", "score", "mask"}
    assert (other.status_code, other.json()["code"]) == (422, "unsupported_task")
    assert "there are image-classification, object-detection," in unknown.json()["error"]


def test_parameters_of_bare_bytes_may_stand_in_the_query() -> None:
    with FakeApp().client() as client:
        assert len(client.post("/models/tiny?top_k=1", content=RED).json()) == 1
        assert client.post("/models/tiny?topk=1", content=RED).status_code == 422


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        ([], 400, "JSON must be an object with 'inputs'"),
        ({"parameters": {}}, 400, "must be a base64 string, found NoneType"),
        ({"inputs": "", "parameters": {}}, 400, "there is no picture"),
        ({"inputs": "AAAA", "parameters": [1]}, 400, "JSON must be an object"),
        ({"inputs": "AAAA"}, 415, "JPEG, PNG and WebP"),
        ({"inputs": "AAAA", "parameters": {"top_k": 0}}, 422, "greater than or equal to 1"),
        ({"inputs": "AAAA", "parameters": {"threshold": 0.5}}, 422, "no parameter 'threshold'"),
    ],
)
def test_errors_say_what_is_wrong_where_the_client_looks(body: Any, status: int, says: str) -> None:
    with FakeApp().client() as client:
        response = client.post("/models/tiny", json=body)
    problem = response.json()
    assert (response.status_code, problem["status"]) == (status, status)
    assert says in problem["error"]
    assert problem["error"] == problem["detail"]


def test_a_parameter_that_comes_twice_is_refused() -> None:
    with FakeApp().client() as client:
        answer = client.post("/models/tiny?top_k=1&top_k=2", content=picture(red=255))
    assert answer.status_code == 422
    assert "top_k" in answer.json()["error"]


def test_mask_threshold_is_a_half_or_refused() -> None:
    response = ask(segmenter(), "masks", mask_threshold=0.6)
    assert (response.status_code, response.json()["parameters"]) == (422, ["mask_threshold"])


def test_models_that_do_none_of_the_tasks_and_unknown_ones_are_told_apart() -> None:
    manifest = manifest_of() | {"tasks": ["embed"]}
    with FakeApp([manifest]).client() as client:
        unable = client.post("/models/tiny", content=RED)
        unknown = client.post("/models/nobody", content=RED)
    assert (unable.status_code, unable.json()["code"]) == (422, "unsupported_task")
    assert (unknown.status_code, unknown.json()["code"]) == (404, "unknown_model")


def test_health_and_info_are_what_the_client_asks_for() -> None:
    fake = FakeApp([manifest_of(), detector_of()])  # the link knows only the first
    with fake.client() as client:
        assert client.get("/models/tiny/health").json() == {"ready": True}
        assert client.get("/models/boxes/health").status_code == 503
        info = client.get("/models/tiny/info").json()
    assert info["model_id"] == "tiny"
    assert info["model_pipeline_tag"] == "image-classification"
    assert (info["model_dtype"], info["model_device_type"]) == ("bf16", "cpu")
