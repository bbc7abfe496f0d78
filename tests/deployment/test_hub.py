"""Models on the Hub, against a Hub on loopback."""

from __future__ import annotations

import dataclasses
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.deployment.hub import FILES, model_path, push_model
from pipelines.deployment.model_folder import read_model, write_model
from pipelines.errors import ConfigError, HubError, ModelError
from tests.cli.conftest import Runner, hyfuse
from tests.deployment.fake_hub import TOKEN, FakeHub, fake_hub
from tests.deployment.project import LEFT, Project, project

__all__ = ["hyfuse", "project"]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    """A Hub, a token for it, an empty cache, and no other network."""
    import huggingface_hub.constants as constants

    with fake_hub() as running:
        monkeypatch.setenv("HF_ENDPOINT", running.address)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
        monkeypatch.setattr(
            constants, "HF_HUB_DISABLE_XET", True
        )  # chunked storage needs a server of its own; LFS does not
        yield running


@pytest.fixture
def folder(project: Project, tmp_path: Path) -> Path:
    """A model that says it was made from real weights."""
    model = read_model(project.model(LEFT))
    left = dataclasses.replace(model.inputs[0], weights_kind="pretrained")
    write_model(dataclasses.replace(model, inputs=(left,), warnings=()), tmp_path / "real", "# my card\n")
    return tmp_path / "real"


def test_pushed_and_fetched_it_is_the_same(hub: FakeHub, folder: Path) -> None:
    (folder / "notes.txt").write_text("mine", encoding="utf-8")
    done = push_model(folder, "ada/my-model")
    assert done.created
    assert done.private
    assert done.url == f"{hub.address}/ada/my-model"
    there = hub.files("ada/my-model")
    assert set(there) == {*FILES, ".gitattributes"}
    assert all(there[name] == (folder / name).read_bytes() for name in FILES)
    assert hub.repositories["ada/my-model"].private
    assert hub.repositories["ada/my-model"].messages == [f"{LEFT}, trained on my"]  # one commit
    assert len(hub.large) == 1  # the tensors, by LFS
    fetched = model_path("hf:ada/my-model")
    assert read_model(fetched).digest == read_model(folder).digest
    assert model_path(f"hf:ada/my-model@{done.commit}") == fetched


def test_again_it_is_another_commit(hub: FakeHub, folder: Path, project: Project) -> None:
    push_model(folder, "ada/my-model", message="first")
    model = read_model(folder)
    write_model(dataclasses.replace(model, versions={**model.versions, "more": "1"}), folder, "# card")
    done = push_model(folder, "ada/my-model", message="second")
    assert not done.created
    assert hub.repositories["ada/my-model"].messages == ["first", "second"]
    assert read_model(model_path("hf:ada/my-model")).digest == read_model(folder).digest


def test_a_branch_of_its_own(hub: FakeHub, folder: Path) -> None:
    push_model(folder, "ada/my-model", public=True, revision="v1.0")
    assert not hub.repositories["ada/my-model"].private
    assert set(hub.files("ada/my-model", "v1.0")) == {*FILES, ".gitattributes"}
    assert set(hub.files("ada/my-model")) == {".gitattributes"}
    assert read_model(model_path("hf:ada/my-model@v1.0")).name == LEFT


def test_random_weights_are_not_given_away(hub: FakeHub, project: Project) -> None:
    with pytest.raises(ModelError, match=f"random weights of {LEFT}.*--allow-random"):
        push_model(project.model(LEFT), "ada/my-model")
    assert hub.asked == []
    push_model(project.model(LEFT), "ada/my-model", allow_random=True)


def test_what_must_not_be_pushed_asks_nobody(hub: FakeHub, folder: Path, tmp_path: Path) -> None:
    for name in ("my-model", "ada/my/model", "ada/-x", "ada/a b", "ada/a--b", "https://huggingface.co/ada/x"):
        with pytest.raises(ConfigError, match="is no name of a repository"):
            push_model(folder, name)
    with pytest.raises(ConfigError, match="is no name of a branch"):
        push_model(folder, "ada/my-model", revision="a b")
    with pytest.raises(ModelError, match="is not there"):
        push_model(tmp_path / "none", "ada/my-model")
    shutil.copytree(folder, tmp_path / "edited")
    path = tmp_path / "edited" / "model.json"
    path.write_text(path.read_text(encoding="utf-8").replace('"anger"', '"joy"'), encoding="utf-8")
    with pytest.raises(ModelError, match="edited after the export"):
        push_model(tmp_path / "edited", "ada/my-model")
    (folder / "README.md").unlink()
    with pytest.raises(ModelError, match=r"has no README\.md"):
        push_model(folder, "ada/my-model")
    assert hub.asked == []


