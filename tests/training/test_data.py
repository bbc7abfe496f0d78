from __future__ import annotations

import hashlib
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.corpora.manifest import Manifest, manifest_from_rows
from pipelines.errors import (
    ConfigError,
    ManifestError,
    ProvenanceError,
    StoreError,
    UnknownNameError,
)
from pipelines.store.embeddings import BlockResult, open_writer, store_path
from pipelines.training.data import (
    canonical_dimensions,
    default_classes,
    default_dimensions,
    load_dataset,
    read_source,
)
from tests.store.stores import make_provenance

EMOTIONS = ["anger", "fear", "", "anger", "sadness", "fear", "anger", "fear", "anger"]


def _manifest(emotions: list[str] | None = None) -> Manifest:
    rows = [
        {
            "utterance_id": f"u{row}", "path": f"{row}.wav", "speaker": f"s{row % 3}", "session": f"x{row % 2}",
            "emotion": emotion, "emotion_raw": emotion, "official_split": "train" if row % 2 else "test",
        }
        for row, emotion in enumerate(emotions or EMOTIONS)
    ]  # fmt: skip
    return manifest_from_rows("toy", rows)


def _values(encoder: str, row: int) -> np.ndarray:
    """[2 pools, 2 representations, 3 features] of one utterance."""
    return np.random.default_rng([len(encoder), row]).standard_normal((2, 2, 3)).astype(np.float32)


def _store(
    cache_dir: Path, manifest: Manifest, encoder: str = "one", *, failed: Collection[int] = (), frames: int = 5,
    blocks: int | None = None, **changes: Any,
) -> Path:  # fmt: skip
    path = store_path(cache_dir, "toy", encoder, changes.get("condition", "clean"))
    provenance = make_provenance(encoder=encoder, manifest_digest=manifest.digest, **changes)
    with open_writer(path, provenance=provenance, utterance_ids=manifest.utterance_ids, block_rows=4) as writer:
        for block in list(range(writer.num_blocks))[:blocks]:
            rows = writer.rows_of(block)
            values = np.stack([_values(encoder, row) for row in rows], axis=1)  # values is [2, n, 2, 3]
            reasons = ["broken" if row in failed else "" for row in rows]
            values[:, [bool(reason) for reason in reasons]] = np.nan
            num_frames = np.array([0 if reason else frames for reason in reasons], np.int32)
            writer.write_block(block, BlockResult(values[0], values[1], num_frames, np.ones(len(rows)), reasons))
    return path


def _load(cache_dir: Path, manifest: Manifest, *encoders: str, **options: Any):  # type: ignore[no-untyped-def]
    options = {"classes": ("fear", "anger"), **options}
    return load_dataset(manifest, cache_dir=cache_dir, encoders=encoders or ("one",), **options)


def test_utterances_labels_and_numbers_belong_together(tmp_path: Path) -> None:
    manifest = _manifest()
    _store(tmp_path, manifest)
    data = _load(tmp_path, manifest)
    kept = [0, 1, 3, 5, 6, 7, 8]
    assert data.utterance_ids == tuple(f"u{row}" for row in kept)
    assert data.label_names == [EMOTIONS[row] for row in kept]
    assert data.labels.tolist() == [("fear", "anger").index(EMOTIONS[row]) for row in kept]
    assert data.labels.dtype == np.int64
    assert data.speakers == tuple(f"s{row % 3}" for row in kept)
    assert data.sessions == tuple(f"x{row % 2}" for row in kept)
    assert data.official == tuple("train" if row % 2 else "test" for row in kept)
    assert data.classes == ("fear", "anger")
    assert data.manifest_digest == manifest.digest
    numbers = read_source(data.sources["one"], data.utterance_ids)
    expected = np.stack([np.concatenate(_values("one", row)[:, 1]) for row in kept])
    np.testing.assert_array_equal(numbers, expected)
    assert data.sources["one"].dim == numbers.shape[1] == 6


