"""What the layers of an encoder are like: acoustic descriptors, each other, or the layers of another encoder or checkpoint.

Compared are the pooled embeddings of the same utterances, one vector each: what a head sees. Columns are brought to deviation 1
first (ours; descriptors have units, and a few columns of SSL layers would drown all others), unless ``raw`` is asked for layers.
Measures and their biases are those of :mod:`pipelines.evaluation.similarity`; of PWCCA, the weights are those of the descriptors,
and of the first encoder. Above :data:`MOST_ROWS` utterances that many are drawn.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import ConfigError, StoreError
from pipelines.evaluation.similarity import View, compare_views, permuted_pwcca, prepare_view
from pipelines.store.embeddings import EmbeddingStore

__all__ = ["MOST_ROWS", "Matrix", "between_layers", "column_groups", "drawn_rows", "layers_to_groups"]

Floats = NDArray[np.float64]

MOST_ROWS = 2000
"""Utterances that similarity is computed on unless asked otherwise."""

PERMUTATIONS = 20

Read = Callable[[int], NDArray[np.float32]]
"""Position of a layer to its embeddings [n, D]."""


@dataclass(frozen=True)
class Matrix:
    """Similarities of layers (rows) to groups, or to other layers (columns).

    Attributes:
        rows: names.
        columns: names.
        cka: float64 [rows, columns], debiased linear CKA.
        pwcca: float64 [rows, columns].
        unrelated: float64 [rows, columns], mean PWCCA of permuted rows.
        utterances: n.
        constant: columns without any variation, whose similarities are NaN.
    """

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    cka: Floats = field(repr=False)
    pwcca: Floats = field(repr=False)
    unrelated: Floats = field(repr=False)
    utterances: int
    constant: tuple[str, ...] = ()


def drawn_rows(count: int, most: int, *, seed: int = 0) -> NDArray[np.int64]:
    """Positions of at most ``most`` of ``count`` utterances, in order; all for 0."""
    if not most or count <= most:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).choice(count, size=most, replace=False))


def column_groups(store: EmbeddingStore) -> dict[str, list[int]]:
    """Group to columns of a store of descriptors, in the order of the store.

    Raises:
        ConfigError: its columns have no names.
    """
    made = store.provenance
    if not made.columns:
        raise ConfigError(
            f"The columns of {made.encoder!r} have no names, so it cannot describe layers. --descriptors must be one or more of"
            " 'descriptors' and 'egemaps' (`hyfuse extract --model descriptors`), or 'none'."
        )
    if len(made.columns) != made.dim:
        raise StoreError(
            f"{store.path} names {len(made.columns)} columns but holds {made.dim}. It is damaged: remove it with `hyfuse cache"
            " remove` and extract again."
        )
    groups: dict[str, list[int]] = {}
    for position, name in enumerate(made.columns):
        groups.setdefault(name.partition(":")[0], []).append(position)
    return groups


def _scaled(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Columns of deviation 1; constant ones are 0."""
    mean = features.mean(axis=0, dtype=np.float64)
    deviation = features.std(axis=0, dtype=np.float64)
    varies = deviation > 1e-6 * np.abs(mean)
    scaled = (features - mean) / np.where(varies, deviation, 1.0) * varies
    return np.asarray(scaled, dtype=np.float32)


def layers_to_groups(
    read: Read,
    layers: Sequence[str],
    groups: Mapping[str, NDArray[np.float32]],
    *,
    raw: bool = False,
    done: Callable[[str], None] = lambda name: None,
) -> Matrix:
    """Similarity of every layer to every group of descriptors.

    Args:
        read: position of a layer to its embeddings [n, D].
        layers: R names.
        groups: name to descriptors [n, columns] of the same utterances.
        raw: whether layers keep the scale of their columns.
        done: told of every layer that is finished.
    """
    views = {name: prepare_view(_scaled(features)) for name, features in groups.items()}
    found = np.full((3, len(layers), len(views)), math.nan)
    rows = 0
    for position, name in enumerate(layers):
        features = read(position)
        layer = prepare_view(features if raw else _scaled(features))
        rows = layer.rows
        for column, view in enumerate(views.values()):
            found[:, position, column] = _compared(view, layer, seed=column)
        done(name)
    constant = tuple(name for name, view in views.items() if view.is_constant)
    return Matrix(tuple(layers), tuple(groups), found[0], found[1], found[2], rows, constant)


def between_layers(
    first: Read,
    first_layers: Sequence[str],
    second: Read | None,
    second_layers: Sequence[str],
    *,
    raw: bool = False,
    done: Callable[[str], None] = lambda name: None,
) -> Matrix:
    """Similarity of every layer of one encoder to every layer of another, or of itself.

    Args:
        first: position of a layer to its embeddings [n, D].
        first_layers: names.
        second: the same of the other encoder, for the same utterances; None for the first one itself.
        second_layers: names.
        raw: whether layers keep the scale of their columns.
        done: told of every layer that is finished.
    """

    def views(read: Read, names: Sequence[str]) -> list[View]:
        return [prepare_view(read(at) if raw else _scaled(read(at))) for at in range(len(names))]

    others = views(second or first, second_layers)
    found = np.full((3, len(first_layers), len(others)), math.nan)
    rows = others[0].rows
    for position, name in enumerate(first_layers):
        if second is None:
            layer = others[position]
        else:
            features = first(position)
            layer = prepare_view(features if raw else _scaled(features))
        for column, other in enumerate(others):
            found[:, position, column] = _compared(layer, other, seed=column)
        done(name)
    return Matrix(tuple(first_layers), tuple(second_layers), found[0], found[1], found[2], rows)


def _compared(weighting: View, other: View, *, seed: int) -> tuple[float, float, float]:
    """Debiased CKA, PWCCA weighted by the first, and PWCCA of permuted rows."""
    similarity = compare_views(weighting, other)
    permuted = permuted_pwcca(weighting, other, permutations=PERMUTATIONS, seed=seed)
    return similarity.cka_debiased, similarity.pwcca, float(permuted.mean())
