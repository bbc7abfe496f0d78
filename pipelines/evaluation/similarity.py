"""How alike two representations of the same utterances are: linear CKA, and CCA weighted by projection (PWCCA).

A representation is a matrix [n, D], one row per utterance; columns are centred here. The two may differ in D. Measures:

* **Linear CKA** (Kornblith et al. 2019, *Similarity of Neural Network Representations Revisited*, eq. 5):
  |XᵀY|² / (|XᵀX| |YᵀY|), Frobenius norms; the same under rotations and one factor for all columns, not under general linear
  maps. Between 0 and 1. **Small n inflates it**: of unrelated X and Y, its mean over permutations of the rows is exactly
  tr K tr L / ((n − 1) |K| |L|) with K = XXᵀ, L = YYᵀ (:attr:`Similarity.cka_floor`), near 1 where D ≫ n.
* **Debiased linear CKA**: the three inner products by their unbiased estimates (Song et al. 2012, *Feature Selection via Dependence
  Maximization*, eq. 5; for CKA Nguyen, Raghu & Kornblith 2021, *Do Wide and Deep Networks Learn the Same Things?*). Unrelated
  representations get 0 on average whatever n and D are, so it may fall below 0. What is shown unless one asks otherwise.
* **CCA**: the correlations ρ₁ ≥ ρ₂ ≥ … of the best linear combinations of either side; the same under every invertible linear map.
  **SVCCA** (Raghu et al. 2017): their mean, after both sides were cut to their leading principal components. **PWCCA** (Morcos,
  Raghu & Bengio 2018, *Insights on representational similarity …*, §2): Σ αᵢ ρᵢ / Σ αᵢ, αᵢ = Σⱼ |hᵢᵀ xⱼ|, with hᵢ the i-th
  canonical variate of the *first* side and xⱼ its columns: how much of that side the correlation is about. It is not symmetric.
  **Small n inflates them all**: of unrelated sides of d₁ and d₂ dimensions, the mean of ρ² is max(d₁, d₂) / (n − 1), and where
  d₁ + d₂ ≥ n some are 1 whatever the data. Sides are therefore cut to their leading principal components, with at least
  :data:`ROWS_PER_COMPONENT` rows for each, and :func:`permuted_pwcca` says what unrelated sides of the same shape would get.

Everything comes from cross products in float64 that are summed over chunks of rows: memory is that of the matrices given (which may
be memory-mapped files) plus D² numbers per side; a side with n ≤ D is rotated into n coordinates first, which changes neither
measure. Two sides of 1,000,000 x 64 in files: at most 100 MB beside them (``tests/evaluation/test_similarity.py``, slow).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import ConfigError, StoreError

__all__ = [
    "ROWS_PER_COMPONENT",
    "Similarity",
    "View",
    "canonical_correlations",
    "compare_views",
    "linear_cka",
    "permuted_pwcca",
    "prepare_view",
    "pwcca",
]

Floats = NDArray[np.float64]

ROWS_PER_COMPONENT = 20
"""Utterances per principal component that CCA keeps, at least; unrelated sides then have correlations of about √(1/20) = .22."""

VARIANCE = 0.99
"""Share of the variance that the components of CCA hold, at most; as in SVCCA."""

_CHUNK_ROWS = 8192
_RANK = 1e-10  # of the largest eigenvalue: what lies below is rounding


@dataclass(frozen=True)
class View:
    """A representation, ready to be compared with others of the same utterances.

    Attributes:
        rows: n.
        dim: D of the matrix that was given.
        coordinates: [n, r]: the matrix as given, or the same up to a shift and a rotation; r = min(n, D).
        offset: float64 [r], mean of the coordinates.
        squared_lengths: float64 [n], of the centred rows.
        energies: float64, eigenvalues of the centred cross product, all, descending.
        whitening: float64 [r, d]: centred coordinates to d orthonormal principal components.
        loadings: float64 [d, D]: inner products of the components with the centred columns.
    """

    rows: int
    dim: int
    coordinates: NDArray[np.floating] = field(repr=False)
    offset: Floats = field(repr=False)
    squared_lengths: Floats = field(repr=False)
    energies: Floats = field(repr=False)
    whitening: Floats = field(repr=False)
    loadings: Floats = field(repr=False)

    @property
    def components(self) -> int:
        """Principal components that CCA sees, d."""
        return int(self.whitening.shape[1])

    @property
    def is_constant(self) -> bool:
        """Whether all rows are equal, so that nothing can be like them."""
        return not len(self.energies)

    def chunks(self) -> Iterator[tuple[slice, Floats]]:
        """Rows, some at a time: which ones, and their centred coordinates."""
        for start in range(0, self.rows, _CHUNK_ROWS):
            part = slice(start, min(start + _CHUNK_ROWS, self.rows))
            yield part, self.coordinates[part].astype(np.float64) - self.offset


@dataclass(frozen=True)
class Similarity:
    """How alike two views are; NaN where one of them is constant.

    Attributes:
        cka: linear CKA, with the bias of small n.
        cka_floor: its mean over all permutations of the rows of one side.
        cka_debiased: the same from unbiased estimates; NaN for fewer than 4 rows.
        pwcca: CCA weighted by the first side.
        svcca: mean of the correlations.
        correlations: float64, canonical, descending.
    """

    cka: float
    cka_floor: float
    cka_debiased: float
    pwcca: float
    svcca: float
    correlations: Floats = field(repr=False)


def prepare_view(
    features: NDArray[np.floating], *, variance: float = VARIANCE, rows_per_component: int = ROWS_PER_COMPONENT
) -> View:
    """Centre a representation and find its principal components.

    Args:
        features: [n, D], finite; may be a memory-mapped file.
        variance: share of the variance that the components of CCA hold, at most 1 (all).
        rows_per_component: n over the number of components, at least; 0 for no such limit.

    Raises:
        ConfigError: not a matrix of at least two rows, or ``variance`` outside (0, 1].
        StoreError: a number that is not finite.
    """
    if features.ndim != 2 or features.shape[0] < 2 or features.shape[1] < 1:
        raise ConfigError(f"A representation to compare is [n, D] with n ≥ 2 utterances, not {list(features.shape)}.")
    if not 0 < variance <= 1:
        raise ConfigError(f"The share of variance that CCA keeps must lie above 0 and be at most 1, not {variance}.")
    rows, dim = features.shape
    mean = np.zeros(dim)
    for start in range(0, rows, _CHUNK_ROWS):
        part = features[start : start + _CHUNK_ROWS].astype(np.float64)
        if not np.isfinite(part).all():
            raise StoreError(
                f"A representation that is to be compared holds numbers that are not finite (first in row"
                f" {start + int(np.flatnonzero(~np.isfinite(part).all(axis=1))[0])}). Check its store with"
                " `hyfuse cache verify`."
            )
        mean += part.sum(axis=0)
    mean /= rows
    # Columns that carry nothing but rounding around a large mean are constant.
    floor = _RANK * max(float(np.square(mean).sum()) * rows * np.finfo(np.float32).eps, np.finfo(np.float64).tiny)
    small = rows <= dim
    if small:
        centred = features.astype(np.float64) - mean
        energies, left = np.linalg.eigh(centred @ centred.T)
    else:
        products = np.zeros((dim, dim))
        for start in range(0, rows, _CHUNK_ROWS):
            part = features[start : start + _CHUNK_ROWS].astype(np.float64) - mean
            products += part.T @ part
        energies, left = np.linalg.eigh(products)
    energies, left = energies[::-1], left[:, ::-1]
    rank = int((energies > max(_RANK * energies[0], floor)).sum())
    energies, left = energies[:rank], left[:, :rank]
    lengths = np.sqrt(energies)
    kept = _components(energies, rows, variance, rows_per_component)
    coordinates: NDArray[np.floating]
    if small:
        coordinates, offset = left * lengths, np.zeros(rank)
        whitening = np.eye(rank)[:, :kept] / lengths[:kept]
        loadings = left[:, :kept].T @ centred
        squared = np.square(coordinates).sum(axis=1)
    else:
        coordinates, offset = features, mean
        whitening = left[:, :kept] / lengths[:kept]
        loadings = lengths[:kept, None] * left[:, :kept].T
        squared = np.concatenate(
            [
                np.square(features[start : start + _CHUNK_ROWS].astype(np.float64) - mean).sum(axis=1)
                for start in range(0, rows, _CHUNK_ROWS)
            ]
        )
    return View(rows, dim, coordinates, offset, squared, energies, whitening, loadings)


def _components(energies: Floats, rows: int, variance: float, rows_per_component: int) -> int:
    if not len(energies):
        return 0
    share = np.cumsum(energies) / energies.sum()
    enough = len(energies) if variance == 1 else int(np.searchsorted(share, variance)) + 1
    most = max(1, rows // rows_per_component) if rows_per_component else len(energies)
    return min(enough, most, len(energies))


def compare_views(first: View, second: View) -> Similarity:
    """All measures at once, from one cross product.

    Args:
        first: the side that weights PWCCA.
        second: the other; the same utterances in the same order.

    Raises:
        ConfigError: another number of utterances.
    """
    _check_rows(first, second)
    if first.is_constant or second.is_constant:
        nothing = math.nan
        return Similarity(nothing, nothing, nothing, nothing, nothing, np.zeros(0))
    cross = np.zeros((len(first.offset), len(second.offset)))
    for (_, left), (_, right) in zip(first.chunks(), second.chunks(), strict=True):
        cross += left.T @ right
    own = [float(np.square(view.energies).sum()) for view in (first, second)]
    between = float(np.square(cross).sum())
    scale = math.sqrt(own[0] * own[1])
    traces = [float(view.squared_lengths.sum()) for view in (first, second)]
    correlations, weights = _canonical(first.whitening.T @ cross @ second.whitening, first.loadings)
    return Similarity(
        cka=between / scale,
        cka_floor=traces[0] * traces[1] / ((first.rows - 1) * scale),
        cka_debiased=_debiased(first, second, own, between),
        pwcca=float(weights @ correlations / weights.sum()),
        svcca=float(correlations.mean()),
        correlations=correlations,
    )


def _check_rows(first: View, second: View) -> None:
    if first.rows != second.rows:
        raise ConfigError(
            f"Representations of {first.rows} and of {second.rows} utterances cannot be compared; both must be of the same"
            " utterances in the same order."
        )


def _canonical(between: Floats, loadings: Floats) -> tuple[Floats, Floats]:
    """Correlations, and their weights by the first side, from products of orthonormal components."""
    directions, correlations, _ = np.linalg.svd(between, full_matrices=False)
    weights = np.abs(directions.T @ loadings).sum(axis=1)
    return np.minimum(correlations, 1.0), weights


def _debiased(first: View, second: View, own: list[float], between: float) -> float:
    """Debiased CKA; for centred rows, sums over the kernel without its diagonal need the rows' lengths alone."""
    if first.rows < 4:
        return math.nan
    n = first.rows

    def unbiased(product: float, one: View, other: View) -> float:
        """n (n - 3) times the estimate of Song et al.: the diagonal taken out of tr KL, of the sums and of the row sums."""
        both = float(one.squared_lengths @ other.squared_lengths)
        sums = float(one.squared_lengths.sum() * other.squared_lengths.sum())
        return product - both + sums / ((n - 1) * (n - 2)) - 2 * both / (n - 2)

    scale = unbiased(own[0], first, first) * unbiased(own[1], second, second)
    return unbiased(between, first, second) / math.sqrt(scale) if scale > 0 else math.nan


