"""What a padded batch does to an embedding when nothing is done about it: the table of docs/why-batch-independence.md.

    python docs/measure_batches.py            # full size, random weights, about a minute of CPU
    python docs/measure_batches.py --tiny     # seconds

Eight clips of 1 to 4 s go through the networks as their libraries offer them: alone, and zero-padded to a rectangle, without and
(where the library takes one) with a mask. Of every clip its own frames are averaged over time. The error is the largest difference
to the same clip alone over the largest value. The last column is hyfuse's encoder of the same architecture and weights.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pipelines.encoders.catalogue import load_encoder
from pipelines.encoders.random_weights import initialise
from pipelines.encoders.torchaudio_guard import ensure_torchaudio_importable
from pipelines.encoders.weights import random_initialisation

SECONDS = (1.0, 1.3, 1.7, 2.0, 2.4, 2.9, 3.5, 4.0)
Call = Callable[[Tensor, "list[int] | None"], Tensor]


def clips(rate_hz: int) -> list[Tensor]:
    """Buzzes with pauses and a little noise, at the level of speech."""
    made = []
    for index, seconds in enumerate(SECONDS):
        time = torch.arange(int(seconds * rate_hz)) / rate_hz
        phase = 2 * torch.pi * (110 + 15 * index) * time + 3 * torch.sin(9 * time)
        buzz = sum(torch.sin(harmonic * phase) / harmonic for harmonic in range(1, 9))
        noise = torch.randn(len(time), generator=torch.Generator().manual_seed(index))
        made.append((0.1 * torch.sin(13 * time + index).clamp_min(0) * buzz + 0.003 * noise).float())
    return made


def transformer(spec: Any) -> tuple[Call, bool]:
    """One of transformers' wav2vec2-like models: [B, samples] to the last layer's frames [B, T, D]."""
    import transformers

    settings = dict(spec.settings)
    settings.pop("do_normalize")
    config_class = transformers.CONFIG_MAPPING[settings["model_type"]]
    with random_initialisation(spec):
        model: Any = transformers.MODEL_MAPPING[config_class](
            config_class(**settings, mask_time_prob=0.0, mask_feature_prob=0.0)
        )
    model.eval()

    def call(batch: Tensor, lengths: list[int] | None) -> Tensor:
        mask = None
        if lengths is not None:
            mask = (torch.arange(batch.shape[1]) < torch.tensor(lengths)[:, None]).long()
        frames: Tensor = model(batch, attention_mask=mask).last_hidden_state
        return frames

    return call, True


def codec(spec: Any) -> tuple[Call, bool]:
    """EnCodec's encoder as its package runs it; it takes no lengths."""
    from pipelines.encoders.encodec import _build_model, _randomise

    with random_initialisation(spec):
        model = _build_model(spec)
        _randomise(model)

    def call(batch: Tensor, _lengths: list[int] | None) -> Tensor:
        frames: Tensor = model.encoder(batch[:, None])
        return frames.transpose(1, 2)

    return call, False


def speaker(spec: Any) -> tuple[Call, bool]:
    """SpeechBrain's filter bank, normalisation and ECAPA-TDNN: one embedding [B, 1, D]."""
    from speechbrain.lobes.features import Fbank
    from speechbrain.lobes.models.ECAPA_TDNN import ECAPA_TDNN
    from speechbrain.processing.features import InputNormalization

    with random_initialisation(spec):
        network: Any = ECAPA_TDNN(input_size=80, lin_neurons=spec.dim, **spec.settings)
        initialise(network)
        network.blocks[0].norm.norm.running_var.fill_(400.0)
    network.eval()
    features, normalise = Fbank(n_mels=80), InputNormalization(norm_type="sentence", std_norm=False)

    def call(batch: Tensor, lengths: list[int] | None) -> Tensor:
        share = torch.ones(len(batch)) if lengths is None else torch.tensor(lengths) / batch.shape[1]
        embeddings: Tensor = network(normalise(features(batch), share), share)
        return embeddings

    return call, True


BUILDERS = {"wavlm": transformer, "hubert": transformer, "wav2vec2": transformer, "encodec": codec, "ecapa": speaker}


def error(found: list[Tensor], alone: list[Tensor]) -> float:
    """Worst clip: largest difference over largest value, of the means over the clip's own frames."""
    return max(
        float((one.mean(0) - other.mean(0)).abs().max() / other.mean(0).abs().max())
        for one, other in zip(
            (part[: len(whole)] for part, whole in zip(found, alone, strict=True)), alone, strict=True
        )
    )


@torch.inference_mode()
def measure(name: str) -> tuple[float, float | None, float]:
    """Errors of an encoder: padded, padded with a mask (None if there is none), hyfuse."""
    encoder = load_encoder(name, weights="random")
    call, masks = BUILDERS[name.removesuffix("-tiny")](encoder.spec)
    given = clips(encoder.spec.sample_rate_hz)
    lengths = [len(clip) for clip in given]
    batch = torch.nn.utils.rnn.pad_sequence(given, batch_first=True)
    alone = [call(clip[None], None)[0] for clip in given]
    plain = error(list(call(batch, None)), alone)
    masked = error(list(call(batch, lengths)), alone) if masks else None
    representation = encoder.spec.default_representation
    ours = [encoder.encode([clip])[0][representation] for clip in given]
    return plain, masked, error([found[representation] for found in encoder.encode(given)], ours)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="the tiny sizes")
    names = [f"{name}-tiny" if parser.parse_args().tiny else name for name in BUILDERS]
    logging.disable(logging.WARNING)
    ensure_torchaudio_importable()
    print("| encoder (random weights) | padded | padded, with a mask | hyfuse |\n|---|---|---|---|")
    for name in names:
        plain, masked, ours = measure(name)
        cells = [
            f"{100 * plain:.1f} %",
            "takes none" if masked is None else f"{100 * masked:.0f} %",
            f"{100 * ours:.0e} %",
        ]
        print(f"| `{name}` | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
