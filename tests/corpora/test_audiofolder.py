"""Folders as the Hugging Face library lays them out: classes as folders, or metadata beside the recordings."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from pipelines.audio.recordings import SUFFIXES
from pipelines.corpora.audiofolder import AUDIO_SUFFIXES, read_audiofolder
from pipelines.corpora.resolve import Columns, resolve_corpus
from pipelines.errors import ConfigError, DataRootError, ManifestError, UnknownNameError
from tests.corpora.databases import tone
from tests.corpora.official_trees import ravdess


def test_suffixes_are_those_of_audio() -> None:
    assert AUDIO_SUFFIXES == SUFFIXES


def test_a_folder_per_class(tmp_path: Path) -> None:
    root = tmp_path / "voices"
    for number, name in enumerate(
        ("train/angry/a 1.wav", "train/neutral/b.wav", "test/angry/ä😀.wav", "test/.x/no.wav")
    ):
        tone(root / name, number)
    prepared = resolve_corpus(str(root), cache_dir=tmp_path / "cache")
    table = prepared.manifest.table
    assert list(table["path"]) == ["train/angry/a 1.wav", "train/neutral/b.wav", "test/angry/ä😀.wav"]
    assert list(table["emotion"]) == ["anger", "neutral", "anger"]
    assert list(table["emotion_raw"]) == ["angry", "neutral", "angry"]
    assert list(table["official_split"]) == ["train", "train", "test"]
    assert set(table["speaker"]) == {"unknown"}
    assert "hyfuse corpora new" in str(prepared.findings)


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_metadata(tmp_path: Path, suffix: str) -> None:
    root = tmp_path / "voices"
    rows = []
    for number in range(4):
        tone(root / "train" / f"{number}.wav", number)
        rows.append({"file_name": f"{number}.wav", "Label": ["Happy", "sad"][number % 2], "speaker_id": number // 2,
                     "transcription": "Guten Tag, Welt", "gender": "F"})  # fmt: skip
    tone(root / "train" / "unlisted.wav", 9)
    path = root / "train" / f"metadata.{suffix}"
    if suffix == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows) + "\n")
    elif suffix == "csv":
        pd.DataFrame(rows).to_csv(path, index=False)
    else:
        pd.DataFrame(rows).to_parquet(path)
    listing = read_audiofolder(root)
    assert [row["path"] for row in listing.rows] == [f"train/{number}.wav" for number in range(4)]
    assert [row["emotion"] for row in listing.rows] == ["happiness", "sadness"] * 2
    assert [row["speaker"] for row in listing.rows] == ["0", "0", "1", "1"]
    assert {(row["sex"], row["transcript"], row["official_split"]) for row in listing.rows} == {
        ("female", "Guten Tag, Welt", "train")
    }
    assert "1 recording(s) are not in" in str(listing.findings)
    assert [row["speaker"] for row in read_audiofolder(root, speaker="gender").rows] == ["F"] * 4
    with pytest.raises(UnknownNameError, match="Unknown column 'speakr'"):
        read_audiofolder(root, speaker="speakr")


def test_bad_metadata(tmp_path: Path) -> None:
    tone(tmp_path / "a.wav")
    metadata = tmp_path / "metadata.jsonl"
    metadata.write_text('{"file_name": "a.wav"}\n{oops\n')
    with pytest.raises(ManifestError, match="line 2, is not JSON"):
        read_audiofolder(tmp_path)
    metadata.write_text('{"name": "a.wav"}\n')
    with pytest.raises(ManifestError, match="row 1, has no `file_name`"):
        read_audiofolder(tmp_path)
    metadata.unlink()
    (tmp_path / "metadata.csv").write_text("path,label\na.wav,x\n")
    with pytest.raises(ManifestError, match=r"lacks the column\(s\) file_name"):
        read_audiofolder(tmp_path)


def test_what_is_no_audiofolder(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    with pytest.raises(DataRootError, match="There is no folder"):
        resolve_corpus("nowhere/at/all", cache_dir=cache)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ManifestError, match="holds no recordings"):
        resolve_corpus(str(tmp_path / "empty"), cache_dir=cache)
    official = ravdess(tmp_path / "some" / "folder")
    with pytest.raises(DataRootError, match=r"looks like ravdess\. Read it as that: `--corpus ravdess --data-root"):
        resolve_corpus(str(official), cache_dir=cache)
    with pytest.raises(ConfigError, match="leave --data-root"):
        resolve_corpus(str(official), data_root=official, cache_dir=cache)
    with pytest.raises(ConfigError, match="--table chooses a table of an audformat database"):
        resolve_corpus(str(official), cache_dir=cache, columns=Columns(tables=("x",)))
    with pytest.raises(ConfigError, match="'emodb' is neither"):
        resolve_corpus("emodb", cache_dir=cache, columns=Columns(speaker="x"))
