"""The demo models as they were trained; weights that a folder already has are taken as they are."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from rich.console import Console
from torch import Tensor, nn

from export.demo.pool import Examples, cached_examples
from export.demo.training.batches import batches, normalized
from export.demo.training.classify import SwinLesson, initialize_swin, swin_config, top1
from export.demo.training.detect import (
    BackboneLesson,
    DetectLesson,
    detector_config,
    frozen,
    learn_statistics,
    precision,
)
from export.demo.training.loop import Figures, Recipe, fit
from export.demo.training.segment import SegmentLesson, begin_with, mask2former_config, quality
from export.demo.training.vit import VitLesson, initialize_vit, vit_config, whiten
from models.deformable_detr import DeformableDetr
from models.mask2former import Mask2Former
from models.swin import SwinClassifier
from models.vit import ViT

VIT = Recipe(scenes=16384, steps=5000, warmup_steps=200, muon_rate=1e-2)
SWIN = Recipe(steps=2400, stop=800, warmup_steps=200, muon_rate=1e-2, adam_rate=1.5e-3)
RESNET = Recipe(steps=1500, stop=800, adam_rate=2e-3)
DETECTOR = Recipe(steps=1300, stop=1200, batch=32)
# What the packaged segmenter learned by differed in the course of its 2050 steps: the token heads
# joined at 600; losses were the mean over the layers until 800, then their sum; from 900 on two
# processes averaged the gradients of 16 pictures each; the rate fell to nothing at 1550, where the
# packaged classifier was taken, and rose once more. This recipe has not been run from start to end.
SEGMENTER = Recipe(steps=2050, batch=32, seed=1)

Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True)
class School:
    """Where weights and examples are kept, and what trains.

    ``threads`` are those of the CPU, and the processes that draw.
    """

    work: Path
    threads: int
    console: Console

    def vit(self) -> ViT:
        """The ViT classifier."""
        model = ViT(vit_config())

        def teach() -> None:
            torch.manual_seed(VIT.seed)
            initialize_vit(model)
            examples, validation = self._examples(model.config.canvas, VIT)
            whiten(model, normalized(torch.from_numpy(examples.images[:512])))
            matrices = matrices_of(model.blocks)
            lesson = VitLesson(model)
            self._fit("vit", lesson, matrices, examples, VIT, lambda: top1(model, validation))

        return self._taught("vit", model, teach)

    def swin(self) -> SwinClassifier:
        """The Swin classifier, which ends its training within the segmenter's."""
        model = SwinClassifier(swin_config())
        return self._taught("swin", model, self._teach_swin_and_segmenter)

    def segmenter(self) -> Mask2Former:
        """Mask2Former on the classifier's trunk."""
        model = Mask2Former(mask2former_config())
        return self._taught("mask2former", model, self._teach_swin_and_segmenter)

    def detector(self) -> DeformableDetr:
        """Deformable DETR in two stages."""
        model = DeformableDetr(detector_config())
        return self._taught("detr", model, self._teach_detector)

    def _teach_swin_and_segmenter(self) -> None:
        classifier = SwinClassifier(swin_config())
        torch.manual_seed(SWIN.seed)
        initialize_swin(classifier)
        first = SwinLesson(classifier)
        examples, validation = self._examples(classifier.config.canvas, SWIN)
        matrices = matrices_of(classifier.trunk)
        self._fit("swin", first, matrices, examples, SWIN, lambda: top1(classifier, validation))
        torch.manual_seed(SEGMENTER.seed)
        model = Mask2Former(mask2former_config())
        lesson = SegmentLesson(model, SwinClassifier(swin_config()))
        begin_with(lesson, first)
        parts = (lesson.classifier.trunk, model.layers, model.pixel_decoder.layers)
        matrices = [matrix for part in parts for matrix in matrices_of(part)]
        self._fit(
            "mask2former",
            lesson,
            matrices,
            examples,
            SEGMENTER,
            lambda: quality(model, validation) | top1(lesson.classifier, validation),
        )
        torch.save(model.state_dict(), self._weights("mask2former"))
        torch.save(lesson.classifier.state_dict(), self._weights("swin"))

    def _teach_detector(self) -> None:
        torch.manual_seed(DETECTOR.seed)
        model = DeformableDetr(detector_config())
        learn_statistics(model)
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        examples, validation = self._examples(model.config.canvas, DETECTOR)
        first = BackboneLesson(model.backbone)
        self._fit("resnet", first, [], examples, RESNET, dict)
        lesson = DetectLesson(model)
        lesson.cell_heads.load_state_dict(first.cell_heads.state_dict())
        matrices = [*matrices_of(model.encoder), *matrices_of(model.decoder)]
        self._fit(
            "detr", lesson, matrices, examples, DETECTOR, lambda: precision(model, validation)
        )
        torch.save(frozen(model.state_dict()), self._weights("detr"))

    def _taught(self, name: str, model: Model, teach: Callable[[], None]) -> Model:
        """The model with its weights, which ``teach`` leaves in the folder or in the model."""
        path = self._weights(name)
        if not path.exists():
            torch.set_num_threads(self.threads)
            teach()
        if path.exists():
            model.load_state_dict(torch.load(path, weights_only=True))
        else:
            torch.save(model.state_dict(), path)
        return model.eval()

    def _fit(
        self,
        name: str,
        lesson: nn.Module,
        matrices: Iterable[Tensor],
        examples: Examples,
        recipe: Recipe,
        validate: Callable[[], Figures],
    ) -> None:
        self.console.print(f"training {name}, {recipe.steps} steps")
        state = self.work / f"{name}.state.pt"
        draw = partial(batches, examples, recipe.batch)
        fit(lesson, matrices, draw, recipe, validate, state, self.console)

    def _examples(self, canvas: tuple[int, int], recipe: Recipe) -> tuple[Examples, Examples]:
        """For training and for validation."""
        return (
            cached_examples(self.work, "train", recipe.scenes, canvas, self.threads),
            cached_examples(
                self.work, "validation", recipe.validation_scenes, canvas, self.threads
            ),
        )

    def _weights(self, name: str) -> Path:
        return self.work / f"{name}.pt"


def matrices_of(module: nn.Module) -> list[Tensor]:
    """Weights of the linear layers for Muon: all but those that say where deformable attention
    looks and how it weighs, which start at zero and move best one by one.
    """
    return [
        layer.weight
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear) and name.rpartition(".")[2] not in ("offsets", "weights")
    ]
