"""Answers that are pictures: described by a header, or together with JSON in one multipart body."""

import json
import secrets
from typing import Any

from fastapi.responses import Response

from service.api.schemas.base import Answer

PNG, JPEG, WEBP = "image/png", "image/jpeg", "image/webp"
MIXED = "multipart/mixed"

ANSWER_HEADER = "X-Saccade-Answer"
MAX_HEADER_BYTES = 4096  # proxies bound all headers of a response, some to 8 KiB


def picture_response(picture: bytes, media_type: str, answer: Answer, rows: str) -> Response:
    """A picture whose ``answer`` rides in a header, without what is too long for one.

    Masks are left out, and of the list called ``rows`` whatever does not fit into
    ``MAX_HEADER_BYTES``; ``left_out`` counts those.
    """
    document = answer.model_dump(mode="json", exclude_none=True)
    found = [_without_mask(row) for row in document.pop(rows)]
    sizes = [len(json.dumps(row)) + 2 for row in found]
    room = MAX_HEADER_BYTES - len(json.dumps(document | {rows: [], "left_out": len(found)}))
    count = 0
    while count < len(found) and (room := room - sizes[count]) >= 0:
        count += 1
    document[rows] = found[:count]
    if count < len(found):
        document["left_out"] = len(found) - count
    return Response(picture, media_type=media_type, headers={ANSWER_HEADER: json.dumps(document)})


def mixed_response(picture: bytes, media_type: str, document: str) -> Response:
    """A body of two parts (RFC 2046, section 5.1): the picture, then the JSON ``document``."""
    boundary = secrets.token_hex(16)
    parts = [(media_type, picture), ("application/json", document.encode())]
    body = b"".join(
        f"--{boundary}\r\nContent-Type: {kind}\r\n\r\n".encode() + data + b"\r\n"
        for kind, data in parts
    )
    return Response(
        body + f"--{boundary}--\r\n".encode(), media_type=f"{MIXED}; boundary={boundary}"
    )


def _without_mask(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != "mask"}
