"""The page of a study."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.reports.study_page import build_study_page, write_study_page
from pipelines.reports.study_tables import outcome_csv
from pipelines.studies.outcome import Cell, Column, Table, read_outcome
from tests.reports.fake_run import HOSTILE
from tests.reports.fake_study import layers_outcome, noise_outcome
from tests.reports.parsed import Page


@pytest.mark.parametrize("make", [noise_outcome, layers_outcome])
def test_the_page_is_well_formed_and_asks_for_nothing(make: object) -> None:
    html = build_study_page(make(), "run")  # type: ignore[operator]
    page = Page(html)
    assert page.wrong == []
    assert page.inside == []
    for tag, attributes in page.elements:
        for name in ("src", "href", "action", "data", "poster", "srcset"):
            address = attributes.get(name) or ""
            inside = address.startswith("data:image/png;base64,") and tag == "image"  # the colours beside a heat map
            assert inside or address.startswith("#") or address in ("", "data:,"), (tag, name, address)
    assert "url(" not in re.sub(r"url\(#", "", html)
    (policy,) = [a["content"] for _, a in page.elements if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert "unsafe-inline" not in policy.partition("script-src")[2]
    identifiers = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(set(identifiers)) == len(identifiers)


def test_the_same_outcome_gives_the_same_bytes_also_read_back(tmp_path: Path) -> None:
    outcome = noise_outcome()
    outcome.write(tmp_path)
    write_study_page(read_outcome(tmp_path), tmp_path / "page.html", "run")
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == build_study_page(outcome, "run")


def test_warnings_first_then_answers_figures_tables_published_and_the_command() -> None:
    html = build_study_page(noise_outcome(warnings=("RANDOM weights: byols.",)), "run")
    assert "RANDOM weights: byols." in html[: html.index("<main>")]
    places = [
        html.index(f'<section id="{name}"') for name in ("answers", "figures", "tables", "published", "provenance")
    ]
    assert places == sorted(places)
    page = Page(html)
    assert "hyfuse study noise --corpus emodb --models byols" in page.text
    assert "<code>hyfuse extract --condition noise:esc10@5dB</code>" in html
    assert "Mitra et al. 2023" in page.text


def test_verdicts_are_marked() -> None:
    html = build_study_page(noise_outcome(), "run")
    assert '<li class="yes"><span class="question">Does noise cost the voice more than the text?</span>' in html
    assert '<li class="open">' in html
    assert '<span class="verdict">Not shown</span>: +3.5 points' in html
    assert "plain-answer" in build_study_page(layers_outcome(), "run")  # an answer that is neither yes nor no


def test_numbers_stand_with_interval_mark_and_what_they_are_sorted_by() -> None:
    table = Table(
        name="t", title="T", about="", columns=(Column(title="a"), Column(title="b", digits=2)),
        rows=(("x", Cell(value=-0.126, low=-0.3, high=0.05, mark="*")), ("y", Cell(value=float("nan"))), ("z", "none")),
    )  # fmt: skip
    page = Page(build_study_page(replace(noise_outcome(), tables=(table,), figures=()), "run"))
    cells = [attributes for tag, attributes in page.elements if tag == "td" and "data-sort" in attributes]
    assert [cell["data-sort"] for cell in cells] == ["-0.126", "", ""]
    assert "−0.13*" in page.text
    assert "[−0.30, 0.05]" in page.text
    assert "nan" not in page.text.lower().split()


def test_an_empty_head_stands_for_the_one_above_and_a_zero_has_no_sign() -> None:
    table = Table(
        name="t", title="T", about="", columns=(Column(title="a"), Column(title="b", digits=2)),
        rows=(("x", Cell(value=1.0)), ("", Cell(value=-0.001, low=-0.004, high=0.2)), ("y", Cell(value=3.0))),
    )  # fmt: skip
    outcome = replace(noise_outcome(), tables=(table,), figures=())
    html = build_study_page(outcome, "run")
    assert html.count('<span class="same">x</span>') == 1
    assert '<span class="value">0.00</span> <span class="interval">[0.00, 0.20]</span>' in html
    rows = list(csv.DictReader(io.StringIO(outcome_csv(outcome))))
    assert [row["text"] for row in rows if row["column"] == "a"] == ["x", "x", "y"]


def test_pages_stay_small(tmp_path: Path) -> None:
    assert len(build_study_page(noise_outcome(), "run")) < 200_000


def test_names_from_files_are_text() -> None:
    outcome = noise_outcome(name=HOSTILE[0], corpus=HOSTILE[1], warnings=(HOSTILE[2],))
    outcome = replace(outcome, title=HOSTILE[1], settings={HOSTILE[0]: list(HOSTILE)}, answers=HOSTILE, notes=HOSTILE)
    html = build_study_page(outcome, HOSTILE[3])
    page = Page(html)
    assert page.wrong == []
    tags = [tag for tag, _ in page.elements]
    assert tags.count("script") == 1
    assert "img" not in tags
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    for name in HOSTILE:
        assert " ".join(name.split()) in page.text


def test_a_study_with_nothing_but_a_note_has_a_page() -> None:
    outcome = replace(noise_outcome(), answers=(), tables=(), figures=(), settings={})
    page = Page(build_study_page(outcome, "run"))
    assert page.wrong == []
    assert "Corpus: emodb, 535 utterances" in page.text
