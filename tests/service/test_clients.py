"""Clients that exist, unmodified, against a real server: Hugging Face's and Triton's."""

import asyncio
import io
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError
from PIL import Image
from tritonclient.utils import InferenceServerException

from tests.conftest import Server

Scenes = dict[str, Any]


@pytest.fixture
def scene(demo_scenes: Scenes) -> dict[str, Any]:
    return dict(demo_scenes["star.jpg"])


def hugging_face(server: Server, model: str) -> InferenceClient:
    return InferenceClient(f"{server.url}/models/{model}", provider="hf-inference", token="none")


def address(server: Server) -> str:
    return server.url.removeprefix("http://")


def pictures(*files: bytes) -> triton.InferInput:
    tensor = triton.InferInput("images", [len(files)], "BYTES")
    return tensor.set_data_from_numpy(np.array(files, dtype=object))


def v1(server: Server, task: str, scene: dict[str, Any], **parameters: Any) -> Any:
    body = scene["path"].read_bytes()
    return httpx.post(f"{server.url}/v1/{task}", params=parameters, content=body).json()


def test_hugging_face_classifies(demo_server: Server, scene: dict[str, Any]) -> None:
    client = hugging_face(demo_server, "vit-scenes")
    found = client.image_classification(scene["path"])
    answer = v1(demo_server, "classify", scene, model="vit-scenes")
    assert [(one.label, one.score) for one in found] == [
        (one["label"], one["score"]) for one in answer["predictions"]
    ]
    assert found[0].label == scene["class"]
    logits = client.image_classification(scene["path"], top_k=2, function_to_apply="none")
    assert [one.label for one in logits] == [one.label for one in found[:2]]
    assert logits[0].score > 1


def test_hugging_face_detects(demo_server: Server, scene: dict[str, Any]) -> None:
    client = hugging_face(demo_server, "detr-scenes")
    found = client.object_detection(scene["path"].read_bytes(), threshold=0.6)
    answer = v1(demo_server, "detect", scene, threshold=0.6)["predictions"]
    assert len(found) == len(answer) > 0
    for one, other in zip(found, answer, strict=True):
        assert (one.label, one.score) == (other["label"], other["score"])
        assert vars(one.box) == {edge: int(value) for edge, value in other["box"].items()}


@pytest.mark.parametrize("subtask", ["panoptic", "instance", "semantic"])
def test_hugging_face_segments(demo_server: Server, scene: dict[str, Any], subtask: Any) -> None:
    client = hugging_face(demo_server, "mask2former-scenes")
    found = client.image_segmentation(scene["path"], subtask=subtask)
    answer = v1(demo_server, "segment", scene, mode=subtask)["segments"]
    assert [(one.label, one.score) for one in found] == [
        (one["label"], one.get("score")) for one in answer
    ]
    for one, other in zip(found, answer, strict=True):
        mask = np.array(one.mask)  # the client has opened it as a picture
        assert np.unique(mask).tolist() == [0, 255]
        assert (mask == 255).sum() == other["area"]


def test_hugging_face_shows_its_users_what_was_wrong(
    demo_server: Server, scene: dict[str, Any]
) -> None:
    with pytest.raises(HfHubHTTPError, match="there is no model 'resnet'; served are"):
        hugging_face(demo_server, "resnet").image_classification(scene["path"])
    with pytest.raises(HfHubHTTPError, match=r"top_k: .* greater than or equal to 1"):
        hugging_face(demo_server, "vit-scenes").image_classification(scene["path"], top_k=0)


def test_hugging_face_asks_for_health_and_info(demo_server: Server) -> None:
    client = hugging_face(demo_server, "vit-scenes")
    assert client.health_check() is True
    assert client.get_endpoint_info()["model_pipeline_tag"] == "image-classification"


def test_triton_finds_its_way_around(demo_server: Server) -> None:
    with triton.InferenceServerClient(address(demo_server)) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("vit-scenes")
        assert client.is_model_ready("vit-scenes", "1")
        assert not client.is_model_ready("vit-scenes", "2")
        assert not client.is_model_ready("resnet")
        assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
        index = client.get_model_repository_index()
        assert {(one["name"], one["state"]) for one in index} == {
            (f"{name}-scenes", "READY") for name in ("vit", "swin", "detr", "mask2former")
        }
        for model in index:
            metadata = client.get_model_metadata(model["name"], model["version"])
            assert metadata["inputs"] == [{"name": "images", "datatype": "BYTES", "shape": [-1]}]


@pytest.mark.parametrize("binary", [True, False])
def test_triton_gets_scores_and_classes(
    demo_server: Server, demo_scenes: Scenes, binary: bool
) -> None:
    names = list(demo_scenes)[:3]
    files = [demo_scenes[name]["path"].read_bytes() for name in names]
    scores = triton.InferRequestedOutput("scores", binary_data=binary)
    classes = triton.InferRequestedOutput("scores", binary_data=binary, class_count=2)
    with triton.InferenceServerClient(address(demo_server)) as client:
        result = client.infer("vit-scenes", [pictures(*files)], outputs=[scores], request_id="a1")
        named = client.infer("vit-scenes", [pictures(*files)], outputs=[classes])
    found = result.as_numpy("scores")
    assert (found.shape, found.dtype) == ((3, 8), np.float32)
    assert np.allclose(found.sum(axis=1), 1, atol=1e-3)
    assert result.get_response()["id"] == "a1"
    texts = named.as_numpy("scores")
    assert texts.shape == (3, 2)
    for name, row, (best, _) in zip(names, found, texts, strict=True):
        score, index, label = (best.decode() if binary else best).split(":")
        assert label == demo_scenes[name]["class"]
        assert int(index) == row.argmax()
        assert float(score) == pytest.approx(row.max(), abs=1e-3)


