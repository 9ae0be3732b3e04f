"""The thread of a device: one for everything, with the device as its own."""

import ctypes
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from service.worker.runtimes import device_thread as module
from service.worker.runtimes.device_thread import DeviceThread, device_thread
from service.worker.runtimes.tensorrt.cuda import Context


def test_whoever_asks_everything_is_done_in_the_same_thread_one_after_the_other() -> None:
    thread, running = DeviceThread("gpu"), threading.Lock()

    def work() -> tuple[int, str]:
        assert running.acquire(blocking=False), "two at once"
        running.release()
        return threading.get_ident(), threading.current_thread().name

    with ThreadPoolExecutor(4) as pool:
        found = set(pool.map(lambda _: thread.do(work), range(50)))
    assert [name for _, name in found] == ["gpu"]
    assert found != {(threading.get_ident(), "gpu")}


def test_an_error_reaches_who_asked_and_the_thread_goes_on() -> None:
    thread, done = DeviceThread("gpu"), threading.Event()

    def fail() -> None:
        raise RuntimeError("CUDA failure 2: out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        thread.do(fail)
    thread.do_later(fail)
    thread.do_later(done.set)
    assert thread.do(lambda: 7) == 7
    assert done.is_set()


def test_the_thread_of_a_gpu_has_that_gpu_as_its_own_from_the_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    entered: list[tuple[str, Any]] = []

    class Driver:
        def call(self, function: str, *arguments: Any) -> None:
            if function == "cuDevicePrimaryCtxRetain":
                handle, device = arguments
                handle._obj.value = 100 + device.value
            elif function == "cuDeviceGet":
                arguments[0]._obj.value = arguments[1]
            elif function == "cuCtxSetCurrent":
                assert isinstance(arguments[0], ctypes.c_void_p)
                entered.append((threading.current_thread().name, arguments[0].value))

    monkeypatch.setattr(module, "Driver", Driver)
    module._made.cache_clear()
    try:
        thread = device_thread(1)
        assert device_thread(1) is thread is not device_thread(0)
    finally:
        module._made.cache_clear()
    assert entered == [("cuda:1", 101), ("cuda:0", 100)]


def test_who_runs_batches_is_not_disturbed_by_captures_of_other_threads() -> None:
    modes: list[int] = []

    class Driver:
        def call(self, function: str, *arguments: Any) -> None:
            if function == "cuThreadExchangeStreamCaptureMode":
                modes.append(arguments[0]._obj.value)

    Context(Driver(), 0).enter()
    assert modes == [1]  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
