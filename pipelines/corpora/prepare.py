"""From an official folder (or the user's own table) to a manifest, with everything that is odd about it said.

* :func:`prepare` reads a corpus by its card and layout, :func:`prepare_table` reads a CSV or Parquet of the user's own. Both look
  at every recording once, at its header only, and return the manifest together with findings.
* :func:`audit` (:func:`check` for an official corpus) also decodes every recording.
* :func:`remember` puts a manifest into the cache folder, :func:`recall` gets it back: what was prepared once needs no
  ``--root`` again, and stores in the cache are always stores of the manifest beside them.

Levels of findings: ``error`` (the corpus cannot be used like this), ``warning`` (numbers may differ from other people's),
``note`` (good to know). Recordings that cannot be read stay in the manifest with an empty duration; extraction records them as
failed with the reason. Only a folder that is not the corpus at all is an exception (:class:`DataRootError`).

Durations are frames by sample rate from the header, in seconds. Labels are mapped by the card; the corpus' own label stays in
``emotion_raw``.
"""

from __future__ import annotations

import dataclasses
import json
import math
import ntpath
import os
import re
import shlex
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
import pandas as pd

from pipelines.corpora.cards import VOCABULARY, Card, card_names, read_card
from pipelines.corpora.layouts import Finding, layout_module
from pipelines.corpora.layouts._files import subfolders
from pipelines.corpora.manifest import COLUMNS, Manifest, manifest_from_rows, read_manifest, write_manifest
from pipelines.corpora.raters import VOTES, agreement, format_votes, parse_votes
from pipelines.corpora.recordings import Header, Sound, file_digest, listen, read_header
from pipelines.errors import CardError, DataRootError, ManifestError, ProvenanceError, unknown_name
from pipelines.files import write_atomically
from pipelines.locations import Location, local_copy

__all__ = [
    "Audit",
    "Prepared",
    "audit",
    "cached_corpora",
    "check",
    "prepare",
    "prepare_manifest",
    "prepare_table",
    "recall",
    "remember",
]

Progress = Callable[[int, int], None]

_CLIPS_FOR_LOOK_ALIKE = 10
_FREQUENT = 3  # utterances from which on having one emotion only says something about a speaker
_UNKNOWN_SPEAKERS = {"", "unknown"}
_MANIFEST, _RECORD, _SCHEMA = "manifest.csv", "corpus.json", 1
_LEVELS = ("error", "warning", "note")


@dataclass(frozen=True)
class Prepared:
    """A manifest and what is odd about it.

    Attributes:
        manifest: all utterances, with durations.
        findings: errors first, then warnings, then notes.
        card: name of the corpus' card; empty for a table of the user's own.
    """

    manifest: Manifest
    findings: tuple[Finding, ...]
    card: str = ""

    @property
    def usable(self) -> bool:
        """Whether no finding is an error."""
        return all(finding.level != "error" for finding in self.findings)


@dataclass(frozen=True)
class Audit:
    """What decoding every recording of a corpus showed.

    Attributes:
        manifest: as prepared.
        findings: those of the preparation and those of the audit, errors first.
        summary: ``utterances``, ``speakers`` (numbers); ``emotions`` (emotion to number, ``""`` for no label);
            ``emotions_by_speaker``; ``duration_s`` (``total``, ``mean``, ``min``, ``max``); ``rates_hz``, ``channels``,
            ``formats`` (value to number of recordings); ``identical_channels`` (number of recordings); ``agreement`` (of the
            raters, a tuple of :class:`pipelines.corpora.raters.Agreement`, empty where the manifest has no answers of theirs).
    """

    manifest: Manifest
    findings: tuple[Finding, ...]
    summary: dict[str, Any]


# ---------------------------------------------------------------------------------------------------------------------
# Official corpora


