"""``hyfuse compare-runs``: what two runs differ in, and whether that shows in their scores."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hyfuse_cli import console
from hyfuse_cli.options import RunsDir

if TYPE_CHECKING:
    from pipelines.evaluation.runs import RunComparison

__all__ = ["compare_runs"]

_FORMATS = ("text", "markdown", "json")
_SHOWN = 60  # characters of a setting's value
_HEADS = (
    "cell",
    "first",
    "second",
    "difference [95 %]",
    "p",
    "p (Holm)",
    "p (Wilcoxon)",
    "speakers better / worse",
)


def compare_runs(
    first: Annotated[str, typer.Argument(help="Run folder, or its name in --runs-dir.", metavar="A")],
    second: Annotated[str, typer.Argument(help="Run folder, or its name in --runs-dir.", metavar="B")],
    runs_dir: RunsDir = Path("runs"),
    form: Annotated[str, typer.Option("--format", help="text, markdown or json.")] = "text",
) -> None:
    """Say what differs between two runs, and test every cell that both have: B minus A.

    Cells are compared on the predictions in the run folders, if both runs tested the same utterances; otherwise the reason
    is said. Exit status 1 if no cell could be compared.
    """
    from pipelines.errors import ConfigError
    from pipelines.evaluation.runs import compare_runs as compare
    from pipelines.evaluation.runs import read_run

    if form not in _FORMATS:
        raise ConfigError(f"--format must be one of {', '.join(_FORMATS)}, not {form!r}.")
    folders = [_folder(name, runs_dir) for name in (first, second)]
    found = compare(read_run(folders[0]), read_run(folders[1]))
    if form == "json":
        typer.echo(json.dumps(_as_json(found), indent=2))
    elif form == "markdown":
        typer.echo(_as_markdown(found))
    else:
        _show(found)
    if not found.cells:
        raise typer.Exit(1)


def _folder(name: str, runs_dir: Path) -> Path:
    """A path if there is one of that name, a run of the runs folder otherwise."""
    path = Path(name)
    return path if path.is_dir() or len(path.parts) > 1 else runs_dir / name


def _show(found: RunComparison) -> None:
    from rich.markup import escape
    from rich.table import Table

    if found.settings:
        table = Table(box=None, pad_edge=False, title="What differs", title_justify="left", title_style="bold")
        for head in ("setting", "A", "B"):
            table.add_column(head, overflow="fold")
        for setting in _settings(found):
            table.add_row(*map(escape, setting))
        console.out.print(table)
    else:
        console.out.print("Nothing that is recorded differs between the two runs.")
    if found.cells:
        table = Table(box=None, pad_edge=False, title=_title(found), title_justify="left", title_style="bold")
        for head in _HEADS:
            table.add_column(head, justify="left" if head == "cell" else "right")
        for row in _rows(found):
            table.add_row(*map(escape, row))
        console.out.print(table)
    for line in _lines(found):
        console.out.print(line, markup=False, soft_wrap=True)


def _title(found: RunComparison) -> str:
    measure = found.measure
    return f"{measure.name}{' %' if measure.factor == 100 else ''}, B minus A"


def _settings(found: RunComparison) -> list[tuple[str, str, str]]:
    return [(one.name, _short(one.first), _short(one.second)) for one in found.settings]


def _short(value: object) -> str:
    """A setting's value on one line; digests to their first twelve digits."""
    if value is None:
        return "–"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    if len(text) == 64 and set(text) <= set("0123456789abcdef"):
        return text[:12]
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"


def _rows(found: RunComparison) -> list[tuple[str, ...]]:
    from pipelines.studies.answers import p_text

    rows, measure = [], found.measure
    for cell in found.cells:
        one = cell.differences[measure.key]
        bounds = "–" if math.isnan(one.p) else ", ".join(map(measure.change, (one.interval.low, one.interval.high)))
        rows.append(
            (
                cell.first.cell,
                measure.text(cell.first.value),
                measure.text(cell.second.value),
                f"{measure.change(one.value)} [{bounds}]",
                *(p_text(p).removeprefix("p = ").removeprefix("p ") for p in (one.p, cell.p_holm, one.wilcoxon_p)),
                f"{one.better} / {one.worse}",
            )
        )
    return rows


def _lines(found: RunComparison) -> list[str]:
    """The outcome in words, and what was not compared."""
    lines = []
    if found.cells:
        tested = [cell for cell in found.cells if cell.p_holm < 0.05]
        better, worse = (
            [cell.first.cell for cell in tested if sign * cell.differences[found.measure.key].value > 0]
            for sign in (1, -1)
        )
        count = f"{len(found.cells)} cell{'s' if len(found.cells) > 1 else ''}"
        lines.append(
            f"Of {count} that both runs have, B is significantly better in {len(better)}{_named(better)} and worse in"
            f" {len(worse)}{_named(worse)} (p < .05, Holm over the {count}; paired, over speakers and seeds)."
        )
    lines += [f"Not compared: {one.cell}. {one.reason}" for one in found.refusals]
    for which, names in (("A", found.only_first), ("B", found.only_second)):
        if names:
            lines.append(f"Only in {which}: {', '.join(names)}.")
    if not found.cells and not found.refusals:
        lines.append("The two runs have no cell in common, so no score was compared.")
    return [*lines, *found.cautions]


def _named(names: Sequence[str]) -> str:
    return f" ({', '.join(names)})" if names else ""


def _as_markdown(found: RunComparison) -> str:
    def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
        lines = [heads, ["---"] * len(heads), *rows]
        return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)

    parts = [f"A: `{found.first}`, B: `{found.second}`"]
    if found.settings:
        parts += ["**What differs**", table(("setting", "A", "B"), _settings(found))]
    else:
        parts.append("Nothing that is recorded differs between the two runs.")
    if found.cells:
        parts += [f"**{_title(found)}**", table(_HEADS, _rows(found))]
    return "\n\n".join([*parts, *_lines(found)])


def _as_json(found: RunComparison) -> dict[str, Any]:
    """Plain values; NaN, which JSON lacks, as null."""

    def number(value: float) -> float | None:
        return None if math.isnan(value) else value

    cells = []
    for cell in found.cells:
        differences = {}
        for name, one in cell.differences.items():
            differences[name] = {
                "difference": number(one.value),
                "low": number(one.interval.low),
                "high": number(one.interval.high),
                "p": number(one.p),
                "p_wilcoxon": number(one.wilcoxon_p),
                "speakers_better": one.better,
                "speakers_worse": one.worse,
            }
        differences[found.measure.key]["p_holm"] = number(cell.p_holm)
        scores = {
            which: {name: number(score.estimates[name].value) for name in cell.differences}
            for which, score in (("first", cell.first), ("second", cell.second))
        }
        cells.append({"cell": cell.first.cell, **scores, "differences": differences})
    return {
        "first": str(found.first),
        "second": str(found.second),
        "settings": [dataclasses.asdict(one) for one in found.settings],
        "cells": cells,
        "not_compared": [dataclasses.asdict(one) for one in found.refusals],
        "only_first": list(found.only_first),
        "only_second": list(found.only_second),
        "cautions": list(found.cautions),
    }
