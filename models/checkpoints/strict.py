"""Weights taken one by one, and an error that names everything wrong with them at once."""

from torch import Tensor, zeros

from models.checkpoints.errors import CheckpointError


class StrictReader:
    """Hands out tensors by name and shape; ``finish`` raises unless exactly the expected were
    there.
    """

    def __init__(self, tensors: dict[str, Tensor], source: str) -> None:
        self._tensors = tensors
        self._source = source
        self._taken: set[str] = set()
        self._missing: list[str] = []
        self._misshapen: list[str] = []

    def names(self) -> list[str]:
        """Every name in the checkpoint."""
        return list(self._tensors)

    def take(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """The tensor of that name; zeros in its place where it is missing or of another shape."""
        self._taken.add(name)
        tensor = self._tensors.get(name)
        if tensor is None:
            self._missing.append(f"{name} {list(shape)}")
        elif tuple(tensor.shape) != shape:
            found = list(tensor.shape)
            self._misshapen.append(f"{name} is {found}, expected {list(shape)}")
        else:
            return tensor
        return zeros(shape)

    def finish(self, ignored: tuple[str, ...]) -> list[str]:
        """The names left aside because they begin with one of ``ignored``.

        Raises CheckpointError that lists every weight that is missing, unexpected or of another
        shape.
        """
        left = sorted(set(self._tensors) - self._taken)
        aside = [name for name in left if name.startswith(ignored)]
        unexpected = [
            f"{name} {list(self._tensors[name].shape)}" for name in left if name not in aside
        ]
        findings = {
            "missing": self._missing,
            "unexpected": unexpected,
            "wrongly shaped": self._misshapen,
        }
        if any(findings.values()):
            listed = "; ".join(
                f"{what}: {', '.join(names)}" for what, names in findings.items() if names
            )
            raise CheckpointError(
                f"the weights of {self._source} are not those its config describes; {listed}"
            )
        return aside
