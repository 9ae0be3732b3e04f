"""Which devices a server runs on, with a driver that shows what a test says."""

import ctypes
from pathlib import Path
from typing import Any

import pytest

from service import devices
from service.devices import (
    Gpu,
    Gpus,
    device_fault,
    driver_version,
    endpoints,
    expand,
    find_gpus,
    index_of,
    labels,
)
from service.errors import BadSettings

TWO = Gpus(
    (
        Gpu(0, "H100", "GPU-0", (9, 0), 80 * 2**30),
        Gpu(1, "H100", "GPU-1", (9, 0), 80 * 2**30),
    )
)
NONE = Gpus(fault="there is no NVIDIA driver here (libcuda.so.1 cannot be loaded)")


def put(reference: Any, value: int) -> None:
    reference._obj.value = value


class Driver:
    """CUDA's driver with ``count`` GPUs, or one that fails with ``error``."""

    def __init__(self, count: int, error: int = 0) -> None:
        self._count, self._error = count, error

    def cuInit(self, flags: int) -> int:  # noqa: N802
        return self._error

    def cuGetErrorName(self, error: int, name: Any) -> int:  # noqa: N802
        put(name, b"CUDA_ERROR_NO_DEVICE")  # type: ignore[arg-type]
        return 0

    def cuDeviceGetCount(self, count: Any) -> int:  # noqa: N802
        put(count, self._count)
        return 0

    def cuDeviceGet(self, handle: Any, index: int) -> int:  # noqa: N802
        put(handle, 40 + index)
        return 0

    def cuDeviceGetName(self, name: Any, size: int, handle: Any) -> int:  # noqa: N802
        name.value = f"GPU of handle {handle.value}".encode()
        return 0

    def cuDeviceGetUuid(self, raw: Any, handle: Any) -> int:  # noqa: N802
        ctypes.memmove(raw._obj, bytes(range(16)), 16)
        return 0

    def cuDeviceTotalMem_v2(self, memory: Any, handle: Any) -> int:  # noqa: N802
        put(memory, 2**34)
        return 0

    def cuDeviceGetAttribute(self, value: Any, attribute: int, handle: Any) -> int:  # noqa: N802
        put(value, {75: 9, 76: 0}[attribute])
        return 0


def test_every_gpu_is_told_by_its_name_capability_memory_and_uuid() -> None:
    found = find_gpus(lambda name: Driver(2))
    assert found.fault is None
    uuid = "GPU-00010203-0405-0607-0809-0a0b0c0d0e0f"
    assert found.found == (
        Gpu(0, "GPU of handle 40", uuid, (9, 0), 2**34),
        Gpu(1, "GPU of handle 41", uuid, (9, 0), 2**34),
    )
    assert [gpu.device for gpu in found.found] == ["cuda:0", "cuda:1"]


def test_without_a_driver_a_gpu_or_both_the_reason_is_told() -> None:
    def missing(name: str) -> Any:
        raise OSError(name)

    assert find_gpus(missing) == NONE
    failing = find_gpus(lambda name: Driver(0, error=100)).fault
    assert failing == "the NVIDIA driver sees no GPU it can use (cuInit: CUDA_ERROR_NO_DEVICE)"
    hidden = find_gpus(lambda name: Driver(0)).fault
    assert hidden == "the NVIDIA driver sees no GPU; CUDA_VISIBLE_DEVICES may hide it"


@pytest.mark.parametrize(
    ("wish", "seen", "installed", "devices"),
    [
        ("cpu", NONE, True, ["cpu"]),
        ("cpu,cpu", NONE, False, ["cpu", "cpu"]),
        ("auto", NONE, True, ["cpu"]),
        ("auto", TWO, False, ["cpu"]),
        ("auto", TWO, True, ["cuda:0", "cuda:1"]),
        ("cuda", TWO, False, ["cuda:0", "cuda:1"]),
        ("cuda:1", TWO, True, ["cuda:1"]),
        ("cuda:1,cpu", TWO, True, ["cuda:1", "cpu"]),
    ],
)
def test_a_wish_is_a_worker_for_each_device(
    wish: str, seen: Gpus, installed: bool, devices: list[str]
) -> None:
    assert expand(wish, "auto", lambda: seen, lambda: installed) == devices


@pytest.mark.parametrize(
    ("wish", "seen", "sentence"),
    [
        ("cuda", NONE, "--device cuda: there is no NVIDIA driver here"),
        ("cpu,cuda:0", NONE, "serve with --device cpu"),
        ("cuda:2", TWO, "--device cuda:2: there is no cuda:2; there are cuda:0, cuda:1"),
    ],
)
def test_a_gpu_that_is_not_there_is_refused_with_a_sentence(
    wish: str, seen: Gpus, sentence: str
) -> None:
    with pytest.raises(BadSettings, match=sentence):
        expand(wish, "auto", lambda: seen)


def test_a_library_for_cpus_does_not_make_gpus_busy() -> None:
    assert expand("auto", "openvino", lambda: TWO, lambda: True) == ["cpu"]
    assert expand("auto", "onnxruntime", lambda: TWO, lambda: True) == ["cuda:0", "cuda:1"]


def test_several_workers_on_one_device_have_names_and_sockets_of_their_own(tmp_path: Path) -> None:
    assert labels(["cpu", "cuda:0", "cpu", "cpu"]) == ["cpu", "cuda:0", "cpu#2", "cpu#3"]
    assert endpoints("ipc:///run/worker.sock", 3) == [
        "ipc:///run/worker.sock",
        "ipc:///run/worker-1.sock",
        "ipc:///run/worker-2.sock",
    ]


def test_a_device_has_its_number_and_one_that_is_not_there_is_told_with_those_that_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert [index_of(device) for device in ("cuda", "cuda:0", "cuda:11")] == [0, 0, 11]
    monkeypatch.setattr(devices, "gpus", lambda: TWO)
    assert [device_fault(device) for device in ("cuda", "cuda:1")] == [None, None]
    assert device_fault("cuda:2") == "there is no cuda:2, only cuda:0, cuda:1"
    monkeypatch.setattr(devices, "gpus", lambda: NONE)
    assert device_fault("cuda:0") == NONE.fault


@pytest.mark.parametrize(
    "kernel_module",
    ["NVIDIA UNIX x86_64 Kernel Module", "NVIDIA UNIX Open Kernel Module for x86_64"],
)
def test_the_driver_is_known_by_the_number_of_its_kernel_module(
    tmp_path: Path, kernel_module: str
) -> None:
    said = tmp_path / "version"
    assert driver_version(said) is None
    said.write_text(
        f"NVRM version: {kernel_module}  580.65.06  Release Build  (root)\n"
        "GCC version:  gcc version 12.2.0 (Debian 12.2.0-14)\n"
    )
    assert driver_version(said) == "580.65.06"
