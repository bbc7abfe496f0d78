"""The comparison table: rows RLR, columns CBR, one block per head, singles on the margins, as text in three formats.

Every cell shows UAR in per cent with its 95 % interval (over speakers), and accuracy and macro-F1 beside it; marks say what was
tested (``studies.answers``): † a fusion that does not use one of its inputs, ↑ ↓ one that is significantly better or worse than
the better of its single representations, ‡ a head that is significantly better than logistic regression. The best UAR of the
whole table is bold. The singles beside logistic regression are logistic regressions themselves.

Under the table stand the answers to the questions it was made for, then what it is about (corpus, protocol, speakers, seeds,
weights); what a reader must know (random weights, a speaker-dependent protocol) stands there in words.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.evaluation.results import CellScore
from pipelines.evaluation.runs import Run
from pipelines.files import write_atomically
from pipelines.fusion.catalogue import SINGLE
from pipelines.studies.answers import Answer, CellEvidence, Evidence, weigh_comparison, weigh_run
from pipelines.studies.pairs import Comparison
from pipelines.training.logistic import LOGISTIC

__all__ = [
    "Block",
    "Entry",
    "Table",
    "build_run_table",
    "build_table",
    "to_csv",
    "to_latex",
    "to_markdown",
    "write_table",
]

ALONE = "alone"

_LEGEND = (
    "Cells: UAR [95 % interval]; accuracy, macro-F1; UAR points lost when the left / the right input is shuffled among the test"
    " utterances. * best UAR. † does not depend on one of its inputs (less than a point is lost, and nothing significant)."
    " ↑ ↓ significantly better, worse than the better of its single representations. ‡ significantly better than logistic"
    " regression on the same input. Significant: p < .05, Holm-corrected over the table."
)


@dataclass(frozen=True)
class Entry:
    """One cell of a block.

    Attributes:
        uar: per cent with marks and interval; empty where nothing was computed.
        others: accuracy and macro-F1.
        drops: UAR points lost when the left and when the right input is shuffled; empty for a single representation.
        best: whether this is the best UAR of the table.
        marks: those in ``uar``, alone.
    """

    uar: str = ""
    others: str = ""
    drops: str = ""
    best: bool = False
    marks: str = ""


@dataclass(frozen=True)
class Block:
    """One head's matrix.

    Attributes:
        title: fusion, with what tells it from another head of the same fusion.
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
        blocks: one per head (one without fusion if there are only singles).
        cells: every cell with what was tested about it, in order.
        answers: to the questions that the table was made for.
        notes: what stands under the table, one sentence or list of facts each; the answers among them.
        warnings: what a reader must not overlook.
    """

    blocks: tuple[Block, ...]
    cells: tuple[CellEvidence, ...] = field(repr=False)
    answers: tuple[Answer, ...]
    notes: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def scores(self) -> tuple[CellScore, ...]:
        """Every cell's scores, in order."""
        return tuple(cell.score for cell in self.cells)


def build_table(comparison: Comparison) -> Table:
    """Arrange and weigh the scores of a comparison; encoders with random weights say so wherever they appear."""
    kinds = {name: source.weights_kind for name, source in comparison.dataset.sources.items()}
    return _table(weigh_comparison(comparison), kinds, comparison.notes, comparison.warnings)


def build_run_table(run: Run) -> Table:
    """The same from a run folder."""
    kinds = {name: str(source["weights_kind"]) for name, source in run.config["sources"].items()}
    notes, warnings = (tuple(map(str, run.config.get(name, ()))) for name in ("notes", "warnings"))
    return _table(weigh_run(run), kinds, notes, warnings)


