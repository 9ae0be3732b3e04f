"""The few functions of CUDA's driver that running an engine takes, without a package for them."""

import copy
import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Protocol

import numpy as np

from service.devices import DRIVER
from service.errors import BadSettings
from service.worker.runtimes.base import Array

_BLOCKING_SYNC, _DISABLE_TIMING = 1, 2  # of events: sleep while waiting, measure nothing
_NON_BLOCKING = 1  # of streams: no order with the default stream
_CAPTURE_THREAD = 1  # other threads may allocate meanwhile


class CudaError(RuntimeError):
    """A call failed; its text has CUDA's own name of the error, such as CUDA_ERROR_OUT_OF_MEMORY,
    by which the worker knows a lost device and a full one.
    """


class Cuda(Protocol):
    """The driver, one method wide."""

    def call(self, function: str, *arguments: Any) -> None:
        """Call a function of the driver's API by its name.

        Raises:
            CudaError: it does not return success.
        """
        ...


class Driver:
    """The real one.

    Raises:
        BadSettings: there is none on this machine, or it sees no device.
    """

    def __init__(self, load: Callable[[str], Any] = ctypes.CDLL) -> None:
        try:
            self._library = load(DRIVER)
        except OSError:
            raise BadSettings(
                f"there is no NVIDIA driver here ({DRIVER} cannot be loaded), so that no engine "
                "can run; serve with --device cpu"
            ) from None
        try:
            self.call("cuInit", 0)
        except CudaError as error:
            raise BadSettings(f"the NVIDIA driver sees no GPU that it can use: {error}") from None

    def call(self, function: str, *arguments: Any) -> None:
        """See ``Cuda.call``."""
        error = getattr(self._library, function)(*arguments)
        if error:
            name = ctypes.c_char_p()
            self._library.cuGetErrorName(error, ctypes.byref(name))
            raise CudaError(f"{function}: {(name.value or str(error).encode()).decode()}")

    def version(self) -> int:
        """Of CUDA, as the driver has it: 13010 is 13.1."""
        found = ctypes.c_int()
        self.call("cuDriverGetVersion", ctypes.byref(found))
        return found.value


