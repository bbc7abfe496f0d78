"""From a run to a model: one cell trained again, on one fold as in the run, or on all utterances.

A fold's model is the run's own: the same rows, seeds and settings give the same bits, and its stored test predictions are what it
predicts; that they are is looked up, and where they are not (other code, another library or kind of machine) the model says so. A
model of all utterances is what one gives away; nothing is left to test it on, so its card shows the scores of the run's models of
the same cell on speakers they had not seen. It keeps its last epoch, as a run with selection ``fixed`` does.

The utterances are those of the run, which all of its stores hold: all of them are needed, not only those of the cell.

Settings that a later version might take for granted (options that have a default) are written out. The first head also draws a map
of its training utterances (``deployment.fused_map``), for the page on which the model can be tried.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import pipelines
from pipelines.corpora.resolve import recall_corpus
from pipelines.deployment.fused_map import draw_map
from pipelines.deployment.model_folder import ModelFolder, ModelInput, TrainedHead
from pipelines.errors import ConfigError, RunError, unknown_name
from pipelines.evaluation.results import CellScore
from pipelines.evaluation.runs import Run
from pipelines.fusion.catalogue import applicable_options, fusion_options
from pipelines.locations import Location
from pipelines.store.embeddings import open_store
from pipelines.studies.pairs import ComparisonConfig, prepare, warnings_of
from pipelines.training.data import Dataset, Source, read_source
from pipelines.training.grid import LINEAR, STACK, Cell, code_digest
from pipelines.training.trainer import HeadResult, HeadTask, TrainConfig, fitted_rows, steps_per_epoch, train_stack

__all__ = ["ALL_DATA", "choose_cell", "comparison_config", "default_folder", "export_cell"]

ALL_DATA = "all"
"""The fold of a model that was trained on every utterance."""

_SAME = 1e-6  # of probabilities, or of values' standard deviation; heads that are trained again have the same bits or quite others
_ORDERS = ("left-right", "right-left")


def choose_cell(
    run: Run, *, left: str = "", right: str = "", fusion: str = "", order: str = "", title: str = ""
) -> tuple[Cell, CellScore]:
    """The cell of a run that is meant.

    Args:
        run: of ``hyfuse compare``, ``train`` or ``tune``.
        left: encoder.
        right: encoder; empty for a single representation.
        fusion: name; ``single`` for a single representation.
        order: ``left-right`` or ``right-left``, where the run has both.
        title: of the cell, in place of all of these.

    Raises:
        RunError: the run is that of a study, or has several such cells.
        UnknownNameError: it has no such cell, or there is no such order.
        ConfigError: the cell is the linear rung, which is not exported.
    """
    if "study" in run.config:
        raise RunError(
            f"{run.path} is the run of a study ({run.config['study']}), whose heads are made for its question. Models are exported"
            " from runs of `hyfuse compare`, `hyfuse train` or `hyfuse tune`."
        )
    if order and order not in _ORDERS:
        raise unknown_name("order", order, _ORDERS)
    every = [
        Cell(entry["left"], entry["right"], entry["fusion"], entry["options"], tuple(entry.get("said", ())))
        for entry in run.config["cells"]
    ]
    if title:
        cells = [cell for cell in every if cell.title == title]
    else:
        cells = [
            cell
            for cell in every
            if (cell.left, cell.right, cell.fusion) == (left, right, fusion)
            and (not order or cell.options.get("order", _ORDERS[0]) == order)
        ]
    if fusion in LINEAR.values() or any(cell.fusion in LINEAR.values() for cell in cells):
        raise ConfigError(
            f"{fusion or cells[0].fusion!r} is a yardstick of the table, made by scikit-learn; choose a head to export."
        )
    if not cells:
        there = [cell.title for cell in every if cell.fusion not in LINEAR.values()]
        asked = title or (f"{left}+{right} {fusion}" if right else left) + (f" ({order})" if order else "")
        raise unknown_name(f"cell of {run.path}", asked, there)
    if len(cells) > 1:
        listed = ", ".join(repr(cell.title) for cell in cells)
        raise RunError(f"{run.path} has several such cells: {listed}. Say which with --cell TITLE.")
    score = next((score for score in run.scores if score.cell == cells[0].title), None)
    if score is None:
        raise RunError(
            f"{run.path} has no predictions of the cell {cells[0].title!r}: its files do not belong together. Run the comparison"
            " again."
        )
    return cells[0], score


def comparison_config(run: Run) -> ComparisonConfig:
    """The settings of a run, from its ``config.json``.

    Raises:
        RunError: it was made by another version.
    """
    config = run.config
    try:
        hyper = dict(config["hyper_parameters"])
        target = str(config.get("target", "emotion"))
        return ComparisonConfig(
            protocol=config["protocol"],
            seeds=len(config["seeds"]),
            pool=config["pool"],
            representations={name: source["representation"] for name, source in config["sources"].items()},
            classes=tuple(config["classes"]) if target == "emotion" else (),
            condition=config["condition"],
            selection=hyper["selection"],
            train=TrainConfig.from_mapping(hyper),
            recipe=config["recipe"],
            target=target,
            dimensions=run.dimensions,
            labels=config.get("labels", "hard"),
        )
    except (KeyError, TypeError) as error:
        raise RunError(
            f"{run.path} was made by another version of hyfuse ({error}). Run the comparison again."
        ) from error


def export_cell(
    run: Run,
    cell: Cell,
    score: CellScore,
    *,
    cache_dir: Location,
    fold: str = ALL_DATA,
    seeds: int | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> ModelFolder:
    """Train a cell and describe it as a model.

    Args:
        run: of ``hyfuse compare``, ``train`` or ``tune``.
        cell: of it.
        score: of the cell.
        cache_dir: folder of the stores.
        fold: name of a fold of the run, or ``all``.
        seeds: heads whose outputs are averaged; as many as the run has, unless given.
        progress: called with (heads done, in all, "").

    Raises:
        RunError: the stores or folds are not those of the run any more; all data of a run that was tuned fold by fold.
        UnknownNameError: no such fold.
        ConfigError: no seed, or more than the run has for a fold.
        StoreError: a store of the run is absent or damaged.
    """
    config, in_run = comparison_config(run), len(run.config["seeds"])
    seeds = in_run if seeds is None else seeds
    if seeds < 1:
        raise ConfigError(f"--seeds must be at least 1, not {seeds}.")
    if fold != ALL_DATA and seeds > in_run:
        raise ConfigError(
            f"--seeds {seeds} was asked for, but {run.path} has {in_run} per fold, and the model of a fold is that of the run. Ask"
            " for fewer, or leave --fold out."
        )
    manifest = recall_corpus(run.config["corpus"], cache_dir=cache_dir)
    # Every encoder of the run: the utterances of its cells are those that all of its stores hold.
    every = [Cell(name, "", cell.fusion) for name in run.config["sources"]]
    dataset, split = prepare(manifest, every, config=config, cache_dir=cache_dir)
    _check_same(run, dataset, split.digest)
    names = [one.name for one in split.folds]
    if fold != ALL_DATA and fold not in names:
        raise unknown_name(f"fold of {run.path}", fold, [*names, ALL_DATA])
    options, train = _settings(run, cell, config.train, fold)
    sources = [dataset.sources[name] for name in (cell.left, cell.right) if name]
    matrices = [torch.from_numpy(read_source(source, dataset.utterance_ids)) for source in sources]
    if fold == ALL_DATA:
        train = replace(train, selection="fixed", patience=0)
        rows = np.arange(len(dataset.utterance_ids))
        # The trainer tests every head. A row of zeros that nobody looks at is the test part that there is none of.
        given = [torch.cat([matrix, torch.zeros_like(matrix[:1])]) for matrix in matrices]
        empty = np.empty(0, np.int64)
        tasks = [HeadTask(ALL_DATA, seed, rows, empty, rows[-1:] + 1) for seed in range(seeds)]
        steps = steps_per_epoch(tasks, train)
    else:
        given = matrices
        tasks = [
            HeadTask(one.name, seed, one.train, one.validation, one.test)
            for one in split.folds
            for seed in range(seeds)
        ]
        steps = steps_per_epoch(tasks, train)
        tasks = [task for task in tasks if task.fold == fold]
    results: list[HeadResult] = []
    for start in range(0, len(tasks), STACK):
        if progress is not None:
            progress(start, len(tasks), "")
        results += train_stack(
            fusion=cell.fusion,
            options=options,
            left=given[0],
            right=given[1] if len(given) == 2 else None,
            tasks=tasks[start : start + STACK],
            steps_per_epoch=steps,
            config=train,
            **_targets(dataset, extra=fold == ALL_DATA),
        )
    if progress is not None:
        progress(len(tasks), len(tasks), "")
    warnings = warnings_of(manifest, replace(dataset, sources={one.encoder: one for one in sources}), split)
    if fold != ALL_DATA and not _predicts_as_stored(run, cell, dataset, results):
        warnings.append(
            f"NOT AS MEASURED: trained again, fold {fold} does not predict as it did in {run.path.name}, so the scores are those of"
            " other heads (another version of hyfuse or of a library, or another kind of machine). Run the comparison again."
        )
    used = np.unique(np.concatenate([fitted_rows(tasks[0], train), tasks[0].validation]))
    heads = tuple(
        TrainedHead(
            fold=result.task.fold,
            seed=result.task.seed,
            parameters=result.parameters,
            left_scaler=result.left_scaler,
            right_scaler=result.right_scaler,
            target_scaler=result.target_scaler,
        )
        for result in results
    )
    return ModelFolder(
        name=cell.title,
        target=dataset.target,
        outputs=dataset.dimensions or dataset.classes,
        fusion=cell.fusion,
        options=options,
        train=train,
        inputs=tuple(_input(source) for source in sources),
        heads=heads,
        map=draw_map(
            heads[0], fusion=cell.fusion, options=options, inputs=matrices, rows=used, labels=dataset.labels, config=train,
            outputs=len(dataset.dimensions or dataset.classes),
        ),
        trained_on={
            "corpus": dataset.corpus,
            "manifest_digest": dataset.manifest_digest,
            "condition": config.condition,
            "labels": config.labels,
            "fold": fold,
            "utterances": len(used),
            "speakers": len({dataset.speakers[row] for row in used}),
            "language": sorted({str(name) for name in manifest.table["language"].dropna()} - {""}),
        },
        scores={
            **{name: _json(value) for name, value in score.to_record().items()},
            "protocol": split.protocol,
            "speaker_independent": split.speaker_independent,
            "selection": run.config["hyper_parameters"]["selection"],
            "run": run.path.name,
        },
        warnings=tuple(warnings),
        versions={"hyfuse": pipelines.__version__, "torch": torch.__version__, "code": code_digest()},
    )  # fmt: skip


def _json(value: Any) -> Any:
    """A number that JSON knows: None for what is not finite."""
    if isinstance(value, float):
        return float(value) if np.isfinite(value) else None
    return value


def _settings(run: Run, cell: Cell, train: TrainConfig, fold: str) -> tuple[dict[str, Any], TrainConfig]:
    """Options, complete, and hyper-parameters of a cell; a tuned run has others for every fold."""
    options: Mapping[str, Any] = cell.options
    if "tuning" in run.config:
        if fold == ALL_DATA:
            raise RunError(
                f"{run.path} was tuned: every fold has settings of its own, and none are those of all data. Export a fold with"
                " --fold, or run `hyfuse compare` with the settings you choose and export from there."
            )
        row = next(row for row in run.rows if row["cell"] == cell.title and row["fold"] == fold)
        options = applicable_options(cell.fusion, row["options"])
        train = TrainConfig.from_mapping(row["hyper_parameters"])
    return dict(fusion_options(cell.fusion, options)), train


def _predicts_as_stored(run: Run, cell: Cell, dataset: Dataset, results: Sequence[HeadResult]) -> bool:
    """Whether heads that were trained again give the test predictions that the run has of them."""
    import pyarrow.parquet as pq

    columns = [f"predicted_{name}" for name in dataset.dimensions] or [f"p_{name}" for name in dataset.classes]
    for result in results:
        of_head = [("cell", "==", cell.title), ("fold", "==", result.task.fold), ("seed", "==", result.task.seed)]
        table = pq.read_table(
            run.path / "predictions.parquet", columns=["utterance_id", *columns], filters=of_head
        ).to_pandas()
        table = table.set_index("utterance_id")
        ids = [dataset.utterance_ids[row] for row in result.task.test]
        if set(ids) != set(table.index):
            return False
        stored = table.loc[ids, columns].to_numpy(np.float64)
        unit = stored.std(axis=0) if dataset.dimensions else 1.0
        if not (np.abs(result.test_outputs - stored) <= _SAME * np.maximum(unit, 1e-12)).all():
            return False
    return True


def _targets(dataset: Dataset, *, extra: bool) -> dict[str, Any]:
    """What ``train_stack`` learns from; with ``extra``, of one more row, which has no target."""
    if dataset.dimensions:
        return {"values": _more(torch.from_numpy(dataset.values), torch.nan, extra)}
    found: dict[str, Any] = {
        "labels": _more(torch.from_numpy(dataset.labels), 0, extra),
        "num_classes": len(dataset.classes),
    }
    if dataset.votes is not None:
        found["votes"] = _more(torch.from_numpy(dataset.votes), 0.0, extra)
    return found


def _more(tensor: Tensor, value: float, extra: bool) -> Tensor:
    return torch.cat([tensor, torch.full_like(tensor[:1], value)]) if extra else tensor


def _check_same(run: Run, dataset: Dataset, split_digest: str) -> None:
    """Refuse what the run was not made from."""
    recorded: dict[str, Any] = {
        "manifest_digest": run.config["manifest_digest"],
        "split_digest": run.config["split_digest"],
        **{f"{name} features": run.config["sources"][name]["features_digest"] for name in dataset.sources},
    }
    now = {
        "manifest_digest": dataset.manifest_digest,
        "split_digest": split_digest,
        **{f"{name} features": source.features_digest for name, source in dataset.sources.items()},
    }
    changed = [name for name, value in recorded.items() if now[name] != value]
    if changed:
        name = changed[0]
        raise RunError(
            f"{run.path} was made from other data than what is cached now: {name} was {str(recorded[name])[:12]} and is"
            f" {str(now[name])[:12]}. Run the comparison again, or name its cache with --cache-dir."
        )


def _input(source: Source) -> ModelInput:
    made = open_store(source.path).provenance
    return ModelInput(
        encoder=source.encoder,
        family=source.family,
        representations=source.layers or (source.representation,),
        weighted=bool(source.layers),
        pool=source.pool,
        spread=source.dim > made.dim,
        dim=source.dim,
        sample_rate_hz=made.sample_rate_hz,
        precision=made.precision,
        weights_kind=made.weights_kind,
        weights_source=made.weights_source,
        weights_revision=made.weights_revision,
        weights_digest=made.weights_digest,
        weights_licence=made.weights_licence,
    )


def default_folder(run: Run, cell: Cell, fold: str = ALL_DATA) -> Path:
    """Where a model goes unless a folder is named."""
    name = f"{run.config['corpus']}-{cell.title}" + (f"-fold-{fold}" if fold != ALL_DATA else "")
    plain = "".join(letter if letter.isalnum() or letter in "-_" else "-" for letter in name)
    return Path("models") / re.sub("-+", "-", plain).strip("-")
