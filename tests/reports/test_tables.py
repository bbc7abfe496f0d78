from __future__ import annotations

import csv
import io
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipelines.corpora.protocols import Split
from pipelines.evaluation.results import CellScore, Estimate
from pipelines.evaluation.statistics import Interval
from pipelines.reports.tables import build_table, to_csv, to_latex, to_markdown
from pipelines.studies.pairs import Comparison
from pipelines.training.data import Dataset, Source
from tests.evaluation.cells import made_up_cell


def _score(left: str, right: str, fusion: str, uar: float, **more: object) -> CellScore:
    """A cell with given scores; what is tested about it comes from made-up predictions about as good."""
    around = Interval(uar - 0.05, uar + 0.04, 0.95)
    drops = (0.5, 0.002) if right else (0.6, math.nan)
    made = made_up_cell(left, right, fusion, skill=uar, drops=(0.4, 0.0), classes=2)
    estimates = {
        "uar": Estimate(uar, around),
        "accuracy": Estimate(uar + 0.01, around),
        "macro_f1": Estimate(uar - 0.01, around),
    }
    return replace(made, estimates=estimates, left_drop=drops[0], right_drop=drops[1], **more)  # type: ignore[arg-type]


def _source(name: str, kind: str) -> Source:
    return Source(
        name, "latent", "mean", Path("x.zarr"), "CBR" if name == "encodec" else "RLR", kind, "0" * 64, "1" * 64, 4
    )


def _comparison(*scores: CellScore, warnings: tuple[str, ...] = ()) -> Comparison:
    names = {name for score in scores for name in (score.left, score.right) if name}
    dataset = Dataset(
        corpus="c", manifest_digest="", utterance_ids=(), speakers=(), sessions=(), official=(),
        labels=np.zeros(0, np.int64), classes=("a", "b"), left_out={},
        sources={name: _source(name, "random" if name == "wav_lm" else "pretrained") for name in sorted(names)},
    )  # fmt: skip
    split = Split("speaker-5fold", True, (), "")
    return Comparison(scores, split, dataset, 1, 0, 1.0, ("Corpus: 100 % of it & more.",), warnings)


@pytest.fixture
def comparison() -> Comparison:
    return _comparison(
        _score("wav_lm", "", "single", 0.5),
        _score("xvector", "", "single", 0.55),
        _score("encodec", "", "single", 0.4),
        _score("wav_lm", "encodec", "concat", 0.6),
        _score("xvector", "encodec", "concat", 0.61),
        _score("wav_lm", "encodec", "hyperbolic", 0.62),
        _score("xvector", "encodec", "hyperbolic", 0.58),
        warnings=("RANDOM weights: wav_lm.",),
    )


def test_blocks_have_singles_on_the_margins_and_one_best(comparison: Comparison) -> None:
    table = build_table(comparison)
    assert [block.title for block in table.blocks] == ["concat", "hyperbolic"]
    block = table.blocks[1]
    assert block.columns == ("encodec", "alone")
    assert [head for head, _ in block.rows] == ["wav_lm (random)", "xvector", "alone"]
    entries = dict(block.rows)
    assert entries["xvector"][1].score.startswith("55.0")
    assert entries["alone"][0].score.startswith("40.0")
    assert entries["alone"][1].score == ""
    best = [entry for block in table.blocks for _, row in block.rows for entry in row if entry.best]
    assert [entry.score for entry in best] == ["62.0†↑ [57.0, 66.0]"]
    assert best[0].marks == "†↑"


def test_a_cell_shows_accuracy_f1_and_what_shuffling_costs(comparison: Comparison) -> None:
    entry = build_table(comparison).blocks[0].rows[0][1][0]
    assert entry.others == "acc 61.0 · F1 59.0"
    assert entry.drops == "−50.0* / −0.2"


def test_significant_drops_are_starred_everywhere(comparison: Comparison) -> None:
    """The left input costs in every fusion, the right one in none; p is corrected over all eight drops."""
    table = build_table(comparison)
    drops = [entry.drops for block in table.blocks for _, row in block.rows for entry in row if entry.drops]
    assert drops == ["−50.0* / −0.2"] * 4
    assert "−50.0* / −0.2" in to_markdown(table)
    assert "is shuffled among the test utterances, * if that is significant" in to_markdown(table)
    assert "$-$50.0$^*$ / $-$0.2" in to_latex(table)
    rows = list(csv.DictReader(io.StringIO(to_csv(table))))
    for row in rows[3:]:
        assert float(row["left_drop_p_holm"]) < 0.05
        assert float(row["right_drop_p_holm"]) > 0.05
    assert rows[0]["left_drop_p_holm"] == "nan"  # of a single representation there is nothing to correct


def test_csv_has_every_cell_and_plain_numbers(comparison: Comparison) -> None:
    rows = list(csv.DictReader(io.StringIO(to_csv(build_table(comparison)))))
    assert len(rows) == 7
    assert rows[3]["left"] == "wav_lm"
    assert float(rows[3]["uar"]) == 0.6
    assert float(rows[3]["uar_low"]) == pytest.approx(0.55)
    assert rows[0]["right_drop"] == "nan"


