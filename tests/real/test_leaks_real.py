"""Leaks on real speech: folds of Emo-DB by utterance, as EmoBox made them, and by speaker."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import soundfile

from pipelines.corpora.leaks import audit_split, check_split, read_split
from pipelines.corpora.prepare import prepare
from pipelines.corpora.protocols import make_split


def _folds(tmp_path: Path, ids: list[str], fold: list[str]) -> Path:
    path = tmp_path / "folds.csv"
    pd.DataFrame({"utterance_id": ids, "fold": fold}).to_csv(path, index=False)
    return path


def test_folds_of_emodb(real_data: Path, tmp_path: Path) -> None:
    manifest = prepare("emodb", real_data / "corpora" / "emodb").manifest
    table = manifest.table
    ids, who = manifest.utterance_ids, list(table["speaker"])
    generator = np.random.default_rng(0)
    by_utterance = [str(one) for one in generator.integers(1, 6, len(ids))]
    leaking = audit_split(manifest, read_split(_folds(tmp_path, ids, by_utterance), manifest), near=True)
    errors = [finding.message for finding in leaking if finding.level == "error"]
    assert len(errors) == 1
    assert "in 5 of 5 folds; in fold " in errors[0]
    assert "10 of the 10 speakers of the test part" in errors[0]
    clean = audit_split(manifest, read_split(_folds(tmp_path, ids, who), manifest), near=True)
    assert [finding.level for finding in clean] == ["note"]
    assert "100 % of the test utterances say a sentence that is said in training (10 different ones" in clean[0].message


def test_our_folds_of_emodb_get_no_warning(real_data: Path) -> None:
    manifest = prepare("emodb", real_data / "corpora" / "emodb").manifest
    table = manifest.table
    split = make_split(
        "speaker-5fold",
        utterance_ids=manifest.utterance_ids,
        speakers=list(table["speaker"]),
        labels=list(table["emotion"]),
    )
    assert [finding.level for finding in check_split(manifest, split)] == ["note"]


def test_a_softened_copy_of_a_real_recording_is_found(real_data: Path, tmp_path: Path) -> None:
    """At half the level and as Ogg, under the name of another speaker's recording."""
    prepared = prepare("emodb", real_data / "corpora" / "emodb").manifest
    kept = prepared.table.groupby("speaker").head(4)
    folder = tmp_path / "wav"
    folder.mkdir()
    for path in kept["path"]:
        (tmp_path / path).write_bytes((real_data / "corpora" / "emodb" / path).read_bytes())
    first, last = kept["path"].iloc[0], kept["path"].iloc[-1]
    wave, rate_hz = soundfile.read(tmp_path / first)
    soundfile.write(tmp_path / last, wave / 2, rate_hz, format="OGG", subtype="VORBIS")
    manifest = type(prepared)(prepared.corpus, kept.reset_index(drop=True), tmp_path)
    given = read_split(_folds(tmp_path, manifest.utterance_ids, list(manifest.table["speaker"])), manifest)
    found = [finding for finding in audit_split(manifest, given, near=True) if "sound almost like" in finding.message]
    assert [finding.examples for finding in found] == [(f"{Path(first).stem} ~ {Path(last).stem}",)]
