"""EnCodec against the encodec package's own one-by-one call, on a checkpoint in its own format."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pipelines.encoders import encodec
from pipelines.encoders.catalogue import EncoderSpec, encoder_spec, load_encoder
from pipelines.encoders.encodec import EncodecEncoder
from pipelines.encoders.torchaudio_guard import ensure_torchaudio_importable
from pipelines.errors import ConfigError, WeightsError
from tests.encoders.batches import (
    TOLERANCE,
    assert_batched_equals_alone,
    frames_off,
    ragged_clips,
    relative_error,
    speechlike,
)
from tests.encoders.in_windows import distance, frames_of_windows

ensure_torchaudio_importable()

_FILE = "encodec_24khz-d7cc33bc.th"


def _spec(**settings: object) -> EncoderSpec:
    """The catalogue's full size without the sha256 of Meta's file: random weights cannot have that."""
    spec = encoder_spec("encodec")
    return dataclasses.replace(
        spec,
        files=(dataclasses.replace(spec.files[0], sha256="", url=""),),
        settings={**spec.settings, **settings},
    )


def _upstream_model() -> Any:
    """The package's own 24 kHz model, decoder included, with weights that let the signal pass and filled codebooks."""
    from encodec.model import EncodecModel

    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore", FutureWarning)
        torch.manual_seed(17)
        model = EncodecModel.encodec_model_24khz(pretrained=False)
        with torch.no_grad():
            for name, tensor in model.state_dict().items():
                if name.endswith("weight_g"):
                    tensor.mul_(1.7)
                elif name.endswith("_codebook.embed"):
                    level = int(name.split(".")[3])
                    tensor.normal_(0.0, 0.05 * 0.95**level)
                elif name.endswith("inited"):
                    tensor.fill_(1.0)
    return model.eval()


