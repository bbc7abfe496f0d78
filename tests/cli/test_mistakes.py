"""Bad input: each mistake ends with status 2 and one paragraph that names the value and the way out."""

from __future__ import annotations

import errno
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.cli.conftest import RATE_HZ, Runner, write_corpus
from tests.corpora import official_trees


def _extract(hyfuse: Runner, corpus: object, model: str = "xvector-tiny") -> None:
    done = hyfuse("extract", "--model", model, "--corpus", corpus, "--weights", "random")
    assert done.status == 0, done.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("extract", "--model", "wavml", "--corpus", "emodb"), "Unknown model 'wavml'. Did you mean 'wavlm'"),
        (("extract", "--model", "wavlm", "--corpus", "emobd"), "Unknown corpus 'emobd'. Did you mean 'emodb'"),
        (("extract", "--model", "wavlm", "--corpus", "emodb"), "hyfuse corpora prepare emodb --root"),
        (("extract", "--model", "wavlm", "--corpus", "emodb", "--data-root", "nowhere"), "nowhere"),
        (("extract", "--model", "wavlm", "--corpus", "absent.csv"), "There is no manifest at absent.csv"),
        (("corpora", "show", "iemocp"), "Did you mean 'iemocap'"),
        (("models", "show", "encodek"), "Did you mean 'encodec'"),
        (("compare",), "No corpus is cached in cache"),
        (("compare", "--corpus", "emodb"), "emodb"),
        (("train", "--pair", "xvector", "soundstream"), "No corpus is cached in cache"),
        (("train",), "Give either --pair LEFT RIGHT or --single NAME"),
        (("train", "--pair", "wavlm", "wavlm"), "two different encoders"),
        (
            ("train", "--pair", "a", "b", "--fusion", "concat", "--order", "right-left"),
            "--order means nothing to 'concat'",
        ),
        (("train", "--pair", "a", "b", "--fusion", "hyperbolik"), "Did you mean 'hyperbolic'"),
        (("cache", "remove", "emodb/wavlm", "--yes"), "Unknown store 'emodb/wavlm'"),
    ],
)
def test_a_mistake_is_explained(hyfuse: Runner, arguments: tuple[str, ...], message: str) -> None:
    done = hyfuse(*arguments)
    assert done.status == 2
    assert done.err.startswith("Error:")
    assert message in done.err
    assert "Traceback" not in done.err


def test_weights_that_are_not_here_name_file_source_licence_and_folder(hyfuse: Runner, corpus: Path) -> None:
    done = hyfuse("extract", "--model", "soundstream-lyra", "--corpus", corpus, "--weights-dir", "my-weights")
    assert done.status == 2
    for part in ("soundstream_encoder.tflite", "github.com/google/lyra", "Apache-2.0", "my-weights/soundstream-lyra"):
        assert part in done.err
    assert "--weights random" in done.err


def test_tiny_models_have_no_pretrained_weights(hyfuse: Runner, corpus: Path) -> None:
    done = hyfuse("extract", "--model", "wavlm-tiny", "--corpus", corpus)
    assert done.status == 2
    assert "Add `--weights random`" in done.err


def test_the_root_of_another_corpus(hyfuse: Runner, tmp_path: Path) -> None:
    root = official_trees.ravdess(tmp_path / "data")
    done = hyfuse("extract", "--model", "wavlm", "--corpus", "emodb", "--data-root", root)
    assert done.status == 2
    assert "ravdess" in done.err


def test_recordings_that_cannot_be_used_are_named_and_left_out(hyfuse: Runner, corpus: Path) -> None:
    data = corpus.parent
    (data / "s0_anger_0.wav").write_bytes(b"")
    (data / "s1_anger_0.wav").write_text("this is no recording")
    soundfile.write(data / "s2_anger_0.wav", np.zeros(RATE_HZ), RATE_HZ)
    extract = ("extract", "--model", "xvector-tiny", "--corpus", corpus, "--weights", "random")
    stopped = hyfuse(*extract)
    assert stopped.status == 2
    assert "3 of 54 recordings failed, more than the 1 that may (--max-failures)." in stopped.err
    assert "--retry-failed" in stopped.err
    done = hyfuse(*extract, "--max-failures", "10%")
    assert done.status == 0, done.err
    assert "51 of 54 utterances in" in done.err
    assert "3 recording(s) could not be used" in done.err
    for part in ("s0_anger_0:", "empty (0 bytes)", "cannot be read as audio", "is silent"):
        assert part in done.err
    trained = hyfuse(
        "train", "--single", "xvector-tiny", "--protocol", "speaker-3fold", "--seeds", 1, "--epochs", 1, "--workers", 1
    )
    assert trained.status == 0, trained.err
    assert "Left out: 3 (failed in xvector-tiny)" in trained.out
    assert "51 utterances" in trained.out


