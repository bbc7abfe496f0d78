"""What the wav2vec2-like encoders of transformers share: loading, waveform normalisation, convolutional front end.

The family (WavLM, HuBERT, wav2vec 2.0, XLS-R, UniSpeech-SAT, DistilHuBERT) is one network up to its transformer layers: a
stack of strided convolutions over the waveform (400 samples in, one frame every 320 samples), a projection, a positional
convolution. transformers names the parts of all of them alike, so these functions serve every class; a family module adds
only its own layer loop.

What breaks the promise of ``base.py`` in the upstream models, and the cure here:

* The checkpoints with ``feat_extract_norm="group"`` (all base sizes) normalise the output of the first convolution over
  *time*, padding included. Here its mean and variance are those of the clip's own frames. They are not read off the
  output: a convolution is linear, so they follow from the mean and covariance of the windows that go in (10 numbers and
  10 x 10 per clip, in float64), and the normalisation is folded into the convolution's weights.
* Waveform normalisation (``do_normalize`` of the checkpoint's ``preprocessor_config.json``) is over the clip's own samples.
* Frames beyond the clip are set to zero before the positional convolution, as its own padding is for a clip alone, and are
  no keys in any attention.

On the CPU the front end works through one clip after another, a second at a time: the first convolution makes 100 values of
every sample, and small pieces stay in the cache. Every frame sees the same samples either way.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipelines.encoders.catalogue import EncoderSpec
from pipelines.encoders.cpu_linear import PackedLinear, can_pack, pack_linears
from pipelines.encoders.padding import valid_mask
from pipelines.encoders.state_check import random_info
from pipelines.encoders.weights import (
    Progress,
    WeightsInfo,
    find_checkpoint,
    random_initialisation,
    state_digest,
)
from pipelines.errors import WeightsError

__all__ = [
    "LoadedModel",
    "embed_frames",
    "front_end",
    "load_model",
    "normalise_waveforms",
    "output_frames",
    "receptive_field",
]

_PIECE_FRAMES = 50
"""Frames per piece. Layers 2 to 7 for four clips of 10 s on one core: 1.72 s as a batch, 1.61 s clip by clip, 1.03 s in
pieces of 50 frames, 1.05 s in pieces of 100."""


@dataclass(frozen=True)
class LoadedModel:
    """A model of the family, ready to run.

    Attributes:
        model: on its device, frozen, in evaluation mode, weight normalisation folded in.
        weights: where the parameters came from.
        do_normalize: whether the checkpoint wants waveforms of zero mean and unit variance.
    """

    model: Any
    weights: WeightsInfo
    do_normalize: bool


def load_model(
    *,
    spec: EncoderSpec,
    weights_kind: str,
    device: torch.device,
    weights_dir: Path | None,
    progress: Progress | None,
    config_class: Any,
    model_class: Any,
) -> LoadedModel:
    """Load or initialise a model of the family.

    ``spec.settings`` are settings of ``config_class`` and ``do_normalize``; both are used for random weights only, a
    checkpoint brings its own. ``config_class`` and ``model_class`` are transformers'.

    Raises:
        WeightsError: the checkpoint is absent, damaged, of another architecture, or does not hold every parameter.
    """
    # The vector that stands in for masked frames is used in training only. It is not built, so that it is not missed where
    # a checkpoint has none, and has no part in the digest.
    without_masking = {"mask_time_prob": 0.0, "mask_feature_prob": 0.0}
    if weights_kind == "random":
        settings = dict(spec.settings)
        do_normalize = bool(settings.pop("do_normalize"))
        with random_initialisation(spec):
            model = model_class(config_class(**settings, **without_masking))
        weights = random_info(spec, model.state_dict())
    else:
        folder, revision = find_checkpoint(spec, weights_dir=weights_dir, progress=progress)
        _check_architecture(spec, folder, str(config_class.model_type))
        do_normalize = _read_do_normalize(spec, folder)
        model = _from_pretrained(spec, folder, model_class, without_masking)
        weights = WeightsInfo(
            kind="pretrained",
            source=str(folder) if revision == "unverified" else spec.repository,
            revision=revision,
            digest=state_digest(model.state_dict()),
            licence=spec.licence,
        )
    model.eval().requires_grad_(False).to(device)
    # Weight normalisation would be computed anew in every forward pass; its result never changes here.
    nn.utils.parametrize.remove_parametrizations(model.encoder.pos_conv_embed.conv, "weight")
    _pack(model)
    return LoadedModel(model, weights, do_normalize)


def _pack(model: Any) -> None:
    """Faster linear layers on the CPU, each feed-forward's GELU in one pass with the layer before it."""
    if can_pack(model) and model.config.hidden_act == "gelu":
        for layer in model.encoder.layers:
            layer.feed_forward.intermediate_dense = PackedLinear(layer.feed_forward.intermediate_dense, gelu=True)
            layer.feed_forward.intermediate_act_fn = nn.Identity()
    pack_linears(model)


