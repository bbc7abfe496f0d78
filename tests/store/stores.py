"""Small stores for tests: made-up provenance and numbers, and the bytes of a whole folder."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.store.embeddings import BlockResult, StoreWriter, open_writer, store_path
from pipelines.store.provenance import Provenance

__all__ = ["BLOCK_ROWS", "IDS", "block_result", "filled", "make_provenance", "toy_path", "tree_digest", "write_rest"]

BLOCK_ROWS = 4
IDS = [f"utt{number:02d}" for number in range(10)]  # two whole blocks and half a one


def make_provenance(**changes: Any) -> Provenance:
    values: dict[str, Any] = {
        "corpus": "toy",
        "manifest_digest": "a1" * 32,
        "encoder": "enc",
        "family": "RLR",
        "condition": "clean",
        "weights_kind": "random",
        "weights_source": "random",
        "weights_revision": "",
        "weights_digest": "b2" * 32,
        "weights_licence": "none",
        "representations": ("first", "second"),
        "default_representation": "second",
        "dim": 3,
        "sample_rate_hz": 16000,
        "resampler": "soxr-VHQ",
        "precision": "float32",
        "device": "cpu",
        "versions": {"torch": "2.13", "numpy": "2.4"},
    }
    return Provenance(**{**values, **changes})


def toy_path(cache_dir: Path) -> Path:
    return store_path(cache_dir, "toy", "enc")


def block_result(rows: range, *, failed: Collection[int] = (), frames: int = 5, seed: int = 0) -> BlockResult:
    """Numbers that depend on the manifest row alone."""
    count = len(rows)
    mean, std = np.full((count, 2, 3), np.nan, np.float32), np.full((count, 2, 3), np.nan, np.float32)
    num_frames, duration_s = np.zeros(count, np.int32), np.full(count, np.nan)
    reasons = [""] * count
    for position, row in enumerate(rows):
        if row in failed:
            reasons[position] = f"row {row} is broken – wirklich"
            continue
        numbers = np.random.default_rng([seed, row]).standard_normal((2, 2, 3))
        mean[position], std[position] = numbers[0], np.abs(numbers[1]) if frames > 1 else 0.0
        num_frames[position], duration_s[position] = frames, 1.0 + row
    return BlockResult(mean, std, num_frames, duration_s, reasons)


def write_rest(writer: StoreWriter, **options: Any) -> None:
    for block in writer.blocks_to_do():
        writer.write_block(block, block_result(writer.rows_of(block), **options))


def filled(cache_dir: Path, **options: Any) -> Path:
    """A finished store."""
    path = toy_path(cache_dir)
    with open_writer(path, provenance=make_provenance(), utterance_ids=IDS, block_rows=BLOCK_ROWS) as writer:
        write_rest(writer, **options)
    return path


def tree_digest(folder: Path) -> dict[str, str]:
    """Every file below a folder, hidden ones too, with the sha256 of its content."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
