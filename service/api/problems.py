"""Errors as RFC 9457 problem details: one table from error class to status, and the handlers."""

import json
import logging
import math
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from service import errors
from service.api.browsers import protect
from service.errors import InvalidParameter, RetryLater, ServiceError, Unauthorized
from service.metrics import REJECTIONS

STATUS: dict[type[ServiceError], int] = {
    ServiceError: 500,
    errors.ClientError: 400,
    errors.Unauthorized: 401,
    errors.Forbidden: 403,
    errors.UnknownModel: 404,
    errors.NotAcceptable: 406,
    errors.SlowBody: 408,
    errors.CannotLoad: 409,
    errors.TooLarge: 413,
    errors.UnsupportedFormat: 415,
    errors.InvalidParameter: 422,
    errors.UnsupportedTask: 422,
    errors.Quarantined: 422,
    errors.UrlRefused: 422,
    errors.UrlFailed: 424,
    errors.Overloaded: 429,
    errors.NotReady: 503,
    errors.WorkerLost: 503,
    errors.OutOfMemory: 503,
    errors.DeadlineExceeded: 504,
}
MEDIA_TYPE = "application/problem+json"

_log = logging.getLogger(__name__)


def status_of(error: ServiceError) -> int:
    """The HTTP status of an error: that of the nearest class in the table."""
    return next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)


def problem_of(error: ServiceError, request: Request) -> dict[str, Any]:
    """The problem document of an error; its facts become extension members."""
    facts = dict(error.facts)
    if isinstance(error, RetryLater):
        facts["retry_after_s"] = error.retry_after_s
    return _document(status_of(error), error.code, str(error), request) | facts


def response_of(error: ServiceError, request: Request) -> Response:
    """The problem document as a response, with ``Retry-After`` where coming back will help."""
    headers = {}
    if isinstance(error, RetryLater):
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s)))
    if isinstance(error, Unauthorized):
        headers["WWW-Authenticate"] = "Bearer"
    return _response(problem_of(error, request), headers)


def count_rejection(error: ServiceError, request: Request) -> None:
    """Tell the metrics of a refusal, of a request or of one picture in it."""
    if error.code in REJECTIONS:
        request.state.serving.metrics.rejections.labels(error.code).inc()


def refuse(error: ServiceError, request: Request) -> Response:
    """Count the error and answer with it."""
    count_rejection(error, request)
    return response_of(error, request)


def install_handlers(app: FastAPI) -> None:
    """Every error leaves the application as a problem document."""

    async def service_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, ServiceError)
        return refuse(error, request)

    async def http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        detail = error.detail
        if error.status_code == 404:
            detail = f"there is nothing at {request.url.path}; see /docs for what there is"
        elif error.status_code == 405:
            allowed = (error.headers or {}).get("Allow", "")
            detail = f"{request.method} is not allowed at {request.url.path}; allowed: {allowed}"
        code = HTTPStatus(error.status_code).name.lower()
        document = _document(error.status_code, code, detail, request)
        return _response(document, dict(error.headers or {}))

    async def invalid_parameter(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        faults = error.errors()
        sentences = [f"{fault['loc'][-1]}: {fault['msg']}" for fault in faults]
        names = [str(fault["loc"][-1]) for fault in faults]
        return refuse(InvalidParameter("; ".join(sentences), parameters=names), request)

    async def bug(request: Request, error: Exception) -> Response:
        _log.error("unexpected error", exc_info=error)
        detail = "something went wrong in the server; its log has the details under the request id"
        # This handler runs outside of RequestContext, which adds these to all other responses.
        headers = {"X-Request-ID": request.state.trace.request_id}
        response = _response(_document(500, "internal_error", detail, request), headers)
        protect(response.raw_headers)
        return response

    app.add_exception_handler(ServiceError, service_error)
    app.add_exception_handler(HTTPException, http_error)
    app.add_exception_handler(RequestValidationError, invalid_parameter)
    app.add_exception_handler(Exception, bug)


def _document(status: int, code: str, detail: str, request: Request) -> dict[str, Any]:
    path = request.url.path
    # Clients of these protocols show their users the member "error" and nothing else.
    foreign = {"error": detail} if path.startswith(("/v2", "/models/")) else {}
    return foreign | {
        "type": f"urn:saccade:problem:{code}",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "instance": path,
        "code": code,
        "request_id": request.state.trace.request_id,
    }


def _response(document: dict[str, Any], headers: dict[str, str]) -> Response:
    # In ASCII: a lone surrogate, which JSON bodies can name parameters by, has no UTF-8.
    return Response(json.dumps(document), document["status"], headers, MEDIA_TYPE)
