"""Small stores for tests: made-up provenance and numbers, and the bytes of a whole folder."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.locations import Location
from pipelines.store.embeddings import BlockResult, FrameSpec, StoreWriter, open_writer, store_path
from pipelines.store.provenance import Provenance

__all__ = [
    "BLOCK_ROWS",
    "IDS",
    "block_result",
    "filled",
    "frames_of",
    "make_provenance",
    "open_toy",
    "toy_path",
    "tree_digest",
    "with_frames",
    "write_rest",
]

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
    path = store_path(cache_dir, "toy", "enc")
    assert isinstance(path, Path)
    return path


def open_toy(path: Location, **options: Any) -> AbstractContextManager[StoreWriter]:
    values = {"provenance": make_provenance(), "utterance_ids": IDS, "block_rows": BLOCK_ROWS, **options}
    return open_writer(path, **values)


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


def frames_of(row: int, representation: str, *, frames: int, seed: int = 0) -> NDArray[np.float32]:
    """Frames [T, D] that depend on the manifest row alone."""
    generator = np.random.default_rng([seed, row, len(representation)])
    return generator.standard_normal((frames, 3)).astype(np.float32)


def with_frames(result: BlockResult, rows: range, spec: FrameSpec | None, *, seed: int = 0) -> BlockResult:
    """A result whose rows have 1, 2, 3 … frames, and those frames, if the store keeps some."""
    if spec is None:
        return result
    counts = [0 if reason else 1 + row % 7 for row, reason in zip(rows, result.failure, strict=True)]
    frames = {
        name: [
            frames_of(row, name, frames=count, seed=seed).astype(spec.dtype)
            for row, count in zip(rows, counts, strict=True)
        ]
        for name in spec.representations
    }
    return replace(result, num_frames=np.array(counts, np.int32), frames=frames)


def write_rest(writer: StoreWriter, **options: Any) -> None:
    for block in writer.blocks_to_do():
        rows = writer.rows_of(block)
        result = block_result(rows, **options)
        writer.write_block(block, with_frames(result, rows, writer.store.frame_spec, seed=options.get("seed", 0)))


def filled(cache_dir: Path, *, spec: FrameSpec | None = None, **options: Any) -> Path:
    """A finished store."""
    path = toy_path(cache_dir)
    with open_toy(path, frames=spec) as writer:
        write_rest(writer, **options)
    return path


def tree_digest(folder: Path) -> dict[str, str]:
    """Every file below a folder, hidden ones too, with the sha256 of its content."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
