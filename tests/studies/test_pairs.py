"""The comparison as a grid: interrupted, resumed, reordered, grown; and what it says about layers and the linear rung."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from pipelines.corpora.manifest import Manifest
from pipelines.errors import ConfigError, StorageError, UnknownNameError
from pipelines.evaluation.runs import read_run
from pipelines.files import take_lock
from pipelines.studies.pairs import Comparison, ComparisonConfig, compare_cells
from pipelines.training.grid import LOGISTIC, Cell, make_cells
from pipelines.training.logistic import PENALTY_C
from pipelines.training.trainer import TrainConfig
from tests.training.toy import INFORMATIVE, LAYERS, make_corpus

CONFIG = ComparisonConfig(protocol="speaker-3fold", seeds=2, layer="weighted", train=TrainConfig(epochs=2))
CELLS = make_cells([("ssl", "codec")], ["concat", "hyperbolic"], ["ssl", "codec"])
FILES = ("results.jsonl", "predictions.parquet")


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return make_corpus(tmp_path / "cache")


def compare(
    manifest: Manifest, tmp_path: Path, run: str = "run", *, cells: Sequence[Cell] = CELLS, **options: Any
) -> Comparison:
    options = {"config": CONFIG, **options}
    return compare_cells(manifest, cells, cache_dir=tmp_path / "cache", run_dir=tmp_path / run, **options)


def test_an_interrupted_grid_ends_with_the_same_rows(manifest: Manifest, tmp_path: Path) -> None:
    whole = compare(manifest, tmp_path, "whole")
    assert whole.trained == 4 * 6 + 3 * 3

    def stop(done: int, total: int, cell: str) -> None:
        if done >= total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compare(manifest, tmp_path, "parts", progress=stop, stack=4)
    leftover = tmp_path / "parts" / ".writing-killed.f32"  # what kill -9 leaves
    leftover.write_bytes(b"0")
    resumed = compare(manifest, tmp_path, "parts", stack=3)
    assert 0 < resumed.trained < whole.trained
    assert resumed.trained + resumed.reused == whole.trained
    assert not leftover.exists()
    assert not list((tmp_path / "parts").glob("*.f32"))
    for name in FILES:
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert [score.uar for score in resumed.scores] == [score.uar for score in whole.scores]


def test_the_order_of_cells_changes_no_row(manifest: Manifest, tmp_path: Path) -> None:
    compare(manifest, tmp_path, "straight")
    compare(manifest, tmp_path, "reversed", cells=CELLS[::-1])
    straight, turned = ((tmp_path / run / "results.jsonl").read_text().splitlines() for run in ("straight", "reversed"))
    assert straight != turned
    assert sorted(straight) == sorted(turned)


@pytest.mark.slow
def test_processes_change_no_byte(manifest: Manifest, tmp_path: Path) -> None:
    compare(manifest, tmp_path, "one")
    compare(manifest, tmp_path, "two", workers=2, stack=4)
    for name in FILES:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name


def test_what_is_added_later_is_all_that_is_computed(manifest: Manifest, tmp_path: Path) -> None:
    singles = make_cells([], [], ["ssl"])
    assert compare(manifest, tmp_path, cells=singles).trained == 6 + 3
    more_seeds = replace(CONFIG, seeds=3)
    assert compare(manifest, tmp_path, cells=singles, config=more_seeds).trained == 3  # nothing new for the rung
    with_codec = make_cells([("ssl", "codec")], ["concat"], ["ssl", "codec"])
    added = compare(manifest, tmp_path, cells=with_codec, config=more_seeds)
    assert (added.trained, added.reused) == ((9 + 3) + (9 + 3), 9 + 3)
    assert compare(manifest, tmp_path, cells=with_codec, config=more_seeds).trained == 0
    # Another choice of layers is another input of the heads that have them, and of no other head.
    last = compare(manifest, tmp_path, cells=with_codec, config=replace(more_seeds, layer="last"))
    assert (last.trained, last.reused) == ((9 + 3) + (9 + 3), 9 + 3)


def test_the_linear_rung_stands_in_table_rows_and_predictions(manifest: Manifest, tmp_path: Path) -> None:
    comparison = compare(manifest, tmp_path)
    rungs = [score for score in comparison.scores if score.fusion == LOGISTIC]
    assert [(score.left, score.right, score.seeds) for score in rungs] == [
        ("ssl", "", 1),
        ("codec", "", 1),
        ("ssl", "codec", 1),
    ]
    assert rungs[2].uar > 0.5  # chance is a third
    assert rungs[2].left_drop > 0.02  # every input counts
    assert rungs[2].right_drop > 0.02
    rows = [json.loads(line) for line in (tmp_path / "run" / "results.jsonl").read_text().splitlines()]
    own = [row for row in rows if row["fusion"] == LOGISTIC]
    assert len(own) == 3 * 3
    assert all(row["hyper_parameters"]["C"] == PENALTY_C and row["seed"] == 0 for row in own)
    predictions = pd.read_parquet(tmp_path / "run" / "predictions.parquet")
    counts = predictions.groupby(["left", "right", "fusion"])["utterance_id"].count()
    assert counts["ssl", "codec", LOGISTIC] == 72
    assert counts["ssl", "codec", "concat"] == 2 * 72
    assert any(f"logistic regression (C = {PENALTY_C:g})" in note for note in comparison.notes)


def test_layer_weights_are_reported(manifest: Manifest, tmp_path: Path) -> None:
    config = replace(CONFIG, train=TrainConfig(epochs=40))
    comparison = compare(manifest, tmp_path, cells=make_cells([], [], ["ssl"]), config=config)
    weights = comparison.layer_weights["ssl"]
    assert tuple(weights) == LAYERS
    assert sum(weights.values()) == pytest.approx(1)
    assert max(weights, key=weights.__getitem__) == LAYERS[INFORMATIVE]
    (note,) = (note for note in comparison.notes if note.startswith("Layer weights"))
    assert note.startswith("Layer weights of ssl, per cent, mean over heads: 00: ")
    assert "ssl weighted" in " ".join(comparison.notes)
    assert compare(manifest, tmp_path, "last", config=replace(config, layer="last")).layer_weights == {}


@pytest.mark.parametrize(
    ("layer", "representations", "read"),
    [
        ("", {}, "layer_02"),
        ("last", {}, "layer_02"),
        ("0", {}, "layer_00"),
        ("01", {}, "layer_01"),
        ("weighted", {"ssl": "1"}, "layer_01"),
        ("0", {"ssl": "weighted"}, "weighted"),
    ],
)
def test_layers_by_name_and_number(
    manifest: Manifest, tmp_path: Path, layer: str, representations: dict[str, str], read: str
) -> None:
    config = replace(CONFIG, layer=layer, representations=representations, seeds=1, train=TrainConfig(epochs=1))
    found = compare(manifest, tmp_path, cells=[Cell("ssl", "", LOGISTIC), Cell("codec", "", LOGISTIC)], config=config)
    assert found.dataset.sources["ssl"].representation == read
    assert found.dataset.sources["codec"].representation == "latent"


def test_layers_that_do_not_exist(manifest: Manifest, tmp_path: Path) -> None:
    cells = [Cell("ssl", "", LOGISTIC)]
    with pytest.raises(UnknownNameError, match=r"Unknown representation of ssl '7'.*last, layer_00.*weighted.*number"):
        compare(manifest, tmp_path, cells=cells, config=replace(CONFIG, layer="7"))
    with pytest.raises(ConfigError, match=r"--layer last was asked for, but of codec none has layers"):
        compare(manifest, tmp_path, cells=[Cell("codec", "", LOGISTIC)], config=replace(CONFIG, layer="last"))
    with pytest.raises(UnknownNameError, match="Unknown representation of codec 'weighted'"):
        compare(
            manifest,
            tmp_path,
            cells=[Cell("codec", "", LOGISTIC)],
            config=replace(CONFIG, layer="", representations={"codec": "weighted"}),
        )


def test_class_weights_are_said(manifest: Manifest, tmp_path: Path) -> None:
    config = replace(CONFIG, train=TrainConfig(epochs=1, class_weights="balanced"))
    comparison = compare(manifest, tmp_path, cells=make_cells([], [], ["codec"]), config=replace(config, layer=""))
    assert any("classes weighted by their rarity" in note for note in comparison.notes)


def test_one_process_at_a_time_works_on_a_run(manifest: Manifest, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    handle, _ = take_lock(tmp_path / "run" / "run.lock")
    with handle, pytest.raises(StorageError, match=r"Another process is working on .*run\. Wait for it"):
        compare(manifest, tmp_path)


def test_cells_of_other_options_have_names_rows_and_head_files_of_their_own(manifest: Manifest, tmp_path: Path) -> None:
    """Also when one of them is there already under the name it had alone."""
    config = replace(CONFIG, layer="", seeds=1)
    alone = [Cell("ssl", "codec", "hyperbolic")]
    compare(manifest, tmp_path, cells=alone, config=config)
    first = [json.loads(line) for line in (tmp_path / "run" / "results.jsonl").read_text().splitlines()]
    cells = [*alone, Cell("ssl", "codec", "hyperbolic", {"max_radius": 0.3})]
    cells += [Cell("ssl", "codec", "hyperbolic", {"order": "right-left"})]
    found = compare(manifest, tmp_path, cells=cells, config=config)
    names = ["ssl+codec hyperbolic (max_radius=0.5)", "ssl+codec hyperbolic (max_radius=0.3)"]
    names += ["ssl+codec hyperbolic (right-left)"]
    assert [score.cell for score in found.scores] == names
    assert found.reused == 3
    rows = [json.loads(line) for line in (tmp_path / "run" / "results.jsonl").read_text().splitlines()]
    assert [row["cell"] for row in rows] == [name for name in names for _ in range(3)]
    assert [{**row, "cell": ""} for row in rows[:3]] == [{**row, "cell": ""} for row in first]  # the name alone is new
    table = pd.read_parquet(tmp_path / "run" / "predictions.parquet")
    assert list(dict.fromkeys(table["cell"])) == names
    assert [score.cell for score in read_run(tmp_path / "run").scores] == names
    compare(manifest, tmp_path, cells=cells, config=config, save_heads=True)
    heads = sorted(path.name for path in (tmp_path / "run" / "heads").iterdir())
    assert len(heads) == 9
    assert heads[0] == "ssl_codec_hyperbolic_max-radius-0-3_1_0.safetensors"


def test_the_same_cell_twice_is_a_mistake(manifest: Manifest, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'ssl\+codec concat' is to be trained twice"):
        compare(manifest, tmp_path, cells=[Cell("ssl", "codec", "concat")] * 2)
