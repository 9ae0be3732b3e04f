"""``saccade export`` from the outside, and what an export leaves on disk."""

import errno
import json
import os
import re
import resource
import shutil
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from export import build, cli
from export.build import export_bundle
from export.cli import export
from export.plan import Wishes
from export.proof import Subject
from export.repository import next_version, publish, replace_manifest, unfinished_version
from service.bundle import Accuracy, Bundle, digest_of, load_bundle, load_repository
from service.errors import StartError
from service.worker.runtimes.choose import Choice, supports


def saccade_export(*arguments: str | Path) -> Result:
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(export)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def sentence(result: Result) -> str:
    """The error; exactly one, and no traceback."""
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit)
    assert "Traceback" not in result.output
    (found,) = re.findall(r"^error: .*$", result.stderr, re.MULTILINE)
    return str(found)


def test_a_preprocessor_for_another_size_than_the_network_has_to_be_decided(
    references: dict[str, Any], tmp_path: Path
) -> None:
    folder = shutil.copytree(references["vit"].folder, tmp_path / "mismatch")
    path = folder / "preprocessor_config.json"
    config = json.loads(path.read_text()) | {"size": {"height": 224, "width": 224}}
    path.write_text(json.dumps(config))
    said = sentence(saccade_export(folder, "--out", tmp_path / "repository"))
    assert "224x224" in said
    assert "64x64" in said
    assert "--canvas" in said


def test_the_manifest_says_what_the_bundle_is(
    bundles: dict[str, Bundle], references: dict[str, Any]
) -> None:
    bundle = bundles["vit"]
    manifest = bundle.manifest
    assert (manifest.name, manifest.version, manifest.family) == ("vit", "1", "vit")
    assert manifest.tasks == ["classify", "attention", "embed"]
    assert [str(canvas) for canvas in manifest.canvases] == ["64x64", "64x96"]
    assert [label.name for label in manifest.labels] == [f"class {i}" for i in range(5)]
    assert manifest.activation == "softmax"
    assert manifest.geometry.placement == "stretch"
    assert manifest.explain is not None
    raw, rollout = manifest.explain.kinds
    assert [(layer.index, layer.heads, layer.served) for layer in raw.layers] == [
        (0, 3, None),
        (1, 3, "attention"),
    ]
    assert [(layer.output, layer.stride) for layer in rollout.layers] == [("rollout", 16)]
    assert manifest.explain.prefix_tokens == ["class"]
    provenance = manifest.provenance
    assert provenance.source == "vit"  # not where it lay on the machine that exported it
    assert provenance.sha256 == digest_of(references["vit"].folder / "model.safetensors")
    assert provenance.license == "apache-2.0"
    assert provenance.architecture == "ViTForImageClassification"
    assert {"torch", "onnx", "onnxruntime", "openvino"} <= provenance.exporter.keys()
    model = references["vit"].model
    assert manifest.parameters == sum(p.numel() for p in model.parameters())
    assert manifest.macs > manifest.parameters
    bundle.verify()


def test_every_runtime_is_proven_on_every_canvas(bundles: dict[str, Bundle], recorder: Any) -> None:
    manifest = bundles["vit"].manifest
    expected = [
        choice
        for choice in (Choice("openvino", "fp32"), Choice("onnxruntime", "fp32"))
        if manifest.proven(choice.runtime, choice.precision)
    ]
    assert len(expected) == 2
    if supports(Choice("openvino", "bf16")) is None:
        assert manifest.proven("openvino", "bf16")
        assert recorder.notices == []
    for parity in manifest.parity:
        assert parity.images >= 6
        if parity.precision == "fp32":
            assert parity.max_error <= 1e-5
            assert parity.explain_error is not None
            assert parity.explain_error <= 1e-5
        else:
            assert parity.explain_error is None
            assert 1e-7 < parity.max_error < 0.05


