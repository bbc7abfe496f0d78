"""The manifest's contract: one content, one digest; everything else is an error that says what to do."""

from __future__ import annotations

import errno
import math
import os
import stat
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from pipelines.corpora.manifest import (
    COLUMNS,
    NUMBER_COLUMNS,
    REQUIRED_COLUMNS,
    Manifest,
    manifest_from_rows,
    read_manifest,
    write_manifest,
)
from pipelines.errors import ManifestError, StorageError

ROWS: list[dict[str, Any]] = [
    {
        "utterance_id": "a/1", "path": "wav/Ärger übung.wav", "speaker": "007", "sex": "female", "language": "de",
        "session": "1", "emotion": "anger", "emotion_raw": "W", "arousal": 0.1, "valence": -2.5, "dominance": 1e-17,
        "transcript": 'He said: "no, never", quietly', "duration_s": 1.8982499999999998, "official_split": "train",
    },
    {
        "utterance_id": "a/2", "path": "wav/b.wav", "speaker": "NA", "emotion": "", "emotion_raw": "xxx", "duration_s": 3,
        "transcript": "None",
    },
    {"utterance_id": "007", "path": "c.wav", "speaker": "null", "emotion": "fear", "emotion_raw": "A", "valence": 4.0},
]  # fmt: skip


def _manifest(rows: list[dict[str, Any]] | None = None) -> Manifest:
    return manifest_from_rows("toy", ROWS if rows is None else rows)


def _csv(folder: Path, text: str, *, name: str = "toy.csv", encoding: str = "utf-8") -> Path:
    path = folder / name
    path.write_bytes(text.encode(encoding))
    return path


HEADER = "utterance_id,path,speaker,emotion\n"

# ------------------------------------------------------------------------------------------------ content


def test_columns_and_types() -> None:
    table = _manifest().table
    assert tuple(table.columns) == COLUMNS
    for name in COLUMNS:
        if name in NUMBER_COLUMNS:
            assert table[name].dtype == "float64"
        else:
            assert all(isinstance(value, str) for value in table[name]), name
    first, second = table.iloc[0], table.iloc[1]
    assert first["speaker"] == "007"
    assert first["dominance"] == 1e-17
    assert second["speaker"] == "NA"
    assert second["transcript"] == "None"
    assert second["sex"] == second["session"] == second["official_split"] == ""
    assert math.isnan(second["arousal"])


def test_further_columns_are_kept_as_text_in_a_fixed_order() -> None:
    rows = [{"zeta": 3, "utterance_id": "a", "path": "a.wav", "speaker": "s", "alpha": 2.5}]
    table = manifest_from_rows("toy", rows).table
    assert tuple(table.columns) == (*COLUMNS, "alpha", "zeta")
    assert table.iloc[0][["alpha", "zeta"]].tolist() == ["2.5", "3"]


def test_paths_are_below_the_root(tmp_path: Path) -> None:
    manifest = manifest_from_rows("toy", [*ROWS[:2], {**ROWS[2], "path": "/data/c.wav"}], root=tmp_path)
    assert manifest.audio_paths() == [tmp_path / "wav/Ärger übung.wav", tmp_path / "wav/b.wav", Path("/data/c.wav")]
    with pytest.raises(ManifestError, match=r"'toy' has no folder of recordings.*`--data-root DIR`"):
        _manifest().audio_paths()


def test_own_labels_are_brought_into_the_vocabulary(tmp_path: Path) -> None:
    labels = {"Happy": "happiness", " JOY ": "happiness", "Anger": "anger", "neu": "neutral", "Pride": "pride", "": ""}
    text = HEADER + "".join(f"u{row},a.wav,s,{label}\n" for row, label in enumerate(labels))
    table = read_manifest(_csv(tmp_path, text)).table
    assert table["emotion"].tolist() == list(labels.values())
    assert table["emotion_raw"].tolist() == [label.strip() for label in labels]


def test_labels_of_a_corpus_are_left_alone() -> None:
    row = {"utterance_id": "a", "path": "a.wav", "speaker": "s", "emotion": "Happy", "emotion_raw": "H"}
    assert manifest_from_rows("toy", [row]).table.iloc[0]["emotion"] == "Happy"


def test_what_raters_said_has_one_form(tmp_path: Path) -> None:
    text = (
        HEADER.replace("\n", ",emotion_votes,valence_ratings\n")
        + "u,a.wav,s,Happy,neu:1; JOY:2;happy:1,4;5.0\nv,b.wav,s,,,\n"
    )
    table = read_manifest(_csv(tmp_path, text)).table
    assert table["emotion_votes"].tolist() == ["happiness:3;neutral:1", ""]
    assert table["valence_ratings"].tolist() == ["4;5", ""]
    assert tuple(table.columns) == (*COLUMNS, "emotion_votes", "valence_ratings")  # no column that the table has not
    corpus = {**ROWS[0], "emotion_votes": "Happy:1"}
    assert manifest_from_rows("toy", [corpus]).table.iloc[0]["emotion_votes"] == "Happy:1"  # mapped by its card already


