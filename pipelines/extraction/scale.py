"""Memory and a huge corpus: extraction and reading must need no more of it for a million utterances than they must.

A manifest of that many rows is written, all of its paths naming a few short recordings in turn, and extracted by an
encoder that costs nothing (eight numbers from the waveform), through the real manifest, decoder, engine and store. Then a
thousand of its embeddings are read as training reads them. Both happen in processes of their own, each watched from outside: memory
is that of the process and everything it starts, as ``measure.resident_mb`` counts it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from torch import Tensor

import pipelines
from pipelines.corpora.manifest import read_manifest
from pipelines.encoders.base import Encoder, PaddedRepresentation
from pipelines.encoders.catalogue import EncoderSpec
from pipelines.encoders.weights import WeightsInfo
from pipelines.errors import WorkerError
from pipelines.extraction.engines.local import extract_corpus
from pipelines.extraction.measure import PeakMemory, high_water_mb, resident_mb
from pipelines.store.embeddings import open_store, store_path

__all__ = ["FreeEncoder", "bench_scale", "extract_stage", "read_stage", "write_corpus"]

READ_ROWS = 1000
"""Rows that are read at the end."""

_RATE_HZ, _DIM = 8000, 8
_RECORDINGS, _SAMPLES = 251, 400
"""A prime number of recordings, about as many as rows in a block, so that blocks differ and do not compress to nothing."""


class FreeEncoder(Encoder):
    """One vector per clip at no cost: its first eight samples."""

    def __init__(self) -> None:
        spec = EncoderSpec(
            name="free",
            family="RLR",
            title="first samples, for benchmarks",
            factory="",
            sample_rate_hz=_RATE_HZ,
            hop_samples=0,
            dim=_DIM,
            representations=("embedding",),
            default_representation="embedding",
            repository="",
            revision="",
            files=(),
            licence="none",
        )
        weights = WeightsInfo(kind="random", source="random", revision="", digest="0" * 64, licence="none")
        super().__init__(spec=spec, weights=weights, device=torch.device("cpu"))
        self.min_samples = _DIM

    def num_frames(self, num_samples: int) -> int:
        """1."""
        return 1

    def encode_padded(self, batch: Sequence[Tensor]) -> Iterator[PaddedRepresentation]:
        """Yield ``embedding``; see the base class."""
        frames = torch.stack([clip[:_DIM] for clip in batch])[:, None]  # [B, 1, D]
        ones = torch.ones(len(batch), dtype=torch.int64)
        yield PaddedRepresentation(name="embedding", frames=frames, num_frames=ones)


def write_corpus(folder: Path, rows: int) -> Path:
    """Recordings and a manifest of ``rows`` utterances; its path. Row n is recording n modulo their number."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    for number in range(_RECORDINGS):
        wave = 0.1 * generator.standard_normal(_SAMPLES)
        soundfile.write(folder / f"recording_{number}.wav", wave, _RATE_HZ, subtype="PCM_16")
    path = folder / "scale.csv"
    with path.open("w", encoding="utf-8") as handle:
        handle.write("utterance_id,path,speaker,emotion\n")
        for row in range(rows):
            emotion = ("anger", "joy")[row % 2]
            handle.write(f"utterance_{row:08d},recording_{row % _RECORDINGS}.wav,speaker_{row % 1000},{emotion}\n")
    return path


def extract_stage(manifest_path: Path, cache_dir: Path, report: Path) -> None:
    """Read the manifest and extract it, writing down how much memory there was after each; runs in a process of its own."""
    mb = {"start": resident_mb()}
    started = time.perf_counter()
    manifest = read_manifest(manifest_path)
    manifest_s = time.perf_counter() - started
    mb["manifest"] = resident_mb()
    extract_corpus(manifest, FreeEncoder(), cache_dir=cache_dir)
    mb |= {"end": resident_mb(), "peak": high_water_mb()}
    seconds = time.perf_counter() - started
    report.write_text(json.dumps({"mb": mb, "manifest_s": manifest_s, "seconds": seconds}), encoding="utf-8")


