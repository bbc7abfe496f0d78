"""BYOL-S against a plain one-by-one computation in upstream's own order of axes, on a checkpoint in upstream's format."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipelines.encoders.byols import BYOLSEncoder, mel_triangles
from pipelines.encoders.catalogue import EncoderSpec, encoder_spec, load_encoder
from pipelines.encoders.random_weights import initialise
from pipelines.encoders.torchaudio_guard import ensure_torchaudio_importable
from pipelines.encoders.weights import random_initialisation
from pipelines.errors import WeightsError
from tests.encoders.batches import (
    TOLERANCE,
    assert_batched_equals_alone,
    ragged_clips,
    relative_error,
    speechlike,
)
from tests.encoders.in_windows import distance, embeddings_of_windows

_FILE = "default512_BYOLAs64x96-2107281850-e100-bs256-lr0003-rs42.pth"


def _upstream_network() -> tuple[nn.Sequential, nn.Sequential]:
    """The two halves of the published network, no parameter or statistic at its initial constant."""
    stages: list[nn.Module] = []
    for channels in (1, 64, 64):
        stages += [nn.Conv2d(channels, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2, stride=2)]
    features = nn.Sequential(*stages)
    fc = nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Dropout(p=0.3), nn.Linear(512, 512), nn.ReLU())
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for module in (features, fc):
            for name, tensor in module.state_dict().items():
                if name.endswith("running_var"):
                    tensor.uniform_(0.3, 2.0, generator=generator)
                elif tensor.is_floating_point():
                    fan_in = tensor[0].numel() if tensor.ndim > 1 else 20
                    tensor.normal_(0.0, (2.0 / fan_in) ** 0.5, generator=generator)
                    if tensor.ndim == 1 and name.endswith("weight"):
                        tensor.add_(torch.where(tensor > 0, 1.0, -1.0))  # scales of either sign
    return features.eval(), fc.eval()


def _upstream_state() -> dict[str, Tensor]:
    features, fc = _upstream_network()
    named = {f"features.{name}": value for name, value in features.state_dict().items()}
    return named | {f"fc.{name}": value for name, value in fc.state_dict().items()}


@torch.inference_mode()
def _upstream(clip: Tensor, network: tuple[nn.Sequential, nn.Sequential]) -> Tensor:
    """Embedding [512] of one clip, torchaudio's filterbank, mel before time."""
    from torchaudio.functional import melscale_fbanks

    clip = F.pad(clip, (0, max(0, 1120 - clip.numel())))
    spectrum = torch.stft(clip, 1024, 160, window=torch.hann_window(1024), center=True, return_complex=True)
    filters = melscale_fbanks(513, 60.0, 7800.0, 64, 16000)
    log_mel = (filters.T @ spectrum.abs().square() + torch.finfo(torch.float32).eps).log()  # [64, frames]
    log_mel = (log_mel - log_mel.mean()) / log_mel.std()
    maps = network[0](log_mel[None, None])  # [1, 64, 8, steps]
    steps = network[1](maps.permute(0, 3, 2, 1).flatten(2))[0]  # [steps, 512]
    return steps.mean(0) + steps.amax(0)


def _spec() -> EncoderSpec:
    """The catalogue's entry without the sha256 of the published file: random weights cannot have that."""
    spec = encoder_spec("byols")
    return dataclasses.replace(spec, files=(dataclasses.replace(spec.files[0], sha256="", url=""),))


