"""Bundles on disk: what is whole is read, and what is not is refused with a sentence."""

import json
from pathlib import Path
from typing import Any

import pytest

from service.bundle import Manifest, load_bundle, load_repository
from service.errors import BadBundle
from service.geometry import Size
from tests.service.sample_bundle import CLASSES, FILES, manifest_of, write_bundle


def refusal_of(folder: Path) -> str:
    with pytest.raises(BadBundle) as refused:
        load_bundle(folder).verify()
    return str(refused.value)


def test_a_whole_bundle_loads_and_verifies(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path, manifest_of())
    bundle = load_bundle(folder)
    bundle.verify()
    assert bundle.manifest.canvases == [Size(height=8, width=8)]
    graph = bundle.manifest.graph("serve", Size(height=8, width=8), "bf16")
    assert graph is not None
    assert bundle.path(graph) == folder / "model.onnx"


def test_writing_a_manifest_and_reading_it_again_gives_the_same(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path, manifest_of())
    manifest = load_bundle(folder).manifest
    (folder / "manifest.json").write_text(manifest.model_dump_json())
    assert load_bundle(folder).manifest == manifest


def test_a_flipped_byte_is_refused_with_both_digests(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path, manifest_of())
    path = folder / "model.onnx"
    path.write_bytes(bytes([FILES["model.onnx"][0] ^ 1]) + FILES["model.onnx"][1:])
    said = refusal_of(folder)
    assert str(path) in said
    assert manifest_of()["files"]["model.onnx"]["sha256"] in said
    assert "has sha256" in said


def test_a_truncated_file_is_refused_with_both_sizes(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path, manifest_of())
    path = folder / "explain.onnx"
    path.write_bytes(FILES["explain.onnx"][:-4])
    size = len(FILES["explain.onnx"])
    assert f"{path} has {size - 4} bytes; manifest.json expects {size}" in refusal_of(folder)


def test_a_missing_graph_is_refused_by_name(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path, manifest_of())
    (folder / "model.onnx").unlink()
    said = refusal_of(folder)
    assert f"{folder / 'model.onnx'} is missing" in said
    assert f"{len(FILES['model.onnx'])} bytes" in said


@pytest.mark.parametrize("found", [2, 0, "1", None])
def test_another_schema_version_is_refused_with_both_versions(tmp_path: Path, found: Any) -> None:
    folder = write_bundle(tmp_path, manifest_of(schema_version=found))
    said = refusal_of(folder)
    assert f"{folder / 'manifest.json'} has schema_version {found!r}" in said
    assert "reads version 1" in said


@pytest.mark.parametrize("content", [b"{", b"", b"\xff\xfe", b"[" * 100_000])
def test_what_is_not_json_is_refused(tmp_path: Path, content: bytes) -> None:
    folder = write_bundle(tmp_path, manifest_of())
    (folder / "manifest.json").write_bytes(content)
    assert f"{folder / 'manifest.json'} is not JSON" in refusal_of(folder)


def test_json_that_is_no_object_is_refused(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path, manifest_of())
    (folder / "manifest.json").write_text("[]")
    assert "schema_version None" in refusal_of(folder)


def test_a_manifest_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path, manifest_of())
    (folder / "manifest.json").unlink()
    assert f"{folder / 'manifest.json'} is missing" in refusal_of(folder)
    (folder / "manifest.json").mkdir()
    assert f"{folder / 'manifest.json'} cannot be read" in refusal_of(folder)


@pytest.mark.parametrize(("name", "version"), [("other", "1"), ("tiny", "2")])
def test_a_bundle_in_the_wrong_folder_is_refused_with_both_names(
    tmp_path: Path, name: str, version: str
) -> None:
    folder = write_bundle(tmp_path, manifest_of())
    (folder / "manifest.json").write_text(json.dumps(manifest_of(name, version)))
    said = refusal_of(folder)
    assert f"{name!r} version {version!r}" in said
    assert "lies in tiny/1" in said


@pytest.mark.parametrize(
    ("changes", "where", "what"),
    [
        ({"colour": "red"}, "colour", "found 'red'"),
        ({"tasks": ["classify", "sing"]}, "tasks.1", "found 'sing'"),
        ({"tasks": []}, "tasks", "at least 1"),
        ({"parameters": 0}, "parameters", "found 0"),
        ({"name": "../up"}, "name", "found '../up'"),
        ({"files": {"../model.onnx": {"sha256": "0" * 64, "size_bytes": 1}}}, "files", "../model"),
        ({"files": {"model.onnx": {"sha256": "0" * 63, "size_bytes": 1}}}, "files", "0000"),
        ({"geometry": {}}, "geometry", "required"),
    ],
)
def test_a_wrong_field_is_refused_by_its_place(
    tmp_path: Path, changes: dict[str, Any], where: str, what: str
) -> None:
    folder = write_bundle(tmp_path, manifest_of())
    (folder / "manifest.json").write_text(json.dumps(manifest_of() | changes))
    said = refusal_of(folder)
    assert said.startswith(f"{folder / 'manifest.json'}: {where}")
    assert what in said


def test_a_graph_without_a_digest_is_refused_by_name(tmp_path: Path) -> None:
    files = manifest_of()["files"]
    del files["explain.onnx"]
    folder = write_bundle(tmp_path, manifest_of(files=files))
    said = refusal_of(folder)
    assert str(folder / "manifest.json") in said
    assert "explain.onnx" in said
    assert "model.onnx" not in said


