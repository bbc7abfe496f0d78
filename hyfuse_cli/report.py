"""``hyfuse report``: a run or a study as one HTML page, as tables for a paper or another program, and as figures."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hyfuse_cli import console
from hyfuse_cli.options import RunsDir

if TYPE_CHECKING:
    from pipelines.evaluation.runs import Run
    from pipelines.locations import Location
    from pipelines.studies.outcome import Outcome

__all__ = ["report"]

_FORMATS = ("html", "md", "latex", "csv")

if TYPE_CHECKING:
    _OtherCache = Location | None
else:  # typer takes no unions of parsed types
    from pipelines.locations import as_location

    _OtherCache = Annotated[
        Path | None,
        typer.Option(
            "--cache-dir",
            metavar="DIR|s3://…|gs://…",
            parser=lambda text: as_location(str(text)),
            help="Where the embedding stores lie now; default: where the run found them.",
        ),
    ]


def report(
    run: Annotated[Path, typer.Argument(help="Folder of a run, or its name below --runs-dir.", metavar="RUN")],
    form: Annotated[str, typer.Option("--format", help="html, md, latex or csv.")] = "html",
    out: Annotated[
        Path | None, typer.Option("--out", help="File to write; default: RUN/report.html, tables to standard output.")
    ] = None,
    figures: Annotated[Path | None, typer.Option("--figures", help="Folder for figures for a paper.")] = None,
    figure_formats: Annotated[
        str, typer.Option("--figure-formats", help="Of the figures, comma separated: png, svg, pdf.")
    ] = "png,svg,pdf",
    disk: Annotated[
        str | None, typer.Option("--disk", help="Cell whose fused points are shown; default: the best one in the ball.")
    ] = None,
    pictures: Annotated[
        bool,
        typer.Option(
            "--pictures/--no-pictures",
            help="Embedding spaces and Poincaré disk; they need the stores and a few seconds.",
        ),
    ] = True,
    runs_dir: RunsDir = Path("runs"),
    cache_dir: _OtherCache = None,
) -> None:
    """Write the report of a run or a study: one HTML file that opens by double click and loads nothing from the network.

    With --format md, latex (booktabs) or csv, the tables alone, on standard output; with --figures DIR, every figure as PNG, SVG
    and PDF.
    """
    from pipelines.errors import RunError, unknown_name
    from pipelines.files import write_atomically
    from pipelines.studies.outcome import OUTCOME_FILE, read_outcome

    if form not in _FORMATS:
        raise unknown_name("report format", form, _FORMATS)
    folder = run if run.is_dir() or len(run.parts) != 1 else runs_dir / run
    kinds = [name for name in re.split(r"[\s,]+", figure_formats) if name]
    if (folder / OUTCOME_FILE).is_file():
        _study(read_outcome(folder), folder, form, out=out, figures=figures, kinds=kinds)
        return
    if not folder.is_dir():
        runs = {path.parent.name for name in ("config.json", OUTCOME_FILE) for path in folder.parent.glob(f"*/{name}")}
        near = f" Runs in {folder.parent}: {', '.join(sorted(runs)[:10])}." if runs else ""
        raise RunError(
            f"There is no run folder {folder}.{near} Give the folder that `hyfuse compare` or `hyfuse study` named at its end."
        )
    from pipelines.reports.run_data import read_run_data

    if form != "html" and figures is None:
        from pipelines.evaluation.runs import read_run

        _write_table(read_run(folder), form, out)
        return
    data = read_run_data(folder)
    shown = None
    if pictures:
        from pipelines.reports.spaces import read_pictures

        with console.meter("pictures", "steps") as update:
            update(0, 1)
            shown = read_pictures(data, cache_dir=cache_dir, disk=disk or "")
            update(1, 1)
    if figures is not None:
        from pipelines.reports.plots import save_figures

        written = save_figures(
            data,
            figures,
            spaces=shown.spaces if shown else (),
            disks=shown.disks if shown else (),
            formats=kinds,
        )
        console.say(f"{len(written)} figures are in {figures}.")
    if form != "html":
        _write_table(data.run, form, out)
        return
    from pipelines.reports.page import build_page

    path = out or folder / "report.html"
    page = build_page(data, shown)
    write_atomically(path, page, option="--out")
    console.say(f"The report is {path} ({len(page.encode()) / 1e6:.1f} MB, one file).")
    if shown:
        for note in (shown.space_note, shown.disk_note):
            if note.startswith("Not shown"):
                console.say(note)
    for warning in data.warnings:
        console.say(warning)


def _write_table(run: Run, form: str, out: Path | None) -> None:
    from pipelines.reports.published import beside_run, published_markdown
    from pipelines.reports.tables import build_run_table, to_csv, to_latex, to_markdown

    text = {"md": to_markdown, "latex": to_latex, "csv": to_csv}[form](build_run_table(run))
    if form == "md":
        text += "\n" + published_markdown(beside_run(run))
    _give(text, out, "The table is")


def _give(text: str, out: Path | None, what: str) -> None:
    """To standard output, or into a file."""
    from pipelines.files import write_atomically

    if out is None:
        typer.echo(text, nl=False)
        return
    write_atomically(out, text, option="--out")
    console.say(f"{what} {out}.")


def _study(
    outcome: Outcome, folder: Path, form: str, *, out: Path | None, figures: Path | None, kinds: list[str]
) -> None:
    """The same for the run of a study, from its ``study.json`` alone."""
    from pipelines.files import write_atomically

    if figures is not None:
        from pipelines.reports.study_plots import save_study_figures

        written = save_study_figures(outcome, figures, formats=kinds)
        console.say(f"{len(written)} figures are in {figures}.")
    if form != "html":
        from pipelines.reports.published import beside_outcome
        from pipelines.reports.study_tables import outcome_csv, outcome_latex, outcome_markdown

        if form == "md":
            text = outcome_markdown(outcome, beside_outcome(outcome))
        else:
            text = {"latex": outcome_latex, "csv": outcome_csv}[form](outcome)
        _give(text, out, "The tables are")
        return
    from pipelines.reports.study_page import build_study_page

    path = out or folder / "report.html"
    page = build_study_page(outcome, folder.resolve().name)
    write_atomically(path, page, option="--out")
    console.say(f"The report is {path} ({len(page.encode()) / 1e6:.1f} MB, one file).")
    for warning in outcome.warnings:
        console.say(warning)
