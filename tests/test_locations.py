"""Locations without a server: names, and what object storage is made to say. Reading and writing: tests/store/test_remote.py."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path, PurePosixPath

import pytest

from pipelines import locations
from pipelines.errors import ConfigError, StorageError
from pipelines.locations import ObjectPath, as_location, local_copy, size_of, storage_errors


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("cache", Path("cache")),
        ("/data/cache", Path("/data/cache")),
        ("s3:cache", Path("s3:cache")),
        ("C:/cache", Path("C:/cache")),
        (Path("cache"), Path("cache")),
        ("file:///data/cache", Path("/data/cache")),
        ("s3://bucket", ObjectPath("s3", "bucket")),
        ("s3://bucket/", ObjectPath("s3", "bucket")),
        ("S3://bucket/a//b/./c/", ObjectPath("s3", "bucket", "a/b/c")),
        ("gs://my.bucket_1/x", ObjectPath("gs", "my.bucket_1", "x")),
        (Path("s3://bucket/x"), ObjectPath("s3", "bucket", "x")),  # pathlib has made one slash of two
        (ObjectPath("gs", "bucket", "x"), ObjectPath("gs", "bucket", "x")),
    ],
)
def test_as_location(text: str | Path | ObjectPath, found: Path | ObjectPath) -> None:
    assert as_location(text) == found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("s3://", "names no bucket: '' cannot be one"),
        ("s3:///x", "names no bucket"),
        ("s3://bad bucket/x", "names no bucket: 'bad bucket' cannot be one"),
        ("s3://bucket/a/../b", r"goes up with '\.\.'"),
        (
            "az://container/x",
            r"storage that hyfuse does not know \(az://\)\. Use a folder, s3://bucket/prefix or gs://",
        ),
        ("https://host/x", r"does not know \(https://\)"),
    ],
)
def test_locations_that_cannot_be(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        as_location(text)


@pytest.mark.parametrize("text", ["a/b/c.zarr", "a/b/reverb:0.6s.zarr", "x", "a/.hidden", "a/no suffix"])
def test_names_are_those_of_pathlib(text: str) -> None:
    path, pure = ObjectPath("s3", "bucket", text), PurePosixPath(text)
    assert (path.name, path.stem, path.suffix) == (pure.name, pure.stem, pure.suffix)
    assert path.with_suffix(".lock").key == str(pure.with_suffix(".lock"))
    assert path.with_name("other").key == str(pure.with_name("other"))
    assert (path / "d/e" / "f").key == str(pure / "d/e" / "f")
    assert path.parent.key == str(pure.parent).removeprefix(".")
    assert (path / "d" / "e").relative_to(path) == PurePosixPath("d/e")
    assert path.relative_to(path.parent) == PurePosixPath(pure.name)


def test_the_bucket_itself() -> None:
    bucket = ObjectPath("gs", "bucket")
    assert str(bucket) == bucket.as_posix() == "gs://bucket"
    assert bucket.parent == bucket
    assert str(bucket / "a") == "gs://bucket/a"
    assert (bucket / "a" / "b").relative_to(bucket) == PurePosixPath("a/b")
    assert not bucket.is_file()


def test_they_are_values() -> None:
    first, second = as_location("s3://bucket/a"), as_location("s3://bucket/b")
    assert isinstance(first, ObjectPath)
    assert isinstance(second, ObjectPath)
    assert sorted([second, first]) == [first, second]
    assert len({first, second, as_location("s3://bucket/a/")}) == 2
    assert pickle.loads(pickle.dumps(first)) == first
    with pytest.raises(ValueError, match="is not below"):
        first.relative_to(ObjectPath("gs", "bucket"))
    with pytest.raises(ConfigError, match="goes up"):
        first / ".."


def test_endpoints_that_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """obstore panics on these."""
    for value in ("minio:9000", "htp:/x", "http://a b"):
        monkeypatch.setenv("AWS_ENDPOINT_URL", value)
        with pytest.raises(ConfigError, match=rf"AWS_ENDPOINT_URL is {value!r}; expected an address such as https://"):
            ObjectPath("s3", "bucket", "x").is_file()


class _SaidError(Exception):
    """Stands for an error of obstore."""

    __module__ = "obstore.exceptions"


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("Generic S3 error: … - Server returned non-2xx status code: 404: <Code>NoSuchBucket</Code>", "there is no bucket 'b'"),
        ("Error performing PUT http://169.254.169.254/latest/api/token in 3s - HTTP error: …", "there are no credentials"),
        ("… - Server returned non-2xx status code: 403 Forbidden: <Code>NotYou</Code>", "refuses (NotYou)"),
        ("… - Server returned non-2xx status code: 401 Unauthorized: nothing", "refuses ("),
        ("Generic S3 error: … after 5 retries - HTTP error: error sending request", "cannot be reached or broke off (HTTP error: "),
        ("Generic S3 error: operation timed out", "cannot be reached or broke off"),
        ("… - Server returned non-2xx status code: 507: <Code>DiskFull</Code>\n\nDebug source: x", ": DiskFull."),
    ],
)  # fmt: skip
@pytest.mark.parametrize("scheme", ["s3", "gs"])
def test_what_storage_says_is_explained(said: str, message: str, scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    location = ObjectPath(scheme, "b", "x")
    with pytest.raises(StorageError) as caught, storage_errors(location, doing="written"):
        raise _SaidError(said)
    text = str(caught.value)
    assert text.startswith(f"{scheme}://b/x cannot be written: ")
    assert message in text
    assert "Debug" not in text
    if "reached" in message or "refuses" in message:
        assert "run the same command again" in text
    if "credentials" in message or "refuses" in message:
        assert {"s3": "AWS_ACCESS_KEY_ID", "gs": "GOOGLE_APPLICATION_CREDENTIALS"}[scheme] in text


def test_mistakes_of_the_program_are_not_the_storage(tmp_path: Path) -> None:
    for location in (tmp_path, ObjectPath("s3", "b")):
        with pytest.raises(ZeroDivisionError), storage_errors(location, doing="read"):
            raise ZeroDivisionError


def test_local_files_are_no_copies(tmp_path: Path) -> None:
    with local_copy(tmp_path / "a") as path:
        assert path == tmp_path / "a"
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "a").write_bytes(b"12345")
    (tmp_path / "b").write_bytes(b"1")
    assert size_of(tmp_path) == 6
    assert size_of(tmp_path / "b") == 1
    assert size_of(tmp_path / "nothing") == 0


def test_retries_are_bounded() -> None:
    assert locations._RETRIES["max_retries"] <= 5  # type: ignore[operator]
    assert locations._RETRIES["retry_timeout"].total_seconds() <= 30  # type: ignore[attr-defined]


def test_nothing_is_loaded_for_names() -> None:
    code = "import sys; from pipelines.locations import as_location; as_location('s3://bucket/x')"
    subprocess.run(
        [sys.executable, "-c", f"{code}; assert 'obstore' not in sys.modules"],
        check=True,
        cwd=Path(__file__).resolve().parents[1],
    )
