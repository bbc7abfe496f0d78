"""Stacked layers equal a loop of ordinary ones, and no head depends on its stack."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pipelines.fusion.stacked import (
    ROW_MULTIPLE,
    StackedDropout,
    StackedLayerNorm,
    StackedLinear,
    head_generators,
    padded_rows,
    stacked_scalar,
)

SEEDS = (11, 22, 33, 44, 55)


@pytest.mark.parametrize(("rows", "expected"), [(1, 32), (31, 32), (32, 32), (33, 64), (0, 0)])
def test_padded_rows(rows: int, expected: int) -> None:
    assert padded_rows(rows) == expected


@pytest.mark.parametrize("out_features", [1, 6, 7, 8, 120])
def test_linear_equals_a_loop(out_features: int) -> None:
    layer = StackedLinear(33, out_features, head_seeds=SEEDS, name="x")
    x = torch.randn(5, 32, 33, requires_grad=True)
    stacked = layer(x)
    loop = torch.stack([F.linear(x[h], layer.weight[h].T, layer.bias[h, 0]) for h in range(5)])
    assert stacked.shape == (5, 32, out_features)
    torch.testing.assert_close(stacked, loop)
    direction = torch.randn_like(loop)
    inputs = (x, layer.weight, layer.bias)
    for ours, theirs in zip(
        torch.autograd.grad(stacked, inputs, direction), torch.autograd.grad(loop, inputs, direction), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_linear_starts_as_torch_does() -> None:
    layer = StackedLinear(400, 300, head_seeds=SEEDS, name="x")
    bound = 1 / np.sqrt(400)
    for values in (layer.weight.detach(), layer.bias.detach()):
        assert values.abs().max() <= bound
        assert values.std() == pytest.approx(bound / np.sqrt(3), rel=0.05)
    assert layer.weight.dtype == torch.float32


def test_start_depends_on_own_seed_and_name_only() -> None:
    whole = StackedLinear(8, 8, head_seeds=SEEDS, name="x").weight
    torch.testing.assert_close(StackedLinear(8, 8, head_seeds=(44, 11), name="x").weight, whole[[3, 0]], rtol=0, atol=0)
    assert not torch.equal(StackedLinear(8, 8, head_seeds=SEEDS, name="y").weight, whole)
    assert not torch.equal(whole[0], whole[1])


@pytest.mark.parametrize("out_features", [2, 6, 7, 8, 9, 120])
@pytest.mark.parametrize("in_features", [5, 120, 513])
def test_bits_do_not_depend_on_the_place_in_the_stack(in_features: int, out_features: int) -> None:
    """The widths 6 and 7 fail without the multiple of eight columns: MKL rounds by the alignment of the result."""
    torch.manual_seed(0)
    layer = StackedLinear(in_features, out_features, head_seeds=SEEDS, name="x")
    x = torch.randn(5, ROW_MULTIPLE, in_features)
    direction = torch.randn(5, ROW_MULTIPLE, out_features)

    def compute(heads: slice) -> list[torch.Tensor]:
        own = x[heads].clone().requires_grad_()
        part = StackedLinear(in_features, out_features, head_seeds=SEEDS[heads], name="x")
        result = part(own)
        gradients = torch.autograd.grad(result, (own, part.weight, part.bias), direction[heads].clone())
        return [result.detach(), *gradients]

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        whole = compute(slice(None))
        for heads in (slice(0, 1), slice(1, 2), slice(4, 5), slice(1, 4), slice(3, 5)):
            for ours, expected in zip(compute(heads), whole, strict=True):
                assert torch.equal(ours, expected[heads])
    finally:
        torch.set_num_threads(threads)
    assert layer.weight.shape == (5, in_features, out_features)


def test_layer_norm_equals_torch() -> None:
    layer = StackedLayerNorm(24, head_count=3)
    torch.nn.init.normal_(layer.scale)
    torch.nn.init.normal_(layer.shift)
    x = torch.randn(3, 4, 24) * 5 + 2
    loop = torch.stack([F.layer_norm(x[h], (24,), layer.scale[h, 0], layer.shift[h, 0]) for h in range(3)])
    torch.testing.assert_close(layer(x), loop)


def test_scalar_is_one_parameter_per_head() -> None:
    scalar = stacked_scalar(0.25, head_count=3)
    assert scalar.shape == (3, 1, 1)
    assert scalar.requires_grad
    assert (scalar == 0.25).all()


@pytest.mark.parametrize("probability", [0.1, 0.3, 0.5, 0.9])
def test_dropout_drops_the_share_and_keeps_the_mean(probability: float) -> None:
    dropout = StackedDropout(probability, head_seeds=SEEDS, name="x")
    result = dropout(torch.ones(5, 64, 500))
    dropped = (result == 0).float().mean(dim=(1, 2))
    # Six standard errors of a share of 32,000 draws, and the rounding of the probability to 1/256.
    assert (dropped - probability).abs().max() < 6 * np.sqrt(probability * (1 - probability) / 32_000) + 1 / 512
    assert result.mean() == pytest.approx(1.0, abs=0.05)
    kept = result[result != 0]
    assert kept.max() == kept.min() == pytest.approx(256 / (256 - round(256 * probability)))


def test_dropout_does_nothing_in_evaluation_or_at_zero() -> None:
    x = torch.randn(5, 32, 7)
    assert StackedDropout(0.5, head_seeds=SEEDS, name="x").eval()(x) is x
    assert StackedDropout(0.0, head_seeds=SEEDS, name="x")(x) is x


def test_dropout_masks_are_the_heads_own() -> None:
    x = torch.ones(5, 32, 13)  # 13 columns: rows do not fill whole random words
    whole, part = (StackedDropout(0.5, head_seeds=seeds, name="x") for seeds in (SEEDS, SEEDS[2:3]))
    first, second = whole(x), whole(x)
    assert torch.equal(part(x[2:3]), first[2:3])
    assert torch.equal(part(x[2:3]), second[2:3])
    assert not torch.equal(first[2], second[2])
    assert not torch.equal(first[0], first[1])


def test_dropout_passes_the_gradient_of_what_it_kept() -> None:
    x = torch.randn(5, 32, 8, requires_grad=True)
    result = StackedDropout(0.5, head_seeds=SEEDS, name="x")(x)
    (gradient,) = torch.autograd.grad(result.sum(), x)
    torch.testing.assert_close(gradient * x, result)


def test_streams_are_independent() -> None:
    first, second = head_generators((1, 2), "a")
    (other,) = head_generators((1,), "b")
    draws = [generator.random(1000) for generator in (first, second, other)]
    assert np.abs(np.corrcoef(draws) - np.eye(3)).max() < 0.15
    assert np.array_equal(head_generators((1,), "a")[0].random(1000), draws[0])
