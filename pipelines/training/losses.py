"""Losses of stacked heads: one number per head, summed over heads before the backward pass.

Heads share no parameter, so the gradient of the sum with respect to one head's parameters is the gradient of
that head's own mean loss; a mean over heads would divide every learning signal by the size of the stack.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["cross_entropy"]


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
