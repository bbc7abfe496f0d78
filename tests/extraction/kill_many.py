"""``kill -9`` at random moments of an extraction, again and again, and the store compared with that of a clean run.

``python -m tests.extraction.kill_many --kills 100`` prints JSON per mode: how many runs were killed, how many of them while a block
was being written, how many stores were finished that way, and how many of them differ from the clean one by a byte.
``python -m tests.extraction.kill_many extract …`` is the run that is killed. Modes: one process; two worker processes;
two shards at the same time; one process that keeps frames.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from pipelines.extraction.engines.local import extract_corpus
from pipelines.extraction.engines.processes import extract_in_processes
from pipelines.store.embeddings import FrameSpec, open_store, store_path, verify_store
from tests.extraction.fakes import load_fake, make_corpus, recall_corpus
from tests.store.stores import tree_digest

__all__ = ["MODES", "Outcome", "kill_and_resume"]

MODES = ("one", "workers", "shards", "frames")
_COUNT, _BLOCK_ROWS = 96, 4
_ODD = {6: b"", 21: None, 38: np.zeros(80)}
_SLEEP_S = 0.02
_WRITE_S = 0.005
"""Before every array of a block, so that a good part of the kills fall into writing."""


@dataclass
class Outcome:
    """What came of it.

    Attributes:
        mode: one of ``MODES``.
        kills: runs that were killed.
        cut_in_writing: kills after which a block was found half written.
        stores: stores that were finished after kills.
        differing: stores that are not the same bytes as the clean one, or that a check finds fault with.
    """

    mode: str
    kills: int = 0
    cut_in_writing: int = 0
    stores: int = 0
    differing: int = 0


def _extract(cache: Path, root: Path, mode: str, shard: int, sleep_s: float) -> None:
    manifest = recall_corpus(root, count=_COUNT)
    frames = FrameSpec(("level", "shape"), "float16") if mode == "frames" else None
    rest = {"cache_dir": cache, "block_rows": _BLOCK_ROWS, "frames": frames}
    load = partial(load_fake, sleep_s=sleep_s)
    write = zarr.Array.__setitem__

    def write_slowly(array: zarr.Array, *rest: Any) -> None:  # type: ignore[type-arg]
        time.sleep(_WRITE_S)
        write(array, *rest)

    zarr.Array.__setitem__ = write_slowly  # type: ignore[method-assign]
    print("begin", flush=True)
    if mode == "workers":
        extract_in_processes(manifest, load, devices=["cpu", "cpu"], **rest)  # type: ignore[arg-type]
    else:
        share = (shard, 2) if mode == "shards" else None
        extract_corpus(manifest, load(device="cpu"), shard=share, **rest)  # type: ignore[arg-type]


def _start(cache: Path, root: Path, mode: str, shard: int, sleep_s: float) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        "-m",
        "tests.extraction.kill_many",
        "extract",
        str(cache),
        str(root),
        mode,
        str(shard),
        str(sleep_s),
    ]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).resolve().parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def _files(path: Path) -> int:
    return sum(1 for _ in path.rglob("*")) if path.exists() else 0


def _half_written(path: Path) -> bool:
    """Whether some block has data and no status yet, or a file was left under its temporary name."""
    if not (path / "zarr.json").exists():
        return False
    if any(path.rglob("*.partial*")):
        return True
    status = open_store(path, complete=False).status
    begun = {int(entry.name) for name in ("mean", "std", "failure") for entry in (path / name / "c").glob("[0-9]*")}
    return any(not status[block * _BLOCK_ROWS : (block + 1) * _BLOCK_ROWS].any() for block in begun)


def kill_and_resume(folder: Path, *, mode: str, kills: int, seed: int) -> Outcome:
    """Kill runs at random moments until ``kills`` were killed, and let the last ones finish.

    Args:
        folder: scratch folder.
        mode: one of ``MODES``.
        kills: how many.
        seed: of the moments.
    """
    draw = random.Random(seed)
    root = folder / "corpus"
    make_corpus(root, count=_COUNT, odd=_ODD)
    assert _start(folder / "clean", root, "frames" if mode == "frames" else "one", 0, 0.0).wait() == 0
    expected = tree_digest(store_path(folder / "clean", "toy", "fake"))
    outcome = Outcome(mode)
    shards = (0, 1) if mode == "shards" else (0,)
    while outcome.kills < kills:
        cache = folder / f"killed{outcome.stores}"
        path = store_path(cache, "toy", "fake")
        while True:
            running = [_start(cache, root, mode, shard, _SLEEP_S) for shard in shards]
            if outcome.kills < kills:
                for process in running:
                    assert process.stdout is not None
                    process.stdout.readline()
                # In terms of what is on the disk, so that the machine's speed does not decide what is tested.
                wanted = _files(path) + draw.randrange(0, 60)
                while _files(path) < wanted and any(process.poll() is None for process in running):
                    time.sleep(0.001)
                time.sleep(draw.random() * 0.005)
                for process in running:
                    if process.poll() is None:
                        process.kill()
                        outcome.kills += 1
            for process in running:
                process.communicate()
            codes = {process.returncode for process in running}
            if codes == {0}:
                break
            assert codes <= {0, -signal.SIGKILL}, codes
            outcome.cut_in_writing += _half_written(path)
        outcome.stores += 1
        outcome.differing += tree_digest(path) != expected or bool(verify_store(path))
    return outcome


def main() -> None:
    """See the module docstring."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    for mode in MODES:
        with tempfile.TemporaryDirectory() as folder:
            outcome = kill_and_resume(Path(folder), mode=mode, kills=-(-options.kills // len(MODES)), seed=options.seed)
        print(json.dumps(asdict(outcome)), flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["extract"]:
        _extract(Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4], int(sys.argv[5]), float(sys.argv[6]))
    else:
        main()