def test_rows_are_joined_by_id_and_not_by_position(tmp_path: Path) -> None:
    """The store of one manifest is not the store of another one, but a reader may ask in any order."""
    manifest = _manifest()
    _store(tmp_path, manifest)
    source = _load(tmp_path, manifest).sources["one"]
    np.testing.assert_array_equal(
        read_source(source, ["u7", "u0"]), np.stack([np.concatenate(_values("one", row)[:, 1]) for row in (7, 0)])
    )


def test_source_describes_itself(tmp_path: Path) -> None:
    manifest = _manifest()
    path = _store(tmp_path, manifest, family="CBR", weights_kind="pretrained")
    data = _load(tmp_path, manifest)
    source = data.sources["one"]
    assert (source.encoder, source.representation, source.pool) == ("one", "second", "mean+std")
    assert (source.family, source.weights_kind, source.path) == ("CBR", "pretrained", path)
    assert source.features_digest == hashlib.sha256(read_source(source, data.utterance_ids).tobytes()).hexdigest()
    other = _load(tmp_path, manifest, representations={"one": "first"}).sources["one"]
    assert other.representation == "first"
    assert other.features_digest != source.features_digest
    assert other.store_digest == source.store_digest


def test_pooling(tmp_path: Path) -> None:
    manifest = _manifest()
    _store(tmp_path, manifest)
    _store(tmp_path, manifest, "utterance", frames=1)
    data = _load(tmp_path, manifest, "one", "utterance")
    assert {name: source.dim for name, source in data.sources.items()} == {"one": 6, "utterance": 3}
    assert _load(tmp_path, manifest, pool="mean").sources["one"].dim == 3
    with pytest.raises(ConfigError, match="utterance gives one frame per utterance"):
        _load(tmp_path, manifest, "one", "utterance", pool="std")


def test_what_was_left_out_is_counted_once(tmp_path: Path) -> None:
    manifest = _manifest()
    _store(tmp_path, manifest, "one", failed={0, 2, 5})
    _store(tmp_path, manifest, "two", failed={0, 7})
    data = _load(tmp_path, manifest, "one", "two")
    assert data.utterance_ids == ("u1", "u3", "u6", "u8")
    # Row 2 has no label, row 0 has already been left out for "one".
    assert data.left_out == {"no label among the classes": 2, "failed in one": 2, "failed in two": 1}
    assert len(data.utterance_ids) + sum(data.left_out.values()) == len(manifest)
    for source in data.sources.values():
        assert np.isfinite(read_source(source, data.utterance_ids)).all()


def test_nothing_left_out(tmp_path: Path) -> None:
    manifest = _manifest(["anger", "fear"] * 3)
    _store(tmp_path, manifest)
    assert _load(tmp_path, manifest).left_out == {}


def test_failures_among_what_is_left_out_anyway_are_not_mentioned(tmp_path: Path) -> None:
    manifest = _manifest()
    _store(tmp_path, manifest, failed={2})
    assert _load(tmp_path, manifest).left_out == {"no label among the classes": 2}


def test_a_class_of_which_every_utterance_failed(tmp_path: Path) -> None:
    manifest = _manifest()
    _store(tmp_path, manifest, failed={4, 0})
    with pytest.raises(
        ManifestError,
        match=r"No utterance of sadness of corpus 'toy' is left.*1 no label among the classes, 2 failed in one",
    ):
        _load(tmp_path, manifest, classes=("anger", "sadness", "fear"))


def test_everything_failed(tmp_path: Path) -> None:
    manifest = _manifest()
    _store(tmp_path, manifest, failed=range(9))
    with pytest.raises(ManifestError, match=r"No utterance of fear, anger of corpus 'toy' is left"):
        _load(tmp_path, manifest)


def test_unknown_class(tmp_path: Path) -> None:
    manifest = _manifest()
    _store(tmp_path, manifest)
    with pytest.raises(
        UnknownNameError, match=r"class of corpus 'toy' 'angre'\. Did you mean 'anger'.*anger, fear, sadness"
    ):
        _load(tmp_path, manifest, classes=("angre", "fear"))
    with pytest.raises(UnknownNameError):
        _load(tmp_path, manifest, classes=("", "fear"))  # utterances without a label are no class


