"""The comparison table: rows RLR, columns CBR, one block per head, singles on the margins, as text in three formats.

Every cell shows UAR in per cent with its 95 % interval (over speakers), and accuracy and macro-F1 beside it; where the target is
dimensions, the mean CCC with its interval, and the CCC of every dimension (of a single one, Pearson's correlation and the mean
absolute error). Marks say what was tested (``studies.answers``): † a fusion that does not use one of its inputs, ↑ ↓ one that is
significantly better or worse than the better of its single representations, ‡ a head that is significantly better than the linear
rung (logistic or ridge regression). The best score of the whole table is bold. The singles beside a linear rung are linear
themselves.

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

from pipelines.evaluation.measures import Measure, measure_of
from pipelines.evaluation.results import CellScore
from pipelines.evaluation.runs import Run
from pipelines.files import write_atomically
from pipelines.fusion.catalogue import SINGLE
from pipelines.reports.shuffles import Drops, corrected_drops
from pipelines.studies.answers import Answer, CellEvidence, Evidence, weigh_comparison, weigh_run
from pipelines.studies.pairs import Comparison

__all__ = [
    "Block",
    "Entry",
    "Table",
    "build_run_table",
    "build_table",
    "escape_latex",
    "to_csv",
    "to_latex",
    "to_markdown",
    "write_table",
]

ALONE = "alone"

_LEGEND = (
    "Cells: {score} [95 % interval], the best in bold; {others}; {lost} lost when the left / the right input is shuffled"
    " among the test utterances, * if that is significant. † does not depend on one of its inputs (less than {least} is lost, and"
    " nothing significant). ↑ ↓ significantly better, worse than the better of its single representations. ‡ significantly better"
    " than {rung} on the same input. Significant: p < .05, Holm-corrected over the table."
)


@dataclass(frozen=True)
class Entry:
    """One cell of a block.

    Attributes:
        score: UAR in per cent, or mean CCC, with marks and interval; empty where nothing was computed.
        others: accuracy and macro-F1, or the CCC of every dimension.
        drops: what of the score is lost when the left and when the right input is shuffled, ``*`` if significant; empty for a
            single representation.
        best: whether this is the best score of the table.
        marks: those in ``score``, alone.
    """

    score: str = ""
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
        measure: how the cells are judged.
    """

    blocks: tuple[Block, ...]
    cells: tuple[CellEvidence, ...] = field(repr=False)
    answers: tuple[Answer, ...]
    notes: tuple[str, ...]
    warnings: tuple[str, ...]
    measure: Measure

    @property
    def heading(self) -> str:
        """What the first line of an entry is: ``UAR % [95 % interval]``, ``CCC [95 % interval]``."""
        return f"{self.measure.name}{' %' if self.measure.factor == 100 else ''} [95 % interval]"

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
    scores = [cell.score for cell in evidence.cells]
    measure = scores[0].measure if scores else measure_of("emotion")
    best = max((score.value for score in scores), default=0.0)
    drops = {cell.score.cell: found for cell, found in zip(evidence.cells, corrected_drops(scores), strict=True)}
    singles: dict[str, dict[str, CellEvidence]] = {SINGLE: {}, measure.linear: {}}
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
        linear = next(iter(cells.values())).score.fusion == measure.linear
        alone = singles[measure.linear if linear else SINGLE]
        lefts = list(dict.fromkeys(left for left, _ in cells))
        rights = list(dict.fromkeys(right for _, right in cells))
        rows = [
            (
                titles.get(left, left),
                (*(_entry(cells.get((left, right)), best, drops) for right in rights), _entry(alone.get(left), best)),
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
        under = (*evidence.remarks, *notes)
        return Table(tuple(blocks), evidence.cells, evidence.answers, under, tuple(warnings), measure)
    said = [f"{answer.question} {answer.sentence}" for answer in evidence.answers]
    for name, answers in evidence.by_dimension.items():
        # Of one dimension alone only what the paper is about; the rest is in `Evidence.by_dimension`.
        said += [f"{name.capitalize()} alone: {answers[0].question} {answers[0].sentence}"]
    under = (_legend(measure), *said, *evidence.remarks, *evidence.caveats, *notes)
    return Table(tuple(blocks), evidence.cells, evidence.answers, under, tuple(warnings), measure)


def _legend(measure: Measure) -> str:
    """What a cell shows and what its marks mean."""
    if not measure.dimensions:
        words = {"score": "UAR", "others": _beside(measure), "lost": "UAR points", "least": "a point"}
    else:
        score = "mean CCC over the dimensions" if len(measure.dimensions) > 1 else measure.name
        words = {"score": score, "others": _beside(measure), "lost": "CCC", "least": measure.text(measure.unused_below)}
    return _LEGEND.format(**words, rung=measure.rung)


def _beside(measure: Measure) -> str:
    """What stands beside the score of a cell."""
    if not measure.dimensions:
        return "accuracy, macro-F1"
    return "CCC of each" if len(measure.dimensions) > 1 else "Pearson's correlation, mean absolute error"


def _others(score: CellScore) -> str:
    """What stands beside the score of a cell, in numbers."""
    values, measure = {name: one.value for name, one in score.estimates.items()}, score.measure
    if not score.dimensions:
        return f"acc {measure.text(values['accuracy'])} · F1 {measure.text(values['macro_f1'])}"
    if len(score.dimensions) > 1:
        return " · ".join(f"{name} {measure.text(values[f'ccc_{name}'])}" for name in score.dimensions)
    return f"Pearson {measure.text(values['pearson'])} · MAE {measure.text(values['mae'])}"


def _entry(cell: CellEvidence | None, best: float, drops_of: Mapping[str, Drops] | None = None) -> Entry:
    if cell is None:
        return Entry()
    score, interval, text = cell.score, cell.score.interval, cell.score.measure.text
    bounds = "–" if math.isnan(interval.low) else f"{text(interval.low)}, {text(interval.high)}"
    tested = (drops_of or {}).get(score.cell, Drops())
    drops = f"−{text(score.left_drop)}{tested.left_mark} / −{text(score.right_drop)}{tested.right_mark}"
    return Entry(
        score=f"{text(score.value)}{cell.marks} [{bounds}]".replace("-", "−"),
        others=_others(score).replace("-", "−"),
        drops=drops.replace("−-", "+") if score.right else "",
        best=score.value == best,
        marks=cell.marks,
    )


def to_csv(table: Table) -> str:
    """One line per cell, scores as fractions, tests and diagnostics behind them; for other programs."""
    drops = corrected_drops([cell.score for cell in table.cells])
    rows = [_record(cell, found) for cell, found in zip(table.cells, drops, strict=True)]
    names = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    if rows:
        writer.writerow(names)
        writer.writerows([[_plain(row.get(name, "")) for name in names] for row in rows])
    return text.getvalue()


def _plain(value: object) -> object:
    return f"{value:.6f}" if isinstance(value, float) else value


def _record(cell: CellEvidence, drops: Drops) -> dict[str, Any]:
    """A cell as named numbers; what was not tested is empty, diagnostics come last."""
    record = cell.score.to_record()
    diagnostics = {name: record.pop(name) for name in list(record) if name.startswith("diagnostic_")}
    record |= {"left_drop_p_holm": drops.left_p_holm, "right_drop_p_holm": drops.right_p_holm}
    for name, verdict in (("single", cell.against_single), (cell.score.measure.linear, cell.against_linear)):
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
        beside = _beside(table.measure) if table.measure.dimensions else "accuracy %, macro-F1 %"
        lost = "CCC" if table.measure.dimensions else "UAR points"
        shown = f"{table.heading}, {beside}, {lost} lost by shuffling left / right"
        lines = [f"**{block.title}** — {shown}", ""]
        lines.append("| | " + " | ".join(block.columns) + " |")
        lines.append("|---" * (len(block.columns) + 1) + "|")
        for head, entries in block.rows:
            lines.append(f"| {head} | " + " | ".join(_markdown(entry) for entry in entries) + " |")
        parts.append("\n".join(lines))
    parts += [f"**{warning}**" for warning in table.warnings]
    parts += list(table.notes)
    return "\n\n".join(parts) + "\n"


def _markdown(entry: Entry) -> str:
    if not entry.score:
        return ""
    score = f"**{entry.score}**" if entry.best else entry.score
    return "<br>".join(filter(None, (score, entry.others, entry.drops)))


_LATEX: Mapping[str, str] = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "·": r"$\cdot$", "×": r"$\times$", "−": "$-$",
    "†": r"$^\dagger$", "‡": r"$^\ddagger$", "*": "$^*$", "↑": r"$^\uparrow$", "↓": r"$^\downarrow$", "<": "$<$", ">": "$>$",
}  # fmt: skip


def escape_latex(text: str) -> str:
    """Text with what LaTeX would take for commands escaped, and marks as mathematics."""
    return "".join(_LATEX.get(letter, letter) for letter in text)


def to_latex(table: Table) -> str:
    r"""The blocks as one ``booktabs`` tabular each (``\usepackage{booktabs}``), notes as comments and below."""
    parts = []
    for block in table.blocks:
        lines = [
            r"\begin{tabular}{l" + "c" * len(block.columns) + "}",
            r"\toprule",
            rf"\multicolumn{{{len(block.columns) + 1}}}{{l}}{{{escape_latex(f'{block.title}: {table.heading}')}}} \\",
            r"\midrule",
            " & ".join(["", *map(escape_latex, block.columns)]) + r" \\",
            r"\midrule",
        ]
        for head, entries in block.rows:
            cells = [
                rf"\textbf{{{escape_latex(entry.score)}}}" if entry.best else escape_latex(entry.score)
                for entry in entries
            ]
            lines.append(" & ".join([escape_latex(head), *cells]) + r" \\")
            for texts in ([entry.others for entry in entries], [entry.drops for entry in entries]):
                small = [rf"{{\footnotesize {escape_latex(text)}}}" if text else "" for text in texts]
                if any(small):
                    lines.append(" & ".join(["", *small]) + r" \\")
        lines += [r"\bottomrule", r"\end{tabular}"]
        parts.append("\n".join(lines))
    closing = [rf"\par\textbf{{{escape_latex(warning)}}}" for warning in table.warnings]
    closing += [rf"\par {escape_latex(note)}" for note in table.notes]
    return "\n\n".join([*parts, "\n".join(closing)]) + "\n"


def write_table(table: Table, run_dir: Path) -> None:
    """Write ``table.csv``, ``table.md`` and ``table.tex``.

    Raises:
        StorageError: the disk is full or cannot be written.
    """
    for suffix, content in (("csv", to_csv(table)), ("md", to_markdown(table)), ("tex", to_latex(table))):
        write_atomically(run_dir / f"table.{suffix}", content, option="--runs-dir")
