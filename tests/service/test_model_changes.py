"""Models of a worker that are replaced, unloaded and remembered, without processes."""

import asyncio
import json
import shutil
import threading
import time
import weakref
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from service.api.serving import Serving
from service.bundle import Bundle, GraphKind, find_bundle, load_bundle
from service.errors import BadBundle, BadSettings, CannotLoad, NotReady, ServiceError, UnknownModel
from service.settings import Settings
from service.worker import models
from service.worker.link import WorkerLink, WorkerState
from service.worker.loader import Loader
from service.worker.models import Models
from service.worker.runtimes.base import Arrays, example_inputs
from service.worker.runtimes.choose import Choice
from service.worker.scheduler import Group
from service.worker.served import read_served, served_file, write_served
from tests.service.fake_app import RUNNING, FakeApp, picture
from tests.service.sample_bundle import manifest_of, write_bundle
from tests.service.test_models import FakeRuntime

PATIENCE_S = 30.0


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class Shelf:
    """A repository, the models of a worker of it, and a clock; ``opened`` are the runtimes."""

    def __init__(self, folder: Path, opened: list[FakeRuntime]) -> None:
        self.repository, self.file, self.clock = folder / "models", folder / "served.json", Clock()
        self.opened = opened
        self.add("1")

    def add(self, version: str, name: str = "tiny", **changes: Any) -> Path:
        return write_bundle(self.repository, manifest_of(name, version, **changes))

    def models(self) -> Models:
        """As the first worker, or a successor if there was one, would have them."""
        settings = Settings(repository=self.repository, timeout_s=30, cache="off")
        found = Models(settings, served=self.file, clock=self.clock)
        found.load(lambda phase: None)
        return found

    def remembered(self) -> dict[str, str]:
        bundles = read_served(self.file) or []
        return {bundle.manifest.name: bundle.manifest.version for bundle in bundles}


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shelf:
    opened: list[FakeRuntime] = []

    def open_runtime(bundle: Bundle, kind: GraphKind, *_: Any) -> FakeRuntime:
        opened.append(FakeRuntime(kind, threads=1, streams=1))
        return opened[-1]

    monkeypatch.setattr(models, "open_runtime", open_runtime)
    monkeypatch.setattr(models, "candidates", lambda *_: [Choice("openvino", "fp32")])
    return Shelf(tmp_path, opened)


def quiet(phase: str) -> None:
    """Nobody listens."""


def versions(found: Models) -> dict[str, str]:
    return {name: model["version"] for name, model in found.describe().items()}


def runs(found: Models, version: str = "", graph: GraphKind = "serve") -> bool:
    """Whether a picture prepared for this version can be run."""
    item: Arrays = {n: x[0] for n, x in example_inputs(FakeRuntime("serve", 1, 1), 1).items()}
    try:
        found.run(Group("tiny", graph, "8x8", version), [item], [None])
    except NotReady:
        return False
    return True


def test_the_replaced_version_can_run_until_no_request_can_be_under_way(shelf: Shelf) -> None:
    found = shelf.models()
    first = weakref.ref(shelf.opened.pop())
    shelf.add("2")
    found.change("tiny", None, quiet)
    assert versions(found) == shelf.remembered() == {"tiny": "2"}
    shelf.clock.now_s = 29.9
    found.drop_replaced()
    assert runs(found, "1")
    shelf.clock.now_s = 30.0
    found.drop_replaced()
    assert not runs(found, "1")
    assert runs(found, "2")
    assert runs(found)
    assert first() is None, "its memory is free"


def test_the_way_back_to_a_version_that_still_runs_opens_nothing(shelf: Shelf) -> None:
    found = shelf.models()
    shelf.add("2")
    found.change("tiny", "2", quiet)
    found.change("tiny", "1", quiet)
    assert len(shelf.opened) == 2
    shelf.clock.now_s = 31.0
    found.drop_replaced()
    assert (runs(found, "1"), runs(found, "2")) == (True, False)
    assert versions(found) == shelf.remembered() == {"tiny": "1"}


