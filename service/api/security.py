"""Who may ask, and what a request may cost before anyone looks at it: bytes, counted while they
stream in.
"""

import logging
from collections.abc import Iterable
from functools import lru_cache
from ipaddress import IPv6Address
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api import page
from service.api.problems import refuse
from service.errors import Forbidden, Overloaded, TooLarge, Unauthorized
from service.keys import KeyRing
from service.settings import Settings

HEALTH = "/livez", "/readyz", "/startupz", "/health", "/healthz", "/ping"
PROBES = frozenset((*HEALTH, "/v2/health/live", "/v2/health/ready"))
"""What orchestrators ask, who have no key; it tells nothing but yes or no."""
METRICS = "/metrics"

_log = logging.getLogger(__name__)

_HOW = "send it as 'Authorization: Bearer KEY' or 'X-API-Key: KEY'"


def access_rules(settings: Settings) -> dict[str, Any]:
    """Arguments for ``Access``.

    Raises:
        BadSettings: a file of keys cannot be read or understood.
    """
    listed = settings.api_keys.get_secret_value(), settings.admin_keys.get_secret_value()
    callers = KeyRing(listed[0], settings.api_keys_file, "--api-keys-file")
    admins = KeyRing(listed[1], settings.admin_keys_file, "--admin-keys-file")
    facts = {"api_keys": len(callers), "admin_keys": len(admins)}
    who = "who shows a key" if callers else "everybody who reaches the port"
    _log.info("%s may ask", who, extra={"facts": facts})
    return {
        "callers": callers,
        "admins": admins,
        "open_paths": PROBES
        | page.open_paths()
        | ({METRICS} if settings.metrics_access == "open" else frozenset()),
    }


class Access:
    """ASGI middleware: asks for a key where there are any, on every route but the probes.

    It leaves in ``scope["state"]`` itself as ``access``, for ``require_admin``, and the ``client``
    for whoever shares among clients: the name of the key, or else the address of the peer.
    """

    def __init__(
        self, app: ASGIApp, callers: KeyRing, admins: KeyRing, open_paths: frozenset[str] = PROBES
    ) -> None:
        self._app = app
        self._callers = callers
        self._admins = admins
        self._open_paths = open_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer 401."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        peer = scope["client"]
        state = scope["state"]
        state["access"] = self
        state["client"] = network_of(peer[0]) if peer else "local"
        if self._callers and scope["path"] not in self._open_paths:
            try:
                state["client"] = self._caller(scope["headers"])
            except Unauthorized as error:
                await refuse(error, Request(scope))(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def require_admin(self, connection: HTTPConnection) -> None:
        """As the function of that name."""
        if not self._admins:
            raise HTTPException(404)
        shown = _shown(connection.scope["headers"])
        if shown is not None and self._admins.find(shown) is not None:
            return
        if shown is not None and self._callers.find(shown) is not None:
            raise Forbidden("this needs an admin key; the key that was sent is for pictures only")
        raise _unauthorized(shown, "an admin key")

    def _caller(self, headers: Iterable[tuple[bytes, bytes]]) -> str:
        """The name that goes with the key; an admin key opens everything."""
        shown = _shown(headers)
        name = None
        if shown is not None:
            name = self._callers.find(shown) or self._admins.find(shown)
        if name is None:
            raise _unauthorized(shown, "a key")
        return name


@lru_cache(maxsize=4096)
def network_of(address: str) -> str:
    """Whom to tell apart by address: who has IPv6 has 2^64 of them to ask from."""
    if ":" not in address:
        return address
    found = IPv6Address(address.partition("%")[0])  # without its zone
    if found.ipv4_mapped is not None:
        return str(found.ipv4_mapped)
    return ":".join(found.exploded.split(":")[:4])


def require_admin(request: Request) -> None:
    """Let only those pass who show an admin key.

    Raises:
        HTTPException: 404, no admin keys are set, so that there is no such route.
        Unauthorized: no key was shown, or nobody holds it.
        Forbidden: the key opens only what all may do.
    """
    access: Access = request.state.access
    access.require_admin(request)


def _shown(headers: Iterable[tuple[bytes, bytes]]) -> bytes | None:
    """The key in a request's headers; a bearer token comes first."""
    found = None
    for name, value in headers:
        if name == b"authorization" and value[:7].lower() == b"bearer ":
            return value[7:].strip()
        if name == b"x-api-key":
            found = value.strip()
    return found


def _unauthorized(shown: bytes | None, kind: str) -> Unauthorized:
    if shown is None:
        return Unauthorized(f"this needs {kind}; {_HOW}")
    return Unauthorized(f"this needs {kind}, and nobody holds the one that was sent")


class BodyLimit:
    """ASGI middleware: reading a body past ``max_bytes`` raises TooLarge, so nothing more of it is
    kept.

    ``hold_bytes`` in ``scope["state"]`` counts what a request has fetched from elsewhere as well.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, max_total_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._max_total_bytes = max_total_bytes
        self._held_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on with a counting ``receive``."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        announced = next((v for k, v in scope["headers"] if k == b"content-length"), b"")
        received = 0

        def hold(size: int) -> None:
            nonlocal received
            received += size
            self._held_bytes += size
            if received > self._max_bytes:
                raise self._too_large(received)
            if self._held_bytes > self._max_total_bytes:
                raise self._too_many()

        async def limited() -> Message:
            if announced.isdigit() and int(announced) > self._max_bytes:
                raise self._too_large(int(announced))
            message = await receive()
            hold(len(message.get("body", b"")))
            return message

        scope["state"]["hold_bytes"] = hold
        try:
            await self._app(scope, limited, send)
        finally:
            self._held_bytes -= received

    def _too_large(self, found: int) -> TooLarge:
        return TooLarge(
            f"the body, with what its URLs name, has {found} bytes or more; at most "
            f"{self._max_bytes} are accepted. Send smaller or more compressed pictures.",
            found=found,
            limit=self._max_bytes,
        )

    def _too_many(self) -> Overloaded:
        return Overloaded(
            f"the requests in progress here carry {self._held_bytes} bytes; "
            f"at most {self._max_total_bytes} are held at once; try again soon",
            found=self._held_bytes,
            limit=self._max_total_bytes,
        )
