"""The grid: which pairs, under which fusions, on which folds and seeds, and how they are worked through.

A *cell* is a pair and a fusion, or a single representation. All heads of a cell (folds x seeds) are trained together, in stacks
of at most ``STACK`` heads. Cells are independent of each other and are given to worker processes of one thread each. What a
head ends up with depends on its own fold, seed and settings alone: not on its stack, the number of processes or the order.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import multiprocessing
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import pipelines
from pipelines.corpora.protocols import Split
from pipelines.errors import ConfigError
from pipelines.fusion.catalogue import SINGLE, fusion_options, fusion_spec
from pipelines.training.data import Dataset, Source, read_source
from pipelines.training.trainer import HeadResult, HeadTask, TrainConfig, steps_per_epoch, train_stack

__all__ = [
    "PAIRINGS",
    "STACK",
    "Cell",
    "CellResult",
    "Job",
    "code_digest",
    "make_cells",
    "make_job",
    "pair_up",
    "run_jobs",
]

STACK = 10
"""Heads per stack, at most."""

PAIRINGS = ("heterogeneous", "homogeneous", "all")


@dataclass(frozen=True)
class Cell:
    """One entry of the comparison.

    Attributes:
        left: encoder name.
        right: encoder name; empty for a single representation.
        fusion: name of the fusion; ``single`` for a single representation.
        options: of the fusion, where they differ from its defaults.
    """

    left: str
    right: str
    fusion: str
    options: Mapping[str, object] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """For progress displays and file names."""
        return f"{self.left}+{self.right} {self.fusion}" if self.right else self.left


@dataclass(frozen=True)
class Job:
    """The heads of one cell that are still to be trained, with all they need.

    Attributes:
        cell: what is trained.
        left: source of the left input.
        right: source of the right input; None for a single representation.
        utterance_ids: n ids.
        labels: int64 [n].
        classes: C names.
        tasks: the heads.
        steps_per_epoch: from the protocol's largest training part.
        config: hyper-parameters.
        description: everything that the result depends on but the tasks, as JSON values.
    """

    cell: Cell
    left: Source
    right: Source | None
    utterance_ids: tuple[str, ...] = field(repr=False)
    labels: NDArray[np.int64] = field(repr=False)
    classes: tuple[str, ...]
    tasks: tuple[HeadTask, ...] = field(repr=False)
    steps_per_epoch: int
    config: TrainConfig
    description: Mapping[str, Any]

    @property
    def key(self) -> str:
        """sha256 of the description: the same key, the same numbers."""
        return hashlib.sha256(json.dumps(self.description, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class CellResult:
    """The heads of a job, trained.

    Attributes:
        job: what was asked for.
        heads: one result per task, in the order of the tasks.
    """

    job: Job
    heads: Sequence[HeadResult]


@cache
def code_digest() -> str:
    """sha256 over the source of ``fusion`` and ``training``: other code, other results."""
    digest = hashlib.sha256()
    root = Path(pipelines.__file__).parent
    for path in sorted([*(root / "fusion").glob("*.py"), *(root / "training").glob("*.py")]):
        digest.update(f"{path.relative_to(root).as_posix()}\n".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def pair_up(families: Mapping[str, str], pairing: str = "heterogeneous") -> list[tuple[str, str]]:
    """Pairs of encoders.

    Args:
        families: encoder name to family, in the order of the table.
        pairing: ``heterogeneous`` (RLR on the left, CBR on the right), ``homogeneous`` (within a family) or ``all``.

    Raises:
        ConfigError: unknown pairing.
    """
    if pairing not in PAIRINGS:
        raise ConfigError(f"--pairs must be one of {', '.join(PAIRINGS)}, not {pairing!r}.")
    mixed = [
        (left, right)
        for left, right in itertools.product(families, repeat=2)
        if families[left] != "CBR" and families[right] == "CBR"
    ]
    same = [(left, right) for left, right in itertools.combinations(families, 2) if families[left] == families[right]]
    return {"heterogeneous": mixed, "homogeneous": same, "all": mixed + same}[pairing]


def make_cells(pairs: Sequence[tuple[str, str]], fusions: Sequence[str], singles: Sequence[str]) -> list[Cell]:
    """Cells of a comparison: the singles first, then every pair under every fusion.

    Raises:
        UnknownNameError: no such fusion.
    """
    for name in fusions:
        fusion_spec(name)
    return [
        *(Cell(name, "", SINGLE) for name in singles),
        *(Cell(left, right, fusion) for left, right in pairs for fusion in fusions),
    ]


def make_job(dataset: Dataset, split: Split, cell: Cell, *, seeds: Sequence[int], config: TrainConfig) -> Job:
    """The heads of a cell: every fold of the split under every seed."""
    left = dataset.sources[cell.left]
    right = dataset.sources[cell.right] if cell.right else None
    tasks = tuple(
        HeadTask(fold=fold.name, seed=seed, train=fold.train, validation=fold.validation, test=fold.test)
        for fold, seed in itertools.product(split.folds, seeds)
    )
    description = {
        "corpus": dataset.corpus,
        "manifest_digest": dataset.manifest_digest,
        "protocol": split.protocol,
        "speaker_independent": split.speaker_independent,
        "split_digest": split.digest,
        "classes": list(dataset.classes),
        "utterances_digest": hashlib.sha256("\n".join(dataset.utterance_ids).encode()).hexdigest(),
        "labels_digest": hashlib.sha256(dataset.labels.tobytes()).hexdigest(),
        "left": _described(left),
        "right": _described(right) if right is not None else None,
        "fusion": cell.fusion,
        "options": fusion_options(cell.fusion, cell.options),
        "hyper_parameters": asdict(config),
        "code_version": pipelines.__version__,
        "code_digest": code_digest(),
    }
    return Job(
        cell=cell,
        left=left,
        right=right,
        utterance_ids=dataset.utterance_ids,
        labels=dataset.labels,
        classes=dataset.classes,
        tasks=tasks,
        steps_per_epoch=steps_per_epoch(tasks, config),
        config=config,
        description=description,
    )


def _described(source: Source) -> dict[str, object]:
    """A source for a job's description: no path, since the numbers do not depend on where they lie."""
    return {name: value for name, value in asdict(source).items() if name != "path"}


