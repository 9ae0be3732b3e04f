"""From bytes to an upright RGB picture: header first, then pixels, in any thread.

The policy, equal to ``transformers.image_utils.load_image`` wherever that gives an answer:

- JPEG (a multi-picture file counts as its first picture), PNG and WebP; nothing else is opened.
- EXIF orientation is applied; orientation that cannot be read counts as upright.
- Alpha is dropped, not blended: the colours below it show. So are palette transparency and colour
  keys.
- CMYK, palette, greyscale and 1-bit are converted to RGB by Pillow; ICC profiles and gamma are
  ignored.
- 16 bits a channel are divided by 256 (``load_image`` clips 16-bit greyscale to white instead).
- Of an animation the first frame counts.
- A file that ends early or is damaged is refused, even where some rows could be decoded.

simplejpeg decodes common JPEGs, to the bits that Pillow would give and in less time. Whatever it
objects to goes to Pillow, which alone decides what is refused, and with which words.
"""

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import Literal

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from service.errors import BadImage, ServiceError, TooLarge, UnsupportedFormat
from service.geometry import Box, Size

Format = Literal["JPEG", "PNG", "WEBP"]

ALLOWED = "JPEG, PNG and WebP are accepted"

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_MIRRORED_X, _MIRRORED_Y = {2, 3, 6, 7}, {3, 4, 7, 8}  # orientations, after the sides were swapped

# Fractions that libjpeg decodes at in less time than the whole picture. Its SIMD code has no other:
# 3/8 takes longer than 1/2, and 5/8 longer than all of it.
_DENOMINATORS = (8, 4, 2)
_LEAST_SCALED_SIDE = 64  # below it fractions round to the same sides, and nothing is gained

_SIGNATURES: dict[Format, bytes] = {
    "JPEG": rb"\xff\xd8\xff",
    "PNG": rb"\x89PNG\r\n\x1a\n",
    "WEBP": rb"RIFF.{4}WEBP",
}

_OTHER_SIGNATURES = {
    "a GIF picture": rb"GIF8[79]a",
    "a TIFF picture": rb"II[\x2a\x2b]\x00|MM\x00[\x2a\x2b]",
    "a BMP picture": rb"BM.{4}\x00\x00\x00\x00",
    "an AVIF picture": rb".{4}ftypavi[fs]",
    "a HEIC picture": rb".{4}ftyp(?:hei[cmsx]|hev[cmsx]|mif1|msf1)",
    "a JPEG 2000 picture": rb"\x00\x00\x00\x0cjP  |\xff\x4f\xff\x51",
    "a JPEG XL picture": rb"\x00\x00\x00\x0cJXL |\xff\x0a",
    "an icon": rb"\x00\x00[\x01\x02]\x00|icns",
    "a Photoshop file": rb"8BPS",
    "a portable pixmap": rb"P[1-7][ \t\r\n#]",
    "a PostScript file": rb"%!PS|\xc5\xd0\xd3\xc6",
    "a PDF document": rb"%PDF-",
    "an SVG drawing": rb"\s*<svg|\s*<\?xml[^>]*>\s*<svg",
    "a web page": rb"(?i)\s*<!doctype html|\s*<html",
    "an XML document": rb"\s*<\?xml",
    "a JSON document": rb"\s*[\[{]\s*[\"{\[\]}]",
    "a video": rb".{4}ftyp|\x1a\x45\xdf\xa3|RIFF.{4}AVI ",
    "a ZIP archive": rb"PK[\x03\x05]",
    "a gzip archive": rb"\x1f\x8b",
    "base64 text of a picture": rb"\s*(?:data:image/|/9j/|iVBORw0KGgo|UklGR)",
}

_JPEG_MARKER = re.compile(rb"\xff([^\x00\xff\xd0-\xd8])")
_JPEG_SCAN, _JPEG_END = b"\xda", b"\xd9"
_JPEG_FRAMES = b"\xc0", b"\xc1", b"\xc2"  # baseline, extended, progressive; all of Huffman codes

_ORDINARY_MARKERS = 512  # a header has a segment for each 64 KiB of metadata
_PNG_METADATA = re.compile(rb"eXIf|[itz]TXt")
_PILLOW_MODULE = re.compile(r"PIL\.")


@dataclass(frozen=True)
class ImageLimits:
    """What is refused before any pixel is decoded.

    ``max_scans`` bounds the passes of a progressive JPEG: each visits every pixel, ordinary files
    have about ten, and a few bytes can ask for one more. ``max_frames`` bounds animations, of which
    libwebp reads the list of frames before the first.
    """

    max_pixels: int = 64_000_000
    max_side: int = 32_768
    max_scans: int = 32
    max_frames: int = 1_000


