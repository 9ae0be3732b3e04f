"""What can go wrong on the way to an answer.

SaccadeError
  ProblemError   the server says why there is no answer
    Refused      the request cannot be answered as it stands (4xx)
    Unavailable  the server could not answer it in time (429, 5xx); later it may
  OutOfTime      no answer came within ``timeout_s``
  Unreachable    nobody answers there, or what answers is no Saccade server
"""

from typing import Any


class SaccadeError(Exception):
    """Base of all."""


class ProblemError(SaccadeError):
    """The server's own words: ``code`` is stable and machine-readable, ``problem`` is the whole
    document (RFC 9457).
    """

    def __init__(self, problem: dict[str, Any], retry_after_s: float | None = None) -> None:
        self.problem = problem
        self.status: int = problem.get("status", 0)
        self.code: str = problem.get("code", "")
        self.detail: str = problem.get("detail", "")
        self.request_id: str = problem.get("request_id", "")
        self.retry_after_s = retry_after_s
        super().__init__(f"{self.detail} ({self.status} {self.code})")


class Refused(ProblemError):
    """The request cannot be answered as it stands; to send it again does not help."""


class Unavailable(ProblemError):
    """The server could not answer, and might later; ``retry_after_s`` is what it says of that."""


class OutOfTime(SaccadeError):
    """No answer came in time."""


class Unreachable(SaccadeError):
    """Nobody answers at the address, or what answers is no Saccade server."""
