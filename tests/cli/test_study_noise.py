"""``hyfuse study noise`` from the command line: the whole way, and the mistakes a user makes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from pipelines.studies.outcome import read_outcome
from tests.cli.conftest import Runner, write_corpus

ENCODERS = ("encodec-tiny", "wavlm-tiny")


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    return write_corpus(tmp_path / "data", speakers=4, takes=2)


def test_the_command_in_the_error_makes_what_is_missing(hyfuse: Runner, manifest: Path, tmp_path: Path) -> None:
    first = hyfuse("extract", "--corpus", manifest, "--model", "encodec-tiny", "--weights", "random")
    assert first.status == 0, first.err
    settings = ("--seeds", 1, "--set", "epochs=2", "--protocol", "speaker-4fold", "--workers", 1)
    study = ("study", "noise", "--models", " ".join(ENCODERS), "--conditions", "white@10dB,white@0db", *settings)
    lacking = hyfuse(*study)
    assert lacking.status == 2
    assert "5 of the 6 stores of corpus 'my' that are needed are not in cache" in lacking.err
    (commands,) = re.findall(r"`(hyfuse extract [^`]*)`", lacking.err)
    assert commands.count("--weights random") == 2
    for command in commands.replace("--corpus my", f"--corpus {manifest}").split(" && "):
        made = hyfuse(*shlex.split(command)[1:])
        assert made.status == 0, made.err
    done = hyfuse(*study)
    assert done.status == 0, done.err
    assert "Does noise make recognition worse?" in done.out
    assert "white 0dB" in done.out
    assert (
        "RANDOM weights: encodec-tiny, wavlm-tiny" in done.out or "RANDOM weights: wavlm-tiny, encodec-tiny" in done.out
    )
    assert "Next: `hyfuse report runs/my-noise" in done.err
    (run_dir,) = (tmp_path / "runs").glob("my-noise*")
    outcome = read_outcome(run_dir)
    assert outcome.study == "noise"
    assert outcome.settings["noise"]["conditions"] == ["clean", "white@10dB", "white@0dB"]
    assert outcome.command.startswith("hyfuse study noise --models 'encodec-tiny wavlm-tiny'")
    again = hyfuse("study", "noise", "--models", " ".join(ENCODERS), *settings)  # all that are cached
    assert again.status == 0, again.err
    assert read_outcome(run_dir).settings["noise"] == outcome.settings["noise"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--conditions", "whit@5dB"), r"'whit@5dB' is not a condition.*nearest: white"),
        (("--conditions", "clean"), r"at least one condition beside clean.*--conditions: clean"),
        ((), r"at least one condition beside clean"),
        (("--conditions", "white@0dB", "--condition", "white@0dB"), r"--condition white@0dB means nothing"),
        (("--conditions", "white@0dB", "--training", "some"), r"Unknown way of --training 'some'"),
        (("--conditions", "white@0dB", "--fusions", "conca"), r"Did you mean 'concat'"),
        (("--conditions", "white@0dB", "--order", "both"), r"--order both means nothing"),
        (("--conditions", "white@0dB", "--target", "dimensions"), r"Corpus 'my' has no values of arousal"),
    ],
)
def test_mistakes(hyfuse: Runner, manifest: Path, arguments: tuple[str, ...], message: str) -> None:
    made = hyfuse(
        "extract", "--corpus", manifest, "--model", "encodec-tiny", "--weights", "random",
        *(("--condition", "clean", "--condition", "white@0dB") if "dimensions" in arguments else ()),
    )  # fmt: skip
    assert made.status == 0, made.err
    done = hyfuse("study", "noise", "--models", "encodec-tiny", *arguments)
    assert done.status == 2, done.out
    assert re.search(message, done.err), done.err
