"""Mimi against transformers' own one-by-one call, on a checkpoint in upstream's format."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipelines.encoders.catalogue import EncoderSpec, encoder_spec, load_encoder
from pipelines.encoders.mimi import _PUBLISHED, MimiEncoder, _Network
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

from transformers import MimiConfig, MimiModel  # noqa: E402
from transformers.utils import logging as transformers_logging  # noqa: E402

_TINY = {name: value for name, value in encoder_spec("mimi-tiny").settings.items() if name != "codebooks"}


def _spec(**settings: object) -> EncoderSpec:
    """The tiny size with the files of the full one."""
    full, tiny = encoder_spec("mimi"), encoder_spec("mimi-tiny")
    return dataclasses.replace(full, dim=tiny.dim, settings={**tiny.settings, **settings}, repository="kyutai/mimi")


@pytest.fixture(scope="module")
def model() -> Any:
    """transformers' model, decoder included, with weights that let the signal pass and filled codebooks."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(5)
        model = MimiModel(MimiConfig(hidden_size=32, upsample_groups=32, **_TINY))
        for name, tensor in model.state_dict().items():
            if name.endswith("embed_sum"):
                tensor.normal_(0.0, 0.5)
                tensor[:8] *= 1e-3
            elif name.endswith("cluster_usage"):
                tensor.uniform_(0.2, 1.5)
                tensor[:8] *= 1e-3
                tensor[8] = 0.0
            elif name.endswith("layer_scale.scale"):
                tensor.uniform_(0.1, 0.6)
            elif "proj.weight" in name or "mlp.fc" in name:
                tensor.normal_(0.0, 1.4 * tensor[0].numel() ** -0.5)
            elif "layernorm" in name:
                tensor.add_(0.2 * torch.randn(tensor.shape))
    return model.eval()


