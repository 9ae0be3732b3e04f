"""The worker process: a thread that speaks to the API processes, and some that run batches."""

import contextlib
import gc
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import zmq
from setproctitle import setproctitle

from service.errors import (
    DeadlineExceeded,
    Overloaded,
    RetryLater,
    RuntimeFailed,
    ServiceError,
    StartError,
)
from service.lifeline import EXIT_BAD_CONFIG, exit_with_parent
from service.logs import configure_logging
from service.metrics import Metrics
from service.settings import Settings, load_settings
from service.worker import wire
from service.worker.models import Models
from service.worker.runtimes.base import Arrays
from service.worker.scheduler import Group, Job, Scheduler

STATUS_EVERY_S = 1.0

_log = logging.getLogger("service.worker.process")  # __name__ is "__main__" here


class Worker:
    """Owns the queue and the runtimes; every job that comes in is answered exactly once."""

    def __init__(self, settings: Settings, models: Models, metrics: Metrics, endpoint: str) -> None:
        self._models = models
        self._metrics = metrics
        self._endpoint = endpoint
        self._scheduler = Scheduler(
            max_jobs=settings.max_queue,
            max_bytes=settings.max_queue_bytes,
            best_batch=models.best_batch,
            streams=models.streams,
            clock=time.monotonic,
        )
        self._changed = threading.Condition()  # guards the scheduler
        self._outbox: deque[tuple[bytes, wire.Header, Arrays | None]] = deque()
        self._peers: set[bytes] = set()
        self._threads: list[threading.Thread] = []
        self._phase = "starting"
        self._ready = False
        self._measured = (-1, -1)
        self._failure: BaseException | None = None
        self._context = zmq.Context()
        self._awake, self._alarm = socket.socketpair()
        self._awake.setblocking(False)
        self._alarm.setblocking(False)

    def serve(self) -> None:
        """Answer until the process ends.

        Raises:
            BaseException: whatever kept the models from loading, or ended the batch loop.
        """
        router = self._context.socket(zmq.ROUTER)
        router.setsockopt(
            zmq.SNDHWM, 0
        )  # admission bounds what waits; a dropped answer is never right
        router.setsockopt(zmq.RCVHWM, 0)
        router.bind(self._endpoint)
        self._start_thread(self._load_and_run)
        poller = zmq.Poller()
        poller.register(router, zmq.POLLIN)
        poller.register(self._awake, zmq.POLLIN)
        next_status_s = 0.0
        while self._failure is None:
            events = dict(poller.poll(timeout=int(STATUS_EVERY_S * 1000)))
            if router in events:
                self._receive(router)
            if self._awake.fileno() in events:
                self._awake.recv(4096)
            self._measure_queue()
            if time.monotonic() >= next_status_s:
                self._broadcast_status()
                next_status_s = time.monotonic() + STATUS_EVERY_S
            while self._outbox:
                peer, header, arrays = self._outbox.popleft()
                router.send_multipart([peer, *wire.pack(header, arrays)], copy=False)
        for thread in self._threads:
            thread.join()
        self._awake.close()
        self._alarm.close()
        self._context.destroy(linger=0)
        raise self._failure

    def _receive(self, router: "zmq.Socket[bytes]") -> None:
        while True:
            try:
                peer, *frames = router.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            header, arrays = wire.unpack([frame.buffer for frame in frames])
            self._handle(peer.bytes, header, arrays)

    def _handle(self, peer: bytes, header: wire.Header, arrays: Arrays) -> None:
        if header["type"] == "hello":
            self._peers.add(peer)
            self._send(peer, self._status())
        elif header["type"] == "cancel":
            with self._changed:
                if self._scheduler.cancel((peer, header["id"])):
                    self._metrics.cancellations.labels("queue").inc()
        else:
            group = Group(header["model"], header["graph"], header["canvas"])
            outputs = header["outputs"]
            job = Job(
                (peer, header["id"]),
                group,
                arrays,
                header["deadline_s"],
                header["alone"],
                None if outputs is None else tuple(outputs),
            )
            try:
                with self._changed:
                    self._scheduler.admit(job)
                    self._changed.notify()
            except Overloaded as error:
                self._refuse(job, error)

    def _start_thread(self, work: Callable[[], None]) -> None:
        def guarded() -> None:
            try:
                work()
            except BaseException as error:  # told to the first thread, which ends the process
                with self._changed:
                    self._failure = error
                    self._changed.notify_all()
                self._wake()

        self._threads.append(threading.Thread(target=guarded, name="batches", daemon=True))
        self._threads[-1].start()

    def _wake(self) -> None:
        """Make the first thread look at what there is to send."""
        with contextlib.suppress(BlockingIOError):  # it is being woken often enough
            self._alarm.send(b"!")

    def _load_and_run(self) -> None:
        self._load()
        for _ in range(self._models.most_streams() - 1):
            self._start_thread(self._run_forever)
        self._run_forever()

    def _load(self) -> None:
        self._models.load(self._enter_phase)
        for name, model in self._models.describe().items():
            self._metrics.model_ready.labels(name).set(1)
            running = model["version"], model["runtime"], model["precision"]
            self._metrics.model_info.labels(name, *running).set(1)
            _log.info("model ready", extra={"facts": {"model": name} | model})
        gc.collect()
        gc.freeze()  # what is here stays: the collector need not walk through it again and again
        self._ready = True
        self._enter_phase("ready")

    def _run_forever(self) -> None:
        while self._failure is None:
            try:
                self._run_next()
            except Exception:
                _log.exception("batch loop")  # a bug of ours; the loop goes on

    def _run_next(self) -> None:
        with self._changed:
            while not any(batch := self._scheduler.next_batch()):
                if self._failure is not None:
                    return
                self._changed.wait()
        try:
            for job in batch.late:
                self._refuse(
                    job, DeadlineExceeded("the deadline passed while the picture was queued")
                )
            if batch.jobs:
                self._run(batch.jobs, batch.lone)
        finally:
            if batch.jobs:
                with self._changed:
                    self._scheduler.finish(batch.jobs[0].group)
            self._wake()

    def _run(self, jobs: list[Job], lone: bool = False) -> None:
        for peer in {job.id[0] for job in jobs}:
            ids = [job.id[1] for job in jobs if job.id[0] == peer]
            self._send(peer, {"type": "started", "ids": ids})
        self._wake()  # must be on its way before a crash could happen
        started_s = time.monotonic()
        try:
            items = [job.inputs for job in jobs]
            outputs = [job.outputs for job in jobs]
            ran = self._models.run(jobs[0].group, items, outputs, lone)
            answered = list(zip(jobs, ran.outputs, strict=True))
        except Exception as error:
            self._fail(jobs, error)
            return
        infer_s = time.monotonic() - started_s
        self._measure_batch(jobs, started_s, infer_s)
        for job, arrays in answered:
            header = {
                "type": "result",
                "id": job.id[1],
                "precision": ran.precision,
                "batch_size": len(jobs),
                "queue_s": started_s - job.admitted_s,
                "infer_s": infer_s,
            }
            self._send(job.id[0], header, arrays)

    def _fail(self, jobs: list[Job], error: Exception) -> None:
        """One bad picture must not fail its neighbours: run them one by one."""
        if len(jobs) > 1:
            _log.warning("a batch of %d failed, running it one by one: %s", len(jobs), error)
            for job in jobs:
                self._run([job])
            return
        job = jobs[0]
        _log.error("inference failed: %s", error, extra={"facts": {"model": job.group.model}})
        self._metrics.isolated_failures.labels(job.group.model).inc()
        self._refuse(job, RuntimeFailed("the model failed on this picture; the log says why"))

    def _refuse(self, job: Job, error: ServiceError) -> None:
        header: wire.Header = {
            "type": "error",
            "id": job.id[1],
            "kind": type(error).__name__,
            "message": str(error),
            "facts": error.facts,
        }
        if isinstance(error, RetryLater):
            header["retry_after_s"] = error.retry_after_s
        self._send(job.id[0], header)

    def _send(self, peer: bytes, header: wire.Header, arrays: Arrays | None = None) -> None:
        self._outbox.append((peer, header, arrays))

    def _enter_phase(self, phase: str) -> None:
        self._phase = phase
        _log.info(phase)
        for peer in list(self._peers):
            self._send(peer, self._status())
        self._wake()

    def _status(self) -> dict[str, Any]:
        return {
            "type": "status",
            "ready": self._ready,
            "phase": self._phase,
            "models": self._models.describe(),
        }

    def _broadcast_status(self) -> None:
        for peer in self._peers:
            self._send(peer, self._status())

    def _measure_queue(self) -> None:
        waiting = len(self._scheduler), self._scheduler.waiting_bytes
        if waiting != self._measured:
            self._measured = waiting
            self._metrics.queue_depth.set(waiting[0])
            self._metrics.queue_bytes.set(waiting[1])

    def _measure_batch(self, jobs: list[Job], started_s: float, infer_s: float) -> None:
        model = jobs[0].group.model
        self._metrics.batch_size.labels(model).observe(len(jobs))
        self._metrics.device_last_success.set(time.time())
        infer = self._metrics.stage_seconds.labels(model, "infer")
        queue = self._metrics.stage_seconds.labels(model, "queue")
        for job in jobs:
            infer.observe(infer_s)
            queue.observe(started_s - job.admitted_s)


def _stop(*_: object) -> None:
    """The API processes have drained before, so nothing waits for us."""
    logging.shutdown()
    os._exit(0)


def main() -> None:
    """Entry of ``python -m service.worker.process ENDPOINT METRICS_FOLDER INCARNATION``."""
    endpoint, metrics_folder, incarnation = sys.argv[1:]
    wait_until_verified = exit_with_parent()
    signal.signal(signal.SIGTERM, _stop)
    settings = load_settings()
    setproctitle("saccade worker cpu")
    configure_logging("worker", settings.log_level)
    metrics = Metrics(Path(metrics_folder))
    if int(incarnation):
        metrics.worker_restarts.inc()
    _log.info("starting", extra={"facts": {"waited_s": round(wait_until_verified(), 3)}})
    try:
        # The supervisor has verified just now what the first worker reads, and nobody since.
        models = Models(settings, verified=not int(incarnation))
        Worker(settings, models, metrics, endpoint).serve()
    except StartError as error:
        _log.critical("%s", error)
        os._exit(EXIT_BAD_CONFIG)


if __name__ == "__main__":
    main()
