"""Weighted layers: against an einsum, and what heads learn with them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from pipelines.errors import ConfigError, StoreError
from pipelines.fusion.catalogue import SINGLE
from pipelines.training.layers import PACE, LayerMix
from pipelines.training.trainer import HeadResult, HeadTask, TrainConfig, fit_scaler, train_stack

N, R, D, C = 240, 4, 9, 3
BEST = 2


def layers() -> tuple[Tensor, Tensor]:
    """[N, R, D], of which one layer tells the classes apart, and labels."""
    rng = np.random.default_rng(0)
    labels = np.arange(N) % C
    values = rng.standard_normal((N, R, D))
    values[:, BEST] += 1.5 * rng.standard_normal((C, D))[labels]
    values *= np.array([1, 30, 0.1, 1])[:, None]
    values += np.arange(R)[:, None]
    return torch.from_numpy(values).float(), torch.from_numpy(labels)


def tasks(count: int = 3) -> list[HeadTask]:
    found = []
    for fold in range(count):
        rows = np.random.default_rng(fold).permutation(N)
        found.append(HeadTask(f"f{fold}", fold, *np.split(rows, [120 + 7 * fold, 150 + 9 * fold])))
    return found


def train(
    chosen: list[HeadTask], *, fusion: str = SINGLE, right: Tensor | None = None, epochs: int = 4
) -> list[HeadResult]:
    left, labels = layers()
    return train_stack(
        fusion=fusion,
        options={},
        left=left,
        right=right,
        labels=labels,
        tasks=chosen,
        steps_per_epoch=4,
        num_classes=C,
        config=TrainConfig(epochs=epochs, input_dropout=0.2),
    )


def mixed(mix: LayerMix, matrix: Tensor, rows: Tensor, mean: Tensor, factor: Tensor) -> Tensor:
    """The same by one einsum."""
    standardised = (matrix[rows] - mean.unsqueeze(1)) * factor.unsqueeze(1)  # [H, B, R, D]
    return torch.einsum("hbrd,hr->hbd", standardised, mix.weights())


def test_sum_and_gradient_equal_an_einsum() -> None:
    rng = np.random.default_rng(1)
    matrix, mean, factor = (
        torch.from_numpy(rng.uniform(0.5, 2, size=shape)) for shape in ((20, R, D), (2, R, D), (2, R, D))
    )
    rows = torch.from_numpy(rng.integers(20, size=(2, 6)))
    mix = LayerMix(R, head_count=2).double()
    mix.scores.data = torch.from_numpy(rng.standard_normal((2, 1, R)) / PACE)
    ours, theirs = mix(matrix, rows, mean, factor), mixed(mix, matrix, rows, mean, factor)
    torch.testing.assert_close(ours, theirs)
    weights = torch.from_numpy(rng.standard_normal(ours.shape))
    (expected,) = torch.autograd.grad((theirs * weights).sum(), mix.scores)
    (found,) = torch.autograd.grad((ours * weights).sum(), mix.scores)
    torch.testing.assert_close(found, expected)


def test_heads_begin_with_equal_weights() -> None:
    torch.testing.assert_close(LayerMix(5, head_count=3).weights(), torch.full((3, 5), 0.2))


def test_every_layer_is_standardised_on_the_rows_trained_on() -> None:
    matrix, _ = layers()
    rows = np.arange(0, N, 2)
    scaler = fit_scaler(matrix, rows)
    for layer in range(R):
        oracle = StandardScaler().fit(matrix[rows, layer].double().numpy())
        np.testing.assert_allclose(scaler.mean[layer], oracle.mean_, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(scaler.std[layer], oracle.scale_, rtol=1e-5)


def test_heads_find_the_layer_that_says_something() -> None:
    """Whatever the size of its numbers; and they report it."""
    for result in train(tasks(), epochs=20):
        weights = [result.diagnostics[f"left_layer_{layer:02d}"] for layer in range(R)]
        assert sum(weights) == pytest.approx(1, abs=1e-6)
        assert int(np.argmax(weights)) == BEST
        assert weights[BEST] > 0.5
        kept = torch.softmax(PACE * result.parameters["left_mix.scores"][0], dim=-1)
        np.testing.assert_allclose(kept, weights, rtol=1e-5)
        assert result.left_scaler.mean.shape == (R, D)


@pytest.mark.parametrize("fusion", ["concat", "hyperbolic"])
def test_bits_do_not_depend_on_the_stack(fusion: str) -> None:
    """Layers on the right, a plain input on the left would do as well; both are layers here."""
    right = layers()[0].flip(1)[:, :, :5].contiguous()
    chosen = tasks()
    whole = train(chosen, fusion=fusion, right=right)
    for order in (chosen[::-1], chosen[1:2]):
        for ours in train(order, fusion=fusion, right=right):
            expected = next(one for one in whole if one.task is ours.task)
            np.testing.assert_array_equal(ours.test_outputs, expected.test_outputs)
            np.testing.assert_array_equal(ours.left_shuffled_outputs, expected.left_shuffled_outputs)
            assert ours.diagnostics == expected.diagnostics
            for name, tensor in expected.parameters.items():
                assert torch.equal(ours.parameters[name], tensor), name


def test_test_rows_influence_nothing() -> None:
    (task,) = tasks(1)
    left, labels = layers()
    changed = left.clone()
    changed[task.test] = 1e3
    settings = {
        "fusion": SINGLE, "options": {}, "right": None, "labels": labels, "tasks": [task], "steps_per_epoch": 4,
        "num_classes": C, "config": TrainConfig(epochs=2),
    }  # fmt: skip
    (before,), (after,) = train_stack(left=left, **settings), train_stack(left=changed, **settings)
    for name, tensor in before.parameters.items():
        assert torch.equal(tensor, after.parameters[name])


def test_numbers_that_are_not_finite_in_one_layer() -> None:
    left, labels = layers()
    (task,) = tasks(1)
    left[task.train[5], 3, 1] = float("inf")
    with pytest.raises(StoreError, match=f"left embeddings of row {task.train[5]} are not finite"):
        train_stack(
            fusion=SINGLE, options={}, left=left, right=None, labels=labels, tasks=[replace(task)], steps_per_epoch=1,
            num_classes=C, config=TrainConfig(epochs=1),
        )  # fmt: skip


def test_four_dimensions_are_too_many() -> None:
    left, labels = layers()
    with pytest.raises(ConfigError, match=r"\[240, R, D\] to weight layers"):
        train_stack(
            fusion=SINGLE, options={}, left=left[None].transpose(0, 1), right=None, labels=labels, tasks=tasks(1),
            steps_per_epoch=1, num_classes=C, config=TrainConfig(epochs=1),
        )  # fmt: skip
