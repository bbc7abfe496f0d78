"""What a store says about itself, and how that is compared with what is asked for.

*Identity* fields decide the numbers: another encoder, other weights, another manifest or condition is another store, and
opening one as the other is an error. *Environment* fields (library versions, device kind) touch the last bits only: they are
recorded, and must agree for a store to be continued, but not to be read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from pipelines.errors import StoreError

__all__ = ["ENVIRONMENT_FIELDS", "IDENTITY_FIELDS", "SCHEMA_VERSION", "Provenance"]

SCHEMA_VERSION = 2


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where the numbers of a store come from.

    Attributes:
        corpus: name of the corpus.
        manifest_digest: of the manifest whose rows the store holds, in that order.
        encoder: catalogue name.
        family: RLR, CBR, LEX or DSP.
        condition: what was done to the waveform, ``clean`` for nothing; of text, where it comes from
            (``pipelines.store.transcripts``).
        weights_kind: ``pretrained``, ``random``, ``imported``, or ``none`` where there are no weights.
        weights_source: repository, address or file.
        weights_revision: pinned revision, ``unverified``, or empty.
        weights_digest: sha256 of the parameters.
        weights_licence: licence of the weights.
        representations: names, in the order of the R axis.
        default_representation: what training uses unless told otherwise.
        dim: features D.
        sample_rate_hz: rate the encoder was fed with; 0 for text.
        resampler: library and quality.
        precision: arithmetic of the encoder.
        device: kind of device, ``cpu`` or ``cuda``.
        versions: library to version, of those that touch the numbers.
        condition_digest: of what the condition's name does not say (noise recordings, seed), empty for ``clean``; of text, of all
            the texts.
        columns: ``group:name`` of the D features, where they mean something by themselves; empty otherwise, and then not written.
    """

    corpus: str
    manifest_digest: str
    encoder: str
    family: str
    condition: str
    weights_kind: str
    weights_source: str
    weights_revision: str
    weights_digest: str
    weights_licence: str
    representations: tuple[str, ...]
    default_representation: str
    dim: int
    sample_rate_hz: int
    resampler: str
    precision: str
    device: str
    versions: Mapping[str, str]
    condition_digest: str = ""
    columns: tuple[str, ...] = ()

    def to_attributes(self) -> dict[str, Any]:
        """As Zarr attributes (JSON values only)."""
        attributes = asdict(self)
        attributes["representations"] = list(self.representations)
        attributes["versions"] = dict(sorted(self.versions.items()))
        attributes["columns"] = list(self.columns)
        if not self.columns:
            del attributes["columns"]
        return {"schema_version": SCHEMA_VERSION, **attributes}

    @classmethod
    def from_attributes(cls, attributes: Mapping[str, Any], *, origin: str) -> Provenance:
        """Read back from Zarr attributes.

        Args:
            attributes: of the group.
            origin: path of the store, for messages.

        Raises:
            StoreError: not a hyfuse store, or of another schema version.
        """
        schema = attributes.get("schema_version")
        names = {item.name for item in fields(cls)} - {"columns"}
        if schema != SCHEMA_VERSION or not names <= set(attributes):
            raise StoreError(
                f"{origin} is not a store that this version of hyfuse reads: its schema version is {schema!r}, expected"
                f" {SCHEMA_VERSION}. Remove it with `hyfuse cache remove` and extract again."
            )
        values = {name: attributes[name] for name in names}
        values["representations"] = tuple(values["representations"])
        values["columns"] = tuple(attributes.get("columns", ()))
        return cls(**values)

    def identity_digest(self) -> str:
        """sha256 over the identity fields."""
        identity = {name: self.to_attributes()[name] for name in IDENTITY_FIELDS}
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()

    def differences(self, other: Provenance, names: tuple[str, ...]) -> list[tuple[str, str, str]]:
        """(field, value here, value in ``other``) for every one of ``names`` that differs."""
        mine, theirs = self.to_attributes(), other.to_attributes()
        return [(name, *_shown(mine[name], theirs[name])) for name in names if mine[name] != theirs[name]]


IDENTITY_FIELDS: tuple[str, ...] = (
    "corpus",
    "manifest_digest",
    "encoder",
    "condition",
    "condition_digest",
    "weights_kind",
    "weights_digest",
    "representations",
    "dim",
    "sample_rate_hz",
    "resampler",
    "precision",
)
ENVIRONMENT_FIELDS: tuple[str, ...] = ("device", "versions")


def _shown(mine: Any, theirs: Any) -> tuple[str, str]:
    """Two values for a message: digests shortened, lists joined, of versions only those that differ."""
    if isinstance(mine, dict) and isinstance(theirs, dict):
        names = [name for name in sorted({*mine, *theirs}) if mine.get(name) != theirs.get(name)]
        first, second = (", ".join(f"{name} {made.get(name, '(none)')}" for name in names) for made in (mine, theirs))
        return first, second
    return _text(mine), _text(theirs)


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value[:12] + "…" if len(value) == 64 else value or "(none)"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
