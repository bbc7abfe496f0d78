"""Encoders named after a repository of the Hugging Face Hub: ``hf:<owner>/<name>[@<revision>]``.

Any checkpoint whose ``config.json`` names one of the wav2vec2-like architectures (``MODEL_TYPES``) will do, with or without a
head. Layers and features are known only from that file, so it is read when the entry is made: from the user's folders and the Hub
cache as weights are (``weights.py``), or downloaded. Weights are not touched, and torch is not imported.

A store's folder is named after its encoder, so an entry's own name is one safe folder name that says the same:
``hf--<owner>--<name>[@<revision>]``, the revision percent-encoded where it is a path (``refs%2Fpr%2F4``). Neither owners nor names
may contain ``--`` on the Hub, so it can be read back: both spellings are understood wherever an encoder is named.

Without a revision the Hub's ``main`` is taken. What was loaded is recorded with the weights: the commit if they come from the Hub,
``unverified`` for a folder, and the digest of the parameters either way.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from pipelines.encoders.catalogue import CATALOGUE, EncoderSpec, WeightFile
from pipelines.encoders.weights import Progress, find_file, search_folders
from pipelines.errors import ConfigError, WeightsError

__all__ = ["MODEL_TYPES", "HubName", "hub_spec", "parse_hub_name"]

MODEL_TYPES = ("wav2vec2", "hubert", "wavlm", "unispeech", "unispeech-sat", "data2vec-audio")
"""``model_type`` of the architectures that ``hf:`` takes."""

_PREFIX, _STORED_PREFIX = "hf:", "hf--"
_PART = re.compile(r"(?!.*(--|\.\.))[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?")
_REVISION = re.compile(r"(?!.*(\.\.|//))[A-Za-z0-9_](?:[A-Za-z0-9._/-]{0,98}[A-Za-z0-9_])?")

# What a configuration says about the encoder itself; heads, masks and dropout are left out. Where a file is silent, these two
# are the defaults of every architecture of the family.
_HIDDEN_SIZE, _HIDDEN_LAYERS = 768, 12
_SETTINGS = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "hidden_act",
    "layer_norm_eps",
    "feat_extract_norm",
    "feat_extract_activation",
    "feat_proj_layer_norm",
    "conv_dim",
    "conv_kernel",
    "conv_stride",
    "conv_bias",
    "conv_pos_kernel_size",
    "conv_pos_batch_norm",
    "num_conv_pos_embeddings",
    "num_conv_pos_embedding_groups",
    "do_stable_layer_norm",
    "adapter_attn_dim",
    "num_buckets",
    "max_bucket_distance",
)
_CONV_STRIDE = (5, 2, 2, 2, 2, 2, 2)


@dataclass(frozen=True)
class HubName:
    """A repository of the Hub at a revision.

    Attributes:
        repository: ``owner/name``.
        revision: commit, branch or tag; empty for the Hub's default.
    """

    repository: str
    revision: str = ""

    @property
    def typed(self) -> str:
        """``hf:owner/name@revision``."""
        return f"{_PREFIX}{self.repository}" + (f"@{self.revision}" if self.revision else "")

    @property
    def stored(self) -> str:
        """``hf--owner--name@revision``, the name of the entry and of its stores' folder."""
        revision = f"@{quote(self.revision, safe='')}" if self.revision else ""
        return _STORED_PREFIX + self.repository.replace("/", "--") + revision


def parse_hub_name(name: str) -> HubName:
    """Read either spelling.

    Raises:
        ConfigError: it is neither.
    """
    stored = name.startswith(_STORED_PREFIX)
    repository, at, revision = name.removeprefix(_STORED_PREFIX if stored else _PREFIX).partition("@")
    parts = repository.split("--" if stored else "/")
    if stored:
        revision = unquote(revision)
    fits = len(parts) == 2 and all(_PART.fullmatch(part) for part in parts)
    if not fits or (at and not _REVISION.fullmatch(revision)):
        raise ConfigError(
            f"{name!r} is not the name of a model on the Hugging Face Hub. Expected hf:<owner>/<name>, or hf:<owner>/<name>@"
            f"<commit, branch or tag>, as in its address https://huggingface.co/<owner>/<name>; for instance"
            f" hf:facebook/hubert-large-ll60k@main."
        )
    return HubName("/".join(parts), revision)


