"""The study of distillation: its baseline is ordinary training, the same bytes whatever the stacks, no leak, mistakes are named."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipelines.corpora.manifest import Manifest, manifest_from_rows
from pipelines.corpora.protocols import Fold, Split, make_split
from pipelines.errors import ConfigError, ManifestError, ProtocolError, StoreError, UnknownNameError
from pipelines.evaluation.statistics import paired_difference
from pipelines.extraction.efficiency import EncoderCost
from pipelines.store.embeddings import open_store, remove_store, store_path
from pipelines.studies import efficiency
from pipelines.studies.distill import DistillConfig, _check_choice, run_distill
from pipelines.studies.distill_findings import Findings
from pipelines.studies.efficiency import EfficiencyConfig
from pipelines.studies.outcome import Cell, Outcome, Table, read_outcome
from pipelines.studies.pairs import ComparisonConfig
from pipelines.training.metrics import concordance
from pipelines.training.trainer import HeadTask, TrainConfig, steps_per_epoch, train_stack
from tests.studies.noisy_corpus import EMOTIONS, make_noisy_corpus, write_store

NOISY = ("noise:esc10@5dB", "noise:esc10@0dB")
BLOCKS = ("clean", *NOISY)
TRAIN = TrainConfig(epochs=4, hidden_dim=16)
COMPARISON = ComparisonConfig(protocol="speaker-3fold", seeds=2, pool="mean", train=TRAIN)
CONFIG = DistillConfig(acoustic="ssl", lexical="words", conditions=NOISY, embedding_dim=12, comparison=COMPARISON)
FILES = ("study.json", "config.json", "results.jsonl", "predictions.parquet")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("distill") / "cache"


@pytest.fixture(scope="module")
def manifest(cache: Path) -> Manifest:
    return make_noisy_corpus(cache, speakers=6, takes=3)


@pytest.fixture(scope="module")
def run_dir(manifest: Manifest, cache: Path) -> Path:
    """A finished run."""
    run_dir = cache.parent / "whole"
    study(manifest, cache, run_dir)
    return run_dir


def study(manifest: Manifest, cache: Path, run_dir: Path, config: DistillConfig = CONFIG, **options: Any) -> Outcome:
    return run_distill(
        manifest, config=config, cache_dir=cache, run_dir=run_dir, command="hyfuse study distill", **options
    )


def rows_of(run_dir: Path, **wanted: object) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (run_dir / "results.jsonl").read_text().splitlines()]
    return [row for row in rows if all(row[name] == value for name, value in wanted.items())]


def _dimensions(*names: str, **changes: Any) -> DistillConfig:
    return replace(CONFIG, comparison=replace(COMPARISON, target="dimensions", dimensions=names), **changes)


def table(outcome: Outcome, name: str) -> Table:
    (found,) = [one for one in outcome.tables if one.name == name]
    return found


def number(cell: str | Cell) -> float:
    assert isinstance(cell, Cell)
    return cell.value


def test_the_baseline_is_an_ordinary_head_on_all_conditions(manifest: Manifest, cache: Path, run_dir: Path) -> None:
    """Trained by hand on the three stores below each other: the same predictions, bit for bit."""
    ids = manifest.utterance_ids
    labels = [name.split("_")[1] for name in ids]
    speakers = [name.split("_")[0] for name in ids]
    matrices = [
        open_store(store_path(cache, "toy", "ssl", name)).features(ids, representation="only", pool="mean")
        for name in BLOCKS
    ]
    split = make_split("speaker-3fold", utterance_ids=ids, speakers=speakers, labels=labels)

    def everywhere(rows: Any) -> Any:
        return np.concatenate([rows + block * len(ids) for block in range(3)])

    tasks = [
        HeadTask(fold.name, seed, everywhere(fold.train), everywhere(fold.validation), everywhere(fold.test))
        for fold in split.folds
        for seed in range(2)
    ]
    heads = train_stack(
        fusion="single", options={"dense_dim": 12}, left=torch.from_numpy(np.concatenate(matrices)), right=None, tasks=tasks,
        steps_per_epoch=steps_per_epoch(tasks, TRAIN), config=TRAIN, num_classes=3,
        labels=torch.from_numpy(np.tile([EMOTIONS.index(name) for name in labels], 3)),
    )  # fmt: skip
    import pandas as pd

    written = pd.read_parquet(run_dir / "predictions.parquet")
    for head in heads:
        for block, name in enumerate(BLOCKS):
            own = written[
                (written["cell"] == f"baseline, {name}")
                & (written["fold"] == head.task.fold)
                & (written["seed"] == head.task.seed)
            ]
            at = head.task.test // len(ids) == block
            assert list(own["utterance_id"]) == [ids[row % len(ids)] for row in head.task.test[at]]
            np.testing.assert_array_equal(own[[f"p_{one}" for one in EMOTIONS]].to_numpy(), head.test_outputs[at])


def test_what_is_trained_and_tested_on_what(manifest: Manifest, cache: Path, run_dir: Path, tmp_path: Path) -> None:
    rows = rows_of(run_dir)
    assert len(rows) == 3 * 3 * 2 * 3  # roles, folds, seeds, conditions
    for row in rows:
        assert row["tested_on"] == list(BLOCKS)
        assert row["trained_on"] == (["clean"] if row["role"] == "teacher" else list(BLOCKS))
        assert row["right"] == ("words" if row["role"] == "teacher" else "")
        assert ("alpha" in row["diagnostics"]) == (row["role"] != "teacher")
    assert {row["diagnostics"]["alpha"] for row in rows if row["role"] == "baseline"} == {0.0}
    assert {row["diagnostics"]["beta"] for row in rows if row["role"] == "student"} == {1.0}
    few = replace(CONFIG, comparison=replace(COMPARISON, seeds=1, train=replace(TRAIN, epochs=1)))
    study(manifest, cache, tmp_path / "noisy", replace(few, training="noisy"))
    for row in rows_of(tmp_path / "noisy", role="student"):
        assert (row["trained_on"], row["tested_on"]) == (list(NOISY), list(BLOCKS))
    study(manifest, cache, tmp_path / "matched", replace(few, training="matched"))
    for row in rows_of(tmp_path / "matched", role="student"):
        assert row["trained_on"] == row["tested_on"] == [row["condition"]]
    assert len(rows_of(tmp_path / "matched", role="student")) == 3 * 3


def test_stacks_processes_and_interruptions_change_no_byte(
    manifest: Manifest, cache: Path, run_dir: Path, tmp_path: Path
) -> None:
    expected = {name: (run_dir / name).read_bytes() for name in FILES}
    study(manifest, cache, tmp_path / "one", stack=1)
    assert {name: (tmp_path / "one" / name).read_bytes() for name in FILES} == expected
    parts = sorted((tmp_path / "one" / "parts").iterdir())
    assert len(parts) == 3 * 3 * 2
    for part in (*parts[::3], parts[1]):
        part.unlink()
    parts[2].write_bytes(b"torn")
    before = {part: part.stat().st_mtime_ns for part in parts[4:] if part.exists()}
    done: list[tuple[int, int]] = []
    study(manifest, cache, tmp_path / "one", stack=4, workers=2, progress=lambda *state: done.append(state[:2]))
    assert {name: (tmp_path / "one" / name).read_bytes() for name in FILES} == expected
    assert done[0] == (18 - 8, 18)
    assert done[-1] == (18, 18)
    assert {part: part.stat().st_mtime_ns for part in before} == before
    leftovers = [path.name for path in (tmp_path / "one").iterdir() if path.suffix == ".f32"]
    assert leftovers == []


def test_another_weight_trains_students_alone(manifest: Manifest, cache: Path, run_dir: Path) -> None:
    done: list[int] = []
    other = replace(CONFIG, alphas=(0.5,))
    study(manifest, cache, run_dir.parent / "again", progress=lambda count, *_: done.append(count))
    done.clear()
    study(manifest, cache, run_dir.parent / "again", other, progress=lambda count, *_: done.append(count))
    assert done[0] == 12  # of 18: teachers and baselines are there
    first, second = (rows_of(run_dir.parent / "again", role=role) for role in ("teacher", "baseline"))
    assert [row["key"] for row in (*first, *second)] == [
        row["key"] for role in ("teacher", "baseline") for row in rows_of(run_dir, role=role)
    ]


def test_tables_figures_and_answers_say_what_the_tests_say(run_dir: Path, manifest: Manifest, cache: Path) -> None:
    outcome = read_outcome(run_dir)
    assert (outcome.study, outcome.target, outcome.corpus) == ("distill", "emotion", "toy")
    assert [one.name for one in outcome.tables] == ["distillation", "metrics"]
    rows = table(outcome, "distillation").rows
    assert [row[0] for row in rows] == [*BLOCKS, "mean"]
    gain = outcome.figures[0]
    assert (gain.name, gain.kind, gain.ticks) == ("gain", "bars", BLOCKS)
    for place, row in enumerate(rows[:-1]):
        assert number(row[3]) - number(row[2]) == pytest.approx(number(row[4]), abs=1e-9)
        assert gain.series[0].y[place] == number(row[4])
        assert 0 <= number(row[1]) <= 100
    means = np.mean([[number(cell) for cell in row[1:5]] for row in rows[:-1]], axis=0)
    np.testing.assert_allclose([number(cell) for cell in rows[-1][1:5]], means)
    assert outcome.answers[0].startswith("Does the teacher help its student? On average over 3 conditions")
    assert len(outcome.answers) == 4
    assert any("ours, not the paper's" in note for note in outcome.notes)


def test_more_in_noise_is_the_difference_of_gains(manifest: Manifest, cache: Path, tmp_path: Path) -> None:
    from pipelines.studies import distill_findings

    kept: list[Findings] = []
    original = distill_findings._answers

    def keep(findings: Findings, tested: Any) -> list[str]:
        kept.append(findings)
        one = tested.more_in_noise()
        score = {key: found.value for key, found in findings.scores.items()}
        gains = [score["student", name] - score["baseline", name] for name in BLOCKS]
        assert 2 * one.value == pytest.approx(np.mean(gains[1:]) - gains[0])
        for name in BLOCKS:
            pair = (findings.scores[role, name].tallies for role in ("student", "baseline"))
            alone = paired_difference(*pair, findings.measure.metric)
            assert tested.gains[name][0].value == pytest.approx(alone.value)
            assert tested.gains[name][0].p == pytest.approx(alone.p)
            assert tested.gains[name][1] >= alone.p
        return original(findings, tested)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distill_findings, "_answers", keep)
        study(manifest, cache, tmp_path / "run", _dimensions("arousal", "valence"))
    assert len(kept) == 1


def test_dimensions(manifest: Manifest, cache: Path, tmp_path: Path) -> None:
    import pandas as pd

    outcome = study(manifest, cache, tmp_path / "run", _dimensions("activation", "valence"))
    assert outcome.settings["dimensions"] == ["arousal", "valence"]
    assert outcome.settings["distillation"][0]["output_match"] == "ccc"
    by_dimension = table(outcome, "dimensions")
    assert [row[:2] for row in by_dimension.rows] == [(d, c) for d in ("arousal", "valence") for c in BLOCKS]
    predictions = pd.read_parquet(tmp_path / "run" / "predictions.parquet")
    own = predictions[predictions["cell"] == f"student, {NOISY[0]}"]
    scores = [
        concordance(one["true_valence"].to_numpy(), one["predicted_valence"].to_numpy())
        for _, one in own.groupby("seed")
    ]
    row = next(row for row in by_dimension.rows if row[:2] == ("valence", NOISY[0]))
    assert number(row[4]) == pytest.approx(np.mean(scores), abs=1e-6)
    assert "Which dimension gains?" in outcome.answers[3]
    alone = study(manifest, cache, tmp_path / "alone", _dimensions("valence"))
    assert [one.name for one in alone.tables] == ["distillation", "metrics"]
    assert table(alone, "distillation").title == "Distillation, CCC of valence"


# ------------------------------------------------------------------------------------------------ no leak


def _corpus(cache: Path, changed: str = "") -> Manifest:
    """Eight speakers; of one, everything but who it is, what was said and which emotion it is, is something else."""
    rows = []
    for speaker in range(8):
        for index, emotion in enumerate(EMOTIONS):
            for take in range(3):
                value = 1.0 + index + 0.1 * take + 0.05 * speaker
                if f"s{speaker}" == changed:
                    value = 7.0 - 2.0 * value
                name = f"s{speaker}_{emotion}_{take}"
                rows.append({"utterance_id": name, "path": f"{name}.wav", "speaker": f"s{speaker}", "emotion": emotion,
                             "emotion_raw": emotion, "arousal": value})  # fmt: skip
    manifest = manifest_from_rows("toy", rows)
    values = np.array([row["arousal"] for row in rows])
    generator = np.random.default_rng(0)
    for encoder, family, conditions in (("ssl", "RLR", BLOCKS), ("words", "LEX", ("clean",))):
        for condition in conditions:
            noise = generator.standard_normal((len(rows), 6))
            own = (values[:, None] + noise + (noise if condition != "clean" else 0)).astype(np.float32)
            own[[row["speaker"] == changed for row in rows]] *= -3.0
            write_store(
                cache, manifest, encoder, family, condition, own, digest="" if condition == "clean" else condition
            )
    return manifest


def test_nothing_of_the_test_speakers_reaches_teacher_student_or_the_choice(tmp_path: Path) -> None:
    """With everything of one speaker changed, the heads of the folds that test this speaker stay the same for all the others."""
    import pandas as pd

    config = _dimensions("arousal", alphas=(0.0, 1.0), betas=(0.0, 1.0))
    found = []
    for changed in ("", "s3"):
        cache, run = tmp_path / f"cache{changed}", tmp_path / f"run{changed}"
        study(_corpus(cache, changed), cache, run, config)
        chosen = {
            (row["role"], row["fold"], row["seed"]): (row["diagnostics"]["alpha"], row["diagnostics"]["beta"])
            for row in rows_of(run, role="student")
        }
        found.append((pd.read_parquet(run / "predictions.parquet"), chosen))
    (before, chosen), (after, chosen_after) = found
    (fold,) = set(before[before["speaker"] == "s3"]["fold"])
    same = (before["fold"] == fold) & (before["speaker"] != "s3")
    assert same.any()
    said = ["cell", "fold", "seed", "utterance_id", "true_arousal", "predicted_arousal"]  # what is shuffled meets s3
    assert before[same][said].equals(after[same][said])
    assert not before[~same][said].equals(after[~same][said])
    assert len(set(chosen.values())) > 1  # there was a choice
    assert {k: v for k, v in chosen.items() if k[1] == fold} == {k: v for k, v in chosen_after.items() if k[1] == fold}


@pytest.mark.parametrize("selection", ["fixed", "ccc"])
def test_a_choice_of_one_is_that_one(tmp_path: Path, selection: str) -> None:
    """Where every fold and seed takes the same setting, it is as if that one had been given; whatever the stacks."""
    cache = tmp_path / "cache"
    manifest = _corpus(cache)
    config = _dimensions("arousal", alphas=(0.0, 1.0), betas=(0.0, 1.0))
    config = replace(config, comparison=replace(config.comparison, selection=selection))
    study(manifest, cache, tmp_path / "many", config, stack=2)
    study(manifest, cache, tmp_path / "many2", config)
    assert (tmp_path / "many" / "results.jsonl").read_bytes() == (tmp_path / "many2" / "results.jsonl").read_bytes()
    for row in rows_of(tmp_path / "many", role="student", condition="clean"):
        alpha, beta = row["diagnostics"]["alpha"], row["diagnostics"]["beta"]
        alone = tmp_path / f"alone{alpha:g}{beta:g}"
        if not alone.exists():
            study(manifest, cache, alone, replace(config, alphas=(alpha,), betas=(beta,)))
        (own,) = rows_of(alone, role="student", condition="clean", fold=row["fold"], seed=row["seed"])
        assert own["metrics"] == row["metrics"]
        assert own["curves"] == row["curves"]


# ------------------------------------------------------------------------------------------------ small systems


def test_small_systems_beside_the_large(
    manifest: Manifest, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[tuple[str, str]] = []

    def cost(name: str, representation: str, *, audio_s: float) -> EncoderCost:
        measured.append((name, representation))
        parameters = {"ssl": 1000, "codec": 300, "words": None}[name]
        seconds = {"ssl": 0.1, "codec": 0.02, "words": 0.01}[name]
        return EncoderCost(
            encoder=name, representation=representation, parameters=parameters, cpu_s_per_s=seconds, audio_s=audio_s,
            processor="a processor", torch="9",
        )  # fmt: skip

    monkeypatch.setattr(efficiency, "encoder_cost", cost)
    config = replace(CONFIG, efficient=EfficiencyConfig(small="codec", small_text="words"))
    outcome = study(manifest, cache, tmp_path / "run", config)
    rows = table(outcome, "efficiency").rows
    assert [row[0] for row in rows] == [
        "ssl alone", "codec alone", "codec + words", "ssl + words (the teacher)", "the student",
    ]  # fmt: skip
    head = 8 * 16 + 16 + 16 * 12 + 12 + 12 * 3 + 3
    pair = 2 * (8 * 16 + 16) + 32 * 12 + 12 + 12 * 3 + 3
    assert [1e6 * number(row[2]) for row in rows] == pytest.approx([head, head, pair, pair, head])
    deployed = [1e6 * number(row[1]) for row in rows]
    assert deployed[:2] == pytest.approx([1000 + head, 300 + head])
    assert np.isnan(deployed[2])
    assert [number(row[3]) for row in rows] == pytest.approx([100, 20, 30, 110, 100])
    first = table(outcome, "distillation").rows[0]
    assert number(rows[3][4]) == number(first[1])
    assert number(rows[4][4]) == number(first[3])
    assert number(rows[1][4]) - number(rows[0][4]) == pytest.approx(number(rows[1][5]))
    assert "What does a small system cost in score? ssl alone" in outcome.answers[-1]
    assert "codec alone needs" in outcome.answers[-1]
    expected = {name: (tmp_path / "run" / name).read_bytes() for name in FILES}
    assert measured == [("ssl", "only"), ("codec", "only"), ("words", "only")]
    study(manifest, cache, tmp_path / "run", config)
    assert len(measured) == 3  # measured once per run
    assert {name: (tmp_path / "run" / name).read_bytes() for name in FILES} == expected


def test_students_of_a_layer(tmp_path: Path) -> None:
    from tests.training.toy import make_corpus

    layered = tmp_path / "layers"
    manifest = make_corpus(layered)
    words = np.random.default_rng(1).standard_normal((len(manifest.utterance_ids), 4)).astype(np.float32)
    write_store(layered, manifest, "words", "LEX", "clean", words)
    _copy_store(layered, "ssl", "white@0dB")
    few = replace(
        CONFIG, conditions=("white@0dB",), comparison=replace(COMPARISON, seeds=1, train=replace(TRAIN, epochs=1))
    )
    outcome = study(manifest, layered, tmp_path / "cut", replace(few, student_layers=1))
    assert any("layer 1;" in note for note in outcome.notes)
    (row,) = {json.dumps(row["left_source"]["representation"]) for row in rows_of(tmp_path / "cut", role="student")}
    assert row == '"layer_01"'
    assert {row["left_source"]["representation"] for row in rows_of(tmp_path / "cut", role="teacher")} == {"layer_02"}
    with pytest.raises(UnknownNameError, match=r"representation of ssl '7'.*The number of a layer will do"):
        study(manifest, layered, tmp_path / "deep", replace(few, student_layers=7))


def _copy_store(cache: Path, encoder: str, condition: str) -> None:
    """The clean store under the name of a condition."""
    import shutil

    target = store_path(cache, "toy", encoder, condition)
    source = store_path(cache, "toy", encoder)
    assert isinstance(source, Path)
    assert isinstance(target, Path)
    shutil.copytree(source, target)
    path = target / "zarr.json"
    content = json.loads(path.read_text())
    content["attributes"]["condition"] = condition
    path.write_text(json.dumps(content))


def test_a_teacher_with_another_encoder_is_tested_under_its_own_condition(
    manifest: Manifest, cache: Path, tmp_path: Path
) -> None:
    outcome = study(manifest, cache, tmp_path / "run", replace(CONFIG, student="codec"))
    rows = table(outcome, "distillation").rows
    assert not np.isnan(number(rows[0][1]))
    assert all(np.isnan(number(row[1])) for row in rows[1:])
    assert all(number(row[3]) > 0 for row in rows)
    assert any("tested under its own condition alone" in note for note in outcome.notes)
    assert {row["left"] for row in rows_of(tmp_path / "run", role="student")} == {"codec"}


def test_the_teacher_may_read_what_a_recogniser_heard(manifest: Manifest, cache: Path, tmp_path: Path) -> None:
    outcome = study(manifest, cache, tmp_path / "run", replace(CONFIG, transcripts="asr:whisper-tiny"))
    assert any("transcripts by whisper-tiny" in note for note in outcome.notes)
    with pytest.raises(StoreError, match=r"hyfuse extract --model words --corpus toy --transcripts asr:other"):
        study(manifest, cache, tmp_path / "run", replace(CONFIG, transcripts="asr:other"))


# ------------------------------------------------------------------------------------------------ mistakes


def test_missing_stores_come_with_their_commands(manifest: Manifest, cache: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="2 of the 4 stores") as raised:
        study(manifest, cache, tmp_path / "run", replace(CONFIG, conditions=("pink@3dB", NOISY[0]), lexical="bert"))
    assert "`hyfuse extract --model ssl --corpus toy --condition pink@3dB`" in str(raised.value)
    assert "`hyfuse extract --model bert --corpus toy`" in str(raised.value)
    assert not (tmp_path / "run").exists()


def test_speech_and_text_are_told_apart(manifest: Manifest, cache: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match="--text must be an encoder of text, such as bert; codec is of the family CBR"
    ):
        study(manifest, cache, tmp_path / "run", replace(CONFIG, lexical="codec"))
    with pytest.raises(ConfigError, match="--acoustic must be an encoder of speech, such as wavlm; words is of the"):
        study(manifest, cache, tmp_path / "run", replace(CONFIG, acoustic="words", student="ssl"))


def test_a_target_that_the_corpus_lacks(manifest: Manifest, cache: Path, tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="has no values of dominance; it has arousal, valence"):
        study(manifest, cache, tmp_path / "run", _dimensions("dominance"))


def test_stores_of_another_manifest(manifest: Manifest, cache: Path, tmp_path: Path) -> None:
    other = make_noisy_corpus(tmp_path / "cache", speakers=6, takes=2)
    remove_store(store_path(tmp_path / "cache", "toy", "ssl", NOISY[0]))
    write_store(tmp_path / "cache", manifest, "ssl", "RLR", NOISY[0], np.ones((54, 8), np.float32))
    with pytest.raises(StoreError, match="manifest_digest: the store has"):
        study(other, tmp_path / "cache", tmp_path / "run")


def test_a_choice_needs_validation_rows() -> None:
    nobody, somebody = np.zeros(0, np.int64), np.arange(3)
    split = Split("mine", True, (Fold("7", somebody, nobody, somebody + 3),), "")
    _check_choice(CONFIG, split)
    with pytest.raises(ProtocolError, match="Fold '7' of mine has no validation rows to choose among 2 settings"):
        _check_choice(replace(CONFIG, alphas=(0.0, 1.0)), split)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"conditions": ()}, ConfigError, "--conditions needs at least one condition.*given: none"),
        ({"conditions": ("clean",)}, ConfigError, r"none the teacher's \(clean\); given: clean"),
        ({"conditions": ("telephone", "telephone")}, ConfigError, "each once"),
        ({"training": "all"}, UnknownNameError, "matched, multi, noisy"),
        ({"fusion": "conca"}, UnknownNameError, "Did you mean 'concat'"),
        ({"alphas": (0.0,), "betas": (0.0,)}, ConfigError, "the teacher says nothing: that is the baseline"),
        ({"alphas": (1.0, 1.0)}, ConfigError, "--alpha needs at least one value, each once; given: 1.0, 1.0"),
        ({"betas": (-1.0,)}, ConfigError, "--beta must be 0 or more"),
        ({"output_match": "ccc"}, ConfigError, "--output-match ccc means nothing to --target emotion; it has kl"),
        ({"student_layers": -1}, ConfigError, "--student-layers must be a layer from 1 on"),
        ({"embedding_dim": -5}, ConfigError, "dense_dim"),
        ({"options": {"single": {"rank": 3}}}, UnknownNameError, "rank"),
    ],
)
def test_settings_that_make_no_sense(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        replace(CONFIG, **changes)


def test_transcripts_of_no_known_kind() -> None:
    with pytest.raises(ConfigError, match=r"--transcripts is 'whisper'; expected manual .* or asr:MODEL"):
        replace(CONFIG, transcripts="whisper").stores()
    with pytest.raises(ConfigError, match="positive number of seconds"):
        EfficiencyConfig(audio_s=0)
