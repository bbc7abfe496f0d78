"""Downloads of open corpora from audEERING's registry, through the package audb; nothing is downloaded elsewhere in ``pipelines``.

What audb knows is used for where the repositories are, how they are reached and which files a release consists of. Its own loader
is not: it unpickles tables of an earlier call and reads YAML that may run code. Here tables and the header are only copied, and
:mod:`pipelines.corpora.audformat_folder` reads them safely.

* The release is pinned in the card.
* A file appears under its name only when it is whole and has the checksum that the release states. Whatever is there already with
  that checksum is not fetched again, so the same call goes on after an interruption; ``db.yaml`` comes last.
* The folder is marked with what is fetched into it. A folder that holds anything else is refused: nothing of the user's is ever
  replaced.
* A licence is accepted once per corpus and remembered in ``$XDG_CONFIG_HOME/hyfuse/licences.json``; when its text changes, it is
  asked for again.

Only recordings, tables and the header are fetched, not the documents attached to a release.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import hashlib
import json
import os
import shlex
import shutil
import socket
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Any

from pipelines.corpora.cards import AudbSource, Card
from pipelines.errors import ConfigError, DataRootError, DownloadError, InstallationError, StorageError
from pipelines.files import take_lock, write_atomically

__all__ = ["MARKER", "Fetched", "accept_licence", "fetch", "fetch_source", "licence_accepted", "not_offered"]

MARKER = ".hyfuse-fetch.json"
"""File in a folder that says what is fetched into it."""

_PARTS = ".hyfuse-parts"
_LOCK = ".hyfuse-fetch.lock"
_HEADER = "db.yaml"
_AT_ONCE = 4  # archives; the registry keeps one per recording, and each takes a round trip or two
_CONNECT_S = 8.0
_SPARE_BYTES = 64 * 2**20

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Fetched:
    """What a download did.

    Attributes:
        root: folder of the corpus.
        version: the release.
        files: recordings and tables of it.
        new: how many of them were downloaded now.
    """

    root: Path
    version: str
    files: int
    new: int


# ---------------------------------------------------------------------------------------------------------------------
# Licences


def licence_accepted(card: Card) -> bool:
    """Whether the user has accepted the licence of a corpus, as its card states it now."""
    entry = _accepted().get(card.name)
    return isinstance(entry, dict) and entry.get("licence") == card.licence


def accept_licence(card: Card) -> Path:
    """Remember that the user accepted the licence of a corpus; returns where.

    Raises:
        StorageError: the file cannot be written.
    """
    entry = {"licence": card.licence, "accepted": datetime.date.today().isoformat()}
    path = _licences()
    write_atomically(
        path,
        json.dumps(_accepted() | {card.name: entry}, indent=2, ensure_ascii=False) + "\n",
        option="$XDG_CONFIG_HOME",
    )
    return path


def _licences() -> Path:
    folder = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    return Path(folder) / "hyfuse" / "licences.json"


def _accepted() -> dict[str, Any]:
    try:
        content = json.loads(_licences().read_text(encoding="utf-8"))
    except (OSError, ValueError):  # nothing accepted yet, or a file that was edited: the user is asked again
        return {}
    return content if isinstance(content, dict) else {}


# ---------------------------------------------------------------------------------------------------------------------
# Fetching


def not_offered(card: Card) -> DataRootError:
    """The error for a corpus that nobody may hand out, or that the registry does not have; it holds the steps to get it."""
    return DataRootError(
        f"{card.name} cannot be fetched: the public registry of audb does not have it. Licence: {card.licence}. Its page:"
        f" {card.url}. The steps:\n{card.obtain}"
    )


def fetch(card: Card, root: Path, *, version: str = "", progress: Progress | None = None) -> Fetched:
    """Download a corpus as its card pins it, or go on with that.

    Args:
        card: of the corpus.
        root: folder of the corpus; made if need be.
        version: another release than the card's.
        progress: called with (files done, in all).

    Raises:
        DataRootError: nobody may hand out the corpus; or ``root`` holds something else.
        ConfigError: ``version`` is no release.
        InstallationError: audb is not installed.
        DownloadError: no network, no such release, or a file arrives damaged.
        StorageError: the disk is full or cannot be written, or another process is fetching into the folder.
    """
    if card.audb is None:
        raise not_offered(card)
    if version and not all(part.isalnum() for part in version.split(".")):
        raise ConfigError(f"--version {version!r} is no release; one looks like {card.audb.version}.")
    pinned = f" --version {version}" if version else ""
    again = f"`hyfuse corpora fetch {card.name}{pinned} --to {shlex.quote(str(root))}`"
    return fetch_source(card.audb, root, version=version or card.audb.version, again=again, progress=progress)


def fetch_source(
    source: AudbSource, root: Path, *, version: str, again: str, progress: Progress | None = None
) -> Fetched:
    """Download one release of a database; see :func:`fetch`.

    Args:
        source: where the registry has it.
        root: folder for it.
        version: the release.
        again: the command that goes on, for messages.
        progress: called with (files done, in all).
    """
    audb = _audb()
    with _folder(root, source, version, again):
        try:
            return _fetch(audb, source, root, version, again, progress)
        except OSError as error:
            if isinstance(error, DownloadError | DataRootError | StorageError | InstallationError):
                raise
            raise _explained(error, root, again) from error
        finally:
            shutil.rmtree(root / _PARTS, ignore_errors=True)


def _audb() -> ModuleType:
    try:
        import audb  # type: ignore[import-untyped]
    except ImportError as error:
        raise InstallationError(
            f"Fetching a corpus needs the package audb ({error}). Install it: `pip install 'hyfuse[corpora]'` or `pip install"
            " audb`. Or get the corpus by hand: `hyfuse corpora show NAME`."
        ) from error
    return audb  # type: ignore[no-any-return]


@contextlib.contextmanager
def _folder(root: Path, source: AudbSource, version: str, again: str) -> Iterator[None]:
    """The folder to fetch into, marked and locked."""
    mine = {"database": source.name, "version": version}
    try:
        if root.exists() and not root.is_dir():
            raise DataRootError(f"{root} is a file; a folder is needed. Choose another with --to.")
        marker = root / MARKER
        if marker.is_file():
            try:
                found = json.loads(marker.read_text(encoding="utf-8"))
            except ValueError:
                found = {}
            if found != mine:
                there = f"{found.get('database')} {found.get('version')}" if isinstance(found, dict) else "something"
                raise DataRootError(
                    f"{root} holds {there}, and {source.name} {version} was asked for. Choose another folder with --to, or remove"
                    " that one."
                )
        elif root.is_dir() and any(root.iterdir()):
            raise DataRootError(
                f"{root} is not empty and was not made by `hyfuse corpora fetch`; nothing in it is replaced. Choose another folder"
                " with --to. If the corpus is in it already: `hyfuse corpora prepare NAME --root DIR`."
            )
        root.mkdir(parents=True, exist_ok=True)
        handle, holder = take_lock(root / _LOCK)
    except OSError as error:
        if isinstance(error, DataRootError):
            raise
        raise _explained(error, root, again) from error
    try:
        if holder:
            raise StorageError(
                f"Process {holder} is fetching into {root} already. Wait for it, or end it and run the same command again."
            )
        if not marker.is_file():
            write_atomically(marker, json.dumps(mine) + "\n", option="--to")
        shutil.rmtree(root / _PARTS, ignore_errors=True)
        yield
    finally:
        handle.close()


def _fetch(
    audb: ModuleType, source: AudbSource, root: Path, version: str, again: str, progress: Progress | None
) -> Fetched:
    parts = root / _PARTS
    parts.mkdir()
    interface = _repository(audb, source.name, version, again)
    with contextlib.ExitStack() as closing:
        closing.callback(interface.backend.close)
        release = _release(audb, interface, source, version, parts, again)
        media = [name for name in release.media if name.startswith(source.media) and not release.removed(name)]
        if not media:
            raise DownloadError(
                f"{source.name} {version} has no recordings below {source.media!r}: the card in data_manifests/ does not fit it."
            )
        tables = list(release.tables)
        for name in (*media, *tables):
            _check_name(name, source, version)
        missing = [name for name in (*media, *tables) if not _is_whole(root / name, release.checksum(name))]
        _check_space(release, missing, root, again)
        archives: dict[tuple[str, str, str], list[str]] = defaultdict(list)
        for name in missing:
            place = "meta" if name in tables else "media"
            archive = PurePosixPath(name).stem.removeprefix("db.") if name in tables else release.archive(name)
            if name in tables and name.endswith(".parquet"):
                archive, place = name.removeprefix("db."), "parquet"
            archives[place, archive, release.version(name)].append(name)
        total, done = len(media) + len(tables), len(media) + len(tables) - len(missing)
        if progress is not None:
            progress(done, total)

        def one(number: int, key: tuple[str, str, str]) -> int:
            _get(interface, source.name, key, archives[key], release, root, parts / str(number), again)
            return len(archives[key])

        with ThreadPoolExecutor(_AT_ONCE) as pool:
            waiting: set[Future[int]] = {pool.submit(one, number, key) for number, key in enumerate(archives)}
            try:
                while waiting:
                    finished, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                    for future in finished:
                        done += future.result()
                        if progress is not None:
                            progress(done, total)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        header = parts / _HEADER
        _call(interface.get_file, f"/{source.name}/{_HEADER}", str(header), version, root=root, again=again)
        os.replace(header, root / _HEADER)
    return Fetched(root, version, total, len(missing))


def _repository(audb: ModuleType, name: str, version: str, again: str) -> Any:
    """The repository that has the release, opened."""
    reasons, versions = [], set()
    for repository in audb.config.REPOSITORIES:
        host = str(repository.host)
        reason = "" if repository.backend == "file-system" else _unreachable(host)
        if not reason:
            try:
                interface = repository.create_backend_interface()
                interface.backend.open()
                if interface.exists(f"/{name}/{_HEADER}", version):
                    return interface
                versions |= set(interface.versions(f"/{name}/{_HEADER}", suppress_backend_errors=True))
                interface.backend.close()
                continue
            except Exception as error:  # audbackend's own, and whatever its back ends let through
                reason = _reason(error)
        reasons.append(f"{repository.name} at {host}: {reason}")
    if reasons and not versions:
        raise DownloadError(
            f"No repository of audb can be reached ({'; '.join(reasons)}). Check the network (audb knows no proxy) and run {again}"
            " again; or get the corpus by hand: `hyfuse corpora show NAME`."
        )
    listed = ", ".join(sorted(versions)) or "none"
    raise DownloadError(
        f"audb has no release {version!r} of {name}; it has: {listed}. Name one with --version; the card's own is what published"
        " numbers belong to."
    )


def _unreachable(host: str) -> str:
    """Why a host does not answer, in a few words; empty if it does. Asked first because audb tries for many seconds."""
    try:
        with socket.create_connection((host.partition(":")[0], 443), timeout=_CONNECT_S):
            return ""
    except OSError as error:
        return error.strerror or str(error) or type(error).__name__


def _release(audb: ModuleType, interface: Any, source: AudbSource, version: str, parts: Path, again: str) -> Any:
    """Table of the files of a release, as audb's ``Dependencies``, read from Parquet or CSV."""
    table = audb.Dependencies()
    place = f"/{source.name}/db"
    if interface.exists(f"{place}.parquet", version):
        _call(
            interface.get_file, f"{place}.parquet", str(parts / "db.parquet"), version, root=parts.parent, again=again
        )
        table.load(str(parts / "db.parquet"))
    else:  # releases before 2024
        _call(interface.get_file, f"{place}.zip", str(parts / "db.zip"), version, root=parts.parent, again=again)
        _unpack(parts / "db.zip", ["db.csv"], parts)
        table.load(str(parts / "db.csv"))
    return table


