"""One head on frames, trained on one fold under one seed: emotion, and beside it the characters that were said.

The model: acoustic frames (frozen) go through a **shared trainable stack** — a linear layer to D, positions, and
``stack_layers`` transformer layers — from which both tasks take: a linear layer with CTC over characters
(``training/ctc.py``), and the head (``fusion/frames``), which has the stack's output as its acoustic stream and, as they
are, the frames of the recogniser and of the text. The loss is λ CTC + (1 − λ) emotion; with λ = 0 there is no CTC layer.
A model without the acoustic stream has no stack either. That the stack is shared is Li's idea; that it is small and lies
over frozen frames is ours (``--fine-tune`` trains layers of the encoder itself).

Emotion is classes, with cross-entropy; or dimensions, with the mean of 1 − CCC over a batch, on values standardised by the rows
trained on and mapped back afterwards.

Promises, as for the heads on pooled embeddings (``training/trainer.py``): a result depends on its task alone; everything
random is seeded by (fold, seed); training runs on one thread; scalers are fitted on the rows trained on; test rows are
looked at once, at the end. On CUDA only the statistics are the same, not the bits, and the products are those of bfloat16
(``torch.autocast``).

What is in memory is a batch: frames come from mapped files (``frame_data.py``).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from pipelines.errors import ConfigError, unknown_name
from pipelines.fusion.frames.catalogue import ALONE, STREAMS, build_frame_head
from pipelines.fusion.frames.sequences import Frames, SelfAttentionLayer, positions
from pipelines.fusion.stacked import head_generators
from pipelines.training.ctc import Alphabet, ctc_loss, shortest_frames
from pipelines.training.frame_data import FrameFile, FrameScaler, batches_by_length
from pipelines.training.losses import concordance_loss
from pipelines.training.metrics import concordance, unweighted_average_recall
from pipelines.training.trainer import HeadTask, fit_scaler, head_seed

__all__ = ["FrameConfig", "FrameModel", "FrameResult", "FrameSystem", "chosen_rows", "train_frames"]

Rows = NDArray[np.int64]

_SELECTIONS = ("fixed", "last", "loss", "uar", "ccc")
_CLASS_WEIGHTS = ("none", "balanced")
_TEST_BATCH = 64


@dataclass(frozen=True, kw_only=True)
class FrameConfig:
    """How a model is trained; everything but the data and what is fused how."""

    epochs: int = 20
    """Passes over the training rows."""
    batch_size: int = 32
    """Utterances per step."""
    learning_rate: float = 1e-3
    """Step size of AdamW at the start; it falls to 0 along half a cosine."""
    weight_decay: float = 0.01
    """Decoupled decay of weight matrices."""
    label_smoothing: float = 0.1
    """Share of the target spread evenly over all classes, in [0, 1)."""
    class_weights: str = "none"
    """"balanced" weights each class by its rarity among the rows trained on."""
    hidden_dim: int = 128
    """Width D of the stack and of every stream in the head."""
    stack_layers: int = 1
    """Transformer layers of the shared stack; 0 leaves the linear layer."""
    attention_heads: int = 4
    """Parallel attentions, in the stack and in the head."""
    dropout: float = 0.1
    """Share dropped behind projections, attention and before the output layer, in [0, 1)."""
    clip_norm: float = 1.0
    """Largest norm of the gradient; 0 switches clipping off."""
    selection: str = "fixed"
    """Which rows train and which epoch is kept: "fixed" (training and validation part, last epoch), "last" (training part,
    last epoch), "loss", "uar" (of classes) or "ccc" (of dimensions): training part, best epoch on the validation part by the
    emotion loss, the UAR or the mean CCC."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "hidden_dim", "attention_heads"):
            self._check(name, getattr(self, name) >= 1, "must be at least 1")
        self._check("learning_rate", 0.0 < self.learning_rate < math.inf, "must be a positive number")
        for name in ("weight_decay", "clip_norm", "stack_layers"):
            self._check(name, 0.0 <= getattr(self, name) < math.inf, "must be 0 or more")
        for name in ("label_smoothing", "dropout"):
            self._check(name, 0.0 <= getattr(self, name) < 1.0, "must lie in [0, 1)")
        for name, valid in (("selection", _SELECTIONS), ("class_weights", _CLASS_WEIGHTS)):
            if getattr(self, name) not in valid:
                raise unknown_name(name, str(getattr(self, name)), valid)
        self._check("hidden_dim", self.hidden_dim % self.attention_heads == 0, "must be a multiple of attention_heads")

    def _check(self, name: str, holds: bool, rule: str) -> None:
        if not holds:
            raise ConfigError(f"Training option {name!r} is {getattr(self, name)!r}, but it {rule}.")


