"""The wav2vec2-like encoders against transformers' own one-by-one call, on checkpoints in transformers' own format."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pipelines.encoders import cpu_linear, ssl_layers
from pipelines.encoders.catalogue import CATALOGUE, encoder_names, encoder_spec, load_encoder
from pipelines.encoders.padding import pad_batch, valid_mask
from pipelines.encoders.ssl import SSLEncoder
from pipelines.encoders.ssl_layers import BatchFrames, run_layers
from pipelines.encoders.wavlm import GatedPositionBias
from pipelines.encoders.weights import random_initialisation
from tests.encoders.in_windows import frames_of_windows
from tests.encoders.ssl_checkpoints import (
    FURTHER_KINDS,
    build,
    checkpoint_spec,
    kind_spec,
    ragged_batch,
    relative,
    save_checkpoint,
    upstream_call,
    upstream_class,
)

TOLERANCE = 1e-5

BF16_TOLERANCE = 3e-2
"""From float32, and between ways to compute the same in bf16, of a clip's frames: measured at most 2e-2 on these networks."""

BF16_BATCH_TOLERANCE = 1e-2
"""Between batches: measured 6e-3 for one clip, where float32 statistics round otherwise, and nothing for all others."""

NAMES = [name for name in encoder_names() if CATALOGUE[name].factory.endswith("ssl:SSLEncoder")]


@dataclasses.dataclass(frozen=True)
class Case:
    """One architecture, its encoder in either precision, and upstream's call, all with the same weights."""

    encoder: SSLEncoder
    bf16: SSLEncoder
    upstream: Callable[[Tensor], list[Tensor]]


@pytest.fixture(scope="module", params=[*NAMES, *FURTHER_KINDS])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    spec = kind_spec(request.param)
    folder = save_checkpoint(spec, tmp_path_factory.mktemp("checkpoint"))
    return Case(build(spec, folder), build(spec, folder, "bf16"), upstream_call(spec, folder))


def test_the_catalogue_has_the_family() -> None:
    assert NAMES == [
        "wavlm",
        "wavlm-base-plus",
        "wavlm-large",
        "hubert",
        "hubert-large",
        "wav2vec2",
        "wav2vec2-ctc",
        "xls-r",
        "mms",
        "unispeech-sat",
        "distilhubert",
    ]
    assert encoder_spec("wavlm-base") is encoder_spec("wavlm")


@pytest.mark.parametrize("name", NAMES)
def test_entries_agree_with_their_architecture(name: str) -> None:
    spec = encoder_spec(name)
    config = upstream_class(spec).config_class(**{k: v for k, v in spec.settings.items() if k != "do_normalize"})
    assert (config.hidden_size, config.num_hidden_layers) == (spec.dim, len(spec.representations) - 1)
    assert spec.default_representation == spec.representations[-1]
    assert config.hidden_size // config.num_attention_heads in (64, 80)
    assert config.intermediate_size == 4 * config.hidden_size
    assert spec.precisions == ("float32", "bf16")
    assert bool(spec.revision) != ("none is pinned" in spec.notes)


# ------------------------------------------------------------------------------------------------ the promise


def test_batched_equals_upstream_one_by_one(case: Case) -> None:
    clips = ragged_batch()
    for clip, encoded in zip(clips, case.encoder.encode(clips), strict=True):
        assert list(encoded) == list(case.encoder.spec.representations)
        for frames, expected in zip(encoded.values(), case.upstream(clip), strict=True):
            assert frames.shape == expected.shape == (case.encoder.num_frames(len(clip)), case.encoder.spec.dim)
            assert relative(frames, expected) < TOLERANCE


def test_batched_equals_alone_in_any_order(case: Case) -> None:
    _assert_alone(case.encoder, TOLERANCE)


def _assert_alone(encoder: SSLEncoder, tolerance: float) -> None:
    clips = ragged_batch()
    alone = [encoder.encode([clip])[0] for clip in clips]
    for order in (range(len(clips)), [5, 2, 9, 0, 7, 10, 1, 8, 3, 6, 4]):
        together = encoder.encode([clips[index] for index in order])
        for index, encoded in zip(order, together, strict=True):
            for name, frames in encoded.items():
                assert relative(frames, alone[index][name]) < tolerance


