"""``saccade doctor``: what it finds on machines and repositories that are made for it."""

import io
import json
import resource
import shutil
import subprocess
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from service.cli import app
from service.doctor import examination, machine
from service.doctor.command import render
from service.doctor.examination import Examination, Trouble, examine
from service.errors import StartError
from service.settings import DEMO_REPOSITORY, Settings
from service.tuning import Machine, Profile, Tuning, this_machine
from service.worker.runtimes.choose import FASTEST_FIRST, candidates
from tests.conftest import SACCADE

MODELS = {"detr-scenes", "mask2former-scenes", "swin-scenes", "vit-scenes"}


def settings(tmp_path: Path, **changes: str | int | Path) -> Settings:
    return Settings(**({"cache": str(tmp_path / "cache")} | changes))  # type: ignore[arg-type]


def fatal(found: Examination) -> list[Trouble]:
    return [trouble for trouble in found.troubles if trouble.fatal]


def shown(found: Examination) -> str:
    written = io.StringIO()
    Console(width=1000, file=written).print(render(found))
    return " ".join(written.getvalue().split())


def copied_repository(tmp_path: Path, *names: str) -> Path:
    for name in names:
        shutil.copytree(DEMO_REPOSITORY / name, tmp_path / "models" / name)
    return tmp_path / "models"


def test_every_model_is_said_to_run_as_the_server_would_run_it(tmp_path: Path) -> None:
    from service.bundle import load_repository

    found = examine(settings(tmp_path))
    chosen = {model.name: model.choice for model in found.models}
    assert chosen == {
        bundle.manifest.name: str(candidates(bundle)[0])
        for bundle in load_repository(DEMO_REPOSITORY)
    }
    assert set(chosen) == MODELS
    assert fatal(found) == []


def test_the_demo_segmenter_is_passed_over_for_bf16_and_the_reason_is_its_proof(
    tmp_path: Path,
) -> None:
    found = examine(settings(tmp_path))
    segmenter = next(model for model in found.models if model.name == "mask2former-scenes")
    why = segmenter.passed_over["openvino bf16 on cpu"]
    assert "no proof of accuracy" in why or "offers only" in why  # the latter where there is none
    assert f"not openvino bf16 on cpu: {why}" in shown(found)


def test_a_wish_of_the_settings_decides_and_is_said_to(tmp_path: Path) -> None:
    found = examine(settings(tmp_path, runtime="onnxruntime"))
    assert {model.choice for model in found.models} == {"onnxruntime fp32 on cpu"}
    assert {model.why for model in found.models} == {"the fastest of what the settings ask for"}


def test_a_wish_that_nothing_meets_is_fatal_for_every_model(tmp_path: Path) -> None:
    found = examine(settings(tmp_path, precision="int8"))
    assert {model.choice for model in found.models} == {None}
    assert len(fatal(found)) == len(MODELS)
    assert "cannot be served with precision int8" in fatal(found)[0].found


def test_a_damaged_bundle_is_fatal_and_the_others_are_examined(tmp_path: Path) -> None:
    repository = copied_repository(tmp_path, "vit-scenes", "swin-scenes")
    weights = repository / "vit-scenes" / "1" / "weights.bin"
    weights.write_bytes(weights.read_bytes()[:-1])
    found = examine(settings(tmp_path, repository=repository))
    choices = {model.name: model.choice for model in found.models}
    assert choices["vit-scenes"] is None
    assert choices["swin-scenes"] is not None
    (trouble,) = fatal(found)
    assert str(weights) in trouble.found
    assert "cannot be served" in shown(found)


def test_a_repository_that_is_not_there_is_fatal_and_the_rest_is_shown(tmp_path: Path) -> None:
    found = examine(settings(tmp_path, repository=tmp_path / "nowhere"))
    assert found.models == []
    (trouble,) = fatal(found)
    assert str(tmp_path / "nowhere") in trouble.found
    assert "--repository" in trouble.advice
    assert found.machine.cpu.name in shown(found)


def test_tuning_of_this_machine_of_another_and_none_are_told_apart(tmp_path: Path) -> None:
    repository = copied_repository(tmp_path, "vit-scenes")
    place = settings(tmp_path, repository=repository)
    assert examine(place).tuning.state == "missing"

    other = Machine(cpu="another", cores=64, libraries={})
    profile = Profile(machine=other, measured="2026-01-01T00:00:00+00:00", entries=[])
    (repository / "tuning.json").write_text(Tuning(profiles=[profile]).model_dump_json())
    found = examine(place)
    assert found.tuning.state == "another machine"
    assert f"saccade tune --repository {repository}" in found.troubles[0].advice

    own = profile.model_copy(update={"machine": this_machine()})
    (repository / "tuning.json").write_text(Tuning(profiles=[own]).model_dump_json())
    found = examine(place)
    assert (found.tuning.state, found.tuning.measured) == ("used", "2026-01-01T00:00:00+00:00")
    assert found.models[0].untuned == "the tuning does not hold this model"

    (repository / "tuning.json").write_text("{")
    found = examine(place)
    assert found.tuning.state == "damaged"
    assert "saccade tune" in fatal(found)[0].advice

    assert examine(settings(tmp_path, tuning="off")).tuning.state == "off"


