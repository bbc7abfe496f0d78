"""Stage 2 on a GPU: heads trained there predict what heads trained on the CPU predict."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from pipelines.fusion.catalogue import FUSIONS, SINGLE
from pipelines.training.bench import bench_train
from pipelines.training.trainer import HeadResult, HeadTask, TrainConfig, train_stack
from tests.gpu.devices import DEVICES

ROWS, CLASSES, LAYERS = 210, 5, 3


def _train(fusion: str, device: str, *, heads: int = 2, layers: bool = False) -> list[HeadResult]:
    """Heads on two inputs that tell the classes apart; with ``layers``, the left one has layers to be weighted."""
    generator = torch.Generator().manual_seed(4)
    labels = torch.arange(ROWS) % CLASSES
    left, right = (
        torch.randn(ROWS, dim, generator=generator) + torch.randn(CLASSES, dim, generator=generator)[labels]
        for dim in (24, 16)
    )
    if layers:
        left = torch.stack([left, *torch.randn(LAYERS - 1, ROWS, 24, generator=generator)], dim=1)
    rows = np.random.default_rng(0).permutation(ROWS)
    tasks = [HeadTask(f"fold{index % 5}", index // 5, rows[:120], rows[120:160], rows[160:]) for index in range(heads)]
    return train_stack(
        fusion=fusion,
        options={},
        left=left,
        right=right if fusion != SINGLE else None,
        labels=labels,
        tasks=tasks,
        steps_per_epoch=4,
        num_classes=CLASSES,
        config=TrainConfig(epochs=2),
        device=device,
    )


def _assert_near(found: Sequence[HeadResult], expected: Sequence[HeadResult]) -> None:
    """Results to 1e-3: probabilities, also with either input shuffled, losses, and what heads record of themselves."""
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.test_outputs.shape == (50, CLASSES)
        assert np.ptp(theirs.test_outputs) > 0.05  # something was learnt, so something could differ
        for name in ("test_outputs", "left_shuffled_outputs", "right_shuffled_outputs"):
            if getattr(theirs, name) is not None:
                np.testing.assert_allclose(getattr(ours, name), getattr(theirs, name), rtol=0, atol=1e-3)
        np.testing.assert_allclose(ours.curves["train_loss"], theirs.curves["train_loss"], rtol=0, atol=1e-3)
        assert ours.diagnostics == pytest.approx(theirs.diagnostics, abs=1e-3)
        assert all(tensor.device.type == "cpu" for tensor in ours.parameters.values())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("fusion", [SINGLE, *sorted(FUSIONS)])
def test_heads_predict_as_on_the_cpu(device: str, fusion: str) -> None:
    _assert_near(_train(fusion, device), _train(fusion, "cpu"))


@pytest.mark.parametrize("device", DEVICES)
def test_weighted_layers_are_those_of_the_cpu(device: str) -> None:
    found, expected = (_train("concat", where, layers=True) for where in (device, "cpu"))
    assert {f"left_layer_{layer:02d}" for layer in range(LAYERS)} <= found[0].diagnostics.keys()
    _assert_near(found, expected)


@pytest.mark.parametrize("device", DEVICES)
def test_hundreds_of_heads_in_one_stack(device: str) -> None:
    """Each as on the CPU."""
    found = _train("hyperbolic", device, heads=300)
    assert len(found) == 300
    _assert_near(found[-2:], _train("hyperbolic", "cpu", heads=300)[-2:])


@pytest.mark.parametrize("device", DEVICES)
def test_the_benchmark_runs(device: str) -> None:
    measured = bench_train(
        fusion="concat",
        left_dim=24,
        right_dim=16,
        utterances=120,
        num_classes=CLASSES,
        heads=4,
        loop_heads=1,
        config=TrainConfig(epochs=1),
        processes=1,
        device=device,
    )
    assert measured["loss_difference"] <= (1e-4 if device == "cpu" else 1e-3)
    assert (measured["peak_cuda_memory_mb"] is not None) == (device == "cuda")
