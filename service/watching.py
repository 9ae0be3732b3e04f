"""Files that whoever runs the server may replace while it runs."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

RECHECK_S = 1.0
"""How long an old content may still be in use."""


class WatchedFiles:
    """Tells when any of the files was written or replaced; looks once in ``RECHECK_S`` at most."""

    def __init__(self, files: Sequence[Path], clock: Callable[[], float] = time.monotonic) -> None:
        """Take the files as they are now; read them after this, so that no change is missed."""
        self._files = files
        self._clock = clock
        self._looked_s = clock()
        self._versions = [_version(file) for file in files]

    def changed(self) -> bool:
        """Whether they did since this was last asked; true once for each change."""
        now_s = self._clock()
        if not self._files or now_s - self._looked_s < RECHECK_S:
            return False
        self._looked_s = now_s
        before, self._versions = self._versions, [_version(file) for file in self._files]
        return self._versions != before


def _version(file: Path) -> tuple[int, ...] | None:
    """What differs when the content does, links followed; None if it is not there."""
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino, found.st_dev
