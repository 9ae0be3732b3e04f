"""Residual network as a backbone (He et al. 2015, arXiv 1512.03385, section 3.3 and table 1).

The stride of a bottleneck is in its 3x3 convolution, as in every published checkpoint that
detectors build on. Batch norm keeps fixed statistics: a scale and a shift per channel.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class ResNetConfig:
    """Dimensions of one backbone: blocks and output channels by stage.

    A bottleneck is a quarter as wide as its stage; ``basic`` blocks are two 3x3 convolutions as
    wide as theirs. ``returned`` are the stages, counted from 1, whose maps are handed out. With
    ``dilated`` the last stage does not reduce and spreads its 3x3 convolutions instead (DC5: Carion
    et al. 2020, arXiv 2005.12872, section 4).
    """

    depths: tuple[int, ...] = (3, 4, 6, 3)
    widths: tuple[int, ...] = (256, 512, 1024, 2048)
    stem_width: int = 64
    basic: bool = False
    dilated: bool = False
    returned: tuple[int, ...] = (1, 2, 3, 4)

    def __post_init__(self) -> None:
        stages = len(self.depths)
        if len(self.widths) != stages:
            raise ValueError(f"{stages} depths but {len(self.widths)} widths; one each per stage")
        if self.basic and self.dilated:
            raise ValueError("basic blocks cannot be dilated; bottlenecks can")
        known = [stage for stage in range(1, stages + 1) if stage in self.returned]
        if not known or known != list(self.returned):
            raise ValueError(f"stages {self.returned} are not rising numbers from 1 to {stages}")

    @property
    def strides(self) -> tuple[int, ...]:
        """Pixels between the cells of every returned map."""
        last = len(self.depths)
        return tuple(2 ** (stage + 1 - (self.dilated and stage == last)) for stage in self.returned)


RESNET50 = ResNetConfig()
RESNET101 = ResNetConfig(depths=(3, 4, 23, 3))


class FrozenBatchNorm(nn.Module):
    """Batch norm that never updates its statistics (Ioffe and Szegedy 2015, arXiv 1502.03167,
    section 3.1). Names are those of nn.BatchNorm2d, which can stand in its place while training.
    """

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.running_mean = nn.Buffer(torch.zeros(channels))
        self.running_var = nn.Buffer(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:  # (B, C, h, w) -> (B, C, h, w)
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        shift = self.bias - self.running_mean * scale
        return x * scale[:, None, None] + shift[:, None, None]


class ConvNorm(nn.Module):
    """A convolution and its batch norm; after ``fold`` a convolution alone."""

    def __init__(
        self, inputs: int, outputs: int, size: int, stride: int = 1, dilation: int = 1
    ) -> None:
        super().__init__()
        padding = dilation * (size // 2)
        self.conv = nn.Conv2d(inputs, outputs, size, stride, padding, dilation, bias=False)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")
        self.norm: nn.Module = FrozenBatchNorm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))

    @torch.no_grad()
    def fold(self) -> None:
        """Put the norm, frozen or a trained nn.BatchNorm2d, into the convolution's weights."""
        norm = self.norm
        if not isinstance(norm, FrozenBatchNorm | nn.BatchNorm2d):
            return
        mean, variance = norm.running_mean, norm.running_var
        assert mean is not None
        assert variance is not None
        scale = norm.weight * (variance + norm.eps).rsqrt()
        self.conv.weight = nn.Parameter(self.conv.weight * scale[:, None, None, None])
        self.conv.bias = nn.Parameter(norm.bias - mean * scale)
        self.norm = nn.Identity()


def fold_norms(model: nn.Module) -> None:
    """Fold every batch norm within ``model`` that follows a convolution; outputs stay the same.

    Training ends here: the network's state has other names afterwards.
    """
    for module in model.modules():
        if isinstance(module, ConvNorm):
            module.fold()


class Block(nn.Module):
    """``relu(x + F(x))`` (arXiv 1512.03385, eq. 1-2), with a projected shortcut where the shape
    changes.
    """

    def __init__(
        self, inputs: int, outputs: int, stride: int, dilation: int, basic: bool = False
    ) -> None:
        super().__init__()
        if basic:
            first = ConvNorm(inputs, outputs, 3, stride, dilation)
            layers = [first, ConvNorm(outputs, outputs, 3, 1, dilation)]
        else:
            inner = outputs // 4
            layers = [
                ConvNorm(inputs, inner, 1),
                ConvNorm(inner, inner, 3, stride, dilation),
                ConvNorm(inner, outputs, 1),
            ]
        self.layers = nn.ModuleList(layers)
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else ConvNorm(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:  # (B, C, h, w) -> (B, C', h/s, w/s)
        y = x
        for layer in self.layers[:-1]:
            y = layer(y).relu()
        return (self.layers[-1](y) + self.shortcut(x)).relu()


class ResNet(nn.Module):
    """Images (B, 3, H, W), normalised, to the returned stages' maps (B, C, H/s, W/s), finest first;
    sides that do not divide are rounded up.
    """

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__()
        self.config = config
        self.channels = tuple(config.widths[stage - 1] for stage in config.returned)
        self.strides = config.strides
        self.stem = ConvNorm(3, config.stem_width, 7, stride=2)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        inputs = (config.stem_width, *config.widths[:-1])
        self.stages = nn.ModuleList(
            _stage(config, stage, inputs[stage - 1]) for stage in range(1, config.returned[-1] + 1)
        )

    def forward(self, images: Tensor) -> list[Tensor]:
        x = self.pool(self.stem(images).relu())
        maps = []
        for number, stage in enumerate(self.stages, start=1):
            x = stage(x)
            if number in self.config.returned:
                maps.append(x)
        return maps


def _stage(config: ResNetConfig, stage: int, inputs: int) -> nn.Sequential:
    """A dilated stage begins with a block that is not: it stands where the stride was."""
    dilated = config.dilated and stage == len(config.depths)
    stride = 1 if stage == 1 or dilated else 2
    width = config.widths[stage - 1]
    dilation = 2 if dilated else 1
    return nn.Sequential(
        Block(inputs, width, stride, 1, config.basic),
        *(
            Block(width, width, 1, dilation, config.basic)
            for _ in range(config.depths[stage - 1] - 1)
        ),
    )
