"""Opening, strict loading and saving of checkpoints."""

import hashlib
import json
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
import transformers
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file, save_file
from torch import nn

from models.checkpoints import (
    CheckpointError,
    default_canvas,
    load_model,
    open_checkpoint,
    save_checkpoint,
)
from models.vit import ViT, ViTConfig

CONFIG = ViTConfig(
    canvas=(32, 48), patch_size=8, dim=24, depth=2, heads=3, mlp_dim=40, classes=3, norm_eps=1e-9
)
LABELS = {0: "ant", 1: "bee", 2: "čmelák"}
PREPROCESSOR = {"size": {"height": 32, "width": 48}, "resample": 3}


def lively_vit(config: ViTConfig = CONFIG) -> ViT:
    torch.set_num_threads(1)
    model = ViT(config)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def saved(folder: Path, **config: Any) -> str:
    """A loadable folder whose config.json has been altered."""
    save_checkpoint(lively_vit(), folder, LABELS, PREPROCESSOR)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return str(folder)


def load(folder: str | Path) -> Any:
    return load_model(open_checkpoint(str(folder)))


def test_saved_network_comes_back_bit_for_bit(tmp_path: Path) -> None:
    model = lively_vit()
    save_checkpoint(model, tmp_path / "made", LABELS, PREPROCESSOR)
    loaded = load(tmp_path / "made")
    assert loaded.model.config == CONFIG
    assert not loaded.model.training
    assert loaded.labels == LABELS
    assert (loaded.family, loaded.architecture) == ("vit", "ViTForImageClassification")
    assert loaded.ignored == []
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, loaded.model.state_dict()[name])


@pytest.mark.parametrize("canvas", [(32, 48), (32, 32)])
def test_saved_network_gives_equal_logits_in_transformers(
    canvas: tuple[int, int], tmp_path: Path
) -> None:
    model = lively_vit(ViTConfig(**vars(CONFIG) | {"canvas": canvas}))
    save_checkpoint(model, tmp_path, LABELS, PREPROCESSOR)
    theirs, report = transformers.ViTForImageClassification.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not any(report.values())
    assert theirs.config.id2label == LABELS
    images = torch.randn(3, 3, *canvas, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours, expected = model(images)["logits"], theirs(images).logits
    assert ((ours - expected).abs().max() / expected.abs().max()).item() <= 1e-5


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"pool": "mean"}, "pool 'mean'"),
        ({"registers": 2, "layer_scale": True}, "registers, LayerScale"),
        ({"swiglu": True}, "SwiGLU"),
        ({"classes": 4}, "4 classes"),
    ],
)
def test_saving_what_the_layout_cannot_hold_is_refused(
    changes: dict[str, Any], named: str, tmp_path: Path
) -> None:
    model = ViT(ViTConfig(**vars(CONFIG) | changes))
    with pytest.raises(CheckpointError, match=named):
        save_checkpoint(model, tmp_path / "made", LABELS, PREPROCESSOR)
    assert not (tmp_path / "made").exists()


def test_strict_loading_lists_every_wrong_weight_at_once(tmp_path: Path) -> None:
    source = saved(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["vit.layernorm.bias"]
    del weights["vit.encoder.layer.1.attention.attention.key.weight"]
    weights["vit.encoder.layer.2.intermediate.dense.bias"] = torch.zeros(40)
    weights["classifier.extra"] = torch.zeros(2, 2)
    weights["classifier.weight"] = torch.zeros(5, 24)
    weights["vit.embeddings.position_embeddings"] = torch.zeros(1, 17, 24)
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError) as raised:
        load(source)
    message = str(raised.value)
    assert "missing: vit.encoder.layer.1.attention.attention.key.weight [24, 24], " in message
    assert "vit.layernorm.bias [24]" in message
    assert (
        "unexpected: classifier.extra [2, 2], vit.encoder.layer.2.intermediate.dense.bias [40]"
        in message
    )
    assert "classifier.weight is [5, 24], expected [3, 24]" in message
    assert "vit.embeddings.position_embeddings is [1, 17, 24], expected [1, 25, 24]" in message


