"""A decoder process: takes one picture at a time from the process that started it, within bounds
that the kernel keeps, and ends with it.
"""

import os
import resource
import signal
import socket
import sys
import time
import traceback
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from pydantic import BaseModel
from setproctitle import setproctitle

from service.bundle import Decoding
from service.decoding.wire import Header, receive, send
from service.errors import BadImage, ClientError, TooLarge, UnsupportedFormat
from service.geometry import Geometry, Size
from service.images import ImageLimits
from service.pictures import Recipe, prepare

REFUSALS: dict[str, type[ClientError]] = {
    kind.code: kind for kind in (BadImage, UnsupportedFormat, TooLarge)
}
MAX_REQUEST_BYTES = 2**31


class _SentRecipe(BaseModel):
    geometry: Geometry
    canvases: list[Size]
    decoding: Decoding | None


def request_of(recipe: Recipe, limits: ImageLimits, keep_upright: bool) -> Header:
    """The header of a request; its one blob is the picture."""
    sent = _SentRecipe(geometry=recipe.geometry, canvases=recipe.canvases, decoding=recipe.decoding)
    return {
        "recipe": sent.model_dump(mode="json"),
        "limits": asdict(limits),
        "keep_upright": keep_upright,
    }


def main() -> None:
    """Entry of ``python -m service.decoding.process SOCKET_FD MEMORY_BYTES TIMEOUT_S IDLE_S``."""
    descriptor, memory_bytes, timeout_s, idle_s = sys.argv[1:]
    setproctitle("saccade decoder")
    owner = socket.socket(fileno=int(descriptor))
    _confine(int(memory_bytes))
    with suppress(OSError):  # the owner is gone
        send(owner, {"ready": True})
        serve(owner, float(timeout_s), float(idle_s))


def serve(owner: socket.socket, timeout_s: float, idle_s: float) -> None:
    """Answer until the owner is gone, or silent for ``idle_s``.

    The owner keeps the time limit; the alarm here is for when it died and we are busy.
    """
    while True:
        try:
            header, blobs = receive(owner, MAX_REQUEST_BYTES, time.monotonic() + idle_s)
        except (EOFError, TimeoutError):
            return
        signal.setitimer(signal.ITIMER_REAL, timeout_s + 1)  # its signal ends the process
        send(owner, *_answer(header, bytes(blobs[0])))
        signal.setitimer(signal.ITIMER_REAL, 0)


def _answer(header: Header, data: bytes) -> tuple[Header, list[bytes]]:
    try:
        recipe = _SentRecipe.model_validate(header["recipe"])
        limits = ImageLimits(**header["limits"])
        picture = prepare(data, recipe, limits, header["keep_upright"])
        size, upright = picture.placement.image, picture.upright
        reply = {
            "size": [size.height, size.width],
            "upright": [upright.height, upright.width] if upright else None,
            "preprocess_s": picture.preprocess_s,
        }
        return reply, [picture.pixels.tobytes(), upright.tobytes() if upright else b""]
    except (BadImage, UnsupportedFormat, TooLarge) as error:
        return {"code": error.code, "message": str(error), "facts": error.facts}, []
    except MemoryError:
        message = "The picture needs more memory to decode than is allowed. Send a smaller one."
        return {"code": TooLarge.code, "message": message, "facts": {}}, []
    except Exception:
        return {"bug": traceback.format_exc()}, []


def _confine(memory_bytes: int) -> None:
    for kind, most in (
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_CORE, 0),  # a dump would hold somebody's picture
        (resource.RLIMIT_FSIZE, 0),
    ):
        _, hard = resource.getrlimit(kind)
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (most, most))
    with suppress(OSError):
        # where the machine is short of memory, rather this than the worker
        Path("/proc/self/oom_score_adj").write_text("1000")
    os.chdir("/")


if __name__ == "__main__":
    main()
