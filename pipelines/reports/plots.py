"""Figures of a run, by matplotlib: the scatter plots of the page, and all figures for a paper as PNG, SVG or PDF.

Why matplotlib and not Plotly: one set of functions serves the page and the paper (Plotly needs a browser to write a PDF); an SVG
is text that prints, scales and follows the page's light or dark colours without a script, where Plotly's 4.5 MB of JavaScript
would be in every page, draw nothing when printed from a phone, and put nothing into the page that a screen reader finds. What
must be interactive (the table, the selected cell) is plain HTML that ``static/page.js`` fills; it needs no plotting library.

Conventions: every function returns a :class:`matplotlib.figure.Figure` that nothing else refers to (no ``pyplot``, no global
state, no display). Text is taken literally: a corpus called ``$x$`` is not mathematics. Colours are those of Okabe & Ito (2008),
told apart with every common colour blindness, and every class has a marker of its own as well, for print in grey. The same input
gives the same bytes of SVG.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import numpy as np

from pipelines.errors import unknown_name
from pipelines.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from pipelines.evaluation.measures import Measure
    from pipelines.evaluation.results import CellScore
    from pipelines.reports.run_data import Curve, Grid, RunData
    from pipelines.reports.spaces import Disk, Space

__all__ = [
    "COLOURS",
    "FIGURE_FORMATS",
    "MARKERS",
    "PLOT_WIDTH",
    "axis_name",
    "check_formats",
    "inline_svg",
    "new_figure",
    "plot_agreement",
    "plot_confusion",
    "plot_curves",
    "plot_disk",
    "plot_intervals",
    "plot_shuffles",
    "plot_space",
    "plot_speakers",
    "plot_style",
    "plot_table",
    "save_figure",
    "save_figures",
    "shorten",
]

FIGURE_FORMATS = ("png", "svg", "pdf")

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#999999", "#F0E442")
"""Okabe & Ito (2008) without black; yellow last, since it is faint on white."""

MARKERS = ("o", "^", "s", "D", "v", "P", "X", "*", "<", ">", "p", "h")

PLOT_WIDTH = 4.2
"""Inches; about the width of a phone and of a column."""

_DPI = 300
_LEGEND_MOST = 12
_RANKED_MOST = 40
_STYLE: Any = {
    "text.parse_math": False,
    "text.usetex": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "hyfuse",
    "pdf.fonttype": 42,  # journals refuse Type 3
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "hatch.linewidth": 0.5,
}

_SVG = "http://www.w3.org/2000/svg"
_XLINK = "http://www.w3.org/1999/xlink"
_INK = "#010203"  # what is to be the colour of the page's text; a colour that nothing else has


@contextmanager
def plot_style() -> Iterator[None]:
    """Fonts, lines and reproducible ids of all figures."""
    import matplotlib

    with matplotlib.rc_context(rc=_STYLE), warnings.catch_warnings():
        # Names may hold letters that the font lacks, such as emoji: a box in the PNG, the letter itself in the SVG.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def new_figure(width: float = PLOT_WIDTH, height: float = 3.6) -> Figure:
    """An empty figure; sizes in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def shorten(text: str, most: int = 34) -> str:
    """Text with an ellipsis where it is longer than ``most`` letters."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def axis_name(measure: Measure) -> str:
    """Of a score's axis: ``UAR %``, ``CCC``."""
    return f"{measure.name} %" if measure.factor == 100 else measure.name


def plot_space(space: Space, *, by: str = "emotion") -> Figure:
    """Two principal components of an embedding space, one point per utterance.

    Args:
        space: the projected points.
        by: ``emotion`` or ``speaker``: what colour and marker mean.
    """
    groups, names = (space.labels, space.classes) if by == "emotion" else (space.speaker_index, space.speakers)
    with plot_style():
        figure = new_figure()
        axes = figure.add_subplot()
        _scatter(axes, space.points, groups, names)
        axes.set_xlabel(f"component 1 ({100 * space.explained[0]:.0f} % of variance)")
        axes.set_ylabel(f"component 2 ({100 * space.explained[1]:.0f} %)")
        axes.set_xticks([])
        axes.set_yticks([])
        _legend(figure, axes, names, by)
    return figure


