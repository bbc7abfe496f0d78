"""A study's tables as text: Markdown with everything that the study found, LaTeX for a paper, CSV for other programs.

A number stands with its interval and its mark; an empty cell is a number that there is not. The CSV has one line per cell of every
table (``table, row, column, text, value, low, high, mark``): tables of different columns in one file, which every program can
divide again.
"""

from __future__ import annotations

import csv
import io
import math

from pipelines.reports.published import Shown, published_markdown
from pipelines.reports.tables import escape_latex
from pipelines.studies.outcome import Cell, Outcome, Table

__all__ = ["cell_text", "number_text", "outcome_csv", "outcome_latex", "outcome_markdown"]


def number_text(value: float, digits: int) -> str:
    """A number with so many decimals, and no minus before a zero."""
    text = f"{value:.{digits}f}"
    return (text.lstrip("-") if not text.strip("-0.") else text).replace("-", "−")


def cell_text(cell: str | Cell, digits: int) -> str:
    """A cell as a table shows it: text, or a number with its interval and its mark; empty for none."""
    if isinstance(cell, str):
        return cell
    if math.isnan(cell.value):
        return ""
    known = not (math.isnan(cell.low) or math.isnan(cell.high))
    interval = f" [{number_text(cell.low, digits)}, {number_text(cell.high, digits)}]" if known else ""
    return f"{number_text(cell.value, digits)}{cell.mark}{interval}"


def outcome_markdown(outcome: Outcome, published: Shown | None = None) -> str:
    """Answers, tables, notes and the command, and published numbers below."""
    parts = [f"## {outcome.title}", *(f"**{warning}**" for warning in outcome.warnings)]
    if outcome.answers:
        parts.append("\n".join(f"- {answer}" for answer in outcome.answers))
    for table in outcome.tables:
        parts += [f"**{table.title}** — {table.about}", _markdown(table)]
    parts += [*outcome.notes, f"Command: `{outcome.command}`"]
    if published is not None:
        parts.append(published_markdown(published).rstrip())
    return "\n\n".join(parts) + "\n"


def _markdown(table: Table) -> str:
    def row(cells: list[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    lines = [row([column.title for column in table.columns])]
    lines.append("|---|" + "---:|" * (len(table.columns) - 1))
    lines += [row(_texts(table, cells)) for cells in table.rows]
    return "\n".join(lines)


def _texts(table: Table, cells: tuple[str | Cell, ...]) -> list[str]:
    return [cell_text(cell, column.digits) for cell, column in zip(cells, table.columns, strict=True)]


def outcome_latex(outcome: Outcome) -> str:
    r"""Every table as a ``booktabs`` tabular (``\usepackage{booktabs}``); answers, warnings and notes below."""
    parts = []
    for table in outcome.tables:
        lines = [
            r"\begin{tabular}{l" + "r" * (len(table.columns) - 1) + "}",
            r"\toprule",
            rf"\multicolumn{{{len(table.columns)}}}{{l}}{{{escape_latex(table.title)}}} \\",
            r"\midrule",
            " & ".join(escape_latex(column.title) for column in table.columns) + r" \\",
            r"\midrule",
            *(" & ".join(map(escape_latex, _texts(table, cells))) + r" \\" for cells in table.rows),
            r"\bottomrule",
            r"\end{tabular}",
            rf"\par {escape_latex(table.about)}",
        ]
        parts.append("\n".join(lines))
    closing = [rf"\par\textbf{{{escape_latex(warning)}}}" for warning in outcome.warnings]
    closing += [rf"\par {escape_latex(text)}" for text in (*outcome.answers, *outcome.notes)]
    return "\n\n".join([*parts, "\n".join(closing)]) + "\n"


def outcome_csv(outcome: Outcome) -> str:
    """One line per cell of every table; numbers as they are, empty where there are none."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["table", "row", "column", "text", "value", "low", "high", "mark"])
    for table in outcome.tables:
        head: str | Cell = ""
        for place, row in enumerate(table.rows, start=1):
            head = row[0] or head  # an empty head stands for the one above
            cells = (head, *row[1:])
            for column, cell in zip(table.columns, cells, strict=True):
                if isinstance(cell, str):
                    writer.writerow([table.name, place, column.title, cell, "", "", "", ""])
                    continue
                numbers = ["" if math.isnan(value) else repr(value) for value in (cell.value, cell.low, cell.high)]
                writer.writerow([table.name, place, column.title, "", *numbers, cell.mark])
    return text.getvalue()
