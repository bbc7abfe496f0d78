"""audformat databases: what becomes of their tables, what is refused, and that nothing in them runs."""

from __future__ import annotations

import pickle
from pathlib import Path

import pandas as pd
import pytest

from pipelines.corpora.audformat_folder import read_audformat
from pipelines.corpora.manifest import manifest_from_rows
from pipelines.corpora.resolve import Columns, resolve_corpus
from pipelines.errors import DataRootError, ManifestError, UnknownNameError
from tests.corpora.databases import HEADER, audformat_folder, tone


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return audformat_folder(tmp_path / "tiny")


def test_tables_become_a_manifest(database: Path, tmp_path: Path) -> None:
    prepared = resolve_corpus(str(database), cache_dir=tmp_path / "cache")
    table = prepared.manifest.table.set_index("utterance_id")
    assert prepared.manifest.corpus == "tiny"
    assert len(table) == 8
    row = table.loc["03a01Wa"]
    assert row["path"] == "wav/03a01Wa.wav"
    assert (row["speaker"], row["sex"], row["language"]) == ("3", "male", "de")
    assert (row["emotion"], row["official_split"]) == ("anger", "train")
    assert row["transcript"] == "Der Lappen liegt da."
    assert table.loc["08a01Nb", "official_split"] == "test"
    assert table.loc["08a01Nb", "arousal"] == 1.75
    assert row["duration_s"] == pytest.approx(0.2)


def test_a_name_of_its_own_and_remembered(database: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    resolve_corpus("german", data_root=database, cache_dir=cache)
    assert len(resolve_corpus("german", cache_dir=cache).manifest) == 8


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_audformat_itself_writes_is_read_the_same(database: Path, tmp_path: Path) -> None:
    """Oracle: the package loads our folder and saves it as Parquet, with speakers in a misc table."""
    audformat = pytest.importorskip("audformat")
    db = audformat.Database.load(str(database), load_data=True)
    db["people"] = audformat.MiscTable(pd.Index([3, 8], name="speaker", dtype="Int64"))
    db["people"]["gender"] = audformat.Column()
    db["people"]["gender"].set(["male", "female"])
    db.schemes["speaker"].replace_labels("people")
    saved = tmp_path / "saved" / "tiny"
    db.save(str(saved), storage_format="parquet")
    assert sorted(path.suffix for path in saved.iterdir()) == [".parquet"] * 4 + [".yaml"]
    before, after = (manifest_from_rows("x", read_audformat(root).rows) for root in (database, saved))
    assert after.digest == before.digest


def test_nothing_is_unpickled_and_no_yaml_runs(database: Path, tmp_path: Path) -> None:
    witness = tmp_path / "ran"

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[object, ...]]:
            return Path.touch, (witness,)

    for name in ("emotion.train", "emotion.test", "files"):
        (database / f"db.{name}.pkl").write_bytes(pickle.dumps(Evil()))
    assert len(read_audformat(database).rows) == 8  # the CSV beside it is read
    (database / "db.files.csv").unlink()
    with pytest.raises(ManifestError, match=r"only as db\.files\.pkl\. hyfuse opens no pickles.*storage_format='csv'"):
        read_audformat(database)
    (database / "db.yaml").write_text(f"tables: !!python/object/apply:pathlib.Path.touch [!!python/name:x {witness}]\n")
    with pytest.raises(ManifestError, match="cannot be read as the header of an audformat database"):
        read_audformat(database)
    (database / "db.yaml").write_text(f"a: !!python/object/apply:os.system ['touch {witness}']\ntables: {{}}\n")
    with pytest.raises(ManifestError, match="cannot be read as the header"):
        read_audformat(database)
    assert not witness.exists()


