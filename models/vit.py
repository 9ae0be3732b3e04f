"""Vision Transformer and the relatives that share its body.

Dosovitskiy et al. 2020, arXiv 2010.11929, eq. 1-4; DeiT and its distilled form: Touvron et al.
2020, arXiv 2012.12877; mean-pooled fine-tuning of MAE: He et al. 2021, arXiv 2111.06377; DINOv2:
Oquab et al. 2023, arXiv 2304.07193; registers: Darcet et al. 2023, arXiv 2309.16588.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from models.layers import Attention, LayerScale, Mlp, SwiGlu

Pool = Literal["class", "distilled", "mean", "class_and_mean"]


@dataclass(frozen=True)
class ViTConfig:
    """Dimensions of one network at one canvas; ``canvas`` is (height, width) in pixels.

    ``pool`` says what the head reads: the class token; class and distillation token through a head
    each, averaged (DeiT); the mean of the patch tokens, normalised after pooling (MAE); or class
    token and patch mean side by side (DINOv2). ``classes`` is 0 for a network without a head.
    """

    canvas: tuple[int, int]
    patch_size: int
    dim: int
    depth: int
    heads: int
    mlp_dim: int
    classes: int = 0
    pool: Pool = "class"
    registers: int = 0
    layer_scale: bool = False
    swiglu: bool = False
    norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        if self.canvas[0] % self.patch_size or self.canvas[1] % self.patch_size:
            raise ValueError(
                f"canvas {self.canvas[0]}x{self.canvas[1]} is not a multiple of the patch size "
                f"{self.patch_size}; the nearest below is "
                f"{self._floor(self.canvas[0])}x{self._floor(self.canvas[1])}"
            )
        if self.dim % self.heads:
            raise ValueError(f"width {self.dim} does not divide into {self.heads} heads")

    @property
    def grid(self) -> tuple[int, int]:
        """Patches down and across."""
        return self.canvas[0] // self.patch_size, self.canvas[1] // self.patch_size

    @property
    def class_tokens(self) -> int:
        """Leading tokens that carry a position of their own: class, and distillation where there is
        one.
        """
        return 2 if self.pool == "distilled" else 1

    @property
    def prefix_tokens(self) -> int:
        """Tokens before the first patch."""
        return self.class_tokens + self.registers

    def _floor(self, side: int) -> int:
        return max(side // self.patch_size, 1) * self.patch_size


class Block(nn.Module):
    """Pre-norm encoder block (arXiv 2010.11929, eq. 2-3), with LayerScale where the config asks for
    it.
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        dim = config.dim
        self.norm1 = nn.LayerNorm(dim, eps=config.norm_eps)
        self.attn = Attention(dim, config.heads)
        self.scale1 = LayerScale(dim) if config.layer_scale else nn.Identity()
        self.norm2 = nn.LayerNorm(dim, eps=config.norm_eps)
        self.mlp = SwiGlu(dim, config.mlp_dim) if config.swiglu else Mlp(dim, config.mlp_dim)
        self.scale2 = LayerScale(dim) if config.layer_scale else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:  # (B, N, D) -> (B, N, D)
        x = x + self.scale1(self.attn(self.norm1(x)))
        return x + self.scale2(self.mlp(self.norm2(x)))

    def forward_with_weights(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """As ``forward``, with the attention matrix (B, h, N, N) beside the output."""
        attended, weights = self.attn.forward_with_weights(self.norm1(x))
        x = x + self.scale1(attended)
        return x + self.scale2(self.mlp(self.norm2(x))), weights


class ViT(nn.Module):
    """Images (B, 3, H, W), normalised, to named tensors.

    ``tokens`` (B, N, D) after the final norm (before it where ``pool`` is "mean"), ``embedding``
    (B, D; 2 D for "class_and_mean"), ``attention`` (B, h, P) of the last block's class token to the
    P patches, and, where there is a head, ``logits`` (B, K).
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = config
        dim, patches = config.dim, config.grid[0] * config.grid[1]
        self.patch_embed = nn.Conv2d(3, dim, config.patch_size, stride=config.patch_size)
        self.class_tokens = nn.Parameter(torch.zeros(1, config.class_tokens, dim))
        self.positions = nn.Parameter(torch.zeros(1, config.class_tokens + patches, dim))
        self.registers = (
            nn.Parameter(torch.zeros(1, config.registers, dim)) if config.registers else None
        )
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(dim, eps=config.norm_eps)
        heads = config.class_tokens if config.classes else 0
        width = 2 * dim if config.pool == "class_and_mean" else dim
        self.heads = nn.ModuleList(nn.Linear(width, config.classes) for _ in range(heads))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        x = self._embed(images)
        for block in self.blocks[:-1]:
            x = block(x)
        last: Block = self.blocks[-1]  # type: ignore[assignment]
        attention = last.attn.first_row(last.norm1(x))[:, :, self.config.prefix_tokens :]
        return self._pool(last(x)) | {"attention": attention}

    def explain(self, images: Tensor, query: Tensor) -> dict[str, Tensor]:
        """Attention of one token per image to the patches: every layer's, and the rollout over all
        of them.

        ``query`` (B,) is the token's place in the sequence: 0 the class token, then distillation
        token or registers, then patches row by row. Returns ``attention`` (B, L, h, P) and
        ``rollout`` (B, P), the row of the query in A'_L ... A'_1 with A' = (mean over heads of A +
        I) / 2 (Abnar and Zuidema 2020, arXiv 2005.00928, section 3).
        """
        x = self._embed(images)
        prefix = self.config.prefix_tokens
        identity = torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
        rollout = identity.expand(x.shape[0], -1, -1)
        rows = []
        for block in self.blocks:
            x, weights = block.forward_with_weights(x)  # type: ignore[operator]
            index = query.view(-1, 1, 1, 1).expand(-1, weights.shape[1], 1, weights.shape[3])
            rows.append(weights.gather(2, index)[:, :, 0, prefix:])
            rollout = (weights.mean(dim=1) + identity) / 2 @ rollout
        index = query.view(-1, 1, 1).expand(-1, 1, rollout.shape[2])
        return {
            "attention": torch.stack(rows, dim=1),
            "rollout": rollout.gather(1, index)[:, 0, prefix:],
        }

    def _embed(self, images: Tensor) -> Tensor:
        x = self.patch_embed(images).flatten(2).transpose(1, 2)  # (B, P, D)
        x = torch.cat([self.class_tokens.expand(x.shape[0], -1, -1), x], dim=1) + self.positions
        if self.registers is None:
            return x
        first = self.config.class_tokens
        return torch.cat(
            [x[:, :first], self.registers.expand(x.shape[0], -1, -1), x[:, first:]], dim=1
        )

    def _pool(self, x: Tensor) -> dict[str, Tensor]:
        patches = slice(self.config.prefix_tokens, None)
        if self.config.pool == "mean":
            tokens, embedding = x, self.norm(x[:, patches].mean(dim=1))
        else:
            tokens = self.norm(x)
            embedding = tokens[:, 0]
        if self.config.pool == "class_and_mean":
            embedding = torch.cat([embedding, tokens[:, patches].mean(dim=1)], dim=-1)
        named = {"tokens": tokens, "embedding": embedding}
        if self.config.pool == "distilled" and self.heads:
            named["logits"] = (self.heads[0](tokens[:, 0]) + self.heads[1](tokens[:, 1])) / 2
        elif self.heads:
            named["logits"] = self.heads[0](embedding)
        return named
