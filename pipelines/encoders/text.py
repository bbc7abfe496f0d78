"""Encoders of text: BERT (Devlin et al. 2019), RoBERTa (Liu et al. 2019) and MiniLM sentence embeddings (Wang et al. 2020;
Reimers & Gurevych 2019). One network with other sizes, vocabularies and weights.

Text in, tokens as frames: what base.py calls the samples of a recording are here the token ids of a text, int64 [T], and
every token is one frame (hop 1). ``layer_00`` is the input of the first transformer layer (embeddings, normalised) and
``layer_NN`` the output of layer NN, transformers' ``hidden_states``.

**The special tokens at both ends count as frames.** They are what the models were trained with, attention gathers there, and
with them the mean over the frames of MiniLM's last layer is the sentence embedding it was trained to give
(sentence-transformers' ``mean`` pooling, before it is scaled to length 1), so that pooled vectors are upstream's own.

**An empty text** is its two special tokens, two frames like any others. That is what the network says about "nothing was
said"; zeros would lie where no text lies, and a failure would leave silence out of every comparison, although that a
recogniser hears no words is a finding. (An utterance *without* a transcript is another matter:
``pipelines.extraction.texts``.)

**Long texts.** The networks know 512 positions. Longer texts go through overlapping windows of 512 tokens (``windows.py``),
each with the special tokens in place of its outermost ones; every frame is at least 64 tokens from the edges of its window,
and no word is left out. 512 tokens are about three minutes of speech. The number of frames in the store tells which texts
were that long.

What breaks the promise of base.py upstream, and the cure here: nothing, where padded tokens are masked as keys; positions
are counted from each text's own beginning. Measured at full size over texts of 2, 4, 11, 62 and 502 tokens in one batch
against alone, all layers: relative error at most 1.0e-6 (bert), 1.3e-6 (roberta), 8.4e-7 (minilm, its own weights).

Batches by length take 1/4.5 of the CPU time of transformers' model one by one (bert, roberta; 4.2 for minilm): 48 texts of 6
to 19 tokens, one thread of an AMD EPYC (family 26), least of three.

Checkpoints are read as tensors, never unpickled; what they hold beyond the encoder (pooler, heads of pre-training) is left
unread.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipelines.encoders.base import Encoder, PaddedRepresentation
from pipelines.encoders.catalogue import EncoderSpec
from pipelines.encoders.config_check import check_config
from pipelines.encoders.cpu_linear import PackedLinear, can_pack, pack_linears
from pipelines.encoders.padding import valid_mask
from pipelines.encoders.state_check import check_state, checkpoint_info, random_info
from pipelines.encoders.text_tokenizer import byte_tokenizer, read_tokenizer, tokenizer_digest, word_piece_tokenizer
from pipelines.encoders.torchaudio_guard import ensure_torchaudio_importable
from pipelines.encoders.weights import (
    Progress,
    WeightsInfo,
    find_checkpoint,
    load_pickle_free,
    random_initialisation,
)
from pipelines.encoders.windows import plan_windows
from pipelines.errors import AudioError, WeightsError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["TextEncoder"]

_CONTEXT_TOKENS = 64
_PREFIXES = ("bert.", "roberta.")
_UNREAD = {"pooler", "cls", "lm_head", "classifier", "qa_outputs"}
"""First parts of the names of parameters that are no part of the encoder."""


class TextEncoder(Encoder):
    """A BERT-like encoder of texts; one frame per token.

    Attributes:
        tokenizer: text to ids.
    """

    min_samples = 2  # the special tokens

    def __init__(
        self,
        *,
        spec: EncoderSpec,
        weights: WeightsInfo,
        device: torch.device,
        model: Any,
        tokenizer: Tokenizer,
    ) -> None:
        super().__init__(spec=spec, weights=weights, device=device)
        self.tokenizer = tokenizer
        self._begin, self._end = tokenizer.encode("").ids
        config = model.config
        # RoBERTa's positions begin behind that of the padding.
        self._first_position = config.pad_token_id + 1 if config.model_type == "roberta" else 0
        self.longest_s = float(config.max_position_embeddings - self._first_position)  # tokens: text has no seconds
        self.context_s = float(_CONTEXT_TOKENS)
        self._padding = int(config.pad_token_id)
        self.network = _Network(model.eval().requires_grad_(False)).to(device)
        self.network.pack()

    @classmethod
    def build(
        cls,
        *,
        spec: EncoderSpec,
        weights_kind: str,
        device: torch.device,
        weights_dir: Path | None = None,
        progress: Progress | None = None,
    ) -> TextEncoder:
        """Load (``pretrained``) or initialise (``random``) the encoder.

        A checkpoint is a folder in the format of ``BertModel`` or ``RobertaModel``, with or without a head, and its fast tokenizer.

        Raises:
            WeightsError: the checkpoint is absent, damaged, of another size, or does not hold every parameter of the encoder.
        """
        ensure_torchaudio_importable()  # imported by transformers
        if weights_kind == "random":
            tokenizer = byte_tokenizer() if spec.settings["model_type"] == "roberta" else word_piece_tokenizer()
            with random_initialisation(spec):
                model = _empty_model(spec)
            weights = random_info(spec, _with_tokenizer(model.state_dict(), tokenizer))
            return cls(spec=spec, weights=weights, device=device, model=model, tokenizer=tokenizer)
        folder, revision = find_checkpoint(spec, weights_dir=weights_dir, progress=progress)
        check_config(spec, folder / "config.json", _sizes(spec), _config_class(spec)().to_dict())
        tokenizer = read_tokenizer(folder / "tokenizer.json", spec)
        with torch.device("meta"):  # shapes only: torch's random state is not touched
            model = _empty_model(spec)
        state = _read_encoder(spec, folder, model.state_dict())
        if tokenizer.get_vocab_size() > model.config.vocab_size:
            raise WeightsError(
                f"{folder / 'tokenizer.json'} knows {tokenizer.get_vocab_size()} tokens and the weights beside it"
                f" {model.config.vocab_size}: they are of different models. Get both again from {spec.repository}."
            )
        model.load_state_dict(state, assign=True)
        weights = checkpoint_info(spec, folder, revision, _with_tokenizer(state, tokenizer))
        return cls(spec=spec, weights=weights, device=device, model=model, tokenizer=tokenizer)

    def tokenize(self, text: str) -> Tensor:
        """Token ids of a text, int64 [T], the special tokens at both ends included; nothing is cut."""
        return torch.tensor(self.tokenizer.encode(text).ids)

    def tokens(self, text: str) -> list[str]:
        """The tokens of a text as the vocabulary writes them, one per frame."""
        return list(self.tokenizer.encode(text).tokens)

    def num_frames(self, num_samples: int) -> int:
        """Frames of a text of so many tokens: as many."""
        return num_samples

    def encode_texts(self, texts: Sequence[str]) -> list[dict[str, Tensor]]:
        """Encode texts of any length in one batch.

        Args:
            texts: n texts.

        Returns:
            Per text, representation name to frames [T, D] (float32, CPU), one per token.
        """
        ids = [self.tokenize(text) for text in texts]
        plans = [plan_windows(self, len(one)) for one in ids]
        pieces = [one[window.start : window.stop] for one, plan in zip(ids, plans, strict=True) for window in plan]
        encoded = iter(self.encode(pieces) if pieces else [])
        found = []
        for plan in plans:
            parts = [
                {name: frames[window.first : window.last] for name, frames in next(encoded).items()} for window in plan
            ]
            found.append({name: torch.cat([part[name] for part in parts]) for name in self.spec.representations})
        return found

    @torch.inference_mode()
    def encode_padded(self, batch: Sequence[Tensor]) -> Iterator[PaddedRepresentation]:
        """See :meth:`Encoder.encode_padded`.

        Args:
            batch: B texts, or windows of texts, as token ids, int64 [T], on the CPU.

        Raises:
            AudioError: more tokens than the network knows positions, or something else than token ids.
        """
        self._check(batch)
        counts = torch.tensor([len(ids) for ids in batch])
        ids = torch.full((len(batch), int(counts.max())), self._padding)
        for row, own in enumerate(batch):
            ids[row, : len(own)] = own
            # Of a text they are there already; a window gets them in place of tokens whose frames are not kept.
            ids[row, 0], ids[row, len(own) - 1] = self._begin, self._end
        ids, counts = ids.to(self.device), counts.to(self.device)
        valid = valid_mask(counts, ids.shape[1])
        positions = torch.arange(ids.shape[1], device=self.device) + self._first_position
        for name, frames in zip(self.spec.representations, self.network(ids, positions, valid), strict=True):
            yield PaddedRepresentation(name=name, frames=frames, num_frames=counts)

    def _check(self, batch: Sequence[Tensor]) -> None:
        for row, ids in enumerate(batch):
            if ids.dtype != torch.int64 or ids.ndim != 1 or not 2 <= len(ids) <= self.longest_s:
                raise AudioError(
                    f"Text {row} of the batch is {ids.dtype} of shape {tuple(ids.shape)}; {self.spec.name!r} takes token ids, int64"
                    f" [tokens], from 2 to {self.longest_s:.0f} of them, special tokens included. Give texts to encode_texts."
                )


class _Network(nn.Module):
    """transformers' ``BertModel`` or ``RobertaModel``, one layer after the other."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        embeddings = model.embeddings
        self.words, self.places = embeddings.word_embeddings, embeddings.position_embeddings
        self.types, self.norm = embeddings.token_type_embeddings, embeddings.LayerNorm
        self.layers = nn.ModuleList(_Layer(layer) for layer in model.encoder.layer)

    def pack(self) -> None:
        """Faster linear layers on the CPU."""
        for layer in self.layers:
            if isinstance(layer, _Layer):
                layer.pack()

    def forward(self, ids: Tensor, positions: Tensor, valid: Tensor) -> Iterator[Tensor]:
        """The input of the first layer, then the output of every layer, [B, T, D] each.

        Args:
            ids: int64 [B, T].
            positions: int64 [T].
            valid: bool [B, T], which tokens belong to the texts.
        """
        hidden = self.norm(self.words(ids) + self.types.weight[0] + self.places(positions))
        keys = None if bool(valid.all()) else valid[:, None, None]  # [B, 1, 1, T]
        yield hidden
        for layer in self.layers:
            hidden = layer(hidden, keys)
            yield hidden


