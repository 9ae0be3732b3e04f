"""What compares servers, without any server: the command line, what is read, said and drawn."""

import json
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bench.empty import write_bundle, write_foreign
from bench.peers import bodies, report
from bench.peers.__main__ import measure, parse
from bench.peers.engine import Engine, Options, read_options, top
from bench.peers.graphs import build
from bench.peers.load import read_tally, read_wrk
from bench.peers.measure import disagreements, pixels_of
from bench.peers.peers import FOLDER, PEERS, Peer, launch_ours, launch_peer
from bench.peers.picture import draw
from bench.peers.servers import ServerError
from service.bench.load import Tally
from service.bundle import load_bundle
from service.geometry import Size, place, to_canvas
from service.images import ImageLimits, decode
from service.worker.runtimes.choose import candidates, open_runtime


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The empty network: ``graph.onnx`` and ``empty/1``."""
    folder = tmp_path_factory.mktemp("repository")
    write_foreign(folder / "graph.onnx")
    write_bundle(folder / "empty" / "1")
    return folder


def test_the_command_takes_every_peer_graph_and_engine_unless_told() -> None:
    asked = parse([])
    assert asked.names == list(PEERS)
    assert asked.graphs == ("empty", "vit-tiny", "vit-b16")
    assert asked.engines == ("onnxruntime", "openvino")
    assert asked.concurrency == (1, 8, 32, 64)
    assert (asked.rounds, asked.duration, asked.overload) == (3, 5.0, False)


def test_the_command_takes_lists_with_commas() -> None:
    asked = parse(["mosec", "ray", "--graphs", "empty", "--concurrency", "8,32", "--overload"])
    assert asked.names == ["mosec", "ray"]
    assert asked.graphs == ("empty",)
    assert asked.concurrency == (8, 32)
    assert asked.overload


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nobody"], "no peer is called nobody"),
        (["--graphs", "empty,full"], "there is no full; choose among empty,vit-tiny,vit-b16"),
        (["--engines", "torch"], "there is no torch"),
        (["--concurrency", "8,0"], "'8,0' is no list of counts"),
        (["--concurrency", "many"], "'many' is no list of counts"),
    ],
)
def test_a_wrong_argument_is_refused_with_what_is_allowed(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse(arguments)
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("name", PEERS)
def test_a_peer_has_pinned_requirements_and_a_start_script(name: str) -> None:
    folder = FOLDER / PEERS[name].folder
    assert (folder / "start.sh").is_file()
    lines = PEERS[name].requirements.read_text().splitlines()
    wanted = [line for line in lines if not line.startswith("#")]
    assert "-r ../engine.txt" in wanted
    assert all("==" in line for line in wanted if line != "-r ../engine.txt")


def test_a_peer_reads_the_options_that_the_command_wrote(monkeypatch: pytest.MonkeyPatch) -> None:
    options = Options("openvino", "model.onnx", 8700, workers=2, threads=1, wait_s=0.25)
    for name, value in options.to_environment().items():
        monkeypatch.setenv(name, value)
    assert read_options() == options


def test_a_worker_per_core_or_one_for_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.peers.peers.usable_cores", lambda: 6)
    start = {
        name: launch_peer(PEERS[name], "openvino", tmp_path, tmp_path, b"", 8700).argv
        for name in ("fastapi", "fastapi-pool")
    }
    assert {"PEER_WORKERS=1", "PEER_THREADS=6"} <= set(start["fastapi"])
    assert {"PEER_WORKERS=6", "PEER_THREADS=1"} <= set(start["fastapi-pool"])


def test_ours_is_started_with_nothing_but_a_repository_and_a_port(tmp_path: Path) -> None:
    launch = launch_ours(tmp_path, "empty", b"jpeg", 8701)
    assert launch.argv[-4:] == ["--repository", str(tmp_path), "--port", "8701"]
    assert launch.url == "http://127.0.0.1:8701/v1/classify?model=empty"


def test_the_picture_is_always_the_same_and_of_a_photographs_size() -> None:
    data = draw()
    assert data == draw()
    with Image.open(BytesIO(data)) as picture:
        assert (picture.format, picture.size) == ("JPEG", (500, 375))
    assert 40_000 < len(data) < 100_000


def test_top_is_best_first() -> None:
    scores = np.array([0.1, 0.0, 0.3, 0.05, 0.2, 0.25, 0.1], dtype=np.float32)
    found = top(scores)["top"]
    assert [best["class"] for best in found[:3]] == [2, 5, 4]
    assert [best["score"] for best in found] == [0.3, 0.25, 0.2, 0.1, 0.1]


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_the_engine_answers_the_same_alone_and_in_a_batch(empty: Path, runtime: str) -> None:
    graph = empty / ("graph.onnx" if runtime == "onnxruntime" else "empty/1/model.onnx")
    engine = Engine(Options(runtime, str(graph), 0, workers=1, threads=1))
    data = draw()
    alone = engine.classify(data)
    assert engine.run([engine.decode(data)] * 3) == [alone] * 3
    assert bodies.fault(bodies.read_top(alone)) is None
    assert alone["top"][0]["class"] == 801


def test_the_bundle_is_whole_proven_and_answers_as_the_foreign_graph_does(empty: Path) -> None:
    bundle = load_bundle(empty / "empty" / "1")
    bundle.verify()
    assert {(p.runtime, p.precision) for p in bundle.manifest.parity} == {
        ("openvino", "fp32"),
        ("onnxruntime", "fp32"),
    }
    assert all(p.max_error < 1e-6 and p.top1_agreement == 1 for p in bundle.manifest.parity)
    canvas = bundle.manifest.canvases[0]
    picture = decode(draw(), ImageLimits())
    size = Size(height=picture.height, width=picture.width)
    pixels = to_canvas(picture, place(bundle.manifest.geometry, size, canvas))
    ours = open_runtime(bundle, "serve", canvas, candidates(bundle)[0])
    scores = ours.run({"images": pixels[None]})["scores"][0]
    foreign = Engine(Options("onnxruntime", str(empty / "graph.onnx"), 0, 1, 1)).classify(draw())
    found = top(scores)["top"]
    assert [best["class"] for best in found] == [best["class"] for best in foreign["top"]]
    for best, other in zip(found, foreign["top"], strict=True):
        assert best["score"] == pytest.approx(other["score"], abs=1e-5)


def test_pixels_of_the_empty_network_are_fast_and_say_what_that_changes(
    tmp_path: Path,
) -> None:
    fast = build("empty", tmp_path).bundle.manifest.decoding
    assert fast is not None
    assert (fast.resizer, fast.jpeg_scale) == ("simd", 2.0)
    said = pixels_of(fast)
    assert said.startswith("fast (SIMD resize, large JPEGs at a fraction that leaves 2 pixels")
    assert said.endswith("away from exact, on 8 pictures as they are, 8 enlarged)")
    assert build("empty", tmp_path).bundle.manifest.decoding == fast
    exact = build("empty", tmp_path, "exact").bundle.manifest.decoding
    assert exact is None
    assert pixels_of(exact).startswith("exact (decoded in full")


def test_every_body_carries_the_picture() -> None:
    assert bodies.raw(b"jpeg").data == b"jpeg"
    form = bodies.form(b"jpeg")
    assert b"\r\n\r\njpeg\r\n--" + bodies.BOUNDARY.encode() + b"--" in form.data
    tensor = json.loads(bodies.open_inference_base64(b"jpeg").data)["inputs"][0]
    assert tensor["data"] == ["anBlZw=="]
    binary = bodies.open_inference_binary(b"jpeg")
    head = int(binary.headers["Inference-Header-Content-Length"])
    assert json.loads(binary.data[:head])["inputs"][0]["parameters"] == {"binary_data_size": 8}
    assert binary.data[head:] == b"\x04\x00\x00\x00jpeg"


@pytest.mark.parametrize(
    ("best", "said"),
    [
        ([(1, 0.5)], "has not five classes"),
        ([(1, 0.5), (1, 0.2), (2, 0.1), (3, 0.1), (4, 0.1)], "has not five classes"),
        ([(1, 0.2), (5, 0.5), (2, 0.1), (3, 0.1), (4, 0.1)], "no probabilities"),
        ([(1000, 0.5), (5, 0.2), (2, 0.1), (3, 0.1), (4, 0.1)], "that there is not"),
        ([(1, 9.5), (5, 7.0), (2, 3.0), (3, 2.0), (4, 1.0)], "no probabilities"),
    ],
)
def test_an_answer_that_makes_no_sense_has_a_fault(best: bodies.Best, said: str) -> None:
    assert said in (bodies.fault(best) or "")


def test_the_figures_of_wrk_are_read() -> None:
    found = read_wrk(
        "Running 2s test @ http://127.0.0.1:8700/classify\n"
        'FIGURES {"answers": 410, "wall_s": 2.0, "p50_s": 0.04, "p95_s": 0.05, "p99_s": 0.06, '
        '"status": 10, "connect": 0, "read": 2, "write": 0, "timeout": 1}\n'
    )
    assert found.requests_per_s == 200
    assert (found.p50_s, found.p95_s, found.p99_s) == (0.04, 0.05, 0.06)
    assert found.errors == 13


def test_refusals_of_an_overload_are_no_errors_and_have_no_latency() -> None:
    tally = Tally(latencies_s=[0.1, 0.2, 0.3, 1.5], wall_s=8.0)
    tally.errors.update({"429": 5, "503": 1, "500": 2, "TimeoutError": 3})
    found = read_tally(tally)
    assert found.requests_per_s == 0.5
    assert (found.p50_s, found.p99_s) == (0.2, 1.5)
    assert (found.refused, found.errors) == (6, 5)


def run(requests_per_s: float, limit_per_s: float, label: int = 3) -> dict[str, Any]:
    """What was measured of one server in one round."""
    point = {
        "requests_per_s": requests_per_s,
        **{"p50_s": 0.01, "p95_s": 0.02, "p99_s": 0.03, "refused": 0, "errors": 0},
        **{"cpu_s": 0.004, "peak_rss_bytes": 200_000_000},
    }
    return {
        "startup_s": 2.0,
        "top": [[label, 0.5]],
        "points": {"1": point, "32": point},
        "overload": point | {"offered_per_s": requests_per_s * 1.5, "refused": 40},
        "limit": {"paces": {"1": limit_per_s / 2, "8": limit_per_s}},
    }


def canned(peer: str = "mosec", label: int = 3) -> dict[str, Any]:
    """Three rounds, in the second of which the machine was half as fast."""
    return {
        "graph": "empty",
        "peer": peer,
        "pixels": "exact (decoded in full)",
        "versions": {peer: "1.0"},
        "rounds": [
            {
                "saccade": run(400 * pace, 500 * pace),
                "openvino": run(200 * pace, 400 * pace, label),
            }
            for pace in (1, 0.5, 1.1)
        ],
    }


def whole(*pairs: dict[str, Any]) -> dict[str, Any]:
    """A report of these pairs."""
    return {
        "machine": {"processor": "a processor", "cores": 2, "system": "a system"},
        "picture_bytes": 60_000,
        "rounds": 3,
        "duration_s": 5.0,
        "load": "wrk",
        "isolated": True,
        "pairs": list(pairs),
        "disagreements": disagreements(list(pairs)),
    }


def test_ratios_are_taken_within_a_round() -> None:
    ours, peer = report.summarize(canned())
    assert ours["points"]["32"]["requests_per_s"] == 400
    assert ours["points"]["32"]["over_limit"] == pytest.approx(0.8)
    assert peer["points"]["32"]["over_limit"] == pytest.approx(0.5)
    assert peer["points"]["32"]["ours_over_it"] == pytest.approx(2)


def test_the_table_has_ours_once_and_a_row_for_each_peer_and_runtime() -> None:
    table = report.tabulate(whole(canned("mosec"), canned("ray")))
    rows = [line for line in table.splitlines() if line.startswith("| ")]
    assert [row.split(" | ")[0] for row in rows[2:]] == ["| saccade", "| mosec", "| ray"]
    assert rows[3] == (
        "| mosec | openvino | 200.0 | 200.0 | 10.0 | 10.0 | 30.0 | 0 | 4.0 | 200 | 2.0 | 0.50 "
        "| 2.00 | 200.0 of 300 | 10.0 | 30.0 | 40 | 0 |"
    )


def test_the_table_says_once_how_ours_makes_pixels() -> None:
    table = report.tabulate(whole(canned("mosec"), canned("ray")))
    assert table.endswith("|\n\nSaccade's pixels: exact (decoded in full).\n")
    assert table.count("pixels:") == 1


def test_the_plot_is_a_picture_of_lines(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    report.plot(whole(canned("mosec"), canned("ray")), tmp_path / "peers.svg")
    assert (tmp_path / "peers.svg").read_text().count("<svg ") == 1


def test_a_peer_that_names_another_class_is_told_of() -> None:
    assert disagreements([canned("mosec"), canned("ray")]) == []
    assert disagreements([canned("mosec"), canned("ray", label=7)]) == [
        "empty: ray with openvino says class 7, mosec with openvino says 3"
    ]
    assert disagreements([canned("mosec", label=7)]) == [
        "empty: mosec with openvino says class 7, saccade says 3"
    ]


@pytest.fixture
def canned_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Peers need no environment, and are measured at once; ray does not start."""

    class Canned:
        def __init__(self, plan: object, served: object, peer: Peer, environment: object) -> None:
            self.name = peer.name

        def measure(self, tell: object) -> dict[str, Any]:
            if self.name == "ray":
                raise ServerError("ray ended with 1")
            return canned(self.name)

    monkeypatch.setattr("bench.peers.__main__.Pair", Canned)
    monkeypatch.setattr("bench.peers.__main__.environment", lambda peer, work: work)
    monkeypatch.setattr("bench.peers.graphs.build", lambda name, work, pixels: None)


