"""How many recordings may fail, and what a run that is stopped says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipelines.errors import ConfigError, FailuresError, StorageError
from pipelines.extraction.engines.local import extract_corpus
from pipelines.extraction.sink import FailureLimit, parse_max_failures
from pipelines.store.embeddings import StoreWriter, open_store, store_path
from tests.extraction.fakes import FakeEncoder, make_corpus
from tests.store.stores import tree_digest


@pytest.mark.parametrize(
    ("text", "total", "expected"),
    [("1%", 535, 6), ("1%", 10, 1), ("0%", 10, 0), ("100%", 7, 7), ("0", 99, 0), ("20", 5, 20), (" 2.5% ", 100, 3)],
)
def test_numbers_and_shares(text: str, total: int, expected: int) -> None:
    assert parse_max_failures(text, total) == expected


@pytest.mark.parametrize("text", ["", "%", "-1", "1.5", "101%", "-1%", "nan", "inf", "many", "1%%", "nan%"])
def test_what_is_neither(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--max-failures is .*a number of recordings, such as 20, or a share"):
        parse_max_failures(text, 100)


def test_the_message_lists_reasons_by_kind() -> None:
    limit = FailureLimit(allowed=3, failed={"a": "a.wav is empty (0 bytes). Get the file again."}, total=100)
    limit.add({"b": "b.wav is empty (0 bytes). Get the file again.", "c": "c.wav does not exist."})
    with pytest.raises(FailuresError) as caught:
        limit.add({"d": "The embedding by fake is not finite (NaN or infinite)."})
    message = str(caught.value)
    assert "4 of 100 recordings failed, more than the 3 that may" in message
    assert "2 × a: a.wav is empty" in message
    assert "c: c.wav does not exist." in message
    assert "d: The embedding by fake is not finite" in message
    assert "--retry-failed" in message


def test_earlier_failures_alone_do_not_stop_a_run_that_finds_no_more() -> None:
    limit = FailureLimit(allowed=0, failed={"a": "x"}, total=2)
    limit.add({})
    assert limit.count == 1


def test_a_run_is_stopped_and_can_be_continued(tmp_path: Path) -> None:
    manifest = make_corpus(tmp_path / "corpus", count=20, odd={5: b"", 6: np.zeros(80), 13: None})
    straight = extract_corpus(manifest, FakeEncoder(), cache_dir=tmp_path / "straight", block_rows=4)
    with pytest.raises(FailuresError, match=r"2 of 20 recordings failed, more than the 1"):
        extract_corpus(manifest, FakeEncoder(), cache_dir=tmp_path, block_rows=4, max_failures=1)
    path = store_path(tmp_path, "toy", "fake")
    todo, done, failed = open_store(path, complete=False).counts
    assert failed == 2
    assert done >= 6
    assert todo > 0
    with pytest.raises(FailuresError, match=r"3 of 20 recordings failed, more than the 2"):
        extract_corpus(manifest, FakeEncoder(), cache_dir=tmp_path, block_rows=4, max_failures=2)
    extract_corpus(manifest, FakeEncoder(), cache_dir=tmp_path, block_rows=4, max_failures=3)
    assert tree_digest(path) == tree_digest(straight.path)


def test_recordings_that_were_mended_are_tried_again(tmp_path: Path) -> None:
    make_corpus(tmp_path / "corpus", count=20, odd={5: b"", 13: None})
    manifest = make_corpus(tmp_path / "corpus", count=20, odd={5: b"", 13: None})
    store = extract_corpus(manifest, FakeEncoder(), cache_dir=tmp_path, block_rows=4)
    assert store.counts == (0, 18, 2)
    make_corpus(tmp_path / "corpus", count=20)
    encoder = FakeEncoder()
    assert extract_corpus(manifest, encoder, cache_dir=tmp_path, block_rows=4).counts == (0, 18, 2)
    assert encoder.batches == []
    retried = extract_corpus(manifest, encoder, cache_dir=tmp_path, block_rows=4, retry_failed=True)
    assert retried.counts == (0, 20, 0)
    assert sum(encoder.batches) == 8  # two blocks
    clean = extract_corpus(manifest, FakeEncoder(), cache_dir=tmp_path / "clean", block_rows=4)
    assert tree_digest(retried.path) == tree_digest(clean.path)


def test_a_write_that_fails_behind_the_model_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = make_corpus(tmp_path / "corpus", count=20)
    write = StoreWriter.write_block

    def fail_at_two(writer: StoreWriter, block: int, *rest: object) -> None:
        if block == 2:
            raise StorageError("The disk is full.")
        write(writer, block, *rest)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(StoreWriter, "write_block", fail_at_two)
        with pytest.raises(StorageError, match="The disk is full"):
            extract_corpus(manifest, FakeEncoder(), cache_dir=tmp_path, block_rows=4)
    assert open_store(store_path(tmp_path, "toy", "fake"), complete=False).counts == (12, 8, 0)
    assert extract_corpus(manifest, FakeEncoder(), cache_dir=tmp_path, block_rows=4).is_complete
