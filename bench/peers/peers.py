"""The servers that are compared, and how each is started and spoken to."""

import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.peers import bodies
from bench.peers.engine import Options
from service.cores import usable_cores

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]
RUNTIMES = ("onnxruntime", "openvino")
OURS = "saccade"


@dataclass(frozen=True)
class Peer:
    """One set-up of one server; its files lie in ``folder`` beside this one."""

    name: str
    folder: str
    arguments: tuple[str, ...] = ()
    """Of its ``start.sh``."""
    path: str = "/classify"
    encode: Callable[[bytes], bodies.Body] = bodies.raw
    read: Callable[[Any], bodies.Best] = bodies.read_top
    one_worker: bool = False
    """Runs one model on every core, instead of one on each."""
    commands: tuple[str, ...] = ()
    """Programs that it needs and that pip does not install."""

    @property
    def requirements(self) -> Path:
        """What its environment holds."""
        return FOLDER / self.folder / "requirements.txt"

    def missing(self) -> list[str]:
        """Those of its commands that this machine does not have."""
        return [command for command in self.commands if shutil.which(command) is None]


PEERS = {
    peer.name: peer
    for peer in (
        Peer("fastapi", "fastapi", ("naive",), one_worker=True),
        Peer("fastapi-pool", "fastapi", ("pool",)),
        Peer("litserve", "litserve"),
        Peer("mosec", "mosec", path="/inference"),
        Peer("bentoml", "bentoml", ("batched",), encode=bodies.form, read=bodies.read_first_top),
        Peer("bentoml-unbatched", "bentoml", ("unbatched",)),
        Peer("ray", "ray"),
        Peer("ray-optimized", "ray", ("optimized",)),
        Peer(
            "mlserver",
            "mlserver",
            path="/v2/models/classifier/infer",
            encode=bodies.open_inference_base64,
            read=bodies.read_open_inference,
        ),
        Peer("torchserve", "torchserve", path="/predictions/classifier", commands=("java",)),
        Peer(
            "triton",
            "triton",
            path="/v2/models/classifier/infer",
            encode=bodies.open_inference_binary,
            read=bodies.read_open_inference,
        ),
    )
}


@dataclass(frozen=True)
class Launch:
    """What is needed to start a server and to ask it something."""

    name: str
    argv: list[str]
    port: int
    path: str
    body: bodies.Body
    read: Callable[[Any], bodies.Best]

    @property
    def url(self) -> str:
        """Where the picture is sent."""
        return f"http://127.0.0.1:{self.port}{self.path}"


def launch_peer(
    peer: Peer, runtime: str, graph: Path, environment: Path, picture: bytes, port: int
) -> Launch:
    """A peer in its environment, one worker and one runtime thread for each core."""
    cores = usable_cores()
    workers, threads = (1, cores) if peer.one_worker else (cores, 1)
    told = Options(runtime, str(graph.resolve()), port, workers, threads).to_environment()
    told |= {
        "PYTHONPATH": str(ROOT),
        "PYTHONUNBUFFERED": "1",
    }
    # `env` adds to this process's environment, which so need not be read here.
    argv = ["env", "-u", "OMP_NUM_THREADS", *(f"{name}={value}" for name, value in told.items())]
    argv += ["sh", "-c", 'PATH="$0:$PATH" exec sh "$@"', str(environment.resolve() / "bin")]
    argv += [str(FOLDER / peer.folder / "start.sh"), *peer.arguments]
    return Launch(peer.name, argv, port, peer.path, peer.encode(picture), peer.read)


def launch_ours(repository: Path, model: str, picture: bytes, port: int) -> Launch:
    """Saccade with its default settings."""
    argv = ["env", f"PYTHONPATH={ROOT}", sys.executable, "-c"]
    argv += ["from service.cli import main; main()", "serve"]
    argv += ["--repository", str(repository.resolve()), "--port", str(port)]
    path = f"/v1/classify?model={model}"
    return Launch(OURS, argv, port, path, bodies.raw(picture), bodies.read_predictions)
