"""The sentences under a table: what they say of tables whose truth is known, and what they refuse to say."""

from __future__ import annotations

import numpy as np
import pytest

from pipelines.evaluation.results import CellScore
from pipelines.studies.answers import Answer, Evidence, p_text, points, weigh
from tests.evaluation.cells import made_up_cell

FAMILIES = {"wav": "RLR", "xvec": "RLR", "enc": "CBR", "snd": "CBR"}


def _weigh(*scores: CellScore, **more: object) -> Evidence:
    return weigh(scores, families=FAMILIES, **more)  # type: ignore[arg-type]


def _answer(evidence: Evidence, beginning: str) -> Answer:
    return next(answer for answer in evidence.answers if answer.question.startswith(beginning))


def _singles(**skills: float) -> list[CellScore]:
    return [made_up_cell(name, skill=skill) for name, skill in skills.items()]


# ------------------------------------------------------------------------------------------------ fusion or single


def test_a_fusion_that_gains() -> None:
    evidence = _weigh(*_singles(wav=0.6, enc=0.5), made_up_cell("wav", "enc", "concat", skill=0.8))
    answer = _answer(evidence, "Does fusion")
    assert answer.verdict == "yes"
    assert answer.sentence.startswith(
        "Yes: 1 of 1 fused cell beats both of its single representations significantly; the best of them is wav+enc concat ("
    )
    assert "points above wav [+" in answer.sentence
    assert "p < .001" in answer.sentence
    assert answer.evidence[0].second == "wav"
    assert evidence.cells[2].marks == "↑"


def test_a_fusion_as_good_as_the_better_single_is_no_gain() -> None:
    """It is far better than the other one, which counts for nothing."""
    evidence = _weigh(*_singles(wav=0.7, enc=0.4), made_up_cell("wav", "enc", "concat", skill=0.7))
    answer = _answer(evidence, "Does fusion")
    assert answer.verdict == "not shown"
    assert "Not shown: none of 1 fused cell beats both of its single representations significantly; the nearest is" in (
        answer.sentence
    )
    assert evidence.cells[2].against_single is not None
    assert evidence.cells[2].against_single.other == "wav"
    assert evidence.cells[2].marks == ""


def test_fusions_that_lose() -> None:
    evidence = _weigh(
        *_singles(wav=0.8, enc=0.5),
        made_up_cell("wav", "enc", "concat", skill=0.6),
        made_up_cell("wav", "enc", "gated", skill=0.6),
    )
    answer = _answer(evidence, "Does fusion")
    assert answer.verdict == "no"
    assert "No: all of 2 fused cells are significantly below the better single representation" in answer.sentence
    assert [cell.marks for cell in evidence.cells] == ["", "", "↓", "↓"]


def test_a_fusion_of_two_weak_ones_must_say_that_a_third_is_better() -> None:
    evidence = _weigh(*_singles(wav=0.9, xvec=0.5, enc=0.5), made_up_cell("xvec", "enc", "concat", skill=0.7))
    answer = _answer(evidence, "Does fusion")
    assert answer.verdict == "yes"
    assert "None of them beats every one of the table's 3 single representations; xvec+enc concat is" in answer.sentence
    assert "points below the best of these" in answer.sentence


def test_singles_that_were_not_computed() -> None:
    answer = _answer(_weigh(made_up_cell("wav", "enc", "concat", skill=0.6)), "Does fusion")
    assert answer.verdict == "not measured"
    assert answer.evidence == ()


# ------------------------------------------------------------------------------------------------ hyperbolic or concat


def _with_pairs(*skills: tuple[str, float], pairs: tuple[tuple[str, str], ...]) -> Evidence:
    cells = [made_up_cell(*pair, fusion, skill=skill) for pair in pairs for fusion, skill in skills]
    return _weigh(*_singles(wav=0.5, xvec=0.5, enc=0.5, snd=0.5), *cells)


