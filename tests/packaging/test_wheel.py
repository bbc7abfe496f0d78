"""What pip makes of the repository: the wheel and the source archive, installed into an environment of their own and tried."""

from __future__ import annotations

import os
import re
import shutil
import site
import subprocess
import sys
import tarfile
import venv
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

import pipelines
from tests.cli.conftest import write_corpus

ROOT = Path(__file__).resolve().parents[2]
_LEFT_OUT = shutil.ignore_patterns(
    ".venv", ".git", "__pycache__", ".*_cache", "cache", "runs", "build", "dist", "screenshots"
)


def _said(command: list[object], **options: object) -> str:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=280, check=False, **options)  # type: ignore[call-overload]
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return str(done.stdout)


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The wheel and the source archive, made offline with the build backend that is installed here."""
    pytest.importorskip("hatchling", reason="the build backend is not installed: pip install hatchling")
    folder = tmp_path_factory.mktemp("packaging")
    copy = folder / "checkout"
    shutil.copytree(ROOT, copy, ignore=_LEFT_OUT)
    backend = "import sys; from hatchling import build as b; print(b.build_sdist(sys.argv[1])); print(b.build_wheel(sys.argv[1]))"
    _said([sys.executable, "-c", backend, folder], cwd=copy)
    (sdist,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    return wheel, sdist


def test_what_is_in_the_wheel(archives: tuple[Path, Path]) -> None:
    wheel, _ = archives
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (metadata,) = [name for name in names if name.endswith("METADATA")]
        described = Parser().parsestr(archive.read(metadata).decode())
    cards = {path.name for path in (ROOT / "data_manifests").glob("*.toml")}
    assert {Path(name).name for name in names if name.startswith("pipelines/data_manifests/")} >= cards
    assert {name.split("/")[0] for name in names} == {
        "hyfuse_cli",
        "pipelines",
        f"hyfuse-{pipelines.__version__}.dist-info",
    }
    assert any(name.startswith("pipelines/reports/static/") for name in names)
    assert not [
        name for name in names if "__pycache__" in name or name.endswith((".wav", ".tflite", ".th", ".safetensors"))
    ]
    assert described["Version"] == pipelines.__version__
    assert described["License-Expression"] == "Apache-2.0"
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_what_is_in_the_source_archive(archives: tuple[Path, Path]) -> None:
    _, sdist = archives
    with tarfile.open(sdist) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    assert {"pyproject.toml", "README.md", "LICENSE", "pipelines/__init__.py", "data_manifests/demo.toml"} <= names


@pytest.mark.slow
def test_installed_into_a_clean_environment(archives: tuple[Path, Path], tmp_path: Path) -> None:
    """Nothing of the checkout is on the path; what hyfuse depends on comes from the environment of the tests."""
    wheel, _ = archives
    clean = tmp_path / "clean"
    venv.create(clean, with_pip=False, symlinks=True)
    (packages,) = clean.glob("lib/python*/site-packages")
    _said([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", packages, wheel])
    # Behind its own packages; an editable installation of hyfuse in there is a .pth file, which is not read from here.
    (packages / "dependencies.pth").write_text("\n".join(site.getsitepackages()))
    corpus = write_corpus(tmp_path / "corpus", takes=2)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HYFUSE_", "PYTHON"))}
    environment |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}

    def hyfuse(*arguments: object) -> str:
        program = [clean / "bin" / "python", "-m", "hyfuse_cli.app"]
        return _said([*program, *arguments], cwd=tmp_path, env=environment)

    where = _said(
        [clean / "bin" / "python", "-c", "import pipelines; print(pipelines.__file__)"], cwd=tmp_path, env=environment
    )
    assert Path(where.strip()).is_relative_to(clean)
    assert hyfuse("--version").strip() == f"hyfuse {pipelines.__version__}"
    assert "wavlm" in hyfuse("models", "list")
    assert "emodb" in hyfuse("corpora", "list")
    assert "CC0" in hyfuse("corpora", "show", "emodb")
    hyfuse("extract", "--corpus", corpus, "--weights", "random", "--model", "descriptors", "--model", "encodec-tiny")
    shown = hyfuse("compare", "--seeds", 1, "--epochs", 2, "--fusions", "concat", "--protocol", "speaker-2fold", "--workers", 1,
                   "--run", "smoke")  # fmt: skip
    assert "descriptors" in shown
    hyfuse("report", "runs/smoke")
    assert (tmp_path / "runs/smoke/report.html").stat().st_size > 100_000


def test_the_version_is_one() -> None:
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.findall(r"^version: (.+)$", citation, re.MULTILINE) == [pipelines.__version__]
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.findall(r"^## ([\d.]+)", changes, re.MULTILINE)[0] == pipelines.__version__


def test_the_citation_has_what_the_format_asks_for() -> None:
    """Citation File Format 1.2.0: required keys; no key that it does not know."""
    yaml = pytest.importorskip("yaml", reason="PyYAML comes with transformers")
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    known = {"cff-version", "message", "title", "authors", "type", "version", "date-released", "license", "keywords"}
    assert set(citation) <= known
    assert citation["cff-version"] == "1.2.0"
    assert citation["authors"] == [{"name": "The hyfuse developers"}]
    assert citation["type"] == "software"
    assert citation["license"] == "Apache-2.0"
