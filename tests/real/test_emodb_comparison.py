"""The whole way on real speech: Emo-DB, BYOL-S and SoundStream (Lyra) with their real weights, to the table."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from tests.cli.conftest import Runner
from tests.cli.conftest import hyfuse as hyfuse

MODELS = ("byols", "soundstream-lyra")


@pytest.fixture(scope="session")
def emodb_cache(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cache with Emo-DB through both encoders."""
    from pipelines.corpora.resolve import resolve_corpus
    from pipelines.encoders.catalogue import load_encoder
    from pipelines.extraction.engines.local import extract_corpus

    cache = tmp_path_factory.mktemp("emodb") / "cache"
    prepared = resolve_corpus("emodb", cache_dir=cache, data_root=real_data / "corpora" / "emodb")
    assert [finding for finding in prepared.findings if finding.level != "note"] == []
    for name in MODELS:
        encoder = load_encoder(name, weights_dir=real_data / "weights")
        store = extract_corpus(prepared.manifest, encoder, cache_dir=cache)
        assert store.counts == (0, 535, 0)
    return cache


@pytest.mark.slow
def test_embeddings_carry_what_was_measured_elsewhere(emodb_cache: Path) -> None:
    """Logistic regression, leave one speaker out: the reference figures that come with the recordings, to the third digit."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import balanced_accuracy_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    from pipelines.corpora.prepare import recall
    from pipelines.store.embeddings import open_store, store_path

    table = recall(emodb_cache, "emodb").table
    ids, labels, speakers = list(table["utterance_id"]), table["emotion"].to_numpy(str), table["speaker"].to_numpy(str)
    byols = open_store(store_path(emodb_cache, "emodb", "byols"))
    lyra = open_store(store_path(emodb_cache, "emodb", "soundstream-lyra"))
    voice = byols.features(ids, representation="embedding", pool="mean")
    codec = lyra.features(ids, representation="latent", pool="mean+std")
    codec_mean = lyra.features(ids, representation="latent", pool="mean")
    for features, expected in ((voice, 0.765), (codec_mean, 0.581), (codec, 0.668), (np.hstack([voice, codec]), 0.775)):
        predicted = labels.copy()
        for speaker in sorted(set(speakers)):
            train = speakers != speaker
            model = make_pipeline(StandardScaler(), LogisticRegression(C=0.05, max_iter=2000))
            predicted[~train] = model.fit(features[train], labels[train]).predict(features[~train])
        assert balanced_accuracy_score(labels, predicted) == pytest.approx(expected, abs=0.005)


@pytest.mark.slow
def test_the_table_on_real_speech(emodb_cache: Path, hyfuse: Runner, tmp_path: Path) -> None:
    done = hyfuse("compare", "--cache-dir", emodb_cache, "--seeds", 2, "--run", "r")
    assert done.status == 0, done.err
    with (tmp_path / "runs/r/table.csv").open() as handle:
        rows = {(row["left"], row["right"], row["fusion"]): row for row in csv.DictReader(handle)}
    assert float(rows["byols", "", "single"]["uar"]) >= 0.73
    assert float(rows["soundstream-lyra", "", "single"]["uar"]) >= 0.62
    hyperbolic = rows["byols", "soundstream-lyra", "hyperbolic"]
    assert float(hyperbolic["left_drop"]) > 0.03
    assert float(hyperbolic["right_drop"]) > 0.03
    assert "535 utterances, 10 speakers, 7 emotions" in done.out
    assert "byols pretrained, soundstream-lyra pretrained" in done.out


@pytest.mark.slow
def test_byols_leaving_one_speaker_out(emodb_cache: Path, hyfuse: Runner, tmp_path: Path) -> None:
    options = ("--single", "byols", "--protocol", "loso", "--seeds", 2, "--run", "r")
    done = hyfuse("train", "--cache-dir", emodb_cache, *options)
    assert done.status == 0, done.err
    with (tmp_path / "runs/r/table.csv").open() as handle:
        row = next(csv.DictReader(handle))
    assert float(row["uar"]) >= 0.75
