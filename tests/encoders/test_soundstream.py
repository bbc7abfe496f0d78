"""SoundStream against plain convolutions clip by clip, on a checkpoint in upstream's format.

The comparison with upstream's own package is in ``tests/oracles/soundstream_oracle.py``: it needs an environment of its own.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pipelines.encoders.catalogue import EncoderSpec, encoder_spec, load_encoder
from pipelines.encoders.soundstream import SoundStreamEncoder
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

_FILE = "soundstream_variant_naturalspeech2.pt"
_STRIDES = (2, 4, 5, 5)


def _spec() -> EncoderSpec:
    """The tiny size with the file of the full one."""
    full = encoder_spec("soundstream")
    return dataclasses.replace(
        encoder_spec("soundstream-tiny"), files=full.files, repository=full.repository, licence=full.licence
    )


def _checkpoint(*, heads: bool = True) -> dict[str, Tensor]:
    """A state dict with upstream's names: encoder, decoder, codebooks and what trained them."""
    spec = _spec()
    generator = torch.Generator().manual_seed(21)
    state: dict[str, Tensor] = {}

    def convolution(name: str, channels: int, after: int, kernel: int, gain: float = 1.0) -> None:
        scale = gain / (channels * kernel) ** 0.5
        state[f"{name}.conv.weight"] = torch.randn(after, channels, kernel, generator=generator) * scale
        state[f"{name}.conv.bias"] = torch.randn(after, generator=generator) * 0.05

    width = int(str(spec.settings["channels"]))
    convolution("encoder.layers.0", 1, width, 7, gain=5.0)
    for block, stride in enumerate(_STRIDES, start=1):
        for unit in range(3):
            convolution(f"encoder.layers.{block}.layers.{unit}.layers.0", width, width, 7)
            convolution(f"encoder.layers.{block}.layers.{unit}.layers.2", width, width, 1)
        convolution(f"encoder.layers.{block}.layers.3", width, 2 * width, 2 * stride)
        width *= 2
    convolution("encoder.layers.5", width, spec.dim, 3)
    for index in range(int(str(spec.settings["codebooks"]))):
        codebook = torch.randn(64, spec.dim, generator=generator) * 0.6 * 0.8**index
        codebook = codebook[None] if heads else codebook
        prefix = f"quantizer.layers.{index}._codebook"
        state |= {f"{prefix}.embed": codebook, f"{prefix}.embed_avg": codebook.clone()}
        state |= {f"{prefix}.initted": torch.ones(1), f"{prefix}.cluster_size": torch.ones(1, 64)}
    convolution("decoder.layers.0", spec.dim, width, 7)
    return state


def _build(folder: Path) -> SoundStreamEncoder:
    return SoundStreamEncoder.build(
        spec=_spec(), weights_kind="pretrained", device=torch.device("cpu"), weights_dir=folder
    )


