"""Trained heads, applied again; and the vector before the output layer of any head: an embedding of the utterance.

A head is a stack of functions with one output layer, ``classify``, whatever the fusion. What enters it is what a student may
learn to imitate, or what a picture of the space shows. Collecting it costs nothing where nobody asks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipelines.fusion.catalogue import build_head
from pipelines.training.layers import LayerMix
from pipelines.training.trainer import CHUNK_ROWS, SIDES, Scaler, TrainConfig, one_thread, stacked

__all__ = ["Trained", "apply_heads", "output_inputs", "output_layer"]


class Trained(Protocol):
    """A trained head, such as ``trainer.HeadResult``; its parameters are without the stack's dimension."""

    @property
    def parameters(self) -> dict[str, Tensor]: ...

    @property
    def left_scaler(self) -> Scaler: ...

    @property
    def right_scaler(self) -> Scaler | None: ...

    @property
    def target_scaler(self) -> Scaler | None: ...


def output_layer(head: nn.Module) -> nn.Module:
    """The last layer of a head, whatever the fusion: what comes before it is an embedding of the utterance.

    Args:
        head: of :func:`pipelines.fusion.catalogue.build_head`.
    """
    layer: nn.Module
    (layer,) = [module for name, module in head.named_modules() if name.split(".")[-1] == "classify"]
    return layer


@contextmanager
def output_inputs(head: nn.Module) -> Iterator[list[Tensor]]:
    """Collect what enters the output layer of a stack: one tensor [H, B, E] per forward pass, after dropout, with its graph.

    E is the width before the output layer: ``hidden_dim``, twice that for ``concat``, ``dense_dim`` where there is a dense layer.
    Heads in the ball give the tangent vector that their output layer sees (``classifier`` "dense") or the point ("mlr"). Nothing
    is done to heads, or costs time, outside of this context.

    Args:
        head: of :func:`pipelines.fusion.catalogue.build_head`.
    """
    seen: list[Tensor] = []
    handle = output_layer(head).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        yield seen
    finally:
        handle.remove()


@torch.no_grad()
def apply_heads(
    results: Sequence[Trained],
    *,
    fusion: str,
    options: Mapping[str, object],
    left: Tensor,
    right: Tensor | None,
    rows: NDArray[np.int64],
    config: TrainConfig,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """What trained heads give for any rows, with the vector that enters their output layer (see :func:`output_inputs`).

    Args:
        results: trained heads of one fusion; H of them.
        fusion: as they were trained.
        options: as they were trained.
        left: embeddings, [N, Dl] or [N, R, Dl] float32.
        right: embeddings, [N, Dr] or [N, R, Dr] float32; None for "single".
        rows: n row positions, the same for all heads.
        config: as they were trained.

    Returns:
        Logits [H, n, C], or values on the scale of the targets [H, n, K]; embeddings [H, n, E].
    """
    inputs = [left] if right is None else [left, right]
    named = {name: torch.stack([result.parameters[name] for result in results]) for name in results[0].parameters}
    outputs = named[next(name for name in named if name.split(".")[-2:] == ["classify", "weight"])].shape[2]
    head = build_head(
        fusion,
        left_dim=left.shape[-1],
        right_dim=None if right is None else right.shape[-1],
        num_classes=outputs,
        head_seeds=[0] * len(results),
        hidden_dim=config.hidden_dim,
        options=options,
    )
    mixes = {
        position: LayerMix(matrix.shape[1], head_count=len(results))
        for position, matrix in enumerate(inputs)
        if matrix.dim() == 3
    }
    for position, mix in mixes.items():
        head.add_module(f"{SIDES[position]}_mix", mix)
    head.load_state_dict(named)
    head.eval()
    found: list[Tensor] = []
    with one_thread(), output_inputs(head) as embeddings:
        for start in range(0, len(rows), CHUNK_ROWS):
            at = np.zeros(CHUNK_ROWS, dtype=np.int64)
            own = rows[start : start + CHUNK_ROWS]
            at[: len(own)] = own
            chunk = torch.from_numpy(at).expand(len(results), -1)
            gathered = []
            for position, matrix in enumerate(inputs):
                scalers = [result.right_scaler if position else result.left_scaler for result in results]
                mean = stacked([scaler.mean for scaler in scalers if scaler is not None])
                factor = stacked([scaler.std for scaler in scalers if scaler is not None]).reciprocal()
                if position in mixes:
                    gathered.append(mixes[position](matrix, chunk, mean, factor))
                else:
                    gathered.append(matrix[chunk].sub_(mean).mul_(factor))
            found.append(head(*gathered))
    joined, vectors = (torch.cat(parts, dim=1)[:, : len(rows)] for parts in (found, embeddings))
    targets = [result.target_scaler for result in results if result.target_scaler is not None]
    if targets:
        joined = joined * stacked([one.std for one in targets]) + stacked([one.mean for one in targets])
    return joined.numpy(), vectors.numpy()
