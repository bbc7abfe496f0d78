"""The command lines a user types, from recordings to the table, on corpora small enough for a test."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from tests.cli.conftest import Runner
from tests.corpora import official_trees

TINY = ("wavlm-tiny", "xvector-tiny", "encodec-tiny", "soundstream-tiny")


def _extract(hyfuse: Runner, corpus: object, *models: str) -> None:
    done = hyfuse(
        "extract", *(f"--model={name}" for name in models), "--corpus", corpus, "--weights", "random", "--device", "cpu"
    )
    assert done.status == 0, done.err


def test_extract_then_compare_prints_every_cell(hyfuse: Runner, corpus: Path, tmp_path: Path) -> None:
    _extract(hyfuse, corpus, *TINY)
    done = hyfuse("compare", "--protocol", "speaker-3fold", "--seeds", 2, "--epochs", 3, "--workers", 1)
    assert done.status == 0, done.err
    run = tmp_path / "runs" / "my-speaker-3fold"
    with (run / "table.csv").open() as handle:
        rows = list(csv.DictReader(handle))
    assert len(rows) == 4 + 4 + 2 * 2 * (3 + 1)  # singles and RLR × CBR × fusions, with the linear rung of either
    assert {row["fusion"] for row in rows} == {"single", "concat", "attention", "hyperbolic", "logistic"}
    assert all(0 <= float(row["uar_low"]) <= float(row["uar"]) <= float(row["uar_high"]) <= 1 for row in rows)
    for fusion in ("concat", "attention", "hyperbolic"):
        assert f"{fusion}: UAR %" in done.out
    assert "RANDOM weights: encodec-tiny, soundstream-tiny, wavlm-tiny, xvector-tiny" in done.out
    assert "54 utterances, 6 speakers, 3 emotions" in done.out
    assert "speaker-independent, 3 folds; 2 seeds" in done.out
    assert "wavlm-tiny (random)" in (run / "table.md").read_text()
    assert r"\toprule" in (run / "table.tex").read_text()
    predictions = pd.read_parquet(run / "predictions.parquet")
    assert len(predictions) == (16 * 2 + 8) * 54  # cells × seeds × utterances; the linear rung knows no seeds
    shares = predictions[["p_anger", "p_neutral", "p_sadness"]].sum(axis=1)
    assert shares.between(0.999, 1.001).all()
    result_rows = [json.loads(line) for line in (run / "results.jsonl").read_text().splitlines()]
    assert len(result_rows) == 16 * 3 * 2 + 8 * 3
    assert {"split_digest", "hyper_parameters", "code_digest", "metrics", "diagnostics"} <= set(result_rows[0])


def test_compare_again_trains_nothing_and_more_seeds_only_the_new(hyfuse: Runner, corpus: Path, tmp_path: Path) -> None:
    _extract(hyfuse, corpus, "xvector-tiny", "soundstream-tiny")
    options = (
        "compare",
        "--fusions",
        "concat",
        "--protocol",
        "speaker-3fold",
        "--epochs",
        2,
        "--workers",
        1,
        "--run",
        "r",
    )
    first = hyfuse(*options, "--seeds", 1)
    assert "18 heads trained" in first.out  # three cells and their linear rungs
    table = (tmp_path / "runs/r/table.csv").read_bytes()
    again = hyfuse(*options, "--seeds", 1)
    assert "0 heads trained" in again.out
    assert "18 taken from an earlier call" in again.out
    assert (tmp_path / "runs/r/table.csv").read_bytes() == table
    more = hyfuse(*options, "--seeds", 2)
    assert "9 heads trained" in more.out
    changed = hyfuse(*options, "--seeds", 1, "--learning-rate", 0.01)
    assert "9 heads trained" in changed.out


def test_the_command_lines_of_the_readme_on_an_imitation_of_iemocap(
    hyfuse: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The exact lines the project was asked for; random weights by the environment, since no option says so."""
    root = official_trees.iemocap(tmp_path / "IEMOCAP_full_release")
    monkeypatch.setenv("HYFUSE_WEIGHTS_KIND", "random")
    assert hyfuse("extract", "--model", "wavlm", "--corpus", "iemocap", "--data-root", root).status == 0
    for name in ("xvector", "soundstream"):  # the root is remembered
        assert hyfuse("extract", "--model", name, "--corpus", "iemocap").status == 0
    done = hyfuse("train", "--pair", "xvector", "soundstream", "--fusion", "hyperbolic")
    assert done.status == 0, done.err
    assert "Protocol: session, speaker-independent, 5 folds" in done.out
    assert "RANDOM weights: xvector, soundstream" in done.out
    assert "Shuffling xvector among the test utterances costs" in done.out
    heads = list((tmp_path / "runs" / "iemocap-xvector+soundstream-hyperbolic" / "heads").glob("*.safetensors"))
    assert len(heads) == 3 * 5 * 5 + 3 * 5  # both singles and the pair: folds × seeds, and the linear rung per fold


