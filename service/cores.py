"""How many cores this process may use."""

import math
import os
from collections.abc import Iterator
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUPS = Path("/proc/self/cgroup")
TOPOLOGY = Path("/sys/devices/system/cpu")


def usable_cores(cgroups: Path = CGROUPS, own: Path = OWN_CGROUPS) -> int:
    """The machine's cores, less what affinity and the container's quota take away; at least 1.

    Libraries count the machine's cores, and would start 64 threads in a container of two.
    """
    granted = quota(cgroups, own)
    allowed = len(_allowed())
    return max(allowed if granted is None else min(allowed, math.floor(granted)), 1)


def quota(cgroups: Path = CGROUPS, own: Path = OWN_CGROUPS) -> float | None:
    """Cores that the container may keep busy; None where no group around this process says."""
    return min(_quotas(cgroups, own), default=None)


def physical_cores(
    topology: Path = TOPOLOGY, cgroups: Path = CGROUPS, own: Path = OWN_CGROUPS
) -> int:
    """As ``usable_cores``, the hyper-threads of a core counted once."""
    siblings = set()
    for core in _allowed():
        try:
            file = topology / f"cpu{core}" / "topology" / "thread_siblings_list"
            siblings.add(file.read_text().strip())
        except OSError:
            siblings.add(str(core))
    return min(len(siblings), usable_cores(cgroups, own))


def _allowed() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def _quotas(cgroups: Path, own: Path) -> Iterator[float]:
    """Cores that each group around this process grants; the tightest of them counts."""
    try:
        lines = own.read_text().splitlines()
    except OSError:  # no Linux, or no /proc
        lines = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            mount, read = cgroups, _quota_v2
        elif "cpu" in controllers.split(","):
            mount, read = cgroups / controllers, _quota_v1
        else:
            continue
        # Inside a container the path may be the host's and not exist; the mount itself does.
        group = mount / path.lstrip("/")
        for folder in (group, *group.parents):
            if folder.is_relative_to(mount):
                try:
                    yield read(folder)
                except (OSError, ValueError):  # no quota in this group
                    continue


def _quota_v2(group: Path) -> float:
    per_period, period = (group / "cpu.max").read_text().split()
    return int(per_period) / int(period)  # or "max", which is no number


def _quota_v1(group: Path) -> float:
    per_period = int((group / "cpu.cfs_quota_us").read_text())
    if per_period < 0:
        raise ValueError("no limit")
    return per_period / int((group / "cpu.cfs_period_us").read_text())
