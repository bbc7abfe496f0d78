"""Run folders as ``compare`` writes them, with made-up predictions."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.evaluation.results import HeadRecord, RunFolder
from tests.evaluation.cells import made_up_labels

CLASSES = ("anger", "neutral", "sadness")


def write_run(
    path: Path,
    skills: Mapping[str, float],
    *,
    seeds: int = 3,
    speakers: int = 10,
    chance: int = 0,
    leave_out: Sequence[int] = (),
    classes: Sequence[str] = CLASSES,
    config: Mapping[str, Any] | None = None,
) -> Path:
    """Write a run; cells are ``left+right fusion``, ``name`` or ``name logistic``, each right with the given probability.

    Args:
        path: its folder.
        skills: cell to probability of a right prediction.
        seeds: S.
        speakers: K; folds are five, by speaker.
        chance: seed of chance.
        leave_out: utterances that were not tested.
        classes: names, in the order of the run.
        config: settings that differ from the usual ones.
    """
    labels, who = made_up_labels(speakers=speakers, classes=len(CLASSES))
    order = [classes.index(name) for name in CLASSES]
    labels = np.array(order)[labels]
    records = []
    for cell, skill in skills.items():
        names, _, fusion = cell.partition(" ")
        left, _, right = names.partition("+")
        generator = np.random.default_rng([chance, *cell.encode()])
        for seed in range(1 if fusion == "logistic" else seeds):
            for fold in range(5):
                test = np.array([row for row in np.flatnonzero(who % 5 == fold) if row not in leave_out])
                right_ones = generator.random(len(test)) < skill
                predictions = np.where(right_ones, labels[test], (labels[test] + 1) % len(classes))
                probabilities = np.full((len(test), len(classes)), 0.2, dtype=np.float32)
                probabilities[np.arange(len(test)), predictions] = 0.6
                shuffled = generator.integers(0, len(classes), (2, len(test)))
                row = {
                    "cell": cell,
                    "left": left,
                    "right": right,
                    "fusion": fusion or "single",
                    "fold": str(fold + 1),
                    "seed": seed,
                    "options": {"order": "left-right"} if fusion == "hyperbolic" else {},
                    "diagnostics": {"norm": 0.25},
                    "curves": {},
                }
                records.append(HeadRecord(row, test, probabilities, shuffled[0], shuffled[1]))
    encoders = sorted({str(record.row[side]) for record in records for side in ("left", "right")} - {""})
    content: dict[str, Any] = {
        "corpus": "emodb",
        "classes": list(classes),
        "protocol": "speaker-5fold",
        "split_digest": "5" * 64,
        "speaker_independent": True,
        "seeds": list(range(seeds)),
        "hyper_parameters": {"epochs": 30, "learning_rate": 0.001},
        "sources": {
            name: {
                "family": "CBR" if name.startswith("enc") else "RLR",
                "weights_kind": "pretrained",
                "path": str(path),
            }
            | {"store_digest": "1" * 64}
            for name in encoders
        },
        "folds": [],
        "notes": ["Corpus: emodb."],
        "warnings": [],
        **(config or {}),
    }
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(content))
    run = RunFolder(path)
    run.write_results(records)
    run.write_predictions(
        records,
        utterance_ids=[f"u{row:03d}" for row in range(len(labels))],
        speakers=[f"s{one:02d}" for one in who],
        truth=labels,
        classes=classes,
    )
    return path
