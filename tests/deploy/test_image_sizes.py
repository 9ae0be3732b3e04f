"""What is said about the images' sizes, and how sizes are counted."""

import json
import os
from pathlib import Path

from deploy.image.engine import base_name
from deploy.image.sizes import LARGEST_UNPACKED_BYTES, RESULTS, size_bytes
from deploy.pin import FILES

PAGE = Path(__file__).parents[2] / "docs" / "containers.md"


def test_a_base_that_is_pinned_by_digest_is_stood_in_for_by_its_name() -> None:
    pinned = "FROM x\nARG PYTHON_IMAGE=python:3.11-slim-bookworm@sha256:00ff\n"
    assert base_name(pinned) == "python:3.11-slim-bookworm"


def test_sizes_in_results_are_those_of_the_limit() -> None:
    stated = json.loads(RESULTS.read_text())["images"]
    assert stated["cpu"]["unpacked_bytes"] <= LARGEST_UNPACKED_BYTES
    assert stated.keys() == FILES.keys()


def test_the_page_states_the_sizes_that_were_measured() -> None:
    page = PAGE.read_text()
    for target, sizes in json.loads(RESULTS.read_text())["images"].items():
        row = next(line for line in page.splitlines() if line.startswith(f"| `{target}`"))
        for key in ("unpacked_bytes", "gzip_bytes"):
            assert f" {round(sizes[key] / 1e6)} MB" in row


def test_a_file_with_two_names_counts_once_and_a_link_counts_as_itself(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "file").write_bytes(bytes(1000))
    os.link(folder / "file", folder / "again")
    (folder / "link").symlink_to("file")
    assert size_bytes(folder) == 1000 + len("file")
    assert size_bytes(folder / "file") == 1000
