"""Bodies of the Open Inference Protocol: JSON, and the bytes of tensors behind it.

Binary tensors are little-endian and row-major; an element of BYTES is preceded by its length in
four bytes. BYTES in JSON, which the protocol leaves undefined, are base64 here.
"""

import base64
import json
import math
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from pydantic import ValidationError

from service.api.bodies import decode_base64, parse_json
from service.api.schemas.oip import Datatype, Given, InferRequest, InferResponse, Input
from service.errors import InvalidBody, InvalidParameter, TooLarge
from service.worker.runtimes.base import Array

INPUT = "images"
HEADER = "Inference-Header-Content-Length"

_LENGTH = struct.Struct("<I")
_EITHER_HEAD = 32  # gzip's or zlib's, which HTTP calls deflate
_DIGITS = 12  # of a length; int() takes long over thousands
_DTYPES: dict[Datatype, str] = {"UINT8": "|u1", "INT32": "<i4", "FP32": "<f4"}
_TAKES = (
    f"this server takes one input, {INPUT!r}: BYTES of shape [N], encoded pictures, "
    "or UINT8 of shape [N, height, width, 3], pixels as the model's canvas has them"
)


@dataclass(frozen=True)
class Tensor:
    """One output of all pictures: numbers, or byte strings in row-major order of ``shape``.

    ``text`` says that the strings are UTF-8, and are so in JSON rather than base64.
    """

    name: str
    datatype: Datatype
    shape: list[int]
    values: Array | Sequence[bytes]
    text: bool = False


@dataclass(frozen=True)
class Asked:
    """A request that makes sense so far, and its pictures: encoded, or pixels (H, W, 3) uint8."""

    request: InferRequest
    pictures: list[bytes] | list[Array] = field(repr=False)


def read_request(body: bytes, header_length: str | None, max_images: int) -> Asked:
    """A request out of a body; ``header_length`` is the value of ``HEADER``, if it came.

    Raises:
        InvalidBody: it breaks the protocol, or is not for a model of pictures.
        InvalidParameter: a parameter is unknown or out of range.
        TooLarge: it holds more than ``max_images`` pictures.
    """
    document, binary = _split(body, header_length)
    if document is None:  # the extension's raw request: one input, and nothing but it
        raw = Input(name=INPUT, shape=[1], datatype="BYTES")
        return Asked(InferRequest(inputs=[raw]), [bytes(binary)])
    request = _validate(parse_json(bytes(document)))
    if len(request.inputs) != 1 or request.inputs[0].name != INPUT:
        names = ", ".join(f"{one.name!r:.80}" for one in request.inputs)
        raise InvalidBody(f"found the inputs {names}; {_TAKES}")
    sent = request.inputs[0]
    _check_shape(sent, max_images)
    announced = sent.parameters.binary_data_size
    if (announced is None) == (sent.data is None):
        raise InvalidBody(
            f"the input {INPUT!r} needs either 'data' or the parameter 'binary_data_size'"
        )
    if len(binary) != (announced or 0):
        raise InvalidBody(
            f"behind the JSON are {len(binary)} bytes; the input announces {announced or 0}"
        )
    read = _read_encoded if sent.datatype == "BYTES" else _read_pixels
    return Asked(request, read(sent, binary))


def decompress(body: bytes, encoding: str, max_bytes: int) -> bytes:
    """A body that came compressed, as ``tritonclient`` can send it.

    Raises:
        InvalidBody: it is not what ``encoding`` says, or that is not known here.
        TooLarge: it has more than ``max_bytes`` bytes.
    """
    if encoding not in ("gzip", "deflate"):
        raise InvalidBody(f"Content-Encoding must be gzip or deflate, found {encoding!r:.80}")
    stream = zlib.decompressobj(zlib.MAX_WBITS | _EITHER_HEAD)
    try:
        found = stream.decompress(body, max_bytes + 1)
    except zlib.error as error:
        raise InvalidBody(f"the body is not {encoding}: {error}") from None
    if len(found) > max_bytes:
        raise TooLarge(
            f"the body has more than {max_bytes} bytes when it is decompressed", limit=max_bytes
        )
    if not stream.eof:
        raise InvalidBody(f"the body ends within its {encoding} stream")
    return found


def write_response(
    model: str, version: str, request_id: str | None, outputs: Sequence[tuple[Tensor, bool]]
) -> tuple[bytes, int | None]:
    """A body out of tensors, and the length of its JSON if any tensor is to come as bytes (the
    second of each pair).
    """
    described, pieces = [], []
    for tensor, binary in outputs:
        if binary:
            piece = _to_bytes(tensor)
            pieces.append(piece)
            described.append(_describe(tensor, {"binary_data_size": len(piece)}, None))
        else:
            coded = tensor.datatype == "BYTES" and not tensor.text
            described.append(
                _describe(tensor, {"content_type": "base64"} if coded else None, _to_json(tensor))
            )
    response = InferResponse(
        model_name=model, model_version=version, id=request_id, outputs=described
    )
    document = json.dumps(response.model_dump(exclude_none=True), separators=(",", ":")).encode()
    if not pieces:
        return document, None
    return b"".join([document, *pieces]), len(document)


