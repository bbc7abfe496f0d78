"""What the checks on a GPU share: the devices, encoders on them, and a shortage of memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from pipelines.encoders.base import Encoder, PaddedRepresentation
from pipelines.encoders.catalogue import load_encoder

__all__ = ["DEVICES", "encoder_on", "little_memory"]

DEVICES = [
    pytest.param("cpu", id="cpu"),
    pytest.param(
        "cuda",
        id="cuda",
        marks=pytest.mark.skipif(
            not torch.cuda.is_available(), reason=f"this torch ({torch.__version__}) sees no CUDA device"
        ),
    ),
]


def encoder_on(device: str, name: str, *, precision: str = "float32") -> Encoder:
    """An encoder with random weights; skips where a library of its own is not installed (a machine with the bare repository)."""
    try:
        return load_encoder(name, weights="random", device=device, precision=precision)
    except ModuleNotFoundError as error:
        pytest.skip(f"{name} needs the package {error.name}, which is not installed")


@contextmanager
def little_memory(encoder: Encoder, *, clip: Tensor, batch: Sequence[Tensor]) -> Iterator[None]:
    """Room for one clip, but not for a whole batch: really on a GPU, pretended on a CPU (which would swap, not refuse)."""
    if encoder.device.type == "cuda":
        need = [_peak_bytes(encoder, clips) for clips in ([clip], batch)]
        assert need[1] > 3 * need[0], "the batch is too small to run out of memory by itself"
        total = torch.cuda.get_device_properties(encoder.device).total_memory
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction((need[0] + need[1]) / 2 / total, encoder.device)
        try:
            yield
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0, encoder.device)
            torch.cuda.empty_cache()
        return
    room = (clip.numel() + sum(len(other) for other in batch)) // 2
    encode_padded = encoder.encode_padded

    def refuse(clips: Sequence[Tensor]) -> Iterator[PaddedRepresentation]:
        if max(len(other) for other in clips) * len(clips) > room:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory (pretended).")
        return encode_padded(clips)

    encoder.encode_padded = refuse  # type: ignore[method-assign]
    try:
        yield
    finally:
        del encoder.encode_padded


def _peak_bytes(encoder: Encoder, batch: Sequence[Tensor]) -> int:
    """Memory that torch holds on the GPU, at most, while a batch is encoded."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(encoder.device)
    with torch.inference_mode():
        for _ in encoder.encode_padded(batch):
            pass
    torch.cuda.synchronize(encoder.device)
    return torch.cuda.max_memory_reserved(encoder.device)
