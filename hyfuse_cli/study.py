"""``hyfuse study``: the experiments of the papers beyond the comparison, one command each."""

from __future__ import annotations

import typer

from hyfuse_cli.study_asr_fusion import study_asr_fusion
from hyfuse_cli.study_distill import study_distill
from hyfuse_cli.study_layers import study_layers
from hyfuse_cli.study_noise import study_noise

__all__ = ["app"]

app = typer.Typer(
    help="Layers, noise, distillation, ASR fusion: one table with intervals and answers each.", no_args_is_help=True
)

app.command("asr-fusion")(study_asr_fusion)
app.command("distill")(study_distill)
app.command("layers")(study_layers)
app.command("noise")(study_noise)
