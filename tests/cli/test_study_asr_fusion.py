"""``hyfuse study asr-fusion`` from recordings to the outcome, and the mistakes that only the command line can make."""

from __future__ import annotations

import csv
from pathlib import Path

from pipelines.studies.outcome import read_outcome
from tests.cli.conftest import Runner

STUDY = (
    "study", "asr-fusion", "--corpus", "my", "--acoustic", "wavlm-tiny", "--asr", "wav2vec2-ctc-tiny", "--text", "minilm-tiny",
    "--heads", "early,cross", "--protocol", "speaker-3fold", "--epochs", "1", "--hidden-dim", "16", "--attention-heads", "2",
    "--stride", "2", "--workers", "1",
)  # fmt: skip


def _with_transcripts(manifest: Path) -> None:
    with manifest.open(encoding="utf-8") as handle:
        rows = list(csv.reader(handle))
    with manifest.open("w", newline="", encoding="utf-8") as handle:
        written = csv.writer(handle)
        written.writerow([*rows[0], "transcript"])
        written.writerows([*row, "aha" if "anger" in row[0] else "oh no"] for row in rows[1:])


def test_from_recordings_to_answers(hyfuse: Runner, corpus: Path, tmp_path: Path) -> None:
    _with_transcripts(corpus)
    models = ("--model", "wavlm-tiny", "--model", "wav2vec2-ctc-tiny", "--model", "minilm-tiny")
    assert hyfuse("extract", "--corpus", corpus, *models, "--frames", "--weights", "random").status == 0
    missing = hyfuse(*STUDY)
    assert missing.status == 2
    assert "Make them with `hyfuse transcribe --corpus my --model wav2vec2-ctc-tiny`" in missing.err
    heard = ("--corpus", "my", "--model", "wav2vec2-ctc-tiny", "--weights", "random")
    assert hyfuse("transcribe", *heard).status == 0
    missing = hyfuse(*STUDY)
    assert missing.status == 2
    assert "--model minilm-tiny --corpus my --transcripts asr:wav2vec2-ctc-tiny --frames" in missing.err
    told = ("--model", "minilm-tiny", "--transcripts", "asr:wav2vec2-ctc-tiny", "--frames", "--weights", "random")
    assert hyfuse("extract", "--corpus", "my", *told).status == 0
    done = hyfuse(*STUDY, "--lambda", "0,0.2")
    assert done.status == 0, done.err
    assert "Next: `hyfuse report runs/my-asr-fusion-wavlm-tiny-speaker-3fold`" in done.err
    assert "RANDOM weights: wavlm-tiny, wav2vec2-ctc-tiny, minilm-tiny" in done.out
    outcome = read_outcome(tmp_path / "runs" / "my-asr-fusion-wavlm-tiny-speaker-3fold")
    assert len(outcome.tables[0].rows) == 12
    assert outcome.command.startswith("hyfuse study asr-fusion --corpus my")


def test_mistakes(hyfuse: Runner) -> None:
    for options, words in (
        (("--ctc-weights", "a little"), "--ctc-weights are numbers in [0, 1), such as 0,0.1,0.5; 'a' is none."),
        (("--ctc-weights", "0,1"), "λ is 1, but it must be at least 0 and below 1"),
        (("--heads", "late"), "head on frames 'late'"),
        (("--fine-tune", "1", "--fine-tune-epochs", "0"), "'epochs' is 0"),
    ):
        ended = hyfuse("study", "asr-fusion", *options)
        assert ended.status == 2
        assert words in ended.err
