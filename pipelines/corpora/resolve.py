"""From what the user typed to a manifest: a corpus' name, a table of their own, or what is remembered in the cache."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipelines.corpora.audformat_folder import HEADER, is_audformat, read_audformat
from pipelines.corpora.audiofolder import read_audiofolder
from pipelines.corpora.cards import card_names, read_card
from pipelines.corpora.layouts import Finding, layout_module
from pipelines.corpora.manifest import Manifest, manifest_from_rows
from pipelines.corpora.prepare import (
    Audit,
    Prepared,
    audit,
    cached_corpora,
    prepare,
    prepare_manifest,
    prepare_table,
    recall,
    remember,
)
from pipelines.errors import ConfigError, DataRootError, unknown_name
from pipelines.locations import Location, ObjectPath

__all__ = [
    "Columns",
    "Progress",
    "audit_corpus",
    "corpus_name",
    "is_folder",
    "is_table",
    "only_cached_corpus",
    "recall_corpus",
    "resolve_corpus",
]

Progress = Callable[[int, int], None]
"""Called with (utterances done, in all)."""

_TABLES = {".csv", ".parquet", ".pq"}


@dataclass(frozen=True)
class Columns:
    """Which tables and columns of an audformat database, or of the metadata of an audiofolder, to read.

    Attributes:
        tables: of a database, to take the emotion from; chosen by itself unless given.
        emotion: column of the emotion; found by its name unless given.
        speaker: likewise, of the speaker.
    """

    tables: tuple[str, ...] = ()
    emotion: str = ""
    speaker: str = ""

    def __bool__(self) -> bool:
        return bool(self.tables or self.emotion or self.speaker)


def is_table(corpus: str) -> bool:
    """Whether the user named a file rather than a corpus."""
    return Path(corpus).suffix.lower() in _TABLES


def is_folder(corpus: str) -> bool:
    """Whether the user named a folder rather than a corpus: a path, or a folder here that no card is about."""
    if is_table(corpus) and not Path(corpus).is_dir():
        return False
    return "/" in corpus or corpus in {".", ".."} or (corpus not in card_names() and Path(corpus).is_dir())


def corpus_name(corpus: str) -> str:
    """Name under which a corpus is cached: its own, the stem of its table, or the name of its folder."""
    if is_folder(corpus):
        return Path(os.path.abspath(corpus)).name
    return Path(corpus).stem if is_table(corpus) else corpus


def resolve_corpus(
    corpus: str,
    *,
    cache_dir: Location,
    data_root: Path | None = None,
    columns: Columns | None = None,
    progress: Progress | None = None,
) -> Prepared:
    """The manifest of a corpus whose recordings are about to be read; it is remembered in the cache.

    Args:
        corpus: a name, the path of a CSV/Parquet manifest, or a folder: an audformat database, an audiofolder, an official corpus.
        cache_dir: folder of manifests and stores, or a place on object storage.
        data_root: folder of the corpus; not needed for ``demo``, a table, a folder, or a corpus that is remembered.
        columns: what to read of a database or audiofolder.
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
    prepared = _prepare(corpus, cache_dir=cache_dir, data_root=data_root, columns=columns, progress=progress)
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
    prepared = _prepare(corpus, cache_dir=cache_dir, data_root=data_root, columns=None, progress=progress)
    if prepared is None:
        prepared = resolve_corpus(corpus, cache_dir=cache_dir)
    return audit(prepared, progress=progress)


def _prepare(
    corpus: str, *, cache_dir: Location, data_root: Path | None, columns: Columns | None, progress: Progress | None
) -> Prepared | None:
    """Read a corpus afresh; None if only the cache can know it."""
    folder = _own_folder(corpus, cache_dir, data_root)
    if folder is not None:
        return _prepare_folder(corpus_name(corpus), folder, columns or Columns(), progress)
    if columns:
        raise ConfigError(
            f"--table, --emotion and --speaker choose columns of an audformat database or an audiofolder; {corpus!r} is neither."
        )
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


def _own_folder(corpus: str, cache_dir: Location, data_root: Path | None) -> Path | None:
    """Folder that is read by its own layout rather than by a card's; None if the corpus is not given by such a folder."""
    if is_folder(corpus):
        if corpus in cached_corpora(cache_dir) and data_root is None:
            return None  # a name that is remembered, and by chance that of a folder here
        if data_root is not None:
            raise ConfigError(
                f"--corpus {corpus} is a folder; leave --data-root {data_root} out, or give the corpus a name."
            )
        return Path(corpus)
    if data_root is not None and not is_table(corpus) and corpus not in card_names() and data_root.is_dir():
        return data_root
    return None


def _prepare_folder(name: str, folder: Path, columns: Columns, progress: Progress | None) -> Prepared:
    """Read a folder as the official corpus that it is, as an audformat database, or as an audiofolder."""
    if not folder.is_dir():
        raise DataRootError(
            f"There is no folder {folder}. Give the folder of an audformat database or of recordings, the path of a CSV/Parquet"
            " manifest, or the name of a corpus (`hyfuse corpora list`)."
        )
    if name in card_names() and not columns and layout_module(read_card(name).layout).recognise(folder):
        return prepare(name, folder, progress=progress)
    if is_audformat(folder):
        listing = read_audformat(
            folder, tables=columns.tables, emotion=columns.emotion or "emotion", speaker=columns.speaker
        )
    else:
        if columns.tables:
            raise ConfigError(f"--table chooses a table of an audformat database; {folder} has no {HEADER}.")
        official = [card for card in card_names() if layout_module(read_card(card).layout).recognise(folder)]
        if official and not columns:
            raise DataRootError(
                f"{folder} looks like {official[0]}. Read it as that: `--corpus {official[0]} --data-root {folder}`."
            )
        listing = read_audiofolder(folder, emotion=columns.emotion, speaker=columns.speaker)
    manifest = manifest_from_rows(name, listing.rows, root=folder, origin=str(folder))
    prepared = prepare_manifest(manifest, str(folder), progress=progress)
    return dataclasses.replace(prepared, findings=(*listing.findings, *prepared.findings))


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
