"""Cells, pairs and jobs; above all: how jobs are worked through changes no number."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipelines.corpora.protocols import Split, make_split
from pipelines.errors import ConfigError, DeviceError, StorageError, UnknownNameError, WorkerError
from pipelines.fusion.catalogue import FUSIONS
from pipelines.training import grid
from pipelines.training.data import WEIGHTED, load_dataset
from pipelines.training.folds import make_folds
from pipelines.training.grid import (
    LOGISTIC,
    Cell,
    CellResult,
    Job,
    choose_device,
    make_cells,
    make_job,
    pair_up,
    run_jobs,
    told_apart,
)
from pipelines.training.logistic import PENALTY_C
from pipelines.training.ridge import PENALTY
from pipelines.training.trainer import TrainConfig
from tests.training.toy import EMOTIONS, make_corpus

FAMILIES = {"wavlm": "RLR", "xvector": "RLR", "encodec": "CBR", "soundstream": "CBR"}


def test_heterogeneous_pairs_put_the_codec_on_the_right() -> None:
    assert pair_up(FAMILIES) == [
        ("wavlm", "encodec"),
        ("wavlm", "soundstream"),
        ("xvector", "encodec"),
        ("xvector", "soundstream"),
    ]


def test_homogeneous_pairs_stay_within_a_family_and_occur_once() -> None:
    assert pair_up(FAMILIES, "homogeneous") == [("wavlm", "xvector"), ("encodec", "soundstream")]


def test_all_pairs_are_both() -> None:
    assert len(pair_up(FAMILIES, "all")) == 6


def test_cells_that_share_a_title_say_what_they_differ_in() -> None:
    cells = told_apart(
        [
            Cell("a", "", "single"),
            Cell("a", "b", "concat", {"front_end": "cnn"}),
            Cell("a", "b", "hyperbolic"),
            Cell("a", "b", "hyperbolic", {"max_radius": "0.3"}),  # text, as from a command line
            Cell("a", "b", "hyperbolic", {"max_radius": 0.3, "order": "right-left"}),
            Cell("a", "b", "mobius", {"curvature": 0.5, "classifier": "mlr"}),
            Cell("a", "b", "mobius", {"curvature": 1.0, "classifier": "mlr"}),
        ]
    )
    assert [cell.title for cell in cells] == [
        "a",
        "a+b concat",  # alone in its title: compared with another run, it is the same cell
        "a+b hyperbolic (max_radius=0.5)",
        "a+b hyperbolic (max_radius=0.3)",
        "a+b hyperbolic (right-left)",
        "a+b mobius (curvature=0.5)",
        "a+b mobius (curvature=1.0)",
    ]
    assert told_apart(cells) == cells
    with pytest.raises(ConfigError, match=r"'a\+b hyperbolic' is to be trained twice with the same options"):
        told_apart([Cell("a", "b", "hyperbolic"), Cell("a", "b", "hyperbolic", {"max_radius": 0.5})])


def test_unknown_pairing() -> None:
    with pytest.raises(ConfigError, match="--pairs must be one of heterogeneous, homogeneous, all, not 'some'"):
        pair_up(FAMILIES, "some")


def test_singles_come_first_and_the_linear_rung_follows() -> None:
    cells = make_cells([("wavlm", "encodec")], ["concat", "hyperbolic"], ["wavlm", "encodec"])
    assert cells == [
        Cell("wavlm", "", "single"),
        Cell("encodec", "", "single"),
        Cell("wavlm", "", LOGISTIC),
        Cell("encodec", "", LOGISTIC),
        Cell("wavlm", "encodec", "concat"),
        Cell("wavlm", "encodec", "hyperbolic"),
        Cell("wavlm", "encodec", LOGISTIC),
    ]
    assert len({cell.title for cell in cells}) == len(cells)


def test_options_and_both_orders() -> None:
    options = {"hyperbolic": {"max_radius": 0.3}, "single": {"front_end": "cnn"}}
    cells = make_cells([("a", "b")], ["concat", "hyperbolic"], ["a"], options=options, both_orders=True)
    assert cells[0].options == {"front_end": "cnn"}
    assert [(cell.fusion, dict(cell.options)) for cell in cells if cell.right] == [
        ("concat", {}),
        ("hyperbolic", {"max_radius": 0.3}),
        ("hyperbolic", {"max_radius": 0.3, "order": "right-left"}),
        (LOGISTIC, {}),
    ]
    assert len({cell.title for cell in cells}) == len(cells)


def test_unknown_fusion_and_option() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'hyperbolic'"):
        make_cells([("wavlm", "encodec")], ["hyperbolc"], [])
    with pytest.raises(UnknownNameError, match="Unknown option of fusion 'concat' 'radius'"):
        make_cells([("wavlm", "encodec")], ["concat"], [], options={"concat": {"radius": 1}})


def _jobs(cache_dir: Path, *, config: TrainConfig | None = None, layer: str = WEIGHTED) -> list[Job]:
    """Singles, two fusions and the linear rung; 3 folds under 2 seeds."""
    manifest = make_corpus(cache_dir)
    dataset = load_dataset(manifest, cache_dir=cache_dir, encoders=["ssl", "codec"], classes=EMOTIONS, layer=layer)
    split = make_split(
        "speaker-3fold",
        utterance_ids=dataset.utterance_ids,
        speakers=dataset.speakers,
        labels=dataset.label_names,
    )
    cells = make_cells([("ssl", "codec")], ["concat", "hyperbolic"], ["ssl", "codec"])
    return [make_job(dataset, split, cell, seeds=[0, 1], config=config or TrainConfig(epochs=2)) for cell in cells]


def _dimension_jobs(cache_dir: Path, *, soft: bool = False) -> list[Job]:
    """The same for dimensions, or for emotions with votes."""
    manifest = make_corpus(cache_dir)
    what: dict[str, Any] = {"classes": EMOTIONS, "soft": True} if soft else {"dimensions": ("arousal", "valence")}
    dataset = load_dataset(manifest, cache_dir=cache_dir, encoders=["ssl", "codec"], layer=WEIGHTED, **what)
    split = make_folds(manifest, dataset, "speaker-3fold", card=None)
    cells = make_cells([("ssl", "codec")], ["concat", "hyperbolic"], ["ssl"], target=dataset.target)
    return [make_job(dataset, split, cell, seeds=[0, 1], config=TrainConfig(epochs=2)) for cell in cells]


def _numbers(results: Sequence[CellResult]) -> dict[tuple[str, str, int], list[Any]]:
    """Cell, fold and seed to every number of the head."""
    found: dict[tuple[str, str, int], list[Any]] = {}
    for result in results:
        for head in result.heads:
            right = head.right_shuffled_outputs
            found[result.job.cell.title, head.task.fold, head.task.seed] = [
                head.test_outputs.tobytes(),
                head.left_shuffled_outputs.tobytes(),
                None if right is None else right.tobytes(),
                {name: curve.tobytes() for name, curve in head.curves.items()},
                dict(head.diagnostics),
                {name: tensor.numpy().tobytes() for name, tensor in head.parameters.items()},
                result.job.key,
            ]
    return found


def test_stack_size_and_order_change_nothing(tmp_path: Path) -> None:
    jobs = _jobs(tmp_path)
    expected = _numbers(list(run_jobs(jobs)))
    assert len(expected) == 4 * 6 + 3 * 3  # heads of two singles and two fusions; the rung once per fold
    reversed_tasks = [replace(job, tasks=job.tasks[::-1]) for job in reversed(jobs)]
    for again in (run_jobs(jobs, stack=1), run_jobs(jobs, stack=4), run_jobs(reversed_tasks, stack=5)):
        assert _numbers(list(again)) == expected


@pytest.mark.parametrize("soft", [False, True])
def test_stack_size_and_order_change_nothing_of_dimensions_and_votes(tmp_path: Path, soft: bool) -> None:
    jobs = _dimension_jobs(tmp_path, soft=soft)
    assert [job.cell.fusion for job in jobs] == [
        "single", *(["logistic"] if soft else ["ridge"]), "concat", "hyperbolic", *(["logistic"] if soft else ["ridge"])
    ]  # fmt: skip
    expected = _numbers(list(run_jobs(jobs)))
    reversed_tasks = [replace(job, tasks=job.tasks[::-1]) for job in reversed(jobs)]
    for again in (run_jobs(jobs, stack=1), run_jobs(reversed_tasks, stack=4)):
        assert _numbers(list(again)) == expected


@pytest.mark.slow
def test_processes_change_nothing_of_dimensions(tmp_path: Path) -> None:
    jobs = _dimension_jobs(tmp_path)
    assert _numbers(list(run_jobs(jobs, workers=2, stack=3))) == _numbers(list(run_jobs(jobs)))


def test_what_a_dimension_job_is_described_by(tmp_path: Path) -> None:
    jobs = _dimension_jobs(tmp_path / "a")
    rung, hard, soft = jobs[1], _jobs(tmp_path / "b")[0], _dimension_jobs(tmp_path / "c", soft=True)[0]
    assert rung.description["hyper_parameters"] == {"alpha": PENALTY, "selection": "fixed"}
    assert rung.description["dimensions"] == ["arousal", "valence"]
    assert rung.description["target"] == "dimensions"
    assert "classes" not in rung.description
    assert [(task.fold, task.seed) for task in rung.tasks] == [("1", 0), ("2", 0), ("3", 0)]
    assert (hard.description["labels"], soft.description["labels"]) == ("hard", "soft")
    assert hard.key != soft.key
    other = load_dataset(
        make_corpus(tmp_path / "d"), cache_dir=tmp_path / "d", encoders=["ssl"], dimensions=["arousal"]
    )
    with pytest.raises(
        ConfigError, match="'logistic' cannot learn dimensions; the linear rung of that target is 'ridge'"
    ):
        make_job(other, Split("x", True, (), ""), Cell("ssl", "", LOGISTIC), seeds=[0], config=TrainConfig())


@pytest.mark.slow
def test_processes_change_nothing(tmp_path: Path) -> None:
    jobs = _jobs(tmp_path)
    expected = _numbers(list(run_jobs(jobs)))
    assert _numbers(list(run_jobs(jobs, workers=2, stack=3))) == expected
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert _numbers(list(run_jobs(jobs[:3]))).items() <= expected.items()
    finally:
        torch.set_num_threads(threads)


def test_the_rung_runs_once_per_fold_and_knows_no_epochs(tmp_path: Path) -> None:
    short, long = (_jobs(tmp_path / name, config=TrainConfig(epochs=epochs)) for name, epochs in (("a", 2), ("b", 3)))
    rungs = [job for job in short if job.cell.fusion == LOGISTIC]
    assert [(task.fold, task.seed) for task in rungs[0].tasks] == [("1", 0), ("2", 0), ("3", 0)]
    assert rungs[0].description["hyper_parameters"] == {"C": PENALTY_C, "selection": "fixed", "class_weights": "none"}
    same = [one.key == other.key for one, other in zip(short, long, strict=True)]
    assert same == [job.cell.fusion == LOGISTIC for job in short]


def test_layers_are_part_of_what_a_job_is(tmp_path: Path) -> None:
    weighted, last = _jobs(tmp_path / "a")[0], _jobs(tmp_path / "b", layer="last")[0]
    assert weighted.key != last.key
    assert weighted.description["left"]["layers"] == ("layer_00", "layer_01", "layer_02")
    assert last.description["left"]["representation"] == "layer_02"
    (result,) = run_jobs([weighted])
    assert {"left_layer_00", "left_layer_01", "left_layer_02"} <= result.heads[0].diagnostics.keys()
    assert "path" not in weighted.description["left"]
    assert asdict(weighted.left)["layers"]


def test_embeddings_lie_beside_the_run_while_it_lasts(tmp_path: Path) -> None:
    jobs = _jobs(tmp_path / "cache")
    scratch = tmp_path / "run"
    scratch.mkdir()
    results = run_jobs(jobs, scratch=scratch)
    next(results)
    sizes = sorted(path.stat().st_size for path in scratch.iterdir())
    assert sizes == [72 * 16 * 4, 72 * 3 * 16 * 4]  # codec, and the layers of ssl; each once
    results.close()
    assert list(scratch.iterdir()) == []


def test_a_disk_too_small_for_the_embeddings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    jobs = _jobs(tmp_path)
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(StorageError, match=r"cannot hold the .* GB of ssl weighted.*No space left.*--runs-dir"):
        list(run_jobs(jobs[:1], scratch=tmp_path))
    assert not list(tmp_path.glob("*.f32"))


def _dies(*_: object) -> None:
    os._exit(1)


@pytest.mark.slow
def test_a_process_that_dies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = _jobs(tmp_path)
    monkeypatch.setattr(grid, "train_job", _dies)
    with pytest.raises(WorkerError, match=r"process died; the usual cause is memory.*fewer --workers"):
        list(run_jobs(jobs, workers=2))


def test_devices() -> None:
    assert choose_device("cpu") == "cpu"
    assert choose_device("auto") == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(ConfigError, match="--device must be auto, cpu, cuda or cuda:N, not 'tpu'"):
        choose_device("tpu")
    for name in ("cuda:99", "cuda:x"):
        with pytest.raises(DeviceError, match=rf"--device {name} was asked for, but torch sees \d+ GPU"):
            choose_device(name)


def test_the_rung_has_no_options(tmp_path: Path) -> None:
    job = _jobs(tmp_path)[2]
    assert job.cell.fusion == LOGISTIC
    assert np.isfinite(next(run_jobs([job])).heads[0].test_outputs).all()
    with pytest.raises(ConfigError, match="'logistic' has no options, but order came"):
        grid._options(Cell("a", "b", LOGISTIC, {"order": "left-right"}))
    assert LOGISTIC not in FUSIONS
