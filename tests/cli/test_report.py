from __future__ import annotations

import csv
import shlex
from pathlib import Path

import pytest

from pipelines.corpora.prepare import Prepared, remember
from pipelines.reports.run_data import read_run_data
from tests.cli.conftest import Runner
from tests.reports.fake_run import make_run
from tests.reports.fake_study import noise_outcome
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


ASKED = {
    "compare": [
        "compare", "--corpus", "toy", "--models", "vector ssl codec", "--fusions", "hyperbolic,gated", "--pairs", "all",
        "--order", "both",
        "--layer", "ssl=weighted", "--option", "max_radius=0.3", "--set", "label_smoothing=0", "--protocol", "speaker-2fold",
        "--seeds", "2", "--epochs", "2", "--learning-rate", "0.01", "--pool", "mean", "--classes", "sadness,anger",
    ],
    "soft": [
        "compare", "--corpus", "toy", "--models", "ssl codec", "--fusions", "concat", "--labels", "soft", "--epochs", "2",
        "--front-end", "cnn", "--seeds", "1", "--recipe", "paper", "--class-weights", "balanced",
    ],
    "dimensions": [
        "compare", "--corpus", "toy", "--models", "ssl codec", "--fusions", "hyperbolic", "--order", "right-left", "--target",
        "dimensions", "--dimensions", "valence,activation", "--epochs", "2", "--seeds", "1", "--batch-size", "8",
    ],
    "tune": [
        "tune", "--corpus", "toy", "--pair", "ssl", "codec", "--fusion", "hyperbolic", "--classifier", "mlr", "--trials", "3",
        "--inner-folds", "2", "--protocol", "speaker-3fold", "--seeds", "1", "--epochs", "2", "--search", "order,dropout",
    ],
    "tune a single": [
        "tune", "--corpus", "toy", "--single", "ssl", "--layer", "0", "--trials", "2", "--inner-folds", "2",
        "--protocol", "speaker-3fold", "--seeds", "1", "--epochs", "2",
    ],
}  # fmt: skip


@pytest.mark.parametrize("kind", ASKED)
def test_the_command_in_the_report_makes_the_run_again(hyfuse: Runner, tmp_path: Path, kind: str) -> None:
    """Every setting that is not as usual; the same bytes come out."""
    if kind.startswith("tune"):
        pytest.importorskip("optuna", reason="tuning is an optional extra: pip install 'hyfuse[tune]'")
    remember(Prepared(make_corpus(tmp_path / "cache"), ()), tmp_path / "cache")
    made = hyfuse(*ASKED[kind], "--run", "first", "--workers", "1")
    assert made.status == 0, made.err
    first = tmp_path / "runs" / "first"
    words = shlex.split(read_run_data(first).commands[-1])
    words[words.index("--run") + 1] = "second"
    done = hyfuse(*words[1:], "--workers", "1")
    assert done.status == 0, done.err
    names = ["results.jsonl", "predictions.parquet", *(["tuning.json"] if kind.startswith("tune") else [])]
    for name in names:
        assert (first / name).read_bytes() == (tmp_path / "runs" / "second" / name).read_bytes()


def test_pictures_of_a_tuned_run_and_of_one_on_dimensions(hyfuse: Runner, tmp_path: Path) -> None:
    """Every fold's head is made again with the settings that its search chose; points are coloured by thirds of a dimension."""
    pytest.importorskip("optuna", reason="tuning is an optional extra: pip install 'hyfuse[tune]'")
    remember(Prepared(make_corpus(tmp_path / "cache"), ()), tmp_path / "cache")
    for kind in ("tune", "dimensions"):
        assert hyfuse(*ASKED[kind], "--run", kind, "--workers", "1").status == 0
        done = hyfuse("report", kind)
        assert done.status == 0
        assert "Not shown" not in done.err
        html = (tmp_path / "runs" / kind / "report.html").read_text(encoding="utf-8")
        assert "Poincaré disk" in html
        assert "do NOT score exactly" not in html
        assert ("high arousal" in html) == (kind == "dimensions")


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """The run of a study, with an outcome and nothing else."""
    folder = tmp_path / "runs" / "noisy"
    folder.mkdir(parents=True)
    noise_outcome(warnings=("RANDOM weights: byols.",)).write(folder)
    return folder


def test_a_study_becomes_a_page_too(hyfuse: Runner, study: Path) -> None:
    done = hyfuse("report", "noisy")
    assert done.status == 0
    assert "report.html" in done.err
    assert "RANDOM weights: byols." in done.err
    html = (study / "report.html").read_text(encoding="utf-8")
    assert html.startswith("<!doctype html>")
    assert "run noisy" in html


@pytest.mark.parametrize(
    ("form", "expected"),
    [("md", "**UAR by condition**"), ("latex", r"\toprule"), ("csv", "table,row,column,text,value,low,high,mark")],
)
def test_tables_of_a_study(hyfuse: Runner, study: Path, tmp_path: Path, form: str, expected: str) -> None:
    done = hyfuse("report", "noisy", "--format", form)
    assert done.status == 0
    assert expected in done.out
    assert ("### Published" in done.out) == (form == "md")
    hyfuse("report", study, "--format", form, "--out", tmp_path / "tables")
    assert " ".join((tmp_path / "tables").read_text(encoding="utf-8").split()) == " ".join(done.out.split())
    assert not (study / "report.html").exists()


def test_figures_of_a_study(hyfuse: Runner, study: Path, tmp_path: Path) -> None:
    assert hyfuse("report", study, "--figures", tmp_path / "paper", "--figure-formats", "pdf,png").status == 0
    assert {path.name for path in (tmp_path / "paper").iterdir()} == {
        f"{name}.{kind}" for name in ("degradation", "areas", "wer") for kind in ("pdf", "png")
    }
    done = hyfuse("report", study, "--figures", tmp_path / "paper", "--figure-formats", "tiff")
    assert done.status == 2
    assert "figure format 'tiff'" in done.err


def test_a_study_that_is_not_there_or_damaged(hyfuse: Runner, study: Path, run: Path) -> None:
    done = hyfuse("report", "gone")
    assert done.status == 2
    assert "There is no run folder runs/gone. Runs in runs: noisy, toy." in done.err
    (study / "study.json").write_text("{")
    done = hyfuse("report", "noisy")
    assert done.status == 2
    assert "study.json cannot be read" in done.err


def test_published_numbers_stand_below_the_table(hyfuse: Runner, run: Path) -> None:
    out = hyfuse("report", run, "--format", "md").out
    assert out.index("**concat**") < out.index("### Published")
    assert "No published number on toy is on file." in out
    assert "### Published" not in hyfuse("report", run, "--format", "csv").out


def test_a_run_on_dimensions(hyfuse: Runner, tmp_path: Path) -> None:
    folder = make_run(tmp_path / "runs" / "values", dimensions=("arousal", "valence"))
    assert hyfuse("report", "values", "--no-pictures").status == 0
    assert "CCC of valence" in (folder / "report.html").read_text(encoding="utf-8")
    assert "CCC" in hyfuse("report", "values", "--format", "md").out
