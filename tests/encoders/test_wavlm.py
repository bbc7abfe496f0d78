"""WavLM against transformers' own one-by-one call, on checkpoints in transformers' own format."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pipelines.encoders.catalogue import EncoderSpec, encoder_spec, load_encoder
from pipelines.encoders.padding import pad_batch
from pipelines.encoders.ssl import front_end
from pipelines.encoders.torchaudio_guard import ensure_torchaudio_importable
from pipelines.encoders.wavlm import WavLMEncoder
from pipelines.encoders.weights import random_initialisation, state_digest
from pipelines.errors import WeightsError

ensure_torchaudio_importable()

TOLERANCE = 1e-5

# The architecture of the large size: layer-normalised convolutions with bias, layer norm first, normalised waveforms.
_LARGE = {"feat_extract_norm": "layer", "conv_bias": True, "do_stable_layer_norm": True, "do_normalize": True}
KINDS: dict[str, dict[str, object]] = {"base": {}, "large": _LARGE, "base, normalised": {"do_normalize": True}}


def _spec(**settings: object) -> EncoderSpec:
    """The tiny size, with a repository as the full one has, so that it can be loaded like a checkpoint."""
    full, tiny = encoder_spec("wavlm"), encoder_spec("wavlm-tiny")
    return dataclasses.replace(
        tiny,
        repository=full.repository,
        revision=full.revision,
        files=full.files,
        licence=full.licence,
        settings={**tiny.settings, **settings},
    )


def _model(spec: EncoderSpec) -> Any:
    """transformers' model, no parameter at its initial constant (ones and zeros hide mistakes)."""
    from transformers import WavLMConfig, WavLMModel

    settings = {name: value for name, value in spec.settings.items() if name != "do_normalize"}
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = WavLMModel(WavLMConfig(**settings))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def _save_checkpoint(spec: EncoderSpec, folder: Path) -> Path:
    """A checkpoint in the upstream format."""
    from transformers import Wav2Vec2FeatureExtractor

    _model(spec).save_pretrained(folder)
    do_normalize = bool(spec.settings["do_normalize"])
    Wav2Vec2FeatureExtractor(do_normalize=do_normalize, return_attention_mask=True).save_pretrained(folder)
    return folder


def _build(spec: EncoderSpec, folder: Path | None) -> WavLMEncoder:
    return WavLMEncoder.build(
        spec=spec,
        weights_kind="random" if folder is None else "pretrained",
        device=torch.device("cpu"),
        weights_dir=folder,
        progress=None,
    )


def _upstream(folder: Path) -> Callable[[Tensor], list[Tensor]]:
    """transformers as its documentation shows it: feature extractor, model, one clip."""
    from transformers import Wav2Vec2FeatureExtractor, WavLMModel

    extractor = Wav2Vec2FeatureExtractor.from_pretrained(folder)
    model = WavLMModel.from_pretrained(folder).eval()

    @torch.inference_mode()
    def encode(clip: Tensor) -> list[Tensor]:
        clip = F.pad(clip, (0, max(0, 400 - len(clip))))
        inputs = extractor(clip.numpy(), sampling_rate=16000, return_tensors="pt").input_values
        outputs = model(inputs, output_hidden_states=True)
        return [*(state[0] for state in outputs.hidden_states[:-1]), outputs.last_hidden_state[0]]

    return encode


def _ragged_batch() -> list[Tensor]:
    """Short, long, odd remainders, below the minimum, silence appended, an offset, silence alone."""
    generator = torch.Generator().manual_seed(3)
    clips = [torch.randn(n, generator=generator) * 0.05 for n in (16000, 400, 399, 1, 719, 720, 30001, 8123)]
    return [*clips, F.pad(clips[4], (0, 9000)), clips[7] + 0.3, torch.zeros(5000)]


