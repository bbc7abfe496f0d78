"""What heads are trained on: utterances with a label, and the embeddings of them, joined by utterance id.

All cells of one comparison use the same utterances: those whose emotion is among the classes (or which have a value of every
dimension that is asked for), and that every store of the comparison holds. What was left out is counted and can be shown.

The target is either ``emotion``, classes, or ``dimensions``: arousal, valence and dominance, all or some of them, on the scale of
the corpus. ("Activation" is another word for arousal and is understood.) Where a corpus has the votes of its raters (column
``emotion_votes``, such as ``anger:3;neutral:1``), classes may be learned from the shares of the votes (*soft labels*); they are
tested on the labels all the same.

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
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipelines.corpora.manifest import Manifest
from pipelines.corpora.raters import VOTES, soft_labels
from pipelines.errors import ConfigError, ManifestError, unknown_name
from pipelines.locations import Location
from pipelines.store.embeddings import DONE, EmbeddingStore, open_store, store_path

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "DIMENSIONS",
    "LAST",
    "TARGETS",
    "WEIGHTED",
    "Dataset",
    "Source",
    "canonical_dimensions",
    "default_classes",
    "default_dimensions",
    "load_dataset",
    "read_source",
    "source_shape",
]

TARGETS: tuple[str, ...] = ("emotion", "dimensions")
"""What heads learn: classes, or numbers."""
DIMENSIONS: tuple[str, ...] = ("arousal", "valence", "dominance")
"""In the order of every table; the columns of the manifest."""

LAST = "last"
"""In place of a representation: the highest layer."""
WEIGHTED = "weighted"
"""In place of a representation: all layers, weighted by each head."""

_ALIASES = {"activation": "arousal"}
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
        blocks: the same representation under several conditions, whose rows lie below each other
            (:mod:`pipelines.training.conditions`); ``path`` and ``store_digest`` are then those of the first. Empty for one store.
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
    blocks: tuple[Source, ...] = ()


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
        labels: int64 [n], positions in ``classes``; -1 where the target is dimensions.
        classes: emotions, in the order of every confusion matrix; empty where the target is dimensions.
        sources: encoder name to source.
        left_out: reason to number of utterances that were left out.
        target: ``emotion`` or ``dimensions``.
        dimensions: their names; empty where the target is emotion.
        values: float32 [n, K], of the dimensions.
        votes: float32 [n, C], shares of the raters' votes among the classes, where they are to be learned; None otherwise.
        voteless: utterances without a vote among the classes, whose label stands in for the votes.
        failed: ids that some store could not encode.
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
    target: str = "emotion"
    dimensions: tuple[str, ...] = ()
    values: NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 0), np.float32), repr=False)
    votes: NDArray[np.float32] | None = field(default=None, repr=False)
    voteless: int = 0
    failed: frozenset[str] = field(default=frozenset(), repr=False)

    @property
    def label_names(self) -> list[str]:
        """n class names; of the target emotion."""
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


def canonical_dimensions(names: Sequence[str]) -> tuple[str, ...]:
    """Dimensions by their names in the manifest and in their usual order; ``activation`` is arousal.

    Raises:
        UnknownNameError: no such dimension.
    """
    found = [_ALIASES.get(name.strip().lower(), name.strip().lower()) for name in names]
    for name, given in zip(found, names, strict=True):
        if name not in DIMENSIONS:
            raise unknown_name("dimension", given, (*DIMENSIONS, *_ALIASES))
    return tuple(name for name in DIMENSIONS if name in found)


def default_dimensions(manifest: Manifest) -> tuple[str, ...]:
    """Dimensions that the manifest has values of.

    Raises:
        ManifestError: there is none.
    """
    found = tuple(name for name in DIMENSIONS if manifest.table[name].notna().any())
    if not found:
        raise ManifestError(
            f"Corpus {manifest.corpus!r} has no values of {', '.join(DIMENSIONS[:-1])} or {DIMENSIONS[-1]}, so there are no"
            " dimensions to learn. Use `--target emotion`, or fill these columns of the manifest."
        )
    return found


def load_dataset(
    manifest: Manifest,
    *,
    cache_dir: Location,
    encoders: Sequence[str],
    classes: Sequence[str] = (),
    dimensions: Sequence[str] = (),
    soft: bool = False,
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
        dimensions: what to train on in place of classes.
        soft: whether classes are to be learned from the votes of the raters.
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
        ConfigError: fewer than two classes, or one of them twice; classes and dimensions, or votes of dimensions; layers asked
            of encoders that have none.
        ManifestError: of a class, no utterance is left; the corpus has no value of a dimension, or a single one; no votes.
    """
    wanted = canonical_dimensions(dimensions)
    if wanted:
        _check_dimensions(manifest, wanted, classes, soft)
    else:
        _check_classes(manifest, classes)
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
    if wanted:
        keep = manifest.table[list(wanted)].notna().all(axis=1).to_numpy(dtype=bool, copy=True)
    else:
        keep = manifest.table["emotion"].isin(list(classes)).to_numpy(dtype=bool, copy=True)
    left_out = {}
    if not keep.all():
        missing = f"no value of {' or '.join(wanted)}" if wanted else "no label among the classes"
        left_out[missing] = int((~keep).sum())
    broken = np.zeros(len(keep), dtype=bool)
    for name, store in stores.items():
        failed = _failed(store, manifest)
        if (failed & keep).any():
            left_out[f"failed in {name}"] = int((failed & keep).sum())
        keep &= ~failed
        broken |= failed
    table = manifest.table[keep]
    values = np.array(table[list(wanted)], dtype=np.float32)
    if wanted:
        _check_values(manifest, wanted, values, left_out)
    elif gone := [name for name in classes if name not in set(table["emotion"])]:
        listed = ", ".join(f"{count} {reason}" for reason, count in left_out.items())
        raise ManifestError(
            f"No utterance of {', '.join(gone)} of corpus {manifest.corpus!r} is left to train on; left out: {listed}. Name the"
            f" classes that are left with `--classes`, or see what failed with `hyfuse extract`."
        )
    position = {name: index for index, name in enumerate(classes)}
    labels = np.array([position.get(name, -1) for name in table["emotion"]], dtype=np.int64)
    votes, voteless = _votes(manifest, table, labels, classes) if soft else (None, 0)
    ids = tuple(table["utterance_id"])
    return Dataset(
        corpus=manifest.corpus,
        manifest_digest=manifest.digest,
        utterance_ids=ids,
        speakers=tuple(table["speaker"]),
        sessions=tuple(table["session"]),
        official=tuple(table["official_split"]),
        labels=np.full(len(ids), -1, dtype=np.int64) if wanted else labels,
        classes=tuple(classes),
        sources={name: _source(store, ids, asked[name], pool) for name, store in stores.items()},
        left_out=left_out,
        target="dimensions" if wanted else "emotion",
        dimensions=wanted,
        values=values,
        votes=votes,
        voteless=voteless,
        failed=frozenset(manifest.table["utterance_id"][broken]),
    )


