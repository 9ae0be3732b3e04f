"""What saccade tune measures and picks; time passes only when a fake runtime says so."""

import json
import shutil
import subprocess
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import httpx
import numpy as np
import pytest

from service.bundle import load_repository
from service.errors import BadBundle, StartError
from service.geometry import Size
from service.settings import DEMO_REPOSITORY
from service.tune import command, measure
from service.tune.measure import Contender, Inputs, available_bytes, layouts_of_this_machine
from service.tune.pick import pick_batch, pick_layout, pick_lone_threads, served_per_s
from service.tuning import Layout, Point, read_tuning, this_machine
from service.worker.runtimes.base import Arrays, Signature
from service.worker.runtimes.choose import Choice
from tests.conftest import SACCADE, Server

CANVAS = Size(height=2, width=2)
MANY_CORES = 1_000_000
"""So many that nothing but the streams limits a server."""


def layout(
    streams: int, latency_ms: float, *paces: float, cpu_ms: float = 0, threads: int = 8
) -> Layout:
    """With these images per second at batch 1, 2, 4 ..."""
    points = [
        Point(batch=2**power, seconds=2**power / pace, images_per_s=pace, cpu_s=cpu_ms / 1000)
        for power, pace in enumerate(paces)
    ]
    return Layout(streams=streams, threads=threads, latency_s=latency_ms / 1000, points=points)


def test_the_smallest_batch_close_to_the_best_is_picked() -> None:
    assert pick_batch(layout(1, 1, 50, 80, 98, 100, 99), MANY_CORES).batch == 4
    assert pick_batch(layout(1, 1, 50, 80, 96, 100), MANY_CORES).batch == 8
    assert pick_batch(layout(1, 1, 100, 90), MANY_CORES).batch == 1


def test_a_batch_that_is_over_at_once_may_be_larger_than_it_must() -> None:
    assert pick_batch(layout(1, 1, 1000, 990, 980, 800), MANY_CORES).batch == 4
    assert pick_batch(layout(1, 1, 100, 99, 98), MANY_CORES).batch == 1, "20 ms for two"


@pytest.mark.parametrize(
    ("layouts", "picked"),
    [
        ([layout(1, 5, 100), layout(2, 5, 120)], 1),
        ([layout(1, 5, 100), layout(2, 5, 102)], 0),  # more streams, hardly faster
        ([layout(1, 5, 100), layout(2, 5.4, 120)], 1),  # slower alone by less than half a ms
        ([layout(1, 4, 100), layout(2, 4.6, 120)], 0),
        ([layout(1, 50, 100), layout(2, 54, 120)], 1),  # slower alone by less than a tenth
        ([layout(1, 50, 100), layout(2, 56, 120)], 0),
        ([layout(1, 8, 100), layout(2, 5, 90)], 1),  # the first is too slow alone
        ([layout(1, 5, 100), layout(2, 5, 110), layout(4, 5, 112)], 1),
        ([layout(1, 5, 100), layout(2, 5, 102), layout(4, 5, 104)], 2),
        ([layout(1, 5, 100, 150), layout(2, 5, 120, 130)], 0),  # the best batch counts
    ],
)
def test_throughput_decides_unless_a_lone_picture_pays_or_it_is_noise(
    layouts: list[Layout], picked: int
) -> None:
    assert pick_layout([layouts], MANY_CORES) == picked


def test_where_the_cores_are_short_what_takes_less_of_them_serves_more() -> None:
    """The rest takes 3 ms a picture: two cores have time for 2 / (3 + 1) ms of the sober ones."""
    spins = layout(1, 0.2, 4000, cpu_ms=2)
    sober = layout(1, 0.2, 3000, cpu_ms=1)
    assert round(served_per_s(sober.points[0], 2)) == 500
    assert pick_layout([[sober, spins]], 2) == 0
    assert pick_layout([[sober, spins]], MANY_CORES) == 1
    too_slow = layout(1, 0.2, 50, cpu_ms=1)
    assert pick_layout([[too_slow, spins]], 2) == 1


