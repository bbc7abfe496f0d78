"""Blocks through one encoder: decode ahead, batch by length, encode, pool.

A recording that cannot be used fails alone, with its reason; the others of its block go on. Recordings above the encoder's
``longest_s`` are encoded in overlapping windows (``pipelines.encoders.windows``), which go into batches like clips; their
pooled values are combined, their frames joined.

Texts go the same way, their tokens in place of samples (``pipelines.extraction.texts``). What is said here of seconds of audio
means tokens then.

A block is encoded in groups of at most ``GROUP_S`` seconds of audio, so that memory is bounded whatever lies in a block. Groups
and batches depend on the recordings alone: a block that is done again, anywhere, is batched as before and gives the same bits.

On a CPU every batch is computed by one thread, and several threads take batches side by side. A matrix product that is split
among threads rounds differently with their number; a batch on one thread does not, so the store is the same on one core and on
many. It is no slower: small products gain little from being split.

Where memory runs out, the batch is halved and tried again, and later batches are planned that small. That is the one case in
which batches depend on the machine, and the last bits with them.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from pipelines.audio.conditions import Distortion
from pipelines.corpora.manifest import Manifest
from pipelines.encoders.base import Encoder
from pipelines.encoders.catalogue import EncoderSpec
from pipelines.encoders.windows import Window, plan_windows
from pipelines.errors import DeviceError
from pipelines.extraction.batching import plan_batches
from pipelines.extraction.blocks import Block, make_blocks
from pipelines.extraction.decoding import DecodeAhead, DecodedClip, DecodeSettings
from pipelines.extraction.pooling import combine_windows, pool_frames
from pipelines.extraction.texts import CorpusTexts
from pipelines.store.embeddings import BlockResult, FrameSpec

__all__ = [
    "BATCH_S",
    "BATCH_TOKENS",
    "GROUP_S",
    "BatchLimit",
    "Work",
    "encode_clips",
    "run_batches",
    "run_blocks",
    "token_clips",
]

BATCH_S = {"cpu": 16.0, "cuda": 128.0}
"""Seconds of audio per batch, padding included, by kind of device. On a CPU as many batches as cores are in memory."""

BATCH_TOKENS = {"cpu": 2048, "cuda": 65_536}
"""Tokens per batch of texts, padding included."""

GROUP_S = 3600.0
"""Seconds of decoded audio that are batched together; a recording is never divided, so a single one may be longer."""

_THREADS_AHEAD = 2
_LARGEST_FLOAT16 = 65504.0


@dataclass(frozen=True)
class Work:
    """What a worker has to know to do any block of an extraction; can be sent to another process.

    Attributes:
        manifest: the corpus, with its root.
        block_rows: rows per block of the store.
        distortion: the condition; None for clean.
        frames: which frames are kept beside the pooled values, and how; None for none.
        decode_workers: processes that decode; None for what suits the device (threads on a CPU, all cores beside a GPU).
        texts: what is encoded instead of the recordings, where the encoder takes texts.
    """

    manifest: Manifest = field(repr=False)
    block_rows: int
    distortion: Distortion | None = None
    frames: FrameSpec | None = None
    decode_workers: int | None = None
    texts: CorpusTexts | None = None


@dataclass
class BatchLimit:
    """Seconds of audio, or tokens, per batch; halved where memory runs out."""

    seconds: float


def _batch_limit(encoder: Encoder) -> BatchLimit:
    return BatchLimit((BATCH_TOKENS if encoder.spec.takes_text else BATCH_S)[encoder.device.type])


def _rate(encoder: Encoder) -> int:
    """Samples per second; of text, whose samples are tokens and count themselves, 1."""
    return encoder.spec.sample_rate_hz or 1


def run_batches(
    encoder: Encoder, batches: Sequence[list[int]], compute: Callable[[list[int]], None]
) -> Iterator[list[int]]:
    """Compute batches, on a CPU one per thread and several at a time; yield each when it is done, in the order given.

    Args:
        encoder: decides by its device.
        batches: what to compute.
        compute: called with every batch, in inference mode, from several threads.
    """

    def task(batch: list[int]) -> list[int]:
        with torch.inference_mode():
            compute(batch)
        return batch

    if encoder.device.type != "cpu":
        yield from map(task, batches)
        return
    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield from pool.map(task, batches)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(threads)


def _is_out_of_memory(error: BaseException) -> bool:
    """Whether torch ran out of memory; on the CPU it says so in words only."""
    if isinstance(error, torch.cuda.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def _halving(
    compute: Callable[[list[int]], None], encoder: Encoder, lengths: Sequence[int], limit: BatchLimit
) -> Callable[[list[int]], None]:
    """``compute``, going on with half of the batch where memory runs out; ``lengths`` are in samples."""

    def attempt(batch: list[int]) -> None:
        exhausted = False
        try:
            compute(batch)
        except (RuntimeError, MemoryError) as error:
            if not _is_out_of_memory(error):
                raise
            if len(batch) == 1:
                unit = "tokens" if encoder.spec.takes_text else "s"
                raise DeviceError(
                    f"The memory of {encoder.device} does not hold one recording of {encoder.longest_s:.0f} {unit} or less encoded"
                    f" by {encoder.spec.name}. Free memory there (other processes?), or use `--device cpu` or a smaller model."
                    " Whatever was finished is kept."
                ) from error
            exhausted = True
        if exhausted:  # outside the handler, whose traceback holds on to the tensors of the failed attempt
            if encoder.device.type == "cuda":
                torch.cuda.empty_cache()
            tried_s = max(lengths[position] for position in batch) * len(batch) / _rate(encoder)
            limit.seconds = min(limit.seconds, tried_s / 2)
            middle = len(batch) // 2
            attempt(batch[:middle])
            attempt(batch[middle:])

    return attempt


@dataclass(frozen=True)
class _Item:
    """A window of a recording: what goes into batches."""

    row: int
    window: Window

    @property
    def num_samples(self) -> int:
        return self.window.stop - self.window.start


def encode_clips(
    clips: Sequence[DecodedClip],
    encoder: Encoder,
    *,
    frames: FrameSpec | None = None,
    limit: BatchLimit | None = None,
    done: Callable[[int, float], None] | None = None,
) -> BlockResult:
    """Encode and pool recordings, or texts.

    Args:
        clips: n decoded recordings, or texts as tokens.
        encoder: the frozen model.
        frames: which frames to keep beside the pooled values.
        limit: seconds of audio per batch; that of the device unless given.
        done: called after every batch with (recordings that were finished with it, seconds of audio it held).

    Returns:
        n rows; NaN and a reason where a recording failed or its embedding is not finite.
    """
    spec = encoder.spec
    limit, rate = limit or _batch_limit(encoder), _rate(encoder)
    waveforms = {row: torch.from_numpy(clip.samples) for row, clip in enumerate(clips) if clip.samples is not None}
    items = [
        _Item(row, window) for row, waveform in waveforms.items() for window in plan_windows(encoder, len(waveform))
    ]
    lengths = [item.num_samples for item in items]
    pooled: list[tuple[list[int], torch.Tensor, torch.Tensor]] = []
    kept: dict[tuple[str, int], NDArray[np.floating]] = {}

    def compute(batch: list[int]) -> None:
        pieces = [waveforms[item.row][item.window.start : item.window.stop] for item in map(items.__getitem__, batch)]
        first = torch.tensor([items[position].window.first for position in batch]).to(encoder.device, non_blocking=True)
        last = torch.tensor([items[position].window.last for position in batch]).to(encoder.device, non_blocking=True)
        means, stds = [], []
        for representation in encoder.encode_padded(pieces):
            batch_mean, batch_std = pool_frames(representation.frames, last, first)
            means.append(batch_mean)
            stds.append(batch_std)
            if frames is not None and representation.name in frames.representations:
                values = representation.frames.to(getattr(torch, frames.dtype)).cpu().numpy()
                for place, position in enumerate(batch):
                    window = items[position].window
                    kept[representation.name, position] = values[place, window.first : window.last].copy()
        pooled.append((batch, torch.stack(means, dim=1), torch.stack(stds, dim=1)))  # [B, R, D] each

    def seconds(item: _Item) -> float:
        """Of the recording; what windows share counts once."""
        share = len(waveforms[item.row]) / encoded[item.row]
        return share * item.num_samples / rate

    batches = plan_batches(lengths, max_padded_samples=int(limit.seconds * rate))
    waiting = Counter(item.row for item in items)
    encoded: Counter[int] = Counter()  # samples of all windows of a recording
    for item in items:
        encoded[item.row] += item.num_samples
    for batch in run_batches(encoder, batches, _halving(compute, encoder, lengths, limit)):
        finished = 0
        for position in batch:
            waiting[items[position].row] -= 1
            finished += waiting[items[position].row] == 0
        if done is not None:
            done(finished, sum(seconds(items[position]) for position in batch))

    shape = (len(items), len(spec.representations), spec.dim)
    means, stds = np.empty(shape, np.float32), np.empty(shape, np.float32)
    for batch, batch_mean, batch_std in pooled:  # only now: on a GPU every copy waits for what was computed before it
        means[batch], stds[batch] = batch_mean.cpu().numpy(), batch_std.cpu().numpy()
    return _recordings(clips, items, means, stds, kept, encoder.spec, frames)


def _recordings(
    clips: Sequence[DecodedClip],
    items: Sequence[_Item],
    means: NDArray[np.float32],
    stds: NDArray[np.float32],
    kept: Mapping[tuple[str, int], NDArray[np.floating]],
    spec: EncoderSpec,
    wanted: FrameSpec | None,
) -> BlockResult:
    """Windows put together to recordings, each looked at once more.

    Args:
        clips: n recordings.
        items: W windows.
        means: [W, R, D], of every window.
        stds: [W, R, D].
        kept: representation and position of the window to its frames.
        spec: the encoder.
        wanted: which frames are kept.
    """
    shape = (len(clips), *means.shape[1:])
    mean, std = np.full(shape, np.nan, np.float32), np.full(shape, np.nan, np.float32)
    num_frames = np.zeros(len(clips), np.int32)
    duration_s = np.array([clip.duration_s for clip in clips], np.float64)
    failure = [clip.failure for clip in clips]
    names = wanted.representations if wanted is not None else ()
    frames = (
        {name: [np.zeros((0, spec.dim), wanted.dtype) for _ in clips] for name in names} if wanted is not None else None
    )
    windows: dict[int, list[int]] = {}
    for position, item in enumerate(items):
        windows.setdefault(item.row, []).append(position)
    is_whole = spec.hop_samples == 0  # one embedding per window, not frames
    for row, positions in windows.items():
        counts = np.array([items[position].window.last - items[position].window.first for position in positions])
        num_frames[row] = 1 if is_whole else counts.sum()
        weights = np.array([items[position].num_samples for position in positions]) if is_whole else counts
        mean[row], std[row] = means[positions[0]], stds[positions[0]]
        if len(positions) > 1:
            mean[row], std[row] = combine_windows(means[positions], stds[positions], weights, between=not is_whole)
        for name in names:
            assert frames is not None
            parts = [kept[name, position] for position in positions]
            if len(positions) > 1 and is_whole:
                parts = [mean[row, spec.representations.index(name)][None].astype(parts[0].dtype)]
            frames[name][row] = np.concatenate(parts)
        if not (np.isfinite(mean[row]).all() and np.isfinite(std[row]).all()):
            failure[row] = f"The embedding by {spec.name} is not finite (NaN or infinite)."
        elif any(not np.isfinite(rows[row]).all() for rows in (frames or {}).values()):
            failure[row] = (
                f"A frame by {spec.name} exceeds {_LARGEST_FLOAT16:.0f}, the largest number of float16. Keep frames as float32:"
                " `--frames-dtype float32`."
            )
        if failure[row]:
            mean[row], std[row], num_frames[row] = np.nan, np.nan, 0
            for rows in (frames or {}).values():
                rows[row] = rows[row][:0]
    return BlockResult(mean, std, num_frames, duration_s, failure, frames)


def run_blocks(
    work: Work,
    encoder: Encoder,
    indices: Iterable[int],
    *,
    done: Callable[[int, float], None] | None = None,
) -> Iterator[tuple[Block, BlockResult]]:
    """Do blocks, one after the other; while one is encoded, the next ones are decoded.

    Args:
        work: the extraction.
        encoder: the frozen model.
        indices: which blocks; may wait for the next one to be known.
        done: called with (recordings finished, seconds of audio) after every batch, and for recordings that failed to be decoded.

    Raises:
        DeviceError: not even one recording fits into memory.
        WorkerError: a decoding process died.
    """
    if work.texts is not None:
        yield from _run_text_blocks(work, work.texts, encoder, indices, done=done)
        return
    settings = DecodeSettings(encoder.spec.sample_rate_hz, work.manifest.root or Path(), work.distortion)
    in_processes = work.decode_workers is not None or encoder.device.type != "cpu"
    workers = work.decode_workers or (min(16, os.cpu_count() or 1) if in_processes else _THREADS_AHEAD)
    blocks = make_blocks(work.manifest, block_rows=work.block_rows, indices=indices)
    limit = _batch_limit(encoder)
    parts: list[BlockResult] = []
    group: list[DecodedClip] = []
    seconds, rows = 0.0, 0
    with DecodeAhead(blocks, settings=settings, workers=workers, in_processes=in_processes) as decoded:
        for block, clips in decoded:
            for clip in clips:
                group.append(clip)
                seconds += clip.waveform.duration_s if clip.waveform else 0.0
                rows += 1
                if rows == len(block.paths) or seconds >= GROUP_S:
                    parts.append(encode_clips(group, encoder, frames=work.frames, limit=limit, done=done))
                    unusable = sum(clip.waveform is None for clip in group)
                    if done is not None and unusable:
                        done(unusable, 0.0)
                    group, seconds = [], 0.0
            if rows == len(block.paths):
                yield block, _joined(parts)
                parts, rows = [], 0


def token_clips(texts: Sequence[str | None], reasons: Sequence[str], encoder: Encoder) -> list[DecodedClip]:
    """Texts as what an encoder of texts is given; None, no text, with the reason.

    Raises:
        TypeError: the encoder takes recordings.
    """
    tokenize: Callable[[str], torch.Tensor] | None = getattr(encoder, "tokenize", None)
    if tokenize is None:
        raise TypeError(f"{encoder.spec.name} takes no texts.")
    return [
        DecodedClip(None, reason) if text is None else DecodedClip(None, "", tokenize(text).numpy())
        for text, reason in zip(texts, reasons, strict=True)
    ]


def _run_text_blocks(
    work: Work,
    texts: CorpusTexts,
    encoder: Encoder,
    indices: Iterable[int],
    *,
    done: Callable[[int, float], None] | None,
) -> Iterator[tuple[Block, BlockResult]]:
    """Blocks of texts; a block is small enough to be one group."""
    limit = _batch_limit(encoder)
    for block in make_blocks(work.manifest, block_rows=work.block_rows, indices=indices, recordings=False):
        rows = slice(block.start, block.start + len(block.utterance_ids))
        clips = token_clips(texts.texts[rows], texts.reasons[rows], encoder)
        result = encode_clips(clips, encoder, frames=work.frames, limit=limit, done=done)
        unusable = sum(clip.tokens is None for clip in clips)
        if done is not None and unusable:
            done(unusable, 0.0)
        yield block, result


def _joined(parts: Sequence[BlockResult]) -> BlockResult:
    """Groups of rows as one block."""
    if len(parts) == 1:
        return parts[0]
    frames = None
    if parts[0].frames is not None:
        frames = {name: [rows for part in parts for rows in (part.frames or {})[name]] for name in parts[0].frames}
    return BlockResult(
        mean=np.concatenate([part.mean for part in parts]),
        std=np.concatenate([part.std for part in parts]),
        num_frames=np.concatenate([part.num_frames for part in parts]),
        duration_s=np.concatenate([part.duration_s for part in parts]),
        failure=[reason for part in parts for reason in part.failure],
        frames=frames,
    )
