"""Which CPUs compute in int8 without losing sums."""

from pathlib import Path

import pytest

from service.worker.runtimes.instructions import sums_int8_exactly


@pytest.mark.parametrize(
    ("flags", "exact"),
    [
        ("fpu avx2 avx512f avx512_vnni", True),
        ("fpu avx2 avx_vnni", True),
        ("fpu avx2 avx512f avx512bw", False),
        ("", False),
    ],
)
def test_x86_needs_the_instructions_for_it(tmp_path: Path, flags: str, exact: bool) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor\t: 0\nflags\t\t: {flags}\n\nprocessor\t: 1\n")
    assert sums_int8_exactly("x86_64", cpuinfo) is exact


def test_an_unknown_x86_does_not_and_other_machines_do(tmp_path: Path) -> None:
    assert sums_int8_exactly("AMD64", tmp_path / "absent") is False
    assert sums_int8_exactly("aarch64", tmp_path / "absent") is True