def _split(body: bytes, header_length: str | None) -> tuple[memoryview | None, memoryview]:
    """The JSON (None where there is none) and what follows it."""
    whole = memoryview(body)
    if header_length is None:
        return whole, whole[len(whole) :]
    text = header_length.strip()
    if not (text.isascii() and text.isdecimal() and len(text) <= _DIGITS):
        raise InvalidBody(f"{HEADER} must be a number of bytes, found {text!r:.80}")
    length = int(text)
    if length > len(body):
        raise InvalidBody(f"{HEADER} is {length}; the body has {len(body)} bytes")
    return (whole[:length] if length else None), whole[length:]


def _validate(document: Any) -> InferRequest:
    try:
        return InferRequest.model_validate(document)
    except ValidationError as error:
        faults = error.errors()
    sentences = []
    for fault in faults:
        place = ".".join(str(part) for part in fault["loc"]) or "the body"
        what = "is unknown here" if fault["type"] == "extra_forbidden" else fault["msg"]
        sentences.append(f"{place:.80}: {what}, found {fault['input']!r:.80}")
    message = "; ".join(sentences[:8])
    named = [str(fault["loc"][-1]) for fault in faults if "parameters" in fault["loc"][:-1]]
    if len(named) == len(faults):
        raise InvalidParameter(message, parameters=named[:8])
    raise InvalidBody(message)


def _check_shape(sent: Input, max_images: int) -> None:
    if sent.datatype == "BYTES":
        # Models that batch have a second axis of one in other servers.
        good = len(sent.shape) == 1 or (len(sent.shape) == 2 and sent.shape[1] == 1)
    elif sent.datatype == "UINT8":
        good = len(sent.shape) == 4 and sent.shape[3] == 3 and 0 not in sent.shape
    else:
        good = False
    if not good or sent.shape[0] == 0:
        raise InvalidBody(f"found {sent.datatype:.20} of shape {sent.shape}; {_TAKES}")
    if sent.shape[0] > max_images:
        raise TooLarge(
            f"the request carries {sent.shape[0]} pictures; at most {max_images} are accepted",
            found=sent.shape[0],
            limit=max_images,
        )


def _read_encoded(sent: Input, binary: memoryview) -> list[bytes]:
    if sent.data is None:
        found = list(_elements(binary))
    else:
        found = [decode_base64(text) for text in _flat(sent.data)]
    if len(found) != sent.shape[0]:
        raise InvalidBody(f"the input has {len(found)} elements; its shape says {sent.shape}")
    return found


def _elements(binary: memoryview) -> Iterator[bytes]:
    """What a BYTES tensor holds; each element is preceded by its length."""
    place = 0
    while place < len(binary):
        start = place + _LENGTH.size
        if start > len(binary):
            raise InvalidBody("the BYTES tensor ends within the length of an element")
        place = start + _LENGTH.unpack_from(binary, place)[0]
        if place > len(binary):
            raise InvalidBody(
                f"an element of the BYTES tensor announces {place - start} bytes; "
                f"{len(binary) - start} are left. Each is preceded by its length, four bytes, "
                "the lowest first"
            )
        yield bytes(binary[start:place])


def _flat(data: Any) -> list[Any]:
    if not isinstance(data, list):
        raise InvalidBody("'data' must be a list")
    return [one for row in data for one in (row if isinstance(row, list) else [row])]


def _read_pixels(sent: Input, binary: memoryview) -> list[Array]:
    pixels = np.frombuffer(binary, np.uint8) if sent.data is None else _numbers(sent.data)
    if pixels.size != math.prod(sent.shape):
        raise InvalidBody(f"the input has {pixels.size} elements; its shape says {sent.shape}")
    return list(pixels.reshape(sent.shape))


def _numbers(data: Any) -> Array:
    try:
        found = np.array(data)
    except ValueError:  # rows of different lengths, or too deep
        found = np.array(None)
    if found.dtype.kind not in "iu" or found.min() < 0 or found.max() > 255:
        raise InvalidBody("'data' of UINT8 must be whole numbers of 0 to 255, flat or in its shape")
    return found.astype(np.uint8).ravel()


def _describe(tensor: Tensor, parameters: Any, data: list[Any] | None) -> Given:
    return Given(
        name=tensor.name,
        shape=tensor.shape,
        datatype=tensor.datatype,
        parameters=parameters,
        data=data,
    )


def _to_bytes(tensor: Tensor) -> bytes:
    if isinstance(tensor.values, np.ndarray):
        return tensor.values.astype(_DTYPES[tensor.datatype]).tobytes()
    return b"".join(_LENGTH.pack(len(one)) + one for one in tensor.values)


def _to_json(tensor: Tensor) -> list[Any]:
    if isinstance(tensor.values, np.ndarray):
        flat: list[Any] = tensor.values.ravel().tolist()
        return flat
    if tensor.text:
        return [one.decode() for one in tensor.values]
    return [base64.b64encode(one).decode() for one in tensor.values]
