"""Pictures from URLs: from allowed hosts only, and never from where the server itself may reach
but its callers may not.

Every step has the address in hand: a name is resolved once, each of its addresses is judged, and
the connection goes to an address that was, so that a name cannot mean something else a moment
later. Proxies of the environment are not used, for they would resolve it again.
"""

import asyncio
import ipaddress
import re
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from urllib.parse import urljoin, urlsplit

import h11

from service.errors import TooLarge, UrlFailed, UrlRefused
from service.settings import HOST

HTTPS_PORT = 443
MAX_REDIRECTS = 3
MAX_URL_CHARACTERS = 4096
MAX_ADDRESSES = 4
MAX_AT_ONCE = 16
MAX_FRAMING_BYTES = 64 * 1024
"""Of answers that are not the picture: headers, redirects, what surrounds chunks."""

Resolve = Callable[[str], Awaitable[list[str]]]
"""The addresses of a host name, as text."""
Connect = Callable[[str, str], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]
"""A TLS connection to an address, whose certificate is good for a host name."""

_CHUNK_BYTES = 64 * 1024
_REDIRECTS = (301, 302, 303, 307, 308)
_VISIBLE = re.compile(r"[!-\[\]-~]+")  # ASCII without spaces, controls and the backslash
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_NEVER = (
    ipaddress.ip_network("168.63.129.16/32"),  # Azure answers its virtual machines there
    ipaddress.ip_network("192.0.0.0/24"),  # special uses, Oracle's metadata among them
    ipaddress.ip_network("192.88.99.0/24"),  # 6to4 relays
    ipaddress.ip_network("2002::/16"),  # 6to4: an IPv4 address, maybe a private one, inside
    ipaddress.ip_network("2001::/23"),  # special uses, Teredo among them
    ipaddress.ip_network("3fff::/20"),  # documentation
)
_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")


@dataclass(frozen=True)
class Target:
    """What a URL says, after all checks but those of its addresses."""

    url: str
    host: str
    path: str


class ImageFetcher:
    """Fetches what a URL names, within time and size."""

    def __init__(
        self,
        hosts: Sequence[str],
        max_bytes: int,
        timeout_s: float,
        resolve: Resolve | None = None,
        connect: Connect | None = None,
    ) -> None:
        """``hosts`` are names, or *.names for all below one."""
        self._hosts = frozenset(host for host in hosts if not host.startswith("*."))
        self._suffixes = tuple(host[1:] for host in hosts if host.startswith("*."))
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s
        self._slots = asyncio.Semaphore(MAX_AT_ONCE)
        self._resolve = resolve or _resolve
        self._connect = connect or _connector()

    async def fetch(self, url: str) -> bytes:
        """The bytes behind ``url``, after at most ``MAX_REDIRECTS`` redirects.

        Raises:
            UrlRefused: the URL, or one that it leads to, is not allowed.
            UrlFailed: there is no picture to be had, or not in time.
            TooLarge: there are more bytes than a request may have.
        """
        try:
            async with asyncio.timeout(self._timeout_s), self._slots:
                target = self.check(url)
                for _ in range(MAX_REDIRECTS + 1):
                    found = await self._get(target)
                    if isinstance(found, bytes):
                        return found
                    target = self.check(_joined(target.url, found))
        except TimeoutError:
            raise UrlFailed(
                f"the picture did not arrive within {self._timeout_s:g} seconds",
                limit=self._timeout_s,
            ) from None
        raise UrlFailed(f"the URL leads to another more than {MAX_REDIRECTS} times")

    def check(self, url: str) -> Target:
        """What a URL asks of whom.

        Raises:
            UrlRefused: it is not plain https to an allowed host.
        """
        if len(url) > MAX_URL_CHARACTERS or not _VISIBLE.fullmatch(url):
            raise UrlRefused(
                f"a URL has at most {MAX_URL_CHARACTERS} characters, which are visible ASCII "
                "without a backslash; encode others with %, and hosts as xn--"
            )
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise UrlRefused(f"the URL cannot be read: {error}") from None
        if parts.scheme != "https":
            raise UrlRefused(f"a URL must begin with https:, found {parts.scheme!r}")
        if "@" in parts.netloc:
            raise UrlRefused("a URL must not hold a user or a password")
        if port not in (None, HTTPS_PORT):
            raise UrlRefused(f"pictures are fetched from port {HTTPS_PORT}, found {port}")
        host = (parts.hostname or "").lower()
        if not self._allowed(host):
            raise UrlRefused(f"pictures are not fetched from {host!r}", host=host)
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        return Target(url, host, path)

    def _allowed(self, host: str) -> bool:
        if not HOST.fullmatch(host):  # an address, in whatever notation
            return False
        return host in self._hosts or host.endswith(self._suffixes)

    async def _get(self, target: Target) -> bytes | str:
        """What is there, or where else it is said to be."""
        reader, writer = await self._reach(target.host)
        try:
            return await _Exchange(target, reader, writer, self._max_bytes).run()
        except (OSError, h11.ProtocolError) as error:
            raise UrlFailed(f"{target.host} did not answer as it should: {error}") from None
        finally:
            writer.transport.abort()

    async def _reach(self, host: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection to the first address that takes one, all of them being public."""
        try:
            addresses = await self._resolve(host)
        except (OSError, UnicodeError):
            raise UrlFailed(f"there is no host {host!r}") from None
        for address in addresses:
            if not is_public(address):  # one that points inside makes the others suspect
                raise UrlRefused(f"{host} has an address that pictures are not fetched from")
        addresses = addresses[:MAX_ADDRESSES]
        for left, address in zip(reversed(range(len(addresses))), addresses, strict=True):
            # One that swallows what is sent must leave time for those after it.
            limit_s = self._timeout_s / (2 * MAX_ADDRESSES) if left else None
            try:
                async with asyncio.timeout(limit_s):
                    return await self._connect(address, host)
            except ssl.SSLError as error:
                raise UrlFailed(f"{host} is not to be trusted: {_tls_fault(error)}") from None
            except OSError:  # a TimeoutError is one
                continue
        raise UrlFailed(f"{host} cannot be reached")


def is_public(text: str) -> bool:
    """Whether an address belongs to some host of the public internet, and to it alone."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address):
        if address in _NAT64:  # the network's own translation of an IPv4 address
            return is_public(str(ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)))
        if address.scope_id or address not in _GLOBAL_UNICAST:
            return False
    if any(address in network for network in _NEVER if network.version == address.version):
        return False
    return address.is_global and not address.is_multicast and not address.is_reserved


