from __future__ import annotations

import csv
import shlex
from pathlib import Path

import pytest

from pipelines.corpora.prepare import Prepared, remember
from pipelines.reports.run_data import read_run_data
from tests.cli.conftest import Runner
from tests.reports.fake_run import make_run
from tests.training.toy import make_corpus


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run in the folder that runs are looked for in."""
    return make_run(tmp_path / "runs" / "toy", random=("encodec",))


def test_a_run_by_its_name_becomes_a_page_in_its_folder(hyfuse: Runner, run: Path) -> None:
    done = hyfuse("report", "toy", "--no-pictures")
    assert done.status == 0
    assert "report.html" in done.err
    assert "RANDOM weights: encodec" in done.err
    assert (run / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")


def test_without_stores_the_page_is_made_and_says_what_is_not_in_it(hyfuse: Runner, run: Path, tmp_path: Path) -> None:
    done = hyfuse("report", run, "--out", tmp_path / "elsewhere" / "page.html")
    assert done.status == 0
    assert "Not shown, since the stores cannot be read." in done.err
    assert "Not shown, since the stores cannot be read." in (tmp_path / "elsewhere" / "page.html").read_text()
    assert not (run / "report.html").exists()


@pytest.mark.parametrize(
    ("form", "expected"), [("md", "**concat**"), ("latex", r"\toprule"), ("csv", "left,right,fusion")]
)
def test_tables_go_to_standard_output_or_a_file(
    hyfuse: Runner, run: Path, tmp_path: Path, form: str, expected: str
) -> None:
    done = hyfuse("report", run, "--format", form)
    assert done.status == 0
    assert expected in done.out
    hyfuse("report", run, "--format", form, "--out", tmp_path / "table")
    text = (tmp_path / "table").read_text(encoding="utf-8")
    assert " ".join(text.split()) == done.out
    if form == "csv":
        assert len(list(csv.DictReader(text.splitlines()))) == 3 + 3 + 2 * 3
    else:
        assert "RANDOM weights" in text


def test_figures_for_a_paper(hyfuse: Runner, run: Path, tmp_path: Path) -> None:
    done = hyfuse("report", run, "--figures", tmp_path / "paper", "--figure-formats", "svg,pdf", "--no-pictures")
    assert done.status == 0
    names = {path.name for path in (tmp_path / "paper").iterdir()}
    assert {"table.svg", "table.pdf", "confusion.svg", "intervals.pdf"} <= names
    assert not [name for name in names if name.endswith(".png")]
    assert (run / "report.html").exists()


def test_mistakes_are_explained(hyfuse: Runner, run: Path) -> None:
    done = hyfuse("report", run, "--format", "docx")
    assert (done.status, done.out) == (2, "")
    assert "Unknown report format 'docx'" in done.err
    assert "csv, html, latex, md" in done.err
    done = hyfuse("report", "nothing")
    assert done.status == 2
    assert "There is no run folder runs/nothing. Runs in runs: toy." in done.err
    done = hyfuse("report", run, "--figures", "paper", "--figure-formats", "tiff", "--no-pictures")
    assert done.status == 2
    assert "figure format 'tiff'" in done.err
    (run / "predictions.parquet").unlink()
    done = hyfuse("report", run)
    assert done.status == 2
    assert "predictions.parquet is not there" in done.err
    assert "Run the same `hyfuse compare`" in done.err


def test_the_command_in_the_report_makes_the_run_again(hyfuse: Runner, tmp_path: Path) -> None:
    """Every setting that is not as usual; the same bytes come out."""
    remember(Prepared(make_corpus(tmp_path / "cache"), ()), tmp_path / "cache")
    asked = [
        "compare", "--corpus", "toy", "--models", "vector ssl codec", "--fusions", "hyperbolic,gated", "--pairs", "all",
        "--order", "both",
        "--layer", "ssl=weighted", "--option", "max_radius=0.3", "--set", "label_smoothing=0", "--protocol", "speaker-2fold",
        "--seeds", "2", "--epochs", "2", "--learning-rate", "0.01", "--pool", "mean", "--classes", "sadness,anger",
        "--workers", "1",
    ]  # fmt: skip
    assert hyfuse(*asked, "--run", "first").status == 0
    first = tmp_path / "runs" / "first"
    words = shlex.split(read_run_data(first).commands[-1])
    words[words.index("--run") + 1] = "second"
    done = hyfuse(*words[1:], "--workers", "1")
    assert done.status == 0, done.err
    for name in ("results.jsonl", "predictions.parquet"):
        assert (first / name).read_bytes() == (tmp_path / "runs" / "second" / name).read_bytes()
