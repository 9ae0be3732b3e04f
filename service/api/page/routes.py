"""GET / and what the page loads: plain files, sample scenes, and the state of the queue."""

from functools import cache
from pathlib import Path
from typing import Any

from fastapi import APIRouter, HTTPException, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse, Response

from service.api.serving import Serving
from service.metrics import Metrics

STATIC = Path(__file__).parent / "static"
SCENES = Path(__file__).parents[2] / "demo" / "scenes"

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "media-src 'self' blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
_FRESH = {"Cache-Control": "no-cache"}  # so that a new release is never half of an old page

_BATCHES = {"saccade_batch_size_count": "batches", "saccade_batch_size_sum": "pictures"}

router = APIRouter(include_in_schema=False)


def open_paths() -> frozenset[str]:
    """What a browser loads before anybody could show a key."""
    return frozenset(("/", "/page/samples", *(f"/page/{name}" for name in _files())))


@router.get("/")
async def page(request: Request) -> Response:
    """The page, where pictures are tried in a browser."""
    return _as_is(request, STATIC / "index.html", {"Content-Security-Policy": POLICY})


@router.get("/page/samples")
async def samples() -> dict[str, list[str]]:
    """The names of the sample pictures, which lie under /page/scenes."""
    return {"samples": sorted(path.name for path in SCENES.glob("*.jpg"))}


@router.get("/page/status")
async def status(request: Request) -> dict[str, Any]:
    """What waits, and how many pictures and batches each model has run; off like the metrics."""
    serving: Serving = request.state.serving
    if serving.settings.metrics_access == "off":
        raise HTTPException(404)
    ready = serving.link.state.answers() and not serving.draining
    return {"ready": ready, **await run_in_threadpool(_queue, serving.metrics)}


@router.get("/page/{path:path}")
async def file(request: Request, path: str) -> Response:
    """A script, style, mark or sample picture of the page."""
    found = _files().get(path)
    if found is None:
        raise HTTPException(404)
    return _as_is(request, found)


def _as_is(request: Request, path: Path, headers: dict[str, str] | None = None) -> Response:
    """A file, or 304 to a browser that has it already (RFC 9110, section 13.1.2).

    Browsers take over the headers of a 304, so it has those of the file.
    """
    own = _FRESH | (headers or {})
    response = FileResponse(path, headers=own, stat_result=path.stat())
    known = request.headers.get("if-none-match", "").split(",")
    if response.headers["etag"] not in (tag.strip().removeprefix("W/") for tag in known):
        return response
    kept = {name: response.headers[name] for name in ("etag", *own)}
    return Response(status_code=304, headers=kept)


@cache
def _files() -> dict[str, Path]:
    """Everything that is served as it is, by its path under /page."""
    found = {path.name: path for path in STATIC.iterdir() if path.name != "index.html"}
    return found | {f"scenes/{path.name}": path for path in SCENES.glob("*.jpg")}


def _queue(metrics: Metrics) -> dict[str, Any]:
    """Pictures and bytes that wait, and by model the batches so far and the pictures in them."""
    depth, held_bytes = 0.0, 0.0
    batches: dict[str, dict[str, int]] = {}
    for metric in metrics.collect():
        for sample in metric.samples:
            if sample.name == "saccade_queue_depth":
                depth = sample.value
            elif sample.name == "saccade_queue_bytes":
                held_bytes = sample.value
            elif sample.name in _BATCHES:
                model = batches.setdefault(sample.labels["model"], {"batches": 0, "pictures": 0})
                model[_BATCHES[sample.name]] = int(sample.value)
    return {"queue_depth": int(depth), "queue_bytes": int(held_bytes), "models": batches}
