"""Frames for tests of models on frames: small stores, and sequences with a signal put in."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipelines.corpora.manifest import Manifest, manifest_from_rows
from pipelines.store.embeddings import BlockResult, FrameSpec, open_writer, store_path
from pipelines.store.transcripts import (
    TranscriptProvenance,
    TranscriptRow,
    Transcripts,
    open_transcript_writer,
    read_transcripts,
    transcripts_path,
)
from pipelines.training.frame_data import FrameFile
from pipelines.training.trainer import HeadTask
from tests.store.stores import make_provenance

__all__ = ["ASR", "frame_file", "make_frame_corpus", "signal_files", "texts_of", "thirds", "write_frames"]

SENTENCES = ("ab ba", "cab", "a b c", "bca ab")


def frame_file(path: Path, sequences: list[NDArray[np.floating]]) -> FrameFile:
    """A file of frames as :func:`pipelines.training.frame_data.frame_files` unpacks them."""
    offsets = np.concatenate([[0], np.cumsum([len(one) for one in sequences])])
    path.write_bytes(b"".join(np.ascontiguousarray(one, np.float32).tobytes() for one in sequences))
    moments = path.with_suffix(".moments")
    exact = [one.astype(np.float32).astype(np.float64) for one in sequences]
    moments.write_bytes(b"".join(np.stack([one.sum(axis=0), (one**2).sum(axis=0)]).tobytes() for one in exact))
    return FrameFile(path, "float32", sequences[0].shape[1], offsets, moments, "digest")


def signal_files(
    folder: Path, *, utterances: int = 120, where: tuple[str, ...] = ("acoustic",), seed: int = 0
) -> tuple[dict[str, FrameFile], NDArray[np.int64]]:
    """Three streams of noise, and two classes that show in some of them.

    In one stream: the sign of a burst of frames in one feature. In two streams: the class is whether the signs agree, so neither
    stream alone says anything.
    """
    stream = np.random.default_rng(seed)
    labels = stream.integers(0, 2, utterances)
    first = stream.integers(0, 2, utterances) if len(where) == 2 else labels
    signs = {where[0]: 2 * first - 1}
    if len(where) == 2:
        signs[where[1]] = np.where(labels == 1, 1, -1) * signs[where[0]]
    files = {}
    for name, dim, longest in (("acoustic", 6, 30), ("asr", 5, 24), ("text", 4, 9)):
        sequences = []
        for row in range(utterances):
            frames = stream.normal(0, 0.5, (int(stream.integers(3, longest)), dim))
            if name in signs:
                start = int(stream.integers(0, len(frames) - 2))
                frames[start : start + 3, 1] += 4.0 * signs[name][row]
            sequences.append(frames)
        files[name] = frame_file(folder / f"{name}.frames", sequences)
    return files, labels


def thirds(utterances: int = 120, *, seed: int = 0) -> HeadTask:
    """Rows in order: half for training, a sixth for validation, a third for testing."""
    rows = np.arange(utterances)
    parts = np.split(rows, [utterances // 2, 2 * utterances // 3])
    return HeadTask(fold="1", seed=seed, train=parts[0], validation=parts[1], test=parts[2])


EMOTIONS = ("anger", "sadness")
ASR = "toy-asr"


def make_frame_corpus(
    cache_dir: Path, *, speakers: int = 4, takes: int = 6, **columns: Callable[[int], object]
) -> Manifest:
    """A corpus without recordings: stores of frames, transcripts by hand and by a recogniser that gets every fourth word wrong.

    ``voice`` (RLR) tells the emotion and spells the text; ``heard`` (RLR) tells neither; ``words`` (LEX), under ``clean`` and
    ``asr:toy-asr``, are letters. Texts say ``b`` where the emotion is sadness and ``c`` where it is anger.
    """
    stream = np.random.default_rng(3)
    rows = []
    for speaker in range(speakers):
        for take in range(takes):
            for emotion in EMOTIONS:
                word = "cab" if emotion == "anger" else "bab"
                rows.append(
                    {
                        "utterance_id": f"s{speaker}_{emotion}_{take}", "path": f"{speaker}/{emotion}/{take}.wav",
                        "speaker": f"s{speaker}", "emotion": emotion, "emotion_raw": emotion,
                        "valence": round(2.0 + (emotion == "anger") + 0.3 * stream.standard_normal(), 2),
                        "transcript": " ".join([word] * (1 + take % 3)).capitalize() + ".",
                    }
                )  # fmt: skip
    for name, value in columns.items():
        rows = [{**row, name: value(place)} for place, row in enumerate(rows)]
    manifest = manifest_from_rows("toy", rows)
    texts = [str(row["transcript"]).lower().rstrip(".") for row in rows]
    heard = [text.replace("cab", "a", 1) if place % 4 == 0 else text for place, text in enumerate(texts)]
    _write_transcripts(cache_dir, manifest, heard)
    for encoder, family, condition, said in (
        ("voice", "RLR", "clean", texts),
        ("heard", "RLR", "clean", texts),
        ("words", "LEX", "clean", texts),
        ("words", "LEX", f"asr:{ASR}", heard),
    ):
        sequences = [
            _sequence(encoder, text, str(row["emotion"]), stream) for text, row in zip(said, rows, strict=True)
        ]
        write_frames(cache_dir, manifest, encoder, sequences, family=family, condition=condition)
    return manifest


def _sequence(encoder: str, text: str, emotion: str, stream: np.random.Generator) -> NDArray[np.float32]:
    dim, each = 6, {"voice": 3, "heard": 2, "words": 1}[encoder]
    frames = stream.normal(0, 0.2, (max(2, each * len(text)), dim))
    if encoder != "heard":
        for place, letter in enumerate(text):
            frames[each * place : each * place + max(1, each - 1), "abc ".index(letter)] += 2.0
    if encoder == "voice":
        frames[:, 5] += 1.0 if emotion == "anger" else -1.0
    return frames.astype(np.float32)


def write_frames(
    cache_dir: Path,
    manifest: Manifest,
    encoder: str,
    sequences: list[NDArray[np.float32]] | None,
    *,
    family: str = "RLR",
    condition: str = "clean",
    failed: Collection[int] = (),
    dim: int = 6,
) -> None:
    """A store of frames; without ``sequences`` a store that keeps none."""
    provenance = make_provenance(
        encoder=encoder, family=family, condition=condition, representations=("layer_00", "layer_01"),
        default_representation="layer_01", dim=dim, manifest_digest=manifest.digest, weights_kind="pretrained",
        condition_digest=texts_of(cache_dir, manifest).digest if condition.startswith("asr:") else "",
    )  # fmt: skip
    spec = FrameSpec(("layer_01",), "float32") if sequences is not None else None
    ids = manifest.utterance_ids
    path = store_path(cache_dir, manifest.corpus, encoder, condition)
    with open_writer(path, provenance=provenance, utterance_ids=ids, block_rows=16, frames=spec) as writer:
        for block in range(writer.num_blocks):
            rows = list(writer.rows_of(block))
            reasons = ["broken" if row in failed else "" for row in rows]
            kept = [(sequences or [np.zeros((3, dim), np.float32)] * len(ids))[row] for row in rows]
            kept = [one[:0] if reason else one for one, reason in zip(kept, reasons, strict=True)]
            means = np.stack([one.mean(axis=0) if len(one) else np.full(dim, np.nan) for one in kept]).astype(
                np.float32
            )
            pooled = np.repeat(means[:, None], 2, axis=1)
            writer.write_block(
                block,
                BlockResult(
                    mean=pooled,
                    std=np.abs(pooled),
                    num_frames=np.array([len(one) for one in kept], np.int32),
                    duration_s=np.ones(len(rows)),
                    failure=reasons,
                    frames={"layer_01": kept} if spec is not None else None,
                ),
            )


def texts_of(cache_dir: Path, manifest: Manifest) -> Transcripts:
    """What the recogniser of the toy corpus heard."""
    return read_transcripts(cache_dir, manifest.corpus, ASR, manifest_digest=manifest.digest)


def _write_transcripts(cache_dir: Path, manifest: Manifest, texts: list[str]) -> None:
    made = TranscriptProvenance(
        corpus=manifest.corpus, manifest_digest=manifest.digest, model=ASR, condition="clean", condition_digest="", language="en",
        decoding="toy", weights_kind="pretrained", weights_source="toy", weights_revision="", weights_digest="c3" * 32,
        weights_licence="none", sample_rate_hz=16000, resampler="soxr-VHQ", precision="float32", device="cpu", versions={},
    )  # fmt: skip
    path = transcripts_path(cache_dir, manifest.corpus, ASR)
    ids = manifest.utterance_ids
    with open_transcript_writer(path, provenance=made, utterance_ids=ids) as writer:
        for block in writer.blocks_to_do():
            start = block * writer.block_rows
            rows = [TranscriptRow(text, "", 1.0) for text in texts[start : start + writer.block_rows]]
            writer.write_block(block, rows)