def test_what_serves_most_is_picked_where_a_lone_picture_can_have_its_own() -> None:
    together = [layout(1, 12, 100), layout(2, 17, 110)]
    assert pick_layout([together], MANY_CORES) == 0
    assert pick_layout([together], MANY_CORES, prompt=False) == 1
    close = [layout(1, 12, 100), layout(2, 17, 98), layout(4, 30, 90)]
    assert pick_layout([close], MANY_CORES, prompt=False) == 1, "most streams of those as good"
    alone = [layout(1, 1, 98, threads=1), layout(2, 1.2, 100, threads=2), layout(1, 1, 97)]
    assert pick_layout([alone], MANY_CORES, prompt=False) == 0, "fewest of those that share nothing"
    assert pick_lone_threads([together], 1) == 8
    assert pick_lone_threads([together], 0) == 0
    assert pick_lone_threads([[layout(1, 12, 100), layout(2, 12.4, 110)]], 1) == 0


def test_one_layout_serves_every_canvas_of_a_model() -> None:
    small = [layout(1, 2, 100), layout(2, 2, 150)]
    assert pick_layout([small, [layout(1, 50, 10), layout(2, 52, 10)]], MANY_CORES) == 1
    pays = [layout(1, 50, 10), layout(2, 90, 10)]
    assert pick_layout([small, pays], MANY_CORES) == 0, "a lone one pays"
    contrary = [[layout(1, 9, 10), layout(2, 2, 10)], [layout(1, 2, 10), layout(2, 20, 10)]]
    assert pick_layout(contrary, MANY_CORES) == 0, (
        "none is prompt everywhere: the least slow in all"
    )


class FakeRuntime:
    """A batch takes ``fixed_s`` and ``each_s`` a picture."""

    name, precision, device, threads, streams = "fake", "fp32", "cpu", 2, 1
    outputs: dict[str, Signature]
    inputs: dict[str, Signature]

    def __init__(self, fixed_s: float, each_s: float) -> None:
        self.inputs = {"images": ("uint8", (None, 2, 2, 3)), "sizes": ("int32", (None, 2))}
        self.outputs = {}
        self.now_s, self.fixed_s, self.each_s = 0.0, fixed_s, each_s
        self.most_pictures = 10_000

    def run(self, inputs: Arrays, wanted: Collection[str] | None = None) -> Arrays:
        batch = len(inputs["images"])
        if batch > self.most_pictures:
            raise MemoryError(f"{batch} pictures")
        assert inputs["sizes"].tolist() == [[2, 2]] * batch
        self.now_s += self.fixed_s + self.each_s * batch
        return {}


def contender(runtime: FakeRuntime, monkeypatch: pytest.MonkeyPatch) -> Contender:
    clock = SimpleNamespace(perf_counter=lambda: runtime.now_s, process_time=lambda: runtime.now_s)
    monkeypatch.setattr(measure, "time", clock)
    monkeypatch.setattr(measure, "available_bytes", lambda: 2.0**40)
    manifest = load_repository(DEMO_REPOSITORY)[0].manifest
    return Contender(runtime, Inputs(manifest, CANVAS))


def test_a_disturbed_run_slows_the_pace_of_its_slice_and_not_the_median_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runtime = FakeRuntime(0.0, 0.1)
    one = contender(runtime, monkeypatch)
    one.warm_up(1)
    one.run_busy(1, 1.0)
    runtime.each_s = 0.5
    one.run_busy(1, 0.5)
    one.run_busy(1, 0.5)
    one.close()
    point = one.point(1)
    assert (round(point.seconds, 6), round(point.images_per_s, 6)) == (0.1, 2.0)


def found(one: Contender) -> dict[int, float]:
    """Seconds by batch."""
    measured = measure.measure([one], 1.0, lambda share: None)
    one.close()
    return {point.batch: round(point.seconds, 6) for point in measured[0].points}


def test_batches_grow_until_two_sizes_bring_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    flat = contender(FakeRuntime(0.0, 0.01), monkeypatch)
    assert found(flat) == {1: 0.01, 2: 0.02, 4: 0.04}
    steep = contender(FakeRuntime(0.1, 0.001), monkeypatch)
    assert list(found(steep)) == [1, 2, 4, 8, 16, 32]


