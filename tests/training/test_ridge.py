"""The linear rung of dimensions against scikit-learn's own pipeline, and against leaving every row out in turn."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.model_selection import LeaveOneOut, cross_val_predict
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from pipelines.errors import ProtocolError
from pipelines.fusion.stacked import head_generators
from pipelines.training import ridge
from pipelines.training.metrics import concordance, pearson
from pipelines.training.ridge import PENALTY, train_ridge
from pipelines.training.trainer import HeadTask, TrainConfig, head_seed

N = 180
FIXED = TrainConfig()


def data(left_dim: int = 6, right_dim: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    rng = np.random.default_rng(0)
    left, right = (rng.standard_normal((N, dim)) * 3 + 5 for dim in (left_dim, right_dim))
    values = np.stack([left[:, 0] + 4 * rng.standard_normal(N), 100 + right[:, 1] * 2 + left[:, 1]], axis=1)
    return tuple(torch.from_numpy(part).float() for part in (left, right, values))  # type: ignore[return-value]


def task() -> HeadTask:
    return HeadTask("f", 0, *np.split(np.random.default_rng(3).permutation(N), [90, 120]))


@pytest.mark.parametrize("selection", ["fixed", "last"])
@pytest.mark.parametrize("dims", [(6, 4), (120, 40)])  # more rows than features, and fewer
def test_equals_scikit_learn_stretched_by_leaving_one_out(selection: str, dims: tuple[int, int]) -> None:
    left, right, values = data(*dims)
    one = task()
    rows = np.concatenate([one.train, one.validation]) if selection == "fixed" else one.train
    both = torch.cat([left, right], dim=1).double().numpy()
    features = StandardScaler().fit(both[rows]).transform(both)
    target = StandardScaler().fit(values[rows].double().numpy())
    wanted = target.transform(values[rows].double().numpy())
    model = Ridge(alpha=PENALTY * sum(dims), solver="cholesky").fit(features[rows], wanted)
    left_out = cross_val_predict(model, features[rows], wanted, cv=LeaveOneOut())
    stretch = 1 / left_out.std(axis=0)

    def predicted(x: np.ndarray) -> np.ndarray:
        return target.inverse_transform((model.predict(x) - left_out.mean(axis=0)) * stretch)

    (result,) = train_ridge(
        left=left, right=right, values=values, tasks=[one], config=replace(FIXED, selection=selection)
    )
    np.testing.assert_allclose(result.test_outputs, predicted(features[one.test]), rtol=2e-3, atol=2e-3)
    assert result.test_outputs.dtype == np.float32
    (stream,) = head_generators([head_seed("f", 0)], "shuffle")
    shuffled = stream.permutation(one.test)
    mixed = np.concatenate([features[one.test, : dims[0]], features[shuffled, dims[0] :]], axis=1)
    assert result.right_shuffled_outputs is not None
    np.testing.assert_allclose(result.right_shuffled_outputs, predicted(mixed), rtol=2e-3, atol=2e-3)
    own = concordance(values[rows].numpy().T, predicted(features[rows]).T)
    assert result.curves["train_loss"] == pytest.approx([1 - own.mean()], abs=1e-4)
    assert result.diagnostics["stretch"] == pytest.approx(stretch.mean(), rel=1e-3)
    assert stretch.min() > 1


def test_stretched_predictions_are_as_concordant_as_they_correlate() -> None:
    """Without stretching the rung would lose for its caution alone: CCC 2 r^2 / (1 + r^2) instead of r."""
    left, right, values = data()
    (result,) = train_ridge(left=left, right=right, values=values, tasks=[task()], config=FIXED)
    truth, found = values[task().test].numpy().T, result.test_outputs.T
    np.testing.assert_allclose(concordance(truth, found), pearson(truth, found), atol=0.06)


def test_kept_parameters_give_the_values_again() -> None:
    left, _, values = data()
    one = task()
    (result,) = train_ridge(left=left, right=None, values=values, tasks=[one], config=FIXED)
    scaled = (left[one.test] - result.left_scaler.mean) / result.left_scaler.std
    assert result.target_scaler is not None
    outputs = scaled @ result.parameters["weight"] + result.parameters["bias"]
    found = outputs * result.target_scaler.std + result.target_scaler.mean
    np.testing.assert_allclose(found, result.test_outputs, atol=1e-4)
    assert result.right_shuffled_outputs is None
    assert result.right_scaler is None


def test_nothing_in_it_is_random_and_threads_do_not_matter() -> None:
    left, right, values = data()
    tasks = [task(), replace(task(), seed=5)]
    one, other = train_ridge(left=left, right=right, values=values, tasks=tasks, config=FIXED)
    np.testing.assert_array_equal(one.test_outputs, other.test_outputs)
    assert not np.array_equal(one.left_shuffled_outputs, other.left_shuffled_outputs)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        (again,) = train_ridge(left=left, right=right, values=values, tasks=tasks[:1], config=FIXED)
    finally:
        torch.set_num_threads(before)
    np.testing.assert_array_equal(again.test_outputs, one.test_outputs)


def test_test_rows_influence_nothing() -> None:
    left, right, values = data()
    changed, missing = left.clone(), values.clone()
    changed[task().test] = 1e6
    missing[task().test] = float("nan")
    (one,) = train_ridge(left=left, right=right, values=values, tasks=[task()], config=FIXED)
    (other,) = train_ridge(left=changed, right=right, values=missing, tasks=[task()], config=FIXED)
    assert torch.equal(one.parameters["weight"], other.parameters["weight"])


def test_layers_enter_with_equal_weights() -> None:
    left, _, values = data()
    layers = torch.stack([left, 100 * left.flip(0)], dim=1)
    (result,) = train_ridge(left=layers, right=None, values=values, tasks=[task()], config=FIXED)
    rows = np.concatenate([task().train, task().validation])
    scaled = [StandardScaler().fit(x[rows]).transform(x) for x in layers.double().unbind(dim=1)]
    mean = torch.from_numpy(np.mean(scaled, axis=0)).float()
    (expected,) = train_ridge(left=mean, right=None, values=values, tasks=[task()], config=FIXED)
    # The mean of standardised layers is not standardised again.
    assert np.corrcoef(result.test_outputs[:, 0], expected.test_outputs[:, 0])[0, 1] > 0.99


def test_leverages_are_the_diagonal_of_the_hat_matrix() -> None:
    for rows, width in ((40, 7), (12, 30)):
        features = np.random.default_rng(0).standard_normal((rows, width)).astype(np.float32) + 1
        centred = features - features.mean(axis=0)
        hat = centred @ np.linalg.inv(centred.T @ centred + 3.0 * np.eye(width)) @ centred.T + 1 / rows
        np.testing.assert_allclose(ridge._leverages(features, 3.0), np.diag(hat), atol=1e-5)


def test_constant_values_are_refused() -> None:
    left, right, values = data()
    values[task().train] = 3.0
    with pytest.raises(ProtocolError, match="all 90 rows that train have the same value of dimension 1 of 2, 3"):
        train_ridge(left=left, right=right, values=values, tasks=[task()], config=replace(FIXED, selection="last"))
