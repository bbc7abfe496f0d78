"""Connectionist temporal classification over characters: alphabet, loss, greedy decoding.

Graves et al. 2006, *Connectionist Temporal Classification* (ICML): every frame gives a character or the blank; a text is what is
left when repeats are merged and blanks dropped. Symbol 0 is the blank. What is learned is a text as word errors are counted in it
(:func:`spelling`): the rules of ``evaluation/word_errors.py``, which this layer may not import; a test holds the two together.

A sequence of T frames can say a text of L characters if T >= L plus the number of doubled characters in a row; where it cannot,
the loss is infinite, which counts as 0 here and is reported (:func:`shortest_frames`).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["BLANK", "Alphabet", "ctc_loss", "shortest_frames", "spelling"]

_APOSTROPHES = str.maketrans(dict.fromkeys("’‘ʼ`´", "'"))

BLANK = 0
"""Symbol that stands for no character."""


def spelling(text: str) -> str:
    """A text as it is learned: lower case, nothing in brackets; only letters, digits, inner apostrophes and single spaces."""
    plain = unicodedata.normalize("NFKC", text).lower().translate(_APOSTROPHES)
    plain = re.sub(r"\[[^\]]*\]|<[^>]*>|[-‐-―−/_]", " ", plain)
    kept = "".join(letter for letter in plain if letter in "' " or unicodedata.category(letter)[0] in "LMNZC")
    return " ".join(filter(None, (word.strip("'") for word in kept.split())))


@dataclass(frozen=True)
class Alphabet:
    """The characters that can be written.

    Attributes:
        characters: symbol i + 1 is character i.
    """

    characters: tuple[str, ...]

    @classmethod
    def of(cls, texts: Iterable[str]) -> Alphabet:
        """The characters of some texts (in their :func:`spelling`), sorted."""
        return cls(tuple(sorted({letter for text in texts for letter in spelling(text)})))

    def __len__(self) -> int:
        """Symbols, the blank included."""
        return len(self.characters) + 1

    def encode(self, text: str) -> NDArray[np.int64]:
        """Symbols of a text; characters that are not in the alphabet are left out."""
        symbol = {letter: index for index, letter in enumerate(self.characters, start=1)}
        return np.array([symbol[letter] for letter in spelling(text) if letter in symbol], dtype=np.int64)

    def decode(self, symbols: Iterable[int]) -> str:
        """Text of symbols per frame: repeats merged, blanks dropped, single spaces."""
        text, before = [], BLANK
        for symbol in symbols:
            if symbol not in (before, BLANK):
                text.append(self.characters[symbol - 1])
            before = symbol
        return " ".join("".join(text).split())

    def greedy(self, scores: Tensor, lengths: Sequence[int]) -> list[str]:
        """Texts of the best symbol of every frame.

        Args:
            scores: logits or log-probabilities [B, T, V].
            lengths: frames of each sequence.
        """
        best = scores.argmax(dim=-1).tolist()
        return [self.decode(row[:length]) for row, length in zip(best, lengths, strict=True)]


def shortest_frames(symbols: NDArray[np.int64]) -> int:
    """Fewest frames that can say some symbols: one each, and a blank between equal neighbours."""
    return len(symbols) + int((symbols[1:] == symbols[:-1]).sum())


def ctc_loss(logits: Tensor, lengths: Tensor, targets: Sequence[NDArray[np.int64]]) -> Tensor:
    """Negative log-likelihood per character, mean over the sequences of a batch that can say their text; 0 if none can.

    Args:
        logits: [B, T, V].
        lengths: int64 [B], frames of each sequence.
        targets: B sequences of symbols; one without symbols wants blanks throughout, and is divided by 1.
    """
    sizes = torch.tensor([len(target) for target in targets])
    flat = torch.from_numpy(np.concatenate([*targets, np.empty(0, np.int64)])).to(logits.device)
    log_probabilities = torch.log_softmax(logits.float(), dim=-1).transpose(0, 1)  # [T, B, V]
    losses = F.ctc_loss(
        log_probabilities, flat, lengths.cpu(), sizes, blank=BLANK, reduction="none", zero_infinity=True
    )
    can = torch.tensor([shortest_frames(target) for target in targets]) <= lengths.cpu()
    per_character = losses / sizes.clamp(min=1).to(losses.device)
    return per_character.sum() / max(1, int(can.sum()))