def test_weights_left_aside_on_purpose_are_named(tmp_path: Path) -> None:
    source = saved(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights["vit.pooler.dense.bias"] = torch.zeros(24)
    save_file(weights, tmp_path / "model.safetensors")
    assert load(source).ignored == ["vit.pooler.dense.bias"]


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"architectures": ["ConvNextModel"]}, "'ConvNextModel'; supported are ViTForImage"),
        ({"architectures": None}, "'none'; supported are ViTForImage"),
        ({"hidden_act": "quick_gelu"}, "hidden_act 'quick_gelu'; supported is 'gelu'"),
        ({"num_channels": 1}, "num_channels 1; supported is 3"),
        ({"patch_size": [8, 16]}, r"patch_size \[8, 16\] is not square"),
        ({"num_attention_heads": 5}, "does not divide into 5 heads"),
        ({"problem_type": "regression"}, "problem_type 'regression'"),
        ({"id2label": {"0": "ant", "2": "bee", "5": "cat"}}, "every id from 0 to 2"),
        ({"id2label": {"ant": 0, "bee": 1, "cat": 2}}, "expected an object of ids"),
        ({"id2label": ["ant", "bee", "cat"]}, "expected an object of ids"),
    ],
)
def test_config_that_we_do_not_implement_is_refused(
    config: dict[str, Any], named: str, tmp_path: Path
) -> None:
    source = saved(tmp_path, **config)
    with pytest.raises(CheckpointError, match=named):
        load(source)


