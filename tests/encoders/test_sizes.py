"""Parameters up to a layer, and what cutting an encoder off behind it gives."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from pipelines.encoders.catalogue import encoder_spec, load_encoder
from pipelines.encoders.sizes import parameter_counts
from pipelines.encoders.ssl import SSLEncoder
from pipelines.errors import UnknownNameError
from pipelines.extraction import efficiency
from pipelines.extraction.efficiency import encoder_cost


def _clips() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(length, generator=generator) * 0.1 for length in (4000, 6100)]


def _tiny(name: str) -> SSLEncoder:
    encoder = load_encoder(name, weights="random")
    assert isinstance(encoder, SSLEncoder)
    return encoder


@pytest.mark.parametrize("name", ["distilhubert", "wavlm-large"])
def test_published_sizes(name: str) -> None:
    """DistilHuBERT (Chang et al. 2022, Table 1): 23.49 M; WavLM large (Chen et al. 2022): 316.62 M with its pre-training head."""
    counted = max(parameter_counts(name).values())
    assert round(counted / 1e6, 2) == {"distilhubert": 23.49, "wavlm-large": 315.45}[name]


@pytest.mark.parametrize("name", ["hubert", "hubert-large", "wavlm", "minilm", "bert", "roberta"])
def test_a_layer_needs_as_many_parameters_as_a_network_of_so_many_layers(name: str) -> None:
    """Against transformers, asked for a network of K layers."""
    from transformers import CONFIG_MAPPING, MODEL_MAPPING

    spec, counts = encoder_spec(name), parameter_counts(name)
    assert list(counts) == list(spec.representations)
    settings = {key: value for key, value in spec.settings.items() if key != "do_normalize"}
    text = spec.family == "LEX"
    for depth in (1, 3, len(spec.representations) - 1):
        config = CONFIG_MAPPING[str(spec.settings["model_type"])](
            **{**settings, "num_hidden_layers": depth, "hidden_size": spec.dim}
        )
        with torch.device("meta"):
            model = MODEL_MAPPING[type(config)](config, **({"add_pooling_layer": False} if text else {}))
        expected = sum(parameter.numel() for parameter in model.parameters())
        if not text:
            # The vector for masked frames, one of the two parts of a normalised weight (128 kernel positions), and in large
            # sizes the normalisation behind the last layer, which inner layers do not pass.
            expected -= spec.dim + 128
            if spec.settings.get("do_stable_layer_norm") and depth < len(spec.representations) - 1:
                expected -= 2 * spec.dim
        assert counts[f"layer_{depth:02d}"] == expected


def test_counts_grow_with_depth_and_unknown_kinds_are_not_guessed() -> None:
    counts = list(parameter_counts("wavlm-tiny").values())
    assert counts == sorted(set(counts))
    assert parameter_counts("xvector") == {}
    with pytest.raises(UnknownNameError, match="wavlm"):
        parameter_counts("wavlmm")


@pytest.mark.parametrize("name", ["hubert-tiny", "wavlm-tiny", "distilhubert-tiny", "hubert-large-tiny"])
def test_layer_k_is_what_the_encoder_cut_off_behind_it_gives(name: str) -> None:
    """Bit for bit; in sizes with ``do_stable_layer_norm`` without the normalisation that belongs to the last layer alone."""
    whole, cut = _tiny(name), _tiny(name)
    cut.model.encoder.layers = cut.model.encoder.layers[:1]
    if getattr(cut.model.config, "do_stable_layer_norm", False):
        cut.model.encoder.layer_norm = nn.Identity()
    cut.spec = replace(whole.spec, representations=whole.spec.representations[:2])
    for full, short in zip(whole.encode(_clips()), cut.encode(_clips()), strict=True):
        assert list(short) == ["layer_00", "layer_01"]
        for representation, frames in short.items():
            assert torch.equal(frames, full[representation])


def test_cost_goes_as_far_as_the_representation(monkeypatch: pytest.MonkeyPatch) -> None:
    """What lies behind it is not computed: this is what its time is measured by."""
    ran: list[int] = []

    def load(name: str, **options: object) -> SSLEncoder:
        encoder = _tiny(name)
        for position, layer in enumerate(encoder.model.encoder.layers, start=1):
            layer.feed_forward.register_forward_hook(lambda *_, position=position: ran.append(position))
        return encoder

    monkeypatch.setattr(efficiency, "load_encoder", load)
    for representation, layers in (("layer_01", {1}), ("layer_02", {1, 2}), ("", {1, 2}), ("weighted", {1, 2})):
        ran.clear()
        cost = encoder_cost("hubert-tiny", representation, audio_s=2.0)
        assert set(ran) == layers
        reach = "layer_01" if representation == "layer_01" else "layer_02"
        assert cost.parameters == parameter_counts("hubert-tiny")[reach]
        assert 0.0 < cost.cpu_s_per_s < 10.0
    assert cost.representation == "weighted"


def test_cost_of_text_and_of_what_is_not_counted() -> None:
    cost = encoder_cost("minilm-tiny", audio_s=4.0)
    assert cost.parameters == parameter_counts("minilm-tiny")["layer_02"]
    assert cost.cpu_s_per_s > 0
    assert encoder_cost("xvector-tiny", audio_s=4.0).parameters is None
    with pytest.raises(UnknownNameError, match=r"representation of minilm-tiny 'layer_09'.*layer_02"):
        encoder_cost("minilm-tiny", "layer_09")