def prepare(corpus: str, root: Path, *, progress: Progress | None = None) -> Prepared:
    """Read an official corpus folder.

    Args:
        corpus: name of a card.
        root: folder of the corpus, as the card's ``obtain`` describes it.
        progress: called as ``progress(done, total)`` while headers are read.

    Raises:
        UnknownNameError: there is no such card.
        DataRootError: the folder is missing, empty, may not be read, is another corpus, or has nothing usable in it; the message
            names the right folder if it is one level up or down.
        ManifestError: the corpus' own tables cannot be read.
    """
    card = read_card(corpus)
    layout = layout_module(card.layout)
    _check_root(card, root)
    try:
        listing = layout.read(root)
    except PermissionError as error:
        raise DataRootError(
            f"{error.filename or root} may not be read. Change its permissions: `chmod -R u+rX {root}`."
        ) from error
    findings = list(listing.findings)
    rows = _unique(listing.rows, findings)
    if not rows:
        reasons = " ".join(finding.message for finding in findings) or "No recording follows the corpus' naming scheme."
        raise DataRootError(f"{root} has nothing of {card.name} that can be used. {reasons} Expected: {layout.SHAPE}.")
    headers = _read_headers([root / str(row["path"]) for row in rows], progress)
    mapped = _map_labels(card, rows, findings)
    for row, header in zip(mapped, headers, strict=True):
        row["duration_s"] = header.duration_s
    manifest = manifest_from_rows(card.name, mapped, root=root, origin=str(root))
    findings += _expected_findings(card, manifest)
    findings += _header_findings(manifest, headers, all_must_exist=False)
    findings += _speaker_findings(manifest, card.classes)
    return Prepared(manifest, _ordered(findings), card.name)


def _check_root(card: Card, root: Path) -> None:
    """Explain a folder that cannot be this corpus."""
    layout = layout_module(card.layout)
    expected = f"Expected in it: {layout.SHAPE}. How to get it: `hyfuse corpora show {card.name}`."
    try:
        if not root.exists():
            raise DataRootError(
                f"There is no folder {root}. Give the folder of {card.title} with `--root` (or `--data-root`). {expected}"
            )
        if not root.is_dir():
            archive = root.suffix.lower() in {".zip", ".gz", ".tgz", ".tar", ".7z", ".rar"}
            advice = "Unpack it and give the folder" if archive else "Give the folder that holds the corpus"
            raise DataRootError(f"{root} is a file, not a folder. {advice}. {expected}")
        if not any(root.iterdir()):
            raise DataRootError(f"{root} is empty. {expected}")
        if layout.recognise(root):
            return
    except PermissionError as error:
        raise DataRootError(
            f"{error.filename or root} may not be read. Change its permissions: `chmod -R u+rX {root}`."
        ) from error
    raise DataRootError(f"{root} does not look like {card.name}. {_misplaced(card, root)}{expected}")


def _misplaced(card: Card, root: Path) -> str:
    """The likely mistake: another corpus, or a folder too high or too low."""
    other = next((name for name in card_names() if name != card.name and _recognised(name, root)), None)
    if other:
        return f"This looks like {other}; did you mean `--corpus {other}`? "
    for folder in _below(root):
        if _recognised(card.name, folder):
            return f"The corpus is one level down: use `--root {folder}`. "
    for folder in root.absolute().parents[:3]:
        if _recognised(card.name, folder):
            return f"This is a part of the corpus: use `--root {folder}`. "
    return ""


def _below(root: Path, *, levels: int = 2, at_most: int = 100) -> Iterator[Path]:
    """Folders below a folder, nearest first."""
    current = [root]
    for _ in range(levels):
        found = []
        for folder in current:
            try:
                found += subfolders(folder)
            except OSError:
                continue
        current = found[:at_most]
        yield from current


def _recognised(name: str, folder: Path) -> bool:
    """Whether a folder looks like a corpus; a folder that may not be read, or a broken card, does not."""
    try:
        return bool(layout_module(read_card(name).layout).recognise(folder))
    except (OSError, CardError):
        return False


def _unique(rows: Sequence[Mapping[str, object]], findings: list[Finding]) -> list[Mapping[str, object]]:
    """Rows sorted by id, one per id; further ones are reported."""
    chosen: dict[str, Mapping[str, object]] = {}
    further = []
    for row in rows:
        name = str(row["utterance_id"])
        if name in chosen:
            further.append(f"{chosen[name]['path']} and {row['path']}")
        else:
            chosen[name] = row
    if further:
        findings.append(
            Finding(
                "warning",
                f"{len(further)} utterance id(s) occur more than once (the same name in two places, or two lines of a table); the"
                " first of each is used.",
                tuple(further[:5]),
            )
        )
    return [chosen[name] for name in sorted(chosen)]


