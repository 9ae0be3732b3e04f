"""Deformable DETR in its four forms, on small networks of lively random weights."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import openvino
import pytest
import torch
from torch import Tensor, nn

from export.to_onnx import trace
from models.deformable import Sampling
from models.deformable_detr import DeformableDetr, DeformableDetrConfig, Places
from models.resnet import ResNetConfig

RESNET = ResNetConfig(
    depths=(1, 1, 1, 1), widths=(16, 32, 48, 64), stem_width=8, returned=(2, 3, 4)
)
PLAIN = DeformableDetrConfig(
    (64, 96),
    RESNET,
    classes=5,
    queries=6,
    dim=32,
    heads=4,
    encoder_layers=2,
    decoder_layers=2,
    mlp_dim=48,
    points=3,
    groups=8,
)
FORMS = {
    "plain": PLAIN,
    "single-scale": replace(PLAIN, levels=1, backbone=replace(RESNET, returned=(4,))),
    "refining": replace(PLAIN, refine=True),
    "two-stage": replace(PLAIN, refine=True, two_stage=True),
}
SIZES = torch.tensor([[64, 96], [40, 96], [57, 33]], dtype=torch.int32)


def lively(config: DeformableDetrConfig) -> DeformableDetr:
    torch.set_num_threads(1)
    model, generator = DeformableDetr(config), torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        offset = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        parameter.data = offset + 0.3 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def pictures(batch: int = 3) -> Tensor:
    return torch.randn(batch, 3, 64, 96, generator=torch.Generator().manual_seed(batch))


def padded(images: Tensor, sizes: Tensor, fill: float) -> Tensor:
    """The images with everything beside the picture set to ``fill``."""
    images = images.clone()
    for image, (height, width) in zip(images, sizes.tolist(), strict=True):
        image[:, height:] = fill
        image[:, :, width:] = fill
    return images


def seen_places(model: DeformableDetr, images: Tensor, sizes: Tensor) -> dict[str, Places]:
    """Where every layer looked, by hooks."""
    seen: dict[str, Places] = {}
    handles = [
        layer.register_forward_hook(
            lambda _, __, out, key=f"{part}.{i}": seen.update({key: out[1]})
        )
        for part, layers in (("encoder", model.encoder), ("decoder", model.decoder))
        for i, layer in enumerate(layers)
    ]
    with torch.no_grad():
        model(images, sizes)
    for handle in handles:
        handle.remove()
    return seen


def naive_look(places: Places, picture: int, query: int, grid: tuple[int, int]) -> np.ndarray:
    """(h, height * width): each weight spread over the four cells around its place."""
    locations = places.locations[picture, query].double().numpy()
    weights = places.weights[picture, query].double().numpy()
    maps = np.zeros((len(weights), *grid))
    for head, level, point in np.ndindex(*weights.shape):
        column = locations[head, level, point, 0] * grid[1] - 0.5
        row = locations[head, level, point, 1] * grid[0] - 0.5
        for y, x in np.ndindex(*grid):
            near = max(0, 1 - abs(row - y)) * max(0, 1 - abs(column - x))
            maps[head, y, x] += weights[head, level, point] * near
    return maps.reshape(len(weights), -1)


class Named(nn.Module):
    """``explain`` as the forward of a module, for export."""

    def __init__(self, model: DeformableDetr) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, images: Tensor, sizes: Tensor, query: Tensor, place: Tensor
    ) -> dict[str, Tensor]:
        return self.model.explain(images, sizes, query, place)


@pytest.mark.parametrize("form", FORMS)
def test_answer_does_not_depend_on_the_rest_of_the_batch(form: str) -> None:
    model, images = lively(FORMS[form]), pictures()
    with torch.no_grad():
        together = model(images, SIZES)
        for index in range(3):
            alone = model(images[index : index + 1], SIZES[index : index + 1])
            for name, tensor in together.items():
                torch.testing.assert_close(
                    alone[name][0], tensor[index], rtol=1e-4, atol=1e-4, msg=name
                )


@pytest.mark.parametrize("form", FORMS)
def test_both_ways_of_sampling_give_the_same_answer(form: str) -> None:
    model, images = lively(FORMS[form]), pictures()
    other = DeformableDetr(replace(FORMS[form], sampling="gather")).eval()
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        expected, found = model(images, SIZES), other(images, SIZES)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-4, msg=name)


def test_last_prediction_is_what_forward_answers() -> None:
    for config in FORMS.values():
        model, images = lively(config), pictures()
        with torch.no_grad():
            answer, predictions = model(images, SIZES), model.predictions(images, SIZES)
        assert len(predictions) == 2
        for prediction in predictions:
            assert prediction["logits"].shape == (3, 6, 5)
            assert prediction["boxes"].shape == (3, 6, 4)
        for name, tensor in answer.items():
            assert torch.equal(predictions[-1][name], tensor)


def test_only_the_second_stage_starts_from_what_the_encoder_proposes() -> None:
    for form, config in FORMS.items():
        with torch.no_grad():
            last = lively(config).predictions(pictures(), SIZES)[-1]
        assert ("proposal_boxes" in last) == (form == "two-stage")
    cells = 8 * 12 + 4 * 6 + 2 * 3 + 1 * 2
    assert last["proposal_logits"].shape == (3, cells, 5)
    outside = (last["proposal_boxes"] == 1).all(dim=-1)
    beside = torch.zeros(3, 8, 12, dtype=torch.bool)
    beside[1, 5:] = True  # 40 of 64 pixels are 5 of 8 cells
    beside[2, :, 5:] = True  # 33 of 96 pixels reach into the 5th of 12 cells
    assert torch.equal(outside[:, : 8 * 12].view(3, 8, 12), beside)


def test_proposals_with_the_highest_first_logit_become_the_queries() -> None:
    model = lively(FORMS["two-stage"])
    starts: list[Tensor] = []
    handle = model.decoder[0].register_forward_hook(lambda _, args, __: starts.append(args[2]))
    with torch.no_grad():
        last = model.predictions(pictures(1), SIZES[:1])[-1]
    handle.remove()
    order = last["proposal_logits"][0, :, 0].argsort(descending=True)
    assert torch.equal(starts[0][0, :, 0], last["proposal_boxes"][0, order[:6]])


def test_refinement_moves_the_boxes_of_the_layer_before() -> None:
    model = lively(FORMS["refining"])
    with torch.no_grad():
        first = model.predictions(pictures(), SIZES)[0]
        heads: Any = model.locate
        for parameter in heads[1].layers[-1].parameters():
            parameter.zero_()
        last = model.predictions(pictures(), SIZES)[1]
    torch.testing.assert_close(last["boxes"], first["boxes"].clamp(1e-5, 1 - 1e-5))


def test_boxes_of_earlier_layers_get_no_gradient_from_later_ones() -> None:
    model = lively(FORMS["two-stage"])
    model.predictions(pictures(), SIZES)[1]["boxes"].sum().backward()
    heads: Any = model.locate
    assert heads[0].layers[0].weight.grad is None
    assert heads[1].layers[0].weight.grad is not None
    assert heads[2].layers[0].weight.grad is None  # the encoder's


@pytest.mark.parametrize("form", FORMS)
def test_every_weight_learns_from_all_predictions(form: str) -> None:
    model = lively(FORMS[form])
    predictions = model.predictions(pictures(), SIZES)
    sum(tensor.square().sum() for named in predictions for tensor in named.values()).backward()  # type: ignore[union-attr]
    assert [name for name, weight in model.named_parameters() if weight.grad is None] == []


def test_training_starts_with_small_boxes_at_their_reference_and_rare_classes() -> None:
    torch.manual_seed(0)
    model = DeformableDetr(PLAIN)
    with torch.no_grad():
        answer = model(pictures(), SIZES)
        reference = model.reference(model.query_positions).sigmoid()
    torch.testing.assert_close(answer["boxes"][..., :2], reference.expand(3, -1, -1))
    torch.testing.assert_close(
        answer["boxes"][..., 2:], torch.full((3, 6, 2), -2.0).sigmoid(), rtol=1e-5, atol=1e-6
    )
    torch.testing.assert_close(model.classify[0].bias.sigmoid(), torch.full((5,), 0.01))  # type: ignore[operator]


def test_encoder_sees_nothing_beside_the_picture() -> None:
    """A convolution carries what is beside a picture into its last cells, so the backbone's maps
    are what is filled here.
    """
    model, maps = lively(PLAIN), [torch.randn(1, 32, *grid) for grid in PLAIN.grids]
    sizes = torch.tensor([[32, 64]], dtype=torch.int32)
    answers = []
    for fill in (0.0, 50.0):
        filled = []
        for level, (height, width) in zip(maps, PLAIN.grids, strict=True):
            level = level.clone()
            level[:, :, -(-height // 2) :] = fill
            level[:, :, :, -(-width * 2 // 3) :] = fill
            filled.append(level)
        model._levels = lambda _, filled=filled: filled  # type: ignore[method-assign,misc]
        with torch.no_grad():
            answers.append(model(pictures(1), sizes))
    for name, tensor in answers[0].items():
        torch.testing.assert_close(answers[1][name], tensor, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("form", FORMS)
def test_explained_maps_are_the_places_of_the_query_spread_over_the_finest_grid(form: str) -> None:
    config = FORMS[form]
    model, images = lively(config), pictures()
    query = torch.tensor([-1, 4, 0])
    place = torch.tensor([[0.0, 0.0], [0.99, 0.99], [0.51, 0.26]])
    height, width = config.grids[0]
    with torch.no_grad():
        answer = model(images, SIZES)
        named = query
        if "cells" in answer:  # a query goes by its cell
            of_rows = answer["cells"].gather(1, query.clamp(min=0)[:, None])[:, 0]
            named = torch.where(query < 0, query, of_rows)
        found = model.explain(images, SIZES, named, place)
    cells = [0, height * width - 1, int(0.51 * height) * width + int(0.26 * width)]
    best = answer["logits"][0].amax(dim=1).argmax().item()
    queries = [int(best), 4, 0]
    for key, places in seen_places(model, images, SIZES).items():
        rows = cells if key.startswith("encoder") else queries
        for picture, row in enumerate(rows):
            expected = naive_look(places, picture, row, (height, width))
            np.testing.assert_allclose(found[key][picture], expected, rtol=1e-3, atol=1e-5)
    assert found["encoder.1"].sum() > 1  # not all places are beyond the map
    assert found["chosen"].tolist() == queries
    maps = {"encoder.0", "encoder.1", "decoder.0", "decoder.1"}
    assert found.keys() == {*answer, *maps, "chosen"}
    for name, tensor in answer.items():
        assert torch.equal(found[name], tensor)


def run_onnx(graph: ir.Model, inputs: dict[str, Tensor], folder: Path) -> list[dict[str, Any]]:
    """The outputs in ONNX Runtime and in OpenVINO."""
    path = folder / "model.onnx"
    ir.save(graph, path)
    arrays = {name: tensor.numpy() for name, tensor in inputs.items()}
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    hints = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    compiled = openvino.Core().compile_model(path, "CPU", hints)(arrays)
    in_openvino = {name: compiled[name] for name in names}
    return [dict(zip(names, session.run(None, arrays), strict=True)), in_openvino]


@pytest.mark.parametrize(
    ("form", "sampling"), [*((form, "grid_sample") for form in FORMS), ("two-stage", "gather")]
)
def test_exported_graph_answers_as_torch_in_both_runtimes(
    form: str, sampling: Sampling, tmp_path: Path
) -> None:
    model = lively(replace(FORMS[form], sampling=sampling))
    graph = trace(model, {"images": pictures(2), "sizes": SIZES[:2]})
    types = {node.op_type for node in graph.graph}
    assert graph.opset_imports[""] == 18
    assert ("GridSample" in types) == (sampling == "grid_sample")
    assert not types & {"NonZero", "ScatterND", "Loop", "If"}
    for batch in (1, 3):
        inputs = {"images": pictures(batch), "sizes": SIZES[-batch:]}
        with torch.no_grad():
            expected = model(**inputs)
        for found in run_onnx(graph, inputs, tmp_path):
            for name, tensor in expected.items():
                np.testing.assert_allclose(found[name], tensor, rtol=1e-3, atol=2e-3, err_msg=name)


def test_exported_explanation_equals_torch_in_both_runtimes(tmp_path: Path) -> None:
    model = lively(FORMS["two-stage"])
    inputs = {
        "images": pictures(),
        "sizes": SIZES,
        "query": torch.tensor([-1, 2, 5]),
        "place": torch.tensor([[0.2, 0.7], [0.0, 1.0], [0.5, 0.5]]),
    }
    graph = trace(Named(model), inputs)
    with torch.no_grad():
        expected = model.explain(**inputs)
    for found in run_onnx(graph, inputs, tmp_path):
        for name, tensor in expected.items():
            np.testing.assert_allclose(found[name], tensor, rtol=1e-3, atol=2e-3, err_msg=name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"two_stage": True}, "two stages need iterative box refinement"),
        ({"heads": 3}, "width 32 must divide into 3 heads, 8 groups"),
        ({"groups": 5}, "width 32 must divide into 4 heads, 5 groups"),
        ({"levels": 2}, "returns 3 maps for 2 levels"),
        (
            {"refine": True, "two_stage": True, "queries": 129},
            "129 queries cannot start from 128 cells",
        ),
    ],
)
def test_impossible_dimensions_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(PLAIN, **change)


def test_grids_of_levels_that_strides_do_not_divide_are_rounded_up() -> None:
    assert replace(PLAIN, canvas=(104, 72)).grids == ((13, 9), (7, 5), (4, 3), (2, 2))