def plot_disk(disk: Disk) -> Figure:
    """Fused points of one head in the Poincaré disk, by class; circles at hyperbolic distance 1, 2 and 3 from the origin."""
    from matplotlib.patches import Circle

    with plot_style():
        figure = new_figure(height=4.6)
        axes = figure.add_subplot()
        axes.set_aspect("equal")
        axes.axis("off")
        axes.set_xlim(-1.06, 1.06)
        axes.set_ylim(-1.06, 1.06)
        axes.add_patch(Circle((0, 0), 1, fill=False, edgecolor=_INK, linewidth=1.0))
        for distance in (1.0, 2.0, 3.0):
            radius = np.tanh(distance / 2)
            axes.add_patch(
                Circle((0, 0), radius, fill=False, edgecolor="#8a94a3", linewidth=0.6, linestyle=(0, (3, 3)))
            )
            axes.text(0, radius, f"{distance:g}", fontsize=7, color="#8a94a3", ha="center", va="bottom")
        axes.plot([0], [0], marker="+", color=_INK, markersize=6, markeredgewidth=0.8)
        _scatter(axes, disk.points, disk.labels, disk.classes)
        _legend(figure, axes, disk.classes, "emotion")
    return figure


def _scatter(axes: Axes, points: Any, groups: Any, names: Sequence[str]) -> None:
    # Drawn in a fixed shuffled order of groups would hide small ones: the most frequent goes first, hence below.
    sizes = np.bincount(groups, minlength=len(names))
    for index in sorted(range(len(names)), key=lambda group: (-sizes[group], group)):
        mine = points[groups == index]
        axes.plot(
            mine[:, 0],
            mine[:, 1],
            linestyle="none",
            marker=MARKERS[index % len(MARKERS)],
            color=COLOURS[index % len(COLOURS)],
            markersize=4.2,
            markeredgecolor=_INK,
            markeredgewidth=0.25,
            alpha=0.85,
            label=shorten(names[index], 22),
        )


def _legend(figure: Figure, axes: Axes, names: Sequence[str], what: str) -> None:
    if len(names) > _LEGEND_MOST:
        figure.text(
            0.5, 0.0, f"{len(names)} {what}s, each with a colour and marker", ha="center", va="bottom", fontsize=8
        )
        return
    handles, labels = axes.get_legend_handles_labels()
    order = np.argsort([list(map(lambda name: shorten(name, 22), names)).index(label) for label in labels])
    figure.legend(
        [handles[position] for position in order],
        [labels[position] for position in order],
        loc="outside lower center",
        ncols=4 if max(map(len, labels)) <= 10 else 2,
        handletextpad=0.2,
        columnspacing=1.0,
    )


def plot_table(grid: Grid) -> Figure:
    """The comparison as a heat map: pairs in rows, fusions and singles in columns, UAR in per cent or CCC in the cells."""
    measure = grid.scores[0].measure
    with plot_style():
        rows, columns = len(grid.rows), len(grid.columns)
        figure = new_figure(width=2.4 + 0.85 * columns, height=1.1 + 0.32 * rows)
        axes = figure.add_subplot()
        values = np.full((rows, columns), np.nan)
        for row, line in enumerate(grid.rows):
            for column, cell in enumerate(line.cells):
                if cell is not None:
                    values[row, column] = grid.scores[cell].value
        from matplotlib import colormaps

        image = axes.imshow(np.ma.masked_invalid(values), cmap=colormaps["Blues"], aspect="auto")
        low, high = float(np.nanmin(values)), float(np.nanmax(values))
        for row, line in enumerate(grid.rows):
            for column, cell in enumerate(line.cells):
                if cell is None:
                    axes.text(column, row, "–", ha="center", va="center")
                    continue
                share = (values[row, column] - low) / (high - low or 1.0)
                text = f"{measure.text(values[row, column])}{grid.marks[cell]}".replace("-", "−")
                best = cell == grid.best
                colour = "white" if share > 0.6 else "black"
                axes.text(
                    column, row, text, ha="center", va="center", color=colour, fontweight="bold" if best else None
                )
        axes.set_xticks(range(columns), [shorten(name, 22) for name in grid.columns], rotation=30, ha="left")
        axes.set_yticks(range(rows), [shorten(line.title) for line in grid.rows])
        axes.tick_params(top=True, labeltop=True, bottom=False, labelbottom=False, length=0)
        axes.spines[:].set_visible(False)
        bar = figure.colorbar(image, label=axis_name(measure), shrink=0.9)
        bar.ax.yaxis.set_major_formatter(lambda value, _: f"{measure.factor * value:g}")
    return figure


