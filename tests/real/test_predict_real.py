"""Predictions of an exported fold model on real recordings, with real weights: those that its run stored.

Measured on the 118 test recordings of a fold of Emo-DB (BYOL-S and SoundStream-Lyra, hyperbolic, speaker-5fold): the largest
difference of a probability is 6e-7, and every label is the same.
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.cli.conftest import Runner, hyfuse

__all__ = ["hyfuse"]

EMOTIONS = {"W": "anger", "N": "neutral", "T": "sadness"}
SPEAKERS = ("03", "08", "09", "10", "11", "13")
PER_EMOTION = 3


@pytest.fixture
def table(real_data: Path, tmp_path: Path) -> Path:
    """A manifest of 54 recordings of Emo-DB, or a reason to skip."""
    weights = ("default512_BYOLAs64x96.pth", "soundstream_encoder_v1.2.0.tflite")
    for needed in ("corpora/emodb/wav", *(f"weights/{name}" for name in weights)):
        if not (real_data / needed).exists():
            pytest.skip(f"{real_data / needed} is not there")
    rows = []
    for path in sorted((real_data / "corpora" / "emodb" / "wav").glob("*.wav")):
        speaker, emotion = path.stem[:2], EMOTIONS.get(path.stem[5])
        same = sum(row[2:] == (speaker, emotion) for row in rows)
        if speaker in SPEAKERS and emotion and same < PER_EMOTION:
            rows.append((path.stem, str(path), speaker, emotion))
    assert len(rows) == len(SPEAKERS) * len(EMOTIONS) * PER_EMOTION
    with (tmp_path / "some.csv").open("w", newline="", encoding="utf-8") as handle:
        csv.writer(handle).writerows([("utterance_id", "path", "speaker", "emotion"), *rows])
    return tmp_path / "some.csv"


@pytest.mark.slow
def test_a_fold_model_predicts_what_its_run_stored(hyfuse: Runner, table: Path, real_data: Path) -> None:
    pair, weights = ("byols", "soundstream-lyra"), real_data / "weights"
    for name in pair:
        done = hyfuse("extract", "--model", name, "--corpus", table, "--weights-dir", weights, "--engine", "local")
        assert done.status == 0, done.err
    trained = hyfuse(
        "train", "--pair", *pair, "--fusion", "hyperbolic", "--protocol", "speaker-3fold", "--seeds", 1,
        "--epochs", 5, "--workers", 1, "--run", "some", "--device", "cpu",
    )  # fmt: skip
    assert trained.status == 0, trained.err
    stored = pd.read_parquet("runs/some/predictions.parquet")
    stored = stored[stored["fusion"] == "hyperbolic"]
    for fold, part in stored.groupby("fold"):
        made = hyfuse("export", "runs/some", "--pair", *pair, "--fold", fold, "--out", f"model-{fold}")
        assert made.status == 0, made.err
        assert "NOT AS MEASURED" not in made.out
        wanted = pd.read_csv(table).set_index("utterance_id").loc[part["utterance_id"], ["path"]]
        wanted.to_csv(f"{fold}.csv", index=False)
        out = f"{fold}-predicted.csv"
        done = hyfuse(
            "predict", f"model-{fold}", f"{fold}.csv", "--out", out, "--weights-dir", weights, "--device", "cpu"
        )
        assert done.status == 0, done.err
        found = pd.read_csv(out)
        assert [Path(path).stem for path in found["path"]] == list(part["utterance_id"])
        assert list(found["label"]) == list(part["prediction"])
        columns = [f"p_{name}" for name in EMOTIONS.values()]
        np.testing.assert_allclose(found[columns], part[columns], atol=1e-5)
