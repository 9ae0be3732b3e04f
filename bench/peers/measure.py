"""A B A B: ours and a peer in turn on one network, and the loops without a server beside them."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from bench.peers import load
from bench.peers.environments import versions
from bench.peers.graphs import Served
from bench.peers.peers import OURS, ROOT, Launch, Peer, launch_ours, launch_peer
from bench.peers.servers import Server, ServerError, Watch, running
from service.bundle import Decoding

WARM_CLIENTS = 8
CAPACITY_CLIENTS = 64
ANSWERS_EACH = 4
"""Least answers of each client at a point, for which slow networks take more than the duration."""
LONGEST_S = 60.0
LIMIT_S = 300.0
PORTS = range(8700, 8790, 3)
"""Each start takes the next, and a peer the two behind it too: a port of the server before may
still be held by connections that are closing.
"""
LIBRARIES = (
    *("fastapi", "uvicorn", "litserve", "mosec", "bentoml", "ray", "mlserver", "torchserve"),
    *("nvidia-pytriton", "onnxruntime", "openvino", "numpy", "pillow"),
)

Found = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """How much is measured, and in which folder."""

    work: Path
    runtimes: tuple[str, ...]
    concurrency: tuple[int, ...]
    rounds: int
    duration_s: float
    overload: bool

    @property
    def picture(self) -> Path:
        """The file that is sent."""
        return self.work / "picture.jpg"


class Pair:
    """Ours and one peer on one network."""

    def __init__(self, plan: Plan, served: Served, peer: Peer, environment: Path) -> None:
        self._plan = plan
        self._served = served
        self._peer = peer
        self._environment = environment
        self._starts = 0

    def measure(self, tell: Callable[[str], None]) -> Found:
        """Figures of every round, by "saccade" or the runtime that the peer runs.

        Raises:
            ServerError: a server did not start, or does not answer as it should.
            LoadError: the load generator failed.
        """
        name = self._served.bundle.manifest.name
        rounds = []
        for index in range(self._plan.rounds):
            found: Found = {}
            for key in (OURS, *self._plan.runtimes):
                who = key if key == OURS else f"{self._peer.name} with {key}"
                tell(f"{name}, round {index + 1} of {self._plan.rounds}: {who}")
                found[key] = self._serve(key) | {"limit": self._limit(key)}
            rounds.append(found)
        installed = versions(self._environment)
        return {
            "graph": name,
            "peer": self._peer.name,
            "pixels": pixels_of(self._served.bundle.manifest.decoding),
            "versions": {key: installed[key] for key in LIBRARIES if key in installed},
            "rounds": rounds,
        }

    def _serve(self, key: str) -> Found:
        """Start, ask once, load at every concurrency and beyond, stop."""
        launch, plan = self._launch(key), self._plan
        with running(launch, plan.work) as server:
            best = server.wait()
            body = plan.work / "run" / launch.name / "body"
            body.write_bytes(launch.body.data)
            pace = self._warm(server, body)
            found: Found = {"startup_s": server.startup_s, "top": best, "points": {}}
            for count in plan.concurrency:
                enough_s = min(ANSWERS_EACH * count / pace, LONGEST_S)
                duration_s = max(plan.duration_s, enough_s)
                point = _watch(server, partial(load.closed, launch, body, count, duration_s))
                server.ask()  # behind what the clients left, which a server may go on with
                if point["requests_per_s"] == 0:
                    raise ServerError(f"{launch.name} answers nothing well at {count}: {point}")
                found["points"][str(count)] = point
            if plan.overload:
                found["overload"] = self._overload(server, body, found["points"])
            return found

    def _warm(self, server: Server, body: Path) -> float:
        """Load that does not count; about how many requests a second to expect."""
        started_s = time.perf_counter()
        server.ask()
        alone_s = time.perf_counter() - started_s
        seen = load.closed(server.launch, body, WARM_CLIENTS, self._plan.duration_s / 2)
        server.ask()
        return max(seen.requests_per_s, 1 / alone_s)

    def _overload(self, server: Server, body: Path, points: Found) -> Found:
        """At a multiple of what the server has just been measured to do."""
        launch, duration_s = server.launch, self._plan.duration_s
        measured = points.get(str(CAPACITY_CLIENTS))
        if measured is None:
            measured = asdict(load.closed(launch, body, CAPACITY_CLIENTS, duration_s))
        offered = measured["requests_per_s"] * load.OVERLOAD
        drive = partial(load.overload, launch, offered, 2 * duration_s)
        return _watch(server, drive) | {"offered_per_s": offered}

    def _launch(self, key: str) -> Launch:
        port = PORTS[self._starts % len(PORTS)]
        self._starts += 1
        picture = self._plan.picture.read_bytes()
        if key == OURS:
            name = self._served.bundle.manifest.name
            return launch_ours(self._served.repository, name, picture, port)
        graph = self._served.graph(key)
        return launch_peer(self._peer, key, graph, self._environment, picture, port)

    def _limit(self, key: str) -> Found:
        """Pictures per second without a server, by batch size; a peer's with its own libraries."""
        picture = str(self._plan.picture.resolve())
        if key == OURS:
            python = Path(sys.executable)
            program = ["bench.peers.limit", str(self._served.bundle.folder.resolve()), picture]
        else:
            python = self._environment.resolve() / "bin" / "python"
            graph = str(self._served.graph(key).resolve())
            program = ["bench.peers.loop", picture, "--runtime", key, "--graph", graph]
        program += ["--duration", str(self._plan.duration_s / 2)]
        argv = ["env", f"PYTHONPATH={ROOT}", str(python), "-m", *program]
        try:
            ended = subprocess.run(
                argv, capture_output=True, text=True, check=False, timeout=LIMIT_S
            )
        except subprocess.TimeoutExpired:
            raise ServerError(f"{' '.join(argv)} did not end within {LIMIT_S:.0f} s") from None
        if ended.returncode != 0:
            raise ServerError(f"{' '.join(argv)} failed:\n{ended.stderr}")
        found: Found = json.loads(ended.stdout.splitlines()[-1])
        return found


