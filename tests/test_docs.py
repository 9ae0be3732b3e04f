"""The documentation names everything that users can set, call and meet, and nothing else."""

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import typer
from prometheus_client import Metric
from pydantic import BaseModel

from service.api.connections import REFUSALS
from service.api.problems import STATUS, status_of
from service.bundle import Manifest
from service.cli import app
from service.errors import ClientError, ServerError, leaves
from service.metrics import Metrics
from service.settings import PREFIX, SECRETS, Settings
from tests.service.fake_app import FakeApp

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("**/*.md"))]
ROUTES = [*FakeApp().app.openapi()["paths"], "/", "/docs", "/openapi.json"]
KINDS = [kind for side in (ClientError, ServerError) for kind in leaves(side)]
MANIFESTS = sorted((ROOT / "service" / "demo" / "repository").glob("*/1/manifest.json"))
FOLDERS = "models|export|service|bench|tests|deploy|docs|saccade_client"


def documentation() -> str:
    return "\n".join(page.read_text() for page in PAGES)


def page(name: str) -> str:
    return (ROOT / name).read_text()


def mentions(text: str, word: str) -> bool:
    """Whether the word stands there by itself: ``--port`` is not in ``--port-range``."""
    return re.search(rf"(?<![\w/-]){re.escape(word)}(?![\w/-])", text) is not None


def test_a_word_inside_another_is_no_mention() -> None:
    assert mentions("give `--port`, or", "--port")
    assert mentions("POST /v1/classify.", "/v1/classify")
    assert not mentions("--port-range", "--port")
    assert not mentions("/v1/models/{name}", "/v1/models")
    assert not mentions("/v2/health/ready", "/health")
    assert not mentions("SACCADE_PORTS", "SACCADE_PORT")


def prose(text: str) -> str:
    """A page without its blocks of code."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)


def spans(text: str) -> list[str]:
    """What stands between backquotes in the prose of a page."""
    return re.findall(r"`([^`\n]+)`", prose(text))


def commands(text: str) -> Iterator[str]:
    """Every line of ``saccade`` in the blocks of shell on a page, as one would type it."""
    for block in re.findall(r"^```(?:sh|bash)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        for line in block.replace("\\\n", " ").splitlines():
            for part in re.split(r"&&|[|;]", line):
                found = re.match(r"\s*(?:[A-Z_]+=\S+ )*(?:\S+/bin/)?(saccade .*)", part)
                if found:
                    yield found[1]


def anchors(text: str) -> set[str]:
    """The names by which links reach the headings of a page, as forges make them."""
    headings = re.findall(r"^#+ (.+)$", prose(text), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", one.lower()).strip().replace(" ", "-") for one in headings}


# What there is, is documented.


@pytest.mark.parametrize("name", list(Settings.model_fields))
def test_every_setting_is_a_row_of_the_table(name: str) -> None:
    field = Settings.model_fields[name]
    secret = name in SECRETS
    flag = "(no flag)" if secret else f"`--{name.replace('_', '-')}`"
    default = "none" if secret or field.default == "" else field.default
    default = "the demo models" if name == "repository" else default
    row = f"| {flag} | `{PREFIX}{name.upper()}` | {default} | {field.description} |"
    assert row in page("docs/settings.md").splitlines()


@pytest.mark.parametrize("path", ROUTES)
def test_every_route_is_documented(path: str) -> None:
    assert mentions(documentation(), path)


def test_every_error_is_documented_with_its_status() -> None:
    rows = re.findall(r"^\| (\d{3}) \| `(\w+)` \|", page("docs/http.md"), re.MULTILINE)
    there = {(str(status_of(kind("", **{}))), kind.code) for kind in KINDS}
    assert STATUS
    there |= {(str(status), code) for status, code in REFUSALS.values()}
    assert set(rows) == there | {("500", "internal_error")}
    assert len(rows) == len(set(rows))


@pytest.mark.parametrize("metric", list(Metrics().registry.collect()), ids=lambda one: one.name)
def test_every_metric_is_documented_with_its_meaning(metric: Metric) -> None:
    name = metric.name + ("_total" if metric.type == "counter" else "")
    row = f"| `{name}` | {metric.type} | {metric.documentation} |"
    assert row in documentation()


def sections_of(kind: type[BaseModel]) -> dict[str, set[str]]:
    """The fields of a model and of all models within it, by name of the model."""
    found = {kind.__name__: set(kind.model_fields)}
    waiting: list[Any] = [field.annotation for field in kind.model_fields.values()]
    while waiting:
        one = waiting.pop()
        if isinstance(one, type) and issubclass(one, BaseModel):
            found |= sections_of(one)
        waiting += get_args(one)
    return found


def test_the_fields_of_the_manifest_are_those_that_its_page_names() -> None:
    sections = re.split(r"^### (\w+)$", page("docs/bundle.md"), flags=re.MULTILINE)[1:]
    named = {}
    for name, text in zip(sections[::2], sections[1::2], strict=True):
        cells = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", text, re.MULTILINE)
        named[name] = {field for cell in cells for field in re.findall(r"\w+", cell)}
    assert named == sections_of(Manifest)


def leaves_of(command: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command below, with the words that call it."""
    if not hasattr(command, "commands"):
        yield words, command
        return
    for name, below in command.commands.items():
        yield from leaves_of(below, (*words, name))


