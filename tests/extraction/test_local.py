"""Extraction as a whole: the same bytes whatever happens on the way."""

from __future__ import annotations

import functools
import random
import re
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines.errors import AudioError, DeviceError, ManifestError, ProvenanceError, StorageError
from pipelines.extraction import decoding
from pipelines.extraction.batching import plan_batches
from pipelines.extraction.blocks import make_blocks
from pipelines.extraction.engines.local import (
    ExtractionProgress,
    choose_device,
    extract_corpus,
    extraction_provenance,
)
from pipelines.store.embeddings import StoreWriter, open_store, store_path, verify_store
from tests.extraction import kill_many
from tests.extraction.fakes import FakeEncoder, make_corpus, recall_corpus, sine
from tests.store.stores import tree_digest

ODD = {2: b"", 5: np.zeros(800), 9: sine(9, level=1.0), 13: None}
"""Empty, silent, an embedding of NaN, missing."""


def _path(cache_dir: Path) -> Path:
    return store_path(cache_dir, "toy", "fake")


@pytest.fixture(autouse=True)
def _one_batch_per_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lengths apart, so that a test can let the encoder fail in the block of its choice."""
    monkeypatch.setattr("pipelines.extraction.worker.plan_batches", functools.partial(plan_batches, max_padding=1.0))


def _straight(tmp_path: Path, **options: object) -> dict[str, str]:
    """Bytes of a store that was made without interruption."""
    manifest = make_corpus(tmp_path / "corpus", **options)  # type: ignore[arg-type]
    extract_corpus(manifest, FakeEncoder(), cache_dir=tmp_path / "straight", block_rows=4)
    return tree_digest(_path(tmp_path / "straight"))


# ------------------------------------------------------------------------------------------------ what is stored


def test_every_utterance_is_accounted_for(tmp_path: Path) -> None:
    manifest = make_corpus(tmp_path / "corpus", count=15, odd=ODD)
    store = extract_corpus(manifest, FakeEncoder(), cache_dir=tmp_path / "cache", block_rows=4)
    assert store.is_complete
    assert store.counts == (0, 11, 4)
    assert store.utterance_ids == manifest.utterance_ids
    failures = store.failures()
    assert sorted(failures) == ["clip002", "clip005", "clip009", "clip013"]
    assert "is empty" in failures["clip002"]
    assert "is silent" in failures["clip005"]
    assert "not finite" in failures["clip009"]
    assert "does not exist" in failures["clip013"]
    assert verify_store(store.path) == []
    assert store.provenance == extraction_provenance(manifest, FakeEncoder())
    assert store.provenance.manifest_digest == manifest.digest


def test_rows_do_not_depend_on_their_block(tmp_path: Path) -> None:
    manifest = make_corpus(tmp_path / "corpus", count=13)
    stores = [
        extract_corpus(manifest, FakeEncoder(), cache_dir=tmp_path / str(rows), block_rows=rows) for rows in (1, 4, 256)
    ]
    turned = make_corpus(tmp_path / "corpus", count=13)
    turned = type(turned)(turned.corpus, turned.table.iloc[::-1].reset_index(drop=True), turned.root)
    stores.append(extract_corpus(turned, FakeEncoder(), cache_dir=tmp_path / "turned", block_rows=4))
    expected = stores[0].features(manifest.utterance_ids, representation="shape", pool="mean+std")
    for store in stores[1:]:
        found = store.features(manifest.utterance_ids, representation="shape", pool="mean+std")
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)


def test_provenance_says_what_was_used(tmp_path: Path) -> None:
    made = extraction_provenance(make_corpus(tmp_path, count=1), FakeEncoder())
    assert (made.corpus, made.encoder, made.condition, made.device) == ("toy", "fake", "clean", "cpu")
    assert (made.weights_kind, made.weights_digest) == ("random", "f0" * 32)
    assert {"torch", "transformers", "speechbrain", "encodec", "numpy", "soxr", "libsndfile"} <= set(made.versions)
    assert made.versions["torch"].split("+")[0] == torch.__version__.split("+")[0]


def test_blocks_cover_the_manifest_in_order(tmp_path: Path) -> None:
    manifest = make_corpus(tmp_path, count=10)
    blocks = list(make_blocks(manifest, block_rows=4, indices=[0, 1, 2]))
    assert [path for block in blocks for path in block.paths] == manifest.audio_paths()
    assert [(block.index, block.start, len(block.paths)) for block in blocks] == [(0, 0, 4), (1, 4, 4), (2, 8, 2)]
    assert [name for block in blocks for name in block.utterance_ids] == manifest.utterance_ids
    assert list(make_blocks(manifest, block_rows=4, indices=[2])) == [blocks[2]]


def test_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    manifest = make_corpus(tmp_path / "corpus", count=15, odd=ODD)
    for name in ("one", "two"):
        extract_corpus(manifest, FakeEncoder(), cache_dir=tmp_path / name, block_rows=4)
    assert tree_digest(_path(tmp_path / "one")) == tree_digest(_path(tmp_path / "two"))


def test_finished_store_is_not_touched_again(tmp_path: Path) -> None:
    manifest = make_corpus(tmp_path / "corpus", count=6)
    extract_corpus(manifest, FakeEncoder(), cache_dir=tmp_path, block_rows=4)
    encoder, told = FakeEncoder(), list[ExtractionProgress]()
    extract_corpus(manifest, encoder, cache_dir=tmp_path, block_rows=4, progress=told.append)
    assert encoder.batches == []
    assert told == [ExtractionProgress(6, 6, 0, 0.0)]


# ------------------------------------------------------------------------------------------------ interruption


@pytest.mark.parametrize("batch", [0, 1, 2, 3])
def test_resumes_after_the_encoder_failed(tmp_path: Path, batch: int) -> None:
    expected = _straight(tmp_path, count=15, odd=ODD)
    manifest = recall_corpus(tmp_path / "corpus", count=15)
    with pytest.raises(RuntimeError, match="gave up"):
        extract_corpus(manifest, FakeEncoder(fail_at=batch), cache_dir=tmp_path / "cache", block_rows=4)
    assert open_store(_path(tmp_path / "cache"), complete=False).counts[0] == 15 - 4 * batch
    encoder = FakeEncoder()
    extract_corpus(manifest, encoder, cache_dir=tmp_path / "cache", block_rows=4)
    assert len(encoder.batches) == 4 - batch  # finished blocks are not encoded again
    assert tree_digest(_path(tmp_path / "cache")) == expected


def test_resumes_from_a_progress_bar_that_was_interrupted(tmp_path: Path) -> None:
    expected = _straight(tmp_path, count=15)
    manifest = recall_corpus(tmp_path / "corpus", count=15)

    def interrupt(state: ExtractionProgress) -> None:
        if state.rows_done >= 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract_corpus(manifest, FakeEncoder(), cache_dir=tmp_path / "cache", block_rows=4, progress=interrupt)
    extract_corpus(manifest, FakeEncoder(), cache_dir=tmp_path / "cache", block_rows=4)
    assert tree_digest(_path(tmp_path / "cache")) == expected


def test_an_interruption_leaves_no_thread_behind(tmp_path: Path) -> None:
    manifest = make_corpus(tmp_path / "corpus", count=40)
    before = threading.active_count()
    with pytest.raises(RuntimeError, match="gave up") as caught:
        extract_corpus(manifest, FakeEncoder(fail_at=0), cache_dir=tmp_path, block_rows=8)
    assert caught.tb is not None  # as long as someone looks at the traceback, nothing in it is collected as garbage
    # zarr keeps an event loop of its own, and its threads.
    names = [thread.name for thread in threading.enumerate() if not re.search("zarr|asyncio", thread.name)]
    assert len(names) <= before
    assert not [name for name in names if "ThreadPoolExecutor" in name]


def test_other_weights_are_refused_half_way(tmp_path: Path) -> None:
    manifest = make_corpus(tmp_path / "corpus", count=8)
    with pytest.raises(RuntimeError):
        extract_corpus(manifest, FakeEncoder(fail_at=1), cache_dir=tmp_path, block_rows=4)
    with pytest.raises(ProvenanceError, match=r"weights_digest: the store has f0f0f0.* asked for is e1e1e1"):
        extract_corpus(manifest, FakeEncoder(digest="e1" * 32), cache_dir=tmp_path, block_rows=4)


def test_full_disk_is_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = make_corpus(tmp_path / "corpus", count=8)

    def full(*_: object) -> None:
        raise StorageError("The disk is full.")

    with monkeypatch.context() as patch:
        patch.setattr(StoreWriter, "write_block", full)
        with pytest.raises(StorageError):
            extract_corpus(manifest, FakeEncoder(), cache_dir=tmp_path, block_rows=4)
    assert extract_corpus(manifest, FakeEncoder(), cache_dir=tmp_path, block_rows=4).is_complete


@pytest.mark.slow
@pytest.mark.parametrize("mode", kill_many.MODES)
def test_kill_at_random_moments_ends_with_the_same_bytes(tmp_path: Path, mode: str) -> None:
    """A short run of the script that does it a hundred times."""
    outcome = kill_many.kill_and_resume(tmp_path, mode=mode, kills=3, seed=random.randrange(10**6))
    assert outcome.kills >= 3
    assert outcome.differing == 0


# ------------------------------------------------------------------------------------------------ recordings that are gone


def test_nothing_of_the_first_block_can_be_used(tmp_path: Path) -> None:
    manifest = recall_corpus(tmp_path / "elsewhere", count=10)
    with pytest.raises(
        AudioError,
        match=r"None of the first 4 recordings can be used.*clip000\.wav does not exist.*--data-root: it is .*elsewhere",
    ):
        extract_corpus(manifest, FakeEncoder(), cache_dir=tmp_path, block_rows=4)
    assert open_store(_path(tmp_path), complete=False).counts == (10, 0, 0)
    make_corpus(tmp_path / "elsewhere", count=10)
    assert extract_corpus(manifest, FakeEncoder(), cache_dir=tmp_path, block_rows=4).counts == (0, 10, 0)


def test_a_disk_that_goes_away_is_not_a_corpus_of_broken_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Failures are final, so a folder that is gone must stop the run instead of filling the store with them."""
    monkeypatch.setattr(decoding, "AHEAD_S", 0.0)  # no further ahead than the next block
    monkeypatch.setattr("pipelines.extraction.worker._THREADS_AHEAD", 1)
    expected = _straight(tmp_path, count=23)
    corpus, gone = tmp_path / "corpus", tmp_path / "gone"
    manifest = recall_corpus(corpus, count=23)

    def unmount(state: ExtractionProgress) -> None:
        if state.rows_done >= 4 and corpus.exists():
            time.sleep(0.2)  # the next block is being decoded meanwhile
            corpus.rename(gone)

    with pytest.raises(
        AudioError, match=r"None of the next 4 .*clip000\.wav, which could be, is not there any more.*mounted"
    ):
        extract_corpus(manifest, FakeEncoder(), cache_dir=tmp_path / "cache", block_rows=4, progress=unmount)
    todo, done, failed = open_store(_path(tmp_path / "cache"), complete=False).counts
    assert (todo + done, failed) == (23, 0)
    assert done in {8, 12}
    with pytest.raises(AudioError, match="None of the next 4"):  # and again, before anything was done
        extract_corpus(manifest, FakeEncoder(), cache_dir=tmp_path / "cache", block_rows=4)
    gone.rename(corpus)
    extract_corpus(manifest, FakeEncoder(), cache_dir=tmp_path / "cache", block_rows=4)
    assert tree_digest(_path(tmp_path / "cache")) == expected


