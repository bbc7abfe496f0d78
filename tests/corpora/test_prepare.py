"""From a folder or a table to a manifest: what is found, what is said, what is remembered."""

from __future__ import annotations

import json
import math
import os
import struct
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile

from pipelines.corpora import recordings
from pipelines.corpora.cards import read_card
from pipelines.corpora.layouts import Finding
from pipelines.corpora.manifest import manifest_from_rows
from pipelines.corpora.prepare import (
    Prepared,
    audit,
    cached_corpora,
    check,
    prepare,
    prepare_table,
    recall,
    remember,
)
from pipelines.errors import DataRootError, ManifestError, ProvenanceError, StorageError, UnknownNameError
from tests.corpora import official_trees as trees


def said(findings: tuple[Finding, ...], level: str = "") -> str:
    return "\n".join(f"{finding.message} {finding.examples}" for finding in findings if level in ("", finding.level))


# --- official corpora


@pytest.mark.parametrize("name", sorted(trees.TREES))
def test_every_official_imitation_becomes_a_manifest(name: str, tmp_path: Path) -> None:
    root = trees.TREES[name](tmp_path)
    prepared = prepare(name, root)
    table = prepared.manifest.table
    card = read_card(name)
    assert prepared.usable, said(prepared.findings, "error")
    assert prepared.card == prepared.manifest.corpus == name
    assert prepared.manifest.root == root
    assert [card.label_map[raw] for raw in table["emotion_raw"]] == list(table["emotion"])
    for path, duration_s in zip(prepared.manifest.audio_paths(), table["duration_s"], strict=True):
        info = soundfile.info(str(path))
        assert duration_s == info.frames / info.samplerate
    counted = f"{len(table)} utterances; {name} {card.version} has {card.expected_utterances}. Likely cause: a download"
    assert counted in said(prepared.findings, "warning")
    assert [finding.level for finding in prepared.findings] == sorted(
        (finding.level for finding in prepared.findings), key=["error", "warning", "note"].index
    )


def test_a_complete_corpus_has_no_count_to_complain_about(tmp_path: Path) -> None:
    """All 1440 names of RAVDESS with tiny recordings: neither counts nor speakers differ."""
    for actor in range(1, 25):
        for emotion in range(1, 9):
            for intensity in (1,) if emotion == 1 else (1, 2):
                for statement in (1, 2):
                    for take in (1, 2):
                        name = f"03-01-{emotion:02d}-{intensity:02d}-{statement:02d}-{take:02d}-{actor:02d}"
                        trees.wav(tmp_path / f"Actor_{actor:02d}" / f"{name}.wav", frames=20 + 8 * actor + emotion)
    prepared = prepare("ravdess", tmp_path)
    assert len(prepared.manifest) == 1440
    assert prepared.findings == ()


def test_counts_per_emotion_speaker_and_split_are_compared(tmp_path: Path) -> None:
    findings = said(prepare("meld", trees.meld(tmp_path / "meld")).findings, "warning")
    assert "Utterances per part of the official split differ" in findings
    assert "train 3 (expected 9989), development 3 (expected 1109), test 3 (expected 2610)" in findings
    findings = said(prepare("emodb", trees.emodb(tmp_path / "emodb")).findings, "warning")
    assert "Utterances per label differ from emodb 1.x" in findings
    assert "anger 1 (expected 127)" in findings
    assert "5 speakers; emodb 1.x (535 recordings) has 10" in findings


def test_too_many_recordings_point_to_another_release(tmp_path: Path) -> None:
    root = trees.savee(tmp_path)
    for number in range(10, 99):
        for speaker in ("DC", "JE", "JK", "KL"):
            for emotion in "ad":
                trees.wav(root / f"{speaker}_{emotion}{number}.wav", frames=20)
    assert "has 480. Likely cause: another release, or files added to it" in said(
        prepare("savee", root).findings, "warning"
    )


def test_iemocap_labels_sessions_and_empty_labels(tmp_path: Path) -> None:
    table = prepare("iemocap", trees.iemocap(tmp_path)).manifest.table.set_index("utterance_id")
    assert table.loc["Ses01F_impro01_M003", "emotion"] == "happiness"  # excited
    assert table.loc["Ses01F_impro01_M003", "emotion_raw"] == "exc"
    assert table.loc["Ses01M_script01_1b_F012", "emotion"] == ""  # the raters did not agree
    assert table.loc["Ses01F_impro01_M003", "arousal"] == 3.5
    assert sorted(set(table["session"])) == ["1", "2", "3", "4", "5"]


