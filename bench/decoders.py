"""JPEG decoders and resizers that a package index offers, against Pillow, on the same pictures.

    python -m bench.decoders [--photo FILE] [--rounds N] [--out FILE]

Whatever is installed of the candidates is measured; install more of them into an environment made
for that. Every candidate takes its turn in every round, so that whatever else the machine does
falls on all of them: compare the ratios. Times are processor time, of all threads, up to what the
decoder itself gives: Pillow an image, the others an array.
"""

import argparse
import io
import json
import statistics
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib import import_module, metadata
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.table import Table

from service.bench.report import describe_machine
from service.geometry import Geometry, Interpolation, Resize, Size, least_decoded, place, to_canvas
from service.images import ImageLimits, Opened
from service.resize import Resizer
from service.settings import DEMO_REPOSITORY

SCENE = DEMO_REPOSITORY.parent / "scenes" / "cross.jpg"
SIZES = {"small": (375, 500), "medium": (960, 1280), "12 MP": (3000, 4000)}
SIDE = 224
LIMITS = ImageLimits()

Pixels = NDArray[np.uint8]
Decoded = Pixels | Image.Image
Decoder = Callable[[bytes], Decoded]
Way = Callable[[bytes], Pixels]
Candidates = dict[str, tuple[str, Callable[[], Decoder]]]


def _pillow() -> Decoder:
    def decode(data: bytes) -> Image.Image:
        image = Image.open(io.BytesIO(data))
        image.load()
        return image

    return decode


def _simplejpeg() -> Decoder:
    library = import_module("simplejpeg")
    return lambda data: library.decode_jpeg(data, "RGB")


def _opencv() -> Decoder:
    library = import_module("cv2")
    library.setNumThreads(1)
    kind = library.IMREAD_COLOR_RGB | library.IMREAD_IGNORE_ORIENTATION
    return lambda data: library.imdecode(np.frombuffer(data, np.uint8), kind)


def _imagecodecs() -> Decoder:
    library = import_module("imagecodecs")
    return lambda data: library.jpeg8_decode(data)


def _kornia() -> Decoder:
    library = import_module("kornia_rs")
    return lambda data: library.io.decode_image_jpegturbo(data, "rgb")


def _kornia_zune() -> Decoder:
    library = import_module("kornia_rs")
    return lambda data: library.io.decode_image_jpeg(data)


DECODERS: Candidates = {
    "Pillow": ("pillow", _pillow),
    "simplejpeg": ("simplejpeg", _simplejpeg),
    "OpenCV": ("opencv-python-headless", _opencv),
    "imagecodecs": ("imagecodecs", _imagecodecs),
    "kornia-rs, libjpeg-turbo": ("kornia-rs", _kornia),
    "kornia-rs, zune": ("kornia-rs", _kornia_zune),
}
"""By name: the distribution, and what loads it."""


def main() -> None:
    """Measure all that is installed, print tables, write JSON."""
    parser = argparse.ArgumentParser(prog="python -m bench.decoders")
    parser.add_argument("--photo", type=Path, default=SCENE, help="picture to draw all sizes from")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, default=Path("decoders.json"))
    asked = parser.parse_args()
    pictures = {name: picture(asked.photo, *size) for name, size in SIZES.items()}
    decoding = measure_decoders(pictures, asked.rounds)
    preparing = measure_preparing(pictures, asked.rounds)
    report = {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": describe_machine(),
        "pictures": {name: {"bytes": len(data)} for name, data in pictures.items()},
        "decoders": decoding,
        "preparing": preparing,
    }
    asked.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    Console().print(*tabulate(decoding, preparing))


def picture(photo: Path, height: int, width: int) -> bytes:
    """A JPEG of that size, with the grain of a camera: an enlarged picture has no detail of its own
    and would be decoded in less time than a photograph.
    """
    with Image.open(photo) as image:
        large = image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
    grain = np.random.default_rng(0).normal(0, 4, (height, width, 1))
    pixels = (np.asarray(large) + grain).clip(0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=88, subsampling="4:2:0")
    return buffer.getvalue()


def measure_decoders(pictures: dict[str, bytes], rounds: int) -> dict[str, dict[str, Any]]:
    """Times, distance from Pillow, and the cost of every decoder that is installed."""
    decoders: dict[str, Decoder] = {}
    found: dict[str, dict[str, Any]] = {}
    for name, (distribution, load) in DECODERS.items():
        try:
            decoders[name] = load()
        except ImportError:
            continue
        found[name] = {
            "version": metadata.version(distribution),
            "installed_mb": _installed_bytes(distribution) / 1e6,
            "pause_share": _pause_share(decoders[name], pictures["12 MP"]),
        }
    for size, data in pictures.items():
        expected = decoders["Pillow"](data)
        works = {name: _bind(decode, data) for name, decode in decoders.items()}
        for name, seconds in _interleaved(works, rounds).items():
            found[name][size] = {
                "cpu_ms": 1e3 * seconds,
                "largest_difference": _difference(expected, decoders[name](data)),
            }
    return found


