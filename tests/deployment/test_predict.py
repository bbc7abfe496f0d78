"""Predictions on recordings: what comes out, and what is said of recordings that cannot be used."""

from __future__ import annotations

import dataclasses
import math
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from pipelines.deployment import predict as module
from pipelines.deployment.lists import Wanted, read_wanted
from pipelines.deployment.model_folder import read_model, write_model
from pipelines.deployment.predict import Model, load_model, segments
from pipelines.encoders.catalogue import load_encoder
from pipelines.errors import AudioError, ConfigError, ModelError, ProvenanceError
from tests.deployment.project import LEFT, RIGHT, TEXT, Project, project

__all__ = ["project"]

RATE_HZ = 16000


@pytest.fixture
def model(project: Project) -> Model:
    return load_model(project.model())


def _noise(path: Path, seconds: float, *, rate_hz: int = RATE_HZ, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = 0.1 * np.random.default_rng(seed).standard_normal(round(seconds * rate_hz))
    soundfile.write(path, samples, rate_hz)
    return path


# ------------------------------------------------------------------------------------------------ which recordings


def test_lists_of_files(tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    rows = 'path,transcript\r\na b 🙂.wav,"yes, ""you"""\r\n\r\nsub/c.wav,\r\n/far/d.wav\r\n'
    path.write_bytes(b"\xef\xbb\xbf" + rows.encode())  # as Excel writes it
    assert read_wanted([str(path)]) == [
        Wanted(tmp_path / "a b 🙂.wav", 'yes, "you"'),
        Wanted(tmp_path / "sub/c.wav"),
        Wanted(Path("/far/d.wav")),
    ]


def test_text_that_goes_over_lines_is_one_transcript(tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    path.write_text('path,transcript\na.wav,"one\u2028two\nthree"\nb.wav,x\n', encoding="utf-8")
    assert [one.transcript for one in read_wanted([str(path)])] == ["one\u2028two\nthree", "x"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("path\nä.wav\n".encode("latin-1"), r"is not UTF-8 \(byte 5\).*iconv -f latin1 -t utf-8"),
        (b"file;who\na.wav;b\n", "no column 'path'; its columns are: file;who.*commas"),
        (b"", "no column 'path'; its columns are: none"),
        (b"path\n", "names no recording"),
        (b"path\n" + b"x" * 200_000, "is no CSV"),
    ],
)
def test_lists_that_cannot_be_read(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "list.csv"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        read_wanted([str(path)])


def test_a_list_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.csv cannot be read"):
        read_wanted([str(tmp_path / "none.csv")])


def test_folders_patterns_and_files_each_once(tmp_path: Path) -> None:
    for name in ("b.wav", "a.flac", "sub dir/ü 🙂.wav"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "notes.txt").write_text("", encoding="utf-8")
    (tmp_path / "odd.csv").mkdir()
    (tmp_path / "odd.csv" / "c.wav").write_bytes(b"x")
    found = [one.path.relative_to(tmp_path).as_posix() for one in read_wanted([str(tmp_path), str(tmp_path / "b.wav")])]
    assert found == ["a.flac", "b.wav", "odd.csv/c.wav", "sub dir/ü 🙂.wav"]
    assert [one.path.name for one in read_wanted([str(tmp_path / "odd.csv")])] == ["c.wav"]
    assert [one.path.name for one in read_wanted([str(tmp_path / "*.wav")])] == ["b.wav"]
    assert [one.path.name for one in read_wanted([str(tmp_path / "notes.txt")])] == ["notes.txt"]
    with pytest.raises(AudioError, match=r"No file is called .*\*\.mp3"):
        read_wanted([str(tmp_path / "*.mp3")])


# ------------------------------------------------------------------------------------------------ recordings


def test_a_recording_depends_on_itself_alone(project: Project, model: Model, tmp_path: Path) -> None:
    paths = sorted(project.data.glob("s*_*.wav"))[:5]
    together = list(model.predict(paths))
    alone = [next(model.predict([path])) for path in paths]
    assert together == alone
    copy = tmp_path / "with space 🙂.WAV"
    shutil.copy(paths[2], copy)
    (found,) = model.predict([str(copy)])
    assert found.scores == together[2].scores
    assert found.path == copy
    assert found.end_s == pytest.approx(soundfile.info(copy).duration)
    assert math.isclose(sum(found.scores.values()), 1, abs_tol=1e-6)
    assert found.label == max(found.scores, key=found.scores.__getitem__)


def test_recordings_that_cannot_be_used_fail_alone(model: Model, tmp_path: Path) -> None:
    good = _noise(tmp_path / "good.wav", 0.5)
    files = {
        "text.wav": (b"this is no sound", "cannot be read as audio"),
        "empty.wav": (b"", "is empty"),
        "pointer.wav": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "Git LFS pointer"),
    }
    for name, (content, _) in files.items():
        (tmp_path / name).write_bytes(content)
    soundfile.write(tmp_path / "silence.wav", np.zeros(8000), RATE_HZ)
    samples = np.full(8000, 0.1, np.float32)
    samples[7] = np.nan
    soundfile.write(tmp_path / "nan.wav", samples, RATE_HZ, subtype="FLOAT")
    (tmp_path / "folder.wav").mkdir()
    reasons = {
        **{name: reason for name, (_, reason) in files.items()},
        "silence.wav": "is silent",
        "nan.wav": "not finite",
        "folder.wav": "is a folder",
        "none.wav": r"does not exist. Check its name and the folder you are in.",
    }
    found = list(model.predict([good, *(tmp_path / name for name in reasons), good]))
    assert not found[0].failure
    assert found[-1].scores == found[0].scores
    for one, reason in zip(found[1:-1], reasons.values(), strict=True):
        assert reason in one.failure
        assert (one.scores, one.label) == ({}, "")
        assert math.isnan(one.end_s)
        with pytest.raises(AudioError, match=reason):
            model.look_inside(one.path)


def test_a_click_is_either_heard_or_explained(model: Model, tmp_path: Path) -> None:
    for samples in (1, 50, 400):
        soundfile.write(tmp_path / "click.wav", np.full(samples, 0.5), RATE_HZ)
        (found,) = model.predict([tmp_path / "click.wav"])
        assert bool(found.failure) != bool(found.scores)
        assert all(math.isfinite(value) for value in found.scores.values())


def test_models_that_read_transcripts(project: Project) -> None:
    run = project.run("text", "train", "--pair", TEXT, RIGHT, "--fusion", "concat", "--pool", "mean")
    folder = project.root / "text-model"
    write_model(project.exported(run, f"{TEXT}+{RIGHT} concat"), folder, "card")
    model, path = load_model(folder), project.data / "s0_anger_0.wav"
    assert model.takes_text
    one, other, none = model.predict([path, path, path], transcripts=["I am fine.", "No!", ""])
    assert one.scores != other.scores
    assert "has no transcript, which this model reads" in none.failure
    assert model.look_inside(path, transcript="No!").outputs == pytest.approx(list(other.scores.values()))
    with pytest.raises(ConfigError, match="column 'transcript' of a CSV list"):
        next(model.predict([path]))
    with pytest.raises(ConfigError, match="1 recordings came with 2 transcripts"):
        next(model.predict([path], transcripts=["a", "b"]))
    with pytest.raises(ConfigError, match="leave out the segments"):
        model.predict_segments(path, segment_s=1)


# ------------------------------------------------------------------------------------------------ inside


def test_without_an_input_is_with_its_training_mean(project: Project, model: Model) -> None:
    inside = model.look_inside(project.data / "s0_anger_0.wav")
    (found,) = model.predict([project.data / "s0_anger_0.wav"])
    np.testing.assert_array_equal(inside.outputs, np.float32(list(found.scores.values())))
    # Standardised, the training mean is zeros, which a head without an input is given.
    emptied = []
    for head in model.folder.heads:
        scaler = dataclasses.replace(head.left_scaler, std=head.left_scaler.std * 1e30)
        emptied.append(dataclasses.replace(head, left_scaler=scaler))
    numb = Model(dataclasses.replace(model.folder, heads=tuple(emptied)), model.encoders)
    (expected,) = numb.predict([project.data / "s0_anger_0.wav"])
    np.testing.assert_allclose(inside.without_left, list(expected.scores.values()), atol=1e-6)
    assert inside.without_right is not None
    assert not np.allclose(inside.without_left, inside.without_right)
    assert np.linalg.norm(inside.point) < 1


def test_a_single_representation_has_no_right_input(project: Project) -> None:
    model = load_model(project.model(LEFT))
    one, other = (model.look_inside(project.data / f"s{speaker}_anger_0.wav") for speaker in (0, 1))
    assert one.without_right is None
    np.testing.assert_array_equal(one.without_left, other.without_left)  # nothing is left of the recording
    assert not np.allclose(one.outputs, other.outputs)


# ------------------------------------------------------------------------------------------------ segments


@pytest.mark.parametrize(
    ("duration_s", "segment_s", "step_s", "expected"),
    [
        (3.0, 1.0, None, [(0, 1), (1, 2), (2, 3)]),
        (3.4, 1.0, None, [(0, 1), (1, 2), (2, 3), (2.4, 3.4)]),
        (2.0, 1.0, 0.5, [(0, 1), (0.5, 1.5), (1, 2)]),
        (0.7, 1.0, None, [(0, 0.7)]),
        (1.0, 1.0, None, [(0, 1)]),
        (0.3, 0.1, None, [(0, 0.1), (0.1, 0.2), (0.2, 0.3)]),
    ],
)
def test_parts_cover_a_recording(
    duration_s: float, segment_s: float, step_s: float | None, expected: list[tuple[float, float]]
) -> None:
    found = segments(duration_s, segment_s=segment_s, step_s=step_s)
    np.testing.assert_allclose(found, expected)


@pytest.mark.parametrize(("segment_s", "step_s"), [(0, None), (-1, None), (1, 2), (1, 0), (math.nan, None)])
def test_parts_that_make_no_sense(model: Model, segment_s: float, step_s: float | None) -> None:
    with pytest.raises(ConfigError, match="make no sense: expected 0 < step <= segment"):
        model.predict_segments("none.wav", segment_s=segment_s, step_s=step_s)


def test_a_part_is_predicted_as_the_same_sound_in_a_file(model: Model, tmp_path: Path) -> None:
    path = _noise(tmp_path / "long.wav", 2.5, rate_hz=48000)  # encoded at 16 and 24 kHz
    samples, rate_hz = soundfile.read(path)
    samples[rate_hz : 2 * rate_hz] = 0
    soundfile.write(path, samples, rate_hz, subtype="DOUBLE")
    first, silent, last = model.predict_segments(path, segment_s=1)
    assert [(one.start_s, one.end_s) for one in (first, silent, last)] == [(0, 1), (1, 2), (1.5, 2.5)]
    assert "This part is silent" in silent.failure
    assert silent.scores == {}
    soundfile.write(tmp_path / "part.wav", samples[:rate_hz], rate_hz, subtype="DOUBLE")
    (alone,) = model.predict([tmp_path / "part.wav"])
    # Not exactly: a resampled part has no neighbours at its end.
    np.testing.assert_allclose(list(first.scores.values()), list(alone.scores.values()), atol=0.02)
    whole = _noise(tmp_path / "short.wav", 0.6)
    (part,) = model.predict_segments(whole, segment_s=1)
    assert list(part.scores.values()) == pytest.approx(list(next(model.predict([whole])).scores.values()), abs=1e-6)


def test_parts_come_in_groups(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _noise(tmp_path / "long.wav", 2)
    together = list(model.predict_segments(path, segment_s=0.5, step_s=0.25))
    assert len(together) == 7
    monkeypatch.setattr(module, "_PARTS_AT_ONCE", 3)
    apart = list(model.predict_segments(path, segment_s=0.5, step_s=0.25))
    assert [one.start_s for one in apart] == [one.start_s for one in together]
    for one, other in zip(apart, together, strict=True):
        np.testing.assert_allclose(list(one.scores.values()), list(other.scores.values()), atol=1e-5)


def test_what_is_no_recording_has_no_parts(model: Model, tmp_path: Path) -> None:
    (found,) = model.predict_segments(tmp_path / "none.wav", segment_s=1)
    assert "does not exist. Check its name" in found.failure


@pytest.mark.slow
def test_ten_minutes_in_bounded_memory(project: Project, tmp_path: Path) -> None:
    """The recording takes 38 MB at 16 kHz, and batches of 16 s what the encoder takes."""
    path = _noise(tmp_path / "long.wav", 600, rate_hz=16000)
    script = f"""
import resource
from pipelines.deployment.predict import load_model
model = load_model({str(project.model(LEFT))!r})
list(model.predict({[str(project.data / "s0_anger_0.wav")]!r}))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
found = list(model.predict_segments({str(path)!r}, segment_s=10))
assert len(found) == 60 and not any(one.failure for one in found)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 600_000  # kB


# ------------------------------------------------------------------------------------------------ encoders


def test_other_weights_than_those_of_the_training_are_refused(project: Project, tmp_path: Path) -> None:
    model = read_model(project.model())
    left, right = model.inputs
    other = dataclasses.replace(left, weights_digest="f" * 64, weights_source="a file of mine")
    write_model(dataclasses.replace(model, inputs=(other, right)), tmp_path, "card")
    with pytest.raises(
        ProvenanceError, match=rf"trained on {LEFT} with weights ffffffffffff \(a file of mine\).*HYFUSE_WEIGHTS"
    ):
        load_model(tmp_path)
    assert load_encoder(LEFT, weights="random").weights.digest == left.weights_digest


def test_features_that_the_encoder_does_not_give(project: Project, tmp_path: Path) -> None:
    model = read_model(project.model())
    left, right = model.inputs
    other = dataclasses.replace(left, representations=("layer_99",))
    write_model(dataclasses.replace(model, inputs=(other, right)), tmp_path, "card")
    with pytest.raises(ModelError, match=rf"features of {LEFT} \(layer_99\)"):
        load_model(tmp_path)


def test_heads_that_do_not_fit_are_refused_at_once(project: Project, tmp_path: Path) -> None:
    model = read_model(project.model())
    write_model(dataclasses.replace(model, fusion="concat", options={}), tmp_path, "card")
    with pytest.raises(ModelError, match=r"The heads of .* are of another version"):
        load_model(tmp_path)
