"""What browsers are told: what an answer may do in them, and whose pages may read it."""

import base64
import hashlib
import re
from importlib.resources import files
from pathlib import Path
from typing import Literal

from fastapi import APIRouter
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import FileResponse, HTMLResponse
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from service.api.files import ANSWER_HEADER
from service.settings import Settings, split_list

_POLICY = b"content-security-policy"
_HEADERS = [(b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer")]
_ALONE = (_POLICY, b"default-src 'none'; frame-ancestors 'none'")
"""For answers that need nothing besides themselves: JSON and pictures."""

_PREFLIGHT_S = 600
_SWAGGER_SCRIPT, _SWAGGER_STYLE = "swagger-ui-bundle.js", "swagger-ui.css"

router = APIRouter()


def protect(headers: list[tuple[bytes, bytes]]) -> None:
    """Add to an answer's headers what keeps browsers from guessing its type, framing it, or loading
    anything for it; a page that loads more has a policy of its own.
    """
    if all(name != _POLICY for name, _ in headers):
        headers.append(_ALONE)
    headers += _HEADERS


def cross_origin(settings: Settings) -> list[Middleware]:
    """The middleware that lets pages of other origins ask and read, where any are named.

    Cookies are not for us, so no origin gets to send any.
    """
    origins = split_list(settings.cors_origins)
    if not origins:
        return []
    return [
        Middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_methods=["GET", "HEAD", "POST"],
            allow_headers=["*"],
            expose_headers=[ANSWER_HEADER, "Retry-After", "Server-Timing", "X-Request-ID"],
            max_age=_PREFLIGHT_S,
        )
    ]


@router.get("/docs", include_in_schema=False)
async def docs() -> HTMLResponse:
    """Every route, to be tried in a browser; Swagger UI comes from here too, not from a CDN."""
    page = get_swagger_ui_html(
        openapi_url="/openapi.json",
        title="Saccade",
        swagger_js_url=f"/docs/{_SWAGGER_SCRIPT}",
        swagger_css_url=f"/docs/{_SWAGGER_STYLE}",
        swagger_favicon_url="/page/mark.svg",
    )
    page.headers[_POLICY.decode()] = page_policy(bytes(page.body).decode())
    return page


@router.get("/docs/{name}", include_in_schema=False)
async def docs_file(name: Literal["swagger-ui-bundle.js", "swagger-ui.css"]) -> FileResponse:
    """Swagger UI's script or style."""
    return FileResponse(Path(str(files("fastapi_offline"))) / "static" / name)


def page_policy(html: str) -> str:
    """A policy that allows what a page names or holds itself, scripts by their digest."""
    origins = sorted(set(re.findall(r'(?:src|href)="(https://[^/"]+)', html)))
    digests = [
        base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        for script in re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    ]
    named = " ".join(["'self'", *origins])
    scripts = " ".join([named, *(f"'sha256-{digest}'" for digest in digests)])
    return (
        f"default-src 'none'; script-src {scripts}; style-src {named} 'unsafe-inline'; "
        f"img-src {named} data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )
