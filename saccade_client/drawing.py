"""Answers drawn on their picture, in memory and without a server."""

import colorsys
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from saccade_client.masks import Mask

Colour = tuple[int, int, int]
FILL_SHARE = 0.45


def colour_of(label_id: int) -> Colour:
    """The same for a label in every picture; neighbouring ids are far apart on the wheel."""
    hue = label_id * 0.618034 % 1.0
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.8, 0.95)
    return round(red * 255), round(green * 255), round(blue * 255)


def draw_boxes(
    image: Image.Image, boxes: Iterable[tuple[tuple[float, ...], str, int]]
) -> Image.Image:
    """A copy with boxes xyxy, each with a text and the id of its label; the first is on top."""
    drawn = image.copy()
    draw = ImageDraw.Draw(drawn)
    line = max(2, round(min(image.size) / 200))
    for box, text, label_id in reversed(list(boxes)):
        draw.rectangle(box, outline=colour_of(label_id), width=line)
        _write(draw, (box[0], box[1]), text, colour_of(label_id))
    return drawn


def draw_masks(image: Image.Image, masks: Iterable[tuple[Mask, str, int]]) -> Image.Image:
    """A copy with masks (H, W) laid over it, as ``draw_boxes``."""
    pixels = np.asarray(image, dtype=np.float32).copy()
    shown = [one for one in masks if one[0].any()]
    for mask, _, label_id in reversed(shown):
        tint = np.array(colour_of(label_id), dtype=np.float32)
        pixels[mask] += FILL_SHARE * (tint - pixels[mask])
        rim = mask & ~_eroded(mask)
        pixels[rim] = tint
    drawn = Image.fromarray(np.rint(pixels).astype(np.uint8))
    draw = ImageDraw.Draw(drawn)
    for mask, text, label_id in reversed(shown):
        rows, columns = np.nonzero(mask)
        middle = len(rows) // 2  # a pixel of the mask, in its middle row
        _write(draw, (float(columns[middle]), float(rows[middle])), text, colour_of(label_id))
    return drawn


def draw_lines(image: Image.Image, lines: list[str]) -> Image.Image:
    """A copy with lines of text in its corner."""
    drawn = image.copy()
    _write(ImageDraw.Draw(drawn), (0, 0), "\n".join(lines), (0, 0, 0))
    return drawn


def draw_heat(
    image: Image.Image, values: NDArray[np.float64], region: tuple[float, ...]
) -> Image.Image:
    """A copy that is dark where ``values`` (h, w) are least; they cover ``region``, xyxy."""
    heat = np.maximum(values, 0)
    bright = Image.fromarray(np.float32(heat / max(float(heat.max()), 1e-12)))
    x0, y0, x1, y1 = map(round, region)
    light = Image.new("F", image.size, 0.0)
    light.paste(
        bright.resize((max(1, x1 - x0), max(1, y1 - y0)), Image.Resampling.BICUBIC), (x0, y0)
    )
    share = 0.25 + 0.75 * np.clip(np.asarray(light), 0, 1)
    return Image.fromarray(np.rint(np.asarray(image) * share[..., None]).astype(np.uint8))


def _eroded(mask: Mask) -> Mask:
    padded = np.pad(mask, 1, mode="edge")  # the edge of a picture is no rim
    return np.asarray(
        padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:], dtype=bool
    )


def _write(
    draw: ImageDraw.ImageDraw, place: tuple[float, float], text: str, colour: Colour
) -> None:
    """Text on a plate of its colour, kept inside the picture."""
    width, height = draw.im.size
    font = ImageFont.load_default(size=max(11, round(min(width, height) / 28)))
    _, _, right, bottom = draw.multiline_textbbox((0, 0), text, font=font)
    x = min(max(place[0], 0), max(0, width - right - 4))
    y = min(max(place[1], 0), max(0, height - bottom - 4))
    draw.rectangle((x, y, x + right + 4, y + bottom + 4), fill=colour)
    dark = sum(share * part for share, part in zip((0.3, 0.59, 0.11), colour, strict=True)) < 140
    draw.multiline_text((x + 2, y + 2), text, font=font, fill="white" if dark else "black")
