"""What ``saccade tune`` measured of machines, kept in a file beside the models, and what a worker
makes of it.
"""

import math
import os
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from service.bundle import Bundle, Strict
from service.cores import usable_cores
from service.errors import BadSettings, StartError
from service.geometry import Size
from service.settings import Settings
from service.worker.runtimes.buckets import LANES
from service.worker.runtimes.choose import Choice

FILE = "tuning.json"
UNTUNED_BATCH = 8
"""Beyond 8 pictures throughput grows by a few percent at most, the wait of the first in doubles."""
LIGHT_MACS = 200_000_000
"""A model below this answers a lone picture on one core in a few milliseconds, and threads that
share such a picture spend as much time on waiting for each other."""
MOST_LIGHT_STREAMS = 8
LIGHT_MACS_PER_S = 40e9
"""What a core does of them, roughly."""
REST_CPU_S = 0.003
"""Processor time of all that is not the model, for a JPEG of 500 x 375 (bench.server_vs_bare)."""
LIBRARIES = ("onnxruntime", "onnxruntime-gpu", "openvino")


class Machine(Strict):
    """All that figures depend on besides the model; measured on another one they say nothing."""

    cpu: str
    cores: int = Field(ge=1, description="that the process may use")
    libraries: dict[str, str]

    def __str__(self) -> str:
        libraries = ", ".join(f"{name} {number}" for name, number in self.libraries.items())
        return f"{self.cpu}, {self.cores} cores, {libraries}"


class Point(Strict):
    """One batch size, with every stream busy."""

    batch: int = Field(ge=1)
    seconds: float = Field(gt=0, description="median of one batch")
    images_per_s: float = Field(gt=0)
    cpu_s: float = Field(ge=0, description="processor seconds of one picture, over all threads")


class Layout(Strict):
    """What one number of streams reached on one canvas."""

    streams: int = Field(ge=1)
    threads: int = Field(ge=1, description="that the streams share")
    latency_s: float = Field(gt=0, description="median of a single picture, with nothing beside it")
    points: list[Point] = Field(min_length=1)


class Around(Strict):
    """What a request costs around its batch, one at a time, and what a full server does
    (``saccade plan --measure``).

    ``rest_s`` and ``infer_s`` are quantiles at even steps from the least to the 99th percentile.
    """

    measured: str = Field(description="date and time, UTC")
    requests: int = Field(ge=1)
    mean_bytes: int = Field(ge=1, description="of the pictures sent")
    processes: int = Field(ge=1, description="that speak HTTP")
    decoders: int = Field(ge=1, description="decoding threads of each")
    rest_s: list[float] = Field(min_length=2, description="latency less inference and client")
    infer_s: list[float] = Field(min_length=2)
    before: float = Field(ge=0, le=1, description="the part of rest_s that comes before the queue")
    cpu_s: float = Field(gt=0, description="processor seconds of the processes that speak HTTP")
    client_s: float = Field(ge=0, description="processor seconds of the client that measured")
    full_per_s: float = Field(gt=0, description="pictures a second, many at a time")


class Entry(Strict):
    """How to run one canvas of a model, and the figures that say so."""

    model: str
    version: str
    sha256: str = Field(description="of the graph's file")
    runtime: str
    precision: str
    device: str = "cpu"
    canvas: Size
    streams: int = Field(ge=1)
    threads: int = Field(ge=1, description="that the streams share")
    batch: int = Field(ge=1)
    lone_threads: int = Field(
        default=0,
        ge=0,
        description="of a runtime of its own for a picture with nothing beside it; 0: it runs in a "
        "stream as others do",
    )
    images_per_s: float = Field(gt=0, description="at that batch")
    latency_s: float = Field(gt=0, description="median of a single picture, with nothing beside it")
    batch_latency_s: float = Field(gt=0, description="median of one batch, with every stream busy")
    grid: list[Layout] = Field(min_length=1, description="everything measured")
    around: Around | None = None


class Profile(Strict):
    """Everything measured on one machine."""

    machine: Machine
    measured: str = Field(description="date and time, UTC")
    entries: list[Entry]


class Tuning(Strict):
    """The file: one profile per machine."""

    schema_version: Literal[1] = 1
    profiles: list[Profile] = Field(default_factory=list)

    def of(self, machine: Machine) -> Profile | None:
        """The profile of this machine."""
        return next((p for p in self.profiles if p.machine == machine), None)


@dataclass(frozen=True)
class Plan:
    """How to run one model: ``threads`` 0 are the library's own count, ``batches`` are by canvas,
    ``lone_threads`` as in ``Entry``, and ``untuned`` says why nothing measured stands behind it.
    """

    streams: int = 1
    threads: int = 0
    batches: dict[str, int] = field(default_factory=dict)
    lone_threads: int = 0
    untuned: str | None = None


def this_machine() -> Machine:
    """The machine that this process runs on."""
    libraries = {}
    for name in LIBRARIES:
        try:
            libraries[name] = version(name)
        except PackageNotFoundError:
            continue
    return Machine(cpu=_cpu_name(), cores=usable_cores(), libraries=libraries)


