"""Word and character error rates of transcripts against transcripts by hand, with intervals over speakers.

An error rate is (substitutions + deletions + insertions) / words of the reference, over all utterances together, by jiwer's
alignment of least edit distance; it may exceed 1, where more words are made up than were said. Characters are counted
likewise, the spaces between words among them.

**The interval** resamples speakers, as all intervals here do (``statistics.py``): utterances of one voice are not
independent.

**Normalisation** (version ``NORMALISATION_VERSION``), the same for both sides, so that spelling conventions are not errors:

1. Unicode NFKC, lower case, typographic apostrophes as ``'``;
2. what stands in [square] or <angle> brackets goes: annotations such as [LAUGHTER] are not words;
3. hyphens, dashes, slashes and underscores become spaces;
4. everything but letters, their marks, digits, apostrophes and spaces goes; apostrophes at the edge of a word, too;
5. runs of white space become one space.

Numbers are not spelled out, contractions not expanded and fillers ("uh") not removed: recognisers differ in these, and a rate
compared with a published one must be compared with its rules as well.

**Left out, and counted**: utterances without a reference (no transcript by hand, or nothing left of it after normalisation,
so that there is nothing to get wrong), and utterances whose recording failed. An utterance in which the recogniser heard no
words counts, all its words as deletions.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pipelines.evaluation.statistics import Interval, bootstrap_intervals

__all__ = ["NORMALISATION_VERSION", "EditCounts", "WordErrors", "edit_counts", "normalise", "word_errors"]

NORMALISATION_VERSION = 1

_APOSTROPHES = str.maketrans({"’": "'", "‘": "'", "ʼ": "'", "`": "'", "´": "'"})


@dataclass(frozen=True)
class EditCounts:
    """Edits of one alignment, in words or characters.

    Attributes:
        hits: of the reference, recognised.
        substitutions: of the reference, taken for others.
        deletions: of the reference, missed.
        insertions: made up.
    """

    hits: int
    substitutions: int
    deletions: int
    insertions: int

    @property
    def total(self) -> int:
        """Words (characters) of the reference."""
        return self.hits + self.substitutions + self.deletions

    @property
    def rate(self) -> float:
        """Error rate; NaN for an empty reference."""
        return (self.total - self.hits + self.insertions) / self.total if self.total else math.nan


@dataclass(frozen=True)
class WordErrors:
    """How far transcripts are from those by hand.

    Attributes:
        wer: word error rate, 1 for 100 %; NaN where nothing could be compared.
        wer_interval: its interval over speakers.
        cer: character error rate.
        cer_interval: its interval over speakers.
        words: edits of all utterances.
        by_utterance: utterance id to edits in words, of those that were compared.
        characters_by_utterance: the same in characters.
        without_reference: utterances left out because there is no transcript by hand, or no word in it.
        without_hypothesis: utterances left out because their recording failed.
    """

    wer: float
    wer_interval: Interval
    cer: float
    cer_interval: Interval
    words: EditCounts
    by_utterance: Mapping[str, EditCounts] = field(repr=False)
    characters_by_utterance: Mapping[str, EditCounts] = field(repr=False)
    without_reference: int
    without_hypothesis: int


def normalise(text: str) -> str:
    """A text as it is compared; see the module docstring."""
    text = unicodedata.normalize("NFKC", text).lower().translate(_APOSTROPHES)
    text = re.sub(r"\[[^\]]*\]|<[^>]*>", " ", text)
    text = re.sub(r"[-‐-―−/_]", " ", text)
    text = "".join(
        letter for letter in text if letter in "' " or letter.isspace() or unicodedata.category(letter)[0] in "LMN"
    )
    words = (word.strip("'") for word in text.split())
    return " ".join(word for word in words if word)


def edit_counts(reference: str, hypothesis: str, *, characters: bool = False) -> EditCounts:
    """Edits between two normalised texts.

    Args:
        reference: what was said.
        hypothesis: what was heard.
        characters: count characters instead of words.
    """
    import jiwer

    process: Callable[..., jiwer.WordOutput | jiwer.CharacterOutput] = (
        jiwer.process_characters if characters else jiwer.process_words
    )
    found = process(reference, hypothesis)
    return EditCounts(found.hits, found.substitutions, found.deletions, found.insertions)


def word_errors(
    references: Mapping[str, str], hypotheses: Mapping[str, str], speakers: Mapping[str, str]
) -> WordErrors:
    """Compare transcripts with those by hand.

    Args:
        references: utterance id to the transcript by hand; empty for none.
        hypotheses: utterance id to what was recognised, perhaps nothing; without those whose recording failed.
        speakers: utterance id to speaker, of all in ``references``.
    """
    words: dict[str, EditCounts] = {}
    characters: dict[str, EditCounts] = {}
    unspoken = unheard = 0
    for name, text in references.items():
        reference = normalise(text)
        if not reference:
            unspoken += 1
        elif name not in hypotheses:
            unheard += 1
        else:
            hypothesis = normalise(hypotheses[name])
            words[name] = edit_counts(reference, hypothesis)
            characters[name] = edit_counts(reference, hypothesis, characters=True)
    wer, wer_interval = _rate(words, speakers)
    cer, cer_interval = _rate(characters, speakers)
    return WordErrors(wer, wer_interval, cer, cer_interval, _sum(words), words, characters, unspoken, unheard)


def _sum(counts: Mapping[str, EditCounts]) -> EditCounts:
    entries = list(counts.values())
    return EditCounts(
        sum(entry.hits for entry in entries),
        sum(entry.substitutions for entry in entries),
        sum(entry.deletions for entry in entries),
        sum(entry.insertions for entry in entries),
    )


def _rate(counts: Mapping[str, EditCounts], speakers: Mapping[str, str]) -> tuple[float, Interval]:
    """The rate over all utterances and its interval over speakers."""
    if not counts:
        return math.nan, Interval(math.nan, math.nan, 0.95)
    names = sorted({speakers[name] for name in counts})
    tallies = np.zeros((len(names), 1, 2))  # errors and words of each speaker; one "seed"
    for name, entry in counts.items():
        tallies[names.index(speakers[name]), 0] += (entry.total - entry.hits + entry.insertions, entry.total)
    return _sum(counts).rate, bootstrap_intervals(tallies, {"rate": _ratio})["rate"]


def _ratio(tallies: NDArray[np.float64]) -> NDArray[np.float64]:
    ratio: NDArray[np.float64] = tallies[..., 0] / tallies[..., 1]
    return ratio
