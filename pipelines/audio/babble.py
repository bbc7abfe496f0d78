"""Babble: other speakers of the same corpus talking at once.

``VOICES`` speakers (fewer where the corpus has fewer others) talk through the whole utterance, each at the same active level,
each from a random place of a random recording on and then through further recordings of theirs. The speaker of the utterance is
never among them; utterances of unknown speakers are never heard in babble.

Of a large corpus a fixed part is used: up to ``POOL_SPEAKERS`` speakers and ``POOL_RECORDINGS`` recordings, drawn by the seed. They
are all decoded once when work begins; broken, silent and very long ones are passed over. So the pool is the same on every
machine, fits into memory, and knows of a million utterances only their ids' digests and their speakers' numbers (10 bytes each).
"""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pipelines.audio.decode import decode
from pipelines.audio.levels import Samples, active_speech
from pipelines.audio.noises import on_grid
from pipelines.audio.recordings import check_unchanged, content_digest, kept
from pipelines.errors import AudioError, ConfigError, ManifestError, UtteranceError

__all__ = ["POOL_RECORDINGS", "POOL_SPEAKERS", "VOICES", "SpeechCorpus", "VoicePool", "babble", "open_voices"]

VOICES = 6
POOL_SPEAKERS = 50
POOL_RECORDINGS = 400
LONGEST_S = 60.0

_UNKNOWN = {"", "unknown"}
_NOT_IN_POOL = np.iinfo(np.uint16).max
_FADE_S = 0.01


class SpeechCorpus(Protocol):
    """What babble needs of a manifest (:class:`pipelines.corpora.manifest.Manifest`)."""

    @property
    def corpus(self) -> str: ...

    @property
    def root(self) -> Path | None: ...

    @property
    def digest(self) -> str: ...

    @property
    def table(self) -> Any: ...


@dataclass(frozen=True)
class _Voice:
    """A recording of the pool."""

    path: str
    size: int


@dataclass(frozen=True, eq=False)
class VoicePool:
    """Recordings for babble, and who speaks in every utterance of the corpus.

    Attributes:
        corpus: its name.
        speakers: for each speaker of the pool, his or her recordings.
        names: the speakers' names.
        digest: sha256 of the manifest and of the recordings in the pool.
    """

    corpus: str
    speakers: tuple[tuple[_Voice, ...], ...]
    names: tuple[str, ...]
    digest: str
    _ids: NDArray[np.uint64] = field(repr=False)
    _speaker_of: NDArray[np.uint16] = field(repr=False)

    def others(self, utterance_id: str) -> list[int]:
        """Numbers of the pool's speakers that do not speak in an utterance.

        Raises:
            UtteranceError: the utterance is not of this corpus.
        """
        wanted = _id_digest(utterance_id)
        row = int(np.searchsorted(self._ids, wanted))
        if row == len(self._ids) or self._ids[row] != wanted:
            raise UtteranceError(
                f"Utterance {utterance_id!r} is not in the corpus {self.corpus!r} that this babble is made of, so its speaker is"
                " not known and could be heard in it. Prepare the condition with the manifest that holds the utterance."
            )
        return [number for number in range(len(self.speakers)) if number != self._speaker_of[row]]


