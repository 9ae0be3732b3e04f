"""Exits with 0 while the server in this container is alive: the image's HEALTHCHECK.

It goes by the variables that the server is started with, so a port or a certificate that is given
as a flag instead is not seen.
"""

import os
import ssl
import sys
import urllib.error
import urllib.request

TIMEOUT_S = 2.0


def main() -> int:
    """Ask ``/livez``; 0 where it answers that the server is alive."""
    context = ssl.create_default_context()
    context.check_hostname = False  # the certificate is for the clients' name of this server
    context.verify_mode = ssl.CERT_NONE
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
    )
    try:
        opener.open(address(os.environ), timeout=TIMEOUT_S).close()
    except (OSError, ValueError) as error:  # refused, late, or any status but 200
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


def address(environment: "os._Environ[str] | dict[str, str]") -> str:
    """Where the server listens, seen from inside."""
    scheme = "https" if environment.get("SACCADE_TLS_CERTIFICATE") else "http"
    host = environment.get("SACCADE_HOST", "127.0.0.1")
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # any address is our own, too
    host = f"[{host}]" if ":" in host else host
    return f"{scheme}://{host}:{environment.get('SACCADE_PORT', '8000')}/livez"


if __name__ == "__main__":
    sys.exit(main())
