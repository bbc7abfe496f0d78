"""Finished runs, read back from their folder alone, and what tells two of them apart.

Nothing here needs the manifest, the stores or the parts: ``config.json`` says what was asked for, ``results.jsonl`` what each head
recorded, ``predictions.parquet`` what it predicted for whom; every score is computed from these again, by the same code.

Two runs are compared cell by cell, on the predictions that both made: the same utterances, of the same speakers, with the same
labels. Where that is not so, the cell is refused with the reason: numbers of other test sets do not compare, whatever their
size. A run may differ in anything else (folds, hyper-parameters, representations, code); what does, is listed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipelines.errors import RunError
from pipelines.evaluation.measures import Measure, measure_of
from pipelines.evaluation.results import CellPredictions, CellScore, mean_diagnostics, score_predictions
from pipelines.evaluation.statistics import Difference, holm, paired_difference

__all__ = ["CellComparison", "Refusal", "Run", "RunComparison", "Setting", "compare_runs", "read_run"]

_FILES = ("config.json", "results.jsonl", "predictions.parquet")
_NAMES = ("cell", "left", "right", "fusion", "fold", "utterance_id", "speaker")
_SHUFFLED = ("left_shuffled", "right_shuffled")
_KINDS = ("true", "predicted", *_SHUFFLED)  # of columns of a dimension
_AGAIN = (
    "Run the same `hyfuse compare`, `hyfuse train` or `hyfuse study` again: what was trained is kept, the summary files are made"
    " anew."
)

# What config.json says beside settings: long, or the consequence of something that is compared by its digest.
_NO_SETTINGS = {"cells", "folds", "notes", "warnings", "left_out"}


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        path: its folder.
        config: content of ``config.json``.
        rows: result rows, one per head.
        scores: one per cell, in the order of the run.
        classes: in the order of every confusion matrix; empty where the target is dimensions.
        tested: cell to the utterances that it was tested on.
        speakers: utterance to speaker.
        labels: utterance to label; empty where the target is dimensions.
        dimensions: their names; empty where the target is emotion.
        values: utterance to the true value of every dimension.
    """

    path: Path
    config: Mapping[str, Any] = field(repr=False)
    rows: Sequence[Mapping[str, Any]] = field(repr=False)
    scores: tuple[CellScore, ...] = field(repr=False)
    classes: tuple[str, ...]
    tested: Mapping[str, frozenset[str]] = field(repr=False)
    speakers: Mapping[str, str] = field(repr=False)
    labels: Mapping[str, str] = field(repr=False)
    dimensions: tuple[str, ...] = ()
    values: Mapping[str, tuple[float, ...]] = field(default_factory=dict, repr=False)

    @property
    def target(self) -> str:
        """What was learned, ``emotion`` or ``dimensions``."""
        return "dimensions" if self.dimensions else "emotion"

    @property
    def measure(self) -> Measure:
        """How its cells are judged."""
        return measure_of(self.target, self.dimensions)

    @property
    def families(self) -> dict[str, str]:
        """Encoder to family."""
        return {name: str(source["family"]) for name, source in self.config["sources"].items()}

    @property
    def random(self) -> tuple[str, ...]:
        """Encoders with random weights."""
        return tuple(name for name, source in self.config["sources"].items() if source["weights_kind"] == "random")


@dataclass(frozen=True)
class Setting:
    """Something that two runs differ in.

    Attributes:
        name: as in ``config.json``, levels joined by dots.
        first: value in the first run; None where it is not there.
        second: value in the second run.
    """

    name: str
    first: Any
    second: Any


@dataclass(frozen=True)
class CellComparison:
    """One cell of both runs: the second run minus the first.

    Attributes:
        first: scores in the first run.
        second: scores in the second run.
        differences: score to difference, for every score of the table.
        p_holm: p of the difference in the score that decides, corrected for the number of cells that were compared.
    """

    first: CellScore
    second: CellScore
    differences: Mapping[str, Difference]
    p_holm: float


@dataclass(frozen=True)
class Refusal:
    """A cell of both runs that cannot be compared.

    Attributes:
        cell: its title.
        reason: why, in a sentence.
    """

    cell: str
    reason: str


