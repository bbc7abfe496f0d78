"""The folds of a data set: those of its target, and for dimensions the folds that emotion would have.

Protocols divide speakers so that classes are balanced (``corpora.protocols``); numbers have no classes. Heads for dimensions get
the folds that heads for emotion get on the same corpus, so that the two can be compared: every speaker is in the same part of
every fold, whether all utterances have both labels or not. Where both targets have the same utterances, the folds are the same
down to their digest. Where there is nothing to take over (a corpus without emotions, speakers without any; the corpus' own split or
folds by utterance, where the utterances are not the same), the values themselves are stratified: by thirds of the first dimension
that the corpus has (arousal, mostly).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from pipelines.corpora.cards import Card
from pipelines.corpora.manifest import Manifest
from pipelines.corpora.protocols import Fold, Split, make_split
from pipelines.errors import ManifestError, ProtocolError
from pipelines.training.data import Dataset, default_classes, default_dimensions

__all__ = ["make_folds", "stratified_by", "value_strata"]

_THIRDS = ("low", "medium", "high")


def make_folds(manifest: Manifest, dataset: Dataset, protocol: str, *, card: Card | None) -> Split:
    """Divide the utterances of a data set.

    Args:
        manifest: its corpus.
        dataset: the utterances and the target.
        protocol: see :func:`pipelines.corpora.protocols.make_split`.
        card: of the corpus, with its own protocols and classes; None without.

    Raises:
        UnknownNameError: no such protocol.
        ProtocolError: the corpus does not allow it.
    """
    test_speakers = card.test_speakers if card else None
    whole = {"sessions": dataset.sessions, "official": dataset.official, "test_speakers": test_speakers}
    own = {"utterance_ids": dataset.utterance_ids, "speakers": dataset.speakers, **whole}
    if dataset.target == "emotion":
        return make_split(protocol, labels=dataset.label_names, **own)  # type: ignore[arg-type]
    taken = _as_for_emotion(manifest, dataset, protocol, card)
    if taken is not None:
        return taken
    return make_split(protocol, labels=value_strata(manifest, dataset), **own)  # type: ignore[arg-type]


def stratified_by(manifest: Manifest, dataset: Dataset, protocol: str, *, card: Card | None) -> str:
    """What is balanced between the folds of :func:`make_folds`, in words."""
    if dataset.target == "emotion":
        return "emotion"
    if _as_for_emotion(manifest, dataset, protocol, card) is not None:
        return "emotion: every speaker is where --target emotion has it"
    return f"{default_dimensions(manifest)[0]} (low, medium, high)"


def value_strata(manifest: Manifest, dataset: Dataset) -> list[str]:
    """Low, medium or high for every utterance of a data set: thirds of the first dimension that the corpus has.

    Args:
        manifest: its corpus.
        dataset: the utterances.
    """
    column = manifest.table.set_index("utterance_id")[default_dimensions(manifest)[0]]
    values = column.loc[list(dataset.utterance_ids)].to_numpy(dtype=np.float64)
    bounds = np.nanquantile(values, [1 / 3, 2 / 3])
    thirds = np.where(np.isnan(values), 1, np.searchsorted(bounds, values, side="left"))
    if len(set(thirds)) < 2:  # more than two thirds have the same value
        thirds = (values > np.nanmin(values)).astype(np.int64)
    return [_THIRDS[third] for third in thirds]


def _as_for_emotion(manifest: Manifest, dataset: Dataset, protocol: str, card: Card | None) -> Split | None:
    """The folds of the target emotion on the same stores, followed by speaker; None where that is not possible."""
    try:
        classes = default_classes(manifest, card.classes if card else ())
    except ManifestError:
        return None
    table = manifest.table
    table = table[table["emotion"].isin(list(classes)) & ~table["utterance_id"].isin(list(dataset.failed))]
    try:
        split = make_split(
            protocol,
            utterance_ids=list(table["utterance_id"]),
            speakers=list(table["speaker"]),
            labels=list(table["emotion"]),
            sessions=list(table["session"]),
            official=list(table["official_split"]),
            test_speakers=card.test_speakers if card else None,
        )
    except ProtocolError:  # of emotions, which need not concern dimensions
        return None
    if tuple(table["utterance_id"]) == dataset.utterance_ids:
        return split
    speakers = table["speaker"].to_numpy(dtype=object)
    if not split.speaker_independent or protocol.startswith("official") or set(dataset.speakers) - set(speakers):
        return None
    who = np.asarray(dataset.speakers, dtype=object)
    folds = []
    for fold in split.folds:
        parts = [np.isin(who, speakers[rows]) for rows in (fold.train, fold.validation, fold.test)]
        if not all(part.any() for part in parts):
            return None
        folds.append(Fold(fold.name, *(np.flatnonzero(part) for part in parts)))
    return Split(protocol, True, tuple(folds), _digest(protocol, folds, dataset.utterance_ids))


def _digest(protocol: str, folds: Sequence[Fold], utterance_ids: Sequence[str]) -> str:
    """As ``corpora.protocols`` digests: sha256 over the ids of every part of every fold."""
    digest = hashlib.sha256(protocol.encode())
    for fold in folds:
        for part in ("train", "validation", "test"):
            digest.update(f"\n{fold.name} {part}\n".encode())
            digest.update("\n".join(sorted(utterance_ids[row] for row in getattr(fold, part))).encode())
    return digest.hexdigest()
