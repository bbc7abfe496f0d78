"""Several processes, shards and a Ray cluster: the same bytes as one process."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.errors import AudioError, FailuresError, ProvenanceError, WeightsError, WorkerError
from pipelines.extraction.engines.local import ExtractionProgress, extract_corpus
from pipelines.extraction.engines.processes import extract_in_processes
from pipelines.store.embeddings import FrameSpec, open_store, store_path
from tests.extraction.fakes import (
    FakeEncoder,
    load_broken_fake,
    load_dying_fake,
    load_fake,
    load_other_fake,
    make_corpus,
    recall_corpus,
)
from tests.store.stores import tree_digest

ODD = {2: b"", 17: np.zeros(800), 33: None}
COUNT = 41
FRAMES = FrameSpec(("level",), "float16")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("engines") / "corpus"
    make_corpus(root, count=COUNT, odd=ODD)
    return root


@pytest.fixture(scope="module")
def expected(corpus: Path) -> dict[str, str]:
    """Bytes of the store that one process makes."""
    cache = corpus.parent / "straight"
    extract_corpus(recall_corpus(corpus, count=COUNT), FakeEncoder(), cache_dir=cache, block_rows=4, frames=FRAMES)
    return tree_digest(store_path(cache, "toy", "fake"))


def _extract(corpus: Path, cache: Path, **options: Any) -> dict[str, str]:
    load = options.pop("load", load_fake)
    extract_in_processes(
        recall_corpus(corpus, count=COUNT),
        load,
        devices=["cpu"] * options.pop("workers", 2),
        cache_dir=cache,
        block_rows=4,
        frames=FRAMES,
        **options,
    )
    return tree_digest(store_path(cache, "toy", "fake"))


# ------------------------------------------------------------------------------------------------ processes


@pytest.mark.parametrize("workers", [1, 3])
def test_processes_write_the_same_bytes(corpus: Path, expected: dict[str, str], tmp_path: Path, workers: int) -> None:
    told: list[ExtractionProgress] = []
    assert _extract(corpus, tmp_path, workers=workers, progress=told.append) == expected
    assert told[0] == ExtractionProgress(0, COUNT, 0, 0.0)
    assert (told[-1].rows_done, told[-1].rows_total, told[-1].rows_failed) == (COUNT, COUNT, 3)


def test_a_worker_that_dies_is_replaced(corpus: Path, expected: dict[str, str], tmp_path: Path) -> None:
    load = partial(load_fake, kill_once=tmp_path / "died", sleep_s=0.02)
    assert _extract(corpus, tmp_path / "cache", load=load) == expected
    assert (tmp_path / "died").exists()


def test_workers_that_keep_dying_end_the_run(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(
        WorkerError, match=r"keep dying: the last one, on cpu, was ended by signal 9 .*memory.*--workers"
    ):
        _extract(corpus, tmp_path, load=load_dying_fake)


def test_what_goes_wrong_in_a_worker_is_told(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(WorkerError, match="A worker process failed: RuntimeError: the encoder gave up"):
        _extract(corpus, tmp_path / "broken", load=load_broken_fake)
    with pytest.raises(WeightsError, match=r"A worker loaded other weights of 'fake' \(digest 0000"):
        _extract(corpus, tmp_path / "other", load=load_other_fake)
    with pytest.raises(AudioError, match=r"None of the first 4 recordings can be used"):
        _extract(corpus.parent / "elsewhere", tmp_path / "gone")


def test_too_many_failures_stop_all_workers(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(FailuresError, match=r"1 of 41 recordings failed, more than the 0"):
        _extract(corpus, tmp_path, max_failures=0)
    assert open_store(store_path(tmp_path, "toy", "fake"), complete=False).counts[2] >= 1


def test_another_process_cannot_join(corpus: Path, expected: dict[str, str], tmp_path: Path) -> None:
    """The parent holds the lock, though it writes nothing itself."""
    seen: list[str] = []

    def intrude(state: ExtractionProgress) -> None:
        if state.rows_done and not seen:
            code = (
                "import sys; from pathlib import Path; from tests.extraction.fakes import *;"
                "from pipelines.extraction.engines.local import extract_corpus;"
                f"manifest = recall_corpus(Path({str(corpus)!r}), count={COUNT});"
                f"extract_corpus(manifest, FakeEncoder(), cache_dir=Path({str(tmp_path)!r}))"
            )
            done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
            seen.append(done.stderr)

    assert _extract(corpus, tmp_path, load=partial(load_fake, sleep_s=0.05), progress=intrude) == expected
    assert f"Another process (pid {os.getpid()}) is writing" in seen[0]


_RUN = """
import sys
from functools import partial
from pathlib import Path
from pipelines.extraction.engines.processes import extract_in_processes
from pipelines.store.embeddings import FrameSpec
from tests.extraction.fakes import load_fake, recall_corpus
if __name__ == "__main__":
    extract_in_processes(
        recall_corpus(Path(sys.argv[1]), count=41), partial(load_fake, sleep_s=0.1), devices=["cpu"] * 2,
        cache_dir=Path(sys.argv[2]), block_rows=4, frames=FrameSpec(("level",), "float16"),
        progress=lambda state: print(state.rows_done, flush=True),
    )
