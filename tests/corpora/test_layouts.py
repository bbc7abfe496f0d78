"""Every official layout on a small imitation of its folder, with the traps that the real corpora hold."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from pipelines.corpora.cards import read_card
from pipelines.corpora.layouts import LAYOUTS, Listing, layout_module
from pipelines.corpora.layouts import _files as files
from pipelines.errors import DataRootError, ManifestError
from tests.corpora import official_trees as trees

NAMES = sorted(trees.TREES)


def listing(name: str, root: Path) -> Listing:
    return layout_module(name).read(root)


def rows_by_id(found: Listing) -> dict[str, dict[str, object]]:
    return {str(row["utterance_id"]): dict(row) for row in found.rows}


def messages(found: Listing, level: str = "") -> str:
    return "\n".join(
        f"{finding.message} {finding.examples}" for finding in found.findings if level in ("", finding.level)
    )


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One imitation of every corpus, read only."""
    return {name: tree(tmp_path_factory.mktemp(name)) for name, tree in trees.TREES.items()}


# --- all layouts


def test_every_layout_has_an_imitation_or_is_generated() -> None:
    assert {name.replace("_", "-") for name in LAYOUTS} == {*NAMES, "demo"}


def test_layouts_are_importable_without_pandas_and_numpy() -> None:
    code = (
        "import sys; from pipelines.corpora.layouts import LAYOUTS, layout_module; [layout_module(n) for n in LAYOUTS];"
        "print(sorted({'pandas', 'numpy', 'soundfile'} & set(sys.modules)))"
    )
    root = Path(__file__).resolve().parents[2]
    result = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize("name", NAMES)
def test_a_layout_recognises_its_own_folder_and_no_other(name: str, built: dict[str, Path]) -> None:
    layout = layout_module(name)
    assert layout.SHAPE
    assert [other for other, root in built.items() if layout.recognise(root)] == [name]


@pytest.mark.parametrize("name", [*NAMES, "demo"])
def test_nothing_is_recognised_in_an_empty_folder(name: str, tmp_path: Path) -> None:
    assert not layout_module(name).recognise(tmp_path)


@pytest.mark.parametrize("name", NAMES)
def test_listings_keep_the_contract(name: str, built: dict[str, Path]) -> None:
    root = built[name]
    found = listing(name, root)
    ids = [row["utterance_id"] for row in found.rows]
    assert ids == sorted(ids)
    assert len(set(ids)) == len(ids)
    known = read_card(name).label_map
    for row in found.rows:
        assert row["speaker"]
        assert row["emotion_raw"] in known, row
        assert "emotion" not in row  # mapping is the card's business
        assert not str(row["path"]).startswith("/")
        assert (root / str(row["path"])).is_file(), row["path"]
    assert not messages(found, "error")


@pytest.mark.parametrize("name", NAMES)
def test_paths_may_hold_spaces_and_other_alphabets(name: str, tmp_path: Path) -> None:
    root = trees.TREES[name](tmp_path / "Übung 1 – données" / "感情")
    assert layout_module(name).recognise(root)
    found = listing(name, root)
    assert len(found.rows) >= 3
    assert all((root / str(row["path"])).is_file() for row in found.rows)


@pytest.mark.parametrize("name", NAMES)
def test_upper_case_suffixes_are_recordings_too(name: str, tmp_path: Path) -> None:
    root = trees.TREES[name](tmp_path)
    expected = len(listing(name, root).rows)
    for path in list(root.rglob("*.wav")):
        path.rename(path.with_suffix(".WAV"))
    assert layout_module(name).recognise(root)
    found = listing(name, root)
    assert len(found.rows) == expected
    assert all(str(row["path"]).endswith(".WAV") for row in found.rows)


