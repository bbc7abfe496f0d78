"""Whisper's text against transformers' own ``generate``, one recording at a time, on checkpoints in upstream's format."""

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

from pipelines.encoders.catalogue import EncoderSpec, encoder_spec
from pipelines.encoders.recognition import load_recogniser
from pipelines.encoders.torchaudio_guard import ensure_torchaudio_importable
from pipelines.encoders.whisper_text import GenerationSettings, WhisperRecogniser, quiet_windows, random_vocabulary
from pipelines.errors import UnknownNameError, WeightsError
from tests.encoders.batches import relative_error, speechlike

ensure_torchaudio_importable()

MOST_TOKENS = 12


def _spec() -> EncoderSpec:
    full, tiny = encoder_spec("whisper"), encoder_spec("whisper-tiny")
    return dataclasses.replace(
        tiny, repository=full.repository, revision=full.revision, files=full.files, licence=full.licence
    )


def _generation(settings: GenerationSettings) -> dict[str, object]:
    return {
        "decoder_start_token_id": settings.start,
        "eos_token_id": settings.end,
        "pad_token_id": settings.end,
        "bos_token_id": settings.end,
        "no_timestamps_token_id": settings.no_timestamps,
        "is_multilingual": True,
        "lang_to_id": {f"<|{code}|>": token for code, token in settings.languages.items()},
        "task_to_id": {"transcribe": settings.transcribe},
        "suppress_tokens": list(settings.suppressed),
        "begin_suppress_tokens": list(settings.suppressed_at_first),
        "max_length": 2 * MOST_TOKENS,
    }


def _save(folder: Path) -> Path:
    """A checkpoint of ``WhisperForConditionalGeneration`` whose decoder listens, with its tokenizer and settings."""
    from transformers import GenerationConfig, WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration

    tokenizer, settings = random_vocabulary()
    spec = _spec()
    special = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), settings.end)
    config = WhisperConfig(
        d_model=spec.dim,
        encoder_layers=len(spec.representations) - 1,
        decoder_layers=2,
        decoder_attention_heads=4,
        decoder_ffn_dim=48,
        vocab_size=tokenizer.get_vocab_size(),
        max_target_positions=64,
        decoder_start_token_id=settings.start,
        **special,
        **spec.settings,
    )
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model: Any = WhisperForConditionalGeneration(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.2)
            model.model.decoder.layer_norm.weight.mul_(3.0)
            # So that some transcripts end before they must.
            model.model.decoder.embed_tokens.weight[settings.end].mul_(2.0)
    model.generation_config = GenerationConfig(**_generation(settings))
    model.save_pretrained(folder)
    WhisperFeatureExtractor().save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def _build(folder: Path, language: str = "auto") -> WhisperRecogniser:
    return WhisperRecogniser.build(
        spec=_spec(), weights_kind="pretrained", device=torch.device("cpu"), weights_dir=folder, language=language
    )


def _upstream(folder: Path) -> Callable[[Tensor, str | None], list[int]]:
    """transformers as its documentation shows it: the tokens of one recording, without prompt and end."""
    from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration

    extractor = WhisperFeatureExtractor.from_pretrained(folder)
    model: Any = WhisperForConditionalGeneration.from_pretrained(folder).eval()
    end = model.generation_config.eos_token_id
    first_special = min(model.generation_config.lang_to_id.values())

    @torch.inference_mode()
    def generate(clip: Tensor, language: str | None) -> list[int]:
        features = extractor(clip.numpy(), sampling_rate=16000, return_tensors="pt").input_features
        found = model.generate(
            features, language=language, task="transcribe", num_beams=1, do_sample=False, max_new_tokens=MOST_TOKENS
        )
        return [token for token in found[0].tolist() if token != end and token < first_special - 2]

    return generate


