"""The generated ``demo`` corpus: ``wav/*.wav``, ``demo.csv`` and the marker ``VERSION`` (see ``pipelines.corpora.demo``)."""

from __future__ import annotations

from pathlib import Path

from pipelines.corpora.layouts import Listing
from pipelines.corpora.layouts._files import by_id

__all__ = ["SHAPE", "read", "recognise"]

SHAPE = "demo.csv, VERSION and wav/s01_anger_t1_k1.wav"
"""The shape that the generator writes, for messages."""


def recognise(root: Path) -> bool:
    """Whether the folder holds a demo corpus that was generated completely."""
    return (root / "demo.csv").is_file() and (root / "VERSION").is_file()


def read(root: Path) -> Listing:
    """List the demo corpus."""
    from pipelines.corpora.demo import read_demo

    rows = []
    for row in read_demo(root):
        values = dict(row)
        values["emotion_raw"] = values.pop("emotion")
        rows.append(values)
    return Listing(by_id(rows))
