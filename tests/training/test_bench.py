"""The stack against the plain loop, and the figures that ``hyfuse bench train`` gives."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from pipelines.errors import UnknownNameError
from pipelines.training.bench import bench_train
from pipelines.training.plain import PLAIN, train_plain
from pipelines.training.trainer import HeadTask, TrainConfig, train_stack

N, C = 200, 4


@pytest.mark.parametrize("fusion", PLAIN)
@pytest.mark.parametrize("selection", ["fixed", "last"])
def test_stack_and_loop_agree(fusion: str, selection: str) -> None:
    """Same loss to 1e-4, same predictions but for ties."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(N) % C
    left, right = (
        torch.randn(N, dim, generator=generator) + 0.7 * torch.randn(C, dim, generator=generator)[labels]
        for dim in (40, 24)
    )
    left[:, 3] = 7.0  # a constant column
    tasks = [
        HeadTask(str(fold), fold, *np.split(np.random.default_rng(fold).permutation(N), [100, 140]))
        for fold in range(3)
    ]
    config = TrainConfig(epochs=6, input_dropout=0.0, selection=selection, schedule="constant", clip_norm=0.8)
    results = train_stack(
        fusion=fusion, options={}, left=left, right=right, labels=labels, tasks=tasks, steps_per_epoch=4, num_classes=C,
        config=config,
    )  # fmt: skip
    for result in results:
        plain = train_plain(
            fusion, left=left, right=right, labels=labels, task=result.task, steps_per_epoch=4, num_classes=C,
            config=config,
        )  # fmt: skip
        np.testing.assert_allclose(result.curves["train_loss"], plain.train_loss, rtol=0, atol=1e-4)
        np.testing.assert_allclose(result.test_outputs, plain.test_probabilities, rtol=0, atol=1e-3)
        assert plain.train_loss[-1] < plain.train_loss[0]
        assert 0 < result.curves["gradient_clipped"].mean() < 1


def test_only_some_fusions_have_a_counterpart() -> None:
    with pytest.raises(UnknownNameError, match="Unknown fusion with a plain counterpart 'attention'"):
        train_plain(
            "attention", left=torch.zeros(4, 2), right=torch.zeros(4, 2), labels=torch.zeros(4, dtype=torch.long),
            task=HeadTask("f", 0, *np.split(np.arange(4), [2, 3])), steps_per_epoch=1, num_classes=2, config=TrainConfig(),
        )  # fmt: skip


@pytest.mark.slow
def test_figures() -> None:
    measured = bench_train(
        fusion="hyperbolic",
        left_dim=24,
        right_dim=16,
        utterances=120,
        num_classes=3,
        heads=4,
        loop_heads=2,
        config=TrainConfig(epochs=2),
        processes=2,
    )
    assert json.loads(json.dumps(measured)) == measured
    assert measured["loss_difference"] < 1e-4
    assert measured["predictions"] == 2 * 24
    assert measured["predictions_that_differ"] == measured["of_them_ties"]
    assert measured["speedup"] > 0
    assert measured["processes"] == 2
    assert measured["heads_per_minute_all_cores"] > 0
    assert measured["input_dropout"] == TrainConfig().input_dropout
    assert measured["peak_memory_mb"] > 50


def test_a_fusion_without_a_loop() -> None:
    measured = bench_train(
        fusion="attention",
        left_dim=24,
        right_dim=16,
        utterances=100,
        num_classes=3,
        heads=1,
        loop_heads=1,
        config=TrainConfig(epochs=1),
        processes=1,
    )
    assert "speedup" not in measured
    assert measured["heads_per_minute"] > 0
