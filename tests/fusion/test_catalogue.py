"""The catalogue: names, options, and that it costs no torch import."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from pipelines.errors import ConfigError, UnknownNameError
from pipelines.fusion.catalogue import FUSIONS, SINGLE, applicable_options, build_head, fusion_options, fusion_spec


def test_imports_no_torch() -> None:
    code = "import sys, pipelines.fusion.catalogue; print('torch' in sys.modules, 'numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_names() -> None:
    assert list(FUSIONS) == [
        "concat", "gated", "attention", "bilinear", "hyperbolic", "mobius", "midpoint", "beta-concat", "barycentre",
    ]  # fmt: skip
    assert SINGLE not in FUSIONS
    assert fusion_spec(SINGLE).inputs == 1
    assert all(fusion_spec(name).name == name and fusion_spec(name).inputs == 2 for name in FUSIONS)
    assert [name for name in FUSIONS if not FUSIONS[name].commutative] == ["hyperbolic", "mobius"]
    assert [name for name in FUSIONS if "order" in FUSIONS[name].options] == ["hyperbolic", "mobius"]


def test_unknown_fusion() -> None:
    with pytest.raises(UnknownNameError, match=r"Unknown fusion 'hyperbole'\. Did you mean 'hyperbolic'\?.*concat"):
        fusion_spec("hyperbole")


def test_options_are_completed() -> None:
    pair = {"front_end": "linear", "dense_dim": 0, "modality_dropout": 0.0}
    ball = {"curvature": 1.0, "learn_curvature": "no", "classifier": "dense"}
    assert fusion_options(SINGLE) == {"front_end": "linear", "dense_dim": 0}
    assert fusion_options("concat") == fusion_options("gated") == pair
    assert fusion_options("mobius") == {"order": "left-right", **ball, **pair}
    assert fusion_options("hyperbolic") == {"order": "left-right", **ball, "max_radius": 0.5, **pair}
    assert fusion_options("barycentre") == {**ball, "max_radius": 0.5, **pair}
    given = {"order": "right-left", "max_radius": "0.25", "curvature": 2, "dense_dim": "16"}
    chosen = {"order": "right-left", "max_radius": 0.25, "curvature": 2.0, "dense_dim": 16}
    assert fusion_options("hyperbolic", given) == {**fusion_options("hyperbolic"), **chosen}
    assert fusion_options("attention", {"attention_heads": "8"}) == {"attention_heads": 8, **pair}


def test_applicable_options() -> None:
    given = {"front_end": "cnn", "curvature": 2.0, "order": "right-left", "modality_dropout": 0.1}
    assert applicable_options(SINGLE, given) == {"front_end": "cnn"}
    assert applicable_options("concat", given) == {"front_end": "cnn", "modality_dropout": 0.1}
    assert applicable_options("midpoint", given) == {"front_end": "cnn", "curvature": 2.0, "modality_dropout": 0.1}
    assert applicable_options("mobius", given) == given
    with pytest.raises(UnknownNameError, match=r"Unknown option of the fusions 'radius'.*max_radius"):
        applicable_options("concat", {"radius": 1})


@pytest.mark.parametrize("name", [*FUSIONS, SINGLE])
def test_defaults_are_valid(name: str) -> None:
    defaults = {key: option.default for key, option in fusion_spec(name).options.items()}
    assert fusion_options(name, defaults) == defaults


@pytest.mark.parametrize(
    ("fusion", "given", "error", "message"),
    [
        (
            "hyperbolic",
            {"oder": "left-right"},
            UnknownNameError,
            "Unknown option of fusion 'hyperbolic' 'oder'.*'order'",
        ),
        (
            "concat",
            {"order": "left-right"},
            UnknownNameError,
            "option of fusion 'concat' 'order'.*dense_dim, front_end",
        ),
        (
            "hyperbolic",
            {"order": "both"},
            UnknownNameError,
            "order of fusion 'hyperbolic' 'both'.*left-right, right-left",
        ),
        (
            "hyperbolic",
            {"curvature": "flat"},
            ConfigError,
            "'curvature' of fusion 'hyperbolic' is 'flat', but a number",
        ),
        ("hyperbolic", {"curvature": True}, ConfigError, "is True, but a number"),
        ("hyperbolic", {"curvature": 0}, ConfigError, r"is 0\.0, but must lie between 0\.001 and 10"),
        ("hyperbolic", {"max_radius": float("nan")}, ConfigError, "is nan, but must lie between"),
        ("attention", {"attention_heads": 2.5}, ConfigError, "is 2.5, but a whole number"),
        ("attention", {"attention_heads": "2.5"}, ConfigError, "is '2.5', but a whole number"),
        ("attention", {"attention_heads": 0}, ConfigError, "is 0, but must lie between 1"),
    ],
)
def test_bad_options(fusion: str, given: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        fusion_options(fusion, given)


@pytest.mark.parametrize("name", [*FUSIONS, SINGLE])
def test_every_entry_builds(name: str) -> None:
    right_dim = None if name == SINGLE else 9
    head = build_head(name, left_dim=17, right_dim=right_dim, num_classes=5, head_seeds=(1, 2, 3), hidden_dim=16)
    inputs = [torch.randn(3, 32, 17)] + ([] if right_dim is None else [torch.randn(3, 32, 9)])
    assert head(*inputs).shape == (3, 32, 5)


def test_number_of_inputs() -> None:
    with pytest.raises(ConfigError, match=r"'concat' takes 2 representation\(s\), but 1 came\. .*'single'"):
        build_head("concat", left_dim=4, right_dim=None, num_classes=2, head_seeds=(1,))
    with pytest.raises(ConfigError, match=r"'single' takes 1 representation\(s\), but 2 came"):
        build_head(SINGLE, left_dim=4, right_dim=4, num_classes=2, head_seeds=(1,))


def test_attention_heads_must_divide_the_width() -> None:
    with pytest.raises(ConfigError, match="hidden dimension 120 cannot be divided into 7 attention heads"):
        build_head("attention", left_dim=4, right_dim=4, num_classes=2, head_seeds=(1,), options={"attention_heads": 7})
