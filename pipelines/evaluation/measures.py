"""What a table is about: the scores of its target, the one that decides, and how it is written.

The target ``emotion`` is judged by UAR, written in per cent, differences in points; the target ``dimensions`` by the mean CCC over
its dimensions, written as it is. :meth:`Measure.of` looks at one dimension alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

from pipelines.errors import unknown_name
from pipelines.evaluation.statistics import METRICS, Metric, dimension_metrics
from pipelines.training.grid import LINEAR

__all__ = ["Measure", "measure_of"]

_RUNGS = {"emotion": "logistic regression", "dimensions": "ridge regression"}


@dataclass(frozen=True)
class Measure:
    """How a table's cells are judged.

    Attributes:
        target: ``emotion`` or ``dimensions``.
        dimensions: their names; empty where the target is emotion.
        metrics: every score of a cell by its key.
        key: that of the score that decides.
        name: of that score: "UAR", "CCC", "CCC of valence".
        unit: of its differences: "points", "CCC".
        factor: what a score is multiplied with to be written.
        digits: decimals.
        unused_below: what shuffling an input must cost, or cost significantly, for the input to count as used.
    """

    target: str
    dimensions: tuple[str, ...]
    metrics: Mapping[str, Metric] = field(repr=False)
    key: str
    name: str
    unit: str
    factor: float
    digits: int
    unused_below: float = 0.01

    @property
    def metric(self) -> Metric:
        """The score that decides, of tallies."""
        return self.metrics[self.key]

    @property
    def linear(self) -> str:
        """Name of the linear rung among fusions."""
        return LINEAR[self.target]

    @property
    def rung(self) -> str:
        """The linear rung in words."""
        return _RUNGS[self.target]

    def of(self, dimension: str) -> Measure:
        """The same for one dimension alone.

        Raises:
            UnknownNameError: not among the dimensions.
        """
        if dimension not in self.dimensions:
            raise unknown_name("dimension of this table", dimension, self.dimensions)
        return replace(self, key=f"ccc_{dimension}", name=f"CCC of {dimension}")

    def text(self, value: float) -> str:
        """A score without its unit: ``62.0``, ``0.620``."""
        return f"{self.factor * value:.{self.digits}f}"

    def full(self, value: float) -> str:
        """A score in a sentence: ``62.0 %``, ``0.620``."""
        return f"{self.text(value)} %" if self.factor == 100 else self.text(value)

    def change(self, value: float) -> str:
        """A difference with its sign and without its unit: ``+1.2``, ``−0.012``, ``0.0``."""
        text = self.text(value)
        nothing = self.text(0.0)
        return nothing if text.lstrip("-") == nothing else f"+{text}" if value > 0 else text.replace("-", "−")

    def amount(self, value: float) -> str:
        """The size of a difference with its unit: ``1.2 points``, ``0.012 CCC``."""
        return f"{self.text(abs(value))} {self.unit}"


@lru_cache(maxsize=16)
def _measure(target: str, dimensions: tuple[str, ...]) -> Measure:
    if target == "emotion":
        return Measure("emotion", (), METRICS, "uar", "UAR", "points", 100.0, 1)
    name = "CCC" if len(dimensions) > 1 else f"CCC of {dimensions[0]}"
    return Measure("dimensions", dimensions, dimension_metrics(dimensions), "ccc", name, "CCC", 1.0, 3)


def measure_of(target: str, dimensions: Sequence[str] = ()) -> Measure:
    """The measure of a target.

    Args:
        target: ``emotion`` or ``dimensions``.
        dimensions: their names, of the target ``dimensions``.

    Raises:
        UnknownNameError: no such target.
    """
    if target not in LINEAR:
        raise unknown_name("target", target, LINEAR)
    return _measure(target, tuple(dimensions))
