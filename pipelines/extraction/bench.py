"""How fast extraction is, against two things measured in the same run: bare forward passes, and one clip at a time upstream.

The recordings are synthetic (noise under a syllable-like envelope, 1.5 to 6 s, the same on every call), written as 16-bit WAV or
FLAC at 16 kHz into a temporary folder, so that nothing but the encoder's weights is needed.

* The *whole extraction* is :func:`~pipelines.extraction.engines.local.extract_corpus`: files to a new store. A first one warms up;
  during it every batch that goes into the encoder is written down.
* The *ceiling* runs the encoder on exactly those batches again, waveforms in memory, with no decoding, pooling or storing.
* The *naive loop* is what people write: read a file, call the upstream library with that one clip
  (:func:`~pipelines.encoders.naive.naive_call`), average every representation over time, save one ``.npy``. It has all of torch's
  threads and, on a GPU, torch's own defaults. Where there is much audio it gets the first part of it.

Extraction and ceiling take turns ``repeats`` times and each counts with its median, so that a change of the machine's speed meets
both. Ratios carry over to other machines, absolute speeds do not.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from torch import Tensor

from pipelines.audio.decode import decode
from pipelines.corpora.manifest import Manifest, manifest_from_rows
from pipelines.encoders.base import Encoder, PaddedRepresentation
from pipelines.encoders.naive import NaiveCall, naive_call
from pipelines.errors import ConfigError
from pipelines.extraction.engines.local import extract_corpus
from pipelines.extraction.measure import (
    PeakMemory,
    Stopwatch,
    count_flops,
    matrix_product_flops_per_s,
    median,
    processor_name,
)
from pipelines.extraction.worker import run_batches

__all__ = ["FILE_KINDS", "bench_extract", "recorded_batches", "synthetic_corpus"]

FILE_KINDS = ("wav", "flac")

_RATE_HZ = 16000
_SHORTEST_S, _LONGEST_S = 1.5, 6.0
_ENOUGH_S = 60.0
"""Nothing is repeated once it has taken so long."""
_COMPARED_CLIPS = 3


def synthetic_corpus(root: Path, *, audio_s: float, files: str = "wav") -> Manifest:
    """Recordings of about ``audio_s`` seconds in all, at least two, the same on every call.

    Raises:
        ConfigError: ``files`` is no kind of file that is written here.
    """
    if files not in FILE_KINDS:
        raise ConfigError(f"--files must be one of {', '.join(FILE_KINDS)}, not {files!r}.")
    root.mkdir(parents=True, exist_ok=True)
    lengths: list[int] = []
    lottery, missing = np.random.default_rng(0), audio_s * _RATE_HZ
    while missing > 0 or len(lengths) < 2:
        duration_s = float(np.clip(lottery.lognormal(mean=1.05, sigma=0.35), _SHORTEST_S, _LONGEST_S))
        lengths.append(int(duration_s * _RATE_HZ))
        missing -= lengths[-1]
    names = [f"clip_{number:06d}" for number in range(len(lengths))]

    def write(number: int) -> None:
        time_s = np.arange(lengths[number]) / _RATE_HZ
        wave = 0.1 * np.abs(np.sin(2 * np.pi * 3 * time_s))
        wave *= np.random.default_rng([1, number]).standard_normal(lengths[number])
        soundfile.write(root / f"{names[number]}.{files}", wave, _RATE_HZ, subtype="PCM_16")

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(write, range(len(names))))
    rows = [{"utterance_id": name, "path": f"{name}.{files}", "speaker": "nobody"} for name in names]
    return manifest_from_rows("bench", rows, root=root)


@contextmanager
def recorded_batches(encoder: Encoder) -> Iterator[list[list[Tensor]]]:
    """Every batch that the encoder is given meanwhile, waveforms and all."""
    batches: list[list[Tensor]] = []
    encode_padded, before = encoder.encode_padded, vars(encoder).get("encode_padded")

    def record(batch: Sequence[Tensor]) -> Iterator[PaddedRepresentation]:
        batches.append([clip.clone() for clip in batch])
        return encode_padded(batch)

    encoder.encode_padded = record  # type: ignore[method-assign]
    try:
        yield batches
    finally:
        del encoder.encode_padded  # the class's own is there again
        if before is not None:
            encoder.encode_padded = before  # type: ignore[method-assign]


def _forward(encoder: Encoder, batches: Sequence[list[Tensor]]) -> None:
    """The forward passes alone, as the engine runs them."""

    def compute(positions: list[int]) -> None:
        (position,) = positions
        for _ in encoder.encode_padded(batches[position]):
            pass

    for _ in run_batches(encoder, [[position] for position in range(len(batches))], compute):
        pass


@contextmanager
def _torch_defaults(device: torch.device) -> Iterator[None]:
    """What a user's script has on a GPU: convolutions may use TensorFloat-32, which the encoders here forbid."""
    allowed = torch.backends.cudnn.allow_tf32
    if device.type == "cuda":
        torch.backends.cudnn.allow_tf32 = True
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = allowed


