"""Leave to decode large JPEGs at a fraction of their size: measured, judged, and then stated."""

from dataclasses import dataclass
from io import BytesIO
from math import ceil
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from export.parity import measure, objections, run_alone, summary
from export.pictures import collect, files
from export.progress import Progress, Silent
from export.proof import FEWEST_PICTURES
from export.repository import replace_manifest
from service.bundle import Bundle, Decoding, Graph, Manifest, Parity
from service.errors import StartError
from service.geometry import Placement, Size, choose_canvas, least_decoded, place, to_canvas
from service.images import ImageLimits, Opened
from service.worker.runtimes.base import Arrays
from service.worker.runtimes.choose import FASTEST_FIRST, Choice, check_graph, open_graph, supports

MOST = 24
"""Pictures per canvas; they are large, and each is run three times."""

_DENOMINATORS = (8, 4, 2)
_LIMITS = ImageLimits()
_QUALITY = 90


@dataclass(frozen=True)
class _Pair:
    """One picture on its canvas, by a full decode and by a fraction."""

    placement: Placement
    whole: NDArray[np.uint8]
    fraction: NDArray[np.uint8]


def allow_scaling(
    bundle: Bundle, scale: float, images: Path | None = None, progress: Progress | None = None
) -> Bundle:
    """Write into a bundle's manifest that large JPEGs may be decoded at a fraction.

    Raises:
        StartError: as ``measured``; the manifest is as it was then.
    """
    decoding = measured(bundle.folder, bundle.manifest, scale, images, progress or Silent())
    return replace_manifest(bundle, bundle.manifest.model_copy(update={"decoding": decoding}))


def forbid_scaling(bundle: Bundle) -> Bundle:
    """Write into a bundle's manifest that every picture is decoded in full."""
    return replace_manifest(bundle, bundle.manifest.model_copy(update={"decoding": None}))


def measured(
    folder: Path, manifest: Manifest, scale: float, images: Path | None, progress: Progress
) -> Decoding:
    """What fractions change, in fp32: the section of the manifest that allows them.

    Given JPEGs that are large enough are taken as they are; where those are few, sample scenes and
    given pictures are enlarged.

    Enlarged pictures are as small as the fraction allows, which is where it changes most.

    Raises:
        StartError: it changes more than a reduced precision may, or no picture that the server
        accepts would be decoded at a fraction.
    """
    choice = _first_in_fp32()
    effect, noise, described = [], [], ""
    for canvas in manifest.canvases:
        progress.step(f"decoding at a fraction for {canvas}")
        pairs, described = _pairs(manifest, canvas, scale, images)
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
        raise StartError(
            f"decoding JPEGs at a fraction that leaves {scale:g} pixels for each changes too much: "
            f"{'; '.join(faults)}. Ask for a larger scale, or for none"
        )
    return Decoding(jpeg_scale=scale, pictures=described, psnr_db=min(noise), effect=effect)


def _first_in_fp32() -> Choice:
    for choice in FASTEST_FIRST:
        if choice.precision == "fp32" and supports(choice) is None:
            return choice
    raise StartError(
        "neither openvino nor onnxruntime is installed, so that nothing can be measured; "
        "install them with: pip install 'saccade[export]'"
    )


def _pairs(
    manifest: Manifest, canvas: Size, scale: float, images: Path | None
) -> tuple[list[_Pair], str]:
    """The pictures at one canvas, and what they are."""
    given = [path.read_bytes() for path in files(images)] if images else []
    found = (_pair(data, manifest, canvas, scale) for data in given)
    pairs = [pair for pair in found if pair is not None][:MOST]
    described = f"{len(pairs)} given JPEGs as they are"
    if len(pairs) >= FEWEST_PICTURES:
        return pairs, described
    own_first = sorted(
        collect(images).images,
        key=lambda i: choose_canvas(manifest.geometry, _size(i), manifest.canvases) != canvas,
    )[: MOST - len(pairs)]
    enlarged = []
    for number, picture in enumerate(own_first):
        data = _enlarged(picture, manifest, canvas, scale, number)
        pair = data and _pair(data, manifest, canvas, scale)
        if not pair:
            raise StartError(
                f"no JPEG of up to {_LIMITS.max_pixels} pixels leaves {scale:g} pixels for each "
                f"at {canvas} when it is decoded at a half; a smaller scale may help"
            )
        enlarged.append(pair)
    also = f"{described}, " if pairs else ""
    return pairs + enlarged, f"{also}{len(enlarged)} pictures enlarged"


def _pair(data: bytes, manifest: Manifest, canvas: Size, scale: float) -> _Pair | None:
    """None if the server would decode this file in full."""
    opened = Opened(data, _LIMITS)
    placement = place(manifest.geometry, opened.header.size, canvas)
    decoded = opened.decode(least_decoded(placement, scale))
    if not decoded.scaled:
        return None
    fraction = to_canvas(decoded.image, placement, decoded.box)
    return _Pair(placement, to_canvas(opened.decode().image, placement), fraction)


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
            buffer = BytesIO()
            large = picture.resize((width, height), Image.Resampling.BICUBIC)
            large.save(buffer, "JPEG", quality=_QUALITY)
            return buffer.getvalue()
    return None


def _effect(
    folder: Path, manifest: Manifest, graph: Graph, pairs: list[_Pair], choice: Choice
) -> Parity:
    path = folder / graph.file
    runtime = open_graph(path, choice)
    check_graph(path, graph, runtime)
    whole = _inputs(manifest, graph, pairs, [pair.whole for pair in pairs])
    fraction = whole | {"images": np.stack([pair.fraction for pair in pairs])}
    return measure(graph, runtime, run_alone(runtime, whole), fraction)


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
    error = (pair.whole.astype(np.float64) - pair.fraction)[:height, :width]
    return float(min(99.0, 10 * np.log10(255**2 / max(np.square(error).mean(), 1e-9))))


def _size(picture: Image.Image) -> Size:
    return Size(height=picture.height, width=picture.width)
