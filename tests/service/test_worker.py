"""The worker process without its process: a real endpoint, and models that do what a test says."""

import itertools
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.errors import BadBundle, CannotLoad, NotReady
from service.metrics import Metrics
from service.settings import Settings
from service.worker import wire
from service.worker.models import Outputs, Ran
from service.worker.process import Worker
from service.worker.pulse import PEER_BYTES, pulse_beside
from service.worker.runtimes.base import Arrays
from service.worker.scheduler import Group

PATIENCE_S = 30.0
RUNNING = {"version": "1", "runtime": "fake", "precision": "fp32", "device": "cpu"}
BAD, FATAL = 13, 99


class FakeModels:
    """Adds one to each value; fails on BAD, and takes the thread down on FATAL."""

    def __init__(self, batch: int, streams: int) -> None:
        self._batch, self._streams = batch, streams
        self.may_load, self.may_run, self.entered = (threading.Event() for _ in range(3))
        self.may_open = threading.Event()
        self.may_load.set()
        self.may_run.set()
        self.opens_late = False
        self.opening: list[Group] = []
        self.opened: list[Group] = []
        self.ran: list[list[int]] = []
        self.failure: Exception | None = None
        self.forgets = False
        self.probes = 0
        self.cannot_probe = False
        self.most = 1000
        self.beside: dict[int, int] = {}
        """How many other batches ran when a value began to."""
        self._running = 0
        self.failed: dict[str, str] = {}
        self.version, self.able = "1", True
        self.refuses: Exception | None = None
        self.followed = ""
        self.lost_probe = False
        self.lost_on: int | None = None
        """The value that a device does not survive."""

    def load(self, report: Callable[[str], None]) -> None:
        report("warming up vit")
        assert self.may_load.wait(PATIENCE_S)
        if self.failure is not None:
            raise self.failure

    def best_batch(self, group: Group) -> int:
        return self._batch

    def streams(self, group: Group) -> int:
        if group in self.opening:
            return 0
        return self._streams if group.graph == "serve" else 1

    def begin_opening(self, group: Group) -> bool:
        if not self.opens_late or group in self.opening + self.opened:
            return False
        self.opening.append(group)
        return True

    def open(self, group: Group) -> None:
        assert self.may_open.wait(PATIENCE_S)
        self.opened.append(group)
        self.opening.remove(group)

    def most_streams(self) -> int:
        return self._streams

    def probe(self) -> None:
        self.probes += 1
        if self.lost_probe:
            raise RuntimeError("CUDA error 719: unspecified launch failure")
        if self.cannot_probe:
            raise RuntimeError("the device fell off the bus")

    def describe(self) -> dict[str, dict[str, str]]:
        return {"vit": RUNNING | {"version": self.version}} if self.may_load.is_set() else {}

    def change(self, name: str, version: str | None, report: Callable[[str], None]) -> None:
        if self.refuses is not None:
            raise self.refuses
        self.version = version or "9"

    def unload(self, name: str) -> None:
        self.may_load.clear()

    def drop_replaced(self) -> None:
        pass

    def follow(self, report: Callable[[str], None]) -> bool:
        self.version, before = self.followed or self.version, self.version
        return self.version != before

    def run(
        self, group: Group, items: list[Arrays], outputs: list[Outputs], lone: bool = False
    ) -> Ran:
        self.entered.set()
        self.beside |= dict.fromkeys((int(item["x"]) for item in items), self._running)
        self._running += 1
        assert self.may_run.wait(PATIENCE_S)
        self._running -= 1
        values = [int(item["x"]) for item in items]
        self.ran.append(values)
        if len(values) > self.most:
            raise RuntimeError("Failed to allocate memory for requested buffer")
        if FATAL in values:
            raise SystemExit(1)
        if self.lost_on in values:
            raise RuntimeError("CUDA failure 700: an illegal memory access was encountered")
        if BAD in values:
            raise RuntimeError("a bad picture")
        found = [
            dict.fromkeys(names or ("y",), item["x"] + 1)
            for item, names in zip(items, outputs, strict=True)
        ]
        return Ran(found[:-1] if self.forgets else found, "fp32")