@dataclass(frozen=True, kw_only=True)
class FrameSystem:
    """What is fused how.

    Attributes:
        streams: among ``acoustic``, ``asr`` and ``text``, in this order.
        head: one of the heads on frames.
        ctc_weight: λ, in [0, 1); 0 for no CTC.
        options: of the head, where they differ from its defaults.
    """

    streams: tuple[str, ...]
    head: str = ALONE
    ctc_weight: float = 0.0
    options: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0.0 <= self.ctc_weight < 1.0:
            raise ConfigError(
                f"λ is {self.ctc_weight:g}, but it must be at least 0 and below 1: with λ = 1 nothing would learn the emotion."
            )
        if tuple(name for name in STREAMS if name in self.streams) != self.streams or not self.streams:
            raise ConfigError(f"Streams are some of {', '.join(STREAMS)}, in this order, not {self.streams}.")
        if self.ctc_weight and "acoustic" not in self.streams:
            raise ConfigError("CTC (λ above 0) needs the acoustic stream: it is trained on the stack behind it.")


@dataclass(frozen=True, eq=False)
class FrameResult:
    """What training one model gave.

    Attributes:
        task: what it answers.
        outputs: float32 [m, C] probabilities, or [m, K] values on the corpus' scale, of ``task.test`` in its order.
        shuffled: stream to the same with that stream permuted among the test rows; of a model on one stream, too.
        hypotheses: m texts, greedily decoded; empty with λ = 0.
        unsayable: share of the rows trained on whose text does not fit into their frames; NaN with λ = 0.
        curves: per epoch: ``train_loss``, ``emotion_loss``, ``ctc_loss`` (means over batches), ``validation_loss``,
            and ``validation_uar`` or ``validation_ccc`` (NaN unless validation rows are held out).
        best_epoch: the epoch whose parameters are kept, counted from 1.
        parameters: numbers that were trained.
    """

    task: HeadTask
    outputs: NDArray[np.float32]
    shuffled: Mapping[str, NDArray[np.float32]]
    hypotheses: tuple[str, ...]
    unsayable: float
    curves: Mapping[str, Sequence[float]]
    best_epoch: int
    parameters: int


class FrameModel(nn.Module):
    """The shared stack, the CTC layer and the head; parameters are drawn from torch's generator.

    Args:
        system: streams, head, λ.
        dims: stream to its features.
        num_outputs: C classes or K dimensions.
        symbols: V of the alphabet, blank included; 0 for no CTC layer.
        config: sizes.
    """

    def __init__(
        self, *, system: FrameSystem, dims: Mapping[str, int], num_outputs: int, symbols: int, config: FrameConfig
    ) -> None:
        super().__init__()
        widths = {name: dims[name] for name in system.streams}
        self.drop = nn.Dropout(config.dropout)
        self.spell: nn.Linear | None = None
        self.embed: nn.Linear | None = None
        if "acoustic" in widths:
            self.embed = nn.Linear(widths["acoustic"], config.hidden_dim)
            self.stack = nn.ModuleList(
                SelfAttentionLayer(config.hidden_dim, attention_heads=config.attention_heads, dropout=config.dropout)
                for _ in range(config.stack_layers)
            )
            self.norm = nn.LayerNorm(config.hidden_dim)
            widths["acoustic"] = config.hidden_dim
            self.spell = nn.Linear(config.hidden_dim, symbols) if symbols else None
        self.head = build_frame_head(
            system.head,
            dims=widths,
            num_outputs=num_outputs,
            hidden_dim=config.hidden_dim,
            attention_heads=config.attention_heads,
            dropout=config.dropout,
            options=system.options,
        )

    def listen(self, acoustic: Frames) -> Frames:
        """The shared stack: [B, T, D of the encoder] to [B, T, D]."""
        assert self.embed is not None
        values = self.embed(acoustic.values)
        values = values + positions(values.shape[1], values.shape[2], values.device)
        frames = Frames(self.drop(values), acoustic.valid)
        for layer in self.stack:
            frames = layer(frames)
        return Frames(self.norm(frames.values), frames.valid)

    def forward(self, streams: Mapping[str, Frames]) -> tuple[Tensor, Tensor | None]:
        """Outputs [B, C or K] and, with CTC, scores of the symbols [B, T, V]."""
        if self.embed is None:
            return self.head(streams), None
        heard = self.listen(streams["acoustic"])
        outputs = self.head({**streams, "acoustic": heard})
        return outputs, None if self.spell is None else self.spell(heard.values)


