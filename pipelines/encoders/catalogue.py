"""The encoders hyfuse knows: names, checkpoints, licences. Importable without torch.

Adding an encoder is one entry here and one class in a family module. Every entry also exists in a ``-tiny`` size with the
same classes, fewer and narrower layers and random weights only, for the demo and for tests.

Families: RLR (representation learning), CBR (compression-based: neural codecs). Licences and revisions were gathered from
public pages; what could not be confirmed says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import TYPE_CHECKING

from pipelines.errors import ConfigError, unknown_name

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from pipelines.encoders.base import Encoder
    from pipelines.encoders.weights import Progress

__all__ = [
    "CATALOGUE",
    "TINY_SUFFIX",
    "WEIGHT_KINDS",
    "EncoderSpec",
    "WeightFile",
    "encoder_names",
    "encoder_spec",
    "load_encoder",
]

TINY_SUFFIX = "-tiny"
WEIGHT_KINDS = ("pretrained", "random")


@dataclass(frozen=True)
class WeightFile:
    """One file of weights.

    Attributes:
        name: file name that is looked for.
        aliases: other names under which people keep it.
        sha256: digest, or a leading part of it where upstream publishes only that; empty where only the revision pins it.
        url: direct download; empty where the file belongs to the Hub repository of the entry.
    """

    name: str
    aliases: tuple[str, ...] = ()
    sha256: str = ""
    url: str = ""


@dataclass(frozen=True)
class EncoderSpec:
    """One catalogue entry.

    Attributes:
        name: what the user types.
        family: ``RLR`` or ``CBR``.
        title: one line for listings.
        factory: ``module:class``; the class has ``build(spec, weights_kind, device, weights_dir, progress)``.
        sample_rate_hz: rate of the waveforms it takes.
        hop_samples: samples per frame; 0 for utterance-level encoders.
        dim: features D of every representation.
        representations: names, in the order of the store.
        default_representation: what ``train`` uses unless told otherwise.
        repository: where the checkpoint lives.
        revision: pinned commit or tag.
        files: files of weights that are needed.
        licence: of the weights.
        settings: architecture settings that a size changes; read by the family module.
        notes: what a user should know, shown by ``hyfuse models show``.
        precisions: arithmetic that the class offers; its ``build`` takes ``precision`` where there is more than float32.
    """

    name: str
    family: str
    title: str
    factory: str
    sample_rate_hz: int
    hop_samples: int
    dim: int
    representations: tuple[str, ...]
    default_representation: str
    repository: str
    revision: str
    files: tuple[WeightFile, ...]
    licence: str
    settings: Mapping[str, object] = field(default_factory=dict)
    notes: str = ""
    precisions: tuple[str, ...] = ("float32",)

    @property
    def is_tiny(self) -> bool:
        """Whether this is the ``-tiny`` size, which has random weights only."""
        return self.name.endswith(TINY_SUFFIX)


def _layers(count: int) -> tuple[str, ...]:
    return tuple(f"layer_{index:02d}" for index in range(count + 1))


_CODEC = ("latent", "quantized")


def _tiny(
    spec: EncoderSpec, *, dim: int, representations: tuple[str, ...] | None = None, **settings: object
) -> EncoderSpec:
    """The tiny size of an entry: same classes, ``settings`` replaced, random weights only."""
    names = representations or spec.representations
    default = spec.default_representation
    return replace(
        spec,
        name=spec.name + TINY_SUFFIX,
        title=f"{spec.title}; tiny and random, for demos and tests",
        dim=dim,
        representations=names,
        default_representation=default if default in names else names[-1],
        repository="",
        revision="",
        files=(),
        licence="none: random weights",
        settings={**spec.settings, **settings},
    )


_WAVLM = EncoderSpec(
    name="wavlm",
    family="RLR",
    title="WavLM base",
    factory="pipelines.encoders.wavlm:WavLMEncoder",
    sample_rate_hz=16000,
    hop_samples=320,
    dim=768,
    representations=_layers(12),
    default_representation="layer_12",
    repository="microsoft/wavlm-base",
    revision="efa81aae7ff777e464159e0f877d54eac5b84f81",
    files=(
        WeightFile("config.json"),
        WeightFile("preprocessor_config.json"),
        WeightFile("model.safetensors|pytorch_model.bin"),
    ),
    licence="MIT or CC BY-SA 3.0 (upstream pages disagree)",
    settings={"do_normalize": False},
    notes="Waveforms are taken as they are, not normalised, as its authors trained it. layer_00 is the input of the first"
    " transformer layer.",
)

_XVECTOR = EncoderSpec(
    name="xvector",
    family="RLR",
    title="x-vector, speaker embedding trained on VoxCeleb (SpeechBrain)",
    factory="pipelines.encoders.xvector:XVectorEncoder",
    sample_rate_hz=16000,
    hop_samples=0,
    dim=512,
    representations=("embedding",),
    default_representation="embedding",
    repository="speechbrain/spkrec-xvect-voxceleb",
    revision="56895a2df401be4150a159f3a1c653f00051d477",
    files=(
        WeightFile(
            "embedding_model.ckpt",
            sha256="9d96cafa0ede1a84799b67dc9b5645f31f5b7d094e7e4775e5d5c12547883a93",
        ),
    ),
    licence="Apache-2.0",
    notes="One vector per recording. SpeechBrain adds random noise of 5e-5 on average to the mean over time; here it is the"
    " constant 5e-5, so that results repeat.",
)

_BYOLS = EncoderSpec(
    name="byols",
    family="RLR",
    title="BYOL-S/512, self-supervised on the speech of AudioSet (SERAB)",
    factory="pipelines.encoders.byols:BYOLSEncoder",
    sample_rate_hz=16000,
    hop_samples=0,
    dim=512,
    representations=("embedding",),
    default_representation="embedding",
    repository="Neclow/serab",
    revision="",
    files=(
        WeightFile(
            "default512_BYOLAs64x96-2107281850-e100-bs256-lr0003-rs42.pth",
            aliases=("default512_BYOLAs64x96.pth",),
            sha256="449f5d0dc6b6fa8433d5e43769097520d3bc0fdae88977a7ac29e2e72ca51b52",
            url="https://github.com/Neclow/serab/raw/HEAD/SERAB/checkpoints/"
            "default512_BYOLAs64x96-2107281850-e100-bs256-lr0003-rs42.pth",
        ),
    ),
    licence="MIT",
    notes="One vector per recording: mean plus maximum over time. Log-mel frames are standardised over the recording itself,"
    " not over a corpus.",
)

_ENCODEC = EncoderSpec(
    name="encodec",
    family="CBR",
    title="EnCodec 24 kHz at 6 kbps (8 codebooks)",
    factory="pipelines.encoders.encodec:EncodecEncoder",
    sample_rate_hz=24000,
    hop_samples=320,
    dim=128,
    representations=_CODEC,
    default_representation="latent",
    repository="facebook/encodec_24khz",
    revision="encodec_24khz-d7cc33bc",
    files=(
        WeightFile(
            "encodec_24khz-d7cc33bc.th",
            sha256="d7cc33bc",
            url="https://dl.fbaipublicfiles.com/encodec/v0/encodec_24khz-d7cc33bc.th",
        ),
    ),
    licence="MIT (repository) or CC BY-NC 4.0 (package 0.1.1): upstream pages disagree",
    settings={"bandwidth_kbps": 6.0},
    notes="75 frames per second; recordings are extended with zeros to whole frames, at least 7. quantized is at 6 kbps, the"
    " first 8 of 32 codebooks.",
)

_SOUNDSTREAM = EncoderSpec(
    name="soundstream",
    family="CBR",
    title="SoundStream, NaturalSpeech 2 variant (haydenshively)",
    factory="pipelines.encoders.soundstream:SoundStreamEncoder",
    sample_rate_hz=16000,
    hop_samples=200,
    dim=256,
    representations=_CODEC,
    default_representation="latent",
    repository="haydenshively/SoundStream",
    revision="",
    files=(WeightFile("soundstream_variant_naturalspeech2.pt"),),
    licence="CC BY-SA 4.0",
    settings={"channels": 58, "codebooks": 16, "codebook_size": 1024},
    notes="The Hub revision could not be read when this entry was written, so none is pinned: the store records the digest of"
    " the parameters that were loaded. 80 frames per second, at least 11; fewer than 200 samples at the end complete no frame,"
    " as upstream.",
)

_SOUNDSTREAM_LYRA = EncoderSpec(
    name="soundstream-lyra",
    family="CBR",
    title="SoundStream of Lyra v1.2.0 (Google)",
    factory="pipelines.encoders.soundstream_lyra:SoundStreamLyraEncoder",
    sample_rate_hz=16000,
    hop_samples=320,
    dim=64,
    representations=_CODEC,
    default_representation="latent",
    repository="google/lyra",
    revision="v1.2.0",
    files=(
        WeightFile(
            "soundstream_encoder.tflite",
            aliases=("soundstream_encoder_v1.2.0.tflite",),
            sha256="6110a3f31ea11a46af8686042bce725b2f0da91b5e88e3cbbed004288698ee53",
            url="https://github.com/google/lyra/raw/v1.2.0/model_coeffs/soundstream_encoder.tflite",
        ),
        WeightFile(
            "quantizer.tflite",
            aliases=("quantizer_v1.2.0.tflite",),
            sha256="38c19c60376e6bcae416c41d486244227afb77542771c207dbee8d8e6d7f59bc",
            url="https://github.com/google/lyra/raw/v1.2.0/model_coeffs/quantizer.tflite",
        ),
    ),
    licence="Apache-2.0",
    notes="50 frames per second; recordings are extended with zeros to whole frames. quantized uses all 46 codebooks (9.2 kbps;"
    " Lyra itself sends 16, 30 or 46).",
)

_ENTRIES: tuple[EncoderSpec, ...] = (
    _WAVLM,
    _XVECTOR,
    _BYOLS,
    _ENCODEC,
    _SOUNDSTREAM,
    _SOUNDSTREAM_LYRA,
    _tiny(
        _WAVLM,
        dim=32,
        representations=_layers(2),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        conv_dim=(32,) * 7,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
    ),
    _tiny(_XVECTOR, dim=32, tdnn_channels=(32, 32, 32, 32, 64)),
    _tiny(_ENCODEC, dim=32, filters=4),
    _tiny(_SOUNDSTREAM, dim=32, channels=4, codebooks=4, codebook_size=64),
)

CATALOGUE: dict[str, EncoderSpec] = {entry.name: entry for entry in _ENTRIES}


def encoder_names(*, tiny: bool = False) -> list[str]:
    """Names of all encoders; with ``tiny`` also the ``-tiny`` sizes."""
    return [name for name, spec in CATALOGUE.items() if tiny or not spec.is_tiny]


def encoder_spec(name: str) -> EncoderSpec:
    """Look an encoder up.

    Raises:
        UnknownNameError: no such encoder; the message lists the nearest names.
    """
    try:
        return CATALOGUE[name]
    except KeyError:
        raise unknown_name("model", name, CATALOGUE, hint="See `hyfuse models list`.") from None


def load_encoder(
    name: str,
    *,
    weights: str = "pretrained",
    device: torch.device | str = "cpu",
    weights_dir: Path | None = None,
    progress: Progress | None = None,
    precision: str = "float32",
) -> Encoder:
    """Build an encoder, frozen and in evaluation mode.

    Args:
        name: catalogue name.
        weights: ``pretrained`` or ``random`` (seeded by the name: the same numbers on every machine of one torch version).
        device: where it runs.
        weights_dir: looked in first, before ``$HYFUSE_WEIGHTS`` and the Hub cache.
        progress: called with (file name, bytes done, bytes in all) during a download.
        precision: ``float32``, or another of the entry's ``precisions``.

    Raises:
        UnknownNameError: no such encoder.
        ConfigError: ``weights`` is neither kind, pretrained weights are asked for a ``-tiny`` size, or the encoder does not
            offer ``precision``.
        WeightsError: weights are absent, damaged, or do not fit.
    """
    spec = encoder_spec(name)
    if weights not in WEIGHT_KINDS:
        raise ConfigError(f"--weights must be one of {', '.join(WEIGHT_KINDS)}, not {weights!r}.")
    if spec.is_tiny and weights == "pretrained":
        raise ConfigError(
            f"{name!r} is a tiny size for demos and tests; it has no pretrained weights. Add `--weights random`, or use"
            f" `--model {name.removesuffix(TINY_SUFFIX)}` for the pretrained encoder."
        )
    if precision not in spec.precisions:
        offering = ", ".join(other for other, entry in CATALOGUE.items() if precision in entry.precisions) or "none"
        raise ConfigError(
            f"{name!r} is computed in {' or '.join(spec.precisions)}, not in {precision!r}. Leave --precision out; models that"
            f" offer it: {offering}."
        )
    import torch

    if torch.device(device).type == "cuda":
        torch.backends.cudnn.allow_tf32 = False  # 10 bits of mantissa would break the promise of base.py
    module_name, class_name = spec.factory.split(":")
    factory = getattr(import_module(module_name), class_name)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # weights are laid out for the number of threads, and another layout rounds differently
    try:
        encoder: Encoder = factory.build(
            spec=spec,
            weights_kind=weights,
            device=torch.device(device),
            weights_dir=weights_dir,
            progress=progress,
            **({"precision": precision} if len(spec.precisions) > 1 else {}),
        )
    finally:
        torch.set_num_threads(threads)
    return encoder
