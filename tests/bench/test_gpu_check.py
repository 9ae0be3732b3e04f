"""The check of a GPU, on a machine without one: it ends, and says what it could not do."""

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import bench.gpu_check.__main__ as check
from bench.gpu_check import bundles, full_size, networks, serving
from bench.gpu_check.__main__ import main, run_all, run_apart
from bench.gpu_check.networks import Subject
from bench.gpu_check.report import document, green, page
from bench.gpu_check.rows import ROOT, Room, attempt, engine, failed, parity, skipped
from bench.gpu_check.steps import STEPS
from bench.gpu_check.torch_runtime import CastOnce, Measured, TorchRuntime, difference
from export.typed import Typed
from models.vit import ViT, ViTConfig
from service.devices import find_gpus
from service.settings import DEMO_REPOSITORY

WITHOUT_GPU = pytest.mark.skipif(find_gpus().fault is None, reason="there is a GPU")
MACHINE = {
    "kind": "machine",
    "gpus": [{"name": "NVIDIA H200", "capability": [9, 0], "memory_bytes": 2**37}],
    "driver": "580.1",
    "packages": {"torch": "2.13.0"},
}


def tiny() -> ViT:
    torch.manual_seed(0)
    return ViT(ViTConfig((32, 32), 8, dim=32, depth=2, heads=2, mlp_dim=64, classes=5))


def pixels(batch: int, canvas: tuple[int, int] = (32, 32)) -> torch.Tensor:
    return torch.randint(0, 256, (batch, *canvas, 3), dtype=torch.uint8)


@WITHOUT_GPU
@pytest.mark.parametrize("name", [name for name in STEPS if name != "machine"])
def test_every_step_says_why_it_is_skipped_without_a_gpu(name: str, tmp_path: Path) -> None:
    rows = list(attempt(name, STEPS[name][0](Room(tmp_path, time.time() + 60, DEMO_REPOSITORY))))
    assert [row["kind"] for row in rows] == ["skipped"]
    assert "NVIDIA driver" in rows[0]["why"]


