"""Random checkpoints as transformers writes them, and their exports; tracing is what costs."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from torch import nn
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.deit.image_processing_pil_deit import DeiTImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from export.build import export_bundle
from export.plan import Wishes
from service.bundle import Bundle

BODY = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "patch_size": 16}
HEAD = {"id2label": {i: f"class {i}" for i in range(5)}, "intermediate_size": 96}
LABEL2ID = {"label2id": {f"class {i}": i for i in range(5)}}
SIDE = 64


@dataclass
class Recorder:
    """A ``Progress`` that remembers."""

    steps: list[str] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)

    def step(self, text: str) -> None:
        self.steps.append(text)

    def notice(self, text: str) -> None:
        self.notices.append(text)


@dataclass(frozen=True)
class Reference:
    """A checkpoint folder, and what transformers makes of it."""

    folder: Path
    model: Any
    processor: Any

    def run(self, image: Image.Image) -> dict[str, "np.ndarray[Any, np.dtype[np.float32]]"]:
        """``logits`` or ``embedding``, and ``attention`` (1, L, h, N, N)."""
        pixels = self.processor(image, return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            output = self.model(pixels, output_attentions=True)
        attention = torch.stack(output.attentions, dim=1)
        named = {"attention": attention}
        if "logits" in output:
            named["logits"] = output.logits
        else:
            named["embedding"] = output.last_hidden_state[:, 0]
        return {name: tensor.numpy() for name, tensor in named.items()}


def lively(model: nn.Module) -> Any:
    """Weights large enough that every layer changes the answer."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        offset = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        parameter.data = offset + 0.2 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


@pytest.fixture(scope="session")
def references(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Reference]:
    """A squashing ViT, a cropping distilled DeiT, and a DINOv2 without a head."""
    eager = {"attn_implementation": "eager"}
    vit = transformers.ViTConfig(**BODY, **HEAD, **LABEL2ID, image_size=SIDE, **eager)
    deit = transformers.DeiTConfig(**BODY, **HEAD, **LABEL2ID, image_size=SIDE, **eager)
    dinov2 = transformers.Dinov2Config(
        **BODY | {"patch_size": 14}, mlp_ratio=2, image_size=56, **eager
    )
    made = {
        "vit": (
            transformers.ViTForImageClassification(vit),
            ViTImageProcessorPil(size={"height": SIDE, "width": SIDE}),
        ),
        "deit": (
            transformers.DeiTForImageClassificationWithTeacher(deit),
            DeiTImageProcessorPil(
                size={"height": 73, "width": 73}, crop_size={"height": SIDE, "width": SIDE}
            ),
        ),
        "dinov2": (
            transformers.Dinov2Model(dinov2),
            BitImageProcessorPil(size={"shortest_edge": 64}, crop_size={"height": 56, "width": 56}),
        ),
    }
    root = tmp_path_factory.mktemp("checkpoints")
    found = {}
    for name, (model, processor) in made.items():
        folder = root / name
        lively(model).save_pretrained(folder)
        processor.save_pretrained(folder)
        (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
        assert json.loads((folder / "preprocessor_config.json").read_text())
        found[name] = Reference(folder, model, processor)
    return found


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where ``bundles`` lie; tests may add versions and names."""
    return tmp_path_factory.mktemp("repository")


@pytest.fixture(scope="session")
def recorder() -> Recorder:
    """What the export of "vit" told."""
    return Recorder()


@pytest.fixture(scope="session")
def bundles(
    references: dict[str, Reference], repository: Path, recorder: Recorder
) -> dict[str, Bundle]:
    """Every reference exported: the ViT at its own canvas and a wider one, DINOv2 for "embed"."""
    return {
        "vit": export_bundle(
            references["vit"].folder,
            repository,
            canvases=[(SIDE, SIDE), (64, 96)],
            progress=recorder,
        ),
        "deit": export_bundle(references["deit"].folder, repository, precisions=["fp32"]),
        "dinov2": export_bundle(
            references["dinov2"].folder, repository, name="features", wishes=Wishes(tasks=["embed"])
        ),
    }