def _map_labels(card: Card, rows: Sequence[Mapping[str, object]], findings: list[Finding]) -> list[dict[str, object]]:
    """Rows with ``emotion`` from the card's label map; a label the card does not know is no label, and an error."""
    labels = {"": ""} | {raw.lower(): emotion for raw, emotion in card.label_map.items()} | dict(card.label_map)
    unknown: dict[str, list[str]] = defaultdict(list)
    left_out: Counter[str] = Counter()
    mapped = []
    for row in rows:
        raw = str(row.get("emotion_raw", "") or "").strip()
        emotion = labels.get(raw, labels.get(raw.lower()))
        if emotion is None:
            unknown[raw].append(str(row["utterance_id"]))
        further = {VOTES: _map_votes(str(row[VOTES]), labels, left_out)} if row.get(VOTES) else {}
        mapped.append({**row, "emotion_raw": raw, "emotion": emotion or "", **further})
    for raw, names in sorted(unknown.items()):
        findings.append(
            Finding(
                "error",
                f"The label {raw!r} of {len(names)} utterance(s) is not in the card of {card.name}, which knows"
                f" {', '.join(card.label_map)}. The corpus is of another release than {card.version}; get that one, or add the"
                f" label to data_manifests/{card.name}.toml under [labels.map].",
                tuple(names[:5]),
            )
        )
    if left_out:
        listed = ", ".join(f"{answer!r} ({count})" for answer, count in left_out.most_common(5))
        findings.append(
            Finding(
                "warning",
                f"Raters gave answers that the card of {card.name} maps to no emotion: {listed}. They are left out of {VOTES}.",
            )
        )
    return mapped


def _map_votes(cell: str, labels: Mapping[str, str], left_out: Counter[str]) -> str:
    """Votes for raw labels as votes for emotions; those for none are counted in ``left_out``."""
    votes: dict[str, float] = {}
    for raw, number in parse_votes(cell).items():
        emotion = labels.get(raw, labels.get(raw.lower(), ""))
        if emotion:
            votes[emotion] = votes.get(emotion, 0.0) + number
        else:
            left_out[raw] += 1
    return format_votes(votes)


def _expected_findings(card: Card, manifest: Manifest) -> list[Finding]:
    """Compare with the counts of the card."""
    table, findings = manifest.table, []
    total = len(table)
    if card.expected_utterances and total != card.expected_utterances:
        cause = (
            "a download that is not complete"
            if total < card.expected_utterances
            else "another release, or files added to it"
        )
        findings.append(
            Finding(
                "warning",
                f"{total} utterances; {card.name} {card.version} has {card.expected_utterances}. Likely cause: {cause}. Numbers do"
                " not compare with published ones.",
            )
        )
    speakers = sorted(set(table["speaker"]))
    if card.expected_speakers and len(speakers) != card.expected_speakers:
        findings.append(
            Finding(
                "warning",
                f"{len(speakers)} speakers; {card.name} {card.version} has {card.expected_speakers}. Likely cause:"
                f" {'folders of some speakers are missing' if len(speakers) < card.expected_speakers else 'another release'}.",
                tuple(speakers[:5]),
            )
        )
    for column, expected, kind in (
        ("emotion", card.expected_emotions, "label"),
        ("official_split", card.expected_splits, "part of the official split"),
    ):
        found = Counter(table[column])
        differing = [
            f"{name} {found[name]} (expected {count})" for name, count in expected.items() if found[name] != count
        ]
        if differing:
            findings.append(
                Finding(
                    "warning",
                    f"Utterances per {kind} differ from {card.name} {card.version}: {', '.join(differing)}. Likely cause: another"
                    " release, or a download that is not complete.",
                )
            )
    return findings


# ---------------------------------------------------------------------------------------------------------------------
# A table of the user's own


def prepare_table(path: Path, root: Path | None = None, *, progress: Progress | None = None) -> Prepared:
    """Read the user's own CSV or Parquet and look at its recordings.

    Args:
        path: the table, see :mod:`pipelines.corpora.manifest`.
        root: folder that the column ``path`` is relative to; the table's own folder unless given.
        progress: called as ``progress(done, total)`` while headers are read.

    Raises:
        ManifestError: the table breaks the contract.
        DataRootError: ``root`` is not a folder.
    """
    if root is not None and not root.is_dir():
        raise DataRootError(
            f"There is no folder {root}, which the paths in {path} are to be relative to. Check `--data-root`."
        )
    return prepare_manifest(read_manifest(path, root=root), path.name, progress=progress)


