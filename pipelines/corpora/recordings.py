"""One recording of a corpus as a file: its header, and what decoding it shows. No resampling, no mixing; see ``audio`` for that.

``corpora`` and ``audio`` do not know each other, so the few facts that both need (what silence is) are written down twice; a
test keeps them equal.
"""

from __future__ import annotations

import hashlib
import math
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipelines.corpora.layouts._files import LFS_MAGIC

__all__ = ["SILENCE_PEAK", "Header", "Sound", "file_digest", "listen", "read_header"]

SILENCE_PEAK = 2.0**-15
"""Largest absolute sample up to which a recording is silent; the value of ``pipelines.audio.decode``."""

_POINTER_BYTES = 1024  # an LFS pointer is about 130 bytes
_FINGERPRINT_BYTES = 4096
_BLOCK = 2**18  # samples decoded at a time, so that half-hour clips fit into memory


@dataclass(frozen=True)
class Header:
    """One look at one recording.

    Attributes:
        state: ``ok``, ``missing``, ``empty`` (no bytes or no samples), ``pointer`` (Git LFS), ``unreadable``.
        size: bytes.
        frames: samples per channel.
        rate_hz: sample rate.
        channels: number of channels.
        fingerprint: digest of the file's middle; different files rarely share size and fingerprint.
        reason: why it is unreadable.
    """

    state: str
    size: int = 0
    frames: int = 0
    rate_hz: int = 0
    channels: int = 0
    fingerprint: bytes = b""
    reason: str = ""

    @property
    def duration_s(self) -> float:
        """Seconds; NaN unless ``ok``."""
        return self.frames / self.rate_hz if self.state == "ok" else math.nan


@dataclass(frozen=True)
class Sound:
    """A decoded recording.

    Attributes:
        fault: empty, ``broken`` (cannot be decoded to its end), ``short`` (ends before its header says), ``not finite`` or
            ``silent``.
        rate_hz: sample rate.
        channels: number of channels.
        format: container and coding, ``WAV PCM_16``.
        duration_s: seconds that were decoded.
        identical_channels: whether there are several channels, all with the same samples.
        content: equal for recordings that sound the same: same samples (of the one distinct channel) at the same rate.
    """

    fault: str
    rate_hz: int
    channels: int
    format: str
    duration_s: float = math.nan
    identical_channels: bool = False
    content: str = ""


def read_header(path: Path) -> Header:
    """Open a recording once and read its header; nothing is decoded and nothing is raised."""
    import soundfile

    try:
        with path.open("rb") as handle:
            size = os.fstat(handle.fileno()).st_size
            if size == 0:
                return Header("empty")
            if size < _POINTER_BYTES and handle.read(len(LFS_MAGIC)) == LFS_MAGIC:
                return Header("pointer", size)
            handle.seek(size // 2)
            fingerprint = hashlib.sha256(handle.read(_FINGERPRINT_BYTES)).digest()
            handle.seek(0)
            with soundfile.SoundFile(handle) as sound:
                frames, rate_hz, channels = sound.frames, sound.samplerate, sound.channels
    except FileNotFoundError:
        return Header("missing")
    except (OSError, RuntimeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error).rpartition(": ")[2].strip(" .") or type(error).__name__
        return Header("unreadable", reason=reason)
    if frames == 0:
        return Header("empty", size)
    return Header("ok", size, frames, rate_hz, channels, fingerprint)


def file_digest(path: Path) -> str:
    """sha256 of a file; for one that cannot be read its name, which equals no other."""
    try:
        with path.open("rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()
    except OSError:
        return str(path)


def listen(path: Path) -> Sound | None:
    """Decode a recording in pieces; None where it has no readable header or no samples."""
    import soundfile

    try:
        cut = _missing_bytes(path) > 0
        with soundfile.SoundFile(path) as sound:
            kind = f"{sound.format} {sound.subtype}"
            rate_hz, channels, announced = sound.samplerate, sound.channels, sound.frames
            if announced == 0:
                return None
            frames, peak, finite, identical = 0, 0.0, True, channels > 1
            every, first = hashlib.sha256(), hashlib.sha256()
            try:
                for piece in sound.blocks(
                    blocksize=_BLOCK, dtype="float32", always_2d=True
                ):  # piece is [samples, channels]
                    frames += len(piece)
                    finite = finite and bool(np.isfinite(piece).all())
                    peak = max(peak, float(np.abs(piece).max())) if finite else peak
                    identical = identical and bool((piece == piece[:, :1]).all())
                    every.update(piece.tobytes())
                    first.update(np.ascontiguousarray(piece[:, 0]).tobytes())
            except (OSError, RuntimeError, ValueError):
                return Sound("broken", rate_hz, channels, kind)
    except (OSError, RuntimeError, ValueError):
        return None
    # Several channels with the same samples sound like one.
    content = f"{rate_hz} {first.hexdigest()}" if identical or channels == 1 else f"{rate_hz} {every.hexdigest()}"
    if frames == 0:
        fault = "broken"
    elif not finite:
        fault = "not finite"
    elif peak <= SILENCE_PEAK:
        fault = "silent"
    else:
        fault = "short" if cut or frames < announced else ""
    return Sound(fault, rate_hz, channels, kind, frames / rate_hz, identical, content)


def _missing_bytes(path: Path) -> int:
    """Bytes by which a RIFF file's data chunk claims to be longer than the file; 0 for other files and unknown lengths.

    libsndfile silently corrects the length, so the header has to be read here.
    """
    with path.open("rb") as handle:
        size = os.fstat(handle.fileno()).st_size
        head = handle.read(12)
        if head[:4] != b"RIFF" or head[8:12] != b"WAVE":
            return 0
        position = 12
        while position + 8 <= size:
            handle.seek(position)
            name, length = handle.read(4), int.from_bytes(handle.read(4), "little")
            if name == b"data":
                # Programs that write to a pipe leave the greatest length there: unknown, not wrong.
                return 0 if length >= 0x7FFFF000 else max(0, length - (size - position - 8))
            position += 8 + length + length % 2
    return 0
