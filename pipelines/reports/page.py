"""The report of a run: one HTML file that holds everything it shows and loads nothing.

What is promised:

* **One file, no network.** Style, script, data and figures are inside; the page's own content security policy forbids it to load
  anything, and to run any script but the one it was written with (named by its hash).
* **Names are text.** Corpus, encoder, class, speaker and fold names come from other people's files. They are escaped by the
  template (jinja2 with autoescape) and put into the page by the script as text, never as markup.
* **Readable without the script**, on paper, on a phone, in the dark, and by a screen reader: the table, the answers and the
  figures are in the file as such; the script sorts and filters the table and shows one cell at a time.
* **The same run gives the same bytes** (no dates, no random ids).

The table's colours are steps from pale to dark blue (in the dark the other way round), each with the text colour, black or white,
that is easier to read on it: a contrast of at least 4.5 (WCAG 2.2 AA). One hue from light to dark is told apart with every
colour blindness and in grey, and the number stands in every cell.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import pipelines
from pipelines.evaluation.measures import Measure
from pipelines.evaluation.statistics import Interval
from pipelines.files import write_atomically
from pipelines.fusion.catalogue import SINGLE
from pipelines.reports.html import as_json, render, static_text
from pipelines.reports.published import METRIC_NAMES, beside_run
from pipelines.reports.reproduce import ordered_sources
from pipelines.reports.run_data import CellData, RunData, in_units
from pipelines.studies.answers import p_text

if TYPE_CHECKING:
    from pipelines.reports.spaces import Pictures

__all__ = ["HEAT_STEPS", "build_page", "contrast", "heat_colours", "heat_css", "write_page"]

HEAT_STEPS = 12

_LIGHT = ("#f4f8fc", "#08306b")
_DARK = ("#172331", "#a9d4ff")

_SCORE_NAMES = {"uar": "UAR", "accuracy": "Accuracy", "macro_f1": "Macro-F1"}
_KINDS = {"ccc": "CCC", "pearson": "Pearson", "mae": "Absolute error"}

_MOST_ROWS = 40  # of comparisons under an answer; the CSV has all
_MOST_SPEAKERS = 200  # in the panel of a cell

_DIMENSIONS_NOTE = (
    "CCC: concordance correlation, population form; absolute errors on the corpus' own scale, the lower the better."
)

_LEGEND = (
    "† the score does not depend on one of the two inputs: shuffling it costs less than a point, not significantly."
    " * what shuffling an input costs is significant (shown for what an input is worth, and of every cell below)."
    " ↑ ↓ significantly better, worse than the better single representation. ‡ significantly better than {rung} on the same input."
    " (Paired tests over speakers, Holm-corrected over the table.)",
)

_VERDICTS = {"yes": "yes", "no": "no"}


def build_page(data: RunData, pictures: Pictures | None = None) -> str:
    """The report as HTML.

    Args:
        data: the run.
        pictures: of the embedding spaces and of fused points; None where they are not asked for.
    """
    from markupsafe import Markup

    config = data.config
    speakers, utterances = len(set(data.speakers)), len(data.utterance_ids)
    measure = data.measure
    values = [cell.score.value for cell in data.cells if math.isfinite(cell.score.value)] or [0.0]
    low, high = min(values), max(values)
    fused = any(score.right for score in data.scores)
    metrics = _metrics(measure, fused)
    unit = "per cent" if measure.factor == 100 else "between −1 and 1"
    kind_of_split = "speaker-independent" if config.get("speaker_independent", True) else "speaker-dependent"
    context: dict[str, Any] = {
        "version": config.get("hyfuse") or pipelines.__version__,
        "data": Markup(as_json(_payload(data, metrics))),
        "title": f"{config.get('corpus')}: {len(data.cells)} ways to recognise emotion compared",
        "measure": {"name": measure.name, "unit": measure.unit, "percent": " %" if measure.factor == 100 else ""},
        "subtitle": f"{utterances} utterances, {speakers} speakers, {_what(data)}; {config.get('protocol')},"
        f" {kind_of_split}, {len(config.get('folds', ()))} folds, {len(config.get('seeds', ()))} seeds; run {data.run.path.name}",
        "warnings": data.warnings,
        "sections": _sections(data, pictures),
        "answers": [_answer(answer, measure) for answer in data.evidence.answers],
        "by_dimension": [
            (name, [_answer(answer, measure.of(name)) for answer in answers])
            for name, answers in data.evidence.by_dimension.items()
        ],
        "remarks": [text for text in data.evidence.remarks if text.startswith("†")],
        "more_remarks": [text for text in data.evidence.remarks if not text.startswith("†")],
        "caveats": [text for text in data.evidence.caveats if text not in data.warnings],
        "metrics": metrics,
        "caption": f"{measure.name}, {unit} [95 % interval]; the stronger the colour, the higher.",
        "corner": data.grid.corner,
        "columns": data.grid.columns,
        "rows": [
            {
                "title": line.title,
                "cells": [None if index is None else _entry(data.cells[index], index, low, high) for index in line.cells],
            }
            for line in data.grid.rows
        ],
        "steps": HEAT_STEPS,
        "key_low": measure.text(low),
        "key_high": measure.text(high),
        "legend": [
            *(line.format(rung=measure.rung) for line in _LEGEND if fused),
            *([_DIMENSIONS_NOTE] if measure.dimensions else ()),
        ],
        **_ranking(data),
        "disks": [] if pictures is None else _disk_figures(pictures),
        "disk_note": "" if pictures is None else pictures.disk_note,
        "spaces": [] if pictures is None else _space_figures(pictures, data.group_kind),
        "group_kind": data.group_kind,
        "dimensions": data.run.dimensions,
        "sampled": f"{len(data.sample)} of {utterances}",
        "spaces_note": "They were not asked for." if pictures is None else pictures.space_note,
        "published": beside_run(data.run),
        "metric_names": METRIC_NAMES,
        "notes": data.notes,
        "commands": data.commands,
        "sources": [
            {**{"family": "", "weights_kind": "", "representation": "", "pool": "", "dim": ""}, **source,
             "encoder": name, "digest": str(source.get("store_digest", ""))[:12]}
            for name, source in ordered_sources(config).items()
        ],
        "folds": [
            {
                "name": fold.get("name", ""),
                "test": ", ".join(map(str, fold.get("test_speakers", ()))),
                "validation": ", ".join(map(str, fold.get("validation_speakers", ()))),
            }
            for fold in config.get("folds", ())
        ],
        "settings": _settings(config),
    }  # fmt: skip
    return render("page.html.jinja", context, style=static_text("page.css") + heat_css(), script=static_text("page.js"))


def write_page(data: RunData, path: Path, pictures: Pictures | None = None) -> None:
    """Write the report.

    Raises:
        StorageError: the disk is full or cannot be written.
    """
    write_atomically(path, build_page(data, pictures), option="--out")


def _sections(data: RunData, pictures: Pictures | None) -> list[tuple[str, str]]:
    sections = [("answers", "Answers")] if data.evidence.answers else []
    sections += [("table", "Table"), ("cell", "One cell"), ("ranking", "Ranking")]
    if pictures is not None and (pictures.disks or pictures.disk_note):
        sections.append(("disk", "Poincaré disk"))
    return [*sections, ("spaces", "Embedding spaces"), ("published", "Published"), ("provenance", "Provenance")]


def _number(value: float, digits: int = 5) -> float | None:
    """For JSON, which has no NaN."""
    return round(float(value), digits) if math.isfinite(value) else None


def _bounds(interval: Interval | None) -> list[float | None]:
    return [None, None] if interval is None else [_number(interval.low), _number(interval.high)]


def _what(data: RunData) -> str:
    """What was to be told."""
    return ", ".join(data.run.dimensions) if data.run.dimensions else f"{len(data.classes)} emotions"


def _metrics(measure: Measure, fused: bool) -> list[dict[str, Any]]:
    """What the table can show: key of the value, text, and how it is written."""

    def kind(key: str, text: str, *, signed: bool = False, interval: bool = True) -> dict[str, Any]:
        written = {"factor": measure.factor, "digits": measure.digits}
        return {"key": key, "text": text, "signed": signed, "interval": interval, **written}

    found = []
    for key in measure.metrics:
        if measure.dimensions:
            of, _, dimension = key.partition("_")
            among = ", mean over the dimensions" if len(measure.dimensions) > 1 else ""
            found.append(kind(key, f"{_KINDS[of]} of {dimension}" if dimension else f"{_KINDS[of]}{among}"))
        else:
            found.append(kind(key, _SCORE_NAMES[key]))
    if not fused:
        return found
    lost = f"{measure.name} lost when the {{}} input is shuffled"
    return [
        *found,
        kind("gain", f"{measure.name} above the better single representation", signed=True, interval=False),
        kind("left_drop", lost.format("left")),
        kind("right_drop", lost.format("right")),
    ]


def _interval(interval: Interval, measure: Measure) -> str:
    bounds = f"[{measure.text(interval.low)}, {measure.text(interval.high)}]".replace("-", "−")
    return "" if math.isnan(interval.low) else bounds


def _entry(cell: CellData, index: int, low: float, high: float) -> dict[str, Any]:
    score, measure = cell.score, cell.score.measure
    share = (score.value - low) / (high - low) if high > low and math.isfinite(score.value) else 0.0
    value = f"{measure.text(score.value)}{cell.marks}".replace("-", "−") if math.isfinite(score.value) else "–"
    interval = _interval(score.interval, measure)
    return {
        "index": index,
        "step": min(HEAT_STEPS - 1, int(share * HEAT_STEPS)),
        "value": value,
        "interval": interval,
        "label": f"{cell.title}: {measure.name} {value} {interval}",
    }


def _answer(answer: Any, measure: Measure) -> dict[str, Any]:
    return {
        "css": _VERDICTS.get(answer.verdict, "open"),
        "question": answer.question,
        # The sentence begins with the verdict.
        "verdict": answer.sentence.partition(":")[0],
        "sentence": answer.sentence.removeprefix(answer.sentence.partition(":")[0]),
        "most": _MOST_ROWS,
        "rows": [
            {
                "first": row.first,
                "second": row.second,
                "difference": in_units(row.difference, measure),
                "p": "–" if math.isnan(row.p_holm) else f"{row.p_holm:.3f}",
            }
            for row in answer.evidence
        ],
    }


def _ranking(data: RunData) -> dict[str, Any]:
    """Every cell with its interval on one scale."""
    measure = data.measure
    bounds = [
        value
        for score in data.scores
        for value in (score.value, score.interval.low, score.interval.high)
        if math.isfinite(value)
    ] or [0.0]
    low, high = math.floor(20 * min(bounds)) / 20, math.ceil(20 * max(bounds)) / 20
    span = (high - low) or 1.0
    lines = []
    for cell in sorted(data.cells, key=lambda cell: -cell.score.value if math.isfinite(cell.score.value) else 9.0):
        score, interval = cell.score, cell.score.interval
        known = math.isfinite(interval.low)
        lines.append(
            {
                "title": cell.title,
                "single": not score.right,
                "at": f"{100 * (score.value - low) / span:.1f}" if math.isfinite(score.value) else "0",
                "left": f"{100 * (interval.low - low) / span:.1f}" if known else "0",
                "width": f"{100 * (interval.high - interval.low) / span:.1f}" if known else "",
                "value": f"{measure.text(score.value)}{cell.marks}".replace("-", "−")
                + f" {_interval(interval, measure)}",
            }
        )
    ends = {"track_low": f"{measure.factor * low:.3g}", "track_high": f"{measure.factor * high:.3g}"}
    return {"ranking": lines, **{name: text.replace("-", "−") for name, text in ends.items()}}


def _payload(data: RunData, metrics: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the script shows, short: a big run has hundreds of cells."""
    singles = {score.left: score.value for score in data.scores if not score.right and score.fusion == SINGLE}
    measure = data.measure
    return {
        "classes": list(data.classes),
        "dimensions": list(data.run.dimensions),
        "truth": [[_number(value, 4) for value in values] for values in data.true_values],
        "sample": list(data.sample),
        "name": measure.name,
        "unit": measure.unit,
        "metrics": list(metrics),
        "steps": HEAT_STEPS,
        "first": data.first,
        "cells": [_cell(cell, singles) for cell in data.cells],
    }


