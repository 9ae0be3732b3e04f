"""What /docs and /openapi.json say of the picture routes, from their option and answer models."""

import base64
import json
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel

from service.api.files import ANSWER_HEADER
from service.api.schemas.base import MOST_TIMEOUT_MS, TIMEOUT_HEADER, Options, Problem, Results

EXAMPLE_PNG = (
    b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x00\x00\x01\x00\x00\x00\x01\x08\x02\x00\x00\x00"
    b"\x90wS\xde\x00\x00\x00\x0cIDATx\x9cc\xf8\xff\xff?\x00\x05\xfe\x02\xfe\r\xefF\xb8\x00\x00"
    b"\x00\x00IEND\xaeB`\x82"
)
"""One white pixel, so that the examples can be sent as they are."""

_TIMEOUT_HEADER = {
    "name": TIMEOUT_HEADER,
    "in": "header",
    "required": False,
    "description": "As timeout_ms; the smaller of the two counts",
    "schema": {"type": "integer", "minimum": 1, "maximum": MOST_TIMEOUT_MS},
}
_PICTURE = {"schema": {"type": "string", "format": "binary"}}
_PROBLEM = {"application/problem+json": {"schema": Problem.model_json_schema()}}
_SUMMARY = {
    "description": "With a file: the answer in short, as JSON",
    "schema": {"type": "string", "contentMediaType": "application/json"},
}
_PROBLEMS = {
    400: "The body, or the picture in it, cannot be read",
    401: "A key is needed, and none that is known was sent",
    404: "There is no such model",
    406: "None of the media types in Accept is offered",
    408: "The body came too slowly",
    413: "Too many bytes, pixels or pictures",
    415: "Not a JPEG, PNG or WebP picture",
    422: "A parameter is unknown or out of range",
    424: "The picture could not be fetched from its URL",
    429: "The queue is full; come back after Retry-After seconds",
    500: "The model failed on this picture",
    503: "The worker is not ready; come back after Retry-After seconds",
    504: "The deadline passed",
}


def announce_problems(app: FastAPI) -> None:
    """Say of every operation that any other answer of it is a problem document: no key, no such
    model, too many requests.
    """
    made = app.openapi

    def document() -> dict[str, Any]:
        found = made()
        other = {"description": "Any other answer is a problem document", "content": _PROBLEM}
        for operations in found["paths"].values():
            for operation in operations.values():
                responses = operation["responses"]
                if "HTTPValidationError" in json.dumps(responses.get("422", "")):
                    del responses["422"]  # FastAPI's own, see problems.py
                responses.setdefault("default", other)
        return found

    app.openapi = document  # type: ignore[method-assign]


def schema_of(model: type[BaseModel]) -> dict[str, Any]:
    """The schema of a model by itself: what it refers to stands in the place of the reference."""
    schema = model.model_json_schema()
    definitions = schema.pop("$defs", {})

    def resolved(part: Any) -> Any:
        if isinstance(part, list):
            return [resolved(item) for item in part]
        if not isinstance(part, dict):
            return part
        name = part.get("$ref", "").removeprefix("#/$defs/")
        beside = {key: resolved(value) for key, value in part.items() if key != "$ref"}
        return resolved(definitions[name]) | beside if name else beside

    found: dict[str, Any] = resolved(schema)
    return found


def describe(
    options: type[Options], answer: type[BaseModel], files: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Arguments for a route: parameters, the three kinds of body, answers and problems.

    ``files`` are media types that the route can answer with besides JSON.
    """
    properties = options.model_json_schema()["properties"]
    content = dict.fromkeys(files, _PICTURE)
    responses: dict[int | str, dict[str, Any]] = {
        200: {
            "model": answer | Results[answer],  # type: ignore[valid-type]
            "description": answer.__doc__,
            "content": content,
        }
    }
    if files:
        responses[200]["headers"] = {ANSWER_HEADER: _SUMMARY}
    problems = problem_responses()
    if not files:
        del problems[406]
    responses |= problems
    return {
        "responses": responses,
        "openapi_extra": {
            "parameters": [
                *(_parameter(name, schema) for name, schema in properties.items()),
                _TIMEOUT_HEADER,
            ],
            "requestBody": {"required": True, "content": _bodies(properties)},
        },
    }


def problem_responses(texts: Mapping[int, str] = _PROBLEMS) -> dict[int | str, dict[str, Any]]:
    """Problems by status, as a route documents them; those of a request for pictures unless others
    are given.
    """
    return {status: {"description": text, "content": _PROBLEM} for status, text in texts.items()}


def describe_keys(app: FastAPI) -> None:
    """Say in the document that a key is needed, and in which headers it may come."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        document = generate()
        document["components"]["securitySchemes"] = {
            "bearer": {"type": "http", "scheme": "bearer"},
            "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
        }
        document["security"] = [{"bearer": []}, {"header": []}]
        return document

    app.openapi = openapi  # type: ignore[method-assign]


def _parameter(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    described = {key: value for key, value in schema.items() if key not in ("title", "description")}
    return {
        "name": name,
        "in": "query",
        "required": False,
        "description": schema.get("description", ""),
        "schema": described,
    }


def _bodies(properties: dict[str, Any]) -> dict[str, Any]:
    picture = {"type": "string", "format": "binary"}
    text = {"type": "string", "contentEncoding": "base64"}
    url = {"type": "string", "format": "uri", "description": "https, from a host that is allowed"}
    remote = {
        "type": "object",
        "properties": {"url": url},
        "required": ["url"],
        "additionalProperties": False,
    }
    one = {"anyOf": [text, remote]}
    example = base64.b64encode(EXAMPLE_PNG).decode()
    return {
        "image/jpeg": _PICTURE,
        "image/png": _PICTURE,
        "image/webp": _PICTURE,
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "properties": {"image": {"type": "array", "items": picture}} | properties,
            }
        },
        "application/json": {
            "schema": {
                "type": "object",
                "description": "One of 'image', 'url' and 'images'; parameters may stand beside",
                "properties": {"image": one, "url": url, "images": {"type": "array", "items": one}}
                | properties,
                "oneOf": [{"required": [name]} for name in ("image", "url", "images")],
            },
            "examples": {
                "one": {"value": {"image": example}},
                "many": {"value": {"images": [example, example]}},
            },
        },
    }
