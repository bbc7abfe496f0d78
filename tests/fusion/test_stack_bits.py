"""Every head under every kind of option: its bits after training are those of any other stack, in any order."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipelines.fusion.catalogue import FUSIONS, SINGLE, applicable_options
from pipelines.training.trainer import HeadResult, HeadTask, TrainConfig, train_stack

ROWS, CLASSES = 90, 7
# 7 classes and widths of 21 and 13 leave tails in every vectorised loop.
OPTIONS = {
    "default": {},
    "mlr": {"classifier": "mlr", "learn_curvature": "yes", "modality_dropout": 0.3},
    "dense": {"dense_dim": 24, "learn_curvature": "yes", "order": "right-left", "rank": 37},
    "cnn": {"front_end": "cnn"},
}


def train(fusion: str, kind: str, tasks: list[HeadTask]) -> list[HeadResult]:
    rng = np.random.default_rng(0)
    left, right = (torch.from_numpy(rng.standard_normal((ROWS, width))).float() for width in (21, 13))
    return train_stack(
        fusion=fusion,
        options=applicable_options(fusion, OPTIONS[kind]),
        left=left,
        right=None if fusion == SINGLE else right,
        labels=torch.from_numpy(rng.integers(0, CLASSES, ROWS)),
        tasks=tasks,
        steps_per_epoch=2,
        num_classes=CLASSES,
        config=TrainConfig(epochs=2, hidden_dim=24, batch_size=20, dropout=0.2),
    )


@pytest.mark.parametrize("kind", OPTIONS)
@pytest.mark.parametrize("fusion", [*FUSIONS, SINGLE])
def test_bits_do_not_depend_on_the_stack(fusion: str, kind: str) -> None:
    rows = np.random.default_rng(1).permutation(ROWS)
    cuts = (30, 37, 45)
    tasks = [
        HeadTask(fold=f"{cut}", seed=seed, train=rows[:cut], validation=rows[cut:50], test=rows[50 : 50 + cut - 20])
        for cut in cuts
        for seed in range(2)
    ][:5]
    whole = train(fusion, kind, tasks)
    parts = [*train(fusion, kind, tasks[:2][::-1])[::-1], *train(fusion, kind, tasks[2:])]
    for ours, expected in zip(parts, whole, strict=True):
        assert np.array_equal(ours.test_outputs, expected.test_outputs)
        assert np.array_equal(ours.left_shuffled_outputs, expected.left_shuffled_outputs)
        assert ours.diagnostics == expected.diagnostics
        for name, tensor in ours.parameters.items():
            assert torch.equal(tensor, expected.parameters[name]), name
