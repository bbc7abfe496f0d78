"""Tuning by nested search: what settings are worth is asked inside the outer training part only.

For every outer fold on its own: the rows that would be trained on are divided once more into inner folds, disjoint in speakers
like the outer ones. A trial is a set of hyper-parameters and options of the fusion; its value is the UAR (where the target is
dimensions: the mean CCC) over all inner folds together, mean over ``inner_seeds``. The first trial is the settings that the search
starts from; the others are proposed by Optuna's TPE sampler. The best trial (the earlier one, if equal) is then trained on the
whole outer training part under every seed and tested on the outer test part, once. Outer test rows are nowhere in the search, so
the score is as honest as without tuning; what was chosen differs between folds, and that is part of the answer.

Every finished trial is a line of ``tuning/<fold>-<key>.jsonl`` in the run folder (JSON, no pickles). A search that was
interrupted goes on after its last line; so does one that is asked for more trials. The sampler of a trial is seeded by the fold
and the number of the trial and sees the trials before it, so that a search ends the same however often it was interrupted and
however many processes worked on it. ``tuning.json`` says what was chosen for each fold. Where several hundred trials are made,
the inner score of the best is optimistic, the outer score is not.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.corpora.manifest import Manifest
from pipelines.corpora.protocols import Fold, Split, make_split
from pipelines.errors import ConfigError, InstallationError, ProtocolError, unknown_name
from pipelines.evaluation.measures import measure_of
from pipelines.evaluation.results import HeadRecord, RunFolder
from pipelines.files import write_atomically
from pipelines.fusion.catalogue import fusion_options, fusion_spec
from pipelines.locations import Location
from pipelines.studies.pairs import (
    Comparison,
    ComparisonConfig,
    config_json,
    layer_notes,
    layer_weights,
    locked,
    notes,
    prepare,
    score_heads,
    train_config,
    warnings_of,
    write_predictions,
)
from pipelines.training.data import Dataset
from pipelines.training.folds import value_strata
from pipelines.training.grid import (
    Cell,
    Job,
    choose_device,
    make_job,
    mapped_sources,
    run_jobs,
    start_worker,
    train_job,
)
from pipelines.training.metrics import concordance, unweighted_average_recall
from pipelines.training.trainer import SELECTING, HeadTask, TrainConfig, fitted_rows, steps_per_epoch

__all__ = ["SPACE", "Dimension", "FoldTuning", "TuneConfig", "Tuning", "search_space", "tune_cell"]


@dataclass(frozen=True, kw_only=True)
class Dimension:
    """What one setting may be.

    Attributes:
        low: smallest number.
        high: largest number.
        log: whether small numbers deserve finer steps.
        choices: the values, where it is no range.
    """

    low: float = 0.0
    high: float = 0.0
    log: bool = False
    choices: tuple[str | int | float, ...] = ()


SPACE: dict[str, Dimension] = {
    "learning_rate": Dimension(low=2e-4, high=5e-3, log=True),
    "weight_decay": Dimension(low=1e-3, high=0.5, log=True),
    "label_smoothing": Dimension(low=0.0, high=0.3),
    "input_dropout": Dimension(low=0.0, high=0.8),
    "dropout": Dimension(low=0.0, high=0.5),
    "epochs": Dimension(choices=(15, 30, 60)),
    "batch_size": Dimension(choices=(16, 32, 64)),
    "hidden_dim": Dimension(choices=(64, 120, 240)),
    "order": Dimension(choices=("left-right", "right-left")),
    "classifier": Dimension(choices=("dense", "mlr")),
    "max_radius": Dimension(low=0.1, high=2.0, log=True),
    "modality_dropout": Dimension(low=0.0, high=0.4),
    "rank": Dimension(choices=(16, 32, 64, 128)),
    "attention_heads": Dimension(choices=(2, 4, 8)),
}
"""Settings of training, and options of those fusions that have them, that are searched."""

_OF_CLASSES = ("label_smoothing",)  # settings that mean nothing to dimensions
_STARTUP = 10  # trials at random places before the sampler learns from them

_TRAINING = tuple(setting.name for setting in fields(TrainConfig))


@dataclass(frozen=True, kw_only=True)
class TuneConfig:
    """Budget and extent of a search.

    Attributes:
        trials: per outer fold, the starting point included.
        inner_folds: inner folds; fewer if there are fewer speakers, more if few speakers can only be divided so.
        inner_seeds: seeds of every trial.
        search: settings to search; empty for all of :data:`SPACE` that the fusion has.
    """

    trials: int = 30
    inner_folds: int = 3
    inner_seeds: int = 1
    search: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, least in (("trials", 1), ("inner_folds", 2), ("inner_seeds", 1)):
            if getattr(self, name) < least:
                option = f"--{name.replace('_', '-')}"
                raise ConfigError(f"{option} must be at least {least}, not {getattr(self, name)}.")


@dataclass(frozen=True)
class FoldTuning:
    """The search of one outer fold.

    Attributes:
        fold: its name.
        best: setting to value.
        inner_score: UAR or mean CCC of the best trial.
        start_score: of the settings that the search started from.
        trials: how many were made.
    """

    fold: str
    best: Mapping[str, str | int | float]
    inner_score: float
    start_score: float
    trials: int


@dataclass(frozen=True)
class Tuning:
    """What tuning found.

    Attributes:
        folds: one per outer fold.
        comparison: the tuned heads' scores on the outer test parts, as of a comparison of one cell.
        searched: trials that were made by this call.
        reused: trials that an earlier call had made.
    """

    folds: tuple[FoldTuning, ...]
    comparison: Comparison
    searched: int
    reused: int


def search_space(cell: Cell, search: Sequence[str] = (), *, target: str = "emotion") -> dict[str, Dimension]:
    """The part of :data:`SPACE` that concerns a cell.

    Args:
        cell: what is tuned; options that it sets itself are not searched.
        search: names to search; empty for all.
        target: ``emotion`` or ``dimensions``, which some settings mean nothing to.

    Raises:
        UnknownNameError: a name that cannot be searched for this fusion.
        ConfigError: a name that the cell sets.
    """
    options = fusion_spec(cell.fusion).options
    valid = {name: extent for name, extent in SPACE.items() if name in _TRAINING or name in options}
    if target == "dimensions":
        valid = {name: extent for name, extent in valid.items() if name not in _OF_CLASSES}
    for name in search:
        if name not in valid:
            raise unknown_name(f"setting to search for {cell.fusion}", name, valid)
        if name in cell.options:
            raise ConfigError(
                f"{name} is to be searched and set to {cell.options[name]} as well. Leave one of them out."
            )
    return {
        name: extent for name, extent in valid.items() if (name in search or not search) and name not in cell.options
    }


def tune_cell(
    manifest: Manifest,
    cell: Cell,
    *,
    config: ComparisonConfig,
    tuning: TuneConfig,
    cache_dir: Location,
    run_dir: Path,
    workers: int = 1,
    device: str = "cpu",
    progress: Callable[[int, int, str], None] | None = None,
) -> Tuning:
    """Search settings for every outer fold, train with the best and score them on the outer test part.

    Args:
        manifest: the corpus.
        cell: a pair and a fusion, or a single representation.
        config: what the search starts from, and how the winners are trained.
        tuning: how long and where to search.
        cache_dir: folder of the stores.
        run_dir: folder of the run.
        workers: processes; each works on an outer fold.
        device: of the heads.
        progress: called with (trials done, trials in all, fold) whenever a fold's search is finished.

    Raises:
        InstallationError: Optuna is not installed.
        HyfuseError: stores, protocol, settings or disk do not allow it; see the named children.
    """
    _optuna()
    started = time.monotonic()
    device = choose_device(device)
    space = search_space(cell, tuning.search, target=config.target)
    dataset, split = prepare(manifest, [cell], config=config, cache_dir=cache_dir)
    train = train_config(config, split)
    run = RunFolder(run_dir)
    seeds = range(config.seeds)
    said, warned = notes(manifest, dataset, split, config, train), warnings_of(manifest, dataset, split)
    said.append(
        f"Tuned: {tuning.trials} trials per outer fold, each the {_name(dataset)} of inner folds of other speakers inside the"
        f" fold's training part; searched: {', '.join(space)}. The outer test parts were scored once, with what each fold's"
        " search chose (tuning.json)."
    )
    strata = value_strata(manifest, dataset) if dataset.dimensions else dataset.label_names
    searches = [_search(dataset, split, fold, cell, train, tuning, space, strata, run_dir) for fold in split.folds]
    with locked(run_dir):
        more = {"tuning": {**asdict(tuning), "space": {name: asdict(extent) for name, extent in space.items()}}}
        content = config_json(dataset, split, [cell], config=config, train=train, said=said, warned=warned, more=more)
        write_atomically(run_dir / "config.json", content, option="--runs-dir")
        reused = sum(min(len(_read_trials(search.journal)), tuning.trials) for search in searches)
        folds = _run_searches(searches, workers=workers, device=device, scratch=run_dir, progress=progress)
        described = [asdict(fold) for fold in folds]
        write_atomically(
            run_dir / "tuning.json", json.dumps(described, indent=2, sort_keys=True) + "\n", option="--runs-dir"
        )
        jobs = []
        for fold, found in zip(split.folds, folds, strict=True):
            chosen, settings = _apply(cell, train, found.best)
            whole = make_job(dataset, split, chosen, seeds=seeds, config=settings)
            jobs.append(replace(whole, tasks=tuple(task for task in whole.tasks if task.fold == fold.name)))
        missing = []
        for job in jobs:
            finished = {(head.row["fold"], head.row["seed"]) for head in run.load(job)}
            missing.append(replace(job, tasks=tuple(t for t in job.tasks if (t.fold, t.seed) not in finished)))
        trained = sum(len(job.tasks) for job in missing)
        for result in run_jobs(missing, workers=workers, device=device, scratch=run_dir):
            run.save(result)
        # Folds may have chosen other options, such as the order; they are one cell all the same, under the name asked for.
        records: list[HeadRecord] = [record for job in jobs for record in run.load(replace(job, cell=cell))]
        score = score_heads(dataset, cell, records)
        run.write_results(records)
        write_predictions(run, dataset, records)
    weights = layer_weights(dataset, records)
    comparison = Comparison(
        scores=(score,),
        split=split,
        dataset=dataset,
        trained=trained,
        reused=sum(len(job.tasks) for job in jobs) - trained,
        seconds=time.monotonic() - started,
        notes=(*said, *layer_notes(dataset, weights)),
        warnings=tuple(warned),
        layer_weights=weights,
    )
    return Tuning(tuple(folds), comparison, sum(fold.trials for fold in folds) - reused, reused)


def _name(dataset: Dataset) -> str:
    return measure_of(dataset.target, dataset.dimensions).name


@dataclass(frozen=True)
class _Search:
    """One outer fold's search, with all that a process needs for it."""

    fold: str
    job: Job
    space: Mapping[str, Dimension]
    start: Mapping[str, str | int | float]
    trials: int
    journal: Path