def run_jobs(jobs: Sequence[Job], *, workers: int = 1, device: str = "cpu") -> Iterator[CellResult]:
    """Train jobs and yield each as it is finished, in any order.

    Args:
        jobs: what to train; jobs without tasks are skipped.
        workers: processes; 1 trains in this one.
        device: of the heads.
    """
    waiting = [job for job in jobs if job.tasks]
    if workers <= 1 or len(waiting) <= 1:
        for job in waiting:
            yield CellResult(job, _train_job(job, device))
        return
    # "spawn": a forked process would inherit torch's thread pools in an undefined state.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(workers, len(waiting)), mp_context=context, initializer=_start_worker)
    try:
        running = {pool.submit(_train_job, job, device): job for job in waiting}
        for future in as_completed(running):
            yield CellResult(running[future], future.result())
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _start_worker() -> None:
    """One thread per process; Ctrl-C is the parent's business."""
    import signal

    import torch

    from pipelines.processes import die_with_parent

    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)


def _train_job(job: Job, device: str) -> list[HeadResult]:
    import torch

    left = torch.from_numpy(read_source(job.left, job.utterance_ids))
    right = torch.from_numpy(read_source(job.right, job.utterance_ids)) if job.right is not None else None
    heads: list[HeadResult] = []
    for start in range(0, len(job.tasks), STACK):
        heads += train_stack(
            fusion=job.cell.fusion,
            options=dict(job.cell.options),
            left=left,
            right=right,
            labels=torch.from_numpy(job.labels),
            tasks=job.tasks[start : start + STACK],
            steps_per_epoch=job.steps_per_epoch,
            num_classes=len(job.classes),
            config=job.config,
            device=device,
        )
    return heads
