"""Plug-ins come and go with the tests: what a module was is forgotten after each."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from tests.cli.conftest import hyfuse

__all__ = ["hyfuse"]


@pytest.fixture(autouse=True)
def _forget_modules() -> Iterator[None]:
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.startswith("hyfuse_") and not name.startswith("hyfuse_cli"):
            del sys.modules[name]
