"""Numbers from papers, each with its corpus, classes, protocol, metric and source, to stand beside ours where they may.

The protocol decides more than the model: BYOL-S and SoundStream-Lyra under logistic regression score 77.5 UAR on Emo-DB if the test
speakers are new, and 87.7 if they are not. So a published number stands beside a number of ours only where corpus, target, classes
and division into test parts are the same and the recordings are as they are (condition ``clean``); elsewhere it is listed with the
reason why it does not compare. What differs in a system (fine-tuned, other layers, other heads) is said in its name and left to the
reader: that is what a comparison is about.

Only numbers that could be read in a source are here. HYFuse itself (arXiv 2506.03403) has none: none of its tables was readable.
What papers state without a table that compares is a :class:`Claim`, quoted in words beside the study that asks the same.

Values are on the scale of the source: per cent for accuracy, UAR and macro-F1; CCC as it is.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pipelines.evaluation.results import CellScore
from pipelines.evaluation.runs import Run
from pipelines.fusion.catalogue import SINGLE
from pipelines.studies.outcome import Outcome

__all__ = [
    "CLAIMS",
    "METRIC_NAMES",
    "PUBLISHED",
    "Beside",
    "Claim",
    "Published",
    "Setting",
    "Shown",
    "Source",
    "beside_outcome",
    "beside_run",
    "published_markdown",
    "reasons",
]

METRIC_NAMES = {
    "accuracy": "accuracy (WA), %",
    "uar": "UAR (UA), %",
    "macro_f1": "macro-F1, %",
    "ccc_arousal": "CCC, arousal",
    "ccc_valence": "CCC, valence",
    "ccc_dominance": "CCC, dominance",
}


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a number was read.

    Attributes:
        name: authors or benchmark, with the year.
        where: identifier by which it is found.
    """

    name: str
    where: str

    def __str__(self) -> str:
        return f"{self.name}, {self.where}" if self.where else self.name