@dataclass(frozen=True)
class Header:
    """What a picture says of itself: upright size, Pillow's mode, EXIF orientation 1 to 8."""

    format: Format
    size: Size
    frames: int
    mode: str
    orientation: int


@dataclass(frozen=True)
class Decoded:
    """An upright RGB picture, perhaps at a fraction of its size.

    ``box`` is the part of ``image`` that shows the picture. Sides of a fraction are rounded up, so
    that the last row and column reach a little beyond it.
    """

    image: Image.Image
    box: Box
    scaled: bool


class Opened:
    """A picture whose header was read, and whose size is allowed."""

    def __init__(self, data: bytes, limits: ImageLimits) -> None:
        """Read the header and nothing else.

        Raises:
            UnsupportedFormat: the bytes are no picture, or in another format.
            BadImage: there are no bytes, or the header is damaged.
            TooLarge: more pixels or frames or a longer side than ``limits`` allow.
        """
        self._data, self._limits = data, limits
        self._image, self.header = _open(data, limits)

    def decode(self, least: Size | None = None) -> Decoded:
        """Decode to upright RGB.

        With ``least`` (upright) a JPEG is decoded at 1/2, 1/4 or 1/8 by its own transform where no
        side is below that: in less time, and the pixels differ from those of a full decode.

        Raises:
            BadImage: the pixels end early or are damaged.
            TooLarge: a JPEG has too many scans.
        """
        header = self.header
        with _client_errors(header.format):
            if header.format == "JPEG":
                _check_scans(self._data, self._limits)
                decoded = self.decode_ordinary(least)
                if decoded is not None:
                    return decoded
            image = _upright_rgb(self._image, header.orientation)
            return Decoded(image, (0, 0, image.width, image.height), scaled=False)

    def decode_ordinary(self, least: Size | None = None) -> Decoded | None:
        """As ``decode``, by simplejpeg alone; None where that one objects."""
        header = self.header
        if header.format != "JPEG" or header.mode not in {"RGB", "L"}:
            return None
        return _by_simplejpeg(self._data, header, _denominator(header.size, least))


@dataclass(frozen=True)
class Effort:
    """What decoding a JPEG may take: its pixels, and those times its scans."""

    pixels: int
    visits: int


ORDINARY = Effort(pixels=16_000_000, visits=64_000_000)
"""The shots of a phone, and passes over no more pixels than cost a second."""
SMALL = Effort(pixels=1 << 18, visits=1 << 20)
"""A baseline JPEG of 512 x 512: a millisecond or two."""


def is_ordinary(data: bytes, most: Effort = ORDINARY) -> bool:
    """Whether this is such a JPEG as cameras and browsers write, cheap to read and to decode.

    What else there is may keep Pillow's header parser busy for seconds (millions of segments, or of
    bytes between them), or is left to decoders with a worse record than libjpeg-turbo's. Reads
    markers only, and few.
    """
    if not data.startswith(b"\xff\xd8\xff"):
        return False
    position, pixels, scans = 2, 0, 0
    for _ in range(_ORDINARY_MARKERS):
        find = _JPEG_MARKER.search if scans else _JPEG_MARKER.match  # only scans have no length
        marker = find(data, position)
        if marker is None:
            return False
        kind, start = marker[1], marker.end()
        if kind == _JPEG_END:
            return scans > 0 and scans * pixels <= most.visits
        if kind in _JPEG_FRAMES:
            frame = data[start + 2 : start + 8]
            if pixels or len(frame) < 6 or frame[0] != 8 or frame[5] not in (1, 3):
                return False
            pixels = int.from_bytes(frame[1:3]) * int.from_bytes(frame[3:5])
            if not 0 < pixels <= most.pixels:
                return False
        elif kind == _JPEG_SCAN:
            if not pixels:
                return False
            scans += 1
        position = start + int.from_bytes(data[start : start + 2])
    return False


def check_start(data: bytes, limits: ImageLimits) -> Format:
    """The format, by the first bytes alone; no parser has seen them then.

    Raises:
        UnsupportedFormat, BadImage, TooLarge: as ``Opened``, as far as the first bytes tell.
    """
    kind = _format_of(data)
    if kind == "PNG":
        # also where the file ends behind its header, which Pillow would call damaged
        _check_size(*_png_canvas(data), limits)
    if kind == "WEBP":
        # libwebp reserves the whole canvas when its decoder is created
        _check_size(*_webp_canvas(data), limits)
    return kind


def inspect(data: bytes, limits: ImageLimits) -> Header:
    """Read the header and nothing else.

    Raises:
        UnsupportedFormat, BadImage, TooLarge: as ``Opened``.
    """
    return Opened(data, limits).header


