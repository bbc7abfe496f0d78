"""The study ``layers``: which layer of an encoder serves which target, and what the layers are like.

After Oliveira, Prabhu & Gerkmann 2023 (arXiv 2305.19184; relevance of HuBERT's layers for arousal, valence and dominance) and Li,
Bell & Lai 2022 (arXiv 2110.15684; similarity of layers to acoustic descriptors, layer differences of two checkpoints). Of either
paper only the findings are known here, so the method is ours:

(a) a probe per layer and target, linear (:mod:`pipelines.training.probes`) or a head, on the same folds;
(b) heads on the softmax-weighted sum of all layers, one per target, so that each target has weights of its own;
(c) the encoder cut after each layer: its best layer by the training speakers' choice, or, if asked for, a head on the weighted sum
    of the layers that are left;
(d) linear CKA and PWCCA of every layer to every group of descriptors, to the other layers, or to another encoder's layers.

Everything is read from stores. Layers are chosen on training speakers only (:mod:`pipelines.studies.layer_scores`). In the run
folder, ``probes/`` holds what the probes of each layer said, ``parts/`` the heads, ``similarity/`` the matrices; each file belongs
to the digest of everything it depends on, so that the same call again computes only what is missing.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.corpora.manifest import Manifest
from pipelines.corpora.protocols import Split
from pipelines.errors import ConfigError
from pipelines.evaluation.results import HeadRecord, RunFolder
from pipelines.files import write_atomically
from pipelines.fusion.catalogue import SINGLE
from pipelines.locations import Location
from pipelines.store.embeddings import DONE, EmbeddingStore, open_store, store_path
from pipelines.studies.answers import p_text
from pipelines.studies.layer_scores import (
    Choice,
    Contrast,
    Scores,
    Target,
    best_layer,
    choose_layers,
    compare_choices,
    compare_depths,
    compare_ends,
    inner_score,
    layer_name,
    power_note,
    put_together,
    score_target,
    targets_of,
)
from pipelines.studies.layer_similarity import (
    MOST_ROWS,
    Matrix,
    between_layers,
    column_groups,
    drawn_rows,
    layers_to_groups,
)
from pipelines.studies.outcome import Cell, Column, Figure, Outcome, Series, Table
from pipelines.studies.pairs import ComparisonConfig, locked, prepare, train_config, warnings_of
from pipelines.training.data import WEIGHTED, Dataset, Source, read_source
from pipelines.training.grid import Cell as GridCell
from pipelines.training.grid import choose_device, code_digest, make_job, run_jobs
from pipelines.training.probes import INNER_PARTS, STRENGTHS, LayerProbes, ProbeTarget, probe_layers
from pipelines.training.trainer import TrainConfig

__all__ = ["CURVES", "PROBE_KINDS", "LayersConfig", "study_layers"]

Floats = NDArray[np.float64]

PROBE_KINDS = ("logistic", "ridge", "head")
CURVES = ("best", "weighted")

_DAMAGED = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)
"""What reading a file that is absent, cut short or of another make may raise."""

Progress = Callable[[int, int, str], None]
"""Called with (steps done, steps in all, what was done last)."""


@dataclass(frozen=True, kw_only=True)
class LayersConfig:
    """Settings of the study.

    Attributes:
        model: encoder whose layers are looked at.
        comparison: target, protocol, pooling, condition, seeds and training of heads; layers and representations are ours.
        probe: one of :data:`PROBE_KINDS`; empty for ``logistic`` (emotion) or ``ridge`` (dimensions).
        descriptors: stores of descriptors; empty for none.
        against: another encoder; empty for none. May be the same one, from another cache.
        against_cache: cache of that other encoder's store; None for the same cache.
        weighted: whether heads on the weighted sum of the layers are trained.
        curve: ``best``, or ``weighted`` for heads on the weighted sum of the first layers as well.
        rows: utterances that similarity is computed on, at most; 0 for all.
        raw: whether similarity sees the columns of layers on their own scale.
    """

    model: str
    comparison: ComparisonConfig
    probe: str = ""
    descriptors: tuple[str, ...] = ("descriptors",)
    against: str = ""
    against_cache: Location | None = None
    weighted: bool = True
    curve: str = "best"
    rows: int = MOST_ROWS
    raw: bool = False

    def __post_init__(self) -> None:
        if self.probe and self.probe not in PROBE_KINDS:
            raise ConfigError(f"--probe must be one of {', '.join(PROBE_KINDS)}, not {self.probe!r}.")
        if self.curve not in CURVES:
            raise ConfigError(f"--curve must be one of {', '.join(CURVES)}, not {self.curve!r}.")
        if self.rows and self.rows < 10:
            raise ConfigError(f"--similarity-rows must be 0 (all) or at least 10, not {self.rows}.")
        if self.against == self.model and self.against_cache is None:
            raise ConfigError(
                f"--against {self.against} is the encoder itself, whose layers are compared with each other anyway. To compare two"
                " checkpoints of it, extract the other one into a cache of its own and name that with --against-cache."
            )


@dataclass(frozen=True)
class _Study:
    """What every part needs."""

    manifest: Manifest
    config: LayersConfig
    dataset: Dataset
    split: Split
    train: TrainConfig
    source: Source
    targets: tuple[Target, ...]
    tested: NDArray[np.int64]
    fold_of: NDArray[np.int64]
    run_dir: Path

    @property
    def layers(self) -> tuple[str, ...]:
        return self.source.layers

    def single_layer(self, position: int) -> Source:
        """One layer as a source of its own."""
        name = self.layers[position]
        return replace(self.source, representation=name, layers=(), features_digest=self.derived(name))

    def first_layers(self, count: int) -> Source:
        """The first layers, to be weighted."""
        name = f"{WEIGHTED}, {count} layers"
        return replace(self.source, representation=name, layers=self.layers[:count], features_digest=self.derived(name))

    def derived(self, name: str) -> str:
        """Digest of a part of the source's numbers."""
        return hashlib.sha256(f"{self.source.features_digest} {name}".encode()).hexdigest()

    def read(self, position: int) -> NDArray[np.float32]:
        """Embeddings of one layer, float32 [n, D]."""
        return read_source(self.single_layer(position), self.dataset.utterance_ids)


