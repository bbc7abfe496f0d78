"""Embeddings of single recordings, each encoded alone: what ``hyfuse embed`` gives and a store is checked against.

A recording goes through decoding, encoding (in windows where it is long, as everywhere) and pooling by itself, in no batch. By
the promise of ``encoders.base`` the numbers equal those of an extraction to a relative error of 1e-5. On a CPU every recording is
computed by one thread and several are computed side by side, so that the numbers do not depend on the number of threads.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from pipelines.audio.decode import RESAMPLER, decode
from pipelines.encoders.base import Encoder
from pipelines.encoders.catalogue import EncoderSpec
from pipelines.encoders.windows import plan_windows
from pipelines.errors import AudioError, ConfigError, unknown_name
from pipelines.extraction.pooling import pool_frames
from pipelines.store.embeddings import POOLS
from pipelines.store.feature_files import FeatureTable

__all__ = [
    "RECORDING_SUFFIXES",
    "FileEmbedding",
    "Transform",
    "check_choice",
    "embed_file",
    "embed_files",
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


@torch.inference_mode()
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
    """
    spec = encoder.spec
    shape = (len(spec.representations), spec.dim)

    def failed(reason: str, duration_s: float) -> FileEmbedding:
        nothing = np.full(shape, np.nan, np.float32)
        return FileEmbedding(path, nothing, nothing.copy(), 0, duration_s, {}, reason)

    try:
        waveform = decode(path, spec.sample_rate_hz)
        samples = waveform.samples
        if transform is not None:
            samples = transform(samples, spec.sample_rate_hz)
    except AudioError as error:
        return failed(str(error), np.nan)
    pools = [_Pool(spec.dim) for _ in spec.representations]
    kept: dict[str, list[NDArray[np.float32]]] = {name: [] for name in spec.representations} if frames else {}
    for window in plan_windows(encoder, len(samples)):
        piece = torch.from_numpy(samples[window.start : window.stop])
        for representation in encoder.encode_padded([piece]):
            own = representation.frames[:, window.first : window.last]  # own is [1, T, D]
            length = own.shape[1]
            mean, std = pool_frames(own, torch.tensor([length], device=own.device))
            # An utterance-level encoder gives one vector per window, which stands for its samples.
            weight = length if spec.hop_samples else window.stop - window.start
            index = spec.representations.index(representation.name)
            pools[index].add(mean[0].cpu().numpy(), std[0].cpu().numpy(), weight)
            if frames:
                kept[representation.name].append(own[0].float().cpu().numpy())
    mean_all = np.stack([pool.mean for pool in pools]).astype(np.float32)
    std_all = np.stack([pool.std if spec.hop_samples else np.zeros(spec.dim) for pool in pools]).astype(np.float32)
    if not (np.isfinite(mean_all).all() and np.isfinite(std_all).all()):
        return failed(f"The embedding by {spec.name} is not finite (NaN or infinite).", waveform.duration_s)
    count = pools[0].weight if spec.hop_samples else 1
    if spec.hop_samples:
        joined = {name: np.concatenate(parts) for name, parts in kept.items()}
    else:
        joined = {name: mean_all[[spec.representations.index(name)]] for name in kept}
    return FileEmbedding(path, mean_all, std_all, count, waveform.duration_s, joined, "")


class _Pool:
    """Mean and deviation over pieces of frames, joined in float64 (Chan, Golub, LeVeque 1979, eq. 2.1)."""

    def __init__(self, dim: int) -> None:
        self.weight = 0
        self.mean = np.zeros(dim)
        self._squares = np.zeros(dim)  # sum of squared deviations from the mean

    def add(self, mean: NDArray[np.float32], std: NDArray[np.float32], weight: int) -> None:
        total = self.weight + weight
        difference = mean.astype(np.float64) - self.mean
        self.mean = self.mean + difference * (weight / total)
        self._squares += std.astype(np.float64) ** 2 * weight + difference**2 * (self.weight * weight / total)
        self.weight = total

    @property
    def std(self) -> NDArray[np.float64]:
        return np.sqrt(self._squares / self.weight)


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
