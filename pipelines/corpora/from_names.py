"""A manifest from the names of files, by a pattern such as ``{speaker}_{emotion}_{take}.wav`` or ``{speaker}/{emotion}/*.wav``.

* ``{field}`` stands for one or more characters of a name, ``{field:2}`` for exactly two, ``*`` for any number, ``**`` for any
  folders; nothing else is special. None but ``**`` goes across a slash. The same field twice must say the same twice.
* A pattern with a slash is compared with the path below the folder, one without with the file's name, wherever the file lies.
  Without a suffix, any recording matches; suffixes are compared without regard to case.
* Fields ``speaker`` (needed), ``emotion``, ``sex``, ``language``, ``session``, ``transcript``, ``official_split``, ``arousal``,
  ``valence``, ``dominance`` are the manifest's columns; others become columns of their own.
* A name that can be read in several ways (``a_b_anger_1``: is the speaker ``a`` or ``a_b``?) is read so that the emotion is a word
  that is known, if only one way does that; else it is ambiguous and left out.
* Emotions are looked up in ``labels``, then in the vocabulary and its synonyms; what is in neither becomes a class of its own, and
  is said together with what may have been meant.
"""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pipelines.corpora.audformat_folder import utterance_ids
from pipelines.corpora.audiofolder import AUDIO_SUFFIXES, audio_files
from pipelines.corpora.cards import VOCABULARY, canonical_emotion, emotion_words
from pipelines.corpora.layouts._files import sex_of
from pipelines.errors import ConfigError, DataRootError

__all__ = ["Named", "Pattern", "parse_labels", "parse_pattern", "read_names"]

_FIELD = re.compile(r"\{([^{}]*)\}|(\*\*/?)|(\*)")
_NAME = re.compile(r"[a-z][a-z0-9_]*")
_OURS = {"utterance_id", "path", "duration_s", "emotion_raw", "emotion_votes"}
_MOST_READINGS = 64
_MOST_TRIED = 100_000


@dataclass(frozen=True)
class _Part:
    """One piece of a pattern: text as it is, a field (perhaps of a fixed width), or a star."""

    kind: str  # text, field, star, folders
    text: str = ""
    width: int = 0


@dataclass(frozen=True)
class Pattern:
    """A parsed pattern.

    Attributes:
        text: as given.
        parts: its pieces.
        fields: names of its fields, in order.
    """

    text: str
    parts: tuple[_Part, ...]
    fields: tuple[str, ...]

    @property
    def whole_path(self) -> bool:
        """Whether it is compared with the path rather than with the name."""
        return "/" in self.text


@dataclass(frozen=True)
class Named:
    """What the names of the recordings in a folder say.

    Attributes:
        rows: manifest columns to values, of the recordings that match.
        files: number of recordings looked at.
        unmatched: recordings that do not match.
        ambiguous: recordings that can be read in several ways, with two of them.
        unusable: recordings whose name a manifest cannot hold, with the reason.
        unknown: emotions that are neither in the labels nor in the vocabulary, with what may have been meant.
        unused: labels that no name has.
    """

    rows: tuple[Mapping[str, object], ...]
    files: int
    unmatched: tuple[str, ...]
    ambiguous: tuple[tuple[str, str], ...]
    unusable: tuple[tuple[str, str], ...]
    unknown: Mapping[str, tuple[str, ...]]
    unused: tuple[str, ...]


