"""What several raters said of one utterance, how a manifest writes it down, and how much they agree.

Four further columns of a manifest hold it, each present only where a corpus has raters:

=================== ===============================================================================================
column              one cell
=================== ===============================================================================================
emotion_votes       ``anger:3;neutral:1``: emotions of the vocabulary, sorted, and how many raters named each. A rater who named
                    two has half a vote for each, so the votes add up to the raters who answered.
arousal_ratings     ``4;4;5``: one number per rater who answered, on the corpus' own scale, in the corpus' order of raters
valence_ratings     likewise
dominance_ratings   likewise
=================== ===============================================================================================

An empty cell means that nobody answered. The columns ``emotion``, ``arousal``, ``valence``, ``dominance`` remain what the corpus
states as its result; nothing here replaces them.

Agreement is Krippendorff's alpha: 1 minus the disagreement found within utterances over that expected if answers were dealt out
by chance; 1 is perfect, 0 is chance. It takes any number of raters per utterance; utterances with fewer than two answers do not
count. Source: K. Krippendorff, *Computing Krippendorff's Alpha-Reliability*, University of Pennsylvania, 2011 (section E). For the
same number of raters everywhere, the interval form is 1 minus the mean square within utterances over that of all answers, close
to the intraclass correlation ICC(1, 1) of Shrout & Fleiss (Psychological Bulletin 86, 1979).

Importable without numpy and pandas.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

__all__ = [
    "RATER_COLUMNS",
    "RATINGS",
    "VOTES",
    "Agreement",
    "agreement",
    "alpha_interval",
    "alpha_nominal",
    "format_ratings",
    "format_votes",
    "one_vote_each",
    "parse_ratings",
    "parse_votes",
    "soft_labels",
]

VOTES = "emotion_votes"
"""Column of the votes for emotions."""

RATINGS: dict[str, str] = {name: f"{name}_ratings" for name in ("arousal", "valence", "dominance")}
"""Dimension to the column of its ratings."""

RATER_COLUMNS: tuple[str, ...] = (VOTES, *RATINGS.values())


# ---------------------------------------------------------------------------------------------------------------------
# Cells


def parse_votes(text: str) -> dict[str, float]:
    """The cell of ``emotion_votes``: emotion to votes; empty for an empty cell.

    Raises:
        ValueError: not of the form ``anger:3;neutral:1`` with numbers above 0, or an emotion occurs twice.
    """
    votes: dict[str, float] = {}
    for part in _parts(text):
        emotion, colon, number = (piece.strip() for piece in part.rpartition(":"))
        if not colon or not emotion or emotion in votes:
            raise ValueError(f"{part!r} is no vote")
        votes[emotion] = _number(number)
        if votes[emotion] <= 0.0:
            raise ValueError(f"{part!r} is no vote")
    return votes


def format_votes(votes: Mapping[str, float]) -> str:
    """The cell of ``emotion_votes``, sorted by emotion; emotions without a vote are left out."""
    return ";".join(f"{emotion}:{_shortest(votes[emotion])}" for emotion in sorted(votes) if votes[emotion])


def one_vote_each(answers: Iterable[Sequence[str]]) -> dict[str, float]:
    """Votes from the emotions that each rater named; who named several has one vote split evenly, who named none has none."""
    votes: dict[str, float] = {}
    for named in answers:
        for emotion in named:
            votes[emotion] = votes.get(emotion, 0.0) + 1.0 / len(named)
    return votes


def parse_ratings(text: str) -> list[float]:
    """The cell of a column of ratings; empty for an empty cell.

    Raises:
        ValueError: not of the form ``4;4;5``.
    """
    return [_number(part) for part in _parts(text)]


def format_ratings(ratings: Iterable[float]) -> str:
    """The cell of a column of ratings."""
    return ";".join(map(_shortest, ratings))


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(";")] if text.strip() else []


def _number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number) or "_" in text:  # float() takes "1_000" for a number
        raise ValueError(f"{text!r} is no number")
    return number


def _shortest(number: float) -> str:
    # Thirds of a vote add up to whole ones only after rounding.
    number = round(float(number), 6)
    return str(int(number)) if number.is_integer() else repr(number)


# ---------------------------------------------------------------------------------------------------------------------
# Soft labels


def soft_labels(cells: Sequence[str], classes: Sequence[str]) -> NDArray[Any]:
    """Shares of the votes [N, C] among some classes, float64; rows sum to 1, or are NaN where no class has a vote.

    Votes for other emotions do not count, as their utterances do not where labels are hard.

    Args:
        cells: of ``emotion_votes``, [N].
        classes: emotions, [C], in the order of the columns asked for.

    Raises:
        ValueError: a cell is not of the form of the column; manifests are checked for it when they are read.
    """
    import numpy as np

    place = {emotion: position for position, emotion in enumerate(classes)}
    votes = np.zeros((len(cells), len(classes)))
    for row, cell in enumerate(cells):
        for emotion, number in parse_votes(cell).items():
            if emotion in place:
                votes[row, place[emotion]] = number
    total = votes.sum(axis=1, keepdims=True)
    shares: NDArray[np.float64] = np.divide(votes, total, out=np.full_like(votes, np.nan), where=total > 0.0)
    return shares


# ---------------------------------------------------------------------------------------------------------------------
# Agreement


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How much the raters of a corpus agree on one thing.

    Attributes:
        what: ``emotion``, ``arousal``, ``valence`` or ``dominance``.
        alpha: Krippendorff's alpha, nominal for the emotion, interval for a dimension; NaN where all answers are the same.
        utterances: with at least two answers.
        answers: in these utterances.
        torn: utterances that do not count because a rater named several emotions, which the nominal form has no place for.
    """

    what: str
    alpha: float
    utterances: int
    answers: int
    torn: int = 0


