"""A plan read into the library: its signatures, its types, and contexts that run one batch size."""

import ctypes
import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from service.engines import BatchRange
from service.errors import BadBundle
from service.worker.runtimes.base import Signature
from service.worker.runtimes.buckets import Bucket
from service.worker.runtimes.tensorrt.building import Log
from service.worker.runtimes.tensorrt.library import Library, load, register_plugins

Enqueue = Callable[[ctypes.c_void_p], None]
"""Puts one batch into a stream."""

_DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "INT32": "int32",
    "INT64": "int64",
    "UINT8": "uint8",
    "BOOL": "bool",
}
_TYPE_WORDS = (
    (re.compile(r"\bbf(loat)?16\b", re.I), "bf16"),
    (re.compile(r"\bfp8|e4m3|float8", re.I), "fp8"),
    (re.compile(r"\b(half|fp16|float16)\b", re.I), "fp16"),
    (re.compile(r"\b(float|fp32|float32)\b", re.I), "fp32"),
    (re.compile(r"\bu?int8\b", re.I), "int8"),
)
"""How the inspector calls types, which differs from release to release; the first that fits."""

LEAST_SHARE = 0.1
"""Of a plan's outputs of layers with a fraction in a reduced type, where the library names types.
Networks of deformable attention have 0.39, Swin 0.72, before the library fuses layers as it likes;
what this is to find is a plan that left the type that its network states."""


class Engine(Protocol):
    """A plan that can run, one method wide besides its facts."""

    inputs: dict[str, Signature]
    outputs: dict[str, Signature]
    profiles: int
    scratch_bytes: int
    """Memory on the device that a batch needs while it runs."""

    def prepare(
        self, bucket: Bucket, addresses: dict[str, int], scratch: int, stream: ctypes.c_void_p
    ) -> Enqueue:
        """A batch with all its tensors at these addresses of the device.

        Raises:
            BadBundle: the engine does not take the batch.
        """
        ...


class PlanEngine:
    """A plan in the real library.

    Raises:
        BadBundle: it is not this library's, or not for this device.
        StartError: there is no library.
    """

    def __init__(self, plan: bytes, library: Library | None = None) -> None:
        self.library = library or load()
        trt, self._log = self.library.trt, Log(self.library)
        register_plugins(self.library)
        self._runtime = trt.Runtime(self._log.listener)
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise BadBundle(f"{self.library} refuses the plan: {self._log.said()}")
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        modes = {name: self._engine.get_tensor_mode(name).name for name in names}
        self.inputs = {n: self._signature(n) for n in names if modes[n] == "INPUT"}
        self.outputs = {n: self._signature(n) for n in names if modes[n] == "OUTPUT"}
        self.profiles = int(self._engine.num_optimization_profiles)
        self.scratch_bytes = max(
            int(self._engine.get_device_memory_size_for_profile_v2(index))
            for index in range(self.profiles)
        )

    def prepare(
        self, bucket: Bucket, addresses: dict[str, int], scratch: int, stream: ctypes.c_void_p
    ) -> Enqueue:
        """See ``Engine.prepare``. Each has a context of its own: a captured graph is only good for
        the state that its context had.
        """
        context = self._context(bucket, stream)
        context.set_device_memory(scratch, self.scratch_bytes)
        for name, address in addresses.items():
            if not context.set_tensor_address(name, address):
                raise BadBundle(f"{self.library} does not take {name!r}: {self._log.said()}")

        def enqueue(stream: ctypes.c_void_p) -> None:
            if not context.execute_async_v3(int(stream.value or 0)):
                raise RuntimeError(f"{self.library} could not run a batch: {self._log.said()}")

        return enqueue

    def shares(self) -> dict[str, float]:
        """See ``shares_of``; by the library's inspector, which names the types of a dynamic batch
        only to a context that knows its profile and its shapes.
        """
        inspector = self._engine.create_engine_inspector()
        kind = self.library.trt.LayerInformationFormat.JSON
        said = []
        for profile in range(self.profiles):
            _, best, _ = self._engine.get_tensor_profile_shape(next(iter(self.inputs)), profile)
            context = self._context(Bucket(profile, int(best[0])), ctypes.c_void_p())
            inspector.execution_context = context
            said.append(inspector.get_engine_information(kind))
        return shares_of(*said)

    def _context(self, bucket: Bucket, stream: ctypes.c_void_p) -> Any:
        """One that has its profile and its shapes, and no memory yet."""
        trt = self.library.trt
        context = self._engine.create_execution_context(
            trt.ExecutionContextAllocationStrategy.USER_MANAGED
        )
        if context is None:
            raise BadBundle(f"{self.library} cannot run the plan: {self._log.said()}")
        done = context.set_optimization_profile_async(bucket.profile, int(stream.value or 0))
        for name, (_, shape) in self.inputs.items():
            done = done and context.set_input_shape(name, (bucket.batch, *shape[1:]))
        if not done:
            raise BadBundle(
                f"{self.library} does not take a batch of {bucket.batch} in profile "
                f"{bucket.profile}: {self._log.said()}"
            )
        return context

    def _signature(self, name: str) -> Signature:
        shape = self._engine.get_tensor_shape(name)
        dtype = self._engine.get_tensor_dtype(name).name
        sides = tuple(None if side == -1 else int(side) for side in shape)
        return _DTYPES.get(dtype, dtype.lower()), sides


def shares_of(*inspected: str) -> dict[str, float]:
    """Of the outputs of a plan's layers that have a fraction, the share in each type.

    ``inspected`` is the inspector's JSON of each profile, with "Format/Datatype" (10) or "Datatype"
    beside "Format" (11). Empty where it names no types ("N/A due to dynamic shapes").
    """
    found = Counter[str]()
    for layer in (one for text in inspected for one in json.loads(text).get("Layers", [])):
        for output in layer.get("Outputs", []) if isinstance(layer, dict) else []:
            text = str(output.get("Datatype") or output.get("Format/Datatype") or "")
            kind = next((name for words, name in _TYPE_WORDS if words.search(text)), None)
            if kind is not None:
                found[kind] += 1
    total = found.total()
    return {name: count / total for name, count in sorted(found.items())}


def wrong_shares(shares: dict[str, float], precision: str) -> str | None:
    """Why a plan does not compute in the precision asked for, as a clause; None if it does, or if
    the inspector names no types: then the network, which states them all, is the proof.
    """
    if not shares:
        return None
    wrong = sum(share for name, share in shares.items() if name not in ("fp32", "int8"))
    if precision == "fp32":
        return f"{wrong:.0%} of its layers' outputs are below fp32" if wrong else None
    share = shares.get(precision, 0.0)
    if share >= LEAST_SHARE:
        return None
    others = ", ".join(f"{part:.0%} in {name}" for name, part in shares.items())
    return (
        f"{share:.0%} of its layers' outputs are in {precision} (least {LEAST_SHARE:.0%}); "
        f"it has {others}"
    )


def check_profiles(engine: Engine, ranges: Sequence[BatchRange]) -> None:
    """A manifest says which batches a plan takes, in the order of its profiles.

    Raises:
        BadBundle: the plan has more or fewer.
    """
    if engine.profiles != len(ranges):
        raise BadBundle(
            f"the plan has {engine.profiles} profiles; the manifest names {len(ranges)}. "
            "Build it again with: saccade build"
        )


def size_of(signature: Signature, batch: int) -> tuple[int, ...]:
    """The shape of a tensor at a batch."""
    return tuple(batch if side is None else side for side in signature[1])
