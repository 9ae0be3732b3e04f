"""What is served is written down by the workers of several devices at once."""

import os
from pathlib import Path

import pytest

from service.bundle import Bundle, load_bundle
from service.worker.served import read_served, write_served
from tests.service.sample_bundle import manifest_of, write_bundle


def test_workers_that_write_at_once_do_not_take_each_others_file_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = load_bundle(write_bundle(tmp_path / "models", manifest_of()))
    file = tmp_path / "served.json"
    between: list[list[Bundle] | None] = []

    def replace(path: Path, target: Path) -> None:
        monkeypatch.undo()
        with monkeypatch.context() as other_worker:
            other_worker.setattr(os, "getpid", lambda: 1)
            write_served(file, [])
        between.append(read_served(file))
        path.replace(target)

    monkeypatch.setattr(Path, "replace", replace)
    write_served(file, [bundle])
    assert (between, read_served(file)) == ([[]], [bundle])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["models", "served.json"]
