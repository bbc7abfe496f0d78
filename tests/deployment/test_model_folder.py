"""Model folders: what is written is read, and what does not belong together is refused."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipelines.deployment.model_folder import read_model, write_model
from pipelines.errors import ModelError, StorageError
from tests.deployment.project import LEFT, RIGHT, Project, project

__all__ = ["project"]


@pytest.fixture
def folder(project: Project, tmp_path: Path) -> Path:
    """A copy of a model, to be spoilt."""
    copy = tmp_path / "model"
    shutil.copytree(project.model(), copy)
    return copy


def _edit(folder: Path, **changes: object) -> None:
    path = folder / "model.json"
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **changes}), encoding="utf-8")


def test_what_is_written_is_read(project: Project) -> None:
    made = project.exported(project.compared(), f"{LEFT}+{RIGHT} hyperbolic")
    found = read_model(project.model())
    for field in dataclasses.fields(made):
        if field.name not in ("heads", "map"):
            assert getattr(found, field.name) == getattr(made, field.name), field.name
    assert found.digest == made.digest
    for one, other in zip(found.heads, made.heads, strict=True):
        assert (one.fold, one.seed) == (other.fold, other.seed)
        assert one.parameters.keys() == other.parameters.keys()
        assert all(torch.equal(value, other.parameters[name]) for name, value in one.parameters.items())
        assert torch.equal(one.left_scaler.std, other.left_scaler.std)
        assert one.right_scaler is not None
        assert one.target_scaler is None
    assert torch.equal(found.map.points, made.map.points)


def test_a_folder_has_three_files_and_no_code(project: Project) -> None:
    assert sorted(path.name for path in project.model().iterdir()) == ["README.md", "heads.safetensors", "model.json"]


@pytest.mark.parametrize(
    "change",
    [
        {"outputs": ["neutral", "anger", "sadness"]},
        {"fusion": "concat"},
        {"warnings": []},
        {"more": 1},
        {"digest": None},
    ],
)
def test_a_description_edited_by_hand_is_refused(folder: Path, change: dict[str, object]) -> None:
    _edit(folder, **change)
    with pytest.raises(ModelError, match=r"model\.json was edited after the export.*hyfuse export"):
        read_model(folder)


def test_an_edited_description_with_a_digest_made_for_it_must_still_make_sense(folder: Path) -> None:
    from pipelines.deployment.model_folder import _digest

    described = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    del described["digest"], described["inputs"][0]["pool"]
    _edit(folder, **described, digest=_digest(described))
    with pytest.raises(ModelError, match="another version of hyfuse"):
        read_model(folder)


def test_the_card_may_be_edited(folder: Path) -> None:
    (folder / "README.md").write_text("my own words", encoding="utf-8")
    read_model(folder)


def test_other_tensors_are_refused(project: Project, folder: Path) -> None:
    shutil.copy(project.model(f"{LEFT}+{RIGHT} concat") / "heads.safetensors", folder)
    with pytest.raises(ModelError, match=r"heads\.safetensors does not belong to model\.json"):
        read_model(folder)


def test_swapped_tensors_are_refused(folder: Path) -> None:
    tensors = load_file(folder / "heads.safetensors")
    for name in [name for name in tensors if name.startswith("0.")]:
        other = f"1{name[1:]}"
        tensors[name], tensors[other] = tensors[other], tensors[name]
    save_file(tensors, folder / "heads.safetensors")
    with pytest.raises(ModelError, match="does not belong"):
        read_model(folder)


def test_half_a_file_is_refused(folder: Path) -> None:
    path = folder / "heads.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelError, match="does not belong"):
        read_model(folder)
    path = folder / "model.json"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelError, match="cannot be read"):
        read_model(folder)


def test_another_format_is_refused(folder: Path) -> None:
    _edit(folder, format=2)
    with pytest.raises(ModelError, match="is of format 2, but 1 is read here"):
        read_model(folder)
    (folder / "model.json").write_text("[]", encoding="utf-8")
    with pytest.raises(ModelError, match="is of format None"):
        read_model(folder)
    (folder / "model.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ModelError, match="cannot be read"):
        read_model(folder)


@pytest.mark.parametrize("name", ["model.json", "heads.safetensors"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(ModelError, match=f"{name} is not there. Models are made by `hyfuse export RUN`"):
        read_model(folder)


def test_what_is_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is not there"):
        read_model(tmp_path / "none")
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(ModelError, match="is not a folder"):
        read_model(tmp_path / "file")
    with pytest.raises(ModelError, match=r"model\.json is not there"):
        read_model(tmp_path)


def test_other_peoples_files_are_left_alone(project: Project, tmp_path: Path) -> None:
    model = project.exported(project.compared(), LEFT)
    (tmp_path / "thesis.tex").write_text("years", encoding="utf-8")
    with pytest.raises(ModelError, match="holds other files already"):
        write_model(model, tmp_path, "card")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(StorageError, match="--out"):
        write_model(model, tmp_path / "thesis.tex", "card")


def test_a_model_may_replace_a_model(project: Project, folder: Path) -> None:
    model = project.exported(project.compared(), LEFT)
    write_model(model, folder, "card")
    assert read_model(folder).name == LEFT