@pytest.mark.parametrize("classes", [(), ("anger",), ("anger", "anger"), ("anger", "fear", "anger")])
def test_classes_that_are_no_choice(tmp_path: Path, classes: tuple[str, ...]) -> None:
    manifest = _manifest()
    _store(tmp_path, manifest)
    with pytest.raises(ConfigError, match="At least two classes are needed, each once, not"):
        _load(tmp_path, manifest, classes=classes)


def test_unknown_representation(tmp_path: Path) -> None:
    manifest = _manifest()
    _store(tmp_path, manifest)
    with pytest.raises(UnknownNameError, match=r"representation of one 'third'.*first, second"):
        _load(tmp_path, manifest, representations={"one": "third"})
    with pytest.raises(UnknownNameError, match=r"encoder in --representation 'two'.*one"):
        _load(tmp_path, manifest, representations={"two": "first"})


def test_store_of_another_manifest(tmp_path: Path) -> None:
    _store(tmp_path, _manifest())
    relabelled = _manifest(["anger", "fear"] * 4 + ["fear"])
    with pytest.raises(ProvenanceError, match=r"manifest_digest: the store has .*`hyfuse cache remove toy/one/clean"):
        _load(tmp_path, relabelled)


def test_store_that_is_absent_or_unfinished(tmp_path: Path) -> None:
    manifest = _manifest()
    with pytest.raises(StoreError, match=r"no store at .*`hyfuse extract --model one --corpus toy`"):
        _load(tmp_path, manifest)
    _store(tmp_path, manifest, blocks=1)
    with pytest.raises(StoreError, match=r"unfinished: 4 done, 0 failed, 5 to do"):
        _load(tmp_path, manifest)


def test_condition_is_another_store(tmp_path: Path) -> None:
    manifest = _manifest()
    path = _store(tmp_path, manifest, condition="noise:esc10@5dB")
    with pytest.raises(StoreError, match="no store"):
        _load(tmp_path, manifest)
    assert _load(tmp_path, manifest, condition="noise:esc10@5dB").sources["one"].path == path


def test_default_classes() -> None:
    manifest = _manifest()
    assert default_classes(manifest, ()) == ("anger", "fear", "sadness")
    assert default_classes(manifest, ("sadness", "joy", "fear")) == ("sadness", "fear")  # the card's order
    for card, words in ((("joy",), r"0 emotion\(s\) \(none\)"), (("fear", "joy"), r"1 emotion\(s\) \(fear\)")):
        with pytest.raises(ManifestError, match=rf"'toy' has utterances of {words}; two are needed.*column 'emotion'"):
            default_classes(manifest, card)
    with pytest.raises(ManifestError, match="0 emotion"):
        default_classes(_manifest([""] * 4), ())


# ------------------------------------------------------------------------------------------------ dimensions and votes

AROUSAL = [1.5, 2.0, None, 3.5, 4.0, 4.5, None, 5.0, 1.0]


def _felt(**columns: list[Any]) -> Manifest:
    rows = [
        {
            "utterance_id": f"u{row}", "path": f"{row}.wav", "speaker": f"s{row % 3}",
            **{name: values[row] for name, values in columns.items()},
        }
        for row in range(9)
    ]  # fmt: skip
    return manifest_from_rows("toy", rows)


def _dimensions(cache_dir: Path, manifest: Manifest, *names: str):  # type: ignore[no-untyped-def]
    return load_dataset(manifest, cache_dir=cache_dir, encoders=("one",), dimensions=names)


def test_values_of_dimensions_and_what_has_none(tmp_path: Path) -> None:
    manifest = _felt(arousal=AROUSAL, valence=list(range(9)), emotion=EMOTIONS)
    _store(tmp_path, manifest, failed={0})
    data = _dimensions(tmp_path, manifest, "valence", "activation")
    assert (data.target, data.dimensions, data.classes) == ("dimensions", ("arousal", "valence"), ())
    assert data.utterance_ids == ("u1", "u3", "u4", "u5", "u7", "u8")
    assert data.values.dtype == np.float32
    assert data.values.tolist() == [[2, 1], [3.5, 3], [4, 4], [4.5, 5], [5, 7], [1, 8]]
    assert data.labels.tolist() == [-1] * 6
    assert data.left_out == {"no value of arousal or valence": 2, "failed in one": 1}
    assert data.failed == {"u0"}
    alone = _dimensions(tmp_path, manifest, "valence")
    assert (len(alone.utterance_ids), alone.left_out) == (8, {"failed in one": 1})


