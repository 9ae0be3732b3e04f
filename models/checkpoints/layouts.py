"""Where each published format of a ViT keeps its weights: our names and theirs, side by side."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Layout:
    """One format of the body of a ViT.

    ``tokens`` are the leading tokens in their order in the sequence; ``names`` maps our modules
    or parameters to theirs, several of theirs being concatenated; ``{}`` is the block. Weights that
    begin with one of ``ignored`` are left out on purpose. ``antialias`` is the family's rule for
    resampling positions.
    """

    tokens: tuple[str, ...]
    positions: str
    names: dict[str, tuple[str, ...]]
    ignored: tuple[str, ...] = ()
    antialias: bool = False


def their_names(names: dict[str, tuple[str, ...]], ours: str, prefix: str = "") -> tuple[str, ...]:
    """The weights that make up our ``blocks.3.attn.qkv.weight``, by their names in the format."""
    block, key = "", ours
    if ours.startswith("blocks."):
        _, block, rest = ours.split(".", 2)
        key = f"blocks.{{}}.{rest}"
    if key in names:
        return tuple(prefix + name.format(block) for name in names[key])
    module, leaf = key.rsplit(".", 1)
    return tuple(f"{prefix}{name.format(block)}.{leaf}" for name in names[module])


# What transformers 4 writes, and 5 too by default: the names of the published checkpoints.
VIT = {
    "patch_embed": ("embeddings.patch_embeddings.projection",),
    "blocks.{}.norm1": ("encoder.layer.{}.layernorm_before",),
    "blocks.{}.attn.qkv": (
        "encoder.layer.{}.attention.attention.query",
        "encoder.layer.{}.attention.attention.key",
        "encoder.layer.{}.attention.attention.value",
    ),
    "blocks.{}.attn.proj": ("encoder.layer.{}.attention.output.dense",),
    "blocks.{}.norm2": ("encoder.layer.{}.layernorm_after",),
    "blocks.{}.mlp.fc1": ("encoder.layer.{}.intermediate.dense",),
    "blocks.{}.mlp.fc2": ("encoder.layer.{}.output.dense",),
    "norm": ("layernorm",),
}

# The same with save_pretrained(save_original_format=False) of transformers 5.
VIT_TRANSFORMERS_5 = {
    "patch_embed": ("embeddings.patch_embeddings.projection",),
    "blocks.{}.norm1": ("layers.{}.layernorm_before",),
    "blocks.{}.attn.qkv": (
        "layers.{}.attention.q_proj",
        "layers.{}.attention.k_proj",
        "layers.{}.attention.v_proj",
    ),
    "blocks.{}.attn.proj": ("layers.{}.attention.o_proj",),
    "blocks.{}.norm2": ("layers.{}.layernorm_after",),
    "blocks.{}.mlp.fc1": ("layers.{}.mlp.fc1",),
    "blocks.{}.mlp.fc2": ("layers.{}.mlp.fc2",),
    "norm": ("layernorm",),
}

DINOV2 = {
    "patch_embed": ("embeddings.patch_embeddings.projection",),
    "blocks.{}.norm1": ("encoder.layer.{}.norm1",),
    "blocks.{}.attn.qkv": (
        "encoder.layer.{}.attention.attention.query",
        "encoder.layer.{}.attention.attention.key",
        "encoder.layer.{}.attention.attention.value",
    ),
    "blocks.{}.attn.proj": ("encoder.layer.{}.attention.output.dense",),
    "blocks.{}.scale1.gamma": ("encoder.layer.{}.layer_scale1.lambda1",),
    "blocks.{}.norm2": ("encoder.layer.{}.norm2",),
    "blocks.{}.mlp.fc1": ("encoder.layer.{}.mlp.fc1",),
    "blocks.{}.mlp.fc2": ("encoder.layer.{}.mlp.fc2",),
    "blocks.{}.mlp.gate_and_value": ("encoder.layer.{}.mlp.weights_in",),
    "blocks.{}.mlp.out": ("encoder.layer.{}.mlp.weights_out",),
    "blocks.{}.scale2.gamma": ("encoder.layer.{}.layer_scale2.lambda1",),
    "norm": ("layernorm",),
}

DINOV2_TRANSFORMERS_5 = DINOV2 | {
    "blocks.{}.attn.qkv": (
        "encoder.layer.{}.attention.q_proj",
        "encoder.layer.{}.attention.k_proj",
        "encoder.layer.{}.attention.v_proj",
    ),
    "blocks.{}.attn.proj": ("encoder.layer.{}.attention.o_proj",),
    "blocks.{}.mlp.gate_and_value": (
        "encoder.layer.{}.mlp.gate_proj",
        "encoder.layer.{}.mlp.up_proj",
    ),
    "blocks.{}.mlp.out": ("encoder.layer.{}.mlp.down_proj",),
}

TIMM = {
    "patch_embed": ("patch_embed.proj",),
    "blocks.{}.norm1": ("blocks.{}.norm1",),
    "blocks.{}.attn.qkv": ("blocks.{}.attn.qkv",),
    "blocks.{}.attn.proj": ("blocks.{}.attn.proj",),
    "blocks.{}.scale1.gamma": ("blocks.{}.ls1.gamma",),
    "blocks.{}.norm2": ("blocks.{}.norm2",),
    "blocks.{}.mlp.fc1": ("blocks.{}.mlp.fc1",),
    "blocks.{}.mlp.fc2": ("blocks.{}.mlp.fc2",),
    "blocks.{}.mlp.gate_and_value": ("blocks.{}.mlp.fc1",),
    "blocks.{}.mlp.out": ("blocks.{}.mlp.fc2",),
    "blocks.{}.scale2.gamma": ("blocks.{}.ls2.gamma",),
    "norm": ("norm",),
    "heads.0": ("head",),
    "heads.1": ("head_dist",),
}