def prepare_manifest(manifest: Manifest, origin: str, *, progress: Progress | None = None) -> Prepared:
    """Look at the recordings of a manifest that is the user's own and say what is odd about it.

    Args:
        manifest: with a root.
        origin: what it was read from, for messages.
        progress: called as ``progress(done, total)`` while headers are read.
    """
    headers = _read_headers(manifest.audio_paths(), progress)
    manifest, headers, converted = _without_backslashes(manifest, headers)
    table = manifest.table.copy()
    stated = table["duration_s"].to_numpy(dtype=float)
    measured = np.array([header.duration_s for header in headers])
    table["duration_s"] = np.where(np.isnan(stated), measured, stated)
    manifest = dataclasses.replace(manifest, table=table)
    findings = [*converted, *_windows_findings(manifest, headers, origin)]
    findings += _header_findings(manifest, headers, all_must_exist=True)
    findings += _table_findings(manifest, origin)
    findings += _speaker_findings(manifest, sorted(set(table["emotion"]) - {""}))
    differing = np.flatnonzero(np.abs(stated - measured) > 0.1)
    if len(differing):
        findings.append(
            Finding(
                "warning",
                f"duration_s of {len(differing)} row(s) differs from the recording by more than 0.1 s: rows and recordings may be"
                " mixed up. The table's values are kept.",
                tuple(table["utterance_id"].iloc[position] for position in differing[:5]),
            )
        )
    return Prepared(manifest, _ordered(findings))


def _without_backslashes(manifest: Manifest, headers: list[Header]) -> tuple[Manifest, list[Header], list[Finding]]:
    """Paths that were written on Windows, with forward slashes wherever that finds the recording."""
    paths = list(manifest.table["path"])
    turned = {
        position: paths[position].replace("\\", "/")
        for position, header in enumerate(headers)
        if header.state == "missing" and "\\" in paths[position]
    }
    if not turned or manifest.root is None:
        return manifest, headers, []
    found = {position: read_header(manifest.root / path) for position, path in turned.items()}
    found = {position: header for position, header in found.items() if header.state != "missing"}
    if not found:
        return manifest, headers, []
    for position in found:
        paths[position] = turned[position]
    table = manifest.table.assign(path=pd.array(paths, dtype="str"))
    note = Finding("note", f"{len(found)} path(s) had backslashes, as on Windows; they were read with forward slashes.")
    again = [found.get(position, header) for position, header in enumerate(headers)]
    return dataclasses.replace(manifest, table=table), again, [note]


def _windows_findings(manifest: Manifest, headers: Sequence[Header], origin: str) -> list[Finding]:
    """Absolute paths of a Windows machine, and how to make them relative."""
    paths = [path for path, header in zip(manifest.table["path"], headers, strict=True) if header.state == "missing"]
    foreign = [path for path in paths if PureWindowsPath(path).is_absolute()]
    if not foreign:
        return []
    try:
        folder = ntpath.commonpath([str(PureWindowsPath(path).parent) for path in foreign]).rstrip("\\") + "\\"
    except ValueError:  # on several drives
        folder = f"{PureWindowsPath(foreign[0]).parent}\\"
    pattern = re.sub(r"[.*^$\[\]|]", r"\\\g<0>", folder.replace("\\", "/")).replace("/", "[/\\\\]")
    script = shlex.quote(f"s|{pattern}||; s|\\\\|/|g")
    return [
        Finding(
            "error",
            f"{len(foreign)} path(s) in {origin} are absolute paths of a Windows machine, below {folder}. Make them relative to"
            f" the folder of the recordings, `sed -i {script} {shlex.quote(origin)}`, and name that folder with"
            " `--data-root DIR`.",
            tuple(foreign[:5]),
        )
    ]


def _table_findings(manifest: Manifest, origin: str) -> list[Finding]:
    """What a table lets one do, and what not."""
    findings = []
    emotions = Counter(manifest.table["emotion"])
    unlabelled = emotions.pop("", 0)
    if not emotions:
        dimensions = [name for name in ("arousal", "valence", "dominance") if manifest.table[name].notna().any()]
        findings.append(
            Finding(
                "warning",
                f"{origin} has no emotion: embeddings can be extracted, classes cannot be trained on."
                + (f" Dimensions are there: {', '.join(dimensions)}." if dimensions else " Add a column `emotion`."),
            )
        )
    elif unlabelled:
        findings.append(
            Finding("note", f"{unlabelled} of {len(manifest)} utterances have no emotion; they are not trained on.")
        )
    own = sorted(set(emotions) - set(VOCABULARY))
    if own:
        findings.append(
            Finding(
                "note",
                f"Labels outside the vocabulary become classes of their own: {', '.join(own)}. Check their spelling.",
            )
        )
    speakers = set(manifest.table["speaker"])
    if len(speakers) < 3:
        findings.append(
            Finding(
                "warning",
                f"{len(speakers)} speaker(s): a speaker-independent protocol needs three (training, validation, test). Only"
                " `--protocol random-5fold`, which is speaker-dependent, is possible.",
            )
        )
    if len(manifest) > 1 and len(speakers) == len(manifest):
        findings.append(
            Finding(
                "warning",
                f"Every one of {len(manifest)} utterances has a speaker of its own. If the column holds file names and not"
                " people, folds by speaker leak.",
            )
        )
    if manifest.corpus in card_names():
        findings.append(
            Finding(
                "warning",
                f"{origin} is named like the official corpus {manifest.corpus!r} and would be kept under that"
                " name. Rename it.",
            )
        )
    return findings