def study_layers(
    manifest: Manifest,
    config: LayersConfig,
    *,
    cache_dir: Location,
    run_dir: Path,
    workers: int = 1,
    device: str = "cpu",
    command: str = "",
    progress: Progress = lambda done, total, what: None,
) -> Outcome:
    """Probe the layers of an encoder, compare them, and write ``study.json``.

    Args:
        manifest: the corpus.
        config: what and how.
        cache_dir: folder of the stores.
        run_dir: folder of the run.
        workers: processes of heads, threads of probes.
        device: of the heads.
        command: what makes the study again, for its page.
        progress: told of every layer and stack.

    Raises:
        HyfuseError: stores, protocol, settings or disk do not allow it; see the named children.
    """
    device = choose_device(device)
    others = _open_others(manifest, config, cache_dir)
    comparison = replace(config.comparison, representations={config.model: WEIGHTED}, layer="")
    _check_layers(manifest, config, cache_dir)
    dataset, split = prepare(manifest, [GridCell(config.model, "", SINGLE)], config=comparison, cache_dir=cache_dir)
    tested = np.unique(np.concatenate([fold.test for fold in split.folds]))
    fold_of = np.zeros(len(dataset.utterance_ids), dtype=np.int64)
    for index, fold in enumerate(split.folds):
        fold_of[fold.test] = index
    study = _Study(
        manifest=manifest,
        config=config,
        dataset=dataset,
        split=split,
        train=train_config(comparison, split),
        source=dataset.sources[config.model],
        targets=targets_of(dataset),
        tested=tested,
        fold_of=fold_of[tested],
        run_dir=run_dir,
    )
    with locked(run_dir):
        steps = _Steps(progress, _count_steps(study, others))
        probes = _probes(study, workers, steps)
        heads = _heads(study, workers, device, steps)
        matrices = _matrices(study, others, steps)
        outcome = _outcome(study, probes, heads, matrices, command)
        outcome.write(run_dir)
        settings = json.dumps({**outcome.settings, "warnings": outcome.warnings}, indent=2, sort_keys=True)
        write_atomically(run_dir / "config.json", settings + "\n", option="--runs-dir")
    return outcome


