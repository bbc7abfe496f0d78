"""``hyfuse models check``: does an encoder keep its promises?"""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import Annotated

import typer
from rich.markup import escape

from hyfuse_cli import console
from hyfuse_cli.options import AsJson, Device, Weights, WeightsDir

__all__ = ["check_model"]


def check_model(
    name: Annotated[str, typer.Argument(help="Encoder, of hyfuse or of another package.")],
    weights: Weights = "pretrained",
    weights_dir: WeightsDir = None,
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """Check that an encoder gives the same alone and in a batch, twice, on any thread, and as many frames as it says.

    Exit status 1 if a promise is broken.
    """
    from rich.table import Table

    from pipelines.encoders.catalogue import encoder_plugin
    from pipelines.encoders.conformance import check_encoder
    from pipelines.extraction.engines.local import choose_device

    table = Table(box=None, pad_edge=False)
    for column in ("", "promise", "worst", "allowed", "seen"):
        table.add_column(column, justify="right" if column in {"worst", "allowed"} else "left", overflow="fold")
    broken = 0
    plugin = encoder_plugin(name)
    if plugin is not None and not as_json:
        console.note(f"{name} is of the package {plugin.made_by} ({plugin.target}).")
    for check in check_encoder(name, weights=weights, weights_dir=weights_dir, device=choose_device(device)):
        broken += not check.kept
        if as_json:
            values = asdict(check)
            typer.echo(
                json.dumps(
                    {key: None if value != value else value for key, value in values.items()}, ensure_ascii=False
                )
            )
            continue
        table.add_row(
            "[green]kept[/]" if check.kept else "[bold red]broken[/]",
            check.name,
            *("" if math.isnan(value) else f"{value:.0e}" if value else "0" for value in (check.worst, check.allowed)),
            escape(check.found),
        )
    if not as_json:
        console.out.print(table)
        if broken:
            console.say(
                f"{broken} of the promises of pipelines/encoders/base.py broken: a cache made by {name} cannot be trusted."
            )
        else:
            console.say(f"Every promise is kept. Next: hyfuse extract --model {name} --corpus demo --weights {weights}")
    if broken:
        raise typer.Exit(1)
