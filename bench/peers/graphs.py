"""What is served: one network, as a bundle for us and as the graph that others export of it."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bench.empty import OPENED, choose_pixels, write_bundle, write_foreign
from bench.peers.peers import ROOT
from service.bundle import Bundle, load_bundle

VARIANTS = {"vit-tiny": "deit-ti16-224", "vit-b16": "vit-b16-224"}
"""Names in the zoo of the shapes; DeiT-Ti without distillation is the ViT of that size."""
GRAPHS = ("empty", *VARIANTS)
VERSION = "1"


@dataclass(frozen=True)
class Served:
    """One network; ``foreign`` is the fp32 graph of ``pixel_values``."""

    bundle: Bundle
    foreign: Path

    @property
    def repository(self) -> Path:
        """Holds this network and no other, so that our server loads what a peer's does."""
        return self.bundle.folder.parents[1]

    def graph(self, runtime: str) -> Path:
        """What a peer runs in ``runtime``."""
        if runtime == "onnxruntime":
            return self.foreign
        return self.bundle.path(self.bundle.manifest.graphs[0])


def build(name: str, work: Path, pixels: Literal["exact", "fast"] | None = None) -> Served:
    """The network of that name, made once and kept in ``work``.

    Its ``pixels`` are ours alone to choose; without it fast for the empty network, where they are
    most of the work, and exact for the others.

    Raises:
        subprocess.CalledProcessError: the export failed; it has said why.
    """
    wanted = pixels or ("fast" if name == "empty" else "exact")
    folder = work / "repositories" / name / name / VERSION
    foreign = work / "graphs" / f"{name}.onnx"
    if name == "empty":
        if not (folder / "manifest.json").exists():
            write_bundle(folder, fast=wanted == "fast")
        write_foreign(foreign)
    else:
        _export(VARIANTS[name], work / "checkpoints" / name, folder, foreign)
    decoding = load_bundle(folder).manifest.decoding
    if wanted != ("exact" if decoding is None else "fast"):
        choose_pixels(folder, wanted)
    return Served(load_bundle(folder), foreign)


def _export(variant: str, checkpoint: Path, folder: Path, foreign: Path) -> None:
    """In processes of their own: nobody imports export, and its memory is to be free again."""
    if not (checkpoint / "preprocessor_config.json").exists():
        _python("-m", "export.demo.random_checkpoint", variant, str(checkpoint))
    if not (folder / "manifest.json").exists():
        name, version = folder.parts[-2:]
        out = str(folder.parents[1])
        wishes = ["--out", out, "--name", name, "--version", version, "--task", "classify"]
        _python("-c", OPENED, "export", str(checkpoint.resolve()), *wishes)
    if not foreign.exists():
        _python("-m", "bench.peers.third_party", str(checkpoint), str(foreign))


def _python(*argv: str) -> None:
    print(f"building: {' '.join(argv[2:])}", flush=True)
    subprocess.run(["env", f"PYTHONPATH={ROOT}", sys.executable, *argv], check=True)
