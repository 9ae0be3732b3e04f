"""The stuff of a scene: sky, ground and water with textures, one behind the other."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image

Picture = NDArray[np.float32]
Field = NDArray[np.float32]

GROUNDS = [(0.35, 0.55, 0.22), (0.46, 0.50, 0.26), (0.80, 0.70, 0.47), (0.52, 0.38, 0.25)]
WATERS = [(0.12, 0.36, 0.55), (0.10, 0.44, 0.50), (0.18, 0.30, 0.46)]
SKIES = [
    ((0.30, 0.55, 0.88), (0.75, 0.87, 0.96)),
    ((0.45, 0.62, 0.80), (0.90, 0.90, 0.88)),
    ((0.36, 0.38, 0.62), (0.97, 0.74, 0.55)),
    ((0.55, 0.62, 0.70), (0.80, 0.83, 0.86)),
]


@dataclass(frozen=True)
class Layer:
    """One stuff class in the picture: coverage (H, W) in 0..1 over all layers before it, and its
    colours (H, W, 3) in 0..1.
    """

    name: str
    coverage: Field
    color: Picture


def landscape(rng: Generator, size: tuple[int, int]) -> list[Layer]:
    """Layers from back to front; the first, sky or ground, covers everything."""
    layout = rng.choice(["field", "coast", "sea", "pond", "river", "meadow"])
    if layout == "meadow":  # seen from above, without a horizon
        return [_everywhere("ground", _ground(rng, size))]
    down = np.linspace(0, 1, size[0], dtype=np.float32)[:, None]
    horizon = _curve(rng, size[1], level=rng.uniform(0.25, 0.6), swing=0.02)
    below = _below(down, horizon, size)
    layers = [_everywhere("sky", _sky(rng, size, down))]
    if layout in ("coast", "sea"):
        layers.append(Layer("water", below, _water(rng, size)))
    else:
        layers.append(Layer("ground", below, _ground(rng, size)))
    if layout == "coast":
        shore = horizon + rng.uniform(0.12, 0.25) + _curve(rng, size[1], level=0, swing=0.05)
        sand = _below(down, np.maximum(shore, horizon), size)
        layers.append(Layer("ground", sand, _ground(rng, size)))
    if layout == "pond":
        layers.append(Layer("water", _pond(rng, size, down) * below, _water(rng, size)))
    if layout == "river":
        bank = 1 - rng.uniform(0.12, 0.25) + _curve(rng, size[1], level=0, swing=0.05)
        stream = _below(down, np.maximum(bank, horizon), size)
        layers.append(Layer("water", stream, _water(rng, size)))
    return layers


def noise(rng: Generator, size: tuple[int, int], cells: tuple[int, int], octaves: int = 1) -> Field:
    """Smooth noise (H, W) about 0 with a spread of about 1; ``cells`` are random values down and
    across, twice as many and half as strong with every octave.
    """
    total = np.zeros(size, dtype=np.float32)
    for octave in range(octaves):
        coarse = rng.standard_normal((cells[0] << octave, cells[1] << octave), dtype=np.float32)
        smooth = Image.fromarray(coarse).resize((size[1], size[0]), Image.Resampling.BICUBIC)
        total += np.asarray(smooth) * 0.5**octave
    return total


def _everywhere(name: str, color: Picture) -> Layer:
    return Layer(name, np.ones(color.shape[:2], dtype=np.float32), color)


def _curve(rng: Generator, width: int, level: float, swing: float) -> Field:
    """A gentle wave (1, W) about ``level``, as a share of the picture's height."""
    x = np.linspace(0, 2 * math.pi, width, dtype=np.float32)[None]
    first, second = rng.uniform(0, swing, 2)
    phases = rng.uniform(0, 2 * math.pi, 2)
    wave = first * np.sin(x + phases[0]) + 0.4 * second * np.sin(3 * x + phases[1])
    return (level + wave).astype(np.float32)


def _below(down: Field, curve: Field, size: tuple[int, int]) -> Field:
    """Coverage (H, W) of what lies below the curve, its edge one pixel soft."""
    return ((down - curve) * size[0] + 0.5).clip(0, 1)


def _pond(rng: Generator, size: tuple[int, int], down: Field) -> Field:
    """Coverage (H, W) of an ellipse near the bottom."""
    across = np.linspace(0, 1, size[1], dtype=np.float32)[None]
    y, x = rng.uniform(0.74, 0.85), rng.uniform(0.25, 0.75)
    half_height, half_width = rng.uniform(0.08, 0.14), rng.uniform(0.22, 0.4)
    distance = np.hypot((down - y) / half_height, (across - x) / half_width)
    return ((1 - distance) * half_height * size[0] + 0.5).clip(0, 1).astype(np.float32)


def _tinted(rng: Generator, color: tuple[float, ...]) -> Field:
    return (np.array(color) * rng.uniform(0.85, 1.15) + rng.normal(0, 0.02, 3)).astype(np.float32)


def _sky(rng: Generator, size: tuple[int, int], down: Field) -> Picture:
    high, low = (_tinted(rng, color) for color in SKIES[rng.integers(len(SKIES))])
    gradient = high + (low - high) * np.minimum(down * 1.6, 1)[..., None]
    clouds = noise(rng, size, cells=(6, 4), octaves=3)
    cover = ((clouds - rng.uniform(0, 1)) * 0.5).clip(0, 0.85)[..., None]
    return (gradient * (1 - cover) + 0.97 * cover).astype(np.float32)


def _ground(rng: Generator, size: tuple[int, int]) -> Picture:
    color = _tinted(rng, GROUNDS[rng.integers(len(GROUNDS))])
    patches = noise(rng, size, cells=(6, 5), octaves=3) * 0.06
    grain = noise(rng, size, cells=(70, 70)) * 0.07
    return color * (1 + patches + grain)[..., None]


def _water(rng: Generator, size: tuple[int, int]) -> Picture:
    color = _tinted(rng, WATERS[rng.integers(len(WATERS))])
    ripples = noise(rng, size, cells=(48, 7)) * 0.09
    swell = noise(rng, size, cells=(8, 3), octaves=2) * 0.06
    glints = (noise(rng, size, cells=(70, 14)) - 1.1).clip(0, 1) * 0.35
    return (color * (1 + ripples + swell)[..., None] + glints[..., None]).astype(np.float32)
