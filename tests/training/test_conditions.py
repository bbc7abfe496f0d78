"""Rows over conditions: the same utterances in every block, numbers as they lie in the stores, mistakes with their commands."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipelines.corpora.manifest import Manifest
from pipelines.errors import StoreError, UnknownNameError, UtteranceError
from pipelines.store.embeddings import open_store, store_path
from pipelines.training.conditions import (
    block_rows,
    check_stores,
    extract_command,
    load_conditions,
    place_of,
    write_blocks,
)
from tests.studies.noisy_corpus import EMOTIONS, make_noisy_corpus, write_store

NOISY = "noise:esc10@5dB"
STORES = [("ssl", "clean"), ("ssl", NOISY), ("words", "clean")]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    cache = tmp_path_factory.mktemp("conditions") / "cache"
    return cache, make_noisy_corpus(cache, speakers=3, takes=2)


def test_blocks_hold_what_the_stores_hold(made: tuple[Path, Manifest], tmp_path: Path) -> None:
    cache, manifest = made
    dataset, sources = load_conditions(manifest, STORES, cache_dir=cache, classes=EMOTIONS)
    assert list(sources) == STORES
    assert set(dataset.sources) == {"ssl", "words"}
    assert dataset.sources["ssl"] == sources["ssl", "clean"]
    n = len(dataset.utterance_ids)
    assert n == 18
    order = [sources[STORES[0]], sources[STORES[1]], sources[STORES[0]]]
    stored = write_blocks(order, dataset.utterance_ids, folder=tmp_path, name="x")
    matrix = stored.tensor().numpy()
    assert matrix.shape == stored.shape == (3 * n, 8)
    for block, (encoder, condition) in enumerate([STORES[0], STORES[1], STORES[0]]):
        store = open_store(store_path(cache, "toy", encoder, condition))
        own = store.features(list(dataset.utterance_ids), representation="only", pool="mean+std")
        np.testing.assert_array_equal(matrix[block * n : (block + 1) * n], own)
    assert (matrix[:n] != matrix[n : 2 * n]).any()
    stored.remove()
    assert list(tmp_path.iterdir()) == []


def test_rows_and_places_are_each_others_reverse() -> None:
    rows = block_rows(np.array([4, 1], dtype=np.int64), [2, 0], 7)
    assert rows.tolist() == [18, 15, 4, 1]
    block, utterance = place_of(rows, 7)
    assert block.tolist() == [2, 2, 0, 0]
    assert utterance.tolist() == [4, 1, 4, 1]


def test_what_fails_in_one_store_is_left_out_of_all_and_counted(made: tuple[Path, Manifest], tmp_path: Path) -> None:
    manifest = make_noisy_corpus(tmp_path, speakers=3, takes=2)
    values = np.ones((18, 4), np.float32)
    write_store(tmp_path, manifest, "late", "RLR", NOISY, values, failed=(3, 5))
    dataset, _ = load_conditions(
        manifest, [("words", "clean"), ("late", NOISY)], cache_dir=tmp_path, dimensions=("valence",)
    )
    assert dataset.left_out == {f"failed in late under {NOISY}": 2}
    assert dataset.utterance_ids == tuple(name for row, name in enumerate(manifest.utterance_ids) if row not in (3, 5))
    assert len(dataset.values) == len(dataset.labels) == len(dataset.speakers) == 16
    expected = manifest.table["valence"].to_numpy(dtype=np.float32)[[r for r in range(18) if r not in (3, 5)]]
    np.testing.assert_array_equal(dataset.values[:, 0], expected)
    assert {manifest.utterance_ids[3], manifest.utterance_ids[5]} == dataset.failed
    write_store(tmp_path, manifest, "gone", "RLR", NOISY, values, failed=tuple(range(9)))
    write_store(tmp_path, manifest, "lost", "RLR", NOISY, values, failed=tuple(range(9, 18)))
    with pytest.raises(UtteranceError, match=f"No utterance of corpus 'toy' is in all.*9 failed in gone under {NOISY}"):
        load_conditions(manifest, [("gone", NOISY), ("lost", NOISY)], cache_dir=tmp_path, dimensions=("valence",))
    fear = tuple(row for row, name in enumerate(manifest.utterance_ids) if "fear" in name)
    write_store(tmp_path, manifest, "a", "RLR", NOISY, values, failed=fear[:3])
    write_store(tmp_path, manifest, "b", "RLR", NOISY, values, failed=fear[3:])
    with pytest.raises(UtteranceError, match="No utterance of fear of corpus 'toy' is in all of the stores"):
        load_conditions(manifest, [("a", NOISY), ("b", NOISY)], cache_dir=tmp_path, classes=EMOTIONS)


def test_missing_stores_are_listed_with_their_commands(made: tuple[Path, Manifest]) -> None:
    cache, manifest = made
    wanted = [
        *STORES,
        ("ssl", "pink@3dB"),
        ("words", "asr:whisper+pink@3dB"),
        ("wavlm-tiny", "clean"),
        ("ssl", "pink@3dB"),
    ]
    with pytest.raises(StoreError, match="3 of the 6 stores of corpus 'toy'") as raised:
        load_conditions(manifest, wanted, cache_dir=cache, classes=EMOTIONS)
    for command in (
        "`hyfuse extract --model ssl --corpus toy --condition pink@3dB`",
        "`hyfuse extract --model words --corpus toy --transcripts asr:whisper --condition pink@3dB`",
        "`hyfuse extract --model wavlm-tiny --corpus toy --weights random`",
    ):
        assert command in str(raised.value)
    check_stores("toy", STORES, cache_dir=cache)
    assert (
        extract_command("c", "bert", "asr:whisper")
        == "hyfuse extract --model bert --corpus c --transcripts asr:whisper"
    )


def test_an_encoder_that_is_not_asked_for_has_no_representation(made: tuple[Path, Manifest]) -> None:
    cache, manifest = made
    with pytest.raises(UnknownNameError, match="'codec'"):
        load_conditions(manifest, STORES, cache_dir=cache, classes=EMOTIONS, representations={"codec": "only"})


def test_stores_of_different_width_have_no_common_matrix(tmp_path: Path) -> None:
    manifest = make_noisy_corpus(tmp_path, speakers=3, takes=2)
    write_store(tmp_path, manifest, "ssl", "RLR", "pink@3dB", np.ones((18, 5), np.float32))
    stores = [("ssl", "clean"), ("ssl", "pink@3dB")]
    dataset, sources = load_conditions(manifest, stores, cache_dir=tmp_path, classes=EMOTIONS)
    with pytest.raises(StoreError, match="differ in their width"):
        write_blocks(list(sources.values()), dataset.utterance_ids, folder=tmp_path, name="x")
