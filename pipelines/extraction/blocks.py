"""A block: a fixed run of manifest rows, the unit of work, of resume and of distribution."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pipelines.corpora.manifest import Manifest

__all__ = ["Block", "make_blocks"]


@dataclass(frozen=True)
class Block:
    """Rows of a manifest that are encoded and stored together.

    Attributes:
        index: position among the blocks of the store.
        start: first manifest row.
        paths: recordings, in manifest order; none where texts are encoded.
        utterance_ids: their ids.
    """

    index: int
    start: int
    paths: tuple[Path, ...]
    utterance_ids: tuple[str, ...]


def make_blocks(
    manifest: Manifest, *, block_rows: int, indices: Iterable[int], recordings: bool = True
) -> Iterator[Block]:
    """The blocks with the given indices, one after the other: of a large corpus nothing is listed that is not needed yet.

    Args:
        manifest: the corpus; with its root, where recordings are read.
        block_rows: rows per block.
        indices: which blocks.
        recordings: whether blocks name their recordings.

    Raises:
        ManifestError: the manifest has no root.
    """
    for index in indices:
        start = index * block_rows
        rows = range(start, min(start + block_rows, len(manifest)))
        ids = tuple(manifest.table["utterance_id"].iloc[rows.start : rows.stop])
        yield Block(index, start, tuple(manifest.audio_paths(rows)) if recordings else (), ids)
