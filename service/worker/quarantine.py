"""Pictures that nobody may run again: each was alone in the worker when it crashed or hung."""

import contextlib
import hashlib
from pathlib import Path

import numpy as np

from service.worker.runtimes.base import Array, Arrays
from service.worker.scheduler import Group

MOST = 1024  # remembered; beyond that the oldest are forgotten
_SAMPLES = 64  # bytes of each array that are looked at first


class Quarantine:
    """Digests of condemned inputs, in a file that all API processes of a server share.

    Who has no condemned picture pays nothing; who has some looks at a few bytes of each picture
    first, and hashes it only where those are known.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._sample_of: dict[str, str] = {}  # by digest, in the order in which they came
        self._samples: set[str] = set()

    def condemn(self, group: Group, inputs: Arrays) -> None:
        """Remember these inputs of this model, here and for the others to ``read``."""
        line = f"{_sample(group, inputs)} {_digest(group, inputs)}\n"
        self._take(line)
        with contextlib.suppress(OSError), self._path.open("a") as file:
            file.write(line)  # one short write at the end of a file is not torn apart

    def read(self) -> None:
        """Learn what the other processes have condemned."""
        with contextlib.suppress(FileNotFoundError):
            for line in self._path.read_text().splitlines():
                self._take(line)

    def holds(self, group: Group, inputs: Arrays) -> bool:
        """Whether these inputs are condemned."""
        if not self._samples or _sample(group, inputs) not in self._samples:
            return False
        return _digest(group, inputs) in self._sample_of

    def _take(self, line: str) -> None:
        sample, digest = line.split()
        self._sample_of[digest] = sample
        if len(self._sample_of) > MOST:
            del self._sample_of[next(iter(self._sample_of))]
        self._samples = set(self._sample_of.values())


def quarantine_beside(endpoint: str) -> Quarantine:
    """That of the processes which speak to the worker at ``endpoint``."""
    return Quarantine(Path(endpoint.removeprefix("ipc://")).with_name("quarantine"))


def _sample(group: Group, inputs: Arrays) -> str:
    """A few bytes from all over the inputs."""
    flat = [array.reshape(-1) for _, array in sorted(inputs.items())]
    few = [part[:: max(1, len(part) // _SAMPLES)][:_SAMPLES] for part in flat]
    return _hash(group, inputs, few)


def _digest(group: Group, inputs: Arrays) -> str:
    """Every byte of the inputs."""
    return _hash(group, inputs, [array for _, array in sorted(inputs.items())])


def _hash(group: Group, inputs: Arrays, parts: list[Array]) -> str:
    about = [(name, array.dtype.str, array.shape) for name, array in sorted(inputs.items())]
    made = hashlib.blake2b(repr((tuple(group), about)).encode(), digest_size=16)
    for part in parts:
        made.update(np.ascontiguousarray(part).data)
    return made.hexdigest()
