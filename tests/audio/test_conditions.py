"""Conditions, from their texts to their samples: SNR on the components, RT60 by Schroeder, μ-law against libsndfile."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import soundfile
from numpy.typing import NDArray

from pipelines.audio import recordings, rooms
from pipelines.audio.conditions import Distortion, condition_file_name, parse_condition, prepare_condition
from pipelines.audio.decode import decode
from pipelines.audio.levels import active_speech, rms
from pipelines.audio.noises import coloured_noise, generator
from pipelines.audio.telephone import mu_law
from pipelines.corpora.manifest import Manifest, manifest_from_rows
from pipelines.errors import AudioError, ConfigError, DataRootError, ManifestError, UnknownNameError, UtteranceError

RATE = 16000
Samples = NDArray[np.float64]


def tone(hertz: float, seconds: float, rate_hz: int = RATE, level: float = 0.3) -> Samples:
    return level * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate_hz)) / rate_hz)


def speech(seconds: float = 2.0, rate_hz: int = RATE, hertz: float = 200.0) -> NDArray[np.float32]:
    """Syllables of a buzz, four a second, with a pause in the middle."""
    time = np.arange(round(seconds * rate_hz)) / rate_hz
    envelope = np.maximum(0.0, np.sin(2 * np.pi * 2.0 * time)) ** 2
    envelope[(time > 0.4 * seconds) & (time < 0.6 * seconds)] = 0.0
    buzz = sum(np.sin(2 * np.pi * hertz * k * time) / k for k in (1, 2, 3, 4))
    return (0.2 * envelope * buzz).astype(np.float32)


def written(path: Path, samples: NDArray[np.floating], rate_hz: int = RATE, **options: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate_hz, **options)
    return path


def decibels(ratio: float) -> float:
    return 20.0 * float(np.log10(ratio))


def power_near(samples: NDArray[np.floating], hertz: float, rate_hz: int = RATE) -> float:
    """Power within 5 Hz of a frequency."""
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples)))) ** 2
    frequency = np.fft.rfftfreq(len(samples), 1.0 / rate_hz)
    return float(spectrum[np.abs(frequency - hertz) < 5.0].sum())


def prepared(text: str, **options: Any) -> Distortion:
    return prepare_condition(parse_condition(text), **options)


@pytest.fixture(autouse=True)
def _fresh_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    recordings._cache.clear()
    monkeypatch.delenv("HYFUSE_NOISE", raising=False)


@pytest.fixture(scope="module")
def noise_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sets ``street``, three recordings of noise at two rates, and ``rooms``, three impulse responses."""
    folder = tmp_path_factory.mktemp("sets")
    rng = np.random.default_rng(0)
    for number, rate_hz in enumerate((16000, 44100, 16000)):
        smooth = np.convolve(rng.standard_normal(4 * rate_hz + 7), np.ones(8) / 8.0, mode="valid")
        written(folder / f"street/part{number % 2}/n{number}.wav", 0.1 * smooth, rate_hz)
        response = rng.standard_normal(3000) * np.exp(-np.arange(3000) / 500.0) * 0.1
        response[40] = 1.0
        written(folder / f"rooms/r{number}.wav", 0.5 * response)
    (folder / "street/README.txt").write_text("no sound")
    return folder


def make_corpus(folder: Path) -> Manifest:
    """Five speakers, three recordings each; every speaker is a tone of his own, at 500, 1000, … 2500 Hz."""
    rows = []
    for speaker in range(5):
        for take in range(3):
            name = f"s{speaker}t{take}"
            samples = tone(500.0 * (speaker + 1), 1.0 + 0.2 * take, level=0.05 * (speaker + 1))
            written(folder / f"wav/{name}.wav", samples)
            rows.append({"utterance_id": name, "path": f"wav/{name}.wav", "speaker": f"speaker{speaker}"})
    return manifest_from_rows("tones", rows, root=folder)


@pytest.fixture
def corpus(tmp_path: Path) -> Manifest:
    return make_corpus(tmp_path)


EVERY_KIND = ["noise:street@5dB", "babble@5dB", "white@5dB", "pink@5dB", "reverb:0.6s", "reverb:rooms", "telephone",
              "reverb:0.3s+noise:street@0dB+telephone+seed:4"]  # fmt: skip


@pytest.fixture(scope="module")
def every(noise_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Distortion]:
    """Any of ``EVERY_KIND``, prepared."""
    corpus = make_corpus(tmp_path_factory.mktemp("corpus"))
    return cache(lambda text: prepared(text, manifest=corpus, noise_dirs=[noise_dir]))


