"""ECAPA-TDNN against SpeechBrain's own one-by-one call, on a checkpoint in SpeechBrain's own format."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pipelines.encoders.catalogue import EncoderSpec, encoder_spec, load_encoder
from pipelines.encoders.ecapa import ECAPAEncoder
from pipelines.encoders.torchaudio_guard import ensure_torchaudio_importable
from pipelines.encoders.weights import state_digest
from pipelines.errors import WeightsError
from tests.encoders.batches import (
    TOLERANCE,
    assert_batched_equals_alone,
    ragged_clips,
    relative_error,
    speechlike,
)
from tests.encoders.in_windows import distance, embeddings_of_windows

ensure_torchaudio_importable()

FILE = "embedding_model.ckpt"


def _spec(size: str = "ecapa-tiny", **settings: object) -> EncoderSpec:
    """A size with the file of the full one, but without its sha256: random weights cannot have that."""
    full, sized = encoder_spec("ecapa"), encoder_spec(size)
    return dataclasses.replace(
        sized,
        repository=full.repository,
        revision=full.revision,
        files=(dataclasses.replace(full.files[0], sha256=""),),
        licence=full.licence,
        settings={**sized.settings, **settings},
    )


def _network(spec: EncoderSpec) -> Any:
    """SpeechBrain's network, no parameter or statistic at its initial constant (ones and zeros hide mistakes)."""
    from speechbrain.lobes.models.ECAPA_TDNN import ECAPA_TDNN

    with torch.random.fork_rng():
        torch.manual_seed(5)
        network = ECAPA_TDNN(input_size=80, lin_neurons=spec.dim, **spec.settings)
        with torch.no_grad():
            for name, tensor in network.state_dict().items():
                if name.endswith("running_var"):
                    tensor.uniform_(0.2, 3.0)
                elif name.endswith("norm.weight"):
                    tensor.normal_()  # of either sign
                elif tensor.is_floating_point():
                    tensor.add_(torch.randn_like(tensor) * 0.1)
            network.blocks[0].norm.norm.running_var.mul_(100.0)  # features are in dB
    return network.eval()


def _upstream(network: Any) -> Callable[[Tensor], Tensor]:
    """What EncoderClassifier.encode_batch of this checkpoint does with one clip: features, normalisation, network."""
    from speechbrain.lobes.features import Fbank
    from speechbrain.processing.features import InputNormalization

    features, normalise = Fbank(n_mels=80), InputNormalization(norm_type="sentence", std_norm=False)

    @torch.inference_mode()
    def encode(clip: Tensor) -> Tensor:
        clip = F.pad(clip, (0, max(0, 640 - len(clip))))[None]
        whole = torch.ones(1)
        embedding: Tensor = network(normalise(features(clip), whole), whole)
        return embedding[0]  # [1, D]

    return encode


def _build(spec: EncoderSpec, folder: Path) -> ECAPAEncoder:
    return ECAPAEncoder.build(spec=spec, weights_kind="pretrained", device=torch.device("cpu"), weights_dir=folder)


def _ragged_batch(encoder: ECAPAEncoder) -> list[Tensor]:
    """Those of all encoders, silence alone, and a click at the very end of noise far below it."""
    generator = torch.Generator().manual_seed(3)
    click = torch.randn(160 * 50 + 159, generator=generator) * 1e-6  # more than 80 dB below
    click[-1] = 1.0  # at the edge of the last frame's window, in the middle of the next one's
    return [*ragged_clips(encoder), torch.zeros(5000), click]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ecapa")
    torch.save(_network(_spec()).state_dict(), folder / FILE)
    return folder


@pytest.fixture(scope="module")
def encoder(folder: Path) -> ECAPAEncoder:
    return _build(_spec(), folder)


def test_batched_equals_upstream_one_by_one(encoder: ECAPAEncoder) -> None:
    upstream = _upstream(_network(encoder.spec))
    clips = _ragged_batch(encoder)
    for clip, encoded in zip(clips, encoder.encode(clips), strict=True):
        assert list(encoded) == ["embedding"]
        assert encoded["embedding"].shape == (1, encoder.spec.dim)
        assert relative_error(encoded["embedding"], upstream(clip)) <= TOLERANCE, len(clip)


def test_batched_equals_alone(encoder: ECAPAEncoder) -> None:
    assert_batched_equals_alone(encoder, _ragged_batch(encoder))


def test_embeddings_differ_between_clips(encoder: ECAPAEncoder) -> None:
    for model in (encoder, load_encoder("ecapa-tiny", weights="random")):
        first, second = model.encode([speechlike(20000, seed=1), speechlike(20000, seed=2)])
        assert relative_error(first["embedding"], second["embedding"]) > 0.02