def test_markdown_has_as_many_cells_in_every_row(comparison: Comparison) -> None:
    text = to_markdown(build_table(comparison))
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert {row.count("|") for row in rows} == {4}
    assert "**62.0†↑ [57.0, 66.0]**" in text
    assert "**RANDOM weights: wav_lm.**" in text


def test_latex_escapes_and_has_as_many_cells_in_every_row(comparison: Comparison) -> None:
    text = to_latex(build_table(comparison))
    assert r"wav\_lm (random)" in text
    assert r"100 \% of it \& more." in text
    bodies = [
        line.replace(r"\&", "") for line in text.splitlines() if line.endswith(r"\\") and "multicolumn" not in line
    ]
    assert {line.count("&") for line in bodies} == {2}
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 2


def test_singles_alone_make_a_table_too() -> None:
    table = build_table(_comparison(_score("xvector", "", "single", 0.55)))
    assert table.blocks[0].rows[0][1][0].score == "55.0 [50.0, 59.0]"
    assert "55.0" in to_markdown(table)
    assert "Does fusion" not in to_markdown(table)


def test_the_answers_and_what_qualifies_them_stand_under_the_table(comparison: Comparison) -> None:
    table = build_table(comparison)
    assert [answer.verdict for answer in table.answers] == ["yes", "not shown", "not shown", "not measured"]
    for text in (to_markdown(table), " ".join(table.notes)):
        assert "Does fusion beat the best single representation? Yes: " in text
        assert "Does hyperbolic fusion beat concatenation? Not shown: hyperbolic is " in text
        assert "Which pair is best, and which are not distinguishable from it? Not shown: " in text
        assert "there is no RLR × RLR and no CBR × CBR pair in this table; run with `--pairs all`" in text
        assert "† The score does not depend on one input, so nothing is fused: wav_lm+encodec concat (encodec)" in text
        assert "Power: with 10 speakers" in text
        assert "RANDOM weights (wav_lm): the answers say nothing" in text
    assert table.notes[-1] == "Corpus: 100 % of it & more."


def test_logistic_regression_is_a_block_with_its_own_singles(comparison: Comparison) -> None:
    rung = [
        _score("wav_lm", "", "logistic", 0.41),
        _score("xvector", "", "logistic", 0.42),
        _score("encodec", "", "logistic", 0.43),
        _score("wav_lm", "encodec", "logistic", 0.44),
        _score("xvector", "encodec", "logistic", 0.45),
    ]
    table = build_table(replace(comparison, scores=(*comparison.scores, *rung)))
    assert [block.title for block in table.blocks] == ["concat", "hyperbolic", "logistic"]
    entries = dict(table.blocks[2].rows)
    assert [entry.score[:4] for entry in entries["xvector"]] == ["45.0", "42.0"]
    assert entries["alone"][0].score.startswith("43.0")
    assert dict(table.blocks[0].rows)["alone"][0].score.startswith("40.0")
    assert "‡" in table.blocks[0].rows[0][1][0].marks  # .60 against .44
    assert any("concat against logistic regression on the same input" in note for note in table.notes)


def test_two_heads_of_one_fusion_have_a_block_each() -> None:
    cells = [
        _score("xvector", "encodec", "hyperbolic", 0.6),
        _score("xvector", "encodec", "hyperbolic", 0.5, cell="xvector+encodec hyperbolic right-left"),
    ]
    table = build_table(_comparison(*cells))
    assert [block.title for block in table.blocks] == ["hyperbolic", "hyperbolic right-left"]
    assert [block.rows[0][1][0].score[:4] for block in table.blocks] == ["60.0", "50.0"]


def test_csv_has_tests_and_diagnostics(comparison: Comparison) -> None:
    told = replace(comparison.scores[3], diagnostics={"left_share": 0.7, "ball_norm": 0.4})
    changed = replace(comparison, scores=(*comparison.scores[:3], told, *comparison.scores[4:]))
    rows = list(csv.DictReader(io.StringIO(to_csv(build_table(changed)))))
    assert rows[3]["cell"] == "wav_lm+encodec concat"
    assert rows[3]["versus_single"] == "wav_lm"
    assert float(rows[3]["versus_single_p"]) <= float(rows[3]["versus_single_p_holm"])
    assert float(rows[3]["versus_single_low"]) < float(rows[3]["versus_single_difference"])
    assert (rows[3]["unused"], rows[3]["marks"]) == ("right", "†↑")
    assert (rows[3]["diagnostic_left_share"], rows[3]["diagnostic_ball_norm"]) == ("0.700000", "0.400000")
    assert 0 < float(rows[3]["ece"]) < 1
    assert rows[4]["diagnostic_ball_norm"] == ""
    assert rows[0]["versus_single"] == rows[0]["versus_logistic_p"] == ""
    assert all(None not in row and None not in row.values() for row in rows)


def test_latex_has_marks_as_mathematics(comparison: Comparison) -> None:
    text = to_latex(build_table(comparison))
    assert r"\textbf{62.0$^\dagger$$^\uparrow$ [57.0, 66.0]}" in text
    assert not {"†", "↑", "−", "×"} & set(text)