def _search(
    dataset: Dataset,
    split: Split,
    fold: Fold,
    cell: Cell,
    train: TrainConfig,
    tuning: TuneConfig,
    space: Mapping[str, Dimension],
    strata: Sequence[str],
    run_dir: Path,
) -> _Search:
    tasks = tuple(
        replace(task, seed=seed)
        for task in _inner_tasks(dataset, split, fold, train, tuning.inner_folds, strata)
        for seed in range(tuning.inner_seeds)
    )
    job = make_job(dataset, split, cell, seeds=[0], config=train)
    job = replace(job, tasks=tasks, steps_per_epoch=steps_per_epoch(tasks, train))
    # The same key, the same trials: all that values depend on, but not how many trials are asked for.
    parts = {
        "job": job.key,
        "space": {name: asdict(extent) for name, extent in space.items()},
        "parts": [[task.fold, task.seed, task.train.tolist(), task.test.tolist()] for task in tasks],
        "optuna": _optuna().__version__,
    }
    key = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    values: dict[str, Any] = {**fusion_options(cell.fusion, cell.options), **asdict(train)}
    plain = "".join(letter if letter.isalnum() else "-" for letter in fold.name)
    return _Search(
        fold=fold.name,
        job=job,
        space=space,
        start={name: values[name] for name in space},
        trials=tuning.trials,
        journal=run_dir / "tuning" / f"{plain}-{key[:20]}.jsonl",
    )


