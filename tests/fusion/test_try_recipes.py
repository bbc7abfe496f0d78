"""The script behind the tables of ``docs/fusion.md``: its trials are valid, and its scores are what they are said to be."""

from __future__ import annotations

import numpy as np
import pytest

from pipelines.fusion.catalogue import applicable_options, fusion_options
from pipelines.training.logistic import LOGISTIC
from pipelines.training.trainer import HeadTask
from tests.fusion.signals import make
from tests.fusion.try_recipes import PARTS, Data, Trial, principal_components, run


@pytest.mark.parametrize("part", PARTS)
def test_trials_are_valid(part: str) -> None:
    trials = PARTS[part]()
    assert len({trial.title for trial in trials}) == len(trials)
    for trial in trials:
        if trial.fusion != LOGISTIC:
            options = applicable_options(trial.fusion, dict(trial.options))
            assert dict(options) == dict(trial.options) or part.startswith("paper")
            fusion_options(trial.fusion, options)


def test_scores() -> None:
    left, right, labels = make("left", 240)
    rows = np.random.default_rng(0).permutation(240)
    speakers = np.array([f"s{row % 6}" for row in range(240)], dtype=object)
    # Two inner folds of one outer fold: three speakers train, the other three are held out, and the reverse.
    halves = [rows[rows % 6 < 3], rows[rows % 6 >= 3]]
    tasks = [HeadTask(fold=f"1/{i}", seed=0, train=halves[i], validation=rows[:0], test=halves[1 - i]) for i in (0, 1)]
    data = Data(left, right, labels.numpy(), speakers, 4, tasks)
    short = {"epochs": 8, "input_dropout": 0.2}
    both = run(data, Trial("", "concat", short))
    assert both.straight > 0.9
    assert both.left_shuffled < 0.5
    assert both.right_shuffled > 0.85
    assert len(both.per_speaker) == 6
    assert both.per_speaker.mean() == pytest.approx(both.straight, abs=0.05)
    assert run(data, Trial("", "single", short, side="right")).straight < 0.45
    assert run(data, Trial("", LOGISTIC)).straight > 0.9
    few = Trial("", "concat", {"epochs": 40, "input_dropout": 0.0}, prepare=principal_components(8))
    assert run(data, few).straight > 0.8
