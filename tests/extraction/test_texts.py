"""Texts through the engine: blocks, resume, provenance, missing transcripts, batches."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines.corpora.manifest import Manifest, manifest_from_rows
from pipelines.encoders.base import Encoder
from pipelines.encoders.catalogue import load_encoder
from pipelines.encoders.text import TextEncoder
from pipelines.errors import AudioError, ConfigError, ManifestError, ProvenanceError, StoreError, UtteranceError
from pipelines.extraction import worker
from pipelines.extraction.engines.local import extract_corpus
from pipelines.extraction.engines.processes import extract_in_processes
from pipelines.extraction.recheck import recheck_rows
from pipelines.extraction.single_files import embed_file
from pipelines.extraction.texts import corpus_texts, manual_texts, parse_transcripts, recognised_texts
from pipelines.extraction.worker import encode_clips, token_clips
from pipelines.store.embeddings import EmbeddingStore, FrameSpec, store_digest, verify_store
from tests.extraction.fakes import FakeEncoder, make_corpus
from tests.store.test_transcripts import provenance, write

SENTENCE = "what a day this was and nobody knew why it rained so much in the old town"
WORDS = SENTENCE.split()


def corpus(count: int = 20, texts: Mapping[int, str] | None = None, name: str = "toy") -> Manifest:
    """A corpus without recordings: nothing of it is read but its transcripts."""
    rows = []
    for number in range(count):
        text = (texts or {}).get(number, " ".join(WORDS[: 1 + number * 7 % len(WORDS)]) + f" {number}")
        rows.append(
            {"utterance_id": f"u{number:02d}", "path": "gone.wav", "speaker": f"s{number % 3}", "transcript": text}
        )
    return manifest_from_rows(name, rows)


@pytest.fixture(scope="module")
def encoder() -> TextEncoder:
    found = load_encoder("bert-tiny", weights="random")
    assert isinstance(found, TextEncoder)
    return found


def contents(store: EmbeddingStore) -> dict[str, bytes]:
    root = Path(str(store.path))
    return {str(file.relative_to(root)): file.read_bytes() for file in sorted(root.rglob("*")) if file.is_file()}


def test_rows_are_the_pooled_frames_of_their_texts(encoder: TextEncoder, tmp_path: Path) -> None:
    manifest = corpus()
    frames = FrameSpec(("layer_02",), "float32")
    store = extract_corpus(manifest, encoder, cache_dir=tmp_path, block_rows=8, frames=frames)
    assert store.path == tmp_path / "toy" / "bert-tiny" / "clean.zarr"
    ids = manifest.utterance_ids
    found = store.features(ids, representation="layer_02", pool="mean+std")
    kept = store.frames(ids, representation="layer_02")
    for row, text, own in zip(found, manifest.table["transcript"], kept, strict=True):
        (alone,) = encoder.encode_texts([text])
        expected = alone["layer_02"].double()
        pooled = torch.cat([expected.mean(0), expected.std(0, correction=0)])
        np.testing.assert_allclose(row, pooled, atol=1e-5)
        np.testing.assert_allclose(own, alone["layer_02"], atol=1e-5)
    assert store.num_frames.tolist() == [len(encoder.tokens(text)) for text in manifest.table["transcript"]]
    assert (store.duration_s == 0).all()
    assert verify_store(store.path) == []


def test_provenance_says_that_it_is_text(encoder: TextEncoder, tmp_path: Path) -> None:
    manifest = corpus()
    made = extract_corpus(manifest, encoder, cache_dir=tmp_path).provenance
    assert (made.family, made.condition, made.sample_rate_hz, made.resampler) == ("LEX", "clean", 0, "none: text")
    assert made.condition_digest == manual_texts(manifest).digest
    assert "tokenizers" in made.versions
    assert "soxr" not in made.versions


def test_resumed_is_bit_identical(encoder: TextEncoder, tmp_path: Path) -> None:
    manifest = corpus(40)
    whole = extract_corpus(manifest, encoder, cache_dir=tmp_path / "a", block_rows=8)
    for shard in ((1, 2), (0, 2)):
        parts = extract_corpus(manifest, encoder, cache_dir=tmp_path / "b", block_rows=8, shard=shard)
    assert contents(whole) == contents(parts)


@pytest.mark.slow
def test_in_processes_is_bit_identical(encoder: TextEncoder, tmp_path: Path) -> None:
    manifest = corpus(40)
    whole = extract_corpus(manifest, encoder, cache_dir=tmp_path / "a", block_rows=8)
    load = partial(load_encoder, "bert-tiny", weights="random")
    crew = extract_in_processes(manifest, load, devices=["cpu", "cpu"], cache_dir=tmp_path / "c", block_rows=8)
    assert store_digest(crew.path) == store_digest(whole.path)


@pytest.mark.parametrize("tokens", [2, 30, 10**6])
def test_batch_composition_does_not_matter(encoder: TextEncoder, monkeypatch: pytest.MonkeyPatch, tokens: int) -> None:
    texts = [*map(str, corpus().table["transcript"]), "", "word " * 700]
    clips = token_clips(texts, [""] * len(texts), encoder)
    expected = encode_clips(clips, encoder)
    monkeypatch.setitem(worker.BATCH_TOKENS, "cpu", tokens)
    told: list[tuple[int, float]] = []
    result = encode_clips(clips, encoder, done=lambda rows, amount: told.append((rows, amount)))
    np.testing.assert_allclose(result.mean, expected.mean, atol=2e-6)
    assert result.num_frames.tolist() == [len(encoder.tokens(text)) for text in texts]
    assert result.num_frames[-2] == 2
    assert sum(rows for rows, _ in told) == len(texts)
    assert round(sum(amount for _, amount in told)) == result.num_frames.sum()


def test_changed_texts_are_refused(encoder: TextEncoder, tmp_path: Path) -> None:
    """By the manifest's digest by hand; by the texts' own where a recogniser has heard other words."""
    manifest = corpus(10)
    made = provenance(manifest_digest=manifest.digest)
    write(tmp_path, made=made, anew=True)
    texts = recognised_texts(manifest, model="hearer", cache_dir=tmp_path)
    store = extract_corpus(manifest, encoder, cache_dir=tmp_path, texts=texts, max_failures=1)
    assert store.path == tmp_path / "toy" / "bert-tiny" / "asr:hearer.zarr"
    assert store.failures() == {"u03": "hearer has no transcript of it: clip.wav is silent."}
    assert store.counts == (0, 9, 1)
    write(tmp_path, made=made, anew=True, ids=[*manifest.utterance_ids[:-1], "u10"])
    with pytest.raises(StoreError, match=r"are of other utterances than the manifest.*--anew"):
        recognised_texts(manifest, model="hearer", cache_dir=tmp_path)
    changed = type(texts)(texts.condition, "0" * 64, texts.texts, texts.reasons, "hearer", "random")
    with pytest.raises(ProvenanceError, match=r"condition_digest: the store has .*, asked for is 000000000000"):
        extract_corpus(manifest, encoder, cache_dir=tmp_path, texts=changed, max_failures=1)
    with pytest.raises(ProvenanceError, match="manifest_digest"):
        extract_corpus(corpus(10, {0: "other"}), encoder, cache_dir=tmp_path, texts=texts, max_failures=1)


def test_an_empty_text_is_a_text_and_a_missing_one_is_not(encoder: TextEncoder, tmp_path: Path) -> None:
    manifest = corpus(10)
    write(tmp_path, made=provenance(manifest_digest=manifest.digest))
    texts = recognised_texts(manifest, model="hearer", cache_dir=tmp_path)
    store = extract_corpus(manifest, encoder, cache_dir=tmp_path, texts=texts)
    assert store.num_frames[[3, 4]].tolist() == [0, 2]
    features = store.features(["u04"], representation="layer_02", pool="mean")
    assert np.abs(features).min() > 0
    with pytest.raises(UtteranceError, match=r"u03 \(hearer has no transcript of it"):
        store.features(["u03"], representation="layer_02", pool="mean")


def test_missing_transcripts_in_the_manifest(encoder: TextEncoder, tmp_path: Path) -> None:
    some, none = corpus(texts={2: "", 5: ""}), corpus(texts=dict.fromkeys(range(20), ""))
    with pytest.raises(
        ManifestError,
        match=r"2 of 20 utterances of 'toy' have no transcript in the manifest, more than the 1 that may be left out: u02, u05\."
        r" .*`hyfuse transcribe --corpus toy --model whisper`.*`--transcripts asr:whisper`.*`--max-failures 2`",
    ):
        extract_corpus(some, encoder, cache_dir=tmp_path, max_failures=1)
    assert not (tmp_path / "toy").exists()
    with pytest.raises(
        ManifestError, match=r"None of the 20 utterances of 'toy' has a transcript in the manifest: u00, u01, u02, …"
    ):
        extract_corpus(none, encoder, cache_dir=tmp_path)
    store = extract_corpus(some, encoder, cache_dir=tmp_path, max_failures=2)
    assert store.failures() == dict.fromkeys(("u02", "u05"), "The manifest has no transcript of it.")


def test_missing_transcripts_by_a_recogniser(encoder: TextEncoder, tmp_path: Path) -> None:
    manifest = corpus(10)
    write(tmp_path, made=provenance(manifest_digest=manifest.digest, condition="white@5dB"))
    texts = recognised_texts(manifest, model="hearer", condition="white@5dB", cache_dir=tmp_path)
    assert (texts.condition, texts.asr_model, texts.asr_weights) == ("asr:hearer+white@5dB", "hearer", "random")
    with pytest.raises(
        UtteranceError,
        match=r"1 of 10 utterances of 'toy' have no transcript by hearer, .*: u03\. The first one: .*silent\. .*"
        r"`hyfuse transcribe --corpus toy --model hearer --condition white@5dB` again with --retry-failed",
    ):
        extract_corpus(manifest, encoder, cache_dir=tmp_path, texts=texts, max_failures=0)


def test_sources_of_text(tmp_path: Path) -> None:
    manifest = corpus(3)
    assert corpus_texts(manifest, cache_dir=tmp_path) == manual_texts(manifest)
    assert parse_transcripts("asr:whisper") == "whisper"
    with pytest.raises(ConfigError, match=r"--transcripts is 'whisper'; expected manual .* or asr:MODEL"):
        corpus_texts(manifest, transcripts="whisper", cache_dir=tmp_path)
    with pytest.raises(LookupError, match=r"Unknown recogniser 'wisper'\. Did you mean 'whisper'"):
        corpus_texts(manifest, transcripts="asr:wisper", cache_dir=tmp_path)
    with pytest.raises(ConfigError, match="by hand are the same under every condition"):
        corpus_texts(manifest, condition="white@5dB", cache_dir=tmp_path)
    with pytest.raises(StoreError, match="no transcripts of 'toy' by whisper"):
        corpus_texts(manifest, transcripts="asr:whisper", cache_dir=tmp_path)


def test_texts_and_recordings_are_not_mixed_up(encoder: TextEncoder, tmp_path: Path) -> None:
    manifest = make_corpus(tmp_path / "data", count=3)
    with pytest.raises(ConfigError, match=r"'fake' encodes recordings, not texts"):
        extract_corpus(manifest, FakeEncoder(), cache_dir=tmp_path, texts=manual_texts(corpus(3)))
    with pytest.raises(ConfigError, match=r"'bert-tiny' encodes texts, not recordings"):
        embed_file(tmp_path / "data" / "clip000.wav", encoder)
    with pytest.raises(TypeError, match="fake takes no texts"):
        token_clips(["a"], [""], FakeEncoder())
    with pytest.raises(AudioError):
        encoder.encode([torch.zeros(50)])


def test_rows_are_computed_again_from_the_texts(encoder: TextEncoder, tmp_path: Path) -> None:
    manifest = corpus()
    store = extract_corpus(manifest, encoder, cache_dir=tmp_path)
    texts = manual_texts(manifest)
    found = recheck_rows(store, manifest, encoder, sample=20, texts=texts)
    assert (found.rows, found.problems) == (20, ())
    assert found.largest <= 1e-5
    other = manual_texts(corpus(texts={3: "other words"}))
    with pytest.raises(ProvenanceError, match="condition_digest"):
        recheck_rows(store, manifest, encoder, sample=5, texts=other)


def test_an_encoder_of_text_can_be_sent_for(tmp_path: Path) -> None:
    loaded: Encoder = load_encoder("roberta-tiny", weights="random")
    store = extract_corpus(corpus(4), loaded, cache_dir=tmp_path)
    assert store.provenance.representations == ("layer_00", "layer_01", "layer_02")
