"""The upper layers of a wav2vec2-like encoder, to be trained; the front end and the lower layers stay frozen.

Training the last N of L transformer layers end to end from audio is training them on ``layer_(L-N)``, which never changes: it comes
from the frozen encoder of ``ssl.py``, batch-independent as always, without gradients. What is trained are transformers' own
modules for the layers above (and the final normalisation of the large sizes), run here with attention that sees no frame beyond a
clip; so a clip's output does not depend on its batch either. Dropout is the configuration's, behind attention and in the
feed-forward half; attention weights and whole layers are not dropped.

What lies above the last layer gets it standardised per feature, with the mean and spread that it had before training
(:meth:`TrainableSSL.standardise`): frames of one encoder have most of their size in common, untrained ones nearly all of it. In a
saved model this is folded into the weights of the letters, so that they fit the last layer as it is.

A trained model is written as transformers writes it: ``config.json``, ``model.safetensors``, ``preprocessor_config.json`` and, with
letters, ``vocab.json`` (blank ``<pad>``, space ``|``), the layout of ``…ForCTC``. ``hyfuse extract --model hf:<owner>/<name>
--weights-dir DIR`` reads it back.

WavLM is not among them: its attention has a bias over all pairs of frames, which the frozen encoder computes in place.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipelines.encoders.catalogue import EncoderSpec, load_encoder
from pipelines.encoders.padding import valid_mask
from pipelines.encoders.ssl import SSLEncoder
from pipelines.encoders.ssl_loading import quiet_transformers
from pipelines.encoders.weights import find_checkpoint, random_initialisation, state_digest
from pipelines.errors import ConfigError, StorageError, WeightsError
from pipelines.files import TEMPORARY_PREFIX

__all__ = ["MODEL_TYPES", "TrainableSSL", "load_trainable"]

MODEL_TYPES = ("wav2vec2", "hubert", "unispeech", "unispeech-sat", "data2vec-audio")
"""``model_type`` of the architectures whose layers can be trained."""


class TrainableSSL(nn.Module):
    """A frozen encoder and the layers above, which learn.

    Attributes:
        frozen: the encoder as it was, all of it.
        layers: N trained layers.
        spell: standardised last layer [..., D] to letters; None without letters.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, *, frozen: SSLEncoder, model: Any, layers: int, letters: int) -> None:
        super().__init__()
        self.frozen = frozen
        self._model = (model,)  # in a tuple: its frozen part is no parameter of this module
        self.layers = model.encoder.layers[-layers:]
        self.final_norm = model.encoder.layer_norm if getattr(model.config, "do_stable_layer_norm", False) else None
        self.spell = nn.Linear(frozen.spec.dim, letters) if letters else None
        self.first = len(model.encoder.layers) - layers
        self.register_buffer("mean", torch.zeros(frozen.spec.dim))
        self.register_buffer("std", torch.ones(frozen.spec.dim))
        for module in (self.layers, self.final_norm):
            if module is not None:
                module.requires_grad_(True)

    def hear(self, batch: Sequence[Tensor]) -> tuple[Tensor, Tensor, list[Tensor]]:
        """What is frozen.

        Args:
            batch: B waveforms, float32 [samples], on the CPU.

        Returns:
            The input of the first trained layer, float32 [B, T, D]; which frames belong to the clips, bool [B, T]; and the layers
            up to that input, in order.
        """
        lower, valid = [], None
        for index, representation in enumerate(self.frozen.encode_padded(batch)):
            # Cloned: tensors made in inference mode have no place in a graph.
            lower.append(representation.frames.clone())
            valid = valid_mask(representation.num_frames, representation.frames.shape[1])
            if index == self.first:
                break
        assert valid is not None
        return lower[-1], valid.clone(), lower

    def forward(self, hidden: Tensor, valid: Tensor) -> list[Tensor]:
        """The trained layers' outputs, N times [B, T, D].

        Args:
            hidden: input of the first of them, [B, T, D].
            valid: bool [B, T].
        """
        outputs = []
        for layer in self.layers:
            if self.final_norm is not None:  # normalised before each half
                hidden = hidden + layer.dropout(_attend(layer.attention, layer.layer_norm(hidden), valid))
                hidden = hidden + layer.feed_forward(layer.final_layer_norm(hidden))
                if getattr(layer, "adapter_layer", None) is not None:
                    hidden = hidden + layer.adapter_layer(hidden)
            else:
                hidden = layer.layer_norm(hidden + layer.dropout(_attend(layer.attention, hidden, valid)))
                hidden = layer.final_layer_norm(hidden + layer.feed_forward(hidden))
            outputs.append(hidden)
        if self.final_norm is not None:
            outputs[-1] = self.final_norm(outputs[-1])
        return outputs

    def standardise(self, frames: Tensor) -> None:
        """Take mean and spread of the last layer from some of its frames, [n, D]; a feature that is constant is left as it is."""
        exact = frames.double()
        mean, std = exact.mean(dim=0), exact.std(dim=0, correction=0)
        self.mean.copy_(mean)
        self.std.copy_(torch.where(std > 1e-6 * mean.abs(), std, torch.ones_like(std)))

    def scaled(self, last: Tensor) -> Tensor:
        """The last layer, standardised: [..., D]."""
        return (last - self.mean) / self.std

    def save(self, folder: Path, letters: Sequence[str]) -> None:
        """Write the checkpoint, whole or not at all.

        Args:
            folder: made anew.
            letters: by their number, the blank ``<pad>`` first; of a model with letters.

        Raises:
            StorageError: the folder cannot be written.
        """
        from transformers import MODEL_FOR_CTC_MAPPING

        (model,) = self._model
        temporary = folder.with_name(f"{TEMPORARY_PREFIX}{folder.name}-{os.getpid()}")
        try:
            temporary.mkdir(parents=True, exist_ok=True)
            whole = model
            with quiet_transformers():
                if self.spell is not None:
                    model.config.vocab_size, model.config.pad_token_id = len(letters), 0
                    ctc_class: Any = MODEL_FOR_CTC_MAPPING[type(model.config)]
                    whole = ctc_class(model.config)
                    setattr(whole, whole.base_model_prefix, model)
                    whole.lm_head = self._folded(self.spell)
                    vocabulary = {letter: number for number, letter in enumerate(letters)}
                    _write_json(temporary / "vocab.json", vocabulary)
                whole.save_pretrained(temporary)
            _write_json(
                temporary / "preprocessor_config.json",
                {
                    "feature_extractor_type": "Wav2Vec2FeatureExtractor",
                    "feature_size": 1,
                    "sampling_rate": self.frozen.spec.sample_rate_hz,
                    "padding_value": 0.0,
                    "do_normalize": self.frozen.do_normalize,
                    "return_attention_mask": True,
                },
            )
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(temporary, folder)
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            raise StorageError(
                f"{folder} cannot be written: {error.strerror or error}. Free disk space, or choose another folder with"
                " --runs-dir."
            ) from error

    @torch.no_grad()
    def _folded(self, spell: nn.Linear) -> nn.Linear:
        """The letters on the last layer as it is: W (x - mean) / std + b."""
        folded = nn.Linear(spell.in_features, spell.out_features, device=spell.weight.device)
        folded.weight.copy_(spell.weight / self.std)
        folded.bias.copy_(spell.bias - folded.weight @ self.mean)
        return folded