def _table(evidence: Evidence, kinds: Mapping[str, str], notes: Sequence[str], warnings: Sequence[str]) -> Table:
    titles = {name: f"{name} ({kind})" for name, kind in kinds.items() if kind != "pretrained"}
    best = max((cell.score.uar for cell in evidence.cells), default=0.0)
    singles: dict[str, dict[str, CellEvidence]] = {SINGLE: {}, LOGISTIC: {}}
    heads: dict[str, dict[tuple[str, str], CellEvidence]] = {}
    for cell in evidence.cells:
        score = cell.score
        if score.right:
            name = score.cell.removeprefix(f"{score.left}+{score.right}").strip()
            heads.setdefault(name, {})[score.left, score.right] = cell
        else:
            singles[score.fusion][score.left] = cell
    blocks = []
    for name, cells in heads.items():
        alone = singles[LOGISTIC if next(iter(cells.values())).score.fusion == LOGISTIC else SINGLE]
        lefts = list(dict.fromkeys(left for left, _ in cells))
        rights = list(dict.fromkeys(right for _, right in cells))
        rows = [
            (
                titles.get(left, left),
                (*(_entry(cells.get((left, right)), best) for right in rights), _entry(alone.get(left), best)),
            )
            for left in lefts
        ]
        margin = (*(_entry(alone.get(right), best) for right in rights), Entry())
        columns = (*(titles.get(right, right) for right in rights), ALONE)
        blocks.append(Block(name, columns, (*rows, (ALONE, margin))))
    if not heads:
        columns = tuple(kind for kind, cells in singles.items() if cells)
        names = list(dict.fromkeys(name for cells in singles.values() for name in cells))
        rows = [
            (titles.get(name, name), tuple(_entry(singles[kind].get(name), best) for kind in columns)) for name in names
        ]
        named = tuple(ALONE if kind == SINGLE else kind for kind in columns)
        blocks.append(Block("single representations", named, tuple(rows)))
        return Table(tuple(blocks), evidence.cells, evidence.answers, (*evidence.remarks, *notes), tuple(warnings))
    said = [f"{answer.question} {answer.sentence}" for answer in evidence.answers]
    under = (_LEGEND, *said, *evidence.remarks, *evidence.caveats, *notes)
    return Table(tuple(blocks), evidence.cells, evidence.answers, under, tuple(warnings))


def _entry(cell: CellEvidence | None, best: float) -> Entry:
    if cell is None:
        return Entry()
    score, interval = cell.score, cell.score.uar_interval
    bounds = "–" if math.isnan(interval.low) else f"{100 * interval.low:.1f}, {100 * interval.high:.1f}"
    drops = f"−{100 * score.left_drop:.1f} / −{100 * score.right_drop:.1f}".replace("−-", "+")
    return Entry(
        uar=f"{100 * score.uar:.1f}{cell.marks} [{bounds}]",
        others=f"acc {100 * score.accuracy:.1f} · F1 {100 * score.macro_f1:.1f}",
        drops=drops if score.right else "",
        best=score.uar == best,
        marks=cell.marks,
    )


def to_csv(table: Table) -> str:
    """One line per cell, scores between 0 and 1, tests and diagnostics behind them; for other programs."""
    rows = [_record(cell) for cell in table.cells]
    names = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    if rows:
        writer.writerow(names)
        writer.writerows([[_plain(row.get(name, "")) for name in names] for row in rows])
    return text.getvalue()


def _plain(value: object) -> object:
    return f"{value:.6f}" if isinstance(value, float) else value


def _record(cell: CellEvidence) -> dict[str, Any]:
    """A cell as named numbers; what was not tested is empty, diagnostics come last."""
    record = cell.score.to_record()
    diagnostics = {name: record.pop(name) for name in list(record) if name.startswith("diagnostic_")}
    for name, verdict in (("single", cell.against_single), ("logistic", cell.against_logistic)):
        record |= {
            f"versus_{name}": verdict.other if verdict else "",
            f"versus_{name}_difference": verdict.difference.value if verdict else "",
            f"versus_{name}_low": verdict.difference.interval.low if verdict else "",
            f"versus_{name}_high": verdict.difference.interval.high if verdict else "",
            f"versus_{name}_p": verdict.difference.p if verdict else "",
            f"versus_{name}_p_holm": verdict.p_holm if verdict else "",
            f"versus_{name}_p_wilcoxon": verdict.difference.wilcoxon_p if verdict else "",
        }
    return record | {"unused": " ".join(cell.unused), "marks": cell.marks} | diagnostics


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
    "†": r"$^\dagger$", "‡": r"$^\ddagger$", "↑": r"$^\uparrow$", "↓": r"$^\downarrow$", "<": "$<$", ">": "$>$",
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
