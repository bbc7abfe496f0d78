"""docs/reference/ is what the code says."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from pipelines.encoders.catalogue import CATALOGUE
from pipelines.fusion.catalogue import FUSIONS

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def maker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_reference", ROOT / "docs" / "make_reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reference_is_up_to_date(maker: ModuleType) -> None:
    assert maker.out_of_date() == [], "run `python docs/make_reference.py` and commit what it writes"


def test_everything_is_in_it(maker: ModuleType) -> None:
    pages = maker.pages()
    for spec in CATALOGUE.values():
        assert spec.is_tiny or f"| `{spec.name}` |" in pages["encoders.md"]
    for name in FUSIONS:
        assert f"## `{name}`" in pages["fusions.md"]
    for command in ("hyfuse extract", "hyfuse models check", "hyfuse corpora show", "hyfuse compare"):
        assert f"## `{command}`\n" in pages["commands.md"]
    assert "| `weights_digest` | sha256 of the parameters. | identity |" in pages["store.md"]
    assert "| 130 |" in pages["exit-codes.md"]
    assert "PluginError" in pages["exit-codes.md"]


def test_no_cell_breaks_its_table(maker: ModuleType) -> None:
    for name, text in maker.pages().items():
        columns = 0
        for line in text.splitlines():
            if not line.startswith("|"):
                columns = 0
                continue
            cells = line.replace("\\|", "").count("|")
            assert columns in (0, cells), f"{name}: {line}"
            columns = cells
