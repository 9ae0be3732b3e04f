"""The canvases of a model whose pictures keep their aspect ratio and are padded."""

from service.geometry import Geometry, Size, place

_ROOMY = Size(height=100_000, width=100_000)


def padded_canvases(geometry: Geometry) -> list[Size]:
    """Four canvases for a rule with a shortest and a longest edge: exactly what pictures of 4 : 3
    and 3 : 4 become, the shape of most photographs, which then carry no padding at all; and what
    holds any other picture, lying and upright.

    One canvas, the nominal one, where resizing has no such rule.
    """
    resize = geometry.resize
    if resize.mode != "shortest_edge" or resize.longest_edge is None:
        return [geometry.nominal]
    photographs = [_resized(geometry, Size(height=480, width=640))]
    photographs += [_resized(geometry, Size(height=640, width=480))]
    multiple = resize.multiple_of
    assert resize.shortest_edge is not None
    short, long = (
        -(-edge // multiple) * multiple for edge in (resize.shortest_edge, resize.longest_edge)
    )
    anything = [Size(height=short, width=long), Size(height=long, width=short)]
    return list(dict.fromkeys([*photographs, *anything]))


def _resized(geometry: Geometry, image: Size) -> Size:
    return place(geometry, image, _ROOMY).resized
