"""A bundle is whole in the repository or not there, whatever comes and whoever else is at it."""

import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from service.distribution.install import Wish, install
from service.distribution.remote import Interrupted, at_most
from service.errors import BadBundle, TransferFailed
from tests.distribution.command_line import (
    contents,
    digest_of_manifest,
    make_bundle,
    pull,
    saccade,
    whole,
)
from tests.service.sample_bundle import FILES, manifest_of


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.distribution.remote.WAITS_S", (0.0, 0.0, 0.0))


class Fake:
    """A bundle of some bytes, whose connection breaks after each piece where it is told to."""

    place = "far away"

    def __init__(self, files: dict[str, bytes], piece: int | None = None) -> None:
        self.files = files
        self.piece = piece
        self.asked: list[tuple[str, int]] = []

    def stream(self, name: str, offset: int) -> Iterator[bytes]:
        self.asked.append((name, offset))
        rest = self.files[name][offset:]
        if self.piece is None or name == "manifest.json":
            yield rest
        else:
            yield rest[: self.piece]
            if len(rest) > self.piece:
                raise Interrupted("the line broke")


def fake(piece: int | None = None, /, **changes: Any) -> Fake:
    files = {path.rpartition("/")[2]: data for path, data in whole().items()}
    return Fake(
        {**files, **{name.replace("_", "."): data for name, data in changes.items()}}, piece
    )


def fetch(remote: Fake, wish: Wish) -> str:
    """The digest of what was installed."""
    return install(remote, wish, lambda _: _nobody).digest


def test_a_repository_is_pulled_with_the_newest_version_of_each_model(tmp_path: Path) -> None:
    for name, version in (("a", "9"), ("a", "10"), ("b", "1")):
        make_bundle(tmp_path / "far", name, version)

    said = pull(str(tmp_path / "far"), tmp_path / "near")

    assert contents(tmp_path / "near") == whole("a", "10") | whole("b", "1")
    assert said.startswith("a 10 (0.0 MB) is now in")
    assert digest_of_manifest(tmp_path / "near" / "b" / "1") in said


def test_a_model_and_a_version_are_pulled_from_their_folders(tmp_path: Path) -> None:
    old, new = (make_bundle(tmp_path / "far", version=version) for version in ("1", "2"))
    assert "tiny 2" in pull(str(new.parent), tmp_path / "near")
    assert "tiny 1" in pull(f"file://{old}", tmp_path / "near")
    assert contents(tmp_path / "near") == whole(version="1") | whole(version="2")


