"""How many cores a process may use."""

from pathlib import Path

import pytest

from service.cores import physical_cores, usable_cores

V1 = "cpu,cpuacct"


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine of 64 cores, and the file that names the groups of this process."""
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(64)), raising=False)
    return tmp_path / "own"


def limit_v2(folder: Path, content: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cpu.max").write_text(content)


def limit_v1(folder: Path, quota_us: int, period_us: int = 100_000) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cpu.cfs_quota_us").write_text(f"{quota_us}\n")
    (folder / "cpu.cfs_period_us").write_text(f"{period_us}\n")


@pytest.mark.parametrize(
    ("content", "cores"),
    [("200000 100000", 2), ("50000 100000", 1), ("290000 100000\n", 2), ("max 100000", 64)],
)
def test_the_quota_of_the_container_counts(
    tmp_path: Path, own: Path, content: str, cores: int
) -> None:
    own.write_text("0::/\n")
    limit_v2(tmp_path / "groups", content)
    assert usable_cores(tmp_path / "groups", own) == cores


def test_the_tightest_group_above_the_process_counts(tmp_path: Path, own: Path) -> None:
    own.write_text("0::/kube/pod/container\n")
    groups = tmp_path / "groups"
    limit_v2(groups / "kube", "1600000 100000")
    limit_v2(groups / "kube" / "pod", "300000 100000")
    limit_v2(groups / "kube" / "pod" / "container", "max 100000")
    assert usable_cores(groups, own) == 3
    limit_v2(groups / "kube" / "pod" / "container", "200000 100000")
    assert usable_cores(groups, own) == 2


def test_groups_beside_the_process_do_not_count(tmp_path: Path, own: Path) -> None:
    own.write_text("0::/pod\n")
    limit_v2(tmp_path / "groups" / "other", "100000 100000")
    assert usable_cores(tmp_path / "groups", own) == 64


def test_quotas_of_the_first_version_count_at_every_level(tmp_path: Path, own: Path) -> None:
    own.write_text(f"5:memory:/docker/abc\n4:{V1}:/docker/abc\n0::/unified\n")
    mount = tmp_path / "groups" / V1
    limit_v1(mount, -1)
    limit_v1(mount / "docker", 800_000)
    limit_v1(mount / "docker" / "abc", 250_000)
    assert usable_cores(tmp_path / "groups", own) == 2
    limit_v1(mount / "docker" / "abc", -1)
    assert usable_cores(tmp_path / "groups", own) == 8


def test_a_container_that_sees_the_path_of_its_host_has_the_quota_of_its_own_mount(
    tmp_path: Path, own: Path
) -> None:
    own.write_text(f"4:{V1}:/docker/of-the-host\n")
    limit_v1(tmp_path / "groups" / V1, 300_000)
    assert usable_cores(tmp_path / "groups", own) == 3


def test_affinity_counts_where_there_is_no_quota(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 5, 9}, raising=False)
    assert usable_cores(tmp_path, tmp_path / "absent") == 3


def test_hyper_threads_of_a_core_count_once_where_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1, 2, 3, 7}, raising=False)
    for core, siblings in {0: "0,2", 1: "1,3", 2: "0,2", 3: "1,3"}.items():
        file = tmp_path / f"cpu{core}" / "topology" / "thread_siblings_list"
        file.parent.mkdir(parents=True)
        file.write_text(siblings + "\n")
    assert physical_cores(tmp_path, tmp_path, tmp_path / "absent") == 3
    assert usable_cores(tmp_path, tmp_path / "absent") == 5
