"""The comparison of decoders runs, and finds those equal that are."""

import json
from pathlib import Path

import pytest

from bench import decoders


def test_simplejpeg_and_the_server_equal_pillow_and_a_fraction_nearly_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {"small": (90, 120), "medium": (180, 240), "12 MP": (900, 1200)}
    monkeypatch.setattr(decoders, "SIZES", sizes)
    out = tmp_path / "decoders.json"
    monkeypatch.setattr("sys.argv", ["decoders", "--rounds", "1", "--out", str(out)])
    decoders.main()
    report = json.loads(out.read_text())
    for size in sizes:
        assert report["decoders"]["simplejpeg"][size]["largest_difference"] == 0
    assert 0 <= report["decoders"]["Pillow"]["pause_share"] <= 1
    for kind in ("bilinear", "bicubic"):
        exact = report["preparing"]["server"][f"12 MP, {kind}"]
        fraction = report["preparing"]["server, jpeg_scale 1"][f"12 MP, {kind}"]
        assert exact["largest_difference"] == 0
        assert exact["cpu_ms"] > 0
        assert fraction["largest_difference"] > 0
        assert fraction["psnr_db"] > 40
        fast = report["preparing"]["server, simd"][f"small, {kind}"]
        assert 0 < fast["largest_difference"] <= 4
        assert fast["psnr_db"] > 45
