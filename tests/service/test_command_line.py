"""The command line: examples that are right, completion, tables of models."""

import io
import json
import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from service.bundle import Bundle, Manifest, Parity, load_repository
from service.catalogue import describe, list_bundle, proofs, tabulate
from service.cli import app
from service.errors import BadBundle
from service.geometry import Size
from service.settings import DEMO_REPOSITORY
from tests.conftest import SACCADE

ELSEWHERE = {"export"}
"""Commands whose options are another package's; their help is shown by that."""


def commands(group: Any = None, path: str = "saccade") -> dict[str, Any]:
    group = group or typer.main.get_command(app)
    found: dict[str, Any] = {}
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            found |= commands(command, f"{path} {name}")
        else:
            found[f"{path} {name}"] = command
    return found


def demo(name: str) -> Bundle:
    return next(b for b in load_repository(DEMO_REPOSITORY) if b.manifest.name == name)


def printed(renderable: Any) -> list[str]:
    written = io.StringIO()
    Console(width=80, file=written).print(renderable)
    return written.getvalue().splitlines()


def complete(line: str) -> list[str]:
    words = shlex.split(line) + ([""] if line.endswith(" ") else [])
    asked = {"COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    done = subprocess.run(
        [str(SACCADE)],
        env=os.environ | asked | {"_SACCADE_COMPLETE": "complete_bash"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.parametrize("path", sorted(commands().keys() - {"saccade export"}))
def test_the_help_of_a_command_ends_with_examples_whose_flags_exist(path: str) -> None:
    command = commands()[path]
    shown = CliRunner().invoke(app, [*path.split()[1:], "--help"], env={"COLUMNS": "200"})
    assert shown.exit_code == 0
    lines = [line.strip() for line in shown.stdout.partition("Examples:")[2].splitlines()]
    examples = [line for line in lines if line]
    assert examples
    known = {option for parameter in command.params for option in parameter.opts}
    for example in examples:
        words = [word for word in shlex.split(example) if not word.startswith("SACCADE_")]
        assert example.startswith(path) or "SACCADE_" in example
        assert {word for word in words if word.startswith("--")} <= known
        assert len(example) <= 92


def test_the_help_of_export_has_examples_too() -> None:
    pytest.importorskip("torch")
    shown = CliRunner().invoke(app, ["export", "--help"], env={"COLUMNS": "200"})
    examples = shown.stdout.partition("Examples:")[2]
    assert "saccade export " in examples
    for flag in re.findall(r"--\w+", examples):
        assert flag in shown.stdout.partition("Examples:")[0]


def test_defaults_in_brackets_are_not_taken_for_markup() -> None:
    for path, command in commands().items():
        for parameter in command.params:
            text = getattr(parameter, "help", None) or ""
            for default in re.findall(r"\[default: ([^\]]+)\]", text):
                shown = CliRunner().invoke(
                    app, [*path.split()[1:], "--help"], env={"COLUMNS": "300"}
                )
                assert f"[default: {default}]" in shown.stdout


def test_commands_models_and_values_are_completed() -> None:
    assert complete("saccade do") == ["doctor"]
    assert complete(f"saccade models show {DEMO_REPOSITORY} s") == ["swin-scenes"]
    assert complete(f"saccade models show {DEMO_REPOSITORY}/nowhere s") == []
    assert complete("saccade serve --precision b") == ["bf16"]
    assert complete("saccade serve --decode-isolation ") == ["auto", "all", "off"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_shell_is_told_how_to_complete(shell: str) -> None:
    done = subprocess.run(
        [str(SACCADE)],
        env=os.environ | {"_SACCADE_COMPLETE": f"source_{shell}"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert f"_SACCADE_COMPLETE=complete_{shell}" in done.stdout


def test_the_list_has_sizes_precisions_and_measured_errors_in_eighty_columns() -> None:
    lines = printed(tabulate([list_bundle(demo("vit-scenes"))]))
    first = next(line for line in lines if "vit-scenes 1" in line)
    size = sum(path.stat().st_size for path in (DEMO_REPOSITORY / "vit-scenes" / "1").iterdir())
    size -= (DEMO_REPOSITORY / "vit-scenes" / "1" / "manifest.json").stat().st_size
    bf16 = next(p for p in demo("vit-scenes").manifest.parity if p.precision == "bf16")
    assert first.split()[2:] == [
        *("classify", "128x128", f"{size / 1e6:.1f}", "openvino", "bf16"),
        *(f"{bf16.max_error:.1e}", "100.0", "%"),
    ]
    assert any(line.strip().startswith("1.3 M, 0.09 GMACs") for line in lines)


def test_the_list_as_json_holds_the_same_figures() -> None:
    shown = CliRunner().invoke(app, ["models", "list", str(DEMO_REPOSITORY), "--json"])
    listed = {each["name"]: each for each in json.loads(shown.stdout)}
    assert listed.keys() == {"detr-scenes", "mask2former-scenes", "swin-scenes", "vit-scenes"}
    for name, each in listed.items():
        assert each == list_bundle(demo(name)).model_dump()


def test_over_canvases_the_worst_figure_counts() -> None:
    def measured(side: int, error: float, top1: float, boxes: float | None) -> Parity:
        return Parity(
            runtime="openvino",
            precision="bf16",
            canvas=Size(height=side, width=side),
            images=8,
            max_error=error,
            rms_error=error / 10,
            cosine=1,
            top1_agreement=top1,
            box_agreement=boxes,
        )

    (proof,) = proofs([measured(32, 0.1, 0.75, None), measured(64, 0.2, 1.0, 0.5)])
    assert (proof.max_error, proof.agreement) == (0.2, 0.5)


def test_a_model_without_measured_agreement_shows_none() -> None:
    listed = list_bundle(demo("vit-scenes")).model_copy(update={"proofs": []})
    assert "nothing" in " ".join(printed(tabulate([listed])))


def test_a_model_is_shown_with_its_labels_files_and_accuracy() -> None:
    bundle = demo("detr-scenes")
    text = "\n".join(printed(describe(bundle)))
    assert "8: circle, square, triangle" in text
    assert "weights.bin (5.3 MB)" in text
    for parity in bundle.manifest.parity:
        assert f"{parity.max_error:.1e}" in text
    for accuracy in bundle.manifest.accuracy:
        assert f"{accuracy.value:.4f}" in text


def test_a_model_as_json_is_its_manifest() -> None:
    shown = CliRunner().invoke(
        app, ["models", "show", str(DEMO_REPOSITORY), "swin-scenes", "--json"]
    )
    assert Manifest.model_validate_json(shown.stdout) == demo("swin-scenes").manifest


def test_a_model_that_is_not_there_is_answered_with_those_that_are(tmp_path: Path) -> None:
    asked = CliRunner().invoke(app, ["models", "show", str(DEMO_REPOSITORY), "vgg"])
    assert isinstance(asked.exception, BadBundle)
    assert "there is no model 'vgg'" in str(asked.exception)
    assert "vit-scenes" in str(asked.exception)
