"""Builds and runs the Dockerfile where there is no Docker: buildah, podman and runc, as root.

Images, containers and their files lie in a folder of their own, and go with it.
"""

import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
NEEDED = ("buildah", "podman", "runc", "mmdebstrap")
BUILD_S = 1800.0
RUN_S = 120.0

# Where a machine may not raise limits, podman's own defaults are refused; crun refuses machines
# with both kinds of control groups.
_CONTAINERS = """[containers]
default_ulimits = ["nofile=4096:4096", "nproc=4096:4096"]
netns = "host"
log_driver = "k8s-file"
[engine]
cgroup_manager = "cgroupfs"
runtime = "runc"
events_logger = "file"
"""
_STORAGE = (
    '[storage]\ndriver = "{driver}"\ngraphroot = "{folder}/images"\nrunroot = "{folder}/run"\n'
)
_BASE = """FROM scratch
ADD base.tar /
ENV PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8
CMD ["python3"]
"""


def obstacle() -> str | None:
    """Why no image can be built here, or None."""
    if os.geteuid() != 0:
        return "building an image without Docker needs root"
    missing = [name for name in NEEDED if shutil.which(name) is None]
    return f"building an image without Docker needs {', '.join(missing)}" if missing else None


@dataclass(frozen=True)
class Container:
    """A started container of an engine."""

    engine: "Engine"
    name: str

    def execute(self, *command: str) -> "subprocess.CompletedProcess[str]":
        """Run a command inside; its exit code is the caller's to judge."""
        return self.engine.run(["podman", "exec", self.name, *command], check=False)

    def healthcheck(self) -> int:
        """Exit code of the image's HEALTHCHECK."""
        return self.engine.run(["podman", "healthcheck", "run", self.name], check=False).returncode

    def stop(self, within_s: int) -> int:
        """SIGTERM, as ``docker stop`` sends it, and SIGKILL after a while; the exit code."""
        self.engine.run(["podman", "stop", "--time", str(within_s), self.name])
        state = self.engine.run(["podman", "inspect", self.name]).stdout
        return int(json.loads(state)[0]["State"]["ExitCode"])

    def log(self) -> str:
        """What it has written to standard output and standard error."""
        output = self.engine.run(["podman", "logs", self.name], check=False)
        return output.stdout + output.stderr


class Engine:
    """Images and containers in one folder."""

    def __init__(self, folder: Path, driver: str = "overlay") -> None:
        self.folder = folder
        containers, storage = folder / "containers.conf", folder / "storage.conf"
        containers.write_text(_CONTAINERS)
        storage.write_text(_STORAGE.format(driver=driver, folder=folder))
        self._environment = os.environ | {
            "CONTAINERS_CONF": str(containers),
            "CONTAINERS_STORAGE_CONF": str(storage),
        }

    def run(
        self, command: Sequence[str], *, check: bool = True, timeout_s: float = RUN_S
    ) -> "subprocess.CompletedProcess[str]":
        """Run a tool on this engine's images.

        Raises:
            RuntimeError: with the end of its output, where it fails and ``check`` is set.
        """
        done = subprocess.run(
            command, env=self._environment, capture_output=True, text=True, timeout=timeout_s
        )
        if check and done.returncode:
            said = "\n".join((done.stdout + done.stderr).splitlines()[-40:])
            raise RuntimeError(f"{' '.join(command)} exited with {done.returncode}:\n{said}")
        return done

    def add_base(self, archive: Path) -> str:
        """Give a file system the name that the Dockerfile starts from; returns the name."""
        name = base_name((ROOT / "Dockerfile").read_text())
        context = self.folder / "base"
        context.mkdir()
        (context / "Dockerfile").write_text(_BASE)
        shutil.copyfile(archive, context / "base.tar")
        self._build(f"docker.io/library/{name}", context)
        shutil.rmtree(context)
        return name

    def build(self, target: str) -> str:
        """Build a stage of the unmodified Dockerfile; returns the image's name."""
        name = f"localhost/saccade:{target}"
        flags = ["--target", target, "--layers", "--format", "docker"]  # OCI has no HEALTHCHECK
        wheels = os.environ.get("PIP_FIND_LINKS", "")
        if (
            Path(wheels).is_absolute() and Path(wheels).is_dir()
        ):  # packages that lie on this machine
            flags += [
                "--volume",
                f"{wheels}:{wheels}:ro",
                "--build-arg",
                f"PIP_FIND_LINKS={wheels}",
            ]
        self._build(name, ROOT, *flags)
        return name

    def _build(self, name: str, context: Path, *flags: str) -> None:
        command = ["buildah", "build", "--isolation", "chroot", "--tag", name, *flags, str(context)]
        self.run(command, timeout_s=BUILD_S)

    @contextmanager
    def running(self, image: str, name: str, *flags: str) -> Iterator[Container]:
        """A container on the machine's network, as locked up as one can be; removed at the end."""
        locked = ["--read-only", "--tmpfs", "/tmp:rw,size=256m,mode=1777", "--cap-drop", "ALL"]
        locked += ["--security-opt", "no-new-privileges", "--pids-limit", "512"]
        # Its timers need systemd; Container.healthcheck runs it by hand.
        locked += ["--health-interval", "disable", "--stop-timeout", "60"]
        try:
            self.run(["podman", "run", "--detach", "--name", name, *locked, *flags, image])
            yield Container(self, name)
        finally:
            self.run(["podman", "rm", "--force", "--time", "1", name], check=False)

    @contextmanager
    def mounted(self, image: str) -> Iterator[Path]:
        """The files of an image."""
        work = self.run(["buildah", "from", "--pull-never", image]).stdout.strip()
        try:
            yield Path(self.run(["buildah", "mount", work]).stdout.strip())
        finally:
            self.run(["buildah", "rm", work], check=False)

    def describe(self, image: str) -> dict[str, object]:
        """The image's own configuration: user, labels, volumes, health check."""
        found: dict[str, object] = json.loads(
            self.run(["podman", "image", "inspect", image]).stdout
        )[0]
        return found


def base_name(dockerfile: str) -> str:
    """The image that a Dockerfile of ours starts from, less a digest."""
    match = re.search(r"^ARG PYTHON_IMAGE=([^@\s]+)", dockerfile, flags=re.MULTILINE)
    assert match, "the Dockerfile says ARG PYTHON_IMAGE=..."
    return match[1]


def make_base(archive: Path, python: str) -> None:
    """Make the file system of a stand-in for that image, with this machine's packages."""
    subprocess.run([str(HERE / "base.sh"), str(archive), python], check=True, timeout=BUILD_S)


@contextmanager
def engine(driver: str = "overlay") -> Iterator[Engine]:
    """An engine in a new folder, which is removed with all that it holds."""
    folder = Path(tempfile.mkdtemp(prefix="saccade-image-"))
    made = Engine(folder, driver)
    try:
        yield made
    finally:
        made.run(["podman", "rm", "--force", "--all", "--time", "1"], check=False)
        made.run(["buildah", "rm", "--all"], check=False)
        made.run(["podman", "rmi", "--force", "--all"], check=False, timeout_s=BUILD_S)
        shutil.rmtree(folder, ignore_errors=True)