@pytest.fixture(scope="module")
def folder(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mimi")
    transformers_logging.disable_progress_bar()
    model.save_pretrained(folder)
    transformers_logging.enable_progress_bar()
    return folder


def _build(folder: Path, **settings: object) -> MimiEncoder:
    return MimiEncoder.build(
        spec=_spec(**settings), weights_kind="pretrained", device=torch.device("cpu"), weights_dir=folder
    )


@torch.inference_mode()
def _upstream(model: Any, clip: Tensor, codebooks: int | None = None) -> tuple[Tensor, Tensor]:
    """Latents and dequantised frames [T, D] of one clip that is extended to whole frames."""
    audio = F.pad(clip, (0, -clip.numel() % 1920))[None, None]
    encoder = model.encoder
    steps = encoder.encoder_seanet(audio).transpose(1, 2)
    latent = encoder.downsample(encoder.encoder_transformer(steps).last_hidden_state.transpose(1, 2))
    codes = model.encode(audio, num_quantizers=codebooks).audio_codes
    assert codes.shape[1] == (codebooks or 4)
    return latent[0].T, model.quantizer.decode(codes)[0].T


def _clips(encoder: MimiEncoder) -> list[Tensor]:
    """Also clips longer than the window of attention and than one block of it."""
    return [*ragged_clips(encoder), speechlike(1920 * 30 + 1, seed=20), speechlike(24000 * 21 + 77, seed=21)]


@pytest.mark.parametrize("codebooks", [None, 1, 3])
def test_equals_transformers_one_by_one(model: Any, folder: Path, codebooks: int | None) -> None:
    encoder = _build(folder, codebooks=codebooks or 4)
    clips = _clips(encoder)
    off = total = 0
    for clip, found in zip(clips, encoder.encode(clips), strict=True):
        latent, quantized = _upstream(model, clip, codebooks)
        # The signal passes, so an error would show.
        assert len(latent) < 20 or latent.std(0).mean() > 0.2 * latent.abs().mean()
        assert relative_error(found["latent"], latent) <= TOLERANCE
        off += frames_off(found["quantized"], quantized)
        total += len(quantized)
    assert off <= total // 200


def test_attention_reaches_back_as_far_as_upstream(model: Any, folder: Path) -> None:
    """What comes before the first layer's window is seen through the layers above it, and nothing further back."""
    clip = speechlike(960 * 120, seed=3)
    changed = clip.clone()
    changed[: 960 * 60] = 0.0
    first, second = (found["latent"] for found in _build(folder).encode([clip, changed]))
    # Two layers of 20 steps, the convolutions' four, and the two of the last convolution's kernel of four.
    last = 60 + 2 * 19 + 4 + 2
    differs = (first - second).abs().amax(1) > TOLERANCE * first.abs().max()
    assert bool(differs[30 : 30 + 19].all())
    assert not bool(differs[(last + 1) // 2 :].any())


def test_batched_equals_alone(folder: Path) -> None:
    encoder = _build(folder)
    assert_batched_equals_alone(encoder, _clips(encoder))


def test_tiny_batched_equals_alone() -> None:
    encoder = load_encoder("mimi-tiny", weights="random")
    assert_batched_equals_alone(encoder, ragged_clips(encoder))


def test_appended_silence_changes_no_earlier_frame(folder: Path) -> None:
    clip = speechlike(1920 * 20, seed=1)
    alone, extended = _build(folder).encode([clip, torch.cat([clip, torch.zeros(20000)])])
    assert relative_error(extended["latent"][:20], alone["latent"]) <= TOLERANCE
    assert len(extended["latent"]) == 31


def test_context_of_windows_covers_all_that_a_frame_sees() -> None:
    published = MimiConfig()
    steps = published.num_hidden_layers * (published.sliding_window - 1) + 4 + 2
    assert steps * 960 / 24000 < MimiEncoder.context_s
    assert 2 * MimiEncoder.context_s < MimiEncoder.longest_s


def test_windows_are_the_recording_in_one_piece() -> None:
    """130 s through random weights in windows as long as the receptive field asks for; the tiny size sees 1.8 s back."""
    encoder = load_encoder("mimi-tiny", weights="random")
    clip = speechlike(24000 * 130 + 500, seed=8)
    whole = encoder.encode([clip])[0]["latent"]
    encoder.longest_s, encoder.context_s = 30.0, 2.0
    joined = frames_of_windows(encoder, clip)["latent"]
    assert relative_error(joined, whole) <= 1e-4  # angles of late steps are rounded to 1e-4
    assert distance(joined.mean(0), whole.mean(0)) <= TOLERANCE


def test_full_size_has_the_published_shapes_and_settings() -> None:
    with torch.device("meta"):
        upstream = MimiModel(MimiConfig()).state_dict()
        network = _Network(_PUBLISHED).state_dict()
    renamed = {}
    for name, value in upstream.items():
        name = name.removeprefix("encoder.").replace("encoder_seanet.", "encoder.")
        if not name.startswith("decoder.") and not name.endswith("initialized"):
            renamed[name] = value.shape
    assert {name: value.shape for name, value in network.items()} == renamed
    config = MimiConfig().to_dict()
    for name, value in _PUBLISHED.items():
        if name in config:
            assert config[name] == value, name
    assert config["rope_parameters"]["rope_theta"] == _PUBLISHED["rope_theta"]


def test_full_size_is_described_in_the_catalogue() -> None:
    spec = encoder_spec("mimi")
    assert spec.hop_samples == MimiConfig().frame_size == 1920
    assert spec.sample_rate_hz == MimiConfig().sampling_rate
    assert (spec.dim, spec.settings["codebooks"]) == (MimiConfig().hidden_size, MimiConfig().num_quantizers)


def test_codebooks_are_some_that_the_model_has() -> None:
    tiny = encoder_spec("mimi-tiny")
    spec = dataclasses.replace(tiny, settings={**tiny.settings, "codebooks": 5})
    with pytest.raises(ConfigError, match=r"cannot quantise with 5 codebooks; expected 1 to 4 .*'mimi-tiny'"):
        MimiEncoder.build(spec=spec, weights_kind="random", device=torch.device("cpu"))


def test_random_weights_are_seeded_by_the_name_and_leave_the_generator_alone() -> None:
    before = torch.get_rng_state()
    first = load_encoder("mimi-tiny", weights="random")
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(7)
    assert first.weights == load_encoder("mimi-tiny", weights="random").weights
    for representation in first.encode([speechlike(50000, seed=2)])[0].values():
        assert representation.shape == (27, 32)
        assert representation.std(0).mean() > 0.3 * representation.abs().mean()


def test_reading_weights_leaves_the_generator_alone_and_names_its_source(folder: Path) -> None:
    before = torch.get_rng_state()
    weights = _build(folder).weights
    assert torch.equal(torch.get_rng_state(), before)
    assert (weights.kind, weights.revision, weights.source) == ("pretrained", "unverified", str(folder))
    assert weights.licence == "CC BY 4.0"
    assert weights.digest == _build(folder, codebooks=2).weights.digest


def test_half_precision_weights_are_widened(folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "config.json", tmp_path)
    state = {name: value.half() for name, value in load_file(folder / "model.safetensors").items()}
    save_file(state, tmp_path / "model.safetensors")
    clip = speechlike(30000, seed=4)
    full, half = (_build(place).encode([clip])[0]["latent"] for place in (folder, tmp_path))
    assert half.dtype == torch.float32
    assert 0.0 < relative_error(half, full) < 0.02


def test_config_as_it_was_published(folder: Path, tmp_path: Path) -> None:
    """transformers 4 wrote the base of the rotation elsewhere, and left settings out that it did not know."""
    config = json.loads((folder / "config.json").read_text())
    config["rope_theta"] = config.pop("rope_parameters")["rope_theta"]
    config |= {"frame_rate": 12.5}
    del config["use_conv_shortcut"], config["_frame_rate"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    shutil.copy(folder / "model.safetensors", tmp_path)
    assert _build(tmp_path).weights.digest == _build(folder).weights.digest


def test_weights_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.delenv("HYFUSE_WEIGHTS", raising=False)
    with pytest.raises(WeightsError, match=r"config.json, model.safetensors were .*huggingface.co/kyutai/mimi"):
        load_encoder("mimi", weights_dir=tmp_path)


def test_half_downloaded(folder: Path, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        shutil.copy(folder / name, tmp_path)
    content = (folder / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(WeightsError, match="damaged, half-downloaded"):
        _build(tmp_path)
    (tmp_path / "config.json").write_text((folder / "config.json").read_text()[:100])
    with pytest.raises(WeightsError, match=r"config.json cannot be read .* belongs to the weights of 'mimi'"):
        _build(tmp_path)


def test_another_model(folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "model.safetensors", tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "encodec", "sliding_window": 99}))
    with pytest.raises(
        WeightsError,
        match=r"another model than 'mimi' .*model_type is 'encodec', expected 'mimi'; sliding_window is 99, expected 20",
    ):
        _build(tmp_path)
    config["rope_parameters"]["rope_theta"] = 5.0
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match=r"rope_parameters.rope_theta is 5.0, expected 10000.0"):
        _build(tmp_path)
    shutil.copy(folder / "config.json", tmp_path)
    with pytest.raises(WeightsError, match=r"hidden_size is 32, expected 512; num_filters is 4.* and \d+ more"):
        load_encoder("mimi", weights_dir=tmp_path)


def test_a_network_that_differs(folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "config.json", tmp_path)
    state = load_file(folder / "model.safetensors")
    save_file({k: v for k, v in state.items() if "downsample" not in k}, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match=r"1 of \d+ parameters are missing \(downsample.conv.weight\)"):
        _build(tmp_path)
    save_file(state | {"encoder.layers.1.shortcut.conv.weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match=r"1 are not known \(encoder.layers.1.shortcut.conv.weight\)"):
        _build(tmp_path)
    save_file(state | {"downsample.conv.weight": torch.zeros(32, 32, 3)}, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match=r"have another shape \(downsample.conv.weight is \[32, 32, 3\]"):
        _build(tmp_path)