def test_votes_are_mapped_by_the_card_like_labels(tmp_path: Path) -> None:
    root = trees.iemocap(tmp_path)
    path = root / "Session1" / "dialog" / "EmoEvaluation" / "Ses01F_impro01.txt"
    path.write_text(
        path.read_text().replace("C-E1:\tNeutral;", "C-E1:\tHappiness; Excited;").replace("Neutral state;", "Bored;")
    )
    prepared = prepare("iemocap", root)
    table = prepared.manifest.table.set_index("utterance_id")
    assert table.loc["Ses02F_impro01_F000", "emotion_votes"] == "anger:0.5;frustration:0.5;neutral:2"
    assert table.loc["Ses01F_impro01_F000", "emotion_votes"] == "anger:0.5;frustration:0.5;happiness:1"
    assert "maps to no emotion: 'bored' (2). They are left out of emotion_votes" in said(prepared.findings, "warning")
    assert "maps to no emotion" not in said(prepare("iemocap", trees.iemocap(tmp_path / "as it is")).findings)


def test_a_manifest_without_raters_has_no_columns_of_them_and_the_digest_that_it_always_had(tmp_path: Path) -> None:
    manifest = prepare("emodb", trees.emodb(tmp_path)).manifest
    assert not [name for name in manifest.table.columns if name.endswith(("_votes", "_ratings"))]
    # Measured before there were such columns: stores in caches of that time remain stores of this manifest.
    row = {"utterance_id": "a", "path": "a.wav", "speaker": "s", "emotion": "anger", "arousal": 2.5}
    assert manifest_from_rows("toy", [row]).digest.startswith("0918063f74a439f9")


def test_the_audit_says_how_much_raters_agree(tmp_path: Path) -> None:
    found = {one.what: one for one in check("emotale", trees.emotale(tmp_path)).summary["agreement"]}
    assert sorted(found) == ["arousal", "dominance", "emotion", "valence"]
    assert (found["emotion"].utterances, found["emotion"].answers, found["emotion"].torn) == (5, 15, 0)
    # Five times A, A, B: 5 of 15 coincidences agree; by chance 10 * 9 + 5 * 4 of 15 * 14.
    assert found["emotion"].alpha == pytest.approx(1 - (10 / 15) / (1 - 110 / 210))
    assert check("emodb", trees.emodb(tmp_path / "emodb")).summary["agreement"] == ()


def test_a_label_that_the_card_does_not_know_is_named(tmp_path: Path) -> None:
    root = trees.nemo(tmp_path)
    table = root / "data.tsv"
    table.write_text(table.read_text().replace("\tanger\t", "\tcontempt\t"))
    prepared = prepare("nemo", root)
    assert not prepared.usable
    errors = said(prepared.findings, "error")
    assert "The label 'contempt' of 1 utterance(s) is not in the card of nemo, which knows anger, fear" in errors
    assert "data_manifests/nemo.toml" in errors
    row = prepared.manifest.table.set_index("utterance_id").loc["WR0_anger_2"]
    assert (row["emotion"], row["emotion_raw"]) == ("", "contempt")


def test_labels_are_found_in_any_case(tmp_path: Path) -> None:
    root = trees.meld(tmp_path)
    for table in root.glob("*.csv"):
        table.write_text(table.read_text().replace("joy", "Joy"))
    manifest = prepare("meld", root).manifest
    assert Counter(manifest.table["emotion"])["happiness"] == 3
    assert "Joy" in set(manifest.table["emotion_raw"])


def test_the_same_name_twice_is_used_once_and_reported(tmp_path: Path) -> None:
    root = trees.cremad(tmp_path)
    trees.wav(root / "AudioWAV" / "1001_DFA_ANG_XX.WAV")
    prepared = prepare("cremad", root)
    assert len(prepared.manifest) == 5
    assert "1 utterance id(s) occur more than once" in said(prepared.findings, "warning")
    assert "1001_DFA_ANG_XX.WAV" in said(prepared.findings, "warning")


def test_a_manifest_does_not_depend_on_where_the_corpus_lies(tmp_path: Path) -> None:
    root = trees.emodb(tmp_path / "here")
    before = prepare("emodb", root).manifest.digest
    root.rename(tmp_path / "moved – 日本")
    assert prepare("emodb", tmp_path / "moved – 日本").manifest.digest == before


