"""The training engine: stacks of small heads on fixed embeddings, one task (fold and seed) per head.

What is promised:

* **A head's result depends on its task alone**: not on the other heads of its stack, their number or order,
  nor on the number of threads; the bits are the same. Initial values, batches and dropout come from streams
  seeded by (fold, seed); every head takes the same number of steps, walking through its own successive
  permutations; training runs on one intra-op thread (run several processes to use several cores);
  ``fusion/stacked.py`` says what else it takes. On CUDA only the statistics are the same, not the bits.
* **Test rows influence nothing**: not the scaler (fitted on the rows trained on), not the choice of the
  epoch. They are looked at once, at the end.
* **Memory does not grow with H x N**: batches are gathered from the shared [N, D] matrices and standardised
  on the way; evaluation runs in chunks of 128 rows. An input [N, R, D] holds the R layers of an encoder; each
  head learns their weighted sum (``training/layers.py``).

What is learned is one of two things:

* **Classes**: C logits, cross-entropy with the label, or with the raters' votes where they are given (``votes``; the
  validation rows are judged by their labels all the same).
* **Dimensions** (arousal, valence, dominance): K numbers, the mean over the dimensions of 1 - CCC of the batch. Targets are
  standardised with mean and standard deviation of the rows trained on, and predictions are mapped back.

Which rows are trained on, and which epoch is kept (``TrainConfig.selection``): "fixed" trains on train +
validation rows for a fixed number of epochs and keeps the last; nothing is selected, so nothing needs to be
held out. The others train on the train rows only; "loss" and "uar" (of dimensions: "loss" and "ccc", which are
the same there) keep the copy that did best on the validation rows. ``docs/fusion.md`` has the measurements behind
the defaults.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipelines.errors import ConfigError, DeviceError, ProtocolError, StoreError, unknown_name
from pipelines.fusion.catalogue import build_head
from pipelines.fusion.stacked import head_generators, padded_rows
from pipelines.training.layers import LayerMix
from pipelines.training.losses import concordance_loss, cross_entropy, soft_cross_entropy
from pipelines.training.metrics import concordance, unweighted_average_recall

__all__ = [
    "CHUNK_ROWS",
    "SELECTING",
    "SIDES",
    "Guidance",
    "HeadResult",
    "HeadTask",
    "Scaler",
    "TrainConfig",
    "check_values",
    "fit_scaler",
    "fitted_rows",
    "head_seed",
    "one_thread",
    "stacked",
    "steps_per_epoch",
    "train_stack",
]

Rows = NDArray[np.int64]

SIDES = ("left", "right")
"""Of inputs, in the order of a head's arguments."""
SELECTING = ("loss", "uar", "ccc")
"""Ways to keep an epoch that look at the validation rows."""

_SELECTIONS = ("fixed", "last", *SELECTING)
_SCHEDULES = ("cosine", "constant")
_CLASS_WEIGHTS = ("none", "balanced")

CHUNK_ROWS = 128
"""Rows per evaluation chunk. A constant: matrix products of another height round differently, and a chunk as high as the longest
test part of the stack would let one head's test part change another head's bits."""

