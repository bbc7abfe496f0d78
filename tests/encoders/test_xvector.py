"""The x-vector against SpeechBrain's own one-by-one call, on a checkpoint in SpeechBrain's own format."""

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
from pipelines.encoders.torchaudio_guard import ensure_torchaudio_importable
from pipelines.encoders.weights import random_initialisation
from pipelines.encoders.xvector import NOISE_MEAN, XVectorEncoder
from pipelines.errors import WeightsError
from tests.encoders.batches import speechlike
from tests.encoders.in_windows import distance, embeddings_of_windows

ensure_torchaudio_importable()

TOLERANCE = 1e-5


def _spec(size: str = "xvector-tiny") -> EncoderSpec:
    """A size with the file of the full one, but without its sha256: random weights cannot have that."""
    full = encoder_spec("xvector")
    return dataclasses.replace(
        encoder_spec(size),
        repository=full.repository,
        revision=full.revision,
        files=(dataclasses.replace(full.files[0], sha256=""),),
        licence=full.licence,
    )


def _network(spec: EncoderSpec) -> Any:
    """SpeechBrain's network, no parameter or statistic at its initial constant (ones and zeros hide mistakes)."""
    from speechbrain.lobes.models.Xvector import Xvector

    with torch.random.fork_rng():
        torch.manual_seed(5)
        network = Xvector(in_channels=24, lin_neurons=spec.dim, **spec.settings)
        with torch.no_grad():
            for name, tensor in network.state_dict().items():
                if name.endswith("running_var"):
                    tensor.uniform_(0.2, 3.0)
                elif name.endswith("norm.weight"):
                    tensor.normal_()  # of either sign
                elif tensor.is_floating_point():
                    tensor.add_(torch.randn_like(tensor) * 0.2)
    return network.eval()


def _random_network(spec: EncoderSpec) -> Any:
    """SpeechBrain's network as it comes with the encoder's random weights."""
    from speechbrain.lobes.models.Xvector import Xvector

    with random_initialisation(spec):
        return Xvector(in_channels=24, lin_neurons=spec.dim, **spec.settings).eval()


def _save_checkpoint(spec: EncoderSpec, folder: Path) -> Path:
    torch.save(_network(spec).state_dict(), folder / "embedding_model.ckpt")
    return folder


def _build(spec: EncoderSpec, folder: Path | None) -> XVectorEncoder:
    return XVectorEncoder.build(
        spec=spec,
        weights_kind="random" if folder is None else "pretrained",
        device=torch.device("cpu"),
        weights_dir=folder,
        progress=None,
    )


def _upstream(network: Any) -> Callable[[Tensor], Tensor]:
    """What EncoderClassifier.encode_batch of this checkpoint does with one clip: features, normalisation, network."""
    from speechbrain.lobes.features import Fbank
    from speechbrain.processing.features import InputNormalization

    features, normalise = Fbank(n_mels=24), InputNormalization(norm_type="sentence", std_norm=False)

    @torch.inference_mode()
    def encode(clip: Tensor) -> Tensor:
        clip = F.pad(clip, (0, max(0, 480 - len(clip))))[None]
        whole = torch.ones(1)
        embedding: Tensor = network(normalise(features(clip), whole), whole)
        return embedding[0]  # [1, D]

    return encode


@pytest.fixture
def no_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """SpeechBrain with the random noise of its pooling replaced by its mean, as here."""
    _without_noise(monkeypatch)


def _without_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    from speechbrain.nnet.pooling import StatisticsPooling

    monkeypatch.setattr(
        StatisticsPooling, "_get_gauss_noise", lambda self, shape, device="cpu": torch.full(shape, NOISE_MEAN)
    )


def _ragged_batch() -> list[Tensor]:
    """Short, long, odd remainders, below the minimum, silence appended, silence alone, a click at the very end."""
    generator = torch.Generator().manual_seed(3)
    lengths = (16000, 480, 479, 1, 639, 640, 641, 30001, 8123)
    clips = [torch.randn(n, generator=generator) * 0.05 for n in lengths]
    click = torch.randn(160 * 50 + 159, generator=generator) * 1e-6  # far more than 80 dB below
    click[-1] = 1.0  # at the edge of the last frame's window, in the middle of the next one's
    return [*clips, F.pad(clips[4], (0, 9000)), torch.zeros(5000), click]


