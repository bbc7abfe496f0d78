"""Whisper with its decoder: recordings to text (Radford et al. 2022).

The encoder is that of ``whisper.py``, over all 30 s as the decoder was trained with. The decoder is written down here as its
frozen parts one token at a time: keys and values of the recording are computed once per layer, those of earlier tokens are
kept.

**Greedy decoding**, as transformers' ``generate`` does it with one beam, no sampling, no timestamps and no fallback to other
temperatures: after ``<|startoftranscript|>``, language, ``<|transcribe|>`` and ``<|notimestamps|>`` always the likeliest
token, never one of ``suppress_tokens`` (and at first none of ``begin_suppress_tokens``) of the checkpoint's
``generation_config.json``, until ``<|endoftext|>`` or 224 tokens, half of what the decoder has positions for, as OpenAI's
own code does. Language ``auto`` takes the likeliest language token after ``<|startoftranscript|>``, recording by recording.

What it does not do: it does not notice when a recording has no speech (Whisper may invent words then), and it keeps nothing
of one window when it hears the next.

**Long recordings** are cut into pieces of 30 s or less, side by side, each where the recording is quietest in the last 5 s
that it may reach (least energy over 0.2 s): words do not overlap, and seldom a word is cut. Their texts are joined by a
space.

Cost at full size on one thread of an AMD EPYC (family 26), CPU time: 0.57 s for the encoder of every piece, however short,
and 6 ms per token and piece in a batch of six (9 ms one by one).

Random weights have a made-up vocabulary of bytes and pairs of letters, write lower-case letters and spaces only, and stop
after 16 tokens in the tiny size.
"""

from __future__ import annotations

import hashlib
import json
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipelines.encoders.catalogue import EncoderSpec
from pipelines.encoders.cpu_linear import pack_linears
from pipelines.encoders.random_weights import initialise
from pipelines.encoders.recognition import AUTO, Recogniser, with_files
from pipelines.encoders.state_check import check_state
from pipelines.encoders.text_tokenizer import byte_alphabet, byte_merges, tokenizer_digest
from pipelines.encoders.weights import Progress, find_checkpoint, load_pickle_free, random_initialisation, state_digest
from pipelines.encoders.whisper import WhisperEncoder
from pipelines.encoders.windows import Window
from pipelines.errors import WeightsError, unknown_name

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["MOST_TOKENS", "GenerationSettings", "WhisperRecogniser", "quiet_windows", "random_vocabulary"]

MOST_TOKENS = 224
_TINY_TOKENS = 16
_LONGEST_S, _SEARCH_S, _QUIET_S = 30.0, 5.0, 0.2
_RANDOM_LANGUAGES = ("en", "de", "es", "fr", "it", "da", "pt", "nl", "zh", "ja")


@dataclass(frozen=True, kw_only=True)
class GenerationSettings:
    """Tokens that decoding needs to know, by the names of ``generation_config.json``.

    Attributes:
        start: begins every transcript.
        end: ends it.
        no_timestamps: closes the prompt; all tokens above it are timestamps.
        transcribe: asks for words in the language spoken; None for a checkpoint that knows English only.
        languages: ISO 639-1 code to token; empty for a checkpoint that knows English only.
        suppressed: never chosen.
        suppressed_at_first: not chosen as the first token.
        most_tokens: after which a transcript ends.
    """

    start: int
    end: int
    no_timestamps: int
    transcribe: int | None
    languages: Mapping[str, int]
    suppressed: tuple[int, ...]
    suppressed_at_first: tuple[int, ...]
    most_tokens: int = MOST_TOKENS

    @property
    def digest(self) -> str:
        """sha256 over all of it."""
        said = [
            self.start,
            self.end,
            self.no_timestamps,
            self.transcribe,
            sorted(self.languages.items()),
            sorted(self.suppressed),
            sorted(self.suppressed_at_first),
            self.most_tokens,
        ]
        return hashlib.sha256(json.dumps(said).encode()).hexdigest()


