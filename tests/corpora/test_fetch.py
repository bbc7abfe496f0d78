"""Downloads through audb, from repositories on the file system that the test publishes with audb itself."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipelines.corpora import fetch as module
from pipelines.corpora.audformat_folder import read_audformat
from pipelines.corpora.cards import AudbSource, read_card
from pipelines.corpora.fetch import accept_licence, fetch, fetch_source, licence_accepted
from pipelines.corpora.prepare import prepare
from pipelines.errors import ConfigError, DataRootError, DownloadError, InstallationError, StorageError
from tests.corpora.databases import audformat_folder, tone

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")

SOURCE = AudbSource("tiny", "1.0.0")
FILES = 8 + 3  # recordings, tables


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with Emo-DB's registry name ``emodb`` and a database ``tiny``, as audb lays them out."""
    audb = pytest.importorskip("audb")
    base = tmp_path_factory.mktemp("audb")
    (base / "host" / "repo").mkdir(parents=True)
    repository = audb.Repository("repo", str(base / "host"), "file-system")
    before = audb.config.REPOSITORIES
    audb.config.REPOSITORIES = [repository]
    try:
        for name, version in (("tiny", "1.0.0"), ("emodb", "1.4.1")):
            root = audformat_folder(base / name)
            header = (root / "db.yaml").read_text().replace("name: tiny", f"name: {name}")
            (root / "db.yaml").write_text(header)
            audb.publish(str(root), version, repository, cache_root=str(base / "c"), verbose=False)
    finally:
        audb.config.REPOSITORIES = before
    return base / "host"


