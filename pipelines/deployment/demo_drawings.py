"""What the demo page shows of an explanation, as HTML and SVG: no script, nothing from a network, readable in light and dark.

Colours of classes are those of the report. Nothing is told by colour alone: bars and rows have their names and numbers, points on
the map a legend, and every drawing a text for those who do not see it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray

from pipelines.deployment.explain import Explanation
from pipelines.deployment.model_folder import ModelFolder
from pipelines.deployment.predict import EMOTION
from pipelines.reports.plots import COLOURS

__all__ = ["STYLE", "about_html", "answer_html", "error_html", "map_html", "time_html", "worth_html"]

STYLE = """
.hf { color: var(--body-text-color); font-size: 0.95rem; line-height: 1.45; }
.hf h3 { margin: 0 0 .5rem; font-size: 1.05rem; }
.hf p { margin: .35rem 0; }
.hf .small { font-size: .85rem; opacity: .78; }
.hf .big { font-size: 1.5rem; font-weight: 600; }
.hf .bars { display: grid; grid-template-columns: max-content 1fr max-content; gap: .3rem .7rem; align-items: center; }
.hf .bar { height: .9rem; border-radius: 3px; background: color-mix(in srgb, var(--body-text-color) 9%, transparent); }
.hf .bar i { display: block; height: 100%; border-radius: 3px; min-width: 1px; }
.hf ul { margin: .5rem 0; padding-left: 1.2rem; list-style: disc; }
.hf .num { font-variant-numeric: tabular-nums; text-align: right; }
.hf svg { display: block; width: 100%; height: auto; overflow: visible; }
.hf svg text { fill: var(--body-text-color); font-family: inherit; }
.hf svg .soft { opacity: .75; }
.hf .legend { display: flex; flex-wrap: wrap; gap: .2rem .9rem; font-size: .85rem; }
.hf .legend b { display: inline-block; width: .7rem; height: .7rem; border-radius: 50%; margin-right: .4rem; }
.hf.warn { background: #fff3cd; color: #4d3800; border: 1px solid #d9a400; border-radius: 6px; padding: .6rem .9rem; }
.hf.error { background: #fde8e8; color: #771d1d; border: 1px solid #d64545; border-radius: 6px; padding: .6rem .9rem; }
.hf.error p, .hf.warn p { color: inherit; }
.hf-map svg { max-width: 26rem; margin: 0 auto; }
footer { display: none !important; }
"""
"""CSS of the page."""

_GRAVE = ("RANDOM", "NOT AS MEASURED", "speaker-dependent", "LEAK:")
_GREY = "#8a94a3"
_WIDTH = 480.0


def _colour(index: int) -> str:
    return COLOURS[index % len(COLOURS)]


def error_html(message: str) -> str:
    """A mistake, explained."""
    return f'<div class="hf error" role="alert"><p>{escape(message)}</p></div>'


def about_html(model: ModelFolder) -> str:
    """What the model is; first of all what must not be overlooked."""
    grave = [text for text in model.warnings if text.startswith(_GRAVE)]  # the others are in the card
    warnings = "".join(f'<div class="hf warn" role="note"><p>{escape(text)}</p></div>' for text in grave)
    inputs = " and ".join(f"{escape(one.encoder)} ({escape(one.weights_kind)} weights)" for one in model.inputs)
    corpus = escape(str(model.trained_on["corpus"]))
    return (
        f'{warnings}<div class="hf"><p class="big">{escape(model.name)}</p><p>Listens with {inputs}; trained on {corpus}, tells'
        f" {escape(', '.join(model.outputs))}. For research: it names what raters or actors of that corpus would have said, and it"
        " always names something. Recordings stay on this computer and are forgotten when the page is shut down.</p></div>"
    )


def answer_html(found: Explanation, model: ModelFolder) -> str:
    """The answer for the whole recording."""
    if model.target == EMOTION:
        order = np.argsort(-found.outputs, kind="stable")
        rows = [(index, float(found.outputs[index]), f"{100 * found.outputs[index]:.1f} %") for index in order]
        title = f'<p class="big">{escape(found.label)}</p>'
    else:
        low, high = _extent(found)
        rows = [
            (index, (float(value) - low) / (high - low), f"{value:.2f}") for index, value in enumerate(found.outputs)
        ]
        title = ""
    bars = "".join(
        f'<span>{escape(model.outputs[index])}</span><span class="bar"><i style="width:{100 * max(0.0, min(1.0, share)):.1f}%;'
        f'background:{_colour(int(index))}"></i></span><span class="num">{text}</span>'
        for index, share, text in rows
    )
    heads = f"mean of {len(model.heads)} heads" if len(model.heads) > 1 else "one head"
    what = "Probabilities" if model.target == EMOTION else "Values on the scale of the training corpus"
    return (
        f'<div class="hf hf-answer"><h3>The whole recording</h3>{title}<div class="bars">{bars}</div>'
        f'<p class="small">{what}, {heads}; {found.duration_s:.1f} s.</p></div>'
    )


def _extent(found: Explanation) -> tuple[float, float]:
    """Smallest and largest value that is shown, of dimensions."""
    values = [*found.outputs, *(value for part in found.parts for value in part.scores.values())]
    low, high = float(min(values)), float(max(values))
    margin = 0.1 * (high - low) or 1.0
    return low - margin, high + margin


def time_html(found: Explanation, model: ModelFolder) -> str:
    """The answer over time: a row per output, a cell per part."""
    if not found.parts:
        return '<div class="hf"><h3>Over time</h3><p>A model that reads transcripts judges whole recordings.</p></div>'
    names, emotion = model.outputs, model.target == EMOTION
    left, right, row_height, gap = 88.0, 12.0, 22.0, 4.0
    height = len(names) * (row_height + gap) + 34
    scale = (_WIDTH - left - right) / found.duration_s
    low, high = (0.0, 1.0) if emotion else _extent(found)
    pieces = []
    edges = _edges(found)
    for row, name in enumerate(names):
        top = row * (row_height + gap)
        pieces.append(
            f'<text x="{left - 8}" y="{top + row_height / 2 + 5}" text-anchor="end" font-size="14">{escape(name[:12])}</text>'
        )
        for part, (start, stop) in zip(found.parts, edges, strict=True):
            x, width = left + start * scale, max((stop - start) * scale - 1, 0.5)
            if part.failure:
                shown = f'fill="none" stroke="{_GREY}" stroke-dasharray="2 3"'
                said = part.failure
            else:
                share = (part.scores[name] - low) / (high - low)
                shown = f'fill="{_colour(row)}" fill-opacity="{0.06 + 0.94 * share:.3f}"'
                value = f"{100 * part.scores[name]:.0f} %" if emotion else f"{part.scores[name]:.2f}"
                said = f"{part.start_s:.1f} to {part.end_s:.1f} s: {name} {value}"
            pieces.append(
                f'<rect x="{x:.1f}" y="{top:.1f}" width="{width:.1f}" height="{row_height}" rx="2" {shown}>'
                f"<title>{escape(said)}</title></rect>"
            )
    axis = len(names) * (row_height + gap) + 4
    for tick in _ticks(found.duration_s):
        x = left + tick * scale
        pieces.append(
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{axis - 4}" y2="{axis + 2}" stroke="{_GREY}"/>'
            f'<text class="soft" x="{x:.1f}" y="{axis + 18}" text-anchor="middle" font-size="12">{tick:g} s</text>'
        )
    length = found.parts[0].end_s - found.parts[0].start_s
    shade = "the stronger, the more probable" if emotion else f"the stronger, the higher ({low:.2g} to {high:.2g})"
    said = f"{len(found.parts)} parts of {length:.2g} s, each judged by itself and drawn around its middle; {shade}."
    silent = " Dashed: silent, or not to be used." if any(part.failure for part in found.parts) else ""
    return (
        '<div class="hf hf-time"><h3>Over time</h3>'
        f'<svg viewBox="0 0 {_WIDTH:g} {height:g}" role="img" aria-label="{escape(_spoken(found, names, emotion))}">'
        f'{"".join(pieces)}</svg><p class="small">{said}{silent}</p></div>'
    )


def _edges(found: Explanation) -> list[tuple[float, float]]:
    """Where parts are drawn: they may overlap, so each reaches halfway to its neighbours' middles."""
    middles = [(part.start_s + part.end_s) / 2 for part in found.parts]
    between = [(one + other) / 2 for one, other in itertools.pairwise(middles)]
    return list(zip([0.0, *between], [*between, found.duration_s], strict=True))


def _ticks(duration_s: float) -> list[float]:
    step = next((step for step in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30) if duration_s / step <= 8), 60.0)
    return [round(index * step, 3) for index in range(int(duration_s / step + 1e-9) + 1)]


def _spoken(found: Explanation, names: Sequence[str], emotion: bool) -> str:
    if not emotion:
        return f"{', '.join(names)} over time, in {len(found.parts)} parts."
    told = [f"{part.start_s:.1f} s {part.label or 'none'}" for part in found.parts[:20]]
    return "Most probable over time: " + ", ".join(told)


def map_html(found: Explanation, model: ModelFolder) -> str:
    """Where the first head puts the recording among its training utterances."""
    drawn = model.map
    ball = drawn.kind == "ball"
    points = drawn.points.double().numpy()
    reach = 1.0 if ball else max(1.2, float(np.abs(points).max(initial=0.0)), float(np.abs(found.point).max())) * 1.05
    size, half = 400.0, 190.0

    def at(point: NDArray[np.float64]) -> tuple[float, float]:
        return size / 2 + point[0] / reach * half, size / 2 - point[1] / reach * half

    pieces = []
    if ball:
        pieces.append(f'<circle cx="200" cy="200" r="{half}" fill="none" stroke="{_GREY}" stroke-width="1.5"/>')
        for distance in (1, 2, 3):
            radius = half * math.tanh(distance / 2)
            pieces.append(
                f'<circle cx="200" cy="200" r="{radius:.1f}" fill="none" stroke="{_GREY}" stroke-width=".6"'
                f' stroke-dasharray="3 3"/><text class="soft" x="200" y="{200 - radius - 2:.1f}" text-anchor="middle"'
                f' font-size="10">{distance}</text>'
            )
    else:
        pieces.append(
            f'<rect x="10" y="10" width="380" height="380" rx="6" fill="none" stroke="{_GREY}" stroke-width="1"/>'
        )
    for point, label in zip(points, drawn.labels.tolist(), strict=True):
        x, y = at(point)
        colour = _colour(label) if label >= 0 else _GREY
        pieces.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.2" fill="{colour}" fill-opacity=".55"/>')
    x, y = at(found.point)
    pieces.append(
        f'<circle class="here" cx="{x:.1f}" cy="{y:.1f}" r="8" fill="none" stroke="#ffffff" stroke-width="5"/>'
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="8" fill="#d6006c" stroke="#111111" stroke-width="2"><title>this recording</title>'
        "</circle>"
    )
    present = sorted({label for label in drawn.labels.tolist() if label >= 0})
    legend = "".join(
        f'<span><b style="background:{_colour(label)}"></b>{escape(model.outputs[label])}</span>' for label in present
    )
    here = '<span><b style="background:#d6006c;outline:2px solid #111"></b>this recording</span>'
    if ball:
        title = "In the Poincaré disk"
        norm = float(np.linalg.norm(found.point))
        said = (
            "Where the fused point lies in the ball of the first head, among training utterances. The distance from the centre is"
            f" exact (here √c·|p| = {norm:.2f}); the two directions are those in which training utterances vary most, and hold"
            f" {100 * drawn.share:.0f} % of their squared tangent length. Dashed: hyperbolic distance 1, 2, 3; the rim is"
            " infinitely far away."
        )
    else:
        title = "In the space before the output layer"
        said = (
            f"The head '{escape(model.fusion)}' has no hyperbolic space. Shown is the vector that enters its output layer, first"
            f" head, on two principal components of training utterances ({100 * drawn.share:.0f} % of their variance)."
        )
    spoken = f"{title}: this recording among {len(points)} training utterances"
    return (
        f'<div class="hf hf-map"><h3>{title}</h3><svg viewBox="0 0 400 400" role="img" aria-label="{escape(spoken)}">'
        f'{"".join(pieces)}</svg><div class="legend">{here}{legend}</div><p class="small">{said}</p></div>'
    )


def worth_html(found: Explanation, model: ModelFolder) -> str:
    """What either input was worth."""
    head = '<div class="hf hf-worth"><h3>What it went by</h3>'
    if len(found.worths) < 2:
        return f"{head}<p>The model has one representation, {escape(found.worths[0].encoder)}.</p></div>"
    emotion = model.target == EMOTION
    if found.driver:
        said = f"<p><strong>{escape(found.driver)}</strong> drove the decision.</p>"
    else:
        said = "<p>Neither representation drove the decision clearly more than the other.</p>"
    best = int(found.outputs.argmax())
    most = max((abs(worth.change) for worth in found.worths), default=0.0) or 1.0
    bars, verdicts = [], []
    for index, worth in enumerate(found.worths):
        if emotion:
            number = f"{100 * worth.change:+.1f} points"
            name = escape(worth.encoder)
            other = model.outputs[int(worth.without.argmax())]
            left = f"{100 * worth.without[best]:.0f} %"
            verdict = f"still {other}, {left}" if other == found.label else f"{other}, {found.label} {left}"
            verdicts.append(f"<li>Without {name}: {escape(verdict)}.</li>")
        else:
            number = f"{worth.change:.2f} standard deviations"
        bars.append(
            f'<span>{escape(worth.encoder)}</span><span class="bar"><i style="width:{100 * abs(worth.change) / most:.1f}%;'
            f'background:{("#3b6fb6", "#b6673b")[index % 2]}"></i></span><span class="num">{escape(number)}</span>'
        )
    unit = f"the probability of {escape(found.label)}" if emotion else "the values, in standard deviations of training"
    exactly = (
        "The recording is judged again with one representation replaced by its mean over the training utterances, which says"
        f" nothing about it; shown is how much that takes away from {unit}. Where both say the same, either can be missed."
    )
    listed = f"<ul>{''.join(verdicts)}</ul>" if verdicts else ""
    return f'{head}{said}<div class="bars">{"".join(bars)}</div>{listed}<p class="small">{exactly}</p></div>'
