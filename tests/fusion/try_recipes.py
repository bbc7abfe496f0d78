"""What one change of the default recipe brings, on speakers held out inside the outer training folds.

    python -m tests.fusion.try_recipes --cache-dir CACHE --corpus emodb --left byols --right soundstream-lyra --part heads

prints one table of ``docs/fusion.md``; ``--part`` may be repeated (:data:`PARTS`). How it is measured:

* outer folds ``speaker-5fold``; their test speakers are set aside. The speakers that remain are divided again
  (``speaker-<k>fold``, k = 4 or fewer), and every head is trained on k - 1 of the parts and tested on the other.
* UAR: pooled over the inner folds of an outer fold, mean over outer folds and seeds. "shuffled": that input permuted among
  the held-out utterances.
* "change": to the first row of the part, per speaker (UAR over the classes the speaker has, mean over all heads that held the
  speaker out), mean and standard error over speakers.

A caution that no inner validation removes: every speaker is held out inside some outer fold, so a choice among the rows of
a table, made once for all outer folds, has seen every speaker. ``hyfuse tune`` chooses per outer fold.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipelines.corpora.manifest import read_manifest
from pipelines.corpora.protocols import make_split
from pipelines.fusion.catalogue import FUSIONS, SINGLE, applicable_options, fusion_spec
from pipelines.training.data import default_classes, load_dataset, read_source
from pipelines.training.logistic import LOGISTIC, train_logistic
from pipelines.training.metrics import unweighted_average_recall
from pipelines.training.recipes import recipe
from pipelines.training.trainer import HeadResult, HeadTask, TrainConfig, steps_per_epoch, train_stack

STACK = 10


@dataclass(frozen=True)
class Data:
    """One pair on one corpus."""

    left: Tensor
    right: Tensor
    labels: NDArray[np.int64]
    speakers: NDArray[np.object_]
    classes: int
    tasks: list[HeadTask]


@dataclass(frozen=True)
class Trial:
    """One row of a table."""

    title: str
    fusion: str = "hyperbolic"
    train: Mapping[str, Any] | TrainConfig = ()  # type: ignore[assignment]
    options: Mapping[str, object] = ()  # type: ignore[assignment]
    side: str = ""
    prepare: Callable[[Tensor, HeadTask], Tensor] | None = None


@dataclass(frozen=True)
class Score:
    """What a trial came to."""

    straight: float
    left_shuffled: float
    right_shuffled: float
    per_speaker: NDArray[np.float64]
    edge: float
    clipped: float
    seconds: float


def load(arguments: argparse.Namespace) -> Data:
    """Read both representations and make the inner folds."""
    manifest = read_manifest(arguments.cache_dir / arguments.corpus / "manifest.csv", corpus=arguments.corpus)
    names = (arguments.left, arguments.right)
    classes = default_classes(manifest, ())
    dataset = load_dataset(manifest, cache_dir=arguments.cache_dir, encoders=names, classes=classes)
    left, right = (torch.from_numpy(read_source(dataset.sources[name], dataset.utterance_ids)) for name in names)
    speakers = np.array(dataset.speakers, dtype=object)
    tasks = []
    everything = np.arange(len(speakers))
    folds = _split("speaker-5fold", everything, dataset.utterance_ids, speakers, dataset.label_names)
    for outer in folds[: arguments.outer]:
        known = np.sort(np.concatenate([outer.train, outer.validation]))
        parts = min(4, len(set(speakers[known])))
        for inner in _split(f"speaker-{parts}fold", known, dataset.utterance_ids, speakers, dataset.label_names):
            for seed in range(arguments.seeds):
                tasks.append(
                    HeadTask(
                        fold=f"{outer.name}/{inner.name}",
                        seed=seed,
                        train=known[inner.train],
                        validation=known[inner.validation],
                        test=known[inner.test],
                    )
                )
    return Data(left, right, dataset.labels, speakers, len(classes), tasks)


def _split(protocol: str, rows: NDArray[np.int64], ids: Sequence[str], who: Any, what: Sequence[str]) -> Any:
    chosen = rows.tolist()
    return make_split(
        protocol,
        utterance_ids=[ids[row] for row in chosen],
        speakers=[who[row] for row in chosen],
        labels=[what[row] for row in chosen],
    ).folds


def run(data: Data, trial: Trial) -> Score:
    """Train all heads of a trial and score them."""
    config = trial.train if isinstance(trial.train, TrainConfig) else replace(TrainConfig(), **dict(trial.train))
    inputs = {"left": data.left, "right": data.right}
    left = inputs.get(trial.side or "left", data.left)
    right = None if trial.side else data.right
    started = time.process_time()
    results: list[HeadResult] = []
    # Prepared inputs are fitted on one task's training rows, so only its seeds can share a stack.
    size = sum(task.fold == data.tasks[0].fold for task in data.tasks) if trial.prepare else STACK
    for start in range(0, len(data.tasks), size):
        tasks = data.tasks[start : start + size]
        prepared = [left, right]
        if trial.prepare is not None:
            prepared = [None if x is None else trial.prepare(x, tasks[0]) for x in prepared]
        shared: dict[str, Any] = {
            "left": prepared[0],
            "right": prepared[1],
            "labels": torch.from_numpy(data.labels),
            "num_classes": data.classes,
            "config": config,
            "tasks": tasks,
        }
        if trial.fusion == LOGISTIC:
            results += train_logistic(**shared)
        else:
            options = applicable_options(trial.fusion, dict(trial.options))
            steps = steps_per_epoch(data.tasks, config)
            results += train_stack(fusion=trial.fusion, options=options, steps_per_epoch=steps, **shared)
    seconds = time.process_time() - started
    means = [_pooled(data, results, name) for name in ("test", "left_shuffled", "right_shuffled")]
    recorded = [result.diagnostics.get("left_edge", np.nan) for result in results]
    clipped = [result.curves["gradient_clipped"].mean() for result in results if "gradient_clipped" in result.curves]
    return Score(
        *means,
        per_speaker=_by_speaker(data, results),
        edge=float(np.mean(recorded)),
        clipped=float(np.mean(clipped)) if clipped else float("nan"),
        seconds=seconds,
    )


def _pooled(data: Data, results: Sequence[HeadResult], name: str) -> float:
    scores = []
    key = lambda result: (result.task.fold.split("/")[0], result.task.seed)  # noqa: E731
    for _, group in itertools.groupby(sorted(results, key=key), key=key):
        members = list(group)
        if getattr(members[0], f"{name}_outputs") is None:
            return float("nan")
        predictions = np.concatenate([getattr(member, f"{name}_outputs").argmax(axis=1) for member in members])
        truth = data.labels[np.concatenate([member.task.test for member in members])]
        scores.append(unweighted_average_recall(truth, predictions, data.classes))
    return float(np.mean(scores))


def _by_speaker(data: Data, results: Sequence[HeadResult]) -> NDArray[np.float64]:
    scores: dict[str, list[float]] = {}
    for result in results:
        predictions = result.test_outputs.argmax(axis=1)
        for speaker in set(data.speakers[result.task.test]):
            own = data.speakers[result.task.test] == speaker
            truth = data.labels[result.task.test][own]
            scores.setdefault(speaker, []).append(
                float(np.mean([(predictions[own] == k)[truth == k].mean() for k in set(truth)]))
            )
    return np.array([np.mean(scores[speaker]) for speaker in sorted(scores)])


def principal_components(count: int) -> Callable[[Tensor, HeadTask], Tensor]:
    """The first components of the standardised training rows; heads standardise them again, so they are whitened."""

    def prepare(x: Tensor, task: HeadTask) -> Tensor:
        rows = x[task.train].double()
        mean, std = rows.mean(dim=0), rows.std(dim=0).clamp(min=1e-6)
        _, _, axes = torch.linalg.svd((rows - mean) / std, full_matrices=False)
        return (((x.double() - mean) / std) @ axes[:count].T).float()

    return prepare


def unit_length(x: Tensor, task: HeadTask) -> Tensor:
    """Every standardised utterance to length sqrt(D)."""
    rows = x[task.train]
    scaled = (x - rows.mean(dim=0)) / rows.std(dim=0).clamp(min=1e-6)
    return scaled / scaled.norm(dim=1, keepdim=True) * x.shape[1] ** 0.5


def _orders(**options: object) -> list[tuple[str, dict[str, object]]]:
    return [(f"{order}", {"order": order, **options}) for order in ("left-right", "right-left")]


def _heads() -> list[Trial]:
    trials = [Trial("default (hyperbolic)"), Trial("single, left", SINGLE, side="left")]
    trials += [Trial("single, right", SINGLE, side="right"), Trial("logistic regression", LOGISTIC)]
    for name in FUSIONS:
        if "order" in fusion_spec(name).options:
            trials += [Trial(f"{name}, {order}", name, options=o) for order, o in _orders()]
        else:
            trials.append(Trial(name, name))
    return trials


def _train(name: str, *values: Any) -> list[Trial]:
    return [Trial(f"{name} {value}", train={name: value}) for value in values]


def _options(name: str, *values: object) -> list[Trial]:
    return [Trial(f"{name} {value}", options={name: value}) for value in values]


def _paper(front_end: str, *names: str) -> list[Trial]:
    chosen = recipe("paper")
    options = {**chosen.head_options, "front_end": front_end}
    return [
        Trial(f"paper recipe, {name}, {front_end}", name, chosen.train, options, side="left" if name == SINGLE else "")
        for name in names
    ]


_DEFAULT = Trial("default")
_BALL = [name for name in FUSIONS if "classifier" in FUSIONS[name].options]

PARTS: dict[str, Callable[[], list[Trial]]] = {
    "heads": _heads,
    "radius": lambda: [
        Trial(f"max_radius {radius}, {order}", options=options)
        for radius in (0.5, 0.3, 1.0, 2.0, 3.0)
        for order, options in _orders(max_radius=radius)
    ],
    "ball": lambda: [
        _DEFAULT,
        *_options("curvature", 0.1, 4.0),
        *_options("learn_curvature", "yes"),
        Trial("max_radius 2, learn_curvature", options={"max_radius": 2.0, "learn_curvature": "yes"}),
        *(Trial(f"{name}, mlr", name, options={"classifier": "mlr"}) for name in _BALL),
    ],
    "regularisation": lambda: [
        _DEFAULT,
        *_train("weight_decay", 0.0, 0.1, 0.5),
        *_train("label_smoothing", 0.0, 0.2),
        *_train("input_dropout", 0.0, 0.3, 0.7),
        *_train("dropout", 0.3),
        *_options("modality_dropout", 0.1, 0.3, 0.5),
        *_train("class_weights", "balanced"),
    ],
    "schedule": lambda: [
        _DEFAULT,
        *_train("epochs", 15, 60),
        *_train("learning_rate", 5e-4, 2e-3),
        *_train("schedule", "constant"),
        *_train("batch_size", 16, 64),
        *_train("clip_norm", 0.0),
    ],
    "selection": lambda: [
        _DEFAULT,
        Trial("last (fewer speakers)", train={"selection": "last"}),
        Trial("loss, smoothing 0", train={"selection": "loss", "selection_smoothing": 0.0}),
        Trial("loss, smoothing 0.7", train={"selection": "loss"}),
        Trial("uar, smoothing 0.7", train={"selection": "uar"}),
    ],
    "size": lambda: [
        _DEFAULT,
        *_train("hidden_dim", 56, 240),
        *_options("dense_dim", 128),
        Trial("64 principal components, whitened", prepare=principal_components(64)),
        Trial("unit length", prepare=unit_length),
    ],
    "paper": lambda: [_DEFAULT, *_paper("linear", "mobius", "hyperbolic", "concat", SINGLE)],
    "paper-cnn": lambda: [_DEFAULT, *_paper("cnn", "mobius", "hyperbolic")],
    "demo": lambda: [
        _DEFAULT,
        *_heads()[1:],
        *_train("input_dropout", 0.0),
        *_train("label_smoothing", 0.0),
        *_options("modality_dropout", 0.3),
        *_train("class_weights", "balanced"),
    ],
    "candidates": lambda: [
        _DEFAULT,
        *(
            Trial(f"{name}, {title}", name, train, options)
            for title, train, options in (
                ("modality_dropout 0.3", {}, {"modality_dropout": 0.3}),
                ("class_weights balanced", {"class_weights": "balanced"}, {}),
            )
            for name in ("hyperbolic", "concat", "attention", "bilinear")
        ),
        Trial("single, left, class_weights balanced", SINGLE, {"class_weights": "balanced"}, side="left"),
    ],
}
"""The tables by name."""


def main() -> None:
    """Print the tables asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--cache-dir", required=True, type=Path)
    parser.add_argument("--corpus", required=True)
    parser.add_argument("--left", required=True)
    parser.add_argument("--right", required=True)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--outer", type=int, default=5, help="use only the first so many outer folds")
    parser.add_argument("--part", action="append", choices=PARTS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    data = load(arguments)
    print(f"{len(data.tasks)} heads per row, {len(data.tasks[0].train)} rows or so to train on")
    for part in arguments.part or PARTS:
        print(f"\n{part}\n\n| | UAR | left shuffled | right shuffled | change | edge | clipped | CPU s |")
        print("|" + "---|" * 8)
        first: Score | None = None
        for trial in PARTS[part]():
            score = run(data, trial)
            first = first or score
            change = score.per_speaker - first.per_speaker
            error = change.std(ddof=1) / len(change) ** 0.5
            print(
                f"| {trial.title} | {score.straight:.3f} | {score.left_shuffled:.3f} | {score.right_shuffled:.3f} "
                f"| {change.mean():+.3f} ± {error:.3f} | {score.edge:.2f} | {score.clipped:.2f} | {score.seconds:.1f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
