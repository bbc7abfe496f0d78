"""The grid: which pairs, under which fusions, on which folds and seeds, and how they are worked through.

A *cell* is a pair and a fusion, or a single representation. The heads of a cell (folds x seeds) are trained in stacks; stacks
are independent of each other and are given to worker processes of one thread each. What a head ends up with depends on its own
fold, seed and settings alone: not on its stack, the number of processes or the order.

Every cell's representations also go through the linear rung, as a cell whose fusion is ``logistic`` where the target is emotion
(:mod:`pipelines.training.logistic`) and ``ridge`` where it is dimensions (:mod:`pipelines.training.ridge`): one result per fold,
under seed 0, since nothing in it is random.

Memory: the embeddings that jobs need are read once from their stores into files beside the run and mapped into every process, so
that they are in memory once, however many processes there are, and the system may let go of them. What a process adds is its
batches and a stack's parameters, and for the linear rung a standardised copy of the rows trained on. Measured with 200,000
utterances of two times 768 numbers, from stores to table (``concat`` and ``logistic``, two folds): 3.0 GB in one process, 4.2 GB
in two together.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import multiprocessing
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import pipelines
from pipelines.corpora.protocols import Split
from pipelines.errors import ConfigError, DeviceError, StorageError, WorkerError
from pipelines.files import TEMPORARY_PREFIX
from pipelines.fusion.catalogue import SINGLE, fusion_code, fusion_options, fusion_spec
from pipelines.training.data import Dataset, Source, read_source, source_shape
from pipelines.training.logistic import LOGISTIC, PENALTY_C, train_logistic
from pipelines.training.ridge import PENALTY, RIDGE, train_ridge
from pipelines.training.trainer import HeadResult, HeadTask, TrainConfig, steps_per_epoch, train_stack

__all__ = [
    "LINEAR",
    "LOGISTIC",
    "PAIRINGS",
    "RIDGE",
    "STACK",
    "STACK_ON_GPU",
    "Cell",
    "CellResult",
    "Job",
    "choose_device",
    "code_digest",
    "make_cells",
    "make_job",
    "mapped_sources",
    "pair_up",
    "run_jobs",
    "start_worker",
    "told_apart",
    "train_job",
]

LINEAR: dict[str, str] = {"emotion": LOGISTIC, "dimensions": RIDGE}
"""Target to the name of its linear rung."""

STACK = 10
"""Heads per stack on a CPU, at most: smaller stacks pay more for the interpreter, the tensors of larger ones leave the cache."""

STACK_ON_GPU = 500
"""Heads per stack on a GPU, at most."""

_NO_RESULT = ("bench.py", "plain.py", "recipes.py")  # what a recipe says is in the description of a job

PAIRINGS = ("heterogeneous", "homogeneous", "all")


@dataclass(frozen=True)
class Cell:
    """One entry of the comparison.

    Attributes:
        left: encoder name.
        right: encoder name; empty for a single representation.
        fusion: name of the fusion, or a linear rung; ``single`` for a head on a single representation.
        options: of the fusion, where they differ from its defaults.
        said: names of the options that its title says, beside the order ``right-left``, which every title says: see
            :func:`told_apart`.
    """

    left: str
    right: str
    fusion: str
    options: Mapping[str, object] = field(default_factory=dict)
    said: tuple[str, ...] = ()

    @property
    def variant(self) -> tuple[str, ...]:
        """What tells it from another cell of the same representations and fusion, such as ``("right-left", "max_radius=0.3")``."""
        turned = ("right-left",) if self.right and self.options.get("order") == "right-left" else ()
        if not self.said:
            return turned
        complete = fusion_options(self.fusion, self.options)
        return (*turned, *(f"{name}={complete[name]}" for name in self.said))

    @property
    def title(self) -> str:
        """What it is called, different for every cell of a run: ``left+right fusion (variant)``."""
        inputs = f"{self.left}+{self.right}" if self.right else self.left
        name = inputs if self.fusion == SINGLE else f"{inputs} {self.fusion}"
        return f"{name} ({', '.join(self.variant)})" if self.variant else name


@dataclass(frozen=True)
class Job:
    """The heads of one cell that are still to be trained, with all they need.

    Attributes:
        cell: what is trained.
        left: source of the left input.
        right: source of the right input; None for a single representation.
        utterance_ids: n ids.
        labels: int64 [n]; -1 where the target is dimensions.
        classes: C names; empty where the target is dimensions.
        tasks: the heads.
        steps_per_epoch: from the protocol's largest training part.
        config: hyper-parameters.
        description: everything that the result depends on but the tasks, as JSON values.
        dimensions: K names; empty where the target is emotion.
        values: float32 [n, K], of the dimensions.
        votes: float32 [n, C], where soft labels are learned; None otherwise.
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
    dimensions: tuple[str, ...] = ()
    values: NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 0), np.float32), repr=False)
    votes: NDArray[np.float32] | None = field(default=None, repr=False)

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
    """sha256 over the source of ``fusion`` and ``training``: other code, other results. Of what changes no result, nothing."""
    digest = hashlib.sha256()
    root = Path(pipelines.__file__).parent
    for path in sorted([*(root / "fusion").glob("*.py"), *(root / "training").glob("*.py")]):
        if path.name in _NO_RESULT:
            continue
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


