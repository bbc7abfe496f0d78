"""Lyra's SoundStream against plain convolutions clip by clip, on TensorFlow Lite files written here."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pipelines.encoders.catalogue import EncoderSpec, encoder_spec, load_encoder
from pipelines.encoders.soundstream_lyra import SoundStreamLyraEncoder
from pipelines.encoders.tflite_reader import read_tflite
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
from tests.encoders.tflite_writer import write_tflite

Array = NDArray[np.float32]
Operator = tuple[str, list[Array]]


def _layout() -> list[tuple[str, int, int, int, int, int]]:
    """(kind, in, out, kernel, stride, dilation) of every convolution, in order; groups of 64, 128 for the last."""
    layers = [("CONV_2D", 1, 64, 64, 16, 1)]
    for width, stride in ((64, 5), (128, 2), (256, 2)):
        for dilation in (1, 3, 9):
            layers.append(("DEPTHWISE_CONV_2D", width, width, 3, 1, dilation))
            layers.append(("CONV_2D", width, width, 1, 1, 1))
            layers.append(("CONV_2D", 64, width, 1, 1, 1))
        layers.append(("CONV_2D", 64, 2 * width, 2 * stride, stride, 1))
    return [*layers, ("CONV_2D", 128, 64, 3, 1, 1)]


def _operators(rng: np.random.Generator) -> list[Operator]:
    operators: list[Operator] = []
    for kind, inputs, outputs, kernel, _, _ in _layout():
        if kind == "CONV_2D":
            scale = (1.5 / (inputs * kernel)) ** 0.5
            weight = rng.normal(0.0, scale, (outputs, 1, kernel, inputs)).astype(np.float32)
            bias = rng.normal(0.0, 0.1, outputs).astype(np.float32)
        else:
            weight = rng.normal(0.0, 0.7, (1, 1, kernel, outputs)).astype(np.float32)
            bias = np.zeros(outputs, np.float32)
        operators.append((kind, [weight, bias]))
        operators.append(("LEAKY_RELU", []))
    return operators


def _codebooks(rng: np.random.Generator) -> list[Array]:
    return [rng.normal(0.0, 0.3 * 0.96**level, (1, 16, 64)).astype(np.float32) for level in range(46)]


def _write(folder: Path, operators: list[Operator], codebooks: list[Array]) -> None:
    write_tflite(folder / "soundstream_encoder.tflite", {"main": operators, "NoOp": []})
    encode = [("SQUARED_DIFFERENCE", [codebook]) for codebook in codebooks]
    decode = [("GATHER", [codebook[0]]) for codebook in codebooks[::-1]]
    write_tflite(folder / "quantizer.tflite", {"decode": decode, "encode": encode})


def _spec() -> EncoderSpec:
    """The catalogue's entry without the sha256 of Google's files: random weights cannot have that."""
    spec = encoder_spec("soundstream-lyra")
    return dataclasses.replace(spec, files=tuple(dataclasses.replace(file, sha256="", url="") for file in spec.files))


def _build(folder: Path) -> SoundStreamLyraEncoder:
    return SoundStreamLyraEncoder.build(
        spec=_spec(), weights_kind="pretrained", device=torch.device("cpu"), weights_dir=folder
    )


def _oracle(clip: Tensor, operators: list[Operator], codebooks: list[Array]) -> tuple[Tensor, Tensor]:
    """Latents and quantised frames [T, 64] of one clip: conv1d over [1, C, T], and the quantiser frame by frame."""

    def convolve(maps: Tensor, index: int) -> Tensor:
        kind, _, _, kernel, stride, dilation = layout[index]
        weight, bias = (torch.from_numpy(constant) for constant in constants[index])
        weight = weight[0, 0].T[:, None] if kind == "DEPTHWISE_CONV_2D" else weight[:, 0].transpose(1, 2)
        maps = F.pad(maps, ((kernel - 1) * dilation + 1 - stride, 0))
        return F.conv1d(maps, weight, bias, stride, dilation=dilation, groups=maps.shape[1] // weight.shape[1])

    layout = _layout()
    constants = [constants for kind, constants in operators if kind != "LEAKY_RELU"]
    maps = convolve(F.pad(clip, (0, -clip.numel() % 320))[None, None], 0)
    index = 1
    for _ in range(3):
        for _ in range(3):
            inner = convolve(F.leaky_relu(maps, 0.3), index)
            inner = convolve(F.leaky_relu(convolve(inner, index + 1), 0.3), index + 2)
            maps, index = maps + inner, index + 3
        maps, index = convolve(F.leaky_relu(maps, 0.3), index), index + 1
    latent = convolve(F.leaky_relu(maps, 0.3), index)[0].T
    residual = latent.clone()
    for codebook in map(torch.from_numpy, codebooks):
        nearest = (residual[:, None] - codebook).square().sum(-1).argmin(1)
        residual = residual - codebook[0, nearest]
    return latent, latent - residual


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Operator], list[Array]]:
    rng = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("lyra")
    operators, codebooks = _operators(rng), _codebooks(rng)
    _write(folder, operators, codebooks)
    return folder, operators, codebooks


def test_equals_plain_convolutions_one_by_one(files: tuple[Path, list[Operator], list[Array]]) -> None:
    folder, operators, codebooks = files
    encoder = _build(folder)
    clips = ragged_clips(encoder)
    off = total = 0
    for clip, found in zip(clips, encoder.encode(clips), strict=True):
        latent, quantized = _oracle(clip, operators, codebooks)
        # The signal passes, so an error would show.
        assert len(latent) < 20 or latent.std(0).mean() > 0.2 * latent.abs().mean()
        assert relative_error(found["latent"], latent) <= TOLERANCE
        off += frames_off(found["quantized"], quantized)
        total += len(quantized)
        assert (quantized - latent).norm() < 0.9 * latent.norm()
    assert off <= total // 200


def test_batched_equals_alone(files: tuple[Path, list[Operator], list[Array]]) -> None:
    encoder = _build(files[0])
    assert_batched_equals_alone(encoder, ragged_clips(encoder))


def test_appended_silence_changes_no_earlier_frame() -> None:
    encoder = load_encoder("soundstream-lyra", weights="random")
    clip = speechlike(320 * 20, seed=1)
    alone, extended = encoder.encode([clip, torch.cat([clip, torch.zeros(5000)])])
    assert relative_error(extended["latent"][:20], alone["latent"]) <= TOLERANCE
    assert len(extended["latent"]) == 36


def test_tiny_size_batched_equals_alone() -> None:
    encoder = load_encoder("soundstream-lyra-tiny", weights="random")
    assert_batched_equals_alone(encoder, ragged_clips(encoder))
    frames = encoder.encode([speechlike(16000, seed=2)])[0]
    for representation in frames.values():
        assert representation.std(0).mean() > 0.3 * representation.abs().mean()
    assert (frames["quantized"] - frames["latent"]).norm() < 0.9 * frames["latent"].norm()


@pytest.mark.parametrize("name", ["soundstream-lyra-tiny", "soundstream-lyra"])
def test_a_frame_depends_on_8224_samples(name: str) -> None:
    encoder = load_encoder(name, weights="random")
    frame = 60  # the samples up to 61 * 320, of which 8224 count
    first = 61 * 320 - 8224
    clip = speechlike(80 * 320, seed=1)
    expected = encoder.encode([clip])[0]["latent"][frame]
    for index, matters in ((first - 1, False), (first, True), (61 * 320 - 1, True), (61 * 320, False)):
        changed = clip.clone()
        changed[index] += 1e4
        assert torch.equal(encoder.encode([changed])[0]["latent"][frame], expected) != matters, index


@pytest.mark.parametrize(("longest_s", "seconds"), [(2.0, 7.3), (1.2, 3.0), (60.0, 150.0)])
def test_windows_give_the_frames_of_one_piece(
    monkeypatch: pytest.MonkeyPatch, longest_s: float, seconds: float
) -> None:
    encoder = load_encoder("soundstream-lyra-tiny", weights="random")
    samples = speechlike(int(seconds * 16000) + 7, seed=4)
    whole = encoder.encode([samples])[0]
    monkeypatch.setattr(encoder, "longest_s", longest_s)
    windows = frames_of_windows(encoder, samples)
    assert windows["latent"].shape == whole["latent"].shape
    assert relative_error(windows["latent"], whole["latent"]) <= 1e-6
    assert frames_off(windows["quantized"], whole["quantized"]) <= len(whole["quantized"]) // 200
    monkeypatch.setattr(encoder, "context_s", 0.25)  # less than the receptive field shows
    assert relative_error(frames_of_windows(encoder, samples)["latent"], whole["latent"]) > 1e-6


def test_random_weights_are_seeded_by_the_name_and_leave_the_generator_alone() -> None:
    torch.manual_seed(4)
    before = torch.get_rng_state()
    first = load_encoder("soundstream-lyra", weights="random")
    torch.rand(7)
    second = load_encoder("soundstream-lyra", weights="random")
    assert first.weights == second.weights
    assert (first.weights.kind, first.weights.revision) == ("random", "")
    torch.set_rng_state(before)
    load_encoder("soundstream-lyra", weights="random")
    assert torch.equal(torch.get_rng_state(), before)


def test_random_weights_pass_the_signal_on() -> None:
    frames = load_encoder("soundstream-lyra", weights="random").encode([speechlike(16000, seed=2)])[0]
    for representation in frames.values():
        assert representation.std(0).mean() > 0.3 * representation.abs().mean()


def test_reading_weights_leaves_the_generator_alone_and_names_its_source(
    files: tuple[Path, list[Operator], list[Array]],
) -> None:
    before = torch.get_rng_state()
    weights = _build(files[0]).weights
    assert torch.equal(torch.get_rng_state(), before)
    assert (weights.kind, weights.revision, weights.licence) == ("pretrained", "unverified", "Apache-2.0")
    assert str(files[0] / "quantizer.tflite") in weights.source
    assert weights.digest == _build(files[0]).weights.digest


def test_weights_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("HYFUSE_WEIGHTS", raising=False)
    with pytest.raises(WeightsError, match=r"'soundstream-lyra' are not here.*google/lyra.*Apache-2.0"):
        load_encoder("soundstream-lyra", weights_dir=tmp_path)


def test_a_file_with_another_digest(files: tuple[Path, list[Operator], list[Array]]) -> None:
    with pytest.raises(WeightsError, match=r"soundstream_encoder.tflite is not the file .* expected 6110a3f3"):
        load_encoder("soundstream-lyra", weights_dir=files[0])


@pytest.mark.parametrize("keep", [0, 6, 40, 5000, -4000])
def test_half_downloaded(files: tuple[Path, list[Operator], list[Array]], tmp_path: Path, keep: int) -> None:
    for name in ("soundstream_encoder.tflite", "quantizer.tflite"):
        content = (files[0] / name).read_bytes()
        (tmp_path / name).write_bytes(content[:keep])
    with pytest.raises(WeightsError, match=r"soundstream_encoder.tflite .*(damaged|does not fit)"):
        _build(tmp_path)


def test_a_web_page_instead_of_a_file(tmp_path: Path) -> None:
    for name in ("soundstream_encoder.tflite", "quantizer.tflite"):
        (tmp_path / name).write_text("<!DOCTYPE html>")
    with pytest.raises(WeightsError, match="is not a TensorFlow Lite file: bytes 4 to 8 are b'CTYP'"):
        _build(tmp_path)


def test_a_network_that_differs(files: tuple[Path, list[Operator], list[Array]], tmp_path: Path) -> None:
    _, operators, codebooks = files
    _write(tmp_path, operators[:-2], codebooks)
    with pytest.raises(WeightsError, match=r"does not fit 'soundstream-lyra'.*missing \(last.weight, last.bias"):
        _build(tmp_path)
    _write(tmp_path, [*operators, ("CONV_2D", operators[0][1])], codebooks)
    with pytest.raises(WeightsError, match=r"not known \(convolution 32.weight"):
        _build(tmp_path)
    wider = [(kind, [np.repeat(value, 2, axis=0) for value in constants]) for kind, constants in operators]
    _write(tmp_path, wider, codebooks)
    with pytest.raises(WeightsError, match=r"first.weight is \[128, 1, 64\], expected \[64, 1, 64\]"):
        _build(tmp_path)
    _write(tmp_path, operators, codebooks[:45])
    with pytest.raises(WeightsError, match=r"quantizer.tflite does not fit.*1 of 46 .* missing \(codebook 45\)"):
        _build(tmp_path)
    codebooks = [*codebooks[:7], np.full((1, 16, 64), np.nan, np.float32), *codebooks[8:]]
    _write(tmp_path, operators, codebooks)
    with pytest.raises(WeightsError, match=r"not finite \(codebook 7\)"):
        _build(tmp_path)


def test_depthwise_bias_is_not_dropped_silently(
    files: tuple[Path, list[Operator], list[Array]], tmp_path: Path
) -> None:
    _, operators, codebooks = files
    changed: list[Any] = list(operators)
    kind, (kernel, bias) = changed[2]
    assert kind == "DEPTHWISE_CONV_2D"
    changed[2] = (kind, [kernel, bias + 1.0])
    _write(tmp_path, changed, codebooks)
    with pytest.raises(WeightsError, match=r"not known \(stages.0.units.0.depthwise.bias\)"):
        _build(tmp_path)


def test_read_tflite_gives_float_constants_only(tmp_path: Path) -> None:
    numbers, floats = np.arange(3, dtype=np.int32), np.array([[0.5, -2.0]], np.float32)
    write_tflite(tmp_path / "a.tflite", {"one": [("RESHAPE", [numbers]), ("ADD", [floats])], "two": []})
    graphs = read_tflite(tmp_path / "a.tflite")
    assert [operator.kind for operator in graphs["one"]] == ["RESHAPE", "ADD"]
    assert graphs["one"][0].constants == ()
    assert np.array_equal(graphs["one"][1].constants[0], floats)
    assert graphs["two"] == []


def test_read_tflite_of_a_folder(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="cannot be opened"):
        read_tflite(tmp_path)
