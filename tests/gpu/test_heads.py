"""Stage 2 on a GPU: heads trained there predict what heads trained on the CPU predict."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipelines.fusion.catalogue import FUSIONS
from pipelines.training.trainer import HeadResult, HeadTask, TrainConfig, train_stack
from tests.gpu.devices import DEVICES

ROWS, CLASSES = 210, 5


def _train(fusion: str, device: str) -> list[HeadResult]:
    generator = torch.Generator().manual_seed(4)
    labels = torch.arange(ROWS) % CLASSES
    left, right = (
        torch.randn(ROWS, dim, generator=generator) + torch.randn(CLASSES, dim, generator=generator)[labels]
        for dim in (24, 16)
    )
    rows = np.random.default_rng(0).permutation(ROWS)
    tasks = [HeadTask(f"fold{fold}", fold, rows[:120], rows[120:160], rows[160:]) for fold in range(2)]
    return train_stack(
        fusion=fusion,
        options={},
        left=left,
        right=right,
        labels=labels,
        tasks=tasks,
        steps_per_epoch=4,
        num_classes=CLASSES,
        config=TrainConfig(epochs=2),
        device=device,
    )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("fusion", sorted(FUSIONS))
def test_heads_predict_as_on_the_cpu(device: str, fusion: str) -> None:
    for found, expected in zip(_train(fusion, device), _train(fusion, "cpu"), strict=True):
        assert found.test_probabilities.shape == (50, CLASSES)
        assert np.ptp(expected.test_probabilities) > 0.05  # something was learnt, so something could differ
        np.testing.assert_allclose(found.test_probabilities, expected.test_probabilities, rtol=0, atol=1e-3)
