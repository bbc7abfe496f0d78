"""x-vector (Snyder et al., 2018, "X-vectors: Robust DNN Embeddings for Speaker Recognition"), SpeechBrain's on VoxCeleb.

24 log mel bands (25 ms windows every 10 ms, clipped 80 dB below the clip's loudest band), minus their mean over the clip;
five dilated convolutions over time, each followed by LeakyReLU and batch normalisation; mean and standard deviation over time;
one linear layer. One vector per clip, so T is 1. SpeechBrain's classes are used for the features and to hold the
checkpoint; no hyperparameter YAML of the Hub is read, since that format runs code.

What breaks the promise of ``base.py`` upstream, and the cure, besides what ``fbank.py`` tells of the features:

* ``StatisticsPooling`` adds random noise to the mean: between 1e-5 and 9e-5, symmetric about 5e-5, drawn anew in every call
  and rescaled by what else is in the batch. Here it is the constant 5e-5, its mean.
* Every convolution pads by reflection at the end of the rectangle; here at each clip's own end.

Batch normalisation of a frozen network is a scaling, and reflection only copies: it is folded into the next layer's weights
(in float64), and the last one is applied to the mean and standard deviation.

Recordings above 60 s are windows side by side, whose vectors are averaged by length (``windows.py``). That is not the vector in
one piece: features are centred within each window, and a mean of standard deviations is not that of the whole. With random
weights, 150 s of one Emo-DB speaker in three windows lie 0.005 of the vector's length from the vector in one piece (another
speaker's recording 0.045; ``tests/real/test_long_recordings.py``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipelines.encoders.base import Encoder, PaddedRepresentation
from pipelines.encoders.catalogue import EncoderSpec
from pipelines.encoders.cpu_linear import pack_linears
from pipelines.encoders.fbank import HOP_SAMPLES, cpu_groups, own_frames
from pipelines.encoders.padding import reflect_at_own_end
from pipelines.encoders.state_check import check_state, pretrained_info, random_info
from pipelines.encoders.torchaudio_guard import ensure_torchaudio_importable
from pipelines.encoders.weights import (
    Progress,
    WeightsInfo,
    find_file,
    load_pickle_free,
    random_initialisation,
)

__all__ = ["NOISE_MEAN", "XVectorEncoder"]

NOISE_MEAN = 5e-5
"""Mean of the noise of upstream's StatisticsPooling: 1e-5 * (9 - 8 u) with u in [0, 1] symmetric about 1/2."""

_MEL_BANDS = 24


