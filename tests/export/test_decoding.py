"""Leave to decode at a fraction: measured on pictures, refused, stated, and taken back."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from export import decoding
from export.build import export_bundle
from export.decoding import allow_scaling, forbid_scaling
from service.bundle import MANIFEST, Bundle, Parity, load_bundle
from service.cli import app
from service.errors import StartError
from service.images import ImageLimits
from service.settings import DEMO_REPOSITORY


@pytest.fixture
def vit(tmp_path: Path) -> Bundle:
    """A copy of the demo classifier."""
    folder = next((DEMO_REPOSITORY / "vit-scenes").iterdir())
    return load_bundle(shutil.copytree(folder, tmp_path / "vit-scenes" / folder.name))


def noise(folder: Path, count: int, side: int, kind: str) -> Path:
    """Pictures of nothing but detail, which a fraction loses."""
    folder.mkdir()
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 256, (side, side, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.{kind}")
    return folder


def test_a_bundle_states_what_fractions_change_and_forgets_it_again(vit: Bundle) -> None:
    before = (vit.folder / MANIFEST).read_bytes()
    allowed = allow_scaling(vit, 2.0)
    found = allowed.manifest.decoding
    assert found == load_bundle(vit.folder).manifest.decoding
    assert found is not None
    assert (found.jpeg_scale, found.pictures) == (2.0, "8 pictures enlarged")
    assert 45 < found.psnr_db < 70
    (effect,) = found.effect
    assert (effect.precision, effect.images) == ("fp32", 8)
    assert effect.top1_agreement == 1
    assert 1e-6 < effect.max_error < 0.01
    allowed.verify()
    assert forbid_scaling(allowed).manifest.decoding is None
    assert (vit.folder / MANIFEST).read_bytes() == before
    assert sorted(path.name for path in vit.folder.iterdir()) == sorted(
        [MANIFEST, *vit.manifest.files]
    )


def test_a_larger_scale_changes_less(vit: Bundle) -> None:
    found = [allow_scaling(vit, scale).manifest.decoding for scale in (1.0, 2.0)]
    noise_db = [one.psnr_db for one in found if one]
    assert len(noise_db) == 2
    assert noise_db[0] + 5 < noise_db[1]


def test_what_changes_too_much_is_refused_and_the_manifest_stays(
    vit: Bundle, tmp_path: Path
) -> None:
    before = (vit.folder / MANIFEST).read_bytes()
    with pytest.raises(StartError, match=r"changes too much: at 128x128 .* larger scale"):
        allow_scaling(vit, 1.0, noise(tmp_path / "given", 5, 300, "jpg"))
    assert (vit.folder / MANIFEST).read_bytes() == before


def test_given_jpegs_that_are_large_enough_count_as_they_are(
    vit: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "objections", lambda _: [])
    folder = noise(tmp_path / "given", 4, 620, "jpg")
    noise(tmp_path / "small", 1, 200, "jpg").joinpath("0.jpg").rename(folder / "small.jpg")
    found = allow_scaling(vit, 2.0, folder).manifest.decoding
    assert found is not None
    assert found.pictures == "4 given JPEGs as they are"
    (folder / "3.jpg").unlink()
    found = allow_scaling(vit, 2.0, folder).manifest.decoding
    assert found is not None
    assert found.pictures == "3 given JPEGs as they are, 12 pictures enlarged"


def test_a_fraction_that_no_accepted_picture_would_be_decoded_at_is_refused(
    vit: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "_LIMITS", ImageLimits(max_pixels=400_000))
    with pytest.raises(StartError, match="no JPEG of up to 400000 pixels leaves 8 pixels"):
        allow_scaling(vit, 8.0)


def test_pictures_are_judged_as_those_of_a_reduced_precision(
    vit: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged: list[Parity] = []

    def judge(parity: Parity) -> list[str]:
        judged.append(parity)
        return []

    monkeypatch.setattr(decoding, "objections", judge)
    allowed = allow_scaling(vit, 2.0).manifest.decoding
    assert [parity.precision for parity in judged] == ["bf16"]
    assert allowed is not None
    assert [parity.precision for parity in allowed.effect] == ["fp32"]


def test_the_command_line_allows_and_forbids(vit: Bundle) -> None:
    repository = str(vit.folder.parent.parent)
    run = CliRunner().invoke(app, ["models", "jpeg-scale", repository, "vit-scenes", "2"])
    assert run.exit_code == 0
    assert "large JPEGs at a fraction that leaves 2 pixels for each: at least" in run.output
    assert "agreement 1.000, on 8 pictures enlarged" in run.output
    run = CliRunner().invoke(app, ["models", "jpeg-scale", repository, "vit-scenes", "0"])
    assert run.output == "vit-scenes: every picture is decoded in full\n"
    assert load_bundle(vit.folder).manifest.decoding is None
    run = CliRunner().invoke(app, ["models", "jpeg-scale", repository, "vit-scenes", "0.5"])
    assert run.exit_code == 2


def test_an_export_can_allow_it_at_once(
    references: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "objections", lambda _: [])  # random weights see any change
    bundle = export_bundle(
        references["deit"].folder, tmp_path, name="deit", precisions=["fp32"], jpeg_scale=4.0
    )
    found = bundle.manifest.decoding
    assert found is not None
    assert found.jpeg_scale == 4.0
    assert [parity.canvas for parity in found.effect] == bundle.manifest.canvases
