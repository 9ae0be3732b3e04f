"""The maps of the demo models point at what was found, on every sample scene."""

import io
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.conftest import Server

Box = tuple[float, float, float, float]


def ask(server: Server, scene: dict[str, Any], task: str, **parameters: Any) -> dict[str, Any]:
    response = httpx.post(
        f"{server.url}/v1/{task}", params=parameters, content=scene["path"].read_bytes(), timeout=60
    )
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def share_within(answer: dict[str, Any], box: Box) -> float:
    """How much of a map's weight lies within a box, pixel by pixel."""
    width, height = answer["image"]["width"], answer["image"]["height"]
    values = np.array(answer["maps"][0]["values"], dtype=np.float32)
    wide = np.asarray(Image.fromarray(values).resize((width, height), Image.Resampling.NEAREST))
    x0, y0, x1, y1 = (round(edge) for edge in box)
    return float(wide[y0:y1, x0:x1].sum() / wide.sum())


def area_share(answer: dict[str, Any], box: Box) -> float:
    pixels = answer["image"]["width"] * answer["image"]["height"]
    return (box[2] - box[0]) * (box[3] - box[1]) / pixels


def corners(box: dict[str, float]) -> Box:
    return box["xmin"], box["ymin"], box["xmax"], box["ymax"]


def largest_thing(scene: dict[str, Any]) -> Box:
    of_class = [one for one in scene["boxes"] if one["label"] == scene["class"]]
    x0, y0, x1, y1 = max(of_class, key=lambda one: one["area_px"])["box_xyxy_px"]
    return x0, y0, x1, y1


def test_every_box_of_the_detector_can_be_explained_and_its_query_looked_at_it(
    demo_server: Server, demo_scenes: dict[str, Any]
) -> None:
    count = 0
    for scene in demo_scenes.values():
        for found in ask(demo_server, scene, "detect", model="detr-scenes")["predictions"]:
            answer = ask(demo_server, scene, "attention", model="detr-scenes", query=found["query"])
            explained = answer["explained"]
            assert (explained["query"], explained["label"]) == (found["query"], found["label"])
            for edge, value in found["box"].items():
                assert explained["box"][edge] == pytest.approx(value, abs=8)
            x0, y0, x1, y1 = corners(explained["box"])
            around: Box = (max(x0 - 20, 0), max(y0 - 20, 0), x1 + 20, y1 + 20)
            assert share_within(answer, around) >= 0.8
            count += 1
    assert count >= 16


def test_the_places_of_swin_look_at_what_gives_the_picture_its_class(
    demo_server: Server, demo_scenes: dict[str, Any]
) -> None:
    gains = []
    for scene in demo_scenes.values():
        answer = ask(demo_server, scene, "attention", model="swin-scenes", kind="pooled")
        box = largest_thing(scene)
        gains.append(share_within(answer, box) / area_share(answer, box))
    assert min(gains) > 1  # more than blind weights would give it
    assert np.mean(gains) > 1.5


def test_the_mean_of_a_class_activation_map_is_larger_for_the_class_that_is_there(
    demo_server: Server, demo_scenes: dict[str, Any]
) -> None:
    labels = {scene["class"] for scene in demo_scenes.values()}
    assert len(labels) == 8
    for name in list(demo_scenes)[:3]:
        scene = demo_scenes[name]
        means = {
            label: np.mean(
                ask(
                    demo_server,
                    scene,
                    "attention",
                    model="swin-scenes",
                    kind="cam",
                    query=label,
                )["maps"][0]["values"]
            )
            for label in labels
        }
        answer = ask(demo_server, scene, "attention", model="swin-scenes", kind="cam")
        assert answer["explained"]["label"] == scene["class"]
        assert max(means, key=lambda label: means[label]) == scene["class"]


def test_a_segments_query_looks_within_it_and_its_last_mask_is_the_segment(
    demo_server: Server, demo_scenes: dict[str, Any]
) -> None:
    scene = next(iter(demo_scenes.values()))
    about = {"model": "mask2former-scenes", "mode": "instance", "mask_format": "png"}
    segments = ask(demo_server, scene, "segment", **about)["segments"]
    thing = max(segments, key=lambda one: one["score"])
    asked = {"model": "mask2former-scenes", "query": thing["query"]}
    mask = ask(demo_server, scene, "attention", kind="mask", **asked)
    assert mask["explained"]["label"] == thing["label"]
    x, y, width, height = thing["bbox"]
    box: Box = (x, y, x + width, y + height)
    assert share_within(mask, box) >= 0.9
    looked = ask(demo_server, scene, "attention", kind="decoder", **asked)
    assert share_within(looked, box) > 2 * area_share(looked, box)


def test_an_overlay_has_the_size_of_the_picture_for_every_kind(
    demo_server: Server, demo_scenes: dict[str, Any]
) -> None:
    scene = next(iter(demo_scenes.values()))
    models = httpx.get(demo_server.url + "/v1/models").json()["models"]
    shown = 0
    for model in models:
        manifest = httpx.get(f"{demo_server.url}/v1/models/{model['name']}").json()["manifest"]
        for kind in manifest["explain"]["kinds"]:
            response = httpx.post(
                demo_server.url + "/v1/attention",
                params={"model": model["name"], "kind": kind["name"]},
                content=scene["path"].read_bytes(),
                headers={"accept": "image/png"},
                timeout=60,
            )
            assert response.status_code == 200, response.text
            size = Image.open(io.BytesIO(response.content)).size
            assert size == (scene["width"], scene["height"])
            shown += 1
    assert shown == 9
