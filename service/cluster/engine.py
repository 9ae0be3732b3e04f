"""The part of a server that runs batches, as one replica among many."""

import asyncio
import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from service.bundle import load_repository
from service.cluster.link import Status
from service.errors import DeadlineExceeded, ServiceError
from service.metrics import Metrics
from service.predict.engine import LocalLink
from service.settings import Settings
from service.worker.link import Result
from service.worker.models import Models, Outputs, Ran
from service.worker.runtimes.base import Arrays
from service.worker.scheduler import Group


class WatchedModels(Models):
    """Models that tell how their batches fare."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        super().__init__(settings)
        self.passed_s = time.monotonic()
        """When a pass last ran to its end."""
        self._metrics = metrics
        self._began_s: dict[int, float] = {}  # by thread

    def run(
        self, group: Group, items: list[Arrays], outputs: list[Outputs], lone: bool = False
    ) -> Ran:
        """As ``Models.run``."""
        self.open(group)  # before the batch begins: it may take longer than a batch may
        self._began_s[threading.get_ident()] = time.monotonic()
        try:
            ran = super().run(group, items, outputs, lone)
        finally:
            del self._began_s[threading.get_ident()]
        self.passed_s = time.monotonic()
        self._metrics.batch_size.labels(group.model).observe(len(items))
        self._metrics.device_last_success.set(time.time())
        return ran

    def probe(self) -> None:
        """As ``Models.probe``."""
        super().probe()
        self.passed_s = time.monotonic()

    @property
    def oldest_s(self) -> float:
        """Since when the oldest batch runs, infinity if none does."""
        return min(list(self._began_s.values()), default=math.inf)


class Loaded:
    """One version of a model in memory; who holds the last of it calls ``__del__`` to free it."""

    def __init__(self, unload: Callable[[], None]) -> None:
        self._unload: Callable[[], None] | None = unload

    def __del__(self) -> None:
        unload, self._unload = self._unload, None
        if unload is not None:
            unload()


class Engine:
    """Runtimes in this process, and batches of whatever waits for them.

    Nothing here bounds what waits: whoever sends pictures does.
    """

    def __init__(self, settings: Settings) -> None:
        self.metrics = Metrics()
        self._settings = settings
        self._models = WatchedModels(settings, self.metrics)
        # One at a time, as Models asks; and nobody else waits for a thread while a model compiles.
        self._changing = ThreadPoolExecutor(1, "change models")
        self._dropping: Future[None] | None = None

    def first_models(self, most: int | None) -> list[str]:
        """The ids of the models to load before the first picture, at most so many, None for all.

        Raises:
            BadBundle: the repository cannot be read.
        """
        manifests = [bundle.manifest for bundle in load_repository(self._settings.repository)]
        return [model_id(manifest.name, manifest.version) for manifest in manifests][:most]

    def begin(self) -> None:
        """Take pictures from now on: what is loaded tells how many batches run at once."""
        self._link = LocalLink(self._models)

    async def load(self, wanted: str) -> Loaded:
        """Have a model by its id verified, compiled and warm.

        Raises:
            UnknownModel: the repository has no such model or version.
            CannotLoad: it is damaged, or nothing here may run it.
        """
        name, _, version = wanted.partition("/")
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._changing, self._load, name, version)
        return Loaded(lambda: self._free(name, version))

    async def run(
        self, group: Group, inputs: Arrays, left_s: float, outputs: Outputs
    ) -> Result | ServiceError:
        """Run one picture of a loaded model in whatever batch it fits, if that is done in
        ``left_s``; an error is a result, for as an exception it would lose its facts on the way.
        """
        try:
            async with asyncio.timeout(left_s):
                return await self._link.infer(group, inputs, math.inf, outputs)
        except TimeoutError:
            return DeadlineExceeded("the deadline passed before the model had run")
        except ServiceError as error:
            return error

    def status(self) -> Status:
        """What is loaded, and how long ago a pass was finished."""
        return Status(self._models.describe(), time.monotonic() - self._models.passed_s)

    async def check_health(self) -> None:
        """Have the device show that it works, if it has nothing to do; waits for no model that is
        being loaded, which may take minutes.

        Raises:
            RuntimeError: a batch does not end.
            Exception: whatever the runtime raises.
        """
        if self._dropping is None or self._dropping.done():
            self._dropping = self._changing.submit(self._models.drop_replaced)
        now_s = time.monotonic()
        ran_s = now_s - self._models.oldest_s
        if ran_s > self._settings.batch_timeout_s:
            raise RuntimeError(f"a batch has been running for {ran_s:.0f} s")
        idle = self._models.oldest_s == math.inf
        if idle and now_s - self._models.passed_s > self._settings.probe_every_s:
            await asyncio.wait_for(
                asyncio.to_thread(self._models.probe), self._settings.batch_timeout_s
            )

    def _load(self, name: str, version: str) -> None:
        self._models.change(name, version, lambda phase: None)

    def _free(self, name: str, version: str) -> None:
        try:
            unloading = self._changing.submit(self._unload, name, version)
        except RuntimeError:  # the process ends, and all models with it
            return
        unloading.result()

    def _unload(self, name: str, version: str) -> None:
        served = self._models.describe().get(name)
        if served is not None and served["version"] == version:
            self._models.unload(name)


def model_id(name: str, version: str) -> str:
    """By which replicas are told apart that have loaded it."""
    return f"{name}/{version}"
