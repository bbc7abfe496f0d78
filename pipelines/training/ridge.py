"""The linear rung of dimensions: ridge regression on standardised embeddings, those of a pair side by side.

minimise |y - Z w - b|^2 + a |w|^2 for every dimension, with y standardised like the heads' targets and Z the inputs [(x_l - mu_l) /
sigma_l ; (x_r - mu_r) / sigma_r], by scikit-learn's Cholesky solver. What ``logistic`` is to classes: there is no random start, so
there is one result per fold, and the seed of a task decides on nothing but the order of the shuffled rows. a is a constant per
feature (:data:`PENALTY`). Layers that heads would weight enter with equal weights: their standardised mean.

**Stretched.** Least squares draws what is uncertain towards the mean: predictions that correlate by r have r times the spread of
the values, and a CCC of 2 r^2 / (1 + r^2), where the same predictions with the full spread would have r. Heads are trained for CCC
and have the full spread; a rung without it would be lower for that reason alone. The predictions are therefore scaled so that the
spread of the predictions of the rows trained on, each by a model without that row, is that of their values. (These are known
without further models: y_i - (y_i - p_i) / (1 - h_i), h_i the leverage; Hastie, Tibshirani & Friedman 2009, eq. 7.64.)

Memory: a standardised float32 copy of the rows trained on, a float64 one of some thousand rows, and a square matrix of the features
or of the rows, whichever are fewer. It runs on the CPU, whatever the device of the heads.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipelines.fusion.stacked import head_generators
from pipelines.training.logistic import standardised
from pipelines.training.metrics import concordance
from pipelines.training.trainer import (
    HeadResult,
    HeadTask,
    TrainConfig,
    check_values,
    fit_scaler,
    fitted_rows,
    head_seed,
)

__all__ = ["PENALTY", "RIDGE", "train_ridge"]

RIDGE = "ridge"
"""Its name where fusions are named."""

PENALTY = 1.0
"""alpha of scikit-learn, divided by the number of features. Chosen inside the outer training parts only (four inner speaker folds
in each of five), on Emo-DB with BYOL-S and SoundStream-Lyra (mean+std, 512 and 128 features) and arousal and valence put to each
emotion from -1 to 1: mean CCC of BYOL-S, SoundStream-Lyra and both .650 .510 .648 with 0.1, .667 .528 .667 with 0.3, .668 .555 .673
with 1, .653 .571 .662 with 3, .623 .573 .635 with 10. It is a constant, so that nobody can tune the rung down."""

_CHUNK_ROWS = 4096  # rows that are predicted at a time


def train_ridge(
    *, left: Tensor, right: Tensor | None, values: Tensor, tasks: Sequence[HeadTask], config: TrainConfig
) -> list[HeadResult]:
    """Fit and test one model per task.

    Args:
        left: embeddings, [N, Dl] or [N, R, Dl] float32.
        right: embeddings, [N, Dr] or [N, R, Dr] float32; None for a representation alone.
        values: of dimensions, [N, K] float32.
        tasks: one per model.
        config: its selection decides which rows train.

    Returns:
        One result per task, in order. ``curves`` holds one point, ``train_loss``: 1 - CCC of the rows trained on, mean over the
        dimensions; ``diagnostics`` the ``stretch`` of the predictions, mean over the dimensions.

    Raises:
        ProtocolError: a row that trains has no value, or all have the same one.
    """
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    check_values(values.cpu().numpy(), tasks, config)
    inputs = [left] if right is None else [left, right]
    with threadpool_limits(1):  # a sum split over threads rounds differently
        return [_fitted(inputs, values, task, config) for task in tasks]


def _fitted(inputs: Sequence[Tensor], values: Tensor, task: HeadTask, config: TrainConfig) -> HeadResult:
    from sklearn.linear_model import Ridge

    rows = fitted_rows(task, config)
    scalers = [fit_scaler(matrix, rows) for matrix in inputs]
    of_target = fit_scaler(values, rows)
    known = values.cpu().numpy()
    mean, std = of_target.mean.numpy(), of_target.std.numpy()
    features = standardised(inputs, scalers, [rows] * len(inputs))
    wanted = (known[rows] - mean) / std  # [n, K]
    penalty = PENALTY * features.shape[1]
    model = Ridge(alpha=penalty, solver="cholesky").fit(features, wanted)
    weight = model.coef_.reshape(known.shape[1], -1).T.astype(np.float64)  # [sum D, K]
    bias = np.asarray(model.intercept_, dtype=np.float64).reshape(known.shape[1])
    left_out = wanted - (wanted - features @ weight - bias) / (1.0 - _leverages(features, penalty))[:, None]
    middle, spread = left_out.mean(axis=0), left_out.std(axis=0)
    stretch = np.divide(wanted.std(axis=0), spread, out=np.ones_like(spread), where=spread > 1e-6)
    weight, bias = (weight * stretch).astype(np.float32), ((bias - middle) * stretch).astype(np.float32)

    def predicted(*chosen: NDArray[np.int64]) -> NDArray[np.float32]:
        """[n, K] for the rows of every input; some at a time, so that no second matrix is needed."""
        parts = [
            standardised(inputs, scalers, [own[start : start + _CHUNK_ROWS] for own in chosen]) @ weight + bias
            for start in range(0, len(chosen[0]), _CHUNK_ROWS)
        ]
        found: NDArray[np.float32] = np.concatenate(parts) * std + mean
        return found

    test = task.test
    (stream,) = head_generators([head_seed(task.fold, task.seed)], "shuffle")
    shuffled = task.shuffled_test(stream)
    alone = len(inputs) == 1
    own = predicted(*[rows] * len(inputs))
    return HeadResult(
        task=task,
        test_outputs=predicted(*[test] * len(inputs)),
        left_shuffled_outputs=predicted(shuffled) if alone else predicted(shuffled, test),
        right_shuffled_outputs=None if alone else predicted(test, shuffled),
        curves={"train_loss": np.array([1.0 - float(np.nan_to_num(concordance(known[rows].T, own.T)).mean())])},
        best_epoch=1,
        diagnostics={"stretch": float(stretch.mean())},
        parameters={"weight": torch.from_numpy(weight), "bias": torch.from_numpy(bias)},
        left_scaler=scalers[0],
        right_scaler=None if alone else scalers[1],
        target_scaler=of_target,
    )


def _leverages(features: NDArray[np.float32], penalty: float) -> NDArray[np.float64]:
    """By how much the value of each row decides on its own prediction, [n]: the diagonal of 1/n + Z (Z'Z + a)^-1 Z', Z centred."""
    from scipy.linalg import cho_solve, cholesky, solve_triangular

    rows, width = features.shape
    centre = features.mean(axis=0, dtype=np.float64)
    parts = [slice(start, start + _CHUNK_ROWS) for start in range(0, rows, _CHUNK_ROWS)]
    if rows <= width:
        centred = features - centre
        lower = cholesky(centred @ centred.T + penalty * np.eye(rows), lower=True)
        own = 1.0 - penalty * np.diag(cho_solve((lower, True), np.eye(rows)))
        return np.asarray(1.0 / rows + own, dtype=np.float64)
    square = penalty * np.eye(width)
    for part in parts:
        centred = features[part] - centre
        square += centred.T @ centred
    lower = cholesky(square, lower=True)
    of_rows = [
        np.square(solve_triangular(lower, (features[part] - centre).T, lower=True)).sum(axis=0) for part in parts
    ]
    return np.asarray(1.0 / rows + np.concatenate(of_rows), dtype=np.float64)