def measure_preparing(pictures: dict[str, bytes], rounds: int) -> dict[str, dict[str, Any]]:
    """From bytes to a canvas: by Pillow alone, as the server does it, and in less exact ways."""
    found: dict[str, dict[str, Any]] = {}
    kinds: tuple[Interpolation, ...] = ("bilinear", "bicubic")
    for interpolation in kinds:
        ways = _ways(_geometry(interpolation))
        for size, data in pictures.items():
            expected = ways["server, Pillow alone"](data)
            works = {name: _bind(way, data) for name, way in ways.items()}
            for name, seconds in _interleaved(works, rounds).items():
                pixels = ways[name](data)
                found.setdefault(name, {})[f"{size}, {interpolation}"] = {
                    "cpu_ms": 1e3 * seconds,
                    "largest_difference": _difference(expected, pixels),
                    "psnr_db": _psnr_db(expected, pixels),
                }
    return found


def tabulate(
    decoding: dict[str, dict[str, Any]], preparing: dict[str, dict[str, Any]]
) -> list[Table]:
    """Milliseconds of processor time and, after the slash, the largest difference in levels."""
    decoders = Table(title="decoding: ms / largest difference from Pillow", title_justify="left")
    for column in ("decoder", "version", "installed", "longest pause", *SIZES):
        decoders.add_column(column)
    for name, figures in decoding.items():
        cells = [_cell(figures[size]) for size in SIZES]
        share = f"{100 * figures['pause_share']:.0f} %"
        installed = f"{figures['installed_mb']:.1f} MB"
        decoders.add_row(name, figures["version"], installed, share, *cells)
    ways = Table(
        title=f"bytes to a canvas of {SIDE}x{SIDE}: ms / largest difference / dB",
        title_justify="left",
    )
    columns = list(next(iter(preparing.values())))
    for column in ("way", *columns):
        ways.add_column(column)
    for name, figures in preparing.items():
        ways.add_row(name, *(f"{_cell(figures[c])} / {figures[c]['psnr_db']:.0f}" for c in columns))
    return [decoders, ways]


def _cell(figures: dict[str, float]) -> str:
    return f"{figures['cpu_ms']:.2f} / {figures['largest_difference']}"


def _geometry(interpolation: Interpolation) -> Geometry:
    """What most classifiers ask for: a shortest edge of 256, and the middle of that."""
    return Geometry(
        nominal=Size(height=SIDE, width=SIDE),
        resize=Resize(mode="shortest_edge", shortest_edge=256, interpolation=interpolation),
        placement="crop",
    )


def _ways(geometry: Geometry) -> dict[str, Way]:
    def by_server(data: bytes, scale: float | None = None, resizer: Resizer = "pillow") -> Pixels:
        opened = Opened(data, LIMITS)
        placement = place(geometry, opened.header.size, geometry.nominal)
        decoded = opened.decode(least_decoded(placement, scale) if scale else None)
        return to_canvas(decoded.image, placement, decoded.box, resizer)

    def by_pillow(data: bytes) -> Pixels:
        with patch("service.images._by_simplejpeg", lambda *_: None):
            return by_server(data)

    return {
        "server, Pillow alone": by_pillow,
        "server": by_server,
        "server, jpeg_scale 2": lambda data: by_server(data, 2.0),
        "server, jpeg_scale 1": lambda data: by_server(data, 1.0),
        "server, simd": lambda data: by_server(data, resizer="simd"),
        "server, simd and jpeg_scale 2": lambda data: by_server(data, 2.0, "simd"),
    }


def _bind(work: Decoder, data: bytes) -> Callable[[], Decoded]:
    return lambda: work(data)


def _interleaved(works: dict[str, Callable[[], Decoded]], rounds: int) -> dict[str, float]:
    """Median processor seconds of each; in each round every one is run once."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for number in range(rounds + 1):
        for name, work in works.items():
            started_s = time.process_time()
            work()
            if number:  # the first round only warms up
                seconds[name].append(time.process_time() - started_s)
    return {name: statistics.median(times) for name, times in seconds.items()}


def _pause_share(decode: Decoder, data: bytes) -> float:
    """The longest pause of other Python code while a picture is decoded, as a share of that time:
    near 1 if the interpreter's lock is kept. The least of several, since others use the cores, too.
    """
    interval_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    try:
        return min(_one_pause(decode, data) for _ in range(7))
    finally:
        sys.setswitchinterval(interval_s)


def _one_pause(decode: Decoder, data: bytes) -> float:
    taken_s: list[float] = []

    def work() -> None:
        started_s = time.perf_counter()
        decode(data)
        taken_s.append(time.perf_counter() - started_s)

    thread = threading.Thread(target=work)
    thread.start()
    longest_s, last_s = 0.0, time.perf_counter()
    while thread.is_alive():
        now_s = time.perf_counter()
        longest_s, last_s = max(longest_s, now_s - last_s), now_s
    return min(1.0, longest_s / taken_s[0])


def _installed_bytes(distribution: str) -> int:
    files = metadata.files(distribution) or []
    paths = [Path(str(file.locate())) for file in files]
    return sum(path.stat().st_size for path in paths if path.is_file())


def _difference(expected: Decoded, pixels: Decoded) -> int:
    return int(np.abs(np.asarray(expected).astype(int) - np.asarray(pixels)).max())


def _psnr_db(expected: Pixels, pixels: Pixels) -> float:
    error = np.square(expected.astype(float) - pixels).mean()
    return float(min(99.0, 10 * np.log10(255**2 / max(error, 1e-9))))


if __name__ == "__main__":
    main()