def load_tuning(settings: Settings) -> Tuning | None:
    """The file that the settings name, or that lies beside the models; None without one.

    Raises:
        BadSettings: it is not there, or damaged.
    """
    if settings.tuning == "off":
        return None
    if settings.tuning != "auto":
        path = Path(settings.tuning)
        if not path.is_file():
            raise BadSettings(
                f"--tuning: there is no file {path}; write one with: saccade tune --out {path}"
            )
        return read_tuning(path)
    beside = settings.repository / FILE
    return read_tuning(beside) if beside.is_file() else None


def read_tuning(path: Path) -> Tuning:
    """Read a file that ``write_profile`` wrote.

    Raises:
        BadSettings: it cannot be read, or is damaged.
    """
    try:
        return Tuning.model_validate_json(path.read_bytes())
    except OSError as error:
        raise BadSettings(f"{path} cannot be read: {error.strerror}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise BadSettings(
            f"{path} is no tuning file of this release: {where}: {first['msg']}. "
            "Remove it and run saccade tune again, or serve with --tuning off."
        ) from None


def plan_for(
    bundle: Bundle, choice: Choice, tuning: Tuning | None, machine: Machine, threads: int = 0
) -> Plan:
    """How to run a model with a choice here.

    ``threads`` is what the operator demands: nothing was measured with that.
    """
    if choice.runtime == "tensorrt":
        return Plan(LANES, untuned="engines have the batches that they were built for")
    if threads:
        return Plan(threads=threads, untuned="--threads is set")

    def untuned(reason: str) -> Plan:
        if choice.on_gpu or bundle.manifest.macs >= LIGHT_MACS:  # a GPU runs one at a time
            return Plan(untuned=reason)
        # Of the machine's time the model takes this share; a half more, so that nothing waits for
        # it. Streams beyond that only take work from each other, and wake up for it.
        model_s = bundle.manifest.macs / LIGHT_MACS_PER_S
        wanted = math.ceil(1.5 * machine.cores * model_s / (model_s + REST_CPU_S))
        streams = min(max(1, wanted), machine.cores, MOST_LIGHT_STREAMS)
        return Plan(streams, threads=streams, untuned=reason)

    if tuning is None:
        return untuned("this machine was not measured; saccade tune does it")
    profile = tuning.of(machine)
    if profile is None:
        others = "; ".join(str(other.machine) for other in tuning.profiles) or "none"
        return untuned(f"tuned for another machine ({others}); this one is {machine}")
    entries = [entry for entry in profile.entries if entry.model == bundle.manifest.name]
    if not entries:
        return untuned("the tuning does not hold this model")
    wanted = choice.runtime, choice.precision, choice.device.partition(":")[0]
    matching = [entry for entry in entries if _arithmetic(entry)[1:] == wanted]
    if not matching:
        tuned = sorted({f"{entry.runtime} {entry.precision}" for entry in entries})
        return untuned(f"tuned for {', '.join(tuned)}")
    found = {str(entry.canvas): entry for entry in matching}
    for canvas in bundle.manifest.canvases:
        entry = found.get(str(canvas))
        if entry is None or entry.sha256 != graph_digest(bundle, canvas, choice):
            return untuned("the model changed since it was tuned")
    served = [found[str(canvas)] for canvas in bundle.manifest.canvases]
    batches = {str(entry.canvas): entry.batch for entry in served}
    first = served[0]
    return Plan(first.streams, first.threads, batches, first.lone_threads)


def graph_digest(bundle: Bundle, canvas: Size, choice: Choice) -> str:
    """The sha256 of the file that serves a canvas."""
    graph = bundle.manifest.graph("serve", canvas, choice.precision)  # type: ignore[arg-type]
    assert graph is not None, canvas
    return bundle.manifest.files[graph.file].sha256


def check_writable(path: Path) -> None:
    """Find out before minutes of measuring.

    Raises:
        StartError: the file cannot be put there.
        BadSettings: what lies there is damaged.
    """
    if path.is_file():
        read_tuning(path)
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".tuning-"):
            return
    except OSError as error:
        raise StartError(
            f"{path} cannot be written ({error.strerror}); choose another place with --out FILE, "
            "and serve with --tuning FILE"
        ) from None


def write_profile(path: Path, machine: Machine, measured: str, entries: Iterable[Entry]) -> None:
    """Put figures of this machine in the file: they replace those of the same models in the same
    arithmetic on the same kind of device, other machines and models stay.

    Raises:
        StartError: the file cannot be written.
        BadSettings: what lies there is damaged.
    """
    check_writable(path)
    entries = list(entries)
    tuning = read_tuning(path) if path.is_file() else Tuning()
    replaced = {_arithmetic(entry) for entry in entries}
    own = tuning.of(machine)
    kept = [e for e in (own.entries if own else []) if _arithmetic(e) not in replaced]
    others = [profile for profile in tuning.profiles if profile.machine != machine]
    profile = Profile(machine=machine, measured=measured, entries=[*kept, *entries])
    text = Tuning(profiles=[*others, profile]).model_dump_json(indent=2) + "\n"
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".tuning-")
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    Path(name).chmod(0o644)
    Path(name).replace(path)


def _arithmetic(entry: Entry) -> tuple[str, str, str, str]:
    """Model, runtime, precision and kind of device: all GPUs of a machine share their figures."""
    return entry.model, entry.runtime, entry.precision, entry.device.partition(":")[0]


def _cpu_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        lines = []
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else os.uname().machine
