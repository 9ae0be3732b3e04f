"""What a child does with the pipe that its parent holds: begins when told, ends with it."""

import signal
import subprocess
import sys

CHILD = """
import signal
from service.lifeline import exit_with_parent
wait_until_verified = exit_with_parent()
print("waiting", flush=True)
print("waited", wait_until_verified() >= 0, flush=True)
signal.pause()
"""


def test_a_child_begins_when_its_parent_says_so_and_ends_with_it() -> None:
    command = [sys.executable, "-c", CHILD]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stdout.readline() == "waiting\n"
        assert child.poll() is None
        child.stdin.write("\n")
        child.stdin.flush()
        assert child.stdout.readline() == "waited True\n"
        child.stdin.close()
        assert child.wait(20) == -signal.SIGTERM


def test_a_child_that_was_never_told_to_begin_ends_with_its_parent_too() -> None:
    command = [sys.executable, "-c", CHILD]
    ended = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=20, check=False
    )
    assert ended.returncode == -signal.SIGTERM
    assert "waited" not in ended.stdout
