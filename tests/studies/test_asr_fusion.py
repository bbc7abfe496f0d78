"""The study on frames: what it trains, that it finds what was put in, that it goes on where it stopped, and its mistakes."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import pandas as pd
import pytest
import soundfile

from pipelines.corpora.manifest import Manifest
from pipelines.encoders.catalogue import load_encoder
from pipelines.errors import ConfigError, ManifestError, ProvenanceError, StoreError, UnknownNameError
from pipelines.evaluation.runs import read_run
from pipelines.evaluation.word_errors import normalise
from pipelines.extraction.fine_tuning import FineTuneConfig
from pipelines.store.embeddings import store_path
from pipelines.store.transcripts import transcripts_path
from pipelines.studies.asr_fusion import AsrFusionConfig, plan, run_asr_fusion
from pipelines.studies.outcome import Outcome, read_outcome
from pipelines.training.ctc import spelling
from pipelines.training.frame_trainer import FrameConfig
from tests.training.frames import ASR, make_frame_corpus, texts_of

TRAIN = FrameConfig(epochs=8, batch_size=8, hidden_dim=16, attention_heads=2, learning_rate=1e-2)
CONFIG = AsrFusionConfig(
    acoustic="voice",
    asr="heard",
    text="words",
    transcripts=("manual", f"asr:{ASR}", "none"),
    heads=("hierarchical",),
    ctc_weights=(0.0, 0.5),
    protocol="speaker-4fold",
    train=TRAIN,
)
SMALL = replace(
    CONFIG, asr="", transcripts=("manual",), ctc_weights=(0.0,), heads=("cross",), train=replace(TRAIN, epochs=1)
)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    folder = tmp_path_factory.mktemp("study")
    manifest = make_frame_corpus(folder / "cache")
    outcome = run_asr_fusion(manifest, config=CONFIG, cache_dir=folder / "cache", run_dir=folder / "run", command="it")
    return folder, outcome


def _run(folder: Path, config: AsrFusionConfig, run: str = "run", **options: Any) -> Outcome:
    manifest = options.pop("manifest", None) or make_frame_corpus(folder / "cache")
    return run_asr_fusion(manifest, config=config, cache_dir=folder / "cache", run_dir=folder / run, **options)


def test_plan() -> None:
    config = replace(CONFIG, transcripts=("manual", "asr", "none"), heads=("early", "cross", "hierarchical"))
    config = replace(config, ctc_weights=(0.5, 0.0, 0.1), order="both")
    titles = [system.title for system in plan(config)]
    assert len(set(titles)) == len(titles)
    assert titles == [
        "voice alone", "voice alone λ=0.1", "voice alone λ=0.5", "heard alone", "words[manual] alone", "words[asr:heard] alone",
        "voice+heard+words[manual] early λ=0.1", "voice+heard+words[manual] cross λ=0.1",
        "voice+heard+words[manual] hierarchical asr-text λ=0.1", "voice+heard+words[manual] hierarchical text-asr λ=0.1",
        "voice+heard+words[asr:heard] early λ=0.1", "voice+heard+words[asr:heard] cross λ=0.1",
        "voice+heard+words[asr:heard] hierarchical asr-text λ=0.1", "voice+heard+words[asr:heard] hierarchical text-asr λ=0.1",
        "voice+heard early λ=0.1", "voice+heard cross λ=0.1",  # with two streams, hierarchical is cross
        "voice+heard+words[asr:heard] hierarchical asr-text", "voice+heard+words[asr:heard] hierarchical text-asr",
        "voice+heard+words[asr:heard] hierarchical asr-text λ=0.5", "voice+heard+words[asr:heard] hierarchical text-asr λ=0.5",
    ]  # fmt: skip
    without = replace(CONFIG, asr="", transcripts=("manual",), ctc_weights=(0.0,), heads=("cross",))
    assert [system.title for system in plan(without)] == [
        "voice alone",
        "words[manual] alone",
        "voice+words[manual] cross",
    ]


def test_what_was_put_in_is_found(study: tuple[Path, Outcome]) -> None:
    _, outcome = study
    table = next(table for table in outcome.tables if table.name == "systems")
    column = {title.title: place for place, title in enumerate(table.columns)}
    rows = {(row[0], row[2]): row for row in table.rows}
    uar = {key: row[column["UA"]].value for key, row in rows.items()}  # type: ignore[union-attr]
    assert uar["voice", "0"] > 90
    assert uar["words[manual]", "0"] > 90
    assert uar["heard", "0"] < 75
    assert uar["voice + heard + words[manual]", "0.5"] > 90
    wer = rows["voice", "0.5"][column["WER"]]
    assert wer.value < 90  # type: ignore[union-attr]
    assert rows["voice", "0"][column["WER"]] == ""
    assert len(outcome.answers) == 5  # one head has no rival
    assert all("fold" not in answer for answer in outcome.answers)
    assert any("word error rate: asr:toy-asr" in answer for answer in outcome.answers)


def test_word_error_rates_equal_jiwer(study: tuple[Path, Outcome]) -> None:
    folder, outcome = study
    manifest = make_frame_corpus(folder / "other")
    said = [normalise(text) for text in manifest.table["transcript"]]
    heard = [normalise(text) for text in texts_of(folder / "cache", manifest).texts if text is not None]
    answer = next(answer for answer in outcome.answers if "word error rate" in answer)
    assert f"asr:{ASR} {100 * jiwer.wer(said, heard):.1f} %" in answer
    predictions = pd.read_parquet(folder / "run" / "predictions.parquet")
    own = predictions[predictions["cell"] == "voice alone λ=0.5"].set_index("utterance_id")["hypothesis"]
    table = next(table for table in outcome.tables if table.name == "lambda")
    cell = next(row[5] for row in table.rows if row[:2] == ("voice alone", "0.5"))
    expected = jiwer.wer(said, [own[name] for name in manifest.utterance_ids])
    assert cell.value == pytest.approx(100 * expected)  # type: ignore[union-attr]
    assert cell.low < cell.value < cell.high  # type: ignore[union-attr]


def test_the_run_can_be_read_as_any_other(study: tuple[Path, Outcome]) -> None:
    folder, outcome = study
    assert read_outcome(folder / "run") == outcome
    run = read_run(folder / "run")
    table = next(table for table in outcome.tables if table.name == "systems")
    assert [100 * score.uar for score in run.scores] == pytest.approx([row[4].value for row in table.rows])  # type: ignore[union-attr]
    rows = [json.loads(line) for line in (folder / "run" / "results.jsonl").read_text().splitlines()]
    assert len(rows) == len(table.rows) * 4
    assert {row["metrics"]["wer"] is None for row in rows if row["ctc_weight"] == 0.0} == {True}
    assert {figure.name: figure.kind for figure in outcome.figures} == {
        "wer-emotion": "scatter",
        "lambda-emotion": "lines",
        "lambda-wer": "lines",
    }
    scatter = outcome.figures[0]
    assert {series.name for series in scatter.series} == {"text alone", "hierarchical asr-text"}
    assert scatter.series[0].x[0] == 0.0 < scatter.series[0].x[1]


def test_it_goes_on_where_it_stopped_and_makes_the_same_bytes(tmp_path: Path) -> None:
    manifest = make_frame_corpus(tmp_path / "cache")
    config = replace(SMALL, train=replace(SMALL.train, epochs=2))
    done: list[tuple[int, int]] = []

    def stop(finished: int, total: int, what: str) -> None:
        if finished == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _run(tmp_path, config, manifest=manifest, progress=stop)
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "run" / "parts").iterdir()}
    assert len(kept) == 5
    damaged = tmp_path / "run" / "parts" / sorted(kept)[0]
    damaged.write_bytes(b"half a file")
    _run(tmp_path, config, manifest=manifest, workers=2, progress=lambda now, total, what: done.append((now, total)))
    assert done[0] == (4, 12)
    assert done[-1] == (12, 12)
    again = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "run" / "parts").iterdir()}
    assert all(again[name] == kept[name] for name in sorted(kept)[1:])
    _run(tmp_path, config, "fresh", manifest=manifest)
    for name in ("results.jsonl", "predictions.parquet", "study.json"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "fresh" / name).read_bytes()
    assert not list((tmp_path / "run").glob(".writing-*"))


def test_a_part_belongs_to_what_it_was_made_of(tmp_path: Path) -> None:
    counts: list[int] = []

    def first(done: int, total: int, what: str) -> None:
        if not what:
            counts.append(done)

    manifest = make_frame_corpus(tmp_path / "cache")
    config = replace(SMALL, ctc_weights=(0.0, 0.5))
    _run(tmp_path, config, manifest=manifest, progress=first)
    _run(tmp_path, replace(config, seeds=2), manifest=manifest, progress=first)  # more seeds: the first is kept
    _run(tmp_path, replace(config, train=replace(TRAIN, epochs=2)), manifest=manifest, progress=first)
    assert counts == [0, 20, 0]
    other = make_frame_corpus(tmp_path / "other", takes=5)  # other utterances
    run_asr_fusion(other, config=config, cache_dir=tmp_path / "other", run_dir=tmp_path / "run", progress=first)
    assert counts[-1] == 0


def test_dimensions(tmp_path: Path) -> None:
    config = replace(SMALL, target="dimensions", train=replace(TRAIN, epochs=10))
    outcome = _run(tmp_path, config)
    assert outcome.target == "dimensions"
    table = outcome.tables[0]
    assert [column.title for column in table.columns][3:5] == ["CCC", "CCC valence"]
    voice = table.rows[0]
    assert voice[3].value > 0.5  # type: ignore[union-attr]
    assert voice[3] == voice[4]
    assert "CCC" in outcome.answers[0]
    predictions = pd.read_parquet(tmp_path / "run" / "predictions.parquet")
    assert predictions["predicted_valence"].between(1.0, 4.0).all()
    assert math.isnan(predictions["text_shuffled_valence"].iloc[0])


def test_mistakes_in_what_is_asked() -> None:
    with pytest.raises(UnknownNameError, match=r"head on frames 'hierarchicle'.*hierarchical"):
        replace(CONFIG, heads=("hierarchicle",))
    with pytest.raises(ConfigError, match="'alone' is a baseline that is always there"):
        replace(CONFIG, heads=("alone",))
    with pytest.raises(ConfigError, match="λ is 1, but"):
        replace(CONFIG, ctc_weights=(0.0, 1.0))
    with pytest.raises(ConfigError, match=r"--ctc-weights needs at least one value, each once; given: 0\.1, 0\.1"):
        replace(CONFIG, ctc_weights=(0.1, 0.1))
    with pytest.raises(ConfigError, match="nothing to fuse"):
        replace(CONFIG, asr="", transcripts=("none",))
    with pytest.raises(ConfigError, match="Transcripts need an encoder of text"):
        replace(CONFIG, text="")
    with pytest.raises(UnknownNameError, match="--order 'text'"):
        replace(CONFIG, order="text")
    with pytest.raises(UnknownNameError, match="--transcripts 'whisper'"):
        plan(replace(CONFIG, transcripts=("whisper",)))
    with pytest.raises(ConfigError, match="by the recogniser of --asr, and none is named"):
        plan(replace(CONFIG, asr="", transcripts=("asr",)))
    with pytest.raises(UnknownNameError, match="--target 'arousal'"):
        replace(CONFIG, target="arousal")
    with pytest.raises(ConfigError, match="--dimensions valence means nothing to --target emotion"):
        replace(CONFIG, dimensions=("valence",))
    with pytest.raises(ConfigError, match="--stride must be between 1 and 100"):
        replace(CONFIG, stride=0)


def test_mistakes_in_what_there_is(tmp_path: Path) -> None:
    manifest = make_frame_corpus(tmp_path / "cache")
    with pytest.raises(
        StoreError, match=r"no transcripts of 'toy' by whisper.*`hyfuse transcribe --corpus toy --model whisper`"
    ):
        _run(tmp_path, replace(CONFIG, transcripts=("asr:whisper",)), manifest=manifest)
    with pytest.raises(StoreError, match=r"`hyfuse extract --model bert --corpus toy --frames"):
        _run(tmp_path, replace(SMALL, text="bert"), manifest=manifest)
    with pytest.raises(ConfigError, match="--text voice is an encoder of the family RLR, not of text"):
        _run(tmp_path, replace(SMALL, text="voice"), manifest=manifest)
    with pytest.raises(ConfigError, match="--acoustic words is an encoder of text"):
        _run(tmp_path, replace(SMALL, acoustic="words"), manifest=manifest)


def test_texts_that_have_changed_are_noticed(tmp_path: Path) -> None:
    manifest = make_frame_corpus(tmp_path / "cache")
    store = store_path(tmp_path / "cache", "toy", "words", f"asr:{ASR}") / "zarr.json"
    described = json.loads(store.read_text())
    described["attributes"]["condition_digest"] = "d4" * 32
    store.write_text(json.dumps(described))
    with pytest.raises(
        ProvenanceError,
        match=r"made from other texts than .*toy-asr.* holds now .*hyfuse cache remove toy/words/asr:toy-asr",
    ):
        _run(tmp_path, CONFIG, manifest=manifest)
    assert transcripts_path(tmp_path / "cache", "toy", ASR).is_dir()


def test_missing_transcripts_are_named(tmp_path: Path) -> None:
    manifest = make_frame_corpus(tmp_path / "cache", transcript=lambda row: "" if row in (3, 8) else "cab")
    wanted = r"2 of 48 utterances of 'toy' have no transcript in the manifest, for instance s0_sadness_1, s0_anger_4;"
    with pytest.raises(
        ManifestError, match=wanted + r" --transcripts manual needs one of each.*--ctc-weights 0 --transcripts asr,none"
    ):
        _run(tmp_path, SMALL, manifest=manifest)
    with pytest.raises(ManifestError, match=r"CTC \(--ctc-weights above 0\) needs one of each"):
        _run(tmp_path, replace(CONFIG, transcripts=("none",)), manifest=manifest)
    quiet = replace(CONFIG, transcripts=("none",), ctc_weights=(0.0,), train=replace(TRAIN, epochs=1))
    assert _run(tmp_path, quiet, manifest=manifest).answers


def _with_recordings(folder: Path) -> Manifest:
    """The toy corpus with recordings: a high tone for anger, a low one for sadness."""
    manifest = make_frame_corpus(folder / "cache", takes=2)
    stream = np.random.default_rng(1)
    for path, emotion in zip(manifest.table["path"], manifest.table["emotion"], strict=True):
        times = np.arange(int(16000 * stream.uniform(0.3, 0.6))) / 16000
        sound = 0.3 * np.sin(2 * np.pi * (1800 if emotion == "anger" else 200) * times)
        (folder / "wav" / path).parent.mkdir(parents=True, exist_ok=True)
        noise = 0.01 * stream.standard_normal(len(times))
        soundfile.write(folder / "wav" / path, (sound + noise).astype(np.float32), 16000)
    return Manifest(manifest.corpus, manifest.table, folder / "wav")


def test_fine_tuning_stands_beside_the_frozen_frames(tmp_path: Path) -> None:
    manifest = _with_recordings(tmp_path)
    tuning = FineTuneConfig(layers=1, epochs=3, batch_size=4, learning_rate=3e-3, head_learning_rate=1e-2)
    config = replace(SMALL, ctc_weights=(0.0, 0.2), fine_tune=tuning, fine_tune_model="wav2vec2-tiny")
    outcome = _run(tmp_path, config, manifest=manifest, weights="random")
    assert any("wav2vec2-tiny" in warning and "RANDOM" in warning for warning in outcome.warnings)
    tables = {table.name: table for table in outcome.tables}
    tuned = tables["systems"].rows[-1]
    assert tuned[:3] == ("wav2vec2-tiny", "fine-tuned (last 1)", "0.2")
    assert tuned[4].value > 60  # type: ignore[union-attr]
    layers = {row[0]: row for row in tables["layers"].rows}
    assert layers["layer_01"][1] == "frozen"
    assert layers["layer_01"][2].value == pytest.approx(1.0)  # type: ignore[union-attr]
    assert layers["layer_02"][1] == "trained"
    assert layers["layer_02"][2].value < 1.0  # type: ignore[union-attr]
    heat = next(figure for figure in outcome.figures if figure.kind == "heatmap")
    assert heat.ticks == ("layer_00", "layer_01", "layer_02")
    assert heat.series[2].y[2] == layers["layer_02"][2].value  # type: ignore[union-attr]
    assert outcome.answers[-2].startswith("Is fine-tuning the encoder better")
    assert "layer_02 most" in outcome.answers[-1]
    checkpoints = tmp_path / "run" / "checkpoints"
    assert sorted(path.name for path in (checkpoints / "fine-tuned").iterdir()) == [f"fold-{fold}" for fold in "1234"]
    assert load_encoder("hf:fine-tuned/fold-2", weights_dir=checkpoints).spec.dim == 32
    before = (tmp_path / "run" / "study.json").read_bytes()
    (checkpoints / "fine-tuned" / "fold-2" / "config.json").unlink()  # its encoder is made again, and nothing else
    counts: list[tuple[int, int]] = []
    _run(
        tmp_path,
        config,
        manifest=manifest,
        weights="random",
        progress=lambda now, total, what: counts.append((now, total)),
    )
    assert counts == [(20, 20), (3, 4), (4, 4)]
    assert (tmp_path / "run" / "study.json").read_bytes() == before


def test_fine_tuning_says_what_it_lacks(tmp_path: Path) -> None:
    config = replace(SMALL, fine_tune=FineTuneConfig(epochs=1, layers=1), fine_tune_model="wav2vec2-tiny")
    with pytest.raises(ManifestError, match="has no folder of recordings"):
        _run(tmp_path / "without", config, weights="random")
    manifest = _with_recordings(tmp_path)
    (tmp_path / "wav" / manifest.table["path"][3]).unlink()
    with pytest.raises(
        ManifestError, match=r"needs the recordings of 'toy', and 1 are not there.*leave --fine-tune out"
    ):
        _run(tmp_path, config, manifest=manifest, weights="random")


def test_ctc_spells_as_word_errors_compare() -> None:
    for text in ("Don’t — “stop”, 'tis [LAUGHTER] well-known!", "Äpfel & <noise> straße 3½", "", "a/b_c"):
        assert spelling(text) == normalise(text)
