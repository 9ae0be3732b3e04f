"""Checkpoints of DETR, with and without its mask head, as transformers saves them."""

from typing import Any

from torch import Tensor

from models.checkpoints.errors import CheckpointError
from models.checkpoints.files import Checkpoint, read_weights
from models.checkpoints.loaded import Loaded, labels_of
from models.checkpoints.resnet import batch_counters, resnet_config, resnet_weights
from models.checkpoints.strict import StrictReader
from models.detr import Detr, DetrConfig
from models.resnet import fold_norms

ARCHITECTURES = {  # of transformers, and whether it has the mask head
    "DetrForObjectDetection": False,
    "DetrForSegmentation": True,
}

# Our modules and theirs. This is what transformers 4 writes, and 5 too by default.
_BODY = {"project": "input_projection", "norm": "decoder.layernorm"}
_HEADS = {"classify": "class_labels_classifier"} | {
    f"box.layers.{layer}": f"bbox_predictor.layers.{layer}" for layer in range(3)
}
_ENCODER_LAYER = {
    "attn.q": "self_attn.q_proj",
    "attn.k": "self_attn.k_proj",
    "attn.v": "self_attn.v_proj",
    "attn.proj": "self_attn.out_proj",
    "norm1": "self_attn_layer_norm",
    "mlp.layers.0": "fc1",
    "mlp.layers.1": "fc2",
    "norm2": "final_layer_norm",
}
_DECODER_LAYER = {
    "self_attn.q": "self_attn.q_proj",
    "self_attn.k": "self_attn.k_proj",
    "self_attn.v": "self_attn.v_proj",
    "self_attn.proj": "self_attn.out_proj",
    "norm1": "self_attn_layer_norm",
    "cross_attn.q": "encoder_attn.q_proj",
    "cross_attn.k": "encoder_attn.k_proj",
    "cross_attn.v": "encoder_attn.v_proj",
    "cross_attn.proj": "encoder_attn.out_proj",
    "norm2": "encoder_attn_layer_norm",
    "mlp.layers.0": "fc1",
    "mlp.layers.1": "fc2",
    "norm3": "final_layer_norm",
}
_MASK_HEAD = {
    "mask_head.attention.q": "bbox_attention.q_linear",
    "mask_head.attention.k": "bbox_attention.k_linear",
    "mask_head.norm": "mask_head.gn1",
    "mask_head.narrow.conv": "mask_head.lay2",
    "mask_head.narrow.norm": "mask_head.gn2",
    "mask_head.adapters.0": "mask_head.adapter1",
    "mask_head.refine.0.conv": "mask_head.lay3",
    "mask_head.refine.0.norm": "mask_head.gn3",
    "mask_head.adapters.1": "mask_head.adapter2",
    "mask_head.refine.1.conv": "mask_head.lay4",
    "mask_head.refine.1.norm": "mask_head.gn4",
    "mask_head.adapters.2": "mask_head.adapter3",
    "mask_head.refine.2.conv": "mask_head.lay5",
    "mask_head.refine.2.norm": "mask_head.gn5",
    "mask_head.out": "mask_head.out_lay",
}
_FIRST = "mask_head.lay1"  # ours in two: over the picture's features, and over attention maps

_RENAMED = (  # with save_pretrained(save_original_format=False) of transformers 5
    ("backbone.conv_encoder.", "backbone."),
    (".out_proj.", ".o_proj."),
    (".fc", ".mlp.fc"),
    ("_linear.", "_proj."),
    ("mask_head.lay1.", "mask_head.conv1.conv."),
    ("mask_head.gn1.", "mask_head.conv1.norm."),
    ("mask_head.lay2.", "mask_head.conv2.conv."),
    ("mask_head.gn2.", "mask_head.conv2.norm."),
    ("mask_head.adapter1.", "mask_head.fpn_stages.0.fpn_adapter."),
    ("mask_head.lay3.", "mask_head.fpn_stages.0.refine.conv."),
    ("mask_head.gn3.", "mask_head.fpn_stages.0.refine.norm."),
    ("mask_head.adapter2.", "mask_head.fpn_stages.1.fpn_adapter."),
    ("mask_head.lay4.", "mask_head.fpn_stages.1.refine.conv."),
    ("mask_head.gn4.", "mask_head.fpn_stages.1.refine.norm."),
    ("mask_head.adapter3.", "mask_head.fpn_stages.2.fpn_adapter."),
    ("mask_head.lay5.", "mask_head.fpn_stages.2.refine.conv."),
    ("mask_head.gn5.", "mask_head.fpn_stages.2.refine.norm."),
    ("mask_head.out_lay.", "mask_head.output_conv."),
)


