"""study.json: written and read back, refused when damaged."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from pipelines.errors import RunError
from pipelines.studies.outcome import OUTCOME_FILE, Cell, Column, Figure, Outcome, Series, Table, read_outcome


def outcome() -> Outcome:
    table = Table(
        name="by-layer",
        title="Layers",
        about="CCC with 95 % intervals.",
        columns=(Column(title="layer"), Column(title="valence", digits=3)),
        rows=(("layer_00", Cell(value=0.5, low=0.4, high=0.6, mark="*")), ("layer_01", Cell(value=math.nan))),
    )
    figure = Figure(
        name="curve",
        title="Curve",
        about="CCC by layer.",
        kind="lines",
        x_label="layer",
        y_label="CCC",
        series=(Series(name="valence", x=(0.0, 1.0), y=(0.5, math.nan), low=(0.4, math.nan), high=(0.6, math.nan)),),
        ticks=("layer_00", "layer_01"),
    )
    return Outcome(
        study="layers",
        title="Layers of wavlm-tiny",
        corpus="demo",
        target="dimensions",
        answers=("The best layer for valence is layer_00.",),
        notes=("Corpus: demo.",),
        warnings=("RANDOM weights.",),
        tables=(table,),
        figures=(figure,),
        command="hyfuse study layers",
        settings={"seeds": 1},
    )


def test_written_and_read_back(tmp_path: Path) -> None:
    made = outcome()
    path = made.write(tmp_path)
    assert path == tmp_path / OUTCOME_FILE
    assert repr(read_outcome(tmp_path)) == repr(made)  # NaN is equal to nothing
    assert "NaN" not in path.read_text()


def test_absent_damaged_and_of_another_version(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"has no study\.json"):
        read_outcome(tmp_path)
    path = outcome().write(tmp_path)
    found = json.loads(path.read_text())
    path.write_text(json.dumps({**found, "version": 7}))
    with pytest.raises(RunError, match="has version 7"):
        read_outcome(tmp_path)
    del found["tables"]
    path.write_text(json.dumps(found))
    with pytest.raises(RunError, match="is damaged"):
        read_outcome(tmp_path)
    path.write_text("{")
    with pytest.raises(RunError, match="cannot be read"):
        read_outcome(tmp_path)


def test_rows_and_series_must_fit() -> None:
    with pytest.raises(RunError, match="has 1 columns, but a row of 2 cells"):
        Table(name="t", title="", about="", columns=(Column(title="a"),), rows=(("x", "y"),))
    with pytest.raises(RunError, match="has 2 numbers, but 1 of low"):
        Series(name="s", x=(0.0, 1.0), y=(0.0, 1.0), low=(0.0,))
    with pytest.raises(RunError, match="not 'pie'"):
        Figure(name="f", title="", about="", kind="pie", x_label="", y_label="", series=())
