"""Saccade beside other servers, in turn, on the same picture and the same network.

    python -m bench.peers [NAME ...] [--graphs empty,vit-tiny,vit-b16] [--overload]

Makes what it needs on the first run (an environment for each peer, checkpoints, graphs), then
measures in namespaces of its own where it may make them: there no server can be reached from
elsewhere, and none outlives the command.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from http.client import HTTPException
from pathlib import Path

from bench.peers import graphs, load, picture, report, servers
from bench.peers.environments import environment
from bench.peers.measure import Found, Pair, Plan, disagreements
from bench.peers.peers import PEERS, RUNTIMES
from service.bench.report import describe_machine

NAMESPACES = ["unshare", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
LOOPBACK = ["ip", "link", "set", "lo", "up"]
MEASURING = "--measuring"
"""Marks the part of the command that runs in the namespaces."""


def main() -> None:
    """Prepare, then measure in a process apart."""
    given = sys.argv[1:]
    asked = parse(given)
    try:
        if asked.measuring:
            servers.adopt_orphans()
            sys.exit(measure(asked))
        load.check_wrk()
        prepare(asked)
    except (load.LoadError, subprocess.CalledProcessError) as error:
        sys.exit(f"error: {error}")
    sys.exit(_apart([sys.executable, "-m", "bench.peers", *given, MEASURING]))


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line; ends the process if it is wrong."""
    parser = argparse.ArgumentParser(prog="python -m bench.peers")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(PEERS)}; else all")
    parser.add_argument("--graphs", type=_some_of(graphs.GRAPHS), default=graphs.GRAPHS)
    parser.add_argument(
        "--pixels",
        choices=("exact", "fast"),
        help="how ours decodes and resizes; else fast for empty and exact for the others",
    )
    parser.add_argument("--engines", type=_some_of(RUNTIMES), default=RUNTIMES)
    parser.add_argument("--concurrency", type=_counts, default=(1, 8, 32, 64))
    parser.add_argument("--overload", action="store_true", help="also more than a server can take")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--duration", type=float, default=5.0, help="seconds per point and round")
    parser.add_argument("--work", type=Path, default=Path("build/peers"))
    parser.add_argument("--out", type=Path, default=Path("bench/results/peers.json"))
    parser.add_argument("--add", action="store_true", help="keep what OUT holds of other pairs")
    parser.add_argument(MEASURING, action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    unknown = [name for name in asked.names if name not in PEERS]
    if unknown:
        parser.error(f"no peer is called {', '.join(unknown)}; there are {', '.join(PEERS)}")
    if asked.rounds < 1 or asked.duration <= 0:
        parser.error("there must be at least one round, of some duration")
    asked.names = asked.names or list(PEERS)
    return asked


def _some_of(known: tuple[str, ...]) -> Callable[[str], tuple[str, ...]]:
    def read(text: str) -> tuple[str, ...]:
        names = tuple(text.split(","))
        unknown = set(names) - set(known)
        if unknown:
            raise argparse.ArgumentTypeError(
                f"there is no {', '.join(sorted(unknown))}; choose among {','.join(known)}"
            )
        return names

    return read


def _counts(text: str) -> tuple[int, ...]:
    try:
        counts = tuple(int(part) for part in text.split(","))
    except ValueError:
        counts = (0,)
    if min(counts) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of counts such as 1,8,32")
    return counts


def prepare(asked: argparse.Namespace) -> None:
    """Everything that takes a network or a long time, so that measuring takes neither."""
    asked.work.mkdir(parents=True, exist_ok=True)
    (asked.work / "picture.jpg").write_bytes(picture.draw())
    for name in asked.graphs:
        graphs.build(name, asked.work, asked.pixels)
    for name in _possible(asked.names):
        environment(PEERS[name], asked.work)


def measure(asked: argparse.Namespace) -> int:
    """Every pair in turn; what is known so far is written after each. Returns the exit status."""
    plan = Plan(
        asked.work, asked.engines, asked.concurrency, asked.rounds, asked.duration, asked.overload
    )
    found = _begin(asked, plan)
    failures = 0
    for graph in asked.graphs:
        served = graphs.build(graph, asked.work, asked.pixels)
        for name in _possible(asked.names):
            pair = Pair(plan, served, PEERS[name], environment(PEERS[name], asked.work))
            try:
                measured = pair.measure(lambda text: print(text, flush=True))
            except (servers.ServerError, load.LoadError, OSError, HTTPException) as error:
                print(f"left out: {error}", flush=True)
                failures += 1
                continue
            others = [old for old in found["pairs"] if _key(old) != _key(measured)]
            found["pairs"] = [*others, measured]
            found["disagreements"] = disagreements(found["pairs"])
            _write(found, asked.out)
    if found["pairs"]:
        print(report.tabulate(found))
        print(f"written to {asked.out}, .md and .svg")
    return min(failures + len(found.get("disagreements", [])), 1)


def _begin(asked: argparse.Namespace, plan: Plan) -> Found:
    """A report without pairs, or with those that were measured in the same way before."""
    found: Found = {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": describe_machine(),
        "picture_bytes": plan.picture.stat().st_size,
        "rounds": plan.rounds,
        "duration_s": plan.duration_s,
        "concurrency": list(plan.concurrency),
        "load": "wrk" + ", overload by an open loop in Python" * plan.overload,
        "isolated": servers.isolated(),
        "pixels": asked.pixels or "fast for empty, exact for others",
        "pairs": [],
    }
    if not (asked.add and asked.out.exists()):
        return found
    before: Found = json.loads(asked.out.read_text())
    changed = [
        key for key in found if key not in ("started", "pairs") and found[key] != before.get(key)
    ]
    if changed:
        sys.exit(f"error: nothing can be added to {asked.out}: its {', '.join(changed)} differ")
    return before


def _key(pair: Found) -> tuple[str, str]:
    return pair["graph"], pair["peer"]


def _write(found: Found, out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(found, indent=1) + "\n")
    out.with_suffix(".md").write_text(report.tabulate(found))
    try:
        report.plot(found, out.with_suffix(".svg"))
    except ImportError:
        print("no plot: matplotlib is not installed (pip install 'saccade[bench]')")


def _possible(names: list[str]) -> list[str]:
    """Those whose programs are there; says which are not."""
    for name in names:
        if PEERS[name].missing():
            print(f"{name} is left out: it needs {', '.join(PEERS[name].missing())} on the PATH")
    return [name for name in names if not PEERS[name].missing()]


def _apart(command: list[str]) -> int:
    """Run a command in namespaces that end with it, or without them where they are not allowed."""
    deadly = ["setpriv", "--pdeathsig", "KILL"]  # so that it ends with this process
    tried = subprocess.run([*NAMESPACES, *LOOPBACK], capture_output=True, check=False)
    if tried.returncode == 0:
        # With a shell as first process, which does what init must, and takes all with it.
        inside = ["sh", "-c", f'{" ".join(LOOPBACK)} && "$@"; exit $?', "sh"]
        return subprocess.run([*deadly, *NAMESPACES, *inside, *command], check=False).returncode
    print(
        "no namespaces of its own (that takes root, unshare and ip): servers which listen on "
        "every address can be reached from outside while they are measured"
    )
    return subprocess.run([*deadly, *command], check=False).returncode


if __name__ == "__main__":
    main()
