"""The study of Li, Bell & Lai 2022 (arXiv 2110.15684): emotion from speech, and from what a recogniser makes of it.

**Streams.** Acoustic frames of a frozen encoder; *ASR hidden* frames, the last layer of a recogniser; and the tokens of a text, by
hand (``manual``), by a recogniser (``asr``), or none. **Heads** on frames fuse them (``fusion/frames``). **Joint training**: a
small stack over the frozen acoustic frames serves the emotion and CTC over the characters of the manifest's transcripts,
λ CTC + (1 − λ) emotion (``training/frame_trainer.py``). **Fine-tuning** (``fine_tune``) trains the last layers of a wav2vec2-like
encoder itself with the same loss and asks which layers it changed.

What is trained, in a fixed plan (:func:`plan`): every stream alone; every head with every kind of transcripts, under the smallest
λ above 0 (λ = 0 if there is no other); and for every other λ, the acoustic stream alone and the last head with the first kind of
transcripts that a recogniser made. With two streams, hierarchical co-attention has one stage and is cross-attention. What of this
is the paper's and what is ours: ``docs/asr-fusion.md``.

A finished model is kept as a part of the run; the same call again, after an interruption or with more of anything, trains only what
is not there yet. No epoch is chosen on test data.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pipelines
from pipelines.corpora.cards import Card, card_names, read_card
from pipelines.corpora.manifest import Manifest
from pipelines.corpora.protocols import Split
from pipelines.errors import ConfigError, ManifestError, ProvenanceError, unknown_name
from pipelines.extraction.fine_tuning import FineTuneConfig
from pipelines.files import write_atomically
from pipelines.fusion.frames.catalogue import ALONE, FRAME_HEADS, frame_head_options
from pipelines.locations import Location
from pipelines.store.embeddings import EmbeddingStore
from pipelines.store.transcripts import parse_text_condition, read_transcripts, text_condition
from pipelines.studies.asr_fusion_findings import Findings, System, write_summaries
from pipelines.studies.asr_fusion_outcome import outcome_of
from pipelines.studies.asr_fusion_tuning import Tuning, tune_encoder
from pipelines.studies.frame_runs import (
    FrameRecord,
    FrameWork,
    described_key,
    frame_code_digest,
    load_part,
    number,
    run_frame_work,
    run_in_processes,
    save_part,
)
from pipelines.studies.outcome import Outcome
from pipelines.studies.pairs import locked, subject_json
from pipelines.training.data import TARGETS, default_classes, default_dimensions
from pipelines.training.folds import make_folds
from pipelines.training.frame_data import (
    FrameDataset,
    FrameFile,
    FrameSource,
    frame_files,
    load_frame_dataset,
    open_frame_source,
)
from pipelines.training.frame_trainer import FrameConfig, FrameResult, FrameSystem
from pipelines.training.grid import choose_device
from pipelines.training.trainer import HeadTask

__all__ = ["NO_TEXT", "AsrFusionConfig", "plan", "run_asr_fusion"]

NO_TEXT = "none"
MANUAL = "manual"
BOTH = "both"

Progress = Callable[[int, int, str], None]
"""Called with (models done, models in all, what was worked on last)."""


@dataclass(frozen=True, kw_only=True)
class AsrFusionConfig:
    """Settings of the study.

    Attributes:
        acoustic: encoder of the acoustic frames.
        acoustic_representation: whose frames; what the store keeps of it unless given.
        asr: recogniser whose hidden frames are a stream; empty for none.
        asr_representation: whose frames; the last layer unless given.
        text: encoder of the tokens; not needed if ``transcripts`` are ``none``.
        transcripts: kinds of text: ``manual``, ``asr`` (by the recogniser ``asr``), ``asr:MODEL``, ``none``.
        heads: heads on frames.
        order: of the stages of ``hierarchical``: ``asr-text``, ``text-asr`` or ``both``.
        ctc_weights: λ, in [0, 1).
        condition: of the recordings, for acoustic and ASR frames and for texts by a recogniser.
        target: ``emotion`` or ``dimensions``.
        classes: emotions; empty for those of the corpus' card.
        dimensions: of the target ``dimensions``; empty for all that the corpus has.
        protocol: name; empty for the corpus' default.
        stride: consecutive acoustic (and ASR hidden) frames that are averaged to one: 2 halves what CTC and attention cost.
        seeds: number of seeds.
        fine_tune: how the last layers of an encoder are trained besides; None for not at all.
        fine_tune_model: which one; the acoustic encoder unless given.
        selection: which rows train and which epoch is kept; empty for ``loss`` under an official split and ``fixed`` otherwise.
        train: hyper-parameters, but for the selection.
    """

    acoustic: str
    acoustic_representation: str = ""
    asr: str = ""
    asr_representation: str = ""
    text: str = ""
    transcripts: tuple[str, ...] = (MANUAL, "asr", NO_TEXT)
    heads: tuple[str, ...] = ("early", "cross", "hierarchical")
    order: str = "asr-text"
    ctc_weights: tuple[float, ...] = (0.0, 0.1, 0.5)
    condition: str = "clean"
    target: str = "emotion"
    classes: tuple[str, ...] = ()
    dimensions: tuple[str, ...] = ()
    protocol: str = ""
    stride: int = 1
    seeds: int = 1
    fine_tune: FineTuneConfig | None = None
    fine_tune_model: str = ""
    selection: str = ""
    train: FrameConfig = field(default_factory=FrameConfig)

    def __post_init__(self) -> None:
        if not 1 <= self.seeds <= 1000:
            raise ConfigError(f"--seeds must be between 1 and 1000, not {self.seeds}.")
        if not 1 <= self.stride <= 100:
            raise ConfigError(f"--stride must be between 1 and 100, not {self.stride}.")
        for head in self.heads:
            frame_head_options(head)
        if ALONE in self.heads:
            raise ConfigError(f"{ALONE!r} is a baseline that is always there. --heads are some of {_listed_heads()}.")
        if self.order not in (*FRAME_HEADS["hierarchical"].options["order"], BOTH):
            raise unknown_name("--order", self.order, (*FRAME_HEADS["hierarchical"].options["order"], BOTH))
        if self.target not in TARGETS:
            raise unknown_name("--target", self.target, TARGETS)
        if self.dimensions and self.target != "dimensions":
            raise ConfigError(
                f"--dimensions {','.join(self.dimensions)} means nothing to --target emotion. Add --target dimensions."
            )
        for name in ("transcripts", "heads", "ctc_weights"):
            values = getattr(self, name)
            if not values or len(set(values)) != len(values):
                option = "--" + name.replace("_", "-")
                raise ConfigError(f"{option} needs at least one value, each once; given: {_listed(values) or 'none'}.")
        for weight in self.ctc_weights:
            FrameSystem(streams=("acoustic",), ctc_weight=weight)
        if not self.text and self.transcripts != (NO_TEXT,):
            raise ConfigError(
                "Transcripts need an encoder of text. Name one with `--text bert`, or use `--transcripts none`."
            )
        if not self.asr and NO_TEXT in self.transcripts:
            raise ConfigError(
                "Without hidden frames of a recogniser and without a text there is nothing to fuse with the acoustic frames. Name a"
                " recogniser, as in `--asr wav2vec2-ctc`, or leave `none` out of --transcripts."
            )

    @property
    def main_weight(self) -> float:
        """The λ under which heads and transcripts are compared."""
        return min((weight for weight in self.ctc_weights if weight), default=0.0)

    def text_stores(self) -> dict[str, str]:
        """Kind of transcripts to the condition of the text's store; without ``none``.

        Raises:
            ConfigError: a kind that there is not.
        """
        found = {}
        for kind in self.transcripts:
            if kind == MANUAL:
                found[kind] = text_condition()
            elif kind == "asr" or kind.startswith("asr:"):
                model = kind.removeprefix("asr").removeprefix(":") or self.asr
                if not model:
                    raise ConfigError(
                        "--transcripts asr means those by the recogniser of --asr, and none is named. Write `--transcripts"
                        " asr:whisper`, or name one with `--asr wav2vec2-ctc`."
                    )
                found[kind] = text_condition(model, self.condition)
            elif kind != NO_TEXT:
                raise unknown_name("--transcripts", kind, (MANUAL, "asr", "asr:whisper", NO_TEXT))
        return found


def _listed(values: Sequence[object]) -> str:
    return ", ".join(map(str, values))


def _listed_heads() -> str:
    return ", ".join(name for name in FRAME_HEADS if name != ALONE)


def plan(config: AsrFusionConfig) -> list[System]:
    """Everything that is trained, in the order of the table; see the module docstring."""
    kinds = config.text_stores()
    named = {kind: f"{config.text}[{kind if kind != 'asr' else f'asr:{config.asr}'}]" for kind in kinds}
    systems: list[System] = []

    def add(streams: tuple[str, ...], head: str, weight: float, kind: str, **options: str) -> None:
        names = {"acoustic": config.acoustic, "asr": config.asr, "text": named.get(kind, "")}
        system = System(
            frames=FrameSystem(streams=streams, head=head, ctc_weight=weight, options=options),
            sources={stream: f"text:{kind}" if stream == "text" else stream for stream in streams},
            names={stream: names[stream] for stream in streams},
            transcripts=kind,
        )
        if system not in systems:
            systems.append(system)

    def add_fused(head: str, weight: float, kind: str) -> None:
        others = (*(("asr",) if config.asr else ()), *(("text",) if kind != NO_TEXT else ()))
        if head == "hierarchical" and len(others) == 1 and "cross" in config.heads:
            head = "cross"  # its one stage is the same thing
        orders: Sequence[dict[str, str]] = [{}]
        if head == "hierarchical" and len(others) == 2:
            chosen = FRAME_HEADS[head].options["order"] if config.order == BOTH else (config.order,)
            orders = [{"order": order} for order in chosen]
        for options in orders:
            add(("acoustic", *others), head, weight, kind, **options)

    for weight in sorted({0.0, config.main_weight, *config.ctc_weights}):
        add(("acoustic",), ALONE, weight, NO_TEXT)
    if config.asr:
        add(("asr",), ALONE, 0.0, NO_TEXT)
    for kind in kinds:
        add(("text",), ALONE, 0.0, kind)
    for kind in config.transcripts:
        for head in config.heads:
            add_fused(head, config.main_weight, kind)
    by_recogniser = [kind for kind in config.transcripts if kind not in (MANUAL, NO_TEXT)]
    for weight in sorted(config.ctc_weights):
        add_fused(config.heads[-1], weight, (*by_recogniser, *config.transcripts)[0])
    return systems


def run_asr_fusion(
    manifest: Manifest,
    *,
    config: AsrFusionConfig,
    cache_dir: Location,
    run_dir: Path,
    workers: int = 1,
    device: str = "cpu",
    weights: str = "",
    weights_dir: Path | None = None,
    command: str = "",
    progress: Progress | None = None,
) -> Outcome:
    """Train what is missing, score everything, and write the run.

    Args:
        manifest: the corpus.
        config: what and how.
        cache_dir: folder of the stores.
        run_dir: folder of the run.
        workers: processes; on a GPU it is always this one.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        weights: of the encoder that is fine-tuned, ``pretrained`` or ``random``; as those of the acoustic store unless given.
        weights_dir: where they are looked for first.
        command: that makes it again, for the outcome.
        progress: called whenever a model is finished.

    Raises:
        HyfuseError: stores, protocol, settings or disk do not allow it; see the named children.
    """
    device = choose_device(device)
    if config.fine_tune is not None and manifest.root is None:
        manifest.audio_paths()  # says what to do, before anything slow
    systems = plan(config)
    opened = _open_sources(manifest, config, cache_dir)
    card = _card(manifest.corpus)
    if config.target == "emotion":
        classes = config.classes or default_classes(manifest, card.classes if card else ())
        dataset = load_frame_dataset(manifest, opened, classes=classes)
    else:
        dimensions = config.dimensions or default_dimensions(manifest)
        dataset = load_frame_dataset(manifest, opened, classes=config.classes, dimensions=dimensions)
    protocol = config.protocol or (card.default_protocol if card else "speaker-5fold")
    split = make_folds(manifest, dataset.utterances, protocol, card=card)
    train = replace(
        config.train, selection=config.selection or ("loss" if split.protocol.startswith("official") else "fixed")
    )
    _check_transcripts(dataset, config)
    tuned = None
    if config.fine_tune is not None:
        tuned = Tuning(
            encoder=config.fine_tune_model or config.acoustic,
            config=config.fine_tune,
            weights=weights or dataset.sources["acoustic"].weights_kind,
            weights_dir=weights_dir,
            ctc_weight=config.main_weight,
        )
    with locked(run_dir), ExitStack() as held:
        files = held.enter_context(frame_files(dataset, {name: store for name, (_, store) in opened.items()}, run_dir))
        settings = _settings(dataset, split, config, train)
        cells = [system.title for system in (*systems, *([tuned.system] if tuned is not None else []))]
        text = json.dumps({**settings, "cells": cells}, indent=2, sort_keys=True)
        write_atomically(run_dir / "config.json", text + "\n", option="--runs-dir")
        described = [_description(dataset, split, system, files, train) for system in systems]
        work, keys = _missing(dataset, split, systems, described, files, train, config, device, run_dir)
        total = len(systems) * len(split.folds) * config.seeds
        done = total - len(work)
        if progress is not None:
            progress(done, total, "")
        for position, result in run_in_processes(
            run_frame_work, work, workers=1 if device.startswith("cuda") else workers
        ):
            _save(run_dir, keys[position][0], result)
            done += 1
            if progress is not None:
                progress(done, total, systems[keys[position][1]].title)
        records = [_load(run_dir, described_key(description), split, config.seeds) for description in described]
        changes = None
        if tuned is not None:
            description, own, changes = tune_encoder(
                manifest,
                dataset,
                split,
                tuned,
                train=train,
                frames=files["acoustic"].lengths,
                seeds=config.seeds,
                run_dir=run_dir,
                workers=workers,
                device=device,
                progress=progress or _silent,
            )
            systems.append(tuned.system)
            described.append(description)
            records.append(own)
    findings = Findings(
        manifest=manifest,
        dataset=dataset,
        split=split,
        systems=tuple(systems),
        records=tuple(records),
        descriptions=tuple(described),
        seeds=config.seeds,
        train=train,
        main_weight=config.main_weight,
        heard=_heard(dataset, manifest, config, cache_dir),
        random=tuple(
            dict.fromkeys(
                [
                    *(one.encoder for one in dataset.sources.values() if one.weights_kind == "random"),
                    *([tuned.encoder] if tuned is not None and tuned.weights == "random" else []),
                ]
            )
        ),
        changes=changes,
    )
    write_summaries(run_dir, findings)
    outcome = outcome_of(findings, command=command, settings=settings)
    outcome.write(run_dir)
    return outcome


def _silent(done: int, total: int, what: str) -> None:
    """Nobody wants to know."""


def _open_sources(
    manifest: Manifest, config: AsrFusionConfig, cache_dir: Location
) -> dict[str, tuple[FrameSource, EmbeddingStore]]:
    """Name of a source to where its frames are."""

    def find(
        encoder: str, representation: str, condition: str, stride: int = config.stride
    ) -> tuple[FrameSource, EmbeddingStore]:
        return open_frame_source(
            manifest,
            cache_dir=cache_dir,
            encoder=encoder,
            representation=representation,
            condition=condition,
            stride=stride,
        )

    found = {"acoustic": find(config.acoustic, config.acoustic_representation, config.condition)}
    if config.asr:
        found["asr"] = find(config.asr, config.asr_representation, config.condition)
    for kind, condition in config.text_stores().items():
        heard = None
        if kind != MANUAL:  # its absence explains that of the store
            model, audio = parse_text_condition(condition)
            assert model is not None
            heard = read_transcripts(cache_dir, manifest.corpus, model, audio, manifest_digest=manifest.digest)
        found[f"text:{kind}"] = find(config.text, "", condition, 1)
        store = found[f"text:{kind}"][1]
        if heard is not None and store.provenance.condition_digest != heard.digest:
            raise ProvenanceError(
                f"{store.path} was made from other texts than {heard.path} holds now (digests"
                f" {store.provenance.condition_digest[:12]} and {heard.digest[:12]}). Remove it with `hyfuse cache remove"
                f" {manifest.corpus}/{config.text}/{condition} --cache-dir {cache_dir}` and extract it again."
            )
        if (family := found[f"text:{kind}"][0].family) != "LEX":
            raise ConfigError(
                f"--text {config.text} is an encoder of the family {family}, not of text. Choose one of the family LEX in `hyfuse"
                " models list`, such as bert."
            )
    for name in ("acoustic", "asr"):
        if name in found and found[name][0].family == "LEX":
            raise ConfigError(f"--{name} {found[name][0].encoder} is an encoder of text. Name it with --text.")
    return found


def _card(corpus: str) -> Card | None:
    return read_card(corpus) if corpus in card_names() else None


def _check_transcripts(dataset: FrameDataset, config: AsrFusionConfig) -> None:
    """CTC and text by hand need a transcript of every utterance."""
    absent = [name for name, text in zip(dataset.utterance_ids, dataset.transcripts, strict=True) if not text.strip()]
    wanted = [
        what
        for what, needed in (
            ("CTC (--ctc-weights above 0)", max(config.ctc_weights) > 0.0),
            ("--transcripts manual", MANUAL in config.transcripts),
        )
        if needed
    ]
    if absent and wanted:
        raise ManifestError(
            f"{len(absent)} of {len(dataset.utterance_ids)} utterances of {dataset.corpus!r} have no transcript in the manifest,"
            f" for instance {', '.join(absent[:3])}; {' and '.join(wanted)} need{'s' if len(wanted) == 1 else ''} one of each."
            " Add them to the column 'transcript', or do without: `--ctc-weights 0 --transcripts asr,none` after `hyfuse"
            f" transcribe --corpus {dataset.corpus}`."
        )


def _settings(dataset: FrameDataset, split: Split, config: AsrFusionConfig, train: FrameConfig) -> dict[str, Any]:
    """What ``config.json`` says: all that decides on the numbers."""
    return {
        "study": "asr-fusion",
        **subject_json(dataset, split),
        "code_digest": frame_code_digest(),
        "sources": {source.title: {**asdict(source), "path": str(source.path)} for source in dataset.sources.values()},
        "seeds": list(range(config.seeds)),
        "condition": config.condition,
        "options": {
            **{name: value for name, value in asdict(config).items() if name != "train"},
            **{
                name: list(getattr(config, name))
                for name in ("transcripts", "heads", "ctc_weights", "classes", "dimensions")
            },
        },
        "hyper_parameters": asdict(train),
    }


def _description(
    dataset: FrameDataset, split: Split, system: System, files: Mapping[str, FrameFile], train: FrameConfig
) -> dict[str, Any]:
    """Everything that the numbers of a system depend on but fold and seed, as JSON values."""
    spoken = "\n".join(dataset.transcripts) if system.frames.ctc_weight else ""
    sources = {}
    for stream, name in system.sources.items():
        source = {key: value for key, value in asdict(dataset.sources[name]).items() if key != "path"}
        sources[stream] = {**source, "frames_digest": files[name].digest}
    return {
        "study": "asr-fusion",
        "corpus": dataset.corpus,
        "manifest_digest": dataset.manifest_digest,
        "protocol": split.protocol,
        "speaker_independent": split.speaker_independent,
        "split_digest": split.digest,
        "classes": list(dataset.classes),
        "utterances_digest": hashlib.sha256("\n".join(dataset.utterance_ids).encode()).hexdigest(),
        "target": dataset.target,
        "dimensions": list(dataset.dimensions),
        "truth_digest": hashlib.sha256(dataset.truth.tobytes()).hexdigest(),
        "spoken_digest": hashlib.sha256(spoken.encode()).hexdigest(),
        "sources": sources,
        "head": system.frames.head,
        "options": frame_head_options(system.frames.head, system.frames.options),
        "ctc_weight": system.frames.ctc_weight,
        "hyper_parameters": asdict(train),
        "code_version": pipelines.__version__,
        "code_digest": frame_code_digest(),
    }


def _missing(
    dataset: FrameDataset,
    split: Split,
    systems: Sequence[System],
    described: Sequence[Mapping[str, Any]],
    files: Mapping[str, FrameFile],
    train: FrameConfig,
    config: AsrFusionConfig,
    device: str,
    run_dir: Path,
) -> tuple[list[FrameWork], list[tuple[str, int]]]:
    """Models that the run does not hold, and for each its key and its system's position."""
    work, keys = [], []
    for position, (system, description) in enumerate(zip(systems, described, strict=True)):
        key = described_key(description)
        for fold in split.folds:
            for seed in range(config.seeds):
                if load_part(run_dir, key, fold.name, seed) is not None:
                    continue
                work.append(
                    FrameWork(
                        system=system.frames,
                        files={stream: files[name] for stream, name in system.sources.items()},
                        truth=dataset.truth,
                        transcripts=dataset.transcripts if system.frames.ctc_weight else (),
                        task=HeadTask(
                            fold=fold.name, seed=seed, train=fold.train, validation=fold.validation, test=fold.test
                        ),
                        num_outputs=dataset.num_outputs,
                        config=train,
                        device=device,
                    )
                )
                keys.append((key, position))
    return work, keys


