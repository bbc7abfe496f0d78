"""Every encoder on a GPU: the promise of ``encoders/base.py``, and the same numbers as on a CPU.

On a machine without CUDA the same checks run on its CPU with one tiny size per family, and the others are skipped.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
import torch

from pipelines.encoders.catalogue import CATALOGUE, encoder_names
from pipelines.encoders.naive import naive_call
from tests.encoders.batches import (
    assert_batched_equals_alone,
    clip_for,
    frames_off,
    ragged_clips,
    relative_error,
    speechlike,
)
from tests.gpu.devices import DEVICES, encoder_on

TINY = [name for name in encoder_names(tiny=True) if CATALOGUE[name].is_tiny]
FULL = [name for name in encoder_names() if name != "egemaps"]  # needs a package that is not part of hyfuse
ONE_PER_FAMILY = list({CATALOGUE[name].factory: name for name in reversed(TINY)}.values())
CUDA_EQUALS_CPU = 1e-3
BF16_ERROR = 0.05
"""Largest difference of a mean over time, relative to the largest value; measured, and in the documentation: about 0.005."""


@pytest.fixture(autouse=True)
def _freed() -> Iterator[None]:
    """Full sizes leave a GPU's memory before the next one comes."""
    yield
    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()


ALL_SIZES = [
    pytest.param(device.values[0], name, id=f"{device.id}-{name}", marks=device.marks)
    for device in DEVICES
    for name in (ONE_PER_FAMILY if device.id == "cpu" else [*TINY, *FULL])
]


@pytest.mark.parametrize(("device", "name"), ALL_SIZES)
def test_batched_equals_alone(device: str, name: str) -> None:
    """To 1e-5 in float32. Importing speechbrain switches TensorFloat-32 on, for everything; 10 bits would break the promise."""
    encoder = encoder_on(device, name)
    if device == "cuda":
        assert not torch.backends.cuda.matmul.allow_tf32
        assert not torch.backends.cudnn.allow_tf32
    assert_batched_equals_alone(encoder, ragged_clips(encoder))


@pytest.mark.parametrize(("device", "name"), ALL_SIZES)
def test_equals_the_cpu(device: str, name: str) -> None:
    encoder, on_cpu = encoder_on(device, name), encoder_on("cpu", name)
    assert encoder.device.type == device
    assert encoder.weights == on_cpu.weights
    clips = [clip_for(encoder, samples, seed=samples) for samples in (20011, 33333, encoder.min_samples)]
    off = total = 0
    for found, expected in zip(encoder.encode(clips), on_cpu.encode(clips), strict=True):
        for representation, frames in expected.items():
            if representation in {"quantized", "semantic"}:  # where two code vectors are equally near, rounding chooses
                off += frames_off(found[representation], frames)
                total += len(frames)
            else:
                assert relative_error(found[representation], frames) <= CUDA_EQUALS_CPU
    assert off <= total // 20


@pytest.mark.parametrize(("device", "name"), ALL_SIZES)
def test_equals_the_naive_call(device: str, name: str) -> None:
    """The upstream library's own call on the same device; its random noise and other weights are allowed for."""
    encoder = encoder_on(device, name)
    try:
        naive = naive_call(encoder)
    except ModuleNotFoundError as error:
        pytest.skip(f"the upstream call of {name} needs the package {error.name}, which is not installed")
    clip = clip_for(encoder, 33333, seed=2)
    own, found = encoder.encode([clip])[0], naive.encode(clip)
    assert [frames.shape for frames in found] == [frames.shape for frames in own.values()]
    assert {frames.device.type for frames in found} == {device}
    for (representation, expected), frames in zip(own.items(), found, strict=True):
        if naive.same_weights and representation not in {"quantized", "semantic"}:
            assert relative_error(frames.cpu(), expected) <= 1e-3


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", [name for name in TINY if "bf16" in CATALOGUE[name].precisions])
def test_bf16_is_near_float32(device: str, name: str) -> None:
    clips = [speechlike(samples, seed=samples) for samples in (20011, 33333)]
    exact = encoder_on(device, name).encode(clips)
    for found, expected in zip(encoder_on(device, name, precision="bf16").encode(clips), exact, strict=True):
        for representation, frames in expected.items():
            assert relative_error(found[representation].mean(0), frames.mean(0)) <= BF16_ERROR, representation