class _Steps:
    """Counts what is done, for the progress display."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0

    def __call__(self, what: str, count: int = 1) -> None:
        self._done += count
        self._progress(min(self._done, self._total), self._total, what)


def _count_steps(study: _Study, others: Mapping[str, EmbeddingStore]) -> int:
    heads = sum(len(job.tasks) for job in _head_jobs(study).values())
    return len(study.layers) * (2 + ("against" in others)) + heads


def _check_layers(manifest: Manifest, config: LayersConfig, cache_dir: Location) -> None:
    """The encoder must have layers to compare."""
    store = open_store(
        store_path(cache_dir, manifest.corpus, config.model, config.comparison.condition),
        manifest_digest=manifest.digest,
    )
    names = [name for name in store.provenance.representations if name.startswith("layer_")]
    if len(names) < 2:
        raise ConfigError(
            f"{config.model!r} has no layers to compare (its representations are"
            f" {', '.join(store.provenance.representations)}). Name an encoder with layers, such as wavlm, hubert or whisper"
            " (`hyfuse models list`)."
        )


def _open_others(manifest: Manifest, config: LayersConfig, cache_dir: Location) -> dict[str, EmbeddingStore]:
    """Stores of descriptors by name, and of the other encoder as ``against``; before anything slow."""
    condition = config.comparison.condition
    found = {
        name: open_store(store_path(cache_dir, manifest.corpus, name, condition), manifest_digest=manifest.digest)
        for name in config.descriptors
    }
    for store in found.values():
        column_groups(store)
    if config.against:
        place = config.against_cache if config.against_cache is not None else cache_dir
        path = store_path(place, manifest.corpus, config.against, condition)
        store = open_store(path, manifest_digest=manifest.digest)
        if not any(name.startswith("layer_") for name in store.provenance.representations):
            raise ConfigError(
                f"--against {config.against}: it has no layers (its representations are"
                f" {', '.join(store.provenance.representations)}). Name an encoder with layers (`hyfuse models list`)."
            )
        found["against"] = store
    return found


# ---------------------------------------------------------------------------------------------------------------------
# (a) probes


def _kind(study: _Study) -> str:
    """Of the linear probes, which choose layers also where heads are what is shown."""
    asked = study.config.probe
    return asked if asked in ("logistic", "ridge") else "ridge" if study.dataset.dimensions else "logistic"


def _described(study: _Study) -> dict[str, Any]:
    """Everything that probes and heads depend on but the layer, as JSON values."""
    job = make_job(study.dataset, study.split, GridCell(study.config.model, "", SINGLE), seeds=(0,), config=study.train)
    return dict(job.description)


def _probes(study: _Study, workers: int, steps: _Steps) -> list[LayerProbes]:
    """What the linear probes of every layer said: read back, or made and kept."""
    kind, count = _kind(study), len(study.layers)
    described = {
        name: value
        for name, value in _described(study).items()
        if name not in ("fusion", "options", "hyper_parameters")
    }
    described |= {"probe": kind, "inner_parts": INNER_PARTS, "strengths": STRENGTHS}
    key = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:16]
    folder = study.run_dir / "probes"
    paths = [folder / f"{key}-{kind}-{name}.npz" for name in study.layers]
    found: dict[int, LayerProbes] = {}
    for position, path in enumerate(paths):
        one = _read_probes(path, len(study.split.folds))
        if one is not None:
            found[position] = one
            steps(study.layers[position])
    missing = [position for position in range(count) if position not in found]
    dataset = study.dataset
    target = (
        ProbeTarget(dataset.values.astype(np.float64), False)
        if dataset.dimensions
        else ProbeTarget.of_labels(dataset.labels, len(dataset.classes))
    )
    made = probe_layers(
        lambda index: study.read(missing[index]),
        len(missing),
        target=target,
        folds=study.split.folds,
        speakers=dataset.speakers,
        kind=kind,
        threads=workers,
    )
    for position, one in zip(missing, made, strict=True):
        _write_probes(paths[position], one)
        found[position] = one
        steps(study.layers[position])
    return [found[position] for position in range(count)]


def _write_probes(path: Path, probes: LayerProbes) -> None:
    content = io.BytesIO()
    inner = {f"inner_{index}": one for index, one in enumerate(probes.inner)}
    np.savez(content, test=probes.test, strengths=probes.strengths, **inner)  # type: ignore[arg-type]
    write_atomically(path, content.getvalue(), option="--runs-dir")


def _read_probes(path: Path, folds: int) -> LayerProbes | None:
    """None where the file is absent or damaged; it is then made again."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            inner = tuple(arrays[f"inner_{index}"] for index in range(folds))
            return LayerProbes(arrays["test"], inner, arrays["strengths"])
    except _DAMAGED:
        return None


# ---------------------------------------------------------------------------------------------------------------------
# (a, b, c) heads


def _head_jobs(study: _Study) -> dict[tuple[str, str], Any]:
    """Jobs of heads by (what, target): ``layer 3`` of all targets (``""``), ``weighted`` and ``depth 3`` of one."""
    config, seeds = study.config, range(study.config.comparison.seeds)
    found: dict[tuple[str, str], Any] = {}

    def job(source: Source, dataset: Dataset, title: str) -> Any:
        own = replace(dataset, sources={title: source})
        return make_job(own, study.split, GridCell(title, "", SINGLE), seeds=seeds, config=study.train)

    if config.probe == "head":
        for position, name in enumerate(study.layers):
            title = f"{config.model} {name}"
            found[layer_name(position), ""] = job(study.single_layer(position), study.dataset, title)
    for target in study.targets:
        dataset = study.dataset
        if target.column >= 0:
            one = slice(target.column, target.column + 1)
            values = np.array(dataset.values[:, one])
            dataset = replace(dataset, dimensions=dataset.dimensions[one], values=values)
        if config.weighted:
            found["weighted", target.name] = job(study.source, dataset, f"{config.model} {WEIGHTED} for {target.name}")
        if config.curve == "weighted":
            for count in range(1, len(study.layers) + 1):
                title = f"{config.model} first {count} {WEIGHTED} for {target.name}"
                found[f"depth {count - 1}", target.name] = job(study.first_layers(count), dataset, title)
    return found


@dataclass(frozen=True)
class _Head:
    """What the heads of a job said: predictions [S, n, K] of the tested utterances, and the weights of layers [R] if it has any."""

    predictions: Floats
    weights: Floats


