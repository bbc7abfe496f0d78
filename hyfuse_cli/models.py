"""``hyfuse models``: the encoders and their weights."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from hyfuse_cli import completion, console, models_check
from hyfuse_cli.options import AsJson

__all__ = ["app"]

app = typer.Typer(help="The encoders: what they are, where their weights come from.", no_args_is_help=True)
app.command("check")(models_check.check_model)


@app.command("list")
def list_models(
    tiny: Annotated[bool, typer.Option("--tiny", help="Also the tiny sizes for demos and tests.")] = False,
    as_json: AsJson = False,
) -> None:
    """List the encoders, those of other packages last (without importing them)."""
    from pipelines.encoders.catalogue import (
        CATALOGUE,
        encoder_names,
        encoder_plugin_problems,
        encoder_plugins,
        encoder_spec,
    )

    names_of_all = encoder_names(tiny=tiny)
    if as_json:
        for name in names_of_all:
            if name in CATALOGUE:
                typer.echo(json.dumps(asdict(encoder_spec(name)), ensure_ascii=False))
        for plugin in encoder_plugins():
            if plugin.name in names_of_all:
                known = {
                    "name": plugin.name,
                    "package": plugin.package,
                    "version": plugin.version,
                    "target": plugin.target,
                }
                typer.echo(json.dumps(known, ensure_ascii=False))
        return
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in ("name", "family", "rate Hz", "D", "representations", "what it is"):
        table.add_column(column, justify="right" if column in {"rate Hz", "D"} else "left")
    for name in names_of_all:
        if name not in CATALOGUE:
            continue
        spec = encoder_spec(name)
        names = spec.representations
        listed = f"{names[0]} … {names[-1]}" if len(names) > 3 else ", ".join(names)
        rate = "text" if spec.takes_text else str(spec.sample_rate_hz)
        table.add_row(spec.name, spec.family, rate, str(spec.dim), listed, spec.title)
    for plugin in encoder_plugins():
        if plugin.name in names_of_all:
            table.add_row(plugin.name, "", "", "", "", f"of the package {plugin.made_by}")
    console.out.print(table)
    for problem in encoder_plugin_problems():
        console.say(f"Left out: {problem}")
    if not tiny:
        console.note("Sizes for demos and tests: `hyfuse models list --tiny`. One encoder: `hyfuse models show NAME`.")


@app.command("show")
def show_model(
    name: Annotated[
        str,
        typer.Argument(
            help="Encoder.",
            autocompletion=completion.encoders,
        ),
    ],
    as_json: AsJson = False,
) -> None:
    """Show one encoder: checkpoint, revision, licence, files and where they are looked for."""
    from pipelines.encoders.catalogue import encoder_plugin, encoder_spec

    spec, plugin = encoder_spec(name), encoder_plugin(name)
    if as_json:
        package = {} if plugin is None else {"package_of": plugin.package, "version": plugin.version}
        typer.echo(json.dumps({**asdict(spec), **package}, ensure_ascii=False))
        return
    hop = f"{spec.hop_samples} samples" if spec.hop_samples else "one vector per utterance"
    if spec.takes_text:
        hop = "one frame per token"
    lines = {
        "name": spec.name,
        "what it is": spec.title,
        "family": {
            "RLR": "RLR: representation learning",
            "CBR": "CBR: neural codec",
            "DSP": "DSP: signal processing",
            "LEX": "LEX: lexical, encodes texts",
        }.get(spec.family, spec.family),
        "takes": "texts" if spec.takes_text else f"mono, {spec.sample_rate_hz} Hz",
        "gives": f"{', '.join(spec.representations)}; D = {spec.dim}; {hop}",
        "default": spec.default_representation,
        "weights": spec.repository or ("random only" if spec.has_weights else "none"),
        "revision": spec.revision or ("not pinned" if spec.repository else ""),
        "files": ", ".join(file.name for file in spec.files),
        "sha256": ", ".join(file.sha256 for file in spec.files if file.sha256),
        "licence": spec.licence,
        "put them in": f"$HYFUSE_WEIGHTS/{spec.name}/ (downloaded otherwise)" if spec.files else "",
        "package": f"{spec.package.split('/')[0].replace('_', '-')}, if installed" if spec.package else "",
        "writes text": f"`hyfuse transcribe --model {spec.name}`" if spec.recogniser else "",
        "columns": ", ".join(spec.columns),
        "plug-in of": "" if plugin is None else f"the package {plugin.made_by}",
        "notes": spec.notes,
    }
    width = max(map(len, lines))
    for head, text in lines.items():
        if text:
            console.out.print(f"{head:<{width}}  {text}", markup=False, soft_wrap=True)
