"""``hyfuse compare-runs`` and ``hyfuse corpora check --split``, as the shell would run them."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest

from tests.cli.conftest import Runner, write_corpus
from tests.evaluation.run_folders import write_run

SKILLS = {"wav": 0.6, "enc": 0.5, "wav+enc concat": 0.7}


def test_runs_by_name_and_by_path(hyfuse: Runner, tmp_path: Path) -> None:
    write_run(tmp_path / "runs" / "a", SKILLS)
    other = write_run(
        tmp_path / "elsewhere" / "b", {**SKILLS, "wav+enc concat": 0.9}, chance=1, config={"condition": "reverb:0.6s"}
    )
    done = hyfuse("compare-runs", "a", other)
    assert done.status == 0, done.err
    assert "condition – reverb:0.6s" in done.out
    assert "Of 3 cells that both runs have, B is significantly better in 1 (wav+enc concat) and worse in 0" in done.out
    assert "< .001" in done.out


def test_markdown_and_json(hyfuse: Runner, tmp_path: Path) -> None:
    write_run(tmp_path / "runs" / "a", SKILLS)
    write_run(tmp_path / "runs" / "b", SKILLS, chance=1, leave_out=())
    markdown = hyfuse("compare-runs", "a", "b", "--format", "markdown")
    assert "| cell | first | second | difference [95 %] | p | p (Holm) |" in markdown.out
    assert "| wav+enc concat | " in markdown.out
    done = hyfuse("compare-runs", "a", "b", "--format", "json")
    content = json.loads(done.out)
    assert content["settings"] == []
    assert [cell["cell"] for cell in content["cells"]] == list(SKILLS)
    uar = content["cells"][2]["differences"]["uar"]
    assert uar["low"] < uar["difference"] < uar["high"]
    assert uar["p_holm"] >= uar["p"]


def test_a_run_against_a_copy_of_itself(hyfuse: Runner, tmp_path: Path) -> None:
    shutil.copytree(write_run(tmp_path / "runs" / "a", SKILLS), tmp_path / "runs" / "b")
    done = hyfuse("compare-runs", "a", "b")
    assert "Nothing that is recorded differs between the two runs." in done.out
    assert "better in 0 and worse in 0" in done.out


def test_other_test_sets_are_refused_with_status_1(hyfuse: Runner, tmp_path: Path) -> None:
    write_run(tmp_path / "runs" / "a", {"wav": 0.6})
    write_run(tmp_path / "runs" / "b", {"wav": 0.6}, leave_out=(5,))
    done = hyfuse("compare-runs", "a", "b")
    assert done.status == 1
    assert (
        "Not compared: wav. The test sets differ: 480 and 479 utterances, 1 only in the first, such as u005."
        in done.out
    )
    write_run(tmp_path / "runs" / "c", {"enc": 0.6})
    done = hyfuse("compare-runs", "a", "c")
    assert done.status == 1
    assert "The two runs have no cell in common" in done.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("a", "nowhere"), "There is no run folder runs/nowhere. Runs in runs: a."),
        (("a", "a", "--format", "html"), "--format must be one of text, markdown, json, not 'html'."),
    ],
)
def test_mistakes(hyfuse: Runner, tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    write_run(tmp_path / "runs" / "a", {"wav": 0.6})
    done = hyfuse("compare-runs", *arguments)
    assert done.status == 2
    assert message in done.err


# ------------------------------------------------------------------------------------------------ corpora check --split


def _folds(corpus: Path, by: str) -> Path:
    """Three folds, by speaker or by take."""
    path = corpus.parent / "folds.csv"
    rows = list(csv.DictReader(corpus.open()))
    value = {"speaker": lambda row: int(row["speaker"][1:]) % 3, "take": lambda row: row["utterance_id"][-1]}[by]
    with path.open("w", newline="") as handle:
        csv.writer(handle).writerows([("utterance_id", "fold"), *((row["utterance_id"], value(row)) for row in rows)])
    return path


def test_folds_by_speaker_are_in_order(hyfuse: Runner, corpus: Path) -> None:
    done = hyfuse("corpora", "check", corpus, "--split", _folds(corpus, "speaker"), "--near")
    assert done.status == 0, done.err
    assert "fold 0 train 36, validation 0, test 18" in done.out
    assert "Nothing leaks from training to test in folds.csv." in done.out


def test_folds_by_take_leak(hyfuse: Runner, corpus: Path) -> None:
    done = hyfuse("corpora", "check", corpus, "--split", _folds(corpus, "take"))
    assert done.status == 1
    assert (
        "speakers of the test part are in the train part as well (in 3 of 3 folds; in fold '0' 6 of the 6" in done.err
    )
    assert "folds.csv leaks: 1 finding of level error." in done.out


def test_a_copied_recording_leaks(hyfuse: Runner, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "data")
    shutil.copy(corpus.parent / "s0_anger_0.wav", corpus.parent / "s1_anger_0.wav")
    done = hyfuse("corpora", "check", corpus, "--split", _folds(corpus, "speaker"))
    assert done.status == 1
    assert "the same samples at the same rate" in done.err
    assert "s0_anger_0 = s1_anger_0" in done.err


def test_mistakes_with_folds(hyfuse: Runner, corpus: Path) -> None:
    done = hyfuse("corpora", "check", corpus, "--split", "absent.csv")
    assert done.status == 2
    assert "There is no table of folds at absent.csv" in done.err
    done = hyfuse("corpora", "check", corpus, "--near")
    assert done.status == 2
    assert "add --split FOLDS.csv" in done.err
