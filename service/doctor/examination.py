"""What a server with given settings would do on this machine, and what stands in its way."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from service.bundle import Bundle, Strict, load_repository
from service.devices import gpu_runtime_installed
from service.doctor.machine import MachineReport, examine_machine
from service.errors import BadBundle, BadSettings, StartError
from service.settings import Settings
from service.tuning import FILE, Plan, Tuning, load_tuning, plan_for, this_machine
from service.worker.runtimes.cache import SUFFIX, open_cache
from service.worker.runtimes.choose import (
    FASTEST_FIRST,
    ON_REQUEST,
    Choice,
    candidates,
    obstacle,
    offered,
)

RESERVED_FILES = 128  # as in service.api.connections, besides connections


class ModelReport(Strict):
    """How one model would be served."""

    name: str
    version: str
    choice: str | None = Field(description="runtime, precision, device; null: it cannot be served")
    why: str
    passed_over: dict[str, str] = Field(description="the other choices, and why not")
    streams: int | None = None
    threads: int | None = Field(default=None, description="0 leaves the number to the library")
    batches: dict[str, int] = Field(default={}, description="best batch by canvas, where measured")
    untuned: str | None = Field(default=None, description="why nothing measured stands behind it")


class TuningReport(Strict):
    """The file of ``saccade tune``."""

    file: str | None
    state: Literal["used", "another machine", "missing", "damaged", "off"]
    measured: str | None = Field(default=None, description="when, on this machine")


class CacheReport(Strict):
    """The folder of compiled models."""

    folder: str | None
    usable: bool
    entries: int = 0
    size_bytes: int = 0


class Trouble(Strict):
    """Something to mend; what is not ``fatal`` costs speed, or comfort."""

    fatal: bool
    found: str
    advice: str


class Examination(Strict):
    """The whole answer of ``saccade doctor``."""

    machine: MachineReport
    repository: str
    http_processes: int
    decode_threads: int = Field(description="in each of them")
    models: list[ModelReport]
    tuning: TuningReport
    cache: CacheReport
    troubles: list[Trouble]


def examine(settings: Settings) -> Examination:
    """Look at the machine, and at every model as the server would; nothing is compiled or run."""
    troubles: list[Trouble] = []
    machine = examine_machine()
    tuning, about_tuning = _examine_tuning(settings, troubles)
    models = _examine_models(settings, tuning, troubles)
    cache = _examine_cache(settings.cache_folder(), troubles)
    _look_at_machine(machine, settings, troubles)
    if about_tuning.state in ("missing", "another machine") and models:
        advice = "measure this machine once, with nothing else running: saccade tune"
        if settings.repository != Settings.model_fields["repository"].default:
            advice += f" --repository {settings.repository}"
        found = "streams and batch sizes are rules of thumb: no figures of this machine"
        troubles.append(Trouble(fatal=False, found=found, advice=advice))
    return Examination(
        machine=machine,
        repository=str(settings.repository),
        http_processes=settings.http_processes(),
        decode_threads=settings.decoders(),
        models=models,
        tuning=about_tuning,
        cache=cache,
        troubles=sorted(troubles, key=lambda trouble: not trouble.fatal),
    )


def _examine_models(
    settings: Settings, tuning: Tuning | None, troubles: list[Trouble]
) -> list[ModelReport]:
    try:
        bundles = load_repository(settings.repository)
    except BadBundle as error:
        advice = "name a repository with --repository, or leave it out for the demo models"
        troubles.append(Trouble(fatal=True, found=str(error), advice=advice))
        return []
    return [_examine_model(bundle, settings, tuning, troubles) for bundle in bundles]


def _examine_model(
    bundle: Bundle, settings: Settings, tuning: Tuning | None, troubles: list[Trouble]
) -> ModelReport:
    name, version = bundle.manifest.name, bundle.manifest.version
    try:
        always, besides = offered(settings.device, settings.runtime)
    except BadSettings:  # which what follows says
        always, besides = FASTEST_FIRST, ON_REQUEST
    others = {
        choice: why for choice in always + besides if (why := obstacle(bundle, choice)) is not None
    }
    passed_over = {str(choice): why for choice, why in others.items()}
    try:
        bundle.verify()
    except BadBundle as error:
        troubles.append(Trouble(fatal=True, found=str(error), advice="mend or remove the bundle"))
        return ModelReport(
            name=name, version=version, choice=None, why=str(error), passed_over=passed_over
        )
    wishes = (settings.device, settings.precision, settings.runtime)
    try:
        choice = candidates(bundle, *wishes)[0]
    except StartError as error:
        advice = "ask for less (--device, --precision, --runtime), or install what is missing"
        troubles.append(Trouble(fatal=True, found=str(error), advice=advice))
        return ModelReport(
            name=name, version=version, choice=None, why=str(error), passed_over=passed_over
        )
    plan: Plan = plan_for(bundle, choice, tuning, this_machine(), settings.threads)
    return ModelReport(
        name=name,
        version=version,
        choice=str(choice),
        why=_reason(choice, always, others, wishes),
        passed_over=passed_over,
        streams=plan.streams,
        threads=plan.threads,
        batches=plan.batches,
        untuned=plan.untuned,
    )


def _reason(
    choice: Choice, always: tuple[Choice, ...], others: dict[Choice, str], wishes: tuple[str, ...]
) -> str:
    """Why it is this choice and not one that comes before it in the order of speed."""
    if any(wish != "auto" for wish in wishes):
        return "the fastest of what the settings ask for"
    if choice.on_gpu:
        return (
            "the fastest that is installed for GPUs; what it computes is proven when it is opened"
        )
    before = always[: always.index(choice)]
    if all(other in others for other in before):
        return "the fastest that is installed, that this CPU can do, and that the bundle has proven"
    return "vectors are all that it answers with, and fp32 keeps them exact"


def _examine_tuning(
    settings: Settings, troubles: list[Trouble]
) -> tuple[Tuning | None, TuningReport]:
    named = settings.tuning not in ("auto", "off")
    path = Path(settings.tuning) if named else settings.repository / FILE
    if settings.tuning == "off":
        return None, TuningReport(file=None, state="off")
    try:
        tuning = load_tuning(settings)
    except BadSettings as error:
        advice = "write it anew with saccade tune, or serve with --tuning off"
        troubles.append(Trouble(fatal=True, found=str(error), advice=advice))
        state: Literal["damaged", "missing"] = "damaged" if path.is_file() else "missing"
        return None, TuningReport(file=str(path), state=state)
    if tuning is None:
        return None, TuningReport(file=str(path), state="missing")
    profile = tuning.of(this_machine())
    if profile is None:
        return tuning, TuningReport(file=str(path), state="another machine")
    return tuning, TuningReport(file=str(path), state="used", measured=profile.measured)


def _examine_cache(folder: Path | None, troubles: list[Trouble]) -> CacheReport:
    if folder is None:
        return CacheReport(folder=None, usable=False)
    if not folder.exists():  # which the first server makes; a look must change nothing
        return CacheReport(folder=str(folder), usable=True)
    if open_cache(folder) is None:
        found = f"compiled models cannot be kept in {folder}"
        advice = "make it a folder that is yours and nobody else may write to, or name another "
        advice += "with --cache"
        troubles.append(Trouble(fatal=False, found=found, advice=advice))
        return CacheReport(folder=str(folder), usable=False)
    sizes = [path.stat().st_size for path in folder.glob(f"*{SUFFIX}")]
    return CacheReport(folder=str(folder), usable=True, entries=len(sizes), size_bytes=sum(sizes))


def _look_at_machine(machine: MachineReport, settings: Settings, troubles: list[Trouble]) -> None:
    if all(library.precisions is None for library in machine.libraries):
        found = "no runtime is installed"
        advice = "install one with: pip install 'saccade[cpu]'"
        troubles.append(Trouble(fatal=True, found=found, advice=advice))
    hard = machine.open_files.hard
    if hard is not None and hard - RESERVED_FILES < settings.max_connections:
        found = (
            f"the system allows {hard} open files: {max(1, hard - RESERVED_FILES)} connections "
            f"per HTTP process instead of {settings.max_connections}"
        )
        advice = "raise the hard limit (ulimit -Hn, LimitNOFILE=), or lower --max-connections"
        troubles.append(Trouble(fatal=False, found=found, advice=advice))
    if machine.gpus and settings.device == "auto" and not gpu_runtime_installed():
        found = f"{len(machine.gpus)} GPU(s) would be idle: no library that uses them is installed"
        advice = "install one with: pip install 'saccade[gpu]'"
        troubles.append(Trouble(fatal=False, found=found, advice=advice))
    cpu = machine.cpu
    if cpu.quota is not None and cpu.quota < 1:
        found = f"the container may keep only {cpu.quota:g} of a core busy"
        advice = "give it one core or more: batches are throttled in the middle"
        troubles.append(Trouble(fatal=False, found=found, advice=advice))
