"""DAC against transformers' own one-by-one call, on a checkpoint in its format."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pipelines.encoders.catalogue import EncoderSpec, encoder_spec, load_encoder
from pipelines.encoders.dac import DACEncoder
from pipelines.encoders.torchaudio_guard import ensure_torchaudio_importable
from pipelines.encoders.windows import plan_windows
from pipelines.errors import WeightsError
from tests.encoders.batches import (
    TOLERANCE,
    assert_batched_equals_alone,
    frames_off,
    ragged_clips,
    relative_error,
    speechlike,
)
from tests.encoders.in_windows import frames_of_windows

ensure_torchaudio_importable()

_FILE = "model.safetensors"


def _spec(**settings: object) -> EncoderSpec:
    """The tiny size with the files of the full one."""
    full, tiny = encoder_spec("dac"), encoder_spec("dac-tiny")
    return dataclasses.replace(
        tiny,
        files=full.files,
        repository=full.repository,
        licence=full.licence,
        settings={**tiny.settings, **settings},
    )


def _config(**settings: Any) -> Any:
    from transformers import DacConfig

    return DacConfig(
        **{
            "encoder_hidden_size": 4,
            "downsampling_ratios": [2, 4, 5, 8],
            "decoder_hidden_size": 16,
            "n_codebooks": 4,
            "codebook_size": 64,
            **settings,
        }
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint as upstream saves it, decoder included, through which a signal passes."""
    from transformers import DacFeatureExtractor, DacModel

    folder = tmp_path_factory.mktemp("dac")
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(23)
        model = DacModel(_config())
        for name, parameter in model.named_parameters():
            if name.endswith("alpha"):
                parameter.normal_(1.0, 0.4)
            elif name.endswith("bias"):
                parameter.normal_(0.0, 0.05)
            elif "codebook" in name:
                parameter.normal_(0.0, 0.5)
            else:
                parameter.normal_(0.0, parameter[0].numel() ** -0.5)
    model.save_pretrained(folder)
    DacFeatureExtractor(sampling_rate=16000, hop_length=320).save_pretrained(folder)
    return folder


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    """A copy of the checkpoint, to be damaged."""
    return Path(shutil.copytree(folder, tmp_path / "dac"))


def _build(folder: Path, **settings: object) -> DACEncoder:
    return DACEncoder.build(
        spec=_spec(**settings), weights_kind="pretrained", device=torch.device("cpu"), weights_dir=folder
    )


@torch.inference_mode()
def _upstream(folder: Path, clips: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Latents and quantised frames [T, D] of each clip, as transformers' feature extractor and model make them."""
    from transformers import DacFeatureExtractor, DacModel

    extractor, model = DacFeatureExtractor.from_pretrained(folder), DacModel.from_pretrained(folder).eval()
    frames = []
    for clip in clips:
        values = torch.tensor(extractor(clip.numpy(), sampling_rate=16000).input_values[0])[None]  # [1, 1, samples]
        frames.append((model.encoder(values)[0].T, model.encode(values).quantized_representation[0].T))
    return frames


def test_equals_transformers_one_by_one(folder: Path) -> None:
    encoder = _build(folder)
    clips = ragged_clips(encoder)
    off = total = 0
    for found, (latent, quantized) in zip(encoder.encode(clips), _upstream(folder, clips), strict=True):
        # The signal passes, so an error would show.
        assert len(latent) < 20 or latent.std(0).mean() > 0.3 * latent.abs().mean()
        assert len(latent) < 20 or len(quantized.unique(dim=0)) > len(quantized) // 3
        assert relative_error(found["latent"], latent) <= TOLERANCE
        off += frames_off(found["quantized"], quantized)
        total += len(quantized)
    assert off <= total // 200


def test_batched_equals_alone(folder: Path) -> None:
    encoder = _build(folder)
    assert_batched_equals_alone(encoder, ragged_clips(encoder))


def test_tiny_batched_equals_alone_bit_by_bit() -> None:
    encoder = load_encoder("dac-tiny", weights="random")
    clips = ragged_clips(encoder)
    assert_batched_equals_alone(encoder, clips)
    for clip, found in zip(clips, encoder.encode(clips), strict=True):
        for name, frames in encoder.encode([clip])[0].items():
            assert torch.equal(found[name], frames)


def test_appended_silence_changes_no_frame_that_does_not_see_it(folder: Path) -> None:
    clip = speechlike(320 * 30, seed=1)
    alone, extended = _build(folder).encode([clip, torch.cat([clip, torch.zeros(5000)])])
    assert relative_error(extended["latent"][:22], alone["latent"][:22]) <= TOLERANCE
    assert relative_error(extended["latent"][:30], alone["latent"]) > TOLERANCE  # silence is audio too
    assert len(extended["latent"]) == 46


def test_windows_change_nothing(folder: Path) -> None:
    encoder, recording = _build(folder), speechlike(33333, seed=3)
    assert (encoder.longest_s, encoder.context_s) == (30.0, 0.16)
    encoder.longest_s = 0.8
    assert len(plan_windows(encoder, len(recording))) > 3
    whole, windowed = encoder.encode([recording])[0], frames_of_windows(encoder, recording)
    assert relative_error(windowed["latent"], whole["latent"]) <= TOLERANCE
    assert frames_off(windowed["quantized"], whole["quantized"]) <= len(whole["quantized"]) // 200
    encoder.context_s = 0.1  # 8 frames are needed
    assert relative_error(frames_of_windows(encoder, recording)["latent"], whole["latent"]) > TOLERANCE


def test_a_long_recording_keeps_its_number_of_frames() -> None:
    encoder = load_encoder("dac-tiny", weights="random")
    windows = plan_windows(encoder, 30 * 60 * 16000 + 7)
    assert sum(window.last - window.first for window in windows) == 30 * 60 * 50 + 1
    assert max(window.stop - window.start for window in windows) == 30 * 16000


def test_frames_are_counted_to_the_end_of_the_clip() -> None:
    encoder = load_encoder("dac-tiny", weights="random")
    assert [encoder.num_frames(samples) for samples in (1, 320, 321, 16000)] == [1, 1, 2, 50]


def test_random_weights_are_seeded_by_the_name_and_leave_the_generator_alone() -> None:
    before = torch.get_rng_state()
    first = load_encoder("dac-tiny", weights="random")
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(7)
    assert first.weights == load_encoder("dac-tiny", weights="random").weights
    for representation in first.encode([speechlike(9000, seed=2)])[0].values():
        assert representation.shape == (29, 64)
        assert representation.std(0).mean() > 0.3 * representation.abs().mean()


@pytest.mark.slow
def test_full_size_has_the_published_shapes_and_tells_clips_apart() -> None:
    from transformers import DacModel

    encoder = load_encoder("dac", weights="random")
    assert isinstance(encoder, DACEncoder)
    with torch.device("meta"):
        model = DacModel(_config(encoder_hidden_size=64, decoder_hidden_size=1536, n_codebooks=12, codebook_size=1024))
    theirs = {name: value.shape for name, value in model.state_dict().items() if not name.startswith("decoder.")}
    assert {name: value.shape for name, value in encoder._codec.state_dict().items()} == theirs
    first, second = encoder.encode([speechlike(16000, seed=2), speechlike(16000, seed=5)])
    for name in ("latent", "quantized"):
        assert first[name].shape == (50, 1024)
        assert first[name].std(0).mean() > 0.3 * first[name].abs().mean()
        assert relative_error(first[name].mean(0), second[name].mean(0)) > 0.1
    assert len(first["quantized"].unique(dim=0)) > 40


def test_reading_weights_leaves_the_generator_alone_and_names_its_source(folder: Path) -> None:
    before = torch.get_rng_state()
    weights = _build(folder).weights
    assert torch.equal(torch.get_rng_state(), before)
    assert (weights.kind, weights.revision, weights.licence) == ("pretrained", "unverified", "MIT")
    assert weights.source == str(folder / _FILE)


def test_the_pinned_revision_of_the_hub_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.encoders.dac.find_checkpoint", lambda *_, **__: (folder, "1a2b"))
    weights = _build(folder).weights
    assert (weights.source, weights.revision) == ("descript/dac_16khz", "1a2b")


def test_weights_as_pytorch_saves_them_or_in_half_precision(folder: Path, copy: Path) -> None:
    from safetensors.torch import load_file

    state = load_file(copy / _FILE)
    (copy / _FILE).unlink()
    torch.save(state, copy / "pytorch_model.bin")
    assert _build(copy).weights.digest == _build(folder).weights.digest
    torch.save({name: value.half() for name, value in state.items()}, copy / "pytorch_model.bin")
    clip = speechlike(9000, seed=2)
    found, expected = (_build(path).encode([clip])[0]["latent"] for path in (copy, folder))
    assert TOLERANCE < relative_error(found, expected) < 0.01


def test_weights_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.delenv("HYFUSE_WEIGHTS", raising=False)
    with pytest.raises(
        WeightsError,
        match=r"config.json.* looked for .*huggingface.co/descript/dac_16khz at revision acb84794.*; licence: MIT",
    ):
        load_encoder("dac", weights_dir=tmp_path)


def test_half_downloaded(copy: Path) -> None:
    content = (copy / _FILE).read_bytes()
    (copy / _FILE).write_bytes(content[: len(content) // 2])
    with pytest.raises(WeightsError, match="damaged, half-downloaded"):
        _build(copy)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"model_type": "encodec"}, "model_type is 'encodec', expected 'dac'"),
        (
            {"sampling_rate": 24000, "n_codebooks": 32},
            "sampling_rate is 24000, expected 16000; n_codebooks is 32, expected 4",
        ),
        ({"downsampling_ratios": [2, 4, 8, 8]}, r"downsampling_ratios is \[2, 4, 8, 8\], expected \[2, 4, 5, 8\]"),
    ],
)
def test_a_config_of_another_model(copy: Path, changed: dict[str, object], message: str) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | changed))
    with pytest.raises(WeightsError, match=rf"of another model than 'dac-tiny' .*: {message}\. .*descript/dac_16khz"):
        _build(copy)