"""


@pytest.mark.slow
@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGINT])
def test_workers_end_with_the_parent_and_the_run_goes_on(
    corpus: Path, expected: dict[str, str], tmp_path: Path, kill: signal.Signals
) -> None:
    script = tmp_path / "run.py"
    script.write_text(_RUN)
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    command = [sys.executable, str(script), str(corpus), str(tmp_path / "cache")]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment)
    assert parent.stdout is not None
    while int(parent.stdout.readline()) < 8:
        pass
    parent.send_signal(kill)
    parent.communicate(timeout=60)
    for _ in range(100):
        left = subprocess.run(["pgrep", "-f", str(tmp_path)], capture_output=True, check=False).stdout
        if not left:
            break
        time.sleep(0.1)
    assert not left
    assert _extract(corpus, tmp_path / "cache") == expected


# ------------------------------------------------------------------------------------------------ shards


def test_shards_together_write_the_same_bytes(corpus: Path, expected: dict[str, str], tmp_path: Path) -> None:
    manifest = recall_corpus(corpus, count=COUNT)
    told: list[ExtractionProgress] = []
    for index in (2, 0, 1):
        store = extract_corpus(
            manifest,
            FakeEncoder(),
            cache_dir=tmp_path,
            block_rows=4,
            frames=FRAMES,
            shard=(index, 3),
            progress=told.append,
        )
        assert store.is_complete == (index == 1)
        assert told[-1].rows_done == told[-1].rows_total < COUNT
    assert tree_digest(store_path(tmp_path, "toy", "fake")) == expected


def test_shards_at_the_same_time(corpus: Path, expected: dict[str, str], tmp_path: Path) -> None:
    manifest = recall_corpus(corpus, count=COUNT)
    errors: list[BaseException] = []

    def run(index: int) -> None:
        try:
            extract_corpus(
                manifest, FakeEncoder(sleep_s=0.02), cache_dir=tmp_path, block_rows=4, frames=FRAMES, shard=(index, 3)
            )
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert tree_digest(store_path(tmp_path, "toy", "fake")) == expected


def test_a_shard_by_several_processes(corpus: Path, expected: dict[str, str], tmp_path: Path) -> None:
    _extract(corpus, tmp_path, shard=(1, 2))
    assert _extract(corpus, tmp_path, shard=(0, 2)) == expected


def test_a_shard_of_something_else_is_refused(corpus: Path, tmp_path: Path) -> None:
    manifest = recall_corpus(corpus, count=COUNT)
    extract_corpus(manifest, FakeEncoder(), cache_dir=tmp_path, block_rows=4, shard=(0, 2))
    with pytest.raises(ProvenanceError, match="weights_digest"):
        extract_corpus(manifest, FakeEncoder(digest="e1" * 32), cache_dir=tmp_path, block_rows=4, shard=(1, 2))


# ------------------------------------------------------------------------------------------------ ray


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    ray = pytest.importorskip("ray", reason="the extra hyfuse[ray] is not installed")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    yield ray
    ray.shutdown()


def _extract_ray(corpus: Path, cache: Path, **options: Any) -> dict[str, str]:
    from pipelines.extraction.engines.ray import extract_with_ray

    load = options.pop("load", load_fake)
    extract_with_ray(
        recall_corpus(corpus, count=COUNT),
        load,
        device="cpu",
        cache_dir=cache,
        block_rows=4,
        frames=FRAMES,
        **options,
    )
    return tree_digest(store_path(cache, "toy", "fake"))


@pytest.mark.slow
@pytest.mark.usefixtures("ray")
def test_ray_writes_the_same_bytes(corpus: Path, expected: dict[str, str], tmp_path: Path) -> None:
    told: list[ExtractionProgress] = []
    assert _extract_ray(corpus, tmp_path, progress=told.append) == expected
    assert (told[-1].rows_done, told[-1].rows_total, told[-1].rows_failed) == (COUNT, COUNT, 3)
    assert told[-1].audio_s > 0


@pytest.mark.slow
@pytest.mark.usefixtures("ray")
def test_a_lost_ray_worker_is_replaced(corpus: Path, expected: dict[str, str], tmp_path: Path) -> None:
    load = partial(load_fake, kill_once=tmp_path / "died")
    assert _extract_ray(corpus, tmp_path / "cache", load=load) == expected
    assert (tmp_path / "died").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("ray")
def test_what_goes_wrong_in_a_ray_worker_is_told(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="A worker loaded other weights of 'fake'"):
        _extract_ray(corpus, tmp_path / "other", load=load_other_fake)
    with pytest.raises(AudioError, match=r"None of the first 4 recordings can be used"):
        _extract_ray(corpus.parent / "elsewhere", tmp_path / "gone")
    with pytest.raises(FailuresError, match="recordings failed, more than the 0"):
        _extract_ray(corpus, tmp_path / "failures", max_failures=0)
    with pytest.raises(WorkerError, match=r"A Ray worker failed: .*the encoder gave up"):
        _extract_ray(corpus, tmp_path / "broken", load=load_broken_fake)


@pytest.mark.skipif(importlib.util.find_spec("ray") is not None, reason="ray is installed")
def test_without_ray(corpus: Path, tmp_path: Path) -> None:
    from pipelines.errors import InstallationError

    with pytest.raises(InstallationError, match=r"pip install 'hyfuse\[ray\]'"):
        _extract_ray(corpus, tmp_path)
