"""The comparison of HYFuse (arXiv 2506.03403): every pair of representations under every fusion, singles on the margins.

One call trains what is missing, keeps every finished job, and scores all of them. The same call again, after an
interruption or with more seeds, computes only what is not there yet; a comparison that is complete is read back.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Protocol

import numpy as np

import pipelines
from pipelines.corpora.cards import Card, card_names, read_card
from pipelines.corpora.leaks import check_split
from pipelines.corpora.manifest import Manifest
from pipelines.corpora.protocols import Split
from pipelines.errors import ConfigError, StorageError, unknown_name
from pipelines.evaluation.results import CellScore, HeadRecord, RunFolder, score_cell
from pipelines.files import TEMPORARY_PREFIX, take_lock, write_atomically
from pipelines.locations import Location
from pipelines.training.data import (
    TARGETS,
    Dataset,
    canonical_dimensions,
    default_classes,
    default_dimensions,
    load_dataset,
)
from pipelines.training.folds import make_folds, stratified_by
from pipelines.training.grid import (
    LINEAR,
    LOGISTIC,
    RIDGE,
    Cell,
    choose_device,
    code_digest,
    make_job,
    run_jobs,
    told_apart,
)
from pipelines.training.logistic import PENALTY_C
from pipelines.training.ridge import PENALTY
from pipelines.training.trainer import TrainConfig

__all__ = ["Comparison", "ComparisonConfig", "compare_cells"]


@dataclass(frozen=True)
class ComparisonConfig:
    """Settings of a comparison.

    Attributes:
        protocol: name; empty for the corpus' default.
        seeds: number of seeds; they are 0, 1, 2, …
        pool: ``mean``, ``std`` or ``mean+std``.
        representations: encoder to representation, where it is not the encoder's default; of an encoder with layers also
            ``last``, ``weighted`` or the number of a layer.
        layer: the same for all encoders that have layers and are not among ``representations``; empty for their defaults.
        classes: emotions; empty for those of the corpus' card.
        condition: under which the recordings were encoded, training and test alike.
        selection: which rows train and which epoch is kept (see ``training.trainer``); empty for ``loss`` under an official
            split, whose development part is there for that, and ``fixed`` otherwise.
        train: hyper-parameters of the heads, but for the selection.
        recipe: name of the recipe that ``train`` and the options of the cells began with; said in notes, decides nothing here.
        target: what heads learn: ``emotion`` or ``dimensions``.
        dimensions: which of arousal, valence and dominance (``activation`` is arousal); empty for all that the corpus has.
        labels: what emotions are learned from: ``hard``, the labels, or ``soft``, the votes of the raters.
    """

    protocol: str = ""
    seeds: int = 5
    pool: str = "mean+std"
    representations: Mapping[str, str] = field(default_factory=dict)
    layer: str = ""
    classes: tuple[str, ...] = ()
    condition: str = "clean"
    selection: str = ""
    train: TrainConfig = field(default_factory=TrainConfig)
    recipe: str = "hyfuse"
    target: str = "emotion"
    dimensions: tuple[str, ...] = ()
    labels: str = "hard"

    def __post_init__(self) -> None:
        if self.target not in TARGETS:
            raise unknown_name("target", self.target, TARGETS)
        if self.labels not in ("hard", "soft"):
            raise unknown_name("kind of --labels", self.labels, ("hard", "soft"))
        canonical_dimensions(self.dimensions)
        if self.target == "dimensions":
            for name, given in (
                ("--classes", ",".join(self.classes)),
                ("--class-weights", self.train.class_weights.replace("none", "")),
                ("--labels", self.labels.replace("hard", "")),
                ("--selection", self.selection if self.selection == "uar" else ""),
            ):
                if given:
                    raise ConfigError(
                        f"{name} {given} means nothing to --target dimensions, which has no classes. Leave it out, or use --target"
                        " emotion."
                    )
        elif self.dimensions or self.selection == "ccc":
            option = f"--dimensions {','.join(self.dimensions)}" if self.dimensions else "--selection ccc"
            raise ConfigError(f"{option} needs --target dimensions; the target is emotion.")
        if not 1 <= self.seeds <= 1000:
            raise ConfigError(f"--seeds must be between 1 and 1000, not {self.seeds}.")


@dataclass(frozen=True)
class Comparison:
    """What a comparison found.

    Attributes:
        scores: one per cell.
        split: the folds that were used.
        dataset: the utterances that were used.
        trained: heads that were trained by this call.
        reused: heads that an earlier call had finished.
        seconds: how long this call took.
        notes: what a table of the scores is about.
        warnings: what a reader of such a table must not overlook.
        layer_weights: encoder to layer to weight, mean over the encoder's heads alone (over all its heads, if there are none);
            of encoders whose layers are weighted.
    """

    scores: tuple[CellScore, ...]
    split: Split
    dataset: Dataset
    trained: int
    reused: int
    seconds: float
    notes: tuple[str, ...]
    warnings: tuple[str, ...]
    layer_weights: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


Progress = Callable[[int, int, str], None]
"""Called with (heads done, heads in all, cell that was worked on last)."""


def compare_cells(
    manifest: Manifest,
    cells: Sequence[Cell],
    *,
    config: ComparisonConfig,
    cache_dir: Location,
    run_dir: Path,
    workers: int = 1,
    device: str = "cpu",
    save_heads: bool = False,
    progress: Progress | None = None,
    stack: int | None = None,
) -> Comparison:
    """Train and score cells, as far as the run folder does not hold them already.

    Args:
        manifest: the corpus.
        cells: what to compare.
        config: how.
        cache_dir: folder of the stores.
        run_dir: folder of the run.
        workers: processes.
        device: of the heads: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        save_heads: whether the parameters of the heads are written as well; heads of earlier calls are then trained again.
        progress: called whenever a stack of heads is finished.
        stack: heads per stack, at most; what suits the device unless given. It changes no result on a CPU.

    Raises:
        HyfuseError: stores, protocol, settings or disk do not allow it; see the named children.
    """
    started = time.monotonic()
    device = choose_device(device)
    cells = told_apart(cells)
    dataset, split = prepare(manifest, cells, config=config, cache_dir=cache_dir)
    train = train_config(config, split)
    said, warned = notes(manifest, dataset, split, config, train), warnings_of(manifest, dataset, split)
    run = RunFolder(run_dir)

    def write_config() -> None:
        text = config_json(dataset, split, cells, config=config, train=train, said=said, warned=warned)
        write_atomically(run_dir / "config.json", text, option="--runs-dir")

    with locked(run_dir):
        write_config()
        jobs = [make_job(dataset, split, cell, seeds=range(config.seeds), config=train) for cell in cells]
        total = sum(len(job.tasks) for job in jobs)
        missing = []
        for job in jobs:
            finished = set() if save_heads else {(head.row["fold"], head.row["seed"]) for head in run.load(job)}
            tasks = tuple(task for task in job.tasks if (task.fold, task.seed) not in finished)
            missing.append(replace(job, tasks=tasks))
        reused = total - sum(len(job.tasks) for job in missing)
        done = reused
        if progress is not None:
            progress(done, total, "")
        for result in run_jobs(missing, workers=workers, device=device, stack=stack, scratch=run_dir):
            run.save(result)
            if save_heads:
                run.write_heads(result)
            done += len(result.heads)
            if progress is not None:
                progress(done, total, result.job.cell.title)
        records: list[HeadRecord] = []
        scores = []
        for job in jobs:
            heads = run.load(job)
            records += heads
            scores.append(score_heads(dataset, job.cell, heads))
        run.write_results(records)
        write_predictions(run, dataset, records)
        weights = layer_weights(dataset, records)
        said += layer_notes(dataset, weights)
        write_config()
    return Comparison(
        scores=tuple(scores),
        split=split,
        dataset=dataset,
        trained=total - reused,
        reused=reused,
        seconds=time.monotonic() - started,
        notes=tuple(said),
        warnings=tuple(warned),
        layer_weights=weights,
    )


def score_heads(dataset: Dataset, cell: Cell, heads: Sequence[HeadRecord]) -> CellScore:
    """Score a cell from its heads, by the target of the data set."""
    truth = dataset.values if dataset.dimensions else dataset.labels
    return score_cell(cell, heads, truth=truth, speakers=dataset.speakers, dimensions=dataset.dimensions)


def write_predictions(run: RunFolder, dataset: Dataset, records: Sequence[HeadRecord]) -> None:
    """Write ``predictions.parquet`` of a run.

    Raises:
        StorageError: the disk is full or cannot be written.
    """
    run.write_predictions(
        records,
        utterance_ids=dataset.utterance_ids,
        speakers=dataset.speakers,
        truth=dataset.values if dataset.dimensions else dataset.labels,
        classes=dataset.classes,
        dimensions=dataset.dimensions,
    )


def prepare(
    manifest: Manifest, cells: Sequence[Cell], *, config: ComparisonConfig, cache_dir: Location
) -> tuple[Dataset, Split]:
    """The utterances and the folds of a comparison.

    Raises:
        HyfuseError: stores or protocol do not allow it; see the named children.
    """
    card = _card(manifest.corpus)
    if config.target == "dimensions":
        learned = {"dimensions": canonical_dimensions(config.dimensions) or default_dimensions(manifest)}
    else:
        learned = {"classes": config.classes or default_classes(manifest, card.classes if card else ())}
    dataset = load_dataset(
        manifest,
        cache_dir=cache_dir,
        encoders=list(dict.fromkeys(name for cell in cells for name in (cell.left, cell.right) if name)),
        soft=config.labels == "soft",
        representations=config.representations,
        layer=config.layer,
        pool=config.pool,
        condition=config.condition,
        **learned,
    )
    protocol = config.protocol or (card.default_protocol if card else "speaker-5fold")
    return dataset, make_folds(manifest, dataset, protocol, card=card)


def _card(corpus: str) -> Card | None:
    return read_card(corpus) if corpus in card_names() else None


def train_config(config: ComparisonConfig, split: Split) -> TrainConfig:
    """Hyper-parameters with the selection that the settings ask for or the split suggests."""
    default = "loss" if split.protocol.startswith("official") else "fixed"
    return replace(config.train, selection=config.selection or default)


@contextmanager
def locked(run_dir: Path) -> Iterator[None]:
    """One process works on a run at a time; the system lets go of the lock when the process dies."""
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        handle, other = take_lock(run_dir / "run.lock")
    except OSError as error:
        raise StorageError(
            f"{run_dir} cannot be written: {error.strerror or error}. Choose another folder with --runs-dir."
        ) from error
    with handle:
        if other:
            raise StorageError(
                f"Another process is working on {run_dir}. Wait for it, or choose another name with --run."
            )
        for leftover in run_dir.rglob(f"{TEMPORARY_PREFIX}*"):  # of writes that were killed between file and rename
            leftover.unlink(missing_ok=True)
        yield


def config_json(
    dataset: Dataset,
    split: Split,
    cells: Sequence[Cell],
    *,
    config: ComparisonConfig,
    train: TrainConfig,
    said: Sequence[str],
    warned: Sequence[str],
    more: Mapping[str, object] | None = None,
) -> str:
    """What ``config.json`` of a run says: all that decides on its numbers, and the notes and warnings of its table."""
    content = {
        **subject_json(dataset, split),
        "code_digest": code_digest(),
        "labels": config.labels,
        "sources": {name: {**asdict(source), "path": str(source.path)} for name, source in dataset.sources.items()},
        "cells": [{**asdict(cell), "options": dict(cell.options), "title": cell.title} for cell in cells],
        "seeds": list(range(config.seeds)),
        "pool": config.pool,
        "condition": config.condition,
        "recipe": config.recipe,
        "hyper_parameters": asdict(train),
        "notes": list(said),
        "warnings": list(warned),
        **(more or {}),
    }
    return json.dumps(content, indent=2, sort_keys=True) + "\n"


class Subject(Protocol):
    """What runs of every kind say of their utterances: pooled embeddings' :class:`Dataset`, and that of frames."""

    @property
    def corpus(self) -> str: ...

    @property
    def manifest_digest(self) -> str: ...

    @property
    def target(self) -> str: ...

    @property
    def classes(self) -> tuple[str, ...]: ...

    @property
    def dimensions(self) -> tuple[str, ...]: ...

    @property
    def left_out(self) -> Mapping[str, int]: ...

    @property
    def speakers(self) -> tuple[str, ...]: ...


