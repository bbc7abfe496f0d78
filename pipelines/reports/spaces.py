"""Two-dimensional views of what the heads work on: the embedding spaces, and fused points in the Poincaré ball.

*Embedding spaces.* Every feature of a representation is standardised over the tested utterances, then projected on the first two
principal components. No label enters; how much of the variance is in view is said. A weighted representation is shown as the sum
of its standardised layers with the weights that the heads learned on average.

*Poincaré disk.* Fused points of heads of one cell on the speakers they were tested on: one disk per fold, since every head has a
ball of its own. The points lie in a ball of over a hundred dimensions; a disk has two. They are taken to the tangent space at the
origin (log0), where the two directions of greatest variance are found, without labels, and the vectors are projected on these two
without moving the origin. Both ways of drawing a vector u by its projection w are tangent PCA (Fletcher et al. 2004), based at the
origin rather than at the mean, so that the radius keeps its meaning:

* ``radius="kept"``: exp0(|u| w / |w|). The distance from the origin is exact, the angle is that of the two directions. What a
  point has outside the two directions only scatters its angle.
* ``radius="projected"``: exp0(w). A point is drawn only as far out as the two directions carry it.

The drawn points are in the unit disk (coordinates times sqrt(c)), so the rim is the rim whatever the curvature is.

Where heads come from: a comparison keeps predictions, not hundreds of heads that nobody asks for. The heads of one cell under its
first seed, for three folds at most, are trained again from the stores (a second or so at Emo-DB size). The same inputs and seeds
give the very heads of the run; that they score as the run says is checked, and where they do not (another version, another machine)
the page says so.

Only a sample of at most :data:`MOST_POINTS` points is drawn, the same share of every class.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import ConfigError, HyfuseError, ProvenanceError, RunError, unknown_name
from pipelines.evaluation.results import CellScore
from pipelines.locations import Location, as_location
from pipelines.reports.reproduce import ordered_sources
from pipelines.reports.run_data import RunData
from pipelines.store.embeddings import open_store, store_path
from pipelines.training.data import WEIGHTED, Source, read_source

if TYPE_CHECKING:
    from torch import Tensor

    from pipelines.training.grid import Cell

__all__ = [
    "MOST_POINTS",
    "Disk",
    "Pictures",
    "Space",
    "ball_to_disk",
    "project",
    "read_disks",
    "read_pictures",
    "read_spaces",
]

MOST_POINTS = 1200
"""Points per figure; more only hide each other, and an SVG has a line for each."""

_MOST_FITTED = 10_000  # rows that principal components are computed from
_MOST_FOLDS = 3  # whose disks are drawn
_RADII = {
    "kept": "Distance from the centre as it is in the ball.",
    "projected": "Distance from the centre as far as the two directions carry it.",
}


@dataclass(frozen=True)
class Space:
    """An embedding space in two dimensions.

    Attributes:
        encoder: name.
        representation: its representation.
        points: float64 [n, 2].
        explained: share of the variance along each axis.
        labels: int64 [n], positions in ``classes``.
        classes: names.
        speaker_index: int64 [n], positions in ``speakers``.
        speakers: names.
        description: what is shown, in a sentence.
    """

    encoder: str
    representation: str
    points: NDArray[np.float64] = field(repr=False)
    explained: tuple[float, float]
    labels: NDArray[np.int64] = field(repr=False)
    classes: tuple[str, ...]
    speaker_index: NDArray[np.int64] = field(repr=False)
    speakers: tuple[str, ...]
    description: str


@dataclass(frozen=True)
class Disk:
    """Fused points of one head.

    Attributes:
        title: cell, fold and how the radius is shown.
        fold: name.
        points: float64 [n, 2], inside the unit circle.
        labels: int64 [n].
        classes: names.
        description: what is shown.
    """

    title: str
    fold: str
    points: NDArray[np.float64] = field(repr=False)
    labels: NDArray[np.int64] = field(repr=False)
    classes: tuple[str, ...]
    description: str


@dataclass(frozen=True)
class Pictures:
    """Everything that needs stores or heads.

    Attributes:
        spaces: embedding spaces.
        space_note: what they show, or why they are not there.
        disks: fused points.
        disk_note: what they show, or why they are not there; empty where the run has no head in a ball.
    """

    spaces: tuple[Space, ...] = ()
    space_note: str = ""
    disks: tuple[Disk, ...] = ()
    disk_note: str = ""


def project(features: NDArray[np.floating[Any]]) -> tuple[NDArray[np.float64], tuple[float, float]]:
    """Standardise features and project them on their first two principal components.

    The sign of a component is such that its largest loading is positive: the same picture on every machine.

    Args:
        features: [n, D], at least two rows.

    Returns:
        Points [n, 2], and the share of the variance along each axis (of the rows that were fitted on, at most 10,000).
    """
    matrix = np.asarray(features, dtype=np.float64)
    std = matrix.std(axis=0)
    mean = matrix.mean(axis=0)
    flat = std <= 1e-6 * np.abs(mean)
    matrix = (matrix - mean) / np.where(flat, 1.0, std)
    matrix[:, flat] = 0.0
    fitted = matrix[:: max(1, len(matrix) // _MOST_FITTED)]
    covariance = fitted.T @ fitted / len(fitted)
    values, vectors = np.linalg.eigh(covariance)
    axes = vectors[:, ::-1][:, :2]
    axes = axes * np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])])
    total = float(values.sum()) or 1.0
    shares = [float(max(value, 0.0)) / total for value in values[::-1][:2]]
    if axes.shape[1] == 1:  # a representation of one number
        axes, shares = np.hstack([axes, np.zeros_like(axes)]), [*shares, 0.0]
    return matrix @ axes, (shares[0], shares[1])


def ball_to_disk(
    points: NDArray[np.floating[Any]], c: float, *, radius: str = "kept"
) -> tuple[NDArray[np.float64], float]:
    """Project points of a ball of curvature -c to the unit disk.

    Args:
        points: [n, D], with sqrt(c) |y| < 1.
        c: minus the curvature.
        radius: ``kept`` or ``projected``; see the module.

    Returns:
        Points [n, 2] with lengths below 1, and the share of the tangent vectors' squared length that lies in the two directions.

    Raises:
        ConfigError: another ``radius``.
    """
    if radius not in ("kept", "projected"):
        raise ConfigError(f"radius must be 'kept' or 'projected', not {radius!r}.")
    scaled = np.asarray(points, dtype=np.float64) * np.sqrt(c)
    norm = np.linalg.norm(scaled, axis=1, keepdims=True)
    reach = np.arctanh(np.minimum(norm, 1.0 - 1e-9))
    tangent = scaled * np.divide(reach, norm, out=np.ones_like(norm), where=norm > 0)  # log0, in units of sqrt(c)
    _, _, directions = np.linalg.svd(tangent - tangent.mean(axis=0), full_matrices=False)
    axes = directions[:2].T
    axes = axes * np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])])
    if axes.shape[1] < 2:
        axes = np.hstack([axes, np.zeros((len(axes), 2 - axes.shape[1]))])
    flat = tangent @ axes
    length = np.linalg.norm(flat, axis=1, keepdims=True)
    whole = float((tangent**2).sum())
    share = float((flat**2).sum()) / whole if whole else 1.0
    direction = np.divide(flat, length, out=np.zeros_like(flat), where=length > 0)
    return direction * np.tanh(reach if radius == "kept" else length), share


def _sample(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Positions of at most ``MOST_POINTS`` rows, the same share of every class; the same for the same labels."""
    if len(labels) <= MOST_POINTS:
        return np.arange(len(labels))
    step = len(labels) / MOST_POINTS
    by_class = np.argsort(labels, kind="stable")
    return np.sort(by_class[np.floor(np.arange(MOST_POINTS) * step).astype(np.int64)])


