"""Distillation: heads that learn from the data and from a trained teacher (Hinton, Vinyals & Dean 2015, arXiv 1503.02531).

A *teacher* has been trained on more than its *student* will have when it is used: on clean recordings and the words that were said,
say. The student hears the same utterances otherwise, for instance in noise. Its loss is

    task loss + alpha * embedding match + beta * output match

* **Embedding match** (``alpha``): the vector before the student's output layer, through a linear projection that is learned along
  and thrown away, against the vector before the teacher's. The teacher's is standardised per feature over the rows it was trained
  on, so that a match of 1 is that of a constant and 0 is perfect; ``mse`` is the mean over features of the squared distance,
  ``cosine`` one minus the cosine.
* **Output match** (``beta``): of classes ``kl``, the divergence of the student's distribution from the teacher's, both softened by
  ``temperature``, times its square (Hinton et al., section 2); of dimensions ``ccc``, the mean over dimensions of one minus the
  concordance over the batch, or ``mse``, that of the squared distance between standardised values. Whoever is judged by
  concordance had better not learn by squares, which draw uncertain predictions to the mean: on the demo corpus ``mse`` costs
  0.03 CCC (docs/distill.md).

That a student matches embedding and concordance is how Mitra et al. 2023 (arXiv 2303.03177) may be read; the rest is ours.

**What the teacher knows of whom.** Teacher and student of a fold are trained on the same utterances (:func:`check_tasks`), and of
all other utterances a :class:`Lessons` holds NaN: nothing that a teacher says of a test speaker can reach a student.

With alpha and beta 0 nothing is added and the student is an ordinary head, bit for bit. As everywhere, what a head ends up with
does not depend on the other heads of its stack. Memory: 4 H n (E + C) bytes for H teachers, n utterances, E features and C outputs;
0.5 GB for ten teachers of 128 features and 100,000 utterances.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipelines.errors import ConfigError, ProtocolError, unknown_name
from pipelines.fusion.stacked import StackedLinear
from pipelines.training.applied import apply_heads, output_layer
from pipelines.training.losses import concordance_loss
from pipelines.training.trainer import HeadResult, HeadTask, TrainConfig, fitted_rows, train_stack

__all__ = [
    "EMBEDDING_MATCHES",
    "OUTPUT_MATCHES",
    "DistillationConfig",
    "Lessons",
    "check_tasks",
    "cosine_match",
    "distribution_match",
    "give_lessons",
    "squared_match",
    "train_students",
]

EMBEDDING_MATCHES = ("mse", "cosine")
OUTPUT_MATCHES: dict[str, tuple[str, ...]] = {"emotion": ("kl",), "dimensions": ("ccc", "mse")}
"""Target to its output matches, the default first."""

_NAME = "guidance"  # of the projection among a head's parameters while it is trained
_SMALL = 1e-12  # below any squared length of a standardised vector that is not 0


@dataclass(frozen=True, kw_only=True)
class DistillationConfig:
    """How a student learns from its teacher; the values are ours."""

    alpha: float = 1.0
    """Weight of the embedding match, 0 for none."""
    beta: float = 1.0
    """Weight of the output match, 0 for none."""
    embedding_match: str = "mse"
    """"mse" or "cosine"."""
    output_match: str = ""
    """"kl" of classes; "ccc" or "mse" of dimensions; empty for the first of the target."""
    temperature: float = 2.0
    """By which the distributions of "kl" are softened."""

    def __post_init__(self) -> None:
        for name in ("alpha", "beta"):
            if not 0.0 <= getattr(self, name) < float("inf"):
                raise ConfigError(f"--{name} must be 0 or more, not {getattr(self, name)}.")
        if not 0.0 < self.temperature < float("inf"):
            raise ConfigError(f"--temperature must be a positive number, not {self.temperature}.")
        if self.embedding_match not in EMBEDDING_MATCHES:
            raise unknown_name("--embedding-match", self.embedding_match, EMBEDDING_MATCHES)
        known = [name for names in OUTPUT_MATCHES.values() for name in names]
        if self.output_match and self.output_match not in known:
            raise unknown_name("--output-match", self.output_match, known)

    @property
    def guides(self) -> bool:
        """Whether the teacher has a say at all."""
        return self.alpha > 0.0 or self.beta > 0.0

    def match_of(self, target: str) -> str:
        """The output match that is used.

        Args:
            target: ``emotion`` or ``dimensions``.

        Raises:
            ConfigError: one of the other target.
        """
        if self.output_match and self.output_match not in OUTPUT_MATCHES[target]:
            raise ConfigError(
                f"--output-match {self.output_match} means nothing to --target {target}; it has"
                f" {' and '.join(OUTPUT_MATCHES[target])}."
            )
        return self.output_match or OUTPUT_MATCHES[target][0]


@dataclass(frozen=True, eq=False)
class Lessons:
    """What H teachers say of the utterances that they were trained on.

    Attributes:
        outputs: [H, n, C] logits, or [H, n, K] standardised values; NaN for utterances that a teacher was not trained on.
        embeddings: [H, n, E], what enters the teacher's output layer, standardised over the rows it was trained on; NaN likewise.
    """

    outputs: Tensor
    embeddings: Tensor


def check_tasks(teachers: Sequence[HeadTask], students: Sequence[HeadTask], *, utterances: int) -> None:
    """See that every student has its own teacher: of the same fold and seed, trained on the same utterances, not on its test.

    Args:
        teachers: their tasks.
        students: theirs; rows are ``block * utterances + utterance`` (:mod:`pipelines.training.conditions`) for both.
        utterances: n.

    Raises:
        ProtocolError: they do not belong together.
    """
    named = [[(task.fold, task.seed) for task in tasks] for tasks in (teachers, students)]
    if named[0] != named[1]:
        odd = next((pair for pair in zip(*named, strict=False) if pair[0] != pair[1]), (named[0][-1:], named[1][-1:]))
        raise ProtocolError(
            f"{len(teachers)} teacher(s) and {len(students)} student(s) are of different folds or seeds; the first difference is"
            f" {odd[0]} against {odd[1]}. Train both with one protocol and the same seeds."
        )
    for teacher, student in zip(teachers, students, strict=True):
        known = _utterances(utterances, teacher.train, teacher.validation)
        taught = _utterances(utterances, student.train, student.validation)
        tested = _utterances(utterances, student.test)
        where = f"Fold {student.fold!r}, seed {student.seed}:"
        if leaked := len(np.intersect1d(known, tested)):
            raise ProtocolError(
                f"{where} the teacher was trained on {leaked} of the {len(tested)} utterances that the student is tested on. Train"
                " both with the same folds."
            )
        if strange := len(np.setdiff1d(taught, known)):
            raise ProtocolError(
                f"{where} {strange} of the {len(taught)} utterances that the student learns from are not among those of the"
                " teacher, which has nothing to say of them. Train both with the same folds on the same utterances."
            )


def _utterances(count: int, *rows: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.unique(np.concatenate(rows) % count)


def give_lessons(
    teachers: Sequence[HeadResult],
    *,
    fusion: str,
    options: Mapping[str, object],
    left: Tensor,
    right: Tensor | None,
    utterances: int,
    config: TrainConfig,
) -> Lessons:
    """Ask trained teachers about the utterances that they were trained on.

    Args:
        teachers: H of one fusion, trained on rows below ``utterances``.
        fusion: as they were trained.
        options: as they were trained.
        left: embeddings; row u is utterance u as the teachers know it.
        right: likewise, or None.
        utterances: n; what lies below in the matrices is not looked at.
        config: as they were trained.

    Raises:
        ProtocolError: a teacher was trained on other rows.
    """
    fitted = [fitted_rows(one.task, config) for one in teachers]
    for one, rows in zip(teachers, fitted, strict=True):
        if rows.max() >= utterances:
            raise ProtocolError(
                f"Fold {one.task.fold!r}, seed {one.task.seed}: the teacher was trained on row {rows.max()}, but its lessons are of"
                f" rows 0..{utterances - 1} alone."
            )
    outputs, embeddings = apply_heads(
        teachers,
        fusion=fusion,
        options=options,
        left=left[:utterances],
        right=None if right is None else right[:utterances],
        rows=np.arange(utterances),
        config=config,
    )
    for head, (one, rows) in enumerate(zip(teachers, fitted, strict=True)):
        unknown = np.ones(utterances, dtype=bool)
        unknown[rows] = False
        if one.target_scaler is not None:
            outputs[head] = (outputs[head] - one.target_scaler.mean.numpy()) / one.target_scaler.std.numpy()
        embeddings[head] = _standardised(embeddings[head], rows)
        outputs[head, unknown] = np.nan
        embeddings[head, unknown] = np.nan
    return Lessons(*(torch.from_numpy(np.ascontiguousarray(one)) for one in (outputs, embeddings)))


def _standardised(vectors: NDArray[np.float32], rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """[n, E] with mean 0 and variance 1 over some rows; a feature that does not vary there becomes 0."""
    own = vectors[rows].astype(np.float64)
    mean, std = own.mean(axis=0), own.std(axis=0)
    still = std <= 1e-6 * np.maximum(np.abs(mean), 1e-6)
    scaled = (vectors - mean) / np.where(still, 1.0, std)
    scaled[:, still] = 0.0
    result: NDArray[np.float32] = scaled.astype(np.float32)
    return result


def squared_match(found: Tensor, wanted: Tensor, *, row_weights: Tensor | None = None) -> Tensor:
    """Mean over features and rows of the squared distance of each head.

    Args:
        found: [H, B, E].
        wanted: [H, B, E].
        row_weights: weight of each row, [H, B], 0 for rows that only fill up a batch; None counts every row.

    Returns:
        [H].
    """
    return _mean((found - wanted).square().mean(dim=-1), row_weights)


def cosine_match(found: Tensor, wanted: Tensor, *, row_weights: Tensor | None = None) -> Tensor:
    """Mean over rows of one minus the cosine, between 0 and 2; 1 where one of the vectors is 0.

    Args:
        found: [H, B, E].
        wanted: [H, B, E].
        row_weights: weight of each row, [H, B]; None counts every row.

    Returns:
        [H].
    """
    lengths = (found.square().sum(dim=-1) * wanted.square().sum(dim=-1)).clamp(min=_SMALL).sqrt()
    return _mean(1.0 - (found * wanted).sum(dim=-1) / lengths, row_weights)


def distribution_match(
    logits: Tensor, wanted: Tensor, *, temperature: float, row_weights: Tensor | None = None
) -> Tensor:
    """Mean over rows of t^2 KL(softmax(wanted / t) || softmax(logits / t)); the factor keeps its gradient in step with t.

    Args:
        logits: of the students, [H, B, C].
        wanted: logits of their teachers, [H, B, C].
        temperature: t.
        row_weights: weight of each row, [H, B]; None counts every row.

    Returns:
        [H].
    """
    own = torch.log_softmax(logits / temperature, dim=-1)
    known = torch.log_softmax(wanted / temperature, dim=-1)
    divergence = (known.exp() * (known - own)).sum(dim=-1)  # [H, B]
    return _mean(divergence * temperature**2, row_weights)


def _mean(per_row: Tensor, row_weights: Tensor | None) -> Tensor:
    if row_weights is None:
        return per_row.mean(dim=-1)
    return (per_row * row_weights).sum(dim=-1) / row_weights.sum(dim=-1)


class _FromTeachers:
    """What teachers add to the losses of their students; see :class:`pipelines.training.trainer.Guidance`."""

    def __init__(self, lessons: Lessons, *, config: DistillationConfig, target: str) -> None:
        self._outputs, self._embeddings = lessons.outputs, lessons.embeddings
        self._config, self._match = config, config.match_of(target)
        self._project: StackedLinear | None = None
        self._seen: Tensor | None = None

    def attach(self, head: nn.Module, seeds: Sequence[int]) -> None:
        layer: Any = output_layer(head)
        layer.register_forward_pre_hook(self._see)
        if self._config.alpha > 0.0:
            width = layer.weight.shape[1]
            self._project = StackedLinear(width, self._embeddings.shape[-1], head_seeds=seeds, name=_NAME)
            head.add_module(_NAME, self._project)

    def _see(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._seen = inputs[0]

    def loss(self, outputs: Tensor, rows: Tensor, row_weights: Tensor | None) -> Tensor:
        config, total = self._config, outputs.new_zeros(len(outputs))
        if self._project is not None and self._seen is not None:
            self._embeddings, wanted = _gathered(self._embeddings, rows)
            match = squared_match if config.embedding_match == "mse" else cosine_match
            total = total + config.alpha * match(self._project(self._seen), wanted, row_weights=row_weights)
        if config.beta > 0.0:
            self._outputs, wanted = _gathered(self._outputs, rows)
            if self._match == "kl":
                own = distribution_match(outputs, wanted, temperature=config.temperature, row_weights=row_weights)
            elif self._match == "mse":
                own = squared_match(outputs, wanted, row_weights=row_weights)
            else:
                own = concordance_loss(outputs, wanted, row_weights=row_weights)
            total = total + config.beta * own
        return total


def _gathered(known: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """What is known [H, n, E], on the device of the rows, and of it the rows [H, B] of any blocks, [H, B, E]."""
    known = known.to(rows.device)
    heads, utterances, width = known.shape
    at = rows % utterances + utterances * torch.arange(heads, device=rows.device).unsqueeze(1)
    return known, known.view(heads * utterances, width).index_select(0, at.reshape(-1)).view(*rows.shape, width)


def train_students(
    *,
    distillation: DistillationConfig,
    lessons: Lessons | None,
    fusion: str,
    options: Mapping[str, object],
    left: Tensor,
    right: Tensor | None = None,
    tasks: Sequence[HeadTask],
    steps_per_epoch: int,
    config: TrainConfig,
    labels: Tensor | None = None,
    num_classes: int = 0,
    votes: Tensor | None = None,
    values: Tensor | None = None,
    device: str = "cpu",
) -> list[HeadResult]:
    """Train heads that learn from their teachers as well, in one stack; without a say of the teacher, ordinary heads.

    Args:
        distillation: how; with alpha and beta 0 the lessons are not looked at.
        lessons: of the students' own teachers, in the order of ``tasks``; row r of the students' matrices is utterance r % n.
        fusion: of the students.
        options: of the fusion.
        left: embeddings of the students.
        right: embeddings, or None for "single".
        tasks: one per student.
        steps_per_epoch: as for :func:`pipelines.training.trainer.train_stack`, and so is all that follows.
        config: how to train.
        labels: class indices.
        num_classes: C.
        votes: shares of the classes.
        values: of dimensions.
        device: "cpu" or "cuda".

    Returns:
        One result per task. The loss in its curves is that of all three terms; the projection is not among its parameters.

    Raises:
        ConfigError: no lessons, lessons of another number of students or outputs, or what ``train_stack`` raises.
    """
    guidance = None
    if distillation.guides:
        outputs = num_classes if values is None else values.shape[1]
        if lessons is None or (len(lessons.outputs), lessons.outputs.shape[-1]) != (len(tasks), outputs):
            given = "none" if lessons is None else f"those of {tuple(lessons.outputs.shape)}"
            raise ConfigError(f"{len(tasks)} student(s) of {outputs} outputs need as many lessons; there are {given}.")
        guidance = _FromTeachers(lessons, config=distillation, target="emotion" if values is None else "dimensions")
    results = train_stack(
        fusion=fusion,
        options=options,
        left=left,
        right=right,
        tasks=tasks,
        steps_per_epoch=steps_per_epoch,
        config=config,
        labels=labels,
        num_classes=num_classes,
        votes=votes,
        values=values,
        device=device,
        guidance=guidance,
    )
    return [
        replace(one, parameters={n: p for n, p in one.parameters.items() if not n.startswith(f"{_NAME}.")})
        for one in results
    ]