@pytest.fixture
def host(published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the repository that may be damaged, and audb told of it alone."""
    import audb

    copy = tmp_path / "host"
    shutil.copytree(published, copy)
    monkeypatch.setattr(audb.config, "REPOSITORIES", [audb.Repository("repo", str(copy), "file-system")])
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return copy


def _fetch(root: Path, source: AudbSource = SOURCE, **options: str) -> module.Fetched:
    return fetch_source(source, root, **{"version": source.version, "again": "`again`", **options})


def test_a_corpus_arrives_whole_and_is_not_fetched_twice(host: Path, tmp_path: Path) -> None:
    root = tmp_path / "my data" / "emodb 😀"
    seen: list[tuple[int, int]] = []
    done = fetch(read_card("emodb"), root, progress=lambda *numbers: seen.append(numbers))
    assert (done.files, done.new, done.version) == (FILES, FILES, "1.4.1")
    assert seen[0] == (0, FILES)
    assert seen[-1] == (FILES, FILES)
    for path in sorted((tmp_path / "host").parent.rglob("wav/*.wav")):
        assert (root / "wav" / path.name).read_bytes() == path.read_bytes()
    assert len(prepare("emodb", root).manifest) == 8
    assert len(read_audformat(root).rows) == 8
    assert not list(root.rglob("*.pkl"))
    assert not (root / ".hyfuse-parts").exists()
    assert fetch(read_card("emodb"), root).new == 0
    (root / "wav" / "03a01Wa.wav").write_bytes(b"damaged")
    assert fetch(read_card("emodb"), root).new == 1


def test_what_broke_off_goes_on(host: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "tiny"
    real, calls = module._get, []

    def broken(*arguments: object) -> None:
        calls.append(arguments)
        if len(calls) == 5:
            raise OSError(errno.ECONNRESET, "Connection reset by peer")
        real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "_get", broken)
    monkeypatch.setattr(module, "_AT_ONCE", 1)
    with pytest.raises(DownloadError, match=r"broke off: Connection reset by peer.*kept.*`again` goes on"):
        _fetch(root)
    assert not (root / "db.yaml").exists()
    monkeypatch.setattr(module, "_get", real)
    assert 0 < _fetch(root).new <= FILES - 4


@pytest.mark.parametrize("kill", [signal.SIGINT, signal.SIGKILL])
def test_a_process_that_is_ended_leaves_nothing_half(host: Path, tmp_path: Path, kill: signal.Signals) -> None:
    root = tmp_path / "tiny"
    script = f"""
import sys, time
sys.path.insert(0, {str(Path(__file__).resolve().parents[2])!r})
import audb
from pathlib import Path
from pipelines.corpora import fetch
from pipelines.corpora.cards import AudbSource
audb.config.REPOSITORIES = [audb.Repository("repo", {str(host)!r}, "file-system")]
real = fetch._get
def slow(*arguments):
    real(*arguments)
    time.sleep(0.3)
fetch._get = slow
fetch._AT_ONCE = 1
fetch.fetch_source(AudbSource("tiny", "1.0.0"), Path({str(root)!r}), version="1.0.0", again="x")
"""
    process = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while len(list(root.glob("wav/*.wav"))) < 2 and time.monotonic() < deadline:
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.02)
    process.send_signal(kill)
    process.wait(30)
    process.stderr.close()  # type: ignore[union-attr]
    have = len(list(root.glob("wav/*.wav")))
    assert 2 <= have < 8
    assert not (root / "db.yaml").exists()
    assert _fetch(root).new <= FILES - have
    assert len(read_audformat(root).rows) == 8


def test_no_such_release_names_those_there_are(host: Path, tmp_path: Path) -> None:
    with pytest.raises(
        DownloadError, match=r"no release '9\.9\.9' of emodb; it has: 1\.4\.1\. Name one with --version"
    ):
        fetch(read_card("emodb"), tmp_path / "x", version="9.9.9")
    with pytest.raises(ConfigError, match=r"--version '1/2' is no release; one looks like 1\.4\.1"):
        fetch(read_card("emodb"), tmp_path / "x", version="1/2")
    with pytest.raises(DownloadError, match=r"no release '1\.3\.0' of crema-d; it has: none"):
        fetch(read_card("cremad"), tmp_path / "y")


def test_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    audb = pytest.importorskip("audb")
    away = [
        audb.Repository("away", "repository.invalid", "s3"),
        audb.Repository("gone", str(tmp_path / "no"), "file-system"),
    ]
    monkeypatch.setattr(audb.config, "REPOSITORIES", away)
    started = time.monotonic()
    with pytest.raises(
        DownloadError, match=r"No repository of audb can be reached \(away at repository\.invalid: .*; gone at"
    ):
        fetch(read_card("emodb"), tmp_path / "x")
    assert time.monotonic() - started < 10


def test_disk_full(host: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.replace

    def full(source: object, target: object) -> None:
        if str(target).endswith(".wav"):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(source, target)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(StorageError, match=r"No space left on device. What was fetched is kept; .*--to, then `again`"):
        _fetch(tmp_path / "tiny")
    monkeypatch.undo()


def test_a_disk_that_is_too_small_is_refused_before(
    host: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10 * 2**20))
    with pytest.raises(StorageError, match="has 10 MiB free; what is left to fetch takes about"):
        _fetch(tmp_path / "tiny")
    assert not list((tmp_path / "tiny").rglob("*.wav"))


def test_a_file_that_arrives_damaged(host: Path, tmp_path: Path) -> None:
    archives = sorted(host.rglob("media/**/*.zip"))
    tiny = [path for path in archives if "tiny" in path.parts]
    shutil.copyfile(tiny[0], tiny[1])
    with pytest.raises(DownloadError, match="damaged"):
        _fetch(tmp_path / "tiny")
    tiny[1].write_bytes(b"no archive")
    with pytest.raises(DownloadError, match="An archive arrived damaged"):
        _fetch(tmp_path / "tiny")


def test_folders_that_hold_something_else(host: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(
        DataRootError, match="is not empty and was not made by `hyfuse corpora fetch`; nothing in it is"
    ):
        _fetch(tmp_path / "mine")
    _fetch(tmp_path / "tiny")
    with pytest.raises(DataRootError, match=r"holds tiny 1\.0\.0, and emodb 1\.4\.1 was asked for"):
        fetch(read_card("emodb"), tmp_path / "tiny")
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataRootError, match="is a file; a folder is needed"):
        _fetch(tmp_path / "file")


def test_two_at_once(host: Path, tmp_path: Path) -> None:
    _fetch(tmp_path / "tiny")
    with (
        module._folder(tmp_path / "tiny", SOURCE, "1.0.0", "`again`"),
        pytest.raises(StorageError, match=r"Process \d+ is fetching into .*tiny already"),
    ):
        _fetch(tmp_path / "tiny")


@pytest.mark.parametrize(
    "name", ["../evil.wav", "/evil.wav", "a/../../evil.wav", "db.x.pkl", ".hyfuse-fetch.json", "a\\b.wav"]
)
def test_a_release_cannot_write_where_it_likes(name: str) -> None:
    with pytest.raises(DownloadError, match="is no name of a recording; nothing was written"):
        module._check_name(name, SOURCE, "1.0.0")


def test_only_a_part_of_a_database(host: Path, tmp_path: Path) -> None:
    done = _fetch(tmp_path / "tiny", AudbSource("tiny", "1.0.0", media="wav/03"))
    assert done.files == 4 + 3
    with pytest.raises(DownloadError, match="no recordings below 'speech/'"):
        _fetch(tmp_path / "other", AudbSource("tiny", "1.0.0", media="speech/"))


def test_gated_corpora_name_the_steps(tmp_path: Path) -> None:
    for name in ("iemocap", "msp-podcast", "savee"):
        card = read_card(name)
        with pytest.raises(DataRootError) as caught:
            fetch(card, tmp_path)
        assert card.obtain in str(caught.value)
        assert card.url in str(caught.value)


def test_audb_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "audb", None)
    with pytest.raises(InstallationError, match=r"pip install 'hyfuse\[corpora\]'"):
        fetch(read_card("emodb"), tmp_path / "x")


def test_a_licence_is_accepted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    card = read_card("ravdess")
    assert not licence_accepted(card)
    path = accept_licence(card)
    accept_licence(read_card("emodb"))
    assert licence_accepted(card)
    path.write_text(path.read_text().replace("CC BY-NC-SA 4.0", "another"))
    assert not licence_accepted(card)
    path.write_text("{")
    assert not licence_accepted(card)


@pytest.mark.parametrize(
    ("corpus", "file", "speaker", "emotion"),
    [
        ("ravdess", "speech/actor_16/03-01-05-01-02-02-16.wav", "16", "anger"),
        ("nemo", "audios/KS0_surprised_26.wav", "KS0", "surprise"),
        ("cremad", "1001/1001_TAI_HAP_XX.wav", "1001", "happiness"),
        ("emodb", "wav/13b09La.wav", "13", "boredom"),
    ],
)
def test_releases_of_the_registry_are_laid_out_a_little_differently(
    tmp_path: Path, corpus: str, file: str, speaker: str, emotion: str
) -> None:
    """Names as on audEERING's page of data sets."""
    tone(tmp_path / file)
    tone(tmp_path / "songs" / "actor_06" / "03-02-04-02-02-01-06.wav")
    table = prepare(corpus, tmp_path).manifest.table
    assert list(table["path"]) == [file]
    assert (table["speaker"][0], table["emotion"][0]) == (speaker, emotion)
