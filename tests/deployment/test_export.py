"""Models made from runs: they predict recordings as the run predicted its test utterances."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from pipelines.deployment.card import model_card
from pipelines.deployment.export import choose_cell, default_folder, export_cell
from pipelines.deployment.model_folder import ModelFolder, write_model
from pipelines.deployment.predict import load_model
from pipelines.errors import ConfigError, RunError, StoreError, UnknownNameError
from pipelines.evaluation.runs import read_run
from pipelines.fusion.catalogue import fusion_spec
from tests.deployment.project import LEFT, RIGHT, TEXT, Project, project

__all__ = ["project"]

PAIR = f"{LEFT}+{RIGHT}"


def _stored(run: Path, title: str, fold: str, seed: int) -> pd.DataFrame:
    table = pd.read_parquet(run / "predictions.parquet")
    chosen = table[(table["cell"] == title) & (table["fold"] == fold) & (table["seed"] == seed)]
    return chosen.set_index("utterance_id")


def _predicted(project: Project, model: ModelFolder, folder: Path, ids: list[str]) -> np.ndarray:
    write_model(model, folder, "card")
    rows = pd.read_csv(project.data / "my.csv").set_index("utterance_id")
    loaded = load_model(folder)
    texts = list(rows.loc[ids, "transcript"]) if loaded.takes_text else None
    found = list(loaded.predict([project.data / rows.loc[name, "path"] for name in ids], transcripts=texts))
    assert [one.failure for one in found] == [""] * len(ids)
    return np.array([[one.scores[name] for name in model.outputs] for one in found])


CELLS = {
    f"{PAIR} concat": "compared",
    f"{PAIR} hyperbolic": "compared",
    f"{PAIR} hyperbolic (right-left)": "compared",
    LEFT: "compared",
    f"{PAIR} gated": "dimensions",
    f"{TEXT}+{RIGHT} concat": "text",
    f"{PAIR} attention": "weighted",
    f"{PAIR} midpoint": "soft",
}


def _run(project: Project, name: str) -> Path:
    pair = ("--pair", LEFT, RIGHT)
    return {
        "compared": project.compared,
        "dimensions": lambda: project.run(name, "train", *pair, "--fusion", "gated", "--target", "dimensions"),
        "text": lambda: project.run(name, "train", "--pair", TEXT, RIGHT, "--fusion", "concat", "--pool", "mean"),
        "weighted": lambda: project.run(name, "train", *pair, "--fusion", "attention", "--layer", "weighted"),
        "soft": lambda: project.run(
            name, "train", *pair, "--fusion", "midpoint", "--labels", "soft", "--selection", "loss",
            "--option", "classifier=mlr", "--set", "patience=1",
        ),
    }[name]()  # fmt: skip


@pytest.mark.parametrize("title", CELLS)
def test_a_fold_predicts_its_test_recordings_as_the_run_did(project: Project, tmp_path: Path, title: str) -> None:
    run = _run(project, CELLS[title])
    fold = read_run(run).config["folds"][1]["name"]
    model = project.exported(run, title, fold, 1)
    assert not [warning for warning in model.warnings if "NOT AS MEASURED" in warning]
    stored = _stored(run, title, fold, 0)
    prefix = "predicted_" if model.target == "dimensions" else "p_"
    expected = stored[[f"{prefix}{name}" for name in model.outputs]].to_numpy()
    found = _predicted(project, model, tmp_path / "model", list(stored.index))
    assert len(expected) >= 10
    # The encoders promise 1e-5 of the embedding, alone or in a batch; the heads see nothing else.
    np.testing.assert_allclose(found, expected, atol=2e-5)
    if model.target == "emotion":
        labels = [model.outputs[place] for place in found.argmax(axis=1)]
        assert labels == list(stored["prediction"])


@pytest.mark.parametrize("title", CELLS)
def test_all_data_makes_a_model_of_every_utterance(project: Project, tmp_path: Path, title: str) -> None:
    run = _run(project, CELLS[title])
    model = project.exported(run, title)
    assert len(model.heads) == 2
    assert model.train.selection == "fixed"
    assert model.train.patience == 0
    assert model.trained_on["utterances"] == 36  # the silent one is left out
    assert model.trained_on["speakers"] == 6
    assert model.map.points.shape == (36, 2)
    assert model.map.kind == ("ball" if model.fusion in ("hyperbolic", "midpoint") else "plane")
    assert set(model.options) == set(fusion_spec(model.fusion).options)  # written out, the defaults, too
    found = _predicted(project, model, tmp_path / "model", ["s0_anger_0", "s1_sadness_1"])
    assert np.isfinite(found).all()
    if model.target == "emotion":
        np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-5)


def test_heads_are_averaged(project: Project, tmp_path: Path) -> None:
    run, title = project.compared(), f"{PAIR} concat"
    fold = read_run(run).config["folds"][0]["name"]
    stored = [_stored(run, title, fold, seed) for seed in (0, 1)]
    model = project.exported(run, title, fold)
    columns = [f"p_{name}" for name in model.outputs]
    ids = list(stored[0].index)
    mean = (stored[0][columns].to_numpy(np.float64) + stored[1].loc[ids, columns].to_numpy(np.float64)) / 2
    np.testing.assert_allclose(_predicted(project, model, tmp_path / "model", ids), mean, atol=2e-5)


def test_the_same_bits_twice(project: Project, tmp_path: Path) -> None:
    run = read_run(project.compared())
    cell, score = choose_cell(run, left=LEFT, right=RIGHT, fusion="hyperbolic", order="right-left")
    for name in ("one", "two"):
        model = export_cell(run, cell, score, cache_dir=project.cache)
        write_model(model, tmp_path / name, model_card(model, folder="model"))
    for name in ("heads.safetensors", "model.json", "README.md"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_what_cannot_be_chosen(project: Project) -> None:
    run = read_run(project.compared())
    with pytest.raises(
        RunError, match=r"several such cells: .*'wavlm-tiny\+encodec-tiny hyperbolic \(right-left\)'.*--cell TITLE"
    ):
        choose_cell(run, left=LEFT, right=RIGHT, fusion="hyperbolic")
    with pytest.raises(UnknownNameError, match=r"concat"):
        choose_cell(run, left=LEFT, right=RIGHT, fusion="conct")
    with pytest.raises(UnknownNameError, match="left-right"):
        choose_cell(run, left=LEFT, right=RIGHT, fusion="concat", order="left")
    with pytest.raises(ConfigError, match="yardstick"):
        choose_cell(run, title=f"{PAIR} logistic")
    run.config["study"] = "noise"
    with pytest.raises(RunError, match=r"run of a study \(noise\)"):
        choose_cell(run, title=f"{PAIR} concat")


def test_what_cannot_be_exported(project: Project, tmp_path: Path) -> None:
    run = read_run(project.compared())
    cell, score = choose_cell(run, title=f"{PAIR} concat")
    export = {"cache_dir": project.cache}
    with pytest.raises(UnknownNameError, match=r"fold of .*nine"):
        export_cell(run, cell, score, fold="nine", **export)
    with pytest.raises(ConfigError, match=r"--seeds 3 was asked for, but .* has 2 per fold"):
        export_cell(run, cell, score, fold=run.config["folds"][0]["name"], seeds=3, **export)
    with pytest.raises(ConfigError, match="at least 1, not 0"):
        export_cell(run, cell, score, seeds=0, **export)
    run.config["tuning"] = {}
    with pytest.raises(RunError, match="was tuned: every fold has settings of its own"):
        export_cell(run, cell, score, **export)
    other = read_run(project.compared())
    other.config["sources"][RIGHT]["features_digest"] = "0" * 64
    with pytest.raises(RunError, match=f"{RIGHT} features was 000000000000 and is"):
        export_cell(other, cell, score, **export)
    again = tmp_path / "cache"
    shutil.copytree(project.cache, again)
    shutil.rmtree(again / "my" / RIGHT)
    # Also for the cell of the other encoder alone: the utterances of the run are those of all stores.
    alone, score = choose_cell(read_run(project.compared()), title=LEFT)
    with pytest.raises(StoreError, match=RIGHT):
        export_cell(read_run(project.compared()), alone, score, cache_dir=again)


def test_a_fold_that_is_not_that_of_the_run_any_more_says_so(project: Project, tmp_path: Path) -> None:
    folder = tmp_path / "altered"
    shutil.copytree(project.compared(), folder)
    table = pd.read_parquet(folder / "predictions.parquet")
    table["p_anger"] += 1e-4
    table.to_parquet(folder / "predictions.parquet", index=False)
    run = read_run(folder)
    cell, score = choose_cell(run, title=LEFT)
    fold = run.config["folds"][0]["name"]
    model = export_cell(run, cell, score, cache_dir=project.cache, fold=fold)
    assert any("NOT AS MEASURED" in warning for warning in model.warnings)
    assert "NOT AS MEASURED" in model_card(model, folder="model")


def test_a_run_under_a_condition_says_so(project: Project) -> None:
    project.hyfuse("extract", "--model", LEFT, "--weights", "random", "--corpus", "my", "--cache-dir", project.cache,
                   "--condition", "telephone", "--engine", "local", "--device", "cpu")  # fmt: skip
    run = project.run("telephone", "train", "--single", LEFT, "--condition", "telephone")
    model = project.exported(run, LEFT)
    assert model.trained_on["condition"] == "telephone"
    card = model_card(model, folder="model")
    assert "under the condition `telephone`" in card
    assert "takes recordings as they are and applies none" in card


def test_random_weights_are_said_to_be_random(project: Project) -> None:
    model = project.exported(project.compared(), LEFT)
    card = model_card(model, folder="it's")
    assert model.random == (LEFT,)
    warned = [warning for warning in model.warnings if "RANDOM" in warning]
    assert warned == [f"RANDOM weights: {LEFT}. These scores say nothing about the pretrained encoders of that name."]
    header, title = card.split("---\n")[1], card.split("---\n")[2].splitlines()[1]
    assert '"random-weights"' in header
    assert "RANDOM" in title
    assert "recognises nothing worth having" in card
    assert "hyfuse predict 'it'\"'\"'s' recording.wav" in card


def test_the_card_has_the_scores_of_the_run(project: Project) -> None:
    run = read_run(project.compared())
    _, score = choose_cell(run, title=f"{PAIR} concat")
    card = model_card(project.exported(project.compared(), f"{PAIR} concat"), folder="model")
    low, high = score.interval.low, score.interval.high
    assert (
        f"| UAR (unweighted average recall) | {100 * score.uar:.1f} % | {100 * low:.1f} % to {100 * high:.1f} % |"
        in card
    )
    assert f"`{LEFT}` costs {100 * score.left_drop:.1f} points of UAR" in card
    assert "could not be tested" in card
    assert "that 2 are averaged here was not measured" in card
    assert "`speaker-3fold`, 36 utterances, 6 speakers" in card
    values = model_card(project.exported(_run(project, "dimensions"), f"{PAIR} gated"), folder="model")
    assert "| CCC, valence |" in values
    assert " of CCC and" in values
    assert "%" not in values.split("## How well it did")[1].split("## What it listens with")[0].replace("95 %", "")
    soft = model_card(project.exported(_run(project, "soft"), f"{PAIR} midpoint"), folder="model")
    assert "keeps its last" in soft
    assert "shares of the raters' votes" in soft
    text = model_card(project.exported(_run(project, "text"), f"{TEXT}+{RIGHT} concat"), folder="model")
    assert "transcripts=[" in text
    assert "list.csv" in text


def test_the_header_of_the_card_is_yaml_for_the_hub(project: Project) -> None:
    from huggingface_hub import ModelCard

    card = ModelCard(model_card(project.exported(project.compared(), LEFT), folder="model"))
    assert card.data.license == "other"
    assert card.data.language == ["en"]
    assert card.data.pipeline_tag == "audio-classification"
    assert {"hyfuse", "my", LEFT} <= set(card.data.tags or ())


def test_folders_have_plain_names(project: Project) -> None:
    run = read_run(project.compared())
    cell, _ = choose_cell(run, title=f"{PAIR} hyperbolic (right-left)")
    assert default_folder(run, cell) == Path("models/my-wavlm-tiny-encodec-tiny-hyperbolic-right-left")
    assert default_folder(run, cell, "fold-2").name.endswith("right-left-fold-fold-2")


def test_the_map_places_training_recordings_where_it_drew_them(project: Project, tmp_path: Path) -> None:
    for title in (f"{PAIR} hyperbolic", f"{PAIR} concat", LEFT):
        model = project.exported(project.compared(), title)
        write_model(model, tmp_path / title, "card")
        rows = pd.read_csv(project.data / "my.csv")
        found = load_model(tmp_path / title).look_inside(project.data / rows["path"][4])
        np.testing.assert_allclose(found.point, model.map.points[4].numpy(), atol=1e-4)
        assert 0 < model.map.share <= 1 + 1e-6
        if model.map.kind == "ball":
            assert (torch.linalg.vector_norm(model.map.points, dim=1) < 1).all()


def test_model_json_is_json(project: Project) -> None:
    def refuse(name: str) -> None:
        raise AssertionError(name)

    text = (project.model() / "model.json").read_text(encoding="utf-8")
    json.loads(text, parse_constant=refuse)  # no NaN