def _inner_tasks(
    dataset: Dataset, split: Split, fold: Fold, train: TrainConfig, count: int, strata: Sequence[str]
) -> list[HeadTask]:
    """The inner folds of an outer one: their test parts lie inside its training part; ``strata`` are balanced."""
    selects = train.selection in SELECTING
    outer = HeadTask(fold=fold.name, seed=0, train=fold.train, validation=fold.validation, test=fold.test)
    rows = np.sort(fitted_rows(outer, train))
    speakers = [dataset.speakers[row] for row in rows]
    most = len(set(speakers)) if split.speaker_independent else count
    kind = "speaker" if split.speaker_independent else "random"
    for folds in range(min(count, most), most + 1):
        try:
            inner = make_split(
                f"{kind}-{folds}fold",
                utterance_ids=[dataset.utterance_ids[row] for row in rows],
                speakers=speakers,
                labels=[strata[row] for row in rows],
            )
            break
        except ProtocolError as error:  # few speakers may need more folds than were asked for
            reason = error
    else:
        raise ProtocolError(
            f"The training part of fold {fold.name!r} cannot be divided into inner folds to tune on: {reason}"
        ) from reason
    return [
        HeadTask(
            fold=f"{fold.name}/{part.name}",
            seed=0,
            train=rows[np.sort(np.concatenate([part.train, part.validation]))],
            validation=fold.validation if selects else fold.validation[:0],
            test=rows[part.test],
        )
        for part in inner.folds
    ]


