"""Which devices a server runs on: what ``--device`` names, the GPUs that CUDA's driver shows, and
where the worker of each listens.
"""

import ctypes
import functools
import re
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from service.errors import BadSettings

DRIVER = "libcuda.so.1"
GPU_RUNTIMES = ("onnxruntime-gpu", "tensorrt", "tensorrt-cu13", "tensorrt-cu12")
"""Packages that run graphs on a GPU."""
CPU_RUNTIMES = ("openvino",)

_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76
_NAME_BYTES = 96


@dataclass(frozen=True)
class Gpu:
    """One GPU, by its number in CUDA's order, which heeds ``CUDA_VISIBLE_DEVICES``."""

    index: int
    name: str
    uuid: str
    capability: tuple[int, int]
    memory_bytes: int

    @property
    def device(self) -> str:
        """What ``--device`` calls it."""
        return f"cuda:{self.index}"


@dataclass(frozen=True)
class Gpus:
    """Those that are there, or ``fault``: why none is, as a clause."""

    found: tuple[Gpu, ...] = ()
    fault: str | None = None


def find_gpus(load: Callable[[str], Any] = ctypes.CDLL) -> Gpus:
    """Ask CUDA's driver; no context is made on any of them. ``load`` opens the library."""
    try:
        driver = load(DRIVER)
    except OSError:
        return Gpus(fault=f"there is no NVIDIA driver here ({DRIVER} cannot be loaded)")
    error = driver.cuInit(0)
    if error:
        return Gpus(
            fault=f"the NVIDIA driver sees no GPU it can use (cuInit: {_name(driver, error)})"
        )
    count = ctypes.c_int()
    error = driver.cuDeviceGetCount(ctypes.byref(count))
    if error or not count.value:
        return Gpus(fault="the NVIDIA driver sees no GPU; CUDA_VISIBLE_DEVICES may hide it")
    return Gpus(tuple(_gpu(driver, index) for index in range(count.value)))


@functools.cache
def gpus() -> Gpus:
    """As ``find_gpus``, asked once: a driver that failed in a process fails there for good."""
    return find_gpus()


def index_of(device: str) -> int:
    """The number in ``cuda:1``; 0 of ``cuda``."""
    return int(device.partition(":")[2] or 0)


def device_fault(device: str) -> str | None:
    """Why there is no such GPU here, as a clause; None if there is."""
    found = gpus()
    if found.fault is not None:
        return found.fault
    known = [gpu.device for gpu in found.found]
    return None if device in ("cuda", *known) else f"there is no {device}, only {', '.join(known)}"


def driver_version(file: Path = Path("/proc/driver/nvidia/version")) -> str | None:
    """The driver's own number, such as 580.65.06, as the kernel's module says it."""
    try:
        found = re.search(r"\s(\d+\.\d+(?:\.\d+)?)\s", file.read_text())
    except OSError:
        return None
    return found[1] if found else None


def expand(
    wish: str,
    runtime: str = "auto",
    seen: Callable[[], Gpus] = gpus,
    installed: Callable[[], bool] | None = None,
) -> list[str]:
    """The devices that ``--device`` names, one worker each; every GPU for ``cuda``, and for
    ``auto`` where a library for GPUs is installed and ``runtime`` is none for CPUs, else the CPU.

    Raises:
        BadSettings: a GPU is named that is not there.
    """
    if wish == "auto":
        wanted = runtime not in CPU_RUNTIMES and (installed or gpu_runtime_installed)()
        there = seen().found if wanted else ()
        return [gpu.device for gpu in there] or ["cpu"]
    devices = []
    for name in wish.split(","):
        if name == "cpu":
            devices.append(name)
            continue
        found = seen()
        if found.fault is not None:
            raise BadSettings(f"--device {wish}: {found.fault}; serve with --device cpu")
        known = [gpu.device for gpu in found.found]
        if name not in ("cuda", *known):
            raise BadSettings(f"--device {wish}: there is no {name}; there are {', '.join(known)}")
        devices += known if name == "cuda" else [name]
    return devices


def labels(devices: Sequence[str]) -> list[str]:
    """A name for each: several workers on one device are numbered."""
    seen: Counter[str] = Counter()
    names = []
    for device in devices:
        seen[device] += 1
        names.append(device if seen[device] == 1 else f"{device}#{seen[device]}")
    return names


def endpoints(endpoint: str, count: int) -> list[str]:
    """Where each worker listens; the first at ``endpoint``, the others beside it."""
    path = Path(endpoint.removeprefix("ipc://"))
    beside = [path.with_name(f"{path.stem}-{number}{path.suffix}") for number in range(1, count)]
    return [endpoint, *(f"ipc://{other}" for other in beside)]


def gpu_runtime_installed() -> bool:
    """Whether any library that runs graphs on a GPU is installed; imports none."""
    for package in GPU_RUNTIMES:
        try:
            version(package)
        except PackageNotFoundError:
            continue
        return True
    return False


def _gpu(driver: Any, index: int) -> Gpu:
    handle, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    name, raw, memory = (
        ctypes.create_string_buffer(_NAME_BYTES),
        (ctypes.c_ubyte * 16)(),
        ctypes.c_size_t(),
    )
    driver.cuDeviceGet(ctypes.byref(handle), index)
    driver.cuDeviceGetName(name, _NAME_BYTES, handle)
    driver.cuDeviceGetUuid(ctypes.byref(raw), handle)
    driver.cuDeviceTotalMem_v2(ctypes.byref(memory), handle)
    driver.cuDeviceGetAttribute(ctypes.byref(major), _CAPABILITY_MAJOR, handle)
    driver.cuDeviceGetAttribute(ctypes.byref(minor), _CAPABILITY_MINOR, handle)
    return Gpu(
        index,
        name.value.decode(),
        f"GPU-{uuid.UUID(bytes=bytes(raw))}",
        (major.value, minor.value),
        memory.value,
    )


def _name(driver: Any, error: int) -> str:
    text = ctypes.c_char_p()
    driver.cuGetErrorName(error, ctypes.byref(text))
    return (text.value or str(error).encode()).decode()
