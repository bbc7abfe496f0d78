"""What the study ``distill`` answers: questions with tests, tables and figures.

Scores are pooled over folds and averaged over seeds; differences are tested in pairs over speakers (``evaluation/statistics.py``)
and p-values are corrected after Holm within each question. A mean over conditions is the mean of the scores under each.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipelines.corpora.manifest import Manifest
from pipelines.corpora.protocols import Split
from pipelines.evaluation.measures import Measure, measure_of
from pipelines.evaluation.results import CellScore, HeadRecord
from pipelines.evaluation.statistics import (
    Difference,
    Interval,
    holm,
    resample,
    score,
    speaker_confusions,
    speaker_sums,
)
from pipelines.studies.answers import p_text
from pipelines.studies.efficiency import Efficient
from pipelines.studies.outcome import Cell, Column, Figure, Outcome, Series, Table
from pipelines.studies.pairs import score_heads, warnings_of
from pipelines.training.data import Dataset
from pipelines.training.grid import Cell as GridCell
from pipelines.training.trainer import TrainConfig

__all__ = ["Findings", "outcome_of", "score_of_head"]

_Key = TypeVar("_Key", bound=Hashable)

_LEVEL = 0.05
_ROLES = ("teacher", "baseline", "student")
_TITLES = {"teacher": "teacher", "baseline": "no teacher", "student": "student"}

_TRAININGS = {
    "multi": "one student, trained on all of these conditions together",
    "noisy": "one student, trained on all of these conditions but the first together",
    "matched": "a student of its own for every condition, trained on that one",
}


@dataclass(frozen=True)
class Findings:
    """What was trained and tested.

    Attributes:
        manifest: the corpus.
        dataset: its utterances.
        split: their folds.
        records: every head under every condition it was tested under; ``role`` and ``condition`` in their rows.
        blocks: conditions, the teacher's first.
        training: what students were trained on.
        train: hyper-parameters.
        settings: of the run.
        efficient: lines of the table of small systems, the large encoder first; none unless asked for.
    """

    manifest: Manifest
    dataset: Dataset
    split: Split
    records: tuple[HeadRecord, ...] = field(repr=False)
    blocks: tuple[str, ...]
    training: str
    train: TrainConfig
    settings: Mapping[str, Any]
    efficient: tuple[Efficient, ...] = ()

    @property
    def measure(self) -> Measure:
        """How systems are judged."""
        return measure_of(self.dataset.target, self.dataset.dimensions)

    @cached_property
    def scores(self) -> dict[tuple[str, str], CellScore]:
        """Role and condition to score, as far as tested."""
        found: dict[tuple[str, str], list[HeadRecord]] = {}
        for record in self.records:
            found.setdefault((record.row["role"], record.row["condition"]), []).append(record)
        return {key: _scored(self.dataset, heads) for key, heads in found.items()}


def _scored(dataset: Dataset, heads: Sequence[HeadRecord]) -> CellScore:
    row = heads[0].row
    return score_heads(dataset, GridCell(row["left"], row["right"], row["fusion"]), heads)


def score_of_head(dataset: Dataset, rows: NDArray[np.int64], outputs: NDArray[np.float32]) -> dict[str, float | None]:
    """Scores of one head on some utterances, None where one is not defined.

    Args:
        dataset: the utterances.
        rows: m of their positions.
        outputs: [m, C] probabilities, or [m, D] values.
    """
    together = [""] * len(rows)
    if dataset.dimensions:
        tallies = speaker_sums(dataset.values[rows], outputs[None], together)
    else:
        labels, found = dataset.labels[rows], outputs.argmax(axis=1)
        tallies = speaker_confusions(labels, found[None], together, num_classes=len(dataset.classes))
    measure = measure_of(dataset.target, dataset.dimensions)
    scores = {name: score(tallies, metric) for name, metric in measure.metrics.items()}
    return {name: None if math.isnan(value) else value for name, value in scores.items()}


def outcome_of(findings: Findings, *, command: str) -> Outcome:
    """Answers, tables and figures."""
    tested = _Tests(findings)
    return Outcome(
        study="distill",
        title=f"Distillation: {findings.dataset.corpus}, {findings.settings['student']} taught by"
        f" {findings.settings['acoustic']} + {findings.settings['lexical']}",
        corpus=findings.dataset.corpus,
        target=findings.dataset.target,
        answers=tuple(_answers(findings, tested)),
        notes=tuple(_notes(findings)),
        warnings=tuple(warnings_of(findings.manifest, findings.dataset, findings.split)),
        tables=tuple(_tables(findings, tested)),
        figures=tuple(_figures(findings, tested)),
        command=command,
        settings=dict(findings.settings),
    )


# ---------------------------------------------------------------------------------------------------------------------
# Tests


class _Tests:
    """Differences between roles, under every condition and on average; p as it is, Holm where a question has several."""

    def __init__(self, findings: Findings) -> None:
        self.findings = findings
        self.scores = findings.scores
        self.keys = list(self.scores)
        self.speakers = len(next(iter(self.scores.values())).speakers)
        self._resampled = {}
        for name, measure in self._measures().items():
            self._resampled[name] = resample([self.scores[key].tallies for key in self.keys], measure.metric)

    def _measures(self) -> dict[str, Measure]:
        """The score that decides under the empty name, and each dimension, where there are several."""
        measure = self.findings.measure
        several = measure.dimensions if len(measure.dimensions) > 1 else ()
        return {"": measure, **{name: measure.of(name) for name in several}}

    @property
    def dimensions(self) -> list[str]:
        """Those that are tested one by one."""
        return [name for name in self._resampled if name]

    def difference(self, first: str, second: str, conditions: Sequence[str], dimension: str = "") -> Difference:
        """Mean score of one role under some conditions minus that of another."""
        return self._resampled[dimension].difference(self._places(first, conditions), self._places(second, conditions))

    def more_in_noise(self) -> Difference:
        """Gain of the student under the other conditions, on average, minus its gain under the teacher's; half of it.

        Both sides of the comparison are means over as many cells: noisy students and clean baselines against the reverse.
        """
        base, *others = self.findings.blocks
        repeated = [base] * len(others)
        first = [*self._places("student", others), *self._places("baseline", repeated)]
        second = [*self._places("baseline", others), *self._places("student", repeated)]
        return self._resampled[""].difference(first, second)

    def _places(self, role: str, conditions: Sequence[str]) -> list[int]:
        return [self.keys.index((role, condition)) for condition in conditions]

    def has(self, role: str, condition: str) -> bool:
        """Whether a role was tested under a condition."""
        return (role, condition) in self.scores

    @cached_property
    def gains(self) -> dict[str, tuple[Difference, float]]:
        """Condition to student minus baseline, with p after Holm over the conditions."""
        blocks = self.findings.blocks
        return _corrected({name: self.difference("student", "baseline", [name]) for name in blocks})

    @cached_property
    def gains_of_dimensions(self) -> dict[tuple[str, str], tuple[Difference, float]]:
        """Dimension and condition likewise, with p after Holm over all of them."""
        return _corrected(
            {
                (dimension, name): self.difference("student", "baseline", [name], dimension)
                for dimension in self.dimensions
                for name in self.findings.blocks
            }
        )

    @cached_property
    def means_of_dimensions(self) -> dict[str, tuple[Difference, float]]:
        """Dimension to student minus baseline, mean over conditions, with p after Holm over the dimensions."""
        blocks = self.findings.blocks
        return _corrected({name: self.difference("student", "baseline", blocks, name) for name in self.dimensions})

    @cached_property
    def small(self) -> dict[str, tuple[Difference, float]]:
        """Title of a small system to its score minus that of the large encoder alone, with p after Holm."""
        large, *others = self.findings.efficient
        tallies = {one.title: _scored(self.findings.dataset, one.records).tallies for one in self.findings.efficient}
        names = list(tallies)
        resampled = resample([tallies[name] for name in names], self.findings.measure.metric)
        at = names.index(large.title)
        return _corrected({one.title: resampled.difference([names.index(one.title)], [at]) for one in others})


def _corrected(differences: Mapping[_Key, Difference]) -> dict[_Key, tuple[Difference, float]]:
    adjusted = holm([one.p for one in differences.values()])
    return {key: (one, p) for (key, one), p in zip(differences.items(), adjusted, strict=True)}


# ---------------------------------------------------------------------------------------------------------------------
# Sentences


def _answers(findings: Findings, tested: _Tests) -> list[str]:
    answers = [_helps(findings, tested), _where(findings, tested), _more_in_noise(findings, tested)]
    answers += [_dimensions(findings, tested)] if tested.dimensions else []
    answers += [_room(findings, tested)]
    answers += [_small(findings, tested)] if findings.efficient else []
    return answers


def _interval(measure: Measure, interval: Interval, factor: float = 1.0) -> str:
    if math.isnan(interval.low):
        return ""
    return f" [{measure.change(factor * interval.low)}, {measure.change(factor * interval.high)}]"


def _verdict(measure: Measure, one: Difference, p: float, *, test: str = "", factor: float = 1.0) -> str:
    """``+1.2 points [−0.3, +2.7], p = .031``."""
    value = f"{measure.change(factor * one.value)} {measure.unit}"
    return f"{value}{_interval(measure, one.interval, factor)}, {p_text(p)}{test}"


def _shown(p: float) -> bool:
    return p < _LEVEL  # False for NaN


def _helps(findings: Findings, tested: _Tests) -> str:
    measure, blocks = findings.measure, findings.blocks
    one = tested.difference("student", "baseline", blocks)
    student, baseline = (_mean(tested, role, blocks) for role in ("student", "baseline"))
    says = "is not shown to help" if not _shown(one.p) else "helps" if one.value > 0 else "does harm"
    return (
        f"Does the teacher help its student? On average over {len(blocks)} conditions the student reaches {measure.name}"
        f" {measure.full(student)} and the same head without a teacher {measure.full(baseline)}:"
        f" {_verdict(measure, one, one.p)}. The teacher {says}."
    )


def _mean(tested: _Tests, role: str, conditions: Sequence[str]) -> float:
    return float(np.mean([tested.scores[role, condition].value for condition in conditions]))


def _where(findings: Findings, tested: _Tests) -> str:
    measure = findings.measure
    listed = "; ".join(f"{name} {_verdict(measure, one, p)}" for name, (one, p) in tested.gains.items())
    return (
        f"Under which conditions? {_who(tested.gains, 'under')} (student minus the same head without a teacher, Holm over"
        f" {len(tested.gains)}): {listed}."
    )


def _who(found: Mapping[str, tuple[Difference, float]], joint: str) -> str:
    """``A gain is shown under a, a loss under b``."""
    better = ", ".join(name for name, (one, p) in found.items() if _shown(p) and one.value > 0)
    worse = ", ".join(name for name, (one, p) in found.items() if _shown(p) and one.value <= 0)
    if better:
        return f"A gain is shown {joint} {better}" + (f", a loss {joint} {worse}" if worse else "")
    return f"A loss is shown {joint} {worse}" if worse else f"Neither gain nor loss is shown {joint} any"


def _more_in_noise(findings: Findings, tested: _Tests) -> str:
    measure, (base, *others) = findings.measure, findings.blocks
    one = tested.more_in_noise()
    says = "No difference is shown" if not _shown(one.p) else "More" if one.value > 0 else "Less"
    verdict = _verdict(measure, one, one.p, factor=2.0)
    return f"Does it help more under {', '.join(others)} than under {base}? {says}: the gain differs by {verdict}."


def _dimensions(findings: Findings, tested: _Tests) -> str:
    listed = "; ".join(
        f"{name} {_verdict(findings.measure, one, p)}" for name, (one, p) in tested.means_of_dimensions.items()
    )
    return (
        f"Which dimension gains? {_who(tested.means_of_dimensions, 'for')} (mean over the conditions, Holm over"
        f" {len(tested.means_of_dimensions)}): {listed}."
    )


def _room(findings: Findings, tested: _Tests) -> str:
    """Under its own condition alone: what it teaches is what it says of recordings under this one."""
    measure, base = findings.measure, findings.blocks[0]
    one = tested.difference("teacher", "baseline", [base])
    says = (
        "It knows more than its students could find out by themselves"
        if _shown(one.p) and one.value > 0
        else "That it knows more than the head without a teacher is not shown, so there may be nothing to hand on"
    )
    return (
        f"Is there anything to learn from the teacher? Under {base}, where it teaches, it reaches {measure.name}"
        f" {measure.full(_mean(tested, 'teacher', [base]))}, {_verdict(measure, one, one.p)} against the head without a teacher."
        f" {says}."
    )


def _small(findings: Findings, tested: _Tests) -> str:
    measure, large = findings.measure, findings.efficient[0]
    score_of = {one.title: _scored(findings.dataset, one.records).value for one in findings.efficient}
    sentences = []
    for one in findings.efficient[1:]:
        difference, p = tested.small[one.title]
        share = ""
        if one.deployed is not None and large.deployed is not None:
            share = f"{100 * one.deployed / large.deployed:.0f} % of the parameters and "
        says = "below it" if difference.value < 0 else "above it"
        if not _shown(p):
            says = "no difference shown"
        sentences.append(
            f"{one.title} needs {share}{100 * one.cpu_s_per_s / large.cpu_s_per_s:.0f} % of the time, {measure.name}"
            f" {measure.full(score_of[one.title])}, {_verdict(measure, difference, p)}, {says}"
        )
    return (
        f"What does a small system cost in score? {large.title}: {measure.name} {measure.full(score_of[large.title])}. "
        + "; ".join(sentences)
        + f" (Holm over {len(sentences)})."
    )


# ---------------------------------------------------------------------------------------------------------------------
# Tables and figures


def _cell(measure: Measure, value: float, interval: Interval, mark: str = "") -> Cell:
    factor = measure.factor
    return Cell(value=factor * value, low=factor * interval.low, high=factor * interval.high, mark=mark)


def _gain_cells(measure: Measure, found: tuple[Difference, float]) -> tuple[Cell, Cell]:
    one, p = found
    return _cell(measure, one.value, one.interval, "*" if _shown(p) else ""), Cell(value=p)


def _tables(findings: Findings, tested: _Tests) -> list[Table]:
    measure = findings.measure
    unit = " %" if measure.factor == 100 else ""
    about = (
        f"{measure.name}{unit} with 95 % intervals over speakers. The student and the head without a teacher are the same head"
        f" on {findings.settings['student']}, with the same data, batches and seeds ({_TRAININGS[findings.training]}). The teacher"
        f" hears {findings.settings['acoustic']} under each condition and always has its words. Differences are paired; * marks p"
        " below .05 after Holm over the conditions."
    )
    rows: list[tuple[str | Cell, ...]] = []
    for name in findings.blocks:
        row: list[str | Cell] = [name]
        for role in _ROLES:
            known = tested.scores.get((role, name))
            row.append(Cell(value=math.nan) if known is None else _cell(measure, known.value, known.interval))
        rows.append((*row, *_gain_cells(measure, tested.gains[name])))
    mean = tested.difference("student", "baseline", findings.blocks)
    nowhere = Interval(math.nan, math.nan, 0.95)
    means = [
        _cell(measure, _mean(tested, role, findings.blocks), nowhere)
        if all(tested.has(role, name) for name in findings.blocks)
        else Cell(value=math.nan)
        for role in _ROLES
    ]
    rows.append(("mean", *means, *_gain_cells(measure, (mean, mean.p))))
    digits = measure.digits
    columns = (
        Column(title="condition"),
        *(Column(title=_TITLES[role], digits=digits) for role in _ROLES),
        Column(title="student − no teacher", digits=digits),
        Column(title="p", digits=4),
    )
    tables = [
        Table(
            name="distillation",
            title=f"Distillation, {measure.name}{unit}",
            about=about,
            columns=columns,
            rows=tuple(rows),
        )
    ]
    if tested.dimensions:
        tables.append(_table_of_dimensions(findings, tested))
    else:
        tables.append(_table_of_metrics(findings, tested))
    if findings.efficient:
        tables.append(_table_of_small(findings, tested))
    return tables


def _table_of_dimensions(findings: Findings, tested: _Tests) -> Table:
    measure = findings.measure
    rows = []
    for dimension in tested.dimensions:
        key = measure.of(dimension).key
        for name in findings.blocks:
            row: list[str | Cell] = [dimension, name]
            for role in _ROLES:
                known = tested.scores.get((role, name))
                estimate = None if known is None else known.estimates[key]
                row.append(
                    Cell(value=math.nan) if estimate is None else _cell(measure, estimate.value, estimate.interval)
                )
            rows.append((*row, *_gain_cells(measure, tested.gains_of_dimensions[dimension, name])))
    return Table(
        name="dimensions",
        title="Distillation, CCC of each dimension",
        about="CCC with 95 % intervals over speakers; differences are paired, * marks p below .05 after Holm over all lines.",
        columns=(
            Column(title="dimension"),
            Column(title="condition"),
            *(Column(title=_TITLES[role], digits=measure.digits) for role in _ROLES),
            Column(title="student − no teacher", digits=measure.digits),
            Column(title="p", digits=4),
        ),
        rows=tuple(rows),
    )


_OTHER_METRICS = {
    "emotion": {"accuracy": ("accuracy %", 100.0, 1), "macro_f1": ("macro-F1 %", 100.0, 1)},
    "dimensions": {"pearson": ("Pearson", 1.0, 3), "mae": ("mean absolute error", 1.0, 3)},
}


def _table_of_metrics(findings: Findings, tested: _Tests) -> Table:
    shown = _OTHER_METRICS[findings.dataset.target]
    rows: list[tuple[str | Cell, ...]] = []
    for name in findings.blocks:
        for role in _ROLES:
            known = tested.scores.get((role, name))
            if known is None:
                continue
            row: list[str | Cell] = [name, _TITLES[role]]
            for key, (_, factor, _) in shown.items():
                one = known.estimates[key]
                low, high = factor * one.interval.low, factor * one.interval.high
                row.append(Cell(value=factor * one.value, low=low, high=high))
            rows.append(tuple(row))
    return Table(
        name="metrics",
        title="Other scores",
        about="With 95 % intervals over speakers.",
        columns=(
            Column(title="condition"),
            Column(title="system"),
            *(Column(title=title, digits=digits) for title, _, digits in shown.values()),
        ),
        rows=tuple(rows),
    )


def _table_of_small(findings: Findings, tested: _Tests) -> Table:
    measure, base = findings.measure, findings.blocks[0]
    unit = " %" if measure.factor == 100 else ""
    rows: list[tuple[str | Cell, ...]] = []
    for one in findings.efficient:
        known = _scored(findings.dataset, one.records)
        difference = tested.small.get(one.title)
        row: list[str | Cell] = [
            one.title,
            Cell(value=math.nan if one.deployed is None else one.deployed / 1e6),
            Cell(value=one.trained / 1e6),
            Cell(value=1000 * one.cpu_s_per_s),
            _cell(measure, known.value, known.interval),
        ]
        row += [Cell(value=math.nan)] * 2 if difference is None else _gain_cells(measure, difference)
        rows.append(tuple(row))
    cost = findings.efficient[0].costs[0]
    large = findings.efficient[0].title
    return Table(
        name="efficiency",
        title=f"Small systems beside {large}, under {base}",
        about="Parameters that must be there, up to the layer that is heard, and those that were trained (the head), in"
        " millions; empty where an encoder's are not counted. CPU time of the encoders per second of speech, one thread of"
        f" {cost.processor}, torch {cost.torch}, one run on {cost.audio_s:g} s of made-up speech, words taken as given: a"
        " recogniser that writes them down is not in it. The student was trained for all conditions of the study, the others for"
        " this one."
        f" Differences from {large} are paired; * marks p below .05 after Holm over the lines.",
        columns=(
            Column(title="system"),
            Column(title="deployed, M", digits=3),
            Column(title="trained, M", digits=3),
            Column(title="CPU ms per s", digits=2),
            Column(title=f"{measure.name}{unit}", digits=measure.digits),
            Column(title="difference", digits=measure.digits),
            Column(title="p", digits=4),
        ),
        rows=tuple(rows),
    )


def _series(measure: Measure, name: str, found: Sequence[Difference]) -> Series:
    factor = measure.factor
    return Series(
        name=name,
        y=tuple(factor * one.value for one in found),
        x=tuple(map(float, range(len(found)))),
        low=tuple(factor * one.interval.low for one in found),
        high=tuple(factor * one.interval.high for one in found),
    )


def _figures(findings: Findings, tested: _Tests) -> list[Figure]:
    measure, blocks = findings.measure, findings.blocks
    gains = [_series(measure, measure.name, [tested.gains[name][0] for name in blocks])]
    for dimension in tested.dimensions:
        gains.append(_series(measure, dimension, [tested.gains_of_dimensions[dimension, name][0] for name in blocks]))
    unit = " %" if measure.factor == 100 else ""
    scores = []
    for role in _ROLES:
        there = [(place, tested.scores[role, name]) for place, name in enumerate(blocks) if tested.has(role, name)]
        scores.append(
            Series(
                name=_TITLES[role],
                y=tuple(measure.factor * one.value for _, one in there),
                x=tuple(float(place) for place, _ in there),
                low=tuple(measure.factor * one.interval.low for _, one in there),
                high=tuple(measure.factor * one.interval.high for _, one in there),
            )
        )
    return [
        Figure(
            name="gain",
            title="Distillation gain per condition",
            about="Student minus the same head without a teacher, with 95 % intervals of the paired difference over speakers.",
            kind="bars",
            x_label="condition",
            y_label=f"difference of {measure.name}, {measure.unit}"
            if measure.factor == 100
            else f"difference of {measure.name}",
            series=tuple(gains),
            ticks=blocks,
        ),
        Figure(
            name="scores",
            title="Teacher, student, and the student's head without a teacher",
            about=f"{measure.name}{unit} with 95 % intervals over speakers.",
            kind="lines",
            x_label="condition",
            y_label=f"{measure.name}{unit}",
            series=tuple(scores),
            ticks=blocks,
        ),
    ]


# ---------------------------------------------------------------------------------------------------------------------
# Notes


def _notes(findings: Findings) -> list[str]:
    dataset, split, settings = findings.dataset, findings.split, findings.settings
    who = "speaker-independent" if split.speaker_independent else "speaker-dependent"
    folds, seeds = len(split.folds), len(settings["seeds"])
    what = f"{len(dataset.classes)} emotions ({', '.join(dataset.classes)})"
    if dataset.dimensions:
        what = f"dimensions {', '.join(dataset.dimensions)}"
    rows = {
        "fixed": f"training and validation part for {findings.train.epochs} epochs, nothing selected",
        "last": f"the training part for {findings.train.epochs} epochs, nothing selected",
    }.get(
        findings.train.selection, f"the training part, best epoch by {findings.train.selection} on the validation part"
    )
    choices = settings["distillation"]
    first = choices[0]
    weights = f"alpha {first['alpha']:g}, beta {first['beta']:g}"
    if len(choices) > 1:
        weights = f"alpha and beta chosen per fold and seed among {len(choices)} settings on validation rows"
        weights += _chosen(findings)
    match = first["output_match"]
    words = "by hand" if settings["transcripts"] == "manual" else f"by {settings['transcripts'].removeprefix('asr:')}"
    layer = f", layer {settings['student_layers']}" if settings["student_layers"] else ""
    temperature = f", temperature {first['temperature']:g}" if match == "kl" else ""
    found = [
        f"Corpus: {dataset.corpus}, {len(dataset.utterance_ids)} utterances, {len(set(dataset.speakers))} speakers, {what}.",
        f"Protocol: {split.protocol}, {who}, {folds} fold{'s' if folds > 1 else ''}; {seeds} seed{'s' if seeds > 1 else ''}; scores"
        " of all folds pooled, mean over seeds; 95 % intervals by bootstrap over speakers.",
        f"Teacher: {settings['fusion']} of {settings['acoustic']} and {settings['lexical']} (transcripts {words}), trained under"
        f" {findings.blocks[0]}. Students: {settings['student']}{layer}; {_TRAININGS[findings.training]}.",
        f"Loss of students: task + alpha · embedding match ({first['embedding_match']}) + beta · output match"
        f" ({match}{temperature}); {weights}. The weights, the projection and the matches are ours, not the paper's.",
        f"Heads trained on {rows}; dense layer of {settings['student_options']['dense_dim']} before the output. The teacher of a"
        " fold has not seen its test speakers, and its guidance is used on training rows alone.",
    ]
    if any(("teacher", name) not in findings.scores for name in findings.blocks):
        found.append(
            "The teacher has another acoustic encoder than its students and is tested under its own condition alone."
        )
    if dataset.left_out:
        found.append(
            "Left out: " + ", ".join(f"{count} ({reason})" for reason, count in dataset.left_out.items()) + "."
        )
    return found


def _chosen(findings: Findings) -> str:
    """How often each setting was chosen."""
    counts: dict[tuple[float, float], int] = {}
    seen = set()
    for record in findings.records:
        row = record.row
        key = (row["key"], row["fold"], row["seed"])
        if row["role"] == "student" and key not in seen:
            seen.add(key)
            weights = (row["diagnostics"]["alpha"], row["diagnostics"]["beta"])
            counts[weights] = counts.get(weights, 0) + 1
    listed = ", ".join(f"{alpha:g}/{beta:g} {count} times" for (alpha, beta), count in sorted(counts.items()))
    return f" ({listed})"
