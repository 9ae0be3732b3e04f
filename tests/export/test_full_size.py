"""Networks of published size, with random weights: what tiny ones cannot show."""

from pathlib import Path

import pytest

from export.build import export_bundle
from export.demo.random_checkpoint import main as write_checkpoint
from models.zoo import ZOO
from service.worker.runtimes.choose import FASTEST_FIRST, supports

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", ["vit-b16-224", "deit-s16-224"])
def test_a_network_of_published_size_is_proven_in_everything_that_runs_here(
    tmp_path: Path, name: str
) -> None:
    write_checkpoint(name, tmp_path / "checkpoint")
    bundle = export_bundle(tmp_path / "checkpoint", tmp_path / "repository", name=name)
    manifest = bundle.manifest
    assert (manifest.parameters, manifest.macs) == (ZOO[name].parameters, ZOO[name].macs)
    here = {(c.runtime, c.precision) for c in FASTEST_FIRST if supports(c) is None}
    assert {(p.runtime, p.precision) for p in manifest.parity} == here
    weights = manifest.files["weights.bin"].size_bytes
    assert weights < 1.03 * 4 * manifest.parameters, "the two graphs do not share their weights"