def test_config_without_dimensions_is_refused_by_name(tmp_path: Path) -> None:
    source = saved(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["hidden_size"], config["patch_size"], config["intermediate_size"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="lacks hidden_size, patch_size, intermediate_size"):
        load(source)


@pytest.mark.parametrize("config", ["{", "[1, 2]"])
def test_config_that_is_no_json_object_is_refused(config: str, tmp_path: Path) -> None:
    source = saved(tmp_path)
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        open_checkpoint(source)


def test_canvas_that_patches_do_not_tile_is_refused(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(saved(tmp_path))
    with pytest.raises(CheckpointError, match="the nearest below is 32x40"):
        load_model(checkpoint, (34, 44))


@pytest.mark.parametrize(
    ("problem", "activation"),
    [
        (None, "softmax"),
        ("single_label_classification", "softmax"),
        ("multi_label_classification", "sigmoid"),
    ],
)
def test_activation_follows_the_problem_type(
    problem: str | None, activation: str, tmp_path: Path
) -> None:
    assert load(saved(tmp_path, problem_type=problem)).activation == activation


@pytest.mark.parametrize(
    ("preprocessor", "canvas"),
    [
        (None, (32, 48)),
        ({"size": {"height": 64, "width": 40}}, (64, 40)),
        ({"size": 64}, (64, 64)),
        ({"size": [64, 40]}, (64, 40)),
        ({"size": {"shortest_edge": 70}}, (32, 48)),
        ({"size": {"shortest_edge": 70}, "crop_size": 64}, (64, 64)),
        ({"size": 70, "crop_size": {"height": 64, "width": 56}}, (64, 56)),
        ({"size": 72, "crop_size": 64, "do_center_crop": False}, (72, 72)),
        ({"size": 72, "do_resize": False}, (32, 48)),
        ({"size": 72, "max_size": 120}, (32, 48)),
    ],
)
def test_default_canvas_is_where_the_preprocessor_ends(
    preprocessor: dict[str, Any] | None, canvas: tuple[int, int], tmp_path: Path
) -> None:
    source = saved(tmp_path)
    path = tmp_path / "preprocessor_config.json"
    path.unlink()
    if preprocessor is not None:
        path.write_text(json.dumps(preprocessor))
    checkpoint = open_checkpoint(source)
    assert checkpoint.preprocessor == preprocessor
    assert default_canvas(checkpoint) == canvas
    model = load_model(checkpoint).model
    assert isinstance(model, ViT)
    assert model.config.canvas == canvas


def test_digest_of_one_file_is_that_of_the_file(tmp_path: Path) -> None:
    source = saved(tmp_path)
    expected = hashlib.sha256((tmp_path / "model.safetensors").read_bytes()).hexdigest()
    assert open_checkpoint(source).sha256 == expected


def test_digest_of_shards_is_that_of_their_digests_and_names(tmp_path: Path) -> None:
    source = saved(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    names = sorted(weights)
    shards = {"b.safetensors": names[:5], "a.safetensors": names[5:]}
    for shard, members in shards.items():
        save_file({name: weights[name] for name in members}, tmp_path / shard)
    index = {"weight_map": {name: shard for shard, members in shards.items() for name in members}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    lines = "".join(
        f"{hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()}  {name}\n"
        for name in ("a.safetensors", "b.safetensors")
    )
    assert open_checkpoint(source).sha256 == hashlib.sha256(lines.encode()).hexdigest()
    assert load(source).labels == LABELS


@pytest.mark.parametrize("shard", ["absent.safetensors", "../model.safetensors"])
def test_index_that_names_what_is_not_beside_it_is_refused(shard: str, tmp_path: Path) -> None:
    source = saved(tmp_path / "inner")
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    index = {"weight_map": {"x": shard}}
    (tmp_path / "inner" / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="names shards that are not beside it"):
        open_checkpoint(source)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pth", "model.pt"])
def test_pickled_weights_are_refused_with_the_way_out(name: str, tmp_path: Path) -> None:
    source = saved(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / name)
    with pytest.raises(CheckpointError) as raised:
        open_checkpoint(source)
    assert f"only pickled weights ({name})" in str(raised.value)
    assert "save_pretrained" in str(raised.value)


def test_damaged_weights_are_refused_by_name(tmp_path: Path) -> None:
    source = saved(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"not tensors")
    with pytest.raises(CheckpointError, match=r"model\.safetensors is not a safetensors file"):
        load(source)


def test_card_with_broken_metadata_does_not_stop_the_loading(tmp_path: Path) -> None:
    source = saved(tmp_path)
    (tmp_path / "README.md").write_text("---\nlicense: [mit\n---\n")
    assert open_checkpoint(source).license is None


@pytest.mark.parametrize(
    ("files", "license_name"),
    [
        (
            {"README.md": "---\nlicense: apache-2.0\ntags:\n- vision\n---\n# A model\n"},
            "apache-2.0",
        ),
        ({"README.md": "---\nlicense: other\nlicense_name: cc-by-nc\n---\n"}, "cc-by-nc"),
        (
            {"README.md": "# No metadata\n", "LICENSE": "\n  MIT License\n\nCopyright"},
            "MIT License",
        ),
        ({}, None),
    ],
)
def test_licence_is_read_from_the_card_or_the_licence_file(
    files: dict[str, str], license_name: str | None, tmp_path: Path
) -> None:
    source = saved(tmp_path)
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert open_checkpoint(source).license == license_name


def test_hub_id_is_downloaded_without_pickles_and_keeps_its_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = tmp_path / "snapshots" / "0123abc"
    saved(snapshot)
    asked: dict[str, object] = {}

    def download(repository: str, revision: str | None, allow_patterns: list[str]) -> str:
        asked.update(repository=repository, revision=revision, patterns=allow_patterns)
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    checkpoint = open_checkpoint("owner/name", "main")
    assert (asked["repository"], asked["revision"]) == ("owner/name", "main")
    assert asked["patterns"] == [
        "config.json",
        "preprocessor_config.json",
        "*.safetensors",
        "model.safetensors.index.json",
        "README.md",
        "LICENSE*",
    ]
    assert checkpoint.source == "owner/name"
    assert checkpoint.revision == "0123abc"
    assert load_model(checkpoint).labels == LABELS


def test_hub_that_cannot_be_reached_is_told_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*_: object, **__: object) -> str:
        raise LocalEntryNotFoundError("no connection and nothing cached")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(CheckpointError, match=r"'owner/name' is no local folder.*no connection"):
        open_checkpoint("owner/name")


def test_source_that_is_neither_folder_nor_hub_id_is_refused() -> None:
    with pytest.raises(CheckpointError, match="neither an existing folder nor a hub id"):
        open_checkpoint("./no/such/folder")


def test_a_file_in_place_of_its_folder_is_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    with pytest.raises(CheckpointError, match=r"model\.safetensors' is a file.*name the folder"):
        open_checkpoint(f"{folder}/model.safetensors")


def test_revision_of_a_local_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="has no revisions"):
        open_checkpoint(saved(tmp_path), "main")


@pytest.mark.parametrize("size", [{"shortest_edge": 64}, [64], "64"])
def test_crop_size_that_states_no_sides_is_refused(size: object, tmp_path: Path) -> None:
    source = saved(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"crop_size": size}))
    with pytest.raises(CheckpointError, match="expected a number, "):
        default_canvas(open_checkpoint(source))