def subject_json(dataset: Subject, split: Split) -> dict[str, object]:
    """The part of ``config.json`` that every run has: program, corpus, target and folds."""
    return {
        "hyfuse": pipelines.__version__,
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("torch", "numpy", "zarr")},
        "corpus": dataset.corpus,
        "manifest_digest": dataset.manifest_digest,
        "target": dataset.target,
        "classes": list(dataset.classes),
        "dimensions": list(dataset.dimensions),
        "left_out": dict(dataset.left_out),
        "protocol": split.protocol,
        "split_digest": split.digest,
        "speaker_independent": split.speaker_independent,
        "folds": [
            {
                "name": fold.name,
                **{
                    f"{part}_speakers": sorted({dataset.speakers[row] for row in getattr(fold, part)})
                    for part in ("train", "validation", "test")
                },
            }
            for fold in split.folds
        ],
    }


def notes(
    manifest: Manifest, dataset: Dataset, split: Split, config: ComparisonConfig, train: TrainConfig
) -> list[str]:
    """What the table is about."""
    who = "speaker-independent" if split.speaker_independent else "speaker-dependent"
    folds, seeds = len(split.folds), config.seeds
    sources = ", ".join(f"{source.encoder} {source.representation}" for source in dataset.sources.values())
    rows = {
        "fixed": f"training and validation part for {train.epochs} epochs, nothing selected",
        "last": f"the training part for {train.epochs} epochs, nothing selected",
    }.get(train.selection, f"the training part, best epoch by {train.selection} on the validation part")
    weights = ", ".join(f"{source.encoder} {source.weights_kind}" for source in dataset.sources.values())
    what = f"{len(dataset.classes)} emotions ({', '.join(dataset.classes)})"
    if dataset.dimensions:
        ranges = zip(dataset.dimensions, dataset.values.min(axis=0), dataset.values.max(axis=0), strict=True)
        what = "dimensions " + ", ".join(f"{name} ({low:g} to {high:g})" for name, low, high in ranges)
    how = ", classes weighted by their rarity" if train.class_weights == "balanced" else ""
    if dataset.dimensions:
        how += ", for the mean over dimensions of 1 - CCC"
    elif dataset.votes is not None:
        how += ", towards the votes of the raters"
        how += f" ({dataset.voteless} utterances without a vote: their label)" if dataset.voteless else ""
        how += ", tested on the labels"
    stratified = ""
    if dataset.dimensions:
        by = stratified_by(manifest, dataset, split.protocol, card=_card(dataset.corpus))
        stratified = f" Folds are stratified by {by}."
    found = [
        f"Corpus: {dataset.corpus}, {len(dataset.utterance_ids)} utterances, {len(set(dataset.speakers))} speakers, {what}.",
        f"Protocol: {split.protocol}, {who}, {folds} fold{'s' if folds > 1 else ''}; {seeds} seed{'s' if seeds > 1 else ''};"
        f" scores of all folds pooled, mean over seeds; 95 % intervals by bootstrap over speakers.{stratified}",
        f"Heads: recipe {config.recipe}, trained on {rows}{how}.",
        _about_the_rung(dataset),
        f"Representations: {sources}; pooling {config.pool}.",
        f"Weights: {weights}.",
    ]
    if config.condition != "clean":
        found.append(f"Condition: {config.condition}, of training and test recordings alike.")
    if dataset.left_out:
        found.append(
            "Left out: " + ", ".join(f"{count} ({reason})" for reason, count in dataset.left_out.items()) + "."
        )
    checked = check_split(manifest, split, dataset.utterance_ids)
    return [*found, *(f"Leak check: {finding.message}" for finding in checked if finding.level == "note")]


