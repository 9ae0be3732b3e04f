"""Models of a worker: warmed before they count, batches put together and taken apart."""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.bundle import Bundle, GraphKind, load_bundle
from service.errors import BadBundle, BadSettings, RuntimeFailed
from service.geometry import Size
from service.settings import Settings
from service.tuning import LIGHT_MACS, this_machine
from service.worker import models
from service.worker.models import Models
from service.worker.runtimes import choose
from service.worker.runtimes.base import Arrays, Signature
from service.worker.runtimes.buckets import LANES
from service.worker.runtimes.choose import Choice
from service.worker.scheduler import Group
from tests.service.sample_bundle import manifest_of, write_bundle
from tests.service.test_tensorrt import FakeCuda, running

SERVE, EXPLAIN = Group("tiny", "serve", "8x8"), Group("tiny", "explain", "8x8")


class FakeRuntime:
    """Means of pictures as scores; remembers the size of every batch."""

    name, precision, device = "fake", "bf16", "cpu"
    inputs: dict[str, Signature]
    outputs: dict[str, Signature]

    def __init__(self, kind: GraphKind, threads: int, streams: int) -> None:
        self.kind, self.threads, self.streams = kind, threads, streams
        self.precision = "fp32" if kind == "explain" else "bf16"
        self.inputs = {"images": ("uint8", (None, 8, 8, 3))}
        self.outputs = {"scores": ("float32", (None, 1))}
        self.batches: list[int] = []
        self.wanted: list[Collection[str] | None] = []
        self.answer: Arrays | None = None

    def run(self, inputs: Arrays, wanted: Collection[str] | None = None) -> Arrays:
        images = inputs["images"]
        self.batches.append(len(images))
        self.wanted.append(wanted)
        scores = images.reshape(len(images), -1).mean(axis=1, keepdims=True)
        return self.answer or {"scores": scores.astype(np.float32)}


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[FakeRuntime]:
    """Every runtime that was opened; no library is."""
    found: list[FakeRuntime] = []

    def open_runtime(
        bundle: Bundle,
        kind: GraphKind,
        canvas: Size,
        choice: Choice,
        threads: int,
        cache: object,
        streams: int = 1,
        *of_engines: object,
    ) -> FakeRuntime:
        assert (str(canvas), choice) == ("8x8", Choice("openvino", "bf16"))
        found.append(FakeRuntime(kind, threads, streams))
        return found[-1]

    def candidates(bundle: Bundle, *wishes: str) -> list[Choice]:
        assert wishes == ("cpu", "bf16", "auto", "refuse")
        return [Choice("openvino", "bf16"), Choice("onnxruntime", "fp32")]

    monkeypatch.setattr(models, "open_runtime", open_runtime)
    monkeypatch.setattr(models, "candidates", candidates)
    return found


def loaded(folder: Path) -> tuple[Models, list[str]]:
    write_bundle(folder, manifest_of())
    settings = Settings(repository=folder, max_batch=4, threads=3, device="cpu", precision="bf16")
    phases: list[str] = []
    found = Models(settings)
    assert found.describe() == {}
    found.load(phases.append)
    return found, phases


def item(value: int) -> Arrays:
    return {"images": np.full((8, 8, 3), value, np.uint8)}


def test_loading_warms_the_serving_graph_at_one_and_at_the_best_batch(
    tmp_path: Path, opened: list[FakeRuntime]
) -> None:
    found, phases = loaded(tmp_path)
    assert [(runtime.kind, runtime.batches) for runtime in opened] == [("serve", [1, 4])]
    assert phases == [
        "verifying tiny",
        "compiling tiny 8x8 for openvino bf16",
        "warming up tiny 8x8",
    ]
    running: dict[str, Any] = {
        "version": "1",
        "runtime": "openvino",
        "precision": "bf16",
        "device": "cpu",
    }
    running |= {"streams": 1, "threads": 3, "batch": {"8x8": 4}, "tuned": False}
    running |= {"explain": "openvino fp32 on cpu"}
    assert found.describe() == {"tiny": running}


def test_a_damaged_bundle_is_refused_before_anything_is_opened(
    tmp_path: Path, opened: list[FakeRuntime]
) -> None:
    folder = write_bundle(tmp_path, manifest_of())
    (folder / "model.onnx").write_bytes(b"something else  .")
    settings = Settings(repository=tmp_path, device="cpu", precision="bf16")
    with pytest.raises(BadBundle, match="sha256"):
        Models(settings).load(lambda phase: None)
    assert opened == []


