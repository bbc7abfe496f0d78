from __future__ import annotations

import csv
import io
import math
from pathlib import Path

import numpy as np
import pytest

from pipelines.corpora.protocols import Split
from pipelines.evaluation.results import CellScore
from pipelines.evaluation.statistics import Interval
from pipelines.reports.tables import build_table, to_csv, to_latex, to_markdown
from pipelines.studies.pairs import Comparison
from pipelines.training.data import Dataset, Source


def _score(left: str, right: str, fusion: str, uar: float) -> CellScore:
    around = Interval(uar - 0.05, uar + 0.04, 0.95)
    drops = (0.5, 0.002) if right else (0.6, math.nan)
    return CellScore(
        left=left, right=right, fusion=fusion, uar=uar, uar_interval=around, uar_seed_std=0.01, accuracy=uar + 0.01,
        accuracy_interval=around, macro_f1=uar - 0.01, macro_f1_interval=around, left_drop=drops[0], right_drop=drops[1],
        folds=5, seeds=3, utterances=100,
    )  # fmt: skip


def _source(name: str, kind: str) -> Source:
    return Source(name, "latent", "mean", Path("x.zarr"), "RLR", kind, "0" * 64, "1" * 64, 4)


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
    assert entries["xvector"][1].uar.startswith("55.0")
    assert entries["alone"][0].uar.startswith("40.0")
    assert entries["alone"][1].uar == ""
    best = [entry for block in table.blocks for _, row in block.rows for entry in row if entry.best]
    assert [entry.uar for entry in best] == ["62.0 [57.0, 66.0]"]


def test_a_cell_shows_accuracy_f1_and_what_shuffling_costs(comparison: Comparison) -> None:
    entry = build_table(comparison).blocks[0].rows[0][1][0]
    assert entry.others == "acc 61.0 · F1 59.0"
    assert entry.drops == "−50.0 / −0.2"


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
    assert "**62.0 [57.0, 66.0]**" in text
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
    assert table.blocks[0].rows[0][1][0].uar == "55.0 [50.0, 59.0]"
    assert "55.0" in to_markdown(table)
