"""The naive loop's encoder: one clip at a time through the upstream library, as its documentation shows.

This is what extraction is measured against (``pipelines.extraction.bench``), and a second opinion on shapes and numbers. Nothing
else uses it. Where the upstream library is not a dependency of hyfuse, the network is written down here with plain torch layers,
[B, C, T], straight from its paper or checkpoint; ``NaiveCall.kind`` says which. Weights are random whatever the encoder's own
are (the time is the same), and where both are built alike they are the same numbers as the encoder's random ones.

A clip is extended with zeros as the encoder would extend it, so that frames can be compared one by one.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipelines.encoders.base import Encoder
from pipelines.encoders.catalogue import TINY_SUFFIX, EncoderSpec
from pipelines.encoders.padding import extended_length
from pipelines.encoders.random_weights import gaussian_codebooks, initialise
from pipelines.encoders.torchaudio_guard import ensure_torchaudio_importable
from pipelines.encoders.weights import find_file, random_initialisation

__all__ = ["OWN_ENCODER", "NaiveCall", "naive_call"]

OWN_ENCODER = "own encoder, one clip at a time"
"""The kind for entries that have nothing better here."""


@dataclass(frozen=True)
class NaiveCall:
    """A way to encode one clip.

    Attributes:
        kind: whose code runs.
        encode: waveform, float32 [samples] on the CPU (for an encoder of text, token ids, int64 [T]), to frames [T, D] of every
            representation, in the order of the entry, on the encoder's device.
        same_weights: whether its weights are those of the encoder it was made for, so that numbers must agree.
    """

    kind: str
    encode: Callable[[Tensor], list[Tensor]]
    same_weights: bool = True


def naive_call(encoder: Encoder, *, weights_dir: Path | None = None) -> NaiveCall:
    """The naive call for an encoder's architecture, on the encoder's device, in float32.

    Args:
        encoder: the encoder to compare with.
        weights_dir: where the files of pretrained weights are looked for first. They are read for ``soundstream-lyra`` alone, and
            only if Google's TensorFlow Lite runtime (``ai-edge-litert``) is installed: it runs nothing else.
    """
    name = encoder.spec.name.removesuffix(TINY_SUFFIX)
    pretrained = encoder.weights.kind == "pretrained"
    if encoder.spec.takes_text:
        return replace(_bert_like(encoder.spec, encoder.device), same_weights=not pretrained)
    if name == "soundstream-lyra" and pretrained and find_spec("ai_edge_litert"):
        return _lyra_runtime(encoder.spec, weights_dir)
    build = _wav2vec2_like if "model_type" in encoder.spec.settings else _BUILDERS.get(name)
    if build is None or (name == "snac" and not find_spec("snac")):
        return NaiveCall(OWN_ENCODER, _alone(encoder))
    call = build(encoder.spec, encoder.device)

    def extended(clip: Tensor) -> list[Tensor]:
        with torch.inference_mode():
            return call.encode(F.pad(clip, (0, max(0, encoder.min_samples - clip.numel()))))

    return replace(call, encode=extended, same_weights=call.same_weights and not pretrained)


def _alone(encoder: Encoder) -> Callable[[Tensor], list[Tensor]]:
    def encode(clip: Tensor) -> list[Tensor]:
        with torch.inference_mode():
            return [part.frames[0, : int(part.num_frames[0])] for part in encoder.encode_padded([clip])]

    return encode


def _whole_frames(clip: Tensor, spec: EncoderSpec) -> Tensor:
    """The clip as a batch of one, zero-extended to whole hops: [1, 1, samples]."""
    samples = extended_length(clip.numel(), multiple_of=spec.hop_samples)
    return F.pad(clip, (0, samples - clip.numel()))[None, None]


def _settings(spec: EncoderSpec) -> dict[str, Any]:
    return dict(spec.settings)


# ------------------------------------------------------------------------------------------------ transformers


def _wav2vec2_like(spec: EncoderSpec, device: torch.device) -> NaiveCall:
    """Feature extractor and model of one of transformers' wav2vec2-like architectures."""
    ensure_torchaudio_importable()
    transformers: Any = import_module("transformers")
    settings = _settings(spec)
    extractor = transformers.Wav2Vec2FeatureExtractor(do_normalize=settings.pop("do_normalize"))
    config_class = transformers.CONFIG_MAPPING[settings["model_type"]]
    with random_initialisation(spec):
        # Without the vector for masked frames, as in ssl_loading.py: it is used in training only.
        config = config_class(**settings, mask_time_prob=0.0, mask_feature_prob=0.0)
        model = transformers.MODEL_MAPPING[config_class](config)
    model.eval().requires_grad_(False).to(device)

    def encode(clip: Tensor) -> list[Tensor]:
        inputs = extractor(clip.numpy(), sampling_rate=spec.sample_rate_hz, return_tensors="pt").input_values
        outputs = model(inputs.to(device), output_hidden_states=True)
        return [*(state[0] for state in outputs.hidden_states[:-1]), outputs.last_hidden_state[0]]

    return NaiveCall(f"transformers {type(model).__name__}", encode)