def _read_json(spec: EncoderSpec, path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise WeightsError(
            f"{path} cannot be read ({error}). It belongs to the weights of {spec.name!r} and should be JSON; the file is"
            f" damaged or half-downloaded. Delete it and get it again from {spec.repository}."
        ) from error


def _check_architecture(spec: EncoderSpec, folder: Path, model_type: str) -> None:
    """Compare ``config.json`` with the catalogue before a large file is read."""
    config = _read_json(spec, folder / "config.json")
    found = (config.get("model_type"), config.get("num_hidden_layers"), config.get("hidden_size"))
    expected = (model_type, len(spec.representations) - 1, spec.dim)
    if found != expected:
        raise WeightsError(
            f"{folder} holds another model than {spec.name!r} needs: its config.json says model_type {found[0]!r} with"
            f" {found[1]} layers of {found[2]} features; expected {expected[0]!r} with {expected[1]} layers of {expected[2]}"
            f" features. Put the files of {spec.repository} (revision {spec.revision}) there, or choose the model that fits"
            f" with `hyfuse models list`."
        )


def _read_do_normalize(spec: EncoderSpec, folder: Path) -> bool:
    preprocessor = _read_json(spec, folder / "preprocessor_config.json")
    rate_hz = preprocessor.get("sampling_rate", spec.sample_rate_hz)
    if rate_hz != spec.sample_rate_hz:
        raise WeightsError(
            f"{folder / 'preprocessor_config.json'} asks for {rate_hz} Hz; {spec.name!r} works at {spec.sample_rate_hz} Hz."
            f" It belongs to another checkpoint: get the files of {spec.repository} (revision {spec.revision}) again."
        )
    return bool(preprocessor.get("do_normalize", True))  # absent means True to transformers' own feature extractor


def _from_pretrained(spec: EncoderSpec, folder: Path, model_class: Any, settings: dict[str, float]) -> Any:
    """transformers' own loading, with everything it only warns about turned into an error."""
    with _quiet_transformers():
        try:
            model, info = model_class.from_pretrained(
                folder, dtype=torch.float32, local_files_only=True, output_loading_info=True, **settings
            )
        except Exception as error:  # safetensors, pickle, zip and transformers errors have no common base
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise WeightsError(
                f"The weights of {spec.name!r} in {folder} cannot be loaded ({type(error).__name__}: {reason}). The file is"
                f" damaged, half-downloaded, or of another architecture than its config.json. Delete it and get it again"
                f" from {spec.repository} (revision {spec.revision})."
            ) from error
    missing = sorted(info["missing_keys"])
    unexpected = sorted(set(info["unexpected_keys"]) - {"masked_spec_embed"})
    if missing or unexpected:
        raise WeightsError(
            f"The weights of {spec.name!r} in {folder} do not fit {model_class.__name__}: {len(missing)} parameters are"
            f" missing ({_some(missing)}) and {len(unexpected)} are unknown ({_some(unexpected)}). Missing ones would stay"
            f" random. Expected is the checkpoint {spec.repository} (revision {spec.revision}), complete and not fine-tuned;"
            f" get it again, or update transformers if it is that one."
        )
    return model


def _some(names: list[str]) -> str:
    return (", ".join(names[:3]) + (", …" if len(names) > 3 else "")) or "none"


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """No progress bar and no warnings on the terminal: what they say is checked, and raised, here."""
    from transformers.utils import logging as transformers_logging

    logging: Any = transformers_logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def output_frames(config: Any, num_samples: Any) -> Any:
    """Frames that the front end makes of ``num_samples`` samples; an int, or an int64 tensor of any shape."""
    return _output_length(list(zip(config.conv_kernel, config.conv_stride, strict=True)), num_samples)


def receptive_field(config: Any) -> int:
    """Samples that one frame sees: the shortest clip that gives a frame."""
    return _input_range(list(zip(config.conv_kernel, config.conv_stride, strict=True)), 0, 1)[1]


def _output_length(layers: list[tuple[int, int]], num_inputs: Any) -> Any:
    """Outputs of a stack of (kernel, stride) convolutions without padding."""
    for kernel, stride in layers:
        num_inputs = (num_inputs - kernel) // stride + 1
    return num_inputs


def _input_range(layers: list[tuple[int, int]], start: int, stop: int) -> tuple[int, int]:
    """Range of inputs that the outputs ``start:stop`` of a stack of (kernel, stride) convolutions depend on."""
    for kernel, stride in reversed(layers):
        start, stop = start * stride, (stop - 1) * stride + kernel
    return start, stop


def normalise_waveforms(waveforms: Tensor, lengths: Tensor) -> Tensor:
    """Zero mean and unit variance over each clip's own samples: (x - mean) / sqrt(var + 1e-7), as Wav2Vec2FeatureExtractor.

    Args:
        waveforms: [B, L], zero beyond each clip.
        lengths: int64 [B], samples.

    Returns:
        [B, L], zero beyond each clip.
    """
    count = lengths[:, None]
    mean = waveforms.sum(1, keepdim=True) / count
    centred = (waveforms - mean) * valid_mask(lengths, waveforms.shape[1])
    variance = centred.square().sum(1, keepdim=True) / count
    return centred * (variance + 1e-7).rsqrt()


def front_end(extractor: Any, waveforms: Tensor, lengths: Tensor, *, in_pieces: bool) -> Tensor:
    """The stack of convolutions, every clip as if it were alone.

    Args:
        extractor: ``model.feature_extractor``.
        waveforms: [B, L], zero beyond each clip.
        lengths: int64 [B], samples, each at least the receptive field.
        in_pieces: clip by clip and a second at a time (for the CPU) instead of the whole batch at once.

    Returns:
        [B, T, features of the last convolution]; finite beyond each clip's own frames.
    """
    layers: list[Any] = list(extractor.conv_layers)
    shapes = [(layer.conv.kernel_size[0], layer.conv.stride[0]) for layer in layers]
    first = layers[0]
    folded = None
    if isinstance(getattr(first, "layer_norm", None), nn.GroupNorm):
        folded = _fold_group_norm(first, waveforms, (lengths - shapes[0][0]) // shapes[0][1] + 1)

    def piece(row: slice, start: int, stop: int) -> Tensor:
        """Frames ``start:stop`` of some clips, [rows, C, frames]."""
        begin, end = _input_range(shapes, start, stop)
        samples = waveforms[row, begin:end]
        if folded is None:
            hidden = first(samples[:, None])
        else:
            weight, centre = folded
            windows = samples.unfold(1, *shapes[0]) - centre[row]  # [rows, T0, K]
            hidden = torch.baddbmm(first.layer_norm.bias[:, None], weight[row], windows.transpose(1, 2))
            hidden = first.activation(hidden)
        for layer in layers[1:]:
            hidden = layer(hidden)
        return hidden  # type: ignore[no-any-return]

    total = _output_length(shapes, waveforms.shape[1])
    if not in_pieces:
        return piece(slice(None), 0, total).transpose(1, 2)
    frames = waveforms.new_zeros(len(waveforms), total, layers[-1].conv.out_channels)
    for row, num_samples in enumerate(lengths.tolist()):
        own = _output_length(shapes, num_samples)
        for start in range(0, own, _PIECE_FRAMES):
            stop = min(own, start + _PIECE_FRAMES)
            frames[row, start:stop] = piece(slice(row, row + 1), start, stop)[0].T
    return frames


def _fold_group_norm(layer: Any, waveforms: Tensor, frames: Tensor) -> tuple[Tensor, Tensor]:
    """The first convolution and its normalisation over time (one group per channel) as one convolution per clip.

    With windows x of the waveform, the output is y = w . x + b, so over a clip's frames mean(y) = w . mean(x) + b and
    var(y) = w' cov(x) w (biased, as GroupNorm's); the convolution's bias b cancels in y - mean(y).

    Args:
        layer: first convolutional layer.
        waveforms: [B, L], zero beyond each clip.
        frames: int64 [B], frames of each clip behind this layer.

    Returns:
        Weight [B, C, K] and centre [B, 1, K]: the layer's output before its activation is
        weight . (window - centre) + bias of the normalisation.
    """
    convolution, norm = layer.conv, layer.layer_norm
    windows = waveforms.unfold(1, convolution.kernel_size[0], convolution.stride[0])  # [B, T0, K]
    valid = valid_mask(frames, windows.shape[1])[..., None]
    windows = windows.double() * valid
    count = frames[:, None, None]
    centre = windows.sum(1, keepdim=True) / count  # [B, 1, K]
    centred = (windows - centre) * valid
    covariance = centred.transpose(1, 2) @ centred / count  # [B, K, K]
    kernel = convolution.weight[:, 0].double()  # [C, K]
    variance = ((kernel @ covariance) * kernel).sum(-1)  # [B, C]
    scale = norm.weight * (variance + norm.eps).rsqrt()
    return (kernel * scale[..., None]).float(), centre.float()


def embed_frames(model: Any, features: Tensor, valid: Tensor) -> Tensor:
    """Projection and positional convolution, before any layer.

    Args:
        model: the model.
        features: [B, T, C] of :func:`front_end`.
        valid: bool [B, T], frames that belong to the clip.

    Returns:
        [B, T, D], without the layer normalisation that the base sizes apply next.
    """
    projected, _ = model.feature_projection(features)
    projected = projected * valid[..., None]
    embedded: Tensor = projected + model.encoder.pos_conv_embed(projected)
    return embedded
