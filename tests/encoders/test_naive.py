"""The naive calls of the benchmark: every entry has one, of the right architecture, with the right numbers."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from pipelines.encoders.catalogue import CATALOGUE, encoder_names, load_encoder
from pipelines.encoders.naive import OWN_ENCODER, NaiveCall, naive_call
from pipelines.encoders.torchaudio_guard import ensure_torchaudio_importable
from pipelines.encoders.weights import WeightsInfo
from pipelines.encoders.xvector import NOISE_MEAN
from tests.encoders.batches import clip_for, relative_error, speechlike

TINY = [name for name in encoder_names(tiny=True) if CATALOGUE[name].is_tiny]
OTHER_WEIGHTS = {"dac-tiny", "mimi-tiny", "snac-tiny"}
DISCRETE = {"quantized", "semantic"}


@pytest.fixture
def no_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """speechbrain's pooling adds random noise to the mean; its mean instead, as in the encoders here."""
    ensure_torchaudio_importable()
    from speechbrain.nnet.pooling import StatisticsPooling

    def constant(_self: Any, shape: Any, device: str = "cpu") -> torch.Tensor:
        return torch.full(shape, NOISE_MEAN, device=device)

    monkeypatch.setattr(StatisticsPooling, "_get_gauss_noise", constant)


@pytest.mark.usefixtures("no_noise")
@pytest.mark.parametrize("name", TINY)
def test_shapes_and_numbers_are_the_encoders(name: str) -> None:
    encoder = load_encoder(name, weights="random")
    naive = naive_call(encoder)
    assert naive.same_weights == (name not in OTHER_WEIGHTS or naive.kind == OWN_ENCODER)
    for samples in (20011, 300):
        clip = clip_for(encoder, samples, seed=samples)
        own, found = encoder.encode([clip])[0], naive.encode(clip)
        assert [frames.shape for frames in found] == [frames.shape for frames in own.values()]
        for (representation, expected), frames in zip(own.items(), found, strict=True):
            assert bool(torch.isfinite(frames).all())
            if naive.same_weights and representation not in DISCRETE:
                assert relative_error(frames, expected) <= 1e-4


def test_only_entries_without_an_upstream_library_go_through_their_own_encoder() -> None:
    kinds = {name: naive_call(load_encoder(name, weights="random")).kind for name in TINY}
    assert {name for name, kind in kinds.items() if kind == OWN_ENCODER} <= {"speechtokenizer-tiny", "snac-tiny"}
    assert kinds["hubert-tiny"] == "transformers HubertModel"
    assert kinds["ecapa-tiny"] == "speechbrain Fbank, InputNormalization, ECAPA_TDNN"
    assert kinds["soundstream-tiny"] == "plain torch network of Conv1d"


def test_an_entry_unknown_here_goes_through_its_own_encoder() -> None:
    encoder = load_encoder("byols-tiny", weights="random")
    encoder.spec = dataclasses.replace(encoder.spec, name="something-new")
    naive = naive_call(encoder)
    clip = speechlike(9000, seed=1)
    assert (naive.kind, naive.same_weights) == (OWN_ENCODER, True)
    assert torch.equal(naive.encode(clip)[0], encoder.encode([clip])[0]["embedding"])


def test_pretrained_weights_are_not_those_of_the_naive_call() -> None:
    encoder = load_encoder("xvector-tiny", weights="random")
    encoder.weights = WeightsInfo(kind="pretrained", source="somewhere", revision="1", digest="", licence="")
    naive = naive_call(encoder)
    assert isinstance(naive, NaiveCall)
    assert not naive.same_weights


def test_building_one_leaves_the_generator_alone() -> None:
    encoders = [load_encoder(name, weights="random") for name in TINY]
    before = torch.get_rng_state()
    for encoder in encoders:
        naive_call(encoder)
    assert torch.equal(torch.get_rng_state(), before)
