"""Losses of stacked heads: one number per head, summed over heads before the backward pass.

Heads share no parameter, so the gradient of the sum with respect to one head's parameters is the gradient of
that head's own mean loss; a mean over heads would divide every learning signal by the size of the stack.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["concordance_loss", "cross_entropy", "soft_cross_entropy"]

_NOTHING = 1e-8
"""Added to the denominator of the CCC, where standardised values have about 2 and float32 does not see it; where nothing varies,
the loss is 1 and has no gradient."""


def cross_entropy(
    logits: Tensor,
    targets: Tensor,
    *,
    label_smoothing: float = 0.0,
    class_weights: Tensor | None = None,
    row_weights: Tensor | None = None,
) -> Tensor:
    """Label-smoothed cross-entropy of each head, averaged over its rows.

    Equal to ``torch.nn.functional.cross_entropy`` (same smoothing, same weighting: the mean divides by the
    summed weights of the true classes) applied head by head.

    Args:
        logits: [H, B, C].
        targets: class indices, [H, B].
        label_smoothing: share of the target spread evenly over all classes, in [0, 1).
        class_weights: weight of each class, [C] or per head [H, C]; None weights all alike.
        row_weights: weight of each row, [H, B], 0 for rows that only fill up a batch; None counts every row.

    Returns:
        [H].
    """
    log_probabilities = torch.log_softmax(logits, dim=-1)  # [H, B, C]
    target_terms = -log_probabilities.gather(-1, targets.unsqueeze(-1)).squeeze(-1)  # [H, B]
    rows = torch.ones_like(target_terms) if row_weights is None else row_weights
    if class_weights is None:
        weights = rows
        even_terms = -log_probabilities.mean(dim=-1)
    else:
        per_class = class_weights.expand(logits.shape[0], logits.shape[-1])  # [H, C]
        weights = rows * per_class.gather(-1, targets)
        even_terms = -(log_probabilities * per_class.unsqueeze(1)).mean(dim=-1)
    loss = (1.0 - label_smoothing) * (weights * target_terms).sum(dim=-1)
    if label_smoothing > 0.0:
        loss = loss + label_smoothing * (rows * even_terms).sum(dim=-1)
    return loss / weights.sum(dim=-1)


def soft_cross_entropy(
    logits: Tensor,
    targets: Tensor,
    *,
    label_smoothing: float = 0.0,
    class_weights: Tensor | None = None,
    row_weights: Tensor | None = None,
) -> Tensor:
    """Cross-entropy with a distribution over classes per row, averaged over the rows of each head.

    Equal to ``torch.nn.functional.cross_entropy`` with probabilities as targets (the mean divides by the number of rows, whatever
    the class weights) applied head by head.

    Args:
        logits: [H, B, C].
        targets: shares of the classes, [H, B, C]; the rows sum to 1.
        label_smoothing: share of the target spread evenly over all classes, in [0, 1).
        class_weights: weight of each class, [C] or per head [H, C]; None weights all alike.
        row_weights: weight of each row, [H, B], 0 for rows that only fill up a batch; None counts every row.

    Returns:
        [H].
    """
    log_probabilities = torch.log_softmax(logits, dim=-1)  # [H, B, C]
    shares = targets * (1.0 - label_smoothing) + label_smoothing / logits.shape[-1]
    if class_weights is not None:
        shares = shares * class_weights.expand(logits.shape[0], logits.shape[-1]).unsqueeze(1)
    terms = -(shares * log_probabilities).sum(dim=-1)  # [H, B]
    rows = torch.ones_like(terms) if row_weights is None else row_weights
    return (rows * terms).sum(dim=-1) / rows.sum(dim=-1)


def concordance_loss(outputs: Tensor, targets: Tensor, *, row_weights: Tensor | None = None) -> Tensor:
    """1 - CCC of each head and dimension over the rows of the batch, averaged over the dimensions.

    The CCC is that of the population (:func:`pipelines.training.metrics.concordance`). A batch whose targets do not vary has a loss
    of 1 and no gradient: there is nothing to be concordant with.

    Args:
        outputs: predictions, [H, B, K].
        targets: true values, [H, B, K], with a variance of about 1.
        row_weights: weight of each row, [H, B], 0 for rows that only fill up a batch; None counts every row.

    Returns:
        [H], between 0 and 2.
    """
    rows = outputs.new_ones(outputs.shape[:2]) if row_weights is None else row_weights
    losses: Tensor = _Concordance.apply(outputs, targets, rows)  # type: ignore[no-untyped-call]
    return losses.mean(dim=-1)


class _Concordance(torch.autograd.Function):
    """1 - CCC, [H, K], with its gradient written out: a tenth of the operations that autograd would need.

    d CCC / d x_i = 2 w_i ((y_i - mean y) - CCC (x_i - mean y)) / (n (s_x^2 + s_y^2 + (mean x - mean y)^2)), n the sum of the w_i.
    Sums run over the last dimension, of B numbers in a row: there a head's bits do not depend on its stack.
    """

    @staticmethod
    def forward(ctx: Any, outputs: Tensor, targets: Tensor, rows: Tensor) -> Tensor:
        x, y = outputs.transpose(1, 2).contiguous(), targets.transpose(1, 2).contiguous()  # [H, K, B]
        weights = (rows / rows.sum(dim=-1, keepdim=True)).unsqueeze(1)  # [H, 1, B], of sum 1
        x_mean, y_mean = (weights * x).sum(dim=-1, keepdim=True), (weights * y).sum(dim=-1, keepdim=True)  # [H, K, 1]
        x_apart, y_apart = x - x_mean, y - y_mean
        spread = (weights * (x_apart * x_apart + y_apart * y_apart)).sum(dim=-1, keepdim=True)
        spread = spread + (x_mean - y_mean) * (x_mean - y_mean) + _NOTHING
        ccc = 2.0 * (weights * (x_apart * y_apart)).sum(dim=-1, keepdim=True) / spread
        ctx.save_for_backward(weights, x - y_mean, y_apart, ccc, spread)
        return 1.0 - ccc.squeeze(-1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        weights, x_apart, y_apart, ccc, spread = ctx.saved_tensors
        (gradient,) = gradients  # [H, K]
        of_outputs = 2.0 * weights * (ccc * x_apart - y_apart) / spread * gradient.unsqueeze(-1)  # [H, K, B]
        return of_outputs.transpose(1, 2).contiguous(), None, None
