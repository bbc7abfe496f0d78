"""Finding, downloading and reading weights. No network: downloads come from a server on this machine."""

from __future__ import annotations

import hashlib
import os
import pickle
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pipelines.encoders.catalogue import EncoderSpec, WeightFile
from pipelines.encoders.weights import (
    file_sha256,
    find_checkpoint,
    find_file,
    load_pickle_free,
    random_initialisation,
    search_folders,
    state_digest,
)
from pipelines.errors import StorageError, WeightsError

CONTENT = b"weights " * 300_000  # more than two pieces of a download
SHA256 = hashlib.sha256(CONTENT).hexdigest()


def _spec(*files: WeightFile, **changes: Any) -> EncoderSpec:
    values: dict[str, Any] = {
        "name": "enc",
        "family": "RLR",
        "title": "An encoder",
        "factory": "",
        "sample_rate_hz": 16000,
        "hop_samples": 320,
        "dim": 8,
        "representations": ("latent",),
        "default_representation": "latent",
        "repository": "owner/repo",
        "revision": "abc123",
        "files": files or (WeightFile("w.pt", aliases=("old.pt",), sha256=SHA256),),
        "licence": "MIT",
    }
    return EncoderSpec(**{**values, **changes})


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No weights of this machine's user, and no network."""
    import huggingface_hub.constants

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("HYFUSE_WEIGHTS", raising=False)


@pytest.fixture
def reachable_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if there were a network; what is asked of the Hub is the test's business."""
    monkeypatch.setattr("pipelines.encoders.weights._unreachable_hub", lambda: "")


def _put(path: Path, content: bytes = CONTENT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def _hub(tmp_path: Path, name: str, content: bytes = CONTENT, *, revision: str = "abc123") -> Path:
    """A file in the Hub cache, as ``hf download`` leaves it."""
    base = tmp_path / "hub" / "models--owner--repo"
    blob = _put(base / "blobs" / hashlib.sha256(content).hexdigest(), content)
    link = base / "snapshots" / revision / name
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(os.path.relpath(blob, link.parent))
    return link


# ------------------------------------------------------------------------------------------------ a file


@pytest.mark.parametrize("place", ["enc", "owner/repo", "repo", ""])
@pytest.mark.parametrize("name", ["w.pt", "old.pt"])
@pytest.mark.parametrize("by", ["option", "environment"])
def test_file_is_found_in_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, name: str, by: str
) -> None:
    path = _put(tmp_path / "mine" / place / name)
    if by == "environment":
        monkeypatch.setenv("HYFUSE_WEIGHTS", str(tmp_path / "mine"))
    folder = tmp_path / "mine" if by == "option" else None
    spec = _spec()
    assert find_file(spec, spec.files[0], weights_dir=folder) == path


def test_option_comes_before_environment_before_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = _spec()
    hub = _hub(tmp_path, "w.pt")
    assert find_file(spec, spec.files[0]) == hub
    monkeypatch.setenv("HYFUSE_WEIGHTS", str(tmp_path / "environment"))
    assert find_file(spec, spec.files[0]) == hub
    environment = _put(tmp_path / "environment" / "w.pt")
    assert find_file(spec, spec.files[0]) == environment
    option = _put(tmp_path / "option" / "w.pt")
    assert find_file(spec, spec.files[0], weights_dir=tmp_path / "option") == option


def test_most_specific_place_wins(tmp_path: Path) -> None:
    """Two encoders may have files of the same name, so a folder of their own comes first."""
    spec = _spec(WeightFile("w.pt"))
    for place in ("", "repo", "owner/repo", "enc"):
        path = _put(tmp_path / place / "w.pt", place.encode())
        assert find_file(spec, spec.files[0], weights_dir=tmp_path) == path


def test_home_is_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HYFUSE_WEIGHTS", "~/weights")
    assert search_folders(Path("~/mine")) == [tmp_path / "mine", tmp_path / "weights"]


@pytest.mark.parametrize("where", ["folder", "hub"])
def test_file_of_another_digest(tmp_path: Path, where: str) -> None:
    path = _put(tmp_path / "w.pt", b"other") if where == "folder" else _hub(tmp_path, "w.pt", b"other")
    spec = _spec()
    found = hashlib.sha256(b"other").hexdigest()
    with pytest.raises(WeightsError) as caught:
        find_file(spec, spec.files[0], weights_dir=tmp_path)
    message = str(caught.value)
    for part in (
        str(path),
        "'enc'",
        f"sha256 is {found}",
        f"expected {SHA256}",
        "Delete it and get it again from owner/repo",
    ):
        assert part in message


