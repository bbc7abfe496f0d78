"""Conditions: what is done to every recording before it is encoded, such as ``noise:esc10@5dB`` or ``reverb:0.6s+telephone``.

A condition is a text, and in its one canonical form the name of the stores made under it::

    clean                nothing is done
    noise:NAME@5dB       recordings from a folder: a name that is looked up, or a path (its last part becomes the name)
    babble@5dB           other speakers of the corpus
    white@5dB  pink@5dB  made-up noise; pink has equal power per octave, from 20 Hz on
    reverb:0.6s          a made-up room of that RT60; reverb:0.6s@-5dB also sets its direct-to-reverberant ratio (else 0 dB)
    reverb:FOLDER        measured impulse responses
    telephone            300 to 3400 Hz, μ-law at 8 kHz
    seed:3               other random choices than seed 0

Parts are joined by ``+`` and done in the order given.

What is promised of every part:

* *Determined by the utterance.* All random choices follow from the seed, the part's kind and name, and the utterance's id:
  not from processes, order, or what else is encoded. SNR and RT60 do not enter, so ``noise:esc10@0dB`` is the noise of
  ``noise:esc10@10dB``, only louder, and comparisons between SNRs are paired. Places are chosen in seconds, so at another sample
  rate the same noise is heard, as far as the rate reaches.
* *SNR* is the active speech level (ITU-T P.56, see ``levels``) over the RMS of the noise along the whole utterance. Silence
  around the speech does not change it. Speech means whatever the earlier parts have made of it.
* *Level restored.* After each part, one gain brings the level over the active samples of the clean utterance back to what it
  was: an encoder sees the loudness it would have seen, and a condition is never also a change of loudness. Nothing is clipped:
  peaks may exceed 1, which floating-point samples can hold.
* *Length kept*; what would follow the utterance (reverberation of its last word) is cut off.
* Twice as loud an utterance gives twice as loud a result.

A folder's content is not in the name: :attr:`Distortion.digest` tells it apart, and belongs in the provenance of a store.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pipelines.audio import babble as voices
from pipelines.audio import recordings
from pipelines.audio.babble import SpeechCorpus
from pipelines.audio.condition_text import Condition, Part, condition_file_name, parse_condition
from pipelines.audio.levels import Samples, active_speech, rms
from pipelines.audio.noises import (
    PINK_FROM_HZ,
    SILENT_DB,
    TRIES,
    coloured_noise,
    generator,
    loudest,
    mixed,
    noise_segment,
)
from pipelines.audio.recordings import RecordingSet
from pipelines.audio.rooms import made_up_response, reverberate
from pipelines.audio.telephone import telephone
from pipelines.errors import AudioError, ConfigError

__all__ = [
    "ALGORITHM",
    "Condition",
    "Distortion",
    "Part",
    "condition_file_name",
    "parse_condition",
    "prepare_condition",
]

ALGORITHM = 1
"""Raised whenever the same condition gives other samples than before."""

LONGEST_RESPONSE_S = 20.0

_NOTHING_LEFT = 1e-2  # 40 dB below what was there; what is left is mostly coding noise


class _Step(Protocol):
    """A part with everything it needs; small, since it goes to other processes."""

    def apply(self, speech: Samples, rate_hz: int, random: np.random.Generator, utterance_id: str) -> Samples:
        """Speech at an active level of 1 after this part, at any level."""
        ...

    def describe(self) -> Mapping[str, object]: ...


@dataclass(frozen=True, eq=False)
class Distortion:
    """A condition with everything it needs, ready to be applied, here or in another process.

    Attributes:
        condition: what is done.
        digest: sha256 of everything that decides the result: version of this code, parts, seed, contents of the folders, manifest
            and recordings of babble. Empty for ``clean``.
        steps: its parts, prepared.
    """

    condition: Condition
    digest: str
    steps: tuple[_Step, ...]

    @property
    def name(self) -> str:
        """Canonical text of the condition, its seed included."""
        return self.condition.name

    def provenance(self) -> dict[str, Any]:
        """What was done, as JSON values: ``name``, ``seed``, ``algorithm``, ``digest`` and ``parts`` with their folders."""
        parts = [
            {"part": part.name, **step.describe()} for part, step in zip(self.condition.parts, self.steps, strict=True)
        ]
        return {
            "name": self.name,
            "seed": self.condition.seed,
            "algorithm": ALGORITHM,
            "digest": self.digest,
            "parts": parts,
        }

    def apply(self, samples: NDArray[np.float32], rate_hz: int, utterance_id: str) -> NDArray[np.float32]:
        """The utterance under this condition.

        Args:
            samples: float32 [samples], mono; left as they are.
            rate_hz: sample rate.
            utterance_id: decides all random choices.

        Returns:
            float32 [samples]. Under ``clean`` the very array that was given.

        Raises:
            AudioError: of this utterance: it is empty, silent or not finite, or the condition leaves nothing of it (all of it lies
                outside the telephone's band). Or a noise recording, named by the message, has turned out to be broken.
            DataRootError: a noise recording has gone or changed; nothing is wrong with this utterance.
            UtteranceError: babble, and the utterance is not of the corpus it was prepared for.
        """
        if not self.steps:
            return samples
        if samples.ndim != 1 or len(samples) == 0:
            raise AudioError(
                f"Utterance {utterance_id!r} has samples of shape {samples.shape}, expected at least one, mono."
            )
        if not np.isfinite(samples).all():
            raise AudioError(f"Utterance {utterance_id!r} has samples that are not finite (NaN or infinite).")
        speech = active_speech(samples, rate_hz)
        if speech.level == 0.0:
            raise AudioError(f"Utterance {utterance_id!r} is silent, so {self.name} has nothing to be relative to.")
        # At a level of 1 in float64: neither very quiet nor very loud recordings meet the limits of float32.
        signal = samples.astype(np.float64) / speech.level
        target = rms(signal, speech.mask)
        for part, step in zip(self.condition.parts, self.steps, strict=True):
            random = generator(ALGORITHM, self.condition.seed, part.key, utterance_id)
            signal = step.apply(signal, rate_hz, random, utterance_id)
            level = rms(signal, speech.mask)
            if not level > _NOTHING_LEFT * target:
                raise AudioError(f"Nothing is left of utterance {utterance_id!r} after {part.name}.")
            signal *= target / level
        with np.errstate(over="ignore"):  # reported below
            result = (signal * speech.level).astype(np.float32)
        if not np.isfinite(result).all():
            raise AudioError(
                f"Utterance {utterance_id!r} is too loud for {self.name}: samples exceed what float32 holds."
            )
        return result


def prepare_condition(
    condition: Condition, *, manifest: SpeechCorpus | None = None, noise_dirs: Sequence[Path] = (), seed: int = 0
) -> Distortion:
    """Find and check everything a condition needs, before any work begins.

    Args:
        condition: what is to be done.
        manifest: the corpus; babble is made of it, nothing else needs it.
        noise_dirs: folders of noise sets, looked in before those of ``$HYFUSE_NOISE`` and the working directory.
        seed: of the random choices, where the condition has none of its own; it then becomes part of the distortion's name.

    Raises:
        ConfigError: two seeds contradict each other, a seed below 0, or babble without two speakers to make it of.
        UnknownNameError: there is no noise set of that name.
        DataRootError: a folder does not exist or holds no recordings.
        AudioError: a recording in a folder is broken, silent, or too long; the message names it.
        ManifestError: babble of a manifest without a folder of recordings.
    """
    condition = _with_seed(condition, seed)
    steps = tuple(_prepare(part, condition.seed, manifest, noise_dirs) for part in condition.parts)
    if condition.is_clean:
        return Distortion(condition, "", ())
    identity = [
        ALGORITHM,
        condition.name,
        [step.describe().get("digest", "") for step in steps],
    ]
    return Distortion(condition, hashlib.sha256(json.dumps(identity).encode()).hexdigest(), steps)


def _with_seed(condition: Condition, seed: int) -> Condition:
    if not condition.is_random or seed == 0:
        return condition
    if not 0 <= seed < 10**9:
        raise ConfigError(f"The seed of a condition is {seed}; expected a whole number from 0 to 999999999.")
    if condition.seed not in {0, seed}:
        raise ConfigError(
            f"The condition {condition.name} says seed {condition.seed}, and seed {seed} was asked for beside it. Leave one of"
            " them out."
        )
    return replace(condition, seed=seed)


def _prepare(part: Part, seed: int, manifest: SpeechCorpus | None, noise_dirs: Sequence[Path]) -> _Step:
    decibels = part.decibels or 0.0
    if part.kind == "telephone":
        return _Telephone()
    if part.kind == "reverb" and part.rt60_s is not None:
        return _MadeUpRoom(part.rt60_s, decibels)
    if part.kind == "reverb":
        what = "impulse responses"
        folder = recordings.find_folder(part.source, noise_dirs, kind=f"folder of {what}")
        return _MeasuredRooms(recordings.open_set(folder, kind=what, longest_s=LONGEST_RESPONSE_S))
    if part.kind == "noise":
        folder = recordings.find_folder(part.source, noise_dirs, kind="noise set")
        return _RecordedNoise(recordings.open_set(folder, kind="noise recordings"), decibels)
    if part.kind == "babble":
        if manifest is None:
            raise ConfigError("babble is made of other speakers of the corpus, and no corpus was given.")
        return _Babble(voices.open_voices(manifest, seed=seed), decibels)
    return _MadeUpNoise(part.kind == "pink", decibels)


@dataclass(frozen=True)
class _MadeUpNoise:
    pink: bool
    snr_db: float

    def apply(self, speech: Samples, rate_hz: int, random: np.random.Generator, utterance_id: str) -> Samples:
        exponent, from_hz = (1.0, PINK_FROM_HZ) if self.pink else (0.0, 0.0)
        noise = coloured_noise(random, len(speech), rate_hz, exponent=exponent, from_hz=from_hz)
        return mixed(speech, noise, self.snr_db)

    def describe(self) -> Mapping[str, object]:
        return {}


@dataclass(frozen=True)
class _RecordedNoise:
    noise: RecordingSet
    snr_db: float

    def apply(self, speech: Samples, rate_hz: int, random: np.random.Generator, utterance_id: str) -> Samples:
        return mixed(speech, noise_segment(self.noise, random, len(speech), rate_hz), self.snr_db)

    def describe(self) -> Mapping[str, object]:
        return recordings.describe(self.noise)


@dataclass(frozen=True, eq=False)
class _Babble:
    pool: voices.VoicePool
    snr_db: float

    def apply(self, speech: Samples, rate_hz: int, random: np.random.Generator, utterance_id: str) -> Samples:
        for attempt in random.spawn(TRIES):  # a short utterance may meet a pause of all voices
            noise = voices.babble(self.pool, attempt, utterance_id, len(speech), rate_hz)
            if rms(noise) > 10.0 ** (SILENT_DB / 20.0):
                return mixed(speech, noise, self.snr_db)
        longer = voices.babble(self.pool, random, utterance_id, len(speech) + rate_hz, rate_hz)
        return mixed(speech, loudest(longer, len(speech)), self.snr_db)

    def describe(self) -> Mapping[str, object]:
        return voices.describe(self.pool)


@dataclass(frozen=True)
class _MadeUpRoom:
    rt60_s: float
    drr_db: float

    def apply(self, speech: Samples, rate_hz: int, random: np.random.Generator, utterance_id: str) -> Samples:
        return reverberate(speech, made_up_response(random, self.rt60_s, rate_hz, drr_db=self.drr_db))

    def describe(self) -> Mapping[str, object]:
        return {}


@dataclass(frozen=True)
class _MeasuredRooms:
    rooms: RecordingSet

    def apply(self, speech: Samples, rate_hz: int, random: np.random.Generator, utterance_id: str) -> Samples:
        recording = self.rooms.recordings[int(random.integers(len(self.rooms.recordings)))]
        response = self.rooms.samples(recording, 0, rate_hz)
        if not response.any():
            raise AudioError(
                f"The impulse response {self.rooms.root}/{recording.name} is silent. Move it out of the folder."
            )
        return reverberate(speech, response)

    def describe(self) -> Mapping[str, object]:
        return recordings.describe(self.rooms)


@dataclass(frozen=True)
class _Telephone:
    def apply(self, speech: Samples, rate_hz: int, random: np.random.Generator, utterance_id: str) -> Samples:
        return telephone(speech, rate_hz)

    def describe(self) -> Mapping[str, object]:
        return {}