def test_the_new_version_counts_only_when_it_is_warm(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = shelf.models()
    shelf.add("2")
    seen: list[tuple[dict[str, str], dict[str, str]]] = []
    found.change("tiny", "2", lambda phase: seen.append((versions(found), shelf.remembered())))
    assert seen == [({"tiny": "1"}, {"tiny": "1"})] * 3

    def fail(self: FakeRuntime, inputs: Arrays) -> Arrays:
        raise MemoryError("no room for activations")

    shelf.add("3")
    monkeypatch.setattr(FakeRuntime, "run", fail)
    with pytest.raises(CannotLoad, match="what was served goes on: the log says why"):
        found.change("tiny", "3", quiet)
    assert versions(found) == shelf.remembered() == {"tiny": "2"}


def test_what_cannot_be_remembered_is_not_served(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = shelf.models()
    shelf.add("2")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(models, "write_served", full)
    with pytest.raises(CannotLoad, match="No space left on device"):
        found.change("tiny", "2", quiet)
    assert versions(found) == {"tiny": "1"}


@pytest.mark.parametrize(
    ("name", "version", "says"),
    [
        ("nobody", None, "no model 'nobody'; it has tiny"),
        ("tiny", "7", "no version '7' of 'tiny'; it has 1"),
        ("../models/tiny", None, "no model"),
        ("tiny", "../tiny/1", "no version"),
        ("tiny", "", "no version ''"),
    ],
)
def test_only_names_that_lie_there_are_found(
    shelf: Shelf, name: str, version: str | None, says: str
) -> None:
    with pytest.raises(UnknownModel, match=says):
        find_bundle(shelf.repository, name, version)


def test_the_newest_version_is_found_without_one(shelf: Shelf) -> None:
    for version in ("9", "10"):
        shelf.add(version)
    assert find_bundle(shelf.repository, "tiny").manifest.version == "10"
    assert find_bundle(shelf.repository, "tiny", "9").manifest.version == "9"


def test_a_version_does_not_change_while_it_is_loaded(shelf: Shelf) -> None:
    found = shelf.models()
    found.change("tiny", None, quiet)  # the same again is no change
    assert len(shelf.opened) == 1
    manifest = manifest_of("tiny", "1", parameters=11)
    (shelf.repository / "tiny" / "1" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CannotLoad, match="give the new one a version of its own"):
        found.change("tiny", "1", quiet)
    found.unload("tiny")
    shelf.clock.now_s = 30.0
    found.drop_replaced()
    found.change("tiny", "1", quiet)
    assert len(shelf.opened) == 2


def test_an_unloaded_model_is_forgotten_by_the_successor_too(shelf: Shelf) -> None:
    shelf.add("1", "other")
    found = shelf.models()
    found.unload("tiny")
    assert versions(found) == versions(shelf.models()) == {"other": "1"}
    with pytest.raises(UnknownModel, match="no model 'tiny'; served are other"):
        found.unload("tiny")
    found.unload("other")
    assert found.able, "nothing is what should be served"
    assert shelf.models().able


def test_a_successor_serves_the_versions_that_were_served_and_what_it_can(shelf: Shelf) -> None:
    shelf.add("1", "other")
    shelf.models()
    shelf.add("2")
    (shelf.repository / "other" / "1" / "model.onnx").unlink()
    successor = shelf.models()
    assert versions(successor) == {"tiny": "1"}
    assert "model.onnx is missing" in successor.failed["other"]
    assert successor.able
    assert not successor.retry(quiet)
    shutil.copy(shelf.repository / "tiny" / "1" / "model.onnx", shelf.repository / "other" / "1")
    assert successor.retry(quiet)
    assert (versions(successor), successor.failed) == ({"tiny": "1", "other": "1"}, {})


def test_a_first_worker_serves_all_or_nothing(shelf: Shelf) -> None:
    (shelf.add("1", "other") / "model.onnx").unlink()
    with pytest.raises(BadBundle, match=r"model.onnx is missing"):
        shelf.models()
    assert read_served(shelf.file) is None


def test_a_successor_that_can_load_nothing_is_not_able(shelf: Shelf) -> None:
    shelf.models()
    shutil.rmtree(shelf.repository)
    successor = shelf.models()
    assert not successor.able
    assert list(successor.failed) == ["tiny"]


def test_a_failed_model_is_mended_by_another_version(shelf: Shelf) -> None:
    shelf.models()
    (shelf.repository / "tiny" / "1" / "model.onnx").unlink()
    successor = shelf.models()
    shelf.add("2")
    successor.change("tiny", None, quiet)
    assert (versions(successor), successor.failed) == ({"tiny": "2"}, {})


def test_a_graph_opened_late_is_proven_first_and_not_tried_at_every_picture(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = shelf.models()
    file = shelf.repository / "tiny" / "1" / "explain.onnx"
    whole = file.read_bytes()
    file.write_bytes(b"the explain graph, changed")
    assert not runs(found, graph="explain")
    file.write_bytes(whole)
    assert not runs(found, graph="explain"), "not looked at again so soon"
    assert runs(found), "the serving graph was open"
    shelf.clock.now_s = models.SHUT_S
    assert runs(found, graph="explain")
    assert [runtime.kind for runtime in shelf.opened] == ["serve", "explain"]


def test_a_graph_has_no_streams_while_it_is_opened_and_is_opened_once(shelf: Shelf) -> None:
    found, group = shelf.models(), Group("tiny", "explain", "8x8", "1")
    assert not found.begin_opening(Group("tiny", "serve", "8x8", "1"))
    assert not found.begin_opening(Group("other", "explain", "8x8", "1"))
    assert [found.begin_opening(group) for _ in range(2)] == [True, False]
    assert found.streams(group) == 0
    found.open(group)
    assert found.streams(group) == 1
    assert not found.begin_opening(group)
    assert runs(found, "1", "explain")
    assert [runtime.kind for runtime in shelf.opened] == ["serve", "explain"]


def test_a_graph_that_cannot_be_opened_is_said_to_be_what_it_is(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> FakeRuntime:
        raise RuntimeError("no memory")

    found, group = shelf.models(), Group("tiny", "explain", "8x8", "1")
    monkeypatch.setattr(models, "open_runtime", fails)
    assert found.begin_opening(group)
    found.open(group)
    assert found.streams(group) == 1, "what waits is to be told"
    assert not found.begin_opening(group), "not tried again so soon"
    with pytest.raises(NotReady, match="the log of the server says why") as refused:
        found.run(group, [{"images": np.zeros((8, 8, 3), np.uint8)}], [None])
    assert refused.value.retry_after_s == models.SHUT_S


def test_what_is_served_is_kept_beside_the_socket_in_one_piece(tmp_path: Path) -> None:
    file = served_file(f"ipc://{tmp_path}/worker.sock")
    assert file.parent == tmp_path
    assert read_served(file) is None
    bundles = [load_bundle(write_bundle(tmp_path / "models", manifest_of(n))) for n in ("a", "b")]
    for written in (bundles, []):
        write_served(file, written)
        assert read_served(file) == written
    assert [path.name for path in tmp_path.glob("*.*")] == ["served.json"]


class Orders:
    """A loader in its thread, and what it answered and announced."""

    def __init__(self, found: Models) -> None:
        self.answers: list[tuple[bytes, int, ServiceError | None]] = []
        self.announced: list[dict[str, str]] = []
        self._models = found
        self.loader = Loader(found, self._answer, self._changed, lambda: None)
        self._thread = threading.Thread(target=self.loader.run_forever)

    def carry_out(self, *headers: dict[str, Any]) -> None:
        for number, header in enumerate(headers):
            self.loader.ask(b"me", {"id": number} | header)
        self.loader.close()
        self._thread.start()
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()

    def _answer(self, peer: bytes, number: int, error: ServiceError | None) -> None:
        self.answers.append((peer, number, error))

    def _changed(self) -> None:
        self.announced.append(versions(self._models))


def test_orders_are_carried_out_in_turn_and_each_is_answered(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = shelf.models()
    shelf.add("2")
    orders = Orders(found)
    monkeypatch.setattr(found, "unload", lambda name: 1 / 0)
    orders.carry_out(
        {"type": "load", "model": "tiny", "version": None},
        {"type": "load", "model": "nobody", "version": None},
        {"type": "unload", "model": "tiny", "version": None},
        {"type": "load", "model": "tiny", "version": "1"},
    )
    assert [(peer, number) for peer, number, _ in orders.answers] == [(b"me", n) for n in range(4)]
    codes = [None if error is None else error.code for _, _, error in orders.answers]
    assert codes == [None, "unknown_model", "runtime_failed", None]
    assert orders.announced == [{"tiny": "2"}, {"tiny": "1"}]


def test_without_a_name_a_model_that_could_be_loaded_is_asked() -> None:
    fake = FakeApp([manifest_of("a-first"), manifest_of("tiny")])
    fake.link.state = WorkerState(True, "ready", RUNNING, failed=["a-first"])
    with fake.client() as client:
        assert client.post("/v1/classify", content=picture(red=255)).json()["model"] == "tiny"
        refused = client.post("/v1/classify?model=a-first", content=picture())
        assert (refused.status_code, refused.json()["code"]) == (503, "not_ready")
        assert refused.headers["retry-after"] == "1"
        ready = {m["name"]: m["ready"] for m in client.get("/v1/models").json()["models"]}
        assert ready == {"a-first": False, "tiny": True}


def test_http_processes_learn_from_the_worker_what_is_served(tmp_path: Path) -> None:
    async def scenario() -> None:
        fake, file = FakeApp(), tmp_path / "served.json"
        link = cast(WorkerLink, fake.link)
        serving = Serving(fake.settings, fake.bundles, link, fake.metrics, file)
        served = [manifest_of("new"), manifest_of("tiny", "2")]
        write_served(file, [load_bundle(write_bundle(tmp_path, one)) for one in served])
        running = {"new": {"version": "1"}, "tiny": {"version": "2"}}
        serving.hear(WorkerState(False, "warming up", running))
        await asyncio.sleep(0)
        assert serving.named("tiny").version == "1", "not before it is ready"
        serving.hear(WorkerState(True, "ready", running))
        learning = asyncio.all_tasks() - {asyncio.current_task()}
        await asyncio.wait_for(asyncio.gather(*learning), PATIENCE_S)
        assert serving.named("tiny").version == "2"
        serving.hear(WorkerState(True, "ready", running))
        told = fake.metrics.registry.get_sample_value
        assert told("saccade_model_ready", {"model": "new"}) == 1
        assert (
            told("saccade_requests_total", {"model": "new", "task": "embed", "status": "200"}) == 0
        )
        serving.close()

    asyncio.run(scenario())


def test_a_picture_is_run_by_the_version_that_it_was_prepared_for() -> None:
    fake = FakeApp([manifest_of("tiny", "7")])
    with fake.client() as client:
        client.post("/v1/classify", content=picture())
    assert [group for group, *_ in fake.link.asked] == [Group("tiny", "serve", "8x8", "7")]


def test_the_workers_of_other_devices_serve_what_one_was_told_to(shelf: Shelf) -> None:
    one, other = shelf.models(), shelf.models()
    assert not other.follow(quiet), "nothing has changed"
    shelf.add("2")
    one.change("tiny", None, quiet)
    assert other.follow(quiet)
    assert versions(other) == {"tiny": "2"}
    assert runs(other, "1"), "until no request can be under way"
    assert not other.follow(quiet)
    shelf.clock.now_s = 30.0
    other.drop_replaced()
    assert not runs(other, "1")
    one.unload("tiny")
    assert other.follow(quiet)
    assert versions(other) == {}
    assert not one.follow(quiet), "it said so itself"


def test_what_cannot_be_loaded_is_tried_again_ever_more_rarely(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, clock, tried = shelf.models(), Clock(), []
    monkeypatch.setattr(time, "monotonic", clock)
    found.failed = {"tiny": "damaged"}
    monkeypatch.setattr(found, "retry", lambda report: tried.append(clock.now_s))
    trying = Loader(found, lambda *_: None, lambda: None, lambda: None)
    for clock.now_s in range(300):
        trying._tick()
    assert tried == [10, 30, 70, 130, 190, 250]
    found.failed = {}
    trying._tick()
    found.failed = {"tiny": "damaged"}
    for clock.now_s in range(300, 320):
        trying._tick()
    assert tried[6:] == [309]


def test_a_model_that_nothing_here_may_run_is_not_read_to_find_that_out(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: Any) -> list[Choice]:
        raise BadSettings("nothing runs it")

    monkeypatch.setattr(models, "candidates", none)
    (shelf.repository / "tiny" / "1" / "model.onnx").unlink()
    with pytest.raises(BadSettings, match="nothing runs it"):
        shelf.models()


def test_what_another_device_cannot_load_is_told_and_tried_again(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = shelf.models(), shelf.models()
    folder = shelf.add("2")
    one.change("tiny", None, quiet)
    graph = (folder / "model.onnx").read_bytes()
    (folder / "model.onnx").write_bytes(b"cut off")
    assert other.follow(quiet)
    assert versions(other) == {}
    assert "model.onnx" in other.failed["tiny"]
    (folder / "model.onnx").write_bytes(graph)
    assert other.retry(quiet)
    assert versions(other) == {"tiny": "2"}
    assert other.failed == {}
