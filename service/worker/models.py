"""The runtimes of a worker: opened, warmed and looked up by group."""

import contextlib
import logging
import math
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from service.bundle import Bundle, GraphKind, find_bundle, load_repository
from service.errors import (
    BadBundle,
    BadSettings,
    CannotLoad,
    ClientError,
    NotReady,
    RuntimeFailed,
    StartError,
    UnknownModel,
)
from service.geometry import Size
from service.settings import Settings
from service.tuning import UNTUNED_BATCH, Plan, Tuning, load_tuning, plan_for, this_machine
from service.worker.runtimes.base import Arrays, Runtime, example_inputs
from service.worker.runtimes.cache import open_cache
from service.worker.runtimes.choose import Choice, candidates, explains, open_runtime
from service.worker.runtimes.tensorrt.running import TensorRt
from service.worker.scheduler import Group
from service.worker.served import read_served, write_served

Outputs = tuple[str, ...] | None
"""Names of the outputs to send back, None for all."""

_log = logging.getLogger(__name__)


Key = tuple[str, str]
"""Name and version."""

SHUT_S = 10.0


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
    shut: dict[tuple[str, str], tuple[float, str]] = field(default_factory=dict)
    """Graphs that could not be opened when they were first asked for, until when not to try, and
    why.
    """
    maps: Choice | None = None
    """What computes its attention maps, if it has any."""

    @property
    def key(self) -> Key:
        """By which it is found."""
        return _key(self.bundle)


class Ran(NamedTuple):
    """One batch: outputs per item, in order, and the arithmetic that made them."""

    outputs: list[Arrays]
    precision: str


