"""The path of one picture: choose the model, decode and place it, have it run, hand back arrays."""

import asyncio
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from service.api.turns import Turns
from service.bundle import Bundle, GraphKind, Manifest, Task
from service.decoding.pool import Bounds, DecoderPool
from service.errors import (
    DeadlineExceeded,
    NotReady,
    Overloaded,
    UnknownModel,
    UnsupportedTask,
    UrlRefused,
)
from service.fetch import ImageFetcher
from service.images import ImageLimits
from service.metrics import Metrics
from service.pictures import Picture, graph_inputs
from service.settings import Settings, foreign_environment, split_list
from service.tracing import Trace
from service.worker.drain import DrainRate, retry_after_s
from service.worker.link import Result, WorkerState
from service.worker.links import Link
from service.worker.runtimes.base import Arrays
from service.worker.scheduler import Group
from service.worker.served import read_served

Made = TypeVar("Made")


class Serving:
    """What handlers share in one API process: models, limits, decoding threads and the worker."""

    def __init__(
        self,
        settings: Settings,
        bundles: list[Bundle],
        link: Link,
        metrics: Metrics,
        served: Path | None = None,
    ) -> None:
        self.settings = settings
        self.manifests = _by_name(bundles)
        self.link = link
        self.metrics = metrics
        self._served = served
        self._learning: asyncio.Task[None] | None = None
        self._decoders = DecoderPool(
            ImageLimits(max_pixels=settings.max_pixels),
            settings.decode_isolation,
            Bounds(settings.decode_timeout_s, settings.decode_memory_bytes),
            foreign_environment(),
            lambda reason: metrics.decoders_lost.labels(reason).inc(),
        )
        self._threads = ThreadPoolExecutor(settings.decoders(), "decode")
        # One waits for each thread, so that none is idle until the event loop has a moment.
        self._turns = Turns(2 * settings.decoders())
        self.fetcher = _fetcher(settings)
        self._in_flight = 0
        self._preparing = 0
        self._clients: dict[str, int] = {}  # requests in flight of each
        self._rate = DrainRate()
        self.draining = False
        """Whether the server is about to stop: balancers are to look elsewhere."""

    def drain(self) -> None:
        """Be not ready any more, and answer what comes all the same."""
        self.draining = True

    def close(self) -> None:
        """Stop the decoding threads and processes."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._decoders.close()

    def hear(self, state: WorkerState) -> None:
        """Take note of what the worker says that it serves; ``learn`` tells more of it."""
        for name in self.manifests:
            self.metrics.model_ready.labels(name).set(state.ready and name in state.models)
        for device, ready in state.devices.items():
            self.metrics.device_ready.labels(device).set(ready)
        learning = self._learning is not None and not self._learning.done()
        if state.ready and not learning and not self._knows(state):
            self._learning = asyncio.create_task(self.learn(), name="learn what is served")

    async def learn(self) -> None:
        """Read the manifests of what is served now, where the worker keeps them."""
        bundles = await asyncio.to_thread(read_served, self._served) if self._served else None
        if bundles is None:
            return
        self.manifests = _by_name(bundles)
        self.metrics.prepare_models({m.name: m.tasks for m in self.manifests.values()})

    def _knows(self, state: WorkerState) -> bool:
        versions = {name: model["version"] for name, model in state.models.items()}
        known = {name: m.version for name, m in self.manifests.items() if name not in state.failed}
        return versions == known

    def find_model(self, name: str | None, task: Task) -> Manifest:
        """The model to ask.

        Raises:
            UnknownModel: no model of that name.
            UnsupportedTask: it does not do the task, or, without a name, none does.
            NotReady: it should be served, and cannot be loaded.
        """
        able = [m.name for m in self.manifests.values() if task in m.tasks]
        failed = self.link.state.failed
        if name is None and able:
            name = next((other for other in able if other not in failed), able[0])
        if name is None:
            raise UnsupportedTask(f"no model served here can {task}", allowed=able)
        manifest = self.named(name)
        if name not in able:
            does = ", ".join(manifest.tasks)
            can = ", ".join(able) or "none"
            raise UnsupportedTask(
                f"{name!r} cannot {task}, it can {does}; models that can: {can}", allowed=able
            )
        if name in failed:
            raise NotReady(
                f"{name!r} cannot be loaded; the log of the server says why, "
                "and it is tried again and again"
            )
        return manifest

    def named(self, name: str) -> Manifest:
        """The model of a name.

        Raises:
            UnknownModel: there is none.
        """
        if name not in self.manifests:
            raise UnknownModel(
                f"there is no model {name!r}; served are {', '.join(self.manifests)}",
                allowed=list(self.manifests),
            )
        return self.manifests[name]

    def ready(self, manifest: Manifest) -> bool:
        """Whether a picture sent to a model now would be run."""
        return self.link.state.answers() and bool(self.link.state.models.get(manifest.name))

    def check_admission(self, client: str) -> None:
        """Refuse a request before any of it is read, where it could not be answered.

        Raises:
            NotReady: the worker is starting or restarting.
            Overloaded: as many requests as may wait are already here.
        """
        if not self.link.state.answers():
            phase = "it is silent" if self.link.state.ready else self.link.state.phase
            raise NotReady(f"the worker is not ready ({phase}); try again soon")
        self._check_room(client)

    @contextmanager
    def admitted(self, client: str) -> Iterator[None]:
        """Count one request in once its body is here: bodies that dribble must not take the room
        of those that can be answered.

        What got in is answered even if the worker dies meanwhile: its successor will.

        Raises:
            Overloaded: as many requests as may wait are already here.
        """
        self._check_room(client)
        if not self._in_flight:
            self._rate.begin(time.monotonic())
        self._in_flight += 1
        self._clients[client] = self._clients.get(client, 0) + 1
        try:
            yield
        finally:
            self._in_flight -= 1
            self._clients[client] -= 1
            if not self._clients[client]:
                del self._clients[client]
            self._rate.finish(1, time.monotonic())

    def _check_room(self, client: str) -> None:
        """Where as many are here as may, a client with less than its share gets in all the same:
        the worker's queue makes room for it.
        """
        limit, present = self.settings.max_queue, self._in_flight
        if present < limit:
            return
        mine = self._clients.get(client, 0)
        share = limit / (len(self._clients) + (not mine))
        if mine + 1 <= share and present < 2 * limit:
            return
        raise Overloaded(
            f"{present} requests are being answered here, {mine} of them this client's; "
            f"{limit} may; try again soon",
            retry_after_s=retry_after_s(present, self._rate.per_second(time.monotonic())),
            limit=limit,
        )

    async def fetch(self, url: str, deadline_s: float, trace: Trace) -> bytes:
        """The bytes of a picture elsewhere.

        Raises:
            UrlRefused, UrlFailed, TooLarge: as ``ImageFetcher.fetch`` says, or no host is allowed.
            DeadlineExceeded: it did not arrive before the deadline.
        """
        if self.fetcher is None:
            raise UrlRefused(
                "this server fetches no pictures by URL; send their bytes, or have its operator "
                "allow hosts with --url-hosts"
            )
        asked_s = time.monotonic()
        try:
            async with asyncio.timeout(deadline_s - asked_s):
                data = await self.fetcher.fetch(url)
        except TimeoutError:
            raise DeadlineExceeded("the deadline passed before the picture was fetched") from None
        except asyncio.CancelledError:
            self.metrics.cancellations.labels("fetch").inc()
            raise
        trace.record("fetch", time.monotonic() - asked_s)
        return data

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
            ClientError, NotReady: as ``DecoderPool.prepare`` says.
            DeadlineExceeded: it was not done in time.
        """
        asked_s = time.monotonic()
        self._preparing += 1
        try:
            async with asyncio.timeout(deadline_s - asked_s):
                picture = await self._take_turn(
                    trace.client, data, manifest, deadline_s, keep_upright
                )
        except TimeoutError:
            raise _late() from None
        except asyncio.CancelledError:
            self.metrics.cancellations.labels("decode").inc()
            raise
        finally:
            self._preparing -= 1
        ago_s = time.monotonic() - picture.started_s
        self._measure(manifest, trace, "wait", picture.started_s - asked_s, ago_s)
        ago_s -= picture.decode_s
        self._measure(manifest, trace, "decode", picture.decode_s, ago_s)
        ago_s -= picture.preprocess_s
        self._measure(manifest, trace, "preprocess", picture.preprocess_s, ago_s)
        canvas, valid = picture.placement.canvas, picture.placement.valid
        used = valid.height * valid.width / (canvas.height * canvas.width)
        self.metrics.padding.labels(manifest.name).observe(1 - used)
        return picture

    async def _take_turn(
        self,
        client: str,
        data: bytes,
        manifest: Manifest,
        deadline_s: float,
        keep_upright: bool,
    ) -> Picture:
        """Decode when it is the client's turn; answers on their way out come in between.

        A small picture that is alone here is decoded at once: to wake a thread, and to be woken by
        it, takes a good part of the time that the decoding does.
        """
        await asyncio.sleep(0)  # by then all pictures of a request have come
        if self._in_flight <= 1 and self._preparing == 1:
            picture = self._decoders.prepare_small(data, manifest, keep_upright)
            if picture is not None:
                return picture
        await self._turns.take(client)
        try:
            return await asyncio.get_running_loop().run_in_executor(
                self._threads, self._prepare_in_time, data, manifest, deadline_s, keep_upright
            )
        finally:
            self._turns.give_back()

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
        group = Group(manifest.name, graph, str(picture.placement.canvas), manifest.version)
        inputs = graph_inputs(picture, manifest, graph, extra)
        try:
            result = await self.link.infer(
                group, inputs, deadline_s, outputs, trace.client, trace.priority
            )
        except asyncio.CancelledError:
            if not self.link.state.ready:  # else the worker counts it, by where it was
                self.metrics.cancellations.labels("queue").inc()
            raise
        trace.record("queue", result.queue_s, result.infer_s)
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
        trace.record(f"{stage}-wait", started_s - asked_s, time.monotonic() - started_s)
        self.metrics.stage_seconds.labels(manifest.name, "wait").observe(started_s - asked_s)
        self._measure(manifest, trace, stage, spent_s)
        return made

    def _prepare_in_time(
        self, data: bytes, manifest: Manifest, deadline_s: float, keep_upright: bool
    ) -> Picture:
        if time.monotonic() > deadline_s:
            raise _late()
        return self._decoders.prepare(data, manifest, keep_upright, deadline_s)

    def _measure(
        self, manifest: Manifest, trace: Trace, stage: str, seconds: float, ago_s: float = 0.0
    ) -> None:
        trace.record(stage, seconds, ago_s)
        self.metrics.stage_seconds.labels(manifest.name, stage).observe(seconds)


def _by_name(bundles: list[Bundle]) -> dict[str, Manifest]:
    return {bundle.manifest.name: bundle.manifest for bundle in bundles}


def _timed(work: Callable[[], Made], deadline_s: float, stage: str) -> tuple[Made, float, float]:
    """What was made, when that began, and the seconds it took."""
    started_s = time.monotonic()
    if started_s > deadline_s:
        raise DeadlineExceeded(f"the deadline passed before the stage {stage!r} of the answer")
    made = work()
    return made, started_s, time.monotonic() - started_s


def _late() -> DeadlineExceeded:
    return DeadlineExceeded("the deadline passed before the picture was decoded")


def _fetcher(settings: Settings) -> ImageFetcher | None:
    hosts = split_list(settings.url_hosts)
    if not hosts:
        return None
    return ImageFetcher(hosts, settings.max_body_bytes, settings.url_timeout_s)
