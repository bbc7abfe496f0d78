"""Protocols: how the speakers of a corpus are divided into training, validation and test part.

==================== ===================================================================================================
protocol             folds
==================== ===================================================================================================
``speaker-<k>fold``  k folds, every speaker in the test part of exactly one, classes balanced as well as speakers allow
``loso``             leave one speaker out: one fold per speaker
``session``          leave one session out: one fold per session
``official``         the corpus' own split: train / development / test (or test1)
``official-test2``   the same, tested on another of its test parts
``random-<k>fold``   k folds by utterance: **speaker-dependent**, only to compare with papers that did so
a card's own         test speakers per fold as published (``emo-superb``, ``emobox``, ``audb``)
==================== ===================================================================================================

All but ``random-<k>fold`` are speaker-independent: no speaker is in two parts of a fold. Validation speakers are taken from
the fold's training speakers: about a quarter of them, at least one, chosen so that no class is lost to training, as few
classes as possible are missing from validation, and the class distribution is close to that of all training speakers.

Nothing here depends on a random seed or on the version of a library: the folds of a corpus are the same for everyone who has
the same manifest. Folds by speaker do not depend on the order of its rows either; ``random-<k>fold`` does.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import ProtocolError, unknown_name

__all__ = ["LOSO_LIMIT", "PROTOCOLS", "Fold", "Split", "make_split"]

PROTOCOLS: tuple[str, ...] = ("speaker-5fold", "loso", "session", "official", "random-5fold")
"""Protocols that do not come from a card; the number of folds may be changed (``speaker-4fold``)."""

LOSO_LIMIT = 30
"""Most speakers for which leaving one out is offered."""

_SEED = 0  # of scikit-learn's shuffling; a constant of the protocol, not an option


@dataclass(frozen=True)
class Fold:
    """One division. Positions point into the utterances that were given to :func:`make_split`.

    Attributes:
        name: ``1`` … ``k``, or the speaker or session left out.
        train: int64 positions.
        validation: int64 positions.
        test: int64 positions.
    """

    name: str
    train: NDArray[np.int64]
    validation: NDArray[np.int64]
    test: NDArray[np.int64]


@dataclass(frozen=True)
class Split:
    """All folds of a protocol.

    Attributes:
        protocol: its name.
        speaker_independent: whether no speaker is in two parts of a fold.
        folds: in order.
        digest: sha256 over the utterance ids of every part of every fold.
    """

    protocol: str
    speaker_independent: bool
    folds: tuple[Fold, ...]
    digest: str


def make_split(
    protocol: str,
    *,
    utterance_ids: Sequence[str],
    speakers: Sequence[str],
    labels: Sequence[str],
    sessions: Sequence[str] | None = None,
    official: Sequence[str] | None = None,
    test_speakers: Mapping[str, Sequence[Sequence[str]]] | None = None,
) -> Split:
    """Divide utterances by a protocol.

    Args:
        protocol: see the module docstring.
        utterance_ids: N ids.
        speakers: N speakers.
        labels: N labels; the classes are those that occur.
        sessions: N sessions, for ``session``.
        official: N names of official parts, for ``official``.
        test_speakers: protocol name to test speakers per fold, from the corpus' card.

    Raises:
        UnknownNameError: no such protocol.
        ProtocolError: the corpus does not allow it (too few speakers, no sessions, no official split, a class missing from a
            training part, an unknown speaker that would leak).
    """
    who, what = np.asarray(speakers, dtype=object), np.asarray(labels, dtype=object)
    fixed = dict(test_speakers or {})
    counted = re.fullmatch(r"(speaker|random)-(\d+)fold", protocol)
    if protocol in fixed:
        names = [str(index + 1) for index in range(len(fixed[protocol]))]
        pairs = [np.isin(who, list(fold)) for fold in fixed[protocol]]
        _check_published(protocol, fixed[protocol], set(who))
    elif protocol == "loso":
        names = sorted(set(who))
        _check_count(protocol, "speaker", names, at_least=3, at_most=LOSO_LIMIT)
        pairs = [who == name for name in names]
    elif protocol == "session":
        where = _column(protocol, "session", sessions)
        names = sorted(set(where))
        _check_count(protocol, "session", names, at_least=2)
        pairs = [where == name for name in names]
    elif protocol == "official" or protocol.startswith("official-"):
        part = _column(protocol, "official_split", official)
        return _official(protocol, part, utterance_ids, who, what)
    elif counted:
        folds = int(counted[2])
        if folds < 2:
            raise ProtocolError(f"{protocol} asks for {folds} fold(s); at least 2 are needed.")
        names = [str(index + 1) for index in range(folds)]
        pairs = _speaker_folds(who, what, folds) if counted[1] == "speaker" else _random_folds(what, folds)
    else:
        raise unknown_name(
            "protocol", protocol, (*PROTOCOLS, *fixed), hint="Another number of folds works too: `speaker-4fold`."
        )
    independent = not (counted and counted[1] == "random")
    made = []
    for name, test in zip(names, pairs, strict=True):
        validation = _validation(who, what, ~test, by_speaker=independent, protocol=protocol)
        made.append(_fold(name, ~test & ~validation, validation, test))
    return _finish(protocol, independent, made, utterance_ids, who, what)


def _fold(name: str, train: NDArray[np.bool_], validation: NDArray[np.bool_], test: NDArray[np.bool_]) -> Fold:
    return Fold(name, np.flatnonzero(train), np.flatnonzero(validation), np.flatnonzero(test))


def _speaker_folds(who: NDArray[np.object_], what: NDArray[np.object_], folds: int) -> list[NDArray[np.bool_]]:
    present = len(set(who))
    # Two speakers must remain outside the test part, one to train on and one to validate on.
    if present < max(folds, 3):
        raise ProtocolError(
            f"speaker-{folds}fold needs at least {max(folds, 3)} speakers; this corpus has {present}. Use"
            f" `--protocol {'loso' if present >= 3 else 'random-5fold'}`"
            + (f" or `--protocol speaker-{present}fold`." if present >= 3 else ", which is speaker-dependent.")
        )
    return _deal_groups(who, what, folds)


def _deal_groups(who: NDArray[np.object_], what: NDArray[np.object_], folds: int) -> list[NDArray[np.bool_]]:
    """Masks of ``folds`` parts made of whole speakers, classes balanced as well as speakers allow.

    Speakers are dealt one after the other, those with the most uneven classes first, each to the part after which the shares of
    every class differ least between parts; the smaller part, if that is equal. This is the method of scikit-learn's
    ``StratifiedGroupKFold(folds, shuffle=True, random_state=0)`` and gives the folds of its version 1.9; that of version 1.5
    gives others, and a corpus' folds must not depend on what is installed.
    """
    speakers, speaker = np.unique(who.astype(str), return_inverse=True)
    classes, label = np.unique(what.astype(str), return_inverse=True)
    counts = np.zeros((len(speakers), len(classes)))
    np.add.at(counts, (speaker, label), 1)
    order = np.random.RandomState(_SEED).permutation(len(speakers))  # numpy has frozen this stream
    order = order[np.argsort(-counts[order].std(axis=1), kind="stable")]
    held = np.zeros((folds, len(classes)))
    part = np.zeros(len(speakers), dtype=np.int64)
    for one in order:
        best_spread = best_size = np.inf
        for candidate in range(folds):
            size = held[candidate].sum()
            held[candidate] += counts[one]
            spread = float((held / counts.sum(axis=0)).std(axis=0).mean())
            held[candidate] -= counts[one]
            if spread < best_spread or (np.isclose(spread, best_spread) and size < best_size):
                best_spread, best_size, part[one] = spread, size, candidate
        held[part[one]] += counts[one]
    return [part[speaker] == candidate for candidate in range(folds)]


def _random_folds(what: NDArray[np.object_], folds: int) -> list[NDArray[np.bool_]]:
    from sklearn.model_selection import StratifiedKFold

    smallest = min(np.unique(what.astype(str), return_counts=True)[1])
    if smallest < folds:
        raise ProtocolError(
            f"random-{folds}fold needs at least {folds} utterances of every class; the rarest has {smallest}."
        )
    splitter = StratifiedKFold(folds, shuffle=True, random_state=_SEED)
    return [_mask(test, len(what)) for _, test in splitter.split(np.zeros(len(what)), what.astype(str))]


def _mask(positions: NDArray[np.int64], total: int) -> NDArray[np.bool_]:
    mask = np.zeros(total, dtype=bool)
    mask[positions] = True
    return mask


def _validation(
    who: NDArray[np.object_],
    what: NDArray[np.object_],
    outside: NDArray[np.bool_],
    *,
    by_speaker: bool,
    protocol: str,
) -> NDArray[np.bool_]:
    """About a quarter of the utterances outside the test part, by whole speakers unless the protocol is speaker-dependent."""
    positions = np.flatnonzero(outside)
    labels = what[positions].astype(str)
    if not by_speaker:
        from sklearn.model_selection import StratifiedKFold

        rarest = min(np.unique(labels, return_counts=True)[1])
        if rarest < 2:
            raise ProtocolError(
                f"{protocol} leaves one utterance of a class outside a test part; two are needed, one to train on and one to"
                " validate on. Use more folds, or leave the rarest class out with `--classes`."
            )
        splitter = StratifiedKFold(min(4, rarest), shuffle=True, random_state=_SEED)
        return _mask(positions[next(splitter.split(positions, labels))[1]], len(who))
    present = len(set(who[positions]))
    if present < 2:
        raise ProtocolError(
            f"{protocol} leaves {present} speaker(s) outside the test part; two are needed, one to train on and one to validate"
            " on. This corpus has too few speakers for a speaker-independent protocol; `--protocol random-5fold` is"
            " speaker-dependent and says so in every table."
        )
    candidates = _deal_groups(who[positions], what[positions], min(4, present))
    everything = set(labels)
    whole = _shares(labels, everything)

    def rank(chosen: NDArray[np.bool_]) -> tuple[int, int, float]:
        """Classes lost to training, classes missing from validation, distance from the distribution of all."""
        lost, missing = everything - set(labels[~chosen]), everything - set(labels[chosen])
        return len(lost), len(missing), float(np.abs(_shares(labels[chosen], everything) - whole).sum())

    best = min((chosen for chosen in candidates if chosen.any()), key=rank)
    return _mask(positions[best], len(who))


def _shares(labels: NDArray[np.str_], classes: set[str]) -> NDArray[np.float64]:
    return np.array([np.mean(labels == name) for name in sorted(classes)])


def _official(
    protocol: str,
    part: NDArray[np.object_],
    utterance_ids: Sequence[str],
    who: NDArray[np.object_],
    what: NDArray[np.object_],
) -> Split:
    """One fold: train / development / one test part as published; further test parts stay unused."""
    tests = sorted({name for name in part if name.startswith("test")})
    wanted = protocol.removeprefix("official").removeprefix("-") or (tests[0] if tests else "test")
    train, validation, test = part == "train", part == "development", part == wanted
    if not test.any() or not train.any():
        found = ", ".join(sorted({name or "(empty)" for name in part}))
        raise ProtocolError(
            f"Protocol {protocol!r} needs utterances whose official_split is train and {wanted}; found: {found}. Test parts are"
            f" named as in `--protocol official-{tests[-1] if tests else 'test2'}`."
        )
    if not validation.any():
        validation = _validation(who, what, train, by_speaker=True, protocol=protocol)
        train = train & ~validation
    return _finish(protocol, True, [_fold(wanted, train, validation, test)], utterance_ids, who, what)


def _finish(
    protocol: str,
    independent: bool,
    folds: Sequence[Fold],
    utterance_ids: Sequence[str],
    who: NDArray[np.object_],
    what: NDArray[np.object_],
) -> Split:
    """Check every fold and digest the whole."""
    classes = sorted(set(what))
    if len(classes) < 2:
        raise ProtocolError(f"There is nothing to tell apart: the only class is {', '.join(classes) or 'none'}.")
    digest = hashlib.sha256(protocol.encode())
    for fold in folds:
        for part in ("train", "validation", "test"):
            positions = getattr(fold, part)
            if len(positions) == 0:
                raise ProtocolError(
                    f"{protocol}: fold {fold.name!r} has an empty {part} part. Use a protocol with fewer folds."
                )
            digest.update(f"\n{fold.name} {part}\n".encode())
            digest.update("\n".join(sorted(utterance_ids[position] for position in positions)).encode())
        missing = sorted(set(classes) - set(what[fold.train]))
        if missing:
            raise ProtocolError(
                f"{protocol}: no training utterance of {', '.join(missing)} in fold {fold.name!r}. Too few speakers have this"
                " class. Leave it out with `--classes`, or use a protocol with more speakers in training, such as loso."
            )
        if independent:
            _check_leak(protocol, fold, who)
    return Split(protocol, independent, tuple(folds), digest.hexdigest())


def _check_leak(protocol: str, fold: Fold, who: NDArray[np.object_]) -> None:
    """No speaker in two parts; an ``Unknown`` speaker of an official split is nobody in particular and is not compared."""
    parts = {part: set(who[getattr(fold, part)]) - {"Unknown"} for part in ("train", "validation", "test")}
    for first, second in (("train", "test"), ("validation", "test"), ("train", "validation")):
        shared = sorted(parts[first] & parts[second])
        if shared:
            raise ProtocolError(
                f"{protocol}: fold {fold.name!r} has {len(shared)} speaker(s) in both its {first} and its {second} part:"
                f" {', '.join(shared[:5])}. The corpus' own split leaks; use `--protocol speaker-5fold`."
            )


def _check_count(protocol: str, what: str, names: Sequence[str], *, at_least: int, at_most: int = 10**9) -> None:
    if len(names) < at_least:
        raise ProtocolError(
            f"{protocol} needs at least {at_least} {what}s; this corpus has {len(names)}. Use `--protocol random-5fold`, which is"
            " speaker-dependent, or another corpus."
        )
    if len(names) > at_most:
        raise ProtocolError(
            f"{protocol} would make {len(names)} folds; it is offered up to {at_most} {what}s. Use `--protocol speaker-5fold`."
        )


def _column(protocol: str, name: str, values: Sequence[str] | None) -> NDArray[np.object_]:
    column = np.asarray(values if values is not None else [], dtype=object)
    if len(column) == 0 or not all(column):
        raise ProtocolError(
            f"Protocol {protocol!r} needs the manifest column {name!r} for every utterance; it is empty. Use"
            " `--protocol speaker-5fold`."
        )
    return column


def _check_published(protocol: str, folds: Sequence[Sequence[str]], present: set[str]) -> None:
    absent = sorted({speaker for fold in folds for speaker in fold} - present)
    if absent:
        raise ProtocolError(
            f"{protocol} tests on speakers that this corpus lacks: {', '.join(absent[:8])}. The corpus is incomplete or of another"
            " version; see `hyfuse corpora check`, or use `--protocol speaker-5fold`."
        )
