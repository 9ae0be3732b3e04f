"""The worker process: a thread that speaks to the API processes, beside those of ``batches``."""

import gc
import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from setproctitle import setproctitle

from service.devices import gpus
from service.errors import ServiceError, StartError
from service.lifeline import EXIT_BAD_CONFIG, exit_with_parent
from service.logs import configure_logging
from service.metrics import Metrics
from service.settings import Settings, load_settings
from service.worker import wire
from service.worker.batches import Batches, error_header
from service.worker.lines import Switchboard
from service.worker.loader import Loader
from service.worker.models import Models
from service.worker.pulse import pulse_beside
from service.worker.runtimes import nvml
from service.worker.runtimes.base import Arrays
from service.worker.scheduler import Group, Job
from service.worker.served import served_file

STATUS_EVERY_S = 1.0

_log = logging.getLogger("service.worker.process")  # __name__ is "__main__" here


class Worker:
    """Owns the queue and the runtimes; every job that comes in is answered exactly once."""

    def __init__(self, settings: Settings, models: Models, metrics: Metrics, endpoint: str) -> None:
        self._models = models
        self._metrics = metrics
        self._endpoint = endpoint
        self._pulse = pulse_beside(endpoint)
        self._board = Switchboard(Path(endpoint.removeprefix("ipc://")))
        self._batches = Batches(
            settings, models, metrics, self._pulse, self._board.send, self._board.wake
        )
        self._phases: list[tuple[str, float]] = []
        self._loader = Loader(models, self._answer_change, self._hear_change, self._batches.look)
        self._infos: dict[str, tuple[str, ...]] = {}
        self._phase = "starting"
        self._ready = self._loaded = False

    def serve(self) -> None:
        """Answer until the process ends.

        Raises:
            BaseException: whatever kept the models from loading, or ended the batch loop.
        """
        self._pulse.begin()
        self._batches.start(self._load)
        next_status_s = 0.0
        while self._batches.failure is None:
            events = self._board.wait(STATUS_EVERY_S)
            # Take what has come before a batch is formed of it: who has come and left meanwhile
            # is not in it.
            with self._batches.changed:
                for peer, header, arrays in self._board.receive(events, self._forget):
                    self._handle(peer, header, arrays)
            if self._loaded:  # loading may keep all threads from running, so it is no hang
                self._pulse.beat()
            self._batches.measure_queue()
            if time.monotonic() >= next_status_s:
                self._broadcast_status()
                next_status_s = time.monotonic() + STATUS_EVERY_S
        self._loader.close()  # and not joined: a model may take minutes to load
        self._batches.join()
        self._board.close()
        raise self._batches.failure

    def _forget(self, peer: bytes) -> None:
        """An API process is gone, and so is everyone who waited for its jobs."""
        dropped = self._batches.forget(peer)
        for stage in dropped:
            self._metrics.cancellations.labels(stage).inc()
        _log.info("an API process is gone, and with it %d pictures", len(dropped))

    def _handle(self, peer: bytes, header: wire.Header, arrays: Arrays) -> None:
        if header["type"] == "hello":
            self._batches.measure_queue()  # who says it again wants to know that the rest is done
            self._board.send(peer, self._status())
        elif header["type"] == "cancel":
            stage = self._batches.cancel((peer, header["id"]))
            if stage is not None:
                self._metrics.cancellations.labels(stage).inc()
        elif header["type"] in ("load", "unload"):
            self._loader.ask(peer, header)
        else:
            version = header.get("version", "")
            group = Group(header["model"], header["graph"], header["canvas"], version)
            outputs = header["outputs"]
            job = Job(
                (peer, header["id"]),
                group,
                arrays,
                header["deadline_s"],
                header["alone"],
                None if outputs is None else tuple(outputs),
                header.get("client", ""),
                header.get("priority", 0),
                header.get("accepted", False),
            )
            if group.graph != "serve" and self._models.begin_opening(group):
                self._loader.open(group)
            self._batches.admit(job)

    def _load(self) -> None:
        self._models.load(self._enter_phase)
        gc.collect()
        gc.freeze()  # what is here stays: the collector need not walk through it again and again
        self._pulse.beat()  # before anyone hears that we are ready: now silence would be a hang
        self._hear_change()
        self._loaded = True
        threading.Thread(target=self._loader.run_forever, name="loader", daemon=True).start()

    def _hear_change(self) -> None:
        """Other models are served than before: tell everyone, and have a thread for each stream."""
        described = self._models.describe()
        for name, model in described.items():
            info = model["version"], model["runtime"], model["precision"]
            before = self._infos.get(name)
            if before != info:
                _log.info("model ready", extra={"facts": {"model": name} | model})
            if before not in (None, info):
                self._metrics.model_info.labels(name, *before).set(0)
            self._infos[name] = info
            self._metrics.model_info.labels(name, *info).set(1)
            self._metrics.model_ready.labels(name).set(1)
        for name in self._infos.keys() - described.keys():
            self._metrics.model_info.labels(name, *self._infos.pop(name)).set(0)
            self._metrics.model_ready.labels(name).set(0)
        self._batches.use_streams(self._models.most_streams())
        self._ready = self._models.able
        self._enter_phase("ready" if self._ready else "no model can be loaded; the log says why")

    def _answer_change(self, peer: bytes, change_id: int, error: ServiceError | None) -> None:
        if error is None:
            self._board.send(peer, {"type": "done", "id": change_id})
        else:
            self._board.send(peer, error_header(change_id, error))

    def _enter_phase(self, phase: str) -> None:
        self._phase = phase
        if not self._loaded:
            self._phases.append((phase, time.monotonic()))
        _log.info(phase)
        self._broadcast_status()

    def _status(self) -> dict[str, Any]:
        return {
            "type": "status",
            "ready": self._ready,
            "phase": self._phase,
            "models": self._models.describe(),
            "passed_s": self._batches.passes.last_s,
            "phases": self._phases,
            "failed": list(self._models.failed),
        }

    def _broadcast_status(self) -> None:
        for peer in self._board.peers:
            self._board.send(peer, self._status())


def _stop(*_: object) -> None:
    """The API processes have drained before, so nothing waits for us."""
    logging.shutdown()
    os._exit(0)


def main() -> None:
    """Entry of ``python -m service.worker.process ENDPOINT METRICS_FOLDER INCARNATION NAME``."""
    endpoint, metrics_folder, incarnation, name = sys.argv[1:]
    wait_until_verified = exit_with_parent()
    signal.signal(signal.SIGTERM, _stop)
    settings = load_settings()
    setproctitle(f"saccade worker {settings.device}")
    configure_logging(name, settings.log_level)
    metrics = Metrics(Path(metrics_folder))
    if int(incarnation):
        metrics.worker_restarts.inc()
    for gpu in gpus().found if settings.device.startswith("cuda") else ():
        if gpu.device == settings.device:
            nvml.watch_in_background(gpu.uuid, gpu.device, metrics)
    _log.info("starting", extra={"facts": {"waited_s": round(wait_until_verified(), 3)}})
    try:
        # The supervisor has verified just now what the first worker reads, and nobody since.
        models = Models(settings, not int(incarnation), served_file(endpoint))
        Worker(settings, models, metrics, endpoint).serve()
    except StartError as error:
        _log.critical("%s", error)
        os._exit(EXIT_BAD_CONFIG)


if __name__ == "__main__":
    main()