def read_stage(store: Path, rows: int, report: Path) -> None:
    """Read rows of a store as training does; runs in a process of its own."""
    mb = {"start": resident_mb()}
    read_before, started = _bytes_read(), time.perf_counter()
    wanted = np.random.default_rng(1).choice(rows, size=min(READ_ROWS, rows), replace=False)
    features = open_store(store).features(
        [f"utterance_{row:08d}" for row in wanted], representation="embedding", pool="mean"
    )
    seconds = time.perf_counter() - started
    recordings = [np.flatnonzero(wanted % _RECORDINGS == number) for number in range(_RECORDINGS)]
    right = all(len(np.unique(features[same], axis=0)) == 1 for same in recordings if len(same))
    mb |= {"end": resident_mb(), "peak": high_water_mb()}
    found = {"mb": mb, "seconds": seconds, "read_bytes": _bytes_read() - read_before, "right": right}
    report.write_text(json.dumps(found), encoding="utf-8")


def _bytes_read() -> int:
    """Bytes that this process has read from files so far."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("rchar:"))


def _run_stage(call: str, *arguments: object, report: Path) -> tuple[dict[str, Any], float]:
    """Run one of the stages in a fresh process; what it reported, and the peak of its memory in MB.

    Raises:
        WorkerError: it failed.
    """
    code = f"from pathlib import Path; from pipelines.extraction import scale; scale.{call}"
    package = str(Path(pipelines.__file__).resolve().parent.parent)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([package, os.environ.get("PYTHONPATH", "")])}
    literals = ", ".join(f"Path({str(one)!r})" if isinstance(one, Path) else repr(one) for one in (*arguments, report))
    errors = report.with_suffix(".err")
    with errors.open("wb") as stderr:
        process = subprocess.Popen([sys.executable, "-c", f"{code}({literals})"], env=environment, stderr=stderr)
        with PeakMemory(process.pid) as memory:
            status = process.wait()
    if status:
        said = errors.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["nothing"]
        raise WorkerError(
            f"The process that ran {call} of the scale benchmark ended with status {status}; it said: {said[-1]}. If the system"
            " ended it, memory ran out: try fewer --rows."
        )
    found: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))
    return found, max(memory.peak_mb, found["mb"]["peak"])  # what a look every 50 ms has missed


def bench_scale(rows: int, *, folder: Path | None = None) -> dict[str, Any]:
    """Extract a corpus of ``rows`` utterances and read a thousand of them.

    Args:
        rows: utterances.
        folder: where the corpus and its store go; a temporary folder, unless given.

    Returns:
        JSON values: peak memory and seconds of both, memory after the manifest was read, bytes read, size of the store.

    Raises:
        WorkerError: a stage failed, or its process was ended.
    """
    with ExitStack() as stack:
        if folder is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hyfuse-scale-")))
        cache_dir = folder / "cache"
        shutil.rmtree(cache_dir, ignore_errors=True)
        manifest_path = write_corpus(folder / "audio", rows)
        extracted, extract_mb = _run_stage("extract_stage", manifest_path, cache_dir, report=folder / "extract.json")
        store = Path(str(store_path(cache_dir, "scale", "free")))
        read, read_mb = _run_stage("read_stage", store, rows, report=folder / "read.json")
        if not read["right"]:
            raise WorkerError(
                "Rows of the same recording came back with different embeddings: joined by the wrong ids."
            )
        files = [path.stat().st_size for path in store.rglob("*") if path.is_file()]
    return {
        "benchmark": "scale",
        "rows": rows,
        "peak_memory_mb": round(extract_mb),
        "start_memory_mb": round(extracted["mb"]["start"]),
        "manifest_memory_mb": round(extracted["mb"]["manifest"]),
        "end_memory_mb": round(extracted["mb"]["end"]),
        "bytes_per_row": round((extract_mb - extracted["mb"]["start"]) * 2**20 / rows),
        "seconds": round(extracted["seconds"], 1),
        "manifest_s": round(extracted["manifest_s"], 1),
        "rows_per_s": round(rows / extracted["seconds"]),
        "store_mb": round(sum(files) / 2**20, 1),
        "store_files": len(files),
        "read_rows": min(READ_ROWS, rows),
        "read_peak_memory_mb": round(read_mb),
        "read_start_memory_mb": round(read["mb"]["start"]),
        "read_s": round(read["seconds"], 2),
        "read_mb": round(read["read_bytes"] / 2**20, 1),
    }
