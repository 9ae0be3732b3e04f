"""Compiled models on disk: read back only when they are ours, whole, and made from the same."""

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.bundle import Bundle, File, digest_of
from service.errors import BadBundle
from service.settings import Settings
from service.worker.runtimes import cache
from service.worker.runtimes.base import Runtime
from service.worker.runtimes.cache import CompiledCache, Slot, machine, open_cache
from service.worker.runtimes.choose import FASTEST_FIRST, Choice, open_graph, open_runtime, supports
from tests.service.test_runtimes import (
    CANVAS,
    bundle_of,
    expected_scores,
    graph_of,
    pictures,
    write_graph,
)

HERE = [choice for choice in FASTEST_FIRST if supports(choice) is None]
MADE_BY = {"library": "1.0"}


def unchanged() -> None:
    """A bundle whose files are what they were."""


def slot_in(folder: Path, graph: str = "graph") -> Slot:
    return Slot(CompiledCache(folder), graph, unchanged)


def entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


def test_an_entry_comes_back_as_it_was_written(tmp_path: Path) -> None:
    slot = slot_in(tmp_path)
    assert slot.read(MADE_BY) is None
    slot.write(MADE_BY, b"compiled")
    assert slot.read(MADE_BY) == b"compiled"
    assert [path.stat().st_mode & 0o777 for path in entries(tmp_path)] == [0o600]


def test_another_graph_library_setting_or_machine_never_meets_the_entry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slot_in(tmp_path).write(MADE_BY | {"threads": 2}, b"compiled")
    assert slot_in(tmp_path, "changed graph").read(MADE_BY | {"threads": 2}) is None
    assert slot_in(tmp_path).read({"library": "1.1", "threads": 2}) is None
    assert slot_in(tmp_path).read(MADE_BY | {"threads": 3}) is None
    assert slot_in(tmp_path).read(MADE_BY) is None
    monkeypatch.setattr(cache, "machine", lambda: "another machine")
    assert slot_in(tmp_path).read(MADE_BY | {"threads": 2}) is None


def test_the_machine_is_told_by_the_features_of_its_processor(tmp_path: Path) -> None:
    old, new, silent = (tmp_path / name for name in ("old", "new", "silent"))
    old.write_text("model name\t: Some CPU\nflags\t\t: fpu avx2\nflags\t\t: fpu avx2\n")
    new.write_text("model name\t: Some CPU\nflags\t\t: fpu avx512f avx2\n")
    assert machine(old).endswith(" avx2 fpu")
    assert machine(new).endswith(" avx2 avx512f fpu")
    assert machine(silent) == machine(old).removesuffix("avx2 fpu")


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:10],
        lambda data: data[:-1],
        lambda data: data[:-1] + bytes([data[-1] ^ 1]),
        lambda data: bytes([data[0] ^ 1]) + data[1:],
        lambda data: data + b"\0",
    ],
)
def test_a_damaged_entry_is_thrown_away(
    tmp_path: Path, damage: Callable[[bytes], bytes], caplog: pytest.LogCaptureFixture
) -> None:
    slot = slot_in(tmp_path)
    slot.write(MADE_BY, b"compiled")
    (path,) = entries(tmp_path)
    path.write_bytes(damage(path.read_bytes()))
    assert slot.read(MADE_BY) is None
    assert entries(tmp_path) == []
    assert "is damaged; compiling anew" in caplog.text


def test_an_entry_under_the_name_of_another_is_thrown_away(tmp_path: Path) -> None:
    slot_in(tmp_path, "one").write(MADE_BY, b"compiled from one")
    (one,) = entries(tmp_path)
    slot_in(tmp_path, "two").write(MADE_BY, b"compiled from two")
    (two,) = set(entries(tmp_path)) - {one}
    one.replace(two)
    assert slot_in(tmp_path, "two").read(MADE_BY) is None


def test_an_entry_that_others_could_have_written_is_not_read(tmp_path: Path) -> None:
    slot = slot_in(tmp_path)
    slot.write(MADE_BY, b"compiled")
    (path,) = entries(tmp_path)
    path.chmod(0o620)
    assert slot.read(MADE_BY) is None
    path.chmod(0o600)
    assert slot.read(MADE_BY) == b"compiled"


def test_nothing_is_kept_once_the_files_have_changed_since_their_digests_were_read(
    tmp_path: Path,
) -> None:
    def changed() -> None:
        raise BadBundle("model.onnx has another sha256")

    with pytest.raises(BadBundle):
        Slot(CompiledCache(tmp_path), "graph", changed).write(MADE_BY, b"compiled")
    assert entries(tmp_path) == []


