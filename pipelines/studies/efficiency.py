"""Small systems beside a large encoder (Oliveira, Prabhu & Gerkmann 2023, arXiv 2305.19184): score, parameters, time.

All are heads on frozen embeddings of recordings under the teacher's condition, trained alike on the same folds and seeds: the large
encoder alone, a small one alone, and the small one with a small encoder of text; where students hear layer K of an encoder, the
encoder cut off behind that layer, alone and with the small encoder of text. The teacher and the distilled student, tested under the
same condition, stand beside them. *Deployed* are the parameters that must be there to use a system, up to the layer that is heard,
*trained* those of the head, mean weights of layers included; scalers are not counted. Time is of the encoders
(:mod:`pipelines.extraction.efficiency`) and is measured once per run folder, so that the same call gives the same table.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from pipelines.corpora.protocols import Split
from pipelines.errors import ConfigError
from pipelines.evaluation.results import HeadRecord, RunFolder
from pipelines.extraction.efficiency import EncoderCost, encoder_cost
from pipelines.files import write_atomically
from pipelines.fusion.catalogue import SINGLE, build_head
from pipelines.training.conditions import StoreName
from pipelines.training.data import Dataset, Source
from pipelines.training.grid import Cell, Job, make_job, run_jobs
from pipelines.training.trainer import TrainConfig

__all__ = [
    "COSTS_FILE",
    "EfficiencyConfig",
    "Efficient",
    "efficient_stores",
    "head_parameters",
    "measure_costs",
    "small_jobs",
    "train_small",
]

COSTS_FILE = "efficiency.json"


@dataclass(frozen=True, kw_only=True)
class EfficiencyConfig:
    """Which small systems.

    Attributes:
        small: encoder of speech.
        small_text: encoder of the words.
        audio_s: seconds of speech that are encoded to measure the time.
    """

    small: str = "distilhubert"
    small_text: str = "minilm"
    audio_s: float = 20.0

    def __post_init__(self) -> None:
        if self.audio_s <= 0:
            raise ConfigError(f"Time is measured on a positive number of seconds of speech, not {self.audio_s}.")


@dataclass(frozen=True)
class Efficient:
    """One line of the table.

    Attributes:
        title: what it is.
        job: whose head it uses.
        costs: of its encoders.
        records: its heads, tested under the teacher's condition.
    """

    title: str
    job: Job
    costs: tuple[EncoderCost, ...]
    records: tuple[HeadRecord, ...] = field(repr=False)

    @property
    def trained(self) -> int:
        """Parameters of the head."""
        return head_parameters(self.job)

    @property
    def deployed(self) -> int | None:
        """Parameters of encoders and head; None where those of an encoder are not counted."""
        counted = [cost.parameters for cost in self.costs]
        return None if None in counted else sum(one for one in counted if one is not None) + self.trained

    @property
    def cpu_s_per_s(self) -> float:
        """CPU seconds of the encoders per second of speech."""
        return sum(cost.cpu_s_per_s for cost in self.costs)


def efficient_stores(config: EfficiencyConfig | None, *, condition: str, text: str) -> list[StoreName]:
    """Stores that the small systems need.

    Args:
        config: which; None for none.
        condition: of the recordings.
        text: condition of the words.
    """
    return [] if config is None else [(config.small, condition), (config.small_text, text)]


def small_jobs(
    dataset: Dataset,
    split: Split,
    sources: Mapping[str, tuple[Source, Source | None]],
    *,
    fusion: str,
    options: Mapping[str, Mapping[str, object]],
    seeds: int,
    config: TrainConfig,
) -> dict[str, Job]:
    """What is trained for the table.

    Args:
        dataset: the utterances.
        split: their folds.
        sources: title to the embeddings of a system, and those of its words.
        fusion: where there are words.
        options: fusion and ``single`` to their options.
        seeds: number of seeds.
        config: hyper-parameters.
    """
    jobs = {}
    for title, (left, right) in sources.items():
        own = {left.encoder: left} | ({} if right is None else {right.encoder: right})
        name = SINGLE if right is None else fusion
        cell = Cell(left.encoder, "" if right is None else right.encoder, name, options[name])
        jobs[title] = make_job(replace(dataset, sources=own), split, cell, seeds=range(seeds), config=config)
    return jobs


def train_small(
    jobs: Mapping[str, Job],
    run: RunFolder,
    *,
    workers: int,
    device: str,
    progress: Callable[[int, str], None],
    stack: int | None = None,
) -> dict[str, tuple[HeadRecord, ...]]:
    """Train what is missing; title to its heads.

    Args:
        jobs: title to job.
        run: where they are kept.
        workers: processes.
        device: of the heads.
        progress: called with the number of heads that were just finished, and their title.
        stack: heads per stack, at most.
    """
    missing, titles = [], {}
    for title, job in jobs.items():
        there = {(record.row["fold"], record.row["seed"]) for record in run.load(job)}
        tasks = tuple(task for task in job.tasks if (task.fold, task.seed) not in there)
        progress(len(job.tasks) - len(tasks), "")
        missing.append(replace(job, tasks=tasks))
        titles[job.key] = title
    for result in run_jobs(missing, workers=workers, device=device, stack=stack, scratch=run.path):
        run.save(result)
        progress(len(result.heads), titles[result.job.key])
    found = {}
    for title, job in jobs.items():
        found[title] = tuple(replace(record, row={**record.row, "cell": title}) for record in run.load(job))
    return found


def head_parameters(job: Job) -> int:
    """Parameters of one head of a job."""
    left, right = job.left, job.right
    head = build_head(
        job.cell.fusion,
        left_dim=left.dim,
        right_dim=None if right is None else right.dim,
        num_classes=len(job.dimensions) or len(job.classes),
        head_seeds=[0],
        hidden_dim=job.config.hidden_dim,
        options=job.cell.options,
    )
    weighted = sum(len(source.layers) for source in (left, right) if source is not None)
    return sum(parameter.numel() for parameter in head.parameters()) + weighted


def measure_costs(
    run_dir: Path, wanted: Sequence[tuple[str, str]], *, audio_s: float
) -> dict[tuple[str, str], EncoderCost]:
    """What encoders cost up to their representations; what an earlier call has measured is read back.

    Args:
        run_dir: the run; costs are kept in its :data:`COSTS_FILE`.
        wanted: encoders and representations.
        audio_s: seconds of speech.
    """
    path, found = run_dir / COSTS_FILE, {}
    try:
        for entry in json.loads(path.read_text(encoding="utf-8")):
            cost = EncoderCost(**entry)
            found[cost.encoder, cost.representation] = cost
    except (OSError, ValueError, TypeError):
        found = {}
    for name, representation in wanted:
        known = found.get((name, representation))
        if known is None or known.audio_s != audio_s:
            found[name, representation] = encoder_cost(name, representation, audio_s=audio_s)
    text = json.dumps([asdict(cost) for cost in found.values()], indent=1)
    write_atomically(path, text + "\n", option="--runs-dir")
    return {key: found[key] for key in wanted}