# ---------------------------------------------------------------------------------------------------------------------
# Headers


def _read_headers(paths: Sequence[Path], progress: Progress | None) -> list[Header]:
    headers = []
    for done, path in enumerate(paths, start=1):
        headers.append(read_header(path))
        if progress is not None:
            progress(done, len(paths))
    return headers


def _header_findings(manifest: Manifest, headers: Sequence[Header], *, all_must_exist: bool) -> list[Finding]:
    """What the headers of all recordings show together."""
    paths = list(manifest.table["path"])
    files = manifest.audio_paths()
    where: dict[str, list[int]] = defaultdict(list)
    for position, header in enumerate(headers):
        where[header.state].append(position)
    total, readable = len(headers), where["ok"]

    def shown(positions: Sequence[int]) -> tuple[str, ...]:
        return tuple(paths[position] for position in positions[:5])

    # A few damaged recordings fail on their own; a corpus of which none can be read is no corpus.
    damage = "warning" if readable else "error"
    findings = []
    if where["pointer"]:
        findings.append(
            Finding(
                "error",
                f"{len(where['pointer'])} of {total} recordings are Git LFS pointers (text of about 130 bytes), not audio. Fetch"
                f" the recordings: `git lfs install && git lfs pull` in {manifest.root}. GitHub's zip never has them.",
                shown(where["pointer"]),
            )
        )
    if where["missing"]:
        relative_to = (
            f" Paths are relative to {manifest.root}; name another folder with `--data-root`." if all_must_exist else ""
        )
        findings.append(
            Finding(
                "error" if all_must_exist else damage,
                f"{len(where['missing'])} of {total} recordings that are listed do not exist.{relative_to}",
                shown(where["missing"]),
            )
        )
    if where["empty"]:
        findings.append(
            Finding(
                damage,
                f"{len(where['empty'])} of {total} recordings are empty (no bytes, or a header without samples). Get them again;"
                " extraction records them as failed.",
                shown(where["empty"]),
            )
        )
    if where["unreadable"]:
        reasons = Counter(headers[position].reason for position in where["unreadable"])
        findings.append(
            Finding(
                damage,
                f"{len(where['unreadable'])} of {total} recordings cannot be read as audio ({', '.join(reasons)}). Get them"
                " again or convert them; extraction records them as failed.",
                shown(where["unreadable"]),
            )
        )
    findings += _format_findings(headers, readable, shown)
    twins = _groups(
        readable,
        lambda position: (headers[position].size, headers[position].fingerprint),
        lambda position: file_digest(files[position]),
    )
    if twins:
        findings.append(_twin_finding(twins, manifest, "byte-identical"))
    return findings


def _format_findings(
    headers: Sequence[Header], readable: Sequence[int], shown: Callable[[Sequence[int]], tuple[str, ...]]
) -> list[Finding]:
    """Mixed rates and channels, and clips that were all cut to one length."""
    findings = []
    channels: dict[int, list[int]] = defaultdict(list)
    rates: dict[int, list[int]] = defaultdict(list)
    for position in readable:
        channels[headers[position].channels].append(position)
        rates[headers[position].rate_hz].append(position)
    if len(channels) > 1:
        rare = min(channels, key=lambda number: len(channels[number]))
        findings.append(
            Finding(
                "note",
                f"{len(channels[rare])} of {len(readable)} recordings have {rare} channel(s), unlike the others; channels"
                " are averaged.",
                shown(channels[rare]),
            )
        )
    if len(rates) > 1:
        rare = min(rates, key=lambda rate: len(rates[rate]))
        listed = ", ".join(f"{rate} Hz ({len(rates[rate])})" for rate in sorted(rates))
        findings.append(
            Finding(
                "note", f"Recordings have {len(rates)} sample rates: {listed}; all are resampled.", shown(rates[rare])
            )
        )
    if len(readable) >= _CLIPS_FOR_LOOK_ALIKE:
        longest = max(headers[position].duration_s for position in readable)
        cut = [position for position in readable if abs(headers[position].duration_s - longest) < 1e-3]
        if len(cut) * 2 >= len(readable):
            findings.append(
                Finding(
                    "warning",
                    f"{len(cut)} of {len(readable)} recordings last exactly {longest:.2f} s, and none lasts longer"
                    f" ({', '.join(f'{rate} Hz' for rate in sorted(rates))}): they were cut. This is a redistribution made for"
                    " something else, not the original; numbers do not compare with published ones. Get the original recordings.",
                    shown(cut),
                )
            )
    return findings


