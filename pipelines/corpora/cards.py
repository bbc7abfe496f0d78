"""Corpus cards: one TOML file per corpus in ``data_manifests/``. Importable without pandas.

A card says what a corpus is, under which licence, how a user obtains it, how its raw labels map to the one vocabulary,
which protocols make sense, and how many utterances, speakers and labels the official release holds. Adding a corpus is one
card and, if its folder layout is new, one file in ``layouts/``.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from pipelines.errors import CardError, unknown_name

__all__ = [
    "VOCABULARY",
    "AudbSource",
    "Card",
    "canonical_emotion",
    "card_folder",
    "card_names",
    "emotion_words",
    "read_card",
]

VOCABULARY: tuple[str, ...] = (
    "anger",
    "boredom",
    "calm",
    "contempt",
    "disgust",
    "excitement",
    "fear",
    "frustration",
    "happiness",
    "neutral",
    "other",
    "sadness",
    "surprise",
)
"""Emotion labels that cards map to. An empty label means: no emotion label, or raters did not agree."""

_SYNONYMS: dict[str, str] = {
    "angry": "anger",
    "ang": "anger",
    "bored": "boredom",
    "disgusted": "disgust",
    "dis": "disgust",
    "excited": "excitement",
    "exc": "excitement",
    "fearful": "fear",
    "fea": "fear",
    "afraid": "fear",
    "anxiety": "fear",
    "frustrated": "frustration",
    "fru": "frustration",
    "happy": "happiness",
    "hap": "happiness",
    "joy": "happiness",
    "joyful": "happiness",
    "neu": "neutral",
    "sad": "sadness",
    "surprised": "surprise",
    "sur": "surprise",
    "ps": "surprise",
}


@dataclass(frozen=True)
class AudbSource:
    """Where audEERING's registry of databases, which the package audb reads, has a corpus.

    Attributes:
        name: of the database there.
        version: the release that the card's counts belong to.
        media: beginning of the paths of the recordings that belong to the corpus; empty for all.
        remark: how this release differs from the official one.
    """

    name: str
    version: str
    media: str = ""
    remark: str = ""


@dataclass(frozen=True, kw_only=True)
class Card:
    """What is known about one corpus.

    Attributes:
        name: what the user types.
        title: full name.
        language: ISO 639-1 codes, comma separated.
        layout: module in ``pipelines/corpora/layouts`` that reads the official folder; ``demo`` is generated.
        licence: of recordings and labels.
        citation: the paper to cite.
        url: where it is published.
        obtain: how a user gets it and where it then has to lie.
        version: the release the expected counts belong to.
        classes: emotions that are trained on by default, in the order of every confusion matrix.
        label_map: raw label to a word of ``VOCABULARY``, or to ``""`` for no label.
        expected_utterances: of the official release; 0 where unknown.
        expected_speakers: likewise.
        expected_emotions: emotion to count, after mapping.
        expected_splits: official split to count.
        default_protocol: used unless told otherwise.
        protocols: names that make sense for this corpus.
        test_speakers: protocol name to the test speakers of each of its folds, for protocols fixed by a publication.
        warnings: shown whenever a protocol of this corpus is used.
        audb: where `hyfuse corpora fetch` gets it; None where it has to be asked for or downloaded by hand.
    """

    name: str
    title: str
    language: str
    layout: str
    licence: str
    citation: str
    url: str
    obtain: str
    version: str
    classes: tuple[str, ...]
    label_map: Mapping[str, str]
    expected_utterances: int = 0
    expected_speakers: int = 0
    expected_emotions: Mapping[str, int] = field(default_factory=dict)
    expected_splits: Mapping[str, int] = field(default_factory=dict)
    default_protocol: str
    protocols: tuple[str, ...]
    test_speakers: Mapping[str, tuple[tuple[str, ...], ...]] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    audb: AudbSource | None = None

    def __post_init__(self) -> None:
        for raw, emotion in self.label_map.items():
            if emotion and emotion not in VOCABULARY:
                raise CardError(
                    f"Card {self.name!r} maps {raw!r} to {emotion!r}, which is not in the vocabulary: {', '.join(VOCABULARY)}."
                )
        unmapped = [emotion for emotion in self.classes if emotion not in self.label_map.values()]
        if unmapped:
            raise CardError(f"Card {self.name!r} trains on {', '.join(unmapped)}, but no raw label is mapped to it.")
        foreign = sorted(set(self.expected_emotions) - set(self.label_map.values()))
        if foreign:
            raise CardError(
                f"Card {self.name!r} expects counts of {', '.join(foreign)}, but no raw label is mapped to it."
            )
        for protocol in (self.default_protocol, *self.test_speakers):
            if protocol not in self.protocols:
                raise CardError(
                    f"Card {self.name!r}: protocol {protocol!r} is not among the available ones: {', '.join(self.protocols)}."
                )
        numbers = [speaker for folds in self.test_speakers.values() for fold in folds for speaker in fold]
        if any(not isinstance(speaker, str) for speaker in numbers):
            raise CardError(f"Card {self.name!r}: test speakers must be text in quotation marks, as in the manifest.")


_TOP_KEYS = {
    "name", "title", "language", "layout", "licence", "citation", "url", "obtain", "version", "warnings",
    "labels", "expected", "protocols", "audb",
}  # fmt: skip
_SECTION_KEYS = {
    "labels": {"classes", "map"},
    "expected": {"utterances", "speakers", "emotions", "splits"},
    "audb": {"name", "version", "media", "remark"},
}


def card_folder() -> Path:
    """Folder of the cards: ``data_manifests/`` of the checkout, or its copy inside the installed package."""
    checkout = Path(__file__).resolve().parents[2] / "data_manifests"
    return checkout if checkout.is_dir() else Path(__file__).resolve().parents[1] / "data_manifests"


@cache
def card_names() -> tuple[str, ...]:
    """Names of all corpora that have a card, sorted."""
    return tuple(sorted(path.stem for path in card_folder().glob("*.toml")))


@cache
def read_card(name: str) -> Card:
    """Read one card.

    Raises:
        UnknownNameError: no such card; the message lists the nearest names.
        CardError: the file breaks the schema.
    """
    path = card_folder() / f"{name}.toml"
    if name not in card_names():
        raise unknown_name(
            "corpus", name, card_names(), hint="For a corpus of your own, give the path of its CSV or Parquet manifest."
        )
    try:
        with path.open("rb") as handle:
            return _card(path, tomllib.load(handle))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise CardError(f"{path} is not valid TOML: {error}.") from error


def _card(path: Path, content: dict[str, Any]) -> Card:
    """Check the keys of a parsed card and build it."""
    unknown = sorted(set(content) - _TOP_KEYS)
    if unknown:
        raise CardError(f"{path} has unknown keys: {', '.join(unknown)}. Known keys: {', '.join(sorted(_TOP_KEYS))}.")
    for section, known in _SECTION_KEYS.items():
        unknown = sorted(set(content.get(section, {})) - known)
        if unknown:
            raise CardError(
                f"{path} has unknown keys in [{section}]: {', '.join(unknown)}. Known: {', '.join(sorted(known))}."
            )
    if content.get("name") != path.stem:
        raise CardError(f"{path} says name = {content.get('name')!r}; it must be the file's own name, {path.stem!r}.")
    try:
        labels, expected, protocols = content["labels"], content.get("expected", {}), content["protocols"]
        return Card(
            **{key: content[key] for key in ("name", "title", "language", "layout", "licence", "citation", "url")},
            obtain=content["obtain"].strip(),
            version=content["version"],
            warnings=tuple(content.get("warnings", ())),
            classes=tuple(labels["classes"]),
            label_map=dict(labels["map"]),
            expected_utterances=int(expected.get("utterances", 0)),
            expected_speakers=int(expected.get("speakers", 0)),
            expected_emotions=dict(expected.get("emotions", {})),
            expected_splits=dict(expected.get("splits", {})),
            default_protocol=protocols["default"],
            protocols=tuple(protocols["available"]),
            test_speakers={
                protocol: tuple(tuple(fold) for fold in entry["test_speakers"])
                for protocol, entry in protocols.items()
                if isinstance(entry, dict)
            },
            audb=AudbSource(**content["audb"]) if "audb" in content else None,
        )
    except KeyError as error:
        raise CardError(f"{path} lacks the key {error.args[0]!r}.") from error
    except (AttributeError, TypeError, ValueError) as error:
        if isinstance(error, CardError):
            raise
        raise CardError(f"{path} has a value of the wrong type: {error}.") from error


def emotion_words() -> tuple[str, ...]:
    """Every spelling of an emotion that :func:`canonical_emotion` knows."""
    return (*VOCABULARY, *_SYNONYMS)


def canonical_emotion(label: str) -> str:
    """A user's own label in the vocabulary's spelling: lower case, common synonyms joined (``Happy``, ``joy`` → ``happiness``).

    Labels that are not known are kept in lower case; they become classes of their own.
    """
    word = label.strip().lower()
    return _SYNONYMS.get(word, word)
