"""What the page for operators claims is tested by what it names."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_every_test_that_the_operations_page_names_exists() -> None:
    page = (ROOT / "docs" / "operations.md").read_text()
    named = set(re.findall(r"`(test_\w+)`", page))
    files = (ROOT / "tests").rglob("test_*.py")
    there = {name for file in files for name in re.findall(r"def (test_\w+)", file.read_text())}
    assert len(named) > 15
    assert named - there == set()


def test_every_line_of_the_faults_table_names_its_proof() -> None:
    page = (ROOT / "docs" / "operations.md").read_text()
    table = page.partition("## Faults")[2].partition("\n## ")[0]
    lines = [line for line in table.splitlines() if line.startswith("| ")][1:]
    assert len(lines) > 10
    assert [line for line in lines if "`test_" not in line] == []
