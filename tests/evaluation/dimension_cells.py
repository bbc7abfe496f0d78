"""Cells of dimensions whose predictions are made up: true values, seen through a bias of the speaker and chance."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipelines.evaluation.results import CellPredictions, CellScore, score_predictions

__all__ = ["DIMENSIONS", "made_up_score", "made_up_truth"]

DIMENSIONS = ("arousal", "valence")


def made_up_truth(
    speakers: int = 10, clips: int = 24, dimensions: int = len(DIMENSIONS)
) -> tuple[NDArray[np.float32], list[str]]:
    """Values [n, D] on a scale from about 1 to 7, and n speakers."""
    generator = np.random.default_rng(0)
    truth = 4 + generator.standard_normal((speakers * clips, dimensions)).round(1)
    return truth.astype(np.float32), [f"s{one:02d}" for one in np.repeat(np.arange(speakers), clips)]


def made_up_score(
    left: str,
    right: str = "",
    fusion: str = "single",
    *,
    skill: float | Sequence[float],
    drops: tuple[float, float] = (0.4, 0.4),
    speakers: int = 10,
    seeds: int = 3,
    dimensions: Sequence[str] = DIMENSIONS,
) -> CellScore:
    """A cell whose predictions correlate with the truth.

    Args:
        left: encoder.
        right: encoder, or nothing.
        fusion: name.
        skill: correlation, of every dimension or of each.
        drops: how much of it is lost when the left and when the right input is shuffled.
        speakers: K.
        seeds: S.
        dimensions: their names.
    """
    truth, who = made_up_truth(speakers, dimensions=len(dimensions))
    generator = np.random.default_rng([*f"{left}+{right} {fusion}".encode()])
    of_speaker = np.repeat(0.1 * generator.standard_normal((speakers, 1)), len(who) // speakers, axis=0)
    noise = generator.standard_normal((seeds, *truth.shape))

    def predictions(lost: float) -> NDArray[np.float32]:
        share = np.clip(np.asarray(skill) - lost, 0, 1)
        found = 4 + of_speaker + share * (truth - 4) + np.sqrt(1 - share**2) * noise
        return np.asarray(found, dtype=np.float32)

    made = CellPredictions(
        truth=truth,
        speakers=who,
        folds=[str(int(name[1:]) % 5) for name in who],
        outputs=predictions(0.0),
        left_shuffled=predictions(drops[0]),
        right_shuffled=predictions(drops[1]) if right else None,
        diagnostics={},
        dimensions=tuple(dimensions),
    )
    single = left if fusion == "single" else f"{left} {fusion}"
    return score_predictions(
        made, left=left, right=right, fusion=fusion, cell=f"{left}+{right} {fusion}" if right else single
    )
