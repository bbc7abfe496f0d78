"""Extraction on this machine by several processes, one per device.

This process holds the store's lock and hands out blocks; every worker process has its own copy of the encoder and writes the
blocks it has done. Each block is a Zarr shard of its own, so no two of them ever write the same file, and who does which block
changes no bit. A worker that dies, whatever it died of, is replaced, and its blocks are done again.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

import torch

from pipelines.audio.conditions import Distortion
from pipelines.corpora.manifest import Manifest
from pipelines.encoders.base import Encoder
from pipelines.errors import HyfuseError, WeightsError, WorkerError
from pipelines.extraction.engines.local import ExtractionProgress, Tally, extraction_provenance
from pipelines.extraction.sink import BlockSink, FailureLimit
from pipelines.extraction.texts import CorpusTexts, texts_for
from pipelines.extraction.worker import Work, run_blocks
from pipelines.locations import Location
from pipelines.processes import die_with_parent
from pipelines.store.embeddings import (
    BLOCK_ROWS,
    EmbeddingStore,
    FrameSpec,
    StoreWriter,
    attach_writer,
    open_store,
    open_writer,
    store_path,
)

__all__ = ["EncoderLoader", "check_same_weights", "do_blocks", "extract_in_processes"]

EncoderLoader = Callable[..., Encoder]
"""Builds the encoder when called with ``device=``; must be picklable (``functools.partial`` of ``load_encoder``)."""

_AT_ONCE = 2
"""Blocks that a worker has at a time: one that it encodes, one that it decodes ahead."""

_MOST_DEATHS = 3
"""Deaths in a row, with no block finished between them, after which the run is given up."""


def check_same_weights(encoder: Encoder, digest: str) -> None:
    """Whether a worker has loaded the parameters that the store is made with.

    Raises:
        WeightsError: others.
    """
    if encoder.weights.digest != digest:
        raise WeightsError(
            f"A worker loaded other weights of {encoder.spec.name!r} (digest {encoder.weights.digest[:12]}) than the process that"
            f" started it ({digest[:12]}). Give every machine the same files (--weights-dir, HYFUSE_WEIGHTS) and torch version."
        )


@dataclass(frozen=True)
class _Task:
    """What a worker process is started with."""

    load: EncoderLoader = field(repr=False)
    device: str
    threads: int
    weights_digest: str
    work: Work
    path: Location


def _worker(task: _Task, connection: Connection) -> None:
    """A worker process: takes block numbers until it is sent None, and tells of each block that is in the store."""
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    sending = threading.Lock()  # blocks are written, and told of, by another thread

    def tell(*message: Any) -> None:
        with sending:
            connection.send(message)

    def indices() -> Iterator[int]:
        while (index := connection.recv()) is not None:
            yield index

    try:
        torch.set_num_threads(task.threads)
        encoder = task.load(device=task.device)
        check_same_weights(encoder, task.weights_digest)
        tell("ready")
        do_blocks(
            task.work,
            encoder,
            attach_writer(task.path),
            indices(),
            done=lambda rows, seconds: tell("progress", rows, seconds),
            written=lambda index, failed: tell("written", index, dict(failed)),
        )
    except HyfuseError as error:
        tell("error", error)
    except Exception as error:  # the parent tells the user
        tell("error", WorkerError(f"A worker process failed: {type(error).__name__}: {error}"))
        raise


def do_blocks(
    work: Work,
    encoder: Encoder,
    writer: StoreWriter,
    indices: Iterable[int],
    *,
    done: Callable[[int, float], None] | None = None,
    written: Callable[[int, Mapping[str, str]], None] | None = None,
) -> None:
    """Do blocks and write them, in a worker that somebody else counts the failures of.

    Args:
        work: the extraction.
        encoder: the frozen model.
        writer: the store, attached.
        indices: which blocks; may wait for the next one.
        done: called with (recordings finished, seconds of audio) after every batch.
        written: called with (block, utterance id to reason) when a block is in the store, from another thread.
    """
    failures = FailureLimit(allowed=None, failed={}, total=len(work.manifest))
    recordings = work.texts is None
    with BlockSink(
        writer=writer, manifest=work.manifest, failures=failures, written=written, recordings=recordings
    ) as sink:
        for block, result in run_blocks(work, encoder, indices, done=done):
            sink.accept(block, result)


@dataclass
class _Child:
    """A worker process and the blocks it has been given."""

    process: BaseProcess
    connection: Connection
    device: str
    blocks: deque[int] = field(default_factory=deque)
    is_ready: bool = False


class _Crew:
    """Starts, feeds and ends worker processes."""

    def __init__(self, tasks: Sequence[_Task], todo: Sequence[int]) -> None:
        self._context = multiprocessing.get_context("spawn")
        self._todo = deque(todo)
        self._left = len(self._todo)
        self._deaths = 0
        self._tasks = tasks
        self._children: list[_Child] = []

    def run(self) -> Iterator[tuple[Any, ...]]:
        """Messages of the workers (``written`` and ``progress``) until every block is written."""
        try:
            for task in self._tasks[: max(1, self._left)]:
                self._start(task)
            while self._left:
                yield from self._listen()
        finally:
            self._end()

    def _start(self, task: _Task) -> None:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=_worker, args=(task, theirs), daemon=False)
        process.start()
        theirs.close()
        self._children.append(_Child(process, ours, task.device))

    def _listen(self) -> Iterator[tuple[Any, ...]]:
        ready = wait([child.connection for child in self._children])
        for child in [child for child in self._children if child.connection in ready]:
            try:
                message = child.connection.recv()
            except (EOFError, OSError):
                self._replace(child)
                continue
            if message[0] == "error":
                raise message[1]
            if message[0] == "ready":
                child.is_ready = True
            if message[0] == "written":
                child.blocks.remove(message[1])
                self._left -= 1
                self._deaths = 0
            if message[0] != "ready":
                yield message
            self._feed(child)

    def _feed(self, child: _Child) -> None:
        while self._todo and child.is_ready and len(child.blocks) < _AT_ONCE:
            idle = sum(not other.blocks for other in self._children)
            if child.blocks and len(self._todo) <= idle:
                return  # one each before anybody has two
            try:
                child.connection.send(self._todo[0])
            except OSError:
                return  # it has died; its connection will tell
            child.blocks.append(self._todo.popleft())

    def _replace(self, child: _Child) -> None:
        """A worker has died: its blocks go back to the head of the queue, and another one takes its place."""
        child.process.join()
        child.connection.close()
        self._children.remove(child)
        self._todo.extendleft(reversed(child.blocks))
        self._deaths += 1
        if self._deaths >= _MOST_DEATHS:
            code = child.process.exitcode or 0
            how = f"was ended by signal {-code}" if code < 0 else f"ended with status {code}"
            raise WorkerError(
                f"Worker processes keep dying: the last one, on {child.device}, {how}"
                f"{' (the system does so when memory runs out)' if code == -signal.SIGKILL else ''}. Whatever was finished is"
                " kept: run the same command again with fewer --workers."
            )
        self._start(next(task for task in self._tasks if task.device == child.device))

    def _end(self) -> None:
        for child in self._children:
            with contextlib.suppress(OSError):  # it is gone already
                child.connection.send(None)
        deadline = time.monotonic() + (10.0 if not self._left else 0.0)
        for child in self._children:
            child.process.join(max(0.0, deadline - time.monotonic()))
            if child.process.is_alive():
                child.process.kill()
                child.process.join()
            child.connection.close()


def extract_in_processes(
    manifest: Manifest,
    load: EncoderLoader,
    *,
    devices: Sequence[str],
    cache_dir: Location,
    distortion: Distortion | None = None,
    texts: CorpusTexts | None = None,
    frames: FrameSpec | None = None,
    shard: tuple[int, int] | None = None,
    decode_workers: int | None = None,
    max_failures: int | None = None,
    retry_failed: bool = False,
    progress: Callable[[ExtractionProgress], None] | None = None,
    block_rows: int = BLOCK_ROWS,
) -> EmbeddingStore:
    """As :func:`pipelines.extraction.engines.local.extract_corpus`, with one process per entry of ``devices``.

    Args:
        manifest: the corpus, with its root.
        load: builds the encoder in every process.
        devices: ``cuda:0``, ``cuda:1``, … or several times ``cpu``, which then share the cores.
        cache_dir: and the others: see there.

    Raises:
        WorkerError: workers die again and again.
        WeightsError: a worker loaded other weights.
    """
    encoder = load(device="cpu")
    kind = torch.device(devices[0]).type
    texts = texts_for(manifest, encoder.spec, texts, distorted=distortion is not None, allowed=max_failures)
    provenance = extraction_provenance(manifest, encoder, distortion=distortion, texts=texts, device=kind)
    path = store_path(cache_dir, manifest.corpus, encoder.spec.name, provenance.condition)
    digest = encoder.weights.digest
    del encoder
    with open_writer(
        path,
        provenance=provenance,
        utterance_ids=manifest.utterance_ids,
        block_rows=block_rows,
        frames=frames,
        shard=shard,
        retry_failed=retry_failed,
    ) as writer:
        tally = Tally(writer, shard=shard, max_failures=max_failures, retry_failed=retry_failed, progress=progress)
        work = Work(manifest, writer.store.block_rows, distortion, frames, decode_workers, texts)
        cores = torch.get_num_threads() if kind == "cpu" else os.cpu_count() or 1
        threads = max(1, cores // len(devices))
        tasks = [_Task(load, device, threads, digest, work, path) for device in devices]
        for message in _Crew(tasks, tally.indices).run():
            if message[0] == "written":
                tally.failures.add(message[2])
                tally.add(0, 0.0)
            else:
                tally.add(message[1], message[2])
    return open_store(path, complete=shard is None)