def graphs_with(file: str, output: str, *shape: int) -> list[dict[str, Any]]:
    """The sample's graphs with one output of one file in another shape, or without it."""
    graphs: list[dict[str, Any]] = manifest_of()["graphs"]
    for graph in graphs:
        if graph["file"] == file:
            graph["outputs"] = [
                tensor | ({"shape": list(shape)} if tensor["name"] == output else {})
                for tensor in graph["outputs"]
                if shape or tensor["name"] != output
            ]
    return graphs


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"labels": []}, ["'classify'", "no labels"]),
        ({"labels": manifest_of()["labels"][:2]}, ["2 labels", f"'scores' is [-1, {CLASSES}]"]),
        ({"labels": [{"id": 1, "name": label} for label in "abc"]}, ["label id twice"]),
        ({"explain": None}, ["'attention'", "'explain'"]),
        ({"graphs": manifest_of()["graphs"][1:]}, ["no serving graph"]),
        ({"graphs": manifest_of()["graphs"][:1]}, ["'attention'", "explain graph"]),
        ({"graphs": graphs_with("model.onnx", "scores")}, ["'classify'", "model.onnx", "scores"]),
        (
            {"graphs": graphs_with("model.onnx", "embedding")},
            ["'embed'", "model.onnx", "embedding"],
        ),
        (
            {"graphs": graphs_with("model.onnx", "attention")},
            ["'attention'", "model.onnx", "attention"],
        ),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(
    tmp_path: Path, changes: dict[str, Any], says: list[str]
) -> None:
    folder = write_bundle(tmp_path, manifest_of(**changes))
    said = refusal_of(folder)
    assert str(folder / "manifest.json") in said
    assert [part for part in says if part not in said] == [], said


def test_the_newest_version_is_the_greatest_number(tmp_path: Path) -> None:
    for version in ("9", "10", "2"):
        write_bundle(tmp_path, manifest_of("a", version))
    for version in ("1.9.9", "1.10.0", "1.10.0-rc1", "1.2"):
        write_bundle(tmp_path, manifest_of("b", version))
    write_bundle(tmp_path, manifest_of("c", "1"))
    found = [(b.manifest.name, b.manifest.version) for b in load_repository(tmp_path)]
    assert found == [("a", "10"), ("b", "1.10.0"), ("c", "1")]


def test_a_version_folder_without_a_manifest_does_not_exist(tmp_path: Path) -> None:
    write_bundle(tmp_path, manifest_of("a", "1"))
    unfinished = write_bundle(tmp_path, manifest_of("a", "2"))
    (unfinished / "manifest.json").unlink()
    (tmp_path / "b" / "1").mkdir(parents=True)
    (tmp_path / "notes.txt").write_text("not a model")
    found = [(b.manifest.name, b.manifest.version) for b in load_repository(tmp_path)]
    assert found == [("a", "1")]


def test_a_folder_that_is_no_version_is_refused_and_not_a_crash(tmp_path: Path) -> None:
    write_bundle(tmp_path, manifest_of("a", "1"))
    folder = write_bundle(tmp_path, manifest_of("a", "2"))
    folder.rename(folder.with_name("²"))
    assert load_repository(tmp_path)[0].manifest.version == "1"


def test_an_empty_and_a_missing_repository_are_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(BadBundle, match=r"holds no model.*saccade export") as refused:
        load_repository(tmp_path)
    assert str(tmp_path) in str(refused.value)
    with pytest.raises(BadBundle, match="is no folder") as refused:
        load_repository(tmp_path / "absent")
    assert str(tmp_path / "absent") in str(refused.value)


def test_a_pair_is_proven_only_when_every_canvas_was_measured() -> None:
    canvases = [{"height": 8, "width": 8}, {"height": 8, "width": 16}]
    graphs = [manifest_of()["graphs"][0] | {"canvas": canvas} for canvas in canvases]
    parity = [
        {
            "runtime": runtime,
            "precision": "fp32",
            "canvas": canvas,
            "images": 1,
            "max_error": 0,
            "rms_error": 0,
            "cosine": 1,
        }
        for runtime, canvas in [
            ("openvino", canvases[0]),
            ("openvino", canvases[1]),
            ("onnxruntime", canvases[0]),
        ]
    ]
    manifest = Manifest.model_validate(manifest_of(graphs=graphs, parity=parity))
    assert manifest.proven("openvino", "fp32")
    assert not manifest.proven("onnxruntime", "fp32")
    assert not manifest.proven("openvino", "bf16")


def test_reduced_precisions_fall_back_to_the_fp32_graph_and_never_to_another_canvas() -> None:
    first = manifest_of()["graphs"][0]
    manifest = Manifest.model_validate(
        manifest_of(graphs=[first, first | {"file": "explain.onnx", "precision": "int8"}])
    )
    canvas = Size(height=8, width=8)
    for precision, file in (("fp32", "model.onnx"), ("int8", "explain.onnx")):
        graph = manifest.graph("serve", canvas, precision)  # type: ignore[arg-type]
        assert graph is not None
        assert graph.file == file
    fallback = manifest.graph("serve", canvas, "bf16")
    assert fallback is not None
    assert fallback.file == "model.onnx"
    assert manifest.graph("serve", Size(height=8, width=16), "fp32") is None
    assert manifest.graph("explain", canvas, "fp32") is None
