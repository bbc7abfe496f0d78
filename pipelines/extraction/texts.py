"""What encoders of text read: the transcripts of a corpus, by hand or by a recogniser, utterance by utterance in manifest order.

*By hand* is the column ``transcript`` of the manifest. An empty cell there means that nobody wrote down what is said: the
utterance has no text. *By a recogniser* is what ``hyfuse transcribe`` has written (``pipelines.store.transcripts``); there
an empty text means that it heard no words, which is a text like others, and an utterance has none only if its recording
failed.

An utterance without a text fails in a store of text embeddings, with that reason, and is left out of training like a
recording that failed. More of them than may fail (``--max-failures``), or a corpus without any text, is an error before
anything is encoded: the remedy is a command, not a store full of failures.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from pipelines.corpora.manifest import Manifest
from pipelines.encoders.catalogue import EncoderSpec
from pipelines.errors import ConfigError, ManifestError, StoreError, UtteranceError
from pipelines.locations import Location
from pipelines.store.transcripts import (
    MANUAL,
    parse_text_condition,
    read_transcripts,
    text_condition,
    texts_digest,
    transcribe_command,
)

__all__ = [
    "LONGEST_TEXT",
    "CorpusTexts",
    "corpus_texts",
    "manual_texts",
    "parse_transcripts",
    "recognised_texts",
    "texts_for",
]


LONGEST_TEXT = 512
"""Tokens that encoders of text take in one piece; longer texts go through windows."""


@dataclass(frozen=True)
class CorpusTexts:
    """The texts of a corpus; can be sent to another process.

    Attributes:
        condition: of the stores made from them, ``clean`` or ``asr:…``.
        digest: of the texts, see :func:`pipelines.store.transcripts.texts_digest`.
        texts: in manifest order; None where there is none.
        reasons: why there is none; empty where there is one.
        asr_model: recogniser; None for transcripts by hand.
        asr_weights: kind of the recogniser's weights; empty for transcripts by hand.
    """

    condition: str
    digest: str
    texts: tuple[str | None, ...] = field(repr=False)
    reasons: tuple[str, ...] = field(repr=False)
    asr_model: str | None = None
    asr_weights: str = ""


def parse_transcripts(text: str) -> str | None:
    """``manual`` or ``asr:<model>`` as the recogniser's name, None for by hand.

    Raises:
        ConfigError: neither.
        UnknownNameError: no such recogniser.
    """
    from pipelines.encoders.recognition import recogniser_spec

    if text == MANUAL:
        return None
    prefix, _, model = text.partition(":")
    if prefix != "asr" or not model:
        raise ConfigError(
            f"--transcripts is {text!r}; expected manual (the manifest's own) or asr:MODEL, as in asr:whisper, for what"
            " `hyfuse transcribe --model MODEL` has written."
        )
    return recogniser_spec(model).name


def manual_texts(manifest: Manifest) -> CorpusTexts:
    """The transcripts of the manifest; an empty one is none."""
    texts = tuple(text or None for text in manifest.table["transcript"])
    reasons = tuple("" if text else "The manifest has no transcript of it." for text in texts)
    return CorpusTexts("clean", texts_digest(manifest.utterance_ids, texts), texts, reasons)


def recognised_texts(manifest: Manifest, *, model: str, condition: str = "clean", cache_dir: Location) -> CorpusTexts:
    """The transcripts that a recogniser has made.

    Args:
        manifest: the corpus; its recordings are not needed.
        model: recogniser.
        condition: canonical name of the audio condition.
        cache_dir: folder of the stores.

    Raises:
        StoreError: they are absent, damaged or unfinished; the message has the command.
        ProvenanceError: they were made from another manifest.
    """
    found = read_transcripts(cache_dir, manifest.corpus, model, condition, manifest_digest=manifest.digest)
    if found.utterance_ids != tuple(manifest.utterance_ids):
        command = transcribe_command(manifest.corpus, model, condition).strip("`")
        raise StoreError(
            f"The transcripts {found.path} are of other utterances than the manifest that they say they were made from, so they are"
            f" damaged. Make them anew: `{command} --anew`."
        )
    return CorpusTexts(
        condition=text_condition(model, condition),
        digest=found.digest,
        texts=tuple(found.texts),
        reasons=tuple(f"{model} has no transcript of it: {row.failure}" if row.failure else "" for row in found.rows),
        asr_model=model,
        asr_weights=found.provenance.weights_kind,
    )


def corpus_texts(
    manifest: Manifest, *, transcripts: str = MANUAL, condition: str = "clean", cache_dir: Location
) -> CorpusTexts:
    """Texts from either source.

    Args:
        manifest: the corpus.
        transcripts: ``manual`` or ``asr:<model>``.
        condition: canonical name of the audio condition; ``clean`` for transcripts by hand.
        cache_dir: folder of the stores.

    Raises:
        ConfigError: no such source, or transcripts by hand under another condition than ``clean``.
        UnknownNameError: no such recogniser.
        StoreError: see :func:`recognised_texts`.
    """
    model = parse_transcripts(transcripts)
    if model is None:
        text_condition(None, condition)  # for its complaint
        return manual_texts(manifest)
    return recognised_texts(manifest, model=model, condition=condition, cache_dir=cache_dir)


def texts_for(
    manifest: Manifest,
    spec: EncoderSpec,
    texts: CorpusTexts | None,
    *,
    distorted: bool,
    allowed: int | None,
) -> CorpusTexts | None:
    """Check what an extraction was given against what its encoder takes.

    Args:
        manifest: the corpus.
        spec: the encoder.
        texts: texts that were given; None stands for those of the manifest where the encoder takes texts.
        distorted: whether recordings were to be distorted.
        allowed: most utterances that may be without a text; None for all but one.

    Returns:
        What the encoder reads; None for an encoder of recordings.

    Raises:
        ConfigError: texts for an encoder of recordings, or a distortion for one of texts.
        ManifestError: too many utterances have no transcript in the manifest.
        UtteranceError: too many recordings could not be transcribed.
    """
    if not spec.takes_text:
        if texts is not None:
            raise ConfigError(f"{spec.name!r} encodes recordings, not texts. Leave --transcripts out.")
        return None
    if distorted:
        raise ConfigError(
            f"{spec.name!r} encodes texts, to which nothing is done. Give it the texts that a recogniser makes of the distorted"
            " recordings: `--transcripts asr:whisper`."
        )
    texts = texts or manual_texts(manifest)
    missing = [name for name, text in zip(manifest.utterance_ids, texts.texts, strict=True) if text is None]
    total = len(texts.texts)
    if missing and (len(missing) == total or (allowed is not None and len(missing) > allowed)):
        raise _missing(manifest.corpus, missing, total, texts, allowed)
    return texts


def _missing(
    corpus: str, missing: list[str], total: int, texts: CorpusTexts, allowed: int | None
) -> ManifestError | UtteranceError:
    some = ", ".join(missing[:3]) + (", …" if len(missing) > 3 else "")
    every = len(missing) == total
    by = f"transcript by {texts.asr_model}" if texts.asr_model is not None else "transcript in the manifest"
    what = (
        f"None of the {total} utterances of {corpus!r} has a {by}"
        if every
        else (
            f"{len(missing)} of {total} utterances of {corpus!r} have no {by}, more than the {allowed} that may be left out"
        )
    )
    go_on = "" if every else f"; or go on without these utterances: `--max-failures {len(missing)}`"
    if texts.asr_model is None:
        return ManifestError(
            f"{what}: {some}. Let a recogniser write down what is said, {transcribe_command(corpus, 'whisper')}, and use it:"
            f" `--transcripts asr:whisper`{go_on}."
        )
    reason = next(reason for reason in texts.reasons if reason)
    _, condition = parse_text_condition(texts.condition)
    return UtteranceError(
        f"{what}: {some}. The first one: {reason} Mend the recordings and run"
        f" {transcribe_command(corpus, texts.asr_model, condition)} again with --retry-failed{go_on}."
    )