def _heads(study: _Study, workers: int, device: str, steps: _Steps) -> dict[tuple[str, str], _Head]:
    """Train the heads that are missing, and read back all of them."""
    run, jobs = RunFolder(study.run_dir), _head_jobs(study)
    missing = []
    for job in jobs.values():
        finished = {(head.row["fold"], head.row["seed"]) for head in run.load(job)}
        tasks = tuple(task for task in job.tasks if (task.fold, task.seed) not in finished)
        missing.append(replace(job, tasks=tasks))
        steps(job.cell.title, len(job.tasks) - len(tasks))
    for result in run_jobs(missing, workers=workers, device=device, scratch=study.run_dir):
        run.save(result)
        steps(result.job.cell.title, len(result.heads))
    return {name: _said(study, run.load(job)) for name, job in jobs.items()}


def _said(study: _Study, heads: Sequence[HeadRecord]) -> _Head:
    seeds = sorted({int(head.row["seed"]) for head in heads})
    columns = heads[0].outputs.shape[1]
    predictions = np.full((len(seeds), len(study.tested), columns), math.nan)
    for head in heads:
        rows = np.searchsorted(study.tested, head.test)
        predictions[seeds.index(int(head.row["seed"])), rows] = head.outputs
    names = sorted(name for name in heads[0].row["diagnostics"] if name.startswith("left_layer_"))
    weights = np.array([[head.row["diagnostics"][name] for name in names] for head in heads])
    return _Head(predictions, weights.mean(axis=0))


# ---------------------------------------------------------------------------------------------------------------------
# (d) similarity


def _matrices(study: _Study, others: Mapping[str, EmbeddingStore], steps: _Steps) -> dict[str, Matrix]:
    """``descriptors`` (where there are any), and ``layers``: to the other encoder's, or to each other. Read back, or made."""
    dataset = study.dataset
    failed = {
        name
        for store in others.values()
        for name, status in zip(store.utterance_ids, store.status.tolist(), strict=True)
        if status != DONE
    }
    there = np.array([row for row, name in enumerate(dataset.utterance_ids) if name not in failed], dtype=np.int64)
    rows = there[drawn_rows(len(there), study.config.rows)]
    ids = [dataset.utterance_ids[row] for row in rows]
    pool, raw = study.source.pool, study.config.raw
    described = {
        "source": study.source.features_digest,
        "utterances": hashlib.sha256("\n".join(ids).encode()).hexdigest(),
        "pool": pool,
        "raw": raw,
        "code": _similarity_code(),
    }

    def read(position: int) -> NDArray[np.float32]:
        return study.read(position)[rows]

    found: dict[str, Matrix] = {}
    if study.config.descriptors:
        stores = [others[name] for name in study.config.descriptors]
        made = {**described, "descriptors": [store.provenance.identity_digest() for store in stores]}

        def to_groups() -> Matrix:
            groups = {
                (group if place == 0 else f"{store.provenance.encoder} {group}"): _columns(store, ids, columns, pool)
                for place, store in enumerate(stores)
                for group, columns in column_groups(store).items()
            }
            return layers_to_groups(read, study.layers, groups, raw=raw)

        found["descriptors"] = _kept(study.run_dir, "descriptors", made, to_groups)
    steps("descriptors", len(study.layers))
    against = others.get("against")
    if against is None:
        found["layers"] = _kept(
            study.run_dir,
            "layers",
            described,
            lambda: between_layers(read, study.layers, None, study.layers, raw=raw),
        )
        return found
    names = tuple(name for name in against.provenance.representations if name.startswith("layer_"))

    def read_other(position: int) -> NDArray[np.float32]:
        return against.features(ids, representation=names[position], pool=pool)

    made = {**described, "against": against.provenance.identity_digest()}
    found["layers"] = _kept(
        study.run_dir, "against", made, lambda: between_layers(read, study.layers, read_other, names, raw=raw)
    )
    steps("against", len(study.layers))
    return found


def _columns(store: EmbeddingStore, ids: Sequence[str], columns: Sequence[int], pool: str) -> NDArray[np.float32]:
    """Descriptors of a group: means, or means and deviations beside each other, as the layers are pooled."""
    representation, dim = store.provenance.default_representation, store.provenance.dim
    features = store.features(ids, representation=representation, pool=pool)
    whole = [column + offset for offset in range(0, features.shape[1], dim) for column in columns]
    return np.ascontiguousarray(features[:, whole])


def _similarity_code() -> str:
    """Digest of the code that similarity depends on and that :func:`code_digest` does not cover."""
    from pipelines.evaluation import similarity
    from pipelines.studies import layer_similarity

    digest = hashlib.sha256()
    for module in (similarity, layer_similarity):
        digest.update(Path(str(module.__file__)).read_bytes())
    return digest.hexdigest()


