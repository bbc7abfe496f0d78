"""A store of a million utterances: what it costs to make, to look at, and to read a thousand rows from.

Run with ``-s`` to see the figures.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload

import pytest

_ROWS = 1_000_000


class Ids(Sequence[str]):
    """A million ids that are made when asked for."""

    def __len__(self) -> int:
        return _ROWS

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [f"utterance_{row:08d}" for row in range(*index.indices(_ROWS))]
        return f"utterance_{index:08d}"


_STAGE = """
import json, sys, time
from pathlib import Path
import numpy as np
from tests.store.stores import make_provenance
from tests.store.test_scale import Ids
from pipelines.store.embeddings import BlockResult, open_store, open_writer

path, stage = Path(sys.argv[1]), sys.argv[2]
made = make_provenance(representations=("a",), default_representation="a", dim=8)
figures = {}

def result(rows):
    numbers = np.repeat(np.array(rows, np.float32)[:, None, None], 8, axis=2)
    return BlockResult(numbers, numbers, np.full(len(rows), 2, np.int32), np.ones(len(rows)), [""] * len(rows))

def peak_mb():  # of this program: ru_maxrss begins with that of the process it was started from
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024

class Clock:
    def __init__(self, name): self.name = name
    def __enter__(self): self.cpu, self.wall = time.process_time(), time.perf_counter()
    def __exit__(self, *_):
        figures[self.name] = [round(time.process_time() - self.cpu, 3), round(time.perf_counter() - self.wall, 3)]

figures["start_mb"] = peak_mb()
if stage == "make":
    with Clock("open"):
        context = open_writer(path, provenance=made, utterance_ids=Ids())
        writer = context.__enter__()
    with Clock("blocks_to_do"):
        blocks = writer.blocks_to_do()
    figures["blocks"] = len(blocks)
    some = [*blocks[:: len(blocks) // 40], blocks[-1]]
    with Clock("write"):
        for block in some:
            writer.write_block(block, result(writer.rows_of(block)))
    figures["written"] = len(some)
    figures["left"] = len(writer.blocks_to_do())
    context.__exit__(None, None, None)
elif stage == "continue":
    with Clock("open"), open_writer(path, provenance=made, utterance_ids=Ids()) as writer:
        figures["left"] = len(writer.blocks_to_do())
else:
    with Clock("status"):
        store = open_store(path, complete=False)
        figures["counts"] = list(store.counts)
    rows = np.random.default_rng(0).choice(np.flatnonzero(store.status), 1000, replace=False)
    with Clock("features"):
        found = store.features([f"utterance_{row:08d}" for row in rows], representation="a", pool="mean+std")
    assert np.array_equal(found, np.repeat(rows[:, None].astype(np.float32), 16, axis=1))
    assert store.failures() == {}
figures["peak_mb"] = peak_mb()
print(json.dumps(figures))
"""


def _run(path: Path, stage: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", _STAGE, str(path), stage],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        cwd=Path(__file__).resolve().parents[2],
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    print(stage, figures)
    return figures  # type: ignore[no-any-return]


@pytest.mark.slow
def test_a_million_utterances(tmp_path: Path) -> None:
    path = tmp_path / "toy" / "enc" / "clean.zarr"
    made = _run(path, "make")
    assert made["blocks"] == 3907
    assert made["left"] == 3907 - made["written"]
    continued = _run(path, "continue")
    assert continued["left"] == made["left"]
    read = _run(path, "read")
    done = (made["written"] - 1) * 256 + _ROWS % 256
    assert read["counts"] == [_ROWS - done, done, 0]
    for figures in (made, continued, read):
        assert figures["peak_mb"] < 300
    assert made["peak_mb"] - made["start_mb"] < 100
