"""Embeddings in and out by the command line: exported, imported, fused with others, checked against the recordings."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import soundfile

from pipelines.store.embeddings import EmbeddingStore, open_store, store_path
from tests.cli.conftest import RATE_HZ, Runner


def _extract(hyfuse: Runner, corpus: object, *models: str) -> None:
    done = hyfuse("extract", *(f"--model={name}" for name in models), "--corpus", corpus, "--weights", "random")
    assert done.status == 0, done.err


def _store(tmp_path: Path, model: str, corpus: str = "my") -> EmbeddingStore:
    return open_store(store_path(tmp_path / "cache", corpus, model))


def _features_of(corpus: Path, out: Path) -> Path:
    """What another tool might write: level and zero crossings of every recording, by file name, as openSMILE does."""
    rows = []
    with corpus.open(encoding="utf-8") as handle:
        for row in csv.DictReader(handle):
            samples, _ = soundfile.read(corpus.parent / row["path"])
            crossings = np.mean(np.diff(np.signbit(samples)))
            rows.append(
                f"'{row['path']}';0.0;{float(np.abs(samples).mean())!r};{float(samples.std())!r};{float(crossings)!r}"
            )
    out.write_text("name;frameTime;level;std;crossings\n" + "\n".join(rows) + "\n", encoding="utf-8")
    return out


# ---------------------------------------------------------------------------------------------------- import and compare


def test_features_of_another_tool_are_fused_and_compared(hyfuse: Runner, corpus: Path, tmp_path: Path) -> None:
    _extract(hyfuse, corpus, "soundstream-tiny")
    features = _features_of(corpus, tmp_path / "features.csv")
    done = hyfuse("cache", "import", features, "--corpus", "my", "--name", "my-features")
    assert done.status == 0, done.err
    assert "my-features (imported): 54 utterances in" in done.err
    assert "1 representation(s) of 3 numbers" in done.err
    assert "Not taken for features: frameTime." in done.err
    assert 'Next: `hyfuse compare --corpus my --models "my-features …"`' in done.err
    assert "my/my-features/clean imported 54 0 0 1 × 3" in hyfuse("cache", "list").out
    compared = hyfuse(
        "compare", "--models", "my-features soundstream-tiny", "--protocol", "speaker-3fold", "--seeds", 1, "--epochs", 2,
        "--fusions", "concat", "--workers", 1,
    )  # fmt: skip
    assert compared.status == 0, compared.err
    weights = "Weights: my-features imported, soundstream-tiny random."
    assert weights in compared.out
    run = tmp_path / "runs" / "my-speaker-3fold"
    for name in ("table.md", "table.tex"):  # every table says so
        assert weights in (run / name).read_text()
    with (run / "table.csv").open() as handle:
        neural = [row for row in csv.DictReader(handle) if row["fusion"] != "logistic"]
        assert [(row["left"], row["right"]) for row in neural] == [
            ("my-features", ""), ("soundstream-tiny", ""), ("my-features", "soundstream-tiny"),
        ]  # fmt: skip
    trained = hyfuse(
        "train", "--pair", "my-features", "soundstream-tiny", "--fusion", "hyperbolic", "--protocol", "speaker-3fold",
        "--seeds", 1, "--epochs", 1, "--workers", 1,
    )  # fmt: skip
    assert trained.status == 0, trained.err
    assert "Shuffling my-features among the test utterances costs" in trained.out


def test_a_codec_of_another_tool_takes_the_other_side(hyfuse: Runner, corpus: Path, tmp_path: Path) -> None:
    _extract(hyfuse, corpus, "xvector-tiny")
    features = _features_of(corpus, tmp_path / "features.csv")
    assert hyfuse("cache", "import", features, "-c", "my", "--name", "mine", "--family", "CBR").status == 0
    compared = hyfuse(
        "compare", "--models", "mine xvector-tiny", "--protocol", "speaker-3fold", "--seeds", 1, "--epochs", 1,
        "--fusions", "concat", "--workers", 1,
    )  # fmt: skip
    assert compared.status == 0, compared.err
    assert "xvector-tiny (random)" in compared.out
    assert "Weights: " in compared.out


def test_import_finds_the_corpus_by_its_table(hyfuse: Runner, corpus: Path, tmp_path: Path) -> None:
    features = _features_of(corpus, tmp_path / "features.csv")
    done = hyfuse("cache", "import", features, "--corpus", corpus, "--name", "mine")
    assert done.status == 0, done.err
    assert _store(tmp_path, "mine").counts == (0, 54, 0)


@pytest.mark.slow
def test_import_for_the_demo_corpus(hyfuse: Runner, tmp_path: Path) -> None:
    """The corpus is made if need be; missing utterances are left out of the comparison and counted."""
    _extract(hyfuse, "demo", "soundstream-tiny")
    manifest = pd.read_csv(tmp_path / "cache" / "demo" / "manifest.csv")
    generator = np.random.default_rng(0)
    ids = manifest["utterance_id"].to_numpy(dtype=np.str_)
    np.savez(tmp_path / "x.npz", utterance_id=ids[3:], embeddings=generator.standard_normal((len(ids) - 3, 8)))
    refused = hyfuse("cache", "import", "x.npz", "--corpus", "demo", "--name", "noise")
    assert refused.status == 2
    assert f"3 of {len(ids)} utterances of 'demo' are not in x.npz" in refused.err
    done = hyfuse("cache", "import", "x.npz", "--corpus", "demo", "--name", "noise", "--allow-missing")
    assert done.status == 0, done.err
    assert "3 utterance(s) have no embedding and are left out of training:" in done.err
    compared = hyfuse(
        "compare", "--corpus", "demo", "--models", "noise soundstream-tiny", "--seeds", 1, "--epochs", 1,
        "--fusions", "concat", "--workers", 1,
    )  # fmt: skip
    assert compared.status == 0, compared.err
    assert "Left out: 3 (failed in noise)." in compared.out


def test_mistakes_of_an_import(hyfuse: Runner, corpus: Path, tmp_path: Path) -> None:
    _extract(hyfuse, corpus, "xvector-tiny")
    features = _features_of(corpus, tmp_path / "features.csv")
    (tmp_path / "x.pkl").write_bytes(b"")
    for arguments, message in (
        ((features, "-c", "my", "--name", "wavlm"), "'wavlm' is the name of an encoder that hyfuse computes itself"),
        ((features, "-c", "my", "--name", "wavlm-base"), "'wavlm-base' is the name of an encoder"),
        ((features, "-c", "my", "--name", "a/b"), "--name 'a/b' cannot be used"),
        ((features, "-c", "my", "--name", "mine", "--family", "LEX"), "--family must be one of RLR, CBR, not 'LEX'"),
        ((features, "-c", "mine", "--name", "mine"), "Unknown corpus 'mine'"),
        (("x.pkl", "-c", "my", "--name", "mine"), "hyfuse reads none"),
        (("absent.h5", "-c", "my", "--name", "mine"), "There is no file absent.h5"),
    ):
        done = hyfuse("cache", "import", *arguments)
        assert done.status == 2, arguments
        assert message in done.err
        assert "Traceback" not in done.err


# ---------------------------------------------------------------------------------------------------- export


def test_export_says_what_it_wrote(hyfuse: Runner, corpus: Path, tmp_path: Path) -> None:
    (corpus.parent / "s0_anger_0.wav").write_bytes(b"")
    done = hyfuse("extract", "-m", "wavlm-tiny", "-c", corpus, "--weights", "random", "--max-failures", 1)
    assert done.status == 0, done.err
    done = hyfuse("cache", "export", "my/wavlm-tiny", "out/x.h5", "--representation", "layer_01", "--pool", "mean")
    assert done.status == 0, done.err
    assert "53 utterances are in out/x.h5: mean of layer_01." in done.err
    assert "The weights were random, and the file says so." in done.err
    assert "1 recording(s) that could not be used are listed there with their reasons." in done.err
    store = _store(tmp_path, "wavlm-tiny")
    with h5py.File(tmp_path / "out" / "x.h5") as file:
        ids = file["utterance_id"].asstr()[:].tolist()
        assert set(file["emotion"].asstr()[:]) == {"anger", "neutral", "sadness"}
        expected = store.features(ids, representation="layer_01", pool="mean")
        assert file["mean"][:, 0].tobytes() == expected.tobytes()
        assert "empty (0 bytes)" in file["failed/reason"].asstr()[0]


def test_mistakes_of_an_export(hyfuse: Runner, corpus: Path) -> None:
    _extract(hyfuse, corpus, "xvector-tiny", "soundstream-tiny")
    for arguments, message in (
        (
            ("my", "x.h5"),
            "'my' stands for 2 stores: my/soundstream-tiny/clean, my/xvector-tiny/clean. Export one at a time.",
        ),
        (("my/wavlm", "x.h5"), "Unknown store 'my/wavlm'"),
        (("my/xvector-tiny", "x.xls"), "ends in .h5, .npz, .parquet, .csv, not in .xls"),
        (("my/xvector-tiny", "x.h5", "--pool", "std"), "there is no std to export"),
        (
            ("my/xvector-tiny", "x.h5", "--representation", "layer_1"),
            "Unknown representation of xvector-tiny 'layer_1'",
        ),
    ):
        done = hyfuse("cache", "export", *arguments)
        assert done.status == 2, arguments
        assert message in done.err
    assert not Path("x.h5").exists()


# ---------------------------------------------------------------------------------------------------- list, verify


def test_list_as_json(hyfuse: Runner, corpus: Path, tmp_path: Path) -> None:
    _extract(hyfuse, corpus, "xvector-tiny", "soundstream-tiny")
    (tmp_path / "cache" / "my" / "xvector-tiny" / "clean.zarr" / "zarr.json").write_text("{")
    decoder, listed = json.JSONDecoder(), hyfuse("cache", "list", "--json").out
    first, end = decoder.raw_decode(listed)
    second, _ = decoder.raw_decode(listed[end:].lstrip())
    assert first["store"] == "my/soundstream-tiny/clean"
    assert (first["done"], first["failed"], first["todo"], first["weights_kind"]) == (54, 0, 0, "random")
    assert first["bytes"] > 1000
    assert second["store"] == "my/xvector-tiny/clean"
    assert "is not a hyfuse store, or is damaged" in second["error"]


def test_verify_prints_the_digest_of_the_content(hyfuse: Runner, corpus: Path, tmp_path: Path) -> None:
    _extract(hyfuse, corpus, "xvector-tiny")
    first = hyfuse("cache", "verify")
    assert first.status == 0, first.err
    digest = re.search(r"my/xvector-tiny/clean: ok \(54 done, 0 failed, 0 to do\) content ([0-9a-f]{64})$", first.out)
    assert digest
    assert hyfuse("cache", "remove", "my/xvector-tiny", "--yes").status == 0
    _extract(hyfuse, corpus, "xvector-tiny")
    assert hyfuse("cache", "verify").out == first.out


def test_verify_computes_rows_again_from_the_recordings(hyfuse: Runner, corpus: Path, tmp_path: Path) -> None:
    _extract(hyfuse, corpus, "wavlm-tiny", "encodec-tiny")
    hyfuse("cache", "import", _features_of(corpus, tmp_path / "f.csv"), "-c", "my", "--name", "mine")
    done = hyfuse("cache", "verify", "--audio-sample", 4, "--device", "cpu")
    assert done.status == 0, done.out + done.err
    assert done.out.count("4 rows computed again from the recordings agree: largest relative difference") == 2
    assert "allowed 1e-05" in done.out
    assert "not computed again: these embeddings were imported from a file" in done.out
    for path in corpus.parent.glob("*.wav"):
        samples, rate_hz = soundfile.read(path)
        soundfile.write(path, 0.9 * samples[::-1], rate_hz)
    wrong = hyfuse("cache", "verify", "my/wavlm-tiny", "--audio-sample", 2, "--seed", 1)
    assert wrong.status == 1
    assert "2 rows computed again from the recordings DO NOT AGREE" in wrong.out
    assert re.search(r"s\d_\w+_\d, mean of layer_00: differs by", wrong.out)


def test_verify_of_a_condition(hyfuse: Runner, corpus: Path) -> None:
    done = hyfuse("extract", "-m", "xvector-tiny", "-c", corpus, "--weights", "random", "--condition", "white@10dB")
    assert done.status == 0, done.err
    checked = hyfuse("cache", "verify", "--audio-sample", 3)
    assert checked.status == 0, checked.out + checked.err
    assert "my/xvector-tiny/white@10dB: ok" in checked.out
    assert "3 rows computed again from the recordings agree" in checked.out


def test_verify_without_the_recordings_says_where_they_were(hyfuse: Runner, corpus: Path, tmp_path: Path) -> None:
    _extract(hyfuse, corpus, "xvector-tiny")
    corpus.parent.rename(tmp_path / "moved")
    done = hyfuse("cache", "verify", "--audio-sample", 2)
    assert done.status == 2
    assert "is not there any more. Name the folder with `--data-root DIR`" in done.err
    assert hyfuse("cache", "verify", "--audio-sample", 2, "--data-root", tmp_path / "moved").status == 0


# ---------------------------------------------------------------------------------------------------- embed


@pytest.mark.parametrize("model", ["wavlm-tiny", "xvector-tiny", "encodec-tiny", "soundstream-tiny"])
def test_embed_gives_what_extract_gives(hyfuse: Runner, corpus: Path, tmp_path: Path, model: str) -> None:
    _extract(hyfuse, corpus, model)
    store = _store(tmp_path, model)
    done = hyfuse("embed", "data", "--model", model, "--weights", "random", "--representation", "all", "--pool", "mean+std",
                  "--out", "x.npz", "--device", "cpu")  # fmt: skip
    assert done.status == 0, done.err
    assert f"54 embedding(s) by {model} (random) are in x.npz." in done.err
    with np.load(tmp_path / "x.npz") as file:
        names = [Path(path).stem for path in file["utterance_id"].tolist()]
        assert sorted(names) == sorted(store.utterance_ids)
        rows = [store.utterance_ids.index(name) for name in names]
        assert file["num_frames"].tolist() == store.num_frames[rows].tolist()
        for index, representation in enumerate(store.provenance.representations):
            for array in ("mean", "std") if "std" in file else ("mean",):
                expected = store.features(names, representation=representation, pool=array)
                error = np.abs(file[array][:, index] - expected).max(axis=1) / np.abs(expected).max(axis=1)
                # A quantized frame that lies between two code words may fall to either side.
                assert np.quantile(error, 0.9) <= 1e-5
                assert error.max() <= (1e-2 if representation == "quantized" else 1e-5)
        assert ("std" in file) == (model != "xvector-tiny")


def test_embed_shows_a_table_and_names_what_is_broken(hyfuse: Runner, corpus: Path) -> None:
    (corpus.parent / "s0_anger_0.wav").write_bytes(b"")
    done = hyfuse(
        "embed", "data/s0_anger_0.wav", "data/s1_anger_?.wav", "absent.wav", "-m", "wavlm-tiny", "--weights", "random"
    )
    assert done.status == 1
    for part in ("data/s1_anger_0.wav", "data/s1_anger_2.wav", "layer_02 (mean)", " 32 "):
        assert part in done.out
    assert "data/s0_anger_0.wav is empty (0 bytes)" in done.err
    assert "absent.wav does not exist" in done.err
    assert "2 of 5 file(s) could not be used." in done.err
    assert "These weights are random" in done.err


def test_embed_as_json_lines(hyfuse: Runner, corpus: Path, tmp_path: Path) -> None:
    _extract(hyfuse, corpus, "wavlm-tiny")
    (corpus.parent / "s0_anger_0.wav").write_text("nothing")
    done = hyfuse("embed", "data/s1_anger_1.wav", "data/s0_anger_0.wav", "-m", "wavlm-tiny", "--weights", "random", "--json",
                  "--representation", "layer_00", "--representation", "layer_02", "--pool", "mean+std", "--frames")  # fmt: skip
    assert done.status == 1
    decoder, rest, lines = json.JSONDecoder(), done.out, []
    while rest:
        line, end = decoder.raw_decode(rest)
        lines.append(line)
        rest = rest[end:].lstrip()
    assert [line.get("representation") for line in lines] == ["layer_00", "layer_02", None]
    second = lines[1]
    assert (second["file"], second["dim"], second["pool"], second["weights"]) == (
        "data/s1_anger_1.wav",
        64,
        "mean+std",
        "random",
    )
    frames = np.array(second["frames"])
    assert frames.shape == (second["num_frames"], 32)
    np.testing.assert_allclose(
        second["embedding"], np.concatenate([frames.mean(0), frames.std(0)]), rtol=1e-5, atol=1e-6
    )
    stored = _store(tmp_path, "wavlm-tiny").features(["s1_anger_1"], representation="layer_02", pool="mean+std")
    np.testing.assert_allclose(second["embedding"], stored[0], rtol=1e-5, atol=1e-5)
    assert "cannot be read as audio" in lines[2]["error"]


def test_embed_saves_frames(hyfuse: Runner, corpus: Path, tmp_path: Path) -> None:
    for out in ("x.npz", "x.h5"):
        done = hyfuse("embed", "data/s0_anger_0.wav", "data/s0_anger_1.wav", "-m", "encodec-tiny", "--weights", "random",
                      "--frames", "--out", out, "--pool", "mean+std")  # fmt: skip
        assert done.status == 0, done.err
    with np.load(tmp_path / "x.npz") as npz, h5py.File(tmp_path / "x.h5") as hdf5:
        for file in (npz, hdf5):
            offsets, frames = file["offsets"][:], file["frames/latent"][:]
            assert offsets.tolist() == [0, *np.cumsum(file["num_frames"][:]).tolist()]
            for row in range(2):
                own = frames[offsets[row] : offsets[row + 1]]
                np.testing.assert_allclose(own.mean(0), file["mean"][row, 0], rtol=1e-4, atol=1e-6)
                np.testing.assert_allclose(own.std(0), file["std"][row, 0], rtol=1e-4, atol=1e-6)
        np.testing.assert_array_equal(npz["frames/latent"], hdf5["frames/latent"][:])


def test_embed_prints_csv_and_what_it_saves_can_be_imported(hyfuse: Runner, corpus: Path, tmp_path: Path) -> None:
    _extract(hyfuse, corpus, "soundstream-tiny")
    files = [f"data/{name}.wav" for name in _store(tmp_path, "soundstream-tiny").utterance_ids]
    printed = hyfuse("embed", *files[:2], "-m", "soundstream-tiny", "--weights", "random", "--out", "-")
    table = pd.read_csv(io.StringIO(printed.out.replace(" ", "\n")))
    assert table["utterance_id"].tolist() == files[:2]
    for suffix in ("csv", "parquet", "h5"):
        out = f"x.{suffix}"
        assert hyfuse("embed", "data", "-m", "soundstream-tiny", "--weights", "random", "--out", out).status == 0
        done = hyfuse("cache", "import", out, "--corpus", "my", "--name", f"again-{suffix}")
        assert done.status == 0, done.err
        made = _store(tmp_path, f"again-{suffix}").provenance
        assert (made.weights_kind, made.family, made.representations) == ("random", "CBR", ("latent",))


def test_mistakes_of_embed(hyfuse: Runner, corpus: Path) -> None:
    file = "data/s0_anger_0.wav"
    for arguments, message in (
        ((file, "-m", "wavml"), "Unknown model 'wavml'. Did you mean 'wavlm'"),
        ((file, "-m", "wavlm-tiny", "--out", "x.mat"), "ends in .h5, .npz, .parquet, .csv, not in .mat"),
        ((file, "-m", "wavlm-tiny", "--out", "x.csv", "--frames"), "--frames needs a place for them"),
        ((file, "-m", "wavlm-tiny", "--frames"), "--frames needs a place for them"),
        ((file, "-m", "wavlm-tiny", "--out", "x.npz", "--json"), "Give either --out or --json."),
        ((file, "-m", "wavlm-tiny", "--representation", "layer_9"), "Unknown representation of wavlm-tiny 'layer_9'"),
        ((file, "-m", "xvector-tiny", "--pool", "std"), "there is no std to pool"),
        (("runs", "-m", "wavlm-tiny", "--weights", "random"), "runs does not exist"),
        (("nothing*.wav", "-m", "wavlm-tiny"), "No file is called nothing*.wav"),
        ((file, "-m", "wavlm-tiny"), "Add `--weights random`"),
    ):
        done = hyfuse("embed", *arguments)
        assert done.status == (1 if "does not exist" in message else 2), (arguments, done.err)
        assert message in done.err
        assert "Traceback" not in done.err


def test_embed_of_silence_and_noise_of_any_length(hyfuse: Runner, tmp_path: Path) -> None:
    """Below the shortest clip of the model, and above what is encoded in one piece."""
    generator = np.random.default_rng(0)
    soundfile.write(tmp_path / "short.wav", 0.1 * generator.standard_normal(100), RATE_HZ)
    soundfile.write(tmp_path / "long.flac", 0.1 * generator.standard_normal(70 * RATE_HZ), RATE_HZ)
    soundfile.write(tmp_path / "silent.wav", np.zeros(RATE_HZ), RATE_HZ)
    done = hyfuse("embed", "short.wav", "long.flac", "silent.wav", "-m", "wavlm-tiny", "--weights", "random", "--json")
    assert done.status == 1
    decoder = json.JSONDecoder()
    first, end = decoder.raw_decode(done.out)
    second, _ = decoder.raw_decode(done.out[end:].lstrip())
    assert (first["num_frames"], second["num_frames"]) == (1, (70 * RATE_HZ - 400) // 320 + 1)
    assert "silent.wav is silent" in done.err
