"""The pictures on which an export is proven: given ones, sample scenes, or generated ones."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from service.errors import StartError
from service.images import ImageLimits, decode

SCENES = Path(__file__).parent.parent / "service" / "demo" / "scenes"
MOST = 64
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}

_GENERATED_SIZES = ((480, 640), (640, 480), (300, 300), (375, 500), (200, 640), (720, 540))


@dataclass(frozen=True)
class Pictures:
    """Upright RGB pictures and, for the manifest, what they are."""

    images: list[Image.Image]
    description: str


def collect(folder: Path | None = None, scenes: Path = SCENES) -> Pictures:
    """The sample scenes and the pictures of ``folder``; without either, generated ones.

    Of a folder, the first 64 files by name count.

    Raises:
        StartError: ``folder`` has no pictures.
        ClientError: one of them cannot be decoded.
    """
    samples, own = files(scenes), given(folder) if folder else []
    images = [decode(path.read_bytes(), ImageLimits()) for path in [*samples, *own]]
    counts = {"sample scenes": len(samples), "given pictures": len(own)}
    if not images:
        images = generate()
        counts = {"generated pictures": len(images)}
    named = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
    return Pictures(images, named)


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
