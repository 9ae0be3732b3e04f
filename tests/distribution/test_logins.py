"""Logins are found where docker and podman leave them, and shown to nobody but the registry."""

import base64
import json
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from service.distribution.credentials import TOKEN_USER, Login, find_login
from service.distribution.reference import Reference
from service.distribution.registry import Registry
from service.distribution.web import make_client, stream
from service.errors import BadSettings, TransferFailed
from service.settings import registry_logins

AUTH = base64.b64encode(b"me:secret").decode()
Answer = Callable[[httpx.Request], httpx.Response]


def config(**members: object) -> tuple[str, str]:
    return "config.json", json.dumps(members)


def registry_of(answer: Answer, login: Login | None) -> Registry:
    client = make_client(httpx.MockTransport(answer))
    return Registry(Reference.parse("oci://images.example/me/tiny"), client, login)


@pytest.mark.parametrize(
    ("host", "auths", "login"),
    [
        ("images.example", {"images.example": {"auth": AUTH}}, Login("me", "secret")),
        ("images.example", {"https://images.example": {"auth": AUTH}}, Login("me", "secret")),
        ("images.example:5000", {"images.example": {"auth": AUTH}}, None),
        ("a.example", {"a.example": {"username": "me", "password": "b"}}, Login("me", "b")),
        ("a.example", {"a.example": {"identitytoken": "abc"}}, Login(TOKEN_USER, "abc")),
        ("a.example", {"a.example": {}}, None),
        ("docker.io", {"https://index.docker.io/v1/": {"auth": AUTH}}, Login("me", "secret")),
    ],
)
def test_a_login_is_that_of_the_host(host: str, auths: object, login: Login | None) -> None:
    assert find_login(host, [config(), config(auths=auths)]) == login


def test_a_helper_is_asked_for_what_it_keeps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    helper = tmp_path / "docker-credential-test"
    said = '{"Username": "\'"$host"\'", "Secret": "kept"}'
    helper.write_text(f"#!/bin/sh\nread host\ntest $host = a.example || exit 1\necho '{said}'\n")
    helper.chmod(0o700)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert find_login("a.example", [config(credsStore="test")]) == Login("a.example", "kept")
    assert find_login("b.example", [config(credsStore="test")]) is None
    named = config(credHelpers={"a.example": "test"}, auths={"b.example": {"auth": AUTH}})
    assert find_login("a.example", [named]) == Login("a.example", "kept")
    assert find_login("b.example", [named]) == Login("me", "secret")


@pytest.mark.parametrize("text", ["{", "[]", '{"auths": {"a.example": {"auth": "?"}}}'])
def test_a_file_that_docker_did_not_write_is_named(text: str) -> None:
    with pytest.raises(TransferFailed, match=r"config\.json is not what docker login writes"):
        find_login("a.example", [("config.json", text)])


def test_a_helper_that_is_missing_is_named() -> None:
    with pytest.raises(TransferFailed, match="docker-credential-none"):
        find_login("a.example", [config(credsStore="none")])


def test_logins_are_looked_for_in_the_variable_then_with_podman_then_with_docker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.json", "run/containers/auth.json", "docker/config.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    monkeypatch.setenv("DOCKER_AUTH_CONFIG", "variable")
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(tmp_path / "a.json"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    there = ["variable", "a.json", "run/containers/auth.json", "docker/config.json"]
    assert [text for _, text in registry_logins()] == there
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(tmp_path))
    with pytest.raises(BadSettings, match="cannot be read"):
        registry_logins()


def test_a_basic_challenge_is_met_with_the_login() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        if request.headers.get("Authorization") == f"Basic {AUTH}":
            return httpx.Response(404)
        return httpx.Response(401, headers={"WWW-Authenticate": 'Basic realm="images"'})

    assert registry_of(answer, Login("me", "secret")).manifest("1") is None
    with pytest.raises(TransferFailed, match=r"does not give it to us \(401\)"):
        registry_of(answer, None).manifest("1")


def test_an_identity_token_is_exchanged_and_not_sent_as_a_password() -> None:
    forms = []

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.host == "tokens.example":
            forms.append(request.content.decode())
            return httpx.Response(200, json={"access_token": "opened"})
        if request.headers.get("Authorization") == "Bearer opened":
            return httpx.Response(404)
        challenge = 'Bearer realm="https://tokens.example/t",service="s",scope="repository:a:pull"'
        return httpx.Response(401, headers={"WWW-Authenticate": challenge})

    assert registry_of(answer, Login(TOKEN_USER, "abc")).manifest("1") is None
    assert "grant_type=refresh_token&refresh_token=abc&service=s" in forms[0]


def test_a_login_is_sent_nowhere_without_encryption() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        assert request.url.host == "images.example"
        challenge = 'Bearer realm="http://tokens.example/t",service="s"'
        return httpx.Response(401, headers={"WWW-Authenticate": challenge})

    with pytest.raises(TransferFailed, match="unencrypted"):
        registry_of(answer, Login("me", "secret")).manifest("1")


