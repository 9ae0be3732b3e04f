"""Running models in this process: what waits shares batches, and a bad picture fails alone."""

import asyncio
import threading
from typing import Any, cast

import numpy as np
import pytest

from service.errors import RuntimeFailed
from service.predict.engine import LocalLink, local_settings
from service.settings import load_settings
from service.worker.models import Models, Ran
from service.worker.runtimes.base import Arrays
from service.worker.scheduler import Group

GROUP = Group("tiny", "serve", "8x8")


class Doubling:
    """Answers with twice what it is given; a batch with a 13 fails. ``gate`` holds it up."""

    def __init__(self, most: int = 4) -> None:
        self.batches: list[tuple[list[int], bool]] = []
        self.gate = threading.Event()
        self.gate.set()
        self._most = most

    def most_streams(self) -> int:
        return 1

    def streams(self, group: Group) -> int:
        return 1

    def best_batch(self, group: Group) -> int:
        return self._most

    def describe(self) -> dict[str, Any]:
        return {"tiny": {}}

    def run(self, group: Group, items: list[Arrays], outputs: list[Any], lone: bool) -> Ran:
        assert self.gate.wait(10)
        values = [int(item["x"]) for item in items]
        self.batches.append((values, lone))
        if 13 in values:
            raise ValueError("thirteen")
        return Ran([{"y": np.array(2 * value)} for value in values], "fp32")


async def ask(models: Doubling, values: list[int]) -> list[Any]:
    """The answers, all asked for before the first is given."""
    link = LocalLink(cast(Models, models))
    models.gate.clear()
    asked = [asyncio.create_task(link.infer(GROUP, {"x": np.array(v)}, 0.0)) for v in values]
    await asyncio.sleep(0)
    models.gate.set()
    try:
        return await asyncio.gather(*asked, return_exceptions=True)
    finally:
        link.close()


def test_the_next_batch_forms_while_one_runs() -> None:
    models = Doubling(most=4)
    found = asyncio.run(ask(models, [1, 2, 3, 4, 5, 6]))
    assert [int(one.outputs["y"]) for one in found] == [2, 4, 6, 8, 10, 12]
    assert models.batches == [([1], True), ([2, 3, 4, 5], False), ([6], True)]
    assert [one.batch_size for one in found] == [1, 4, 4, 4, 4, 1]


def test_a_picture_that_fails_takes_none_of_its_batch_along() -> None:
    models = Doubling(most=4)
    found = asyncio.run(ask(models, [1, 2, 13, 4]))
    assert isinstance(found[2], RuntimeFailed)
    assert "thirteen" in str(found[2])
    assert [int(found[place].outputs["y"]) for place in (0, 1, 3)] == [2, 4, 8]


def test_whom_nobody_waits_for_any_more_is_not_run() -> None:
    models = Doubling(most=4)

    async def leave() -> None:
        link = LocalLink(cast(Models, models))
        models.gate.clear()
        first = asyncio.create_task(link.infer(GROUP, {"x": np.array(1)}, 0.0))
        left = asyncio.create_task(link.infer(GROUP, {"x": np.array(2)}, 0.0))
        last = asyncio.create_task(link.infer(GROUP, {"x": np.array(3)}, 0.0))
        await asyncio.sleep(0)
        left.cancel()
        models.gate.set()
        await asyncio.gather(first, last)
        link.close()

    asyncio.run(leave())
    assert [value for values, _ in models.batches for value in values] == [1, 3]


def test_one_user_on_one_machine_needs_no_key_and_has_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SACCADE_API_KEYS", "tester:a-key-of-the-test")
    settings = load_settings({"timeout_s": 2, "max_pixels": 2048})
    local = local_settings(settings)
    assert settings.api_keys.get_secret_value() == "tester:a-key-of-the-test"
    assert local.api_keys.get_secret_value() == ""
    assert (local.timeout_s, local.max_pixels) == (3600, 2048)
