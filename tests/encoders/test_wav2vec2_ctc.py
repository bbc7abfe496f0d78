"""The CTC recogniser against transformers' own model and tokenizer, one by one, on checkpoints in upstream's format."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pipelines.encoders.catalogue import load_encoder
from pipelines.encoders.recognition import load_recogniser
from pipelines.encoders.wav2vec2_ctc import LIBRISPEECH, CTCRecogniser, Vocabulary
from pipelines.encoders.windows import plan_windows
from pipelines.errors import ConfigError, UnknownNameError, WeightsError
from tests.encoders.batches import relative_error, speechlike
from tests.encoders.ssl_checkpoints import checkpoint_spec, save_checkpoint

SPEC = checkpoint_spec("wav2vec2-ctc")


def _save(folder: Path) -> Path:
    """A checkpoint of ``Wav2Vec2ForCTC`` with its vocabulary."""
    save_checkpoint(SPEC, folder, "ForCTC", vocab_size=len(LIBRISPEECH.letters))
    numbers = {letter: number for number, letter in enumerate(LIBRISPEECH.letters)}
    (folder / "vocab.json").write_text(json.dumps(numbers))
    return folder


def _build(folder: Path | None) -> CTCRecogniser:
    kind = "random" if folder is None else "pretrained"
    return CTCRecogniser.build(spec=SPEC, weights_kind=kind, device=torch.device("cpu"), weights_dir=folder)


def _upstream(folder: Path) -> Callable[[Tensor], tuple[Tensor, str]]:
    """transformers as its documentation shows it: logits and text of one recording."""
    from transformers import Wav2Vec2CTCTokenizer, Wav2Vec2FeatureExtractor, Wav2Vec2ForCTC

    extractor = Wav2Vec2FeatureExtractor.from_pretrained(folder)
    model = Wav2Vec2ForCTC.from_pretrained(folder).eval()
    tokenizer = Wav2Vec2CTCTokenizer(str(folder / "vocab.json"))

    @torch.inference_mode()
    def recognise(clip: Tensor) -> tuple[Tensor, str]:
        inputs = extractor(clip.numpy(), sampling_rate=16000, return_tensors="pt").input_values
        logits = model(inputs).logits[0]
        return logits, tokenizer.decode(logits.argmax(-1), skip_special_tokens=True)

    return recognise


def _clips() -> list[Tensor]:
    return [speechlike(samples, seed=samples) for samples in (400, 9000, 16000, 16001, 33333, 50000)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _save(tmp_path_factory.mktemp("ctc"))


@pytest.fixture(scope="module")
def recogniser(folder: Path) -> CTCRecogniser:
    return _build(folder)


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    shutil.copytree(folder, tmp_path / "copy")
    return tmp_path / "copy"


def test_logits_and_texts_are_upstreams(folder: Path, recogniser: CTCRecogniser) -> None:
    clips, upstream = _clips(), _upstream(folder)
    texts = recogniser.recognise(clips)
    assert len(set(texts)) > 2
    for clip, text, logits in zip(clips, texts, recogniser.logits(clips), strict=True):
        expected, words = upstream(clip)
        assert relative_error(logits, expected) <= 1e-5
        assert text == " ".join(words.lower().split())


def test_texts_do_not_depend_on_the_batch(recogniser: CTCRecogniser) -> None:
    clips = _clips()
    together = recogniser.recognise(clips)
    assert together == [recogniser.recognise([clip])[0] for clip in clips]
    assert together[::-1] == recogniser.recognise(clips[::-1])


def test_long_recordings_come_in_windows_whose_frames_are_joined(
    recogniser: CTCRecogniser, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recogniser.encoder, "longest_s", 3.0)
    monkeypatch.setattr(recogniser.encoder, "context_s", 0.5)
    clip = speechlike(100_000, seed=1)
    windows = plan_windows(recogniser.encoder, len(clip))
    assert len(windows) > 2
    heard = recogniser.hear([clip[window.start : window.stop] for window in windows])
    frames = torch.cat(
        [part[window.first : window.last] for part, window in zip(heard, windows, strict=True) if part is not None]
    )
    assert len(frames) == recogniser.encoder.num_frames(len(clip))
    assert recogniser.recognise([clip]) == [recogniser.vocabulary.spell(frames)]


@pytest.mark.parametrize(
    ("frames", "text"),
    [
        ("", ""),
        ("<pad> <pad>", ""),
        ("A A B", "ab"),
        ("A <pad> A B", "aab"),
        ("A | | B | <pad> |", "a b"),
        ("| A", "a"),
        ("D O N ' T", "don't"),
        ("<s> A <unk> B </s>", "ab"),
        ("A <unk> A", "a"),
    ],
)
def test_spelling(frames: str, text: str) -> None:
    numbers = torch.tensor([LIBRISPEECH.letters.index(letter) for letter in frames.split()], dtype=torch.int64)
    assert LIBRISPEECH.spell(numbers) == text


def test_letters_of_a_vocabulary_with_lower_case_stay_as_they_are() -> None:
    vocabulary = Vocabulary(("<pad>", "|", "a", "B"))
    assert vocabulary.spell(torch.tensor([2, 1, 3])) == "a B"


def test_the_encoder_of_that_name_gives_the_frames_behind_the_letters() -> None:
    recogniser = load_recogniser("wav2vec2-ctc-tiny", weights="random")
    encoder = load_encoder("wav2vec2-ctc-tiny", weights="random")
    assert isinstance(recogniser, CTCRecogniser)
    clip = speechlike(20000, seed=4)
    hidden = encoder.encode([clip])[0]["layer_02"]
    assert relative_error(recogniser.logits([clip])[0], recogniser.head(hidden)) <= 1e-5
    assert encoder.weights.digest != recogniser.weights.digest  # the letters belong to the recogniser's


def test_random_weights_repeat_and_hear_something() -> None:
    torch.manual_seed(1)
    first = load_recogniser("wav2vec2-ctc-tiny", weights="random")
    torch.manual_seed(2)
    second = load_recogniser("wav2vec2-ctc-tiny", weights="random")
    assert first.weights == second.weights
    texts = first.recognise([speechlike(32000, seed=seed) for seed in range(4)])
    assert len(set(texts)) == 4
    assert set("".join(texts)) <= set("abcdefghijklmnopqrstuvwxyz' ")


def test_source_and_language(folder: Path, recogniser: CTCRecogniser) -> None:
    assert (recogniser.weights.kind, recogniser.weights.source) == ("pretrained", str(folder))
    assert recogniser.language == "en"
    with pytest.raises(ConfigError, match=r"knows English only, not 'de'.*--model whisper"):
        load_recogniser("wav2vec2-ctc-tiny", weights="random", language="de")


def test_tiny_sizes_have_no_pretrained_weights() -> None:
    with pytest.raises(ConfigError, match=r"its text is nonsense\. Add `--weights random`"):
        load_recogniser("wav2vec2-ctc-tiny")
    with pytest.raises(
        UnknownNameError, match=r"Unknown recogniser 'wavlm'.*Valid names: wav2vec2-ctc, wav2vec2-ctc-tiny, whisper"
    ):
        load_recogniser("wavlm")


@pytest.mark.parametrize(
    ("vocabulary", "problem"),
    [
        ({"<pad>": 0, "|": 1, "A": 3}, "its numbers are not 0, 1, 2"),
        ({"<pad>": 0, "A": 1}, r"it has no \|"),
        ({"[PAD]": 0, "|": 1}, "it has no <pad>"),
        (["A"], "it cannot be read"),
    ],
)
def test_vocabularies_that_cannot_be_used(copy: Path, vocabulary: object, problem: str) -> None:
    (copy / "vocab.json").write_text(json.dumps(vocabulary))
    with pytest.raises(WeightsError, match=f"is no vocabulary of letters: {problem}"):
        _build(copy)


def test_vocabulary_of_another_size(copy: Path) -> None:
    (copy / "vocab.json").write_text(json.dumps({"<pad>": 0, "|": 1}))
    with pytest.raises(WeightsError, match=r"weight is \[32, 32\], expected \[2, 32\]"):
        _build(copy)


def test_checkpoint_without_letters(tmp_path: Path) -> None:
    save_checkpoint(SPEC, tmp_path)
    (tmp_path / "vocab.json").write_text(
        json.dumps({letter: index for index, letter in enumerate(LIBRISPEECH.letters)})
    )
    with pytest.raises(WeightsError, match=r"2 of 2 parameters are missing"):
        _build(tmp_path)


def test_without_a_vocabulary_the_files_are_not_complete(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (copy / "vocab.json").unlink()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(WeightsError, match=r"vocab\.json"):
        _build(copy)
