"""Places that clients take in turn."""

import asyncio
from collections.abc import Coroutine
from typing import Any

from service.api.turns import Turns


def run(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(scenario, 10))


async def settle() -> None:
    """Let every task go as far as it can."""
    for _ in range(5):
        await asyncio.sleep(0)


def test_a_free_place_is_taken_without_waiting() -> None:
    async def scenario() -> None:
        turns = Turns(2)
        for _ in range(3):
            await turns.take("a")
            await turns.take("b")
            turns.give_back()
            turns.give_back()

    run(scenario())


def test_those_who_wait_get_in_by_turns_of_their_clients_oldest_first() -> None:
    async def scenario() -> None:
        turns, order = Turns(1), []

        async def work(client: str, number: int) -> None:
            await turns.take(client)
            order.append(f"{client}{number}")
            await asyncio.sleep(0)
            turns.give_back()

        asked = [*(("a", number) for number in range(5)), ("b", 0), ("b", 1), ("c", 0)]
        await asyncio.gather(*(work(*one) for one in asked))
        assert order == ["a0", "a1", "b0", "c0", "a2", "b1", "a3", "a4"]

    run(scenario())


def test_who_leaves_while_waiting_costs_no_place_and_no_turn() -> None:
    async def scenario() -> None:
        turns = Turns(1)
        await turns.take("a")
        waiting = [asyncio.create_task(turns.take(client)) for client in ("a", "a", "b")]
        await settle()
        waiting[0].cancel()
        await settle()
        turns.give_back()
        await settle()
        assert [task.done() for task in waiting] == [True, True, False]
        turns.give_back()
        await waiting[2]
        turns.give_back()
        await turns.take("c")

    run(scenario())


def test_who_leaves_just_when_a_place_was_given_passes_it_on() -> None:
    async def scenario() -> None:
        turns = Turns(1)
        await turns.take("a")
        first, second = (asyncio.create_task(turns.take(client)) for client in ("a", "b"))
        await settle()
        turns.give_back()
        first.cancel()
        await second
        assert first.cancelled()
        turns.give_back()
        await turns.take("c")

    run(scenario())


def test_no_more_than_the_places_are_taken_at_once() -> None:
    async def scenario() -> None:
        turns, inside, most = Turns(3), 0, 0

        async def work(client: str) -> None:
            nonlocal inside, most
            await turns.take(client)
            inside += 1
            most = max(most, inside)
            await asyncio.sleep(0)
            inside -= 1
            turns.give_back()

        await asyncio.gather(*(work(f"client {number % 4}") for number in range(40)))
        assert (inside, most) == (0, 3)

    run(scenario())
