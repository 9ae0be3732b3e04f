"""A child process must not outlive the supervisor, however that one ends."""

import os
import signal
import sys
import threading


def exit_with_parent() -> None:
    """Send ourselves SIGTERM when standard input ends: it is a pipe that the parent holds open."""

    def wait() -> None:
        while os.read(sys.stdin.fileno(), 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, name="lifeline", daemon=True).start()
