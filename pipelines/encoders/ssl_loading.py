"""Loading the wav2vec2-like encoders of transformers: checkpoint or random weights, checked, frozen, ready to run.

A checkpoint brings its own architecture (``config.json``) and says whether it wants normalised waveforms
(``preprocessor_config.json``, or the ``processor_config.json`` that transformers 5 writes). Everything that transformers only
warns about is an error here: a parameter that is missing would stay random. What a checkpoint holds beyond the encoder is left
unread if it belongs to a head: of pre-training (quantiser, projections), recognition (``lm_head``), classification, or speaker
verification; and so is the ``adapter`` that some put behind the encoder. Any other surplus is an error.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipelines.encoders.catalogue import EncoderSpec
from pipelines.encoders.cpu_linear import PackedLinear, can_pack, pack_linears
from pipelines.encoders.state_check import random_info
from pipelines.encoders.weights import (
    Progress,
    WeightsInfo,
    find_checkpoint,
    random_initialisation,
    state_digest,
)
from pipelines.errors import WeightsError

__all__ = ["LoadedModel", "load_model", "quiet_transformers"]

_MODEL_PREFIXES = ("wav2vec2.", "hubert.", "wavlm.", "unispeech.", "unispeech_sat.", "data2vec_audio.")

_HEADS = {
    "masked_spec_embed",  # stands in for masked frames, in training only
    "adapter",  # between encoder and text decoder
    "lm_head",
    "project_hid",
    "project_q",
    "quantizer",
    "final_proj",
    "label_embs_concat",
    "label_embeddings_concat",
    "layer_norm_for_extract",
    "speaker_proj",
    "ctc_proj",
    "classifier",
    "projector",
    "layer_weights",
    "tdnn",
    "objective",
}
"""First parts of the names of parameters that are no part of the encoder."""

_XVECTOR_HEAD = {"feature_extractor.weight", "feature_extractor.bias"}
"""A linear layer of transformers' ``…ForXVector``, named like the encoder's convolutions."""

_HALF = (
    "feature_projection.projection",
    "pos_conv_embed.conv",
    "q_proj",
    "k_proj",
    "v_proj",
    "out_proj",
    "intermediate_dense",
    "output_dense",
)
"""Ends of the names of the layers that are bfloat16 in bf16; besides them all convolutions but the first."""


@dataclass(frozen=True)
class LoadedModel:
    """A model of the family, ready to run.

    Attributes:
        model: on its device, frozen, in evaluation mode, weight normalisation folded in.
        weights: where the parameters came from; the digest is of the float32 parameters, in either precision.
        do_normalize: whether the checkpoint wants waveforms of zero mean and unit variance.
        dtype: of the linear layers and of all convolutions but the first.
    """

    model: Any
    weights: WeightsInfo
    do_normalize: bool
    dtype: torch.dtype


def load_model(
    *,
    spec: EncoderSpec,
    weights_kind: str,
    device: torch.device,
    weights_dir: Path | None,
    progress: Progress | None,
    precision: str = "float32",
) -> LoadedModel:
    """Load or initialise a model of the family.

    ``spec.settings`` are settings of the architecture's configuration and ``do_normalize``; ``model_type`` among them names the
    architecture. All others are used for random weights only, a checkpoint brings its own.

    Raises:
        WeightsError: the checkpoint is absent, damaged, of another architecture, or does not hold every parameter.
    """
    from transformers import CONFIG_MAPPING, MODEL_MAPPING

    settings = dict(spec.settings)
    do_normalize = bool(settings.pop("do_normalize"))
    config_class: Any = CONFIG_MAPPING[str(settings["model_type"])]
    model_class: Any = MODEL_MAPPING[config_class]
    # The vector that stands in for masked frames is used in training only. It is not built, so that it is not missed where
    # a checkpoint has none, and has no part in the digest.
    without: dict[str, Any] = {"mask_time_prob": 0.0, "mask_feature_prob": 0.0}
    if weights_kind == "random":
        with random_initialisation(spec):
            model = model_class(config_class(**settings, **without))
        _without_mask_vector(model)
        weights = random_info(spec, model.state_dict())
    else:
        folder, revision = find_checkpoint(spec, weights_dir=weights_dir, progress=progress)
        config = _check_architecture(spec, folder)
        do_normalize = _read_do_normalize(spec, folder)
        if config.get("add_adapter"):
            without["add_adapter"] = False
        model = _from_pretrained(spec, folder, model_class, without)
        _without_mask_vector(model)
        from_hub = revision != "unverified"
        weights = WeightsInfo(
            kind="pretrained",
            source=spec.repository if from_hub else str(folder),
            revision=_commit(folder, revision) if from_hub else revision,
            digest=state_digest(model.state_dict()),
            licence=spec.licence,
        )
    model.eval().requires_grad_(False)
    # Weight normalisation would be computed anew in every forward pass; its result never changes here.
    for module in model.encoder.pos_conv_embed.modules():
        if isinstance(module, nn.Conv1d) and nn.utils.parametrize.is_parametrized(module, "weight"):
            nn.utils.parametrize.remove_parametrizations(module, "weight")
    dtype = torch.float32
    if precision == "bf16":
        dtype = torch.bfloat16
        _to_half(model, dtype)
    model.to(device)
    _pack(model)
    return LoadedModel(model, weights, do_normalize, dtype)


def _without_mask_vector(model: Any) -> None:
    """UniSpeech-SAT builds the vector for masked frames whatever its configuration says."""
    if getattr(model, "masked_spec_embed", None) is not None:
        del model.masked_spec_embed


def _commit(folder: Path, revision: str) -> str:
    """The commit that a folder of the Hub cache holds, ``snapshots/<commit>``: a branch may move."""
    if folder.parent.name == "snapshots" and re.fullmatch(r"[0-9a-f]{40}", folder.name):
        return folder.name
    return revision


def _to_half(model: Any, dtype: torch.dtype) -> None:
    for name, module in model.named_modules():
        if name.endswith(_HALF):
            module.to(dtype)
    for layer in list(model.feature_extractor.conv_layers)[1:]:
        layer.conv.to(dtype)
    for layer in getattr(model.encoder.pos_conv_embed, "layers", []):  # data2vec
        layer.conv.to(dtype)


def _pack(model: Any) -> None:
    """Faster linear layers on the CPU, each feed-forward's GELU in one pass with the layer before it."""
    if model.config.hidden_act == "gelu":
        for layer in model.encoder.layers:
            if can_pack(layer.feed_forward):
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