def test_train_a_single_representation_and_choose_its_layer(hyfuse: Runner, corpus: Path) -> None:
    _extract(hyfuse, corpus, "wavlm-tiny")
    options = ("--single", "wavlm-tiny", "--protocol", "loso", "--seeds", 1, "--epochs", 2, "--workers", 1)
    done = hyfuse("train", *options, "--representation", "wavlm-tiny=layer_01", "--pool", "mean")
    assert done.status == 0, done.err
    assert "wavlm-tiny layer_01; pooling mean" in done.out
    assert "6 folds" in done.out


def test_speaker_dependent_protocols_say_so(hyfuse: Runner, corpus: Path, tmp_path: Path) -> None:
    _extract(hyfuse, corpus, "xvector-tiny")
    options = ("--protocol", "random-3fold", "--seeds", 1, "--epochs", 1, "--workers", 1, "--run", "r")
    done = hyfuse("train", "--single", "xvector-tiny", *options)
    assert "speaker-dependent: random-3fold has the same speakers in training and test" in done.out
    for name in ("table.md", "table.tex"):
        assert "speaker-dependent" in (tmp_path / "runs/r" / name).read_text()


def test_the_result_does_not_depend_on_the_number_of_processes(hyfuse: Runner, corpus: Path, tmp_path: Path) -> None:
    _extract(hyfuse, corpus, "xvector-tiny", "soundstream-tiny")
    options = ("compare", "--protocol", "speaker-3fold", "--seeds", 1, "--epochs", 2, "--fusions", "concat,hyperbolic")
    for workers in (1, 2):
        done = hyfuse(*options, "--workers", workers, "--run", f"w{workers}")
        assert done.status == 0, done.err
    for name in ("table.csv", "results.jsonl", "predictions.parquet"):
        assert (tmp_path / "runs/w1" / name).read_bytes() == (tmp_path / "runs/w2" / name).read_bytes(), name


def test_cache_list_verify_remove(hyfuse: Runner, corpus: Path, tmp_path: Path) -> None:
    _extract(hyfuse, corpus, "xvector-tiny", "soundstream-tiny")
    listed = hyfuse("cache", "list")
    assert "my/xvector-tiny/clean random 54 0 0 1 × 32" in listed.out
    assert hyfuse("cache", "verify").status == 0
    chunk = tmp_path / "cache/my/xvector-tiny/clean.zarr/mean/c/0/0/0"
    content = bytearray(chunk.read_bytes())
    content[len(content) // 2] ^= 0xFF
    chunk.write_bytes(content)
    verified = hyfuse("cache", "verify")
    assert verified.status == 1
    assert "my/xvector-tiny/clean: DAMAGED" in verified.out
    assert "my/soundstream-tiny/clean: ok" in verified.out
    assert hyfuse("cache", "remove", "my/xvector-tiny", "--yes").status == 0
    assert "xvector" not in hyfuse("cache", "list").out


def test_corpora_verbs(hyfuse: Runner, tmp_path: Path) -> None:
    root = official_trees.emodb(tmp_path / "emodb")
    prepared = hyfuse("corpora", "prepare", "emodb", "--root", root)
    assert prepared.status == 0, prepared.err
    assert "warning:" in prepared.err  # far fewer than 535 utterances
    assert "535" in prepared.err
    assert (tmp_path / "cache/emodb/manifest.csv").is_file()
    checked = hyfuse("corpora", "check", "emodb", "--root", root)
    assert "utterances" in checked.out
    assert "alpha" not in checked.out  # no raters
    heard = hyfuse("corpora", "check", "emotale", "--root", official_trees.emotale(tmp_path / "emotale"))
    assert "Krippendorff's alpha (1 perfect, 0 chance): emotion -0.40 (15 answers on 5 utterances)" in heard.out
    shown = hyfuse("corpora", "show", "emodb")
    assert "W → anger" in shown.out
    assert "CC0" in shown.out


def test_models_show_names_revision_licence_and_folder(hyfuse: Runner) -> None:
    shown = hyfuse("models", "show", "wavlm").out
    assert "efa81aae7ff777e464159e0f877d54eac5b84f81" in shown
    assert "licence" in shown
    assert "$HYFUSE_WEIGHTS/wavlm/" in shown


@pytest.mark.parametrize("command", [["--help"], ["models", "list"], ["corpora", "list"], ["extract", "--help"]])
def test_light_commands_load_nothing_heavy(command: list[str]) -> None:
    """Half a second is promised; what would cost it is an import, and that can be tested without a clock."""
    code = (
        "import sys; from hyfuse_cli.app import main\n"
        f"sys.argv = ['hyfuse', *{command!r}]\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'pandas', 'zarr', 'sklearn', 'scipy', 'transformers', 'numpy'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
