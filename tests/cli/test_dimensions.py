"""``--target dimensions`` and ``--labels soft`` on the command lines of train, compare, tune and compare-runs."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from pipelines.corpora.prepare import remember
from tests.cli.conftest import Runner
from tests.training.toy import make_corpus

QUICK = ("--protocol", "speaker-3fold", "--seeds", 1, "--epochs", 2, "--workers", 1)
PAIR = ("train", "--pair", "ssl", "codec", "--fusion", "concat")
DIMENSIONS = ("--target", "dimensions")


@pytest.fixture(autouse=True)
def toy(tmp_path: Path) -> None:
    """The corpus ``toy`` in the cache of the working folder."""
    remember(make_corpus(tmp_path / "cache"), tmp_path / "cache")


def test_train_and_compare_runs(hyfuse: Runner, tmp_path: Path) -> None:
    done = hyfuse(*PAIR, *DIMENSIONS, *QUICK)
    assert done.status == 0, done.err
    assert "concat: CCC [95 % interval]" in done.out
    assert "arousal 0." in done.out
    assert " of CCC, shuffling codec costs " in done.out
    folder = next(path for path in (tmp_path / "runs").iterdir() if "dimensions" in path.name)
    with (folder / "table.csv").open() as handle:
        rows = list(csv.DictReader(handle))
    assert [row["fusion"] for row in rows] == ["single", "single", "ridge", "ridge", "concat", "ridge"]
    assert list((folder / "heads").glob("*.safetensors"))
    other = hyfuse(*PAIR, *DIMENSIONS, *QUICK, "--set", "input_dropout=0", "--run", "other")
    assert other.status == 0, other.err
    compared = hyfuse("compare-runs", folder.name, "other")
    assert compared.status == 0, compared.err
    assert "CCC, B minus A" in compared.out
    content = json.loads(hyfuse("compare-runs", folder.name, "other", "--format", "json").out)
    concat = next(cell for cell in content["cells"] if cell["cell"] == "ssl+codec concat")
    assert concat["differences"]["ccc"]["p_holm"] >= concat["differences"]["ccc"]["p"]
    assert concat["second"]["ccc_valence"] - concat["first"]["ccc_valence"] == pytest.approx(
        concat["differences"]["ccc_valence"]["difference"]
    )


def test_compare_one_dimension(hyfuse: Runner) -> None:
    done = hyfuse(
        "compare", "--models", "ssl,codec", "--fusions", "concat", *DIMENSIONS, "--dimensions", "activation", *QUICK
    )
    assert done.status == 0, done.err
    assert "concat: CCC of arousal [95 % interval]" in done.out
    assert "Pearson 0." in done.out
    assert "dimensions-arousal" in done.err


def test_tune(hyfuse: Runner) -> None:
    pytest.importorskip("optuna", reason="tuning is an optional extra: pip install 'hyfuse[tune]'")
    line = ("tune", "--single", "ssl", *DIMENSIONS, "--inner-folds", 2, "--search", "dropout", "--trials", 1, *QUICK)
    done = hyfuse(*line)
    assert done.status == 0, done.err
    assert "Fold 1: inner CCC " in done.out


def test_soft_labels(hyfuse: Runner) -> None:
    done = hyfuse("train", "--single", "ssl", "--labels", "soft", *QUICK)
    assert done.status == 0, done.err
    assert "towards the votes of the raters" in done.out
    assert "toy-ssl-soft" in done.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((*PAIR, "--target", "dimension"), "Unknown target 'dimension'. Did you mean 'dimensions'"),
        ((*PAIR, *DIMENSIONS, "--dimensions", "energy"), "Unknown dimension 'energy'"),
        ((*PAIR, *DIMENSIONS, "--dimensions", "dominance"), "has no values of dominance; it has arousal, valence"),
        ((*PAIR, *DIMENSIONS, "--classes", "anger,fear"), "--classes anger,fear means nothing to --target dimensions"),
        ((*PAIR, *DIMENSIONS, "--class-weights", "balanced"), "--class-weights balanced means nothing to --target dimensions"),
        ((*PAIR, *DIMENSIONS, "--labels", "soft"), "--labels soft means nothing to --target dimensions"),
        ((*PAIR, *DIMENSIONS, "--selection", "uar"), "--selection uar means nothing to --target dimensions"),
        ((*PAIR, *DIMENSIONS, "--batch-size", 1), "--batch-size 1 cannot train dimensions"),
        ((*PAIR, "--dimensions", "valence"), "--dimensions valence needs --target dimensions"),
        ((*PAIR, "--selection", "ccc"), "--selection ccc needs --target dimensions"),
        ((*PAIR, "--labels", "fuzzy"), "Unknown kind of --labels 'fuzzy'"),
    ],
)  # fmt: skip
def test_mistakes_are_explained(hyfuse: Runner, arguments: tuple[object, ...], message: str) -> None:
    done = hyfuse(*arguments, *QUICK)
    assert done.status == 2, done.out
    assert message in done.err
    assert "Traceback" not in done.err