def _relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.fixture(scope="module", params=list(KINDS))
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[WavLMEncoder, Any]:
    spec = _spec(**KINDS[request.param])
    folder = _save_checkpoint(spec, tmp_path_factory.mktemp("wavlm"))
    return _build(spec, folder), _upstream(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _save_checkpoint(_spec(), tmp_path_factory.mktemp("wavlm"))


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(folder, tmp_path / "checkpoint")


def test_batched_equals_upstream_one_by_one(case: tuple[WavLMEncoder, Any]) -> None:
    encoder, upstream = case
    clips = _ragged_batch()
    for clip, encoded in zip(clips, encoder.encode(clips), strict=True):
        assert list(encoded) == list(encoder.spec.representations)
        for frames, expected in zip(encoded.values(), upstream(clip), strict=True):
            assert frames.shape == expected.shape == (encoder.num_frames(len(clip)), encoder.spec.dim)
            assert _relative(frames, expected) < TOLERANCE


def test_batched_equals_alone_in_any_order(case: tuple[WavLMEncoder, Any]) -> None:
    encoder, _ = case
    clips = _ragged_batch()
    alone = [encoder.encode([clip])[0] for clip in clips]
    for order in (range(len(clips)), [5, 2, 9, 0, 7, 10, 1, 8, 3, 6, 4]):
        together = encoder.encode([clips[index] for index in order])
        for index, encoded in zip(order, together, strict=True):
            for name, frames in encoded.items():
                assert _relative(frames, alone[index][name]) < TOLERANCE


def test_whole_batch_at_once_equals_pieces(case: tuple[WavLMEncoder, Any]) -> None:
    encoder, _ = case  # the way it goes on a GPU
    waveforms, lengths = pad_batch(_ragged_batch(), min_samples=encoder.min_samples)
    extractor = encoder.model.feature_extractor
    with torch.inference_mode():
        pieces = front_end(extractor, waveforms, lengths, in_pieces=True)
        whole = front_end(extractor, waveforms, lengths, in_pieces=False)
    assert whole.shape == pieces.shape
    for row, length in enumerate(lengths.tolist()):
        frames = encoder.num_frames(length)
        assert _relative(whole[row, :frames], pieces[row, :frames]) < TOLERANCE


def test_the_cure_is_needed(folder: Path) -> None:
    """Upstream's own padded batch, with its attention mask, is far off; else the other tests would show little."""
    from transformers import WavLMModel

    model = WavLMModel.from_pretrained(folder).eval()
    short, long = torch.randn(4000) * 0.05, torch.randn(16000) * 0.05
    mask = torch.ones(2, 16000, dtype=torch.long)
    mask[0, 4000:] = 0
    with torch.inference_mode():
        padded = model(torch.stack([F.pad(short, (0, 12000)), long]), attention_mask=mask).last_hidden_state[0, :12]
        alone = model(short[None]).last_hidden_state[0]
    assert _relative(padded, alone) > 0.01


def test_representations_come_one_by_one_and_are_not_written_over() -> None:
    encoder = load_encoder("wavlm-tiny", weights="random")
    clips = _ragged_batch()[:3]
    kept, copies = [], []
    for representation in encoder.encode_padded(clips):
        kept.append(representation.frames)
        copies.append(representation.frames.clone())
        assert representation.num_frames.tolist() == [49, 1, 1]
    assert all(torch.equal(frames, copy) for frames, copy in zip(kept, copies, strict=True))


@pytest.mark.parametrize(("samples", "frames"), [(1, 1), (400, 1), (719, 1), (720, 2), (16000, 49)])
def test_num_frames(samples: int, frames: int) -> None:
    assert load_encoder("wavlm-tiny", weights="random").num_frames(samples) == frames


def test_random_weights_depend_on_the_name_only() -> None:
    torch.manual_seed(1)
    first = load_encoder("wavlm-tiny", weights="random")
    torch.manual_seed(2)
    second = load_encoder("wavlm-tiny", weights="random")
    other = _build(dataclasses.replace(encoder_spec("wavlm-tiny"), name="other-tiny"), None)
    assert first.weights == second.weights
    assert first.weights.digest != other.weights.digest
    assert first.weights.kind == "random"
    assert "random" in first.weights.licence


def test_loading_says_nothing_and_records_the_source(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    encoder = _build(_spec(), folder)
    assert capfd.readouterr() == ("", "")
    assert (encoder.weights.kind, encoder.weights.revision) == ("pretrained", "unverified")
    assert encoder.weights.source == str(folder)
    assert encoder.weights.licence == encoder_spec("wavlm").licence
    assert not any(parameter.requires_grad for parameter in encoder.model.parameters())


def test_every_parameter_is_loaded_as_it_was_saved(folder: Path) -> None:
    saved = _model(_spec()).state_dict()
    del saved["masked_spec_embed"]  # for training only
    assert "encoder.pos_conv_embed.conv.parametrizations.weight.original0" in saved
    assert _build(_spec(), folder).weights.digest == state_digest(saved)


def _old_format(folder: Path) -> None:
    """As microsoft/wavlm-base stores it: a pickled state dict with the older names of weight normalisation."""
    from safetensors.torch import load_file

    state = load_file(folder / "model.safetensors")
    prefix = "encoder.pos_conv_embed.conv."
    renamed = {}
    for name, tensor in state.items():
        name = name.replace(f"{prefix}parametrizations.weight.original0", f"{prefix}weight_g")
        renamed[name.replace(f"{prefix}parametrizations.weight.original1", f"{prefix}weight_v")] = tensor
    assert {f"{prefix}weight_g", f"{prefix}weight_v"} < renamed.keys()
    torch.save(renamed, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def test_old_names_of_weight_norm_give_the_same_weights(folder: Path, copy: Path) -> None:
    _old_format(copy)
    old, new = _build(_spec(), copy), _build(_spec(), folder)
    assert old.weights.digest == new.weights.digest
    clip = _ragged_batch()[0]
    assert torch.equal(old.encode([clip])[0]["layer_02"], new.encode([clip])[0]["layer_02"])


def test_checkpoint_without_the_mask_vector(folder: Path, copy: Path) -> None:
    _drop(copy, "masked_spec_embed")
    assert _build(_spec(), copy).weights.digest == _build(_spec(), folder).weights.digest


def _drop(folder: Path, *names: str, **added: Tensor) -> None:
    from safetensors.torch import load_file, save_file

    state = load_file(folder / "model.safetensors")
    for name in names:
        del state[name]
    save_file({**state, **added}, folder / "model.safetensors", metadata={"format": "pt"})


def _edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "hubert"}, r"model_type 'hubert' with 2 layers of 32 features; expected 'wavlm' with 2 layers"),
        ({"hidden_size": 1024, "num_hidden_layers": 24}, "with 24 layers of 1024 features; expected .* 2 layers of 32"),
    ],
)
def test_another_architecture(copy: Path, change: dict[str, object], message: str) -> None:
    _edit(copy / "config.json", **change)
    with pytest.raises(WeightsError, match=message) as caught:
        _build(_spec(), copy)
    assert "microsoft/wavlm-base (revision efa81aae" in str(caught.value)


