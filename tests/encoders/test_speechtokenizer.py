"""SpeechTokenizer against the speechtokenizer package's own one-by-one call, on a checkpoint in its own format.

The package declares what its training needs (accelerate, matplotlib and more), so it is installed alone::

    pip install --no-deps speechtokenizer==1.0.1
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import json
import shutil
import sys
import types
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pipelines.encoders import speechtokenizer
from pipelines.encoders.catalogue import EncoderSpec, encoder_spec, load_encoder
from pipelines.encoders.speechtokenizer import SpeechTokenizerEncoder
from pipelines.errors import WeightsError
from tests.encoders.batches import (
    TOLERANCE,
    assert_batched_equals_alone,
    frames_off,
    ragged_clips,
    relative_error,
    speechlike,
)
from tests.encoders.in_windows import distance, frames_of_windows

_FOLDER = "speechtokenizer_hubert_avg"
_CONFIG = {
    "resblock": "1",
    "n_filters": 4,
    "strides": [8, 5, 4, 2],
    "dimension": 32,
    "semantic_dimension": 24,
    "bidirectional": True,
    "dilation_base": 2,
    "residual_kernel_size": 3,
    "n_residual_layers": 1,
    "lstm_layers": 2,
    "activation": "ELU",
    "sample_rate": 16000,
    "codebook_size": 64,
    "n_q": 4,
}
"""The published ``config.json``, narrower: what the tiny size expects."""


def _package_model(config: dict[str, Any]) -> Any:
    """The package's model, without running the package's ``__init__``, which imports what only training needs."""
    if "speechtokenizer" not in sys.modules:
        found = importlib.util.find_spec("speechtokenizer")
        if found is None or found.submodule_search_locations is None:
            pytest.skip("needs the package: pip install --no-deps speechtokenizer==1.0.1")
        package = types.ModuleType("speechtokenizer")
        package.__path__ = list(found.submodule_search_locations)
        sys.modules["speechtokenizer"] = package
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit.script, and the older weight normalisation
        return importlib.import_module("speechtokenizer.model").SpeechTokenizer(config)


def _spec() -> EncoderSpec:
    """The tiny size with the files of the full one."""
    full, tiny = encoder_spec("speechtokenizer"), encoder_spec("speechtokenizer-tiny")
    return dataclasses.replace(full, dim=tiny.dim, settings=tiny.settings)


@pytest.fixture(scope="module")
def model() -> Any:
    """Decoder included, with weights that let the signal pass and filled codebooks."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(12)
        model = _package_model(_CONFIG)
        for name, tensor in model.state_dict().items():
            if name.endswith("weight_g"):
                tensor.mul_(1.8)
            elif "lstm" in name:
                tensor.mul_(3.0)
            elif name.endswith("_codebook.embed"):
                tensor.normal_(0.0, 0.5 * 0.8 ** int(name.split(".")[3]))
            elif name.endswith("inited"):
                tensor.fill_(1.0)  # or the package would run k-means on the first batch
    return model.eval()


