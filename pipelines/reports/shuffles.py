"""Which shuffle drops of a table are significant: of every fusion, what shuffling its left and its right input costs.

All drops of a table are one family; their p-values are corrected after Holm, as those of every other mark. A star says that the
score changed significantly, not that it fell: the sign of the drop says that. † (an input is not used) is judged without
correction, see ``studies.answers``: correction would make it easier to call an input unused.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pipelines.evaluation.results import CellScore
from pipelines.evaluation.statistics import holm
from pipelines.studies.answers import LEVEL

__all__ = ["Drops", "corrected_drops"]


@dataclass(frozen=True)
class Drops:
    """What is known of a cell's two drops beside their size.

    Attributes:
        left_p_holm: p for the left input, corrected; NaN for a single representation, or where nothing can be tested.
        right_p_holm: for the right input.
    """

    left_p_holm: float = math.nan
    right_p_holm: float = math.nan

    @property
    def left_mark(self) -> str:
        """``*`` for a significant drop of the left input."""
        return "*" * (self.left_p_holm < LEVEL)

    @property
    def right_mark(self) -> str:
        """``*`` for a significant drop of the right input."""
        return "*" * (self.right_p_holm < LEVEL)


def corrected_drops(scores: Sequence[CellScore]) -> tuple[Drops, ...]:
    """One per score, in order; Holm over both drops of all fusions."""
    fused = [place for place, score in enumerate(scores) if score.right]
    corrected = holm([p for place in fused for p in (scores[place].left_drop_p, scores[place].right_drop_p)])
    found = {place: Drops(*corrected[2 * index : 2 * index + 2]) for index, place in enumerate(fused)}
    return tuple(found.get(place, Drops()) for place in range(len(scores)))