class Peer:
    """One API process, message by message."""

    def __init__(self, endpoint: str) -> None:
        self._name = secrets.token_bytes(PEER_BYTES)
        self._pulse = pulse_beside(endpoint)
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(PATIENCE_S)
        self._socket.connect(endpoint.removeprefix("ipc://"))
        self._reader = wire.Reader()
        self.close = self._socket.close
        self.hello()
        self.receive("status")

    def hello(self) -> None:
        self.send(type="hello", name=self._name.hex())

    def send(self, arrays: Arrays | None = None, **header: Any) -> None:
        self._socket.sendall(b"".join(wire.pack(header, arrays)))

    def infer(self, job_id: int, value: int, **fields: Any) -> None:
        header = {"type": "infer", "id": job_id, "model": "vit", "graph": "serve", "canvas": "1x1"}
        header |= {"deadline_s": time.monotonic() + PATIENCE_S, "alone": False, "outputs": None}
        header |= fields
        self.send({"x": np.array(value, np.int32)}, **header)

    def receive(self, *kinds: str) -> tuple[dict[str, Any], Arrays]:
        """The next message of these kinds."""
        while count := self._socket.recv_into(self._reader.buffer):
            message = self._reader.filled(count)
            if message is not None and message[0]["type"] in kinds:
                return message
        raise AssertionError(f"no {kinds} came")

    def answers(self, count: int) -> dict[int, dict[str, Any]]:
        """That many results (with their value as "y") and errors, by id."""
        found = {}
        for _ in range(count):
            header, arrays = self.receive("result", "error")
            assert header["id"] not in found, "answered twice"
            found[header["id"]] = header | {name: int(y) for name, y in arrays.items()}
        return found

    def wait_until_running(self, *ids: int) -> None:
        """Come back when exactly these of our jobs run."""
        until_s = time.monotonic() + PATIENCE_S
        while (found := self._pulse.running(self._name)) != set(ids):
            assert time.monotonic() < until_s, f"running are {found}"
            time.sleep(0.001)

    def wait_until_heard(self) -> None:
        """Come back when the worker has dealt with all that was sent before, and measured it: the
        second answer is of another round.
        """
        for _ in range(2):
            self.hello()
            self.receive("status")