def test_what_was_not_used_for_longest_goes_first_and_files_of_others_stay(
    tmp_path: Path,
) -> None:
    (tmp_path / "notes.txt").write_bytes(bytes(500))
    slots = [Slot(CompiledCache(tmp_path, 300), name, unchanged) for name in "abcd"]
    for age, slot in enumerate(slots[:2]):
        slot.write(MADE_BY, bytes(60))  # 92 bytes with the digest
        for path in tmp_path.glob("*.compiled"):
            os.utime(path, (1000 + age, 1000 + age))
    assert slots[0].read(MADE_BY) == bytes(60)  # which makes "b" the oldest
    slots[2].write(MADE_BY, bytes(60))
    slots[3].write(MADE_BY, bytes(60))
    assert [slot.read(MADE_BY) is not None for slot in slots] == [True, False, True, True]
    assert (tmp_path / "notes.txt").stat().st_size == 500
    slots[1].write(MADE_BY, bytes(301))
    assert [slot.read(MADE_BY) is not None for slot in slots] == [True, False, True, True]


def test_folders_of_a_library_go_like_entries_and_the_one_in_use_stays(tmp_path: Path) -> None:
    (tmp_path / "tensorrt-of-somebody.txt").write_bytes(bytes(10))
    cache = CompiledCache(tmp_path, 300)
    cache.write("entry", bytes(60))
    old, used, new = (cache.subfolder(key) for key in ("old", "used", "new"))
    assert len({old, used, new}) == 3
    assert old.stat().st_mode & 0o777 == 0o700
    for age, folder in enumerate((old, used, new)):
        (folder / "engine").write_bytes(bytes(150))
        os.utime(folder, (1000 + age, 1000 + age))
    assert cache.subfolder("used") == used
    assert cache.read("entry") == bytes(60)
    assert [folder.exists() for folder in (old, used, new)] == [False, True, False]
    assert (used / "engine").stat().st_size == 150


def test_a_full_disk_costs_the_entry_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(self: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "replace", full)
    slot_in(tmp_path).write(MADE_BY, b"compiled")
    assert entries(tmp_path) == []
    assert "No space left" in caplog.text


def test_a_new_folder_is_for_the_user_alone(tmp_path: Path) -> None:
    found = open_cache(tmp_path / "deep" / "saccade")
    assert found is not None
    assert found.folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777, 0o1777])
def test_a_folder_that_others_can_write_is_refused_with_a_warning(
    tmp_path: Path, mode: int, caplog: pytest.LogCaptureFixture
) -> None:
    tmp_path.chmod(mode)
    assert open_cache(tmp_path) is None
    assert f"can be written by others (mode {mode:04o})" in caplog.text
    tmp_path.chmod(0o755)
    assert open_cache(tmp_path) is not None


def test_a_folder_made_in_a_volume_that_others_can_write_is_the_servers_own(tmp_path: Path) -> None:
    """As in Kubernetes, whose volumes belong to root and to a group."""
    if os.geteuid() == 0:
        os.chown(tmp_path, 12345, 12345)
    tmp_path.chmod(0o2777)
    assert open_cache(tmp_path) is None
    compiled = open_cache(tmp_path / "compiled")
    assert compiled is not None
    assert compiled.folder.stat().st_mode & 0o777 == 0o700
    slot = Slot(compiled, "graph", unchanged)
    slot.write(MADE_BY, b"compiled")
    assert slot.read(MADE_BY) == b"compiled"


def test_a_folder_of_somebody_else_is_refused_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    owner = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    assert open_cache(tmp_path) is None
    assert f"belongs to user {owner}, not to user {owner + 1}" in caplog.text


