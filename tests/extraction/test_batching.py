from __future__ import annotations

import random

import pytest

from pipelines.extraction.batching import plan_batches


def _cases() -> list[list[int]]:
    generator = random.Random(0)
    return [
        [generator.choice([1, 50, 51, 100, 999, 5000]) for _ in range(generator.randrange(1, 200))] for _ in range(60)
    ]


@pytest.mark.parametrize("cap", [1, 100, 1000, 10**9])
@pytest.mark.parametrize("most", [1, 3, 64])
def test_every_utterance_once_and_within_the_cap(cap: int, most: int) -> None:
    for lengths in _cases():
        batches = plan_batches(lengths, max_padded_samples=cap, max_batch=most)
        assert sorted(position for batch in batches for position in batch) == list(range(len(lengths)))
        for batch in batches:
            assert 1 <= len(batch) <= most
            longest = max(lengths[position] for position in batch)
            assert longest * len(batch) <= cap or len(batch) == 1


def test_longest_first() -> None:
    """The largest batch comes first: a run that does not fit into memory fails at once, not after an hour."""
    for lengths in _cases():
        order = [lengths[position] for batch in plan_batches(lengths, max_padded_samples=300) for position in batch]
        assert order == sorted(order, reverse=True)


def test_no_batch_could_have_taken_the_next_utterance() -> None:
    for lengths in _cases():
        batches = plan_batches(lengths, max_padded_samples=1000, max_batch=8)
        for batch in batches[:-1]:
            following = lengths[batches[batches.index(batch) + 1][0]]
            full = len(batch) == 8 or lengths[batch[0]] * (len(batch) + 1) > 1000
            assert full or following < 0.9 * lengths[batch[0]]


def test_no_utterance_is_padded_by_more_than_a_tenth() -> None:
    for lengths in _cases():
        for batch in plan_batches(lengths, max_padded_samples=1000):
            assert min(lengths[position] for position in batch) >= 0.9 * max(lengths[position] for position in batch)


def test_padding_may_be_unlimited() -> None:
    assert plan_batches([10, 200, 20], max_padded_samples=1000, max_padding=1.0) == [[1, 2, 0]]


def test_depends_on_lengths_alone() -> None:
    for lengths in _cases():
        plan = plan_batches(lengths, max_padded_samples=1000)
        assert plan == plan_batches(tuple(lengths), max_padded_samples=1000)
        order = list(range(len(lengths)))
        random.Random(1).shuffle(order)
        turned = plan_batches([lengths[position] for position in order], max_padded_samples=1000)
        as_lengths = [[lengths[position] for position in batch] for batch in plan]
        assert [[lengths[order[position]] for position in batch] for batch in turned] == as_lengths


def test_equal_lengths_keep_manifest_order() -> None:
    assert plan_batches([5, 5, 5, 5], max_padded_samples=10) == [[0, 1], [2, 3]]


def test_longer_than_the_cap_goes_alone() -> None:
    assert plan_batches([19, 200, 20], max_padded_samples=100) == [[1], [2, 0]]


def test_nothing() -> None:
    assert plan_batches([], max_padded_samples=100) == []
