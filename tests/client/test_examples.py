"""The examples of docs/client.md do what the page says."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.conftest import ROOT, SACCADE, Server

PAGE = (ROOT / "docs" / "client.md").read_text()
SCENES = ROOT / "service" / "demo" / "scenes"
ADDRESS = "http://127.0.0.1:8000"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


@pytest.fixture(autouse=True)
def _pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("star.jpg", "ring.jpg"):
        shutil.copy(SCENES / name, tmp_path)
        (tmp_path / "pictures").mkdir(exist_ok=True)
        shutil.copy(SCENES / name, tmp_path / "pictures")
    monkeypatch.chdir(tmp_path)


@pytest.mark.filterwarnings("ignore:OpenCV:UserWarning")
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_the_python_of_the_page_runs_from_top_to_bottom(
    demo_server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    names: dict[str, Any] = {}
    assert len(blocks("python")) == 5
    for block in blocks("python"):
        exec(block.replace(ADDRESS, demo_server.url), names)
    said = capsys.readouterr().out
    names["client"].close()
    assert names["labels"] == ["star", "ring"]
    assert said.startswith("star 0.")
    assert "unknown_model there is no model 'resnet'" in said
    assert names["mask"].shape == (480, 480)
    with Image.open("drawn.png") as drawn, Image.open("star.jpg") as star:
        assert not np.array_equal(np.asarray(drawn), np.asarray(star))


def test_the_commands_of_the_page_write_what_it_says(demo_server: Server) -> None:
    (commands,) = blocks("bash")
    for line in commands.replace(ADDRESS, demo_server.url).splitlines():
        words = shlex.split(line)
        assert words[0] == "saccade"
        subprocess.run([str(SACCADE), *words[1:]], check=True, timeout=120)
    written = ("boxes.jsonl", "panoptic.json", "panoptic", "classes.parquet", "vectors.jsonl")
    assert [name for name in written if not Path(name).exists()] == []
    assert sorted(path.name for path in Path("panoptic").iterdir()) == ["ring.png", "star.png"]
    assert len(Path("boxes.jsonl").read_text().splitlines()) == 2
