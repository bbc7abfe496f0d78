"""Recipes: what they hold, that every head takes them, and what the defaults are."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipelines.errors import UnknownNameError
from pipelines.fusion.catalogue import FUSIONS, SINGLE, applicable_options, fusion_options, fusion_spec
from pipelines.training.recipes import RECIPES, recipe
from pipelines.training.trainer import HeadTask, TrainConfig, train_stack


def test_names() -> None:
    assert list(RECIPES) == ["hyfuse", "paper"]
    assert all(recipe(name).name == name for name in RECIPES)
    with pytest.raises(UnknownNameError, match=r"Unknown recipe 'papers'\. Did you mean 'paper'\?"):
        recipe("papers")


def test_hyfuse_is_the_default_of_everything() -> None:
    assert recipe("hyfuse").train == TrainConfig()
    assert recipe("hyfuse").fusion == "hyperbolic"
    for name in (*FUSIONS, SINGLE):
        assert fusion_options(name, applicable_options(name, recipe("hyfuse").head_options)) == fusion_options(name)


def test_paper_is_what_is_published() -> None:
    """facts: Conv1d 64 and 128, Linear 120, c = 1, Dense 128, Adam 1e-3, batch 32, 50 epochs, dropout, early stopping."""
    paper = recipe("paper")
    assert (paper.train.epochs, paper.train.batch_size, paper.train.learning_rate) == (50, 32, 1e-3)
    assert (paper.train.weight_decay, paper.train.schedule, paper.train.hidden_dim) == (0.0, "constant", 120)  # Adam
    assert paper.train.dropout > 0
    assert paper.train.patience > 0
    assert paper.fusion == "mobius"
    options = fusion_options("mobius", applicable_options("mobius", paper.head_options))
    assert (options["front_end"], options["dense_dim"], options["curvature"]) == ("cnn", 128, 1.0)
    assert options["learn_curvature"] == "no"


@pytest.mark.parametrize("name", RECIPES)
def test_options_are_known_and_valid_for_every_head(name: str) -> None:
    chosen = recipe(name)
    for fusion in (*FUSIONS, SINGLE):
        fusion_options(fusion, applicable_options(fusion, chosen.head_options))
    assert fusion_spec(chosen.fusion).inputs == 2
    assert len(chosen.about) > 80


def test_the_paper_recipe_trains() -> None:
    chosen = recipe("paper")
    rng = np.random.default_rng(0)
    labels = np.arange(96) % 3
    left, right = (torch.from_numpy(rng.standard_normal((96, 16)) + 2 * np.eye(16)[labels]).float() for _ in range(2))
    rows = np.arange(96)
    (result,) = train_stack(
        fusion=chosen.fusion,
        options=applicable_options(chosen.fusion, chosen.head_options),
        left=left,
        right=right,
        labels=torch.from_numpy(labels),
        tasks=[HeadTask(fold="a", seed=0, train=rows[:48], validation=rows[48:72], test=rows[72:])],
        steps_per_epoch=2,
        num_classes=3,
        config=chosen.train,
    )
    assert (result.test_outputs.argmax(axis=1) == labels[72:]).mean() > 0.6
    assert result.parameters["output.dense.layer.weight"].shape == (120, 128)