def test_a_batch_that_nobody_would_wait_for_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    assert found(contender(FakeRuntime(0.2, 0.19), monkeypatch)) == {
        1: 0.39,
        2: 0.58,
        4: 0.96,
        8: 1.72,
    }
    assert found(contender(FakeRuntime(4.0, 1.0), monkeypatch)) == {1: 5.0}


def test_a_batch_that_the_runtime_cannot_run_ends_the_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = FakeRuntime(0.1, 0.001)
    runtime.most_pictures = 4
    assert list(found(contender(runtime, monkeypatch))) == [1, 2, 4]


def test_a_model_that_cannot_run_at_all_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = FakeRuntime(0.1, 0.001)
    runtime.most_pictures = 0
    with pytest.raises(MemoryError):
        found(contender(runtime, monkeypatch))


def test_memory_that_runs_low_ends_the_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    one = contender(FakeRuntime(0.1, 0.001), monkeypatch)
    free = iter([1000, 950, 950, 850, 850, 600, 600, 100])  # before and after each batch
    monkeypatch.setattr(measure, "available_bytes", lambda: float(next(free)))
    assert list(found(one)) == [1, 2, 4]


def test_layouts_share_the_cores_among_one_to_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def offered(cores: int, physical: int) -> list[tuple[int, int]]:
        monkeypatch.setattr(measure, "usable_cores", lambda: cores)
        monkeypatch.setattr(measure, "physical_cores", lambda: physical)
        return layouts_of_this_machine()

    assert offered(1, 1) == [(1, 1)]
    assert offered(2, 2) == [(1, 1), (1, 2), (2, 2)]
    assert offered(6, 3) == [(1, 1), (1, 3), (1, 6), (2, 6), (3, 6), (4, 6), (6, 6)]


def test_inputs_are_whole_pictures_with_the_thresholds_of_the_manifest() -> None:
    manifests = {b.manifest.name: b.manifest for b in load_repository(DEMO_REPOSITORY)}
    runtime = FakeRuntime(0, 0)
    runtime.inputs |= {"threshold": ("float32", (None,))}
    manifest = manifests["mask2former-scenes"]
    assert manifest.segmentation is not None
    inputs = Inputs(manifest, CANVAS).make(runtime, 3)
    assert inputs["sizes"].tolist() == [[2, 2]] * 3
    assert inputs["threshold"].tolist() == [np.float32(manifest.segmentation.threshold)] * 3
    assert inputs["images"].std() > 0


