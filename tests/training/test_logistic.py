"""The linear rung against scikit-learn's own pipeline."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from pipelines.fusion.stacked import head_generators
from pipelines.training.logistic import PENALTY_C, train_logistic
from pipelines.training.trainer import HeadTask, TrainConfig, head_seed

N, C = 180, 3
FIXED = TrainConfig()


def data(classes: int = C) -> tuple[Tensor, Tensor, Tensor]:
    rng = np.random.default_rng(0)
    labels = rng.choice(classes, size=N, p=[0.6, *[0.4 / (classes - 1)] * (classes - 1)])
    left, right = (
        rng.standard_normal((N, dim)) * 3 + rng.standard_normal((classes, dim))[labels] + 5 for dim in (6, 4)
    )
    return torch.from_numpy(left).float(), torch.from_numpy(right).float(), torch.from_numpy(labels)


def task() -> HeadTask:
    return HeadTask("f", 0, *np.split(np.random.default_rng(3).permutation(N), [90, 120]))


@pytest.mark.parametrize("selection", ["fixed", "last"])
@pytest.mark.parametrize("class_weights", ["none", "balanced"])
@pytest.mark.parametrize("classes", [3, 2])
def test_equals_scikit_learn(selection: str, class_weights: str, classes: int) -> None:
    left, right, labels = data(classes)
    one = task()
    config = replace(FIXED, selection=selection, class_weights=class_weights)
    rows = np.concatenate([one.train, one.validation]) if selection == "fixed" else one.train
    model = make_pipeline(
        StandardScaler(),
        LogisticRegression(C=PENALTY_C, class_weight="balanced" if class_weights == "balanced" else None),
    )
    both = torch.cat([left, right], dim=1).double().numpy()
    model.fit(both[rows], labels[rows])
    (result,) = train_logistic(left=left, right=right, labels=labels, tasks=[one], num_classes=classes, config=config)
    expected = model.predict_proba(both[one.test])
    np.testing.assert_allclose(result.test_outputs, expected, atol=2e-4)
    assert result.test_outputs.dtype == np.float32
    (stream,) = head_generators([head_seed("f", 0)], "shuffle")
    shuffled = stream.permutation(one.test)
    mixed = np.concatenate([left[one.test], right[shuffled]], axis=1).astype(np.float64)
    assert result.right_shuffled_outputs is not None
    np.testing.assert_allclose(result.right_shuffled_outputs, model.predict_proba(mixed), atol=2e-4)
    own = model.predict_proba(both[rows])[np.arange(len(rows)), labels[rows]]
    assert result.curves["train_loss"] == pytest.approx([-np.log(own).mean()], abs=1e-4)
    assert 1 <= result.diagnostics["iterations"] < 200


def test_kept_parameters_give_the_probabilities_again() -> None:
    left, _, labels = data()
    one = task()
    (result,) = train_logistic(left=left, right=None, labels=labels, tasks=[one], num_classes=C, config=FIXED)
    scaled = (left[one.test] - result.left_scaler.mean) / result.left_scaler.std
    logits = scaled @ result.parameters["weight"] + result.parameters["bias"]
    np.testing.assert_allclose(torch.softmax(logits, dim=-1), result.test_outputs, atol=1e-6)
    assert result.right_shuffled_outputs is None
    assert result.right_scaler is None


def test_nothing_in_it_is_random_and_threads_do_not_matter() -> None:
    left, right, labels = data()
    tasks = [task(), replace(task(), seed=5)]
    settings = {"right": right, "labels": labels, "num_classes": C, "config": FIXED}
    one, other = train_logistic(left=left, tasks=tasks, **settings)
    np.testing.assert_array_equal(one.test_outputs, other.test_outputs)
    assert not np.array_equal(one.left_shuffled_outputs, other.left_shuffled_outputs)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        (again,) = train_logistic(left=left, tasks=tasks[:1], **settings)
    finally:
        torch.set_num_threads(before)
    np.testing.assert_array_equal(again.test_outputs, one.test_outputs)


def test_test_rows_influence_nothing() -> None:
    left, right, labels = data()
    changed = left.clone()
    changed[task().test] = 1e6
    settings = {"right": right, "labels": labels, "num_classes": C, "config": FIXED, "tasks": [task()]}
    (one,), (other,) = train_logistic(left=left, **settings), train_logistic(left=changed, **settings)
    assert torch.equal(one.parameters["weight"], other.parameters["weight"])


def test_a_class_that_was_not_trained_on_is_never_predicted() -> None:
    left, right, labels = data()
    one = task()
    kept = replace(one, train=one.train[labels[one.train] != 1], validation=one.validation[:0])
    (result,) = train_logistic(left=left, right=right, labels=labels, tasks=[kept], num_classes=C, config=FIXED)
    assert (result.test_outputs[:, 1] == 0).all()
    np.testing.assert_allclose(result.test_outputs.sum(axis=1), 1, atol=1e-6)


def test_layers_enter_with_equal_weights() -> None:
    left, _, labels = data()
    layers = torch.stack([left, 100 * left.flip(0)], dim=1)
    (result,) = train_logistic(left=layers, right=None, labels=labels, tasks=[task()], num_classes=C, config=FIXED)
    rows = np.concatenate([task().train, task().validation])
    scaled = [StandardScaler().fit(x[rows]).transform(x) for x in layers.double().unbind(dim=1)]
    mean = np.mean(scaled, axis=0)
    oracle = LogisticRegression(C=PENALTY_C).fit(mean[rows], labels[rows])
    np.testing.assert_allclose(result.test_outputs, oracle.predict_proba(mean[task().test]), atol=2e-4)