@pytest.mark.parametrize("name", ["cremad", "emodb", "emotale", "nemo", "ravdess", "savee", "tess"])
def test_a_file_outside_the_naming_scheme_is_reported_not_dropped_silently(name: str, tmp_path: Path) -> None:
    root = trees.TREES[name](tmp_path)
    expected = len(listing(name, root).rows)
    folder = next(root.rglob("*.wav")).parent
    trees.wav(folder / "my recording.wav")
    (folder / "._hidden.wav").write_bytes(b"\x00\x05\x16\x07")  # macOS leftovers are nobody's recordings
    found = listing(name, root)
    assert len(found.rows) == expected
    assert "1 recording(s) are left out, because their names do not follow the scheme" in messages(found, "warning")
    assert "my recording.wav" in messages(found)
    assert "_hidden" not in messages(found)


def test_folders_are_found_in_any_case(tmp_path: Path) -> None:
    root = trees.cremad(tmp_path)
    (root / "AudioWAV").rename(root / "audiowav")
    assert layout_module("cremad").recognise(root)
    assert listing("cremad", root).rows[0]["path"] == "audiowav/1001_DFA_ANG_XX.wav"


# --- tables


def test_tables_in_windows_encoding_are_read(tmp_path: Path) -> None:
    path = trees.text(tmp_path / "t.csv", "Name,Text\nA,he’s\n", encoding="cp1252")
    assert files.read_table(path, ("name",)) == [{"name": "A", "Text": "he’s"}]


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path: Path) -> None:
    path = trees.text(tmp_path / "t.csv", "Name\n A \n\n", encoding="utf-8-sig")
    assert files.read_table(path, ("Name",)) == [{"Name": "A"}]


def test_a_table_without_its_columns_says_which(tmp_path: Path) -> None:
    path = trees.text(tmp_path / "t.csv", "Name,Text\n")
    with pytest.raises(ManifestError, match=r"t\.csv lacks the column\(s\) SpkrID; found: Name, Text"):
        files.read_table(path, ("Name", "SpkrID"))


def test_an_empty_table_says_what_it_lacks(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"lacks the column\(s\) Name; found: none"):
        files.read_table(trees.text(tmp_path / "t.csv", ""), ("Name",))


