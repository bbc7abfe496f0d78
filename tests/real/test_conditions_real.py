"""Conditions on real speech: Emo-DB in the noise of ESC-10, in babble of its own speakers, in rooms and on the telephone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipelines.audio.conditions import Distortion, parse_condition, prepare_condition
from pipelines.audio.decode import decode
from pipelines.audio.levels import active_speech, rms
from pipelines.audio.noises import generator, noise_segment
from pipelines.audio.recordings import open_set
from pipelines.corpora.manifest import Manifest
from tests.audio.test_conditions import Samples, decibels, p56_by_the_book

KINDS = ("noise:esc10@5dB", "babble@5dB", "white@5dB", "pink@5dB", "reverb:0.6s", "telephone")
RATE = 16000


@pytest.fixture(scope="module")
def emodb(real_data: Path) -> Manifest:
    from pipelines.corpora.prepare import prepare

    return prepare("emodb", real_data / "corpora" / "emodb").manifest


@pytest.fixture(scope="module")
def noise_dir(real_data: Path) -> Path:
    if not (real_data / "noise/esc10").is_dir():
        pytest.skip(f"ESC-10 is not at {real_data / 'noise/esc10'}")
    return real_data / "noise"


@pytest.fixture(scope="module")
def clips(emodb: Manifest) -> dict[str, Path]:
    """Every 45th utterance."""
    return dict(zip(emodb.utterance_ids[::45], emodb.audio_paths()[::45], strict=True))


def distorted(text: str, emodb: Manifest, noise_dir: Path) -> Distortion:
    return prepare_condition(parse_condition(text), manifest=emodb, noise_dirs=[noise_dir])


def test_level_of_real_speech_is_that_of_the_recommendation(clips: dict[str, Path]) -> None:
    for path in clips.values():
        samples = np.pad(decode(path, RATE).samples, (0, RATE))
        level = active_speech(samples, RATE).level
        assert decibels(level / p56_by_the_book(samples, RATE)) == pytest.approx(0.0, abs=0.25), path
        assert decibels(level / p56_by_the_book(samples, RATE, per_octave=24)) == pytest.approx(0.0, abs=0.1), path


def test_esc10_is_read_as_it_is(noise_dir: Path) -> None:
    found = open_set(noise_dir / "esc10", kind="noise")
    assert len(found.recordings) == 60
    assert len({recording.name.split("/")[0] for recording in found.recordings}) == 10
    assert found.duration_s == pytest.approx(60 * 5.0, rel=0.05)
    for recording in found.recordings:
        assert found.samples(recording, 0, RATE).any()


@pytest.mark.parametrize("snr_db", [-5, 5, 20])
def test_snr_in_real_noise(emodb: Manifest, noise_dir: Path, clips: dict[str, Path], snr_db: int) -> None:
    """The result is a mixture of speech and noise and of nothing else, and the parts have the ratio asked for."""
    noise = open_set(noise_dir / "esc10", kind="noise")
    distortion = distorted(f"noise:esc10@{snr_db}dB", emodb, noise_dir)
    for name, path in clips.items():
        clean = decode(path, RATE).samples
        found = distortion.apply(clean, RATE, name).astype(np.float64)
        segment = noise_segment(noise, generator(1, 0, "noise:esc10", name), len(clean), RATE)
        parts = np.stack([clean.astype(np.float64), segment], axis=1)
        shares = np.linalg.lstsq(parts, found)[0]
        assert rms(found - parts @ shares) < 1e-5 * rms(found)
        level = shares[0] * p56_by_the_book(np.pad(clean, (0, RATE)), RATE, per_octave=24)
        assert decibels(level / rms(shares[1] * segment)) == pytest.approx(snr_db, abs=0.1), name


@pytest.mark.parametrize("text", [*KINDS, "reverb:0.6s+noise:esc10@5dB+telephone"])
def test_level_and_length_are_kept(emodb: Manifest, noise_dir: Path, clips: dict[str, Path], text: str) -> None:
    distortion = distorted(text, emodb, noise_dir)
    for name, path in clips.items():
        clean = decode(path, RATE).samples
        found = distortion.apply(clean, RATE, name)
        mask = active_speech(clean, RATE).mask
        assert found.shape == clean.shape
        assert np.isfinite(found).all()
        assert rms(found, mask) == pytest.approx(rms(clean, mask), rel=1e-5)
        assert np.abs(found).max() < 10.0
        # The speech is still where it was: phases alone, in the band of the telephone, correlate best without a shift.
        cross = np.fft.rfft(found, 2 * len(clean)) * np.conj(np.fft.rfft(clean, 2 * len(clean)))
        frequency = np.fft.rfftfreq(2 * len(clean), 1.0 / RATE)
        cross[(frequency < 350.0) | (frequency > 3300.0)] = 0.0
        assert int(np.argmax(np.fft.irfft(cross / np.maximum(np.abs(cross), 1e-30)))) == 0, name


@pytest.mark.parametrize("text", KINDS)
def test_both_rates_hear_the_same(emodb: Manifest, noise_dir: Path, clips: dict[str, Path], text: str) -> None:
    """Below 7 kHz, what a 24 kHz encoder gets is what a 16 kHz encoder gets, up to a gain."""
    distortion = distorted(text, emodb, noise_dir)

    def low_band(path: Path, name: str, rate_hz: int) -> Samples:
        spectrum = np.fft.rfft(distortion.apply(decode(path, rate_hz).samples, rate_hz, name))
        return spectrum[: 7000 * len(decode(path, rate_hz).samples) // rate_hz]

    for name, path in clips.items():
        low, high = low_band(path, name, 16000), low_band(path, name, 24000)
        length = min(len(low), len(high))
        coherence = np.abs(np.vdot(low[:length], high[:length])) / (
            np.linalg.norm(low[:length]) * np.linalg.norm(high[:length])
        )
        assert coherence > 0.97, name


def test_babble_of_emodb(emodb: Manifest, noise_dir: Path) -> None:
    babble = distorted("babble@5dB", emodb, noise_dir).provenance()["parts"][0]
    of_each = emodb.table["speaker"].value_counts()
    assert (babble["speakers"], babble["voices"]) == (10, 6)
    assert babble["recordings"] == int(np.minimum(of_each, 40).sum()) == 393
