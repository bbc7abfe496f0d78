"""Finding weights: the user's folder, then the Hub cache, then a download; always checked.

Weights are looked for, in this order, in ``weights_dir`` (the ``--weights-dir`` option), ``$HYFUSE_WEIGHTS``, an
installed Python package that carries them (``spec.package``; its code is not imported), the Hugging Face Hub cache, and
then downloaded. In a folder, a file is found as ``FOLDER/<file>``, ``FOLDER/<encoder>/<file>`` or
``FOLDER/<owner>/<repository>/<file>``; a checkpoint of several files needs a folder of its own.

Direct downloads are checked against their sha256, Hub downloads against the pinned revision. Nothing is unpickled:
``torch.load(weights_only=True)`` or safetensors. ``WeightsInfo.digest`` is the sha256 of the parameters as loaded, so that
a store knows the numbers it was made with, wherever they came from.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import importlib.util
import os
import socket
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.encoders.catalogue import EncoderSpec, WeightFile
from pipelines.errors import StorageError, WeightsError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "Progress",
    "WeightsInfo",
    "file_sha256",
    "find_checkpoint",
    "find_file",
    "load_pickle_free",
    "random_initialisation",
    "search_folders",
    "state_digest",
]

Progress = Callable[[str, int, int], None]
"""Called during a download with (file name, bytes done, bytes in all or 0 if unknown)."""


@dataclass(frozen=True)
class WeightsInfo:
    """Where an encoder's parameters came from.

    Attributes:
        kind: ``pretrained`` or ``random``.
        source: repository, address or file they were read from; ``random`` names the seed rule.
        revision: pinned revision if the source has been checked against it, else ``unverified``; empty for random.
        digest: sha256 of the parameters as loaded (names, shapes, dtypes, bytes).
        licence: of the weights.
    """

    kind: str
    source: str
    revision: str
    digest: str
    licence: str


def search_folders(weights_dir: Path | None = None) -> list[Path]:
    """Folders in which weights are looked for before the Hub cache, in order."""
    folders = [weights_dir] if weights_dir is not None else []
    if os.environ.get("HYFUSE_WEIGHTS"):
        folders.append(Path(os.environ["HYFUSE_WEIGHTS"]))
    return [folder.expanduser() for folder in folders]


def _candidates(spec: EncoderSpec, folder: Path) -> list[Path]:
    """Places below a user's folder where the files of an encoder may lie, most specific first."""
    places = [folder / spec.name]
    if spec.repository.count("/") == 1:
        places += [folder / spec.repository, folder / spec.repository.split("/")[1]]
    return [*places, folder]