class XVectorEncoder(Encoder):
    """SpeechBrain's x-vector: one embedding per clip."""

    def __init__(
        self, *, spec: EncoderSpec, weights: WeightsInfo, device: torch.device, features: Any, network: Any
    ) -> None:
        super().__init__(spec=spec, weights=weights, device=device)
        self.features = features
        layers, scale, shift = _fold_batch_norms(network)
        self.layers = nn.ModuleList(layers).to(device)
        pack_linears(self.layers)
        self.scale, self.shift = scale.to(device), shift.to(device)
        pooling, self.output = network.blocks[-2], network.blocks[-1].w.to(device)
        self.std_floor: float = pooling.eps
        # Reflection needs more frames than it mirrors; a clip of L samples has 1 + L // hop.
        self.min_samples = max(layer.margin for layer in layers) * HOP_SAMPLES

    @classmethod
    def build(
        cls,
        *,
        spec: EncoderSpec,
        weights_kind: str,
        device: torch.device,
        weights_dir: Path | None,
        progress: Progress | None,
    ) -> XVectorEncoder:
        """Load (``pretrained``) or initialise (``random``) the network.

        Raises:
            WeightsError: the checkpoint is absent, damaged, or of another architecture.
        """
        ensure_torchaudio_importable()
        from speechbrain.lobes.features import Fbank
        from speechbrain.lobes.models.Xvector import Xvector

        with random_initialisation(spec):
            network = Xvector(in_channels=_MEL_BANDS, lin_neurons=spec.dim, **spec.settings)
        if weights_kind == "random":
            weights = random_info(spec, network.state_dict())
        else:
            path = find_file(spec, spec.files[0], weights_dir=weights_dir, progress=progress)
            state = check_state(load_pickle_free(path), network.state_dict(), path=path, spec=spec)
            network.load_state_dict(state)
            weights = pretrained_info(spec, [path], state)
        network.eval().requires_grad_(False)
        return cls(spec=spec, weights=weights, device=device, features=Fbank(n_mels=_MEL_BANDS), network=network)

    def num_frames(self, num_samples: int) -> int:
        """1: the embedding is of the whole clip."""
        return 1

    @torch.inference_mode()
    def encode_padded(self, batch: Sequence[Tensor]) -> Iterator[PaddedRepresentation]:
        """See :meth:`Encoder.encode_padded`."""
        groups = cpu_groups(batch) if self.device.type == "cpu" else [batch]
        embeddings = torch.cat([self._embed(group) for group in groups])  # [B, D]
        ones = torch.ones(len(batch), dtype=torch.int64, device=self.device)
        yield PaddedRepresentation(name="embedding", frames=embeddings[:, None], num_frames=ones)

    def _embed(self, batch: Sequence[Tensor]) -> Tensor:
        """[B, D]."""
        frames, lengths, valid = own_frames(
            self.features, batch, min_samples=self.min_samples, device=self.device
        )  # [B, T, mel bands]
        count = lengths[:, None]
        for layer in self.layers:
            frames = layer(frames, lengths)  # [B, T, C]
        weights = valid.transpose(1, 2)  # [B, 1, T]
        mean = (weights @ frames)[:, 0] / count  # [B, C]
        variance = (weights @ (frames - mean[:, None]).square_())[:, 0] / (count - 1)
        mean = mean * self.scale + self.shift + NOISE_MEAN
        std = variance.sqrt() * self.scale.abs() + self.std_floor
        return self.output(torch.cat([mean, std], dim=1))  # type: ignore[no-any-return]


class _Layer(nn.Module):
    """One convolution over time and its activation; a linear layer where the kernel is one frame wide."""

    def __init__(self, *, weight: Tensor, bias: Tensor, dilation: int, activation: nn.Module) -> None:
        super().__init__()
        outputs, inputs, kernel = weight.shape
        self.margin = dilation * (kernel - 1) // 2
        self.activation = activation
        if kernel == 1:
            weight = weight[..., 0]
            self.module: nn.Module = nn.Linear(inputs, outputs)
        else:
            self.module = nn.Conv1d(inputs, outputs, kernel, dilation=dilation)
        self.module.load_state_dict({"weight": weight, "bias": bias})
        self.module.requires_grad_(False)

    def forward(self, frames: Tensor, lengths: Tensor) -> Tensor:
        """[B, T, inputs] and frames per clip [B] to [B, T, outputs]."""
        if self.margin:
            padded = reflect_at_own_end(frames.transpose(1, 2), lengths, self.margin)
            frames = self.module(padded).transpose(1, 2)
        else:
            frames = self.module(frames)
        return self.activation(frames)  # type: ignore[no-any-return]


def _fold_batch_norms(network: Any) -> tuple[list[_Layer], Tensor, Tensor]:
    """The convolutions with each batch normalisation folded into the next one, and the last one's scale and shift."""
    layers = []
    scale, shift = torch.ones(_MEL_BANDS, dtype=torch.float64), torch.zeros(_MEL_BANDS, dtype=torch.float64)
    blocks = list(network.blocks)[:-2]  # without pooling and the output layer
    for convolution, activation, normalisation in zip(blocks[0::3], blocks[1::3], blocks[2::3], strict=True):
        kernel = convolution.conv.weight.double()  # [C, inputs, K]
        bias = convolution.conv.bias.double() + (kernel * shift[:, None]).sum((1, 2))
        weight = kernel * scale[:, None]
        layers.append(
            _Layer(weight=weight.float(), bias=bias.float(), dilation=convolution.dilation, activation=activation)
        )
        norm = normalisation.norm
        scale = norm.weight.double() * (norm.running_var.double() + norm.eps).rsqrt()
        shift = norm.bias.double() - norm.running_mean.double() * scale
    return layers, scale.float(), shift.float()
