"""Object storage for tests of the store."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest

from pipelines.locations import ObjectPath
from tests.store.object_storage import S3Server


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    with S3Server() as server:
        yield server


@pytest.fixture
def s3(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> ObjectPath:
    """A cache location in a bucket of its own; the environment says how to reach it."""
    bucket = f"bucket-{uuid.uuid4().hex}"
    s3_server.make_bucket(bucket)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server.url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_REGION", "eu-central-1")
    for name in ("AWS_ALLOW_HTTP", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    return ObjectPath("s3", bucket, "some/cache")
