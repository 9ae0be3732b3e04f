"""How many cores a process may use."""

from pathlib import Path

import pytest

from service.cores import usable_cores


@pytest.mark.parametrize(
    ("content", "cores"), [("200000 100000", 2), ("50000 100000", 1), ("max 100000", 64)]
)
def test_the_quota_of_the_container_counts(
    tmp_path: Path, content: str, cores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 64)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(64)), raising=False)
    file = tmp_path / "cpu.max"
    file.write_text(content)
    assert usable_cores(file) == cores


def test_affinity_counts_where_there_is_no_quota(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 5, 9}, raising=False)
    assert usable_cores(tmp_path / "absent") == 3
