"""Fine-tuning from audio: it learns what was put in, gives the same bits again, and leaves the lower layers alone."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipelines.encoders.catalogue import load_encoder
from pipelines.errors import AudioError, ConfigError
from pipelines.extraction.fine_tuning import FineTuneConfig, FineTuneWork, encoder_digest, fine_tune


class _Head(nn.Module):
    def __init__(self, dim: int, outputs: int) -> None:
        super().__init__()
        self.classify = nn.Linear(dim, outputs)

    def forward(self, values: Tensor, valid: Tensor) -> Tensor:
        pooled = values.masked_fill(~valid[..., None], 0.0).sum(dim=1) / valid.sum(dim=1, keepdim=True)
        found: Tensor = self.classify(pooled)
        return found


def _ctc(logits: Tensor, lengths: Tensor, targets: list[np.ndarray]) -> Tensor:
    flat = torch.from_numpy(np.concatenate(targets))
    sizes = torch.tensor([len(one) for one in targets])
    return F.ctc_loss(torch.log_softmax(logits, -1).transpose(0, 1), flat, lengths, sizes)


def _work(folder: Path, **changes: object) -> FineTuneWork:
    """Twelve recordings: a high tone or a low one."""
    stream = np.random.default_rng(0)
    truth = np.arange(12) % 2
    paths = []
    for row, high in enumerate(truth):
        times = np.arange(int(16000 * stream.uniform(0.25, 0.5))) / 16000
        sound = 0.3 * np.sin(2 * np.pi * (1800 if high else 200) * times) + 0.01 * stream.standard_normal(len(times))
        paths.append(folder / f"{row}.wav")
        soundfile.write(paths[-1], sound.astype(np.float32), 16000)
    work = FineTuneWork(
        encoder="wav2vec2-tiny",
        weights="random",
        weights_dir=None,
        config=FineTuneConfig(layers=1, epochs=6, batch_size=4, learning_rate=3e-3, head_learning_rate=1e-2),
        paths=tuple(paths),
        truth=truth,
        targets={row: np.array([1, 2] if high else [2]) for row, high in enumerate(truth)},
        letters=("<pad>", "a", "b"),
        ctc_weight=0.3,
        batches=tuple(tuple(np.split(stream.permutation(8), 2)) for _ in range(6)),
        test_batches=(np.array([8, 9]), np.array([10, 11])),
        make_head=partial(_Head, outputs=2),
        emotion_loss=F.cross_entropy,
        ctc_loss=_ctc,
        seed=5,
        device="cpu",
        save_to=None,
    )
    return replace(work, **changes)  # type: ignore[arg-type]


def test_it_learns_and_changes_the_trained_layer_alone(tmp_path: Path) -> None:
    result = fine_tune(_work(tmp_path, save_to=tmp_path / "checkpoints" / "fine-tuned" / "fold-1"))
    assert sorted(result.outputs) == sorted(result.symbols) == [8, 9, 10, 11]
    assert [int(result.outputs[row].argmax()) for row in (8, 9, 10, 11)] == [0, 1, 0, 1]
    losses = np.array(result.losses)
    assert losses[-1, 1] < 0.5 * losses[0, 1]
    assert losses[-1, 2] < losses[0, 2]
    assert losses[:, 0] == pytest.approx(0.3 * losses[:, 2] + 0.7 * losses[:, 1])
    for layer in ("layer_00", "layer_01"):
        np.testing.assert_array_equal(result.before[layer], result.after[layer])
    assert np.abs(result.before["layer_02"] - result.after["layer_02"]).max() > 0.05
    saved = load_encoder("hf:fine-tuned/fold-1", weights_dir=tmp_path / "checkpoints")
    clip = torch.from_numpy(soundfile.read(tmp_path / "9.wav", dtype="float32")[0])
    frames = saved.encode([clip])[0]["layer_02"]
    np.testing.assert_allclose(frames.mean(dim=0), result.after["layer_02"][1], rtol=1e-4, atol=1e-5)
    assert len(result.symbols[9]) == len(frames)


def test_the_same_work_gives_the_same_bits(tmp_path: Path) -> None:
    work = _work(tmp_path, config=FineTuneConfig(layers=2, epochs=1), ctc_weight=0.0, letters=(), targets={})
    work = replace(work, batches=work.batches[:1])
    first = fine_tune(work)
    torch.rand(3)
    again = fine_tune(work)
    assert all(first.outputs[row].tobytes() == again.outputs[row].tobytes() for row in first.outputs)
    assert first.losses == again.losses
    assert first.symbols == {}
    assert len(encoder_digest("wav2vec2-tiny", weights="random", weights_dir=None)) == 64


def test_mistakes_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'epochs' is 0"):
        FineTuneConfig(epochs=0)
    with pytest.raises(ConfigError, match=r"'learning_rate' is 0\.0"):
        FineTuneConfig(learning_rate=0.0)
    work = _work(tmp_path)
    (tmp_path / "3.wav").unlink()
    with pytest.raises(AudioError, match=r"3\.wav"):
        fine_tune(work)