def test_a_table_that_is_an_lfs_pointer_says_so(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(trees.LFS_POINTER)
    with pytest.raises(DataRootError, match=r"Git LFS pointer .* `git lfs pull`"):
        files.read_table(tmp_path / "t.csv", ("Name",))


# --- Emo-DB


def test_emodb_names_sexes_and_listeners(built: dict[str, Path]) -> None:
    rows = rows_by_id(listing("emodb", built["emodb"]))
    row = rows["03a01Fa"]
    assert (row["speaker"], row["sex"], row["emotion_raw"], row["take"], row["text"]) == ("03", "male", "F", "a", "a01")
    assert row["path"] == "wav/03a01Fa.wav"
    assert (row["recognised_percent"], row["natural_percent"]) == ("94.5", "61")  # decimal commas, padded by NBSP
    assert {str(r["speaker"]) for r in rows.values() if r["sex"] == "female"} == {"08", "09", "16"}
    assert not listing("emodb", built["emodb"]).findings


def test_emodb_without_listeners(tmp_path: Path) -> None:
    root = trees.emodb(tmp_path)
    (root / "erkennung.txt").unlink()
    found = listing("emodb", root)
    assert {row["recognised_percent"] for row in found.rows} == {""}
    assert "erkennung.txt is missing" in messages(found, "note")


def test_emodb_2_is_told_from_1_by_the_listeners(tmp_path: Path) -> None:
    root = trees.emodb(tmp_path)
    trees.wav(root / "wav" / "03a01Ab.wav")
    with (root / "erkennung.txt").open("ab") as handle:
        handle.write("8\xa0\t03a01Ab.wav\t65,00\xa0\t35,00\xa0\n".encode("latin-1"))
    said = messages(listing("emodb", root), "warning")
    assert "Emo-DB 2.0 (816 recordings)" in said
    assert "8 recordings, 1 of them recognised by fewer than 80 %" in said
    assert 'version="1.4.1"' in said
    assert "03a01Ab" in said


def test_emodb_2_is_told_from_1_by_its_size_where_listeners_are_missing(tmp_path: Path) -> None:
    for number in range(816):
        speaker, take, emotion = f"{number % 30:02d}", chr(ord("a") + number // 210), "WLEAFTN"[number // 30 % 7]
        path = tmp_path / "wav" / f"{speaker}a01{emotion}{take}.wav"
        path.parent.mkdir(exist_ok=True)
        path.touch()
    found = listing("emodb", tmp_path)
    assert len(found.rows) == 816
    assert "Emo-DB 2.0 (816 recordings)" in messages(found, "warning")


# --- CREMA-D


def test_cremad_actors_votes_and_sentences(built: dict[str, Path]) -> None:
    rows = rows_by_id(listing("cremad", built["cremad"]))
    row = rows["1001_DFA_ANG_XX"]
    assert (row["speaker"], row["sex"], row["age"], row["level"]) == ("1001", "male", "51", "XX")
    assert row["transcript"] == "Don't forget a jacket."
    assert row["voice_vote"] == "A:D"  # a tie stays a tie
    assert rows["1002_TIE_NEU_XX"]["sex"] == "female"
    assert rows["1002_TIE_NEU_XX"]["voice_vote"] == ""


def test_cremad_counts_what_was_heard_not_what_was_seen(built: dict[str, Path], tmp_path: Path) -> None:
    found = listing("cremad", built["cremad"])
    rows = rows_by_id(found)
    assert rows["1001_DFA_ANG_XX"]["emotion_votes"] == "ANG:5;DIS:5;NEU:1;SAD:1"
    assert rows["1001_IEO_HAP_LO"]["emotion_votes"] == "HAP:3;NEU:6"
    assert rows["1040_ITH_SAD_X"]["emotion_votes"] == "NEU:2;SAD:8"  # misnamed in the release, but not in the table
    assert rows["1002_TIE_NEU_XX"]["emotion_votes"] == ""
    table = trees.cremad(tmp_path) / "processedResults" / "tabulatedVotes.csv"
    table.write_text(table.read_text().replace('100002",0,', '100002",few,'))
    with pytest.raises(
        ManifestError, match=r"tabulatedVotes\.csv, 1001_IEO_HAP_LO: few, 0, 0, 3, 6, 0 are not all whole"
    ):
        listing("cremad", tmp_path)
    table.unlink()
    found = listing("cremad", tmp_path)
    assert all("emotion_votes" not in row for row in found.rows)
    assert "tabulatedVotes.csv is missing: how many listeners heard what (emotion_votes)" in messages(found, "note")


def test_cremad_misnamed_and_silent_recordings_are_known(built: dict[str, Path]) -> None:
    found = listing("cremad", built["cremad"])
    row = rows_by_id(found)["1040_ITH_SAD_X"]
    assert (row["level"], row["voice_vote"], row["emotion_raw"]) == ("XX", "S", "SAD")
    assert "1040_ITH_SAD_X is misnamed in the release" in messages(found, "note")
    assert "1076_MTI_SAD_XX is silent in the release" in messages(found, "note")


def test_cremad_without_tables_and_in_folders_by_actor(tmp_path: Path) -> None:
    trees.wav(tmp_path / "1001" / "1001_DFA_ANG_XX.wav")
    trees.wav(tmp_path / "1002" / "1002_DFA_SAD_XX.wav")
    assert layout_module("cremad").recognise(tmp_path)
    found = listing("cremad", tmp_path)
    assert [(row["speaker"], row["sex"]) for row in found.rows] == [("1001", ""), ("1002", "")]
    assert "VideoDemographics.csv is missing" in messages(found, "note")
    assert "summaryTable.csv is missing" in messages(found, "note")


# --- IEMOCAP


def test_iemocap_speaker_is_the_letter_of_the_last_field(built: dict[str, Path]) -> None:
    rows = rows_by_id(listing("iemocap", built["iemocap"]))
    assert (rows["Ses01F_impro01_F000"]["speaker"], rows["Ses01F_impro01_F000"]["sex"]) == ("Ses01F", "female")
    assert (rows["Ses01F_impro01_M003"]["speaker"], rows["Ses01F_impro01_M003"]["sex"]) == ("Ses01M", "male")
    assert rows["Ses04M_script01_1b_F012"]["speaker"] == "Ses04F"
    assert len({str(row["speaker"]) for row in rows.values()}) == 10


def test_iemocap_order_is_valence_activation_dominance(built: dict[str, Path]) -> None:
    row = rows_by_id(listing("iemocap", built["iemocap"]))["Ses03F_impro01_M003"]
    assert (row["valence"], row["arousal"], row["dominance"]) == ("4.0000", "3.5000", "2.0000")


def test_iemocap_session_dialogue_times_and_words(built: dict[str, Path]) -> None:
    found = listing("iemocap", built["iemocap"])
    rows = rows_by_id(found)
    assert len(rows) == 20
    row = rows["Ses05M_script01_1b_F012"]
    assert (row["session"], row["dialogue"], row["scenario"]) == ("5", "Ses05M_script01_1b", "scripted")
    assert row["transcript"] == "No, [LAUGHTER] really?"
    assert row["path"] == "Session5/sentences/wav/Ses05M_script01_1b/Ses05M_script01_1b_F012.wav"
    assert float(str(row["turn_end_s"])) - float(str(row["turn_start_s"])) == pytest.approx(1.9456)
    assert rows["Ses02F_impro01_F000"]["scenario"] == "improvised"
    assert not found.findings


def test_iemocap_evaluators_have_a_vote_each_and_actors_none(built: dict[str, Path]) -> None:
    row = rows_by_id(listing("iemocap", built["iemocap"]))["Ses01F_impro01_F000"]
    assert row["emotion_votes"] == "ang:0.5;fru:0.5;neu:2"
    assert (row["valence_ratings"], row["arousal_ratings"], row["dominance_ratings"]) == ("3;2", "2", "2;1")


def test_iemocap_without_evaluators_has_no_columns_of_them(tmp_path: Path) -> None:
    line = "[0.0 - 1.5]\tSes01F_impro01_F000\tneu\t[2.5, 2.5, 2.5]"
    trees.text(tmp_path / "Session1" / "dialog" / "EmoEvaluation" / "Ses01F_impro01.txt", line)
    (row,) = listing("iemocap", tmp_path).rows
    assert not [name for name in row if name.endswith(("_votes", "_ratings"))]


def test_iemocap_says_what_is_missing(tmp_path: Path) -> None:
    root = trees.iemocap(tmp_path)
    (root / "Session4").rename(root / "old")
    trees.wav(root / "Session1" / "sentences" / "wav" / "Ses01F_impro01" / "Ses01F_impro01_F099.wav")
    said = messages(listing("iemocap", root))
    assert "Session(s) 4 are missing" in said
    assert "1 recording(s) have no annotation" in said
    assert "Ses01F_impro01_F099.wav" in said


def test_iemocap_four_classes_are_5531_of_10039_turns(tmp_path: Path) -> None:
    """The counts of all turns, as facts/corpora.md has them, give the number that papers report."""
    counts = {
        "xxx": 2507, "fru": 1849, "neu": 1708, "ang": 1103, "sad": 1084, "exc": 1041, "hap": 595, "sur": 107, "fea": 40, "oth": 3,
        "dis": 2,
    }  # fmt: skip
    labels = [name for name, number in counts.items() for _ in range(number)]
    lines = [
        f"[{i}.0 - {i}.5]\tSes0{1 + i % 5}F_impro01_{'FM'[i % 2]}{i:05d}\t{label}\t[2.5, 2.5, 2.5]"
        for i, label in enumerate(labels)
    ]
    for number in range(1, 6):
        here = [line for line in lines if f"\tSes0{number}F" in line]
        trees.text(
            tmp_path / f"Session{number}" / "dialog" / "EmoEvaluation" / f"Ses0{number}F_impro01.txt", "\n".join(here)
        )
    found = listing("iemocap", tmp_path)
    card = read_card("iemocap")
    mapped = Counter(card.label_map[str(row["emotion_raw"])] for row in found.rows)
    assert len(found.rows) == card.expected_utterances == 10039
    assert sum(mapped[emotion] for emotion in card.classes) == 5531
    assert {emotion: mapped[emotion] for emotion in card.expected_emotions} == dict(card.expected_emotions)


# --- MSP-Podcast


@pytest.mark.parametrize("table", ["labels_consensus.csv", "labels_concensus.csv"])
def test_msp_podcast_both_spellings(table: str, tmp_path: Path) -> None:
    root = trees.msp_podcast(tmp_path, table=table)
    assert layout_module("msp-podcast").recognise(root)
    rows = rows_by_id(listing("msp-podcast", root))
    row = rows["MSP-PODCAST_0001_0008"]
    assert (row["arousal"], row["valence"], row["dominance"]) == ("2.2", "4.0", "2.6")  # EmoAct, EmoVal, EmoDom
    assert (row["speaker"], row["sex"], row["transcript"]) == ("127", "male", "So, what happened?")
    assert row["path"] == "Audios/MSP-PODCAST_0001_0008.wav"


def test_msp_podcast_workers_of_both_forms_of_the_table(tmp_path: Path) -> None:
    root = trees.msp_podcast(tmp_path)
    rows = rows_by_id(listing("msp-podcast", root))
    row = rows["MSP-PODCAST_0001_0008"]
    assert row["emotion_votes"] == "N:2;O:1"
    assert (row["arousal_ratings"], row["valence_ratings"], row["dominance_ratings"]) == ("2;3;1", "4;4;4", "3;2;3")
    assert "emotion_votes" not in rows["MSP-PODCAST_0003_0271"]
    lines = [
        "FileName,Workers,EmoClass_Major,EmoClass_Second,EmoDom,EmoVal,EmoAct",
        "MSP-PODCAST_0001_0008.wav,W1,Neutral,Neutral,3,4,2",
        "MSP-PODCAST_0001_0008.wav,W2,Other-curious,Concerned,2,4,3",
        "MSP-PODCAST_0001_0008.wav,W7,Neutral,,3,4,1",
    ]
    trees.text(root / "Labels" / "labels_detailed.csv", "\n".join([*lines, ""]))
    again = rows_by_id(listing("msp-podcast", root))["MSP-PODCAST_0001_0008"]
    assert again == row
    trees.text(root / "Labels" / "labels_detailed.csv", "\n".join([*lines, "MSP-PODCAST_0001_0008.wav,W8,Sad,,x,4,1"]))
    with pytest.raises(ManifestError, match=r"labels_detailed\.csv, line 5: 1, 4, x are not all numbers"):
        listing("msp-podcast", root)
    trees.text(root / "Labels" / "labels_detailed.csv", "FileName,Worker\n")
    with pytest.raises(ManifestError, match=r"has the columns filename, worker; expected FileName and EmoDetail, or"):
        listing("msp-podcast", root)
    (root / "Labels" / "labels_detailed.csv").unlink()
    found = listing("msp-podcast", root)
    assert "labels_detailed.csv is missing: only the consensus is known" in messages(found, "note")
    assert not [name for row in found.rows for name in row if name.endswith(("_votes", "_ratings"))]


def test_msp_podcast_unknown_speakers_stay_unknown(built: dict[str, Path]) -> None:
    found = listing("msp-podcast", built["msp-podcast"])
    rows = rows_by_id(found)
    assert rows["MSP-PODCAST_0002_0059"]["speaker"] == "Unknown"
    assert rows["MSP-PODCAST_0002_0059"]["sex"] == ""
    assert rows["MSP-PODCAST_0007_0001"]["sex"] == "female"
    assert "2 of 6 utterances are by unknown speakers" in messages(found, "warning")
    assert "--protocol official" in messages(found, "warning")


def test_msp_podcast_splits_and_recordings_without_labels(built: dict[str, Path]) -> None:
    found = listing("msp-podcast", built["msp-podcast"])
    assert Counter(row["official_split"] for row in found.rows) == {
        "train": 3,
        "development": 1,
        "test1": 1,
        "test2": 1,
    }
    assert "1 recording(s) have no row in the table and are left out: most likely Test3" in messages(found, "note")
    assert "MSP-PODCAST_5000_0001.wav" in messages(found)
    assert "readme.txt says release 1.10" in messages(found, "note")


def test_msp_podcast_validation_is_development(tmp_path: Path) -> None:
    found = listing("msp-podcast", trees.msp_podcast(tmp_path, development="Validation"))
    assert rows_by_id(found)["MSP-PODCAST_0003_0271"]["official_split"] == "development"
    assert "Validation, as releases up to 1.8 do" in messages(found, "note")


def test_msp_podcast_test3_rows_have_no_label(tmp_path: Path) -> None:
    root = trees.msp_podcast(tmp_path)
    with (root / "Labels" / "labels_consensus.csv").open("a") as handle:
        handle.write("MSP-PODCAST_5000_0001.wav,,,,,,,Test3\n")
    row = rows_by_id(listing("msp-podcast", root))["MSP-PODCAST_5000_0001"]
    assert (row["emotion_raw"], row["speaker"], row["official_split"]) == ("", "Unknown", "test3")


def test_msp_podcast_reports_splits_that_no_release_uses(tmp_path: Path) -> None:
    found = listing("msp-podcast", trees.msp_podcast(tmp_path, development="Holdout"))
    assert "Split_Set has values that no release uses: Holdout" in messages(found, "warning")
    assert rows_by_id(found)["MSP-PODCAST_0003_0271"]["official_split"] == ""


# --- the others


def test_ravdess_fields(built: dict[str, Path]) -> None:
    rows = rows_by_id(listing("ravdess", built["ravdess"]))
    assert {row["speaker"]: row["sex"] for row in rows.values()} == {"01": "male", "02": "female", "07": "male"}
    row = rows["03-01-06-02-02-02-01"]
    assert (row["emotion_raw"], row["intensity"], row["repetition"]) == ("06", "strong", "02")
    assert row["transcript"] == "Dogs are sitting by the door."


def test_ravdess_song_and_further_copies_are_left_out(tmp_path: Path) -> None:
    root = trees.ravdess(tmp_path)
    expected = len(listing("ravdess", root).rows)
    trees.wav(root / "Actor_01" / "03-02-01-01-01-01-01.wav")
    trees.ravdess(root / "audio_speech_actors_01-24")
    found = listing("ravdess", root)
    assert len(found.rows) == expected
    assert "1 recording(s) are song or video" in messages(found, "note")


def test_savee_by_speaker_and_flat(built: dict[str, Path], tmp_path: Path) -> None:
    by_speaker = listing("savee", built["savee"])
    for path in sorted((built["savee"] / "AudioData").rglob("*.wav")):
        flat = tmp_path / "ALL" / f"{path.parent.name}_{path.name}"
        flat.parent.mkdir(exist_ok=True)
        flat.write_bytes(path.read_bytes())
    assert layout_module("savee").recognise(tmp_path)
    flat_rows = listing("savee", tmp_path)
    drop = [{k: v for k, v in row.items() if k != "path"} for row in by_speaker.rows]
    assert drop == [{k: v for k, v in row.items() if k != "path"} for row in flat_rows.rows]
    assert rows_by_id(by_speaker)["JK_sa05"]["emotion_raw"] == "sa"
    assert rows_by_id(by_speaker)["JK_su06"]["emotion_raw"] == "su"
    assert rows_by_id(by_speaker)["JK_n30"]["emotion_raw"] == "n"


def test_savee_in_two_places_is_read_once(tmp_path: Path) -> None:
    root = trees.savee(tmp_path)
    trees.wav(root / "DC_a01.wav")
    found = listing("savee", root)
    assert rows_by_id(found)["DC_a01"]["path"] == "AudioData/DC/a01.wav"
    assert "1 recording(s) lie in two places" in messages(found, "note")


def test_nemo_values_lose_their_padding(built: dict[str, Path]) -> None:
    row = rows_by_id(listing("nemo", built["nemo"]))["EB0_surprised_64"]
    assert (row["speaker"], row["sex"], row["age"], row["emotion_raw"]) == ("EB0", "female", "27", "surprised")
    assert row["transcript"] == "Ucho wykrywa dźwięki."


def test_nemo_without_table_and_with_further_recordings(tmp_path: Path) -> None:
    root = trees.nemo(tmp_path)
    trees.wav(root / "samples" / "KD0_fear_3.wav")
    found = listing("nemo", root)
    assert rows_by_id(found)["KD0_fear_3"]["emotion_raw"] == "fear"
    assert "1 recording(s) are not in data.tsv" in messages(found, "warning")
    assert "KD0_fear_3" in messages(found, "warning")
    (root / "data.tsv").unlink()
    found = listing("nemo", root)
    assert {row["speaker"] for row in found.rows} == {"EB0", "WR0", "KD0"}
    assert "data.tsv is missing" in messages(found, "warning")


def test_emotale_raters_languages_and_children(built: dict[str, Path]) -> None:
    found = listing("emotale", built["emotale"])
    rows = rows_by_id(found)
    row = rows["DK_001_A_1"]
    assert row["arousal"] == pytest.approx((4 + 4 + 5) / 3)
    assert row["valence"] == pytest.approx((1.5 + 2.5 + 2) / 3)
    assert row["dominance"] == pytest.approx((4.5 + 5 + 4) / 3)
    assert row["rater_emotions"] == "A:A:B"
    assert (row["emotion_votes"], row["arousal_ratings"], row["valence_ratings"]) == ("A:2;B:1", "4;4;5", "1.5;2.5;2")
    assert (row["language"], rows["EN_001_H_3"]["language"]) == ("da", "en")
    assert row["speaker"] == rows["EN_001_H_3"]["speaker"] == "001"  # one person in both languages
    assert {r["speaker"] for r in rows.values() if r["age_group"] == "child"} == {"008", "014"}
    assert "Speaker(s) 008, 014 are children" in messages(found, "note")
    assert row["transcript"] == "Dugen ligger på køleskabet."


def test_emotale_raters_who_did_not_answer_are_left_out(tmp_path: Path) -> None:
    root = trees.emotale(tmp_path)
    table = root / "annotations.csv"
    table.write_text(table.read_text().replace("DK_001_A_1.wav,4.0,1.5", "DK_001_A_1.wav,,"))
    row = rows_by_id(listing("emotale", root))["DK_001_A_1"]
    assert (row["arousal"], row["valence"]) == (4.5, 2.25)
    assert (row["arousal_ratings"], row["valence_ratings"], row["dominance_ratings"]) == ("4;5", "2.5;2", "4.5;5;4")
    table.write_text(table.read_text().replace("DK_001_B_2.wav,4.0", "DK_001_B_2.wav,high"))
    with pytest.raises(ManifestError, match=r"annotations\.csv, DK_001_B_2\.wav: high, 4\.0, 5\.0 are not all numbers"):
        listing("emotale", root)


def test_emotale_sexes_where_the_speaker_table_is_there(tmp_path: Path) -> None:
    root = trees.emotale(tmp_path)
    trees.text(root / "speaker_info.csv", "speaker,gender,age\n001,F,24\n8,male,10\n")
    rows = rows_by_id(listing("emotale", root))
    assert (rows["DK_001_A_1"]["sex"], rows["DK_008_N_4"]["sex"], rows["EN_014_S_5"]["sex"]) == ("female", "male", "")


def test_tess_labels_words_and_the_misnamed_file(built: dict[str, Path]) -> None:
    found = listing("tess", built["tess"])
    rows = rows_by_id(found)
    assert {row["speaker"] for row in rows.values()} == {"OAF", "YAF"}
    assert rows["OAF_back_ps"]["emotion_raw"] == "ps"
    assert rows["YAF_merge_sad"]["transcript"] == "Say the word merge."
    assert rows["OA_bite_neutral"]["speaker"] == "OAF"
    assert "OA_bite_neutral is misnamed in the release" in messages(found, "note")


def test_tess_second_copy_in_a_further_folder_is_not_read(tmp_path: Path) -> None:
    root = trees.tess(tmp_path)
    trees.tess(root / "TESS Toronto emotional speech set data")
    assert len(listing("tess", root).rows) == 6


def test_meld_ids_splits_and_speakers(built: dict[str, Path]) -> None:
    found = listing("meld", built["meld"])
    rows = rows_by_id(found)
    assert len(rows) == 9
    row = rows["dev_dia0_utt0"]
    assert (row["speaker"], row["official_split"], row["path"]) == (
        "Phoebe",
        "development",
        "dev_splits_complete/dia0_utt0.wav",
    )
    assert row["transcript"] == "Oh my God, he’s lost it."
    assert not found.findings


def test_meld_tables_and_clips_may_lie_deeper(tmp_path: Path) -> None:
    root = trees.meld(tmp_path)
    for split, folder in (("train", "train_splits"), ("dev", "dev_splits_complete")):
        (root / split).mkdir()
        (root / folder).rename(root / split / folder)
        (root / f"{split}_sent_emo.csv").rename(root / split / f"{split}_sent_emo.csv")
    rows = rows_by_id(listing("meld", root))
    assert rows["train_dia1_utt0"]["path"] == "train/train_splits/dia1_utt0.wav"
    assert rows["test_dia1_utt0"]["path"] == "output_repeated_splits_test/dia1_utt0.wav"


def test_meld_videos_need_their_sound(tmp_path: Path) -> None:
    root = trees.meld(tmp_path)
    (root / "train_splits" / "dia0_utt1.wav").unlink()
    found = listing("meld", root)
    assert "1 utterance(s) are there as video only" in messages(found, "warning")
    for path in root.rglob("*.wav"):
        path.unlink()
    found = listing("meld", root)
    assert "9 utterance(s) are there as video only" in messages(found, "error")
    assert "ffmpeg -i" in messages(found, "error")
    (root / "test_sent_emo.csv").unlink()
    assert "test_sent_emo.csv is missing: no test part" in messages(listing("meld", root), "warning")


def test_demo_reads_what_the_generator_wrote(tmp_path: Path) -> None:
    from pipelines.corpora import demo

    root = tmp_path
    columns = {name: "" for name in demo.DEMO_COLUMNS} | {"speaker": "s01", "emotion": "anger", "language": "en"}
    numbers = {name: "1.5" for name in ("arousal", "valence", "dominance", "duration_s")}
    lines = [",".join(demo.DEMO_COLUMNS)]
    for name in ("s02_anger_t1_k1", "s01_anger_t1_k1"):
        row = columns | numbers | {"utterance_id": name, "path": f"wav/{name}.wav"}
        lines.append(",".join(row[column] for column in demo.DEMO_COLUMNS))
    trees.text(root / "demo.csv", "\n".join(lines) + "\n")
    assert not layout_module("demo").recognise(root)  # no marker: the generation was interrupted
    trees.text(root / "VERSION", f"{demo.DEMO_VERSION}\n")
    assert layout_module("demo").recognise(root)
    rows = listing("demo", root).rows
    assert [row["utterance_id"] for row in rows] == ["s01_anger_t1_k1", "s02_anger_t1_k1"]
    assert rows[0]["emotion_raw"] == "anger"
    assert "emotion" not in rows[0]