def _source_of(config: Mapping[str, Any], encoder: str, cache_dir: Location | None) -> Source:
    """A source as the run describes it, from where it was or from another cache folder."""
    given = dict(config["sources"][encoder])
    path = as_location(str(given["path"]))
    if cache_dir is not None:
        path = store_path(cache_dir, str(config["corpus"]), encoder, str(config.get("condition", "clean")))
    known = {name: value for name, value in given.items() if name in Source.__dataclass_fields__}
    return Source(**{**known, "path": path, "layers": tuple(given.get("layers", ()))})


def read_spaces(data: RunData, *, cache_dir: Location | None = None) -> list[Space]:
    """Project every representation of a run.

    Args:
        data: the run.
        cache_dir: folder of the stores; where the run found them unless given.

    Raises:
        StoreError: a store is absent, unfinished or damaged, or is not the one of the run.
        UtteranceError: it lacks utterances of the run.
    """
    config = data.config
    speakers = tuple(sorted(set(data.speakers)))
    place = {name: index for index, name in enumerate(speakers)}
    index = np.array([place[name] for name in data.speakers], dtype=np.int64)
    labels = data.groups
    drawn = _sample(labels)
    of_heads = _mean_layer_weights(data)
    found = []
    for encoder in ordered_sources(config):
        source = _source_of(config, encoder, cache_dir)
        store = open_store(source.path)
        if store.provenance.identity_digest() != source.store_digest:
            raise ProvenanceError(
                f"{source.path} is not the store that the run was trained on: it was made anew since. Run the same"
                " `hyfuse compare` again, or name the folder of the old store with --cache-dir."
            )
        features = read_source(source, data.utterance_ids)
        if source.layers:
            weights = of_heads.get(encoder, np.full(len(source.layers), 1 / len(source.layers)))
            flat = features.std(axis=0)
            features = ((features - features.mean(axis=0)) / np.where(flat > 0, flat, 1.0) * weights[:, None]).sum(
                axis=1
            )
        points, explained = project(features)
        what = (
            f"{source.representation}, {source.pool}"
            if source.representation != WEIGHTED
            else f"weighted layers, {source.pool}"
        )
        sampled = f"; {len(drawn)} of {len(labels)} utterances drawn" if len(drawn) < len(labels) else ""
        found.append(
            Space(
                encoder=encoder
                if source.weights_kind == "pretrained"
                else f"{encoder} ({source.weights_kind} weights)",
                representation=what,
                points=points[drawn],
                explained=explained,
                labels=labels[drawn],
                classes=data.group_names,
                speaker_index=index[drawn],
                speakers=speakers,
                description=f"Two principal components of {source.dim} standardised features, with"
                f" {100 * sum(explained):.0f} % of their variance{sampled}.",
            )
        )
    return found


