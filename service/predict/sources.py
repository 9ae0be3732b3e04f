"""Which pictures to answer."""

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from service.errors import BadSettings

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp"})


@dataclass(frozen=True)
class Source:
    """One picture: where it is, and the name it goes by in the answers."""

    path: Path
    name: str


def find_sources(source: str) -> list[Source]:
    """The pictures below a folder by name, one picture, those that a text file lists, one path a
    line, or those listed on standard input where it is "-".

    Names are relative to the folder; those of a list stand as they are written, and count from the
    list's own folder.

    Raises:
        BadSettings: there is nothing of the kind, or two pictures have the same name.
    """
    path = Path(source)
    if source == "-":
        found = _listed(sys.stdin.read(), Path())
    elif path.is_dir():
        found = [Source(file, file.relative_to(path).as_posix()) for file in pictures_below(path)]
    elif path.suffix.lower() in SUFFIXES and path.is_file():
        found = [Source(path, path.name)]
    else:
        found = _listed(_text_of(path), path.parent)
    if not found:
        kinds = ", ".join(sorted(SUFFIXES))
        raise BadSettings(f"{source} holds no picture; looked for {kinds}, or for paths in a list")
    if len({one.name for one in found}) < len(found):
        raise BadSettings(f"{source} lists a picture twice; every picture is answered once")
    return found


def pictures_below(folder: Path) -> list[Path]:
    """Files that are called like pictures, at any depth and by name. Links are followed, and a
    folder that several lead to is gone through once.
    """
    return sorted(file for file in _files_below(folder) if file.suffix.lower() in SUFFIXES)


def _files_below(folder: Path) -> Iterator[Path]:
    seen = {os.path.realpath(folder)}
    for root, folders, files in os.walk(folder, followlinks=True):
        new = {os.path.realpath(Path(root, name)): name for name in sorted(folders, reverse=True)}
        folders[:] = sorted(name for real, name in new.items() if real not in seen)
        seen |= new.keys()
        for file in (Path(root, name) for name in files):
            if file.is_file() or not file.exists():  # a broken link is told of, a pipe would hang
                yield file


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = "it is no text" if isinstance(error, UnicodeDecodeError) else error.strerror
        raise BadSettings(
            f"cannot read {path}: {why}; name a folder of pictures, a picture, or a text file with "
            "a path on each line"
        ) from None


def _listed(text: str, folder: Path) -> list[Source]:
    names = (line.strip() for line in text.removeprefix("\ufeff").splitlines())
    return [Source(folder / name, name) for name in names if name and not name.startswith("#")]