@pytest.mark.parametrize(
    ("column", "cell", "message"),
    [
        (
            "emotion_votes",
            "anger;anger;neutral",
            "expected emotions and how many raters named each, such as 'anger:3;neutral:1'",
        ),
        ("emotion_votes", "anger:-1", "expected emotions and how many"),
        ("arousal_ratings", "4 4 5", "expected one number per rater, such as '4;4;5'"),
    ],
)
def test_what_raters_cannot_have_said_is_an_error(column: str, cell: str, message: str) -> None:
    rows = [ROWS[0], {**ROWS[1], column: cell}]
    with pytest.raises(ManifestError, match=f"row 2: {column} is {cell!r}, {message}"):
        _manifest(rows)


# ------------------------------------------------------------------------------------------------ digest and round trips


def test_digest_does_not_depend_on_where_the_corpus_lies(tmp_path: Path) -> None:
    assert manifest_from_rows("toy", ROWS, root=tmp_path).digest == manifest_from_rows("other name", ROWS).digest


def test_digest_does_not_depend_on_the_order_of_columns_or_on_number_types() -> None:
    turned = [dict(reversed(row.items())) for row in ROWS]
    assert _manifest(turned).digest == _manifest().digest
    typed = [
        {**row, "valence": int(row["valence"]) if row.get("valence") == 4.0 else row.get("valence")} for row in ROWS
    ]
    assert _manifest(typed).digest == _manifest().digest


@pytest.mark.parametrize("column", COLUMNS)
def test_digest_depends_on_every_cell(column: str) -> None:
    value = 0.123 if column in NUMBER_COLUMNS else "other"
    changed = [{**ROWS[0], column: value}, *ROWS[1:]]
    assert _manifest(changed).digest != _manifest().digest


def test_digest_depends_on_the_order_of_rows() -> None:
    assert _manifest(ROWS[::-1]).digest != _manifest().digest


def test_digest_is_pinned() -> None:
    """Stores on users' disks carry it: a change of the canonical form makes all of them unusable, so it must be meant."""
    row = {
        "utterance_id": "a",
        "path": "a.wav",
        "speaker": "s",
        "emotion": "anger",
        "emotion_raw": "W",
        "duration_s": 0.1,
    }
    assert manifest_from_rows("toy", [row]).digest[:16] == "18246dc35398dd35"


def test_round_trip_through_csv(tmp_path: Path) -> None:
    write_manifest(_manifest(), tmp_path / "toy.csv")
    again = read_manifest(tmp_path / "toy.csv")
    pd.testing.assert_frame_equal(again.table, _manifest().table, check_exact=True)
    assert again.digest == _manifest().digest
    assert again.corpus == "toy"
    assert again.root == tmp_path
    write_manifest(again, tmp_path / "twice.csv")
    assert (tmp_path / "twice.csv").read_bytes() == (tmp_path / "toy.csv").read_bytes()


def test_round_trip_through_parquet(tmp_path: Path) -> None:
    _manifest().table.to_parquet(tmp_path / "toy.parquet", index=False)
    again = read_manifest(tmp_path / "toy.parquet", corpus="named", root=Path("/data"))
    assert again.digest == _manifest().digest
    assert (again.corpus, again.root) == ("named", Path("/data"))


def test_numbers_as_text_and_text_as_numbers_in_parquet(tmp_path: Path) -> None:
    table = pd.DataFrame(
        {"utterance_id": [1, 2], "path": ["a.wav", "b.wav"], "speaker": [3.0, 4.0], "arousal": ["1.5", None]}
    )
    table.to_parquet(tmp_path / "toy.PARQUET")
    read = read_manifest(tmp_path / "toy.PARQUET").table
    assert read["utterance_id"].tolist() == ["1", "2"]
    assert read["speaker"].tolist() == ["3", "4"]
    assert read["arousal"].tolist()[0] == 1.5
    assert math.isnan(read["arousal"].tolist()[1])


@pytest.mark.parametrize("end", ["\r\n", "\r"])
def test_line_ends_and_byte_order_mark_do_not_matter(tmp_path: Path, end: str) -> None:
    text = HEADER + "a,a.wav,s1,Happy\nb,b.wav,s2,sad\n"
    plain = read_manifest(_csv(tmp_path, text))
    marked = read_manifest(_csv(tmp_path, text.replace("\n", end), name="m.csv", encoding="utf-8-sig"))
    assert marked.digest == plain.digest


