"""Checkpoints of the wav2vec2-like encoders as they are found: old and new formats, with heads, damaged, of another model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pipelines.encoders.catalogue import encoder_spec, load_encoder
from pipelines.encoders.weights import state_digest
from pipelines.errors import ConfigError, WeightsError
from tests.encoders.ssl_checkpoints import (
    build,
    checkpoint_spec,
    kind_spec,
    ragged_batch,
    random_model,
    relative,
    save_checkpoint,
    upstream_call,
)

TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(checkpoint_spec("wavlm"), tmp_path_factory.mktemp("wavlm"))


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(folder, tmp_path / "checkpoint")


def test_loading_says_nothing_and_records_the_source(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for precision in ("float32", "bf16"):
        encoder = build(checkpoint_spec("wavlm"), folder, precision)
        assert capfd.readouterr() == ("", "")
        assert (encoder.weights.kind, encoder.weights.revision) == ("pretrained", "unverified")
        assert encoder.weights.source == str(folder)
        assert encoder.weights.licence == encoder_spec("wavlm").licence
        assert not any(parameter.requires_grad for parameter in encoder.model.parameters())


@pytest.mark.parametrize("kind", ["wavlm", "hubert-large", "distilhubert", "data2vec-audio"])
def test_every_parameter_is_loaded_as_it_was_saved(kind: str, tmp_path: Path) -> None:
    spec = kind_spec(kind)
    saved = random_model(spec).state_dict()
    del saved["masked_spec_embed"]  # for training only
    if kind != "data2vec-audio":
        assert "encoder.pos_conv_embed.conv.parametrizations.weight.original0" in saved
    assert build(spec, save_checkpoint(spec, tmp_path)).weights.digest == state_digest(saved)


# ------------------------------------------------------------------------------------------------- formats


def _state(folder: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return dict(load_file(folder / "model.safetensors"))


def _rewrite(folder: Path, *names: str, **added: Tensor) -> None:
    """Leave parameters out of a checkpoint, or put some in."""
    from safetensors.torch import save_file

    state = _state(folder)
    for name in names:
        del state[name]
    save_file({**state, **added}, folder / "model.safetensors", metadata={"format": "pt"})


def _edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def _old_format(folder: Path) -> None:
    """As most of the Hub stores it: a pickled state dict with the older names of weight normalisation."""
    renamed = {}
    for name, tensor in _state(folder).items():
        name = name.replace("pos_conv_embed.conv.parametrizations.weight.original0", "pos_conv_embed.conv.weight_g")
        renamed[
            name.replace("pos_conv_embed.conv.parametrizations.weight.original1", "pos_conv_embed.conv.weight_v")
        ] = tensor
    assert sum(name.endswith(("conv.weight_g", "conv.weight_v")) for name in renamed) == 2
    torch.save(renamed, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def test_old_names_of_weight_norm_give_the_same_weights(folder: Path, copy: Path) -> None:
    _old_format(copy)
    old, new = build(checkpoint_spec("wavlm"), copy), build(checkpoint_spec("wavlm"), folder)
    assert old.weights.digest == new.weights.digest
    clip = ragged_batch()[0]
    assert torch.equal(old.encode([clip])[0]["layer_02"], new.encode([clip])[0]["layer_02"])


@pytest.mark.parametrize("name", ["wavlm", "unispeech-sat"])
def test_checkpoint_without_the_mask_vector(name: str, tmp_path: Path) -> None:
    spec = checkpoint_spec(name)
    checkpoint = save_checkpoint(spec, tmp_path)
    expected = build(spec, checkpoint).weights.digest
    _rewrite(checkpoint, "masked_spec_embed")
    assert build(spec, checkpoint).weights.digest == expected


def test_half_precision_checkpoint(folder: Path, copy: Path) -> None:
    _rewrite(copy, *(state := _state(copy)), **{name: tensor.half() for name, tensor in state.items()})
    encoder = build(checkpoint_spec("wavlm"), copy)
    assert encoder.model.encoder.layer_norm.weight.dtype == torch.float32
    clip = ragged_batch()[0]
    expected = build(checkpoint_spec("wavlm"), folder).encode([clip])[0]["layer_02"]
    assert relative(encoder.encode([clip])[0]["layer_02"], expected) < 1e-2


# --------------------------------------------------------------------------------------------------- heads


@pytest.mark.parametrize(
    ("kind", "head"),
    [
        ("wav2vec2", "ForPreTraining"),
        ("wav2vec2", "ForCTC"),
        ("xls-r", "ForSequenceClassification"),
        ("wav2vec2", "ForAudioFrameClassification"),
        ("wav2vec2", "ForXVector"),
        ("hubert", "ForCTC"),
        ("hubert-large", "ForSequenceClassification"),
        ("distilhubert", "ForCTC"),
        ("wavlm", "ForXVector"),
        ("wavlm-large", "ForCTC"),
        ("unispeech-sat", "ForPreTraining"),
        ("unispeech-sat", "ForCTC"),
        ("unispeech", "ForPreTraining"),
        ("data2vec-audio", "ForCTC"),
    ],
)
@pytest.mark.parametrize("old", [False, True])
def test_checkpoint_with_a_head(kind: str, head: str, old: bool, tmp_path: Path) -> None:
    """Its encoder is loaded, the head is not; the numbers are transformers' own, which drops it likewise."""
    spec = kind_spec(kind)
    small = {"vocab_size": 12, "tdnn_dim": (8, 8, 8, 8, 16), "xvector_output_dim": 8, "use_weighted_layer_sum": True}
    codes = {"codevector_dim": 16, "proj_codevector_dim": 16, "classifier_proj_size": 8, "num_codevectors_per_group": 4}
    checkpoint = save_checkpoint(spec, tmp_path, head, **small, **codes)
    if old and kind != "data2vec-audio":
        _old_format(checkpoint)
    encoder, upstream = build(spec, checkpoint), upstream_call(spec, checkpoint)
    clip = ragged_batch()[0]
    for frames, expected in zip(encoder.encode([clip])[0].values(), upstream(clip), strict=True):
        assert relative(frames, expected) < TOLERANCE


