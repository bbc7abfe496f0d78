"""What the study ``noise`` found: tables, figures, and answers, from the scores of every cell under every condition.

Conventions:

* All differences are between scores on the same utterances, over speakers and seeds (``evaluation.statistics``), in UAR or in
  mean CCC over the dimensions; each dimension alone stands in the tables. Seeds are paired: a seed has the same folds, first
  parameters and batches in every cell, and under another condition often is the very same head.
* **Under noise** means: the mean over all conditions but ``clean``, each counting the same. The loss of a head is its score on
  clean recordings minus that mean; that one head loses more than another is the difference of two such differences.
* **Area**: conditions that differ in nothing but the SNR of one noise (``noise:esc10@20dB`` … ``@0dB``) are a series. Its area is
  the integral of the score over the SNR in dB, by the trapezoid rule between the SNRs that were measured, divided by their range:
  the mean score over that range. ``clean`` has no SNR and is no part of it; other conditions (rooms, telephone, a single SNR) are
  listed beside it. Areas compare only over the same SNRs.
* Every question is a family of its own, its p-values corrected after Holm within it; so is every table. A fusion beats the better
  of its singles under noise if it beats each of them (``statistics.against_all``).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.evaluation.measures import Measure, measure_of
from pipelines.evaluation.results import CellScore
from pipelines.evaluation.statistics import Difference, Interval, Resampled, against_all, holm, resample
from pipelines.evaluation.word_errors import WordErrors
from pipelines.studies.answers import LEVEL, p_text
from pipelines.studies.outcome import Cell, Column, Figure, Outcome, Series, Table
from pipelines.training.grid import Cell as GridCell

__all__ = ["CLEAN", "MATCHED", "MULTI", "REGIMES", "Findings", "arranged", "outcome_of", "snr_of"]

CLEAN, MATCHED, MULTI = "clean", "matched", "multi"
REGIMES = (CLEAN, MATCHED, MULTI)
"""Ways of training; ``clean`` is also the condition of that name."""

_NOISE = re.compile(r"(noise:.+|babble|white|pink)@(-?\d+(?:\.\d+)?)dB")
_LEXICAL = "LEX"
_NAMED = 4  # heads that a sentence names

_TRAINED = {CLEAN: "trained on clean recordings", MATCHED: "trained under the condition they are tested under",
            MULTI: "trained under several conditions together"}  # fmt: skip


def snr_of(condition: str) -> tuple[str, float]:
    """Series and SNR in dB of a condition with exactly one noise: what it is but for the SNR. Of another, its name and NaN."""
    parts = condition.split("+")
    noises = [(place, found) for place, part in enumerate(parts) if (found := _NOISE.fullmatch(part))]
    if len(noises) != 1:
        return condition, math.nan
    ((place, found),) = noises
    return "+".join([*parts[:place], found[1], *parts[place + 1 :]]), float(found[2])


def arranged(conditions: Sequence[str]) -> tuple[str, ...]:
    """Conditions in the order of every table: ``clean``, each series from high to low SNR, then those without an SNR."""

    def place(condition: str) -> tuple[bool, bool, str, float]:
        series, snr = snr_of(condition)
        return condition != CLEAN, math.isnan(snr), series, 0.0 if math.isnan(snr) else -snr

    return tuple(sorted(dict.fromkeys(conditions), key=place))


@dataclass(frozen=True, kw_only=True)
class Findings:
    """Everything that was measured.

    Attributes:
        corpus: name.
        target: ``emotion`` or ``dimensions``.
        dimensions: of that target.
        cells: singles first.
        families: encoder to family.
        conditions: tested, in the order of the tables, ``clean`` first.
        training: ways of training.
        learned: conditions that ``multi`` was trained on.
        transcripts: ``manual`` or ``asr:MODEL``.
        untouched: encoders whose input no condition touches.
        scores: (title of the cell, way of training, condition) to score.
        word_errors: condition to how far a recogniser's text is from that by hand.
        notes: what the tables are about.
        warnings: what a reader must not overlook.
    """

    corpus: str
    target: str
    dimensions: tuple[str, ...]
    cells: tuple[GridCell, ...]
    families: Mapping[str, str]
    conditions: tuple[str, ...]
    training: tuple[str, ...]
    learned: tuple[str, ...]
    transcripts: str
    untouched: frozenset[str]
    scores: Mapping[tuple[str, str, str], CellScore]
    word_errors: Mapping[str, WordErrors]
    notes: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def noisy(self) -> tuple[str, ...]:
        """Conditions but ``clean``."""
        return self.conditions[1:]

    @property
    def series(self) -> dict[str, tuple[tuple[str, float], ...]]:
        """Series to its conditions and SNRs, from high to low; those of at least two SNRs."""
        found: dict[str, list[tuple[str, float]]] = {}
        for condition in self.noisy:
            name, snr = snr_of(condition)
            if not math.isnan(snr):
                found.setdefault(name, []).append((condition, snr))
        return {name: tuple(points) for name, points in found.items() if len(points) > 1}

    @property
    def measures(self) -> tuple[Measure, ...]:
        """How heads are judged: the score that decides, then each dimension."""
        whole = measure_of(self.target, self.dimensions)
        each = tuple(whole.of(name) for name in self.dimensions) if len(self.dimensions) > 1 else ()
        return (whole, *each)

    def families_of(self, cell: GridCell) -> set[str]:
        """Of its encoders."""
        return {self.families[name] for name in (cell.left, cell.right) if name}

    def is_touched(self, cell: GridCell) -> bool:
        """Whether conditions change what the cell reads."""
        return not {name for name in (cell.left, cell.right) if name} <= self.untouched

    @property
    def singles(self) -> tuple[GridCell, ...]:
        """Encoders alone."""
        return tuple(cell for cell in self.cells if not cell.right)

    @property
    def fused(self) -> tuple[GridCell, ...]:
        """Fusions."""
        return tuple(cell for cell in self.cells if cell.right)


_Rows = tuple[tuple[str | Cell, ...], ...]
Place = tuple[str, str, str]
Weights = dict[Place, float]


def _short(condition: str) -> str:
    """For the head of a column: ``esc10 20dB``."""
    return condition.replace("noise:", "").replace("@", " ")


class _Scale:
    """All scores by one measure, resampled together, so that any weighted sum of them can be tested."""

    def __init__(self, findings: Findings, measure: Measure) -> None:
        self.findings, self.measure = findings, measure
        unique: dict[int, int] = {}
        tallies: list[NDArray[np.float64]] = []
        self._at: dict[Place, int] = {}
        for place, score in findings.scores.items():
            if id(score) not in unique:  # one score may stand for several conditions
                unique[id(score)] = len(tallies)
                tallies.append(score.tallies)
            self._at[place] = unique[id(score)]
        self.resampled: Resampled = resample(tallies, measure.metric)

    def weigh(self, weights: Weights) -> Difference:
        """A weighted sum of scores; of nothing but scores that cancel, an exact 0 with p = 1."""
        vector = np.zeros(len(self.resampled.values))
        for place, weight in weights.items():
            vector[self._at[place]] += weight
        vector[np.abs(vector) < 1e-12] = 0.0
        if not vector.any():
            return Difference(0.0, Interval(0.0, 0.0, 0.95), 1.0, 1.0, 0.0, 0, 0)
        return self.resampled.weighted(vector, ranks=False, seeds_paired=True)

    def value(self, cell: GridCell, regime: str, condition: str) -> tuple[float, Interval]:
        """A score and its interval."""
        estimate = self.findings.scores[cell.title, regime, condition].estimates[self.measure.key]
        return estimate.value, estimate.interval

    def shown(self, value: float, interval: Interval | None = None, mark: str = "") -> Cell:
        """For a table."""
        factor = self.measure.factor
        low, high = (math.nan, math.nan) if interval is None else (interval.low, interval.high)
        return Cell(value=factor * value, low=factor * low, high=factor * high, mark=mark)

    def change(self, difference: Difference, p: float) -> Cell:
        """A tested difference for a table; ``*`` where p, corrected, lies below the level."""
        return self.shown(difference.value, difference.interval, "*" if p < LEVEL else "")

    def told(self, difference: Difference, p: float, *, signs: bool = True) -> str:
        """``+12.3 points [+10.1, +14.5], p < .001``; plus signs where they are wanted."""
        bounds = difference.interval

        def text(value: float) -> str:
            return self.measure.change(value) if signs else self.measure.change(value).removeprefix("+")

        interval = "" if math.isnan(bounds.low) else f" [{text(bounds.low)}, {text(bounds.high)}]"
        return f"{text(difference.value)} {self.measure.unit}{interval}, {p_text(p)}"


def _at(cell: GridCell, regime: str, conditions: Sequence[str], weight: float = 1.0) -> Weights:
    """The mean over conditions, times a weight."""
    return {(cell.title, regime, condition): weight / len(conditions) for condition in conditions}


def _sum(*parts: Weights) -> Weights:
    total: Weights = {}
    for part in parts:
        for place, weight in part.items():
            total[place] = total.get(place, 0.0) + weight
    return total


def _scaled(weights: Weights, factor: float) -> Weights:
    return {place: factor * weight for place, weight in weights.items()}


def _area(cell: GridCell, regime: str, points: Sequence[tuple[str, float]]) -> Weights:
    """Weights of the area over a series, from high to low SNR."""
    snrs = np.array([snr for _, snr in points])
    steps = snrs[:-1] - snrs[1:]
    weights = (np.concatenate([steps, [0.0]]) + np.concatenate([[0.0], steps])) / 2 / (snrs[0] - snrs[-1])
    return {(cell.title, regime, condition): float(w) for (condition, _), w in zip(points, weights, strict=True)}


def _loss(findings: Findings, cell: GridCell, regime: str) -> Weights:
    """On clean recordings minus under noise."""
    return _sum(_at(cell, regime, (CLEAN,)), _at(cell, regime, findings.noisy, -1.0))


def outcome_of(findings: Findings, *, command: str, settings: Mapping[str, Any]) -> Outcome:
    """Tables, figures and answers.

    Args:
        findings: what was measured.
        command: what makes the study again.
        settings: everything that decides on the numbers.
    """
    scales = [_Scale(findings, measure) for measure in findings.measures]
    whole = scales[0]
    answers = [
        _cost(whole),
        _hurt_more(whole, "Does noise hurt acoustics more than text", _acoustic(findings), _lexical(findings)),
        *(
            [_hurt_more(whole, "Does noise hurt RLR more than CBR", *by_kind)]
            if all(by_kind := _by_kind(findings))
            else []
        ),
        *(_fusion_helps(whole, regime) for regime in findings.training),
        _training_helps(whole),
    ]
    tables = [
        *(_score_table(scales, regime) for regime in findings.training),
        *(_loss_table(scales, regime) for regime in findings.training),
        *([_training_table(scales)] if len(findings.training) > 1 else []),
        *([_fusion_table(whole), _reliance_table(whole)] if findings.fused else []),
        *([_word_error_table(findings)] if findings.word_errors else []),
    ]
    return Outcome(
        study="noise",
        title=f"Noise: {len(findings.singles)} encoders under {len(findings.conditions)} conditions",
        corpus=findings.corpus,
        target=findings.target,
        answers=tuple(answers),
        notes=(*findings.notes, *_own_notes(findings)),
        warnings=findings.warnings,
        tables=tuple(tables),
        figures=tuple(_figures(scales)),
        command=command,
        settings=settings,
    )


def _acoustic(findings: Findings) -> list[GridCell]:
    return [cell for cell in findings.singles if findings.families[cell.left] != _LEXICAL]


def _lexical(findings: Findings) -> list[GridCell]:
    return [cell for cell in findings.singles if findings.families[cell.left] == _LEXICAL]


def _by_kind(findings: Findings) -> tuple[list[GridCell], list[GridCell]]:
    """RLR and CBR alone."""
    acoustic = _acoustic(findings)
    codecs = [cell for cell in acoustic if findings.families[cell.left] == "CBR"]
    return [cell for cell in acoustic if findings.families[cell.left] == "RLR"], codecs


# ---------------------------------------------------------------------------------------------------------------------
# Answers


def _first(findings: Findings) -> str:
    """The way of training that questions about noise itself are asked of."""
    return findings.training[0]


def _under(findings: Findings) -> str:
    count = len(findings.noisy)
    return f"averaged over {count} conditions" if count > 1 else f"under {findings.noisy[0]}"


def _counted(shown: int, asked: int, noun: str) -> str:
    """How a sentence about several tests begins: its verdict."""
    if shown == asked:
        return "Yes"
    return f"Yes for {shown} of {asked} {noun}" if shown else "Not shown"


def _listed(sentences: Sequence[str]) -> str:
    more = len(sentences) - _NAMED
    return "; ".join(sentences[:_NAMED]) + (f"; and {more} more, see the tables" if more > 0 else "")


def _cost(scale: _Scale) -> str:
    findings, regime, measure = scale.findings, _first(scale.findings), scale.measure
    heads = [cell for cell in findings.cells if findings.is_touched(cell)]
    losses = [scale.weigh(_loss(findings, cell, regime)) for cell in heads]
    adjusted = holm([one.p for one in losses])
    shown = sum(p < LEVEL and one.value > 0 for one, p in zip(losses, adjusted, strict=True))
    order = sorted(range(len(heads)), key=lambda place: -losses[place].value)
    sentences = [
        f"{heads[place].title} ({measure.full(scale.value(heads[place], regime, CLEAN)[0])} clean) loses"
        f" {scale.told(losses[place], adjusted[place], signs=False)}"
        for place in order
    ]
    return (
        f"Does noise make recognition worse? {_counted(shown, len(heads), 'heads')}: {_TRAINED[regime]}, {_under(findings)},"
        f" {_listed(sentences)}."
    )


def _hurt_more(scale: _Scale, question: str, first: Sequence[GridCell], second: Sequence[GridCell]) -> str:
    findings, regime = scale.findings, _first(scale.findings)
    if not first or not second:
        lacking = "an encoder of text, as in --models 'wavlm bert'" if first else "an encoder of speech"
        return f"{question}? Not measured: this needs {lacking}."
    pairs = [(one, other) for one in first for other in second]
    differences = [
        scale.weigh(_sum(_loss(findings, one, regime), _scaled(_loss(findings, other, regime), -1.0)))
        for one, other in pairs
    ]
    adjusted = holm([one.p for one in differences])
    signs = [int(np.sign(one.value)) if p < LEVEL else 0 for one, p in zip(differences, adjusted, strict=True)]
    verdict = _counted(signs.count(1), len(pairs), "pairs")
    if signs.count(-1):
        verdict = "No" if signs.count(-1) == len(pairs) else f"{verdict}, and the reverse for {signs.count(-1)}"
    sentences = []
    for (one, other), difference, p in zip(pairs, differences, adjusted, strict=True):
        losses = [
            scale.measure.change(scale.weigh(_loss(findings, cell, regime)).value).removeprefix("+")
            for cell in (one, other)
        ]
        sentences.append(
            f"{one.title} loses {losses[0]} and {other.title} {losses[1]} {scale.measure.unit}, a difference of"
            f" {scale.told(difference, p)}"
        )
    by_hand = (
        " (manual transcripts, which noise does not touch: what is tested is whether the acoustic score falls)"
        if any(not findings.is_touched(cell) for cell in second)
        else ""
    )
    return f"{question}? {verdict}: {_TRAINED[regime]}, {_under(findings)}, {_listed(sentences)}{by_hand}."


def _against_singles(scale: _Scale, cell: GridCell, regime: str, conditions: Sequence[str]) -> tuple[str, Difference]:
    """A fusion against the better of its inputs alone, mean over conditions: which one binds, and by how much."""
    own = [single for single in scale.findings.singles if single.left in (cell.left, cell.right)]
    differences = [
        scale.weigh(_sum(_at(cell, regime, conditions), _at(single, regime, conditions, -1.0))) for single in own
    ]
    binding, difference = against_all(differences)
    return own[binding].title, difference


def _fusion_helps(scale: _Scale, regime: str) -> str:
    findings, measure = scale.findings, scale.measure
    question = f"Does fusion help under noise, {_TRAINED[regime]}?"
    if not findings.fused:
        return f"{question} Not measured: this needs two encoders of different families, as in --models 'wavlm bert'."
    found = [_against_singles(scale, cell, regime, findings.noisy) for cell in findings.fused]
    adjusted = holm([difference.p for _, difference in found])
    marks = [
        int(np.sign(difference.value)) if p < LEVEL else 0 for (_, difference), p in zip(found, adjusted, strict=True)
    ]
    verdict = _counted(marks.count(1), len(found), "fusions")
    if marks.count(-1):
        verdict = "No" if marks.count(-1) == len(found) else f"{verdict}, and it costs for {marks.count(-1)}"
    order = sorted(range(len(found)), key=lambda place: -found[place][1].value)
    sentences = []
    for place in order:
        cell, (other, difference) = findings.fused[place], found[place]
        noisy = scale.weigh(_at(cell, regime, findings.noisy)).value
        sentences.append(
            f"{cell.title} ({measure.full(noisy)}) differs from the better of its inputs alone, {other}, by"
            f" {scale.told(difference, adjusted[place])}"
        )
    return f"{question} {verdict}: {_under(findings)}, {_listed(sentences)}."


def _training_helps(scale: _Scale) -> str:
    findings, question = scale.findings, "Which training helps under noise, and by how much?"
    others = [regime for regime in (MATCHED, MULTI) if regime in findings.training]
    heads = [cell for cell in findings.cells if findings.is_touched(cell)]
    if CLEAN not in findings.training or not others:
        return f"{question} Not measured: compare clean with another way, as in --training clean,matched,multi."

    def mean(regime: str, conditions: Sequence[str], sign: float) -> Weights:
        return _sum(*(_at(cell, regime, conditions, sign / len(heads)) for cell in heads))

    asked = [(regime, CLEAN, findings.noisy, "under noise") for regime in others]
    if len(others) == 2:
        asked.append((MULTI, MATCHED, findings.noisy, "under noise"))
    if MULTI in others:
        asked.append((MULTI, CLEAN, (CLEAN,), "on clean recordings"))
    differences = [
        scale.weigh(_sum(mean(one, conditions, 1.0), mean(other, conditions, -1.0)))
        for one, other, conditions, _ in asked
    ]
    adjusted = holm([one.p for one in differences])
    moved = {
        regime: int(np.sign(difference.value)) if p < LEVEL else 0
        for regime, difference, p in zip(others, differences, adjusted, strict=False)
    }
    helps, harms = ([regime for regime, sign in moved.items() if sign == wanted] for wanted in (1, -1))
    sentences = [
        f"{one} differs from {other} {where} by {scale.told(difference, p)}"
        for (one, other, _, where), difference, p in zip(asked, differences, adjusted, strict=True)
    ]
    verdict = f"Yes, {' and '.join(helps)} training" if helps else "Not shown" if not harms else "No"
    if harms:
        verdict += f"{', but' if helps else ','} {' and '.join(harms)} training costs"
    many = f"mean over {len(heads)} heads" if len(heads) > 1 else heads[0].title
    return f"{question} {verdict}: {many}, {_under(findings)}, {'; '.join(sentences)}."


# ---------------------------------------------------------------------------------------------------------------------
# Tables


def _rows_of(scales: Sequence[_Scale]) -> Iterator[tuple[GridCell, _Scale, tuple[str, ...]]]:
    """Cells by measures, with what a row begins with."""
    for cell in scales[0].findings.cells:
        for place, scale in enumerate(scales):
            name = cell.title if place == 0 else ""
            score = "mean" if place == 0 else scales[0].findings.dimensions[place - 1]
            yield cell, scale, (name, score) if len(scales) > 1 else (name,)


def _lead(scales: Sequence[_Scale], first: str = "Head") -> tuple[Column, ...]:
    return (Column(title=first), Column(title="Score")) if len(scales) > 1 else (Column(title=first),)


def _score_table(scales: Sequence[_Scale], regime: str) -> Table:
    findings, digits = scales[0].findings, _digits(scales[0].measure)
    rows: list[tuple[str | Cell, ...]] = []
    for cell, scale, lead in _rows_of(scales):
        scores = [scale.shown(*scale.value(cell, regime, condition)) for condition in findings.conditions]
        areas = []
        for points in findings.series.values():
            over = scale.weigh(_area(cell, regime, points))
            areas.append(scale.shown(over.value, over.interval))
        rows.append((*lead, *scores, *areas))
    ranges = "; ".join(f"{name}, {points[-1][1]:g} to {points[0][1]:g} dB" for name, points in findings.series.items())
    area = f" Area: mean over the SNR in dB by the trapezoid rule ({ranges}), without clean." if ranges else ""
    columns = [*map(_short, findings.conditions), *(f"area {_short(name)}" for name in findings.series)]
    return Table(
        name=f"scores-{regime}",
        title=f"{_axis(scales[0].measure)} under every condition, {_TRAINED[regime]}",
        about=f"With 95 % intervals over speakers.{area}",
        columns=(*_lead(scales), *(Column(title=name, digits=digits) for name in columns)),
        rows=tuple(rows),
    )


def _loss_table(scales: Sequence[_Scale], regime: str) -> Table:
    findings, digits = scales[0].findings, _digits(scales[0].measure)
    asked: list[tuple[_Scale, tuple[str, ...], list[Difference]]] = []
    for cell, scale, lead in _rows_of(scales):
        if not findings.is_touched(cell):
            continue
        clean = _at(cell, regime, (CLEAN,), -1.0)
        targets = [
            *(_at(cell, regime, (condition,)) for condition in findings.noisy),
            *(_area(cell, regime, points) for points in findings.series.values()),
        ]
        asked.append((scale, lead, [scale.weigh(_sum(target, clean)) for target in targets]))
    adjusted = iter(holm([difference.p for _, _, row in asked for difference in row]))
    rows: _Rows = tuple(
        (*lead, *(scale.change(difference, next(adjusted)) for difference in row)) for scale, lead, row in asked
    )
    columns = [*map(_short, findings.noisy), *(f"area {_short(name)}" for name in findings.series)]
    return Table(
        name=f"loss-{regime}",
        title=f"Change from clean recordings in {scales[0].measure.unit}, {_TRAINED[regime]}",
        about="Paired over speakers, 95 % intervals; * p < .05 after Holm over the table.",
        columns=(*_lead(scales), *(Column(title=name, digits=digits) for name in columns)),
        rows=rows,
    )


def _training_table(scales: Sequence[_Scale]) -> Table:
    findings, digits = scales[0].findings, _digits(scales[0].measure)
    others = [regime for regime in (MATCHED, MULTI) if regime in findings.training]
    compared = CLEAN in findings.training
    asked = []
    for cell, scale, lead in _rows_of(scales):
        if not findings.is_touched(cell):
            continue
        means = [scale.weigh(_at(cell, regime, findings.noisy)) for regime in findings.training]
        gains = []
        for regime in others if compared else ():
            base = _at(cell, CLEAN, findings.noisy, -1.0)
            gains.append(scale.weigh(_sum(_at(cell, regime, findings.noisy), base)))
        if compared and MULTI in others:
            gains.append(scale.weigh(_sum(_at(cell, MULTI, (CLEAN,)), _at(cell, CLEAN, (CLEAN,), -1.0))))
        asked.append((scale, lead, means, gains))
    adjusted = iter(holm([gain.p for *_, gains in asked for gain in gains]))
    rows: _Rows = tuple(
        (
            *lead,
            *(scale.shown(mean.value, mean.interval) for mean in means),
            *(scale.change(gain, next(adjusted)) for gain in gains),
        )
        for scale, lead, means, gains in asked
    )
    columns = list(findings.training)
    if compared:
        columns += [f"{regime} − clean" for regime in others]
        columns += ["clean: multi − clean"] if MULTI in others else []
    return Table(
        name="training",
        title=f"Ways of training: {_axis(scales[0].measure)}, mean over the conditions but clean",
        about="Scores and paired differences with 95 % intervals over speakers; * p < .05 after Holm over the table. The last"
        " column is what multi-condition training costs on clean recordings.",
        columns=(*_lead(scales), *(Column(title=name, digits=digits) for name in columns)),
        rows=rows,
    )


def _fusion_table(scale: _Scale) -> Table:
    findings = scale.findings
    asked = [
        (cell, regime, [_against_singles(scale, cell, regime, (condition,))[1] for condition in findings.conditions])
        for regime in findings.training
        for cell in findings.fused
    ]
    adjusted = iter(holm([difference.p for *_, row in asked for difference in row]))
    rows: _Rows = tuple(
        (cell.title, regime, *(scale.change(difference, next(adjusted)) for difference in row))
        for cell, regime, row in asked
    )
    return Table(
        name="fusion",
        title=f"Fusion minus the better of its inputs alone, in {scale.measure.unit}",
        about="Paired over speakers, 95 % intervals; to be above the better one is to be above both. * p < .05 after Holm over the"
        " table.",
        columns=(
            Column(title="Head"),
            Column(title="Trained"),
            *(Column(title=_short(name), digits=_digits(scale.measure)) for name in findings.conditions),
        ),
        rows=rows,
    )


def _reliance_table(scale: _Scale) -> Table:
    findings, rows = scale.findings, []
    for regime in findings.training:
        for cell in findings.fused:
            for side in ("left", "right"):
                cells = []
                for condition in findings.conditions:
                    score = findings.scores[cell.title, regime, condition]
                    drop, p = (getattr(score, f"{side}_drop{end}") for end in ("", "_p"))
                    used = drop >= scale.measure.unused_below or (drop > 0 and p < LEVEL)
                    cells.append(scale.shown(drop, mark="" if used else "†"))
                rows.append((cell.title, regime, getattr(cell, side), *cells))
    return Table(
        name="reliance",
        title=f"What a fusion loses when one input is shuffled, in {scale.measure.unit}",
        about="Shuffled among the test utterances of the same condition. †: it costs less than"
        f" {scale.measure.amount(scale.measure.unused_below)}, and not significantly: this input is not used.",
        columns=(
            Column(title="Head"),
            Column(title="Trained"),
            Column(title="Shuffled"),
            *(Column(title=_short(name), digits=_digits(scale.measure)) for name in findings.conditions),
        ),
        rows=tuple(rows),
    )


def _word_error_table(findings: Findings) -> Table:
    def per_cent(value: float, interval: Interval) -> Cell:
        return Cell(value=100 * value, low=100 * interval.low, high=100 * interval.high)

    return Table(
        name="word-errors",
        title=f"Errors of {findings.transcripts} in per cent",
        about="Against the manifest's transcripts, over all utterances together, 95 % intervals over speakers.",
        columns=(Column(title="Condition"), Column(title="WER"), Column(title="CER")),
        rows=tuple(
            (condition, per_cent(one.wer, one.wer_interval), per_cent(one.cer, one.cer_interval))
            for condition, one in findings.word_errors.items()
        ),
    )


# ---------------------------------------------------------------------------------------------------------------------
# Figures


def _figures(scales: Sequence[_Scale]) -> Iterator[Figure]:
    findings, whole = scales[0].findings, scales[0]
    for regime in findings.training:
        for position, scale in enumerate(scales if regime == _first(findings) else [whole]):
            kind = f"-{findings.dimensions[position - 1]}" if position else ""
            for number, (name, points) in enumerate(findings.series.items(), start=1):
                conditions = (CLEAN, *(condition for condition, _ in points))
                yield Figure(
                    name=f"degradation-{regime}{kind}-{number}",
                    title=f"{scale.measure.name} under {name}, {_TRAINED[regime]}",
                    about="95 % intervals over speakers.",
                    kind="lines",
                    x_label="signal-to-noise ratio",
                    y_label=_axis(scale.measure),
                    series=tuple(_curve(scale, cell, regime, conditions) for cell in findings.cells),
                    ticks=(CLEAN, *(f"{snr:g} dB" for _, snr in points)),
                )
        in_series = {condition for points in findings.series.values() for condition, _ in points}
        if others := [condition for condition in findings.noisy if condition not in in_series]:
            yield Figure(
                name=f"conditions-{regime}",
                title=f"{whole.measure.name} under other conditions, {_TRAINED[regime]}",
                about="95 % intervals over speakers.",
                kind="bars",
                x_label="condition",
                y_label=_axis(whole.measure),
                series=tuple(_curve(whole, cell, regime, (CLEAN, *others)) for cell in findings.cells),
                ticks=(CLEAN, *others),
            )
    if len(findings.training) > 1:
        heads = [cell for cell in findings.cells if findings.is_touched(cell)]
        means = {
            regime: [whole.weigh(_at(cell, regime, findings.noisy)) for cell in heads] for regime in findings.training
        }
        factor = whole.measure.factor
        yield Figure(
            name="training",
            title=f"{whole.measure.name} by way of training, mean over the conditions but clean",
            about="95 % intervals over speakers.",
            kind="bars",
            x_label="head",
            y_label=_axis(whole.measure),
            series=tuple(
                Series(
                    name=regime,
                    x=tuple(map(float, range(len(heads)))),
                    y=tuple(factor * one.value for one in found),
                    low=tuple(factor * one.interval.low for one in found),
                    high=tuple(factor * one.interval.high for one in found),
                )
                for regime, found in means.items()
            ),
            ticks=tuple(cell.title for cell in heads),
        )


def _digits(measure: Measure) -> int:
    """Decimals in tables, which have many columns."""
    return min(measure.digits, 2)


def _axis(measure: Measure) -> str:
    return f"{measure.name} in %" if measure.factor == 100 else measure.name


def _curve(scale: _Scale, cell: GridCell, regime: str, conditions: Sequence[str]) -> Series:
    found = [scale.value(cell, regime, condition) for condition in conditions]
    factor = scale.measure.factor
    return Series(
        name=cell.title,
        x=tuple(map(float, range(len(conditions)))),
        y=tuple(factor * value for value, _ in found),
        low=tuple(factor * interval.low for _, interval in found),
        high=tuple(factor * interval.high for _, interval in found),
    )


def _own_notes(findings: Findings) -> Iterator[str]:
    """What is particular to this study."""
    yield (
        f"Conditions: {', '.join(findings.conditions)}. Under noise: mean over all of them but clean, each counting the same."
        " Losses are absolute: who knows more on clean recordings has more to lose."
    )
    if MULTI in findings.training:
        yield (
            f"multi: trained on {len(findings.learned)} conditions together ({', '.join(findings.learned)}), as many steps as a"
            " head trained on clean recordings."
        )
    same = MATCHED in findings.training or set(findings.learned) & set(findings.noisy)
    if {MATCHED, MULTI} & set(findings.training) and same:
        yield (
            "Training and test speakers are mixed with noise from the same recordings, so a head that was trained under a condition"
            " has heard its noise before; under other noise the gain may be smaller (--multi-conditions trains on others)."
        )
    if _LEXICAL in findings.families.values():
        yield (
            "Text: manual transcripts, which noise does not touch; a head on text alone is trained once and stands for all"
            " conditions and ways of training."
            if findings.transcripts == "manual"
            else f"Text: what {findings.transcripts.removeprefix('asr:')} heard under each condition."
        )