def decode(data: bytes, limits: ImageLimits) -> Image.Image:
    """Decode to upright RGB, all of it.

    Raises:
        UnsupportedFormat, BadImage, TooLarge: as ``Opened`` and its ``decode``.
    """
    return Opened(data, limits).decode().image


def _open(data: bytes, limits: ImageLimits) -> tuple[Image.Image, Header]:
    kind = check_start(data, limits)
    _silence_pillow()
    with _client_errors(kind):
        try:
            image = Image.open(BytesIO(data), formats=(kind,))
        except Image.DecompressionBombError as error:
            raise TooLarge(f"The picture is too large: {error} Send a smaller one.") from None
        _check_size(image.width, image.height, limits)
        orientation = _orientation(image, data)
    width, height = image.size
    if orientation >= 5:
        width, height = height, width
    frames = max(1, int(getattr(image, "n_frames", 1)))
    if frames > limits.max_frames:
        raise TooLarge(
            f"The picture has {frames} frames; at most {limits.max_frames} are accepted, and only "
            "the first counts. Send that one alone.",
            frames=frames,
            max_frames=limits.max_frames,
        )
    return image, Header(kind, Size(height=height, width=width), frames, image.mode, orientation)


def _format_of(data: bytes) -> Format:
    if not data:
        raise BadImage(f"The picture has no bytes. {ALLOWED}.")
    start = data[:1024]
    for kind, signature in _SIGNATURES.items():
        if re.match(signature, start, re.DOTALL):
            return kind
    if any(signature.startswith(data) for signature in (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")):
        raise BadImage(f"The picture ends after {len(data)} bytes. Send the whole file.")
    for name, signature in _OTHER_SIGNATURES.items():
        if re.match(signature, start, re.DOTALL):
            raise UnsupportedFormat(f"Found {name}; {ALLOWED}. Convert it and send it again.")
    raise UnsupportedFormat(
        f"Found no picture ({len(data)} bytes that begin with {data[:8].hex(' ')}); {ALLOWED}."
    )


def _png_canvas(data: bytes) -> tuple[int, int]:
    """Width and height by the first chunk; (0, 0) where that is another one, or cut off: then the
    size that Pillow finds is looked at, which decodes nothing before.
    """
    if data[12:16] != b"IHDR" or len(data) < 24:
        return 0, 0
    return int.from_bytes(data[16:20]), int.from_bytes(data[20:24])


def _webp_canvas(data: bytes) -> tuple[int, int]:
    """Width and height by the first chunk; (0, 0) where libwebp will refuse the file anyway."""
    chunk, body = data[12:16], data[20:30]
    if len(body) < 10:
        return 0, 0
    if chunk == b"VP8X":
        return int.from_bytes(body[4:7], "little") + 1, int.from_bytes(body[7:10], "little") + 1
    if chunk == b"VP8L":
        bits = int.from_bytes(body[1:5], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if chunk == b"VP8 ":
        width, height = int.from_bytes(body[6:8], "little"), int.from_bytes(body[8:10], "little")
        return width & 0x3FFF, height & 0x3FFF
    return 0, 0


def _check_size(width: int, height: int, limits: ImageLimits) -> None:
    if width * height > limits.max_pixels:
        raise TooLarge(
            f"The picture has {width} x {height} = {width * height} pixels; at most "
            f"{limits.max_pixels} are accepted. Send a smaller one.",
            pixels=width * height,
            max_pixels=limits.max_pixels,
        )
    if max(width, height) > limits.max_side:
        raise TooLarge(
            f"The picture is {width} x {height} pixels; a side may have at most "
            f"{limits.max_side}. Send a smaller one.",
            side_px=max(width, height),
            max_side_px=limits.max_side,
        )


def _check_scans(data: bytes, limits: ImageLimits) -> None:
    """Count the scans up to the end-of-image marker; what follows it may be a phone's video."""
    position, scans = 2, 0
    while (marker := _JPEG_MARKER.search(data, position)) and marker[1] != _JPEG_END:
        position = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2])
        scans += marker[1] == _JPEG_SCAN
        if scans > limits.max_scans:
            raise TooLarge(
                f"The JPEG has more than {limits.max_scans} scans, each a pass over all pixels. "
                "Save it anew as a baseline JPEG.",
                max_scans=limits.max_scans,
            )


def _orientation(image: Image.Image, data: bytes) -> int:
    """EXIF orientation 1 to 8, where Pillow finds one: EXIF, XMP or ImageMagick's raw profile."""
    if image.format == "PNG" and _PNG_METADATA.search(data, data.rfind(b"IDAT")):
        image.load()  # Pillow sees metadata behind the pixels only then
    try:
        # not image.getexif(), which decodes a whole PNG in search of metadata behind the pixels
        found = Image.Image.getexif(image).get(ExifTags.Base.Orientation)
    except Exception:  # damaged metadata says nothing about the pixels
        return 1
    return found if isinstance(found, int) and found in _UPRIGHT else 1


def _denominator(size: Size, least: Size | None) -> int:
    """Of the smallest fraction that leaves at least ``least`` pixels a side; 1 for all of it."""
    if least is None or max(size.height, size.width) < _LEAST_SCALED_SIDE:
        return 1
    fits = (d for d in _DENOMINATORS if size.height >= d * least.height)
    return next((d for d in fits if size.width >= d * least.width), 1)


def _by_simplejpeg(data: bytes, header: Header, denominator: int) -> Decoded | None:
    """The upright picture, or None where the decoder objects, be it only with a warning."""
    height, width = header.size.height, header.size.width
    if header.orientation >= 5:
        height, width = width, height
    rows, columns = -(-height // denominator), -(-width // denominator)
    # Memory goes by the header that was checked: if the decoder reads another, it has no room.
    room = np.empty((rows, columns, 4), np.uint8)
    least = (0, 0) if denominator == 1 else (rows, columns)
    try:
        pixels = simplejpeg.decode_jpeg(
            data, "RGBX", min_height=least[0], min_width=least[1], buffer=room
        )
    except (ValueError, RuntimeError):
        return None
    if pixels.shape != room.shape:
        return None
    image, box = _rgb_of(pixels), (width / denominator, height / denominator)
    return _turned(image, box, header.orientation, scaled=denominator > 1)


def _rgb_of(pixels: NDArray[np.uint8]) -> Image.Image:
    """(H, W, 4) as an RGB picture on the same memory: Pillow, too, has four bytes a pixel.

    Copying costs as much as what the faster decoder saves. The call is Pillow's own, behind
    ``Image.frombuffer``, which offers it for other modes alone; should it go, there is a copy.
    """
    height, width = pixels.shape[:2]
    try:
        core = Image.core.map_buffer(  # type: ignore[attr-defined]
            pixels, (width, height), "raw", 0, ("RGB", 0, 1)
        )
        return Image.new("RGB", (0, 0))._new(core)
    except (AttributeError, TypeError, ValueError):
        return Image.fromarray(pixels[..., :3])


def _turned(
    image: Image.Image, shown: tuple[float, float], orientation: int, scaled: bool
) -> Decoded:
    """``shown`` is the width and height of what ``image`` shows as stored, from the top left."""
    if orientation in _UPRIGHT:
        image = image.transpose(_UPRIGHT[orientation])
    width, height = shown[::-1] if orientation >= 5 else shown
    left = image.width - width if orientation in _MIRRORED_X else 0
    top = image.height - height if orientation in _MIRRORED_Y else 0
    return Decoded(image, (left, top, left + width, top + height), scaled)


def _upright_rgb(image: Image.Image, orientation: int) -> Image.Image:
    image.load()
    image.info.clear()  # transparency must not count, nor comments or profiles reach an overlay
    if image.mode.startswith("I"):  # 16-bit greyscale
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if orientation in _UPRIGHT:
        image = image.transpose(_UPRIGHT[orientation])
    return image if image.mode == "RGB" else image.convert("RGB")  # converting RGB copies it


@contextmanager
def _client_errors(kind: Format) -> Iterator[None]:
    """Turn whatever Pillow raises into BadImage.

    It documents no closed set of errors for damaged files: OSError, ValueError, SyntaxError,
    struct.error, zlib.error and KeyError have been seen. Running out of memory is no fault of the
    file, whose size is checked before.
    """
    try:
        yield
    except (ServiceError, MemoryError):
        raise
    except Exception as error:
        unreadable = isinstance(error, UnidentifiedImageError)  # its message is an object's address
        reason = "its header makes no sense" if unreadable else error
        raise BadImage(
            f"The {kind} picture is damaged or incomplete ({reason}). Send the whole, intact file."
        ) from error


def _silence_pillow() -> None:
    """Keep Pillow from printing on stderr what a client's file makes it warn of.

    Before Python 3.14 warning filters belong to the process, and ``catch_warnings`` in several
    threads restores them at random. Putting the same entry in front again is safe in any thread.
    """
    front = warnings.filters[0] if warnings.filters else None
    if front != ("ignore", None, Warning, _PILLOW_MODULE, 0):
        warnings.filterwarnings("ignore", module=_PILLOW_MODULE.pattern)