def test_lfs_pointers_and_missing_recordings_stop_before_anything_is_stored(
    hyfuse: Runner, corpus: Path, tmp_path: Path
) -> None:
    recording = corpus.parent / "s0_anger_0.wav"
    content = recording.read_bytes()
    recording.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    pointer = hyfuse("extract", "--model", "xvector-tiny", "--corpus", corpus, "--weights", "random")
    assert pointer.status == 2
    assert "git lfs pull" in pointer.err
    recording.unlink()
    missing = hyfuse("extract", "--model", "xvector-tiny", "--corpus", corpus, "--weights", "random")
    assert missing.status == 2
    assert "s0_anger_0" in missing.err
    assert not list((tmp_path / "cache").glob("my/*"))
    recording.write_bytes(content)
    _extract(hyfuse, corpus)


def test_an_unlabelled_corpus_can_be_extracted_but_not_trained_on(hyfuse: Runner, corpus: Path) -> None:
    corpus.write_text("\n".join(line.rpartition(",")[0] for line in corpus.read_text().splitlines()))
    _extract(hyfuse, corpus)
    done = hyfuse("train", "--single", "xvector-tiny")
    assert done.status == 2
    assert "Check the column 'emotion'" in done.err


def test_too_few_speakers(hyfuse: Runner, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "data", speakers=3)
    _extract(hyfuse, corpus)
    done = hyfuse("train", "--single", "xvector-tiny")
    assert done.status == 2
    assert "speaker-5fold needs at least 5 speakers; this corpus has 3" in done.err
    assert "loso" in done.err


def test_a_class_that_only_one_speaker_has(hyfuse: Runner, corpus: Path) -> None:
    lines = corpus.read_text().splitlines()
    kept = [line for line in lines if not line.endswith("sadness") or line.startswith("s0")]
    corpus.write_text("\n".join(kept))
    _extract(hyfuse, corpus)
    done = hyfuse("train", "--single", "xvector-tiny", "--protocol", "loso")
    assert done.status == 2
    assert "no training utterance of sadness" in done.err
    assert "--classes" in done.err


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (("--protocol", "speaker-5fould"), "Unknown protocol 'speaker-5fould'"),
        (("--representation", "xvector-tiny=layer_03"), "Unknown representation of xvector-tiny 'layer_03'"),
        (("--representation", "layer_03"), "ENCODER=REPRESENTATION"),
        (("--pool", "max"), "mean, std, mean+std"),
        (("--pool", "std"), "one frame per utterance"),
        (("--classes", "anger,joy"), "Unknown class of corpus 'my' 'joy'"),
        (("--seeds", "0"), "--seeds must be between 1 and 1000"),
        (("--epochs", "0"), "epochs"),
        (("--learning-rate", "-1"), "learning_rate"),
        (("--run", "../elsewhere"), "cannot be a folder's name"),
        (("--device", "cuda:99"), "cuda:99"),
    ],
)
def test_training_options_that_make_no_sense(
    hyfuse: Runner, corpus: Path, option: tuple[str, str], message: str
) -> None:
    _extract(hyfuse, corpus)
    done = hyfuse("train", "--single", "xvector-tiny", "--workers", 1, *option)
    assert done.status == 2
    assert message in done.err


def test_a_store_of_other_weights_or_another_manifest(
    hyfuse: Runner, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _extract(hyfuse, corpus, "byols")
    monkeypatch.setenv("HYFUSE_WEIGHTS_KIND", "random")
    corpus.write_text("\n".join(corpus.read_text().splitlines()[:-1]))
    done = hyfuse("extract", "--model", "byols", "--corpus", corpus)
    assert done.status == 2
    assert "54" in done.err
    assert "53" in done.err
    assert "hyfuse cache remove my" in done.err


def test_a_model_that_is_not_cached(hyfuse: Runner, corpus: Path) -> None:
    _extract(hyfuse, corpus)
    done = hyfuse("train", "--pair", "xvector-tiny", "soundstream-tiny")
    assert done.status == 2
    assert "hyfuse extract --model soundstream-tiny --corpus my" in done.err
    compared = hyfuse("compare")
    assert compared.status == 2
    assert "no heterogeneous pair among xvector-tiny (RLR)" in compared.err


def test_a_full_disk_while_extracting(hyfuse: Runner, corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from zarr.storage import LocalStore

    real = LocalStore.set
    written = 0

    async def full(self: LocalStore, key: str, value: object) -> None:
        nonlocal written
        written += "/c/" in key
        if written > 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        await real(self, key, value)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(LocalStore, "set", full)
        done = hyfuse("extract", "--model", "xvector-tiny", "--corpus", corpus, "--weights", "random")
    assert done.status == 2
    assert "No space left on device" in done.err
    assert "run the same command again to go on" in done.err
    _extract(hyfuse, corpus)
    assert hyfuse("cache", "verify").status == 0


def test_a_full_disk_while_training_keeps_what_was_finished(
    hyfuse: Runner, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pipelines.files as files

    _extract(hyfuse, corpus)
    options = ("train", "--single", "xvector-tiny", "--protocol", "speaker-3fold", "--seeds", 1, "--epochs", 1)

    def full(source: object, target: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "replace", full)
        done = hyfuse(*options)
    assert done.status == 2
    assert "No space left on device" in done.err
    assert hyfuse(*options).status == 0


def test_debug_shows_the_traceback(hyfuse: Runner) -> None:
    from pipelines.errors import UnknownNameError

    with pytest.raises(UnknownNameError):
        hyfuse("models", "show", "encodek", "--debug")