@dataclass(frozen=True, kw_only=True)
class Published:
    """One published number.

    Attributes:
        system: what scored it.
        encoder: catalogue name of the same encoder, for which ours is looked up; empty where there is none.
        corpus: name of the card.
        target: ``emotion`` or ``dimensions``.
        metric: one of :data:`METRIC_NAMES`.
        value: as printed, see the module.
        classes: our words for them; empty for ``dimensions``.
        protocol: our protocol with the same test parts; empty where there is none, or where it is not known.
        divided: how test parts were divided, in words.
        source: where it was read.
    """

    system: str
    encoder: str
    corpus: str
    target: str = "emotion"
    metric: str
    value: float
    classes: tuple[str, ...] = ()
    protocol: str = ""
    divided: str
    source: Source


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What a paper says, without a number that compares.

    Attributes:
        study: the study that asks the same; ``compare`` for the comparison of pairs.
        text: in a sentence.
        source: where it was read.
    """

    study: str
    text: str
    source: Source


_SUPERB = Source(name="SUPERB benchmark, task ER", where="arXiv 2105.01051")
_EMOBOX = Source(name="EmoBox benchmark, Ma et al. 2024", where="github.com/emo-box/EmoBox")
_SER_TESTS = Source(name="audEERING ser-tests", where="github.com/audeering/ser-tests")
_PARROT = Source(name="PARROT, Phukan et al. 2025", where="arXiv 2506.01138")
_HYFUSE = Source(name="HYFuse, Phukan et al. 2025", where="arXiv 2506.03403")
_MITRA = Source(name="Mitra et al. 2023", where="arXiv 2303.03177")
_LI = Source(name="Li, Bell, Lai 2022", where="arXiv 2110.15684")
_OLIVEIRA = Source(name="Oliveira, Prabhu, Gerkmann 2023", where="arXiv 2305.19184")

_FOUR = ("anger", "happiness", "neutral", "sadness")
_SIX = ("anger", "disgust", "fear", "happiness", "neutral", "sadness")
_SEVEN = ("anger", "boredom", "disgust", "fear", "happiness", "neutral", "sadness")
_SESSIONS = "five folds, one session left out each"


def _published() -> Iterator[Published]:
    for name, encoder, value in (
        ("wav2vec 2.0 base", "wav2vec2", 63.4),
        ("HuBERT base", "hubert", 64.9),
        ("HuBERT large", "hubert-large", 67.6),
        ("WavLM base", "wavlm", 65.9),
        ("WavLM base+", "wavlm-base-plus", 68.7),
        ("WavLM large", "wavlm-large", 70.6),
    ):
        yield Published(
            system=f"{name}, frozen, learned weights of layers", encoder=encoder, corpus="iemocap", metric="accuracy",
            value=value, classes=_FOUR, protocol="session", divided=_SESSIONS, source=_SUPERB,
        )  # fmt: skip
    for name, encoder, uar, accuracy in (
        ("wav2vec 2.0 base", "wav2vec2", 58.3, 57.7),
        ("HuBERT base", "hubert", 63.9, 63.1),
        ("WavLM base", "wavlm", 62.9, 63.9),
        ("WavLM large", "wavlm-large", 69.5, 69.1),
    ):
        for metric, value in (("uar", uar), ("accuracy", accuracy)):
            yield Published(
                system=f"{name}, frozen, last layer", encoder=encoder, corpus="iemocap", metric=metric, value=value,
                classes=_FOUR, protocol="session", divided=_SESSIONS, source=_EMOBOX,
            )  # fmt: skip
    yield Published(
        system="wav2vec 2.0 trained for ASR and emotion, hierarchical co-attention with ASR text", encoder="", corpus="iemocap",
        metric="accuracy", value=63.4, classes=_FOUR, divided="folds and classes could not be confirmed", source=_LI,
    )  # fmt: skip
    for corpus, classes, accuracy, f1 in (("cremad", _SIX, 69.95, 68.23), ("emodb", _SEVEN, 88.26, 87.11)):
        for metric, value in (("accuracy", accuracy), ("macro_f1", f1)):
            yield Published(
                system="HuBERT base, frozen, convolutional head", encoder="hubert", corpus=corpus, metric=metric, value=value,
                classes=classes, divided="folds not stated, maybe speaker-dependent", source=_PARROT,
            )  # fmt: skip
    for name, encoder, values in (
        ("WavLM", "", (0.746, 0.671, 0.646)),
        ("HuBERT base", "", (0.711, 0.621, 0.531)),
    ):
        for dimension, value in zip(("arousal", "dominance", "valence"), values, strict=True):
            yield Published(
                system=f"{name}, fine-tuned", encoder=encoder, corpus="msp-podcast", target="dimensions",
                metric=f"ccc_{dimension}", value=value, divided="official Test1 of a release that could not be confirmed",
                source=_SER_TESTS,
            )  # fmt: skip


PUBLISHED: tuple[Published, ...] = tuple(_published())
"""Every published number, by source."""

CLAIMS: tuple[Claim, ...] = (
    Claim(
        study="compare",
        text="HYFuse reports x-vector + SoundStream as its best pair, and pairs of RLR and CBR above every single representation"
        " and every homogeneous pair. None of its tables was readable, so no number of it is quoted.",
        source=_HYFUSE,
    ),
    Claim(
        study="noise",
        text="Under noise and reverberation, lexical representations lose less than acoustic ones (MSP-Podcast).",
        source=_MITRA,
    ),
    Claim(
        study="noise",
        text="Acoustic and lexical together raise the CCC of valence by about 100 % over the acoustic and about 30 % over the"
        " lexical baseline, relatively (MSP-Podcast).",
        source=_MITRA,
    ),
    Claim(
        study="distill",
        text="Distillation from the acoustic and lexical teacher makes the acoustic student more robust to noise (MSP-Podcast).",
        source=_MITRA,
    ),
    Claim(
        study="distill",
        text="An audio-textual distilled model with about 20 % of the trainable parameters of a large SSL model is on par with it"
        " over arousal, valence and dominance (MSP-Podcast 1.10).",
        source=_OLIVEIRA,
    ),
    Claim(
        study="layers",
        text="Shallow layers of HuBERT matter for arousal, deep ones for valence (MSP-Podcast 1.10).",
        source=_OLIVEIRA,
    ),
    Claim(
        study="asr-fusion",
        text="Hierarchical co-attention is the best of the fusions with ASR hidden states and text, close to the use of true"
        " transcripts (IEMOCAP).",
        source=_LI,
    ),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What decides whether a number of ours compares.

    Attributes:
        corpus: name.
        target: ``emotion`` or ``dimensions``.
        classes: emotions; empty where they are not known.
        protocol: name; empty where it is not known.
        condition: of the recordings.
    """

    corpus: str
    target: str = "emotion"
    classes: tuple[str, ...] = ()
    protocol: str = ""
    condition: str = "clean"


@dataclass(frozen=True, kw_only=True)
class Beside:
    """A published number and what stands beside it.

    Attributes:
        published: the number.
        reasons: why it does not compare with ours; empty where it does.
        ours: our number for the same encoder alone, with its interval; empty where there is none or nothing compares.
    """

    published: Published
    reasons: tuple[str, ...] = ()
    ours: str = ""

    @property
    def value(self) -> str:
        """The number as text, with the decimals of its kind."""
        return f"{self.published.value:.3f}" if self.published.target == "dimensions" else f"{self.published.value:g}"


@dataclass(frozen=True, kw_only=True)
class Shown:
    """What a page says of published numbers.

    Attributes:
        corpus: name.
        rows: numbers on the corpus; those that compare come first.
        claims: of papers that ask the same.
        best: our best cell, in a sentence; empty where nothing compares.
    """

    corpus: str
    rows: tuple[Beside, ...]
    claims: tuple[Claim, ...] = ()
    best: str = ""

    @property
    def same(self) -> tuple[Beside, ...]:
        """Those that compare."""
        return tuple(row for row in self.rows if not row.reasons)

    @property
    def other(self) -> tuple[Beside, ...]:
        """Those that do not."""
        return tuple(row for row in self.rows if row.reasons)

    @property
    def summary(self) -> str:
        """One sentence on what there is."""
        if not self.rows:
            return f"No published number on {self.corpus} is on file."
        if not self.same:
            return (
                f"{_counted(len(self.rows))} on {self.corpus} on file; none was scored under the protocol of this run."
            )
        rest = f"; {len(self.other)} under another, marked as such" if self.other else ""
        return (
            f"{_counted(len(self.same))} on {self.corpus} on file with the classes and test parts of this run{rest}. Systems differ"
            f" in more than their encoder, and published numbers seldom come with intervals. {self.best}".rstrip()
        )


