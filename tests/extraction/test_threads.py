"""The store is the same whatever the number of threads."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from pipelines.encoders.catalogue import load_encoder
from pipelines.extraction.engines.local import extract_corpus
from tests.extraction.fakes import make_corpus


@pytest.fixture(autouse=True)
def _threads_are_put_back() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


# Products of 32 columns, as the tiny sizes have, are those that MKL and oneDNN split and lay out by the number of threads.
@pytest.mark.parametrize("name", ["wavlm-tiny", "xvector-tiny", "encodec-tiny", "soundstream-tiny"])
def test_the_store_does_not_depend_on_the_number_of_threads(tmp_path: Path, name: str) -> None:
    manifest = make_corpus(tmp_path / "corpus", count=12)
    chunks = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        store = extract_corpus(manifest, load_encoder(name, weights="random"), cache_dir=tmp_path / f"c{threads}")
        assert torch.get_num_threads() == threads  # left as it was found
        chunks.append({
            path.relative_to(store.path): path.read_bytes() for path in store.path.rglob("*") if path.is_file()
        })  # fmt: skip
    assert chunks[0] == chunks[1]
