"""Cards: all of them load and agree with themselves; a broken one says what is wrong."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipelines.corpora import cards
from pipelines.corpora.cards import VOCABULARY, canonical_emotion, card_names, read_card
from pipelines.corpora.layouts import LAYOUTS
from pipelines.corpora.protocols import PROTOCOLS
from pipelines.errors import CardError, UnknownNameError

OFFICIAL = [
    "cremad", "emodb", "emotale", "iemocap", "meld", "msp-podcast", "nemo", "ravdess", "savee", "tess",
]  # fmt: skip

GOOD = """
name = "mine"
title = "My corpus"
language = "en"
layout = "emodb"
licence = "none"
citation = "me"
url = "http://localhost"
version = "1"
obtain = "ask me"

[labels]
classes = ["anger", "neutral"]

[labels.map]
A = "anger"
N = "neutral"

[expected]
utterances = 2

[expected.emotions]
anger = 1

[protocols]
default = "loso"
available = ["loso", "paper"]

[protocols.paper]
test_speakers = [["01"], ["02"]]
"""


@pytest.fixture
def write_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str | bytes], None]]:
    """Writes the card ``mine`` to a folder of its own and makes that the folder of all cards."""

    def write(content: str | bytes) -> None:
        (tmp_path / "mine.toml").write_bytes(content if isinstance(content, bytes) else content.encode())
        monkeypatch.setattr(cards, "card_folder", lambda: tmp_path)
        card_names.cache_clear()
        read_card.cache_clear()

    yield write
    card_names.cache_clear()
    read_card.cache_clear()


def test_every_corpus_of_the_project_has_a_card() -> None:
    assert set(card_names()) >= {*OFFICIAL, "demo"}


@pytest.mark.parametrize("name", card_names())
def test_card_is_complete_and_agrees_with_itself(name: str) -> None:
    card = read_card(name)
    assert card.name == name
    assert card.layout.replace("-", "_") in LAYOUTS
    assert all((card.title, card.licence, card.obtain, card.version))
    if name != "demo":  # generated here: there is nobody to cite and nowhere to get it
        assert card.citation
        assert card.url.startswith("http")
    assert f"hyfuse corpora prepare {name}" in card.obtain
    assert set(card.label_map.values()) - {""} <= set(VOCABULARY)
    assert len(set(card.classes)) == len(card.classes)
    assert all(re.fullmatch("[a-z]{2}", code.strip()) for code in card.language.split(","))
    for protocol in card.protocols:
        general = protocol in PROTOCOLS or re.fullmatch(r"(speaker|random)-\d+fold", protocol)
        assert general or protocol in card.test_speakers, protocol
    mapped = sum(card.expected_emotions.values())
    complete = set(card.expected_emotions) == set(card.label_map.values())
    if complete:
        assert mapped == card.expected_utterances
    assert mapped <= card.expected_utterances
    if card.expected_splits:
        assert sum(card.expected_splits.values()) == card.expected_utterances


def test_counts_are_those_of_the_facts() -> None:
    """facts/corpora.md: utterances, speakers, classes trained on by default."""
    expected = {
        "emodb": (535, 10, 7),
        "cremad": (7442, 91, 6),
        "iemocap": (10039, 10, 4),
        "msp-podcast": (63076 + 10999 + 16903 + 13289, 0, 8),
        "ravdess": (1440, 24, 8),
        "savee": (480, 4, 7),
        "tess": (2800, 2, 7),
        "nemo": (4481, 9, 6),
        "emotale": (800, 18, 5),
        "meld": (9989 + 1109 + 2610, 0, 7),
    }
    found = {name: read_card(name) for name in OFFICIAL}
    assert {
        name: (card.expected_utterances, card.expected_speakers, len(card.classes)) for name, card in found.items()
    } == expected


def test_default_protocols_are_speaker_independent_wherever_speakers_allow() -> None:
    dependent = [name for name in card_names() if read_card(name).default_protocol.startswith("random")]
    assert dependent == ["tess"]
    assert "no speaker-independent protocol is meaningful" in " ".join(read_card("tess").warnings)


def test_published_folds_are_those_of_the_facts() -> None:
    emobox = read_card("ravdess").test_speakers["emobox"]
    assert [sorted(map(int, fold)) for fold in emobox] == [
        [1, 11, 20, 21], [4, 10, 12, 14], [8, 9, 19, 23], [3, 5, 7, 24], [2, 15, 16, 18], [6, 13, 17, 22],
    ]  # fmt: skip
    superb = read_card("cremad").test_speakers["emo-superb"]
    ranges = [(1037, 1054), (1001, 1018), (1073, 1091), (1055, 1072), (1019, 1036)]
    assert [tuple(map(int, fold)) for fold in superb] == [tuple(range(a, b + 1)) for a, b in ranges]
    assert read_card("emodb").test_speakers == {"audb": (("12", "14", "15", "16"),)}


@pytest.mark.parametrize("name", card_names())
def test_folds_of_a_published_protocol_do_not_share_speakers(name: str) -> None:
    for folds in read_card(name).test_speakers.values():
        everyone = [speaker for fold in folds for speaker in fold]
        assert len(everyone) == len(set(everyone))


def test_an_unknown_corpus_lists_the_nearest() -> None:
    with pytest.raises(
        UnknownNameError, match=r"Unknown corpus 'emdb'\. Did you mean 'emodb'.*CSV or Parquet manifest"
    ):
        read_card("emdb")


def test_a_good_card(write_card: Callable[[str], None]) -> None:
    write_card(GOOD)
    card = read_card("mine")
    assert card.classes == ("anger", "neutral")
    assert card.test_speakers == {"paper": (("01",), ("02",))}
    assert card.expected_speakers == 0


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            'title = "My corpus"',
            'titel = "My corpus"',
            r"mine\.toml has unknown keys: titel\. Known keys: audb, citation",
        ),
        ('name = "mine"', 'name = "yours"', r"says name = 'yours'; it must be the file's own name, 'mine'"),
        ('licence = "none"\n', "", r"mine\.toml lacks the key 'licence'"),
        ("[labels.map]", "[labels.mapping]", r"unknown keys in \[labels\]: mapping\. Known: classes, map"),
        ("utterances = 2", "utterance = 2", r"unknown keys in \[expected\]: utterance\. Known: emotions"),
        ("utterances = 2", 'utterances = "many"', r"mine\.toml has a value of the wrong type"),
        ('obtain = "ask me"', "obtain = 3", r"mine\.toml has a value of the wrong type"),
        ('A = "anger"', 'A = "wrath"', r"maps 'A' to 'wrath', which is not in the vocabulary: anger, boredom"),
        ('"anger", "neutral"]', '"anger", "fear"]', r"trains on fear, but no raw label is mapped to it"),
        ("anger = 1", "fear = 1", r"expects counts of fear, but no raw label is mapped to it"),
        ('default = "loso"', 'default = "session"', r"protocol 'session' is not among the available ones: loso, paper"),
        ('["loso", "paper"]', '["loso"]', r"protocol 'paper' is not among the available ones: loso"),
        ('[["01"], ["02"]]', "[[1], [2]]", r"test speakers must be text in quotation marks"),
        ("test_speakers", "speakers", r"lacks the key 'test_speakers'"),
        ("[expected]", "[expected", r"mine\.toml is not valid TOML"),
    ],
)
def test_a_broken_card_says_what_is_wrong(old: str, new: str, message: str, write_card: Callable[[str], None]) -> None:
    assert old in GOOD
    write_card(GOOD.replace(old, new))
    with pytest.raises(CardError, match=message):
        read_card("mine")


def test_a_card_in_another_encoding(write_card: Callable[[str | bytes], None]) -> None:
    write_card(GOOD.replace("My corpus", "Übung").encode("latin-1"))
    with pytest.raises(CardError, match="not valid TOML"):
        read_card("mine")


@pytest.mark.parametrize(
    ("label", "word"),
    [
        ("Angry", "anger"),
        (" JOY ", "happiness"),
        ("ps", "surprise"),
        ("Neutral", "neutral"),
        ("Nostalgia", "nostalgia"),
    ],
)
def test_users_own_labels_are_brought_to_the_vocabulary(label: str, word: str) -> None:
    assert canonical_emotion(label) == word


def test_where_audb_has_a_corpus(write_card: Callable[[str], None]) -> None:
    write_card(GOOD + '\n[audb]\nname = "mine-db"\nversion = "1.0.0"\nmedia = "speech/"\n')
    source = read_card("mine").audb
    assert source is not None
    assert (source.name, source.version, source.media, source.remark) == ("mine-db", "1.0.0", "speech/", "")


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ('name = "x"', r"value of the wrong type.*version"),
        (
            'name = "x"\nversion = "1"\nurl = "y"',
            r"unknown keys in \[audb\]: url\. Known: media, name, remark, version",
        ),
    ],
)
def test_a_broken_source_is_an_error(section: str, message: str, write_card: Callable[[str], None]) -> None:
    write_card(f"{GOOD}\n[audb]\n{section}\n")
    with pytest.raises(CardError, match=message):
        read_card("mine")
