"""``hyfuse fusions``: the ways to fuse two representations."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from hyfuse_cli import console
from hyfuse_cli.options import AsJson

if TYPE_CHECKING:
    from pipelines.fusion.catalogue import FusionSpec

__all__ = ["app"]

app = typer.Typer(help="The fusions: what they are, which options they take.", no_args_is_help=True)


@app.command("list")
def list_fusions(as_json: AsJson = False) -> None:
    """List the fusions, those of other packages last (without importing them)."""
    from rich.table import Table

    from pipelines.fusion.catalogue import FUSIONS, fusion_plugin_problems, fusion_plugins

    if as_json:
        for spec in FUSIONS.values():
            typer.echo(json.dumps(_described(spec), ensure_ascii=False))
        for plugin in fusion_plugins():
            known = {"name": plugin.name, "package": plugin.package, "version": plugin.version, "target": plugin.target}
            typer.echo(json.dumps(known, ensure_ascii=False))
        return
    table = Table(box=None, pad_edge=False)
    for column in ("name", "what it is", "options"):
        table.add_column(column)
    for spec in FUSIONS.values():
        table.add_row(spec.name, escape(spec.summary), ", ".join(spec.options))
    for plugin in fusion_plugins():
        table.add_row(plugin.name, escape(f"of the package {plugin.made_by}"), "")
    console.out.print(table)
    for problem in fusion_plugin_problems():
        console.say(f"Left out: {problem}")
    console.note("One fusion: `hyfuse fusions show NAME`. Formulas: docs/fusion.md. Your own: docs/own-fusion.md.")


@app.command("show")
def show_fusion(name: Annotated[str, typer.Argument(help="Fusion.")], as_json: AsJson = False) -> None:
    """Show one fusion: its source, its options with default and range, the package it comes from."""
    from pipelines.fusion.catalogue import fusion_plugin, fusion_spec

    spec = fusion_spec(name)
    plugin = fusion_plugin(name)
    if as_json:
        package = {} if plugin is None else {"package": plugin.package, "version": plugin.version}
        typer.echo(json.dumps({**_described(spec), **package}, ensure_ascii=False))
        return
    lines = {
        "name": spec.name,
        "what it is": spec.summary,
        "source": spec.source,
        "operands": "may be exchanged" if spec.commutative else "have an order; see --order",
        "package": "" if plugin is None else plugin.made_by,
    }
    for key, option in spec.options.items():
        values = " or ".join(option.choices) or f"{option.minimum:g} to {option.maximum:g}"
        lines[f"--option {key}"] = f"{option.about}; {values}; default {option.default}"
    width = max(map(len, lines))
    for head, text in lines.items():
        if text:
            console.out.print(f"{head:<{width}}  {text}", markup=False, soft_wrap=True)


@app.command("check")
def check_fusion(
    name: Annotated[str, typer.Argument(help="Fusion, of hyfuse or of another package.")],
    option: Annotated[list[str] | None, typer.Option("--option", help="NAME=VALUE; repeatable.")] = None,
    as_json: AsJson = False,
) -> None:
    """Check shapes, gradients, and that a head gives the same alone and in a stack, untrained and trained.

    Exit status 1 if a promise is broken.
    """
    from dataclasses import asdict

    from rich.table import Table

    from pipelines.errors import ConfigError
    from pipelines.studies.fusion_check import check_fusion as check_every

    options = dict(entry.partition("=")[::2] for entry in option or ())
    if wrong := [key for key, value in options.items() if not value]:
        raise ConfigError(f"--option must be NAME=VALUE, such as max_radius=0.3, not {wrong[0]!r}.")
    table = Table(box=None, pad_edge=False)
    for column in ("", "promise", "seen"):
        table.add_column(column, overflow="fold")
    broken = 0
    for check in check_every(name, options=options):
        broken += not check.kept
        if as_json:
            typer.echo(json.dumps(asdict(check), ensure_ascii=False))
        else:
            mark = "[green]kept[/]" if check.kept else "[bold red]broken[/]"
            table.add_row(mark, check.name, escape(check.found))
    if not as_json:
        console.out.print(table)
        if broken:
            console.say(f"{broken} of the promises of docs/own-fusion.md broken: results of {name} cannot be trusted.")
        else:
            console.say(f"Every promise is kept. Next: hyfuse compare --fusions concat,{name}")
    if broken:
        raise typer.Exit(1)


def _described(spec: FusionSpec) -> dict[str, object]:
    """A catalogue entry as JSON values."""
    return {
        "name": spec.name,
        "summary": spec.summary,
        "source": spec.source,
        "commutative": spec.commutative,
        "options": {
            key: {"default": option.default, "about": option.about, "choices": list(option.choices)}
            for key, option in spec.options.items()
        },
    }
