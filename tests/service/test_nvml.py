"""What the metrics tell of a GPU, with an NVML that says what a test says."""

import threading
from types import SimpleNamespace
from typing import Any

import pytest

from service.metrics import Metrics
from service.worker.runtimes.nvml import nvml, read, watch


class FakeNvml:
    """One GPU; ``silent`` are the questions that it does not answer."""

    NVML_TEMPERATURE_GPU = 0

    class NVMLError(Exception):
        """As the library's own."""

    def __init__(self, *silent: str) -> None:
        self._silent = silent

    def __getattr__(self, name: str) -> Any:
        def answer(*asked: Any) -> Any:
            if name in self._silent:
                raise self.NVMLError("Not Supported")
            assert name in ("nvmlInit", "nvmlDeviceGetHandleByUUID") or asked[0] == "handle"
            return {
                "nvmlDeviceGetHandleByUUID": "handle",
                "nvmlDeviceGetUtilizationRates": SimpleNamespace(gpu=87, memory=40),
                "nvmlDeviceGetMemoryInfo": SimpleNamespace(used=2**30, total=2**33, free=0),
                "nvmlDeviceGetPowerUsage": 412_500,
                "nvmlDeviceGetTemperature": 61,
            }.get(name)

        return answer


def watched(library: FakeNvml) -> dict[str, float | None]:
    """What the metrics tell after one look."""
    metrics, end = Metrics(), threading.Event()
    end.set()
    watch("GPU-1", "cuda:1", metrics, library, end)
    names = ("utilization_ratio", "memory_used_bytes", "memory_total_bytes")
    return {
        name: metrics.registry.get_sample_value(f"saccade_gpu_{name}", {"device": "cuda:1"})
        for name in (*names, "power_watts", "temperature_celsius")
    }


def test_the_metrics_tell_what_the_driver_says_in_base_units() -> None:
    assert watched(FakeNvml()) == {
        "utilization_ratio": 0.87,
        "memory_used_bytes": 2**30,
        "memory_total_bytes": 2**33,
        "power_watts": 412.5,
        "temperature_celsius": 61,
    }


def test_what_a_gpu_does_not_tell_is_left_out_and_the_rest_is_told() -> None:
    found = read(FakeNvml("nvmlDeviceGetUtilizationRates", "nvmlDeviceGetPowerUsage"), "handle")
    assert (found.utilization, found.power_watts) == (None, None)
    assert (found.memory_used_bytes, found.temperature_celsius) == (2**30, 61)
    assert watched(FakeNvml("nvmlDeviceGetPowerUsage"))["power_watts"] is None


@pytest.mark.parametrize("silent", ["nvmlInit", "nvmlDeviceGetHandleByUUID"])
def test_where_nvml_knows_no_such_gpu_the_log_says_so(
    silent: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert set(watched(FakeNvml(silent)).values()) == {None}
    assert "no metrics of cuda:1: NVML says Not Supported" in caplog.text


def test_every_question_is_one_that_the_real_library_knows() -> None:
    library = nvml()
    asked: set[str] = set()

    class Recorder(FakeNvml):
        def __getattr__(self, name: str) -> Any:
            asked.add(name)
            return super().__getattr__(name)

    watched(Recorder())
    assert len(asked) == 6
    assert {name for name in asked | {"NVMLError"} if not hasattr(library, name)} == set()
    assert library.NVML_TEMPERATURE_GPU == FakeNvml.NVML_TEMPERATURE_GPU
