"""TensorRT engines as a manifest states them: what an engine was built from, for which device, and
for which batches.

A plan is machine code: it runs on the kind of device and in the library that it was built for, and
one that was built for another says so at best and is wrong at worst. So every fact that decides is
in its fingerprint, and an engine serves only where all of them are the same.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

Library = Literal["tensorrt", "tensorrt_rtx"]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Machine(_Strict):
    """The library and the device that engines are made for."""

    library: Library
    version: str = Field(description="of the library, in full")
    gpu: str = Field(description="name of the device, as its driver says")
    compute_capability: Annotated[str, StringConstraints(pattern=r"^\d+\.\d+$")]
    driver_major: int = Field(ge=1)


class BatchRange(_Strict):
    """One optimisation profile: batches from ``least`` to ``most``, fastest at ``best``."""

    least: int = Field(ge=1)
    best: int = Field(ge=1)
    most: int = Field(ge=1)

    @model_validator(mode="after")
    def _rises(self) -> "BatchRange":
        if not self.least <= self.best <= self.most:
            raise ValueError(f"{self.least} <= {self.best} <= {self.most} does not hold")
        return self

    def __str__(self) -> str:
        return f"{self.least}-{self.most}" if self.least < self.most else str(self.most)


class Fingerprint(_Strict):
    """All that decides whether a plan may run, and what it computes."""

    graph_sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")] = Field(
        description="of the typed graph's file and its weights' files"
    )
    machine: Machine
    flags: list[str] = Field(description="how it was built, such as 'strongly typed'")
    profiles: list[BatchRange] = Field(min_length=1)


def batch_ranges(batches: list[int]) -> list[BatchRange]:
    """A profile per batch asked for: from one more than the batch before up to the batch itself,
    where it is tuned. Together they cover every batch from 1 up to the largest.
    """
    most = sorted(set(batches))
    least = [1, *(batch + 1 for batch in most[:-1])]
    return [BatchRange(least=a, best=b, most=b) for a, b in zip(least, most, strict=True)]


def mismatches(found: Fingerprint, expected: Fingerprint) -> list[str]:
    """Where an engine's fingerprint is not what is needed here, a clause each; none if it fits.

    The profiles are not compared: they say which batches an engine takes, and any will do.
    """
    pairs: dict[str, tuple[object, object]] = {
        "graph": (found.graph_sha256[:12], expected.graph_sha256[:12]),
        "library": (
            f"{found.machine.library} {found.machine.version}",
            f"{expected.machine.library} {expected.machine.version}",
        ),
        "GPU": (found.machine.gpu, expected.machine.gpu),
        "compute capability": (
            found.machine.compute_capability,
            expected.machine.compute_capability,
        ),
        "driver": (found.machine.driver_major, expected.machine.driver_major),
        "flags": (sorted(found.flags), sorted(expected.flags)),
    }
    return [
        f"its {name} is {was}, here it is {here}"
        for name, (was, here) in pairs.items()
        if was != here
    ]