def permuted_pwcca(first: View, second: View, *, permutations: int = 20, seed: int = 0) -> Floats:
    """PWCCA of the first view with the second one's rows in random orders: what unrelated sides of this shape get.

    Args:
        first: the side that weights.
        second: the side whose rows are permuted.
        permutations: how many.
        seed: of the orders.

    Returns:
        float64 [permutations]; NaN where a view is constant.
    """
    _check_rows(first, second)
    if first.is_constant or second.is_constant:
        return np.full(permutations, math.nan)
    generator = np.random.default_rng(seed)
    left = np.concatenate([part @ first.whitening for _, part in first.chunks()])
    right = np.concatenate([part @ second.whitening for _, part in second.chunks()])
    found = np.empty(permutations)
    for index in range(permutations):
        correlations, weights = _canonical(left.T @ right[generator.permutation(first.rows)], first.loadings)
        found[index] = weights @ correlations / weights.sum()
    return found


# ---------------------------------------------------------------------------------------------------------------------
# For two matrices, without the cut to principal components


def linear_cka(first: NDArray[np.floating], second: NDArray[np.floating], *, debiased: bool = False) -> float:
    """Linear CKA of two matrices [n, D].

    Raises:
        ConfigError: another number of rows, or fewer than two.
        StoreError: a number that is not finite.
    """
    found = compare_views(prepare_view(first), prepare_view(second))
    return found.cka_debiased if debiased else found.cka


