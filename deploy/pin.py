"""Rewrites a list of the exact versions of everything that an image installs.

``python deploy/pin.py`` in an environment where ``pip install -e '.[cpu,pull,otel]'`` and the tests
have run: what is pinned is what was tested. ``python deploy/pin.py gpu`` and ``export`` write the
lists of the other images, where those extras are installed. A list is complete: an image installs
it with ``pip install --no-deps --requirement``.
"""

import sys
import tomllib
from collections.abc import Iterable
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

FILES = {
    "cpu": "constraints.txt",
    "gpu": "constraints-gpu.txt",
    "export": "constraints-export.txt",
}
"""By extra, which is also the name of the image."""
IN_EVERY_IMAGE = ("pull", "otel")
"""What containers fetch and send models with, and traces, which a setting asks for."""
HEADER = (
    "# What the {extra} image installs, in the versions that were tested.\n"
    "# Written by deploy/pin.py; change pyproject.toml, install, test, and run that.\n"
)


def main() -> None:
    """Write the list of the extra that is named first, or of ``cpu``."""
    extra = sys.argv[1] if len(sys.argv) > 1 else "cpu"
    versions = closure(dependencies(extra))
    lines = [f"{name}=={version}\n" for name, version in sorted(versions.items())]
    Path(__file__).with_name(FILES[extra]).write_text(HEADER.format(extra=extra) + "".join(lines))


def dependencies(extra: str) -> list[Requirement]:
    """What pyproject.toml asks for, with one of its extras and what every image has."""
    pyproject = Path(__file__).parents[1] / "pyproject.toml"
    project = tomllib.loads(pyproject.read_text())["project"]
    extras = project["optional-dependencies"]
    lines = [*project["dependencies"], *extras[extra]]
    lines += [line for shared in IN_EVERY_IMAGE for line in extras[shared]]
    return [Requirement(line) for line in lines]


def closure(wanted: Iterable[Requirement]) -> dict[str, str]:
    """Installed versions of all that is wanted, and of what that needs on this system, by name.

    Raises:
        PackageNotFoundError: one of them is not installed.
    """
    versions: dict[str, str] = {}
    seen: set[tuple[str, str]] = set()
    waiting = [found for one in wanted if _applies(one, "") for found in _with_extras(one)]
    while waiting:
        asked = waiting.pop()
        if asked in seen:
            continue
        seen.add(asked)
        name, extra = asked
        installed = distribution(name)
        versions[name] = installed.version.split("+")[0]  # a build of PyTorch is not its release
        for line in installed.requires or ():
            needed = Requirement(line)
            if _applies(needed, extra):
                waiting += _with_extras(needed)
    return versions


def _applies(wanted: Requirement, extra: str) -> bool:
    return wanted.marker is None or wanted.marker.evaluate({"extra": extra})


def _with_extras(wanted: Requirement) -> list[tuple[str, str]]:
    name = canonicalize_name(wanted.name)
    return [(name, extra) for extra in ("", *wanted.extras)]


if __name__ == "__main__":
    main()
