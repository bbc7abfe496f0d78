"""``hyfuse`` alone and ``hyfuse doctor``, as typed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path


def run(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    package = str(Path(__file__).resolve().parents[2])
    return subprocess.run(
        [sys.executable, "-m", "hyfuse_cli.app", *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": package, "HF_HUB_OFFLINE": "1", "HYFUSE_WEIGHTS": "", **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_alone_in_an_empty_folder(tmp_path: Path) -> None:
    done = run(cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "hyfuse extract --model wavlm-tiny --model encodec-tiny --weights random --corpus demo" in done.stdout
    assert "hyfuse doctor" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_the_cache_of_the_environment_is_looked_at(tmp_path: Path) -> None:
    (tmp_path / "elsewhere" / "mine").mkdir(parents=True)
    from pipelines.corpora.prepare import _RECORD

    (tmp_path / "elsewhere" / "mine" / _RECORD).write_text("{}")
    done = run(cwd=tmp_path, HYFUSE_CACHE="elsewhere")
    assert "hyfuse extract --model wavlm --corpus mine --cache-dir elsewhere" in done.stdout


def test_doctor_and_its_exit_status(tmp_path: Path) -> None:
    done = run("doctor", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Python" in done.stdout
    broken = run("doctor", "--json", cwd=tmp_path, HYFUSE_WEIGHTS="/no/such/folder")
    assert broken.returncode == 1
    found = [json.loads(line) for line in broken.stdout.splitlines()]
    assert [check["name"] for check in found if check["status"] == "error"] == ["weights"]
    assert all(set(check) == {"name", "status", "found", "fix"} for check in found)


def test_listings_as_json(tmp_path: Path) -> None:
    models = [json.loads(line) for line in run("models", "list", "--json", "--tiny", cwd=tmp_path).stdout.splitlines()]
    assert {"wavlm", "wavlm-tiny", "encodec"} <= {entry["name"] for entry in models}
    assert all(entry["dim"] > 0 and entry["representations"] for entry in models)
    shown = json.loads(run("models", "show", "wavlm", "--json", cwd=tmp_path).stdout)
    assert shown == next(entry for entry in models if entry["name"] == "wavlm")
    corpora = [json.loads(line) for line in run("corpora", "list", "--json", cwd=tmp_path).stdout.splitlines()]
    assert "emodb" in {entry["name"] for entry in corpora}
    assert json.loads(run("corpora", "show", "emodb", "--json", cwd=tmp_path).stdout)["licence"].startswith("CC0")
