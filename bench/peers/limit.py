"""Our limit: the loop of ``bench.bare`` over one bundle; that of the peers is ``bench.peers.loop``.

python -m bench.peers.limit BUNDLE PICTURE
"""

import argparse
import json
import os
from pathlib import Path

from bench.bare import BareLoop
from service.bundle import load_bundle


def main() -> None:
    """Print the runtime, and the pictures per second by batch size, as JSON."""
    parser = argparse.ArgumentParser(prog="python -m bench.peers.limit")
    parser.add_argument("bundle", type=Path, help="folder of a version")
    parser.add_argument("picture", type=Path)
    parser.add_argument("--duration", type=float, default=5.0, help="seconds per batch size")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    asked = parser.parse_args()
    pictures = [asked.picture.read_bytes()]
    loop = BareLoop(load_bundle(asked.bundle), pictures, os.cpu_count() or 1)
    paces = {}
    for batch in asked.batch:
        loop.pipelined(batch, min(asked.duration, 1.0))
        paces[batch] = loop.pipelined(batch, asked.duration).images_per_s
    print(json.dumps({"choice": str(loop.choice), "paces": paces}))


if __name__ == "__main__":
    main()
