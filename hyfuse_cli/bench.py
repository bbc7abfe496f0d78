"""``hyfuse bench``: speed and memory, as JSON. Ratios are against something measured in the same run."""

from __future__ import annotations

import typer

__all__ = ["app"]

app = typer.Typer(help="Speed and memory, as JSON.", no_args_is_help=True)
