"""Checkpoints as files, in a local folder or on the Hugging Face hub: found, fingerprinted, read.

Only safetensors weights are read: a pickle runs code of its author's choosing when it is opened.
"""

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
import yaml
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from huggingface_hub.repocard import metadata_load
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from models.checkpoints.errors import CheckpointError
from models.checkpoints.preprocessing import preprocessor_from_timm

DOWNLOADED = (
    "config.json",
    "preprocessor_config.json",
    "*.safetensors",
    "model.safetensors.index.json",
    "README.md",
    "LICENSE*",
)
PICKLES = (".bin", ".pth", ".pt", ".ckpt")
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk. ``source`` is as the caller gave it; ``revision`` the hub commit.

    ``preprocessor`` is in the terms of ``preprocessor_config.json``, derived where the checkpoint
    is timm's. ``sha256`` is that of the one weight file, or, for shards, of their lines
    "<sha256>  <file name>\\n" in order of name.
    """

    source: str
    folder: Path
    config: dict[str, Any]
    preprocessor: dict[str, Any] | None
    revision: str | None
    license: str | None
    sha256: str


def open_checkpoint(source: str, revision: str | None = None) -> Checkpoint:
    """The checkpoint in folder ``source``, or, where no such folder exists, of that hub id.

    ``revision`` is a branch, tag or commit of a hub id. Raises CheckpointError where there is
    nothing to read, or only pickled weights.
    """
    local = Path(source).expanduser()
    if local.is_dir():
        if revision is not None:
            raise CheckpointError(
                f"revision {revision!r} was asked for, but {source} is a local folder, which has "
                "no revisions; leave it out"
            )
        folder = local
    else:
        folder = _download(source, revision)
    config = _read_json(folder / "config.json")
    return Checkpoint(
        source=source,
        folder=folder,
        config=config,
        preprocessor=_preprocessor(folder, config),
        revision=None if folder == local else folder.name,
        license=_license(folder, config),
        sha256=_digest(weight_files(folder)),
    )


def weight_files(folder: Path) -> list[Path]:
    """``model.safetensors``, or the shards that its index names, in order of name."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names = sorted(set(_read_json(index).get("weight_map", {}).values()))
        shards = [folder / name for name in names if Path(name).name == name]
        absent = sorted(set(names) - {shard.name for shard in shards if shard.is_file()})
        if absent or not shards:
            raise CheckpointError(
                f"{index} names shards that are not beside it: {', '.join(absent) or 'none at all'}"
            )
        return shards
    single = folder / "model.safetensors"
    if single.is_file():
        return [single]
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES)
    found = f"only pickled weights ({', '.join(pickles)})" if pickles else "no safetensors weights"
    raise CheckpointError(
        f"{folder} holds {found}; only model.safetensors or its shards are read, because opening a "
        "pickle can run any code. Where you trust the source, convert it once: transformers.Auto"
        "Model.from_pretrained(SOURCE).save_pretrained(FOLDER), with the model class that its "
        "config.json names, or safetensors.torch.save_file(torch.load(FILE, weights_only=True), "
        "'model.safetensors')"
    )


def read_weights(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Every tensor of the checkpoint by its name there, in fp32."""
    tensors: dict[str, Tensor] = {}
    for path in weight_files(checkpoint.folder):
        try:
            tensors |= load_file(path)
        except SafetensorError as error:
            raise CheckpointError(f"{path} is not a safetensors file: {error}") from error
    return {name: tensor.to(torch.float32) for name, tensor in tensors.items()}


def _download(source: str, revision: str | None) -> Path:
    if Path(source).exists():
        raise CheckpointError(
            f"{source!r} is a file; a checkpoint is a folder with config.json, model.safetensors "
            "and preprocessor_config.json: name the folder"
        )
    if not HUB_ID.fullmatch(source):
        raise CheckpointError(
            f"{source!r} is neither an existing folder nor a hub id like 'owner/name'"
        )
    try:
        return Path(
            huggingface_hub.snapshot_download(
                source, revision=revision, allow_patterns=list(DOWNLOADED)
            )
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        at = f" at revision {revision!r}" if revision else ""
        raise CheckpointError(
            f"{source!r} is no local folder, and could not be had from the hub{at}; see that the "
            f"id is right, this machine reaches the hub, and you may read it: {error}"
        ) from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path.parent} holds no {path.name}; a checkpoint is a folder with config.json, "
            "model.safetensors and preprocessor_config.json"
        ) from error
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a JSON {type(content).__name__}, not an object")
    return content


def _preprocessor(folder: Path, config: dict[str, Any]) -> dict[str, Any] | None:
    path = folder / "preprocessor_config.json"
    if path.is_file():
        return _read_json(path)
    return preprocessor_from_timm(config) if "pretrained_cfg" in config else None


def _license(folder: Path, config: dict[str, Any]) -> str | None:
    metadata = _card_metadata(folder / "README.md")
    named = metadata.get("license_name") or metadata.get("license")
    named = named or config.get("pretrained_cfg", {}).get("license")
    if named is not None:
        return str(named)
    for path in sorted(folder.glob("LICENSE*")):
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
        return next((line.strip() for line in lines if line.strip()), None)
    return None


def _card_metadata(card: Path) -> dict[str, Any]:
    if not card.is_file():
        return {}
    try:
        return metadata_load(card) or {}
    except (yaml.YAMLError, ValueError):  # a card is prose by hand, and nothing depends on it
        return {}


def _digest(paths: list[Path]) -> str:
    digests = []
    for path in paths:
        with path.open("rb") as file:
            digests.append(hashlib.file_digest(file, "sha256").hexdigest())
    if len(digests) == 1:
        return digests[0]
    lines = (f"{digest}  {path.name}\n" for digest, path in zip(digests, paths, strict=True))
    return hashlib.sha256("".join(lines).encode()).hexdigest()