@WITHOUT_GPU
def test_the_command_runs_to_the_end_without_a_gpu_and_writes_both_files(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    command = [sys.executable, "-m", "bench.gpu_check", "--only", "machine,peak", "--out", str(out)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert ended.returncode == 0, ended.stderr
    report = json.loads(out.read_text())
    assert [row["kind"] for row in report["rows"]] == ["machine", "skipped", "skipped"]
    assert report["rows"][0]["packages"]["torch"] == torch.__version__
    assert "- peak: there is no NVIDIA driver here" in out.with_suffix(".md").read_text()


def test_a_step_that_crashes_is_a_failure_and_what_it_found_before_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Crashed:
        """A process that wrote one row, and then died of a signal."""

        def __init__(self, command: list[str], stdout: Any, **_: Any) -> None:
            Path(command[command.index("--out") + 1]).write_text(json.dumps(MACHINE) + "\n")
            stdout.write("Segmentation fault\n")

        def wait(self, timeout: float) -> int:
            return -11

    monkeypatch.setattr(subprocess, "Popen", Crashed)
    rows = run_apart("torch", tmp_path, 30.0, DEMO_REPOSITORY)
    assert rows == [MACHINE, failed("torch", "its process ended with code -11: Segmentation fault")]
    assert not green(rows)


def test_what_no_time_is_left_for_is_skipped_with_that_reason(tmp_path: Path) -> None:
    rows = run_all(list(STEPS), tmp_path, time.time() + 1.0, DEMO_REPOSITORY)
    assert rows == [skipped(name, "the time was over") for name in STEPS]


def test_time_that_a_step_leaves_goes_to_those_after_it_and_the_server_keeps_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, float] = {}
    spent_s: list[float] = []

    def apart(name: str, work: Path, left_s: float, models: Path) -> list[Any]:
        given[name] = left_s
        spent_s.append(0.0 if name == "tests" else left_s)  # every other step takes all it may
        return []

    monkeypatch.setattr(check, "run_apart", apart)
    monkeypatch.setattr(check, "time", SimpleNamespace(time=lambda: 1000.0 + sum(spent_s)))
    monkeypatch.setattr(check, "can_build", lambda: False)
    run_all(list(STEPS), tmp_path, 1480.0, DEMO_REPOSITORY)
    assert given["machine"] == pytest.approx(STEPS["machine"][1])
    assert given["torch"] > STEPS["torch"][1]
    assert given["server"] >= STEPS["server"][1]
    assert sum(spent_s) == pytest.approx(480.0)


def test_an_engine_that_was_not_measured_is_a_failure_where_engines_can_be_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, *others = networks.SUBJECTS
    row = engine("tensorrt", "bf16", first.name, first.canvas, 1, [0.001], 1000, pipelined=900.0)
    monkeypatch.setattr(check, "run_apart", lambda *_: [row])
    monkeypatch.setattr(check, "can_build", lambda: True)
    rows = run_all(["tensorrt"], tmp_path, time.time() + 60, DEMO_REPOSITORY)
    missing = [failed(f"tensorrt bf16 {s.name}", "no engine of it was measured") for s in others]
    assert rows == [row, *missing]
    assert not green(rows)
    assert "| 1000 | 1.00 | 1.00 |  | 900 |" in page(document(rows, "now", 1.0))
    monkeypatch.setattr(check, "can_build", lambda: False)
    assert green(run_all(["tensorrt"], tmp_path, time.time() + 60, DEMO_REPOSITORY))


def test_speed_is_the_devices_where_it_tells_and_overlapping_batches_are_counted() -> None:
    class Slow:
        """Two streams, of which each batch takes a hundredth."""

        streams = 2

        def run(self, inputs: Any) -> None:
            time.sleep(0.01)

        def times_s(self, batch: int, rounds: int) -> list[float]:
            return [0.001 * batch] * rounds

    inputs = {"images": np.zeros((4, 2), np.uint8)}
    assert set(bundles.times_s(Slow(), inputs)) == {0.004}
    assert bundles.pipelined(Slow(), inputs, 0.1) > 4 / 0.01  # more than one at a time


def test_a_bundle_that_cannot_be_written_is_told_with_the_last_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unknown = Subject("no-such-network", (8, 8), (1,), (1,))
    monkeypatch.setattr(full_size, "SUBJECTS", (unknown,))
    rows = list(full_size.full_size_rows(Room(tmp_path, time.time() + 60, DEMO_REPOSITORY)))
    assert [row["kind"] for row in rows] == ["failed"]
    assert "its bundle cannot be written: " in rows[0]["why"]


def test_the_server_is_measured_with_engines_of_full_size_in_place_of_the_demo(
    tmp_path: Path,
) -> None:
    room = Room(tmp_path, 0.0, DEMO_REPOSITORY)
    assert room.served() == DEMO_REPOSITORY
    plan = room.full_size / "vit" / "1" / "bf16.plan"
    plan.parent.mkdir(parents=True)
    assert room.served() == DEMO_REPOSITORY
    plan.touch()
    assert room.served() == room.full_size
    assert replace(room, models=tmp_path).served() == tmp_path


def test_errors_and_missing_packages_become_rows() -> None:
    def raising(error: Exception) -> Any:
        yield MACHINE
        raise error

    missing = ModuleNotFoundError("No module named 'tensorrt'", name="tensorrt")
    assert list(attempt("a", raising(missing)))[1] == skipped("a", "tensorrt is not installed")
    wrong = list(attempt("a", raising(ValueError("too wide"))))[1]
    assert wrong == failed("a", "ValueError: too wide")


def test_the_share_of_the_peak_counts_two_operations_per_multiply_accumulate() -> None:
    row = engine("torch", "bf16", "vit", (224, 224), 64, [0.004, 0.005, 0.02], 17_564_000_000)
    assert (row["median_s"], row["p99_s"], row["images_per_s"]) == (0.005, 0.02, 12800.0)
    assert row["tflops"] == 449.64
    report = document([MACHINE, {"kind": "peak", "bf16_tflops": 790.0}, row], "now", 61.0)
    assert report["rows"][2]["of_peak"] == 0.5692
    shown = page(report)
    assert "| vit | 224x224 | torch bf16 | 64 | 12800 | 5.00 | 20.00 | 56.9% |  |" in shown
    assert "# GPU check: NVIDIA H200" in shown


def test_a_page_shows_parity_servers_failures_and_what_was_skipped() -> None:
    rows = [
        MACHINE,
        parity("torch", "bf16", "vit", "logits", 0.01234, 0.1),
        parity("torch", "fp32", "vit", "logits", float("nan"), 0.001),
        {
            "kind": "server",
            "model": "vit",
            "runtime": "onnxruntime fp32 on cuda:0",
            "clients": 32,
            "images_per_s": 900.4,
            "latency_s": {"p50": 0.01, "p95": 0.02, "p99": 0.03},
            "stages_s": {"decode": 0.003, "infer": 0.001},
        },
        failed("torch swin", "ValueError: no"),
        skipped("tensorrt", "tensorrt is not installed"),
    ]
    report = document(rows, "now", 1.0)
    assert not report["green"]
    shown = page(report)
    for line in (
        "| vit | torch bf16 | logits | 0.012 | 0.1 | agrees |",
        "| vit | torch fp32 | logits | nan | 0.001 | WRONG |",
        "| vit | onnxruntime fp32 on cuda:0 | 32 | 900 | 10.0 | 20.0 | 30.0 | 75% |",
        "- torch swin: ValueError: no",
        "- tensorrt: tensorrt is not installed",
    ):
        assert line in shown
    assert green([MACHINE, rows[1], rows[5]])


def test_weights_that_are_cast_once_compute_what_engines_compute() -> None:
    network, images = tiny().eval(), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        once, each_time = CastOnce(network, "bf16")(images), Typed(network, "bf16")(images)
        exact = network(images)["logits"]
    assert torch.equal(once["logits"], each_time["logits"])
    assert 0 < difference(once["logits"], exact) < 0.05


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_what_is_exported_and_run_is_what_the_definition_computes(precision: str) -> None:
    measured = Measured(tiny().eval(), precision).eval()
    first, second = pixels(2), pixels(2)
    runtime = TorchRuntime(measured, first, backend=None)
    with torch.no_grad():
        for images in (first, second):
            found, expected = runtime.run(images)["logits"], measured(images)["logits"]
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_a_bundle_without_a_graph_for_engines_is_skipped_with_what_to_do(tmp_path: Path) -> None:
    room = Room(tmp_path, time.time() + 60, DEMO_REPOSITORY)
    rows = list(bundles.engine_builds(room))
    names = {folder.name for folder in DEMO_REPOSITORY.iterdir() if folder.is_dir()}
    assert {row["what"].split()[-1] for row in rows} == names
    assert {row["why"].split("; ")[1] for row in rows} == {"export it with --engine bf16"}
    assert room.measured() == room.served() == room.engines


def test_a_build_that_fails_is_told_with_its_last_line() -> None:
    command = [sys.executable, "-c", "import sys; sys.exit('no kernels for it')"]
    assert list(bundles.build_rows("a build", command, 60.0)) == [
        failed("a build", "no kernels for it")
    ]
    assert list(bundles.build_rows("a build", [sys.executable, "-c", ""], 60.0)) == []


def test_unknown_steps_are_named(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu_check", "--only", "machine,warp"])
    with pytest.raises(SystemExit):
        main()
    assert "there is no step warp; there are machine, peak" in capsys.readouterr().err


@pytest.mark.slow
def test_the_work_of_the_measured_networks_is_counted_at_their_canvases() -> None:
    counted = {one.name: networks.macs_of(one) / 1e9 for one in networks.SUBJECTS}
    assert {name: round(macs, 1) for name, macs in counted.items()} == {
        "vit-b16-224": 17.6,
        "swin-b-224": 15.4,
        "detr-r50": 101.8,
        "mask2former-r50": 267.1,
    }


@pytest.mark.slow
@pytest.mark.parametrize("subject", networks.SUBJECTS, ids=lambda subject: subject.name)
def test_every_measured_network_can_be_exported_in_bf16(subject: Subject) -> None:
    small = replace(subject, canvas=min(subject.canvas, (224, 224)))
    network, images = networks.network_of(small).eval(), pixels(1, small.canvas)
    with torch.no_grad():
        expected = Measured(network, "fp32", small.takes_sizes)(images)["logits"]
    runtime = TorchRuntime(Measured(network, "bf16", small.takes_sizes), images, backend=None)
    assert difference(runtime.run(images)["logits"], expected) < 0.1


@pytest.mark.slow
def test_the_server_is_measured_with_jpeg_bodies(tmp_path: Path) -> None:
    rows = list(serving.server_rows(Room(tmp_path, time.time() + 120, DEMO_REPOSITORY), "cpu", 0.3))
    assert {row["kind"] for row in rows} == {"server"}, rows
    assert {row["clients"] for row in rows} == {1, 32, 128}
    assert {row["runtime"].split()[-1] for row in rows} == {"cpu"}
    assert all(row["images_per_s"] > 0 and "decode" in row["stages_s"] for row in rows)


@pytest.mark.gpu
def test_a_real_gpu_replays_what_the_definition_computes() -> None:
    measured = Measured(tiny().eval(), "bf16").eval().cuda()
    runtime = TorchRuntime(measured, pixels(4).cuda(), backend=None)
    images = pixels(4).cuda()
    with torch.no_grad():
        expected = measured(images)["logits"]
    assert difference(runtime.run(images)["logits"], expected) < 0.01