@torch.inference_mode()
def _upstream(model: Any, clip: Tensor) -> tuple[Tensor, Tensor]:
    """Latents and dequantised frames [T, 128] of one clip that is extended to whole frames, at least 7 of them."""
    samples = max(2240, -(-clip.numel() // 320) * 320)
    audio = F.pad(clip, (0, samples - clip.numel()))[None, None]
    codes = model.encode(audio)[0][0]  # [1, codebooks, T]
    return model.encoder(audio)[0].T, model.quantizer.decode(codes.transpose(0, 1))[0].T


def _build(folder: Path, **settings: object) -> EncodecEncoder:
    return EncodecEncoder.build(
        spec=_spec(**settings), weights_kind="pretrained", device=torch.device("cpu"), weights_dir=folder
    )


@pytest.fixture(scope="module")
def model() -> Any:
    return _upstream_model()


@pytest.fixture(scope="module")
def folder(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encodec")
    torch.save(model.state_dict(), folder / _FILE)
    return folder


@pytest.mark.parametrize(("bandwidth", "codebooks"), [(6.0, 8), (1.5, 2)])
def test_equals_the_package_one_by_one(model: Any, folder: Path, bandwidth: float, codebooks: int) -> None:
    encoder = _build(folder, bandwidth_kbps=bandwidth)
    model.set_target_bandwidth(bandwidth)
    clips = ragged_clips(encoder)
    assert model.encode(clips[0][None, None])[0][0].shape[1] == codebooks
    off = total = 0
    for clip, found in zip(clips, encoder.encode(clips), strict=True):
        latent, quantized = _upstream(model, clip)
        # The signal passes, so an error would show.
        assert len(latent) < 20 or latent.std(0).mean() > 0.05 * latent.abs().mean()
        assert relative_error(found["latent"], latent) <= TOLERANCE
        off += frames_off(found["quantized"], quantized)
        total += len(quantized)
    assert off <= total // 200


def test_batched_equals_alone(folder: Path) -> None:
    encoder = _build(folder)
    assert_batched_equals_alone(encoder, ragged_clips(encoder))


def test_tiny_batched_equals_alone() -> None:
    encoder = load_encoder("encodec-tiny", weights="random")
    assert_batched_equals_alone(encoder, ragged_clips(encoder))


def test_appended_silence_changes_no_earlier_frame(folder: Path) -> None:
    clip = speechlike(320 * 20, seed=1)
    alone, extended = _build(folder).encode([clip, torch.cat([clip, torch.zeros(5000)])])
    assert relative_error(extended["latent"][:20], alone["latent"]) <= TOLERANCE
    assert len(extended["latent"]) == 36


def test_bandwidth_is_one_that_the_model_has() -> None:
    spec = dataclasses.replace(encoder_spec("encodec-tiny"), settings={"filters": 4, "bandwidth_kbps": 7.0})
    with pytest.raises(ConfigError, match=r"no bandwidth of 7.0 kbps; expected one of 1.5, 3.0, 6.0, 12.0, 24.0"):
        EncodecEncoder.build(spec=spec, weights_kind="random", device=torch.device("cpu"))


def test_random_weights_are_seeded_by_the_name_and_leave_the_generator_alone() -> None:
    before = torch.get_rng_state()
    first = load_encoder("encodec-tiny", weights="random")
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(7)
    assert first.weights == load_encoder("encodec-tiny", weights="random").weights
    for representation in first.encode([speechlike(9000, seed=2)])[0].values():
        assert representation.shape == (29, 32)
        assert representation.std(0).mean() > 0.3 * representation.abs().mean()


def test_no_warning_reaches_the_user() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_encoder("encodec-tiny", weights="random")


def test_reading_weights_leaves_the_generator_alone_and_names_its_source(folder: Path) -> None:
    before = torch.get_rng_state()
    weights = _build(folder).weights
    assert torch.equal(torch.get_rng_state(), before)
    assert (weights.kind, weights.revision) == ("pretrained", "unverified")
    assert weights.source == str(folder / _FILE)
    assert "CC BY-NC 4.0" in weights.licence


def test_digest_is_of_the_parameters_as_stored_not_of_the_bandwidth(folder: Path) -> None:
    assert _build(folder).weights.digest == _build(folder, bandwidth_kbps=1.5).weights.digest


def test_weights_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("HYFUSE_WEIGHTS", raising=False)
    with pytest.raises(WeightsError, match=r"encodec_24khz-d7cc33bc.th was .*dl.fbaipublicfiles.com"):
        load_encoder("encodec", weights_dir=tmp_path)


def test_a_file_with_another_digest(folder: Path) -> None:
    with pytest.raises(WeightsError, match=r"is not the file that 'encodec' needs: .* expected d7cc33bc"):
        load_encoder("encodec", weights_dir=folder)


def test_half_downloaded(folder: Path, tmp_path: Path) -> None:
    content = (folder / _FILE).read_bytes()
    (tmp_path / _FILE).write_bytes(content[: len(content) // 2])
    with pytest.raises(WeightsError, match="damaged, half-downloaded"):
        _build(tmp_path)


def test_a_network_that_differs(model: Any, tmp_path: Path) -> None:
    state = model.state_dict()
    torch.save({name: value for name, value in state.items() if "lstm" not in name}, tmp_path / _FILE)
    with pytest.raises(WeightsError, match=r"8 of \d+ .* missing \(encoder.model.13.lstm.weight_ih_l0"):
        _build(tmp_path)
    torch.save(state | {"encoder.model.16.weight": torch.zeros(2)}, tmp_path / _FILE)
    with pytest.raises(WeightsError, match=r"1 are not known \(encoder.model.16.weight\)"):
        _build(tmp_path)
    torch.save(state, tmp_path / _FILE)
    with pytest.raises(WeightsError, match=r"have another shape \(encoder.model.0.conv.conv.bias is \[32\]"):
        _build(tmp_path, filters=16)


def test_pieces_change_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = _build(folder)
    clips = [speechlike(24000 * 3 + 5, seed=6), speechlike(2000, seed=7), speechlike(320 * 31, seed=8)]
    whole = encoder.encode(clips)
    for size in (4, 10, 1000):
        monkeypatch.setattr(encodec, "_PIECE_FRAMES", size)
        for found, expected in zip(encoder.encode(clips), whole, strict=True):
            assert relative_error(found["latent"], expected["latent"]) <= TOLERANCE


def test_windows_differ_by_what_the_lstm_forgets() -> None:
    """130 s in windows of 60 s with 2 s of context; random weights, whose LSTM remembers for half a second."""
    encoder = load_encoder("encodec-tiny", weights="random")
    clip = speechlike(24000 * 130 + 777, seed=9)
    whole = encoder.encode([clip])[0]["latent"]
    encoder.longest_s, encoder.context_s = 60.0, 2.0
    joined = frames_of_windows(encoder, clip)["latent"]
    assert relative_error(joined, whole) <= TOLERANCE
    assert distance(joined.mean(0), whole.mean(0)) <= TOLERANCE
    encoder.context_s = 0.0
    assert relative_error(frames_of_windows(encoder, clip)["latent"], whole) > 100 * TOLERANCE
