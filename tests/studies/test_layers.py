"""The study of layers on stores in which it is known what each layer says."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipelines.corpora.manifest import Manifest, manifest_from_rows
from pipelines.errors import ConfigError, ManifestError, StoreError
from pipelines.evaluation.statistics import Difference, Interval
from pipelines.store.embeddings import BlockResult, open_writer, store_path
from pipelines.studies.layer_scores import Target, choose_layers, put_together, ranges
from pipelines.studies.layer_similarity import between_layers, drawn_rows
from pipelines.studies.layers import LayersConfig, study_layers
from pipelines.studies.outcome import Cell, Outcome, Table, read_outcome
from pipelines.studies.pairs import ComparisonConfig
from pipelines.training.trainer import TrainConfig
from tests.store.stores import make_provenance

SPEAKERS, TAKES, DIM = 9, 16, 10
EMOTIONS = ("anger", "fear", "sadness")
LAYERS = tuple(f"layer_{index:02d}" for index in range(5))
SHARE = {"arousal": (1.0, 0.8, 0.3, 0.1, 0.0), "valence": (0.0, 0.1, 0.3, 0.8, 1.0)}
"""How much of a dimension each layer holds."""


def write_store(
    cache: Path, manifest: Manifest, values: NDArray[np.floating], *, encoder: str, failed: int = -1, **made: Any
) -> None:
    """A store of means [n, R, D] and deviations that say nothing."""
    representations = made.pop("representations", LAYERS)
    provenance = make_provenance(
        encoder=encoder, manifest_digest=manifest.digest, representations=representations,
        default_representation=representations[-1], dim=values.shape[2], **{"weights_kind": "pretrained", **made},
    )  # fmt: skip
    means = values.astype(np.float32)
    deviations = np.random.default_rng(9).standard_normal(means.shape).astype(np.float32)
    reasons = ["" if row != failed else "broken" for row in range(len(means))]
    if failed >= 0:
        means[failed] = deviations[failed] = np.nan
    with open_writer(
        store_path(cache, "toy", encoder), provenance=provenance, utterance_ids=manifest.utterance_ids, block_rows=64
    ) as writer:
        for block in range(writer.num_blocks):
            rows = list(writer.rows_of(block))
            frames = np.array([0 if reasons[row] else 7 for row in rows], np.int32)
            texts = [reasons[row] for row in rows]
            writer.write_block(block, BlockResult(means[rows], deviations[rows], frames, np.ones(len(rows)), texts))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    """Cache and manifest: ``ssl`` says arousal in shallow layers and valence in deep ones, ``descriptors`` arousal in f0 and
    valence in mfcc, ``other`` is ssl rotated but for its last layer, ``plain`` has no layers, ``broken`` lacks an utterance."""
    cache = tmp_path_factory.mktemp("cache")
    generator = np.random.default_rng(0)
    count = SPEAKERS * TAKES
    hidden = generator.standard_normal((count, 2))
    rows = [
        {
            "utterance_id": f"u{row:03d}", "path": f"{row}.wav", "speaker": f"s{row % SPEAKERS}",
            "emotion": EMOTIONS[int(np.digitize(hidden[row, 0], [-0.4, 0.4]))], "emotion_raw": "x",
            "arousal": 4 + 2 * hidden[row, 0], "valence": 3 + hidden[row, 1],
        }
        for row in range(count)
    ]  # fmt: skip
    manifest = manifest_from_rows("toy", rows)
    values = generator.standard_normal((count, len(LAYERS), DIM))
    directions = generator.standard_normal((len(LAYERS), 2, DIM))
    directions *= 3 / np.linalg.norm(directions, axis=2, keepdims=True)
    for layer in range(len(LAYERS)):
        for column, name in enumerate(("arousal", "valence")):
            values[:, layer] += SHARE[name][layer] * hidden[:, column : column + 1] * directions[layer, column]
    values *= np.array([1, 10, 0.1, 100, 1])[:, None]
    write_store(cache, manifest, values, encoder="ssl")
    write_store(cache, manifest, values, encoder="broken", failed=3)
    write_store(cache, manifest, values[:, :1], encoder="plain", representations=("embedding",))
    rotation = np.linalg.qr(generator.standard_normal((DIM, DIM)))[0]
    other = values @ rotation
    other[:, -1] = generator.standard_normal((count, DIM))
    write_store(cache, manifest, other, encoder="other", weights_kind="random", weights_digest="c3" * 32)
    told = 0.3 * generator.standard_normal((count, 1, 5))
    told[:, 0, 0:2] += 50 * hidden[:, :1]
    told[:, 0, 2:4] += hidden[:, 1:]
    told[:, 0, 4] = 1.0
    columns = ("f0:semitones", "f0:voiced", "mfcc:c1", "mfcc:c2", "loudness:level_db")
    write_store(
        cache, manifest, told, encoder="descriptors", representations=("descriptors",), columns=columns, family="DSP",
        weights_kind="none",
    )  # fmt: skip
    return cache, manifest


QUICK = TrainConfig(epochs=4)
EMOTION = ComparisonConfig(protocol="speaker-3fold", seeds=1, pool="mean", train=QUICK)
DIMENSIONS = replace(EMOTION, target="dimensions")


def study(
    world: tuple[Path, Manifest], run_dir: Path, comparison: ComparisonConfig = DIMENSIONS, **options: Any
) -> Outcome:
    cache, manifest = world
    execution = {name: options.pop(name) for name in ("workers", "progress", "command") if name in options}
    config = LayersConfig(**{"model": "ssl", "comparison": comparison, **options})
    return study_layers(manifest, config, cache_dir=cache, run_dir=run_dir, **execution)


def table(outcome: Outcome, name: str) -> Table:
    (found,) = (one for one in outcome.tables if one.name == name)
    return found


def answer(outcome: Outcome, start: str) -> str:
    (found,) = (one for one in outcome.answers if one.startswith(start))
    return found


def numbers(outcome: Outcome, name: str) -> NDArray[np.float64]:
    return np.array([[cell.value for cell in row if isinstance(cell, Cell)] for row in table(outcome, name).rows])


# ------------------------------------------------------------------------------------------- what was put in is found


def test_dimensions_find_their_layers(world: tuple[Path, Manifest], tmp_path: Path) -> None:
    outcome = study(world, tmp_path / "run")
    scores = numbers(outcome, "layers")[: len(LAYERS)]
    assert scores[:, 0].argmax() in (0, 1)
    assert scores[:, 1].argmax() in (3, 4)
    assert scores[0, 0] > 0.7 > 0.3 > abs(scores[4, 0])
    assert answer(outcome, "Best layer for arousal").startswith(
        "Best layer for arousal: layer 0, as the training speakers"
    )
    assert "Every other layer is significantly worse (Holm over 5 layers)" in answer(outcome, "Best layer for arousal")
    assert "need different layers? Yes: layers 0 and 4 are chosen" in answer(outcome, "Do arousal and valence")
    assert (
        "Do shallow layers serve arousal and deep ones valence? Yes: arousal does better in the shallow half"
        in answer(outcome, "Do shallow")
    )
    assert answer(outcome, "How deep must the encoder be for arousal").split("? ")[1].startswith("Cut after layer 0")
    assert "All of it" in answer(outcome, "How deep must the encoder be for valence") or "layer 3" in answer(
        outcome, "How deep must the encoder be for valence"
    )
    chosen = outcome.settings["chosen"]
    assert set(chosen["arousal"]) <= {0, 1}
    assert set(chosen["valence"]) <= {3, 4}
    # Similarity: f0 was made of arousal, mfcc of valence.
    similarity = numbers(outcome, "descriptors-cka")
    assert similarity[:, 0].argmax() in (0, 1)
    assert similarity[:, 1].argmax() in (3, 4)
    assert np.isnan(similarity[:, 2]).all()
    assert any("nothing can be like it: loudness" in warning for warning in outcome.warnings)
    assert read_outcome(tmp_path / "run").answers == outcome.answers


def test_emotion_finds_its_layer(world: tuple[Path, Manifest], tmp_path: Path) -> None:
    outcome = study(world, tmp_path / "run", EMOTION, weighted=False, descriptors=())
    scores = numbers(outcome, "layers")[: len(LAYERS), 0]
    assert scores.argmax() in (0, 1)
    assert scores[0] > 65
    assert "UAR" in answer(outcome, "Best layer for emotion")
    assert not any("need different layers" in one for one in outcome.answers)
    assert "The shallow half: it does better in the shallow half by" in answer(
        outcome, "Which half of the layers serves emotion"
    )
    assert {one.name for one in outcome.tables} == {"layers", "depth", "differences", "layers-cka", "layers-pwcca"}


def test_heads_weights_and_the_weighted_curve(world: tuple[Path, Manifest], tmp_path: Path) -> None:
    comparison = replace(EMOTION, train=TrainConfig(epochs=15))
    outcome = study(world, tmp_path / "run", comparison, probe="head", curve="weighted", descriptors=())
    scores = numbers(outcome, "layers")
    assert scores[0, 0] > scores[4, 0] + 15
    assert scores[-1, 0] > 50  # the weighted sum
    assert numbers(outcome, "weights")[:, 0].sum() == pytest.approx(100)
    depth = numbers(outcome, "depth")
    assert depth.shape == (len(LAYERS), 2)
    assert depth[0, 0] == pytest.approx(scores[0, 0])  # nothing to choose from
    assert depth[-1, 0] == pytest.approx(scores[-2, 0])  # all layers: the choice itself
    assert depth[-1, 1] == pytest.approx(scores[-1, 0], abs=0.1)


def test_two_checkpoints_differ_where_they_were_made_to(world: tuple[Path, Manifest], tmp_path: Path) -> None:
    outcome = study(world, tmp_path / "run", against="other", weighted=False, descriptors=(), raw=True)
    same = np.diagonal(numbers(outcome, "layers-cka"))
    np.testing.assert_allclose(same[:4], 1, atol=1e-4)  # a rotation
    assert abs(same[4]) < 0.2
    assert "least in layer 4" in answer(outcome, "Between ssl and other")
    figure = next(one for one in outcome.figures if one.name == "layers-cka")
    assert (figure.kind, len(figure.series), len(figure.ticks)) == ("heatmap", 5, 5)


# ---------------------------------------------------------------------------------------------- resumed, and the same


def test_a_finished_study_is_read_back(world: tuple[Path, Manifest], tmp_path: Path) -> None:
    study(world, tmp_path / "run")
    first = (tmp_path / "run" / "study.json").read_bytes()
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*.npz")}
    assert len(stamps) >= len(LAYERS) + 2 + 1
    study(world, tmp_path / "run", workers=1)
    assert (tmp_path / "run" / "study.json").read_bytes() == first
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*.npz")} == stamps


def test_an_interrupted_study_ends_with_the_same_bytes(world: tuple[Path, Manifest], tmp_path: Path) -> None:
    def stop(done: int, total: int, what: str) -> None:
        if done >= 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        study(world, tmp_path / "parts", progress=stop)
    kept = list((tmp_path / "parts" / "probes").iterdir())
    assert 0 < len(kept) < len(LAYERS)
    kept[0].write_bytes(kept[0].read_bytes()[:200])  # what a full disk may leave
    study(world, tmp_path / "parts", workers=2)
    study(world, tmp_path / "whole")
    files = [
        path.relative_to(tmp_path / "whole") for path in (tmp_path / "whole").rglob("*.*") if path.suffix != ".lock"
    ]
    assert Path("study.json") in files
    for name in files:
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_other_settings_take_nothing_over(world: tuple[Path, Manifest], tmp_path: Path) -> None:
    study(world, tmp_path / "run", weighted=False, descriptors=())
    count = len(list((tmp_path / "run" / "probes").iterdir()))
    study(world, tmp_path / "run", replace(DIMENSIONS, protocol="speaker-4fold"), weighted=False, descriptors=())
    assert len(list((tmp_path / "run" / "probes").iterdir())) == 2 * count


def test_progress_ends_at_its_total(world: tuple[Path, Manifest], tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    study(world, tmp_path / "run", against="other", progress=lambda done, total, what: seen.append((done, total)))
    assert seen[-1][0] == seen[-1][1] == 5 * 3 + 2 * 3
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


# --------------------------------------------------------------------------------------------------------------- parts


def test_layers_are_chosen_per_fold() -> None:
    inner = np.array([[0.2, 0.5, 0.5], [0.9, 0.1, 0.2], [0.1, 0.2, 0.3]])
    choice = choose_layers(inner)
    assert choice.layers.tolist() == [1, 0, 2]
    assert choose_layers(inner, depth=1).layers.tolist() == [1, 0, 1]
    assert choose_layers(np.array([[1.0, 2, 0], [1, 2, 0], [2, 1, 0]])).usual == 1
    layers = [np.full((1, 4, 2), float(layer)) for layer in range(3)]
    together = put_together(layers, np.array([2, 0, 1, 1]), choice.layers)
    assert together[0, :, 0].tolist() == [2, 1, 0, 0]


def test_words() -> None:
    assert ranges([0, 1, 2, 5, 7, 8]) == "0–2, 5, 7–8"
    assert ranges([]) == ""
    lost = Difference(-0.021, Interval(-0.04, 0.01, 0.95), 0.2, 0.2, 0.1, 1, 2)
    assert Target("arousal", 0, "CCC", 1.0, 3).change(lost) == "0.021 [−0.010, +0.040]"
    assert Target("emotion", -1, "UAR", 100.0, 1).change(lost) == "2.1 points [−1.0, +4.0]"


def test_rows_are_drawn_in_order() -> None:
    assert drawn_rows(5, 0).tolist() == [0, 1, 2, 3, 4]
    assert drawn_rows(5, 9).tolist() == [0, 1, 2, 3, 4]
    drawn = drawn_rows(1000, 100)
    assert len(set(drawn.tolist())) == 100
    assert (np.diff(drawn) > 0).all()


def test_columns_are_brought_to_one_scale() -> None:
    """A column a thousand times as large would be all that CKA sees, and a constant one is no obstacle."""
    generator = np.random.default_rng(2)
    x = generator.standard_normal((200, 6)).astype(np.float32)
    y = x.copy()
    y[:, 0] = 1000 * generator.standard_normal(200)
    y[:, 1] = 7
    scaled, raw = (
        float(between_layers(lambda _: x, ["layer_00"], lambda _: y, ["layer_00"], raw=raw).cka[0, 0])
        for raw in (False, True)
    )
    assert scaled > 0.6
    assert abs(raw) < 0.1
    assert not math.isnan(scaled)


# ------------------------------------------------------------------------------------------------------------ mistakes


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"model": "plain"}, ConfigError, r"'plain' has no layers to compare \(its representations are embedding\)"),
        ({"model": "absent"}, StoreError, r"hyfuse extract --model absent --corpus toy"),
        ({"descriptors": ("egemaps",)}, StoreError, r"hyfuse extract --model egemaps --corpus toy"),
        ({"descriptors": ("plain",)}, ConfigError, r"columns of 'plain' have no names.*--model descriptors"),
        ({"against": "plain"}, ConfigError, r"--against plain: it has no layers"),
        ({"against": "absent"}, StoreError, r"hyfuse extract --model absent"),
        ({"against": "ssl"}, ConfigError, r"is the encoder itself.*--against-cache"),
        ({"probe": "svm"}, ConfigError, r"--probe must be one of logistic, ridge, head, not 'svm'"),
        ({"probe": "logistic"}, ConfigError, r"--probe logistic reads out classes"),
        ({"curve": "all"}, ConfigError, r"--curve must be one of best, weighted"),
        ({"rows": 5}, ConfigError, r"--similarity-rows must be 0 \(all\) or at least 10, not 5"),
    ],
)
def test_mistakes_are_explained(
    world: tuple[Path, Manifest], tmp_path: Path, options: dict[str, Any], error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        study(world, tmp_path / "run", **options)


def test_a_dimension_the_corpus_lacks(world: tuple[Path, Manifest], tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="dominance"):
        study(world, tmp_path / "run", replace(DIMENSIONS, dimensions=("dominance",)))


def test_failed_recordings_are_left_out_everywhere(world: tuple[Path, Manifest], tmp_path: Path) -> None:
    outcome = study(world, tmp_path / "run", model="broken", against="ssl", weighted=False)
    assert any("Left out: 1 (failed in broken)" in note for note in outcome.notes)
    # The other way round, the probes use all and similarity what both have.
    outcome = study(world, tmp_path / "other", against="broken", weighted=False)
    assert any("Similarity: of 143 utterances" in note for note in outcome.notes)
    assert any("Corpus: toy, 144 utterances" in note for note in outcome.notes)
