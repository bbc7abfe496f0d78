"""Encoders of text against transformers' own one-by-one call, on checkpoints in transformers' own format."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pipelines.encoders.catalogue import EncoderSpec, encoder_names, encoder_spec, load_encoder
from pipelines.encoders.text import TextEncoder
from pipelines.encoders.text_tokenizer import byte_tokenizer, tokenizer_digest, word_piece_tokenizer
from pipelines.encoders.torchaudio_guard import ensure_torchaudio_importable
from pipelines.encoders.windows import plan_windows
from pipelines.errors import AudioError, WeightsError
from tests.encoders.batches import TOLERANCE, assert_batched_equals_alone, ragged_clips, relative_error

ensure_torchaudio_importable()

NAMES = ("bert", "roberta", "minilm")

TEXTS = [
    "",
    "   ",
    "No.",
    "I am so HAPPY to see you!",
    "Crème brûlée — don't ask, 3,141 questions… ÄÖÜß 🙂",
    "a",
    "word " * 150,
    "the quick brown fox jumps over the lazy dog, " * 8,
]
"""None above 512 tokens in any of the vocabularies."""


def _spec(name: str) -> EncoderSpec:
    """The tiny size, with a repository as the full one has, so that it can be loaded like a checkpoint."""
    full, tiny = encoder_spec(name), encoder_spec(f"{name}-tiny")
    files = tuple(dataclasses.replace(file, sha256="") for file in full.files)
    return dataclasses.replace(
        tiny, repository=full.repository, revision=full.revision, files=files, licence=full.licence
    )


def _tokenizer(spec: EncoderSpec) -> Any:
    return byte_tokenizer() if spec.settings["model_type"] == "roberta" else word_piece_tokenizer()


def _save_checkpoint(spec: EncoderSpec, folder: Path, head: str = "Model") -> Path:
    """A checkpoint in the upstream format, no parameter at its initial constant (ones and zeros hide mistakes)."""
    import transformers

    config_class: Any = transformers.CONFIG_MAPPING[str(spec.settings["model_type"])]
    model_class = getattr(transformers, transformers.MODEL_MAPPING[config_class].__name__.removesuffix("Model") + head)
    config = config_class(hidden_size=spec.dim, num_hidden_layers=len(spec.representations) - 1, **spec.settings)
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = model_class(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    roberta = spec.settings["model_type"] == "roberta"
    names = ("<s>", "</s>", "<pad>", "<unk>", "<mask>") if roberta else ("[CLS]", "[SEP]", "[PAD]", "[UNK]", "[MASK]")
    special = dict(zip(("cls_token", "sep_token", "pad_token", "unk_token", "mask_token"), names, strict=True))
    wrapper: Any = transformers.PreTrainedTokenizerFast
    wrapper(tokenizer_object=_tokenizer(spec), model_max_length=512, **special).save_pretrained(folder)
    return folder


def _build(spec: EncoderSpec, folder: Path) -> TextEncoder:
    return TextEncoder.build(spec=spec, weights_kind="pretrained", device=torch.device("cpu"), weights_dir=folder)


def _upstream(spec: EncoderSpec, folder: Path) -> Callable[[str], list[Tensor]]:
    """transformers as its documentation shows it: tokenizer, model, one text."""
    from transformers import AutoModel, PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder).eval()

    @torch.inference_mode()
    def encode(text: str) -> list[Tensor]:
        inputs = tokenizer(text, return_tensors="pt")
        inputs.pop("token_type_ids", None)
        return [state[0] for state in model(**inputs, output_hidden_states=True).hidden_states]

    return encode


@pytest.fixture(scope="module", params=NAMES)
def spec(request: pytest.FixtureRequest) -> EncoderSpec:
    return _spec(request.param)


@pytest.fixture(scope="module")
def folder(spec: EncoderSpec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _save_checkpoint(spec, tmp_path_factory.mktemp(spec.name))


@pytest.fixture(scope="module")
def encoder(spec: EncoderSpec, folder: Path) -> TextEncoder:
    return _build(spec, folder)


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    shutil.copytree(folder, tmp_path / "copy")
    return tmp_path / "copy"


# ------------------------------------------------------------------------------------------------ the promise


def test_batched_equals_upstream_one_by_one(spec: EncoderSpec, folder: Path, encoder: TextEncoder) -> None:
    upstream = _upstream(spec, folder)
    for text, encoded in zip(TEXTS, encoder.encode_texts(TEXTS), strict=True):
        assert list(encoded) == list(spec.representations)
        for frames, expected in zip(encoded.values(), upstream(text), strict=True):
            assert frames.shape == (len(encoder.tokens(text)), spec.dim)
            assert relative_error(frames, expected) <= TOLERANCE


def test_batched_equals_alone(encoder: TextEncoder) -> None:
    """Lengths from 2 tokens to 512, so that a short text is nearly all padding."""
    assert_batched_equals_alone(encoder, ragged_clips(encoder))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_full_size_batched_equals_alone(name: str) -> None:
    encoder = load_encoder(name, weights="random")
    assert isinstance(encoder, TextEncoder)
    texts = ["", "No.", "word " * 60]
    for text, frames in zip(texts, encoder.encode_texts(texts), strict=True):
        (alone,) = encoder.encode_texts([text])
        assert relative_error(frames["layer_12"], alone["layer_12"]) <= TOLERANCE


def test_what_is_padded_does_not_matter(encoder: TextEncoder) -> None:
    """Whatever the padding holds: its id is never that of a key."""
    short = encoder.tokenize("No.")
    alone = encoder.encode([short])[0]
    encoder._padding, kept = 7, encoder._padding
    try:
        padded = encoder.encode([short, encoder.tokenize("word " * 50)])[0]
    finally:
        encoder._padding = kept
    for name, frames in alone.items():
        assert relative_error(padded[name], frames) <= TOLERANCE


# ------------------------------------------------------------------------------------------------ frames


def test_special_tokens_are_frames_and_an_empty_text_is_nothing_else(encoder: TextEncoder) -> None:
    ends = [encoder.tokens("")[0], encoder.tokens("")[1]]
    assert ends in (["[CLS]", "[SEP]"], ["<s>", "</s>"])
    assert encoder.tokens("no")[0] == ends[0]
    assert encoder.tokens("no")[-1] == ends[1]
    empty, blank, text = encoder.encode_texts(["", " \t ", "no"])
    for name, frames in empty.items():
        assert frames.shape == (2, encoder.spec.dim)
        assert frames.abs().min(dim=1).values.max() > 0  # no zeros
        if encoder.spec.settings["model_type"] == "bert":  # to the others, white space is text
            assert relative_error(blank[name], frames) <= TOLERANCE
        assert not torch.allclose(text[name].mean(0), frames.mean(0), atol=1e-3)


def test_long_texts_go_through_windows_and_lose_no_word(encoder: TextEncoder) -> None:
    words = [f"{chr(97 + index % 26)}{chr(97 + index // 26)}" for index in range(650)]
    text = " ".join(words)
    ids = encoder.tokenize(text)
    assert len(ids) > 512
    (frames,) = encoder.encode_texts([text])
    assert len(frames["layer_02"]) == len(ids)
    windows = plan_windows(encoder, len(ids))
    assert [window.stop - window.start for window in windows[:-1]] == [512] * (len(windows) - 1)
    # By hand: the window with the special tokens at its ends, of which those far from the edge are kept.
    second = windows[1]
    piece = ids[second.start : second.stop].clone()
    piece[0], piece[-1] = ids[0], ids[-1]
    expected = encoder.encode([piece])[0]["layer_02"][second.first : second.last]
    begin = second.start + second.first
    assert second.first >= 64
    assert relative_error(frames["layer_02"][begin : begin + len(expected)], expected) <= TOLERANCE


def test_exactly_512_tokens_are_one_piece(encoder: TextEncoder) -> None:
    ids = encoder.tokenize("no")
    longest = torch.cat([ids[:1], ids[1:2].repeat(510), ids[-1:]])
    assert len(plan_windows(encoder, 512)) == 1
    assert len(plan_windows(encoder, 513)) == 2
    assert encoder.encode([longest])[0]["layer_02"].shape == (512, 32)


@pytest.mark.parametrize(
    "ids",
    [torch.zeros(513, dtype=torch.int64), torch.zeros(1, dtype=torch.int64), torch.zeros(9), torch.zeros(2, 2).long()],
)
def test_what_is_no_text_is_an_error(encoder: TextEncoder, ids: Tensor) -> None:
    with pytest.raises(AudioError, match=r"takes token ids, int64 \[tokens\], from 2 to 512 of them"):
        encoder.encode([ids])


# ------------------------------------------------------------------------------------------------ weights


def test_entries(spec: EncoderSpec) -> None:
    full = encoder_spec(spec.name.removesuffix("-tiny"))
    assert (full.family, full.sample_rate_hz, full.hop_samples, full.takes_text) == ("LEX", 0, 1, True)
    assert full.default_representation == full.representations[-1]
    assert len(full.revision) == 40
    assert full.name in encoder_names()


def test_the_tiny_vocabularies_have_the_size_of_the_entries(spec: EncoderSpec) -> None:
    assert _tokenizer(spec).get_vocab_size() == spec.settings["vocab_size"]


def test_random_weights_depend_on_the_name_only() -> None:
    torch.manual_seed(1)
    first = load_encoder("bert-tiny", weights="random")
    torch.manual_seed(2)
    second = load_encoder("bert-tiny", weights="random")
    assert first.weights == second.weights
    assert load_encoder("minilm-tiny", weights="random").weights.digest != first.weights.digest


def test_another_tokenizer_is_other_weights(spec: EncoderSpec, encoder: TextEncoder, copy: Path) -> None:
    assert _build(spec, copy).weights.digest == encoder.weights.digest
    content = json.loads((copy / "tokenizer.json").read_text())
    if spec.settings["model_type"] == "roberta":
        content["pre_tokenizer"]["add_prefix_space"] = True
    else:
        content["normalizer"]["lowercase"] = False
    (copy / "tokenizer.json").write_text(json.dumps(content))
    assert _build(spec, copy).weights.digest != encoder.weights.digest


def test_what_a_tokenizer_file_says_about_cutting_and_padding_is_not_followed(
    spec: EncoderSpec, encoder: TextEncoder, copy: Path
) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(copy / "tokenizer.json"))
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=8)
    tokenizer.save(str(copy / "tokenizer.json"))
    found = _build(spec, copy)
    assert tokenizer_digest(found.tokenizer) == tokenizer_digest(encoder.tokenizer)
    assert len(found.tokenize("")) == 2
    assert len(found.tokenize("word " * 30)) > 30


@pytest.mark.parametrize("head", ["ForMaskedLM", "ForSequenceClassification"])
def test_checkpoint_with_a_head(head: str, tmp_path: Path) -> None:
    spec = _spec("bert")
    plain, headed = _save_checkpoint(spec, tmp_path / "a"), _save_checkpoint(spec, tmp_path / "b", head)
    assert _build(spec, headed).encode_texts(["no"])[0]["layer_02"].shape == (3, 32)
    assert _build(spec, plain).spec == spec


def test_old_names_of_layer_norms(tmp_path: Path) -> None:
    """The files of bert-base-uncased call them gamma and beta, and keep their positions."""
    from safetensors.torch import load_file, save_file

    spec = _spec("bert")
    folder = _save_checkpoint(spec, tmp_path)
    expected = _build(spec, folder).weights.digest
    old = {
        "bert."
        + name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in load_file(folder / "model.safetensors").items()
    }
    assert any(name.endswith("gamma") for name in old)
    old["bert.embeddings.position_ids"] = torch.arange(512)[None]
    save_file(old, folder / "model.safetensors")
    assert _build(spec, folder).weights.digest == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gpt2"}, r"model_type is 'gpt2', expected '(bert|roberta)'"),
        ({"hidden_size": 768}, r"hidden_size is 768, expected 32"),
        ({"layer_norm_eps": 0.1}, r"layer_norm_eps is 0\.1, expected 1e-"),
    ],
)
def test_another_architecture(spec: EncoderSpec, copy: Path, change: dict[str, object], message: str) -> None:
    config = {**json.loads((copy / "config.json").read_text()), **change}
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match=message):
        _build(spec, copy)


def test_missing_parameters(copy: Path, spec: EncoderSpec) -> None:
    from safetensors.torch import load_file, save_file

    state = load_file(copy / "model.safetensors")
    del state["encoder.layer.1.output.dense.bias"]
    save_file(state, copy / "model.safetensors")
    with pytest.raises(
        WeightsError, match=r"1 of 37 parameters are missing \(encoder\.layer\.1\.output\.dense\.bias\)"
    ):
        _build(spec, copy)


@pytest.mark.parametrize(("content", "message"), [("{", "cannot be read as a tokenizer"), ("", "cannot be read")])
def test_damaged_tokenizer(copy: Path, spec: EncoderSpec, content: str, message: str) -> None:
    (copy / "tokenizer.json").write_text(content)
    with pytest.raises(WeightsError, match=message):
        _build(spec, copy)


def test_tokenizer_without_special_tokens(copy: Path, spec: EncoderSpec) -> None:
    content = json.loads((copy / "tokenizer.json").read_text())
    content["post_processor"] = None
    (copy / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(WeightsError, match=r"gives an empty text 0 tokens; expected 2"):
        _build(spec, copy)


def test_a_package_carries_weights_only_if_they_are_the_pinned_ones(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Found beside the package's own code, which is not run; a file with another digest is refused."""
    package = tmp_path / "carries_weights"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    folder = _save_checkpoint(_spec("minilm"), package / "model")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delenv("HYFUSE_WEIGHTS", raising=False)
    spec = dataclasses.replace(_spec("minilm"), package="carries_weights/model")
    found = TextEncoder.build(spec=spec, weights_kind="pretrained", device=torch.device("cpu"))
    assert (found.weights.source, found.weights.revision) == (spec.repository, spec.revision)
    assert found.weights.digest == _build(spec, folder).weights.digest
    pinned = dataclasses.replace(spec, files=(*spec.files[:-1], encoder_spec("minilm").files[-1]))
    with pytest.raises(
        WeightsError, match=r"model\.safetensors is not the file that 'minilm-tiny' needs: its sha256 is"
    ):
        TextEncoder.build(spec=pinned, weights_kind="pretrained", device=torch.device("cpu"))
