"""Recordings ahead of the model: in order, with reasons, within bounds, by threads and by processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pipelines.errors import WorkerError
from pipelines.extraction import decoding
from pipelines.extraction.blocks import Block, make_blocks
from pipelines.extraction.decoding import DecodeAhead, DecodedClip, DecodeSettings, decode_clip
from tests.extraction.fakes import RATE, make_corpus, sine


def _all(blocks: Iterator[Block], settings: DecodeSettings, **options: object) -> dict[int, list[DecodedClip]]:
    found: dict[int, list[DecodedClip]] = {}
    with DecodeAhead(blocks, settings=settings, **options) as decoded:  # type: ignore[arg-type]
        for block, clips in decoded:
            found.setdefault(block.index, []).extend(clips)
    return found


@pytest.mark.parametrize("in_processes", [False, True])
def test_order_and_reasons(tmp_path: Path, in_processes: bool) -> None:
    manifest = make_corpus(tmp_path, count=50, odd={3: b"", 7: None, 12: b"text" * 1000, 15: np.zeros(800)})
    settings = DecodeSettings(RATE, tmp_path)
    blocks = make_blocks(manifest, block_rows=20, indices=[1, 0, 2])
    found = _all(blocks, settings, workers=2, in_processes=in_processes)
    assert list(found) == [1, 0, 2]
    clips = [*found[0], *found[1], *found[2]]
    assert [number for number, clip in enumerate(clips) if clip.waveform is None] == [3, 7, 12, 15]
    for number, words in {3: "is empty", 7: "does not exist", 12: "cannot be read", 15: "is silent"}.items():
        assert clips[number].failure.startswith(f"clip{number:03d}.wav {words}")
    for number in (0, 5, 49):
        waveform = clips[number].waveform
        assert waveform is not None
        np.testing.assert_allclose(waveform.samples, sine(number), atol=1e-7)


def test_reasons_do_not_tell_where_the_corpus_lies(tmp_path: Path) -> None:
    settings = [DecodeSettings(RATE, tmp_path / name) for name in ("here", "there")]
    reasons = [decode_clip(made.root / "a" / "b.wav", "b", made).failure for made in settings]
    assert reasons[0] == reasons[1] == "a/b.wav does not exist. Check --data-root and the manifest's paths."


def test_very_long_recordings_fail_and_are_not_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "LONGEST_S", 1.0)
    make_corpus(tmp_path, count=2, odd={0: sine(1, seconds=1.5), 1: sine(2, seconds=1.0)})
    clips = [decode_clip(tmp_path / f"clip00{number}.wav", "", DecodeSettings(RATE, tmp_path)) for number in (0, 1)]
    assert [clip.waveform is None for clip in clips] == [True, False]
    assert "lasts 2 s; recordings above 1 s" in clips[0].failure
    assert "Cut it into" in clips[0].failure


def test_what_waits_is_bounded_in_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "AHEAD_S", 2.0)
    monkeypatch.setattr(decoding, "_TASK_FILES", 1)
    manifest = make_corpus(tmp_path, count=40, odd={number: sine(number, seconds=0.5) for number in range(40)})
    begun: list[Path] = []
    decode = decoding.decode

    def noted(path: Path, *rest: object, **more: object) -> object:
        begun.append(path)
        return decode(path, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(decoding, "decode", noted)
    blocks = make_blocks(manifest, block_rows=20, indices=[0, 1])
    with DecodeAhead(blocks, settings=DecodeSettings(RATE, tmp_path), workers=2) as decoded:
        for used, _ in enumerate(decoded, start=1):
            if used == 1:
                time.sleep(0.5)
                assert 5 <= len(begun) <= 10  # 2 s wait, at most two are being decoded for each worker
    assert len(begun) == 40


def test_leaving_early_ends_the_threads(tmp_path: Path) -> None:
    manifest = make_corpus(tmp_path, count=40)
    before = threading.active_count()
    with DecodeAhead(
        make_blocks(manifest, block_rows=4, indices=range(10)), settings=DecodeSettings(RATE, tmp_path), workers=2
    ) as decoded:
        next(iter(decoded))
    assert threading.active_count() == before


def test_an_error_in_the_plan_is_told() -> None:
    def blocks() -> Iterator[Block]:
        raise RuntimeError("no plan")
        yield

    with (
        pytest.raises(RuntimeError, match="no plan"),
        DecodeAhead(blocks(), settings=DecodeSettings(RATE, Path()), workers=1) as decoded,
    ):
        list(decoded)


def _die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_decoding_process_that_dies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = make_corpus(tmp_path, count=4)
    monkeypatch.setattr(decoding, "_decode_in_process", _die)
    blocks = make_blocks(manifest, block_rows=4, indices=[0])
    with pytest.raises(WorkerError, match=r"decodes recordings died.*memory.*--decode-workers"):
        _all(blocks, DecodeSettings(RATE, tmp_path), workers=1, in_processes=True)


_ORPHAN = """
import sys, time
from pathlib import Path
from pipelines.extraction.blocks import make_blocks
from pipelines.extraction.decoding import DecodeAhead, DecodeSettings
from tests.extraction.fakes import recall_corpus
if __name__ == "__main__":
    root = Path(sys.argv[1])
    blocks = make_blocks(recall_corpus(root, count=8), block_rows=8, indices=[0])
    with DecodeAhead(blocks, settings=DecodeSettings(8000, root), workers=1, in_processes=True) as decoded:
        next(iter(decoded))
        (process,) = decoded._pool._processes
        print(process, flush=True)
        time.sleep(60)
"""


@pytest.mark.slow
def test_decoding_processes_end_with_a_killed_parent(tmp_path: Path) -> None:
    make_corpus(tmp_path, count=8)
    script = tmp_path / "orphan.py"
    script.write_text(_ORPHAN)
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    parent = subprocess.Popen([sys.executable, script, tmp_path], stdout=subprocess.PIPE, text=True, env=environment)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    os.kill(child, 0)  # it is there
    parent.kill()
    parent.communicate()
    for _ in range(100):
        try:
            os.kill(child, 0)
        except ProcessLookupError:
            return
        if Path(f"/proc/{child}/stat").read_text().split()[2] == "Z":  # dead, and nobody has asked after it
            return
        time.sleep(0.1)
    pytest.fail(f"process {child} outlived its parent")