def test_triton_gets_boxes_and_segments(demo_server: Server, scene: dict[str, Any]) -> None:
    body = scene["path"].read_bytes()
    with triton.InferenceServerClient(address(demo_server)) as client:
        objects = client.infer("detr-scenes", [pictures(body)])
        segments = client.infer("mask2former-scenes", [pictures(body)])
    answer = v1(demo_server, "detect", scene, threshold=0.6)["predictions"]
    found = {name: objects.as_numpy(name)[0] for name in ("scores", "classes", "boxes")}
    kept = np.flatnonzero(found["scores"] >= 0.6)
    kept = kept[np.argsort(-found["scores"][kept], kind="stable")]
    assert found["classes"][kept].tolist() == [one["label_id"] for one in answer]
    expected = [list(one["box"].values()) for one in answer]
    assert np.allclose(found["boxes"][kept], expected, atol=0.01)
    rows = v1(demo_server, "segment", scene)["segments"]
    ids = np.array(Image.open(io.BytesIO(segments.as_numpy("segment_map")[0])))[..., 0]
    assert ids.shape == tuple(segments.as_numpy("sizes")[0])
    assert segments.as_numpy("segment_classes")[0].tolist() == [one["label_id"] for one in rows]
    for row in rows:
        assert (ids == row["id"]).sum() == row["area"]


def test_triton_sends_pixels_compressed_bodies_priorities_and_timeouts(
    demo_server: Server, scene: dict[str, Any]
) -> None:
    body = scene["path"].read_bytes()
    outputs = [triton.InferRequestedOutput("scores")]
    pixels = np.array(Image.open(scene["path"]).convert("RGB").resize((128, 128)))[None]
    tensor = triton.InferInput("images", list(pixels.shape), "UINT8").set_data_from_numpy(pixels)
    with triton.InferenceServerClient(address(demo_server)) as client:
        from_file = client.infer(
            "vit-scenes",
            [pictures(body)],
            outputs=outputs,
            priority=1,
            timeout=20_000_000,
            request_compression_algorithm="gzip",
            response_compression_algorithm="gzip",
        )
        from_pixels = client.infer("vit-scenes", [tensor], outputs=outputs)
        with pytest.raises(InferenceServerException, match="deadline passed") as late:
            client.infer("vit-scenes", [pictures(body)], timeout=1)
    assert late.value.status() == "504"
    both = from_file.as_numpy("scores"), from_pixels.as_numpy("scores")
    assert both[0].argmax() == both[1].argmax()
    assert np.allclose(*both, atol=0.1)  # resized by somebody else


def test_triton_shows_its_users_what_was_wrong(demo_server: Server) -> None:
    with triton.InferenceServerClient(address(demo_server)) as client:
        with pytest.raises(InferenceServerException, match="JPEG, PNG and WebP") as refusal:
            client.infer("vit-scenes", [pictures(b"no picture")])
        with pytest.raises(InferenceServerException, match="'vit-scenes' has, once each"):
            client.infer(
                "vit-scenes", [pictures(b"x")], outputs=[triton.InferRequestedOutput("logits")]
            )
    assert refusal.value.status() == "415"


def test_triton_unloads_and_loads_with_an_admin_key(
    start_server: Callable[..., Server], monkeypatch: pytest.MonkeyPatch, scene: dict[str, Any]
) -> None:
    monkeypatch.setenv("SACCADE_ADMIN_KEYS", "root:a-long-enough-secret-for-admins")
    server = start_server("--api-processes", "1")
    key = {"Authorization": "Bearer a-long-enough-secret-for-admins"}
    body = scene["path"].read_bytes()
    with triton.InferenceServerClient(address(server)) as client:
        with pytest.raises(InferenceServerException, match="admin key"):
            client.unload_model("vit-scenes")
        client.unload_model("vit-scenes", headers=key)
        assert not client.is_model_ready("vit-scenes")
        with pytest.raises(InferenceServerException, match="no model 'vit-scenes'"):
            client.infer("vit-scenes", [pictures(body)])
        client.load_model("vit-scenes", headers=key)
        assert client.is_model_ready("vit-scenes")
        assert client.infer("vit-scenes", [pictures(body)]).as_numpy("scores").shape == (1, 8)


def test_triton_asks_asynchronously(demo_server: Server, demo_scenes: Scenes) -> None:
    async def ask() -> list[bytes]:
        async with triton_aio.InferenceServerClient(address(demo_server)) as client:
            assert await client.is_server_ready()
            outputs = [triton_aio.InferRequestedOutput("scores", class_count=1)]
            results = await asyncio.gather(
                *(
                    client.infer(
                        "swin-scenes", [pictures(one["path"].read_bytes())], outputs=outputs
                    )
                    for one in demo_scenes.values()
                )
            )
            return [result.as_numpy("scores")[0, 0] for result in results]

    labels = [text.decode().split(":")[2] for text in asyncio.run(ask())]
    assert labels == [one["class"] for one in demo_scenes.values()]
