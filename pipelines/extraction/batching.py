"""Which utterances of a block go through the encoder together.

Batches hold utterances of similar length, so that little padding is computed, and at most ``max_padded_samples`` samples,
padding included. The plan depends on the lengths within the block alone: a block that is done again is batched as before.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["plan_batches"]


def plan_batches(num_samples: Sequence[int], *, max_padded_samples: int, max_batch: int = 64) -> list[list[int]]:
    """Group utterances by length.

    Args:
        num_samples: length of every utterance.
        max_padded_samples: longest times number of utterances, at most; an utterance above it goes alone.
        max_batch: utterances per batch, at most.

    Returns:
        Batches of positions into ``num_samples``, longest first; every position occurs once.
    """
    order = sorted(range(len(num_samples)), key=lambda position: (-num_samples[position], position))
    batches: list[list[int]] = []
    longest = 0
    for position in order:
        if not batches or len(batches[-1]) >= max_batch or longest * (len(batches[-1]) + 1) > max_padded_samples:
            batches.append([])
            longest = num_samples[position]
        batches[-1].append(position)
    return batches
