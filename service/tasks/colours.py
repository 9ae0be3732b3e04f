"""Colours of classes and of the text on them; all are sRGB in 0..255."""

import math

from service.bundle import Label

Colour = tuple[int, int, int]

_GOLDEN_ANGLE = 2 * math.pi * (1 - 1 / ((1 + math.sqrt(5)) / 2))
_TONES = ((0.72, 0.17), (0.60, 0.19), (0.83, 0.13))  # lightness and chroma in OKLCH, in turn
_SHADES = (0.0, 0.24, -0.2, 0.42, -0.36)  # towards white where positive, else towards black


def colour_of(label: Label) -> Colour:
    """The label's own colour, or else one by its id, the same in every answer.

    Hues of following ids are a golden angle apart, so that any few of them are well spread.
    """
    if label.color is not None:
        return label.color
    lightness, chroma = _TONES[label.id % len(_TONES)]
    return oklch(lightness, chroma, label.id * _GOLDEN_ANGLE + 0.45)


def shade(colour: Colour, number: int) -> Colour:
    """The colour of the n-th object of a class: the class's own for the first, then lighter and
    darker ones in turn.
    """
    share = _SHADES[number % len(_SHADES)]
    target = 255 if share > 0 else 0
    red, green, blue = (round(part + (target - part) * abs(share)) for part in colour)
    return red, green, blue


def text_on(colour: Colour) -> Colour:
    """Black or white, whichever stands out more (contrast ratio of WCAG 2.1)."""
    red, green, blue = (_linear(part / 255) for part in colour)
    luminance = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    return (0, 0, 0) if (luminance + 0.05) / 0.05 > 1.05 / (luminance + 0.05) else (255, 255, 255)


def oklch(lightness: float, chroma: float, hue: float) -> Colour:
    """From a perceptual space (Ottosson 2020, "A perceptual color space for image processing"), cut
    to what sRGB can show; ``hue`` in radians.
    """
    a, b = chroma * math.cos(hue), chroma * math.sin(hue)
    long = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
    medium = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
    short = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
    red = 4.0767416621 * long - 3.3077115913 * medium + 0.2309699292 * short
    green = -1.2684380046 * long + 2.6097574011 * medium - 0.3413193965 * short
    blue = -0.0041960863 * long - 0.7034186147 * medium + 1.7076147010 * short
    return _encoded(red), _encoded(green), _encoded(blue)


def _linear(part: float) -> float:
    return part / 12.92 if part <= 0.04045 else float(((part + 0.055) / 1.055) ** 2.4)


def _encoded(part: float) -> int:
    part = min(max(part, 0.0), 1.0)
    return round(255 * (12.92 * part if part <= 0.0031308 else 1.055 * part ** (1 / 2.4) - 0.055))
