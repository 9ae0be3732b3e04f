"""The routes of the Open Inference Protocol around a link that answers at once."""

import base64
import gzip
import io
import json
import struct
import time
from typing import Any

import numpy as np
import pytest
from PIL import Image

from service.worker.link import WorkerState
from tests.service.fake_app import RUNNING, FakeApp, picture
from tests.service.sample_bundle import PAD, detector_of, manifest_of, segmenter_of
from tests.service.test_detect_api import FOUND
from tests.service.test_segment import INSTANCES, PANOPTIC, SEMANTIC, raw

RED, BLUE = picture(red=255), picture(red=51, blue=204, size=(6, 12))


def request_of(*pictures: bytes, **changes: Any) -> dict[str, Any]:
    data = [base64.b64encode(one).decode() for one in pictures]
    sent = {"name": "images", "shape": [len(data)], "datatype": "BYTES", "data": data}
    return {"inputs": [sent]} | changes


def infer(fake: FakeApp, name: str, document: dict[str, Any]) -> Any:
    with fake.client() as client:
        return client.post(f"/v2/models/{name}/infer", json=document)


def tensors(response: Any) -> dict[str, Any]:
    """Outputs by name; those of numbers as arrays, the others as lists."""
    assert response.status_code == 200, response.text
    found = {}
    for one in response.json()["outputs"]:
        if one["datatype"] == "BYTES":
            found[one["name"]] = one["data"]
        else:
            found[one["name"]] = np.array(one["data"]).reshape(one["shape"])
    return found


def segmenter(**changes: Any) -> FakeApp:
    fake = FakeApp([segmenter_of(**changes)])
    fake.link.answer = PANOPTIC | INSTANCES | SEMANTIC | raw()
    return fake


def test_the_server_and_its_models_describe_themselves() -> None:
    fake = FakeApp([manifest_of(), segmenter_of()])
    with fake.client() as client:
        server = client.get("/v2").json()
        assert server["name"] == "saccade"
        assert server["extensions"] == [
            *("binary_tensor_data", "classification", "schedule_policy", "model_repository")
        ]
        assert client.get("/v2/models").json() == {"models": ["tiny", "masks"]}
        tiny = client.get("/v2/models/tiny").json()
        assert client.get("/v2/models/tiny/versions/1").json() == tiny
        masks = client.get("/v2/models/masks").json()
    assert tiny == {
        "name": "tiny",
        "versions": ["1"],
        "platform": "onnx_onnxv1",
        "inputs": [{"name": "images", "datatype": "BYTES", "shape": [-1]}],
        "outputs": [
            {"name": "scores", "datatype": "FP32", "shape": [-1, 3]},
            {"name": "embedding", "datatype": "FP32", "shape": [-1, 4]},
            {"name": "attention", "datatype": "FP32", "shape": [-1, 2, 4]},
            {"name": "sizes", "datatype": "INT32", "shape": [-1, 2]},
        ],
    }
    assert [(one["name"], one["datatype"], one["shape"]) for one in masks["outputs"]] == [
        ("segment_map", "BYTES", [-1]),
        ("segment_classes", "INT32", [-1, -1]),
        ("segment_scores", "FP32", [-1, -1]),
        ("masks", "BYTES", [-1, -1]),
        ("sizes", "INT32", [-1, 2]),
    ]


def test_readiness_and_the_index_tell_which_models_would_run() -> None:
    fake = FakeApp([manifest_of(), segmenter_of()])  # the link knows only the first
    with fake.client() as client:
        fake.link.state = WorkerState(True, "ready", RUNNING, failed=["masks"])
        ready, other = (client.get(f"/v2/models/{name}/ready") for name in ("tiny", "masks"))
        assert (ready.status_code, ready.json()) == (200, {"name": "tiny", "ready": True})
        assert (other.status_code, other.json()) == (503, {"name": "masks", "ready": False})
        index = client.post("/v2/repository/index").json()
        only = client.post("/v2/repository/index", json={"ready": True}).json()
        wrong = client.post("/v2/repository/index", json=[1])
    assert [(one["name"], one["version"], one["state"]) for one in index] == [
        ("tiny", "1", "READY"),
        ("masks", "1", "UNAVAILABLE"),
    ]
    assert [one["reason"] for one in index] == [
        "",
        "it cannot be loaded; the server's log says why",
    ]
    assert only == index[:1]
    assert wrong.status_code == 400


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        (WorkerState(False, "loading"), "loading"),
        (WorkerState(True, "ready"), "it is not loaded"),
        (WorkerState(True, "ready", RUNNING, heard_s=0), "the worker is silent"),
    ],
)
def test_the_index_says_why_nothing_would_run(state: WorkerState, reason: str) -> None:
    fake = FakeApp()
    with fake.client() as client:
        fake.link.state = state
        (found,) = client.post("/v2/repository/index").json()
    assert (found["state"], found["reason"]) == ("UNAVAILABLE", reason)


