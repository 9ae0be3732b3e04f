"""Running what waits: threads that take batches off the queue and answer every job in them."""

import logging
import threading
import time
from collections.abc import Callable
from typing import Literal

from service.errors import OutOfMemory, Overloaded, RetryLater, RuntimeFailed, ServiceError
from service.metrics import Metrics
from service.settings import Settings
from service.worker import wire
from service.worker.memory import Lowered, ran_out_of_memory
from service.worker.models import Models
from service.worker.pulse import Pulse
from service.worker.running import Passes, Running
from service.worker.runtimes.base import Arrays
from service.worker.scheduler import Batch, Bounds, Group, Job, Scheduler, late_error
from service.worker.sticky import lost_the_device

MAX_FAILED_PROBES = 3  # in a row; the process then ends, to be started again

Answer = Callable[[bytes, wire.Header, Arrays | None], None]
JobId = tuple[bytes, int]

_log = logging.getLogger(__name__)


class Batches:
    """The queue, and the threads that work it off until one of them fails.

    ``answer`` sends a peer what became of a job, once for each; ``wake`` has an end noticed. Who
    holds ``changed`` keeps batches from being formed meanwhile.
    """

    def __init__(
        self,
        settings: Settings,
        models: Models,
        metrics: Metrics,
        pulse: Pulse,
        answer: Answer,
        wake: Callable[[], None],
    ) -> None:
        self._models = models
        self._metrics = metrics
        self._answer = answer
        self._wake = wake
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
        lock = threading.RLock()
        self.changed = threading.Condition(lock)
        self._running = Running(lock, pulse, time.monotonic)
        self.passes = Passes(settings.probe_every_s, settings.liveness_s, time.monotonic)
        self._lowered: Lowered[Group] = Lowered(time.monotonic)
        self._threads: list[threading.Thread] = []
        self._measured = (-1, -1)
        self.failure: BaseException | None = None
        """What ended the threads, and is to end the process."""

    def start(self, first: Callable[[], None]) -> None:
        """Have the first thread run batches after ``first``."""

        def work() -> None:
            first()
            self._run_forever()

        self._start_thread(work)

    def use_streams(self, count: int) -> None:
        """Have a thread for each stream; there never are fewer than before."""
        while len(self._threads) < count:
            self._start_thread(self._run_forever)

    def end(self, error: BaseException) -> None:
        """Stop, and have the process end."""
        with self.changed:
            self.failure = error
            self.changed.notify_all()
        self._wake()

    def join(self) -> None:
        """Wait for the threads."""
        for thread in self._threads:
            thread.join()

    def admit(self, job: Job) -> None:
        """Queue a job; one for which there is no room is answered, or another that makes room."""
        try:
            with self.changed:
                displaced = self._scheduler.admit(job)
                self.changed.notify()
        except Overloaded as error:
            self._refuse(job, error)
        else:
            if displaced is not None:
                self._refuse(*displaced)

    def cancel(self, job_id: JobId) -> Literal["queue", "infer"] | None:
        """See ``Scheduler.cancel``."""
        with self.changed:
            return self._scheduler.cancel(job_id)

    def forget(self, peer: bytes) -> list[Literal["queue", "infer"]]:
        """See ``Scheduler.cancel_all``."""
        with self.changed:
            return self._scheduler.cancel_all(peer)

    def look(self) -> None:
        """Something that held jobs up has changed: see what may run now."""
        with self.changed:
            self.changed.notify_all()

    def measure_queue(self) -> None:
        """Tell the metrics how much waits."""
        waiting = len(self._scheduler), self._scheduler.waiting_bytes
        if waiting != self._measured:
            self._measured = waiting
            self._metrics.queue_depth.set(waiting[0])
            self._metrics.queue_bytes.set(waiting[1])

    def _refuse(self, job: Job, error: ServiceError) -> None:
        self._answer(job.id[0], error_header(job.id[1], error), None)

    def _start_thread(self, work: Callable[[], None]) -> None:
        def guarded() -> None:
            try:
                work()
            except BaseException as error:
                self.end(error)

        self._threads.append(threading.Thread(target=guarded, name="batches", daemon=True))
        self._threads[-1].start()

    def _run_forever(self) -> None:
        while self.failure is None:
            try:
                self._run_next()
            except Exception:
                _log.exception("batch loop")  # a bug of ours; the loop goes on

    def _run_next(self) -> None:
        batch = self._wait_for_batch()
        if batch is None:
            if self.failure is None:
                self._probe()
            return
        try:
            for job in batch.late:
                self._refuse(job, late_error())
            if batch.jobs:
                self._run(batch.jobs, batch.lone)
        finally:
            if batch.jobs:
                with self.changed:
                    self._scheduler.finish(batch.jobs)
                    self.measure_queue()

    def _wait_for_batch(self) -> Batch | None:
        """The next batch; None when the worker ends or a probe is due, which is then begun."""
        with self.changed:
            while self.failure is None:
                wait_s = self.passes.probe_in_s()
                if not wait_s:
                    self.passes.probe_began()
                    return None
                if any(batch := self._scheduler.next_batch()):
                    return batch
                self.changed.wait(wait_s)
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
            self.passes.probe_failed()
            if lost_the_device(error) or self.passes.failed_probes >= MAX_FAILED_PROBES:
                self.end(error)
            return
        self.passes.probe_succeeded()
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
                if lost_the_device(error) or self.failure is not None:
                    self._lose_device(jobs, error)
                    return
                failure = error.with_traceback(None)  # which would hold on to the batch
        if failure is not None:
            self._fail(jobs, failure)
            return
        infer_s = time.monotonic() - started_s
        self.passes.succeeded()
        self._measure(jobs, started_s, infer_s)
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
                self._answer(job.id[0], header, arrays)

    def _lose_device(self, jobs: list[Job], error: Exception) -> None:
        """Nothing can run in this process any more, and perhaps it was one of these pictures: they
        are left to the successor as after a crash, which runs each alone.
        """
        _log.critical(
            "the device is lost to this process, which ends: %s",
            error,
            extra={"facts": {"model": jobs[0].group.model, "pictures": len(jobs)}},
        )
        self._running.leave_to_successor()
        if self.failure is None:
            self._metrics.devices_lost.inc()
            self.end(error)

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
            with self.changed:
                self._lowered.lower(group, half)
            self._run(jobs[:half])
            self._run(jobs[half:])
            return
        if len(jobs) > 1:
            _log.warning("a batch of %d failed, running it one by one: %s", len(jobs), error)
            for job in jobs:
                if self.failure is None:
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

    def _measure(self, jobs: list[Job], started_s: float, infer_s: float) -> None:
        model = jobs[0].group.model
        self._metrics.batch_size.labels(model).observe(len(jobs))
        self._metrics.device_last_success.set(time.time())
        infer = self._metrics.stage_seconds.labels(model, "infer")
        queue = self._metrics.stage_seconds.labels(model, "queue")
        for job in jobs:
            infer.observe(infer_s)
            queue.observe(started_s - job.admitted_s)


def error_header(message_id: int, error: ServiceError) -> wire.Header:
    """What is sent in place of a result."""
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
