"""What a server serves, kept beside its socket: no death of a process and no change in the
repository makes it forget.
"""

import os
from pathlib import Path

from pydantic import TypeAdapter

from service.bundle import Bundle

_BUNDLES = TypeAdapter(list[Bundle])


def served_file(endpoint: str) -> Path:
    """Where it lies for the worker that listens at ``endpoint``."""
    return Path(endpoint.removeprefix("ipc://")).with_name("served.json")


def read_served(file: Path) -> list[Bundle] | None:
    """The bundles with their manifests as they were when they were loaded; None before any was."""
    try:
        return _BUNDLES.validate_json(file.read_bytes())
    except FileNotFoundError:
        return None


def write_served(file: Path, bundles: list[Bundle]) -> None:
    """Put the list in place in one move: readers see the old one or the new one.

    Raises:
        OSError: the disk is full, say; the old list stays.
    """
    aside = file.with_suffix(f".{os.getpid()}")  # the workers of other devices write it too
    aside.write_bytes(_BUNDLES.dump_json(bundles))
    aside.replace(file)