def _whisper(spec: EncoderSpec, device: torch.device) -> NaiveCall:
    """Feature extractor, and the encoder over 30 s, as transformers runs it; of its output the clip's own frames."""
    ensure_torchaudio_importable()
    transformers: Any = import_module("transformers")
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    extractor = transformers.WhisperFeatureExtractor()
    with random_initialisation(spec):
        layers = len(spec.representations) - 1
        model: Any = WhisperEncoder(
            transformers.WhisperConfig(d_model=spec.dim, encoder_layers=layers, **_settings(spec))
        )
        initialise(model)
    model.eval().requires_grad_(False).to(device)

    def encode(clip: Tensor) -> list[Tensor]:
        features = extractor(clip.numpy(), sampling_rate=spec.sample_rate_hz, return_tensors="pt").input_features
        outputs = model(features.to(device), output_hidden_states=True)
        frames = -(-clip.numel() // spec.hop_samples)
        return [state[0, :frames] for state in (*outputs.hidden_states[:-1], outputs.last_hidden_state)]

    return NaiveCall("transformers WhisperEncoder", encode)


def _bert_like(spec: EncoderSpec, device: torch.device) -> NaiveCall:
    """One of transformers' BERT-like models on the token ids of one text."""
    ensure_torchaudio_importable()
    transformers: Any = import_module("transformers")
    config_class = transformers.CONFIG_MAPPING[str(spec.settings["model_type"])]
    with random_initialisation(spec):
        config = config_class(hidden_size=spec.dim, num_hidden_layers=len(spec.representations) - 1, **_settings(spec))
        model = transformers.MODEL_MAPPING[config_class](config, add_pooling_layer=False)
    model.eval().requires_grad_(False).to(device)

    def encode(ids: Tensor) -> list[Tensor]:
        with torch.inference_mode():
            outputs = model(ids[None].to(device), output_hidden_states=True)
        return [state[0] for state in outputs.hidden_states]

    return NaiveCall(f"transformers {type(model).__name__}", encode)


def _dac(spec: EncoderSpec, device: torch.device) -> NaiveCall:
    ensure_torchaudio_importable()
    from transformers import DacConfig, DacModel

    with random_initialisation(spec):
        config = DacConfig(downsampling_ratios=[2, 4, 5, 8], sampling_rate=spec.sample_rate_hz, **_settings(spec))
        model: Any = DacModel(config)
    model.decoder = nn.Identity()
    model.eval().requires_grad_(False).to(device)
    latents = _outputs_of(model.encoder)

    def encode(clip: Tensor) -> list[Tensor]:
        quantized = model.encode(_whole_frames(clip, spec).to(device)).quantized_representation
        return [latents.pop()[0].T, quantized[0].T]

    return NaiveCall("transformers DacModel.encode", encode, same_weights=False)


def _mimi(spec: EncoderSpec, device: torch.device) -> NaiveCall:
    ensure_torchaudio_importable()
    from transformers import MimiConfig, MimiModel

    settings = _settings(spec)
    codebooks = settings.pop("codebooks")
    with random_initialisation(spec):
        model: Any = MimiModel(MimiConfig(hidden_size=spec.dim, upsample_groups=spec.dim, **settings))
    model.decoder = nn.Identity()
    model.eval().requires_grad_(False).to(device)
    # transformers 5 has moved it into the encoder.
    latents = _outputs_of(model.encoder.downsample if hasattr(model.encoder, "downsample") else model.downsample)

    def encode(clip: Tensor) -> list[Tensor]:
        codes = model.encode(_whole_frames(clip, spec).to(device), num_quantizers=codebooks).audio_codes
        return [latents.pop()[0].T, model.quantizer.decode(codes)[0].T]

    return NaiveCall("transformers MimiModel.encode", encode, same_weights=False)


def _outputs_of(module: nn.Module) -> list[Tensor]:
    """A list to which every output of a part of a model is added; saves running that part twice."""
    outputs: list[Tensor] = []
    module.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
    return outputs


# ------------------------------------------------------------------------------------------------- speechbrain


def _speaker_embedding(spec: EncoderSpec, device: torch.device, *, bands: int, network: Any) -> NaiveCall:
    """What speechbrain's EncoderClassifier does with one clip: features, normalisation, network."""
    from speechbrain.lobes.features import Fbank
    from speechbrain.processing.features import InputNormalization

    network.eval().requires_grad_(False).to(device)
    features, normalise = Fbank(n_mels=bands).to(device), InputNormalization(norm_type="sentence", std_norm=False)
    whole = torch.ones(1, device=device)

    def encode(clip: Tensor) -> list[Tensor]:
        return [network(normalise(features(clip[None].to(device)), whole), whole)[0]]

    return NaiveCall(f"speechbrain Fbank, InputNormalization, {type(network).__name__}", encode)


def _xvector(spec: EncoderSpec, device: torch.device) -> NaiveCall:
    ensure_torchaudio_importable()
    from speechbrain.lobes.models.Xvector import Xvector

    with random_initialisation(spec):
        network = Xvector(in_channels=24, lin_neurons=spec.dim, **spec.settings)
    return _speaker_embedding(spec, device, bands=24, network=network)


def _ecapa(spec: EncoderSpec, device: torch.device) -> NaiveCall:
    ensure_torchaudio_importable()
    from speechbrain.lobes.models.ECAPA_TDNN import ECAPA_TDNN

    with random_initialisation(spec):
        network: Any = ECAPA_TDNN(input_size=80, lin_neurons=spec.dim, **spec.settings)
        initialise(network)
        network.blocks[0].norm.norm.running_var.fill_(400.0)  # as ecapa.py, which says why
    return _speaker_embedding(spec, device, bands=80, network=network)


# ---------------------------------------------------------------------------------------- packages of codecs


def _encodec(spec: EncoderSpec, device: torch.device) -> NaiveCall:
    """The package's encoder and quantiser, as ``EncodecModel.encode`` runs them."""
    from pipelines.encoders.encodec import _build_model, _randomise

    with random_initialisation(spec):
        model = _build_model(spec)
        _randomise(model)
    model.requires_grad_(False).to(device)

    def encode(clip: Tensor) -> list[Tensor]:
        latent = model.encoder(_whole_frames(clip, spec).to(device))  # [1, D, T]
        codes = model.quantizer.encode(latent, model.frame_rate, model.bandwidth)
        return [latent[0].T, model.quantizer.decode(codes)[0].T]

    return NaiveCall("encodec EncodecModel: encoder, quantizer", encode)


def _snac(spec: EncoderSpec, device: torch.device) -> NaiveCall:
    """The package's encoder and quantiser, as ``SNAC.encode`` runs them."""
    with warnings.catch_warnings(), random_initialisation(spec):
        warnings.simplefilter("ignore")  # the older of torch's two weight normalisations
        model = import_module("snac").SNAC(
            sampling_rate=spec.sample_rate_hz,
            encoder_rates=[2, 4, 8, 8],
            decoder_dim=16,
            decoder_rates=[8, 8, 4, 2],
            attn_window_size=None,
            vq_strides=[4, 2, 1],
            **_settings(spec),
        )
    model.decoder = nn.Identity()
    model.eval().requires_grad_(False).to(device)

    def encode(clip: Tensor) -> list[Tensor]:
        latent = model.encoder(model.preprocess(clip[None, None].to(device)))
        quantized, _ = model.quantizer(latent)
        return [latent[0].T, quantized[0].T]

    return NaiveCall("snac SNAC: encoder, quantizer", encode, same_weights=False)


def _lyra_runtime(spec: EncoderSpec, weights_dir: Path | None) -> NaiveCall:
    """Google's own runtime, frame by frame, a fresh interpreter per clip (the graph keeps its context between calls)."""
    interpreter_class = import_module("ai_edge_litert.interpreter").Interpreter
    encoder_path, quantizer_path = (str(find_file(spec, file, weights_dir=weights_dir)) for file in spec.files)
    quantizer = interpreter_class(quantizer_path, num_threads=1)
    to_codes, to_frames = (quantizer.get_signature_runner(name) for name in ("encode", "decode"))

    def encode(clip: Tensor) -> list[Tensor]:
        interpreter = interpreter_class(encoder_path, num_threads=torch.get_num_threads())
        interpreter.allocate_tensors()
        into, out = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]
        latent = []
        for frame in _whole_frames(clip, spec).reshape(-1, 1, spec.hop_samples).numpy():
            interpreter.set_tensor(into, frame)
            interpreter.invoke()
            latent.append(interpreter.get_tensor(out)[0, 0])
        quantized = []
        for frame in latent:
            codes = to_codes(input_frames=frame[None, None], num_quantizers=np.int32(46))["output_0"]
            quantized.append(to_frames(encoding_indices=codes)["output_0"][0, 0])
        return [torch.from_numpy(np.stack(frames)) for frames in (latent, quantized)]

    return NaiveCall("TensorFlow Lite runtime (ai-edge-litert), frame by frame", encode)