def _mean_layer_weights(data: RunData) -> dict[str, NDArray[np.float64]]:
    """Encoder to weight per layer, mean over the cells that use it."""
    found: dict[str, list[list[float]]] = {}
    for cell in data.cells:
        for side, weights in cell.layer_weights.items():
            found.setdefault(getattr(cell.score, side), []).append(list(weights.values()))
    return {name: np.asarray(weights).mean(axis=0) for name, weights in found.items()}


def read_pictures(data: RunData, *, cache_dir: Location | None = None, disk: str = "") -> Pictures:
    """Everything that needs stores or heads; what cannot be made is left out, and the note says why and what would help.

    Args:
        data: the run.
        cache_dir: folder of the stores; where the run found them unless given.
        disk: title of the cell whose points are shown; the best one with points in a ball unless given.

    Raises:
        UnknownNameError: no such cell, or none with points in a ball.
    """
    try:
        spaces: Sequence[Space] = read_spaces(data, cache_dir=cache_dir)
        space_note = (
            "Utterances in the space of every representation, projected on two directions chosen without labels. What is apart"
            " here is easy to tell apart; what is not may still be, in the other directions. Clusters by speaker warn of a"
            " representation that knows the voice better than the emotion."
        )
    except HyfuseError as mistake:
        spaces, space_note = (), f"Not shown, since the stores cannot be read. {mistake}"
    candidates = _ball_cells(data)
    if disk and disk not in [data.cells[index].title for index in candidates]:
        raise unknown_name(
            "cell with points in a ball", disk, [data.cells[index].title for index in candidates],
            hint="Name one of them with --disk, or leave it out.",
        )  # fmt: skip
    if not candidates:
        return Pictures(tuple(spaces), space_note)
    chosen = next(index for index in candidates if not disk or data.cells[index].title == disk)
    try:
        disks, disk_note = read_disks(data, chosen, cache_dir=cache_dir)
    except HyfuseError as mistake:
        disks, disk_note = (
            [],
            f"Not shown, since the heads of {data.cells[chosen].title} cannot be made again. {mistake}",
        )
    return Pictures(tuple(spaces), space_note, tuple(disks), disk_note)


def _ball_cells(data: RunData) -> list[int]:
    """Cells whose heads fuse in the ball, best first."""
    from pipelines.fusion.catalogue import FUSIONS

    in_ball = {name for name, spec in FUSIONS.items() if "curvature" in spec.options}
    return sorted(
        (index for index, cell in enumerate(data.cells) if cell.score.fusion in in_ball),
        key=lambda index: -data.cells[index].score.value,
    )


