"""What the study ``asr-fusion`` answers: questions with tests, tables and figures.

A difference is one of the score that decides (UAR, or mean CCC), tested in pairs over speakers; p-values are corrected after Holm
within each question.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipelines.corpora.cards import card_names, read_card
from pipelines.corpora.leaks import check_split
from pipelines.evaluation.measures import Measure
from pipelines.evaluation.results import Estimate
from pipelines.evaluation.statistics import Difference, holm
from pipelines.fusion.frames.catalogue import ALONE, FRAME_HEADS
from pipelines.studies.answers import p_text
from pipelines.studies.asr_fusion_findings import STREAM_TITLES, Findings, LayerChanges, System, SystemScore
from pipelines.studies.outcome import Cell, Column, Figure, Outcome, Series, Table

__all__ = ["outcome_of"]

_LEVEL = 0.05


def outcome_of(findings: Findings, *, command: str, settings: Mapping[str, Any]) -> Outcome:
    """Answers, tables and figures."""
    questions = _Questions(findings)
    answers = (
        questions.fusion(),
        questions.transcripts(),
        questions.heads(),
        questions.joint(),
        questions.recognition(),
        questions.unused(),
        questions.fine_tuning(),
        questions.layers(),
    )
    return Outcome(
        study="asr-fusion",
        title=f"ASR and emotion: {findings.dataset.corpus}",
        corpus=findings.dataset.corpus,
        target=findings.dataset.target,
        answers=tuple(answer for answer in answers if answer),
        notes=tuple(_notes(findings)),
        warnings=tuple(_warnings(findings)),
        tables=tuple(_tables(findings, questions)),
        figures=tuple(_figures(findings)),
        command=command,
        settings=dict(settings),
    )


class _Questions:
    """Tests and the sentences made of them."""

    def __init__(self, findings: Findings) -> None:
        self.findings = findings
        systems = findings.systems
        self.at_main = [
            place
            for place, system in enumerate(systems)
            if system.frames.head != ALONE and system.frames.ctc_weight == findings.main_weight
        ]
        self.voice = {
            system.frames.ctc_weight: place
            for place, system in enumerate(systems)
            if system.frames.head == ALONE and system.frames.streams == ("acoustic",) and not system.fine_tuned
        }
        base = self.voice[findings.main_weight]
        self.against_voice = self._tested([(place, base) for place in self.at_main])
        by_hand = {
            (system.frames.head, system.fusion): place
            for place, system in enumerate(systems)
            if place in self.at_main and system.transcripts == "manual"
        }
        self.against_manual = self._tested(
            [
                (place, by_hand[key])
                for place in self.at_main
                if (key := (systems[place].frames.head, systems[place].fusion)) in by_hand
                and systems[place].transcripts not in ("manual", "none")
            ]
        )

    def _tested(self, pairs: Sequence[tuple[int, int]]) -> dict[int, tuple[int, Difference, float]]:
        """First system to (second, difference, p after Holm among these)."""
        differences = [self.findings.difference(*pair) for pair in pairs]
        adjusted = holm([difference.p for difference in differences])
        return {
            first: (second, difference, p)
            for (first, second), difference, p in zip(pairs, differences, adjusted, strict=True)
        }

    def _named(self, place: int) -> str:
        found = self.findings.scores[place]
        return f"{found.system.title} ({self.findings.measure.full(found.score.value)})"

    def _apart(self, difference: Difference) -> str:
        """``1.2 points above [−0.3, +2.7]``."""
        measure, bounds = self.findings.measure, difference.interval
        known = not math.isnan(bounds.low)
        interval = f" [{measure.change(bounds.low)}, {measure.change(bounds.high)}]" if known else ""
        return f"{measure.amount(difference.value)} {'below' if difference.value < 0 else 'above'}{interval}"

    def fusion(self) -> str:
        """Does it help to hear what was said?"""
        if not self.against_voice:
            return ""
        better = [one for one, (_, difference, p) in self.against_voice.items() if difference.value > 0 and p < _LEVEL]
        best = max(self.against_voice, key=lambda place: self.findings.scores[place].score.value)
        base, difference, p = self.against_voice[best]
        verdict = "Yes" if best in better else "Not shown"
        return (
            f"Does what a recogniser or a transcript adds help the voice? {verdict}: the best fusion, {self._named(best)}, is"
            f" {self._apart(difference)} {self._named(base)}, {p_text(p)} (Holm, {len(self.against_voice)} comparisons);"
            f" {len(better)} of {len(self.against_voice)} fusions are significantly better."
        )

    def transcripts(self) -> str:
        """Is the text of a recogniser as good as one by hand?"""
        if not self.against_manual:
            return ""
        worse = [one for one, (_, difference, p) in self.against_manual.items() if difference.value < 0 and p < _LEVEL]
        widest = min(self.against_manual, key=lambda place: self.against_manual[place][1].value)
        manual, difference, p = self.against_manual[widest]
        rates = ", ".join(f"{kind} {_rate(wer)}" for kind, wer in self.findings.heard_wer.items())
        verdict = "No" if worse else "A difference is not shown"
        return (
            f"Is the text of a recogniser as good for emotion as one by hand? {verdict}: at most, {self._named(widest)} is"
            f" {self._apart(difference)} {self._named(manual)}, {p_text(p)} (Holm, {len(self.against_manual)} comparisons);"
            f" word error rate: {rates}."
        )

    def heads(self) -> str:
        """Which head is best, on the same streams?"""
        systems = self.findings.systems
        pairs = [
            (first, second)
            for first in self.at_main
            for second in self.at_main
            if systems[first].frames.head == "hierarchical"
            and systems[second].frames.head != "hierarchical"
            and systems[first].transcripts == systems[second].transcripts
        ]
        if not pairs:
            return ""
        differences = [self.findings.difference(*pair) for pair in pairs]
        adjusted = holm([difference.p for difference in differences])
        judged = list(zip(pairs, differences, adjusted, strict=True))
        better = sum(difference.value > 0 and p < _LEVEL for _, difference, p in judged)
        worse = sum(difference.value < 0 and p < _LEVEL for _, difference, p in judged)
        (first, second), difference, p = max(judged, key=lambda one: abs(one[1].value))
        verdict = "Yes" if better and not worse else "No" if worse and not better else "Not shown"
        return (
            f"Is hierarchical co-attention the best head? {verdict}: of {len(pairs)} comparisons with another head on the same"
            f" streams it is significantly better in {better} and worse in {worse}; the largest difference: {self._named(first)} is"
            f" {self._apart(difference)} {self._named(second)}, {p_text(p)} (Holm)."
        )

    def joint(self) -> str:
        """Does CTC on the shared stack help the emotion?"""
        pairs = [(place, self.voice[0.0]) for weight, place in self.voice.items() if weight]
        fused = {system.frames.ctc_weight: place for place, system in self._chain()}
        pairs += [(place, fused[0.0]) for weight, place in fused.items() if weight and 0.0 in fused]
        if not pairs:
            return ""
        tested = self._tested(pairs)
        better = [one for one, (_, difference, p) in tested.items() if difference.value > 0 and p < _LEVEL]
        worse = [one for one, (_, difference, p) in tested.items() if difference.value < 0 and p < _LEVEL]
        first = max(tested, key=lambda place: abs(tested[place][1].value))
        second, difference, p = tested[first]
        verdict = "Yes" if better and not worse else "No, it hurts" if worse and not better else "Not shown"
        return (
            f"Does learning to recognise words (λ above 0) help the emotion? {verdict}: significantly better in {len(better)} and"
            f" worse in {len(worse)} of {len(tested)} comparisons with λ = 0; the largest difference: {self._named(first)} is"
            f" {self._apart(difference)} {self._named(second)}, {p_text(p)} (Holm)."
        )

    def _chain(self) -> list[tuple[int, System]]:
        """The fused system that every λ was tried on."""
        groups: dict[tuple[str, ...], list[tuple[int, System]]] = {}
        for place, system in enumerate(self.findings.systems):
            if system.frames.head != ALONE:
                groups.setdefault((system.fusion, system.left, system.right), []).append((place, system))
        return max(groups.values(), key=len) if groups else []

    def recognition(self) -> str:
        """How well does the shared stack recognise words?"""
        found = [one for one in self.findings.scores if not math.isnan(one.wer.value)]
        if not found:
            return ""
        best = min(found, key=lambda one: one.wer.value)
        others = "; ".join(f"the transcripts {kind} have {_rate(wer)}" for kind, wer in self.findings.heard_wer.items())
        useless = best.wer.value > 0.9
        nothing = " That is no recognition: train longer, or over frames that know more of words." if useless else ""
        return (
            f"How many words does CTC on the shared stack get wrong? At best {_rate(best.wer)}, by {best.system.title}"
            f"{f'; {others}' if others else ''}.{nothing}"
        )

    def unused(self) -> str:
        """Which streams does a fusion not look at?"""
        fused = [one for one in self.findings.scores if len(one.drops) > 1]
        if not fused:
            return ""
        found: dict[str, int] = {}
        for one in fused:
            for name, drop in one.drops.items():
                found[name] = found.get(name, 0) + _is_unused(drop, self.findings.measure)
        held = {name: sum(name in one.drops for one in fused) for name in found}
        listed = ", ".join(f"{STREAM_TITLES[name]} in {count} of {held[name]}" for name, count in found.items())
        return (
            "Do the fusions use all their streams? Shuffling a stream among the test utterances costs less"
            f" than {self.findings.measure.amount(self.findings.measure.unused_below)} and nothing significant:"
            f" {listed} fusions (marked † in the table)."
        )

    def fine_tuning(self) -> str:
        """Is training the encoder itself better than a stack over its frozen frames?"""
        tuned = [place for place, system in enumerate(self.findings.systems) if system.fine_tuned]
        if not tuned:
            return ""
        (first,) = tuned
        others = sorted({self.voice[0.0], self.voice[self.findings.main_weight]})
        differences = [self.findings.difference(first, other) for other in others]
        adjusted = holm([difference.p for difference in differences])
        better = all(one.value > 0 and p < _LEVEL for one, p in zip(differences, adjusted, strict=True))
        worse = all(one.value < 0 and p < _LEVEL for one, p in zip(differences, adjusted, strict=True))
        listed = " and ".join(
            f"{self._apart(one)} {self._named(other)}, {p_text(p)}"
            for other, one, p in zip(others, differences, adjusted, strict=True)
        )
        return (
            "Is fine-tuning the encoder better than a stack over its frozen frames?"
            f" {'Yes' if better else 'No, worse' if worse else 'Not shown'}: {self._named(first)} is {listed} (Holm)."
        )

    def layers(self) -> str:
        """Which layers did fine-tuning change?"""
        changes = self.findings.changes
        if changes is None:
            return ""
        first = len(changes.layers) - changes.trained
        own = np.diagonal(changes.cka)
        listed = ", ".join(
            f"{changes.layers[place]} CKA {own[place]:.2f}, PWCCA {changes.pwcca[place]:.2f}"
            for place in range(first, len(own))
        )
        return (
            f"Which layers did fine-tuning change? {changes.layers[first + int(np.nanargmin(own[first:]))]} most; alike to what"
            f" they were: {listed} (1 is unchanged; the layers below are frozen). Described, not tested."
        )


def _is_unused(drop: Difference, measure: Measure) -> bool:
    return drop.value < measure.unused_below and not (drop.value > 0 and drop.p < _LEVEL)


def _rate(wer: Estimate) -> str:
    """A word error rate with its interval."""
    low, high = wer.interval.low, wer.interval.high
    interval = "" if math.isnan(low) else f" [{100 * low:.1f}, {100 * high:.1f}]"
    return f"{100 * wer.value:.1f} %{interval}"


def _cell(estimate: Estimate, factor: float, mark: str = "") -> Cell:
    bounds = estimate.interval
    return Cell(value=factor * estimate.value, low=factor * bounds.low, high=factor * bounds.high, mark=mark)


def _shown(measure: Measure) -> dict[str, str]:
    """Titles of columns to scores; the one that decides among them."""
    if measure.target == "emotion":
        return {"WA": "accuracy", "UA": "uar", "F1": "macro_f1"}
    return {"CCC": "ccc", **{f"CCC {name}": f"ccc_{name}" for name in measure.dimensions}}


def _tables(findings: Findings, questions: _Questions) -> list[Table]:
    found = [_systems_table(findings, questions)]
    if _curves(findings):
        found.append(_weights_table(findings))
    if findings.changes is not None:
        found.append(_layers_table(findings.changes))
    return found


def _layers_table(changes: LayerChanges) -> Table:
    rows: list[tuple[str | Cell, ...]] = []
    first = len(changes.layers) - changes.trained
    for place, name in enumerate(changes.layers):
        nearest = changes.layers[int(np.nanargmax(changes.cka[place]))] if place >= first else name
        rows.append(
            (
                name,
                "trained" if place >= first else "frozen",
                Cell(value=float(changes.cka[place, place])),
                Cell(value=float(changes.pwcca[place])),
                nearest,
            )
        )
    return Table(
        name="layers",
        title=f"Layers of {changes.encoder} before and after fine-tuning its last {changes.trained}",
        about=(
            "Debiased linear CKA and PWCCA of each layer with itself before, on the test utterances of each fold, mean over folds;"
            " 1 is unchanged. Nearest: the original layer that the layer is now most alike by CKA."
        ),
        columns=(
            Column(title="layer"),
            Column(title=""),
            Column(title="CKA", digits=3),
            Column(title="PWCCA", digits=3),
            Column(title="nearest before"),
        ),
        rows=tuple(rows),
    )


def _systems_table(findings: Findings, questions: _Questions) -> Table:
    measure = findings.measure
    factor, columns = measure.factor, _shown(measure)
    rows: list[tuple[str | Cell, ...]] = []
    for place, one in enumerate(findings.scores):
        system, estimates = one.system, one.score.estimates
        _, apart, p = questions.against_voice.get(place, (0, None, math.nan))
        mark = "" if apart is None or not p < _LEVEL else "↑" if apart.value > 0 else "↓"
        _, from_manual, manual_p = questions.against_manual.get(place, (0, None, math.nan))
        drops = [
            _cell(
                Estimate(drop.value, drop.interval),
                factor,
                "†" if len(one.drops) > 1 and _is_unused(drop, measure) else "",
            )
            if (drop := one.drops.get(name)) is not None
            else ""
            for name in STREAM_TITLES
        ]
        rows.append(
            (
                " + ".join(system.names.values()),
                system.fusion
                if system.fine_tuned
                else ", ".join((FRAME_HEADS[system.frames.head].title, *system.frames.options.values())),
                f"{system.frames.ctc_weight:g}",
                *(_cell(estimates[key], factor, mark if key == measure.key else "") for key in columns.values()),
                "" if math.isnan(one.wer.value) else _cell(one.wer, 100),
                ""
                if from_manual is None
                else _cell(Estimate(from_manual.value, from_manual.interval), factor, "*" if manual_p < _LEVEL else ""),
                *drops,
            )
        )
    known = {"WA": "weighted accuracy", "UA": "unweighted average recall", "F1": "macro-F1, all in per cent"}
    legend = ", ".join(f"{name} {known[name]}" for name in columns if name in known)
    decides = next(title for title, key in columns.items() if key == measure.key)
    return Table(
        name="systems",
        title=f"Emotion from speech and from what is recognised: {findings.dataset.corpus} [95 % interval]",
        about=(
            f"{legend or 'CCC of the population, its mean over dimensions first'}; WER of the words that CTC on the shared stack"
            f" decodes, per cent; {decides} minus that of the same head on manual transcripts; loss of {decides} when a stream is"
            " shuffled among the test utterances. ↑ ↓ significantly better or worse than the acoustic stream alone under the same"
            " λ, * than manual transcripts (Holm); † a stream is not used."
        ),
        columns=(
            Column(title="streams"),
            Column(title="head"),
            Column(title="λ"),
            *(Column(title=title, digits=measure.digits) for title in columns),
            Column(title="WER"),
            Column(title=f"{decides} − manual", digits=measure.digits),
            *(Column(title=f"{title} shuffled", digits=measure.digits) for title in STREAM_TITLES.values()),
        ),
        rows=tuple(rows),
    )


def _curves(findings: Findings) -> dict[str, list[SystemScore]]:
    """Name to systems that differ in λ alone, by λ; of those with more than one λ."""
    groups: dict[str, list[SystemScore]] = {}
    for one in findings.scores:
        groups.setdefault(f"{'+'.join(one.system.names.values())} {one.system.fusion}", []).append(one)
    return {
        name: sorted(group, key=lambda one: one.system.frames.ctc_weight)
        for name, group in groups.items()
        if len(group) > 1
    }


def _weights_table(findings: Findings) -> Table:
    measure = findings.measure
    columns = _shown(measure)
    rows: list[tuple[str | Cell, ...]] = [
        (
            name,
            f"{one.system.frames.ctc_weight:g}",
            *(_cell(one.score.estimates[key], measure.factor) for key in columns.values()),
            "" if math.isnan(one.wer.value) else _cell(one.wer, 100),
            "" if math.isnan(one.unsayable) else Cell(value=100 * one.unsayable),
            Cell(value=one.parameters),
        )
        for name, group in _curves(findings).items()
        for one in group
    ]
    return Table(
        name="lambda",
        title="Joint training: λ CTC + (1 − λ) emotion [95 % interval]",
        about=(
            "WER in per cent; unsayable: per cent of the training texts with more characters than frames, which CTC cannot learn;"
            " parameters: trained, of one model."
        ),
        columns=(
            Column(title="system"),
            Column(title="λ"),
            *(Column(title=title, digits=measure.digits) for title in columns),
            Column(title="WER"),
            Column(title="unsayable"),
            Column(title="parameters", digits=0),
        ),
        rows=tuple(rows),
    )


def _figures(findings: Findings) -> list[Figure]:
    measure = findings.measure
    label = f"{measure.name}, %" if measure.factor == 100 else measure.name
    figures = []
    rates = {"manual": 0.0, **{kind: 100 * wer.value for kind, wer in findings.heard_wer.items()}}
    with_text = [one for one in findings.scores if "text" in one.system.frames.streams]
    series = []
    for fusion in dict.fromkeys(one.system.fusion for one in with_text):
        chosen = [
            one
            for one in with_text
            if one.system.fusion == fusion
            and one.system.frames.ctc_weight == (0.0 if fusion == ALONE else findings.main_weight)
        ]
        series.append(
            Series(
                name="text alone" if fusion == ALONE else fusion,
                x=tuple(rates[one.system.transcripts] for one in chosen),
                labels=tuple(one.system.transcripts for one in chosen),
                **_heights([_emotion(one) for one in chosen], measure.factor),
            )
        )
    if series:
        figures.append(
            Figure(
                name="wer-emotion",
                title="Word errors of the text, and emotion",
                about=f"{measure.name} of every system with a text against the word error rate of that text; by hand it is 0.",
                kind="scatter",
                x_label="WER of the text, %",
                y_label=label,
                series=tuple(series),
            )
        )
    for name, title, unit, factor, value in (
        ("lambda-emotion", measure.name, label, measure.factor, _emotion),
        ("lambda-wer", "WER", "WER, %", 100.0, _words),
    ):
        lines = tuple(
            Series(
                name=group_name,
                x=tuple(one.system.frames.ctc_weight for one in known),
                **_heights([value(one) for one in known], factor),
            )
            for group_name, group in _curves(findings).items()
            if (known := [one for one in group if not math.isnan(value(one).value)])
        )
        if lines:
            figures.append(
                Figure(
                    name=name,
                    title=f"{title} by the weight of CTC",
                    about="Joint training with λ CTC + (1 − λ) emotion on the shared stack; 95 % intervals over speakers.",
                    kind="lines",
                    x_label="λ",
                    y_label=unit,
                    series=lines,
                )
            )
    if findings.changes is not None:
        figures.append(_layers_figure(findings.changes))
    return figures


def _layers_figure(changes: LayerChanges) -> Figure:
    return Figure(
        name="layer-differences",
        title=f"Layers of {changes.encoder} before and after fine-tuning",
        about=(
            f"Debiased linear CKA of every layer after fine-tuning the last {changes.trained} (rows) with every layer before"
            " (columns), on test utterances, mean over folds."
        ),
        kind="heatmap",
        x_label="layer before",
        y_label="CKA",
        ticks=changes.layers,
        series=tuple(
            Series(name=name, x=tuple(map(float, range(len(changes.layers)))), y=tuple(map(float, row)))
            for name, row in zip(changes.layers, changes.cka, strict=True)
        ),
    )


def _emotion(one: SystemScore) -> Estimate:
    return Estimate(one.score.value, one.score.interval)


def _words(one: SystemScore) -> Estimate:
    return one.wer


def _heights(estimates: Sequence[Estimate], factor: float) -> dict[str, Any]:
    """``y``, ``low`` and ``high`` of a series."""
    return {
        "y": tuple(factor * one.value for one in estimates),
        "low": tuple(factor * one.interval.low for one in estimates),
        "high": tuple(factor * one.interval.high for one in estimates),
    }


def _notes(findings: Findings) -> list[str]:
    dataset, split, train = findings.dataset, findings.split, findings.train
    folds, seeds = len(split.folds), findings.seeds
    rows = {
        "fixed": f"training and validation part for {train.epochs} epochs, nothing selected",
        "last": f"the training part for {train.epochs} epochs, nothing selected",
    }.get(train.selection, f"the training part, best epoch by {train.selection} on the validation part")
    what = f"{len(dataset.classes)} emotions ({', '.join(dataset.classes)})"
    if dataset.dimensions:
        what = f"dimensions {', '.join(dataset.dimensions)}"
    found = [
        f"Corpus: {dataset.corpus}, {len(dataset.utterance_ids)} utterances, {len(set(dataset.speakers))} speakers, {what}.",
        f"Protocol: {split.protocol}, {'speaker-independent' if split.speaker_independent else 'speaker-dependent'},"
        f" {folds} fold{'s' if folds > 1 else ''}; {seeds} seed{'s' if seeds > 1 else ''}; scores of all folds pooled, mean over"
        " seeds; 95 % intervals by bootstrap over speakers.",
        f"Frames: {', '.join(dict.fromkeys(source.title for source in dataset.sources.values()))}.",
        f"Models: trained on {rows}; shared stack of {train.stack_layers} transformer"
        f" layer{'s' if train.stack_layers != 1 else ''} of {train.hidden_dim} features over the acoustic frames. Heads and"
        f" transcripts are compared under λ = {findings.main_weight:g}.",
        "Ours, not the paper's (which is known by its abstract): the stack over frozen frames, what early fusion is, how three"
        " streams go into cross-attention, the order of the two stages, pooling by mean and spread, and the values of λ.",
    ]
    if dataset.left_out:
        found.append(
            "Left out: " + ", ".join(f"{count} ({reason})" for reason, count in dataset.left_out.items()) + "."
        )
    checked = check_split(findings.manifest, split, dataset.utterance_ids)
    return [*found, *(f"Leak check: {finding.message}" for finding in checked if finding.level == "note")]


def _warnings(findings: Findings) -> list[str]:
    dataset, split = findings.dataset, findings.split
    warnings = []
    if findings.random:
        warnings.append(
            f"RANDOM weights: {', '.join(findings.random)}. These scores say nothing about the pretrained encoders of that name."
        )
    if not split.speaker_independent:
        warnings.append(
            f"speaker-dependent: {split.protocol} has the same speakers in training and test. Compare only with papers that did the"
            " same."
        )
    for finding in check_split(findings.manifest, split, dataset.utterance_ids):
        if finding.level != "note":
            warnings.append(f"{'LEAK' if finding.level == 'error' else 'Leak check'}: {finding.message}")
    card = read_card(dataset.corpus) if dataset.corpus in card_names() else None
    return [*warnings, *(card.warnings if card else ())]
