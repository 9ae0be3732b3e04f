"""A picture that costs a decoder what a photograph does: 500 x 375, coloured noise and edges."""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

WIDTH_PX, HEIGHT_PX = 500, 375
QUALITY = 88
SEED = 7
DISCS = 30


def draw() -> bytes:
    """The picture as a JPEG of about 70 kB; the same bytes at every call."""
    source = np.random.default_rng(SEED)
    light = _clouds(source, 1.2)
    tints = [light * 42 + _clouds(source, 1.6) * 20 + 128 for _ in range(3)]
    scene = Image.fromarray(np.stack(tints, axis=-1).clip(0, 255).astype(np.uint8))
    with_discs = scene.copy()
    pen = ImageDraw.Draw(with_discs)
    for _ in range(DISCS):
        x, y, size = source.integers((0, 0, 10), (WIDTH_PX, HEIGHT_PX, 90))
        colour = tuple(int(part) for part in source.integers(0, 256, 3))
        pen.ellipse((int(x), int(y), int(x + size), int(y + size)), fill=colour)
    blended = np.asarray(Image.blend(scene, with_discs, 0.6), dtype=np.float32)
    grain = source.normal(0, 4, blended.shape)
    written = io.BytesIO()
    grained = Image.fromarray((blended + grain).clip(0, 255).astype(np.uint8))
    grained.save(written, "JPEG", quality=QUALITY)
    return written.getvalue()


def _clouds(source: np.random.Generator, steepness: float) -> NDArray[np.float64]:
    """Noise whose amplitude falls with a power of its frequency, as that of photographs does; mean
    0, deviation 1.
    """
    down, across = np.fft.fftfreq(HEIGHT_PX)[:, None], np.fft.fftfreq(WIDTH_PX)[None, :]
    frequency = np.hypot(down, across)
    frequency[0, 0] = np.inf  # no mean
    phases = np.exp(2j * np.pi * source.random((HEIGHT_PX, WIDTH_PX)))
    clouds = np.real(np.fft.ifft2(phases / frequency**steepness))
    return clouds / clouds.std()
