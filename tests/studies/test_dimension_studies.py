"""Comparisons, answers and tuning where the target is dimensions, or emotions are learned from votes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import audmetric
import pandas as pd
import pytest

from pipelines.corpora.manifest import Manifest
from pipelines.errors import ConfigError, ManifestError, UnknownNameError
from pipelines.evaluation.results import CellScore
from pipelines.evaluation.runs import read_run
from pipelines.reports.tables import build_run_table, build_table, to_csv, to_latex, to_markdown
from pipelines.studies.answers import Evidence, weigh, weigh_run
from pipelines.studies.pairs import Comparison, ComparisonConfig, compare_cells
from pipelines.studies.tune import TuneConfig, search_space, tune_cell
from pipelines.training.grid import RIDGE, Cell, make_cells
from pipelines.training.ridge import PENALTY
from pipelines.training.trainer import TrainConfig
from tests.evaluation.dimension_cells import made_up_score
from tests.training.toy import make_corpus

CONFIG = ComparisonConfig(protocol="speaker-3fold", seeds=2, target="dimensions", train=TrainConfig(epochs=8))
CELLS = make_cells([("ssl", "codec")], ["concat", "hyperbolic"], ["ssl", "codec"], target="dimensions")
FILES = ("results.jsonl", "predictions.parquet")


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return make_corpus(tmp_path / "cache")


def compare(
    manifest: Manifest, tmp_path: Path, run: str = "run", *, cells: Sequence[Cell] = CELLS, **options: Any
) -> Comparison:
    options = {"config": CONFIG, **options}
    return compare_cells(manifest, cells, cache_dir=tmp_path / "cache", run_dir=tmp_path / run, **options)


# ------------------------------------------------------------------------------------------------ comparisons


def test_an_interrupted_comparison_ends_with_the_same_bytes(manifest: Manifest, tmp_path: Path) -> None:
    whole = compare(manifest, tmp_path, "whole")
    assert whole.trained == 4 * 6 + 3 * 3

    def stop(done: int, total: int, cell: str) -> None:
        if done >= total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compare(manifest, tmp_path, "parts", progress=stop, stack=4)
    resumed = compare(manifest, tmp_path, "parts", stack=3)
    assert 0 < resumed.trained < whole.trained
    for name in FILES:
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert resumed.scores == whole.scores
    assert to_csv(build_table(resumed)) == to_csv(build_table(whole))
    # What was written says the same as what was in memory.
    again = read_run(tmp_path / "whole")
    assert [score.to_record() for score in again.scores] == [score.to_record() for score in whole.scores]
    assert to_markdown(build_run_table(again)) == to_markdown(build_table(whole))


@pytest.mark.slow
def test_processes_change_no_byte(manifest: Manifest, tmp_path: Path) -> None:
    compare(manifest, tmp_path, "one")
    compare(manifest, tmp_path, "two", workers=2, stack=4)
    for name in FILES:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name


def test_scores_are_those_of_the_predictions(manifest: Manifest, tmp_path: Path) -> None:
    comparison = compare(manifest, tmp_path)
    table = pd.read_parquet(tmp_path / "run" / "predictions.parquet")
    truth = manifest.table.set_index("utterance_id")
    for score in comparison.scores:
        own = table[table["cell"] == score.cell]
        assert len(own) == 72 * score.seeds
        for name in ("arousal", "valence"):
            assert (own[f"true_{name}"].to_numpy() == truth.loc[own["utterance_id"], name].to_numpy("float32")).all()
            by_seed = [
                audmetric.concordance_cc(part[f"true_{name}"], part[f"predicted_{name}"])
                for _, part in own.groupby("seed")
            ]
            assert score.estimates[f"ccc_{name}"].value == pytest.approx(sum(by_seed) / len(by_seed), abs=1e-6)
    rungs = [score for score in comparison.scores if score.fusion == RIDGE]
    assert [(score.left, score.right, score.seeds) for score in rungs] == [
        ("ssl", "", 1),
        ("codec", "", 1),
        ("ssl", "codec", 1),
    ]
    assert rungs[2].estimates["ccc_arousal"].value > 0.4
    rows = [json.loads(line) for line in (tmp_path / "run" / "results.jsonl").read_text().splitlines()]
    assert {row["target"] for row in rows} == {"dimensions"}
    assert set(rows[0]["metrics"]) == set(comparison.scores[0].estimates)
    assert rows[0]["hyper_parameters"]["epochs"] == 8
    assert next(row for row in rows if row["fusion"] == RIDGE)["hyper_parameters"]["alpha"] == PENALTY


def test_folds_are_those_of_emotion_and_are_said(manifest: Manifest, tmp_path: Path) -> None:
    singles = make_cells([], [], ["ssl"], target="dimensions")
    dimensions = compare(manifest, tmp_path, cells=singles)
    emotion = compare(
        manifest, tmp_path, "emotion", cells=make_cells([], [], ["ssl"]), config=replace(CONFIG, target="emotion")
    )
    assert dimensions.split.digest == emotion.split.digest
    said = " ".join(dimensions.notes)
    assert "dimensions arousal (" in said
    assert "Folds are stratified by emotion: every speaker is where --target emotion has it." in said
    assert "ridge: ridge regression (penalty 1 per feature)" in said
    assert "for the mean over dimensions of 1 - CCC" in said
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["target"], config["dimensions"], config["classes"]) == ("dimensions", ["arousal", "valence"], [])
    assert "stratified" not in " ".join(emotion.notes)


def test_one_dimension_by_another_name(manifest: Manifest, tmp_path: Path) -> None:
    cells = make_cells([], [], ["ssl"], target="dimensions")
    found = compare(manifest, tmp_path, cells=cells, config=replace(CONFIG, dimensions=("activation",)))
    assert found.dataset.dimensions == ("arousal",)
    assert found.scores[0].measure.name == "CCC of arousal"
    assert "Pearson 0." in to_markdown(build_table(found))


def test_votes_are_learned_and_labels_tested(manifest: Manifest, tmp_path: Path) -> None:
    cells = make_cells([], [], ["ssl"])
    config = replace(CONFIG, target="emotion", labels="soft")
    soft, hard = (
        compare(manifest, tmp_path, kind, cells=cells, config=replace(config, labels=kind)) for kind in ("soft", "hard")
    )
    assert soft.split.digest == hard.split.digest
    assert soft.scores[0].uar != hard.scores[0].uar or soft.scores[0].ece != hard.scores[0].ece
    assert "towards the votes of the raters, tested on the labels" in " ".join(soft.notes)
    labels = [read_run(tmp_path / kind).labels for kind in ("soft", "hard")]
    assert labels[0] == labels[1]
    assert compare(manifest, tmp_path, "soft", cells=cells, config=config).trained == 0


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"target": "valence"}, UnknownNameError, "Unknown target 'valence'. .*dimensions, emotion"),
        ({"dimensions": ("valance",)}, UnknownNameError, "Unknown dimension 'valance'. Did you mean 'valence'"),
        ({"classes": ("anger", "fear")}, ConfigError, "--classes anger,fear means nothing to --target dimensions"),
        ({"train": TrainConfig(class_weights="balanced")}, ConfigError, "--class-weights balanced means nothing to --target"),
        ({"labels": "soft"}, ConfigError, "--labels soft means nothing to --target dimensions"),
        ({"selection": "uar"}, ConfigError, "--selection uar means nothing to --target dimensions"),
        ({"target": "emotion", "dimensions": ("valence",)}, ConfigError, "--dimensions valence needs --target dimensions"),
        ({"target": "emotion", "selection": "ccc"}, ConfigError, "--selection ccc needs --target dimensions"),
        ({"target": "emotion", "labels": "fuzzy"}, UnknownNameError, "Unknown kind of --labels 'fuzzy'. .*hard, soft"),
    ],
)  # fmt: skip
def test_settings_that_make_no_sense(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        replace(CONFIG, **changes)


def test_a_dimension_that_the_corpus_lacks(manifest: Manifest, tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"'toy' has no values of dominance; it has arousal, valence"):
        compare(manifest, tmp_path, config=replace(CONFIG, dimensions=("dominance",)))


# ------------------------------------------------------------------------------------------------ answers and tables

FAMILIES = {"wav": "RLR", "xvec": "RLR", "enc": "CBR"}


def _weigh(*scores: CellScore) -> Evidence:
    return weigh(scores, families=FAMILIES)


def test_answers_are_in_ccc_and_for_every_dimension() -> None:
    evidence = _weigh(
        made_up_score("wav", skill=(0.5, 0.6)),
        made_up_score("enc", skill=(0.4, 0.3)),
        made_up_score("wav", "enc", "concat", skill=(0.9, 0.6)),
        made_up_score("wav", "", RIDGE, skill=(0.3, 0.3), seeds=1),
    )
    first = evidence.answers[0]
    assert first.sentence.startswith(
        "Yes: 1 of 1 fused cell beats both of its single representations significantly; the best"
    )
    assert "is wav+enc concat (0.7" in first.sentence
    assert " CCC above wav [+0." in first.sentence
    assert set(evidence.by_dimension) == {"arousal", "valence"}
    assert [answers[0].verdict for answers in evidence.by_dimension.values()] == ["yes", "not shown"]
    assert "single against ridge regression on the same input: significantly better on 1 of 1 input" in " ".join(
        evidence.remarks
    )
    assert evidence.cells[0].marks == "‡"
    assert evidence.cells[2].marks == "↑"
    assert "differences between a fusion and its singles under 0.0" in evidence.caveats[0]
    assert " CCC cannot be seen" in evidence.caveats[0]


def test_best_pair_is_named_with_its_ccc() -> None:
    evidence = _weigh(
        made_up_score("wav", "enc", "concat", skill=0.9), made_up_score("xvec", "enc", "concat", skill=0.3)
    )
    said = next(answer.sentence for answer in evidence.answers if answer.question.startswith("Which pair"))
    assert said.startswith("Yes: wav+enc has the highest CCC (0.8")
    assert "concat) of 2 pairs; all others are significantly below it" in said
    said = evidence.by_dimension["valence"][2].sentence
    assert "wav+enc has the highest CCC of valence (0.8" in said


@pytest.mark.parametrize(("drop", "unused"), [(0.0, ("right",)), (0.3, ())])
def test_an_input_that_costs_less_than_a_hundredth_is_not_used(drop: float, unused: tuple[str, ...]) -> None:
    cell = made_up_score("wav", "enc", "concat", skill=0.7, drops=(0.4, drop))
    assert _weigh(cell).cells[0].unused == unused


def test_tables_show_the_mean_and_every_dimension(manifest: Manifest, tmp_path: Path) -> None:
    comparison = compare(manifest, tmp_path)
    table = build_table(comparison)
    assert [block.title for block in table.blocks] == ["concat", "hyperbolic", "ridge"]
    entry = table.blocks[0].rows[0][1][0]
    score = next(score for score in comparison.scores if score.fusion == "concat")
    assert entry.score.startswith(f"{score.value:.3f}")
    arousal, valence = (score.estimates[f"ccc_{name}"].value for name in ("arousal", "valence"))
    assert entry.others == f"arousal {arousal:.3f} · valence {valence:.3f}".replace("-", "−")
    assert " / " in entry.drops
    text = to_markdown(table)
    assert "**concat** — CCC [95 % interval], CCC of each, CCC lost by shuffling left / right" in text
    assert "Cells: mean CCC over the dimensions [95 % interval]" in text
    assert "(less than 0.010 is lost" in text
    assert "Arousal alone: Does fusion beat the best single representation?" in text
    assert "Valence alone: " in text
    assert "concat: CCC [95 \\% interval]" in to_latex(table)
    header = to_csv(table).splitlines()[0].split(",")
    assert {"ccc", "ccc_valence_low", "pearson", "mae_arousal", "versus_ridge_p_holm", "left_drop_valence"} <= set(
        header
    )
    assert "uar" not in header
    assert weigh_run(read_run(tmp_path / "run")).answers == table.answers


# ------------------------------------------------------------------------------------------------ tuning


def test_tuning_by_the_ccc_of_inner_folds(manifest: Manifest, tmp_path: Path) -> None:
    pytest.importorskip("optuna", reason="tuning is an optional extra: pip install 'hyfuse[tune]'")
    found = tune_cell(
        manifest,
        Cell("ssl", "codec", "concat"),
        config=replace(CONFIG, seeds=1),
        tuning=TuneConfig(trials=2, inner_folds=2, search=("learning_rate", "dropout")),
        cache_dir=tmp_path / "cache",
        run_dir=tmp_path / "run",
    )
    for fold in found.folds:
        assert fold.inner_score >= fold.start_score
        assert -1 <= fold.start_score <= 1
    (score,) = found.comparison.scores
    assert score.dimensions == ("arousal", "valence")
    assert any("each the CCC of inner folds" in note for note in found.comparison.notes)


def test_settings_of_classes_are_not_searched() -> None:
    cell = Cell("a", "b", "concat")
    assert "label_smoothing" in search_space(cell)
    assert "label_smoothing" not in search_space(cell, target="dimensions")
    with pytest.raises(UnknownNameError, match="Unknown setting to search for concat 'label_smoothing'"):
        search_space(cell, ["label_smoothing"], target="dimensions")