class _Layer(nn.Module):
    """A layer of transformers' ``BertEncoder``, through torch's fused attention."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        attention = layer.attention
        self.heads: int = attention.self.num_attention_heads
        self.attention_norm, self.norm = attention.output.LayerNorm, layer.output.LayerNorm
        self.products = nn.ModuleDict(
            {
                "query": attention.self.query,
                "key": attention.self.key,
                "value": attention.self.value,
                "out": attention.output.dense,
                "widen": layer.intermediate.dense,
                "narrow": layer.output.dense,
            }
        )
        self.activation: nn.Module = nn.GELU()

    def pack(self) -> None:
        """Faster linear layers on the CPU."""
        widen = self.products["widen"]
        if isinstance(widen, nn.Linear) and can_pack(self.products):
            self.products["widen"] = PackedLinear(widen, gelu=True)
            self.activation = nn.Identity()
            pack_linears(self.products)

    def forward(self, hidden: Tensor, keys: Tensor | None) -> Tensor:
        """[B, T, D] to [B, T, D]; ``keys`` is bool [B, 1, 1, T], None for all."""
        query, key, value = (
            self.products[name](hidden).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [B, heads, T, D / heads]
            for name in ("query", "key", "value")
        )
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=keys).transpose(1, 2).flatten(2)
        hidden = self.attention_norm(hidden + self.products["out"](attended))
        inner = self.activation(self.products["widen"](hidden))
        return self.norm(hidden + self.products["narrow"](inner))  # type: ignore[no-any-return]


def _config_class(spec: EncoderSpec) -> Any:
    from transformers import CONFIG_MAPPING

    return CONFIG_MAPPING[str(spec.settings["model_type"])]


def _empty_model(spec: EncoderSpec) -> Any:
    """transformers' model in the size of the entry, initialised by transformers."""
    from transformers import MODEL_MAPPING

    config_class = _config_class(spec)
    model_class: Any = MODEL_MAPPING[config_class]
    return model_class(config_class(**_sizes(spec)), add_pooling_layer=False)