def make_cells(
    pairs: Sequence[tuple[str, str]],
    fusions: Sequence[str],
    singles: Sequence[str],
    *,
    options: Mapping[str, Mapping[str, object]] | None = None,
    both_orders: bool = False,
    target: str = "emotion",
) -> list[Cell]:
    """Cells of a comparison: the singles first, then every pair under every fusion; after either, the linear rung of the same.

    Args:
        pairs: of encoders.
        fusions: names.
        singles: encoders.
        options: fusion (also ``single``) to its options, where they differ from its defaults.
        both_orders: whether fusions whose operands have an order come twice, the second time as ``right-left``.
        target: ``emotion`` or ``dimensions``; it decides what the linear rung is.

    Raises:
        UnknownNameError: no such fusion or option.
    """
    given, rung = dict(options or {}), LINEAR[target]
    for name in (SINGLE, *fusions):
        fusion_options(name, given.get(name))
    return [
        *(Cell(name, "", SINGLE, given.get(SINGLE, {})) for name in singles),
        *(Cell(name, "", rung) for name in singles),
        *(
            Cell(left, right, fusion, {**given.get(fusion, {}), **order})
            for left, right in pairs
            for fusion in fusions
            for order in ({}, {"order": "right-left"})
            if not order or (both_orders and "order" in fusion_spec(fusion).options)
        ),
        *(Cell(left, right, rung) for left, right in pairs),
    ]


def told_apart(cells: Sequence[Cell]) -> list[Cell]:
    """The cells of a run, each under a title of its own: those that share one say the options in which they differ.

    Titles are the run's business: the same cell is called otherwise beside others, its numbers and its key stay what they are.

    Raises:
        ConfigError: a cell that is there twice.
    """
    named: dict[str, list[int]] = {}
    for place, cell in enumerate(cells):
        named.setdefault(replace(cell, said=()).title, []).append(place)
    found = [replace(cell, said=()) for cell in cells]
    for title, places in named.items():
        if len(places) == 1:
            continue
        complete = [_options(cells[place]) for place in places]
        said = tuple(name for name in complete[0] if len({options[name] for options in complete}) > 1)
        for place in places:
            found[place] = replace(found[place], said=said)
        if len({found[place].title for place in places}) < len(places):
            raise ConfigError(f"{title!r} is to be trained twice with the same options. Name every cell once.")
    return found


