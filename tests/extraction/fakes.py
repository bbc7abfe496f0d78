"""A cheap encoder and a corpus of sines for tests of extraction."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import soundfile
import torch
from torch import Tensor

from pipelines.corpora.manifest import Manifest, manifest_from_rows
from pipelines.encoders.base import Encoder, PaddedRepresentation
from pipelines.encoders.catalogue import EncoderSpec
from pipelines.encoders.weights import WeightsInfo

__all__ = [
    "HOP",
    "RATE",
    "FakeEncoder",
    "load_broken_fake",
    "load_dying_fake",
    "load_fake",
    "load_other_fake",
    "make_corpus",
    "recall_corpus",
    "sine",
]

RATE, HOP, DIM = 8000, 80, 4
POISON = 0.99
"""Level from which on a clip's embedding is NaN."""


class FakeEncoder(Encoder):
    """Two representations of frames of 10 ms; beyond an utterance's own frames there is NaN.

    Attributes:
        batches: number of clips of every batch that was encoded.
        fail_at: raise at this batch (counted from 0); never, if None.
        sleep_s: extra time per batch.
    """

    def __init__(self, *, digest: str = "f0" * 32, fail_at: int | None = None, sleep_s: float = 0.0) -> None:
        spec = EncoderSpec(
            name="fake",
            family="RLR",
            title="fake",
            factory="",
            sample_rate_hz=RATE,
            hop_samples=HOP,
            dim=DIM,
            representations=("level", "shape"),
            default_representation="shape",
            repository="",
            revision="",
            files=(),
            licence="none",
        )
        weights = WeightsInfo(kind="random", source="random", revision="", digest=digest, licence="none")
        super().__init__(spec=spec, weights=weights, device=torch.device("cpu"))
        self.batches: list[int] = []
        self.fail_at = fail_at
        self.sleep_s = sleep_s

    def num_frames(self, num_samples: int) -> int:
        return max(1, num_samples // HOP)

    def encode_padded(self, batch: Sequence[Tensor]) -> Iterator[PaddedRepresentation]:
        self.batches.append(len(batch))
        if self.fail_at == len(self.batches) - 1:
            raise RuntimeError("the encoder gave up")
        time.sleep(self.sleep_s)
        lengths = torch.tensor([self.num_frames(len(clip)) for clip in batch])
        frames = torch.zeros(len(batch), int(lengths.max()), HOP)
        for row, clip in enumerate(batch):
            own = torch.nn.functional.pad(clip, (0, max(0, HOP - len(clip))))
            frames[row, : lengths[row]] = own[: int(lengths[row]) * HOP].reshape(-1, HOP)
            if clip.abs().max() >= POISON:
                frames[row] = torch.nan
            frames[row, lengths[row] :] = torch.nan
        level = torch.stack([frames.mean(2), frames.abs().mean(2), frames.amax(2), frames[..., 0]], dim=2)
        shape = torch.stack([frames.std(2), frames[..., 1], frames[..., -1], frames.square().mean(2)], dim=2)
        yield PaddedRepresentation(name="level", frames=level, num_frames=lengths)
        yield PaddedRepresentation(name="shape", frames=shape, num_frames=lengths)


def load_fake(*, device: str, kill_once: Path | None = None, sleep_s: float = 0.0) -> FakeEncoder:
    """What a worker process loads; the first one that encodes where there is no file ``kill_once`` makes it and dies."""
    assert device == "cpu"
    return _Mortal(kill_once, sleep_s) if kill_once is not None else FakeEncoder(sleep_s=sleep_s)


class _Mortal(FakeEncoder):
    def __init__(self, kill_once: Path, sleep_s: float) -> None:
        super().__init__(sleep_s=sleep_s)
        self.kill_once = kill_once

    def encode_padded(self, batch: Sequence[Tensor]) -> Iterator[PaddedRepresentation]:
        try:
            self.kill_once.touch(exist_ok=False)
        except FileExistsError:
            yield from super().encode_padded(batch)
            return
        os.kill(os.getpid(), signal.SIGKILL)


class _Dying(FakeEncoder):
    def encode_padded(self, batch: Sequence[Tensor]) -> Iterator[PaddedRepresentation]:
        os.kill(os.getpid(), signal.SIGKILL)
        yield from super().encode_padded(batch)


def load_dying_fake(*, device: str) -> FakeEncoder:
    """Dies with every batch."""
    return _Dying()


def load_other_fake(*, device: str) -> FakeEncoder:
    """Other weights in every process."""
    return FakeEncoder(digest=f"{os.getpid():064d}")


def load_broken_fake(*, device: str) -> FakeEncoder:
    """Fails in worker processes only."""
    return FakeEncoder(fail_at=0)


def sine(number: int, *, seconds: float | None = None, level: float = 0.5) -> np.ndarray:
    """A clip that belongs to its number alone; lengths vary from 0.05 s to 0.35 s."""
    seconds = 0.05 + (number * 7 % 30) / 100 if seconds is None else seconds
    time_s = np.arange(round(seconds * RATE)) / RATE
    return level * np.sin(2 * np.pi * (100 + 20 * number) * time_s + number)


def make_corpus(root: Path, *, count: int = 10, odd: Mapping[int, bytes | np.ndarray | None] | None = None) -> Manifest:
    """Write recordings and make their manifest; ``odd`` replaces some by other bytes, other samples, or nothing."""
    root.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(count):
        name = f"clip{number:03d}"
        content = (odd or {}).get(number, sine(number)) if odd is not None else sine(number)
        if isinstance(content, bytes):
            (root / f"{name}.wav").write_bytes(content)
        elif content is not None:
            soundfile.write(root / f"{name}.wav", content, RATE, subtype="FLOAT")
        rows.append({
            "utterance_id": name, "path": f"{name}.wav", "speaker": f"s{number % 3}", "emotion": ["anger", "fear"][number % 2],
        })  # fmt: skip
    return manifest_from_rows("toy", rows, root=root)


def recall_corpus(root: Path, *, count: int) -> Manifest:
    """The manifest of :func:`make_corpus`, writing nothing."""
    rows = [
        {"utterance_id": f"clip{n:03d}", "path": f"clip{n:03d}.wav", "speaker": f"s{n % 3}", "emotion": ["anger", "fear"][n % 2]}
        for n in range(count)
    ]  # fmt: skip
    return manifest_from_rows("toy", rows, root=root)