class Context:
    """The primary context of one device, which the inference library uses, too; and what was made
    in it, for ``release``.
    """

    def __init__(self, cuda: Cuda, index: int) -> None:
        self.cuda = cuda
        self._held: list[tuple[str, Any]] = []
        device, self._handle = ctypes.c_int(), ctypes.c_void_p()
        cuda.call("cuDeviceGet", ctypes.byref(device), index)
        cuda.call("cuDevicePrimaryCtxRetain", ctypes.byref(self._handle), device)

    def part(self) -> "Context":
        """The same, holding nothing: what is made in it can be given back apart from the rest."""
        other = copy.copy(self)
        other._held = []
        return other

    def release(self) -> None:
        """Give back everything made here, last first. A lost device has nothing to give back."""
        with suppress(CudaError):
            self.enter()
            self.cuda.call("cuCtxSynchronize")
        while self._held:
            function, handle = self._held.pop()
            with suppress(CudaError):
                self.cuda.call(function, handle)

    def enter(self) -> None:
        """Make it the calling thread's own; every thread has to, and again costs nothing.

        Captures of other threads are none of its business then: ONNX Runtime's are of the kind that
        forbids every other thread to take memory or to wait for an event meanwhile.
        """
        self.cuda.call("cuCtxSetCurrent", self._handle)
        mode = ctypes.c_int(_CAPTURE_THREAD)
        self.cuda.call("cuThreadExchangeStreamCaptureMode", ctypes.byref(mode))

    def stream(self) -> ctypes.c_void_p:
        """Work in it is done in order, and beside that of other streams."""
        return self._made("cuStreamCreate", _NON_BLOCKING, "cuStreamDestroy_v2")

    def event(self) -> ctypes.c_void_p:
        """A mark in a stream, which others and the host can wait for."""
        return self._made("cuEventCreate", _BLOCKING_SYNC | _DISABLE_TIMING, "cuEventDestroy_v2")

    def timer(self) -> ctypes.c_void_p:
        """A mark that knows when it was passed, by the device's clock."""
        return self._made("cuEventCreate", _BLOCKING_SYNC, "cuEventDestroy_v2")

    def elapsed_s(self, first: ctypes.c_void_p, last: ctypes.c_void_p) -> float:
        """Seconds between two timers, once the last is passed."""
        found = ctypes.c_float()
        self.cuda.call("cuEventElapsedTime", ctypes.byref(found), first, last)
        return found.value / 1e3

    def device_memory(self, size_bytes: int) -> int:
        """The address of a block on the device, aligned to 256 bytes."""
        address = ctypes.c_uint64()
        size = ctypes.c_size_t(max(size_bytes, 1))
        self.cuda.call("cuMemAlloc_v2", ctypes.byref(address), size)
        self._held.append(("cuMemFree_v2", address))
        return int(address.value)

    def host_memory(self, size_bytes: int) -> "Pinned":
        """Zeros in memory that the device reads and writes without a copy."""
        address = ctypes.c_void_p()
        size = ctypes.c_size_t(max(size_bytes, 1))
        self.cuda.call("cuMemHostAlloc", ctypes.byref(address), size, 0)
        self._held.append(("cuMemFreeHost", address))
        return Pinned(int(address.value or 0), size_bytes)

    def record(self, event: ctypes.c_void_p, stream: ctypes.c_void_p) -> None:
        """Put the mark at the end of what a stream has to do now."""
        self.cuda.call("cuEventRecord", event, stream)

    def wait_in(self, stream: ctypes.c_void_p, event: ctypes.c_void_p) -> None:
        """Have a stream go on only after a mark."""
        self.cuda.call("cuStreamWaitEvent", stream, event, 0)

    def wait_for(self, event: ctypes.c_void_p) -> None:
        """Have this thread sleep until a mark is passed."""
        self.cuda.call("cuEventSynchronize", event)

    def copy_in(self, target: int, source: int, size_bytes: int, stream: ctypes.c_void_p) -> None:
        """From pinned memory to the device, in a stream."""
        self.cuda.call(
            "cuMemcpyHtoDAsync_v2",
            ctypes.c_uint64(target),
            ctypes.c_void_p(source),
            ctypes.c_size_t(size_bytes),
            stream,
        )

    def copy_out(self, target: int, source: int, size_bytes: int, stream: ctypes.c_void_p) -> None:
        """From the device to pinned memory, in a stream."""
        self.cuda.call(
            "cuMemcpyDtoHAsync_v2",
            ctypes.c_void_p(target),
            ctypes.c_uint64(source),
            ctypes.c_size_t(size_bytes),
            stream,
        )

    def captured(
        self, stream: ctypes.c_void_p, enqueue: Callable[[ctypes.c_void_p], None]
    ) -> ctypes.c_void_p:
        """A CUDA graph of what is put into a stream, to be replayed with one call.

        Raises:
            CudaError: something in it cannot be captured.
        """
        self.cuda.call("cuStreamSynchronize", stream)
        graph, ready = ctypes.c_void_p(), ctypes.c_void_p()
        with self._capture(stream, graph):
            enqueue(stream)
        try:
            self.cuda.call(
                "cuGraphInstantiateWithFlags", ctypes.byref(ready), graph, ctypes.c_uint64(0)
            )
        finally:
            self.cuda.call("cuGraphDestroy", graph)
        self._held.append(("cuGraphExecDestroy", ready))
        return ready

    def replay(self, graph: ctypes.c_void_p, stream: ctypes.c_void_p) -> None:
        """Put a captured graph into a stream."""
        self.cuda.call("cuGraphLaunch", graph, stream)

    @contextmanager
    def _capture(self, stream: ctypes.c_void_p, graph: ctypes.c_void_p) -> Iterator[None]:
        """A stream that is left in capture is of no use any more, so it ends whatever happens."""
        self.cuda.call("cuStreamBeginCapture_v2", stream, _CAPTURE_THREAD)
        try:
            yield
        except BaseException:
            with suppress(CudaError):  # what broke the capture is on its way up
                self.cuda.call("cuStreamEndCapture", stream, ctypes.byref(graph))
            raise
        self.cuda.call("cuStreamEndCapture", stream, ctypes.byref(graph))

    def _made(self, function: str, flags: int, undone_by: str) -> ctypes.c_void_p:
        handle = ctypes.c_void_p()
        self.cuda.call(function, ctypes.byref(handle), flags)
        self._held.append((undone_by, handle))
        return handle


class Pinned:
    """A block of host memory that does not move, all zeros at first."""

    def __init__(self, address: int, size_bytes: int) -> None:
        self.address = address
        block = (ctypes.c_uint8 * max(size_bytes, 1)).from_address(address)
        self._bytes: Array = np.ctypeslib.as_array(block)
        self._bytes[:] = 0

    def view(self, offset: int, dtype: str, shape: tuple[int, ...]) -> Array:
        """An array that lies in it."""
        count = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        return self._bytes[offset : offset + count].view(dtype).reshape(shape)
