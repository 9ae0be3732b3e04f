"""TensorRT, or TensorRT for RTX where that is installed instead; both have the same interface."""

import functools
import logging
import warnings
from typing import Any, Literal, NamedTuple

from service.devices import device_fault, driver_version, gpus, index_of
from service.engines import Machine
from service.errors import BadSettings, StartError

_log = logging.getLogger(__name__)


class Library(NamedTuple):
    """The module, and what it is."""

    trt: Any
    name: Literal["tensorrt", "tensorrt_rtx"]
    version: str

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


@functools.cache
def load() -> Library:
    """The library, whichever can be imported.

    Raises:
        StartError: none can, or what is installed lacks its own libraries.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            try:
                import tensorrt as trt  # type: ignore[import-not-found, unused-ignore]

                return Library(trt, "tensorrt", trt.__version__)
            except ModuleNotFoundError as error:
                if error.name != "tensorrt":
                    raise
                import tensorrt_rtx as trt

                return Library(trt, "tensorrt_rtx", trt.__version__)
        except ModuleNotFoundError as error:
            if error.name not in ("tensorrt", "tensorrt_rtx"):
                raise StartError(_broken(error)) from error
            raise StartError(
                "tensorrt is not installed; install it with: pip install tensorrt-cu13"
            ) from None
        except (ImportError, OSError) as error:  # a library that the module is bound to
            raise StartError(_broken(error)) from error


@functools.cache
def register_plugins(library: Library) -> Any:
    """Make the library's own plugins known to its parser and to plans, once for the process; gives
    back the logger that they keep a pointer to. TensorRT for RTX has no plugins.
    """
    if library.name != "tensorrt":
        return None
    logger = library.trt.Logger(library.trt.Logger.ERROR)
    if not library.trt.init_libnvinfer_plugins(logger, ""):
        _log.warning("%s cannot register its plugins; graphs that need one are refused", library)
    return logger


def fault(device: str = "cuda") -> str | None:
    """Why no engine can run on a device here, as a clause; None if it can."""
    try:
        load()
    except StartError as error:
        return str(error)
    return device_fault(device)


def machine(device: str = "cuda") -> Machine:
    """The library and the device that engines are built for here.

    Raises:
        StartError: there is no library.
        BadSettings: there is no such device.
    """
    library = load()
    why_not = fault(device)
    if why_not is not None:
        raise BadSettings(f"TensorRT cannot run on {device}: {why_not}")
    gpu = gpus().found[index_of(device)]
    major, minor = gpu.capability
    return Machine(
        library=library.name,
        version=library.version,
        gpu=gpu.name,
        compute_capability=f"{major}.{minor}",
        driver_major=driver_major(),
    )


def driver_major() -> int:
    """580 of a driver 580.65.06, or the CUDA version that it brings."""
    found = driver_version()
    if found is not None:
        return int(found.partition(".")[0])
    from service.worker.runtimes.tensorrt.cuda import Driver

    return Driver().version() // 1000


def _broken(error: Exception) -> str:
    return f"tensorrt is installed but cannot be loaded ({error}); install it again"
