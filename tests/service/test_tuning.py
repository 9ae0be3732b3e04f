"""The tuning file: read, written, and matched to a machine and a bundle."""

from pathlib import Path
from typing import Any

import pytest

from service import tuning
from service.bundle import Bundle, load_bundle
from service.errors import BadSettings, StartError
from service.settings import Settings
from service.tuning import (
    LIGHT_MACS,
    Entry,
    Machine,
    Plan,
    Tuning,
    check_writable,
    graph_digest,
    load_tuning,
    plan_for,
    read_tuning,
    this_machine,
    write_profile,
)
from service.worker.runtimes.choose import Choice
from tests.service.sample_bundle import manifest_of, write_bundle

HERE = Machine(cpu="Small", cores=2, libraries={"openvino": "1"})
THERE = Machine(cpu="Large", cores=64, libraries={"openvino": "1"})
BF16, FP32 = Choice("openvino", "bf16"), Choice("onnxruntime", "fp32")
WHEN = "2030-01-01T00:00:00+00:00"


def entry(bundle: Bundle | None = None, **changes: Any) -> Entry:
    point = {"batch": 16, "seconds": 0.1, "images_per_s": 160, "cpu_s": 0.01}
    layout = {"streams": 2, "threads": 2, "latency_s": 0.01, "points": [point]}
    canvas = {"height": 8, "width": 8}
    fields = {
        "model": "tiny",
        "version": "1",
        "sha256": "0" * 64,
        "runtime": "openvino",
        "precision": "bf16",
        "canvas": canvas,
        "streams": 2,
        "threads": 2,
        "batch": 16,
        "images_per_s": 160,
        "latency_s": 0.01,
        "batch_latency_s": 0.1,
        "grid": [layout],
    }
    if bundle is not None:
        fields["sha256"] = graph_digest(bundle, bundle.manifest.canvases[0], BF16)
    return Entry.model_validate(fields | changes)


def tuned(machine: Machine, *entries: Entry) -> Tuning:
    profile = {"machine": machine, "measured": WHEN, "entries": entries}
    return Tuning.model_validate({"profiles": [profile]})


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return load_bundle(write_bundle(tmp_path, manifest_of() | {"macs": LIGHT_MACS}))


def test_what_was_written_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "tuning.json"
    write_profile(path, HERE, WHEN, [entry()])
    assert read_tuning(path) == tuned(HERE, entry())
    assert [file.name for file in tmp_path.iterdir()] == ["tuning.json"]
    assert path.stat().st_mode & 0o777 == 0o644


def test_tuning_again_replaces_the_same_models_of_the_same_machine_only(tmp_path: Path) -> None:
    path = tmp_path / "tuning.json"
    write_profile(path, THERE, WHEN, [entry(batch=32)])
    write_profile(path, HERE, WHEN, [entry(batch=1), entry(model="other"), entry(precision="fp32")])
    write_profile(path, HERE, "later", [entry(batch=2)])
    found = read_tuning(path)
    there, here = found.of(THERE), found.of(HERE)
    assert there is not None
    assert here is not None
    assert [e.batch for e in there.entries] == [32]
    assert [(e.model, e.precision, e.batch) for e in here.entries] == [
        ("other", "bf16", 16),
        ("tiny", "fp32", 16),
        ("tiny", "bf16", 2),
    ]
    assert (there.measured, here.measured) == (WHEN, "later")


def test_tuning_for_the_gpus_keeps_the_figures_of_the_cpu(tmp_path: Path) -> None:
    path = tmp_path / "tuning.json"
    write_profile(path, HERE, WHEN, [entry(), entry(device="cuda:0", batch=8)])
    write_profile(path, HERE, "later", [entry(device="cuda:1", batch=4)])
    here = read_tuning(path).of(HERE)
    assert here is not None
    assert [(e.device, e.batch) for e in here.entries] == [("cpu", 16), ("cuda:1", 4)]


def test_a_matching_entry_gives_its_streams_threads_and_batch(bundle: Bundle) -> None:
    plan = plan_for(bundle, BF16, tuned(HERE, entry(bundle)), HERE)
    assert plan == Plan(streams=2, threads=2, batches={"8x8": 16}, untuned=None)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"model": "other"}, "the tuning does not hold this model"),
        ({"sha256": "1" * 64}, "the model changed since it was tuned"),
        ({"canvas": {"height": 4, "width": 4}}, "the model changed since it was tuned"),
        ({"precision": "fp32"}, "tuned for openvino fp32"),
    ],
)
def test_an_entry_of_something_else_is_not_used_and_the_plan_says_why(
    bundle: Bundle, change: dict[str, Any], reason: str
) -> None:
    plan = plan_for(bundle, BF16, tuned(HERE, entry(bundle, **change)), HERE)
    assert plan == Plan(untuned=reason)