def test_leading_part_of_a_digest(tmp_path: Path) -> None:
    """Upstream publishes eight characters of it only, in the name of the file."""
    path = _put(tmp_path / "w.pt")
    for sha256, right in ((SHA256[:8], True), ("0" * 8, False)):
        spec = _spec(WeightFile("w.pt", sha256=sha256))
        if right:
            assert find_file(spec, spec.files[0], weights_dir=tmp_path) == path
        else:
            with pytest.raises(WeightsError, match="expected 00000000"):
                find_file(spec, spec.files[0], weights_dir=tmp_path)


def test_hub_cache_of_another_revision_is_not_taken(tmp_path: Path) -> None:
    _hub(tmp_path, "w.pt", revision="def456")
    spec = _spec()
    with pytest.raises(WeightsError, match="are not here"):
        find_file(spec, spec.files[0])


def test_offline_without_weights(tmp_path: Path) -> None:
    spec = _spec()
    with pytest.raises(WeightsError) as caught:
        find_file(spec, spec.files[0], weights_dir=tmp_path / "nowhere")
    message = str(caught.value)
    for part in (
        "The weights of 'enc' are not here: w.pt was looked for in",
        f"{tmp_path / 'nowhere'} (which does not exist)",
        "Source: https://huggingface.co/owner/repo at revision abc123",
        "licence: MIT",
        f"Put it into {tmp_path / 'nowhere' / 'enc'}",
        "`--weights random`",
    ):
        assert part in message
    assert "\n" not in message
    assert isinstance(caught.value, FileNotFoundError)


def test_offline_without_any_folder() -> None:
    spec = _spec(WeightFile("w.pt", sha256=SHA256, url="https://example.org/w.pt"))
    with pytest.raises(
        WeightsError,
        match=r"\$HYFUSE_WEIGHTS is not set.*HF_HUB_OFFLINE is set.*Source: https://example\.org/w\.pt \(owner/repo\).*"
        r"Put it into ~/hyfuse-weights/enc and set HYFUSE_WEIGHTS=~/hyfuse-weights",
    ):
        find_file(spec, spec.files[0])


# ------------------------------------------------------------------------------------------------ a checkpoint of several files

_CHECKPOINT = (WeightFile("config.json"), WeightFile("model.safetensors|pytorch_model.bin"))


@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin"])
def test_checkpoint_in_a_folder(tmp_path: Path, weights: str) -> None:
    for name in ("config.json", weights):
        _put(tmp_path / "owner" / "repo" / name)
    assert find_checkpoint(_spec(*_CHECKPOINT), weights_dir=tmp_path) == (tmp_path / "owner" / "repo", "unverified")


def test_checkpoint_in_the_hub_cache(tmp_path: Path) -> None:
    _put(tmp_path / "mine" / "enc" / "config.json")  # incomplete, so it does not count
    for name in ("config.json", "pytorch_model.bin"):
        link = _hub(tmp_path, name, name.encode())
    assert find_checkpoint(_spec(*_CHECKPOINT), weights_dir=tmp_path / "mine") == (link.parent, "abc123")


def test_checkpoint_offline_names_every_file(tmp_path: Path) -> None:
    """A user's folder needs all of them: naming the first one only would take as many attempts as there are files."""
    with pytest.raises(
        WeightsError,
        match=r"config\.json, model\.safetensors or pytorch_model\.bin were looked for .*Put them into .*mine/enc, or",
    ):
        find_checkpoint(_spec(*_CHECKPOINT), weights_dir=tmp_path / "mine")


# ------------------------------------------------------------------------------------------------ downloads from the Hub


