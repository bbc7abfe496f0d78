"""Which shuffle drops are starred."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from pipelines.evaluation.statistics import holm
from pipelines.reports.shuffles import corrected_drops
from tests.evaluation.cells import made_up_cell


def test_all_drops_of_a_table_are_one_family() -> None:
    single = made_up_cell("a", "", "single", skill=0.5, drops=(0.4, 0.0), classes=2)
    fused = made_up_cell("a", "b", "concat", skill=0.6, drops=(0.4, 0.0), classes=2)
    scores = [
        single,
        replace(fused, left_drop_p=0.01, right_drop_p=0.02),
        replace(fused, left_drop_p=0.03, right_drop_p=math.nan),  # one speaker: nothing to test
    ]
    found = corrected_drops(scores)
    assert math.isnan(found[0].left_p_holm)
    assert (found[0].left_mark, found[0].right_mark) == ("", "")
    expected = holm([0.01, 0.02, 0.03, math.nan])
    assert [found[1].left_p_holm, found[1].right_p_holm, found[2].left_p_holm] == pytest.approx(expected[:3])
    assert expected[:3] == pytest.approx([0.03, 0.04, 0.04])
    assert [one.left_mark + one.right_mark for one in found] == ["", "**", "*"]
    assert corrected_drops([single]) == corrected_drops([single])[:1]
    assert corrected_drops([]) == ()
