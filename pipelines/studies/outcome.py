"""What a study found, in a form that the terminal, the report and other programs show alike: ``study.json`` of its run.

A study ends with answers (sentences with numbers and tests), tables and figures. They are data here, drawn elsewhere
(``reports``, ``hyfuse_cli``). Numbers are on the scale that is shown (UAR in per cent, CCC as it is) and NaN where there is none.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pipelines.errors import RunError
from pipelines.files import write_atomically

__all__ = ["FIGURE_KINDS", "OUTCOME_FILE", "Cell", "Column", "Figure", "Outcome", "Series", "Table", "read_outcome"]

OUTCOME_FILE = "study.json"

FIGURE_KINDS = ("lines", "bars", "heatmap", "scatter")

_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A number in a table.

    Attributes:
        value: the number, NaN for none.
        low: lower end of its 95 % interval, NaN without one.
        high: upper end.
        mark: what stands behind it, such as ``*`` or ``†``; explained in the table's ``about``.
    """

    value: float
    low: float = math.nan
    high: float = math.nan
    mark: str = ""


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column of a table.

    Attributes:
        title: its head.
        digits: decimals of its numbers.
    """

    title: str
    digits: int = 1


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table.

    Attributes:
        name: a short one for files, of letters, digits and hyphens.
        title: one line.
        about: what the numbers are, in a sentence or two, with the marks explained.
        columns: one per cell of a row.
        rows: cells: text, or numbers with or without an interval.
    """

    name: str
    title: str
    about: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[str | Cell, ...], ...]

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise RunError(f"Table {self.name!r} has {len(self.columns)} columns, but a row of {len(row)} cells.")


@dataclass(frozen=True, kw_only=True)
class Series:
    """One line, bar group, row of a heat map, or cloud of points.

    Attributes:
        name: of the legend; of the row in a heat map.
        y: numbers, NaN for gaps.
        x: where they are: numbers, or the figure's ``ticks`` by their position.
        low: lower ends of intervals; empty without.
        high: upper ends.
        labels: what a point is called; empty without.
    """

    name: str
    y: tuple[float, ...]
    x: tuple[float, ...]
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    labels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("x", "low", "high", "labels"):
            values = getattr(self, name)
            if len(values) != len(self.y) and (values or name == "x"):
                raise RunError(f"Series {self.name!r} has {len(self.y)} numbers, but {len(values)} of {name}.")


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A figure.

    Attributes:
        name: a short one for files, of letters, digits and hyphens.
        title: one line.
        about: what it shows, in a sentence or two.
        kind: one of :data:`FIGURE_KINDS`.
        x_label: of the axis, with its unit.
        y_label: of the axis, with its unit; of the colours in a heat map.
        series: what is drawn.
        ticks: names of the positions 0, 1, … on the x axis; empty for numbers.
    """

    name: str
    title: str
    about: str
    kind: str
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    ticks: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in FIGURE_KINDS:
            raise RunError(f"A figure is one of {', '.join(FIGURE_KINDS)}, not {self.kind!r}.")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a study found.

    Attributes:
        study: its name: ``layers``, ``noise``, ``distill`` or ``asr-fusion``.
        title: one line.
        corpus: name.
        target: ``emotion`` or ``dimensions``.
        answers: the questions of the study, each answered in one sentence.
        notes: what it is about: corpus, protocol, settings, what is ours and not the paper's.
        warnings: what a reader must not overlook: random weights, speaker-dependent folds, leaks.
        tables: the numbers.
        figures: drawn from them.
        command: what makes it again.
        settings: everything that decides on the numbers, as JSON values.
    """

    study: str
    title: str
    corpus: str
    target: str
    answers: tuple[str, ...]
    notes: tuple[str, ...]
    warnings: tuple[str, ...]
    tables: tuple[Table, ...]
    figures: tuple[Figure, ...]
    command: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    def write(self, run_dir: Path) -> Path:
        """Write ``study.json`` into a run; its path.

        Raises:
            StorageError: the folder cannot be written.
        """
        text = json.dumps(_without_nan({"version": _VERSION, **asdict(self)}), indent=1, ensure_ascii=False)
        path = run_dir / OUTCOME_FILE
        write_atomically(path, text + "\n", option="--runs-dir")
        return path


def read_outcome(run_dir: Path) -> Outcome:
    """Read ``study.json`` of a run.

    Raises:
        RunError: there is none, it is damaged, or another version wrote it.
    """
    path = run_dir / OUTCOME_FILE
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunError(f"{run_dir} has no {OUTCOME_FILE}: it is not the run of a finished `hyfuse study`.") from None
    except (OSError, ValueError) as error:
        raise RunError(f"{path} cannot be read: {error}. Run the study again; what it finished is kept.") from error
    try:
        if (version := found.pop("version")) != _VERSION:
            raise RunError(f"{path} has version {version}, but {_VERSION} is read here. Run the study again.")
        tables = tuple(_table(one) for one in found.pop("tables"))
        figures = tuple(
            Figure(
                **{**one, "ticks": tuple(one["ticks"]), "series": tuple(_series(each) for each in one["series"])},
            )
            for one in found.pop("figures")
        )
        for name in ("answers", "notes", "warnings"):
            found[name] = tuple(found[name])
        return Outcome(tables=tables, figures=figures, **found)
    except (AttributeError, KeyError, TypeError) as error:
        raise RunError(f"{path} is damaged ({error}). Run the study again; what it finished is kept.") from error


def _table(found: Mapping[str, Any]) -> Table:
    rows = tuple(
        tuple(
            cell if isinstance(cell, str) else Cell(**{key: _number(value) for key, value in cell.items()})
            for cell in row
        )
        for row in found["rows"]
    )
    return Table(**{**found, "columns": tuple(Column(**one) for one in found["columns"]), "rows": rows})


def _series(found: Mapping[str, Any]) -> Series:
    numbers = {name: tuple(_number(value) for value in found[name]) for name in ("y", "x", "low", "high")}
    return Series(name=found["name"], labels=tuple(found["labels"]), **numbers)


def _number(value: Any) -> Any:
    return math.nan if value is None else value


def _without_nan(value: Any) -> Any:
    """JSON has no NaN: ``null`` stands for it."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _without_nan(one) for key, one in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_without_nan(one) for one in value]
    return value
