"""CKA, CCA and PWCCA against closed forms, scikit-learn and the definitions written out."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from pipelines.errors import ConfigError, StoreError
from pipelines.evaluation.similarity import (
    canonical_correlations,
    compare_views,
    linear_cka,
    permuted_pwcca,
    prepare_view,
    pwcca,
)

Floats = NDArray[np.float64]


def gaussian(rows: int, dim: int, seed: int) -> Floats:
    return np.random.default_rng(seed).standard_normal((rows, dim))


def rotation(dim: int, seed: int) -> Floats:
    return np.linalg.qr(gaussian(dim, dim, seed))[0]


def song_hsic(first: Floats, second: Floats) -> float:
    """The unbiased estimate of Song et al. 2012, eq. 5, as it stands there: kernels without their diagonals."""
    n = len(first)
    kernels = [matrix @ matrix.T for matrix in (first, second)]
    for kernel in kernels:
        np.fill_diagonal(kernel, 0)
    left, right = kernels
    ones = np.ones(n)
    sums = (ones @ left @ ones) * (ones @ right @ ones) / ((n - 1) * (n - 2))
    return float((np.trace(left @ right) + sums - 2 / (n - 2) * (ones @ left @ right @ ones)) / (n * (n - 3)))


# ------------------------------------------------------------------------------------------------------------- CKA


@pytest.mark.parametrize(("rows", "dim"), [(200, 7), (30, 80), (12, 12)])
def test_cka_ignores_rotation_scale_and_shift(rows: int, dim: int) -> None:
    x = gaussian(rows, dim, 1) * np.linspace(0.1, 3, dim)
    y = -2.7 * x @ rotation(dim, 2) + 5.0
    assert linear_cka(x, y) == pytest.approx(1, abs=1e-12)
    assert linear_cka(x, y, debiased=True) == pytest.approx(1, abs=1e-12)


def test_cka_does_not_ignore_general_linear_maps() -> None:
    x = gaussian(500, 5, 3)
    assert linear_cka(x, x @ np.diag([10.0, 1, 1, 1, 1])) < 0.75


def test_cka_of_two_dimensions_by_hand() -> None:
    # Two orthogonal patterns over four utterances, lengths 2 and 2: X = (a, b), Y = (a, 3 b) / a alone.
    a, b = np.array([1.0, -1, 1, -1]), np.array([1.0, 1, -1, -1])
    x = np.stack([a, b], axis=1)
    # |XᵀY|² = 4² + 12² = 160; |XᵀX| = √(16 + 16); |YᵀY| = √(16 + 36²)
    assert linear_cka(x, np.stack([a, 3 * b], axis=1)) == pytest.approx(160 / math.sqrt(32 * (16 + 1296)), abs=1e-12)
    assert linear_cka(x, a[:, None]) == pytest.approx(1 / math.sqrt(2), abs=1e-12)
    assert linear_cka(a[:, None], b[:, None]) == pytest.approx(0, abs=1e-12)
    # Of single columns it is the squared correlation.
    c = np.array([0.3, 2.0, -1.0, 0.7])
    assert linear_cka(a[:, None], c[:, None]) == pytest.approx(np.corrcoef(a, c)[0, 1] ** 2, abs=1e-12)


@pytest.mark.parametrize(("rows", "left", "right"), [(40, 5, 9), (25, 60, 4), (25, 60, 40)])
def test_debiased_cka_is_that_of_the_definition(rows: int, left: int, right: int) -> None:
    x = gaussian(rows, left, 4) + 3
    y = gaussian(rows, right, 5)
    y[:, 0] += x[:, 0]
    expected = song_hsic(x, y) / math.sqrt(song_hsic(x, x) * song_hsic(y, y))
    assert linear_cka(x, y, debiased=True) == pytest.approx(expected, rel=1e-9)


def test_small_samples_inflate_cka_but_not_the_debiased() -> None:
    plain, floors, debiased = [], [], []
    for seed in range(60):
        found = compare_views(prepare_view(gaussian(30, 200, seed)), prepare_view(gaussian(30, 200, 1000 + seed)))
        plain.append(found.cka)
        floors.append(found.cka_floor)
        debiased.append(found.cka_debiased)
    assert np.mean(plain) > 0.85
    assert np.mean(plain) == pytest.approx(np.mean(floors), abs=0.005)
    assert abs(np.mean(debiased)) < 3 * np.std(debiased) / math.sqrt(60)
    assert np.std(debiased) < 0.1


def test_floor_of_cka_is_the_mean_over_permutations() -> None:
    x, y = gaussian(12, 3, 6) ** 3, gaussian(12, 20, 7)
    generator = np.random.default_rng(8)
    permuted = [linear_cka(x, y[generator.permutation(12)]) for _ in range(1500)]
    floor = compare_views(prepare_view(x), prepare_view(y)).cka_floor
    assert np.mean(permuted) == pytest.approx(floor, abs=4 * np.std(permuted) / math.sqrt(1500))


# ------------------------------------------------------------------------------------------------------------- CCA


def test_cca_ignores_invertible_linear_maps() -> None:
    x = gaussian(300, 6, 9)
    y = x @ (gaussian(6, 6, 10) + 2 * np.eye(6)) - 4
    np.testing.assert_allclose(canonical_correlations(x, y), np.ones(6), atol=1e-10)
    assert pwcca(x, y) == pytest.approx(1, abs=1e-10)


def test_cca_of_two_dimensions_by_hand() -> None:
    # Orthogonal patterns; y shares the first column at an angle of 60° (cos = 0.5) and nothing of the second.
    a, b, c = (np.array(one, dtype=float) for one in ([1, -1, 1, -1] * 2, [1, 1, -1, -1] * 2, [1] * 4 + [-1] * 4))
    d = a * b  # orthogonal to all three
    x = np.stack([3 * a, b], axis=1)
    y = np.stack([0.5 * a + math.sqrt(0.75) * c, d], axis=1)
    np.testing.assert_allclose(canonical_correlations(x, y), [0.5, 0.0], atol=1e-12)
    # PWCCA: the weights of a and b in x are 3 and 1; those of y's variates are the sum over its columns, both 1.
    assert pwcca(x, y) == pytest.approx(0.5 * 3 / 4, abs=1e-12)
    assert pwcca(y, x) == pytest.approx(0.5 * 1 / 2, abs=1e-12)


def test_cca_agrees_with_scikit_learn() -> None:
    from sklearn.cross_decomposition import CCA

    x, noise = gaussian(400, 4, 11), gaussian(400, 3, 12)
    y = x[:, :3] * [2.0, 0.5, 0.1] + noise
    scores = CCA(n_components=3, tol=1e-12, max_iter=20000).fit(x, y).transform(x, y)
    expected = [np.corrcoef(scores[0][:, index], scores[1][:, index])[0, 1] for index in range(3)]
    np.testing.assert_allclose(canonical_correlations(x, y), expected, atol=1e-5)


def test_pwcca_is_that_of_the_definition() -> None:
    x, y = gaussian(150, 5, 13) * [4, 2, 1, 0.5, 0.1], gaussian(150, 8, 14)
    y[:, :3] += x[:, 1:4]
    centred = [matrix - matrix.mean(axis=0) for matrix in (x, y)]
    bases = [np.linalg.qr(matrix)[0] for matrix in centred]
    directions, rho, _ = np.linalg.svd(bases[0].T @ bases[1], full_matrices=False)
    variates = bases[0] @ directions  # [n, 5], orthonormal
    alpha = np.array([sum(abs(variates[:, i] @ centred[0][:, j]) for j in range(5)) for i in range(5)])
    assert pwcca(x, y) == pytest.approx(float((alpha * rho).sum() / alpha.sum()), rel=1e-10)


def test_wide_and_tall_views_agree() -> None:
    """A side with n ≤ D is rotated; the components and the weights stay what they are."""
    x = gaussian(60, 8, 15) @ gaussian(8, 200, 16)  # rank 8 in 200 columns
    y = gaussian(60, 10, 17)
    y[:, 0] = x[:, 0]
    wide = prepare_view(x, variance=1.0, rows_per_component=0)
    assert wide.components == 8
    found = compare_views(wide, prepare_view(y, variance=1.0, rows_per_component=0))
    np.testing.assert_allclose(found.correlations, canonical_correlations(x, y), atol=1e-9)
    bases = [np.linalg.svd(matrix - matrix.mean(axis=0), full_matrices=False)[0][:, :8] for matrix in (x, y)]
    del bases[1]
    full = np.linalg.qr(y - y.mean(axis=0))[0]
    directions, rho, _ = np.linalg.svd(bases[0].T @ full, full_matrices=False)
    alpha = np.abs((bases[0] @ directions).T @ (x - x.mean(axis=0))).sum(axis=1)
    assert found.pwcca == pytest.approx(float((alpha * rho).sum() / alpha.sum()), rel=1e-9)


def test_components_follow_variance_and_rows() -> None:
    x = gaussian(400, 50, 18) * np.sqrt(np.linspace(50, 1, 50))
    assert prepare_view(x).components == 20  # 400 / 20
    assert prepare_view(x, rows_per_component=0).components > 40
    shares = prepare_view(x, rows_per_component=0).energies
    cut = prepare_view(x, variance=0.5, rows_per_component=0).components
    assert shares[:cut].sum() / shares.sum() >= 0.5 > shares[: cut - 1].sum() / shares.sum()


def test_unrelated_sides_get_what_permutation_says() -> None:
    first, second = prepare_view(gaussian(500, 30, 19)), prepare_view(gaussian(500, 30, 20))
    permuted = permuted_pwcca(first, second, permutations=30)
    found = compare_views(first, second)
    assert abs(found.pwcca - permuted.mean()) < 5 * permuted.std()
    # mean of ρ² = max(d) / (n − 1)
    expected = first.components / 499
    assert float((found.correlations**2).mean()) == pytest.approx(expected, rel=0.25)
    np.testing.assert_array_equal(permuted, permuted_pwcca(first, second, permutations=30))


# ----------------------------------------------------------------------------------------------------- odd numbers


def test_chunks_and_memory_maps_change_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    x, y = gaussian(1000, 6, 21).astype(np.float32) + 100, gaussian(1000, 4, 22).astype(np.float32)
    y[:, 0] += x[:, 0]
    whole = compare_views(prepare_view(x), prepare_view(y))
    mapped = np.memmap(tmp_path / "x", dtype=np.float32, mode="w+", shape=x.shape)
    mapped[:] = x
    monkeypatch.setattr("pipelines.evaluation.similarity._CHUNK_ROWS", 64)
    found = compare_views(prepare_view(mapped), prepare_view(y))
    for name in ("cka", "cka_floor", "cka_debiased", "pwcca", "svcca"):
        assert getattr(found, name) == pytest.approx(getattr(whole, name), rel=1e-9)


def test_constant_sides_have_no_similarity() -> None:
    constant = np.full((30, 5), 0.1, np.float32)
    found = compare_views(prepare_view(gaussian(30, 3, 23)), prepare_view(constant))
    assert math.isnan(found.cka)
    assert math.isnan(found.pwcca)
    assert np.isnan(permuted_pwcca(prepare_view(constant), prepare_view(constant))).all()
    # One constant column among others does no harm.
    x = gaussian(30, 3, 23)
    with_one = np.concatenate([x, np.full((30, 1), 1e6)], axis=1)
    assert linear_cka(x, with_one) == pytest.approx(1, abs=1e-9)


def test_mistakes_are_explained() -> None:
    x = gaussian(20, 3, 24)
    with pytest.raises(ConfigError, match=r"n ≥ 2 utterances, not \[20\]"):
        prepare_view(x[:, 0])
    with pytest.raises(ConfigError, match=r"of 20 and of 19 utterances cannot be compared"):
        linear_cka(x, x[:19])
    with pytest.raises(ConfigError, match=r"15 and 15 dimensions from 20 utterances say nothing"):
        canonical_correlations(gaussian(20, 15, 25), gaussian(20, 15, 26))
    with pytest.raises(ConfigError, match="at most 1, not 2"):
        prepare_view(x, variance=2)
    x[7, 1] = np.nan
    with pytest.raises(StoreError, match=r"not finite \(first in row 7\).*hyfuse cache verify"):
        prepare_view(x)


@pytest.mark.slow
def test_a_million_rows(tmp_path: Path) -> None:
    """From files on disk, in little memory: the products of chunks are all that is kept."""
    import tracemalloc

    generator = np.random.default_rng(27)
    sides = []
    for name in "xy":
        mapped = np.memmap(tmp_path / name, dtype=np.float32, mode="w+", shape=(1_000_000, 64))
        for start in range(0, len(mapped), 50_000):
            mapped[start : start + 50_000] = generator.standard_normal((50_000, 64), np.float32)
        sides.append(mapped)
    sides[1][:, :16] += sides[0][:, :16]
    tracemalloc.start()
    found = compare_views(prepare_view(sides[0]), prepare_view(sides[1]))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100e6
    # 16 columns of covariance 1; XᵀX has 64 eigenvalues 1, YᵀY 16 of 2 and 48 of 1.
    assert found.cka == pytest.approx(16 / math.sqrt(64 * (16 * 4 + 48)), rel=0.01)
    np.testing.assert_allclose(found.correlations[:16], math.sqrt(0.5), atol=0.01)
