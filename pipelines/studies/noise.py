"""The study of Mitra et al. 2023 (arXiv 2303.03177) on noise: what it costs, whom it hurts, and which training helps.

Stores of the same utterances under several conditions (``clean`` and at least one other) are read side by side
(:mod:`pipelines.training.conditions`). Every encoder alone and every fusion is trained in up to three ways, on the same folds with
the same seeds, and tested under every condition on the test part of its fold:

=========== ==========================================================================================================
``clean``   trained on clean recordings, tested under every condition
``matched`` for each condition a head of its own, trained and tested under it: the heads of ``hyfuse compare --condition``
``multi``   trained on the copies of the training speakers' utterances under all conditions together, tested under each
=========== ==========================================================================================================

A ``multi`` head takes as many steps as a ``clean`` one: it sees every utterance as often, each time under some condition; what is
compared is what was heard, not how long. Trained once, a head is tested on all conditions; inputs are shuffled among the test rows
of one condition.

Text is that of the manifest (``manual``; noise does not touch it, so a head on text alone is trained and tested once, and stands
for all conditions and ways of training) or what a recogniser heard under each condition (``asr:MODEL``).

Of the paper only the findings are known here; the method is ours (``docs/noise.md``). Everything is read from stores, finished
heads are kept, and the same call again trains only what is not there yet. Memory: as of a comparison; the file that a ``clean`` or
``multi`` head is trained from is as many times larger as there are conditions, and mapped.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.corpora.cards import Card, card_names, read_card
from pipelines.corpora.manifest import Manifest
from pipelines.corpora.protocols import Fold, Split
from pipelines.errors import ConfigError, ManifestError, ProvenanceError, StoreError, unknown_name
from pipelines.evaluation.measures import measure_of
from pipelines.evaluation.results import CellScore, HeadRecord, RunFolder
from pipelines.evaluation.statistics import score, speaker_confusions, speaker_sums
from pipelines.evaluation.word_errors import WordErrors, word_errors
from pipelines.files import write_atomically
from pipelines.fusion.catalogue import SINGLE, fusion_options
from pipelines.locations import Location
from pipelines.store.embeddings import open_store, store_path
from pipelines.store.provenance import Provenance
from pipelines.store.transcripts import find_transcripts, read_transcripts, text_condition, transcribe_command
from pipelines.studies.noise_findings import CLEAN, MATCHED, MULTI, REGIMES, Findings, arranged, outcome_of
from pipelines.studies.outcome import Outcome
from pipelines.studies.pairs import (
    ComparisonConfig,
    config_json,
    locked,
    notes,
    score_heads,
    train_config,
    warnings_of,
    write_predictions,
)
from pipelines.training.conditions import StoreName, block_rows, load_conditions, place_of
from pipelines.training.data import Dataset, Source, canonical_dimensions, default_classes, default_dimensions
from pipelines.training.folds import make_folds
from pipelines.training.grid import LINEAR, Cell, Job, choose_device, make_job, run_jobs, told_apart
from pipelines.training.trainer import TrainConfig

__all__ = ["MANUAL", "NoiseConfig", "missing_stores", "noise_cells", "study_noise"]

MANUAL = "manual"
_ASR = "asr:"
_LEXICAL = "LEX"

Progress = Callable[[int, int, str], None]
"""Called with (heads done, heads in all, what was worked on last)."""


@dataclass(frozen=True, kw_only=True)
class NoiseConfig:
    """Settings of the study.

    Attributes:
        conditions: canonical names of the audio conditions that heads are tested under; ``clean`` always is.
        training: of :data:`~pipelines.studies.noise_findings.REGIMES`.
        multi_conditions: what ``multi`` heads are trained on beside clean recordings; all of ``conditions`` unless given.
        transcripts: where text comes from: ``manual`` or ``asr:MODEL``.
        comparison: target, protocol, pooling, seeds and training of heads; its condition must be ``clean``.
    """

    conditions: tuple[str, ...]
    training: tuple[str, ...] = REGIMES
    multi_conditions: tuple[str, ...] = ()
    transcripts: str = MANUAL
    comparison: ComparisonConfig = field(default_factory=ComparisonConfig)

    def __post_init__(self) -> None:
        if len(self.tested) < 2:
            given = ", ".join(dict.fromkeys(self.conditions)) or "none"
            raise ConfigError(
                "The study needs at least one condition beside clean to compare with it; --conditions:"
                f" {given}. Name some, for instance --conditions 'noise:esc10@10dB noise:esc10@0dB'."
            )
        for regime in self.training:
            if regime not in REGIMES:
                raise unknown_name("way of --training", regime, REGIMES)
        if not self.training or len(set(self.training)) < len(self.training):
            raise ConfigError(f"--training needs some of {', '.join(REGIMES)}, each once.")
        if self.multi_conditions and MULTI not in self.training:
            raise ConfigError(f"--multi-conditions is of --training {MULTI}, which was not asked for. Leave it out.")
        if self.transcripts != MANUAL and not self.transcripts.removeprefix(_ASR):
            raise ConfigError("--transcripts asr: names no recogniser; expected for instance asr:whisper.")
        if self.transcripts != MANUAL and not self.transcripts.startswith(_ASR):
            raise unknown_name("--transcripts", self.transcripts, (MANUAL, "asr:whisper", "asr:wav2vec2-ctc"))
        if self.comparison.condition != CLEAN:
            raise ConfigError(
                f"--condition {self.comparison.condition} means nothing to `hyfuse study noise`, which has --conditions. Leave it"
                " out."
            )

    @property
    def tested(self) -> tuple[str, ...]:
        """Every condition that heads are tested under, ``clean`` first."""
        return arranged((CLEAN, *self.conditions))

    @property
    def learned(self) -> tuple[str, ...]:
        """Every condition that ``multi`` heads are trained on, ``clean`` first."""
        return arranged((CLEAN, *(self.multi_conditions or self.conditions)))

    @property
    def blocks(self) -> tuple[str, ...]:
        """Every condition that something is read of."""
        return arranged((*self.tested, *(self.learned if MULTI in self.training else ())))

    @property
    def recogniser(self) -> str | None:
        """Whose transcripts are read; None for those of the manifest."""
        return None if self.transcripts == MANUAL else self.transcripts.removeprefix(_ASR)

    def store_of(self, encoder: str, family: str, condition: str) -> StoreName:
        """The store of an encoder under an audio condition."""
        if family != _LEXICAL:
            return encoder, condition
        return encoder, CLEAN if self.recogniser is None else text_condition(self.recogniser, condition)


def noise_cells(
    families: Mapping[str, str], fusions: Sequence[str], *, options: Mapping[str, Mapping[str, object]] | None = None
) -> list[Cell]:
    """Every encoder alone, then RLR × CBR and acoustic × LEX under every fusion.

    Args:
        families: encoder name to family, in the order of the table.
        fusions: names.
        options: fusion (also ``single``) to its options, where they differ from its defaults.

    Raises:
        UnknownNameError: no such fusion or option.
    """
    given = dict(options or {})
    for name in (SINGLE, *fusions):
        fusion_options(name, given.get(name))
    spoken = [name for name, family in families.items() if family != _LEXICAL]
    pairs = [(left, right) for left in spoken for right in spoken if families[right] == "CBR" != families[left]]
    pairs += [(left, right) for left in spoken for right, family in families.items() if family == _LEXICAL]
    return told_apart(
        [
            *(Cell(name, "", SINGLE, given.get(SINGLE, {})) for name in families),
            *(Cell(left, right, fusion, given.get(fusion, {})) for left, right in pairs for fusion in fusions),
        ]
    )


def missing_stores(
    corpus: str, families: Mapping[str, str], config: NoiseConfig, *, cache_dir: Location
) -> StoreError | None:
    """What is not there yet, with one command line that makes all of it; None if nothing is missing.

    Args:
        corpus: name.
        families: encoder name to family.
        config: which conditions.
        cache_dir: folder of the stores.
    """
    wanted = {
        name: dict.fromkeys(config.store_of(name, family, condition)[1] for condition in config.blocks)
        for name, family in families.items()
    }
    there = {
        (name, condition): (store_path(cache_dir, corpus, name, condition) / "zarr.json").is_file()
        for name, conditions in wanted.items()
        for condition in conditions
    }
    missing = [store for store, found in there.items() if not found]
    if not missing:
        return None
    commands = list(_commands(corpus, families, config, missing, cache_dir))
    listed = ", ".join(f"{name} under {condition}" for name, condition in missing)
    return StoreError(
        f"{len(missing)} of the {len(there)} stores of corpus {corpus!r} that are needed are not in {cache_dir}: {listed}. Make"
        f" {'it' if len(missing) == 1 else 'all of them'} with `{' && '.join(commands)}`, or name another cache with --cache-dir."
    )


def _commands(
    corpus: str, families: Mapping[str, str], config: NoiseConfig, missing: Sequence[StoreName], cache_dir: Location
) -> Iterator[str]:
    """What makes the missing stores; models of the same weights and conditions in one command."""

    def weights(name: str) -> str:
        stores = (cache_dir / corpus / name).glob("*.zarr")
        kinds = {open_store(path, complete=False).provenance.weights_kind for path in stores}
        return " --weights random" if name.endswith("-tiny") or kinds == {"random"} else ""

    where = f" --cache-dir {cache_dir}"
    spoken = [
        name for name, family in families.items() if family != _LEXICAL and any(one == name for one, _ in missing)
    ]
    groups: dict[tuple[tuple[str, ...], str], list[str]] = {}
    for name in spoken:
        groups.setdefault((tuple(under for one, under in missing if one == name), weights(name)), []).append(name)
    for (conditions, kind), names in groups.items():
        models, under = (
            "".join(f" --model {name}" for name in names),
            "".join(f" --condition {one}" for one in conditions),
        )
        yield f"hyfuse extract --corpus {corpus}{models}{under}{kind}{where}"
    texts = [name for name, family in families.items() if family == _LEXICAL and any(one == name for one, _ in missing)]
    if not texts:
        return
    if config.recogniser is None:
        for name in texts:
            yield f"hyfuse extract --corpus {corpus} --model {name}{weights(name)}{where}"
        return
    heard = {condition for model, condition in find_transcripts(cache_dir, corpus) if model == config.recogniser}
    for condition in config.blocks:
        own = [name for name in texts if (name, text_condition(config.recogniser, condition)) in missing]
        if not own:
            continue
        under = "" if condition == CLEAN else f" --condition {condition}"
        if condition not in heard:
            command = transcribe_command(corpus, config.recogniser, condition).strip("`")
            yield f"{command}{' --weights random' if config.recogniser.endswith('-tiny') else ''}{where}"
        for name in own:
            yield (
                f"hyfuse extract --corpus {corpus} --model {name} --transcripts {config.transcripts}{under}{weights(name)}"
                f"{where}"
            )


# ---------------------------------------------------------------------------------------------------------------------
# What is trained


@dataclass(frozen=True)
class _Planned:
    """A job, and what its test rows are of.

    Attributes:
        cell: what is trained.
        regime: how; empty for text that no condition touches.
        tested: condition of every block of the test rows.
        job: the heads.
    """

    cell: Cell
    regime: str
    tested: tuple[str, ...]
    job: Job


@dataclass(frozen=True)
class _Material:
    """Utterances, folds and stores.

    Attributes:
        dataset: n utterances; the sources are those of clean recordings.
        split: its folds.
        sources: encoder and audio condition to source.
        untouched: encoders whose input no condition touches.
        config: of the study.
        train: hyper-parameters.
    """

    dataset: Dataset
    split: Split
    sources: Mapping[tuple[str, str], Source]
    untouched: frozenset[str]
    config: NoiseConfig
    train: TrainConfig

    def under(self, condition: str) -> Dataset:
        """The utterances, read under one condition."""
        names = self.dataset.sources
        return replace(self.dataset, sources={name: self.sources[name, condition] for name in names})

    def together(self) -> Dataset:
        """The utterances under every condition, block below block."""
        blocks, own = self.config.blocks, self.dataset
        count = len(blocks)
        sources = {}
        for name in own.sources:
            parts = tuple(self.sources[name, condition] for condition in blocks)
            digest = hashlib.sha256("\n".join(part.features_digest for part in parts).encode()).hexdigest()
            sources[name] = replace(parts[0], features_digest=digest, blocks=parts)
        return replace(
            own,
            utterance_ids=own.utterance_ids * count,
            speakers=own.speakers * count,
            sessions=own.sessions * count,
            official=own.official * count,
            labels=np.tile(own.labels, count),
            values=np.tile(own.values, (count, 1)),
            votes=None if own.votes is None else np.tile(own.votes, (count, 1)),
            sources=sources,
        )

    def folds_in(self, learned: Sequence[str]) -> Split:
        """Folds that train under some conditions and test under all that are asked for, in rows of :meth:`together`."""
        places = {condition: place for place, condition in enumerate(self.config.blocks)}
        rows = len(self.dataset.utterance_ids)

        def of(part: Any, conditions: Sequence[str]) -> Any:
            return block_rows(part, [places[condition] for condition in conditions], rows)

        folds = tuple(
            Fold(fold.name, of(fold.train, learned), of(fold.validation, learned), of(fold.test, self.config.tested))
            for fold in self.split.folds
        )
        text = "\n".join((self.split.digest, *learned, "tested", *self.config.tested))
        return replace(self.split, folds=folds, digest=hashlib.sha256(text.encode()).hexdigest())


def _plan(material: _Material, cells: Sequence[Cell]) -> list[_Planned]:
    """Every job of the study."""
    config, seeds = material.config, range(material.config.comparison.seeds)
    together = material.together()
    planned = []
    for cell in cells:
        plain = make_job(material.dataset, material.split, cell, seeds=seeds, config=material.train)
        if {name for name in (cell.left, cell.right) if name} <= material.untouched:
            planned.append(_Planned(cell, "", (CLEAN,), plain))
            continue
        for regime in config.training:
            if regime == MATCHED:
                for condition in config.tested:
                    if condition == CLEAN and CLEAN in config.training:
                        continue  # the head of that way of training is the same one
                    job = plain
                    if condition != CLEAN:
                        job = make_job(
                            material.under(condition), material.split, cell, seeds=seeds, config=material.train
                        )
                    planned.append(_Planned(cell, MATCHED, (condition,), job))
                continue
            learned = config.learned if regime == MULTI else (CLEAN,)
            job = make_job(together, material.folds_in(learned), cell, seeds=seeds, config=material.train)
            description = {**job.description, "study": "noise", "steps_per_epoch": plain.steps_per_epoch}
            tasks = tuple(replace(task, test_blocks=len(config.tested)) for task in job.tasks)
            job = replace(job, tasks=tasks, steps_per_epoch=plain.steps_per_epoch, description=description)
            planned.append(_Planned(cell, regime, config.tested, job))
    return planned


def study_noise(
    manifest: Manifest,
    cells: Sequence[Cell],
    *,
    families: Mapping[str, str],
    config: NoiseConfig,
    cache_dir: Location,
    run_dir: Path,
    workers: int = 1,
    device: str = "cpu",
    command: str = "",
    progress: Progress = lambda done, total, what: None,
) -> Outcome:
    """Train what is missing, score everything under every condition, and write ``study.json``.

    Args:
        manifest: the corpus.
        cells: of :func:`noise_cells`.
        families: encoder name to family.
        config: what and how.
        cache_dir: folder of the stores.
        run_dir: folder of the run.
        workers: processes.
        device: of the heads: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        command: what makes the study again, for its page.
        progress: called whenever a stack of heads is finished.

    Raises:
        StoreError: stores are absent (all are named, with one command that makes them) or were made with different noise.
        HyfuseError: stores, protocol, settings or disk do not allow it; see the named children.
    """
    device = choose_device(device)
    material = _gather(manifest, families, config, cache_dir)
    heard = _heard(manifest, material, families, cache_dir)
    dataset, split = material.dataset, material.split
    rungs = tuple(f"{name}:" for name in LINEAR.values())  # which are not trained here
    said = [
        line
        for line in notes(manifest, dataset, split, config.comparison, material.train)
        if not line.startswith(rungs)
    ]
    warned = warnings_of(manifest, dataset, split)
    run = RunFolder(run_dir)
    with locked(run_dir):
        more = {"study": "noise", "condition": list(config.tested), "noise": _settings(config)}
        text = config_json(
            dataset,
            split,
            cells,
            config=config.comparison,
            train=material.train,
            said=said,
            warned=warned,
            more=more,
        )
        write_atomically(run_dir / "config.json", text, option="--runs-dir")
        planned = _plan(material, cells)
        total, done, missing = sum(len(one.job.tasks) for one in planned), 0, []
        for one in planned:
            finished = {(head.row["fold"], head.row["seed"]) for head in run.load(one.job)}
            tasks = tuple(task for task in one.job.tasks if (task.fold, task.seed) not in finished)
            missing.append(replace(one.job, tasks=tasks))
            done += len(one.job.tasks) - len(tasks)
        progress(done, total, "")
        for result in run_jobs(missing, workers=workers, device=device, scratch=run_dir):
            run.save(result)
            done += len(result.heads)
            progress(done, total, result.job.cell.title)
        records: list[HeadRecord] = []
        scores: dict[tuple[str, str, str], CellScore] = {}
        for one in planned:
            for condition, heads in _by_condition(one, run.load(one.job), dataset).items():
                records += heads
                found = replace(score_heads(dataset, one.cell, heads), cell=str(heads[0].row["cell"]))
                scores |= {place: found for place in _places(one, condition, config)}
        run.write_results(records)
        write_predictions(run, dataset, records)
        findings = Findings(
            corpus=dataset.corpus,
            target=dataset.target,
            dimensions=dataset.dimensions,
            cells=tuple(cells),
            families=dict(families),
            conditions=config.tested,
            training=config.training,
            learned=config.learned,
            transcripts=config.transcripts,
            untouched=material.untouched,
            scores=scores,
            word_errors=heard,
            notes=tuple(said),
            warnings=tuple(warned),
        )
        settings = {
            name: value for name, value in json.loads(text).items() if name not in ("notes", "warnings", "folds")
        }
        outcome = outcome_of(findings, command=command, settings=settings)
        outcome.write(run_dir)
    return outcome


def _settings(config: NoiseConfig) -> dict[str, Any]:
    return {
        "conditions": list(config.tested),
        "training": list(config.training),
        "multi_conditions": list(config.learned) if MULTI in config.training else [],
        "transcripts": config.transcripts,
    }


def _card(corpus: str) -> Card | None:
    return read_card(corpus) if corpus in card_names() else None


def _gather(manifest: Manifest, families: Mapping[str, str], config: NoiseConfig, cache_dir: Location) -> _Material:
    """Open every store and divide the utterances that all of them hold."""
    absent = missing_stores(manifest.corpus, families, config, cache_dir=cache_dir)
    if absent is not None:
        raise absent
    own, card = config.comparison, _card(manifest.corpus)
    untouched = frozenset(name for name, family in families.items() if family == _LEXICAL and config.recogniser is None)
    _check_transcripts(manifest, untouched)
    named = {
        (name, condition): config.store_of(name, family, condition)
        for condition in config.blocks
        for name, family in families.items()
    }
    _check_comparable(manifest, families, named, cache_dir)
    learned: dict[str, Any] = (
        {"dimensions": canonical_dimensions(own.dimensions) or default_dimensions(manifest)}
        if own.target == "dimensions"
        else {"classes": own.classes or default_classes(manifest, card.classes if card else ())}
    )
    dataset, sources = load_conditions(
        manifest,
        list(dict.fromkeys(named.values())),
        cache_dir=cache_dir,
        soft=own.labels == "soft",
        representations=own.representations,
        layer=own.layer,
        pool=own.pool,
        **learned,
    )
    split = make_folds(
        manifest, dataset, own.protocol or (card.default_protocol if card else "speaker-5fold"), card=card
    )
    return _Material(
        dataset=dataset,
        split=split,
        sources={place: sources[store] for place, store in named.items()},
        untouched=untouched,
        config=config,
        train=train_config(own, split),
    )


def _check_transcripts(manifest: Manifest, untouched: frozenset[str]) -> None:
    """Text by hand must be there."""
    absent = [
        name
        for name, text in zip(manifest.utterance_ids, manifest.table["transcript"], strict=True)
        if not str(text).strip()
    ]
    if untouched and absent:
        raise ManifestError(
            f"{len(absent)} of {len(manifest)} utterances of corpus {manifest.corpus!r} have no transcript in the manifest, for"
            f" instance {', '.join(absent[:3])}; {', '.join(sorted(untouched))} would read nothing. Fill the column 'transcript',"
            f" or let a recogniser listen: `hyfuse transcribe --corpus {manifest.corpus} --model whisper` and --transcripts"
            " asr:whisper."
        )


_SAME_ENCODER = ("weights_kind", "weights_digest", "representations", "dim", "sample_rate_hz", "resampler", "precision")


def _check_comparable(
    manifest: Manifest,
    families: Mapping[str, str],
    named: Mapping[tuple[str, str], StoreName],
    cache_dir: Location,
) -> None:
    """One encoder, whatever the condition; one noise, whatever the encoder."""

    def made(store: StoreName) -> Provenance:
        return open_store(
            store_path(cache_dir, manifest.corpus, *store), manifest_digest=manifest.digest, complete=False
        ).provenance

    found = {place: made(store) for place, store in named.items()}
    first: dict[tuple[str, bool], tuple[str, str]] = {}
    for (name, condition), provenance in found.items():
        if differences := found[name, CLEAN].differences(provenance, _SAME_ENCODER):
            listed = "; ".join(f"{what}: {one} and {other}" for what, one, other in differences)
            raise ProvenanceError(
                f"The stores of {name} under clean and under {condition} were made by different versions of the encoder ({listed}),"
                f" so their difference is not that of the condition. Remove one with `hyfuse cache remove"
                f" {manifest.corpus}/{name}/{named[name, condition][1]} --cache-dir {cache_dir}` and extract it again."
            )
        heard = families[name] == _LEXICAL
        other, digest = first.setdefault((condition, heard), (name, provenance.condition_digest))
        if digest != provenance.condition_digest:
            raise ProvenanceError(
                f"{other} and {name} were not given the same under {condition}: the recordings of the noise, the seed"
                f"{' or the transcripts' if heard else ''} differ (digests {digest[:12]} and {provenance.condition_digest[:12]})."
                f" Remove one with `hyfuse cache remove {manifest.corpus}/{name}/{named[name, condition][1]} --cache-dir"
                f" {cache_dir}` and extract it again with the same --noise-dir and --condition-seed."
            )


def _heard(
    manifest: Manifest, material: _Material, families: Mapping[str, str], cache_dir: Location
) -> dict[str, WordErrors]:
    """Audio condition to how far a recogniser's transcripts are from those by hand; empty without one, or without text by hand."""
    config = material.config
    if config.recogniser is None or _LEXICAL not in families.values():
        return {}
    kept = set(material.dataset.utterance_ids)
    table = manifest.table[manifest.table["utterance_id"].isin(list(kept))]
    references = dict(zip(table["utterance_id"], table["transcript"].astype(str), strict=True))
    if not any(text.strip() for text in references.values()):
        return {}
    speakers = dict(zip(table["utterance_id"], table["speaker"], strict=True))
    return {
        condition: word_errors(
            references,
            read_transcripts(
                cache_dir, manifest.corpus, config.recogniser, condition, manifest_digest=manifest.digest
            ).by_id,
            speakers,
        )
        for condition in config.tested
    }


