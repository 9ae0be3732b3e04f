"""What the manifest says can be explained is what the graph of every family holds."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from export.explain import explain_examples, explain_section, proof_inputs
from export.heads import Entry, Explain
from export.to_onnx import save, signature, trace
from models.checkpoints import Loaded
from models.deformable_detr import DeformableDetr, DeformableDetrConfig
from models.detr import Detr, DetrConfig
from models.mask2former import Mask2Former, Mask2FormerConfig
from models.maskformer import MaskFormer, MaskFormerConfig
from models.resnet import ResNetConfig
from models.swin import SwinClassifier, SwinConfig
from models.vit import ViT, ViTConfig
from service.bundle import Graph
from service.explain import Explain as Section
from service.geometry import Size

CANVAS = Size(height=64, width=90)
CLASSES = 4
BACKBONE = ResNetConfig(depths=(1, 1, 1, 1), widths=(8, 8, 16, 16), stem_width=8)
LAST = ResNetConfig(depths=(1, 1, 1, 1), widths=(8, 8, 16, 16), stem_width=8, returned=(4,))
SMALL: dict[str, Any] = {
    "dim": 16,
    "heads": 2,
    "encoder_layers": 1,
    "decoder_layers": 3,
    "queries": 6,
}
FAMILIES = ("vit", "swin", "detr", "deformable-detr", "mask2former", "maskformer")


def network(family: str) -> nn.Module:
    canvas = (CANVAS.height, CANVAS.width)
    torch.manual_seed(0)
    if family == "vit":
        config = ViTConfig((64, 96), 16, dim=16, depth=2, heads=2, mlp_dim=16, classes=CLASSES)
        return ViT(config)
    if family == "swin":
        depths, heads = (1, 1, 2, 1), (1, 2, 2, 4)
        return SwinClassifier(
            SwinConfig(canvas, dim=8, depths=depths, heads=heads, window=4, classes=CLASSES)
        )
    if family == "detr":
        return Detr(DetrConfig(canvas, LAST, classes=CLASSES, mlp_dim=16, **SMALL))
    if family == "deformable-detr":
        return DeformableDetr(
            DeformableDetrConfig(
                canvas, LAST, classes=CLASSES, mlp_dim=16, levels=1, groups=4, **SMALL
            )
        )
    if family == "mask2former":
        return Mask2Former(
            Mask2FormerConfig(
                canvas,
                BACKBONE,
                classes=CLASSES,
                encoder_mlp_dim=16,
                decoder_mlp_dim=16,
                groups=4,
                **(SMALL | {"decoder_layers": 4}),
            )
        )
    return MaskFormer(
        MaskFormerConfig(canvas, BACKBONE, classes=CLASSES, mlp_dim=16, groups=4, **SMALL)
    )


def loaded(family: str) -> Loaded:
    model = network(family).eval()
    labels = {index: f"class {index}" for index in range(CLASSES)}
    sigmoid = family == "deformable-detr"
    return Loaded(model, family, "", labels, "sigmoid" if sigmoid else "softmax", [])


def canvas_of(family: str) -> Size:
    return Size(height=64, width=96) if family == "vit" else CANVAS


def head_of(network_: Loaded) -> Explain:
    entry = Entry(1 / 255, (0.5,) * 3, (0.25,) * 3)
    return Explain(entry, network_.model).eval()


def pictures(canvas: Size, count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    shape = (count, canvas.height, canvas.width, 3)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def described(section: Section) -> list[tuple[str, str, int, list[tuple[int, int]]]]:
    return [
        (kind.name, kind.query, kind.queries or 0, [(one.heads, one.stride) for one in kind.layers])
        for kind in section.kinds
    ]


@pytest.mark.parametrize(
    ("family", "kinds"),
    [
        ("vit", [("raw", "token", 0, [(2, 16)] * 2), ("rollout", "token", 0, [(0, 16)])]),
        (
            "swin",
            [
                ("pooled", "all", 0, [(1, 4), (2, 8), (2, 16), (2, 16), (4, 32)]),
                ("cam", "class", 0, [(0, 32)]),
                ("raw", "place", 0, [(1, 4), (2, 8), (2, 16), (2, 16), (4, 32)]),
            ],
        ),
        (
            "detr",
            [("decoder", "object", 6, [(2, 32)] * 3), ("encoder", "place", 0, [(2, 32)])],
        ),
        (
            "deformable-detr",
            [("decoder", "object", 6, [(2, 32)] * 3), ("encoder", "place", 0, [(2, 32)])],
        ),
        (
            "mask2former",
            [
                ("decoder", "object", 6, [(2, 32), (2, 16), (2, 8), (2, 32)]),
                ("mask", "object", 6, [(0, 4)] * 5),
            ],
        ),
        (
            "maskformer",
            [("decoder", "object", 6, [(2, 32)] * 3), ("mask", "object", 6, [(0, 4)] * 3)],
        ),
    ],
)
def test_every_family_shows_its_kinds(
    family: str, kinds: list[tuple[str, str, int, list[tuple[int, int]]]]
) -> None:
    assert described(explain_section(loaded(family))) == kinds


def test_a_network_without_a_head_has_no_class_to_explain() -> None:
    config = SwinConfig((32, 32), dim=8, depths=(1, 1), heads=(1, 2), window=4)
    bare = Loaded(SwinClassifier(config).eval(), "swin", "", {}, None, [])
    assert [kind.name for kind in explain_section(bare).kinds] == ["pooled", "raw"]


@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_head_gives_what_the_manifest_promises(family: str, padded: bool) -> None:
    network_, canvas = loaded(family), canvas_of(family)
    examples = explain_examples(network_, canvas, padded)
    with torch.inference_mode():
        outputs = head_of(network_)(**examples)
    shapes = {name: [-1, *value.shape[1:]] for name, value in outputs.items()}
    inputs = {name: [-1, *value.shape[1:]] for name, value in examples.items()}
    section = explain_section(network_)
    assert section.fault(inputs, shapes, canvas) is None
    assert ("sizes" in inputs) is padded
    promised = {layer.output for kind in section.kinds for layer in kind.layers}
    about = {"explained", "explained_logits", "explained_box"}
    assert shapes.keys() - about == promised
    for kind in section.kinds:
        for layer in kind.layers:
            if layer.heads and family != "deformable-detr":  # softmax rows without what is no place
                total = outputs[layer.output].sum(dim=-1)
                assert (total <= 1 + 1e-5).all()
                assert (total >= (0.5 if family in ("vit", "swin") else 1 - 1e-5)).all()


@pytest.mark.parametrize("family", ["detr", "deformable-detr", "mask2former", "maskformer"])
def test_the_best_object_is_the_surest_and_any_other_can_be_asked_for(family: str) -> None:
    network_ = loaded(family)
    images = pictures(CANVAS, 3)
    head, query = head_of(network_), torch.tensor([-1, 4, 0])
    examples = explain_examples(network_, CANVAS, padded=False)
    given = {"place": torch.full((3, 2), 0.5)} if "place" in examples else {}
    whole = torch.tensor([[CANVAS.height, CANVAS.width]]).expand(3, 2)
    told = (whole,) if family.endswith("detr") else ()
    with torch.inference_mode():
        found = head(images, query, **given)
        raw = network_.model(head.entry(images), *told)
    scores = (
        raw["logits"].sigmoid()
        if family == "deformable-detr"
        else raw["logits"].softmax(dim=-1)[..., :-1]
    )
    best = int(scores[0].max(dim=-1).values.argmax())
    assert found["explained"].tolist() == [best, 4, 0]
    for picture, number in enumerate((best, 4, 0)):
        torch.testing.assert_close(
            found["explained_logits"][picture], raw["logits"][picture, number]
        )
        if "boxes" in raw:
            x, y, width, height = raw["boxes"][picture, number].tolist()
            expected = [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
            assert found["explained_box"][picture].tolist() == pytest.approx(expected, abs=1e-5)
    if "mask.0" in found:
        last = found[f"mask.{4 if family == 'mask2former' else 2}"]
        for picture, number in enumerate((best, 4, 0)):
            mask = raw["masks"][picture, number].sigmoid().flatten()
            torch.testing.assert_close(last[picture], mask)


def test_a_class_activation_map_says_which_class_it_is_of() -> None:
    network_ = loaded("swin")
    images, query = pictures(CANVAS, 3), torch.tensor([-1, 1, 3])
    head = head_of(network_)
    with torch.inference_mode():
        found = head(images, query, torch.full((3, 2), 0.5))
        logits = network_.model(head.entry(images))["logits"]
    assert found["explained"].tolist() == [int(logits[0].argmax()), 1, 3]
    torch.testing.assert_close(found["explained_logits"], logits)
    of_class = logits.gather(1, found["explained"][:, None])[:, 0]
    torch.testing.assert_close(found["cam"].mean(dim=(1, 2)), of_class, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_exported_graph_explains_as_the_network_does(family: str, tmp_path: Path) -> None:
    network_, canvas = loaded(family), canvas_of(family)
    padded = family.endswith("detr")
    head = head_of(network_)
    model = trace(head, explain_examples(network_, canvas, padded))
    save({"explain.onnx": model}, tmp_path)
    graph = Graph(
        file="explain.onnx", kind="explain", canvas=canvas, precision="fp32", **signature(model)
    )
    images = pictures(canvas, 3).numpy()
    inputs = {"images": images, **proof_inputs(graph, 3)}
    if padded:
        inputs["sizes"] = np.array([[64, 90], [40, 90], [64, 33]], np.int32)
    session = onnxruntime.InferenceSession(tmp_path / "explain.onnx")
    names = [output.name for output in session.get_outputs()]
    found = dict(zip(names, session.run(names, inputs), strict=True))
    with torch.inference_mode():
        expected = head(**{name: torch.from_numpy(array) for name, array in inputs.items()})
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        scale = max(1.0, float(value.abs().max()))
        np.testing.assert_allclose(found[name], value.numpy(), atol=1e-4 * scale, err_msg=name)
    if family == "detr":  # deformable attention may look at the zeros beyond the picture
        columns = math.ceil(90 / 32)
        last = found["decoder.2"][2].reshape(2, -1, columns)
        assert last[:, :, 2:].max() <= 1e-6


def test_proof_asks_for_the_best_and_for_others_at_places_all_over() -> None:
    network_ = loaded("detr")
    model = trace(head_of(network_), explain_examples(network_, CANVAS, padded=True))
    graph = Graph(
        file="explain.onnx", kind="explain", canvas=CANVAS, precision="fp32", **signature(model)
    )
    asked = proof_inputs(graph, 5)
    assert asked["query"].tolist() == [-1, 0, 1, -1, 0]
    assert asked["place"].shape == (5, 2)
    assert len(np.unique(asked["place"])) == 9  # both axes start in the middle
