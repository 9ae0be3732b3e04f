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
    OutOfMemory,
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
from service.worker.loader import Loader
from service.worker.memory import Lowered, ran_out_of_memory
from service.worker.models import Models
from service.worker.pulse import pulse_beside
from service.worker.running import Passes, Running
from service.worker.runtimes.base import Arrays
from service.worker.scheduler import Batch, Bounds, Group, Job, Scheduler, late_error
from service.worker.served import served_file

STATUS_EVERY_S = 1.0
RECEIVED_TOGETHER = 64
MAX_FAILED_PROBES = 3  # in a row; the process then ends, to be started again

_log = logging.getLogger("service.worker.process")  # __name__ is "__main__" here


class Worker:
    """Owns the queue and the runtimes; every job that comes in is answered exactly once."""

    def __init__(self, settings: Settings, models: Models, metrics: Metrics, endpoint: str) -> None:
        self._models = models
        self._metrics = metrics
        self._endpoint = endpoint
        self._scheduler = Scheduler(
            Bounds(settings.max_queue, settings.max_queue_bytes),
            Bounds(
                settings.max_model_queue or settings.max_queue,
                settings.max_model_queue_bytes or settings.max_queue_bytes,
            ),
            best_batch=self._best_batch,
            streams=models.streams,
            clock=time.monotonic,
        )
        lock = threading.RLock()  # guards the scheduler
        self._changed = threading.Condition(lock)
        self._pulse = pulse_beside(endpoint)
        self._running = Running(lock, self._pulse, time.monotonic)
        self._passes = Passes(settings.probe_every_s, settings.liveness_s, time.monotonic)
        self._lowered: Lowered[Group] = Lowered(time.monotonic)
        self._phases: list[tuple[str, float]] = []
        self._outbox: deque[tuple[bytes, wire.Header, Arrays | None]] = deque()
        self._peers: set[bytes] = set()
        self._threads: list[threading.Thread] = []
        self._loader = Loader(models, self._answer_change, self._hear_change)
        self._infos: dict[str, tuple[str, ...]] = {}
        self._phase = "starting"
        self._ready = self._loaded = False
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
        router.setsockopt(zmq.ROUTER_MANDATORY, 1)  # or we would not hear that a peer is gone
        self._pulse.begin()
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
            if self._loaded:  # loading may keep all threads from running, so it is no hang
                self._pulse.beat()
            self._measure_queue()
            if time.monotonic() >= next_status_s:
                self._broadcast_status()
                next_status_s = time.monotonic() + STATUS_EVERY_S
            while self._outbox:
                peer, header, arrays = self._outbox.popleft()
                try:
                    router.send_multipart([peer, *wire.pack(header, arrays)], copy=False)
                except zmq.ZMQError as error:
                    if error.errno != zmq.EHOSTUNREACH:
                        raise
                    self._forget(peer)
        self._loader.close()  # and not joined: a model may take minutes to load
        for thread in self._threads:
            thread.join()
        self._awake.close()
        self._alarm.close()
        self._context.destroy(linger=0)
        raise self._failure

    def _forget(self, peer: bytes) -> None:
        """An API process is gone, and so is everyone who waited for its jobs."""
        self._peers.discard(peer)
        with self._changed:
            dropped = self._scheduler.cancel_all(peer)
        for stage in dropped:
            self._metrics.cancellations.labels(stage).inc()
        _log.info("an API process is gone, and with it %d pictures", len(dropped))

    def _receive(self, router: "zmq.Socket[bytes]") -> None:
        """Take what has come, up to a bound, before a batch is formed of it: who has come and left
        meanwhile is not in it.
        """
        with self._changed:
            for _ in range(RECEIVED_TOGETHER):
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
                stage = self._scheduler.cancel((peer, header["id"]))
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
            try:
                with self._changed:
                    displaced = self._scheduler.admit(job)
                    self._changed.notify()
            except Overloaded as error:
                self._refuse(job, error)
            else:
                if displaced is not None:
                    self._refuse(*displaced)

    def _start_thread(self, work: Callable[[], None]) -> None:
        def guarded() -> None:
            try:
                work()
            except BaseException as error:
                self._end(error)

        self._threads.append(threading.Thread(target=guarded, name="batches", daemon=True))
        self._threads[-1].start()

    def _end(self, error: BaseException) -> None:
        """Tell the first thread, which ends the process."""
        with self._changed:
            self._failure = error
            self._changed.notify_all()
        self._wake()

    def _wake(self) -> None:
        """Make the first thread look at what there is to send."""
        with contextlib.suppress(BlockingIOError):  # it is being woken often enough
            self._alarm.send(b"!")

    def _load_and_run(self) -> None:
        self._models.load(self._enter_phase)
        gc.collect()
        gc.freeze()  # what is here stays: the collector need not walk through it again and again
        self._pulse.beat()  # before anyone hears that we are ready: now silence would be a hang
        self._hear_change()
        self._loaded = True
        threading.Thread(target=self._loader.run_forever, name="loader", daemon=True).start()
        self._run_forever()

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
        while len(self._threads) < self._models.most_streams():
            self._start_thread(self._run_forever)
        self._ready = self._models.able
        self._enter_phase("ready" if self._ready else "no model can be loaded; the log says why")

    def _answer_change(self, peer: bytes, change_id: int, error: ServiceError | None) -> None:
        if error is None:
            self._send(peer, {"type": "done", "id": change_id})
        else:
            self._send(peer, _error_header(change_id, error))
        self._wake()

    def _run_forever(self) -> None:
        while self._failure is None:
            try:
                self._run_next()
            except Exception:
                _log.exception("batch loop")  # a bug of ours; the loop goes on

    def _run_next(self) -> None:
        batch = self._wait_for_batch()
        if batch is None:
            if self._failure is None:
                self._probe()
            return
        try:
            for job in batch.late:
                self._refuse(job, late_error())
            if batch.jobs:
                self._run(batch.jobs, batch.lone)
        finally:
            if batch.jobs:
                with self._changed:
                    self._scheduler.finish(batch.jobs)
            self._wake()

    def _wait_for_batch(self) -> Batch | None:
        """The next batch; None when the worker ends or a probe is due, which is then begun."""
        with self._changed:
            while self._failure is None:
                wait_s = self._passes.probe_in_s()
                if not wait_s:
                    self._passes.probe_began()
                    return None
                if any(batch := self._scheduler.next_batch()):
                    return batch
                self._changed.wait(wait_s)
        return None

    def _probe(self) -> None:
        """Nothing has run for a while: show that the device still can. If it cannot, end this
        process, for its successor may.
        """
        try:
            with self._running.batch([]):
                self._models.probe()
        except Exception as error:
            _log.error("a probe of the device failed: %s", error)
            self._passes.probe_failed()
            if self._passes.failed_probes >= MAX_FAILED_PROBES:
                self._end(error)
            return
        self._passes.probe_succeeded()
        self._metrics.device_last_success.set(time.time())

    def _run(self, jobs: list[Job], lone: bool = False) -> None:
        failure: Exception | None = None
        with self._running.batch(jobs) as started_s:
            jobs = self._still_wanted(jobs, started_s)
            if not jobs:
                return
            try:
                items = [job.inputs for job in jobs]
                outputs = [job.outputs for job in jobs]
                ran = self._models.run(jobs[0].group, items, outputs, lone)
                answered = list(zip(jobs, ran.outputs, strict=True))
            except Exception as error:
                failure = error.with_traceback(None)  # which would hold on to the batch
        if failure is not None:
            self._fail(jobs, failure)
            return
        infer_s = time.monotonic() - started_s
        self._passes.succeeded()
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
            if not job.left:
                self._send(job.id[0], header, arrays)

    def _still_wanted(self, jobs: list[Job], now_s: float) -> list[Job]:
        """Those whose client is there and whose deadline has not passed, now that they may run: a
        batch may have waited for others, or for its turn after its neighbours failed.
        """
        for job in jobs:
            if not job.left and job.deadline_s <= now_s:
                self._refuse(job, late_error())
        return [job for job in jobs if not job.left and job.deadline_s > now_s]

    def _fail(self, jobs: list[Job], error: Exception) -> None:
        """One bad picture must not fail its neighbours: run them one by one; what did not fit into
        memory, in halves.
        """
        group, memory = jobs[0].group, ran_out_of_memory(error)
        if isinstance(error, RetryLater):  # it is not the pictures
            for job in jobs:
                self._refuse(job, error)
            return
        if len(jobs) > 1 and memory:
            half = len(jobs) // 2
            _log.warning("a batch of %d ran out of memory: %s", len(jobs), error)
            self._metrics.halved_batches.labels(group.model).inc()
            with self._changed:
                self._lowered.lower(group, half)
            self._run(jobs[:half])
            self._run(jobs[half:])
            return
        if len(jobs) > 1:
            _log.warning("a batch of %d failed, running it one by one: %s", len(jobs), error)
            for job in jobs:
                self._run([job])
            return
        _log.error("inference failed: %s", error, extra={"facts": {"model": group.model}})
        self._metrics.isolated_failures.labels(group.model).inc()
        if memory:
            self._refuse(jobs[0], OutOfMemory("no memory to run this picture; try again soon"))
        else:
            self._refuse(
                jobs[0], RuntimeFailed("the model failed on this picture; the log says why")
            )

    def _best_batch(self, group: Group) -> int:
        return self._lowered.limit(group, self._models.best_batch(group))

    def _refuse(self, job: Job, error: ServiceError) -> None:
        self._send(job.id[0], _error_header(job.id[1], error))

    def _send(self, peer: bytes, header: wire.Header, arrays: Arrays | None = None) -> None:
        self._outbox.append((peer, header, arrays))

    def _enter_phase(self, phase: str) -> None:
        self._phase = phase
        if not self._loaded:
            self._phases.append((phase, time.monotonic()))
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
            "passed_s": self._passes.last_s,
            "phases": self._phases,
            "failed": list(self._models.failed),
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


def _error_header(message_id: int, error: ServiceError) -> wire.Header:
    header: wire.Header = {
        "type": "error",
        "id": message_id,
        "kind": type(error).__name__,
        "message": str(error),
        "facts": error.facts,
    }
    if isinstance(error, RetryLater):
        header["retry_after_s"] = error.retry_after_s
    return header


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
        models = Models(settings, not int(incarnation), served_file(endpoint))
        Worker(settings, models, metrics, endpoint).serve()
    except StartError as error:
        _log.critical("%s", error)
        os._exit(EXIT_BAD_CONFIG)


if __name__ == "__main__":
    main()
