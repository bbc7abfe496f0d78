"""How fast extraction is, against two things measured in the same run: the bare forward pass and one clip at a time.

The recordings are synthetic (noise bursts with a speech-like spread of lengths, 1 to 9 s), written as 16-bit WAV to a temporary
folder, so nothing but the encoder's weights is needed.
"""

from __future__ import annotations

import platform
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch

from pipelines.audio.decode import decode
from pipelines.corpora.manifest import Manifest, manifest_from_rows
from pipelines.encoders.base import Encoder
from pipelines.extraction.batching import plan_batches
from pipelines.extraction.engines.local import extract_corpus
from pipelines.extraction.worker import BATCH_S, run_batches

__all__ = ["bench_extract"]

_RATE_HZ = 16000


def _synthetic_corpus(root: Path, audio_s: float) -> Manifest:
    """Recordings of about ``audio_s`` seconds in all, the same on every call."""
    generator = np.random.default_rng(0)
    rows: list[dict[str, object]] = []
    total_s = 0.0
    while total_s < audio_s or len(rows) < 2:
        duration_s = float(np.clip(generator.lognormal(mean=0.95, sigma=0.4), 1.0, 9.0))
        samples = int(duration_s * _RATE_HZ)
        envelope = np.abs(np.sin(2 * np.pi * 3 * np.arange(samples) / _RATE_HZ))
        name = f"clip_{len(rows):05d}"
        wave = 0.1 * envelope * generator.standard_normal(samples)
        soundfile.write(root / f"{name}.wav", wave, _RATE_HZ, subtype="PCM_16")
        rows.append({"utterance_id": name, "path": f"{name}.wav", "speaker": "nobody"})
        total_s += samples / _RATE_HZ
    return manifest_from_rows("bench", rows, root=root)


def _forward_s(encoder: Encoder, waveforms: list[torch.Tensor], batches: list[list[int]]) -> float:
    """Seconds of the forward passes alone."""

    def compute(batch: list[int]) -> None:
        for _ in encoder.encode_padded([waveforms[position] for position in batch]):
            pass

    if encoder.device.type == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in run_batches(encoder, batches, compute):
        pass
    if encoder.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def bench_extract(encoder: Encoder, *, audio_s: float) -> dict[str, Any]:
    """Measure one encoder.

    Args:
        encoder: the frozen model.
        audio_s: seconds of audio to extract.

    Returns:
        JSON values. ``audio_s_per_s`` is the whole extraction, files to store; ``forward_audio_s_per_s`` the forward passes on
        the same batches with nothing around them; ``one_by_one_audio_s_per_s`` decodes, encodes and saves one clip after the
        other. The ratios are what carries over to other machines.
    """
    with tempfile.TemporaryDirectory(prefix="hyfuse-bench-") as folder:
        root = Path(folder)
        manifest = _synthetic_corpus(root, audio_s)
        rate_hz = encoder.spec.sample_rate_hz
        waveforms = [torch.from_numpy(decode(path, rate_hz).samples) for path in manifest.audio_paths()]
        lengths = [len(waveform) for waveform in waveforms]
        batches = plan_batches(lengths, max_padded_samples=int(BATCH_S[encoder.device.type] * rate_hz))
        padded = sum(max(lengths[position] for position in batch) * len(batch) for batch in batches)
        total_s = sum(lengths) / rate_hz
        _forward_s(encoder, waveforms, batches)  # warm-up: first touches of memory cost more than the arithmetic
        started = time.perf_counter()
        extract_corpus(manifest, encoder, cache_dir=root / "cache")
        whole_s = time.perf_counter() - started
        forward_s = _forward_s(encoder, waveforms, batches)
        started = time.perf_counter()
        for index, path in enumerate(manifest.audio_paths()):
            clip = torch.from_numpy(decode(path, rate_hz).samples)
            encoded = encoder.encode([clip])[0]
            np.save(root / f"{index}.npy", np.stack([frames.mean(dim=0).numpy() for frames in encoded.values()]))
        one_by_one_s = time.perf_counter() - started
    return {
        "benchmark": "extract",
        "model": encoder.spec.name,
        "weights": encoder.weights.kind,
        "device": str(encoder.device),
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "utterances": len(lengths),
        "audio_s": round(total_s, 1),
        "audio_s_per_s": round(total_s / whole_s, 2),
        "forward_audio_s_per_s": round(total_s / forward_s, 2),
        "one_by_one_audio_s_per_s": round(total_s / one_by_one_s, 2),
        "share_of_forward": round(forward_s / whole_s, 3),
        "speedup_over_one_by_one": round(one_by_one_s / whole_s, 2),
        "padding_waste": round(1 - sum(lengths) / padded, 4),
        "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }
