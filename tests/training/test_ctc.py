"""CTC against torch called directly, and against the sum over all paths of a case small enough to list them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from pipelines.training.ctc import BLANK, Alphabet, ctc_loss, shortest_frames, spelling


def _collapsed(path: tuple[int, ...]) -> tuple[int, ...]:
    merged = [symbol for symbol, _ in itertools.groupby(path)]
    return tuple(symbol for symbol in merged if symbol != BLANK)


@pytest.mark.parametrize("target", [(1,), (1, 2), (1, 1), (2, 1, 2), ()])
def test_loss_is_the_sum_over_all_paths(target: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    logits = torch.randn(1, 4, 3)
    probabilities = torch.softmax(logits[0].double(), dim=-1)
    total = sum(
        float(np.prod([float(probabilities[time, symbol]) for time, symbol in enumerate(path)]))
        for path in itertools.product(range(3), repeat=4)
        if _collapsed(path) == target
    )
    found = ctc_loss(logits, torch.tensor([4]), [np.array(target, dtype=np.int64)])
    assert float(found) == pytest.approx(-np.log(total) / max(1, len(target)), rel=1e-5)


def test_loss_and_gradient_equal_torch_called_directly() -> None:
    torch.manual_seed(1)
    logits = torch.randn(3, 12, 5, requires_grad=True)
    lengths = torch.tensor([12, 7, 9])
    targets = [np.array([1, 2, 3]), np.array([4, 4]), np.array([2])]
    found = ctc_loss(logits, lengths, targets)
    (gradient,) = torch.autograd.grad(found, logits)
    padded = torch.tensor([[1, 2, 3], [4, 4, 0], [2, 0, 0]])
    expected = torch.nn.CTCLoss()(
        torch.log_softmax(logits, -1).transpose(0, 1), padded, lengths, torch.tensor([3, 2, 1])
    )
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, logits)[0])
    assert not gradient[1, 7:].any()  # padding


def test_texts_that_do_not_fit_count_as_nothing() -> None:
    logits = torch.randn(2, 3, 4, requires_grad=True)
    fits, too_long = np.array([1, 2]), np.array([1, 1, 2])  # the second needs four frames
    assert shortest_frames(fits) == 2
    assert shortest_frames(too_long) == 4
    lengths = torch.tensor([3, 3])
    both = ctc_loss(logits, lengths, [fits, too_long])
    assert both.item() == pytest.approx(ctc_loss(logits[:1], lengths[:1], [fits]).item())
    (gradient,) = torch.autograd.grad(both, logits)
    assert gradient[0].any()
    assert not gradient[1].any()
    assert ctc_loss(logits, lengths, [too_long, too_long]).item() == 0.0


def test_spelling_and_alphabet() -> None:
    assert spelling("  We’ve WON – the “final”\tgame!") == "we've won the final game"
    assert spelling("Über straße, 3") == "über straße 3"
    assert spelling("…") == ""
    alphabet = Alphabet.of(["Abba", "a cab"])
    assert alphabet.characters == (" ", "a", "b", "c")
    assert len(alphabet) == 5
    assert alphabet.encode("Bad cab!").tolist() == [3, 2, 1, 4, 2, 3]  # without the d
    assert alphabet.decode([0, 2, 2, 0, 2, 3, 1, 1, 1, 4, 0]) == "aab c"
    assert alphabet.decode([1, 0, 1, 2, 1]) == "a"


def test_greedy_looks_at_a_sequences_own_frames() -> None:
    alphabet = Alphabet.of(["ab"])
    scores = torch.nn.functional.one_hot(torch.tensor([[1, 1, 0, 1, 2], [2, 1, 2, 2, 2]]), 3).float()
    assert alphabet.greedy(scores, [5, 2]) == ["aab", "ba"]
