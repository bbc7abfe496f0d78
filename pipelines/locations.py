"""Where a cache lies: a folder, or a prefix on object storage (``s3://bucket/prefix``, ``gs://bucket/prefix``).

A :data:`Location` is a :class:`~pathlib.Path` or an :class:`ObjectPath`, which offers the part of ``Path`` that the cache uses. On
object storage there are no folders (a "folder" is there as soon as an object lies below it), no renames (an object appears when
it is whole) and no locks.

Credentials and endpoint come from the environment variables that other tools read: ``AWS_ACCESS_KEY_ID``,
``AWS_SECRET_ACCESS_KEY``, ``AWS_SESSION_TOKEN``, ``AWS_REGION``, ``AWS_ENDPOINT_URL`` for S3 and for what speaks its language
(MinIO, Ceph, R2 …), or an instance's role; ``GOOGLE_APPLICATION_CREDENTIALS`` for Google. The files of ``~/.aws`` are not read:
``aws configure export-credentials --format env`` prints variables.

Object storage is reached through ``obstore`` (extra ``hyfuse[remote]``), not through ``fsspec`` with ``s3fs`` and ``gcsfs``; Zarr
takes either. ``obstore`` is one wheel without dependencies of its own, serves S3 and Google alike, puts every object whole, and
bounds retries by number and time. ``s3fs`` and ``gcsfs`` bring 36 packages, among them a ``botocore`` of few versions and with it
``python-dateutil`` older than 3, and ``s3fs`` remembers directory listings, so that a process may not see what another one wrote.
"""

from __future__ import annotations

import fnmatch
import os
import posixpath
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, TypeAlias

from pipelines.errors import ConfigError, InstallationError, StorageError

if TYPE_CHECKING:
    from obstore.store import GCSStore, S3Store

__all__ = ["Location", "ObjectPath", "as_location", "is_storage_failure", "local_copy", "size_of", "storage_errors"]

_SCHEMES = ("s3", "gs")
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,221}")
_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
_SETTINGS = ("AWS_", "GOOGLE_")
_GO_ON = "Whatever was finished is kept; run the same command again to go on."

# A server that is gone is noticed within half a minute: five retries, none later than 20 s after the first attempt.
_RETRIES = {
    "max_retries": 5,
    "retry_timeout": timedelta(seconds=20),
    "backoff": {"init_backoff": timedelta(milliseconds=200), "max_backoff": timedelta(seconds=3), "base": 2},
}
_CONNECT_S, _REQUEST_S = 5, 30


