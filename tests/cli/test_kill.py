"""``kill -9`` at random moments, then the same command again: same bytes in the store, same table."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.cli.conftest import write_corpus

_COMMAND = (sys.executable, "-m", "hyfuse_cli.app")
_KILLS = 6


def _start(arguments: Sequence[object], folder: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path.cwd())}
    return subprocess.Popen(
        [*_COMMAND, *map(str, arguments)],
        cwd=folder,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def _finish(arguments: Sequence[object], folder: Path) -> None:
    """Run to the end."""
    process = _start(arguments, folder)
    _, err = process.communicate(timeout=240)
    assert process.returncode == 0, err.decode()


def _kill_at_random(arguments: Sequence[object], folder: Path, *, work: str, seed: int) -> int:
    """Start the command and kill it, with all its processes, again and again; how often it was really cut off.

    A moment is drawn in terms of the files matching ``work`` that a run has added, not of the clock, so that the machine's speed
    does not decide what is tested; then up to a third of a second more.
    """
    moments, cut = random.Random(seed), 0
    for attempt in range(_KILLS):
        before = len(list(folder.glob(work)))
        wanted = before + (moments.randint(0, 1) if attempt else 0)
        process = _start(arguments, folder)
        while process.poll() is None and (
            len(list(folder.glob(work))) <= wanted if attempt else not any(folder.iterdir())
        ):
            time.sleep(0.002)
        time.sleep(moments.uniform(0.0, 0.3))
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            cut += 1
        process.communicate()
    return cut


def _content(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix != ".lock"
    }


@pytest.mark.slow
def test_a_killed_extraction_ends_with_the_same_bytes(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "data", speakers=8, takes=25)  # 600 utterances: three blocks
    arguments = ("extract", "--model", "soundstream-tiny", "--corpus", corpus, "--weights", "random", "--device", "cpu")
    whole = tmp_path / "whole"
    whole.mkdir()
    _finish(arguments, whole)
    killed = tmp_path / "killed"
    killed.mkdir()
    assert _kill_at_random(arguments, killed, work="cache/my/*/clean.zarr/*/c/**/*", seed=1) >= 3
    _finish(arguments, killed)
    expected = _content(whole / "cache" / "my" / "soundstream-tiny")
    assert any("status/c/2" in name for name in expected)
    assert _content(killed / "cache" / "my" / "soundstream-tiny") == expected


@pytest.mark.slow
def test_a_killed_comparison_ends_with_the_same_table(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "data")
    models = ("xvector-tiny", "soundstream-tiny")
    _finish(
        ("extract", *(f"--model={name}" for name in models), "--corpus", corpus, "--weights", "random", "--cache-dir",
         tmp_path / "cache"),
        tmp_path,
    )  # fmt: skip
    arguments = (
        "compare",
        "--cache-dir",
        tmp_path / "cache",
        "--protocol",
        "loso",
        "--seeds",
        3,
        "--workers",
        2,
        "--run",
        "r",
    )
    whole = tmp_path / "whole"
    whole.mkdir()
    _finish(arguments, whole)
    killed = tmp_path / "killed"
    killed.mkdir()
    assert _kill_at_random(arguments, killed, work="runs/r/parts/*.npz", seed=2) >= 3
    _finish(arguments, killed)
    expected, found = _content(whole / "runs" / "r"), _content(killed / "runs" / "r")
    summaries = [name for name in expected if not name.startswith("parts/")]
    assert set(summaries) >= {
        "table.csv",
        "table.md",
        "table.tex",
        "results.jsonl",
        "predictions.parquet",
        "config.json",
    }
    assert {name: found.get(name) for name in summaries} == {name: expected[name] for name in summaries}
    assert not [name for name in found if ".writing-" in name]


@pytest.mark.slow
def test_ctrl_c_says_how_to_go_on(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "data", speakers=8, takes=25)
    # The full size takes long enough to be interrupted on any machine.
    process = _start(("extract", "--model", "soundstream", "--corpus", corpus, "--weights", "random"), tmp_path)
    while process.poll() is None and not list((tmp_path / "cache").glob("my/soundstream/clean.zarr")):
        time.sleep(0.01)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err.decode()
    assert "Interrupted. Whatever was finished is kept; the same command goes on from there." in err.decode()
    assert "Traceback" not in err.decode()
