"""MELD: ``{train,dev,test}_sent_emo.csv`` and one video per utterance, ``dia{D}_utt{U}.mp4``.

The tables lie in the root or in ``data/MELD/``; the videos in ``train_splits/``, ``dev_splits_complete/`` and
``output_repeated_splits_test/``, in the root or one folder down (``train/train_splits/``). Videos are not decoded here: their
sound must lie beside them as ``dia{D}_utt{U}.wav`` (or ``.flac``), made with ffmpeg. Dialogues are counted anew in every split,
so the utterance id carries the split: ``train_dia0_utt0``. A speaker is the name in the script; ``All`` or ``Guy`` is nobody in
particular. MELD does not say who is a man or a woman.
"""

from __future__ import annotations

from pathlib import Path

from pipelines.corpora.layouts import Finding, Listing
from pipelines.corpora.layouts._files import by_id, file_named, read_table, recordings, relative, subfolder, subfolders

__all__ = ["SHAPE", "read", "recognise"]

SHAPE = "train_sent_emo.csv and train_splits/dia0_utt0.wav (sound of the .mp4)"
"""The official shape, for messages."""

_SPLITS = {"train": "train", "dev": "development", "test": "test"}
_FOLDERS = {
    "train": ("train_splits", "train"),
    "dev": ("dev_splits_complete", "dev_splits", "dev"),
    "test": ("output_repeated_splits_test", "test_splits", "test"),
}
_COLUMNS = ("Utterance", "Speaker", "Emotion", "Dialogue_ID", "Utterance_ID")


def recognise(root: Path) -> bool:
    """Whether the folder looks like MELD."""
    return any(_table(root, split) for split in _SPLITS)


def read(root: Path) -> Listing:
    """List MELD."""
    findings: list[Finding] = []
    rows: list[dict[str, str]] = []
    videos: list[str] = []
    for split, name in _SPLITS.items():
        table = _table(root, split)
        if table is None:
            findings.append(Finding("warning", f"{split}_sent_emo.csv is missing: no {name} part."))
            continue
        folder = _media_folder(root, split)
        sounds = {path.stem: relative(path, root) for path in recordings(folder, deep=True)} if folder else {}
        clips = {path.stem: relative(path, root) for path in _videos(folder)} if folder else {}
        for entry in read_table(table, _COLUMNS):
            clip = f"dia{entry['Dialogue_ID']}_utt{entry['Utterance_ID']}"
            path = sounds.get(clip)
            if path is None and clip in clips:
                videos.append(clips[clip])
            rows.append(
                {
                    "utterance_id": f"{split}_{clip}",
                    "path": path or clips.get(clip) or f"{_FOLDERS[split][0]}/{clip}.wav",
                    "speaker": entry["Speaker"] or "Unknown",
                    "language": "en",
                    "emotion_raw": entry["Emotion"],
                    "transcript": entry["Utterance"],
                    "official_split": name,
                    "dialogue": f"{split}_{entry['Dialogue_ID']}",
                }
            )
    if videos:
        findings.append(
            Finding(
                "error" if len(videos) * 2 > len(rows) else "warning",
                f"{len(videos)} utterance(s) are there as video only. Write their sound beside them: `find . -name '*.mp4' -exec"
                ' sh -c \'ffmpeg -i "$1" -vn -ac 1 -ar 16000 "${1%.mp4}.wav"\' _ {} \\;`',
                tuple(videos[:5]),
            )
        )
    return Listing(by_id(rows), tuple(findings))


def _table(root: Path, split: str) -> Path | None:
    name = f"{split}_sent_emo.csv"
    places = ((name,), ("data", "MELD", name), (split, name))
    return next((path for place in places if (path := file_named(root, *place))), None)


def _media_folder(root: Path, split: str) -> Path | None:
    """The folder of a split's clips: the official name first, in the root or in a folder of the root."""
    for name in _FOLDERS[split]:
        for parent in (root, *subfolders(root)):
            folder = subfolder(parent, name)
            if folder is not None:
                return folder
    return None


def _videos(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.suffix.lower() == ".mp4" and not path.name.startswith(".")]
