"""``hyfuse study``: the experiments of the papers beyond the comparison, one command each."""

from __future__ import annotations

import typer

__all__ = ["app"]

app = typer.Typer(
    help="Layers, noise, distillation, ASR fusion: one table with intervals and answers each.", no_args_is_help=True
)