def plot_intervals(scores: Sequence[CellScore], titles: Sequence[str]) -> Figure:
    """UAR or CCC with 95 % interval of every cell (at most 40), best first; squares are single representations."""
    order = sorted(range(len(scores)), key=lambda index: -scores[index].value)[:_RANKED_MOST]
    factor = scores[0].measure.factor
    with plot_style():
        figure = new_figure(width=6.5, height=0.9 + 0.24 * len(order))
        axes = figure.add_subplot()
        for place, index in enumerate(order):
            score, interval = scores[index], scores[index].interval
            fused = bool(score.right)
            colour = COLOURS[0] if fused else COLOURS[3]
            if np.isfinite(interval.low):
                ends = [factor * interval.low, factor * interval.high]
                axes.plot(ends, [place, place], color=colour, linewidth=1.4)
            axes.plot([factor * score.value], [place], marker="o" if fused else "s", color=colour, markersize=4.5)
        axes.set_yticks(range(len(order)), [shorten(titles[index], 60) for index in order])
        axes.invert_yaxis()
        axes.set_xlabel(f"{axis_name(scores[0].measure)}, 95 % interval (bootstrap over speakers)")
        axes.grid(axis="x", color="#d0d5dd", linewidth=0.5)
        axes.set_axisbelow(True)
    return figure


def plot_shuffles(scores: Sequence[CellScore], titles: Sequence[str]) -> Figure:
    """UAR or CCC of every fusion (at most 40, best first), and what is left of it with the left or the right input shuffled.

    Filled triangles are significant drops (Holm over all drops of the table), empty ones are not.
    """
    from pipelines.reports.shuffles import corrected_drops

    drops, factor = corrected_drops(scores), scores[0].measure.factor
    fused = [index for index in range(len(scores)) if scores[index].right]
    order = sorted(fused, key=lambda index: -scores[index].value)[:_RANKED_MOST]
    with plot_style():
        figure = new_figure(width=6.5, height=1.2 + 0.24 * len(order))
        axes = figure.add_subplot()
        for place, index in enumerate(order):
            score = scores[index]
            ends = [factor * (score.value - lost) for lost in (0.0, score.left_drop, score.right_drop)]
            axes.plot([min(ends), max(ends)], [place, place], color="#c5ccd6", linewidth=1.2, zorder=1)
            kinds = (
                ("o", COLOURS[0], "as it is", True),
                ("<", COLOURS[1], "left shuffled", bool(drops[index].left_mark)),
                (">", COLOURS[2], "right shuffled", bool(drops[index].right_mark)),
            )
            for value, (marker, colour, label, filled) in zip(ends, kinds, strict=True):
                axes.plot(
                    [value], [place], linestyle="none", marker=marker, color=colour, markersize=5,
                    markerfacecolor=colour if filled else "white", label=label if place == 0 else None,
                )  # fmt: skip
        axes.set_yticks(range(len(order)), [shorten(titles[index], 60) for index in order])
        axes.invert_yaxis()
        axes.set_xlabel(f"{axis_name(scores[0].measure)}; empty where the drop is not significant")
        axes.grid(axis="x", color="#d0d5dd", linewidth=0.5)
        axes.set_axisbelow(True)
        if order:
            figure.legend(loc="outside lower center", ncols=3)
    return figure


def plot_confusion(score: CellScore, classes: Sequence[str], title: str) -> Figure:
    """Confusion matrix of a cell, rows in per cent of the true class, mean over seeds."""
    counts = score.counts.sum(axis=0).mean(axis=0)
    totals = counts.sum(axis=1, keepdims=True)
    shares = 100 * np.divide(counts, totals, out=np.zeros_like(counts), where=totals > 0)
    size = 1.6 + 0.42 * len(classes)
    with plot_style():
        from matplotlib import colormaps

        figure = new_figure(width=max(PLOT_WIDTH, size), height=size)
        axes = figure.add_subplot()
        axes.imshow(shares, cmap=colormaps["Blues"], vmin=0, vmax=100)
        for row in range(len(classes)):
            for column in range(len(classes)):
                value = shares[row, column]
                axes.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=8,
                          color="white" if value > 60 else "black")  # fmt: skip
        names = [shorten(name, 16) for name in classes]
        axes.set_xticks(range(len(classes)), names, rotation=45, ha="right")
        axes.set_yticks(range(len(classes)), names)
        axes.set_xlabel("predicted")
        axes.set_ylabel("true")
        axes.set_title(shorten(title, 60), loc="left")
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
    return figure


