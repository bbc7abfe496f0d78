"""Every case runs in an interpreter of its own: what is tested is what importing does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

_ROOT = Path(__file__).resolve().parents[2]

# The parts of torchaudio that the guard touches, in small: the loader of extensions and the package that calls it on import.
_INIT = "from . import _extension\nfrom . import functional\n"
_EXTENSION = "from .utils import _load_lib\n_IS_TORCHAUDIO_EXT_AVAILABLE = _load_lib('_torchaudio')\n"


def _run(code: str, *paths: Path) -> str:
    """Run code with ``paths`` searched first; its output, or its traceback as a failure."""
    setup = f"import sys; sys.path[:0] = {[str(path) for path in (*paths, _ROOT)]!r}\n"
    guard = "from pipelines.encoders.torchaudio_guard import ensure_torchaudio_importable as ensure\n"
    done = subprocess.run([sys.executable, "-c", setup + guard + code], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def _fake_torchaudio(folder: Path, load_lib: str, init: str = _INIT) -> Path:
    package = folder / "torchaudio"
    (package / "_extension").mkdir(parents=True)
    (package / "__init__.py").write_text(init)
    (package / "functional.py").write_text("VALUE = 7\n")
    (package / "_extension" / "__init__.py").write_text(_EXTENSION)
    (package / "_extension" / "utils.py").write_text(f"def _load_lib(lib):\n    {load_lib}\n")
    return folder


def test_working_torchaudio_is_not_touched(tmp_path: Path) -> None:
    path = _fake_torchaudio(tmp_path, "return True")
    code = (
        "import sys\nprint(ensure(), ensure())\nimport torchaudio._extension.utils as utils\n"
        "print(utils._load_lib('x'), utils._load_lib.__module__, utils.__spec__.origin == utils.__file__)"
    )
    assert _run(code, path) == "compiled compiled\nTrue torchaudio._extension.utils True"


@pytest.mark.parametrize(
    "failure", ["raise OSError('libc10_cuda.so: cannot open')", "raise RuntimeError('other CUDA version')"]
)
def test_extension_that_cannot_load_is_switched_off(tmp_path: Path, failure: str) -> None:
    path = _fake_torchaudio(tmp_path, failure)
    code = "print(ensure(), ensure())\nimport torchaudio.functional\nprint(torchaudio.functional.VALUE)"
    assert _run(code, path) == "python python\n7"


def test_torchaudio_broken_otherwise_is_an_error_that_leaves_nothing(tmp_path: Path) -> None:
    path = _fake_torchaudio(tmp_path, "raise OSError('libc10_cuda.so')", _INIT + "raise ValueError('half installed')\n")
    code = (
        "import sys\nfrom pipelines.errors import InstallationError\n"
        "try:\n    ensure()\nexcept InstallationError as error:\n    print(error)\n"
        "print([name for name in sys.modules if name.startswith('torchaudio')])"
    )
    message, left = _run(code, path).splitlines()
    assert "torchaudio is installed but cannot be imported (OSError: libc10_cuda.so)" in message
    assert "pure-Python mode (ValueError: half installed)" in message
    assert "make clean setup" in message
    assert left == "[]"


def test_absent_torchaudio_is_no_error() -> None:
    code = "import importlib.util\nimportlib.util.find_spec = lambda name: None\nprint(ensure())"
    assert _run(code) == "absent"


def test_the_installed_libraries_import() -> None:
    code = (
        "print(ensure() in ('compiled', 'python', 'absent'))\n"
        "from transformers import WavLMModel\nimport speechbrain.lobes.features, encodec\n"
        "import torch, torchaudio\nprint(torchaudio.functional.melscale_fbanks(9, 0.0, 8000.0, 4, 16000).shape)"
    )
    assert _run(code) == "True\ntorch.Size([9, 4])"
