"""Attention maps over HTTP: every kind of query, on canvases with and without padding."""

import base64
import io
import json
from typing import Any

import numpy as np
import pytest
from PIL import Image

from service.worker.link import Result
from service.worker.runtimes.base import Arrays
from service.worker.scheduler import Group
from tests.service.fake_app import FakeApp, picture
from tests.service.sample_bundle import manifest_of

# On a canvas of 32 x 64: "decoder" on 1x2 and on 2x4 cells, masks on 4x8.
CELLS = {"decoder.0": (2, 2), "decoder.1": (2, 8), "mask.0": (32,), "mask.1": (32,)}
BOX = np.array([0.25, -0.5, 0.75, 1.0])


class Network:
    """Answers for the explain graph: the best is given, of class 1, and maps count up."""

    def __init__(self, best: int) -> None:
        self.best = best
        self.asked: list[tuple[Group, Arrays, tuple[str, ...] | None]] = []

    async def infer(
        self,
        group: Group,
        inputs: Arrays,
        deadline_s: float,
        outputs: tuple[str, ...] | None = None,
        client: str = "",
        priority: int = 0,
    ) -> Result:
        self.asked.append((group, inputs, outputs))
        query = int(inputs["query"])
        found: Arrays = {
            name: np.arange(np.prod(shape)).reshape(shape) / 100
            for name, shape in {**CELLS, "encoder.0": (2, 8), "cam": (2, 4)}.items()
        }
        found["cam"] = found["cam"] - 0.04
        found["explained"] = np.array(self.best if query < 0 else query)
        found["explained_logits"] = np.log(np.array([0.125, 0.625, 0.0625, 0.1875]))
        found["explained_box"] = BOX
        assert outputs is not None
        named = {name: found[name].astype(np.float32) for name in outputs}
        return Result(named, batch_size=1, queue_s=0, infer_s=0, precision="fp32")


def served(placement: str = "pad", classifier: bool = False) -> tuple[FakeApp, Network]:
    """A segmenter, or a Swin that classifies; pictures are padded, or stretched to the canvas."""
    canvas = {"height": 32, "width": 64}
    if classifier:
        names = {"cam": (2, 4), "encoder.0": (2, 8), "explained": (), "explained_logits": (4,)}
        kinds = [
            kind("cam", "class", ("cam", 0, 16)),
            kind("encoder", "place", ("encoder.0", 2, 16)),
        ]
    else:
        names = {**CELLS, "explained": (), "explained_logits": (4,), "explained_box": (4,)}
        decoder = kind("decoder", "object", ("decoder.0", 2, 32), ("decoder.1", 2, 16))
        kinds = [decoder, kind("mask", "object", ("mask.0", 0, 8), ("mask.1", 0, 8))]
    resize = {"mode": "none"} if placement == "pad" else {"mode": "squash", **canvas}
    inputs = [("images", "uint8", (32, 64, 3)), ("query", "int64", ()), ("place", "float32", (2,))]
    inputs += [("sizes", "int32", (2,))] if placement == "pad" else []
    graph = {
        "file": "explain.onnx",
        "kind": "explain",
        "canvas": canvas,
        "precision": "fp32",
        "inputs": [tensor(*one) for one in inputs],
        "outputs": [tensor(name, "float32", shape) for name, shape in names.items()],
    }
    manifest = manifest_of(
        tasks=["attention"],
        geometry={"nominal": canvas, "resize": resize, "placement": placement},
        graphs=[graph | {"kind": "serve"}, graph],
        explain={"kinds": kinds},
    )
    fake, network = FakeApp([manifest]), Network(best=1 if classifier else 3)
    fake.link.infer = network.infer  # type: ignore[method-assign]
    return fake, network


def kind(name: str, query: str, *layers: tuple[str, int, int]) -> dict[str, Any]:
    described = [{"output": o, "heads": h, "stride": s} for o, h, s in layers]
    counted = {"queries": 5} if query == "object" else {}
    return {"name": name, "query": query, "layers": described} | counted


def tensor(name: str, dtype: str, shape: tuple[int, ...]) -> dict[str, Any]:
    return {"name": name, "role": name, "dtype": dtype, "shape": [-1, *shape]}


def ask(
    fake: FakeApp, query: str = "", size: tuple[int, int] = (64, 32), accept: str = "*/*"
) -> Any:
    with fake.client() as client:
        return client.post(
            f"/v1/attention?{query}", content=picture(9, size=size), headers={"accept": accept}
        )


def test_the_best_object_is_explained_and_named() -> None:
    fake, network = served()
    answer = ask(fake).json()
    assert answer["explained"] == {
        "query": 3,
        "label": "bee",
        "label_id": 1,
        "score": 0.625,
        "box": {"xmin": 16, "ymin": 0, "xmax": 48, "ymax": 32},
    }
    assert answer["maps"] == [
        {
            "kind": "decoder",
            "layer": 1,
            "head": "mean",
            "query": "3",
            "grid": [2, 4],
            "values": [[0.04, 0.05, 0.06, 0.07], [0.08, 0.09, 0.1, 0.11]],
        }
    ]
    ((group, inputs, outputs),) = network.asked
    assert (group.graph, int(inputs["query"])) == ("explain", -1)
    assert inputs["sizes"].tolist() == [32, 64]
    assert outputs == ("decoder.1", "explained", "explained_logits", "explained_box")


def test_an_object_is_asked_for_by_its_number() -> None:
    fake, network = served()
    answer = ask(fake, "query=2&layer=0&head=1").json()
    assert (answer["explained"]["query"], answer["maps"][0]["query"]) == (2, "2")
    assert answer["maps"][0]["values"] == [[0.02, 0.03]]
    assert int(network.asked[0][1]["query"]) == 2
    refused = ask(served()[0], "query=5")
    assert (refused.status_code, refused.json()["parameter"]) == (422, "query")


