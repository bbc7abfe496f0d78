"""What an encoder costs where it is used: parameters, and processor time per second of speech.

Time is that of the encoder's own forward passes, one thread, on made-up speech (noise under a syllable-like envelope; for encoders
of text as many words as are spoken in that time, 2.5 a second), with random weights, which compute no faster than trained ones.
It is CPU time of this process, one run after a shorter one to warm up, and goes as far as the representation that is asked for:
encoders hand out one layer before they compute the next (``encoders/ssl_layers.py``), so that what is left undone is what a network
cut off behind that layer would not have. Decoding, pooling and the head are not in it, nor is a recogniser that writes down the
words. Times are of this machine; their ratios carry over better.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipelines.encoders.catalogue import encoder_spec, load_encoder
from pipelines.encoders.sizes import parameter_counts
from pipelines.errors import unknown_name
from pipelines.extraction.measure import processor_name

__all__ = ["WORDS_PER_S", "EncoderCost", "encoder_cost"]

WORDS_PER_S = 2.5
"""Of made-up talk: 150 words a minute."""

_CLIPS = 4
_SYLLABLES_HZ = 3.0
_WORDS = ("we", "will", "see", "what", "the", "others", "have", "to", "say", "about", "it", "tomorrow")


@dataclass(frozen=True, kw_only=True)
class EncoderCost:
    """What an encoder costs up to one of its representations.

    Attributes:
        encoder: name.
        representation: how far.
        parameters: numbers that were learned; None where they are not counted.
        cpu_s_per_s: CPU seconds per second of speech.
        audio_s: seconds of speech that were encoded.
        processor: what the machine calls its processor.
        torch: version.
    """

    encoder: str
    representation: str
    parameters: int | None
    cpu_s_per_s: float
    audio_s: float
    processor: str
    torch: str


def encoder_cost(
    name: str, representation: str = "", *, audio_s: float = 20.0, weights_dir: Path | None = None
) -> EncoderCost:
    """Count and measure.

    Args:
        name: catalogue name, or ``hf:owner/name``.
        representation: how far to compute; ``weighted`` and others that are no representation of the encoder, all the way; the
            encoder's default unless given.
        audio_s: seconds of speech, in four clips.
        weights_dir: where the configuration of an ``hf:`` name is looked for first.

    Raises:
        UnknownNameError: no such encoder or representation.
    """
    spec = encoder_spec(name, weights_dir=weights_dir)
    wanted = representation or spec.default_representation
    reach = spec.representations[-1] if wanted == "weighted" else wanted
    if reach not in spec.representations:
        raise unknown_name(f"representation of {name}", reach, spec.representations)
    encoder = load_encoder(name, weights="random", weights_dir=weights_dir)
    if spec.takes_text:
        words = max(1, round(audio_s / _CLIPS * WORDS_PER_S))
        text = " ".join(_WORDS[place % len(_WORDS)] for place in range(words))
        batch: list[Tensor] = [encoder.tokenize(text)] * _CLIPS  # type: ignore[attr-defined]
    else:
        batch = [_speech(clip, audio_s / _CLIPS, spec.sample_rate_hz) for clip in range(_CLIPS)]

    def run(clips: list[Tensor]) -> float:
        started = time.process_time()
        for found in encoder.encode_padded(clips):
            if found.name == reach:
                break
        return time.process_time() - started

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        run(batch[:1])
        seconds = run(batch)
    finally:
        torch.set_num_threads(threads)
    return EncoderCost(
        encoder=name,
        representation=wanted,
        parameters=parameter_counts(name).get(reach),
        cpu_s_per_s=seconds / audio_s,
        audio_s=audio_s,
        processor=processor_name(torch.device("cpu")),
        torch=str(torch.__version__),
    )


def _speech(clip: int, duration_s: float, rate_hz: int) -> Tensor:
    time_s = np.arange(int(duration_s * rate_hz)) / rate_hz
    envelope = 0.1 * np.abs(np.sin(np.pi * _SYLLABLES_HZ * time_s))
    return torch.from_numpy((envelope * np.random.default_rng(clip).standard_normal(len(time_s))).astype(np.float32))