def _counted(count: int) -> str:
    return f"{count} published number{'s' if count > 1 else ''}"


def reasons(published: Published, setting: Setting) -> tuple[str, ...]:
    """Why a published number does not compare with one of ours on the same corpus; empty if it does."""
    found = []
    if not published.protocol:
        found.append(f"other or unknown protocol: {published.divided}")
    elif not setting.protocol:
        found.append(f"protocol {published.protocol} ({published.divided}); that of this study is not one of them")
    elif published.protocol != setting.protocol:
        found.append(f"other protocol: {published.divided}; here {setting.protocol}")
    if published.target == "emotion" and not setting.classes:
        found.append(f"classes {', '.join(published.classes)}; those of this study are not known here")
    elif published.target == "emotion" and set(published.classes) != set(setting.classes):
        found.append(f"other classes: {', '.join(published.classes)}")
    if setting.condition != "clean":
        found.append(f"clean recordings; here {setting.condition}")
    return tuple(found)


def beside_run(run: Run) -> Shown:
    """Published numbers on a run's corpus; where they compare, with that of our head on the same encoder alone beside them."""
    config = run.config
    setting = Setting(
        corpus=str(config["corpus"]),
        target=run.target,
        classes=tuple(run.classes),
        protocol=str(config["protocol"]),
        condition=str(config["condition"]),
    )
    shown = _shown(setting, "compare", lambda published: _ours(run, published))
    return replace(shown, best=_best(run)) if shown.same else shown


def beside_outcome(outcome: Outcome) -> Shown:
    """Published numbers on a study's corpus, and what papers say to its question.

    A study's own numbers are in its tables, on the same page.
    """
    settings: Mapping[str, Any] = outcome.settings
    setting = Setting(
        corpus=outcome.corpus,
        target=outcome.target,
        classes=tuple(map(str, settings.get("classes") or ())),
        protocol=str(settings.get("protocol") or ""),
        condition=str(settings.get("condition") or "clean"),
    )
    return _shown(setting, outcome.study, lambda published: "")


def _shown(setting: Setting, study: str, ours: Any) -> Shown:
    rows = [
        Beside(published=one, reasons=why, ours="" if why else ours(one))
        for one in PUBLISHED
        if one.corpus == setting.corpus and one.target == setting.target
        for why in [reasons(one, setting)]
    ]
    rows.sort(key=lambda row: bool(row.reasons))
    claims = tuple(claim for claim in CLAIMS if claim.study == study)
    return Shown(corpus=setting.corpus, rows=tuple(rows), claims=claims)


def _ours(run: Run, published: Published) -> str:
    """The head on the same encoder alone; empty where the run has none."""
    for score in run.scores:
        if score.left == published.encoder and not score.right and score.fusion == SINGLE:
            representation = str(run.config["sources"][score.left].get("representation", ""))
            return f"{_scored(run, score, published.metric)} ({', '.join(filter(None, (score.cell, representation)))})"
    return ""


def _best(run: Run) -> str:
    """The best cell of a run in a sentence."""
    score = max(run.scores, key=lambda one: -math.inf if math.isnan(one.value) else one.value)
    return f"The best cell of this run is {score.cell}: {run.measure.name} {_scored(run, score, run.measure.key)}."


def _scored(run: Run, score: CellScore, metric: str) -> str:
    found, measure = score.estimates[metric], run.measure
    low, high = found.interval.low, found.interval.high
    bounds = "" if math.isnan(low) else f" [{measure.text(low)}, {measure.text(high)}]"
    random = ", RANDOM weights" if {score.left, score.right} & set(run.random) else ""
    return f"{measure.text(found.value)}{bounds}{random}"


def published_markdown(shown: Shown) -> str:
    """A section in Markdown."""
    parts = ["### Published", shown.summary]
    if shown.same:
        parts.append(_table(shown.same, "Ours", [row.ours or "–" for row in shown.same]))
    if shown.other:
        parts.append("Not to be compared with the numbers of this run:")
        parts.append(_table(shown.other, "Why not", ["; ".join(row.reasons) for row in shown.other]))
    parts += [f"{claim.text} ({claim.source})" for claim in shown.claims]
    return "\n\n".join(parts) + "\n"


def _table(rows: Sequence[Beside], last: str, texts: Sequence[str]) -> str:
    lines = [f"| System | Metric | Published | {last} | Source |", "|---|---|---|---|---|"]
    lines += [
        f"| {row.published.system} | {METRIC_NAMES[row.published.metric]} | {row.value} | {text} | {row.published.source} |"
        for row, text in zip(rows, texts, strict=True)
    ]
    return "\n".join(lines)
