"""The study of distillation (Mitra et al. 2023, arXiv 2303.03177): does a teacher who saw clean speech and its words make a
student who only hears noisy speech more robust?

* The **teacher** is a fusion head on the acoustic and the lexical embeddings of clean recordings. It is tested under every
  condition, with its words as they were.
* The **student** is a head on the acoustic embeddings alone, trained on the same utterances under several conditions
  (``training``): ``multi`` (clean and all others, one student), ``noisy`` (all but clean) or ``matched`` (one student per
  condition). Its loss has two terms of the teacher in it (:mod:`pipelines.training.distillation`).
* The **baseline** is the student without a teacher: the same head, data, batches and seeds with alpha and beta 0.

Every teacher has one fold and one seed and teaches the student of that fold and seed; it has not seen the fold's test speakers, and
what it says is used on training rows alone. Where several values of alpha or beta are given, every fold and seed takes those whose
student does best on its validation rows, after a training on the training rows alone, with a teacher of these; never on test rows.

With ``efficient`` a second table sets small systems beside the large encoder (Oliveira et al. 2023, arXiv 2305.19184):
:mod:`pipelines.studies.efficiency`. What of all this is the papers' and what is ours: ``docs/distill.md``.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

import pipelines
from pipelines.corpora.cards import card_names, read_card
from pipelines.corpora.manifest import Manifest
from pipelines.corpora.protocols import Fold, Split
from pipelines.errors import ConfigError, ProtocolError, unknown_name
from pipelines.evaluation.results import HeadRecord, RunFolder
from pipelines.files import write_atomically
from pipelines.fusion.catalogue import SINGLE, fusion_code, fusion_names, fusion_options
from pipelines.locations import Location
from pipelines.store.transcripts import text_condition
from pipelines.studies.distill_findings import Findings, outcome_of, score_of_head
from pipelines.studies.efficiency import (
    EfficiencyConfig,
    Efficient,
    efficient_stores,
    measure_costs,
    small_jobs,
    train_small,
)
from pipelines.studies.frame_runs import run_in_processes
from pipelines.studies.outcome import Outcome
from pipelines.studies.pairs import ComparisonConfig, locked, subject_json, train_config, write_predictions
from pipelines.training.conditions import (
    StoredRows,
    StoreName,
    block_rows,
    check_stores,
    load_conditions,
    place_of,
    write_blocks,
)
from pipelines.training.data import Dataset, Source, canonical_dimensions, default_classes, default_dimensions
from pipelines.training.distillation import DistillationConfig, Lessons, check_tasks, give_lessons, train_students
from pipelines.training.folds import make_folds
from pipelines.training.grid import STACK, STACK_ON_GPU, Cell, CellResult, Job, choose_device, code_digest
from pipelines.training.trainer import HeadResult, HeadTask, TrainConfig, steps_per_epoch, train_stack

__all__ = ["TRAININGS", "DistillConfig", "run_distill"]

TRAININGS = ("multi", "noisy", "matched")
"""What students are trained on."""

TEACHER, BASELINE, STUDENT = "teacher", "baseline", "student"

Progress = Callable[[int, int, str], None]
"""Called with (heads done, heads in all, what was worked on last)."""


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """Settings of the study.

    Attributes:
        acoustic: encoder of the teacher's acoustic embeddings.
        lexical: encoder of the words.
        conditions: under which students work, besides that of the teacher (``comparison.condition``, mostly ``clean``).
        student: encoder of the students; the teacher's unless given.
        student_layers: K: students hear layer K of their encoder, which is what the encoder cut off behind layer K gives; 0 for
            the usual representation.
        transcripts: ``manual``, or ``asr:MODEL`` for what a recogniser heard under the teacher's condition.
        training: what students are trained on: ``multi``, ``noisy`` or ``matched``.
        fusion: of the teacher.
        options: fusion (also ``single``, the students') to its options.
        embedding_dim: width of the dense layer before the output layers of teacher and students; 0 for none.
        alphas: weights of the embedding match; of several, each fold and seed chooses.
        betas: weights of the output match, likewise.
        embedding_match: ``mse`` or ``cosine``.
        output_match: ``kl`` of emotions, ``ccc`` or ``mse`` of dimensions; empty for the first of the target.
        temperature: of ``kl``.
        efficient: the small systems that are set beside the teacher's encoder; None for none.
        comparison: everything that a comparison has, too: target, protocol, seeds, pooling, hyper-parameters.
    """

    acoustic: str
    lexical: str
    conditions: tuple[str, ...]
    student: str = ""
    student_layers: int = 0
    transcripts: str = "manual"
    training: str = "multi"
    fusion: str = "concat"
    options: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    embedding_dim: int = 128
    alphas: tuple[float, ...] = (1.0,)
    betas: tuple[float, ...] = (1.0,)
    embedding_match: str = "mse"
    output_match: str = ""
    temperature: float = 2.0
    efficient: EfficiencyConfig | None = None
    comparison: ComparisonConfig = field(default_factory=ComparisonConfig)

    def __post_init__(self) -> None:
        if self.fusion not in fusion_names():
            raise unknown_name("fusion", self.fusion, fusion_names())
        if self.training not in TRAININGS:
            raise unknown_name("--training", self.training, TRAININGS)
        base = self.comparison.condition
        if not self.conditions or len({base, *self.conditions}) <= len(self.conditions):
            listed = ", ".join(self.conditions) or "none"
            raise ConfigError(
                f"--conditions needs at least one condition, each once and none the teacher's ({base}); given: {listed}. Name"
                " conditions that were extracted, as in --conditions white@10dB,white@0dB."
            )
        if self.student_layers < 0:
            raise ConfigError(f"--student-layers must be a layer from 1 on, not {self.student_layers}.")
        for name in ("alphas", "betas"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise ConfigError(f"--{name[:-1]} needs at least one value, each once; given: {_listed(values)}.")
        if not self.distillations():
            raise ConfigError(
                "With --alpha 0 and --beta 0 the teacher says nothing: that is the baseline. Raise one of them."
            )
        for one in self.distillations():
            one.match_of(self.comparison.target)
        for name in (self.fusion, SINGLE):
            fusion_options(name, self.options_of(name))

    def distillations(self) -> tuple[DistillationConfig, ...]:
        """The settings that students may choose from, the mildest first."""
        return tuple(
            DistillationConfig(
                alpha=alpha,
                beta=beta,
                embedding_match=self.embedding_match,
                output_match=self.output_match,
                temperature=self.temperature,
            )
            for alpha, beta in sorted(itertools.product(self.alphas, self.betas))
            if alpha or beta
        )

    def options_of(self, fusion: str) -> dict[str, object]:
        """Options of a fusion, with the dense layer unless one was given."""
        return {"dense_dim": self.embedding_dim, **self.options.get(fusion, {})}

    @property
    def blocks(self) -> tuple[str, ...]:
        """All conditions, the teacher's first."""
        return (self.comparison.condition, *self.conditions)

    @property
    def heard(self) -> str:
        """The students' encoder."""
        return self.student or self.acoustic

    @property
    def text(self) -> str:
        """Condition of the store of the words."""
        model = self.transcripts.removeprefix("asr:")
        if self.transcripts == "manual":
            return text_condition()
        if model == self.transcripts or not model:
            raise ConfigError(
                f"--transcripts is {self.transcripts!r}; expected manual (the manifest's own) or asr:MODEL, as in asr:whisper."
            )
        return text_condition(model, self.comparison.condition)

    def stores(self) -> list[StoreName]:
        """Every store that is needed, the teacher's first."""
        base = self.blocks[0]
        found = [(self.acoustic, base), (self.lexical, self.text)]
        found += [(self.heard, condition) for condition in self.blocks]
        return list(dict.fromkeys([*found, *efficient_stores(self.efficient, condition=base, text=self.text)]))


@dataclass(frozen=True)
class System:
    """What is trained in one go.

    Attributes:
        role: teacher, baseline or student.
        trained: blocks it is trained on.
        tested: blocks it is tested on.
        job: its heads.
        inner_steps: steps per epoch of the training that alpha and beta are chosen by.
    """

    role: str
    trained: tuple[int, ...]
    tested: tuple[int, ...]
    job: Job
    inner_steps: int


@dataclass(frozen=True)
class _Work:
    """Some folds and seeds, with everything they need; cheap to send to another process.

    Attributes:
        systems: with the tasks of these folds and seeds; the teacher first.
        wanted: positions of the systems that are not there yet.
        matrices: the teacher's acoustic and lexical matrix, and the students'.
        utterances: n.
        distillations: what students may choose from.
        device: where.
    """

    systems: tuple[System, ...]
    wanted: tuple[int, ...]
    matrices: tuple[StoredRows, StoredRows, StoredRows]
    utterances: int
    distillations: tuple[DistillationConfig, ...]
    device: str


def run_distill(
    manifest: Manifest,
    *,
    config: DistillConfig,
    cache_dir: Location,
    run_dir: Path,
    workers: int = 1,
    device: str = "cpu",
    command: str = "",
    progress: Progress | None = None,
    stack: int | None = None,
) -> Outcome:
    """Train what is missing, score everything, and write the run.

    Args:
        manifest: the corpus.
        config: what and how.
        cache_dir: folder of the stores.
        run_dir: folder of the run.
        workers: processes; on a GPU it is always this one.
        device: of the heads: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        command: that makes it again, for the outcome.
        progress: called whenever a stack of heads is finished.
        stack: folds and seeds that are trained together, at most; it changes no result on a CPU.

    Raises:
        HyfuseError: stores, protocol, settings or disk do not allow it; see the named children.
    """
    device = choose_device(device)
    check_stores(manifest.corpus, config.stores(), cache_dir=cache_dir)
    dataset, sources = _load(manifest, config, cache_dir)
    card = read_card(manifest.corpus) if manifest.corpus in card_names() else None
    protocol = config.comparison.protocol or (card.default_protocol if card else "speaker-5fold")
    split = make_folds(manifest, dataset, protocol, card=card)
    train = train_config(config.comparison, split)
    _check_choice(config, split)
    systems = _systems(dataset, sources, split, config, train)
    small = _small(dataset, sources, split, config, train)
    run = RunFolder(run_dir)
    with locked(run_dir), ExitStack() as held:
        settings = _settings(dataset, sources, split, config, train)
        write_atomically(
            run_dir / "config.json", json.dumps(settings, indent=2, sort_keys=True) + "\n", option="--runs-dir"
        )
        missing = {
            place: {(t.fold, t.seed) for t in system.job.tasks}
            - {(record.row["fold"], record.row["seed"]) for record in run.load(system.job)}
            for place, system in enumerate(systems)
        }
        total = sum(len(job.tasks) for job in (*(system.job for system in systems), *small.values()))
        done = 0

        def finish(heads: int, what: str) -> None:
            nonlocal done
            done += heads
            if progress is not None:
                progress(done, total, what)

        finish(sum(len(system.job.tasks) for system in systems) - sum(map(len, missing.values())), "")
        if any(missing.values()):
            size = stack or (STACK if device == "cpu" else STACK_ON_GPU)
            matrices = _write_matrices(dataset, sources, config, run_dir, held)
            work = list(_work(systems, missing, matrices, len(dataset.utterance_ids), config, device, size))
            for _, finished in run_in_processes(_train, work, workers=1 if device.startswith("cuda") else workers):
                for place, results in finished.items():
                    job = replace(systems[place].job, tasks=tuple(one.task for one in results))
                    run.save(CellResult(job, results))
                    finish(len(results), systems[place].role)
        records = [
            one
            for system in systems
            for record in run.load(system.job)
            for one in _by_condition(record, system, dataset, config)
        ]
        efficient = _efficient(
            small, systems, records, run, config, finish, workers=workers, device=device, stack=stack
        )
        of_small = [record for one in efficient for record in one.records if one.title in small]
        run.write_results([*records, *of_small])
        write_predictions(run, dataset, [*records, *of_small])
        findings = Findings(
            manifest=manifest,
            dataset=dataset,
            split=split,
            records=tuple(records),
            blocks=config.blocks,
            training=config.training,
            train=train,
            settings=settings,
            efficient=efficient,
        )
        outcome = outcome_of(findings, command=command)
        outcome.write(run_dir)
    return outcome


def _load(
    manifest: Manifest, config: DistillConfig, cache_dir: Location
) -> tuple[Dataset, dict[tuple[str, str], Source]]:
    """The utterances that all stores hold, and (role, condition) to source: acoustic, lexical, student, small, small text."""
    shared = config.comparison
    card = read_card(manifest.corpus) if manifest.corpus in card_names() else None
    learned: dict[str, Sequence[str]] = {}
    if shared.target == "dimensions":
        learned["dimensions"] = canonical_dimensions(shared.dimensions) or default_dimensions(manifest)
    else:
        learned["classes"] = shared.classes or default_classes(manifest, card.classes if card else ())
    same = {
        "cache_dir": cache_dir,
        "soft": shared.labels == "soft",
        "layer": shared.layer,
        "pool": shared.pool,
        **learned,
    }
    dataset, found = load_conditions(
        manifest,
        config.stores(),
        representations=shared.representations,
        **same,  # type: ignore[arg-type]
    )
    sources = {
        ("acoustic", config.blocks[0]): found[config.acoustic, config.blocks[0]],
        ("lexical", config.text): found[config.lexical, config.text],
    }
    for (role, _), source in sources.items():
        if (source.family == "LEX") != (role == "lexical"):
            asked = "an encoder of text, such as bert" if role == "lexical" else "an encoder of speech, such as wavlm"
            option = "--text" if role == "lexical" else "--acoustic"
            raise ConfigError(f"{option} must be {asked}; {source.encoder} is of the family {source.family}.")
    if config.efficient is not None:
        sources["small", config.blocks[0]] = found[config.efficient.small, config.blocks[0]]
        sources["small text", config.text] = found[config.efficient.small_text, config.text]
    heard = {condition: found[config.heard, condition] for condition in config.blocks}
    if config.heard == config.acoustic:
        sources |= {("acoustic", condition): source for condition, source in heard.items()}
    if config.student_layers:
        cut = {config.heard: str(config.student_layers)}
        _, truncated = load_conditions(
            manifest,
            [(config.heard, condition) for condition in config.blocks],
            representations=cut,
            **same,  # type: ignore[arg-type]
        )
        heard = {condition: truncated[config.heard, condition] for condition in config.blocks}
    return dataset, sources | {("student", condition): source for condition, source in heard.items()}


def _check_choice(config: DistillConfig, split: Split) -> None:
    """Several weights need validation rows to choose by."""
    if len(config.distillations()) > 1 and (empty := [fold.name for fold in split.folds if not len(fold.validation)]):
        raise ProtocolError(
            f"Fold {empty[0]!r} of {split.protocol} has no validation rows to choose among {len(config.distillations())} settings"
            " of --alpha and --beta. Give one value of each, or use a protocol with a validation part."
        )


# ---------------------------------------------------------------------------------------------------------------------
# What is trained


def _systems(
    dataset: Dataset, sources: Mapping[tuple[str, str], Source], split: Split, config: DistillConfig, train: TrainConfig
) -> list[System]:
    """The teacher, then each baseline with its student."""
    blocks = tuple(range(len(config.blocks)))
    hears_all = all(("acoustic", condition) in sources for condition in config.blocks)
    systems = [_system(TEACHER, (0,), blocks if hears_all else (0,), dataset, sources, split, config, train, {})]
    parts: dict[str, list[tuple[tuple[int, ...], tuple[int, ...]]]] = {
        "multi": [(blocks, blocks)],
        "noisy": [(blocks[1:], blocks)],
        "matched": [((block,), (block,)) for block in blocks],
    }
    for trained, tested in parts[config.training]:
        for role in (BASELINE, STUDENT):
            taught = {} if role == BASELINE else {"teacher": systems[0].job.key, "choices": _described(config)}
            systems.append(_system(role, trained, tested, dataset, sources, split, config, train, taught))
    check_tasks(
        systems[0].job.tasks,
        systems[-1].job.tasks,
        utterances=len(dataset.utterance_ids),
    )
    return systems


def _described(config: DistillConfig) -> list[dict[str, Any]]:
    target = config.comparison.target
    return [{**asdict(one), "output_match": one.match_of(target)} for one in config.distillations()]


def _system(
    role: str,
    trained: tuple[int, ...],
    tested: tuple[int, ...],
    dataset: Dataset,
    sources: Mapping[tuple[str, str], Source],
    split: Split,
    config: DistillConfig,
    train: TrainConfig,
    more: Mapping[str, Any],
) -> System:
    n, base = len(dataset.utterance_ids), config.blocks[0]
    fusion = config.fusion if role == TEACHER else SINGLE
    options = config.options_of(fusion)
    used = sorted({*trained, *tested})
    side = "acoustic" if role == TEACHER else "student"
    left = {config.blocks[block]: sources[side, config.blocks[block]] for block in used}
    right = sources["lexical", config.text] if role == TEACHER else None
    tasks = tuple(
        _task(fold, seed, trained, tested, n)
        for fold, seed in itertools.product(split.folds, range(config.comparison.seeds))
    )
    inner = replace(train, selection="last", patience=0) if train.selection == "fixed" else train
    first = left.get(base, next(iter(left.values())))
    arrays = {"labels": dataset.labels, "values": dataset.values, "votes": dataset.votes}
    description = {
        "study": "distill",
        "role": role,
        "corpus": dataset.corpus,
        "manifest_digest": dataset.manifest_digest,
        "protocol": split.protocol,
        "speaker_independent": split.speaker_independent,
        "split_digest": split.digest,
        "target": dataset.target,
        "classes": list(dataset.classes),
        "dimensions": list(dataset.dimensions),
        "targets_digest": _digest(arrays),
        "utterances_digest": hashlib.sha256("\n".join(dataset.utterance_ids).encode()).hexdigest(),
        "left": _of_source(first),
        "right": None if right is None else _of_source(right),
        "conditions": {name: _of_source(source) for name, source in left.items()},
        "trained_on": [config.blocks[block] for block in trained],
        "tested_on": [config.blocks[block] for block in tested],
        "fusion": fusion,
        "options": dict(fusion_options(fusion, options)),
        "hyper_parameters": asdict(train),
        "code_version": pipelines.__version__,
        "code_digest": code_digest(),
        **fusion_code(fusion),
        **more,
    }
    copies = len(config.blocks)
    job = Job(
        cell=Cell(first.encoder, right.encoder if right else "", fusion, options),
        left=first,
        right=right,
        utterance_ids=(),
        labels=np.tile(dataset.labels, copies),
        classes=dataset.classes,
        tasks=tasks,
        steps_per_epoch=steps_per_epoch(tasks, train),
        config=train,
        description=description,
        dimensions=dataset.dimensions,
        values=np.tile(dataset.values, (copies, 1)),
        votes=None if dataset.votes is None else np.tile(dataset.votes, (copies, 1)),
    )
    return System(role, trained, tested, job, steps_per_epoch(tasks, inner))


def _digest(arrays: Mapping[str, Any]) -> str:
    digest = hashlib.sha256()
    for name, values in arrays.items():
        digest.update(name.encode())
        if values is not None:
            digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()


def _of_source(source: Source) -> dict[str, Any]:
    """Without the path: numbers do not depend on where they lie."""
    return {name: value for name, value in asdict(source).items() if name != "path"}


def _task(fold: Fold, seed: int, trained: Sequence[int], tested: Sequence[int], n: int) -> HeadTask:
    return HeadTask(
        fold=fold.name,
        seed=seed,
        train=block_rows(fold.train, trained, n),
        validation=block_rows(fold.validation, trained, n),
        test=block_rows(fold.test, tested, n),
    )


def _small(
    dataset: Dataset, sources: Mapping[tuple[str, str], Source], split: Split, config: DistillConfig, train: TrainConfig
) -> dict[str, Job]:
    """Title to what is trained for the table of small systems; nothing unless it was asked for."""
    if config.efficient is None:
        return {}
    base, efficient = config.blocks[0], config.efficient
    large, small, text = sources["acoustic", base], sources["small", base], sources["small text", config.text]
    chosen: dict[str, tuple[Source, Source | None]] = {
        f"{large.encoder} alone": (large, None),
        f"{efficient.small} alone": (small, None),
        f"{efficient.small} + {efficient.small_text}": (small, text),
    }
    if config.student_layers:
        cut = sources["student", base]
        title = f"{cut.encoder} cut off behind layer {config.student_layers}"
        chosen |= {title: (cut, None), f"{title} + {efficient.small_text}": (cut, text)}
    return small_jobs(
        dataset,
        split,
        chosen,
        fusion=config.fusion,
        options={name: config.options_of(name) for name in (config.fusion, SINGLE)},
        seeds=config.comparison.seeds,
        config=train,
    )


def _efficient(
    small: Mapping[str, Job],
    systems: Sequence[System],
    records: Sequence[HeadRecord],
    run: RunFolder,
    config: DistillConfig,
    finish: Callable[[int, str], None],
    *,
    workers: int,
    device: str,
    stack: int | None,
) -> tuple[Efficient, ...]:
    """The lines of the table of small systems, the large encoder first; none unless it was asked for."""
    if config.efficient is None:
        return ()
    heads = train_small(small, run, workers=workers, device=device, progress=finish, stack=stack)
    jobs = dict(small)
    base = config.blocks[0]
    for role, title in ((TEACHER, f"{config.acoustic} + {config.lexical} (the teacher)"), (STUDENT, "the student")):
        (first, *_) = [system for system in systems if system.role == role and 0 in system.tested]
        jobs[title] = first.job
        heads[title] = tuple(one for one in records if (one.row["role"], one.row["condition"]) == (role, base))
    parts = {
        title: [(one.encoder, one.representation) for one in (job.left, job.right) if one is not None]
        for title, job in jobs.items()
    }
    wanted = list(dict.fromkeys(part for own in parts.values() for part in own))
    costs = measure_costs(run.path, wanted, audio_s=config.efficient.audio_s)
    return tuple(
        Efficient(title, job, tuple(costs[part] for part in parts[title]), heads[title]) for title, job in jobs.items()
    )


def _write_matrices(
    dataset: Dataset,
    sources: Mapping[tuple[str, str], Source],
    config: DistillConfig,
    run_dir: Path,
    held: ExitStack,
) -> tuple[StoredRows, StoredRows, StoredRows]:
    """The teacher's acoustic and lexical matrix, and the students', in files that go with ``held``."""

    def write(chosen: Sequence[Source], name: str) -> StoredRows:
        stored = write_blocks(chosen, dataset.utterance_ids, folder=run_dir, name=name)
        held.callback(stored.remove)
        return stored

    taught = [sources["acoustic", condition] for condition in config.blocks if ("acoustic", condition) in sources]
    heard = [sources["student", condition] for condition in config.blocks]
    acoustic = write(taught, "acoustic")
    lexical = write([sources["lexical", config.text]] * len(taught), "lexical")
    return acoustic, lexical, acoustic if heard == taught else write(heard, "student")


def _work(
    systems: Sequence[System],
    missing: Mapping[int, set[tuple[str, int]]],
    matrices: tuple[StoredRows, StoredRows, StoredRows],
    utterances: int,
    config: DistillConfig,
    device: str,
    size: int,
) -> Iterator[_Work]:
    """Folds and seeds, ``size`` at a time, that lack the same systems."""
    tasks = [(task.fold, task.seed) for task in systems[0].job.tasks]
    groups: dict[tuple[int, ...], list[int]] = {}
    for position, name in enumerate(tasks):
        wanted = tuple(place for place in missing if name in missing[place])
        if wanted:
            groups.setdefault(wanted, []).append(position)
    for wanted, positions in groups.items():
        for start in range(0, len(positions), size):
            chosen = positions[start : start + size]
            yield _Work(
                systems=tuple(
                    replace(one, job=replace(one.job, tasks=tuple(one.job.tasks[position] for position in chosen)))
                    for one in systems
                ),
                wanted=wanted,
                matrices=matrices,
                utterances=utterances,
                distillations=config.distillations(),
                device=device,
            )


# ---------------------------------------------------------------------------------------------------------------------
# Training


def _train(work: _Work) -> dict[int, list[HeadResult]]:
    """Position of a system to its heads; run in a process of its own."""
    teacher = work.systems[0]
    teaches = any(work.systems[place].role == STUDENT for place in work.wanted)
    results: dict[int, list[HeadResult]] = {}
    lessons = None
    if 0 in work.wanted or teaches:
        teachers = _teachers(work, teacher.job.config, teacher.job.steps_per_epoch)
        if 0 in work.wanted:
            results[0] = teachers
        if teaches:
            lessons = _lessons(work, teachers, teacher.job.config)
    inner: tuple[TrainConfig, Lessons] | None = None
    for place in work.wanted:
        system = work.systems[place]
        if system.role == BASELINE:
            none = DistillationConfig(alpha=0.0, beta=0.0)
            results[place] = _students(work, system, none, None, range(len(system.job.tasks)))
        elif system.role == STUDENT and lessons is not None:
            if len(work.distillations) > 1 and inner is None:
                inner = _inner(work, lessons)
            results[place] = _taught(work, system, lessons, inner)
    return {place: [replace(one, parameters={}) for one in heads] for place, heads in results.items()}


def _targets(job: Job, rows: int) -> dict[str, Any]:
    """What the first rows have to learn, for ``train_stack``."""
    import torch

    if job.dimensions:
        return {"values": torch.from_numpy(job.values[:rows])}
    votes = None if job.votes is None else torch.from_numpy(job.votes[:rows])
    return {"labels": torch.from_numpy(job.labels[:rows]), "num_classes": len(job.classes), "votes": votes}


def _teachers(work: _Work, config: TrainConfig, steps: int) -> list[HeadResult]:
    job = work.systems[0].job
    left, right, _ = (matrix.tensor() for matrix in work.matrices)
    return train_stack(
        fusion=job.cell.fusion,
        options=dict(job.cell.options),
        left=left,
        right=right,
        tasks=job.tasks,
        steps_per_epoch=steps,
        config=config,
        device=work.device,
        **_targets(job, len(left)),
    )


def _lessons(work: _Work, teachers: Sequence[HeadResult], config: TrainConfig) -> Lessons:
    cell = work.systems[0].job.cell
    left, right, _ = (matrix.tensor() for matrix in work.matrices)
    return give_lessons(
        teachers,
        fusion=cell.fusion,
        options=dict(cell.options),
        left=left,
        right=right,
        utterances=work.utterances,
        config=config,
    )


def _inner(work: _Work, lessons: Lessons) -> tuple[TrainConfig, Lessons]:
    """How alpha and beta are chosen: by heads, and teachers, that are trained on the training rows alone."""
    teacher = work.systems[0]
    config = teacher.job.config
    if config.selection != "fixed":
        return config, lessons
    config = replace(config, selection="last", patience=0)
    return config, _lessons(work, _teachers(work, config, teacher.inner_steps), config)


def _students(
    work: _Work,
    system: System,
    distillation: DistillationConfig,
    lessons: Lessons | None,
    chosen: Sequence[int],
    *,
    config: TrainConfig | None = None,
) -> list[HeadResult]:
    """Some of a system's heads, under one setting."""
    job, at = system.job, list(chosen)
    own = None if lessons is None else Lessons(lessons.outputs[at], lessons.embeddings[at])
    heard = work.matrices[2].tensor()
    results = train_students(
        distillation=distillation,
        lessons=own,
        fusion=job.cell.fusion,
        options=dict(job.cell.options),
        left=heard,
        tasks=[job.tasks[position] for position in at],
        steps_per_epoch=job.steps_per_epoch if config is None else system.inner_steps,
        config=config or job.config,
        device=work.device,
        **_targets(job, len(heard)),
    )
    weights = {"alpha": distillation.alpha, "beta": distillation.beta}
    return [replace(one, diagnostics={**one.diagnostics, **weights}) for one in results]


def _taught(
    work: _Work, system: System, lessons: Lessons, inner: tuple[TrainConfig, Lessons] | None
) -> list[HeadResult]:
    """The heads of a student, each under the setting that did best on its own validation rows."""
    count = len(system.job.tasks)
    if inner is None:
        return _students(work, system, work.distillations[0], lessons, range(count))
    config, of_training = inner
    tried = [_students(work, system, one, of_training, range(count), config=config) for one in work.distillations]
    choice = [int(np.argmax([_validated(heads[head]) for heads in tried])) for head in range(count)]
    if config == system.job.config:  # it validated while it trained: that training is the one
        return [tried[choice[head]][head] for head in range(count)]
    found: dict[int, HeadResult] = {}
    for setting in sorted(set(choice)):
        chosen = [head for head in range(count) if choice[head] == setting]
        heads = _students(work, system, work.distillations[setting], lessons, chosen)
        found |= dict(zip(chosen, heads, strict=True))
    return [found[head] for head in range(count)]


def _validated(head: HeadResult) -> float:
    """UAR or CCC on the validation rows, of the epoch that is kept."""
    (curve,) = [values for name, values in head.curves.items() if name in ("validation_uar", "validation_ccc")]
    return float(np.nan_to_num(curve[head.best_epoch - 1], nan=-1.0))


# ---------------------------------------------------------------------------------------------------------------------
# What is written


def _by_condition(record: HeadRecord, system: System, dataset: Dataset, config: DistillConfig) -> Iterator[HeadRecord]:
    """A head's record, one per condition, with rows that are positions of the data set."""
    block, utterance = place_of(record.test, len(dataset.utterance_ids))
    for tested in system.tested:
        own = block == tested
        row = {
            **record.row,
            "role": system.role,
            "condition": config.blocks[tested],
            "cell": f"{system.role}, {config.blocks[tested]}",
            "test_utterances": int(own.sum()),
            "metrics": score_of_head(dataset, utterance[own], record.outputs[own]),
        }
        yield HeadRecord(
            row, utterance[own], record.outputs[own], record.left_shuffled[own], record.right_shuffled[own]
        )


def _settings(
    dataset: Dataset,
    sources: Mapping[tuple[str, str], Source],
    split: Split,
    config: DistillConfig,
    train: TrainConfig,
) -> dict[str, Any]:
    """What ``config.json`` says."""
    shared = config.comparison
    return {
        "study": "distill",
        **subject_json(dataset, split),
        "code_digest": code_digest(),
        "labels": shared.labels,
        "sources": {
            f"{role}, {condition}": {**asdict(source), "path": str(source.path)}
            for (role, condition), source in sources.items()
        },
        "acoustic": config.acoustic,
        "lexical": config.lexical,
        "transcripts": config.transcripts,
        "student": config.heard,
        "student_layers": config.student_layers,
        "conditions": list(config.blocks),
        "training": config.training,
        "fusion": config.fusion,
        "teacher_options": dict(fusion_options(config.fusion, config.options_of(config.fusion))),
        "student_options": dict(fusion_options(SINGLE, config.options_of(SINGLE))),
        "distillation": _described(config),
        "efficient": None if config.efficient is None else asdict(config.efficient),
        "seeds": list(range(shared.seeds)),
        "pool": shared.pool,
        "recipe": shared.recipe,
        "hyper_parameters": asdict(train),
    }


def _listed(values: Sequence[object]) -> str:
    return ", ".join(map(str, values)) or "none"
