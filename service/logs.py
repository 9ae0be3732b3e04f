"""One JSON object per log line, on standard error."""

import functools
import json
import logging
import sys
import threading
import time
from typing import Any, TextIO

from pydantic_core import PydanticSerializationError, to_json

FLUSH_S = 0.1
"""How long an ordinary line may wait to be written together with others."""


class JsonFormatter(logging.Formatter):
    """Time (UTC), level, logger, message, and the members of ``extra={"facts": {...}}``."""

    def __init__(self, role: str) -> None:
        super().__init__()
        self._role = role

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": f"{_second(int(record.created))}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "role": self._role,
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= getattr(record, "facts", {})
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        try:
            return to_json(line, fallback=str).decode()
        except PydanticSerializationError:  # a lone surrogate has no UTF-8
            return json.dumps(line, default=str)


class LinesHandler(logging.Handler):
    """Writes ordinary lines together, ``FLUSH_S`` after the first of them, and warnings at once.

    A write for every request lets another thread take the interpreter, which costs more than the
    line itself.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream = stream
        self._lines: list[str] = []
        self._waiting = threading.Event()
        threading.Thread(target=self._flush_for_ever, name="log", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the line; the logging module calls this under the handler's lock."""
        try:
            self._lines.append(self.format(record))
        except Exception:
            self.handleError(record)
            return
        if record.levelno >= logging.WARNING:
            self.flush()
        elif len(self._lines) == 1:
            self._waiting.set()

    def flush(self) -> None:
        """Write what waits; the logging module calls this when the process ends."""
        self.acquire()
        try:
            lines, self._lines = self._lines, []
            if lines:
                self._stream.write("\n".join(lines) + "\n")
                self._stream.flush()
        except (OSError, ValueError):
            pass  # nobody reads any more, and there is no other place to say so
        finally:
            self.release()

    def _flush_for_ever(self) -> None:
        while True:
            self._waiting.wait()
            self._waiting.clear()
            time.sleep(FLUSH_S)
            self.flush()


def configure_logging(role: str, level: str) -> None:
    """Send every logger of this process through one handler; ``role`` names the process."""
    handler = LinesHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(role))
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)
    logging.getLogger("uvicorn.error").setLevel(max(logging.WARNING, logging.root.level))


@functools.lru_cache(maxsize=1)
def _second(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
