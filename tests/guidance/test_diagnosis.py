"""Every check, in order and out of order."""

from __future__ import annotations

import shutil
import sys
import types
from collections import namedtuple
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

from pipelines.guidance import diagnosis
from pipelines.guidance.diagnosis import Check, diagnose


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("HYFUSE_WEIGHTS", raising=False)


def checks(tmp_path: Path, name: str) -> list[Check]:
    return [check for check in diagnose(tmp_path / "cache", tmp_path / "runs") if check.name == name]


def test_this_machine_is_in_order(tmp_path: Path) -> None:
    found = list(diagnose(tmp_path / "cache", tmp_path / "runs"))
    assert [check for check in found if check.status == "error"] == []
    assert {"Python", "packages", "GPU", "threads", "audio", "Hub", "weights", "disk", "corpora"} <= {
        one.name for one in found
    }
    assert all(check.fix for check in found if check.status == "warning")
    assert not (tmp_path / "cache").exists()


def test_missing_and_old_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        diagnosis, "requires", lambda _: ["torch>=99", "no-such-thing>=1", "optuna>=99; extra == 'tune'"]
    )
    (check,) = checks(tmp_path, "packages")
    assert check.status == "error"
    assert "torch 2" in check.found
    assert "needed: >=99" in check.found
    assert "no-such-thing is missing" in check.found
    assert "optuna" not in check.found
    assert "constraints.txt" in check.fix


def test_a_gpu_that_torch_does_not_see(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    which = shutil.which
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/nvidia-smi" if name == "nvidia-smi" else which(name))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    (check,) = checks(tmp_path, "GPU")
    assert check.status == "error"
    assert "CUDA build" in check.fix


def test_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    device = types.SimpleNamespace(name="H200", total_memory=141 * 2**30)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda _: device)
    (check,) = checks(tmp_path, "GPU")
    assert check.status == "ok"
    assert "H200 (141 GiB)" in check.found


def test_extras_that_are_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnosis, "_OPTIONAL", {"magic": ("no-such-thing", "`hyfuse magic`")})
    (check,) = checks(tmp_path, "extras")
    assert check.status == "note"
    assert check.fix == "For instance `pip install 'hyfuse[magic]'`."


def test_a_hub_that_answers_and_one_that_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Answer(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(404)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Answer)
    Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    (check,) = checks(tmp_path, "Hub")
    assert check.status == "ok"
    server.shutdown()
    server.server_close()
    (check,) = checks(tmp_path, "Hub")
    assert check.status == "warning"
    assert "HYFUSE_WEIGHTS" in check.fix
    monkeypatch.setenv("HF_ENDPOINT", "file:///etc")
    (check,) = checks(tmp_path, "Hub")
    assert check.status == "error"


def test_offline_is_said(tmp_path: Path) -> None:
    (check,) = checks(tmp_path, "Hub")
    assert check.status == "note"
    assert "HF_HUB_OFFLINE" in check.found


def test_a_weights_folder_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYFUSE_WEIGHTS", str(tmp_path / "nowhere"))
    (check,) = checks(tmp_path, "weights")
    assert check.status == "error"
    monkeypatch.setenv("HYFUSE_WEIGHTS", str(tmp_path))
    (check,) = checks(tmp_path, "weights")
    assert (check.status, "holds nothing" in check.found) == ("ok", True)


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**12, 10**12 - 10**9, 10**9))
    found = checks(tmp_path, "disk")
    assert {check.status for check in found} == {"warning"}
    assert "1 GB free" in found[0].found


def test_a_check_that_fails_is_not_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "soundfile", None)  # importing it raises ImportError
    found = list(diagnose(tmp_path / "cache", tmp_path / "runs"))
    (audio,) = [check for check in found if check.name == "audio"]
    assert audio.status == "error"
    assert "could not be checked" in audio.found
    assert found[-1].name == "corpora"