def _oracle(clip: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Latents and quantised frames [T, D] of one clip, upstream's layers over [1, C, T] one after another."""

    def convolve(maps: Tensor, name: str, *, stride: int = 1, dilation: int = 1) -> Tensor:
        weight, bias = state[f"{name}.conv.weight"], state[f"{name}.conv.bias"]
        maps = F.pad(maps, (dilation * (weight.shape[2] - 1) + 1 - stride, 0), mode="reflect")
        return F.conv1d(maps, weight, bias, stride, dilation=dilation)

    maps = F.pad(clip, (0, max(0, 2200 - clip.numel())))[None, None]
    maps = convolve(maps, "encoder.layers.0")
    for block, stride in enumerate(_STRIDES, start=1):
        for unit, dilation in enumerate((1, 3, 9)):
            name = f"encoder.layers.{block}.layers.{unit}.layers"
            inner = F.elu(convolve(maps, f"{name}.0", dilation=dilation))
            maps = maps + F.elu(convolve(inner, f"{name}.2"))
        maps = convolve(maps, f"encoder.layers.{block}.layers.3", stride=stride)
    latent = convolve(maps, "encoder.layers.5")[0].T
    residual = latent.clone()
    for index in range(4):
        codebook = state[f"quantizer.layers.{index}._codebook.embed"].reshape(64, -1)
        residual = residual - codebook[torch.cdist(residual, codebook).argmin(1)]
    return latent, latent - residual


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("soundstream")
    torch.save(_checkpoint(), folder / _FILE)
    return folder


def test_equals_plain_convolutions_one_by_one(folder: Path) -> None:
    encoder, state = _build(folder), _checkpoint()
    assert encoder.min_samples == 2200
    clips = ragged_clips(encoder)
    off = total = 0
    for clip, found in zip(clips, encoder.encode(clips), strict=True):
        latent, quantized = _oracle(clip, state)
        # The signal passes, so an error would show.
        assert len(latent) < 20 or latent.std(0).mean() > 0.2 * latent.abs().mean()
        assert relative_error(found["latent"], latent) <= TOLERANCE
        off += frames_off(found["quantized"], quantized)
        total += len(quantized)
        assert (quantized - latent).norm() < 0.9 * latent.norm()
    assert off <= total // 200


def test_batched_equals_alone(folder: Path) -> None:
    encoder = _build(folder)
    assert_batched_equals_alone(encoder, ragged_clips(encoder))


def test_appended_silence_changes_no_earlier_frame(folder: Path) -> None:
    clip = speechlike(200 * 30, seed=1)
    alone, extended = _build(folder).encode([clip, torch.cat([clip, torch.zeros(4100)])])
    assert relative_error(extended["latent"][:30], alone["latent"]) <= TOLERANCE
    assert len(extended["latent"]) == 50


def test_windows_change_nothing(folder: Path) -> None:
    encoder, recording = _build(folder), speechlike(50_123, seed=3)
    assert (encoder.longest_s, encoder.context_s) == (30.0, 0.3)
    encoder.longest_s = 1.0
    assert len(plan_windows(encoder, len(recording))) > 4
    whole, windowed = encoder.encode([recording])[0], frames_of_windows(encoder, recording)
    assert relative_error(windowed["latent"], whole["latent"]) <= TOLERANCE
    assert frames_off(windowed["quantized"], whole["quantized"]) <= len(whole["quantized"]) // 200
    encoder.context_s = 0.1  # 24 frames are needed
    assert relative_error(frames_of_windows(encoder, recording)["latent"], whole["latent"]) > TOLERANCE


def test_a_frame_sees_what_the_windows_assume(folder: Path) -> None:
    encoder, clip = _build(folder), speechlike(200 * 60, seed=1)
    expected = encoder.encode([clip])[0]["latent"][40]
    for sample, seen in ((8000 - 4635, False), (8000 - 4634, True), (8199, True), (8200, False)):
        changed = clip.clone()
        changed[sample] += 1e4
        assert bool((encoder.encode([changed])[0]["latent"][40] != expected).any()) == seen, sample


def test_frames_are_counted_as_upstream_does(folder: Path) -> None:
    encoder = _build(folder)
    assert [encoder.num_frames(samples) for samples in (1, 2200, 2399, 2400, 16199)] == [11, 11, 11, 12, 80]


def test_codebooks_with_and_without_the_axis_of_heads(folder: Path, tmp_path: Path) -> None:
    torch.save(_checkpoint(heads=False), tmp_path / _FILE)
    assert _build(tmp_path).weights.digest == _build(folder).weights.digest


def test_full_size_has_the_published_shapes() -> None:
    encoder = load_encoder("soundstream", weights="random")
    assert isinstance(encoder, SoundStreamEncoder)
    parameters = sum(parameter.numel() for parameter in encoder._encoder.parameters())
    assert round(parameters / 1e6, 1) == 13.2  # facts/encoders.md, section 4
    frames = encoder.encode([speechlike(5400, seed=2)])[0]
    for representation in frames.values():
        assert representation.shape == (27, 256)
        assert representation.std(0).mean() > 0.3 * representation.abs().mean()


def test_random_weights_are_seeded_by_the_name_and_leave_the_generator_alone() -> None:
    before = torch.get_rng_state()
    first = load_encoder("soundstream-tiny", weights="random")
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(7)
    assert first.weights == load_encoder("soundstream-tiny", weights="random").weights
    clip = speechlike(5400, seed=2)
    assert relative_error(first.encode([clip])[0]["latent"], torch.ones(27, 32)) > 0.1


def test_reading_weights_leaves_the_generator_alone_and_names_its_source(folder: Path) -> None:
    before = torch.get_rng_state()
    weights = _build(folder).weights
    assert torch.equal(torch.get_rng_state(), before)
    assert (weights.kind, weights.revision, weights.licence) == ("pretrained", "unverified", "CC BY-SA 4.0")
    assert weights.source == str(folder / _FILE)


def test_weights_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.delenv("HYFUSE_WEIGHTS", raising=False)
    with pytest.raises(WeightsError, match=r"soundstream_variant_naturalspeech2.pt was .*licence: CC BY-SA 4.0"):
        load_encoder("soundstream", weights_dir=tmp_path)


def test_half_downloaded(folder: Path, tmp_path: Path) -> None:
    content = (folder / _FILE).read_bytes()
    (tmp_path / _FILE).write_bytes(content[: len(content) // 2])
    with pytest.raises(WeightsError, match="damaged, half-downloaded"):
        _build(tmp_path)


def test_a_network_that_differs(folder: Path, tmp_path: Path) -> None:
    state = _checkpoint()
    torch.save({name: value for name, value in state.items() if "layers.5" not in name}, tmp_path / _FILE)
    with pytest.raises(WeightsError, match=r"2 of 64 .* missing \(encoder.layers.5.conv.weight"):
        _build(tmp_path)
    torch.save(state | {"encoder.film.weight": torch.zeros(2)}, tmp_path / _FILE)
    with pytest.raises(WeightsError, match=r"1 are not known \(encoder.film.weight\)"):
        _build(tmp_path)
    (tmp_path / _FILE).write_bytes((folder / _FILE).read_bytes())
    with pytest.raises(
        WeightsError, match=r"shape \(encoder.layers.0.conv.weight is \[4, 1, 7\], expected \[58, 1, 7\]"
    ):
        load_encoder("soundstream", weights_dir=tmp_path)