def test_where_no_folder_can_be_there_is_no_cache(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    assert open_cache(tmp_path / "file") is None
    assert open_cache(tmp_path / "file" / "below") is None
    assert caplog.text.count("no cache of compiled models in") == 2
    assert open_cache(None) is None


def test_the_folder_is_the_users_own_unless_one_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("SACCADE_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert Settings().cache_folder() == tmp_path / "saccade"
    monkeypatch.setenv("XDG_CACHE_HOME", "not/absolute")
    monkeypatch.setenv("HOME", "/home/ada")
    assert Settings().cache_folder() == Path("/home/ada/.cache/saccade")
    assert Settings(cache="off").cache_folder() is None
    assert Settings(cache="/var/cache/models").cache_folder() == Path("/var/cache/models")

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    assert Settings().cache_folder() is None


def test_what_holds_up_batches_to_be_kept_is_not_kept_while_they_run(tmp_path: Path) -> None:
    graph, slot = tmp_path / "model.onnx", slot_in(tmp_path)
    write_graph(graph)
    slot.cache.serving = True
    opened = open_graph(graph, Choice("openvino", "fp32"), slot=slot)
    assert entries(tmp_path) == [graph]
    slot.cache.serving = False
    assert facts(open_graph(graph, Choice("openvino", "fp32"), slot=slot)) == facts(opened)
    assert len(entries(tmp_path)) == 2
    slot.cache.serving = True
    graph.write_bytes(b"no graph at all")  # so that nothing can be compiled any more
    assert facts(open_graph(graph, Choice("openvino", "fp32"), slot=slot)) == facts(opened)


@pytest.mark.parametrize("choice", HERE, ids=str)
def test_a_graph_opened_again_is_the_one_kept_and_computes_the_same(
    tmp_path: Path, choice: Choice, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph, kept = tmp_path / "model.onnx", tmp_path / "cache"
    kept.mkdir()
    write_graph(graph)
    first = open_graph(graph, choice, slot=slot_in(kept))
    assert len(entries(kept)) == 1
    graph.write_bytes(b"no graph at all")  # so that nothing can be compiled any more
    second = open_graph(graph, choice, slot=slot_in(kept))
    assert facts(second) == facts(first)
    for count in (1, 3):
        images = pictures(count)
        one, other = first.run({"images": images}), second.run({"images": images})
        assert one.keys() == other.keys()
        assert all(np.array_equal(one[name], other[name]) for name in one)
        assert np.allclose(one["scores"], expected_scores(images), atol=0.02)


@pytest.mark.parametrize("choice", HERE, ids=str)
def test_bytes_that_the_library_refuses_are_compiled_anew(
    tmp_path: Path, choice: Choice, caplog: pytest.LogCaptureFixture
) -> None:
    graph, kept = tmp_path / "model.onnx", tmp_path / "cache"
    kept.mkdir()
    write_graph(graph)
    open_graph(graph, choice, slot=slot_in(kept))
    (entry,) = entries(kept)
    good = entry.read_bytes()

    class Refused(Slot):
        """Gives other bytes than were written, with whatever digest they need."""

        def read(self, made_by: Any) -> bytes:
            return b"compiled by nobody"

    runtime = open_graph(graph, choice, slot=Refused(CompiledCache(kept), "graph", unchanged))
    images = pictures(2)
    found = runtime.run({"images": images})["scores"]
    assert np.allclose(found, expected_scores(images), atol=0.02)
    assert "before" in caplog.text
    assert entry.exists()
    assert len(entry.read_bytes()) == len(good)


@pytest.mark.parametrize("choice", HERE, ids=str)
def test_a_cache_that_cannot_be_written_leaves_a_runtime_that_works(
    tmp_path: Path, choice: Choice
) -> None:
    graph = tmp_path / "model.onnx"
    write_graph(graph)
    runtime = open_graph(graph, choice, slot=slot_in(tmp_path / "absent"))
    images = pictures(2)
    assert np.allclose(
        runtime.run({"images": images})["scores"], expected_scores(images), atol=0.02
    )


@pytest.mark.skipif(find_spec("openvino") is None, reason="needs OpenVINO")
def test_opening_the_library_reports_nothing_to_its_makers() -> None:
    source = "import service.worker.runtimes.openvino, sys; print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", source], capture_output=True, check=True)
    modules = found.stdout.decode().split()
    assert "openvino.properties" in modules
    assert "openvino_telemetry" not in modules


def test_precisions_are_kept_apart(tmp_path: Path) -> None:
    choices = [choice for choice in HERE if choice.runtime == "openvino"]
    graph, kept = tmp_path / "model.onnx", tmp_path / "cache"
    kept.mkdir()
    write_graph(graph)
    for _ in range(2):
        opened = [open_graph(graph, choice, slot=slot_in(kept)) for choice in choices]
        assert [runtime.precision for runtime in opened] == [c.precision for c in choices]
    assert len(entries(kept)) == len(choices)


def test_the_key_of_a_bundle_holds_the_digest_of_every_file_and_the_graph(tmp_path: Path) -> None:
    kept = tmp_path / "cache"
    found = open_cache(kept)
    write_graph(tmp_path / "model.onnx")
    data = b"weights of one export", b"weights of the next one"
    counts = []
    for weights in (data[0], data[0], data[1]):
        (tmp_path / "weights.bin").write_bytes(weights)
        bundle = with_digests(bundle_of(tmp_path, (HERE[0],), graph_of(), graph_of("explain")))
        runtime = open_runtime(bundle, "serve", CANVAS, HERE[0], cache=found)
        images = pictures(1)
        scores = runtime.run({"images": images})["scores"]
        assert np.allclose(scores, expected_scores(images), atol=0.02)
        counts.append(len(entries(kept)))
    assert counts == [1, 1, 2]


def with_digests(bundle: Bundle) -> Bundle:
    """The bundle with its files as they lie on disk now."""
    files = {
        path.name: File(sha256=digest_of(path), size_bytes=path.stat().st_size)
        for path in (bundle.folder / "model.onnx", bundle.folder / "weights.bin")
    }
    manifest = bundle.manifest.model_copy(update={"files": files})
    return bundle.model_copy(update={"manifest": manifest})


def facts(runtime: Runtime) -> Any:
    return runtime.name, runtime.precision, runtime.device, runtime.inputs, runtime.outputs