def test_a_tuning_file_that_was_named_and_is_missing_stops_the_start(tmp_path: Path) -> None:
    found = examine(settings(tmp_path, tuning=str(tmp_path / "none.json")))
    assert found.tuning.state == "missing"
    assert "there is no file" in fatal(found)[0].found


def test_a_look_at_the_cache_does_not_make_it(tmp_path: Path) -> None:
    found = examine(settings(tmp_path))
    assert (found.cache.usable, found.cache.entries) == (True, 0)
    assert not (tmp_path / "cache").exists()


def test_the_cache_is_counted(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    folder.mkdir(mode=0o700)
    (folder / "a.compiled").write_bytes(b"12345")
    (folder / "b.compiled").write_bytes(b"123")
    (folder / "c.unfinished").write_bytes(b"1")
    found = examine(settings(tmp_path)).cache
    assert (found.usable, found.entries, found.size_bytes) == (True, 2, 8)


def test_a_cache_that_others_may_write_to_is_advised_against(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(0o777)
    found = examine(settings(tmp_path))
    assert not found.cache.usable
    assert any("nobody else may write" in trouble.advice for trouble in found.troubles)


def test_too_few_open_files_for_the_connections_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: (256, 1024))
    found = examine(settings(tmp_path, max_connections=4096))
    assert found.machine.open_files.hard == 1024
    (trouble,) = [t for t in found.troubles if "open files" in t.found]
    assert "896 connections per HTTP process instead of 4096" in trouble.found
    assert not trouble.fatal


def test_a_reserve_of_open_files_is_the_one_that_the_server_keeps() -> None:
    from service.api.connections import RESERVED_DESCRIPTORS

    assert examination.RESERVED_FILES == RESERVED_DESCRIPTORS


def test_without_a_runtime_the_advice_is_to_install_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "installed", lambda name: None)
    found = examine(settings(tmp_path))
    assert any("pip install 'saccade[cpu]'" in trouble.advice for trouble in fatal(found))
    assert "openvino not installed" in shown(found)


def test_instructions_are_read_from_what_the_system_lists(tmp_path: Path) -> None:
    listed = tmp_path / "cpuinfo"
    listed.write_text("processor : 0\nflags\t\t: fpu avx2 avx512f avx512_bf16 amx_bf16\n")
    assert machine.cpu_features(listed) == ["avx2", "avx512f", "avx512_bf16", "amx_bf16"]
    listed.write_text("Features\t: fp asimd bf16 i8mm\n")
    assert machine.cpu_features(listed) == ["asimd", "bf16", "i8mm"]
    assert machine.cpu_features(tmp_path / "none") == []


def test_gpus_are_those_that_the_driver_lists(tmp_path: Path) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'NVIDIA H100, 81559 MiB, 550.1'\n")
    tool.chmod(0o755)
    assert machine.nvidia_gpus(str(tool)) == ["NVIDIA H100, 81559 MiB, 550.1"]
    tool.write_text("#!/bin/sh\nexit 9\n")
    assert machine.nvidia_gpus(str(tool)) == []
    assert machine.nvidia_gpus(str(tmp_path / "none")) == []


def test_json_is_the_whole_examination() -> None:
    asked = subprocess.run(
        [str(SACCADE), "doctor", "--json", "--runtime", "onnxruntime"],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert asked.returncode == 0, asked.stderr
    found = Examination.model_validate(json.loads(asked.stdout))
    assert {model.name for model in found.models} == MODELS
    assert found.machine.packages["saccade"] is not None


def test_the_exit_code_is_1_where_the_server_would_not_start(tmp_path: Path) -> None:
    asked = CliRunner().invoke(app, ["doctor", "--repository", str(tmp_path)])
    assert isinstance(asked.exception, StartError)
    assert "1 thing(s) to mend" in str(asked.exception)
    assert "holds no model" in " ".join(asked.stdout.split())


def test_a_faster_choice_without_obstacle_that_is_not_taken_is_explained() -> None:
    exact = FASTEST_FIRST[1]
    why = examination._reason(exact, FASTEST_FIRST, {}, ("auto", "auto", "auto"))
    assert why == "vectors are all that it answers with, and fp32 keeps them exact"
