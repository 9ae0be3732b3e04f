"""Bad clients of every kind at once do not keep good ones from their answers."""

from pathlib import Path

import httpx
import uvloop

from bench.hostile import ATTACKS, Load, each_and_all, measure, tabulate
from bench.server import serving
from service.settings import DEMO_REPOSITORY


def test_good_clients_are_all_answered_beside_bad_ones(
    demo_scenes: dict[str, dict[str, Path]],
) -> None:
    pictures = [scene["path"].read_bytes() for scene in demo_scenes.values()]
    load = Load(duration_s=2.0, clients=2, counts=dict.fromkeys(ATTACKS, 20) | {"1 GB bodies": 2})
    limits = ("--max-connections", "60", "--header-timeout-s", "1", "--max-queue", "8")
    with serving(DEMO_REPOSITORY, *limits) as server:
        uvloop.run(server.wait_until_ready())
        parts = measure(server, pictures, load, [(), tuple(ATTACKS)])
        metrics = httpx.get(server.url + "/metrics").text
    assert [part["beside"] for part in parts] == [{}, load.counts]
    assert [part["errors"] for part in parts] == [{}] * len(parts)
    assert all(part["answered"] > 0 for part in parts)
    assert 'saccade_connections_closed_total{reason="slow_headers"} 0.0' not in metrics
    assert tabulate(parts).row_count == len(parts)


def test_each_kind_is_measured_alone_and_all_together() -> None:
    assert each_and_all(["a", "b"]) == [(), ("a",), ("b",), ("a", "b"), ()]