def test_a_first_block_of_another_width_has_a_shortcut(tmp_path: Path) -> None:
    spec = _spec(channels=(24, 32, 32, 32, 64))
    network = _network(spec)
    assert network.blocks[1].shortcut is not None
    torch.save(network.state_dict(), tmp_path / FILE)
    encoder, clips = _build(spec, tmp_path), [speechlike(n, seed=n) for n in (9000, 700, 4321)]
    for clip, encoded in zip(clips, encoder.encode(clips), strict=True):
        assert relative_error(encoded["embedding"], _upstream(network)(clip)) <= TOLERANCE


def test_groups_on_the_cpu_cover_the_batch(encoder: ECAPAEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    clips = _ragged_batch(encoder)
    expected = encoder.encode(clips)
    for limit in (1, 5000, 10**9):  # every clip alone, a few together, all together
        monkeypatch.setattr("pipelines.encoders.fbank._CPU_GROUP_SAMPLES", limit)
        for found, whole in zip(encoder.encode(clips), expected, strict=True):
            assert relative_error(found["embedding"], whole["embedding"]) <= TOLERANCE


def test_the_cure_is_needed(encoder: ECAPAEncoder) -> None:
    """Upstream's own padded batch with its relative lengths is far off; else the other tests would show little."""
    from speechbrain.lobes.features import Fbank
    from speechbrain.processing.features import InputNormalization

    network = _network(encoder.spec)
    short, long = speechlike(8123, seed=1), speechlike(16000, seed=2)
    shares = torch.tensor([len(short) / len(long), 1.0])
    batch = torch.stack([F.pad(short, (0, len(long) - len(short))), long])
    with torch.inference_mode():
        features = InputNormalization(norm_type="sentence", std_norm=False)(Fbank(n_mels=80)(batch), shares)
        padded = network(features, shares)[0]
    assert relative_error(padded, _upstream(network)(short)) > 1e-3


def test_no_parameter_is_lost_on_the_way_to_our_layout(encoder: ECAPAEncoder) -> None:
    """Moving any parameter of SpeechBrain's network moves the embedding."""
    network = _network(encoder.spec)
    clip = speechlike(3000, seed=4)
    expected = encoder.encode([clip])[0]["embedding"]
    for name, tensor in network.state_dict().items():
        if not tensor.is_floating_point():
            continue
        kept = tensor.clone()
        tensor.mul_(2.0) if name.endswith("running_var") else tensor.add_(0.1)
        changed = ECAPAEncoder(
            spec=encoder.spec,
            weights=encoder.weights,
            device=encoder.device,
            features=encoder.features,
            network=network,
        )
        moved = changed.encode([clip])[0]["embedding"]
        tensor.copy_(kept)  # parameters may be shared, so only now
        if name == "asp.conv.conv.bias":  # the softmax over time takes it out again
            assert relative_error(moved, expected) <= TOLERANCE
        else:
            assert relative_error(moved, expected) > TOLERANCE, name


def test_result_has_no_randomness(encoder: ECAPAEncoder) -> None:
    clips = _ragged_batch(encoder)
    state = torch.get_rng_state()
    first, second = encoder.encode(clips), encoder.encode(clips)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(a["embedding"], b["embedding"]) for a, b in zip(first, second, strict=True))


def test_one_representation_of_one_frame(encoder: ECAPAEncoder) -> None:
    (representation,) = encoder.encode_padded(ragged_clips(encoder)[:3])
    assert representation.name == "embedding"
    assert representation.frames.shape == (3, 1, 32)
    assert representation.num_frames.tolist() == [1, 1, 1]
    assert encoder.num_frames(123456) == 1


def test_long_recordings_come_in_windows(encoder: ECAPAEncoder) -> None:
    """Close to the embedding in one piece, not equal; tests/real/test_long_recordings.py has the figure on speech."""
    recording, another = speechlike(150 * 16000, seed=1), speechlike(150 * 16000, seed=2)
    whole, other = (encoder.encode([samples])[0]["embedding"][0] for samples in (recording, another))
    embeddings, mean = embeddings_of_windows(encoder, recording)
    assert len(embeddings) == 3
    assert TOLERANCE < distance(mean, whole) < 0.2 * distance(other, whole)


def test_random_weights_depend_on_the_name_only() -> None:
    torch.manual_seed(1)
    first = load_encoder("ecapa-tiny", weights="random")
    torch.manual_seed(2)
    second = load_encoder("ecapa-tiny", weights="random")
    assert first.weights == second.weights
    assert (first.weights.kind, first.weights.revision) == ("random", "")
    other = ECAPAEncoder.build(
        spec=dataclasses.replace(first.spec, name="other-tiny"), weights_kind="random", device=torch.device("cpu")
    )
    assert other.weights.digest != first.weights.digest


