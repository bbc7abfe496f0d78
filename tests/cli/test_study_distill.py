"""``hyfuse study distill`` from the command line: the whole way, and the mistakes a user makes."""

from __future__ import annotations

import csv
import re
import shlex
from pathlib import Path

import pytest

from pipelines.studies.outcome import read_outcome
from tests.cli.conftest import Runner, write_corpus

WORDS = {"anger": "go away now", "neutral": "it is four o clock", "sadness": "nobody came"}


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """Four speakers, three emotions, with transcripts."""
    path = write_corpus(tmp_path / "data", speakers=4, takes=2)
    with path.open(newline="", encoding="utf-8") as handle:
        rows = list(csv.DictReader(handle))
    with path.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, [*rows[0], "transcript"])
        writer.writeheader()
        writer.writerows({**row, "transcript": WORDS[row["emotion"]]} for row in rows)
    return path


SETTINGS = ("--seeds", 1, "--set", "epochs=2", "--protocol", "speaker-4fold", "--workers", 1)


def test_the_commands_in_the_error_make_what_is_missing(hyfuse: Runner, manifest: Path, tmp_path: Path) -> None:
    first = hyfuse("extract", "--corpus", manifest, "--model", "hubert-tiny", "--weights", "random")
    assert first.status == 0, first.err
    study = (
        "study", "distill", "--acoustic", "hubert-tiny", "--text", "bert-tiny", "--conditions", "white@10dB,white@0db",
        "--efficient", "--small", "distilhubert-tiny", "--small-text", "minilm-tiny", "--student-layers", 1, *SETTINGS,
    )  # fmt: skip
    lacking = hyfuse(*study)
    assert lacking.status == 2
    assert "5 of the 6 stores of corpus 'my'" in lacking.err
    commands = re.findall(r"`hyfuse (extract [^`]*)`", lacking.err)
    assert len(commands) == 5
    for command in commands:
        made = hyfuse(*shlex.split(command.replace("--corpus my", f"--corpus {manifest}")))
        assert made.status == 0, made.err
    done = hyfuse(*study)
    assert done.status == 0, done.err
    assert "Does the teacher help its student?" in done.out
    assert "What does a small system cost in score?" in done.out
    for line in ("hubert-tiny alone", "distilhubert-tiny + minilm-tiny", "hubert-tiny cut off behind layer 1"):
        assert line in done.out
    assert "RANDOM weights: hubert-tiny, bert-tiny" in done.out
    assert "Next: `hyfuse report runs/my-distill-hubert-tiny-layer1" in done.err
    (run_dir,) = (tmp_path / "runs").iterdir()
    outcome = read_outcome(run_dir)
    assert outcome.settings["conditions"] == ["clean", "white@10dB", "white@0dB"]
    assert outcome.command.startswith("hyfuse study distill --acoustic hubert-tiny")
    written = (run_dir / "study.json").read_bytes()
    again = hyfuse(*study)
    assert again.status == 0, again.err
    assert (run_dir / "study.json").read_bytes() == written
    report = hyfuse("report", run_dir)
    assert report.status == 0, report.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--conditions", "whit@5dB"), r"'whit@5dB' is not a condition.*nearest: white"),
        (("--conditions", "clean"), r"--conditions needs at least one condition.*given: clean"),
        (("--conditions", "white@0dB", "--alpha", "much"), r"--alpha must be a number, or several.*not 'much'"),
        (
            ("--conditions", "white@0dB", "--alpha", "0", "--beta", "0"),
            r"the teacher says nothing: that is the baseline",
        ),
        (("--conditions", "white@0dB", "--fusion", "conca"), r"Did you mean 'concat'"),
        (("--conditions", "white@0dB", "--training", "some"), r"Unknown --training 'some'"),
        (("--conditions", "white@0dB", "--order", "both"), r"--order both means nothing"),
        (
            ("--conditions", "white@0dB", "--output-match", "ccc"),
            r"--output-match ccc means nothing to --target emotion",
        ),
        (("--conditions", "white@0dB", "--target", "dimensions"), r"stores of corpus 'my'"),
    ],
)
def test_mistakes(hyfuse: Runner, manifest: Path, arguments: tuple[str, ...], message: str) -> None:
    made = hyfuse("extract", "--corpus", manifest, "--model", "bert-tiny", "--weights", "random")
    assert made.status == 0, made.err
    done = hyfuse("study", "distill", "--acoustic", "wavlm-tiny", "--text", "bert-tiny", *arguments)
    assert done.status == 2, done.out
    assert re.search(message, done.err), done.err
