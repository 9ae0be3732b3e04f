"""Pictures and parameters out of a request: raw bytes, multipart, or JSON with base64 or URLs."""

import asyncio
import base64
import binascii
import json
import reprlib
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from service.errors import InvalidBody, InvalidParameter, SlowBody, TooLarge
from service.settings import Settings

Options = TypeVar("Options", bound=BaseModel)

MAX_FIELDS = 32
MAX_FIELD_BYTES = 64 * 1024
MAX_FAULTS = 10  # that a refusal tells of


@dataclass(frozen=True)
class RemotePicture:
    """A picture that the server is asked to fetch."""

    url: str


@dataclass(frozen=True)
class Posted:
    """Encoded pictures in order, whether the caller expects a list back, and parameters by name.

    ``overridden`` are those of the query that the body gives too, whose values count: they must be
    right all the same.
    """

    images: Sequence[bytes | RemotePicture]
    many: bool
    parameters: dict[str, Any]
    overridden: dict[str, Any] = field(default_factory=dict)


async def read_body(request: Request, settings: Settings) -> Posted:
    """Read a body of any of the three kinds; parameters of the query and of the body are joined.

    Raises:
        InvalidBody: it is not what its content type says, or holds no picture.
        TooLarge: more pictures than one request may carry (bytes are counted in ``security``).
        SlowBody: it did not arrive in time.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    async with _arriving(settings):
        if kind == "multipart/form-data":
            posted = await _read_multipart(request, settings)
        elif kind == "application/json":
            posted = _read_json(await request.body())
        else:
            posted = Posted([await request.body()], False, {})
    if not any(posted.images) and not posted.many:
        raise InvalidBody(
            "the body is empty; send the bytes of a JPEG, PNG or WebP picture, a multipart form "
            "with files, or JSON with 'image' or 'images' in base64"
        )
    if len(posted.images) > settings.max_images:
        raise _too_many(len(posted.images), settings)
    query = by_name(request.query_params.multi_items())
    overridden = {name: query[name] for name in query.keys() & posted.parameters.keys()}
    return Posted(posted.images, posted.many, query | posted.parameters, overridden)


async def read_bytes(request: Request, settings: Settings) -> bytes:
    """The body as it came.

    Raises:
        SlowBody: it did not arrive in time.
    """
    async with _arriving(settings):
        return await request.body()


def by_name(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Parameters by name. One that comes several times has the list of its values: right for a list
    like ``labels``, and refused by every other.
    """
    found: dict[str, Any] = {}
    several: dict[str, list[Any]] = {}
    for name, value in pairs:
        if name in several:
            several[name].append(value)
        elif name in found:
            several[name] = [found[name], value]
        else:
            found[name] = value
    return found | several


def parse_json(body: bytes) -> Any:
    """What a JSON text says.

    Raises:
        InvalidBody: it is none, or nests so deep that it makes no sense.
    """
    try:
        return json.loads(body)
    except ValueError as error:
        raise InvalidBody(f"the body is not JSON: {error}") from None
    except RecursionError:
        raise InvalidBody("the body is not JSON that makes sense: it nests too deep") from None


def decode_base64(text: Any) -> bytes:
    """A picture out of JSON, with or without the head of a data URL.

    Raises:
        InvalidBody: it is no text, or not base64.
    """
    if not isinstance(text, str):
        raise InvalidBody(f"a picture in JSON must be a base64 string, found {type(text).__name__}")
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        return base64.b64decode("".join(text.split()), validate=True)  # tools break lines
    except (binascii.Error, ValueError) as error:
        raise InvalidBody(f"a picture in JSON is not base64: {error}") from None


