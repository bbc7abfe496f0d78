"""The packages of docs/own-encoder.md and docs/own-fusion.md, installed by pip and used through the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.store.embeddings import open_store
from tests.cli.conftest import Runner, write_corpus
from tests.plugins.packages import ROOT, files_in, pip_install

_TRAIN = ("--seeds", 1, "--protocol", "speaker-2fold", "--epochs", 3, "--workers", 1)


@pytest.fixture(scope="module")
def encoder_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pip_install("own-encoder.md", tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def fusion_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pip_install("own-fusion.md", tmp_path_factory.mktemp("fusion"))


@pytest.mark.parametrize(
    ("page", "module"), [("own-encoder.md", "hyfuse_bands.py"), ("own-fusion.md", "hyfuse_larger.py")]
)
def test_examples_are_short(page: str, module: str) -> None:
    lines = [line for line in files_in(page)[module].splitlines() if line.strip()]
    assert 10 < len(lines) <= 30


def test_both_from_the_shell_to_a_table(
    tmp_path: Path, encoder_package: Path, fusion_package: Path, hyfuse: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = write_corpus(tmp_path / "corpus")
    monkeypatch.syspath_prepend(str(encoder_package))
    monkeypatch.syspath_prepend(str(fusion_package))

    listed = hyfuse("models", "list")
    assert "bands" in listed.out
    assert "of the package hyfuse-bands 0.1.0" in listed.out
    assert "hyfuse_bands" not in sys.modules
    assert "of the package hyfuse-larger 0.1.0" in hyfuse("fusions", "list").out
    assert "hyfuse_larger" not in sys.modules
    checked = hyfuse("models", "check", "bands")
    assert checked.status == 0, checked
    assert "broken" not in checked.out
    assert hyfuse("fusions", "check", "larger").status == 0
    assert "slope" in hyfuse("fusions", "show", "larger").out

    done = hyfuse("extract", "--corpus", corpus, "--model", "bands", "--model", "encodec-tiny", "--weights", "random")
    assert done.status == 0, done.err
    (store,) = Path("cache").glob("*/bands/clean.zarr")
    provenance = open_store(store).provenance
    assert provenance.versions["hyfuse-bands"] == "0.1.0"
    assert provenance.weights_kind == "none"

    done = hyfuse("compare", "--fusions", "concat,larger", "--option", "larger.slope=0.2", "--run", "own", *_TRAIN)
    assert done.status == 0, done.err
    rows = [json.loads(line) for line in Path("runs/own/results.jsonl").read_text().splitlines()]
    (row,) = [row for row in rows if row["fusion"] == "larger"][:1]
    assert row["plugin"]["package"] == "hyfuse-larger"
    assert row["plugin"]["version"] == "0.1.0"
    assert len(row["plugin"]["code_digest"]) == 64
    assert row["options"] == {"slope": 0.2}
    assert not any("plugin" in row for row in rows if row["fusion"] != "larger")

    # Another process, as a user's shell starts it.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (ROOT, encoder_package, fusion_package)))}
    command = [sys.executable, "-m", "hyfuse_cli.app", "models", "show", "bands"]
    shown = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=True).stdout
    assert "the package hyfuse-bands 0.1.0" in shown


def test_changed_code_is_another_encoder(
    tmp_path: Path, hyfuse: Runner, monkeypatch: pytest.MonkeyPatch, encoder_package: Path
) -> None:
    import shutil

    corpus = write_corpus(tmp_path / "corpus", speakers=2, takes=1)
    changed = tmp_path / "changed"
    shutil.copytree(encoder_package, changed)
    text = (changed / "hyfuse_bands.py").read_text()
    (changed / "hyfuse_bands.py").write_text(text.replace("1e-6", "1e-3"))
    for path, status in ((encoder_package, 0), (changed, 2)):
        with monkeypatch.context() as patch:
            patch.syspath_prepend(str(path))
            done = hyfuse("extract", "--corpus", corpus, "--model", "bands")
            sys.modules.pop("hyfuse_bands", None)
        assert done.status == status, done.err
    assert "weights_digest" in done.err
    assert "hyfuse cache remove" in done.err