@dataclass(frozen=True)
class RunComparison:
    """What tells two runs apart.

    Attributes:
        first: folder of the first run.
        second: folder of the second run.
        settings: what they differ in.
        cells: those that could be compared.
        refusals: those that could not.
        only_first: cells that the second run lacks.
        only_second: cells that the first run lacks.
        cautions: what a reader must keep in mind.
        measure: how the cells are judged.
    """

    first: Path
    second: Path
    settings: tuple[Setting, ...]
    cells: tuple[CellComparison, ...]
    refusals: tuple[Refusal, ...]
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]
    cautions: tuple[str, ...]
    measure: Measure


# ---------------------------------------------------------------------------------------------------------------------
# Reading


def read_run(path: Path) -> Run:
    """Read a run and score its cells again.

    Args:
        path: ``runs/<name>``.

    Raises:
        RunError: the folder is absent, is no run, was not finished, is damaged, or was made by an older version.
    """
    if not path.is_dir():
        near = sorted(folder.name for folder in path.parent.glob("*") if (folder / _FILES[0]).is_file())
        listed = f" Runs in {path.parent}: {', '.join(near[:10])}." if near else ""
        raise RunError(
            f"There is no run folder {path}.{listed} Give the folder that `hyfuse compare` named at its end."
        )
    missing = [name for name in _FILES if not (path / name).is_file()]
    if missing:
        kind = "is not a run" if len(missing) == len(_FILES) else "holds a run that was not finished"
        raise RunError(f"{path} {kind}: {', '.join(missing)} is not there. {_AGAIN}")
    try:
        config = json.loads((path / _FILES[0]).read_text(encoding="utf-8"))
        rows = [json.loads(line) for line in (path / _FILES[1]).read_text(encoding="utf-8").splitlines()]
        classes, dimensions = (tuple(map(str, config.get(name) or ())) for name in ("classes", "dimensions"))
        if bool(classes) == bool(dimensions):
            raise ValueError("neither classes nor dimensions" if not classes else "classes and dimensions")
        config["sources"].values()
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise RunError(f"{path}: {_FILES[0]} or {_FILES[1]} cannot be read ({error}). {_AGAIN}") from error
    table = _read_predictions(path / _FILES[2], classes, dimensions)
    diagnostics: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        diagnostics.setdefault(str(row.get("cell", "")), []).append(row)
    scores: list[CellScore] = []
    tested: dict[str, frozenset[str]] = {}
    for title, part in table.groupby("cell", sort=False, observed=True):
        cell = str(title)
        predictions, ids = _predictions(path, cell, part, classes, dimensions, diagnostics.get(cell, []))
        left, right, fusion = (str(part[name].iloc[0]) for name in ("left", "right", "fusion"))
        scores.append(score_predictions(predictions, left=left, right=right, fusion=fusion, cell=cell))
        tested[cell] = next((known for known in tested.values() if known == ids), ids)
    of_utterance = table.drop_duplicates("utterance_id")
    ids_in_all = of_utterance["utterance_id"].astype(str)
    labels, values = {}, {}
    if dimensions:
        columns = of_utterance[[f"true_{name}" for name in dimensions]].to_numpy(dtype=np.float32)
        values = {name: tuple(row) for name, row in zip(ids_in_all, columns.tolist(), strict=True)}
    else:
        labels = dict(zip(ids_in_all, of_utterance["label"].astype(str), strict=True))
    return Run(
        path=path,
        config=config,
        rows=rows,
        scores=tuple(scores),
        classes=classes,
        tested=tested,
        speakers=dict(zip(ids_in_all, of_utterance["speaker"].astype(str), strict=True)),
        labels=labels,
        dimensions=dimensions,
        values=values,
    )


def _read_predictions(path: Path, classes: Sequence[str], dimensions: Sequence[str]) -> pd.DataFrame:
    """The predictions; names as categories, which is a tenth of the memory of strings."""
    import pyarrow.parquet as pq

    named = ["label", *_SHUFFLED] if classes else []
    numbers = [f"{kind}_{name}" for name in dimensions for kind in _KINDS]
    wanted = [*_NAMES, "seed", *named, *(f"p_{name}" for name in classes), *numbers]
    try:
        file = pq.ParquetFile(path)
        found = set(file.schema_arrow.names)
        file.close()
        if lacking := [name for name in wanted if name not in found]:
            raise RunError(
                f"{path} lacks the column{'s' if len(lacking) > 1 else ''} {', '.join(lacking)}: the run was made by an older"
                f" version of hyfuse, or its files do not belong together. {_AGAIN}"
            )
        table: pd.DataFrame = pq.read_table(path, columns=wanted, read_dictionary=[*_NAMES, *named]).to_pandas()
    except (OSError, ValueError) as error:
        if isinstance(error, RunError):
            raise
        raise RunError(f"{path} cannot be read ({error}). {_AGAIN}") from error
    if table.empty:
        raise RunError(f"{path} holds no prediction. {_AGAIN}")
    return table