def canonical_correlations(first: NDArray[np.floating], second: NDArray[np.floating]) -> Floats:
    """All canonical correlations of two matrices [n, D], descending; as many as the smaller rank.

    Raises:
        ConfigError: so few rows that the correlations are 1 whatever the numbers.
        StoreError: a number that is not finite.
    """
    return _whole(first, second).correlations


def pwcca(first: NDArray[np.floating], second: NDArray[np.floating]) -> float:
    """PWCCA of two matrices [n, D], weighted by the first.

    Raises:
        ConfigError: so few rows that the correlations are 1 whatever the numbers.
        StoreError: a number that is not finite.
    """
    return _whole(first, second).pwcca


def _whole(first: NDArray[np.floating], second: NDArray[np.floating]) -> Similarity:
    views = [prepare_view(one, variance=1.0, rows_per_component=0) for one in (first, second)]
    ranks = [view.components for view in views]
    # Centred columns live in n - 1 dimensions; two subspaces of more in all must meet, and correlate by 1 there.
    if sum(ranks) > views[0].rows - 1:
        raise ConfigError(
            f"Canonical correlations of {ranks[0]} and {ranks[1]} dimensions from {views[0].rows} utterances say nothing: some are"
            " 1 whatever the numbers. Use more utterances, fewer dimensions (prepare_view cuts to principal components), or CKA."
        )
    return compare_views(*views)
