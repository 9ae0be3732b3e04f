"""What takes long: changes of what is served, and graphs that are opened when first asked for,
one at a time and beside the batches.
"""

import logging
import queue
import time
from collections.abc import Callable

from service.errors import RuntimeFailed, ServiceError
from service.worker import wire
from service.worker.models import Models
from service.worker.scheduler import Group

TICK_S = 1.0
RETRY_S = 10.0  # until what should be served and cannot be is tried again, and twice as long ...
LONGEST_RETRY_S = 60.0  # ... after each failure, for all of its files are read

_log = logging.getLogger(__name__)


class Loader:
    """Loads and unloads models, and opens graphs, as it is asked to.

    ``answer`` takes who asked, the id, and the error if there was one; ``changed`` is called when
    other models are served than before, and hears that before anyone is answered; ``opened`` is
    called when pictures that waited for a graph may run, be it to hear that it cannot be opened.
    """

    def __init__(
        self,
        models: Models,
        answer: Callable[[bytes, int, ServiceError | None], None],
        changed: Callable[[], None],
        opened: Callable[[], None],
    ) -> None:
        self._models = models
        self._answer = answer
        self._changed = changed
        self._opened = opened
        self._orders: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._wait_s = RETRY_S
        self._retry_s = time.monotonic() + RETRY_S

    def ask(self, peer: bytes, header: wire.Header) -> None:
        """Put a ``load`` or ``unload`` in line."""
        self._orders.put(lambda: self._answer(peer, header["id"], self._obey(header)))

    def open(self, group: Group) -> None:
        """Put in line that a graph is to be opened."""
        self._orders.put(lambda: self._open(group))

    def close(self) -> None:
        """Have the thread end after what it is doing."""
        self._orders.put(None)

    def run_forever(self) -> None:
        """Obey until closed; between orders, do what is due by the clock."""
        while True:
            try:
                order = self._orders.get(timeout=TICK_S)
            except queue.Empty:
                self._tick()
                continue
            if order is None:
                return
            order()

    def _open(self, group: Group) -> None:
        try:
            self._models.open(group)
        except Exception:  # a bug of ours; the thread goes on
            _log.exception("open the %s graph of %s", group.graph, group.model)
        self._opened()

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
            self._retry(time.monotonic())
        except Exception:
            _log.exception("models")  # as above

    def _retry(self, now_s: float) -> None:
        if not self._models.failed:
            self._wait_s, self._retry_s = RETRY_S, now_s + RETRY_S
        elif now_s >= self._retry_s:
            if self._models.retry(_log.debug):
                self._changed()
            self._wait_s = min(2 * self._wait_s, LONGEST_RETRY_S)
            self._retry_s = time.monotonic() + self._wait_s