def test_a_distilled_deit_and_a_headless_dinov2(bundles: dict[str, Bundle]) -> None:
    deit, dinov2 = bundles["deit"].manifest, bundles["dinov2"].manifest
    assert deit.explain is not None
    assert deit.explain.prefix_tokens == ["class", "distillation"]
    assert deit.geometry.placement == "crop"
    assert {parity.precision for parity in deit.parity} == {"fp32"}
    assert (dinov2.name, dinov2.tasks, dinov2.labels) == ("features", ["embed"], [])
    assert dinov2.activation is None
    assert dinov2.explain is None
    assert [graph.kind for graph in dinov2.graphs] == ["serve"]
    assert {parity.top1_agreement for parity in dinov2.parity} == {None}


def test_a_second_export_is_version_2_with_the_same_bytes(
    bundles: dict[str, Bundle], references: dict[str, Any], repository: Path, tmp_path: Path
) -> None:
    out = tmp_path / "repository"
    shutil.copytree(bundles["dinov2"].folder, out / "features" / "1")
    folder = references["dinov2"].folder
    result = saccade_export(
        folder, "--out", out, "--name", "features", "--task", "embed", "--precision", "fp32"
    )
    assert result.exit_code == 0, result.output
    second = load_bundle(out / "features" / "2")
    assert second.manifest.files == bundles["dinov2"].manifest.files
    assert {parity.precision for parity in second.manifest.parity} == {"fp32"}
    assert load_repository(out)[0].manifest.version == "2"
    assert sorted(path.name for path in out.iterdir()) == ["features"]
    assert "onnxruntime fp32" in result.stdout
    assert f"written to {out / 'features' / '2'}" in result.stdout
    assert "tracing model.onnx" in result.stderr


def test_versions_count_on_from_the_highest_number(tmp_path: Path) -> None:
    assert next_version(tmp_path, "vit") == "1"
    for version in ("2", "10", "beta"):
        (tmp_path / "vit" / version).mkdir(parents=True)
    assert next_version(tmp_path, "vit") == "11"


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, StartError("too far off"), OSError])
def test_an_interrupted_export_leaves_nothing(
    references: dict[str, Any],
    bundles: dict[str, Bundle],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    interruption: Any,
) -> None:
    def write_half(folder: Path, *_: Any) -> None:
        shutil.copy(bundles["vit"].folder / "model.onnx", folder)
        assert list(tmp_path.glob("*/*/manifest.json")) == []
        raise interruption

    monkeypatch.setattr(build, "_write_graphs", write_half)
    with pytest.raises((KeyboardInterrupt, StartError, OSError)):
        export_bundle(references["vit"].folder, tmp_path)
    assert list(tmp_path.rglob("*")) == []