def hub_spec(name: str, *, weights_dir: Path | None = None, progress: Progress | None = None) -> EncoderSpec:
    """Make the entry of a checkpoint on the Hub, or in a user's folder laid out like it.

    Args:
        name: ``hf:owner/name[@revision]`` or the stored spelling.
        weights_dir: looked in first, before ``$HYFUSE_WEIGHTS`` and the Hub cache.
        progress: called during a download.

    Raises:
        ConfigError: the name is malformed, or the model is of another architecture.
        WeightsError: its ``config.json`` is nowhere and cannot be downloaded, or is damaged.
    """
    hub = parse_hub_name(name)
    spec = EncoderSpec(
        name=hub.stored,
        family="RLR",
        title=f"{hub.repository}, from the Hugging Face Hub",
        factory="pipelines.encoders.ssl:SSLEncoder",
        sample_rate_hz=16000,
        hop_samples=0,
        dim=0,
        representations=(),
        default_representation="",
        repository=hub.repository,
        revision=hub.revision,
        files=(
            WeightFile("config.json"),
            WeightFile("preprocessor_config.json|processor_config.json"),
            WeightFile("model.safetensors|pytorch_model.bin"),
        ),
        licence=f"see https://huggingface.co/{hub.repository}",
        precisions=("float32", "bf16"),
    )
    config = _read_config(spec, hub, weights_dir, progress)
    model_type = config.get("model_type")
    if model_type not in MODEL_TYPES:
        entry = next((entry.name for entry in CATALOGUE.values() if entry.repository == hub.repository), "")
        raise ConfigError(
            f"{hub.typed!r} is a model of the type {model_type!r}. hf: takes wav2vec2-like audio encoders only, of the types"
            f" {', '.join(MODEL_TYPES)}. "
            + (
                f"This one is in the catalogue as {entry!r}."
                if entry
                else "See `hyfuse models list` for other encoders."
            )
        )
    layers = config.get("num_hidden_layers", _HIDDEN_LAYERS)
    dim = config.get("hidden_size", _HIDDEN_SIZE)
    strides = config.get("conv_stride", _CONV_STRIDE)
    hop = 1
    for stride in strides:
        hop *= stride
    representations = tuple(f"layer_{index:02d}" for index in range(layers + 1))
    notes = "layer_00 is the input of the first transformer layer."
    if config.get("do_stable_layer_norm"):
        notes += " The last layer has passed the final layer normalisation, the others have not."
    if not hub.revision:
        notes += " No revision is named: the Hub's main branch as it is when the weights are loaded."
    return replace(
        spec,
        title=f"{hub.repository} ({model_type}), from the Hugging Face Hub",
        hop_samples=hop,
        dim=dim,
        representations=representations,
        default_representation=representations[-1],
        # Random weights take waveforms of unit variance; a checkpoint says itself what it wants.
        settings={
            "model_type": model_type,
            "do_normalize": True,
            **{key: config[key] for key in _SETTINGS if config.get(key) is not None},
        },
        notes=notes,
    )


def _read_config(
    spec: EncoderSpec, hub: HubName, weights_dir: Path | None, progress: Progress | None
) -> dict[str, Any]:
    try:
        path = find_file(spec, WeightFile("config.json"), weights_dir=weights_dir, progress=progress)
    except WeightsError as error:
        reason = (str(error.__cause__ or error).strip().splitlines() or ["not found"])[0].rstrip(".")
        folders = search_folders(weights_dir)
        target = (folders[0] if folders else Path("~/hyfuse-weights")) / hub.repository
        looked = ", ".join(str(folder) for folder in folders) or "no folder ($HYFUSE_WEIGHTS is not set)"
        revision = f" at revision {hub.revision}" if hub.revision else ""
        raise WeightsError(
            f"{hub.typed!r} cannot be described without its config.json, which was looked for in {looked} and in the Hugging Face"
            f" Hub cache, and could not be downloaded ({reason}). Check that https://huggingface.co/{hub.repository} exists"
            f"{revision} and run again with a network; or put its config.json, preprocessor_config.json and model.safetensors (or"
            f" pytorch_model.bin) into {target}" + ("." if folders else f" and set HYFUSE_WEIGHTS={target.parents[1]}.")
        ) from error
    try:
        config = dict(json.loads(path.read_text(encoding="utf-8")))
        if not all(
            isinstance(value, int) and not isinstance(value, bool) and value > 0
            for value in (
                config.get("num_hidden_layers", _HIDDEN_LAYERS),
                config.get("hidden_size", _HIDDEN_SIZE),
                *config.get("conv_stride", _CONV_STRIDE),
            )
        ):
            raise ValueError("num_hidden_layers, hidden_size and conv_stride are not all positive whole numbers")
    except (OSError, ValueError, TypeError) as error:
        raise WeightsError(
            f"{path} cannot be read as the configuration of {hub.typed!r} ({error}). It should be the JSON file that transformers"
            f" writes; it is damaged or half-downloaded. Delete it and get it again from {hub.repository}."
        ) from error
    return config