def parse_pattern(text: str) -> Pattern:
    """Read a pattern.

    Raises:
        ConfigError: it has no ``{speaker}``, a field without a name or with a reserved one, or two fields that touch.
    """
    example = "such as '{speaker}_{emotion}_{take}.wav'"
    parts: list[_Part] = []
    fields: list[str] = []
    position = 0
    text = text.strip()
    while text.startswith("./"):
        text = text[2:]
    if text.startswith("/") or "\\" in text or ".." in PurePosixPath(text).parts:
        raise ConfigError(f"--pattern {text!r} must be relative to the folder, with forward slashes, {example}.")
    for match in _FIELD.finditer(text):
        if match.start() > position:
            parts.append(_Part("text", text[position : match.start()]))
        position = match.end()
        field, folders, _ = match.groups()
        if folders:
            parts.append(_Part("folders", folders))
        elif field is None:
            parts.append(_Part("star"))
        else:
            name, _, width = field.partition(":")
            if not _NAME.fullmatch(name):
                raise ConfigError(
                    f"--pattern {text!r}: {{{field}}} is no field; one is a word in lower case, {example}."
                )
            if name in _OURS:
                raise ConfigError(
                    f"--pattern {text!r}: {name!r} is made by hyfuse itself; call the field something else, or `*`."
                )
            if width and not (width.isdecimal() and int(width) > 0):
                raise ConfigError(
                    f"--pattern {text!r}: {{{field}}} has the width {width!r}; it is a number of characters, such as {{{name}:2}}."
                )
            parts.append(_Part("field", name, int(width) if width else 0))
            fields.append(name)
    if position < len(text):
        parts.append(_Part("text", text[position:]))
    if re.search(r"[{}]", "".join(part.text for part in parts if part.kind == "text")):
        raise ConfigError(
            f"--pattern {text!r} has a brace without its partner; a pattern looks like '{{speaker}}_{{emotion}}.wav'."
        )
    if "speaker" not in fields:
        have = f"its fields are {', '.join(fields)}" if fields else "it has no field (in a shell, quote it with '…')"
        raise ConfigError(
            f"--pattern {text!r} does not say where the speaker is: {have}. Without speakers no fold is speaker-independent. Write"
            f" {{speaker}} where the name has it, {example}."
        )
    for left, right in itertools.pairwise(parts):
        if (
            left.kind != "text"
            and right.kind != "text"
            and not (left.width or right.width)
            and "folders" not in {left.kind, right.kind}
        ):
            names = [f"{{{part.text}}}" if part.kind == "field" else "*" for part in (left, right)]
            raise ConfigError(
                f"--pattern {text!r}: {' and '.join(names)} touch, so nothing tells where one ends. Put what is between them, or"
                f" give one a number of characters, such as {{{left.text or right.text}:2}}."
            )
    return Pattern(text, tuple(parts), tuple(dict.fromkeys(fields)))


def parse_labels(text: str) -> dict[str, str]:
    """Read ``W=anger,L=boredom``: what names write, and the emotion that it stands for (nothing: no emotion).

    Raises:
        ConfigError: an entry is no pair, comes twice, or is close to a word of the vocabulary but not one.
    """
    labels: dict[str, str] = {}
    for entry in filter(None, (entry.strip() for entry in text.split(","))):
        raw, equals, word = (part.strip() for part in entry.partition("="))
        if not equals or not raw:
            raise ConfigError(
                f"--labels: {entry!r} is no pair; write what the names say and the emotion, W=anger,L=boredom."
            )
        emotion = canonical_emotion(word)
        if raw in labels and labels[raw] != emotion:
            raise ConfigError(f"--labels says both {raw}={labels[raw]} and {raw}={emotion}. Leave one out.")
        near = difflib.get_close_matches(emotion, VOCABULARY, n=1, cutoff=0.8)
        if emotion and emotion not in VOCABULARY and near:
            raise ConfigError(f"--labels: {word!r} in {entry!r} is no known emotion. Did you mean {near[0]!r}?")
        labels[raw] = emotion
    return labels


def read_names(folder: Path, pattern: Pattern, labels: Mapping[str, str] | None = None) -> Named:
    """Read the names of all recordings below a folder.

    Args:
        folder: of the recordings.
        pattern: of :func:`parse_pattern`.
        labels: of :func:`parse_labels`.

    Raises:
        DataRootError: the folder is missing or holds no recordings.
    """
    if not folder.is_dir():
        raise DataRootError(f"There is no folder {folder}. Give the folder that holds the recordings.")
    files = list(audio_files(folder))
    if not files:
        known = ", ".join(sorted(AUDIO_SUFFIXES))
        raise DataRootError(f"{folder} holds no recordings, at any depth; files that count end in {known}.")
    given = dict(labels or {})
    matched: list[tuple[str, dict[str, str]]] = []
    unmatched: list[str] = []
    ambiguous: list[tuple[str, str]] = []
    unusable: list[tuple[str, str]] = []
    for file in files:
        if reason := _unusable(file):
            unusable.append((file, reason))
            continue
        readings = _readings(pattern, file)
        if len(readings) > 1:
            fitting = [
                reading for reading in readings if "emotion" in reading and _emotion(reading["emotion"], given)[1]
            ]
            readings = fitting if len(fitting) == 1 else readings
        if not readings:
            unmatched.append(file)
        elif len(readings) > 1:
            ambiguous.append((file, " or ".join(_spelled(reading) for reading in (readings[0], readings[-1]))))
        else:
            matched.append((file, readings[0]))
    unknown: dict[str, tuple[str, ...]] = {}
    used: set[str] = set()
    rows = []
    for (file, fields), identity in zip(matched, utterance_ids([file for file, _ in matched]), strict=True):
        row: dict[str, object] = {"utterance_id": identity, "path": file, **fields}
        if "sex" in fields:
            row["sex"] = sex_of(fields["sex"])
        if "emotion" in fields:
            raw = fields["emotion"]
            emotion, known_word = _emotion(raw, given)
            used |= {label for label in given if label == raw or label.lower() == raw.lower()}
            if not known_word and raw not in unknown:
                near = difflib.get_close_matches(raw.lower(), emotion_words(), n=2, cutoff=0.6)
                unknown[raw] = tuple(dict.fromkeys(canonical_emotion(word) for word in near))
            row |= {"emotion": emotion, "emotion_raw": raw}
        rows.append(row)
    unused = tuple(label for label in given if label not in used) if "emotion" in pattern.fields else tuple(given)
    return Named(tuple(rows), len(files), tuple(unmatched), tuple(ambiguous), tuple(unusable), unknown, unused)