def _cell(cell: CellData, singles: Mapping[str, float]) -> dict[str, Any]:
    score = cell.score
    alone = [singles[name] for name in (score.left, score.right) if name in singles]
    measure = score.measure
    gain = score.value - max(alone) if score.right and len(alone) == 2 else math.nan
    speakers = sorted(cell.speaker_scores, key=lambda name: (math.isnan(of := cell.speaker_scores[name]), of, name))
    facts = [[f"{measure.name}, std over seeds", measure.text(score.seed_std)]] if score.seeds > 1 else []
    if math.isfinite(score.ece):
        facts.append(["Calibration (ECE)", f"{score.ece:.3f}"])
    return {
        "title": cell.title,
        "left": score.left,
        "right": score.right,
        "marks": cell.marks,
        "remarks": list(cell.remarks),
        "n": f"{score.utterances} utterances, {len(score.speakers)} speakers, {score.folds} folds × {score.seeds} seeds",
        "values": {
            **{name: _number(estimate.value) for name, estimate in score.estimates.items()},
            "gain": _number(gain),
            "left_drop": _number(score.left_drop) if score.right else None,
            "right_drop": _number(score.right_drop),
        },
        "intervals": {
            **{name: _bounds(estimate.interval) for name, estimate in score.estimates.items()},
            "left_drop": _bounds(score.left_drop_interval if score.right else None),
            "right_drop": _bounds(score.right_drop_interval),
        },
        "left_note": _drop_note(score.left_drop_interval, score.left_drop_p, cell.drops.left_p_holm, measure),
        "right_note": _drop_note(score.right_drop_interval, score.right_drop_p, cell.drops.right_p_holm, measure),
        "stars": {"left_drop": cell.drops.left_mark, "right_drop": cell.drops.right_mark},
        "facts": facts,
        "recalls": [_number(value) for value in cell.recalls],
        "recall_intervals": [_bounds(interval) for interval in cell.recall_intervals],
        "drops": {name: [_number(value) for value in score.drops[f"ccc_{name}"]] for name in score.dimensions if score.right},
        "predicted": [[_number(value, 3) for value in values] for values in cell.predicted],
        "supports": [_number(value, 1) for value in cell.supports],
        "confusion": [[_number(value, 2) for value in row] for row in cell.confusion],
        "speakers": [
            [name, _number(cell.speaker_scores[name], 3), cell.speaker_supports[name]] for name in speakers[:_MOST_SPEAKERS]
        ],
        "curves": {
            name: {part: [_number(value, 4) for value in getattr(curve, part)] for part in ("mean", "low", "high")}
            for name, curve in cell.curves.items()
            if np.isfinite(curve.mean).any()
        },
        "layers": [[side, [[name, _number(value, 4)] for name, value in weights.items()]]
                   for side, weights in cell.layer_weights.items()],
        "diagnostics": [[name, _number(value)] for name, value in score.diagnostics.items() if "_layer_" not in name],
    }  # fmt: skip