def _save(run_dir: Path, key: str, result: FrameResult) -> None:
    row = {
        "train_utterances": len(result.task.train),
        "validation_utterances": len(result.task.validation),
        "test_utterances": len(result.task.test),
        "best_epoch": result.best_epoch,
        "parameters": result.parameters,
        "unsayable": number(result.unsayable),
        "curves": {name: [number(value) for value in values] for name, values in result.curves.items()},
    }
    save_part(
        run_dir,
        key,
        task=result.task,
        row=row,
        outputs=result.outputs,
        shuffled=result.shuffled,
        hypotheses=result.hypotheses,
    )


def _load(run_dir: Path, key: str, split: Split, seeds: int) -> tuple[FrameRecord, ...]:
    found = []
    for fold in split.folds:
        for seed in range(seeds):
            part = load_part(run_dir, key, fold.name, seed)
            assert part is not None  # it was just written, or found before
            found.append(part[0])
    return tuple(found)


def _heard(
    dataset: FrameDataset, manifest: Manifest, config: AsrFusionConfig, cache_dir: Location
) -> dict[str, tuple[str, ...]]:
    """Kind of transcripts to the texts of all utterances; without ``manual`` and ``none``."""
    found = {}
    for kind, condition in config.text_stores().items():
        if kind == MANUAL:
            continue
        model, audio = parse_text_condition(condition)
        assert model is not None
        texts = read_transcripts(cache_dir, manifest.corpus, model, audio, manifest_digest=manifest.digest)
        found[kind] = tuple(texts.texts_of(dataset.utterance_ids))
    return found