def test_a_full_disk_is_one_sentence_and_leaves_no_half_bundle(
    references: dict[str, Any], tmp_path: Path
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))  # the weights have four times that
    try:
        result = saccade_export(references["vit"].folder, "--out", tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "File too large; nothing was left behind. Make room there" in sentence(result)
    assert list(tmp_path.rglob("*")) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_fills_up_with_the_manifest_leaves_the_bundle_as_it_was(
    bundles: dict[str, Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    folder = shutil.copytree(bundles["vit"].folder, tmp_path / "vit" / "1")
    bundle, before = load_bundle(folder), sorted(path.name for path in folder.iterdir())
    changed = bundle.manifest.model_copy(update={"accuracy": []})

    def write_half(self: Path, text: str, encoding: str) -> int:
        self.write_bytes(text[:100].encode())
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "write_text", write_half)
    with pytest.raises(StartError, match=re.escape(os.strerror(number))):
        replace_manifest(bundle, changed)
    assert sorted(path.name for path in folder.iterdir()) == before
    assert load_bundle(folder) == bundle
    with (
        pytest.raises(StartError, match=re.escape(os.strerror(number))),
        unfinished_version(tmp_path, "vit", "2") as unfinished,
    ):
        publish(unfinished, tmp_path, changed)
    assert [path.name for path in tmp_path.iterdir()] == ["vit"]


def test_an_existing_version_is_not_overwritten(
    references: dict[str, Any], bundles: dict[str, Bundle], repository: Path
) -> None:
    before = digest_of(bundles["vit"].folder / "manifest.json")
    result = saccade_export(references["vit"].folder, "--out", repository, "--version", "1")
    assert "exists; name another version" in sentence(result)
    assert digest_of(bundles["vit"].folder / "manifest.json") == before


def test_a_version_that_appears_meanwhile_is_not_overwritten(
    bundles: dict[str, Bundle], tmp_path: Path
) -> None:
    manifest = bundles["vit"].manifest
    with unfinished_version(tmp_path, "vit", "1") as folder:
        (tmp_path / "vit" / "1").mkdir(parents=True)
        with pytest.raises(StartError, match="exists"):
            publish(folder, tmp_path, manifest)
    assert [path.name for path in tmp_path.rglob("*")] == ["vit", "1"]


def test_accuracy_is_written_down(
    references: dict[str, Any],
    bundles: dict[str, Bundle],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    accuracy = Accuracy(
        dataset="held out",
        metric="top-1",
        value=0.9,
        images=10,
        runtime="onnxruntime",
        precision="fp32",
    )
    monkeypatch.setattr(build, "_write_graphs", lambda folder, views, progress: _copied(folder))
    monkeypatch.setattr(build, "prove", lambda *_: [])

    def _copied(folder: Path) -> Any:
        for name in bundles["dinov2"].manifest.files:
            shutil.copy(bundles["dinov2"].folder / name, folder)
        graphs = bundles["dinov2"].manifest.graphs
        return graphs, [Subject(graph, references["dinov2"].model) for graph in graphs]

    bundle = export_bundle(
        references["dinov2"].folder, tmp_path, wishes=Wishes(tasks=["embed"]), accuracy=[accuracy]
    )
    assert bundle.manifest.accuracy == [accuracy]


def test_a_checkpoint_without_preprocessor_needs_one_named(
    references: dict[str, Any], tmp_path: Path
) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(references["vit"].folder, bare)
    file = tmp_path / "mine.json"
    (bare / "preprocessor_config.json").rename(file)
    out = tmp_path / "out"
    assert "name one with --preprocessor FILE" in sentence(saccade_export(bare, "--out", out))
    named = json.loads(file.read_text())
    file.write_text(json.dumps(named | {"do_paint_red": True}))
    result = saccade_export(bare, "--out", out, "--preprocessor", file)
    assert "the preprocessor cannot be reproduced: do_paint_red" in sentence(result)
    file.write_text("no json")
    result = saccade_export(bare, "--out", out, "--preprocessor", file)
    assert "cannot be read as JSON" in sentence(result)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--canvas", "65x64"], "canvas 65x64 is not a multiple of the patch size 16"),
        (["--name", "a/b"], "name 'a/b' is not allowed"),
        (["--version", ".."], "version '..' is not allowed"),
        (["--revision", "main"], "is a local folder, which has no revisions"),
    ],
)
def test_a_wish_that_cannot_be_met_is_one_sentence(
    references: dict[str, Any], tmp_path: Path, arguments: list[str], expected: str
) -> None:
    result = saccade_export(references["vit"].folder, "--out", tmp_path, *arguments)
    assert expected in sentence(result)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def untraced(monkeypatch: pytest.MonkeyPatch, bundles: dict[str, Bundle]) -> None:
    """Exports of "vit" copy the graphs of its bundle, and prove nothing."""

    def copied(folder: Path, *_: Any) -> Any:
        for name in bundles["vit"].manifest.files:
            shutil.copy(bundles["vit"].folder / name, folder)
        return bundles["vit"].manifest.graphs, []

    monkeypatch.setattr(build, "_write_graphs", copied)
    monkeypatch.setattr(build, "prove", lambda *_: [])


def nameless(folder: Path, tmp_path: Path) -> Path:
    """The checkpoint with its classes counted and not named."""
    copy = shutil.copytree(folder, tmp_path / "nameless")
    config = json.loads((copy / "config.json").read_text())
    del config["id2label"], config["label2id"]
    (copy / "config.json").write_text(json.dumps(config | {"num_labels": 5}))
    return copy


@pytest.mark.usefixtures("untraced")
def test_classes_without_names_are_told_and_can_be_named(
    references: dict[str, Any], tmp_path: Path
) -> None:
    folder, out = nameless(references["vit"].folder, tmp_path), tmp_path / "out"
    result = saccade_export(folder, "--out", out)
    assert result.exit_code == 0, result.output
    assert "does not name its classes, so answers say LABEL_0 and the like" in result.stderr
    assert load_bundle(out / "nameless" / "1").manifest.labels[3].name == "LABEL_3"
    file = tmp_path / "classes.txt"
    file.write_text("ant\nbee\ncat\ndog\neel\n")
    result = saccade_export(folder, "--out", out, "--labels", file)
    assert result.exit_code == 0, result.output
    assert "LABEL_" not in result.stderr
    names = [label.name for label in load_bundle(out / "nameless" / "2").manifest.labels]
    assert names == ["ant", "bee", "cat", "dog", "eel"]


def test_labels_that_do_not_fit_the_model_are_one_sentence(
    references: dict[str, Any], tmp_path: Path
) -> None:
    file, out = tmp_path / "classes.txt", tmp_path / "out"
    file.write_text("ant\nbee\n")
    result = saccade_export(references["vit"].folder, "--out", out, "--labels", file)
    assert "classes.txt names 2 classes; the model has 5" in sentence(result)
    result = saccade_export(references["dinov2"].folder, "--out", out, "--labels", file)
    assert "Dinov2Model has no classes to be named" in sentence(result)


def test_stuff_is_given_several_times_or_in_a_file(
    references: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def taken(*_: Any, wishes: Wishes, **__: Any) -> None:
        asked.append(wishes.stuff)
        raise StartError("enough")

    monkeypatch.setattr(cli, "export_bundle", taken)
    file = tmp_path / "stuff.txt"
    file.write_text("road, route\nsky\n")
    for arguments in ([], ["--stuff", ""], ["--stuff", f"@{file}", "--stuff", "3,sea"]):
        sentence(saccade_export(references["vit"].folder, "--out", tmp_path, *arguments))
    assert asked == [None, [""], ["road, route", "sky", "3,sea"]]
    missing = saccade_export(
        references["vit"].folder, "--out", tmp_path, "--stuff", f"@{tmp_path / 'none.txt'}"
    )
    assert "none.txt cannot be read as text" in sentence(missing)


def test_a_task_that_the_model_cannot_do_is_named(
    references: dict[str, Any], tmp_path: Path
) -> None:
    folder = references["dinov2"].folder
    result = saccade_export(folder, "--out", tmp_path, "--task", "classify")
    assert "Dinov2Model cannot do classify; it can do attention, embed" in sentence(result)


def test_a_folder_that_is_no_checkpoint_is_named(tmp_path: Path) -> None:
    assert "config.json" in sentence(saccade_export(tmp_path, "--out", tmp_path / "out"))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--canvas", "64"], "'64' is not HEIGHTxWIDTH"),
        (["--canvas", "0x64"], "'0x64' is not HEIGHTxWIDTH"),
        (["--precision", "fp13"], "'fp13' is not one of"),
        (["--precision", "auto", "--precision", "fp32"], "auto cannot be joined with others"),
        (["--images", "nowhere"], "does not exist"),
    ],
)
def test_a_flag_that_makes_no_sense_ends_with_code_2(
    tmp_path: Path, arguments: list[str], expected: str
) -> None:
    result = saccade_export(tmp_path, "--out", tmp_path, *arguments)
    assert result.exit_code == 2
    assert expected in re.sub(r"[\s│]+", " ", result.output)