class Models:
    """Everything that this worker can run; ``explain`` graphs are opened when first asked for, by
    ``open`` or else with their first batch.

    A version that was replaced or unloaded can run for as long as a request may take: other
    processes have prepared pictures for it. What is served is remembered in the file ``served``,
    where a successor finds it.

    One thread at a time loads and unloads; others run batches meanwhile, so what they look into is
    replaced and never changed.
    """

    def __init__(
        self,
        settings: Settings,
        verified: bool = False,
        served: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._verified = verified
        self._file = served
        self._clock = clock
        self._models: dict[Key, Model] = {}
        self._served: dict[str, Bundle] = {}
        self._until_s: dict[Key, float] = {}
        self._cache = open_cache(settings.cache_folder())
        self._followed: tuple[int, int] | None = None
        self._opening: set[Group] = set()
        self.failed: dict[str, str] = {}
        """What should be served and cannot be, and why."""

    @property
    def able(self) -> bool:
        """Whether any model can run, unless none should be served."""
        return not self._served or any(_key(b) in self._models for b in self._served.values())

    def load(self, report: Callable[[str], None]) -> None:
        """Open and warm every model of the repository, once verified if nobody has done that yet;
        ``report`` hears each phase.

        A model is warm when real forward passes at batch 1 and at the best batch succeeded.

        After a predecessor, what that one served; there a model that can no longer be loaded is put
        into ``failed``, and keeps no other from being served.

        Raises:
            StartError: a bundle or the tuning file is damaged, or no runtime may serve a model.
        """
        remembered = None if self._file is None else read_served(self._file)
        if remembered is None:
            for bundle in load_repository(self._settings.repository):
                self._add(self._opened(bundle, report, self._verified))
            self._remember(self._served)
        else:
            self._served = {bundle.manifest.name: bundle for bundle in remembered}
            self.failed = dict.fromkeys(self._served, "it is being loaded")
            self.retry(report)
        self._explain_plans()
        if self._cache is not None:
            self._cache.serving = True

    def retry(self, report: Callable[[str], None]) -> bool:
        """Try again to load what ``failed``; whether any could be."""
        before = len(self.failed)
        for name in list(self.failed):
            try:
                self._add(self._opened(self._served[name], report))
            except Exception as error:  # of a library, too
                if self.failed[name] != str(error):
                    _log.error("%s cannot be served: %s", name, error)
                self.failed = self.failed | {name: str(error)}
        return len(self.failed) < before

    def change(self, name: str, version: str | None, report: Callable[[str], None]) -> None:
        """Serve this version of a model, the newest in the repository without a ``version``, in
        place of the one that is served, as soon as it is warm.

        Raises:
            UnknownModel: the repository has no such model or version.
            CannotLoad: it is damaged, or nothing here may run it. What was served goes on.
        """
        try:
            bundle = find_bundle(self._settings.repository, name, version)
            model = self._models.get(_key(bundle))
            if model is None:
                model = self._opened(bundle, report)
            elif model.bundle.manifest != bundle.manifest:
                raise CannotLoad(
                    f"version {bundle.manifest.version!r} of {name!r} is loaded with another "
                    "manifest than lies in the repository now, and a version does not change while "
                    "it is served; give the new one a version of its own"
                )
            self._remember(self._served | {name: bundle})
        except ClientError:
            raise
        except Exception as error:  # of a library, too
            _log.exception("cannot load %s %s", name, version or "")
            said = str(error) if isinstance(error, StartError | OSError) else "the log says why"
            raise CannotLoad(
                f"{name!r} cannot be loaded, and what was served goes on: {said}"
            ) from error
        model.shut.clear()
        replaced = self._served.get(name)
        self._add(model)
        if replaced is not None and _key(replaced) != model.key:
            self._leave(replaced)

    def unload(self, name: str) -> None:
        """Serve a model no longer.

        Raises:
            UnknownModel: it is not served.
        """
        if name not in self._served:
            served = list(self._served)
            raise UnknownModel(
                f"there is no model {name!r}; served are {', '.join(served) or 'none'}",
                allowed=served,
            )
        left = {other: bundle for other, bundle in self._served.items() if other != name}
        self._remember(left)
        unloaded, self._served = self._served[name], left
        self.failed = {other: why for other, why in self.failed.items() if other != name}
        self._leave(unloaded)

    def follow(self, report: Callable[[str], None]) -> bool:
        """Serve what the worker of another device was told to serve; whether that is anything new.

        What cannot be loaded here is put into ``failed``, and others go on serving it.
        """
        if self._file is None or (written := _mark_of(self._file)) in (None, self._followed):
            return False
        self._followed = written
        wanted = {one.manifest.name: one for one in read_served(self._file) or []}
        changed = {
            name: bundle
            for name, bundle in wanted.items()
            if name not in self._served or _key(self._served[name]) != _key(bundle)
        }
        left = [one for name, one in self._served.items() if name in changed or name not in wanted]
        if not changed and not left:
            return False
        self._served = {n: b for n, b in self._served.items() if n in wanted} | changed
        kept = {name: why for name, why in self.failed.items() if name in wanted}
        self.failed = kept | dict.fromkeys(changed, "it is being loaded")
        self.retry(report)
        for bundle in left:
            self._leave(bundle)
        return True

    def drop_replaced(self) -> None:
        """Free what is no longer served, once no request can be under way for it."""
        now_s = self._clock()
        gone = [key for key, until_s in self._until_s.items() if until_s <= now_s]
        for key in gone:
            del self._until_s[key]
            _log.info("freed %s %s", *key)
        if gone:
            self._models = {key: m for key, m in self._models.items() if key not in gone}

    def _add(self, model: Model) -> None:
        name = model.bundle.manifest.name
        self._models = self._models | {model.key: model}
        self._served = self._served | {name: model.bundle}
        self._until_s.pop(model.key, None)
        self.failed = {other: why for other, why in self.failed.items() if other != name}

    def _leave(self, bundle: Bundle) -> None:
        self._until_s[_key(bundle)] = self._clock() + self._settings.timeout_s

    def _remember(self, served: dict[str, Bundle]) -> None:
        if self._file is not None:
            # By name, as from the repository: it decides who is asked without one.
            write_served(self._file, [served[name] for name in sorted(served)])

    def _opened(
        self, bundle: Bundle, report: Callable[[str], None], verified: bool = False
    ) -> Model:
        self._check_room(bundle)
        tuning = load_tuning(self._settings)
        *others, last = candidates(  # before every byte is read: many a model fails here already
            bundle,
            self._settings.device,
            self._settings.precision,
            self._settings.runtime,
            self._settings.engines,
        )
        if not verified:
            report(f"verifying {bundle.manifest.name}")
            bundle.verify()
        for choice in others:
            try:
                return self._opened_by(choice, bundle, tuning, report)
            except BadBundle as error:
                if choice.runtime != "tensorrt":
                    raise
                _log.warning("%s is passed over for the next: %s", choice, error)
        return self._opened_by(last, bundle, tuning, report)

    def _check_room(self, bundle: Bundle) -> None:
        """Raises BadSettings where a picture alone is more than may wait."""
        settings = self._settings
        limits = {"--max-queue-bytes": settings.max_queue_bytes}
        if settings.max_model_queue_bytes:
            limits["--max-model-queue-bytes"] = settings.max_model_queue_bytes
        flag = min(limits, key=lambda name: limits[name])
        needed = max(
            sum(math.prod(one.shape[1:]) * np.dtype(one.dtype).itemsize for one in graph.inputs)
            for graph in bundle.manifest.graphs
        )
        if needed > limits[flag]:
            raise BadSettings(
                f"{bundle.manifest.name}: one picture on its largest canvas has {needed} bytes, "
                f"and {flag} lets {limits[flag]} wait; give it at least that many, or better "
                "several times as many"
            )

    def _opened_by(
        self, choice: Choice, bundle: Bundle, tuning: Tuning | None, report: Callable[[str], None]
    ) -> Model:
        """One choice may fail where others do not: that an engine is wrong is known once it is
        built.
        """
        name = bundle.manifest.name
        plan = plan_for(bundle, choice, tuning, this_machine(), self._settings.threads)
        model = Model(bundle, choice, plan)
        if any(graph.kind == "explain" for graph in bundle.manifest.graphs):
            model.maps = explains(choice)
            if model.maps.device != choice.device:
                _log.warning("%s serves %s, but its attention maps %s", choice, name, model.maps)
        for canvas in bundle.manifest.canvases:
            report(f"compiling {name} {canvas} for {choice.runtime} {choice.precision}")
            runtime = self._open(model, "serve", canvas, report)
            model.threads = runtime.threads
            if isinstance(runtime, TensorRt):  # the largest of its batches has the throughput
                batches = model.plan.batches | {str(canvas): runtime.most}
                model.plan = replace(model.plan, batches=batches)
            report(f"warming up {name} {canvas}")
            for batch in sorted({1, self._batch(model, str(canvas))}):
                _warm_up(runtime, batch)
            if plan.lone_threads:
                report(f"compiling {name} {canvas} for a lone picture")
                model.lone[str(canvas)] = open_runtime(
                    bundle, "serve", canvas, choice, plan.lone_threads, self._cache
                )
                _warm_up(model.lone[str(canvas)], 1)
        return model

    def best_batch(self, group: Group) -> int:
        """How many pictures of a group to run together."""
        model = self._find(group) if group.graph == "serve" else None
        return self._batch(model, group.canvas)

    def streams(self, group: Group) -> int:
        """How many batches of a group to run at once; none while its graph is being opened."""
        if group.graph != "serve":
            return 0 if group in self._opening else 1
        model = self._find(group)
        return 1 if model is None else model.plan.streams

    def begin_opening(self, group: Group) -> bool:
        """Whether somebody must ``open`` the graph of a group beside the batches, which takes
        seconds; from now on its pictures wait, and nobody else.
        """
        model = self._find(group)
        if model is None or (group.graph, group.canvas) in model.runtimes:
            return False
        if group in self._opening or self._shut_s(model, group) > 0:
            return False
        self._opening.add(group)
        return True

    def open(self, group: Group) -> None:
        """Open the graph of a group if it is not; where it cannot be, ``run`` will say so."""
        try:
            model = self._find(group)
            if model is not None and (group.graph, group.canvas) not in model.runtimes:
                with contextlib.suppress(NotReady):
                    self._open_late(model, group)
        finally:
            self._opening.discard(group)

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
                "explain": None if model.maps is None else str(model.maps),
            }
            for name, bundle in self._served.items()
            if (model := self._models.get(_key(bundle))) is not None
        }

    def run(
        self, group: Group, items: list[Arrays], outputs: list[Outputs], lone: bool = False
    ) -> Ran:
        """Run one batch and take it apart again; each item gets the ``outputs`` that it names.
        A ``lone`` picture has all cores to itself.

        Raises:
            NotReady: the model is not loaded, or a graph that is opened late cannot be.
            RuntimeFailed: an output has not one row per item, or is not finite. What nobody asked
                for is not looked at.
            Exception: whatever the runtime raises.
        """
        model = self._find(group)
        if model is None:
            which = f"version {group.version} of {group.model}" if group.version else group.model
            raise NotReady(f"{which} is not loaded here; try again soon")
        runtime = model.lone.get(group.canvas) if lone and group.graph == "serve" else None
        runtime = runtime or model.runtimes.get((group.graph, group.canvas))
        if runtime is None:
            runtime = self._open_late(model, group)
        inputs = {name: np.stack([item[name] for item in items]) for name in items[0]}
        asked = None if None in outputs else {name for names in outputs for name in names or ()}
        found = runtime.run(inputs, asked)
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

    def probe(self) -> None:
        """Run one empty picture through the smallest model, if there is any.

        Raises:
            RuntimeFailed: what comes back is not finite.
            Exception: whatever the runtime raises.
        """
        models = list(self._models.values())
        if not models:
            return
        model = min(models, key=lambda model: model.bundle.manifest.macs)
        runtime = next(iter(model.runtimes.values()))
        for name, array in runtime.run(example_inputs(runtime, 1)).items():
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise RuntimeFailed(f"{runtime.name} returned {name!r} that is not finite")

    def _find(self, group: Group) -> Model | None:
        """The version that a group names, else the one that is served."""
        if group.version:
            return self._models.get((group.model, group.version))
        bundle = self._served.get(group.model)
        return None if bundle is None else self._models.get(_key(bundle))

    def _shut_s(self, model: Model, group: Group) -> float:
        """Seconds for which a graph that could not be opened is not tried again."""
        until_s, _ = model.shut.get((group.graph, group.canvas), (-math.inf, ""))
        return until_s - self._clock()

    def _open_late(self, model: Model, group: Group) -> Runtime:
        """Files may have changed since the model was loaded: what cannot be proven is not run."""
        name, what = model.bundle.manifest.name, (group.graph, group.canvas)
        if self._shut_s(model, group) <= 0:
            why = "files of the model changed after it was loaded; put them back, or load another "
            why += "version"
            try:
                model.bundle.verify()
                why = "the log of the server says why"
                height, width = map(int, group.canvas.split("x"))
                return self._open(model, group.graph, Size(height=height, width=width))
            except Exception as error:  # of a library, too
                _log.error("cannot open the %s graph of %s: %s", group.graph, name, error)
                model.shut[what] = self._clock() + SHUT_S, why
        raise NotReady(
            f"the {group.graph} graph of {name!r} cannot be opened: {model.shut[what][1]}",
            retry_after_s=self._shut_s(model, group),
        )

    def _open(
        self,
        model: Model,
        kind: GraphKind,
        canvas: Size,
        report: Callable[[str], None] = _log.info,
    ) -> Runtime:
        runtime = open_runtime(
            model.bundle,
            kind,
            canvas,
            model.choice,
            model.plan.threads,
            self._cache,
            model.plan.streams if kind == "serve" else 1,
            self._settings.engines == "rebuild",
            report,
        )
        model.runtimes = model.runtimes | {(kind, str(canvas)): runtime}
        _log.info("opened %s %s %s", model.bundle.manifest.name, kind, canvas)
        return runtime

    def _batch(self, model: Model | None, canvas: str) -> int:
        best = UNTUNED_BATCH if model is None else model.plan.batches.get(canvas, UNTUNED_BATCH)
        return min(best, self._settings.max_batch)

    def _explain_plans(self) -> None:
        """One line for each reason, however many models share it."""
        untuned: dict[str, list[str]] = defaultdict(list)
        for model in self._models.values():
            if model.plan.untuned is not None:
                untuned[model.plan.untuned].append(model.bundle.manifest.name)
        for reason, names in untuned.items():
            _log.info("default streams and batches for %s: %s", ", ".join(names), reason)


def _key(bundle: Bundle) -> Key:
    return bundle.manifest.name, bundle.manifest.version


def _mark_of(file: Path) -> tuple[int, int] | None:
    """What changes when a file is replaced; None where there is none."""
    try:
        found = file.stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns


def _warm_up(runtime: Runtime, batch: int) -> None:
    """Run a batch in every stream: each has its own buffers and kernels to make."""
    inputs = example_inputs(runtime, batch)
    with ThreadPoolExecutor(runtime.streams) as pool:
        list(pool.map(runtime.run, [inputs] * runtime.streams))
