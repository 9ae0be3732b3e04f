"""Where a picture is decoded: ordinary JPEGs in the calling thread, for speed; whatever else in a
process that may crash, hang or run out of memory at the cost of that picture alone.
"""

import hashlib
import logging
import math
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

from service.decoding.process import REFUSALS, request_of
from service.decoding.wire import Header, receive, send
from service.errors import ClientError, DeadlineExceeded, DecoderLost, NotReady, TooLarge
from service.geometry import Size
from service.images import SMALL, ImageLimits, check_start
from service.pictures import Picture, Recipe, placement_of, prepare, prepare_ordinary

Isolation = Literal["auto", "all", "off"]
Fate = Literal["crashed", "killed", "slow"]

IDLE_S = 60.0
START_S = 30.0
LEAST_S = 1.0
"""That a decoder is given whatever the deadline: short ones must not cost a new process each."""
ATTEMPTS = 2  # one more than the crash that something else may have caused
REMEMBERED = 256
REMEMBERED_S = 600.0  # not for ever: a machine that is busy enough is slow with any picture
COMMAND = (sys.executable, "-P", "-m", "service.decoding.process")

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Bounds:
    """Of each decoder process; ``memory_bytes`` counts its address space, code included."""

    timeout_s: float
    memory_bytes: int
    idle_s: float = IDLE_S


class DecoderPool:
    """Prepares pictures for threads, which wait meanwhile; there is at most one process for each of
    them, started when first needed. What crashed or outlasted a decoder is refused for a while.
    """

    def __init__(
        self,
        limits: ImageLimits,
        isolation: Isolation,
        bounds: Bounds,
        environment: Mapping[str, str],
        lost: Callable[[str], None] = lambda reason: None,
        command: Sequence[str] = COMMAND,
    ) -> None:
        """``lost`` hears the reason, of ``metrics.DECODER_LOSSES``, when a process was lost."""
        self._limits, self._isolation, self._bounds = limits, isolation, bounds
        self._environment, self._lost, self._command = dict(environment), lost, list(command)
        self._lock = threading.Lock()
        self._idle: list[_Decoder] = []
        self._busy: set[_Decoder] = set()
        self._closed = False
        self._refused: OrderedDict[bytes, tuple[float, type[ClientError], str]] = OrderedDict()

    def prepare(
        self,
        data: bytes,
        recipe: Recipe,
        keep_upright: bool = False,
        deadline_s: float = math.inf,
    ) -> Picture:
        """Decode a picture and put it on its canvas. From ``deadline_s``, on the monotonic clock,
        nobody waits for it any more, and a process that is still at it is ended.

        Raises:
            DeadlineExceeded: it was such a one.
            BadImage, UnsupportedFormat: as ``images.Opened`` says.
            TooLarge: also where it took too long or too much memory.
            DecoderLost: it crashed its decoder, twice.
            NotReady: no decoder could be started, or something keeps killing them.
        """
        if self._isolation == "off":
            return prepare(data, recipe, self._limits, keep_upright)
        if self._isolation == "auto":
            picture = prepare_ordinary(data, recipe, self._limits, keep_upright)
            if picture is not None:
                return picture
        check_start(data, self._limits)
        if self._refused and (refused := self._refused.get(_digest(data))):
            until_s, kind, message = refused
            if time.monotonic() < until_s:
                raise kind(message)
        return self._isolated(data, recipe, keep_upright, deadline_s)

    def prepare_small(
        self, data: bytes, recipe: Recipe, keep_upright: bool = False
    ) -> Picture | None:
        """As ``prepare`` where that takes a millisecond or two, and None otherwise."""
        largest = max(canvas.height * canvas.width for canvas in recipe.canvases)
        if self._isolation == "all" or largest > SMALL.pixels:
            return None
        return prepare_ordinary(data, recipe, self._limits, keep_upright, SMALL)

    def close(self) -> None:
        """End every decoder, at work or not."""
        with self._lock:
            self._closed = True
            decoders = [*self._idle, *self._busy]
        for decoder in decoders:
            decoder.end()

    def _isolated(
        self, data: bytes, recipe: Recipe, keep_upright: bool, deadline_s: float
    ) -> Picture:
        request = request_of(recipe, self._limits, keep_upright)
        largest = max(canvas.height * canvas.width for canvas in recipe.canvases)
        most_bytes = 3 * (largest + self._limits.max_pixels)
        fates: list[Fate] = []
        while len(fates) < ATTEMPTS:
            started_s = time.monotonic()
            decoder = self._take()
            left_s = max(deadline_s - time.monotonic(), LEAST_S)
            limit_s = min(left_s, self._bounds.timeout_s)
            try:
                reply = decoder.ask(request, data, most_bytes, limit_s)
                answer = _answer(*reply, recipe, started_s)
            except TimeoutError:
                if left_s < self._bounds.timeout_s:  # it may be fast enough for others
                    self._drop(decoder, None)
                    raise DeadlineExceeded(
                        "the deadline passed before the picture was decoded"
                    ) from None
                self._drop(decoder, "slow")
                raise self._refuse(
                    data,
                    TooLarge,
                    f"The picture took more than {self._bounds.timeout_s:g} s to decode. Send a "
                    "smaller one, or save it anew as a baseline JPEG.",
                ) from None
            except (EOFError, OSError):
                fate = decoder.fate()
                self._drop(decoder, fate)
                fates += [fate] if fate else []
                continue
            except BaseException:
                self._drop(decoder, None)
                raise
            self._give_back(decoder)
            if isinstance(answer, ClientError):
                raise answer
            return answer
        if "killed" in fates:
            raise NotReady("the decoders are being killed; try again soon")
        raise self._refuse(
            data,
            DecoderLost,
            "The picture made its decoder crash. Save it anew with another program.",
        )

    def _refuse(self, data: bytes, kind: type[ClientError], message: str) -> ClientError:
        with self._lock:
            self._refused[_digest(data)] = time.monotonic() + REMEMBERED_S, kind, message
            while len(self._refused) > REMEMBERED:
                self._refused.popitem(last=False)
        return kind(message)

    def _take(self) -> "_Decoder":
        with self._lock:
            decoder = self._idle.pop() if self._idle else None
            if decoder is not None:
                self._busy.add(decoder)
                return decoder
        try:
            return self._start()
        except (EOFError, OSError) as error:
            raise NotReady("no decoder could be started; try again soon") from error

    def _start(self) -> "_Decoder":
        decoder = _Decoder(self._command, self._bounds, self._environment)
        with self._lock:
            self._busy.add(decoder)
            closed = self._closed
        try:
            if closed:
                raise EOFError
            decoder.wait_until_ready()
        except (EOFError, OSError):
            self._drop(decoder, None)
            _log.error("a decoder did not start", extra={"facts": {"exit_code": decoder.exit_code}})
            raise
        return decoder

    def _give_back(self, decoder: "_Decoder") -> None:
        with self._lock:
            self._busy.discard(decoder)
            self._idle.append(decoder)

    def _drop(self, decoder: "_Decoder", reason: Fate | None) -> None:
        decoder.end()
        with self._lock:
            self._busy.discard(decoder)
        if reason is not None:
            self._lost(reason)
            facts = {"reason": reason, "exit_code": decoder.exit_code}
            _log.warning("a decoder was lost", extra={"facts": facts})


