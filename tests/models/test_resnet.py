"""The backbone by itself: shapes, norms that fold, and equality with transformers' ResNet."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import transformers
from torch import Tensor, nn

from export.to_onnx import save, trace
from models.checkpoints.errors import CheckpointError
from models.checkpoints.resnet import (
    BY_NAME,
    batch_counters,
    resnet_config,
    resnet_weights,
)
from models.checkpoints.strict import StrictReader
from models.resnet import ConvNorm, FrozenBatchNorm, ResNet, ResNetConfig, fold_norms

TINY = ResNetConfig(depths=(1, 2, 1, 2), widths=(16, 32, 64, 128), stem_width=8)
BASIC = ResNetConfig(depths=(1, 2), widths=(8, 16), stem_width=8, basic=True, returned=(1, 2))


def lively(model: Any) -> Any:
    """Every weight and statistic drawn far from its initial value."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    for name, tensor in model.state_dict().items():
        drawn = torch.rand(tensor.shape, generator=generator)
        if name.endswith("num_batches_tracked"):
            tensor.fill_(7)
        elif tensor.dim() > 1:
            tensor.copy_((drawn - 0.5) * (12 * 2 / tensor[0].numel()) ** 0.5)
        else:
            tensor.copy_(0.5 + drawn)
    return model.eval()


def pictures(batch: int, canvas: tuple[int, int] = (70, 95)) -> Tensor:
    return torch.randn(batch, 3, *canvas, generator=torch.Generator().manual_seed(batch))


def relative_error(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape
    return ((found - expected).abs().max() / expected.abs().max()).item()


@torch.no_grad()
def run(model: nn.Module, images: Tensor) -> list[Tensor]:
    return model(images)


def test_maps_have_the_stated_channels_and_strides_rounded_up() -> None:
    model = ResNet(TINY)
    maps = run(model, pictures(1))
    assert [tuple(found.shape[1:]) for found in maps] == [
        (16, 18, 24),
        (32, 9, 12),
        (64, 5, 6),
        (128, 3, 3),
    ]
    assert model.channels == (16, 32, 64, 128)
    assert model.strides == (4, 8, 16, 32)


def test_only_the_returned_stages_are_handed_out_and_nothing_beyond_them_is_built() -> None:
    model = ResNet(ResNetConfig((1, 2, 1, 2), (16, 32, 64, 128), 8, returned=(1, 3)))
    maps = run(model, pictures(1))
    assert [found.shape[1] for found in maps] == [16, 64]
    assert (model.channels, model.strides) == ((16, 64), (4, 16))
    assert len(model.stages) == 3


def test_a_dilated_last_stage_keeps_the_stride_of_the_one_before() -> None:
    model = ResNet(ResNetConfig((1, 2, 1, 2), (16, 32, 64, 128), 8, dilated=True))
    assert model.strides == (4, 8, 16, 16)
    assert [tuple(found.shape[2:]) for found in run(model, pictures(1))][2:] == [(5, 6), (5, 6)]
    convs = [module for module in model.stages[3].modules() if isinstance(module, nn.Conv2d)]
    assert [conv.dilation for conv in convs if conv.kernel_size == (3, 3)] == [(1, 1), (2, 2)]


@pytest.mark.parametrize("kind", [{"widths": (8,)}, {"returned": (2, 1)}, {"returned": (0, 1)}])
def test_impossible_stages_are_refused(kind: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="stage"):
        ResNetConfig(**{"depths": (1, 1), "widths": (8, 8), "returned": (1, 2)} | kind)


def test_basic_blocks_cannot_be_dilated() -> None:
    with pytest.raises(ValueError, match="basic blocks cannot be dilated"):
        ResNetConfig(basic=True, dilated=True)


def test_frozen_norm_equals_batch_norm_in_eval_mode_under_the_same_names() -> None:
    theirs = lively(nn.BatchNorm2d(8))
    ours = FrozenBatchNorm(8)
    state = theirs.state_dict()
    del state["num_batches_tracked"]
    ours.load_state_dict(state)
    x = torch.randn(2, 8, 5, 7)
    with torch.no_grad():
        assert relative_error(ours(x), theirs(x)) <= 1e-6


@pytest.mark.parametrize("trained", [False, True], ids=["frozen", "trained batch norm"])
@pytest.mark.parametrize("config", [TINY, BASIC], ids=["bottleneck", "basic"])
def test_folding_changes_no_output_and_leaves_no_norm(config: ResNetConfig, trained: bool) -> None:
    model = ResNet(config)
    if trained:
        for module in model.modules():
            if isinstance(module, ConvNorm):
                module.norm = nn.BatchNorm2d(module.conv.out_channels)
    lively(model)
    before = run(model, pictures(2))
    fold_norms(model)
    assert not any(isinstance(m, FrozenBatchNorm | nn.BatchNorm2d) for m in model.modules())
    for found, expected in zip(run(model, pictures(2)), before, strict=True):
        assert relative_error(found, expected) <= 1e-5


def test_a_batch_of_three_equals_three_batches_of_one() -> None:
    model = lively(ResNet(TINY))
    together = run(model, pictures(3))
    for index, image in enumerate(pictures(3)):
        for found, expected in zip(run(model, image[None]), together, strict=True):
            assert relative_error(found[0], expected[index]) <= 1e-6


class Last(nn.Module):
    """The coarsest map by name, as the exporter wants it."""

    def __init__(self, model: ResNet) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"last": self.model(images)[-1]}