def chosen_rows(task: HeadTask, config: FrameConfig) -> Rows:
    """The rows that a model is trained on: with selection "fixed" the validation part as well."""
    return np.concatenate([task.train, task.validation]) if config.selection == "fixed" else task.train


def train_frames(
    *,
    system: FrameSystem,
    files: Mapping[str, FrameFile],
    truth: NDArray[Any],
    transcripts: Sequence[str],
    task: HeadTask,
    num_outputs: int,
    config: FrameConfig,
    device: str = "cpu",
) -> FrameResult:
    """Train one model and test it.

    Args:
        system: what is fused how.
        files: stream to its frames, of n utterances.
        truth: int64 [n], classes in 0..C-1, or float32 [n, K], values of dimensions.
        transcripts: n texts that CTC learns; only those of rows trained on are looked at.
        task: fold, seed, rows.
        num_outputs: C or K.
        config: how to train.
        device: ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        ConfigError: the loss is no longer finite, or no text fits into its frames.
    """
    with _seeded(task):
        return _Training(
            system=system,
            files=files,
            truth=truth,
            transcripts=transcripts,
            task=task,
            num_outputs=num_outputs,
            config=config,
            device=device,
        ).run()


class _Training:
    """The state of one training run."""

    def __init__(
        self,
        *,
        system: FrameSystem,
        files: Mapping[str, FrameFile],
        truth: NDArray[Any],
        transcripts: Sequence[str],
        task: HeadTask,
        num_outputs: int,
        config: FrameConfig,
        device: str,
    ) -> None:
        self.system, self.task, self.config, self.device = system, task, config, torch.device(device)
        self.truth, self.num_outputs = truth, num_outputs
        self.rows = chosen_rows(task, config)
        self.target_scaler = fit_scaler(torch.from_numpy(truth), self.rows) if truth.ndim == 2 else None
        wrong = "uar" if self.target_scaler is not None else "ccc"
        if config.selection == wrong:
            raise ConfigError(
                f"--selection {wrong} is for {'classes' if wrong == 'uar' else 'dimensions'}. Use"
                f" {'ccc' if wrong == 'uar' else 'uar'} or loss."
            )
        self.files = {name: files[name] for name in system.streams}
        self.mapped = {name: file.open() for name, file in self.files.items()}
        self.scalers: dict[str, FrameScaler] = {name: file.scaler(self.rows) for name, file in self.files.items()}
        # Batches are cut by the longest stream, which is the first: acoustic frames where there are any.
        self.lengths = self.files[system.streams[0]].lengths
        self.alphabet, self.targets, self.unsayable = self._texts(transcripts)
        self.model = FrameModel(
            system=system,
            dims={name: file.dim for name, file in self.files.items()},
            num_outputs=num_outputs,
            symbols=len(self.alphabet) if system.ctc_weight else 0,
            config=config,
        ).to(self.device)
        self.class_weights = self._class_weights()

    def _texts(self, transcripts: Sequence[str]) -> tuple[Alphabet, dict[int, NDArray[np.int64]], float]:
        """Alphabet and targets of the rows trained on, and the share of them that cannot be said."""
        if not self.system.ctc_weight:
            return Alphabet(()), {}, math.nan
        alphabet = Alphabet.of(transcripts[row] for row in self.rows)
        targets = {int(row): alphabet.encode(transcripts[row]) for row in self.rows}
        frames = self.files["acoustic"].lengths
        unsayable = float(np.mean([shortest_frames(target) > frames[row] for row, target in targets.items()]))
        if unsayable == 1.0 or len(alphabet) < 2:
            raise ConfigError(
                f"CTC cannot learn anything in fold {self.task.fold!r}: "
                + (
                    "none of the texts has a character."
                    if len(alphabet) < 2
                    else "every text has more characters than its recording has acoustic frames. An encoder with more frames per"
                    " second is needed, such as wavlm or wav2vec2 (50 per second)."
                )
                + " Leave CTC out with `--ctc-weights 0`."
            )
        return alphabet, targets, unsayable

    def _class_weights(self) -> Tensor | None:
        if self.config.class_weights == "none" or self.target_scaler is not None:
            return None
        counts = np.bincount(self.truth[self.rows], minlength=self.num_outputs)
        weights = len(self.rows) / ((counts > 0).sum() * np.maximum(counts, 1))
        return torch.from_numpy(np.where(counts > 0, weights, 0.0)).float().to(self.device)

    def run(self) -> FrameResult:
        """Train, keep the chosen epoch, test."""
        config, task = self.config, self.task
        stream = head_generators([head_seed(task.fold, task.seed)], "frame batches")[0]
        matrices = [parameter for parameter in self.model.parameters() if parameter.dim() > 1]
        others = [parameter for parameter in self.model.parameters() if parameter.dim() <= 1]
        optimiser = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}],
            lr=config.learning_rate,
        )
        selects = config.selection in ("loss", "uar", "ccc")
        best_score, best_epoch, best = math.inf, config.epochs, {}
        curves: dict[str, list[float]] = {}
        for epoch in range(config.epochs):
            points = self._train_epoch(optimiser, stream, epoch)
            points |= self._validate(config.selection != "fixed")
            for name, value in points.items():
                curves.setdefault(name, []).append(value)
            score = points["validation_loss"] if config.selection == "loss" else -points[self.watched]
            if selects and score < best_score:
                best_score, best_epoch = score, epoch + 1
                best = {name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()}
        if selects:
            self.model.load_state_dict(best)
        return self._result(curves, best_epoch)

    def _streams(self, rows: Mapping[str, Rows]) -> dict[str, Frames]:
        """Standardised frames of every stream for its own rows."""
        found = {}
        for name, file in self.files.items():
            values, valid = file.batch(self.mapped[name], rows[name], self.scalers[name])
            found[name] = Frames(values.to(self.device), valid.to(self.device))
        return found

    def _outputs(self, rows: Mapping[str, Rows]) -> tuple[Tensor, Tensor | None]:
        """The model on a batch: outputs [B, C or K] and scores of symbols [B, T, V], float32."""
        half = self.device.type == "cuda"
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=half):
            outputs, spelled = self.model(self._streams(rows))
        return outputs.float(), None if spelled is None else spelled.float()

    def _train_epoch(
        self, optimiser: torch.optim.Optimizer, stream: np.random.Generator, epoch: int
    ) -> dict[str, float]:
        config, weight = self.config, self.system.ctc_weight
        batches = batches_by_length(self.rows, self.lengths, batch_size=config.batch_size, stream=stream)
        self.model.train()
        sums = np.zeros(3)
        for step, rows in enumerate(batches):
            part = (epoch + step / len(batches)) / config.epochs
            for group in optimiser.param_groups:
                group["lr"] = config.learning_rate * 0.5 * (1.0 + math.cos(math.pi * part))
            outputs, spelled = self._outputs(dict.fromkeys(self.files, rows))
            emotion = self._emotion_loss(outputs, rows)
            loss, ctc = emotion, torch.zeros(())
            if spelled is not None:
                lengths = torch.from_numpy(self.files["acoustic"].lengths[rows])
                ctc = ctc_loss(spelled, lengths, [self.targets[int(row)] for row in rows])
                loss = weight * ctc + (1.0 - weight) * emotion
            optimiser.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            if config.clip_norm > 0.0:
                nn.utils.clip_grad_norm_(self.model.parameters(), config.clip_norm)
            optimiser.step()
            sums += [float(loss.detach()), float(emotion.detach()), float(ctc.detach())]
        means = sums / len(batches)
        if not np.isfinite(means).all():
            raise ConfigError(
                f"Training diverged: the loss of {self.system.head!r} on {' + '.join(self.system.streams)}, fold"
                f" {self.task.fold!r}, seed {self.task.seed} is {means[0]} in epoch {epoch + 1}. A finite loss was expected; the"
                f" usual cause is the learning rate ({config.learning_rate:g}). Lower it."
            )
        return dict(zip(("train_loss", "emotion_loss", "ctc_loss"), means.tolist(), strict=True))

    @property
    def watched(self) -> str:
        """The score on validation rows."""
        return "validation_uar" if self.target_scaler is None else "validation_ccc"

    def _emotion_loss(self, outputs: Tensor, rows: Rows) -> Tensor:
        truth = torch.from_numpy(self.truth[rows])
        if self.target_scaler is None:
            return F.cross_entropy(
                outputs,
                truth.to(self.device),
                weight=self.class_weights,
                label_smoothing=self.config.label_smoothing,
            )
        targets = (truth - self.target_scaler.mean) / self.target_scaler.std
        return concordance_loss(outputs[None], targets.to(self.device)[None])[0]

    def _finished(self, outputs: Tensor) -> NDArray[np.float32]:
        """What the model's outputs [n, C or K] say: probabilities, or values on the corpus' scale."""
        if self.target_scaler is None:
            return torch.softmax(outputs, dim=-1).numpy()
        return (outputs * self.target_scaler.std + self.target_scaler.mean).numpy()

    def _validate(self, held_out: bool) -> dict[str, float]:
        rows = self.task.validation
        if not held_out or not len(rows):
            return {"validation_loss": math.nan, self.watched: math.nan}
        outputs, _ = self._predict(dict.fromkeys(self.files, rows))
        truth, finished = self.truth[rows], self._finished(outputs)
        if self.target_scaler is None:
            loss = float(F.cross_entropy(outputs.double(), torch.from_numpy(truth)))
            found = unweighted_average_recall(truth, finished.argmax(axis=1), self.num_outputs)
            return {"validation_loss": loss, self.watched: float(np.mean(found))}
        # Not defined where validation rows all have the same value.
        ccc = float(np.nan_to_num(concordance(truth.T, finished.T)).mean())
        return {"validation_loss": 1.0 - ccc, self.watched: ccc}

    @torch.no_grad()
    def _predict(self, rows: Mapping[str, Rows], *, spell: bool = False) -> tuple[Tensor, tuple[str, ...]]:
        """Outputs [n, C or K] on the CPU for n rows of every stream, and what was said, if asked for."""
        self.model.eval()
        first = rows[self.system.streams[0]]
        outputs = torch.zeros(len(first), self.num_outputs)
        texts = [""] * len(first) if spell else []
        places = np.arange(len(first))
        for batch in batches_by_length(places, self.lengths[first], batch_size=_TEST_BATCH):
            found, spelled = self._outputs({name: own[batch] for name, own in rows.items()})
            outputs[torch.from_numpy(batch)] = found.cpu()
            if spell and spelled is not None:
                lengths = self.files["acoustic"].lengths[rows["acoustic"][batch]].tolist()
                for place, text in zip(batch.tolist(), self.alphabet.greedy(spelled, lengths), strict=True):
                    texts[place] = text
        return outputs, tuple(texts)

    def _result(self, curves: Mapping[str, Sequence[float]], best_epoch: int) -> FrameResult:
        test = self.task.test
        straight = dict.fromkeys(self.files, test)
        outputs, hypotheses = self._predict(straight, spell=bool(self.system.ctc_weight))
        mixed = head_generators([head_seed(self.task.fold, self.task.seed)], "shuffle")[0].permutation(test)
        shuffled = {name: self._predict({**straight, name: mixed})[0] for name in self.files}
        return FrameResult(
            task=self.task,
            outputs=self._finished(outputs),
            shuffled={name: self._finished(one) for name, one in shuffled.items()},
            hypotheses=hypotheses,
            unsayable=self.unsayable,
            curves=curves,
            best_epoch=best_epoch,
            parameters=sum(parameter.numel() for parameter in self.model.parameters()),
        )


@contextmanager
def _seeded(task: HeadTask) -> Iterator[None]:
    """One thread, and torch's generator seeded by the task; both are put back afterwards."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    try:
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(head_seed(task.fold, task.seed) % 2**63)
            yield
    finally:
        torch.set_num_threads(threads)
