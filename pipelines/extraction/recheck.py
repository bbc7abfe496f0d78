"""Is a store what it says? A sample of its rows is computed again from the recordings, one by one, and compared.

Checksums prove that a store holds what was written; this proves that what was written is what the encoder makes of these
recordings, whatever batches, threads, processes or restarts the extraction went through.

The difference of two rows is the largest absolute difference over the largest absolute value, for each representation and for
mean and std by themselves. It may reach ``TOLERANCE`` in float32 and ``LOW_PRECISION_TOLERANCE`` in other arithmetic, where batches
of another shape round differently. The quantized frames of a codec may reach ``QUANTIZED_TOLERANCE``: a frame that lies between two
code words falls to either side by the last bit.
"""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipelines.audio.conditions import Distortion
from pipelines.audio.decode import decoder_versions
from pipelines.corpora.manifest import Manifest
from pipelines.encoders.base import Encoder
from pipelines.errors import ProvenanceError
from pipelines.extraction.single_files import FileEmbedding, embed_file, embed_text
from pipelines.extraction.texts import CorpusTexts
from pipelines.store.embeddings import DONE, EmbeddingStore

__all__ = [
    "LOW_PRECISION_TOLERANCE",
    "QUANTIZED_TOLERANCE",
    "TOLERANCE",
    "Recheck",
    "environment_differences",
    "recheck_rows",
    "tolerance_of",
]

TOLERANCE = 1e-5
LOW_PRECISION_TOLERANCE = 2e-2
QUANTIZED_TOLERANCE = 1e-2


@dataclass(frozen=True)
class Recheck:
    """What a sample of rows came to.

    Attributes:
        rows: rows that were computed again.
        largest: largest relative difference of those that must agree to ``tolerance``.
        where: the utterance, representation and pooling of it; empty without rows.
        tolerance: what ``largest`` may reach.
        problems: one sentence per row that is not what it should be.
        environment: one sentence per library or device that differs from those the store was made with.
    """

    rows: int
    largest: float
    where: str
    tolerance: float
    problems: tuple[str, ...]
    environment: tuple[str, ...]


def tolerance_of(precision: str, representation: str) -> float:
    """Largest relative difference that rows of a representation may have."""
    usual = TOLERANCE if precision == "float32" else LOW_PRECISION_TOLERANCE
    return max(usual, QUANTIZED_TOLERANCE) if representation == "quantized" else usual


def environment_differences(store: EmbeddingStore, device: str) -> tuple[str, ...]:
    """Library versions and device that are not those the store was made with, one sentence each."""
    made = store.provenance
    here = {"python": platform.python_version(), **decoder_versions()}
    found = []
    for name, version in sorted(made.versions.items()):
        current = here.get(name) or _installed(name)
        if current != version:
            found.append(f"{name} is {current}, the store was made with {version}.")
    if device != made.device:
        found.append(f"The device is {device}, the store was made on {made.device}.")
    return tuple(found)


def _installed(library: str) -> str:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def recheck_rows(
    store: EmbeddingStore,
    manifest: Manifest,
    encoder: Encoder,
    *,
    sample: int,
    seed: int = 0,
    distortion: Distortion | None = None,
    texts: CorpusTexts | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Recheck:
    """Compute rows again from the recordings and compare.

    Args:
        store: what is checked.
        manifest: the corpus, with its root.
        encoder: the same model with the same weights and precision.
        sample: how many of the rows that are done, drawn at random; all, if there are fewer.
        seed: of the draw.
        distortion: the store's condition, prepared; None for ``clean``.
        texts: what a store of text was made from.
        progress: called with (rows done, rows in all).

    Raises:
        ProvenanceError: the encoder, its weights, its precision, the manifest, or the condition are others.
        ManifestError: the manifest has no root.
    """
    made = store.provenance
    condition, condition_digest = "clean", ""
    if texts is not None:
        condition, condition_digest = texts.condition, texts.digest
    elif distortion is not None:
        condition, condition_digest = distortion.name, distortion.digest
    asked: Mapping[str, str] = {
        "encoder": encoder.spec.name,
        "weights_digest": encoder.weights.digest,
        "precision": encoder.precision,
        "manifest_digest": manifest.digest,
        "condition": condition,
        "condition_digest": condition_digest,
    }
    for name, value in asked.items():
        if getattr(made, name) != value:
            raise ProvenanceError(
                f"{store.path} cannot be computed again: its {name} is {_short(getattr(made, name))}, at hand is {_short(value)}."
                " Recomputing needs the same recordings, model, weights and noise; see `hyfuse models show` and `--weights-dir`."
            )
    done = np.flatnonzero(store.status == DONE)
    rows = np.sort(np.random.default_rng(seed).choice(done, size=min(sample, len(done)), replace=False)).tolist()
    ids = [store.utterance_ids[row] for row in rows]
    again_of = _again(manifest, encoder, distortion, texts)
    # A store without spread has nothing in its std but zeros.
    arrays = ("mean", "std") if bool((store.num_frames > 1).any()) else ("mean",)
    stored = {
        (array, name): store.features(ids, representation=name, pool=array)
        for array in arrays
        for name in made.representations
    }
    largest, where = 0.0, ""
    problems: list[str] = []
    for position, (row, utterance) in enumerate(zip(rows, ids, strict=True)):
        found = again_of(utterance)
        if found.failure:
            problems.append(f"{utterance} is done in the store and cannot be computed again: {found.failure}")
        elif found.num_frames != int(store.num_frames[row]):
            problems.append(
                f"{utterance} has {int(store.num_frames[row])} frames in the store and {found.num_frames} when computed again:"
                f" the {'text' if texts is not None else 'recording'} is another one."
            )
        else:
            for (array, name), values in stored.items():
                again = getattr(found, array)[made.representations.index(name)]
                difference = _relative(again, values[position])
                allowed = tolerance_of(made.precision, name)
                at = f"{utterance}, {array} of {name}"
                if difference > allowed:
                    problems.append(f"{at}: differs by {difference:.1e}, allowed are {allowed:.0e}.")
                if difference > largest and allowed == tolerance_of(made.precision, ""):
                    largest, where = difference, at
        if progress is not None:
            progress(position + 1, len(rows))
    return Recheck(
        rows=len(rows),
        largest=largest,
        where=where,
        tolerance=tolerance_of(made.precision, ""),
        problems=tuple(problems),
        environment=environment_differences(store, encoder.device.type),
    )


def _again(
    manifest: Manifest, encoder: Encoder, distortion: Distortion | None, texts: CorpusTexts | None
) -> Callable[[str], FileEmbedding]:
    """What embeds an utterance by its id, alone."""
    if texts is not None:
        known = dict(zip(manifest.utterance_ids, texts.texts, strict=True))
        return lambda name: embed_text(name, known[name] or "", encoder)
    paths = dict(zip(manifest.utterance_ids, manifest.audio_paths(), strict=True))

    def embed(name: str) -> FileEmbedding:
        def transform(samples: NDArray[np.float32], rate_hz: int) -> NDArray[np.float32]:
            return samples if distortion is None else distortion.apply(samples, rate_hz, name)

        return embed_file(paths[name], encoder, transform=transform)

    return embed


def _relative(found: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """Largest absolute difference over largest absolute value; absolute where all is zero."""
    scale = float(np.abs(expected).max()) or 1.0
    return float(np.abs(found.astype(np.float64) - expected).max()) / scale


def _short(value: str) -> str:
    return value[:12] + "…" if len(value) == 64 else value or "(none)"
