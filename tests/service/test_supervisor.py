"""Where a server listens."""

import contextlib

import pytest

from service.errors import StartError
from service.settings import Settings
from service.supervisor import Supervisor


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
