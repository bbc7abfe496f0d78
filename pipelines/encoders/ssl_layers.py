"""The transformer layers of the wav2vec2-like encoders, one at a time, with attention of our own.

transformers' layers are run here instead of through their model's ``forward``: one layer is handed out before the next is made,
no frame beyond a clip is a key, and attention goes through torch's fused ``scaled_dot_product_attention`` where transformers may
compute and average every attention weight. WavLM adds a bias to its scores (``wavlm.py``); all others have none.

The residual stream, all normalisations, softmax and the bias are float32 in either precision; in bf16 the linear layers and the
products of attention are bfloat16. Memory for scores and biases, [B, heads, T, T] at first sight, is bounded by going through the
queries in runs; their number depends on the shape of the batch alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["BatchFrames", "PositionBias", "run_layers"]

_SCORES = {"cpu": 8 * 2**20, "cuda": 256 * 2**20}
"""Scores, or biases, that are in memory at a time: 32 MiB in float32 on the CPU, 512 MiB in bf16 on a GPU. With 12 heads one run
of queries holds all of a batch of 16 s or, on a GPU, of 128 s."""

_CACHED_SCORES = 2**20
"""Scores per run in bf16 on the CPU, which go through the cache several times."""


@dataclass(frozen=True)
class BatchFrames:
    """Which frames of a padded batch belong to its clips.

    Attributes:
        counts: frames of every clip, known on the host: nothing has to wait for the device.
        valid: bool [B, T] on the device.
    """

    counts: Sequence[int]
    valid: Tensor

    @property
    def equal(self) -> bool:
        """Whether no clip is padded."""
        return min(self.counts) == self.valid.shape[1]


class PositionBias(Protocol):
    """What is added to the scores of attention: a bias per head and pair of frames times a gate per head and query.

    Attributes:
        windows: float32 [heads, T, T]; row r holds the biases of query T - 1 - r to keys 0 to T - 1. Queries descend because the
            bias depends on key minus query alone: the rows are then overlapping pieces of one short vector, and take no memory.
    """

    windows: Tensor

    def gate(self, attention: Any, hidden: Tensor) -> Tensor:
        """Float32 [B, heads, T, 1], from the layer's float32 input [B, T, D]."""


def run_layers(
    model: Any, hidden: Tensor, frames: BatchFrames, *, dtype: torch.dtype, bias: PositionBias | None
) -> Iterator[Tensor]:
    """The input of the first layer, then the output of every layer.

    Args:
        model: a model of the family.
        hidden: float32 [B, T, D] of ``FrontEnd.embed``.
        frames: which frames belong to the clips.
        dtype: of the linear layers.
        bias: what is added to the scores of attention, if anything.

    Yields:
        float32 [B, T, D], finite everywhere; never written over.
    """
    encoder = model.encoder
    layer_norm_first = getattr(model.config, "do_stable_layer_norm", False)
    if not layer_norm_first:
        hidden = encoder.layer_norm(hidden)
    yield hidden
    attend = _Attention(frames, bias, dtype)
    for index, layer in enumerate(encoder.layers, start=1):
        if layer_norm_first:
            hidden = hidden + attend(layer.attention, layer.layer_norm(hidden))
            hidden = hidden + layer.feed_forward(layer.final_layer_norm(hidden).to(dtype))
            if getattr(layer, "adapter_layer", None) is not None:
                hidden = hidden + layer.adapter_layer(hidden)
            yield encoder.layer_norm(hidden) if index == len(encoder.layers) else hidden
        else:
            hidden = layer.layer_norm(hidden + attend(layer.attention, hidden))
            hidden = layer.final_layer_norm(hidden + layer.feed_forward(hidden.to(dtype)))
            yield hidden