class Rig:
    """A worker in a thread."""

    def __init__(
        self, folder: Path, settings: Settings | None = None, batch: int = 4, streams: int = 1
    ) -> None:
        settings = settings or Settings()
        self.models, self.metrics = FakeModels(batch, streams), Metrics()
        self.endpoint = f"ipc://{folder}/w"
        self.ended: list[BaseException] = []
        self._peers: list[Peer] = []
        self._worker = Worker(settings, self.models, self.metrics, self.endpoint)  # type: ignore[arg-type]
        self._thread = threading.Thread(target=self._serve)

    def start(self) -> None:
        self._thread.start()

    def peer(self) -> Peer:
        self._peers.append(Peer(self.endpoint))
        return self._peers[-1]

    def value_of(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(name, labels)

    def join(self) -> None:
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()

    def close(self) -> None:
        self.models.may_load.set()
        self.models.may_run.set()
        if not self.ended:
            self.peer().infer(0, FATAL, alone=True)
        self.join()
        for peer in self._peers:
            peer.close()

    def _serve(self) -> None:
        try:
            self._worker.serve()
        except BaseException as error:
            self.ended.append(error)


@contextmanager
def running(folder: Path, batch: int = 4, streams: int = 1, **settings: Any) -> Iterator[Rig]:
    rig = Rig(folder, Settings(**settings), batch, streams)
    rig.start()
    try:
        yield rig
    finally:
        rig.close()


@contextmanager
def busy(folder: Path, **settings: Any) -> Iterator[tuple[Rig, Peer]]:
    """A worker that is in the middle of a batch (job 1, value 0) until ``may_run`` is set."""
    with running(folder, **settings) as rig:
        peer = rig.peer()
        rig.models.may_run.clear()
        peer.infer(1, 0)
        assert rig.models.entered.wait(PATIENCE_S)
        yield rig, peer


def test_a_lone_picture_is_run_and_answered(tmp_path: Path) -> None:
    with running(tmp_path) as rig:
        peer = rig.peer()
        sent_s = time.monotonic()
        peer.infer(5, 41)
        header, arrays = peer.receive("result", "error")
        assert arrays["y"] == 42
        assert (header["id"], header["batch_size"], header["precision"]) == (5, 1, "fp32")
        elapsed_s = time.monotonic() - sent_s
        assert 0 <= header["queue_s"] <= elapsed_s
        assert 0 <= header["infer_s"] <= elapsed_s


def test_what_runs_lies_in_the_pulse_while_it_runs(tmp_path: Path) -> None:
    with busy(tmp_path) as (rig, peer):
        peer.wait_until_running(1)
        rig.models.may_run.set()
        peer.answers(1)
        peer.wait_until_running()


def test_pictures_of_several_processes_share_the_batch_after_the_running_one(
    tmp_path: Path,
) -> None:
    with busy(tmp_path) as (rig, first):
        second = rig.peer()
        first.infer(2, 10)
        first.wait_until_heard()
        second.infer(2, 20)  # the same number as the other's is another job
        second.infer(3, 30)
        second.wait_until_heard()
        assert rig.value_of("saccade_queue_depth") == 3
        assert rig.value_of("saccade_queue_bytes") == 12
        rig.models.may_run.set()
        mine, others = first.answers(2), second.answers(2)
        assert [mine[1]["y"], mine[2]["y"], others[2]["y"], others[3]["y"]] == [1, 11, 21, 31]
        assert [mine[1]["batch_size"], mine[2]["batch_size"]] == [1, 3]
        assert rig.models.ran == [[0], [10, 20, 30]]
        first.wait_until_heard()
        assert rig.value_of("saccade_queue_depth") == 0
        assert rig.value_of("saccade_batch_size_sum", model="vit") == 4
        for stage in ("queue", "infer"):
            count = "saccade_stage_duration_seconds_count"
            assert rig.value_of(count, model="vit", stage=stage) == 4


def test_a_bad_picture_fails_alone_and_its_neighbours_are_answered(tmp_path: Path) -> None:
    with busy(tmp_path) as (rig, peer):
        for job_id, value in ((2, 10), (3, BAD), (4, 30)):
            peer.infer(job_id, value)
        peer.wait_until_heard()
        rig.models.may_run.set()
        found = peer.answers(4)
        assert [found[job_id]["type"] for job_id in (1, 2, 3, 4)] == [
            "result",
            "result",
            "error",
            "result",
        ]
        assert (found[2]["y"], found[2]["batch_size"]) == (11, 1)
        assert found[3]["kind"] == "RuntimeFailed"
        assert "a bad picture" not in found[3]["message"]
        assert rig.models.ran == [[0], [10, BAD, 30], [10], [BAD], [30]]
        assert rig.value_of("saccade_isolated_failures_total", model="vit") == 1


def test_the_loop_goes_on_after_a_failure(tmp_path: Path) -> None:
    with running(tmp_path) as rig:
        peer = rig.peer()
        for job_id in (1, 2, 3):
            peer.infer(job_id, BAD)
            assert peer.answers(1)[job_id]["kind"] == "RuntimeFailed"
        peer.infer(4, 1)
        assert peer.answers(1)[4]["y"] == 2
        assert rig.value_of("saccade_batch_size_count", model="vit") == 1


def test_every_caller_is_answered_even_if_results_are_missing(tmp_path: Path) -> None:
    with busy(tmp_path) as (rig, peer):
        rig.models.forgets = True
        peer.infer(2, 10)
        peer.infer(3, 20)
        peer.wait_until_heard()
        rig.models.may_run.set()
        assert {answer["kind"] for answer in peer.answers(3).values()} == {"RuntimeFailed"}


def test_late_pictures_are_answered_and_never_run(tmp_path: Path) -> None:
    with busy(tmp_path) as (rig, peer):
        peer.infer(2, 10, deadline_s=time.monotonic())
        peer.infer(3, 20)
        peer.wait_until_heard()
        rig.models.may_run.set()
        found = peer.answers(3)
        assert found[2]["kind"] == "DeadlineExceeded"
        assert found[3]["y"] == 21
        assert rig.models.ran == [[0], [20]]


def test_a_full_queue_refuses_at_once_and_says_when_to_come_back(tmp_path: Path) -> None:
    with busy(tmp_path, max_queue=1) as (rig, peer):
        peer.infer(2, 10)
        peer.infer(3, 20)
        refused = peer.answers(1)[3]
        assert refused["kind"] == "Overloaded"
        assert refused["facts"] == {"waiting": 1, "limit": 1}
        assert refused["retry_after_s"] == 1.0
        rig.models.may_run.set()
        assert {answer["type"] for answer in peer.answers(2).values()} == {"result"}


def test_a_cancelled_picture_never_runs_and_is_not_answered(tmp_path: Path) -> None:
    with busy(tmp_path) as (rig, peer):
        peer.infer(2, 10)
        peer.infer(3, 20)
        peer.send(type="cancel", id=2)
        peer.send(type="cancel", id=777)
        peer.send(type="cancel", id=1)  # it runs already
        peer.wait_until_heard()
        assert rig.value_of("saccade_cancellations_total", stage="queue") == 1
        assert rig.value_of("saccade_cancellations_total", stage="infer") == 1
        assert rig.value_of("saccade_queue_depth") == 1
        rig.models.may_run.set()
        assert peer.answers(1).keys() == {3}
        assert rig.models.ran == [[0], [20]]


def test_clients_share_a_batch_in_turn_whatever_process_they_came_by(tmp_path: Path) -> None:
    with busy(tmp_path) as (rig, peer):
        for job_id in range(2, 7):
            peer.infer(job_id, 10 * job_id, client="greedy")
        peer.wait_until_heard()
        other = rig.peer()
        other.infer(1, 5, client="modest")
        other.wait_until_heard()
        rig.models.may_run.set()
        peer.answers(6)
        assert other.answers(1)[1]["y"] == 6
        assert rig.models.ran == [[0], [20, 5, 30, 40], [50, 60]]


def test_a_picture_that_loses_its_place_to_another_client_is_told_so(tmp_path: Path) -> None:
    with busy(tmp_path, max_queue=3) as (rig, peer):
        for job_id in (2, 3, 4):
            peer.infer(job_id, 10 * job_id, client="greedy")
        peer.infer(5, 50, client="modest")
        told = peer.answers(1)[4]
        assert (told["kind"], told["facts"]) == ("Overloaded", {"waiting": 3, "limit": 3})
        assert told["retry_after_s"] == 1.0
        assert "3 of the 3 pictures in it are this client's" in told["message"]
        rig.models.may_run.set()
        assert peer.answers(4).keys() == {1, 2, 3, 5}


def test_a_picture_whose_client_left_during_a_batch_that_failed_is_not_run_again(
    tmp_path: Path,
) -> None:
    with busy(tmp_path) as (rig, peer):
        for job_id, value in ((2, BAD), (3, 30), (4, 40)):
            peer.infer(job_id, value)
        peer.wait_until_heard()
        held = threading.Event()
        run = rig.models.run

        def hold(group: Group, items: list[Arrays], *rest: Any) -> Ran:
            if len(items) == 3:
                held.set()
                assert rig.models.may_load.wait(PATIENCE_S)
            return run(group, items, *rest)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(rig.models, "run", hold)
            rig.models.may_load.clear()
            rig.models.may_run.set()
            assert held.wait(PATIENCE_S)
            assert peer.answers(1).keys() == {1}
            peer.send(type="cancel", id=3)
            peer.wait_until_heard()
            rig.models.may_load.set()
            assert peer.answers(2).keys() == {2, 4}
        assert rig.models.ran == [[0], [BAD, 30, 40], [BAD], [40]]


def test_a_picture_that_must_run_alone_does(tmp_path: Path) -> None:
    with busy(tmp_path) as (rig, peer):
        for job_id, alone in ((2, False), (3, True), (4, False)):
            peer.infer(job_id, job_id, alone=alone)
        peer.wait_until_heard()
        rig.models.may_run.set()
        peer.answers(4)
        assert rig.models.ran == [[0], [2], [3], [4]]


def test_pictures_that_ask_for_different_outputs_share_a_batch(tmp_path: Path) -> None:
    with busy(tmp_path) as (rig, peer):
        peer.infer(2, 20, outputs=["boxes", "scores"])
        peer.infer(3, 30, outputs=["masks"])
        peer.wait_until_heard()
        rig.models.may_run.set()
        found = peer.answers(3)
        assert rig.models.ran == [[0], [20, 30]]
        assert (found[2]["boxes"], found[2]["scores"]) == (21, 21)
        assert found[3]["masks"] == 31
        assert "y" not in found[2] | found[3]


def test_graphs_and_canvases_are_not_mixed(tmp_path: Path) -> None:
    with busy(tmp_path) as (rig, peer):
        peer.infer(2, 2)
        peer.infer(3, 3, graph="explain")
        peer.infer(4, 4, canvas="2x2")
        peer.infer(5, 5)
        peer.wait_until_heard()
        rig.models.may_run.set()
        peer.answers(5)
        assert rig.models.ran == [[0], [2, 5], [3], [4]]


def test_pictures_wait_for_a_graph_that_is_being_opened_and_nobody_else_does(
    tmp_path: Path,
) -> None:
    with running(tmp_path) as rig:
        rig.models.opens_late = True
        peer = rig.peer()
        for job_id in (1, 2):
            peer.infer(job_id, 10 * job_id, graph="explain")
        peer.infer(3, 30)
        assert peer.answers(1)[3]["y"] == 31
        peer.wait_until_running()  # so that it would not count as a batch that hangs
        rig.models.may_open.set()
        found = peer.answers(2)
        assert {job_id: one["y"] for job_id, one in found.items()} == {1: 11, 2: 21}
        assert len(rig.models.opened) == 1
        assert rig.models.ran[0] == [30]


def test_it_tells_its_phase_and_is_ready_only_after_loading(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.models.may_load.clear()
    rig.start()
    peer = rig.peer()
    peer.hello()
    seen = [peer.receive("status")[0]]
    while seen[-1]["phase"] != "warming up vit":
        seen.append(peer.receive("status")[0])
    assert {(status["ready"], len(status["models"])) for status in seen} == {(False, 0)}
    assert rig.value_of("saccade_model_ready", model="vit") is None
    rig.models.may_load.set()
    while not (last := peer.receive("status")[0])["ready"]:
        pass
    assert (last["phase"], last["models"]) == ("ready", {"vit": RUNNING})
    assert rig.value_of("saccade_model_ready", model="vit") == 1
    told = {"model": "vit", "version": "1", "runtime": "fake", "precision": "fp32"}
    assert rig.value_of("saccade_model_info", **told) == 1
    rig.close()


def test_pictures_that_came_before_it_was_ready_are_run_then(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.models.may_load.clear()
    rig.start()
    peer = rig.peer()
    peer.infer(1, 1)
    peer.wait_until_heard()
    assert rig.models.ran == []
    rig.models.may_load.set()
    assert peer.answers(1)[1]["y"] == 2
    rig.close()


def test_what_keeps_the_models_from_loading_ends_the_worker(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.models.failure = BadBundle("model.onnx is damaged")
    rig.start()
    rig.join()
    assert rig.ended == [rig.models.failure]
    rig.close()


def test_a_batch_thread_that_ends_takes_the_worker_with_it(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.start()
    rig.peer().infer(1, FATAL)
    rig.join()
    assert [type(error) for error in rig.ended] == [SystemExit]
    rig.close()


def test_the_state_is_told_again_and_again(tmp_path: Path) -> None:
    with running(tmp_path) as rig:
        peer = rig.peer()
        peer.hello()
        while not peer.receive("status")[0]["ready"]:
            pass
        assert peer.receive("status")[0]["ready"]


@pytest.mark.parametrize("count", [1, 9])
def test_batches_never_exceed_the_largest(tmp_path: Path, count: int) -> None:
    with busy(tmp_path, batch=4) as (rig, peer):
        for job_id in range(2, 2 + count):
            peer.infer(job_id, job_id)
        peer.wait_until_heard()
        rig.models.may_run.set()
        peer.answers(1 + count)
        assert [len(values) for values in rig.models.ran] == (
            [1, 1] if count == 1 else [1, 4, 4, 1]
        )


def test_streams_run_batches_at_once_and_the_next_one_gathers_meanwhile(tmp_path: Path) -> None:
    with running(tmp_path, streams=2) as rig:
        peer = rig.peer()
        rig.models.may_run.clear()
        peer.infer(1, 10)
        peer.wait_until_running(1)
        peer.infer(2, 20)
        peer.wait_until_running(1, 2)
        for job_id in (3, 4, 5):
            peer.infer(job_id, 10 * job_id)
        peer.wait_until_heard()
        assert rig.value_of("saccade_queue_depth") == 3
        rig.models.may_run.set()
        assert {job_id: found["y"] for job_id, found in peer.answers(5).items()} == {
            job_id: 10 * job_id + 1 for job_id in (1, 2, 3, 4, 5)
        }
        assert sorted(rig.models.ran) == [[10], [20], [30, 40, 50]]


def test_a_model_whose_streams_are_busy_does_not_hold_up_another(tmp_path: Path) -> None:
    with running(tmp_path, streams=2) as rig:
        peer = rig.peer()
        rig.models.may_run.clear()
        peer.infer(1, 1, graph="explain")  # has one stream
        peer.wait_until_running(1)
        for job_id in (2, 3):
            peer.infer(job_id, job_id, graph="explain")
        peer.infer(4, 4)
        peer.wait_until_running(1, 4)
        rig.models.may_run.set()
        peer.answers(4)
        assert sorted(rig.models.ran) == [[1], [2, 3], [4]]


def test_a_bad_picture_in_one_stream_hurts_nobody_in_another(tmp_path: Path) -> None:
    with running(tmp_path, streams=2) as rig:
        peer = rig.peer()
        for job_id in range(1, 101):
            peer.infer(job_id, BAD if job_id % 10 == 0 else 1000 + job_id)
        found = peer.answers(100)
        assert {job_id for job_id, answer in found.items() if answer["type"] == "error"} == {
            *range(10, 101, 10)
        }
        assert all(found[job_id]["y"] == 1001 + job_id for job_id in range(1, 100, 10))
        assert rig.value_of("saccade_isolated_failures_total", model="vit") == 10


def test_a_thread_that_ends_takes_the_others_with_it(tmp_path: Path) -> None:
    rig = Rig(tmp_path, streams=3)
    rig.start()
    rig.peer().infer(1, FATAL)
    rig.join()
    assert [type(error) for error in rig.ended] == [SystemExit]
    rig.close()


def test_a_change_is_told_to_everyone_before_it_is_answered(tmp_path: Path) -> None:
    with running(tmp_path) as rig:
        peer, other = rig.peer(), rig.peer()
        for one in (peer, other):
            one.hello()
            while not one.receive("status")[0]["ready"]:
                pass
        peer.send(type="load", id=7, model="vit", version="2")
        told = [peer.receive("status", "done")[0]]
        while told[-1]["type"] != "done":
            told.append(peer.receive("status", "done")[0])
        assert told[-1] == {"type": "done", "id": 7}
        assert told[-2]["models"]["vit"]["version"] == "2"
        while other.receive("status")[0]["models"]["vit"]["version"] != "2":
            pass
        info = {"model": "vit", "runtime": "fake", "precision": "fp32"}
        assert rig.value_of("saccade_model_info", version="1", **info) == 0
        assert rig.value_of("saccade_model_info", version="2", **info) == 1


def test_a_change_that_is_refused_is_answered_with_its_error(tmp_path: Path) -> None:
    with running(tmp_path) as rig:
        peer = rig.peer()
        rig.models.refuses = CannotLoad("model.onnx is damaged")
        peer.send(type="load", id=7, model="vit", version="2")
        answer, _ = peer.receive("done", "error")
        assert (answer["id"], answer["kind"]) == (7, "CannotLoad")
        assert answer["message"] == "model.onnx is damaged"
        peer.infer(8, 1)
        assert peer.answers(1)[8]["y"] == 2


def test_batches_run_while_a_model_is_being_loaded(tmp_path: Path) -> None:
    with running(tmp_path) as rig:
        peer, may_change = rig.peer(), threading.Event()

        def wait(name: str, version: str | None, report: Callable[[str], None]) -> None:
            assert may_change.wait(PATIENCE_S)

        rig.models.change = wait  # type: ignore[method-assign]
        peer.send(type="load", id=7, model="vit", version="2")
        for job_id in (8, 9):
            peer.infer(job_id, job_id)
            assert peer.receive("result", "done")[0]["id"] == job_id
        may_change.set()
        assert peer.receive("done")[0]["id"] == 7


def test_models_that_cannot_be_loaded_are_told_and_the_worker_is_not_ready_without_any(
    tmp_path: Path,
) -> None:
    rig = Rig(tmp_path)
    rig.models.failed, rig.models.able = {"vit": "weights.bin is missing"}, False
    rig.start()
    peer = rig.peer()
    peer.hello()
    while "no model" not in (status := peer.receive("status")[0])["phase"]:
        pass
    assert (status["ready"], status["failed"]) == (False, ["vit"])
    assert "weights.bin" not in status["phase"], "paths are for the log"
    rig.close()


def test_an_error_that_time_will_mend_is_told_as_it_is(tmp_path: Path) -> None:
    with running(tmp_path) as rig:
        peer = rig.peer()

        def refuse(*_: Any) -> Ran:
            raise NotReady("the explain graph cannot be opened", retry_after_s=7.0)

        rig.models.run, run = refuse, rig.models.run  # type: ignore[method-assign,assignment]
        peer.infer(1, 1)
        answer = peer.answers(1)[1]
        assert (answer["kind"], answer["retry_after_s"]) == ("NotReady", 7.0)
        assert rig.value_of("saccade_isolated_failures_total", model="vit") in (None, 0)
        rig.models.run = run  # type: ignore[method-assign]


def test_a_batch_that_runs_out_of_memory_is_halved_and_the_next_ones_are_smaller(
    tmp_path: Path,
) -> None:
    with busy(tmp_path, batch=8) as (rig, peer):
        rig.models.most = 2
        for job_id in range(2, 18):
            peer.infer(job_id, 100 + job_id)
        peer.wait_until_heard()
        rig.models.may_run.set()
        found = peer.answers(17)
        assert {found[job_id]["y"] - job_id for job_id in range(2, 18)} == {101}
        assert [len(values) for values in rig.models.ran] == [1, 8, 4, 2, 2, 4, 2, 2, 2, 2, 2, 2]
        assert rig.value_of("saccade_halved_batches_total", model="vit") == 3
        assert rig.value_of("saccade_isolated_failures_total", model="vit") is None


def test_a_picture_that_does_not_fit_into_memory_alone_is_told_to_come_back(tmp_path: Path) -> None:
    with running(tmp_path) as rig:
        peer = rig.peer()
        rig.models.most = 0
        peer.infer(1, 1)
        refused = peer.answers(1)[1]
        assert (refused["kind"], refused["retry_after_s"]) == ("OutOfMemory", 1.0)
        rig.models.most = 1


def test_an_idle_worker_runs_a_probe_from_time_to_time_and_tells_when_it_passed(
    tmp_path: Path,
) -> None:
    with running(tmp_path, probe_every_s=0.1) as rig:
        peer = rig.peer()
        peer.hello()
        while (first_s := peer.receive("status")[0]["passed_s"]) is None:
            pass
        while peer.receive("status")[0]["passed_s"] == first_s:
            pass
        assert rig.models.probes >= 2
        assert rig.models.ran == []
        assert first_s <= time.monotonic()


def test_a_busy_worker_runs_no_probes(tmp_path: Path) -> None:
    with running(tmp_path, probe_every_s=60.0) as rig:
        peer = rig.peer()
        for job_id in range(1, 20):
            peer.infer(job_id, job_id)
        peer.answers(19)
        assert rig.models.probes == 0
        peer.hello()
        assert peer.receive("status")[0]["passed_s"] <= time.monotonic()


def test_a_device_that_cannot_even_run_probes_ends_the_worker(tmp_path: Path) -> None:
    rig = Rig(tmp_path, Settings(probe_every_s=0.1))
    rig.models.cannot_probe = True
    rig.start()
    rig.join()
    assert rig.models.probes == 3
    assert [str(error) for error in rig.ended] == ["the device fell off the bus"]
    rig.close()


def test_a_lost_device_ends_the_worker_and_leaves_what_ran_to_its_successor(
    tmp_path: Path,
) -> None:
    with busy(tmp_path) as (rig, peer):
        rig.models.lost_on = 5
        for job_id, value in ((2, 5), (3, 6), (4, 7)):
            peer.infer(job_id, value)
        peer.wait_until_heard()
        rig.models.may_run.set()
        assert set(peer.answers(1)) == {1}
        rig.join()
        assert "illegal memory access" in str(rig.ended[0])
        assert rig.models.ran == [[0], [5, 6, 7]], "none of them was run again here"
        peer.wait_until_running(2, 3, 4)
        assert rig.value_of("saccade_devices_lost_total") == 1


def test_a_probe_that_finds_the_device_lost_ends_the_worker_at_once(tmp_path: Path) -> None:
    with running(tmp_path, probe_every_s=0.1) as rig:
        rig.models.lost_probe = True
        rig.join()
        assert rig.models.probes == 1
        assert "unspecified launch failure" in str(rig.ended[0])


def test_what_the_worker_of_another_device_was_told_to_serve_is_told_to_everyone(
    tmp_path: Path,
) -> None:
    with running(tmp_path) as rig:
        peer = rig.peer()
        rig.models.followed = "2"
        header, _ = peer.receive("status")
        while header["models"].get("vit", {}).get("version") != "2":
            header, _ = peer.receive("status")
        assert header["ready"]


def test_nothing_runs_beside_a_suspect_in_another_stream(tmp_path: Path) -> None:
    with running(tmp_path, streams=2) as rig:
        peer = rig.peer()
        rig.models.may_run.clear()
        peer.infer(1, 1)
        peer.wait_until_running(1)
        peer.infer(2, 2, alone=True)
        peer.infer(3, 3)
        peer.wait_until_heard()
        rig.models.may_run.set()
        peer.answers(3)
        assert rig.models.beside == {1: 0, 2: 0, 3: 0}


def test_what_a_dead_process_waited_for_is_dropped(tmp_path: Path) -> None:
    with busy(tmp_path) as (rig, staying):
        leaving = rig.peer()
        leaving.wait_until_heard()
        for job_id in (2, 3, 4):
            leaving.infer(job_id, 10 * job_id)
        staying.infer(2, 2)
        leaving.wait_until_heard()
        staying.wait_until_heard()
        assert rig.value_of("saccade_queue_depth") == 4
        leaving.close()
        while rig.value_of("saccade_queue_depth") != 1:
            staying.wait_until_heard()  # and once a second the dead are told their state too
        rig.models.may_run.set()
        staying.answers(2)
        assert rig.models.ran == [[0], [2]]
        assert rig.value_of("saccade_cancellations_total", stage="queue") == 3


def test_a_clock_that_jumps_hurts_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    day_s, real = 86400.0, time.time
    jumps = itertools.cycle((0.0, 400 * day_s, -day_s, 20 * 365 * day_s))
    monkeypatch.setattr(time, "time", lambda: real() + next(jumps))
    with running(tmp_path, probe_every_s=0.1) as rig:
        peer = rig.peer()
        for job_id in range(1, 41):
            peer.infer(job_id, job_id + 1000)
        found = peer.answers(40)
        assert {answer["type"] for answer in found.values()} == {"result"}
        peer.infer(99, 1, deadline_s=time.monotonic() - 0.1)
        assert peer.answers(1)[99]["kind"] == "DeadlineExceeded"
        peer.hello()
        passed_s = peer.receive("status")[0]["passed_s"]
        assert abs(time.monotonic() - passed_s) < PATIENCE_S
