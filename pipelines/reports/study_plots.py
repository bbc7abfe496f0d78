"""Figures of a study, drawn by matplotlib from the data of its outcome: for its page, and for a paper as PNG, SVG or PDF.

Four kinds (``studies.outcome.FIGURE_KINDS``): ``lines`` with interval bands, grouped ``bars`` with interval whiskers, a ``heatmap``
with its numbers, and a ``scatter`` of named points with interval lines. A number that is NaN leaves a gap. The conventions are
those of :mod:`pipelines.reports.plots`: colours told apart with every colour blindness, and a marker, line or hatching of its own
for every series beside its colour.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipelines.reports.plots import (
    COLOURS,
    FIGURE_FORMATS,
    MARKERS,
    PLOT_WIDTH,
    check_formats,
    new_figure,
    plot_style,
    save_figure,
    shorten,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

    from pipelines.studies.outcome import Figure, Outcome, Series

__all__ = ["describe", "is_wide", "plot_outcome_figure", "save_study_figures"]

_WIDE = 6.5  # inches
_MANY_TICKS = 9  # named positions that a narrow figure has room for
_MANY_SERIES = 12  # named in a legend
_MOST_LABELS = 30  # points of a scatter that are named in it
_MOST_NUMBERS = 400  # cells of a heat map that hold their number
_LINES = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (5, 1.5, 1, 1.5)))
_HATCHES = ("", "////", "\\\\\\\\", "----", "xxxx", "||||")  # no dots: thousands of curves in an SVG
_GRID: dict[str, Any] = {"color": "#8a94a3", "alpha": 0.35, "linewidth": 0.5}  # seen on white and on black
_SIDE = 0.8  # inches beside the axes, for numbers and title of the y axis
_LETTER = 0.067  # inches; width of a letter of a tick's name
_MOST_LINES = 4  # of a tick's name


def is_wide(figure: Figure) -> bool:
    """Whether a figure needs the width of a page, not of a column."""
    places = len(figure.ticks) or max((len(series.x) for series in figure.series), default=0)
    if figure.kind == "heatmap":
        return places > 6
    if figure.kind == "bars" and places * max(1, len(figure.series)) > 14:
        return True
    turned = bool(figure.ticks) and _tick_labels(figure.ticks, PLOT_WIDTH - _SIDE)[1]
    return turned or len(figure.ticks) > _MANY_TICKS


def describe(figure: Figure) -> str:
    """What there is to see, in words, for those who cannot see it."""
    kinds = {"lines": "Lines", "bars": "Bars", "heatmap": "A heat map", "scatter": "Points"}
    named = ", ".join(series.name for series in figure.series[:_MANY_SERIES])
    more = ", …" if len(figure.series) > _MANY_SERIES else ""
    axes = f"{figure.y_label} over {figure.x_label}" if figure.x_label else figure.y_label
    return f"{kinds[figure.kind]}: {axes}; {named}{more}. {figure.about}".strip()


def plot_outcome_figure(figure: Figure) -> Drawing:
    """Draw a figure of an outcome.

    Args:
        figure: what to draw.

    Returns:
        A matplotlib figure that nothing else refers to.
    """
    with plot_style():
        return {"lines": _lines, "bars": _bars, "heatmap": _heatmap, "scatter": _scatter}[figure.kind](figure)


def save_study_figures(outcome: Outcome, folder: Path, *, formats: Sequence[str] = FIGURE_FORMATS) -> list[Path]:
    """Write every figure of a study for a paper, ``<name>.<format>``.

    Args:
        outcome: the study.
        folder: where to.
        formats: some of :data:`pipelines.reports.plots.FIGURE_FORMATS`.

    Returns:
        The files, in order.

    Raises:
        UnknownNameError: no such format.
        StorageError: the disk is full or cannot be written.
    """
    check_formats(formats)
    written = []
    for figure in outcome.figures:
        drawing = plot_outcome_figure(figure)
        for kind in formats:
            written.append(folder / f"{figure.name}.{kind}")
            save_figure(drawing, written[-1])
    return written


# ------------------------------------------------------------------------------------------------ kinds


def _lines(figure: Figure) -> Drawing:
    drawing = new_figure(width=_width(figure), height=3.1 + _below(figure, _width(figure) - _SIDE))
    axes = drawing.add_subplot()
    for place, series in enumerate(figure.series):
        x, y, low, high = _numbers(series)
        order = np.argsort(x, kind="stable")
        x, y, low, high = x[order], y[order], low[order], high[order]
        colour, style = COLOURS[place % len(COLOURS)], _LINES[place // len(COLOURS) % len(_LINES)]
        if np.isfinite(low).any():
            axes.fill_between(x, low, high, color=colour, alpha=0.16, linewidth=0)
        axes.plot(
            x, y, color=colour, linestyle=style, linewidth=1.5, marker=MARKERS[place % len(MARKERS)], markersize=4.0,
            label=shorten(series.name, 40),
        )  # fmt: skip
    _dress(axes, figure)
    _name(drawing, axes, figure)
    return drawing


def _bars(figure: Figure) -> Drawing:
    drawing = new_figure(width=_width(figure), height=3.1 + _below(figure, _width(figure) - _SIDE))
    axes = drawing.add_subplot()
    places = np.unique(
        np.concatenate([np.asarray(series.x, dtype=np.float64) for series in figure.series] or [np.zeros(0)])
    )
    step = float(np.diff(places).min()) if len(places) > 1 else 1.0
    width = 0.8 * step / max(1, len(figure.series))
    for place, series in enumerate(figure.series):
        x, y, low, high = _numbers(series)
        middle = x + (place - (len(figure.series) - 1) / 2) * width
        axes.bar(
            middle, y, width=0.92 * width, color=COLOURS[place % len(COLOURS)], edgecolor="white", linewidth=0.4,
            hatch=_HATCHES[place % len(_HATCHES)], label=shorten(series.name, 40), zorder=2,
        )  # fmt: skip
        known = np.isfinite(low) & np.isfinite(high) & np.isfinite(y)
        axes.vlines(middle[known], low[known], high[known], color="#010203", linewidth=1.0, zorder=3)
    if not figure.ticks and len(places):
        axes.set_xticks(places, [f"{place:g}" for place in places])
    _dress(axes, figure)
    axes.grid(axis="x", visible=False)
    _name(drawing, axes, figure)
    return drawing


def _heatmap(figure: Figure) -> Drawing:
    from matplotlib import colormaps
    from matplotlib.colors import CenteredNorm, Normalize

    columns = np.unique(
        np.concatenate([np.asarray(series.x, dtype=np.float64) for series in figure.series] or [np.zeros(0)])
    )
    values = np.full((len(figure.series), len(columns)), np.nan)
    for row, series in enumerate(figure.series):
        x, y, _, _ = _numbers(series)
        values[row, np.searchsorted(columns, x)] = y
    known = values[np.isfinite(values)]
    low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)
    # What goes well below zero is a difference: white in the middle. What only strays there is a score.
    signed = low < -0.25 * abs(high)
    colours = colormaps["RdBu" if signed else "Blues"]
    least = 0.1 * max(abs(low), abs(high))  # what differs by less than a tenth is not drawn as black and white
    if high - low < least:
        low, high = (low + high - least) / 2, (low + high + least) / 2
    norm = (
        CenteredNorm(0.0, max(abs(low), abs(high)) or 1.0)
        if signed
        else Normalize(low, high if high > low else low + 1.0)
    )
    names = [shorten(series.name, 28) for series in figure.series]
    side = 0.075 * max(map(len, names), default=0)
    width = max(PLOT_WIDTH, side + 0.9 + 0.42 * len(columns))
    room = width - side - 0.9
    drawing = new_figure(width=width, height=1.1 + 0.3 * len(names) + _below(figure, room, legend=False))
    axes = drawing.add_subplot()
    edges = np.arange(len(columns) + 1) - 0.5, np.arange(len(names) + 1) - 0.5
    mesh = axes.pcolormesh(
        *edges, np.ma.masked_invalid(values), cmap=colours, norm=norm, edgecolors="white", linewidth=0.6
    )
    if values.size <= _MOST_NUMBERS:
        digits = _digits(known)
        for row, column in zip(*np.nonzero(np.isfinite(values)), strict=True):
            value = float(values[row, column])
            red, green, blue, _ = colours(norm(value))
            dark = 0.2126 * red**2.2 + 0.7152 * green**2.2 + 0.0722 * blue**2.2 < 0.18
            axes.text(
                column, row, f"{value:.{digits}f}".replace("-", "−"), ha="center", va="center", fontsize=6.5,
                color="#fefefe" if dark else "#111111",
            )  # fmt: skip
    ticks = [figure.ticks[int(place)] if _named(figure, place) else f"{place:g}" for place in columns]
    _set_ticks(axes, ticks, room)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlabel(figure.x_label)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    bar = drawing.colorbar(mesh, ax=axes, pad=0.015, fraction=0.05, aspect=max(8, 5 * len(names)))
    bar.set_label(shorten(figure.y_label, 40))
    bar.outline.set_visible(False)
    return drawing


def _scatter(figure: Figure) -> Drawing:
    drawing = new_figure(width=_width(figure), height=3.4 + _below(figure, _width(figure) - _SIDE))
    axes = drawing.add_subplot()
    many = sum(len(series.y) for series in figure.series)
    named = sum(bool(label) for series in figure.series for label in series.labels)
    for place, series in enumerate(figure.series):
        x, y, low, high = _numbers(series)
        colour = COLOURS[place % len(COLOURS)]
        known = np.isfinite(low) & np.isfinite(high) & np.isfinite(y)
        axes.vlines(x[known], low[known], high[known], color=colour, linewidth=0.8, alpha=0.6)
        axes.plot(
            x, y, linestyle="none", marker=MARKERS[place % len(MARKERS)], color=colour, markersize=5.0 if many < 200 else 2.6,
            markeredgecolor="#010203", markeredgewidth=0.25 if many < 1000 else 0.0, alpha=0.9 if many < 200 else 0.5,
            label=shorten(series.name, 40),
        )  # fmt: skip
        if named <= _MOST_LABELS:
            for label, at, value in zip(series.labels, x, y, strict=False):
                if label and math.isfinite(value):
                    axes.annotate(
                        shorten(label, 22), (at, value), xytext=(4, 3), textcoords="offset points", fontsize=6.5
                    )
    axes.margins(0.08)
    _dress(axes, figure)
    axes.grid(axis="x", **_GRID)
    _name(drawing, axes, figure)
    return drawing


# ------------------------------------------------------------------------------------------------ parts


def _numbers(series: Series) -> tuple[NDArray[np.float64], ...]:
    """x, y, low and high, the latter NaN where there are none."""
    y = np.asarray(series.y, dtype=np.float64)
    ends = [np.asarray(values or [math.nan] * len(y), dtype=np.float64) for values in (series.low, series.high)]
    return np.asarray(series.x, dtype=np.float64), y, *ends


def _named(figure: Figure, place: float) -> bool:
    return place == int(place) and 0 <= place < len(figure.ticks)


def _width(figure: Figure) -> float:
    return _WIDE if is_wide(figure) else PLOT_WIDTH


def _legend_rows(figure: Figure) -> int:
    if len(figure.series) < 2 or len(figure.series) > _MANY_SERIES:
        return int(len(figure.series) > _MANY_SERIES)
    return math.ceil(len(figure.series) / _legend_columns(figure))


def _legend_columns(figure: Figure) -> int:
    longest = max(len(shorten(series.name, 40)) for series in figure.series)
    return max(1, min(len(figure.series), int(_width(figure) / (0.35 + 0.075 * longest))))


def _below(figure: Figure, width: float, *, legend: bool = True) -> float:
    """Height for what stands below the axes: names in lines or turned, the legend."""
    labels, turned = _tick_labels(figure.ticks, width)
    names = 0.05 * max(map(len, labels)) if turned else 0.14 * max((label.count("\n") for label in labels), default=0)
    return names + (0.19 * _legend_rows(figure) if legend else 0.0)


def _tick_labels(ticks: Sequence[str], width: float) -> tuple[list[str], bool]:
    """Names below an axis of a width in inches: side by side if they fit so, else in lines, else turned."""
    room = int(width / _LETTER / max(1, len(ticks))) - 1
    in_lines = ["\n".join(_broken(tick, room)) for tick in ticks]
    if all(len(line) <= room for label in in_lines for line in label.split("\n")) and all(
        label.count("\n") < _MOST_LINES for label in in_lines
    ):
        return in_lines, False
    return [shorten(tick, 36) for tick in ticks], max(map(len, ticks)) > 3


def _broken(text: str, room: int) -> list[str]:
    """Text in lines of at most ``room`` letters, broken after blanks, ``+`` and hyphens only."""
    lines = [""]
    for part in re.findall(r"[^ +-]+[ +-]*|[ +-]+", text):
        if lines[-1] and len(lines[-1]) + len(part.rstrip()) > room:
            lines.append("")
        lines[-1] += part
    return [line.rstrip() for line in lines]


def _set_ticks(axes: Axes, ticks: Sequence[str], width: float) -> None:
    labels, turned = _tick_labels(ticks, width)
    axes.set_xticks(range(len(labels)), labels)
    if turned:
        for label in axes.get_xticklabels():
            label.set(rotation=45, ha="right", rotation_mode="anchor")


def _dress(axes: Axes, figure: Figure) -> None:
    if figure.ticks:
        _set_ticks(axes, figure.ticks, _width(figure) - _SIDE)
    axes.set_xlabel(figure.x_label)
    axes.set_ylabel(figure.y_label)
    axes.grid(axis="y", **_GRID)
    axes.set_axisbelow(True)
    low, high = axes.get_ylim()
    if low < 0 < high:
        axes.axhline(0.0, color="#8a94a3", linewidth=0.8, zorder=1)


def _name(drawing: Drawing, axes: Axes, figure: Figure) -> None:
    """A legend below, where there is more than one series and not more than can be told apart."""
    if len(figure.series) < 2:
        return
    if len(figure.series) > _MANY_SERIES:
        drawing.text(0.5, 0.0, f"{len(figure.series)} series", ha="center", va="bottom", fontsize=8)
        return
    handles, labels = axes.get_legend_handles_labels()
    options: dict[str, Any] = {"handletextpad": 0.4, "columnspacing": 1.0}
    drawing.legend(handles, labels, loc="outside lower center", ncols=_legend_columns(figure), **options)


def _digits(values: NDArray[np.float64]) -> int:
    """Decimals that a heat map's numbers need: per cent without, correlations with two."""
    largest = float(np.abs(values).max()) if values.size else 0.0
    return 0 if largest >= 20 else 1 if largest >= 2 else 2