def _check_classes(manifest: Manifest, classes: Sequence[str]) -> None:
    present = set(manifest.table["emotion"]) - {""}
    for name in classes:
        if name not in present:
            raise unknown_name(f"class of corpus {manifest.corpus!r}", name, present)
    if len(set(classes)) < max(2, len(classes)):
        raise ConfigError(f"At least two classes are needed, each once, not {', '.join(classes) or 'none'}.")


def _check_dimensions(manifest: Manifest, dimensions: Sequence[str], classes: Sequence[str], soft: bool) -> None:
    if classes:
        raise ConfigError(
            f"--classes {','.join(classes)} means nothing to --target dimensions, which has no classes. Leave it out, or use"
            " --target emotion."
        )
    if soft:
        raise ConfigError("--labels soft means nothing to --target dimensions. Leave it out, or use --target emotion.")
    for name in dimensions:
        if not manifest.table[name].notna().any():
            there = default_dimensions(manifest)
            raise ManifestError(
                f"Corpus {manifest.corpus!r} has no values of {name}; it has {', '.join(there)}. Choose among them:"
                f" `--dimensions {','.join(there)}`."
            )


def _check_values(
    manifest: Manifest, dimensions: Sequence[str], values: NDArray[np.float32], left_out: Mapping[str, int]
) -> None:
    listed = ", ".join(f"{count} {reason}" for reason, count in left_out.items()) or "none"
    if not len(values):
        raise ManifestError(
            f"No utterance of corpus {manifest.corpus!r} with {' and '.join(dimensions)} is left to train on; left out: {listed}."
            " Ask for fewer --dimensions, or see what failed with `hyfuse extract`."
        )
    for name, column in zip(dimensions, values.T, strict=True):
        if column.min() == column.max():
            raise ManifestError(
                f"All {len(column)} utterances of corpus {manifest.corpus!r} have the same {name}, {column[0]:g}: its concordance"
                f" is not defined. Leave {name} out with `--dimensions`, or check this column of the manifest."
            )


def _votes(
    manifest: Manifest, table: pd.DataFrame, labels: NDArray[np.int64], classes: Sequence[str]
) -> tuple[NDArray[np.float32], int]:
    """Shares of the votes among the classes, [n, C], and for how many utterances the label stands in.

    Raises:
        ManifestError: the corpus has no votes.
    """
    column = list(table[VOTES]) if VOTES in table.columns else []
    if not any(column):
        raise ManifestError(
            f"Corpus {manifest.corpus!r} has no votes of raters, so --labels soft cannot be learned. Use --labels hard, or give the"
            f" manifest a column {VOTES!r} with entries such as anger:3;neutral:1."
        )
    shares = soft_labels(column, classes)
    without = np.isnan(shares[:, 0])
    shares[without] = np.eye(len(classes))[labels[without]]
    return shares.astype(np.float32), int(without.sum())


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
        utterance_ids: n ids; of a source in blocks, those of every block.
        out: where to put them, for instance a memory-mapped file; a new array unless given.

    Returns:
        float32 [n, dim], or [n, R, dim] for ``weighted``.
    """
    found = np.empty(source_shape(source, len(utterance_ids)), np.float32) if out is None else out
    if source.blocks:
        _read_blocks(source, utterance_ids, found)
        return found
    store = open_store(source.path)
    for index, name in enumerate(source.layers or (source.representation,)):
        own = found[:, index] if source.layers else found
        for start, features in _features(store, utterance_ids, name, source.pool):
            own[start : start + len(features)] = features
    return found


def _read_blocks(source: Source, utterance_ids: Sequence[str], out: NDArray[np.float32]) -> None:
    """Every block of a source; a store that comes several times (text, which no noise changes) is read once."""
    rows = len(utterance_ids) // len(source.blocks)
    first: dict[str, int] = {}
    for place, block in enumerate(source.blocks):
        at = slice(place * rows, (place + 1) * rows)
        known = first.setdefault(block.features_digest, place)
        if known < place:
            out[at] = out[known * rows : (known + 1) * rows]
        else:
            read_source(block, utterance_ids[at], out=out[at])


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
