"""Embeddings of single recordings, each encoded alone: what ``hyfuse embed`` gives and a store is checked against.

A recording goes through decoding, encoding and pooling as in an extraction, but in no batch with other recordings. By
the promise of ``encoders.base`` the numbers equal those of an extraction to a relative error of 1e-5. On a CPU every recording is
computed by one thread and several are computed side by side, so that the numbers do not depend on the number of threads.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from pipelines.audio.decode import RESAMPLER, decode
from pipelines.encoders.base import Encoder
from pipelines.encoders.catalogue import EncoderSpec
from pipelines.errors import AudioError, ConfigError, unknown_name
from pipelines.extraction.decoding import DecodedClip
from pipelines.extraction.worker import encode_clips, token_clips
from pipelines.store.embeddings import POOLS, FrameSpec
from pipelines.store.feature_files import FeatureTable

__all__ = [
    "RECORDING_SUFFIXES",
    "FileEmbedding",
    "Transform",
    "check_choice",
    "embed_file",
    "embed_files",
    "embed_text",
    "embedding_table",
    "find_recordings",
]

RECORDING_SUFFIXES = (
    ".wav",
    ".flac",
    ".ogg",
    ".opus",
    ".mp3",
    ".aiff",
    ".aif",
    ".aifc",
    ".au",
    ".caf",
    ".w64",
    ".rf64",
    ".sph",
)
"""What is taken for a recording where a folder is named; a file that is named itself may be called anything."""

Transform = Callable[[NDArray[np.float32], int], NDArray[np.float32]]
"""What is done to a waveform before encoding: (samples, rate in Hz) to samples."""


@dataclass(frozen=True)
class FileEmbedding:
    """What a recording became.

    Attributes:
        path: the recording.
        mean: float32 [R, D]; NaN if it failed.
        std: float32 [R, D]; NaN if it failed.
        num_frames: frames that were pooled; 0 if it failed.
        duration_s: seconds by the recording's own rate; NaN if it could not be decoded.
        frames: representation to float32 [T, D], where frames were asked for.
        failure: why it failed; empty if it did not.
    """

    path: Path
    mean: NDArray[np.float32] = field(repr=False)
    std: NDArray[np.float32] = field(repr=False)
    num_frames: int
    duration_s: float
    frames: dict[str, NDArray[np.float32]] = field(repr=False)
    failure: str


def embed_file(
    path: Path, encoder: Encoder, *, frames: bool = False, transform: Transform | None = None
) -> FileEmbedding:
    """Embed one recording.

    Args:
        path: the recording.
        encoder: the frozen model.
        frames: keep the frames too.
        transform: what is done to the waveform first.

    Returns:
        The embedding, or the reason why there is none.

    Raises:
        ConfigError: the encoder takes texts.
    """
    spec = encoder.spec
    if spec.takes_text:
        raise ConfigError(
            f"{spec.name!r} encodes texts, not recordings. The transcripts of a corpus are encoded by"
            f" `hyfuse extract --model {spec.name}`."
        )
    try:
        waveform = decode(path, spec.sample_rate_hz)
        if transform is not None:
            waveform = replace(waveform, samples=transform(waveform.samples, spec.sample_rate_hz))
        clip = DecodedClip(waveform, "")
    except AudioError as error:
        clip = DecodedClip(None, str(error))
    return _embedded(path, clip, encoder, frames=frames)


def embed_text(utterance_id: str, text: str, encoder: Encoder) -> FileEmbedding:
    """Embed one text.

    Args:
        utterance_id: stands where a recording has its path.
        text: what was said.
        encoder: an encoder of text.
    """
    (clip,) = token_clips([text], [""], encoder)
    return _embedded(Path(utterance_id), clip, encoder, frames=False)


def _embedded(path: Path, clip: DecodedClip, encoder: Encoder, *, frames: bool) -> FileEmbedding:
    kept = FrameSpec(encoder.spec.representations, "float32") if frames else None
    made = encode_clips([clip], encoder, frames=kept)
    own = {name: rows[0] for name, rows in (made.frames or {}).items()} if not made.failure[0] else {}
    return FileEmbedding(
        path, made.mean[0], made.std[0], int(made.num_frames[0]), float(made.duration_s[0]), own, made.failure[0]
    )


def embed_files(paths: Sequence[Path], encoder: Encoder, *, frames: bool = False) -> Iterator[FileEmbedding]:
    """Embed recordings one by one, in the order given; one that fails says why and the others go on.

    Args:
        paths: the recordings.
        encoder: the frozen model.
        frames: keep the frames too.
    """
    if encoder.device.type != "cpu":
        for path in paths:
            yield embed_file(path, encoder, frames=frames)
        return
    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield from pool.map(lambda path: embed_file(path, encoder, frames=frames), paths)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(threads)


def find_recordings(given: Sequence[str]) -> list[Path]:
    """Files, folders and patterns as a list of recordings, each once, in the order given.

    Args:
        given: a file; a folder, which stands for all recordings below it, sorted; or a pattern such as ``takes/**/*.wav``.

    Raises:
        AudioError: a folder or a pattern without recordings.
    """
    found: dict[Path, None] = {}
    for entry in given:
        path = Path(entry)
        if path.is_dir():
            inside = sorted(
                Path(folder, name)
                for folder, _, names in os.walk(path)
                for name in names
                if name.lower().endswith(RECORDING_SUFFIXES) and not name.startswith(".")
            )
            if not inside:
                raise AudioError(
                    f"There is no recording below {path} (looked for {', '.join(RECORDING_SUFFIXES)}). Name the files themselves."
                )
            found |= dict.fromkeys(inside)
        elif not path.exists() and glob.has_magic(entry):
            matching = sorted(Path(name) for name in glob.glob(entry, recursive=True) if Path(name).is_file())
            if not matching:
                raise AudioError(f"No file is called {entry}. Check the pattern and the folder you are in.")
            found |= dict.fromkeys(matching)
        else:
            found[path] = None  # if it is absent, it fails with that reason, alone
    return list(found)


def check_choice(
    spec: EncoderSpec, representations: Sequence[str], pool: str
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What is asked for, as names of representations and of arrays (``mean``, ``std``).

    Args:
        spec: the encoder.
        representations: names; the encoder's default, if there are none; ``all`` for all.
        pool: ``mean``, ``std`` or ``mean+std``. An utterance-level encoder has no std: ``mean+std`` is its mean alone.

    Raises:
        UnknownNameError: no such representation.
        ConfigError: no such pooling, or ``std`` of an utterance-level encoder.
    """
    if pool not in POOLS:
        raise ConfigError(f"Pooling must be one of {', '.join(POOLS)}, not {pool!r}.")
    if pool == "std" and not spec.hop_samples:
        raise ConfigError(f"{spec.name} gives one vector per recording, so there is no std to pool. Use `--pool mean`.")
    arrays = ("mean",) if not spec.hop_samples else tuple(pool.split("+"))
    if list(representations) == ["all"]:
        return spec.representations, arrays
    for name in representations:
        if name not in spec.representations:
            raise unknown_name(f"representation of {spec.name}", name, (*spec.representations, "all"))
    return tuple(dict.fromkeys(representations)) or (spec.default_representation,), arrays