# ----------------------------------------------------------------------------------------- plain torch networks


class _Causal(nn.Module):
    """A causal Conv1d over [B, C, T], mirrored or with zeros on the left."""

    def __init__(
        self,
        channels: int,
        after: int,
        kernel: int,
        *,
        mode: str,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv1d(channels, after, kernel, stride=stride, dilation=dilation, groups=groups, bias=bias)
        self.left = (kernel - 1) * dilation + 1 - stride
        self.mode = mode

    def forward(self, maps: Tensor) -> Tensor:
        padded = F.pad(maps, (self.left, 0), mode=self.mode) if self.left else maps
        return self.conv(padded)  # type: ignore[no-any-return]


class _Residual(nn.Module):
    """maps + body(maps)."""

    def __init__(self, *body: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(*body)

    def forward(self, maps: Tensor) -> Tensor:
        return maps + self.body(maps)  # type: ignore[no-any-return]


def _soundstream_network(channels: int, dim: int) -> nn.Sequential:
    """SoundStream's encoder (Zeghidour et al. 2021): ELU, strides 2, 4, 5, 5, everything mirrored on the left."""

    def causal(before: int, after: int, kernel: int, *, stride: int = 1, dilation: int = 1) -> _Causal:
        return _Causal(before, after, kernel, mode="reflect", stride=stride, dilation=dilation)

    layers: list[nn.Module] = [causal(1, channels, 7)]
    for stride in (2, 4, 5, 5):
        for dilation in (1, 3, 9):
            inner = causal(channels, channels, 7, dilation=dilation)
            layers.append(_Residual(inner, nn.ELU(), causal(channels, channels, 1), nn.ELU()))
        layers.append(causal(channels, 2 * channels, 2 * stride, stride=stride))
        channels *= 2
    return nn.Sequential(*layers, causal(channels, dim, 3))


def _lyra_network(channels: int, dim: int) -> nn.Sequential:
    """The encoder of Lyra v1.2.0: LeakyReLU of slope 0.3, depthwise and grouped convolutions, zeros on the left."""

    def causal(before: int, after: int, kernel: int, **options: Any) -> _Causal:
        return _Causal(before, after, kernel, mode="constant", **options)

    layers: list[nn.Module] = [causal(1, channels, 64, stride=16)]
    for groups, stride in ((1, 5), (2, 2), (4, 2)):
        width = channels * groups
        for dilation in (1, 3, 9):
            depthwise = causal(width, width, 3, dilation=dilation, groups=width, bias=False)
            pointwise, grouped = causal(width, width, 1), causal(width, width, 1, groups=groups)
            layers.append(_Residual(nn.LeakyReLU(0.3), depthwise, pointwise, nn.LeakyReLU(0.3), grouped))
        layers += [nn.LeakyReLU(0.3), causal(width, 2 * width, 2 * stride, stride=stride, groups=groups)]
    return nn.Sequential(*layers, nn.LeakyReLU(0.3), causal(8 * channels, dim, 3, groups=4))


def _quantize(latent: Tensor, codebooks: Sequence[Tensor]) -> Tensor:
    """Residual vector quantisation, one codebook [K, D] after the other, as the usual packages do it; [T, D]."""
    residual, quantized = latent, torch.zeros_like(latent)
    for codebook in codebooks:
        chosen = codebook[torch.cdist(residual, codebook).argmin(1)]
        residual, quantized = residual - chosen, quantized + chosen
    return quantized


def _plain_codec(
    spec: EncoderSpec,
    device: torch.device,
    build: Callable[[int, int], nn.Sequential],
    *,
    latent_scale: float,
    whole_frames: bool,
) -> NaiveCall:
    """Network and quantiser over one clip, which is extended to whole frames or not."""
    settings = _settings(spec)
    with random_initialisation(spec):
        network = build(settings["channels"], spec.dim)
        initialise(network)
        codebooks = gaussian_codebooks(
            count=settings["codebooks"], size=settings["codebook_size"], dim=spec.dim, scale=latent_scale
        )
    network.eval().requires_grad_(False).to(device)
    tables = list(codebooks.to(device))

    def encode(clip: Tensor) -> list[Tensor]:
        waveform = _whole_frames(clip, spec) if whole_frames else clip[None, None]
        latent: Tensor = network(waveform.to(device))[0].T
        return [latent, _quantize(latent, tables)]

    return NaiveCall("plain torch network of Conv1d", encode)


def _soundstream(spec: EncoderSpec, device: torch.device) -> NaiveCall:
    return _plain_codec(spec, device, _soundstream_network, latent_scale=100.0, whole_frames=False)


def _soundstream_lyra(spec: EncoderSpec, device: torch.device) -> NaiveCall:
    scale = float(_settings(spec)["random_latent_scale"])
    return _plain_codec(spec, device, _lyra_network, latent_scale=scale, whole_frames=True)


def _byols(spec: EncoderSpec, device: torch.device) -> NaiveCall:
    """serab-byols: torchaudio's mel spectrogram, its logarithm standardised, and the network of BYOL-A."""
    ensure_torchaudio_importable()
    from torchaudio.transforms import MelSpectrogram

    width, dim = _settings(spec)["channels"], spec.dim
    with random_initialisation(spec):
        stages: list[nn.Module] = []
        for channels in (1, width, width):
            stages += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2)]
        features = nn.Sequential(*stages)
        fc = nn.Sequential(nn.Linear(8 * width, dim), nn.ReLU(), nn.Dropout(0.3), nn.Linear(dim, dim), nn.ReLU())
        network = nn.ModuleList([features, fc])
        initialise(network)
    network.eval().requires_grad_(False).to(device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchaudio announces its own future
        mel = MelSpectrogram(spec.sample_rate_hz, 1024, 1024, 160, 60.0, 7800.0, n_mels=64).to(device)
    floor = torch.finfo(torch.float32).eps

    def encode(clip: Tensor) -> list[Tensor]:
        log_mel = (mel(clip.to(device)) + floor).log()  # [64, frames]
        log_mel = (log_mel - log_mel.mean()) / log_mel.std()
        maps = features(log_mel[None, None])  # [1, channels, 8, steps]
        steps = fc(maps.permute(0, 3, 2, 1).flatten(2))[0]  # [steps, D]
        return [(steps.mean(0) + steps.amax(0))[None]]

    return NaiveCall("torchaudio MelSpectrogram, plain torch network", encode)


_BUILDERS: dict[str, Callable[[EncoderSpec, torch.device], NaiveCall]] = {
    "whisper": _whisper,
    "xvector": _xvector,
    "ecapa": _ecapa,
    "byols": _byols,
    "encodec": _encodec,
    "soundstream": _soundstream,
    "soundstream-lyra": _soundstream_lyra,
    "dac": _dac,
    "snac": _snac,
    "mimi": _mimi,
}
"""Entries without ``model_type`` in their settings; that is what makes one wav2vec2-like."""