def test_a_later_block_of_broken_files_does_not_stop_the_run(tmp_path: Path) -> None:
    manifest = make_corpus(tmp_path / "corpus", count=9, odd={4: b"", 5: b"", 6: None, 7: np.zeros(80), 8: None})
    store = extract_corpus(manifest, FakeEncoder(), cache_dir=tmp_path, block_rows=4)
    assert store.counts == (0, 4, 5)


def test_manifest_without_a_root(tmp_path: Path) -> None:
    manifest = make_corpus(tmp_path, count=2)
    with pytest.raises(ManifestError, match=r"no folder of recordings.*--data-root"):
        extract_corpus(type(manifest)("toy", manifest.table, None), FakeEncoder(), cache_dir=tmp_path / "cache")


# ------------------------------------------------------------------------------------------------ progress


@pytest.mark.parametrize("fail_at", [None, 2])
def test_progress_ends_at_the_number_of_utterances(tmp_path: Path, fail_at: int | None) -> None:
    """Also when an earlier run did a part, and with recordings that fail before or in the encoder."""
    manifest = make_corpus(tmp_path / "corpus", count=15, odd=ODD)
    if fail_at is not None:
        with pytest.raises(RuntimeError):
            extract_corpus(manifest, FakeEncoder(fail_at=fail_at), cache_dir=tmp_path / "cache", block_rows=4)
    told: list[ExtractionProgress] = []
    store = extract_corpus(manifest, FakeEncoder(), cache_dir=tmp_path / "cache", block_rows=4, progress=told.append)
    done = [state.rows_done for state in told]
    assert done == sorted(done)
    assert done[0] == (0 if fail_at is None else 8)
    assert done[-1] == 15
    assert all(state.rows_total == 15 for state in told)
    assert told[-1].rows_failed == 4
    encoded = slice(done[0], None)
    assert told[-1].audio_s == pytest.approx(np.nansum(store.duration_s[encoded]))


# ------------------------------------------------------------------------------------------------ devices


def test_devices() -> None:
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(DeviceError, match=r"'gpu'.*auto, cpu, cuda or cuda:N"):
        choose_device("gpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("name", ["cuda", "cuda:3"])
def test_no_cuda_here(name: str) -> None:
    with pytest.raises(DeviceError, match=rf"--device {name} was asked for.*`--device cpu`"):
        choose_device(name)
