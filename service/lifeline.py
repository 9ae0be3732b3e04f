"""What the supervisor and its children agree on: when a child may begin, how it ends, and what
that means.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable

DRAIN = signal.SIGUSR1  # an API process is to be not ready any more, and go on all the same
EXIT_BAD_CONFIG = 78  # EX_CONFIG of sysexits.h: starting the child again would fail again


def exit_with_parent() -> Callable[[], float]:
    """A child must not outlive the supervisor, however that one ends, nor begin before it says so.

    Standard input is a pipe that the parent holds open. When it ends, we send ourselves SIGTERM.
    What is returned waits until something comes through it (the repository has been verified) and
    tells how many seconds that took.
    """
    verified = threading.Event()
    signal.signal(DRAIN, signal.SIG_IGN)  # or it would end a process that has not started yet

    def watch() -> None:
        while os.read(sys.stdin.fileno(), 1):
            verified.set()
        os.kill(os.getpid(), signal.SIGTERM)

    def wait() -> float:
        began_s = time.monotonic()
        verified.wait()
        return time.monotonic() - began_s

    threading.Thread(target=watch, name="lifeline", daemon=True).start()
    return wait
