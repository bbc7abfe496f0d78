"""Readers of official corpus folders, one file per layout. Importable without pandas.

A layout module offers one constant, ``SHAPE`` (one line that shows where the files lie, for messages), and two functions:

* ``recognise(root: Path) -> bool``: does this folder look like the corpus? Cheap: a few names, nothing is decoded.
* ``read(root: Path) -> Listing``: every utterance, with the raw label in ``emotion_raw``; mapping it to the vocabulary is the
  card's business, not the layout's. Paths are relative to ``root``. What is odd is a finding, never a silent skip.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from types import ModuleType

__all__ = ["LAYOUTS", "Finding", "Listing", "layout_module"]

LAYOUTS: tuple[str, ...] = (
    "cremad",
    "demo",
    "emodb",
    "emotale",
    "iemocap",
    "meld",
    "msp_podcast",
    "nemo",
    "ravdess",
    "savee",
    "tess",
)


@dataclass(frozen=True)
class Finding:
    """Something a user should know about a corpus folder.

    Attributes:
        level: ``error`` (the corpus cannot be used like this), ``warning`` (results may differ from others'), ``note``.
        message: what is odd, and what to do about it.
        examples: a few paths or ids it concerns.
    """

    level: str
    message: str
    examples: tuple[str, ...] = ()


@dataclass(frozen=True)
class Listing:
    """What a layout found.

    Attributes:
        rows: manifest columns to values, one mapping per utterance, sorted by utterance id.
        findings: what is odd about the folder.
    """

    rows: Sequence[Mapping[str, object]]
    findings: Sequence[Finding] = field(default_factory=tuple)


def layout_module(name: str) -> ModuleType:
    """The module of a layout (``msp-podcast`` is the module ``msp_podcast``)."""
    return import_module(f"pipelines.corpora.layouts.{name.replace('-', '_')}")