def load_trainable(
    name: str,
    *,
    layers: int,
    letters: int,
    weights: str = "pretrained",
    weights_dir: Path | None = None,
    device: torch.device | str = "cpu",
) -> TrainableSSL:
    """Load an encoder and make its last layers trainable; those above are drawn from torch's generator.

    Args:
        name: catalogue name, or ``hf:owner/name``.
        layers: N, how many.
        letters: symbols of CTC, the blank included; 0 for none.
        weights: ``pretrained`` or ``random``.
        weights_dir: looked in first.
        device: where.

    Raises:
        ConfigError: the encoder is of another architecture, or has fewer layers.
        WeightsError: weights are absent, damaged, or changed while they were read.
    """
    frozen = load_encoder(name, weights=weights, device=device, weights_dir=weights_dir)
    spec = frozen.spec
    if not isinstance(frozen, SSLEncoder) or spec.settings["model_type"] not in MODEL_TYPES:
        kind = f" of the type {spec.settings['model_type']!r}" if "model_type" in spec.settings else ""
        raise ConfigError(
            f"Layers of {name!r}{kind} cannot be fine-tuned; those of {', '.join(MODEL_TYPES)} can. Use --fine-tune-model"
            f" {'wav2vec2-tiny' if spec.is_tiny else 'wav2vec2'}, or hubert."
        )
    depth = len(spec.representations) - 1
    if not 1 <= layers <= depth:
        raise ConfigError(f"--fine-tune {layers}: {name!r} has {depth} transformer layers; name 1 to {depth} of them.")
    model = _plain_model(spec, weights, weights_dir)
    if state_digest(model.state_dict()) != frozen.weights.digest:
        raise WeightsError(
            f"The weights of {name!r} are not the same when read twice. The files changed meanwhile; run the command again."
        )
    model.requires_grad_(False)
    return TrainableSSL(frozen=frozen, model=model, layers=layers, letters=letters).to(device)


def _plain_model(spec: EncoderSpec, weights: str, weights_dir: Path | None) -> Any:
    """The model as transformers has it, unfrozen and unpacked; the frozen encoder has checked its files already."""
    from transformers import CONFIG_MAPPING, MODEL_MAPPING

    settings = {name: value for name, value in spec.settings.items() if name != "do_normalize"}
    config_class: Any = CONFIG_MAPPING[str(settings["model_type"])]
    model_class: Any = MODEL_MAPPING[config_class]
    # As in ssl_loading.py: no vector for masked frames, no adapter behind the encoder.
    without: dict[str, Any] = {"mask_time_prob": 0.0, "mask_feature_prob": 0.0}
    with quiet_transformers():
        if weights == "random":
            with random_initialisation(spec):
                model = model_class(config_class(**settings, **without))
        else:
            folder, _ = find_checkpoint(spec, weights_dir=weights_dir)
            if json.loads((folder / "config.json").read_text(encoding="utf-8")).get("add_adapter"):
                without["add_adapter"] = False
            model = model_class.from_pretrained(folder, dtype=torch.float32, local_files_only=True, **without)
    if getattr(model, "masked_spec_embed", None) is not None:
        del model.masked_spec_embed
    return model


def _attend(attention: Any, hidden: Tensor, valid: Tensor) -> Tensor:
    """transformers' attention module on [B, T, D], without its dropout; no frame beyond a clip is a key."""
    split = (*hidden.shape[:2], attention.num_heads, attention.head_dim)
    query, key, value = (
        projection(hidden).view(split).transpose(1, 2)
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
    )  # [B, heads, T, D / heads]
    mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=valid[:, None, None])
    attended: Tensor = attention.out_proj(mixed.transpose(1, 2).reshape(hidden.shape))
    return attended


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
