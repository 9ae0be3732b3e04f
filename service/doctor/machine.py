"""Facts of the machine that decide how fast pictures are answered."""

import os
import platform
import resource
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pydantic import Field

from service.bundle import Strict
from service.cores import physical_cores, quota, usable_cores
from service.tuning import this_machine
from service.worker.runtimes.choose import installed
from service.worker.runtimes.instructions import CPUINFO

PACKAGES = (
    *("saccade", "numpy", "pillow", "simplejpeg", "cykooz-resizer", "uvicorn", "uvloop"),
    *("httptools", "fastapi", "onnxruntime", "onnxruntime-gpu", "openvino"),
)
"""Those whose version explains an answer or its speed."""
RUNTIMES = ("openvino", "onnxruntime")
FEATURES = {
    "avx2": "fp32, eight numbers at a time",
    "avx512f": "fp32, sixteen at a time",
    "avx512_bf16": "bf16",
    "amx_bf16": "bf16, a matrix at a time",
    "avx_vnni": "int8",
    "avx512_vnni": "int8",
    "amx_int8": "int8, a matrix at a time",
    "asimd": "fp32, four numbers at a time",
    "bf16": "bf16",
    "i8mm": "int8",
}
"""Instructions that matter here, as Linux calls them, and what they speed up."""
PATIENCE_S = 10.0


class Cpu(Strict):
    """The processor, and the part of it that this process may use."""

    name: str
    architecture: str
    features: list[str] = Field(description="those of its instructions that matter here")
    cores: int = Field(description="logical, of the machine")
    usable_cores: int = Field(description="less what affinity and quota take away")
    physical_cores: int = Field(description="of the usable ones, hyper-threads counted once")
    quota: float | None = Field(description="cores that the container may keep busy")


class Library(Strict):
    """A runtime as it is installed here."""

    name: str
    precisions: list[str] | None = Field(description="on this CPU; null: it is not installed")
    backends: list[str] = Field(description="providers or devices, as the library calls them")


class OpenFiles(Strict):
    """How many files and connections a process may have open; null is no limit."""

    soft: int | None
    hard: int | None


class MachineReport(Strict):
    """All of the above."""

    system: str
    python: str
    packages: dict[str, str | None] = Field(description="versions; null: not installed")
    cpu: Cpu
    libraries: list[Library]
    gpus: list[str]
    open_files: OpenFiles


def examine_machine(cpuinfo: Path = CPUINFO) -> MachineReport:
    """Look at everything; takes about as long as to import the runtimes."""
    return MachineReport(
        system=platform.platform(),
        python=platform.python_version(),
        packages={name: _version(name) for name in PACKAGES},
        cpu=Cpu(
            name=this_machine().cpu,
            architecture=platform.machine(),
            features=cpu_features(cpuinfo),
            cores=os.cpu_count() or 1,
            usable_cores=usable_cores(),
            physical_cores=physical_cores(),
            quota=quota(),
        ),
        libraries=[_library(name) for name in RUNTIMES],
        gpus=nvidia_gpus(),
        open_files=_open_files(),
    )


def cpu_features(cpuinfo: Path = CPUINFO) -> list[str]:
    """The instructions that matter, as far as the system lists them."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    there = set(flags.partition(":")[2].split())
    return [name for name in FEATURES if name in there]


def nvidia_gpus(command: str = "nvidia-smi") -> list[str]:
    """Name, memory and driver of each GPU; none where the driver's own tool is missing or fails."""
    path = shutil.which(command)
    if path is None:
        return []
    query = ["--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        asked = subprocess.run(
            [path, *query], capture_output=True, text=True, timeout=PATIENCE_S, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in asked.stdout.splitlines() if line.strip()]


def _library(name: str) -> Library:
    found = installed(name)
    if found is None:
        return Library(name=name, precisions=None, backends=[])
    precisions, backends = found
    return Library(name=name, precisions=list(precisions), backends=list(backends))


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _open_files() -> OpenFiles:
    soft, hard = (
        None if limit == resource.RLIM_INFINITY else limit
        for limit in resource.getrlimit(resource.RLIMIT_NOFILE)
    )
    return OpenFiles(soft=soft, hard=hard)
