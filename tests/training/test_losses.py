"""Losses of stacked heads against oracles, head by head: torch's cross-entropy, audmetric's concordance."""

from __future__ import annotations

import audmetric
import pytest
import torch
import torch.nn.functional as F

from pipelines.training.losses import concordance_loss, cross_entropy, soft_cross_entropy

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


# ------------------------------------------------------------------------------------------------ votes


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighting", ["none", "per head"])
def test_soft_equals_torch_with_probabilities_as_targets(smoothing: float, weighting: str) -> None:
    logits, _ = batch()
    shares = torch.distributions.Dirichlet(torch.ones(C, dtype=torch.float64)).sample((H, B))
    weights = None if weighting == "none" else torch.rand(H, C, dtype=torch.float64) + 0.1
    losses = soft_cross_entropy(logits, shares, label_smoothing=smoothing, class_weights=weights)
    for h in range(H):
        own = None if weights is None else weights[h]
        expected = F.cross_entropy(logits[h], shares[h], weight=own, label_smoothing=smoothing)
        torch.testing.assert_close(losses[h], expected)


def test_soft_with_one_vote_is_hard_and_padding_does_not_count() -> None:
    logits, targets = batch()
    shares = F.one_hot(targets, C).double()
    torch.testing.assert_close(soft_cross_entropy(logits, shares), cross_entropy(logits, targets))
    rows = torch.ones(H, B)
    rows[:, 7:] = 0
    shorter = soft_cross_entropy(logits, shares, row_weights=rows)
    torch.testing.assert_close(shorter, soft_cross_entropy(logits[:, :7], shares[:, :7]))


# ------------------------------------------------------------------------------------------------ concordance

K = 3


def values() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    truth = torch.randn(H, B, K, generator=generator, dtype=torch.float64)
    return truth * 0.7 + 0.4 * torch.randn(H, B, K, generator=generator, dtype=torch.float64) - 0.2, truth


def test_concordance_equals_audmetric() -> None:
    outputs, truth = values()
    losses = concordance_loss(outputs, truth)
    for h in range(H):
        expected = [1 - audmetric.concordance_cc(truth[h, :, k].numpy(), outputs[h, :, k].numpy()) for k in range(K)]
        assert losses[h].item() == pytest.approx(sum(expected) / K, abs=1e-7)
    assert concordance_loss(truth, truth).abs().max() < 1e-7
    assert concordance_loss(-truth, truth)[0].item() == pytest.approx(
        sum(1 - audmetric.concordance_cc(truth[0, :, k].numpy(), -truth[0, :, k].numpy()) for k in range(K)) / K
    )


def test_the_gradient_that_is_written_out_is_that_of_autograd() -> None:
    outputs, truth = values()
    outputs.requires_grad_()
    rows = torch.ones(H, B, dtype=torch.float64)
    rows[1, 6:] = 0
    (written,) = torch.autograd.grad(concordance_loss(outputs, truth, row_weights=rows).square().sum(), outputs)
    total = outputs.new_zeros(())
    for h in range(H):
        own = slice(None, int(rows[h].sum()))
        x, y = outputs[h, own], truth[h, own]
        covariance = ((x - x.mean(0)) * (y - y.mean(0))).mean(0)
        spread = x.var(0, correction=0) + y.var(0, correction=0) + (x.mean(0) - y.mean(0)).square() + 1e-8
        total = total + (1 - 2 * covariance / spread).mean().square()
    (expected,) = torch.autograd.grad(total, outputs)
    torch.testing.assert_close(written, expected, atol=1e-12, rtol=1e-9)
    assert (written[1, 6:] == 0).all()
    assert torch.autograd.gradcheck(lambda x: concordance_loss(x, truth, row_weights=rows), outputs)


@pytest.mark.parametrize("outputs", ["constant", "equal", "varied"])
def test_a_batch_without_variance_teaches_nothing_and_breaks_nothing(outputs: str) -> None:
    truth = torch.full((1, B, 1), 0.3)
    found = {"constant": torch.zeros(1, B, 1), "equal": truth.clone(), "varied": torch.randn(1, B, 1)}[outputs]
    found.requires_grad_()
    loss = concordance_loss(found, truth)
    (gradient,) = torch.autograd.grad(loss.sum(), found)
    assert loss.item() == pytest.approx(1)
    assert torch.isfinite(gradient).all()
    assert gradient.abs().max() < 1e-6


def test_constant_outputs_learn_to_vary() -> None:
    _, truth = values()
    outputs = torch.zeros_like(truth).requires_grad_()
    loss = concordance_loss(outputs, truth)
    torch.testing.assert_close(loss, torch.ones(H, dtype=torch.float64))
    (gradient,) = torch.autograd.grad(loss.sum(), outputs)
    assert (gradient * (truth - truth.mean(dim=1, keepdim=True)) <= 0).all()  # towards the truth
