"""A block: a fixed run of manifest rows, the unit of work, of resume and of distribution."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipelines.corpora.manifest import Manifest

__all__ = ["Block", "make_blocks"]


@dataclass(frozen=True)
class Block:
    """Rows of a manifest that are encoded and stored together.

    Attributes:
        index: position among the blocks of the store.
        paths: recordings, in manifest order.
        start: first manifest row.
    """

    index: int
    start: int
    paths: tuple[Path, ...]


def make_blocks(manifest: Manifest, *, block_rows: int, indices: Sequence[int]) -> list[Block]:
    """The blocks with the given indices."""
    paths = manifest.audio_paths()
    return [
        Block(index, index * block_rows, tuple(paths[index * block_rows : (index + 1) * block_rows]))
        for index in indices
    ]