def quiet_windows(samples: Tensor, rate_hz: int) -> list[Window]:
    """A recording in pieces of at most 30 s, side by side, cut where it is quietest.

    Args:
        samples: float32 [samples].
        rate_hz: sample rate.

    Returns:
        Pieces; ``first`` and ``last``, which count frames, are 0.
    """
    longest, search, reach = (int(seconds * rate_hz) for seconds in (_LONGEST_S, _SEARCH_S, _QUIET_S))
    windows: list[Window] = []
    begin = 0
    while len(samples) - begin > longest:
        late = samples[begin + longest - search : begin + longest].double()
        energy = late.square().unfold(0, reach, reach // 10).sum(1)
        cut = begin + longest - search + int(energy.argmin()) * (reach // 10) + reach // 2
        windows.append(Window(begin, cut, 0, 0))
        begin = cut
    return [*windows, Window(begin, len(samples), 0, 0)]


class WhisperRecogniser(Recogniser):
    """A Whisper of 80 mel bands, encoder and decoder.

    Attributes:
        tokenizer: ids to text.
        settings: tokens that decoding needs to know.
    """

    decoding = "greedy Whisper 1"

    def __init__(
        self,
        *,
        spec: EncoderSpec,
        encoder: WhisperEncoder,
        decoder: Any,
        tokenizer: Tokenizer,
        settings: GenerationSettings,
        language: str,
    ) -> None:
        if language != AUTO and settings.languages and language not in settings.languages:
            raise unknown_name("language", language, [AUTO, *settings.languages], hint="Codes are those of ISO 639-1.")
        parts = f"{encoder.weights.digest} {state_digest(decoder.state_dict())} {tokenizer_digest(tokenizer)} {settings.digest}"
        weights = replace(encoder.weights, digest=hashlib.sha256(parts.encode()).hexdigest())
        super().__init__(spec=spec, weights=weights, encoder=encoder, language=language if settings.languages else "en")
        self.tokenizer = tokenizer
        self.settings = settings
        self._whole = encoder
        self._decoder = _Decoder(decoder.eval().requires_grad_(False)).to(encoder.device)
        self._decoder.pack()
        self.clips_per_batch = 8 if encoder.device.type == "cpu" else 64
        never = torch.zeros(decoder.embed_tokens.num_embeddings, device=encoder.device)
        never[list(settings.suppressed)] = -torch.inf
        at_first = never.clone()
        at_first[list(settings.suppressed_at_first)] = -torch.inf
        self._never, self._never_at_first = never, at_first

    @classmethod
    def build(
        cls,
        *,
        spec: EncoderSpec,
        weights_kind: str,
        device: torch.device,
        weights_dir: Path | None = None,
        progress: Progress | None = None,
        language: str = AUTO,
    ) -> WhisperRecogniser:
        """Load (``pretrained``) or initialise (``random``); a checkpoint is one of ``WhisperForConditionalGeneration``.

        Raises:
            UnknownNameError: the checkpoint does not know the language.
            WeightsError: the checkpoint is absent, damaged, of another size, or does not hold every parameter.
        """
        if spec.files:
            spec = with_files(spec, "generation_config.json", "tokenizer.json")
        encoder = WhisperEncoder.build(
            spec=spec, weights_kind=weights_kind, device=device, weights_dir=weights_dir, progress=progress
        )
        if weights_kind == "random":
            tokenizer, settings = random_vocabulary(most_tokens=_TINY_TOKENS if spec.is_tiny else MOST_TOKENS)
            with random_initialisation(replace(spec, name=f"{spec.name} decoder")):
                decoder = _random_decoder(spec, tokenizer.get_vocab_size())
        else:
            folder, _ = find_checkpoint(spec, weights_dir=weights_dir, progress=progress)
            settings = _read_settings(spec, folder)
            tokenizer = _read_tokenizer(spec, folder)
            decoder = _read_decoder(spec, folder)
        return cls(
            spec=spec, encoder=encoder, decoder=decoder, tokenizer=tokenizer, settings=settings, language=language
        )

    def windows(self, samples: Tensor) -> list[Window]:
        """See :meth:`Recogniser.windows`; pieces lie side by side."""
        return quiet_windows(samples, self.spec.sample_rate_hz)

    @torch.inference_mode()
    def hear(self, batch: Sequence[Tensor]) -> list[Tensor | None]:
        """See :meth:`Recogniser.hear`: the tokens of every piece, without prompt and end."""
        settings = self.settings
        hidden = self._whole.encode_whole(batch)
        finite = torch.isfinite(hidden).flatten(1).all(dim=1).tolist()
        state = self._decoder.begin(hidden)
        count = len(batch)

        def constant(token: int) -> Tensor:
            return torch.full((count,), token, device=self.device)

        logits = self._decoder(constant(settings.start), state)
        if settings.languages:
            if self.language == AUTO:
                codes = torch.tensor(sorted(settings.languages.values()), device=self.device)
                self._decoder(codes[logits[:, codes].argmax(dim=1)], state)
            else:
                self._decoder(constant(settings.languages[self.language]), state)
        if settings.transcribe is not None:
            self._decoder(constant(settings.transcribe), state)
        logits = self._decoder(constant(settings.no_timestamps), state) + self._never_at_first
        chosen: list[Tensor] = []
        ended = torch.zeros(count, dtype=torch.bool, device=self.device)
        for step in range(settings.most_tokens):
            tokens = logits.argmax(dim=1).masked_fill(ended, settings.end)
            chosen.append(tokens)
            ended |= tokens == settings.end
            if step + 1 == settings.most_tokens or bool(ended.all()):
                break
            logits = self._decoder(tokens, state) + self._never
        table = torch.stack(chosen, dim=1).cpu()  # [B, steps]
        return [
            row[: int((row != settings.end).sum())] if is_finite else None
            for row, is_finite in zip(table, finite, strict=True)
        ]

    def spell(self, heard: Sequence[Tensor], windows: Sequence[Window]) -> str:
        """See :meth:`Recogniser.spell`."""
        texts = []
        for tokens in heard:
            words = [token for token in tokens.tolist() if token <= self.settings.no_timestamps]
            texts.append(self.tokenizer.decode(words, skip_special_tokens=True))
        return " ".join(" ".join(texts).split())


class _State:
    """What a batch has behind it: of every layer, keys and values of the recordings and of the tokens so far."""

    def __init__(self, recordings: list[tuple[Tensor, Tensor]]) -> None:
        self.recordings = recordings
        self.tokens: list[tuple[Tensor, Tensor] | None] = [None] * len(recordings)
        self.length = 0


class _Decoder(nn.Module):
    """transformers' ``WhisperDecoder``, one token of every recording at a time."""

    def __init__(self, decoder: Any) -> None:
        super().__init__()
        self.words, self.places = decoder.embed_tokens, decoder.embed_positions
        self.norm = decoder.layer_norm
        self.scale = float(decoder.embed_scale)
        self.layers = nn.ModuleList(_DecoderLayer(layer) for layer in decoder.layers)

    def pack(self) -> None:
        """Faster linear layers on the CPU."""
        pack_linears(self.layers)

    def begin(self, hidden: Tensor) -> _State:
        """The state before the first token, from the encoder's [B, 1500, D]."""
        return _State([layer.look(hidden) for layer in self._own_layers()])

    def forward(self, tokens: Tensor, state: _State) -> Tensor:
        """Logits [B, vocabulary] after one more token of each, int64 [B]; ``state`` moves on."""
        hidden = (self.words(tokens) * self.scale + self.places.weight[state.length])[:, None]  # [B, 1, D]
        for index, layer in enumerate(self._own_layers()):
            hidden = layer(hidden, state, index)
        state.length += 1
        return F.linear(self.norm(hidden[:, 0]), self.words.weight)

    def _own_layers(self) -> list[_DecoderLayer]:
        return [layer for layer in self.layers if isinstance(layer, _DecoderLayer)]


class _DecoderLayer(nn.Module):
    """A layer of transformers' ``WhisperDecoder``."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.heads: int = layer.self_attn.num_heads
        self.own, self.other = layer.self_attn, layer.encoder_attn
        self.norms = nn.ModuleList([layer.self_attn_layer_norm, layer.encoder_attn_layer_norm, layer.final_layer_norm])
        self.widen, self.narrow = layer.fc1, layer.fc2

    def _split(self, hidden: Tensor) -> Tensor:
        batch, length, dim = hidden.shape
        return hidden.view(batch, length, self.heads, dim // self.heads).transpose(1, 2)  # [B, heads, T, D / heads]

    def look(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of the recordings, [B, heads, 1500, D / heads]."""
        return self._split(self.other.k_proj(hidden)), self._split(self.other.v_proj(hidden))

    def forward(self, hidden: Tensor, state: _State, index: int) -> Tensor:
        """[B, 1, D] to [B, 1, D]."""
        inputs = self.norms[0](hidden)
        key, value = self._split(self.own.k_proj(inputs)), self._split(self.own.v_proj(inputs))
        if (before := state.tokens[index]) is not None:
            key, value = torch.cat([before[0], key], dim=2), torch.cat([before[1], value], dim=2)
        state.tokens[index] = key, value
        hidden = hidden + self._attend(self.own, inputs, key, value)
        hidden = hidden + self._attend(self.other, self.norms[1](hidden), *state.recordings[index])
        return hidden + self.narrow(F.gelu(self.widen(self.norms[2](hidden))))  # type: ignore[no-any-return]

    def _attend(self, attention: Any, inputs: Tensor, key: Tensor, value: Tensor) -> Tensor:
        attended = F.scaled_dot_product_attention(self._split(attention.q_proj(inputs)), key, value)
        return attention.out_proj(attended.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


# ------------------------------------------------------------------------------------------------ random weights


def random_vocabulary(*, most_tokens: int = MOST_TOKENS) -> tuple[Tokenizer, GenerationSettings]:
    """A vocabulary of bytes and pairs of letters in upstream's format, and the tokens that decoding needs to know."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    merges = byte_merges()
    special = ["<|endoftext|>", "<|startoftranscript|>", *(f"<|{code}|>" for code in _RANDOM_LANGUAGES)]
    special += ["<|transcribe|>", "<|notimestamps|>"]
    plain = [*byte_alphabet(), *(first + second for first, second in merges)]
    numbers = {name: index for index, name in enumerate([*plain, *special])}
    tokenizer = Tokenizer(models.BPE(numbers, merges))
    tokenizer.add_special_tokens(special)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    letters = set(string.ascii_lowercase)
    written = {name for name in plain if set(name.removeprefix("Ġ")) <= letters and name != "Ġ"}
    never = [numbers[name] for name in numbers if name not in written and name != "<|endoftext|>"]
    settings = GenerationSettings(
        start=numbers["<|startoftranscript|>"],
        end=numbers["<|endoftext|>"],
        no_timestamps=numbers["<|notimestamps|>"],
        transcribe=numbers["<|transcribe|>"],
        languages={code: numbers[f"<|{code}|>"] for code in _RANDOM_LANGUAGES},
        suppressed=tuple(never),
        suppressed_at_first=(numbers["<|endoftext|>"],),
        most_tokens=most_tokens,
    )
    return tokenizer, settings


def _random_decoder(spec: EncoderSpec, vocabulary: int) -> Any:
    """transformers' ``WhisperDecoder`` in the size of the entry, through which a signal passes."""
    from transformers import WhisperConfig
    from transformers.models.whisper.modeling_whisper import WhisperDecoder

    settings: dict[str, Any] = dict(spec.settings)
    config: Any = WhisperConfig
    decoder = WhisperDecoder(
        config(
            d_model=spec.dim,
            decoder_layers=len(spec.representations) - 1,
            decoder_attention_heads=settings["encoder_attention_heads"],
            decoder_ffn_dim=settings["encoder_ffn_dim"],
            vocab_size=vocabulary,
            pad_token_id=vocabulary - 1,
            bos_token_id=vocabulary - 1,
            eos_token_id=vocabulary - 1,
            decoder_start_token_id=vocabulary - 1,
        )
    )
    initialise(decoder)
    return decoder


# ------------------------------------------------------------------------------------------------ checkpoints


def _read_json(spec: EncoderSpec, path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise WeightsError(
            f"{path} cannot be read ({error}). It belongs to the weights of {spec.name!r} and should be JSON; the file is damaged"
            f" or half-downloaded. Delete it and get it again from {spec.repository}."
        ) from error


def _read_settings(spec: EncoderSpec, folder: Path) -> GenerationSettings:
    path = folder / "generation_config.json"
    config = _read_json(spec, path)
    try:
        languages = {str(name).strip("<|>"): int(token) for name, token in (config.get("lang_to_id") or {}).items()}
        ends = config["eos_token_id"]
        return GenerationSettings(
            start=int(config["decoder_start_token_id"]),
            end=int(ends[0] if isinstance(ends, list) else ends),
            no_timestamps=int(config["no_timestamps_token_id"]),
            transcribe=int(config["task_to_id"]["transcribe"]) if languages else None,
            languages=languages,
            suppressed=tuple(config.get("suppress_tokens") or ()),
            suppressed_at_first=tuple(config.get("begin_suppress_tokens") or ()),
            most_tokens=min(MOST_TOKENS, int(config.get("max_length") or 2 * MOST_TOKENS) // 2),
        )
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise WeightsError(
            f"{path} does not say which tokens begin and end a transcript ({type(error).__name__}: {error}). It should be the"
            f" generation_config.json of {spec.repository} at revision {spec.revision}; get it again from there."
        ) from error


def _read_tokenizer(spec: EncoderSpec, folder: Path) -> Tokenizer:
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    try:
        return Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except Exception as error:  # the library raises bare ones
        raise WeightsError(
            f"{path} cannot be read as a tokenizer ({str(error).splitlines()[0]}). The file is damaged or half-downloaded. Delete"
            f" it and get it again from {spec.repository}."
        ) from error


def _read_decoder(spec: EncoderSpec, folder: Path) -> Any:
    """The checkpoint's decoder in the size that its configuration says, checked, in float32."""
    from transformers import WhisperConfig
    from transformers.models.whisper.modeling_whisper import WhisperDecoder

    config_class: Any = WhisperConfig
    config = config_class(**_read_json(spec, folder / "config.json"))
    with torch.device("meta"):
        decoder = WhisperDecoder(config)
    path = next(folder / name for name in spec.files[-1].name.split("|") if (folder / name).is_file())
    state: dict[str, object] = {}
    for name, tensor in load_pickle_free(path).items():
        part, _, rest = name.removeprefix("model.").partition(".")
        if part == "decoder":
            state[rest] = tensor
    found = check_state(state, decoder.state_dict(), path=path, spec=spec)
    decoder.load_state_dict({name: tensor.float() for name, tensor in found.items()}, assign=True)
    return decoder