def test_a_model_of_which_no_picture_may_wait_is_refused_before_anything_is_opened(
    tmp_path: Path, opened: list[FakeRuntime]
) -> None:
    write_bundle(tmp_path, manifest_of())
    settings = Settings(repository=tmp_path, max_model_queue_bytes=199)
    with pytest.raises(BadSettings, match="has 200 bytes, and --max-model-queue-bytes lets 199"):
        Models(settings).load(lambda phase: None)
    assert opened == []


def test_a_batch_gives_every_picture_its_own_row(tmp_path: Path, opened: list[FakeRuntime]) -> None:
    found, _ = loaded(tmp_path)
    ran = found.run(SERVE, [item(3), item(1), item(2)], [None] * 3)
    assert [output["scores"].tolist() for output in ran.outputs] == [[3], [1], [2]]
    assert ran.precision == "bf16"
    assert opened[0].batches == [1, 4, 3]


def test_the_explain_graph_is_opened_when_first_asked_for_and_kept(
    tmp_path: Path, opened: list[FakeRuntime]
) -> None:
    found, _ = loaded(tmp_path)
    for _ in range(2):
        assert found.run(EXPLAIN, [item(1)], [None]).precision == "fp32"
    assert [runtime.kind for runtime in opened] == ["serve", "explain"]


@pytest.mark.parametrize(
    ("scores", "says"),
    [
        (np.zeros((1, 1), np.float32), "1 rows of 'scores' for 2 images"),
        (np.zeros((3, 1), np.float32), "3 rows"),
        (np.array([[0.5], [np.nan]], np.float32), "not finite"),
        (np.array([[0.5], [np.inf]], np.float32), "not finite"),
    ],
)
def test_an_output_that_cannot_be_right_fails_the_batch(
    tmp_path: Path, opened: list[FakeRuntime], scores: np.ndarray, says: str
) -> None:
    found, _ = loaded(tmp_path)
    opened[0].answer = {"scores": scores}
    with pytest.raises(RuntimeFailed, match=says):
        found.run(SERVE, [item(1), item(2)], [None, None])


def test_every_picture_gets_the_outputs_that_it_names_and_others_are_not_looked_at(
    tmp_path: Path, opened: list[FakeRuntime]
) -> None:
    found, _ = loaded(tmp_path)
    rows = np.array([[1], [2], [3]], np.float32)
    opened[0].answer = {"scores": rows, "masks": rows + 10, "logits": np.full((3, 1), np.nan)}
    ran = found.run(SERVE, [item(0)] * 3, [("scores",), ("masks", "scores"), ()])
    assert [{name: value.item() for name, value in one.items()} for one in ran.outputs] == [
        {"scores": 1},
        {"masks": 12, "scores": 2},
        {},
    ]
    assert opened[0].wanted[-1] == {"masks", "scores"}
    with pytest.raises(RuntimeFailed, match="'logits' with values that are not finite"):
        found.run(SERVE, [item(0)] * 3, [("scores",), None, ()])
    assert opened[0].wanted[-1] is None


def test_pictures_of_different_shapes_fail_the_batch_and_not_the_worker(
    tmp_path: Path, opened: list[FakeRuntime]
) -> None:
    found, _ = loaded(tmp_path)
    with pytest.raises(ValueError, match="same shape"):
        found.run(SERVE, [item(1), {"images": np.zeros((4, 4, 3), np.uint8)}], [None] * 2)
    assert found.run(SERVE, [item(5)], [None]).outputs[0]["scores"].tolist() == [5]


def tuned_here(bundle: Bundle, **changes: Any) -> str:
    """A tuning file as this machine would have written it: 2 streams, batch 3."""
    point = {"batch": 3, "seconds": 1, "images_per_s": 3, "cpu_s": 0.1}
    fields = {"streams": 2, "threads": 2, "latency_s": 1}
    entry = fields | {
        "model": bundle.manifest.name,
        "version": bundle.manifest.version,
        "sha256": bundle.manifest.files["model.onnx"].sha256,
        "runtime": "openvino",
        "precision": "bf16",
        "canvas": {"height": 8, "width": 8},
        "batch": 3,
        "images_per_s": 3,
        "batch_latency_s": 1,
        "grid": [fields | {"points": [point]}],
    }
    machine = this_machine().model_dump()
    profile = {"machine": machine, "measured": "today", "entries": [entry | changes]}
    return json.dumps({"schema_version": 1, "profiles": [profile]})


