"""The comparison table: rows RLR, columns CBR, one block per fusion, singles on the margins, as text in three formats.

Every cell shows UAR in per cent with its 95 % interval (bootstrap over speakers), and accuracy and macro-F1 beside it. The best
UAR of the whole table is bold. What the table is about (corpus, protocol, speakers, seeds, weights) stands under it, and what a
reader must know (random weights, a speaker-dependent protocol) stands there in words.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pipelines.evaluation.results import CellScore
from pipelines.files import write_atomically
from pipelines.studies.pairs import Comparison

__all__ = ["Block", "Entry", "Table", "build_table", "to_csv", "to_latex", "to_markdown", "write_table"]

ALONE = "alone"

_LEGEND = (
    "Cells: UAR [95 % interval]; accuracy, macro-F1; UAR points lost when the left / the right input is shuffled among the test"
    " utterances (a fusion that loses nothing does not use that input). * best UAR."
)


@dataclass(frozen=True)
class Entry:
    """One cell of a block.

    Attributes:
        uar: per cent with interval; empty where nothing was computed.
        others: accuracy and macro-F1.
        drops: UAR points lost when the left and when the right input is shuffled; empty for a single representation.
        best: whether this is the best UAR of the table.
    """

    uar: str = ""
    others: str = ""
    drops: str = ""
    best: bool = False


@dataclass(frozen=True)
class Block:
    """One fusion's matrix.

    Attributes:
        title: fusion.
        columns: heads of the columns; the last one is the margin.
        rows: (head, entries); the last one is the margin.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Entry, ...]], ...]


@dataclass(frozen=True)
class Table:
    """The whole comparison.

    Attributes:
        blocks: one per fusion (one without title if there are only singles).
        scores: every cell, in order.
        notes: what stands under the table, one sentence or list of facts each.
        warnings: what a reader must not overlook.
    """

    blocks: tuple[Block, ...]
    scores: tuple[CellScore, ...] = field(repr=False)
    notes: tuple[str, ...]
    warnings: tuple[str, ...]


def build_table(comparison: Comparison) -> Table:
    """Arrange the scores of a comparison as blocks; encoders with random weights say so wherever they appear."""
    scores = comparison.scores
    sources = comparison.dataset.sources
    titles = {
        name: f"{name} ({source.weights_kind})"
        for name, source in sources.items()
        if source.weights_kind != "pretrained"
    }
    singles = {score.left: score for score in scores if not score.right}
    fused = [score for score in scores if score.right]
    best = max((score.uar for score in scores), default=0.0)
    blocks = []
    for fusion in dict.fromkeys(score.fusion for score in fused):
        cells = {(score.left, score.right): score for score in fused if score.fusion == fusion}
        lefts = list(dict.fromkeys(left for left, _ in cells))
        rights = list(dict.fromkeys(right for _, right in cells))
        rows = [
            (
                titles.get(left, left),
                (*(_entry(cells.get((left, right)), best) for right in rights), _entry(singles.get(left), best)),
            )
            for left in lefts
        ]
        margin = (*(_entry(singles.get(right), best) for right in rights), Entry())
        columns = (*(titles.get(right, right) for right in rights), ALONE)
        blocks.append(Block(fusion, columns, (*rows, (ALONE, margin))))
    if not fused:
        rows = [(titles.get(name, name), (_entry(score, best),)) for name, score in singles.items()]
        blocks.append(Block("single representations", (ALONE,), tuple(rows)))
    notes = (_LEGEND, *comparison.notes) if fused else comparison.notes
    return Table(tuple(blocks), tuple(scores), notes, comparison.warnings)


def _entry(score: CellScore | None, best: float) -> Entry:
    if score is None:
        return Entry()
    interval = score.uar_interval
    bounds = "–" if math.isnan(interval.low) else f"{100 * interval.low:.1f}, {100 * interval.high:.1f}"
    return Entry(
        uar=f"{100 * score.uar:.1f} [{bounds}]",
        others=f"acc {100 * score.accuracy:.1f} · F1 {100 * score.macro_f1:.1f}",
        drops=f"−{100 * score.left_drop:.1f} / −{100 * score.right_drop:.1f}".replace("−-", "+") if score.right else "",
        best=score.uar == best,
    )


def to_csv(table: Table) -> str:
    """One line per cell, scores between 0 and 1; for other programs."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    rows = [score.to_record() for score in table.scores]
    if rows:
        writer.writerow(rows[0])
        writer.writerows(
            [f"{value:.6f}" if isinstance(value, float) else value for value in row.values()] for row in rows
        )
    return text.getvalue()


def to_markdown(table: Table) -> str:
    """The blocks as GitHub tables, notes below."""
    parts = []
    for block in table.blocks:
        lines = [f"**{block.title}** — UAR % [95 % interval], accuracy %, macro-F1 %", ""]
        lines.append("| | " + " | ".join(block.columns) + " |")
        lines.append("|---" * (len(block.columns) + 1) + "|")
        for head, entries in block.rows:
            lines.append(f"| {head} | " + " | ".join(_markdown(entry) for entry in entries) + " |")
        parts.append("\n".join(lines))
    parts += [f"**{warning}**" for warning in table.warnings]
    parts += list(table.notes)
    return "\n\n".join(parts) + "\n"


def _markdown(entry: Entry) -> str:
    if not entry.uar:
        return ""
    uar = f"**{entry.uar}**" if entry.best else entry.uar
    return "<br>".join(filter(None, (uar, entry.others, entry.drops)))


_LATEX: Mapping[str, str] = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "·": r"$\cdot$", "×": r"$\times$", "−": "$-$",
}  # fmt: skip


def _escaped(text: str) -> str:
    return "".join(_LATEX.get(letter, letter) for letter in text)


def to_latex(table: Table) -> str:
    r"""The blocks as one ``booktabs`` tabular each (``\usepackage{booktabs}``), notes as comments and below."""
    parts = []
    for block in table.blocks:
        lines = [
            r"\begin{tabular}{l" + "c" * len(block.columns) + "}",
            r"\toprule",
            rf"\multicolumn{{{len(block.columns) + 1}}}{{l}}{{{_escaped(block.title)}: UAR \% [95\,\% interval]}} \\",
            r"\midrule",
            " & ".join(["", *map(_escaped, block.columns)]) + r" \\",
            r"\midrule",
        ]
        for head, entries in block.rows:
            cells = [rf"\textbf{{{_escaped(entry.uar)}}}" if entry.best else _escaped(entry.uar) for entry in entries]
            lines.append(" & ".join([_escaped(head), *cells]) + r" \\")
            for texts in ([entry.others for entry in entries], [entry.drops for entry in entries]):
                small = [rf"{{\footnotesize {_escaped(text)}}}" if text else "" for text in texts]
                if any(small):
                    lines.append(" & ".join(["", *small]) + r" \\")
        lines += [r"\bottomrule", r"\end{tabular}"]
        parts.append("\n".join(lines))
    closing = [rf"\par\textbf{{{_escaped(warning)}}}" for warning in table.warnings]
    closing += [rf"\par {_escaped(note)}" for note in table.notes]
    return "\n\n".join([*parts, "\n".join(closing)]) + "\n"


def write_table(table: Table, run_dir: Path) -> None:
    """Write ``table.csv``, ``table.md`` and ``table.tex``.

    Raises:
        StorageError: the disk is full or cannot be written.
    """
    for suffix, content in (("csv", to_csv(table)), ("md", to_markdown(table)), ("tex", to_latex(table))):
        write_atomically(run_dir / f"table.{suffix}", content, option="--runs-dir")
