"""``hyfuse bench``: speed and memory, as JSON. Ratios are against something measured in the same run."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from hyfuse_cli.options import Device, Weights, WeightsDir

__all__ = ["app"]

app = typer.Typer(help="Speed and memory, as JSON.", no_args_is_help=True)


@app.command("extract")
def extract(
    model: Annotated[list[str] | None, typer.Option("--model", "-m", help="Encoder; repeatable.")] = None,
    audio_seconds: Annotated[float, typer.Option("--audio-seconds", min=1, help="Seconds of synthetic audio.")] = 300.0,
    weights: Weights = "random",
    weights_dir: WeightsDir = None,
    device: Device = "auto",
) -> None:
    """Whole extraction against its bare forward passes and against one clip at a time."""
    from pipelines.encoders.catalogue import load_encoder
    from pipelines.extraction.bench import bench_extract
    from pipelines.extraction.engines.local import choose_device

    for name in model or ["byols", "soundstream-lyra", "xvector"]:
        encoder = load_encoder(name, weights=weights, device=choose_device(device), weights_dir=weights_dir)
        typer.echo(json.dumps(bench_extract(encoder, audio_s=audio_seconds)))


@app.command("train")
def train(
    fusion: Annotated[list[str] | None, typer.Option("--fusion", help="Fusion; repeatable.")] = None,
    left_dim: Annotated[int, typer.Option("--left-dim", min=1, help="Features of the left input.")] = 512,
    right_dim: Annotated[int, typer.Option("--right-dim", min=1, help="Features of the right input.")] = 128,
    heads: Annotated[int, typer.Option("--heads", min=1, help="Heads in all.")] = 10,
    epochs: Annotated[int, typer.Option("--epochs", min=1, help="Epochs.")] = 10,
) -> None:
    """Heads trained in stacks against one head per stack, on random numbers of Emo-DB's size."""
    from pipelines.training.bench import bench_train
    from pipelines.training.trainer import TrainConfig

    for name in fusion or ["concat", "attention", "hyperbolic"]:
        measured = bench_train(
            fusion=name, left_dim=left_dim, right_dim=right_dim, heads=heads, config=TrainConfig(epochs=epochs)
        )
        typer.echo(json.dumps(measured))
