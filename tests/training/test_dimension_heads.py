"""Heads for dimensions and for votes: independence of the stack, a plain PyTorch loop as oracle, scales, selection, mistakes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import audmetric
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipelines.errors import ConfigError, ProtocolError
from pipelines.fusion.catalogue import FUSIONS, SINGLE, build_head
from pipelines.fusion.stacked import head_generators
from pipelines.training.applied import apply_heads, output_inputs, output_layer
from pipelines.training.metrics import concordance
from pipelines.training.trainer import HeadResult, HeadTask, TrainConfig, head_seed, train_stack
from tests.training.test_trainer import DL, DR, N, assert_same, make_tasks
from tests.training.test_trainer import train as train_classes

K = 3
SHORT = TrainConfig(epochs=3, dropout=0.2, selection="ccc")


def data() -> tuple[Tensor, Tensor, Tensor]:
    """Inputs that tell of the first two of three values, one each; values on scales of their own."""
    rng = np.random.default_rng(0)
    hidden = rng.standard_normal((N, 2))
    left, right = (
        rng.standard_normal((N, dim)) * 2 + hidden[:, side : side + 1] * rng.standard_normal(dim) + 3
        for side, dim in enumerate((DL, DR))
    )
    values = np.stack([4 + hidden[:, 0], 50 + 20 * hidden[:, 1], hidden.sum(axis=1)], axis=1)
    return tuple(torch.from_numpy(part).float() for part in (left, right, values))  # type: ignore[return-value]


def train(
    tasks: Sequence[HeadTask], *, fusion: str = "concat", config: TrainConfig = SHORT, **changes: Any
) -> list[HeadResult]:
    left, right, values = data()
    arguments: dict[str, Any] = {
        "fusion": fusion,
        "options": {},
        "left": left,
        "right": None if fusion == SINGLE else right,
        "values": values,
        "tasks": tasks,
        "steps_per_epoch": 4,
        "config": config,
    }
    return train_stack(**arguments | changes)


@pytest.mark.parametrize(("fusion", "batch_size"), [*((name, 20) for name in (*FUSIONS, SINGLE)), ("concat", 32)])
def test_bits_do_not_depend_on_the_stack(fusion: str, batch_size: int) -> None:
    tasks = make_tasks()
    config = replace(SHORT, batch_size=batch_size, epochs=2)
    whole = train(tasks, fusion=fusion, config=config)
    for size in (1, 4):
        for start in range(0, len(tasks), size):
            part = train(tasks[start : start + size], fusion=fusion, config=config)
            for ours, expected in zip(part, whole[start : start + size], strict=True):
                assert_same(ours, expected)
    for ours, expected in zip(train(tasks[::-1], fusion=fusion, config=config), whole[::-1], strict=True):
        assert_same(ours, expected)


@pytest.mark.parametrize("dimensions", [1, 2])
def test_any_number_of_dimensions_keeps_its_bits(dimensions: int) -> None:
    values = data()[2][:, :dimensions]
    tasks = make_tasks(folds=3, seeds=1)
    whole = train(tasks, values=values)
    for task, expected in zip(tasks, whole, strict=True):
        assert_same(train([task], values=values)[0], expected)
        assert expected.test_outputs.shape == (len(task.test), dimensions)


def plain_loop(task: HeadTask, config: TrainConfig, steps: int) -> tuple[np.ndarray, list[float]]:
    """The concat head, one model at a time, in ordinary PyTorch with the formula of the CCC; start and batches are hyfuse's."""
    left, right, values = data()
    seed = head_seed(task.fold, task.seed)
    start = build_head("concat", left_dim=DL, right_dim=DR, num_classes=K, head_seeds=[seed])
    shapes = {"left_project": (DL, 120), "right_project": (DR, 120), "classify": (240, K)}
    model = nn.ModuleDict({name: nn.Linear(*shape) for name, shape in shapes.items()})
    with torch.no_grad():
        for name, layer in model.items():
            layer.weight.copy_(start.get_parameter(f"{name}.weight")[0].T)
            layer.bias.copy_(start.get_parameter(f"{name}.bias")[0, 0])

    def scaled(x: Tensor) -> Tensor:
        known = x[task.train].double()
        return ((x - known.mean(0)) / known.std(0, correction=0)).float()

    x_left, x_right, target = map(scaled, (left, right, values))

    def forward(rows: np.ndarray) -> Tensor:
        hidden = [model["left_project"](x_left[rows]).relu(), model["right_project"](x_right[rows]).relu()]
        return model["classify"](torch.cat(hidden, dim=-1))

    optimiser = torch.optim.AdamW(
        [
            {
                "params": [p for n, p in model.named_parameters() if n.endswith("weight")],
                "weight_decay": config.weight_decay,
            },
            {"params": [p for n, p in model.named_parameters() if n.endswith("bias")], "weight_decay": 0.0},
        ]
    )
    (stream,) = head_generators([seed], "batches")
    order = np.concatenate([stream.permutation(task.train) for _ in range(20)])
    total, losses = config.epochs * steps, []
    for step in range(total):
        rows = order[step * config.batch_size : (step + 1) * config.batch_size]
        x, y = forward(rows), target[rows]
        covariance = ((x - x.mean(0)) * (y - y.mean(0))).mean(0)
        ccc = 2 * covariance / (x.var(0, correction=0) + y.var(0, correction=0) + (x.mean(0) - y.mean(0)).square())
        loss = (1 - ccc).mean()
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
        for group in optimiser.param_groups:
            group["lr"] = config.learning_rate * 0.5 * (1 + math.cos(math.pi * step / total))
        optimiser.step()
        losses.append(loss.item())
    known = values[task.train].double()
    with torch.no_grad():
        found = forward(task.test).double() * known.std(0, correction=0) + known.mean(0)
    return found.numpy(), losses


