"""Cells whose predictions are made up: right with a given probability, by speaker and by chance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from pipelines.evaluation.results import CellPredictions, CellScore, score_predictions


def made_up_labels(
    *, speakers: int = 10, clips: int = 48, classes: int = 3
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Labels and speakers [n]; every speaker has equally many clips of every class."""
    labels = np.tile(np.arange(clips) % classes, speakers)
    return labels, np.repeat(np.arange(speakers), clips)


def made_up_cell(
    left: str,
    right: str = "",
    fusion: str = "",
    *,
    skill: float,
    drops: tuple[float, float] = (0.3, 0.3),
    speakers: int = 10,
    clips: int = 48,
    classes: int = 3,
    seeds: int = 3,
    seed: int = 0,
    title: str = "",
    diagnostics: Mapping[str, float] | None = None,
) -> CellScore:
    """A cell that is right on a share of its utterances, the same share for every speaker but for one clip in twelve.

    Args:
        left: encoder.
        right: encoder, or nothing.
        fusion: name; ``single`` for a single representation unless given.
        skill: probability of a right prediction.
        drops: how much of it is lost when the left and when the right input is shuffled.
        speakers: K.
        clips: per speaker.
        classes: C.
        seeds: S.
        seed: of chance.
        title: of the cell; made from the names unless given.
        diagnostics: of its heads.
    """
    fusion = fusion or "single"
    labels, who = made_up_labels(speakers=speakers, clips=clips, classes=classes)
    generator = np.random.default_rng([seed, *f"{left}+{right} {fusion}".encode()])

    def predictions(share: float) -> NDArray[np.int64]:
        wrong = (labels + 1) % classes
        rank = np.argsort(np.argsort(generator.random((seeds, speakers, clips)), axis=2), axis=2)
        wobble = generator.integers(-clips // 12, clips // 12 + 1, (seeds, speakers, 1))
        right_ones = rank < np.clip(np.round(share * clips) + wobble, 0, clips)
        return np.where(right_ones.reshape(seeds, -1), labels, wrong)

    plain = predictions(skill)
    probabilities = np.full((seeds, len(labels), classes), 0.3 / (classes - 1), dtype=np.float32)
    np.put_along_axis(probabilities, plain[..., None], 0.7, axis=2)
    shuffled: Sequence[NDArray[np.int64]] = [plain if drop == 0 else predictions(skill - drop) for drop in drops]
    made = CellPredictions(
        truth=labels,
        speakers=[f"s{one:02d}" for one in who],
        folds=[str(one % 5) for one in who],
        outputs=probabilities,
        left_shuffled=shuffled[0],
        right_shuffled=shuffled[1] if right else None,
        diagnostics=dict(diagnostics or {}),
    )
    single = left if fusion == "single" else f"{left} {fusion}"
    cell = title or (f"{left}+{right} {fusion}" if right else single)
    return score_predictions(made, left=left, right=right, fusion=fusion, cell=cell)
