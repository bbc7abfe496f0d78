"""Packages with entry points: of the documentation, installed by pip, or put together by hand where only code differs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_BLOCK = re.compile(r"^`([\w.]+)`\n\n```\w+\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def files_in(page: str) -> dict[str, str]:
    """The files that a page of docs/ spells out: a line with the name in backquotes, then a block."""
    return dict(_BLOCK.findall((ROOT / "docs" / page).read_text(encoding="utf-8")))


def pip_install(page: str, folder: Path) -> Path:
    """Install the package of a page with pip, offline, into a folder of its own."""
    source = folder / "source"
    source.mkdir(parents=True)
    for name, text in files_in(page).items():
        (source / name).write_text(text, encoding="utf-8")
    target = folder / "installed"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run(
        [*command, "--target", target, source], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return target


def by_hand(folder: Path, module: str, code: str, *, group: str, entries: dict[str, str], version: str = "1.0") -> Path:
    """What pip would leave behind: a module and the metadata of its package, ``module`` with hyphens."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{module}.py").write_text(code, encoding="utf-8")
    information = folder / f"{module}-{version}.dist-info"
    information.mkdir()
    name = module.replace("_", "-")
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    lines = "\n".join(f"{entry} = {target}" for entry, target in entries.items())
    (information / "entry_points.txt").write_text(f"[{group}]\n{lines}\n")
    return folder
