"""Descriptors against direct formulas on sines, a vowel, noise and silence; and the promise of every encoder."""

from __future__ import annotations

import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipelines.encoders.base import Encoder
from pipelines.encoders.catalogue import CATALOGUE, encoder_spec, load_encoder
from pipelines.errors import ConfigError, InstallationError
from tests.encoders.batches import assert_batched_equals_alone, ragged_clips, relative_error, speechlike

RATE = 16000


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return load_encoder("descriptors")


def described(encoder: Encoder, clip: Tensor) -> dict[str, NDArray[np.float32]]:
    """Column name to its values over time."""
    frames = encoder.encode([clip.float()])[0]["descriptors"].numpy()
    return dict(zip(encoder.spec.columns, frames.T, strict=True))


def hertz(semitones: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(150.0 * 2.0 ** (semitones / 12.0))


def seconds(length_s: float) -> Tensor:
    return torch.arange(int(length_s * RATE), dtype=torch.float64) / RATE


def sine(hz: float, *, amplitude: float = 0.3, length_s: float = 0.5) -> Tensor:
    return amplitude * torch.sin(2 * math.pi * hz * seconds(length_s))


def vowel(f0_hz: float) -> Tensor:
    """Pulses through the formants of an /a/: strong harmonics far above the fundamental."""
    from scipy.signal import lfilter

    phase = np.cumsum(np.full(RATE // 2, f0_hz / RATE))
    signal = np.diff(np.floor(phase), prepend=0.0)
    for formant_hz, width_hz in ((730.0, 80.0), (1090.0, 90.0), (2440.0, 120.0)):
        radius = math.exp(-math.pi * width_hz / RATE)
        signal = lfilter([1.0], [1.0, -2 * radius * math.cos(2 * math.pi * formant_hz / RATE), radius**2], signal)
    return torch.from_numpy(0.1 * signal / np.abs(signal).max())


def frame_of(clip: Tensor, index: int) -> NDArray[np.float64]:
    """25 ms around the centre of a frame, zeros beyond the ends."""
    padded = np.pad(clip.numpy().astype(np.float64), 1000)
    first = 1000 + index * 160 + 80 - 200
    return padded[first : first + 400]


def power_of(clip: Tensor, index: int) -> NDArray[np.float64]:
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    spectrum = np.fft.fft(np.concatenate([window * frame_of(clip, index), np.zeros(112)]))[:257]
    return np.asarray(np.abs(spectrum) ** 2 / (window**2).sum())


def triangles(bands: int) -> NDArray[np.float64]:
    """One filter after the other, by interpolation: [bands, 257]."""
    mel = 2595 * np.log10(1 + np.array([20.0, 8000.0]) / 700)
    corners = 700 * (10 ** (np.linspace(*mel, bands + 2) / 2595) - 1)
    bins = np.arange(257) * RATE / 512
    return np.stack([np.interp(bins, corners[i : i + 3], [0, 1, 0], left=0, right=0) for i in range(bands)])


# ------------------------------------------------------------------------------------------------------------ oracles


def test_mfcc_are_those_of_scipy(encoder: Encoder) -> None:
    from scipy.fft import dct

    clip = speechlike(8000, seed=3)
    found = described(encoder, clip)
    for index in (0, 7, 20, 49):
        expected = dct(np.log(triangles(40) @ power_of(clip, index) + 1e-10), type=2, norm="ortho")[1:13]
        got = np.array([found[f"mfcc:c{number}"][index] for number in range(1, 13)])
        np.testing.assert_allclose(got, expected, atol=2e-4)


@pytest.mark.parametrize("hz", [62.0, 100.0, 220.5, 440.0, 690.0])
def test_f0_of_a_sine(encoder: Encoder, hz: float) -> None:
    found = described(encoder, sine(hz))
    whole = slice(3, -3)  # frames that do not reach beyond the ends
    np.testing.assert_allclose(hertz(found["f0:semitones"][whole]), hz, rtol=2e-3)
    assert (found["f0:voiced"][whole] == 1).all()
    assert (found["f0:periodicity"][whole] > 0.99).all()


@pytest.mark.parametrize("hz", [80.0, 119.0, 210.0, 333.0])
def test_f0_of_a_vowel(encoder: Encoder, hz: float) -> None:
    found = described(encoder, vowel(hz))
    np.testing.assert_allclose(hertz(found["f0:semitones"][4:-4]), hz, rtol=0.01)
    assert (found["f0:voiced"][4:-4] == 1).all()


def test_f0_follows_a_glide_and_bridges_a_pause(encoder: Encoder) -> None:
    time = seconds(1.0)
    pitch = 120 * 2 ** (time / 1.0)  # an octave a second
    clip = 0.3 * torch.sin(2 * math.pi * torch.cumsum(pitch, 0) / RATE)
    clip[6400:9600] = 0  # 0.4 to 0.6 s
    found = described(encoder, clip)
    expected = 120 * 2 ** ((np.arange(100) + 0.5) / 100)
    np.testing.assert_allclose(hertz(found["f0:semitones"][4:-4]), expected[4:-4], rtol=0.03)
    assert (found["f0:voiced"][43:57] == 0).all()
    assert (found["f0:voiced"][5:37] == 1).all()


def test_level_and_loudness(encoder: Encoder) -> None:
    soft, loud = described(encoder, sine(1000, amplitude=0.01)), described(encoder, sine(1000, amplitude=0.1))
    np.testing.assert_allclose(loud["loudness:level_db"][3:-3], 10 * math.log10(0.1**2 / 2), atol=0.01)
    np.testing.assert_allclose(
        loud["loudness:loudness"][3:-3] / soft["loudness:loudness"][3:-3], 100 ** (1 / 3), rtol=1e-4
    )
    # The ear is least sensitive at low frequencies.
    low = described(encoder, sine(80, amplitude=0.1))
    assert low["loudness:loudness"][10] < 0.5 * loud["loudness:loudness"][10]
    clip = speechlike(8000, seed=4)
    mel = np.linspace(*(2595 * np.log10(1 + np.array([20.0, 8000.0]) / 700)), 28)[1:-1]
    omega2 = (2 * np.pi * 700 * (10 ** (mel / 2595) - 1)) ** 2
    curve = (omega2 + 56.8e6) * omega2**2 / ((omega2 + 6.3e6) ** 2 * (omega2 + 0.38e9))
    expected = np.cbrt(curve * (triangles(26) @ power_of(clip, 12))).sum()
    assert described(encoder, clip)["loudness:loudness"][12] == pytest.approx(expected, rel=1e-4)


def test_spectrum_of_white_noise(encoder: Encoder) -> None:
    clip = 0.1 * torch.randn(3 * RATE, generator=torch.Generator().manual_seed(1))
    found = {name: float(values[3:-3].mean()) for name, values in described(encoder, clip).items()}
    assert found["spectral:centroid_khz"] == pytest.approx(4, abs=0.05)
    assert found["spectral:spread_khz"] == pytest.approx(8 / math.sqrt(12), abs=0.05)
    assert found["spectral:flatness"] == pytest.approx(-10 * 0.5772 / math.log(10), abs=0.15)  # Euler's constant
    assert found["spectral:rolloff_khz"] == pytest.approx(0.85 * 8, abs=0.1)
    assert found["spectral:alpha_db"] == pytest.approx(10 * math.log10(950 / 4000), abs=0.3)
    assert found["f0:voiced"] < 0.02
    assert found["f0:periodicity"] < 0.5


def test_spectrum_of_a_frame_by_hand(encoder: Encoder) -> None:
    clip = speechlike(8000, seed=5)
    found = {name.removeprefix("spectral:"): values for name, values in described(encoder, clip).items()}
    power, before = (power_of(clip, index) + 1e-10 for index in (20, 19))
    hz = np.arange(257) * RATE / 512
    share = power / power.sum()
    centroid = (share * hz).sum() / 1000
    decibel = 10 * np.log10(power)
    expected = {
        "centroid_khz": centroid,
        "spread_khz": math.sqrt((share * (hz / 1000 - centroid) ** 2).sum()),
        "flatness": 10 * math.log10(np.exp(np.log(power).mean()) / power.mean()),
        "flux": np.linalg.norm(np.sqrt(share) - np.sqrt(before / before.sum())),
        "rolloff_khz": next(hz[i] for i in range(257) if share[: i + 1].sum() >= 0.85) / 1000,
        "alpha_db": 10 * math.log10(power[(hz >= 50) & (hz < 1000)].sum() / power[(hz >= 1000) & (hz < 5000)].sum()),
        "hammarberg_db": decibel[hz < 2000].max() - decibel[(hz >= 2000) & (hz < 5000)].max(),
        "slope_low_db": np.polyfit(hz[hz < 500] / 1000, decibel[hz < 500], 1)[0],
        "slope_high_db": np.polyfit(hz[(hz >= 500) & (hz < 1500)] / 1000, decibel[(hz >= 500) & (hz < 1500)], 1)[0],
    }
    for name, value in expected.items():
        assert found[name][20] == pytest.approx(value, rel=1e-4, abs=1e-5), name


def test_silence_is_finite_and_quiet(encoder: Encoder) -> None:
    found = described(encoder, torch.zeros(4000))
    assert all(np.isfinite(values).all() for values in found.values())
    assert (found["f0:voiced"] == 0).all()
    assert (found["f0:semitones"] == 0).all()
    np.testing.assert_allclose(found["loudness:level_db"], -100, atol=1e-3)
    assert (found["loudness:loudness"] == 0).all()
    # Neither is a steady offset a voice.
    assert (described(encoder, torch.full((4000,), 0.1))["f0:voiced"][4:-4] == 0).all()


# ------------------------------------------------------------------------------------------------ what encoders promise


def test_batched_equals_alone(encoder: Encoder) -> None:
    clips = ragged_clips(encoder)
    assert_batched_equals_alone(encoder, clips)
    together = encoder.encode(clips)
    for clip, found in zip(clips, together, strict=True):
        assert torch.equal(found["descriptors"], encoder.encode([clip])[0]["descriptors"])


def test_passes_and_windows_change_nothing(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipelines.encoders.windows import plan_windows

    clip = speechlike(5 * RATE + 17, seed=6)  # pauses of 0.63 s, within the context of a window
    whole = encoder.encode([clip])[0]["descriptors"]
    monkeypatch.setattr("pipelines.encoders.descriptors._FRAMES_PER_PASS", 37)
    assert relative_error(encoder.encode([clip])[0]["descriptors"], whole) < 1e-6
    monkeypatch.setattr(encoder, "longest_s", 2.0)
    monkeypatch.setattr(encoder, "context_s", 0.7)
    windows = plan_windows(encoder, len(clip))
    assert len(windows) > 3
    parts = [encoder.encode([clip[w.start : w.stop]])[0]["descriptors"][w.first : w.last] for w in windows]
    assert relative_error(torch.cat(parts), whole) < 1e-6


def test_threads_change_no_bit(encoder: Encoder) -> None:
    clip = speechlike(2 * RATE, seed=7)
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(encoder.encode([clip])[0]["descriptors"])
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*found)


@pytest.mark.parametrize("weights", ["pretrained", "random", "none"])
def test_there_are_no_weights(weights: str) -> None:
    encoder = load_encoder("descriptors", weights=weights)
    assert encoder.weights.kind == "none"
    assert encoder.weights.digest == load_encoder("descriptors").weights.digest
    assert not encoder.spec.has_weights
    assert len(encoder.spec.columns) == encoder.spec.dim


def test_other_kinds_are_refused() -> None:
    with pytest.raises(ConfigError, match="--weights must be one of pretrained, random, not 'trained'"):
        load_encoder("descriptors", weights="trained")
    with pytest.raises(ConfigError, match="--weights must be one of pretrained, random, not 'none'"):
        load_encoder("wavlm-tiny", weights="none")
    assert all(spec.has_weights for spec in CATALOGUE.values() if spec.family != "DSP")


# ---------------------------------------------------------------------------------------------------------- openSMILE


def test_without_opensmile_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opensmile", None)
    with pytest.raises(InstallationError, match=r"pip install opensmile.*'descriptors'"):
        load_encoder("egemaps")


def test_another_opensmile_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("opensmile")
    monkeypatch.setattr("opensmile.Smile", lambda **_: SimpleNamespace(feature_names=["F0semitone"]))
    with pytest.raises(InstallationError, match=r"gives 1 functionals of eGeMAPSv02, expected 88"):
        load_encoder("egemaps")


def test_egemaps_is_opensmile_s_own_call() -> None:
    opensmile = pytest.importorskip("opensmile")
    encoder = load_encoder("egemaps")
    clips = [speechlike(samples, seed=samples) for samples in (1, 1600, 9000, 20011)]
    smile = opensmile.Smile(
        feature_set=opensmile.FeatureSet.eGeMAPSv02, feature_level=opensmile.FeatureLevel.Functionals
    )
    for clip, found in zip(clips, encoder.encode(clips), strict=True):
        assert found["functionals"].shape == (1, 88)
        assert torch.isfinite(found["functionals"]).all()
        if len(clip) >= 1600:
            expected = smile.process_signal(clip.numpy(), RATE).to_numpy()[0]
            np.testing.assert_array_equal(found["functionals"][0].numpy(), expected.astype(np.float32))
    groups = {column.partition(":")[0] for column in encoder.spec.columns}
    assert groups == {"f0", "voice", "formants", "loudness", "spectral", "mfcc", "timing"}
    assert encoder.spec.columns[0] == "f0:F0semitoneFrom27.5Hz_sma3nz_amean"
    assert encoder_spec("egemaps").columns == ()  # known only once it is installed


def test_f0_agrees_with_opensmile_on_a_vowel(encoder: Encoder) -> None:
    pytest.importorskip("opensmile")
    egemaps = load_encoder("egemaps")
    clip = vowel(150.0).float()
    theirs = float(egemaps.encode([clip])[0]["functionals"][0, 0])  # semitones from 27.5 Hz, mean of voiced frames
    ours = described(encoder, clip)
    mean = float(ours["f0:semitones"][ours["f0:voiced"] > 0].mean()) + 12 * math.log2(150 / 27.5)
    assert mean == pytest.approx(theirs, abs=0.3)
