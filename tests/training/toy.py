"""A corpus without recordings: a manifest and three stores whose numbers tell the emotions apart, each a little.

Utterances also have an arousal and a valence, which ``ssl`` and ``codec`` tell a little of as far as the emotion does, no
dominance, and the votes of four raters.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pipelines.corpora.manifest import Manifest, manifest_from_rows
from pipelines.store.embeddings import BlockResult, open_writer, store_path
from tests.store.stores import make_provenance

__all__ = ["EMOTIONS", "INFORMATIVE", "LAYERS", "make_corpus"]

EMOTIONS = ("anger", "fear", "sadness")
LAYERS = ("layer_00", "layer_01", "layer_02")
INFORMATIVE = 1
"""The layer of ``ssl`` that says something."""


def make_corpus(cache_dir: Path, *, speakers: int = 6, takes: int = 4, dim: int = 8) -> Manifest:
    """Write the stores ``ssl`` (RLR, three layers), ``codec`` (CBR, latent) and ``vector`` (RLR, one frame per utterance)."""
    felt = np.random.default_rng(9)
    means = {"anger": (4.2, 1.8), "fear": (3.4, 2.6), "sadness": (1.8, 2.2)}
    rows = [
        {
            "utterance_id": f"s{speaker}_{emotion}_{take}", "path": f"{speaker}/{emotion}/{take}.wav", "speaker": f"s{speaker}",
            "emotion": emotion, "emotion_raw": emotion,
            "arousal": round(means[emotion][0] + 0.4 * felt.standard_normal(), 1),
            "valence": round(means[emotion][1] + 0.4 * felt.standard_normal(), 1),
            "emotion_votes": f"{emotion}:3;{EMOTIONS[(place + 1 + take % 2) % 3]}:1",
        }
        for speaker in range(speakers) for place, emotion in enumerate(EMOTIONS) for take in range(takes)
    ]  # fmt: skip
    manifest = manifest_from_rows("toy", rows)
    labels = np.array([EMOTIONS.index(row["emotion"]) for row in rows])
    kinds = (
        ("ssl", "RLR", LAYERS, "layer_02", 7),
        ("codec", "CBR", ("latent",), "latent", 5),
        ("vector", "RLR", ("embedding",), "embedding", 1),
    )
    for number, (encoder, family, representations, default, frames) in enumerate(kinds):
        generator = np.random.default_rng(number)
        values = generator.standard_normal((2, len(rows), len(representations), dim)).astype(np.float32)
        means = generator.standard_normal((2, len(EMOTIONS), dim)).astype(np.float32)
        # Layers differ in size, too: what counts must not be how large their numbers are.
        told = INFORMATIVE if encoder == "ssl" else 0
        values[:, :, told] += (1.5 if encoder == "ssl" else 0.5) * means[:, labels]
        values *= np.array([1.0, 0.1, 10.0], np.float32)[: len(representations), None]
        provenance = make_provenance(
            encoder=encoder, family=family, representations=representations, default_representation=default, dim=dim,
            manifest_digest=manifest.digest, weights_kind="pretrained",
        )  # fmt: skip
        path = store_path(cache_dir, "toy", encoder)
        with open_writer(path, provenance=provenance, utterance_ids=manifest.utterance_ids, block_rows=32) as writer:
            for block in range(writer.num_blocks):
                where = list(writer.rows_of(block))
                writer.write_block(
                    block,
                    BlockResult(
                        values[0, where],
                        values[1, where],
                        np.full(len(where), frames, np.int32),
                        np.ones(len(where)),
                        [""] * len(where),
                    ),
                )
    return manifest
