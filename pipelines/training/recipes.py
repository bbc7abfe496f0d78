"""Recipes: a complete set of training and head options under one name.

A recipe is a starting point: whatever else is asked for replaces its values. Head options are given for every head at once;
a head takes those that it has (:func:`pipelines.fusion.catalogue.applicable_options`).

"hyfuse" is what this code recommends and its default; "paper" is the group's published way of training, as far as it is
published. ``docs/fusion.md`` shows both on the same data, and what was tried on the way from one to the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from pipelines.errors import unknown_name
from pipelines.fusion.catalogue import OptionValue
from pipelines.training.trainer import TrainConfig

__all__ = ["RECIPES", "Recipe", "recipe"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A named way to train."""

    name: str
    """What it is asked for by."""
    train: TrainConfig
    """How heads are trained."""
    head_options: Mapping[str, OptionValue]
    """Options of the heads; each head takes those it has."""
    fusion: str
    """The fusion it trains when none is named."""
    about: str
    """What it is, in a few sentences, with what is not known of it."""


RECIPES: dict[str, Recipe] = {
    entry.name: entry
    for entry in (
        Recipe(
            name="hyfuse",
            train=TrainConfig(),
            head_options=MappingProxyType({}),
            fusion="hyperbolic",
            about=(
                "The default: linear projections to 120, radius under control, input dropout 0.5, label smoothing 0.1, AdamW with"
                " a cosine schedule for 30 epochs on training and validation speakers together. Chosen on speakers held out"
                " inside the training folds."
            ),
        ),
        Recipe(
            name="paper",
            train=TrainConfig(
                epochs=50,
                batch_size=32,
                learning_rate=1e-3,
                schedule="constant",
                weight_decay=0.0,
                label_smoothing=0.0,
                hidden_dim=120,
                input_dropout=0.0,
                dropout=0.3,
                clip_norm=0.0,
                selection="loss",
                selection_smoothing=0.0,
                patience=10,
            ),
            head_options=MappingProxyType(
                {
                    "front_end": "cnn",
                    "dense_dim": 128,
                    "classifier": "dense",
                    "curvature": 1.0,
                    "learn_curvature": "no",
                }
            ),
            fusion="mobius",
            about=(
                "The published recipe of the HYFuse group (arXiv 2506.03403 and sister papers): two convolutions (64 and 128"
                " channels, kernel 3, max-pooling 2) and a linear layer to 120 per stream, curvature 1, a dense layer of 128, Adam"
                " at 1e-3, batches of 32, 50 epochs, dropout and early stopping. Not published, and chosen here: dropout 0.3 after"
                " the dense layer only, early stopping on the loss of the validation speakers with a patience of 10 epochs, ReLU"
                " after every convolution and the dense layer, standardised inputs."
            ),
        ),
    )
}
"""Every recipe; the first is the default."""


def recipe(name: str) -> Recipe:
    """Look up a recipe.

    Args:
        name: a key of :data:`RECIPES`.

    Returns:
        The recipe.

    Raises:
        UnknownNameError: no such recipe; the message lists those that exist.
    """
    if name not in RECIPES:
        raise unknown_name("recipe", name, RECIPES)
    return RECIPES[name]