def test_tables_that_say_different_things_are_not_guessed(database: Path, tmp_path: Path) -> None:
    heard = HEADER + "  heard: {type: filewise, columns: {emotion: {scheme_id: emotion}}}\n"
    (database / "db.yaml").write_text(heard)
    (database / "db.heard.csv").write_text("file,emotion\nwav/03a01Wa.wav,neutral\n")
    with pytest.raises(
        ManifestError, match=r"`--table emotion.train --table emotion.test` \(8 files\); `--table heard`"
    ):
        read_audformat(database)
    prepared = resolve_corpus(str(database), cache_dir=tmp_path / "cache", columns=Columns(tables=("heard",)))
    assert list(prepared.manifest.table["emotion"]) == ["neutral"]
    assert "7 recording(s) of the database have no emotion in the table chosen" in str(prepared.findings)
    with pytest.raises(UnknownNameError, match=r"Unknown table 'herd'. Did you mean 'heard'"):
        read_audformat(database, tables=["herd"])


def test_a_table_that_repeats_another_is_no_question(database: Path) -> None:
    (database / "db.yaml").write_text(HEADER + "  gold: {type: filewise, columns: {emotion: {scheme_id: emotion}}}\n")
    train = (database / "db.emotion.train.csv").read_text()
    test = (database / "db.emotion.test.csv").read_text().partition("\n")[2]
    (database / "db.gold.csv").write_text(train + test)
    rows = read_audformat(database).rows
    assert len(rows) == 8
    assert rows[0]["official_split"] == "train"


def test_columns_by_name(database: Path) -> None:
    rows = read_audformat(database, emotion="emotion", speaker="transcription").rows
    assert {row["speaker"] for row in rows} == {"Der Lappen liegt da."}
    with pytest.raises(UnknownNameError, match="Unknown column 'spaeker'"):
        read_audformat(database, speaker="spaeker")
    with pytest.raises(ManifestError, match="no column 'mood'"):
        read_audformat(database, emotion="mood")


def test_segments_are_refused(database: Path) -> None:
    header = HEADER + "  parts: {type: segmented, columns: {emotion: {scheme_id: emotion}}}\n"
    (database / "db.yaml").write_text(header)
    assert "table parts label parts of recordings" in str(read_audformat(database).findings)
    with pytest.raises(ManifestError, match=r"whole files\. Write every segment to a file of its own"):
        read_audformat(database, tables=["parts"])


def test_without_speakers(database: Path) -> None:
    (database / "db.yaml").write_text(HEADER.partition("  files:")[0])
    listing = read_audformat(database)
    assert {row["speaker"] for row in listing.rows} == {"unknown"}
    assert "--speaker COLUMN" in str(listing.findings)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("not yaml: [", "cannot be read as the header"),
        ("just text", "is not the header of an audformat database"),
        ("tables: {../x: {type: filewise}}", "slashes are not allowed"),
        ("tables: {absent: {type: filewise, columns: {emotion: {}}}}", "lacks db.absent.parquet or db.absent.csv"),
        ("tables: {}", "lists no table"),
    ],
)
def test_damaged_headers(database: Path, change: str, message: str) -> None:
    (database / "db.yaml").write_text(change)
    with pytest.raises(ManifestError, match=message):
        read_audformat(database)


def test_recordings_that_are_missing_are_an_error(database: Path, tmp_path: Path) -> None:
    (database / "wav" / "03a01Wa.wav").unlink()
    with pytest.raises(DataRootError, match="1 of 8 recordings that are listed do not exist"):
        resolve_corpus(str(database), cache_dir=tmp_path / "cache")


def test_the_official_corpus_in_a_folder_of_its_name(database: Path, tmp_path: Path) -> None:
    """audb's Emo-DB is an audformat database as well; in a folder of that name it is the official corpus."""
    official = database.rename(tmp_path / "emodb")
    prepared = resolve_corpus(str(official), cache_dir=tmp_path / "cache")
    assert prepared.card == "emodb"
    assert set(prepared.manifest.table["speaker"]) == {"03", "08"}


def test_same_names_in_two_folders(tmp_path: Path) -> None:
    root = audformat_folder(tmp_path / "tiny")
    tone(root / "more" / "03a01Wa.wav", 50)
    with (root / "db.emotion.train.csv").open("a") as handle:
        handle.write("more/03a01Wa.wav,anger\n")
    ids = [row["utterance_id"] for row in read_audformat(root).rows]
    assert "wav/03a01Wa" in ids
    assert "more/03a01Wa" in ids