def test_masks_come_for_every_stage_without_heads() -> None:
    answer = ask(served()[0], "kind=mask&layer=all").json()
    assert [(shown["layer"], "head" in shown) for shown in answer["maps"]] == [
        (0, False),
        (1, False),
    ]
    assert answer["maps"][0]["grid"] == [4, 8]
    refused = ask(served()[0], "kind=mask&head=0")
    assert (refused.status_code, refused.json()["parameters"]) == (422, ["head"])


def test_of_a_padded_picture_only_its_own_cells_come_back_and_say_where_they_lie() -> None:
    # 20 x 16 pixels: one row and two columns of cells of 16 pixels, one cell of 32.
    answer = ask(served()[0], "layer=all", size=(20, 16)).json()
    coarse, fine = answer["maps"]
    assert (coarse["grid"], fine["grid"]) == ([1, 1], [1, 2])
    assert fine["values"] == [[0.04, 0.05]]
    assert coarse["region"] == {"xmin": 0, "ymin": 0, "xmax": 32, "ymax": 32}
    assert fine["region"] == {"xmin": 0, "ymin": 0, "xmax": 32, "ymax": 16}
    assert answer["transform"]["region"] == {"xmin": 0, "ymin": 0, "xmax": 20, "ymax": 16}
    assert answer["explained"]["box"] == {"xmin": 5, "ymin": 0, "xmax": 15, "ymax": 16}


def test_an_overlay_of_a_padded_picture_lies_on_the_picture() -> None:
    response = ask(served()[0], "", size=(20, 16), accept="image/png")
    overlay = np.array(Image.open(io.BytesIO(response.content))).astype(int)
    assert overlay.shape == (16, 20, 3)
    # Cells of 16 pixels with 0.04 and 0.05; the second one reaches past the picture.
    assert overlay[0, 19].sum() > overlay[0, 0].sum()
    about = json.loads(response.headers["x-saccade-answer"])
    assert about["region"] == {"xmin": 0, "ymin": 0, "xmax": 32, "ymax": 16}
    assert (about["query"], about["explained"]["label"]) == ("3", "bee")


def test_an_array_holds_maps_of_one_grid() -> None:
    refused = ask(served()[0], "layer=all", accept="application/x-npy")
    assert (refused.status_code, refused.json()["parameter"]) == (422, "layer")
    assert "1x2, 2x4" in refused.json()["detail"]
    response = ask(served()[0], "kind=mask&layer=all", accept="application/x-npy")
    assert np.load(io.BytesIO(response.content)).shape == (2, 4, 8)


def test_a_class_activation_map_is_signed_and_its_overlay_shows_what_speaks_for_it() -> None:
    fake, network = served("stretch", classifier=True)
    answer = ask(fake, "query=ant").json()
    assert answer["explained"] == {"label": "ant", "label_id": 0, "score": 0.125}
    assert answer["maps"] == [
        {
            "kind": "cam",
            "query": "0",
            "grid": [2, 4],
            "values": [[-0.04, -0.03, -0.02, -0.01], [0.0, 0.01, 0.02, 0.03]],
        }
    ]
    assert int(network.asked[0][1]["query"]) == 0
    png = ask(served("stretch", classifier=True)[0], "", accept="image/png").content
    overlay = np.array(Image.open(io.BytesIO(png)))
    nothing = np.rint(0.45 * np.array([9, 0, 0]) + 0.55 * np.array([13, 8, 60]))
    assert np.abs(overlay[8, 8] - nothing).max() <= 3  # what speaks against it says nothing here
    assert overlay[-1, -1].sum() > overlay[-1, 24].sum() > nothing.sum()


@pytest.mark.parametrize("asked", ["query=1,2", "point=80,24"])
def test_a_place_is_asked_for_by_cell_or_by_point(asked: str) -> None:
    fake, network = served("stretch", classifier=True)
    answer = ask(fake, f"kind=encoder&{asked}", size=(128, 32)).json()
    assert answer["explained"] == {"point": {"x": 80, "y": 24}}
    assert answer["maps"][0]["query"] == "1,2"
    assert network.asked[0][1]["place"].tolist() == pytest.approx([0.75, 0.625])
    assert network.asked[0][2] == ("encoder.0",)


def test_a_point_is_a_patch_of_a_vit() -> None:
    fake = FakeApp()
    answer = ask(fake, "point=11.5,0.5", size=(12, 6)).json()
    assert (answer["maps"][0]["query"], answer["explained"]) == (
        "0,1",
        {"point": {"x": 11.5, "y": 0.5}},
    )
    assert [int(inputs["query"]) for _, inputs, _ in fake.link.asked] == [2]
    refused = ask(FakeApp(), "point=12,0", size=(12, 6))
    assert (refused.status_code, refused.json()["parameter"]) == (422, "point")


def test_a_kind_that_a_model_does_not_show_is_refused_with_those_it_does() -> None:
    refused = ask(served()[0], "kind=raw")
    assert (refused.status_code, refused.json()["parameter"]) == (422, "kind")
    assert refused.json()["allowed"] == ["decoder", "mask"]


def test_json_may_name_a_query_by_number() -> None:
    fake, _ = served()
    body = {"image": base64.b64encode(picture(9, size=(64, 32))).decode(), "query": 4}
    with fake.client() as client:
        answer = client.post("/v1/attention", json=body).json()
    assert answer["explained"]["query"] == 4
