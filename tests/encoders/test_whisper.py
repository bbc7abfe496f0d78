"""Whisper's encoder against transformers' own one-by-one call, on checkpoints in transformers' own format."""

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
from pipelines.encoders.torchaudio_guard import ensure_torchaudio_importable
from pipelines.encoders.weights import random_initialisation, state_digest
from pipelines.encoders.whisper import LogMel, WhisperEncoder
from pipelines.encoders.windows import plan_windows
from pipelines.errors import AudioError, ConfigError, WeightsError
from tests.encoders.batches import (
    TOLERANCE,
    assert_batched_equals_alone,
    ragged_clips,
    relative_error,
    speechlike,
)
from tests.encoders.in_windows import frames_of_windows

ensure_torchaudio_importable()

LONGEST = 480_000


def _spec() -> EncoderSpec:
    """The tiny size, with a repository as the full one has, so that it can be loaded like a checkpoint."""
    full, tiny = encoder_spec("whisper"), encoder_spec("whisper-tiny")
    return dataclasses.replace(
        tiny, repository=full.repository, revision=full.revision, files=full.files, licence=full.licence
    )


def _model(spec: EncoderSpec) -> Any:
    """transformers' Whisper with its decoder, no parameter at its initial constant (ones and zeros hide mistakes)."""
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    config = WhisperConfig(
        d_model=spec.dim,
        encoder_layers=len(spec.representations) - 1,
        decoder_layers=1,
        decoder_attention_heads=4,
        decoder_ffn_dim=32,
        vocab_size=64,
        **spec.settings,
        **special,
    )
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = WhisperForConditionalGeneration(config)
        with torch.no_grad():
            for parameter in model.get_encoder().parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def _save_checkpoint(spec: EncoderSpec, folder: Path) -> Path:
    """A checkpoint in the upstream format."""
    from transformers import WhisperFeatureExtractor

    _model(spec).save_pretrained(folder)
    WhisperFeatureExtractor().save_pretrained(folder)
    return folder


def _build(spec: EncoderSpec, folder: Path, *, precision: str = "float32") -> WhisperEncoder:
    return WhisperEncoder.build(
        spec=spec, weights_kind="pretrained", device=torch.device("cpu"), weights_dir=folder, precision=precision
    )


