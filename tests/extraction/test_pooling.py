"""Pooling against a plain loop in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipelines.extraction.pooling import pool_frames


def _loop(frames: torch.Tensor, lengths: list[int]) -> tuple[np.ndarray, np.ndarray]:
    means, deviations = [], []
    for row, length in enumerate(lengths):
        own = frames[row, :length].double().numpy()
        means.append(own.mean(axis=0))
        deviations.append(own.std(axis=0))
    return np.array(means), np.array(deviations)


@pytest.mark.parametrize("beyond", [0.0, 1e30, float("inf"), float("nan")])
def test_equals_a_loop_whatever_lies_beyond(beyond: float) -> None:
    lengths = [1, 2, 7, 50, 50]
    frames = torch.randn(5, 50, 6, generator=torch.Generator().manual_seed(0)) * 3 + 2
    for row, length in enumerate(lengths):
        frames[row, length:] = beyond
    mean, std = pool_frames(frames, torch.tensor(lengths))
    expected_mean, expected_std = _loop(frames, lengths)
    assert mean.dtype == std.dtype == torch.float32
    assert mean.shape == std.shape == (5, 6)
    np.testing.assert_allclose(mean.numpy(), expected_mean, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(std.numpy(), expected_std, rtol=1e-6, atol=1e-6)


def test_one_frame_is_its_own_mean_without_spread() -> None:
    frames = torch.randn(3, 1, 4)
    mean, std = pool_frames(frames, torch.ones(3, dtype=torch.int64))
    assert torch.equal(mean, frames[:, 0])
    assert torch.equal(std, torch.zeros(3, 4))


def test_one_frame_among_longer_ones() -> None:
    frames = torch.randn(2, 9, 4) * 1e3
    mean, std = pool_frames(frames, torch.tensor([1, 9]))
    assert torch.equal(mean[0], frames[0, 0])
    assert torch.equal(std[0], torch.zeros(4))


def test_constant_frames_have_no_spread() -> None:
    _, std = pool_frames(torch.full((1, 1000, 3), 0.5), torch.tensor([1000]))
    assert torch.equal(std, torch.zeros(1, 3))


def test_large_mean_costs_no_digits() -> None:
    frames = 1e4 + torch.randn(1, 5000, 8, generator=torch.Generator().manual_seed(1))
    _, std = pool_frames(frames, torch.tensor([5000]))
    np.testing.assert_allclose(std.numpy(), _loop(frames, [5000])[1], rtol=1e-4)


def test_a_frame_that_is_not_finite_shows() -> None:
    frames = torch.zeros(2, 3, 2)
    frames[0, 1, 0] = float("nan")
    mean, std = pool_frames(frames, torch.tensor([3, 3]))
    assert mean.isnan().tolist() == [[True, False], [False, False]]
    assert std.isnan().tolist() == [[True, False], [False, False]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_computes_in_float32_from_any_precision(dtype: torch.dtype) -> None:
    frames = torch.randn(2, 400, 3, generator=torch.Generator().manual_seed(2)).to(dtype)
    mean, std = pool_frames(frames, torch.tensor([400, 123]))
    expected_mean, expected_std = _loop(frames, [400, 123])
    assert mean.dtype == std.dtype == torch.float32
    np.testing.assert_allclose(mean.numpy(), expected_mean, atol=1e-6)
    np.testing.assert_allclose(std.numpy(), expected_std, rtol=1e-5)


def test_padding_and_company_do_not_matter() -> None:
    clip = torch.randn(37, 5, generator=torch.Generator().manual_seed(3))
    alone = pool_frames(clip[None], torch.tensor([37]))
    padded = torch.full((4, 300, 5), float("nan"))
    padded[:, :200] = 7.0
    padded[2, :37] = clip
    together = pool_frames(padded, torch.tensor([200, 1, 37, 100]))
    for found, expected in zip(together, alone, strict=True):
        np.testing.assert_allclose(found[2].numpy(), expected[0].numpy(), rtol=1e-6, atol=1e-7)


def test_number_of_threads_does_not_matter() -> None:
    frames = torch.randn(3, 4000, 96, generator=torch.Generator().manual_seed(4))
    lengths = torch.tensor([4000, 3999, 17])
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2):
            torch.set_num_threads(count)
            results.append(pool_frames(frames, lengths))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(one, two) for one, two in zip(*results, strict=True))
