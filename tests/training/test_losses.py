"""Cross-entropy of stacked heads against torch's own, head by head."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from pipelines.training.losses import cross_entropy

H, B, C = 3, 10, 5


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(H, B, C, generator=generator, dtype=torch.float64) * 3,
        torch.randint(0, C, (H, B), generator=generator),
    )


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("weighting", ["none", "shared", "per head"])
def test_equals_torch(smoothing: float, weighting: str) -> None:
    logits, targets = batch()
    weights = {
        "none": None,
        "shared": torch.rand(C, dtype=torch.float64) + 0.1,
        "per head": torch.rand(H, C, dtype=torch.float64) + 0.1,
    }[weighting]
    losses = cross_entropy(logits, targets, label_smoothing=smoothing, class_weights=weights)
    for h in range(H):
        own = None if weights is None else weights.expand(H, C)[h]
        torch.testing.assert_close(
            losses[h], F.cross_entropy(logits[h], targets[h], weight=own, label_smoothing=smoothing)
        )


def test_rows_of_weight_zero_do_not_count() -> None:
    logits, targets = batch()
    logits.requires_grad_()
    class_weights = torch.rand(C, dtype=torch.float64) + 0.1
    rows = torch.ones(H, B, dtype=torch.float64)
    rows[:, 7:] = 0
    losses = cross_entropy(logits, targets, label_smoothing=0.2, class_weights=class_weights, row_weights=rows)
    shorter = cross_entropy(logits[:, :7], targets[:, :7], label_smoothing=0.2, class_weights=class_weights)
    torch.testing.assert_close(losses, shorter)
    (gradient,) = torch.autograd.grad(losses.sum(), logits)
    assert (gradient[:, 7:] == 0).all()
    assert (gradient[:, :7] != 0).all()


def test_the_sum_over_heads_gives_each_head_its_own_gradient() -> None:
    logits, targets = batch()
    logits.requires_grad_()
    (together,) = torch.autograd.grad(cross_entropy(logits, targets, label_smoothing=0.1).sum(), logits)
    for h in range(H):
        (alone,) = torch.autograd.grad(F.cross_entropy(logits[h], targets[h], label_smoothing=0.1), logits)
        torch.testing.assert_close(together[h], alone[h])


def test_perfect_and_even_predictions() -> None:
    targets = torch.arange(C).expand(H, C)
    torch.testing.assert_close(cross_entropy(torch.zeros(H, C, C), targets), torch.full((H,), C).log())
    assert cross_entropy(torch.eye(C).expand(H, C, C) * 100, targets).max() < 1e-6
