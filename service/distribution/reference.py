"""What ``oci://`` names: a registry, a repository in it, and a tag or a digest."""

import re
from dataclasses import dataclass, replace
from typing import Self

from service.distribution.web import is_loopback
from service.errors import TransferFailed

OPEN = "oci+http"
"""The scheme of registries that speak plain HTTP; on this machine every registry may."""
SCHEMES = ("oci", OPEN)

_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REFERENCE = re.compile(
    r"(?P<host>\[[0-9a-fA-F:]+\](?::\d{1,5})?|[A-Za-z0-9.-]+(?::\d{1,5})?)"
    rf"/(?P<name>{_PART}(?:/{_PART})*)"
    r"(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9._-]{0,127}))?"
    r"(?:@(?P<digest>sha256:[0-9a-f]{64}))?"
)


@dataclass(frozen=True)
class Reference:
    """One artefact; ``transport`` is https or http."""

    transport: str
    host: str
    name: str
    tag: str | None = None
    digest: str | None = None

    @classmethod
    def parse(cls, source: str) -> Self:
        """Of ``oci://host:port/name:tag@sha256:...``.

        Raises:
            TransferFailed: it is none.
        """
        scheme, _, rest = source.partition("://")
        found = _REFERENCE.fullmatch(rest)
        if found is None:
            raise TransferFailed(
                f"{source} is no artefact; write oci://HOST/NAME:TAG or "
                "oci://HOST/NAME@sha256:DIGEST, with NAME in lower case and DIGEST of 64 digits"
            )
        host = found["host"]
        name_of_host = host if host.endswith("]") else host.rpartition(":")[0] or host
        plain = scheme == OPEN or is_loopback(name_of_host)
        return cls("http" if plain else "https", host, found["name"], found["tag"], found["digest"])

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        digest = f"@{self.digest}" if self.digest else ""
        return f"oci://{self.host}/{self.name}{tag}{digest}"

    @property
    def asked(self) -> str:
        """What a registry is asked for; a digest counts more than a tag."""
        return self.digest or self.tag or "latest"

    def at(self, digest: str) -> "Reference":
        """The same, pinned."""
        return replace(self, digest=digest)
