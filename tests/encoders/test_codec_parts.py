"""Causal convolutions, the residual quantiser, random weights and the check of state dicts, each against a plain form."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pipelines.encoders import causal
from pipelines.encoders.catalogue import encoder_spec
from pipelines.encoders.causal import convolve, prepare, run_in_passes
from pipelines.encoders.random_weights import gaussian_codebooks, initialise
from pipelines.encoders.residual_quantizer import quantize_residual
from pipelines.encoders.state_check import check_state, pretrained_info, random_info
from pipelines.errors import WeightsError
from tests.encoders.batches import TOLERANCE, relative_error


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    with torch.inference_mode(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(6)
        yield


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("elu", [False, True])
@pytest.mark.parametrize(
    ("channels", "after", "kernel", "stride", "dilation", "groups"),
    [
        (1, 8, 7, 1, 1, 1),
        (8, 6, 3, 1, 9, 2),
        (8, 16, 10, 5, 1, 1),
        (6, 4, 1, 1, 1, 1),
        (6, 4, 1, 1, 1, 2),
        (1, 8, 64, 16, 1, 1),
    ],
)
def test_convolve_is_a_causal_conv1d(
    channels: int, after: int, kernel: int, stride: int, dilation: int, groups: int, mirror: bool, elu: bool
) -> None:
    layer = nn.Conv1d(channels, after, kernel, stride=stride, dilation=dilation, groups=groups)
    steps = 80 if stride == 1 else 80 + stride - 1
    maps = torch.randn(3, steps, channels)
    plain = F.elu(maps) if elu else maps
    left = (kernel - 1) * dilation + 1 - stride
    expected = F.conv1d(
        F.pad(plain.transpose(1, 2), (left, 0), mode="reflect" if mirror else "constant"),
        layer.weight,
        layer.bias,
        stride,
        dilation=dilation,
        groups=groups,
    )
    kept = layer.weight.clone()
    prepare(layer, torch.device("cpu"))
    assert torch.equal(layer.weight, kept)
    before = maps.clone()
    found = convolve(maps, layer, mirror=mirror, elu=elu)
    assert torch.equal(maps, before)
    assert found.shape == (3, steps // stride, after)
    assert relative_error(found, expected.transpose(1, 2)) <= TOLERANCE


def test_run_in_passes_gives_every_clip_its_own_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    waveforms = torch.arange(12.0).reshape(4, 3).repeat_interleave(10, dim=1)  # 30 samples
    lengths = torch.tensor([10, 30, 20, 10])
    seen: list[tuple[int, ...]] = []

    def network(part: torch.Tensor) -> torch.Tensor:
        seen.append(tuple(part.shape))
        return part[:, ::10, None]

    monkeypatch.setattr(causal, "_PASS_BYTES", 160)
    frames = run_in_passes(network, waveforms, lengths, bytes_per_sample=4)
    assert seen == [(1, 10), (1, 30), (2, 20)]
    assert frames.shape == (4, 3, 1)
    for row, length in enumerate(lengths.tolist()):
        assert torch.equal(frames[row, : length // 10, 0], waveforms[row, :length:10])


def test_quantize_residual_is_the_plain_loop() -> None:
    codebooks = gaussian_codebooks(count=5, size=32, dim=7, scale=1.0)
    latent = torch.randn(200, 7)
    before = latent.clone()
    found = quantize_residual(latent, codebooks)
    assert torch.equal(latent, before)
    for frame, chosen in zip(latent, found, strict=True):
        total = torch.zeros(7)
        for codebook in codebooks:
            total = total + codebook[(frame - total - codebook).square().sum(1).argmin()]
        assert relative_error(chosen, total) <= TOLERANCE
    assert (latent - found).norm() < 0.6 * latent.norm()


def test_quantize_residual_takes_the_lower_of_equal_indices() -> None:
    codebook = torch.tensor([[[1.0, 0.0], [-1.0, 0.0]]])
    assert torch.equal(quantize_residual(torch.zeros(3, 2), codebook), codebook[0, :1].expand(3, 2))


def test_gaussian_codebooks_leave_less_at_every_level() -> None:
    codebooks = gaussian_codebooks(count=6, size=256, dim=16, scale=3.0)
    latent = 3.0 * torch.randn(500, 16)
    left = [float((latent - quantize_residual(latent, codebooks[:level])).square().mean()) for level in range(1, 7)]
    assert left[0] < 0.9 * 9.0
    assert all(after < before for before, after in itertools.pairwise(left))


def test_initialise_keeps_the_variance_and_the_weight_norm_consistent() -> None:
    layers = nn.Sequential(*(layer for _ in range(12) for layer in (nn.Linear(300, 300), nn.ReLU())))
    initialise(layers)
    inputs = torch.randn(50, 300)
    assert 0.3 < float(layers(inputs).square().mean() / inputs.square().mean()) < 3.0
    with pytest.warns(FutureWarning):
        normed = torch.nn.utils.weight_norm(nn.Conv1d(4, 6, 3))
    initialise(normed)
    kernel = normed.get_parameter("weight_v").clone()
    assert float(kernel.std()) > 0.2
    normed(torch.randn(1, 4, 9))
    assert relative_error(normed.weight, kernel) <= TOLERANCE


def test_check_state_names_every_kind_of_fault_at_once(tmp_path: Path) -> None:
    spec = encoder_spec("byols")
    expected = {"a": torch.zeros(2), "b": torch.zeros(3), "c": torch.zeros(1), "d": torch.zeros(1), "e": torch.zeros(1)}
    state = {
        "b": torch.zeros(4),
        "c": torch.tensor([float("nan")]),
        "d": "text",
        "e": torch.ones(1),
        "f": torch.ones(1),
    }
    with pytest.raises(WeightsError) as caught:
        check_state(state, expected, path=tmp_path / "w.pth", spec=spec)
    message = str(caught.value)
    for part in (
        "w.pth does not fit 'byols'",
        "2 of 5 parameters are missing (a, d)",
        "1 are not known (f)",
        "1 have another shape (b is [4], expected [3])",
        "1 hold values that are not finite (c)",
        "Delete it and get it again from https://github.com/Neclow/serab",
    ):
        assert part in message
    assert list(
        check_state(
            {"y": torch.ones(1), "x": torch.zeros(1)},
            {"x": torch.ones(1), "y": torch.ones(1)},
            path=tmp_path,
            spec=spec,
        )
    ) == ["x", "y"]


def test_provenance_claims_a_revision_only_for_checked_files(tmp_path: Path) -> None:
    state = {"a": torch.ones(2)}
    lyra = encoder_spec("soundstream-lyra")
    checked = pretrained_info(lyra, [tmp_path / "1", tmp_path / "2"], state)
    assert (checked.revision, checked.source) == (
        "v1.2.0",
        "google/lyra: soundstream_encoder.tflite, quantizer.tflite",
    )
    unpinned = dataclasses.replace(lyra, files=(lyra.files[0], dataclasses.replace(lyra.files[1], sha256="")))
    unchecked = pretrained_info(unpinned, [tmp_path / "1", tmp_path / "2"], state)
    assert (unchecked.revision, unchecked.source) == ("unverified", f"{tmp_path / '1'}, {tmp_path / '2'}")
    assert pretrained_info(encoder_spec("byols"), [tmp_path], state).revision == "sha256:449f5d0dc6b6fa84"
    assert random_info(lyra, state).digest == checked.digest
    assert random_info(lyra, {"a": torch.zeros(2)}).digest != checked.digest