def _about_the_rung(dataset: Dataset) -> str:
    """What the linear rung is."""
    inputs = "on the standardised embeddings, a pair's side by side"
    if dataset.dimensions:
        return (
            f"{RIDGE}: ridge regression (penalty {PENALTY:g} per feature) {inputs}, its predictions stretched to the spread of the"
            " values; once per fold, as nothing in it is random."
        )
    return f"{LOGISTIC}: logistic regression (C = {PENALTY_C:g}) {inputs}; once per fold, as nothing in it is random."


def layer_weights(dataset: Dataset, records: Sequence[HeadRecord]) -> dict[str, dict[str, float]]:
    """Encoder to layer to mean weight, as in :class:`Comparison`."""
    found: dict[str, dict[str, float]] = {}
    for name, source in dataset.sources.items():
        used = [
            (record.row, side)
            for record in records
            for side in ("left", "right")
            if record.row[side] == name and record.row["fusion"] not in LINEAR.values()
        ]
        alone = [(row, side) for row, side in used if not row["right"]]
        weights = [
            [row["diagnostics"][f"{side}_layer_{index:02d}"] for index in range(len(source.layers))]
            for row, side in alone or used
        ]
        if source.layers and weights:
            found[name] = dict(zip(source.layers, np.mean(weights, axis=0).tolist(), strict=True))
    return found


