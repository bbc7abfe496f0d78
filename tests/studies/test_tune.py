"""Nested search: nothing of an outer test part is in it, and it ends the same however it was interrupted."""

from __future__ import annotations

import builtins
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.corpora.manifest import Manifest
from pipelines.errors import ConfigError, InstallationError, ProtocolError, UnknownNameError
from pipelines.evaluation.runs import read_run
from pipelines.studies import tune
from pipelines.studies.pairs import ComparisonConfig
from pipelines.studies.tune import SPACE, TuneConfig, Tuning, search_space, tune_cell
from pipelines.training.grid import Cell, Job
from pipelines.training.trainer import TrainConfig
from tests.training.toy import make_corpus

pytest.importorskip("optuna", reason="tuning is an optional extra: pip install 'hyfuse[tune]'")

CONFIG = ComparisonConfig(protocol="speaker-3fold", seeds=2, train=TrainConfig(epochs=2))
CELL = Cell("ssl", "codec", "hyperbolic")
SMALL = TuneConfig(trials=4, inner_folds=2, search=("learning_rate", "order", "input_dropout"))


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return make_corpus(tmp_path / "cache")


def tuned(manifest: Manifest, tmp_path: Path, run: str = "run", **options: Any) -> Tuning:
    options = {"cell": CELL, "config": CONFIG, "tuning": SMALL, **options}
    return tune_cell(manifest, options.pop("cell"), cache_dir=tmp_path / "cache", run_dir=tmp_path / run, **options)


def journals(run: Path) -> dict[str, list[Any]]:
    return {
        path.name: [json.loads(line) for line in path.read_text().splitlines()]
        for path in sorted((run / "tuning").glob("*.jsonl"))
    }


def test_best_settings_per_fold_and_one_score(manifest: Manifest, tmp_path: Path) -> None:
    found = tuned(manifest, tmp_path)
    assert [fold.fold for fold in found.folds] == ["1", "2", "3"]
    assert (found.searched, found.reused) == (12, 0)
    for fold, trials in zip(found.folds, journals(tmp_path / "run").values(), strict=True):
        values = [trial["score"] for trial in trials]
        assert fold.inner_score == max(values) >= fold.start_score == values[0]
        assert fold.best == trials[int(np.argmax(values))]["settings"]
        assert trials[0]["settings"] == {"learning_rate": 1e-3, "order": "left-right", "input_dropout": 0.5}
        assert set(fold.best) == set(SMALL.search)
    (score,) = found.comparison.scores
    assert (score.folds, score.seeds, score.utterances) == (3, 2, 72)
    rows = [json.loads(line) for line in (tmp_path / "run" / "results.jsonl").read_text().splitlines()]
    assert len(rows) == 6
    for row in rows:
        best = next(fold.best for fold in found.folds if fold.fold == row["fold"])
        assert row["hyper_parameters"]["learning_rate"] == best["learning_rate"]
        assert row["options"]["order"] == best["order"]
    assert json.loads((tmp_path / "run" / "tuning.json").read_text())[0]["best"] == found.folds[0].best
    assert any(note.startswith("Tuned: 4 trials per outer fold") for note in found.comparison.notes)


def test_folds_of_other_options_are_one_cell(manifest: Manifest, tmp_path: Path) -> None:
    """Whatever order a fold's search chose, the run reads back as the one cell that was asked for."""
    found = tuned(manifest, tmp_path)
    run = read_run(tmp_path / "run")
    assert [score.cell for score in run.scores] == ["ssl+codec hyperbolic"]
    assert run.scores[0].uar == found.comparison.scores[0].uar
    assert len({row["options"]["order"] for row in run.rows}) == len({fold.best["order"] for fold in found.folds})


def test_outer_test_rows_are_nowhere_in_a_search(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, set[int]] = {}
    speakers: dict[str, list[tuple[set[str], set[str]]]] = {}
    train = tune.train_job

    def watched(job: Job, device: str, files: Mapping[str, Path]) -> Any:
        for task in job.tasks:
            outer = task.fold.split("/")[0]
            seen.setdefault(outer, set()).update(task.train.tolist(), task.validation.tolist(), task.test.tolist())
            parts = [{job.utterance_ids[row].split("_")[0] for row in rows} for rows in (task.train, task.test)]
            speakers.setdefault(outer, []).append((parts[0], parts[1]))
        return train(job, device, files)

    monkeypatch.setattr(tune, "train_job", watched)
    found = tuned(manifest, tmp_path, tuning=replace(SMALL, trials=1))
    for fold in found.comparison.split.folds:
        assert seen[fold.name] == set(fold.train.tolist()) | set(fold.validation.tolist())
        assert not seen[fold.name] & set(fold.test.tolist())
        assert all(not trained & tested for trained, tested in speakers[fold.name])