def read_disks(data: RunData, index: int, *, cache_dir: Location | None = None) -> tuple[list[Disk], str]:
    """Train the heads of a cell again, under its first seed, and project their fused points.

    Args:
        data: the run.
        index: position of the cell.
        cache_dir: folder of the stores and the manifest; where the run found them unless given.

    Returns:
        Two disks per fold (radius kept and projected), of at most three folds, and what they show, in words.

    Raises:
        HyfuseError: the manifest or a store is gone or another one.
    """
    from dataclasses import replace

    from pipelines.corpora.prepare import recall
    from pipelines.studies.pairs import ComparisonConfig, prepare, train_config
    from pipelines.training.grid import make_job, run_jobs
    from pipelines.training.trainer import TrainConfig

    config, score = data.config, data.cells[index].score
    if cache_dir is None:
        cache_dir = as_location(str(config["sources"][score.left]["path"])).parent.parent.parent
    seed = int(min(config["seeds"]))
    hyper_parameters = dict(config["hyper_parameters"])
    learned: dict[str, Any] = {"classes": tuple(config["classes"])}
    if data.run.dimensions:
        learned = {"target": "dimensions", "dimensions": data.run.dimensions}
    asked = ComparisonConfig(
        **learned,
        labels=str(config.get("labels", "hard")),
        protocol=str(config["protocol"]),
        seeds=1,
        pool=str(config["pool"]),
        representations={name: str(config["sources"][name]["representation"]) for name in (score.left, score.right)},
        condition=str(config["condition"]),
        selection=str(hyper_parameters["selection"]),
        train=TrainConfig.from_mapping(hyper_parameters),
    )
    chosen = _made_with(data, score, seed)
    cells = [cell for cell, _ in chosen.values()]
    dataset, split = prepare(recall(cache_dir, str(config["corpus"])), cells[:1], config=asked, cache_dir=cache_dir)
    results: list[Any] = []
    for fold in split.folds[:_MOST_FOLDS]:
        cell, settings = chosen[fold.name]
        train = train_config(asked, split) if settings is None else TrainConfig.from_mapping(settings)
        job = make_job(dataset, split, cell, seeds=[seed], config=train)
        job = replace(job, tasks=tuple(task for task in job.tasks if task.fold == fold.name))
        results += run_jobs([job])
    job = results[0].job
    inputs = [_numbers(source, job.utterance_ids) for source in (job.left, job.right) if source is not None]
    same = all(_same_scores(data, index, result) for result in results)
    group_of = dict(zip(data.utterance_ids, data.groups.tolist(), strict=True))
    disks = []
    for job, head in ((result.job, head) for result in results for head in result.heads):
        fused, c = fused_points(job, head, inputs)
        labels = np.array([group_of[job.utterance_ids[row]] for row in head.task.test], dtype=np.int64)
        drawn = _sample(labels)
        norms = np.sqrt(c) * np.linalg.norm(fused, axis=1)
        ball = (
            f"{len(drawn)} test utterances of speakers the head never heard; ball of {fused.shape[1]} dimensions, c = {c:.3g};"
            f" mean √c·|p| {norms.mean():.2f} ({norms.min():.2f} to {norms.max():.2f})"
        )
        for radius, said in _RADII.items():
            points, share = ball_to_disk(fused, c, radius=radius)
            disks.append(
                Disk(
                    title=f"{data.cells[index].title}, fold {head.task.fold}, radius {radius}",
                    fold=f"{head.task.fold}-{radius}",
                    points=points[drawn],
                    labels=labels[drawn],
                    classes=data.group_names,
                    description=f"{ball}; {100 * share:.0f} % of the squared tangent length lies in the two directions drawn."
                    f" {said}",
                )
            )
    note = (
        f"Where the heads of {data.cells[index].title} (seed {seed}) put the utterances they were tested on, by"
        f" {data.group_kind}. The rim is"
        " infinitely far away; dashed circles are at hyperbolic distance 1, 2 and 3 from the centre. Every head has a ball of its"
        " own, so disks of different folds are turned and mirrored against each other. The two directions drawn are those of"
        " greatest variance in the tangent space at the origin, found without labels."
    )
    return disks, note if same else (
        f"{note} These heads were trained again for this page and do NOT score exactly as those of the run did (another version of"
        " the code or of a library, or another kind of machine)."
    )