def test_class_ids_are_placeholders_where_the_config_only_counts(tmp_path: Path) -> None:
    source = saved(tmp_path, id2label=None, num_labels=3)
    assert load(source).labels == {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}


def test_loaded_network_is_a_module_in_fp32(tmp_path: Path) -> None:
    model = load(saved(tmp_path)).model
    assert isinstance(model, nn.Module)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_positions_of_a_rectangular_canvas_keep_their_rows_when_resampled(tmp_path: Path) -> None:
    model = lively_vit()
    rows = torch.arange(4.0).repeat_interleave(6)  # the row of each of the 4 x 6 patches
    model.positions.data[0, 1:] = rows[:, None]
    save_checkpoint(model, tmp_path, LABELS, PREPROCESSOR)
    resampled = load_model(open_checkpoint(str(tmp_path)), (64, 24)).model
    assert isinstance(resampled, ViT)
    grid = resampled.positions[0, 1:, 0].unflatten(0, (8, 3))
    assert torch.equal(grid, grid[:, :1].expand(8, 3))
    assert bool((grid[1:, 0] > grid[:-1, 0]).all())
    assert torch.equal(resampled.positions[:, 0], model.positions[:, 0])


@pytest.mark.parametrize(
    ("architecture", "kind"),
    [
        ("ViTModel", "ViTConfig"),
        ("DeiTModel", "DeiTConfig"),
        ("ViTMAEModel", "ViTMAEConfig"),
        ("Dinov2Model", "Dinov2Config"),
        ("Dinov2WithRegistersModel", "Dinov2WithRegistersConfig"),
    ],
)
def test_options_left_out_of_the_config_have_the_defaults_of_transformers(
    architecture: str, kind: str, tmp_path: Path
) -> None:
    sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 3}
    config = getattr(transformers, kind)(**sizes, image_size=32, patch_size=8)
    getattr(transformers, architecture)(config).save_pretrained(tmp_path)
    kept = ("architectures", "image_size", "patch_size", "intermediate_size", *sizes)
    stated = json.loads((tmp_path / "config.json").read_text())
    bare = {name: stated[name] for name in kept if name in stated}
    (tmp_path / "config.json").write_text(json.dumps(bare))
    model = load_model(open_checkpoint(str(tmp_path)), (32, 32)).model
    assert isinstance(model, ViT)
    assert model.config.norm_eps == config.layer_norm_eps
    assert model.config.registers == getattr(config, "num_register_tokens", kind == "DeiTConfig")
    assert model.config.mlp_dim == getattr(config, "intermediate_size", 96)