def make_job(dataset: Dataset, split: Split, cell: Cell, *, seeds: Sequence[int], config: TrainConfig) -> Job:
    """The heads of a cell: every fold of the split under every seed (of the linear rung: under seed 0).

    Raises:
        ConfigError: the linear rung of another target.
    """
    if cell.fusion in LINEAR.values() and cell.fusion != LINEAR[dataset.target]:
        raise ConfigError(
            f"{cell.fusion!r} cannot learn {dataset.target}; the linear rung of that target is {LINEAR[dataset.target]!r}."
        )
    left = dataset.sources[cell.left]
    right = dataset.sources[cell.right] if cell.right else None
    tasks = tuple(
        HeadTask(fold=fold.name, seed=seed, train=fold.train, validation=fold.validation, test=fold.test)
        for fold, seed in itertools.product(split.folds, seeds if cell.fusion not in LINEAR.values() else (0,))
    )
    if dataset.dimensions:
        learned = {
            "dimensions": list(dataset.dimensions),
            "values_digest": hashlib.sha256(np.ascontiguousarray(dataset.values).data).hexdigest(),
        }
    else:
        learned = {
            "classes": list(dataset.classes),
            "labels_digest": hashlib.sha256(dataset.labels.tobytes()).hexdigest(),
            "labels": "hard" if dataset.votes is None else "soft",
        }
        if dataset.votes is not None:
            learned["votes_digest"] = hashlib.sha256(np.ascontiguousarray(dataset.votes).data).hexdigest()
    description = {
        "corpus": dataset.corpus,
        "manifest_digest": dataset.manifest_digest,
        "protocol": split.protocol,
        "speaker_independent": split.speaker_independent,
        "split_digest": split.digest,
        "target": dataset.target,
        **learned,
        "utterances_digest": hashlib.sha256("\n".join(dataset.utterance_ids).encode()).hexdigest(),
        "left": _described(left),
        "right": _described(right) if right is not None else None,
        "fusion": cell.fusion,
        "options": _options(cell),
        "hyper_parameters": _hyper_parameters(cell, config),
        "code_version": pipelines.__version__,
        "code_digest": code_digest(),
        **fusion_code(cell.fusion),
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
        dimensions=dataset.dimensions,
        values=dataset.values,
        votes=dataset.votes,
    )


def _described(source: Source) -> dict[str, object]:
    """A source for a job's description: no path, since the numbers do not depend on where they lie."""
    own = {name: value for name, value in asdict(source).items() if name not in ("path", "blocks")}
    return own | ({"blocks": [_described(block) for block in source.blocks]} if source.blocks else {})


def _options(cell: Cell) -> dict[str, Any]:
    """Every option of a cell's fusion."""
    if cell.fusion not in LINEAR.values():
        return dict(fusion_options(cell.fusion, cell.options))
    if cell.options:
        raise ConfigError(f"{cell.fusion!r} has no options, but {', '.join(cell.options)} came.")
    return {}


def _hyper_parameters(cell: Cell, config: TrainConfig) -> dict[str, Any]:
    """Those that a cell's numbers depend on."""
    if cell.fusion not in LINEAR.values():
        return asdict(config)
    if cell.fusion == RIDGE:
        return {"alpha": PENALTY, "selection": config.selection}
    return {"C": PENALTY_C, "selection": config.selection, "class_weights": config.class_weights}


def choose_device(device: str) -> str:
    """``cuda`` for ``auto`` where there is a GPU, ``cpu`` where there is none; other names as they are.

    Raises:
        ConfigError: no such kind of device.
        DeviceError: a GPU was asked for and is not there.
    """
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device != "cpu" and device.partition(":")[0] != "cuda":
        raise ConfigError(f"--device must be auto, cpu, cuda or cuda:N, not {device!r}.")
    number = device.partition(":")[2]
    if device != "cpu" and ((number and not number.isdecimal()) or int(number or 0) >= torch.cuda.device_count()):
        raise DeviceError(
            f"--device {device} was asked for, but torch sees {torch.cuda.device_count()} GPU(s). Use --device cpu or auto."
        )
    return device


def run_jobs(
    jobs: Sequence[Job],
    *,
    workers: int = 1,
    device: str = "cpu",
    stack: int | None = None,
    scratch: Path | None = None,
) -> Iterator[CellResult]:
    """Train jobs, a stack of heads at a time, and yield each stack as it is finished, in any order.

    Args:
        jobs: what to train; jobs without tasks are skipped.
        workers: processes; 1 trains in this one. On a GPU it is always this one.
        device: of the heads: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        stack: heads per stack, at most; what suits the device unless given.
        scratch: folder for the embeddings that are being trained on; the system's for temporary files unless given.

    Returns:
        Results whose jobs have the tasks of one stack.

    Raises:
        StorageError: the folder cannot hold the embeddings.
        WorkerError: a process died.
        HyfuseError: what training raises.
    """
    device = choose_device(device)
    size = stack or (STACK if device == "cpu" else STACK_ON_GPU)
    waiting = [
        replace(job, tasks=job.tasks[start : start + size]) for job in jobs for start in range(0, len(job.tasks), size)
    ]
    if not waiting:
        return
    with mapped_sources(waiting, scratch) as files:
        if workers <= 1 or len(waiting) <= 1 or device != "cpu":
            for job in waiting:
                yield CellResult(job, train_job(job, device, files))
            return
        # "spawn": a forked process would inherit torch's thread pools in an undefined state.
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(min(workers, len(waiting)), mp_context=context, initializer=start_worker)
        try:
            running = {pool.submit(train_job, job, device, files): job for job in waiting}
            for future in as_completed(running):
                yield CellResult(running[future], future.result())
        except BrokenProcessPool as error:
            raise WorkerError(
                "A training process died; the usual cause is memory. What was finished is kept: run the same command again with"
                " fewer --workers."
            ) from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def start_worker() -> None:
    """One thread per process; Ctrl-C is the parent's business."""
    import signal

    import torch

    from pipelines.processes import die_with_parent

    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)


