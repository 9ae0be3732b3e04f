"""Keys: what an entry may look like, and files that change while the server runs."""

import hashlib
import logging
import os
from pathlib import Path

import pytest

from service.errors import BadSettings
from service.keys import KeyRing, parse_keys
from service.watching import RECHECK_S

ANNA, BERT = "0123456789abcdef", "fedcba9876543210-._~+/="


def sha256(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def replace(file: Path, text: str) -> None:
    """As a secret is rotated: a new file in place of the old."""
    fresh = file.with_suffix(".new")
    fresh.write_text(text)
    os.replace(fresh, file)  # noqa: PTH105


def test_entries_have_names_or_are_called_by_their_digest() -> None:
    text = f"# who may ask\nanna: {ANNA}\n\n  {BERT},carl:sha256:{sha256('carl').hex()}\n"
    assert parse_keys(text) == {
        sha256(ANNA): "anna",
        sha256(BERT): f"key-{sha256(BERT).hex()[:8]}",
        sha256("carl"): "carl",
    }


def test_a_bare_digest_is_no_key_called_sha256() -> None:
    digest = sha256(ANNA)
    assert parse_keys(f"sha256:{digest.hex()}") == {digest: f"key-{digest.hex()[:8]}"}


@pytest.mark.parametrize(
    "wrong",
    [
        "short",
        "anna:short",
        "an na:0123456789abcdef",
        "0123456789 abcdef",
        "anna:bert:0123456789abcdef",
        "sha256:0123",
        "schlüssel-0123456789",
        513 * "x",
    ],
)
def test_what_is_no_key_is_told_by_its_number_and_not_repeated(wrong: str) -> None:
    with pytest.raises(ValueError, match="entry 2 is no key") as refused:
        parse_keys(f"{ANNA},{wrong}")
    assert wrong not in str(refused.value)


def test_a_ring_finds_who_holds_a_key_and_nobody_else() -> None:
    ring = KeyRing(f"anna:{ANNA},{BERT}", "", "--keys")
    assert ring
    assert ring.find(ANNA.encode()) == "anna"
    assert ring.find(ANNA[:-1].encode()) is None
    assert ring.find(sha256(ANNA).hex().encode()) is None
    assert ring.find(b"\xff\xfe") is None
    assert not KeyRing("", "", "--keys")


def test_a_ring_holds_no_key_and_not_even_its_digest() -> None:
    held = repr(vars(KeyRing(f"anna:{ANNA}", "", "--keys")))
    assert "anna" in held
    assert ANNA not in held
    assert repr(sha256(ANNA))[2:-1] not in held


def test_a_changed_file_is_followed_within_a_second_and_keeps_what_was_listed(
    tmp_path: Path,
) -> None:
    file, clock = tmp_path / "keys", Clock()
    file.write_text(f"anna:{ANNA}\n")
    ring = KeyRing("carl:cccccccccccccccc", str(file), "--keys", clock)
    replace(file, f"bert:{BERT}\n")
    assert ring.find(ANNA.encode()) == "anna"  # not looked yet
    clock.now_s += RECHECK_S
    assert ring.find(ANNA.encode()) is None
    assert ring.find(BERT.encode()) == "bert"
    assert ring.find(b"cccccccccccccccc") == "carl"


@pytest.mark.parametrize("fault", [None, "", "# none\n", "short\n", "ä\n"])
def test_a_file_that_breaks_leaves_the_keys_as_they_were_and_says_so_once(
    tmp_path: Path, fault: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    file, clock = tmp_path / "keys", Clock()
    file.write_text(ANNA)
    ring = KeyRing("", str(file), "--keys", clock)
    if fault is None:
        file.unlink()
    else:
        replace(file, fault)
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            clock.now_s += RECHECK_S
            assert ring.find(ANNA.encode()) == f"key-{sha256(ANNA).hex()[:8]}"
    assert len(caplog.records) == 1
    assert str(file) in caplog.text
    replace(file, BERT)
    clock.now_s += RECHECK_S
    assert ring.find(ANNA.encode()) is None


@pytest.mark.parametrize(
    ("text", "why"), [(None, "No such file"), ("", "no key"), ("x", "entry 1"), ("ä", "ASCII")]
)
def test_a_file_without_keys_stops_the_start_and_is_named(
    tmp_path: Path, text: str | None, why: str
) -> None:
    file = tmp_path / "keys"
    if text is not None:
        file.write_text(text)
    with pytest.raises(BadSettings, match=f"--keys: {file}: .*{why}"):
        KeyRing("", str(file), "--keys")
