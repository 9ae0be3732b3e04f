"""The runtimes of a worker: opened, warmed and looked up by group."""

import logging
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from service.bundle import Bundle, GraphKind, load_repository
from service.errors import RuntimeFailed
from service.geometry import Size
from service.settings import Settings
from service.tuning import UNTUNED_BATCH, Plan, load_tuning, plan_for, this_machine
from service.worker.runtimes.base import Arrays, Runtime, example_inputs
from service.worker.runtimes.cache import open_cache
from service.worker.runtimes.choose import Choice, candidates, open_runtime
from service.worker.scheduler import Group

Outputs = tuple[str, ...] | None
"""Names of the outputs to send back, None for all."""

_log = logging.getLogger(__name__)


@dataclass
class Model:
    """One served bundle, what runs it and how, and its compiled graphs by (kind, canvas); those for
    a lone picture, where it has its own, by canvas.
    """

    bundle: Bundle
    choice: Choice
    plan: Plan
    threads: int = 0
    runtimes: dict[tuple[str, str], Runtime] = field(default_factory=dict)
    lone: dict[str, Runtime] = field(default_factory=dict)


class Ran(NamedTuple):
    """One batch: outputs per item, in order, and the arithmetic that made them."""

    outputs: list[Arrays]
    precision: str


class Models:
    """Everything that this worker can run; ``explain`` graphs are opened when first asked for."""

    def __init__(self, settings: Settings, verified: bool = False) -> None:
        self._settings = settings
        self._verified = verified
        self._models: dict[str, Model] = {}
        self._cache = open_cache(settings.cache_folder())

    def load(self, report: Callable[[str], None]) -> None:
        """Open and warm every model of the repository, once verified if nobody has done that yet;
        ``report`` hears each phase.

        A model is warm when real forward passes at batch 1 and at the best batch succeeded.

        Raises:
            StartError: a bundle or the tuning file is damaged, or no runtime may serve a model.
        """
        tuning, machine = load_tuning(self._settings), this_machine()
        for bundle in load_repository(self._settings.repository):
            name = bundle.manifest.name
            if not self._verified:
                report(f"verifying {name}")
                bundle.verify()
            choice = candidates(
                bundle, self._settings.device, self._settings.precision, self._settings.runtime
            )[0]
            plan = plan_for(bundle, choice, tuning, machine, self._settings.threads)
            model = Model(bundle, choice, plan)
            for canvas in bundle.manifest.canvases:
                report(f"compiling {name} {canvas} for {choice.runtime} {choice.precision}")
                runtime = self._open(model, "serve", canvas)
                model.threads = runtime.threads
                report(f"warming up {name} {canvas}")
                for batch in sorted({1, self._batch(model, str(canvas))}):
                    _warm_up(runtime, batch)
                if plan.lone_threads:
                    report(f"compiling {name} {canvas} for a lone picture")
                    model.lone[str(canvas)] = open_runtime(
                        bundle, "serve", canvas, choice, plan.lone_threads, self._cache
                    )
                    _warm_up(model.lone[str(canvas)], 1)
            self._models[name] = model
        self._explain_plans()

    def best_batch(self, group: Group) -> int:
        """How many pictures of a group to run together."""
        model = self._models.get(group.model) if group.graph == "serve" else None
        return self._batch(model, group.canvas)

    def streams(self, group: Group) -> int:
        """How many batches of a group to run at once."""
        model = self._models.get(group.model) if group.graph == "serve" else None
        return 1 if model is None else model.plan.streams

    def most_streams(self) -> int:
        """The largest number of streams that any model has."""
        return max((model.plan.streams for model in self._models.values()), default=1)

    def describe(self) -> dict[str, dict[str, Any]]:
        """What runs each model and how, for status messages."""
        return {
            name: {
                "version": model.bundle.manifest.version,
                "runtime": model.choice.runtime,
                "precision": model.choice.precision,
                "device": model.choice.device,
                "streams": model.plan.streams,
                "threads": model.threads,
                "batch": {
                    str(canvas): self._batch(model, str(canvas))
                    for canvas in model.bundle.manifest.canvases
                },
                "tuned": model.plan.untuned is None,
            }
            for name, model in list(self._models.items())  # another thread may be loading
        }

    def run(
        self, group: Group, items: list[Arrays], outputs: list[Outputs], lone: bool = False
    ) -> Ran:
        """Run one batch and take it apart again; each item gets the ``outputs`` that it names.
        A ``lone`` picture has all cores to itself.

        Raises:
            RuntimeFailed: an output has not one row per item, or is not finite. What nobody asked
                for is not looked at.
            Exception: whatever the runtime raises.
        """
        model = self._models[group.model]
        runtime = model.lone.get(group.canvas) if lone and group.graph == "serve" else None
        runtime = runtime or model.runtimes.get((group.graph, group.canvas))
        if runtime is None:
            height, width = map(int, group.canvas.split("x"))
            runtime = self._open(model, group.graph, Size(height=height, width=width))
        inputs = {name: np.stack([item[name] for item in items]) for name in items[0]}
        found = runtime.run(inputs)
        wanted = [tuple(found) if names is None else names for names in outputs]
        for name in sorted({name for names in wanted for name in names}):
            array = found[name]
            if len(array) != len(items):
                raise RuntimeFailed(
                    f"{runtime.name} returned {len(array)} rows of {name!r} for {len(items)} images"
                )
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise RuntimeFailed(
                    f"{runtime.name} returned {name!r} with values that are not finite"
                )
        taken_apart = [
            {name: found[name][row] for name in names} for row, names in enumerate(wanted)
        ]
        return Ran(taken_apart, runtime.precision)

    def _open(self, model: Model, kind: GraphKind, canvas: Size) -> Runtime:
        streams = model.plan.streams if kind == "serve" else 1
        runtime = open_runtime(
            model.bundle, kind, canvas, model.choice, model.plan.threads, self._cache, streams
        )
        model.runtimes[kind, str(canvas)] = runtime
        _log.info("opened %s %s %s", model.bundle.manifest.name, kind, canvas)
        return runtime

    def _batch(self, model: Model | None, canvas: str) -> int:
        best = UNTUNED_BATCH if model is None else model.plan.batches.get(canvas, UNTUNED_BATCH)
        return min(best, self._settings.max_batch)

    def _explain_plans(self) -> None:
        """One line for each reason, however many models share it."""
        untuned: dict[str, list[str]] = defaultdict(list)
        for name, model in self._models.items():
            if model.plan.untuned is not None:
                untuned[model.plan.untuned].append(name)
        for reason, names in untuned.items():
            _log.info("default streams and batches for %s: %s", ", ".join(names), reason)


def _warm_up(runtime: Runtime, batch: int) -> None:
    """Run a batch in every stream: each has its own buffers and kernels to make."""
    inputs = example_inputs(runtime, batch)
    with ThreadPoolExecutor(runtime.streams) as pool:
        list(pool.map(runtime.run, [inputs] * runtime.streams))
