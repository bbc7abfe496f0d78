"""Scores of dimensions: sums against audmetric, exactness, intervals and tests against loops, what is not defined, run folders."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import audmetric
import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from scipy import stats

from pipelines.errors import ConfigError, RunError, UnknownNameError
from pipelines.evaluation.measures import measure_of
from pipelines.evaluation.results import HeadRecord, RunFolder, score_cell
from pipelines.evaluation.runs import compare_runs, read_run
from pipelines.evaluation.statistics import (
    bootstrap_intervals,
    dimension_metrics,
    paired_difference,
    resample,
    score,
    speaker_sums,
    speaker_values,
)
from pipelines.training.grid import Cell
from tests.evaluation.dimension_cells import DIMENSIONS, made_up_score, made_up_truth

METRICS = dimension_metrics(DIMENSIONS)
ORACLES = {
    "ccc": audmetric.concordance_cc,
    "pearson": audmetric.pearson_cc,
    "mae": audmetric.mean_absolute_error,
}


def _predictions(seed: int, seeds: int = 2, skill: float = 0.7, bias: float = 0.3) -> NDArray[np.float32]:
    truth, who = made_up_truth()
    generator = np.random.default_rng(seed)
    of_speaker = bias * generator.standard_normal(10)[[int(name[1:]) for name in who], None]
    return (1 + skill * truth + of_speaker + 0.7 * generator.standard_normal((seeds, *truth.shape))).astype(np.float32)


def _sums(seed: int, **options: Any) -> NDArray[np.float64]:
    truth, who = made_up_truth()
    return speaker_sums(truth, _predictions(seed, **options), who)


# ------------------------------------------------------------------------------------------------ sums


def test_scores_of_sums_equal_audmetric() -> None:
    truth, who = made_up_truth()
    predicted = _predictions(0)
    sums = speaker_sums(truth, predicted, who)
    assert sums.shape == (10, 2, 2, 7)
    for kind, oracle in ORACLES.items():
        by_dimension = [np.mean([oracle(truth[:, d], seed[:, d]) for seed in predicted]) for d in range(2)]
        assert score(sums, METRICS[kind]) == pytest.approx(np.mean(by_dimension), abs=1e-6)
        for name, expected in zip(DIMENSIONS, by_dimension, strict=True):
            assert score(sums, METRICS[f"{kind}_{name}"]) == pytest.approx(expected, abs=1e-6)
    own = np.flatnonzero(np.array(who) == "s03")
    expected = np.mean([audmetric.concordance_cc(truth[own, 1], seed[own, 1]) for seed in predicted])
    assert speaker_values(sums, METRICS["ccc_valence"])[3] == pytest.approx(expected, abs=1e-6)
    assert list(METRICS)[:4] == ["ccc", "ccc_arousal", "ccc_valence", "pearson"]


def test_sums_are_exact_and_know_no_order() -> None:
    truth, who = made_up_truth()
    predicted = _predictions(0)
    sums = speaker_sums(truth, predicted, who)
    order = np.random.default_rng(1).permutation(len(truth))
    turned = speaker_sums(truth[order], predicted[:, order], [who[row] for row in order])
    np.testing.assert_array_equal(turned, sums)
    halves = [  # what adds up, adds up to the last bit
        speaker_sums(truth, predicted, [f"{name}{row % 2}" for row, name in enumerate(who)]).reshape(
            10, 2, *sums.shape[1:]
        )
    ]
    np.testing.assert_array_equal(halves[0].sum(axis=1), sums)
    from threadpoolctl import threadpool_limits

    found = []
    for threads in (1, 2):
        with threadpool_limits(threads):
            found.append(
                (bootstrap_intervals(sums, METRICS), resample([sums, _sums(2)], METRICS["ccc"]).difference([0], [1]))
            )
    assert found[0] == found[1]


@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (0.001, 5.0), (1e4, -3e5)])
def test_the_scale_of_a_corpus_does_not_matter(scale: float, shift: float) -> None:
    truth, who = (made_up_truth()[0].astype(np.float64), made_up_truth()[1])
    predicted = _predictions(0).astype(np.float64)
    plain, scaled = (
        speaker_sums(truth, predicted, who),
        speaker_sums(truth * scale + shift, predicted * scale + shift, who),
    )
    for name in ("ccc", "pearson", "ccc_valence"):
        assert score(scaled, METRICS[name]) == pytest.approx(score(plain, METRICS[name]), abs=1e-6)
    assert score(scaled, METRICS["mae"]) == pytest.approx(scale * score(plain, METRICS["mae"]), rel=1e-6)


def test_predictions_far_off_stay_finite() -> None:
    truth, who = made_up_truth()
    sums = speaker_sums(truth, _predictions(0) * 1e6, who)
    assert abs(score(sums, METRICS["ccc"])) < 1e-3
    assert score(sums, METRICS["pearson"]) == pytest.approx(score(_sums(0), METRICS["pearson"]), abs=1e-3)


# ------------------------------------------------------------------------------------------------ what is not defined


def test_constant_predictions() -> None:
    truth, who = made_up_truth()
    sums = speaker_sums(truth, np.full((1, *truth.shape), 0.1, np.float32), who)
    assert score(sums, METRICS["ccc"]) == pytest.approx(0, abs=1e-6)
    assert math.isnan(score(sums, METRICS["pearson"]))
    intervals = bootstrap_intervals(sums, METRICS)
    assert math.isnan(intervals["pearson"].low)
    assert intervals["ccc"].high == pytest.approx(0, abs=1e-6)
    assert intervals["mae"].low > 2


def test_speakers_of_one_utterance_have_no_score_of_their_own() -> None:
    truth, _ = made_up_truth()
    who = [f"s{row}" for row in range(len(truth))]
    exact = speaker_sums(truth, truth[None], who)
    assert np.isnan(speaker_values(exact, METRICS["ccc"])).all()
    assert score(exact, METRICS["ccc"]) == pytest.approx(1, abs=1e-6)
    found = paired_difference(exact, speaker_sums(truth, _predictions(0), who), METRICS["ccc"])
    assert found.p < 1e-6  # the pooled score needs no speaker's own
    assert (found.better, found.worse, found.wilcoxon_p) == (0, 0, 1.0)


def test_one_speaker_has_scores_and_no_intervals() -> None:
    found = made_up_score("a", "b", "concat", skill=0.8, speakers=1)
    assert 0.5 < found.value < 0.95
    assert np.isnan([found.interval.low, found.speaker_std, found.left_drop_p]).all()


def test_other_utterances_are_refused() -> None:
    truth, who = made_up_truth()
    changed = truth.copy()
    changed[0, 1] += 0.1
    other = speaker_sums(changed, _predictions(0), who)
    message = r"not tested on the same utterances: 240 of 10 speakers and 2 dimension\(s\)"
    for compare in (
        lambda: paired_difference(_sums(0), other, METRICS["ccc"]),
        lambda: resample([_sums(0), other], METRICS["ccc"]),
    ):
        with pytest.raises(ConfigError, match=message):
            compare()
    with pytest.raises(ConfigError, match=message):
        paired_difference(_sums(0), _sums(0)[1:], METRICS["ccc"])


# ------------------------------------------------------------------------------------------------ intervals and tests


@pytest.mark.parametrize("name", ["ccc", "pearson_arousal", "mae"])
def test_intervals_equal_a_loop_over_resampled_speakers(name: str) -> None:
    sums = _sums(3)
    generator = np.random.default_rng(99)
    scores = [score(sums[generator.integers(0, 10, 10)], METRICS[name]) for _ in range(4000)]
    reach = stats.t.ppf(0.975, 9) * math.sqrt(10 / 9)
    low, high = np.quantile(scores, [stats.norm.cdf(-reach), stats.norm.cdf(reach)])
    found = bootstrap_intervals(sums, {name: METRICS[name]}, replicates=4000)[name]
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.012)


def test_differences_equal_a_loop_over_resampled_speakers() -> None:
    first, second = _sums(1, seeds=1, skill=0.8), _sums(2, seeds=1, skill=0.7)
    generator = np.random.default_rng(99)
    differences = []
    for _ in range(4000):
        drawn = generator.integers(0, 10, 10)
        differences.append(score(first[drawn], METRICS["ccc"]) - score(second[drawn], METRICS["ccc"]))
    found = paired_difference(first, second, METRICS["ccc"], replicates=4000)
    error = np.std(differences, ddof=1) * math.sqrt(10 / 9)
    assert found.value == pytest.approx(score(first, METRICS["ccc"]) - score(second, METRICS["ccc"]))
    assert found.p == pytest.approx(2 * stats.t.sf(abs(found.value) / error, 9), rel=0.2)
    table = resample([first, second], METRICS["ccc"], replicates=4000).difference([0], [1])
    assert table == found


@pytest.mark.slow
def test_error_rates_and_coverage_with_ten_speakers() -> None:
    """Speakers with a mean, a gain and biases of their own; 1000 times. A plain percentile interval covers 88 %, and its test
    rejects 12 % of what is equal.
    """
    metric = dimension_metrics(["arousal"])["ccc"]

    def draw(generator: np.random.Generator, speakers: int) -> tuple[np.ndarray, list[np.ndarray], list[str]]:
        who = np.repeat(np.arange(speakers), generator.integers(10, 40, speakers))
        truth = generator.normal(0, 0.5, speakers)[who] + generator.normal(0, 1, len(who))
        shared = generator.normal(0, 0.3, speakers)[who] + generator.normal(0, 0.4, len(who))
        cells = []
        for _ in range(2):
            gain, bias = 0.8 + generator.normal(0, 0.15, speakers)[who], generator.normal(0, 0.2, speakers)[who]
            cells.append(gain * truth + shared + bias + generator.normal(0, 0.4, len(who)))
        return truth, cells, [f"{one:05d}" for one in who]

    truth, (many, _), _ = draw(np.random.default_rng(1), 20_000)
    expected = audmetric.concordance_cc(truth, many)
    generator = np.random.default_rng(10)
    covered = rejected = 0
    for _ in range(1000):
        truth, cells, who = draw(generator, 10)
        sums = [speaker_sums(truth[:, None], cell[None, :, None], who) for cell in cells]
        interval = bootstrap_intervals(sums[0], {"": metric}, replicates=500)[""]
        covered += interval.low <= expected <= interval.high
        rejected += resample(sums, metric, replicates=500).difference([0], [1]).p < 0.05
    assert 0.91 < covered / 1000 < 0.97
    assert 0.03 < rejected / 1000 < 0.065


# ------------------------------------------------------------------------------------------------ cells


def _records(
    seeds: int = 2, right: str = "b"
) -> tuple[list[HeadRecord], NDArray[np.float32], list[str], NDArray[np.float32]]:
    """Five folds by speaker under some seeds; the right input is not used."""
    truth, who = made_up_truth()
    predicted = _predictions(4, seeds=seeds)
    records = []
    for seed in range(seeds):
        for fold in range(5):
            test = np.flatnonzero([int(name[1:]) % 5 == fold for name in who])
            row = {
                "cell": f"a+{right} concat" if right else "a", "left": "a", "right": right,
                "fusion": "concat" if right else "single",
                "fold": str(fold), "seed": seed, "options": {}, "diagnostics": {"share": 0.25}, "curves": {},
            }  # fmt: skip
            own = predicted[seed, test]
            records.append(HeadRecord(row, test, own, own[::-1].copy(), own))
    return records, truth, who, predicted


def test_a_cell_of_dimensions() -> None:
    records, truth, who, predicted = _records()
    cell = score_cell(Cell("a", "b", "concat"), records, truth=truth, speakers=who, dimensions=DIMENSIONS)
    expected = [[audmetric.concordance_cc(truth[:, d], seed[:, d]) for d in range(2)] for seed in predicted]
    assert cell.value == pytest.approx(np.mean(expected), abs=1e-6)
    assert cell.estimates["ccc_valence"].value == pytest.approx(np.mean(expected, axis=0)[1], abs=1e-6)
    assert cell.seed_std == pytest.approx(np.std(np.mean(expected, axis=1), ddof=1), abs=1e-6)
    assert cell.interval.low < cell.value < cell.interval.high
    assert (cell.folds, cell.seeds, cell.utterances, len(cell.speakers)) == (5, 2, 240, 10)
    assert cell.fold_std > 0
    assert cell.left_drop > 0.3
    assert cell.left_drop_p < 0.01
    assert (cell.right_drop, cell.right_drop_p) == (0.0, 1.0)
    assert cell.drops["ccc_arousal"][0] > 0.3
    assert cell.drops["ccc"] == (pytest.approx(cell.left_drop), 0.0)
    record = cell.to_record()
    assert all(isinstance(value, str | int | float) for value in record.values())
    assert {"ccc", "ccc_low", "ccc_seed_std", "ccc_arousal", "pearson_valence_high", "mae", "left_drop_arousal"} <= set(
        record
    )
    assert not {"uar", "ece"} & set(record)
    with pytest.raises(KeyError):
        _ = cell.uar


def test_measures() -> None:
    measure = measure_of("dimensions", DIMENSIONS)
    assert (measure.key, measure.name, measure.linear, measure.rung) == ("ccc", "CCC", "ridge", "ridge regression")
    assert [measure.text(0.62), measure.full(0.62), measure.change(-0.0123), measure.amount(-0.0123)] == [
        "0.620", "0.620", "−0.012", "0.012 CCC"
    ]  # fmt: skip
    assert [measure.change(value) for value in (0.0, 1e-5, -1e-5, 0.3)] == ["0.000", "0.000", "0.000", "+0.300"]
    one = measure.of("valence")
    assert (one.key, one.name) == ("ccc_valence", "CCC of valence")
    assert measure_of("dimensions", ["valence"]).name == "CCC of valence"
    with pytest.raises(UnknownNameError, match="dimension of this table 'dominance'"):
        measure.of("dominance")
    emotion = measure_of("emotion")
    assert [emotion.text(0.62), emotion.full(0.62), emotion.change(-0.0123), emotion.amount(-0.0123)] == [
        "62.0", "62.0 %", "−1.2", "1.2 points"
    ]  # fmt: skip
    assert (emotion.linear, emotion.rung) == ("logistic", "logistic regression")
    with pytest.raises(UnknownNameError, match="Unknown target 'valence'"):
        measure_of("valence")


# ------------------------------------------------------------------------------------------------ run folders


def _write(path: Path, *, right: str = "b", **changes: Any) -> Path:
    records, truth, who, _ = _records(right=right)
    config = {
        "corpus": "toy", "target": "dimensions", "classes": [], "dimensions": list(DIMENSIONS), "seeds": [0, 1],
        "split_digest": "5" * 64, "protocol": "speaker-5fold", "sources": {
            name: {"family": family, "weights_kind": "pretrained"} for name, family in (("a", "RLR"), ("b", "CBR"))
        },
    } | changes.pop("config", {})  # fmt: skip
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    run = RunFolder(path)
    run.write_results(records)
    truth = truth + changes.pop("shift", 0.0)
    run.write_predictions(
        records,
        utterance_ids=[f"u{row:03d}" for row in range(len(who))],
        speakers=who,
        truth=truth,
        dimensions=DIMENSIONS,
    )
    assert not changes
    return path


def test_a_run_is_read_back_to_the_last_bit(tmp_path: Path) -> None:
    records, truth, who, _ = _records()
    made = score_cell(Cell("a", "b", "concat"), records, truth=truth, speakers=who, dimensions=DIMENSIONS)
    run = read_run(_write(tmp_path / "run"))
    (read,) = run.scores
    np.testing.assert_array_equal(read.tallies, made.tallies)
    assert read.to_record() == made.to_record()
    assert (run.target, run.dimensions, run.classes, run.labels) == ("dimensions", DIMENSIONS, (), {})
    assert run.values["u003"] == tuple(truth[3].tolist())
    table = pd.read_parquet(tmp_path / "run" / "predictions.parquet")
    assert [name for name in table if name.endswith("_valence")] == [
        "true_valence", "predicted_valence", "left_shuffled_valence", "right_shuffled_valence"
    ]  # fmt: skip
    alone = read_run(_write(tmp_path / "single", right=""))
    assert alone.scores[0].right_shuffled_tallies is None
    assert pd.read_parquet(tmp_path / "single" / "predictions.parquet")["right_shuffled_arousal"].isna().all()


def test_runs_of_dimensions_are_compared(tmp_path: Path) -> None:
    first, second = (read_run(_write(tmp_path / name)) for name in ("first", "second"))
    found = compare_runs(first, second)
    (cell,) = found.cells
    assert found.measure.key == "ccc"
    assert set(cell.differences) == set(METRICS)
    assert all(one.value == 0 for one in cell.differences.values())
    moved = compare_runs(first, read_run(_write(tmp_path / "moved", shift=0.5)))
    assert not moved.cells
    assert "The values of 240 test utterances differ, such as u000" in moved.refusals[0].reason
    fewer = {"dimensions": ["arousal"]}
    assert (
        "The dimensions differ: arousal, valence; and arousal."
        in compare_runs(first, read_run(_write(tmp_path / "fewer", config=fewer))).refusals[0].reason
    )


def test_damaged_runs(tmp_path: Path) -> None:
    for config, message in (
        ({"dimensions": []}, "neither classes nor dimensions"),
        ({"classes": ["anger"]}, "classes and dimensions"),
        ({"dimensions": ["dominance"]}, "lacks the columns true_dominance, predicted_dominance"),
    ):
        with pytest.raises(RunError, match=message):
            read_run(_write(tmp_path / message[:5], config=config))
    path = _write(tmp_path / "run")
    table = pd.read_parquet(path / "predictions.parquet")
    table.loc[3, "predicted_valence"] = np.nan
    table.to_parquet(path / "predictions.parquet")
    with pytest.raises(RunError, match="has predicted values that are no numbers"):
        read_run(path)
