"""Finished blocks into the store, behind the model's back, unless too much has gone wrong.

A block is written by a thread while the next one is encoded; one block at a time, in the order in which they were finished.
Before that it is looked at: a corpus whose folder has gone must not be recorded as a corpus of broken files, and a run that fails
more recordings than it may is stopped.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np

from pipelines.corpora.manifest import Manifest
from pipelines.errors import AudioError, ConfigError, FailuresError
from pipelines.extraction.blocks import Block
from pipelines.store.embeddings import DONE, BlockResult, StoreWriter

__all__ = ["BlockSink", "FailureLimit", "check_root", "parse_max_failures"]


def parse_max_failures(text: str, total: int) -> int:
    """How many recordings may fail: a number, or a share of the corpus (``1%``, rounded up).

    Args:
        text: as the user wrote it.
        total: utterances of the corpus.

    Raises:
        ConfigError: neither.
    """
    stripped = text.strip()
    try:
        number = float(stripped.removesuffix("%"))
        if math.isfinite(number) and number >= 0:
            if stripped.endswith("%") and number <= 100:
                return math.ceil(total * number / 100)
            if not stripped.endswith("%") and number.is_integer():
                return int(number)
    except ValueError:
        pass
    raise ConfigError(
        f"--max-failures is {text!r}; expected a number of recordings, such as 20, or a share of the corpus, such as 1%."
    )


class FailureLimit:
    """Counts recordings that failed, and stops a run that is going wrong.

    Args:
        allowed: most that may fail; None for any number.
        failed: utterance id to reason, of those that the store already holds.
        total: utterances of the corpus.
    """

    def __init__(self, *, allowed: int | None, failed: Mapping[str, str], total: int) -> None:
        self._allowed = allowed
        self._failed = dict(failed)
        self._total = total

    @property
    def count(self) -> int:
        """Recordings that failed so far."""
        return len(self._failed)

    def add(self, failed: Mapping[str, str]) -> None:
        """Count failures of a block that was written.

        Raises:
            FailuresError: they are too many; the message lists the reasons.
        """
        self._failed.update(failed)
        if not failed or self._allowed is None or len(self._failed) <= self._allowed:
            return
        raise FailuresError(
            f"{len(self._failed)} of {self._total} recordings failed, more than the {self._allowed} that may"
            f" (--max-failures). {_reasons(self._failed)} Nothing that was finished is lost. Mend the recordings and run the same"
            " command with --retry-failed, or go on without them with a larger --max-failures."
        )


def _reasons(failed: Mapping[str, str], most: int = 5) -> str:
    """The commonest reasons, each with an example; reasons that differ in the file's name only are counted together."""
    kinds: Counter[str] = Counter()
    example: dict[str, str] = {}
    for name, reason in failed.items():
        words = reason.split()
        kind = " ".join(words[1:6]) if words and "." in words[0].strip(".") else " ".join(words[:6])
        kinds[kind] += 1
        example.setdefault(kind, f"{name}: {reason}")
    shown = [f"{count} × {example[kind]}" if count > 1 else example[kind] for kind, count in kinds.most_common(most)]
    return " ".join(shown) + (f" … and {len(kinds) - most} other reasons." if len(kinds) > most else "")


class BlockSink:
    """Takes finished blocks. Use it in a ``with`` statement; leaving it without an error waits for the last block.

    Args:
        writer: the store.
        manifest: the corpus.
        failures: counts failed recordings.
        written: called with (block index, utterance id to reason) when a block is in the store, from the thread that wrote it.
        recordings: whether rows are made of recordings, whose folder may be gone, rather than of texts.
    """

    def __init__(
        self,
        *,
        writer: StoreWriter,
        manifest: Manifest,
        failures: FailureLimit,
        written: Callable[[int, Mapping[str, str]], None] | None = None,
        recordings: bool = True,
    ) -> None:
        self._writer = writer
        self._manifest = manifest
        self._failures = failures
        self._written = written
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="store-writer")
        self._pending: tuple[Mapping[str, str], Future[None]] | None = None
        # A recording that could be used: it tells broken files from a folder that is gone.
        self._witness: Path | None = None
        self._recordings = recordings
        known = np.flatnonzero(writer.store.status == DONE)
        if recordings and len(known):
            self._witness = manifest.audio_paths(range(known[0], known[0] + 1))[0]

    def __enter__(self) -> BlockSink:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            self._thread.shutdown(wait=True)

    def accept(self, block: Block, result: BlockResult) -> None:
        """Check a block and have it written.

        Raises:
            AudioError: the corpus' folder has gone, or nothing in it can be used.
            FailuresError: too many recordings failed.
            StorageError: an earlier block could not be written.
        """
        if self._recordings and np.isnan(result.duration_s).all():
            check_root(self._manifest, self._witness, result.failure)
        self._finish()
        failed = {name: reason for name, reason in zip(block.utterance_ids, result.failure, strict=True) if reason}
        self._pending = (failed, self._thread.submit(self._write, block.index, result, failed))
        if self._witness is None and self._recordings:
            usable = (path for path, reason in zip(block.paths, result.failure, strict=True) if not reason)
            self._witness = next(usable, None)

    def _finish(self) -> None:
        """Wait for the block that is being written."""
        if self._pending is None:
            return
        failed, future = self._pending
        self._pending = None
        future.result()
        self._failures.add(failed)

    def _write(self, index: int, result: BlockResult, failed: Mapping[str, str]) -> None:
        self._writer.write_block(index, result)
        if self._written is not None:
            self._written(index, failed)


def check_root(manifest: Manifest, witness: Path | None, reasons: Sequence[str]) -> None:
    """Of a block, nothing can be decoded: are these recordings broken, or has the whole corpus gone?

    Failures are kept in the store, so a folder that is not mounted must not be taken for broken files.

    Args:
        manifest: the corpus, with its root.
        witness: a recording that could be used; None if none was so far.
        reasons: why each recording of the block could not.

    Raises:
        AudioError: the folder has gone, or it is the first block and nothing in it can be used.
    """
    count, root = len(reasons), manifest.root
    if witness is None:
        raise AudioError(
            f"None of the first {count} recordings can be used. The first one: {reasons[0]} Check --data-root: it is {root}."
        )
    if not _is_file(witness):
        raise AudioError(
            f"None of the next {count} recordings can be used, and {witness}, which could be, is not there any more. Check"
            f" --data-root, and that the disk is still mounted: it is {root}. The same command goes on from here."
        )


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:
        return False
