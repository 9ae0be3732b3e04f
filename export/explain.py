"""What can be explained of a loaded network: the kinds of maps, and inputs of the graph that makes
them.
"""

from collections.abc import Sequence
from inspect import signature

import numpy as np
import torch
from torch import Tensor

from models.checkpoints import Loaded
from models.deformable_detr import DeformableDetr, DeformableDetrConfig
from models.detr import Detr
from models.mask2former import Mask2Former
from models.maskformer import MaskFormer
from models.swin import SwinClassifier
from models.vit import ViT
from service.bundle import Graph
from service.explain import Explain, Kind, Layer
from service.geometry import Size
from service.worker.runtimes.base import Arrays


def explain_section(loaded: Loaded) -> Explain:
    """The kinds of maps that the network's ``explain`` gives, the most telling first."""
    model = loaded.model
    if isinstance(model, ViT):
        return _of_vit(model, loaded.family)
    if isinstance(model, SwinClassifier):
        return _of_swin(model)
    if isinstance(model, Detr | DeformableDetr):
        return _of_detector(model)
    assert isinstance(model, Mask2Former | MaskFormer)
    return _of_segmenter(model)


def explain_examples(loaded: Loaded, canvas: Size, padded: bool) -> dict[str, Tensor]:
    """Inputs of an explain graph, two pictures, for the tracer."""
    taken = signature(loaded.model.explain).parameters  # type: ignore[arg-type]
    images = torch.zeros(2, canvas.height, canvas.width, 3, dtype=torch.uint8)
    examples = {"images": images}
    if padded:
        size = torch.tensor([canvas.height, canvas.width], dtype=torch.int32)
        examples["sizes"] = size.repeat(2, 1)
    if "query" in taken:
        examples["query"] = torch.zeros(2, dtype=torch.int64)
    if "place" in taken:
        examples["place"] = torch.full((2, 2), 0.5)
    return examples


def proof_inputs(graph: Graph, count: int) -> Arrays:
    """What an explain graph takes besides pictures and sizes, for ``count`` pictures.

    Tokens from the first to the last of a sequence, or else the best and then the first objects or
    classes, and places all over the canvas.
    """
    named = {tensor.name for tensor in graph.inputs}
    sequence = [tensor.shape[-1] for tensor in graph.outputs if tensor.name == "rollout"]
    inputs: Arrays = {}
    if "query" in named:
        tokens = np.linspace(0, sequence[0], count) if sequence else np.arange(count) % 3 - 1
        inputs["query"] = tokens.astype(np.int64)
    if "place" in named:
        steps = (np.arange(count)[:, None] * (0.382, 0.618) + 0.5) % 1
        inputs["place"] = steps.astype(np.float32)
    return inputs


def _of_vit(model: ViT, family: str) -> Explain:
    config = model.config
    # A distilled DeiT whose head reads only the class token holds its second token as a register.
    distilled = config.class_tokens == 2 or family == "deit"
    others = ["distillation"] * distilled + ["register"] * config.registers
    layers = [
        Layer(output="attention", index=index, heads=config.heads, stride=config.patch_size)
        for index in range(config.depth)
    ]
    layers[-1] = layers[-1].model_copy(update={"served": "attention"})
    rollout = Layer(output="rollout", heads=0, stride=config.patch_size)
    return Explain(
        kinds=[
            Kind(name="raw", query="token", layers=layers),
            Kind(name="rollout", query="token", layers=[rollout]),
        ],
        prefix_tokens=["class", *others][: config.prefix_tokens],  # type: ignore[arg-type]
    )


def _of_swin(model: SwinClassifier) -> Explain:
    config = model.config
    strides = [config.patch_size * 2**stage for stage in range(len(config.depths))]
    stages = [stage for stage, depth in enumerate(config.depths) for _ in range(depth)]
    heads = [config.heads[stage] for stage in stages]
    pooled, raw = (
        _layers(name, heads, [strides[stage] for stage in stages])
        for name in ("pooled", "attention")
    )
    kinds = [
        Kind(name="pooled", query="all", layers=pooled),
        Kind(name="raw", query="place", layers=raw),
    ]
    if config.classes:
        cam = Layer(output="cam", heads=0, stride=strides[-1])
        kinds.insert(1, Kind(name="cam", query="class", layers=[cam]))
    return Explain(kinds=kinds)


def _of_detector(model: Detr | DeformableDetr) -> Explain:
    config = model.config
    # Deformable attention is shown on the finest grid, DETR has one.
    stride = config.backbone.strides[0 if isinstance(model, DeformableDetr) else -1]
    decoder, encoder = (
        _layers(name, [config.heads] * count, [stride] * count)
        for name, count in (("decoder", config.decoder_layers), ("encoder", config.encoder_layers))
    )
    queries = config.queries
    if isinstance(config, DeformableDetrConfig) and config.two_stage:  # named by their cells
        queries = sum(height * width for height, width in config.grids)
    return Explain(
        kinds=[
            Kind(name="decoder", query="object", queries=queries, layers=decoder),
            Kind(name="encoder", query="place", layers=encoder),
        ]
    )


def _of_segmenter(model: Mask2Former | MaskFormer) -> Explain:
    config, strides = model.config, model.backbone.strides
    count = config.decoder_layers
    if isinstance(model, Mask2Former):  # coarse to fine, again and again
        seen = strides[: -len(model.pixel_decoder.grids) - 1 : -1]
        looks = [seen[index % len(seen)] for index in range(count)]
        stages = count + 1
    else:
        looks, stages = [strides[-1]] * count, count
    decoder = _layers("decoder", [config.heads] * count, looks)
    masks = _layers("mask", [0] * stages, [strides[0]] * stages)
    return Explain(
        kinds=[
            Kind(name="decoder", query="object", queries=config.queries, layers=decoder),
            Kind(name="mask", query="object", queries=config.queries, layers=masks),
        ]
    )


def _layers(name: str, heads: Sequence[int], strides: Sequence[int]) -> list[Layer]:
    return [
        Layer(output=f"{name}.{index}", heads=count, stride=stride)
        for index, (count, stride) in enumerate(zip(heads, strides, strict=True))
    ]