def _check_name(name: str, source: AudbSource, version: str) -> None:
    """A release may not write outside its folder, nor over our own files, nor leave a pickle there."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or name.startswith(".hyfuse") or path.suffix == ".pkl":
        raise DownloadError(
            f"{source.name} {version} lists the file {name!r}, which is no name of a recording; nothing was written."
        )


def _is_whole(path: Path, checksum: str) -> bool:
    return path.is_file() and _checksum(path) == checksum


def _checksum(path: Path) -> str:
    """MD5, as releases state it: of a file's content, or, for Parquet, what the file says of its own content."""
    if path.suffix == ".parquet":
        from pyarrow import parquet

        stated: Mapping[bytes, bytes] = parquet.read_schema(path).metadata or {}
        if b"hash" in stated:
            return stated[b"hash"].decode()
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _check_space(release: Any, missing: list[str], root: Path, again: str) -> None:
    """Refuse early what cannot fit: a little less than the recordings take as PCM."""
    need = 0.0
    for name in missing:
        with contextlib.suppress(KeyError, TypeError, ValueError):
            need += (
                float(release.duration(name))
                * int(release.sampling_rate(name))
                * int(release.channels(name))
                * (int(release.bit_depth(name)) or 16)
                / 8
            )
    free = shutil.disk_usage(root).free
    if missing and free < need + _SPARE_BYTES:
        raise StorageError(
            f"{root} has {free / 2**20:.0f} MiB free; what is left to fetch takes about {need / 2**20:.0f} MiB and some to spare."
            f" Free disk space or choose another folder with --to, then {again}."
        )


