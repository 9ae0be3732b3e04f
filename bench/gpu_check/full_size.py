"""The published networks at their full size with random weights as engines: true cost, no accuracy.

``export.random_weights`` writes their bundles and builds their engines. Tracing takes one core for
a minute, so all are traced at once, and the first engines are built meanwhile.
"""

import subprocess
import sys
from collections.abc import Iterator

from bench.gpu_check.networks import LARGEST_ERROR, SUBJECTS, Subject
from bench.gpu_check.rows import LEAST_S, ROOT, Room, Row, Skip, attempt, failed, skipped

COMMAND = [sys.executable, "-m", "export.random_weights"]


def full_size_rows(room: Room) -> Iterator[Row]:
    """Bundle, engine, parity and speed of every network in bf16, each a row of failure where not;
    the bundles with engines are what the server serves then.
    """
    started = [(subject, _Written(subject, room)) for subject in SUBJECTS]
    try:
        for subject, written in started:
            what = f"tensorrt bf16 {subject.name}"
            if room.left_s() < LEAST_S:
                yield skipped(what, "the time was over")
            else:
                yield from attempt(what, _rows_of(room, subject, written))
    finally:
        for _, written in started:
            written.end()


def unmeasured(rows: list[Row]) -> Iterator[Row]:
    """A failure for each network of which there is no speed of an engine: where TensorRT is
    installed, that is what the check is for.
    """
    found = {row["model"] for row in rows if row["kind"] == "engine" and _of_tensorrt(row)}
    for subject in SUBJECTS:
        if subject.name not in found:
            yield failed(f"tensorrt bf16 {subject.name}", "no engine of it was measured")


class _Written:
    """A bundle that another process writes."""

    def __init__(self, subject: Subject, room: Room) -> None:
        room.full_size.mkdir(exist_ok=True)
        self.folder = room.full_size / subject.name / "1"
        self._said = room.full_size / f"{subject.name}.log"
        sides = "x".join(map(str, subject.canvas))
        command = [*COMMAND, "write", subject.name, sides, str(room.full_size)]
        with self._said.open("w") as log:
            self._process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)

    def wait(self, at_most_s: float) -> None:
        """Until it is there.

        Raises:
            Skip: it takes longer.
            RuntimeError: it cannot be written.
        """
        try:
            code = self._process.wait(at_most_s)
        except subprocess.TimeoutExpired:
            raise Skip("its graphs were not traced in the time that was left") from None
        if code != 0:
            last = self._said.read_text(errors="replace").strip().splitlines()[-1:]
            raise RuntimeError(f"its bundle cannot be written: {' '.join(last) or code}")

    def end(self) -> None:
        """Nobody waits for it any more."""
        self._process.kill()
        self._process.wait()


def _rows_of(room: Room, subject: Subject, written: _Written) -> Iterator[Row]:
    from bench.gpu_check.bundles import build_rows, runtime_rows
    from service.bundle import load_bundle
    from service.worker.runtimes.choose import Choice

    written.wait(room.left_s())
    what, tuned = f"building a bf16 engine of {subject.name}", ",".join(map(str, subject.tuned))
    command = [*COMMAND, "build", str(written.folder), tuned]
    failures = list(build_rows(what, command, max(room.left_s(), 1.0)))
    yield from failures
    if not failures:
        choice = Choice("tensorrt", "bf16", "cuda:0")
        allowed = {"logits": LARGEST_ERROR["bf16"]}
        yield from runtime_rows(load_bundle(written.folder), choice, subject.tuned, allowed)


def _of_tensorrt(row: Row) -> bool:
    return bool(row["runtime"] == "tensorrt")
