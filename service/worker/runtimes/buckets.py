"""Which batch an engine runs for a number of pictures, and where its tensors lie: plain arithmetic,
so that it needs no device to be tested.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from service.engines import BatchRange
from service.worker.runtimes.base import Signature

LANES = 3
"""Batches of an engine under way at once: one is copied in, one runs, one is copied out."""
ALIGNMENT_BYTES = 256
"""What device memory of the CUDA allocator is aligned to; TensorRT asks for it of its bindings."""


@dataclass(frozen=True)
class Bucket:
    """Pictures run as a batch of ``batch``, in the profile numbered ``profile``."""

    profile: int
    batch: int


@dataclass(frozen=True)
class Place:
    """A tensor within a block of memory."""

    offset: int
    size_bytes: int


@dataclass(frozen=True)
class Layout:
    """Where every tensor of a batch lies in one block of ``size_bytes``."""

    places: dict[str, Place]
    size_bytes: int


def profile_for(ranges: Sequence[BatchRange], count: int) -> int:
    """The profile that takes ``count`` pictures, the one tuned nearest above them if several do.

    Raises:
        ValueError: none does.
    """
    fits = [i for i, one in enumerate(ranges) if one.least <= count <= one.most]
    if not fits:
        offered = ", ".join(str(one) for one in ranges)
        raise ValueError(f"no profile takes a batch of {count}; the engine has {offered}")
    return min(fits, key=lambda i: (abs(ranges[i].best - count), i))


def bucket_for(ranges: Sequence[BatchRange], count: int) -> Bucket:
    """Pictures are filled up to the next batch of a short list, so that each has a CUDA graph.

    The list of a profile is its smallest batch, its largest, and the powers of two between them: at
    most half of a batch is filling.
    """
    profile = profile_for(ranges, count)
    return Bucket(profile, min(size for size in sizes(ranges[profile]) if size >= count))


def sizes(batches: BatchRange) -> list[int]:
    """The batches that a profile really runs, rising."""
    powers = [2**n for n in range(batches.most.bit_length())]
    between = [power for power in powers if batches.least <= power <= batches.most]
    return sorted({batches.least, *between, batches.most})


def cut(ranges: Sequence[BatchRange], count: int) -> list[int]:
    """How many pictures to run together where more come than the largest batch holds."""
    largest = max(one.most for one in ranges)
    whole, rest = divmod(count, largest)
    return [largest] * whole + ([rest] if rest else [])


def layout(signatures: dict[str, Signature], batch: int) -> Layout:
    """Tensors one after another, each aligned."""
    places, offset = {}, 0
    for name, (dtype, shape) in signatures.items():
        size = np.dtype(dtype).itemsize * prod(batch if side is None else side for side in shape)
        places[name] = Place(offset, size)
        offset += size + -size % ALIGNMENT_BYTES
    return Layout(places, offset)
