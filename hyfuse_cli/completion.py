"""Names for the shell's completion: encoders, corpora, stores, fusions. Quick, and silent when something is wrong."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from pipelines.errors import HyfuseError

__all__ = ["corpora", "encoders", "extracted", "fusions", "lists_of", "stores"]


def _cache() -> Path:
    """The cache of the environment or the usual one; on object storage nothing is looked up while somebody types."""
    from hyfuse_cli.options import DEFAULT_CACHE  # whose options complete by this module

    return Path(os.environ.get("HYFUSE_CACHE") or DEFAULT_CACHE)


def _starting(names: Iterable[str], incomplete: str) -> list[str]:
    return sorted({name for name in names if name.startswith(incomplete)})


def encoders(incomplete: str) -> list[str]:
    """Encoders of the catalogue, plug-ins too."""
    from pipelines.encoders.catalogue import encoder_names

    try:
        return _starting(encoder_names(tiny=True), incomplete)
    except HyfuseError:
        return []


def corpora(incomplete: str) -> list[str]:
    """Corpora with a card, and what is in the cache."""
    from pipelines.corpora.cards import card_names

    try:
        return _starting([*card_names(), *_folders(_cache())], incomplete)
    except HyfuseError:
        return []


def extracted(incomplete: str) -> list[str]:
    """Encoders with a store of some corpus in the cache."""
    return _starting((path.name for path in _cache().glob("*/*") if any(path.glob("*.zarr"))), incomplete)


def stores(incomplete: str) -> list[str]:
    """Stores as ``hyfuse cache`` names them: corpus/encoder/condition."""
    found = (path.relative_to(_cache()).with_suffix("").as_posix() for path in _cache().glob("*/*/*.zarr"))
    return _starting((name for name in found if "/." not in name), incomplete)


def fusions(incomplete: str) -> list[str]:
    """Fusions, plug-ins too."""
    from pipelines.fusion.catalogue import fusion_names

    try:
        return _starting(fusion_names(), incomplete)
    except HyfuseError:
        return []


def lists_of(incomplete: str) -> list[str]:
    """Cached encoders, for an option that takes several with commas between."""
    before, comma, last = incomplete.rpartition(",")
    taken = set(before.split(","))
    return [f"{before}{comma}{name}" for name in extracted(last) if name not in taken]


def _folders(cache: Path) -> list[str]:
    return [path.name for path in cache.iterdir() if path.is_dir()] if cache.is_dir() else []