def test_where_blobs_and_uploads_lead_is_shown_no_login() -> None:
    shown = {}

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.host == "storage.example":
            shown[request.method] = request.headers.get("Authorization")
            return httpx.Response(200 if request.method == "GET" else 201, content=b"data")
        if "Authorization" not in request.headers:
            return httpx.Response(401, headers={"WWW-Authenticate": 'Basic realm="images"'})
        if request.method == "HEAD":
            return httpx.Response(404)
        status = 307 if request.method == "GET" else 202
        return httpx.Response(status, headers={"Location": "https://storage.example/x?signed=1"})

    registry = registry_of(answer, Login("me", "secret"))
    assert b"".join(registry.blob("sha256:0", 0)) == b"data"
    registry.put_blob("sha256:0", 4, b"data")
    assert shown == {"GET": None, "PUT": None}


@pytest.mark.parametrize(
    "elsewhere", ["https://storage.example/x", "https://images.example:8443/x"]
)
def test_what_a_registry_leads_to_does_not_say_where_to_log_in(elsewhere: str) -> None:
    """Else whoever keeps the blobs would be sent the password of the registry."""
    asked = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.host)
        if str(request.url) == elsewhere:
            challenge = 'Bearer realm="https://evil.example/t",service="s"'
            return httpx.Response(401, headers={"WWW-Authenticate": challenge})
        return httpx.Response(307, headers={"Location": elsewhere})

    with pytest.raises(TransferFailed, match=r"does not give it to us \(401\)"):
        list(registry_of(answer, Login("me", "secret")).blob("sha256:0", 0))
    assert "evil.example" not in asked


def test_a_login_for_https_is_not_sent_to_the_same_host_without_encryption() -> None:
    shown = []

    def answer(request: httpx.Request) -> httpx.Response:
        shown.append((request.url.scheme, request.headers.get("Authorization")))
        if request.url.scheme == "https" and request.method == "GET":
            return httpx.Response(401, headers={"WWW-Authenticate": 'Basic realm="images"'})
        return httpx.Response(404)

    registry = registry_of(answer, Login("me", "secret"))
    with pytest.raises(TransferFailed, match="401"):
        registry.manifest("1")
    url = httpx.URL("http://images.example/v2/x")
    with registry._open("GET", url) as answered:
        assert answered.status_code == 404
    assert shown[-1] == ("http", None)


@pytest.mark.parametrize(
    ("challenges", "sent"),
    [
        (
            'Basic realm="a, b", Bearer realm="https://tokens.example/t",service="s"',
            "Bearer opened",
        ),
        ('Bearer realm="https://tokens.example/t", Basic realm="a"', "Bearer opened"),
        ("bearer realm=https://tokens.example/t", "Bearer opened"),
        ('Negotiate, Basic realm="a \\" Bearer"', f"Basic {AUTH}"),
        ('Negotiate abc/d==, BASIC realm="a"', f"Basic {AUTH}"),
        ("Negotiate", None),
        ("", None),
    ],
)
def test_of_several_challenges_the_one_that_can_be_met_is_met(
    challenges: str, sent: str | None
) -> None:
    shown = []

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.host == "tokens.example":
            return httpx.Response(200, json={"token": "opened"})
        shown.append(request.headers.get("Authorization"))
        if "Authorization" in request.headers:
            return httpx.Response(404)
        return httpx.Response(401, headers={"WWW-Authenticate": challenges})

    registry = registry_of(answer, Login("me", "secret"))
    if sent is None:
        with pytest.raises(TransferFailed, match="401"):
            registry.manifest("1")
    else:
        assert registry.manifest("1") is None
    assert shown[-1] == sent


def test_https_never_leads_to_http() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        assert request.url.scheme == "https"
        return httpx.Response(302, headers={"Location": "http://images.example/open?secret"})

    client = make_client(httpx.MockTransport(answer))
    with pytest.raises(TransferFailed) as refused:
        list(stream(client, httpx.URL("https://images.example/x"), 0, "x"))
    assert str(refused.value) == "images.example leads to an address without encryption"


def test_a_token_without_end_is_not_read_on() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.host == "tokens.example":
            return httpx.Response(200, content=b"x" * (2**20 + 1))
        challenge = 'Bearer realm="https://tokens.example/t"'
        return httpx.Response(401, headers={"WWW-Authenticate": challenge})

    with pytest.raises(TransferFailed, match="larger than 1048576 bytes"):
        registry_of(answer, None).manifest("1")


def test_a_server_that_begins_elsewhere_than_asked_is_refused() -> None:
    def answer(_: httpx.Request) -> httpx.Response:
        return httpx.Response(206, headers={"Content-Range": "bytes 4-9/10"}, content=b"456789")

    client = make_client(httpx.MockTransport(answer))
    with pytest.raises(TransferFailed, match="began at 'bytes 4-9/10'"):
        list(stream(client, httpx.URL("https://images.example/x"), 5, "x"))
