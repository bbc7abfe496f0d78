"""A fusion must be able to use either input, both, and where it can express it, their interaction.

``mobius``, the published head, cannot use its second operand: it is among the tests, to show that they can fail.
"""

from __future__ import annotations

import pytest

from pipelines.fusion.catalogue import FUSIONS
from tests.fusion.signals import KINDS, make, train, variants

FUSING = [(name, options) for name, options in variants() if name != "mobius"]
MULTIPLYING = ("gated", "attention", "bilinear")
# Of the others the logits are a sum of one function of each input, in the ball nearly so: no such sum tells apart classes that only
# the interaction does.
ADDING = [name for name in FUSIONS if name not in MULTIPLYING]
SHORT = {"rows": 480, "epochs": 12}


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(("fusion", "options"), FUSING)
def test_signal_in_one_input_is_learned(fusion: str, options: dict[str, object], side: str) -> None:
    outcome = train(fusion, side, options, **SHORT)
    hurt, harmless = (outcome.left_shuffled, outcome.right_shuffled)[:: 1 if side == "left" else -1]
    assert outcome.straight > 0.9
    assert hurt < 0.4  # chance is 1/4
    assert harmless > 0.85


@pytest.mark.parametrize(("fusion", "options"), FUSING)
def test_halves_of_the_signal_are_put_together(fusion: str, options: dict[str, object]) -> None:
    outcome = train(fusion, "both", options, **SHORT)
    assert outcome.straight > 0.9
    assert outcome.left_shuffled < 0.65  # what is left: one of two halves
    assert outcome.right_shuffled < 0.65


@pytest.mark.parametrize("order", ["left-right", "right-left"])
def test_the_published_head_ignores_its_second_operand(order: str) -> None:
    first, second = ("left", "right") if order == "left-right" else ("right", "left")
    options = {"order": order}
    assert train("mobius", first, options, **SHORT).straight > 0.9
    ignored = train("mobius", second, options, **SHORT)
    assert ignored.straight < 0.5
    edge = ignored.results[0].diagnostics[f"{first}_edge"]
    assert edge < 0.05  # because the points sit on the rim
    both = train("mobius", "both", options, **SHORT)
    assert both.straight < 0.7  # half of the signal
    assert (both.right_shuffled if first == "left" else both.left_shuffled) == pytest.approx(both.straight, abs=0.1)


def test_signals_are_what_they_are_said_to_be() -> None:
    """A single representation: the class where the signal is in it, half of it, or nothing."""
    expected = {"left": (0.95, 1.0), "right": (0.0, 0.4), "both": (0.4, 0.6), "interaction": (0.0, 0.4)}
    assert set(expected) == set(KINDS)
    for kind, (lowest, highest) in expected.items():
        assert lowest <= train("single", kind, **SHORT).straight <= highest
    assert make("both", 480)[0].shape == (480, 128)


@pytest.mark.slow
@pytest.mark.parametrize("name", MULTIPLYING)
def test_interaction_is_learned_by_heads_that_multiply(name: str) -> None:
    outcome = train(name, "interaction")
    assert outcome.straight > 0.6
    assert outcome.left_shuffled < 0.4
    assert outcome.right_shuffled < 0.4


@pytest.mark.slow
@pytest.mark.parametrize("name", ADDING)
def test_interaction_needs_a_dense_layer_elsewhere(name: str) -> None:
    assert train(name, "interaction").straight < 0.4
    if name != "mobius":
        assert train(name, "interaction", {"dense_dim": 128}).straight > 0.8
