"""The real Emo-DB, read, audited and remembered."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

import pytest

from pipelines.corpora.cards import read_card
from pipelines.corpora.prepare import Prepared, check, prepare, recall, remember
from pipelines.errors import DataRootError


@pytest.fixture(scope="module")
def emodb(real_data: Path) -> Prepared:
    return prepare("emodb", real_data / "corpora" / "emodb")


def test_counts_are_those_of_the_card_and_of_the_facts(emodb: Prepared) -> None:
    table = emodb.manifest.table
    assert len(table) == 535
    assert sorted(set(table["speaker"])) == ["03", "08", "09", "10", "11", "12", "13", "14", "15", "16"]
    assert Counter(table["emotion"]) == {
        "anger": 127, "boredom": 81, "disgust": 46, "fear": 69, "happiness": 71, "sadness": 62, "neutral": 79,
    }  # fmt: skip
    assert Counter(table["emotion_raw"])["W"] == 127
    assert set(table["language"]) == {"de"}
    assert all(table["transcript"])


def test_sexes(emodb: Prepared) -> None:
    sex = dict(zip(emodb.manifest.table["speaker"], emodb.manifest.table["sex"], strict=True))
    assert {speaker for speaker, word in sex.items() if word == "male"} == {"03", "10", "11", "12", "15"}
    assert Counter(sex.values()) == {"female": 5, "male": 5}


def test_listeners_are_read_for_every_recording(emodb: Prepared) -> None:
    table = emodb.manifest.table.set_index("utterance_id")
    # First lines of erkennung.txt that are among the 535: 03a01Fa 90 % and 75 %, 03a01Nc 100 % and 95 %.
    assert (table.loc["03a01Fa", "recognised_percent"], table.loc["03a01Fa", "natural_percent"]) == ("90", "75")
    assert (table.loc["03a01Nc", "recognised_percent"], table.loc["03a01Nc", "natural_percent"]) == ("100", "95")
    share = table["recognised_percent"].astype(float)
    assert share.min() == 80  # release 1.x kept what at least 80 % recognised; release 2.0 would have lower ones
    assert share.max() == 100


def test_nothing_is_odd_but_the_known_missing_class(emodb: Prepared) -> None:
    assert emodb.usable
    assert [(finding.level, finding.examples) for finding in emodb.findings] == [("note", ("08: no disgust",))]


def test_preparing_takes_less_than_a_second(real_data: Path) -> None:
    start = time.process_time()
    prepare("emodb", real_data / "corpora" / "emodb")
    assert time.process_time() - start < 1.0


def test_audit_decodes_everything(emodb: Prepared, real_data: Path) -> None:
    audit = check("emodb", real_data / "corpora" / "emodb")
    assert audit.findings == emodb.findings
    summary = audit.summary
    assert summary["rates_hz"] == {16000: 535}
    assert summary["channels"] == {1: 535}
    assert summary["duration_s"]["total"] == pytest.approx(emodb.manifest.table["duration_s"].sum())
    assert summary["emotions"] == dict(read_card("emodb").expected_emotions)
    assert "disgust" not in summary["emotions_by_speaker"]["08"]


def test_remembered_and_recalled(emodb: Prepared, tmp_path: Path) -> None:
    remember(emodb, tmp_path)
    again = recall(tmp_path, "emodb")
    assert again.digest == emodb.manifest.digest
    assert again.audio_paths()[0].is_file()


def test_a_folder_too_high_or_too_low_is_named(real_data: Path) -> None:
    root = real_data / "corpora" / "emodb"
    with pytest.raises(DataRootError, match=rf"one level down: use `--root {root}`"):
        prepare("emodb", root.parent)
    with pytest.raises(DataRootError, match=rf"part of the corpus: use `--root {root}`"):
        prepare("emodb", root / "wav")
    with pytest.raises(DataRootError, match="looks like emodb; did you mean `--corpus emodb`"):
        prepare("ravdess", root)
