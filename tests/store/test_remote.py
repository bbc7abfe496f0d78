"""Stores on object storage, against a real S3 server: the same bytes as on a disk, whatever breaks off meanwhile."""

from __future__ import annotations

import hashlib
import os
import pickle
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest

from pipelines.corpora.manifest import Manifest, manifest_from_rows
from pipelines.corpora.prepare import Prepared, cached_corpora, recall, remember
from pipelines.corpora.resolve import only_cached_corpus, recall_corpus, resolve_corpus
from pipelines.errors import (
    DataRootError,
    InstallationError,
    ManifestError,
    ProvenanceError,
    StorageError,
    StoreError,
    UtteranceError,
)
from pipelines.locations import ObjectPath, as_location, size_of
from pipelines.store.embeddings import (
    attach_writer,
    find_stores,
    open_store,
    remove_store,
    store_digest,
    store_path,
    verify_store,
)
from pipelines.training.data import load_dataset
from tests.store.object_storage import Forwarder, S3Server
from tests.store.stores import IDS, block_result, filled, frames_of, make_provenance, open_toy, tree_digest, write_rest
from tests.store.writer_process import FRAMES, toy_ids, write

_ROOT = Path(__file__).resolve().parents[2]


def _toy(cache: ObjectPath, condition: str = "clean") -> ObjectPath:
    path = store_path(cache, "toy", "enc", condition)
    assert isinstance(path, ObjectPath)
    return path


def _objects(path: ObjectPath) -> dict[str, str]:
    """As ``tree_digest``, of object storage."""
    return {
        file.relative_to(path).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(path.rglob("*"))
    }


# ------------------------------------------------------------------------------------------------ the same as on a disk


@pytest.mark.parametrize("frames", [False, True])
def test_objects_are_the_files_of_a_local_store(s3: ObjectPath, tmp_path: Path, frames: bool) -> None:
    spec = FRAMES if frames else None
    with open_toy(_toy(s3), frames=spec) as writer:
        assert writer.blocks_to_do() == [0, 1, 2]
        write_rest(writer, failed={1, 8})
    local = filled(tmp_path, spec=spec, failed={1, 8})
    assert _objects(_toy(s3)) == tree_digest(local)
    assert store_digest(_toy(s3)) == store_digest(local)
    assert verify_store(_toy(s3)) == []
    assert size_of(_toy(s3)) == size_of(local) > 0


def test_rows_and_frames_come_back_as_written(s3: ObjectPath) -> None:
    with open_toy(_toy(s3), frames=FRAMES) as writer:
        write_rest(writer, failed={1})
    store = open_store(_toy(s3), manifest_digest="a1" * 32)
    asked = ["utt07", "utt00", "utt09", "utt07"]
    expected = block_result(range(10))
    for position, name in zip(
        [7, 0, 9, 7], store.features(asked, representation="second", pool="mean+std"), strict=True
    ):
        np.testing.assert_array_equal(name, np.r_[expected.mean[position, 1], expected.std[position, 1]])
    for row, found in zip([7, 0, 9, 7], store.frames(asked, representation="first"), strict=True):
        np.testing.assert_array_equal(found, frames_of(row, "first", frames=1 + row % 7).astype(np.float16))
    assert store.failures() == {"utt01": "row 1 is broken – wirklich"}
    with pytest.raises(UtteranceError, match=rf"not in {re.escape(str(_toy(s3)))}"):
        store.features(["x"], representation="first", pool="mean")


@pytest.mark.parametrize("condition", ["reverb:0.6s", "noise:esc10@5dB+telephone", "Ärger & 日本"])
def test_names_with_odd_characters(s3: ObjectPath, condition: str) -> None:
    path = _toy(s3, condition)
    with open_toy(path, utterance_ids=["Ärger 1", "a/b", "🙂"]) as writer:
        write_rest(writer)
    assert find_stores(s3) == [path]
    assert open_store(path).utterance_ids == ["Ärger 1", "a/b", "🙂"]
    assert path.stem == condition


def test_other_provenance_is_refused(s3: ObjectPath) -> None:
    with open_toy(_toy(s3)):
        pass
    with (
        pytest.raises(ProvenanceError, match=rf"`hyfuse cache remove toy/enc/clean --cache-dir {s3}`"),
        open_toy(_toy(s3), provenance=make_provenance(dim=9)),
    ):
        pass
    with pytest.raises(StoreError, match="unfinished: 0 done, 0 failed, 10 to do"):
        open_store(_toy(s3))