def test_progress_is_told(tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    prepare("emodb", trees.emodb(tmp_path), progress=lambda done, total: steps.append((done, total)))
    assert steps == [(done, 7) for done in range(1, 8)]


def test_every_recording_is_opened_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tens of thousands of recordings over a network drive: each costs one look."""
    root = trees.cremad(tmp_path)
    opened: list[str] = []
    plain = Path.open

    def counting(self: Path, *args: object, **kwargs: object) -> object:
        opened.append(self.name)
        return plain(self, *args, **kwargs)  # type: ignore[call-overload]

    class FromHandleOnly(soundfile.SoundFile):  # type: ignore[misc]
        def __init__(self, file: object, *args: object, **kwargs: object) -> None:
            assert not isinstance(file, str | os.PathLike), "a second look"
            super().__init__(file, *args, **kwargs)

    monkeypatch.setattr(Path, "open", counting)
    monkeypatch.setattr(soundfile, "SoundFile", FromHandleOnly)
    prepare("cremad", root)
    assert Counter(name for name in opened if name.endswith(".wav")) == {
        path.name: 1 for path in (root / "AudioWAV").iterdir()
    }


# --- recordings that are none


def test_lfs_pointers(tmp_path: Path) -> None:
    root = trees.cremad(tmp_path)
    for path in (root / "AudioWAV").iterdir():
        path.write_bytes(trees.LFS_POINTER)
    assert 100 < len(trees.LFS_POINTER) < 200
    prepared = prepare("cremad", root)
    errors = said(prepared.findings, "error")
    assert "5 of 5 recordings are Git LFS pointers" in errors
    assert f"`git lfs install && git lfs pull` in {root}" in errors
    assert "AudioWAV/1001_DFA_ANG_XX.wav" in errors
    assert not prepared.usable
    assert len(prepared.manifest) == 5  # nothing is dropped
    assert prepared.manifest.table["duration_s"].isna().all()


def test_a_single_lfs_pointer_is_an_error_too(tmp_path: Path) -> None:
    root = trees.cremad(tmp_path)
    (root / "AudioWAV" / "1001_DFA_ANG_XX.wav").write_bytes(trees.LFS_POINTER)
    assert "1 of 5 recordings are Git LFS pointers" in said(prepare("cremad", root).findings, "error")


def test_empty_missing_and_damaged_recordings_keep_their_row(tmp_path: Path) -> None:
    root = trees.iemocap(tmp_path)
    wavs = sorted(root.rglob("*.wav"))
    wavs[0].write_bytes(b"")
    wavs[1].write_bytes(b"this is no audio, and it is longer than a pointer. " * 40)
    wavs[2].unlink()
    wavs[3].write_bytes(wavs[4].read_bytes()[:44])  # a header without a sample
    prepared = prepare("iemocap", root)
    assert prepared.usable
    warnings = said(prepared.findings, "warning")
    assert "2 of 20 recordings are empty (no bytes, or a header without samples)" in warnings
    assert "1 of 20 recordings cannot be read as audio (Format not recognised)" in warnings
    assert "1 of 20 recordings that are listed do not exist" in warnings
    table = prepared.manifest.table.set_index("utterance_id")
    assert len(table) == 20
    assert table["duration_s"].isna().sum() == 4
    assert math.isnan(table.loc[wavs[0].stem, "duration_s"])


def test_a_corpus_of_which_nothing_can_be_read_is_an_error(tmp_path: Path) -> None:
    root = trees.iemocap(tmp_path)
    for path in root.rglob("*.wav"):
        path.unlink()
    prepared = prepare("iemocap", root)
    assert not prepared.usable
    assert "20 of 20 recordings that are listed do not exist" in said(prepared.findings, "error")


def test_a_recording_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = trees.emodb(tmp_path)
    plain = Path.open

    def refusing(self: Path, *args: object, **kwargs: object) -> object:
        if self.name == "03a01Fa.wav":
            raise PermissionError(13, "Permission denied", str(self))
        return plain(self, *args, **kwargs)  # type: ignore[call-overload]

    monkeypatch.setattr(Path, "open", refusing)
    assert "1 of 7 recordings cannot be read as audio (Permission denied)" in said(prepare("emodb", root).findings)


def test_the_suffix_does_not_decide_what_a_file_is(tmp_path: Path) -> None:
    """AIFF and FLAC inside ``.wav`` are real and are read."""
    root = trees.emodb(tmp_path)
    samples = np.random.default_rng(0).uniform(-0.1, 0.1, 1600)
    soundfile.write(root / "wav" / "03a01Fa.wav", samples, 16000, format="AIFF")
    soundfile.write(root / "wav" / "03a01Nc.wav", samples[:800], 16000, format="FLAC")
    table = prepare("emodb", root).manifest.table.set_index("utterance_id")
    assert (table.loc["03a01Fa", "duration_s"], table.loc["03a01Nc", "duration_s"]) == (0.1, 0.05)


# --- look-alikes, duplicates, formats


def test_a_look_alike_cut_to_two_seconds(tmp_path: Path) -> None:
    for number in range(12):
        trees.wav(
            tmp_path / "Actor_01" / f"03-01-0{number % 6 + 1}-01-0{number // 6 + 1}-01-01.wav",
            rate_hz=22050,
            frames=44100,
        )
    warnings = said(prepare("ravdess", tmp_path).findings, "warning")
    assert "12 of 12 recordings last exactly 2.00 s, and none lasts longer (22050 Hz): they were cut" in warnings
    assert "Get the original recordings" in warnings


def test_a_look_alike_with_some_shorter_clips(tmp_path: Path) -> None:
    root = trees.ravdess(tmp_path)  # eleven clips of other lengths, all below 2 s
    for number in range(15):
        trees.wav(
            root / "Actor_03" / f"03-01-0{number % 8 + 1}-01-0{number // 8 + 1}-02-03.wav", rate_hz=48000, frames=96000
        )
    assert "15 of 26 recordings last exactly 2.00 s" in said(prepare("ravdess", root).findings, "warning")


def test_ravdess_duplicates_and_stereo(tmp_path: Path) -> None:
    notes = said(prepare("ravdess", trees.ravdess(tmp_path)).findings, "note")
    assert "2 recordings in 1 group(s) are byte-identical; all are kept. They agree in speaker and emotion" in notes
    assert "Actor_07/03-01-05-01-01-01-07.wav = Actor_07/03-01-05-01-01-02-07.wav" in notes
    assert "1 of 11 recordings have 2 channel(s), unlike the others" in notes
    assert "Actor_01/03-01-06-02-02-02-01.wav" in notes


def test_duplicates_across_speakers_may_leak(tmp_path: Path) -> None:
    root = trees.emodb(tmp_path)
    (root / "wav" / "08a02Wb.wav").write_bytes((root / "wav" / "03a01Fa.wav").read_bytes())
    warnings = said(prepare("emodb", root).findings, "warning")
    assert "2 recordings in 1 group(s) are byte-identical" in warnings
    assert "1 of the groups differ in speaker or emotion" in warnings


def test_equal_size_and_middle_is_no_duplicate_yet(tmp_path: Path) -> None:
    root = trees.emodb(tmp_path)
    samples = np.random.default_rng(0).integers(-9999, 9999, 9000, dtype=np.int16)
    soundfile.write(root / "wav" / "03a01Fa.wav", samples, 16000)
    samples[0] += 1
    soundfile.write(root / "wav" / "03a01Nc.wav", samples, 16000)
    assert "byte-identical" not in said(prepare("emodb", root).findings)


def test_mixed_sample_rates_are_listed(tmp_path: Path) -> None:
    root = trees.nemo(tmp_path)
    trees.wav(root / "samples" / "EB0_neutral_13.wav", rate_hz=96000)
    assert "2 sample rates: 24000 Hz (2), 96000 Hz (1)" in said(prepare("nemo", root).findings, "note")


def test_speakers_that_lack_a_class(tmp_path: Path) -> None:
    findings = said(prepare("savee", trees.savee(tmp_path)).findings)
    assert "lack a class" not in findings
    (tmp_path / "AudioData" / "JK" / "su06.wav").unlink()
    notes = said(prepare("savee", tmp_path).findings, "note")
    assert "1 of 4 speakers lack a class" in notes
    assert "JK: no surprise" in notes


# --- roots


def test_root_is_missing(tmp_path: Path) -> None:
    with pytest.raises(
        DataRootError,
        match=r"There is no folder .*nowhere\. Give the folder .* `--root` .*wav/03a01Fa\.wav.*corpora show emodb",
    ):
        prepare("emodb", tmp_path / "nowhere")


def test_root_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "emodb.zip").write_bytes(b"PK")
    with pytest.raises(DataRootError, match=r"emodb\.zip is a file, not a folder\. Unpack it"):
        prepare("emodb", tmp_path / "emodb.zip")
    (tmp_path / "x.wav").write_bytes(b"")
    with pytest.raises(DataRootError, match=r"x\.wav is a file, not a folder\. Give the folder that holds the corpus"):
        prepare("emodb", tmp_path / "x.wav")


def test_root_is_empty(tmp_path: Path) -> None:
    with pytest.raises(DataRootError, match=r" is empty\. Expected in it: AudioWAV"):
        prepare("cremad", tmp_path)


def test_root_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = trees.emodb(tmp_path)
    plain = os.scandir

    def refusing(path: os.PathLike[str] | str = ".") -> object:
        if str(path).endswith("wav"):
            raise PermissionError(13, "Permission denied", str(path))
        return plain(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(DataRootError, match=r"wav may not be read\. Change its permissions: `chmod"):
        prepare("emodb", root)


@pytest.mark.parametrize(
    ("wanted", "given"),
    [(wanted, given) for wanted in sorted(trees.TREES) for given in ("ravdess", "emodb") if wanted != given],
)
def test_root_of_another_corpus(wanted: str, given: str, tmp_path: Path) -> None:
    root = trees.TREES[given](tmp_path)
    with pytest.raises(
        DataRootError, match=f"does not look like {wanted}. This looks like {given}; did you mean `--corpus {given}`?"
    ):
        prepare(wanted, root)


@pytest.mark.parametrize("name", sorted(trees.TREES))
def test_root_too_high(name: str, tmp_path: Path) -> None:
    root = trees.TREES[name](tmp_path / "data" / "release 1")
    for above in (root.parent, root.parent.parent):
        with pytest.raises(DataRootError, match=rf"one level down|use `--root {root}`") as caught:
            prepare(name, above)
        assert f"`--root {root}`" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("emodb", "wav"),
        ("iemocap", "Session1"),
        ("msp-podcast", "Audios"),
        ("ravdess", "Actor_01"),
        ("nemo", "samples"),
    ],
)
def test_root_too_low(name: str, part: str, tmp_path: Path) -> None:
    root = trees.TREES[name](tmp_path)
    with pytest.raises(DataRootError, match=f"This is a part of the corpus: use `--root {root}`"):
        prepare(name, root / part)


def test_root_that_is_nothing_known(tmp_path: Path) -> None:
    trees.wav(tmp_path / "music" / "song.wav")
    with pytest.raises(DataRootError, match=r"does not look like savee\. Expected in it: AudioData/DC/a01\.wav"):
        prepare("savee", tmp_path)


def test_recordings_without_labels_say_what_is_missing(tmp_path: Path) -> None:
    root = trees.msp_podcast(tmp_path)
    (root / "Labels" / "labels_consensus.csv").unlink()
    with pytest.raises(
        DataRootError, match=r"nothing of msp-podcast that can be used\. Labels/labels_consensus\.csv is missing"
    ):
        prepare("msp-podcast", root)


def test_unknown_corpus(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match=r"Unknown corpus 'ravdes'\. Did you mean 'ravdess'"):
        prepare("ravdes", tmp_path)


# --- the user's own table


def own_table(folder: Path, rows: int = 6, **columns: list[object]) -> Path:
    """A CSV of three speakers in a folder with its recordings."""
    for number in range(rows):
        trees.wav(folder / "clips" / f"{number}.wav")
    table = {
        "utterance_id": [f"u{number}" for number in range(rows)],
        "path": [f"clips/{number}.wav" for number in range(rows)],
        "speaker": [f"s{number % 3}" for number in range(rows)],
        "emotion": [["Happy", "angry"][number // 3 % 2] for number in range(rows)],
    } | columns
    path = folder / "mine.csv"
    pd.DataFrame(table).to_csv(path, index=False)
    return path


def test_own_table(tmp_path: Path) -> None:
    prepared = prepare_table(own_table(tmp_path), None)
    table = prepared.manifest.table
    assert prepared.findings == ()
    assert prepared.card == ""
    assert prepared.manifest.corpus == "mine"
    assert set(table["emotion"]) == {"happiness", "anger"}
    assert set(table["emotion_raw"]) == {"Happy", "angry"}
    assert table["duration_s"].iloc[0] == soundfile.info(tmp_path / "clips" / "0.wav").duration


def test_own_table_as_parquet_with_another_root(tmp_path: Path) -> None:
    table = pd.read_csv(own_table(tmp_path / "audio"))
    table.to_parquet(tmp_path / "set.parquet")
    prepared = prepare_table(tmp_path / "set.parquet", tmp_path / "audio")
    assert prepared.findings == ()
    assert prepared.manifest.root == tmp_path / "audio"


def test_own_table_may_hold_absolute_paths(tmp_path: Path) -> None:
    path = own_table(tmp_path / "audio")
    table = pd.read_csv(path)
    table["path"] = [str(tmp_path / "audio" / name) for name in table["path"]]
    table.to_csv(tmp_path / "absolute.csv", index=False)
    assert prepare_table(tmp_path / "absolute.csv", None).findings == ()


def test_own_table_with_missing_recordings(tmp_path: Path) -> None:
    path = own_table(tmp_path)
    (tmp_path / "clips" / "4.wav").unlink()
    prepared = prepare_table(path, None)
    errors = said(prepared.findings, "error")
    assert f"1 of 6 recordings that are listed do not exist. Paths are relative to {tmp_path}" in errors
    assert "--data-root" in errors
    assert "clips/4.wav" in errors
    assert len(prepared.manifest) == 6


def test_own_table_with_a_root_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataRootError, match=r"There is no folder .*nowhere, which the paths in .* `--data-root`"):
        prepare_table(own_table(tmp_path), tmp_path / "nowhere")


def test_own_table_without_emotions(tmp_path: Path) -> None:
    path = own_table(tmp_path, emotion=[""] * 6)
    assert "mine.csv has no emotion: embeddings can be extracted" in said(prepare_table(path).findings, "warning")
    path = own_table(tmp_path, emotion=[""] * 6, arousal=[1.0] * 6)
    assert "Dimensions are there: arousal" in said(prepare_table(path).findings, "warning")


def test_own_table_with_few_speakers(tmp_path: Path) -> None:
    path = own_table(tmp_path, speaker=["a", "b"] * 3)
    warnings = said(prepare_table(path).findings, "warning")
    assert "2 speaker(s): a speaker-independent protocol needs three" in warnings
    assert "--protocol random-5fold" in warnings


def test_own_table_with_files_for_speakers(tmp_path: Path) -> None:
    path = own_table(tmp_path, speaker=[f"file{number}" for number in range(6)])
    assert "Every one of 6 utterances has a speaker of its own" in said(prepare_table(path).findings, "warning")


def test_own_table_whose_speakers_have_one_emotion_each(tmp_path: Path) -> None:
    """As in URDU: a split by speaker is degenerate."""
    path = own_table(
        tmp_path,
        rows=12,
        speaker=list("aaabbbcccddd"),
        emotion=["sad"] * 3 + ["happy"] * 3 + ["angry"] * 3 + ["sad", "sad", "happy"],
    )
    warnings = said(prepare_table(path).findings, "warning")
    assert "3 of 4 speakers have one emotion only: who speaks gives the label away" in warnings


def test_own_table_unlabelled_rows_and_own_labels(tmp_path: Path) -> None:
    path = own_table(tmp_path, emotion=["happy", "Angray", "", "happy", "Angray", "happy"])
    notes = said(prepare_table(path).findings, "note")
    assert "1 of 6 utterances have no emotion" in notes
    assert "classes of their own: angray. Check their spelling" in notes


def test_own_durations_are_kept_and_doubted(tmp_path: Path) -> None:
    path = own_table(tmp_path, duration_s=["9.5", "", "", "", "", ""])
    prepared = prepare_table(path)
    assert prepared.manifest.table["duration_s"].iloc[0] == 9.5
    assert prepared.manifest.table["duration_s"].notna().all()
    warnings = said(prepared.findings, "warning")
    assert "duration_s of 1 row(s) differs from the recording" in warnings
    assert "u0" in warnings


def test_own_table_named_like_an_official_corpus(tmp_path: Path) -> None:
    path = own_table(tmp_path).rename(tmp_path / "emodb.csv")
    assert "emodb.csv is named like the official corpus 'emodb'" in said(prepare_table(path).findings, "warning")


def test_own_table_with_pointers(tmp_path: Path) -> None:
    path = own_table(tmp_path)
    (tmp_path / "clips" / "0.wav").write_bytes(trees.LFS_POINTER)
    assert "1 of 6 recordings are Git LFS pointers" in said(prepare_table(path).findings, "error")


def test_own_table_that_breaks_the_contract(tmp_path: Path) -> None:
    path = trees.text(tmp_path / "t.csv", "utterance_id,file\na,b\n")
    with pytest.raises(ManifestError, match="lacks the columns path, speaker"):
        prepare_table(path)


# --- audit


def test_silence_is_the_decoders_silence() -> None:
    from pipelines.audio.decode import SILENCE_PEAK

    assert recordings.SILENCE_PEAK == SILENCE_PEAK


def test_audit_finds_what_headers_hide(tmp_path: Path) -> None:
    root = trees.cremad(tmp_path)
    folder = root / "AudioWAV"
    soundfile.write(folder / "1076_MTI_SAD_XX.wav", np.zeros(1000), 16000)
    spoilt = np.linspace(-0.5, 0.5, 1000, dtype=np.float32)
    spoilt[10] = np.nan
    soundfile.write(folder / "1002_TIE_NEU_XX.wav", spoilt, 16000, subtype="FLOAT")
    whole = (folder / "1001_DFA_ANG_XX.wav").read_bytes()
    (folder / "1001_DFA_ANG_XX.wav").write_bytes(whole[:-200])  # the header says 200 bytes more
    samples, _ = soundfile.read(folder / "1040_ITH_SAD_X.wav", dtype="int16")
    soundfile.write(folder / "1001_IEO_HAP_LO.wav", np.stack([samples, samples], axis=1), 16000)  # same sound, stereo
    quick = said(prepare("cremad", root).findings)
    assert "cannot be read" not in quick
    result = check("cremad", root)
    warnings = said(result.findings, "warning")
    assert "1 of 5 recordings are silent" in warnings
    assert "AudioWAV/1076_MTI_SAD_XX.wav" in warnings
    assert "1 of 5 recordings hold samples that are not finite" in warnings
    assert "1 of 5 recordings end before their header says" in warnings
    assert "AudioWAV/1001_DFA_ANG_XX.wav" in warnings
    assert "2 recordings in 1 group(s) are identical in sound" in warnings
    assert "differ in speaker or emotion" in warnings
    assert result.summary["channels"] == {1: 4, 2: 1}
    assert result.summary["identical_channels"] == 1
    assert result.summary["formats"] == {"WAV FLOAT": 1, "WAV PCM_16": 4}


def test_audit_summary_adds_up(tmp_path: Path) -> None:
    prepared = prepare("ravdess", trees.ravdess(tmp_path))
    steps: list[tuple[int, int]] = []
    result = audit(prepared, progress=lambda done, total: steps.append((done, total)))
    summary = result.summary
    durations = prepared.manifest.table["duration_s"]
    assert steps[-1] == (11, 11)
    assert summary["utterances"] == 11
    assert summary["speakers"] == 3
    assert summary["duration_s"]["total"] == pytest.approx(durations.sum())
    assert summary["duration_s"]["min"] == durations.min()
    assert summary["duration_s"]["max"] == durations.max()
    assert summary["rates_hz"] == {48000: 11}
    assert summary["emotions_by_speaker"]["07"] == {"anger": 2, "neutral": 1, "surprise": 1}
    assert sum(summary["emotions"].values()) == 11
    # The byte-identical pair is said once, as the stronger statement.
    assert said(result.findings).count("group(s) are") == 1
    assert "identical in sound" in said(result.findings, "note")
    json.dumps(summary)  # the command line writes it out


def test_audit_of_an_own_table(tmp_path: Path) -> None:
    prepared = prepare_table(own_table(tmp_path))
    soundfile.write(tmp_path / "clips" / "0.wav", np.zeros(500), 8000)
    assert "1 of 6 recordings are silent" in said(audit(prepared).findings, "warning")


def test_audit_survives_recordings_that_cannot_be_read(tmp_path: Path) -> None:
    root = trees.emodb(tmp_path)
    for path in (root / "wav").iterdir():
        path.write_bytes(b"")
    result = check("emodb", root)
    assert "7 of 7 recordings are empty" in said(result.findings, "error")
    assert math.isnan(result.summary["duration_s"]["max"])
    assert result.summary["duration_s"]["total"] == 0


def test_a_header_of_unknown_length_is_not_called_short(tmp_path: Path) -> None:
    """ffmpeg writing to a pipe cannot go back to fill in the length."""
    path = trees.wav(tmp_path / "a.wav")
    content = bytearray(path.read_bytes())
    assert content[36:40] == b"data"
    content[40:44] = struct.pack("<I", 0xFFFFFFFF)
    path.write_bytes(content)
    sound = recordings.listen(path)
    assert sound is not None
    assert sound.fault == ""


def test_long_recordings_are_heard_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = trees.wav(tmp_path / "a.wav", frames=1000, channels=2)
    whole = recordings.listen(path)
    monkeypatch.setattr(recordings, "_BLOCK", 64)
    assert recordings.listen(path) == whole
    assert whole is not None
    assert whole.duration_s == 1000 / 16000
    assert not whole.identical_channels


# --- the cache's memory


def test_remember_and_recall(tmp_path: Path) -> None:
    prepared = prepare("iemocap", trees.iemocap(tmp_path / "corpus"))
    cache = tmp_path / "cache"
    remember(prepared, cache)
    again = recall(cache, "iemocap")
    assert again.digest == prepared.manifest.digest
    assert again.root == tmp_path / "corpus"
    pd.testing.assert_frame_equal(again.table, prepared.manifest.table)
    record = json.loads((cache / "iemocap" / "corpus.json").read_text())
    assert record["card"] == "iemocap"
    assert record["root"] == str(tmp_path / "corpus")
    assert record["digest"] == again.digest
    assert cached_corpora(cache) == ["iemocap"]
    assert sorted(path.name for path in (cache / "iemocap").iterdir()) == ["corpus.json", "manifest.csv"]


def test_a_relative_root_is_remembered_as_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trees.emodb(tmp_path / "corpus")
    monkeypatch.chdir(tmp_path)
    remember(prepare("emodb", Path("corpus")), Path("cache"))
    monkeypatch.chdir("/")
    assert recall(tmp_path / "cache", "emodb").root == tmp_path / "corpus"


def test_awkward_values_survive_the_cache(tmp_path: Path) -> None:
    rows = [
        {
            "utterance_id": f"u {number}",
            "path": f"a b/ü{number}.wav",
            "speaker": speaker,
            "transcript": words,
            "duration_s": seconds,
            "zzz": "007",
        }
        for number, (speaker, words, seconds) in enumerate(
            [
                ("NA", 'he said "no", twice', 0.1 + 0.2),
                ("nan", "line\nbreak", 1 / 3),
                ("null", "ę ’ 感", math.nan),
                ("1.0", "", 2.0),
            ]
        )
    ]
    manifest = manifest_from_rows("odd", rows)
    remember(manifest, tmp_path)
    again = recall(tmp_path, "odd")
    assert again.digest == manifest.digest
    assert again.root is None
    assert list(again.table["speaker"]) == ["NA", "nan", "null", "1.0"]


def test_recall_of_what_was_never_prepared(tmp_path: Path) -> None:
    with pytest.raises(
        DataRootError,
        match=r"'emodb' is not prepared in .*prepared there: none\)\. .*`hyfuse corpora prepare emodb --root DIR`",
    ):
        recall(tmp_path / "cache", "emodb")
    remember(prepare("savee", trees.savee(tmp_path / "s")), tmp_path / "cache")
    with pytest.raises(DataRootError, match=r"prepared there: savee"):
        recall(tmp_path / "cache", "emodb")
    with pytest.raises(UnknownNameError, match=r"Unknown corpus 'savvy'\. Did you mean 'savee'"):
        recall(tmp_path / "cache", "savvy")


def test_an_edited_manifest_is_noticed(tmp_path: Path) -> None:
    remember(prepare("emodb", trees.emodb(tmp_path / "c")), tmp_path)
    path = tmp_path / "emodb" / "manifest.csv"
    path.write_text(path.read_text().replace("happiness", "sadness"))
    with pytest.raises(
        ManifestError, match=r"the file was edited, or writing it was interrupted\. Prepare the corpus again"
    ):
        recall(tmp_path, "emodb")


@pytest.mark.parametrize("content", ["", "[1]", '{"schema": 99}'])
def test_a_damaged_record_is_noticed(content: str, tmp_path: Path) -> None:
    remember(prepare("emodb", trees.emodb(tmp_path / "c")), tmp_path)
    (tmp_path / "emodb" / "corpus.json").write_text(content)
    with pytest.raises(ManifestError, match=r"corpus\.json .*Prepare the corpus again"):
        recall(tmp_path, "emodb")


def test_a_lost_manifest_is_noticed(tmp_path: Path) -> None:
    remember(prepare("emodb", trees.emodb(tmp_path / "c")), tmp_path)
    (tmp_path / "emodb" / "manifest.csv").unlink()
    with pytest.raises(ManifestError, match=r"manifest\.csv is missing"):
        recall(tmp_path, "emodb")


def test_another_manifest_is_refused_while_stores_of_the_first_exist(tmp_path: Path) -> None:
    root, cache = trees.emodb(tmp_path / "c"), tmp_path / "cache"
    first = prepare("emodb", root)
    remember(first, cache)
    (cache / "emodb" / "byols" / "clean.zarr").mkdir(parents=True)
    remember(first, cache)  # the same one is no problem
    (root / "wav" / "03a01Fa.wav").unlink()
    second = prepare("emodb", root)
    with pytest.raises(ProvenanceError) as caught:
        remember(second, cache)
    message = str(caught.value)
    assert first.manifest.digest[:12] in message
    assert second.manifest.digest[:12] in message
    assert "7 → 6 utterances, for instance gone 03a01Fa" in message
    assert "`hyfuse cache remove emodb`" in message
    assert recall(cache, "emodb").digest == first.manifest.digest  # nothing was touched
    remember(second, cache, replace=True)
    assert recall(cache, "emodb").digest == second.manifest.digest


def test_another_manifest_is_fine_without_stores(tmp_path: Path) -> None:
    root = trees.emodb(tmp_path / "c")
    remember(prepare("emodb", root), tmp_path)
    (root / "wav" / "03a01Fa.wav").unlink()
    second = prepare("emodb", root)
    remember(second, tmp_path)
    assert recall(tmp_path, "emodb").digest == second.manifest.digest


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"emotion": "fear"}, "emotion in 1 rows"),
        ({"duration_s": 3.0, "sex": "male"}, "sex in 1 rows, duration_s in 1 rows"),
        ({"further": "x"}, "column further added"),
        ({"utterance_id": "w"}, "2 → 2 utterances, for instance gone v and new w"),
    ],
)
def test_what_differs_is_named(change: dict[str, object], words: str, tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {
            "utterance_id": name,
            "path": f"{name}.wav",
            "speaker": "s",
            "emotion": "anger",
            "emotion_raw": "A",
            "duration_s": 1.0,
        }
        for name in "uv"
    ]
    remember(manifest_from_rows("mine", rows), tmp_path)
    (tmp_path / "mine" / "xvector" / "clean.zarr").mkdir(parents=True)
    rows[1] |= change
    with pytest.raises(ProvenanceError, match=words):
        remember(manifest_from_rows("mine", rows), tmp_path)


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = prepare("emodb", trees.emodb(tmp_path / "c"))
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"cannot be written: .*--cache-dir"):
        remember(prepared, tmp_path / "file")

    rename = os.replace

    def full(source: Path, target: Path) -> None:
        if target.name == "corpus.json":
            raise OSError(28, "No space left on device")
        rename(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(StorageError, match=r"corpus\.json cannot be written: No space left on device"):
        remember(prepared, tmp_path / "cache")
    assert [path.name for path in (tmp_path / "cache" / "emodb").iterdir()] == [
        "manifest.csv"
    ]  # no temporary file stays
    assert cached_corpora(tmp_path / "cache") == []


def test_prepared_is_usable_unless_there_is_an_error(tmp_path: Path) -> None:
    manifest = manifest_from_rows("m", [{"utterance_id": "a", "path": "a", "speaker": "s"}])
    assert Prepared(manifest, (Finding("warning", "w"), Finding("note", "n"))).usable
    assert not Prepared(manifest, (Finding("error", "e"),)).usable


def test_cached_corpora_of_a_cache_that_is_not_there(tmp_path: Path) -> None:
    assert cached_corpora(tmp_path / "none") == []