# ------------------------------------------------------------------------------------------------ the text


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("clean", "clean"),
        (" Clean ", "clean"),
        ("noise:esc10@5dB", "noise:esc10@5dB"),
        ("noise:esc10@5.0db", "noise:esc10@5dB"),
        ("noise: esc10 @ -2.50 dB", "noise:esc10@-2.5dB"),
        ("noise:/data/my noise/@0dB", "noise:my_noise@0dB"),
        ("noise:~/set@-0dB", "noise:set@0dB"),
        ("noise:musan/noise@10dB", "noise:musan-noise@10dB"),
        ("noise:/data/a@b@10dB", "noise:a_b@10dB"),
        ("noise:Geräusch@10dB", "noise:Geräusch@10dB"),
        ("babble@-30dB", "babble@-30dB"),
        ("white@60dB", "white@60dB"),
        ("PINK@007dB", "pink@7dB"),
        ("reverb:0.60s", "reverb:0.6s"),
        ("reverb: 1 s", "reverb:1s"),
        ("reverb:0.6s@0dB", "reverb:0.6s"),
        ("reverb:0.6s@-5dB", "reverb:0.6s@-5dB"),
        ("reverb:/irs/hall", "reverb:hall"),
        ("reverb:/irs/0.6s", "reverb:folder-0.6s"),
        ("reverb:./nan", "reverb:folder-nan"),
        ("telephone", "telephone"),
        ("reverb:0.6s + noise:esc10@5dB + telephone", "reverb:0.6s+noise:esc10@5dB+telephone"),
        ("noise:a@5dB+noise:b@5dB", "noise:a@5dB+noise:b@5dB"),
        ("seed:3+white@5dB", "white@5dB+seed:3"),
        ("white@5dB+seed:0", "white@5dB"),
    ],
)
def test_canonical_text(text: str, name: str) -> None:
    condition = parse_condition(text)
    assert condition.name == name
    assert parse_condition(name).name == name
    assert condition_file_name(name) == name
    assert "/" not in name
    assert pickle.loads(pickle.dumps(condition)) == condition
    assert condition.is_clean == (name == "clean")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "",
            r"'' is not a condition: it is empty\. A condition is clean, or parts joined by \+: noise:NAME@5dB.*seed:N",
        ),
        ("  ", "it is empty"),
        ("white@5dB+", r"has an empty part \(a \+ too many\?\)"),
        ("+white@5dB", "has an empty part"),
        ("nois:esc10@5dB", r"'nois:esc10@5dB' is none of clean, noise, babble.*\(nearest: noise"),
        ("reverberation:0.5s", r"is none of .*nearest: reverb"),
        ("mp3", r"'mp3' is none of clean"),
        ("noise:esc10@+5dB", r"signal-to-noise ratio is '', expected decibels"),
        ("white@5dB+5dB", "a positive SNR is written without a sign, as in @5dB"),
        ("noise:/a+b@5dB", r"A folder with a \+ in its path needs a link without one: `ln -s`"),
        ("noise:esc10", r"noise needs a signal-to-noise ratio, as in noise:esc10@5dB"),
        ("noise", r"noise needs a signal-to-noise ratio, as in noise:esc10@5dB"),
        ("babble", r"babble needs a signal-to-noise ratio, as in babble@5dB"),
        ("white:5dB", r"white needs a signal-to-noise ratio, as in white@5dB"),
        ("noise@5dB", r"names no folder, as in noise:esc10@5dB"),
        ("noise:@5dB", r"names no folder"),
        ("noise:/@5dB", r"names no folder"),
        ("noise:esc10@5", r"ratio is '5', expected decibels with their unit, as in 5dB or -2\.5dB"),
        ("noise:esc10@NaNdB", r"ratio is 'NaNdB', expected decibels"),
        ("noise:esc10@infdB", r"ratio is 'infdB', expected decibels"),
        ("noise:esc10@1e1dB", r"ratio is '1e1dB', expected decibels"),
        ("noise:esc10@5.12345dB", r"expected decibels"),
        ("noise:esc10@-31dB", r"ratio is -31dB, expected -30 to 60 dB"),
        ("white@61dB", r"ratio is 61dB, expected -30 to 60 dB"),
        ("babble:ravdess@5dB", r"babble takes no name, found ':ravdess'; write babble@5dB"),
        ("reverb", r"names no folder, as in reverb:0\.6s or reverb:/data/rooms"),
        ("reverb:", r"names no folder"),
        ("reverb:0.6", r"reverberation time is '0\.6', expected seconds with their unit, as in reverb:0\.6s"),
        ("reverb:nans", r"reverberation time is 'nans'"),
        ("reverb:nan", r"reverberation time is 'nan'"),
        ("reverb:-1s", r"reverberation time is -1s, expected 0\.05 to 10 s"),
        ("reverb:0s", r"reverberation time is 0s, expected 0\.05 to 10 s"),
        ("reverb:11s", r"reverberation time is 11s"),
        ("reverb:600ms", r"reverberation time is '600ms', expected seconds"),
        ("reverb:0,6s", r"reverberation time is '0,6s', expected seconds"),
        ("reverb:0.6s@5", r"direct-to-reverberant ratio is '5'"),
        ("reverb:hall@5dB", r"measured rooms have a direct-to-reverberant ratio of their own"),
        ("telephone:8k", r"telephone takes nothing behind it, found ':8k'"),
        ("telephone@5dB", r"telephone takes nothing behind it"),
        ("clean+white@5dB", r"clean stands alone"),
        ("noise:esc10@5dB+clean", r"clean stands alone"),
        ("clean+seed:1", r"clean stands alone"),
        ("telephone+telephone", r"telephone occurs more than once"),
        ("white@5dB+white@0dB", r"white occurs more than once"),
        ("noise:/a/x@5dB+noise:/b/x@5dB", r"noise:x occurs more than once \(folders are told apart by their last part"),
        ("seed:1", r"has a seed, but nothing in it is chosen at random"),
        ("telephone+seed:1", r"has a seed, but nothing"),
        ("white@5dB+seed:1+seed:2", r"more than one seed"),
        ("white@5dB+seed:-1", r"seed is '-1', expected a whole number from 0 on"),
        ("white@5dB+seed", r"seed is '', expected"),
        ("+".join(f"noise:a-rather-long-name-{number}@5dB" for number in range(10)), r"longer than 200 bytes"),
    ],
)
def test_mistakes_in_the_text(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        parse_condition(text)
    assert "A condition is clean, or parts joined by +" in str(caught.value)


def test_other_texts_as_file_names() -> None:
    assert condition_file_name("a/b c%") == "a%2Fb%20c%25"
    assert condition_file_name("Geräusch\n") == "Geräusch%0A"


# ------------------------------------------------------------------------------------------------ levels


def p56_by_the_book(samples: NDArray[np.floating], rate_hz: int, *, per_octave: int = 1) -> float:
    """Method B as the Recommendation writes it, with thresholds a factor of two apart (or more of them), interpolated."""
    constant, hangover, margin = np.exp(-1.0 / (rate_hz * 0.03)), int(np.ceil(0.2 * rate_hz)), 15.9
    p = q = 0.0
    envelope = []
    for sample in np.abs(samples).tolist():
        p = constant * p + (1.0 - constant) * sample
        q = constant * q + (1.0 - constant) * p
        envelope.append(q)
    index = np.arange(len(envelope))
    before: tuple[float, float] | None = None
    lowest = rms(samples) * 10.0 ** (-24.0 / 20.0)  # the active level is at least the RMS: lower ones are no candidates
    for step in range(15 * per_octave):
        threshold = 2.0 ** (step / per_octave - 15)
        if threshold * 2.0 ** (1.0 / per_octave) < lowest:
            continue
        last = np.maximum.accumulate(np.where(np.array(envelope) >= threshold, index, -(10**9)))
        count = np.count_nonzero(index - last <= hangover)
        active, level = (
            float(10 * np.log10(np.sum(np.square(samples, dtype=np.float64)) / count)),
            20 * np.log10(threshold),
        )
        if active - level <= margin:
            assert before is not None
            old_active, difference = before[0], before[0] - before[1]
            share = (difference - margin) / (difference - (active - level))
            return float(10.0 ** ((old_active + share * (active - old_active)) / 20.0))
        before = (active, float(level))
    raise AssertionError("no threshold fits")


@pytest.mark.parametrize("seconds", [1.3, 2.0, 4.0])
@pytest.mark.parametrize("scale", [0.05, 1.0])
def test_level_is_that_of_the_recommendation(seconds: float, scale: float) -> None:
    """Exactly, with fine thresholds; its own, 6 dB apart, are that far off the mark on these abrupt syllables."""
    samples = np.concatenate([np.zeros(RATE // 2), scale * speech(seconds), np.zeros(RATE)])
    level = active_speech(samples, RATE).level
    assert decibels(level / p56_by_the_book(samples, RATE, per_octave=24)) == pytest.approx(0.0, abs=0.03)
    assert decibels(level / p56_by_the_book(samples, RATE)) == pytest.approx(0.0, abs=0.5)


def test_level_of_speech_with_noise_in_its_pauses() -> None:
    samples = speech(4.0) + 0.001 * np.random.default_rng(0).standard_normal(4 * RATE)
    samples = np.concatenate([samples, np.zeros(RATE // 2)])
    expected = p56_by_the_book(samples, RATE, per_octave=24)
    assert decibels(active_speech(samples, RATE).level / expected) == pytest.approx(0.0, abs=0.03)


def test_steady_tone_is_all_active() -> None:
    found = active_speech(tone(300.0, 20.0), RATE)
    assert found.mask.all()
    # Its level counts the hangover behind it: 20.2 s and what the envelope takes to fall.
    assert found.level == pytest.approx(0.3 / np.sqrt(2.0) * np.sqrt(20.0 / 20.25), rel=0.005)


def test_mask_covers_speech_and_leaves_out_long_pauses() -> None:
    samples = np.concatenate([np.zeros(RATE), tone(300.0, 1.0), np.zeros(RATE), tone(300.0, 1.0), np.zeros(RATE)])
    mask = active_speech(samples, RATE).mask.reshape(5, RATE)
    assert mask[1].all()
    assert mask[3].all()
    assert not mask[0, : -RATE // 10].any()
    assert not mask[2, RATE * 4 // 10 : -RATE // 10].any()
    assert not mask[4, RATE * 4 // 10 :].any()


def test_silence_around_does_not_change_the_level() -> None:
    bare = active_speech(speech(), RATE).level
    for before, behind in ((0, 3.0), (0, 0.05), (1.0, 0), (0.5, 60.0)):
        padded = np.pad(speech(), (round(before * RATE), round(behind * RATE)))
        assert active_speech(padded, RATE).level == pytest.approx(bare, rel=1e-6)


def test_level_scales_with_the_samples_and_hardly_depends_on_the_rate() -> None:
    level = active_speech(speech(), RATE).level
    assert active_speech(1e-6 * speech().astype(np.float64), RATE).level == pytest.approx(1e-6 * level, rel=1e-9)
    for rate_hz in (8000, 22050, 24000, 44100, 48000):
        assert decibels(active_speech(speech(rate_hz=rate_hz), rate_hz).level / level) == pytest.approx(0.0, abs=0.02)


def _click(length: int, at: int) -> Samples:
    samples = np.zeros(length)
    samples[at] = 0.5
    return samples


@pytest.mark.parametrize(
    "samples",
    [
        np.array([0.5]),
        np.array([0.5, -0.5]),
        _click(RATE, 8000),
        _click(RATE, 0),
        _click(RATE, RATE - 1),
        tone(300, 0.01),
    ],
)
def test_everything_that_is_not_silent_has_a_level_and_active_samples(samples: Samples) -> None:
    found = active_speech(samples, RATE)
    assert 0.0 < found.level <= 0.5
    assert found.mask.shape == samples.shape
    assert rms(samples, found.mask) > 0.0
    longer = active_speech(np.pad(samples, (0, 3 * RATE)), RATE)
    assert longer.level == pytest.approx(found.level, rel=1e-9)


def test_silence_has_level_zero() -> None:
    assert active_speech(np.zeros(100), RATE).level == 0.0


def test_rms() -> None:
    samples = np.random.default_rng(0).standard_normal(3 * 2**20 + 5).astype(np.float32)
    where = samples > 0.5
    assert rms(samples) == pytest.approx(np.sqrt(np.mean(samples.astype(np.float64) ** 2)), rel=1e-12)
    assert rms(samples, where) == pytest.approx(np.sqrt(np.mean(samples[where].astype(np.float64) ** 2)), rel=1e-12)
    assert rms(samples[:0]) == 0.0


# ------------------------------------------------------------------------------------------------ SNR and level


@pytest.mark.parametrize("snr_db", [-30.0, -5.0, 0.0, 5.0, 20.0, 60.0])
@pytest.mark.parametrize("rate_hz", [16000, 24000])
def test_snr_of_recorded_noise_measured_on_the_parts(tmp_path: Path, snr_db: float, rate_hz: int) -> None:
    """Speech below 1 kHz, noise at 3 kHz: a filter takes the mixture apart again."""
    written(tmp_path / "hum/a.wav", tone(3000.0, 5.0))
    distortion = prepared(f"noise:{tmp_path}/hum@{snr_db}dB")
    clean = np.pad(speech(rate_hz=rate_hz), (0, rate_hz))
    mixture = distortion.apply(clean, rate_hz, "u").astype(np.float64)
    spectrum = np.fft.rfft(np.pad(mixture, rate_hz))
    high = np.fft.rfftfreq(3 * rate_hz + 2 * rate_hz, 1.0 / rate_hz) > 2000.0
    voice = np.fft.irfft(np.where(high, 0.0, spectrum))[rate_hz:-rate_hz]
    noise = np.fft.irfft(np.where(high, spectrum, 0.0))[rate_hz:-rate_hz]
    # Too little speech is left at -30 dB to be measured, and too little noise at 60 dB; its share of the clean speech is known.
    gain = float(voice @ clean / np.sum(np.square(clean, dtype=np.float64)))
    edges = np.fft.irfft(np.where(high, np.fft.rfft(np.pad(clean, rate_hz)), 0.0))[rate_hz:-rate_hz]
    level = gain * p56_by_the_book(clean, rate_hz, per_octave=24)
    assert decibels(level / rms(noise - gain * edges)) == pytest.approx(snr_db, abs=0.1)


@pytest.mark.parametrize("text", ["noise:street@", "babble@", "white@", "pink@"])
@pytest.mark.parametrize("snr_db", [-30, 0, 5, 60])
def test_snr_and_level_exactly(every: Callable[[str], Distortion], text: str, snr_db: int) -> None:
    """The result is g (speech + noise), where speech and noise have the ratio asked for and g restores the level."""
    clean = speech().astype(np.float64)
    found = every(f"{text}{snr_db}dB").apply(speech(), RATE, "s0t0").astype(np.float64)
    loud = every(f"{text}-20dB").apply(speech(), RATE, "s0t0").astype(np.float64)
    active = active_speech(clean, RATE)
    # At -20 dB: loud = g (clean + noise) with rms(noise) = 10 level, which leaves one unknown, g.
    a, b, c = np.sum(clean**2), np.sum(clean * loud), np.sum(loud**2)
    wanted = 100.0 * active.level**2 * len(clean)  # = sum of (loud / g - clean)²
    shares = np.roots([c, -2.0 * b, a - wanted])
    noise = loud * float(shares.max()) - clean
    noise *= active.level / rms(noise) * 10.0 ** (-snr_db / 20.0)
    mixture = clean + noise
    expected = mixture * rms(clean, active.mask) / rms(mixture, active.mask)
    assert np.abs(found - expected).max() < 2e-4 * np.abs(expected).max()


@pytest.mark.parametrize("text", EVERY_KIND)
def test_level_is_restored(every: Callable[[str], Distortion], text: str) -> None:
    clean = speech()
    mask = active_speech(clean, RATE).mask
    found = every(text).apply(clean, RATE, "s0t0")
    assert rms(found, mask) == pytest.approx(rms(clean, mask), rel=1e-5)
    assert np.abs(found - clean).max() > 1e-3


def test_appended_silence_changes_neither_snr_nor_speech(tmp_path: Path) -> None:
    written(tmp_path / "hum/a.wav", tone(3000.0, 30.0))
    distortion = prepared(f"noise:{tmp_path}/hum@5dB")
    short = distortion.apply(speech(), RATE, "u")
    long = distortion.apply(np.pad(speech(), (0, 6 * RATE)), RATE, "u")
    ratio = [np.sqrt(power_near(part, 3000.0) / power_near(part, 200.0)) for part in (short, long[: len(short)])]
    assert decibels(ratio[1] / ratio[0]) == pytest.approx(0.0, abs=0.05)


def test_other_snr_same_noise(every: Callable[[str], Distortion]) -> None:
    clean = speech()
    low, high = (every(f"noise:street@{snr}dB").apply(clean, RATE, "u").astype(np.float64) for snr in (-10, 20))
    basis = np.stack([clean.astype(np.float64), low], axis=1)
    residual = high - basis @ np.linalg.lstsq(basis, high)[0]
    assert rms(residual) < 1e-5 * rms(high)
    both = every("telephone+noise:street@-10dB").apply(clean, RATE, "u")
    assert np.corrcoef(both, low)[0, 1] > 0.95  # -10 dB: mostly the noise, the same one


@pytest.mark.parametrize(
    "text", ["noise:street@0dB", "babble@0dB", "white@0dB", "pink@0dB", "reverb:0.6s", "telephone"]
)
def test_every_rate_hears_the_same(every: Callable[[str], Distortion], text: str) -> None:
    import soxr

    distortion = every(text)
    for seconds in (0.7, 2.0, 6.13):
        low = distortion.apply(speech(seconds), RATE, "s1t0")
        high = soxr.resample(distortion.apply(speech(seconds, 24000), 24000, "s1t0"), 24000, RATE, quality="VHQ")
        length = min(len(low), len(high))
        assert np.corrcoef(low[:length], high[:length])[0, 1] > 0.98, seconds


# ------------------------------------------------------------------------------------------------ determinism


def _apply(distortion: Distortion, name: str) -> bytes:
    return distortion.apply(speech(), RATE, name).tobytes()


def test_same_in_any_order_thread_and_process(every: Callable[[str], Distortion]) -> None:
    names = [f"s{speaker}t{take}" for speaker in range(2) for take in range(2)]
    distortions = [every(text) for text in EVERY_KIND]
    first = {(d.name, name): _apply(d, name) for d in distortions for name in names}
    for text in set(EVERY_KIND) - {"telephone", "reverb:rooms"}:  # nothing is chosen, or one of three
        assert len({first[text, name] for name in names}) == len(names), text
    recordings._cache.clear()
    np.random.seed(5)  # a global seed must not matter
    backwards = {(d.name, name): _apply(d, name) for d in reversed(distortions) for name in reversed(names)}
    assert backwards == first
    recordings._cache.clear()
    pairs = [(d, name) for name in names for d in distortions]
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(lambda pair: _apply(*pair), pairs)) == [first[d.name, name] for d, name in pairs]
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        found = list(process.map(_apply, [d for d, _ in pairs], [name for _, name in pairs]))
    assert found == [first[d.name, name] for d, name in pairs]


def test_input_is_left_alone_and_clean_is_the_input_itself(every: Callable[[str], Distortion]) -> None:
    clean = speech()
    clean.flags.writeable = False
    for text in EVERY_KIND:
        every(text).apply(clean, RATE, "s0t0")
    distortion = every("clean")
    assert distortion.apply(clean, RATE, "u") is clean
    assert (distortion.name, distortion.digest, distortion.steps) == ("clean", "", ())


def test_seed_is_part_of_the_name() -> None:
    condition = parse_condition("white@5dB")
    seeded = prepare_condition(condition, seed=3)
    assert seeded.name == "white@5dB+seed:3"
    assert (
        _apply(seeded, "u")
        == _apply(prepared("white@5dB+seed:3"), "u")
        == _apply(prepared("white@5dB+seed:3", seed=3), "u")
    )
    assert _apply(seeded, "u") != _apply(prepare_condition(condition), "u")
    assert prepared("telephone", seed=3).name == "telephone"
    assert prepared("clean", seed=3).name == "clean"
    with pytest.raises(ConfigError, match=r"white@5dB\+seed:3 says seed 3, and seed 4 was asked for"):
        prepare_condition(parse_condition("white@5dB+seed:3"), seed=4)
    with pytest.raises(ConfigError, match=r"seed of a condition is -1"):
        prepare_condition(condition, seed=-1)


def test_digest_tells_apart_what_differs(every: Callable[[str], Distortion]) -> None:
    digests = [every(text).digest for text in EVERY_KIND]
    digests += [prepared(text).digest for text in ("white@6dB", "white@5dB+seed:1", "reverb:0.7s", "reverb:0.6s@1dB")]
    assert len(set(digests)) == len(digests)
    for digest in digests:
        assert len(digest) == 64
    assert every("pink@5dB").digest == prepared("pink@5dB").digest


def test_digest_follows_the_content_of_a_folder_and_not_its_place(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    samples = 0.1 * rng.standard_normal(200_000)
    for parent in "abcd":
        written(tmp_path / parent / "set/x.wav", samples)
    changed = samples.copy()
    changed[-5:] += 0.1
    written(tmp_path / "b/set/x.wav", changed)
    written(tmp_path / "c/set/y.wav", samples)
    a, b, c, d = (prepared(f"noise:{tmp_path}/{parent}/set@5dB") for parent in "abcd")
    assert a.name == b.name == c.name == d.name == "noise:set@5dB"
    assert a.digest == d.digest
    assert len({a.digest, b.digest, c.digest}) == 3


def test_provenance_is_json(every: Callable[[str], Distortion], noise_dir: Path) -> None:
    import json

    found = every("reverb:0.3s+noise:street@0dB+babble@5dB").provenance()
    assert json.loads(json.dumps(found)) == found
    assert found["name"] == "reverb:0.3s+noise:street@0dB+babble@5dB"
    assert [part["part"] for part in found["parts"]] == ["reverb:0.3s", "noise:street@0dB", "babble@5dB"]
    assert found["parts"][1]["folder"] == str(noise_dir / "street")
    assert (found["parts"][1]["recordings"], round(found["parts"][1]["duration_s"])) == (3, 12)
    assert (found["parts"][2]["speakers"], found["parts"][2]["voices"]) == (5, 4)


def test_importing_loads_nothing_heavy() -> None:
    code = "import sys, pipelines.audio.conditions; print(*{'scipy', 'soundfile', 'soxr', 'pandas', 'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == ""


# ------------------------------------------------------------------------------------------------ extremes


@pytest.mark.parametrize("text", EVERY_KIND)
@pytest.mark.parametrize("rate_hz", [8000, 16000, 22050, 24000, 44100])
def test_any_length_at_any_rate(every: Callable[[str], Distortion], text: str, rate_hz: int) -> None:
    distortion = every(text)
    for length in (1, 2, 3, 17, 159, 320, 1000, rate_hz + 1, 7 * rate_hz):
        clean = np.resize(speech(1.0, rate_hz) + np.float32(0.01), length)
        found = distortion.apply(clean, rate_hz, "s0t0")
        assert found.shape == clean.shape
        assert found.dtype == np.float32
        assert np.isfinite(found).all()
        assert found.any()


@pytest.mark.parametrize("text", EVERY_KIND)
@pytest.mark.parametrize("scale", [2.0**-60, 2.0**-8, 2.0**60])
def test_louder_in_louder_out(every: Callable[[str], Distortion], text: str, scale: float) -> None:
    distortion = every(text)
    plain = distortion.apply(speech(), RATE, "s0t0")
    scaled = distortion.apply(np.float32(scale) * speech(), RATE, "s0t0")
    np.testing.assert_allclose(scaled, np.float32(scale) * plain, rtol=1e-6, atol=1e-9 * scale)


@pytest.mark.parametrize("text", [*EVERY_KIND, "white@-30dB", "white@60dB"])
def test_a_click_in_silence(every: Callable[[str], Distortion], text: str) -> None:
    clean = _click(2 * RATE, RATE).astype(np.float32)
    found = every(text).apply(clean, RATE, "s0t0")
    assert np.isfinite(found).all()
    assert found.any()


def test_sixty_decibels_is_nearly_clean(every: Callable[[str], Distortion]) -> None:
    clean = speech()
    assert rms(every("noise:street@60dB").apply(clean, RATE, "u") - clean) < 2e-3 * rms(clean)


# ------------------------------------------------------------------------------------------------ recorded noise


def test_recordings_of_any_layout(tmp_path: Path) -> None:
    hum = tone(1000.0, 0.5)
    for name in (
        "1-100-A.WAV",
        "sub/folder/x.flac",
        "sub/a b.ogg",
        "Ä.aiff",
        ".hidden.wav",
        ".cache/x.wav",
        "sub/._x.wav",
    ):
        written(tmp_path / "set" / name, hum)
    for name in ("README.txt", "meta.csv", "sub/LICENSE"):
        (tmp_path / "set" / name).write_text("no sound")
    os.symlink(tmp_path / "set", tmp_path / "set/sub/again")
    found = recordings.open_set(tmp_path / "set", kind="noise")
    assert [recording.name for recording in found.recordings] == [
        "1-100-A.WAV",
        "sub/a b.ogg",
        "sub/folder/x.flac",
        "Ä.aiff",
    ]


def test_musan_and_demand(tmp_path: Path) -> None:
    hum = tone(1000.0, 0.2)
    for kind in ("music", "noise", "speech"):
        written(tmp_path / f"musan/{kind}/free-sound/a.wav", hum)
    found = recordings.open_set(tmp_path / "musan", kind="noise")
    assert [recording.name for recording in found.recordings] == ["noise/free-sound/a.wav"]
    for place in ("DKITCHEN", "TMETRO"):
        for channel in range(1, 17):
            written(tmp_path / f"demand/{place}/ch{channel:02}.wav", hum)
    found = recordings.open_set(tmp_path / "demand", kind="noise")
    assert [recording.name for recording in found.recordings] == ["DKITCHEN/ch01.wav", "TMETRO/ch01.wav"]


def test_only_the_first_channel_is_heard(tmp_path: Path) -> None:
    written(tmp_path / "set/a.wav", np.stack([tone(2000.0, 3.0), tone(3000.0, 3.0)], axis=1))
    found = prepared(f"noise:{tmp_path}/set@-10dB").apply(speech(), RATE, "u")
    assert power_near(found, 2000.0) > 1e4 * power_near(found, 3000.0)


def test_short_noise_is_repeated_without_clicks(tmp_path: Path) -> None:
    """Half a second that ends at the opposite of its beginning: repeated as it is, it would jump."""
    written(tmp_path / "set/a.wav", 0.5 * np.cos(np.pi * np.arange(RATE // 2) / (RATE // 2)))
    quiet = np.zeros(10 * RATE, np.float32)
    quiet[:100] = 0.1
    found = prepared(f"noise:{tmp_path}/set@-30dB").apply(quiet, RATE, "u").astype(np.float64)[1000:]
    assert np.abs(np.diff(found)).max() < 0.005 * np.abs(found).max()
    period = RATE // 2 - round(0.05 * RATE)
    np.testing.assert_allclose(found[:-period], found[period:], atol=1e-6)


def test_repeated_noise_is_as_loud_at_its_seams(tmp_path: Path) -> None:
    written(tmp_path / "set/a.wav", 0.1 * np.random.default_rng(0).standard_normal(RATE // 5))
    quiet = np.zeros(30 * RATE, np.float32)
    quiet[:100] = 0.1
    found = prepared(f"noise:{tmp_path}/set@-30dB").apply(quiet, RATE, "u")[1000:]
    period = RATE // 5 - round(0.05 * RATE)
    one = np.resize(found[:period], 2 * period)
    loudness = [rms(one[first : first + 400]) for first in range(0, period, 100)]
    assert max(loudness) < 1.25 * min(loudness)


def test_noise_of_one_sample(tmp_path: Path) -> None:
    written(tmp_path / "set/a.wav", np.array([0.5]))
    assert np.isfinite(prepared(f"noise:{tmp_path}/set@0dB").apply(speech(), RATE, "u")).all()


def test_silent_places_of_a_recording_are_not_used(tmp_path: Path) -> None:
    """Ten seconds of digital silence and one bark: every utterance gets the bark, at the ratio asked for."""
    bark = np.zeros(10 * RATE)
    bark[7 * RATE : 7 * RATE + 3000] = tone(3000.0, 3000 / RATE)
    bark += 1e-5 * np.random.default_rng(0).standard_normal(len(bark))
    written(tmp_path / "set/a.wav", bark, subtype="FLOAT")
    distortion = prepared(f"noise:{tmp_path}/set@0dB")
    for number in range(20):
        found = distortion.apply(speech(1.0), RATE, f"u{number}")
        spectrum = np.square(np.abs(np.fft.rfft(found)))  # of one second: the frequency is the index
        assert spectrum[2950:3050].sum() > 0.3 * spectrum[:2000].sum(), number


def test_long_recordings_are_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recordings, "PIECE_S", 2.0)
    whole = 0.1 * np.random.default_rng(0).standard_normal(round(4.5 * RATE))
    path = written(tmp_path / "set/a.flac", whole)
    found = recordings.open_set(tmp_path / "set", kind="noise")
    (recording,) = found.recordings
    assert found.num_pieces(recording) == 3
    pieces = [found.samples(recording, piece, RATE) for piece in range(3)]
    np.testing.assert_array_equal(np.concatenate(pieces), decode(path, RATE).samples)
    distortion = prepared(f"noise:{tmp_path}/set@-30dB")
    clean = speech(1.0)
    places = set()
    for number in range(30):
        noise = distortion.apply(clean, RATE, f"u{number}")
        match = np.correlate(whole.astype(np.float32), noise, mode="valid")
        places.add(int(np.argmax(match)) // round(1.5 * RATE))
    assert places == {0, 1, 2}


def test_a_silent_piece_of_a_long_recording(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recordings, "PIECE_S", 1.0)
    samples = np.zeros(30 * RATE)
    samples[17 * RATE : 18 * RATE] = tone(3000.0, 1.0)
    written(tmp_path / "set/a.wav", samples)
    distortion = prepared(f"noise:{tmp_path}/set@0dB")
    for number in range(10):
        assert power_near(distortion.apply(speech(0.5), RATE, f"u{number}"), 3000.0) > 1.0


def test_memory_of_recordings_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(6):
        written(tmp_path / f"set/{number}.wav", tone(1000.0, 1.0))
    monkeypatch.setattr(recordings, "CACHE_BYTES", 3 * 4 * RATE)
    distortion = prepared(f"noise:{tmp_path}/set@5dB")
    for number in range(30):
        distortion.apply(speech(0.5), RATE, f"u{number}")
        assert sum(samples.nbytes for samples in recordings._cache.values()) <= 3 * 4 * RATE
    assert len(recordings._cache) == 3


def test_where_a_set_is_looked_for(noise_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def folder(text: str, *folders: Path) -> object:
        return prepared(text, noise_dirs=folders).provenance()["parts"][0]["folder"]

    written(tmp_path / "other/street/a.wav", tone(1000.0, 0.1))
    assert folder("noise:street@5dB", tmp_path / "other", noise_dir) == str(tmp_path / "other/street")
    assert folder("noise:street/part0@5dB", tmp_path / "other", noise_dir) == str(noise_dir / "street/part0")
    monkeypatch.setenv("HYFUSE_NOISE", f"{noise_dir}{os.pathsep}{tmp_path / 'other'}")
    assert folder("noise:street@5dB") == str(noise_dir / "street")
    assert folder("noise:street@5dB", tmp_path / "other") == str(tmp_path / "other/street")
    monkeypatch.delenv("HYFUSE_NOISE")
    monkeypatch.chdir(tmp_path / "other")
    for text in ("noise:street@5dB", "noise:./street@5dB", "noise:../other/street@5dB"):
        assert folder(text) == str(tmp_path / "other/street")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert folder("noise:~/other/street@5dB") == str(tmp_path / "other/street")


def test_sets_that_are_not_there(noise_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UnknownNameError, match=r"Unknown noise set 'streets'\. Did you mean 'street'\?.*--noise-dir DIR"
    ):
        prepared("noise:streets@5dB", noise_dirs=[noise_dir])
    with pytest.raises(UnknownNameError, match=r"Unknown folder of impulse responses 'hall'"):
        prepared("reverb:hall", noise_dirs=[noise_dir])
    with pytest.raises(DataRootError, match=r"/nowhere is not a folder"):
        prepared(f"noise:{tmp_path}/nowhere@5dB")
    with pytest.raises(DataRootError, match=r"/nowhere, where noise is looked for, is not a folder.*--noise-dir"):
        prepared("noise:street@5dB", noise_dirs=[tmp_path / "nowhere"])
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/README.txt").write_text("nothing")
    with pytest.raises(
        DataRootError, match=r"empty holds no noise recordings: no file below it ends in \.aif, .*\.wav"
    ):
        prepared(f"noise:{tmp_path}/empty@5dB")


def _text(path: Path) -> None:
    path.write_text("no sound" * 500)


def _without_samples(path: Path) -> None:
    written(path, np.zeros(0))


def _silent(path: Path) -> None:
    written(path, np.zeros(1000))


def _not_finite(path: Path) -> None:
    written(path, np.array([0.1, np.nan, 0.1]), subtype="FLOAT")


def _cut(path: Path) -> None:
    written(path, 0.1 * np.random.default_rng(0).standard_normal(50_000), format="FLAC")
    path.write_bytes(path.read_bytes()[:40_000])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_text, r"cannot be read as audio \(Format not recognised\)"),
        (_without_samples, "holds no samples"),
        (_silent, "is silent"),
        (_not_finite, r"not finite \(NaN or infinite\)"),
        (_cut, r"cannot be read as audio \(flac decoder lost sync\)"),
    ],
)
@pytest.mark.parametrize("text", ["noise:{}@5dB", "reverb:{}"])
def test_broken_recordings_are_named_before_work_begins(
    tmp_path: Path, make: Callable[[Path], None], message: str, text: str
) -> None:
    written(tmp_path / "set/good.wav", tone(1000.0, 0.5))
    make(tmp_path / "set/bad one.wav")
    with pytest.raises(AudioError, match=message) as caught:
        prepared(text.format(tmp_path / "set"))
    assert str(tmp_path / "set/bad one.wav") in str(caught.value)


def test_recordings_that_break_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gone or changed ends the run; broken in its content, and not seen at first, fails the utterance. Both name the file."""
    path = written(tmp_path / "set/a.flac", 0.1 * np.random.default_rng(0).standard_normal(50_000))
    monkeypatch.setattr(recordings, "CHECKED_S", 0.0)
    content = bytearray(path.read_bytes())
    distortion = prepared(f"noise:{tmp_path}/set@5dB")
    path.write_bytes(content[:200] + bytes(len(content) - 200))
    with pytest.raises(
        AudioError, match=r"recording .*/set/a\.flac (cannot be read as audio|is silent|holds no samples)"
    ):
        distortion.apply(speech(), RATE, "u")
    path.write_bytes(content[:1000])
    with pytest.raises(DataRootError, match=r"a\.flac has changed since the work began: it had \d+ bytes and has 1000"):
        distortion.apply(speech(), RATE, "u")
    path.unlink()
    with pytest.raises(DataRootError, match=r"a\.flac was there when the work began.*goes on from here"):
        distortion.apply(speech(), RATE, "u")


def test_silent_recording_in_a_set_too_large_to_be_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recordings, "CHECKED_S", 0.0)
    _silent(written(tmp_path / "set/a.wav", np.zeros(10)))
    with pytest.raises(AudioError, match=r"recording .*/set/a\.wav is silent"):
        prepared(f"noise:{tmp_path}/set@5dB").apply(speech(), RATE, "u")
    with pytest.raises(AudioError, match=r"impulse response .*/set/a\.wav is silent"):
        prepared(f"reverb:{tmp_path}/set").apply(speech(), RATE, "u")


# ------------------------------------------------------------------------------------------------ utterances


@pytest.mark.parametrize("text", ["white@5dB", "telephone", "reverb:0.6s"])
def test_utterances_that_cannot_be_used(text: str) -> None:
    distortion = prepared(text)
    with pytest.raises(AudioError, match=r"Utterance 'u' is silent"):
        distortion.apply(np.zeros(100, np.float32), RATE, "u")
    with pytest.raises(AudioError, match=r"Utterance 'u' has samples that are not finite"):
        distortion.apply(np.array([0.1, np.nan], np.float32), RATE, "u")
    with pytest.raises(AudioError, match=r"Utterance 'u' has samples of shape \(0,\)"):
        distortion.apply(np.zeros(0, np.float32), RATE, "u")
    with pytest.raises(AudioError, match=r"shape \(2, 5\)"):
        distortion.apply(np.zeros((2, 5), np.float32), RATE, "u")


def test_too_loud_to_stay_finite() -> None:
    clean = np.where(tone(100.0, 2.0) >= 0.0, 3e38, -3e38).astype(np.float32)
    with pytest.raises(AudioError, match=r"is too loud for white@-30dB: samples exceed what float32 holds"):
        prepared("white@-30dB").apply(clean, RATE, "u")


def test_nothing_left_behind_the_telephone() -> None:
    with pytest.raises(AudioError, match=r"Nothing is left of utterance 'u' after telephone"):
        prepared("telephone").apply(tone(6000.0, 1.0).astype(np.float32), RATE, "u")


# ------------------------------------------------------------------------------------------------ babble


def test_babble_is_everybody_else(corpus: Manifest) -> None:
    distortion = prepared("babble@-20dB", manifest=corpus)
    for speaker in range(5):
        found = distortion.apply(tone(4000.0, 3.0).astype(np.float32), RATE, f"s{speaker}t1")
        heard = [power_near(found, 500.0 * (number + 1)) for number in range(5)]
        own = heard.pop(speaker)
        assert own < 1e-4 * min(heard)
        assert max(heard) < 2.0 * min(heard)  # at equal levels, though the recordings' differ by 14 dB


def test_babble_of_a_corpus_with_many_speakers(tmp_path: Path) -> None:
    """At most six voices, a bounded pool, and little to send to another process."""
    for speaker in range(60):
        written(tmp_path / f"{speaker}.wav", tone(300.0 + 50.0 * speaker, 1.0))

    rows = 100_000
    table = pd.DataFrame({
        "utterance_id": [f"utterance-{row}" for row in range(rows)],
        "path": [f"{row % 60}.wav" for row in range(rows)],
        "speaker": [str(row % 60) for row in range(rows)],
    })  # fmt: skip

    def corpus(digest: str = "0" * 64) -> Any:  # reading a manifest of that size would take longer than all the rest
        return SimpleNamespace(corpus="many", root=tmp_path, digest=digest, table=table)

    distortion = prepared("babble@-10dB", manifest=corpus())
    assert len(pickle.dumps(distortion)) < 12 * rows
    assert distortion.provenance()["parts"][0]["speakers"] == 50
    assert distortion.provenance()["parts"][0]["recordings"] == 400
    assert prepared("babble@-10dB", manifest=corpus()).digest == distortion.digest
    assert prepared("babble@-10dB", manifest=corpus("1" * 64)).digest != distortion.digest
    for row in (0, 17, 61):
        found = distortion.apply(tone(6000.0, 2.0).astype(np.float32), RATE, f"utterance-{row}")
        power = np.array([power_near(found, 300.0 + 50.0 * speaker) for speaker in range(60)])
        voices = np.flatnonzero(power > 1e-3 * power.max())
        assert len(voices) == 6
        assert row % 60 not in voices


def test_babble_passes_over_what_cannot_be_heard(corpus: Manifest, tmp_path: Path) -> None:
    written(tmp_path / "wav/s0t0.wav", np.zeros(1000))
    (tmp_path / "wav/s1t1.wav").write_text("no sound")
    (tmp_path / "wav/s2t2.wav").unlink()
    found = prepared("babble@5dB", manifest=corpus)
    assert found.provenance()["parts"][0]["recordings"] == 12
    assert np.isfinite(found.apply(speech(), RATE, "s3t0")).all()


def test_babble_needs_two_speakers(corpus: Manifest, tmp_path: Path) -> None:
    def of(speakers: list[str], root: Path | None = tmp_path) -> Manifest:
        rows = [
            {"utterance_id": f"u{n}", "path": f"wav/s{n}t0.wav", "speaker": name} for n, name in enumerate(speakers)
        ]
        return manifest_from_rows("few", rows, root=root)

    with pytest.raises(ConfigError, match=r"at least 2 whose recordings can be used; 'few' has 1 \(1 known by name\)"):
        prepared("babble@5dB", manifest=of(["a", "a"]))
    with pytest.raises(ConfigError, match=r"'few' has 1 \(1 known by name\)"):
        prepared("babble@5dB", manifest=of(["a", "Unknown", "unknown"]))
    with pytest.raises(ConfigError, match=r"no corpus was given"):
        prepared("babble@5dB")
    with pytest.raises(ManifestError, match=r"'few' has no folder of recordings\. Name it with `--data-root DIR`"):
        prepared("babble@5dB", manifest=of(["a", "b"], root=None))
    two = prepared("babble@-20dB", manifest=of(["a", "b", "Unknown"]))
    heard = two.apply(tone(4000.0, 3.0).astype(np.float32), RATE, "u2")  # of an unknown speaker: both may be heard
    assert power_near(heard, 1500.0) < 1e-3 * power_near(heard, 500.0)
    with pytest.raises(UtteranceError, match=r"'elsewhere' is not in the corpus 'few'"):
        two.apply(speech(), RATE, "elsewhere")


def test_babble_recording_that_vanishes(corpus: Manifest, tmp_path: Path) -> None:
    distortion = prepared("babble@5dB", manifest=corpus)
    for path in (tmp_path / "wav").iterdir():
        path.unlink()
    with pytest.raises(DataRootError, match=r"/wav/s\dt\d\.wav was there when the work began"):
        distortion.apply(speech(), RATE, "s0t0")


# ------------------------------------------------------------------------------------------------ made-up noise


def test_colours() -> None:
    """White has equal power per hertz, pink equal power per octave, from 20 Hz on."""

    def power(samples: Samples, low: float, high: float) -> float:
        spectrum, frequency = np.abs(np.fft.rfft(samples)) ** 2, np.fft.rfftfreq(len(samples), 1.0 / RATE)
        return float(spectrum[(frequency >= low) & (frequency < high)].sum())

    white = coloured_noise(generator("w"), 30 * RATE, RATE)
    pink = coloured_noise(generator("p"), 30 * RATE, RATE, exponent=1.0, from_hz=20.0)
    for low in (100.0, 400.0, 1600.0):
        assert power(white, 2 * low, 4 * low) / power(white, low, 2 * low) == pytest.approx(2.0, rel=0.1)
        assert power(pink, 2 * low, 4 * low) / power(pink, low, 2 * low) == pytest.approx(1.0, rel=0.1)
    assert power(pink, 0.0, 19.0) < 1e-3 * power(pink, 20.0, 39.0)
    assert abs(np.mean(white**4) / np.mean(white**2) ** 2 - 3.0) < 0.05  # Gaussian


def test_long_noise_repeats_without_a_seam() -> None:
    noise = coloured_noise(generator("x"), 100 * 8000, 8000, exponent=1.0, from_hz=20.0)
    period = round(61.44 * 8000)
    np.testing.assert_array_equal(noise[:100], noise[period : period + 100])
    assert np.abs(np.diff(noise[period - 5 : period + 5])).max() < 6.0 * np.std(np.diff(noise))


# ------------------------------------------------------------------------------------------------ rooms


def reverberation_time(response: Samples, rate_hz: int) -> float:
    """RT60 from the slope of Schroeder's backward integral between -5 and -35 dB (ISO 3382, T30)."""
    decay = 10.0 * np.log10(np.cumsum(response[::-1] ** 2)[::-1] / np.sum(response**2))
    fitted = np.flatnonzero((decay <= -5.0) & (decay >= -35.0))
    slope = np.polyfit(fitted / rate_hz, decay[fitted], 1)[0]
    return float(-60.0 / slope)


@pytest.mark.parametrize("rt60_s", [0.2, 0.6, 1.5])
@pytest.mark.parametrize("rate_hz", [16000, 24000])
def test_reverberation_time_is_found_again(rt60_s: float, rate_hz: int) -> None:
    clean = np.zeros(2 * rate_hz, np.float32)
    clean[0] = 0.5
    for name in ("a", "b", "c"):
        response = prepared(f"reverb:{rt60_s}s").apply(clean, rate_hz, name).astype(np.float64)
        assert reverberation_time(response, rate_hz) == pytest.approx(rt60_s, rel=0.08)
        assert np.argmax(np.abs(response)) == 0
        assert decibels(response[0] / np.sqrt(np.sum(response[1:] ** 2))) == pytest.approx(0.0, abs=0.01)


def test_direct_to_reverberant_ratio() -> None:
    response = rooms.made_up_response(generator("r"), 0.5, RATE, drr_db=-7.0)
    assert response[0] == 1.0
    assert len(response) == RATE // 2
    assert decibels(1.0 / np.sqrt(np.sum(response[1:] ** 2))) == pytest.approx(-7.0, abs=1e-9)


def test_convolution_is_aligned_at_the_main_peak(tmp_path: Path) -> None:
    """A pure delay is taken out, whatever its sign and size; what comes before the main peak is kept."""
    response = np.zeros(2000)
    response[700] = -0.25
    written(tmp_path / "rooms/a.wav", response)
    clean = speech()
    np.testing.assert_allclose(prepared(f"reverb:{tmp_path}/rooms").apply(clean, RATE, "u"), clean, atol=1e-6)
    response[690] = 0.125  # ten samples before the peak, at half of it, and of the other sign
    response[900] = -0.125
    written(tmp_path / "rooms/a.wav", response)
    found = prepared(f"reverb:{tmp_path}/rooms").apply(clean, RATE, "u").astype(np.float64)
    expected = clean.astype(np.float64)
    expected[:-10] -= 0.5 * clean[10:]
    expected[200:] += 0.5 * clean[:-200]
    mask = active_speech(clean, RATE).mask
    np.testing.assert_allclose(found, expected * rms(clean, mask) / rms(expected, mask), atol=1e-6)


@pytest.mark.parametrize(("peak", "length"), [(0, 500), (300, 900), (1999, 2000), (0, 5000)])
@pytest.mark.parametrize("chunk", [100, 1000, 10**6])
def test_convolution_in_chunks(monkeypatch: pytest.MonkeyPatch, peak: int, length: int, chunk: int) -> None:
    rng = np.random.default_rng(0)
    samples, response = rng.standard_normal(3001), 0.1 * rng.standard_normal(length)
    response[peak] = -2.0
    monkeypatch.setattr(rooms, "_CHUNK", chunk)
    expected = np.convolve(samples, response / -2.0)[peak : peak + 3001]
    np.testing.assert_allclose(rooms.reverberate(samples, response), expected, atol=1e-12)


def test_impulse_responses_are_short(tmp_path: Path) -> None:
    written(tmp_path / "rooms/speech.wav", tone(1000.0, 21.0))
    with pytest.raises(AudioError, match=r"speech\.wav lasts 21 s; impulse responses of up to 20 s is expected"):
        prepared(f"reverb:{tmp_path}/rooms")


# ------------------------------------------------------------------------------------------------ telephone


def test_mu_law_is_that_of_libsndfile(tmp_path: Path) -> None:
    """All 14-bit values, as 16-bit samples through a μ-law file."""
    values = np.arange(-8158, 8159, dtype=np.int16) * np.int16(4)
    soundfile.write(tmp_path / "a.wav", values, 8000, subtype="ULAW")
    decoded = soundfile.read(tmp_path / "a.wav", dtype="int16")[0]
    np.testing.assert_array_equal(mu_law(values / 2**15) * 2**15, decoded)


def test_mu_law_follows_the_formula() -> None:
    """255 levels, nearly those of F(x) = ln(1 + 255 |x|) / ln 256 cut into equal steps; clipped at full scale."""
    x = np.linspace(-0.99, 0.99, 20001)
    coded = mu_law(x)
    assert len(np.unique(np.abs(coded))) <= 128
    compressed = np.sign(x) * np.log1p(255.0 * np.abs(x)) / np.log(256.0)
    expanded = np.sign(x) * np.expm1(np.abs(np.rint(compressed * 128.0) / 128.0) * np.log(256.0)) / 255.0
    assert np.abs(coded - x).max() < 1.3 * np.abs(expanded - x).max()
    assert np.abs(coded - x)[np.abs(x) < 0.01].max() < 4e-4
    assert mu_law(np.array([5.0, -5.0])) == pytest.approx(np.array([8031, -8031]) / 8192)
    assert mu_law(np.zeros(3)).tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("rate_hz", [16000, 24000, 44100])
def test_telephone_band(rate_hz: int) -> None:
    inside, outside = (400.0, 1000.0, 2500.0, 3200.0), (60.0, 150.0, 3700.0, 4300.0, 6000.0)
    clean = sum(tone(hertz, 4.0, rate_hz, 0.05) for hertz in (*inside, *outside)).astype(np.float32)
    found = prepared("telephone").apply(clean, rate_hz, "u")
    gain = {
        hertz: 10.0 * np.log10(power_near(found, hertz, rate_hz) / power_near(clean, hertz, rate_hz))
        for hertz in (*inside, *outside)
    }
    for hertz in inside:
        assert gain[hertz] - gain[1000.0] == pytest.approx(0.0, abs=0.5), hertz
    for hertz in outside:
        assert gain[hertz] - gain[1000.0] < -40.0, hertz


@pytest.mark.parametrize("rate_hz", [8000, 16000, 24000])
def test_telephone_keeps_the_time(rate_hz: int) -> None:
    clean = np.random.default_rng(0).standard_normal(rate_hz).astype(np.float32) * np.float32(0.1)
    found = prepared("telephone").apply(clean, rate_hz, "u")
    spectrum = np.fft.rfft(found, 2 * rate_hz) * np.conj(np.fft.rfft(clean, 2 * rate_hz))
    assert np.argmax(np.fft.irfft(spectrum)) == 0


def test_telephone_noise_is_that_of_eight_bits() -> None:
    """A tone in the band comes back with a signal-to-noise ratio of 36 to 40 dB, whatever its level."""
    for level in (0.9, 0.1, 0.001):
        clean = tone(1004.0, 4.0, level=level).astype(np.float32)
        found = prepared("telephone").apply(clean, RATE, "u").astype(np.float64)[RATE:-RATE]
        reference = clean.astype(np.float64)[RATE:-RATE]
        noise = found - reference * np.sum(found * reference) / np.sum(reference**2)
        assert 35.0 < decibels(rms(reference) / rms(noise)) < 41.0
