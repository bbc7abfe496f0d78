"""The study on noise: what is trained equals comparisons made without it, what was put in is found, mistakes are named."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import torch

from pipelines.corpora.manifest import Manifest
from pipelines.corpora.protocols import make_split
from pipelines.errors import ConfigError, ManifestError, ProvenanceError, StoreError, UnknownNameError
from pipelines.evaluation.runs import read_run
from pipelines.evaluation.statistics import paired_difference, pseudo_values, resample, variance_components
from pipelines.store.embeddings import open_store, remove_store, store_path
from pipelines.studies.noise import NoiseConfig, noise_cells, study_noise
from pipelines.studies.noise_findings import arranged, snr_of
from pipelines.studies.outcome import Cell, Outcome, Table, read_outcome
from pipelines.studies.pairs import ComparisonConfig, compare_cells
from pipelines.training.data import default_classes
from pipelines.training.grid import Cell as GridCell
from pipelines.training.metrics import uar_of
from pipelines.training.trainer import HeadTask, TrainConfig, steps_per_epoch, train_stack
from tests.evaluation.cells import made_up_cell
from tests.studies.noisy_corpus import CONDITIONS, make_noisy_corpus, write_store

FAMILIES = {"ssl": "RLR", "codec": "CBR", "words": "LEX"}
TRAIN = TrainConfig(epochs=15)
COMPARISON = ComparisonConfig(protocol="speaker-3fold", seeds=3, pool="mean", train=TRAIN)
CONFIG = NoiseConfig(conditions=CONDITIONS, comparison=COMPARISON)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("noise") / "cache"


@pytest.fixture(scope="module")
def manifest(cache: Path) -> Manifest:
    return make_noisy_corpus(cache)


@pytest.fixture(scope="module")
def run_dir(manifest: Manifest, cache: Path) -> Path:
    """A finished run."""
    run_dir = cache.parent / "whole"
    study(manifest, cache, run_dir)
    return run_dir


@pytest.fixture(scope="module")
def outcome(run_dir: Path) -> Outcome:
    return read_outcome(run_dir)


def study(
    manifest: Manifest,
    cache: Path,
    run_dir: Path,
    *,
    config: NoiseConfig = CONFIG,
    families: dict[str, str] = FAMILIES,
    fusions: tuple[str, ...] = ("concat",),
    **options: Any,
) -> Outcome:
    cells = noise_cells(families, fusions)
    return study_noise(manifest, cells, families=families, config=config, cache_dir=cache, run_dir=run_dir, **options)


def table(outcome: Outcome, name: str) -> Table:
    (found,) = [one for one in outcome.tables if one.name == name]
    return found


def cell(outcome: Outcome, name: str, row: str, column: str) -> Cell:
    found = table(outcome, name)
    place = [one.title for one in found.columns].index(column)
    (own,) = [one for one in found.rows if one[0] == row]
    assert isinstance(own[place], Cell)
    return own[place]


def answer(outcome: Outcome, words: str) -> str:
    (found,) = [one for one in outcome.answers if words in one.partition("?")[0]]
    return found


def predictions(run_dir: Path, cell: str) -> np.ndarray:
    found = pd.read_parquet(run_dir / "predictions.parquet")
    found = found[found["cell"] == cell].sort_values(["seed", "utterance_id"])
    assert len(found)
    return found[[name for name in found.columns if name.startswith(("p_", "left_", "right_"))]].to_numpy()


# ------------------------------------------------------------------------------------------------ conditions


@pytest.mark.parametrize(
    ("condition", "series", "snr_db"),
    [
        ("clean", "clean", None),
        ("noise:esc10@-2.5dB", "noise:esc10", -2.5),
        ("babble@10dB", "babble", 10.0),
        ("white@0dB+seed:3", "white+seed:3", 0.0),
        ("reverb:0.6s@-5dB+noise:esc10@5dB", "reverb:0.6s@-5dB+noise:esc10", 5.0),
        ("telephone", "telephone", None),
        ("reverb:0.6s@-5dB", "reverb:0.6s@-5dB", None),
        ("white@0dB+pink@5dB", "white@0dB+pink@5dB", None),
    ],
)
def test_snr_of_a_condition(condition: str, series: str, snr_db: float | None) -> None:
    found = snr_of(condition)
    assert found[0] == series
    assert np.isnan(found[1]) if snr_db is None else found[1] == snr_db


def test_conditions_are_arranged() -> None:
    given = ["telephone", "white@-5dB", "noise:esc10@0dB", "clean", "noise:esc10@20dB", "white@10dB", "noise:esc10@0dB"]
    expected = ("clean", "noise:esc10@20dB", "noise:esc10@0dB", "white@10dB", "white@-5dB", "telephone")
    assert arranged(given) == expected


def test_pairs_are_acoustic_with_codec_and_acoustic_with_text() -> None:
    cells = noise_cells({"a": "RLR", "b": "CBR", "c": "RLR", "t": "LEX"}, ["concat"])
    assert [one.title for one in cells] == [
        "a", "b", "c", "t", "a+b concat", "c+b concat", "a+t concat", "b+t concat", "c+t concat",
    ]  # fmt: skip


def test_inputs_are_shuffled_within_a_condition() -> None:
    test = np.array([3, 5, 7, 13, 15, 17])
    task = HeadTask(fold="1", seed=0, train=test, validation=test, test=test, test_blocks=2)
    shuffled = task.shuffled_test(np.random.default_rng(1))
    assert sorted(shuffled[:3]) == [3, 5, 7]
    assert sorted(shuffled[3:]) == [13, 15, 17]
    whole = replace(task, test_blocks=1).shuffled_test(np.random.default_rng(1))
    assert (whole == np.random.default_rng(1).permutation(test)).all()


# ------------------------------------------------------------------------------------------------ what is trained


@pytest.mark.parametrize(("left", "right", "fusion"), [("ssl", "", "single"), ("ssl", "codec", "concat")])
def test_clean_and_matched_training_are_those_of_the_comparison(
    left: str, right: str, fusion: str, manifest: Manifest, cache: Path, run_dir: Path, tmp_path: Path
) -> None:
    one = GridCell(left, right, fusion)
    for condition, regime in (("clean", "clean"), ("noise:esc10@5dB", "matched")):
        run = tmp_path / condition
        compare_cells(manifest, [one], config=replace(COMPARISON, condition=condition), cache_dir=cache, run_dir=run)
        own = predictions(run_dir, f"{one.title} ({condition}, trained {regime})")
        assert (own == predictions(run, one.title)).all()


def test_multi_condition_training_is_that_of_the_matrices_below_each_other(
    manifest: Manifest, cache: Path, run_dir: Path
) -> None:
    """An oracle that puts rows together by hand."""
    ids, classes = manifest.utterance_ids, default_classes(manifest, ())
    stores = [open_store(store_path(cache, "toy", "ssl", condition)) for condition in CONDITIONS]
    matrix = np.concatenate([store.features(ids, representation="only", pool="mean") for store in stores])
    labels = np.array([classes.index(name) for name in manifest.table["emotion"]])
    split = make_split(
        "speaker-3fold",
        utterance_ids=ids,
        speakers=list(manifest.table["speaker"]),
        labels=list(manifest.table["emotion"]),
    )
    fold = split.folds[1]

    def everywhere(rows: np.ndarray) -> np.ndarray:
        return np.concatenate([rows + block * len(ids) for block in range(len(CONDITIONS))])

    plain = [
        HeadTask(fold=one.name, seed=1, train=one.train, validation=one.validation, test=one.test)
        for one in split.folds
    ]
    task = HeadTask(
        fold=fold.name,
        seed=1,
        train=everywhere(fold.train),
        validation=everywhere(fold.validation),
        test=everywhere(fold.test),
    )
    config = replace(TRAIN, selection="fixed")
    (result,) = train_stack(
        fusion="single",
        options={},
        left=torch.from_numpy(matrix),
        right=None,
        tasks=[task],
        steps_per_epoch=steps_per_epoch(plain, config),
        config=config,
        labels=torch.from_numpy(np.tile(labels, len(CONDITIONS))),
        num_classes=3,
    )
    found = pd.read_parquet(run_dir / "predictions.parquet")
    for block, condition in enumerate(CONDITIONS):
        own = found[
            (found["cell"] == f"ssl ({condition}, trained multi)") & (found["seed"] == 1) & (found["fold"] == fold.name)
        ]
        own = own.set_index("utterance_id").loc[[ids[row] for row in fold.test]]
        expected = result.test_outputs[block * len(fold.test) : (block + 1) * len(fold.test)]
        assert (own[[f"p_{name}" for name in classes]].to_numpy(np.float32) == expected).all()


def test_text_by_hand_is_trained_once_and_stands_for_all(outcome: Outcome, run_dir: Path) -> None:
    rows = [json.loads(line) for line in (run_dir / "results.jsonl").read_text().splitlines()]
    words = [row for row in rows if (row["left"], row["right"]) == ("words", "")]
    assert len(words) == 3 * 3
    assert {row["condition"] for row in words} == {"any"}
    values = {
        cell(outcome, f"scores-{regime}", "words", column).value
        for regime in ("clean", "matched", "multi")
        for column in ("clean", "esc10 0dB", "telephone", "area esc10")
    }
    assert max(values) == pytest.approx(min(values))


def test_an_interrupted_study_ends_with_the_same_bytes(
    manifest: Manifest, cache: Path, run_dir: Path, tmp_path: Path
) -> None:
    counts: list[tuple[int, int]] = []

    def stop(done: int, total: int, what: str) -> None:
        if done >= total // 2:
            raise KeyboardInterrupt

    def note(done: int, total: int, what: str) -> None:
        counts.append((done, total))

    with pytest.raises(KeyboardInterrupt):
        study(manifest, cache, tmp_path / "parts", progress=stop)
    study(manifest, cache, tmp_path / "parts", progress=note)
    assert 0 < counts[0][0] < counts[0][1]
    for name in ("results.jsonl", "predictions.parquet", "study.json"):
        assert (tmp_path / "parts" / name).read_bytes() == (run_dir / name).read_bytes(), name
    assert not list((tmp_path / "parts").glob("*.f32"))
    counts.clear()
    study(manifest, cache, tmp_path / "parts", progress=note)
    assert counts == [(counts[0][1], counts[0][1])]


def test_the_order_of_conditions_changes_nothing_and_matched_heads_stay(
    manifest: Manifest, cache: Path, run_dir: Path, tmp_path: Path
) -> None:
    few = replace(CONFIG, conditions=("noise:esc10@0dB",), training=("matched",))
    study(manifest, cache, tmp_path / "run", config=few)
    counts: list[tuple[int, int]] = []
    more = replace(CONFIG, conditions=CONDITIONS[::-1])
    study(manifest, cache, tmp_path / "run", config=more, progress=lambda *now: counts.append(now[:2]))
    heads = 3 * 3
    assert counts[0][0] == heads * (
        1 + 5 * 1
    )  # words, and the five others under 0 dB; those of clean have another title now
    assert (tmp_path / "run" / "study.json").read_bytes() == (run_dir / "study.json").read_bytes()


def test_utterances_that_failed_anywhere_are_left_out_everywhere(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    manifest = make_noisy_corpus(cache)
    store = open_store(store_path(cache, "toy", "ssl", "noise:esc10@0dB"))
    values = store.features(manifest.utterance_ids, representation="only", pool="mean")
    remove_store(store.path)
    write_store(cache, manifest, "ssl", "RLR", "noise:esc10@0dB", values, digest="noise:esc10@0dB", failed=(0, 7))
    config = replace(CONFIG, training=("clean", "multi"))
    outcome = study(manifest, cache, tmp_path / "run", config=config, families={"ssl": "RLR"}, fusions=())
    assert any("2 (failed in ssl under noise:esc10@0dB)" in note for note in outcome.notes)
    found = pd.read_parquet(tmp_path / "run" / "predictions.parquet")
    assert set(found.groupby("cell")["utterance_id"].nunique()) == {94}
    assert manifest.utterance_ids[0] not in set(found["utterance_id"])


def test_multi_conditions_may_be_others_than_those_tested(manifest: Manifest, cache: Path, tmp_path: Path) -> None:
    config = replace(
        CONFIG, conditions=("noise:esc10@0dB",), training=("clean", "multi"), multi_conditions=("telephone",)
    )
    outcome = study(manifest, cache, tmp_path / "run", config=config, families={"ssl": "RLR"}, fusions=())
    assert [one.title for one in table(outcome, "scores-multi").columns] == ["Head", "clean", "esc10 0dB"]
    assert any("trained on 2 conditions together (clean, telephone)" in note for note in outcome.notes)


# ------------------------------------------------------------------------------------------------ what is found


def test_scores_and_area_are_those_of_the_predictions(outcome: Outcome, run_dir: Path) -> None:
    scores = {one.cell: one for one in read_run(run_dir).scores}
    curve = []
    for condition in CONDITIONS:
        expected = 100 * scores[f"ssl ({condition}, trained clean)"].value
        column = condition.removeprefix("noise:").replace("@", " ")
        assert cell(outcome, "scores-clean", "ssl", column).value == pytest.approx(expected)
        curve.append(expected)
    area = np.trapezoid([curve[3], curve[2], curve[1]], [0, 5, 20]) / 20
    assert cell(outcome, "scores-clean", "ssl", "area esc10").value == pytest.approx(area)
    assert cell(outcome, "loss-clean", "ssl", "area esc10").value == pytest.approx(area - curve[0])
    one, other = (scores[f"ssl ({name}, trained clean)"] for name in ("noise:esc10@0dB", "clean"))
    difference = paired_difference(one.tallies, other.tallies)
    found = cell(outcome, "loss-clean", "ssl", "esc10 0dB")
    assert found.value == pytest.approx(100 * difference.value)
    assert (found.low, found.high) == pytest.approx((100 * difference.interval.low, 100 * difference.interval.high))


def test_what_was_put_in_is_found(outcome: Outcome) -> None:
    """Noise buries ``ssl``, hardly touches ``codec``, and not the text; text helps; training under noise helps."""
    assert cell(outcome, "loss-clean", "ssl", "esc10 0dB").value < -20
    assert cell(outcome, "loss-clean", "ssl", "esc10 0dB").mark == "*"
    assert abs(cell(outcome, "loss-clean", "codec", "esc10 20dB").value) < 5
    assert "? Yes" in answer(outcome, "acoustics more than text")
    assert "ssl loses" in answer(outcome, "acoustics more than text")
    assert "? Yes" in answer(outcome, "RLR more than CBR")
    assert "? Yes" in answer(outcome, "worse")
    hurt = {row[0] for row in table(outcome, "loss-clean").rows}
    assert "words" not in hurt
    used = {row[2]: row for row in table(outcome, "reliance").rows if row[:2] == ("ssl+words concat", "clean")}
    falling = [one.value for one in used["ssl"][3:] if isinstance(one, Cell)]
    assert falling[0] > falling[3]


def test_the_difference_of_losses_is_tested(outcome: Outcome, run_dir: Path) -> None:
    scores = {one.cell: one for one in read_run(run_dir).scores}
    noisy = CONDITIONS[1:]

    def loss(name: str) -> float:
        own = [scores[f"{name} ({condition}, trained clean)"].value for condition in ("clean", *noisy)]
        return 100 * (own[0] - float(np.mean(own[1:])))

    expected = loss("ssl") - loss("codec")
    found = re.search(r"a difference of \+([\d.]+) points", answer(outcome, "RLR more than CBR"))
    assert found is not None
    assert float(found[1]) == pytest.approx(expected, abs=0.051)


def test_a_weighted_sum_is_what_its_differences_are() -> None:
    tallies = [
        made_up_cell(name, skill=skill).tallies for name, skill in zip("abcd", (0.9, 0.6, 0.7, 0.5), strict=True)
    ]
    together = resample(tallies)
    assert together.difference([0], [1]) == together.weighted(np.array([1.0, -1.0, 0.0, 0.0]))
    double = together.weighted(np.array([1.0, -1.0, -1.0, 1.0]))
    expected = together.difference([0], [1]).value - together.difference([2], [3]).value
    assert double.value == pytest.approx(expected)


def test_what_a_seed_does_to_both_terms_cancels() -> None:
    """One head under two conditions: the variance of seeds is that of the difference, by hand."""
    tallies = [made_up_cell(name, skill=skill, seeds=4).tallies for name, skill in (("a", 0.9), ("b", 0.6))]
    for one in tallies:  # a seed that is bad for everybody: two of its hits of every class become misses
        one[:, 0, range(3), range(3)] -= 2
        one[:, 0, range(3), [1, 2, 0]] += 2
    together = resample(tallies)
    apart, paired = (together.weighted(np.array([1.0, -1.0]), seeds_paired=both) for both in (False, True))
    assert apart.value == paired.value
    assert paired.p < apart.p
    contributions = pseudo_values(tallies[0], uar_of) - pseudo_values(tallies[1], uar_of)
    of_seeds = variance_components(contributions).seeds / 4
    of_speakers = (together.replicates[:, 0] - together.replicates[:, 1]).var(ddof=1) * 10 / 9
    error = math.sqrt(of_speakers + of_seeds)
    degrees = error**4 / (of_speakers**2 / 9 + of_seeds**2 / 3)
    assert paired.interval.high - paired.value == pytest.approx(scipy.stats.t.ppf(0.975, degrees) * error)


def test_text_by_a_recogniser_suffers_too(manifest: Manifest, cache: Path, tmp_path: Path) -> None:
    from pipelines.store.transcripts import (
        TranscriptProvenance,
        TranscriptRow,
        open_transcript_writer,
        transcripts_path,
    )

    for condition in ("clean", "noise:esc10@0dB"):
        provenance = TranscriptProvenance(
            **{
                **{name: "" for name in TranscriptProvenance.__dataclass_fields__},
                "corpus": "toy", "manifest_digest": manifest.digest, "model": "whisper-tiny", "condition": condition,
                "versions": {}, "sample_rate_hz": 16000,
            }
        )  # fmt: skip
        texts = ["I feel fine today" if condition != "clean" else text for text in manifest.table["transcript"]]
        rows = [TranscriptRow(text, "", 1.0) for text in texts]
        path = transcripts_path(cache, "toy", "whisper-tiny", condition)
        with open_transcript_writer(path, provenance=provenance, utterance_ids=manifest.utterance_ids) as writer:
            for block in writer.blocks_to_do():
                writer.write_block(block, rows[block * writer.block_rows : (block + 1) * writer.block_rows])
    config = replace(CONFIG, conditions=("noise:esc10@0dB",), training=("clean",), transcripts="asr:whisper-tiny")
    outcome = study(manifest, cache, tmp_path / "run", config=config, families={"ssl": "RLR", "words": "LEX"})
    assert cell(outcome, "loss-clean", "words", "esc10 0dB").value < -10
    assert cell(outcome, "word-errors", "clean", "WER").value == 0.0
    assert cell(outcome, "word-errors", "noise:esc10@0dB", "WER").value == pytest.approx(25.0)
    assert "manual transcripts" not in answer(outcome, "acoustics more than text")


def test_dimensions(manifest: Manifest, cache: Path, tmp_path: Path) -> None:
    comparison = replace(COMPARISON, target="dimensions", seeds=1, train=replace(TRAIN, epochs=30))
    config = replace(CONFIG, conditions=CONDITIONS[2:4], training=("clean", "multi"), comparison=comparison)
    outcome = study(manifest, cache, tmp_path / "run", config=config, families={"ssl": "RLR", "words": "LEX"})
    rows = table(outcome, "scores-clean").rows
    assert [row[:2] for row in rows[:3]] == [("ssl", "mean"), ("", "arousal"), ("", "valence")]
    numbers = [[one.value for one in row[2:] if isinstance(one, Cell)] for row in rows[:3]]
    assert np.array(numbers[0]) == pytest.approx(np.mean(numbers[1:], axis=0))
    assert numbers[0][0] > 0.5 > numbers[0][2]
    assert {figure.name for figure in outcome.figures} >= {
        "degradation-clean-1",
        "degradation-clean-valence-1",
        "training",
    }


# ------------------------------------------------------------------------------------------------ mistakes


def test_missing_stores_are_listed_with_one_command_line(manifest: Manifest, cache: Path, tmp_path: Path) -> None:
    config = replace(CONFIG, conditions=("noise:esc10@-5dB", "noise:esc10@0dB", "white@0dB"))
    with pytest.raises(StoreError) as caught:
        study(manifest, cache, tmp_path / "run", config=config)
    message = str(caught.value)
    assert "4 of the 9 stores" in message
    for name in ("ssl", "codec"):
        assert f"{name} under noise:esc10@-5dB" in message
        assert f"{name} under noise:esc10@0dB" not in message
    command = "hyfuse extract --corpus toy --model ssl --model codec --condition noise:esc10@-5dB --condition white@0dB"
    assert f"`{command} --cache-dir {cache}`" in message
    assert " && " not in message


def test_missing_texts_need_a_recogniser_first(manifest: Manifest, cache: Path, tmp_path: Path) -> None:
    config = replace(CONFIG, conditions=("noise:esc10@0dB",), transcripts="asr:whisper")
    with pytest.raises(StoreError) as caught:
        study(manifest, cache, tmp_path / "run", config=config)
    commands = str(caught.value).split("`")[1].split(" && ")
    assert [one.split(" --cache-dir")[0] for one in commands] == [
        "hyfuse transcribe --corpus toy --model whisper",
        "hyfuse extract --corpus toy --model words --transcripts asr:whisper",
        "hyfuse transcribe --corpus toy --model whisper --condition noise:esc10@0dB",
        "hyfuse extract --corpus toy --model words --transcripts asr:whisper --condition noise:esc10@0dB",
    ]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"conditions": ("clean",)}, ConfigError, "at least one condition beside clean.*--conditions: clean"),
        ({"conditions": ()}, ConfigError, "--conditions: none"),
        ({"training": ("clean", "mixed")}, UnknownNameError, "Unknown way of --training 'mixed'"),
        ({"training": ()}, ConfigError, "--training needs some of clean, matched, multi"),
        ({"training": ("clean",), "multi_conditions": ("telephone",)}, ConfigError, "--multi-conditions is of"),
        ({"transcripts": "whisper"}, UnknownNameError, "Valid names: asr:wav2vec2-ctc, asr:whisper, manual"),
        ({"transcripts": "asr:"}, ConfigError, "names no recogniser"),
        ({"comparison": ComparisonConfig(condition="telephone")}, ConfigError, "--condition telephone means nothing"),
    ],
)
def test_settings_that_make_no_sense(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        replace(CONFIG, **changes)


@pytest.mark.parametrize(
    ("digest", "changes", "message"),
    [
        ("other recordings", {}, "ssl and codec were not given the same under telephone"),
        ("telephone", {"weights_digest": "c3" * 32}, "codec under clean and under telephone were made by different"),
    ],
)
def test_stores_that_do_not_compare(digest: str, changes: dict[str, str], message: str, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    manifest = make_noisy_corpus(cache, speakers=3, takes=1)
    store = open_store(store_path(cache, "toy", "codec", "telephone"))
    values = store.features(manifest.utterance_ids, representation="only", pool="mean")
    remove_store(store.path)
    write_store(cache, manifest, "codec", "CBR", "telephone", values, digest=digest, **changes)
    with pytest.raises(ProvenanceError, match=message) as caught:
        study(manifest, cache, tmp_path / "run", config=replace(CONFIG, conditions=("telephone",)))
    assert "hyfuse cache remove toy/codec/telephone" in str(caught.value)


def test_text_by_hand_must_be_there(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    manifest = make_noisy_corpus(cache, speakers=3, takes=1, transcripts=False)
    with pytest.raises(ManifestError, match=r"9 of 9 utterances.*no transcript.*words would read nothing.*transcribe"):
        study(manifest, cache, tmp_path / "run")
