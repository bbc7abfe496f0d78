"""How fast heads train, in stacks against a plain loop that trains one head at a time, in the same run.

The data are random numbers with a class mean each: enough for a head to learn from, of no further meaning. Two questions, two
passes:

* *The same mathematics?* Without dropout, and with the same initial values and batches, the stack and
  :mod:`pipelines.training.plain` must come to the same training loss (``loss_difference``) and the same predictions
  (``predictions_that_differ``; ``of_them_ties`` are those whose two best classes the loop tells apart by less than 1e-3).
* *How fast?* The same two are timed; ``speedup`` is on one core each. Then as they would be used on the whole machine: the
  stacks in one process per core, the loop with one thread per core or with one thread, whichever is faster
  (``speedup_all_cores``). The time of the stacks includes what the loop leaves out: looking for bad rows, curves, diagnostics
  and predictions with either input shuffled.

CPU seconds (``time.process_time``) stand beside the wall clock, which other programs disturb.
"""

from __future__ import annotations

import multiprocessing
import os
import platform
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipelines.training.grid import STACK, STACK_ON_GPU, choose_device
from pipelines.training.plain import PLAIN, PlainResult, train_plain
from pipelines.training.trainer import HeadResult, HeadTask, TrainConfig, steps_per_epoch, train_stack

__all__ = ["bench_train"]

_FOLDS = 5
_TIE = 1e-3


