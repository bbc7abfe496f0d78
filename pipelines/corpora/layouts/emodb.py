"""Emo-DB: ``wav/SSTTTEv.wav`` and ``erkennung.txt``.

A name is speaker (2), text (3), emotion (1), take (0 or 1). ``erkennung.txt`` is Latin-1, tab separated, with decimal commas
padded by no-break spaces; it lists all 816 recordings that were made and says which share of the listeners recognised the
emotion and how many found it natural. Release 1.x kept those that at least 80 % recognised; release 2.0 published the other
281 as well.
"""

from __future__ import annotations

import re
from pathlib import Path

from pipelines.corpora.layouts import Finding, Listing
from pipelines.corpora.layouts._files import (
    add_unparsed,
    file_named,
    has_match,
    read_text,
    recordings,
    relative,
    subfolder,
)

__all__ = ["SHAPE", "read", "recognise"]

SHAPE = "wav/03a01Fa.wav and erkennung.txt"
"""The official shape, for messages."""

_NAME = re.compile(r"(\d\d)([ab]\d\d)([WLEAFTN])([a-z]?)")
_MALE = {"03", "10", "11", "12", "15"}
_FEMALE = {"08", "09", "13", "14", "16"}
_KEPT_FROM_PERCENT = 80.0  # release 1.x

_TEXTS = {
    "a01": "Der Lappen liegt auf dem Eisschrank.",
    "a02": "Das will sie am Mittwoch abgeben.",
    "a04": "Heute abend könnte ich es ihm sagen.",
    "a05": "Das schwarze Stück Papier befindet sich da oben neben dem Holzstück.",
    "a07": "In sieben Stunden wird es soweit sein.",
    "b01": "Was sind denn das für Tüten, die da unter dem Tisch stehen?",
    "b02": "Sie haben es gerade hochgetragen und jetzt gehen sie wieder runter.",
    "b03": "An den Wochenenden bin ich jetzt immer nach Hause gefahren und habe Agnes besucht.",
    "b09": "Ich will das eben wegbringen und dann mit Karl was trinken gehen.",
    "b10": "Die wird auf dem Platz sein, wo wir sie immer hinlegen.",
}


def recognise(root: Path) -> bool:
    """Whether the folder looks like Emo-DB."""
    return has_match(subfolder(root, "wav"), _NAME)


def read(root: Path) -> Listing:
    """List Emo-DB; ``recognised_percent`` and ``natural_percent`` hold the listeners' verdict."""
    findings: list[Finding] = []
    verdicts = _verdicts(root, findings)
    rows, unparsed, doubtful = [], [], []
    folder = subfolder(root, "wav")
    for path in recordings(folder) if folder else []:
        match = _NAME.fullmatch(path.stem)
        if match is None:
            unparsed.append(path)
            continue
        speaker, text, emotion, take = match.groups()
        recognised, natural = verdicts.get(path.stem, (None, None))
        if recognised is not None and recognised < _KEPT_FROM_PERCENT:
            doubtful.append(path.stem)
        rows.append(
            {
                "utterance_id": path.stem,
                "path": relative(path, root),
                "speaker": speaker,
                "sex": "male" if speaker in _MALE else "female" if speaker in _FEMALE else "",
                "language": "de",
                "emotion_raw": emotion,
                "transcript": _TEXTS.get(text, ""),
                "text": text,
                "take": take,
                "recognised_percent": "" if recognised is None else f"{recognised:g}",
                "natural_percent": "" if natural is None else f"{natural:g}",
            }
        )
    add_unparsed(findings, root, unparsed, "SSTTTEv.wav (speaker, text, emotion, take)")
    if doubtful or len(rows) > 700:
        findings.append(
            Finding(
                "warning",
                f"This is Emo-DB 2.0 (816 recordings) or a mixture of releases: {len(rows)} recordings, {len(doubtful)} of them"
                " recognised by fewer than 80 % of the listeners. Published results are on the 535 of release 1.x:"
                ' `audb.load_to("DIR", "emodb", version="1.4.1")`.',
                tuple(doubtful[:5]),
            )
        )
    return Listing(rows, tuple(findings))


def _verdicts(root: Path, findings: list[Finding]) -> dict[str, tuple[float, float]]:
    """Recording without suffix to the shares, in percent, of listeners who recognised it and who found it natural."""
    path = file_named(root, "erkennung.txt")
    if path is None:
        findings.append(
            Finding("note", "erkennung.txt is missing: how many listeners recognised each emotion is unknown.")
        )
        return {}
    verdicts = {}
    for line in read_text(path, encoding="latin-1").splitlines()[1:]:
        fields = [field.replace("\xa0", " ").strip() for field in line.split("\t")]
        try:
            verdicts[Path(fields[1]).stem] = (_number(fields[2]), _number(fields[3]))
        except (IndexError, ValueError):
            if line.strip():
                findings.append(Finding("note", "erkennung.txt has a line that cannot be read.", (line.strip()[:80],)))
    return verdicts


def _number(text: str) -> float:
    return float(text.replace(",", "."))