def _kept(run_dir: Path, name: str, described: Mapping[str, Any], make: Callable[[], Matrix]) -> Matrix:
    """A matrix that an earlier call has kept, or a new one."""
    key = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:16]
    path = run_dir / "similarity" / f"{key}-{name}.npz"
    try:
        with np.load(path, allow_pickle=False) as arrays:
            rows, columns, constant = (tuple(map(str, arrays[part])) for part in ("rows", "columns", "constant"))
            cka, pwcca, unrelated = (arrays[part] for part in ("cka", "pwcca", "unrelated"))
            return Matrix(rows, columns, cka, pwcca, unrelated, int(arrays["utterances"]), constant)
    except _DAMAGED:
        pass  # absent, or damaged and made again
    matrix = make()
    content = io.BytesIO()
    parts: dict[str, Any] = asdict(matrix)
    for part in ("rows", "columns", "constant"):
        parts[part] = np.array(parts[part], dtype=str)
    np.savez(content, **parts)
    write_atomically(path, content.getvalue(), option="--runs-dir")
    return matrix


# ---------------------------------------------------------------------------------------------------------------------
# What it comes to


def _choices(study: _Study, probes: Sequence[LayerProbes]) -> dict[str, Floats]:
    """Inner scores [F, R] of every target."""
    dataset = study.dataset
    found: dict[str, Floats] = {}
    for target in study.targets:
        scores = np.zeros((len(study.split.folds), len(probes)))
        for index, fold in enumerate(study.split.folds):
            rows = np.sort(np.concatenate([fold.train, fold.validation]))
            truth = dataset.labels[rows] if target.column < 0 else dataset.values[rows, target.column]
            scores[index] = [inner_score(target, truth, one.inner[index]) for one in probes]
        found[target.name] = scores
    return found


def _outcome(
    study: _Study,
    probes: Sequence[LayerProbes],
    heads: Mapping[tuple[str, str], _Head],
    matrices: Mapping[str, Matrix],
    command: str,
) -> Outcome:
    count = len(study.layers)
    inner = _choices(study, probes)
    choices = {name: choose_layers(scores) for name, scores in inner.items()}
    by_layer = [one.test[study.tested][None] for one in probes]  # [1, n, K] each
    if study.config.probe == "head":
        by_layer = [heads[layer_name(position), ""].predictions for position in range(count)]
    scored: list[Scores] = []
    for target in study.targets:
        given = {layer_name(position): one for position, one in enumerate(by_layer)}
        for name, choice in choices.items():
            given[f"chosen:{name}"] = put_together(by_layer, study.fold_of, choice.layers)
        for depth in range(count):
            layers = choose_layers(inner[target.name], depth=depth).layers
            given[f"depth {depth}"] = put_together(by_layer, study.fold_of, layers)
        for (what, of), head in heads.items():
            if of == target.name:
                given[what if what == "weighted" else f"{what} weighted"] = _spread(head.predictions, target, by_layer)
        scored.append(score_target(target, study.dataset, study.tested, given))
    answers: list[str] = []
    bests: dict[str, list[Contrast]] = {}
    for scores in scored:
        sentence, bests[scores.target.name] = best_layer(scores, choices[scores.target.name], count)
        answers.append(sentence)
    between, own = compare_choices(scored, choices)
    sides, ends = compare_ends(scored, count)
    answers += [*between, *sides]
    depths: dict[str, list[Contrast]] = {}
    for scores in scored:
        sentence, depths[scores.target.name] = compare_depths(scores, count)
        answers.append(sentence)
    weights = {of: head.weights for (what, of), head in heads.items() if what == "weighted"}
    answers += [_weighted_answer(scores, weights[scores.target.name]) for scores in scored if weights]
    answers += _similarity_answers(study, matrices)
    power = [power_note(scores, bests[scores.target.name]) for scores in scored]
    return Outcome(
        study="layers",
        title=f"Layers of {study.config.model} on {study.dataset.corpus}",
        corpus=study.dataset.corpus,
        target=study.dataset.target,
        answers=tuple(answers),
        notes=(*_notes(study, matrices), *filter(None, power)),
        warnings=tuple(_warnings(study, matrices)),
        tables=tuple(_tables(study, scored, choices, bests, depths, [*own, *ends], weights, matrices)),
        figures=tuple(_figures(study, scored, weights, matrices)),
        command=command,
        settings=_settings(study, choices),
    )


def _spread(predictions: Floats, target: Target, by_layer: Sequence[Floats]) -> Floats:
    """Predictions of a head for one dimension, in that dimension's column."""
    if target.column < 0:
        return predictions
    found = np.zeros((*predictions.shape[:2], by_layer[0].shape[2]))
    found[:, :, target.column] = predictions[:, :, 0]
    return found