def file_sha256(path: Path) -> str:
    """sha256 of a file, as lower-case hex."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def state_digest(state: Mapping[str, Tensor]) -> str:
    """sha256 over names, shapes, dtypes and bytes of a state dict, independent of the order of its keys."""
    import torch

    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return digest.hexdigest()


@contextmanager
def random_initialisation(spec: EncoderSpec) -> Iterator[None]:
    """Build a model inside this block and it gets the encoder's own random weights.

    torch's CPU generator is seeded by the encoder's name and put back afterwards, so the weights do not depend on what ran
    before, and nothing that runs after depends on them.
    """
    import torch

    seed = int.from_bytes(hashlib.sha256(f"hyfuse random weights {spec.name}".encode()).digest()[:7], "big")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def load_pickle_free(path: Path) -> dict[str, Any]:
    """Read a state dict without running any code from the file.

    Raises:
        WeightsError: the file is damaged, half-downloaded, or holds more than tensors.
    """
    import torch
    from safetensors.torch import load_file

    try:
        with path.open("rb"):  # a file that may not be read is told apart from one that is damaged
            pass
    except OSError as error:
        raise WeightsError(f"{path} cannot be opened: {error}. Check the path and its permissions.") from error
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        state = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(state, Mapping):
            raise TypeError(f"a {type(state).__name__} instead of a dictionary of tensors")
        return dict(state)
    # Damage shows as OSError, EOFError, IndexError, struct.error, AssertionError, SafetensorError and more: no common base.
    except Exception as error:
        reason = (str(error).strip().splitlines() or ["it ends too early"])[0]
        raise WeightsError(
            f"{path} cannot be read as weights ({type(error).__name__}: {reason}). The file is damaged, half-downloaded, or"
            " not a file of tensors. Delete it and run the command again, or copy it once more."
        ) from error


def _missing(spec: EncoderSpec, names: Sequence[str], weights_dir: Path | None, reason: str) -> WeightsError:
    folders = search_folders(weights_dir)
    looked = ", ".join(f"{folder}{'' if folder.is_dir() else ' (which does not exist)'}" for folder in folders)
    looked = looked or "no folder ($HYFUSE_WEIGHTS is not set)"
    target = folders[0] if folders else Path("~/hyfuse-weights")
    source = next((file.url for file in spec.files if file.url), "")
    if not source and spec.repository:
        source = f"https://huggingface.co/{spec.repository}"
    elif source and spec.repository and spec.repository not in source:
        source = f"{source} ({spec.repository})"
    revision = f" at revision {spec.revision}" if spec.revision else ""
    setting = "" if folders else f" and set HYFUSE_WEIGHTS={target}"
    return WeightsError(
        f"The weights of {spec.name!r} are not here: {', '.join(names)} {'was' if len(names) == 1 else 'were'} looked for in"
        f" {looked} and in the Hugging Face Hub cache, and could not be downloaded ({reason}). Source: {source}{revision};"
        f" licence: {spec.licence}. Put {'it' if len(names) == 1 else 'them'} into {target / spec.name}{setting}, or run again"
        " with a network; to try the command without real weights, add `--weights random`."
    )


def _check_sha256(path: Path, file: WeightFile, spec: EncoderSpec, *, downloaded: bool = False) -> None:
    if not file.sha256:
        return
    found = file_sha256(path)
    if found.startswith(file.sha256):
        return
    source = file.url or spec.repository
    raise WeightsError(
        f"{f'What {source} sent' if downloaded else path} is not the file that {spec.name!r} needs: its sha256 is {found},"
        f" expected {file.sha256}. It is damaged, half-downloaded, or another version. "
        + ("Nothing was kept; run the command again." if downloaded else f"Delete it and get it again from {source}.")
    )


def find_file(
    spec: EncoderSpec, file: WeightFile, *, weights_dir: Path | None = None, progress: Progress | None = None
) -> Path:
    """Path of one checked file of weights, downloaded if need be.

    Raises:
        WeightsError: the file is nowhere and cannot be downloaded, or its digest is wrong.
    """
    for folder in search_folders(weights_dir):
        for place in _candidates(spec, folder):
            for name in (file.name, *file.aliases):
                path = place / name
                if path.is_file():
                    _check_sha256(path, file, spec)
                    return path
    if file.url:
        return _download_url(spec, file, weights_dir=weights_dir, progress=progress)
    path = _hub_file(spec, file.name, weights_dir=weights_dir, progress=progress)
    _check_sha256(path, file, spec)
    return path


def find_checkpoint(
    spec: EncoderSpec, *, weights_dir: Path | None = None, progress: Progress | None = None
) -> tuple[Path, str]:
    """Folder of a checkpoint of several files (``spec.files``), in the layout that ``from_pretrained`` reads.

    A file name may hold alternatives, ``model.safetensors|pytorch_model.bin``: one of them is enough, earlier ones first.

    Returns:
        The folder, and its revision: the pinned one for the Hub and for a package whose files have the digests of the catalogue,
        ``unverified`` for a user's own folder.

    Raises:
        WeightsError: the files are nowhere and cannot be downloaded.
    """
    alternatives = [file.name.split("|") for file in spec.files]
    for folder in search_folders(weights_dir):
        for place in _candidates(spec, folder):
            if all(any((place / name).is_file() for name in names) for names in alternatives):
                return place, "unverified"
    if (packaged := _packaged(spec)) is not None:
        return packaged, spec.revision
    path = Path()
    for names in alternatives:
        for name in names:
            try:
                path = _hub_file(spec, name, weights_dir=weights_dir, progress=progress)
                break
            except WeightsError as error:
                if name == names[-1]:
                    # A user's own folder needs all of them, so all are named.
                    wanted = [" or ".join(files) for files in alternatives]
                    raise _missing(spec, wanted, weights_dir, _reason(error.__cause__ or error)) from error
    return path.parent, spec.revision


def _packaged(spec: EncoderSpec) -> Path | None:
    """Folder of a checkpoint inside an installed package; None where there is none.

    Raises:
        WeightsError: a file there is not the one of the pinned revision.
    """
    module, _, folder = spec.package.partition("/")
    found = importlib.util.find_spec(module) if module else None
    if found is None or found.origin is None:
        return None
    place = Path(found.origin).parent / folder
    if not all((place / file.name).is_file() for file in spec.files):
        return None
    for file in spec.files:
        _check_sha256(place / file.name, file, spec)
    return place


def _hub_file(spec: EncoderSpec, name: str, *, weights_dir: Path | None, progress: Progress | None) -> Path:
    """A file of the pinned revision from the Hub cache, or downloaded into it."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    revision = spec.revision or None
    cached = try_to_load_from_cache(spec.repository, name, revision=revision)
    if isinstance(cached, str):
        return Path(cached)
    if reason := _unreachable_hub():
        raise _missing(spec, [name], weights_dir, reason) from ConnectionError(reason)
    try:
        return Path(hf_hub_download(spec.repository, name, revision=revision, tqdm_class=_tqdm_class(name, progress)))
    except Exception as error:  # hub, network and disk errors have no common base; each means the file is not here
        raise _missing(spec, [name], weights_dir, _reason(error)) from error


