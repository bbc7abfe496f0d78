"""What every encoder promises.

An encoder is a frozen model: a batch of waveforms in, named representations out. A waveform is a one-dimensional float32
tensor at ``spec.sample_rate_hz`` in [-1, 1]. Utterances of a batch may have any lengths. Encoders of text (``text.py``) take token
ids, int64 [T], in place of waveforms; what is said here of samples holds of tokens there, and their ``longest_s`` is in tokens.

*The promise that makes the cache trustworthy*: what comes out for an utterance does not depend on what else is in its
batch. Batched equals alone to a relative error of 1e-5 (float32), and equals the upstream library's own one-by-one call.
Each family module says in its docstring what breaks this in the upstream model and how it is cured.

Clips below ``min_samples`` are extended with zeros on the right to that length; nothing is ever cut. Recordings above
``longest_s`` are encoded in overlapping windows (``windows.py``), so that memory does not grow with their length; each family
module says in its docstring whether that changes a frame.

Not done here: decoding and resampling (``pipelines.audio``), pooling over time (``pipelines.extraction``).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipelines.encoders.catalogue import EncoderSpec
from pipelines.encoders.weights import WeightsInfo

__all__ = ["Encoder", "PaddedRepresentation"]


@dataclass(frozen=True)
class PaddedRepresentation:
    """One representation of a padded batch.

    Attributes:
        name: the representation, one of ``spec.representations``.
        frames: float32 [B, T, D] on the encoder's device; rows beyond ``num_frames`` hold anything, also NaN.
        num_frames: int64 [B] on the same device, every value at least 1.
    """

    name: str
    frames: Tensor
    num_frames: Tensor


class Encoder(ABC):
    """A frozen model. Subclasses implement :meth:`num_frames` and :meth:`encode_padded`.

    Attributes:
        spec: the catalogue entry.
        weights: where the parameters came from (pretrained or random, source, digest).
        device: where the model runs.
        precision: arithmetic of the model, one of ``spec.precisions``; what is handed out is float32 in any case.
        min_samples: shortest clip the model can take; shorter ones are zero-extended to it.
        longest_s: longest recording, in seconds, that is encoded in one piece.
        context_s: seconds of audio on either side of a window that are encoded with it and whose frames are dropped; 0 for
            utterance-level encoders, whose windows' embeddings are averaged by their length.
    """

    min_samples: int = 1
    longest_s: float = 60.0
    context_s: float = 2.0

    def __init__(
        self, *, spec: EncoderSpec, weights: WeightsInfo, device: torch.device, precision: str = "float32"
    ) -> None:
        self.spec = spec
        self.weights = weights
        self.device = device
        self.precision = precision

    @abstractmethod
    def num_frames(self, num_samples: int) -> int:
        """Number of frames T for a clip of ``num_samples`` samples; 1 for utterance-level encoders."""

    @abstractmethod
    def encode_padded(self, batch: Sequence[Tensor]) -> Iterator[PaddedRepresentation]:
        """Yield every representation of ``spec.representations``, in that order.

        A generator, so that the consumer can pool one representation and let it go before the next is made.

        Args:
            batch: B waveforms, float32 [samples], on the CPU.
        """

    @torch.inference_mode()
    def encode(self, batch: Sequence[Tensor]) -> list[dict[str, Tensor]]:
        """Encode a batch.

        Args:
            batch: B waveforms, float32 [samples].

        Returns:
            Per utterance, representation name to frames [T, D] (float32, CPU).
        """
        encoded: list[dict[str, Tensor]] = [{} for _ in batch]
        for representation in self.encode_padded(batch):
            lengths = representation.num_frames.tolist()
            for row, length in enumerate(lengths):
                encoded[row][representation.name] = representation.frames[row, :length].float().cpu().clone()
        return encoded