def _weighted_answer(scores: Scores, weights: Floats) -> str:
    target = scores.target
    difference = scores.difference("weighted", f"chosen:{target.name}")
    centre = float(weights @ np.arange(len(weights)))
    even = (len(weights) - 1) / 2
    side = "above" if difference.value >= 0 else "below"
    return (
        f"Weighted sum of all layers for {target.name}: the head on it is {target.change(difference)} {side} the probe of the"
        f" chosen layer ({p_text(difference.p)}; a head and a linear probe differ in more than the layers). Its weights centre on"
        f" layer {centre:.1f} (equal weights: {even:.1f}), the largest is {100 * weights.max():.0f} % on layer"
        f" {int(weights.argmax())} (equal: {100 / len(weights):.0f} %)."
    )


def _similarity_answers(study: _Study, matrices: Mapping[str, Matrix]) -> list[str]:
    answers = []
    if "descriptors" in matrices:
        matrix = matrices["descriptors"]
        peaks = [
            f"{group} in layer {int(np.nanargmax(column))} ({np.nanmax(column):.2f})"
            for group, column in zip(matrix.columns, matrix.cka.T, strict=True)
            if not np.isnan(column).all()
        ]
        first = [float(matrix.cka[0, at]) for at in range(len(matrix.columns))]
        last = [float(matrix.cka[-1, at]) for at in range(len(matrix.columns))]
        falling = [group for group, one, other in zip(matrix.columns, first, last, strict=True) if other < one]
        answers.append(
            f"Descriptors are most like (debiased CKA): {', '.join(peaks) or 'none'}. From the first to the last layer it falls for"
            f" {', '.join(falling) or 'none'}. Without intervals: a description, not a test."
        )
    if study.config.against and "layers" in matrices:
        matrix = matrices["layers"]
        if matrix.rows == matrix.columns:
            same = np.diagonal(matrix.cka)
            answers.append(
                f"Between {study.config.model} and {study.config.against}, the same layers are most alike in layer"
                f" {int(same.argmax())} (debiased CKA {same.max():.2f}) and least in layer {int(same.argmin())} ({same.min():.2f})."
            )
        else:
            row, column = np.unravel_index(int(matrix.cka.argmax()), matrix.cka.shape)
            answers.append(
                f"Layer {row} of {study.config.model} and layer {column} of {study.config.against} are most alike (debiased CKA"
                f" {matrix.cka.max():.2f})."
            )
    return answers


def _notes(study: _Study, matrices: Mapping[str, Matrix]) -> list[str]:
    dataset, split, config = study.dataset, study.split, study.config
    who = "speaker-independent" if split.speaker_independent else "speaker-dependent"
    what = ", ".join(dataset.dimensions) if dataset.dimensions else ", ".join(dataset.classes)
    kind = _kind(study)
    probe = {
        "logistic": "logistic regression on standardised embeddings",
        "ridge": "ridge regression on standardised embeddings, its strength chosen and its predictions stretched on held-out"
        " training speakers",
    }[kind]
    found = [
        f"Corpus: {dataset.corpus}, {len(dataset.utterance_ids)} utterances, {len(set(dataset.speakers))} speakers; {what}.",
        f"Encoder: {config.model}, {study.source.weights_kind} weights, {len(study.layers)} layers (layer 0 is the input of the"
        f" first one), pooling {study.source.pool}, condition {config.comparison.condition}.",
        f"Protocol: {split.protocol}, {who}, {len(split.folds)} fold{'s' if len(split.folds) > 1 else ''}; scores of all folds"
        " pooled; 95 % intervals by bootstrap over speakers, p paired over speakers, corrected (Holm) within a question.",
        f"Probes: {'heads (' + str(config.comparison.seeds) + ' seeds)' if config.probe == 'head' else probe}, fitted on training"
        f" and validation part. Layers are chosen by {probe if config.probe == 'head' else 'the same probes'} within each fold's"
        f" training speakers (up to {INNER_PARTS} parts by speaker), never on test speakers.",
        "Depth k: the best of layers 0 to k by the same choice, what an encoder cut after layer k would give.",
        "The papers (Oliveira et al. 2023; Li et al. 2022) are known by their findings only; probes, tests and similarity are"
        " ours.",
    ]
    if any(what in ("weighted",) or what.startswith("depth") for what, _ in _head_jobs(study)):
        found.append(
            f"Weighted: heads (recipe {config.comparison.recipe}, {config.comparison.seeds} seeds) on the softmax-weighted sum of"
            " layers, a head with weights of its own per target."
        )
    if matrices:
        used = next(iter(matrices.values())).utterances
        found.append(
            f"Similarity: of {used} utterances' embeddings, columns {'of layers as they are' if config.raw else 'at deviation 1'}."
            " Debiased linear CKA (Kornblith et al. 2019; unrelated: 0 on average); PWCCA (Morcos et al. 2018), both sides cut to"
            " their principal components (99 % of variance, at least 20 utterances each), beside what permuted utterances give."
        )
    if dataset.left_out:
        found.append(
            "Left out: " + ", ".join(f"{number} ({reason})" for reason, number in dataset.left_out.items()) + "."
        )
    return found