def test_pictures_in_one_request_come_back_as_rows_of_each_output() -> None:
    fake = FakeApp()
    response = infer(fake, "tiny", request_of(RED, BLUE, id="seven"))
    assert {k: v for k, v in response.json().items() if k != "outputs"} == {
        "model_name": "tiny",
        "model_version": "1",
        "id": "seven",
    }
    found = tensors(response)
    assert found["scores"] == pytest.approx(np.array([[1, 0, 0], [0.2, 0, 0.8]]), abs=1e-6)
    assert found["sizes"].tolist() == [[6, 12], [12, 6]]
    assert found["attention"].shape == (2, 2, 4)
    assert fake.link.wanted == [("scores", "embedding", "attention")] * 2


def test_only_what_is_asked_for_is_fetched_and_in_that_order() -> None:
    fake = FakeApp()
    outputs = [{"name": "sizes"}, {"name": "embedding"}]
    found = tensors(infer(fake, "tiny", request_of(RED, outputs=outputs)))
    assert list(found) == ["sizes", "embedding"]
    assert found["embedding"].tolist() == [[3, 4, 0, 0]]
    assert fake.link.wanted == [("embedding",)]


def test_the_size_alone_needs_no_model() -> None:
    fake = FakeApp()
    assert tensors(infer(fake, "tiny", request_of(RED, outputs=[{"name": "sizes"}])))
    assert fake.link.asked == []


def test_each_output_says_whether_it_comes_as_bytes_and_the_request_says_it_for_the_rest() -> None:
    outputs = [{"name": "scores", "parameters": {"binary_data": False}}, {"name": "sizes"}]
    document = request_of(RED, outputs=outputs, parameters={"binary_data_output": True})
    response = infer(FakeApp(), "tiny", document)
    assert response.headers["content-type"] == "application/octet-stream"
    length = int(response.headers["inference-header-content-length"])
    scores, sizes = json.loads(response.content[:length])["outputs"]
    assert scores["data"] == [1, 0, 0]
    assert sizes["parameters"] == {"binary_data_size": 8}
    assert response.content[length:] == struct.pack("<ii", 6, 12)


def test_classes_are_named_best_first_when_asked_for() -> None:
    outputs = [{"name": "scores", "parameters": {"classification": 2}}]
    response = infer(FakeApp(), "tiny", request_of(RED, BLUE, outputs=outputs))
    assert response.json()["outputs"] == [
        {
            "name": "scores",
            "shape": [2, 2],
            "datatype": "BYTES",
            "data": ["1.000000:0:ant", "0.000000:1:bee", "0.800000:2:cat", "0.200000:0:ant"],
        }
    ]


def test_boxes_are_in_pixels_of_each_picture_and_classes_are_ids() -> None:
    labels = [{"id": 10 * i, "name": name} for i, name in enumerate(("ant", "bee", "cat"))]
    fake = FakeApp([detector_of(geometry=PAD, labels=labels)])
    fake.link.answer = FOUND
    found = tensors(infer(fake, "boxes", request_of(picture(size=(120, 60)), RED)))
    assert found["scores"].tolist() == [[0.625, 0.875, 0.25, 0.75]] * 2
    assert found["classes"].tolist() == [[0, 10, 20, 10]] * 2
    assert found["boxes"][:, 0].tolist() == [[30, 30, 60, 60], [3, 3, 6, 6]]
    assert found["sizes"].tolist() == [[60, 120], [6, 12]]


