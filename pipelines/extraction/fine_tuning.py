"""Training the last layers of a wav2vec2-like encoder end to end from audio: emotion, and CTC beside it.

The loss is λ CTC + (1 − λ) emotion, as on frozen frames (``training/frame_trainer.py``); this is the part that needs recordings and
an encoder. What stage 2 knows better comes with the work, as functions: the head on frames, both losses, the batches. Batches are
lists of rows, decoded one ahead in a thread.

On a GPU products are bfloat16 (``torch.autocast``), or float16 with scaled gradients where the GPU has no bfloat16; parameters, and
on a CPU everything, are float32. Everything random comes from the seed; on a CPU, on one thread, the same work gives the same bits.

Recordings go in whole, and the frozen part is computed anew in every epoch; nothing is cached on disk.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipelines.audio.decode import decode
from pipelines.encoders.catalogue import load_encoder
from pipelines.encoders.trainable import TrainableSSL, load_trainable
from pipelines.errors import ConfigError

__all__ = ["FineTuneConfig", "FineTuneResult", "FineTuneWork", "encoder_digest", "fine_tune"]

Rows = NDArray[np.int64]

_STANDARDISED_ROWS = 256


@dataclass(frozen=True, kw_only=True)
class FineTuneConfig:
    """How layers are trained.

    Attributes:
        layers: N, the last ones.
        epochs: passes over the training rows.
        batch_size: utterances per step.
        learning_rate: step size of AdamW for the layers; it rises over the first tenth of the steps and falls to 0 linearly.
        head_learning_rate: the same for head and letters, which begin at random.
        weight_decay: of weight matrices.
        clip_norm: largest norm of the gradient.
    """

    layers: int = 2
    epochs: int = 5
    batch_size: int = 8
    learning_rate: float = 5e-5
    head_learning_rate: float = 1e-3
    weight_decay: float = 0.01
    clip_norm: float = 1.0

    def __post_init__(self) -> None:
        for name in ("layers", "epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"Fine-tuning option {name!r} is {getattr(self, name)}, but it must be at least 1.")
        for name in ("learning_rate", "head_learning_rate", "clip_norm"):
            if not 0.0 < getattr(self, name) < math.inf:
                raise ConfigError(f"Fine-tuning option {name!r} is {getattr(self, name)}, but it must be positive.")


@dataclass(frozen=True, kw_only=True)
class FineTuneWork:
    """One model to be trained; can be sent to another process.

    Attributes:
        encoder: name.
        weights: ``pretrained`` or ``random``.
        weights_dir: looked in first.
        config: how to train.
        paths: n recordings.
        truth: [n] classes or [n, K] standardised values.
        targets: row to symbols, of rows trained on; empty without CTC.
        letters: by their number, the blank ``<pad>`` first; empty without CTC.
        ctc_weight: λ.
        batches: per epoch, lists of rows.
        test_batches: lists of rows, each row once.
        make_head: features of the last layer to a module that takes it, standardised, [B, T, D] and bool [B, T].
        emotion_loss: outputs [B, C or K] and truth of the batch to a number.
        ctc_loss: logits [B, T, V], lengths [B] and symbols to a number.
        seed: of parameters and dropout.
        device: where.
        save_to: folder of the checkpoint; None to keep none.
    """

    encoder: str
    weights: str
    weights_dir: Path | None
    config: FineTuneConfig
    paths: tuple[Path, ...] = field(repr=False)
    truth: NDArray[Any] = field(repr=False)
    targets: Mapping[int, NDArray[np.int64]] = field(repr=False)
    letters: tuple[str, ...]
    ctc_weight: float
    batches: tuple[tuple[Rows, ...], ...] = field(repr=False)
    test_batches: tuple[Rows, ...] = field(repr=False)
    make_head: Callable[[int], nn.Module]
    emotion_loss: Callable[[Tensor, Tensor], Tensor]
    ctc_loss: Callable[[Tensor, Tensor, Sequence[NDArray[np.int64]]], Tensor]
    seed: int
    device: str
    save_to: Path | None


@dataclass(frozen=True)
class FineTuneResult:
    """What training gave.

    Attributes:
        outputs: row to outputs of the head, float32 [C or K], of the test rows.
        symbols: row to the likeliest symbol of every frame, int64 [T]; empty without CTC.
        before: layer to means over the frames of every test row, float32 [m, D], rows sorted; of the encoder as it was.
        after: the same of the trained one.
        losses: per epoch (loss, emotion, CTC), means over batches.
        parameters: numbers that were trained.
    """

    outputs: Mapping[int, NDArray[np.float32]]
    symbols: Mapping[int, NDArray[np.int64]]
    before: Mapping[str, NDArray[np.float32]]
    after: Mapping[str, NDArray[np.float32]]
    losses: tuple[tuple[float, float, float], ...]
    parameters: int


def encoder_digest(name: str, *, weights: str, weights_dir: Path | None) -> str:
    """sha256 of an encoder's parameters, as its stores record it.

    Raises:
        UnknownNameError: no such encoder.
        WeightsError: its weights are absent or damaged.
    """
    return load_encoder(name, weights=weights, weights_dir=weights_dir).weights.digest


def fine_tune(work: FineTuneWork) -> FineTuneResult:
    """Train the last layers of an encoder, test it, and write its checkpoint.

    Raises:
        AudioError: a recording cannot be used.
        ConfigError: the encoder has no such layers, or the loss is no longer finite.
        WeightsError: its weights are absent or damaged.
        StorageError: the checkpoint cannot be written.
    """
    with _seeded(work.seed):
        return _Tuning(work).run()


class _Tuning:
    """The state of one training run."""

    def __init__(self, work: FineTuneWork) -> None:
        self.work = work
        self.device = torch.device(work.device)
        self.model: TrainableSSL = load_trainable(
            work.encoder,
            layers=work.config.layers,
            letters=len(work.letters),
            weights=work.weights,
            weights_dir=work.weights_dir,
            device=self.device,
        )
        self.head = work.make_head(self.model.frozen.spec.dim).to(self.device)
        self.on_gpu = self.device.type == "cuda"
        self.half = torch.bfloat16 if not self.on_gpu or torch.cuda.is_bf16_supported() else torch.float16

    def run(self) -> FineTuneResult:
        """Train, test, save."""
        work, config = self.work, self.work.config
        new = [*self.head.parameters(), *(self.model.spell.parameters() if self.model.spell is not None else ())]
        known = {id(parameter) for parameter in new}
        old = [one for one in self.model.parameters() if one.requires_grad and id(one) not in known]
        optimiser = torch.optim.AdamW(
            [
                {
                    "params": [one for one in part if (one.dim() > 1) == decays],
                    "peak": peak,
                    "weight_decay": config.weight_decay if decays else 0.0,
                }
                for part, peak in ((old, config.learning_rate), (new, config.head_learning_rate))
                for decays in (True, False)
            ]
        )
        scaler = torch.amp.GradScaler(self.device.type, enabled=self.on_gpu and self.half == torch.float16)
        self._standardise()
        total, done = sum(len(batches) for batches in work.batches), 0
        losses = []
        for epoch, batches in enumerate(work.batches):
            self.model.train()
            self.head.train()
            sums = np.zeros(3)
            for rows, waveforms in self._decoded(batches):
                part = (done + 1) / max(1, total)
                for group in optimiser.param_groups:
                    group["lr"] = group["peak"] * min(part / 0.1, (1.0 - part) / 0.9 + 1e-3)
                parts = self._loss(rows, waveforms)
                optimiser.zero_grad(set_to_none=True)
                torch.autograd.backward(scaler.scale(parts[0]))
                scaler.unscale_(optimiser)
                nn.utils.clip_grad_norm_([*old, *new], config.clip_norm)
                scaler.step(optimiser)
                scaler.update()
                sums += [float(one.detach()) for one in parts]
                done += 1
            means = sums / len(batches)
            if not np.isfinite(means).all():
                raise ConfigError(
                    f"Fine-tuning {work.encoder} diverged: the loss is {means[0]} in epoch {epoch + 1}. A finite loss was expected;"
                    f" lower the learning rate ({config.learning_rate:g})."
                )
            losses.append((float(means[0]), float(means[1]), float(means[2])))
        result = self._tested(tuple(losses), sum(one.numel() for one in [*old, *new]))
        if work.save_to is not None:
            self.model.save(work.save_to, work.letters)
        return result

    @torch.no_grad()
    def _standardise(self) -> None:
        """Mean and spread of the last layer before training, over the first rows that are trained on."""
        self.model.eval()
        count = max(1, _STANDARDISED_ROWS // self.work.config.batch_size)
        frames = []
        for _, waveforms in self._decoded(self.work.batches[0][:count]):
            hidden, valid, _ = self.model.hear(waveforms)
            frames.append(self.model(hidden, valid)[-1][valid])
        self.model.standardise(torch.cat(frames))

    def _loss(self, rows: Rows, waveforms: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Loss, emotion and CTC of a batch."""
        work = self.work
        hidden, valid, _ = self.model.hear(waveforms)
        with torch.autocast(self.device.type, dtype=self.half, enabled=self.on_gpu):
            last = self.model.scaled(self.model(hidden, valid)[-1])
            outputs = self.head(last, valid).float()
            spelled = None if self.model.spell is None else self.model.spell(last).float()
        emotion = work.emotion_loss(outputs, torch.from_numpy(work.truth[rows]).to(self.device))
        if spelled is None:
            return emotion, emotion, torch.zeros(())
        ctc = work.ctc_loss(spelled, valid.sum(dim=1), [work.targets[int(row)] for row in rows])
        return work.ctc_weight * ctc + (1.0 - work.ctc_weight) * emotion, emotion, ctc

    @torch.no_grad()
    def _tested(self, losses: tuple[tuple[float, float, float], ...], parameters: int) -> FineTuneResult:
        self.model.eval()
        self.head.eval()
        outputs: dict[int, NDArray[np.float32]] = {}
        symbols: dict[int, NDArray[np.int64]] = {}
        names = self.model.frozen.spec.representations
        before: dict[str, dict[int, NDArray[np.float32]]] = {name: {} for name in names}
        after: dict[str, dict[int, NDArray[np.float32]]] = {name: {} for name in names}
        for rows, waveforms in self._decoded(self.work.test_batches):
            hidden, valid, lower = self.model.hear(waveforms)
            upper = self.model(hidden, valid)
            last = self.model.scaled(upper[-1])
            found = self.head(last, valid).float().cpu().numpy()
            best = None if self.model.spell is None else self.model.spell(last).argmax(dim=-1).cpu().numpy()
            lengths = valid.sum(dim=1).tolist()
            for place, row in enumerate(rows.tolist()):
                outputs[row] = found[place]
                if best is not None:
                    symbols[row] = best[place, : lengths[place]]
            as_it_was = [one.frames for one in self.model.frozen.encode_padded(waveforms)]
            for kept, layers in ((before, as_it_was), (after, [*lower, *upper])):
                for name, frames in zip(names, layers, strict=True):
                    means = frames.masked_fill(~valid[..., None], 0.0).sum(dim=1) / valid.sum(dim=1, keepdim=True)
                    for row, mean in zip(rows.tolist(), means.float().cpu().numpy(), strict=True):
                        kept[name][row] = mean
        order = sorted(outputs)
        return FineTuneResult(
            outputs=outputs,
            symbols=symbols,
            before={name: np.stack([kept[row] for row in order]) for name, kept in before.items()},
            after={name: np.stack([kept[row] for row in order]) for name, kept in after.items()},
            losses=losses,
            parameters=parameters,
        )

    def _decoded(self, batches: Sequence[Rows]) -> Iterator[tuple[Rows, list[Tensor]]]:
        """Batches with their waveforms, the next one decoded while this one is used."""
        rate_hz = self.model.frozen.spec.sample_rate_hz

        def waveforms(rows: Rows) -> list[Tensor]:
            return [torch.from_numpy(decode(self.work.paths[row], rate_hz).samples) for row in rows.tolist()]

        with ThreadPoolExecutor(1) as pool:
            following = pool.submit(waveforms, batches[0]) if batches else None
            for place, rows in enumerate(batches):
                assert following is not None
                found = following.result()
                if place + 1 < len(batches):
                    following = pool.submit(waveforms, batches[place + 1])
                yield rows, found


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """One thread, and torch's generators seeded; they are put back afterwards."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    try:
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            yield
    finally:
        torch.set_num_threads(threads)
