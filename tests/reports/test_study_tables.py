"""A study's tables as Markdown, LaTeX and CSV."""

from __future__ import annotations

import csv
import io
import math

from pipelines.reports.published import beside_outcome
from pipelines.reports.study_tables import cell_text, outcome_csv, outcome_latex, outcome_markdown
from pipelines.studies.outcome import Cell
from tests.reports.fake_study import noise_outcome


def test_a_cell_is_number_mark_and_interval() -> None:
    assert cell_text(Cell(value=-1.234, low=-2.0, high=0.5, mark="*"), 1) == "−1.2* [−2.0, 0.5]"
    assert cell_text(Cell(value=0.5), 3) == "0.500"
    assert cell_text(Cell(value=math.nan, mark="*"), 3) == ""
    assert cell_text("layer_00", 3) == "layer_00"  # a hyphen in a name is no minus
    assert cell_text("a-b", 3) == "a-b"


def test_markdown_has_everything() -> None:
    outcome = noise_outcome(warnings=("RANDOM weights: byols.",), name="a|b")
    text = outcome_markdown(outcome, beside_outcome(outcome))
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert {row.replace("\\|", "").count("|") for row in rows[:5]} == {7}
    assert "**RANDOM weights: byols.**" in text
    assert text.index("**RANDOM") < text.index("- Does noise cost") < text.index("**UAR by condition**")
    assert "Command: `hyfuse study noise --corpus emodb --models a|b`" in text
    assert "### Published" in text
    assert "| minilm |  | 50.0 | 51.0 |" in text  # nothing stands for a number that there is not
    assert "nan" not in text


def test_latex_escapes_and_has_as_many_cells_in_every_row() -> None:
    text = outcome_latex(noise_outcome(name="by_ols & co"))
    assert r"by\_ols \& co" in text
    bodies = [
        line.replace(r"\&", "") for line in text.splitlines() if line.endswith(r"\\") and "multicolumn" not in line
    ]
    assert {line.count("&") for line in bodies} == {5}
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 1
    assert r"$^*$" in text
    assert not {"−", "†"} & set(text)


def test_csv_has_one_line_per_cell_and_numbers_as_they_are() -> None:
    outcome = noise_outcome()
    rows = list(csv.DictReader(io.StringIO(outcome_csv(outcome))))
    assert len(rows) == 4 * 6
    first = outcome.tables[0].rows[0][1]
    assert isinstance(first, Cell)
    assert float(rows[1]["value"]) == first.value
    assert float(rows[1]["low"]) == first.low
    assert (rows[0]["text"], rows[0]["value"]) == ("byols", "")
    assert rows[5]["mark"] == "*"
    assert (rows[19]["column"], rows[19]["value"]) == ("clean", "")  # NaN
