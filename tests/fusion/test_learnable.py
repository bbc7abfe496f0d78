"""A fusion must be able to use either input: the signal is in one of them only, the other is noise.

The textbook hyperbolic head (no radius control) cannot when the signal is in the second operand; it is built here, from the
same parts, to show that the test can fail.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from pipelines.fusion import poincare
from pipelines.fusion.hyperbolic import HyperbolicHead
from pipelines.training.trainer import HeadResult, HeadTask, TrainConfig, train_stack

CLASSES = 6
ROWS = 360
DIM = 256
# Narrow dropout and few epochs: the signal is plain, the question is only whether it gets through.
CONFIG = TrainConfig(epochs=12, input_dropout=0.2)


def signal_and_noise() -> tuple[Tensor, Tensor, Tensor]:
    """Standardised inputs [N, D] with and without class means, and labels [N]."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, CLASSES, ROWS)
    means = rng.standard_normal((CLASSES, DIM)) * 0.5
    with_signal = rng.standard_normal((ROWS, DIM)) + means[labels]
    noise = rng.standard_normal((ROWS, DIM))
    return torch.from_numpy(with_signal).float(), torch.from_numpy(noise).float(), torch.from_numpy(labels)


def train(fusion: str, *, side: str, order: str | None = None) -> tuple[HeadResult, dict[str, float]]:
    """The first head's result, and accuracies: straight, and with either input shuffled among the test rows."""
    with_signal, noise, labels = signal_and_noise()
    left, right = (with_signal, noise) if side == "left" else (noise, with_signal)
    rows = np.random.default_rng(1).permutation(ROWS)
    tasks = [HeadTask(fold="a", seed=seed, train=rows[:240], validation=rows[:0], test=rows[240:]) for seed in range(2)]
    results = train_stack(
        fusion=fusion,
        options={} if order is None else {"order": order},
        left=left,
        right=right,
        labels=labels,
        tasks=tasks,
        steps_per_epoch=8,
        num_classes=CLASSES,
        config=CONFIG,
    )
    truth = labels.numpy()[rows[240:]]

    def accuracy(name: str) -> float:
        return float(np.mean([getattr(result, name).argmax(axis=1) == truth for result in results]))

    scores = {name: accuracy(f"{name}_probabilities") for name in ("test", "left_shuffled", "right_shuffled")}
    return results[0], scores


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(
    ("fusion", "order"),
    [("concat", None), ("attention", None), ("hyperbolic", "left-right"), ("hyperbolic", "right-left")],
)
def test_signal_in_one_input_is_learned(fusion: str, order: str | None, side: str) -> None:
    _, scores = train(fusion, side=side, order=order)
    other = "right" if side == "left" else "left"
    assert scores["test"] > 0.9
    assert scores[f"{side}_shuffled"] < 0.3  # chance is 1/6
    assert scores[f"{other}_shuffled"] > 0.85


def test_the_textbook_head_ignores_its_second_operand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HyperbolicHead, "lift", lambda self, stream, radius: poincare.exp0(stream + 0 * radius))
    result, first = train("hyperbolic", side="left", order="left-right")
    assert first["test"] > 0.9  # the first operand gets through
    _, second = train("hyperbolic", side="right", order="left-right")
    assert second["test"] < 0.5
    assert result.diagnostics["left_edge"] < 0.05  # because the points sit on the rim
