"""eGeMAPS v02 by openSMILE: 88 numbers per recording, the minimal set of Eyben et al. 2016. An optional extra.

Input: mono 16 kHz. The 88 functionals (means, variations, percentiles, slopes over the whole recording) of F0, jitter, shimmer,
HNR, harmonic differences, formants, loudness, spectral slopes, MFCC 1 to 4 and the timing of voiced parts, as the package
``opensmile`` gives them (feature set ``eGeMAPSv02``, level ``Functionals``). Columns are ``group:name`` with openSMILE's own names;
the groups are f0, voice (jitter, shimmer, HNR, harmonic differences), formants, loudness, spectral, mfcc and timing.

**Licence**: openSMILE is not free software. Its package carries the *audEERING Research License Agreement*: non-commercial use
(research, teaching, personal experiments); any other needs a commercial licence of audEERING. Therefore it is not among hyfuse's
dependencies, and must be installed by the user, who thereby accepts those terms.

openSMILE runs on the CPU, one clip after the other, so nothing in a batch touches anything else. Clips below 0.1 s are extended
with zeros, as openSMILE needs whole windows of 60 ms; what it cannot compute becomes 0. Recordings above 60 s are windows side by
side, whose functionals are averaged by length (``windows.py``): not the functionals of the whole.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipelines.encoders.base import Encoder, PaddedRepresentation
from pipelines.encoders.catalogue import NO_WEIGHTS, EncoderSpec
from pipelines.encoders.weights import Progress, WeightsInfo
from pipelines.errors import InstallationError

__all__ = ["EgemapsEncoder", "group_of"]

_GROUPS = (
    ("f0", ("F0semitone",)),
    ("voice", ("jitter", "shimmer", "HNR", "logRelF0")),
    ("formants", ("F1", "F2", "F3")),
    ("loudness", ("loudnessPeaks", "loudness", "equivalentSoundLevel")),
    ("spectral", ("spectralFlux", "alphaRatio", "hammarbergIndex", "slopeV", "slopeUV")),
    ("mfcc", ("mfcc",)),
    ("timing", ("VoicedSegments", "MeanVoicedSegment", "StddevVoicedSegment", "MeanUnvoicedSegment", "StddevUnvoiced")),
)


def group_of(feature: str) -> str:
    """Group of one of openSMILE's names, ``other`` for none."""
    return next((group for group, starts in _GROUPS if feature.startswith(starts)), "other")


class EgemapsEncoder(Encoder):
    """openSMILE; representation ``functionals`` [1, 88]."""

    min_samples = 1600

    def __init__(self, *, spec: EncoderSpec, weights: WeightsInfo, device: torch.device, smile: Any) -> None:
        super().__init__(spec=spec, weights=weights, device=device)
        self._smile = smile

    @classmethod
    def build(
        cls,
        *,
        spec: EncoderSpec,
        weights_kind: str,
        device: torch.device,
        weights_dir: Path | None = None,
        progress: Progress | None = None,
    ) -> EgemapsEncoder:
        """Build the encoder; see ``catalogue.load_encoder``. There are no weights to find.

        Raises:
            InstallationError: the package opensmile is not installed, or another version whose features are others.
        """
        assert weights_kind == NO_WEIGHTS
        try:
            opensmile: Any = import_module("opensmile")
        except ImportError as error:
            raise InstallationError(
                f"The model {spec.name!r} needs the package opensmile, which is not part of hyfuse because its licence"
                f" (audEERING Research License) is for non-commercial use only ({error}). If that suits you: `pip install"
                " opensmile`. The model 'descriptors' has MFCC, F0, loudness and spectrum without it."
            ) from None
        smile = opensmile.Smile(
            feature_set=opensmile.FeatureSet.eGeMAPSv02, feature_level=opensmile.FeatureLevel.Functionals
        )
        names = list(smile.feature_names)
        if len(names) != spec.dim:
            raise InstallationError(
                f"opensmile {version('opensmile')} gives {len(names)} functionals of eGeMAPSv02, expected {spec.dim}. Install the"
                " version that hyfuse was tested with: `pip install opensmile==2.6.0`."
            )
        columns = tuple(f"{group_of(name)}:{name}" for name in names)
        source = f"opensmile {version('opensmile')}, eGeMAPSv02"
        info = WeightsInfo(
            kind=NO_WEIGHTS,
            source=source,
            revision="",
            digest=hashlib.sha256(json.dumps([source, *columns]).encode()).hexdigest(),
            licence=spec.licence,
        )
        return cls(spec=replace(spec, columns=columns), weights=info, device=device, smile=smile)

    def num_frames(self, num_samples: int) -> int:
        """1: one vector per utterance."""
        return 1

    @torch.inference_mode()
    def encode_padded(self, batch: Sequence[Tensor]) -> Iterator[PaddedRepresentation]:
        """Yield ``functionals``; see the base class."""
        vectors = torch.stack([self._functionals(clip) for clip in batch]).to(self.device)
        ones = torch.ones(len(batch), dtype=torch.int64, device=self.device)
        yield PaddedRepresentation(name=self.spec.representations[0], frames=vectors[:, None], num_frames=ones)

    def _functionals(self, clip: Tensor) -> Tensor:
        """[88] of a clip [samples]."""
        samples = np.zeros(max(len(clip), self.min_samples), np.float32)
        samples[: len(clip)] = clip.numpy()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it says where a clip has no voice
            table = self._smile.process_signal(samples, self.spec.sample_rate_hz)
        values = table.to_numpy(dtype=np.float32)[0]
        return torch.from_numpy(np.where(np.isfinite(values), values, np.float32(0)))
