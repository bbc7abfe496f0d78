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

Which rows are trained on, and which epoch is kept (``TrainConfig.selection``): "fixed" trains on train +
validation rows for a fixed number of epochs and keeps the last; nothing is selected, so nothing needs to be
held out. The others train on the train rows only; "loss" and "uar" keep the copy that did best on the
validation rows. ``docs/fusion.md`` has the measurements behind the defaults.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipelines.errors import ConfigError, DeviceError, ProtocolError, StoreError, unknown_name
from pipelines.fusion.catalogue import build_head
from pipelines.fusion.stacked import head_generators, padded_rows
from pipelines.training.layers import LayerMix
from pipelines.training.losses import cross_entropy
from pipelines.training.metrics import unweighted_average_recall

__all__ = [
    "HeadResult",
    "HeadTask",
    "Scaler",
    "TrainConfig",
    "fit_scaler",
    "fitted_rows",
    "head_seed",
    "steps_per_epoch",
    "train_stack",
]

Rows = NDArray[np.int64]

_SIDES = ("left", "right")
_SELECTIONS = ("fixed", "last", "loss", "uar")
_SCHEDULES = ("cosine", "constant")
_CLASS_WEIGHTS = ("none", "balanced")

# Rows per evaluation chunk. A constant: matrix products of another height round differently, and a chunk as
# high as the longest test part of the stack would let one head's test part change another head's bits.
_CHUNK_ROWS = 128

_PART_BYTES = 2**25  # that are copied at a time to fit scalers and to look for numbers that are not finite


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How a head is trained; everything but the data, the fusion and its options."""

    epochs: int = 30
    """Passes over the training rows (for "loss" and "uar": at most)."""
    batch_size: int = 32
    """Utterances per step."""
    learning_rate: float = 1e-3
    """Step size of AdamW at the start."""
    schedule: str = "cosine"
    """Learning rate over the run: "cosine" falls to 0 along half a cosine, "constant" stays."""
    weight_decay: float = 0.01
    """Decoupled decay of the weight matrices; biases, scales and radii are never decayed."""
    label_smoothing: float = 0.1
    """Share of the target spread evenly over all classes, in [0, 1)."""
    class_weights: str = "none"
    """"balanced" weights each class by rows / (classes x rows of the class), counted on the rows trained
    on."""
    hidden_dim: int = 120
    """Width of each stream after its projection; a multiple of 8."""
    input_dropout: float = 0.5
    """Share of standardised input features dropped, in [0, 1)."""
    dropout: float = 0.0
    """Share of fused features dropped before the output layer, in [0, 1)."""
    clip_norm: float = 1.0
    """Largest norm of one head's gradient; 0 switches clipping off."""
    selection: str = "fixed"
    """Which rows train and which epoch is kept: "fixed", "last", "loss" or "uar" (see the module)."""
    selection_smoothing: float = 0.7
    """For "loss" and "uar": weight of the past in the running mean of the validation score, in [0, 1)."""
    patience: int = 0
    """For "loss" and "uar": epochs without a better score after which a head stops; 0 never stops early."""

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
        stops = self.patience == 0 or self.selection in ("loss", "uar")
        self._check("patience", stops, f"needs --selection loss or uar, not {self.selection!r}, to watch a score")

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
    test_probabilities: NDArray[np.float32]
    """Class probabilities of ``task.test``, in its order, [n_test, C]."""
    left_shuffled_probabilities: NDArray[np.float32]
    """The same with the left input permuted among the test rows."""
    right_shuffled_probabilities: NDArray[np.float32] | None
    """The same with the right input permuted; None for "single"."""
    curves: dict[str, NDArray[np.float64]]
    """Per epoch: ``train_loss`` (the loss that is minimised, mean over the epoch's batches, with dropout);
    ``gradient_clipped`` (share of its steps whose gradient was clipped); ``validation_loss`` (plain
    cross-entropy) and ``validation_uar``, NaN unless validation rows exist and are held out; and each
    diagnostic of the head, measured on the first 128 rows trained on."""
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


