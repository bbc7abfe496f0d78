"""IEMOCAP: five sessions of two speakers, one recording per turn.

* ``Session1/sentences/wav/Ses01F_impro01/Ses01F_impro01_F000.wav``
* ``Session1/dialog/EmoEvaluation/Ses01F_impro01.txt``, lines
  ``[6.2901 - 8.2357]<TAB>Ses01F_impro01_F000<TAB>neu<TAB>[2.5000, 2.5000, 2.5000]``: start and end in seconds, turn, label,
  **valence, activation, dominance** (1 to 5); below each, until the next, what its evaluators said:
  ``C-E2:<TAB>Frustration; Anger;<TAB>(comment)`` (emotions) and ``A-E3:<TAB>val 3; act 2; dom  2;<TAB>()``
* ``Session1/dialog/transcriptions/Ses01F_impro01.txt``, lines ``Ses01F_impro01_F000 [006.2901-008.2357]: Excuse me.``

Who speaks is the letter of the **last** field: ``Ses01F_impro01_M003`` was spoken by the man of session 1. The letter after
the session says who wore the motion-capture markers. Evaluators are ``E1``, ``E2`` …; what the actors said of themselves
(``C-F1``, ``A-M1``) is not read, as it is in neither the label nor the three numbers of the release. All annotated turns are
listed; which labels are trained on is the card's business.
"""

from __future__ import annotations

import re
from pathlib import Path

from pipelines.corpora.layouts import Finding, Listing
from pipelines.corpora.layouts._files import by_id, read_text, recordings, relative, subfolder, subfolders
from pipelines.corpora.raters import RATINGS, VOTES, format_ratings, format_votes, one_vote_each

__all__ = ["SHAPE", "read", "recognise"]

SHAPE = "Session1/sentences/wav/Ses01F_impro01/Ses01F_impro01_F000.wav and Session1/dialog/EmoEvaluation/*.txt"
"""The official shape, for messages."""

_SESSION = re.compile(r"session([1-5])", re.IGNORECASE)
_TURN = re.compile(r"Ses(\d\d)[FM]_(impro|script)\w*_([FM])\w+")
_LABEL = re.compile(
    r"^\[\s*([\d.]+)\s*-\s*([\d.]+)\s*\]\s+(\S+)\s+(\w+)\s+\[\s*([\d.]+)\s*,\s*([\d.]+)\s*,\s*([\d.]+)\s*\]",
    re.MULTILINE,
)
_LINE = re.compile(r"^(\S+)\s+\[[\d.]+\s*-\s*[\d.]+\]:[ \t]*(.*)$", re.MULTILINE)
_SESSIONS = 5
_EMOTIONS = re.compile(r"^C-E\d+:\s*([^(\n]*)", re.MULTILINE)
_NUMBERS = re.compile(r"^A-E\d+:\s*val\s*([\d.]*)\s*;\s*act\s*([\d.]*)\s*;\s*dom\s*([\d.]*)\s*;", re.MULTILINE)
_WORDS = {
    "anger": "ang",
    "disgust": "dis",
    "excited": "exc",
    "fear": "fea",
    "frustration": "fru",
    "happiness": "hap",
    "neutral": "neu",
    "neutral state": "neu",
    "other": "oth",
    "sadness": "sad",
    "surprise": "sur",
}
"""What evaluators write to the label of the release; words that are not here are kept, and reported by ``prepare``."""


def recognise(root: Path) -> bool:
    """Whether the folder looks like IEMOCAP."""
    return any(subfolder(session, "sentences") or subfolder(session, "dialog") for _, session in _sessions(root))


def read(root: Path) -> Listing:
    """List all annotated turns of IEMOCAP."""
    findings: list[Finding] = []
    sessions = _sessions(root)
    absent = sorted({str(number + 1) for number in range(_SESSIONS)} - {number for number, _ in sessions})
    if absent:
        findings.append(
            Finding("warning", f"Session(s) {', '.join(absent)} are missing: protocol `session` needs all five.")
        )
    rows: list[dict[str, object]] = []
    for number, session in sessions:
        rows += _read_session(root, number, session, findings)
    return Listing(by_id(rows), tuple(findings))