class _Exchange:
    """One request and its answer over an open connection."""

    def __init__(
        self,
        target: Target,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        max_bytes: int,
    ) -> None:
        self._target = target
        self._reader = reader
        self._writer = writer
        self._max_bytes = max_bytes
        self._received = 0
        self._http = h11.Connection(h11.CLIENT)

    async def run(self) -> bytes | str:
        """The body of a 200, or the ``Location`` of a redirect."""
        await self._ask()
        event = await self._next()
        while isinstance(event, h11.InformationalResponse):
            event = await self._next()
        if not isinstance(event, h11.Response):
            raise UrlFailed(f"{self._target.host} closed without an answer")
        headers = {name: value.decode("latin-1") for name, value in event.headers}
        if event.status_code in _REDIRECTS and b"location" in headers:
            return headers[b"location"]
        if event.status_code != 200:
            raise UrlFailed(
                f"{self._target.host} answered with status {event.status_code}",
                answered=event.status_code,
            )
        if headers.get(b"content-encoding", "identity").lower() != "identity":
            raise UrlFailed(f"{self._target.host} compressed the answer without being asked to")
        announced = headers.get(b"content-length", "0")
        if int(announced) > self._max_bytes:
            raise self._too_large(int(announced))
        return await self._body()

    async def _ask(self) -> None:
        headers = [
            ("Host", self._target.host),
            ("User-Agent", f"saccade/{version('saccade')}"),
            ("Accept", "image/jpeg, image/png, image/webp"),
            ("Accept-Encoding", "identity"),
            ("Connection", "close"),
        ]
        request = h11.Request(method="GET", target=self._target.path, headers=headers)
        self._writer.write(self._http.send(request) or b"")
        self._writer.write(self._http.send(h11.EndOfMessage()) or b"")
        await self._writer.drain()

    async def _body(self) -> bytes:
        body = bytearray()
        while isinstance(event := await self._next(), h11.Data):
            body += event.data
            if len(body) > self._max_bytes:
                raise self._too_large(len(body))
        if not isinstance(event, h11.EndOfMessage):
            raise UrlFailed(f"{self._target.host} closed before the end of the picture")
        return bytes(body)

    async def _next(self) -> object:
        while (event := self._http.next_event()) is h11.NEED_DATA:
            data = await self._reader.read(_CHUNK_BYTES)
            self._received += len(data)
            if self._received > self._max_bytes + MAX_FRAMING_BYTES:
                raise self._too_large(self._received)
            self._http.receive_data(data)
        return event

    def _too_large(self, found: int) -> TooLarge:
        return TooLarge(
            f"{self._target.host} has {found} bytes or more; at most {self._max_bytes} are fetched",
            found=found,
            limit=self._max_bytes,
        )


def _joined(url: str, location: str) -> str:
    try:
        return urljoin(url, location)
    except ValueError as error:
        raise UrlRefused(f"the URL leads to one that cannot be read: {error}") from None


def _tls_fault(error: ssl.SSLError) -> str:
    return getattr(error, "verify_message", "") or error.reason or "TLS failed"


async def _resolve(host: str) -> list[str]:
    found = await asyncio.get_running_loop().getaddrinfo(
        host, HTTPS_PORT, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP
    )
    return [str(address[0]) for *_, address in found]


def _connector() -> Connect:
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])

    async def connect(address: str, host: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(
            address, HTTPS_PORT, ssl=context, server_hostname=host, limit=_CHUNK_BYTES
        )

    return connect