@pytest.mark.usefixtures("canned_pairs")
def test_pairs_of_a_later_run_are_added_only_if_measured_in_the_same_way(tmp_path: Path) -> None:
    (tmp_path / "picture.jpg").write_bytes(b"jpeg")
    out = tmp_path / "peers.json"
    where = ["--graphs", "empty", "--work", str(tmp_path), "--out", str(out)]
    assert measure(parse(["mosec", *where])) == 0
    assert measure(parse(["litserve", "--add", *where])) == 0
    assert [pair["peer"] for pair in json.loads(out.read_text())["pairs"]] == ["mosec", "litserve"]
    assert "| litserve | openvino |" in out.with_suffix(".md").read_text()
    with pytest.raises(SystemExit, match="its rounds differ"):
        measure(parse(["bentoml", "--add", "--rounds", "1", *where]))
    with pytest.raises(SystemExit, match="its pixels differ"):
        measure(parse(["bentoml", "--add", "--pixels", "exact", *where]))
    assert measure(parse(["bentoml", *where])) == 0
    assert [pair["peer"] for pair in json.loads(out.read_text())["pairs"]] == ["bentoml"]


@pytest.mark.usefixtures("canned_pairs")
def test_a_peer_that_does_not_start_is_left_out_and_makes_the_command_fail(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "picture.jpg").write_bytes(b"jpeg")
    out = tmp_path / "peers.json"
    where = ["--graphs", "empty", "--work", str(tmp_path), "--out", str(out)]
    assert measure(parse(["ray", "mosec", *where])) == 1
    assert "left out: ray ended with 1" in capsys.readouterr().out
    assert [pair["peer"] for pair in json.loads(out.read_text())["pairs"]] == ["mosec"]
