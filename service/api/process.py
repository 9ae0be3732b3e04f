"""An API process: uvicorn on a socket that the supervisor has bound."""

import gc
import logging
import socket
import sys
from pathlib import Path

import uvicorn
from setproctitle import setproctitle

from service.api.app import create_app
from service.errors import StartError
from service.lifeline import EXIT_BAD_CONFIG, exit_with_parent
from service.logs import configure_logging
from service.metrics import Metrics
from service.settings import load_settings

_log = logging.getLogger("service.api.process")  # __name__ is "__main__" here


def main() -> None:
    """Entry of ``python -m service.api.process INDEX SOCKET_FD ENDPOINT METRICS_FOLDER``."""
    index, descriptor, endpoint, metrics_folder = sys.argv[1:]
    wait_until_verified = exit_with_parent()
    settings = load_settings()
    setproctitle(f"saccade api {index}")
    configure_logging(f"api {index}", settings.log_level)
    _log.info("starting", extra={"facts": {"waited_s": round(wait_until_verified(), 3)}})
    try:
        app = create_app(settings, endpoint, Metrics(Path(metrics_folder)))
    except StartError as error:
        _log.critical("%s", error)
        sys.exit(EXIT_BAD_CONFIG)
    config = uvicorn.Config(
        app,
        loop="uvloop",
        http="httptools",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # nothing here asks for the client's address
        timeout_graceful_shutdown=round(settings.grace_s),
    )
    # What is here stays: the collector need not walk through it again and again.
    gc.collect()
    gc.freeze()
    _log.info("accepting requests")
    uvicorn.Server(config).run(sockets=[socket.socket(fileno=int(descriptor))])


if __name__ == "__main__":
    main()