class _Attention:
    """Self-attention for the layers of one pass over one batch."""

    def __init__(self, frames: BatchFrames, bias: PositionBias | None, dtype: torch.dtype) -> None:
        self._frames = frames
        self._bias = bias
        self._dtype = dtype
        self._no_key: Tensor | None = None  # [B, 1, 1, T], 0 for the clip's frames and -inf beyond them
        if not frames.equal:
            zeros = torch.zeros_like(frames.valid, dtype=torch.float32)
            self._no_key = zeros.masked_fill_(~frames.valid, -torch.inf)[:, None, None]
        self._mask: Tensor | None = None

    def __call__(self, attention: Any, hidden: Tensor) -> Tensor:
        """transformers' attention module, applied to its float32 input [B, T, D]; [B, T, D] in the dtype of its layers."""
        batch, length, dim = hidden.shape
        split = (batch, length, attention.num_heads, attention.head_dim)
        inputs = hidden.to(self._dtype)
        query, key, value = (
            projection(inputs).view(split).transpose(1, 2)
            for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
        )  # [B, heads, T, D / heads]
        gate = None if self._bias is None else self._bias.gate(attention, hidden)
        if _takes_clips_alone(query):
            attended = self._clip_by_clip(query, key, value, gate)
        elif gate is None or self._bias is None:
            mask = None if self._no_key is None else self._no_key.to(self._dtype)
            attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        else:
            attended = self._biased(query, key, value, gate, self._bias.windows)
        return attention.out_proj(attended.transpose(1, 2).reshape(batch, length, dim))  # type: ignore[no-any-return]

    def _biased(self, query: Tensor, key: Tensor, value: Tensor, gate: Tensor, windows: Tensor) -> Tensor:
        """Fused attention with the bias as its mask, from the last query to the first."""
        batch, heads, length, _ = query.shape
        run = min(length, max(1, _SCORES.get(query.device.type, _SCORES["cpu"]) // (batch * heads * length)))
        if self._mask is None:
            # One buffer for all runs and layers. CUDA's kernels want rows of whole 16 elements and would copy others.
            self._mask = query.new_empty(batch, heads, run, -(-length // 16) * 16)
        query, gate = query.flip(2), gate.flip(2)
        parts = []
        for start in range(0, length, run):
            stop = min(length, start + run)
            mask = self._mask[:, :, : stop - start, :length]
            if self._no_key is None:
                torch.mul(gate[:, :, start:stop], windows[:, start:stop], out=mask)
            else:
                torch.addcmul(self._no_key, gate[:, :, start:stop], windows[:, start:stop], out=mask)
            parts.append(F.scaled_dot_product_attention(query[:, :, start:stop], key, value, attn_mask=mask))
        return (parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)).flip(2)

    def _clip_by_clip(self, query: Tensor, key: Tensor, value: Tensor, gate: Tensor | None) -> Tensor:
        """Attention in bf16 on the CPU: plain products and softmax, over each clip's own frames.

        torch's fused attention is no faster in bf16 than in float32 there, 5.3 ms against 4.7 for 5 clips of 3 s (12 heads, a
        mask, one core); this takes 2.1 ms. Products are rounded to bfloat16 before the bias is added; the rest is float32.
        """
        batch, heads, length, dim = query.shape
        query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
        windows = None
        if gate is not None and self._bias is not None:
            windows, query, gate = self._bias.windows, query.flip(2), gate.flip(2)
        attended = query.new_zeros(batch, length, heads, dim).transpose(1, 2)
        for row, count in enumerate(self._frames.counts):
            keys, values = key[row, :, :count].transpose(1, 2), value[row, :, :count]
            first = 0 if windows is None else length - count
            run = min(count, max(1, _CACHED_SCORES // (heads * count)))
            for start in range(first, first + count, run):
                queries = slice(start, min(first + count, start + run))
                products = torch.bmm(query[row, :, queries], keys)  # [heads, run, count]
                if windows is None or gate is None:
                    scores = products.float().mul_(dim**-0.5)
                else:
                    # Into a tensor of its own: torch would lay the result out like the overlapping rows.
                    scores = torch.empty(products.shape)
                    torch.mul(gate[row, :, queries], windows[:, queries, :count], out=scores)
                    scores.add_(products, alpha=dim**-0.5)
                weights = torch.softmax(scores, dim=-1).to(value.dtype)
                attended[row, :, queries] = torch.bmm(weights, values)
        return attended if windows is None else attended.flip(2)


def _takes_clips_alone(query: Tensor) -> bool:
    return query.device.type == "cpu" and query.dtype == torch.bfloat16
