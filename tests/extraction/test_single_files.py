"""Recordings embedded one by one: numpy's pooling of the encoder's own frames, windows, and finding the files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

from pipelines.audio.decode import decode
from pipelines.encoders.base import PaddedRepresentation
from pipelines.encoders.catalogue import encoder_spec
from pipelines.errors import AudioError, ConfigError, UnknownNameError
from pipelines.extraction.single_files import check_choice, embed_file, embed_files, embedding_table, find_recordings
from tests.extraction.fakes import RATE, FakeEncoder, make_corpus, sine


class UtteranceLevel(FakeEncoder):
    """One vector per clip: mean and largest absolute value of its samples."""

    def __init__(self) -> None:
        super().__init__()
        self.spec = replace(self.spec, hop_samples=0)

    def num_frames(self, num_samples: int) -> int:
        return 1

    def encode_padded(self, batch: Sequence[Tensor]) -> Iterator[PaddedRepresentation]:
        for name, scale in (("level", 1.0), ("shape", 2.0)):
            values = torch.stack(
                [scale * torch.stack([clip.mean(), clip.abs().max(), clip.sum(), clip[0]]) for clip in batch]
            )
            yield PaddedRepresentation(
                name=name, frames=values[:, None], num_frames=torch.ones(len(batch), dtype=torch.int64)
            )


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    path = tmp_path / "clip.wav"
    soundfile.write(path, sine(3, seconds=2.03), RATE, subtype="FLOAT")
    return path


def test_the_embedding_is_that_of_the_frames(clip: Path) -> None:
    encoder = FakeEncoder()
    found = embed_file(clip, encoder, frames=True)
    assert found.failure == ""
    assert found.num_frames == 203
    assert found.duration_s == pytest.approx(2.03)
    expected = encoder.encode([torch.from_numpy(decode(clip, RATE).samples)])[0]
    for index, name in enumerate(("level", "shape")):
        frames = expected[name].numpy()
        np.testing.assert_array_equal(found.frames[name], frames)
        np.testing.assert_allclose(found.mean[index], frames.astype(np.float64).mean(0), rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(found.std[index], frames.astype(np.float64).std(0), rtol=1e-5, atol=1e-7)


def test_windows_of_a_long_recording_give_what_one_piece_gives(clip: Path) -> None:
    whole = embed_file(clip, FakeEncoder(), frames=True)
    encoder = FakeEncoder()
    encoder.longest_s, encoder.context_s = 0.5, 0.1
    found = embed_file(clip, encoder, frames=True)
    assert sum(encoder.batches) == 7  # 2.03 s in windows of 0.5 s, 0.3 s apart
    assert found.num_frames == whole.num_frames
    for name in ("level", "shape"):
        np.testing.assert_array_equal(found.frames[name], whole.frames[name])
    np.testing.assert_allclose(found.mean, whole.mean, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(found.std, whole.std, rtol=1e-5, atol=1e-7)


def test_windows_of_an_utterance_level_encoder_are_averaged(clip: Path) -> None:
    encoder = UtteranceLevel()
    encoder.longest_s = 1.0
    found = embed_file(clip, encoder, frames=True)
    samples = decode(clip, RATE).samples.astype(np.float64)
    edges = [len(samples) * index // 3 for index in range(4)]
    pieces = [samples[start:stop] for start, stop in pairwise(edges)]
    vectors = np.array([[piece.mean(), np.abs(piece).max(), piece.sum(), piece[0]] for piece in pieces])
    expected = np.average(vectors, axis=0, weights=[len(piece) for piece in pieces])
    np.testing.assert_allclose(found.mean, [expected, 2 * expected], rtol=1e-5, atol=1e-6)
    assert (found.std == 0).all()
    assert found.num_frames == 1
    assert found.frames["shape"].shape == (1, 4)


def test_broken_recordings_fail_alone_and_order_is_kept(tmp_path: Path) -> None:
    odd = {2: b"no recording", 4: np.zeros(RATE), 5: np.full(RATE, 0.995)}  # the last one's embedding is NaN
    manifest = make_corpus(tmp_path, count=7, odd=odd)
    paths = [*manifest.audio_paths(), tmp_path / "absent.wav"]
    found = list(embed_files(paths, FakeEncoder()))
    assert [entry.path for entry in found] == paths
    reasons = {entry.path.name: entry.failure for entry in found if entry.failure}
    assert "cannot be read as audio" in reasons["clip002.wav"]
    assert "is silent" in reasons["clip004.wav"]
    assert "not finite" in reasons["clip005.wav"]
    assert "does not exist" in reasons["absent.wav"]
    assert len(reasons) == 4
    assert np.isnan(found[5].mean).all()
    assert found[5].num_frames == 0
    assert not found[0].frames


def test_the_number_of_threads_decides_nothing(tmp_path: Path) -> None:
    paths = make_corpus(tmp_path, count=5).audio_paths()
    threads = torch.get_num_threads()
    found = []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            found.append(list(embed_files(paths, FakeEncoder())))
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(threads)
    for one, other in zip(*found, strict=True):
        assert one.mean.tobytes() == other.mean.tobytes()
        assert one.std.tobytes() == other.std.tobytes()


def test_finding_recordings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a/2.wav", "a/1.FLAC", "a/b/3.mp3", "a/notes.txt", "a/.hidden.wav", "c/x.dat", "[odd].wav"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    assert [str(path) for path in find_recordings(["a"])] == ["a/1.FLAC", "a/2.wav", "a/b/3.mp3"]
    assert [str(path) for path in find_recordings(["c/x.dat", "a/*.wav", "a/2.wav"])] == ["c/x.dat", "a/2.wav"]
    assert [str(path) for path in find_recordings(["**/*.mp3"])] == ["a/b/3.mp3"]
    assert [str(path) for path in find_recordings(["[odd].wav", "absent.wav"])] == ["[odd].wav", "absent.wav"]
    with pytest.raises(AudioError, match=r"There is no recording below c \(looked for \.wav"):
        find_recordings(["c"])
    with pytest.raises(AudioError, match=r"No file is called x\*\.wav"):
        find_recordings(["x*.wav"])


def test_what_is_asked_for() -> None:
    wavlm, xvector = encoder_spec("wavlm-tiny"), encoder_spec("xvector-tiny")
    assert check_choice(wavlm, [], "mean") == (("layer_02",), ("mean",))
    assert check_choice(wavlm, ["all"], "mean+std") == (("layer_00", "layer_01", "layer_02"), ("mean", "std"))
    assert check_choice(wavlm, ["layer_01", "layer_00", "layer_01"], "std") == (("layer_01", "layer_00"), ("std",))
    assert check_choice(xvector, [], "mean+std") == (("embedding",), ("mean",))
    with pytest.raises(ConfigError, match=r"xvector-tiny gives one vector per recording, so there is no std"):
        check_choice(xvector, [], "std")
    with pytest.raises(ConfigError, match=r"Pooling must be one of mean, std, mean\+std, not 'max'"):
        check_choice(wavlm, [], "max")
    with pytest.raises(UnknownNameError, match=r"Unknown representation of wavlm-tiny 'layer_3'. Did you mean"):
        check_choice(wavlm, ["layer_3"], "mean")


def test_a_table_of_nothing(tmp_path: Path) -> None:
    encoder = FakeEncoder()
    found = [embed_file(tmp_path / "absent.wav", encoder)]
    with pytest.raises(AudioError, match=r"no embedding to be saved: every file failed"):
        embedding_table(found, encoder, representations=("level",), arrays=("mean",))