def _predictions(
    path: Path,
    cell: str,
    part: pd.DataFrame,
    classes: Sequence[str],
    dimensions: Sequence[str],
    rows: Sequence[Mapping[str, Any]],
) -> tuple[CellPredictions, frozenset[str]]:
    """One cell's predictions as arrays [S, n, …], and the utterances that it was tested on."""
    utterance, seed = part["utterance_id"].cat.codes.to_numpy(), part["seed"].to_numpy()
    order = np.lexsort((utterance, seed))
    seeds = len(np.unique(seed))
    tested = np.unique(utterance)
    if len(part) != seeds * len(tested) or not (utterance[order].reshape(seeds, -1) == tested).all():
        raise RunError(
            f"{path}: {cell!r} has {len(part)} predictions, but {seeds} seeds of {len(tested)} utterances need one each. The run"
            f" was not finished, or its files do not belong together. {_AGAIN}"
        )
    part = part.iloc[order]
    once = part.iloc[: len(tested)]

    def classes_of(column: str, frame: pd.DataFrame) -> NDArray[np.int64]:
        known = pd.Index(list(classes)).get_indexer(frame[column].cat.categories)
        found: NDArray[np.int64] = known[frame[column].cat.codes.to_numpy()].astype(np.int64)
        if (found < 0).any():
            raise RunError(
                f"{path}: {cell!r} has a {column} that is not among the classes {', '.join(classes)} of config.json. {_AGAIN}"
            )
        return found

    def values_of(kind: str, frame: pd.DataFrame) -> NDArray[np.float32]:
        found: NDArray[np.float32] = frame[[f"{kind}_{name}" for name in dimensions]].to_numpy(dtype=np.float32)
        if not np.isfinite(found).all():
            raise RunError(f"{path}: {cell!r} has {kind} values that are no numbers. {_AGAIN}")
        return found

    right = str(part["right"].iloc[0])
    sides = _SHUFFLED if right else _SHUFFLED[:1]
    shuffled: dict[str, NDArray[Any]]
    if dimensions:
        truth: NDArray[Any] = values_of("true", once)
        outputs = values_of("predicted", part)
        shuffled = {name: values_of(name, part).reshape(seeds, len(tested), -1) for name in sides}
    else:
        truth = classes_of("label", once)
        outputs = part[[f"p_{name}" for name in classes]].to_numpy(dtype=np.float32)
        shuffled = {name: classes_of(name, part).reshape(seeds, -1) for name in sides}
    predictions = CellPredictions(
        truth=truth,
        speakers=once["speaker"].astype(str).tolist(),
        folds=once["fold"].astype(str).tolist(),
        outputs=outputs.reshape(seeds, len(tested), -1),
        left_shuffled=shuffled["left_shuffled"],
        right_shuffled=shuffled.get("right_shuffled"),
        diagnostics=mean_diagnostics(rows),
        dimensions=tuple(dimensions),
    )
    return predictions, frozenset(once["utterance_id"].astype(str))


# ---------------------------------------------------------------------------------------------------------------------
# Comparing


def compare_runs(first: Run, second: Run) -> RunComparison:
    """Say what differs between two runs, and test every cell that both have: the second minus the first."""
    ours, theirs = ({score.cell: score for score in run.scores} for run in (first, second))
    compared, refusals, measure = [], [], first.measure
    for cell in (name for name in ours if name in theirs):
        reason = _refused(first, second, cell)
        if reason:
            refusals.append(Refusal(cell, reason))
            continue
        tallies = theirs[cell].tallies
        if not first.dimensions:
            order = [second.classes.index(name) for name in first.classes]
            tallies = tallies[:, :, order][:, :, :, order]
        differences = {
            name: paired_difference(tallies, ours[cell].tallies, metric) for name, metric in measure.metrics.items()
        }
        compared.append((ours[cell], theirs[cell], differences))
    adjusted = holm([differences[measure.key].p for _, _, differences in compared])
    return RunComparison(
        first=first.path,
        second=second.path,
        settings=tuple(_settings(first, second)),
        cells=tuple(CellComparison(*one, p_holm=p) for one, p in zip(compared, adjusted, strict=True)),
        refusals=tuple(refusals),
        only_first=tuple(name for name in ours if name not in theirs),
        only_second=tuple(name for name in theirs if name not in ours),
        cautions=tuple(_cautions(first, second)),
        measure=measure,
    )