@dataclass(frozen=True, order=True)
class ObjectPath:
    """A place on object storage; behaves as a :class:`~pathlib.Path` does, as far as a cache needs it.

    Attributes:
        scheme: ``s3`` or ``gs``.
        bucket: its name.
        key: the rest, without slashes at its ends; empty for the bucket itself.
    """

    scheme: str
    bucket: str
    key: str = ""

    def __str__(self) -> str:
        return f"{self.scheme}://{self.bucket}" + (f"/{self.key}" if self.key else "")

    def as_posix(self) -> str:
        """As ``str``."""
        return str(self)

    def __truediv__(self, other: str | PurePosixPath) -> ObjectPath:
        return ObjectPath(self.scheme, self.bucket, _clean_key(f"{self.key}/{other}"))

    # ------------------------------------------------------------------------------------------------ names

    @property
    def name(self) -> str:
        """Last part."""
        return posixpath.basename(self.key)

    @property
    def stem(self) -> str:
        """Last part without its suffix."""
        return PurePosixPath(self.key).stem

    @property
    def suffix(self) -> str:
        """Suffix of the last part, with its point."""
        return PurePosixPath(self.key).suffix

    @property
    def parent(self) -> ObjectPath:
        """One level up; of the bucket, itself."""
        return ObjectPath(self.scheme, self.bucket, posixpath.dirname(self.key))

    def with_name(self, name: str) -> ObjectPath:
        """Another last part."""
        return self.parent / name

    def with_suffix(self, suffix: str) -> ObjectPath:
        """Another suffix."""
        return self.with_name(self.stem + suffix)

    def relative_to(self, other: ObjectPath) -> PurePosixPath:
        """The path from ``other`` to here.

        Raises:
            ValueError: this is not below ``other``.
        """
        if (self.scheme, self.bucket) != (other.scheme, other.bucket):
            raise ValueError(f"{self} is not below {other}.")
        return PurePosixPath(self.key).relative_to(other.key)

    # ------------------------------------------------------------------------------------------------ looking

    def exists(self) -> bool:
        """Whether there is an object here or below."""
        return self.is_file() or self.is_dir()

    def is_file(self) -> bool:
        """Whether there is an object here.

        Raises:
            StorageError: the storage cannot be reached or refuses.
        """
        if not self.key:
            return False
        obstore = _obstore(self)
        with storage_errors(self, doing="read"):
            try:
                obstore.head(self.client(), self.key)
            except FileNotFoundError:
                return False
        return True

    def is_dir(self) -> bool:
        """Whether there is an object below here.

        Raises:
            StorageError: there is no such bucket, it cannot be reached or refuses.
        """
        return next(self._below(at_once=1), None) is not None

    def iterdir(self) -> Iterator[ObjectPath]:
        """What lies directly below: objects and "folders", sorted."""
        obstore = _obstore(self)
        with storage_errors(self, doing="read"):
            found = obstore.list_with_delimiter(self.client(), self.key or None)
        keys = {*found["common_prefixes"], *(item["path"] for item in found["objects"])}
        yield from (ObjectPath(self.scheme, self.bucket, key) for key in sorted(keys) if key != self.key)

    def glob(self, pattern: str) -> Iterator[ObjectPath]:
        """Matches of a pattern of fixed depth (no ``**``), level by level: what does not match is not looked into."""
        first, _, rest = pattern.partition("/")
        if not re.search(r"[*?\[]", first):
            below = self / first
            if rest:
                yield from below.glob(rest)
            elif below.exists():
                yield below
            return
        for path in self.iterdir():
            if fnmatch.fnmatchcase(path.name, first):
                if rest:
                    yield from path.glob(rest)
                else:
                    yield path

    def rglob(self, pattern: str) -> Iterator[ObjectPath]:
        """All objects below whose last part matches; unlike ``Path.rglob``, no folders."""
        for item in self._below():
            path = ObjectPath(self.scheme, self.bucket, item["path"])
            if fnmatch.fnmatchcase(path.name, pattern):
                yield path

    def _below(self, at_once: int = 1000) -> Iterator[Any]:
        """Descriptions of all objects below."""
        obstore = _obstore(self)
        with storage_errors(self, doing="read"):
            for batch in obstore.list(self.client(), prefix=self.key or None, chunk_size=at_once):
                yield from batch

    # ------------------------------------------------------------------------------------------------ content

    def read_bytes(self) -> bytes:
        """The object.

        Raises:
            FileNotFoundError: there is none.
            StorageError: the storage cannot be reached or refuses.
        """
        obstore = _obstore(self)
        with storage_errors(self, doing="read"):
            try:
                return bytes(obstore.get(self.client(), self.key).bytes())
            except FileNotFoundError as error:
                if "NoSuchBucket" in str(error):
                    raise
                raise _AbsentError(f"There is no object {self}.") from error

    def read_text(self, encoding: str = "utf-8") -> str:
        """The object as text; see :meth:`read_bytes`."""
        return self.read_bytes().decode(encoding)

    def write_bytes(self, content: bytes) -> None:
        """Put an object, whole.

        Raises:
            StorageError: the storage cannot be reached or refuses.
        """
        obstore = _obstore(self)
        with storage_errors(self, doing="written"):
            obstore.put(self.client(), self.key, content)

    def delete(self, keys: list[str]) -> None:
        """Delete objects of the bucket; those that are not there do not matter."""
        obstore = _obstore(self)
        with storage_errors(self, doing="removed"):
            for start in range(0, len(keys), 1000):
                obstore.delete(self.client(), keys[start : start + 1000])

    def client(self, *, below: bool = False) -> S3Store | GCSStore:
        """The ``obstore`` client of the bucket, or of this prefix in it.

        Raises:
            InstallationError: ``obstore`` is not installed.
            ConfigError: the endpoint is no address.
        """
        settings = tuple(sorted((name, value) for name, value in os.environ.items() if name.startswith(_SETTINGS)))
        return _client(self.scheme, self.bucket, self.key if below else "", settings)


