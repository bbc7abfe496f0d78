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

import base64
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import pipelines
from pipelines.evaluation.statistics import Interval
from pipelines.files import write_atomically
from pipelines.reports.reproduce import ordered_sources
from pipelines.reports.run_data import CellData, RunData, in_points

if TYPE_CHECKING:
    from markupsafe import Markup

    from pipelines.reports.spaces import Pictures

__all__ = ["HEAT_STEPS", "build_page", "contrast", "heat_colours", "write_page"]

HEAT_STEPS = 12

_LIGHT = ("#f4f8fc", "#08306b")
_DARK = ("#172331", "#a9d4ff")

_METRICS = (
    {"key": "uar", "text": "UAR", "signed": False, "interval": True},
    {"key": "accuracy", "text": "Accuracy", "signed": False, "interval": True},
    {"key": "macro_f1", "text": "Macro-F1", "signed": False, "interval": True},
    {"key": "gain", "text": "UAR above the better single representation", "signed": True, "interval": False},
    {"key": "left_drop", "text": "UAR lost when the left input is shuffled", "signed": False, "interval": True},
    {"key": "right_drop", "text": "UAR lost when the right input is shuffled", "signed": False, "interval": True},
)

_MOST_ROWS = 40  # of comparisons under an answer; the CSV has all
_MOST_SPEAKERS = 200  # in the panel of a cell

_LEGEND = (
    "† the score does not depend on one of the two inputs: shuffling it costs less than a point, not significantly."
    " ↑ ↓ significantly better, worse than the better single representation. ‡ significantly better than logistic regression on the"
    " same input."
    " (Paired tests over speakers, Holm-corrected over the table.)",
)

_VERDICTS = {"yes": "yes", "no": "no"}