@pytest.mark.parametrize("batch_size", [32, 20])
def test_equals_a_plain_loop(batch_size: int) -> None:
    config = TrainConfig(
        epochs=5, input_dropout=0.0, clip_norm=1.5, weight_decay=0.1, selection="last", batch_size=batch_size
    )
    for result in train(make_tasks(folds=2), config=config, steps_per_epoch=6):
        expected, losses = plain_loop(result.task, config, 6)
        scale = data()[2].std(dim=0).numpy()
        np.testing.assert_allclose(result.test_outputs / scale, expected / scale, atol=1e-3)
        np.testing.assert_allclose(result.curves["train_loss"], np.reshape(losses, (5, 6)).mean(axis=1), atol=1e-4)
        assert 0 < result.curves["gradient_clipped"].mean() < 1  # the comparison exercises both branches


def test_predictions_are_on_the_scale_of_the_values() -> None:
    """Another scale of a dimension is another scale of its predictions, and nothing else."""
    values = data()[2]
    ours = train(make_tasks(1, 1))[0]
    other = train(make_tasks(1, 1), values=values * torch.tensor([2.0, 0.5, 1.0]) + torch.tensor([8.0, 0.0, -64.0]))[0]
    # Powers of two: the standardised targets have the same bits, but for the rounding of the shift.
    np.testing.assert_allclose(other.test_outputs[:, 0], 2 * ours.test_outputs[:, 0] + 8, rtol=1e-4)
    np.testing.assert_allclose(other.test_outputs[:, 1], 0.5 * ours.test_outputs[:, 1], rtol=1e-4)
    rows = ours.task.test
    longer = train(make_tasks(1, 1), config=TrainConfig(epochs=25))[0]
    ccc = concordance(values[rows].numpy().T, longer.test_outputs.T)
    assert (ccc > 0.7).all()
    assert ccc[1] == pytest.approx(
        audmetric.concordance_cc(values[rows, 1].numpy(), longer.test_outputs[:, 1]), abs=1e-6
    )
    assert longer.target_scaler is not None
    np.testing.assert_allclose(
        longer.target_scaler.mean, values[np.concatenate([ours.task.train, ours.task.validation])].mean(0), rtol=1e-4
    )