MIXED = (("wav", "enc"), ("xvec", "enc"), ("wav", "snd"))


def test_hyperbolic_below_concat() -> None:
    evidence = _with_pairs(("concat", 0.8), ("hyperbolic", 0.7), ("midpoint", 0.8), pairs=MIXED)
    answer = _answer(evidence, "Does hyperbolic")
    assert answer.verdict == "no"
    assert answer.sentence.startswith("No: hyperbolic is ")
    assert "points below concat [−" in answer.sentence
    assert "averaged over 3 pairs, p < .001; significantly better on 0 of them, worse on 3" in answer.sentence
    assert "Other heads in the ball: midpoint " in answer.sentence
    assert len(answer.evidence) == 2 + 2 * 3


def test_hyperbolic_like_concat_is_not_shown() -> None:
    answer = _answer(_with_pairs(("concat", 0.7), ("hyperbolic", 0.7), pairs=MIXED[:1]), "Does hyperbolic")
    assert answer.verdict == "not shown"
    assert "averaged" not in answer.sentence


@pytest.mark.parametrize("fusion", ["concat", "hyperbolic", "gated"])
def test_hyperbolic_or_concat_alone_is_not_measured(fusion: str) -> None:
    answer = _answer(_with_pairs((fusion, 0.7), pairs=MIXED), "Does hyperbolic")
    assert answer.verdict == "not measured"
    assert "--fusions concat,hyperbolic" in answer.sentence


# ------------------------------------------------------------------------------------------------ the best pair


def test_the_best_pair_stands_alone() -> None:
    cells = [made_up_cell(*pair, "concat", skill=skill) for pair, skill in zip(MIXED, (0.9, 0.7, 0.6), strict=True)]
    answer = _answer(_weigh(*cells), "Which pair")
    assert answer.verdict == "yes"
    assert "wav+enc has the highest UAR" in answer.sentence
    assert "of 3 pairs; all others are significantly below it" in answer.sentence


def test_pairs_that_cannot_be_told_from_the_best() -> None:
    cells = [
        made_up_cell(*pair, fusion, skill=skill)
        for pair, skill in zip(MIXED, (0.8, 0.8, 0.5), strict=True)
        for fusion in ("concat", "gated")
    ]
    answer = _answer(_weigh(*cells), "Which pair")
    assert answer.verdict == "not shown"
    assert "mean of 2 heads) of 3 pairs; 1 cannot be told from the best at 95 % confidence: " in answer.sentence
    assert "wav+snd" not in answer.sentence


def test_the_set_of_pairs_that_may_be_best_holds_the_best_one() -> None:
    """Four pairs, one truly better by a little, 100 tables: it is in the set in at least 95 of them."""
    pairs = (*MIXED, ("xvec", "snd"))
    held = 0
    for seed in range(100):
        cells = [
            made_up_cell(*pair, "concat", skill=0.60 if pair == MIXED[0] else 0.58, seed=seed, seeds=1, clips=24)
            for pair in pairs
        ]
        answer = _answer(_weigh(*cells), "Which pair")
        names = [answer.evidence[0].first, *(row.second for row in answer.evidence if row.p_holm >= 0.05)]
        held += "wav+enc" in names
    assert held >= 95


def test_heads_that_only_some_pairs_have_do_not_decide() -> None:
    """Otherwise a pair would look better for a head that the others were not given."""
    cells = [made_up_cell(*pair, "concat", skill=0.7) for pair in MIXED[:2]]
    answer = _answer(_weigh(*cells, made_up_cell(*MIXED[0], "gated", skill=0.99)), "Which pair")
    assert ", concat) of 2 pairs" in answer.sentence


def test_one_pair_is_no_competition() -> None:
    answer = _answer(_weigh(made_up_cell("wav", "enc", "concat", skill=0.7)), "Which pair")
    assert answer.verdict == "not measured"
    assert "there is wav+enc" in answer.sentence


