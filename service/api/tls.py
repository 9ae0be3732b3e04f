"""HTTPS: the certificate that the server shows, followed when its files are renewed."""

import asyncio
import logging
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import uvloop

from service.errors import BadSettings
from service.watching import WatchedFiles

_log = logging.getLogger(__name__)


def server_context(
    certificate: str, key: str, clock: Callable[[], float] = time.monotonic
) -> ssl.SSLContext:
    """TLS 1.2 or later with the chain in ``certificate``; ``key`` is empty where that holds it too.

    Renewed files are shown to the connections that come after; files that do not fit together,
    or not yet, leave the certificate as it was.

    Raises:
        BadSettings: a file cannot be read, is not what it should be, or they do not fit together.
    """
    watched = WatchedFiles([Path(path) for path in (certificate, key) if path], clock)
    current = context = _load(certificate, key)

    def choose(connection: ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> None:
        nonlocal current
        if watched.changed():
            try:
                current = _load(certificate, key)
            except BadSettings as error:
                _log.error("%s; the certificate stays as it was", error)
            else:
                _log.info("read %s again", certificate)
        connection.context = current

    context.sni_callback = choose
    return context


def bound_handshakes(seconds: float) -> Callable[[], asyncio.AbstractEventLoop]:
    """What makes event loops whose TLS servers wait so long for a handshake, not a minute.

    Until its end the connection is nobody's but the loop's, and uvicorn does not pass this on.
    """

    class Loop(uvloop.Loop):
        async def create_server(  # type: ignore[override]
            self, *args: Any, **options: Any
        ) -> asyncio.AbstractServer:
            if options.get("ssl") is not None:
                options["ssl_handshake_timeout"] = seconds
            return await super().create_server(*args, **options)

    return Loop


def _load(certificate: str, key: str) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(certificate, key or None, _no_password)
    except (OSError, ValueError) as error:  # an SSLError is an OSError
        files = f"--tls-certificate: {certificate}" + (f", --tls-key: {key}" if key else "")
        raise BadSettings(f"{files}: {error}") from None
    return context


def _no_password() -> str:
    raise ValueError("the key is encrypted; store it without a password, readable by us alone")