def test_an_interrupted_search_goes_on_and_ends_the_same(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tuned(manifest, tmp_path, "whole", tuning=replace(SMALL, trials=13))  # beyond the random start
    measure, count = tune._inner_score, 0

    def breaks(*arguments: Any) -> float:
        nonlocal count
        count += 1
        if count == 12:
            raise KeyboardInterrupt
        return measure(*arguments)

    monkeypatch.setattr(tune, "_inner_score", breaks)
    with pytest.raises(KeyboardInterrupt):
        tuned(manifest, tmp_path, "parts", tuning=replace(SMALL, trials=13))
    shorter = tuned(manifest, tmp_path, "parts", tuning=replace(SMALL, trials=12))
    assert shorter.reused == 11
    longer = tuned(manifest, tmp_path, "parts", tuning=replace(SMALL, trials=13))
    assert (longer.searched, longer.reused) == (3, 36)
    assert journals(tmp_path / "parts") == journals(tmp_path / "whole")
    assert longer.folds == whole.folds
    rows = [(tmp_path / run / "results.jsonl").read_text() for run in ("parts", "whole")]
    assert rows[0] == rows[1]


@pytest.mark.slow
def test_processes_change_nothing(manifest: Manifest, tmp_path: Path) -> None:
    one, two = tuned(manifest, tmp_path, "one"), tuned(manifest, tmp_path, "two", workers=2)
    assert one.folds == two.folds
    rows = [(tmp_path / run / "results.jsonl").read_text() for run in ("one", "two")]
    assert rows[0] == rows[1]


def test_other_settings_are_another_search(manifest: Manifest, tmp_path: Path) -> None:
    tuned(manifest, tmp_path)
    assert tuned(manifest, tmp_path).searched == 0
    other = replace(CONFIG, train=TrainConfig(epochs=3))
    assert tuned(manifest, tmp_path, config=other).searched == 12


def test_a_trial_that_diverges_is_the_worst(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = tune._inner_score

    def diverges(job: Job, settings: Mapping[str, Any], *rest: Any) -> float:
        if settings["order"] == "right-left":
            raise ConfigError("Training diverged")
        return measure(job, settings, *rest)

    monkeypatch.setattr(tune, "_inner_score", diverges)
    found = tuned(manifest, tmp_path, tuning=replace(SMALL, trials=8))
    assert all(fold.best["order"] == "left-right" for fold in found.folds)
    trials = [trial for lines in journals(tmp_path / "run").values() for trial in lines]
    failed = [trial for trial in trials if "failed" in trial]
    assert failed
    assert all(trial["score"] == 0 and trial["failed"] == "Training diverged" for trial in failed)


def test_a_single_representation_and_validation_rows(manifest: Manifest, tmp_path: Path) -> None:
    config = replace(CONFIG, selection="loss", layer="weighted")
    found = tuned(
        manifest, tmp_path, cell=Cell("ssl", "", "single"), config=config, tuning=TuneConfig(trials=2, inner_folds=2)
    )
    assert "order" not in found.folds[0].best
    assert "dropout" in found.folds[0].best
    assert found.comparison.layer_weights["ssl"]


def test_what_is_searched() -> None:
    assert "max_radius" in search_space(CELL)
    assert "max_radius" not in search_space(Cell("a", "b", "concat"))
    assert "order" not in search_space(replace(CELL, options={"order": "left-right"}))
    assert search_space(CELL, ["dropout"]) == {"dropout": SPACE["dropout"]}
    with pytest.raises(UnknownNameError, match="Unknown setting to search for concat 'max_radius'"):
        search_space(Cell("a", "b", "concat"), ["max_radius"])
    with pytest.raises(ConfigError, match="order is to be searched and set to left-right as well"):
        search_space(replace(CELL, options={"order": "left-right"}), ["order"])


@pytest.mark.parametrize(
    ("change", "message"),
    [({"trials": 0}, "--trials must be at least 1, not 0"), ({"inner_folds": 1}, "--inner-folds must be at least 2")],
)
def test_budgets_that_make_no_sense(change: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TuneConfig(**change)  # type: ignore[arg-type]


def test_too_few_speakers_to_divide_once_more(tmp_path: Path) -> None:
    manifest = make_corpus(tmp_path / "cache", speakers=3)
    with pytest.raises(ProtocolError, match="cannot be divided into inner folds to tune on: speaker-2fold needs"):
        tuned(manifest, tmp_path)


def test_without_optuna(manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    imported = builtins.__import__

    def absent(name: str, *rest: Any, **named: Any) -> Any:
        if name == "optuna":
            raise ImportError(name)
        return imported(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(InstallationError, match=r"Tuning needs Optuna.*pip install 'hyfuse\[tune\]'"):
        tuned(manifest, tmp_path)
