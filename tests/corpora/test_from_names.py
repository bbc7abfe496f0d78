"""Patterns of file names: what matches, what is ambiguous, hostile names, words for emotions."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from pipelines.corpora.from_names import Named, parse_labels, parse_pattern, read_names
from pipelines.errors import ConfigError, DataRootError


def _read(root: Path, pattern: str, files: list[str], labels: str = "") -> Named:
    for file in files:
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")  # only names are read
    return read_names(root, parse_pattern(pattern), parse_labels(labels))


def _fields(named: Named, *fields: str) -> list[tuple[object, ...]]:
    return [tuple(row.get(field) for field in fields) for row in named.rows]


def test_names(tmp_path: Path) -> None:
    named = _read(tmp_path, "{speaker}_{emotion}_{take}.wav",
                  ["anna_Angry_1.wav", "ben_joy_02.WAV", "deep/ben_sad_3.wav",
                   "notes.txt", "odd.wav", "._anna_sad_1.wav"])  # fmt: skip
    assert _fields(named, "utterance_id", "speaker", "emotion", "emotion_raw", "take") == [
        ("anna_Angry_1", "anna", "anger", "Angry", "1"),
        ("ben_joy_02", "ben", "happiness", "joy", "02"),
        ("ben_sad_3", "ben", "sadness", "sad", "3"),
    ]
    assert named.files == 4
    assert named.unmatched == ("odd.wav",)


def test_folders(tmp_path: Path) -> None:
    named = _read(
        tmp_path, "{speaker}/{emotion}/*.wav", ["s1/anger/a.wav", "s2/fear/a.wav", "s2/a.wav", "x/s2/fear/b.wav"]
    )
    assert _fields(named, "utterance_id", "speaker", "emotion") == [
        ("s1/anger/a", "s1", "anger"),
        ("s2/fear/a", "s2", "fear"),
    ]
    assert named.unmatched == ("s2/a.wav", "x/s2/fear/b.wav")
    deep = read_names(tmp_path, parse_pattern("**/{speaker}/{emotion}/*"))
    assert len(deep.rows) == 3


def test_fixed_widths_as_in_emodb(tmp_path: Path) -> None:
    named = _read(
        tmp_path, "{speaker:2}{text:3}{emotion:1}*.wav", ["03a01Wa.wav", "16b10Lb.wav"], "W=anger,L=boredom,x="
    )
    assert _fields(named, "speaker", "text", "emotion") == [("03", "a01", "anger"), ("16", "b10", "boredom")]
    assert named.unused == ("x",)


def test_the_same_field_twice_says_the_same_twice(tmp_path: Path) -> None:
    named = _read(tmp_path, "{speaker}/{speaker}_{emotion}.wav", ["s1/s1_anger.wav", "s1/s2_anger.wav"])
    assert _fields(named, "speaker") == [("s1",)]
    assert named.unmatched == ("s1/s2_anger.wav",)


def test_several_readings(tmp_path: Path) -> None:
    """The word that is an emotion decides; where it does not, the file is left out rather than guessed."""
    named = _read(
        tmp_path, "{speaker}_{emotion}_{take}.wav", ["anna_maria_anger_1.wav", "a_b_c_d.wav", "a_anger_fear_1.wav"]
    )
    assert _fields(named, "speaker", "emotion") == [("anna_maria", "anger")]
    assert [file for file, _ in named.ambiguous] == ["a_anger_fear_1.wav", "a_b_c_d.wav"]
    assert named.ambiguous[1][1] == "speaker 'a', emotion 'b', take 'c_d' or speaker 'a_b', emotion 'c', take 'd'"


def test_words_that_are_no_emotions(tmp_path: Path) -> None:
    named = _read(tmp_path, "{speaker}_{emotion}.wav", ["a_angr.wav", "b_Grumpy.wav", "c_W.wav"], "w=anger")
    assert named.unknown == {"angr": ("anger",), "Grumpy": ()}
    assert _fields(named, "emotion") == [("angr",), ("grumpy",), ("anger",)]


def test_hostile_names(tmp_path: Path) -> None:
    names = ["a, \"b\"_anger.wav", "c d_anger.wav", "😀_anger.wav", "=1+1_anger.wav", "x\ny_anger.wav", " z_anger.wav",
             "{speaker}_anger.wav", "a.b_anger.wav"]  # fmt: skip
    (tmp_path / os.fsdecode(b"\xe4rger_anger.wav")).write_bytes(b"")
    named = _read(tmp_path, "{speaker}_{emotion}.wav", names)
    assert {row["speaker"] for row in named.rows} == {'a, "b"', "c d", "😀", "=1+1", "{speaker}", "a.b"}
    assert dict(named.unusable) == {
        "x\ny_anger.wav": "a line break or another control character in it",
        " z_anger.wav": "a space at its beginning",
        os.fsdecode(b"\xe4rger_anger.wav"): "not valid UTF-8",
    }


def test_a_pattern_that_fits_in_too_many_ways_ends(tmp_path: Path) -> None:
    pattern = "{speaker}_{b}_{c}_{d}_{e}_{f}X.wav"
    started = time.process_time()
    with pytest.raises(ConfigError, match="in too many ways"):
        _read(tmp_path, pattern, ["_a" * 100 + ".wav"])
    assert time.process_time() - started < 5
    stars = _read(tmp_path / "stars", "*a*a*a*a*a*a*a*{speaker:1}X.wav", ["a" * 200 + ".wav"])
    assert stars.unmatched


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("", "does not say where the speaker is: it has no field"),
        ("{emotion}_*.wav", "where the speaker is: its fields are emotion"),
        ("{speaker}{emotion}.wav", r"\{speaker\} and \{emotion\} touch.*\{speaker:2\}"),
        ("{speaker}*.wav", r"\{speaker\} and \* touch"),
        ("{Speaker}.wav", "is no field"),
        ("{speaker:x}_{emotion}", "has the width 'x'"),
        ("{speaker}_{path}.wav", "'path' is made by hyfuse itself"),
        ("{speaker}_{emotion.wav", "a brace without its partner"),
        ("/abs/{speaker}.wav", "relative to the folder"),
        ("../{speaker}.wav", "relative to the folder"),
        ("a\\{speaker}.wav", "forward slashes"),
    ],
)
def test_patterns_that_make_no_sense(pattern: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_pattern(pattern)


@pytest.mark.parametrize(
    ("labels", "message"),
    [("W", "'W' is no pair"), ("W=angr", "'angr' in 'W=angr' is no known emotion. Did you mean 'anger'"),
     ("W=anger,W=fear", "both W=anger and W=fear")],
)  # fmt: skip
def test_labels_that_make_no_sense(labels: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_labels(labels)


def test_nothing_there(tmp_path: Path) -> None:
    pattern = parse_pattern("{speaker}.wav")
    with pytest.raises(DataRootError, match="There is no folder"):
        read_names(tmp_path / "absent", pattern)
    with pytest.raises(DataRootError, match="holds no recordings"):
        read_names(tmp_path, pattern)
