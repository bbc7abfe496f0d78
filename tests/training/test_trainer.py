"""The engine: independence of the stack, a plain PyTorch loop as oracle, selection, and what may not leak."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.preprocessing import StandardScaler
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor, nn

from pipelines.errors import ConfigError, DeviceError, ProtocolError, StoreError, UnknownNameError
from pipelines.fusion.catalogue import FUSIONS, SINGLE, build_head
from pipelines.fusion.concat import ConcatHead
from pipelines.fusion.stacked import head_generators
from pipelines.training.metrics import unweighted_average_recall
from pipelines.training.trainer import (
    HeadResult,
    HeadTask,
    TrainConfig,
    fit_scaler,
    head_seed,
    steps_per_epoch,
    train_stack,
)

N, C = 330, 7
DL, DR = 33, 20  # rows that do not fill whole registers
SHORT = TrainConfig(epochs=3, dropout=0.2, selection="loss")
EMPTY = np.empty(0, dtype=np.int64)


def data() -> tuple[Tensor, Tensor, Tensor]:
    """Inputs that tell seven classes apart, neither perfectly, and labels."""
    rng = np.random.default_rng(0)
    labels = np.arange(N) % C
    left, right = (
        rng.standard_normal((N, dim)) * 2 + rng.standard_normal((C, dim))[labels] * 0.8 + 3 for dim in (DL, DR)
    )
    return torch.from_numpy(left).float(), torch.from_numpy(right).float(), torch.from_numpy(labels)


def make_tasks(folds: int = 5, seeds: int = 2) -> list[HeadTask]:
    """Folds of different sizes: what differs between heads must not leak from one to another."""
    tasks = []
    for fold in range(folds):
        rows = np.random.default_rng(fold).permutation(N)
        parts = np.split(rows, [120 + 7 * fold, 160 + 12 * fold])
        tasks += [HeadTask(f"f{fold}", seed, *parts) for seed in range(seeds)]
    return tasks


def train(
    tasks: Sequence[HeadTask], *, fusion: str = "concat", config: TrainConfig = SHORT, **changes: Any
) -> list[HeadResult]:
    left, right, labels = data()
    arguments: dict[str, Any] = {
        "fusion": fusion,
        "options": {},
        "left": left,
        "right": None if fusion == SINGLE else right,
        "labels": labels,
        "tasks": tasks,
        "steps_per_epoch": 4,
        "num_classes": C,
        "config": config,
    }
    return train_stack(**arguments | changes)


def assert_same(ours: HeadResult, expected: HeadResult) -> None:
    """Every bit of two results is the same."""
    assert ours.task is expected.task
    assert ours.best_epoch == expected.best_epoch
    assert ours.diagnostics == expected.diagnostics
    for name in ("test_outputs", "left_shuffled_outputs", "right_shuffled_outputs"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(expected, name))
    assert ours.curves.keys() == expected.curves.keys()
    for name, curve in ours.curves.items():
        np.testing.assert_array_equal(curve, expected.curves[name])
    for name, tensor in ours.parameters.items():
        assert torch.equal(tensor, expected.parameters[name])


@pytest.mark.parametrize("fusion", [*FUSIONS, SINGLE])
@pytest.mark.parametrize("batch_size", [32, 20])
def test_bits_do_not_depend_on_the_stack(fusion: str, batch_size: int) -> None:
    tasks = make_tasks()
    config = replace(SHORT, batch_size=batch_size)
    whole = train(tasks, fusion=fusion, config=config)
    threads = torch.get_num_threads()
    for size, intra_op in ((1, 1), (4, 2)):
        torch.set_num_threads(intra_op)
        try:
            for start in range(0, len(tasks), size):
                part = train(tasks[start : start + size], fusion=fusion, config=config)
                for ours, expected in zip(part, whole[start : start + size], strict=True):
                    assert_same(ours, expected)
            assert torch.get_num_threads() == intra_op  # left as it was found
        finally:
            torch.set_num_threads(threads)
    for ours, expected in zip(train(tasks[::-1], fusion=fusion, config=config), whole[::-1], strict=True):
        assert_same(ours, expected)


def test_training_runs_on_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """More threads may split a product along the summed dimension; the setting is put back, also after an error."""
    seen = set()
    forward = ConcatHead.forward

    def watched(self: ConcatHead, left: Tensor, right: Tensor, **record: Any) -> Tensor:
        seen.add(torch.get_num_threads())
        return forward(self, left, right, **record)

    monkeypatch.setattr(ConcatHead, "forward", watched)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        train(make_tasks(1, 1))
        assert torch.get_num_threads() == 2
        with pytest.raises(ConfigError, match="diverged"):
            train(make_tasks(1, 1), config=TrainConfig(learning_rate=1e30, clip_norm=0.0))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert seen == {1}


def test_the_width_of_real_embeddings_keeps_bits_too() -> None:
    """Wide inputs take other matrix kernels; odd numbers of classes other tails."""
    rng = np.random.default_rng(0)
    wide = {
        "left": torch.from_numpy(rng.standard_normal((N, 512))).float(),
        "right": torch.from_numpy(rng.standard_normal((N, 128))).float(),
    }
    config = replace(SHORT, epochs=1)
    tasks = make_tasks(seeds=1)
    whole = train(tasks, fusion="hyperbolic", config=config, **wide)
    for task, expected in zip(tasks, whole, strict=True):
        assert_same(train([task], fusion="hyperbolic", config=config, **wide)[0], expected)


def plain_loop(task: HeadTask, config: TrainConfig, steps: int) -> np.ndarray:
    """The concat head, one model at a time, in ordinary PyTorch; only start and batches come from hyfuse."""
    left, right, labels = data()
    seed = head_seed(task.fold, task.seed)
    start = build_head("concat", left_dim=DL, right_dim=DR, num_classes=C, head_seeds=[seed])
    shapes = {"left_project": (DL, 120), "right_project": (DR, 120), "classify": (240, C)}
    model = nn.ModuleDict({name: nn.Linear(*shape) for name, shape in shapes.items()})
    with torch.no_grad():
        for name, layer in model.items():
            layer.weight.copy_(start.get_parameter(f"{name}.weight")[0].T)
            layer.bias.copy_(start.get_parameter(f"{name}.bias")[0, 0])
    scaled = [
        torch.from_numpy(StandardScaler().fit(x[task.train].double()).transform(x.double())).float()
        for x in (left, right)
    ]

    def forward(rows: np.ndarray) -> Tensor:
        hidden = [model[f"{side}_project"](x[rows]).relu() for side, x in zip(("left", "right"), scaled, strict=True)]
        return model["classify"](torch.cat(hidden, dim=-1))

    weights = None
    if config.class_weights == "balanced":
        known = labels[task.train].numpy()
        weights = torch.from_numpy(compute_class_weight("balanced", classes=np.arange(C), y=known)).float()
    matrices = [p for n, p in model.named_parameters() if n.endswith("weight")]
    biases = [p for n, p in model.named_parameters() if n.endswith("bias")]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": biases, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups)
    (stream,) = head_generators([seed], "batches")
    order = np.concatenate([stream.permutation(task.train) for _ in range(20)])
    total = config.epochs * steps
    for step in range(total):
        rows = order[step * config.batch_size : (step + 1) * config.batch_size]
        loss = F.cross_entropy(forward(rows), labels[rows], weight=weights, label_smoothing=config.label_smoothing)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
        for group in optimiser.param_groups:
            group["lr"] = config.learning_rate * 0.5 * (1 + math.cos(math.pi * step / total))
        optimiser.step()
    with torch.no_grad():
        return torch.softmax(forward(task.test), dim=-1).numpy()


@pytest.mark.parametrize(("class_weights", "batch_size"), [("none", 32), ("balanced", 20)])
def test_equals_a_plain_loop(class_weights: str, batch_size: int) -> None:
    config = TrainConfig(
        epochs=5,
        input_dropout=0.0,
        clip_norm=1.2,
        weight_decay=0.1,
        selection="last",
        class_weights=class_weights,
        batch_size=batch_size,
    )
    tasks = make_tasks(folds=2)
    for result in train(tasks, config=config, steps_per_epoch=6):
        np.testing.assert_allclose(result.test_outputs, plain_loop(result.task, config, 6), atol=1e-4)
        assert 0 < result.curves["gradient_clipped"].mean() < 1  # the comparison exercises both branches


def rebuilt(result: HeadResult, fusion: str) -> Callable[[np.ndarray, np.ndarray], Tensor]:
    """Logits [n, C] from what a result keeps: parameters and scalers."""
    left, right, _ = data()
    head = build_head(fusion, left_dim=DL, right_dim=DR, num_classes=C, head_seeds=[0]).eval()
    head.load_state_dict({name: tensor.unsqueeze(0) for name, tensor in result.parameters.items()})
    assert result.right_scaler is not None
    scaled_left = (left - result.left_scaler.mean) / result.left_scaler.std
    scaled_right = (right - result.right_scaler.mean) / result.right_scaler.std

    @torch.no_grad()
    def logits(left_rows: np.ndarray, right_rows: np.ndarray) -> Tensor:
        return head(scaled_left[left_rows][None], scaled_right[right_rows][None])[0]

    return logits


@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_result_can_be_rebuilt(fusion: str) -> None:
    """Kept parameters and scalers give the test probabilities again (more test rows than one evaluation chunk)."""
    for result in train(make_tasks(folds=2), fusion=fusion):
        rows = result.task.test
        assert len(rows) > 128
        logits = rebuilt(result, fusion)
        expected = torch.softmax(logits(rows, rows), dim=-1)
        np.testing.assert_allclose(result.test_outputs, expected, atol=1e-5)
        (stream,) = head_generators([head_seed(result.task.fold, result.task.seed)], "shuffle")
        shuffled = stream.permutation(rows)
        for ours, pair in (
            (result.left_shuffled_outputs, (shuffled, rows)),
            (result.right_shuffled_outputs, (rows, shuffled)),
        ):
            np.testing.assert_allclose(ours, torch.softmax(logits(*pair), dim=-1), atol=1e-5)
        assert result.test_outputs.dtype == np.float32
        np.testing.assert_allclose(result.test_outputs.sum(axis=1), 1, atol=1e-5)


def test_single_has_one_input() -> None:
    (result,) = train(make_tasks(1, 1), fusion=SINGLE)
    assert result.right_shuffled_outputs is None
    assert result.right_scaler is None
    assert result.left_shuffled_outputs.shape == (len(result.task.test), C)


def test_fusing_two_views_beats_one_and_uses_both() -> None:
    """The data has signal in both inputs; shuffling either must cost."""
    _, _, labels = data()

    def score(results: list[HeadResult], name: str) -> float:
        return float(
            np.mean(
                [
                    unweighted_average_recall(labels.numpy()[r.task.test], getattr(r, name).argmax(axis=1), C)
                    for r in results
                ]
            )
        )

    config = TrainConfig(epochs=15)
    single = score(train(make_tasks(2, 2), fusion=SINGLE, config=config), "test_outputs")
    for fusion in FUSIONS:
        results = train(make_tasks(2, 2), fusion=fusion, config=config)
        fused = score(results, "test_outputs")
        assert fused > single > 0.4
        assert score(results, "left_shuffled_outputs") < fused - 0.1
        if fusion == "mobius":  # as published, without control of the radius, it ignores its second operand
            assert score(results, "right_shuffled_outputs") > fused - 0.1
        else:
            assert score(results, "right_shuffled_outputs") < fused - 0.1


@pytest.mark.parametrize("selection", ["fixed", "last", "loss", "uar"])
def test_test_rows_influence_nothing(selection: str) -> None:
    left, right, labels = data()
    (task,) = make_tasks(1, 1)
    config = replace(SHORT, selection=selection)
    (expected,) = train([task], config=config)
    changed = {"left": left.clone(), "right": right.clone(), "labels": labels.clone()}
    changed["left"][task.test] = 1e3
    changed["right"][task.test] = -1e3
    changed["labels"][task.test] = -1
    (result,) = train([task], config=config, **changed)
    for name, tensor in expected.parameters.items():
        assert torch.equal(result.parameters[name], tensor)
    assert result.best_epoch == expected.best_epoch
    assert not np.array_equal(result.test_outputs, expected.test_outputs)


def test_which_rows_are_trained_on() -> None:
    """ "fixed" trains on validation rows as well; the others keep them apart, from the scaler too."""
    left, _, _ = data()
    (task,) = make_tasks(1, 1)
    changed = left.clone()
    changed[task.validation] += 1.0
    for selection, apart in (("last", True), ("fixed", False)):
        config = replace(SHORT, selection=selection)
        (before,), (after,) = train([task], config=config), train([task], config=config, left=changed)
        assert torch.equal(before.left_scaler.mean, after.left_scaler.mean) is apart
        same = [torch.equal(tensor, after.parameters[name]) for name, tensor in before.parameters.items()]
        assert all(same) is apart
        assert np.isnan(before.curves["validation_loss"]).all() != apart
    joined = np.concatenate([task.train, task.validation])
    (fixed,) = train([task], config=replace(SHORT, selection="fixed"))
    (last,) = train([replace(task, train=joined, validation=EMPTY)], config=replace(SHORT, selection="last"))
    np.testing.assert_array_equal(fixed.test_outputs, last.test_outputs)
    assert steps_per_epoch([task], replace(SHORT, selection="fixed")) == 5  # 160 rows
    assert steps_per_epoch([task], replace(SHORT, selection="last")) == 4  # 120 rows


@pytest.mark.parametrize(
    ("selection", "curve", "sign"), [("loss", "validation_loss", 1), ("uar", "validation_uar", -1)]
)
def test_the_best_copy_is_kept(selection: str, curve: str, sign: int) -> None:
    config = TrainConfig(epochs=12, selection=selection, schedule="constant", learning_rate=0.02)
    _, _, labels = data()
    results = train(make_tasks(3, 2), config=config)
    for result in results:
        score = sign * result.curves[curve]
        smooth = [score[0]]
        for value in score[1:]:
            smooth.append(0.7 * smooth[-1] + 0.3 * value)
        assert result.best_epoch == int(np.argmin(smooth)) + 1
        rows = result.task.validation
        logits = rebuilt(result, "concat")(rows, rows)
        loss = float(F.cross_entropy(logits, labels[rows]))
        assert loss == pytest.approx(result.curves["validation_loss"][result.best_epoch - 1], rel=1e-4)
    assert len({result.best_epoch for result in results}) > 1  # chosen head by head


def test_patience_stops_each_head_for_itself() -> None:
    config = TrainConfig(epochs=40, selection="loss", schedule="constant", learning_rate=0.02, patience=3)
    tasks = make_tasks(3, 1)
    results = train(tasks, config=config)
    for task, result in zip(tasks, results, strict=True):
        epochs = len(result.curves["train_loss"])
        assert epochs == result.best_epoch + 3 < 40
        assert_same(train([task], config=config)[0], result)
    assert len({len(result.curves["train_loss"]) for result in results}) > 1


def test_curves_and_diagnostics() -> None:
    results = train(make_tasks(2, 1), fusion="hyperbolic")
    for result in results:
        assert {"train_loss", "validation_loss", "validation_uar", "left_edge", "fused_norm"} <= result.curves.keys()
        assert all(curve.shape == (3,) and np.isfinite(curve).all() for curve in result.curves.values())
        assert result.curves["train_loss"][-1] < result.curves["train_loss"][0]
        assert 0.7 < result.diagnostics["left_edge"] < 1
        assert result.curves["gradient_clipped"].max() <= 1
    (attention,) = train(make_tasks(1, 1), fusion="attention")
    assert 0 < attention.diagnostics["attention_left_to_right"] < 1


def test_options_reach_the_head() -> None:
    straight = train(make_tasks(1, 1), fusion="hyperbolic", options={"order": "left-right"})[0]
    turned = train(make_tasks(1, 1), fusion="hyperbolic", options={"order": "right-left"})[0]
    assert not np.array_equal(straight.test_outputs, turned.test_outputs)


def test_seed_and_fold_both_count() -> None:
    assert len({head_seed(fold, seed) for fold in ("1", "2", "11") for seed in (0, 1, 11)}) == 9
    (task,) = make_tasks(1, 1)
    results = train([task, replace(task, seed=7), replace(task, fold="other")])
    assert len({result.test_outputs.tobytes() for result in results}) == 3


def test_scaler_equals_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((9000, 6)) * [1, 10, 0.1, 1, 1e-3, 5] + [0, 100, -3, 0, 1, 0]
    matrix[:, 3] = 0.3  # constant, and not exactly representable
    rows = rng.permutation(9000)[:8500]  # more than the parts it is summed in
    scaler = fit_scaler(torch.from_numpy(matrix).float(), rows)
    oracle = StandardScaler().fit(matrix[rows].astype(np.float32).astype(np.float64))
    np.testing.assert_allclose(scaler.mean, oracle.mean_, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(scaler.std, oracle.scale_, rtol=1e-6)
    assert scaler.std[3] == 1
    assert scaler.mean.dtype == scaler.std.dtype == torch.float32


def test_constant_columns_do_no_harm() -> None:
    left, _, _ = data()
    left[:, :5] = torch.tensor([0.0, 1.0, 0.3, -1e6, 1e-8])
    (result,) = train(make_tasks(1, 1), left=left)
    assert np.isfinite(result.test_outputs).all()


def test_a_part_smaller_than_a_batch() -> None:
    (task,) = make_tasks(1, 1)
    (result,) = train([replace(task, train=task.train[:10])])
    assert np.isfinite(result.curves["train_loss"]).all()


def test_divergence_names_the_head() -> None:
    with pytest.raises(
        ConfigError, match=r"diverged: the loss of 'concat', fold 'f0', seed 0 is .* in epoch \d.*Lower it"
    ):
        train(make_tasks(1, 2), config=TrainConfig(epochs=5, learning_rate=1e30, clip_norm=0.0))


def test_numbers_that_are_not_finite() -> None:
    _, right, _ = data()
    (task,) = make_tasks(1, 1)
    right[task.test[3], 2] = float("nan")
    with pytest.raises(
        StoreError, match=rf"right embeddings of row {task.test[3]} are not finite.*hyfuse cache verify"
    ):
        train([task], right=right)
    unused = replace(task, test=np.delete(task.test, 3))
    assert np.isfinite(train([unused], right=right)[0].test_outputs).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"test": "train"}, r"Fold 'f0', seed 0: a row of the test part is used twice"),
        ({"train": np.array([1, 1])}, "a row of the train part is used twice"),
        ({"train": EMPTY}, "the train part has no rows"),
        ({"test": EMPTY}, "the test part has no rows"),
        ({"validation": EMPTY}, "no validation rows to choose an epoch by, as --selection loss asks"),
        ({"test": np.array([N])}, rf"a test row lies outside 0\.\.{N - 1}"),
        ({"train": np.array([1.0])}, "the train rows are float64"),
    ],
)
def test_bad_tasks(change: dict[str, Any], message: str) -> None:
    (task,) = make_tasks(1, 1)
    changed = {part: getattr(task, rows) if isinstance(rows, str) else rows for part, rows in change.items()}
    with pytest.raises(ProtocolError, match=message):
        train([replace(task, **changed)])


def test_rows_without_a_label() -> None:
    _, _, labels = data()
    (task,) = make_tasks(1, 1)
    labels[task.train[0]] = -1
    with pytest.raises(ProtocolError, match=r"a train row has no label in 0\.\.6 \(found -1\.\.6\)"):
        train([task], labels=labels)


def test_inputs_that_do_not_fit() -> None:
    left, _, _ = data()
    with pytest.raises(ConfigError, match=rf"left input is \({N - 1}, {DL}\) torch\.float32, but \[{N}, D\]"):
        train(make_tasks(1, 1), left=left[1:])
    with pytest.raises(ConfigError, match=r"torch\.float64, but"):
        train(make_tasks(1, 1), left=left.double())
    with pytest.raises(ConfigError, match=r"at least one task.*got 0 task"):
        train([])
    with pytest.raises(ConfigError, match="'single' takes 1 representation"):
        train(make_tasks(1, 1), fusion=SINGLE, right=left)
    with pytest.raises(UnknownNameError, match="Unknown fusion 'sum'"):
        train(make_tasks(1, 1), fusion="sum")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_absent_gpu() -> None:
    with pytest.raises(DeviceError, match="'cuda' was asked for, but torch sees no GPU"):
        train(make_tasks(1, 1), device="cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("fusion", FUSIONS)
def test_gpu_equals_cpu(fusion: str) -> None:
    tasks = make_tasks(2, 2)
    for ours, expected in zip(train(tasks, fusion=fusion, device="cuda"), train(tasks, fusion=fusion), strict=True):
        np.testing.assert_allclose(ours.test_outputs, expected.test_outputs, atol=1e-3)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"epochs": 0}, ConfigError, "'epochs' is 0, but it must be at least 1"),
        ({"learning_rate": 0.0}, ConfigError, "'learning_rate' is 0.0, but it must be a positive number"),
        ({"learning_rate": math.nan}, ConfigError, "'learning_rate' is nan"),
        ({"weight_decay": -1.0}, ConfigError, "'weight_decay' is -1.0, but it must be 0 or more"),
        ({"dropout": 1.0}, ConfigError, r"'dropout' is 1.0, but it must lie in \[0, 1\)"),
        ({"hidden_dim": 100}, ConfigError, "'hidden_dim' is 100, but it must be a multiple of 8"),
        ({"patience": 5}, ConfigError, "'patience' is 5, but it needs --selection loss, uar or ccc, not 'fixed'"),
        ({"selection": "best"}, UnknownNameError, "Unknown selection 'best'.*fixed, last, loss, uar"),
        ({"schedule": "cosin"}, UnknownNameError, "Did you mean 'cosine'"),
        ({"class_weights": "yes"}, UnknownNameError, "balanced, none"),
        (
            {"learning_rat": 1e-3},
            UnknownNameError,
            "Unknown training option 'learning_rat'. Did you mean 'learning_rate'",
        ),
        ({"epochs": 2.5}, ConfigError, r"'epochs' is 2.5 \(float\), but int is expected"),
        ({"epochs": True}, ConfigError, r"'epochs' is True \(bool\), but int"),
        ({"dropout": "0.5"}, ConfigError, r"'dropout' is '0.5' \(str\), but float"),
    ],
)
def test_bad_configs(given: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        TrainConfig.from_mapping(given)


def test_config_round_trip() -> None:
    config = TrainConfig.from_mapping({"epochs": 7, "clip_norm": 0, "selection": "loss"})
    assert config == TrainConfig(epochs=7, clip_norm=0.0, selection="loss")
    assert isinstance(config.clip_norm, float)
    assert TrainConfig.from_mapping({}) == TrainConfig()