def test_memory_is_that_of_the_machine_or_of_a_tighter_container(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    assert available_bytes(meminfo, tmp_path) == float("inf")
    meminfo.write_text("MemTotal: 9 kB\nMemAvailable: 4 kB\n")
    assert available_bytes(meminfo, tmp_path) == 4096
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("1000\n")
    assert available_bytes(meminfo, tmp_path) == 4096
    (tmp_path / "memory.max").write_text("3000\n")
    assert available_bytes(meminfo, tmp_path) == 2000
    (tmp_path / "memory.stat").write_text("anon 400\ninactive_file 500\nactive_file 100\n")
    assert available_bytes(meminfo, tmp_path) == 2500


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """The demo classifier alone, in a folder of its own."""
    shutil.copytree(DEMO_REPOSITORY / "vit-scenes", tmp_path / "vit-scenes")
    return tmp_path


def test_a_model_is_measured_and_what_serves_best_lies_beside_it(
    repository: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "layouts_of_this_machine", lambda: [(1, 1), (2, 2)])
    wishes = {"runtime": "onnxruntime", "precision": "fp32"}
    command.tune(repository, ["vit-scenes"], 0.05, None, wishes)
    profile = read_tuning(repository / "tuning.json").of(this_machine())
    assert profile is not None
    (entry,) = profile.entries
    file = load_repository(repository)[0].manifest.files["model.onnx"]
    assert (entry.sha256, entry.runtime, entry.precision) == (
        file.sha256,
        "onnxruntime",
        "fp32",
    )
    assert [(one.streams, one.threads) for one in entry.grid] == [(1, 1), (2, 2)]
    assert (entry.streams, entry.threads) in [(1, 1), (2, 2)]
    chosen = next(one for one in entry.grid if one.streams == entry.streams)
    assert entry.batch in [point.batch for point in chosen.points]
    assert f"Written to {repository / 'tuning.json'}" in capsys.readouterr().out


def test_where_memory_is_short_fewer_layouts_are_compared_and_that_is_said(
    repository: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "layouts_of_this_machine", lambda: [(1, 1), (1, 2), (2, 2)])
    free = iter([100, 90, 90, 60])  # before and after each: the second took more than a third
    monkeypatch.setattr(command, "available_bytes", lambda: next(free))
    wishes = {"runtime": "onnxruntime", "precision": "fp32"}
    command.tune(repository, ["vit-scenes"], 0.05, None, wishes)
    profile = read_tuning(repository / "tuning.json").of(this_machine())
    assert profile is not None
    (entry,) = profile.entries
    assert [(one.streams, one.threads) for one in entry.grid] == [(1, 1), (1, 2)]
    assert "memory for 2 of 3 layouts at once" in " ".join(capsys.readouterr().err.split())


def test_nothing_is_measured_where_nothing_could_be_written(tmp_path: Path) -> None:
    with pytest.raises(StartError, match="--out FILE"):
        command.tune(DEMO_REPOSITORY, [], 1.0, tmp_path / "absent" / "file.json", {})


def test_a_model_that_is_not_there_is_named_with_those_that_are(repository: Path) -> None:
    with pytest.raises(BadBundle, match=r"no model 'vti'.* holds vit-scenes"):
        command.tune(repository, ["vti"], 1.0, None, {})


def test_the_table_shows_every_layout_and_what_was_picked(repository: Path) -> None:
    bundle = load_repository(repository)[0]
    choice = Choice("openvino", "bf16")
    grid = [layout(1, 2, 100, cpu_ms=1), layout(2, 2.5, 150, cpu_ms=2)]
    entry = command._entry(bundle, choice, Size(height=128, width=128), grid, grid[1], 2)
    table = command.tabulate([entry], 2)
    cells = [list(column.cells) for column in table.columns]
    assert cells == [
        ["vit-scenes 128x128, openvino bf16", ""],
        ["1", "2"],
        ["8", "8"],
        ["1", "1"],
        ["100.0", "150.0"],
        ["1.00", "2.00"],
        ["100.0", "150.0"],
        ["2.00", "2.50"],
    ]
    assert [row.style for row in table.rows] == ["dim", "bold"]
    assert json.loads(entry.model_dump_json())["grid"][0]["points"][0]["images_per_s"] == 100


def test_a_tuned_repository_is_served_as_it_was_tuned(
    repository: Path, start_server: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "layouts_of_this_machine", lambda: [(2, 2)])
    out = repository / "elsewhere.json"
    command.tune(repository, [], 0.05, out, {})
    (profile,) = read_tuning(out).profiles
    (entry,) = profile.entries
    server = start_server("--repository", str(repository), "--tuning", str(out))
    (model,) = httpx.get(server.url + "/v1/models").json()["models"]
    assert (model["tuned"], model["streams"], model["threads"]) == (True, 2, 2)
    assert model["batch"] == {"128x128": entry.batch}
    scene = (DEMO_REPOSITORY.parent / "scenes" / "ring.jpg").read_bytes()
    with ThreadPoolExecutor(8) as pool:
        headers = {"Content-Type": "image/jpeg"}
        url = server.url + "/v1/classify?model=vit-scenes"
        answers = list(
            pool.map(lambda _: httpx.post(url, content=scene, headers=headers), range(40))
        )
    assert {answer.json()["predictions"][0]["label"] for answer in answers} == {"ring"}


def test_a_damaged_tuning_file_ends_the_server_with_a_sentence(repository: Path) -> None:
    (repository / "tuning.json").write_text("{")
    command_line = [str(SACCADE), "serve", "--port", "0", "--repository", str(repository)]
    ended = subprocess.run(command_line, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1
    assert "tuning.json is no tuning file of this release" in ended.stderr
    assert "--tuning off" in ended.stderr
