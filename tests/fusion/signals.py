"""Made-up pairs of inputs whose classes are in one of them, in both, or in nothing but their interaction; and what heads make of
them.

``python -m tests.fusion.signals`` trains every head on every kind and prints the table of ``docs/fusion.md`` (about a minute and
a half on one core).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from pipelines.fusion.catalogue import FUSIONS, SINGLE, fusion_spec
from pipelines.training.trainer import HeadResult, HeadTask, TrainConfig, train_stack

CLASSES = 4
DIM = 128
KINDS = ("left", "right", "both", "interaction")
"""``left``, ``right``: the class shifts the mean of that input, the other is noise. ``both``: the left input tells apart two
halves of the classes, the right one odd from even. ``interaction``: the class is (a + b) mod 4 of a digit a in the left input and
a digit b in the right one; neither says anything by itself."""

CONFIG = TrainConfig(input_dropout=0.2)
"""The default recipe but for the dropout: the signal is plain, the question is only whether it gets through."""


@dataclass(frozen=True)
class Outcome:
    """Accuracy on test rows, mean of the seeds."""

    straight: float
    left_shuffled: float
    right_shuffled: float
    results: list[HeadResult]


def make(kind: str, rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """Left and right inputs [N, D], and labels [N]."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, CLASSES, rows)
    digit = rng.integers(0, CLASSES, rows)
    nothing = np.zeros(rows, dtype=np.int64)
    left_code, right_code = {
        "left": (labels, nothing),
        "right": (nothing, labels),
        "both": (labels // 2, labels % 2),
        "interaction": (digit, (labels - digit) % CLASSES),
    }[kind]
    inputs = [
        rng.standard_normal((rows, DIM)) + (rng.standard_normal((CLASSES, DIM)) * 0.5)[code]
        for code in (left_code, right_code)
    ]
    return torch.from_numpy(inputs[0]).float(), torch.from_numpy(inputs[1]).float(), torch.from_numpy(labels)


def train(
    fusion: str,
    kind: str,
    options: Mapping[str, object] | None = None,
    *,
    rows: int = 800,
    epochs: int = 30,
    seeds: int = 2,
) -> Outcome:
    """Train a few heads on three quarters of the rows and test them on the others."""
    left, right, labels = make(kind, rows)
    order = np.random.default_rng(1).permutation(rows)
    part = 3 * rows // 4
    tasks = [
        HeadTask(fold="a", seed=s, train=order[:part], validation=order[:0], test=order[part:]) for s in range(seeds)
    ]
    results = train_stack(
        fusion=fusion,
        options=options or {},
        left=left,
        right=None if fusion == SINGLE else right,
        labels=labels,
        tasks=tasks,
        steps_per_epoch=-(-part // 32),
        num_classes=CLASSES,
        config=replace(CONFIG, epochs=epochs),
    )
    truth = labels.numpy()[order[part:]]

    def accuracy(name: str) -> float:
        found = [getattr(result, name) for result in results]
        return float(np.mean([values.argmax(axis=1) == truth for values in found if values is not None]))

    names = ("test", "left_shuffled", "right_shuffled" if fusion != SINGLE else "test")
    return Outcome(*(accuracy(f"{name}_outputs") for name in names), results=results)


def variants() -> list[tuple[str, dict[str, object]]]:
    """Every fusion, each order of those that have one."""
    return [
        (name, {"order": order} if order else {})
        for name in FUSIONS
        for order in (("left-right", "right-left") if "order" in fusion_spec(name).options else ("",))
    ]


def _print_table() -> None:
    started = time.process_time()
    for dense in (0, 128):
        print(f"\ndense_dim={dense}: accuracy (left shuffled / right shuffled), chance .25\n")
        print("| head | " + " | ".join(KINDS) + " |")
        print("|---|" + "---|" * len(KINDS))
        for name, options in variants():
            cells = []
            for kind in KINDS:
                outcome = train(name, kind, {**options, "dense_dim": dense})
                values = (outcome.straight, outcome.left_shuffled, outcome.right_shuffled)
                cells.append("{} ({} / {})".format(*(f"{value:.2f}".lstrip("0") for value in values)))
            title = " ".join([name, *map(str, options.values())])
            print(f"| {title} | " + " | ".join(cells) + " |", flush=True)
    print(f"\n{time.process_time() - started:.0f} s of CPU")


if __name__ == "__main__":
    _print_table()
