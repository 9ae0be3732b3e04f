"""The file of answers, one JSON document a line, that a later run goes on with."""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, Self

from service.errors import BadSettings, StartError

REFUSED = "error"
"""The member that holds a problem document, in the line of a picture that was refused."""
Answerer = tuple[str, str, str]
"""Model, version and precision of an answer."""

_START = b'{"file":'
"""How every line begins."""


class Journal:
    """Appended to in the order of the pictures; a line that a killed run left unfinished is cut.

    A run that is refused before its first answer leaves no empty file behind. Only one run at a
    time has the file.

    ``about`` is what was asked: the same for every line of a file. With ``afresh`` whatever an
    earlier run answered is dropped.

    Raises:
        BadSettings: the file was made by asking something else, or is none of ours.
        StartError: it cannot be written, or another run writes it.
    """

    def __init__(self, path: Path, about: dict[str, Any], afresh: bool = False) -> None:
        self.path = path
        self.done: set[str] = set()
        self.refused = 0
        self.answerers: set[Answerer] = set()
        """Who gave the answers that were there at the start."""
        self._about = about
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a+b")
        except OSError as error:
            raise StartError(f"cannot write {path}: {error.strerror}") from None
        try:
            _hold(self._file, path)
            if afresh:
                self._file.truncate(0)
            self._resume()
        except BaseException:
            self._file.close()
            raise

    def add(self, name: str, answer: dict[str, Any]) -> None:
        """One more answer, which is in the file when this returns.

        Raises:
            StartError: another model has answered than before; nothing was written.
        """
        if (kind := answerer_of(answer)) is not None:
            self.check(kind)
        line = json.dumps({"file": name} | self._about | answer, separators=(",", ":")) + "\n"
        self._file.write(line.encode())
        self._file.flush()
        self.done.add(name)
        self.refused += REFUSED in answer

    def check(self, answerer: Answerer) -> None:
        """Raises StartError if the answers that were there at the start are all of others."""
        if self.answerers and answerer not in self.answerers:
            raise StartError(
                f"{self.path} holds answers of {' '.join(min(self.answerers))}, and now "
                f"{' '.join(answerer)} answers; name another file with --out, or start afresh with "
                "--overwrite"
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if not self.done:
            self.path.unlink(missing_ok=True)  # while it is held, so that it is nobody else's
        self._file.close()

    def _resume(self) -> None:
        whole = 0
        self._file.seek(0)
        for line in self._file:
            if not line.endswith(b"\n"):
                self._check_unfinished(line, whole)
                break
            row = self._row(line)
            self.done.add(row["file"])
            self.refused += REFUSED in row
            if (kind := answerer_of(row)) is not None:
                self.answerers.add(kind)
            whole += len(line)
        self._file.truncate(whole)

    def _check_unfinished(self, line: bytes, whole: int) -> None:
        """Raises BadSettings unless the last line, which is to be cut, is one of ours: it follows
        others, or begins like them and is no document by itself.
        """
        if whole:
            return
        if not (line.startswith(_START) or _START.startswith(line)):
            raise self._foreign()
        with suppress(ValueError):
            json.loads(line)
            self._row(line)

    def _row(self, line: bytes) -> dict[str, Any]:
        try:
            row: dict[str, Any] = json.loads(line)
            before = {name: row[name] for name in ("file", *self._about)}
        except (ValueError, KeyError, TypeError):
            raise self._foreign() from None
        del before["file"]
        if before != self._about:
            raise BadSettings(
                f"{self.path} holds answers to {json.dumps(before)}, and now "
                f"{json.dumps(self._about)} is asked; name another file with --out, or start "
                "afresh with --overwrite"
            )
        return row

    def _foreign(self) -> BadSettings:
        return BadSettings(
            f"{self.path} is there and is no file of answers; name another with --out"
        )


def answerer_of(row: dict[str, Any]) -> Answerer | None:
    """Who gave an answer; None where it was refused."""
    return (row["model"], row["version"], row["precision"]) if "model" in row else None


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Every line of a journal."""
    with path.open("rb") as file:
        for line in file:
            yield json.loads(line)


def _hold(file: BinaryIO, path: Path) -> None:
    """Keep other runs from the file until it is closed, also after a kill."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        taken = os.fstat(file.fileno()).st_nlink == 0  # by one that removed it just now
    except BlockingIOError:
        taken = True
    except OSError:  # a file system that has no locks
        taken = False
    if taken:
        raise StartError(
            f"another run writes {path}; wait for it to end, or name another file with --out"
        )
