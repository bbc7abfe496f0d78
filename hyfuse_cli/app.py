"""The ``hyfuse`` command. Exit status: 0 done, 1 a check found problems, 2 a mistake that is explained, 130 interrupted."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

import pipelines
from hyfuse_cli import (
    bench,
    cache,
    compare,
    compare_runs,
    corpora,
    demo,
    doctor,
    embed,
    export,
    extract,
    fusions,
    models,
    push,
    report,
    study,
    train,
    transcribe,
    tune,
)
from hyfuse_cli.options import DEFAULT_CACHE
from pipelines.errors import HyfuseError
from pipelines.locations import as_location

__all__ = ["app", "main"]

app = typer.Typer(
    name="hyfuse",
    help="Which frozen speech representations, fused how, recognise emotion best?\n\n"
    "Stage 1 turns recordings into embeddings, once: `hyfuse extract`. Stage 2 compares every pair and fusion of them,"
    " many times: `hyfuse compare`. `make all-pairs` does both on a built-in demo corpus.",
    invoke_without_command=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("doctor")(doctor.doctor)
app.command("extract")(extract.extract)
app.command("transcribe")(transcribe.transcribe)
app.command("embed")(embed.embed)
app.command("train")(train.train)
app.command("compare")(compare.compare)
app.command("export")(export.export)
app.command("predict")(export.predict)
app.command("push")(push.push)
app.command("demo")(demo.demo)
app.command("compare-runs")(compare_runs.compare_runs)
app.command("tune")(tune.tune)
app.command("report")(report.report)
app.add_typer(study.app, name="study")
app.add_typer(corpora.app, name="corpora")
app.add_typer(models.app, name="models")
app.add_typer(fusions.app, name="fusions")
app.add_typer(cache.app, name="cache")
app.add_typer(bench.app, name="bench")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"hyfuse {pipelines.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error (anywhere on the line).")
    ] = False,
) -> None:
    del version, debug
    if context.invoked_subcommand is None:
        doctor.what_next(as_location(os.environ.get("HYFUSE_CACHE") or str(DEFAULT_CACHE)), Path("runs"))


def main() -> None:
    """Run the command line; mistakes end as one paragraph, not as a traceback."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    debug = len(arguments) < len(sys.argv) - 1 or bool(os.environ.get("HYFUSE_DEBUG"))
    try:
        app(args=arguments, prog_name="hyfuse")
    except HyfuseError as mistake:
        if debug:
            raise
        from hyfuse_cli import console

        console.error(str(mistake))
        sys.exit(2)
    except SystemExit as ended:  # typer has turned Ctrl-C into this
        if ended.code == 130:
            from hyfuse_cli import console

            console.say("Interrupted. Whatever was finished is kept; the same command goes on from there.")
        raise
    except BrokenPipeError:  # the reader of our output went away, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


if __name__ == "__main__":
    main()
