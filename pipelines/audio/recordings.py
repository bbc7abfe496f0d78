"""Folders of recordings that speech is mixed or convolved with: what is in them, and their samples at any rate.

Any tree of audio files is a set: all of its recordings, at any depth, in the order of their relative paths. Two layouts are
known: of a folder with ``music``, ``noise`` and ``speech`` (MUSAN) only ``noise`` is used, and of a folder with ``ch01.wav``,
``ch02.wav`` … (DEMAND) only the first. Of files with several channels the first is used: their average would be no place in the
room. Other files (texts, tables) and hidden ones are left out; a file that has the suffix of a recording must be one.

A set is checked when it is opened, and what is found broken then is an error before any work begins: every header, and, in sets of
up to ``CHECKED_S`` in all, every sample. Its digest covers relative names, sizes and the first, middle and last 64 KiB of every
file; it does not depend on where the folder lies.

Afterwards a file that has gone or has another size is a :class:`~pipelines.errors.DataRootError`: it says nothing about the
utterance at hand, so it ought to end a run, which can go on when the file is back. A file whose content turns out to be broken
is an :class:`~pipelines.errors.AudioError` that names it.

Recordings are read in pieces of at most a minute and kept in memory, the ones used last up to ``CACHE_BYTES`` per process.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipelines.audio.condition_text import is_path
from pipelines.audio.decode import SILENCE_PEAK
from pipelines.errors import AudioError, DataRootError, unknown_name

__all__ = [
    "CACHE_BYTES",
    "Recording",
    "RecordingSet",
    "check_unchanged",
    "content_digest",
    "describe",
    "find_folder",
    "kept",
    "open_set",
]

CACHE_BYTES = 256 * 2**20
CHECKED_S = 36_000.0
PIECE_S = 60.0

SUFFIXES = frozenset(
    {".aif", ".aifc", ".aiff", ".au", ".caf", ".flac", ".mp3", ".oga", ".ogg", ".opus", ".rf64", ".snd", ".w64", ".wav"}
)

_SAMPLED_BYTES = 64 * 2**10
_BLOCK = 2**20


@dataclass(frozen=True)
class Recording:
    """A file of a set.

    Attributes:
        name: path below the folder, with forward slashes.
        size: bytes.
        duration_s: seconds, by its header.
    """

    name: str
    size: int
    duration_s: float


@dataclass(frozen=True)
class RecordingSet:
    """An opened folder of recordings; small enough to be sent to other processes.

    Attributes:
        root: the folder, absolute.
        recordings: what is in it, sorted by name.
        digest: sha256 of what is in it.
    """

    root: str
    recordings: tuple[Recording, ...]
    digest: str

    @property
    def duration_s(self) -> float:
        """Seconds in all."""
        return sum(recording.duration_s for recording in self.recordings)

    def num_pieces(self, recording: Recording) -> int:
        """In how many pieces a recording is read; at least one."""
        return max(1, int(np.ceil(recording.duration_s / PIECE_S)))

    def samples(self, recording: Recording, piece: int, rate_hz: int) -> NDArray[np.float32]:
        """One piece of a recording; read-only float32 [samples].

        Raises:
            DataRootError: the file has gone or changed since the set was opened.
            AudioError: the file is broken.
        """
        path = Path(self.root, recording.name)
        length_s = recording.duration_s / self.num_pieces(recording)

        def read() -> NDArray[np.float32]:
            check_unchanged(path, recording.size)
            return _read(path, rate_hz, start_s=piece * length_s, length_s=length_s)

        return kept((self.digest, recording.name, piece, rate_hz), read)


# ------------------------------------------------------------------------------------------------ what is in a folder


def find_folder(source: str, folders: Sequence[Path], *, kind: str) -> Path:
    """The folder that a condition names.

    Args:
        source: a path that begins with ``/``, ``~``, ``./`` or ``../``; or a name, which is looked up in ``folders``, in those of
            ``$HYFUSE_NOISE`` (separated like ``$PATH``) and in the working directory, in this order.
        folders: where to look first.
        kind: what is looked for, for messages.

    Raises:
        DataRootError: the path is no folder, or a folder to look in does not exist.
        UnknownNameError: no folder has that name; the message lists those that there are.
    """
    if is_path(source):
        folder = Path(os.path.abspath(os.path.expanduser(source)))
        if not folder.is_dir():
            raise DataRootError(f"The {kind} is {source}, and {folder} is not a folder. Check the path.")
        return folder
    variable = [Path(entry) for entry in os.environ.get("HYFUSE_NOISE", "").split(os.pathsep) if entry]
    places = [Path(os.path.abspath(entry.expanduser())) for entry in (*folders, *variable)]
    for place in places:
        if not place.is_dir():
            raise DataRootError(
                f"{place}, where noise is looked for, is not a folder. Check --noise-dir and $HYFUSE_NOISE."
            )
    for place in (*places, Path.cwd()):
        if (place / source).is_dir():
            return place / source
    names = {entry.name for place in places for entry in place.iterdir() if entry.is_dir()}
    raise unknown_name(
        kind,
        source,
        names,
        hint=f"They are folders of recordings, looked for in {', '.join(map(str, places)) or 'the working directory only'}."
        " Name the folder that holds them with `--noise-dir DIR` or $HYFUSE_NOISE, or the set by its path: noise:/data/NAME@5dB.",
    )


def open_set(folder: Path, *, kind: str, longest_s: float = 4 * 3600.0) -> RecordingSet:
    """Look at every recording of a folder.

    Args:
        folder: the folder.
        kind: what the recordings are, for messages.
        longest_s: a recording that is longer is an error.

    Raises:
        DataRootError: the folder holds no recording, or may not be read.
        AudioError: a recording is broken, silent or too long; the message names it.
    """
    names = sorted(_names(folder))
    if not names:
        raise DataRootError(
            f"{folder} holds no {kind}: no file below it ends in {', '.join(sorted(SUFFIXES))}. Check the folder."
        )
    recordings = []
    for name in names:
        recording = _inspected(folder, name)
        if recording.duration_s > longest_s:
            raise AudioError(
                f"{folder / name} lasts {recording.duration_s:.0f} s; {kind} of up to {longest_s:.0f} s is expected. Cut it, or"
                " move it out of the folder."
            )
        recordings.append(recording)
    if sum(recording.duration_s for recording in recordings) <= CHECKED_S:
        for recording in recordings:
            _check_content(folder / recording.name)
    digest = hashlib.sha256()
    for recording in recordings:
        digest.update(os.fsencode(recording.name) + b"\0" + content_digest(folder / recording.name).encode() + b"\0")
    return RecordingSet(os.path.abspath(folder), tuple(recordings), digest.hexdigest())


def _names(folder: Path) -> Iterator[str]:
    """Relative paths of the recordings below a folder, by the layouts of the module's text."""

    def refuse(error: OSError) -> None:
        raise DataRootError(
            f"{error.filename or folder} may not be read: {error.strerror}. Check its permissions."
        ) from error

    seen: set[tuple[int, int]] = set()
    for here, folders, files in os.walk(folder, followlinks=True, onerror=refuse):
        status = os.stat(here)
        if (status.st_dev, status.st_ino) in seen:  # a link back to a folder above
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        if {"music", "noise", "speech"} <= set(folders):
            folders[:] = ["noise"]
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        several = {"ch01.wav", "ch02.wav"} <= set(files)
        for name in files:
            hidden = name.startswith(".")
            if hidden or os.path.splitext(name)[1].lower() not in SUFFIXES or (several and _is_other_channel(name)):
                continue
            yield Path(here, name).relative_to(folder).as_posix()


