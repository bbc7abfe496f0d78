"""Models on the Hugging Face Hub: put there in one commit, and fetched from there as ``hf:owner/name[@revision]``.

Three files travel (``model_folder``): whatever else lies in the folder stays. A new repository is private unless told to be public.
The token comes from ``$HF_TOKEN``, never from a command line, where others could read it. ``$HF_ENDPOINT`` names another Hub.

What is pushed is read first as whoever fetches it will read it, so an edited or damaged model is refused here.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.deployment.model_folder import CARD_FILE, HEADS_FILE, MODEL_FILE, ModelFolder, read_model
from pipelines.errors import ConfigError, HubError, ModelError

if TYPE_CHECKING:
    from huggingface_hub import HfApi

__all__ = ["FILES", "Pushed", "check_push", "model_path", "push_model"]

FILES: tuple[str, ...] = (CARD_FILE, HEADS_FILE, MODEL_FILE)
"""What a model is made of."""

_PREFIX = "hf:"
_PART = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9])?"
_REPOSITORY = re.compile(rf"{_PART}/{_PART}")
_REVISION = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._/-]{0,98}[A-Za-z0-9])?")
_TOKEN = "HF_TOKEN"
_OF_EVERY_REPOSITORY = {".gitattributes", CARD_FILE}


@dataclass(frozen=True)
class Pushed:
    """A model on the Hub.

    Attributes:
        url: of its page.
        commit: that holds it.
        created: whether the repository is new.
        private: whether only its owner sees it.
    """

    url: str
    commit: str
    created: bool
    private: bool


def check_push(folder: Path, repository: str, *, allow_random: bool = False) -> tuple[ModelFolder, dict[str, int]]:
    """Look at what is to be pushed, without a network.

    Args:
        folder: of ``hyfuse export``.
        repository: ``owner/name``.
        allow_random: whether encoders with random weights are allowed.

    Returns:
        The model, and the files with their sizes in bytes.

    Raises:
        ModelError: no such model, it was edited, has no card, or was made from random weights.
        ConfigError: that is no name of a repository.
    """
    if not _REPOSITORY.fullmatch(repository) or "--" in repository or ".." in repository:
        raise ConfigError(
            f"{repository!r} is no name of a repository on the Hub. Expected owner/name, as in ada/my-model: letters, digits, and"
            " -, _ or . between them."
        )
    model = read_model(folder)
    if model.random and not allow_random:
        raise ModelError(
            f"{folder} was made from random weights of {', '.join(model.random)}; nobody is served by having it. Add --allow-random"
            " if you want to try the way there."
        )
    if not (folder / CARD_FILE).is_file():
        raise ModelError(f"{folder} has no {CARD_FILE}, its model card. Export it anew with `hyfuse export`.")
    return model, {name: (folder / name).stat().st_size for name in FILES}


def push_model(
    folder: Path,
    repository: str,
    *,
    public: bool = False,
    message: str = "",
    revision: str = "main",
    allow_random: bool = False,
) -> Pushed:
    """Put a model on the Hub, all of its files in one commit.

    Args:
        folder: of ``hyfuse export``.
        repository: ``owner/name``; made if it is not there.
        public: whether everybody may see it.
        message: of the commit; the model's name unless given.
        revision: branch; made if it is not there.
        allow_random: whether encoders with random weights are allowed.

    Raises:
        ModelError: no such model, or it must not be pushed; see :func:`check_push`.
        ConfigError: no name of a repository or branch, or a public repository that was not said to be public.
        HubError: no token, no network, the Hub refuses, or the repository holds something else.
    """
    from huggingface_hub import CommitOperationAdd
    from huggingface_hub.errors import RepositoryNotFoundError

    model, _ = check_push(folder, repository, allow_random=allow_random)
    if not _REVISION.fullmatch(revision):
        raise ConfigError(
            f"{revision!r} is no name of a branch. Expected letters, digits, and -, _, . or / between them."
        )
    token = os.environ.get(_TOKEN, "").strip()
    if not token:
        raise HubError(
            f"There is no token for the Hub. Make one that may write at https://huggingface.co/settings/tokens, then `export"
            f" {_TOKEN}=hf_…` and run the same command again."
        )
    api = _api(token)
    try:
        try:
            private, there = _state(api, repository)
            created = False
        except RepositoryNotFoundError:
            api.create_repo(repository, private=not public)
            private, there, created = not public, set(), True
        if not private and not public:
            raise ConfigError(
                f"{repository} is public already: whatever is pushed there is seen by everybody. Say --public if that is meant, or"
                " name another repository."
            )
        if there - _OF_EVERY_REPOSITORY and MODEL_FILE not in there:
            raise HubError(
                f"{repository} holds something else ({', '.join(sorted(there - _OF_EVERY_REPOSITORY)[:3])}) and no model of hyfuse."
                " Name another repository."
            )
        if revision != "main":
            api.create_branch(repository, branch=revision, exist_ok=True)
        commit = api.create_commit(
            repository,
            operations=[
                CommitOperationAdd(path_in_repo=name, path_or_fileobj=(folder / name).read_bytes()) for name in FILES
            ],
            commit_message=message or f"{model.name}, trained on {model.trained_on['corpus']}",
            revision=revision,
        )
    except (ConfigError, HubError):
        raise
    except Exception as error:  # hub, network and disk errors have no common base; each means that it is not there
        raise _explained(error, f"{repository} could not be pushed", writing=True) from error
    return Pushed(f"{api.endpoint}/{repository}", str(commit.oid), created, private)


def model_path(text: str) -> Path:
    """The folder of a model: as it is, or fetched from the Hub into its cache.

    Args:
        text: a folder, or ``hf:owner/name[@revision]``.

    Raises:
        ConfigError: ``hf:`` with something else behind it.
        HubError: it is neither in the cache nor to be fetched, or is no model of hyfuse.
    """
    if not text.startswith(_PREFIX):
        return Path(text)
    repository, _, revision = text.removeprefix(_PREFIX).partition("@")
    if not _REPOSITORY.fullmatch(repository) or not _REVISION.fullmatch(revision or "main"):
        raise ConfigError(f"{text!r} names no model on the Hub. Expected hf:owner/name or hf:owner/name@revision.")
    try:
        found = _api(os.environ.get(_TOKEN) or None).snapshot_download(
            repository, revision=revision or None, allow_patterns=list(FILES)
        )
    except Exception as error:  # as above
        raise _explained(error, f"{text} could not be fetched", writing=False) from error
    if not (Path(str(found)) / MODEL_FILE).is_file():
        raise HubError(f"{text} is no model of hyfuse: there is no {MODEL_FILE} in it. Check the name.")
    return Path(str(found))


def _api(token: str | None) -> HfApi:
    from huggingface_hub import HfApi

    return HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None, token=token, library_name="hyfuse")


def _state(api: HfApi, repository: str) -> tuple[bool, set[str]]:
    """Whether a repository is private, and its files."""
    found = api.model_info(repository)
    return bool(found.private), {sibling.rfilename for sibling in found.siblings or ()}


def _explained(error: Exception, what: str, *, writing: bool) -> HubError:
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    if isinstance(error, OfflineModeIsEnabled):
        return HubError(f"{what}: HF_HUB_OFFLINE is set. Unset it where there is a network.")
    response: Any = getattr(error, "response", None)
    if not isinstance(error, HfHubHTTPError) or response is None:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        hint = " It is not in the Hub's cache either." if isinstance(error, LocalEntryNotFoundError) else ""
        return HubError(f"{what}: the Hub cannot be reached ({reason}).{hint} Check the network and $HF_ENDPOINT.")
    status = int(response.status_code)
    said = str(getattr(error, "server_message", "") or "").strip().rstrip(".")
    told = f" It says: {said}." if said else ""
    if status == 401 and writing:
        return HubError(f"{what}: the Hub does not know the token in ${_TOKEN}.{told} Make another one.")
    if status == 403:
        return HubError(
            f"{what}: the token in ${_TOKEN} may not do that.{told} It needs the right to write to this owner's repositories."
        )
    if status in (401, 404):
        return HubError(
            f"{what}: there is no such repository or revision, or it is private and ${_TOKEN} does not open it.{told} Check the"
            " name."
        )
    if status == 409:
        return HubError(f"{what}: it is there already and this token does not see it.{told} Name another repository.")
    return HubError(f"{what}: the Hub answered {status}.{told} Try again later.")
