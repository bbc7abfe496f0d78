"""What heads are trained on: utterances with a label, and the embeddings of them, joined by utterance id.

All cells of one comparison use the same utterances: those whose emotion is among the classes and that every store of the
comparison holds. What was left out is counted and can be shown.

Of an encoder with layers (``layer_00``, ``layer_01``, …), ``last``, a number, or ``weighted`` may be asked for in place of a
representation's name. ``weighted`` is all of its layers, [n, R, D], whose weighted sum each head learns
(:mod:`pipelines.training.layers`).

Memory: of a store, only the representations asked for are read. A source is 4 n D bytes (with ``mean+std``, D is twice the
store's), a weighted one R times as much: 0.6 GB for 200,000 utterances of 768 numbers, 42 MB for 13 layers of 2 x 768 numbers
of Emo-DB's 535 utterances and 16 GB for those of 200,000.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pipelines.corpora.manifest import Manifest
from pipelines.errors import ConfigError, ManifestError, unknown_name
from pipelines.locations import Location
from pipelines.store.embeddings import DONE, EmbeddingStore, open_store, store_path

__all__ = ["LAST", "WEIGHTED", "Dataset", "Source", "default_classes", "load_dataset", "read_source", "source_shape"]

LAST = "last"
"""In place of a representation: the highest layer."""
WEIGHTED = "weighted"
"""In place of a representation: all layers, weighted by each head."""

_AT_ONCE = 8192  # utterances; reading that many takes up to 0.5 GB, and going through the ids of the store every time


@dataclass(frozen=True)
class Source:
    """One representation of one encoder, pooled: what one side of a pair is made of.

    Attributes:
        encoder: catalogue name.
        representation: its representation, or ``weighted``.
        pool: ``mean``, ``std`` or ``mean+std``.
        path: the store.
        family: RLR, CBR or LEX.
        weights_kind: ``pretrained`` or ``random``.
        store_digest: identity of the store.
        features_digest: sha256 of the numbers that are trained on.
        dim: their features.
        layers: the representations that ``weighted`` stands for, in the order of the R axis; empty otherwise.
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
    layers: tuple[str, ...] = ()


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
    layer: str = "",
    pool: str = "mean+std",
    condition: str = "clean",
) -> Dataset:
    """Find the stores of a comparison and the utterances that all of them hold.

    Args:
        manifest: the corpus.
        cache_dir: folder of the stores.
        encoders: names of the encoders.
        classes: emotions to train on.
        representations: encoder to representation, where it is not the encoder's default; of an encoder with layers also
            ``last``, ``weighted`` or the number of a layer.
        layer: ``last``, ``weighted`` or the number of a layer, for all encoders that have layers and are not among
            ``representations``; empty for their defaults.
        pool: ``mean``, ``std`` or ``mean+std``.
        condition: of the stores.

    Raises:
        StoreError: a store is absent, unfinished or damaged.
        ProvenanceError: a store belongs to another manifest.
        UnknownNameError: no such class, representation or layer.
        ConfigError: fewer than two classes, or one of them twice; layers asked of encoders that have none.
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
    asked = {name: _representation(store, chosen.get(name, ""), layer) for name, store in stores.items()}
    if layer and not any(_layers(store) for store in stores.values()):
        raise ConfigError(
            f"--layer {layer} was asked for, but of {', '.join(encoders)} none has layers. Leave it out, or name a representation"
            " with --representation."
        )
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
        sources={name: _source(store, ids, asked[name], pool) for name, store in stores.items()},
        left_out=left_out,
    )


def _failed(store: EmbeddingStore, manifest: Manifest) -> NDArray[np.bool_]:
    """Which manifest rows the store could not encode."""
    status = dict(zip(store.utterance_ids, store.status.tolist(), strict=True))
    return np.array([status.get(name) != DONE for name in manifest.utterance_ids], dtype=bool)


def _layers(store: EmbeddingStore) -> tuple[str, ...]:
    """The layers among a store's representations."""
    return tuple(name for name in store.provenance.representations if re.fullmatch(r"layer_\d+", name))


def _representation(store: EmbeddingStore, own: str, layer: str) -> str:
    """What to read of a store: its representation, or ``weighted``.

    Args:
        store: which one.
        own: what was asked of this encoder; empty for nothing.
        layer: what was asked of every encoder that has layers; empty for nothing.
    """
    layers, made = _layers(store), store.provenance
    wanted = own or (layer if layers else "") or made.default_representation
    if wanted in made.representations:
        return wanted
    names = {int(name.removeprefix("layer_")): name for name in layers}
    if wanted == LAST and layers:
        return layers[-1]
    if wanted == WEIGHTED and layers:
        return WEIGHTED
    if wanted.isdecimal() and int(wanted) in names:
        return names[int(wanted)]
    raise unknown_name(
        f"representation of {made.encoder}",
        wanted,
        (*made.representations, *((LAST, WEIGHTED) if layers else ())),
        hint="The number of a layer will do, too." if layers else "",
    )


def _source(store: EmbeddingStore, utterance_ids: Sequence[str], representation: str, pool: str) -> Source:
    made = store.provenance
    layers = _layers(store) if representation == WEIGHTED else ()
    digest, dim = hashlib.sha256(), 0
    for name in layers or (representation,):
        for _, features in _features(store, utterance_ids, name, pool):
            digest.update(np.ascontiguousarray(features).data)
            dim = features.shape[1]
    return Source(
        encoder=made.encoder,
        representation=representation,
        pool=pool,
        path=store.path,
        family=made.family,
        weights_kind=made.weights_kind,
        store_digest=made.identity_digest(),
        features_digest=digest.hexdigest(),
        dim=dim,
        layers=layers,
    )


def read_source(
    source: Source, utterance_ids: Sequence[str], *, out: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    """The numbers of a source.

    Args:
        source: which one.
        utterance_ids: n ids.
        out: where to put them, for instance a memory-mapped file; a new array unless given.

    Returns:
        float32 [n, dim], or [n, R, dim] for ``weighted``.
    """
    store = open_store(source.path)
    found = np.empty(source_shape(source, len(utterance_ids)), np.float32) if out is None else out
    for index, name in enumerate(source.layers or (source.representation,)):
        own = found[:, index] if source.layers else found
        for start, features in _features(store, utterance_ids, name, source.pool):
            own[start : start + len(features)] = features
    return found


def _features(
    store: EmbeddingStore, utterance_ids: Sequence[str], representation: str, pool: str
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Features of some utterances at a time, with the position of the first: reading a matrix whole needs it three times."""
    for start in range(0, len(utterance_ids), _AT_ONCE):
        chosen = utterance_ids[start : start + _AT_ONCE]
        yield start, store.features(chosen, representation=representation, pool=pool)


def source_shape(source: Source, utterances: int) -> tuple[int, ...]:
    """Shape of what :func:`read_source` gives."""
    return (utterances, len(source.layers), source.dim) if source.layers else (utterances, source.dim)
