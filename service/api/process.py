"""An API process: uvicorn on a socket that the supervisor has bound."""

import asyncio
import gc
import logging
import math
import socket
import ssl
import sys
from collections.abc import Callable
from pathlib import Path
from typing import cast

import uvicorn
from setproctitle import setproctitle

from service.api.app import create_app
from service.api.connections import Guard, Limits, raise_descriptor_limit
from service.api.tls import bound_handshakes, server_context
from service.errors import StartError
from service.lifeline import EXIT_BAD_CONFIG, exit_with_parent
from service.logs import configure_logging
from service.metrics import Metrics
from service.settings import Settings, load_settings

_log = logging.getLogger("service.api.process")  # __name__ is "__main__" here


def main() -> None:
    """Entry of ``python -m service.api.process INDEX SOCKET ENDPOINT METRICS_FOLDER DEVICES``."""
    index, descriptor, endpoint, metrics_folder, devices = sys.argv[1:]
    wait_until_verified = exit_with_parent()
    settings = load_settings()
    setproctitle(f"saccade api {index}")
    configure_logging(f"api {index}", settings.log_level)
    _log.info("starting", extra={"facts": {"waited_s": round(wait_until_verified(), 3)}})
    metrics = Metrics(Path(metrics_folder))
    try:
        app = create_app(settings, endpoint, metrics, devices.split(","))
        tls = _tls(settings)
    except StartError as error:
        _log.critical("%s", error)
        sys.exit(EXIT_BAD_CONFIG)
    config = uvicorn.Config(
        app,
        http=cast(type[asyncio.Protocol], _guard(settings, metrics).protocol),
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        ssl_context_factory=tls,
        proxy_headers=False,  # anybody can send one; keys tell clients behind a proxy apart
        timeout_keep_alive=math.ceil(settings.idle_timeout_s),
        timeout_graceful_shutdown=round(settings.grace_s),
    )
    # What is here stays: the collector need not walk through it again and again.
    gc.collect()
    gc.freeze()
    _log.info("accepting requests")
    server = uvicorn.Server(config)
    with asyncio.Runner(loop_factory=bound_handshakes(settings.header_timeout_s)) as runner:
        runner.run(server.serve(sockets=[socket.socket(fileno=int(descriptor))]))


def _tls(settings: Settings) -> Callable[..., ssl.SSLContext] | None:
    """What makes the context of connections; None where they are plain HTTP."""
    if not settings.tls_certificate:
        return None
    context = server_context(settings.tls_certificate, settings.tls_key)
    return lambda config, default: context


def _guard(settings: Settings, metrics: Metrics) -> Guard:
    limits = Limits(
        connections=raise_descriptor_limit(settings.max_connections),
        idle_s=settings.idle_timeout_s,
        header_s=settings.header_timeout_s,
        body_s=settings.body_timeout_s + 1,  # the application answers 408 first where it reads
        swallow_bytes=settings.max_body_bytes,
    )
    return Guard(limits, lambda reason: metrics.closings.labels(reason).inc())


if __name__ == "__main__":
    main()