def plot_curves(curves: Mapping[str, Curve], title: str) -> Figure:
    """Learning curves of a cell: mean over its heads, range of the heads as a band; one panel per quantity."""
    names = list(curves)
    with plot_style():
        figure = new_figure(width=6.5, height=0.4 + 1.6 * -(-len(names) // 2))
        for place, name in enumerate(names):
            axes = figure.add_subplot(-(-len(names) // 2), 2, place + 1)
            curve = curves[name]
            epochs = np.arange(1, len(curve.mean) + 1)
            axes.fill_between(epochs, curve.low, curve.high, color=COLOURS[4], alpha=0.4, linewidth=0)
            axes.plot(epochs, curve.mean, color=COLOURS[0], linewidth=1.4)
            axes.set_title(name.replace("_", " "), loc="left")
            axes.set_xlabel("epoch")
        figure.suptitle(shorten(title, 70), x=0.02, ha="left", fontsize=9)
    return figure


def plot_agreement(truth: Any, predicted: Any, dimensions: Sequence[str], title: str) -> Figure:
    """True and predicted values of a cell, a panel per dimension; on the dashed line they are the same.

    Args:
        truth: [D, m].
        predicted: [D, m].
        dimensions: D names.
        title: of the cell.
    """
    with plot_style():
        figure = new_figure(width=max(PLOT_WIDTH, 2.4 * len(dimensions)), height=2.9)
        for place, name in enumerate(dimensions):
            axes = figure.add_subplot(1, len(dimensions), place + 1)
            axes.plot(
                truth[place],
                predicted[place],
                linestyle="none",
                marker="o",
                color=COLOURS[0],
                markersize=2.6,
                alpha=0.5,
            )
            both = np.concatenate([truth[place], predicted[place]])
            ends = [float(np.nanmin(both)), float(np.nanmax(both))]
            axes.plot(ends, ends, color="#8a94a3", linewidth=0.8, linestyle=(0, (4, 3)))
            axes.set_xlabel(f"true {shorten(name, 20)}")
            axes.set_ylabel("predicted" if place == 0 else "")
            axes.set_aspect("equal", adjustable="datalim")
        figure.suptitle(shorten(title, 60), x=0.02, ha="left", fontsize=9)
    return figure


def plot_speakers(scores: Mapping[str, float], title: str, measure: Measure) -> Figure:
    """Mean recall or CCC of a cell per speaker, worst first (at most 60)."""
    known = {name: measure.factor * value for name, value in scores.items() if np.isfinite(value)}
    order = sorted(known, key=lambda name: (known[name], name))[:60]
    with plot_style():
        figure = new_figure(height=0.9 + 0.2 * len(order))
        axes = figure.add_subplot()
        for place, name in enumerate(order):
            axes.plot([0, known[name]], [place, place], color="#c5ccd6", linewidth=1.0)
            axes.plot([known[name]], [place], marker="o", color=COLOURS[0], markersize=4.5)
        axes.set_yticks(range(len(order)), [shorten(name, 24) for name in order])
        axes.set_xlim(min([0.0, *known.values()]) * 1.02, measure.factor * 1.02)
        axes.set_xlabel("mean recall %, over the classes a speaker has" if not measure.dimensions else measure.name)
        axes.set_title(shorten(title, 60), loc="left")
        axes.grid(axis="x", color="#d0d5dd", linewidth=0.5)
        axes.set_axisbelow(True)
    return figure


def _svg(figure: Figure) -> str:
    content = io.StringIO()
    with plot_style():
        figure.savefig(content, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return content.getvalue()


def inline_svg(figure: Figure, *, prefix: str, title: str, description: str) -> str:
    """A figure as an ``<svg>`` element for the inside of an HTML page.

    Ids get a prefix, since a page holds many figures; text and lines take the colour of the page's text; a title and a
    description say to a screen reader what there is to see.

    Args:
        figure: one of this module's.
        prefix: of all ids; unique in the page, letters, digits and ``-``.
        title: a short name.
        description: what the figure shows, in a sentence.
    """
    ElementTree.register_namespace("", _SVG)
    ElementTree.register_namespace("xlink", _XLINK)
    root = ElementTree.fromstring(_svg(figure))  # our own text, not somebody's file
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{{{_SVG}}}metadata",):
                parent.remove(child)
    for element in root.iter():
        for name, value in list(element.attrib.items()):
            if name == "id":
                if element.tag == f"{{{_SVG}}}g":
                    del element.attrib["id"]  # figure_1, axes_1, …: nothing refers to them
                else:
                    element.set(name, f"{prefix}-{value}")
            elif name == f"{{{_XLINK}}}href":
                del element.attrib[name]
                element.set("href", value.replace("#", f"#{prefix}-", 1))
            else:
                changed = value.replace("url(#", f"url(#{prefix}-").replace(_INK, "currentColor")
                changed = changed.replace("#000000", "currentColor")
                if element.tag == f"{{{_SVG}}}text" and name == "style":
                    changed = re.sub(r"font:[^;]*?([\d.]+px)[^;]*", r"font-size: \1", changed)
                element.set(name, changed)
        if element.tag == f"{{{_SVG}}}text" and "fill" not in element.get("style", ""):
            element.set("style", f"{element.get('style', '')}; fill: currentColor".lstrip("; "))
    for name in ("width", "height"):  # the page's style decides; viewBox keeps the shape
        root.attrib.pop(name, None)
    for place, (tag, text) in enumerate((("title", title), ("desc", description))):
        element = ElementTree.Element(f"{{{_SVG}}}{tag}", {"id": f"{prefix}-{tag}"})
        element.text = text
        root.insert(place, element)
    root.set("role", "img")
    root.set("aria-labelledby", f"{prefix}-title {prefix}-desc")
    return ElementTree.tostring(root, encoding="unicode")


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure in the format of the path's suffix, on white, with ink in black, PNG at 300 dpi.

    Raises:
        UnknownNameError: another suffix than :data:`FIGURE_FORMATS`.
        StorageError: the disk is full or cannot be written.
    """
    kind = path.suffix.removeprefix(".").lower()
    if kind not in FIGURE_FORMATS:
        raise unknown_name("figure format", kind, FIGURE_FORMATS)
    # No dates: the same run gives the same bytes.
    metadata = {"png": {"Software": None}, "svg": {"Date": None}, "pdf": {"CreationDate": None, "ModDate": None}}[kind]
    content = io.BytesIO()
    with plot_style():
        figure.savefig(content, format=kind, dpi=_DPI, metadata=metadata)
    write_atomically(path, content.getvalue(), option="--figures")


def check_formats(formats: Sequence[str]) -> None:
    """Refuse a format that figures are not written in.

    Raises:
        UnknownNameError: no such format.
    """
    for kind in formats:
        if kind not in FIGURE_FORMATS:
            raise unknown_name("figure format", kind, FIGURE_FORMATS)


def save_figures(
    data: RunData,
    folder: Path,
    *,
    spaces: Sequence[Space] = (),
    disks: Sequence[Disk] = (),
    formats: Sequence[str] = FIGURE_FORMATS,
) -> list[Path]:
    """Write every figure of a run for a paper.

    The figures of a single cell (confusion or agreement, learning curves, speakers) are those of the best trained fusion.

    Args:
        data: the run.
        folder: where to.
        spaces: projected embedding spaces, where the stores are at hand.
        disks: fused points, where a head is at hand.
        formats: some of :data:`FIGURE_FORMATS`.

    Returns:
        The files, in order.

    Raises:
        UnknownNameError: no such format.
        StorageError: the disk is full or cannot be written.
    """
    check_formats(formats)
    cell = data.cells[data.first]
    figures: dict[str, Figure] = {
        "table": plot_table(data.grid),
        "intervals": plot_intervals(data.scores, data.titles),
        "speakers": plot_speakers(cell.speaker_scores, cell.title, data.measure),
    }
    if data.run.dimensions:
        figures["agreement"] = plot_agreement(data.true_values, cell.predicted, data.run.dimensions, cell.title)
    else:
        figures["confusion"] = plot_confusion(cell.score, data.classes, cell.title)
    if any(score.right for score in data.scores):
        figures["shuffles"] = plot_shuffles(data.scores, data.titles)
    if cell.curves:
        figures["curves"] = plot_curves(cell.curves, cell.title)
    for space in spaces:
        for by in ("emotion", "speaker"):
            figures[f"space-{_plain(space.encoder)}-{by}"] = plot_space(space, by=by)
    for disk in disks:
        figures[f"disk-{_plain(disk.title)}"] = plot_disk(disk)
    written = []
    for name, figure in figures.items():
        for kind in formats:
            path = folder / f"{name}.{kind}"
            save_figure(figure, path)
            written.append(path)
    return written


def _plain(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-")[:60] or "unnamed"
