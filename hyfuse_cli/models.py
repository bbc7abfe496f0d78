"""``hyfuse models``: the encoders and their weights."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from hyfuse_cli import console
from hyfuse_cli.options import AsJson

__all__ = ["app"]

app = typer.Typer(help="The encoders: what they are, where their weights come from.", no_args_is_help=True)


@app.command("list")
def list_models(
    tiny: Annotated[bool, typer.Option("--tiny", help="Also the tiny sizes for demos and tests.")] = False,
    as_json: AsJson = False,
) -> None:
    """List the encoders."""
    if as_json:
        from pipelines.encoders.catalogue import encoder_names, encoder_spec

        for name in encoder_names(tiny=tiny):
            typer.echo(json.dumps(asdict(encoder_spec(name)), ensure_ascii=False))
        return
    from rich.table import Table

    from pipelines.encoders.catalogue import encoder_names, encoder_spec

    table = Table(box=None, pad_edge=False)
    for column in ("name", "family", "rate Hz", "D", "representations", "what it is"):
        table.add_column(column, justify="right" if column in {"rate Hz", "D"} else "left")
    for name in encoder_names(tiny=tiny):
        spec = encoder_spec(name)
        names = spec.representations
        listed = f"{names[0]} … {names[-1]}" if len(names) > 3 else ", ".join(names)
        rate = "text" if spec.takes_text else str(spec.sample_rate_hz)
        table.add_row(spec.name, spec.family, rate, str(spec.dim), listed, spec.title)
    console.out.print(table)
    if not tiny:
        console.note("Sizes for demos and tests: `hyfuse models list --tiny`. One encoder: `hyfuse models show NAME`.")


@app.command("show")
def show_model(name: Annotated[str, typer.Argument(help="Encoder.")], as_json: AsJson = False) -> None:
    """Show one encoder: checkpoint, revision, licence, files and where they are looked for."""
    from pipelines.encoders.catalogue import encoder_spec

    spec = encoder_spec(name)
    if as_json:
        typer.echo(json.dumps(asdict(spec), ensure_ascii=False))
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
        "notes": spec.notes,
    }
    width = max(map(len, lines))
    for head, text in lines.items():
        if text:
            console.out.print(f"{head:<{width}}  {text}", markup=False, soft_wrap=True)
