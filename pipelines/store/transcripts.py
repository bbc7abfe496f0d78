"""Transcripts that a recogniser (ASR) made of a corpus under one condition, and how stores of text name their conditions.

``<cache>/<corpus>/transcripts/<model>/<condition>.asr`` is a folder::

    transcripts.json      where the texts come from (TranscriptProvenance), number of utterances, rows per block
    block-000000.jsonl    one line per utterance of the block, in manifest order: utterance_id, text, failure, duration_s;
                          then a line with the sha256 of the lines before it

A block is ``block_rows`` manifest rows and one file, which appears whole under its name: a run that is killed goes on at the next
block that is missing and ends with the same bytes. Nothing is ever appended to, so the folder may lie on object storage as well.

**Three things that look alike are kept apart.** A *text* may be empty: the recogniser ran and heard no words, which is a result. An
utterance *failed* if its recording could not be used; it has a reason and no text (None), never an empty one. An utterance that is
still *to do* has no line yet, and transcripts with such are refused unless asked for.

The *digest* of transcripts is that of their texts, utterance by utterance. A store of text embeddings records it, so that it is
refused when texts have changed, however that came about.

**Conditions of text.** Stores of encoders of text are named by where their text comes from (:func:`text_condition`)::

    clean                        transcripts of the manifest, by hand
    asr:whisper                  by whisper from the recordings as they are
    asr:whisper+noise:esc10@5dB  by whisper from the recordings under that condition

Stage 2 reads transcripts here, with :func:`read_transcripts`; whoever makes them is ``pipelines.extraction.transcribe``.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from pipelines.errors import ConfigError, ProvenanceError, StoreError, UtteranceError
from pipelines.files import TEMPORARY_PREFIX, write_atomically
from pipelines.locations import Location, storage_errors
from pipelines.store.locks import store_lock

__all__ = [
    "MANUAL",
    "TRANSCRIPT_BLOCK_ROWS",
    "TranscriptProvenance",
    "TranscriptRow",
    "TranscriptWriter",
    "Transcripts",
    "find_transcripts",
    "open_transcript_writer",
    "parse_text_condition",
    "read_transcripts",
    "text_condition",
    "texts_digest",
    "transcribe_command",
    "transcripts_path",
]

MANUAL = "manual"
"""Transcripts of the manifest, where a source of text is named; others are called ``asr:<model>``."""

TRANSCRIPT_BLOCK_ROWS = 64

_SCHEMA_VERSION = 1
_HEADER = "transcripts.json"
_SUFFIX = ".asr"
_ASR = "asr:"


# ------------------------------------------------------------------------------------------------ names


def transcripts_path(cache_dir: Location, corpus: str, model: str, condition: str = "clean") -> Location:
    """Where the transcripts of a corpus by a recogniser under an audio condition lie."""
    return cache_dir / corpus / "transcripts" / model / f"{condition}{_SUFFIX}"


def transcribe_command(corpus: str, model: str, condition: str = "clean") -> str:
    """The command that makes, or finishes, transcripts."""
    under = "" if condition == "clean" else f" --condition {condition}"
    return f"`hyfuse transcribe --corpus {corpus} --model {model}{under}`"


def text_condition(asr_model: str | None = None, audio_condition: str = "clean") -> str:
    """The condition that a store of text embeddings has.

    Args:
        asr_model: recogniser; None for the manifest's own transcripts.
        audio_condition: canonical name of what was done to the recordings before they were recognised.

    Raises:
        ConfigError: the manifest's transcripts under a condition other than ``clean``: noise does not change them.
    """
    if asr_model is None:
        if audio_condition != "clean":
            raise ConfigError(
                f"Transcripts by hand are the same under every condition, so there is none under {audio_condition}. Use condition"
                " clean, or the text that a recogniser hears under it: `--transcripts asr:whisper`."
            )
        return "clean"
    return f"{_ASR}{asr_model}" + ("" if audio_condition == "clean" else f"+{audio_condition}")


def parse_text_condition(name: str) -> tuple[str | None, str]:
    """Recogniser (None: by hand) and audio condition of a store of text embeddings; reverse of :func:`text_condition`.

    Raises:
        ConfigError: neither ``clean`` nor ``asr:<model>`` nor ``asr:<model>+<condition>``.
    """
    if name == "clean":
        return None, "clean"
    model, plus, condition = name.removeprefix(_ASR).partition("+")
    if not name.startswith(_ASR) or not model or bool(plus) != bool(condition):
        raise ConfigError(
            f"{name!r} is no condition of text; expected clean, asr:MODEL or asr:MODEL+CONDITION, as in asr:whisper+white@5dB."
        )
    return model, condition or "clean"


def texts_digest(utterance_ids: Sequence[str], texts: Sequence[str | None]) -> str:
    """sha256 over ids and texts in the order given; None, for no text, differs from an empty one."""
    digest = hashlib.sha256()
    for name, text in zip(utterance_ids, texts, strict=True):
        digest.update(json.dumps([name, text], ensure_ascii=True).encode() + b"\n")
    return digest.hexdigest()


# ------------------------------------------------------------------------------------------------ what they hold


@dataclass(frozen=True, kw_only=True)
class TranscriptProvenance:
    """Where transcripts come from.

    Attributes:
        corpus: name of the corpus.
        manifest_digest: of the manifest whose recordings were recognised.
        model: recogniser, a catalogue name.
        condition: what was done to the recordings, ``clean`` for nothing.
        condition_digest: of what the condition's name does not say; empty for ``clean``.
        language: ISO 639-1 code that the recogniser was told, ``auto`` if it chose for every recording, empty if it has no choice.
        decoding: how words were chosen, with a version that is raised when the same recording may give other words.
        weights_kind: ``pretrained`` or ``random``; the text of random weights is nonsense.
        weights_source: repository, address or file.
        weights_revision: pinned revision, ``unverified``, or empty.
        weights_digest: sha256 of the parameters.
        weights_licence: licence of the weights.
        sample_rate_hz: rate the recogniser was fed with.
        resampler: library and quality.
        precision: arithmetic.
        device: kind of device, ``cpu`` or ``cuda``.
        versions: library to version.
    """

    corpus: str
    manifest_digest: str
    model: str
    condition: str
    condition_digest: str
    language: str
    decoding: str
    weights_kind: str
    weights_source: str
    weights_revision: str
    weights_digest: str
    weights_licence: str
    sample_rate_hz: int
    resampler: str
    precision: str
    device: str
    versions: Mapping[str, str]

    def differences(self, other: TranscriptProvenance, names: Sequence[str]) -> list[tuple[str, str, str]]:
        """(field, value here, value in ``other``) for every one of ``names`` that differs."""
        return [
            (name, _shown(getattr(self, name)), _shown(getattr(other, name)))
            for name in names
            if getattr(self, name) != getattr(other, name)
        ]


_ENVIRONMENT = ("device", "versions")
_IDENTITY = (
    "corpus",
    "manifest_digest",
    "model",
    "condition",
    "condition_digest",
    "language",
    "decoding",
    "weights_kind",
    "weights_digest",
    "sample_rate_hz",
    "resampler",
    "precision",
)


@dataclass(frozen=True)
class TranscriptRow:
    """What became of one recording.

    Attributes:
        text: what was heard, perhaps nothing at all; None if the recording failed.
        failure: why it failed; empty if it did not.
        duration_s: seconds of audio; NaN if it could not be decoded.
    """

    text: str | None
    failure: str
    duration_s: float


@dataclass(frozen=True)
class Transcripts:
    """Transcripts opened for reading.

    Attributes:
        path: their folder.
        provenance: where the texts come from.
        utterance_ids: in manifest order; all of the corpus, if they are complete.
        rows: what became of each.
        num_utterances: utterances of the corpus.
    """

    path: Location
    provenance: TranscriptProvenance
    utterance_ids: tuple[str, ...] = field(repr=False)
    rows: tuple[TranscriptRow, ...] = field(repr=False)
    num_utterances: int

    def __len__(self) -> int:
        return len(self.utterance_ids)

    @property
    def is_complete(self) -> bool:
        """Whether every utterance of the corpus has a row."""
        return len(self.utterance_ids) == self.num_utterances

    @property
    def texts(self) -> list[str | None]:
        """Texts in manifest order; None where a recording failed."""
        return [row.text for row in self.rows]

    @cached_property
    def by_id(self) -> dict[str, str]:
        """Utterance id to text, of those that have one."""
        return {name: row.text for name, row in zip(self.utterance_ids, self.rows, strict=True) if row.text is not None}

    @cached_property
    def failures(self) -> dict[str, str]:
        """Utterance id to reason, of recordings that failed."""
        return {name: row.failure for name, row in zip(self.utterance_ids, self.rows, strict=True) if row.text is None}

    @cached_property
    def digest(self) -> str:
        """Of all texts; see :func:`texts_digest`."""
        return texts_digest(self.utterance_ids, self.texts)

    def texts_of(self, utterance_ids: Sequence[str]) -> list[str]:
        """Texts of utterances, joined by id.

        Raises:
            UtteranceError: an utterance has none, because its recording failed or is not of this corpus.
        """
        absent = [name for name in utterance_ids if name not in self.by_id]
        if absent:
            reason = self.failures.get(absent[0], "not among the utterances that were transcribed")
            raise UtteranceError(
                f"{len(absent)} of {len(utterance_ids)} utterances have no text in {self.path}, for instance {absent[0]}"
                f" ({reason}). Leave them out, or mend the recordings and run {self._command()} with --retry-failed."
            )
        return [self.by_id[name] for name in utterance_ids]

    def _command(self) -> str:
        made = self.provenance
        return transcribe_command(made.corpus, made.model, made.condition)


# ------------------------------------------------------------------------------------------------ reading


def read_transcripts(
    cache_dir: Location,
    corpus: str,
    model: str,
    condition: str = "clean",
    *,
    manifest_digest: str | None = None,
    complete: bool = True,
) -> Transcripts:
    """Read the transcripts of a corpus by a recogniser.

    Args:
        cache_dir: folder of the stores.
        corpus: name of the corpus.
        model: recogniser, a catalogue name.
        condition: canonical name of the audio condition.
        manifest_digest: the manifest that they must have been made from.
        complete: whether utterances that are still to do are an error.

    Raises:
        StoreError: absent, damaged, of another schema, or unfinished; the message has the command that makes or finishes them.
        ProvenanceError: made from another manifest.
        StorageError: object storage cannot be reached.
    """
    path = transcripts_path(cache_dir, corpus, model, condition)
    found = _read(path)
    if found is None:
        raise StoreError(
            f"There are no transcripts of {corpus!r} by {model}{_under(condition)}: {path} does not exist. Make them with"
            f" {transcribe_command(corpus, model, condition)}, or name another cache with --cache-dir."
        )
    made = found.provenance
    if manifest_digest is not None and made.manifest_digest != manifest_digest:
        raise _mismatch(path, made, [("manifest_digest", made.manifest_digest[:12], manifest_digest[:12])])
    if complete and not found.is_complete:
        raise StoreError(
            f"The transcripts {path} are unfinished: {len(found)} of {found.num_utterances} utterances. Finish them with"
            f" {transcribe_command(corpus, model, condition)}."
        )
    return found


def find_transcripts(cache_dir: Location, corpus: str) -> list[tuple[str, str]]:
    """(recogniser, audio condition) of all transcripts of a corpus, sorted; unfinished ones, too.

    Raises:
        StorageError: object storage cannot be reached.
    """
    folder = cache_dir / corpus / "transcripts"
    if not folder.is_dir():
        return []
    return sorted(
        (path.parent.name, path.name.removesuffix(_SUFFIX))
        for path in folder.glob(f"*/*{_SUFFIX}")
        if not path.name.startswith(".")
    )


def _under(condition: str) -> str:
    return "" if condition == "clean" else f" under {condition}"


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {version}" for name, version in sorted(value.items()))
    text = str(value)
    return text[:12] + "…" if re.fullmatch("[0-9a-f]{64}", text) else text or "(none)"


def _mismatch(
    path: Location, made: TranscriptProvenance, differences: Sequence[tuple[str, str, str]]
) -> ProvenanceError:
    listed = "; ".join(f"{name}: they have {found}, asked for is {asked}" for name, found, asked in differences)
    command = transcribe_command(made.corpus, made.model, made.condition).strip("`")
    return ProvenanceError(
        f"The transcripts {path} were made from something else. {listed}. To make them anew, run `{command} --anew`; to keep both,"
        " use another --cache-dir."
    )


def _damaged(path: Location, made: TranscriptProvenance | None, what: str) -> StoreError:
    corpus, model = path.parent.parent.parent.name, path.parent.name
    condition = made.condition if made is not None else path.name.removesuffix(_SUFFIX)
    command = transcribe_command(corpus, model, condition).strip("`")
    return StoreError(f"The transcripts {path} are damaged: {what}. Make them anew: `{command} --anew`.")


def _read_header(path: Location) -> tuple[TranscriptProvenance, int, int] | None:
    """Provenance, utterances in all and rows per block; None where there are no transcripts."""
    file = path / _HEADER
    if not file.is_file():
        return None
    try:
        header = dict(json.loads(file.read_text(encoding="utf-8")))
        schema = header.pop("schema_version")
        if schema != _SCHEMA_VERSION:
            raise _damaged(
                path, None, f"their schema version is {schema!r}, this version of hyfuse reads {_SCHEMA_VERSION}"
            )
        total, block_rows = int(header.pop("utterances")), int(header.pop("block_rows"))
        names = {item.name for item in fields(TranscriptProvenance)}
        return TranscriptProvenance(**{name: header[name] for name in names}), total, block_rows
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, StoreError):
            raise
        raise _damaged(path, None, f"{_HEADER} cannot be read ({type(error).__name__}: {error})") from error


def _block_name(block: int) -> str:
    return f"block-{block:06d}.jsonl"


def _read_block(path: Location, made: TranscriptProvenance, block: int, rows: int) -> dict[str, TranscriptRow] | None:
    """A block, id to row in manifest order; None if it is still to do."""
    file = path / _block_name(block)
    if not file.is_file():
        return None
    content = file.read_bytes()
    body, _, seal = content.rstrip(b"\n").rpartition(b"\n")
    try:
        sealed = json.loads(seal)["sha256"] == hashlib.sha256(body + b"\n").hexdigest()
        found = {}
        for line in body.decode().split("\n") if sealed else []:
            entry = json.loads(line)
            duration_s = math.nan if entry["duration_s"] is None else float(entry["duration_s"])
            found[str(entry["utterance_id"])] = TranscriptRow(entry["text"], str(entry["failure"]), duration_s)
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(path, made, f"{file.name} cannot be read ({type(error).__name__}: {error})") from error
    if not sealed or len(found) != rows:
        raise _damaged(path, made, f"{file.name} does not hold what was written")
    return found


def _read(path: Location) -> Transcripts | None:
    header = _read_header(path)
    if header is None:
        return None
    made, total, block_rows = header
    rows: dict[str, TranscriptRow] = {}
    for block in range(-(-total // block_rows)):
        rows.update(_read_block(path, made, block, min(block_rows, total - block * block_rows)) or {})
    return Transcripts(path, made, tuple(rows), tuple(rows.values()), total)


# ------------------------------------------------------------------------------------------------ writing


class TranscriptWriter:
    """Transcripts opened for writing, one block at a time; made by :func:`open_transcript_writer`."""

    def __init__(
        self,
        *,
        path: Location,
        provenance: TranscriptProvenance,
        utterance_ids: Sequence[str],
        block_rows: int,
        retry_failed: bool,
    ) -> None:
        self.path = path
        self.block_rows = block_rows
        self._provenance = provenance
        self._ids = utterance_ids
        self._rows: dict[str, TranscriptRow] = {}
        self._todo: list[int] = []
        for block in range(-(-len(utterance_ids) // block_rows)):
            names = self._names(block)
            found = _read_block(path, provenance, block, len(names))
            if found is not None and list(found) != names:
                raise _damaged(path, provenance, f"{_block_name(block)} is of other utterances")
            if found is None or (retry_failed and any(row.text is None for row in found.values())):
                self._todo.append(block)
            else:
                self._rows.update(found)

    def _names(self, block: int) -> list[str]:
        return list(self._ids[block * self.block_rows : (block + 1) * self.block_rows])

    @property
    def num_utterances(self) -> int:
        """Utterances of the corpus."""
        return len(self._ids)

    @property
    def num_done(self) -> int:
        """Utterances that need no more work."""
        return len(self._rows)

    def blocks_to_do(self) -> list[int]:
        """Blocks without a file and, to be tried again, those with a recording that failed; in order."""
        return list(self._todo)

    def failures(self) -> dict[str, str]:
        """Utterance id to reason, as far as blocks are done."""
        return {name: row.failure for name, row in self._rows.items() if row.text is None}

    def some_usable(self) -> str | None:
        """An utterance whose recording could be used."""
        return next((name for name, row in self._rows.items() if row.text is not None), None)

    def write_block(self, block: int, rows: Sequence[TranscriptRow]) -> None:
        """Write a block; it appears whole.

        Raises:
            ValueError: not as many rows as the block has, or a row with both a text and a failure, or neither.
            StorageError: the disk is full or cannot be written.
        """
        names = self._names(block)
        if len(rows) != len(names):
            raise ValueError(f"Block {block} has {len(names)} rows, not {len(rows)}.")
        if any((row.text is None) != bool(row.failure) for row in rows):
            raise ValueError("A row has either a text, which may be empty, or a reason why there is none.")
        lines = [
            json.dumps(
                {
                    "utterance_id": name,
                    "text": row.text,
                    "failure": row.failure,
                    "duration_s": None if math.isnan(row.duration_s) else row.duration_s,
                },
                ensure_ascii=False,
            )
            for name, row in zip(names, rows, strict=True)
        ]
        body = "".join(line + "\n" for line in lines).encode()
        seal = json.dumps({"rows": len(rows), "sha256": hashlib.sha256(body).hexdigest()})
        write_atomically(self.path / _block_name(block), body + seal.encode() + b"\n", option="--cache-dir")
        self._rows.update(zip(names, rows, strict=True))
        self._todo = [other for other in self._todo if other != block]


@contextmanager
def open_transcript_writer(
    path: Location,
    *,
    provenance: TranscriptProvenance,
    utterance_ids: Sequence[str],
    block_rows: int = TRANSCRIPT_BLOCK_ROWS,
    retry_failed: bool = False,
    anew: bool = False,
) -> Iterator[TranscriptWriter]:
    """Open transcripts for writing: continue those at ``path``, or make them.

    Args:
        path: of :func:`transcripts_path`.
        provenance: what is about to be written.
        utterance_ids: N ids in manifest order.
        block_rows: rows per block of new transcripts; existing ones keep their own.
        retry_failed: also do blocks with recordings that failed once more.
        anew: forget what is there.

    Raises:
        ProvenanceError: what is there was made from something else (where rows are to be written, also when library versions or
            the device differ).
        StoreError: damaged, or another process is writing them.
        StorageError: the disk is full or cannot be written, or object storage cannot.
    """
    if isinstance(path, Path):
        with storage_errors(path, doing="written"):
            path.parent.mkdir(parents=True, exist_ok=True)
    with store_lock(path):
        if anew:
            _remove(path)
        found = _read_header(path)
        if found is None:
            header = {
                "schema_version": _SCHEMA_VERSION,
                **asdict(provenance),
                "versions": dict(sorted(provenance.versions.items())),
                "utterances": len(utterance_ids),
                "block_rows": block_rows,
            }
            _remove(path)  # blocks without their header are nobody's
            text = json.dumps(header, indent=1, ensure_ascii=False) + "\n"
            write_atomically(path / _HEADER, text, option="--cache-dir")
        else:
            made, total, block_rows = found
            if differences := made.differences(provenance, _IDENTITY):
                raise _mismatch(path, made, differences)
            if total != len(utterance_ids):
                raise _damaged(path, made, f"they are of {total} utterances, the corpus has {len(utterance_ids)}")
        writer = TranscriptWriter(
            path=path,
            provenance=provenance,
            utterance_ids=utterance_ids,
            block_rows=block_rows,
            retry_failed=retry_failed,
        )
        differences = found[0].differences(provenance, _ENVIRONMENT) if found is not None else []
        if found is not None and differences and writer.blocks_to_do():  # rows of two environments are not mixed
            raise _mismatch(path, found[0], differences)
        if isinstance(path, Path):
            for leftover in path.glob(f"{TEMPORARY_PREFIX}*"):  # of a run that was killed
                leftover.unlink(missing_ok=True)
        yield writer


def _remove(path: Location) -> None:
    """Remove transcripts, the header first: what is left of a removal that is killed half-way is nobody's."""
    if not path.is_dir():
        return
    with storage_errors(path, doing="removed"):
        if isinstance(path, Path):
            (path / _HEADER).unlink(missing_ok=True)
            shutil.rmtree(path)
        else:
            path.delete([(path / _HEADER).key])
            path.delete([file.key for file in path.rglob("*")])