def _warnings(study: _Study, matrices: Mapping[str, Matrix]) -> list[str]:
    found = warnings_of(study.manifest, study.dataset, study.split)
    constant = sorted({name for matrix in matrices.values() for name in matrix.constant})
    if constant:
        found.append(f"Constant on all utterances, so nothing can be like it: {', '.join(constant)}.")
    return found


def _settings(study: _Study, choices: Mapping[str, Choice]) -> dict[str, Any]:
    config = study.config
    return {
        "study": "layers",
        "model": config.model,
        "target": study.dataset.target,
        "described": _described(study),
        "code_digest": code_digest(),
        "seeds": config.comparison.seeds,
        "probe": config.probe or _kind(study),
        "descriptors": list(config.descriptors),
        "against": config.against,
        "against_cache": str(config.against_cache or ""),
        "weighted": config.weighted,
        "curve": config.curve,
        "similarity_rows": config.rows,
        "raw": config.raw,
        "condition": config.comparison.condition,
        "recipe": config.comparison.recipe,
        "layers": list(study.layers),
        "folds": [fold.name for fold in study.split.folds],
        "chosen": {name: choice.layers.tolist() for name, choice in choices.items()},
    }


# ---------------------------------------------------------------------------------------------------------------------
# Tables and figures


def _number(text: str) -> str:
    return text.removeprefix("layer_").lstrip("0") or "0"


def _tables(
    study: _Study,
    scored: Sequence[Scores],
    choices: Mapping[str, Choice],
    bests: Mapping[str, Sequence[Contrast]],
    depths: Mapping[str, Sequence[Contrast]],
    contrasts: Sequence[Contrast],
    weights: Mapping[str, Floats],
    matrices: Mapping[str, Matrix],
) -> list[Table]:
    columns = tuple(
        Column(
            title=f"{one.target.name}, {one.target.unit}{' %' if one.target.column < 0 else ''}",
            digits=one.target.digits,
        )
        for one in scored
    )
    count = len(study.layers)

    def marked(scores: Scores, layer: int) -> Cell:
        usual = "*" if choices[scores.target.name].usual == layer else ""
        worse = "†" if bests[scores.target.name][layer].decided > 0 else ""
        return scores.cell(layer_name(layer), usual + worse)

    rows: list[tuple[str | Cell, ...]] = [
        (f"layer {layer}", *(marked(scores, layer) for scores in scored)) for layer in range(count)
    ]
    rows.append(("chosen by training speakers", *(one.cell(f"chosen:{one.target.name}") for one in scored)))
    if study.config.weighted:
        rows.append(("weighted sum of all (heads)", *(one.cell("weighted") for one in scored)))
    tables = [
        Table(
            name="layers",
            title="Scores by layer",
            about="Test scores with 95 % intervals over speakers. * chosen most often by training speakers; † significantly worse"
            " than the choice.",
            columns=(Column(title="layer"), *columns),
            rows=tuple(rows),
        )
    ]

    def cut(scores: Scores, depth: int) -> Cell:
        tested = depths[scores.target.name]
        worse = "†" if depth < len(tested) and tested[depth].decided < 0 else ""
        return scores.cell(f"depth {depth}", worse)

    curve = study.config.curve == "weighted"
    heads_too = tuple(replace(column, title=f"{column.title}, weighted (heads)") for column in columns) if curve else ()
    tables.append(
        Table(
            name="depth",
            title="Scores of the encoder cut after a layer",
            about="The best of the layers up to this one, chosen by training speakers. † significantly worse than the whole"
            " encoder.",
            columns=(Column(title="cut after"), *columns, *heads_too),
            rows=tuple(
                (
                    f"layer {depth}",
                    *(cut(scores, depth) for scores in scored),
                    *(scores.cell(f"depth {depth} weighted") for scores in scored if curve),
                )
                for depth in range(count)
            ),
        )
    )
    tables.append(
        Table(
            name="differences",
            title="Differences between targets and between halves",
            about="First minus second with 95 % interval; p paired over speakers, corrected (Holm) within the question.",
            columns=(
                Column(title="what"),
                Column(title="difference", digits=scored[0].target.digits),
                Column(title="p", digits=3),
            ),
            rows=tuple(
                (one.about, one.target.cell(one.difference.value, one.difference.interval), Cell(value=one.p))
                for one in contrasts
            ),
        )
    )
    if weights:
        tables.append(
            Table(
                name="weights",
                title="Weights of the layers in the weighted sum, per cent",
                about="Softmax weights, mean over folds and seeds.",
                columns=(Column(title="layer"), *(Column(title=name) for name in weights)),
                rows=tuple(
                    (f"layer {layer}", *(Cell(value=100 * float(one[layer])) for one in weights.values()))
                    for layer in range(count)
                ),
            )
        )
    for name, matrix in matrices.items():
        tables += _similarity_tables(study, name, matrix)
    return tables


