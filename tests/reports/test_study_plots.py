"""Figures of studies: what is drawn is what the outcome says."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from pipelines.errors import UnknownNameError
from pipelines.reports.plots import inline_svg
from pipelines.reports.study_plots import describe, is_wide, plot_outcome_figure, save_study_figures
from pipelines.studies.outcome import FIGURE_KINDS, Figure, Series
from tests.reports.fake_run import HOSTILE
from tests.reports.fake_study import layers_outcome, noise_outcome

FIGURES = {figure.name: figure for outcome in (noise_outcome(), layers_outcome()) for figure in outcome.figures}


def test_every_kind_is_among_the_examples() -> None:
    assert {figure.kind for figure in FIGURES.values()} == set(FIGURE_KINDS)


def test_lines_have_their_points_and_bands_where_there_are_intervals() -> None:
    figure = FIGURES["degradation"]
    (axes,) = plot_outcome_figure(figure).axes
    for line, series in zip(axes.lines, figure.series, strict=True):
        np.testing.assert_array_equal(line.get_xdata(), series.x)
        np.testing.assert_array_equal(line.get_ydata(), series.y)  # with the gaps
    assert len(axes.collections) == 3  # the last one has no interval
    bottom = axes.collections[0].get_paths()[0].vertices[:, 1].min()
    assert bottom == pytest.approx(min(figure.series[0].low))
    assert [label.get_text() for label in axes.get_xticklabels()] == ["clean", "20 dB", "10 dB", "5 dB", "0 dB"]


def test_lines_are_drawn_from_left_to_right() -> None:
    figure = replace(FIGURES["truncated"], series=(Series(name="a", x=(3.0, 1.0, 2.0), y=(30.0, 10.0, 20.0)),))
    (line,) = plot_outcome_figure(figure).axes[0].lines
    np.testing.assert_array_equal(line.get_xydata(), [[1, 10], [2, 20], [3, 30]])


def test_bars_stand_side_by_side_with_whiskers() -> None:
    figure = FIGURES["areas"]
    (axes,) = plot_outcome_figure(figure).axes
    heights = [bar.get_height() for bar in axes.patches]
    assert heights == [value for series in figure.series for value in series.y]
    edges = sorted((bar.get_x(), bar.get_x() + bar.get_width()) for bar in axes.patches)
    assert all(after[0] >= before[1] for before, after in itertools.pairwise(edges))
    whiskers = [path.vertices[:, 1].tolist() for group in axes.collections for path in group.get_paths()]
    assert whiskers == [
        [low, high] for series in figure.series for low, high in zip(series.low, series.high, strict=True)
    ]


def test_a_heat_map_holds_its_numbers_and_a_difference_is_white_at_zero() -> None:
    axes = plot_outcome_figure(FIGURES["layers"]).axes[0]
    texts = [text.get_text() for text in axes.texts]
    assert texts[:3] == ["0.60", "0.58", "0.57"]
    assert len(texts) == 3 * 13
    mesh = plot_outcome_figure(FIGURES["change"]).axes[0].collections[0]
    assert mesh.norm(0.0) == pytest.approx(0.5)
    assert mesh.cmap.name == "RdBu"
    assert "−" in "".join(text.get_text() for text in plot_outcome_figure(FIGURES["change"]).axes[0].texts)


def test_a_heat_map_leaves_out_what_there_is_not() -> None:
    figure = replace(
        FIGURES["layers"],
        series=(Series(name="a", x=(0.0, 2.0), y=(0.1, math.nan)), Series(name="b", x=(1.0,), y=(0.3,))),
    )
    axes = plot_outcome_figure(figure).axes[0]
    assert [(text.get_position(), text.get_text()) for text in axes.texts] == [((0, 0), "0.10"), ((1, 1), "0.30")]


def test_tiny_differences_are_not_drawn_as_black_and_white() -> None:
    figure = replace(FIGURES["layers"], series=(Series(name="a", x=(0.0, 1.0), y=(0.2420, 0.2428)),))
    mesh = plot_outcome_figure(figure).axes[0].collections[0]
    shades = mesh.norm([0.2420, 0.2428])
    assert abs(shades[1] - shades[0]) < 0.05


def test_points_of_a_scatter_have_their_names() -> None:
    (axes,) = plot_outcome_figure(FIGURES["wer"]).axes
    assert [text.get_text() for text in axes.texts] == ["clean", "20 dB", "10 dB", "5 dB", "0 dB"]
    assert axes.get_xlabel() == "WER %"


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_becomes_the_same_well_formed_svg_every_time(name: str) -> None:
    one, two = (
        inline_svg(plot_outcome_figure(FIGURES[name]), prefix="p", title="T", description=describe(FIGURES[name]))
        for _ in range(2)
    )
    assert one == two
    root = ElementTree.fromstring(one)
    assert root.findtext("{http://www.w3.org/2000/svg}title") == "T"
    assert FIGURES[name].about in str(root.findtext("{http://www.w3.org/2000/svg}desc"))


@pytest.mark.parametrize("kind", FIGURE_KINDS)
def test_odd_figures_are_drawn_all_the_same(kind: str) -> None:
    """Hostile names, nothing at all, one point, nothing but gaps, more series than a legend holds."""
    empty = Figure(name="f", title="t", about="", kind=kind, x_label="", y_label="", series=())
    point = Series(name=HOSTILE[4], x=(0.0,), y=(0.5,), low=(0.4,), high=(0.6,), labels=(HOSTILE[0],))
    gaps = Series(name="gaps", x=(0.0, 1.0), y=(math.nan, math.nan))
    many = tuple(Series(name=f"s{k}", x=(0.0, 1.0), y=(float(k), -float(k))) for k in range(30))
    for series in ((), (point,), (gaps,), (point, gaps), many):
        for ticks in ((), HOSTILE[:2]):
            figure = replace(empty, series=series, ticks=ticks)
            svg = inline_svg(plot_outcome_figure(figure), prefix="x", title="t", description=describe(figure))
            ElementTree.fromstring(svg)
            assert "<script" not in svg


def test_what_needs_the_width_of_a_page() -> None:
    assert is_wide(FIGURES["layers"])
    assert not is_wide(FIGURES["degradation"])
    assert not is_wide(FIGURES["truncated"])  # numbers, not names
    assert is_wide(replace(FIGURES["areas"], ticks=tuple("abcdefgh")))


def test_figures_for_a_paper(tmp_path: Path) -> None:
    written = save_study_figures(noise_outcome(), tmp_path / "paper", formats=("svg", "png"))
    assert [path.name for path in written] == [
        "degradation.svg", "degradation.png", "areas.svg", "areas.png", "wer.svg", "wer.png",
    ]  # fmt: skip
    assert all(path.stat().st_size > 1000 for path in written)
    with pytest.raises(UnknownNameError, match="figure format 'gif'"):
        save_study_figures(noise_outcome(), tmp_path, formats=("gif",))
