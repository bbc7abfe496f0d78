"""What windows do to the embedding of a long recording: 150 s of one speaker of Emo-DB, in one piece and in three windows."""

from __future__ import annotations

from pathlib import Path

import pytest
import soundfile
import torch
from torch import Tensor

from pipelines.encoders.catalogue import load_encoder
from tests.encoders.in_windows import distance, embeddings_of_windows

SAMPLES = 150 * 16000


def _recording(real_data: Path, speaker: str) -> Tensor:
    """The first 150 s of a speaker's recordings, one after the other."""
    paths = sorted((real_data / "corpora" / "emodb" / "wav").glob(f"{speaker}*.wav"))
    samples = torch.cat([torch.from_numpy(soundfile.read(path, dtype="float32")[0]) for path in paths])[:SAMPLES]
    assert len(samples) == SAMPLES
    return samples


@pytest.mark.parametrize(
    ("name", "weights", "windows", "another"),
    [
        # Distances from the embedding in one piece, measured; the modules' docstrings quote them.
        ("byols", "pretrained", 0.103, 0.185),
        ("xvector", "random", 0.0053, 0.045),
        pytest.param("ecapa", "random", 0.0065, 0.031, marks=pytest.mark.slow),
    ],
)
def test_windows_against_one_piece(real_data: Path, name: str, weights: str, windows: float, another: float) -> None:
    encoder = load_encoder(name, weights=weights, weights_dir=real_data / "weights")
    encoder.longest_s = 60.0
    recording, of_another_speaker = (_recording(real_data, speaker) for speaker in ("08", "16"))
    whole, other = (encoder.encode([samples])[0]["embedding"][0] for samples in (recording, of_another_speaker))
    embeddings, mean = embeddings_of_windows(encoder, recording)
    assert len(embeddings) == 3
    # Random weights are other numbers in another version of torch.
    tolerance = 0.02 if weights == "pretrained" else 0.5
    assert distance(mean, whole) == pytest.approx(windows, rel=tolerance)
    assert distance(other, whole) == pytest.approx(another, rel=tolerance)
    # The mean is nearer to the whole than any window of it.
    assert all(distance(embedding, whole) > distance(mean, whole) for embedding in embeddings)