def command_line() -> Any:
    """All of ``saccade``, with commands that read their arguments and then do nothing."""
    whole = typer.main.get_command(app)
    whole.commands["export"] = export_command()  # type: ignore[attr-defined]
    for _, command in leaves_of(whole):
        command.callback = lambda **_: None
    return whole


def export_command() -> Any:
    """What ``saccade export`` hands its arguments to."""
    cli = pytest.importorskip("export.cli", reason="needs the extra export")
    alone = typer.Typer()
    alone.command()(cli.export)
    return typer.main.get_command(alone)


COMMANDS = [words for words, _ in leaves_of(typer.main.get_command(app))]


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_is_documented(words: tuple[str, ...]) -> None:
    assert mentions(documentation(), " ".join(("saccade", *words)))


# What is documented, there is.


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_lead_to_files_and_headings_that_exist(path: Path) -> None:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(path.read_text())):
        if re.match(r"https?:|mailto:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (path.parent / name).resolve() if name else path
        if not file.exists() or (anchor and anchor not in anchors(file.read_text())):
            broken.append(target)
    assert broken == []


def test_no_page_is_left_out_of_the_index() -> None:
    index = page("docs/README.md")
    pages = [one.name for one in PAGES if one.parent.name == "docs" and one.name != "README.md"]
    assert [name for name in pages if f"]({name})" not in index] == []


def test_no_variable_is_documented_that_does_not_exist() -> None:
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    named = set(re.findall(rf"\b{PREFIX}[A-Z_]*[A-Z]\b", documentation()))
    assert named - known == set()


def test_no_route_is_documented_that_does_not_exist() -> None:
    known = [re.compile(re.sub(r"\\{\w+\\}", "[^/]+", re.escape(path))) for path in ROUTES]
    found = re.findall(r"(?<![\w/.])/v[12](?:/[\w{}.-]*\w}?)*", documentation())
    named = set(found) - {"/v1", "/v2/health"}
    assert {path for path in named if not any(route.fullmatch(path) for route in known)} == set()


def test_files_that_pages_name_exist() -> None:
    named = {span for path in PAGES for span in spans(path.read_text())}
    files = {span for span in named if re.fullmatch(rf"(?:{FOLDERS})/[\w./-]+", span)}
    assert {name for name in files if not (ROOT / name).exists()} == set()


def test_modules_that_pages_run_exist() -> None:
    named = set(re.findall(rf"python -m ((?:{FOLDERS})[\w.]*)", documentation()))
    folders = {name: ROOT / name.rstrip(".").replace(".", "/") for name in named}
    missing = {
        name
        for name, folder in folders.items()
        if not (folder.with_suffix(".py").exists() or (folder / "__main__.py").exists())
    }
    assert missing == set()


def test_tests_that_pages_name_exist() -> None:
    tests = "\n".join(path.read_text() for path in (ROOT / "tests").glob("**/*.py"))
    named = {span for path in PAGES for span in spans(path.read_text()) if span[:5] == "test_"}
    assert {name for name in named if f"def {name}(" not in tests} == set()


# Commands are commands.


def objection(line: str, capsys: pytest.CaptureFixture[str]) -> str | None:
    """What ``saccade`` says of a line that it does not understand; None of others, and of those
    that name files which are not there.
    """
    words = shlex.split(line, comments=True)
    with pytest.raises(SystemExit) as ended:
        command_line().main(words[1:], prog_name="saccade")
    said = capsys.readouterr().err
    unframed = " ".join(said.replace("│", " ").split())
    understood = ended.value.code == 0 or "does not exist" in unframed
    return None if understood else f"{line}: {said}"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_commands_in_blocks_are_understood(
    path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")
    for line in commands(path.read_text()):
        assert objection(line, capsys) is None


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("saccade serv", "serv"),
        ("saccade serve --prot 8000", "--prot"),
        ("saccade models pixels a b quick", "quick"),
        ("saccade export --out repository", "source"),
    ],
)
def test_a_wrong_command_would_be_noticed(
    line: str, word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found = objection(line, capsys)
    assert found is not None
    assert word in found.removeprefix(line).lower()


def test_flags_and_commands_in_sentences_exist() -> None:
    whole = dict(leaves_of(command_line()))
    scripts = "\n".join(one.read_text() for one in (ROOT / "bench").glob("**/*.py"))
    flags = {flag for one in whole.values() for option in one.params for flag in option.opts}
    flags |= {"--install-completion", "--show-completion", "--help"}
    flags |= set(re.findall(r'"(--[\w-]+)"', scripts))
    told = [span for path in PAGES for span in spans(path.read_text())]
    ours = [span for span in told if span.startswith(("--", "saccade "))]
    named = {flag for span in ours for flag in re.findall(r"(?<!\S)--[a-z][\w-]*", span)}
    assert named - flags == set()
    starts = {words[:n] for words in whole for n in (1, 2)}
    called = {tuple(re.findall(r"\S+", span)[1:3]) for span in ours if span[0] != "-"}
    called -= {("--install-completion",), ("--show-completion",)}
    assert {words for words in called if words not in starts and words[:1] not in whole} == set()


# Figures are those of the manifests.


def test_figures_of_the_demo_models_are_those_of_their_manifests() -> None:
    text = page("docs/numerics.md")
    for path in MANIFESTS:
        manifest = json.loads(path.read_bytes())
        for one in manifest["parity"]:
            shares = ("top1_agreement", "box_agreement", "mask_agreement")
            agreement = min(one[share] for share in shares if one.get(share) is not None)
            scores = ", ".join(
                f"{score['metric']} {score['value']:.3f}"
                for score in manifest["accuracy"]
                if (score["runtime"], score["precision"]) == (one["runtime"], one["precision"])
            )
            assert (
                f"| `{manifest['name']}` | {one['runtime']} | {one['precision']} "
                f"| {one['max_error']:.1e} | {one['cosine']:.6f} | {agreement:.3f} | {scores} |"
            ) in text


def test_scores_in_the_readme_are_those_of_the_manifests() -> None:
    text = page("README.md")
    for path in MANIFESTS:
        manifest = json.loads(path.read_bytes())
        told = re.search(rf"`{manifest['name']}`: ([^`;|]+)", text)
        assert told is not None, manifest["name"]
        for metric, value in re.findall(r"([\w-]+) (0\.\d+)", told[1]):
            measured = [one["value"] for one in manifest["accuracy"] if one["metric"] == metric]
            assert f"{measured[-1]:.3f}" == value