# ------------------------------------------------------------------------------------------------ across and within families


def _kinds(mixed: float, representation: float, codec: float) -> Answer:
    cells = [
        *(made_up_cell(*pair, "concat", skill=mixed) for pair in MIXED),
        made_up_cell("wav", "xvec", "concat", skill=representation),
        made_up_cell("enc", "snd", "concat", skill=codec),
    ]
    return _answer(_weigh(*cells), "Does a heterogeneous")


def test_heterogeneous_pairs_that_win() -> None:
    answer = _kinds(0.8, 0.6, 0.5)
    assert answer.verdict == "yes"
    assert answer.sentence.startswith("Yes: on average RLR × CBR is ")
    assert "points above RLR × RLR [" in answer.sentence
    assert "points above CBR × CBR [" in answer.sentence
    assert "above the best homogeneous pair, wav+xvec," in answer.sentence


def test_heterogeneous_pairs_that_beat_only_the_codecs() -> None:
    answer = _kinds(0.7, 0.72, 0.5)
    assert answer.verdict == "not shown"
    assert "p < .001" in answer.sentence


def test_heterogeneous_pairs_that_lose() -> None:
    assert _kinds(0.6, 0.8, 0.5).verdict == "no"


def test_one_family_is_missing() -> None:
    cells = [made_up_cell(*MIXED[0], "concat", skill=0.8), made_up_cell("wav", "xvec", "concat", skill=0.6)]
    answer = _answer(_weigh(*cells), "Does a heterogeneous")
    assert answer.verdict == "not shown"
    assert "(CBR × CBR was not measured)" in answer.sentence


def test_only_heterogeneous_pairs() -> None:
    answer = _answer(_weigh(*(made_up_cell(*pair, "concat", skill=0.8) for pair in MIXED)), "Does a heterogeneous")
    assert answer.verdict == "not measured"
    assert "no RLR × RLR and no CBR × CBR pair" in answer.sentence
    assert "--pairs all" in answer.sentence


# ------------------------------------------------------------------------------------------------ inputs that are not used


@pytest.mark.parametrize(
    ("drops", "unused"),
    [((0.3, 0.0), ("right",)), ((0.0, 0.3), ("left",)), ((0.3, 0.2), ()), ((0.0, 0.0), ("left", "right"))],
)
def test_an_input_whose_shuffling_costs_nothing(drops: tuple[float, float], unused: tuple[str, ...]) -> None:
    cell = made_up_cell("wav", "enc", "hyperbolic", skill=0.8, drops=drops)
    evidence = _weigh(cell)
    assert evidence.cells[0].unused == unused
    assert ("†" in evidence.cells[0].marks) == bool(unused)
    said = " ".join(evidence.remarks)
    assert ("wav+enc hyperbolic (enc)" in said) == ("right" in unused)
    assert ("wav+enc hyperbolic (wav)" in said) == ("left" in unused)


def test_a_small_loss_that_is_significant_is_use() -> None:
    """Half a point, the same for every speaker: little, but not nothing."""
    cell = made_up_cell("wav", "enc", "concat", skill=0.8, drops=(0.3, 0.0), clips=480, seeds=1)
    shuffled = cell.tallies.copy()
    shuffled[:, 0, 0, 0] -= 1
    shuffled[:, 0, 0, 1] += 1
    changed = type(cell)(
        **{
            **{name: getattr(cell, name) for name in cell.__dataclass_fields__},
            "right_drop": 1 / 480,
            "right_drop_p": 2**-9,
            "right_shuffled_tallies": shuffled,
        }
    )
    assert _weigh(cell).cells[0].unused == ("right",)
    assert _weigh(changed).cells[0].unused == ()


# ------------------------------------------------------------------------------------------------ the linear rung


