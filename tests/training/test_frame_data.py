"""Frames from stores to batches: the file equals the store, scalers equal numpy's, batches hold every row once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipelines.errors import ConfigError, ManifestError, ProvenanceError, StoreError, UnknownNameError
from pipelines.store.embeddings import store_path
from pipelines.training.frame_data import batches_by_length, frame_files, load_frame_dataset, open_frame_source
from tests.training.frames import ASR, frame_file, make_frame_corpus, write_frames


def test_a_file_holds_the_frames_of_the_store(tmp_path: Path) -> None:
    manifest = make_frame_corpus(tmp_path / "cache")
    opened = {
        "acoustic": open_frame_source(manifest, cache_dir=tmp_path / "cache", encoder="voice"),
        "text": open_frame_source(manifest, cache_dir=tmp_path / "cache", encoder="words", condition=f"asr:{ASR}"),
        "again": open_frame_source(manifest, cache_dir=tmp_path / "cache", encoder="voice"),
        "halved": open_frame_source(manifest, cache_dir=tmp_path / "cache", encoder="voice", stride=2),
    }
    dataset = load_frame_dataset(manifest, opened, classes=("sadness", "anger"))
    assert dataset.classes == ("sadness", "anger")
    assert set(dataset.labels) == {0, 1}
    stores = {name: store for name, (_, store) in opened.items()}
    with frame_files(dataset, stores, tmp_path) as files:
        assert files["again"] is files["acoustic"]
        assert len(list(tmp_path.glob(".writing-*"))) == 6  # three files with their sums
        expected = list(stores["acoustic"].frames(dataset.utterance_ids, representation="layer_01"))
        mapped = files["acoustic"].open()
        assert np.array_equal(mapped, np.concatenate(expected))
        assert files["acoustic"].lengths.tolist() == [len(one) for one in expected]
        assert files["text"].digest != files["acoustic"].digest
        first = files["halved"].open()[: files["halved"].lengths[0]]
        pairs = [expected[0][at : at + 2].mean(axis=0) for at in range(0, len(expected[0]), 2)]
        np.testing.assert_allclose(first, pairs, rtol=1e-6)
        rows = np.array([3, 0, 7])
        scaler = files["acoustic"].scaler(rows)
        chosen = np.concatenate([expected[row] for row in rows]).astype(np.float64)
        np.testing.assert_allclose(scaler.mean, chosen.mean(axis=0), rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(scaler.std, chosen.std(axis=0), rtol=1e-5)
        values, valid = files["acoustic"].batch(mapped, rows, scaler)
        assert valid.sum(dim=1).tolist() == [len(expected[row]) for row in rows]
        assert not values[~valid].any()
        standard = (expected[0] - scaler.mean.numpy()) / scaler.std.numpy()
        np.testing.assert_allclose(values[1, : len(expected[0])], standard, rtol=1e-5, atol=1e-6)
    assert not list(tmp_path.glob(".writing-*"))


def test_a_constant_feature_stays_as_it_is(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).normal(size=(5, 3))
    frames[:, 1] = 7.0
    frames[:, 2] = 0.0
    file = frame_file(tmp_path / "x.frames", [frames[:2], frames[2:]])
    assert file.scaler(np.array([0, 1])).std[1:].tolist() == [1.0, 1.0]


def test_batches_hold_every_row_once_and_are_of_similar_length() -> None:
    lengths = np.random.default_rng(0).integers(1, 500, 1000)
    rows = np.arange(0, 1000, 2)
    for stream in (None, np.random.default_rng(1)):
        batches = batches_by_length(rows, lengths, batch_size=16, stream=stream)
        assert sorted(np.concatenate(batches).tolist()) == rows.tolist()
        assert max(map(len, batches)) == 16
        padded = sum(len(batch) * int(lengths[batch].max()) for batch in batches)
        assert padded < 1.1 * lengths[rows].sum()
    one, other = (batches_by_length(rows, lengths, batch_size=16, stream=np.random.default_rng(s)) for s in (1, 2))
    assert [batch.tolist() for batch in one] != [batch.tolist() for batch in other]


def test_what_failed_is_left_out_and_counted(tmp_path: Path) -> None:
    manifest = make_frame_corpus(tmp_path)
    sequences = [np.ones((3, 6), np.float32) * row for row in range(len(manifest))]
    write_frames(tmp_path, manifest, "broken", sequences, failed=(0, 5))
    opened = {"acoustic": open_frame_source(manifest, cache_dir=tmp_path, encoder="broken")}
    dataset = load_frame_dataset(manifest, opened, classes=("anger", "sadness"))
    assert len(dataset.utterance_ids) == len(manifest) - 2
    assert dataset.left_out == {"failed in broken under clean": 2}
    assert dataset.failed == {manifest.utterance_ids[0], manifest.utterance_ids[5]}


def test_dimensions_have_values_on_their_scale(tmp_path: Path) -> None:
    manifest = make_frame_corpus(tmp_path)
    opened = {"acoustic": open_frame_source(manifest, cache_dir=tmp_path, encoder="voice")}
    dataset = load_frame_dataset(manifest, opened, dimensions=("valence",))
    assert (dataset.target, dataset.dimensions, dataset.num_outputs) == ("dimensions", ("valence",), 1)
    assert dataset.truth[:, 0].tolist() == pytest.approx(manifest.table["valence"].tolist())
    with pytest.raises(ManifestError, match=r"no values of arousal; it has valence. .*`--dimensions valence`"):
        load_frame_dataset(manifest, opened, dimensions=("activation",))
    with pytest.raises(ConfigError, match="means nothing to --target dimensions"):
        load_frame_dataset(manifest, opened, dimensions=("valence",), classes=("anger", "sadness"))


def test_constant_values_are_refused(tmp_path: Path) -> None:
    manifest = make_frame_corpus(tmp_path, valence=lambda _: 3.0)
    opened = {"acoustic": open_frame_source(manifest, cache_dir=tmp_path, encoder="voice")}
    with pytest.raises(
        ManifestError, match=r"valence, corpus 'toy' has the same value everywhere .* CCC is not defined"
    ):
        load_frame_dataset(manifest, opened, dimensions=("valence",))


def test_mistakes_name_the_command(tmp_path: Path) -> None:
    manifest = make_frame_corpus(tmp_path)
    command = r"`hyfuse extract --model bert --corpus toy --transcripts asr:whisper --condition babble@5dB --frames"
    with pytest.raises(StoreError, match=r"no store of bert under 'asr:whisper\+babble@5dB'.*" + command):
        open_frame_source(manifest, cache_dir=tmp_path, encoder="bert", condition="asr:whisper+babble@5dB")
    write_frames(tmp_path, manifest, "pooled", None)
    command = r"`hyfuse cache remove toy/pooled/clean .*--model pooled --corpus toy --frames"
    with pytest.raises(StoreError, match=r"keeps no frames, .* " + command):
        open_frame_source(manifest, cache_dir=tmp_path, encoder="pooled")
    with pytest.raises(StoreError, match="--model voice-tiny --corpus toy --frames --weights random"):
        open_frame_source(manifest, cache_dir=tmp_path, encoder="voice-tiny")
    with pytest.raises(UnknownNameError, match=r"layer_00.*--frames-of layer_00"):
        open_frame_source(manifest, cache_dir=tmp_path, encoder="voice", representation="layer_00")
    other = make_frame_corpus(tmp_path / "other", takes=5)
    with pytest.raises(ProvenanceError, match="manifest_digest"):
        open_frame_source(other, cache_dir=tmp_path, encoder="voice")
    opened = {"acoustic": open_frame_source(manifest, cache_dir=tmp_path, encoder="voice")}
    with pytest.raises(UnknownNameError, match="class of corpus 'toy' 'joy'"):
        load_frame_dataset(manifest, opened, classes=("anger", "joy"))
    with pytest.raises(ConfigError, match="At least two classes"):
        load_frame_dataset(manifest, opened, classes=("anger",))


def test_a_damaged_store_leaves_no_files(tmp_path: Path) -> None:
    manifest = make_frame_corpus(tmp_path)
    source, store = open_frame_source(manifest, cache_dir=tmp_path, encoder="voice")
    dataset = load_frame_dataset(manifest, {"acoustic": (source, store)}, classes=("anger", "sadness"))
    for path in (store_path(tmp_path, "toy", "voice") / "frames").rglob("c/0/0"):
        path.write_bytes(b"nothing")
    folder = tmp_path / "run"
    folder.mkdir()
    with pytest.raises(StoreError, match="damaged"), frame_files(dataset, {"acoustic": store}, folder):
        raise AssertionError("unpacked what cannot be read")
    assert not list(folder.iterdir())
    assert replace(source, stride=2).title == "voice layer_01 (clean, 2 averaged)"