def pixels_of(decoding: Decoding | None) -> str:
    """How ours makes pixels, and what its manifest says that this changes."""
    if decoding is None:
        return "exact (decoded in full, resized by Pillow, as the checkpoint's own processor does)"
    ways = ["SIMD resize"] if decoding.resizer == "simd" else []
    if decoding.jpeg_scale is not None:
        ways.append(
            f"large JPEGs at a fraction that leaves {decoding.jpeg_scale:g} pixels for each"
        )
    error = max(parity.max_error for parity in decoding.effect)
    return (
        f"fast ({', '.join(ways)}; at least {decoding.psnr_db:.1f} dB and at most {error:.1e} of a "
        f"score away from exact, on {decoding.pictures})"
    )


def _watch(server: Server, drive: Callable[[], load.Load]) -> Found:
    """What the clients saw, and what it took of the machine."""
    with Watch(server) as watch:
        seen = drive()
    good = round(seen.requests_per_s * seen.wall_s)
    taken = {"cpu_s": watch.cpu_s / max(good, 1), "peak_rss_bytes": watch.peak_rss_bytes}
    return asdict(seen) | taken


def disagreements(pairs: list[Found]) -> list[str]:
    """Peers whose best class differs from that of others with the same graph and runtime, and
    where ours differs from theirs; a sentence each.
    """
    seen: dict[tuple[str, str], tuple[int, str]] = {}
    sentences = []
    for pair in pairs:
        for measured in pair["rounds"]:
            for key, found in measured.items():
                who = key if key == OURS else f"{pair['peer']} with {key}"
                best = found["top"][0][0]
                first, whose = seen.setdefault((pair["graph"], key), (best, who))
                if best != first:
                    sentences.append(
                        f"{pair['graph']}: {who} says class {best}, {whose} says {first}"
                    )
    for (graph, _), (best, who) in seen.items():
        ours, _ = seen[graph, OURS]
        if best != ours:
            sentences.append(f"{graph}: {who} says class {best}, {OURS} says {ours}")
    return list(dict.fromkeys(sentences))
