"""Folds: nobody is in two parts, nothing is lost, nothing depends on chance."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from sklearn.model_selection import StratifiedGroupKFold

from pipelines.corpora import protocols
from pipelines.corpora.cards import read_card
from pipelines.corpora.protocols import LOSO_LIMIT, Fold, Split, make_split
from pipelines.errors import ProtocolError, UnknownNameError

TEST_SPEAKERS = [["03", "14"], ["08", "11"], ["09", "10"], ["12", "15"], ["13", "16"]]
VALIDATION_SPEAKERS = [["12", "15"], ["09", "10"], ["03", "14"], ["03", "14"], ["03", "14"]]


class Corpus:
    """Columns of a made-up manifest."""

    def __init__(self, rows: Sequence[tuple[str, str]], **columns: Sequence[str]) -> None:
        self.ids = [f"u{number:04d}" for number in range(len(rows))]
        self.speakers = [speaker for speaker, _ in rows]
        self.labels = [label for _, label in rows]
        self.columns = columns

    def split(self, protocol: str, **options: Any) -> Split:
        return make_split(
            protocol, utterance_ids=self.ids, speakers=self.speakers, labels=self.labels, **{**self.columns, **options}
        )


def _random_corpus(seed: int) -> Corpus:
    generator = np.random.default_rng(seed)
    speakers, classes = int(generator.integers(3, 25)), int(generator.integers(2, 8))
    taste = generator.dirichlet(np.full(classes, 0.7), size=speakers)  # speakers differ in what they utter
    count = int(generator.integers(30, 400))
    who = generator.choice(speakers, p=generator.dirichlet(np.full(speakers, 2.0)), size=count)
    return Corpus([(f"s{one:02d}", f"c{generator.choice(classes, p=taste[one])}") for one in who])


def _emodb() -> Corpus:
    """The shape of Emo-DB: 10 speakers, 7 emotions, speaker 08 without disgust."""
    counts = {
        "03": (14, 5, 1, 4, 7, 7, 11), "08": (12, 10, 0, 6, 11, 9, 10), "09": (13, 4, 8, 1, 4, 4, 9),
        "10": (10, 8, 1, 8, 4, 3, 4), "11": (11, 8, 2, 10, 8, 7, 9), "12": (12, 5, 2, 6, 2, 4, 4),
        "13": (12, 10, 8, 7, 10, 5, 9), "14": (16, 8, 8, 12, 8, 10, 7), "15": (13, 9, 5, 8, 6, 4, 11),
        "16": (14, 14, 11, 7, 11, 9, 5),
    }  # fmt: skip
    names = ("anger", "boredom", "disgust", "fear", "happiness", "sadness", "neutral")
    return Corpus(
        [(who, name) for who, of in counts.items() for name, count in zip(names, of, strict=True) for _ in range(count)]
    )


def _even(speakers: int, *, classes: int = 3, takes: int = 4) -> Corpus:
    return Corpus([(f"s{one:02d}", f"c{c}") for one in range(speakers) for c in range(classes) for _ in range(takes)])


def _who(corpus: Corpus, positions: np.ndarray) -> set[str]:
    return {corpus.speakers[position] for position in positions}


def _what(corpus: Corpus, positions: np.ndarray) -> set[str]:
    return {corpus.labels[position] for position in positions}


def _parts(fold: Fold) -> list[np.ndarray]:
    return [fold.train, fold.validation, fold.test]


def _assert_sound(corpus: Corpus, split: Split, *, every_row_tested: bool = True) -> None:
    """What holds for the folds of every protocol."""
    for fold in split.folds:
        used = np.concatenate(_parts(fold))
        assert len(set(used.tolist())) == len(used)
        if every_row_tested:
            assert len(used) == len(corpus.ids)
        assert all(len(part) and part.dtype == np.int64 and (np.diff(part) > 0).all() for part in _parts(fold))
        assert _what(corpus, fold.train) == set(corpus.labels)
        if split.speaker_independent:
            train, validation, test = (_who(corpus, part) for part in _parts(fold))
            assert not train & test
            assert not validation & test
            assert not train & validation
    if every_row_tested:
        tested = np.concatenate([fold.test for fold in split.folds])
        assert sorted(tested.tolist()) == list(range(len(corpus.ids)))


# ------------------------------------------------------------------------------------------------ properties


@pytest.mark.parametrize("protocol", ["speaker-3fold", "speaker-5fold", "loso", "random-3fold"])
def test_random_corpora_split_soundly_or_say_why_not(protocol: str) -> None:
    made = 0
    for seed in range(80):
        corpus = _random_corpus(seed)
        try:
            split = corpus.split(protocol)
        except ProtocolError:
            continue
        made += 1
        _assert_sound(corpus, split)
        assert split.speaker_independent == (not protocol.startswith("random"))
    assert made >= 20


@pytest.mark.parametrize("protocol", ["speaker-5fold", "loso", "random-5fold"])
def test_same_manifest_same_folds(protocol: str) -> None:
    """Whatever random state, and however often."""
    np.random.seed(1)
    first = _emodb().split(protocol)
    np.random.seed(2)
    np.random.random(7)
    again = _emodb().split(protocol)
    assert first.digest == again.digest
    for one, two in zip(first.folds, again.folds, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(_parts(one), _parts(two), strict=True))


@pytest.mark.parametrize("protocol", ["speaker-5fold", "speaker-3fold", "loso"])
def test_folds_by_speaker_do_not_depend_on_the_order_of_rows(protocol: str) -> None:
    for seed in range(25):
        corpus = _random_corpus(seed)
        try:
            expected = corpus.split(protocol)
        except ProtocolError:
            continue
        order = np.random.default_rng(seed).permutation(len(corpus.ids))
        turned = make_split(
            protocol,
            utterance_ids=[corpus.ids[row] for row in order],
            speakers=[corpus.speakers[row] for row in order],
            labels=[corpus.labels[row] for row in order],
        )
        assert turned.digest == expected.digest


def test_folds_do_not_depend_on_the_version_of_scikit_learn() -> None:
    """They are dealt by our own code; these are the folds that reports have been written with."""
    split = _emodb().split("speaker-5fold")
    assert [sorted(_who(_emodb(), fold.test)) for fold in split.folds] == TEST_SPEAKERS
    assert [sorted(_who(_emodb(), fold.validation)) for fold in split.folds] == VALIDATION_SPEAKERS


@pytest.mark.parametrize("folds", [2, 3, 5])
def test_dealing_equals_scikit_learn(folds: int) -> None:
    """Without shuffling, all versions of scikit-learn agree, so speakers get names in the order in which ours are dealt."""
    for seed in range(40):
        corpus = _random_corpus(seed)
        names = sorted(set(corpus.speakers))
        if len(names) < max(folds, 3):
            continue
        order = np.random.RandomState(0).permutation(len(names))
        renamed = {names[one]: f"{rank:03d}" for rank, one in enumerate(order)}
        groups = [renamed[speaker] for speaker in corpus.speakers]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = [test.tolist() for _, test in StratifiedGroupKFold(folds).split(groups, corpus.labels, groups)]
        try:
            split = corpus.split(f"speaker-{folds}fold")
        except ProtocolError:
            continue
        assert [fold.test.tolist() for fold in split.folds] == expected


def test_digest_depends_on_every_part() -> None:
    corpus = _even(6)
    digests = {corpus.split(protocol).digest for protocol in ("speaker-3fold", "speaker-6fold", "loso", "random-3fold")}
    assert len(digests) == 4
    renamed = _even(6)
    renamed.ids[0] = "other"
    assert renamed.split("loso").digest != corpus.split("loso").digest


@pytest.mark.filterwarnings("error")
def test_nothing_is_printed_as_a_warning() -> None:
    corpus = Corpus([*zip(_even(8).speakers, _even(8).labels, strict=True), ("s00", "rare"), ("s01", "rare"), ("s02", "rare"),
                     ("s03", "rare"), ("s04", "rare"), ("s05", "rare")])  # fmt: skip
    for protocol in ("speaker-5fold", "speaker-8fold", "loso", "random-5fold"):
        _assert_sound(corpus, corpus.split(protocol))


# ------------------------------------------------------------------------------------------------ by speaker


def test_emodb_shape() -> None:
    corpus = _emodb()
    split = corpus.split("speaker-5fold")
    _assert_sound(corpus, split)
    assert [len(_who(corpus, fold.test)) for fold in split.folds] == [2] * 5
    for fold in split.folds:
        assert _what(corpus, fold.validation) == set(corpus.labels)
        assert 1 <= len(_who(corpus, fold.validation)) <= 3
    loso = corpus.split("loso")
    _assert_sound(corpus, loso)
    assert [fold.name for fold in loso.folds] == sorted(set(corpus.speakers))
    (without_disgust,) = [fold for fold in loso.folds if "disgust" not in _what(corpus, fold.test)]
    assert without_disgust.name == "08"


def test_classes_are_balanced_between_folds() -> None:
    corpus = _emodb()
    whole = np.array([corpus.labels.count(name) for name in sorted(set(corpus.labels))]) / len(corpus.labels)
    for fold in corpus.split("speaker-5fold").folds:
        found = [corpus.labels[row] for row in fold.test]
        share = np.array([found.count(name) for name in sorted(set(corpus.labels))]) / len(found)
        assert np.abs(share - whole).max() < 0.07
        assert 0.15 < len(found) / len(corpus.labels) < 0.25


def test_validation_has_as_many_classes_as_its_candidates_allow() -> None:
    """Two speakers utter everything, the others one class only: validation takes one of the two and leaves the other."""
    rows = [(who, label) for who in ("all1", "all2") for label in "abc" for _ in range(3)]
    rows += [(f"only{label}{number}", label) for label in "abc" for number in range(2) for _ in range(9)]
    corpus = Corpus([*rows, *[("test", label) for label in "abc" for _ in range(3)]])
    split = corpus.split("fixed", test_speakers={"fixed": [["test"]]})
    (fold,) = split.folds
    _assert_sound(corpus, split, every_row_tested=False)
    assert _what(corpus, fold.validation) == {"a", "b", "c"}


def test_validation_is_the_best_of_its_candidates() -> None:
    """No class lost to training comes first, then few classes missing from validation."""
    decided = 0
    for seed in range(60):
        corpus = _random_corpus(seed)
        who, what = np.array(corpus.speakers, dtype=object), np.array(corpus.labels, dtype=object)
        test = who == who[0]
        try:
            (fold,) = corpus.split("fixed", test_speakers={"fixed": [[who[0]]]}).folds
        except ProtocolError:
            continue
        who, what = who[~test], what[~test]
        ranks = []
        for chosen in protocols._deal_groups(who, what, min(4, len(set(who)))):
            if chosen.any():
                ranks.append((len(set(what) - set(what[~chosen])), len(set(what) - set(what[chosen]))))
        everything = set(what)
        found = (
            len(everything - _what(corpus, fold.train)),
            len(everything - _what(corpus, fold.validation)),
        )
        assert found == min(ranks)
        decided += len(set(ranks)) > 1
    assert decided > 10


def test_validation_never_takes_a_class_away_from_training_if_it_can_be_helped() -> None:
    for only in range(5):
        rows = [(f"s{one}", label) for one in range(6) for label in "ab" for _ in range(5)]
        rows += [(f"s{only}", "rare")] * 20
        corpus = Corpus(rows)
        split = corpus.split("fixed", test_speakers={"fixed": [["s5"]]})
        assert f"s{only}" in _who(corpus, split.folds[0].train)


def test_three_speakers_are_enough_two_are_not() -> None:
    _assert_sound(_even(3), _even(3).split("loso"))
    _assert_sound(_even(3), _even(3).split("speaker-3fold"))
    for protocol in ("speaker-2fold", "speaker-5fold"):
        with pytest.raises(
            ProtocolError, match=r"needs at least \d speakers; this corpus has 2\..*random-5fold.*speaker-dependent"
        ):
            _even(2).split(protocol)
    with pytest.raises(ProtocolError, match=r"loso needs at least 3 speakers; this corpus has 2"):
        _even(2).split("loso")


def test_fewer_speakers_than_folds() -> None:
    with pytest.raises(
        ProtocolError,
        match=r"speaker-5fold needs at least 5 speakers; this corpus has 4\. Use `--protocol loso` or `--protocol speaker-4fold`",
    ):
        _even(4).split("speaker-5fold")
    _assert_sound(_even(4), _even(4).split("speaker-4fold"))  # the advice works


def test_class_that_one_speaker_alone_has() -> None:
    corpus = Corpus([*zip(_even(10).speakers, _even(10).labels, strict=True), *[("s03", "rare")] * 8])
    for protocol in ("speaker-5fold", "loso"):
        with pytest.raises(
            ProtocolError,
            match=rf"{protocol}: no training utterance of rare in fold '.+'\. Too few speakers.*`--classes`",
        ):
            corpus.split(protocol)


@pytest.mark.parametrize("protocol", ["speaker-5fold", "loso", "random-5fold", "random-2fold"])
def test_hardly_any_utterances_are_our_error_or_a_split(protocol: str) -> None:
    """scikit-learn raises ValueErrors of its own where every class is smaller than the number of folds."""
    for takes in (1, 2, 3):
        for speakers in (5, 6):
            for classes in (2, 3, 9):
                corpus = _even(speakers, classes=classes, takes=takes)
                # One class per speaker at most.
                thin = Corpus(
                    [(who, f"c{row % classes}") for row, who in enumerate(corpus.speakers[: speakers * takes])]
                )
                for one in (corpus, thin):
                    with contextlib.suppress(ProtocolError):
                        _assert_sound(one, one.split(protocol))


def test_a_single_class() -> None:
    with pytest.raises(ProtocolError, match="the only class is c0"):
        _even(6, classes=1).split("loso")


def test_too_many_speakers_to_leave_each_out() -> None:
    with pytest.raises(ProtocolError, match=rf"loso would make {LOSO_LIMIT + 1} folds.*up to {LOSO_LIMIT} speakers"):
        _even(LOSO_LIMIT + 1).split("loso")
    assert len(_even(LOSO_LIMIT).split("loso").folds) == LOSO_LIMIT


def test_number_of_folds() -> None:
    assert [fold.name for fold in _even(12).split("speaker-4fold").folds] == ["1", "2", "3", "4"]
    for protocol in ("speaker-1fold", "random-0fold"):
        with pytest.raises(ProtocolError, match=rf"{protocol} asks for \d fold"):
            _even(6).split(protocol)


def test_speaker_names_are_text() -> None:
    """Speakers 1 and 10 and 2 are three, and loso sorts them as text."""
    corpus = Corpus([(who, label) for who in ("1", "10", "2") for label in "ab" for _ in range(4)])
    assert [fold.name for fold in corpus.split("loso").folds] == ["1", "10", "2"]


# ------------------------------------------------------------------------------------------------ by utterance


def test_random_folds_are_speaker_dependent_and_say_so() -> None:
    corpus = _emodb()
    split = corpus.split("random-5fold")
    assert not split.speaker_independent
    _assert_sound(corpus, split)
    assert all(_who(corpus, fold.test) & _who(corpus, fold.train) for fold in split.folds)
    assert all(_what(corpus, fold.validation) == set(corpus.labels) for fold in split.folds)


def test_random_folds_of_a_rare_class() -> None:
    corpus = Corpus([*zip(_even(10).speakers, _even(10).labels, strict=True), *[("s03", "rare")] * 4])
    with pytest.raises(
        ProtocolError, match=r"random-5fold needs at least 5 utterances of every class; the rarest has 4"
    ):
        corpus.split("random-5fold")
    with pytest.raises(ProtocolError, match=r"random-2fold leaves one utterance of a class outside a test part"):
        Corpus([("s", "a")] * 2 + [("s", "b")] * 20).split("random-2fold")


# ------------------------------------------------------------------------------------------------ by session


def _sessions(shared: bool = False) -> Corpus:
    rows, sessions = [], []
    for session in range(1, 6):
        for letter in "FM":
            for label in "abcd":
                for _ in range(3):
                    rows.append((f"Ses0{session if not shared else 1}{letter}", label))
                    sessions.append(f"Ses0{session}")
    return Corpus(rows, sessions=sessions)


def test_session_leaves_one_session_out() -> None:
    corpus = _sessions()
    split = corpus.split("session")
    _assert_sound(corpus, split)
    assert [fold.name for fold in split.folds] == [f"Ses0{number}" for number in range(1, 6)]
    for fold in split.folds:
        assert _who(corpus, fold.test) == {f"{fold.name}F", f"{fold.name}M"}
        assert len(_who(corpus, fold.validation)) == 2  # a quarter of eight speakers


def test_session_whose_speakers_return() -> None:
    with pytest.raises(
        ProtocolError, match=r"session: fold 'Ses01' has \d speaker\(s\) in both its .* part: Ses01.*leaks"
    ):
        _sessions(shared=True).split("session")


@pytest.mark.parametrize("sessions", [None, [], ["1"] * 119 + [""]])
def test_sessions_are_needed(sessions: list[str] | None) -> None:
    with pytest.raises(ProtocolError, match=r"'session' needs the manifest column 'session' for every utterance"):
        _sessions().split("session", sessions=sessions)


def test_a_single_session() -> None:
    with pytest.raises(ProtocolError, match=r"session needs at least 2 sessions; this corpus has 1"):
        _sessions().split("session", sessions=["1"] * 120)


# ------------------------------------------------------------------------------------------------ official


def _official(parts: dict[str, Sequence[str]], *, takes: int = 3) -> Corpus:
    rows = [
        (who, label, part)
        for part, speakers in parts.items()
        for who in speakers
        for label in "abc"
        for _ in range(takes)
    ]
    return Corpus([(who, label) for who, label, _ in rows], official=[part for *_, part in rows])


_MSP = {"train": ["1", "2", "3"], "development": ["4"], "test1": ["5", "6"], "test2": ["7"]}


def test_official_split_with_two_test_parts() -> None:
    corpus = _official(_MSP)
    for protocol, test, speakers in (("official", "test1", {"5", "6"}), ("official-test2", "test2", {"7"})):
        split = corpus.split(protocol)
        (fold,) = split.folds
        assert fold.name == test
        assert _who(corpus, fold.test) == speakers
        assert _who(corpus, fold.train) == {"1", "2", "3"}
        assert _who(corpus, fold.validation) == {"4"}
        assert split.speaker_independent
    assert corpus.split("official").digest != corpus.split("official-test2").digest


def test_official_split_without_development_part() -> None:
    corpus = _official({"train": ["1", "2", "3", "4"], "test": ["5"]})
    split = corpus.split("official")
    _assert_sound(corpus, split, every_row_tested=False)
    assert split.folds[0].name == "test"
    assert len(_who(corpus, split.folds[0].validation)) == 1


def test_official_split_that_leaks() -> None:
    for parts, shared in (
        ({**_MSP, "test1": ["5", "2"]}, r"1 speaker\(s\) in both its train and its test part: 2\."),
        ({**_MSP, "development": ["5"]}, r"1 speaker\(s\) in both its validation and its test part: 5\."),
        ({**_MSP, "development": ["3"]}, r"1 speaker\(s\) in both its train and its validation part: 3\."),
    ):
        with pytest.raises(ProtocolError, match=shared + r".*split leaks; use `--protocol speaker-5fold`"):
            _official(parts).split("official")


def test_unknown_speakers_are_nobody_in_particular() -> None:
    parts = {part: [*speakers, "Unknown"] for part, speakers in _MSP.items()}
    assert len(_official(parts).split("official").folds) == 1


def test_official_part_that_is_not_there() -> None:
    with pytest.raises(
        ProtocolError, match=r"'official-test3' needs .* train and test3; found: .*--protocol official-test2"
    ):
        _official(_MSP).split("official-test3")
    with pytest.raises(ProtocolError, match=r"needs utterances whose official_split is train and test; found: train"):
        _official({"train": ["1", "2"]}).split("official")
    with pytest.raises(
        ProtocolError, match=r"'official' needs the manifest column 'official_split' for every utterance"
    ):
        _even(6).split("official")


def test_class_that_is_tested_but_not_trained() -> None:
    corpus = _official(_MSP)
    corpus.labels = ["new" if who == "5" else label for who, label in zip(corpus.speakers, corpus.labels, strict=True)]
    with pytest.raises(ProtocolError, match=r"no training utterance of new in fold 'test1'"):
        corpus.split("official")


# ------------------------------------------------------------------------------------------------ as published


@pytest.mark.parametrize(
    ("name", "protocol", "speakers", "folds"),
    [
        ("emodb", "audb", [f"{number:02d}" for number in (3, *range(8, 17))], 1),
        ("cremad", "emo-superb", [str(number) for number in range(1001, 1092)], 5),
        ("ravdess", "emobox", None, 6),
    ],
)
def test_published_folds_of_the_cards(name: str, protocol: str, speakers: list[str] | None, folds: int) -> None:
    published = read_card(name).test_speakers
    speakers = speakers or sorted(one for fold in published[protocol] for one in fold)
    corpus = Corpus([(who, label) for who in speakers for label in "abcd" for _ in range(3)])
    split = corpus.split(protocol, test_speakers=published)
    assert split.speaker_independent
    assert [_who(corpus, fold.test) for fold in split.folds] == [set(fold) for fold in published[protocol]]
    _assert_sound(corpus, split, every_row_tested=folds > 1)
    assert len(split.folds) == folds


def test_published_speakers_that_are_absent() -> None:
    with pytest.raises(
        ProtocolError, match=r"audb tests on speakers that this corpus lacks: 12, 15\..*`hyfuse corpora check`"
    ):
        Corpus([(who, label) for who in ("03", "14", "16") for label in "ab"]).split(
            "audb", test_speakers=read_card("emodb").test_speakers
        )


def test_published_fold_that_leaves_one_speaker() -> None:
    with pytest.raises(ProtocolError, match=r"fixed leaves 1 speaker\(s\) outside the test part; two are needed"):
        _even(3).split("fixed", test_speakers={"fixed": [["s00", "s01"]]})


def test_unknown_protocol() -> None:
    with pytest.raises(UnknownNameError, match=r"Unknown protocol 'lso'\. Did you mean 'loso'.*fixed.*`speaker-4fold`"):
        _even(6).split("lso", test_speakers={"fixed": [["s00"]]})
    for protocol in ("speaker-fold", "random", "5fold", "speaker--1fold"):
        with pytest.raises(UnknownNameError):
            _even(6).split(protocol)
