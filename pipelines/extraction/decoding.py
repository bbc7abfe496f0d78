"""Recordings to waveforms, ahead of the model.

While the model works on what has been decoded, threads or processes decode what comes next, in the order of the manifest.
Threads serve a model that runs on the CPU, where it leaves no core idle; processes serve a GPU, which would otherwise wait for
Python's interpreter lock. What comes out is the same either way.

Memory is bounded: at most ``AHEAD_S`` seconds of audio in at most ``AHEAD_CLIPS`` recordings wait to be used, plus what is just
being decoded.

A recording that cannot be used is a :class:`DecodedClip` with its reason. Reasons name files relative to the corpus' folder, so
that a store says the same wherever the corpus lies.
"""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import os
import queue
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipelines.audio.conditions import Distortion
from pipelines.audio.decode import Waveform, decode
from pipelines.errors import AudioError, WorkerError
from pipelines.extraction.blocks import Block
from pipelines.processes import die_with_parent

__all__ = ["AHEAD_CLIPS", "AHEAD_S", "LONGEST_S", "DecodeAhead", "DecodeSettings", "DecodedClip", "decode_clip"]

LONGEST_S = 7200.0
"""Longest recording, in seconds, that is read at all: it has to fit into memory (2 h at 24 kHz are 0.7 GB)."""

AHEAD_S = 1800.0
"""Seconds of decoded audio that may wait for the model."""

AHEAD_CLIPS = 2048

_TASK_BYTES, _TASK_FILES = 4 * 2**20, 16
"""A task is a run of recordings of about so many bytes, at most so many files: long enough to be worth sending to a process."""


@dataclass(frozen=True)
class DecodedClip:
    """A recording, decoded or not; or a text as its tokens.

    Attributes:
        waveform: the recording; None if it failed, and for a text.
        failure: why it failed; empty if it did not.
        tokens: int64 [T], of a text; None for a recording.
    """

    waveform: Waveform | None
    failure: str
    tokens: NDArray[np.int64] | None = None

    @property
    def samples(self) -> NDArray[np.float32] | NDArray[np.int64] | None:
        """What the encoder is given; None if it failed."""
        return self.tokens if self.waveform is None else self.waveform.samples

    @property
    def duration_s(self) -> float:
        """Seconds of audio: 0 for a text, NaN if it failed."""
        if self.waveform is None:
            return math.nan if self.tokens is None else 0.0
        return self.waveform.duration_s


@dataclass(frozen=True)
class DecodeSettings:
    """How recordings are read.

    Attributes:
        rate_hz: rate of the encoder.
        root: the corpus' folder, left out of reasons.
        distortion: what is done to every waveform; None for nothing.
    """

    rate_hz: int
    root: Path
    distortion: Distortion | None = None


def decode_clip(path: Path, utterance_id: str, settings: DecodeSettings) -> DecodedClip:
    """Read one recording and apply the condition."""
    try:
        waveform = decode(path, settings.rate_hz, longest_s=LONGEST_S)
        if settings.distortion is not None:
            samples = settings.distortion.apply(waveform.samples, settings.rate_hz, utterance_id)
            waveform = Waveform(samples, waveform.duration_s)
        return DecodedClip(waveform, "")
    except AudioError as error:
        return DecodedClip(None, str(error).replace(f"{settings.root}{os.sep}", ""))


_process_settings: DecodeSettings | None = None


def _start_process(settings: DecodeSettings) -> None:
    global _process_settings
    die_with_parent()
    _process_settings = settings


def _decode_in_process(files: Sequence[tuple[Path, str]]) -> list[DecodedClip]:
    assert _process_settings is not None
    return [decode_clip(path, name, _process_settings) for path, name in files]


class DecodeAhead:
    """Blocks with their recordings, in order, decoded ahead. Use it in a ``with`` statement and iterate once.

    Iterating gives (block, clips): consecutive recordings of the block, as many as one task holds. The last ones of a block are
    followed by the first ones of the next.
    """

    def __init__(
        self, blocks: Iterable[Block], *, settings: DecodeSettings, workers: int, in_processes: bool = False
    ) -> None:
        self._blocks = blocks
        self._settings = settings
        self._workers = workers
        self._in_processes = in_processes
        self._changed = threading.Condition()
        self._stopped = False
        self._running = 0
        self._ready_s, self._ready_clips = 0.0, 0
        self._tasks: queue.SimpleQueue[tuple[Block, Future[list[DecodedClip]]] | BaseException | None] = (
            queue.SimpleQueue()
        )

    def __enter__(self) -> DecodeAhead:
        self._pool: Executor
        if self._in_processes:
            self._pool = ProcessPoolExecutor(
                self._workers,
                mp_context=multiprocessing.get_context("spawn"),
                initializer=_start_process,
                initargs=(self._settings,),
            )
        else:
            self._pool = ThreadPoolExecutor(self._workers)
        self._feeder = threading.Thread(target=self._feed, name="decode-ahead", daemon=True)
        self._feeder.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._feeder.join(timeout=1.0)  # it may be waiting for a block that will never come

    def __iter__(self) -> Iterator[tuple[Block, list[DecodedClip]]]:
        while (task := self._tasks.get()) is not None:
            try:
                if isinstance(task, BaseException):
                    raise task
                block, future = task
                clips = future.result()
            except BrokenProcessPool as error:
                raise WorkerError(
                    "A process that decodes recordings died; most often the system ended it because memory ran out. Whatever was"
                    " finished is kept: run the same command again, with a smaller --decode-workers."
                ) from error
            with self._changed:
                self._ready_s -= _seconds(clips)
                self._ready_clips -= len(clips)
                self._changed.notify_all()
            yield block, clips

    def _feed(self) -> None:
        """Submit tasks as long as there is room; runs in a thread of its own."""
        try:
            for block in self._blocks:
                for files in _tasks(block):
                    with self._changed:
                        self._changed.wait_for(lambda: self._stopped or self._has_room())
                        if self._stopped:
                            return
                        self._running += 1
                    future = self._submit(files)
                    future.add_done_callback(self._note)
                    self._tasks.put((block, future))
            self._tasks.put(None)
        except BaseException as error:  # told to the thread that iterates
            self._tasks.put(error)

    def _has_room(self) -> bool:
        waiting = self._ready_s <= AHEAD_S and self._ready_clips <= AHEAD_CLIPS
        return waiting and self._running < 2 * self._workers

    def _submit(self, files: list[tuple[Path, str]]) -> Future[list[DecodedClip]]:
        if self._in_processes:
            return self._pool.submit(_decode_in_process, files)
        settings = self._settings
        return self._pool.submit(lambda: [decode_clip(path, name, settings) for path, name in files])

    def _note(self, future: Future[list[DecodedClip]]) -> None:
        """A task has ended."""
        with self._changed:
            self._running -= 1
            if not future.cancelled() and future.exception() is None:
                self._ready_s += _seconds(future.result())
                self._ready_clips += len(future.result())
            self._changed.notify_all()


def _seconds(clips: Sequence[DecodedClip]) -> float:
    return sum(clip.waveform.duration_s for clip in clips if clip.waveform is not None)


def _tasks(block: Block) -> Iterator[list[tuple[Path, str]]]:
    """The recordings of a block in runs of similar work."""
    run: list[tuple[Path, str]] = []
    size = 0
    for path, name in zip(block.paths, block.utterance_ids, strict=True):
        with contextlib.suppress(OSError, ValueError):  # reading it will tell why
            size += path.stat().st_size
        run.append((path, name))
        if size >= _TASK_BYTES or len(run) == _TASK_FILES:
            yield run
            run, size = [], 0
    if run:
        yield run