def test_folded_backbone_exports_as_convolutions_and_residual_sums_alone(tmp_path: Path) -> None:
    model = lively(ResNet(TINY))
    fold_norms(model)
    graph = trace(Last(model), {"images": pictures(2)})
    kinds = [node.op_type for node in graph.graph]
    assert set(kinds) == {"Conv", "Relu", "MaxPool", "Add"}
    assert kinds.count("Add") == sum(TINY.depths)
    assert all(len(node.inputs) == 3 for node in graph.graph if node.op_type == "Conv")
    save({"model.onnx": graph}, tmp_path)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    (found,) = session.run(None, {"images": pictures(3).numpy()})
    expected = run(model, pictures(3))[-1]
    assert relative_error(torch.from_numpy(np.asarray(found)), expected) <= 1e-5


def reference(config: ResNetConfig) -> Any:
    made = transformers.ResNetConfig(
        embedding_size=config.stem_width,
        hidden_sizes=list(config.widths),
        depths=list(config.depths),
        layer_type="basic" if config.basic else "bottleneck",
        out_features=[f"stage{stage}" for stage in config.returned],
    )
    return lively(transformers.ResNetBackbone(made))


def load(tensors: dict[str, Tensor], prefix: str, config: ResNetConfig) -> ResNet:
    reader = StrictReader(tensors, "a test")
    model = ResNet(config)
    model.load_state_dict(resnet_weights(reader, prefix, config))
    aside = reader.finish(batch_counters(reader))
    assert all(name.endswith("num_batches_tracked") for name in aside)
    return model.eval()


@pytest.mark.parametrize("config", [TINY, BASIC], ids=["bottleneck", "basic"])
def test_maps_equal_those_of_transformers_at_two_canvases(config: ResNetConfig) -> None:
    theirs = reference(config)
    tensors = {f"a.b.{name}": tensor for name, tensor in theirs.state_dict().items()}
    ours = load(tensors, "a.b.", config)
    assert resnet_config({"backbone_config": theirs.config.to_dict()}, config.returned) == config
    for images in (pictures(1), pictures(3, (64, 96))):
        with torch.no_grad():
            expected = theirs(images).feature_maps
        for found, map_ in zip(run(ours, images), expected, strict=True):
            assert relative_error(found, map_) <= 1e-5


def test_a_missing_and_a_surplus_weight_are_both_named() -> None:
    tensors = dict(reference(TINY).state_dict())
    tensors["encoder.stages.4.weight"] = tensors.pop("embedder.embedder.convolution.weight")
    with pytest.raises(CheckpointError, match=r"missing: embedder.*unexpected: encoder.stages.4"):
        load(tensors, "", TINY)


def test_published_backbones_of_timm_are_known_by_name_with_or_without_a_tag() -> None:
    for config in ({}, {"use_timm_backbone": True, "backbone": "resnet50.a1_in1k"}):
        assert resnet_config(config) == ResNetConfig()
    named = {"backbone_config": {"model_type": "timm_backbone", "backbone": "resnet101"}}
    assert resnet_config(named, (4,)) == ResNetConfig((3, 4, 23, 3), returned=(4,))
    with torch.device("meta"):
        counts = {
            name: sum(parameter.numel() for parameter in ResNet(config).parameters())
            for name, config in BY_NAME.items()
        }
    assert counts["resnet50"] + 2048 * 1000 + 1000 == 25_557_032  # with the classifier
    assert counts["resnet18"] + 512 * 1000 + 1000 == 11_689_512


@pytest.mark.parametrize(
    "config",
    [
        {"dilation": True},
        {"backbone_kwargs": {"output_stride": 16}},
        {"backbone_config": {"model_type": "timm_backbone", "backbone": "resnet50"}}
        | {"dilation": True},
    ],
)
def test_dilation_is_read_from_every_place_where_configs_keep_it(config: dict[str, Any]) -> None:
    assert resnet_config(config) == ResNetConfig(dilated=True)


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"backbone": "resnet50d"}, r"the timm backbone is 'resnet50d'; supported are resnet18"),
        ({"backbone_kwargs": {"output_stride": 8}}, "output_stride is 8; supported are 16 and 32"),
        ({"backbone": "resnet18", "dilation": True}, "basic blocks cannot be dilated"),
        ({"backbone_config": {"model_type": "swin"}}, "of type 'swin'; supported here is 'resnet'"),
        ({"backbone_config": {"model_type": "resnet"}, "dilation": True}, "asks for dilation"),
        ({"backbone_config": {"downsample_in_bottleneck": True}}, "downsample_in_bottleneck True"),
        ({"backbone_config": {"hidden_act": "gelu"}}, "hidden_act 'gelu'; supported is 'relu'"),
        ({"backbone_config": {"layer_type": "wide"}}, "layer_type 'wide'; supported are basic and"),
        ({"backbone_config": {"depths": [1, 2]}}, "cannot be built: 2 depths but 4 widths"),
    ],
)
def test_backbones_beyond_the_definition_are_refused(config: dict[str, Any], sentence: str) -> None:
    with pytest.raises(CheckpointError, match=sentence):
        resnet_config(config)