def open_voices(manifest: SpeechCorpus, *, seed: int) -> VoicePool:
    """Choose the recordings that babble is made of, and read each of them once.

    Raises:
        ConfigError: there are not two speakers with a usable recording.
        ManifestError: the manifest has no folder of recordings.
    """
    if manifest.root is None:
        raise ManifestError(f"Corpus {manifest.corpus!r} has no folder of recordings. Name it with `--data-root DIR`.")
    root = Path(os.path.abspath(manifest.root))
    rows: dict[str, list[int]] = defaultdict(list)
    utterance_ids, speakers = list(manifest.table["utterance_id"]), list(manifest.table["speaker"])
    for row, speaker in enumerate(speakers):
        rows[speaker].append(row)
    known = [speaker for speaker in rows if speaker.casefold() not in _UNKNOWN]
    known = sorted(known, key=lambda speaker: _rank(seed, "speaker", speaker))[:POOL_SPEAKERS]
    quota = max(1, POOL_RECORDINGS // max(1, len(known)))
    pool: dict[str, tuple[_Voice, ...]] = {}
    digest = hashlib.sha256(manifest.digest.encode())
    for speaker in sorted(known):
        ranked = sorted(rows[speaker], key=lambda row: _rank(seed, "utterance", utterance_ids[row]))
        voices: list[_Voice] = []
        for row in ranked[: 4 * quota]:
            path = root / manifest.table["path"].iloc[row]
            if len(voices) < quota and _is_usable(path):
                voices.append(_Voice(str(path), path.stat().st_size))
                digest.update(f"{utterance_ids[row]}\0{content_digest(path)}\0".encode())
        if voices:
            pool[speaker] = tuple(voices)
    if len(pool) < 2:
        raise ConfigError(
            f"babble is made of other speakers of the corpus, and needs at least 2 whose recordings can be used;"
            f" {manifest.corpus!r} has {len(pool)} ({len(known)} known by name). Use another condition, such as"
            " noise:NAME@5dB or pink@5dB."
        )
    number = {speaker: index for index, speaker in enumerate(pool)}
    ids = np.fromiter(map(_id_digest, utterance_ids), np.uint64, len(utterance_ids))
    order = np.argsort(ids)
    speaker_of = np.fromiter((number.get(speaker, _NOT_IN_POOL) for speaker in speakers), np.uint16, len(speakers))
    return VoicePool(
        manifest.corpus, tuple(pool.values()), tuple(pool), digest.hexdigest(), ids[order], speaker_of[order]
    )


def babble(pool: VoicePool, random: np.random.Generator, utterance_id: str, num_samples: int, rate_hz: int) -> Samples:
    """Other speakers talking at once, each at an active level of 1; float64 [num_samples].

    Raises:
        UtteranceError: the utterance is not of this corpus.
        DataRootError: a recording of the pool has gone or changed.
        AudioError: a recording of the pool is broken.
    """
    chosen = random.permutation(pool.others(utterance_id))[:VOICES]
    total = np.zeros(num_samples)
    for speaker, voice in zip(chosen, random.spawn(len(chosen)), strict=True):
        recordings = pool.speakers[speaker]
        position = 0
        while position < num_samples:
            samples = _at_level_one(pool, recordings[int(voice.integers(len(recordings)))], rate_hz)
            if position == 0:
                samples = samples[round(on_grid(voice.random() * len(samples) / rate_hz) * rate_hz) :]
            faded = _faded(samples, round(_FADE_S * rate_hz), begin=position > 0)[: num_samples - position]
            total[position : position + len(faded)] += faded
            position += len(faded)
    return total


def describe(pool: VoicePool) -> Mapping[str, object]:
    """For provenance: who is heard."""
    return {
        "speakers": len(pool.speakers),
        "recordings": sum(map(len, pool.speakers)),
        "voices": min(VOICES, len(pool.speakers) - 1),
        "digest": pool.digest,
    }


def _rank(seed: int, kind: str, name: str) -> bytes:
    return hashlib.sha256(f"{seed}\0{kind}\0{name}".encode()).digest()


def _id_digest(utterance_id: str) -> np.uint64:
    return np.uint64(int.from_bytes(hashlib.blake2b(utterance_id.encode(), digest_size=8).digest(), "big"))


def _is_usable(path: Path) -> bool:
    """Whether a recording decodes to the end and is neither silent nor very long."""
    import soundfile

    try:
        own_rate_hz = soundfile.info(str(path)).samplerate
        decode(path, own_rate_hz, longest_s=LONGEST_S)
    except (
        AudioError,
        OSError,
        RuntimeError,
        ValueError,
    ):  # what is wrong with it is said when it is its turn to be encoded
        return False
    return True


def _at_level_one(pool: VoicePool, voice: _Voice, rate_hz: int) -> NDArray[np.float32]:
    """A recording of the pool, cut to whole cells of time so that what follows begins at the same time at every rate."""

    def read() -> NDArray[np.float32]:
        path = Path(voice.path)
        check_unchanged(path, voice.size)
        samples = decode(path, rate_hz).samples
        samples = samples[: round(on_grid(len(samples) / rate_hz) * rate_hz) or len(samples)]
        level = active_speech(samples, rate_hz).level
        return (samples / level).astype(np.float32) if level > 0.0 else samples

    return kept((pool.digest, voice.path, rate_hz), read)


def _faded(samples: NDArray[np.float32], fade: int, *, begin: bool) -> NDArray[np.float32]:
    """Recordings are joined without clicks."""
    fade = min(fade, len(samples) // 2)
    ramp = (np.arange(fade, dtype=np.float32) + 0.5) / max(fade, 1)
    faded = samples.copy()
    faded[len(faded) - fade :] *= ramp[::-1]
    if begin:
        faded[:fade] *= ramp
    return faded