@pytest.mark.parametrize("fusion", [name for name in FUSIONS if name != "mobius"])  # which ignores its second operand
def test_every_fusion_learns_both_values_and_uses_both_inputs(fusion: str) -> None:
    values = data()[2].numpy()
    results = train(make_tasks(2, 1), fusion=fusion, config=TrainConfig(epochs=25))

    def ccc(name: str) -> np.ndarray:
        return np.mean([concordance(values[r.task.test].T, getattr(r, name).T) for r in results], axis=0)

    straight, left, right = (ccc(f"{name}_outputs") for name in ("test", "left_shuffled", "right_shuffled"))
    assert (straight[:2] > 0.5).all()
    assert left[0] < straight[0] - 0.3  # the first value is in the left input
    assert right[1] < straight[1] - 0.3


@pytest.mark.parametrize("selection", ["loss", "ccc"])
def test_the_epoch_is_selected_by_the_ccc_of_the_validation_rows(selection: str) -> None:
    config = TrainConfig(epochs=12, selection=selection, selection_smoothing=0.0, learning_rate=0.01)
    for result in train(make_tasks(2, 1), config=config):
        curve = result.curves["validation_ccc"]
        assert result.best_epoch == int(curve.argmax()) + 1
        np.testing.assert_allclose(result.curves["validation_loss"], 1 - curve, atol=1e-12)
        assert "validation_uar" not in result.curves
    stopped = train(make_tasks(2, 1), config=replace(config, epochs=40, patience=2))
    assert all(len(result.curves["train_loss"]) == result.best_epoch + 2 for result in stopped)


def test_test_rows_influence_nothing() -> None:
    values = data()[2]
    task = make_tasks(1, 1)[0]
    changed = values.clone()
    changed[task.test] = float("nan")  # rows that are only tested need no value
    (ours,), (other,) = train([task]), train([task], values=changed)
    assert_same(ours, other)


def test_a_constant_validation_part_does_not_stop_training() -> None:
    values = data()[2].clone()
    task = make_tasks(1, 1)[0]
    values[task.validation] = 4.0
    (result,) = train([task], values=values)
    assert np.isfinite(result.curves["validation_ccc"]).all()