_PART_BYTES = 2**25  # that are copied at a time to fit scalers and to look for numbers that are not finite


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How a head is trained; everything but the data, the fusion and its options."""

    epochs: int = 30
    """Passes over the training rows (for "loss", "uar" and "ccc": at most)."""
    batch_size: int = 32
    """Utterances per step."""
    learning_rate: float = 1e-3
    """Step size of AdamW at the start."""
    schedule: str = "cosine"
    """Learning rate over the run: "cosine" falls to 0 along half a cosine, "constant" stays."""
    weight_decay: float = 0.01
    """Decoupled decay of the weight matrices; biases, scales and radii are never decayed."""
    label_smoothing: float = 0.1
    """Share of the target spread evenly over all classes, in [0, 1); dimensions have none."""
    class_weights: str = "none"
    """"balanced" weights each class by rows / (classes x rows of the class), counted on the rows trained
    on; not for dimensions."""
    hidden_dim: int = 120
    """Width of each stream after its projection; a multiple of 8."""
    input_dropout: float = 0.5
    """Share of standardised input features dropped, in [0, 1)."""
    dropout: float = 0.0
    """Share of fused features dropped before the output layer, in [0, 1)."""
    clip_norm: float = 1.0
    """Largest norm of one head's gradient; 0 switches clipping off."""
    selection: str = "fixed"
    """Which rows train and which epoch is kept: "fixed", "last", "loss", "uar" (of classes) or "ccc" (of dimensions); see the
    module."""
    selection_smoothing: float = 0.7
    """For "loss", "uar" and "ccc": weight of the past in the running mean of the validation score, in [0, 1)."""
    patience: int = 0
    """For "loss", "uar" and "ccc": epochs without a better score after which a head stops; 0 never stops early."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "hidden_dim"):
            self._check(name, getattr(self, name) >= 1, "must be at least 1")
        self._check("learning_rate", 0.0 < self.learning_rate < math.inf, "must be a positive number")
        for name in ("weight_decay", "clip_norm", "patience"):
            self._check(name, 0.0 <= getattr(self, name) < math.inf, "must be 0 or more")
        for name in ("label_smoothing", "input_dropout", "dropout", "selection_smoothing"):
            self._check(name, 0.0 <= getattr(self, name) < 1.0, "must lie in [0, 1)")
        self._check("hidden_dim", self.hidden_dim % 8 == 0, "must be a multiple of 8 (128 and 120 are)")
        for name, valid in (("schedule", _SCHEDULES), ("class_weights", _CLASS_WEIGHTS), ("selection", _SELECTIONS)):
            if getattr(self, name) not in valid:
                raise unknown_name(name, str(getattr(self, name)), valid)
        stops = self.patience == 0 or self.selection in SELECTING
        self._check("patience", stops, f"needs --selection loss, uar or ccc, not {self.selection!r}, to watch a score")

    def _check(self, name: str, holds: bool, rule: str) -> None:
        if not holds:
            raise ConfigError(f"Training option {name!r} is {getattr(self, name)!r}, but it {rule}.")

    @classmethod
    def from_mapping(cls, given: Mapping[str, Any]) -> TrainConfig:
        """Make a config from option names and values, for instance from a run folder.

        Args:
            given: options by name; what is left out keeps its default.

        Returns:
            The config.

        Raises:
            UnknownNameError: an option that does not exist, or an unknown choice.
            ConfigError: a value of the wrong type or out of range.
        """
        kinds: dict[str, type] = {entry.name: type(entry.default) for entry in dataclasses.fields(cls)}
        values: dict[str, Any] = {}
        for name, value in given.items():
            if name not in kinds:
                raise unknown_name("training option", name, kinds)
            kind = kinds[name]
            whole_as_real = kind is float and isinstance(value, int) and not isinstance(value, bool)
            if type(value) is not kind and not whole_as_real:
                raise ConfigError(
                    f"Training option {name!r} is {value!r} ({type(value).__name__}), but {kind.__name__} is expected."
                )
            values[name] = kind(value)
        return cls(**values)


@dataclass(frozen=True, eq=False)
class HeadTask:
    """What one head is trained and tested on: row positions in the shared matrices."""

    fold: str
    """Name of the division into train, validation and test, unique within the protocol."""
    seed: int
    """Which repetition; with ``fold`` it seeds the head."""
    train: Rows
    """Rows of the training part."""
    validation: Rows
    """Rows of the validation part; may be empty for selection "fixed" and "last"."""
    test: Rows
    """Rows of the test part."""
    test_blocks: int = 1
    """Equally long parts of ``test``, one per condition, within which inputs are shuffled."""

    def shuffled_test(self, stream: np.random.Generator) -> Rows:
        """The test rows, shuffled within each block."""
        return np.concatenate([stream.permutation(block) for block in np.split(self.test, self.test_blocks)])


@dataclass(frozen=True, eq=False)
class Scaler:
    """Standardisation of one input: (x - mean) / std."""

    mean: Tensor
    """[D] float32, or [R, D] where the layers of an encoder are weighted."""
    std: Tensor
    """The same shape, 1 where the column is constant."""


@dataclass(frozen=True, eq=False)
class HeadResult:
    """What training one head gave."""

    task: HeadTask
    """The task it answers."""
    test_outputs: NDArray[np.float32]
    """Of ``task.test``, in its order: class probabilities [n_test, C], or predicted values on the scale of the targets
    [n_test, K]."""
    left_shuffled_outputs: NDArray[np.float32]
    """The same with the left input permuted among the test rows."""
    right_shuffled_outputs: NDArray[np.float32] | None
    """The same with the right input permuted; None for "single"."""
    curves: dict[str, NDArray[np.float64]]
    """Per epoch: ``train_loss`` (the loss that is minimised, mean over the epoch's batches, with dropout);
    ``gradient_clipped`` (share of its steps whose gradient was clipped); ``validation_loss`` (plain
    cross-entropy, or 1 - CCC, over all validation rows) and ``validation_uar`` or ``validation_ccc``, NaN unless
    validation rows exist and are held out; and each diagnostic of the head, measured on the first 128 rows trained on."""
    best_epoch: int
    """The epoch whose parameters are kept, counted from 1."""
    diagnostics: dict[str, float]
    """Mean over the test rows of what the head records (attention weights, norms in the ball, …), and where
    layers are weighted the weight of each: ``left_layer_00``, … in the order of the R axis."""
    parameters: dict[str, Tensor] = field(repr=False)
    """The head's own tensors on the CPU, without the stack's dimension; ``left_mix.scores`` and
    ``right_mix.scores`` are the layer weights' logits, where layers are weighted."""
    left_scaler: Scaler = field(repr=False)
    """Standardisation of the left input, fitted on the rows trained on."""
    right_scaler: Scaler | None = field(repr=False)
    """That of the right input."""
    target_scaler: Scaler | None = field(default=None, repr=False)
    """That of the values of dimensions, [K]; None for classes."""


class Guidance(Protocol):
    """What is added to the loss of the heads of a stack (:mod:`pipelines.training.distillation`)."""

    def attach(self, head: nn.Module, seeds: Sequence[int]) -> None:
        """Look at a stack before it is trained; parameters that are added to it are trained, clipped and kept with its own."""

    def loss(self, outputs: Tensor, rows: Tensor, row_weights: Tensor | None) -> Tensor:
        """[H], of the outputs [H, B, C or K] that the stack has just given for row positions [H, B]; ``row_weights`` [H, B] are 0
        for rows that only fill up a batch."""


def head_seed(fold: str, seed: int) -> int:
    """The number that all random streams of a head start from: other folds get other streams for the same
    seed.

    Args:
        fold: the task's fold.
        seed: the task's seed.

    Returns:
        A 128-bit integer.
    """
    return int.from_bytes(hashlib.sha256(f"{seed}/{fold}".encode()).digest()[:16], "little")


def steps_per_epoch(tasks: Sequence[HeadTask], config: TrainConfig) -> int:
    """Steps that cover the largest training part of a protocol once.

    Args:
        tasks: all tasks of the protocol, or one per fold: not only those of one stack, or the results would
            depend on it.
        config: its selection decides which rows train; its batch size how many steps they are.

    Returns:
        At least 1.
    """
    return max(-(-len(fitted_rows(task, config)) // config.batch_size) for task in tasks)


def fit_scaler(matrix: Tensor, rows: Rows) -> Scaler:
    """Mean and standard deviation of some rows, in float64, a few thousand rows at a time.

    A column counts as constant when it varies by less than float32 can tell from its mean (1e-6 of it):
    dividing by such a deviation would blow rounding noise up to unit size.

    Args:
        matrix: embeddings, [N, D] or [N, R, D].
        rows: which rows to fit on.

    Returns:
        The scaler, on the CPU.
    """
    parts = [torch.from_numpy(part).to(matrix.device) for part in _parts(rows, matrix)]
    mean = torch.stack([matrix[part].double().sum(dim=0) for part in parts]).sum(dim=0) / len(rows)
    squares = [(matrix[part].double() - mean).square().sum(dim=0) for part in parts]
    std = (torch.stack(squares).sum(dim=0) / len(rows)).sqrt()
    std[std <= 1e-6 * mean.abs()] = 1.0
    return Scaler(mean=mean.float().cpu(), std=std.float().cpu())


def check_values(values: NDArray[np.float32], tasks: Sequence[HeadTask], config: TrainConfig) -> None:
    """Look for values that cannot be learned.

    Args:
        values: of dimensions, [N, K].
        tasks: whose rows are meant.
        config: its selection decides which rows train.

    Raises:
        ProtocolError: a row that trains or validates has no value, or all rows that train have the same one.
    """
    for task in tasks:
        where = _named(task)
        for part in ("train", "validation"):
            if not np.isfinite(values[getattr(task, part)]).all():
                raise ProtocolError(f"{where} a {part} row has no value. Leave rows without one out of the fold.")
        fitted = values[fitted_rows(task, config)]
        constant = np.flatnonzero(fitted.min(axis=0) == fitted.max(axis=0))
        if constant.size:
            raise ProtocolError(
                f"{where} all {len(fitted)} rows that train have the same value of dimension {constant[0] + 1} of"
                f" {values.shape[1]}, {fitted[0, constant[0]]:g}; concordance with it is not defined. Leave this dimension out"
                " with --dimensions, or use a protocol with more speakers in training."
            )


def train_stack(
    *,
    fusion: str,
    options: Mapping[str, object],
    left: Tensor,
    right: Tensor | None,
    tasks: Sequence[HeadTask],
    steps_per_epoch: int,
    config: TrainConfig,
    labels: Tensor | None = None,
    num_classes: int = 0,
    votes: Tensor | None = None,
    values: Tensor | None = None,
    device: str = "cpu",
    guidance: Guidance | None = None,
) -> list[HeadResult]:
    """Train one head per task, all in one stack, and test each.

    What is learned is said by ``labels`` and ``num_classes`` (and maybe ``votes``), or by ``values``. Rows are positions in the
    matrices: those of a test part may be of another condition than those trained on, if both lie in the same matrix.

    Stacks of about ten heads are fastest on a CPU: smaller ones pay more for the interpreter, the tensors of
    larger ones leave the cache.

    Args:
        fusion: name of the fusion, or "single".
        options: options of the fusion; what is left out keeps its default.
        left: embeddings, [N, Dl] float32, or the layers of an encoder, [N, R, Dl], to be weighted by each head.
        right: embeddings, [N, Dr] or [N, R, Dr] float32, or None for "single".
        tasks: one per head.
        steps_per_epoch: batches per epoch, the same for every stack of the protocol
            (:func:`steps_per_epoch`).
        config: how to train.
        labels: class indices, [N] int64; -1 for rows without a label, which no training or validation part
            may hold.
        num_classes: C.
        votes: shares of the classes, [N, C] float32, to train towards in place of the labels.
        values: of dimensions, [N, K] float32, on any scale; NaN for rows without, which no training or validation part may hold.
        device: "cpu" or "cuda".
        guidance: what is added to the loss; nothing unless given.

    Returns:
        One result per task, in the order of ``tasks``.

    Raises:
        ConfigError: inputs that do not fit together, or a head whose loss is no longer finite (names fold,
            seed, epoch).
        ProtocolError: a task with overlapping or empty parts, unlabelled rows, or no validation rows to
            select on.
        StoreError: embeddings that are not finite.
        UnknownNameError: no such fusion or option.
        DeviceError: CUDA was asked for and is not there.
    """
    objective: _Classes | _Values
    if labels is not None and values is None:
        _check_inputs(left, right, len(labels), tasks, steps_per_epoch, config)
        objective = _Classes(labels, votes, num_classes, tasks, config)
    elif values is not None and labels is None:
        _check_inputs(left, right, len(values), tasks, steps_per_epoch, config)
        objective = _Values(values, tasks, config)
    else:
        raise ConfigError("Training needs either labels, with their number of classes, or values.")
    if device != "cpu" and not torch.cuda.is_available():
        raise DeviceError(f"Device {device!r} was asked for, but torch sees no GPU. Use --device cpu or auto.")
    with one_thread():
        return _Stack(
            fusion=fusion,
            options=options,
            inputs=[left] if right is None else [left, right],
            objective=objective,
            tasks=tasks,
            config=config,
            device=device,
            guidance=guidance,
        ).run(steps_per_epoch)


class _Classes:
    """To tell classes apart.

    Raises:
        ConfigError: fewer than two classes, votes of another shape, or options that only dimensions have.
        ProtocolError: a row that trains or validates has no label.
    """

    score = "validation_uar"
    target_scalers: Sequence[Scaler] | None = None

    def __init__(
        self,
        labels: Tensor,
        votes: Tensor | None,
        num_classes: int,
        tasks: Sequence[HeadTask],
        config: TrainConfig,
    ) -> None:
        if num_classes < 2:
            raise ConfigError(f"Training needs labels of at least two classes; got {num_classes} class(es).")
        if votes is not None and votes.shape != (len(labels), num_classes):
            raise ConfigError(f"Votes are {tuple(votes.shape)}, but [{len(labels)}, {num_classes}] is expected.")
        if config.selection == "ccc":
            raise ConfigError("--selection ccc is for dimensions. Classes are selected by loss or uar.")
        self.outputs = num_classes
        self.labels, self.votes = labels, votes
        self.known = labels.cpu().numpy()
        for task in tasks:
            for part in ("train", "validation"):
                rows = getattr(task, part)
                if len(rows) and (self.known[rows].min() < 0 or self.known[rows].max() >= num_classes):
                    raise ProtocolError(
                        f"{_named(task)} a {part} row has no label in 0..{num_classes - 1} (found {self.known[rows].min()}.."
                        f"{self.known[rows].max()}). Leave rows without a label out of the fold."
                    )
        self.label_smoothing = config.label_smoothing
        self.class_weights = self._class_weights(tasks, config) if config.class_weights == "balanced" else None

    def _class_weights(self, tasks: Sequence[HeadTask], config: TrainConfig) -> Tensor:
        fitted = [fitted_rows(task, config) for task in tasks]
        counts = np.stack([np.bincount(self.known[rows], minlength=self.outputs) for rows in fitted])
        present = (counts > 0).sum(axis=1, keepdims=True)
        weights = counts.sum(axis=1, keepdims=True) / (present * np.maximum(counts, 1))
        return torch.from_numpy(np.where(counts > 0, weights, 0.0)).float()

    def to(self, device: str) -> None:
        """Move what batches are taken from."""
        self.labels = self.labels.to(device)
        self.votes = None if self.votes is None else self.votes.to(device)
        self.class_weights = None if self.class_weights is None else self.class_weights.to(device)

    def targets(self, batches: Tensor) -> Tensor:
        """Labels [H, steps, B] of row positions [H, steps, B], or votes [H, steps, B, C]."""
        return self.labels[batches] if self.votes is None else self.votes[batches]

    def loss(self, outputs: Tensor, targets: Tensor, row_weights: Tensor | None) -> Tensor:
        """[H] of logits [H, B, C]."""
        of_targets = cross_entropy if self.votes is None else soft_cross_entropy
        return of_targets(
            outputs,
            targets,
            label_smoothing=self.label_smoothing,
            class_weights=self.class_weights,
            row_weights=row_weights,
        )

    def validate(self, outputs: Tensor, head: int, rows: Rows) -> tuple[float, float]:
        """Plain cross-entropy and UAR of one head's logits [n, C]."""
        del head
        own, labels = outputs[None].double(), self.known[rows]
        loss = float(cross_entropy(own, torch.from_numpy(labels)[None]))
        predictions = own[0].argmax(dim=-1).numpy()
        return loss, float(unweighted_average_recall(labels, predictions, self.outputs))

    def finished(self, outputs: Tensor) -> NDArray[np.float32]:
        """Probabilities of logits [H, n, C]."""
        probabilities: NDArray[np.float32] = torch.softmax(outputs, dim=-1).numpy()
        return probabilities


class _Values:
    """To be concordant with the values of dimensions.

    Raises:
        ConfigError: values of another shape or type, options that only classes have, or batches of one row.
        ProtocolError: a row that trains or validates has no value, or all that train have the same one.
    """

    score = "validation_ccc"

    def __init__(self, values: Tensor, tasks: Sequence[HeadTask], config: TrainConfig) -> None:
        if values.dtype != torch.float32 or values.dim() != 2 or values.shape[1] < 1:
            raise ConfigError(f"Values are {tuple(values.shape)} {values.dtype}, but [N, K] torch.float32 is expected.")
        if config.class_weights != "none":
            raise ConfigError(
                f"--class-weights {config.class_weights} means nothing to dimensions, which have no classes. Leave it out."
            )
        if config.selection == "uar":
            raise ConfigError("--selection uar is for classes. Dimensions are selected by loss or ccc.")
        if config.batch_size < 2:
            raise ConfigError(
                "--batch-size 1 cannot train dimensions: the concordance of a single row is not defined. Use 16 or more."
            )
        self.outputs = values.shape[1]
        self.values = values
        self.known = values.cpu().numpy()
        check_values(self.known, tasks, config)
        self.target_scalers: Sequence[Scaler] | None = [fit_scaler(values, fitted_rows(task, config)) for task in tasks]
        self.mean = stacked([scaler.mean for scaler in self.target_scalers])  # [H, 1, K]
        self.std = stacked([scaler.std for scaler in self.target_scalers])

    def to(self, device: str) -> None:
        """Move what batches are taken from."""
        self.values = self.values.to(device)

    def targets(self, batches: Tensor) -> Tensor:
        """Standardised values [H, steps, B, K] of row positions [H, steps, B]."""
        device = self.values.device
        mean, std = (of.unsqueeze(1).to(device) for of in (self.mean, self.std))
        return self.values[batches].sub_(mean).div_(std)

    def loss(self, outputs: Tensor, targets: Tensor, row_weights: Tensor | None) -> Tensor:
        """[H] of outputs [H, B, K]."""
        return concordance_loss(outputs, targets, row_weights=row_weights)

    def validate(self, outputs: Tensor, head: int, rows: Rows) -> tuple[float, float]:
        """1 - CCC and CCC of one head's outputs [n, K], each the mean over the dimensions."""
        own = outputs * self.std[head] + self.mean[head]
        found = concordance(self.known[rows].T, own.numpy().T)
        ccc = float(np.nan_to_num(found).mean())  # not defined where validation rows all have the same value
        return 1.0 - ccc, ccc

    def finished(self, outputs: Tensor) -> NDArray[np.float32]:
        """Values on their own scale of outputs [H, n, K]."""
        values: NDArray[np.float32] = (outputs * self.std + self.mean).numpy()
        return values


class _Stack:
    """The state of one training run: the heads, their optimiser, their batch streams and what is kept of
    them."""

    def __init__(
        self,
        *,
        fusion: str,
        options: Mapping[str, object],
        inputs: Sequence[Tensor],
        objective: _Classes | _Values,
        tasks: Sequence[HeadTask],
        config: TrainConfig,
        device: str,
        guidance: Guidance | None = None,
    ) -> None:
        self.fusion = fusion
        self.tasks = tasks
        self.config = config
        self.device = device
        self.objective = objective
        self.objective.to(device)
        self.inputs = [matrix.to(device) for matrix in inputs]
        self.fitted_rows = [fitted_rows(task, config) for task in tasks]
        self.scalers = self._fit_scalers()
        # Per input: what a gathered batch [H, B, D] is standardised with, [H, 1, D] each ([H, R, D] for layers).
        self.means = [stacked([s.mean for s in per_head]).to(device) for per_head in self.scalers]
        self.factors = [stacked([s.std for s in per_head]).reciprocal().to(device) for per_head in self.scalers]
        self.seeds = [head_seed(task.fold, task.seed) for task in tasks]
        self.head = build_head(
            fusion,
            left_dim=inputs[0].shape[-1],
            right_dim=inputs[1].shape[-1] if len(inputs) == 2 else None,
            num_classes=objective.outputs,
            head_seeds=self.seeds,
            hidden_dim=config.hidden_dim,
            input_dropout=config.input_dropout,
            dropout=config.dropout,
            options=options,
        )
        self.mixes: dict[int, LayerMix] = {}
        for position, matrix in enumerate(inputs):
            if matrix.dim() == 3:
                self.mixes[position] = LayerMix(matrix.shape[1], head_count=len(tasks))
                # A part of the head: trained, clipped, selected and kept with its other parameters.
                self.head.add_module(f"{SIDES[position]}_mix", self.mixes[position])
        self.guidance = guidance
        if guidance is not None:
            guidance.attach(self.head, self.seeds)
        self.head.to(device)

    def run(self, steps: int) -> list[HeadResult]:
        """Train for the config's epochs, keep the chosen copies, test them."""
        config = self.config
        heads = len(self.tasks)
        optimiser = _StackedAdamW(self.head, weight_decay=config.weight_decay)
        batches = _BatchWalk(self.fitted_rows, self.seeds, steps=steps, batch_size=config.batch_size)
        watch = _Watch(config, self.head, heads)
        held_out = config.selection != "fixed" and any(len(task.validation) for task in self.tasks)
        probe = [rows[:CHUNK_ROWS] for rows in self.fitted_rows]
        recording = True
        curves: dict[str, list[NDArray[np.float64]]] = {}
        for epoch in range(config.epochs):
            rates = [_learning_rate(config, epoch * steps + step, config.epochs * steps) for step in range(steps)]
            points = self._train_epoch(optimiser, batches.next_epoch(), rates)
            self._check_finite(points["train_loss"], epoch)
            points |= self._validate(held_out)
            if recording:
                recorded = self._predict(probe, probe)[1]
                recording = bool(recorded)  # a head that records nothing is not asked again
                points |= _means(recorded, probe)
            for name, values in points.items():
                curves.setdefault(name, []).append(values)
            if not watch.update(self.head, points, epoch + 1):
                break
        watch.restore(self.head)
        return self._results(curves, watch)

    def _fit_scalers(self) -> list[list[Scaler]]:
        known: dict[tuple[int, bytes], Scaler] = {}
        scalers: list[list[Scaler]] = []
        for position, matrix in enumerate(self.inputs):
            per_head = []
            for rows in self.fitted_rows:
                key = (position, hashlib.sha256(rows.tobytes()).digest())
                if key not in known:
                    known[key] = fit_scaler(matrix, rows)
                per_head.append(known[key])
            scalers.append(per_head)
        return scalers

    def _gather(self, position: int, rows: Tensor) -> Tensor:
        """Standardised rows [H, B, D] of one input for row positions [H, B]."""
        if position in self.mixes:
            mix = self.mixes[position]
            return mix.forward(self.inputs[position], rows, self.means[position], self.factors[position])
        gathered = self.inputs[position].index_select(0, rows.reshape(-1)).view(*rows.shape, -1)
        return gathered.sub_(self.means[position]).mul_(self.factors[position])

    def _train_epoch(
        self, optimiser: _StackedAdamW, batches: Tensor, rates: Sequence[float]
    ) -> dict[str, NDArray[np.float64]]:
        """One epoch over row positions [H, steps, B]: each head's mean loss and share of clipped steps, [H]."""
        config = self.config
        self.head.train()
        batches = batches.to(self.device)
        surplus = padded_rows(config.batch_size) - config.batch_size
        row_weights = None
        if surplus:
            # Rows of weight 0, see ROW_MULTIPLE; they repeat a row of the batch and have no gradient.
            batches = torch.cat([batches, batches[..., :1].expand(-1, -1, surplus)], dim=-1)
            row_weights = torch.ones(batches.shape[0], batches.shape[2], device=self.device)
            row_weights[:, config.batch_size :] = 0.0
        targets = self.objective.targets(batches)  # [H, steps, B], or with a last dimension of C or K
        total, clipped = torch.zeros(2, len(self.tasks), dtype=torch.float64, device=self.device)
        for step, rate in enumerate(rates):
            rows = batches[:, step]
            outputs = self.head(*(self._gather(position, rows) for position in range(len(self.inputs))))
            losses = self.objective.loss(outputs, targets[:, step], row_weights)
            if self.guidance is not None:
                losses = losses + self.guidance.loss(outputs, rows, row_weights)
            torch.autograd.backward(losses.sum())
            total += losses.detach()
            if config.clip_norm > 0.0:
                clipped += _clip_per_head(self.head, config.clip_norm)
            optimiser.step(rate)
        points = {"train_loss": total, "gradient_clipped": clipped}
        return {name: (values / len(rates)).cpu().numpy() for name, values in points.items()}

    def _check_finite(self, losses: NDArray[np.float64], epoch: int) -> None:
        bad = np.flatnonzero(~np.isfinite(losses))
        if bad.size:
            task = self.tasks[int(bad[0])]
            raise ConfigError(
                f"Training diverged: the loss of {self.fusion!r}, fold {task.fold!r}, seed {task.seed} is "
                f"{losses[bad[0]]} in epoch {epoch + 1} ({bad.size} of {len(losses)} heads of the stack). A finite loss "
                f"was expected; the usual cause is the learning rate ({self.config.learning_rate:g}). Lower it."
            )

    def _validate(self, held_out: bool) -> dict[str, NDArray[np.float64]]:
        """Loss and score of each head on its validation rows, [H] each; NaN where there are none."""
        loss, score = np.full((2, len(self.tasks)), np.nan)
        if held_out:
            parts = [task.validation for task in self.tasks]
            outputs, _ = self._predict(parts, parts)
            for head, part in enumerate(parts):
                if len(part):
                    # Head by head: padded to a common length, the sum would round differently in another stack.
                    loss[head], score[head] = self.objective.validate(outputs[head, : len(part)], head, part)
        return {"validation_loss": loss, self.objective.score: score}

    @torch.no_grad()
    def _predict(
        self, left_rows: Sequence[Rows], right_rows: Sequence[Rows]
    ) -> tuple[Tensor, dict[str, NDArray[np.float64]]]:
        """Outputs [H, n, C or K] on the CPU for each head's rows, n the longest list, and what the heads record [H,
        n]."""
        self.head.eval()
        longest = max(len(rows) for rows in left_rows)
        positions = np.zeros((2, len(self.tasks), -(-longest // CHUNK_ROWS) * CHUNK_ROWS), dtype=np.int64)
        for side, lists in enumerate((left_rows, right_rows)):
            for head, rows in enumerate(lists):
                positions[side, head, : len(rows)] = rows
        at = torch.from_numpy(positions).to(self.device)
        outputs: list[Tensor] = []
        recorded: dict[str, list[Tensor]] = {}
        for start in range(0, positions.shape[2], CHUNK_ROWS):
            record: dict[str, Tensor] = {}
            chunk = at[:, :, start : start + CHUNK_ROWS]
            inputs = [self._gather(position, chunk[position]) for position in range(len(self.inputs))]
            outputs.append(self.head(*inputs, record=record).cpu())
            for name, values in record.items():
                recorded.setdefault(name, []).append(values.cpu())
        joined = {name: torch.cat(parts, dim=1)[:, :longest].double().numpy() for name, parts in recorded.items()}
        return torch.cat(outputs, dim=1)[:, :longest], joined

    def _results(self, curves: Mapping[str, Sequence[NDArray[np.float64]]], watch: _Watch) -> list[HeadResult]:
        tests = [task.test for task in self.tasks]
        streams = head_generators(self.seeds, "shuffle")
        shuffled = [task.shuffled_test(stream) for stream, task in zip(streams, self.tasks, strict=True)]
        finished = self.objective.finished
        outputs, recorded = self._predict(tests, tests)
        straight = finished(outputs)
        left_shuffled = finished(self._predict(shuffled, tests)[0])
        right_shuffled = None
        if len(self.inputs) == 2:
            right_shuffled = finished(self._predict(tests, shuffled)[0])
        diagnostics = _means(recorded, tests)
        for position, mix in self.mixes.items():
            weights = mix.weights().detach().double().cpu().numpy()  # [H, R]
            diagnostics |= {f"{SIDES[position]}_layer_{r:02d}": weights[:, r] for r in range(weights.shape[1])}
        results = []
        for head, task in enumerate(self.tasks):
            count = len(task.test)
            epochs = watch.epochs_of(head)
            results.append(
                HeadResult(
                    task=task,
                    test_outputs=straight[head, :count].copy(),
                    left_shuffled_outputs=left_shuffled[head, :count].copy(),
                    right_shuffled_outputs=None if right_shuffled is None else right_shuffled[head, :count].copy(),
                    curves={
                        name: np.array([point[head] for point in points[:epochs]]) for name, points in curves.items()
                    },
                    best_epoch=int(watch.best_epoch[head]),
                    diagnostics={name: float(values[head]) for name, values in diagnostics.items()},
                    parameters={
                        name: tensor.detach()[head].clone().cpu() for name, tensor in self.head.named_parameters()
                    },
                    left_scaler=self.scalers[0][head],
                    right_scaler=self.scalers[1][head] if len(self.scalers) == 2 else None,
                    target_scaler=self.objective.target_scalers[head] if self.objective.target_scalers else None,
                )
            )
        return results


class _StackedAdamW:
    """``torch.optim.AdamW(fused=True)`` on stacked parameters, with bits that do not depend on the stack.

    The fused kernel treats the last numel % 16 numbers of a tensor with scalar code whose rounding differs
    (measured), and those numbers belong to the last head. Tensors whose heads do not fill whole registers
    therefore live in a longer buffer whose surplus end takes that role.
    """

    def __init__(self, head: nn.Module, *, weight_decay: float) -> None:
        self._parameters = list(head.parameters())
        self._copies: list[tuple[Tensor, Tensor]] = []  # parameter, and its gradient's place in the longer buffer
        decayed: list[Tensor] = []
        plain: list[Tensor] = []
        for name, parameter in head.named_parameters():
            group = decayed if name.endswith(".weight") else plain
            count = parameter.numel()
            if (count // parameter.shape[0]) % 16 == 0:
                group.append(parameter)
                continue
            buffer = torch.zeros(-(-count // 16) * 16, device=parameter.device)
            buffer[:count] = parameter.detach().reshape(-1)
            buffer.grad = torch.zeros_like(buffer)
            parameter.data = buffer[:count].view(parameter.shape)
            self._copies.append((parameter, buffer.grad[:count].view(parameter.shape)))
            group.append(buffer)
        groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
        self._adam = torch.optim.AdamW([group for group in groups if group["params"]], fused=True)

    def step(self, learning_rate: float) -> None:
        """Apply and drop the gradients."""
        for group in self._adam.param_groups:
            group["lr"] = learning_rate
        for parameter, place in self._copies:
            assert parameter.grad is not None
            place.copy_(parameter.grad)
        self._adam.step()
        for parameter in self._parameters:
            parameter.grad = None


class _BatchWalk:
    """Full batches for every head: each walks through successive permutations of its own rows."""

    def __init__(self, rows: Sequence[Rows], seeds: Sequence[int], *, steps: int, batch_size: int) -> None:
        self._rows = rows
        self._streams = head_generators(seeds, "batches")
        self._waiting = [np.empty(0, dtype=np.int64) for _ in rows]
        self._shape = (steps, batch_size)

    def next_epoch(self) -> Tensor:
        """Row positions [H, steps, B]."""
        steps, batch_size = self._shape
        needed = steps * batch_size
        epoch = np.empty((len(self._rows), needed), dtype=np.int64)
        for head, stream in enumerate(self._streams):
            queue = [self._waiting[head]]
            while sum(map(len, queue)) < needed:
                queue.append(stream.permutation(self._rows[head]))
            joined = np.concatenate(queue)
            epoch[head], self._waiting[head] = joined[:needed], joined[needed:]
        return torch.from_numpy(epoch).view(len(self._rows), steps, batch_size)


class _Watch:
    """Which copy of each head to keep: the last, or the best by its (smoothed) validation score."""

    def __init__(self, config: TrainConfig, head: nn.Module, heads: int) -> None:
        self._config = config
        self._selects = config.selection in SELECTING
        self._score: NDArray[np.float64] | None = None
        self._best_score = np.full(heads, np.inf)
        self._stopped = np.zeros(heads, dtype=np.int64)  # the epoch after which a head stopped, 0 while it goes on
        self.best_epoch = np.zeros(heads, dtype=np.int64)
        self._best = {name: p.detach().clone() for name, p in head.named_parameters()} if self._selects else {}

    def update(self, head: nn.Module, points: Mapping[str, NDArray[np.float64]], epoch: int) -> bool:
        """Take note of an epoch (counted from 1); False when no head wants another one."""
        if not self._selects:
            self.best_epoch[:] = epoch
            return True
        by = self._config.selection
        score = points["validation_loss"] if by == "loss" else -points[f"validation_{by}"]
        past = self._config.selection_smoothing
        self._score = score if self._score is None else past * self._score + (1.0 - past) * score
        running = self._stopped == 0
        better = running & (self._score < self._best_score)
        self._best_score[better] = self._score[better]
        self.best_epoch[better] = epoch
        chosen = torch.from_numpy(better)
        for name, parameter in head.named_parameters():
            self._best[name][chosen] = parameter.detach()[chosen]
        if self._config.patience:
            tired = running & (epoch - self.best_epoch >= self._config.patience)
            self._stopped[tired] = epoch
        return bool((self._stopped == 0).any())

    @torch.no_grad()
    def restore(self, head: nn.Module) -> None:
        """Put the kept copies back into the heads."""
        for name, parameter in head.named_parameters():
            if name in self._best:
                parameter.copy_(self._best[name])

    def epochs_of(self, head: int) -> int | None:
        """How many epochs belong to a head's curve; None for all that were run."""
        return int(self._stopped[head]) or None


def _parts(rows: Rows, matrix: Tensor) -> list[Rows]:
    """Rows of a matrix, as many at a time as may be copied."""
    count = max(1, _PART_BYTES // (4 * math.prod(matrix.shape[1:])))
    return [rows[at : at + count] for at in range(0, len(rows), count)]


def stacked(per_head: Sequence[Tensor]) -> Tensor:
    """Vectors [D] of all heads as [H, 1, D]; matrices [R, D] as [H, R, D]."""
    together = torch.stack(list(per_head))
    return together.unsqueeze(1) if together.dim() == 2 else together


def fitted_rows(task: HeadTask, config: TrainConfig) -> Rows:
    """The rows that a head is trained on: with selection "fixed" the validation part as well."""
    return np.concatenate([task.train, task.validation]) if config.selection == "fixed" else task.train


def _learning_rate(config: TrainConfig, step: int, steps: int) -> float:
    if config.schedule == "constant":
        return config.learning_rate
    return config.learning_rate * 0.5 * (1.0 + math.cos(math.pi * step / steps))


def _clip_per_head(head: nn.Module, clip_norm: float) -> Tensor:
    """Scale each head's gradient down to ``clip_norm`` if its norm is larger; 1 where that happened, [H]."""
    gradients = [parameter.grad for parameter in head.parameters() if parameter.grad is not None]
    total = torch.zeros(gradients[0].shape[0], device=gradients[0].device)
    for gradient in gradients:  # one by one: the order of the sum stays the same whatever H is
        total += torch.linalg.vector_norm(gradient.reshape(len(total), -1), dim=1).square()
    factors = (clip_norm / total.sqrt()).clamp(max=1.0)
    too_long = factors < 1.0
    if bool(too_long.any()):  # a factor of exactly 1 changes no bits, so the other heads are as if untouched
        for gradient in gradients:
            gradient.mul_(factors.view(-1, *[1] * (gradient.dim() - 1)))
    return too_long.to(total.dtype)


def _means(recorded: Mapping[str, NDArray[np.float64]], parts: Sequence[Rows]) -> dict[str, NDArray[np.float64]]:
    """Mean of each recorded quantity [H, n] over each head's own rows, [H]."""
    return {
        name: np.array([values[head, : len(part)].mean() for head, part in enumerate(parts)])
        for name, values in recorded.items()
    }


@contextmanager
def one_thread() -> Iterator[None]:
    """While it lasts, torch uses one intra-op thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _named(task: HeadTask) -> str:
    """How a message about a task begins."""
    return f"Fold {task.fold!r}, seed {task.seed}:"


def _check_inputs(
    left: Tensor, right: Tensor | None, count: int, tasks: Sequence[HeadTask], steps: int, config: TrainConfig
) -> None:
    if steps < 1 or not tasks:
        raise ConfigError(
            f"Training needs at least one task and one step per epoch; got {len(tasks)} task(s), {steps} step(s)."
        )
    for side, matrix in (("left", left), ("right", right)):
        if matrix is None:
            continue
        if matrix.dtype != torch.float32 or matrix.dim() not in (2, 3) or matrix.shape[0] != count:
            raise ConfigError(
                f"The {side} input is {tuple(matrix.shape)} {matrix.dtype}, but [{count}, D] torch.float32 is expected, or "
                f"[{count}, R, D] to weight layers: one row per label or value."
            )
    used = np.zeros(count, dtype=bool)
    for task in tasks:
        _check_task(task, count, config)
        for rows in (task.train, task.validation, task.test):
            used[rows] = True
    for side, matrix in (("left", left), ("right", right)):
        if matrix is None:
            continue
        for part in _parts(np.flatnonzero(used), matrix):
            chosen = matrix[torch.from_numpy(part).to(matrix.device)].flatten(start_dim=1)
            finite = torch.isfinite(chosen).all(dim=1).cpu().numpy()
            if not finite.all():
                raise StoreError(
                    f"The {side} embeddings of row {part[~finite][0]} are not finite (the first such row of those that "
                    f"train or test). Finite numbers were expected; the store may be damaged: run 'hyfuse cache verify'."
                )


def _check_task(task: HeadTask, count: int, config: TrainConfig) -> None:
    where = _named(task)
    seen = np.zeros(count, dtype=bool)
    for part in ("train", "validation", "test"):
        rows = getattr(task, part)
        if rows.dtype != np.int64 or rows.ndim != 1:
            raise ProtocolError(
                f"{where} the {part} rows are {rows.dtype} {rows.shape}, but a list of int64 is expected."
            )
        if len(rows) == 0 and part != "validation":
            raise ProtocolError(f"{where} the {part} part has no rows; every fold needs some.")
        if len(rows) and (rows.min() < 0 or rows.max() >= count):
            raise ProtocolError(f"{where} a {part} row lies outside 0..{count - 1}.")
        if seen[rows].any() or len(np.unique(rows)) < len(rows):
            raise ProtocolError(
                f"{where} a row of the {part} part is used twice; the parts of a fold must be disjoint."
            )
        seen[rows] = True
    if config.selection in SELECTING and len(task.validation) == 0:
        raise ProtocolError(
            f"{where} there are no validation rows to choose an epoch by, as --selection {config.selection} asks. Use a "
            f"protocol with a validation part, or --selection fixed."
        )
