"""Whether this CPU adds up products of 8-bit numbers without losing any."""

import functools
import platform
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")

_X86 = {"x86_64", "amd64"}
_EXACT = {"avx512_vnni", "avx_vnni", "avx_vnni_int8", "amx_int8"}


@functools.cache
def sums_int8_exactly(machine: str = platform.machine(), cpuinfo: Path = CPUINFO) -> bool:
    """Whether int8 gives here what it gave where it was proven.

    x86 without VNNI or AMX adds pairs of products in 16 bits, which saturate, so that answers get
    worse without a sign of it. Where the system does not list what the CPU can do, the answer is
    no.
    """
    if machine.lower() not in _X86:
        return True
    try:
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
    except OSError:
        return False
    flags = next((line.split() for line in lines if line.startswith("flags")), [])
    return not _EXACT.isdisjoint(flags)
