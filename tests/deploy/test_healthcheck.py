"""The image's health check goes by the variables that the server was started with."""

import http.server
import threading
from collections.abc import Iterator

import pytest

from deploy.image.healthcheck import address, main


@pytest.mark.parametrize(
    ("environment", "url"),
    [
        ({}, "http://127.0.0.1:8000/livez"),
        ({"SACCADE_HOST": "0.0.0.0", "SACCADE_PORT": "9000"}, "http://127.0.0.1:9000/livez"),
        ({"SACCADE_HOST": "::"}, "http://[::1]:8000/livez"),
        ({"SACCADE_TLS_CERTIFICATE": "/tls/chain.pem"}, "https://127.0.0.1:8000/livez"),
        ({"SACCADE_TLS_CERTIFICATE": ""}, "http://127.0.0.1:8000/livez"),
    ],
)
def test_the_server_is_asked_where_it_listens(environment: dict[str, str], url: str) -> None:
    assert address(environment) == url


class Answers(http.server.BaseHTTPRequestHandler):
    """Answers every request with the status of the class."""

    status = 200

    def do_GET(self) -> None:
        self.send_response(self.status)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def port() -> Iterator[str]:
    server = http.server.HTTPServer(("127.0.0.1", 0), Answers)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield str(server.server_port)
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(("status", "code"), [(200, 0), (503, 1)])
def test_only_a_live_server_is_healthy(
    status: int, code: int, port: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Answers, "status", status)
    monkeypatch.setenv("SACCADE_PORT", port)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # is not asked for our own address
    assert main() == code


def test_a_server_that_does_not_listen_is_not_healthy(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SACCADE_PORT", "9")
    assert main() == 1
    assert "refused" in capsys.readouterr().err
