"""How many parameters an encoder has up to a representation, from its configuration alone: nothing is downloaded or computed.

The networks of transformers are built on torch's *meta* device, where tensors have a shape and no numbers. Counted is what runs
here: without the vector that stands in for masked frames and the pooler of text encoders, which serve training only, and with the
weight normalisation of the positional convolution folded in (128 numbers less than transformers counts). DistilHuBERT has 23.49 M,
as its authors say.

**A representation deploys what it needs.** Layer K of a network of L layers needs what comes before the layers and layers 1 to K;
the network may be cut off behind it. What the cut network gives is exactly what the whole one gives as its layer K, since no layer
looks at a later one. In the sizes with ``do_stable_layer_norm`` the normalisation behind the last layer belongs to layer L alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from pipelines.encoders.catalogue import EncoderSpec, encoder_spec
from pipelines.encoders.torchaudio_guard import ensure_torchaudio_importable

__all__ = ["parameter_counts"]


def parameter_counts(name: str) -> dict[str, int]:
    """Parameters that each representation of an encoder needs.

    Args:
        name: catalogue name, or ``hf:owner/name``.

    Returns:
        Representation to parameters; empty for encoders that are no wav2vec2-like networks and no networks of text.

    Raises:
        UnknownNameError: no such encoder.
    """
    spec = encoder_spec(name)
    family = spec.factory.rpartition(":")[2]
    if family == "SSLEncoder":
        return _counts(spec, *_ssl_parts(spec))
    if family == "TextEncoder":
        return _counts(spec, *_text_parts(spec))
    return {}


def _counts(spec: EncoderSpec, model: nn.Module, layers: list[nn.Module], last: int) -> dict[str, int]:
    """Of every layer.

    Args:
        spec: the entry.
        model: the whole network.
        layers: L of its parts.
        last: parameters that only the last layer needs.
    """
    sizes = [_size(layer) for layer in layers]
    before = _size(model) - sum(sizes) - last
    found = {}
    for depth, representation in enumerate(spec.representations):
        found[representation] = before + sum(sizes[:depth]) + (last if depth == len(layers) else 0)
    return found


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _on_meta(model_type: str, settings: dict[str, Any], **more: Any) -> Any:
    ensure_torchaudio_importable()
    from transformers import CONFIG_MAPPING, MODEL_MAPPING

    config_class: Any = CONFIG_MAPPING[model_type]
    model_class: Any = MODEL_MAPPING[config_class]
    with torch.device("meta"):
        return model_class(config_class(**settings), **more)


def _ssl_parts(spec: EncoderSpec) -> tuple[nn.Module, list[nn.Module], int]:
    settings: dict[str, Any] = {name: value for name, value in spec.settings.items() if name != "do_normalize"}
    settings |= {"mask_time_prob": 0.0, "mask_feature_prob": 0.0}
    model = _on_meta(str(settings["model_type"]), settings)
    if getattr(model, "masked_spec_embed", None) is not None:
        del model.masked_spec_embed
    for module in model.encoder.pos_conv_embed.modules():
        if isinstance(module, nn.Conv1d) and nn.utils.parametrize.is_parametrized(module, "weight"):
            nn.utils.parametrize.remove_parametrizations(module, "weight")
    behind = bool(settings.get("do_stable_layer_norm"))
    return model, list(model.encoder.layers), _size(model.encoder.layer_norm) if behind else 0


def _text_parts(spec: EncoderSpec) -> tuple[nn.Module, list[nn.Module], int]:
    settings = {"hidden_size": spec.dim, "num_hidden_layers": len(spec.representations) - 1, **spec.settings}
    model = _on_meta(str(settings["model_type"]), settings, add_pooling_layer=False)
    return model, list(model.encoder.layer), 0
