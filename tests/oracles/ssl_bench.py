"""Speed and error of the wav2vec2-like encoders at full size with random weights: the figures in ``pipelines/encoders/ssl.py``.

    python -m tests.oracles.ssl_bench wavlm hubert
    python -m tests.oracles.ssl_bench --windows wavlm hubert-large

Prints CPU time on one thread, least of nine, of float32, bf16 and the upstream library one by one, measured in turn; the error of
bf16 in pooled values; and how far batches differ from clips alone. With ``--windows``: how far windows differ from one piece.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor

from pipelines.encoders.base import Encoder
from pipelines.encoders.catalogue import load_encoder
from pipelines.encoders.naive import naive_call
from tests.encoders.batches import speechlike
from tests.encoders.in_windows import distance, frames_of_windows
from tests.encoders.ssl_checkpoints import ragged_batch, relative

CLIPS = [speechlike(48000 - 7 * index, seed=index) for index in range(5)]


def cpu_times(jobs: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Least CPU time of each job in seconds, the jobs in turn, nine times."""
    best: dict[str, float] = {}
    for _ in range(9):
        for name, job in jobs.items():
            started = time.process_time()
            job()
            best[name] = min(best.get(name, torch.inf), time.process_time() - started)
    return best


def drain(encoder: Encoder) -> None:
    """Encode the clips and keep nothing."""
    for _ in encoder.encode_padded(CLIPS):
        pass


def pooled(encoder: Encoder) -> dict[str, tuple[Tensor, Tensor]]:
    """Mean and std over time of all clips, per layer, [B, D] each."""
    encoded = encoder.encode(CLIPS)
    return {
        name: (
            torch.stack([clip[name].mean(0) for clip in encoded]),
            torch.stack([clip[name].std(0, unbiased=False) for clip in encoded]),
        )
        for name in encoder.spec.representations
    }


def bench(name: str) -> None:
    """Speed, error of bf16, difference between batched and alone."""
    encoders = {
        precision: load_encoder(name, weights="random", precision=precision) for precision in ("float32", "bf16")
    }
    upstream = naive_call(encoders["float32"])
    times = cpu_times(
        {
            "float32": lambda: drain(encoders["float32"]),
            "bf16": lambda: drain(encoders["bf16"]),
            upstream.kind: lambda: [upstream.encode(clip) for clip in CLIPS],
        }
    )
    seconds = sum(map(len, CLIPS)) / 16000
    for kind, spent in times.items():
        print(
            f"{name} {kind}: {spent:.3f} s, {seconds / spent:.1f} x real time, float32 / this {times['float32'] / spent:.2f}"
        )
    exact, half = pooled(encoders["float32"]), pooled(encoders["bf16"])
    for index, what in enumerate(("mean", "std")):
        errors = [distance(half[layer][index], exact[layer][index]) for layer in exact]
        print(f"{name} bf16, error of the {what}: {min(errors):.1e} to {max(errors):.1e}")
    clips = ragged_batch()
    for precision, encoder in encoders.items():
        alone = [encoder.encode([clip])[0] for clip in clips]
        worst = max(
            relative(one[key], other[key])
            for one, other in zip(encoder.encode(clips), alone, strict=True)
            for key in one
        )
        print(f"{name} {precision}, batched against alone: {worst:.1e}")


def windows(name: str) -> None:
    """A recording of 75 s in windows against the same in one piece."""
    encoder = load_encoder(name, weights="random")
    noise = torch.randn(75 * 16000, generator=torch.Generator().manual_seed(1)) * 0.05
    for kind, samples in (("speech-like", speechlike(75 * 16000, seed=3)), ("noise", noise)):
        whole, joined = encoder.encode([samples])[0], frames_of_windows(encoder, samples)
        for layer in (encoder.spec.representations[0], encoder.spec.representations[-1]):
            found, expected = joined[layer], whole[layer]
            frames = (found - expected).norm(dim=1) / expected.norm(dim=1)
            print(
                f"{name} {kind} {layer}: mean {distance(found.mean(0), expected.mean(0)):.1e},"
                f" std {distance(found.std(0), expected.std(0)):.1e},"
                f" frames {float(frames.median()):.1e}, worst {float(frames.max()):.1e}"
            )


if __name__ == "__main__":
    torch.set_num_threads(1)
    for argument in sys.argv[1:]:
        if argument != "--windows":
            (windows if "--windows" in sys.argv else bench)(argument)
