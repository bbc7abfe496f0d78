"""How long a whole comparison takes: stores of random numbers, through the real reading, training, scoring and writing.

Pairs × fusions × folds × seeds and all singles, in a run folder of its own, as ``hyfuse compare`` does it. The numbers have a
mean of their class, so that heads have something to learn; the scores mean nothing.
"""

from __future__ import annotations

import os
import resource
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.corpora.manifest import Manifest, read_manifest
from pipelines.store.embeddings import BlockResult, open_writer, store_path
from pipelines.store.provenance import Provenance
from pipelines.studies.pairs import ComparisonConfig, compare_cells
from pipelines.training.grid import make_cells, pair_up

__all__ = ["bench_grid"]

_BLOCK_ROWS = 512
_SIGNAL = 0.15  # length of a class mean's features, in standard deviations


def bench_grid(
    *,
    encoders_per_family: int,
    dim: int,
    utterances: int,
    speakers: int,
    num_classes: int,
    fusions: Sequence[str],
    seeds: int,
    pool: str = "mean+std",
    workers: int | None = None,
) -> dict[str, Any]:
    """Compare every pair of made-up RLR and CBR encoders.

    Args:
        encoders_per_family: 4 make 16 pairs and 8 singles.
        dim: features of a store; ``mean+std`` trains on twice as many.
        utterances: N.
        speakers: of the made-up corpus, in five folds.
        num_classes: C.
        fusions: names.
        seeds: of every head.
        pool: ``mean``, ``std`` or ``mean+std``.
        workers: processes; one per core unless given.

    Returns:
        JSON values: heads that were trained (the linear rung's included), wall-clock and CPU seconds of this process and those
        it started, the largest memory of one of them in MB.
    """
    processes = workers or os.cpu_count() or 1
    with tempfile.TemporaryDirectory(prefix="hyfuse-bench-") as name:
        folder = Path(name)
        manifest = _write_manifest(folder, utterances=utterances, speakers=speakers, num_classes=num_classes)
        families: dict[str, str] = {}
        for family in ("RLR", "CBR"):
            for number in range(encoders_per_family):
                encoder = f"{family.lower()}-{number}"
                families[encoder] = family
                _write_store(folder / "cache", manifest, encoder, family, dim=dim, seed=len(families))
        cells = make_cells(pair_up(families), fusions, list(families))
        before, started = _cpu_s(), time.perf_counter()
        compared = compare_cells(
            manifest,
            cells,
            config=ComparisonConfig(protocol="speaker-5fold", seeds=seeds, pool=pool),
            cache_dir=folder / "cache",
            run_dir=folder / "run",
            workers=processes,
        )
        seconds, cpu_s = time.perf_counter() - started, _cpu_s() - before
    peaks = [resource.getrusage(who).ru_maxrss / 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return {
        "benchmark": "grid",
        "pairs": encoders_per_family**2,
        "singles": 2 * encoders_per_family,
        "fusions": list(fusions),
        "folds": len(compared.split.folds),
        "seeds": seeds,
        "utterances": utterances,
        "dim": dim,
        "pool": pool,
        "heads": compared.trained,
        "processes": processes,
        "seconds": round(seconds, 1),
        "cpu_s": round(cpu_s, 1),
        "heads_per_minute": round(60 * compared.trained / seconds),
        "peak_memory_mb": round(max(peaks)),
    }


def _cpu_s() -> float:
    """Seconds of processor that this process and its finished children have used."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def _write_manifest(folder: Path, *, utterances: int, speakers: int, num_classes: int) -> Manifest:
    lines = ["utterance_id,path,speaker,emotion"]
    for row in range(utterances):
        lines.append(f"utterance_{row:07d},{row}.wav,speaker_{row % speakers},emotion_{row // speakers % num_classes}")
    path = folder / "bench.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return read_manifest(path)


def _write_store(cache_dir: Path, manifest: Manifest, encoder: str, family: str, *, dim: int, seed: int) -> None:
    """A finished store of random numbers around a mean per class."""
    generator = np.random.default_rng(seed)
    emotions = manifest.table["emotion"].to_numpy(dtype=str)
    names, labels = np.unique(emotions, return_inverse=True)
    means = _SIGNAL * generator.standard_normal((len(names), dim))
    provenance = Provenance(
        corpus=manifest.corpus,
        manifest_digest=manifest.digest,
        encoder=encoder,
        family=family,
        condition="clean",
        weights_kind="random",
        weights_source="random numbers of a benchmark",
        weights_revision="",
        weights_digest="0" * 64,
        weights_licence="none",
        representations=("embedding",),
        default_representation="embedding",
        dim=dim,
        sample_rate_hz=16000,
        resampler="none",
        precision="float32",
        device="cpu",
        versions={"numpy": np.__version__},
    )
    path = store_path(cache_dir, manifest.corpus, encoder)
    with open_writer(
        path, provenance=provenance, utterance_ids=manifest.utterance_ids, block_rows=_BLOCK_ROWS
    ) as writer:
        for block in writer.blocks_to_do():
            rows = writer.rows_of(block)
            shape = (len(rows), 1, dim)
            mean = means[labels[rows.start : rows.stop]][:, None] + generator.standard_normal(shape)
            writer.write_block(
                block,
                BlockResult(
                    mean=mean.astype(np.float32),
                    std=np.exp(0.1 * generator.standard_normal(shape)).astype(np.float32),
                    num_frames=np.full(len(rows), 100, np.int32),
                    duration_s=np.full(len(rows), 2.0),
                    failure=[""] * len(rows),
                ),
            )
