"""Logins for registries, where ``docker login`` and ``podman login`` leave them."""

import base64
import binascii
import json
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from service.errors import TransferFailed

HELPER_S = 60
TOKEN_USER = "<token>"
"""The name under which helpers and files keep what is exchanged for tokens."""
DOCKER_HUB = ("docker.io", "index.docker.io", "registry-1.docker.io")


@dataclass(frozen=True)
class Login:
    """A name and a password; or a token that is no password, under the name ``TOKEN_USER``."""

    user: str
    secret: str = field(repr=False)


def find_login(host: str, configs: Iterable[tuple[str, str]]) -> Login | None:
    """The login for a host (with its port) in the first of the files that has one.

    ``configs`` are names and contents, in the form of ``~/.docker/config.json``.

    Raises:
        TransferFailed: a file is no JSON, or a helper that it names fails.
    """
    names = ("https://index.docker.io/v1/", *DOCKER_HUB) if host in DOCKER_HUB else (host,)
    for name, text in configs:
        try:
            config = json.loads(text)
            found = _in_config(names, config)
        except (ValueError, AttributeError, TypeError, binascii.Error) as error:
            raise TransferFailed(f"{name} is not what docker login writes: {error}") from None
        if found is not None:
            return found
    return None


def _in_config(names: tuple[str, ...], config: dict[str, Any]) -> Login | None:
    for name in names:
        helper = config.get("credHelpers", {}).get(name) or config.get("credsStore")
        found = _ask(helper, name) if helper else None
        if found is not None:
            return found
        for key in (name, f"https://{name}", f"https://{name}/v1/", f"https://{name}/v2/"):
            entry = config.get("auths", {}).get(key)
            if entry and (login := _of_entry(entry)):
                return login
    return None


def _of_entry(entry: dict[str, str]) -> Login | None:
    if entry.get("identitytoken"):
        return Login(TOKEN_USER, entry["identitytoken"])
    if entry.get("auth"):
        user, _, secret = base64.b64decode(entry["auth"], validate=True).decode().partition(":")
        return Login(user, secret.rstrip("\0"))
    if entry.get("username"):
        return Login(entry["username"], entry.get("password", ""))
    return None


def _ask(helper: str, host: str) -> Login | None:
    """What Docker's program of that name knows."""
    program = f"docker-credential-{helper}"
    try:
        ended = subprocess.run(
            [program, "get"],
            input=host,
            capture_output=True,
            text=True,
            timeout=HELPER_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise TransferFailed(f"{program}, which Docker's configuration names: {error}") from None
    if ended.returncode:  # which is how it says that it knows nothing
        return None
    said = json.loads(ended.stdout)
    return Login(said["Username"], said["Secret"])
