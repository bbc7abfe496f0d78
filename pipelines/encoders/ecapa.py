"""ECAPA-TDNN (Desplanques et al., 2020, "ECAPA-TDNN: Emphasized Channel Attention, Propagation and Aggregation in TDNN Based
Speaker Verification"), SpeechBrain's on VoxCeleb.

80 log mel bands as in ``fbank.py``; one convolution over time, three SE-Res2Net blocks, one layer over what all three give, mean
and standard deviation over time weighted by an attention of each channel, one linear layer. One vector per clip, so T is 1. It
is what upstream's ``encode_batch`` gives with its default ``normalize=False``. SpeechBrain's classes are used for the features
and to hold the checkpoint; no hyperparameter YAML of the Hub is read, since that format runs code.

What breaks the promise of ``base.py`` upstream, and the cure, besides what ``fbank.py`` tells of the features:

* Squeeze-and-excitation, the attention and its global statistics take a clip's frames to be its share of the longest clip's
  frames; here they are the clip's own.
* Every convolution pads by reflection at the end of the rectangle; here at each clip's own end.

The attention's first layer sees every frame beside the clip's mean and deviation, which are the same for all frames; their part
of the product is computed once per clip. The last batch normalisation is folded into the last linear layer (in float64).

Recordings above 60 s are windows side by side, whose vectors are averaged by length (``windows.py``). That is not the vector in
one piece: features are centred, gates opened and attention shared out within each window. With random weights, 150 s of one
Emo-DB speaker in three windows lie 0.007 of the vector's length from the vector in one piece (another speaker's recording 0.031;
``tests/real/test_long_recordings.py``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipelines.encoders.base import Encoder, PaddedRepresentation
from pipelines.encoders.catalogue import EncoderSpec
from pipelines.encoders.cpu_linear import pack_linears
from pipelines.encoders.fbank import HOP_SAMPLES, cpu_groups, own_frames
from pipelines.encoders.random_weights import initialise
from pipelines.encoders.state_check import check_state, pretrained_info, random_info
from pipelines.encoders.torchaudio_guard import ensure_torchaudio_importable
from pipelines.encoders.weights import (
    Progress,
    WeightsInfo,
    find_file,
    load_pickle_free,
    random_initialisation,
)

__all__ = ["ECAPAEncoder"]

_MEL_BANDS = 80
_RANDOM_FEATURE_POWER = 400.0
"""Mean square of the features of speech in dB^2, roughly. The first batch normalisation of random weights divides by it, as that
of trained ones does; without, the gates of squeeze-and-excitation would be all open or shut, and magnify float32's rounding."""
_VARIANCE_FLOOR = 1e-12  # upstream's AttentiveStatisticsPooling.eps


class ECAPAEncoder(Encoder):
    """SpeechBrain's ECAPA-TDNN: one embedding per clip."""

    def __init__(
        self, *, spec: EncoderSpec, weights: WeightsInfo, device: torch.device, features: Any, network: Any
    ) -> None:
        super().__init__(spec=spec, weights=weights, device=device)
        self.features = features
        self._network = _Network(network).to(device).eval().requires_grad_(False)
        pack_linears(self._network)
        # Reflection needs more frames than it mirrors; a clip of L samples has 1 + L // hop.
        margins = [module.margin for module in self._network.modules() if isinstance(module, _TDNN)]
        self.min_samples = max(margins) * HOP_SAMPLES

    @classmethod
    def build(
        cls,
        *,
        spec: EncoderSpec,
        weights_kind: str,
        device: torch.device,
        weights_dir: Path | None = None,
        progress: Progress | None = None,
    ) -> ECAPAEncoder:
        """Load (``pretrained``) or initialise (``random``) the network.

        Raises:
            WeightsError: the checkpoint is absent, damaged, or of another architecture.
        """
        ensure_torchaudio_importable()
        from speechbrain.lobes.features import Fbank
        from speechbrain.lobes.models.ECAPA_TDNN import ECAPA_TDNN

        def empty() -> Any:
            return ECAPA_TDNN(input_size=_MEL_BANDS, lin_neurons=spec.dim, **spec.settings)

        if weights_kind == "random":
            with random_initialisation(spec):
                network = empty()
                initialise(network)
                network.blocks[0].norm.norm.running_var.fill_(_RANDOM_FEATURE_POWER)
            weights = random_info(spec, network.state_dict())
        else:
            path = find_file(spec, spec.files[0], weights_dir=weights_dir, progress=progress)
            with torch.device("meta"):  # shapes only: torch's random state is not touched
                network = empty()
            state = check_state(load_pickle_free(path), network.state_dict(), path=path, spec=spec)
            network.load_state_dict(state, assign=True)
            weights = pretrained_info(spec, [path], state)
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
        return self._network(frames, lengths, valid)  # type: ignore[no-any-return]


