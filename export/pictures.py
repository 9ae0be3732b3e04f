"""The pictures on which an export is proven: given ones, sample scenes, or generated ones."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from service.errors import StartError
from service.geometry import Size
from service.images import ImageLimits, Opened, decode

SCENES = Path(__file__).parent.parent / "service" / "demo" / "scenes"
MOST = 64
FEWEST_FILES = 32
MOST_CALIBRATION, MOST_PROOF = 64, 512
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}

_GENERATED_SIZES = ((480, 640), (640, 480), (300, 300), (375, 500), (200, 640), (720, 540))


@dataclass(frozen=True)
class Pictures:
    """Upright RGB pictures, and what each is."""

    images: list[Image.Image]
    kinds: list[str]

    @property
    def description(self) -> str:
        """How many of each kind, for the manifest."""
        return ", ".join(f"{count} {kind}" for kind, count in Counter(self.kinds).items())

    def only(self, places: Sequence[int]) -> "Pictures":
        """Those at these places."""
        return Pictures([self.images[i] for i in places], [self.kinds[i] for i in places])


class Files(Sequence[Image.Image]):
    """Pictures that are decoded when they are looked at, since hundreds do not fit in memory."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        """One picture, upright, in RGB."""
        return decode(self._paths[index].read_bytes(), ImageLimits())

    @cached_property
    def sizes(self) -> list[Size]:
        """Upright, from the headers."""
        return [Opened(path.read_bytes(), ImageLimits()).header.size for path in self._paths]


def collect(folder: Path | None = None, scenes: Path = SCENES) -> Pictures:
    """The pictures of ``folder`` and then the sample scenes; without either, generated ones.

    Of a folder, the first 64 files by name count. They come first, for of a large network only the
    first pictures are run.

    Raises:
        StartError: ``folder`` has no pictures.
        ClientError: one of them cannot be decoded.
    """
    own, samples = given(folder) if folder else [], files(scenes)
    images = [decode(path.read_bytes(), ImageLimits()) for path in [*own, *samples]]
    if not images:
        images = generate()
        return Pictures(images, ["generated pictures"] * len(images))
    return Pictures(images, ["given pictures"] * len(own) + ["sample scenes"] * len(samples))


def split(folder: Path, precision: str) -> tuple[list[Path], list[Path]]:
    """Every second picture of a folder, up to 64, to calibrate 8 bits with; others to prove on.

    Raises:
        StartError: there are too few.
    """
    paths = sorted(path for path in folder.glob("*") if path.suffix.lower() in SUFFIXES)
    if len(paths) < FEWEST_FILES:
        raise StartError(
            f"{folder} holds {len(paths)} pictures; {precision} needs at least {FEWEST_FILES} of "
            "the kind that the model will see (JPEG, PNG or WebP), half to calibrate and half to "
            "prove it, and better hundreds"
        )
    calibration = paths[::2][:MOST_CALIBRATION]
    taken = set(calibration)
    return calibration, [path for path in paths if path not in taken][:MOST_PROOF]


def given(folder: Path) -> list[Path]:
    """As ``files``, but there must be some.

    Raises:
        StartError: there are none.
    """
    found = files(folder)
    if not found:
        raise StartError(f"{folder} holds no pictures; give a folder of JPEG, PNG or WebP files")
    return found


def files(folder: Path) -> list[Path]:
    """The first 64 pictures of a folder, by name."""
    return sorted(path for path in folder.glob("*") if path.suffix.lower() in SUFFIXES)[:MOST]


def generate(sizes: tuple[tuple[int, int], ...] = _GENERATED_SIZES) -> list[Image.Image]:
    """One picture per (height, width): coloured noise with the spectrum of natural scenes.

    Amplitude falls with frequency as 1/f (Field 1987, J. Opt. Soc. Am. A 4, 2379), plus a few
    discs with hard edges. The same pictures every time.
    """
    return [_scene(height, width, seed) for seed, (height, width) in enumerate(sizes)]


def _scene(height: int, width: int, seed: int) -> Image.Image:
    random = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = np.inf  # no constant part
    spectrum = np.fft.rfft2(random.standard_normal((3, height, width))) / frequency
    noise = np.fft.irfft2(spectrum, s=(height, width))
    noise /= noise.std(axis=(1, 2), keepdims=True)
    mix = np.eye(3) * 0.4 + 0.6  # channels of natural pictures vary together
    pixels = 50 * np.einsum("ij,jhw->hwi", mix, noise) + random.uniform(80, 160, 3)
    y, x = np.mgrid[:height, :width]
    for _ in range(3):
        radius = random.uniform(0.05, 0.25) * min(height, width)
        center_y, center_x = random.uniform(0, height), random.uniform(0, width)
        inside = np.hypot(y - center_y, x - center_x) < radius
        pixels[inside] = 0.3 * pixels[inside] + 0.7 * random.uniform(0, 255, 3)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