def _emotion(raw: str, labels: Mapping[str, str]) -> tuple[str, bool]:
    """The emotion that a name's word stands for, and whether it is known."""
    if raw in labels:
        return labels[raw], True
    lower = {label.lower(): emotion for label, emotion in labels.items()}
    if raw.lower() in lower:
        return lower[raw.lower()], True
    emotion = canonical_emotion(raw)
    return emotion, emotion in VOCABULARY


def _unusable(file: str) -> str:
    """Why a manifest cannot hold a path, which is one line of text, without spaces around it."""
    if not file.isprintable():
        try:
            file.encode()
        except UnicodeEncodeError:
            return "not valid UTF-8"
        if any(ord(letter) < 32 or ord(letter) == 127 for letter in file):
            return "a line break or another control character in it"
    if file != file.strip():
        return "a space at its beginning"
    return ""


def _spelled(reading: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {value!r}" for name, value in reading.items())


def _readings(pattern: Pattern, file: str) -> list[dict[str, str]]:
    """Every way in which a file can be read that differs in its fields, at most a few dozen."""
    text = file if pattern.whole_path else PurePosixPath(file).name
    stem, dot, suffix = text.rpartition(".")
    given = PurePosixPath(pattern.text).suffix.lower()
    parts: Sequence[_Part] = pattern.parts
    if given in AUDIO_SUFFIXES and parts[-1].kind == "text":
        if f".{suffix}".lower() != given:
            return []
        cut = parts[-1].text[: -len(given)]
        parts = [*parts[:-1], *([_Part("text", cut)] if cut else [])]
        text = stem
    elif parts[-1].kind == "text" and "." in parts[-1].text:
        pass  # a suffix of which nothing is known: compared as it stands
    else:
        text = stem if dot else text
    found: dict[tuple[tuple[str, str], ...], dict[str, str]] = {}
    for reading in _ways(parts, 0, text, 0, {}, set()):
        found.setdefault(tuple(sorted(reading.items())), reading)
        if len(found) >= _MOST_READINGS:
            break
    return list(found.values())


def _ways(
    parts: Sequence[_Part], index: int, text: str, start: int, said: dict[str, str], seen: set[object]
) -> Iterator[dict[str, str]]:
    """Match the rest of a pattern with the rest of a text, shortest first; ``seen`` holds what was tried before."""
    state = (index, start, tuple(said.values()))
    if state in seen:
        return
    seen.add(state)
    if len(seen) > _MOST_TRIED:
        raise ConfigError(
            f"The pattern fits {text[:60]!r} in too many ways to try them all. Give fields a number of characters, such as"
            " {speaker:2}, or write more of the text between them."
        )
    if index == len(parts):
        if start == len(text):
            yield said
        return
    part = parts[index]
    if part.kind == "text":
        if text.startswith(part.text, start):
            yield from _ways(parts, index + 1, text, start + len(part.text), said, seen)
        return
    if part.kind == "folders":
        ends = [start, *(place + 1 for place in range(start, len(text)) if text[place] == "/")]
        if not part.text.endswith("/"):
            ends = list(range(start, len(text) + 1))
        for end in ends:
            yield from _ways(parts, index + 1, text, end, said, seen)
        return
    slash = text.find("/", start)
    limit = len(text) if slash < 0 else slash
    if part.kind == "field" and part.text in said:
        if text.startswith(said[part.text], start):
            yield from _ways(parts, index + 1, text, start + len(said[part.text]), said, seen)
        return
    lengths = [part.width] if part.width else range(1 if part.kind == "field" else 0, limit - start + 1)
    for length in lengths:
        if start + length > limit:
            return
        value = text[start : start + length]
        if part.kind == "field" and value != value.strip():
            continue
        told = {**said, part.text: value} if part.kind == "field" else said
        yield from _ways(parts, index + 1, text, start + length, told, seen)
