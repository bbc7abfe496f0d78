"""WavLM (Chen et al., 2022, "WavLM: Large-Scale Self-Supervised Pre-Training for Full Stack Speech Processing").

``layer_00`` is the input of the first transformer layer and ``layer_NN`` the output of layer NN, transformers'
``hidden_states``; in the sizes with ``do_stable_layer_norm`` (large) the last one has passed the final layer
normalisation and the inner ones have not, transformers' ``last_hidden_state``.

What breaks the promise of ``base.py`` upstream and how it is cured is told in ``ssl.py``. The layers are run here instead of
through ``WavLMModel.forward``: one layer is handed out before the next is made, and attention goes through torch's fused
``scaled_dot_product_attention`` with the gated relative position bias (section 3.2 of the paper) as its mask, where transformers
5 computes every attention weight and averages them for its output.

microsoft/wavlm-base takes waveforms as they are (``do_normalize`` false: its authors, microsoft/unilm#708), and so do its random
weights here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pipelines.encoders.base import Encoder, PaddedRepresentation
from pipelines.encoders.catalogue import EncoderSpec
from pipelines.encoders.padding import pad_batch, valid_mask
from pipelines.encoders.ssl import (
    LoadedModel,
    embed_frames,
    front_end,
    load_model,
    normalise_waveforms,
    output_frames,
    receptive_field,
)
from pipelines.encoders.torchaudio_guard import ensure_torchaudio_importable
from pipelines.encoders.weights import Progress

__all__ = ["WavLMEncoder"]


class WavLMEncoder(Encoder):
    """WavLM of any size; one frame every 320 samples, each of 400."""

    def __init__(self, *, spec: EncoderSpec, device: torch.device, loaded: LoadedModel) -> None:
        super().__init__(spec=spec, weights=loaded.weights, device=device)
        self.model: Any = loaded.model
        self.do_normalize = loaded.do_normalize
        self.min_samples = receptive_field(self.model.config)

    @classmethod
    def build(
        cls,
        *,
        spec: EncoderSpec,
        weights_kind: str,
        device: torch.device,
        weights_dir: Path | None,
        progress: Progress | None,
    ) -> WavLMEncoder:
        """Load (``pretrained``) or initialise (``random``) the model; see :func:`pipelines.encoders.ssl.load_model`."""
        ensure_torchaudio_importable()
        from transformers import WavLMConfig, WavLMModel

        loaded = load_model(
            spec=spec,
            weights_kind=weights_kind,
            device=device,
            weights_dir=weights_dir,
            progress=progress,
            config_class=WavLMConfig,
            model_class=WavLMModel,
        )
        return cls(spec=spec, device=device, loaded=loaded)

    def num_frames(self, num_samples: int) -> int:
        """Frames of a clip, at least 1."""
        return int(output_frames(self.model.config, max(num_samples, self.min_samples)))

    @torch.inference_mode()
    def encode_padded(self, batch: Sequence[Tensor]) -> Iterator[PaddedRepresentation]:
        """See :meth:`Encoder.encode_padded`."""
        waveforms, lengths = pad_batch(batch, min_samples=self.min_samples, device=self.device)
        if self.do_normalize:
            waveforms = normalise_waveforms(waveforms, lengths)
        in_pieces = self.device.type == "cpu"
        features = front_end(self.model.feature_extractor, waveforms, lengths, in_pieces=in_pieces)  # [B, T, C]
        num_frames = output_frames(self.model.config, lengths)
        valid = valid_mask(num_frames, features.shape[1])
        hidden = embed_frames(self.model, features, valid)  # [B, T, D]
        for name, frames in zip(self.spec.representations, self._layers(hidden, valid), strict=True):
            yield PaddedRepresentation(name=name, frames=frames, num_frames=num_frames)

    def _layers(self, hidden: Tensor, valid: Tensor) -> Iterator[Tensor]:
        """The input of the first layer, then the output of every layer, [B, T, D] each."""
        encoder = self.model.encoder
        layer_norm_first = self.model.config.do_stable_layer_norm
        if not layer_norm_first:
            hidden = encoder.layer_norm(hidden)
        yield hidden
        length = hidden.shape[1]
        # One bias for all layers, gated anew by each; only the first layer holds its parameters.
        position_bias = encoder.layers[0].attention.compute_bias(length, length)  # [heads, T, T]
        no_key = torch.zeros_like(valid, dtype=hidden.dtype).masked_fill_(~valid, -torch.inf)[:, None, None]
        mask = hidden.new_empty(len(hidden), *position_bias.shape)  # [B, heads, T, T]
        for index, layer in enumerate(encoder.layers, start=1):
            if layer_norm_first:
                hidden = hidden + _attend(layer.attention, layer.layer_norm(hidden), position_bias, no_key, mask)
                hidden = hidden + layer.feed_forward(layer.final_layer_norm(hidden))
                yield encoder.layer_norm(hidden) if index == len(encoder.layers) else hidden
            else:
                hidden = layer.layer_norm(hidden + _attend(layer.attention, hidden, position_bias, no_key, mask))
                hidden = layer.final_layer_norm(hidden + layer.feed_forward(hidden))
                yield hidden


def _attend(attention: Any, hidden: Tensor, position_bias: Tensor, no_key: Tensor, mask: Tensor) -> Tensor:
    """Self-attention with the gated relative position bias.

    Args:
        attention: transformers' ``WavLMAttention``.
        hidden: [B, T, D].
        position_bias: [heads, T, T], not yet gated.
        no_key: [B, 1, 1, T], 0 for the clip's frames and -inf beyond them.
        mask: [B, heads, T, T], written over: one buffer serves all layers.

    Returns:
        [B, T, D].
    """
    batch, length, dim = hidden.shape
    split = (batch, length, attention.num_heads, attention.head_dim)
    # The gates of a query, from the query's own features before projection (equation 3 of the paper).
    gates = attention.gru_rel_pos_linear(hidden.view(split).transpose(1, 2))  # [B, heads, T, 8]
    gate_a, gate_b = gates.unflatten(-1, (2, 4)).sum(-1).sigmoid().chunk(2, dim=-1)  # [B, heads, T, 1] each
    gate = gate_a * (gate_b * attention.gru_rel_pos_const - 1.0) + 2.0
    torch.addcmul(no_key, gate, position_bias, out=mask)
    query, key, value = (
        projection(hidden).view(split).transpose(1, 2)
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    return attention.out_proj(attended.transpose(1, 2).reshape(batch, length, dim))  # type: ignore[no-any-return]
