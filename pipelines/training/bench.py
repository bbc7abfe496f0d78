"""How fast heads train: in stacks, against the same engine with one head per stack, in the same run.

The data are random numbers of Emo-DB's size (535 utterances, 7 classes); what they say does not matter for the time.
"""

from __future__ import annotations

import platform
import resource
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from pipelines.training.grid import STACK
from pipelines.training.trainer import HeadResult, HeadTask, TrainConfig, steps_per_epoch, train_stack

__all__ = ["bench_train"]

_UTTERANCES, _CLASSES, _FOLDS = 535, 7, 5


def bench_train(*, fusion: str, left_dim: int, right_dim: int, heads: int, config: TrainConfig) -> dict[str, Any]:
    """Measure one fusion.

    Args:
        fusion: its name.
        left_dim: features of the left input.
        right_dim: features of the right input.
        heads: heads in all.
        config: hyper-parameters.

    Returns:
        JSON values: heads per minute in stacks of at most ``STACK`` and one by one, their ratio, and whether the predictions of
        both are the same bits.
    """
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(_UTTERANCES, left_dim, generator=generator)
    right = torch.randn(_UTTERANCES, right_dim, generator=generator)
    labels = torch.randint(_CLASSES, (_UTTERANCES,), generator=generator)
    rows = np.arange(_UTTERANCES, dtype=np.int64)
    tasks = [
        HeadTask(
            fold=str(index % _FOLDS),
            seed=index // _FOLDS,
            train=rows[rows % _FOLDS != index % _FOLDS],
            validation=rows[:0],
            test=rows[rows % _FOLDS == index % _FOLDS],
        )
        for index in range(heads)
    ]

    def train(size: int, chosen: Sequence[HeadTask]) -> tuple[float, list[HeadResult]]:
        results: list[HeadResult] = []
        started = time.perf_counter()
        for start in range(0, len(chosen), size):
            results += train_stack(
                fusion=fusion,
                options={},
                left=left,
                right=right,
                labels=labels,
                tasks=chosen[start : start + size],
                steps_per_epoch=steps_per_epoch(tasks, config),
                num_classes=_CLASSES,
                config=config,
            )
        return time.perf_counter() - started, results

    train(1, tasks[:1])  # warm-up
    stacked_s, stacked = train(STACK, tasks)
    single_s, single = train(1, tasks)
    same = all(
        np.array_equal(one.test_probabilities, other.test_probabilities)
        for one, other in zip(stacked, single, strict=True)
    )
    return {
        "benchmark": "train",
        "fusion": fusion,
        "left_dim": left_dim,
        "right_dim": right_dim,
        "utterances": _UTTERANCES,
        "heads": heads,
        "epochs": config.epochs,
        "batch_size": config.batch_size,
        "stack": STACK,
        "threads": 1,
        "processor": platform.processor() or platform.machine(),
        "heads_per_minute": round(60 * heads / stacked_s, 1),
        "heads_per_minute_one_per_stack": round(60 * heads / single_s, 1),
        "speedup_over_one_per_stack": round(single_s / stacked_s, 2),
        "same_predictions": same,
        "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }
