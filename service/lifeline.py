"""What the supervisor and its children agree on: how a child ends, and what that means."""

import os
import signal
import sys
import threading

EXIT_BAD_CONFIG = 78  # EX_CONFIG of sysexits.h: starting the child again would fail again


def exit_with_parent() -> None:
    """A child must not outlive the supervisor, however that one ends.

    Sends ourselves SIGTERM when standard input ends: it is a pipe that the parent holds open.
    """

    def wait() -> None:
        while os.read(sys.stdin.fileno(), 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, name="lifeline", daemon=True).start()
