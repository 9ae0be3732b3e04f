"""Rewrites ``constraints.txt``: the exact version of everything that serving installs.

``python deploy/pin.py`` in an environment where ``pip install -e '.[cpu]'`` and the tests have run:
what is pinned is what was tested. An image installs with ``pip install -c deploy/constraints.txt``.
"""

import tomllib
from collections.abc import Iterable
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

CONSTRAINTS = Path(__file__).with_name("constraints.txt")
HEADER = (
    "# What the serving image installs, in the versions that were tested.\n"
    "# Written by deploy/pin.py; change pyproject.toml, install, test, and run that.\n"
)


def main() -> None:
    """Write the file."""
    versions = closure(serving_dependencies())
    lines = [f"{name}=={version}\n" for name, version in sorted(versions.items())]
    CONSTRAINTS.write_text(HEADER + "".join(lines))


def serving_dependencies() -> list[Requirement]:
    """What pyproject.toml asks for where models are served on processors."""
    pyproject = Path(__file__).parents[1] / "pyproject.toml"
    project = tomllib.loads(pyproject.read_text())["project"]
    lines = [*project["dependencies"], *project["optional-dependencies"]["cpu"]]
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
        versions[name] = installed.version
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