def test_names_of_dimensions() -> None:
    assert canonical_dimensions(["Valence", "activation", "arousal"]) == ("arousal", "valence")
    with pytest.raises(
        UnknownNameError, match=r"Unknown dimension 'valance'. Did you mean 'valence'.*activation, arousal"
    ):
        canonical_dimensions(["valance"])
    assert default_dimensions(_felt(arousal=AROUSAL, dominance=AROUSAL)) == ("arousal", "dominance")
    with pytest.raises(ManifestError, match=r"no values of arousal, valence or dominance.*--target emotion"):
        default_dimensions(_felt())


def test_dimensions_that_cannot_be_learned(tmp_path: Path) -> None:
    manifest = _felt(arousal=AROUSAL, valence=[3.0] * 9)
    _store(tmp_path, manifest)
    with pytest.raises(
        ManifestError, match=r"'toy' has no values of dominance; it has arousal, valence.*`--dimensions arousal,v"
    ):
        _dimensions(tmp_path, manifest, "dominance")
    with pytest.raises(
        ManifestError, match=r"All 9 utterances of corpus 'toy' have the same valence, 3: its concordance is not"
    ):
        _dimensions(tmp_path, manifest, "valence")
    for given, message in (
        ({"classes": ("anger",)}, "--classes anger means nothing"),
        ({"soft": True}, "--labels soft"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_dataset(manifest, cache_dir=tmp_path, encoders=("one",), dimensions=("arousal",), **given)  # type: ignore[arg-type]


def test_every_utterance_with_a_value_failed(tmp_path: Path) -> None:
    manifest = _felt(arousal=[1.0, 2.0, *[None] * 7])
    _store(tmp_path, manifest, failed={0, 1})
    with pytest.raises(
        ManifestError, match=r"No utterance .* with arousal is left.*7 no value of arousal, 2 failed in one"
    ):
        _dimensions(tmp_path, manifest, "arousal")


def test_votes_are_shares_among_the_classes(tmp_path: Path) -> None:
    votes = [
        "anger:3;fear:1",
        "sadness:2",
        "anger:1",
        "fear:1;anger:1;sadness:6",
        "",
        "fear:4",
        "anger:1",
        "fear:1",
        "anger:5",
    ]
    manifest = _felt(emotion=EMOTIONS, emotion_votes=votes)
    _store(tmp_path, manifest)
    data = _load(tmp_path, manifest, soft=True)
    assert data.utterance_ids == ("u0", "u1", "u3", "u5", "u6", "u7", "u8")
    assert data.votes is not None
    # Row 1 has votes for sadness alone, which is not among the classes: its label, fear, stands in.
    expected = [[0.25, 0.75], [1, 0], [0.5, 0.5], [1, 0], [0, 1], [1, 0], [0, 1]]
    np.testing.assert_array_equal(data.votes, np.array(expected, np.float32))
    assert data.voteless == 1
    assert data.labels.tolist() == [1, 0, 1, 0, 1, 0, 1]
    assert _load(tmp_path, manifest).votes is None


def test_a_corpus_without_votes(tmp_path: Path) -> None:
    for columns in ({}, {"emotion_votes": [""] * 9}):
        manifest = _felt(emotion=EMOTIONS, **columns)  # type: ignore[arg-type]
        folder = tmp_path / str(len(columns))
        _store(folder, manifest)
        with pytest.raises(
            ManifestError, match=r"'toy' has no votes of raters.*--labels hard.*'emotion_votes'.*anger:3;neutral:1"
        ):
            _load(folder, manifest, soft=True)