def _similarity_tables(study: _Study, name: str, matrix: Matrix) -> list[Table]:
    other = "descriptors" if name == "descriptors" else study.config.against or "its own layers"
    found = []
    for measure, numbers, about in (
        ("cka", matrix.cka, "Debiased linear CKA; unrelated representations get 0 on average."),
        ("pwcca", matrix.pwcca, ""),
    ):
        floor = (
            f"PWCCA, weighted by {'the descriptors' if name == 'descriptors' else study.config.model}; permuted utterances get"
            f" {np.nanmin(matrix.unrelated):.2f} to {np.nanmax(matrix.unrelated):.2f}."
            if not np.isnan(matrix.unrelated).all()
            else "PWCCA; nothing could be compared."
        )
        found.append(
            Table(
                name=f"{name}-{measure}",
                title=f"{measure.upper()} of the layers of {study.config.model} to {other}",
                about=about or floor,
                columns=(
                    Column(title="layer"),
                    *(Column(title=_column_title(one), digits=2) for one in matrix.columns),
                ),
                rows=tuple(
                    (f"layer {_number(row)}", *(Cell(value=float(one)) for one in numbers[at]))
                    for at, row in enumerate(matrix.rows)
                ),
            )
        )
    return found


def _column_title(name: str) -> str:
    return f"layer {_number(name)}" if name.startswith("layer_") else name


def _figures(
    study: _Study, scored: Sequence[Scores], weights: Mapping[str, Floats], matrices: Mapping[str, Matrix]
) -> list[Figure]:
    count = len(study.layers)
    ticks = tuple(map(str, range(count)))
    positions = tuple(map(float, range(count)))
    unit = "UAR, per cent" if scored[0].target.column < 0 else "CCC"

    def line(scores: Scores, prefix: str, end: str = "", name: str = "") -> Series:
        cells = [scores.cell(f"{prefix} {position}{end}") for position in range(count)]
        return Series(
            name=name or scores.target.name,
            x=positions,
            y=tuple(cell.value for cell in cells),
            low=tuple(cell.low for cell in cells),
            high=tuple(cell.high for cell in cells),
        )

    figures = [
        Figure(
            name="layers",
            title="Scores by layer",
            about="A probe per layer, with 95 % intervals over speakers.",
            kind="lines",
            x_label="layer",
            y_label=unit,
            series=tuple(line(one, "layer") for one in scored),
            ticks=ticks,
        ),
        Figure(
            name="layer-map",
            title="Scores by layer, as a map",
            about="The same numbers as the lines.",
            kind="heatmap",
            x_label="layer",
            y_label=unit,
            series=tuple(replace(line(one, "layer"), low=(), high=()) for one in scored),
            ticks=ticks,
        ),
        Figure(
            name="depth",
            title="Scores of the encoder cut after a layer",
            about="The best of the layers up to this one, chosen by training speakers.",
            kind="lines",
            x_label="last layer that is kept",
            y_label=unit,
            series=(
                *(line(one, "depth") for one in scored),
                *(
                    line(one, "depth", " weighted", f"{one.target.name}, weighted (heads)")
                    for one in scored
                    if study.config.curve == "weighted"
                ),
            ),
            ticks=ticks,
        ),
    ]
    if weights:
        figures.append(
            Figure(
                name="weights",
                title="Weights of the layers in the weighted sum",
                about="Softmax weights, mean over folds and seeds.",
                kind="bars",
                x_label="layer",
                y_label="weight, per cent",
                series=tuple(
                    Series(name=name, x=positions, y=tuple((100 * one).tolist())) for name, one in weights.items()
                ),
                ticks=ticks,
            )
        )
    for name, matrix in matrices.items():
        groups = name == "descriptors"
        other = "descriptors" if groups else study.config.against or "each other"
        for measure, numbers in (("cka", matrix.cka), ("pwcca", matrix.pwcca)):
            # Layers run along x: groups, or the other encoder's layers, are the rows of the map.
            rows, columns, values = (
                (matrix.columns, matrix.rows, numbers.T) if groups else (matrix.rows, matrix.columns, numbers)
            )
            label = "debiased linear CKA" if measure == "cka" else "PWCCA"
            figures.append(
                Figure(
                    name=f"{name}-{measure}",
                    title=f"{'CKA' if measure == 'cka' else 'PWCCA'} of the layers of {study.config.model} to {other}",
                    about=f"{label[0].upper()}{label[1:]} over {matrix.utterances} utterances.",
                    kind="heatmap",
                    x_label="layer" if groups or not study.config.against else f"layer of {study.config.against}",
                    y_label=label,
                    series=tuple(
                        Series(
                            name=_column_title(row),
                            x=tuple(map(float, range(len(columns)))),
                            y=tuple(map(float, values[at])),
                        )
                        for at, row in enumerate(rows)
                    ),
                    ticks=tuple(_number(one) for one in columns),
                )
            )
    return figures
