"""Windows: every frame of a recording comes from one window, far enough from its edges."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import pytest
import torch
from torch import Tensor

from pipelines.encoders.base import Encoder, PaddedRepresentation
from pipelines.encoders.catalogue import encoder_spec
from pipelines.encoders.weights import WeightsInfo
from pipelines.encoders.windows import plan_windows


class Frames(Encoder):
    """Frames of ``size`` samples every ``hop``, each holding the sum of its samples: local, so that windows change nothing."""

    longest_s, context_s = 2.0, 0.25

    def __init__(self, *, hop: int, size: int) -> None:
        spec = dataclasses.replace(encoder_spec("wavlm-tiny"), hop_samples=hop, dim=1, representations=("frames",))
        super().__init__(spec=spec, weights=WeightsInfo("random", "", "", "", ""), device=torch.device("cpu"))
        self.size = size

    def num_frames(self, num_samples: int) -> int:
        return 1 if not self.spec.hop_samples else (num_samples - self.size) // self.spec.hop_samples + 1

    def encode_padded(self, batch: Sequence[Tensor]) -> Iterator[PaddedRepresentation]:
        for clip in batch:
            frames = clip.unfold(0, self.size, self.spec.hop_samples).sum(-1)[None, :, None]
            yield PaddedRepresentation("frames", frames, torch.tensor([frames.shape[1]]))


@pytest.mark.parametrize(("hop", "size"), [(320, 400), (320, 320), (200, 200), (1920, 1920), (333, 1000)])
@pytest.mark.parametrize("extra", [0, 1, 319, 320, 8001, 32000, 100_003, 1_000_001])
def test_windows_together_are_the_recording(hop: int, size: int, extra: int) -> None:
    encoder = Frames(hop=hop, size=size)
    samples = torch.randn(32000 + extra, generator=torch.Generator().manual_seed(extra))
    whole = next(iter(encoder.encode_padded([samples]))).frames[0]
    windows = plan_windows(encoder, len(samples))
    parts = []
    for window in windows:
        assert window.stop - window.start <= 32000
        frames = next(iter(encoder.encode_padded([samples[window.start : window.stop]]))).frames[0]
        assert encoder.num_frames(window.stop - window.start) == len(frames) >= window.last > window.first
        if window.start > 0:
            assert window.first * hop >= 4000
        if window.stop < len(samples):
            assert window.stop - window.start - window.last * hop >= 4000 - hop
        parts.append(frames[window.first : window.last])
    assert torch.equal(torch.cat(parts), whole)
    assert len(windows) > 1 or extra == 0


def test_utterance_level_windows_lie_side_by_side() -> None:
    windows = plan_windows(Frames(hop=0, size=1), 100_003)
    assert [window.start for window in windows] == [0, 25000, 50001, 75002]
    assert [window.stop for window in windows] == [25000, 50001, 75002, 100_003]
    assert {(window.first, window.last) for window in windows} == {(0, 1)}


def test_context_without_room_is_an_error() -> None:
    encoder = Frames(hop=320, size=400)
    encoder.context_s = 1.0
    with pytest.raises(ValueError, match=r"Windows of 2.0 s have no frame that is 1.0 s from both edges"):
        plan_windows(encoder, 64000)
