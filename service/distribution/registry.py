"""Registries of containers, as the OCI distribution specification 1.1 has them: tokens, manifests,
blobs up and down.
"""

import base64
import json
import re
from collections.abc import Generator, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx

from service.distribution import web
from service.distribution.credentials import DOCKER_HUB, TOKEN_USER, Login
from service.distribution.reference import Reference
from service.distribution.remote import at_most, digest_of_bytes
from service.errors import TransferFailed

MAX_MANIFEST_BYTES = 4 * 2**20
MAX_TOKEN_BYTES = 2**20
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"

_WORD = re.compile(
    r'(?P<name>[\w-]+)\s*=\s*(?:"(?P<quoted>(?:[^"\\]|\\.)*)"|(?P<bare>[^\s,"]+))'
    r"|(?P<scheme>[\w-]+)"
)
"""Of a challenge: a parameter, or else the scheme that those after it belong to."""


class Registry:
    """One repository of one registry."""

    def __init__(self, reference: Reference, client: httpx.Client, login: Login | None) -> None:
        host = "registry-1.docker.io" if reference.host in DOCKER_HUB else reference.host
        self._base = httpx.URL(f"{reference.transport}://{host}/v2/{reference.name}/")
        self._client = client
        self._auth = _Auth(client, login, self._base)
        self._what = str(reference)

    def manifest(self, asked: str) -> tuple[bytes, str] | None:
        """A manifest and its digest, by tag or digest; None if there is none.

        Raises:
            TransferFailed: it cannot be had, or is not what the digest says.
            Interrupted: the connection broke, or the registry is busy.
        """
        url = self._url(f"manifests/{asked}")
        with self._open("GET", url, headers={"Accept": f"{MANIFEST_TYPE}, */*"}) as answer:
            if answer.status_code == 404:
                return None
            web.check(answer, self._what)
            raw = at_most(answer.iter_bytes(), MAX_MANIFEST_BYTES, f"{self._what}: its manifest")
        found = digest_of_bytes(raw)
        expected = asked if ":" in asked else answer.headers.get("Docker-Content-Digest", found)
        if expected != found and expected.startswith("sha256:"):
            raise TransferFailed(f"{self._what}: the registry sent {found} for {expected}")
        return raw, found

    def blob(self, digest: str, offset: int) -> Iterator[bytes]:
        """The bytes of a blob from ``offset`` on; as ``web.stream``."""
        url = self._url(f"blobs/{digest}")
        return web.stream(self._client, url, offset, f"{self._what}: {digest}", self._auth)

    def put_blob(self, digest: str, size_bytes: int, content: bytes | Path) -> None:
        """Upload a blob, unless it is there already.

        Raises:
            TransferFailed: the registry does not take it.
            Interrupted: the connection broke, or the registry is busy.
        """
        with self._open("HEAD", self._url(f"blobs/{digest}")) as answer:
            if answer.status_code == 200:
                return
        with self._open("POST", self._url("blobs/uploads/")) as answer:
            web.check(answer, self._what)
            url = answer.request.url.join(answer.headers.get("Location", ""))
        if url.scheme != "https" and self._base.scheme == "https":
            raise TransferFailed(f"{self._what}: uploads would go to {url.host}, unencrypted")
        url = url.copy_merge_params({"digest": digest})
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(size_bytes)}
        if isinstance(content, bytes):
            with self._open("PUT", url, headers=headers, content=content) as answer:
                web.check(answer, self._what)
            return
        with (
            content.open("rb") as file,
            self._open("PUT", url, headers=headers, content=file) as answer,
        ):
            web.check(answer, self._what)

    def put_manifest(self, tag: str, raw: bytes) -> None:
        """Name what was uploaded."""
        url = self._url(f"manifests/{tag}")
        with self._open("PUT", url, headers={"Content-Type": MANIFEST_TYPE}, content=raw) as answer:
            web.check(answer, self._what)

    def _url(self, path: str) -> httpx.URL:
        return self._base.join(path)

    def _open(
        self, method: str, url: httpx.URL, **how: Any
    ) -> AbstractContextManager[httpx.Response]:
        return web.opened(self._client, method, url, self._what, auth=self._auth, **how)


class _Auth(httpx.Auth):
    """Answers challenges: with the login itself, or with a token that is asked for with it."""

    def __init__(self, client: httpx.Client, login: Login | None, base: httpx.URL) -> None:
        self._client = client
        self._login = login
        self._base = base
        self._header: str | None = None

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """To the registry alone: uploads may lead elsewhere, where it would be shown to others; and
        so may redirections, whose ends do not say where to log in.
        """
        if self._header is not None and self._is_ours(request.url):
            request.headers["Authorization"] = self._header
        answer = yield request
        ours = self._is_ours(request.url) and self._is_ours(answer.request.url)
        if answer.status_code != 401 or not ours:
            return
        header = self._meet(_challenges(answer.headers.get("WWW-Authenticate", "")))
        if header is None:
            return
        self._header = request.headers["Authorization"] = header
        yield request

    def _is_ours(self, url: httpx.URL) -> bool:
        base = self._base
        return (url.scheme, url.host, url.port) == (base.scheme, base.host, base.port)

    def _meet(self, challenges: dict[str, dict[str, str]]) -> str | None:
        if "bearer" in challenges:
            return f"Bearer {self._token(challenges['bearer'])}"
        if "basic" in challenges and self._login is not None:
            return _basic(self._login)
        return None

    def _token(self, asked: dict[str, str]) -> str:
        realm = httpx.URL(asked.get("realm", ""))
        if realm.scheme != "https" and self._base.scheme == "https":
            raise TransferFailed(f"{self._base.host} wants logins sent to {realm}, unencrypted")
        query = {key: value for key, value in asked.items() if key in ("service", "scope")}
        login = self._login
        what = f"a token of {realm.host}"
        if login is not None and login.user == TOKEN_USER:
            form = {"grant_type": "refresh_token", "refresh_token": login.secret, **query}
            form["client_id"] = "saccade"
            asking = web.opened(self._client, "POST", realm, what, data=form)
        else:
            url = realm.copy_merge_params(query)
            headers = {"Authorization": _basic(login)} if login else {}
            asking = web.opened(self._client, "GET", url, what, headers=headers)
        with asking as answer:
            web.check(answer, what)
            return _token_in(at_most(answer.iter_bytes(), MAX_TOKEN_BYTES, what), what)


def _challenges(header: str) -> dict[str, dict[str, str]]:
    """The parameters of each scheme that is offered (RFC 9110, 11.6.1), names in lower case."""
    found: dict[str, dict[str, str]] = {}
    parameters: dict[str, str] = {}
    for word in _WORD.finditer(header):
        if word["scheme"]:
            parameters = found.setdefault(word["scheme"].lower(), {})
        else:
            quoted = re.sub(r"\\(.)", r"\1", word["quoted"] or "")
            parameters[word["name"].lower()] = word["bare"] or quoted
    return found


def _token_in(raw: bytes, what: str) -> str:
    try:
        said = json.loads(raw)
        token = said.get("token") or said["access_token"]
    except (ValueError, AttributeError, KeyError):
        raise TransferFailed(f"{what}: the answer holds none") from None
    return str(token)


def _basic(login: Login) -> str:
    return "Basic " + base64.b64encode(f"{login.user}:{login.secret}".encode()).decode()