def test_shards_and_workers(s3: ObjectPath, tmp_path: Path) -> None:
    for i in (1, 0):
        with open_toy(_toy(s3), frames=FRAMES, shard=(i, 2)) as writer:
            write(attach_writer(_toy(s3)), writer.blocks_to_do(), {3})
            writer.refresh()
            assert writer.blocks_to_do() == []
    assert _objects(_toy(s3)) == tree_digest(filled(tmp_path, spec=FRAMES, failed={3}))


def test_two_processes_that_do_everything_twice(s3: ObjectPath, tmp_path: Path) -> None:
    """There are no locks: the work is done twice, the bytes are the same."""
    with open_toy(_toy(s3)) as first, open_toy(_toy(s3)) as second:
        first.write_block(0, block_result(range(4)))
        write_rest(second)
        write_rest(first)
    assert _objects(_toy(s3)) == tree_digest(filled(tmp_path))


def test_many_shards_that_start_at_once_make_one_store(s3: ObjectPath, tmp_path: Path) -> None:
    path = _toy(s3)
    errors: list[BaseException] = []

    def one(i: int) -> None:
        try:
            with open_toy(path, utterance_ids=toy_ids(40), shard=(i, 4)) as writer:
                write_rest(writer)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=one, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    whole = tmp_path / "toy" / "enc" / "clean.zarr"
    with open_toy(whole, utterance_ids=toy_ids(40)) as writer:
        write_rest(writer)
    assert _objects(path) == tree_digest(whole)


def test_failed_rows_once_more(s3: ObjectPath, tmp_path: Path) -> None:
    with open_toy(_toy(s3), frames=FRAMES) as writer:
        write_rest(writer, failed={0, 1, 2, 3, 9})
    with open_toy(_toy(s3), frames=FRAMES, retry_failed=True) as writer:
        assert writer.blocks_to_do() == [0, 2]
        write_rest(writer, failed={2})
    assert _objects(_toy(s3)) == tree_digest(filled(tmp_path, spec=FRAMES, failed={2}))


# ------------------------------------------------------------------------------------------------ looking after


def test_find_and_remove(s3: ObjectPath) -> None:
    assert find_stores(s3) == []
    paths = [store_path(s3, "a", "enc"), store_path(s3, "b", "enc"), store_path(s3, "b", "enc", "pink@0dB")]
    for path in paths:
        with open_toy(path) as writer:
            write_rest(writer)
    assert find_stores(s3) == sorted(paths)
    assert find_stores(s3, "b") == sorted(paths[1:])
    assert find_stores(s3 / "a") == []
    remove_store(paths[1])
    assert find_stores(s3) == sorted([paths[0], paths[2]])
    with pytest.raises(StoreError, match=r"no store at .*`hyfuse cache list`"):
        remove_store(paths[1])
    with pytest.raises(StoreError, match=r"no store at s3://.*`hyfuse extract --model enc --corpus b`"):
        open_store(paths[1])
    with pytest.raises(StoreError, match="no store at"):
        verify_store(paths[1])


def test_verify_finds_lost_and_damaged_objects(s3: ObjectPath) -> None:
    path = _toy(s3)
    with open_toy(path) as writer:
        write_rest(writer)
    content = (path / "mean/c/1/0/0").read_bytes()
    path.delete([(path / "mean/c/1/0/0").key])
    assert any("mean of first is not finite for utt04" in problem for problem in verify_store(path))
    with pytest.raises(StoreError, match=r"'mean' holds no numbers for utt05"):
        open_store(path).features(["utt05"], representation="first", pool="mean")
    (path / "mean/c/1/0/0").write_bytes(content[:10] + bytes([content[10] ^ 1]) + content[11:])
    assert any("array 'mean' cannot be read" in problem for problem in verify_store(path))


