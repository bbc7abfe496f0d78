"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

_REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder with real recordings, weights and reference outputs; the test skips where it is absent.

    ``$HYFUSE_REAL_DATA`` or ``../shared`` beside the checkout: ``corpora/``, ``noise/``, ``weights/``, ``golden/``.
    """
    root = Path(os.environ.get("HYFUSE_REAL_DATA", _REPOSITORY.parent / "shared"))
    if not (root / "corpora").is_dir():
        pytest.skip(f"real recordings are not at {root}; set HYFUSE_REAL_DATA to the folder that holds corpora/")
    return root
