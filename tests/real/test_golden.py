"""The two encoders whose real weights are at hand, against reference outputs on Emo-DB recordings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

from pipelines.encoders.base import Encoder
from pipelines.encoders.catalogue import load_encoder
from tests.encoders.batches import assert_batched_equals_alone, relative_error


def _recordings(real_data: Path, utterance_ids: list[str]) -> list[Tensor]:
    folder = real_data / "corpora" / "emodb" / "wav"
    clips = []
    for utterance_id in utterance_ids:
        samples, rate_hz = soundfile.read(folder / f"{utterance_id}.wav", dtype="float32")
        assert rate_hz == 16000
        clips.append(torch.from_numpy(samples))
    return clips


@pytest.fixture(scope="module")
def lyra(real_data: Path) -> Encoder:
    return load_encoder("soundstream-lyra", weights_dir=real_data / "weights")


@pytest.fixture(scope="module")
def byols(real_data: Path) -> Encoder:
    return load_encoder("byols", weights_dir=real_data / "weights")


def test_lyra_equals_the_frames_of_the_tflite_runtime(real_data: Path, lyra: Encoder) -> None:
    with np.load(real_data / "golden" / "soundstream_lyra_frames.npz") as golden:
        expected = {name: torch.from_numpy(golden[name]) for name in golden.files}
    assert len(expected) == 9
    found = lyra.encode(_recordings(real_data, list(expected)))
    for frames, (utterance_id, reference) in zip(found, expected.items(), strict=True):
        assert relative_error(frames["latent"], reference) <= 1e-5, utterance_id  # measured: 1.0e-6
        # 46 codebooks of 16 entries leave a fifth to a quarter (measured); unquantised or misordered ones would not.
        error = (frames["quantized"] - reference).norm() / reference.norm()
        assert 0.1 < float(error) < 0.35, utterance_id


def test_lyra_weights_are_the_published_ones(lyra: Encoder) -> None:
    assert (lyra.weights.kind, lyra.weights.revision, lyra.weights.licence) == ("pretrained", "v1.2.0", "Apache-2.0")
    assert lyra.weights.source == "google/lyra: soundstream_encoder.tflite, quantizer.tflite"


def test_byols_equals_the_reference_vectors(real_data: Path, byols: Encoder) -> None:
    with np.load(real_data / "golden" / "byols_embeddings.npz") as golden:
        utterance_ids, reference = golden["utterance_id"].tolist(), torch.from_numpy(golden["embedding"])
    assert reference.shape == (22, 512)
    found = torch.cat([frames["embedding"] for frames in byols.encode(_recordings(real_data, utterance_ids))])
    for row, utterance_id in enumerate(utterance_ids):
        assert relative_error(found[row], reference[row]) <= 1e-4, utterance_id  # measured: 4.2e-7


@pytest.mark.parametrize("name", ["lyra", "byols"])
def test_batched_equals_alone_on_recordings(real_data: Path, name: str, request: pytest.FixtureRequest) -> None:
    encoder: Encoder = request.getfixturevalue(name)
    clips = _recordings(real_data, ["03a01Fa", "08a02Tb", "09a05Lc", "10b03Tb", "16a04Lc"])
    clips += [clips[0][:700], clips[1][:1], clips[2][:16001], torch.cat([clips[3], torch.zeros(4001)])]
    assert_batched_equals_alone(encoder, clips)