def embedding_table(
    found: Sequence[FileEmbedding],
    encoder: Encoder,
    *,
    representations: tuple[str, ...],
    arrays: tuple[str, ...],
    frames: bool = False,
) -> FeatureTable:
    """Embeddings of files as a table that can be written; files that failed are listed with their reasons.

    Args:
        found: embeddings, with their frames where ``frames`` is set.
        encoder: what made them.
        representations: names, of :func:`check_choice`.
        arrays: names, of :func:`check_choice`.
        frames: write the frames too.

    Raises:
        AudioError: every file failed.
    """
    done = [entry for entry in found if not entry.failure]
    if not done:
        raise AudioError("There is no embedding to be saved: every file failed.")
    spec, weights = encoder.spec, encoder.weights

    def read(array: str, representation: str, start: int, stop: int) -> NDArray[np.float32]:
        index = spec.representations.index(representation)
        return np.stack([getattr(entry, array)[index] for entry in done[start:stop]])

    return FeatureTable(
        utterance_ids=[entry.path.as_posix() for entry in done],
        columns={},
        num_frames=np.array([entry.num_frames for entry in done], np.int32),
        duration_s=np.array([entry.duration_s for entry in done]),
        representations=representations,
        dim=spec.dim,
        arrays=arrays,
        provenance={
            "encoder": spec.name,
            "family": spec.family,
            "weights_kind": weights.kind,
            "weights_source": weights.source,
            "weights_revision": weights.revision,
            "weights_digest": weights.digest,
            "weights_licence": weights.licence,
            "representations": list(representations),
            "dim": spec.dim,
            "sample_rate_hz": spec.sample_rate_hz,
            "resampler": RESAMPLER,
            "precision": encoder.precision,
            "device": encoder.device.type,
        },
        failed={entry.path.as_posix(): entry.failure for entry in found if entry.failure},
        read=read,
        frames=(lambda name, row: done[row].frames[name]) if frames else None,
    )
