"""Condemned pictures are known again, by every process, and nobody else is taken for one."""

from pathlib import Path

import numpy as np
import pytest

from service.worker import quarantine
from service.worker.quarantine import Quarantine
from service.worker.runtimes.base import Arrays
from service.worker.scheduler import Group

GROUP = Group("vit", "serve", "64x64")


def pixels(value: int) -> Arrays:
    return {"images": np.full((64, 64, 3), value, np.uint8)}


def test_a_condemned_picture_is_known_here_and_by_others_once_they_read(tmp_path: Path) -> None:
    mine, others = Quarantine(tmp_path / "q"), Quarantine(tmp_path / "q")
    assert not mine.holds(GROUP, pixels(1))
    mine.condemn(GROUP, pixels(1))
    assert mine.holds(GROUP, pixels(1))
    assert not others.holds(GROUP, pixels(1))
    others.read()
    assert others.holds(GROUP, pixels(1))
    others.condemn(GROUP, pixels(2))
    mine.read()
    assert mine.holds(GROUP, pixels(2))


def test_a_picture_that_differs_in_one_byte_or_in_what_it_is_asked_of_is_another(
    tmp_path: Path,
) -> None:
    found = Quarantine(tmp_path / "q")
    found.condemn(GROUP, pixels(1))
    almost = pixels(1)
    almost["images"][0, 0, 1] += 1  # not among the bytes that are looked at first
    assert not found.holds(GROUP, almost)
    assert not found.holds(GROUP, pixels(1) | {"sizes": np.array([3, 4], np.int32)})
    assert not found.holds(GROUP, {"images": pixels(1)["images"].reshape(32, 128, 3)})
    assert not found.holds(GROUP._replace(model="swin"), pixels(1))
    assert found.holds(GROUP, {"images": pixels(1)["images"][:, ::-1]}), "the same in other memory"


def test_only_so_many_are_remembered_and_the_oldest_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quarantine, "MOST", 3)
    found = Quarantine(tmp_path / "q")
    for value in range(5):
        found.condemn(GROUP, pixels(value))
    assert [found.holds(GROUP, pixels(value)) for value in range(5)] == [
        False,
        False,
        True,
        True,
        True,
    ]


def test_nothing_was_ever_condemned_and_nothing_is_read(tmp_path: Path) -> None:
    found = Quarantine(tmp_path / "none")
    found.read()
    assert not found.holds(GROUP, pixels(1))
    assert not (tmp_path / "none").exists()