def _drop_note(interval: Interval | None, p: float, p_holm: float, measure: Measure) -> str:
    """Interval and p of what shuffling costs, as changes: the cost with its sign turned."""
    if interval is None or math.isnan(interval.low):
        return ""
    chance = "" if math.isnan(p) else f", {p_text(p)}"
    corrected = "" if math.isnan(p_holm) else f"; over the table {p_text(p_holm)}"
    return f"[{measure.change(-interval.high)}, {measure.change(-interval.low)}]{chance}{corrected}"


def _settings(config: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Everything else that the run was made with, flat."""
    found: list[tuple[str, str]] = []
    for name, value in config.items():
        if name in {"folds", "sources", "cells", "notes", "warnings"}:
            continue
        if isinstance(value, Mapping):
            found += [(f"{name}: {key}", _plain(entry)) for key, entry in value.items()]
        else:
            found.append((name, _plain(value)))
    return [(name.replace("_", " "), value) for name, value in found]


def _plain(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _space_figures(pictures: Pictures, kind: str) -> list[dict[str, Any]]:
    from markupsafe import Markup

    from pipelines.reports.plots import inline_svg, plot_space

    figures = []
    for place, space in enumerate(pictures.spaces):
        for by in ("emotion", "speaker"):
            title = f"{space.encoder}, {space.representation}, by {kind if by == 'emotion' else by}"
            svg = inline_svg(
                plot_space(space, by=by), prefix=f"space-{place}-{by}", title=title, description=space.description
            )
            figures.append({"svg": Markup(svg), "caption": f"{title}. {space.description}", "by": by})
    return figures


def _disk_figures(pictures: Pictures) -> list[dict[str, Any]]:
    from markupsafe import Markup

    from pipelines.reports.plots import inline_svg, plot_disk

    return [
        {
            "svg": Markup(
                inline_svg(plot_disk(disk), prefix=f"disk-{place}", title=disk.title, description=disk.description)
            ),
            "caption": f"{disk.title}. {disk.description}",
        }
        for place, disk in enumerate(pictures.disks)
    ]


# ------------------------------------------------------------------------------------------------ colours


def _linear(colour: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    channels = np.array([int(colour[at : at + 2], 16) for at in (1, 3, 5)]) / 255
    return np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)


def contrast(first: str, second: str) -> float:
    """Contrast ratio of two colours ``#rrggbb``, from 1 to 21 (WCAG 2.2, relative luminance)."""
    weights = np.array([0.2126, 0.7152, 0.0722])
    bright, dark = sorted((float(_linear(colour) @ weights) for colour in (first, second)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


def heat_colours(theme: str) -> list[tuple[str, str]]:
    """Background and text colour of each step of the table, ``light`` or ``dark``, from the lowest to the highest value."""
    ends = [
        np.array([int(colour[at : at + 2], 16) for at in (1, 3, 5)])
        for colour in (_LIGHT if theme == "light" else _DARK)
    ]
    steps = []
    for step in range(HEAT_STEPS):
        share = step / (HEAT_STEPS - 1)
        mixed = (1 - share) * ends[0] + share * ends[1]
        background = "#" + "".join(f"{round(channel):02x}" for channel in mixed)
        steps.append((background, max(("#000000", "#ffffff"), key=lambda text: contrast(background, text))))
    return steps


def heat_css() -> str:
    """Rules for the classes ``h0``, ``h1``, … of the steps, and ``hnone`` for no number, in both themes."""

    def rules(theme: str) -> str:
        return "".join(
            f".h{step}{{background:{background};color:{text}}}"
            for step, (background, text) in enumerate(heat_colours(theme))
        )

    none = ".hnone{background:none;color:var(--soft)}"
    return f"\n{none}{rules('light')}\n@media screen and (prefers-color-scheme: dark){{{rules('dark')}}}\n"