def layer_notes(dataset: Dataset, weights: Mapping[str, Mapping[str, float]]) -> list[str]:
    """How the layers of an encoder were weighted, and what they take in memory."""
    found = []
    for name, by_layer in weights.items():
        source = dataset.sources[name]
        size = 4 * len(dataset.utterance_ids) * len(source.layers) * source.dim / 1e9
        listed = ", ".join(f"{layer.removeprefix('layer_')}: {100 * weight:.0f}" for layer, weight in by_layer.items())
        found.append(
            f"Layer weights of {name}, per cent, mean over heads: {listed} ({size:.2g} GB of layers read;"
            f" {LINEAR[dataset.target]} weights all alike)."
        )
    return found


def warnings_of(manifest: Manifest, dataset: Dataset, split: Split) -> list[str]:
    """What a reader must not overlook; every run is checked for leaks between the parts of its folds."""
    random = [name for name, source in dataset.sources.items() if source.weights_kind == "random"]
    warnings = []
    if random:
        warnings.append(
            f"RANDOM weights: {', '.join(random)}. These scores say nothing about the pretrained encoders of that name."
        )
    if not split.speaker_independent:
        warnings.append(
            f"speaker-dependent: {split.protocol} has the same speakers in training and test. Compare only with papers that"
            " did the same."
        )
    card = _card(dataset.corpus)
    for finding in check_split(manifest, split, dataset.utterance_ids):
        if finding.level != "note":
            warnings.append(f"{'LEAK' if finding.level == 'error' else 'Leak check'}: {finding.message}")
    return [*warnings, *(card.warnings if card else ())]