def test_a_tuned_model_has_its_streams_and_its_batch_within_the_limit(
    tmp_path: Path, opened: list[FakeRuntime], caplog: pytest.LogCaptureFixture
) -> None:
    bundle = load_bundle(write_bundle(tmp_path, manifest_of()))
    (tmp_path / "tuning.json").write_text(tuned_here(bundle))
    for limit, batch in ((32, 3), (2, 2)):
        settings = Settings(repository=tmp_path, device="cpu", precision="bf16", max_batch=limit)
        found = Models(settings)
        with caplog.at_level("INFO"):
            found.load(lambda phase: None)
        assert (opened[-1].streams, opened[-1].threads) == (2, 2)
        assert sorted(opened[-1].batches) == [1, 1, batch, batch], "warm in both streams"
        assert (found.best_batch(SERVE), found.streams(SERVE), found.most_streams()) == (
            batch,
            2,
            2,
        )
        assert (found.best_batch(EXPLAIN), found.streams(EXPLAIN)) == (min(8, limit), 1)
        assert found.describe()["tiny"]["tuned"]
    assert "default streams" not in caplog.text


def test_a_lone_picture_runs_in_a_runtime_of_its_own_where_tuning_says_so(
    tmp_path: Path, opened: list[FakeRuntime]
) -> None:
    bundle = load_bundle(write_bundle(tmp_path, manifest_of()))
    (tmp_path / "tuning.json").write_text(tuned_here(bundle, lone_threads=7))
    found = Models(Settings(repository=tmp_path, device="cpu", precision="bf16"))
    found.load(lambda phase: None)
    shared, own = opened
    assert (shared.streams, own.streams, own.threads) == (2, 1, 7)
    for runtime in opened:
        runtime.batches.clear()
    found.run(SERVE, [item(1)], [None], lone=True)
    found.run(SERVE, [item(1)], [None])
    found.run(SERVE, [item(1), item(2)], [None] * 2)
    assert (own.batches, shared.batches) == ([1], [1, 2])


def test_tuning_that_does_not_fit_is_passed_over_aloud(
    tmp_path: Path, opened: list[FakeRuntime], caplog: pytest.LogCaptureFixture
) -> None:
    bundle = load_bundle(write_bundle(tmp_path, manifest_of() | {"macs": LIGHT_MACS}))
    (tmp_path / "tuning.json").write_text(tuned_here(bundle, sha256="0" * 64))
    found = Models(Settings(repository=tmp_path, device="cpu", precision="bf16"))
    with caplog.at_level("INFO"):
        found.load(lambda phase: None)
    assert (found.best_batch(SERVE), found.streams(SERVE)) == (8, 1)
    assert not found.describe()["tiny"]["tuned"]
    lines = [r.message for r in caplog.records if "default streams" in r.message]
    assert lines == ["default streams and batches for tiny: the model changed since it was tuned"]


def test_a_damaged_tuning_file_stops_the_start(tmp_path: Path, opened: list[FakeRuntime]) -> None:
    write_bundle(tmp_path, manifest_of())
    (tmp_path / "tuning.json").write_text("{")
    with pytest.raises(BadSettings, match=r"tuning.json is no tuning file"):
        Models(Settings(repository=tmp_path)).load(lambda phase: None)
    assert opened == []


def test_a_group_of_a_model_that_is_not_here_has_a_batch_and_a_stream(
    tmp_path: Path, opened: list[FakeRuntime]
) -> None:
    found, _ = loaded(tmp_path)
    nobody = Group("nobody", "serve", "8x8")
    assert (found.best_batch(nobody), found.streams(nobody)) == (4, 1)


def test_an_engine_has_the_largest_batch_that_it_takes_and_its_maps_say_where_they_are_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever engines the manifest lists: here none, as where one is built at the start."""
    engine = Choice("tensorrt", "bf16", "cuda:0")
    monkeypatch.setattr(models, "candidates", lambda *wishes: [engine])
    monkeypatch.setattr(models, "open_runtime", lambda *given: running([1, 16], FakeCuda())[0])
    monkeypatch.setattr(choose, "supports", lambda choice: "onnxruntime is the one for CPUs")
    write_bundle(tmp_path, manifest_of())
    found = Models(Settings(repository=tmp_path))
    found.load(lambda phase: None)
    assert found.best_batch(SERVE) == 16
    described = found.describe()["tiny"]
    assert (described["streams"], described["batch"]) == (LANES, {"8x8": 16})
    assert (described["device"], described["explain"]) == ("cuda:0", "onnxruntime fp32 on cpu")
    assert "but its attention maps onnxruntime fp32 on cpu" in caplog.text
    monkeypatch.setattr(choose, "supports", lambda choice: None)
    assert str(choose.explains(engine)) == "onnxruntime fp32 on cuda:0"
