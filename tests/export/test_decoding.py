"""Leave to make pixels fast: measured on pictures, refused, stated, and taken back."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from export import decoding
from export.build import export_bundle
from export.decoding import allow_fast, keep_exact
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


def test_a_bundle_states_what_fast_pixels_change_and_forgets_it_again(vit: Bundle) -> None:
    before = (vit.folder / MANIFEST).read_bytes()
    allowed = allow_fast(vit)
    found = allowed.manifest.decoding
    assert found == load_bundle(vit.folder).manifest.decoding
    assert found is not None
    assert (found.resizer, found.jpeg_scale) == ("simd", 2.0)
    assert found.pictures == "8 pictures as they are, 8 enlarged"
    assert 45 < found.psnr_db < 70
    (effect,) = found.effect
    assert (effect.precision, effect.images) == ("fp32", 16)
    assert effect.top1_agreement == 1
    assert 1e-6 < effect.max_error < 0.01
    allowed.verify()
    assert keep_exact(allowed).manifest.decoding is None
    assert (vit.folder / MANIFEST).read_bytes() == before
    assert sorted(path.name for path in vit.folder.iterdir()) == sorted(
        [MANIFEST, *vit.manifest.files]
    )


def test_the_less_is_allowed_the_less_changes(vit: Bundle) -> None:
    found = [allow_fast(vit, scale).manifest.decoding for scale in (1.0, 2.0, None)]
    noise_db = [one.psnr_db for one in found if one]
    assert len(noise_db) == 3
    assert noise_db[0] + 1 < noise_db[1]
    assert noise_db[1] + 1 < noise_db[2]


def test_without_fractions_pictures_count_as_they_are_alone(vit: Bundle) -> None:
    found = allow_fast(vit, None).manifest.decoding
    assert found is not None
    assert (found.resizer, found.jpeg_scale) == ("simd", None)
    assert found.pictures == "8 pictures as they are"
    assert found.psnr_db > 50
    assert found.effect[0].max_error > 0


def test_what_changes_too_much_is_refused_and_the_manifest_stays(
    vit: Bundle, tmp_path: Path
) -> None:
    before = (vit.folder / MANIFEST).read_bytes()
    said = r"fraction that leaves 1 pixels for each changes too much: at 128x128 .* larger scale"
    with pytest.raises(StartError, match=said):
        allow_fast(vit, 1.0, noise(tmp_path / "given", 5, 300, "jpg"))
    assert (vit.folder / MANIFEST).read_bytes() == before


def test_a_resizer_that_changes_too_much_is_refused_as_well(
    vit: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "objections", lambda _: ["cosine is too small"])
    said = r"with vector instructions changes too much: at 128x128 the cosine .* the pixels exact"
    with pytest.raises(StartError, match=said):
        allow_fast(vit, None)
    assert load_bundle(vit.folder).manifest.decoding is None


def test_given_jpegs_that_are_large_enough_stand_in_for_enlarged_ones(
    vit: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "objections", lambda _: [])
    folder = noise(tmp_path / "given", 4, 620, "jpg")
    noise(tmp_path / "small", 1, 200, "jpg").joinpath("0.jpg").rename(folder / "small.jpg")
    found = allow_fast(vit, 2.0, folder).manifest.decoding
    assert found is not None
    assert found.pictures == "13 pictures as they are (4 at a fraction)"
    (folder / "3.jpg").unlink()
    found = allow_fast(vit, 2.0, folder).manifest.decoding
    assert found is not None
    assert found.pictures == "12 pictures as they are (3 at a fraction), 9 enlarged"


def test_an_empty_folder_of_pictures_is_refused(vit: Bundle, tmp_path: Path) -> None:
    with pytest.raises(StartError, match="holds no pictures"):
        allow_fast(vit, None, tmp_path)


def test_a_fraction_that_no_accepted_picture_would_be_decoded_at_is_refused(
    vit: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "_LIMITS", ImageLimits(max_pixels=400_000))
    with pytest.raises(StartError, match="no JPEG of up to 400000 pixels leaves 8 pixels"):
        allow_fast(vit, 8.0)


def test_pictures_are_judged_as_those_of_a_reduced_precision(
    vit: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged: list[Parity] = []

    def judge(parity: Parity) -> list[str]:
        judged.append(parity)
        return []

    monkeypatch.setattr(decoding, "objections", judge)
    allowed = allow_fast(vit).manifest.decoding
    assert [parity.precision for parity in judged] == ["bf16"]
    assert allowed is not None
    assert [parity.precision for parity in allowed.effect] == ["fp32"]


def test_the_command_line_allows_and_forbids(vit: Bundle) -> None:
    def pixels(*arguments: str) -> Any:
        repository = str(vit.folder.parent.parent)
        return CliRunner().invoke(app, ["models", "pixels", repository, "vit-scenes", *arguments])

    run = pixels("fast")
    assert run.exit_code == 0
    assert "fast: resized with vector instructions, large JPEGs decoded at a fraction" in run.output
    assert "that leaves 2 pixels for each; at least" in run.output
    assert "agreement 1.000, on 8 pictures as they are, 8 enlarged" in run.output
    run = pixels("exact")
    assert run.output.startswith("vit-scenes: pixels are exact: every picture is decoded in full")
    assert load_bundle(vit.folder).manifest.decoding is None
    run = pixels("fast", "--jpeg-scale", "0")
    assert "fraction" not in run.output
    found = load_bundle(vit.folder).manifest.decoding
    assert found is not None
    assert found.jpeg_scale is None
    for wrong in (["fast", "--jpeg-scale", "0.5"], ["exact", "--jpeg-scale", "2"], ["faster"]):
        assert pixels(*wrong).exit_code == 2


def test_an_export_can_allow_it_at_once(
    references: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "objections", lambda _: [])  # random weights see any change
    bundle = export_bundle(
        references["deit"].folder,
        tmp_path,
        name="deit",
        precisions=["fp32"],
        fast_pixels=True,
        jpeg_scale=4.0,
    )
    found = bundle.manifest.decoding
    assert found is not None
    assert (found.resizer, found.jpeg_scale) == ("simd", 4.0)
    assert [parity.canvas for parity in found.effect] == bundle.manifest.canvases