def _made_with(data: RunData, score: CellScore, seed: int) -> dict[str, tuple[Cell, Mapping[str, Any] | None]]:
    """Fold to the cell and the settings that its head was trained with, from the result rows: a tuned run has others per fold."""
    from pipelines.fusion.catalogue import applicable_options
    from pipelines.training.grid import Cell

    found: dict[str, tuple[Cell, Mapping[str, Any] | None]] = {}
    for row in data.run.rows:
        if row["cell"] == score.cell and row["seed"] == seed:
            options = applicable_options(score.fusion, row["options"])
            cell = Cell(score.left, score.right, score.fusion, options)
            found[str(row["fold"])] = cell, row.get("hyper_parameters")
    if not found:
        raise RunError(
            f"results.jsonl has no row of the cell {score.cell!r} under seed {seed}. Run the same command again."
        )
    return found


def _numbers(source: Source, utterance_ids: Sequence[str]) -> Tensor:
    import torch

    return torch.from_numpy(read_source(source, utterance_ids))


def _same_scores(data: RunData, index: int, result: Any) -> bool:
    """Whether heads that were trained again score exactly as those of the run."""
    from pipelines.evaluation.statistics import score, speaker_confusions, speaker_sums

    title, measure = data.cells[index].title, data.measure
    of_run = {(row["fold"], row["seed"]): row["metrics"][measure.key] for row in data.run.rows if row["cell"] == title}
    for head in result.heads:
        rows, together = head.task.test, [""] * len(head.task.test)
        if data.run.dimensions:
            tallies = speaker_sums(result.job.values[rows], head.test_outputs[None], together)
        else:
            predicted = head.test_outputs.argmax(axis=1)[None]
            tallies = speaker_confusions(result.job.labels[rows], predicted, together, num_classes=len(data.classes))
        before = of_run.get((head.task.fold, head.task.seed))
        if before is None or not abs(score(tallies, measure.metric) - before) <= 1e-9:
            return False
    return True


def fused_points(job: Any, head: Any, inputs: Sequence[Tensor]) -> tuple[NDArray[np.float64], float]:
    """The points of the ball that a trained head fuses its test utterances to, read off where they enter its output layer.

    Args:
        job: the job of the head (:class:`pipelines.training.grid.Job`).
        head: what training gave (:class:`pipelines.training.trainer.HeadResult`).
        inputs: embeddings of all utterances of the job, left and right, [N, D] or [N, R, D].

    Returns:
        Points [m, D] of the m test utterances, and c.
    """
    import torch

    from pipelines.fusion import poincare
    from pipelines.fusion.catalogue import build_head
    from pipelines.training.layers import LayerMix

    config = job.config
    rows = torch.from_numpy(head.task.test)
    sides: list[Tensor] = []
    parameters = dict(head.parameters)
    for name, matrix, scaler in zip(("left", "right"), inputs, (head.left_scaler, head.right_scaler), strict=True):
        scores = parameters.pop(f"{name}_mix.scores", None)
        if scores is None:
            sides.append(((matrix[rows] - scaler.mean) / scaler.std).unsqueeze(0))  # [1, m, D]
            continue
        mix = LayerMix(matrix.shape[1], head_count=1)
        mix.load_state_dict({"scores": scores.unsqueeze(0)})
        with torch.no_grad():
            sides.append(mix(matrix, rows[None], scaler.mean[None], scaler.std.reciprocal()[None]))
    network = build_head(
        job.cell.fusion,
        left_dim=sides[0].shape[-1],
        right_dim=sides[1].shape[-1],
        num_classes=len(job.classes) or len(job.dimensions),
        head_seeds=[0],
        hidden_dim=config.hidden_dim,
        options=dict(job.description["options"]),
    )
    network.load_state_dict({name: tensor.unsqueeze(0) for name, tensor in parameters.items()})
    network.eval()
    caught: list[Tensor] = []
    output: Any = network.get_submodule("output")
    # The output layer gets points ("mlr") or their logarithms, scaled ("dense").
    watched: Any = output if output.classifier == "mlr" else output.dense
    handle = watched.register_forward_pre_hook(lambda module, given: caught.append(given[0]))
    try:
        with torch.no_grad():
            network(*sides)
            curvature: Any = network.get_submodule("curvature")(len(rows))
    finally:
        handle.remove()
    c = float(curvature.reshape(-1)[0]) if isinstance(curvature, torch.Tensor) else float(curvature)
    points = caught[0] if output.classifier == "mlr" else poincare.exp0(caught[0] / output.scale, c)
    return points[0].double().numpy(), c
