"""Sequences of any length side by side, and what is done to them so that none feels the others.

A batch of sequences is padded to the longest, [B, T, D], with a mask [B, T] of the frames that are there. Every function
here gives a sequence of a batch what it would get alone, to float32's rounding (1e-5 relative, tests): padding is a key
for no query, counts in no mean, and is never looked at, so it may hold anything but NaN. A sequence has at least one frame.

Unlike the heads on pooled embeddings (``fusion/stacked.py``), these are not stacked: a stack would need the memory of a
batch's frames once per head, and a product over some thousand frames keeps a core busy without company.

Attention is that of Vaswani et al. 2017 (arXiv 1706.03762, eq. 1 and section 3.2.2), as ``torch.nn.MultiheadAttention``,
against which it is tested. Dropout is on what attention adds to a sequence, not on its weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipelines.errors import ConfigError

__all__ = [
    "Attention",
    "Classifier",
    "CoAttention",
    "Frames",
    "SelfAttentionLayer",
    "joined",
    "positions",
    "statistics_pool",
]

_SMALLEST_VARIANCE = 1e-5  # added before the root, whose slope at 0 is infinite: a single frame has no spread


class Frames(NamedTuple):
    """A batch of sequences.

    Attributes:
        values: float32 [B, T, D]; beyond a sequence anything finite.
        valid: bool [B, T], the frames that are there: the first of every row, at least one.
    """

    values: Tensor
    valid: Tensor

    @classmethod
    def of(cls, sequences: Sequence[Tensor]) -> Frames:
        """Pad B sequences [T, D] with zeros."""
        lengths = torch.tensor([len(one) for one in sequences])
        values = torch.nn.utils.rnn.pad_sequence(list(sequences), batch_first=True)
        return cls(values, torch.arange(values.shape[1])[None] < lengths[:, None])


def joined(parts: Sequence[Frames]) -> Frames:
    """Sequences laid one after the other along time; the mask then has holes, which attention and pooling allow."""
    return Frames(torch.cat([part.values for part in parts], dim=1), torch.cat([part.valid for part in parts], dim=1))


def statistics_pool(frames: Frames) -> Tensor:
    """Mean and standard deviation (biased) over the frames that are there: [B, T, D] to [B, 2 D]."""
    valid = frames.valid[..., None]
    count = valid.sum(dim=1)  # [B, 1]
    mean = frames.values.masked_fill(~valid, 0.0).sum(dim=1) / count
    variance = (frames.values - mean[:, None]).masked_fill(~valid, 0.0).square().sum(dim=1) / count
    return torch.cat([mean, (variance + _SMALLEST_VARIANCE).sqrt()], dim=-1)


def positions(length: int, dim: int, device: torch.device) -> Tensor:
    """Sines and cosines of the position, [T, D] (Vaswani et al. 2017, section 3.5)."""
    frequency = torch.exp(torch.arange(0, dim, 2, device=device) * (-math.log(10000.0) / dim))
    angle = torch.arange(length, device=device)[:, None] * frequency  # [T, D / 2]
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)[:, :dim]


class Attention(nn.Module):
    """Multi-head attention of queries to the frames of a memory.

    Args:
        dim: D.
        attention_heads: A, the number of parallel attentions; divides D.

    Raises:
        ConfigError: D cannot be divided into A equal parts.
    """

    def __init__(self, dim: int, *, attention_heads: int) -> None:
        super().__init__()
        if attention_heads < 1 or dim % attention_heads:
            raise ConfigError(
                f"The hidden dimension {dim} cannot be divided into {attention_heads} attention heads of equal width. Choose"
                " --attention-heads so that it divides --hidden-dim."
            )
        self.attention_heads = attention_heads
        self.query, self.key, self.value, self.join = (nn.Linear(dim, dim) for _ in range(4))

    def forward(self, queries: Tensor, memory: Frames) -> Tensor:
        """[B, Q, D] looking at [B, T, D]: [B, Q, D]."""
        query, key, value = (
            one.unflatten(-1, (self.attention_heads, -1)).transpose(1, 2)
            for one in (self.query(queries), self.key(memory.values), self.value(memory.values))
        )  # each [B, A, Q or T, D / A]
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=memory.valid[:, None, None])
        attended: Tensor = self.join(mixed.transpose(1, 2).flatten(2))
        return attended


class CoAttention(nn.Module):
    """Two sequences that look at each other: each gets what one shared attention finds in the other, residual and normalised.

    left' = LN_l(left + attention(left, right)), right' = LN_r(right + attention(right, left)). One attention serves both
    directions, as in the first author's later public code (``facts/papers.md``, 3).

    Args:
        dim: D.
        attention_heads: parallel attentions.
        dropout: share dropped of what attention adds, in training.
    """

    def __init__(self, dim: int, *, attention_heads: int, dropout: float) -> None:
        super().__init__()
        self.attention = Attention(dim, attention_heads=attention_heads)
        self.left_norm, self.right_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.drop = nn.Dropout(dropout)

    def forward(self, left: Frames, right: Frames) -> tuple[Frames, Frames]:
        """Both sequences, of unchanged lengths."""
        to_left = self.left_norm(left.values + self.drop(self.attention(left.values, right)))
        to_right = self.right_norm(right.values + self.drop(self.attention(right.values, left)))
        return Frames(to_left, left.valid), Frames(to_right, right.valid)


class SelfAttentionLayer(nn.Module):
    """One transformer layer, normalised before each half: x + attention(LN(x)), then x + feed-forward(LN(x)).

    Args:
        dim: D; the feed-forward half is twice as wide.
        attention_heads: parallel attentions.
        dropout: share dropped of what each half adds, in training.
    """

    def __init__(self, dim: int, *, attention_heads: int, dropout: float) -> None:
        super().__init__()
        self.attention = Attention(dim, attention_heads=attention_heads)
        self.attention_norm, self.feed_forward_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.widen, self.narrow = nn.Linear(dim, 2 * dim), nn.Linear(2 * dim, dim)
        self.drop = nn.Dropout(dropout)

    def forward(self, frames: Frames) -> Frames:
        """[B, T, D] to the same."""
        normed = self.attention_norm(frames.values)
        values = frames.values + self.drop(self.attention(normed, Frames(normed, frames.valid)))
        values = values + self.drop(self.narrow(F.gelu(self.widen(self.feed_forward_norm(values)))))
        return Frames(values, frames.valid)


class Classifier(nn.Module):
    """Pooled features to outputs: dense layer, normalisation, GELU, dropout, output layer.

    Args:
        in_dim: width of the input.
        hidden_dim: of the dense layer.
        num_outputs: C classes or K dimensions.
        dropout: share dropped before the output layer, in training.
    """

    def __init__(self, in_dim: int, *, hidden_dim: int, num_outputs: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(in_dim, hidden_dim),
            nn.LayerNorm(hidden_dim),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(hidden_dim, num_outputs),
        )

    def forward(self, pooled: Tensor) -> Tensor:
        """[B, in] to [B, outputs]."""
        outputs: Tensor = self.layers(pooled)
        return outputs
