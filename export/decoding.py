"""Leave to make pixels fast instead of exact: measured, judged, and then stated."""

from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from math import ceil
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from export.pictures import SCENES, collect, files, generate, given
from export.progress import Progress, Silent
from export.proof import FEWEST_PICTURES
from export.repository import replace_manifest
from service.bundle import Bundle, Decoding, Graph, Manifest, Parity
from service.errors import StartError
from service.geometry import Placement, Size, choose_canvas, least_decoded, place, to_canvas
from service.images import ImageLimits, Opened
from service.parity import measure, objections, run_alone, summary
from service.worker.runtimes.base import Arrays
from service.worker.runtimes.choose import FASTEST_FIRST, Choice, check_graph, open_graph, supports

JPEG_SCALE = 2.0
"""Pixels a side that a fraction leaves for each that resizing keeps, unless told otherwise."""
MOST = 24
"""Pictures per canvas; half of them, where there are so many, are decoded at a fraction."""

_DENOMINATORS = (8, 4, 2)
_LIMITS = ImageLimits()
_QUALITY = 90


@dataclass(frozen=True)
class _Pair:
    """One picture on its canvas, exact and fast; ``scaled`` if fast was decoded at a fraction."""

    placement: Placement
    exact: NDArray[np.uint8]
    fast: NDArray[np.uint8]
    scaled: bool


def allow_fast(
    bundle: Bundle,
    jpeg_scale: float | None = JPEG_SCALE,
    images: Path | None = None,
    progress: Progress | None = None,
) -> Bundle:
    """Write into a bundle's manifest that pictures may be decoded and resized in less time.

    Raises:
        StartError: as ``measured``; the manifest is as it was then.
    """
    decoding = measured(bundle.folder, bundle.manifest, jpeg_scale, images, progress or Silent())
    return replace_manifest(bundle, bundle.manifest.model_copy(update={"decoding": decoding}))


def keep_exact(bundle: Bundle) -> Bundle:
    """Write into a bundle's manifest that every picture is decoded in full, and resized exactly."""
    return replace_manifest(bundle, bundle.manifest.model_copy(update={"decoding": None}))


def measured(
    folder: Path,
    manifest: Manifest,
    jpeg_scale: float | None,
    images: Path | None,
    progress: Progress,
) -> Decoding:
    """What fast pixels change, in fp32: the section of the manifest that allows them.

    They are resized with vector instructions and, if ``jpeg_scale`` is given, large JPEGs are
    decoded at a fraction of their size. Sample scenes and given pictures are taken as they are.
    Where few of them are JPEGs that are large enough for a fraction, they are enlarged as well, as
    little as the fraction allows, which is where it changes most.

    Raises:
        StartError: it changes more than a reduced precision may, or no picture that the server
        accepts would be decoded at a fraction.
    """
    choice = _first_in_fp32()
    effect, noise, described = [], [], ""
    for canvas in manifest.canvases:
        progress.step(f"fast pixels for {canvas}")
        pairs, described = _pairs(manifest, canvas, jpeg_scale, images)
        noise += [_psnr_db(pair) for pair in pairs]
        graph = manifest.graph("serve", canvas, "fp32")
        assert graph is not None
        effect.append(_effect(folder, manifest, graph, pairs, choice))
    faults = [
        f"at {parity.canvas} the {fault} ({summary(parity)})"
        for parity in effect
        # judged as a precision is that computes something slightly different
        for fault in objections(parity.model_copy(update={"precision": "bf16"}))
    ]
    if faults:
        way = "resizing pictures with vector instructions"
        advice = "Keep the pixels exact"
        if jpeg_scale:
            way += f" and decoding JPEGs at a fraction that leaves {jpeg_scale:g} pixels for each"
            advice = "Ask for a larger scale, or for none (0)"
        raise StartError(f"{way} changes too much: {'; '.join(faults)}. {advice}")
    return Decoding(
        resizer="simd",
        jpeg_scale=jpeg_scale,
        pictures=described,
        psnr_db=min(noise),
        effect=effect,
    )


def _first_in_fp32() -> Choice:
    for choice in FASTEST_FIRST:
        if choice.precision == "fp32" and supports(choice) is None:
            return choice
    raise StartError(
        "neither openvino nor onnxruntime is installed, so that nothing can be measured; "
        "install them with: pip install 'saccade[export]'"
    )


