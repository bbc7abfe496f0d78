"""Checkpoints of the wav2vec2-like encoders in transformers' own format, tiny and random, and transformers' own call on them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pipelines.encoders.catalogue import EncoderSpec, encoder_spec
from pipelines.encoders.ssl import SSLEncoder
from pipelines.encoders.torchaudio_guard import ensure_torchaudio_importable

ensure_torchaudio_importable()

# What the tests vary beyond the catalogue: architectures and switches that only checkpoints named hf:… have.
FURTHER_KINDS: dict[str, tuple[str, dict[str, object]]] = {
    "wavlm, normalised": ("wavlm", {"do_normalize": True}),
    "unispeech": ("hubert", {"model_type": "unispeech"}),
    "unispeech-sat, large": ("hubert-large", {"model_type": "unispeech-sat"}),
    "data2vec-audio": (
        "hubert",
        {"model_type": "data2vec-audio", "num_conv_pos_embeddings": 3, "conv_pos_kernel_size": 19},
    ),
    "hubert, batch norm (mHuBERT)": ("hubert", {"conv_pos_batch_norm": True}),
    "hubert, odd positional kernel": ("hubert", {"num_conv_pos_embeddings": 15}),
    "wav2vec2, attention adapters (MMS fine-tuned)": ("mms", {"adapter_attn_dim": 8}),
    "wav2vec2, other activations": ("wav2vec2", {"hidden_act": "relu", "feat_extract_activation": "relu"}),
    "wavlm, other activations": ("wavlm-large", {"hidden_act": "relu", "feat_extract_activation": "gelu_new"}),
    "wav2vec2, other strides": (
        "wav2vec2",
        {"conv_dim": (32, 32, 32), "conv_kernel": (10, 8, 4), "conv_stride": (5, 4, 2), "conv_bias": True},
    ),
}


def checkpoint_spec(name: str, **settings: object) -> EncoderSpec:
    """The tiny size of an entry, with a repository as the full one has, so that it can be loaded like a checkpoint."""
    full, tiny = encoder_spec(name), encoder_spec(f"{name}-tiny")
    return dataclasses.replace(
        tiny,
        repository=full.repository,
        revision=full.revision,
        files=full.files,
        licence=full.licence,
        settings={**tiny.settings, **settings},
    )


def kind_spec(kind: str) -> EncoderSpec:
    """The spec of a catalogue name or of one of ``FURTHER_KINDS``."""
    name, settings = FURTHER_KINDS.get(kind, (kind, {}))
    return checkpoint_spec(name, **settings)


def upstream_class(spec: EncoderSpec, head: str = "Model") -> Any:
    """transformers' class, ``HubertModel`` or with a head ``HubertForCTC``."""
    import transformers
    from transformers import CONFIG_MAPPING, MODEL_MAPPING

    base = MODEL_MAPPING[CONFIG_MAPPING[str(spec.settings["model_type"])]]
    return getattr(transformers, base.__name__.removesuffix("Model") + head)


def random_model(spec: EncoderSpec, head: str = "Model", **settings: object) -> Any:
    """transformers' model, no parameter or statistic at its initial constant (ones and zeros hide mistakes)."""
    model_class = upstream_class(spec, head)
    configuration = {name: value for name, value in spec.settings.items() if name not in ("do_normalize", "model_type")}
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = model_class(model_class.config_class(**configuration, **settings))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
            for name, buffer in model.named_buffers():
                if name.endswith(("running_mean", "running_var")):
                    buffer.add_(torch.rand_like(buffer))
    return model


def save_checkpoint(spec: EncoderSpec, folder: Path, head: str = "Model", **settings: object) -> Path:
    """A checkpoint in the upstream format."""
    from transformers import Wav2Vec2FeatureExtractor

    random_model(spec, head, **settings).save_pretrained(folder)
    do_normalize = bool(spec.settings["do_normalize"])
    Wav2Vec2FeatureExtractor(do_normalize=do_normalize, return_attention_mask=True).save_pretrained(folder)
    return folder


def build(spec: EncoderSpec, folder: Path | None, precision: str = "float32") -> SSLEncoder:
    """The encoder with the weights of a folder, or random ones."""
    return SSLEncoder.build(
        spec=spec,
        weights_kind="random" if folder is None else "pretrained",
        device=torch.device("cpu"),
        weights_dir=folder,
        progress=None,
        precision=precision,
    )


def upstream_call(spec: EncoderSpec, folder: Path) -> Callable[[Tensor], list[Tensor]]:
    """transformers as its documentation shows it: feature extractor, model, one clip."""
    from transformers import Wav2Vec2FeatureExtractor

    extractor = Wav2Vec2FeatureExtractor.from_pretrained(folder)
    model = upstream_class(spec).from_pretrained(folder).eval()
    shortest = 1
    for kernel, stride in list(zip(model.config.conv_kernel, model.config.conv_stride, strict=True))[::-1]:
        shortest = (shortest - 1) * stride + kernel

    @torch.inference_mode()
    def encode(clip: Tensor) -> list[Tensor]:
        clip = F.pad(clip, (0, max(0, shortest - len(clip))))
        inputs = extractor(clip.numpy(), sampling_rate=16000, return_tensors="pt").input_values
        outputs = model(inputs, output_hidden_states=True)
        return [*(state[0] for state in outputs.hidden_states[:-1]), outputs.last_hidden_state[0]]

    return encode


def ragged_batch() -> list[Tensor]:
    """Short, long, odd remainders, below the minimum, silence appended, an offset, silence alone, and in no order."""
    generator = torch.Generator().manual_seed(3)
    clips = [torch.randn(n, generator=generator) * 0.05 for n in (16000, 400, 399, 1, 719, 720, 30001, 8123)]
    return [*clips, F.pad(clips[4], (0, 9000)), clips[7] + 0.3, torch.zeros(5000)]


def relative(found: Tensor, expected: Tensor) -> float:
    """Norm of the difference over the norm; 0 for equal ones, also where all is zero (silence through random weights)."""
    return 0.0 if torch.equal(found, expected) else float((found - expected).norm() / expected.norm())
