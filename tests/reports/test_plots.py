from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from pipelines.errors import UnknownNameError
from pipelines.reports.plots import (
    inline_svg,
    plot_disk,
    plot_shuffles,
    plot_space,
    plot_table,
    save_figure,
    save_figures,
)
from pipelines.reports.run_data import RunData, read_run_data
from pipelines.reports.spaces import Disk, Space
from tests.reports.fake_run import HOSTILE, make_run

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> RunData:
    return read_run_data(make_run(tmp_path_factory.mktemp("runs") / "toy"))


def _space(names: tuple[str, ...], count: int = 40) -> Space:
    generator = np.random.default_rng(0)
    groups = np.arange(count) % len(names)
    return Space(
        encoder=names[0], representation="latent", points=generator.normal(size=(count, 2)), explained=(0.4, 0.2),
        labels=groups, classes=names, speaker_index=groups, speakers=names, description="points",
    )  # fmt: skip


def _disk(names: tuple[str, ...]) -> Disk:
    return Disk(
        "cell <1>", "1", np.array([[0.1, 0.2], [-0.5, 0.0], [0.0, 0.9]]), np.array([0, 1, 1]), names, "three points"
    )


def test_an_inline_svg_has_a_point_per_utterance_and_names_for_a_screen_reader() -> None:
    svg = inline_svg(plot_space(_space(("anger", "joy"))), prefix="p-1", title="A & B", description='says "it"')
    root = ElementTree.fromstring(svg)
    assert root.get("role") == "img"
    assert root.get("aria-labelledby") == "p-1-title p-1-desc"
    assert [root[0].text, root[1].text] == ["A & B", 'says "it"']
    points = [use for use in root.iter(f"{SVG}use") if (use.get("href") or "").startswith("#p-1-")]
    assert len(points) >= 40
    texts = ["".join(element.itertext()) for element in root.iter(f"{SVG}text")]
    assert {"anger", "joy"} <= set(texts)


def test_two_figures_on_a_page_share_no_id_and_every_reference_has_its_target() -> None:
    figures = [plot_space(_space(("anger", "joy"))), plot_disk(_disk(("anger", "joy")))]
    ids: list[str] = []
    for place, figure in enumerate(figures):
        svg = inline_svg(figure, prefix=f"p-{place}", title="t", description="d")
        root = ElementTree.fromstring(svg)
        own = [value for element in root.iter() if (value := element.get("id"))]
        wanted = [(use.get("href") or "").removeprefix("#") for use in root.iter(f"{SVG}use")]
        clips = [value[5:-1] for element in root.iter() if (value := element.get("clip-path"))]
        assert set(wanted) | set(clips) <= set(own)
        ids += own
    assert len(ids) == len(set(ids))


def test_ink_takes_the_colour_of_the_page() -> None:
    svg = inline_svg(plot_disk(_disk(("anger", "joy"))), prefix="p", title="t", description="d")
    assert "currentColor" in svg
    assert "#010203" not in svg
    assert "#000000" not in svg
    assert "<metadata" not in svg


@pytest.mark.parametrize("name", HOSTILE)
def test_names_are_taken_literally(name: str) -> None:
    """No TeX, no markup: what stands in the figure is the name, shortened if it is too long."""
    svg = inline_svg(plot_space(_space((name, "b"))), prefix="p", title=name, description=name)
    root = ElementTree.fromstring(svg)
    texts = [" ".join("".join(element.itertext()).split()) for element in root.iter(f"{SVG}text")]
    expected = name if len(name) <= 22 else f"{name[:21]}…"
    assert " ".join(expected.split()) in texts
    assert not list(root.iter(f"{SVG}script"))


def test_the_same_figure_gives_the_same_bytes() -> None:
    first, second = (
        inline_svg(plot_space(_space(("a", "b"))), prefix="p", title="t", description="d") for _ in range(2)
    )
    assert first == second


def test_many_speakers_have_no_legend() -> None:
    svg = inline_svg(
        plot_space(_space(tuple(f"s{n}" for n in range(30))), by="speaker"), prefix="p", title="t", description="d"
    )
    assert "30 speakers, each with a colour and marker" in svg


def test_figures_for_a_paper(data: RunData, tmp_path: Path) -> None:
    spaces, disks = [_space(("anger", "joy"))], [_disk(("anger", "joy"))]
    written = save_figures(data, tmp_path / "one", spaces=spaces, disks=disks, formats=("png", "pdf"))
    names = {path.stem for path in written}
    assert names == {
        "table", "intervals", "confusion", "speakers", "shuffles", "curves",
        "space-anger-emotion", "space-anger-speaker", "disk-cell-1",
    }  # fmt: skip
    for path in written:
        content = path.read_bytes()
        assert content.startswith(b"%PDF" if path.suffix == ".pdf" else b"\x89PNG")
        if path.suffix == ".pdf":
            assert b"/Type3" not in content  # journals refuse such fonts
        else:
            with Image.open(path) as image:
                assert image.info["dpi"][0] == pytest.approx(300, abs=0.1)
                assert image.width > 900
    again = save_figures(data, tmp_path / "two", spaces=spaces, disks=disks, formats=("png", "pdf"))
    assert [path.read_bytes() for path in written] == [path.read_bytes() for path in again]


def test_a_figure_format_that_does_not_exist(data: RunData, tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match=r"figure format 'jpg'.*pdf, png, svg"):
        save_figures(data, tmp_path, formats=("jpg",))
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UnknownNameError, match=r"figure format"):
        save_figure(plot_table(data.grid), tmp_path / "x.bmp")


def test_figures_of_dimensions(tmp_path: Path) -> None:
    data = read_run_data(make_run(tmp_path / "run", dimensions=("arousal", "valence")))
    written = save_figures(data, tmp_path / "paper", formats=("svg",))
    names = {path.name for path in written}
    assert {"table.svg", "intervals.svg", "shuffles.svg", "speakers.svg", "agreement.svg"} <= names
    assert "confusion.svg" not in names
    text = (tmp_path / "paper" / "intervals.svg").read_text(encoding="utf-8")
    assert "CCC, 95 % interval" in text
    assert "true valence" in (tmp_path / "paper" / "agreement.svg").read_text(encoding="utf-8")


def test_drops_that_are_not_significant_are_empty(tmp_path: Path) -> None:
    voices = [f"s{number}" for number in range(12)]
    data = read_run_data(make_run(tmp_path / "run", ignored=("concat",), speakers=voices, per_speaker=24))
    (axes,) = plot_shuffles(data.scores, data.titles).axes
    filled = {line.get_marker(): [] for line in axes.lines if line.get_marker() in "<>"}
    for line in axes.lines:
        if line.get_marker() in filled:
            filled[line.get_marker()].append(line.get_markerfacecolor() != "white")
    assert all(filled["<"])
    assert filled[">"].count(False) >= 2  # both pairs under concat, which ignores its right input
