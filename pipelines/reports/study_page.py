"""The page of a study: everything that its outcome holds, in one HTML file that loads nothing.

The same promises as of a run's page (:mod:`pipelines.reports.page`): one file, names are text, readable without the script, on
paper, on a phone, in the dark and by a screen reader, and the same outcome gives the same bytes. Warnings stand above everything,
answers come first; the script sorts the tables, which are in the page without it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pipelines
from pipelines.files import write_atomically
from pipelines.reports.html import render, static_text
from pipelines.reports.plots import inline_svg
from pipelines.reports.published import METRIC_NAMES, beside_outcome
from pipelines.reports.study_plots import describe, is_wide, plot_outcome_figure
from pipelines.reports.study_tables import number_text
from pipelines.studies.outcome import Cell, Column, Figure, Outcome, Table

__all__ = ["build_study_page", "write_study_page"]

_MOST_SETTING = 2000  # letters of a setting


def build_study_page(outcome: Outcome, run_name: str) -> str:
    """The page as HTML.

    Args:
        outcome: what the study found.
        run_name: name of the run's folder.
    """
    context = {
        "version": pipelines.__version__,
        "title": outcome.title,
        "subtitle": f"Study {outcome.study} on {outcome.corpus}, target {outcome.target}; run {run_name}",
        "warnings": outcome.warnings,
        "sections": _sections(outcome),
        "answers": [_answer(answer) for answer in outcome.answers],
        "tables": [_table(table) for table in outcome.tables],
        "figures": [_figure(figure, place) for place, figure in enumerate(outcome.figures)],
        "published": beside_outcome(outcome),
        "metric_names": METRIC_NAMES,
        "notes": outcome.notes,
        "command": outcome.command,
        "settings": [(name.replace("_", " "), value[:_MOST_SETTING]) for name, value in _flat(outcome.settings)],
    }
    return render("study.html.jinja", context, style=static_text("page.css"), script=static_text("study.js"))


def write_study_page(outcome: Outcome, path: Path, run_name: str) -> None:
    """Write the page.

    Raises:
        StorageError: the disk is full or cannot be written.
    """
    write_atomically(path, build_study_page(outcome, run_name), option="--out")


def _sections(outcome: Outcome) -> list[tuple[str, str]]:
    sections = [("answers", "Answers")] if outcome.answers else []
    sections += [("figures", "Figures")] if outcome.figures else []
    sections += [("tables", "Tables")] if outcome.tables else []
    return [*sections, ("published", "Published"), ("provenance", "Provenance")]


def _answer(text: str) -> dict[str, str]:
    """A sentence, its question apart and its verdict marked where it has them."""
    question, mark, rest = text.partition("? ")
    if not mark:
        question, rest = "", text
    verdict = re.match(r"(Yes|No|Not shown|Not measured|Cannot be told)\b", rest)
    found = verdict.group() if verdict else ""
    css = {"Yes": "yes", "No": "no", "": "plain-answer"}.get(found, "open")
    return {"question": question + mark.strip(), "verdict": found, "sentence": rest.removeprefix(found), "css": css}


def _table(table: Table) -> dict[str, Any]:
    return {
        "name": _anchor(table.name),
        "title": table.title,
        "about": table.about,
        "columns": [
            {"title": column.title, "number": any(isinstance(row[place], Cell) for row in table.rows)}
            for place, column in enumerate(table.columns)
        ],
        "rows": [
            {"same": same, "cells": [_cell(cell, column) for cell, column in zip(row, table.columns, strict=True)]}
            for row, same in zip(table.rows, _heads(table), strict=True)
        ],
    }


def _heads(table: Table) -> Iterator[str]:
    """For rows whose head is empty, that of the row above, which it stands for; shown when the rows are sorted."""
    above = ""
    for row in table.rows:
        yield "" if row[0] else above
        above = row[0] if isinstance(row[0], str) and row[0] else above


def _cell(cell: str | Cell, column: Column) -> dict[str, str]:
    """What stands in a cell, and ``sort``, the number that it is sorted by; empty for text and where there is none."""
    if isinstance(cell, str):
        return {"text": cell, "interval": "", "sort": "", "kind": "text"}
    if math.isnan(cell.value):
        return {"text": "–", "interval": "", "sort": "", "kind": "none"}
    known = not (math.isnan(cell.low) or math.isnan(cell.high))
    interval = f"[{number_text(cell.low, column.digits)}, {number_text(cell.high, column.digits)}]" if known else ""
    return {
        "text": number_text(cell.value, column.digits) + cell.mark,
        "interval": interval,
        "sort": repr(cell.value),
        "kind": "number",
    }


def _figure(figure: Figure, place: int) -> dict[str, Any]:
    from markupsafe import Markup

    svg = inline_svg(
        plot_outcome_figure(figure), prefix=f"figure-{place}", title=figure.title, description=describe(figure)
    )
    return {"svg": Markup(svg), "title": figure.title, "about": figure.about, "wide": is_wide(figure)}


def _anchor(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-") or "unnamed"


def _flat(settings: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{before}{name}: ")
        else:
            yield f"{before}{name}", ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