def _sizes(spec: EncoderSpec) -> dict[str, Any]:
    """What makes the network, by the names of ``BertConfig``."""
    return {
        "hidden_size": spec.dim,
        "num_hidden_layers": len(spec.representations) - 1,
        "hidden_act": "gelu",
        **spec.settings,
    }


def _with_tokenizer(state: Mapping[str, Tensor], tokenizer: Tokenizer) -> dict[str, Tensor]:
    """Parameters, and the tokenizer as one of them: with another one the same weights give other numbers."""
    digest = torch.tensor(list(bytes.fromhex(tokenizer_digest(tokenizer))), dtype=torch.uint8)
    return {**state, "tokenizer": digest}


def _read_encoder(spec: EncoderSpec, folder: Path, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The encoder's parameters under the names of ``BertModel``, checked, in float32.

    Names begin with ``bert.`` or ``roberta.`` in a checkpoint with a head; old ones call the weights of a LayerNorm gamma and beta.
    """
    path = next(folder / name for name in spec.files[-1].name.split("|") if (folder / name).is_file())
    state: dict[str, object] = {}
    for name, tensor in load_pickle_free(path).items():
        for prefix in _PREFIXES:
            name = name.removeprefix(prefix)
        if name.split(".")[0] in _UNREAD or name == "embeddings.position_ids":
            continue
        if ".LayerNorm." in name:
            name = name.replace(".gamma", ".weight").replace(".beta", ".bias")
        state[name] = tensor
    return {name: tensor.float() for name, tensor in check_state(state, expected, path=path, spec=spec).items()}
