"""What the user sees: tables and results on standard output, progress and messages on standard error."""

from __future__ import annotations

import math
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape

if TYPE_CHECKING:
    from pathlib import Path

    from pipelines.corpora.layouts import Finding
    from pipelines.reports.tables import Table
    from pipelines.studies.outcome import Cell, Outcome

__all__ = [
    "Meter",
    "error",
    "meter",
    "note",
    "out",
    "say",
    "show_findings",
    "show_outcome",
    "show_study",
    "show_table",
    "typed",
]

_PLAIN_WIDTH = 160  # of tables that go to a file or a pipe, where there is no terminal to ask
_PLAIN_INTERVAL_S = 5.0

out = Console(highlight=False)
if not out.is_terminal:
    out = Console(highlight=False, width=_PLAIN_WIDTH)
_err = Console(stderr=True, highlight=False, soft_wrap=True)


def say(message: str) -> None:
    """A line of progress or advice."""
    _err.print(escape(message))


def note(message: str) -> None:
    """A line that matters less."""
    _err.print(escape(message), style="dim")


def error(message: str) -> None:
    """What went wrong, as one short paragraph."""
    _err.print(f"[bold red]Error:[/] {escape(message)}")


def show_findings(findings: Sequence[Finding]) -> None:
    """What is odd about a corpus, worst first."""
    styles = {"error": "bold red", "warning": "yellow", "note": "dim"}
    for level in ("error", "warning", "note"):
        for finding in findings:
            if finding.level == level:
                examples = f" ({', '.join(finding.examples[:3])}{', …' if len(finding.examples) > 3 else ''})"
                tail = examples if finding.examples else ""
                _err.print(f"[{styles[level]}]{level}:[/] {escape(finding.message + tail)}")


def show_table(table: Table) -> None:
    """A comparison table: one matrix per fusion, notes below."""
    from rich.table import Table as Grid
    from rich.text import Text

    for block in table.blocks:
        grid = Grid(
            title=escape(f"{block.title}: {table.heading}"), title_justify="left", title_style="bold", show_lines=True
        )
        grid.add_column("")
        for column in block.columns:
            grid.add_column(column, justify="right", no_wrap=not out.is_terminal)
        for head, entries in block.rows:
            cells = []
            for entry in entries:
                text = Text()
                if entry.score:
                    # The word stays where bold is lost: in a file, a pipe, a screen reader.
                    text.append(entry.score + (" best" if entry.best else ""), style="bold" if entry.best else "")
                    for line in filter(None, (entry.others, entry.drops)):
                        text.append(f"\n{line}", style="dim")
                cells.append(text)
            grid.add_row(head, *cells)
        out.print(grid)
    for warning in table.warnings:
        out.print(escape(warning), style="bold yellow")
    for line in table.notes:
        out.print(escape(line))


def show_outcome(outcome: Outcome) -> None:
    """What a study found: its tables, then warnings, answers and notes."""
    from rich.table import Table as Grid

    for table in outcome.tables:
        grid = Grid(
            title=table.title, title_justify="left", title_style="bold", caption=table.about, caption_justify="left"
        )
        for index, column in enumerate(table.columns):
            grid.add_column(
                escape(column.title), justify="left" if index == 0 else "right", no_wrap=not out.is_terminal
            )
        for row in table.rows:
            grid.add_row(
                *(
                    escape(cell if isinstance(cell, str) else _number(cell, table.columns[index].digits))
                    for index, cell in enumerate(row)
                )
            )
        out.print(grid)
    for warning in outcome.warnings:
        out.print(escape(warning), style="bold yellow")
    for answer in outcome.answers:
        out.print(escape(answer), style="bold")
    for line in outcome.notes:
        out.print(escape(line))


def show_study(outcome: Outcome, run_dir: Path, *, files: str, more: str = "") -> None:
    """How every study ends: what it found, where it lies, what comes next."""
    show_outcome(outcome)
    say(f"Everything is in {run_dir}: {files}.")
    if more:
        say(more)
    note(f"Next: `hyfuse report {run_dir}`.")


def typed() -> str:
    """The command line as it was given, to be written into a run."""
    return shlex.join(["hyfuse", *sys.argv[1:]])


def _number(cell: Cell, digits: int) -> str:
    """A number as a table shows it: with its interval and its mark; empty for none."""
    if math.isnan(cell.value):
        return ""
    interval = "" if math.isnan(cell.low) else f" [{cell.low:.{digits}f}, {cell.high:.{digits}f}]"
    return f"{cell.value:.{digits}f}{interval}{cell.mark}"


class Meter:
    """A progress display: a bar on a terminal, a line now and then elsewhere."""

    def __init__(self, update: Callable[[int, int, str], None]) -> None:
        self._update = update

    def __call__(self, done: int, total: int, text: str = "") -> None:
        """Show that ``done`` of ``total`` is reached; ``text`` says at what speed, for instance."""
        self._update(done, total, text)


@contextmanager
def meter(title: str, unit: str) -> Iterator[Meter]:
    """Progress of one piece of work, counted in ``unit``."""
    if _err.is_terminal:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(unit),
            TextColumn("{task.fields[text]}"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=_err) as progress:
            task = progress.add_task(escape(title), total=None, text="")

            def on_terminal(done: int, total: int, text: str) -> None:
                progress.update(task, completed=done, total=total, text=text)

            yield Meter(on_terminal)
        return
    started = last = time.monotonic()
    first_done: int | None = None
    shown = -1

    def as_lines(done: int, total: int, text: str) -> None:
        nonlocal last, shown, first_done
        now = time.monotonic()
        if first_done is None:
            first_done = done
        if done == shown or (now - last < _PLAIN_INTERVAL_S and done < total):
            return
        last, shown = now, done
        speed = (done - first_done) / max(now - started, 1e-9)
        # Not from the first few: what comes before them, such as starting processes, is not work on utterances.
        left = f", {(total - done) / speed:.0f} s left" if done < total and done - first_done >= total / 50 else ""
        say(f"{title}: {done}/{total} {unit}{f', {text}' if text else ''}{left}")

    yield Meter(as_lines)