def _unreachable_hub() -> str:
    """Why the Hub cannot be reached, as far as that is known at once; the Hub's own client retries for half a minute."""
    from huggingface_hub import constants

    host = urllib.parse.urlsplit(constants.ENDPOINT).hostname or ""
    if constants.is_offline_mode():
        return "HF_HUB_OFFLINE is set"
    if urllib.request.getproxies():
        return ""  # names are resolved by the proxy
    try:
        socket.getaddrinfo(host, 443)
    except OSError as error:
        return f"no network: {host} is not found ({error.strerror or error})"
    return ""


def _reason(error: BaseException) -> str:
    """First line of an error."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def _tqdm_class(name: str, progress: Progress | None) -> Any:
    """A stand-in for tqdm that reports to ``progress`` and writes nothing itself."""
    from tqdm.auto import tqdm

    class Quiet(tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            kwargs.pop("name", None)
            kwargs["disable"] = True
            self.bytes_done = int(kwargs.get("initial") or 0)
            super().__init__(*args, **kwargs)
            self.bytes_total = int(kwargs.get("total") or 0)

        def update(self, n: float | None = 1) -> bool | None:
            self.bytes_done += int(n or 0)
            if progress is not None:
                progress(name, self.bytes_done, self.bytes_total)
            return None

    return Quiet


def _download_folder() -> Path:
    base = os.environ.get("HYFUSE_WEIGHTS") or Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "hyfuse" / "weights"
    return Path(base).expanduser()


def _download_url(spec: EncoderSpec, file: WeightFile, *, weights_dir: Path | None, progress: Progress | None) -> Path:
    """Download a file to hyfuse's own weights folder; the name appears only when it is whole and checked."""
    target = _download_folder() / spec.name / file.name
    if target.is_file():
        _check_sha256(target, file, spec)
        return target
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "TRUE", "YES", "ON"}:
        raise _missing(spec, [file.name], weights_dir, "HF_HUB_OFFLINE is set")
    partial = target.with_name(f".partial-{file.name}-{os.getpid()}")
    try:
        # Opened before the folder is made: without a network nothing is left behind.
        with _connected(spec, file, weights_dir) as response:
            target.parent.mkdir(parents=True, exist_ok=True)
            total = int(response.headers.get("Content-Length") or 0)
            done = 0
            with partial.open("wb") as handle:
                while chunk := _received(response, spec, file, weights_dir):
                    handle.write(chunk)
                    done += len(chunk)
                    if progress is not None:
                        progress(file.name, done, total)
        if done < total:  # http.client takes a connection that ends early for the end of the file
            raise _missing(spec, [file.name], weights_dir, f"the connection ended after {done} of {total} bytes")
        _check_sha256(partial, file, spec, downloaded=True)
        os.replace(partial, target)
        return target
    except OSError as error:
        if isinstance(error, WeightsError):
            raise
        raise StorageError(
            f"{target} cannot be written: {error}. Set HYFUSE_WEIGHTS to a folder with room and permission."
        ) from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def _connected(spec: EncoderSpec, file: WeightFile, weights_dir: Path | None) -> Any:
    """The open response of a direct download."""
    try:
        return urllib.request.urlopen(file.url, timeout=30)
    except (OSError, http.client.HTTPException) as error:
        reason = error if isinstance(error, urllib.error.HTTPError) else getattr(error, "reason", error)
        raise _missing(spec, [file.name], weights_dir, str(reason) or type(error).__name__) from error


def _received(response: Any, spec: EncoderSpec, file: WeightFile, weights_dir: Path | None) -> bytes:
    """The next piece of a download; kept apart from writing it, which fails for other reasons."""
    try:
        return bytes(response.read(1 << 20))
    except (OSError, http.client.HTTPException) as error:
        raise _missing(spec, [file.name], weights_dir, str(error) or type(error).__name__) from error
