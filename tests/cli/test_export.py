"""``hyfuse export`` and ``hyfuse predict`` as a shell runs them."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.cli.conftest import Runner
from tests.deployment.project import LEFT, RIGHT, TEXT, Project, project

__all__ = ["project"]

FIELDS = ["path", "start_s", "end_s", "label", "p_anger", "p_neutral", "p_sadness", "failure", "segments", "model"]


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


def test_export_then_predict(hyfuse: Runner, project: Project, tmp_path: Path) -> None:
    done = hyfuse(
        "export", project.compared(), "--pair", LEFT, RIGHT, "--fusion", "concat", "--cache-dir", project.cache
    )
    assert done.status == 0
    assert f"RANDOM weights: {LEFT}, {RIGHT}" in done.out
    folder = Path("models/my-wavlm-tiny-encodec-tiny-concat")
    assert f"(2 heads) is in {folder}; {folder}/README.md says what it is for." in done.err
    assert f"Next: `hyfuse predict {folder} FILE…`" in done.err
    found = hyfuse("predict", folder, project.data / "s0_anger_0.wav", project.data / "s1_*_1.wav")
    assert found.status == 0
    assert found.out.startswith(",".join(FIELDS))
    assert found.out.count(".wav,0.0,") == 4
    assert "RANDOM weights" in found.err


def test_a_fold_a_single_and_a_title(hyfuse: Runner, project: Project) -> None:
    where = ("--cache-dir", project.cache)
    fold = json.loads((project.compared() / "config.json").read_text(encoding="utf-8"))["folds"][0]["name"]
    assert hyfuse("export", project.compared(), "--single", LEFT, "--fold", fold, "--out", "a", *where).status == 0
    assert json.loads(Path("a/model.json").read_text(encoding="utf-8"))["trained_on"]["fold"] == fold
    title = f"{LEFT}+{RIGHT} hyperbolic (right-left)"
    assert hyfuse("export", project.compared(), "--cell", title, "--seeds", 3, "--out", "b", *where).status == 0
    described = json.loads(Path("b/model.json").read_text(encoding="utf-8"))
    assert described["name"] == title
    assert len(described["heads"]) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "Say what to export"),
        (("--single", LEFT, "--cell", LEFT), "Say what to export"),
        (("--pair", LEFT, RIGHT), "several such cells"),
        (("--pair", RIGHT, LEFT, "--fusion", "concat"), "unknown cell of"),
        (("--pair", LEFT, RIGHT, "--fusion", "concat", "--fold", "x"), "fold of"),
    ],
)
def test_what_cannot_be_exported(hyfuse: Runner, project: Project, arguments: tuple[str, ...], message: str) -> None:
    done = hyfuse("export", project.compared(), *arguments, "--cache-dir", project.cache)
    assert done.status == 2
    assert message.lower() in done.err.lower()


def test_a_list_with_spaces_emoji_and_transcripts(hyfuse: Runner, project: Project, tmp_path: Path) -> None:
    run = project.run("text", "train", "--pair", TEXT, RIGHT, "--fusion", "concat", "--pool", "mean")
    done = hyfuse(
        "export", run, "--pair", TEXT, RIGHT, "--fusion", "concat", "--cache-dir", project.cache, "--out", "m"
    )
    assert "hyfuse predict m LIST.csv" in done.err
    folder = tmp_path / "my takes 🙂"
    folder.mkdir()
    shutil.copy(project.data / "s0_anger_0.wav", folder / "eins zwei 🎤.wav")
    (folder / "list.csv").write_bytes("path,transcript\r\neins zwei 🎤.wav,Nein!\r\n".encode("utf-8-sig"))
    assert hyfuse("predict", "m", folder / "list.csv", "--out", "out file.csv").status == 0
    (row,) = _rows(Path("out file.csv"))
    assert row["path"] == str(folder / "eins zwei 🎤.wav")
    assert row["label"] in ("anger", "neutral", "sadness")
    missing = hyfuse("predict", "m", folder / "eins zwei 🎤.wav")
    assert missing.status == 1
    assert "has no transcript" in missing.out
    (folder / "list.csv").write_bytes("path\nä.wav\n".encode("latin-1"))
    assert "is not UTF-8" in hyfuse("predict", "m", folder / "list.csv").err


def test_failures_are_rows_and_exit_status_1(hyfuse: Runner, project: Project, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "text.wav").write_text("no sound", encoding="utf-8")
    (tmp_path / "in" / "empty.wav").write_bytes(b"")
    shutil.copy(project.data / "s0_anger_0.wav", tmp_path / "in" / "good.wav")
    for form in ("csv", "jsonl"):
        done = hyfuse("predict", project.model(), "in", "--out", f"out.{form}")
        assert done.status == 1
        assert "2 recording(s) could not be used" in done.err
    rows = {Path(row["path"]).name: row for row in _rows(Path("out.csv"))}
    assert "is empty" in rows["empty.wav"]["failure"]
    assert rows["empty.wav"]["end_s"] == rows["empty.wav"]["p_anger"] == rows["empty.wav"]["label"] == ""
    assert "cannot be read as audio" in rows["text.wav"]["failure"]
    assert rows["good.wav"]["failure"] == ""
    lines = [json.loads(line) for line in Path("out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [Path(line["path"]).name for line in lines] == ["empty.wav", "good.wav", "text.wav"]
    assert lines[0]["scores"] == {"anger": None, "neutral": None, "sadness": None}
    assert lines[0]["end_s"] is None
    assert [str(value) for value in lines[1]["scores"].values()] == [
        rows["good.wav"][f"p_{name}"] for name in lines[1]["scores"]
    ]
    # What could not be read is tried again, what could be is not.
    shutil.copy(project.data / "s0_anger_1.wav", tmp_path / "in" / "empty.wav")
    again = hyfuse("predict", project.model(), "in", "--out", "out.csv")
    assert again.status == 1
    assert "1 of 3 recordings are in out.csv already" in again.err
    rows = {Path(row["path"]).name: row for row in _rows(Path("out.csv"))}
    assert len(_rows(Path("out.csv"))) == 3
    assert rows["empty.wav"]["label"]


@pytest.mark.parametrize("form", ["csv", "jsonl"])
@pytest.mark.parametrize("segment", [(), ("--segment", "0.3", "--step", "0.2")])
def test_a_killed_prediction_goes_on(hyfuse: Runner, project: Project, form: str, segment: tuple[str, ...]) -> None:
    odd = Path('a\nb "c" \u2028🙂.wav')
    shutil.copy(project.data / "s0_anger_0.wav", odd)
    wanted = [*sorted(project.data.glob("s[12]_a*.wav")), odd, project.data / "s3_anger_0.wav"]
    arguments = ("predict", project.model(), *wanted, *segment)
    assert hyfuse(*arguments, "--out", f"whole.{form}").status == 0
    whole = Path(f"whole.{form}").read_bytes()
    out = Path(f"out.{form}")
    for share in (0.0, 0.01, 0.4, 0.7, 0.83, 0.97, 1.0):
        out.write_bytes(whole[: int(len(whole) * share)])
        done = hyfuse(*arguments, "--out", out)
        assert done.status == 0, done.err
        assert out.read_bytes() == whole
    assert "recordings are in out" in done.err


@pytest.mark.slow
def test_a_real_kill(project: Project, tmp_path: Path) -> None:
    paths = []
    for index in range(60):
        paths.append(tmp_path / f"{index:02}.wav")
        shutil.copy(project.data / f"s{index % 6}_anger_0.wav", paths[-1])
    command = [
        sys.executable,
        "-m",
        "hyfuse_cli.app",
        "predict",
        project.model(),
        tmp_path,
        "--out",
        tmp_path / "out.csv",
    ]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    out = tmp_path / "out.csv"
    end = time.monotonic() + 60
    while time.monotonic() < end and process.poll() is None and (not out.exists() or out.read_bytes().count(b"\n") < 5):
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = _rows(out)[:-1]
    assert 3 <= len(kept) < 60
    done = subprocess.run(command, env=environment, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 0
    rows = _rows(out)
    assert rows[: len(kept)] == kept
    assert [row["path"] for row in rows] == [str(path) for path in paths]


def test_segments_have_times(hyfuse: Runner, project: Project) -> None:
    generator = np.random.default_rng(0)
    samples = np.concatenate(
        [0.1 * generator.standard_normal(16000), np.zeros(16000), 0.1 * generator.standard_normal(8000)]
    )
    soundfile.write("long.wav", samples, 16000)
    done = hyfuse("predict", project.model(), "long.wav", "--segment", 1, "--out", "out.csv")
    assert done.status == 1
    rows = _rows(Path("out.csv"))
    assert [(row["start_s"], row["end_s"]) for row in rows] == [("0.0", "1.0"), ("1.0", "2.0"), ("1.5", "2.5")]
    assert "part is silent" in rows[1]["failure"]
    assert {row["segments"] for row in rows} == {"1 s every 1 s"}
    # The silent part was looked at; only the last recording is done again.
    (Path("a.wav")).write_bytes(Path("long.wav").read_bytes())
    again = hyfuse("predict", project.model(), "long.wav", "a.wav", "--segment", 1, "--out", "out.csv")
    assert again.status == 1
    third = hyfuse("predict", project.model(), "long.wav", "a.wav", "--segment", 1, "--out", "out.csv")
    assert "1 of 2 recordings are in out.csv already" in third.err
    assert "2 recording(s) could not be used, or not all of them" in third.err


def test_output_of_something_else_is_left_alone(hyfuse: Runner, project: Project) -> None:
    wav, model, other = project.data / "s0_anger_0.wav", project.model(), project.model(LEFT)
    for form in ("csv", "jsonl"):
        assert hyfuse("predict", other, wav, "--out", f"out.{form}").status == 0
        before = Path(f"out.{form}").read_bytes()
        for arguments in ((model, wav), (other, wav, "--segment", 1)):
            done = hyfuse("predict", *arguments, "--out", f"out.{form}")
            assert done.status == 2
            assert "holds something else than predictions of this model" in done.err
        assert Path(f"out.{form}").read_bytes() == before
    for content in ("utterance,label\na,b\n", "no line end", "[1]\n{}\n", "\xff"):
        for form in ("csv", "jsonl"):
            Path(f"notes.{form}").write_bytes(content.encode("latin-1"))
            done = hyfuse("predict", model, wav, "--out", f"notes.{form}")
            assert done.status == 2
            assert "holds something else" in done.err
            assert Path(f"notes.{form}").read_bytes() == content.encode("latin-1")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("x.wav", "--format", "xml"), "format"),
        (("x.wav", "--out", "x.txt"), "Name it with --format, or let --out end so"),
        (("x.wav", "--step", "1"), "--step goes with --segment"),
        (("x.wav", "--segment", "1", "--step", "2"), "expected 0 < step <= segment"),
        (("none/*.wav",), "No file is called none/*.wav"),
        (("none.csv",), "none.csv cannot be read"),
        (("x.wav", "--out", "/proc/none/out.csv"), "cannot be"),
    ],
)
def test_mistakes(hyfuse: Runner, project: Project, arguments: tuple[str, ...], message: str) -> None:
    done = hyfuse("predict", project.model(), *arguments)
    assert done.status == 2
    assert message in done.err
    assert "Traceback" not in done.err


def test_what_is_no_model(hyfuse: Runner, project: Project, tmp_path: Path) -> None:
    assert "model.json is not there" in hyfuse("predict", project.compared(), "x.wav").err
    shutil.copytree(project.model(), tmp_path / "edited")
    path = tmp_path / "edited" / "model.json"
    path.write_text(path.read_text(encoding="utf-8").replace('"anger"', '"joy"'), encoding="utf-8")
    done = hyfuse("predict", "edited", "x.wav")
    assert done.status == 2
    assert "was edited after the export" in done.err


def test_a_full_disk_is_explained(hyfuse: Runner, project: Project) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full here")
    done = hyfuse("predict", project.model(), project.data / "s0_anger_0.wav", "--out", "/dev/full", "--format", "csv")
    assert done.status == 2
    assert "/dev/full cannot be written: No space left on device" in done.err
