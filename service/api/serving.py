"""The path of one picture: choose the model, decode and place it, have it run, hand back arrays."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from typing import TypeVar

from service.bundle import Bundle, GraphKind, Manifest, Task
from service.errors import DeadlineExceeded, NotReady, Overloaded, UnknownModel, UnsupportedTask
from service.images import ImageLimits
from service.metrics import Metrics
from service.pictures import Picture, graph_inputs, prepare
from service.settings import Settings
from service.tracing import Trace
from service.worker.link import Result, WorkerLink
from service.worker.runtimes.base import Arrays
from service.worker.scheduler import Group

Made = TypeVar("Made")


class Serving:
    """What handlers share in one API process: models, limits, decoding threads and the worker."""

    def __init__(
        self, settings: Settings, bundles: list[Bundle], link: WorkerLink, metrics: Metrics
    ) -> None:
        self.settings = settings
        self.manifests = {bundle.manifest.name: bundle.manifest for bundle in bundles}
        self.link = link
        self.metrics = metrics
        self.limits = ImageLimits(max_pixels=settings.max_pixels)
        self._threads = ThreadPoolExecutor(settings.decoders(), "decode")
        self._in_flight = 0

    def close(self) -> None:
        """Stop the decoding threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def find_model(self, name: str | None, task: Task) -> Manifest:
        """The model to ask.

        Raises:
            UnknownModel: no model of that name.
            UnsupportedTask: it does not do the task, or, without a name, none does.
        """
        able = [m.name for m in self.manifests.values() if task in m.tasks]
        if name is None and able:
            return self.manifests[able[0]]
        if name is None:
            raise UnsupportedTask(f"no model served here can {task}", allowed=able)
        if name not in self.manifests:
            raise UnknownModel(
                f"there is no model {name!r}; served are {', '.join(self.manifests)}",
                allowed=list(self.manifests),
            )
        if name not in able:
            does = ", ".join(self.manifests[name].tasks)
            can = ", ".join(able) or "none"
            raise UnsupportedTask(
                f"{name!r} cannot {task}, it can {does}; models that can: {can}", allowed=able
            )
        return self.manifests[name]

    @asynccontextmanager
    async def admitted(self) -> AsyncIterator[None]:
        """Count one request in, before any of it is read.

        What got in is answered even if the worker dies meanwhile: its successor will.

        Raises:
            NotReady: the worker is starting or restarting.
            Overloaded: as many requests as may wait are already here.
        """
        if not self.link.state.answers():
            phase = "it is silent" if self.link.state.ready else self.link.state.phase
            raise NotReady(f"the worker is not ready ({phase}); try again soon")
        limit = self.settings.max_queue
        if self._in_flight >= limit:
            raise Overloaded(
                f"{self._in_flight} requests are being answered here, {limit} may; try again soon",
                limit=limit,
            )
        self._in_flight += 1
        try:
            yield
        finally:
            self._in_flight -= 1

    async def prepare(
        self,
        data: bytes,
        manifest: Manifest,
        deadline_s: float,
        trace: Trace,
        keep_upright: bool = False,
    ) -> Picture:
        """Decode a picture and put it on its canvas, off the event loop.

        Raises:
            BadImage, UnsupportedFormat, TooLarge: as ``images.Opened`` says.
            DeadlineExceeded: it was not done in time.
        """
        asked_s = time.monotonic()
        work = asyncio.get_running_loop().run_in_executor(
            self._threads, _prepare_in_time, data, manifest, self.limits, deadline_s, keep_upright
        )
        try:
            async with asyncio.timeout(deadline_s - time.monotonic()):
                picture = await work
        except TimeoutError:
            raise _late() from None
        except asyncio.CancelledError:
            self.metrics.cancellations.labels("decode").inc()
            raise
        self._measure(manifest, trace, "wait", picture.started_s - asked_s)
        self._measure(manifest, trace, "decode", picture.decode_s)
        self._measure(manifest, trace, "preprocess", picture.preprocess_s)
        canvas, valid = picture.placement.canvas, picture.placement.valid
        used = valid.height * valid.width / (canvas.height * canvas.width)
        self.metrics.padding.labels(manifest.name).observe(1 - used)
        return picture

    async def infer(
        self,
        picture: Picture,
        manifest: Manifest,
        deadline_s: float,
        trace: Trace,
        graph: GraphKind = "serve",
        extra: Arrays | None = None,
        outputs: tuple[str, ...] | None = None,
    ) -> Result:
        """Run a picture through one of a model's graphs.

        ``extra`` are inputs besides the pixels and the size of their valid part; ``outputs`` names
        those that come back, None for all.

        Raises:
            ServerError: any of them, see ``WorkerLink.infer``.
        """
        group = Group(manifest.name, graph, str(picture.placement.canvas))
        inputs = graph_inputs(picture, manifest, graph, extra)
        result = await self.link.infer(group, inputs, deadline_s, outputs)
        trace.record("queue", result.queue_s)
        trace.record("infer", result.infer_s)
        trace.batch_sizes.append(result.batch_size)
        return result

    @contextmanager
    def postprocessing(self, manifest: Manifest, trace: Trace) -> Iterator[None]:
        """Time what turns arrays into an answer."""
        started_s = time.monotonic()
        yield
        self._measure(manifest, trace, "postprocess", time.monotonic() - started_s)

    async def offload(
        self,
        manifest: Manifest,
        deadline_s: float,
        trace: Trace,
        work: Callable[[], Made],
        stage: str = "encode",
    ) -> Made:
        """Run what takes longer than a millisecond in the decoding threads, timed as ``stage``.

        What nobody waits for any more, when its turn comes, is not begun.

        Raises:
            DeadlineExceeded: the deadline passed before its turn came.
        """
        asked_s = time.monotonic()
        begun = asyncio.get_running_loop().run_in_executor(
            self._threads, _timed, work, deadline_s, stage
        )
        try:
            made, started_s, spent_s = await begun
        except asyncio.CancelledError:
            self.metrics.cancellations.labels(stage).inc()
            raise
        # The trace tells the waits of one picture apart, the metrics do not.
        trace.record(f"{stage}-wait", started_s - asked_s)
        self.metrics.stage_seconds.labels(manifest.name, "wait").observe(started_s - asked_s)
        self._measure(manifest, trace, stage, spent_s)
        return made

    def _measure(self, manifest: Manifest, trace: Trace, stage: str, seconds: float) -> None:
        trace.record(stage, seconds)
        self.metrics.stage_seconds.labels(manifest.name, stage).observe(seconds)


def _timed(work: Callable[[], Made], deadline_s: float, stage: str) -> tuple[Made, float, float]:
    """What was made, when that began, and the seconds it took."""
    started_s = time.monotonic()
    if started_s > deadline_s:
        raise DeadlineExceeded(f"the deadline passed before the stage {stage!r} of the answer")
    made = work()
    return made, started_s, time.monotonic() - started_s


def _prepare_in_time(
    data: bytes, manifest: Manifest, limits: ImageLimits, deadline_s: float, keep_upright: bool
) -> Picture:
    if time.monotonic() > deadline_s:
        raise _late()
    return prepare(data, manifest, limits, keep_upright)


def _late() -> DeadlineExceeded:
    return DeadlineExceeded("the deadline passed before the picture was decoded")
