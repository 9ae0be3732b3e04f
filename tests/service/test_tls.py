"""HTTPS with certificates made for the test."""

import http.client
import shutil
import socket
import ssl
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
import trustme

from service.api.tls import server_context
from service.errors import BadSettings
from service.watching import RECHECK_S
from tests.conftest import PATIENCE_S, Server

KEY = "anna-0123456789abcdef"


def write(folder: Path, certificate: trustme.LeafCert) -> tuple[str, str]:
    """The chain and the key as two files."""
    chain, key = folder / "tls.crt", folder / "tls.key"
    chain.write_bytes(b"".join(blob.bytes() for blob in certificate.cert_chain_pems))
    certificate.private_key_pem.write_to_path(str(key))
    return str(chain), str(key)


def handshake(server: ssl.SSLContext, authority: trustme.CA, name: str = "localhost") -> str:
    """The serial number of what a client that trusts ``authority`` is shown, over memory alone."""
    context = ssl.create_default_context()
    authority.configure_trust(context)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = server.wrap_bio(to_server, to_client, server_side=True)
    theirs = context.wrap_bio(to_client, to_server, server_hostname=name)
    for _ in range(4):
        for side in (theirs, ours):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
    shown = theirs.getpeercert()
    assert shown is not None
    return str(shown["serialNumber"])


def test_a_renewed_certificate_is_shown_to_connections_that_come_after(tmp_path: Path) -> None:
    authority, now_s = trustme.CA(), [0.0]
    files = write(tmp_path, authority.issue_cert("localhost"))
    server = server_context(*files, lambda: now_s[0])
    first = handshake(server, authority)
    write(tmp_path, authority.issue_cert("localhost"))
    assert handshake(server, authority) == first  # not looked yet
    now_s[0] += RECHECK_S
    assert handshake(server, authority) != first


def test_files_that_do_not_fit_together_leave_the_certificate_as_it_was(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    authority, now_s = trustme.CA(), [0.0]
    chain, key = write(tmp_path, authority.issue_cert("localhost"))
    server = server_context(chain, key, lambda: now_s[0])
    first = handshake(server, authority)
    authority.issue_cert("localhost").private_key_pem.write_to_path(key)
    now_s[0] += RECHECK_S
    assert handshake(server, authority) == first
    assert "stays as it was" in caplog.text


def test_old_versions_of_tls_are_not_spoken(tmp_path: Path) -> None:
    server = server_context(*write(tmp_path, trustme.CA().issue_cert("localhost")))
    assert server.minimum_version >= ssl.TLSVersion.TLSv1_2


def test_a_certificate_that_cannot_be_used_stops_the_start_and_is_named(tmp_path: Path) -> None:
    authority = trustme.CA()
    chain, key = write(tmp_path, authority.issue_cert("localhost"))
    with pytest.raises(BadSettings, match=r"--tls-certificate: .*missing.*No such file"):
        server_context(str(tmp_path / "missing"), key)
    with pytest.raises(BadSettings, match=r"--tls-key: .*tls.key"):
        server_context(chain, shutil.copy(chain, str(tmp_path / "tls.key")))
    both = tmp_path / "both.pem"
    authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(str(both))
    assert isinstance(server_context(str(both), ""), ssl.SSLContext)


def test_a_real_server_speaks_https_alone_and_follows_its_files_of_keys_and_certificates(
    tmp_path: Path, start_server: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    chain, key = write(tmp_path, authority.issue_cert("127.0.0.1"))
    keys = tmp_path / "keys"
    keys.write_text(f"anna:{KEY}\n")
    files = "--tls-certificate", chain, "--tls-key", key, "--api-keys-file", str(keys)
    server = start_server(*files, "--api-processes", "1", "--header-timeout-s", "1")
    assert server.url.startswith("https://127.0.0.1:")

    url = server.url + "/v1/models"
    assert httpx.get(server.url + "/readyz").status_code == 200
    assert httpx.get(url).status_code == 401
    assert httpx.get(url, headers={"authorization": f"Bearer {KEY}"}).status_code == 200
    plain = http.client.HTTPConnection(server.url.removeprefix("https://"), timeout=10)
    plain.request("GET", "/readyz")
    with pytest.raises((http.client.HTTPException, OSError)):
        plain.getresponse()
    plain.close()

    address = httpx.URL(server.url)
    with socket.create_connection((address.host, address.port or 0), timeout=20) as silent:
        assert silent.recv(1) == b""  # given up, as nothing came

    keys.write_text("bert:bert-0123456789abcdef\n")
    end_s = time.monotonic() + PATIENCE_S
    while httpx.get(url, headers={"authorization": f"Bearer {KEY}"}).status_code == 200:
        assert time.monotonic() < end_s
        time.sleep(0.05)
    assert httpx.get(url, headers={"authorization": f"Bearer {KEY}"}).status_code == 401
    answer = httpx.get(url, headers={"x-api-key": "bert-0123456789abcdef"})
    assert answer.status_code == 200
    assert "0123456789abcdef" not in server.log.read_text()
    for process in [*server.children("saccade"), server.process]:
        command = Path(f"/proc/{process.pid}/cmdline").read_bytes()
        assert b"0123456789abcdef" not in command
