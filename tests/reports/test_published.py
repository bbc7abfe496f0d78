"""Published numbers: sourced, and beside ours only where they compare."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from pipelines.corpora.cards import card_names, read_card
from pipelines.encoders.catalogue import CATALOGUE
from pipelines.evaluation.runs import read_run
from pipelines.reports.published import (
    CLAIMS,
    METRIC_NAMES,
    PUBLISHED,
    Setting,
    beside_outcome,
    beside_run,
    published_markdown,
    reasons,
)
from tests.reports.fake_run import make_run
from tests.reports.fake_study import noise_outcome

FOUR = ("sadness", "anger", "neutral", "happiness")


def _iemocap(folder: Path, **changes: object) -> Path:
    """A run on IEMOCAP as SUPERB divides it."""
    run = make_run(folder / "run", corpus="iemocap", classes=FOUR, per_speaker=12, random=("encodec",))
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**config, "protocol": "session", **changes}))
    return run


def test_every_number_names_what_it_is_and_where_it_was_read() -> None:
    for one in PUBLISHED:
        assert one.source.name
        assert one.source.where
        assert one.divided
        assert one.metric in METRIC_NAMES
        assert one.corpus in card_names()
        assert one.encoder in {"", *CATALOGUE}
        assert (0 < one.value < 1) if one.target == "dimensions" else (1 < one.value < 100)
        if one.protocol:
            assert one.protocol in read_card(one.corpus).protocols
            assert set(one.classes) == set(read_card(one.corpus).classes)
    assert len(set(PUBLISHED)) == len(PUBLISHED)


def test_hyfuse_itself_is_not_quoted_with_a_number() -> None:
    assert not [one for one in PUBLISHED if "2506.03403" in one.source.where]
    (claim,) = [one for one in CLAIMS if "2506.03403" in one.source.where]
    assert not re.search(r"\d", claim.text)
    assert "no number of it is quoted" in claim.text


def test_ours_stands_beside_where_corpus_classes_and_protocol_are_the_same(tmp_path: Path) -> None:
    run = read_run(_iemocap(tmp_path))
    shown = beside_run(run)
    assert {row.published.source.name.partition(" ")[0] for row in shown.same} == {"SUPERB", "EmoBox"}
    row = next(row for row in shown.same if row.published.encoder == "wavlm" and row.published.metric == "accuracy")
    score = next(score for score in run.scores if score.cell == "wavlm")
    assert row.value == "65.9"
    low, high = (100 * end for end in (score.accuracy_interval.low, score.accuracy_interval.high))
    assert row.ours == f"{100 * score.accuracy:.1f} [{low:.1f}, {high:.1f}] (wavlm, latent)"
    other = next(row for row in shown.same if row.published.encoder == "hubert")  # not in the run
    assert other.ours == ""
    best = max(run.scores, key=lambda one: one.uar)
    assert f"The best cell of this run is {best.cell}: UAR {100 * best.uar:.1f} [" in shown.summary
    (li,) = shown.other
    assert li.published.value == 63.4
    assert li.reasons == ("other or unknown protocol: folds and classes could not be confirmed",)
    assert li.ours == ""


def test_random_weights_are_said_beside_published_numbers(tmp_path: Path) -> None:
    run = read_run(
        make_run(tmp_path / "r", corpus="iemocap", classes=FOUR, per_speaker=12, random=("wavlm", "xvector", "encodec"))
    )
    run.config["protocol"] = "session"  # type: ignore[index]
    shown = beside_run(run)
    ours = [row.ours for row in shown.same if row.ours]
    assert len(ours) == 3  # WavLM by SUPERB, and twice by EmoBox
    assert all("RANDOM weights" in text for text in (*ours, shown.best))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"protocol": "random-5fold"}, "other protocol: five folds, one session left out each; here random-5fold"),
        ({"condition": "noise:esc10@5dB"}, "clean recordings; here noise:esc10@5dB"),
    ],
)
def test_what_differs_is_said(tmp_path: Path, changes: dict[str, object], reason: str) -> None:
    shown = beside_run(read_run(_iemocap(tmp_path, **changes)))
    assert shown.same == ()
    assert all(row.ours == "" for row in shown.rows)
    assert reason in {why for row in shown.rows for why in row.reasons}
    assert shown.summary == "15 published numbers on iemocap on file; none was scored under the protocol of this run."


def test_other_classes_do_not_compare() -> None:
    superb = next(one for one in PUBLISHED if one.source.name.startswith("SUPERB"))
    same = Setting(corpus="iemocap", classes=FOUR, protocol="session")
    assert reasons(superb, same) == ()
    five = Setting(corpus="iemocap", classes=(*FOUR, "frustration"), protocol="session")
    assert reasons(superb, five) == ("other classes: anger, happiness, neutral, sadness",)
    unknown = Setting(corpus="iemocap", protocol="session")
    assert "those of this study are not known here" in reasons(superb, unknown)[0]
    assert "that of this study is not one of them" not in reasons(superb, unknown)[0]


def test_dimensions_are_never_beside_emotions(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path / "run", corpus="msp-podcast"))
    assert beside_run(run).rows == ()
    assert beside_run(run).summary == "No published number on msp-podcast is on file."


def test_a_study_gets_what_papers_say_to_its_question() -> None:
    shown = beside_outcome(noise_outcome())
    assert [claim.source.where for claim in shown.claims] == ["arXiv 2303.03177", "arXiv 2303.03177"]
    assert shown.same == ()
    assert {row.published.source.where for row in shown.other} == {"arXiv 2506.01138"}


def test_the_section_in_markdown(tmp_path: Path) -> None:
    text = published_markdown(beside_run(read_run(_iemocap(tmp_path))))
    assert text.startswith("### Published\n")
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert {row.count("|") for row in rows} == {6}
    assert "| WavLM large, frozen, learned weights of layers | accuracy (WA), % | 70.6 |" in text
    assert "Not to be compared with the numbers of this run:" in text
    assert "SUPERB benchmark, task ER, arXiv 2105.01051" in text
    assert published_markdown(beside_outcome(noise_outcome(corpus="demo"))).count("No published number on demo") == 1
