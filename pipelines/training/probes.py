"""Linear probes of many layers at once: what a line can read out of each layer, and which layer a training part would choose.

A probe is logistic regression for emotions (the objective of :mod:`pipelines.training.logistic`: C Σ CE + |W|² / 2, C = 0.1), or
ridge regression, for dimensions and, as least squares on class indicators, also for emotions. Features are standardised on the rows
that are fitted. Nothing in a probe is random, so there is one per fold.

**Nested.** The rows a fold may fit (its training and validation part) are divided by speakers into up to four inner parts; each is
predicted by a probe of the others. These inner predictions alone decide on the strength of the ridge (:data:`STRENGTHS`, per layer,
fold and dimension), on the scale of its predictions and, in the study, on the best layer of the fold. Test rows are looked at once.

**Scale.** Ridge regression is cautious: its predictions vary less than the values, which costs concordance (of a prediction with
correlation r and variance r² σ², CCC is 2 r² / (1 + r²), below r). They are therefore stretched to the mean and spread of the
fitted values, by the mean and spread that the inner predictions have, as challenges on dimensional emotion do.

**Cost.** With n rows and D features, a fit costs min(n, D) n D: rows are turned into min(n, D) coordinates that have the same inner
products, in which the same probe has the same predictions. All strengths of a ridge come from one decomposition. Layers are
independent; ``threads`` of them are worked on together, each with BLAS on one thread, so that their number changes no bit.
``docs/layers.md`` has the times.

Memory: the matrix of one layer per thread, a standardised float64 copy of it, and min(n, D)² numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pipelines.corpora.protocols import Fold
from pipelines.errors import ConfigError, ProtocolError
from pipelines.training.logistic import PENALTY_C

__all__ = ["INNER_PARTS", "PROBES", "STRENGTHS", "LayerProbes", "ProbeTarget", "inner_parts", "probe_layers"]

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]

PROBES = ("logistic", "ridge")
"""Kinds; ``logistic`` is for emotions only."""

INNER_PARTS = 4
"""Parts that the speakers of a training part are divided into, at most."""

STRENGTHS = (0.01, 0.1, 0.3, 1.0, 3.0, 10.0, 100.0)
"""Strengths of a ridge that are tried: |W|² over the sum of squared errors, in units of the number of features."""

_MOST_ITERATIONS = 500


@dataclass(frozen=True)
class ProbeTarget:
    """What is read out.

    Attributes:
        values: float64 [n, K]: dimensions on their own scale, or for emotions 1 in the column of the class and 0 elsewhere.
        is_classes: whether the columns are classes.
    """

    values: Floats = field(repr=False)
    is_classes: bool

    @classmethod
    def of_labels(cls, labels: NDArray[np.int64], num_classes: int) -> ProbeTarget:
        """Emotions, from positions among C classes, int64 [n]."""
        return cls(np.eye(num_classes)[labels], True)


@dataclass(frozen=True)
class LayerProbes:
    """What the probes of one layer said.

    Attributes:
        test: float64 [n, K]: of every tested row, values on the target's own scale, or for emotions scores whose largest is the
            prediction (probabilities if logistic); NaN where no fold tests.
        inner: per fold, float64 [m, K]: the same for the fitted rows, each by a probe that has not seen its speaker.
        strengths: float64 [F, K], of the ridge; NaN for logistic.
    """

    test: Floats = field(repr=False)
    inner: tuple[Floats, ...] = field(repr=False)
    strengths: Floats = field(repr=False)


def inner_parts(rows: Rows, speakers: Sequence[str], *, parts: int = INNER_PARTS) -> list[Rows]:
    """Divide rows by speaker: the speakers with most rows first, each to the part that has fewest.

    Args:
        rows: int64 [m], positions.
        speakers: n speakers, of all positions.
        parts: at most so many.

    Returns:
        Positions within ``rows``, one list per part; no speaker is in two.

    Raises:
        ProtocolError: a single speaker, so nothing can be held out.
    """
    names, speaker, counts = np.unique(np.asarray(speakers, dtype=str)[rows], return_inverse=True, return_counts=True)
    if len(names) < 2:
        raise ProtocolError(
            f"A fold trains on one speaker only ({names[0] if len(names) else 'none'}), but choosing a layer or a strength needs at"
            " least two, one of them held out. Choose another --protocol."
        )
    part_of = np.zeros(len(names), dtype=np.int64)
    sizes = np.zeros(min(parts, len(names)), dtype=np.int64)
    for name in np.argsort(-counts, kind="stable"):
        part_of[name] = sizes.argmin()
        sizes[part_of[name]] += counts[name]
    return [np.flatnonzero(part_of[speaker] == part) for part in range(len(sizes))]


def probe_layers(
    read: Callable[[int], NDArray[np.float32]],
    layers: int,
    *,
    target: ProbeTarget,
    folds: Sequence[Fold],
    speakers: Sequence[str],
    kind: str,
    threads: int = 1,
) -> Iterator[LayerProbes]:
    """Fit and test probes on every layer, and yield what they said layer by layer.

    Args:
        read: position of a layer to its embeddings, float32 [n, D].
        layers: how many there are.
        target: what is read out.
        folds: on which rows; training and validation part are fitted.
        speakers: n speakers.
        kind: one of :data:`PROBES`.
        threads: layers at a time.

    Raises:
        ConfigError: no such kind, or ``logistic`` for dimensions.
        ProtocolError: a fold trains on a single speaker.
    """
    if kind not in PROBES:
        raise ConfigError(f"--probe must be one of {', '.join(PROBES)} or head, not {kind!r}.")
    if kind == "logistic" and not target.is_classes:
        raise ConfigError("--probe logistic reads out classes; for --target dimensions use --probe ridge or head.")
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    fitted = [np.sort(np.concatenate([fold.train, fold.validation])) for fold in folds]
    parts = [inner_parts(rows, speakers) for rows in fitted]

    def work(layer: int) -> LayerProbes:
        features = read(layer)
        return _probe(features, target, folds, fitted, parts, kind)

    with threadpool_limits(1), ThreadPoolExecutor(max_workers=max(1, threads)) as pool:
        # One after the other into the pool, so that no more layers are in memory than are worked on.
        waiting = [pool.submit(work, layer) for layer in range(min(layers, max(1, threads)))]
        for following in range(len(waiting), layers + len(waiting)):
            done = waiting.pop(0).result()
            if following < layers:
                waiting.append(pool.submit(work, following))
            yield done


def _probe(
    features: NDArray[np.float32],
    target: ProbeTarget,
    folds: Sequence[Fold],
    fitted: Sequence[Rows],
    parts: Sequence[Sequence[Rows]],
    kind: str,
) -> LayerProbes:
    """One layer."""
    columns = target.values.shape[1]
    test = np.full((len(features), columns), np.nan)
    inner: list[Floats] = []
    strengths = np.full((len(folds), columns), np.nan)
    for index, (fold, rows, held_out) in enumerate(zip(folds, fitted, parts, strict=True)):
        if kind == "logistic":
            said = np.zeros((len(rows), columns))
            for part in held_out:
                others = np.delete(rows, part)
                said[part] = _logistic(features[others], target.values[others], features[rows[part]])
            inner.append(said)
            test[fold.test] = _logistic(features[rows], target.values[rows], features[fold.test])
            continue
        path = np.zeros((len(STRENGTHS), len(rows), columns))
        for part in held_out:
            others = np.delete(rows, part)
            path[:, part] = _ridge_path(features[others], target.values[others], features[rows[part]])
        errors = np.square(path - target.values[rows]).mean(axis=1)  # errors is [strengths, K]
        # All classes of a classifier share one strength.
        best = np.full(columns, errors.mean(axis=1).argmin()) if target.is_classes else errors.argmin(axis=0)
        strengths[index] = np.array(STRENGTHS)[best]
        outer = _ridge_path(features[rows], target.values[rows], features[fold.test])
        column = np.arange(columns)
        chosen, said = path[best, :, column].T, outer[best, :, column].T  # [m, K] each
        if target.is_classes:
            inner.append(chosen)
            test[fold.test] = said
            continue
        own = target.values[rows]
        spread = chosen.std(axis=0)
        scale = np.divide(own.std(axis=0), spread, out=np.ones(columns), where=spread > 1e-9 * own.std(axis=0))
        inner.append(own.mean(axis=0) + (chosen - chosen.mean(axis=0)) * scale)
        test[fold.test] = own.mean(axis=0) + (said - chosen.mean(axis=0)) * scale
    return LayerProbes(test, tuple(inner), strengths)


def _standardised(fit: NDArray[np.float32], other: NDArray[np.float32]) -> tuple[Floats, Floats]:
    """Both, by mean and deviation of the first; constant columns are left as they are, like the heads' scaler."""
    mean = fit.mean(axis=0, dtype=np.float64)
    deviation = fit.std(axis=0, dtype=np.float64)
    deviation = np.where(deviation > 1e-6 * np.abs(mean), deviation, 1.0)
    return (fit - mean) / deviation, (other - mean) / deviation