def build_page(data: RunData, pictures: Pictures | None = None) -> str:
    """The report as HTML.

    Args:
        data: the run.
        pictures: of the embedding spaces and of fused points; None where they are not asked for.
    """
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=False)
    environment.filters["code"] = _code
    template = environment.from_string(_static("page.html.jinja"))
    script = _static("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    config = data.config
    speakers, utterances = len(set(data.speakers)), len(data.utterance_ids)
    values = [cell.score.uar for cell in data.cells]
    low, high = min(values), max(values)
    fused = any(score.right for score in data.scores)
    metrics = [kind for kind in _METRICS if fused or kind["key"] in ("uar", "accuracy", "macro_f1")]
    kind_of_split = "speaker-independent" if config.get("speaker_independent", True) else "speaker-dependent"
    context: dict[str, Any] = {
        "version": config.get("hyfuse") or pipelines.__version__,
        "script_hash": f"sha256-{digest}",
        "style": Markup(_static("page.css") + _heat_css()),
        "script": Markup(script),
        "data": Markup(_json(_payload(data, metrics))),
        "title": f"{config.get('corpus')}: {len(data.cells)} ways to recognise emotion compared",
        "subtitle": f"{utterances} utterances, {speakers} speakers, {len(data.classes)} emotions; {config.get('protocol')},"
        f" {kind_of_split}, {len(config.get('folds', ()))} folds, {len(config.get('seeds', ()))} seeds; run {data.run.path.name}",
        "warnings": data.warnings,
        "sections": _sections(data, pictures),
        "answers": [_answer(answer) for answer in data.evidence.answers],
        "remarks": [text for text in data.evidence.remarks if text.startswith("†")],
        "more_remarks": [text for text in data.evidence.remarks if not text.startswith("†")],
        "caveats": [text for text in data.evidence.caveats if text not in data.warnings],
        "metrics": metrics,
        "caption": "UAR, per cent [95 % interval]; the stronger the colour, the higher.",
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
        "key_low": f"{100 * low:.1f}",
        "key_high": f"{100 * high:.1f}",
        "legend": _LEGEND if fused else (),
        **_ranking(data),
        "disks": [] if pictures is None else _disk_figures(pictures),
        "disk_note": "" if pictures is None else pictures.disk_note,
        "spaces": [] if pictures is None else _space_figures(pictures),
        "spaces_note": "They were not asked for." if pictures is None else pictures.space_note,
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
    return template.render(context)


def write_page(data: RunData, path: Path, pictures: Pictures | None = None) -> None:
    """Write the report.

    Raises:
        StorageError: the disk is full or cannot be written.
    """
    write_atomically(path, build_page(data, pictures), option="--out")


@cache
def _static(name: str) -> str:
    return files("pipelines.reports").joinpath("static", name).read_text(encoding="utf-8")


def _json(value: object) -> str:
    """JSON that can stand in a ``<script>`` element: no letter in it can end the element or begin a comment."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for letter in "<>&\u2028\u2029":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return text


def _code(text: str) -> Markup:
    """A sentence with what stands between backticks as code; everything is escaped."""
    from markupsafe import Markup, escape

    parts = [escape(part) for part in text.split("`")]
    if len(parts) % 2 == 0:  # a backtick in somebody's name
        return escape(text)
    return Markup("").join(Markup(f"<code>{part}</code>") if place % 2 else part for place, part in enumerate(parts))


def _sections(data: RunData, pictures: Pictures | None) -> list[tuple[str, str]]:
    sections = [("answers", "Answers")] if data.evidence.answers else []
    sections += [("table", "Table"), ("cell", "One cell"), ("ranking", "Ranking")]
    if pictures is not None and (pictures.disks or pictures.disk_note):
        sections.append(("disk", "Poincaré disk"))
    return [*sections, ("spaces", "Embedding spaces"), ("provenance", "Provenance")]


def _number(value: float, digits: int = 5) -> float | None:
    """For JSON, which has no NaN."""
    return round(float(value), digits) if math.isfinite(value) else None


def _bounds(interval: Interval | None) -> list[float | None]:
    return [None, None] if interval is None else [_number(interval.low), _number(interval.high)]


def _interval(interval: Interval) -> str:
    return "" if math.isnan(interval.low) else f"[{100 * interval.low:.1f}, {100 * interval.high:.1f}]"


def _entry(cell: CellData, index: int, low: float, high: float) -> dict[str, Any]:
    share = (cell.score.uar - low) / (high - low) if high > low else 0.0
    value, interval = f"{100 * cell.score.uar:.1f}{cell.marks}", _interval(cell.score.uar_interval)
    return {
        "index": index,
        "step": min(HEAT_STEPS - 1, int(share * HEAT_STEPS)),
        "value": value,
        "interval": interval,
        "label": f"{cell.title}: UAR {value} {interval}",
    }


def _answer(answer: Any) -> dict[str, Any]:
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
                "difference": in_points(row.difference),
                "p": "–" if math.isnan(row.p_holm) else f"{row.p_holm:.3f}",
            }
            for row in answer.evidence
        ],
    }


def _ranking(data: RunData) -> dict[str, Any]:
    """Every cell with its interval on one scale."""
    bounds = [
        value
        for score in data.scores
        for value in (score.uar, score.uar_interval.low, score.uar_interval.high)
        if math.isfinite(value)
    ]
    low, high = math.floor(20 * min(bounds)) / 20, math.ceil(20 * max(bounds)) / 20
    span = (high - low) or 1.0
    lines = []
    for cell in sorted(data.cells, key=lambda cell: -cell.score.uar):
        score, interval = cell.score, cell.score.uar_interval
        known = math.isfinite(interval.low)
        lines.append(
            {
                "title": cell.title,
                "single": not score.right,
                "at": f"{100 * (score.uar - low) / span:.1f}",
                "left": f"{100 * (interval.low - low) / span:.1f}" if known else "0",
                "width": f"{100 * (interval.high - interval.low) / span:.1f}" if known else "",
                "value": f"{100 * score.uar:.1f}{cell.marks} {_interval(interval)}",
            }
        )
    return {"ranking": lines, "track_low": f"{100 * low:.0f}", "track_high": f"{100 * high:.0f}"}


def _payload(data: RunData, metrics: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the script shows, short: a big run has hundreds of cells."""
    singles = {score.left: score.uar for score in data.scores if not score.right and score.fusion == "single"}
    return {
        "classes": list(data.classes),
        "metrics": list(metrics),
        "steps": HEAT_STEPS,
        "first": data.first,
        "cells": [_cell(cell, singles) for cell in data.cells],
    }


def _cell(cell: CellData, singles: Mapping[str, float]) -> dict[str, Any]:
    score = cell.score
    alone = [singles[name] for name in (score.left, score.right) if name in singles]
    gain = score.uar - max(alone) if score.right and len(alone) == 2 else math.nan
    speakers = sorted(cell.speaker_recalls, key=lambda name: (cell.speaker_recalls[name], name))
    facts = [["UAR, std over seeds", f"{100 * score.uar_seed_std:.1f}"]] if score.seeds > 1 else []
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
            "uar": _number(score.uar),
            "accuracy": _number(score.accuracy),
            "macro_f1": _number(score.macro_f1),
            "gain": _number(gain),
            "left_drop": _number(score.left_drop) if score.right else None,
            "right_drop": _number(score.right_drop),
        },
        "intervals": {
            "uar": _bounds(score.uar_interval),
            "accuracy": _bounds(score.accuracy_interval),
            "macro_f1": _bounds(score.macro_f1_interval),
            "left_drop": _bounds(score.left_drop_interval if score.right else None),
            "right_drop": _bounds(score.right_drop_interval),
        },
        "left_note": _drop_note(score.left_drop_interval, score.left_drop_p),
        "right_note": _drop_note(score.right_drop_interval, score.right_drop_p),
        "facts": facts,
        "recalls": [_number(value) for value in cell.recalls],
        "recall_intervals": [_bounds(interval) for interval in cell.recall_intervals],
        "supports": [_number(value, 1) for value in cell.supports],
        "confusion": [[_number(value, 2) for value in row] for row in cell.confusion],
        "speakers": [
            [name, _number(cell.speaker_recalls[name], 3), cell.speaker_supports[name]] for name in speakers[:_MOST_SPEAKERS]
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


def _drop_note(interval: Interval | None, p: float) -> str:
    """Interval and p of what shuffling costs, as changes: the cost with its sign turned."""
    if interval is None or math.isnan(interval.low):
        return ""
    chance = "" if math.isnan(p) else (", p < 0.001" if p < 0.001 else f", p = {p:.3f}")
    return f"[{-100 * interval.high:.1f}, {-100 * interval.low:.1f}]{chance}"


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


def _space_figures(pictures: Pictures) -> list[dict[str, Any]]:
    from markupsafe import Markup

    from pipelines.reports.plots import inline_svg, plot_space

    figures = []
    for place, space in enumerate(pictures.spaces):
        for by in ("emotion", "speaker"):
            title = f"{space.encoder}, {space.representation}, by {by}"
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


def _heat_css() -> str:
    def rules(theme: str) -> str:
        return "".join(
            f".h{step}{{background:{background};color:{text}}}"
            for step, (background, text) in enumerate(heat_colours(theme))
        )

    none = ".hnone{background:none;color:var(--soft)}"
    return f"\n{none}{rules('light')}\n@media screen and (prefers-color-scheme: dark){{{rules('dark')}}}\n"
