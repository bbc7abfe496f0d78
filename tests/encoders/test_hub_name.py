"""``hf:owner/name[@revision]``: the name, the entry made from a configuration, and loading by it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pipelines.encoders.catalogue import CATALOGUE, canonical_name, encoder_spec, load_encoder
from pipelines.encoders.hub_name import HubName, parse_hub_name
from pipelines.errors import ConfigError, UnknownNameError, WeightsError
from tests.encoders.ssl_checkpoints import kind_spec, ragged_batch, relative, save_checkpoint, upstream_call

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No weights of this machine's user, and no network."""
    import huggingface_hub.constants

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.delenv("HYFUSE_WEIGHTS", raising=False)


def _put_config(folder: Path, **changes: object) -> Path:
    """A configuration as the Hub has it: no key that transformers added later."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"architectures": ["HubertModel"], "model_type": "hubert", "hidden_size": 1024, "num_hidden_layers": 24}
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    return folder


# ------------------------------------------------------------------------------------------------ the name


@pytest.mark.parametrize(
    ("typed", "stored", "parsed"),
    [
        ("hf:owner/name", "hf--owner--name", HubName("owner/name")),
        ("hf:a-b/c.d_e-1@main", "hf--a-b--c.d_e-1@main", HubName("a-b/c.d_e-1", "main")),
        (f"hf:o/n@{COMMIT}", f"hf--o--n@{COMMIT}", HubName("o/n", COMMIT)),
        ("hf:o/n@refs/pr/4", "hf--o--n@refs%2Fpr%2F4", HubName("o/n", "refs/pr/4")),
    ],
)
def test_both_spellings(typed: str, stored: str, parsed: HubName) -> None:
    assert parse_hub_name(typed) == parse_hub_name(stored) == parsed
    assert (parsed.typed, parsed.stored) == (typed, stored)
    assert canonical_name(typed) == canonical_name(stored) == stored
    assert Path(stored).name == stored


@pytest.mark.parametrize(
    "name",
    [
        "hf:",
        "hf:name",
        "hf:a/b/c",
        "hf:../b",
        "hf:a/..",
        "hf:a/b--c",
        "hf:a/b c",
        "hf:a/.b",
        "hf:a/b@",
        "hf:a/b@../x",
        "hf:a/b@x@y",
        "hf:https://huggingface.co/a/b",
        "hf--a",
        "hf--a--b--c",
        "hf--a/b--c",
        "hf--a--b@..%2Fx",
        "hf:" + "a" * 97 + "/b",
    ],
)
def test_malformed_names(name: str) -> None:
    with pytest.raises(
        ConfigError, match=r"is not the name of a model on the Hugging Face Hub\. Expected hf:<owner>/<name>"
    ):
        canonical_name(name)
    with pytest.raises(ConfigError, match="is not the name of a model"):
        encoder_spec(name)


def test_other_names_stay() -> None:
    assert canonical_name("wavlm-base") == "wavlm"
    assert [canonical_name(name) for name in CATALOGUE] == list(CATALOGUE)
    assert canonical_name("my-features") == "my-features"
    with pytest.raises(UnknownNameError, match=r"Did you mean .*hf:<owner>/<name>"):
        encoder_spec("hubert-lrge")


# ----------------------------------------------------------------------------------------------- the entry


@pytest.mark.parametrize("place", ["hf--owner--name@main", "owner/name", "name", ""])
@pytest.mark.parametrize("by", ["option", "environment"])
def test_entry_from_a_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, by: str) -> None:
    _put_config(tmp_path / "mine" / place, do_stable_layer_norm=True, conv_bias=True, feat_extract_norm="layer")
    if by == "environment":
        monkeypatch.setenv("HYFUSE_WEIGHTS", str(tmp_path / "mine"))
    spec = encoder_spec("hf:owner/name@main", weights_dir=tmp_path / "mine" if by == "option" else None)
    assert spec == encoder_spec("hf--owner--name@main", weights_dir=tmp_path / "mine")
    assert spec.name == "hf--owner--name@main"
    assert (spec.repository, spec.revision) == ("owner/name", "main")
    assert (spec.dim, spec.hop_samples, spec.sample_rate_hz, spec.family) == (1024, 320, 16000, "RLR")
    assert spec.representations == tuple(f"layer_{index:02d}" for index in range(25))
    assert spec.default_representation == "layer_24"
    assert "hubert" in spec.title
    assert "final layer normalisation" in spec.notes
    assert "main branch" not in spec.notes
    assert "huggingface.co/owner/name" in spec.licence
    assert spec.settings == {
        "model_type": "hubert",
        "do_normalize": True,
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "do_stable_layer_norm": True,
        "conv_bias": True,
        "feat_extract_norm": "layer",
    }


def test_silent_configuration_means_the_base_size(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "wavlm", "adapter_attn_dim": null}')
    spec = encoder_spec("hf:owner/name", weights_dir=tmp_path)
    assert (spec.dim, len(spec.representations), spec.revision) == (768, 13, "")
    assert spec.settings == {"model_type": "wavlm", "do_normalize": True}
    assert "main branch" in spec.notes


def test_needs_no_torch(tmp_path: Path) -> None:
    _put_config(tmp_path)
    code = (
        "import sys; from pathlib import Path; from pipelines.encoders.catalogue import encoder_spec;"
        f"spec = encoder_spec('hf:owner/name', weights_dir=Path({str(tmp_path)!r}));"
        "assert spec.dim == 1024 and 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("repository", "model_type", "message"),
    [
        (
            "openai/whisper-base",
            "whisper",
            r"of the type 'whisper'\. .*wavlm, unispeech.*in the catalogue as 'whisper'",
        ),
        (
            "google/bert",
            "bert",
            r"of the type 'bert'\. hf: takes wav2vec2-like audio encoders.*See `hyfuse models list`",
        ),
        ("a/b", None, "of the type None"),
    ],
)
def test_another_architecture(tmp_path: Path, repository: str, model_type: object, message: str) -> None:
    _put_config(tmp_path / repository, model_type=model_type)
    with pytest.raises(ConfigError, match=message):
        encoder_spec(f"hf:{repository}", weights_dir=tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        '{"model_type": "hub',
        "[1]",
        '{"model_type": "hubert", "hidden_size": "768"}',
        '{"model_type": "hubert", "num_hidden_layers": 0}',
        '{"model_type": "hubert", "conv_stride": 5}',
        '{"model_type": "hubert", "conv_stride": [5, true]}',
    ],
)
def test_damaged_configuration(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(WeightsError, match=r"config\.json cannot be read as the configuration of 'hf:owner/name' \("):
        encoder_spec("hf:owner/name", weights_dir=tmp_path)


def test_offline_without_a_configuration(tmp_path: Path) -> None:
    with pytest.raises(
        WeightsError,
        match=r"'hf:owner/name@v1' cannot be described without its config\.json.*HYFUSE_WEIGHTS is not set.*HF_HUB_OFFLINE is"
        r" set.*huggingface\.co/owner/name exists at revision v1.*set HYFUSE_WEIGHTS=~/hyfuse-weights\.",
    ):
        encoder_spec("hf:owner/name@v1")
    with pytest.raises(WeightsError, match=rf"looked for in {tmp_path} and .*into {tmp_path}/owner/name\.$"):
        encoder_spec("hf:owner/name", weights_dir=tmp_path)


# ------------------------------------------------------------------------------------------------- loading


@pytest.mark.parametrize("kind", ["hubert", "xls-r", "wavlm", "hubert, batch norm (mHuBERT)", "data2vec-audio"])
def test_loads_like_upstream(tmp_path: Path, kind: str) -> None:
    spec = kind_spec(kind)
    checkpoint = save_checkpoint(spec, tmp_path / "owner" / "some-tiny")
    encoder = load_encoder("hf:owner/some-tiny@v1", weights_dir=tmp_path)
    assert (encoder.spec.name, encoder.spec.dim) == ("hf--owner--some-tiny@v1", 32)
    assert (encoder.weights.source, encoder.weights.revision) == (str(checkpoint), "unverified")
    upstream = upstream_call(spec, checkpoint)
    clips = ragged_batch()[:3]
    for clip, encoded in zip(clips, encoder.encode(clips), strict=True):
        for frames, expected in zip(encoded.values(), upstream(clip), strict=True):
            assert relative(frames, expected) < 1e-5


def test_random_weights_of_a_configuration(tmp_path: Path) -> None:
    tiny = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64, "conv_dim": [32] * 7}
    _put_config(tmp_path, num_hidden_layers=2, num_conv_pos_embedding_groups=4, **tiny)
    encoders = [
        load_encoder("hf:owner/name", weights="random", weights_dir=tmp_path, precision=p) for p in ("float32", "bf16")
    ]
    assert encoders[0].weights.kind == "random"
    assert encoders[0].weights == encoders[1].weights
    assert torch.isfinite(encoders[0].encode([torch.randn(4000)])[0]["layer_02"]).all()


@pytest.mark.parametrize(("revision", "suffix"), [("main", ""), ("v1", "@v1"), (COMMIT, f"@{COMMIT}")])
def test_the_commit_of_the_hub_cache_is_recorded(tmp_path: Path, revision: str, suffix: str) -> None:
    base = tmp_path / "hub" / "models--owner--name"
    save_checkpoint(kind_spec("hubert"), base / "snapshots" / COMMIT)
    (base / "refs").mkdir()
    (base / "refs" / revision).write_text(COMMIT)
    encoder = load_encoder(f"hf:owner/name{suffix}")
    assert (encoder.weights.source, encoder.weights.revision) == ("owner/name", COMMIT)
    assert encoder.weights.kind == "pretrained"