def _relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _save_checkpoint(_spec(), tmp_path_factory.mktemp("xvector"))


@pytest.fixture(scope="module")
def encoder(folder: Path) -> XVectorEncoder:
    return _build(_spec(), folder)


@pytest.mark.usefixtures("no_noise")
def test_batched_equals_upstream_one_by_one(encoder: XVectorEncoder) -> None:
    upstream = _upstream(_network(encoder.spec))
    clips = _ragged_batch()
    for clip, encoded in zip(clips, encoder.encode(clips), strict=True):
        assert list(encoded) == ["embedding"]
        assert encoded["embedding"].shape == (1, encoder.spec.dim)
        assert _relative(encoded["embedding"], upstream(clip)) < TOLERANCE


def test_upstream_noise_is_larger_than_our_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two calls of unchanged SpeechBrain differ far more than ours from the middle of many calls."""
    encoder = load_encoder("xvector-tiny", weights="random")
    upstream = _upstream(_random_network(encoder.spec))
    clip = _ragged_batch()[0]
    ours = encoder.encode([clip])[0]["embedding"]
    noisy = torch.stack([upstream(clip) for _ in range(100)])  # [calls, 1, D]
    scatter = min(_relative(one, noisy.mean(0)) for one in noisy)
    assert scatter > TOLERANCE
    assert (
        _relative(ours, noisy.mean(0)) < scatter / 2
    )  # the middle of 100 calls is known ten times better than one call
    _without_noise(monkeypatch)
    assert _relative(ours, upstream(clip)) < scatter / 30


def test_noise_mean_is_that_of_upstream() -> None:
    from speechbrain.nnet.pooling import StatisticsPooling

    with torch.random.fork_rng():
        torch.manual_seed(0)
        noise = torch.stack([StatisticsPooling()._get_gauss_noise([64]) for _ in range(2000)])
    assert noise.min() >= 0.99e-5
    assert noise.max() <= 9.01e-5
    assert noise.mean().item() == pytest.approx(NOISE_MEAN, rel=0.01)


def test_batched_equals_alone_in_any_order(encoder: XVectorEncoder) -> None:
    clips = _ragged_batch()
    alone = [encoder.encode([clip])[0]["embedding"] for clip in clips]
    for order in (range(len(clips)), [5, 2, 9, 0, 7, 11, 10, 1, 8, 3, 6, 4]):
        together = encoder.encode([clips[index] for index in order])
        for index, encoded in zip(order, together, strict=True):
            assert _relative(encoded["embedding"], alone[index]) < TOLERANCE


def test_groups_on_the_cpu_cover_the_batch(encoder: XVectorEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    clips = _ragged_batch()
    expected = encoder.encode(clips)
    for limit in (1, 5000, 10**9):  # every clip alone, a few together, all together
        monkeypatch.setattr("pipelines.encoders.fbank._CPU_GROUP_SAMPLES", limit)
        for found, whole in zip(encoder.encode(clips), expected, strict=True):
            assert _relative(found["embedding"], whole["embedding"]) < TOLERANCE


@pytest.mark.usefixtures("no_noise")
def test_the_cure_is_needed(encoder: XVectorEncoder) -> None:
    """Upstream's own padded batch with its relative lengths is far off; else the other tests would show little."""
    from speechbrain.lobes.features import Fbank
    from speechbrain.processing.features import InputNormalization

    network = _network(encoder.spec)
    short, long = _ragged_batch()[8], _ragged_batch()[0]
    shares = torch.tensor([len(short) / len(long), 1.0])
    batch = torch.stack([F.pad(short, (0, len(long) - len(short))), long])
    with torch.inference_mode():
        features = InputNormalization(norm_type="sentence", std_norm=False)(Fbank(n_mels=24)(batch), shares)
        padded = network(features, shares)[0]
    assert _relative(padded, _upstream(network)(short)) > 1e-3


def test_result_has_no_randomness(encoder: XVectorEncoder) -> None:
    clips = _ragged_batch()
    state = torch.get_rng_state()
    first, second = encoder.encode(clips), encoder.encode(clips)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(a["embedding"], b["embedding"]) for a, b in zip(first, second, strict=True))