def _naive_loop(naive: NaiveCall, paths: Sequence[Path], rate_hz: int, folder: Path) -> None:
    """Read, encode, average, save, one clip after the other."""
    folder.mkdir(exist_ok=True)
    for path in paths:
        clip = torch.from_numpy(decode(path, rate_hz).samples)
        vectors = [frames.mean(dim=0).cpu() for frames in naive.encode(clip)]
        np.save(folder / f"{path.stem}.npy", torch.stack(vectors).float().numpy())


def _disagreement(naive: NaiveCall, encoder: Encoder, clips: Sequence[Tensor]) -> float | None:
    """Largest relative difference between the naive call and the encoder; None where their weights differ.

    ``quantized`` is not compared, except in shape: where two code vectors are equally near, rounding chooses.
    """
    worst = 0.0
    for clip in clips:
        own = encoder.encode([clip])[0]
        found = [frames.float().cpu() for frames in naive.encode(clip)]
        for (name, expected), frames in zip(own.items(), found, strict=True):
            if frames.shape != expected.shape:
                raise AssertionError(
                    f"{naive.kind} gives {tuple(frames.shape)} for {name} of {encoder.spec.name}, not {tuple(expected.shape)}:"
                    " it is another architecture."
                )
            if name != "quantized":
                worst = max(worst, float((frames - expected).abs().max() / expected.abs().max()))
    return worst if naive.same_weights else None


def _repeat(repeats: int, *runs: Callable[[], None], device: torch.device) -> list[list[float]]:
    """Seconds of every run, in turns; at least once each, and no more often than fits into :data:`_ENOUGH_S`."""
    seconds: list[list[float]] = [[] for _ in runs]
    started, watch = time.perf_counter(), Stopwatch(device)
    for _ in range(repeats):
        for run, taken in zip(runs, seconds, strict=True):
            with watch:
                run()
            taken.append(watch.seconds)
        if time.perf_counter() - started > _ENOUGH_S:
            break
    return seconds


