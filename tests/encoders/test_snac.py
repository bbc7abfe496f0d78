"""SNAC against the snac package's own one-by-one call, on a checkpoint in its format."""

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
from pipelines.encoders.snac import SNACEncoder, _package_name
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

_FILE = "pytorch_model.bin"
_CONFIG: dict[str, Any] = {
    "sampling_rate": 24000,
    "encoder_dim": 4,
    "encoder_rates": [2, 4, 8, 8],
    "decoder_dim": 32,
    "decoder_rates": [8, 8, 4, 2],
    "attn_window_size": None,
    "codebook_size": 64,
    "codebook_dim": 8,
    "vq_strides": [4, 2, 1],
    "noise": True,
    "depthwise": True,
}
"""The settings of snac_24khz, in the tiny size."""


def _spec() -> EncoderSpec:
    """The tiny size with the files of the full one."""
    full = encoder_spec("snac")
    return dataclasses.replace(
        encoder_spec("snac-tiny"), files=full.files, repository=full.repository, licence=full.licence
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint as upstream publishes it, decoder included, through which a signal passes."""
    from snac import SNAC

    folder = tmp_path_factory.mktemp("snac")
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(29)
        state = SNAC(**_CONFIG).state_dict()
        for name, value in state.items():
            if name.endswith("alpha"):
                value.normal_(1.0, 0.4)
            elif name.endswith("bias"):
                value.normal_(0.0, 0.05)
            elif name.endswith("original0"):  # lengths of the kernels
                value.uniform_(0.7, 1.1)
            else:
                value.normal_(0.0, 0.5)
    torch.save(state, folder / _FILE)
    (folder / "config.json").write_text(json.dumps(_CONFIG))
    return folder


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    """A copy of the checkpoint, to be damaged."""
    return Path(shutil.copytree(folder, tmp_path / "snac"))


def _build(folder: Path) -> SNACEncoder:
    return SNACEncoder.build(spec=_spec(), weights_kind="pretrained", device=torch.device("cpu"), weights_dir=folder)


@torch.inference_mode()
def _upstream(folder: Path, clips: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Latents and quantised frames [T, D] of each clip, as the package makes them; the latter from its codes."""
    from snac import SNAC

    model = SNAC.from_pretrained(str(folder))
    frames = []
    for clip in clips:
        latent = model.encoder(model.preprocess(clip[None, None]))
        frames.append((latent[0].T, model.quantizer.from_codes(model.encode(clip[None, None]))[0].T))
    return frames


def test_equals_the_package_one_by_one(folder: Path) -> None:
    encoder = _build(folder)
    clips = ragged_clips(encoder)
    off = total = 0
    for found, (latent, quantized) in zip(encoder.encode(clips), _upstream(folder, clips), strict=True):
        # The signal passes, so an error would show.
        assert len(latent) < 20 or latent.std(0).mean() > 0.3 * latent.abs().mean()
        assert len(latent) < 20 or len(quantized.unique(dim=0)) > len(quantized) // 5
        assert relative_error(found["latent"], latent) <= TOLERANCE
        off += frames_off(found["quantized"], quantized)
        total += len(quantized)
    assert off <= total // 200


def test_batched_equals_alone(folder: Path) -> None:
    encoder = _build(folder)
    assert_batched_equals_alone(encoder, ragged_clips(encoder))


def test_tiny_batched_equals_alone_bit_by_bit() -> None:
    encoder = load_encoder("snac-tiny", weights="random")
    clips = ragged_clips(encoder)
    assert_batched_equals_alone(encoder, clips)
    for clip, found in zip(clips, encoder.encode(clips), strict=True):
        for name, frames in encoder.encode([clip])[0].items():
            assert torch.equal(found[name], frames)


def test_appended_silence_changes_no_frame_that_does_not_see_it(folder: Path) -> None:
    clip = speechlike(2048 * 8, seed=1)
    alone, extended = _build(folder).encode([clip, torch.cat([clip, torch.zeros(5000)])])
    # 10 frames see beyond the end, and share a code with 2 more.
    assert relative_error(extended["latent"][:22], alone["latent"][:22]) <= TOLERANCE
    assert frames_off(extended["quantized"][:20], alone["quantized"][:20]) == 0
    assert relative_error(extended["latent"][:32], alone["latent"]) > TOLERANCE  # silence is audio too
    assert len(extended["latent"]) == 44


def test_windows_change_nothing(folder: Path) -> None:
    encoder, recording = _build(folder), speechlike(65536 + 3333, seed=3)
    assert encoder.longest_s * 24000 % 2048 == 0
    assert round(encoder.context_s * 24000) == 12 * 512
    encoder.longest_s = 44 * 512 / 24000
    assert len(plan_windows(encoder, len(recording))) > 4
    whole, windowed = encoder.encode([recording])[0], frames_of_windows(encoder, recording)
    assert relative_error(windowed["latent"], whole["latent"]) <= TOLERANCE
    assert frames_off(windowed["quantized"], whole["quantized"]) <= len(whole["quantized"]) // 200
    encoder.context_s = 8 * 512 / 24000  # whole groups too, but a frame sees 10 others
    assert relative_error(frames_of_windows(encoder, recording)["latent"], whole["latent"]) > TOLERANCE


def test_windows_of_a_long_recording_begin_at_whole_groups() -> None:
    encoder = load_encoder("snac-tiny", weights="random")
    samples = 30 * 60 * 24000 + 7
    windows = plan_windows(encoder, samples)
    assert (
        sum(window.last - window.first for window in windows)
        == encoder.num_frames(samples)
        == 4 * (samples // 2048 + 1)
    )
    assert max(window.stop - window.start for window in windows) == 32 * 24000
    assert all(window.start % 2048 == window.first % 4 == 0 for window in windows)


def test_frames_are_counted_in_whole_groups() -> None:
    encoder = load_encoder("snac-tiny", weights="random")
    assert [encoder.num_frames(samples) for samples in (1, 2048, 2049, 24000)] == [4, 4, 8, 48]


def test_random_weights_are_seeded_by_the_name_and_leave_the_generator_alone() -> None:
    before = torch.get_rng_state()
    first = load_encoder("snac-tiny", weights="random")
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(7)
    assert first.weights == load_encoder("snac-tiny", weights="random").weights
    for representation in first.encode([speechlike(14000, seed=2)])[0].values():
        assert representation.shape == (28, 64)
        assert representation.std(0).mean() > 0.3 * representation.abs().mean()


@pytest.mark.slow
def test_full_size_has_the_published_shapes_and_tells_clips_apart() -> None:
    from snac import SNAC

    encoder = load_encoder("snac", weights="random")
    assert isinstance(encoder, SNACEncoder)
    with torch.device("meta"):
        model = SNAC(**{**_CONFIG, "encoder_dim": 48, "decoder_dim": 1024, "codebook_size": 4096})
    for layer in model.modules():
        if hasattr(layer, "parametrizations"):
            torch.nn.utils.parametrize.remove_parametrizations(layer, "weight")
    theirs = {name: value.shape for name, value in model.state_dict().items() if not name.startswith("decoder.")}
    assert {_package_name(name): value.shape for name, value in encoder._codec.state_dict().items()} == theirs
    assert round(sum(value.numel() for value in model.state_dict().values()) / 1e6, 1) == 19.8  # as its README says
    first, second = encoder.encode([speechlike(24000, seed=2), speechlike(24000, seed=5)])
    for name in ("latent", "quantized"):
        assert first[name].shape == (48, 768)
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
    monkeypatch.setattr("pipelines.encoders.snac.find_checkpoint", lambda *_, **__: (folder, "1a2b"))
    weights = _build(folder).weights
    assert (weights.source, weights.revision) == ("hubertsiuzdak/snac_24khz", "1a2b")


def test_names_of_the_older_weight_normalisation(folder: Path, copy: Path) -> None:
    parts = {".parametrizations.weight.original0": ".weight_g", ".parametrizations.weight.original1": ".weight_v"}
    state = torch.load(copy / _FILE, weights_only=True)
    for newer, older in parts.items():
        state = {name.replace(newer, older): value for name, value in state.items()}
    torch.save(state, copy / _FILE)
    clip = speechlike(9000, seed=2)
    found, expected = (_build(path).encode([clip])[0]["latent"] for path in (copy, folder))
    assert torch.equal(found, expected)


def test_weights_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.delenv("HYFUSE_WEIGHTS", raising=False)
    with pytest.raises(
        WeightsError,
        match=r"config.json.* looked for .*huggingface.co/hubertsiuzdak/snac_24khz at revision d73ad176.*; licence: MIT",
    ):
        load_encoder("snac", weights_dir=tmp_path)


def test_half_downloaded(copy: Path) -> None:
    content = (copy / _FILE).read_bytes()
    (copy / _FILE).write_bytes(content[: len(content) // 2])
    with pytest.raises(WeightsError, match="damaged, half-downloaded"):
        _build(copy)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"sampling_rate": 32000}, "sampling_rate is 32000, expected 24000"),
        ({"attn_window_size": 32}, "attn_window_size is 32, expected None"),
        ({"vq_strides": [8, 4, 2, 1]}, r"vq_strides is \[8, 4, 2, 1\], expected \[4, 2, 1\]"),
        ({"encoder_dim": 48}, "encoder_dim is 48, expected 4"),
    ],
)
def test_a_config_of_another_model(copy: Path, changed: dict[str, object], message: str) -> None:
    (copy / "config.json").write_text(json.dumps(_CONFIG | changed))
    with pytest.raises(
        WeightsError, match=rf"of another model than 'snac-tiny' .*: {message}\. .*hubertsiuzdak/snac_24khz"
    ):
        _build(copy)


