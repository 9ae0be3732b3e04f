"""Maps of segment ids as PNG files in COCO's panoptic coding, in a folder or a zip."""

import io
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from service.errors import BadSettings

_COLOURED = ("RGB", "RGBA", "P")


@dataclass(frozen=True)
class Maps:
    """``place`` is where they are, for people; ``open_file`` gives the bytes of one by name, and
    ``has`` says whether it is there.
    """

    place: Path
    open_file: Callable[[str], bytes]
    has: Callable[[str], bool]

    def read(self, name: str) -> NDArray[np.int32]:  # (H, W)
        """Segment ids, R + 256 G + 65536 B; 0 is void.

        Raises:
            BadSettings: there is no such map, or it is none.
        """
        try:
            with Image.open(io.BytesIO(self.open_file(name))) as image:
                if image.mode not in _COLOURED:
                    raise BadSettings(
                        f"{name} in {self.place} is a PNG of mode {image.mode}; COCO's panoptic "
                        "maps hold ids as colours, R + 256 G + 65536 B"
                    )
                pixels = np.asarray(image.convert("RGB"))
        except (OSError, KeyError, UnidentifiedImageError):
            raise BadSettings(
                f"{self.place} has no readable PNG called {name}, which its JSON names"
            ) from None
        red, green, blue = np.moveaxis(pixels.astype(np.int32), -1, 0)
        return red | green << 8 | blue << 16


def open_maps(
    document: Path, names: Sequence[str], place: Path | None = None, but: Path | None = None
) -> Maps:
    """The PNGs of those names that go with a JSON file.

    They are at ``place``; without it in the folder or zip beside the file that is called like it,
    or else in its own folder or the one other folder or zip in there that has them. They are never
    at ``but``, where those of another file are.

    Raises:
        BadSettings: they are nowhere, or in several places.
    """
    stem = document.with_suffix("")
    if not names:
        return Maps(stem, _nothing, lambda _: False)
    named = [stem, stem.with_name(stem.name + ".zip")] if place is None else [place]
    for candidate in named:
        maps = _maps_at(candidate, names[0])
        if maps is not None:
            return maps
    others = [] if place is not None else [document.parent, *sorted(document.parent.iterdir())]
    found = [maps for one in others if (maps := _maps_at(one, names[0])) and maps.place != but]
    if len(found) == 1:
        return found[0]
    where = place or f"the folder or zip called {stem.name} beside {document}"
    several = f"; it is in each of {', '.join(str(one.place) for one in found)}" if found else ""
    raise BadSettings(
        f"{names[0]} is not in {where}{several}; name the folder or zip of the PNGs with --maps "
        "(those of the predictions) or --truth-maps (those of the data)"
    )


def _maps_at(place: Path, name: str) -> Maps | None:
    """Those of a folder or zip, if it holds that name at any depth; None if not."""
    if place.is_dir():
        return _in_folder(place, name)
    if place.is_file() and zipfile.is_zipfile(place):
        return _in_zip(place, name)
    return None


def _in_folder(place: Path, name: str) -> Maps | None:
    found = [root for root in (place, place / place.name) if (root / name).is_file()]
    if not found:
        return None
    root = found[0]
    return Maps(root, lambda name: (root / name).read_bytes(), lambda n: (root / n).is_file())


def _in_zip(place: Path, name: str) -> Maps | None:
    """A zip may hold the files in folders of its own."""
    archive = zipfile.ZipFile(place)
    members = {PurePosixPath(member): member for member in archive.namelist()}
    found = [path for path in members if path.as_posix().endswith(name) and _ends(path, name)]
    if not found:
        return None
    root = PurePosixPath(*found[0].parts[: -len(PurePosixPath(name).parts)])
    return Maps(
        place, lambda name: archive.read(members[root / name]), lambda n: root / n in members
    )


def _ends(path: PurePosixPath, name: str) -> bool:
    parts = PurePosixPath(name).parts
    return path.parts[-len(parts) :] == parts


def _nothing(name: str) -> bytes:
    raise KeyError(name)