def test_a_folder_may_be_named_from_here_with_and_without_a_scheme(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_bundle(tmp_path / "far")
    monkeypatch.chdir(tmp_path)
    for number, source in enumerate(("far", "file://far", f"file://{tmp_path}/far")):
        assert "is now in" in pull(source, tmp_path / str(number))
        assert contents(tmp_path / str(number)) == whole()


def test_folders_deeper_than_a_repository_are_not_looked_for(tmp_path: Path) -> None:
    make_bundle(tmp_path / "far" / "deep")
    said = pull(str(tmp_path / "far"), tmp_path / "near")
    assert "has no bundle: neither manifest.json nor" in said


def test_what_is_there_already_is_left_alone_and_said(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path / "far")
    pull(str(folder), tmp_path / "near")
    before = (tmp_path / "near" / "tiny" / "1").stat().st_ino
    assert "tiny 1 is already in" in pull(str(folder), tmp_path / "near")
    assert (tmp_path / "near" / "tiny" / "1").stat().st_ino == before


def test_another_bundle_of_that_version_is_refused_unless_it_is_to_be_replaced(
    tmp_path: Path,
) -> None:
    make_bundle(tmp_path / "near")
    folder = make_bundle(tmp_path / "far", parameters=11)
    said = pull(str(folder), tmp_path / "near")
    assert "TransferFailed" in said
    assert "holds something else of this version; it is left as it is" in said
    assert contents(tmp_path / "near") == whole()
    assert "is now in" in pull(str(folder), tmp_path / "near", "--replace")
    assert contents(tmp_path / "near") == whole(parameters=11)


@pytest.mark.parametrize("name", ["old", "blobs", "replaced"])
def test_a_model_of_any_name_is_replaced(name: str, tmp_path: Path) -> None:
    make_bundle(tmp_path / "near", name)
    folder = make_bundle(tmp_path / "far", name, parameters=11)
    assert "is now in" in pull(str(folder), tmp_path / "near", "--replace")
    assert contents(tmp_path / "near") == whole(name, parameters=11)


def test_a_damaged_bundle_is_said_and_mended_by_replacing_it(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path / "far")
    (make_bundle(tmp_path / "near") / "model.onnx").write_bytes(b"!")
    said = pull(str(folder), tmp_path / "near")
    assert "has 1 bytes; manifest.json expects" in said
    assert said.endswith("To fetch it anew: --replace")
    pull(str(folder), tmp_path / "near", "--replace")
    assert contents(tmp_path / "near") == whole()


def test_the_digest_that_was_asked_for_is_what_is_installed_or_nothing_is(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path / "far")
    digest = digest_of_manifest(folder)
    wrong = "sha256:" + "0" * 64
    said = pull(str(folder), tmp_path / "near", "--digest", wrong)
    assert f"has {digest}, but --digest expects {wrong}; nothing was installed" in said
    assert not (tmp_path / "near").exists()
    assert "is now in" in pull(str(folder), tmp_path / "near", "--digest", digest)


def test_one_digest_is_not_that_of_several_bundles(tmp_path: Path) -> None:
    digest = digest_of_manifest(make_bundle(tmp_path / "far", "a"))
    make_bundle(tmp_path / "far", "b")
    said = pull(str(tmp_path / "far"), tmp_path / "near", "--digest", digest)
    assert "has 2 bundles, and --digest is of one; name one: " in said


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"model_onnx": b"the serving grapH"}, "model.onnx has sha256"),
        ({"model_onnx": b"the serving graph and more"}, "has more than the 17 bytes"),
        ({"model_onnx": b"the serving"}, "ended after 11 of 17 bytes (tried 4 times)"),
        ({"manifest_json": b"x" * (16 * 2**20 + 1)}, "is larger than 16777216 bytes"),
        ({"manifest_json": b"[]"}, "manifest.json is not a bundle's"),
        ({"manifest_json": b"[" * 100_000}, "manifest.json is not a bundle's"),
        ({"manifest_json": b'{"name": "../../etc", "version": "1"}'}, "is not a bundle's"),
        ({"manifest_json": b'{"name": "a", "version": ".."}'}, "is not a bundle's"),
        ({"manifest_json": b'{"name": "a", "version": "1"}'}, "far away/manifest.json has schema"),
    ],
)
def test_what_is_not_right_is_refused_with_a_sentence_and_nothing_is_left(
    changes: dict[str, bytes], sentence: str, tmp_path: Path
) -> None:
    with pytest.raises((TransferFailed, BadBundle)) as refused:
        fetch(fake(**changes), Wish(repository=tmp_path))
    assert sentence in str(refused.value)
    assert contents(tmp_path) == {}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["../model.onnx", "/etc/passwd", "a/b", "..", ".hidden", "a\\b"])
def test_a_file_that_would_lie_elsewhere_is_refused(name: str, tmp_path: Path) -> None:
    files = {**manifest_of()["files"], name: {"sha256": "0" * 64, "size_bytes": 1}}
    raw = json.dumps(manifest_of(files=files)).encode()
    with pytest.raises(BadBundle, match="files"):
        fetch(fake(manifest_json=raw), Wish(repository=tmp_path / "near"))
    assert contents(tmp_path) == {}


def test_a_manifest_without_end_is_not_read_on() -> None:
    read = []

    def endless() -> Iterator[bytes]:
        while True:
            read.append(1)
            yield b"x" * 10

    with pytest.raises(TransferFailed, match="larger than 100 bytes"):
        at_most(endless(), 100, "it")
    assert len(read) == 11


