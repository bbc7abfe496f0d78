"""Attention: the two projected streams are a sequence of two tokens that attend to each other and to
themselves.

tokens T = [W_l x_l + b_l , W_r x_r + b_r] (2 tokens of width D); A parallel scaled dot-product attentions
over parts of width D / A, softmax(q k' / sqrt(D / A)) v, joined by an output map (Vaswani et al. 2017, eq. 1
and section 3.2.2); then residual sum and layer normalisation, and both tokens side by side into the output
layer. Each stream has its own projection, so no position code is needed to tell the tokens apart.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pipelines.errors import ConfigError
from pipelines.fusion.front_ends import StackedDense, make_front_end
from pipelines.fusion.stacked import StackedDropout, StackedLayerNorm, StackedLinear, StackedModalityDropout

__all__ = ["AttentionHead"]


class AttentionHead(nn.Module):
    """H heads that fuse by multi-head attention over two tokens.

    Args:
        left_dim: Dl, features of the left representation.
        right_dim: Dr, features of the right one.
        num_classes: C.
        head_seeds: H seeds, one per head.
        hidden_dim: D, width of each stream after its projection; a multiple of ``attention_heads``.
        input_dropout: share of input features dropped in training.
        dropout: share of fused features dropped in training.
        attention_heads: A, the number of parallel attentions.
        front_end: "linear" or "cnn".
        dense_dim: width of a dense layer before the output; 0 for none.
        modality_dropout: share of training rows that one input is hidden from.

    Raises:
        ConfigError: ``hidden_dim`` cannot be divided into ``attention_heads`` equal parts.
    """

    def __init__(
        self,
        *,
        left_dim: int,
        right_dim: int,
        num_classes: int,
        head_seeds: Sequence[int],
        hidden_dim: int = 120,
        input_dropout: float = 0.0,
        dropout: float = 0.0,
        attention_heads: int = 4,
        front_end: str = "linear",
        dense_dim: int = 0,
        modality_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if hidden_dim % attention_heads:
            raise ConfigError(
                f"The hidden dimension {hidden_dim} cannot be divided into {attention_heads} attention heads of equal "
                "width. Choose attention_heads so that it divides hidden_dim."
            )
        self.attention_heads = attention_heads
        self.hide = StackedModalityDropout(modality_dropout, head_seeds=head_seeds)
        self.left_drop = StackedDropout(input_dropout, head_seeds=head_seeds, name="left")
        self.right_drop = StackedDropout(input_dropout, head_seeds=head_seeds, name="right")
        self.left_project = make_front_end(front_end, left_dim, hidden_dim, head_seeds=head_seeds, name="left")
        self.right_project = make_front_end(front_end, right_dim, hidden_dim, head_seeds=head_seeds, name="right")
        self.query_key_value = StackedLinear(hidden_dim, 3 * hidden_dim, head_seeds=head_seeds, name="qkv")
        self.join = StackedLinear(hidden_dim, hidden_dim, head_seeds=head_seeds, name="join")
        self.norm = StackedLayerNorm(hidden_dim, head_count=len(head_seeds))
        self.dense = StackedDense(2 * hidden_dim, dense_dim, head_seeds=head_seeds)
        self.drop = StackedDropout(dropout, head_seeds=head_seeds, name="hidden")
        self.classify = StackedLinear(self.dense.out_features, num_classes, head_seeds=head_seeds, name="classify")

    def forward(self, left: Tensor, right: Tensor, *, record: dict[str, Tensor] | None = None) -> Tensor:
        """Fuse and classify.

        Args:
            left: [H, B, Dl].
            right: [H, B, Dr].
            record: takes ``attention_left_to_right`` and ``attention_right_to_left``, [H, B]: the share of
                attention (mean over the A attentions) that the left token pays to the right one, and the
                reverse; the rest goes to itself.

        Returns:
            Logits, [H, B, C].
        """
        left, right = self.hide(left, right)
        left_token = self.left_project(self.left_drop(left))  # [H, B, D]
        right_token = self.right_project(self.right_drop(right))
        heads, rows, width = left_token.shape
        tokens = torch.cat([left_token, right_token], dim=1)  # [H, 2 B, D]
        split = self.query_key_value(tokens).view(heads, 2, rows, 3, self.attention_heads, -1)
        query, key, value = split.unbind(dim=3)  # each [H, 2, B, A, D / A]
        # Two tokens: products and sums are cheaper than matrix products of 2 x 2.
        scores = (query.unsqueeze(2) * key.unsqueeze(1)).sum(dim=-1)  # [H, 2 (query), 2 (key), B, A]
        weights = torch.softmax(scores * query.shape[-1] ** -0.5, dim=2)
        if record is not None:
            record["attention_left_to_right"] = weights[:, 0, 1].mean(dim=-1)
            record["attention_right_to_left"] = weights[:, 1, 0].mean(dim=-1)
        mixed = (weights.unsqueeze(-1) * value.unsqueeze(1)).sum(dim=2)  # [H, 2, B, A, D / A]
        attended = self.norm(tokens + self.join(mixed.reshape(heads, 2 * rows, width)))
        fused = torch.cat(attended.split(rows, dim=1), dim=-1)  # [H, B, 2 D]
        logits: Tensor = self.classify(self.drop(self.dense(fused)))
        return logits
