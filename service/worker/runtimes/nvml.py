"""What the driver's own library (NVML) says of a GPU, for the metrics."""

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from service.metrics import Metrics

EVERY_S = 2.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reading:
    """One look at a GPU; None is what this one does not tell."""

    utilization: float | None
    """Share of the last moments in which any kernel ran."""
    memory_used_bytes: float | None
    memory_total_bytes: float | None
    power_watts: float | None
    temperature_celsius: float | None


def nvml() -> Any:
    """The library, or None where it is not installed."""
    try:
        import pynvml
    except ModuleNotFoundError:
        return None
    return pynvml


def read(library: Any, handle: Any) -> Reading:
    """Ask for each figure by itself: a GPU in parts, say, does not tell its utilisation."""

    def ask(question: Callable[[], float]) -> float | None:
        try:
            return question()
        except library.NVMLError:
            return None

    return Reading(
        ask(lambda: library.nvmlDeviceGetUtilizationRates(handle).gpu / 100),
        ask(lambda: library.nvmlDeviceGetMemoryInfo(handle).used),
        ask(lambda: library.nvmlDeviceGetMemoryInfo(handle).total),
        ask(lambda: library.nvmlDeviceGetPowerUsage(handle) / 1000),
        ask(lambda: library.nvmlDeviceGetTemperature(handle, library.NVML_TEMPERATURE_GPU)),
    )


def watch(uuid: str, device: str, metrics: Metrics, library: Any, end: threading.Event) -> None:
    """Tell the metrics of one GPU every EVERY_S until ``end``; the log says why if that cannot be.

    A driver may take long to tell of a lost GPU, so this has a thread to itself.
    """
    try:
        library.nvmlInit()
        handle = library.nvmlDeviceGetHandleByUUID(uuid)
    except library.NVMLError as error:
        _log.warning("no metrics of %s: NVML says %s", device, error)
        return
    while True:
        found = read(library, handle)
        for gauge, value in (
            (metrics.gpu_utilization, found.utilization),
            (metrics.gpu_memory_used, found.memory_used_bytes),
            (metrics.gpu_memory_total, found.memory_total_bytes),
            (metrics.gpu_power, found.power_watts),
            (metrics.gpu_temperature, found.temperature_celsius),
        ):
            if value is not None:
                gauge.labels(device).set(value)
        if end.wait(EVERY_S):
            return


def watch_in_background(uuid: str, device: str, metrics: Metrics) -> None:
    """As ``watch``, in a thread that ends with the process."""
    library = nvml()
    if library is None:
        _log.info("no metrics of %s: install nvidia-ml-py for them", device)
        return
    end = threading.Event()
    threading.Thread(
        target=watch, args=(uuid, device, metrics, library, end), name="nvml", daemon=True
    ).start()