def _is_other_channel(name: str) -> bool:
    return name.startswith("ch") and name.endswith(".wav") and name[2:-4].isdigit() and name != "ch01.wav"


def content_digest(path: Path) -> str:
    """sha256 of a file's size and of its first, middle and last 64 KiB: two recordings that differ elsewhere only are rare.

    Raises:
        AudioError: the file cannot be read.
    """
    try:
        with path.open("rb") as handle:
            size = os.fstat(handle.fileno()).st_size
            digest = hashlib.sha256(str(size).encode())
            for start in sorted({0, max(0, (size - _SAMPLED_BYTES) // 2), max(0, size - _SAMPLED_BYTES)}):
                handle.seek(start)
                digest.update(handle.read(_SAMPLED_BYTES))
    except OSError as error:
        raise _broken(path, error) from error
    return digest.hexdigest()


# ------------------------------------------------------------------------------------------------ samples


def _broken(path: Path, error: Exception) -> AudioError:
    reason = getattr(error, "strerror", None) or str(error).rpartition(": ")[2].strip(" .") or type(error).__name__
    return AudioError(
        f"The recording {path} cannot be read as audio ({reason}). Get the file again, or move it out of the folder."
    )


_FAULTS = (OSError, RuntimeError, ValueError, MemoryError)  # soundfile's own error is a RuntimeError


def _inspected(folder: Path, name: str) -> Recording:
    import soundfile

    path = folder / name
    try:
        with path.open("rb", buffering=0) as handle, soundfile.SoundFile(handle.fileno(), closefd=False) as sound:
            frames, rate_hz, size = sound.frames, sound.samplerate, os.fstat(handle.fileno()).st_size
    except _FAULTS as error:
        raise _broken(path, error) from error
    if frames == 0:
        raise AudioError(f"The recording {path} holds no samples. Move it out of the folder.")
    return Recording(name, size, frames / rate_hz)


def _check_content(path: Path) -> None:
    """Decode a recording once from beginning to end."""
    import soundfile

    peak, count = 0.0, 0
    try:
        with path.open("rb", buffering=0) as handle, soundfile.SoundFile(handle.fileno(), closefd=False) as sound:
            for block in sound.blocks(
                blocksize=_BLOCK, dtype="float32", always_2d=True
            ):  # block is [samples, channels]
                peak = max(peak, _finite_peak(path, block[:, 0]))
                count += len(block)
    except AudioError:
        raise
    except _FAULTS as error:
        raise _broken(path, error) from error
    if count == 0 or peak <= SILENCE_PEAK:
        raise AudioError(f"The recording {path} is silent. Move it out of the folder.")


def _finite_peak(path: Path, samples: NDArray[np.float32]) -> float:
    peak = float(np.abs(samples).max(initial=0.0))
    if not np.isfinite(peak):
        raise AudioError(
            f"The recording {path} holds samples that are not finite (NaN or infinite). Move it out of the folder."
        )
    return peak


def check_unchanged(path: Path, size: int) -> None:
    """Whether a file is still the one that was looked at when work began.

    Raises:
        DataRootError: it is not.
    """
    try:
        now = path.stat().st_size
    except OSError as error:
        raise DataRootError(
            f"{path} was there when the work began and is not any more ({error.strerror}). Check that the disk is still"
            " mounted, on every machine that takes part; the same command goes on from here."
        ) from error
    if now != size:
        raise DataRootError(
            f"{path} has changed since the work began: it had {size} bytes and has {now}. Restore it, or remove the store and start"
            " again."
        )


def _read(path: Path, rate_hz: int, *, start_s: float, length_s: float) -> NDArray[np.float32]:
    """A part of a recording: first channel, resampled; all zeros where it is silent."""
    import soundfile

    try:
        with path.open("rb", buffering=0) as handle, soundfile.SoundFile(handle.fileno(), closefd=False) as sound:
            own_rate_hz = sound.samplerate
            first, last = round(start_s * own_rate_hz), round((start_s + length_s) * own_rate_hz)
            if first:
                sound.seek(first)
            samples = sound.read(last - first, dtype="float32", always_2d=True)[:, 0]
    except _FAULTS as error:
        raise _broken(path, error) from error
    _finite_peak(path, samples)
    if own_rate_hz != rate_hz:
        import soxr

        samples = soxr.resample(samples, own_rate_hz, rate_hz, quality="VHQ")
    if len(samples) == 0:
        raise AudioError(f"The recording {path} holds no samples at {start_s:.1f} s. Get the file again.")
    return np.ascontiguousarray(samples, np.float32)


_cache: OrderedDict[tuple[object, ...], NDArray[np.float32]] = OrderedDict()
_cache_lock = threading.Lock()


def kept(key: tuple[object, ...], make: Callable[[], NDArray[np.float32]]) -> NDArray[np.float32]:
    """Samples made once per process and kept, read-only; those that were not used for longest go first."""
    with _cache_lock:
        if (found := _cache.get(key)) is not None:
            _cache.move_to_end(key)
            return found
    made = make()  # outside the lock: other threads go on, and two may make the same
    made.flags.writeable = False
    with _cache_lock:
        _cache[key] = made
        _cache.move_to_end(key)
        held = sum(samples.nbytes for samples in _cache.values())
        while held > CACHE_BYTES and len(_cache) > 1:
            held -= _cache.popitem(last=False)[1].nbytes
    return made


def describe(found: RecordingSet) -> Mapping[str, object]:
    """For provenance: where a set lies and what it is."""
    return {
        "folder": found.root,
        "recordings": len(found.recordings),
        "duration_s": round(found.duration_s, 3),
        "digest": found.digest,
    }
