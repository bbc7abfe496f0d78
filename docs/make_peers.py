"""Emo-DB from recordings to a leave-one-speaker-out score, by hyfuse and by nkululeko: the times of docs/comparison.md.

    python -m venv peers && peers/bin/pip install nkululeko==1.14.1
    pip install 'hyfuse[egemaps]'
    python docs/make_peers.py --emodb /data/emodb --nkululeko peers/bin/python

Both extract the same features (eGeMAPS v02, 88 functionals, by openSMILE), standardise them, and train on nine speakers to test on
the tenth, ten times: nkululeko its SVM with default settings, hyfuse (which has no SVM) its stack of ten heads and logistic
regression. One process, one thread. A second call of each, with features already stored, tells extraction from training. CPU
seconds are those of the commands and their children; wall-clock seconds mean something on an idle machine only.
"""

from __future__ import annotations

import argparse
import csv
import os
import platform
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

EXPERIMENT = """[EXP]
root = {folder}/
name = results
runs = 1
epochs = 1
[DATA]
databases = ['emodb']
emodb = {folder}/emodb.csv
emodb.type = csv
emodb.absolute_path = True
emodb.split_strategy = random
target = emotion
[FEATS]
type = ['os']
set = eGeMAPSv02
level = functionals
scale = standard
[MODEL]
type = svm
logo = 10
n_jobs = 1
[PLOT]
"""


@dataclass(frozen=True)
class Timed:
    """What some commands took, in seconds, and what they said."""

    wall_s: float
    cpu_s: float
    said: str


def timed(commands: Sequence[Sequence[str]], *, folder: Path, limit_s: float) -> Timed:
    """Run commands one after the other, each on one thread."""
    threads = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "MKL", "OPENBLAS", "NUMBA")}
    environment: Mapping[str, str] = {**os.environ, **threads, "HF_HUB_OFFLINE": "1"}
    before, started, said = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic(), ""
    for command in commands:
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=limit_s, check=False
        )
        said += done.stdout + done.stderr
        if done.returncode:
            sys.exit(f"{' '.join(command)} ended with status {done.returncode}:\n{done.stderr[-2000:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Timed(time.monotonic() - started, cpu_s, said)


def hyfuse(folder: Path, emodb: Path) -> tuple[list[list[str]], str]:
    """Commands, and what the score is read from."""
    program = [sys.executable, "-m", "hyfuse_cli.app"]
    return [
        [*program, "extract", "--corpus", "emodb", "--data-root", str(emodb), "--model", "egemaps", "--workers", "1"],
        [
            *program,
            "train",
            "--single",
            "egemaps",
            "--protocol",
            "loso",
            "--seeds",
            "1",
            "--workers",
            "1",
            "--run",
            "peers",
        ],
    ], "runs/peers/table.csv"


def nkululeko(folder: Path, emodb: Path, python: Path) -> list[list[str]]:
    """Write what it needs from hyfuse's manifest; folds are speakers."""
    with (folder / "cache/emodb/manifest.csv").open(encoding="utf-8") as handle:
        rows = list(csv.DictReader(handle))
    with (folder / "emodb.csv").open("w", encoding="utf-8", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(["file", "speaker", "emotion", "gender", "fold"])
        for row in rows:
            writer.writerow([emodb / row["path"], row["speaker"], row["emotion"], row["sex"], row["speaker"]])
    (folder / "experiment.ini").write_text(EXPERIMENT.format(folder=folder), encoding="utf-8")
    return [[str(python), "-m", "nkululeko.nkululeko", "--config", str(folder / "experiment.ini")]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--emodb", type=Path, required=True, help="folder with wav/")
    parser.add_argument("--nkululeko", type=Path, required=True, help="python of an environment that has it")
    parser.add_argument("--limit-s", type=float, default=600.0, help="give up a command after so long")
    options = parser.parse_args()
    emodb, python = options.emodb.resolve(), options.nkululeko.absolute()
    with tempfile.TemporaryDirectory(prefix="hyfuse-peers-") as name:
        folder = Path(name)
        ours, table = hyfuse(folder, emodb)
        first = timed(ours, folder=folder, limit_s=options.limit_s)
        again = timed([[*ours[1][:-1], "again"]], folder=folder, limit_s=options.limit_s)
        with (folder / table).open(encoding="utf-8") as handle:
            scores = {row["fusion"]: float(row["uar"]) for row in csv.DictReader(handle)}
        theirs = nkululeko(folder, emodb, python)
        their_first = timed(theirs, folder=folder, limit_s=options.limit_s)
        their_again = timed(theirs, folder=folder, limit_s=options.limit_s)
    uar = [
        float(found) for found in re.findall(r"run: 0 epoch: 0: result \(TEST\): test: ([\d.]+) UAR", their_first.said)
    ][-1]
    their_version = subprocess.run(
        [python, "-c", "from importlib.metadata import version; print(version('nkululeko'))"],
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; CPU seconds (wall-clock seconds)\n"
    )
    print("| | from recordings | features stored | UAR |\n|---|---|---|---|")
    for title, one, two, score in (
        (f"hyfuse {version('hyfuse')}", first, again, ", ".join(f"{key} {value:.3f}" for key, value in scores.items())),
        (f"nkululeko {their_version}", their_first, their_again, f"svm {uar:.3f}"),
    ):
        print(f"| {title} | {one.cpu_s:.1f} ({one.wall_s:.1f}) | {two.cpu_s:.1f} ({two.wall_s:.1f}) | {score} |")
    print(f"| ratio | {their_first.cpu_s / first.cpu_s:.2f} | {their_again.cpu_s / again.cpu_s:.2f} | |")


if __name__ == "__main__":
    main()