def bench_extract(
    encoder: Encoder,
    manifest: Manifest,
    *,
    repeats: int = 3,
    naive_s: float = 60.0,
    weights_dir: Path | None = None,
    product_size: int | None = None,
) -> dict[str, Any]:
    """Measure one encoder.

    Args:
        encoder: the frozen model.
        manifest: what to extract, most likely a :func:`synthetic_corpus`.
        repeats: times that everything is measured, unless it takes long.
        naive_s: seconds of audio, at most, for the naive loop; 0 leaves it out.
        weights_dir: see :func:`~pipelines.encoders.naive.naive_call`.
        product_size: of the matrix product that stands for the device's peak; see ``matrix_product_flops_per_s``.

    Returns:
        JSON values; docs/speed.md explains every one. ``audio_s_per_s`` is the whole extraction, ``forward_audio_s_per_s`` its
        ceiling, ``share_of_forward`` their ratio; ``naive_audio_s_per_s`` the naive loop over ``naive_audio_s`` seconds, with the
        network of ``naive_kind``. None where something was not measured.

    Raises:
        ConfigError: the encoder takes texts.
    """
    if encoder.spec.takes_text:
        raise ConfigError(
            f"{encoder.spec.name!r} encodes texts; what is measured here is the extraction of recordings."
        )
    device, rate_hz = encoder.device, encoder.spec.sample_rate_hz
    with tempfile.TemporaryDirectory(prefix="hyfuse-bench-") as folder:
        root = Path(folder)
        paths = manifest.audio_paths()
        duration_s = [soundfile.info(path).duration for path in paths]
        total_s = sum(duration_s)
        stores = (root / f"store-{index}" for index in range(repeats + 1))
        with recorded_batches(encoder) as batches:
            extract_corpus(manifest, encoder, cache_dir=next(stores))
        lengths = [[clip.numel() for clip in batch] for batch in batches]
        padded = sum(max(batch) * len(batch) for batch in lengths)
        held_mb = sum(map(sum, lengths)) * 4 / 2**20
        memory = PeakMemory()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

        def extract() -> None:
            with memory:
                extract_corpus(manifest, encoder, cache_dir=next(stores))

        whole, forward = _repeat(repeats, extract, lambda: _forward(encoder, batches), device=device)
        cuda_mb = torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else None
        batches.clear()
        naive = naive_call(encoder, weights_dir=weights_dir)
        naive_speed = _measure_naive(
            naive,
            encoder,
            paths,
            duration_s,
            repeats=repeats,
            naive_s=naive_s,
            folder=root / "naive",
        )
        middle = torch.from_numpy(decode(paths[int(np.argsort(duration_s)[len(paths) // 2])], rate_hz).samples)
        # Of the naive network; a runtime other than torch shows none, so of the encoder then.
        flops = count_flops(lambda: naive.encode(middle)) or count_flops(lambda: encoder.encode([middle]))
        flops_per_s = flops / (middle.numel() / rate_hz)
    whole_speed, forward_speed = total_s / median(whole), total_s / median(forward)
    peak = matrix_product_flops_per_s(device, encoder.precision, size=product_size)
    naive_rate = naive_speed["naive_audio_s_per_s"]
    return {
        "benchmark": "extract",
        "model": encoder.spec.name,
        "weights": encoder.weights.kind,
        "device": str(device),
        "precision": encoder.precision,
        "processor": processor_name(device),
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
        "files": ", ".join(sorted({path.suffix.removeprefix(".") for path in paths})),
        "utterances": len(paths),
        "audio_s": round(total_s, 1),
        "repeats": len(whole),
        "audio_s_per_s": round(whole_speed, 2),
        "forward_audio_s_per_s": round(forward_speed, 2),
        "share_of_forward": round(whole_speed / forward_speed, 3),
        "padding_waste": round(1 - sum(map(sum, lengths)) / padded, 4),
        "batches": len(lengths),
        **naive_speed,
        "speedup_over_naive": None if naive_rate is None else round(whole_speed / naive_rate, 2),
        "peak_memory_mb": round(memory.peak_mb - held_mb) if memory.peak_mb else None,
        "peak_cuda_memory_mb": None if cuda_mb is None else round(cuda_mb),
        "gflop_per_audio_s": round(flops_per_s / 1e9, 3),
        "matrix_product_gflops": round(peak / 1e9, 1),
        "share_of_peak": round(flops_per_s * whole_speed / peak, 3),
    }


def _measure_naive(
    naive: NaiveCall,
    encoder: Encoder,
    paths: Sequence[Path],
    duration_s: Sequence[float],
    *,
    repeats: int,
    naive_s: float,
    folder: Path,
) -> dict[str, Any]:
    """How the naive loop fared: JSON values."""
    rate_hz = encoder.spec.sample_rate_hz
    clips = [torch.from_numpy(decode(path, rate_hz).samples) for path in paths[:_COMPARED_CLIPS]]
    error = _disagreement(naive, encoder, clips)  # warms up, too
    found: dict[str, Any] = {
        "naive_kind": naive.kind,
        "naive_relative_error": None if error is None else float(f"{error:.1e}"),
        "naive_audio_s": None,
        "naive_audio_s_per_s": None,
    }
    if naive_s <= 0:
        return found
    chosen = [
        path for path, before_s in zip(paths, np.cumsum([0.0, *duration_s[:-1]]), strict=True) if before_s < naive_s
    ]
    chosen_s = sum(duration_s[: len(chosen)])
    with _torch_defaults(encoder.device):
        (seconds,) = _repeat(repeats, lambda: _naive_loop(naive, chosen, rate_hz, folder), device=encoder.device)
    found["naive_audio_s"] = round(chosen_s, 1)
    found["naive_audio_s_per_s"] = round(chosen_s / median(seconds), 2)
    return found
