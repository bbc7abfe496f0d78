"""EmoTale: ``wav/{DK|EN}_{SPEAKER}_{A|B|H|N|S}_{1-5}.wav`` and ``annotations.csv``.

The label is the emotion that was enacted. ``annotations.csv`` (file, a1_A, a1_V, a1_D, a1_cat, …) holds what three raters
heard: arousal, valence and dominance from 1 to 5, averaged here, and a category each (``rater_emotions``, joined by a colon).
The same answers stand in ``emotion_votes`` and ``arousal_ratings`` … (:mod:`pipelines.corpora.raters`).
Speakers 008, 009 and 014 are children (``age_group``). A speaker who recorded both languages is one speaker.
"""

from __future__ import annotations

import re
from pathlib import Path

from pipelines.corpora.layouts import Finding, Listing
from pipelines.corpora.layouts._files import (
    add_unparsed,
    file_named,
    has_match,
    read_table,
    recordings,
    relative,
    sex_of,
    subfolder,
)
from pipelines.corpora.raters import RATINGS, VOTES, format_ratings, format_votes, one_vote_each
from pipelines.errors import ManifestError

__all__ = ["SHAPE", "read", "recognise"]

SHAPE = "wav/DK_001_A_1.wav and annotations.csv"
"""The official shape, for messages."""

_NAME = re.compile(r"(DK|EN)_(\d{3})_([ABHNS])_([1-5])")
_CHILDREN = {"008", "009", "014"}
_RATERS = ("a1", "a2", "a3")
_DIMENSIONS = {"arousal": "A", "valence": "V", "dominance": "D"}

_SENTENCES = {
    "DK": (
        "Dugen ligger på køleskabet.",
        "Det sorte ark papir er placeret deroppe ved siden af tømmerstykket.",
        "De bar det bare ovenpå og nu skal de ned igen.",
        "Det vil være på det sted, hvor vi altid opbevarer det.",
        "Om syv timer er det morgen.",
    ),
    "EN": (
        "The tablecloth is lying on the fridge.",
        "The black sheet of paper is located up there besides the piece of timber.",
        "They just carried it upstairs and now they are going down again.",
        "It will be in the place where we always store it.",
        "In seven hours it will be morning.",
    ),
}


def recognise(root: Path) -> bool:
    """Whether the folder looks like EmoTale."""
    return has_match(subfolder(root, "wav"), _NAME)


def read(root: Path) -> Listing:
    """List EmoTale."""
    findings: list[Finding] = []
    ratings = _ratings(root, findings)
    sexes = _sexes(root)
    rows, unparsed, unrated = [], [], []
    folder = subfolder(root, "wav")
    for path in recordings(folder) if folder else []:
        match = _NAME.fullmatch(path.stem)
        if match is None:
            unparsed.append(path)
            continue
        language, speaker, emotion, sentence = match.groups()
        if ratings and path.stem not in ratings:
            unrated.append(path.stem)
        rows.append(
            {
                "utterance_id": path.stem,
                "path": relative(path, root),
                "speaker": speaker,
                "sex": sexes.get(speaker, ""),
                "language": "da" if language == "DK" else "en",
                "emotion_raw": emotion,
                "transcript": _SENTENCES[language][int(sentence) - 1],
                "age_group": "child" if speaker in _CHILDREN else "adult",
                **ratings.get(path.stem, {}),
            }
        )
    add_unparsed(findings, root, unparsed, "LANGUAGE_SPEAKER_EMOTION_SENTENCE.wav")
    if unrated:
        findings.append(Finding("note", f"{len(unrated)} recording(s) are not in annotations.csv.", tuple(unrated[:5])))
    children = sorted({str(row["speaker"]) for row in rows if row["age_group"] == "child"})
    if children:
        findings.append(
            Finding(
                "note",
                f"Speaker(s) {', '.join(children)} are children; their voices differ from all others (age_group).",
            )
        )
    return Listing(rows, tuple(findings))


def _ratings(root: Path, findings: list[Finding]) -> dict[str, dict[str, object]]:
    """Recording without suffix to the mean of the raters who answered, and their categories."""
    path = file_named(root, "annotations.csv")
    if path is None:
        findings.append(Finding("note", "annotations.csv is missing: arousal, valence and dominance are unknown."))
        return {}
    columns = ("file", *(f"{rater}_{name}" for rater in _RATERS for name in (*_DIMENSIONS.values(), "cat")))
    ratings = {}
    for row in read_table(path, columns):
        heard = [row[f"{rater}_cat"] for rater in _RATERS]
        result: dict[str, object] = {
            "rater_emotions": ":".join(heard),
            VOTES: format_votes(one_vote_each([emotion] for emotion in heard if emotion)),
        }
        for dimension, letter in _DIMENSIONS.items():
            answers = [row[f"{rater}_{letter}"] for rater in _RATERS]
            try:
                values = [float(answer) for answer in answers if answer]
            except ValueError:
                raise ManifestError(f"{path}, {row['file']}: {', '.join(answers)} are not all numbers.") from None
            if values:
                result[dimension] = sum(values) / len(values)
                result[RATINGS[dimension]] = format_ratings(values)
        ratings[Path(row["file"]).stem] = result
    return ratings


def _sexes(root: Path) -> dict[str, str]:
    """Speaker to sex from ``speaker_info.csv``; its columns are not documented, so they are found by what they hold."""
    path = file_named(root, "speaker_info.csv")
    if path is None:
        return {}
    sexes = {}
    for row in read_table(path, ()):
        numbers = [value for value in row.values() if re.fullmatch(r"\d{1,3}", value)]
        sex = next((sex_of(value) for name, value in row.items() if name.lower() in {"gender", "sex"}), "")
        if numbers and sex:
            sexes[numbers[0].zfill(3)] = sex
    return sexes