def _refused(first: Run, second: Run, cell: str) -> str:
    """Why a cell of both runs cannot be compared; empty if it can."""
    corpora = [str(run.config.get("corpus", "")) for run in (first, second)]
    if corpora[0] != corpora[1]:
        return f"The corpora differ: {corpora[0]} and {corpora[1]}."
    if first.target != second.target:
        return f"The targets differ: {first.target} and {second.target}."
    if first.dimensions != second.dimensions:
        return f"The dimensions differ: {', '.join(first.dimensions)}; and {', '.join(second.dimensions)}."
    if set(first.classes) != set(second.classes):
        return f"The classes differ: {', '.join(first.classes)}; and {', '.join(second.classes)}."
    ours, theirs = first.tested[cell], second.tested[cell]
    if ours != theirs:
        parts = [
            f"{len(only)} only in the {which}, such as {min(only)}"
            for which, only in (("first", ours - theirs), ("second", theirs - ours))
            if only
        ]
        return (
            f"The test sets differ: {len(ours)} and {len(theirs)} utterances, {'; '.join(parts)}. Compare runs of one protocol and"
            " corpus, with the same recordings left out."
        )
    known: list[tuple[str, Mapping[str, Any], Mapping[str, Any]]] = [("speaker", first.speakers, second.speakers)]
    if first.dimensions:
        known.insert(0, ("value", first.values, second.values))
    else:
        known.insert(0, ("label", first.labels, second.labels))
    for what, one, other in known:
        changed = sorted(name for name in ours if one[name] != other[name])
        if changed:
            example = changed[0]
            return (
                f"The {what}s of {len(changed)} test utterances differ, such as {example}: {one[example]} and {other[example]}. The"
                " manifests are not the same."
            )
    return ""


def _settings(first: Run, second: Run) -> Iterator[Setting]:
    ours, theirs = (dict(_flat(run.config)) for run in (first, second))
    for name in sorted({*ours, *theirs}):
        if ours.get(name) != theirs.get(name):
            yield Setting(name, ours.get(name), theirs.get(name))
    options = [{cell["title"]: cell["options"] for cell in _cells(run)} for run in (first, second)]
    for title in sorted(set(options[0]) & set(options[1])):
        if options[0][title] != options[1][title]:
            yield Setting(f"cells.{title}.options", options[0][title], options[1][title])


def _cells(run: Run) -> Iterator[dict[str, Any]]:
    """Titles and options of a run's cells, from its rows, where the options are complete."""
    seen = set()
    for row in run.rows:
        if row.get("cell") not in seen:
            seen.add(row.get("cell"))
            yield {"title": row.get("cell"), "options": row.get("options")}


def _flat(content: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Settings as (name, value); paths are places, not settings."""
    for name, value in content.items():
        if not before and name in _NO_SETTINGS:
            continue
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{before}{name}.")
        elif name != "path":
            yield f"{before}{name}", value


def _cautions(first: Run, second: Run) -> Iterator[str]:
    configs = (first.config, second.config)
    if all("split_digest" in config for config in configs) and configs[0]["split_digest"] != configs[1]["split_digest"]:
        yield (
            f"The folds differ ({configs[0].get('protocol')} and {configs[1].get('protocol')}): each utterance was predicted by"
            " heads that were trained on other speakers, so a difference may be one of training material."
        )
    for config, which in zip(configs, ("first", "second"), strict=True):
        if config.get("speaker_independent") is False:
            yield f"The {which} run is speaker-dependent: it knew the voices that it was tested on."
    for run, which in ((first, "first"), (second, "second")):
        if run.random:
            yield f"RANDOM weights in the {which} run: {', '.join(run.random)}."
    if configs[0].get("seeds") != configs[1].get("seeds"):
        counts = [len(config.get("seeds") or ()) for config in configs]
        yield f"The numbers of seeds differ ({counts[0]} and {counts[1]}); each run's score is the mean over its own."