def test_segments_come_with_their_map_as_a_file_and_rows_that_its_ids_count() -> None:
    found = tensors(infer(segmenter(), "masks", request_of(picture(size=(8, 8)))))
    assert list(found) == ["segment_map", "segment_classes", "segment_scores", "sizes"]
    assert found["segment_classes"].tolist() == [[10, 11, 12]]
    assert found["segment_scores"].tolist() == [[0.875, 0.75, 0.5]]
    ids = np.array(Image.open(io.BytesIO(base64.b64decode(found["segment_map"][0]))))[..., 0]
    assert ids[::2, ::2].tolist() == [[3, 3, 3, 3], [3, 2, 2, 3], [0, 2, 2, 1], [0, 0, 1, 1]]


def test_pictures_with_fewer_segments_are_filled_up() -> None:
    outputs = [{"name": name} for name in ("segment_classes", "segment_scores", "masks")]
    small = picture(size=(1, 1))  # shows one segment
    request = request_of(picture(size=(8, 8)), small, outputs=outputs)
    response = infer(segmenter(), "masks", request)
    found = tensors(response)
    assert found["segment_classes"].tolist() == [[10, 11, 12], [11, -1, -1]]
    assert found["segment_scores"].tolist() == [[0.875, 0.75, 0.5], [0.75, 0, 0]]
    assert response.json()["outputs"][2]["shape"] == [2, 3]
    assert [bool(mask) for mask in found["masks"]] == [True] * 4 + [False] * 2
    first = np.array(Image.open(io.BytesIO(base64.b64decode(found["masks"][0]))))
    assert first.sum() == 12


def test_overlapping_instances_come_as_masks_and_have_no_map() -> None:
    fake = segmenter()
    found = tensors(
        infer(fake, "masks", request_of(picture(size=(8, 8)), parameters={"mode": "instance"}))
    )
    assert "segment_map" not in found
    assert len(found["masks"]) == found["segment_classes"].shape[1] == 3
    asked = request_of(RED, parameters={"mode": "instance"}, outputs=[{"name": "segment_map"}])
    refusal = infer(fake, "masks", asked)
    assert refusal.status_code == 422
    assert "ask for the output 'masks'" in refusal.json()["error"]


def test_thresholds_of_segmentation_are_parameters_of_the_request() -> None:
    fake = segmenter()
    parameters = {"threshold": 0.25, "overlap_threshold": 0.5}
    tensors(infer(fake, "masks", request_of(RED, parameters=parameters)))
    inputs = fake.link.asked[0][1]
    assert (float(inputs["threshold"]), float(inputs["overlap_threshold"])) == (0.25, 0.5)


def test_pixels_of_the_canvas_are_run_as_they_are() -> None:
    fake = FakeApp()
    pixels = np.arange(2 * 8 * 8 * 3, dtype=np.uint8).reshape(2, 8, 8, 3)
    sent = {"name": "images", "shape": [2, 8, 8, 3], "datatype": "UINT8", "data": pixels.tolist()}
    found = tensors(infer(fake, "tiny", {"inputs": [sent]}))
    assert [inputs["images"].tolist() for _, inputs, _ in fake.link.asked] == pixels.tolist()
    assert found["sizes"].tolist() == [[8, 8]] * 2
    sent |= {"shape": [1, 4, 8, 3], "data": pixels[0, :4].tolist()}
    refusal = infer(fake, "tiny", {"inputs": [sent]})
    assert refusal.status_code == 400
    assert "found pixels of 4x8 (height x width); 'tiny' takes them at 8x8" in refusal.text


def test_timeout_is_in_microseconds_and_bounded_by_the_servers() -> None:
    fake = FakeApp(timeout_s=20)
    for timeout, seconds in ((2_000_000, 2), (10**9, 20), (0, 20)):
        before_s = time.monotonic()
        tensors(infer(fake, "tiny", request_of(RED, parameters={"timeout": timeout})))
        assert before_s <= fake.link.asked[-1][2] - seconds <= time.monotonic()
    late = infer(fake, "tiny", request_of(RED, parameters={"timeout": 1}))
    assert (late.status_code, late.json()["code"]) == (504, "deadline_exceeded")


def test_priority_goes_along_with_each_picture() -> None:
    fake = FakeApp()
    for priority in (3, 0):
        tensors(infer(fake, "tiny", request_of(RED, BLUE, parameters={"priority": priority})))
    assert fake.link.priorities == [3, 3, 0, 0]


