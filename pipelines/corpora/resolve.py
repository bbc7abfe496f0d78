"""From what the user typed to a manifest: a corpus' name, a table of their own, or what is remembered in the cache."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

from pipelines.corpora.cards import card_names
from pipelines.corpora.layouts import Finding
from pipelines.corpora.manifest import Manifest
from pipelines.corpora.prepare import Audit, Prepared, audit, cached_corpora, prepare, prepare_table, recall, remember
from pipelines.errors import DataRootError, unknown_name
from pipelines.locations import Location, ObjectPath

__all__ = ["Progress", "audit_corpus", "corpus_name", "only_cached_corpus", "recall_corpus", "resolve_corpus"]

Progress = Callable[[int, int], None]
"""Called with (utterances done, in all)."""

_TABLES = {".csv", ".parquet", ".pq"}


def is_table(corpus: str) -> bool:
    """Whether the user named a file rather than a corpus."""
    return Path(corpus).suffix.lower() in _TABLES


def corpus_name(corpus: str) -> str:
    """Name under which a corpus is cached: its own, or the stem of its table."""
    return Path(corpus).stem if is_table(corpus) else corpus


def resolve_corpus(
    corpus: str,
    *,
    cache_dir: Location,
    data_root: Path | None = None,
    progress: Progress | None = None,
) -> Prepared:
    """The manifest of a corpus whose recordings are about to be read; it is remembered in the cache.

    Args:
        corpus: a name, or the path of a CSV/Parquet manifest.
        cache_dir: folder of manifests and stores, or a place on object storage.
        data_root: folder of the corpus; not needed for ``demo``, a table, or a corpus that is remembered.
        progress: called with (utterances done, in all) while the demo corpus is made or headers are read.

    Returns:
        The manifest, and what is odd about the corpus (nothing if it was remembered).

    Raises:
        UnknownNameError: no such corpus.
        DataRootError: the root is missing or holds something else, or is not known; or the corpus has a finding that is an
            error, such as Git LFS pointers or a table's recordings that are not there.
        ManifestError: the table breaks the contract.
        ProvenanceError: stores were made from another manifest of this corpus.
    """
    prepared = _prepare(corpus, cache_dir=cache_dir, data_root=data_root, progress=progress)
    if prepared is not None:
        if not prepared.usable:
            # Nothing is remembered: once the recordings are in order, the manifest is another one.
            wrong = [finding for finding in prepared.findings if finding.level == "error"]
            listed = " ".join(f"{finding.message}{_examples(finding.examples)}" for finding in wrong)
            raise DataRootError(f"Corpus {prepared.manifest.corpus!r} cannot be used as it is. {listed}")
        remember(prepared, cache_dir)
        return prepared
    if corpus not in cached_corpora(cache_dir):
        known = {*card_names(), *cached_corpora(cache_dir)}
        if corpus not in known:
            hint = "For a corpus of your own, give the path of its CSV or Parquet manifest."
            raise unknown_name("corpus", corpus, known, hint=hint)
    manifest = recall(cache_dir, corpus)
    if manifest.root is None or not manifest.root.is_dir():
        raise DataRootError(
            f"The recordings of {corpus!r} were at {manifest.root}, which is not there any more. Name the folder with"
            " `--data-root DIR`."
        )
    return Prepared(manifest, ())


def _examples(names: tuple[str, ...], most: int = 3) -> str:
    return f" ({', '.join(names[:most])}{', …' if len(names) > most else ''})" if names else ""


def audit_corpus(
    corpus: str, *, cache_dir: Location, data_root: Path | None = None, progress: Progress | None = None
) -> Audit:
    """Decode every recording of a corpus and say what is odd; nothing is remembered.

    Args and errors are those of :func:`resolve_corpus`.
    """
    prepared = _prepare(corpus, cache_dir=cache_dir, data_root=data_root, progress=progress)
    if prepared is None:
        prepared = resolve_corpus(corpus, cache_dir=cache_dir)
    return audit(prepared, progress=progress)


def _prepare(corpus: str, *, cache_dir: Location, data_root: Path | None, progress: Progress | None) -> Prepared | None:
    """Read a corpus afresh; None if only the cache can know it."""
    if is_table(corpus):
        return prepare_table(Path(corpus), data_root, progress=progress)
    if corpus == "demo" and data_root is None:
        from pipelines.corpora.demo import generate_demo

        root = _demo_folder(cache_dir)
        generate_demo(root, progress=progress)
        prepared = prepare("demo", root)
        if isinstance(cache_dir, ObjectPath):
            note = Finding("note", f"Recordings cannot lie on object storage: those of the demo corpus are in {root}.")
            prepared = dataclasses.replace(prepared, findings=(*prepared.findings, note))
        return prepared
    return prepare(corpus, data_root, progress=progress) if data_root is not None else None


def _demo_folder(cache_dir: Location) -> Path:
    """Where the recordings of the demo corpus are made: in the cache, or in the user's own where the cache is elsewhere."""
    if isinstance(cache_dir, ObjectPath):
        own = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        return Path(own) / "hyfuse" / "demo"
    return cache_dir / "demo" / "recordings"


def only_cached_corpus(cache_dir: Location) -> str:
    """The corpus that is meant when none is named: the only one that is cached.

    Raises:
        DataRootError: none is cached, or several.
    """
    names = cached_corpora(cache_dir)
    if len(names) == 1:
        return names[0]
    if not names:
        raise DataRootError(
            f"No corpus is cached in {cache_dir}. Extract one first, for instance"
            " `hyfuse extract --model wavlm --corpus emodb --data-root DIR`."
        )
    raise DataRootError(f"Several corpora are cached in {cache_dir}: {', '.join(names)}. Say which with --corpus.")


def recall_corpus(corpus: str | None, *, cache_dir: Location) -> Manifest:
    """The remembered manifest of a corpus whose stores are about to be read; recordings are not needed.

    Raises:
        UnknownNameError: no such corpus is cached or has a card.
        DataRootError: none or several are cached and none was named, or the named one is not cached.
    """
    if corpus is None:
        return recall(cache_dir, only_cached_corpus(cache_dir))
    name = corpus_name(corpus)
    cached = cached_corpora(cache_dir)
    if name not in cached and name not in card_names():
        raise unknown_name("corpus", name, {*card_names(), *cached}, hint="See `hyfuse corpora list`.")
    return recall(cache_dir, name)