CLIPS = [speechlike(samples, seed=samples) for samples in (900, 16000, 16000 + 7, 40_001, 80_000, 479_000)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _save(tmp_path_factory.mktemp("whisper"))


@pytest.fixture(scope="module")
def recogniser(folder: Path) -> WhisperRecogniser:
    return _build(folder)


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    shutil.copytree(folder, tmp_path / "copy")
    return tmp_path / "copy"


def test_logits_are_upstreams(folder: Path, recogniser: WhisperRecogniser) -> None:
    from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration

    model: Any = WhisperForConditionalGeneration.from_pretrained(folder).eval()
    settings, prompt = recogniser.settings, [5, 300, 17, 600]
    with torch.inference_mode():
        state = recogniser._decoder.begin(recogniser._whole.encode_whole(CLIPS[:3]))
        found = [recogniser._decoder(torch.full((3,), token), state) for token in (settings.start, *prompt)]
        for row, clip in enumerate(CLIPS[:3]):
            extractor = WhisperFeatureExtractor.from_pretrained(folder)
            features = extractor(clip.numpy(), sampling_rate=16000, return_tensors="pt").input_features
            ids = torch.tensor([[settings.start, *prompt]])
            expected = model(input_features=features, decoder_input_ids=ids).logits[0]
            for step, logits in enumerate(found):
                assert relative_error(logits[row], expected[step]) <= 1e-5


@pytest.mark.parametrize("language", ["auto", "de"])
def test_tokens_are_those_of_generate(folder: Path, language: str) -> None:
    recogniser, generate = _build(folder, language), _upstream(folder)
    heard = [tokens.tolist() for tokens in recogniser.hear(CLIPS) if tokens is not None]
    assert heard == [generate(clip, None if language == "auto" else language) for clip in CLIPS]
    assert len({tuple(tokens) for tokens in heard}) > 2
    assert all(len(tokens) <= MOST_TOKENS for tokens in heard)


def test_output_that_is_not_finite_is_no_text(recogniser: WhisperRecogniser) -> None:
    fine, broken = CLIPS[1], torch.full((16000,), torch.nan)
    heard = recogniser.hear([fine, broken])
    assert heard[1] is None
    assert heard[0] is not None
    assert recogniser.spell([heard[0]], quiet_windows(fine, 16000)) == recogniser.recognise([fine])[0]


def test_languages_are_told_apart(folder: Path) -> None:
    heard = {language: _build(folder, language).recognise(CLIPS[:2])[1] for language in ("de", "fr", "ja")}
    assert len(set(heard.values())) > 1


def test_texts_do_not_depend_on_the_batch(recogniser: WhisperRecogniser) -> None:
    together = recogniser.recognise(CLIPS)
    assert together == [recogniser.recognise([clip])[0] for clip in CLIPS]
    assert together[::-1] == recogniser.recognise(CLIPS[::-1])


def test_timestamps_and_special_tokens_are_not_spelled(recogniser: WhisperRecogniser) -> None:
    settings, tokenizer = recogniser.settings, recogniser.tokenizer
    words = tokenizer.encode("so it is").ids
    tokens = torch.tensor([settings.no_timestamps + 5, *words, settings.start])
    assert recogniser.spell([tokens], quiet_windows(torch.zeros(9), 16000)) == "so it is"
    assert recogniser.spell([torch.tensor([], dtype=torch.int64)], []) == ""


def test_long_recordings_are_cut_where_they_are_quiet() -> None:
    rate_hz = 1000
    samples = torch.ones(75 * rate_hz)
    for second in (20.0, 27.3, 51.1):
        samples[int(second * rate_hz) : int((second + 0.4) * rate_hz)] = 0.01
    windows = quiet_windows(samples, rate_hz)
    assert windows[0].start == 0
    assert 27.3 <= windows[0].stop / rate_hz <= 27.7  # not at 20 s, which is needlessly early
    assert [one.stop for one in windows[:-1]] == [other.start for other in windows[1:]]
    assert windows[-1].stop == len(samples)
    assert all(window.stop - window.start <= 30 * rate_hz for window in windows)
    assert len(quiet_windows(samples[: 30 * rate_hz], rate_hz)) == 1


def test_a_long_recording_is_heard_in_pieces(recogniser: WhisperRecogniser) -> None:
    clip = speechlike(16000 * 41, seed=2)
    first, second = quiet_windows(clip, 16000)
    pieces = recogniser.recognise([clip[first.start : first.stop], clip[second.start : second.stop]])
    assert recogniser.recognise([clip]) == [" ".join(" ".join(pieces).split())]


def test_random_weights_repeat_and_write_letters() -> None:
    torch.manual_seed(1)
    first = load_recogniser("whisper-tiny", weights="random")
    torch.manual_seed(2)
    second = load_recogniser("whisper-tiny", weights="random", language="en")
    assert first.weights == second.weights
    texts = first.recognise([speechlike(30_000, seed=seed) for seed in range(3)])
    assert len(set(texts)) > 1
    assert set("".join(texts)) <= set("abcdefghijklmnopqrstuvwxyz ")


def test_unknown_language(folder: Path) -> None:
    with pytest.raises(UnknownNameError, match=r"Unknown language 'klingon'.*ISO 639-1"):
        _build(folder, "klingon")


def test_settings_are_part_of_the_weights(folder: Path, recogniser: WhisperRecogniser, copy: Path) -> None:
    assert _build(copy).weights.digest == recogniser.weights.digest
    path = copy / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "suppress_tokens": [1]}))
    assert _build(copy).weights.digest != recogniser.weights.digest


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("generation_config.json", "{", "cannot be read .*should be JSON"),
        ("generation_config.json", '{"eos_token_id": 1}', "does not say which tokens begin and end a transcript"),
        ("tokenizer.json", "{}", "cannot be read as a tokenizer"),
    ],
)
def test_damaged_files(copy: Path, name: str, content: str, message: str) -> None:
    (copy / name).write_text(content)
    with pytest.raises(WeightsError, match=message):
        _build(copy)


def test_the_decoder_must_be_there(copy: Path) -> None:
    from safetensors.torch import load_file, save_file

    state = load_file(copy / "model.safetensors")
    kept = {name: tensor for name, tensor in state.items() if "decoder.layers.1.fc2" not in name}
    assert len(kept) == len(state) - 2
    save_file(kept, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        WeightsError, match=r"2 of \d+ parameters are missing \(layers\.1\.fc2\.weight, layers\.1\.fc2\.bias\)"
    ):
        _build(copy)