@pytest.mark.parametrize("kind", ["wav2vec2", "wavlm-large", "data2vec-audio"])
def test_adapter_behind_the_encoder_is_left_out(kind: str, tmp_path: Path) -> None:
    spec = kind_spec(kind)
    encoder = build(spec, save_checkpoint(spec, tmp_path, add_adapter=True, num_adapter_layers=1))
    assert encoder.num_frames(16000) == 49
    encoded = encoder.encode(ragged_batch()[:1])[0]
    assert list(encoded) == list(spec.representations)
    assert encoded["layer_02"].shape == (49, 32)


def test_feature_extractor_in_the_processor_of_transformers_5(copy: Path) -> None:
    settings = json.loads((copy / "preprocessor_config.json").read_text())
    (copy / "preprocessor_config.json").unlink()
    processor = {"processor_class": "Wav2Vec2Processor", "feature_extractor": {**settings, "do_normalize": True}}
    (copy / "processor_config.json").write_text(json.dumps(processor))
    assert build(checkpoint_spec("wavlm"), copy).do_normalize


# -------------------------------------------------------------------------------------------------- damage


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
        build(checkpoint_spec("wavlm"), copy)
    assert "microsoft/wavlm-base (revision efa81aae" in str(caught.value)


def test_an_entry_without_a_revision_names_none(tmp_path: Path) -> None:
    checkpoint = save_checkpoint(checkpoint_spec("distilhubert"), tmp_path)
    _edit(checkpoint / "config.json", hidden_size=768)
    with pytest.raises(WeightsError, match="Put the files of ntu-spml/distilhubert there"):
        build(checkpoint_spec("distilhubert"), checkpoint)


def test_config_that_does_not_fit_its_weights(copy: Path) -> None:
    _edit(copy / "config.json", intermediate_size=48)
    with pytest.raises(WeightsError, match=r"cannot be loaded .* of another architecture than its config\.json"):
        build(checkpoint_spec("wavlm"), copy)


def test_missing_parameters(copy: Path) -> None:
    name = "encoder.pos_conv_embed.conv.parametrizations.weight.original0"
    _rewrite(copy, name if name in _state(copy) else "encoder.pos_conv_embed.conv.weight_g")
    with pytest.raises(WeightsError, match=r"1 parameters are missing \(encoder\.pos_conv_embed.*would stay random"):
        build(checkpoint_spec("wavlm"), copy)


@pytest.mark.parametrize(
    "name", ["encoder.layers.7.layer_norm.weight", "feature_extractor.conv_layers.9.conv.weight", "extra.weight"]
)
def test_unknown_parameters(copy: Path, name: str) -> None:
    _rewrite(copy, **{name: torch.zeros(3, 32)})
    with pytest.raises(
        WeightsError, match=rf"1 are unknown \({name}\).*Expected is the checkpoint microsoft/wavlm-base"
    ):
        build(checkpoint_spec("wavlm"), copy)


@pytest.mark.parametrize("kept", [0, 5, 20000])
def test_half_downloaded_safetensors(copy: Path, kept: int) -> None:
    path = copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(WeightsError, match=r"cannot be loaded .*half-downloaded.*Delete it and get it again"):
        build(checkpoint_spec("wavlm"), copy)


def test_half_downloaded_pickle(copy: Path) -> None:
    _old_format(copy)
    path = copy / "pytorch_model.bin"
    path.write_bytes(path.read_bytes()[:20000])
    with pytest.raises(WeightsError, match=r"cannot be loaded .*half-downloaded"):
        build(checkpoint_spec("wavlm"), copy)


def test_pickle_that_holds_more_than_tensors(copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    torch.save({"code": Path("x")}, copy / "pytorch_model.bin")
    with pytest.raises(WeightsError, match="cannot be loaded"):
        build(checkpoint_spec("wavlm"), copy)


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
@pytest.mark.parametrize("content", ['{"model_type": "wav', "[1, 2]", ""])
def test_damaged_json(copy: Path, name: str, content: str) -> None:
    (copy / name).write_text(content)
    with pytest.raises(WeightsError, match=rf"{name} cannot be read .*should be JSON"):
        build(checkpoint_spec("wavlm"), copy)


def test_checkpoint_for_another_rate(copy: Path) -> None:
    _edit(copy / "preprocessor_config.json", sampling_rate=8000)
    with pytest.raises(WeightsError, match="asks for 8000 Hz; 'wavlm-tiny' works at 16000 Hz"):
        build(checkpoint_spec("wavlm"), copy)


def test_precision_that_is_not_offered() -> None:
    with pytest.raises(ConfigError, match="'wavlm-tiny' is computed in float32 or bf16, not in 'float16'"):
        load_encoder("wavlm-tiny", weights="random", precision="float16")