@pytest.mark.usefixtures("reachable_hub")
def test_hub_download_reports_progress(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    import huggingface_hub

    def download(repository: str, name: str, *, revision: str, tqdm_class: Any) -> str:
        assert (repository, name, revision) == ("owner/repo", "w.pt", "abc123")
        with tqdm_class(total=len(CONTENT), initial=5, unit="B", desc=name, name="huggingface_hub.http_get") as bar:
            bar.update(10)
            bar.update(7)
        return str(_put(tmp_path / "downloaded"))

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    spec, told = _spec(), list[tuple[str, int, int]]()
    path = find_file(spec, spec.files[0], progress=lambda *args: told.append(args))
    assert path == tmp_path / "downloaded"
    assert told == [("w.pt", 15, len(CONTENT)), ("w.pt", 22, len(CONTENT))]
    assert capfd.readouterr() == ("", "")


@pytest.mark.usefixtures("reachable_hub")
def test_hub_download_of_something_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *_, **__: str(_put(tmp_path / "downloaded", b"no")))
    spec = _spec()
    with pytest.raises(WeightsError, match="is not the file that 'enc' needs"):
        find_file(spec, spec.files[0])


@pytest.mark.usefixtures("reachable_hub")
@pytest.mark.parametrize(
    "error", [OSError(28, "No space left"), ValueError(""), RuntimeError("first line.\nsecond line")]
)
def test_hub_download_that_fails(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    import huggingface_hub

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    spec = _spec()
    with pytest.raises(
        WeightsError, match=r"could not be downloaded \((\[Errno 28\] No space left|ValueError|first line)\)"
    ):
        find_file(spec, spec.files[0])


# ------------------------------------------------------------------------------------------------ direct downloads


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    mode = "whole"
    requests = 0

    def handle_error(self, *_: object) -> None:
        """Broken connections are part of the test."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        self.server.requests += 1
        mode = self.server.mode
        if mode == "missing":
            self.send_error(404)
            return
        self.send_response(200)
        if mode == "chunked":
            self.send_header("Transfer-Encoding", "chunked")
        elif mode != "no length":
            self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        if mode == "chunked":  # ends in the middle of a piece
            self.wfile.write(b"10000\r\n" + CONTENT[:1000])
        elif mode == "cut":
            self.wfile.write(CONTENT[: len(CONTENT) // 2])
        elif mode == "reset":
            self.wfile.write(CONTENT[:1000])
            self.wfile.flush()
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            self.connection.close()
        elif mode == "other":
            self.wfile.write(b"x" * len(CONTENT))
        else:
            self.wfile.write(CONTENT)

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[_Server]:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with _Server(("127.0.0.1", 0), _Handler) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def _remote(server: _Server, *, sha256: str = SHA256) -> EncoderSpec:
    return _spec(WeightFile("w.pt", sha256=sha256, url=f"http://127.0.0.1:{server.server_address[1]}/w.pt"))


def _everything(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("mode", ["whole", "no length"])
def test_download(tmp_path: Path, server: _Server, mode: str) -> None:
    server.mode = mode
    spec, told = _remote(server), list[tuple[str, int, int]]()
    path = find_file(spec, spec.files[0], progress=lambda *args: told.append(args))
    assert path == tmp_path / "xdg" / "hyfuse" / "weights" / "enc" / "w.pt"
    assert path.read_bytes() == CONTENT
    assert _everything(tmp_path) == ["w.pt"]
    done = [done for _, done, _ in told]
    assert len(done) >= 2
    assert done == sorted(done)
    assert told[-1] == ("w.pt", len(CONTENT), len(CONTENT) if mode == "whole" else 0)
    assert find_file(spec, spec.files[0]) == path
    assert server.requests == 1  # not again


def test_download_goes_to_the_users_folder_and_is_found_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: _Server
) -> None:
    monkeypatch.setenv("HYFUSE_WEIGHTS", str(tmp_path / "mine"))
    spec = _remote(server)
    assert find_file(spec, spec.files[0]) == tmp_path / "mine" / "enc" / "w.pt"
    assert find_file(spec, spec.files[0]) == tmp_path / "mine" / "enc" / "w.pt"
    assert server.requests == 1
    before = os.umask(0o022)
    os.umask(before)
    assert (tmp_path / "mine" / "enc" / "w.pt").stat().st_mode & 0o777 == 0o666 & ~before


@pytest.mark.parametrize(
    ("mode", "sha256", "message"),
    [
        ("missing", SHA256, r"could not be downloaded \(HTTP Error 404"),
        ("cut", SHA256, r"could not be downloaded \(.*1200000 of 2400000 bytes"),
        ("cut", "", r"could not be downloaded \(.*1200000 of 2400000 bytes"),
        ("chunked", "", r"could not be downloaded \(IncompleteRead"),
        ("reset", "", r"could not be downloaded \("),
        (
            "other",
            SHA256,
            r"What http://127\.0\.0\.1:\d+/w\.pt sent is not the file that 'enc' needs.*Nothing was kept",
        ),
    ],
)
def test_download_that_fails_leaves_nothing(
    tmp_path: Path, server: _Server, mode: str, sha256: str, message: str
) -> None:
    server.mode = mode
    spec = _remote(server, sha256=sha256)
    with pytest.raises(WeightsError, match=message):
        find_file(spec, spec.files[0])
    assert _everything(tmp_path) == []
    server.mode = "whole"
    assert find_file(spec, spec.files[0]).read_bytes() == CONTENT


def test_nobody_answers(tmp_path: Path, server: _Server) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        spec = _spec(WeightFile("w.pt", url=f"http://127.0.0.1:{unused.getsockname()[1]}/w.pt"))
        with pytest.raises(WeightsError, match=r"could not be downloaded \(.*[Rr]efused"):
            find_file(spec, spec.files[0])
    assert not (tmp_path / "xdg").exists()  # no empty folders either


def test_interrupted_download_leaves_nothing(tmp_path: Path, server: _Server) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    spec = _remote(server)
    with pytest.raises(KeyboardInterrupt):
        find_file(spec, spec.files[0], progress=interrupt)
    assert _everything(tmp_path) == []


def test_folder_for_downloads_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: _Server
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("HYFUSE_WEIGHTS", str(tmp_path / "file"))
    spec = _remote(server)
    with pytest.raises(StorageError, match=r"enc/w\.pt cannot be written.*HYFUSE_WEIGHTS"):
        find_file(spec, spec.files[0])


def test_damaged_earlier_download_is_not_used(tmp_path: Path, server: _Server) -> None:
    path = _put(tmp_path / "xdg" / "hyfuse" / "weights" / "enc" / "w.pt", b"half")
    spec = _remote(server)
    with pytest.raises(WeightsError, match=r"w\.pt is not the file .* Delete it and get it again from http://127"):
        find_file(spec, spec.files[0])
    assert path.read_bytes() == b"half"
    assert server.requests == 0


# ------------------------------------------------------------------------------------------------ reading

STATE = {
    "b.weight": torch.arange(12.0).reshape(3, 4),
    "a": torch.ones(2, dtype=torch.int64),
    "c": torch.ones(3).bfloat16(),
}


def _saved(folder: Path, kind: str) -> Path:
    path = folder / ("w.safetensors" if kind == "safetensors" else "w.pt")
    if kind == "safetensors":
        save_file(STATE, path)
    else:
        torch.save(STATE, path, _use_new_zipfile_serialization=kind == "zip")
    return path


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_reads_state_dicts(tmp_path: Path, kind: str) -> None:
    state = load_pickle_free(_saved(tmp_path, kind))
    assert set(state) == set(STATE)
    assert all(torch.equal(state[name], STATE[name]) and state[name].dtype == STATE[name].dtype for name in STATE)


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_damaged_files_are_explained(tmp_path: Path, kind: str) -> None:
    path = _saved(tmp_path, kind)
    content = path.read_bytes()
    generator = np.random.default_rng(0)
    explained = 0
    for trial in range(120):
        damaged = bytearray(content)
        match trial % 3:
            case 0:
                del damaged[generator.integers(len(damaged)) :]
            case 1:
                for position in generator.integers(0, len(damaged), 3):
                    damaged[position] = generator.integers(256)
            case 2:
                damaged[:] = generator.bytes(int(generator.integers(0, 600)))
        path.write_bytes(damaged)
        try:
            load_pickle_free(path)
        except WeightsError as error:
            assert str(path) in str(error)  # noqa: PT017 - not every damage is one that can be seen
            assert "damaged" in str(error)  # noqa: PT017
            explained += 1
    assert explained >= 75


@pytest.mark.parametrize(
    "content",
    [b"", b"<html>404</html>", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n", b"PK\x03\x04"],
)
@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_files_that_are_no_weights(tmp_path: Path, content: bytes, name: str) -> None:
    path = _put(tmp_path / name, content)
    with pytest.raises(WeightsError, match=rf"{name} cannot be read as weights \(.+\)\. The file is damaged"):
        load_pickle_free(path)


@pytest.mark.parametrize("value", [torch.ones(3), [torch.ones(2)], 3, None])
def test_files_that_hold_something_else(tmp_path: Path, value: object) -> None:
    torch.save(value, tmp_path / "w.pt")
    with pytest.raises(WeightsError, match=r"a \w+ instead of a dictionary of tensors"):
        load_pickle_free(tmp_path / "w.pt")


class _Malicious:
    def __init__(self, target: Path) -> None:
        self.target = str(target)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.target,)


@pytest.mark.parametrize("kind", ["plain", "zip", "legacy", "nested"])
def test_code_in_a_file_is_not_run(tmp_path: Path, kind: str) -> None:
    harmful = _Malicious(tmp_path / "executed")
    path = tmp_path / "w.pt"
    if kind == "plain":
        path.write_bytes(pickle.dumps(harmful, protocol=2))
    else:
        content = {"a": torch.ones(2), "b": harmful} if kind == "nested" else harmful
        torch.save(content, path, _use_new_zipfile_serialization=kind != "legacy")
    with pytest.raises(WeightsError, match=r"w\.pt cannot be read as weights \(UnpicklingError"):
        load_pickle_free(path)
    assert not (tmp_path / "executed").exists()
    if kind == "plain":  # the trap does work
        pickle.loads(path.read_bytes())
        assert (tmp_path / "executed").exists()


def test_files_that_cannot_be_opened(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere.pt", tmp_path / "nowhere.safetensors", tmp_path):
        with pytest.raises(WeightsError, match="cannot be opened"):
            load_pickle_free(path)


def test_sha256_of_a_file(tmp_path: Path) -> None:
    assert file_sha256(_put(tmp_path / "w.pt")) == SHA256


# ------------------------------------------------------------------------------------------------ digests and random weights


def test_digest_of_parameters() -> None:
    digest = state_digest(STATE)
    assert digest == state_digest(dict(reversed(STATE.items())))
    assert digest == state_digest({name: tensor.clone() for name, tensor in STATE.items()})
    assert digest == state_digest({**STATE, "b.weight": STATE["b.weight"].T.contiguous().T})  # memory layout
    assert digest == state_digest({**STATE, "b.weight": STATE["b.weight"].requires_grad_()})
    STATE["b.weight"].requires_grad_(False)
    for changed in (
        {**STATE, "b.weight": STATE["b.weight"].reshape(4, 3)},
        {**STATE, "b.weight": STATE["b.weight"] + torch.eye(3, 4) * 1e-6},
        {**STATE, "a": STATE["a"].int()},
        {**STATE, "c": STATE["c"].half()},
        {**STATE, "d": torch.zeros(0)},
        {("z" if name == "a" else name): tensor for name, tensor in STATE.items()},
        {},
    ):
        assert state_digest(changed) != digest


@pytest.mark.parametrize(
    "tensor", [torch.tensor(3.0), torch.zeros(0, 3), torch.tensor([True]), torch.ones(2, dtype=torch.complex64)]
)
def test_digest_of_odd_tensors(tensor: torch.Tensor) -> None:
    assert state_digest({"a": tensor}) == state_digest({"a": tensor.clone()}) != state_digest({"a": torch.ones(7)})


def test_random_weights_belong_to_the_name_alone() -> None:
    with random_initialisation(_spec()):
        first = torch.randn(5)
    torch.manual_seed(7)
    expected = torch.randn(3)
    torch.manual_seed(7)
    with random_initialisation(_spec(dim=99)):
        again = torch.randn(5)
    assert torch.equal(first, again)
    assert torch.equal(torch.randn(3), expected)  # and what comes after does not notice
    with random_initialisation(_spec(name="other")):
        assert not torch.equal(torch.randn(5), first)


def test_without_a_network_the_hub_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The Hub's client retries for half a minute and writes a line each time; a name that is not found says enough."""
    import socket

    import huggingface_hub

    from pipelines.encoders import weights as module
    from pipelines.encoders.catalogue import encoder_spec

    def nobody(*_: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(module.urllib.request, "getproxies", dict)
    monkeypatch.setattr(socket, "getaddrinfo", nobody)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *_, **__: pytest.fail("the Hub was asked"))
    monkeypatch.delenv("HYFUSE_WEIGHTS", raising=False)
    with pytest.raises(
        WeightsError, match=r"could not be downloaded \(no network: huggingface\.co is not found \(Name or"
    ):
        find_checkpoint(encoder_spec("wavlm"))