def test_figures_of_the_cpu_say_nothing_of_a_gpu_and_all_gpus_of_a_machine_share_theirs(
    bundle: Bundle,
) -> None:
    of_cpu, of_gpu = (entry(bundle, device=device) for device in ("cpu", "cuda:0"))
    on_gpu = Choice("openvino", "bf16", "cuda:1")
    assert plan_for(bundle, on_gpu, tuned(HERE, of_cpu), HERE).untuned is not None
    assert plan_for(bundle, BF16, tuned(HERE, of_gpu), HERE).untuned is not None
    assert plan_for(bundle, on_gpu, tuned(HERE, of_gpu), HERE).untuned is None


def test_figures_of_another_machine_are_not_used(bundle: Bundle) -> None:
    plan = plan_for(bundle, BF16, tuned(THERE, entry(bundle)), HERE)
    assert plan == Plan(
        untuned="tuned for another machine (Large, 64 cores, openvino 1); "
        "this one is Small, 2 cores, openvino 1"
    )


def test_without_tuning_the_plan_names_the_command_that_makes_one(bundle: Bundle) -> None:
    plan = plan_for(bundle, FP32, None, HERE)
    assert plan == Plan(untuned="this machine was not measured; saccade tune does it")


def test_an_untuned_model_that_is_light_has_streams_for_what_it_takes_of_the_machine(
    tmp_path: Path,
) -> None:
    light = load_bundle(write_bundle(tmp_path, manifest_of() | {"macs": LIGHT_MACS - 1}))
    reason = "this machine was not measured; saccade tune does it"
    assert plan_for(light, FP32, None, HERE) == Plan(2, 2, untuned=reason)
    assert plan_for(light, FP32, None, THERE) == Plan(8, 8, untuned=reason)
    assert plan_for(light, FP32, None, HERE, threads=7).streams == 1
    empty = load_bundle(write_bundle(tmp_path / "e", manifest_of() | {"macs": 150_000}))
    assert plan_for(empty, FP32, None, THERE) == Plan(1, 1, untuned=reason)


def test_a_light_model_has_one_stream_on_a_gpu_where_one_batch_runs_at_a_time(
    tmp_path: Path,
) -> None:
    light = load_bundle(write_bundle(tmp_path, manifest_of() | {"macs": LIGHT_MACS - 1}))
    plan = plan_for(light, Choice("onnxruntime", "fp32", "cuda:0"), None, THERE)
    assert (plan.streams, plan.threads) == (1, 0)


def test_threads_that_the_operator_demands_win(bundle: Bundle) -> None:
    plan = plan_for(bundle, BF16, tuned(HERE, entry(bundle)), HERE, threads=7)
    assert plan == Plan(threads=7, untuned="--threads is set")


def test_the_file_beside_the_models_is_used_unless_another_is_named_or_none(
    tmp_path: Path,
) -> None:
    assert load_tuning(Settings(repository=tmp_path)) is None
    write_profile(tmp_path / "tuning.json", HERE, WHEN, [])
    write_profile(tmp_path / "other.json", THERE, WHEN, [])
    assert load_tuning(Settings(repository=tmp_path)) == tuned(HERE)
    assert load_tuning(Settings(repository=tmp_path, tuning="off")) is None
    named = Settings(repository=tmp_path, tuning=str(tmp_path / "other.json"))
    assert load_tuning(named) == tuned(THERE)


def test_a_file_that_is_named_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(BadSettings, match=r"no file .*absent.json; .*saccade tune --out"):
        load_tuning(Settings(tuning=str(tmp_path / "absent.json")))


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"schema_version": 2}', '{"profiles": [{"machine": {}}]}', '{"x": 1}']
)
def test_a_damaged_file_is_refused_with_a_way_out(tmp_path: Path, text: str) -> None:
    path = tmp_path / "tuning.json"
    path.write_text(text)
    with pytest.raises(BadSettings, match=r"tuning.json is no tuning file .*--tuning off"):
        load_tuning(Settings(repository=tmp_path))
    with pytest.raises(BadSettings, match="is no tuning file"):
        check_writable(path)
    assert path.read_text() == text


def test_a_folder_that_cannot_be_written_is_told_with_both_flags(tmp_path: Path) -> None:
    with pytest.raises(StartError, match=r"--out FILE, and serve with --tuning FILE"):
        check_writable(tmp_path / "absent" / "tuning.json")


def test_this_machine_is_told_by_its_processor_cores_and_libraries(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tuning, "usable_cores", lambda: 3)
    machine = this_machine()
    assert machine.cores == 3
    assert machine.cpu
    assert "openvino" in machine.libraries
    assert this_machine() == machine
