"""Whisper's encoder (Radford et al., 2022, "Robust Speech Recognition via Large-Scale Weak Supervision").

``layer_00`` is the input of the first transformer layer and ``layer_NN`` the output of layer NN, transformers'
``hidden_states``: the last one has passed the final layer normalisation and the inner ones have not. One frame per 320 samples.

Whisper knows recordings of 30 s only: a shorter one is padded with zeros, and every frame attends to all 1500 frames, those of
the padding included. So it is trained, so upstream runs it, and so it is here: the padding does not depend on the batch, which
makes batched equal alone by itself. Handed out are the first ceil(samples / 320) frames. It also means that a clip of 2 s costs
as much as one of 30; only the last layer leaves out what nobody will see.

The features are those of ``WhisperFeatureExtractor``, 80 log mel bands clipped 8 below the largest value of the 30 s; they are
computed for the batch at once, and only as far as there is sound.

Recordings above 30 s are beyond upstream's encoder. ``windows.py`` takes them as windows of 30 s, every frame at least 2 s from
its window's edges. Every frame then sees its own window, and its place in it, not the recording.

With ``precision="bf16"`` the matrix products and the attention of the transformer layers are in bfloat16; features,
convolutions, normalisations and the sums between layers stay in float32. Eight Emo-DB recordings, random weights: means over
time differ from those in float32 by up to 0.45 % of their length. On a CPU with bfloat16 instructions that is only 1.2 times as
fast: attention over 1500 frames takes most of the time, and torch's is no faster in bfloat16.
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
from pipelines.encoders.config_check import check_config
from pipelines.encoders.cpu_linear import PackedLinear, can_pack, pack_linears
from pipelines.encoders.padding import extended_length, pad_batch
from pipelines.encoders.random_weights import initialise
from pipelines.encoders.state_check import check_state, checkpoint_info, random_info
from pipelines.encoders.torchaudio_guard import ensure_torchaudio_importable
from pipelines.encoders.weights import (
    Progress,
    WeightsInfo,
    find_checkpoint,
    load_pickle_free,
    random_initialisation,
)
from pipelines.errors import AudioError

__all__ = ["LogMel", "WhisperEncoder"]

_HOP = 320
_LONGEST_SAMPLES = 480_000
_FRAMES = _LONGEST_SAMPLES // _HOP
_MEL_BANDS, _MEL_FFT, _MEL_HOP = 80, 400, 160
_CPU_CLIPS_PER_PASS, _CUDA_CLIPS_PER_PASS = 1, 64
"""The largest feature map takes 12 MiB per clip in whisper-base, what is kept of a clip between layers 3 MiB."""


class LogMel(nn.Module):
    """The features of ``WhisperFeatureExtractor`` for a batch, [B, 80, 3000]."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import WhisperFeatureExtractor

        extractor: Any = WhisperFeatureExtractor  # transformers' constructors have no types
        filters = torch.from_numpy(extractor().mel_filters).float()  # [bins, bands]
        self.register_buffer("filters", filters.T.contiguous())
        self.register_buffer("window", torch.hann_window(_MEL_FFT))

    def forward(self, waveforms: Tensor) -> Tensor:
        """Features of clips [B, L], L at most 30 s, each followed by zeros.

        The frame t sees the samples from 160 t - 200 to 160 t + 200; those that see no clip of the batch are not computed.
        """
        total = _LONGEST_SAMPLES // _MEL_HOP
        reach = _MEL_FFT // 2
        frames = min(total, (waveforms.shape[1] + reach - 1) // _MEL_HOP + 1)
        # Mirrored at its end like the 30 s, if it is as long; else what is mirrored lies behind the frames kept.
        samples = min(_LONGEST_SAMPLES, frames * _MEL_HOP + reach)
        waveforms = F.pad(waveforms, (0, samples - waveforms.shape[1]))
        spectra = torch.stft(waveforms, _MEL_FFT, _MEL_HOP, window=self.get_buffer("window"), return_complex=True)
        power = torch.view_as_real(spectra[..., :frames]).square().sum(-1)  # [B, bins, frames]
        energy = F.pad(self.get_buffer("filters") @ power, (0, total - frames))  # [B, 80, 3000]
        log_mel = energy.clamp_min_(1e-10).log10_()
        floor = log_mel.amax(dim=(1, 2), keepdim=True) - 8.0
        return (torch.maximum(log_mel, floor) + 4.0) / 4.0


class WhisperEncoder(Encoder):
    """The encoder of a Whisper of 80 mel bands; one frame every 320 samples."""

    longest_s = 30.0
    context_s = 2.0

    def __init__(
        self, *, spec: EncoderSpec, weights: WeightsInfo, device: torch.device, model: Any, precision: str = "float32"
    ) -> None:
        super().__init__(spec=spec, weights=weights, device=device, precision=precision)
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        self.log_mel = LogMel().to(device)
        model = model.eval().requires_grad_(False).to(device)
        self._convolutions = (model.conv1, model.conv2)
        self._positions = model.embed_positions.weight  # [1500, D]
        self._layers = [_Layer(layer, dtype) for layer in model.layers]
        self._last_norm = model.layer_norm

    @classmethod
    def build(
        cls,
        *,
        spec: EncoderSpec,
        weights_kind: str,
        device: torch.device,
        weights_dir: Path | None = None,
        progress: Progress | None = None,
        precision: str = "float32",
    ) -> WhisperEncoder:
        """Load (``pretrained``) or initialise (``random``) the encoder.

        A checkpoint is one of ``WhisperForConditionalGeneration`` or ``WhisperModel``; its decoder is not used.

        Raises:
            WeightsError: the checkpoint is absent, damaged, of another size, or does not hold every parameter of the encoder.
        """
        ensure_torchaudio_importable()
        if weights_kind == "random":
            with random_initialisation(spec):
                model = _empty_model(spec)
                initialise(model)
            weights = random_info(spec, model.state_dict())
        else:
            folder, revision = find_checkpoint(spec, weights_dir=weights_dir, progress=progress)
            _check_settings(spec, folder)
            with torch.device("meta"):  # shapes only: torch's random state is not touched
                model = _empty_model(spec)
            state = _read_encoder(spec, folder, model.state_dict())
            model.load_state_dict(state, assign=True)
            weights = checkpoint_info(spec, folder, revision, state)
        return cls(spec=spec, weights=weights, device=device, model=model, precision=precision)

    def num_frames(self, num_samples: int) -> int:
        """ceil(samples / 320), at least 1."""
        return extended_length(num_samples, multiple_of=_HOP) // _HOP

    @torch.inference_mode()
    def encode_padded(self, batch: Sequence[Tensor]) -> Iterator[PaddedRepresentation]:
        """See :meth:`Encoder.encode_padded`.

        Raises:
            AudioError: a clip is longer than 30 s; such recordings are cut into windows first, ``windows.plan_windows``.
        """
        waveforms, passes = self._passes(batch)
        num_frames = torch.tensor([self.num_frames(len(clip)) for clip in batch]).to(self.device)
        longest = self.num_frames(waveforms.shape[1])
        hidden = torch.cat([self._embed(waveforms[clips]) for clips in passes])  # [B, 1500, D]
        for index, name in enumerate(self.spec.representations):
            if index:
                last = index == len(self._layers)
                layer, kept = self._layers[index - 1], longest if last else _FRAMES
                hidden = torch.cat([layer(hidden[clips], kept) for clips in passes])
                if last:
                    hidden = self._last_norm(hidden)
            yield PaddedRepresentation(name=name, frames=hidden[:, :longest], num_frames=num_frames)

    @torch.inference_mode()
    def encode_whole(self, batch: Sequence[Tensor]) -> Tensor:
        """The last layer's frames of all 30 s, the padding's included: what Whisper's decoder attends to.

        Args:
            batch: B clips of at most 30 s, float32 [samples], on the CPU.

        Returns:
            float32 [B, 1500, D], on the device.

        Raises:
            AudioError: a clip is longer than 30 s.
        """
        waveforms, passes = self._passes(batch)
        hidden = torch.cat([self._embed(waveforms[clips]) for clips in passes])
        for layer in self._layers:
            hidden = torch.cat([layer(hidden[clips], _FRAMES) for clips in passes])
        return self._last_norm(hidden)  # type: ignore[no-any-return]

    def _passes(self, batch: Sequence[Tensor]) -> tuple[Tensor, list[slice]]:
        """Clips as a rectangle [B, L], and which of them go through the network together."""
        waveforms, _ = pad_batch(batch, device=self.device)
        if waveforms.shape[1] > _LONGEST_SAMPLES:
            raise AudioError(
                f"A clip of {waveforms.shape[1] / self.spec.sample_rate_hz:.1f} s was given to {self.spec.name!r}, which takes at"
                f" most {self.longest_s:.0f} s at a time. Cut it into windows with pipelines.encoders.windows.plan_windows."
            )
        size = _CPU_CLIPS_PER_PASS if self.device.type == "cpu" else _CUDA_CLIPS_PER_PASS
        return waveforms, [slice(start, start + size) for start in range(0, len(batch), size)]

    def _embed(self, waveforms: Tensor) -> Tensor:
        """Input of the first layer, [B, 1500, D]."""
        maps = self.log_mel(waveforms)  # [B, 80, 3000]
        for convolution in self._convolutions:
            maps = F.gelu(convolution(maps))
        return maps.transpose(1, 2) + self._positions  # type: ignore[no-any-return]


class _Layer(nn.Module):
    """A layer of transformers' ``WhisperEncoder``, with the matrix products in ``dtype``."""

    def __init__(self, layer: Any, dtype: torch.dtype) -> None:
        super().__init__()
        attention = layer.self_attn
        self.heads: int = attention.num_heads
        self.dtype = dtype
        self.attention_norm, self.norm = layer.self_attn_layer_norm, layer.final_layer_norm
        self.products = nn.ModuleDict(
            {
                "query": attention.q_proj,
                "key": attention.k_proj,
                "value": attention.v_proj,
                "out": attention.out_proj,
                "widen": layer.fc1,
                "narrow": layer.fc2,
            }
        ).to(dtype)
        self.activation: nn.Module = nn.GELU()
        if can_pack(self.products):
            self.products["widen"] = PackedLinear(layer.fc1, gelu=True)
            self.activation = nn.Identity()
            pack_linears(self.products)

    def forward(self, hidden: Tensor, kept: int) -> Tensor:
        """[B, 1500, D] to the first ``kept`` frames of the output."""
        frames = self.attention_norm(hidden).to(self.dtype)
        query, key, value = (
            self.products[name](part).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [B, heads, T, D / heads]
            for name, part in (("query", frames[:, :kept]), ("key", frames), ("value", frames))
        )
        attended = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        hidden = hidden[:, :kept] + self.products["out"](attended)
        inner = self.activation(self.products["widen"](self.norm(hidden).to(self.dtype)))
        return hidden + self.products["narrow"](inner)  # type: ignore[no-any-return]


def _empty_model(spec: EncoderSpec) -> Any:
    """transformers' ``WhisperEncoder`` in the size of the entry, initialised by transformers."""
    from transformers import WhisperConfig
    from transformers.models.whisper.modeling_whisper import WhisperEncoder as Model

    return Model(WhisperConfig(**_sizes(spec)))


def _sizes(spec: EncoderSpec) -> dict[str, Any]:
    """What makes the network, by the names of ``WhisperConfig``."""
    return {
        "d_model": spec.dim,
        "encoder_layers": len(spec.representations) - 1,
        "num_mel_bins": _MEL_BANDS,
        "max_source_positions": _FRAMES,
        "activation_function": "gelu",
        **spec.settings,
    }


def _check_settings(spec: EncoderSpec, folder: Path) -> None:
    """Compare both JSON files with the entry before a large file is read."""
    from transformers import WhisperConfig

    expected = {"model_type": "whisper", **_sizes(spec)}
    check_config(spec, folder / "config.json", expected, WhisperConfig().to_dict())
    features = {
        "feature_size": _MEL_BANDS,
        "sampling_rate": spec.sample_rate_hz,
        "n_fft": _MEL_FFT,
        "hop_length": _MEL_HOP,
        "chunk_length": _LONGEST_SAMPLES // spec.sample_rate_hz,
        "padding_value": 0.0,
        "dither": 0.0,
    }
    check_config(spec, folder / "preprocessor_config.json", features, features)


def _read_encoder(spec: EncoderSpec, folder: Path, expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """The encoder's parameters under the names of ``WhisperEncoder``, checked, in float32.

    Names begin with ``model.`` in a whole Whisper and without it in a ``WhisperModel``.
    """
    path = next(folder / name for name in spec.files[-1].name.split("|") if (folder / name).is_file())
    state: dict[str, object] = {}
    for name, tensor in load_pickle_free(path).items():
        part, _, rest = name.removeprefix("model.").partition(".")
        if part == "encoder":
            state[rest] = tensor
        elif part not in {"decoder", "proj_out"}:
            state[name] = tensor  # not Whisper's: refused below
    return {name: tensor.float() for name, tensor in check_state(state, expected, path=path, spec=spec).items()}