def test_a_config_that_leaves_out_what_differs_from_upstreams_default(copy: Path) -> None:
    config = {name: value for name, value in _CONFIG.items() if name != "attn_window_size"}
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match=r"attn_window_size is 32, expected None\. "):
        _build(copy)


def test_a_config_that_is_cut_off(copy: Path) -> None:
    (copy / "config.json").write_text('{"sampling_rate": 2')
    with pytest.raises(WeightsError, match=r"config.json cannot be read .*should be JSON"):
        _build(copy)


def test_a_network_that_differs(copy: Path) -> None:
    state = torch.load(copy / _FILE, weights_only=True)
    torch.save({name: value for name, value in state.items() if "encoder.block.2.block.1." not in name}, copy / _FILE)
    with pytest.raises(WeightsError, match=r"6 of 103 .* missing \(encoder.block.2.block.1.block.0.alpha"):
        _build(copy)
    torch.save({**state, "encoder.block.5.to_qkv.weight": torch.zeros(2)}, copy / _FILE)
    with pytest.raises(WeightsError, match=r"1 are not known \(encoder.block.5.to_qkv.weight\)"):
        _build(copy)
    torch.save({**state, "encoder.block.0.bias": torch.full((4,), torch.nan)}, copy / _FILE)
    with pytest.raises(WeightsError, match=r"1 hold values that are not finite \(encoder.block.0.bias\)"):
        _build(copy)
    name = "encoder.block.0.parametrizations.weight.original"
    torch.save({**state, f"{name}0": torch.ones(48, 1, 1), f"{name}1": torch.ones(48, 1, 7)}, copy / _FILE)
    with pytest.raises(WeightsError, match=r"shape \(encoder.block.0.weight is \[48, 1, 7\], expected \[4, 1, 7\]"):
        _build(copy)
    torch.save({key: value for key, value in state.items() if key != f"{name}1"}, copy / _FILE)
    with pytest.raises(
        WeightsError, match=r"missing \(encoder.block.0.weight\); 1 are not known \(encoder.block.0.param"
    ):
        _build(copy)
