"""Text to token ids: a checkpoint's own ``tokenizer.json``, or a vocabulary that is made here for random weights.

Ids are those of upstream's fast tokenizers, which read the same file: special tokens at both ends, ``[CLS] … [SEP]`` (BERT)
or ``<s> … </s>`` (RoBERTa), nothing cut and nothing padded (what a file says about either is for batches of fixed size and
is not followed). An empty text is its two special tokens.

Random weights need a vocabulary that costs no download and is the same everywhere, so it follows from a rule:

* *word pieces* (BERT): letters, digits and ASCII punctuation, and all pairs of letters, each at the beginning of a word and within
  it. A word falls into pairs from its left: ``happy`` is ``ha ##pp ##y``.
* *bytes* (RoBERTa): the 256 bytes, merged to pairs of lower-case letters, and a space to the letter behind it.

The text is lower-cased and stripped of accents for word pieces, as for ``bert-base-uncased``; for bytes it is left as it is.
"""

from __future__ import annotations

import hashlib
import json
import string
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.errors import WeightsError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from pipelines.encoders.catalogue import EncoderSpec

__all__ = [
    "byte_alphabet",
    "byte_merges",
    "byte_tokenizer",
    "read_tokenizer",
    "tokenizer_digest",
    "word_piece_tokenizer",
]

_PROBE = "Crème brûlée — DON'T  ask: 3,141 naïve\tquestions… ÄÖÜß 🙂"
"""A text on which tokenizers of one vocabulary that treat case, accents, spaces or bytes otherwise differ."""


def read_tokenizer(path: Path, spec: EncoderSpec) -> Tokenizer:
    """A checkpoint's ``tokenizer.json``.

    Raises:
        WeightsError: the file is damaged, or puts no special token at either end.
    """
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except Exception as error:  # the library raises bare ones
        raise WeightsError(
            f"{path} cannot be read as a tokenizer ({str(error).splitlines()[0]}). It belongs to the weights of {spec.name!r}; the"
            f" file is damaged or half-downloaded. Delete it and get it again from {spec.repository}."
        ) from error
    return _ready(tokenizer, str(path), spec.repository)


def _ready(tokenizer: Tokenizer, origin: str, source: str) -> Tokenizer:
    """Neither cut nor padded, and checked."""
    tokenizer.no_truncation()
    tokenizer.no_padding()
    if len(tokenizer.encode("").ids) != 2:
        raise WeightsError(
            f"{origin} gives an empty text {len(tokenizer.encode('').ids)} tokens; expected 2, the special tokens at both ends. It"
            f" is the tokenizer of another model: get it again from {source}."
        )
    return tokenizer


def tokenizer_digest(tokenizer: Tokenizer) -> str:
    """sha256 over the vocabulary and the ids of a text that shows how case, accents, spaces and bytes are treated."""
    said = [sorted(tokenizer.get_vocab().items()), tokenizer.encode(_PROBE).ids]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()


def word_piece_tokenizer() -> Tokenizer:
    """The made-up vocabulary of word pieces; ``[PAD]`` is 0, ``[UNK]`` 1, ``[CLS]`` 2, ``[SEP]`` 3, ``[MASK]`` 4."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = string.ascii_lowercase
    pairs = [first + second for first in letters for second in letters]
    pieces = [*letters, *string.digits, *pairs]
    names = [*special, *string.punctuation, *pieces, *(f"##{piece}" for piece in pieces)]
    vocabulary = {name: index for index, name in enumerate(names)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.add_special_tokens(special)
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])],
    )
    return _ready(tokenizer, "The made-up vocabulary", "this package")


def byte_alphabet() -> list[str]:
    """The 256 bytes in the letters that byte-level tokenizers write them with, by code point."""
    from tokenizers import pre_tokenizers

    return sorted(pre_tokenizers.ByteLevel.alphabet())


def byte_merges() -> list[tuple[str, str]]:
    """Pairs that are merged, in the order of their priority: a space with a letter, two letters."""
    letters = string.ascii_lowercase
    return [("Ġ", letter) for letter in letters] + [(first, second) for first in letters for second in letters]


def byte_tokenizer() -> Tokenizer:
    """The made-up vocabulary of bytes; ``<s>`` is 0, ``<pad>`` 1, ``</s>`` 2, ``<unk>`` 3, ``<mask>`` the last."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    special = ["<s>", "<pad>", "</s>", "<unk>"]
    merges = byte_merges()
    names = [*special, *byte_alphabet(), *(first + second for first, second in merges), "<mask>"]
    vocabulary = {name: index for index, name in enumerate(names)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.add_special_tokens([*special, "<mask>"])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.RobertaProcessing(
        ("</s>", vocabulary["</s>"]), ("<s>", vocabulary["<s>"]), add_prefix_space=False
    )
    return _ready(tokenizer, "The made-up vocabulary", "this package")