def _groups(
    positions: Iterable[int], quick: Callable[[int], object], exact: Callable[[int], object]
) -> list[list[int]]:
    """Positions that agree in a quick key and then in an exact one; ``exact`` is asked only where ``quick`` agrees."""
    candidates: dict[object, list[int]] = defaultdict(list)
    for position in positions:
        candidates[quick(position)].append(position)
    groups = []
    for members in candidates.values():
        if len(members) > 1:
            same: dict[object, list[int]] = defaultdict(list)
            for position in members:
                same[exact(position)].append(position)
            groups += [group for group in same.values() if len(group) > 1]
    return groups


def _twin_finding(groups: Sequence[Sequence[int]], manifest: Manifest, how: str) -> Finding:
    """Duplicates: harmless within a speaker and label, a leak or a labelling mistake otherwise."""
    table = manifest.table
    across = sum(
        table["speaker"].iloc[list(group)].nunique() > 1 or table["emotion"].iloc[list(group)].nunique() > 1
        for group in groups
    )
    remark = (
        f" {across} of the groups differ in speaker or emotion: a test recording may be in training, or a label is wrong."
        if across
        else " They agree in speaker and emotion, so folds by speaker do not leak."
    )
    return Finding(
        "warning" if across else "note",
        f"{sum(map(len, groups))} recordings in {len(groups)} group(s) are {how}; all are kept.{remark}",
        tuple(" = ".join(table["path"].iloc[list(group)]) for group in groups[:5]),
    )


def _speaker_findings(manifest: Manifest, classes: Sequence[str]) -> list[Finding]:
    """Speakers that lack a class, and corpora in which speakers have one emotion each."""
    held: dict[str, Counter[str]] = defaultdict(Counter)
    for speaker, emotion in zip(manifest.table["speaker"], manifest.table["emotion"], strict=True):
        if speaker.lower() not in _UNKNOWN_SPEAKERS and emotion in classes:
            held[speaker][emotion] += 1
    if len(classes) < 2 or not held:
        return []
    frequent = {speaker: emotions for speaker, emotions in held.items() if emotions.total() >= _FREQUENT}
    single = sorted(speaker for speaker, emotions in frequent.items() if len(emotions) == 1)
    if len(frequent) > 1 and len(single) * 2 > len(frequent):
        return [
            Finding(
                "warning",
                f"{len(single)} of {len(frequent)} speakers have one emotion only: who speaks gives the label away, and folds by"
                " speaker test something else than emotion.",
                tuple(single[:5]),
            )
        ]
    lacking = {speaker: [name for name in classes if name not in emotions] for speaker, emotions in held.items()}
    lines = [f"{speaker}: no {', '.join(names)}" for speaker, names in sorted(lacking.items()) if names]
    if not lines:
        return []
    return [
        Finding(
            "note",
            f"{len(lines)} of {len(held)} speakers lack a class; a fold that tests on one alone lacks it.",
            tuple(lines[:5]),
        )
    ]