def test_heads_are_held_against_linear_regression_on_the_same_input() -> None:
    evidence = _weigh(
        *_singles(wav=0.6, enc=0.5),
        made_up_cell("wav", fusion="logistic", skill=0.6, seeds=1),
        made_up_cell("enc", fusion="logistic", skill=0.3, seeds=1),
        made_up_cell("wav", "enc", "concat", skill=0.8),
        made_up_cell("wav", "enc", "gated", skill=0.7),
        made_up_cell("wav", "enc", "logistic", skill=0.7, seeds=1),
    )
    by_name = {cell.score.cell: cell for cell in evidence.cells}
    assert by_name["wav+enc concat"].marks == "↑‡"
    assert by_name["wav+enc gated"].against_linear is not None
    assert by_name["wav+enc gated"].marks == "↑"
    assert by_name["wav+enc logistic"].against_linear is None
    assert by_name["wav+enc logistic"].against_single is not None
    assert by_name["wav+enc logistic"].against_single.other == "wav logistic"
    said = " ".join(evidence.remarks)
    assert (
        "gated does not beat logistic regression on the same input: significantly better on 0 of 1 input, worse" in said
    )
    assert "concat against logistic regression on the same input: significantly better on 1 of 1 input" in said
    assert "single against logistic regression on the same input: significantly better on 1 of 2 inputs" in said
    assert "of 2 fused cells" in _answer(evidence, "Does fusion").sentence  # the rung is no head


# ------------------------------------------------------------------------------------------------ what must be kept in mind


def test_caveats() -> None:
    evidence = _weigh(
        *_singles(wav=0.6, enc=0.5),
        made_up_cell("wav", "enc", "concat", skill=0.8, seeds=3),
        random=["wav"],
        speaker_independent=False,
    )
    said = " ".join(evidence.caveats)
    assert evidence.caveats[0].startswith(
        "Power: with 10 speakers, differences between a fusion and its singles under "
    )
    for part in ("corrected (Holm) within a question", "RANDOM weights (wav)", "Speaker-dependent protocol"):
        assert part in said
    assert "One seed" not in said


def test_power_is_corrected_for_the_size_of_the_table() -> None:
    cells = [made_up_cell("wav", "enc", fusion, skill=0.6) for fusion in ("concat", "gated", "attention")]
    said = _weigh(*_singles(wav=0.6, enc=0.5), *cells).caveats[0]
    assert "in a single comparison, nor under" in said
    assert "points in the 3 of this table" in said


def test_one_speaker_and_one_seed() -> None:
    cells = [
        made_up_cell("wav", skill=0.6, speakers=1, seeds=1),
        made_up_cell("enc", skill=0.6, speakers=1, seeds=1),
        *(
            made_up_cell(*pair, fusion, skill=0.7, speakers=1, seeds=1)
            for pair in (("wav", "enc"), ("wav", "snd"))
            for fusion in ("concat", "hyperbolic")
        ),
    ]
    evidence = _weigh(*cells)
    assert {answer.verdict for answer in evidence.answers} <= {"not shown", "not measured"}
    assert "not testable" in _answer(evidence, "Does fusion").sentence
    assert "a single test speaker" in evidence.caveats[0]
    assert any(one.startswith("One seed") for one in evidence.caveats)


def test_a_table_without_cells() -> None:
    assert _weigh() == Evidence((), (), (), ())


# ------------------------------------------------------------------------------------------------ words


@pytest.mark.parametrize(
    ("value", "text"), [(0.012, "+1.2"), (-0.0031, "−0.3"), (0.0001, "0.0"), (-0.0001, "0.0"), (0.0, "0.0")]
)
def test_points(value: float, text: str) -> None:
    assert points(value) == text


@pytest.mark.parametrize(
    ("p", "text"), [(0.0004, "p < .001"), (0.0312, "p = .031"), (1.0, "p = 1"), (np.nan, "not testable")]
)
def test_p_text(p: float, text: str) -> None:
    assert p_text(p) == text