@pytest.mark.parametrize("variant", [
    HEADER + "\na,a.wav,s1,Happy\n\n",
    "utterance_id, path, speaker, emotion\n a , a.wav, s1, Happy \n",
    '"utterance_id","path","speaker","emotion"\n"a","a.wav","s1","Happy"\n',
    'utterance_id, path, speaker, emotion\n"a", "a.wav", "s1", "Happy"\n',
    "emotion,speaker,path,utterance_id\nHappy,s1,a.wav,a\n",
    HEADER + "a,a.wav,s1,Happy,\n",
    HEADER + "a,a.wav,s1,Happy",
])  # fmt: skip
def test_blank_lines_spaces_quotes_and_trailing_commas_do_not_matter(tmp_path: Path, variant: str) -> None:
    plain = read_manifest(_csv(tmp_path, HEADER + "a,a.wav,s1,Happy\n"))
    assert read_manifest(_csv(tmp_path, variant, name="v.csv")).digest == plain.digest


def test_line_break_inside_a_transcript_becomes_a_space(tmp_path: Path) -> None:
    text = 'utterance_id,path,speaker,transcript\na,a.wav,s,"one\ntwo\r\nthree"\n'
    assert read_manifest(_csv(tmp_path, text)).table.iloc[0]["transcript"] == "one two three"


@pytest.mark.parametrize("name", ["NA", "nan", "None", "null", "007", "1e5", "0x1F", "True", "1.0", "-"])
def test_text_stays_text(tmp_path: Path, name: str) -> None:
    table = read_manifest(_csv(tmp_path, HEADER + f"{name},{name},{name},\n")).table
    assert table.iloc[0][list(REQUIRED_COLUMNS)].tolist() == [name] * 3


def test_large_manifest_of_any_characters_round_trips(tmp_path: Path) -> None:
    letters = [chr(code) for code in [*range(0x20, 0x7F), *range(0xA1, 0x180), 0x4E00, 0x1F600, 0x2028, 0x85]]
    rows = [
        {
            "utterance_id": f"u{row}",
            "path": f"x{letter}y.wav",
            "speaker": f"s{letter}t",
            "transcript": f"{letter * 3}a{letter}",
        }
        for row, letter in enumerate(letters)
    ]
    manifest = _manifest(rows)
    write_manifest(manifest, tmp_path / "toy.csv")
    assert read_manifest(tmp_path / "toy.csv").digest == manifest.digest