def bench_train(
    *,
    fusion: str,
    left_dim: int,
    right_dim: int,
    utterances: int,
    num_classes: int,
    heads: int,
    loop_heads: int,
    config: TrainConfig,
    processes: int | None = None,
    device: str = "cpu",
) -> dict[str, Any]:
    """Measure one fusion.

    Args:
        fusion: its name.
        left_dim: features of the left input.
        right_dim: features of the right input.
        utterances: N.
        num_classes: C.
        heads: heads in all, of five folds.
        loop_heads: how many of them the loop trains as well; 0 leaves the loop out.
        config: hyper-parameters; dropout is left out where results are compared.
        processes: how many for the whole machine; one per core unless given.
        device: of the stacks; the loop is always on the CPU.

    Returns:
        JSON values; see the module. What does not apply (no loop for this fusion, no GPU) is None.
    """
    device = choose_device(device)
    cores = processes or os.cpu_count() or 1
    arguments = (fusion, left_dim, right_dim, utterances, num_classes, heads, config, device)
    size = STACK if device == "cpu" else STACK_ON_GPU
    work = _Work(*arguments)
    work.stacked(work.tasks[:1], replace(config, epochs=1))  # warm-up
    with _threads(1):
        stacked_s, stacked_cpu_s, _ = _timed(lambda: work.stacked(work.tasks, config))
    measured: dict[str, Any] = {
        "benchmark": "train",
        "fusion": fusion,
        "left_dim": left_dim,
        "right_dim": right_dim,
        "utterances": utterances,
        "classes": num_classes,
        "heads": heads,
        "epochs": config.epochs,
        "batch_size": config.batch_size,
        "input_dropout": config.input_dropout,
        "stack": min(size, heads),
        "device": torch.cuda.get_device_name(device) if device != "cpu" else "cpu",
        "processor": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "heads_per_minute": round(60 * heads / stacked_s, 1),
        "cpu_seconds_per_head": round(stacked_cpu_s / heads, 4),
    }
    loop = fusion in PLAIN and loop_heads > 0
    measured |= _against_the_loop(work, work.tasks[:loop_heads], stacked_s, stacked_cpu_s) if loop else {}
    measured |= _on_all_cores(arguments, cores, measured.get("loop_heads_per_minute_all_cores"))
    measured["peak_memory_mb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / _KIB_PER_MIB)
    measured["peak_cuda_memory_mb"] = (
        round(torch.cuda.max_memory_allocated(device) / 2**20) if device != "cpu" else None
    )
    return measured


_KIB_PER_MIB = 1024 if sys.platform != "darwin" else 1024**2


class _Work:
    """Made-up data and tasks, and both ways to train on them."""

    def __init__(
        self,
        fusion: str,
        left_dim: int,
        right_dim: int,
        utterances: int,
        num_classes: int,
        heads: int,
        config: TrainConfig,
        device: str,
    ) -> None:
        generator = torch.Generator().manual_seed(0)
        self.fusion, self.config, self.device, self.num_classes = fusion, config, device, num_classes
        self.labels = torch.randint(num_classes, (utterances,), generator=generator)

        def embeddings(dim: int) -> Tensor:
            means = torch.randn(num_classes, dim, generator=generator).mul_(0.15)
            found = torch.randn(utterances, dim, generator=generator)
            for start in range(0, utterances, 4096):  # no second matrix of this size
                found[start : start + 4096] += means[self.labels[start : start + 4096]]
            return found

        self.left, self.right = embeddings(left_dim), embeddings(right_dim)
        rows = np.arange(utterances, dtype=np.int64)
        self.tasks = [
            HeadTask(
                fold=str(index % _FOLDS),
                seed=index // _FOLDS,
                train=rows[rows % _FOLDS != index % _FOLDS],
                validation=rows[:0],
                test=rows[rows % _FOLDS == index % _FOLDS],
            )
            for index in range(heads)
        ]
        self.size = STACK if device == "cpu" else STACK_ON_GPU

    def stacked(self, tasks: Sequence[HeadTask], config: TrainConfig) -> list[HeadResult]:
        """By the engine."""
        results: list[HeadResult] = []
        for start in range(0, len(tasks), self.size):
            results += train_stack(
                fusion=self.fusion,
                options={},
                left=self.left,
                right=self.right,
                labels=self.labels,
                tasks=tasks[start : start + self.size],
                steps_per_epoch=steps_per_epoch(self.tasks, config),
                num_classes=self.num_classes,
                config=config,
                device=self.device,
            )
        return results

    def looped(self, tasks: Sequence[HeadTask], config: TrainConfig) -> list[PlainResult]:
        """One head at a time."""
        return [
            train_plain(
                self.fusion,
                left=self.left,
                right=self.right,
                labels=self.labels,
                task=task,
                steps_per_epoch=steps_per_epoch(self.tasks, config),
                num_classes=self.num_classes,
                config=config,
            )
            for task in tasks
        ]


def _against_the_loop(work: _Work, tasks: Sequence[HeadTask], stacked_s: float, stacked_cpu_s: float) -> dict[str, Any]:
    """Agreement without dropout, and times with the config as it is."""
    exact = replace(work.config, input_dropout=0.0, dropout=0.0)
    with _threads(1):
        ours, theirs = work.stacked(tasks, exact), work.looped(tasks, exact)
        loop_s, loop_cpu_s, _ = _timed(lambda: work.looped(tasks, work.config))
    with _threads(os.cpu_count() or 1):
        threaded_s, _, _ = _timed(lambda: work.looped(tasks, work.config))
    heads = len(work.tasks)
    losses = [
        float(np.abs(one.curves["train_loss"] - other.train_loss).max())
        for one, other in zip(ours, theirs, strict=True)
    ]
    differ = ties = 0
    for one, other in zip(ours, theirs, strict=True):
        off = one.test_outputs.argmax(axis=1) != other.test_probabilities.argmax(axis=1)
        best = np.sort(other.test_probabilities, axis=1)[:, -2:]
        differ += int(off.sum())
        ties += int((off & (best[:, 1] - best[:, 0] < _TIE)).sum())
    return {
        "loop_heads": len(tasks),
        "loop_heads_per_minute": round(60 * len(tasks) / loop_s, 1),
        "loop_heads_per_minute_all_cores": round(60 * len(tasks) / min(loop_s, threaded_s), 1),
        "loop_cpu_seconds_per_head": round(loop_cpu_s / len(tasks), 4),
        "speedup": round((loop_s / len(tasks)) / (stacked_s / heads), 2),
        "speedup_cpu_time": round((loop_cpu_s / len(tasks)) / (stacked_cpu_s / heads), 2),
        "loss_difference": max(losses),
        "probability_difference": max(
            float(np.abs(one.test_outputs - other.test_probabilities).max())
            for one, other in zip(ours, theirs, strict=True)
        ),
        "predictions": sum(len(one.test_outputs) for one in ours),
        "predictions_that_differ": differ,
        "of_them_ties": ties,
    }


def _on_all_cores(arguments: tuple[Any, ...], cores: int, loop_per_minute: float | None) -> dict[str, Any]:
    """The same stacks by one process per core, each with its share of the heads; None on a GPU and on one core."""
    if arguments[-1] != "cpu" or cores < 2:
        return {"processes": 1, "heads_per_minute_all_cores": None, "speedup_all_cores": None}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(cores, mp_context=context, initializer=_start, initargs=arguments) as pool:
        list(pool.map(_warm_up, range(4 * cores)))
        started = time.perf_counter()
        heads = sum(pool.map(_train_share, [(index, cores) for index in range(cores)]))
        taken_s = time.perf_counter() - started
    return {
        "processes": cores,
        "heads_per_minute_all_cores": round(60 * heads / taken_s, 1),
        "speedup_all_cores": round(60 * heads / taken_s / loop_per_minute, 2) if loop_per_minute else None,
    }


_work: _Work | None = None  # of a worker process


def _start(*arguments: Any) -> None:
    global _work
    torch.set_num_threads(1)
    _work = _Work(*arguments)


def _warm_up(index: int) -> None:
    del index
    assert _work is not None
    _work.stacked(_work.tasks[:1], replace(_work.config, epochs=1))
    time.sleep(0.2)  # so that every process gets one


def _train_share(share: tuple[int, int]) -> int:
    assert _work is not None
    index, cores = share
    return len(_work.stacked(_work.tasks[index::cores], _work.config))


def _timed(train: Callable[[], list[Any]]) -> tuple[float, float, list[Any]]:
    """Wall-clock seconds, CPU seconds, results."""
    started, cpu = time.perf_counter(), time.process_time()
    results = train()
    return time.perf_counter() - started, time.process_time() - cpu, results


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
