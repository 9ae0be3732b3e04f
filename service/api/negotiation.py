"""Which media type to answer with."""

from collections.abc import Sequence

from starlette.datastructures import Headers

from service.errors import NotAcceptable


def accepted(headers: Headers) -> str | None:
    """What a request says in ``Accept``; several lines are one list (RFC 9110, section 5.3)."""
    return ",".join(headers.getlist("accept")) or None


def choose_media_type(accept: str | None, offered: Sequence[str]) -> str:
    """The offered type that an ``Accept`` header ranks highest (RFC 9110, section 12.5.1).

    Ties go to the type offered first, which is also the answer to a missing header.

    Raises:
        NotAcceptable: the header excludes everything that is offered.
    """
    if not accept:
        return offered[0]
    ranges = [_parse(part) for part in accept.split(",")]
    weights = [max(_weights(ranges, media_type), default=(0, 0.0))[1] for media_type in offered]
    if max(weights) <= 0:
        raise NotAcceptable(
            f"nothing here matches Accept: {accept:.200}; offered are {', '.join(offered)}",
            allowed=list(offered),
        )
    return offered[weights.index(max(weights))]


def _weights(ranges: list[tuple[str, float]], media_type: str) -> list[tuple[int, float]]:
    """(Specificity, quality) of each range that covers the type; the most specific one decides."""
    whole, family = media_type, media_type.partition("/")[0] + "/*"
    ranks = {whole: 2, family: 1, "*/*": 0}
    return [(ranks[name], quality) for name, quality in ranges if name in ranks]


def _parse(part: str) -> tuple[str, float]:
    name, *parameters = (piece.strip().lower() for piece in part.split(";"))
    quality = next((p[2:] for p in parameters if p.startswith("q=")), "1")
    try:
        return name, float(quality)
    except ValueError:
        return name, 0.0