# ------------------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"toy\.csv is empty\. A manifest needs a header"),
        ("\n\n", r"is empty"),
        (HEADER, r"lists no utterance"),
        ("utterance_id,path\na,a.wav\n", r"lacks the column speaker\. .*found: utterance_id, path"),
        ("file,label\na,b\n", r"lacks the columns utterance_id, path, speaker.*found: file, label"),
            ((HEADER + "a,a.wav,s,x\n").replace(",", "|"), r"separated by something else than commas, semicolons or tabs"),
        (HEADER + "a,a,s,x\na,b,s,x\nb,b,s,x\nb,b,s,x\nc,c,s,x\n", r"2 utterance_id\(s\) occur more than once: a, b\. "),
        (HEADER + "".join(f"u{row % 9},a.wav,s,x\n" for row in range(18)), r"9 utterance_id\(s\) .*: u0, u1, u2, u3, u4 …\."),
        (HEADER + "a,a.wav,s,x\n,b.wav,s,x\n", r"utterance_id is empty in 1 row\(s\), first in row 2"),
        (HEADER + "a,a.wav,,x\nb,b.wav,,x\n", r"speaker is empty in 2 row\(s\), first in row 1"),
        (HEADER + "a,a.wav\n", r"speaker is empty"),
        (HEADER + "x" * 201 + ",a.wav,s,x\n", r"utterance_id 'x{60}' is unusable: .*at most 200"),
        (HEADER + "a\x07b,a.wav,s,x\n", r"utterance_id 'a\\x07b' is unusable"),
        ("utterance_id,path,speaker,arousal\na,a,s,\"3,5\"\n", r"row 1: arousal is '3,5', expected a number with a decimal point"),
        ("utterance_id,path,speaker,duration_s\na,a.wav,s,1\nb,b.wav,s,long\n", r"row 2: duration_s is 'long'"),
        ("utterance_id,path,speaker,duration_s\na,a.wav,s,inf\n", r"duration_s is 'inf'"),
        ("utterance_id,path,speaker,duration_s\na,a.wav,s,1_000\n", r"duration_s is '1_000'"),
        (HEADER + "a,a.wav,s,x,more\nb,b.wav,s,x,more\n", r"more fields in its rows than columns in its header"),
        (HEADER + "a,a.wav,s,x\nb,b.wav,s,x,more\n", r"cannot be read as a table.*Expected 4 fields in line 3, saw 5"),
        (HEADER + '"a,a.wav,s,x\nb,b.wav,s,x\n', r"cannot be read as a table"),
        ("utterance_id,path,speaker,speaker\na,a.wav,s,t\n", r"more than one column speaker"),
        ("utterance_id,path,speaker,speaker \na,a.wav,s,t\n", r"more than one column speaker"),
    ],
)  # fmt: skip
def test_says_what_is_wrong(tmp_path: Path, text: str, message: str) -> None:
    path = _csv(tmp_path, text)
    with pytest.raises(ManifestError, match=message) as caught:
        read_manifest(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(("encoding", "named"), [("latin-1", "latin1"), ("utf-16", "utf-16")])
def test_other_encodings(tmp_path: Path, encoding: str, named: str) -> None:
    path = _csv(tmp_path, HEADER + "ä,ä.wav,s,x\n", name="my file.csv", encoding=encoding)
    with pytest.raises(
        ManifestError, match=rf"not UTF-8 \(byte \d+\).*`iconv -f {named} -t utf-8 'my file\.csv' > new\.csv`"
    ):
        read_manifest(path)


def test_latin1_far_into_a_large_file(tmp_path: Path) -> None:
    body = "".join(f"u{row},a.wav,s,x\n" for row in range(50000)).encode()
    path = tmp_path / "toy.csv"
    path.write_bytes(HEADER.encode() + body + "ä,b.wav,s,x\n".encode("latin-1"))
    with pytest.raises(ManifestError, match="not UTF-8"):
        read_manifest(path)


def test_no_such_file(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere.csv", tmp_path):
        with pytest.raises(ManifestError, match=r"There is no manifest at .*\.csv or \.parquet"):
            read_manifest(path)


@pytest.mark.parametrize("content", [b"", b"PAR1", b"utterance_id,path,speaker\n", os.urandom(2000)])
def test_parquet_that_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "toy.parquet").write_bytes(content)
    with pytest.raises(ManifestError, match=r"toy\.parquet cannot be read as a table"):
        read_manifest(tmp_path / "toy.parquet")


def test_parquet_without_a_column(tmp_path: Path) -> None:
    _manifest().table.drop(columns="path").to_parquet(tmp_path / "toy.parquet")
    with pytest.raises(ManifestError, match="lacks the column path"):
        read_manifest(tmp_path / "toy.parquet")


def test_no_rows() -> None:
    with pytest.raises(ManifestError, match="corpus 'toy' lists no utterance"):
        manifest_from_rows("toy", [])
    with pytest.raises(ManifestError, match="the archive lists no utterance"):
        manifest_from_rows("toy", [], origin="the archive")


def test_file_names_that_are_not_utf8() -> None:
    """They reach Python as half surrogates, which no digest and no file can hold."""
    rows = [ROWS[0], {**ROWS[1], "path": os.fsdecode(b"wav/\xe4rger.wav")}]
    with pytest.raises(ManifestError, match=r"row 2: path 'wav/\\udce4rger\.wav' is not valid UTF-8.*convmv"):
        _manifest(rows)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_no_permission_to_read(tmp_path: Path) -> None:
    path = _csv(tmp_path, HEADER + "a,a.wav,s,x\n")
    path.chmod(0)
    with pytest.raises(ManifestError, match="Permission denied"):
        read_manifest(path)


# ------------------------------------------------------------------------------------------------ writing


def test_a_full_disk_leaves_the_old_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "toy.csv"
    write_manifest(_manifest(ROWS[:1]), path)
    before = path.read_bytes()

    def full(self: Path, *_: object, **__: object) -> None:
        self.touch()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(StorageError, match=r"toy\.csv cannot be written: No space left on device.*--cache-dir"):
        write_manifest(_manifest(), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_folder_is_made_and_may_be_a_file(tmp_path: Path) -> None:
    write_manifest(_manifest(), tmp_path / "new" / "folder" / "toy.csv")
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot be written"):
        write_manifest(_manifest(), tmp_path / "file" / "toy.csv")


def test_others_may_read_what_the_umask_lets_them(tmp_path: Path) -> None:
    """A cache is often shared in a lab."""
    before = os.umask(0o022)
    try:
        write_manifest(_manifest(), tmp_path / "toy.csv")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "toy.csv").stat().st_mode) == 0o644