def _sessions(root: Path) -> list[tuple[str, Path]]:
    found = [(_SESSION.fullmatch(folder.name), folder) for folder in subfolders(root)]
    return [(match[1], folder) for match, folder in found if match]


def _read_session(root: Path, number: str, session: Path, findings: list[Finding]) -> list[dict[str, object]]:
    audio = subfolder(session, "sentences", "wav")
    paths = {path.stem: relative(path, root) for path in recordings(audio, deep=True)} if audio else {}
    transcripts = _transcripts(session)
    labels = subfolder(session, "dialog", "EmoEvaluation")
    if labels is None:
        findings.append(
            Finding(
                "error", f"{session.name}/dialog/EmoEvaluation is missing: its {len(paths)} recordings have no labels."
            )
        )
        return []
    rows, odd = [], []
    for file in _texts(labels):
        text = read_text(file)
        labelled = list(_LABEL.finditer(text))
        ends = [following.start() for following in labelled[1:]] + [len(text)]
        for found, block_end in zip(labelled, ends, strict=True):
            start, end, turn, label, valence, activation, dominance = found.groups()
            match = _TURN.fullmatch(turn)
            if match is None:
                odd.append(turn)
                continue
            dialogue = turn.rpartition("_")[0]
            default = f"{relative(session, root)}/sentences/wav/{dialogue}/{turn}.wav"
            rows.append(
                {
                    "utterance_id": turn,
                    "path": paths.pop(turn, default),
                    "speaker": f"Ses{match[1]}{match[3]}",
                    "sex": "female" if match[3] == "F" else "male",
                    "language": "en",
                    "session": number,
                    "emotion_raw": label,
                    "arousal": activation,
                    "valence": valence,
                    "dominance": dominance,
                    "transcript": transcripts.get(turn, ""),
                    "dialogue": dialogue,
                    "scenario": "improvised" if match[2] == "impro" else "scripted",
                    "turn_start_s": start,
                    "turn_end_s": end,
                    **_evaluators(text[found.end() : block_end]),
                }
            )
    if odd:
        findings.append(
            Finding("warning", f"{len(odd)} annotated turn(s) have names of no known form.", tuple(odd[:5]))
        )
    if paths:
        findings.append(
            Finding(
                "note",
                f"Session {number}: {len(paths)} recording(s) have no annotation and are left out.",
                tuple(sorted(paths.values())[:5]),
            )
        )
    return rows


def _evaluators(block: str) -> dict[str, str]:
    """What the evaluators of one turn said, from the lines below its label."""
    named = []
    for answer in _EMOTIONS.findall(block):
        words = [word.strip().lower() for word in answer.split(";")]
        named.append([_WORDS.get(word, word) for word in words if word])
    numbers = list(zip(*_NUMBERS.findall(block), strict=True)) or [(), (), ()]
    ratings = dict(zip(("valence", "arousal", "dominance"), numbers, strict=True))
    cells = {VOTES: format_votes(one_vote_each(named))} | {
        RATINGS[name]: format_ratings(float(number) for number in given if number) for name, given in ratings.items()
    }
    return {column: cell for column, cell in cells.items() if cell}


def _transcripts(session: Path) -> dict[str, str]:
    folder = subfolder(session, "dialog", "transcriptions")
    if folder is None:
        return {}
    return {turn: text.strip() for file in _texts(folder) for turn, text in _LINE.findall(read_text(file))}


def _texts(folder: Path) -> list[Path]:
    """Text files right in the folder; not the hidden twins that macOS left in the release."""
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() == ".txt" and not path.name.startswith(".") and path.is_file()
    )