class _AbsentError(FileNotFoundError):
    """An object that is not there, which is for the caller to explain."""


Location: TypeAlias = Path | ObjectPath
"""A folder or file, here or on object storage."""


def as_location(text: str | Location) -> Location:
    """What a user wrote for a folder, as a location.

    Args:
        text: a path, or ``s3://…`` or ``gs://…``.

    Raises:
        ConfigError: no bucket, a bucket's name that cannot be one, ``..`` within the path, or another scheme.
    """
    if isinstance(text, ObjectPath):
        return text
    # Path("s3://bucket/x") has lost a slash already.
    found = re.match(r"([A-Za-z][A-Za-z0-9+.-]+):/{1,2}(.*)", str(text), re.DOTALL)
    if found is None:
        return Path(text)
    scheme, rest = found[1].lower(), found[2]
    if scheme == "file":
        return Path("/" + rest.lstrip("/"))
    if scheme not in _SCHEMES:
        raise ConfigError(
            f"{text} is on storage that hyfuse does not know ({scheme}://). Use a folder, s3://bucket/prefix or gs://bucket/prefix."
        )
    bucket, _, key = rest.partition("/")
    if not _BUCKET.fullmatch(bucket):
        raise ConfigError(
            f"{text} names no bucket: {bucket!r} cannot be one. Expected {scheme}://bucket/prefix, with a name of letters, digits,"
            " points and hyphens."
        )
    return ObjectPath(scheme, bucket, _clean_key(key))


def _clean_key(key: str) -> str:
    parts = [part for part in key.split("/") if part not in {"", "."}]
    if ".." in parts:
        raise ConfigError(f"{key!r} goes up with '..', which object storage does not know. Write the path without it.")
    return "/".join(parts)


def _obstore(location: ObjectPath) -> Any:
    """The module ``obstore``.

    Raises:
        InstallationError: it is not installed.
    """
    try:
        import obstore
        import obstore.store
    except ImportError as error:
        raise InstallationError(
            f"{location} is on object storage, which needs the package obstore ({error}). Install it:"
            " `pip install 'hyfuse[remote]'`."
        ) from error
    return obstore


@lru_cache(maxsize=256)
def _client(scheme: str, bucket: str, prefix: str, settings: tuple[tuple[str, str], ...]) -> S3Store | GCSStore:
    """A client; ``settings`` are the environment variables that it reads, so that a change of them gives another one."""
    store = _obstore(ObjectPath(scheme, bucket, prefix)).store
    options: dict[str, Any] = {
        "connect_timeout": timedelta(seconds=_CONNECT_S),
        "timeout": timedelta(seconds=_REQUEST_S),
    }
    client: S3Store | GCSStore
    if scheme == "gs":
        client = store.GCSStore(bucket, prefix=prefix or None, client_options=options, retry_config=_RETRIES)
        return client
    endpoint = _endpoint(dict(settings))
    if endpoint.startswith("http://"):
        options["allow_http"] = True  # whoever writes http:// means it
    client = store.S3Store(bucket, prefix=prefix or None, client_options=options, retry_config=_RETRIES)
    return client


def _endpoint(settings: dict[str, str]) -> str:
    """Address of the S3 server; empty for Amazon's.

    Raises:
        ConfigError: it is no address.
    """
    name = next((name for name in _ENDPOINTS if settings.get(name)), "")
    endpoint = settings.get(name, "")
    if endpoint and not re.fullmatch(r"https?://[^\s/]+(/\S*)?", endpoint):
        raise ConfigError(f"{name} is {endpoint!r}; expected an address such as https://minio.example.org:9000.")
    return endpoint