# ---------------------------------------------------------------------------------------------------------------------
# What it gave


def _places(one: _Planned, condition: str, config: NoiseConfig) -> list[tuple[str, str, str]]:
    """Cell, regime and condition that a score stands for: several where no condition touches the input."""
    title = one.cell.title
    if not one.regime:
        return [(title, regime, tested) for regime in config.training for tested in config.tested]
    also = [(title, MATCHED, CLEAN)] if one.regime == condition == CLEAN and MATCHED in config.training else []
    return [(title, one.regime, condition), *also]


def _by_condition(one: _Planned, heads: Sequence[HeadRecord], dataset: Dataset) -> dict[str, list[HeadRecord]]:
    """Heads per condition, in rows of the data set, with metrics of that condition alone; curves stand in the first."""
    count = len(dataset.utterance_ids)
    measure = measure_of(dataset.target, dataset.dimensions)
    found: dict[str, list[HeadRecord]] = {}
    for head in heads:
        _, utterances = place_of(head.test, count)
        for place, part in enumerate(np.split(np.arange(len(head.test)), len(one.tested))):
            condition, rows = one.tested[place], utterances[part]
            together = [""] * len(rows)
            if dataset.dimensions:
                tallies = speaker_sums(dataset.values[rows], head.outputs[part][None], together)
            else:
                predicted = head.outputs[part].argmax(axis=1)[None]
                tallies = speaker_confusions(
                    dataset.labels[rows], predicted, together, num_classes=len(dataset.classes)
                )
            metrics = {name: score(tallies, metric) for name, metric in measure.metrics.items()}
            where = f"{condition}, trained {one.regime}" if one.regime else "transcripts by hand"
            row = {
                **head.row,
                "cell": f"{one.cell.title} ({where})",
                "training": one.regime,
                "condition": condition if one.regime else "any",
                "test_utterances": len(rows),
                "metrics": {name: None if np.isnan(value) else value for name, value in metrics.items()},
                "curves": head.row["curves"] if place == 0 else {},
            }
            record = HeadRecord(row, rows, head.outputs[part], head.left_shuffled[part], head.right_shuffled[part])
            found.setdefault(condition, []).append(record)
    return found
