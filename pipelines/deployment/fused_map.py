"""Where a model's first head puts utterances, in two dimensions: a map of its training utterances on which recordings are placed.

Heads in the ball: the fused points, as in the report (``reports.spaces``). Their logarithms at the origin are projected on the two
directions of greatest variance among training utterances, found without labels. A point's distance from the origin is kept exactly;
its angle is that of the two directions. Drawn in the unit disk, coordinates times sqrt(c).

Other heads have no ball: what is drawn is the vector that enters their output layer, centred, on the first two principal components
of the training utterances, in units of the 95th percentile of their lengths.

The axes are those of the training utterances for good, so that the same recording is always at the same place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipelines.fusion.catalogue import fusion_spec
from pipelines.reports.spaces import fused_points
from pipelines.training.applied import Trained, apply_heads
from pipelines.training.trainer import TrainConfig

__all__ = ["MOST_POINTS", "FusedMap", "draw_map", "in_ball", "place"]

MOST_POINTS = 300
"""Training utterances on a map, at most, the same share of every class."""


@dataclass(frozen=True, eq=False)
class FusedMap:
    """A map of a head's training utterances.

    Attributes:
        kind: ``ball`` or ``plane``.
        scale: length that is drawn as 1; 1 in the ball.
        share: of the squared lengths (centred in the plane), how much lies in the two directions.
        centre: float32 [E]; zeros in the ball.
        axes: float32 [E, 2].
        points: float32 [n, 2], of some training utterances.
        labels: int64 [n], positions in the classes; -1 where the target is dimensions.
    """

    kind: str
    scale: float
    share: float
    centre: Tensor = field(repr=False)
    axes: Tensor = field(repr=False)
    points: Tensor = field(repr=False)
    labels: Tensor = field(repr=False)


def in_ball(fusion: str) -> bool:
    """Whether a head fuses in the Poincaré ball."""
    return "curvature" in fusion_spec(fusion).options


def draw_map(
    head: Trained,
    *,
    fusion: str,
    options: Mapping[str, object],
    inputs: Sequence[Tensor],
    rows: NDArray[np.int64],
    labels: NDArray[np.int64],
    config: TrainConfig,
    outputs: int,
) -> FusedMap:
    """Draw a map.

    Args:
        head: trained.
        fusion: as it was trained.
        options: as it was trained.
        inputs: embeddings, left and maybe right, [N, D] or [N, R, D].
        rows: what it was trained on.
        labels: int64 [N].
        config: as it was trained.
        outputs: C or K.
    """
    chosen = rows
    if len(rows) > MOST_POINTS:
        by_class = rows[np.argsort(labels[rows], kind="stable")]
        chosen = np.sort(by_class[(np.arange(MOST_POINTS) * (len(rows) / MOST_POINTS)).astype(np.int64)])
    vectors = _vectors(head, fusion, options, [matrix[torch.from_numpy(chosen)] for matrix in inputs], config, outputs)
    ball = in_ball(fusion)
    mean = vectors.mean(axis=0)
    _, _, directions = np.linalg.svd(vectors - mean, full_matrices=False)
    axes = np.zeros((vectors.shape[1], 2))
    axes[:, : min(2, len(directions))] = directions[:2].T
    signs = np.sign(axes[np.abs(axes).argmax(axis=0), [0, 1]])
    axes *= np.where(signs == 0, 1.0, signs)  # the same picture on every machine
    moved = vectors if ball else vectors - mean
    whole = float((moved**2).sum())
    lengths = np.linalg.norm(moved @ axes, axis=1)
    drawn = FusedMap(
        kind="ball" if ball else "plane",
        scale=1.0 if ball else float(np.quantile(lengths, 0.95)) or 1.0,
        share=float((lengths**2).sum()) / whole if whole else 1.0,
        centre=torch.from_numpy(np.zeros_like(mean) if ball else mean).float(),
        axes=torch.from_numpy(axes).float(),
        points=torch.zeros(0, 2),
        labels=torch.from_numpy(labels[chosen]),
    )
    return FusedMap(**{**vars(drawn), "points": torch.from_numpy(_project(drawn, vectors)).float()})


def place(
    drawn: FusedMap,
    head: Trained,
    *,
    fusion: str,
    options: Mapping[str, object],
    inputs: Sequence[Tensor],
    config: TrainConfig,
    outputs: int,
) -> NDArray[np.float64]:
    """Where a head puts recordings on its map.

    Args:
        drawn: the map.
        head: that it was drawn by.
        fusion: as it was trained.
        options: as it was trained.
        inputs: features of n recordings, left and maybe right.
        config: as it was trained.
        outputs: C or K.

    Returns:
        Points [n, 2]; in the ball, of lengths below 1.
    """
    return _project(drawn, _vectors(head, fusion, options, inputs, config, outputs))


def _project(drawn: FusedMap, vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    moved = vectors - drawn.centre.double().numpy()
    flat = moved @ drawn.axes.double().numpy()
    if drawn.kind != "ball":
        scaled: NDArray[np.float64] = flat / drawn.scale
        return scaled
    length, reach = (np.linalg.norm(rows, axis=1, keepdims=True) for rows in (flat, moved))
    points: NDArray[np.float64] = np.divide(flat, length, out=np.zeros_like(flat), where=length > 0) * np.tanh(reach)
    return points


def _vectors(
    head: Trained,
    fusion: str,
    options: Mapping[str, object],
    inputs: Sequence[Tensor],
    config: TrainConfig,
    outputs: int,
) -> NDArray[np.float64]:
    """[n, E]: logarithms of the fused points at the origin, times sqrt(c), or what enters the output layer."""
    rows = np.arange(len(inputs[0]))
    if not in_ball(fusion):
        right = inputs[1] if len(inputs) == 2 else None
        _, vectors = apply_heads(
            [head], fusion=fusion, options=options, left=inputs[0], right=right, rows=rows, config=config
        )
        entering: NDArray[np.float64] = vectors[0].astype(np.float64)
        return entering
    # What the report asks for a job of the grid and its result, told by hand.
    job = SimpleNamespace(
        config=config,
        cell=SimpleNamespace(fusion=fusion),
        classes=range(outputs),
        dimensions=(),
        description={"options": dict(options)},
    )
    result = SimpleNamespace(
        task=SimpleNamespace(test=rows),
        parameters=head.parameters,
        left_scaler=head.left_scaler,
        right_scaler=head.right_scaler,
    )
    points, c = fused_points(job, result, inputs)
    scaled = points * np.sqrt(c)
    norm: Any = np.linalg.norm(scaled, axis=1, keepdims=True)
    reach = np.arctanh(np.minimum(norm, 1.0 - 1e-9))
    tangent: NDArray[np.float64] = scaled * np.divide(reach, norm, out=np.ones_like(norm), where=norm > 0)
    return tangent