def _ridge_path(fit: NDArray[np.float32], values: Floats, other: NDArray[np.float32]) -> Floats:
    """Predictions [strengths, m, K] for other rows [m, D] by ridge regression with an intercept on rows [n, D], values [n, K]."""
    z, z_other = _standardised(fit, other)
    rows, dim = z.shape
    centre = values.mean(axis=0)
    if rows <= dim:
        energies, left = np.linalg.eigh(z @ z.T)
        onto, right = (z_other @ z.T) @ left, left.T @ (values - centre)
    else:
        energies, basis = np.linalg.eigh(z.T @ z)
        onto, right = z_other @ basis, basis.T @ (z.T @ (values - centre))
    shrunk = [onto @ (right / (np.maximum(energies, 0.0) + strength * dim)[:, None]) for strength in STRENGTHS]
    path: Floats = centre + np.stack(shrunk)
    return path


def _logistic(fit: NDArray[np.float32], indicators: Floats, other: NDArray[np.float32]) -> Floats:
    """Probabilities [m, C] of other rows [m, D] by logistic regression on rows [n, D] with class indicators [n, C].

    Classes that no fitted row has get probability 0.
    """
    from scipy.linalg import solve_triangular
    from scipy.optimize import minimize

    z, z_other = _standardised(fit, other)
    rows, dim = z.shape
    if rows < dim:
        # Rows of a triangular matrix with the same inner products: z and z_other seen from the span of z.
        products = z @ z.T
        products[np.diag_indices(rows)] += 1e-9 * np.trace(products) / rows
        seen = z @ z_other.T
        z = np.asarray(np.linalg.cholesky(products), dtype=np.float64)
        z_other = solve_triangular(z, seen, lower=True).T
    present = np.flatnonzero(indicators.any(axis=0))
    truth = indicators[:, present]
    width, count = z.shape[1], len(present)

    def objective(flat: Floats) -> tuple[float, Floats]:
        weight, bias = flat[: width * count].reshape(width, count), flat[width * count :]
        logits = z @ weight + bias
        logits -= logits.max(axis=1, keepdims=True)
        sums = np.exp(logits).sum(axis=1, keepdims=True)
        loss = PENALTY_C * float(np.log(sums).sum() - (logits * truth).sum()) + float(np.square(weight).sum()) / 2
        error = PENALTY_C * (np.exp(logits) / sums - truth)
        gradient = np.concatenate([(z.T @ error + weight).ravel(), error.sum(axis=0)])
        # In units of the sum over rows: the tolerance below is scikit-learn's.
        return loss / (PENALTY_C * rows), gradient / (PENALTY_C * rows)

    found = minimize(
        objective,
        np.zeros(width * count + count),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": _MOST_ITERATIONS, "gtol": 1e-4, "ftol": 1e-10, "maxls": 50},
    ).x
    logits = z_other @ found[: width * count].reshape(width, count) + found[width * count :]
    logits -= logits.max(axis=1, keepdims=True)
    probabilities = np.zeros((len(other), indicators.shape[1]))
    probabilities[:, present] = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return probabilities
