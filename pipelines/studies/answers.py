"""What a comparison shows, in one sentence per question, with numbers and tests: the part of a table that a reader quotes.

Four questions: does fusion beat the best single representation, does a hyperbolic head beat concatenation, which pair is best
and which are not distinguishable from it, does a heterogeneous pair (RLR × CBR) beat a homogeneous one. A question whose cells
were not computed is answered with "not measured" and the option that would measure it.

Conventions (``docs/statistics.md`` has the reasons):

* Every difference is in UAR (where the target is dimensions: in mean CCC), on the same utterances, over speakers and seeds
  (``statistics.paired_difference``). The questions are asked of every dimension, too.
* Every question is a family of its own; its p-values are corrected after Holm within the family.
* **Nothing is chosen on the data it is tested on.** A fusion beats "the best single" if it beats every one of its singles
  (``statistics.against_all``). The pairs that may be the best are those that no other pair beats, each compared with all others,
  so that the set holds the truly best pair with 95 % confidence. The best heterogeneous pair beats the best homogeneous one if
  some heterogeneous pair beats every homogeneous one, corrected for the number of heterogeneous pairs.
* Verdicts: ``yes`` and ``no`` are significant differences, ``not shown`` is the absence of one (which is not the absence of a
  difference: see the power note), ``not measured`` the absence of cells.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from pipelines.evaluation.measures import Measure
from pipelines.evaluation.results import CellScore
from pipelines.evaluation.runs import Run
from pipelines.evaluation.statistics import (
    Difference,
    Resampled,
    against_all,
    detectable_difference,
    holm,
    resample,
)
from pipelines.fusion.catalogue import FUSIONS, SINGLE
from pipelines.studies.pairs import Comparison
from pipelines.training.grid import LINEAR

__all__ = [
    "LEVEL",
    "Answer",
    "CellEvidence",
    "Evidence",
    "Row",
    "Verdict",
    "answers",
    "p_text",
    "points",
    "weigh",
    "weigh_comparison",
    "weigh_run",
]

LEVEL = 0.05
"""Chance of a single wrong "significant" within a family."""

_CONCAT = "concat"
_NAMED = 5  # pairs named in a sentence


@dataclass(frozen=True)
class Row:
    """One comparison behind an answer.

    Attributes:
        first: what was compared.
        second: with what.
        difference: first minus second.
        p_holm: p corrected within the question.
    """

    first: str
    second: str
    difference: Difference
    p_holm: float


@dataclass(frozen=True)
class Answer:
    """A question, answered.

    Attributes:
        question: with a question mark.
        verdict: ``yes``, ``no``, ``not shown`` or ``not measured``.
        sentence: the answer with its numbers; begins with the verdict.
        evidence: the comparisons behind it.
    """

    question: str
    verdict: str
    sentence: str
    evidence: tuple[Row, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """A cell against something else.

    Attributes:
        other: what it was compared with.
        difference: cell minus other.
        p_holm: p corrected for all cells of the table that were compared like this.
    """

    other: str
    difference: Difference
    p_holm: float

    @property
    def significant(self) -> int:
        """1 if the cell is significantly better, −1 if significantly worse, 0 otherwise."""
        return int(np.sign(self.difference.value)) if self.p_holm < LEVEL else 0


@dataclass(frozen=True)
class CellEvidence:
    """What is known of one cell beside its score.

    Attributes:
        score: the scores.
        against_single: a fusion against the better of its single representations; None where they were not computed.
        against_linear: a head against the linear rung on the same input; None where that was not computed.
        unused: inputs (``left``, ``right``) on which the score of a fusion does not depend.
    """

    score: CellScore
    against_single: Verdict | None = None
    against_linear: Verdict | None = None
    unused: tuple[str, ...] = ()

    @property
    def marks(self) -> str:
        """† an input is not used; ↑ or ↓ better or worse than the better single; ‡ better than the linear rung."""
        single = self.against_single.significant if self.against_single else 0
        linear = self.against_linear.significant if self.against_linear else 0
        return "†" * bool(self.unused) + ("↑" if single > 0 else "↓" if single < 0 else "") + "‡" * (linear > 0)


@dataclass(frozen=True)
class Evidence:
    """What a table shows.

    Attributes:
        cells: one per score, in their order.
        answers: to the four questions.
        remarks: about heads: inputs that are not used, a linear rung that is not beaten.
        caveats: what a reader of the answers must keep in mind; the power note first.
        by_dimension: dimension to the answers for it alone; empty where the target is emotion or a single dimension.
    """

    cells: tuple[CellEvidence, ...]
    answers: tuple[Answer, ...]
    remarks: tuple[str, ...]
    caveats: tuple[str, ...]
    by_dimension: Mapping[str, tuple[Answer, ...]] = field(default_factory=dict)


# ---------------------------------------------------------------------------------------------------------------------
# Weighing


def answers(comparison: Comparison) -> tuple[Answer, ...]:
    """The four questions, answered from a comparison."""
    return weigh_comparison(comparison).answers


def weigh_comparison(comparison: Comparison) -> Evidence:
    """:func:`weigh` a comparison that was just made."""
    sources = comparison.dataset.sources
    return weigh(
        comparison.scores,
        families={name: source.family for name, source in sources.items()},
        random=[name for name, source in sources.items() if source.weights_kind == "random"],
        speaker_independent=comparison.split.speaker_independent,
    )


def weigh_run(run: Run) -> Evidence:
    """:func:`weigh` a run that was read back."""
    return weigh(
        run.scores,
        families=run.families,
        random=run.random,
        speaker_independent=bool(run.config.get("speaker_independent", True)),
    )


def weigh(
    scores: Sequence[CellScore],
    *,
    families: Mapping[str, str],
    random: Sequence[str] = (),
    speaker_independent: bool = True,
) -> Evidence:
    """Test what a table seems to show.

    Args:
        scores: all cells of a table, tested on the same utterances.
        families: encoder to family (RLR, CBR, LEX).
        random: encoders with random weights.
        speaker_independent: whether no speaker is in two parts of a fold.

    Raises:
        ConfigError: the cells were not tested on the same utterances.
    """
    if not scores:
        return Evidence((), (), (), ())
    tallies = [score.tallies for score in scores]
    measure = scores[0].measure

    def judged_by(one: Measure) -> _Table:
        return _Table(scores, families, resample(tallies, one.metric), one)

    table = judged_by(measure)
    single, linear = table.against_singles(), table.against_linear()
    cells = tuple(
        CellEvidence(score, single.get(position), linear.get(position), _unused(score))
        for position, score in enumerate(scores)
    )
    return Evidence(
        cells=cells,
        answers=_answers(table, single),
        remarks=tuple(_remarks(cells, measure)),
        caveats=tuple(_caveats(table, single, random, speaker_independent)),
        by_dimension={
            name: _answers(own, own.against_singles())
            for name in (measure.dimensions if len(measure.dimensions) > 1 else ())
            for own in [judged_by(measure.of(name))]
        },
    )


def _answers(table: _Table, single: Mapping[int, Verdict]) -> tuple[Answer, ...]:
    return (
        _fusion_or_single(table, single),
        _hyperbolic_or_concat(table),
        _best_pair(table),
        _heterogeneous_or_homogeneous(table),
    )


def _unused(score: CellScore) -> tuple[str, ...]:
    """Inputs whose shuffling costs less than a point of UAR, or .01 of mean CCC, and nothing that is significant.

    Not corrected for the number of cells: correction would make it easier, not harder, to call an input unused.
    """
    if not score.right:
        return ()
    sides = (("left", score.left_drop, score.left_drop_p), ("right", score.right_drop, score.right_drop_p))
    return tuple(name for name, drop, p in sides if drop < score.measure.unused_below and not (drop > 0 and p < LEVEL))


@dataclass(frozen=True)
class _Table:
    """The cells by what they are, and how they are judged; cells are known by their position among the scores."""

    scores: Sequence[CellScore]
    families: Mapping[str, str]
    resampled: Resampled
    measure: Measure

    def singles(self, kind: str) -> dict[str, int]:
        """Encoder to its cell of a kind, ``single`` or the linear rung."""
        return {one.left: at for at, one in enumerate(self.scores) if not one.right and one.fusion == kind}

    def fused(self) -> list[int]:
        """Fusions by a trained head."""
        return [at for at, one in enumerate(self.scores) if one.right and one.fusion != self.measure.linear]

    def pairs(self) -> dict[tuple[str, str], list[int]]:
        """Pairs to their cells under the heads that all pairs have, so that means over cells compare."""
        heads: dict[tuple[str, str], dict[str, int]] = {}
        for at in self.fused():
            one = self.scores[at]
            # Heads of one fusion may differ in their options, which stand in the title behind the pair.
            name = one.cell.removeprefix(f"{one.left}+{one.right}")
            heads.setdefault((one.left, one.right), {})[name] = at
        shared = set.intersection(*(set(cells) for cells in heads.values())) if heads else set()
        return (
            {pair: [cells[name] for name in cells if name in shared] for pair, cells in heads.items()} if shared else {}
        )

    def value(self, *cells: int) -> float:
        """Mean score of some cells."""
        return float(np.mean([self.scores[at].estimates[self.measure.key].value for at in cells]))

    def against_singles(self) -> dict[int, Verdict]:
        """Every fusion against the better of its own single representations; heads and the linear rung are two families."""
        found: dict[int, Verdict] = {}
        rung = self.measure.linear
        for kind in (SINGLE, rung):
            alone = self.singles(kind)
            family: dict[int, tuple[str, Difference]] = {}
            for at, one in enumerate(self.scores):
                if one.right and (one.fusion == rung) == (kind == rung):
                    rivals = [name for name in (one.left, one.right) if name in alone]
                    if len(rivals) == len({one.left, one.right}):
                        differences = [self.resampled.difference([at], [alone[name]]) for name in rivals]
                        binding, difference = against_all(differences)
                        family[at] = (self.scores[alone[rivals[binding]]].cell, difference)
            found |= _corrected(family)
        return found

    def against_linear(self) -> dict[int, Verdict]:
        """Every head against the linear rung on the same input."""
        linear = self.measure.linear
        rung = {(one.left, one.right): at for at, one in enumerate(self.scores) if one.fusion == linear}
        return _corrected(
            {
                at: (
                    self.scores[rung[one.left, one.right]].cell,
                    self.resampled.difference([at], [rung[one.left, one.right]]),
                )
                for at, one in enumerate(self.scores)
                if one.fusion != linear and (one.left, one.right) in rung
            }
        )


def _corrected(family: Mapping[int, tuple[str, Difference]]) -> dict[int, Verdict]:
    adjusted = holm([difference.p for _, difference in family.values()])
    return {
        at: Verdict(other, difference, p) for (at, (other, difference)), p in zip(family.items(), adjusted, strict=True)
    }


# ---------------------------------------------------------------------------------------------------------------------
# Answers


def _fusion_or_single(table: _Table, single: Mapping[int, Verdict]) -> Answer:
    question = "Does fusion beat the best single representation?"
    tested = {at: single[at] for at in table.fused() if at in single}
    if not tested:
        why = "no fused cell stands beside both of its single representations; `hyfuse compare` computes both"
        return Answer(question, "not measured", f"Not measured: {why}.")
    rows = tuple(Row(table.scores[at].cell, one.other, one.difference, one.p_holm) for at, one in tested.items())
    better = [at for at, one in tested.items() if one.significant > 0]
    worse = [at for at, one in tested.items() if one.significant < 0]
    count = _counted(len(tested), "fused cell")
    if better:
        best = max(better, key=table.value)
        sentence = (
            f"Yes: {len(better)} of {count} beat{'s' if len(better) == 1 else ''} both of {'its' if len(better) == 1 else 'their'}"
            f" single representations significantly; the best of them is {_against(table, best, tested[best])}"
        )
        verdict = "yes"
    elif len(worse) == len(tested):
        best = max(tested, key=lambda at: tested[at].difference.value)
        sentence = f"No: {_all_of(count)} significantly below the better single representation; the nearest is"
        sentence += f" {_against(table, best, tested[best])}"
        verdict = "no"
    else:
        best = max(tested, key=lambda at: tested[at].difference.value)
        sentence = f"Not shown: none of {count} beats both of its single representations significantly; the nearest is"
        sentence += f" {_against(table, best, tested[best])}"
        verdict = "not shown"
    if worse and verdict != "no":
        sentence += f"; {len(worse)} {'is' if len(worse) == 1 else 'are'} significantly below the better single"
    return Answer(question, verdict, f"{sentence}.{_over_all_singles(table)}", rows)


def _over_all_singles(table: _Table) -> str:
    """The fusions against every single of the table, where there are more than a pair has."""
    alone = table.singles(SINGLE)
    fused = table.fused()
    if len(alone) < 3:
        return ""
    found = [
        against_all([table.resampled.difference([at], [other], ranks=False) for other in alone.values()])[1]
        for at in fused
    ]
    adjusted = holm([one.p for one in found])
    better = sum(one.value > 0 and p < LEVEL for one, p in zip(found, adjusted, strict=True))
    best = max(range(len(fused)), key=lambda position: found[position].value)
    return (
        f" {better or 'None'} of them beat{'s' if better < 2 else ''} every one of the table's {len(alone)} single"
        f" representations; {table.scores[fused[best]].cell} is {_from(table, found[best], 'the best of these')},"
        f" {p_text(adjusted[best])}."
    )


def _hyperbolic_or_concat(table: _Table) -> Answer:
    question = "Does hyperbolic fusion beat concatenation?"
    heads: dict[str, dict[tuple[str, str], int]] = {}
    for at in table.fused():
        one = table.scores[at]
        name = one.fusion if one.fusion == _CONCAT else one.cell.removeprefix(f"{one.left}+{one.right}").strip()
        heads.setdefault(name, {}).setdefault((one.left, one.right), at)
    concat = heads.pop(_CONCAT, {})
    fusion_of = {name: table.scores[next(iter(cells.values()))].fusion for name, cells in heads.items()}
    curved = {name: cells for name, cells in heads.items() if _hyperbolic(fusion_of[name]) and set(cells) & set(concat)}
    if not curved:
        return Answer(
            question,
            "not measured",
            "Not measured: concat and a hyperbolic head on the same pair are needed; run with"
            " `--fusions concat,hyperbolic`.",
        )
    means, by_pair = {}, []
    for name, cells in curved.items():
        shared = [pair for pair in cells if pair in concat]
        means[name] = table.resampled.difference([cells[pair] for pair in shared], [concat[pair] for pair in shared])
        by_pair += [(name, pair, table.resampled.difference([cells[pair]], [concat[pair]])) for pair in shared]
    adjusted = dict(zip(means, holm([one.p for one in means.values()]), strict=True))
    of_pairs = holm([difference.p for _, _, difference in by_pair])
    name = "hyperbolic" if "hyperbolic" in means else next(iter(means))
    mean, p = means[name], adjusted[name]
    verdict = _decided(mean, p)
    of_name = [(one, corrected) for (of, _, one), corrected in zip(by_pair, of_pairs, strict=True) if of == name]
    over = f", averaged over {len(of_name)} pairs" if len(of_name) > 1 else ""
    sentence = f"{_begin(verdict)}: {name} is {_from(table, mean, _CONCAT)}{over}, {p_text(p)}"
    if len(of_name) > 1:
        better, worse = (sum(sign * one.value > 0 and own < LEVEL for one, own in of_name) for sign in (1, -1))
        sentence += f"; significantly better on {better} of them, worse on {worse}"
    others = [
        f"{other} {table.measure.change(one.value)}, {p_text(adjusted[other])}"
        for other, one in means.items()
        if other != name
    ]
    sentence += f". Other heads in the ball: {'; '.join(others)}" if others else ""
    rows = [
        Row(f"{of} on average" if len(curved[of]) > 1 else of, _CONCAT, one, adjusted[of]) for of, one in means.items()
    ]
    rows += [
        Row(table.scores[curved[of][pair]].cell, table.scores[concat[pair]].cell, one, corrected)
        for (of, pair, one), corrected in zip(by_pair, of_pairs, strict=True)
        if len(curved[of]) > 1
    ]
    return Answer(question, verdict, f"{sentence}.", tuple(rows))


def _hyperbolic(fusion: str) -> bool:
    return fusion in FUSIONS and "curvature" in FUSIONS[fusion].options


def _best_pair(table: _Table) -> Answer:
    question = "Which pair is best, and which are not distinguishable from it?"
    pairs = table.pairs()
    if len(pairs) < 2:
        only = ", ".join("+".join(pair) for pair in pairs) or "none"
        return Answer(
            question,
            "not measured",
            f"Not measured: two pairs under the same head are needed, and there is {only}. Extract more encoders, or run with"
            " `--pairs all`.",
        )
    names = list(pairs)
    between = {
        (one, other): table.resampled.difference(pairs[one], pairs[other], ranks=False)
        for position, one in enumerate(names)
        for other in names[position + 1 :]
    }

    def lead(one: tuple[str, str], other: tuple[str, str]) -> Difference:
        return between[one, other] if (one, other) in between else _reversed(between[other, one])

    def beaten_by_any(name: tuple[str, str]) -> float:
        """p for another pair being better; each is compared with all others, hence the factor."""
        leads = [lead(other, name) for other in names if other != name]
        return min([1.0, *(len(leads) * one.p for one in leads if one.value > 0)])

    beaten = {name: beaten_by_any(name) for name in names}
    if any(math.isnan(one.p) for one in between.values()):
        return Answer(
            question, "not measured", "Not measured: there is a single test speaker, so nothing can be tested."
        )
    ranked = sorted(names, key=lambda name: -table.value(*pairs[name]))
    best = ranked[0]
    equals = [name for name in ranked[1:] if beaten[name] >= LEVEL]
    heads = len(pairs[best])
    over = f"mean of {heads} heads" if heads > 1 else table.scores[pairs[best][0]].fusion
    sentence = (
        f"{'+'.join(best)} has the highest {table.measure.name} ({table.measure.full(table.value(*pairs[best]))}, {over}) of"
        f" {len(names)} pairs; "
    )
    if not equals:
        sentence += "all others are significantly below it"
    else:
        listed = ", ".join(
            f"{'+'.join(name)} ({table.measure.text(table.value(*pairs[name]))})" for name in equals[:_NAMED]
        )
        more = f" and {len(equals) - _NAMED} more" if len(equals) > _NAMED else ""
        whom = "none of the others can be told" if len(equals) == len(names) - 1 else f"{len(equals)} cannot be told"
        sentence += f"{whom} from the best at 95 % confidence: {listed}{more}"
    verdict = "not shown" if equals else "yes"
    rows = tuple(Row("+".join(best), "+".join(name), lead(best, name), beaten[name]) for name in ranked[1:])
    return Answer(question, verdict, f"{_begin(verdict)}: {sentence}.", rows)


def _heterogeneous_or_homogeneous(table: _Table) -> Answer:
    question = "Does a heterogeneous pair (RLR × CBR) beat a homogeneous one?"
    kinds: dict[str, list[tuple[str, str]]] = {}
    pairs = table.pairs()
    for left, right in pairs:
        kind = " × ".join(sorted((table.families[left], table.families[right]), reverse=True))
        kinds.setdefault(kind, []).append((left, right))
    mixed = kinds.get("RLR × CBR", [])
    missing = [kind for kind in ("RLR × CBR", "RLR × RLR", "CBR × CBR") if kind not in kinds]
    plain = {kind: kinds[kind] for kind in ("RLR × RLR", "CBR × CBR") if kind in kinds}
    if not mixed or not plain:
        return Answer(
            question,
            "not measured",
            f"Not measured: there is no {' and no '.join(missing)} pair in this table; run with `--pairs all` and at least two"
            " encoders of each family.",
        )

    def cells(some: Iterable[tuple[str, str]]) -> list[int]:
        return [at for pair in some for at in pairs[pair]]

    means = {kind: table.resampled.difference(cells(mixed), cells(some)) for kind, some in plain.items()}
    adjusted = dict(zip(means, holm([one.p for one in means.values()]), strict=True))
    verdicts = {_decided(one, adjusted[kind]) for kind, one in means.items()}
    # To beat homogeneous pairs is to beat those of both families.
    verdict = verdicts.pop() if len(verdicts) == 1 and len(plain) == 2 else "no" if "no" in verdicts else "not shown"
    parts = [f"{_from(table, one, kind)}, {p_text(adjusted[kind])}" for kind, one in means.items()]
    sentence = f"{_begin(verdict)}: on average RLR × CBR is {' and '.join(parts)}"
    sentence += "".join(f" ({kind} was not measured)" for kind in missing)
    homogeneous = [pair for some in plain.values() for pair in some]
    top = {
        name: max(some, key=lambda pair: table.value(*pairs[pair]))
        for name, some in (("mixed", mixed), ("plain", homogeneous))
    }
    against = [
        against_all([table.resampled.difference(pairs[one], pairs[other], ranks=False) for other in homogeneous])[1]
        for one in mixed
    ]
    if any(math.isnan(one.p) for one in against):
        return Answer(
            question, "not measured", "Not measured: there is a single test speaker, so nothing can be tested."
        )
    # Some heterogeneous pair beats all homogeneous ones, corrected for the choice of the heterogeneous one.
    p = min([1.0, *(len(mixed) * one.p for one in against if one.value > 0)])
    best = table.resampled.difference(pairs[top["mixed"]], pairs[top["plain"]])
    other = f"the best homogeneous pair, {'+'.join(top['plain'])},"
    sentence += (
        f"; the best heterogeneous pair, {'+'.join(top['mixed'])}, is {_from(table, best, other)} ({p_text(p)} for some"
        " heterogeneous pair beating all homogeneous ones)"
    )
    rows = [Row("RLR × CBR on average", f"{kind} on average", one, adjusted[kind]) for kind, one in means.items()]
    rows.append(Row("+".join(top["mixed"]), "+".join(top["plain"]), best, p))
    return Answer(question, verdict, f"{sentence}.", tuple(rows))


def _reversed(one: Difference) -> Difference:
    interval = type(one.interval)(-one.interval.high, -one.interval.low, one.interval.level)
    return Difference(-one.value, interval, one.p, one.wilcoxon_p, one.spread, one.worse, one.better)


def _decided(difference: Difference, p: float) -> str:
    if p < LEVEL and difference.value != 0:
        return "yes" if difference.value > 0 else "no"
    return "not shown"


# ---------------------------------------------------------------------------------------------------------------------
# Remarks and caveats


def _remarks(cells: Sequence[CellEvidence], measure: Measure) -> Iterable[str]:
    unused = [(cell, side) for cell in cells for side in cell.unused]
    if unused:
        listed = ", ".join(f"{cell.score.cell} ({getattr(cell.score, side)})" for cell, side in unused[:_NAMED])
        more = f" and {len(unused) - _NAMED} more" if len(unused) > _NAMED else ""
        yield f"† The score does not depend on one input, so nothing is fused: {listed}{more}."
    by_head: dict[str, list[Verdict]] = {}
    for cell in cells:
        if cell.against_linear is not None:
            by_head.setdefault(cell.score.fusion, []).append(cell.against_linear)
    for fusion, verdicts in by_head.items():
        better = sum(one.significant > 0 for one in verdicts)
        worse = sum(one.significant < 0 for one in verdicts)
        mean = float(np.mean([one.difference.value for one in verdicts]))
        inputs = f"{len(verdicts)} input{'s' if len(verdicts) > 1 else ''}"
        beats = "does not beat" if better == 0 else "against"
        yield (
            f"{fusion} {beats} {measure.rung} on the same input: significantly better on {better} of {inputs}, worse on"
            f" {worse}; mean difference {measure.change(mean)} {measure.unit}."
        )


def _caveats(
    table: _Table, single: Mapping[int, Verdict], random: Sequence[str], speaker_independent: bool
) -> Iterable[str]:
    speakers, measure = len(table.scores[0].speakers), table.measure
    if speakers < 2:
        yield "Power: there is a single test speaker, so no difference can be tested and no interval given."
    spreads = [one.difference.spread for at, one in single.items() if table.scores[at].fusion != measure.linear]
    if speakers > 1 and spreads:
        spread = float(np.median(spreads))
        once = detectable_difference(spread, speakers, level=LEVEL)
        sentence = (
            f"Power: with {speakers} speakers, differences between a fusion and its singles under {measure.amount(once)} cannot be"
            " seen"
        )
        if len(spreads) > 1:
            corrected = detectable_difference(spread, speakers, comparisons=len(spreads), level=LEVEL)
            sentence += (
                f" in a single comparison, nor under {measure.amount(corrected)} in the {len(spreads)} of this table"
            )
        yield (
            f"{sentence}: a true one is missed more often than once in five times (speakers' differences spread by"
            f" {measure.amount(spread)}, median). Not shown is not the same as no difference."
        )
    yield (
        "Tests: paired, over speakers and seeds; p is corrected (Holm) within a question, not over all questions, nor over all"
        " tables that were looked at before this one. The best cell of a table flatters itself, being chosen by its test score."
    )
    if any(one.seeds == 1 and one.fusion not in LINEAR.values() for one in table.scores):
        yield "One seed: how much of a difference is the luck of a random start, is not in the intervals and p-values."
    if random:
        yield f"RANDOM weights ({', '.join(random)}): the answers say nothing about the pretrained encoders of that name."
    if not speaker_independent:
        yield (
            "Speaker-dependent protocol: the heads knew the voices that they were tested on; the answers do not carry over to new"
            " speakers."
        )


# ---------------------------------------------------------------------------------------------------------------------
# Words


def points(value: float) -> str:
    """A difference of scores in points, with its sign: ``+1.2``, ``−0.3``, ``0.0``."""
    text = f"{100 * value:.1f}"
    return "0.0" if text in {"0.0", "-0.0"} else f"+{text}" if value > 0 else text.replace("-", "−")


def p_text(p: float) -> str:
    """``p = .031``, ``p < .001``; ``not testable`` for NaN."""
    if math.isnan(p):
        return "not testable"
    return "p < .001" if p < 0.001 else "p = 1" if p > 0.9995 else f"p = {p:.3f}".replace("0.", ".", 1)


def _from(table: _Table, difference: Difference, other: str) -> str:
    """``1.2 points above concat [−0.3, +2.7]``; the interval is that of the difference, with its sign."""
    measure, bounds = table.measure, difference.interval
    interval = "" if math.isnan(bounds.low) else f" [{measure.change(bounds.low)}, {measure.change(bounds.high)}]"
    return f"{measure.amount(difference.value)} {'below' if difference.value < 0 else 'above'} {other}{interval}"


def _against(table: _Table, at: int, verdict: Verdict) -> str:
    return (
        f"{table.scores[at].cell} ({table.measure.full(table.value(at))}), {_from(table, verdict.difference, verdict.other)},"
        f" {p_text(verdict.p_holm)}"
    )


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' if number != 1 else ''}"


def _all_of(count: str) -> str:
    return f"the one of {count} is" if count.startswith("1 ") else f"all of {count} are"


def _begin(verdict: str) -> str:
    return verdict[0].upper() + verdict[1:]
