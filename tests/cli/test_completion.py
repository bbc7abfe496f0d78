"""What the shell completes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hyfuse_cli import completion


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("mine/wavlm/clean.zarr", "mine/wavlm/telephone.zarr", "mine/encodec/clean.zarr", "other/.x"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "mine" / "recordings").mkdir()
    monkeypatch.setenv("HYFUSE_CACHE", str(tmp_path))
    return tmp_path


@pytest.mark.usefixtures("cache")
def test_names() -> None:
    assert completion.encoders("wavlm-base-p")[0] == "wavlm-base-plus"
    assert "wavlm-tiny" in completion.encoders("wav")
    assert completion.corpora("em") == ["emodb", "emotale"]
    assert completion.corpora("mi") == ["mine"]
    assert completion.extracted("") == ["encodec", "wavlm"]
    assert completion.stores("mine/w") == ["mine/wavlm/clean", "mine/wavlm/telephone"]
    assert completion.lists_of("wavlm,") == ["wavlm,encodec"]
    assert "hyperbolic" in completion.fusions("h")


def test_without_a_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYFUSE_CACHE", str(tmp_path / "nowhere"))
    assert completion.extracted("") == completion.stores("") == []
    assert "emodb" in completion.corpora("")


def test_the_shell_is_answered(cache: Path) -> None:
    """As bash asks: by environment variables, the line so far among them."""
    done = subprocess.run(
        [sys.executable, "-c", "from hyfuse_cli.app import main; main()"],
        env={
            **os.environ,
            "_HYFUSE_COMPLETE": "complete_bash",
            "COMP_WORDS": "hyfuse cache verify mine/w",
            "COMP_CWORD": "3",
            "HYFUSE_CACHE": str(cache),
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.split() == ["mine/wavlm/clean", "mine/wavlm/telephone"], done.stderr
