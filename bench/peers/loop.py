"""The peers' limit: their engine in one process per core, and no server.

    python -m bench.peers.loop PICTURE --runtime openvino --graph FILE

Run in a peer's environment, so that both have the same libraries.
"""

import argparse
import json
import multiprocessing
import os
import time
from multiprocessing.synchronize import Barrier
from pathlib import Path

from bench.peers.engine import Engine, Options

PATIENCE_S = 60.0


def main() -> None:
    """Print the pictures per second of all processes together, by batch size, as JSON."""
    parser = argparse.ArgumentParser(prog="python -m bench.peers.loop")
    parser.add_argument("picture", type=Path)
    parser.add_argument("--runtime", required=True)
    parser.add_argument("--graph", required=True)
    parser.add_argument("--duration", type=float, default=5.0, help="seconds per batch size")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    asked = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    options = Options(asked.runtime, asked.graph, 0, len(cores), 1)
    picture = asked.picture.read_bytes()
    together = multiprocessing.Barrier(len(cores), timeout=PATIENCE_S)
    paces: multiprocessing.Queue[dict[int, float]] = multiprocessing.Queue()
    for core in cores:
        plan = (options, core, picture, asked.batch, asked.duration, together, paces)
        multiprocessing.Process(target=_loop, args=plan, daemon=True).start()
    longest_s = PATIENCE_S + len(asked.batch) * (asked.duration + PATIENCE_S)
    found = [paces.get(timeout=longest_s) for _ in cores]
    total = {batch: sum(pace[batch] for pace in found) for batch in asked.batch}
    print(json.dumps({"paces": total}))


def _loop(
    options: Options,
    core: int,
    picture: bytes,
    batches: list[int],
    duration_s: float,
    together: Barrier,
    paces: "multiprocessing.Queue[dict[int, float]]",
) -> None:
    """Pictures per second of one process, pinned to its core, by batch size."""
    os.sched_setaffinity(0, {core})
    engine = Engine(options)
    found = {}
    for batch in batches:
        engine.run([engine.decode(picture)] * batch)
        together.wait()
        found[batch] = _pace(engine, picture, batch, duration_s)
    paces.put(found)


def _pace(engine: Engine, picture: bytes, batch: int, duration_s: float) -> float:
    pictures = 0
    started_s = time.perf_counter()
    while time.perf_counter() < started_s + duration_s:
        answers = engine.run([engine.decode(picture) for _ in range(batch)])
        json.dumps(answers)
        pictures += batch
    return pictures / (time.perf_counter() - started_s)


if __name__ == "__main__":
    main()