def train_stack(
    *,
    fusion: str,
    options: Mapping[str, object],
    left: Tensor,
    right: Tensor | None,
    labels: Tensor,
    tasks: Sequence[HeadTask],
    steps_per_epoch: int,
    num_classes: int,
    config: TrainConfig,
    device: str = "cpu",
) -> list[HeadResult]:
    """Train one head per task, all in one stack, and test each.

    Stacks of about ten heads are fastest on a CPU: smaller ones pay more for the interpreter, the tensors of
    larger ones leave the cache.

    Args:
        fusion: name of the fusion, or "single".
        options: options of the fusion; what is left out keeps its default.
        left: embeddings, [N, Dl] float32, or the layers of an encoder, [N, R, Dl], to be weighted by each head.
        right: embeddings, [N, Dr] or [N, R, Dr] float32, or None for "single".
        labels: class indices, [N] int64; -1 for rows without a label, which no training or validation part
            may hold.
        tasks: one per head.
        steps_per_epoch: batches per epoch, the same for every stack of the protocol
            (:func:`steps_per_epoch`).
        num_classes: C.
        config: how to train.
        device: "cpu" or "cuda".

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
    _check_inputs(left, right, labels, tasks, steps_per_epoch, num_classes, config)
    if device != "cpu" and not torch.cuda.is_available():
        raise DeviceError(f"Device {device!r} was asked for, but torch sees no GPU. Use --device cpu or auto.")
    with _one_thread():
        return _Stack(
            fusion=fusion,
            options=options,
            inputs=[left] if right is None else [left, right],
            labels=labels,
            tasks=tasks,
            num_classes=num_classes,
            config=config,
            device=device,
        ).run(steps_per_epoch)


class _Stack:
    """The state of one training run: the heads, their optimiser, their batch streams and what is kept of
    them."""

    def __init__(
        self,
        *,
        fusion: str,
        options: Mapping[str, object],
        inputs: Sequence[Tensor],
        labels: Tensor,
        tasks: Sequence[HeadTask],
        num_classes: int,
        config: TrainConfig,
        device: str,
    ) -> None:
        self.fusion = fusion
        self.tasks = tasks
        self.config = config
        self.device = device
        self.num_classes = num_classes
        self.inputs = [matrix.to(device) for matrix in inputs]
        self.labels = labels.to(device)
        self.known_labels = labels.cpu().numpy()
        self.fitted_rows = [fitted_rows(task, config) for task in tasks]
        self.scalers = self._fit_scalers()
        # Per input: what a gathered batch [H, B, D] is standardised with, [H, 1, D] each ([H, R, D] for layers).
        self.means = [_stacked([s.mean for s in per_head]).to(device) for per_head in self.scalers]
        self.factors = [_stacked([s.std for s in per_head]).reciprocal().to(device) for per_head in self.scalers]
        self.seeds = [head_seed(task.fold, task.seed) for task in tasks]
        self.head = build_head(
            fusion,
            left_dim=inputs[0].shape[-1],
            right_dim=inputs[1].shape[-1] if len(inputs) == 2 else None,
            num_classes=num_classes,
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
                self.head.add_module(f"{_SIDES[position]}_mix", self.mixes[position])
        self.head.to(device)
        self.class_weights = self._class_weights()

    def run(self, steps: int) -> list[HeadResult]:
        """Train for the config's epochs, keep the chosen copies, test them."""
        config = self.config
        heads = len(self.tasks)
        optimiser = _StackedAdamW(self.head, weight_decay=config.weight_decay)
        batches = _BatchWalk(self.fitted_rows, self.seeds, steps=steps, batch_size=config.batch_size)
        watch = _Watch(config, self.head, heads)
        held_out = config.selection != "fixed" and any(len(task.validation) for task in self.tasks)
        probe = [rows[:_CHUNK_ROWS] for rows in self.fitted_rows]
        curves: dict[str, list[NDArray[np.float64]]] = {}
        for epoch in range(config.epochs):
            rates = [_learning_rate(config, epoch * steps + step, config.epochs * steps) for step in range(steps)]
            points = self._train_epoch(optimiser, batches.next_epoch(), rates)
            self._check_finite(points["train_loss"], epoch)
            points |= self._validate(held_out)
            points |= _means(self._predict(probe, probe)[1], probe)
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

    def _class_weights(self) -> Tensor | None:
        if self.config.class_weights == "none":
            return None
        counts = np.stack(
            [np.bincount(self.known_labels[rows], minlength=self.num_classes) for rows in self.fitted_rows]
        )
        present = (counts > 0).sum(axis=1, keepdims=True)
        weights = counts.sum(axis=1, keepdims=True) / (present * np.maximum(counts, 1))
        return torch.from_numpy(np.where(counts > 0, weights, 0.0)).float().to(self.device)

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
        targets = self.labels[batches]  # [H, steps, B]
        total, clipped = torch.zeros(2, len(self.tasks), dtype=torch.float64, device=self.device)
        for step, rate in enumerate(rates):
            rows = batches[:, step]
            logits = self.head(*(self._gather(position, rows) for position in range(len(self.inputs))))
            losses = cross_entropy(
                logits,
                targets[:, step],
                label_smoothing=config.label_smoothing,
                class_weights=self.class_weights,
                row_weights=row_weights,
            )
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
        """Cross-entropy and UAR of each head on its validation rows, [H] each; NaN where there are none."""
        points = {name: np.full(len(self.tasks), np.nan) for name in ("validation_loss", "validation_uar")}
        if not held_out:
            return points
        parts = [task.validation for task in self.tasks]
        logits, _ = self._predict(parts, parts)
        for head, part in enumerate(parts):
            if len(part):
                # Head by head: padded to a common length, the sum would round differently in another stack.
                own, labels = logits[head : head + 1, : len(part)].double(), self.known_labels[part]
                points["validation_loss"][head] = float(cross_entropy(own, torch.from_numpy(labels)[None]))
                predictions = own[0].argmax(dim=-1).numpy()
                points["validation_uar"][head] = unweighted_average_recall(labels, predictions, self.num_classes)
        return points

    @torch.no_grad()
    def _predict(
        self, left_rows: Sequence[Rows], right_rows: Sequence[Rows]
    ) -> tuple[Tensor, dict[str, NDArray[np.float64]]]:
        """Logits [H, n, C] on the CPU for each head's rows, n the longest list, and what the heads record [H,
        n]."""
        self.head.eval()
        longest = max(len(rows) for rows in left_rows)
        positions = np.zeros((2, len(self.tasks), -(-longest // _CHUNK_ROWS) * _CHUNK_ROWS), dtype=np.int64)
        for side, lists in enumerate((left_rows, right_rows)):
            for head, rows in enumerate(lists):
                positions[side, head, : len(rows)] = rows
        at = torch.from_numpy(positions).to(self.device)
        logits: list[Tensor] = []
        recorded: dict[str, list[Tensor]] = {}
        for start in range(0, positions.shape[2], _CHUNK_ROWS):
            record: dict[str, Tensor] = {}
            chunk = at[:, :, start : start + _CHUNK_ROWS]
            inputs = [self._gather(position, chunk[position]) for position in range(len(self.inputs))]
            logits.append(self.head(*inputs, record=record).cpu())
            for name, values in record.items():
                recorded.setdefault(name, []).append(values.cpu())
        joined = {name: torch.cat(parts, dim=1)[:, :longest].double().numpy() for name, parts in recorded.items()}
        return torch.cat(logits, dim=1)[:, :longest], joined

    def _results(self, curves: Mapping[str, Sequence[NDArray[np.float64]]], watch: _Watch) -> list[HeadResult]:
        tests = [task.test for task in self.tasks]
        streams = head_generators(self.seeds, "shuffle")
        shuffled = [stream.permutation(rows) for stream, rows in zip(streams, tests, strict=True)]
        logits, recorded = self._predict(tests, tests)
        straight = torch.softmax(logits, dim=-1).numpy()
        left_shuffled = torch.softmax(self._predict(shuffled, tests)[0], dim=-1).numpy()
        right_shuffled = None
        if len(self.inputs) == 2:
            right_shuffled = torch.softmax(self._predict(tests, shuffled)[0], dim=-1).numpy()
        diagnostics = _means(recorded, tests)
        for position, mix in self.mixes.items():
            weights = mix.weights().detach().double().cpu().numpy()  # [H, R]
            diagnostics |= {f"{_SIDES[position]}_layer_{r:02d}": weights[:, r] for r in range(weights.shape[1])}
        results = []
        for head, task in enumerate(self.tasks):
            count = len(task.test)
            epochs = watch.epochs_of(head)
            results.append(
                HeadResult(
                    task=task,
                    test_probabilities=straight[head, :count].copy(),
                    left_shuffled_probabilities=left_shuffled[head, :count].copy(),
                    right_shuffled_probabilities=None
                    if right_shuffled is None
                    else right_shuffled[head, :count].copy(),
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
        self._selects = config.selection in ("loss", "uar")
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
        score = points["validation_loss"] if self._config.selection == "loss" else -points["validation_uar"]
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


def _stacked(per_head: Sequence[Tensor]) -> Tensor:
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
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _check_inputs(
    left: Tensor,
    right: Tensor | None,
    labels: Tensor,
    tasks: Sequence[HeadTask],
    steps: int,
    num_classes: int,
    config: TrainConfig,
) -> None:
    if steps < 1 or num_classes < 2 or not tasks:
        raise ConfigError(
            f"Training needs at least one task, one step per epoch and two classes; got {len(tasks)} task(s), {steps} "
            f"step(s), {num_classes} class(es)."
        )
    count = labels.shape[0]
    for side, matrix in (("left", left), ("right", right)):
        if matrix is None:
            continue
        if matrix.dtype != torch.float32 or matrix.dim() not in (2, 3) or matrix.shape[0] != count:
            raise ConfigError(
                f"The {side} input is {tuple(matrix.shape)} {matrix.dtype}, but [{count}, D] torch.float32 is expected, or "
                f"[{count}, R, D] to weight layers: one row per label."
            )
    used = np.zeros(count, dtype=bool)
    known = labels.cpu().numpy()
    for task in tasks:
        _check_task(task, known, num_classes, config)
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


def _check_task(task: HeadTask, labels: NDArray[np.int64], num_classes: int, config: TrainConfig) -> None:
    where = f"Fold {task.fold!r}, seed {task.seed}:"
    seen = np.zeros(len(labels), dtype=bool)
    for part in ("train", "validation", "test"):
        rows = getattr(task, part)
        if rows.dtype != np.int64 or rows.ndim != 1:
            raise ProtocolError(
                f"{where} the {part} rows are {rows.dtype} {rows.shape}, but a list of int64 is expected."
            )
        if len(rows) == 0 and part != "validation":
            raise ProtocolError(f"{where} the {part} part has no rows; every fold needs some.")
        if len(rows) and (rows.min() < 0 or rows.max() >= len(labels)):
            raise ProtocolError(f"{where} a {part} row lies outside 0..{len(labels) - 1}.")
        if seen[rows].any() or len(np.unique(rows)) < len(rows):
            raise ProtocolError(
                f"{where} a row of the {part} part is used twice; the parts of a fold must be disjoint."
            )
        seen[rows] = True
        if part != "test" and len(rows) and (labels[rows].min() < 0 or labels[rows].max() >= num_classes):
            raise ProtocolError(
                f"{where} a {part} row has no label in 0..{num_classes - 1} (found {labels[rows].min()}.."
                f"{labels[rows].max()}). Leave rows without a label out of the fold."
            )
    if config.selection in ("loss", "uar") and len(task.validation) == 0:
        raise ProtocolError(
            f"{where} there are no validation rows to choose an epoch by, as --selection {config.selection} asks. Use a "
            f"protocol with a validation part, or --selection fixed."
        )
