"""What to do next, told from the state of a cache and a folder of runs; nothing heavy is read and nothing is changed.

The state is what file names and small records tell: which corpora are remembered, which stores exist and whether every block of
them is there, which runs exist and whether they finished. What was interrupted comes first, then what follows in the chain corpus →
embeddings → comparison → report.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipelines.corpora.prepare import cached_corpora
from pipelines.errors import HyfuseError
from pipelines.locations import Location
from pipelines.store.embeddings import find_stores, open_store

__all__ = ["CorpusState", "FolderState", "RunState", "Step", "look", "next_steps"]

_TRY = "hyfuse extract --model wavlm-tiny --model encodec-tiny --weights random --corpus demo"


@dataclass(frozen=True)
class CorpusState:
    """A corpus in the cache.

    Attributes:
        name: of the corpus.
        finished: encoder to its family, of finished stores of clean recordings.
        conditions: finished stores under other conditions.
        unfinished: ``encoder/condition`` of stores with something left to do.
        damaged: ``encoder/condition`` of stores that cannot be read.
    """

    name: str
    finished: dict[str, str]
    conditions: int
    unfinished: tuple[str, ...]
    damaged: tuple[str, ...]


@dataclass(frozen=True)
class RunState:
    """A folder of a run.

    Attributes:
        path: of the folder.
        finished: whether its table or its study was written.
        reported: whether there is a page of it.
    """

    path: Path
    finished: bool
    reported: bool


@dataclass(frozen=True)
class FolderState:
    """What is there.

    Attributes:
        cache_dir: the cache that was looked at.
        corpora: in it, sorted.
        runs: newest first.
    """

    cache_dir: Location
    corpora: tuple[CorpusState, ...]
    runs: tuple[RunState, ...]


@dataclass(frozen=True)
class Step:
    """A command, and why.

    Attributes:
        command: to be typed as it is, but for words in capitals.
        why: half a sentence.
    """

    command: str
    why: str


def look(cache_dir: Location, runs_dir: Path) -> FolderState:
    """The state of a cache and of a folder of runs.

    Raises:
        StorageError: object storage cannot be reached.
    """
    return FolderState(
        cache_dir=cache_dir,
        corpora=tuple(_corpus(cache_dir, name) for name in cached_corpora(cache_dir)),
        runs=tuple(_runs(runs_dir)),
    )


def _corpus(cache_dir: Location, name: str) -> CorpusState:
    finished: dict[str, str] = {}
    conditions = 0
    unfinished, damaged = [], []
    for path in find_stores(cache_dir, name):
        title = f"{path.parent.name}/{path.stem}"
        try:
            store = open_store(path, complete=False)
            if not store.is_complete:
                unfinished.append(title)
            elif path.stem == "clean":
                finished[store.provenance.encoder] = store.provenance.family
            else:
                conditions += 1
        except HyfuseError:
            damaged.append(title)
    return CorpusState(name, finished, conditions, tuple(unfinished), tuple(damaged))


def _runs(runs_dir: Path) -> list[RunState]:
    if not runs_dir.is_dir():
        return []
    configs = [path for path in runs_dir.glob("*/config.json") if path.is_file()]
    configs.sort(key=lambda path: (-path.stat().st_mtime, path.parent.name))
    return [
        RunState(
            path=path.parent,
            finished=any((path.parent / name).is_file() for name in ("table.csv", "study.json")),
            reported=(path.parent / "report.html").is_file(),
        )
        for path in configs
    ]


def next_steps(state: FolderState, *, cache_option: str = "") -> list[Step]:
    """Commands that go on from a state, the most natural first.

    Args:
        state: from :func:`look`.
        cache_option: what must be added where the cache is not the usual one, such as ``--cache-dir /data/cache``.
    """
    more = f" {cache_option}" if cache_option else ""
    steps: list[Step] = []
    for corpus in state.corpora:
        name = shlex.quote(corpus.name)
        for title in corpus.unfinished:
            encoder, _, condition = title.partition("/")
            under = "" if condition == "clean" else f" --condition {shlex.quote(condition)}"
            command = f"hyfuse extract --model {encoder} --corpus {name}{under}{_weights([encoder])}{more}"
            steps.append(Step(command, f"{corpus.name}/{title} is not finished; the same command goes on with it"))
        for title in corpus.damaged:
            steps.append(
                Step(f"hyfuse cache verify {shlex.quote(f'{corpus.name}/{title}')}{more}", "this store cannot be read")
            )
    waiting = [run for run in state.runs if run.finished and not run.reported]
    unfinished = [run for run in state.runs if not run.finished]
    if waiting:
        run = waiting[0]
        steps.append(
            Step(f"hyfuse report {shlex.quote(str(run.path))}", "the newest run has results, but no page of them yet")
        )
    for run in state.runs[:1]:
        if run.reported and (run.path / "predictions.parquet").is_file() and not (run.path / "study.json").is_file():
            steps.append(
                Step(f"hyfuse export {shlex.quote(str(run.path))} --help", "makes a model of the cell you like")
            )
    for run in unfinished[:1]:
        command = _command_of(run.path)
        if command:
            steps.append(Step(command, f"{run.path} was interrupted; the same command goes on with it"))
    for corpus in state.corpora:
        steps += _go_on(corpus, more, compared=bool(state.runs))
    if not state.corpora:
        steps.append(Step(_TRY, "a first look: a synthetic corpus, tiny encoders with random weights, a minute"))
        steps.append(
            Step(
                "hyfuse extract --model wavlm --corpus emodb --data-root DIR", "a corpus that you have, a real encoder"
            )
        )
        steps.append(Step("hyfuse corpora list", "which corpora are read, and how to get them"))
    return steps


def _go_on(corpus: CorpusState, more: str, *, compared: bool) -> list[Step]:
    """What a corpus' finished stores allow."""
    name = shlex.quote(corpus.name)
    families = set(corpus.finished.values())
    tiny = any(encoder.endswith("-tiny") for encoder in corpus.finished)
    if not corpus.finished:
        if corpus.unfinished:
            return []
        return [Step(f"hyfuse extract --model wavlm --corpus {name}{more}", f"{corpus.name} has no embeddings yet")]
    if (families != {"CBR"} and "CBR" not in families) or families == {"CBR"}:
        codec = "CBR" not in families
        encoder = ("encodec" if codec else "wavlm") + ("-tiny" if tiny else "")
        missing = "a neural codec" if codec else "a representation-learning model"
        return [
            Step(
                f"hyfuse extract --model {encoder} --corpus {name}{_weights([encoder])}{more}",
                f"{corpus.name} has {', '.join(corpus.finished)}; {missing} makes a pair",
            )
        ]
    why = "every pair under every fusion" if not compared else "again, with what was added since"
    return [Step(f"hyfuse compare --corpus {name}{more}", f"{corpus.name}: {why} ({', '.join(corpus.finished)})")]


def _weights(encoders: Sequence[str]) -> str:
    """The tiny sizes have random weights only."""
    return " --weights random" if any(name.endswith("-tiny") for name in encoders) else ""


def _command_of(run: Path) -> str:
    """The command that goes on with a run, if its configuration says so."""
    from pipelines.reports.reproduce import commands  # loads torch: only where there is such a run

    try:
        config = json.loads((run / "config.json").read_text(encoding="utf-8"))
        return commands(config, run.name)[-1]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError):
        return ""