def test_a_bundle_that_is_too_large_is_refused_before_its_first_byte(tmp_path: Path) -> None:
    remote = fake()
    with pytest.raises(TransferFailed, match="raise --max-gb"):
        fetch(remote, Wish(repository=tmp_path, max_bytes=10))
    assert remote.asked == [("manifest.json", 0)]
    files = manifest_of()["files"]
    files["model.onnx"]["size_bytes"] = 2_000_000
    folder = make_bundle(tmp_path / "far", files=files)
    said = pull(str(folder), tmp_path / "near", "--max-gb", "0.001")
    assert "has 0.0 GB; at most 0.001 GB are fetched" in said


def test_a_bundle_that_does_not_fit_is_refused_before_its_first_byte(tmp_path: Path) -> None:
    files = manifest_of()["files"]
    files["model.onnx"]["size_bytes"] = 10**15
    remote = fake(manifest_json=json.dumps(manifest_of(files=files)).encode())
    with pytest.raises(TransferFailed, match=r"needs 1000000\.0 GB in .*--cache off"):
        fetch(remote, Wish(repository=tmp_path, max_bytes=10**16))
    assert remote.asked == [("manifest.json", 0)]


@pytest.mark.parametrize(("room", "fits"), [(0, True), (-1, False)])
def test_a_bundle_and_its_copy_in_the_cache_must_fit_on_one_disk_together(
    room: int, fits: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Room is counted from what both need."""
    needed = 2 * sum(len(data) for data in FILES.values())
    usage = SimpleNamespace(free=needed + room)
    monkeypatch.setattr("service.distribution.install.shutil.disk_usage", lambda _: usage)
    wish = Wish(repository=tmp_path / "near", cache=tmp_path / "blobs")
    if fits:
        fetch(fake(), wish)
        assert contents(tmp_path / "near") == whole()
    else:
        remote = fake()
        with pytest.raises(TransferFailed, match=r"in .*near and .*blobs, where .*--cache off"):
            fetch(remote, wish)
        assert remote.asked == [("manifest.json", 0)]


def test_a_broken_download_goes_on_where_it_ended(tmp_path: Path) -> None:
    remote = fake(7)
    fetch(remote, Wish(repository=tmp_path))
    assert [at for name, at in remote.asked if name == "model.onnx"] == [0, 7, 14]
    assert contents(tmp_path) == whole()


def test_another_run_goes_on_from_what_the_cache_holds(tmp_path: Path) -> None:
    wish = Wish(repository=tmp_path / "near", cache=tmp_path / "blobs")
    with pytest.raises(TransferFailed, match=r"the line broke \(tried 4 times\)"):
        fetch(fake(3), wish)
    assert contents(tmp_path / "near") == {}
    again = fake()
    fetch(again, wish)
    assert [at for name, at in again.asked if name == "model.onnx"] == [12]
    assert contents(tmp_path / "near") == whole()


def test_what_the_cache_holds_is_not_fetched_again(tmp_path: Path) -> None:
    cache = tmp_path / "blobs"
    fetch(fake(), Wish(repository=tmp_path / "a", cache=cache))
    again = fake()
    fetch(again, Wish(repository=tmp_path / "b", cache=cache))
    assert again.asked == [("manifest.json", 0)]
    assert contents(tmp_path / "b") == whole()


def test_what_is_damaged_in_the_cache_is_fetched_again(tmp_path: Path) -> None:
    cache = tmp_path / "blobs"
    fetch(fake(), Wish(repository=tmp_path / "a", cache=cache))
    for blob in cache.iterdir():
        blob.write_bytes(b"?" * blob.stat().st_size)
    fetch(fake(), Wish(repository=tmp_path / "b", cache=cache))
    assert contents(tmp_path / "b") == whole()
    assert sorted(contents(cache).values()) == sorted(FILES.values())


def test_a_wrong_beginning_in_the_cache_does_not_spoil_what_follows(tmp_path: Path) -> None:
    cache = tmp_path / "blobs"
    cache.mkdir()
    for file in manifest_of()["files"].values():
        (cache / f"{file['sha256']}.part").write_bytes(b"wrong")
    fetch(fake(), Wish(repository=tmp_path / "a", cache=cache))
    assert contents(tmp_path / "a") == whole()


def test_wrong_bytes_are_not_kept_in_the_cache(tmp_path: Path) -> None:
    cache = tmp_path / "blobs"
    with pytest.raises(TransferFailed, match="nothing was installed"):
        fetch(
            fake(explain_onnx=b"the explain grapH", model_onnx=b"the serving grapH"),
            Wish(repository=tmp_path / "a", cache=cache),
        )
    assert contents(cache) == {}


def test_several_pulls_at_once_share_one_download_and_do_no_harm(tmp_path: Path) -> None:
    remotes = [fake(5) for _ in range(8)]
    for remote in remotes:
        remote.place = "the same place"
    wish = Wish(repository=tmp_path / "near", cache=tmp_path / "blobs")
    with ThreadPoolExecutor(8) as pool:
        done = list(pool.map(lambda remote: install(remote, wish, lambda _: _nobody), remotes))
    assert contents(tmp_path / "near") == whole()
    assert [one.already for one in done].count(False) == 1
    starts = [at for remote in remotes for name, at in remote.asked if name == "model.onnx"]
    assert starts == [0, 5, 10, 15]


def _nobody(_: int) -> None:
    """Is told how far it is."""


def test_what_a_killed_pull_left_is_removed_and_what_a_running_one_needs_is_not(
    tmp_path: Path,
) -> None:
    left, used = tmp_path / "near" / ".pulling-left", tmp_path / "near" / ".pulling-used"
    for folder in (left, used):
        (folder / "tiny" / "1").mkdir(parents=True)
    held = os.open(used, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    try:
        pull(str(make_bundle(tmp_path / "far")), tmp_path / "near")
    finally:
        os.close(held)
    assert not left.exists()
    assert used.exists()


def test_a_repository_must_be_named_and_be_writable(tmp_path: Path) -> None:
    folder = str(make_bundle(tmp_path / "far"))
    assert "name the folder to install into: --repository" in saccade("pull", folder)
    (tmp_path / "file").write_text("")
    assert "cannot be written" in pull(folder, tmp_path / "file" / "below")


def test_a_digest_is_written_in_full(tmp_path: Path) -> None:
    said = pull("x", tmp_path, "--digest", "abc")
    assert "a digest is sha256: and 64 hexadecimal digits" in said


def test_a_bundle_is_pushed_into_another_repository(tmp_path: Path) -> None:
    make_bundle(tmp_path / "near")
    command = ("push", "tiny", str(tmp_path / "far"), "--repository", str(tmp_path / "near"))
    assert "tiny 1 is now at" in saccade(*command)
    assert "tiny 1 is already at" in saccade(*command)
    assert contents(tmp_path / "far") == whole()


def test_a_damaged_bundle_is_not_pushed(tmp_path: Path) -> None:
    (make_bundle(tmp_path / "near") / "model.onnx").write_bytes(b"!")
    said = saccade("push", "tiny", str(tmp_path / "far"), "--repository", str(tmp_path / "near"))
    assert said.startswith("BadBundle: ")
    assert not (tmp_path / "far").exists()


def test_without_the_extra_one_sentence_says_what_to_install(tmp_path: Path) -> None:
    program = """if True:
        import sys
        sys.modules["httpx"] = None
        from service.cli import main
        main()
    """
    words = ["pull", "s3://a/b", "--repository", str(tmp_path)]
    ended = subprocess.run(
        [sys.executable, "-c", program, *words], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 1
    assert ended.stderr == (
        "saccade: 'saccade pull' needs the package 'httpx'; "
        "install it with: pip install 'saccade[pull]'\n"
    )
