"""Changes of what is served: carried out one at a time, beside the batches."""

import logging
import queue
import time
from collections.abc import Callable

from service.errors import RuntimeFailed, ServiceError
from service.worker import wire
from service.worker.models import Models

TICK_S = 1.0
RETRY_S = 10.0  # between attempts to load what should be served and cannot be

_log = logging.getLogger(__name__)


class Loader:
    """Loads and unloads models as it is asked to.

    ``answer`` takes who asked, the id, and the error if there was one; ``changed`` is called when
    other models are served than before, and hears that before anyone is answered.
    """

    def __init__(
        self,
        models: Models,
        answer: Callable[[bytes, int, ServiceError | None], None],
        changed: Callable[[], None],
    ) -> None:
        self._models = models
        self._answer = answer
        self._changed = changed
        self._asked: queue.SimpleQueue[tuple[bytes, wire.Header] | None] = queue.SimpleQueue()
        self._retry_s = time.monotonic() + RETRY_S

    def ask(self, peer: bytes, header: wire.Header) -> None:
        """Put a ``load`` or ``unload`` in line."""
        self._asked.put((peer, header))

    def close(self) -> None:
        """Have the thread end after what it is doing."""
        self._asked.put(None)

    def run_forever(self) -> None:
        """Obey until closed; between orders, do what is due by the clock."""
        while True:
            try:
                asked = self._asked.get(timeout=TICK_S)
            except queue.Empty:
                self._tick()
                continue
            if asked is None:
                return
            peer, header = asked
            self._answer(peer, header["id"], self._obey(header))

    def _obey(self, header: wire.Header) -> ServiceError | None:
        name, version = header["model"], header["version"]
        _log.info("%s %s %s", header["type"], name, version or "")
        try:
            if header["type"] == "load":
                self._models.change(name, version, _log.info)
            else:
                self._models.unload(name)
            self._changed()
        except ServiceError as error:
            _log.error("%s", error)
            return error
        except Exception:  # a bug of ours; the thread goes on
            _log.exception("%s %s", header["type"], name)
            return RuntimeFailed(f"could not {header['type']} {name!r}; the log says why")
        return None

    def _tick(self) -> None:
        try:
            self._models.drop_replaced()
            if self._models.follow(_log.info):
                self._changed()
            if self._models.failed and time.monotonic() >= self._retry_s:
                if self._models.retry(_log.debug):
                    self._changed()
                self._retry_s = time.monotonic() + RETRY_S
        except Exception:
            _log.exception("models")  # as above