def broken(part: str, value: float) -> Tensor:
    values = data()[2].clone()
    values[getattr(make_tasks(1, 1)[0], part), 1] = value
    return values


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (lambda: {"values": broken("train", 3.5)}, ProtocolError, r"Fold 'f0', seed 0: all 120 rows .* 2 of 3, 3\.5; conc"),
        (lambda: {"values": broken("train", math.nan)}, ProtocolError, "a train row has no value"),
        (lambda: {"values": broken("validation", math.nan)}, ProtocolError, "a validation row has no value"),
        (lambda: {"config": TrainConfig(class_weights="balanced")}, ConfigError, "--class-weights balanced means nothing"),
        (lambda: {"config": TrainConfig(selection="uar")}, ConfigError, "--selection uar is for classes"),
        (lambda: {"config": TrainConfig(batch_size=1)}, ConfigError, "--batch-size 1 cannot train dimensions"),
        (lambda: {"values": data()[2].double()}, ConfigError, r"Values are \(330, 3\) torch.float64"),
        (lambda: {"values": data()[2][:, 0]}, ConfigError, r"\[N, K\] torch.float32 is expected"),
        (lambda: {"labels": torch.zeros(N, dtype=torch.int64)}, ConfigError, "either labels, with their number of classes, or"),
        (lambda: {"values": None}, ConfigError, "either labels"),
        (lambda: {"config": TrainConfig(learning_rate=1e30, clip_norm=0.0, epochs=9)}, ConfigError, "Training diverged"),
    ],
)  # fmt: skip
def test_mistakes(changes: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        train(make_tasks(1, 1), **changes())


# ------------------------------------------------------------------------------------------------ votes


def test_one_vote_each_is_the_label_and_split_votes_are_not() -> None:
    tasks = make_tasks(2, 1)
    labels = torch.arange(N) % 7
    sure = torch.nn.functional.one_hot(labels, 7).float()
    hard, soft = train_classes(tasks), train_classes(tasks, votes=sure)
    for ours, expected in zip(soft, hard, strict=True):
        np.testing.assert_allclose(ours.test_outputs, expected.test_outputs, atol=1e-4)
        np.testing.assert_allclose(ours.curves["validation_loss"], expected.curves["validation_loss"], atol=1e-4)
    torn = train_classes(tasks, votes=0.5 * sure + 0.5 * sure.roll(1, dims=1))
    assert abs(torn[0].test_outputs - hard[0].test_outputs).max() > 0.01


def test_votes_keep_their_bits_in_any_stack_and_know_class_weights() -> None:
    tasks = make_tasks(3, 1)
    shares = torch.from_numpy(np.random.default_rng(0).dirichlet(np.ones(7), N)).float()
    config = TrainConfig(epochs=2, class_weights="balanced", batch_size=20)
    whole = train_classes(tasks, votes=shares, config=config)
    for task, expected in zip(tasks, whole, strict=True):
        assert_same(train_classes([task], votes=shares, config=config)[0], expected)
    even = train_classes(tasks, votes=shares, config=replace(config, class_weights="none"))
    assert not np.array_equal(even[0].test_outputs, whole[0].test_outputs)
    with pytest.raises(ConfigError, match=r"Votes are \(330, 6\), but \[330, 7\] is expected"):
        train_classes(tasks, votes=shares[:, :6])
    with pytest.raises(ConfigError, match="--selection ccc is for dimensions"):
        train_classes(tasks, config=TrainConfig(selection="ccc"))


# ------------------------------------------------------------------------------------------------ applied again


@pytest.mark.parametrize("fusion", [*FUSIONS, SINGLE])
def test_heads_applied_again_give_the_same_bits(fusion: str) -> None:
    left, right, _ = data()
    results = train(make_tasks(2, 1), fusion=fusion)
    inputs = {"left": left, "right": None if fusion == SINGLE else right}
    for place, result in enumerate(results):
        rows = result.task.test
        outputs, embeddings = apply_heads(results, fusion=fusion, options={}, rows=rows, config=SHORT, **inputs)
        np.testing.assert_array_equal(outputs[place], result.test_outputs)
        weight = next(tensor for name, tensor in result.parameters.items() if name.endswith("classify.weight"))
        assert embeddings.shape == (2, len(rows), weight.shape[0])
        bias = next((tensor for name, tensor in result.parameters.items() if name.endswith("classify.bias")), None)
        if bias is not None and result.target_scaler is not None:  # the output layer on the embedding is the prediction
            again = (embeddings[place] @ weight.numpy() + bias.numpy()) * result.target_scaler.std.numpy()
            np.testing.assert_allclose(again + result.target_scaler.mean.numpy(), outputs[place], rtol=1e-3, atol=1e-3)


def test_heads_with_weighted_layers_are_applied_again_to_rows_of_another_matrix() -> None:
    left, right, values = data()
    layers = torch.stack([left, left.flip(0), left * 3], dim=1)
    results = train(make_tasks(2, 1), left=layers)
    noisy = torch.cat([layers, layers + 1.0])
    rows = np.arange(N, 2 * N)
    outputs, _ = apply_heads(
        results, fusion="concat", options={}, left=noisy, right=right.repeat(2, 1), rows=rows, config=SHORT
    )
    clean, _ = apply_heads(results, fusion="concat", options={}, left=layers, right=right, rows=rows - N, config=SHORT)
    assert outputs.shape == (2, N, K)
    assert not np.allclose(outputs, clean)
    # The same by train_stack itself: rows tested may be of another condition, if they lie in the same matrices.
    task = replace(make_tasks(1, 1)[0], test=make_tasks(1, 1)[0].test + N)
    (result,) = train([task], left=noisy, right=right.repeat(2, 1), values=values.repeat(2, 1))
    np.testing.assert_array_equal(result.test_outputs, outputs[0][task.test - N])


def test_what_enters_the_output_layer_is_collected_only_where_asked() -> None:
    head = build_head("hyperbolic", left_dim=DL, right_dim=DR, num_classes=K, head_seeds=[1, 2])
    inputs = torch.randn(2, 32, DL), torch.randn(2, 32, DR)
    with output_inputs(head) as seen:
        outputs = head(*inputs)
    (embedding,) = seen
    assert embedding.shape == (2, 32, 120)
    torch.testing.assert_close(output_layer(head)(embedding), outputs)
    embedding.sum().backward()  # it has its graph
    assert head.get_parameter("left_project.weight").grad is not None
    head(*inputs)
    assert len(seen) == 1