class _Decoder:
    """The owner's end of one decoder process."""

    def __init__(self, command: list[str], bounds: Bounds, environment: Mapping[str, str]) -> None:
        self._answered = False
        self._peer, theirs = socket.socketpair()
        arguments = theirs.fileno(), bounds.memory_bytes, bounds.timeout_s, bounds.idle_s
        try:
            self._process = subprocess.Popen(
                [*command, *map(str, arguments)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,  # decoders write what they think of a file
                # Threads of OpenBLAS would take the address space, one part for each core.
                env={**environment, "OPENBLAS_NUM_THREADS": "1"},
                pass_fds=[theirs.fileno()],
            )
        except OSError:
            self._peer.close()
            raise
        finally:
            theirs.close()
        # It ends by itself when idle, and must not stay a zombie until the next picture.
        threading.Thread(target=self._process.wait, name="decoder-end", daemon=True).start()

    @property
    def exit_code(self) -> int | None:
        return self._process.returncode

    def wait_until_ready(self) -> None:
        receive(self._peer, 0, time.monotonic() + START_S)

    def ask(
        self, request: Header, data: bytes, most_bytes: int, limit_s: float
    ) -> tuple[Header, list[bytearray]]:
        deadline_s = time.monotonic() + limit_s
        send(self._peer, request, [data], deadline_s)
        reply = receive(self._peer, most_bytes, deadline_s)
        self._answered = True
        return reply

    def fate(self) -> Fate | None:
        """How it ended, asked once the connection has broken; None where it went for want of work.

        Only others kill it, be it the kernel that is short of memory: a picture makes it crash.
        """
        try:
            code = self._process.wait(1.0)
        except subprocess.TimeoutExpired:
            return "crashed"  # it lives, and makes no sense
        if code == 0 and self._answered:
            return None
        return "killed" if code == -signal.SIGKILL else "crashed"

    def end(self) -> None:
        if self._process.returncode is None:
            self._process.kill()
        self._process.wait()
        self._peer.close()


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=20).digest()


def _answer(
    reply: Header, blobs: list[bytearray], recipe: Recipe, started_s: float
) -> Picture | ClientError:
    """What a decoder says is checked: something hostile may speak through it."""
    if reply.get("code") in REFUSALS:
        return REFUSALS[reply["code"]](str(reply["message"]), **reply["facts"])
    if "bug" in reply:
        raise RuntimeError(f"in a decoder process: {reply['bug']}")
    height, width = reply["size"]
    placement = placement_of(Size(height=height, width=width), recipe)
    canvas = placement.canvas
    pixels = np.frombuffer(blobs[0], np.uint8).reshape(canvas.height, canvas.width, 3)
    pixels.setflags(write=False)
    upright = None
    if reply["upright"]:
        height, width = reply["upright"]
        upright = Image.frombytes("RGB", (width, height), blobs[1])
    preprocess_s = float(reply["preprocess_s"])
    decode_s = max(0.0, time.monotonic() - started_s - preprocess_s)
    return Picture(placement, pixels, upright, started_s, decode_s, preprocess_s)
