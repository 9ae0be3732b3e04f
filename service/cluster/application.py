"""The application that Ray Serve deploys: HTTP replicas in front of engines.

``serve run service.cluster.application:build`` deploys it, and so does the file that
``import_path: service.cluster.application:build`` stands in.
"""

import asyncio
import logging
import math
from typing import Any

import ray
from ray import exceptions, serve
from ray.serve.exceptions import DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle, DeploymentResponse

from service.cluster.engine import Engine, Loaded, model_id
from service.cluster.front import App, create_front
from service.cluster.link import EngineLost, Status
from service.cluster.options import ENGINE, FRONT, Options
from service.cores import usable_cores
from service.errors import NotReady, ServiceError
from service.logs import configure_logging
from service.metrics import Metrics
from service.worker.link import Result
from service.worker.runtimes.base import Arrays
from service.worker.scheduler import Group

EXPORT_EVERY_S = 5.0

_LOST = (
    exceptions.RayActorError,
    exceptions.ObjectLostError,
    exceptions.NodeDiedError,
    exceptions.WorkerCrashedError,
)


def build(options: Options) -> serve.Application:
    """The application; fails at once where a setting is wrong.

    Raises:
        BadSettings: naming the setting, what was found, and what is allowed.
    """
    settings = options.on_this_node()
    engines = serve.deployment(
        EngineReplica,
        name=ENGINE,
        # Enough for the next batches to be there while some run, and no more: what waits in Ray's
        # queue can still go to another engine.
        max_ongoing_requests=4 * settings.max_batch,
        autoscaling_config={"min_replicas": 1, "max_replicas": 8, "target_ongoing_requests": 8},
        health_check_period_s=5,
        logging_config={"enable_access_log": False},  # a line a picture; the fronts have ours
        graceful_shutdown_timeout_s=settings.grace_s,
    )

    def application() -> App:
        return _front(options)

    fronts = serve.deployment(
        serve.ingress(application)(),
        name=FRONT,
        max_ongoing_requests=2 * settings.max_queue + 64,  # we refuse first, and say why
        autoscaling_config={"min_replicas": 1, "max_replicas": 8, "target_ongoing_requests": 16},
        logging_config={"enable_access_log": False},
        graceful_shutdown_timeout_s=settings.grace_s,
    )
    return fronts.bind(engines.bind(options))


class EngineReplica(Engine):
    """An engine as Ray starts it; the models that it keeps are Ray's to choose."""

    async def __init__(self, options: Options) -> None:  # type: ignore[misc]  # as Ray allows
        settings = options.on_this_node()
        if not settings.threads and _assigned_cores() < usable_cores():
            settings = settings.model_copy(update={"threads": _assigned_cores()})
        configure_logging(ENGINE, settings.log_level)
        super().__init__(settings)
        most = options.models_per_replica

        async def load(wanted: str) -> Loaded:
            return await self.load(wanted)

        self._multiplexed = serve.multiplexed(load, max_num_models_per_replica=most or -1)
        for first in self.first_models(most or None):
            await self._multiplexed(first)
        self.begin()
        self._exporting = asyncio.create_task(_export_forever(self.metrics), name="export metrics")

    async def run(
        self, group: Group, inputs: Arrays, left_s: float, outputs: tuple[str, ...] | None
    ) -> Result | ServiceError:
        """As ``Engine.run``, with the model loaded first where it is not."""
        try:
            async with asyncio.timeout(left_s):
                await self._multiplexed(model_id(group.model, group.version))
        except TimeoutError:
            return NotReady(f"{group.model!r} is still being loaded; try again soon")
        except ServiceError as error:
            return error
        return await super().run(group, inputs, left_s, outputs)


class RayEngines:
    """The engines behind their handle, see ``link.Engines``."""

    def __init__(self, handle: DeploymentHandle) -> None:
        self._handle = handle

    async def run(
        self, group: Group, inputs: Arrays, left_s: float, outputs: tuple[str, ...] | None
    ) -> Result | ServiceError:
        """To one that has loaded the model, if any has and is not busy."""
        wanted = model_id(group.model, group.version)
        able = self._handle.options(multiplexed_model_id=wanted)
        answer: Result | ServiceError = await _answer(
            able.run.remote(group, inputs, left_s, outputs)
        )
        return answer

    async def status(self) -> Status:
        """That of any."""
        status: Status = await _answer(self._handle.status.remote())
        return status


async def _answer(response: DeploymentResponse) -> Any:
    """What an engine returned; who waits no more takes the call back."""
    try:
        return await response
    except asyncio.CancelledError:
        response.cancel()
        raise
    except DeploymentUnavailableError as error:
        raise NotReady("no engine can be started; the log of the cluster says why") from error
    except _LOST as error:
        raise EngineLost(type(error).__name__) from error


def _front(options: Options) -> App:
    """The application of a replica that answers HTTP, made where it will run."""
    settings = options.on_this_node()
    if not settings.decode_threads:
        settings = settings.model_copy(update={"decode_threads": _assigned_cores()})
    configure_logging(FRONT, settings.log_level)
    metrics = Metrics()
    asyncio.get_running_loop().create_task(_export_forever(metrics), name="export metrics")
    handle = serve.get_deployment_handle(ENGINE, serve.get_replica_context().app_name)
    return create_front(settings, RayEngines(handle), metrics)


def _assigned_cores() -> int:
    """Whole cores that Ray has given to this replica, at least one."""
    assigned = ray.get_runtime_context().get_assigned_resources().get("CPU", 0.0)
    return max(1, min(usable_cores(), math.floor(assigned)))


async def _export_forever(metrics: Metrics) -> None:
    """Hand our metrics to Ray's exporter, which names the replica in each series.

    As gauges: counters and buckets are set to what they are, and rates are taken by who reads them.
    """
    gauges: dict[str, Any] = {}
    while True:
        await asyncio.sleep(EXPORT_EVERY_S)
        try:
            for sample in (s for metric in metrics.collect() for s in metric.samples):
                if sample.name.endswith("_created"):
                    continue
                if sample.name not in gauges:
                    keys = tuple(sample.labels)
                    gauges[sample.name] = serve.metrics.Gauge(sample.name, tag_keys=keys)
                gauges[sample.name].set(sample.value, tags=sample.labels)
        except Exception:
            logging.getLogger(__name__).exception("metrics")  # the loop goes on
