"""A corpus through a recogniser: blocks, resume, failures, conditions, batches. The recogniser is a cheap one, and the tiny CTC."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from pipelines.audio.conditions import parse_condition, prepare_condition
from pipelines.audio.decode import Waveform
from pipelines.corpora.manifest import Manifest
from pipelines.encoders.recognition import Recogniser, load_recogniser
from pipelines.encoders.windows import Window, plan_windows
from pipelines.errors import AudioError, FailuresError, ProvenanceError
from pipelines.extraction import transcribe
from pipelines.extraction.decoding import DecodedClip
from pipelines.extraction.transcribe import transcribe_clips, transcribe_corpus
from pipelines.store.transcripts import Transcripts
from tests.extraction.fakes import RATE, FakeEncoder, make_corpus, sine


class FakeRecogniser(Recogniser):
    """Hears how loud every frame of 10 ms is, as a letter.

    Attributes:
        batches: pieces of every batch that was heard.
        fail_at: raise at this batch (counted from 0); never, if None.
    """

    decoding = "levels 1"

    def __init__(self, *, language: str = "en", fail_at: int | None = None) -> None:
        encoder = FakeEncoder()
        super().__init__(spec=encoder.spec, weights=encoder.weights, encoder=encoder, language=language)
        self.batches: list[int] = []
        self.fail_at = fail_at

    def windows(self, samples: Tensor) -> list[Window]:
        return plan_windows(self.encoder, len(samples))

    def hear(self, batch: Sequence[Tensor]) -> list[Tensor | None]:
        if self.fail_at == len(self.batches):
            raise RuntimeError("the recogniser gave up")
        self.batches.append(len(batch))
        levels = [encoded["level"][:, 1] * 25 for encoded in self.encoder.encode(batch)]
        return [level.long() if bool(torch.isfinite(level).all()) else None for level in levels]

    def spell(self, heard: Sequence[Tensor], windows: Sequence[Window]) -> str:
        kept = [frames[window.first : window.last] for frames, window in zip(heard, windows, strict=True)]
        return "".join(chr(97 + number) for number in torch.cat(kept).tolist())


def run(manifest: Manifest, cache: Path, recogniser: Recogniser | None = None, **options: object) -> Transcripts:
    return transcribe_corpus(manifest, recogniser or FakeRecogniser(), cache_dir=cache, block_rows=4, **options)  # type: ignore[arg-type]


def contents(made: Transcripts) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(Path(str(made.path)).iterdir())}


def test_every_recording_has_its_text(tmp_path: Path) -> None:
    manifest = make_corpus(tmp_path / "data", count=10)
    told: list[tuple[int, int]] = []
    found = run(manifest, tmp_path, progress=lambda done: told.append((done.rows_done, done.rows_failed)))
    assert list(found.utterance_ids) == manifest.utterance_ids
    recogniser = FakeRecogniser()
    for number, text in enumerate(found.texts):
        samples = torch.from_numpy(sine(number).astype(np.float32))
        assert text == recogniser.recognise([samples])[0]
    assert len(set(found.texts)) > 5
    assert (told[0], told[-1]) == ((0, 0), (10, 0))
    made = found.provenance
    assert (made.model, made.condition, made.decoding, made.language) == ("fake", "clean", "levels 1", "en")
    assert made.manifest_digest == manifest.digest
    assert {"torch", "tokenizers", "soxr", "python"} <= set(made.versions)


def test_stopped_and_continued_is_bit_identical(tmp_path: Path) -> None:
    manifest = make_corpus(tmp_path / "data", count=10)
    whole = run(manifest, tmp_path / "a")
    with pytest.raises(RuntimeError, match="gave up"):
        run(manifest, tmp_path / "b", FakeRecogniser(fail_at=6))
    recogniser = FakeRecogniser()
    again = run(manifest, tmp_path / "b", recogniser)
    assert sum(recogniser.batches) < 10
    assert contents(whole) == contents(again)
    recogniser = FakeRecogniser(fail_at=0)
    run(manifest, tmp_path / "b", recogniser)  # nothing is left to do


@pytest.mark.parametrize(("seconds", "clips"), [(1e-3, 64), (1e9, 3), (1e9, 64)])
def test_batch_composition_does_not_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, clips: int
) -> None:
    manifest = make_corpus(tmp_path / "data", count=12)
    expected = run(manifest, tmp_path / "a")
    monkeypatch.setitem(transcribe.BATCH_S, "cpu", seconds)
    recogniser = FakeRecogniser()
    recogniser.clips_per_batch = clips
    assert run(manifest, tmp_path / "b", recogniser).texts == expected.texts
    assert max(recogniser.batches) <= clips


def test_groups_of_seconds_do_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = make_corpus(tmp_path / "data", count=12)
    expected = run(manifest, tmp_path / "a")
    monkeypatch.setattr(transcribe, "GROUP_S", 0.2)
    assert contents(run(manifest, tmp_path / "b")) == contents(expected)


def test_real_recogniser_batched_equals_alone() -> None:
    """The tiny CTC through the engine, threads and all."""
    recogniser = load_recogniser("wav2vec2-ctc-tiny", weights="random")
    clips = []
    for number in range(8):
        samples = np.random.default_rng(number).standard_normal(8000 + 997 * number).astype(np.float32) * 0.1
        clips.append(DecodedClip(Waveform(samples, len(samples) / 16000), ""))
    together = transcribe_clips(clips, recogniser)
    assert together == [transcribe_clips([clip], recogniser)[0] for clip in clips]
    assert len({row.text for row in together}) == 8


def test_broken_recordings_fail_alone_with_their_reason(tmp_path: Path) -> None:
    manifest = make_corpus(tmp_path / "data", count=10, odd={3: b"RIFF", 6: None})
    found = run(manifest, tmp_path)
    assert list(found.failures) == ["clip003", "clip006"]
    assert "clip006.wav" in found.failures["clip006"]
    assert str(tmp_path) not in found.failures["clip006"]
    assert len(found.by_id) == 8
    sound = make_corpus(tmp_path / "data", count=10)
    assert sound.digest == manifest.digest
    assert len(run(sound, tmp_path).by_id) == 8  # not tried again by itself
    assert len(run(sound, tmp_path, retry_failed=True).by_id) == 10


def test_output_that_is_not_finite_fails_alone(tmp_path: Path) -> None:
    manifest = make_corpus(tmp_path / "data", count=6, odd={2: sine(2, level=1.0)})
    found = run(manifest, tmp_path)
    assert found.failures == {"clip002": "The output of fake is not finite (NaN or infinite)."}
    assert np.isfinite([row.duration_s for row in found.rows]).all()  # it could be decoded, after all
    with pytest.raises(AudioError, match="Recording 1 of the batch: the output of 'fake' is not finite"):
        FakeRecogniser().recognise([torch.zeros(800), torch.ones(800)])


def test_too_many_failures_stop_the_run(tmp_path: Path) -> None:
    manifest = make_corpus(tmp_path / "data", count=10, odd={3: b"RIFF", 6: None})
    with pytest.raises(FailuresError, match="2 of 10 recordings failed, more than the 1 that may"):
        run(manifest, tmp_path, max_failures=1)


def test_a_corpus_that_is_not_there_is_not_taken_for_broken_files(tmp_path: Path) -> None:
    manifest = make_corpus(tmp_path / "data", count=10)
    (tmp_path / "data").rename(tmp_path / "away")
    with pytest.raises(AudioError, match=r"None of the first 4 recordings can be used.*Check --data-root"):
        run(manifest, tmp_path)
    (tmp_path / "away").rename(tmp_path / "data")
    with pytest.raises(RuntimeError, match="gave up"):
        run(manifest, tmp_path, FakeRecogniser(fail_at=6))
    (tmp_path / "data").rename(tmp_path / "away")
    with pytest.raises(AudioError, match=r"None of the next 4 recordings can be used, and .* is not there any more"):
        run(manifest, tmp_path)


def test_conditions_have_transcripts_of_their_own(tmp_path: Path) -> None:
    manifest = make_corpus(tmp_path / "data", count=6)
    clean = run(manifest, tmp_path)
    noisy = run(manifest, tmp_path, distortion=prepare_condition(parse_condition("white@20dB")))
    assert noisy.provenance.condition == "white@20dB"
    assert noisy.provenance.condition_digest
    assert Path(str(noisy.path)).name == "white@20dB.asr"
    assert noisy.texts != clean.texts
    assert "scipy" in noisy.provenance.versions


def test_long_recordings_are_heard_in_windows(tmp_path: Path) -> None:
    manifest = make_corpus(tmp_path / "data", count=2, odd={1: sine(1, seconds=2.5)})
    recogniser = FakeRecogniser()
    recogniser.encoder.longest_s, recogniser.encoder.context_s = 1.0, 0.1
    found = run(manifest, tmp_path, recogniser)
    assert sum(recogniser.batches) > 3
    assert len(found.by_id["clip001"]) == round(2.5 * RATE) // 80
    assert found.by_id["clip001"] == run(manifest, tmp_path / "whole").by_id["clip001"]


def test_another_language_is_refused(tmp_path: Path) -> None:
    manifest = make_corpus(tmp_path / "data", count=3)
    run(manifest, tmp_path)
    with pytest.raises(ProvenanceError, match=r"language: they have en, asked for is de.*--anew"):
        run(manifest, tmp_path, FakeRecogniser(language="de"))
    assert run(manifest, tmp_path, FakeRecogniser(language="de"), anew=True).provenance.language == "de"