def test_whole_batch_at_once_equals_pieces(case: Case) -> None:
    # the way it goes on a GPU
    waveforms, lengths = pad_batch(ragged_batch(), min_samples=case.encoder.min_samples)
    for encoder, tolerance in ((case.encoder, TOLERANCE), (case.bf16, BF16_TOLERANCE)):
        with torch.inference_mode():
            pieces = encoder.front_end.convolve(waveforms, lengths, in_pieces=True)
            whole = encoder.front_end.convolve(waveforms, lengths, in_pieces=False)
        assert whole.shape == pieces.shape
        assert whole.dtype == pieces.dtype
        for row, length in enumerate(lengths.tolist()):
            frames = encoder.num_frames(length)
            assert relative(whole[row, :frames].float(), pieces[row, :frames].float()) < tolerance


def test_queries_in_many_runs(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    clips = ragged_batch()
    expected, expected_bf16 = case.encoder.encode(clips), case.bf16.encode(clips)
    monkeypatch.setattr(ssl_layers, "_SCORES", {"cpu": 7 * len(clips) * 4 * 93})
    monkeypatch.setattr(ssl_layers, "_CACHED_SCORES", 4 * 93 * 7)
    for encoder, wanted, tolerance in ((case.encoder, expected, TOLERANCE), (case.bf16, expected_bf16, BF16_TOLERANCE)):
        for encoded, one in zip(encoder.encode(clips), wanted, strict=True):
            assert all(relative(encoded[name], one[name]) < tolerance for name in one)


def test_without_onednn(case: Case, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """Another processor, or another torch: plain layers, nothing packed."""
    clips = ragged_batch()
    expected, expected_bf16 = case.encoder.encode(clips), case.bf16.encode(clips)
    monkeypatch.setattr(cpu_linear, "_has_operators", lambda: False)
    folder = save_checkpoint(case.encoder.spec, tmp_path)
    for precision, wanted, tolerance in (("float32", expected, TOLERANCE), ("bf16", expected_bf16, BF16_TOLERANCE)):
        plain = build(case.encoder.spec, folder, precision)
        assert not any("Packed" in type(module).__name__ for module in plain.model.modules())
        for encoded, one in zip(plain.encode(clips), wanted, strict=True):
            assert all(relative(encoded[name], one[name]) < tolerance for name in one)


def test_the_cure_is_needed(tmp_path: Any) -> None:
    """Upstream's own padded batch, with its attention mask, is far off; else the other tests would show little."""
    spec = checkpoint_spec("hubert")
    model = upstream_class(spec).from_pretrained(save_checkpoint(spec, tmp_path)).eval()
    short, long = torch.randn(4000) * 0.05, torch.randn(16000) * 0.05
    mask = torch.ones(2, 16000, dtype=torch.long)
    mask[0, 4000:] = 0
    with torch.inference_mode():
        padded = model(torch.stack([F.pad(short, (0, 12000)), long]), attention_mask=mask).last_hidden_state[0, :12]
        alone = model(short[None]).last_hidden_state[0]
    assert relative(padded, alone) > 0.01


# ---------------------------------------------------------------------------------------------------- bf16


def test_bf16_is_near_float32_and_independent_of_its_batch(case: Case) -> None:
    clips = ragged_batch()
    assert case.bf16.precision == "bf16"
    assert case.bf16.weights == case.encoder.weights  # the digest is of what was loaded
    for encoded, expected in zip(case.bf16.encode(clips), case.encoder.encode(clips), strict=True):
        for name, frames in encoded.items():
            assert frames.dtype == torch.float32
            assert relative(frames, expected[name]) < BF16_TOLERANCE
    assert relative(case.bf16.encode(clips[:1])[0]["layer_02"], case.encoder.encode(clips[:1])[0]["layer_02"]) > 1e-4
    _assert_alone(case.bf16, BF16_BATCH_TOLERANCE)


def test_bf16_attention_of_a_gpu(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fused attention with masks in bf16, as on CUDA, run here on the CPU."""
    waveforms, lengths = pad_batch(ragged_batch(), min_samples=case.bf16.min_samples)
    counts = [case.bf16.num_frames(length) for length in lengths.tolist()]
    encoder = case.bf16
    with torch.inference_mode():
        features = encoder.front_end.convolve(waveforms, lengths, in_pieces=False)
        valid = valid_mask(torch.tensor(counts), features.shape[1])
        hidden = encoder.front_end.embed(features, valid)
        bias = GatedPositionBias(encoder.model, valid.shape[1]) if encoder.model.config.model_type == "wavlm" else None

        def run() -> list[Tensor]:
            return list(run_layers(encoder.model, hidden, BatchFrames(counts, valid), dtype=torch.bfloat16, bias=bias))

        expected = run()
        monkeypatch.setattr(ssl_layers, "_takes_clips_alone", lambda *_: False)
        found = run()
    for layer, wanted in zip(found, expected, strict=True):
        assert layer.dtype == torch.float32
        for row, count in enumerate(counts):
            assert relative(layer[row, :count], wanted[row, :count]) < BF16_TOLERANCE


# ------------------------------------------------------------------------------------------ how it behaves


def test_representations_come_one_by_one_and_are_not_written_over() -> None:
    for precision in ("float32", "bf16"):
        for name in ("wavlm-tiny", "hubert-large-tiny"):
            encoder = load_encoder(name, weights="random", precision=precision)
            kept, copies = [], []
            for representation in encoder.encode_padded(ragged_batch()[:3]):
                kept.append(representation.frames)
                copies.append(representation.frames.clone())
                assert representation.num_frames.tolist() == [49, 1, 1]
            assert all(torch.equal(frames, copy) for frames, copy in zip(kept, copies, strict=True))


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_long_recordings_come_in_windows(precision: str) -> None:
    """As many frames as in one piece; near it where the whole recording is alike, and not equal: attention sees a window."""
    encoder = load_encoder("xls-r-tiny", weights="random", precision=precision)
    samples = torch.randn(90_001, generator=torch.Generator().manual_seed(5)) * 0.05
    whole = encoder.encode([samples])[0]
    encoder.longest_s, encoder.context_s = 2.0, 0.5
    for name, frames in frames_of_windows(encoder, samples).items():
        assert frames.shape == whole[name].shape
        assert 1e-6 < relative(frames, whole[name]) < 0.1


@pytest.mark.parametrize(("samples", "frames"), [(1, 1), (400, 1), (719, 1), (720, 2), (16000, 49)])
def test_num_frames(samples: int, frames: int) -> None:
    assert load_encoder("hubert-tiny", weights="random").num_frames(samples) == frames


def test_random_weights_depend_on_the_name_only() -> None:
    torch.manual_seed(1)
    first = load_encoder("wavlm-tiny", weights="random")
    torch.manual_seed(2)
    second = load_encoder("wavlm-tiny", weights="random")
    other = build(dataclasses.replace(encoder_spec("wavlm-tiny"), name="other-tiny"), None)
    assert first.weights == second.weights
    assert first.weights.digest != other.weights.digest
    assert first.weights.kind == "random"
    assert "random" in first.weights.licence
    digests = {load_encoder(f"{name}-tiny", weights="random").weights.digest for name in NAMES}
    assert len(digests) == len(NAMES)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["wavlm", "hubert", "distilhubert"])
def test_full_size_equals_upstream(name: str) -> None:
    encoder = load_encoder(name, weights="random")
    settings = {key: value for key, value in encoder.spec.settings.items() if key not in ("do_normalize", "model_type")}
    model_class = upstream_class(encoder.spec)
    with random_initialisation(encoder.spec):
        model = model_class(model_class.config_class(**settings, mask_time_prob=0.0, mask_feature_prob=0.0)).eval()
    clips = [clip for clip in ragged_batch() if len(clip) >= 400]
    for clip, encoded in zip(clips, encoder.encode(clips), strict=True):
        if encoder.do_normalize:
            clip = (clip - clip.mean()) / (clip.var(unbiased=False) + 1e-7).sqrt()
        with torch.inference_mode():
            states = model(clip[None], output_hidden_states=True).hidden_states
        assert list(encoded) == [f"layer_{index:02d}" for index in range(len(states))]
        for frames, expected in zip(encoded.values(), states, strict=True):
            assert frames.shape == expected[0].shape
            assert relative(frames, expected[0]) < TOLERANCE


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("precision", "tolerance"), [("float32", TOLERANCE), ("bf16", BF16_TOLERANCE)])
def test_cuda_equals_the_cpu(name: str, precision: str, tolerance: float) -> None:
    clips = ragged_batch()
    here = load_encoder(f"{name}-tiny", weights="random", precision=precision).encode(clips)
    there = load_encoder(f"{name}-tiny", weights="random", precision=precision, device="cuda")
    for encoded, expected in zip(there.encode(clips), here, strict=True):
        for layer, frames in encoded.items():
            assert relative(frames, expected[layer]) < tolerance