@pytest.fixture(scope="module")
def folder(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("speechtokenizer")
    (folder / _FOLDER).mkdir()
    torch.save(model.state_dict(), folder / _FOLDER / "SpeechTokenizer.pt")
    (folder / _FOLDER / "config.json").write_text(json.dumps(_CONFIG))
    return folder


def _build(folder: Path) -> SpeechTokenizerEncoder:
    return SpeechTokenizerEncoder.build(
        spec=_spec(), weights_kind="pretrained", device=torch.device("cpu"), weights_dir=folder
    )


@torch.inference_mode()
def _upstream(model: Any, clip: Tensor) -> dict[str, Tensor]:
    """What the package makes of one clip, [T, D] each."""
    audio = F.pad(clip, (0, max(0, 961 - clip.numel())))[None, None]
    frames = {
        "latent": model.encoder(audio),
        "quantized": model.quantizer.decode(model.encode(audio)),
        "semantic": model.forward_feature(audio, layers=[0])[0],
    }
    return {name: value[0].T for name, value in frames.items()}


def _clips(encoder: SpeechTokenizerEncoder) -> list[Tensor]:
    """Also every remainder that a stride can leave, and clips of several pieces."""
    remainders = [speechlike(6400 + 13 * index, seed=30 + index) for index in range(25)]
    return [*ragged_clips(encoder), *remainders, speechlike(16000 * 9 + 101, seed=21)]


def test_equals_the_package_one_by_one(model: Any, folder: Path) -> None:
    encoder = _build(folder)
    clips = _clips(encoder)
    off = total = 0
    for clip, found in zip(clips, encoder.encode(clips), strict=True):
        expected = _upstream(model, clip)
        latent = expected["latent"]
        assert list(found) == list(expected)
        # The signal passes, so an error would show.
        assert len(latent) < 20 or latent.std(0).mean() > 0.2 * latent.abs().mean()
        assert relative_error(found["latent"], latent) <= TOLERANCE
        for name in ("quantized", "semantic"):
            off += frames_off(found[name], expected[name])
            total += len(latent)
    assert off <= total // 200


def test_batched_equals_alone(folder: Path) -> None:
    encoder = _build(folder)
    assert_batched_equals_alone(encoder, _clips(encoder))


def test_tiny_batched_equals_alone() -> None:
    encoder = load_encoder("speechtokenizer-tiny", weights="random")
    assert_batched_equals_alone(encoder, ragged_clips(encoder))


def test_whole_batch_at_once_equals_clip_by_clip(folder: Path) -> None:
    """What runs on a GPU: clips of unequal length in one pass, each mirrored at its own end."""
    encoder = _build(folder)
    clips = _clips(encoder)
    lengths = torch.tensor([max(961, clip.numel()) for clip in clips])
    waveforms = torch.stack([F.pad(clip, (0, int(lengths.max()) - clip.numel())) for clip in clips])
    with torch.inference_mode():
        at_once = encoder._encoder.convolutions(waveforms, lengths)
        one_by_one = encoder._clip_by_clip(waveforms, lengths)
    assert bool(torch.isfinite(at_once).all())
    for row, samples in enumerate(lengths.tolist()):
        own = -(-samples // 320)
        assert relative_error(at_once[row, :own], one_by_one[row, :own]) <= TOLERANCE


def test_pieces_change_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, clip = _build(folder), speechlike(47777, seed=6)
    whole = encoder.encode([clip])[0]["latent"]
    for size in (1, 7, 1000):
        monkeypatch.setattr(speechtokenizer, "_PIECE_STEPS", size)
        assert relative_error(encoder.encode([clip])[0]["latent"], whole) <= TOLERANCE


def test_the_end_of_a_clip_is_seen_by_all_its_frames(model: Any, folder: Path) -> None:
    """Appended silence is part of the clip, as upstream: the LSTM's backward direction begins in it."""
    clip = speechlike(320 * 20, seed=1)
    extended = torch.cat([clip, torch.zeros(5000)])
    alone, longer = (found["latent"] for found in _build(folder).encode([clip, extended]))
    assert relative_error(longer[:20], alone) > 100 * TOLERANCE
    assert relative_error(longer, _upstream(model, extended)["latent"]) <= TOLERANCE


def test_windows_differ_by_what_the_lstm_forgets() -> None:
    """130 s in windows of 60 s; random weights, whose LSTM remembers for less than a second."""
    encoder = load_encoder("speechtokenizer-tiny", weights="random")
    clip = speechlike(16000 * 130 + 777, seed=9)
    whole = encoder.encode([clip])[0]["latent"]
    encoder.longest_s, encoder.context_s = 60.0, 2.0
    joined = frames_of_windows(encoder, clip)["latent"]
    assert relative_error(joined, whole) <= TOLERANCE
    assert distance(joined.mean(0), whole.mean(0)) <= TOLERANCE
    encoder.context_s = 0.0
    assert relative_error(frames_of_windows(encoder, clip)["latent"], whole) > 100 * TOLERANCE


def test_frames_are_counted_as_upstream_does(model: Any, folder: Path) -> None:
    encoder = _build(folder)
    assert [encoder.num_frames(samples) for samples in (1, 961, 1280, 1281, 16000)] == [4, 4, 4, 5, 50]
    for samples in (1281, 15999):
        assert model.encode(torch.zeros(1, 1, samples)).shape[-1] == encoder.num_frames(samples)


def test_full_size_has_the_published_shapes() -> None:
    """With the package's own network in the published configuration, of which nothing is computed."""
    spec = encoder_spec("speechtokenizer")
    config = {**_CONFIG, "n_filters": 64, "dimension": 1024, "semantic_dimension": 768, "codebook_size": 1024, "n_q": 8}
    with torch.device("meta"):
        upstream = _package_model(config).state_dict()
    used = {name: value.shape for name, value in upstream.items() if not speechtokenizer._UNUSED.match(name)}
    assert {name: value.shape for name, value in speechtokenizer._expected_state(spec).items()} == used
    assert {name: config[name] for name in speechtokenizer._PUBLISHED} == speechtokenizer._settings(spec)


def test_random_weights_are_seeded_by_the_name_and_leave_the_generator_alone() -> None:
    before = torch.get_rng_state()
    first = load_encoder("speechtokenizer-tiny", weights="random")
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(7)
    assert first.weights == load_encoder("speechtokenizer-tiny", weights="random").weights
    for representation in first.encode([speechlike(9000, seed=2)])[0].values():
        assert representation.shape == (29, 32)
        assert representation.std(0).mean() > 0.3 * representation.abs().mean()


def test_reading_weights_leaves_the_generator_alone_and_names_its_source(folder: Path) -> None:
    before = torch.get_rng_state()
    weights = _build(folder).weights
    assert torch.equal(torch.get_rng_state(), before)
    assert (weights.kind, weights.revision, weights.licence) == ("pretrained", "unverified", "Apache-2.0")
    assert weights.source == str(folder / _FOLDER / "SpeechTokenizer.pt")


def test_files_without_the_folder_that_the_hub_has(folder: Path, tmp_path: Path) -> None:
    for path in (folder / _FOLDER).iterdir():
        shutil.copy(path, tmp_path)
    assert _build(tmp_path).weights.digest == _build(folder).weights.digest


def test_files_in_the_hub_cache(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(speechtokenizer, "find_checkpoint", lambda *_, **__: (folder / _FOLDER, "793c3ac"))
    weights = _build(tmp_path).weights
    assert (weights.source, weights.revision) == ("fnlp/SpeechTokenizer", "793c3ac")


def test_weights_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.delenv("HYFUSE_WEIGHTS", raising=False)
    with pytest.raises(
        WeightsError, match=r"hubert_avg/SpeechTokenizer.pt or SpeechTokenizer.pt were .*huggingface.co/fnlp"
    ):
        load_encoder("speechtokenizer", weights_dir=tmp_path)


def test_half_downloaded(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    path = tmp_path / _FOLDER / "SpeechTokenizer.pt"
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(WeightsError, match="damaged, half-downloaded"):
        _build(tmp_path)
    (tmp_path / _FOLDER / "config.json").write_text("[1, 2")
    with pytest.raises(
        WeightsError, match=r"config.json cannot be read .* belongs to the weights of 'speechtokenizer'"
    ):
        _build(tmp_path)


def test_a_file_that_would_run_code(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    torch.save({"encoder": Path("x")}, tmp_path / _FOLDER / "SpeechTokenizer.pt")
    with pytest.raises(WeightsError, match="not a file of tensors"):
        _build(tmp_path)


def test_another_model(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    config = tmp_path / _FOLDER / "config.json"
    config.write_text(json.dumps(_CONFIG | {"activation": "Snake", "bidirectional": False}))
    with pytest.raises(
        WeightsError,
        match=r"another model than 'speechtokenizer' .*: bidirectional is False, expected True; activation is 'Snake', exp",
    ):
        _build(tmp_path)
    with pytest.raises(WeightsError, match=r"n_filters is 4, expected 64; dimension is 32, expected 1024; .*1 more"):
        load_encoder("speechtokenizer", weights_dir=folder)


def test_a_network_that_differs(model: Any, folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    path, state = tmp_path / _FOLDER / "SpeechTokenizer.pt", model.state_dict()
    torch.save({name: value for name, value in state.items() if "lstm" not in name}, path)
    with pytest.raises(WeightsError, match=r"16 of \d+ .* missing \(encoder.model.13.lstm.weight_ih_l0"):
        _build(tmp_path)
    torch.save(state | {"encoder.model.2.alpha": torch.zeros(2)}, path)
    with pytest.raises(WeightsError, match=r"1 are not known \(encoder.model.2.alpha\)"):
        _build(tmp_path)
    torch.save(state | {"encoder.model.3.conv.conv.weight_g": torch.zeros(1, 4, 1)}, path)
    with pytest.raises(WeightsError, match=r"have another shape \(encoder.model.3.conv.conv.weight_g is \[1, 4, 1\]"):
        _build(tmp_path)