def test_a_config_that_leaves_out_what_differs_from_upstreams_default(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    del config["n_codebooks"], config["sampling_rate"]  # to transformers: 9 and 16000
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match=r"n_codebooks is 9, expected 4\. "):
        _build(copy)


def test_a_config_that_is_cut_off(copy: Path) -> None:
    (copy / "config.json").write_text('{"model_type": "d')
    with pytest.raises(WeightsError, match=r"config.json cannot be read .*should be JSON"):
        _build(copy)


def test_a_network_that_differs(copy: Path) -> None:
    from safetensors.torch import load_file, save_file

    state = load_file(copy / _FILE)
    save_file({name: value for name, value in state.items() if "res_unit2.snake" not in name}, copy / _FILE)
    with pytest.raises(WeightsError, match=r"8 of \d+ .* missing \(encoder.block.0.res_unit2.snake1.alpha"):
        _build(copy)
    save_file({**state, "encoder.lstm.weight": torch.zeros(2)}, copy / _FILE)
    with pytest.raises(WeightsError, match=r"1 are not known \(encoder.lstm.weight\)"):
        _build(copy)
    save_file({**state, "encoder.conv1.bias": torch.full((4,), torch.nan)}, copy / _FILE)
    with pytest.raises(WeightsError, match=r"1 hold values that are not finite \(encoder.conv1.bias\)"):
        _build(copy)
    save_file({**state, "encoder.conv1.bias": torch.zeros(64)}, copy / _FILE)
    with pytest.raises(WeightsError, match=r"shape \(encoder.conv1.bias is \[64\], expected \[4\]"):
        _build(copy)