def test_config_that_does_not_fit_its_weights(copy: Path) -> None:
    _edit(copy / "config.json", intermediate_size=48)
    with pytest.raises(WeightsError, match=r"cannot be loaded .* of another architecture than its config\.json"):
        _build(_spec(), copy)


def test_missing_parameters(copy: Path) -> None:
    name = "encoder.pos_conv_embed.conv.parametrizations.weight.original0"
    _drop(copy, *([name] if name in _names(copy) else ["encoder.pos_conv_embed.conv.weight_g"]))
    with pytest.raises(WeightsError, match=r"1 parameters are missing \(encoder\.pos_conv_embed.*would stay random"):
        _build(_spec(), copy)


def _names(folder: Path) -> list[str]:
    from safetensors import safe_open

    with safe_open(folder / "model.safetensors", framework="pt") as file:
        return list(file.keys())


def test_unknown_parameters(copy: Path) -> None:
    _drop(copy, **{"lm_head.weight": torch.zeros(3, 32)})
    with pytest.raises(WeightsError, match=r"1 are unknown \(lm_head\.weight\).*not fine-tuned"):
        _build(_spec(), copy)


@pytest.mark.parametrize("kept", [0, 5, 20000])
def test_half_downloaded_safetensors(copy: Path, kept: int) -> None:
    path = copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(WeightsError, match=r"cannot be loaded .*half-downloaded.*Delete it and get it again"):
        _build(_spec(), copy)


def test_half_downloaded_pickle(copy: Path) -> None:
    _old_format(copy)
    path = copy / "pytorch_model.bin"
    path.write_bytes(path.read_bytes()[:20000])
    with pytest.raises(WeightsError, match=r"cannot be loaded .*half-downloaded"):
        _build(_spec(), copy)


def test_pickle_that_holds_more_than_tensors(copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    torch.save({"code": Path("x")}, copy / "pytorch_model.bin")
    with pytest.raises(WeightsError, match="cannot be loaded"):
        _build(_spec(), copy)


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
@pytest.mark.parametrize("content", ['{"model_type": "wav', "[1, 2]", ""])
def test_damaged_json(copy: Path, name: str, content: str) -> None:
    (copy / name).write_text(content)
    with pytest.raises(WeightsError, match=rf"{name} cannot be read .*should be JSON"):
        _build(_spec(), copy)


def test_checkpoint_for_another_rate(copy: Path) -> None:
    _edit(copy / "preprocessor_config.json", sampling_rate=8000)
    with pytest.raises(WeightsError, match="asks for 8000 Hz; 'wavlm-tiny' works at 16000 Hz"):
        _build(_spec(), copy)


@pytest.mark.slow
def test_full_size_equals_upstream() -> None:
    from transformers import WavLMConfig, WavLMModel

    encoder = load_encoder("wavlm", weights="random")
    with random_initialisation(encoder.spec):
        model = WavLMModel(WavLMConfig(mask_time_prob=0.0, mask_feature_prob=0.0)).eval()
    clips = [clip for clip in _ragged_batch() if len(clip) >= 400]
    for clip, encoded in zip(clips, encoder.encode(clips), strict=True):
        with torch.inference_mode():
            states = model(clip[None], output_hidden_states=True).hidden_states
        assert list(encoded) == [f"layer_{index:02d}" for index in range(13)]
        for frames, expected in zip(encoded.values(), states, strict=True):
            assert frames.shape == expected[0].shape
            assert _relative(frames, expected[0]) < TOLERANCE