def test_a_compressed_body_is_read_within_the_limit_of_bytes() -> None:
    fake = FakeApp(max_body_bytes=5000)
    body = json.dumps(request_of(RED)).encode()
    with fake.client() as client:
        for content, status in ((gzip.compress(body), 200), (gzip.compress(bytes(9999)), 413)):
            response = client.post(
                "/v2/models/tiny/infer", content=content, headers={"content-encoding": "gzip"}
            )
            assert response.status_code == status, response.text


@pytest.mark.parametrize(
    ("path", "changes", "status", "code", "says"),
    [
        ("nobody", {}, 404, "unknown_model", "no model 'nobody'"),
        ("tiny/versions/2", {}, 404, "unknown_model", "no version '2' of 'tiny'; served is '1'"),
        ("tiny", {"outputs": [{"name": "logits"}]}, 400, "invalid_body", "'tiny' has, once each,"),
        ("tiny", {"outputs": [{"name": "sizes"}] * 2}, 400, "invalid_body", "once each"),
        ("tiny", {"parameters": {"mode": "panoptic"}}, 422, "invalid_parameter", "cannot do"),
        ("tiny", {"parameters": {"sequence_id": 1}}, 422, "invalid_parameter", "sequence_id"),
        (
            "tiny",
            {"outputs": [{"name": "sizes", "parameters": {"classification": 1}}]},
            422,
            "invalid_parameter",
            "only the output 'scores' of a classifier",
        ),
    ],
)
def test_errors_say_what_is_wrong_where_the_clients_of_the_protocol_look(
    path: str, changes: dict[str, Any], status: int, code: str, says: str
) -> None:
    response = infer(FakeApp(), path, request_of(RED, **changes))
    problem = response.json()
    assert (response.status_code, problem["status"], problem["code"]) == (status, status, code)
    assert says in problem["error"]
    assert problem["error"] == problem["detail"]
    assert response.headers["content-type"] == "application/problem+json"


def test_a_picture_that_cannot_be_read_is_named_by_its_place() -> None:
    response = infer(FakeApp(), "tiny", request_of(RED, b"no picture", RED))
    assert (response.status_code, response.json()["picture"]) == (415, 1)


def test_refusals_and_answers_count_as_requests_to_the_model() -> None:
    fake = FakeApp()
    with fake.client() as client:
        client.post("/v2/models/tiny/infer", json=request_of(RED))
        client.post("/v2/models/tiny/infer", content=b"{")
        text = client.get("/metrics").text
    for status in ("200", "400"):
        assert (
            f'saccade_requests_total{{model="tiny",status="{status}",task="classify"}} 1.0' in text
        )


def test_loading_through_the_protocol_needs_an_admin_key_and_takes_no_files() -> None:
    paths = [f"/v2/repository/models/tiny/{action}" for action in ("load", "unload")]
    with FakeApp().client() as client:
        assert [client.post(path).status_code for path in paths] == [404, 404]
    key = {"authorization": "Bearer a-long-enough-secret-for-admins"}
    with FakeApp(admin_keys="root:a-long-enough-secret-for-admins").client() as client:
        assert [client.post(path).status_code for path in paths] == [401, 401]
        files = {"parameters": {"config": "{}", "file:1/model.onnx": "AAAA"}}
        refusals = [client.post(path, json=files, headers=key) for path in paths]
    assert [one.status_code for one in refusals] == [422, 422]
    assert "'config', 'file:1/model.onnx': models are loaded from" in refusals[0].json()["error"]


def test_both_front_doors_need_a_key_where_keys_are_set_and_probes_do_not() -> None:
    secret = "a-long-enough-secret-for-callers"
    with FakeApp(api_keys=f"me:{secret}").client() as client:
        paths = ["/v2/models/tiny/infer", "/models/tiny"]
        refusals = [client.post(path, json=request_of(RED)) for path in paths]
        opened = client.post(
            "/models/tiny", content=RED, headers={"authorization": f"Bearer {secret}"}
        )
        ready = client.get("/v2/health/ready")
    assert [one.status_code for one in refusals] == [401, 401]
    assert all("key" in one.json()["error"] for one in refusals)
    assert (opened.status_code, ready.status_code) == (200, 200)


def test_a_long_body_is_parsed_beside_the_event_loop_and_read_all_the_same() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (600, 800, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "PNG")
    assert tensors(infer(FakeApp(), "tiny", request_of(file.getvalue())))["sizes"].tolist() == [
        [600, 800]
    ]