def _upstream(folder: Path) -> Callable[[Tensor], list[Tensor]]:
    """transformers as its documentation shows it: feature extractor, encoder, one clip."""
    from transformers import WhisperFeatureExtractor, WhisperModel

    extractor = WhisperFeatureExtractor.from_pretrained(folder)
    encoder = WhisperModel.from_pretrained(folder).get_encoder().eval()

    @torch.inference_mode()
    def encode(clip: Tensor) -> list[Tensor]:
        features = extractor(clip.numpy(), sampling_rate=16000, return_tensors="pt").input_features
        outputs = encoder(features, output_hidden_states=True)
        assert torch.equal(outputs.hidden_states[-1], outputs.last_hidden_state)
        return [state[0, : -(-len(clip) // 320)] for state in outputs.hidden_states]

    return encode


def _clips(encoder: WhisperEncoder) -> list[Tensor]:
    """Those of all encoders, silence alone, a loud click, and one that fills the 30 s to the last sample."""
    click = torch.zeros(7777)
    click[7000] = 1.0
    return [*ragged_clips(encoder), torch.zeros(5000), click, speechlike(LONGEST, seed=5)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _save_checkpoint(_spec(), tmp_path_factory.mktemp("whisper"))


@pytest.fixture(scope="module")
def encoder(folder: Path) -> WhisperEncoder:
    return _build(_spec(), folder)


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(folder, tmp_path / "checkpoint")


def test_batched_equals_upstream_one_by_one(encoder: WhisperEncoder, folder: Path) -> None:
    upstream = _upstream(folder)
    clips = _clips(encoder)
    for clip, encoded in zip(clips, encoder.encode(clips), strict=True):
        assert list(encoded) == list(encoder.spec.representations)
        for frames, expected in zip(encoded.values(), upstream(clip), strict=True):
            assert frames.shape == (encoder.num_frames(len(clip)), encoder.spec.dim)
            assert relative_error(frames, expected) <= TOLERANCE, len(clip)


def test_batched_equals_alone(encoder: WhisperEncoder) -> None:
    assert_batched_equals_alone(encoder, _clips(encoder))


def test_passes_of_several_clips_equal_passes_of_one(encoder: WhisperEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    clips = ragged_clips(encoder)[:7]  # as on a GPU, where passes hold many clips; the last is not full
    expected = encoder.encode(clips)
    monkeypatch.setattr("pipelines.encoders.whisper._CPU_CLIPS_PER_PASS", 3)
    for found, one in zip(encoder.encode(clips), expected, strict=True):
        for name, frames in found.items():
            assert relative_error(frames, one[name]) <= TOLERANCE


@pytest.mark.parametrize("samples", [1, 160, 40_001, LONGEST - 600, LONGEST - 200, LONGEST - 199, LONGEST - 1, LONGEST])
def test_features_are_those_of_the_extractor(samples: int) -> None:
    from transformers import WhisperFeatureExtractor

    clips = [speechlike(samples, seed=1), 1e-4 * speechlike(max(1, samples // 3), seed=2)]
    waveforms = torch.stack([F.pad(clip, (0, samples - len(clip))) for clip in clips])
    found = LogMel()(waveforms)
    assert found.shape == (2, 80, 3000)
    extractor = WhisperFeatureExtractor()
    for features, clip in zip(found, clips, strict=True):
        expected = extractor(clip.numpy(), sampling_rate=16000, return_tensors="pt").input_features[0]
        assert (features - expected).abs().max() <= 1e-5  # of a range of about 2


def test_padding_is_part_of_the_input_upstream_and_here(encoder: WhisperEncoder) -> None:
    """Appended digital silence changes nothing but the number of frames: the clip had it before."""
    clip = speechlike(16000, seed=3)
    alone, extended = encoder.encode([clip]), encoder.encode([F.pad(clip, (0, 16000))])
    assert len(extended[0]["layer_02"]) == 100
    assert relative_error(extended[0]["layer_02"][:50], alone[0]["layer_02"]) <= TOLERANCE


def test_representations_are_not_written_over(encoder: WhisperEncoder) -> None:
    kept, copies = [], []
    for representation in encoder.encode_padded(ragged_clips(encoder)[:3]):
        kept.append(representation.frames)
        copies.append(representation.frames.clone())
    assert all(torch.equal(frames, copied) for frames, copied in zip(kept, copies, strict=True))


@pytest.mark.parametrize(("samples", "frames"), [(1, 1), (320, 1), (321, 2), (16000, 50), (LONGEST, 1500)])
def test_num_frames(encoder: WhisperEncoder, samples: int, frames: int) -> None:
    assert encoder.num_frames(samples) == frames


def test_long_recordings_come_in_windows_of_30_s(encoder: WhisperEncoder, folder: Path) -> None:
    recording = speechlike(70 * 16000 + 5, seed=6)
    windows = plan_windows(encoder, len(recording))
    assert [(window.start // 16000, window.first, window.last) for window in windows] == [
        (0, 0, 1400),
        (26, 100, 1400),
        (52, 100, 901),
    ]
    frames = frames_of_windows(encoder, recording)["layer_02"]
    assert len(frames) == encoder.num_frames(len(recording)) == 3501
    expected = _upstream(folder)(recording[windows[1].start : windows[1].stop])[2]
    assert relative_error(frames[1400:2700], expected[100:1400]) <= TOLERANCE


def test_more_than_30_s_at_once_is_an_error_and_not_a_cut(encoder: WhisperEncoder) -> None:
    with pytest.raises(AudioError, match=r"A clip of 30\.1 s was given to 'whisper-tiny', which takes at most 30 s"):
        encoder.encode([speechlike(481_600, seed=1)])


def test_random_weights_depend_on_the_name_only() -> None:
    torch.manual_seed(1)
    first = load_encoder("whisper-tiny", weights="random")
    torch.manual_seed(2)
    second = load_encoder("whisper-tiny", weights="random")
    assert first.weights == second.weights
    assert (first.weights.kind, first.weights.revision) == ("random", "")
    other = WhisperEncoder.build(
        spec=dataclasses.replace(first.spec, name="other-tiny"), weights_kind="random", device=torch.device("cpu")
    )
    assert other.weights.digest != first.weights.digest


def test_random_weights_pass_the_signal_on() -> None:
    encoder = load_encoder("whisper-tiny", weights="random")
    first, second = encoder.encode([speechlike(32000, seed=1), speechlike(32000, seed=2)])
    for name, frames in first.items():
        assert (frames.mean(0) - second[name].mean(0)).norm() > 0.03 * frames.mean(0).norm()


def test_the_tiny_size_says_that_it_is_not_openais() -> None:
    assert "not OpenAI's checkpoint of that name" in encoder_spec("whisper-tiny").title
    with pytest.raises(ConfigError, match=r"'whisper-tiny' is a tiny size for demos and tests"):
        load_encoder("whisper-tiny")


def test_bf16_is_close_and_handed_out_in_float32(folder: Path) -> None:
    exact, rounded = (_build(_spec(), folder, precision=precision) for precision in ("float32", "bf16"))
    assert (exact.precision, rounded.precision) == ("float32", "bf16")
    assert exact.weights == rounded.weights
    clip = speechlike(30000, seed=8)
    for name, frames in rounded.encode([clip])[0].items():
        expected = exact.encode([clip])[0][name]
        assert frames.dtype == torch.float32
        if name == "layer_00":
            assert torch.equal(frames, expected)
        else:
            assert TOLERANCE < relative_error(frames, expected) < 0.03


def test_loading_says_nothing_and_records_the_source(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = torch.get_rng_state()
    weights = _build(_spec(), folder).weights
    assert torch.equal(torch.get_rng_state(), before)
    assert capfd.readouterr() == ("", "")
    assert (weights.kind, weights.revision, weights.source) == ("pretrained", "unverified", str(folder))
    assert weights.licence == encoder_spec("whisper").licence


def test_every_parameter_of_the_encoder_is_loaded_as_it_was_saved(folder: Path) -> None:
    saved = _model(_spec()).get_encoder().state_dict()
    assert len(saved) == 7 + 2 * 15
    assert _build(_spec(), folder).weights.digest == state_digest(saved)


def test_checkpoint_of_a_model_without_the_head(folder: Path, copy: Path) -> None:
    from transformers import WhisperModel

    WhisperModel.from_pretrained(folder).save_pretrained(copy)
    assert "encoder.conv1.weight" in _names(copy)
    assert _build(_spec(), copy).weights.digest == _build(_spec(), folder).weights.digest


def test_pickled_checkpoint_with_the_head(folder: Path, copy: Path) -> None:
    from safetensors.torch import load_file

    state = load_file(copy / "model.safetensors")
    torch.save({**state, "proj_out.weight": torch.zeros(64, 32)}, copy / "pytorch_model.bin")
    (copy / "model.safetensors").unlink()
    assert _build(_spec(), copy).weights.digest == _build(_spec(), folder).weights.digest


def test_checkpoint_in_half_precision_is_computed_in_float32(folder: Path, copy: Path) -> None:
    from safetensors.torch import load_file, save_file

    halves = {name: tensor.half() for name, tensor in load_file(copy / "model.safetensors").items()}
    save_file(halves, copy / "model.safetensors", metadata={"format": "pt"})
    clip = speechlike(9000, seed=1)
    found, expected = (_build(_spec(), place).encode([clip])[0]["layer_02"] for place in (copy, folder))
    assert TOLERANCE < relative_error(found, expected) < 1e-2


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
        ({"model_type": "hubert"}, r"model_type is 'hubert', expected 'whisper'"),
        ({"d_model": 768, "encoder_layers": 12}, r"d_model is 768, expected 32; encoder_layers is 12, expected 2"),
        ({"num_mel_bins": 128}, r"num_mel_bins is 128, expected 80"),
    ],
)
def test_another_architecture(copy: Path, change: dict[str, object], message: str) -> None:
    _edit(copy / "config.json", **change)
    with pytest.raises(WeightsError, match=message) as caught:
        _build(_spec(), copy)
    assert "openai/whisper-base at revision e37978b9" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"feature_size": 128}, r"feature_size is 128, expected 80"),
        ({"sampling_rate": 8000}, r"sampling_rate is 8000, expected 16000"),
        ({"dither": 1e-4}, r"dither is 0\.0001, expected 0\.0"),
    ],
)
def test_features_of_another_kind(copy: Path, change: dict[str, object], message: str) -> None:
    _edit(copy / "preprocessor_config.json", **change)
    with pytest.raises(WeightsError, match=message):
        _build(_spec(), copy)


def test_config_that_does_not_fit_its_weights(copy: Path) -> None:
    _drop(copy, "model.encoder.layers.0.fc1.bias", **{"model.encoder.layers.0.fc1.bias": torch.zeros(48)})
    with pytest.raises(WeightsError, match=r"1 have another shape \(layers\.0\.fc1\.bias is \[48\], expected \[64\]\)"):
        _build(_spec(), copy)


def test_missing_parameters(copy: Path) -> None:
    _drop(copy, "model.encoder.layers.1.self_attn.v_proj.weight")
    with pytest.raises(WeightsError, match=r"1 of 37 parameters are missing \(layers\.1\.self_attn\.v_proj\.weight\)"):
        _build(_spec(), copy)


def test_the_decoder_may_be_missing(folder: Path, copy: Path) -> None:
    _drop(copy, *(name for name in _names(copy) if "decoder" in name))
    assert _build(_spec(), copy).weights.digest == _build(_spec(), folder).weights.digest


def _names(folder: Path) -> list[str]:
    from safetensors import safe_open

    with safe_open(folder / "model.safetensors", framework="pt") as file:
        return list(file.keys())


@pytest.mark.parametrize("name", ["model.encoder.adapter.weight", "classifier.weight"])
def test_unknown_parameters(copy: Path, name: str) -> None:
    _drop(copy, **{name: torch.zeros(3, 32)})
    with pytest.raises(WeightsError, match=r"1 are not known \((adapter|classifier)\.weight\)"):
        _build(_spec(), copy)


@pytest.mark.parametrize("kept", [0, 5, 20000])
def test_half_downloaded(copy: Path, kept: int) -> None:
    path = copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(WeightsError, match=r"cannot be read as weights .*half-downloaded.*Delete it"):
        _build(_spec(), copy)


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
@pytest.mark.parametrize("content", ['{"model_type": "whis', "[1, 2]", ""])
def test_damaged_json(copy: Path, name: str, content: str) -> None:
    (copy / name).write_text(content)
    with pytest.raises(WeightsError, match=rf"{name} cannot be read .*should be JSON"):
        _build(_spec(), copy)


@pytest.mark.slow
def test_full_size_equals_upstream() -> None:
    from transformers import WhisperConfig, WhisperFeatureExtractor
    from transformers.models.whisper.modeling_whisper import WhisperEncoder as Model

    from pipelines.encoders.random_weights import initialise

    encoder = load_encoder("whisper", weights="random")
    # openai/whisper-base, from its config.json.
    config = WhisperConfig(d_model=512, encoder_layers=6, encoder_attention_heads=8, encoder_ffn_dim=2048)
    with random_initialisation(encoder.spec):
        model = Model(config).eval()
        initialise(model)
    assert state_digest(model.state_dict()) == encoder.weights.digest
    clips = [speechlike(30_001, seed=1), speechlike(100, seed=2)]
    extractor = WhisperFeatureExtractor()
    for clip, encoded in zip(clips, encoder.encode(clips), strict=True):
        features = extractor(clip.numpy(), sampling_rate=16000, return_tensors="pt").input_features
        with torch.inference_mode():
            states = model(features, output_hidden_states=True).hidden_states
        assert list(encoded) == [f"layer_{index:02d}" for index in range(7)]
        for frames, expected in zip(encoded.values(), states, strict=True):
            assert relative_error(frames, expected[0, : len(frames)]) <= TOLERANCE
