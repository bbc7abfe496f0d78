"""Imitations of IEMOCAP and MSP-Podcast in their official folders that studies can be run on: speech, words, raters, splits.

Recordings, words and answers are those of the demo corpus (:mod:`pipelines.corpora.demo`), so emotion is in the voice, valence
in the words, and a study has something to find; names, folders, tables and scales are those of ../shared/facts/corpora.md.
"""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipelines.corpora.demo import DEMO_SAMPLE_RATE_HZ, synthesise_utterance
from pipelines.corpora.raters import parse_ratings, parse_votes
from tests.corpora.official_trees import text

__all__ = ["spoken_iemocap", "spoken_msp_podcast"]

_IEMOCAP_EMOTIONS = {"anger": "ang", "happiness": "hap", "neutral": "neu", "sadness": "sad"}
_IEMOCAP_WORDS = {
    "anger": "Anger",
    "disgust": "Disgust",
    "fear": "Fear",
    "happiness": "Happiness",
    "neutral": "Neutral",
    "sadness": "Sadness",
}
_MSP_EMOTIONS = {"anger": "A", "disgust": "D", "fear": "F", "happiness": "H", "neutral": "N", "sadness": "S"}
_MSP_WORDS = {
    "anger": "Angry",
    "disgust": "Disgust",
    "fear": "Fear",
    "happiness": "Happy",
    "neutral": "Neutral",
    "sadness": "Sad",
}
_MSP_SPLITS = {"Train": (1, 2, 3, 4), "Development": (5, 6), "Test1": (7, 8, 9), "Test2": (10,)}


def spoken_iemocap(root: Path, *, sentences: int = 3) -> Path:
    """Five sessions of a woman and a man, an improvised and a scripted dialogue each, five evaluators.

    Per speaker and class of the 4-class task ``sentences`` turns (at most 4), some of the happy ones called excited; per session
    one turn that evaluators did not agree on.

    Returns:
        The root.
    """
    for session in range(1, 6):
        turns: dict[str, list[tuple[str, str, dict[str, object]]]] = defaultdict(list)
        spoken = [
            (speaker, emotion, label, take)
            for speaker in (2 * session - 1, 2 * session)
            for emotion, label in _IEMOCAP_EMOTIONS.items()
            for take in range(1, sentences + 1)
        ]
        spoken.append((2 * session, "disgust", "xxx", 1))
        for number, (speaker, emotion, label, take) in enumerate(spoken):
            samples, row = synthesise_utterance(f"s{speaker:02d}_{emotion}_t{take}_k1")
            dialogue = f"Ses0{session}{'F_impro01' if take % 2 else 'M_script01_1'}"
            turn = f"{dialogue}_{'F' if speaker % 2 else 'M'}{number:03d}"
            label = "exc" if label == "hap" and take % 2 == 0 else label
            _wav(root / f"Session{session}" / "sentences" / "wav" / dialogue / f"{turn}.wav", samples)
            turns[dialogue].append((turn, label, row))
        for dialogue, said in turns.items():
            folder = root / f"Session{session}" / "dialog"
            text(folder / "EmoEvaluation" / f"{dialogue}.txt", "\n".join(_evaluation(said)))
            lines = [f"{turn} [000.0000-{row['duration_s']:08.4f}]: {row['transcript']}" for turn, _, row in said]
            text(folder / "transcriptions" / f"{dialogue}.txt", "\n".join([*lines, ""]))
    return root


def _evaluation(said: list[tuple[str, str, dict[str, object]]]) -> list[str]:
    lines = ["% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]", ""]
    for turn, label, row in said:
        numbers = ", ".join(f"{row[name]:.4f}" for name in ("valence", "arousal", "dominance"))
        lines.append(f"[0.0000 - {row['duration_s']:.4f}]\t{turn}\t{label}\t[{numbers}]")
        heard = [
            emotion for emotion, votes in parse_votes(str(row["emotion_votes"])).items() for _ in range(int(votes))
        ]
        lines += [f"C-E{rater}:\t{_IEMOCAP_WORDS[emotion]};\t()" for rater, emotion in enumerate(heard, start=1)]
        given = [parse_ratings(str(row[f"{name}_ratings"])) for name in ("valence", "arousal", "dominance")]
        lines += [
            f"A-E{rater}:\tval {valence:.0f}; act {arousal:.0f}; dom  {dominance:.0f};\t()"
            for rater, (valence, arousal, dominance) in enumerate(zip(*given, strict=True), start=1)
        ]
        lines.append("")
    return lines


def spoken_msp_podcast(root: Path, *, sentences: int = 3) -> Path:
    """Ten speakers in Train, Development, Test1 and Test2, six emotions, dimensions from 1 to 7, five workers.

    Per speaker and emotion ``sentences`` recordings (at most 4); one of an unknown speaker in Train, and one without a row, as
    those of Test3 are.

    Returns:
        The root.
    """
    consensus, detailed = [], []
    for split, speakers in _MSP_SPLITS.items():
        for speaker in speakers:
            for emotion, code in _MSP_EMOTIONS.items():
                for take in range(1, sentences + 1):
                    samples, row = synthesise_utterance(f"s{speaker:02d}_{emotion}_t{take}_k2")
                    name = f"MSP-PODCAST_{speaker:04d}_{len(consensus):04d}"
                    _wav(root / "Audios" / f"{name}.wav", samples)
                    text(root / "Transcripts" / f"{name}.txt", f"{row['transcript']}\n")
                    first = not consensus
                    means = [
                        f"{_seven(float(str(row[dimension]))):.4f}" for dimension in ("arousal", "valence", "dominance")
                    ]
                    who = "Unknown" if first else str(100 + speaker)
                    consensus.append([f"{name}.wav", code, *means, who, str(row["sex"]).capitalize(), split])
                    detailed += [[f"{name}.wav", detail] for detail in _details(row)]
    samples, _ = synthesise_utterance("s01_fear_t1_k3")
    _wav(root / "Audios" / "MSP-PODCAST_9000_0001.wav", samples)
    header = ["FileName", "EmoClass", "EmoAct", "EmoVal", "EmoDom", "SpkrID", "Gender", "Split_Set"]
    text(root / "Labels" / "labels_consensus.csv", _csv(header, consensus))
    text(root / "Labels" / "labels_detailed.csv", _csv(["FileName", "EmoDetail"], detailed))
    text(root / "readme.txt", "MSP-PODCAST Database\nRelease 1.10 (March 2022)\n")
    return root


def _details(row: dict[str, object]) -> list[str]:
    heard = [emotion for emotion, votes in parse_votes(str(row["emotion_votes"])).items() for _ in range(int(votes))]
    given = [parse_ratings(str(row[f"{name}_ratings"])) for name in ("arousal", "valence", "dominance")]
    return [
        f"WORKER{worker:08d}; {_MSP_WORDS[emotion]}; Concerned; A:{_seven(a):.6f}; V:{_seven(v):.6f}; D:{_seven(d):.6f};"
        for worker, (emotion, a, v, d) in enumerate(zip(heard, *given, strict=True), start=1)
    ]


def _seven(value: float) -> float:
    """A number between 1 and 5 on the scale from 1 to 7."""
    return 1.0 + 1.5 * (value - 1.0)


def _csv(header: list[str], rows: list[list[str]]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows([header, *rows])
    return buffer.getvalue()


def _wav(path: Path, samples: NDArray[np.int16]) -> None:
    import soundfile

    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, DEMO_SAMPLE_RATE_HZ, subtype="PCM_16", format="WAV")
    path.write_bytes(buffer.getvalue())