def _build(folder: Path) -> BYOLSEncoder:
    return BYOLSEncoder.build(spec=_spec(), weights_kind="pretrained", device=torch.device("cpu"), weights_dir=folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("byols")
    torch.save(_upstream_state(), folder / _FILE)
    return folder


def test_equals_the_published_computation_one_by_one(folder: Path) -> None:
    ensure_torchaudio_importable()
    encoder, network = _build(folder), _upstream_network()
    clips = ragged_clips(encoder)
    for clip, found in zip(clips, encoder.encode(clips), strict=True):
        assert found["embedding"].shape == (1, 512)
        error = relative_error(found["embedding"][0], _upstream(clip, network))
        # A single sample is digital silence but for one click: its standardised features are a matter of rounding.
        assert error <= (TOLERANCE if clip.numel() > 1 else 1e-2), clip.numel()


def test_batched_equals_alone(folder: Path) -> None:
    encoder = _build(folder)
    assert_batched_equals_alone(encoder, ragged_clips(encoder))


def test_embeddings_differ_between_clips(folder: Path) -> None:
    encoder = _build(folder)
    first, second = encoder.encode([speechlike(20000, seed=1), speechlike(20000, seed=2)])
    assert relative_error(first["embedding"], second["embedding"]) > 0.02


def test_filterbank_is_torchaudios() -> None:
    ensure_torchaudio_importable()
    from torchaudio.functional import melscale_fbanks

    ours = mel_triangles(bands=64, lowest_hz=60.0, highest_hz=7800.0, bins=513, highest_bin_hz=8000.0)
    theirs = melscale_fbanks(513, 60.0, 7800.0, 64, 16000, norm=None, mel_scale="htk")
    assert ours.shape == (513, 64)
    assert (ours - theirs).abs().max() <= 1e-5
    assert ours.amax(0).min() > 0.3  # no band is empty


def test_digital_silence_is_finite_and_alike_in_any_batch(folder: Path) -> None:
    encoder = _build(folder)
    silence = torch.zeros(16000)
    alone = encoder.encode([silence])[0]["embedding"]
    batched = encoder.encode([speechlike(16480, seed=1), silence])[1]["embedding"]
    assert relative_error(batched, alone) <= 1e-3


def test_random_weights_are_seeded_by_the_name() -> None:
    first, second = (load_encoder("byols", weights="random") for _ in range(2))
    assert first.weights == second.weights
    assert first.weights.digest != encoder_spec("byols").files[0].sha256
    clip = [speechlike(9000, seed=1)]
    assert torch.equal(first.encode(clip)[0]["embedding"], second.encode(clip)[0]["embedding"])


def test_tiny_size_is_the_same_computation_in_narrow() -> None:
    encoder = load_encoder("byols-tiny", weights="random")
    clips = ragged_clips(encoder)
    assert_batched_equals_alone(encoder, clips)
    with random_initialisation(encoder.spec):
        stages: list[nn.Module] = []
        for channels in (1, 8, 8):
            stages += [nn.Conv2d(channels, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)]
        fc = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Dropout(), nn.Linear(32, 32), nn.ReLU())
        network = nn.Sequential(*stages).eval(), fc.eval()
        initialise(nn.ModuleList(network))
    ensure_torchaudio_importable()
    for clip, found in zip(clips, encoder.encode(clips), strict=True):
        error = relative_error(found["embedding"][0], _upstream(clip, network))
        assert error <= (TOLERANCE if clip.numel() > 1 else 1e-2), clip.numel()


def test_long_recordings_come_in_windows() -> None:
    """Nearer to the embedding in one piece than another recording's is, not equal; the module's docstring says how near."""
    encoder = load_encoder("byols-tiny", weights="random")
    encoder.longest_s = 60.0
    recording, another = speechlike(150 * 16000, seed=1), speechlike(150 * 16000, seed=2)
    whole, other = (encoder.encode([samples])[0]["embedding"][0] for samples in (recording, another))
    embeddings, mean = embeddings_of_windows(encoder, recording)
    assert len(embeddings) == 3
    assert TOLERANCE < distance(mean, whole) < distance(other, whole)


def test_reading_weights_leaves_the_generator_alone_and_names_its_source(folder: Path) -> None:
    before = torch.get_rng_state()
    weights = _build(folder).weights
    assert torch.equal(torch.get_rng_state(), before)
    assert (weights.kind, weights.revision, weights.licence) == ("pretrained", "unverified", "MIT")
    assert weights.source == str(folder / _FILE)


def test_weights_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("HYFUSE_WEIGHTS", raising=False)
    with pytest.raises(WeightsError, match=r"'byols' are not here: default512.*Neclow/serab.*licence: MIT"):
        load_encoder("byols", weights_dir=tmp_path)


def test_a_file_with_another_digest(folder: Path) -> None:
    with pytest.raises(WeightsError, match=r"is not the file that 'byols' needs: .* expected 449f5d0d"):
        load_encoder("byols", weights_dir=folder)


def test_half_downloaded(folder: Path, tmp_path: Path) -> None:
    content = (folder / _FILE).read_bytes()
    (tmp_path / _FILE).write_bytes(content[: len(content) // 2])
    with pytest.raises(WeightsError, match="damaged, half-downloaded"):
        _build(tmp_path)


def test_a_network_that_differs(tmp_path: Path) -> None:
    state = _upstream_state()
    torch.save({name: value for name, value in state.items() if "fc.3" not in name}, tmp_path / _FILE)
    with pytest.raises(WeightsError, match=r"does not fit 'byols': 2 of 25 .*missing \(fc.3.weight, fc.3.bias\)"):
        _build(tmp_path)
    torch.save(state | {"fc.0.weight": torch.zeros(512, 1024)}, tmp_path / _FILE)
    with pytest.raises(WeightsError, match=r"fc.0.weight is \[512, 1024\], expected \[512, 512\]"):
        _build(tmp_path)
    torch.save(state | {"head.weight": torch.zeros(2)}, tmp_path / _FILE)
    with pytest.raises(WeightsError, match=r"1 are not known \(head.weight\)"):
        _build(tmp_path)