def _run_searches(
    searches: Sequence[_Search],
    *,
    workers: int,
    device: str,
    scratch: Path,
    progress: Callable[[int, int, str], None] | None,
) -> list[FoldTuning]:
    """All searches, in their order."""
    total = sum(search.trials for search in searches)
    found: list[FoldTuning] = []

    def note(fold: FoldTuning) -> None:
        found.append(fold)
        if progress is not None:
            progress(sum(one.trials for one in found), total, f"fold {fold.fold}")

    if progress is not None:
        progress(0, total, "")
    with mapped_sources([search.job for search in searches], scratch) as files:
        if workers <= 1 or len(searches) <= 1 or device != "cpu":
            for search in searches:
                note(_run_search(search, device, files))
            return found
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(min(workers, len(searches)), mp_context=context, initializer=start_worker)
        try:
            for future in [pool.submit(_run_search, search, device, files) for search in searches]:
                note(future.result())
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
    return found


def _run_search(search: _Search, device: str, files: Mapping[str, Path]) -> FoldTuning:
    """Make the trials that the journal lacks."""
    trials = _read_trials(search.journal)
    for index in range(len(trials), search.trials):
        settings = _proposed(search, trials) if index else dict(search.start)
        trial: dict[str, Any] = {"settings": settings}
        try:
            trial["score"] = _inner_score(search.job, settings, device, files)
        except ConfigError as error:  # diverged, or options that exclude each other
            if index == 0:
                raise
            trial |= {"score": -1.0 if search.job.dimensions else 0.0, "failed": str(error)}
        trials.append(trial)
        lines = [json.dumps(one, sort_keys=True) for one in trials]
        write_atomically(search.journal, "\n".join(lines) + "\n", option="--runs-dir")
    values = [trial["score"] for trial in trials[: search.trials]]
    best = int(np.argmax(values))
    return FoldTuning(search.fold, trials[best]["settings"], values[best], values[0], len(values))


def _proposed(search: _Search, trials: Sequence[Mapping[str, Any]]) -> dict[str, str | int | float]:
    """What to try after some trials; the same trials, the same proposal."""
    optuna = _optuna()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    distributions = {name: _distribution(extent) for name, extent in search.space.items()}
    seed = hashlib.sha256(f"{search.fold}/{len(trials)}".encode()).digest()[:4]
    sampler = optuna.samplers.TPESampler(seed=int.from_bytes(seed, "little"), n_startup_trials=_STARTUP)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for trial in trials:
        # The starting point may lie outside the ranges in some settings; of those it says nothing.
        known = {name: value for name, value in trial["settings"].items() if _holds(search.space[name], value)}
        study.add_trial(
            optuna.trial.create_trial(
                params=known, distributions={name: distributions[name] for name in known}, value=trial["score"]
            )
        )
    return dict(study.ask(distributions).params)


def _distribution(extent: Dimension) -> Any:
    optuna = _optuna()
    if extent.choices:
        return optuna.distributions.CategoricalDistribution(extent.choices)
    return optuna.distributions.FloatDistribution(extent.low, extent.high, log=extent.log)


def _holds(extent: Dimension, value: str | int | float) -> bool:
    if extent.choices:
        return value in extent.choices
    return not isinstance(value, str) and extent.low <= value <= extent.high


def _apply(cell: Cell, train: TrainConfig, settings: Mapping[str, str | int | float]) -> tuple[Cell, TrainConfig]:
    """A cell and hyper-parameters with some settings in place of their own."""
    options = {name: value for name, value in settings.items() if name not in _TRAINING}
    training = {name: value for name, value in settings.items() if name in _TRAINING}
    return replace(cell, options={**cell.options, **options}), TrainConfig.from_mapping({**asdict(train), **training})


def _inner_score(job: Job, settings: Mapping[str, str | int | float], device: str, files: Mapping[str, Path]) -> float:
    """UAR, or mean CCC, over all inner folds together, mean over seeds."""
    cell, config = _apply(job.cell, job.config, settings)
    steps = steps_per_epoch(job.tasks, config)
    heads = train_job(replace(job, cell=cell, config=config, steps_per_epoch=steps), device, files)
    scores = []
    for seed in sorted({head.task.seed for head in heads}):
        own = [head for head in heads if head.task.seed == seed]
        tested = np.concatenate([head.task.test for head in own])
        outputs = np.concatenate([head.test_outputs for head in own])
        if job.dimensions:
            scores.append(float(np.nan_to_num(concordance(job.values[tested].T, outputs.T)).mean()))
        else:
            scores.append(
                float(unweighted_average_recall(job.labels[tested], outputs.argmax(axis=1), len(job.classes)))
            )
    return float(np.mean(scores))


def _read_trials(journal: Path) -> list[dict[str, Any]]:
    """Finished trials of a search; a damaged journal counts as absent."""
    try:
        return [json.loads(line) for line in journal.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError):
        return []


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise InstallationError(
            "Tuning needs Optuna, which is not installed. Install it with `pip install 'hyfuse[tune]'` or `pip install optuna`."
        ) from error
    return optuna
