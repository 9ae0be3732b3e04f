"""One request's identity and timings: request id, W3C trace context, stage times."""

import re
import secrets
import time
from dataclasses import dataclass, field

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")
# Version 00 ends after its flags; later ones may go on.
_TRACEPARENT = re.compile(
    r"(?!ff|00.{54})[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?"
)


@dataclass
class Trace:
    """What is known of a request while it runs; ``stages_s`` holds seconds by stage, in order, and
    ``ended_s`` when that was over, on the monotonic clock.

    With several pictures in a request a stage's time is that of its slowest picture.
    """

    request_id: str
    trace_id: str
    parent_id: str | None = None
    """The caller's span, where it named one."""
    sampled: bool = True
    """Whether the caller has its own spans kept."""
    started_s: float = field(default_factory=time.monotonic)
    stages_s: dict[str, float] = field(default_factory=dict)
    ended_s: dict[str, float] = field(default_factory=dict)
    client: str = ""
    """Who takes turns with others: the name of a key, or an address."""
    priority: int = 0
    """Among the pictures of the same client: 1 comes first, then 2 and so on, 0 last."""
    task: str | None = None
    model: str | None = None
    batch_sizes: list[int] = field(default_factory=list)

    def record(self, stage: str, seconds: float, ago_s: float = 0.0) -> None:
        """Note the time that one picture spent in a stage, which ended ``ago_s`` before now."""
        if seconds >= self.stages_s.get(stage, 0.0):
            self.stages_s[stage] = seconds
            self.ended_s[stage] = time.monotonic() - ago_s

    def server_timing(self) -> str:
        """The value of a ``Server-Timing`` header, in milliseconds as that header wants it."""
        total = {"total": time.monotonic() - self.started_s}
        return ", ".join(f"{k};dur={v * 1000:.2f}" for k, v in (self.stages_s | total).items())


def start_trace(request_id: str | None, traceparent: str | None) -> Trace:
    """A trace with the caller's ids where they are well-formed, and new ones otherwise."""
    if request_id is None or not _REQUEST_ID.fullmatch(request_id):
        request_id = secrets.token_hex(8)
    match = _TRACEPARENT.fullmatch(traceparent or "")
    known = match is not None and match[1] != "0" * 32 and match[2] != "0" * 16
    if match is None or not known:
        return Trace(request_id, secrets.token_hex(16))
    return Trace(request_id, match[1], parent_id=match[2], sampled=bool(int(match[3], 16) & 1))