def _pairs(
    manifest: Manifest, canvas: Size, jpeg_scale: float | None, images: Path | None
) -> tuple[list[_Pair], str]:
    """The pictures at one canvas, and what they are."""
    whole: list[_Pair] = []
    scaled: list[_Pair] = []
    for data in _shown(images):
        pair = _pair(data, manifest, canvas, jpeg_scale)
        of_its_kind = scaled if pair.scaled else whole
        if len(of_its_kind) < MOST // 2:
            of_its_kind.append(pair)
    described = f"{len(whole) + len(scaled)} pictures as they are"
    if scaled:
        described = f"{described} ({len(scaled)} at a fraction)"
    if jpeg_scale is None or len(scaled) >= FEWEST_PICTURES:
        return whole + scaled, described
    enlarged = _all_enlarged(manifest, canvas, jpeg_scale, images)[: MOST // 2 - len(scaled)]
    return whole + scaled + enlarged, f"{described}, {len(enlarged)} enlarged"


def _shown(images: Path | None) -> Iterator[bytes]:
    """Given files first, then sample scenes."""
    paths = [*(given(images) if images else []), *files(SCENES)]
    if paths:
        return (path.read_bytes() for path in paths)
    return (_jpeg(picture) for picture in generate())


def _all_enlarged(
    manifest: Manifest, canvas: Size, jpeg_scale: float, images: Path | None
) -> list[_Pair]:
    """Pictures just large enough for a fraction, those first that the server would put here."""
    own_first = sorted(
        collect(images).images,
        key=lambda i: choose_canvas(manifest.geometry, _size(i), manifest.canvases) != canvas,
    )
    pairs = []
    for number, picture in enumerate(own_first[: MOST // 2]):
        data = _enlarged(picture, manifest, canvas, jpeg_scale, number)
        pair = data and _pair(data, manifest, canvas, jpeg_scale)
        if not pair or not pair.scaled:
            raise StartError(
                f"no JPEG of up to {_LIMITS.max_pixels} pixels leaves {jpeg_scale:g} pixels for "
                f"each at {canvas} when it is decoded at a half; a smaller scale may help, or none"
            )
        pairs.append(pair)
    return pairs


def _pair(data: bytes, manifest: Manifest, canvas: Size, jpeg_scale: float | None) -> _Pair:
    opened = Opened(data, _LIMITS)
    placement = place(manifest.geometry, opened.header.size, canvas)
    decoded = opened.decode(least_decoded(placement, jpeg_scale) if jpeg_scale else None)
    fast = to_canvas(decoded.image, placement, decoded.box, "simd")
    whole = opened.decode() if decoded.scaled else decoded
    return _Pair(placement, to_canvas(whole.image, placement), fast, decoded.scaled)


def _enlarged(
    picture: Image.Image, manifest: Manifest, canvas: Size, scale: float, number: int
) -> bytes | None:
    """A JPEG just large enough for one of the fractions, which take turns, or for the next."""
    least = least_decoded(place(manifest.geometry, _size(picture), canvas), scale)
    turn = number % len(_DENOMINATORS)
    for denominator in _DENOMINATORS[turn:]:
        # rounding may ask for a pixel more on a picture of another size
        wanted = Size(
            height=denominator * (least.height + 1), width=denominator * (least.width + 1)
        )
        factor = max(wanted.height / picture.height, wanted.width / picture.width)
        height, width = ceil(picture.height * factor), ceil(picture.width * factor)
        if height * width <= _LIMITS.max_pixels and max(height, width) <= _LIMITS.max_side:
            return _jpeg(picture.resize((width, height), Image.Resampling.BICUBIC))
    return None


def _jpeg(picture: Image.Image) -> bytes:
    buffer = BytesIO()
    picture.save(buffer, "JPEG", quality=_QUALITY)
    return buffer.getvalue()


def _effect(
    folder: Path, manifest: Manifest, graph: Graph, pairs: list[_Pair], choice: Choice
) -> Parity:
    path = folder / graph.file
    runtime = open_graph(path, choice)
    check_graph(path, graph, runtime)
    exact = _inputs(manifest, graph, pairs, [pair.exact for pair in pairs])
    fast = exact | {"images": np.stack([pair.fast for pair in pairs])}
    return measure(graph, runtime, run_alone(runtime, exact), fast)


def _inputs(
    manifest: Manifest, graph: Graph, pairs: list[_Pair], pixels: list[NDArray[np.uint8]]
) -> Arrays:
    """All that a serving graph may take, narrowed to what this one does."""
    valid = [(pair.placement.valid.height, pair.placement.valid.width) for pair in pairs]
    known: Arrays = {"images": np.stack(pixels), "sizes": np.array(valid, dtype=np.int32)}
    if manifest.segmentation is not None:
        for name in ("threshold", "overlap_threshold"):
            least = getattr(manifest.segmentation, name)
            known[name] = np.full(len(pairs), least, dtype=np.float32)
    return {tensor.name: known[tensor.name] for tensor in graph.inputs}


def _psnr_db(pair: _Pair) -> float:
    """Over the part of the canvas that shows the picture; at most 99."""
    height, width = pair.placement.valid.height, pair.placement.valid.width
    error = (pair.exact.astype(np.float64) - pair.fast)[:height, :width]
    return float(min(99.0, 10 * np.log10(255**2 / max(np.square(error).mean(), 1e-9))))


def _size(picture: Image.Image) -> Size:
    return Size(height=picture.height, width=picture.width)