# ------------------------------------------------------------------------------------------------ what goes wrong


def is_storage_failure(error: BaseException) -> bool:
    """Whether object storage has failed, rather than what was read from it."""
    return type(error).__module__.split(".")[0] in {"obstore", "_obstore"}


@contextmanager
def storage_errors(location: Location, *, doing: str) -> Iterator[None]:
    """Explain what a disk or object storage complains about.

    Args:
        location: what is at work.
        doing: ``read``, ``written`` or ``removed``, for the message.

    Raises:
        StorageError: it does.
    """
    try:
        yield
    except (StorageError, _AbsentError):
        raise
    except Exception as error:
        if isinstance(location, ObjectPath) and (is_storage_failure(error) or isinstance(error, OSError)):
            raise StorageError(_object_message(location, doing, error)) from error
        if isinstance(error, OSError):
            raise StorageError(
                f"{location} cannot be {doing}: {error.strerror or error}. Whatever was finished is kept; free disk space or"
                " permission, and run the same command again to go on."
            ) from error
        raise


def _object_message(location: ObjectPath, doing: str, error: Exception) -> str:
    """What object storage says, and what to do about it."""
    said = re.sub(r"\s+", " ", str(error).partition("Debug source")[0]).strip()
    code = re.search(r"<Code>(.*?)</Code>", said)
    server = _endpoint(dict(os.environ)) or {"s3": "Amazon S3", "gs": "Google Cloud Storage"}[location.scheme]
    name = {"s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY", "gs": "GOOGLE_APPLICATION_CREDENTIALS"}[
        location.scheme
    ]
    begin = f"{location} cannot be {doing}: "
    if "NoSuchBucket" in said:
        return f"{begin}there is no bucket {location.bucket!r} at {server}. Check its name (--cache-dir), or create it."
    if re.search(r"169\.254\.169\.254|metadata|[Cc]redential|\btoken\b", said) and code is None:
        return (
            f"{begin}there are no credentials for {server} ({_shortened(said)}). Set {name}; the files of ~/.aws are not read:"
            ' `eval "$(aws configure export-credentials --format env)"` sets the variables from them.'
        )
    kind = type(error).__name__
    if kind in {"PermissionDeniedError", "UnauthenticatedError"} or re.search(r"\b40[13]\b", said):
        reason = code[1] if code else _shortened(said)
        return f"{begin}{server} refuses ({reason}). Check {name} and the bucket's permissions. {_GO_ON}"
    if re.search(r"error sending request|HTTP error|timed? ?out|connection", said, re.IGNORECASE):
        lost = f"{server} cannot be reached or broke off ({_shortened(said)})"
        return f"{begin}{lost}. Check the network and AWS_ENDPOINT_URL. {_GO_ON}"
    return f"{begin}{code[1] if code else _shortened(said)}. {_GO_ON}"


def _shortened(said: str, most: int = 200) -> str:
    """The end of what was said, which is its cause."""
    cause = said.rpartition(" - ")[2] or said
    return cause if len(cause) <= most else cause[:most] + "…"


# ------------------------------------------------------------------------------------------------ both kinds


def size_of(location: Location) -> int:
    """Bytes in all files (objects) at and below a location; 0 where there is nothing.

    Raises:
        StorageError: object storage cannot be reached.
    """
    if isinstance(location, ObjectPath):
        return sum(int(item["size"]) for item in location._below())
    if location.is_file():
        return location.stat().st_size
    return sum(path.stat().st_size for path in location.rglob("*") if path.is_file())


@contextmanager
def local_copy(location: Location) -> Iterator[Path]:
    """A file as one of this machine: itself, or a copy that is removed afterwards.

    Raises:
        FileNotFoundError: there is no such object.
        StorageError: object storage cannot be reached.
    """
    if isinstance(location, Path):
        yield location
        return
    with tempfile.TemporaryDirectory(prefix="hyfuse-") as folder:
        copy = Path(folder) / location.name
        copy.write_bytes(location.read_bytes())
        yield copy
