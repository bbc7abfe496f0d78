"""What a split lets through from training to test, and what gives a label away without listening to emotion.

* :func:`check_split` looks at ids, speakers, paths, sentences and labels only; it is made for every run.
* :func:`audit_split` reads a user's own folds (:func:`read_split`), makes the same check and also decodes the recordings: two
  recordings with the same samples are one recording, whatever they are called and however they are stored.

A user's folds are a CSV or Parquet with ``utterance_id`` and

* ``fold`` and ``part`` (a row for every utterance in every fold; ``part`` is train, validation or test), or
* ``split`` or ``part`` alone (one fold), or
* ``fold`` alone: the fold that tests the utterance; all others train on it.

Levels of findings: ``error`` (the split tests something else than it says: speakers, recordings or utterances in two parts, ids
that are not in the corpus, a class that was never trained), ``warning`` (a short cut: the label can be guessed from who speaks or
what is said), ``note`` (good to know: the same sentences in training and test, as in every acted corpus).

*Guessing*: each test utterance gets the most frequent label of the training utterances that share its sentence (speaker, …); the
score is the mean recall over classes of those guesses, utterances without a match counting as chance. Where a value is never on
both sides, as speakers in a speaker-independent split, the corpus itself is judged: each utterance gets the most frequent label
among the *other* utterances with its value. A score is worth a warning from :data:`GIVEN_AWAY` of the way from chance to 1 on.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipelines.corpora.layouts import Finding
from pipelines.corpora.manifest import Manifest
from pipelines.corpora.protocols import Fold, Split
from pipelines.errors import ManifestError

__all__ = ["GIVEN_AWAY", "GivenSplit", "audit_split", "check_split", "read_split"]

Progress = Callable[[int, int], None]

GIVEN_AWAY = 0.25
"""Share of the way from chance to perfect from which on guessing a label is a warning."""

_FREQUENT = 3  # utterances from which on having one emotion only says something about a speaker
_EXAMPLES = 5
_NOBODY = {"", "unknown"}  # speakers that are nobody in particular
_SENTENCE_COLUMNS = ("transcript", "sentence", "sentence_id", "text", "statement")
_PAIRS = (("train", "test"), ("validation", "test"), ("train", "validation"))
_PARTS = {
    "train": "train", "training": "train",
    "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation",
    "devel": "validation", "development": "validation",
    "test": "test", "testing": "test", "eval": "test", "evaluation": "test",
}  # fmt: skip

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class GivenSplit:
    """A user's folds, matched with a manifest.

    Attributes:
        split: folds; positions point into the manifest. ``speaker_independent`` says what was found.
        findings: ids that are not in the corpus, utterances in two parts or in none.
    """

    split: Split
    findings: tuple[Finding, ...]


# ---------------------------------------------------------------------------------------------------------------------
# Reading a user's folds


def read_split(path: Path, manifest: Manifest) -> GivenSplit:
    """Read a table of folds; see the module docstring for its columns.

    Args:
        path: CSV or Parquet.
        manifest: the corpus that its ids belong to.

    Raises:
        ManifestError: no such file, not a table, columns missing, an unknown name of a part, or no id of the corpus in it.
    """
    table = _read_table(path)
    findings: list[Finding] = []
    position = {name: row for row, name in enumerate(manifest.utterance_ids)}
    rows = np.array([position.get(name, -1) for name in table["utterance_id"]], dtype=np.int64)
    unknown = sorted(set(table["utterance_id"][rows < 0]))
    if (rows < 0).all():
        raise ManifestError(
            f"{path}: none of its {len(set(table['utterance_id']))} ids is an utterance of {manifest.corpus!r}, for instance"
            f" {unknown[0]!r}; the corpus has ids such as {manifest.utterance_ids[0]!r}.{_spelled(unknown, position)} Check the"
            " column utterance_id, and that the folds are those of this corpus."
        )
    if unknown:
        findings.append(
            Finding(
                "error",
                f"{len(unknown)} id(s) of {path.name} are not in {manifest.corpus}; they are left out.{_spelled(unknown, position)}"
                " Likely cause: another release of the corpus, or folds of another corpus.",
                tuple(unknown[:_EXAMPLES]),
            )
        )
    table, rows = table[rows >= 0], rows[rows >= 0]
    names = table["fold"].to_numpy(str)
    parts = table["part"].to_numpy(str)
    folds = [_fold(name, rows[names == name], parts[names == name], manifest, findings) for name in _in_order(names)]
    absent = sorted(set(manifest.utterance_ids) - set(table["utterance_id"]))
    if absent:
        findings.append(
            Finding(
                "note",
                f"{len(absent)} of {len(manifest)} utterances of {manifest.corpus} are in no part.",
                tuple(absent[:_EXAMPLES]),
            )
        )
    who = manifest.table["speaker"].to_numpy(str)
    independent = not any(_shared(who, fold, pair) for fold in folds for pair in _PAIRS)
    return GivenSplit(Split(path.name, independent, tuple(folds), ""), tuple(findings))


def _read_table(path: Path) -> pd.DataFrame:
    """Columns ``utterance_id``, ``fold``, ``part`` as text, whatever form the file has."""
    if not path.is_file():
        raise ManifestError(
            f"There is no table of folds at {path}. Check the path of --split; it is a .csv or .parquet file."
        )
    try:
        if path.suffix.lower() in {".parquet", ".pq"}:
            table = pd.read_parquet(path)
        else:
            table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig", skipinitialspace=True)
    except (ValueError, OSError) as error:
        raise ManifestError(f"{path} cannot be read as a table: {str(error).strip().rstrip('.')}.") from error
    table = table.rename(columns={name: str(name).strip().lower() for name in table.columns}).astype(str)
    if "part" not in table.columns and "split" in table.columns:
        table = table.rename(columns={"split": "part"})
    if "utterance_id" not in table.columns or not {"fold", "part"} & set(table.columns):
        found = ", ".join(map(str, table.columns)) or "none"
        raise ManifestError(
            f"{path} needs the column utterance_id, and fold and part, or split alone, or fold alone (the fold that tests the"
            f" utterance); found: {found}."
        )
    if table.empty:
        raise ManifestError(f"{path} lists no utterance.")
    for name in {"utterance_id", "fold", "part"} & set(table.columns):
        table[name] = table[name].str.strip()
    if "part" not in table.columns:
        return _cross_validation(table)
    if "fold" not in table.columns:
        table["fold"] = "1"
    known = table["part"].str.lower().map(_PARTS)
    if known.isna().any():
        wrong = sorted(set(table["part"][known.isna()]))
        raise ManifestError(
            f"{path}: {', '.join(map(repr, wrong[:3]))} is no part of a split. Parts are train, validation (also dev) and test."
        )
    table["part"] = known
    return table[["utterance_id", "fold", "part"]]


def _cross_validation(table: pd.DataFrame) -> pd.DataFrame:
    """Every fold tests its own utterances and trains on the others."""
    folds = []
    for name in _in_order(table["fold"].to_numpy(str)):
        part = np.where(table["fold"] == name, "test", "train")
        folds.append(pd.DataFrame({"utterance_id": table["utterance_id"], "fold": name, "part": part}))
    return pd.concat(folds, ignore_index=True)


def _in_order(names: NDArray[np.str_]) -> list[str]:
    return [str(name) for name in dict.fromkeys(names)]


def _spelled(unknown: Sequence[str], known: Mapping[str, object]) -> str:
    """A hint where ids differ from those of the corpus by a folder or a suffix only."""
    plain = [re.sub(r"\.\w{1,4}$", "", re.split(r"[/\\]", name)[-1]) for name in unknown]
    if any(name in known for name in plain):
        return " Ids are names without folder and suffix."
    return ""


def _fold(name: str, rows: Rows, parts: NDArray[np.str_], manifest: Manifest, findings: list[Finding]) -> Fold:
    """One fold; utterances in two of its parts are reported, and stay in both."""
    members = {part: np.unique(rows[parts == part]) for part in ("train", "validation", "test")}
    ids = manifest.table["utterance_id"]
    for one, other in _PAIRS:
        both = np.intersect1d(members[one], members[other])
        if len(both):
            findings.append(
                Finding(
                    "error",
                    f"{_named(name)}{len(both)} utterance(s) are in both its {one} and its {other} part.",
                    tuple(ids.iloc[both[:_EXAMPLES]]),
                )
            )
    for part in ("train", "test"):
        if not len(members[part]):
            findings.append(Finding("error", f"{_named(name)}the {part} part is empty."))
    listed = sum(len(np.unique(rows[parts == part])) for part in members)
    if listed < len(rows):
        findings.append(
            Finding("note", f"{_named(name)}{len(rows) - listed} row(s) say what another row said already.")
        )
    return Fold(name, members["train"], members["validation"], members["test"])


def _named(fold: str) -> str:
    return f"Fold {fold!r}: "


# ---------------------------------------------------------------------------------------------------------------------
# Checking


def check_split(manifest: Manifest, split: Split, utterance_ids: Sequence[str] | None = None) -> list[Finding]:
    """Look for leaks and short cuts; nothing is decoded.

    Shared speakers are not reported of a split that says it is speaker-dependent.

    Args:
        manifest: the corpus.
        split: its folds.
        utterance_ids: utterances that the folds' positions point into; those of the manifest unless given.

    Returns:
        Errors first, then warnings, then notes.
    """
    return _check(manifest, split, utterance_ids, speakers=split.speaker_independent)


def _check(manifest: Manifest, split: Split, utterance_ids: Sequence[str] | None, *, speakers: bool) -> list[Finding]:
    table = manifest.table
    if utterance_ids is not None and list(utterance_ids) != manifest.utterance_ids:
        table = table.set_index("utterance_id", drop=False).loc[list(utterance_ids)]
    ids, who, what = (table[name].to_numpy(str) for name in ("utterance_id", "speaker", "emotion"))
    findings: list[Finding] = []
    if speakers:
        findings += _shared_speakers(who, split)
    findings += _shared_values(
        _short(_plain_path(path) for path in table["path"]), ids, split, "the same file under two ids"
    )
    findings += _lost_classes(what, split)
    labelled = np.unique(what[what != ""])
    if len(labelled) >= 2:
        findings += _shared_sentences(table, what, split)
        findings += _short_cuts(table, what, split)
        findings += _one_emotion(who, what)
    return sorted(findings, key=lambda finding: ("error", "warning", "note").index(finding.level))


def _plain_path(path: str) -> str:
    return re.sub(r"/(\./)+", "/", str(path).replace("\\", "/").removeprefix("./"))


def _shared(values: NDArray[np.str_], fold: Fold, pair: tuple[str, str]) -> list[str]:
    """Values, such as speakers, that occur in two parts of a fold."""
    one, other = (set(values[getattr(fold, part)]) for part in pair)
    return sorted(name for name in one & other if name.lower() not in _NOBODY)


def _shared_speakers(who: NDArray[np.str_], split: Split) -> Iterable[Finding]:
    for one, other in _PAIRS:
        found = [(fold, names) for fold in split.folds if (names := _shared(who, fold, (one, other)))]
        if not found:
            continue
        worst, names = max(found, key=lambda item: len(item[1]))
        present = len(set(who[getattr(worst, other)]))
        of = (
            f"{len(names)} of the {present} speakers in its {other} part"
            if len(split.folds) == 1
            else f"in {len(found)} of {len(split.folds)} folds; in fold {worst.name!r} {len(names)} of the {present} speakers of"
            f" the {other} part"
        )
        yield Finding(
            "error" if other == "test" else "warning",
            f"{split.protocol}: speakers of the {other} part are in the {one} part as well ({of}). Scores say how well known voices"
            " are recognised, and are several points too high for new ones. Use folds by speaker: `--protocol speaker-5fold`.",
            tuple(names[:_EXAMPLES]),
        )


def _shared_values(values: NDArray[np.str_], ids: NDArray[np.str_], split: Split, what: str) -> Iterable[Finding]:
    """Different utterances with the same value (file, sound) on both sides."""
    _, code, count = np.unique(values, return_inverse=True, return_counts=True)
    several = count[code] > 1
    for one, other in _PAIRS:
        groups: dict[int, list[str]] = {}
        for fold in split.folds:
            first, second = (getattr(fold, part)[several[getattr(fold, part)]] for part in (one, other))
            for group in np.intersect1d(code[first], code[second]):
                members = [*first[code[first] == group], *second[code[second] == group]]
                if len(set(members)) > 1:  # one utterance in two parts is reported as such
                    groups.setdefault(int(group), sorted({str(ids[row]) for row in members}))
        if groups:
            yield Finding(
                "error" if other == "test" else "warning",
                f"{split.protocol}: {len(groups)} recording(s) of the {other} part are in the {one} part as well ({what}). Keep one"
                " of each, or put all copies into one part.",
                tuple(" = ".join(names) for names in list(groups.values())[:_EXAMPLES]),
            )


def _lost_classes(what: NDArray[np.str_], split: Split) -> Iterable[Finding]:
    for fold in split.folds:
        lost = sorted(set(what[fold.test]) - set(what[fold.train]) - {""})
        if lost and len(fold.train):
            yield Finding("error", f"{_named(fold.name)}{', '.join(lost)} is tested but not trained.")


def _shared_sentences(table: pd.DataFrame, what: NDArray[np.str_], split: Split) -> Iterable[Finding]:
    """The same sentence in training and test, and whether it gives the label away."""
    column = next((name for name in _SENTENCE_COLUMNS if name in table.columns and (table[name] != "").any()), None)
    if column is None:
        return
    said = _short(_normal(text) for text in table[column])
    tested = shared = 0
    for fold in split.folds:
        known = set(said[fold.train]) - {""}
        tested += len(fold.test)
        shared += sum(sentence in known for sentence in said[fold.test])
    if not shared:
        return
    guessed = _guessed_across(said, what, split)
    share = f"{100 * shared / tested:.0f} % of the test utterances say a sentence that is said in training"
    different = len(set(said) - {""})
    if guessed is not None and guessed.given_away >= GIVEN_AWAY:
        yield Finding(
            "warning",
            f"{split.protocol}: {share} ({different} different ones, column {column}), and the sentence gives the label away:"
            f" guessing by it alone reaches {guessed.text}. What is said is tested, not how. Use folds by sentence, or leave out"
            " sentences that go with one emotion.",
        )
    else:
        scored = f"; guessing the label by it reaches {guessed.text}" if guessed is not None else ""
        yield Finding("note", f"{split.protocol}: {share} ({different} different ones, column {column}){scored}.")


def _short(values: Iterable[str]) -> NDArray[np.str_]:
    """Numbers in place of long texts, equal for equal texts: numpy gives every text the room of the longest. Empty stays empty."""
    known = {"": ""}
    return np.array([known.setdefault(value, str(len(known))) for value in values], dtype=str)


def _normal(text: str) -> str:
    """A sentence without case, punctuation and spacing."""
    letters = unicodedata.normalize("NFKC", str(text)).casefold()
    return " ".join(re.sub(r"[^\w\s]", " ", letters).split())


def _short_cuts(table: pd.DataFrame, what: NDArray[np.str_], split: Split) -> Iterable[Finding]:
    """Labels that can be guessed from who speaks, or in which session or language."""
    for column, known_as in (
        ("speaker", "who speaks"),
        ("session", "the session"),
        ("language", "the language"),
        ("sex", "the speaker's sex"),
    ):
        values = table[column].to_numpy(str)
        if len(set(values) - {""}) < 2:
            continue
        crossing = any(_shared(values, fold, ("train", "test")) for fold in split.folds)
        guessed = _guessed_across(values, what, split) if crossing else _guessed_within(values, what)
        if guessed is None or guessed.given_away < GIVEN_AWAY:
            continue
        where = "in training" if crossing else "in the corpus"
        end = (
            "Scores show that as much as emotion."
            if crossing
            else "Folds by speaker cannot be balanced: what a head learns about voices is what it knows about emotions."
        )
        yield Finding(
            "warning",
            f"{known_as.capitalize()} gives the label away: guessing by the most frequent label of the same {column} {where}"
            f" reaches {guessed.text}. {end}",
        )


def _one_emotion(who: NDArray[np.str_], what: NDArray[np.str_]) -> Iterable[Finding]:
    """Speakers who have one emotion only: a warning where they are most, a note where they are some."""
    known = (what != "") & ~np.isin(np.char.lower(who), sorted(_NOBODY))
    if not known.any():
        return
    pairs = pd.DataFrame({"speaker": who[known], "emotion": what[known]})
    by_speaker = pairs.groupby("speaker")["emotion"].agg(["count", "nunique"])
    frequent = by_speaker[by_speaker["count"] >= _FREQUENT]
    single = sorted(str(name) for name in frequent.index[frequent["nunique"] == 1])
    if len(frequent) < 2 or not single:
        return
    most = len(single) * 2 > len(frequent)
    end = ": who speaks gives the label away, and folds by speaker test something else than emotion." if most else "."
    yield Finding(
        "warning" if most else "note",
        f"{len(single)} of {len(frequent)} speakers with at least {_FREQUENT} utterances have one emotion only{end}",
        tuple(single[:_EXAMPLES]),
    )


@dataclass(frozen=True)
class _Guess:
    score: float
    chance: float

    @property
    def given_away(self) -> float:
        return (self.score - self.chance) / (1 - self.chance)

    @property
    def text(self) -> str:
        return f"{100 * self.score:.0f} % (mean recall; chance {100 * self.chance:.0f} %)"


def _guessed_across(values: NDArray[np.str_], what: NDArray[np.str_], split: Split) -> _Guess | None:
    """Guess test labels by the training utterances that share a value, pooled over folds; None where none does."""
    value, label, values_in_all, classes = _codes(values, what)
    right, tested = np.zeros(classes), np.zeros(classes)
    matched = False
    for fold in split.folds:
        train = fold.train[label[fold.train] >= 0]
        test = fold.test[label[fold.test] >= 0]
        counts = np.zeros((values_in_all, classes))
        np.add.at(counts, (value[train], label[train]), 1)
        counts[value[np.flatnonzero(values == "")][:1]] = 0  # nothing known is nothing shared
        hits = _hits(counts[value[test]], label[test])
        matched |= bool(counts[value[test]].any())
        np.add.at(right, label[test], hits)
        np.add.at(tested, label[test], 1)
    return _scored(right, tested) if matched else None


def _guessed_within(values: NDArray[np.str_], what: NDArray[np.str_]) -> _Guess | None:
    """Guess every label by the other utterances that share its value."""
    value, label, values_in_all, classes = _codes(values, what)
    known = np.flatnonzero((label >= 0) & (values != ""))
    counts = np.zeros((values_in_all, classes))
    np.add.at(counts, (value[known], label[known]), 1)
    others = counts[value[known]].copy()
    others[np.arange(len(known)), label[known]] -= 1
    right, tested = np.zeros(classes), np.zeros(classes)
    np.add.at(right, label[known], _hits(others, label[known]))
    np.add.at(tested, label[known], 1)
    return _scored(right, tested) if others.any() else None


def _codes(values: NDArray[np.str_], what: NDArray[np.str_]) -> tuple[Rows, Rows, int, int]:
    """Values and labels as numbers (−1 for no label), and how many there are of either."""
    names, value = np.unique(values, return_inverse=True)
    classes = np.unique(what[what != ""])
    label = np.where(what == "", -1, np.searchsorted(classes, what))
    return value.astype(np.int64), label.astype(np.int64), len(names), len(classes)


def _hits(counts: NDArray[np.float64], label: Rows) -> NDArray[np.float64]:
    """Chance that the most frequent class is the true one, ties broken by lot, [n]; 1 / C where nothing is known."""
    top = counts == counts.max(axis=1, keepdims=True, initial=0)
    hits: NDArray[np.float64] = top[np.arange(len(label)), label] / top.sum(axis=1)
    return hits


def _scored(right: NDArray[np.float64], tested: NDArray[np.float64]) -> _Guess | None:
    present = tested > 0
    if present.sum() < 2:
        return None
    return _Guess(float((right[present] / tested[present]).mean()), 1 / int(present.sum()))


# ---------------------------------------------------------------------------------------------------------------------
# Listening


def audit_split(
    manifest: Manifest, given: GivenSplit, *, near: bool = False, progress: Progress | None = None
) -> list[Finding]:
    """Check a user's folds, and decode every recording in them.

    Args:
        manifest: the corpus, with its root.
        given: folds, of :func:`read_split`.
        near: whether recordings that are almost the same (another gain, coding or resampling of one recording) are looked for as
            well: same length within 10 ms and envelopes of loudness that correlate at 0.95 or more. On Emo-DB, different
            recordings of one length reach 0.84; copies at half the level, delayed, resampled, as MP3 or Ogg, with noise at 30 dB,
            at least 0.95 (telephone rate: 0.93 to 0.99).
        progress: called as ``progress(done, total)`` after every recording.

    Returns:
        Those of reading the folds among them; errors first, then warnings, then notes.

    Raises:
        ManifestError: the manifest has no folder of recordings.
    """
    from pipelines.corpora.recordings import listen

    used = np.unique(
        np.concatenate([getattr(fold, part) for fold in given.split.folds for part in ("train", "validation", "test")])
    )
    files = manifest.audio_paths()
    content = np.array([f"row {row}" for row in range(len(manifest))], dtype=object)
    unheard = []
    envelopes: dict[int, NDArray[np.float32]] = {}
    for done, row in enumerate(used, start=1):
        sound = listen(files[row])
        if sound is None or not sound.content or sound.fault in {"broken", "silent"}:
            unheard.append(row)
        else:
            content[row] = sound.content
            if near:
                envelopes[int(row)] = _envelope(files[row])
        if progress is not None:
            progress(done, len(used))
    ids = manifest.table["utterance_id"].to_numpy(str)
    findings = [*given.findings, *_check(manifest, given.split, None, speakers=True)]
    # The same file under two ids sounds the same as well; it is said once, by what was heard.
    findings = [finding for finding in findings if "the same file under two ids" not in finding.message]
    findings += _shared_values(content.astype(str), ids, given.split, "the same samples at the same rate")
    if near:
        findings += _near(envelopes, content, ids, given.split)
    if unheard:
        findings.append(
            Finding(
                "warning",
                f"{len(unheard)} of {len(used)} recordings cannot be decoded or are silent, so whether they are duplicates is not"
                " known. See `hyfuse corpora check` without --split.",
                tuple(ids[unheard[:_EXAMPLES]]),
            )
        )
    return sorted(findings, key=lambda finding: ("error", "warning", "note").index(finding.level))


_FRAME_S = 0.01
_NEAR = 0.95


def _envelope(path: Path) -> NDArray[np.float32]:
    """Loudness of the first channel in frames of 10 ms, [T]: log10 of the root mean square over the loudest frame's."""
    import soundfile

    loudness = []
    with soundfile.SoundFile(path) as sound:
        size = max(1, round(sound.samplerate * _FRAME_S))
        for piece in sound.blocks(blocksize=size * 1000, dtype="float32", always_2d=True):
            whole = piece[: len(piece) // size * size, 0].reshape(-1, size)
            loudness.append(np.sqrt((whole**2).mean(axis=1)))
    level = np.concatenate(loudness) if loudness else np.zeros(0, np.float32)
    top = max(float(level.max(initial=0)), 1e-9)
    # 60 dB below the loudest frame is noise of the coding, not the recording.
    return np.log10(np.maximum(level / top, 1e-3)).astype(np.float32)


def _near(
    envelopes: Mapping[int, NDArray[np.float32]], content: NDArray[np.object_], ids: NDArray[np.str_], split: Split
) -> Iterable[Finding]:
    """Recordings on both sides of a fold whose envelopes are almost the same and whose samples are not."""
    by_length: dict[int, list[int]] = {}
    for row, envelope in envelopes.items():
        if len(envelope) >= 20 and envelope.std() > 0:
            by_length.setdefault(len(envelope), []).append(row)
    pairs = []
    for length, rows in by_length.items():
        own = np.stack([_unit(envelopes[row], length) for row in rows])
        for longer in (length, length + 1):
            others = by_length.get(longer, [])
            if not others:
                continue
            alike = own @ np.stack([_unit(envelopes[row], length) for row in others]).T
            for first, second in zip(*np.nonzero(alike >= _NEAR), strict=True):
                one, two = rows[first], others[second]
                if one != two and (longer > length or one < two) and content[one] != content[two]:
                    pairs.append((one, two))
    for part, other in _PAIRS:
        found = set()
        for fold in split.folds:
            first, second = set(getattr(fold, part).tolist()), set(getattr(fold, other).tolist())
            found |= {
                (one, two) for one, two in pairs if (one in first and two in second) or (two in first and one in second)
            }
        if found:
            yield Finding(
                "warning",
                f"{split.protocol}: {len(found)} recording(s) of the {other} part sound almost like one of the {part} part (another"
                " gain, coding or resampling of the same recording?). Listen to them.",
                tuple(f"{ids[one]} ~ {ids[two]}" for one, two in sorted(found)[:_EXAMPLES]),
            )


def _unit(envelope: NDArray[np.float32], length: int) -> NDArray[np.float64]:
    """The first frames of an envelope, centred, of length 1: products of two are their correlation."""
    values = envelope[:length].astype(np.float64)
    values = values - values.mean()
    unit: NDArray[np.float64] = values / max(float(np.linalg.norm(values)), 1e-12)
    return unit
