"""What raters said: one form of the cells, soft labels, and Krippendorff's alpha against published and closed-form values."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pipelines.corpora import raters

# Krippendorff (2011), section C: four observers, twelve units, the last of them seen by one.
OBSERVERS = (
    (1, 2, 3, 3, 2, 1, 4, 1, 2, None, None, None),
    (1, 2, 3, 3, 2, 2, 4, 1, 2, 5, None, 3),
    (None, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, None),
    (1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, None),
)


def units() -> list[list[float]]:
    return [[float(answer) for answer in unit if answer is not None] for unit in zip(*OBSERVERS, strict=True)]


def counts(answers: list[list[float]]) -> np.ndarray:
    values = sorted({value for unit in answers for value in unit})
    return np.array([[unit.count(value) for value in values] for unit in answers])


# --- cells


def test_votes_have_one_form() -> None:
    assert raters.parse_votes(" neutral:1; anger : 3 ") == {"neutral": 1.0, "anger": 3.0}
    assert raters.format_votes({"neutral": 1.0, "anger": 3.0, "fear": 0.0}) == "anger:3;neutral:1"
    assert raters.parse_votes("") == {}
    assert raters.format_votes({}) == ""
    assert raters.parse_votes("Other: of their own:0.5") == {"Other: of their own": 0.5}


def test_every_rater_has_one_vote() -> None:
    votes = raters.one_vote_each([["fru", "ang"], ["ang"], [], ["ang", "sad", "fru"]])
    assert votes == pytest.approx({"fru": 0.5 + 1 / 3, "ang": 0.5 + 1 + 1 / 3, "sad": 1 / 3})
    thirds = raters.format_votes(raters.one_vote_each([["a", "b", "c"]] * 3))
    assert thirds == "a:1;b:1;c:1"  # three thirds are one


@pytest.mark.parametrize(
    "wrong", ["anger", "anger:", "anger:x", ":3", "anger:0", "anger:-1", "a:1;a:2", "anger:nan", "a:1;"]
)
def test_what_is_no_vote(wrong: str) -> None:
    with pytest.raises(ValueError, match=r"is no (vote|number)"):
        raters.parse_votes(wrong)


@pytest.mark.parametrize("wrong", ["4,5", "4;;5", "high", "inf", "1_0"])
def test_what_is_no_rating(wrong: str) -> None:
    with pytest.raises(ValueError, match="is no number"):
        raters.parse_ratings(wrong)


def test_ratings_have_one_form() -> None:
    assert raters.parse_ratings(" 4; 4.5;5.0") == [4.0, 4.5, 5.0]
    assert raters.format_ratings([4.0, 4.5, 5.0]) == "4;4.5;5"
    assert raters.parse_ratings("") == []


def test_importable_without_numpy_and_pandas() -> None:
    code = "import sys, pipelines.corpora.raters; print(sorted({'numpy', 'pandas'} & set(sys.modules)))"
    root = Path(__file__).resolve().parents[2]
    result = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


# --- soft labels


def test_soft_labels_are_shares_among_the_classes() -> None:
    cells = ["anger:3;neutral:1", "frustration:2;sadness:1", "", "fear:5", "anger:0.5;sadness:1.5"]
    found = raters.soft_labels(cells, ("sadness", "anger", "neutral"))
    assert found.shape == (5, 3)
    np.testing.assert_allclose(found[[0, 1, 4]], [[0, 0.75, 0.25], [1, 0, 0], [0.75, 0.25, 0]])
    assert np.isnan(found[[2, 3]]).all()


# --- agreement


def test_alpha_of_the_published_example() -> None:
    assert raters.alpha_nominal(counts(units())) == pytest.approx(0.743, abs=5e-4)
    assert raters.alpha_interval(units()) == pytest.approx(0.849, abs=5e-4)


def test_alpha_equals_its_definition_by_pairs() -> None:
    rng = np.random.default_rng(0)
    answers = [rng.integers(1, 6, rng.integers(1, 7)).astype(float).tolist() for _ in range(60)]
    for difference, found in (
        (lambda a, b: float(a != b), raters.alpha_nominal(counts(answers))),
        (lambda a, b: (a - b) ** 2, raters.alpha_interval(answers)),
    ):
        several = [unit for unit in answers if len(unit) > 1]
        within = sum(
            difference(a, b) / (len(unit) - 1)
            for unit in several
            for i, a in enumerate(unit)
            for j, b in enumerate(unit)
            if i != j
        )
        every = [value for unit in several for value in unit]
        chance = sum(difference(a, b) for a in every for b in every) / (len(every) - 1)
        assert found == pytest.approx(1.0 - within / chance, rel=1e-12)


def test_alpha_at_its_extremes() -> None:
    assert raters.alpha_nominal(np.array([[3, 0], [0, 2], [1, 0]])) == 1.0
    assert raters.alpha_interval([[1, 1], [5, 5, 5], [2]]) == 1.0
    assert math.isnan(raters.alpha_nominal(np.array([[2, 0], [3, 0]])))  # nothing to agree on
    assert math.isnan(raters.alpha_interval([[2, 2], [2, 2]]))
    assert math.isnan(raters.alpha_nominal(np.zeros((0, 0))))
    assert math.isnan(raters.alpha_interval([[1], []]))
    rng = np.random.default_rng(1)
    by_chance = rng.integers(0, 4, (4000, 3))
    assert abs(raters.alpha_interval(by_chance.tolist())) < 0.03
    assert abs(raters.alpha_nominal(counts(by_chance.astype(float).tolist()))) < 0.03
    assert raters.alpha_nominal(np.array([[1, 1], [1, 1]])) < 0.0  # worse than chance


def test_interval_alpha_is_a_ratio_of_mean_squares_where_all_have_the_same_raters() -> None:
    rng = np.random.default_rng(2)
    answers = rng.normal(size=(50, 1)) + 0.7 * rng.normal(size=(50, 4))
    within = answers.var(axis=1, ddof=1).mean()
    assert raters.alpha_interval(answers.tolist()) == pytest.approx(1.0 - within / answers.var(ddof=1))
    between = 4 * answers.mean(axis=1).var(ddof=1)
    intraclass = (between - within) / (between + 3 * within)  # ICC(1, 1), Shrout & Fleiss (1979)
    assert raters.alpha_interval(answers.tolist()) == pytest.approx(intraclass, abs=0.02)


def test_agreement_of_a_table() -> None:
    table = pd.DataFrame(
        {
            "emotion_votes": ["a:2", "a:1;b:1", "b:3", "a:0.5;b:1.5", "a:1", ""],
            "arousal_ratings": ["1;2", "", "5;5;4", "3", "", ""],
            "valence_ratings": ["1", "2", "", "", "", ""],
        }
    )
    emotion, arousal = raters.agreement(table)
    assert (emotion.what, emotion.utterances, emotion.answers, emotion.torn) == ("emotion", 3, 7, 1)
    assert emotion.alpha == pytest.approx(raters.alpha_nominal(np.array([[2, 0], [1, 1], [0, 3]])))
    assert (arousal.what, arousal.utterances, arousal.answers) == ("arousal", 2, 5)
    assert arousal.alpha == pytest.approx(raters.alpha_interval([[1, 2], [5, 5, 4]]))
    assert raters.agreement(pd.DataFrame({"emotion": ["anger"]})) == ()
    assert raters.agreement(pd.DataFrame({"emotion_votes": ["", "a:1"]})) == ()
