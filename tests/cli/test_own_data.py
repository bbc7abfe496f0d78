"""Corpora of one's own on the command line: from names, from folders, by download, and tables as people really save them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.cli.conftest import Runner, write_corpus
from tests.corpora.databases import audformat_folder

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

_EXTRACT = ("--model", "xvector-tiny", "--model", "encodec-tiny", "--weights", "random")
_COMPARE = ("--fusions", "concat", "--seeds", "1", "--epochs", "1")


def _works(hyfuse: Runner, corpus: object, *, known_as: str, utterances: int) -> None:
    """Extract and compare end well."""
    extracted = hyfuse("extract", "--corpus", corpus, *_EXTRACT)
    assert extracted.status == 0, extracted.err
    assert f"{utterances}" in extracted.out + extracted.err
    compared = hyfuse("compare", "--corpus", known_as, "--protocol", "loso", *_COMPARE)
    assert compared.status == 0, compared.err
    assert "hyfuse report" in compared.err + compared.out


def _rows(corpus: Path) -> list[str]:
    return corpus.read_text(encoding="utf-8").splitlines()


# ------------------------------------------------------------------------------------------------ hyfuse corpora new


def test_new_previews_writes_and_what_it_wrote_works(hyfuse: Runner, corpus: Path) -> None:
    data = corpus.parent
    corpus.unlink()
    shutil.copy(data / "s0_anger_0.wav", data / "odd.wav")
    new = ("corpora", "new", data, "--pattern", "{speaker}_{emotion}_{take}.wav", "--out", "mine.csv")
    preview = hyfuse(*new)
    assert preview.status == 0, preview.err
    assert "54 of 55 recordings fit" in preview.out
    assert "speakers 6: s0 9, s1 9" in preview.out
    assert "emotions 3: anger 18, neutral 18, sadness 18" in preview.out
    assert "do not fit the pattern and are left out: odd.wav" in preview.err
    assert "Nothing was written. If this is right: `hyfuse corpora new" in preview.err
    assert not Path("mine.csv").exists()
    written = hyfuse(*new, "--yes")
    assert written.status == 0, written.err
    assert "Next: `hyfuse extract --model wavlm --corpus mine.csv`" in written.err
    assert _rows(Path("mine.csv"))[1].startswith("s0_anger_0,data/s0_anger_0.wav,s0,")
    assert hyfuse(*new, "--yes").status == 0  # the same again changes nothing
    assert hyfuse("corpora", "check", "mine.csv").status == 0
    done = hyfuse("extract", "--corpus", "mine.csv", "--model", "xvector-tiny", "--weights", "random")
    assert done.status == 0, done.err
    (data / "s0_anger_0.wav").unlink()
    changed = hyfuse(*new, "--yes")
    assert changed.status == 2
    assert "mine.csv exists and says something else" in changed.err


def test_new_explains_what_is_wrong(hyfuse: Runner, corpus: Path) -> None:
    data = corpus.parent
    none = hyfuse("corpora", "new", data, "--pattern", "{speaker}-{emotion}.wav")
    assert none.status == 2
    assert "No name in" in none.err
    assert "A name is 's0_anger_0.wav'" in none.err
    touching = hyfuse("corpora", "new", data, "--pattern", "{speaker}{emotion}.wav")
    assert (touching.status, "touch" in touching.err) == (2, True)
    suffix = hyfuse("corpora", "new", data, "--pattern", "{speaker}_{emotion}_*", "--out", "x.xlsx")
    assert (suffix.status, "must end in .csv" in suffix.err) == (2, True)
    (data / "s0_angr_9.wav").write_bytes((data / "s0_anger_0.wav").read_bytes())
    word = hyfuse("corpora", "new", data, "--pattern", "{speaker}_{emotion}_{take}", "--labels", "zzz=fear")
    assert "'angr' is no emotion that hyfuse knows" in word.err
    assert "Did you mean anger? `--labels angr=anger`" in word.err
    assert "--labels names zzz, which no file has" in word.err


# ------------------------------------------------------------------------------------------------ folders, downloads


def test_a_database_and_a_folder_per_class(hyfuse: Runner, tmp_path: Path) -> None:
    root = audformat_folder(tmp_path / "dbs" / "tiny")
    prepared = hyfuse("corpora", "prepare", root)
    assert prepared.status == 0, prepared.err
    assert "tiny: 8 utterances, 2 speakers" in prepared.out
    assert "Next: `hyfuse extract --model wavlm --corpus tiny`" in prepared.err
    wrong = hyfuse("corpora", "prepare", root, "--table", "emotions")
    assert (wrong.status, "Did you mean 'emotion" in wrong.err) == (2, True)
    done = hyfuse("extract", "--corpus", root, "--model", "xvector-tiny", "--weights", "random")
    assert done.status == 0, done.err
    assert (tmp_path / "cache" / "tiny" / "xvector-tiny").is_dir()
    voices = tmp_path / "voices"
    for speaker, emotion in (("03", "W"), ("08", "N")):
        for path in (root / "wav").glob(f"{speaker}*{emotion}?.wav"):
            (voices / emotion).mkdir(parents=True, exist_ok=True)
            shutil.copy(path, voices / emotion)
    assert "voices: 4 utterances, 1 speakers" in hyfuse("corpora", "prepare", "voices").out


def test_fetch(hyfuse: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    audb = pytest.importorskip("audb")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    (tmp_path / "host" / "repo").mkdir(parents=True)
    repository = audb.Repository("repo", str(tmp_path / "host"), "file-system")
    monkeypatch.setattr(audb.config, "REPOSITORIES", [repository])
    audb.publish(
        str(audformat_folder(tmp_path / "source")), "1.4.1", repository, cache_root=str(tmp_path / "c"), verbose=False
    )
    for folder in ("host/repo/tiny", "host/repo/emodb"):
        (tmp_path / folder).exists() or (tmp_path / "host/repo/tiny").rename(tmp_path / folder)
    asked = hyfuse("corpora", "fetch", "emodb")
    assert asked.status == 2
    assert "licence CC0 1.0" in asked.out
    assert "`hyfuse corpora fetch emodb --accept-licence`" in asked.err
    done = hyfuse("corpora", "fetch", "emodb", "--accept-licence")
    assert done.status == 0, done.err
    assert "11 files of emodb 1.4.1 are in data/emodb (11 new)" in done.err
    assert "emodb: 8 utterances, 2 speakers" in done.out
    assert "Next: `hyfuse extract --model wavlm --corpus emodb`" in done.err
    again = hyfuse("corpora", "fetch", "emodb")
    assert again.status == 0, again.err
    assert "data/emodb has all 11 files" in again.err
    assert "licence" not in again.out
    assert hyfuse("corpora", "prepare", "emodb").status == 0  # remembered
    assert "emodb: 8 utterances" in hyfuse("corpora", "prepare", "data/emodb").out


def test_fetch_of_what_cannot_be_fetched(hyfuse: Runner) -> None:
    gated = hyfuse("corpora", "fetch", "msp-podcast")
    assert gated.status == 2
    assert "cannot be fetched" in gated.err
    assert "https://ecs.utdallas.edu/research/researchlabs/msp-lab/MSP-Podcast.html" in gated.err
    assert "`hyfuse corpora prepare msp-podcast --root DIR`" in gated.err
    assert "`hyfuse corpora prepare demo`" in hyfuse("corpora", "fetch", "demo").err
    assert "Did you mean 'emodb'" in hyfuse("corpora", "fetch", "emobd").err


# ------------------------------------------------------------------------------------------------ tables as they come


def _spoil(corpus: Path, how: str) -> None:
    """Save the table as other programs do."""
    text = corpus.read_text(encoding="utf-8")
    if how == "bom":
        corpus.write_text(text, encoding="utf-8-sig")
    elif how == "windows line ends":
        corpus.write_bytes(text.replace("\n", "\r\n").encode())
    elif how == "old mac line ends":
        corpus.write_bytes(text.replace("\n", "\r").encode())
    elif how == "semicolons":
        lines = [f"{line};{'valence' if number == 0 else '2,5'};;" for number, line in
                 enumerate(text.replace(",", ";").splitlines())]  # fmt: skip
        corpus.write_text("\n".join([*lines, ";" * 6, ""]), encoding="utf-8-sig", newline="\r\n")
    elif how == "tabs":
        corpus.write_text(text.replace(",", "\t"))
    elif how == "sep line":
        corpus.write_text("sep=;\n" + text.replace(",", ";"), encoding="utf-8-sig")
    elif how == "capitals and spaces":
        header, _, rows = text.partition("\n")
        corpus.write_text(header.title().replace("_I", "_i").replace(",", ", ") + "\n" + rows)


@pytest.mark.parametrize(
    "how", ["bom", "windows line ends", "old mac line ends", "semicolons", "tabs", "sep line", "capitals and spaces"]
)
def test_tables_of_other_programs_say_the_same(corpus: Path, tmp_path: Path, how: str) -> None:
    from pipelines.corpora.manifest import read_manifest
    from pipelines.corpora.resolve import resolve_corpus

    plain = read_manifest(corpus)
    _spoil(corpus, how)
    read = resolve_corpus(str(corpus), cache_dir=tmp_path / "cache").manifest
    for column in ("utterance_id", "path", "speaker", "emotion"):
        assert list(read.table[column]) == list(plain.table[column])
    if how == "semicolons":
        assert set(read.table["valence"]) == {2.5}


def test_semicolons_in_a_folder_with_spaces_and_emoji(hyfuse: Runner, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "my data 😀", speakers=3, emotions=("anger", "neutral"), takes=2)
    lines = _rows(corpus)
    for path in list(corpus.parent.glob("s0_*.wav")):
        path.rename(path.with_name(f"ä 😀 {path.name}"))
    corpus.write_bytes(
        "\r\n".join(line.replace(",s0_", ",ä 😀 s0_").replace(",", ";") for line in lines).encode("utf-8-sig")
    )
    named = corpus.rename(corpus.with_name("my table 😀.csv"))
    _works(hyfuse, named, known_as="my table 😀", utterances=12)


def test_paths_with_backslashes(hyfuse: Runner, corpus: Path, tmp_path: Path) -> None:
    (corpus.parent / "rec").mkdir()
    for path in list(corpus.parent.glob("*.wav")):
        path.rename(path.parent / "rec" / path.name)
    header, *rows = _rows(corpus)
    table = [header, *(row.replace(",", ",rec\\", 1) for row in rows)]
    corpus.write_text("\n".join(table) + "\n")
    prepared = hyfuse("corpora", "prepare", corpus)
    assert prepared.status == 0, prepared.err
    assert "54 path(s) had backslashes, as on Windows" in prepared.err
    assert "rec/s0_anger_0.wav" in (tmp_path / "cache" / "my" / "manifest.csv").read_text()


def test_absolute_paths_of_windows_name_the_command_that_mends_them(hyfuse: Runner, corpus: Path) -> None:
    """The command that the message names is run, and then it works."""
    import re
    import subprocess

    header, *rows = _rows(corpus)
    corpus.write_text(
        "\n".join([header, *(row.replace(",", ",C:\\Users\\Änne [x]\\My.Data\\", 1) for row in rows)]) + "\n"
    )
    for command in (("extract", "--corpus", corpus, *_EXTRACT), ("corpora", "prepare", corpus)):
        failed = hyfuse(*command)
        assert failed.status == 2
        assert (
            "54 path(s) in my.csv are absolute paths of a Windows machine, below C:\\Users\\Änne [x]\\My.Data\\"
            in failed.err
        )
    fix = re.search(r"`(sed -i .*?)`", failed.err)
    assert fix is not None
    subprocess.run(["bash", "-c", fix[1]], cwd=corpus.parent, check=True)
    assert hyfuse("corpora", "prepare", corpus, "--root", corpus.parent).status == 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("utterance_id,path,speaker,emotion\na,ä.wav,s,anger\n".encode("latin-1"), "iconv -f latin1 -t utf-8 my.csv"),
        ("utterance_id,path,speaker,emotion\na,b.wav,s,anger\n".encode("utf-16"), "iconv -f utf-16 -t utf-8 my.csv"),
        (b"utterance_id,path,speaker\na,b.wav,#NAME?\n", "row 1: speaker is '#NAME?', which a spreadsheet wrote"),
        (b"utterance_id,path,speaker\n1.23E+11,b.wav,s\n", "utterance_id is '1.23E+11', which a spreadsheet wrote"),
        (b"utterance_id|path|speaker\na|b.wav|s\n", "columns look separated by something else"),
        (b"", "my.csv is empty"),
        (b"utterance_id,path,speaker\n,,\n", "lists no utterance"),
        (b"PK\x03\x04\xff\xfe\x00\x80", "my.csv is not UTF-8"),
    ],
)
def test_tables_that_cannot_be_read(hyfuse: Runner, tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "my.csv").write_bytes(content)
    for command in (("extract", "--corpus", "my.csv", *_EXTRACT), ("corpora", "check", "my.csv")):
        done = hyfuse(*command)
        assert done.status == 2
        assert message in done.err
        assert "Traceback" not in done.err


def test_one_utterance_is_extracted_and_not_compared(hyfuse: Runner, corpus: Path) -> None:
    corpus.write_text("\n".join(_rows(corpus)[:2]) + "\n")
    extracted = hyfuse("extract", "--corpus", corpus, *_EXTRACT)
    assert extracted.status == 0, extracted.err
    assert hyfuse("corpora", "check", corpus).status == 0
    for protocol in ((), ("--protocol", "random-5fold")):
        compared = hyfuse("compare", "--corpus", corpus, *_COMPARE, *protocol)
        assert compared.status == 2
        assert compared.err.startswith("Error:")
        assert "1 " in compared.err
