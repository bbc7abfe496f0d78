"""A corpus without recordings whose stores exist under several conditions; what noise does to them is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.corpora.manifest import Manifest, manifest_from_rows
from pipelines.store.embeddings import BlockResult, open_writer, store_path
from pipelines.store.transcripts import text_condition
from tests.store.stores import make_provenance

__all__ = ["CONDITIONS", "EMOTIONS", "NOISE", "make_noisy_corpus", "write_store"]

EMOTIONS = ("anger", "fear", "sadness")
CONDITIONS = ("clean", "noise:esc10@20dB", "noise:esc10@5dB", "noise:esc10@0dB", "telephone")
NOISE = {"clean": 0.0, "noise:esc10@20dB": 0.2, "noise:esc10@5dB": 0.8, "noise:esc10@0dB": 1.6, "telephone": 0.6}
"""How much of it is in the embeddings of speech; ``codec`` gets a fifth of it, text by hand nothing."""

_DIM = 8


def make_noisy_corpus(cache_dir: Path, *, speakers: int = 8, takes: int = 4, transcripts: bool = True) -> Manifest:
    """Write ``ssl`` (RLR) and ``codec`` (CBR) under all conditions; ``words`` (LEX) by hand, and by ``whisper-tiny`` under all."""
    rows: list[dict[str, Any]] = [
        {
            "utterance_id": f"s{speaker}_{emotion}_{take}", "path": f"{speaker}/{emotion}/{take}.wav", "speaker": f"s{speaker}",
            "emotion": emotion, "emotion_raw": emotion, "arousal": 1.0 + index + 0.1 * take,
            "valence": 3.0 - index + 0.2 * (take % 2),
            "transcript": f"I feel {emotion} today" if transcripts else "",
        }
        for speaker in range(speakers) for index, emotion in enumerate(EMOTIONS) for take in range(takes)
    ]  # fmt: skip
    manifest = manifest_from_rows("toy", rows)
    labels = np.array([EMOTIONS.index(row["emotion"]) for row in rows])
    for number, (encoder, family, share) in enumerate(
        (("ssl", "RLR", 1.0), ("codec", "CBR", 0.2), ("words", "LEX", 0.0))
    ):
        generator = np.random.default_rng(number)
        means = generator.standard_normal((len(EMOTIONS), _DIM))
        own = 1.2 * means[labels] + generator.standard_normal((len(rows), _DIM))
        # The same under every SNR, as it is in `audio.conditions`; and a shift, which training under noise can learn to ignore.
        noise = generator.standard_normal((len(rows), _DIM)) + 2.0 * generator.standard_normal(_DIM)
        for condition in CONDITIONS:
            spoken = (own + share * NOISE[condition] * noise).astype(np.float32)
            if family != "LEX":
                write_store(
                    cache_dir,
                    manifest,
                    encoder,
                    family,
                    condition,
                    spoken,
                    digest=condition if condition != "clean" else "",
                )
                continue
            if condition == "clean":
                write_store(cache_dir, manifest, encoder, family, "clean", spoken)
            heard = (own + (0.1 + NOISE[condition]) * noise).astype(np.float32)
            write_store(
                cache_dir,
                manifest,
                encoder,
                family,
                text_condition("whisper-tiny", condition),
                heard,
                digest=f"text {condition}",
            )
    return manifest


def write_store(
    cache_dir: Path,
    manifest: Manifest,
    encoder: str,
    family: str,
    condition: str,
    values: NDArray[np.float32],
    *,
    digest: str = "",
    failed: tuple[int, ...] = (),
    **changes: Any,
) -> None:
    """A store of one representation; some rows failed."""
    provenance = make_provenance(
        encoder=encoder, family=family, condition=condition, representations=("only",), default_representation="only",
        dim=values.shape[1], manifest_digest=manifest.digest, weights_kind="pretrained", condition_digest=digest, **changes,
    )  # fmt: skip
    path = store_path(cache_dir, "toy", encoder, condition)
    with open_writer(path, provenance=provenance, utterance_ids=manifest.utterance_ids, block_rows=32) as writer:
        for block in range(writer.num_blocks):
            where = list(writer.rows_of(block))
            lost = np.array([row in failed for row in where])
            mean = np.where(lost[:, None], np.nan, values[where])[:, None].astype(np.float32)
            writer.write_block(
                block,
                BlockResult(
                    mean,
                    np.where(lost[:, None, None], np.nan, 0.0 * mean).astype(np.float32),
                    np.where(lost, 0, 1).astype(np.int32),
                    np.where(lost, np.nan, 1.0),
                    ["too short" if one else "" for one in lost],
                ),
            )