def test_full_size_has_the_parameters_of_the_checkpoint() -> None:
    """The published file holds 231 tensors, 31 of them counters, in 83,316,686 bytes, which leaves 92,630 for their names."""
    from speechbrain.lobes.models.ECAPA_TDNN import ECAPA_TDNN

    with torch.device("meta"):
        network = ECAPA_TDNN(input_size=80, lin_neurons=192, **encoder_spec("ecapa").settings)
    state = network.state_dict()
    assert len(state) == 231
    assert sum(tensor.numel() * tensor.element_size() for tensor in state.values()) == 83_224_056
    assert sum(parameter.numel() for parameter in network.parameters()) == 20_767_552


def test_pretrained_records_its_source_and_leaves_the_generator_alone(folder: Path) -> None:
    before = torch.get_rng_state()
    weights = _build(_spec(), folder).weights
    assert torch.equal(torch.get_rng_state(), before)
    assert (weights.kind, weights.revision, weights.licence) == ("pretrained", "unverified", "Apache-2.0")
    assert weights.source == str(folder / FILE)
    assert weights.digest == state_digest(_network(_spec()).state_dict())


def test_weights_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.delenv("HYFUSE_WEIGHTS", raising=False)
    with pytest.raises(
        WeightsError, match=r"'ecapa' are not here: embedding_model\.ckpt .*spkrec-ecapa-voxceleb at revis"
    ):
        load_encoder("ecapa", weights_dir=tmp_path)


def test_file_of_another_digest(folder: Path) -> None:
    with pytest.raises(WeightsError, match=r"is not the file that 'ecapa' needs: its sha256 is .* expected 0575cb64"):
        load_encoder("ecapa", weights_dir=folder)


def test_another_size(folder: Path) -> None:
    with pytest.raises(
        WeightsError, match=r"does not fit 'ecapa': .*blocks\.0\.conv\.conv\.weight is \[32, 80, 5\], expec"
    ):
        _build(_spec("ecapa"), folder)


def test_another_architecture(tmp_path: Path) -> None:
    from speechbrain.lobes.models.Xvector import Xvector

    torch.save(Xvector(in_channels=80, lin_neurons=32, tdnn_channels=[32] * 5).state_dict(), tmp_path / FILE)
    with pytest.raises(
        WeightsError, match=r"does not fit 'ecapa-tiny': .*missing \(blocks\.0\.conv.*not known \(blocks\.0"
    ):
        _build(_spec(), tmp_path)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda state: state.pop("asp.conv.conv.bias"), r"1 of 231 parameters are missing \(asp\.conv\.conv\.bias\)"),
        (lambda state: state.update({"classifier.w": torch.zeros(2)}), r"1 are not known \(classifier\.w\)"),
        (lambda state: state["mfa.conv.conv.weight"].fill_(torch.nan), r"1 hold values that are not finite"),
    ],
)
def test_parameters_that_do_not_fit(
    folder: Path, tmp_path: Path, edit: Callable[[dict[str, Tensor]], object], message: str
) -> None:
    state = torch.load(folder / FILE, weights_only=True)
    edit(state)
    torch.save(state, tmp_path / FILE)
    with pytest.raises(WeightsError, match=message):
        _build(_spec(), tmp_path)


@pytest.mark.parametrize("kept", [0, 5, 20000])
def test_half_downloaded(folder: Path, tmp_path: Path, kept: int) -> None:
    content = (folder / FILE).read_bytes()
    assert len(content) > kept
    (tmp_path / FILE).write_bytes(content[:kept])
    with pytest.raises(WeightsError, match=r"cannot be read as weights .*half-downloaded.*Delete it"):
        _build(_spec(), tmp_path)


@pytest.mark.slow
def test_full_size_equals_upstream() -> None:
    from pipelines.encoders.random_weights import initialise
    from pipelines.encoders.weights import random_initialisation

    encoder = load_encoder("ecapa", weights="random")
    from speechbrain.lobes.models.ECAPA_TDNN import ECAPA_TDNN

    with random_initialisation(encoder.spec):
        network = ECAPA_TDNN(input_size=80, lin_neurons=192, **encoder.spec.settings).eval()
        initialise(network)
    network.blocks[0].norm.norm.running_var.fill_(400.0)
    assert state_digest(network.state_dict()) == encoder.weights.digest
    clips = ragged_clips(encoder)
    for clip, encoded in zip(clips, encoder.encode(clips), strict=True):
        assert relative_error(encoded["embedding"], _upstream(network)(clip)) <= TOLERANCE
