"""How many cores this process may use."""

import math
import os
from pathlib import Path


def usable_cores(quota: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """The machine's cores, less what affinity and the container's quota take away; at least 1.

    Libraries count the machine's cores, and would start 64 threads in a container of two.
    """
    cores = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    try:
        per_period, period = quota.read_text().split()
        return min(cores, max(math.floor(int(per_period) / int(period)), 1))
    except (OSError, ValueError):  # no cgroup of version 2, or "max"
        return cores