def parse_options(kind: type[Options], parameters: dict[str, Any]) -> Options:
    """Validated options.

    Raises:
        InvalidParameter: naming each wrong parameter, what was found and what is allowed.
    """
    if len(parameters) > MAX_FIELDS:  # each would be a fault to write about
        unknown = [name for name in parameters if name not in kind.model_fields][:MAX_FAULTS]
        raise InvalidParameter(
            f"found {len(parameters)} parameters; there are {', '.join(sorted(kind.model_fields))}",
            parameters=unknown,
        )
    try:
        return kind.model_validate(parameters)
    except ValidationError as error:
        names, sentences = [], []
        for fault in error.errors()[:MAX_FAULTS]:
            name = str(fault["loc"][0]) if fault["loc"] else "?"  # no name at all: a lone surrogate
            names.append(name)
            if fault["type"] == "extra_forbidden":
                allowed = ", ".join(sorted(kind.model_fields))
                sentences.append(f"there is no parameter {name!r}; allowed are {allowed}")
            else:
                sentences.append(f"{name}: {fault['msg']}, found {_shown(fault['input'])}")
        raise InvalidParameter("; ".join(sentences), parameters=names) from None


def _shown(value: Any) -> str:
    """The beginning of a value, which may be millions of characters or numbers."""
    writer = reprlib.Repr()
    writer.maxlist = writer.maxdict = writer.maxstring = writer.maxother = 80
    return writer.repr(value)[:80]


@asynccontextmanager
async def _arriving(settings: Settings) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(settings.body_timeout_s):
            yield
    except TimeoutError:
        raise SlowBody(
            f"the body did not arrive within {settings.body_timeout_s:g} seconds",
            limit=settings.body_timeout_s,
        ) from None


class _FormParser(MultiPartParser):
    """Files stay in memory, where the limit of the body bounds them: a disk may be read-only.

    Raises MultiPartException where the last boundary is missing, with which a part would be.
    """

    spool_max_size = 0
    _ended = False

    def on_end(self) -> None:
        self._ended = True

    async def parse(self) -> FormData:
        form = await super().parse()
        if not self._ended:
            await form.close()
            raise MultiPartException("it ends early, before its last boundary")
        return form


async def _read_multipart(request: Request, settings: Settings) -> Posted:
    images: list[bytes] = []
    fields: list[tuple[str, str]] = []
    parser = _FormParser(
        request.headers,
        request.stream(),
        max_files=settings.max_images,
        max_fields=MAX_FIELDS,
        max_part_size=MAX_FIELD_BYTES,  # of what is no file
    )
    try:
        form = await parser.parse()
        for name, value in form.multi_items():
            if isinstance(value, UploadFile):
                images.append(await value.read())
            else:
                fields.append((name, value))
        await form.close()
    except MultiPartException as error:
        if str(error).startswith("Too many files"):
            raise _too_many(settings.max_images + 1, settings) from None
        raise InvalidBody(f"the multipart form cannot be read: {error}") from None
    if not images:
        raise InvalidBody(
            "the multipart form holds no file; send a picture as a part with a filename, "
            "as in: curl -F image=@picture.jpg"
        )
    return Posted(images, len(images) > 1, by_name(fields))


def _read_json(body: bytes) -> Posted:
    document = parse_json(body)
    if not isinstance(document, dict) or len(document.keys() & {"image", "images", "url"}) != 1:
        raise InvalidBody(
            "JSON must be an object with one of 'image' (base64), 'url', or 'images' (a list)"
        )
    if "url" in document:
        return Posted([_remote({"url": document.pop("url")})], False, document)
    many = "images" in document
    encoded = document.pop("images") if many else [document.pop("image")]
    if not isinstance(encoded, list) or not encoded:
        raise InvalidBody("'images' must be a list of at least one base64 string or {'url': ...}")
    images = [_remote(one) if isinstance(one, dict) else decode_base64(one) for one in encoded]
    return Posted(images, many, document)


def _remote(picture: dict[str, Any]) -> RemotePicture:
    if picture.keys() != {"url"} or not isinstance(picture["url"], str):
        raise InvalidBody("a picture elsewhere must be an object with 'url', which is a string")
    return RemotePicture(picture["url"])


def _too_many(found: int, settings: Settings) -> TooLarge:
    return TooLarge(
        f"the request carries {found} pictures or more; at most {settings.max_images} are accepted",
        found=found,
        limit=settings.max_images,
    )
