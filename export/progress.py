"""How an export tells what it does."""

from typing import Protocol


class Progress(Protocol):
    """Hears of an export while it runs."""

    def step(self, text: str) -> None:
        """Work that starts now, and ends when the next step starts."""

    def notice(self, text: str) -> None:
        """Something that the user has to know in the end, though the export goes on."""


class Silent:
    """For callers that only want the bundle."""

    def step(self, text: str) -> None:
        """Nobody listens."""

    def notice(self, text: str) -> None:
        """Nobody listens."""