def agreement(table: pd.DataFrame) -> tuple[Agreement, ...]:
    """Agreement on everything that a manifest has several answers for; empty if it has none.

    Args:
        table: of a manifest.
    """
    import numpy as np

    found = []
    if VOTES in table.columns:
        votes = [parse_votes(cell) for cell in table[VOTES]]
        whole = [given for given in votes if all(float(number).is_integer() for number in given.values())]
        emotions = sorted({emotion for given in whole for emotion in given})
        counts = np.array([[given.get(emotion, 0.0) for emotion in emotions] for given in whole]).reshape(
            len(whole), -1
        )
        several = counts.sum(axis=1) >= 2
        if several.any():
            found.append(
                Agreement(
                    what="emotion",
                    alpha=alpha_nominal(counts),
                    utterances=int(several.sum()),
                    answers=int(counts[several].sum()),
                    torn=len(votes) - len(whole),
                )
            )
    for dimension, column in RATINGS.items():
        if column in table.columns:
            ratings = [given for given in map(parse_ratings, table[column]) if len(given) >= 2]
            if ratings:
                found.append(
                    Agreement(
                        what=dimension,
                        alpha=alpha_interval(ratings),
                        utterances=len(ratings),
                        answers=sum(map(len, ratings)),
                    )
                )
    return tuple(found)


def alpha_nominal(counts: NDArray[Any]) -> float:
    """Krippendorff's alpha for categories.

    Args:
        counts: how many raters gave each category, [units, categories], whole numbers. Units with fewer than two answers do not
            count.

    Returns:
        Alpha; NaN where no unit has two answers or all answers are of one category.
    """
    import numpy as np

    counts = np.asarray(counts, dtype=np.float64)
    per_unit = counts.sum(axis=1, keepdims=True)
    counts, per_unit = counts[per_unit[:, 0] >= 2], per_unit[per_unit >= 2][:, None]
    total = counts.sum()
    per_category = counts.sum(axis=0)
    # Coincidences of a category with itself; all others are disagreement.
    same = (counts * (counts - 1.0) / (per_unit - 1.0)).sum()
    expected_same = (per_category * (per_category - 1.0)).sum() / (total - 1.0) if total else 0.0
    if total == expected_same:
        return math.nan
    return float(1.0 - (total - same) / (total - expected_same))


def alpha_interval(ratings: Sequence[Sequence[float]]) -> float:
    """Krippendorff's alpha for numbers, with the squared difference as disagreement.

    Args:
        ratings: the answers of each unit. Units with fewer than two do not count.

    Returns:
        Alpha; NaN where no unit has two answers or all answers are the same.
    """
    import numpy as np

    units = [np.asarray(unit, dtype=np.float64) for unit in ratings if len(unit) >= 2]
    if not units:
        return math.nan
    every = np.concatenate(units)
    # Sums over ordered pairs: the squared differences among m numbers are 2 m times their squared deviations.
    observed = math.fsum(2.0 * len(unit) * float(np.var(unit)) * len(unit) / (len(unit) - 1) for unit in units)
    expected = 2.0 * len(every) * float(np.var(every)) * len(every) / (len(every) - 1)
    return 1.0 - observed / expected if expected > 0.0 else math.nan