def _get(
    interface: Any,
    name: str,
    key: tuple[str, str, str],
    wanted: list[str],
    release: Any,
    root: Path,
    parts: Path,
    again: str,
) -> None:
    """Fetch one archive, or one table, and put what it holds in place."""
    place, archive, version = key
    parts.mkdir()
    if place == "parquet":
        _call(interface.get_file, f"/{name}/meta/{archive}", str(parts / wanted[0]), version, root=root, again=again)
    else:
        packed = parts / "archive.zip"
        _call(interface.get_file, f"/{name}/{place}/{archive}.zip", str(packed), version, root=root, again=again)
        _unpack(packed, wanted, parts)
    for file in wanted:
        if _checksum(parts / file) != release.checksum(file):
            raise DownloadError(
                f"{file} of {name} {version} arrived damaged: its checksum is not the one that the release states. Run {again}"
                " again; if it happens again, the registry's copy is damaged."
            )
        target = root / file
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(parts / file, target)
    shutil.rmtree(parts, ignore_errors=True)


def _unpack(packed: Path, wanted: list[str], folder: Path) -> None:
    """Write some members of an archive, and no others, into a folder."""
    try:
        with zipfile.ZipFile(packed) as archive:
            for name in wanted:
                target = folder / name
                target.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(name) as source, target.open("wb") as handle:
                    shutil.copyfileobj(source, handle)
    except (zipfile.BadZipFile, KeyError) as error:
        raise DownloadError(
            f"An archive arrived damaged, or does not hold what the release lists ({error}). Run the same command again."
        ) from error


def _call(function: Callable[..., object], *arguments: object, root: Path, again: str) -> None:
    """Call audbackend; its errors carry the real one inside."""
    try:
        function(*arguments)
    except Exception as error:
        raise _explained(getattr(error, "exception", error), root, again) from error


def _reason(error: BaseException) -> str:
    inner = getattr(error, "exception", error)
    return (getattr(inner, "strerror", None) or str(inner).strip() or type(inner).__name__)[:200]


def _explained(error: BaseException, root: Path, again: str) -> StorageError | DownloadError:
    """The disk, or the network."""
    if isinstance(error, OSError) and error.errno in {
        errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG, errno.EIO, errno.ENOTDIR,
    }:  # fmt: skip
        return StorageError(
            f"{root} cannot be written: {error.strerror}. What was fetched is kept; free disk space or choose another folder with"
            f" --to, then {again} goes on."
        )
    return DownloadError(
        f"The download broke off: {_reason(error)}. What was fetched is kept; check the network, then {again} goes on."
    )
