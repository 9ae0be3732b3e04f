"""What a repository holds, for people: a table of its models, and one model in detail."""

from collections.abc import Iterable, Iterator, Sequence

from pydantic import Field
from rich import box
from rich.console import Group
from rich.table import Column, Table
from rich.text import Text

from service.bundle import Bundle, Manifest, Parity, Strict

SHOWN_LABELS = 12


class Proof(Strict):
    """What a runtime in a precision was measured to do, at its worst over all canvases."""

    runtime: str
    precision: str
    max_error: float = Field(description="of a probability, or of an embedding without a head")
    agreement: float | None = Field(
        description="least share of classes, boxes or pixels that are the reference's"
    )


class Listed(Strict):
    """One line of ``saccade models list``."""

    name: str
    version: str
    family: str
    tasks: list[str]
    canvases: list[str]
    parameters: int
    macs: int
    size_bytes: int
    proofs: list[Proof]


def list_bundle(bundle: Bundle) -> Listed:
    """A bundle in short."""
    m = bundle.manifest
    return Listed(
        name=m.name,
        version=m.version,
        family=m.family,
        tasks=list(m.tasks),
        canvases=[str(canvas) for canvas in m.canvases],
        parameters=m.parameters,
        macs=m.macs,
        size_bytes=size_bytes(m),
        proofs=list(proofs(m.parity)),
    )


def size_bytes(manifest: Manifest) -> int:
    """Of all files together, on disk."""
    return sum(file.size_bytes for file in manifest.files.values())


def proofs(parity: Sequence[Parity]) -> Iterator[Proof]:
    """One for each runtime and precision, in the exporter's order."""
    for runtime, precision in dict.fromkeys((p.runtime, p.precision) for p in parity):
        measured = [p for p in parity if (p.runtime, p.precision) == (runtime, precision)]
        yield Proof(
            runtime=runtime,
            precision=precision,
            max_error=max(p.max_error for p in measured),
            agreement=min((a for p in measured for a in _agreements(p)), default=None),
        )


def tabulate(listed: Iterable[Listed]) -> Table:
    """All models, with what each was measured to do."""
    table = Table(
        Column("model", no_wrap=True),
        "tasks",
        "canvas",
        Column("MB", justify="right"),
        Column("proven in", overflow="fold"),
        Column("error", justify="right"),
        Column("agrees", justify="right"),
        box=box.SIMPLE_HEAD,
        padding=0,
        caption="error: largest of a probability; agrees: least share of classes, boxes or pixels; "
        "both against the checkpoint in fp32",
    )
    for each in listed:
        table.add_row(
            Text(f"{each.name} {each.version}\n{_cost(each.parameters, each.macs)}"),
            "\n".join(each.tasks),
            "\n".join(each.canvases),
            f"{each.size_bytes / 1e6:.1f}",
            "\n".join(f"{proof.runtime} {proof.precision}" for proof in each.proofs) or "nothing",
            "\n".join(f"{proof.max_error:.1e}" for proof in each.proofs),
            "\n".join(_share(proof.agreement) for proof in each.proofs),
        )
        table.add_section()
    return table


def describe(bundle: Bundle) -> Group:
    """One model: facts, proofs, accuracy."""
    manifest = bundle.manifest
    facts = Table.grid(Column(no_wrap=True), Column(overflow="fold"), padding=(0, 2))
    for name, value in _facts(bundle):
        facts.add_row(Text(name, style="dim"), Text(value))
    parts: list[Text | Table] = [Text(f"{manifest.name} {manifest.version}", style="bold"), facts]
    parts += [Text("\nAgainst the checkpoint in fp32", style="bold"), _parity(manifest.parity)]
    for dataset in dict.fromkeys(a.dataset for a in manifest.accuracy):
        parts += [Text(f"\n{dataset}", style="bold"), _accuracy(manifest, dataset)]
    return Group(*parts)


def _facts(bundle: Bundle) -> Iterator[tuple[str, str]]:
    m = bundle.manifest
    yield "family", f"{m.family} ({m.provenance.architecture})"
    yield "tasks", ", ".join(m.tasks)
    yield "canvases", ", ".join(str(canvas) for canvas in m.canvases)
    yield "cost", _cost(m.parameters, m.macs)
    yield "files", ", ".join(f"{n} ({f.size_bytes / 1e6:.1f} MB)" for n, f in m.files.items())
    names = [label.name for label in m.labels]
    if names:
        more = f" and {len(names) - SHOWN_LABELS} more" if len(names) > SHOWN_LABELS else ""
        yield "labels", f"{len(names)}: {', '.join(names[:SHOWN_LABELS])}{more}"
    if m.segmentation is not None:
        yield "modes", ", ".join(m.segmentation.modes)
    if m.decoding is not None:
        yield "pixels", f"fast: {m.decoding.resizer}, {m.decoding.psnr_db:.1f} dB at worst"
    else:
        yield "pixels", "exact"
    if m.quantization is not None:
        yield "int8", f"{m.quantization.method}, calibrated on {m.quantization.calibrated_on}"
    revision = f" at {m.provenance.revision}" if m.provenance.revision else ""
    yield "source", f"{m.provenance.source}{revision}"
    yield "licence", m.provenance.license or "not stated"
    if m.provenance.note:
        yield "note", m.provenance.note
    yield "folder", str(bundle.folder)


def _parity(parity: Sequence[Parity]) -> Table:
    numbers = ("pictures", "largest", "rms", "top-1", "boxes", "pixels")
    table = Table(
        Column("runs in", no_wrap=True),
        "canvas",
        *(Column(name, justify="right") for name in numbers),
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for p in parity:
        table.add_row(
            f"{p.runtime} {p.precision}",
            str(p.canvas),
            str(p.images),
            f"{p.max_error:.1e}",
            f"{p.rms_error:.1e}",
            *(_share(a) for a in (p.top1_agreement, p.box_agreement, p.mask_agreement)),
        )
    return table


def _accuracy(manifest: Manifest, dataset: str) -> Table:
    table = Table(
        "metric",
        Column("value", justify="right"),
        Column("runs in", no_wrap=True),
        Column("pictures", justify="right"),
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for a in manifest.accuracy:
        if a.dataset == dataset:
            runs = f"{a.runtime} {a.precision}"
            table.add_row(a.metric, f"{a.value:.4f}", runs, str(a.images))
    return table


def _agreements(parity: Parity) -> Iterator[float]:
    for share in (parity.top1_agreement, parity.box_agreement, parity.mask_agreement):
        if share is not None:
            yield share


def _share(share: float | None) -> str:
    return "" if share is None else f"{share * 100:.1f} %"


def _cost(parameters: int, macs: int) -> str:
    return f"{parameters / 1e6:.1f} M, {macs / 1e9:.2f} GMACs"
