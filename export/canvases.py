"""The canvases of a model whose pictures keep their aspect ratio and are padded."""

from service.geometry import Geometry, Size, place

_ROOMY = Size(height=100_000, width=100_000)

# 4 : 3 is the shape of most photographs, and its canvas the default.
_PHOTOGRAPH = Size(height=480, width=640)
_USUAL = (  # 1 : 1, 3 : 2, 16 : 9 and 2 : 1
    Size(height=480, width=480),
    Size(height=480, width=720),
    Size(height=1080, width=1920),
    Size(height=480, width=960),
)
_FAR = 2
"""From this ratio of longest to shortest edge on, most of the last canvas would be padding."""


def padded_canvases(geometry: Geometry, sees_padding: bool) -> list[Size]:
    """Canvases for a rule with a shortest and a longest edge, lying and upright: exactly what
    pictures of 4 : 3 become, which then carry no padding at all, and what holds any other picture.

    Where the network ``sees_padding`` as if it were picture, and where the last canvas is far
    larger than most pictures, there are also those of 1 : 1, 3 : 2, 16 : 9 and 2 : 1, unless the
    longest edge holds such pictures back: the last canvas is then about theirs.

    One canvas, the nominal one, where resizing has no such rule.
    """
    resize = geometry.resize
    if resize.mode != "shortest_edge" or resize.longest_edge is None:
        return [geometry.nominal]
    assert resize.shortest_edge is not None
    reach = resize.longest_edge / resize.shortest_edge
    exact = [_PHOTOGRAPH]
    if sees_padding or reach > _FAR:
        exact += [image for image in _USUAL if image.width / image.height <= reach]
    multiple = resize.multiple_of
    short, long = (
        -(-edge // multiple) * multiple for edge in (resize.shortest_edge, resize.longest_edge)
    )
    lying = [place(geometry, image, _ROOMY).resized for image in exact]
    lying.append(Size(height=short, width=long))
    both = [(size, Size(height=size.width, width=size.height)) for size in lying]
    return list(dict.fromkeys(size for pair in both for size in pair))