class _Network(nn.Module):
    """The parameters of speechbrain's ``ECAPA_TDNN``; frames are [B, T, C], their numbers [B], valid [B, T, 1] is 1 or 0."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        first, *blocks = network.blocks
        self.first = _TDNN(first)
        self.blocks = nn.ModuleList(_SERes2Net(block) for block in blocks)
        self.aggregation = _TDNN(network.mfa)
        self.pooling = _Pooling(network.asp)
        scale, shift = (tensor.double() for tensor in _scale_and_shift(network.asp_bn))
        weight = network.fc.conv.weight[..., 0].double()
        self.output = _linear(weight * scale, network.fc.conv.bias.double() + weight @ shift)

    def forward(self, frames: Tensor, lengths: Tensor, valid: Tensor) -> Tensor:
        """Embeddings [B, D]."""
        frames = self.first(frames, lengths)
        outputs = []
        for block in self.blocks:
            frames = block(frames, lengths, valid)
            outputs.append(frames)
        frames = self.aggregation(torch.cat(outputs, dim=2), lengths)
        return self.output(self.pooling(frames, lengths, valid))  # type: ignore[no-any-return]


class _TDNN(nn.Module):
    """Convolution over time, ReLU, batch normalisation; a linear layer where the kernel is one frame wide."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        convolution = block.conv.conv
        (kernel,), (self.dilation,) = convolution.kernel_size, convolution.dilation
        self.margin: int = self.dilation * (kernel - 1) // 2
        if self.margin:
            # Laid out as torch's channels-last images of height 1, which is what [B, T, C] is.
            weight = convolution.weight.detach().permute(0, 2, 1).contiguous().permute(0, 2, 1)
            self.register_buffer("weight", weight[:, :, None])
            self.register_buffer("bias", convolution.bias.detach())
        else:
            self.linear = _linear(convolution.weight[..., 0], convolution.bias)
        scale, shift = _scale_and_shift(block.norm)
        self.register_buffer("scale", scale)
        self.register_buffer("shift", shift)

    def forward(self, frames: Tensor, lengths: Tensor) -> Tensor:
        if self.margin:
            image = _reflect(frames, lengths, self.margin).transpose(1, 2)[:, :, None]  # [B, C, 1, T + 2 margin]
            image = F.conv2d(image, self.get_buffer("weight"), self.get_buffer("bias"), dilation=(1, self.dilation))
            frames = image[:, :, 0].transpose(1, 2)
        else:
            frames = self.linear(frames)
        return torch.addcmul(self.get_buffer("shift"), frames.relu_(), self.get_buffer("scale"))


