from __future__ import annotations

import pytest

from pipelines.errors import ConfigError, UnknownNameError
from pipelines.training.grid import Cell, make_cells, pair_up

FAMILIES = {"wavlm": "RLR", "xvector": "RLR", "encodec": "CBR", "soundstream": "CBR"}


def test_heterogeneous_pairs_put_the_codec_on_the_right() -> None:
    assert pair_up(FAMILIES) == [
        ("wavlm", "encodec"),
        ("wavlm", "soundstream"),
        ("xvector", "encodec"),
        ("xvector", "soundstream"),
    ]


def test_homogeneous_pairs_stay_within_a_family_and_occur_once() -> None:
    assert pair_up(FAMILIES, "homogeneous") == [("wavlm", "xvector"), ("encodec", "soundstream")]


def test_all_pairs_are_both() -> None:
    assert len(pair_up(FAMILIES, "all")) == 6


def test_unknown_pairing() -> None:
    with pytest.raises(ConfigError, match="--pairs must be one of heterogeneous, homogeneous, all, not 'some'"):
        pair_up(FAMILIES, "some")


def test_singles_come_first() -> None:
    cells = make_cells([("wavlm", "encodec")], ["concat", "hyperbolic"], ["wavlm", "encodec"])
    assert cells == [
        Cell("wavlm", "", "single"),
        Cell("encodec", "", "single"),
        Cell("wavlm", "encodec", "concat"),
        Cell("wavlm", "encodec", "hyperbolic"),
    ]


def test_unknown_fusion() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'hyperbolic'"):
        make_cells([("wavlm", "encodec")], ["hyperbolc"], [])