def load_detr(checkpoint: Checkpoint, architecture: str, canvas: tuple[int, int]) -> Loaded:
    """DETR at ``canvas`` from the weights that transformers saved."""
    masks = ARCHITECTURES[architecture]
    labels = labels_of(checkpoint.config)
    config = _config(checkpoint.config, canvas, masks, len(labels))
    reader = StrictReader(read_weights(checkpoint), checkpoint.source)
    model = Detr(config)
    model.load_state_dict(_weights(reader, config, model.state_dict()), assign=True)
    ignored = reader.finish(batch_counters(reader))
    fold_norms(model)
    return Loaded(
        model=model.eval(),
        family="detr",
        architecture=architecture,
        labels=labels,
        activation="softmax",
        ignored=ignored,
    )


def _config(
    config: dict[str, Any], canvas: tuple[int, int], masks: bool, classes: int
) -> DetrConfig:
    _refuse_unsupported(config)
    try:
        return DetrConfig(
            canvas=canvas,
            backbone=resnet_config(config, (1, 2, 3, 4) if masks else (4,)),
            dim=config["d_model"],
            heads=config["encoder_attention_heads"],
            encoder_layers=config["encoder_layers"],
            decoder_layers=config["decoder_layers"],
            mlp_dim=config["encoder_ffn_dim"],
            queries=config["num_queries"],
            classes=classes,
            masks=masks,
            norm_between=config.get("auxiliary_loss", False),
        )
    except ValueError as error:
        raise CheckpointError(f"the network cannot be built: {error}") from error


def _refuse_unsupported(config: dict[str, Any]) -> None:
    required = ["d_model", "num_queries", "encoder_layers", "decoder_layers"]
    for pair in ("{}_attention_heads", "{}_ffn_dim"):
        names = [pair.format(part) for part in ("encoder", "decoder")]
        required += names
        values = [config.get(name) for name in names]
        if values[0] != values[1]:
            raise CheckpointError(
                f"config.json has {names[0]} {values[0]} and {names[1]} {values[1]}; supported is "
                "one value for both"
            )
    absent = [name for name in required if name not in config]
    if absent:
        raise CheckpointError(f"config.json lacks {', '.join(absent)}")
    fixed = {"activation_function": "relu", "position_embedding_type": "sine", "num_channels": 3}
    for name, value in fixed.items():
        if config.get(name, value) != value:
            raise CheckpointError(
                f"config.json asks for {name} {config[name]!r}; supported is {value!r}"
            )


def _weights(
    reader: StrictReader, config: DetrConfig, expected: dict[str, Tensor]
) -> dict[str, Tensor]:
    """The state of our network, of which ``expected`` has the names and shapes."""
    base = "detr." if config.masks else ""
    renamed = _RENAMED if any(".o_proj." in name for name in reader.names()) else ()

    def take(name: str, shape: tuple[int, ...]) -> Tensor:
        return reader.take(_rename(name, renamed), shape)

    prefix = _rename(f"{base}model.backbone.conv_encoder.model.", renamed)
    backbone = resnet_weights(reader, prefix, config.backbone)
    state = {f"backbone.{name}": tensor for name, tensor in backbone.items()}
    shape = tuple(expected["queries"].shape)
    state["queries"] = take(f"{base}model.query_position_embeddings.weight", shape)
    if config.masks:
        width = config.dim + config.heads
        weight = take(f"{_FIRST}.weight", (width, width, 3, 3))
        parts = weight.split([config.dim, config.heads], dim=1)
        state["mask_head.from_features.weight"] = parts[0].contiguous()
        state["mask_head.from_attention.weight"] = parts[1].contiguous()
        state["mask_head.from_features.bias"] = take(f"{_FIRST}.bias", (width,))
    names = _names(config, base)
    for ours in sorted(expected.keys() - state.keys()):
        module, leaf = ours.rsplit(".", 1)
        state[ours] = take(f"{names[module]}.{leaf}", tuple(expected[ours].shape))
    return state


def _names(config: DetrConfig, base: str) -> dict[str, str]:
    """Every module of ours outside the backbone, by its published name."""
    names = {ours: f"{base}model.{theirs}" for ours, theirs in _BODY.items()}
    names |= {ours: base + theirs for ours, theirs in _HEADS.items()} | _MASK_HEAD
    stacks = (
        ("encoder", config.encoder_layers, _ENCODER_LAYER),
        ("decoder", config.decoder_layers, _DECODER_LAYER),
    )
    for stack, layers, layer in stacks:
        for number in range(layers):
            theirs = f"{base}model.{stack}.layers.{number}"
            names |= {f"{stack}.{number}.{our}": f"{theirs}.{its}" for our, its in layer.items()}
    return names


def _rename(name: str, renamed: tuple[tuple[str, str], ...]) -> str:
    for old, new in renamed:
        name = name.replace(old, new)
    return name
