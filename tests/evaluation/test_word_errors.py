from __future__ import annotations

import math

import jiwer
import numpy as np
import pytest

from pipelines.evaluation.word_errors import EditCounts, edit_counts, normalise, word_errors


def levenshtein(reference: list[str], hypothesis: list[str]) -> int:
    """Least number of edits, by the plain recursion over a table."""
    table = np.arange(len(hypothesis) + 1)
    for row, word in enumerate(reference, start=1):
        before, table = table, np.empty_like(table)
        table[0] = row
        for column, heard in enumerate(hypothesis, start=1):
            table[column] = min(before[column] + 1, table[column - 1] + 1, before[column - 1] + (word != heard))
    return int(table[-1])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hello, World!", "hello world"),
        ("DON’T  stop", "don't stop"),
        ("'quoted' rock 'n' roll", "quoted rock n roll"),
        ("[LAUGHTER] Well <unk> yes", "well yes"),
        ("well-known — and/or", "well known and or"),
        ("Straße, ÄPFEL", "straße äpfel"),
        ("ﬁne ①", "fine 1"),
        ("3,141", "3141"),
        ("e\u0301te\u0301", "été"),
        ("... !", ""),
        ("हिन्दी", "हिन्दी"),
    ],
)
def test_normalisation(text: str, expected: str) -> None:
    assert normalise(text) == expected
    assert normalise(expected) == expected


def test_counts_are_those_of_the_least_edits() -> None:
    generator = np.random.default_rng(0)
    for _ in range(60):
        reference, hypothesis = (
            [str(word) for word in generator.integers(0, 5, generator.integers(1, 12))] for _ in range(2)
        )
        found = edit_counts(" ".join(reference), " ".join(hypothesis))
        assert found.total == len(reference)
        assert found.substitutions + found.deletions + found.insertions == levenshtein(reference, hypothesis)
        assert found.rate == pytest.approx(jiwer.wer(" ".join(reference), " ".join(hypothesis)))
        text = "".join(reference), "".join(hypothesis)
        characters = edit_counts(*text, characters=True)
        assert characters.substitutions + characters.deletions + characters.insertions == levenshtein(*map(list, text))


def test_extremes() -> None:
    assert edit_counts("a b c", "a b c") == EditCounts(3, 0, 0, 0)
    assert edit_counts("a b c", "") == EditCounts(0, 0, 3, 0)
    assert edit_counts("a", "x y z").rate == 3.0
    assert math.isnan(EditCounts(0, 0, 0, 2).rate)


REFERENCES = {"a1": "One two three.", "a2": "four", "b1": "Five, six!", "c1": "", "c2": "[NOISE]", "d1": "seven"}
SPEAKERS = {name: name[0] for name in REFERENCES}


def test_rates_are_over_all_utterances_together() -> None:
    found = word_errors(REFERENCES, {"a1": "one two tree", "a2": "", "b1": "five six", "c1": "x"}, SPEAKERS)
    assert found.words == EditCounts(4, 1, 1, 0)
    assert found.wer == pytest.approx(2 / 6)
    everything = [("one two three", "one two tree"), ("four", ""), ("five six", "five six")]
    assert found.cer == pytest.approx(jiwer.cer([one for one, _ in everything], [other for _, other in everything]))
    assert found.by_utterance["a2"] == EditCounts(0, 0, 1, 0)  # silence heard: all words missed
    assert (found.without_reference, found.without_hypothesis) == (2, 1)
    assert found.wer_interval.low < found.wer < found.wer_interval.high


def test_the_interval_is_over_speakers() -> None:
    """The same errors by utterance, on one speaker of ten or on all: the first says less about the next speaker."""
    references = {f"{speaker}_{take}": "a b c d" for speaker in range(10) for take in range(10)}
    speakers = {name: name.split("_")[0] for name in references}
    uneven = {name: "a b c x" if speakers[name] in "0123" else "a b c d" for name in references}
    even = {name: "a b c x" if name.endswith(("_0", "_1", "_2", "_3")) else "a b c d" for name in references}
    wide, narrow = (word_errors(references, texts, speakers) for texts in (uneven, even))
    assert wide.wer == narrow.wer == pytest.approx(0.1)
    assert narrow.wer_interval.high == pytest.approx(narrow.wer_interval.low)
    assert wide.wer_interval.high - wide.wer_interval.low > 0.1


def test_nothing_to_compare() -> None:
    found = word_errors({"a": "", "b": "words"}, {"a": "x"}, {"a": "s", "b": "s"})
    assert math.isnan(found.wer)
    assert math.isnan(found.cer_interval.low)
    assert (found.without_reference, found.without_hypothesis) == (1, 1)


def test_one_speaker_has_no_interval() -> None:
    found = word_errors({"a": "words"}, {"a": "words"}, {"a": "s"})
    assert found.wer == 0.0
    assert math.isnan(found.wer_interval.low)
