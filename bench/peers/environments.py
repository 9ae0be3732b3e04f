"""An environment for each peer, made when it is first needed."""

import subprocess
import sys
from pathlib import Path

from bench.peers.peers import FOLDER, Peer

RECORD = "installed.txt"


def environment(peer: Peer, work: Path) -> Path:
    """The virtual environment of a peer, with what its requirements say today.

    Raises:
        subprocess.CalledProcessError: pip could not install them; it has said why.
    """
    folder = work / "venvs" / peer.folder
    wanted = (FOLDER / "engine.txt").read_text() + peer.requirements.read_text()
    record = folder / RECORD
    if record.exists() and record.read_text() == wanted:
        return folder
    print(f"installing {peer.folder} into {folder}", flush=True)
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
    pip = [
        str(folder / "bin" / "python"),
        "-I",
        "-m",
        "pip",
        "install",
        "--disable-pip-version-check",
    ]
    subprocess.run([*pip, "--quiet", "--requirement", str(peer.requirements)], check=True)
    record.write_text(wanted)
    return folder


def versions(environment: Path) -> dict[str, str]:
    """What pip has put into an environment."""
    python = str(environment / "bin" / "python")
    listed = subprocess.run(
        [python, "-I", "-m", "pip", "list", "--format", "freeze", "--disable-pip-version-check"],
        check=True,
        capture_output=True,
        text=True,
    )
    pairs = (line.partition("==") for line in listed.stdout.splitlines())
    return {name: version for name, _, version in pairs if version}
