"""A walk through a page of the documentation: its blocks of code, one after the other, in an empty folder, as a reader would.

    python -m tests.docs.walk                 # the tutorial, with the time of each block
    python -m tests.docs.walk cluster.md --offline

``--offline`` cuts the network off (Linux, ``unshare``); without it Hugging Face libraries are only told to stay offline.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.docs.pages import ROOT, Block, blocks

__all__ = ["walk"]


def walk(
    pieces: Sequence[Block], folder: Path, *, limit_s: float, offline: bool = False
) -> Iterator[tuple[Block, float]]:
    """Run blocks in a folder of their own; yields each with its seconds of wall-clock.

    Raises:
        AssertionError: a block failed, or all of them take longer than ``limit_s``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HYFUSE_")}
    environment |= {  # as after `source .venv/bin/activate`
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "HF_HUB_OFFLINE": "1",
    }
    ends = time.monotonic() + limit_s
    for block in pieces:
        started = time.monotonic()
        assert started < ends, f"{block.page.name} takes more than {limit_s:.0f} s"
        command = ["bash", "-e", "-c", block.text] if block.language == "sh" else [sys.executable, "-c", block.text]
        done = subprocess.run(
            ["unshare", "--map-root-user", "--net", *command] if offline else command,
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=ends - started,
            check=False,
        )
        assert done.returncode == 0, f"{block.page.name}:\n{block.text}\n{done.stdout[-1500:]}\n{done.stderr[-3000:]}"
        yield block, time.monotonic() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("page", nargs="?", default="tutorial.md", help="file in docs/")
    parser.add_argument("--offline", action="store_true", help="without a network")
    parser.add_argument("--limit-s", type=float, default=600.0, help="wall-clock seconds for all of it")
    options = parser.parse_args()
    pieces = [block for block in blocks(ROOT / "docs" / options.page) if block.runs]
    total_s = 0.0
    with tempfile.TemporaryDirectory(prefix="hyfuse walk ") as name:
        for block, seconds in walk(pieces, Path(name), limit_s=options.limit_s, offline=options.offline):
            total_s += seconds
            print(f"{seconds:6.1f} s  {block.text.strip().splitlines()[0][:100]}", flush=True)
    print(f"{total_s:6.1f} s  {options.page}, {len(pieces)} blocks")


if __name__ == "__main__":
    main()
