"""What became of a request, judged by what its kind may be answered with."""

import json
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from service.bench.client import Reply

TOLERANCE = 1e-4  # of a score, against the answer that the same picture got before
REFUSALS = {(429, "overloaded"), (503, "not_ready")}
"""Said before any work is accepted; every other 5xx is an accepted request that was lost."""

Outcome = Literal["answered", "refused", "late", "left", "cut", "lost", "wrong"]
Substance = list[tuple[str, float]]
"""Label and score of each prediction or segment, in order."""


@dataclass(frozen=True, slots=True)
class Event:
    """The end of one request, ``took_s`` after it was sent; ``status`` is that of HTTP, or the name
    of what broke.
    """

    kind: str
    status: str
    outcome: Outcome
    at_s: float
    took_s: float = 0.0


def judge(reply: Reply, expected: Collection[int], reference: Substance | None = None) -> Outcome:
    """``answered`` as expected, ``refused`` under load, ``late``, ``lost`` by the server, or
    ``wrong``: another status than may be, or another answer than before.
    """
    if reply.status in expected:
        if reply.status == 504:
            return "late"
        right = reference is None or reply.status != 200 or _agrees(reply.body, reference)
        return "answered" if right else "wrong"
    if (reply.status, _code_of(reply.body)) in REFUSALS:
        return "refused"
    return "lost" if reply.status >= 500 else "wrong"


def substance_of(body: bytes) -> Substance:
    """What an answer of any task says.

    Raises:
        ValueError, KeyError: the body is no such answer.
    """
    answer = json.loads(body)
    found = answer["segments"] if "segments" in answer else answer["predictions"]
    return [(one["label"], one["score"]) for one in found]


def _agrees(body: bytes, reference: Substance) -> bool:
    try:
        found = substance_of(body)
    except (ValueError, KeyError):
        return False
    return len(found) == len(reference) and all(
        label == known and abs(score - best) <= TOLERANCE
        for (label, score), (known, best) in zip(found, reference, strict=True)
    )


def _code_of(body: bytes) -> str | None:
    try:
        problem = json.loads(body)
    except ValueError:
        return None
    return problem.get("code") if isinstance(problem, dict) else None