class _SERes2Net(nn.Module):
    """Layer, Res2Net, layer, squeeze-and-excitation, added to the input."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.before = _TDNN(block.tdnn1)
        self.chain = nn.ModuleList(_TDNN(inner) for inner in block.res2net_block.blocks)
        self.after = _TDNN(block.tdnn2)
        self.squeeze = _linear(block.se_block.conv1.conv.weight[..., 0], block.se_block.conv1.conv.bias)
        self.excite = _linear(block.se_block.conv2.conv.weight[..., 0], block.se_block.conv2.conv.bias)
        self.shortcut: nn.Module = nn.Identity()
        if block.shortcut is not None:
            self.shortcut = _linear(block.shortcut.conv.weight[..., 0], block.shortcut.conv.bias)

    def forward(self, frames: Tensor, lengths: Tensor, valid: Tensor) -> Tensor:
        residual = self.shortcut(frames)
        part, *others = self.before(frames, lengths).chunk(len(self.chain) + 1, dim=2)
        parts = [part]
        for index, (layer, other) in enumerate(zip(self.chain, others, strict=True)):
            part = layer(other + part if index else other, lengths)
            parts.append(part)
        frames = self.after(torch.cat(parts, dim=2), lengths)
        mean = (valid.transpose(1, 2) @ frames)[:, 0] / lengths[:, None]  # [B, C]
        gate = self.excite(self.squeeze(mean).relu_()).sigmoid_()
        return torch.addcmul(residual, frames, gate[:, None])


class _Pooling(nn.Module):
    """Mean and standard deviation over time, [B, 2 C], weighted by an attention of each channel."""

    def __init__(self, pooling: Any) -> None:
        super().__init__()
        convolution = pooling.tdnn.conv.conv
        channels = convolution.in_channels // 3
        # The layer sees each frame, then the clip's mean, then its deviation.
        weight = convolution.weight[..., 0]
        self.of_frames = _linear(weight[:, :channels], None)
        self.of_clip = _linear(weight[:, channels:], convolution.bias)
        scale, shift = _scale_and_shift(pooling.tdnn.norm)
        self.register_buffer("scale", scale)
        self.register_buffer("shift", shift)
        self.attention = _linear(pooling.conv.conv.weight[..., 0], pooling.conv.conv.bias)

    def forward(self, frames: Tensor, lengths: Tensor, valid: Tensor) -> Tensor:
        whole = torch.cat(_statistics(frames, valid / lengths[:, None, None]), dim=1)  # [B, 2 C]
        hidden = (self.of_frames(frames) + self.of_clip(whole)[:, None]).relu_()  # [B, T, attention channels]
        hidden = torch.addcmul(self.get_buffer("shift"), hidden, self.get_buffer("scale")).tanh_()
        scores = self.attention(hidden).masked_fill_(valid == 0, -torch.inf)  # [B, T, C]
        return torch.cat(_statistics(frames, scores.softmax(1)), dim=1)


def _statistics(frames: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation over time, [B, C] each; ``weights`` [B, T, C or 1] sum to 1 over time."""
    mean = (frames * weights).sum(1)
    variance = ((frames - mean[:, None]).square_() * weights).sum(1)
    return mean, variance.clamp_min(_VARIANCE_FLOOR).sqrt()


def _reflect(frames: Tensor, lengths: Tensor, margin: int) -> Tensor:
    """Frames [B, T, C] with each clip mirrored about its own first and last frame, [B, T + 2 margin, C].

    ``padding.reflect_at_own_end`` with the channels innermost.
    """
    batch, length, channels = frames.shape
    padded = frames.new_zeros(batch, length + 2 * margin, channels)
    padded[:, margin : margin + length] = frames
    padded[:, :margin] = frames[:, 1 : margin + 1].flip(1)
    steps = torch.arange(margin, device=lengths.device)
    last = lengths[:, None] - 1  # [B, 1]
    mirrored = frames.gather(1, (last - 1 - steps)[..., None].expand(-1, -1, channels))  # [B, margin, C]
    return padded.scatter_(1, (last + margin + 1 + steps)[..., None].expand(-1, -1, channels), mirrored)


def _scale_and_shift(normalisation: Any) -> tuple[Tensor, Tensor]:
    """A frozen batch normalisation as x * scale + shift."""
    norm = normalisation.norm
    scale = norm.weight.double() * (norm.running_var.double() + norm.eps).rsqrt()
    return scale.float().detach(), (norm.bias.double() - norm.running_mean.double() * scale).float().detach()


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A linear layer with these parameters, in float32."""
    outputs, inputs = weight.shape
    linear = nn.Linear(inputs, outputs, bias=bias is not None, device="meta")
    state = {"weight": weight.detach().float().contiguous()}
    if bias is not None:
        state["bias"] = bias.detach().float()
    linear.load_state_dict(state, assign=True)
    return linear
