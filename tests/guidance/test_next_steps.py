"""What comes next, from what is there."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from pipelines.guidance.next_steps import FolderState, look, next_steps
from pipelines.store.embeddings import store_path
from tests.store.stores import IDS, make_provenance, open_toy, write_rest


def commands(state: FolderState, **options: str) -> list[str]:
    return [step.command for step in next_steps(state, **options)]


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A cache that remembers the corpus ``toy``."""
    folder = tmp_path / "cache" / "toy"
    folder.mkdir(parents=True)
    from pipelines.corpora.prepare import _RECORD

    (folder / _RECORD).write_text("{}")
    return tmp_path / "cache"


def store(cache: Path, encoder: str, family: str, *, finished: bool = True, condition: str = "clean") -> Path:
    path = store_path(cache, "toy", encoder, condition)
    assert isinstance(path, Path)
    provenance = make_provenance(encoder=encoder, family=family, condition=condition)
    with open_toy(path, provenance=provenance, utterance_ids=IDS) as writer:
        if finished:
            write_rest(writer)
    return path


def run_folder(runs: Path, name: str, *files: str, age_s: float = 0.0) -> Path:
    folder = runs / name
    folder.mkdir(parents=True)
    for file in ("config.json", *files):
        (folder / file).write_text("{}")
    stamp = (folder / "config.json").stat().st_mtime - age_s
    os.utime(folder / "config.json", (stamp, stamp))
    return folder


def test_an_empty_folder_begins_with_the_demo(tmp_path: Path) -> None:
    state = look(tmp_path / "cache", tmp_path / "runs")
    assert state.corpora == ()
    assert state.runs == ()
    first, *rest = commands(state)
    assert first == "hyfuse extract --model wavlm-tiny --model encodec-tiny --weights random --corpus demo"
    assert any("--data-root" in command for command in rest)


def test_a_corpus_without_embeddings(cache: Path, tmp_path: Path) -> None:
    assert commands(look(cache, tmp_path / "runs")) == ["hyfuse extract --model wavlm --corpus toy"]


def test_one_family_wants_the_other(cache: Path, tmp_path: Path) -> None:
    store(cache, "byols", "RLR")
    assert commands(look(cache, tmp_path / "runs")) == ["hyfuse extract --model encodec --corpus toy"]


def test_the_tiny_sizes_stay_among_themselves(cache: Path, tmp_path: Path) -> None:
    store(cache, "encodec-tiny", "CBR")
    found = commands(look(cache, tmp_path / "runs"), cache_option="--cache-dir there")
    assert found == ["hyfuse extract --model wavlm-tiny --corpus toy --weights random --cache-dir there"]


def test_a_pair_can_be_compared(cache: Path, tmp_path: Path) -> None:
    store(cache, "byols", "RLR")
    store(cache, "encodec", "CBR")
    store(cache, "byols", "RLR", condition="telephone")
    state = look(cache, tmp_path / "runs")
    assert state.corpora[0].finished == {"byols": "RLR", "encodec": "CBR"}
    assert state.corpora[0].conditions == 1
    assert commands(state) == ["hyfuse compare --corpus toy"]


def test_what_was_interrupted_comes_first(cache: Path, tmp_path: Path) -> None:
    store(cache, "byols", "RLR")
    store(cache, "encodec", "CBR")
    store(cache, "encodec", "CBR", condition="telephone", finished=False)
    first, *_ = commands(look(cache, tmp_path / "runs"))
    assert first == "hyfuse extract --model encodec --corpus toy --condition telephone"


def test_a_damaged_store_is_to_be_verified(cache: Path, tmp_path: Path) -> None:
    (store(cache, "byols", "RLR") / "zarr.json").write_text("{")
    state = look(cache, tmp_path / "runs")
    assert state.corpora[0].damaged == ("byols/clean",)
    assert commands(state)[0] == "hyfuse cache verify toy/byols/clean"


def test_the_newest_finished_run_wants_its_page(cache: Path, tmp_path: Path) -> None:
    runs = tmp_path / "my runs"
    run_folder(runs, "old", "table.csv", age_s=100)
    run_folder(runs, "new", "study.json")
    run_folder(runs, "shown", "table.csv", "report.html", age_s=50)
    state = look(cache, runs)
    assert [run.path.name for run in state.runs] == ["new", "shown", "old"]
    assert [(run.finished, run.reported) for run in state.runs] == [(True, False), (True, True), (True, False)]
    assert commands(state)[0] == f"hyfuse report '{runs / 'new'}'"


def test_a_run_whose_configuration_is_damaged_has_no_command(cache: Path, tmp_path: Path) -> None:
    run_folder(tmp_path / "runs", "broken")
    assert not any("compare" in command for command in commands(look(cache, tmp_path / "runs")))


def test_nothing_is_written(cache: Path, tmp_path: Path) -> None:
    store(cache, "byols", "RLR")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    next_steps(look(cache, tmp_path / "runs"))
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_steps_say_why(tmp_path: Path) -> None:
    assert all(step.why and json.dumps(step.why) for step in next_steps(look(tmp_path, tmp_path)))
