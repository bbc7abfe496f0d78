"""Which utterances of a block go through the encoder together.

Batches hold utterances of similar length, none padded by more than a tenth, and at most ``max_padded_samples`` samples, padding
included. The plan depends on the lengths within the block alone: a block that is done again is batched as before.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["plan_batches"]


def plan_batches(
    num_samples: Sequence[int], *, max_padded_samples: int, max_batch: int = 64, max_padding: float = 0.1
) -> list[list[int]]:
    """Group utterances by length.

    Args:
        num_samples: length of every utterance.
        max_padded_samples: longest times number of utterances, at most; an utterance above it goes alone.
        max_batch: utterances per batch, at most.
        max_padding: largest share of an utterance's padded length that is padding.

    Returns:
        Batches of positions into ``num_samples``, longest first; every position occurs once.
    """
    order = sorted(range(len(num_samples)), key=lambda position: (-num_samples[position], position))
    batches: list[list[int]] = []
    longest = 0
    for position in order:
        fits = (
            bool(batches)
            and len(batches[-1]) < max_batch
            and longest * (len(batches[-1]) + 1) <= max_padded_samples
            and num_samples[position] >= longest * (1 - max_padding)
        )
        if not fits:
            batches.append([])
            longest = num_samples[position]
        batches[-1].append(position)
    return batches
