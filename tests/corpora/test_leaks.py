"""Splits with a leak put in: each is found, named and graded; clean ones are left alone."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile

from pipelines.corpora.layouts import Finding
from pipelines.corpora.leaks import audit_split, check_split, read_split
from pipelines.corpora.manifest import Manifest, manifest_from_rows
from pipelines.corpora.protocols import Fold, Split, make_split
from pipelines.errors import ManifestError

EMOTIONS = "WLEAFTN"
SPEAKERS = ("03", "08", "09", "10", "11", "12", "13", "14", "15", "16")
TEXTS = ("a01", "a02", "a04", "a05", "a07")


def _emodb() -> Manifest:
    """The names of Emo-DB in small: every speaker says every text in every emotion."""
    rows = [
        {"utterance_id": f"{who}{text}{what}a", "path": f"wav/{who}{text}{what}a.wav", "speaker": who, "emotion": what}
        | {"transcript": f"Satz {text}."}
        for who in SPEAKERS
        for text in TEXTS
        for what in EMOTIONS
    ]
    return manifest_from_rows("emodb", rows)


def _split(manifest: Manifest, protocol: str) -> Split:
    table = manifest.table
    return make_split(
        protocol,
        utterance_ids=manifest.utterance_ids,
        speakers=list(table["speaker"]),
        labels=list(table["emotion"]),
    )


def _table(folder: Path, rows: Iterable[Mapping[str, object]]) -> Path:
    rows = list(rows)
    path = folder / "folds.csv"
    with path.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def _levels(findings: Sequence[Finding], word: str) -> list[str]:
    return [finding.level for finding in findings if word in finding.message]


# ------------------------------------------------------------------------------------------------ every run


def test_our_own_folds_leak_nothing() -> None:
    manifest = _emodb()
    for protocol in ("speaker-5fold", "loso"):
        assert [
            finding for finding in check_split(manifest, _split(manifest, protocol)) if finding.level != "note"
        ] == []


def test_the_same_sentences_of_an_acted_corpus_are_a_note() -> None:
    manifest = _emodb()
    (note,) = check_split(manifest, _split(manifest, "speaker-5fold"))
    assert note.level == "note"
    assert "100 % of the test utterances say a sentence that is said in training (5 different ones" in note.message
    assert "guessing the label by it reaches 14 % (mean recall; chance 14 %)" in note.message


def test_a_declared_speaker_dependent_protocol_is_not_reported_again() -> None:
    manifest = _emodb()
    assert _levels(check_split(manifest, _split(manifest, "random-5fold")), "speakers") == []


def test_positions_may_point_into_some_of_the_utterances() -> None:
    """A comparison leaves utterances out; its folds are positions among the others."""
    manifest = _emodb()
    kept = [name for name in manifest.utterance_ids if not name.startswith("03")]
    who = [name[:2] for name in kept]
    split = make_split("loso", utterance_ids=kept, speakers=who, labels=[name[5] for name in kept])
    assert [finding.level for finding in check_split(manifest, split, kept)] == ["note"]
    shifted = check_split(manifest, split, [*kept[35:], *kept[:35]])
    assert [finding.level for finding in shifted] == ["note"]  # whole speakers moved: still one speaker a fold
    mixed = [*kept[1:], kept[0]]
    assert set(_levels(check_split(manifest, split, mixed), "speakers of the test part")) == {"error"}


def test_sentences_that_give_the_label_away() -> None:
    rows = [
        {"utterance_id": f"{who}-{what}-{take}", "path": f"{who}{what}{take}.wav", "speaker": who, "emotion": what}
        | {"transcript": f"I am {what}!" if take else "It is eleven o'clock."}
        for who in SPEAKERS
        for what in ("sad", "angry", "happy")
        for take in range(3)
    ]
    manifest = manifest_from_rows("scripted", rows)
    (finding,) = check_split(manifest, _split(manifest, "speaker-5fold"))
    assert finding.level == "warning"
    assert (
        "the sentence gives the label away: guessing by it alone reaches 78 % (mean recall; chance 33 %)"
        in finding.message
    )


def test_speakers_with_one_emotion_each() -> None:
    """As in URDU, where 26 of 29 speakers have one emotion."""
    rows = [
        {"utterance_id": f"{who}-{take}", "path": f"{who}-{take}.wav", "speaker": f"s{who:02d}"}
        | {"emotion": "ahns"[take % 4] if who < 3 else "ahns"[who % 4]}
        for who in range(29)
        for take in range(8)
    ]
    manifest = manifest_from_rows("urdu", rows)
    findings = check_split(manifest, _split(manifest, "speaker-5fold"))
    assert _levels(findings, "26 of 29 speakers with at least 3 utterances have one emotion only") == ["warning"]
    assert _levels(
        findings, "Who speaks gives the label away: guessing by the most frequent label of the same speaker"
    ) == ["warning"]
    assert any("in the corpus reaches 9" in finding.message for finding in findings)


def test_a_few_speakers_with_one_emotion_are_a_note() -> None:
    manifest = _emodb()
    table = manifest.table
    table.loc[table["speaker"] == "03", "emotion"] = "w"
    findings = check_split(manifest, _split(manifest, "speaker-5fold"))
    assert _levels(findings, "1 of 10 speakers with at least 3 utterances have one emotion only.") == ["note"]


def test_a_session_that_is_an_emotion() -> None:
    rows = [
        {"utterance_id": f"{who}-{take}", "path": f"{who}-{take}.wav", "speaker": f"s{who}"}
        | {"emotion": "ab"[take % 2], "session": "first" if take % 2 else "second"}
        for who in range(6)
        for take in range(8)
    ]
    manifest = manifest_from_rows("sessions", rows)
    (finding,) = check_split(manifest, _split(manifest, "speaker-3fold"))
    assert finding.level == "warning"
    assert "The session gives the label away" in finding.message
    assert "in training reaches 100 % (mean recall; chance 50 %)" in finding.message


def test_labels_by_chance_give_nothing_away() -> None:
    generator = np.random.default_rng(0)
    rows = [
        {"utterance_id": str(row), "path": f"{row}.wav", "speaker": f"s{row % 40}", "session": str(row % 7)}
        | {"emotion": "abcd"[generator.integers(4)], "transcript": f"sentence {row % 11}"}
        for row in range(1600)
    ]
    manifest = manifest_from_rows("chance", rows)
    assert [finding.level for finding in check_split(manifest, _split(manifest, "speaker-5fold"))] == ["note"]


def test_one_file_under_two_ids() -> None:
    rows = [
        {
            "utterance_id": f"{who}-{take}",
            "path": f"./wav/{who}-{take}.wav",
            "speaker": f"s{who}",
            "emotion": "ab"[take % 2],
        }
        for who in range(6)
        for take in range(4)
    ]
    rows.append({"utterance_id": "again", "path": "wav/0-0.wav", "speaker": "s5", "emotion": "a"})
    manifest = manifest_from_rows("twice", rows)
    (finding,) = check_split(manifest, _split(manifest, "loso"))
    assert finding.level == "error"
    assert (
        "1 recording(s) of the test part are in the train part as well (the same file under two ids)" in finding.message
    )
    assert finding.examples == ("0-0 = again",)


def test_a_class_that_is_tested_and_not_trained() -> None:
    manifest = _emodb()
    rows = np.arange(len(manifest))
    what = manifest.table["emotion"].to_numpy(str)
    who = manifest.table["speaker"].to_numpy(str)
    fold = Fold("1", rows[(who > "08") & (what != "w")], rows[who == "08"], rows[who == "03"])
    findings = check_split(manifest, Split("own", True, (fold,), ""))
    assert _levels(findings, "Fold '1': w is tested but not trained.") == ["error"]


def test_unknown_speakers_are_nobody_in_particular() -> None:
    manifest = _emodb()
    table = manifest.table
    table.loc[::7, "speaker"] = "Unknown"
    rows = np.arange(len(manifest))
    fold = Fold("1", rows[table["speaker"].to_numpy(str) != "03"][:300], rows[:0], rows[::7])
    assert _levels(check_split(manifest, Split("own", True, (fold,), "")), "speakers") == []


# ------------------------------------------------------------------------------------------------ folds of the user's own


def test_folds_of_emobox_share_all_speakers(tmp_path: Path) -> None:
    """Its folds of Emo-DB, by utterance: every one of the ten speakers is in training and in test."""
    manifest = _emodb()
    generator = np.random.default_rng(0)
    rows = []
    for fold in range(5):
        test = set(generator.choice(manifest.utterance_ids, 70, replace=False))
        rows += [
            {"utterance_id": name, "fold": fold + 1, "part": "test" if name in test else "train"}
            for name in manifest.utterance_ids
        ]
    given = read_split(_table(tmp_path, rows), manifest)
    assert not given.split.speaker_independent
    assert [fold.name for fold in given.split.folds] == list("12345")
    assert given.findings == ()
    findings = check_split(manifest, Split("emobox", True, given.split.folds, ""))
    (error,) = [finding for finding in findings if finding.level == "error"]
    assert "emobox: speakers of the test part are in the train part as well" in error.message
    assert "in 5 of 5 folds; in fold '1' 10 of the 10 speakers of the test part" in error.message
    assert error.examples == SPEAKERS[:5]


def test_a_fold_alone_is_the_fold_that_tests(tmp_path: Path) -> None:
    manifest = _emodb()
    path = _table(tmp_path, [{"utterance_id": name, "fold": name[:2]} for name in manifest.utterance_ids])
    given = read_split(path, manifest)
    assert given.split.speaker_independent
    assert len(given.split.folds) == 10
    first = given.split.folds[0]
    assert {manifest.utterance_ids[row][:2] for row in first.test} == {"03"}
    assert len(first.train) == 9 * 35


@pytest.mark.parametrize("column", ["split", "part", "Split "])
def test_one_fold_in_the_words_of_others(tmp_path: Path, column: str) -> None:
    manifest = _emodb()
    parts = {"03": "Test", "08": "dev"}
    rows = [{"utterance_id": name, column: parts.get(name[:2], "training")} for name in manifest.utterance_ids]
    (fold,) = read_split(_table(tmp_path, rows), manifest).split.folds
    assert (len(fold.train), len(fold.validation), len(fold.test)) == (280, 35, 35)


def test_parquet_folds(tmp_path: Path) -> None:
    import pandas as pd

    manifest = _emodb()
    path = tmp_path / "folds.parquet"
    pd.DataFrame(
        {"utterance_id": manifest.utterance_ids, "fold": [int(name[:2]) for name in manifest.utterance_ids]}
    ).to_parquet(path)
    assert len(read_split(path, manifest).split.folds) == 10


def test_utterances_in_two_parts_in_none_and_not_in_the_corpus(tmp_path: Path) -> None:
    manifest = _emodb()
    names = manifest.utterance_ids
    rows = [{"utterance_id": name, "split": "test" if name.startswith("03") else "train"} for name in names[:-4]]
    rows += [{"utterance_id": names[0], "split": "train"}, {"utterance_id": names[40], "split": "train"}]
    rows += [{"utterance_id": "99a01Wa", "split": "train"}]
    findings = read_split(_table(tmp_path, rows), manifest).findings
    assert _levels(findings, "1 id(s) of folds.csv are not in emodb") == ["error"]
    assert _levels(findings, "Fold '1': 1 utterance(s) are in both its train and its test part.") == ["error"]
    assert _levels(findings, "Fold '1': 1 row(s) say what another row said already") == ["note"]
    assert _levels(findings, "4 of 350 utterances of emodb are in no part.") == ["note"]


def test_ids_that_are_file_names(tmp_path: Path) -> None:
    manifest = _emodb()
    rows = [{"utterance_id": f"wav/{name}.wav", "fold": name[:2]} for name in manifest.utterance_ids]
    with pytest.raises(
        ManifestError, match=r"none of its 350 ids is an utterance of 'emodb'.*names without folder and suffix"
    ):
        read_split(_table(tmp_path, rows), manifest)


def test_an_empty_part(tmp_path: Path) -> None:
    manifest = _emodb()
    rows = [{"utterance_id": name, "split": "train"} for name in manifest.utterance_ids]
    findings = read_split(_table(tmp_path, rows), manifest).findings
    assert _levels(findings, "Fold '1': the test part is empty.") == ["error"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "utterance_id,speaker\na,b\n",
            "needs the column utterance_id, and fold and part.*found: utterance_id, speaker",
        ),
        ("name,fold\na,b\n", "needs the column utterance_id"),
        ("utterance_id,fold\n", "lists no utterance"),
        ("utterance_id,split\n03a01Wa,tset\n", "'tset' is no part of a split. Parts are train, validation"),
        ("", "cannot be read as a table"),
    ],
)
def test_tables_that_are_no_folds(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "folds.csv"
    path.write_text(content)
    with pytest.raises(ManifestError, match=message):
        read_split(path, _emodb())


def test_no_table(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"no table of folds at .*absent.csv. Check the path of --split"):
        read_split(tmp_path / "absent.csv", _emodb())


# ------------------------------------------------------------------------------------------------ listening


RATE_HZ = 16000


def _recorded(folder: Path) -> tuple[Manifest, Path]:
    """Six speakers with four noises each, every one different; leave one speaker out."""
    generator = np.random.default_rng(0)
    rows = []
    for who in range(6):
        for take in range(4):
            name = f"s{who}-{take}"
            loud = np.repeat(generator.uniform(0.01, 0.3, 60), 160)
            soundfile.write(folder / f"{name}.wav", loud * generator.standard_normal(9600).clip(-3, 3), RATE_HZ)
            rows.append({"utterance_id": name, "path": f"{name}.wav", "speaker": f"s{who}", "emotion": "ab"[take % 2]})
    manifest = manifest_from_rows("noises", rows, root=folder)
    return manifest, _table(folder, [{"utterance_id": row["utterance_id"], "fold": row["speaker"]} for row in rows])


def test_recordings_that_differ(tmp_path: Path) -> None:
    manifest, path = _recorded(tmp_path)
    done: list[tuple[int, int]] = []
    found = audit_split(manifest, read_split(path, manifest), near=True, progress=lambda *at: done.append(at))
    assert found == []
    assert done[-1] == (24, 24)


def test_one_recording_in_two_containers(tmp_path: Path) -> None:
    """Other bytes, other names, other speakers, one of them stereo: the same samples."""
    manifest, path = _recorded(tmp_path)
    wave, _ = soundfile.read(tmp_path / "s0-0.wav", dtype="int16")
    soundfile.write(tmp_path / "s4-2.wav", np.stack([wave, wave], axis=1), RATE_HZ, format="FLAC", subtype="PCM_16")
    (finding,) = audit_split(manifest, read_split(path, manifest))
    assert finding.level == "error"
    assert (
        "1 recording(s) of the test part are in the train part as well (the same samples at the same rate)"
        in finding.message
    )
    assert finding.examples == ("s0-0 = s4-2",)


def test_copies_within_a_part_are_no_leak(tmp_path: Path) -> None:
    manifest, path = _recorded(tmp_path)
    (tmp_path / "s0-1.wav").write_bytes((tmp_path / "s0-0.wav").read_bytes())
    assert audit_split(manifest, read_split(path, manifest)) == []


def test_almost_the_same_recording(tmp_path: Path) -> None:
    """Softer by 6 dB and 8 samples later: no sample is the same, and only --near looks for it."""
    manifest, path = _recorded(tmp_path)
    wave, _ = soundfile.read(tmp_path / "s0-0.wav")
    soundfile.write(tmp_path / "s4-2.wav", 0.5 * np.concatenate([np.zeros(8), wave]), RATE_HZ)
    given = read_split(path, manifest)
    assert audit_split(manifest, given) == []
    (finding,) = audit_split(manifest, given, near=True)
    assert finding.level == "warning"
    assert "1 recording(s) of the test part sound almost like one of the train part" in finding.message
    assert finding.examples == ("s0-0 ~ s4-2",)


def test_recordings_that_cannot_be_heard(tmp_path: Path) -> None:
    manifest, path = _recorded(tmp_path)
    (tmp_path / "s0-0.wav").write_bytes(b"")
    soundfile.write(tmp_path / "s1-0.wav", np.zeros(RATE_HZ), RATE_HZ)
    soundfile.write(tmp_path / "s2-0.wav", np.zeros(RATE_HZ), RATE_HZ)
    (finding,) = audit_split(manifest, read_split(path, manifest))
    assert finding.level == "warning"
    assert "3 of 24 recordings cannot be decoded or are silent" in finding.message


def test_speakers_are_always_reported_of_a_users_own_folds(tmp_path: Path) -> None:
    manifest, _ = _recorded(tmp_path)
    rows = [{"utterance_id": name, "fold": name[-1]} for name in manifest.utterance_ids]
    findings = audit_split(manifest, read_split(_table(tmp_path, rows), manifest))
    assert _levels(findings, "6 of the 6 speakers of the test part") == ["error"]
