"""A run folder without a training: results that are drawn at random, in the files that ``compare`` writes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

__all__ = ["HOSTILE", "make_run"]

HOSTILE = (
    "<script>alert(1)</script>",
    "</script><img src=x onerror=alert(2)>",
    '" onmouseover="alert(3)',
    "'); alert(4); ('",
    "$\\frac{1}{0}$ &amp; <!-- ",
    "🎤 émotion – 日本語 \u2028",
    "very-long-" + "name" * 60,
)
"""Names that somebody's files may hold: markup, quotes, TeX, letters that fonts lack, and a long one."""


def make_run(
    folder: Path,
    *,
    corpus: str = "toy",
    lefts: Sequence[str] = ("wavlm", "xvector"),
    rights: Sequence[str] = ("encodec",),
    fusions: Sequence[str] = ("concat", "hyperbolic"),
    classes: Sequence[str] = ("anger", "joy", "neutral"),
    speakers: Sequence[str] = ("s1", "s2", "s3", "s4", "s5", "s6"),
    per_speaker: int = 9,
    folds: int = 3,
    seeds: int = 2,
    epochs: int = 4,
    ignored: Sequence[str] = (),
    random: Sequence[str] = (),
    speaker_independent: bool = True,
    layers: Sequence[str] = (),
    dimensions: Sequence[str] = (),
) -> Path:
    """Write a run.

    Args:
        folder: where to.
        corpus: name.
        lefts: encoders of the rows (RLR).
        rights: encoders of the columns (CBR).
        fusions: of every pair; logistic regression is added, as in a true run.
        classes: emotions.
        speakers: names.
        per_speaker: utterances.
        folds: number of folds, speakers dealt out in turn.
        seeds: number of seeds.
        epochs: length of the learning curves.
        ignored: fusions that do not depend on their right input.
        random: encoders with random weights.
        speaker_independent: what the protocol says.
        layers: of the first left encoder, weighted by every head.
        dimensions: what was learned instead of emotions, on a scale from 1 to 5.
    """
    generator = np.random.default_rng(0)
    rung = "ridge" if dimensions else "logistic"
    count = len(speakers) * per_speaker
    labels = np.arange(count) % len(classes)
    who = np.repeat(np.arange(len(speakers)), per_speaker)
    ids = np.array([f"u{index:05d}" for index in range(count)])
    fold_of = who % folds
    cells: list[dict[str, Any]] = [{"left": name, "right": "", "fusion": "single"} for name in (*lefts, *rights)]
    cells += [{"left": name, "right": "", "fusion": rung} for name in (*lefts, *rights)]
    cells += [
        {"left": left, "right": right, "fusion": fusion}
        for left in lefts
        for right in rights
        for fusion in (*fusions, rung)
    ]
    rows, frames = [], []
    truth = np.clip(generator.normal(3, 1, size=(count, len(dimensions))), 1, 5).astype(np.float32)
    for cell in cells:
        left, right, fusion = cell["left"], cell["right"], cell["fusion"]
        title = f"{left}+{right} {fusion}" if right else left if fusion == "single" else f"{left} {fusion}"
        skill = generator.uniform(0.5, 2.5)
        for seed in range(1 if fusion == rung else seeds):
            logits = generator.normal(size=(count, len(classes)))
            logits[np.arange(count), labels] += skill
            probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
            predicted = probabilities.argmax(axis=1)
            noise = generator.integers(0, len(classes), size=(2, count))
            shuffled_right = predicted if fusion in ignored else noise[1]
            names = np.array(classes, dtype=object)
            found: dict[str, Any] = {
                "label": names[labels],
                "prediction": names[predicted],
                "left_shuffled": names[noise[0]],
                "right_shuffled": names[shuffled_right] if right else "",
                **{f"p_{name}": probabilities[:, place].astype(np.float32) for place, name in enumerate(classes)},
            }
            if dimensions:
                guessed = (truth + generator.normal(0, 2 / skill, size=truth.shape)).astype(np.float32)
                others = [
                    generator.permutation(guessed),
                    guessed if fusion in ignored else generator.permutation(guessed),
                ]
                kinds = {"true": truth, "predicted": guessed, "left_shuffled": others[0],
                         "right_shuffled": others[1] if right else np.full_like(truth, np.nan)}  # fmt: skip
                found = {
                    f"{kind}_{name}": values[:, place]
                    for place, name in enumerate(dimensions)
                    for kind, values in kinds.items()
                }
            frames.append(
                pd.DataFrame(
                    {
                        **{name: [value] * count for name, value in {**cell, "cell": title, "seed": seed}.items()},
                        "fold": [str(fold + 1) for fold in fold_of],
                        "utterance_id": ids,
                        "speaker": np.array(speakers, dtype=object)[who],
                        **found,
                    }
                )
            )  # fmt: skip
            for fold in range(folds):
                weighted = {
                    f"left_layer_{place:02d}": 1 / len(layers) for place in range(len(layers)) if left == lefts[0]
                }
                rows.append(
                    {
                        **cell,
                        "cell": title,
                        "fold": str(fold + 1),
                        "seed": seed,
                        "options": {},
                        "left_source": {"layers": list(layers) if left == lefts[0] else []},
                        "right_source": {"layers": []} if right else None,
                        "metrics": {"ccc" if dimensions else "uar": 0.5},
                        "best_epoch": epochs,
                        "curves": {
                            "train_loss": [2.0 / (epoch + 1) for epoch in range(1 if fusion == rung else epochs)],
                            "validation_loss": [None] * epochs,
                        },
                        "diagnostics": {"fused_norm": 0.4, **weighted} if fusion == "hyperbolic" else weighted,
                    }
                )
    config = {
        "hyfuse": "0.1.0",
        "corpus": corpus,
        "classes": [] if dimensions else list(classes),
        "target": "dimensions" if dimensions else "emotion",
        "dimensions": list(dimensions),
        "labels": "hard",
        "condition": "clean",
        "protocol": f"speaker-{folds}fold",
        "speaker_independent": speaker_independent,
        "pool": "mean+std",
        "recipe": "hyfuse",
        "seeds": list(range(seeds)),
        "cells": [{**cell, "options": {}} for cell in cells],
        "sources": {
            name: {
                "encoder": name,
                "family": "RLR" if name in lefts else "CBR",
                "weights_kind": "random" if name in random else "pretrained",
                "representation": "latent",
                "pool": "mean+std",
                "dim": 8,
                "layers": [],
                "path": str(folder / "no-cache" / "store.zarr"),
                "store_digest": "0" * 64,
                "features_digest": "1" * 64,
            }
            for name in (*lefts, *rights)
        },
        "folds": [
            {
                "name": str(fold + 1),
                "train_speakers": [],
                "validation_speakers": [],
                "test_speakers": [name for place, name in enumerate(speakers) if place % folds == fold],
            }
            for fold in range(folds)
        ],
        "hyper_parameters": {"epochs": epochs, "selection": "fixed", "learning_rate": 0.002, "label_smoothing": 0.1},
        "versions": {"torch": "2.13.0"},
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    lines = "\n".join(json.dumps(row, sort_keys=True) for row in rows)
    (folder / "results.jsonl").write_text(lines + "\n", encoding="utf-8")
    pd.concat(frames, ignore_index=True).to_parquet(folder / "predictions.parquet", index=False)
    return folder
