"""Folds of dimensions: the speakers are where emotion has them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.corpora.cards import Card, read_card
from pipelines.corpora.manifest import Manifest, manifest_from_rows
from pipelines.corpora.protocols import Fold, Split, make_split
from pipelines.errors import ProtocolError
from pipelines.training.data import Dataset
from pipelines.training.folds import _digest, make_folds, stratified_by, value_strata

EMOTIONS = ("anger", "fear", "sadness")


def corpus(speakers: int = 8, takes: int = 5, **changes: Any) -> Manifest:
    """Speakers have the emotions unevenly, so that it matters what folds are stratified by."""
    rng = np.random.default_rng(0)
    rows = [
        {
            "utterance_id": f"{speaker}_{take}_{emotion}", "path": "x.wav", "speaker": f"s{speaker}", "session": f"x{speaker // 2}",
            "emotion": emotion, "arousal": round(float(rng.uniform(1, 5)), 2),
            "official_split": ("train", "test", "development")[speaker % 3],
        }
        for speaker in range(speakers) for place, emotion in enumerate(EMOTIONS) for take in range(takes + (speaker * place) % 4)
    ]  # fmt: skip
    for row in rows:
        row |= {name: change(row) for name, change in changes.items()}
    return manifest_from_rows("toy", rows)


def dataset(manifest: Manifest, target: str, failed: frozenset[str] = frozenset()) -> Dataset:
    table = manifest.table
    wanted = table["emotion"].isin(EMOTIONS) if target == "emotion" else table["arousal"].notna()
    table = table[wanted & ~table["utterance_id"].isin(failed)]
    values = table[["arousal"]].to_numpy(dtype=np.float32)
    numbers = {name: place for place, name in enumerate(EMOTIONS)}
    return Dataset(
        corpus="toy", manifest_digest="", utterance_ids=tuple(table["utterance_id"]), speakers=tuple(table["speaker"]),
        sessions=tuple(table["session"]), official=tuple(table["official_split"]), sources={}, left_out={}, failed=failed,
        target=target, dimensions=("arousal",) if target != "emotion" else (), values=values,
        classes=EMOTIONS if target == "emotion" else (),
        labels=np.array([numbers.get(name, -1) for name in table["emotion"]]),
    )  # fmt: skip


def folds(manifest: Manifest, target: str, protocol: str = "speaker-4fold", card: Card | None = None) -> Split:
    return make_folds(manifest, dataset(manifest, target), protocol, card=card)


def who(split: Split, of: Dataset) -> list[list[set[str]]]:
    """Speakers of every part of every fold."""
    return [
        [{of.speakers[row] for row in rows} for rows in (fold.train, fold.validation, fold.test)]
        for fold in split.folds
    ]


@pytest.mark.parametrize("protocol", ["speaker-4fold", "loso", "session", "official", "random-5fold"])
def test_the_same_utterances_have_the_same_folds(protocol: str) -> None:
    manifest = corpus()
    emotion, dimensions = (folds(manifest, target, protocol) for target in ("emotion", "dimensions"))
    assert emotion.digest == dimensions.digest
    said = stratified_by(manifest, dataset(manifest, "dimensions"), protocol, card=None)
    assert said == "emotion: every speaker is where --target emotion has it"


@pytest.mark.parametrize("protocol", ["speaker-4fold", "loso", "session"])
def test_speakers_stay_where_they_are_if_some_utterances_have_one_label_only(protocol: str) -> None:
    manifest = corpus(
        emotion=lambda row: "" if row["utterance_id"].endswith("1_fear") else row["emotion"],
        arousal=lambda row: None if row["utterance_id"].endswith("2_anger") else row["arousal"],
    )
    emotion, dimensions = (folds(manifest, target, protocol) for target in ("emotion", "dimensions"))
    assert who(emotion, dataset(manifest, "emotion")) == who(dimensions, dataset(manifest, "dimensions"))
    assert emotion.digest != dimensions.digest
    tested = np.sort(np.concatenate([fold.test for fold in dimensions.folds]))
    assert tested.tolist() == list(range(len(dataset(manifest, "dimensions").utterance_ids)))
    for fold in dimensions.folds:
        rows = np.sort(np.concatenate([fold.train, fold.validation, fold.test]))
        assert rows.tolist() == tested.tolist()


def test_what_no_store_holds_is_left_out_for_both() -> None:
    manifest = corpus()
    failed = frozenset(manifest.utterance_ids[::7])
    emotion, dimensions = (
        make_folds(manifest, dataset(manifest, target, failed), "speaker-4fold", card=None)
        for target in ("emotion", "dimensions")
    )
    assert emotion.digest == dimensions.digest


@pytest.mark.parametrize(
    "change",
    [
        lambda row: "",  # no emotions at all
        lambda row: "" if row["speaker"] == "s3" else row["emotion"],  # a speaker without
        lambda row: (
            "fear" if row["utterance_id"] == "0_0_fear" else "anger"
        ),  # an emotion that some training part lacks
    ],
)
def test_without_emotions_to_go_by_values_are_stratified(change: Any) -> None:
    manifest = corpus(emotion=change)
    split = folds(manifest, "dimensions")
    of = dataset(manifest, "dimensions")
    strata = value_strata(manifest, of)
    assert set(strata) == {"low", "medium", "high"}
    expected = make_split("speaker-4fold", utterance_ids=of.utterance_ids, speakers=of.speakers, labels=strata)
    assert split.digest == expected.digest
    assert stratified_by(manifest, of, "speaker-4fold", card=None) == "arousal (low, medium, high)"


@pytest.mark.parametrize(("rare", "strata"), [(5.0, {"low", "high"}), (0.0, {"low", "medium"})])
def test_strata_of_values_that_are_mostly_the_same(rare: float, strata: set[str]) -> None:
    manifest = corpus(arousal=lambda row: rare if row["utterance_id"].startswith("1_0") else 1.0)
    assert set(value_strata(manifest, dataset(manifest, "dimensions"))) == strata


def test_digests_are_those_of_protocols() -> None:
    manifest = corpus()
    of = dataset(manifest, "emotion")
    split = make_split("loso", utterance_ids=of.utterance_ids, speakers=of.speakers, labels=of.label_names)
    assert _digest("loso", split.folds, of.utterance_ids) == split.digest
    turned = [Fold(fold.name, fold.train, fold.test, fold.validation) for fold in split.folds]
    assert _digest("loso", turned, of.utterance_ids) != split.digest


def test_a_card_decides_on_classes_and_mistakes_stay_mistakes(tmp_path: Path) -> None:
    del tmp_path
    manifest = corpus()
    emodb = read_card("emodb")  # its classes hold those of this corpus
    assert folds(manifest, "dimensions", card=emodb).digest == folds(manifest, "emotion", card=emodb).digest
    with pytest.raises(ProtocolError, match="speaker-9fold needs at least 9 speakers"):
        folds(manifest, "dimensions", "speaker-9fold")