def _ordered(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    return tuple(sorted(findings, key=lambda finding: _LEVELS.index(finding.level)))


# ---------------------------------------------------------------------------------------------------------------------
# Audit: decode everything


def check(corpus: str, root: Path, *, progress: Progress | None = None) -> Audit:
    """Prepare an official corpus and decode all of it; see :func:`prepare` and :func:`audit`."""
    return audit(prepare(corpus, root), progress=progress)


def audit(prepared: Prepared, *, progress: Progress | None = None) -> Audit:
    """Decode every recording of a prepared corpus.

    Finds recordings whose data ends before the header says, that cannot be decoded to the end, are silent, hold samples that
    are not finite, or sound exactly like another one (same samples, whatever the container).

    Args:
        prepared: of :func:`prepare` or :func:`prepare_table`.
        progress: called as ``progress(done, total)`` after every recording.
    """
    manifest = prepared.manifest
    paths = list(manifest.table["path"])
    sounds = []
    for done, path in enumerate(manifest.audio_paths(), start=1):
        sounds.append(listen(path))
        if progress is not None:
            progress(done, len(paths))
    findings = list(prepared.findings)
    for state, level, text in (
        ("broken", "warning", "cannot be decoded to the end; extraction records them as failed. Get them again."),
        ("short", "warning", "end before their header says: the download or the conversion broke off. Get them again."),
        (
            "not finite",
            "warning",
            "hold samples that are not finite (NaN or infinite); extraction records them as failed.",
        ),
        (
            "silent",
            "warning",
            "are silent (no sample above one step of 16-bit audio); extraction records them as failed.",
        ),
    ):
        positions = [position for position, sound in enumerate(sounds) if sound is not None and sound.fault == state]
        if positions:
            findings.append(
                Finding(
                    level,
                    f"{len(positions)} of {len(paths)} recordings {text}",
                    tuple(paths[position] for position in positions[:5]),
                )
            )
    whole = {position: sound for position, sound in enumerate(sounds) if sound is not None and sound.content}
    twins = _groups(whole, lambda position: whole[position].content, lambda position: whole[position].content)
    if twins:
        findings = [finding for finding in findings if "byte-identical" not in finding.message]
        findings.append(_twin_finding(twins, manifest, "identical in sound (the same samples at the same rate)"))
    return Audit(manifest, _ordered(findings), _summary(manifest, [sound for sound in sounds if sound is not None]))


def _summary(manifest: Manifest, sounds: Sequence[Sound]) -> dict[str, Any]:
    table = manifest.table
    by_speaker: dict[str, dict[str, int]] = defaultdict(dict)
    for (speaker, emotion), count in sorted(Counter(zip(table["speaker"], table["emotion"], strict=True)).items()):
        by_speaker[speaker][emotion] = count
    lengths = [sound.duration_s for sound in sounds if not math.isnan(sound.duration_s)]
    return {
        "utterances": len(table),
        "speakers": table["speaker"].nunique(),
        "emotions": dict(sorted(Counter(table["emotion"]).items())),
        "emotions_by_speaker": dict(by_speaker),
        "duration_s": {
            "total": math.fsum(lengths),
            "mean": math.fsum(lengths) / len(lengths) if lengths else math.nan,
            "min": min(lengths, default=math.nan),
            "max": max(lengths, default=math.nan),
        },
        "rates_hz": dict(sorted(Counter(sound.rate_hz for sound in sounds).items())),
        "channels": dict(sorted(Counter(sound.channels for sound in sounds).items())),
        "formats": dict(sorted(Counter(sound.format for sound in sounds).items())),
        "identical_channels": sum(sound.identical_channels for sound in sounds),
        "agreement": agreement(table),
    }


# ---------------------------------------------------------------------------------------------------------------------
# The cache's memory of corpora


def remember(source: Prepared | Manifest, cache_dir: Location, *, replace: bool = False) -> None:
    """Keep a manifest in the cache: ``<cache>/<corpus>/manifest.csv`` and ``corpus.json`` (its root, card and digest).

    Args:
        source: what was prepared.
        cache_dir: the cache folder, created if missing, or a place on object storage.
        replace: keep it even where stores of another manifest exist.

    Raises:
        ProvenanceError: stores of this corpus exist and were made from another manifest.
        StorageError: the cache cannot be written.
    """
    prepared = source if isinstance(source, Prepared) else Prepared(source, ())
    manifest = prepared.manifest
    folder = cache_dir / manifest.corpus
    if not replace:
        _check_remembered(manifest, folder, cache_dir)
    record = {
        "schema": _SCHEMA,
        "corpus": manifest.corpus,
        "card": prepared.card,
        "root": None if manifest.root is None else os.path.abspath(manifest.root),
        "digest": manifest.digest,
        "utterances": len(manifest),
    }
    # The manifest first: the record, written last, says that both are whole.
    write_manifest(manifest, folder / _MANIFEST)
    write_atomically(folder / _RECORD, json.dumps(record, indent=2, ensure_ascii=False) + "\n", option="--cache-dir")


def recall(cache_dir: Location, corpus: str) -> Manifest:
    """The manifest that was remembered under a name. Its root need not exist any more.

    Raises:
        UnknownNameError: the name is neither in the cache nor that of a card.
        DataRootError: the corpus exists but was not prepared with this cache.
        ManifestError: the remembered files were edited or are not whole.
        StorageError: object storage cannot be reached.
    """
    folder = cache_dir / corpus
    again = f"`hyfuse corpora prepare {corpus} --root DIR`"
    if corpus not in cached_corpora(cache_dir):
        if corpus not in card_names():
            raise unknown_name(
                "corpus",
                corpus,
                {*card_names(), *cached_corpora(cache_dir)},
                hint="For a corpus of your own, give the path of its CSV or Parquet manifest.",
            )
        present = ", ".join(cached_corpora(cache_dir)) or "none"
        raise DataRootError(
            f"Corpus {corpus!r} is not prepared in the cache {cache_dir} (prepared there: {present}). Prepare it: {again}."
        )
    record = _read_record(folder / _RECORD, again)
    if not (folder / _MANIFEST).is_file():
        raise ManifestError(f"{folder / _MANIFEST} is missing. Prepare the corpus again: {again}.")
    root = record.get("root")
    manifest = _read_remembered(folder / _MANIFEST, corpus, Path(root) if root else None)
    if not root:
        manifest = dataclasses.replace(manifest, root=None)
    if manifest.digest != record.get("digest"):
        raise ManifestError(
            f"{folder / _MANIFEST} has digest {manifest.digest[:12]}, but {str(record.get('digest'))[:12]} was remembered: the file"
            f" was edited, or writing it was interrupted. Prepare the corpus again: {again}. To use a changed table, copy it"
            " elsewhere and give its path as `--corpus`."
        )
    return manifest


def _read_remembered(path: Location, corpus: str, root: Path | None) -> Manifest:
    with local_copy(path) as copy:
        try:
            return read_manifest(copy, corpus=corpus, root=root)
        except ManifestError as error:
            raise ManifestError(str(error).replace(str(copy), str(path))) from error


def cached_corpora(cache_dir: Location) -> list[str]:
    """Names of all corpora remembered in a cache, sorted.

    Raises:
        StorageError: object storage cannot be reached.
    """
    if not cache_dir.is_dir():
        return []
    return sorted(folder.name for folder in cache_dir.iterdir() if (folder / _RECORD).is_file())


def _check_remembered(manifest: Manifest, folder: Location, cache_dir: Location) -> None:
    """Refuse to replace a manifest that stores were made from."""
    if not (folder / _RECORD).is_file() or not any(folder.glob("*/*.zarr")):
        return
    remembered = str(_read_record(folder / _RECORD, f"`hyfuse cache remove {manifest.corpus}`").get("digest"))
    if remembered == manifest.digest:
        return
    try:
        difference = _difference(recall(cache_dir, manifest.corpus).table, manifest.table)
    except ManifestError:
        difference = "the remembered manifest cannot be read"
    raise ProvenanceError(
        f"The stores in {folder} were made from another manifest of {manifest.corpus}: remembered {remembered[:12]}, now"
        f" {manifest.digest[:12]} ({difference}). Keep both apart with another `--cache-dir`, or remove the stores and prepare"
        f" again: `hyfuse cache remove {manifest.corpus}`."
    )


def _difference(old: pd.DataFrame, new: pd.DataFrame) -> str:
    """What differs between two manifests, in a few words."""
    before, after = set(old["utterance_id"]), set(new["utterance_id"])
    if before != after:
        count = f"{len(before)} → {len(after)} utterances"
        parts = [f"{word} {sorted(ids)[0]}" for word, ids in (("gone", before - after), ("new", after - before)) if ids]
        return f"{count}, for instance {' and '.join(parts)}"
    left, right = old.set_index("utterance_id"), new.set_index("utterance_id").loc[old["utterance_id"]]
    columns = [name for name in (*COLUMNS[1:], *sorted({*left.columns, *right.columns} - set(COLUMNS)))]
    changed = []
    for name in columns:
        if name not in left.columns or name not in right.columns:
            changed.append(f"column {name} {'added' if name in right.columns else 'gone'}")
            continue
        same = (left[name] == right[name]) | (left[name].isna() & right[name].isna())
        if not same.all():
            changed.append(f"{name} in {int((~same).sum())} rows")
    return ", ".join(changed) if changed else "the order of the utterances"


def _read_record(path: Location, again: str) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(record, dict):
            raise ValueError("not a JSON object")
    except (OSError, ValueError) as error:
        raise ManifestError(f"{path} cannot be read ({error}). Prepare the corpus again: {again}.") from error
    if record.get("schema") != _SCHEMA:
        raise ManifestError(
            f"{path} has schema {record.get('schema')!r}, this hyfuse reads {_SCHEMA}. Prepare the corpus again: {again}."
        )
    return record