def test_one_representation_of_one_frame(encoder: XVectorEncoder) -> None:
    (representation,) = encoder.encode_padded(_ragged_batch()[:3])
    assert representation.name == "embedding"
    assert representation.frames.shape == (3, 1, 32)
    assert representation.num_frames.tolist() == [1, 1, 1]
    assert encoder.num_frames(123456) == 1


def test_long_recordings_come_in_windows(encoder: XVectorEncoder) -> None:
    """Close to the embedding in one piece, not equal; tests/real/test_long_recordings.py has the figure on speech."""
    recording, another = speechlike(150 * 16000, seed=1), speechlike(150 * 16000, seed=2)
    whole, other = (encoder.encode([samples])[0]["embedding"][0] for samples in (recording, another))
    embeddings, mean = embeddings_of_windows(encoder, recording)
    assert len(embeddings) == 3
    assert TOLERANCE < distance(mean, whole) < 0.2 * distance(other, whole)


def test_random_weights_depend_on_the_name_only() -> None:
    torch.manual_seed(1)
    first = load_encoder("xvector-tiny", weights="random")
    torch.manual_seed(2)
    second = load_encoder("xvector-tiny", weights="random")
    other = _build(dataclasses.replace(encoder_spec("xvector-tiny"), name="other-tiny"), None)
    assert first.weights == second.weights
    assert first.weights.digest != other.weights.digest
    assert first.weights.kind == "random"


def test_full_size_has_the_parameters_of_the_checkpoint() -> None:
    network = _random_network(encoder_spec("xvector"))
    assert sum(parameter.numel() for parameter in network.parameters()) == 4_211_604


def test_pretrained_records_its_source(encoder: XVectorEncoder, folder: Path) -> None:
    assert (encoder.weights.kind, encoder.weights.revision) == ("pretrained", "unverified")
    assert str(folder) in encoder.weights.source
    assert encoder.weights.licence == "Apache-2.0"


def test_file_of_another_digest(folder: Path) -> None:
    spec = encoder_spec("xvector")  # with its sha256
    with pytest.raises(WeightsError, match=r"is not the file that 'xvector' needs: its sha256 is .* expected 9d96cafa"):
        _build(spec, folder)


def test_another_size(folder: Path) -> None:
    with pytest.raises(
        WeightsError, match=r"does not fit 'xvector': .*blocks\.0\.conv\.bias is \[32\], expected \[512\]"
    ):
        _build(_spec("xvector"), folder)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda state: state.pop("blocks.5.norm.running_var"), r"1 of 37 parameters are missing \(blocks\.5\.norm"),
        (lambda state: state.update({"classifier.w": torch.zeros(2)}), r"1 are not known \(classifier\.w\)"),
        (lambda state: state["blocks.0.conv.weight"].fill_(torch.nan), r"1 hold values that are not finite"),
    ],
)
def test_parameters_that_do_not_fit(
    folder: Path, tmp_path: Path, edit: Callable[[dict[str, Tensor]], object], message: str
) -> None:
    state = torch.load(folder / "embedding_model.ckpt", weights_only=True)
    edit(state)
    torch.save(state, tmp_path / "embedding_model.ckpt")
    with pytest.raises(WeightsError, match=message):
        _build(_spec(), tmp_path)


@pytest.mark.parametrize("kept", [0, 5, 20000])
def test_half_downloaded(folder: Path, tmp_path: Path, kept: int) -> None:
    content = (folder / "embedding_model.ckpt").read_bytes()
    assert len(content) > kept
    (tmp_path / "embedding_model.ckpt").write_bytes(content[:kept])
    with pytest.raises(WeightsError, match=r"cannot be read as weights .*half-downloaded.*Delete it"):
        _build(_spec(), tmp_path)


@pytest.mark.slow
@pytest.mark.usefixtures("no_noise")
def test_full_size_equals_upstream() -> None:
    encoder = load_encoder("xvector", weights="random")
    upstream = _upstream(_random_network(encoder.spec))
    clips = _ragged_batch()
    for clip, encoded in zip(clips, encoder.encode(clips), strict=True):
        assert _relative(encoded["embedding"], upstream(clip)) < TOLERANCE
