"""States how large the images are: ``python -m deploy.image.sizes [cpu] [gpu] [export]``, as root.

Builds them and writes ``bench/results/image.json``; what is not named there stays as it was.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from deploy.image.engine import ROOT, Engine, base_name, engine, make_base, obstacle

RESULTS = ROOT / "bench" / "results" / "image.json"
LARGEST = 8
LARGEST_UNPACKED_BYTES = 600_000_000
"""What the image for processors may take on disk."""


def main() -> int:
    """Build, measure, write."""
    reason = obstacle()
    if reason is not None:
        sys.stderr.write(f"{reason}\n")
        return 1
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"images": {}}
    found["base"] = f"stand-in for {base_name((ROOT / 'Dockerfile').read_text())}"
    with tempfile.TemporaryDirectory() as folder, engine() as made:
        archive = Path(folder) / "base.tar"
        make_base(archive, sys.executable)
        made.add_base(archive)
        for target in sys.argv[1:] or ["cpu"]:
            found["images"][target] = measure(made, made.build(target))
    RESULTS.write_text(json.dumps(found, indent=2) + "\n")
    return 0


def measure(made: Engine, image: str) -> dict[str, object]:
    """Sizes of an image in bytes: all files, what a pull transfers about, and what is large."""
    with made.mounted(image) as root:
        packages = next((root / "opt" / "saccade" / "lib").glob("python3*/site-packages"))
        sizes = {entry.name: size_bytes(entry) for entry in packages.iterdir()}
        largest = sorted(sizes, key=lambda name: -sizes[name])[:LARGEST]
        return {
            "unpacked_bytes": size_bytes(root),
            "gzip_bytes": _compressed_bytes(root),
            "of_which_saccade_bytes": size_bytes(root / "opt" / "saccade"),
            "largest_packages_bytes": {name: sizes[name] for name in largest},
        }


def size_bytes(path: Path) -> int:
    """Sizes of all files under a path, hard links counted once; links are not followed."""
    seen: set[tuple[int, int]] = set()
    total = 0
    for folder, _, names in os.walk(path):
        for name in names:
            found = (Path(folder) / name).lstat()
            key = (found.st_dev, found.st_ino)
            if found.st_nlink == 1 or key not in seen:
                total += found.st_size
                seen.add(key)
    return total if path.is_dir() else path.lstat().st_size


def _compressed_bytes(root: Path) -> int:
    command = f"tar -C '{root}' --one-file-system -cf - . | gzip -c | wc -c"
    return int(subprocess.run(command, shell=True, check=True, capture_output=True).stdout)


if __name__ == "__main__":
    sys.exit(main())