def test_no_token(hub: FakeHub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(HubError, match=r"no token for the Hub.*export HF_TOKEN=hf_"):
        push_model(folder, "ada/my-model")
    assert hub.asked == []


def test_a_token_that_nobody_knows(hub: FakeHub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_" + "b" * 34)
    with pytest.raises(HubError, match=r"does not know the token in \$HF_TOKEN") as caught:
        push_model(folder, "ada/my-model")
    assert "bbbb" not in str(caught.value)


def test_somebody_elses_name(hub: FakeHub, folder: Path) -> None:
    with pytest.raises(HubError, match=r"may not do that\. It says: .*namespace eve.*right to write"):
        push_model(folder, "eve/my-model")


def test_a_repository_that_holds_something_else(hub: FakeHub, folder: Path) -> None:
    hub.add("ada/thesis", {"thesis.tex": b"years", "README.md": b"mine"})
    with pytest.raises(HubError, match=r"holds something else \(thesis\.tex\)"):
        push_model(folder, "ada/thesis")
    assert hub.files("ada/thesis") == {"thesis.tex": b"years", "README.md": b"mine"}
    hub.add("ada/empty", {".gitattributes": b"", "README.md": b""})
    assert not push_model(folder, "ada/empty").created


def test_what_is_public_stays_public_only_if_meant(hub: FakeHub, folder: Path) -> None:
    hub.add("ada/open", {}, private=False)
    with pytest.raises(ConfigError, match=r"ada/open is public already.*--public"):
        push_model(folder, "ada/open")
    assert hub.files("ada/open") == {}
    assert not push_model(folder, "ada/open", public=True).private


def test_a_hub_in_trouble(hub: FakeHub, folder: Path) -> None:
    hub.refuse["POST /api/models/ada/my-model/commit"] = (400, "the moon is wrong")
    with pytest.raises(HubError, match=r"the Hub answered 400.*the moon is wrong"):
        push_model(folder, "ada/my-model")
    hub.refuse["POST /api/repos/create"] = (409, "You already created this model repo")
    with pytest.raises(HubError, match="is there already and this token does not see it"):
        push_model(folder, "ada/other")


def test_no_network(hub: FakeHub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{free.getsockname()[1]}")
        with pytest.raises(HubError, match="ada/my-model could not be pushed: the Hub cannot be reached"):
            push_model(folder, "ada/my-model")
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="could not be pushed: HF_HUB_OFFLINE is set"):
        push_model(folder, "ada/my-model")


def test_what_cannot_be_fetched(hub: FakeHub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="names no model on the Hub"):
        model_path("hf:my-model")
    with pytest.raises(HubError, match="hf:ada/none could not be fetched: there is no such repository"):
        model_path("hf:ada/none")
    push_model(folder, "ada/my-model")
    with pytest.raises(HubError, match="no such repository or revision"):
        model_path("hf:ada/my-model@v9")
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(HubError, match="or it is private"):
        model_path("hf:ada/my-model")
    hub.add("ada/thesis", {"thesis.tex": b"years"}, private=False)
    with pytest.raises(HubError, match=r"no model of hyfuse: there is no model\.json"):
        model_path("hf:ada/thesis")
    assert model_path("some/folder") == Path("some/folder")


def test_on_the_command_line(hub: FakeHub, hyfuse: Runner, project: Project) -> None:
    tried = hyfuse("push", project.model(LEFT), "ada/my-model", "--allow-random", "--dry-run")
    assert tried.status == 0
    assert "To ada/my-model (main, private): README.md (" in tried.err
    assert "Nothing was uploaded" in tried.err
    assert hub.asked == []
    done = hyfuse("push", project.model(LEFT), "ada/my-model", "--allow-random", "-m", "try")
    assert done.status == 0
    assert f"RANDOM weights: {LEFT}" in done.out
    assert "a new private repository" in done.err
    assert "Next, wherever the encoders' weights are: `hyfuse predict hf:ada/my-model FILE…`" in done.err
    found = hyfuse("predict", "hf:ada/my-model", project.data / "s0_anger_0.wav")
    assert found.status == 0
    assert "s0_anger_0.wav" in found.out
    refused = hyfuse("push", project.model(LEFT), "ada/my-model")
    assert refused.status == 2
    assert "nobody is served" in refused.err