@pytest.mark.parametrize("number", [0, 1, 2, 3])
def test_a_removal_that_was_killed(
    s3: ObjectPath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Status first, then data, then metadata: what is left says of itself that it is to be done, or that it is damaged."""
    path = _toy(s3)
    with open_toy(path) as writer:
        write_rest(writer)
    delete, count = ObjectPath.delete, iter(range(10))

    class StopError(BaseException):
        pass

    def stopped(self: ObjectPath, keys: list[str]) -> None:
        if next(count) == number:
            raise StopError
        delete(self, keys)

    with monkeypatch.context() as patch:
        patch.setattr(ObjectPath, "delete", stopped)
        with pytest.raises(StopError):
            remove_store(path)
    if number > 1:  # nothing but metadata is left
        with pytest.raises(StoreError, match="damaged"), open_toy(path):
            pass
        remove_store(path)
    with open_toy(path) as writer:
        assert writer.blocks_to_do() == ([] if number == 0 else [0, 1, 2])
        write_rest(writer)
    assert _objects(path) == tree_digest(filled(tmp_path))


def test_a_store_without_its_group_is_not_built_upon(s3: ObjectPath) -> None:
    path = _toy(s3)
    with open_toy(path) as writer:
        write_rest(writer)
    path.delete([(path / "zarr.json").key])
    with pytest.raises(StoreError, match=r"half removed\. .*`hyfuse cache remove toy/enc/clean"), open_toy(path):
        pass
    remove_store(path)
    with open_toy(path) as writer:
        assert writer.blocks_to_do() == [0, 1, 2]


@pytest.mark.parametrize("number", range(0, 12, 2))
def test_a_creation_that_was_killed(
    s3: ObjectPath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    write_bytes, count = ObjectPath.write_bytes, iter(range(100))

    class StopError(BaseException):
        pass

    def stopped(self: ObjectPath, content: bytes) -> None:
        if next(count) == number:
            raise StopError
        write_bytes(self, content)

    with monkeypatch.context() as patch:
        patch.setattr(ObjectPath, "write_bytes", stopped)
        with pytest.raises(StopError), open_toy(_toy(s3), frames=FRAMES):
            pass
    with pytest.raises(StoreError, match="There is no store"):
        open_store(_toy(s3))
    with open_toy(_toy(s3), frames=FRAMES) as writer:
        write_rest(writer)
    assert _objects(_toy(s3)) == tree_digest(filled(tmp_path, spec=FRAMES))


# ------------------------------------------------------------------------------------------------ what breaks off


@pytest.mark.slow
def test_a_killed_writer_ends_with_the_same_bytes(s3: ObjectPath, tmp_path: Path) -> None:
    moments, cut = random.Random(3), 0
    command = [
        sys.executable,
        "-m",
        "tests.store.writer_process",
        str(_toy(s3)),
        "--ids",
        "60",
        "--frames",
        "--failed",
        "7",
    ]

    def begin() -> subprocess.Popen[str]:
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=_ROOT)

    for _ in range(4):
        process = begin()
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(moments.uniform(0.0, 0.3))
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            cut += 1
        process.communicate()
    process = begin()
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert cut >= 2
    whole = tmp_path / "toy" / "enc" / "clean.zarr"
    with open_toy(whole, utterance_ids=toy_ids(60), frames=FRAMES) as writer:
        write(writer, writer.blocks_to_do(), {7})
    assert _objects(_toy(s3)) == tree_digest(whole)


@pytest.fixture
def patient() -> Iterator[None]:
    """Fewer retries, so that these tests take seconds."""
    with pytest.MonkeyPatch.context() as patch:
        from pipelines import locations

        patch.setitem(locations._RETRIES, "max_retries", 2)
        locations._client.cache_clear()
        yield
    locations._client.cache_clear()


@pytest.mark.parametrize("most_bytes", [3_000, 9_000, 15_000, 21_000])
def test_storage_that_goes_away_mid_run(
    s3: ObjectPath,
    s3_server: S3Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    patient: None,
    most_bytes: int,
) -> None:
    wire = Forwarder(s3_server.port, most_bytes=most_bytes)
    monkeypatch.setenv("AWS_ENDPOINT_URL", wire.url)
    started = time.monotonic()
    with (
        pytest.raises(
            StorageError,
            match=rf"{wire.url} cannot be reached or broke off .*finished is kept; run the same command again",
        ),
        open_toy(_toy(s3), frames=FRAMES) as writer,
    ):
        write_rest(writer, failed={1})
    assert time.monotonic() - started < 30
    wire.mend()
    with open_toy(_toy(s3), frames=FRAMES) as writer:
        write_rest(writer, failed={1})
    wire.cut()
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server.url)
    assert _objects(_toy(s3)) == tree_digest(filled(tmp_path, spec=FRAMES, failed={1}))


def test_storage_that_goes_away_while_reading(
    s3: ObjectPath, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch, patient: None
) -> None:
    wire = Forwarder(s3_server.port)
    monkeypatch.setenv("AWS_ENDPOINT_URL", wire.url)
    with open_toy(_toy(s3), frames=FRAMES) as writer:
        write_rest(writer)
    store = open_store(_toy(s3))
    wire.cut()
    for attempt in (
        lambda: store.features(IDS, representation="first", pool="mean"),
        lambda: open_store(_toy(s3)),
        lambda: verify_store(_toy(s3)),
        lambda: find_stores(s3),
        lambda: cached_corpora(s3),
    ):
        with pytest.raises(StorageError, match=r"cannot be read: .*cannot be reached or broke off"):
            attempt()
    wire.mend()
    assert store.features(IDS, representation="first", pool="mean").shape == (10, 3)
    frames = store.frames(IDS, representation="first")
    next(frames)
    wire.cut()
    with pytest.raises(StorageError, match="cannot be reached"):
        list(frames)


def test_a_server_that_dies_is_noticed_soon(s3: ObjectPath, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the retries as they are: half a minute at most, not obstore's three minutes."""
    with S3Server() as server:
        server.make_bucket("mortal")
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        path = _toy(ObjectPath("s3", "mortal"))
        with open_toy(path) as writer:
            writer.write_block(0, block_result(range(4)))
            server.kill()
            started = time.monotonic()
            with pytest.raises(StorageError, match=r"written: .*cannot be reached or broke off"):
                writer.write_block(1, block_result(range(4, 8)))
            assert time.monotonic() - started < 30
            assert writer.blocks_to_do() == [1, 2]


class _Refusing(BaseHTTPRequestHandler):
    """An S3 server to which nobody may."""

    def do_GET(self) -> None:
        body = b"<?xml version='1.0'?><Error><Code>InvalidAccessKeyId</Code><Message>Who are you?</Message></Error>"
        self.send_response(403)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_PUT = do_GET  # noqa: N815
    do_HEAD = do_GET  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


def test_credentials_that_are_refused(monkeypatch: pytest.MonkeyPatch, s3: ObjectPath) -> None:
    server = HTTPServer(("127.0.0.1", 0), _Refusing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    try:
        with pytest.raises(
            StorageError,
            match=r"read: http://.* refuses \(InvalidAccessKeyId\)\. Check AWS_ACCESS_KEY_ID and AWS_SECRET",
        ):
            find_stores(s3)
        with pytest.raises(StorageError, match=r"refuses \("), open_toy(_toy(s3)):
            pass
    finally:
        server.shutdown()


def test_no_credentials(monkeypatch: pytest.MonkeyPatch, s3: ObjectPath, patient: None) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:9")  # where an instance would get a role from
    started = time.monotonic()
    with pytest.raises(
        StorageError, match=r"there are no credentials for http://127.* Set AWS_ACCESS_KEY_ID.*~/\.aws are not read"
    ):
        find_stores(s3)
    assert time.monotonic() - started < 30


@pytest.mark.parametrize("attempt", [find_stores, cached_corpora, lambda cache: open_store(_toy(cache))])
def test_a_bucket_that_is_not_there(s3: ObjectPath, attempt: object) -> None:
    absent = ObjectPath("s3", "nobodys-bucket", "cache")
    with pytest.raises(StorageError, match=r"there is no bucket 'nobodys-bucket' at http://127.*--cache-dir"):
        attempt(absent)  # type: ignore[operator]


def test_writing_into_a_bucket_that_is_not_there(s3: ObjectPath) -> None:
    absent = ObjectPath("s3", "nobodys-bucket", "cache")
    with pytest.raises(StorageError, match="there is no bucket 'nobodys-bucket'"), open_toy(_toy(absent)):
        pass
    with pytest.raises(StorageError, match="there is no bucket"):
        remember(_manifest(), absent)


def test_without_the_extra(s3: ObjectPath, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipelines import locations

    locations._client.cache_clear()
    monkeypatch.setitem(sys.modules, "obstore", None)
    for attempt in (
        find_stores,
        lambda cache: open_store(_toy(cache)),
        lambda cache: open_toy(_toy(cache)).__enter__(),
    ):
        with pytest.raises(InstallationError, match=r"needs the package obstore .*`pip install 'hyfuse\[remote\]'`"):
            attempt(s3)


# ------------------------------------------------------------------------------------------------ corpora and training


def _manifest(names: list[str] | None = None) -> Manifest:
    rows = [
        {
            "utterance_id": name,
            "path": f"{name}.wav",
            "speaker": f"s{number % 3}",
            "emotion": ("anger", "sadness")[number % 2],
        }
        for number, name in enumerate(names or IDS)
    ]
    return manifest_from_rows("toy", rows, root=Path("/nowhere"))


def test_manifests_are_remembered(s3: ObjectPath) -> None:
    assert cached_corpora(s3) == []
    with pytest.raises(DataRootError, match=rf"No corpus is cached in {s3}"):
        only_cached_corpus(s3)
    manifest = _manifest()
    remember(manifest, s3)
    assert cached_corpora(s3) == ["toy"]
    assert only_cached_corpus(s3) == "toy"
    found = recall_corpus(None, cache_dir=s3)
    assert found.digest == manifest.digest
    assert found.root == Path("/nowhere")
    with open_toy(_toy(s3)):
        pass
    remember(manifest, s3)
    with pytest.raises(ProvenanceError, match=rf"The stores in {s3}/toy were made from another manifest"):
        remember(_manifest([*IDS, "more"]), s3)


def test_a_remembered_manifest_that_was_edited(s3: ObjectPath) -> None:
    remember(_manifest(), s3)
    file = s3 / "toy" / "manifest.csv"
    original = file.read_text()
    file.write_bytes(original.replace("anger", "fear").encode())
    with pytest.raises(ManifestError, match=rf"{file} has digest"):
        recall(s3, "toy")
    file.write_bytes(original.replace("speaker", "spkr").encode())
    with pytest.raises(ManifestError, match=rf"{file} lacks the column speaker"):
        recall(s3, "toy")
    file.write_bytes(b"")
    with pytest.raises(ManifestError, match=rf"{file} is empty"):
        recall(s3, "toy")
    (s3 / "toy" / "corpus.json").write_bytes(b"{")
    with pytest.raises(ManifestError, match="cannot be read"):
        recall(s3, "toy")


def test_the_demo_corpus_lies_on_this_machine(s3: ObjectPath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipelines.corpora import demo, resolve

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    made: list[Path] = []
    monkeypatch.setattr(demo, "generate_demo", lambda root, **_: made.append(root))
    monkeypatch.setattr(resolve, "prepare", lambda name, root: Prepared(_manifest(), (), name))
    prepared = resolve_corpus("demo", cache_dir=s3)
    (note,) = prepared.findings
    assert note.level == "note"
    assert f"those of the demo corpus are in {tmp_path / 'hyfuse' / 'demo'}." in note.message
    assert cached_corpora(s3) == ["toy"]
    assert resolve_corpus("demo", cache_dir=tmp_path / "c").findings == ()
    assert made == [tmp_path / "hyfuse" / "demo", tmp_path / "c" / "demo" / "recordings"]


def test_training_reads_from_it(s3: ObjectPath, tmp_path: Path) -> None:
    manifest = _manifest()
    for cache in (s3, tmp_path):
        path = store_path(cache, "toy", "enc")
        with open_toy(path, provenance=make_provenance(manifest_digest=manifest.digest)) as writer:
            write_rest(writer)
    remote, local = (
        load_dataset(manifest, cache_dir=cache, encoders=["enc"], classes=["anger", "sadness"])
        for cache in (s3, tmp_path)
    )
    assert remote.sources["enc"].features_digest == local.sources["enc"].features_digest
    assert remote.sources["enc"].path == _toy(s3)
    assert pickle.loads(pickle.dumps(remote.sources["enc"])) == remote.sources["enc"]  # as worker processes get it


def test_requests_are_few(s3: ObjectPath, monkeypatch: pytest.MonkeyPatch) -> None:
    """A block costs eight objects and not a listing, and opening for training reads the status alone."""
    from zarr.storage import ObjectStore

    with open_toy(_toy(s3), frames=FRAMES) as writer:
        write_rest(writer)
    read: list[str] = []
    get = ObjectStore.get

    async def noted(self: ObjectStore, key: str, *args: object, **options: object) -> object:  # type: ignore[type-arg]
        read.append(key)
        return await get(self, key, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(ObjectStore, "get", noted)
    open_store(_toy(s3))
    assert sorted(read) == ["status/c/0", "status/c/1", "status/c/2", "status/zarr.json", "zarr.json"]


def test_a_cache_named_by_text(s3: ObjectPath) -> None:
    assert as_location(str(s3)) == s3
    assert os.environ["AWS_ENDPOINT_URL"].startswith("http://127.")
