"""Files by HTTPS, from any byte on: from plain web servers and from registries."""

import ipaddress
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

from service.bundle import MANIFEST
from service.distribution.remote import Interrupted
from service.errors import TransferFailed

TIMEOUT = httpx.Timeout(60.0, connect=15.0)
"""Seconds of silence."""
BUSY = (408, 425, 429, 500, 502, 503, 504)


def make_client(transport: httpx.BaseTransport | None = None) -> httpx.Client:
    """With the proxies of the environment; an encrypted connection never leads to an open one."""
    return httpx.Client(
        transport=transport,
        timeout=TIMEOUT,
        follow_redirects=True,
        max_redirects=5,
        headers={"Accept-Encoding": "identity", "User-Agent": "saccade"},
        event_hooks={"response": [_refuse_downgrade]},
    )


def stream(
    client: httpx.Client, url: httpx.URL, offset: int, what: str, auth: httpx.Auth | None = None
) -> Iterator[bytes]:
    """The bytes behind a URL from ``offset`` on, also from servers that only give the whole.

    Raises:
        TransferFailed: there is nothing, or not for us.
        Interrupted: the connection broke, or the server is busy.
    """
    headers = {"Range": f"bytes={offset}-"} if offset else {}
    with opened(client, "GET", url, what, headers=headers, auth=auth) as answer:
        check(answer, what)
        skip = offset - _start(answer, what)
        for chunk in answer.iter_bytes():
            yield chunk[skip:]
            skip = max(0, skip - len(chunk))


@contextmanager
def opened(
    client: httpx.Client, method: str, url: httpx.URL, what: str, **how: Any
) -> Iterator[httpx.Response]:
    """An answer whose body is not read yet; errors of the connection come in our words.

    Raises:
        TransferFailed: it leads nowhere.
        Interrupted: it broke.
    """
    try:
        with client.stream(method, url, **how) as answer:
            yield answer
    except (httpx.TransportError, httpx.DecodingError, httpx.StreamError) as error:
        raise Interrupted(str(error) or type(error).__name__) from None
    except (httpx.TooManyRedirects, httpx.InvalidURL) as error:
        raise TransferFailed(f"{what}: {error}") from None


def check(answer: httpx.Response, what: str) -> None:
    """Raise what a status means; nothing for success."""
    status = answer.status_code
    host = answer.request.url.host
    if status in BUSY:
        raise Interrupted(f"{host} answered {status}")
    if status == 404:
        raise TransferFailed(f"{what}: {host} has no such thing (404)")
    if status in (401, 403):
        raise TransferFailed(f"{what}: {host} does not give it to us ({status}); {_LOG_IN}")
    if not answer.is_success:
        raise TransferFailed(f"{what}: {host} answered {status}")


_LOG_IN = (
    "credentials are those of docker login (registries) or of ~/.netrc (web servers), "
    "see docs/distribution.md"
)


def check_open(url: httpx.URL, pinned: bool, how: str) -> None:
    """Refuse a connection that anybody on the way could change, unless digests would tell.

    Raises:
        TransferFailed: it is plain HTTP to another machine, and nothing is pinned.
    """
    if url.scheme == "https" or pinned or is_loopback(url.host):
        return
    raise TransferFailed(
        f"{url.host} is asked without encryption, so others may change what it says; {how}"
    )


def is_loopback(host: str) -> bool:
    """Whether a host is this machine, by its name or address."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


@dataclass(frozen=True)
class WebRemote:
    """A version folder on a web server: the manifest, and beside it the files that it lists.

    ``url`` may carry a user and a query, which are sent with every request and shown to nobody.
    """

    url: httpx.URL
    client: httpx.Client
    auth: httpx.Auth | None = field(default=None, repr=False)

    @property
    def place(self) -> str:
        """The address without what may be secret."""
        return str(self.url.copy_with(userinfo=b"", query=None))

    def stream(self, name: str, offset: int) -> Iterator[bytes]:
        """From the file beside the manifest."""
        url = self.url.copy_with(path=f"{self.url.path}/{name}")
        return stream(self.client, url, offset, f"{self.place}/{name}", self.auth)


def web_remote(source: str, client: httpx.Client, pinned: bool) -> WebRemote:
    """What an address of a version folder, or of the manifest in it, names.

    Raises:
        TransferFailed: it is no address.
    """
    try:
        url = httpx.URL(source)
    except httpx.InvalidURL as error:
        raise TransferFailed(f"the address cannot be read: {error}") from None
    if not url.host:
        raise TransferFailed("the address has no host; write https://host/folder")
    check_open(url, pinned, "use https, or say with --digest what the manifest must be")
    path = url.path.removesuffix(f"/{MANIFEST}").rstrip("/")
    return WebRemote(url.copy_with(path=path), client, _netrc(url))


def _netrc(url: httpx.URL) -> httpx.Auth | None:
    """Of ~/.netrc, where the address itself names no user."""
    if url.userinfo:
        return None
    try:
        return httpx.NetRCAuth()
    except (OSError, SyntaxError):  # of which the second is what a wrong file raises
        return None


def _start(answer: httpx.Response, what: str) -> int:
    """The place in the file that an answer begins at."""
    if answer.status_code != 206:
        return 0
    said = answer.headers.get("Content-Range", "")
    start = said.removeprefix("bytes ").partition("-")[0]
    asked = answer.request.headers.get("Range", "bytes=0-")
    if f"bytes={start}-" != asked:
        raise TransferFailed(f"{what}: asked for {asked!r}, the server began at {said!r}")
    return int(start)


def _refuse_downgrade(answer: httpx.Response) -> None:
    target = answer.headers.get("Location", "")
    to_open = answer.has_redirect_location and target.lower().startswith("http://")
    if to_open and answer.request.url.scheme == "https":
        raise TransferFailed(f"{answer.request.url.host} leads to an address without encryption")
