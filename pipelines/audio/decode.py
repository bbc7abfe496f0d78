"""Any recording to a mono float32 waveform at the rate an encoder wants.

Read by libsndfile (WAV in all its forms, FLAC, AIFF, OGG, MP3, whatever the file's suffix says), channels averaged,
resampled by soxr at very high quality. Levels are kept: nothing is normalised, trimmed or cut here. The result depends on
the file's content alone. A WAV whose header announces more than the file holds is read as far as it goes; ``hyfuse corpora
check`` names such files.

A recording that cannot be trusted is an :class:`~pipelines.errors.AudioError`, never zeros: no file, an empty file, a Git
LFS pointer, unreadable data, no samples, samples that are not finite, silence.
"""

from __future__ import annotations

import math
import os
import shlex
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import AudioError

__all__ = ["RESAMPLER", "SILENCE_PEAK", "Waveform", "decode", "decoder_versions"]

RESAMPLER = "soxr-VHQ"
"""Part of a store's provenance: another resampler gives other numbers."""

SILENCE_PEAK = 2.0**-15
"""A recording whose largest absolute sample is at most this (the least step of 16-bit audio) is silent."""

_LFS_MAGIC = b"version https://git-lfs"
_UNKNOWN_FRAMES = 2**62  # libsndfile announces 2**63 - 1 where the header does not tell


@dataclass(frozen=True)
class Waveform:
    """A decoded recording.

    Attributes:
        samples: float32 [samples], mono, at the rate asked for.
        duration_s: seconds, by the recording's own rate.
    """

    samples: NDArray[np.float32]
    duration_s: float


def decoder_versions() -> dict[str, str]:
    """Versions of the libraries that touch the samples."""
    import soundfile

    libsndfile = soundfile.__libsndfile_version__
    return {"libsndfile": libsndfile, "soxr": version("soxr")}


def decode(path: Path, rate_hz: int, *, longest_s: float = math.inf) -> Waveform:
    """Read one recording.

    Args:
        path: the file.
        rate_hz: sample rate of the result.
        longest_s: a recording above this many seconds is refused before it is read.

    Raises:
        AudioError: the recording cannot be used; the message says why.
    """
    import soundfile

    with _opened(path) as descriptor:
        try:
            # By descriptor: libsndfile then judges by content alone, and any name will do.
            with soundfile.SoundFile(descriptor, closefd=False) as sound:
                own_rate_hz = sound.samplerate
                duration_s = sound.frames / own_rate_hz
                if sound.frames >= _UNKNOWN_FRAMES:
                    raise AudioError(
                        f"{path} does not say how long it is (so does FLAC that was written to a pipe). Write it anew:"
                        f" {_conversion(path)}."
                    )
                if duration_s > longest_s:
                    raise AudioError(
                        f"{path} lasts {duration_s:.0f} s; recordings above {longest_s:.0f} s are not encoded in one piece. Cut"
                        " it into utterances."
                    )
                mono, channels, peak = _read_mono(sound)
        except AudioError:
            raise
        except (soundfile.LibsndfileError, OSError, RuntimeError, ValueError, MemoryError) as error:
            reason = str(error).rpartition(": ")[2].strip(" .") or type(error).__name__
            raise AudioError(
                f"{path} cannot be read as audio ({reason}). It is damaged or not a recording: get the file again. If it is a"
                f" video or another format, convert it: {_conversion(path)}."
            ) from error
    if len(mono) == 0:
        raise AudioError(f"{path} holds no samples: the header is there, the sound is not. Get the file again.")
    duration_s = len(mono) / own_rate_hz
    if not np.isfinite(mono).all():
        bad = int((~np.isfinite(mono)).sum())
        raise AudioError(f"{path} holds {bad} samples that are not finite (NaN or infinite). Get the file again.")
    if float(np.abs(mono).max()) <= SILENCE_PEAK:
        if peak > SILENCE_PEAK:
            keep_one = _conversion(path, "-af 'pan=mono|c0=c0'")
            raise AudioError(
                f"{path} is silent when its {channels} channels are averaged: they cancel out. Keep one of them:"
                f" {keep_one}."
            )
        raise AudioError(f"{path} is silent: no sample exceeds the least step of 16-bit audio.")
    if own_rate_hz != rate_hz:
        import soxr

        mono = soxr.resample(mono, own_rate_hz, rate_hz, quality="VHQ")
        if len(mono) == 0:
            raise AudioError(f"{path} is too short ({duration_s * 1000:.2f} ms) to be resampled to {rate_hz} Hz.")
    return Waveform(np.ascontiguousarray(mono, dtype=np.float32), duration_s)


def _read_mono(sound: Any) -> tuple[NDArray[np.float32], int, float]:
    """All samples with channels averaged, the number of channels, and the largest absolute sample of any channel.

    A minute at a time: of an hour in eight channels only the average is ever whole in memory.
    """
    pieces: list[NDArray[np.float32]] = []
    peak = 0.0
    while len(
        piece := sound.read(60 * sound.samplerate, dtype="float32", always_2d=True)
    ):  # piece is [samples, channels]
        with np.errstate(over="ignore", invalid="ignore"):  # the caller looks for what is not finite
            pieces.append(piece[:, 0] if piece.shape[1] == 1 else piece.mean(axis=1))
            peak = max(peak, float(np.abs(piece).max()))
    mono = pieces[0] if len(pieces) == 1 else np.concatenate([np.zeros(0, np.float32), *pieces])
    return mono, sound.channels, peak


def _conversion(path: Path, options: str = "-ac 1") -> str:
    """A command that makes another file of a recording, beside it."""
    return f"`ffmpeg -i {shlex.quote(path.name)} {options} {shlex.quote(path.stem + '-converted.wav')}`"


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    """A file's descriptor; explains files that are no recordings at all."""
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise AudioError(f"{path} is a folder, not a recording.")
        if not stat.S_ISREG(mode):  # opening a pipe would wait for ever
            raise AudioError(f"{path} is not an ordinary file but a pipe or a device.")
        handle = path.open("rb", buffering=0)
    except FileNotFoundError:
        raise AudioError(f"{path} does not exist. Check --data-root and the manifest's paths.") from None
    except PermissionError:
        raise AudioError(f"{path} may not be read. Change its permissions: `chmod +r`.") from None
    except AudioError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise AudioError(f"{path} cannot be opened: {error}.") from error
    with handle:
        size = os.fstat(handle.fileno()).st_size
        if size == 0:
            raise AudioError(f"{path} is empty (0 bytes). Get the file again.")
        if size < 1024 and handle.read(len(_LFS_MAGIC)) == _LFS_MAGIC:
            raise AudioError(
                f"{path} is a Git LFS pointer ({size} bytes of text), not the recording itself. Fetch the recordings"
                " with `git lfs pull` in the corpus folder."
            )
        handle.seek(0)
        yield handle.fileno()
