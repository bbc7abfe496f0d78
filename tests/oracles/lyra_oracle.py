"""Compare hyfuse's ``soundstream-lyra`` with Google's TensorFlow Lite runtime, on the published files.

The runtime is not a dependency. Install it, without what it would bring along, into a folder of its own and name that here;
nothing is installed by this script::

    pip install --no-deps --target /tmp/oracle_lyra ai-edge-litert
    python tests/oracles/lyra_oracle.py --packages /tmp/oracle_lyra --weights ../shared/weights [--recordings FOLDER]

The runtime runs frame by frame, with a fresh interpreter per clip (the graph keeps its context between calls); its quantiser is
given the runtime's own latents, with all 46 codebooks. hyfuse runs in one batch. Clips are the first WAV files of a folder, or
noise. Printed as JSON: the largest relative error (largest absolute difference over largest absolute value of the clip), how
many frames were quantised differently, which rounding causes where two code vectors are equally near, and the speed of the
runtime's encoder one clip at a time.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from pipelines.encoders.catalogue import encoder_spec, load_encoder
from pipelines.encoders.weights import find_file

_NOISE_SAMPLES = (1, 319, 320, 321, 16000, 33333)


def _clips(recordings: Path | None, count: int) -> list[Tensor]:
    if recordings is None:
        generator = torch.Generator().manual_seed(0)
        return [0.1 * torch.randn(samples, generator=generator) for samples in _NOISE_SAMPLES]
    import soundfile

    paths = sorted(recordings.glob("*.wav"))[:count]
    return [torch.from_numpy(soundfile.read(path, dtype="float32")[0]) for path in paths]


def _latent(interpreter_class: Any, path: Path, clip: Tensor) -> Tensor:
    interpreter = interpreter_class(str(path), num_threads=1)
    interpreter.allocate_tensors()
    into, out = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]
    samples = np.pad(clip.numpy(), (0, -clip.numel() % 320))
    frames = []
    for frame in samples.reshape(-1, 1, 320):
        interpreter.set_tensor(into, frame)
        interpreter.invoke()
        frames.append(interpreter.get_tensor(out)[0, 0])
    return torch.from_numpy(np.stack(frames))


def _quantized(interpreter_class: Any, path: Path, latent: Tensor) -> Tensor:
    interpreter = interpreter_class(str(path), num_threads=1)
    encode, decode = (interpreter.get_signature_runner(name) for name in ("encode", "decode"))
    frames = []
    for frame in latent.numpy():
        codes = encode(input_frames=frame[None, None], num_quantizers=np.int32(46))["output_0"]
        frames.append(decode(encoding_indices=codes)["output_0"][0, 0])
    return torch.from_numpy(np.stack(frames))


def _relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def compare(packages: Path, weights: Path, recordings: Path | None, count: int) -> dict[str, object]:
    """Run both; see the module docstring for what is returned."""
    sys.path.append(str(packages))
    interpreter_class = importlib.import_module("ai_edge_litert.interpreter").Interpreter
    spec = encoder_spec("soundstream-lyra")
    encoder_path, quantizer_path = (find_file(spec, file, weights_dir=weights) for file in spec.files)
    clips = _clips(recordings, count)
    latent_errors, quantized_errors, different, frames, seconds = [], [], 0, 0, 0.0
    for clip, found in zip(clips, load_encoder(spec.name, weights_dir=weights).encode(clips), strict=True):
        started = time.perf_counter()
        latent = _latent(interpreter_class, encoder_path, clip)
        seconds += time.perf_counter() - started
        quantized = _quantized(interpreter_class, quantizer_path, latent)
        off = (found["quantized"] - quantized).abs().amax(1) > 1e-5 * quantized.abs().max()
        latent_errors.append(_relative_error(found["latent"], latent))
        quantized_errors.append(_relative_error(found["quantized"][~off], quantized[~off]))
        different += int(off.sum())
        frames += len(latent)
    return {
        "clips": len(clips),
        "frames": frames,
        "max_relative_error_latent": max(latent_errors),
        "max_relative_error_quantized": max(quantized_errors),
        "frames_quantized_differently": different,
        "runtime_audio_seconds_per_second": round(sum(clip.numel() for clip in clips) / 16000 / seconds, 1),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0] if __doc__ else "")
    parser.add_argument("--packages", type=Path, required=True, help="folder with ai-edge-litert")
    parser.add_argument("--weights", type=Path, required=True, help="folder with the two TFLite files")
    parser.add_argument("--recordings", type=Path, help="folder with 16 kHz WAV files")
    parser.add_argument("--count", type=int, default=10, help="how many of them")
    arguments = parser.parse_args()
    print(json.dumps(compare(arguments.packages, arguments.weights, arguments.recordings, arguments.count), indent=2))
