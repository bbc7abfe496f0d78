"""What heads are trained on: utterances with a label, and the embeddings of them, joined by utterance id.

All cells of one comparison use the same utterances: those whose emotion is among the classes and that every store of the
comparison holds. What was left out is counted and can be shown.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pipelines.corpora.manifest import Manifest
from pipelines.errors import ConfigError, ManifestError, unknown_name
from pipelines.locations import Location
from pipelines.store.embeddings import DONE, EmbeddingStore, open_store, store_path

__all__ = ["Dataset", "Source", "default_classes", "load_dataset", "read_source"]


@dataclass(frozen=True)
class Source:
    """One representation of one encoder, pooled: what one side of a pair is made of.

    Attributes:
        encoder: catalogue name.
        representation: its representation.
        pool: ``mean``, ``std`` or ``mean+std``.
        path: the store.
        family: RLR, CBR or LEX.
        weights_kind: ``pretrained`` or ``random``.
        store_digest: identity of the store.
        features_digest: sha256 of the numbers that are trained on.
        dim: their features.
    """

    encoder: str
    representation: str
    pool: str
    path: Location
    family: str
    weights_kind: str
    store_digest: str
    features_digest: str
    dim: int


@dataclass(frozen=True)
class Dataset:
    """The utterances of a comparison and its sources.

    Attributes:
        corpus: name.
        manifest_digest: of the manifest.
        utterance_ids: n ids, in manifest order.
        speakers: n speakers.
        sessions: n sessions, maybe empty.
        official: n official parts, maybe empty.
        labels: int64 [n], positions in ``classes``.
        classes: emotions, in the order of every confusion matrix.
        sources: encoder name to source.
        left_out: reason to number of utterances that were left out.
    """

    corpus: str
    manifest_digest: str
    utterance_ids: tuple[str, ...]
    speakers: tuple[str, ...]
    sessions: tuple[str, ...]
    official: tuple[str, ...]
    labels: NDArray[np.int64] = field(repr=False)
    classes: tuple[str, ...]
    sources: Mapping[str, Source]
    left_out: Mapping[str, int]

    @property
    def label_names(self) -> list[str]:
        """n class names."""
        return [self.classes[label] for label in self.labels]


def default_classes(manifest: Manifest, card_classes: Sequence[str]) -> tuple[str, ...]:
    """Classes of a card that occur in the manifest, or, without a card, all labels of at least one utterance, sorted.

    Raises:
        ManifestError: fewer than two classes have utterances.
    """
    present = set(manifest.table["emotion"]) - {""}
    classes = tuple(name for name in card_classes if name in present) if card_classes else tuple(sorted(present))
    if len(classes) < 2:
        raise ManifestError(
            f"Corpus {manifest.corpus!r} has utterances of {len(classes)} emotion(s) ({', '.join(classes) or 'none'}); two are"
            " needed. Check the column 'emotion' of the manifest."
        )
    return classes


def load_dataset(
    manifest: Manifest,
    *,
    cache_dir: Location,
    encoders: Sequence[str],
    classes: Sequence[str],
    representations: Mapping[str, str] | None = None,
    pool: str = "mean+std",
    condition: str = "clean",
) -> Dataset:
    """Find the stores of a comparison and the utterances that all of them hold.

    Args:
        manifest: the corpus.
        cache_dir: folder of the stores.
        encoders: names of the encoders.
        classes: emotions to train on.
        representations: encoder to representation, where it is not the encoder's default.
        pool: ``mean``, ``std`` or ``mean+std``.
        condition: of the stores.

    Raises:
        StoreError: a store is absent, unfinished or damaged.
        ProvenanceError: a store belongs to another manifest.
        UnknownNameError: no such class or representation.
        ConfigError: fewer than two classes, or one of them twice.
        ManifestError: of a class, no utterance is left.
    """
    present = set(manifest.table["emotion"]) - {""}
    for name in classes:
        if name not in present:
            raise unknown_name(f"class of corpus {manifest.corpus!r}", name, present)
    if len(set(classes)) < max(2, len(classes)):
        raise ConfigError(f"At least two classes are needed, each once, not {', '.join(classes) or 'none'}.")
    chosen = dict(representations or {})
    for name in chosen:
        if name not in encoders:
            raise unknown_name("encoder in --representation", name, encoders)
    stores = {
        name: open_store(store_path(cache_dir, manifest.corpus, name, condition), manifest_digest=manifest.digest)
        for name in encoders
    }
    keep = manifest.table["emotion"].isin(list(classes)).to_numpy(dtype=bool, copy=True)
    left_out = {}
    if not keep.all():
        left_out["no label among the classes"] = int((~keep).sum())
    for name, store in stores.items():
        failed = _failed(store, manifest)
        if (failed & keep).any():
            left_out[f"failed in {name}"] = int((failed & keep).sum())
        keep &= ~failed
    table = manifest.table[keep]
    if gone := [name for name in classes if name not in set(table["emotion"])]:
        listed = ", ".join(f"{count} {reason}" for reason, count in left_out.items())
        raise ManifestError(
            f"No utterance of {', '.join(gone)} of corpus {manifest.corpus!r} is left to train on; left out: {listed}. Name the"
            f" classes that are left with `--classes`, or see what failed with `hyfuse extract`."
        )
    position = {name: index for index, name in enumerate(classes)}
    ids = tuple(table["utterance_id"])
    return Dataset(
        corpus=manifest.corpus,
        manifest_digest=manifest.digest,
        utterance_ids=ids,
        speakers=tuple(table["speaker"]),
        sessions=tuple(table["session"]),
        official=tuple(table["official_split"]),
        labels=np.array([position[name] for name in table["emotion"]], dtype=np.int64),
        classes=tuple(classes),
        sources={
            name: _source(store, ids, chosen.get(name) or store.provenance.default_representation, pool)
            for name, store in stores.items()
        },
        left_out=left_out,
    )


def _failed(store: EmbeddingStore, manifest: Manifest) -> NDArray[np.bool_]:
    """Which manifest rows the store could not encode."""
    status = dict(zip(store.utterance_ids, store.status.tolist(), strict=True))
    return np.array([status.get(name) != DONE for name in manifest.utterance_ids], dtype=bool)


def _source(store: EmbeddingStore, utterance_ids: Sequence[str], representation: str, pool: str) -> Source:
    features = store.features(utterance_ids, representation=representation, pool=pool)
    made = store.provenance
    return Source(
        encoder=made.encoder,
        representation=representation,
        pool=pool,
        path=store.path,
        family=made.family,
        weights_kind=made.weights_kind,
        store_digest=made.identity_digest(),
        features_digest=hashlib.sha256(np.ascontiguousarray(features).tobytes()).hexdigest(),
        dim=features.shape[1],
    )


def read_source(source: Source, utterance_ids: Sequence[str]) -> NDArray[np.float32]:
    """The numbers of a source, float32 [n, dim]."""
    store = open_store(source.path)
    return store.features(utterance_ids, representation=source.representation, pool=source.pool)