@contextmanager
def mapped_sources(jobs: Sequence[Job], scratch: Path | None) -> Iterator[dict[str, Path]]:
    """Files that hold the numbers of all sources of some jobs, for :func:`train_job`; removed at the end.

    Raises:
        StorageError: the folder cannot hold them.
    """
    with contextlib.ExitStack() as stack:
        if scratch is None:
            scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hyfuse-")))
        files: dict[str, Path] = {}
        for job in jobs:
            for source in filter(None, (job.left, job.right)):
                key = _file_key(source, job)
                if key in files:
                    continue
                # A name by which the next call removes it, should this process be killed.
                files[key] = scratch / f"{TEMPORARY_PREFIX}{key[:20]}-{os.getpid()}.f32"
                stack.callback(files[key].unlink, missing_ok=True)
                shape = source_shape(source, len(job.utterance_ids))
                try:
                    with files[key].open("wb") as handle:  # reserves the space: a full disk is no crash later
                        os.posix_fallocate(handle.fileno(), 0, 4 * int(np.prod(shape)))
                    mapped = np.memmap(files[key], dtype=np.float32, mode="r+", shape=shape)
                except OSError as error:
                    raise StorageError(
                        f"{files[key]} cannot hold the {4 * np.prod(shape) / 1e9:.1f} GB of {source.encoder}"
                        f" {source.representation} that are to be trained on: {error.strerror or error}. Free disk space, or choose"
                        " another folder with --runs-dir."
                    ) from error
                read_source(source, job.utterance_ids, out=mapped)
                mapped.flush()
                del mapped  # its pages are this process's no longer
        yield files


def _file_key(source: Source, job: Job) -> str:
    """What the numbers of a source depend on: they are the same for all jobs of a comparison."""
    parts = (source.features_digest, str(source.dim), *source.layers, str(job.description["utterances_digest"]))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def train_job(job: Job, device: str, files: Mapping[str, Path]) -> list[HeadResult]:
    """Train the tasks of a job in one stack.

    Args:
        job: what to train.
        device: ``cpu``, ``cuda`` or ``cuda:N``.
        files: of :func:`mapped_sources`.
    """
    import torch

    def numbers(source: Source) -> torch.Tensor:
        shape = source_shape(source, len(job.utterance_ids))
        # Mode "c": torch wants memory that it might write to; nothing does, so all processes share the pages.
        return torch.from_numpy(np.memmap(files[_file_key(source, job)], dtype=np.float32, mode="c", shape=shape))

    left, right = numbers(job.left), numbers(job.right) if job.right is not None else None
    labels, values = torch.from_numpy(job.labels), torch.from_numpy(job.values)
    votes = None if job.votes is None else torch.from_numpy(job.votes)
    if job.cell.fusion == RIDGE:
        return train_ridge(left=left, right=right, values=values, tasks=job.tasks, config=job.config)
    if job.cell.fusion == LOGISTIC:
        return train_logistic(
            left=left,
            right=right,
            labels=labels,
            tasks=job.tasks,
            num_classes=len(job.classes),
            config=job.config,
            votes=votes,
        )
    return train_stack(
        fusion=job.cell.fusion,
        options=dict(job.cell.options),
        left=left,
        right=right,
        tasks=job.tasks,
        steps_per_epoch=job.steps_per_epoch,
        config=job.config,
        labels=None if job.dimensions else labels,
        num_classes=len(job.classes),
        votes=votes,
        values=values if job.dimensions else None,
        device=device,
    )
