"""Every odd file of the fact sheet, made here as a real file; numbers against scipy and against known sines."""

from __future__ import annotations

import os
import wave
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray
from scipy.signal import resample_poly

from pipelines.audio import decode as module
from pipelines.audio.decode import SILENCE_PEAK, decode, decoder_versions
from pipelines.errors import AudioError

RATE = 16000


def sine(rate_hz: int = RATE, *, seconds: float = 0.5, hertz: float = 440.0, level: float = 0.5) -> NDArray[np.float64]:
    return level * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate_hz)) / rate_hz)


def written(path: Path, samples: NDArray[np.floating], rate_hz: int = RATE, **options: str) -> Path:
    soundfile.write(path, samples, rate_hz, **options)
    return path


# ------------------------------------------------------------------------------------------------ what can be read


def test_sixteen_bit_wav_is_exact(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(-(2**15), 2**15, 1000, dtype=np.int16)
    with wave.open(str(tmp_path / "a.wav"), "wb") as handle:
        handle.setparams((1, 2, RATE, 0, "NONE", ""))
        handle.writeframes(values.tobytes())
    waveform = decode(tmp_path / "a.wav", RATE)
    assert waveform.samples.dtype == np.float32
    assert waveform.samples.flags.c_contiguous
    assert waveform.samples.flags.writeable  # torch.from_numpy wants it so
    np.testing.assert_array_equal(waveform.samples, values.astype(np.float32) / 2**15)
    assert waveform.duration_s == 1000 / RATE


@pytest.mark.parametrize(
    ("subtype", "error"),
    [("PCM_U8", 2.0**-7), ("PCM_24", 2.0**-23), ("PCM_32", 2.0**-24), ("FLOAT", 2.0**-24), ("DOUBLE", 2.0**-24)],
)
def test_wav_of_every_width(tmp_path: Path, subtype: str, error: float) -> None:
    path = written(tmp_path / "a.wav", sine(), subtype=subtype)
    assert np.abs(decode(path, RATE).samples - sine()).max() <= error


@pytest.mark.parametrize("container", ["AIFF", "FLAC", "OGG", "MP3"])
@pytest.mark.parametrize("name", ["a.wav", "a.raw", "a", "A.WAV", "a.txt"])
def test_content_decides_and_not_the_suffix(tmp_path: Path, container: str, name: str) -> None:
    samples = sine(seconds=1.0)
    path = written(tmp_path / name, samples, format=container)
    lossless = container in {"AIFF", "FLAC"}
    decoded = decode(path, RATE).samples
    if lossless:
        assert np.abs(decoded - samples).max() <= 2.0**-15
    else:
        middle = slice(4000, 12000)
        assert np.sqrt(np.mean((decoded[middle] - samples[middle]) ** 2)) < 0.05


@pytest.mark.parametrize(
    "name", ["UPPER.WAV", "with spaces (1).wav", "Ärger_übung_日本.wav", "it's.wav", "a: b.wav", "-a.wav"]
)
def test_any_name(tmp_path: Path, name: str) -> None:
    written(tmp_path / "plain.wav", sine())
    (tmp_path / "Ordner mit Leerzeichen").mkdir()
    path = tmp_path / "Ordner mit Leerzeichen" / name
    path.write_bytes((tmp_path / "plain.wav").read_bytes())
    np.testing.assert_array_equal(decode(path, RATE).samples, decode(tmp_path / "plain.wav", RATE).samples)


def test_name_that_is_not_utf8(tmp_path: Path) -> None:
    content = written(tmp_path / "plain.wav", sine()).read_bytes()
    path = tmp_path / os.fsdecode(b"\xe4rger.wav")
    path.write_bytes(content)
    assert len(decode(path, RATE).samples) == 8000


def test_channels_are_averaged(tmp_path: Path) -> None:
    left, right = sine(hertz=440), sine(hertz=1000, level=0.2)
    path = written(tmp_path / "a.wav", np.stack([left, right, 0 * left], axis=1), subtype="FLOAT")
    np.testing.assert_allclose(decode(path, RATE).samples, (left + right) / 3, atol=1e-7)


def test_identical_channels_equal_mono(tmp_path: Path) -> None:
    mono = written(tmp_path / "mono.wav", sine())
    stereo = written(tmp_path / "stereo.wav", np.stack([sine(), sine()], axis=1))
    np.testing.assert_array_equal(decode(stereo, RATE).samples, decode(mono, RATE).samples)


@pytest.mark.parametrize(
    ("own_hz", "asked_hz"), [(96000, 24000), (48000, 16000), (44100, 16000), (8000, 16000), (22050, 24000)]
)
def test_resampling_keeps_a_sine(tmp_path: Path, own_hz: int, asked_hz: int) -> None:
    path = written(tmp_path / "a.wav", sine(own_hz, seconds=1.0, hertz=1000), own_hz, subtype="FLOAT")
    waveform = decode(path, asked_hz)
    expected = sine(asked_hz, seconds=1.0, hertz=1000)
    assert len(waveform.samples) == asked_hz
    assert waveform.duration_s == pytest.approx(1.0)
    middle = slice(asked_hz // 10, -asked_hz // 10)
    assert np.abs(waveform.samples[middle] - expected[middle]).max() < 1e-4


def test_resampling_against_scipy(tmp_path: Path) -> None:
    noise = np.random.default_rng(1).standard_normal(48000)
    smooth = np.convolve(noise, np.hanning(64) / 32, mode="same") * 0.3  # far below 8 kHz
    path = written(tmp_path / "a.wav", smooth, 48000, subtype="FLOAT")
    expected = resample_poly(smooth, 1, 3, window=("kaiser", 14.0))
    found = decode(path, 16000).samples
    assert len(found) == len(expected)
    middle = slice(500, -500)
    assert np.abs(found[middle] - expected[middle]).max() < 2e-4 * np.abs(expected).max()


def test_resampling_removes_what_the_new_rate_cannot_hold(tmp_path: Path) -> None:
    path = written(tmp_path / "a.wav", sine(48000, hertz=440) + sine(48000, hertz=15000), 48000, subtype="FLOAT")
    middle = slice(800, -800)
    assert np.abs(decode(path, RATE).samples[middle] - sine()[middle]).max() < 1e-3


def test_levels_are_kept(tmp_path: Path) -> None:
    path = written(tmp_path / "a.wav", sine(level=3.0), subtype="FLOAT")
    assert decode(path, RATE).samples.max() == pytest.approx(3.0, rel=1e-3)


def test_is_deterministic(tmp_path: Path) -> None:
    path = written(tmp_path / "a.wav", np.random.default_rng(2).standard_normal((44100, 2)) * 0.1, 44100)
    first = decode(path, RATE).samples
    assert all(decode(path, RATE).samples.tobytes() == first.tobytes() for _ in range(3))


def test_one_sample(tmp_path: Path) -> None:
    waveform = decode(written(tmp_path / "a.wav", np.array([0.5])), RATE)
    assert waveform.samples.tolist() == [0.5]
    assert waveform.duration_s == 1 / RATE


def test_header_longer_than_the_data_reads_what_is_there(tmp_path: Path) -> None:
    content = written(tmp_path / "whole.wav", sine()).read_bytes()
    (tmp_path / "cut.wav").write_bytes(content[: 44 + 2 * 3000])
    waveform = decode(tmp_path / "cut.wav", RATE)
    np.testing.assert_array_equal(waveform.samples, decode(tmp_path / "whole.wav", RATE).samples[:3000])
    assert waveform.duration_s == 3000 / RATE


def test_wav_of_unknown_length(tmp_path: Path) -> None:
    content = bytearray(written(tmp_path / "a.wav", sine()).read_bytes())
    content[4:8] = content[40:44] = b"\xff\xff\xff\xff"  # as written to a pipe
    (tmp_path / "pipe.wav").write_bytes(content)
    np.testing.assert_array_equal(decode(tmp_path / "pipe.wav", RATE).samples, decode(tmp_path / "a.wav", RATE).samples)


def test_quiet_is_not_silent(tmp_path: Path) -> None:
    samples = np.zeros(100)
    samples[50] = 2 * SILENCE_PEAK
    assert len(decode(written(tmp_path / "a.wav", samples), RATE).samples) == 100


# ------------------------------------------------------------------------------------------------ what cannot


def _missing(folder: Path) -> Path:
    return folder / "nowhere.wav"


def _below_a_file(folder: Path) -> Path:
    return written(folder / "a.wav", sine()) / "b.wav"


def _dangling(folder: Path) -> Path:
    (folder / "link.wav").symlink_to(folder / "nowhere.wav")
    return folder / "link.wav"


def _folder(folder: Path) -> Path:
    (folder / "folder.wav").mkdir()
    return folder / "folder.wav"


def _pipe(folder: Path) -> Path:
    os.mkfifo(folder / "pipe.wav")
    return folder / "pipe.wav"


def _zero_length(folder: Path) -> Path:
    (folder / "a.wav").touch()
    return folder / "a.wav"


def _pointer(folder: Path) -> Path:
    text = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 91234\n"
    (folder / "a.wav").write_text(text)
    return folder / "a.wav"


def _text(folder: Path) -> Path:
    (folder / "a.wav").write_text("this is not sound\n" * 200)
    return folder / "a.wav"


def _header_only(folder: Path) -> Path:
    return written(folder / "a.wav", np.zeros(0))


def _half_header(folder: Path) -> Path:
    content = written(folder / "whole.wav", sine()).read_bytes()
    (folder / "a.wav").write_bytes(content[:30])
    return folder / "a.wav"


def _cut_flac(folder: Path) -> Path:
    content = written(folder / "whole.flac", np.random.default_rng(0).standard_normal(50000) * 0.1).read_bytes()
    (folder / "a.wav").write_bytes(content[: len(content) // 2])
    return folder / "a.wav"


def _flac_without_length(folder: Path) -> Path:
    content = bytearray(written(folder / "whole.flac", sine()).read_bytes())
    content[21] &= 0xF0  # the last 36 bits of STREAMINFO's bytes 10 to 17 are the number of samples
    content[22:26] = bytes(4)
    (folder / "a.flac").write_bytes(content)
    return folder / "a.flac"


def _silent(folder: Path) -> Path:
    return written(folder / "a.wav", np.zeros(RATE))


def _dither(folder: Path) -> Path:
    return written(folder / "a.wav", np.tile([SILENCE_PEAK, -SILENCE_PEAK], 500))


def _cancelling(folder: Path) -> Path:
    return written(folder / "a.wav", np.stack([sine(), -sine()], axis=1))


def _with(value: float) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        samples = sine()
        samples[[10, 20]] = value
        return written(folder / "a.wav", samples, subtype="FLOAT")

    return make


def _beyond_float32(folder: Path) -> Path:
    return written(folder / "a.wav", np.full(10, 1e300), subtype="DOUBLE")


def _opposite_infinities(folder: Path) -> Path:
    return written(folder / "a.wav", np.full((10, 2), [np.inf, -np.inf]), subtype="FLOAT")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_missing, r"nowhere\.wav does not exist.*--data-root"),
        (_below_a_file, r"cannot be opened.*Not a directory"),
        (_dangling, r"does not exist"),
        (_folder, r"is a folder, not a recording"),
        (_pipe, r"not an ordinary file"),
        (_zero_length, r"is empty \(0 bytes\)"),
        (_pointer, r"Git LFS pointer \(1\d\d bytes of text\).*`git lfs pull`"),
        (_text, r"cannot be read as audio \(Format not recognised\).*ffmpeg -i a\.wav -ac 1 a-converted\.wav"),
        (_header_only, r"holds no samples"),
        (_half_header, r"cannot be read as audio \(.+\)"),
        (_cut_flac, r"cannot be read as audio \(flac decoder lost sync\)"),
        (_flac_without_length, r"does not say how long it is.*ffmpeg -i a\.flac"),
        (_silent, r"is silent: no sample exceeds the least step"),
        (_dither, r"is silent: no sample exceeds the least step"),
        (_cancelling, r"silent when its 2 channels are averaged"),
        (_with(np.nan), r"holds 2 samples that are not finite"),
        (_with(np.inf), r"holds 2 samples that are not finite"),
        (_beyond_float32, r"holds 10 samples that are not finite"),
        (_opposite_infinities, r"holds 10 samples that are not finite"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_says_what_is_wrong(tmp_path: Path, make: Callable[[Path], Path], message: str) -> None:
    path = make(tmp_path)
    with pytest.raises(AudioError, match=message) as caught:
        decode(path, RATE)
    assert str(path) in str(caught.value)


def test_command_in_the_message_is_quoted(tmp_path: Path) -> None:
    (tmp_path / "it's a file.wav").write_text("no sound" * 200)
    with pytest.raises(AudioError) as caught:
        decode(tmp_path / "it's a file.wav", RATE)
    assert """ffmpeg -i 'it'"'"'s a file.wav' -ac 1""" in str(caught.value)


def test_name_with_a_nul() -> None:
    with pytest.raises(AudioError, match="cannot be opened"):
        decode(Path("a\0b.wav"), RATE)


def test_too_short_to_resample(tmp_path: Path) -> None:
    path = written(tmp_path / "a.wav", np.array([0.5]), 44100)
    with pytest.raises(AudioError, match=r"too short \(0\.02 ms\) to be resampled to 16000 Hz"):
        decode(path, RATE)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_no_permission(tmp_path: Path) -> None:
    path = written(tmp_path / "a.wav", sine())
    path.chmod(0)
    with pytest.raises(AudioError, match=r"may not be read.*chmod"):
        decode(path, RATE)


def test_no_permission_as_the_system_reports_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "a.wav", sine())

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(AudioError, match=r"may not be read.*chmod"):
        decode(path, RATE)


def test_too_long_is_refused_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "a.wav", np.zeros(RATE * 90), subtype="PCM_U8")

    def read(*_: object, **__: object) -> None:
        raise AssertionError("read all the same")

    monkeypatch.setattr(soundfile.SoundFile, "read", read)
    with pytest.raises(AudioError, match=r"lasts 90 s; recordings above 60 s .* Cut it into utterances"):
        decode(path, RATE, longest_s=60.0)


def test_exactly_the_longest_is_taken(tmp_path: Path) -> None:
    path = written(tmp_path / "a.wav", sine(seconds=1.0))
    assert decode(path, RATE, longest_s=1.0).duration_s == 1.0


def test_a_flipped_byte_never_ends_in_something_unexplained(tmp_path: Path) -> None:
    """Whatever damage does to a file, either it is decoded to finite samples or the error is ours."""
    rng = np.random.default_rng(3)
    for container in ("WAV", "FLAC", "AIFF"):
        content = written(tmp_path / "a", rng.standard_normal(4000) * 0.1, format=container).read_bytes()
        for _ in range(60):
            damaged = bytearray(content)
            for position in rng.integers(0, min(len(content), 400), 3):
                damaged[position] ^= 1 << int(rng.integers(8))
            (tmp_path / "b").write_bytes(damaged[: rng.integers(20, len(content))])
            try:
                samples = decode(tmp_path / "b", RATE, longest_s=120.0).samples
            except AudioError:
                continue
            assert len(samples)
            assert np.isfinite(samples).all()


def test_versions_name_the_libraries_that_touch_the_samples() -> None:
    assert set(decoder_versions()) == {"libsndfile", "soxr"}
    assert all(decoder_versions().values())
    assert module.RESAMPLER.startswith("soxr")
