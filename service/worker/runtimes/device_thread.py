"""The one thread that a device is spoken to from: libraries keep handles, CUDA graphs and even the
device for each thread, and a graph cannot be captured while other threads take memory.
"""

import functools
import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, TypeVar

from service.worker.runtimes.tensorrt.cuda import Context, Driver

Result = TypeVar("Result")


class DeviceThread:
    """A thread that lives as long as the process and does one thing after the other.

    ``opening`` is held by whoever opens a graph on the device and has it captured.
    """

    def __init__(self, name: str) -> None:
        self.opening = threading.Lock()
        # Of all queues the one that a finalizer may put into, whatever it interrupts.
        self._work: SimpleQueue[tuple[Callable[[], Any], Future[Any]]] = SimpleQueue()
        threading.Thread(target=self._run_forever, name=name, daemon=True).start()

    def do(self, work: Callable[[], Result]) -> Result:
        """Have it done there, and wait for it.

        Raises:
            BaseException: whatever ``work`` raises.
        """
        return self._submit(work).result()

    def do_later(self, work: Callable[[], None]) -> None:
        """Have it done there, without waiting."""
        self._submit(work)

    def _submit(self, work: Callable[[], Result]) -> "Future[Result]":
        done: Future[Result] = Future()
        self._work.put((work, done))
        return done

    def _run_forever(self) -> None:
        while True:
            _run(*self._work.get())  # nothing of it stays in this frame


def _run(work: Callable[[], Result], done: "Future[Result]") -> None:
    try:
        done.set_result(work())
    except BaseException as error:
        done.set_exception(error)
    finally:
        del work, done  # the traceback of an error would hold on to both


def device_thread(index: int) -> DeviceThread:
    """The thread of a GPU, with that GPU as its own: in a new thread every call goes to the first.

    Raises:
        BadSettings: there is no driver here, or it sees no device.
    """
    with _making:
        return _made(index)


_making = threading.Lock()


@functools.cache
def _made(index: int) -> DeviceThread:
    context, thread = Context(Driver(), index), DeviceThread(f"cuda:{index}")
    thread.do(context.enter)
    return thread
