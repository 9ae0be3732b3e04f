"""A bounded number of places that clients take in turn."""

import asyncio
from collections import deque
from collections.abc import Iterator


class Turns:
    """Of those who wait for a place, clients get the next one in turn, and the oldest of each.

    For one event loop. Where a place is free, taking it waits for nothing.
    """

    def __init__(self, places: int) -> None:
        self._free = places
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}  # clients by turn

    async def take(self, client: str) -> None:
        """Wait for a place; who has one gives it back."""
        if self._free:
            self._free -= 1
            return
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(client, deque()).append(place)
        try:
            await place
        except asyncio.CancelledError:
            if not place.cancelled():  # it had just been given
                self.give_back()
            raise

    def give_back(self) -> None:
        """Pass a place on to who waits for one."""
        while self._waiting:
            client = next(iter(self._waiting))
            places = self._waiting.pop(client)
            place = next((place for place in _taken_off(places) if not place.done()), None)
            if places:
                self._waiting[client] = places
            if place is not None:
                place.set_result(None)
                return
        self._free += 1


def _taken_off(places: "deque[asyncio.Future[None]]") -> "Iterator[asyncio.Future[None]]":
    while places:
        yield places.popleft()
