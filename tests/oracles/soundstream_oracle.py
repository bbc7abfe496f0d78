"""Compare hyfuse's ``soundstream`` with the PyPI package ``soundstream``, on the same random weights.

The package pins libraries too old to live beside hyfuse's, so it is not a dependency: unpack it, and the quantiser it uses,
into folders of their own and name them here. Nothing is installed by this script::

    pip download --no-deps -d /tmp/oracle soundstream==0.0.1 vector-quantize-pytorch==1.6.11
    for wheel in /tmp/oracle/*.whl; do python -m zipfile -e "$wheel" /tmp/oracle; done
    python tests/oracles/soundstream_oracle.py --packages /tmp/oracle

The quantiser needs einops, which the encodec package brings. Upstream's network is built in full size with seeded random
weights and codebooks and put into evaluation mode; its state dict is saved as upstream publishes it and loaded by hyfuse
through the ordinary path for pretrained weights. Upstream runs clip by clip, hyfuse in one batch. Printed as JSON: the largest
relative error per clip (largest absolute difference over largest absolute value), and how many frames were quantised
differently, which rounding causes where two code vectors are equally near.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import sys
import tempfile
import types
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from pipelines.encoders.catalogue import encoder_spec
from pipelines.encoders.random_weights import gaussian_codebooks, initialise
from pipelines.encoders.soundstream import SoundStreamEncoder

_SAMPLES = (100, 2199, 2200, 2201, 5399, 16000, 33333, 48000)


def _upstream(packages: Path, seed: int) -> torch.nn.Module:
    """The package's network, without running its ``__init__``, which imports libraries that are not needed here."""
    sys.path.insert(0, str(packages))
    package = types.ModuleType("soundstream")
    package.__path__ = [str(packages / "soundstream")]
    sys.modules["soundstream"] = package
    module = importlib.import_module("soundstream.soundstream")
    torch.manual_seed(seed)
    network: torch.nn.Module = module.SoundStream(n_q=16, codebook_size=1024, D=256, C=58, strides=(2, 4, 5, 5))
    initialise(network.get_submodule("encoder"))
    codebooks = gaussian_codebooks(count=16, size=1024, dim=256, scale=100.0)
    for index, codebook in enumerate(codebooks):
        state = network.get_submodule(f"quantizer.layers.{index}._codebook").state_dict()
        state["embed"].copy_(codebook)
        state["embed_avg"].copy_(codebook)
        state["initted"].fill_(1.0)
    return network.eval()


def _relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def _speechlike(samples: int, generator: torch.Generator) -> Tensor:
    """Noise under a slow envelope, at the level of speech."""
    envelope = torch.sin(torch.arange(samples) / 2500.0).square()
    return 0.1 * envelope * torch.randn(samples, generator=generator)


@torch.inference_mode()
def compare(packages: Path, seed: int) -> dict[str, object]:
    """Run both; see the module docstring for what is returned."""
    network = _upstream(packages, seed)
    spec = encoder_spec("soundstream")
    with tempfile.TemporaryDirectory() as folder:
        torch.save(network.state_dict(), Path(folder) / spec.files[0].name)
        encoder = SoundStreamEncoder.build(
            spec=spec, weights_kind="pretrained", device=torch.device("cpu"), weights_dir=Path(folder)
        )
    generator = torch.Generator().manual_seed(seed)
    clips = [_speechlike(samples, generator) for samples in _SAMPLES]
    rows = []
    for clip, found in zip(clips, encoder.encode(clips), strict=True):
        extended = torch.nn.functional.pad(clip, (0, max(0, encoder.min_samples - clip.numel())))
        latent = network.get_submodule("encoder")(extended[None, None])[0].T
        quantized = network(extended[None, None], mode="encode")[0]
        scale = quantized.abs().max()
        flipped = (found["quantized"] - quantized).abs().amax(1) > 1e-5 * scale
        rows.append(
            {
                "samples": clip.numel(),
                "frames": len(latent),
                "latent": _relative_error(found["latent"], latent),
                "quantized": _relative_error(found["quantized"][~flipped], quantized[~flipped]),
                "frames_quantized_differently": int(flipped.sum()),
                "latent_deviation_over_time": float(latent.std(0).mean() / latent.abs().mean()),
            }
        )
    return {
        "seed": seed,
        "torch": torch.__version__,
        "max_relative_error_latent": max(row["latent"] for row in rows),
        "max_relative_error_quantized": max(row["quantized"] for row in rows),
        "frames": sum(row["frames"] for row in rows),
        "frames_quantized_differently": sum(row["frames_quantized_differently"] for row in rows),
        "clips": rows,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0] if __doc__ else "")
    parser.add_argument("--packages", type=Path, required=True, help="folder with the unpacked wheels")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    print(json.dumps(compare(arguments.packages, arguments.seed), indent=2))
