"""Run folders read back, and two of them compared: the same numbers as when they were made, and every refusal."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pipelines.errors import RunError
from pipelines.evaluation.results import HeadRecord, score_cell
from pipelines.evaluation.runs import compare_runs, read_run
from pipelines.evaluation.statistics import paired_difference
from pipelines.reports.tables import build_run_table, to_markdown
from pipelines.training.grid import Cell
from tests.evaluation.run_folders import CLASSES, write_run

SKILLS = {"wav": 0.6, "enc": 0.5, "wav logistic": 0.6, "wav+enc concat": 0.7, "wav+enc hyperbolic": 0.7}


# ------------------------------------------------------------------------------------------------ reading


def test_a_run_read_back_has_the_scores_that_it_was_made_with(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "r", SKILLS))
    assert [score.cell for score in run.scores] == list(SKILLS)
    assert (run.classes, run.families, run.random) == (CLASSES, {"enc": "CBR", "wav": "RLR"}, ())
    table = pd.read_parquet(tmp_path / "r" / "predictions.parquet")
    ids = sorted(run.labels)
    part = table[table["cell"] == "wav+enc concat"]
    heads = []
    for (fold, seed), rows in part.groupby(["fold", "seed"]):
        shuffled = [rows[name].map(CLASSES.index).to_numpy() for name in ("left_shuffled", "right_shuffled")]
        test = np.array([ids.index(name) for name in rows["utterance_id"]])
        row = {"fold": fold, "seed": seed, "diagnostics": {"norm": 0.25}}
        heads.append(HeadRecord(row, test, rows[[f"p_{name}" for name in CLASSES]].to_numpy(np.float32), *shuffled))
    labels = np.array([CLASSES.index(run.labels[name]) for name in ids])
    speakers = [run.speakers[name] for name in ids]
    made = score_cell(Cell("wav", "enc", "concat"), heads, truth=labels, speakers=speakers)
    read = run.scores[3]
    assert read == made
    np.testing.assert_array_equal(read.tallies, made.tallies)
    assert read.diagnostics == {"norm": 0.25}
    assert (read.seeds, run.scores[2].seeds) == (3, 1)
    assert run.scores[0].right_shuffled_tallies is None


def test_a_run_read_back_makes_the_table(tmp_path: Path) -> None:
    text = to_markdown(build_run_table(read_run(write_run(tmp_path / "r", SKILLS))))
    assert "Does fusion beat the best single representation? Yes: 2 of 2 fused cells" in text
    assert "Corpus: emodb." in text


def test_folders_that_are_no_finished_run(tmp_path: Path) -> None:
    write_run(tmp_path / "good", {"wav": 0.5})
    with pytest.raises(RunError, match=r"There is no run folder .*absent. Runs in .*: good"):
        read_run(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        RunError, match=r"empty is not a run: config.json, results.jsonl, predictions.parquet is not there"
    ):
        read_run(tmp_path / "empty")
    (tmp_path / "good" / "predictions.parquet").unlink()
    with pytest.raises(
        RunError, match=r"holds a run that was not finished: predictions.parquet is not there. Run the same"
    ):
        read_run(tmp_path / "good")


def _changed(path: Path, change: object) -> Path:
    table = pd.read_parquet(path / "predictions.parquet")
    change(table).to_parquet(path / "predictions.parquet", index=False)  # type: ignore[operator]
    return path


def test_runs_of_an_older_version_and_damaged_ones(tmp_path: Path) -> None:
    old = _changed(write_run(tmp_path / "old", {"wav": 0.5}), lambda table: table.drop(columns=["cell", "speaker"]))
    with pytest.raises(RunError, match="lacks the columns cell, speaker: the run was made by an older version"):
        read_run(old)
    cut = _changed(write_run(tmp_path / "cut", {"wav": 0.5}), lambda table: table.iloc[:-1])
    with pytest.raises(RunError, match="'wav' has 1439 predictions, but 3 seeds of 480 utterances need one each"):
        read_run(cut)
    odd = _changed(write_run(tmp_path / "odd", {"wav": 0.5}), lambda table: table.replace({"label": {"anger": "joy"}}))
    with pytest.raises(RunError, match="'wav' has a label that is not among the classes anger, neutral, sadness"):
        read_run(odd)
    none = _changed(write_run(tmp_path / "none", {"wav": 0.5}), lambda table: table.iloc[:0])
    with pytest.raises(RunError, match="holds no prediction"):
        read_run(none)
    torn = write_run(tmp_path / "torn", {"wav": 0.5})
    (torn / "predictions.parquet").write_bytes(b"PAR1")
    with pytest.raises(RunError, match=r"predictions.parquet cannot be read"):
        read_run(torn)
    (torn / "config.json").write_text("{")
    with pytest.raises(RunError, match=r"config.json or results.jsonl cannot be read"):
        read_run(torn)


# ------------------------------------------------------------------------------------------------ comparing


def test_what_differs_and_whether_it_shows(tmp_path: Path) -> None:
    better = {**SKILLS, "wav+enc concat": 0.9, "enc logistic": 0.5}
    changed = {"hyper_parameters": {"epochs": 60, "learning_rate": 0.001}, "notes": ["another"], "condition": "clean"}
    first = read_run(write_run(tmp_path / "a", SKILLS))
    second = read_run(write_run(tmp_path / "b", better, chance=1, config=changed))
    found = compare_runs(first, second)
    assert [(one.name, one.first, one.second) for one in found.settings] == [
        ("condition", None, "clean"),
        ("hyper_parameters.epochs", 30, 60),
    ]
    cells = {cell.first.cell: cell for cell in found.cells}
    assert list(cells) == list(SKILLS)
    concat = cells["wav+enc concat"]
    assert concat.p_holm < 1e-3
    expected = paired_difference(concat.second.tallies, concat.first.tallies)
    assert concat.differences["uar"] == expected
    assert concat.differences["uar"].value == pytest.approx(concat.second.uar - concat.first.uar)
    assert concat.differences["accuracy"].value == pytest.approx(concat.second.accuracy - concat.first.accuracy)
    assert cells["wav"].p_holm >= cells["wav"].differences["uar"].p
    assert (found.only_first, found.only_second, found.refusals, found.cautions) == ((), ("enc logistic",), (), ())


def test_a_run_against_itself(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "a", SKILLS))
    found = compare_runs(run, run)
    assert found.settings == ()
    assert all(cell.differences["uar"].value == 0 and cell.p_holm == 1 for cell in found.cells)


def test_classes_in_another_order_are_the_same_classes(tmp_path: Path) -> None:
    first = read_run(write_run(tmp_path / "a", {"wav": 0.6}))
    second = read_run(write_run(tmp_path / "b", {"wav": 0.6}, classes=("sadness", "anger", "neutral")))
    (cell,) = compare_runs(first, second).cells
    assert abs(cell.differences["uar"].value) < 0.05
    assert cell.differences["macro_f1"].value == pytest.approx(cell.second.macro_f1 - cell.first.macro_f1)


def test_other_seeds_and_folds_are_compared_with_a_caution(tmp_path: Path) -> None:
    random = {"wav": {"family": "RLR", "weights_kind": "random"}}
    first = read_run(write_run(tmp_path / "a", {"wav": 0.6}))
    changed = {"split_digest": "6" * 64, "protocol": "random-5fold", "speaker_independent": False, "sources": random}
    second = read_run(write_run(tmp_path / "b", {"wav": 0.6}, seeds=2, config=changed))
    found = compare_runs(first, second)
    assert len(found.cells) == 1
    said = " ".join(found.cautions)
    assert "The folds differ (speaker-5fold and random-5fold)" in said
    assert "The second run is speaker-dependent" in said
    assert "RANDOM weights in the second run: wav." in said
    assert "The numbers of seeds differ (3 and 2)" in said
    assert {one.name for one in found.settings} >= {"protocol", "seeds", "sources.wav.weights_kind", "split_digest"}


def test_other_options_of_a_head_are_said(tmp_path: Path) -> None:
    first = read_run(write_run(tmp_path / "a", {"wav+enc hyperbolic": 0.6}))
    path = write_run(tmp_path / "b", {"wav+enc hyperbolic": 0.6})
    rows = [json.loads(line) for line in (path / "results.jsonl").read_text().splitlines()]
    for row in rows:
        row["options"] = {"order": "right-left"}
    (path / "results.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (setting,) = compare_runs(first, read_run(path)).settings
    assert setting.name == "cells.wav+enc hyperbolic.options"
    assert setting.second == {"order": "right-left"}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"leave_out": (3, 4)}, "The test sets differ: 480 and 478 utterances, 2 only in the first, such as u003."),
        ({"config": {"corpus": "cremad"}}, "The corpora differ: emodb and cremad."),
        (
            {"classes": ("anger", "neutral", "sadness", "fear")},
            "The classes differ: anger, neutral, sadness; and anger, neutral, sadness, fear.",
        ),
        ({"speakers": 12}, "96 only in the second, such as u480."),
    ],
)
def test_other_test_sets_are_refused(tmp_path: Path, changes: dict[str, object], reason: str) -> None:
    first = read_run(write_run(tmp_path / "a", {"wav": 0.6}))
    second = read_run(write_run(tmp_path / "b", {"wav": 0.6}, **changes))  # type: ignore[arg-type]
    found = compare_runs(first, second)
    assert found.cells == ()
    assert found.refusals[0].cell == "wav"
    assert reason in found.refusals[0].reason


@pytest.mark.parametrize("column", ["label", "speaker"])
def test_other_labels_and_speakers_of_the_same_utterances_are_refused(tmp_path: Path, column: str) -> None:
    first = read_run(write_run(tmp_path / "a", {"wav": 0.6}))
    other = {"label": "sadness", "speaker": "s09"}[column]

    def change(table: pd.DataFrame) -> pd.DataFrame:
        table.loc[table["utterance_id"] == "u000", column] = other
        return table

    second = read_run(_changed(write_run(tmp_path / "b", {"wav": 0.6}), change))
    found = compare_runs(first, second)
    assert found.refusals[0].reason.startswith(f"The {column}s of 1 test utterances differ, such as u000: ")


def test_cells_of_one_run_only(tmp_path: Path) -> None:
    first = read_run(write_run(tmp_path / "a", {"wav": 0.6}))
    found = compare_runs(first, read_run(write_run(tmp_path / "b", {"enc": 0.6})))
    assert (found.cells, found.refusals, found.only_first, found.only_second) == ((), (), ("wav",), ("enc",))