def _at_revision(spec: EncoderSpec) -> str:
    return f"{spec.repository} (revision {spec.revision})" if spec.revision else spec.repository


def _check_architecture(spec: EncoderSpec, folder: Path) -> dict[str, Any]:
    """Compare ``config.json`` with the catalogue before a large file is read."""
    config = _read_json(spec, folder / "config.json")
    found = (config.get("model_type"), config.get("num_hidden_layers", 12), config.get("hidden_size", 768))
    expected = (spec.settings["model_type"], len(spec.representations) - 1, spec.dim)
    if found != expected:
        raise WeightsError(
            f"{folder} holds another model than {spec.name!r} needs: its config.json says model_type {found[0]!r} with"
            f" {found[1]} layers of {found[2]} features; expected {expected[0]!r} with {expected[1]} layers of {expected[2]}"
            f" features. Put the files of {_at_revision(spec)} there, or choose the model that fits with `hyfuse models list`."
        )
    return config


def _read_do_normalize(spec: EncoderSpec, folder: Path) -> bool:
    path = folder / "preprocessor_config.json"
    if path.is_file():
        preprocessor = _read_json(spec, path)
    else:
        path = folder / "processor_config.json"
        preprocessor = _read_json(spec, path).get("feature_extractor") or {}
    rate_hz = preprocessor.get("sampling_rate", spec.sample_rate_hz)
    if rate_hz != spec.sample_rate_hz:
        raise WeightsError(
            f"{path} asks for {rate_hz} Hz; {spec.name!r} works at {spec.sample_rate_hz} Hz. It belongs to another checkpoint:"
            f" get the files of {_at_revision(spec)} again."
        )
    return bool(preprocessor.get("do_normalize", True))  # absent means True to transformers' own feature extractor


def _from_pretrained(spec: EncoderSpec, folder: Path, model_class: Any, settings: dict[str, Any]) -> Any:
    """transformers' own loading, with everything it only warns about turned into an error."""
    with quiet_transformers():
        try:
            model, info = model_class.from_pretrained(
                folder, dtype=torch.float32, local_files_only=True, output_loading_info=True, **settings
            )
        except Exception as error:  # safetensors, pickle, zip and transformers errors have no common base
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise WeightsError(
                f"The weights of {spec.name!r} in {folder} cannot be loaded ({type(error).__name__}: {reason}). The file is"
                f" damaged, half-downloaded, or of another architecture than its config.json. Delete it and get it again"
                f" from {_at_revision(spec)}."
            ) from error
    missing = sorted(set(info["missing_keys"]) - {"masked_spec_embed"})
    unexpected = sorted(name for name in info["unexpected_keys"] if not _of_a_head(name))
    if missing or unexpected:
        raise WeightsError(
            f"The weights of {spec.name!r} in {folder} do not fit {model_class.__name__}: {len(missing)} parameters are"
            f" missing ({_some(missing)}) and {len(unexpected)} are unknown ({_some(unexpected)}). Missing ones would stay"
            f" random. Expected is the checkpoint {_at_revision(spec)}, complete; get it again, or update transformers if it"
            f" is that one."
        )
    return model


def _of_a_head(name: str) -> bool:
    if name in _XVECTOR_HEAD:
        return True
    for prefix in _MODEL_PREFIXES:
        name = name.removeprefix(prefix)
    return name.split(".")[0] in _HEADS


def _some(names: list[str]) -> str:
    return (", ".join(names[:3]) + (", …" if len(names) > 3 else "")) or "none"


@contextmanager
def quiet_transformers() -> Iterator[None]:
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
