"""Where a server listens, and what becomes of a process that ends."""

import asyncio
import contextlib
from pathlib import Path

import pytest

from service.errors import StartError
from service.lifeline import EXIT_BAD_CONFIG
from service.settings import Settings
from service.supervisor import Supervisor, _Role
from service.worker.pulse import Watchdog, pulse_beside


def test_every_http_process_has_a_socket_of_its_own_on_one_port() -> None:
    with contextlib.ExitStack() as closing:
        sockets = Supervisor(Settings(port=0, api_processes=3)).bind()
        for socket in sockets:
            closing.enter_context(socket)
        assert len(sockets) == 3
        assert len({socket.getsockname() for socket in sockets}) == 1


@pytest.mark.parametrize("processes", [1, 2])
def test_a_port_that_another_server_has_is_refused(processes: int) -> None:
    with contextlib.ExitStack() as closing:
        sockets = Supervisor(Settings(port=0, api_processes=processes)).bind()
        for socket in sockets:
            closing.enter_context(socket)
        port = sockets[0].getsockname()[1]
        for others in (1, 2):
            with pytest.raises(StartError, match=f"cannot listen on 127.0.0.1 port {port}"):
                Supervisor(Settings(port=port, api_processes=others)).bind()


CHILD = f"""
import sys
from service.worker.pulse import pulse_beside
endpoint, comes_up, incarnation = sys.argv[1:]
if comes_up == "yes" and incarnation == "0":
    pulse = pulse_beside(endpoint)
    pulse.begin()
    pulse.beat()
    sys.exit(1)
sys.exit({EXIT_BAD_CONFIG})
"""


@pytest.mark.parametrize(("comes_up", "starts", "code"), [("no", 1, 1), ("yes", 3, 0)])
def test_a_bad_configuration_ends_the_server_at_its_start_and_not_once_it_was_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, comes_up: str, starts: int, code: int
) -> None:
    (tmp_path / "child.py").write_text(CHILD)
    (tmp_path / "metrics").mkdir()
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path.cwd()}")
    endpoint = str(tmp_path / "worker.sock")
    watched = []

    def watch(pid: int) -> Watchdog:
        watched.append(pid)
        if len(watched) == 3:
            role.ending.set()
        return Watchdog(pulse_beside(endpoint), pid, patience=9)

    role = _Role("child", ["child", endpoint, comes_up, "{incarnation}"], watch)
    supervisor = Supervisor(Settings())
    asyncio.run(supervisor._keep(role, tmp_path))
    assert (len(watched), supervisor._exit_code) == (starts, code)
    assert supervisor._stopping.is_set() == (code == 1)
