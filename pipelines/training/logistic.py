"""The linear rung: multinomial logistic regression on standardised embeddings, those of a pair side by side.

minimise C sum_i w_i CE(y_i, W z_i + b) + |W|^2 / 2, with z = [(x_l - mu_l) / sigma_l ; (x_r - mu_r) / sigma_r], by
scikit-learn's L-BFGS. A head that does not beat this has learned nothing that a line could not say. There is no random start, so
there is one result per fold, not one per seed; the seed of a task decides on nothing but the order of the shuffled rows.

Trained on the same rows as the heads (``TrainConfig.selection``), with the same class weights, and where raters' votes are learned
with a row per class that got any, weighted by its share (the cross-entropy with the votes); of the other hyper-parameters it
knows none, and C is a constant (:data:`PENALTY_C`), chosen once as its docstring says. Layers that heads would weight
([N, R, D]) enter with equal weights: their standardised mean.

Memory: a standardised float32 copy of the rows trained on (1.2 GB for 200,000 rows of 2 x 768 numbers), no other. It runs on the
CPU, whatever the device of the heads.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipelines.fusion.stacked import head_generators
from pipelines.training.trainer import HeadResult, HeadTask, Scaler, TrainConfig, fit_scaler, fitted_rows, head_seed

__all__ = ["LOGISTIC", "PENALTY_C", "standardised", "train_logistic"]

LOGISTIC = "logistic"
"""Its name where fusions are named."""

PENALTY_C = 0.1
"""C of scikit-learn. Chosen on Emo-DB with BYOL-S and SoundStream-Lyra (mean+std), inside the outer training parts only (four
inner speaker folds in each of five): UAR of BYOL-S, SoundStream-Lyra and both .727 .600 .744 with 0.01, .736 .620 .748 with 0.03,
.743 .616 .755 with 0.1, .743 .611 .756 with 0.3, .745 .607 .759 with 1. It is a constant, so that nobody can tune the rung down."""

_MOST_ITERATIONS = 1000
_CHUNK_ROWS = 4096  # rows that are standardised at a time


def train_logistic(
    *,
    left: Tensor,
    right: Tensor | None,
    labels: Tensor,
    tasks: Sequence[HeadTask],
    num_classes: int,
    config: TrainConfig,
    votes: Tensor | None = None,
) -> list[HeadResult]:
    """Fit and test one model per task.

    Args:
        left: embeddings, [N, Dl] or [N, R, Dl] float32.
        right: embeddings, [N, Dr] or [N, R, Dr] float32; None for a representation alone.
        labels: class indices, [N] int64.
        tasks: one per model.
        num_classes: C.
        config: its selection decides which rows train, its class weights how they count.
        votes: shares of the classes, [N, C] float32, to train towards in place of the labels.

    Returns:
        One result per task, in order. ``curves`` holds one point, ``train_loss``: the mean cross-entropy of the rows trained on;
        ``diagnostics`` the ``iterations`` that L-BFGS took.
    """
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    inputs = [left] if right is None else [left, right]
    with threadpool_limits(1):  # a sum split over threads rounds differently
        known, shares = labels.cpu().numpy(), None if votes is None else votes.cpu().numpy()
        return [_fitted(inputs, known, shares, task, num_classes, config) for task in tasks]


def _fitted(
    inputs: Sequence[Tensor],
    labels: NDArray[np.int64],
    votes: NDArray[np.float32] | None,
    task: HeadTask,
    num_classes: int,
    config: TrainConfig,
) -> HeadResult:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    rows = fitted_rows(task, config)
    scalers = [fit_scaler(matrix, rows) for matrix in inputs]
    at, known, shares = np.arange(len(rows)), labels[rows], np.ones(len(rows), np.float32)
    if votes is not None:
        at, known = np.nonzero(votes[rows])
        shares = votes[rows][at, known]
    weights = shares
    if config.class_weights == "balanced":
        counts = np.bincount(labels[rows], minlength=num_classes)
        weights = shares * (len(rows) / ((counts > 0).sum() * np.maximum(counts, 1)))[known]
    model = LogisticRegression(C=PENALTY_C, max_iter=_MOST_ITERATIONS)
    with warnings.catch_warnings():
        # float32 may stop a little before the tolerance; what it stops at is as good a line.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(standardised(inputs, scalers, [rows[at]] * len(inputs)), known, sample_weight=weights)
    weight, bias = _parameters(model.classes_, model.coef_, model.intercept_, num_classes)

    def probabilities(*chosen: NDArray[np.int64]) -> NDArray[np.float32]:
        """[n, C] for the rows of every input; some at a time, so that no second matrix is needed."""
        logits = [
            standardised(inputs, scalers, [own[start : start + _CHUNK_ROWS] for own in chosen]) @ weight + bias
            for start in range(0, len(chosen[0]), _CHUNK_ROWS)
        ]
        return np.asarray(torch.softmax(torch.from_numpy(np.concatenate(logits)), dim=-1).numpy())

    test = task.test
    (stream,) = head_generators([head_seed(task.fold, task.seed)], "shuffle")
    shuffled = task.shuffled_test(stream)
    alone = len(inputs) == 1
    own = probabilities(*[rows] * len(inputs))[at, known]
    losses = -np.log(np.maximum(own, np.finfo(np.float32).tiny))
    return HeadResult(
        task=task,
        test_outputs=probabilities(*[test] * len(inputs)),
        left_shuffled_outputs=probabilities(shuffled) if alone else probabilities(shuffled, test),
        right_shuffled_outputs=None if alone else probabilities(test, shuffled),
        curves={"train_loss": np.array([np.average(losses, weights=shares)])},
        best_epoch=1,
        diagnostics={"iterations": float(model.n_iter_.max())},
        parameters={"weight": torch.from_numpy(weight), "bias": torch.from_numpy(bias)},
        left_scaler=scalers[0],
        right_scaler=None if alone else scalers[1],
    )


def standardised(
    inputs: Sequence[Tensor], scalers: Sequence[Scaler], rows: Sequence[NDArray[np.int64]]
) -> NDArray[np.float32]:
    """Standardised inputs beside each other.

    Args:
        inputs: embeddings, [N, D] or [N, R, D] float32 each.
        scalers: one per input.
        rows: n row positions of each input.

    Returns:
        float32 [n, sum D]; of layers, their mean.
    """
    count, widths = len(rows[0]), [matrix.shape[-1] for matrix in inputs]
    found = torch.empty(count, sum(widths))
    for start in range(0, count, _CHUNK_ROWS):
        column = 0
        for matrix, scaler, own, width in zip(inputs, scalers, rows, widths, strict=True):
            part = matrix[torch.from_numpy(own[start : start + _CHUNK_ROWS]).to(matrix.device)].cpu()
            part = (part - scaler.mean) / scaler.std
            found[start : start + len(part), column : column + width] = part if part.dim() == 2 else part.mean(dim=1)
            column += width
    return found.numpy()


def _parameters(
    classes: NDArray[np.int64], coefficients: NDArray[np.floating], intercept: NDArray[np.floating], num_classes: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Weight [sum D, C] and bias [C] of all classes; one that was not trained on has probability 0."""
    if len(classes) == 2:  # scikit-learn keeps the second class's row only
        coefficients, intercept = np.concatenate([-coefficients, coefficients]) / 2, np.array([-1, 1]) * intercept / 2
    weight = np.zeros((coefficients.shape[1], num_classes), np.float32)
    bias = np.full(num_classes, -np.inf, np.float32)
    weight[:, classes] = coefficients.T
    bias[classes] = intercept
    return weight, bias
