"""The file of answers, one JSON document a line, that a later run goes on with."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

from service.errors import BadSettings, StartError

REFUSED = "error"
"""The member that holds a problem document, in the line of a picture that was refused."""


class Journal:
    """Appended to in the order of the pictures; a line that a killed run left unfinished is cut.

    A run that is refused before its first answer leaves no empty file behind.

    ``about`` is what was asked: the same for every line of a file.

    Raises:
        BadSettings: the file was made by asking something else, or is none of ours.
        StartError: it cannot be written.
    """

    def __init__(self, path: Path, about: dict[str, Any]) -> None:
        self.path = path
        self.done: set[str] = set()
        self.refused = 0
        self._about = about
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("r+b" if path.exists() else "w+b")
        except OSError as error:
            raise StartError(f"cannot write {path}: {error.strerror}") from None
        try:
            self._resume()
        except BaseException:
            self._file.close()
            raise

    def add(self, name: str, answer: dict[str, Any]) -> None:
        """One more answer, which is in the file when this returns."""
        line = json.dumps({"file": name} | self._about | answer, separators=(",", ":")) + "\n"
        self._file.write(line.encode())
        self._file.flush()
        self.done.add(name)
        self.refused += REFUSED in answer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        if not self.done:
            self.path.unlink(missing_ok=True)

    def _resume(self) -> None:
        whole = 0
        for line in self._file:
            if not line.endswith(b"\n"):
                break
            row = self._row(line)
            self.done.add(row["file"])
            self.refused += REFUSED in row
            whole += len(line)
        self._file.seek(whole)
        self._file.truncate()

    def _row(self, line: bytes) -> dict[str, Any]:
        try:
            row: dict[str, Any] = json.loads(line)
            before = {name: row[name] for name in ("file", *self._about)}
        except (ValueError, KeyError, TypeError):
            raise BadSettings(
                f"{self.path} is there and is no file of answers; name another with --out"
            ) from None
        del before["file"]
        if before != self._about:
            raise BadSettings(
                f"{self.path} holds answers to {json.dumps(before)}, and now "
                f"{json.dumps(self._about)} is asked; name another file with --out, or start "
                "afresh with --overwrite"
            )
        return row


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Every line of a journal."""
    with path.open("rb") as file:
        for line in file:
            yield json.loads(line)


def forget(path: Path) -> None:
    """Remove an earlier run's answers."""
    path.unlink(missing_ok=True)
