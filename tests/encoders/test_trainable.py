"""Trainable layers: before training they are the encoder's own, batches are not felt, and what is saved can be read back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from pipelines.encoders.catalogue import load_encoder
from pipelines.encoders.trainable import TrainableSSL, load_trainable
from pipelines.errors import ConfigError
from tests.encoders.batches import speechlike

NAMES = ("wav2vec2-tiny", "hubert-tiny", "hubert-large-tiny", "unispeech-sat-tiny")


def _load(name: str, layers: int = 1, letters: int = 0) -> TrainableSSL:
    torch.manual_seed(0)
    return load_trainable(name, layers=layers, letters=letters, weights="random")


def _clips() -> list[torch.Tensor]:
    return [speechlike(samples, seed=place) for place, samples in enumerate((14400, 5600, 9600))]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("layers", [1, 2])
def test_before_training_it_is_the_encoder(name: str, layers: int) -> None:
    model = _load(name, layers).eval()
    clips = _clips()
    expected = load_encoder(name, weights="random").encode(clips)
    hidden, valid, lower = model.hear(clips)
    with torch.no_grad():
        found = [*lower, *model(hidden, valid)]
    names = model.frozen.spec.representations
    assert len(found) == len(names)
    for representation, frames in zip(names, found, strict=True):
        for row, clip in enumerate(expected):
            own = clip[representation]
            assert int(valid[row].sum()) == len(own)
            error = (frames[row, : len(own)] - own).abs().max() / own.abs().max()
            assert error < 1e-5, f"{representation} of clip {row}: {error}"


def test_only_the_last_layers_learn_and_no_clip_feels_another() -> None:
    model = _load("wav2vec2-tiny", letters=5).eval()
    clips = _clips()
    hidden, valid, _ = model.hear(clips)
    last = model(hidden, valid)[-1]
    assert model.spell is not None
    (last[0][valid[0]].square().sum() + model.spell(last[0]).sum()).backward()
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)
    assert all(parameter.requires_grad for parameter in model.layers.parameters())
    (upstream,) = model._model
    learning = [name for name, parameter in upstream.named_parameters() if parameter.requires_grad]
    assert learning
    assert all(name.startswith("encoder.layers.1.") for name in learning)
    alone, mask, _ = model.hear(clips[1:2])
    with torch.no_grad():
        own = model(alone, mask)[-1][0]
    torch.testing.assert_close(last[1, : len(own)], own, rtol=1e-5, atol=1e-5)


def test_a_checkpoint_is_read_by_transformers_and_by_hyfuse(tmp_path: Path) -> None:
    from transformers import Wav2Vec2ForCTC

    model = _load("wav2vec2-tiny", letters=4)
    with torch.no_grad():
        for parameter in model.layers.parameters():
            parameter.add_(0.01)
    model.standardise(3.0 + 2.0 * torch.randn(50, 32))
    folder = tmp_path / "fine-tuned" / "fold-1"
    folder.parent.mkdir()
    model.eval().save(folder, ("<pad>", "|", "a", "b"))
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json", "model.safetensors", "preprocessor_config.json", "vocab.json",
    ]  # fmt: skip
    assert json.loads((folder / "vocab.json").read_text()) == {"<pad>": 0, "|": 1, "a": 2, "b": 3}
    clip = speechlike(8000, seed=7)
    hidden, valid, _ = model.hear([clip])
    assert model.spell is not None
    with torch.no_grad():
        last = model(hidden, valid)[-1]
        spelled = model.spell(model.scaled(last))
        upstream = Wav2Vec2ForCTC.from_pretrained(folder).eval()
        normal = (clip - clip.mean()) / (clip.var(unbiased=False) + 1e-7).sqrt()
        torch.testing.assert_close(upstream(normal[None]).logits, spelled, rtol=1e-4, atol=1e-5)
    again = load_encoder("hf:fine-tuned/fold-1", weights_dir=tmp_path)
    torch.testing.assert_close(again.encode([clip])[0]["layer_02"], last[0], rtol=1e-5, atol=1e-5)
    before = load_encoder("wav2vec2-tiny", weights="random").encode([clip])[0]
    assert torch.equal(again.encode([clip])[0]["layer_01"], before["layer_01"])
    assert not torch.allclose(again.encode([clip])[0]["layer_02"], before["layer_02"], atol=1e-3)
    without = _load("hubert-tiny")
    without.save(tmp_path / "fine-tuned" / "plain", ())
    assert not (tmp_path / "fine-tuned" / "plain" / "vocab.json").exists()
    assert load_encoder("hf:fine-tuned/plain", weights_dir=tmp_path).spec.dim == 32


def test_mistakes_are_named() -> None:
    with pytest.raises(
        ConfigError, match=r"'wavlm-tiny' of the type 'wavlm' cannot be fine-tuned; those of wav2vec2, .* wav2vec2-tiny"
    ):
        _load("wavlm-tiny")
    with pytest.raises(ConfigError, match="Layers of 'encodec-tiny' cannot be fine-tuned"):
        _load("encodec-tiny")
    with pytest.raises(ConfigError, match="--fine-tune 3: 'wav2vec2-tiny' has 2 transformer layers"):
        _load("wav2vec2-tiny", 3)
