"""Makes ``import torchaudio`` work beside a torch without CUDA.

The torchaudio wheel on PyPI carries a compiled extension that is linked against CUDA. Beside a CPU-only torch the extension
cannot load, ``import torchaudio`` raises OSError, and so do ``import speechbrain``, ``import encodec`` and parts of
transformers, because each imports torchaudio when it is installed. torchaudio has a pure-Python mode of its own, which it
chooses when the file of the extension is not there; everything these libraries need here works in it. This module tells
torchaudio that the file is not there, and only after a plain import has failed.

Every family module calls :func:`ensure_torchaudio_importable` before it imports transformers, speechbrain or encodec.
hyfuse itself uses no torchaudio function.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from pipelines.errors import InstallationError

__all__ = ["ensure_torchaudio_importable"]

_LOADER_MODULE = "torchaudio._extension.utils"


def ensure_torchaudio_importable() -> str:
    """Import torchaudio, in its pure-Python mode if its compiled extension cannot be loaded.

    A torchaudio that imports by itself is left as it is. Calling this again costs nothing.

    Returns:
        ``compiled`` (works by itself), ``python`` (extension switched off) or ``absent`` (not installed).

    Raises:
        InstallationError: torchaudio is installed and cannot be imported in either mode.
    """
    if "torchaudio" not in sys.modules:
        if importlib.util.find_spec("torchaudio") is None:
            return "absent"
        before = set(sys.modules)
        try:
            importlib.import_module("torchaudio")
        except (OSError, RuntimeError, ImportError) as error:  # cannot be linked, other CUDA version, no libtorchaudio
            _forget_torchaudio(before)
            _import_without_extension(error)
    extension = sys.modules.get("torchaudio._extension")
    return "compiled" if getattr(extension, "_IS_TORCHAUDIO_EXT_AVAILABLE", True) else "python"


def _forget_torchaudio(before: set[str]) -> None:
    """Drop what a failed import left behind; a second import would otherwise find half of the package."""
    for name in [name for name in sys.modules if name.split(".")[0] == "torchaudio" and name not in before]:
        del sys.modules[name]


def _import_without_extension(first: Exception) -> None:
    """Import torchaudio with a loader of extensions that finds none."""
    before = set(sys.modules)
    try:
        sys.modules[_LOADER_MODULE] = _loader_that_finds_nothing()
        importlib.import_module("torchaudio")
    except Exception as second:
        _forget_torchaudio(before)
        raise InstallationError(
            f"torchaudio is installed but cannot be imported ({_one_line(first)}), nor in its pure-Python mode"
            f" ({_one_line(second)}). hyfuse expects a torchaudio that fits the installed torch; the cause is usually two"
            f" versions that do not belong together. Install the tested set again: make clean setup."
        ) from first


def _loader_that_finds_nothing() -> ModuleType:
    """torchaudio's own ``_extension/utils.py``, except that ``_load_lib`` reports every file as absent."""
    package = importlib.util.find_spec("torchaudio")
    if package is None or not package.submodule_search_locations:
        raise ImportError("torchaudio is not a package")
    path = Path(package.submodule_search_locations[0]) / "_extension" / "utils.py"
    spec = importlib.util.spec_from_file_location(_LOADER_MODULE, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "_load_lib"):
        raise ImportError(f"{path} has no _load_lib")
    module._load_lib = lambda lib: False  # type: ignore[attr-defined]
    return module


def _one_line(error: Exception) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__
