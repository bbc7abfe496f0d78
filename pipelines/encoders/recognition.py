"""What every recogniser (ASR) promises: recordings in, text out.

A recogniser is an encoder of the catalogue with what it takes to write down what it hears: ``whisper`` with its decoder,
``wav2vec2-ctc`` with its layer of letters. Decoding is greedy: at every step the likeliest token or letter, no beam, no
language model, no chance, so that a recording has one transcript. ``decoding`` says how, with a version.

*The promise*: the text of a recording does not depend on what else is in its batch. The numbers behind it agree to 1e-5
(``base.py``); where the two likeliest tokens are nearer than that, either may win. The tests have not met such a tie.

A recording is heard in one piece or several (``windows``), every piece becomes whole numbers (``hear``: a letter per frame,
or tokens), and all of them a text (``spell``). ``recognise`` does the three after one another.

Random weights hear nonsense, and are for trying commands only; whoever keeps their text says so.

This module is importable without torch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from typing import TYPE_CHECKING

from pipelines.encoders.catalogue import CATALOGUE, TINY_SUFFIX, WEIGHT_KINDS, EncoderSpec, WeightFile, canonical_name
from pipelines.errors import AudioError, ConfigError, unknown_name

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from torch import Tensor

    from pipelines.encoders.base import Encoder
    from pipelines.encoders.weights import Progress, WeightsInfo
    from pipelines.encoders.windows import Window

__all__ = ["AUTO", "Recogniser", "load_recogniser", "recogniser_names", "recogniser_spec", "with_files"]

AUTO = "auto"
"""Language that the recogniser finds out, recording by recording."""


class Recogniser(ABC):
    """A frozen model that writes down what it hears.

    Attributes:
        spec: the catalogue entry.
        weights: where the parameters came from, those of the encoder and all others, and the vocabulary.
        encoder: the frozen encoder behind it; its layers are what the catalogue's entry of that name gives.
        language: ISO 639-1 code it was told, ``auto``, or empty if it has no choice.
        decoding: how words are chosen, with a version that is raised when the same recording may give other words.
        clips_per_batch: most pieces that are heard together.
    """

    decoding: str
    clips_per_batch: int = 64

    def __init__(self, *, spec: EncoderSpec, weights: WeightsInfo, encoder: Encoder, language: str) -> None:
        self.spec = spec
        self.weights = weights
        self.encoder = encoder
        self.language = language

    @property
    def device(self) -> torch.device:
        """Where the model runs."""
        return self.encoder.device

    @property
    def precision(self) -> str:
        """Arithmetic of the model."""
        return self.encoder.precision

    @abstractmethod
    def windows(self, samples: Tensor) -> list[Window]:
        """The pieces in which a recording is heard; one where it is short enough.

        Args:
            samples: float32 [samples], at the rate of the entry, on the CPU.
        """

    @abstractmethod
    def hear(self, batch: Sequence[Tensor]) -> list[Tensor | None]:
        """Whole numbers for every piece, int64 [any length], on the CPU; None where the network's output is not finite.

        Args:
            batch: B pieces, float32 [samples], on the CPU.
        """

    @abstractmethod
    def spell(self, heard: Sequence[Tensor], windows: Sequence[Window]) -> str:
        """The text of a recording from what was heard in its pieces; empty for no words."""

    def recognise(self, clips: Sequence[Tensor]) -> list[str]:
        """The texts of recordings of any length, heard in one batch.

        Args:
            clips: n recordings, float32 [samples], on the CPU.

        Raises:
            AudioError: the network's output for a recording is not finite.
        """
        plans = [self.windows(clip) for clip in clips]
        pieces = [clip[piece.start : piece.stop] for clip, plan in zip(clips, plans, strict=True) for piece in plan]
        heard = iter(self.hear(pieces) if pieces else [])
        texts = []
        for row, plan in enumerate(plans):
            own = [numbers for numbers in (next(heard) for _ in plan) if numbers is not None]
            if len(own) < len(plan):
                raise AudioError(f"Recording {row} of the batch: the output of {self.spec.name!r} is not finite.")
            texts.append(self.spell(own, plan))
        return texts


def recogniser_names(*, tiny: bool = False) -> list[str]:
    """Names of all recognisers; with ``tiny`` also the ``-tiny`` sizes."""
    return [name for name, spec in CATALOGUE.items() if spec.recogniser and (tiny or not spec.is_tiny)]


def recogniser_spec(name: str) -> EncoderSpec:
    """Look a recogniser up.

    Raises:
        UnknownNameError: no such recogniser; the message lists those there are.
    """
    spec = CATALOGUE.get(canonical_name(name))
    if spec is None or not spec.recogniser:
        raise unknown_name("recogniser", name, recogniser_names(tiny=True))
    return spec


def load_recogniser(
    name: str,
    *,
    weights: str = "pretrained",
    device: torch.device | str = "cpu",
    weights_dir: Path | None = None,
    progress: Progress | None = None,
    language: str = AUTO,
) -> Recogniser:
    """Build a recogniser, frozen and in evaluation mode.

    Args:
        name: one of :func:`recogniser_names`.
        weights: ``pretrained`` or ``random``.
        device: where it runs.
        weights_dir: looked in first, before ``$HYFUSE_WEIGHTS`` and the Hub cache.
        progress: called with (file name, bytes done, bytes in all) during a download.
        language: ISO 639-1 code, or ``auto``.

    Raises:
        UnknownNameError: no such recogniser, or it does not know the language.
        ConfigError: ``weights`` is neither kind, pretrained weights are asked for a ``-tiny`` size, or a language is asked for of a
            recogniser that knows only one.
        WeightsError: weights are absent, damaged, or do not fit.
    """
    spec = recogniser_spec(name)
    if weights not in WEIGHT_KINDS:
        raise ConfigError(f"--weights must be one of {', '.join(WEIGHT_KINDS)}, not {weights!r}.")
    if spec.is_tiny and weights == "pretrained":
        raise ConfigError(
            f"{name!r} is a tiny size for demos and tests; it has no pretrained weights and its text is nonsense. Add"
            f" `--weights random`, or use `--model {name.removesuffix(TINY_SUFFIX)}` for the pretrained recogniser."
        )
    import torch

    module_name, class_name = spec.recogniser.split(":")
    factory = getattr(import_module(module_name), class_name)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in load_encoder
    try:
        recogniser: Recogniser = factory.build(
            spec=spec,
            weights_kind=weights,
            device=torch.device(device),
            weights_dir=weights_dir,
            progress=progress,
            language=language,
        )
    finally:
        torch.set_num_threads(threads)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    return recogniser


def with_files(spec: EncoderSpec, *names: str) -> EncoderSpec:
    """The entry with more files: what the recogniser needs beyond the encoder, named before the weights."""
    *others, weights = spec.files
    return replace(spec, files=(*others, *(WeightFile(name) for name in names), weights))
