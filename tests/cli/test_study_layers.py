"""``hyfuse study layers`` from recordings to answers, and what it says where something is missing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipelines.store.embeddings import open_store, store_path
from tests.cli.conftest import Runner


@pytest.fixture
def extracted(hyfuse: Runner, corpus: Path) -> Runner:
    done = hyfuse(
        "extract", "--corpus", corpus, "--weights", "random", "--model", "wavlm-tiny", "--model", "descriptors"
    )  # fmt: skip
    assert done.status == 0, done.err
    return hyfuse


def test_from_recordings_to_answers(extracted: Runner, tmp_path: Path) -> None:
    made = open_store(store_path(tmp_path / "cache", "my", "descriptors")).provenance
    assert (made.weights_kind, made.family) == ("none", "DSP")
    assert made.columns[12] == "f0:semitones"
    computed_again = extracted("cache", "verify", "my/descriptors", "--audio-sample", 5)
    assert computed_again.status == 0, computed_again.err
    assert "agree" in computed_again.out
    arguments = ("study", "layers", "--model", "wavlm-tiny", "--protocol", "speaker-3fold", "--seeds", 1, "--epochs", 2)
    done = extracted(*arguments, "--workers", 1)
    assert done.status == 0, done.err
    assert "Best layer for emotion: layer" in done.out
    assert "RANDOM weights: wavlm-tiny" in done.out
    assert "CKA of the layers of wavlm-tiny to descriptors" in done.out
    assert "Next: `hyfuse report" in done.err
    run_dir = tmp_path / "runs" / "my-layers-wavlm-tiny-speaker-3fold"
    told = json.loads((run_dir / "study.json").read_text(encoding="utf-8"))
    assert told["study"] == "layers"
    assert told["command"].startswith("hyfuse study layers --model wavlm-tiny")
    assert {figure["kind"] for figure in told["figures"]} == {"lines", "heatmap", "bars"}
    assert (run_dir / "config.json").is_file()


def test_what_is_missing_is_named_with_its_command(extracted: Runner) -> None:
    def fails(*arguments: object) -> str:
        done = extracted("study", "layers", *arguments)
        assert done.status == 2
        return done.err

    assert "Make it with `hyfuse extract --model wavlm --corpus my`" in fails("--model", "wavlm")
    assert "'descriptors' has no layers" in fails("--model", "descriptors")
    assert "hyfuse extract --model egemaps" in fails("--model", "wavlm-tiny", "--descriptors", "egemaps")
    assert "--target emotion" in fails("--model", "wavlm-tiny", "--target", "dimensions")
    assert "looks at all layers" in fails("--model", "wavlm-tiny", "--layer", "3")
    assert "give --against NAME as well" in fails("--model", "wavlm-tiny", "--against-cache", "elsewhere")
    assert "one of best, weighted" in fails("--model", "wavlm-tiny", "--curve", "x")


def test_models_show_says_that_there_are_no_weights(hyfuse: Runner) -> None:
    shown = hyfuse("models", "show", "descriptors").out
    assert "DSP: signal processing" in shown
    assert "weights none" in shown
    assert "columns mfcc:c1, mfcc:c2" in shown
    assert "audEERING Research License" in hyfuse("models", "show", "egemaps").out
