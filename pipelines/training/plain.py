"""The same mathematics without stacks: one head at a time, in ordinary PyTorch, as most code trains them.

What ``hyfuse bench train`` compares the engine with, and what the tests hold its results against. Only the initial values and the
order of the batches come from hyfuse, so that the results can be compared number by number; everything else is
``torch.nn.Linear``, ``torch.optim.AdamW`` and a loop over batches of a standardised matrix. Dropout is left out of both where
results are compared; with it (``torch.nn.Dropout`` here), only times can be.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from pipelines.errors import unknown_name
from pipelines.fusion import poincare
from pipelines.fusion.catalogue import build_head, fusion_options
from pipelines.fusion.stacked import head_generators
from pipelines.training.trainer import HeadTask, TrainConfig, fitted_rows, head_seed

__all__ = ["PLAIN", "PlainResult", "train_plain"]


class _Concat(nn.Module):
    """logits = V [relu(W_l x_l + b_l) ; relu(W_r x_r + b_r)] + a, as in ``fusion/concat.py``."""

    def __init__(self, left_dim: int, right_dim: int, num_classes: int, config: TrainConfig) -> None:
        super().__init__()
        self.left_project = nn.Linear(left_dim, config.hidden_dim)
        self.right_project = nn.Linear(right_dim, config.hidden_dim)
        self.classify = nn.Linear(2 * config.hidden_dim, num_classes)
        self.drop_input = nn.Dropout(config.input_dropout)
        self.drop = nn.Dropout(config.dropout)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        hidden = [
            project(self.drop_input(x)).relu()
            for project, x in ((self.left_project, left), (self.right_project, right))
        ]
        logits: Tensor = self.classify(self.drop(torch.cat(hidden, dim=-1)))
        return logits


class _Hyperbolic(nn.Module):
    """Lift, Möbius addition and the way back, one map after the other, as in the formulas of ``fusion/hyperbolic.py``."""

    def __init__(self, left_dim: int, right_dim: int, num_classes: int, config: TrainConfig) -> None:
        super().__init__()
        options = fusion_options("hyperbolic")
        self.max_radius, self.curvature = float(options["max_radius"]), float(options["curvature"])
        self.left_project = nn.Linear(left_dim, config.hidden_dim)
        self.right_project = nn.Linear(right_dim, config.hidden_dim)
        self.left_radius = nn.Parameter(torch.zeros(1, 1))
        self.right_radius = nn.Parameter(torch.zeros(1, 1))
        self.classify = nn.Linear(config.hidden_dim, num_classes)
        self.drop_input = nn.Dropout(config.input_dropout)
        self.drop = nn.Dropout(config.dropout)

    def lift(self, stream: Tensor, radius: Tensor) -> Tensor:
        """[B, D] to points at the learned radius."""
        width = stream.shape[-1]
        direction = F.layer_norm(stream, (width,)) / math.sqrt(width)
        return poincare.exp0(direction * (self.max_radius * torch.sigmoid(radius)), self.curvature)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        x = self.lift(self.left_project(self.drop_input(left)), self.left_radius)
        y = self.lift(self.right_project(self.drop_input(right)), self.right_radius)
        fused = poincare.log0(poincare.mobius_add(x, y, self.curvature), self.curvature)
        logits: Tensor = self.classify(self.drop(fused * (6.0 / self.max_radius)))
        return logits


PLAIN: dict[str, type[nn.Module]] = {"concat": _Concat, "hyperbolic": _Hyperbolic}
"""Fusions that have a plain counterpart, at their default options."""


@dataclass(frozen=True, eq=False)
class PlainResult:
    """What one head came to.

    Attributes:
        test_probabilities: float32 [n_test, C].
        train_loss: float64 [epochs], mean over the batches of an epoch.
    """

    test_probabilities: NDArray[np.float32]
    train_loss: NDArray[np.float64]


def train_plain(
    fusion: str,
    *,
    left: Tensor,
    right: Tensor,
    labels: Tensor,
    task: HeadTask,
    steps_per_epoch: int,
    num_classes: int,
    config: TrainConfig,
) -> PlainResult:
    """Train one head without a stack and test it.

    Args:
        fusion: a key of :data:`PLAIN`.
        left: [N, Dl] float32.
        right: [N, Dr] float32.
        labels: [N] int64.
        task: which rows.
        steps_per_epoch: as for the stack.
        num_classes: C.
        config: its selection must be "fixed" or "last"; class weights are not known here.

    Raises:
        UnknownNameError: a fusion without a counterpart.
    """
    if fusion not in PLAIN:
        raise unknown_name("fusion with a plain counterpart", fusion, PLAIN)
    rows, seed = fitted_rows(task, config), head_seed(task.fold, task.seed)
    scaled = []
    for matrix in (left, right):
        known = matrix[rows].double()
        mean, std = known.mean(dim=0), known.std(dim=0, correction=0)
        scaled.append((matrix - mean.float()) / torch.where(std > 1e-6 * mean.abs(), std, 1.0).float())
    model = PLAIN[fusion](left.shape[1], right.shape[1], num_classes, config)
    _start_as_the_stack(model, fusion, left.shape[1], right.shape[1], num_classes, seed, config)
    decayed = [parameter for name, parameter in model.named_parameters() if name.endswith(".weight")]
    others = [parameter for name, parameter in model.named_parameters() if not name.endswith(".weight")]
    optimiser = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=config.learning_rate,
    )
    total = config.epochs * steps_per_epoch
    (stream,) = head_generators([seed], "batches")
    needed = total * config.batch_size
    order = np.concatenate([stream.permutation(rows) for _ in range(-(-needed // len(rows)))])[:needed]
    batches = torch.from_numpy(order).view(total, config.batch_size)
    losses = []
    model.train()
    for step, batch in enumerate(batches):
        loss = F.cross_entropy(
            model(scaled[0][batch], scaled[1][batch]), labels[batch], label_smoothing=config.label_smoothing
        )
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        if config.clip_norm > 0.0:
            nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
        if config.schedule == "cosine":
            for group in optimiser.param_groups:
                group["lr"] = config.learning_rate * 0.5 * (1.0 + math.cos(math.pi * step / total))
        optimiser.step()
        losses.append(loss.item())
    model.eval()
    with torch.no_grad():
        probabilities = torch.softmax(model(scaled[0][task.test], scaled[1][task.test]), dim=-1).numpy()
    return PlainResult(probabilities, np.array(losses).reshape(config.epochs, steps_per_epoch).mean(axis=1))


@torch.no_grad()
def _start_as_the_stack(
    model: nn.Module, fusion: str, left_dim: int, right_dim: int, num_classes: int, seed: int, config: TrainConfig
) -> None:
    """Give a plain model the initial values of a stack's head."""
    head = build_head(
        fusion,
        left_dim=left_dim,
        right_dim=right_dim,
        num_classes=num_classes,
        head_seeds=[seed],
        hidden_dim=config.hidden_dim,
    )
    theirs = dict(head.named_parameters())
    for name, parameter in model.named_parameters():
        (found,) = (value for key, value in theirs.items() if key == name or key.endswith(f".{name}"))
        parameter.copy_(found[0].T if name.endswith(".weight") else found[0].view_as(parameter))
