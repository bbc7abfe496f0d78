"""``hyfuse bench``: speed and memory, as JSON. Ratios are against something measured in the same run."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from hyfuse_cli.extract import open_corpus
from hyfuse_cli.options import DataRoot, Device, Weights, WeightsDir, Workers

__all__ = ["app"]

app = typer.Typer(help="Speed and memory, as JSON.", no_args_is_help=True)


@app.command("extract")
def extract(
    model: Annotated[list[str] | None, typer.Option("--model", "-m", help="Encoder; repeatable.")] = None,
    audio_seconds: Annotated[float, typer.Option("--audio-seconds", min=1, help="Seconds of synthetic audio.")] = 300.0,
    weights: Weights = "random",
    weights_dir: WeightsDir = None,
    device: Device = "auto",
    precision: Annotated[
        str, typer.Option("--precision", help="float32, or bf16 where the encoder offers it.")
    ] = "float32",
    files: Annotated[str, typer.Option("--files", help="wav or flac.")] = "wav",
    corpus: Annotated[
        str | None, typer.Option("--corpus", help="All of a corpus instead of synthetic recordings.")
    ] = None,
    data_root: DataRoot = None,
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Times to measure, unless it takes long.")] = 3,
    naive_seconds: Annotated[
        float,
        typer.Option("--naive-seconds", min=0, help="Seconds of audio, at most, for the naive loop; 0 leaves it out."),
    ] = 60.0,
) -> None:
    """Whole extraction against its bare forward passes and against one clip at a time upstream; one line per model."""
    from pipelines.encoders.catalogue import encoder_spec, load_encoder

    names = model or ["wavlm", "encodec", "soundstream", "xvector"]
    for name in names:  # before anything slow
        encoder_spec(name, weights_dir=weights_dir)

    from pipelines.extraction.bench import bench_extract, synthetic_corpus
    from pipelines.extraction.engines.local import choose_device

    chosen = choose_device(device)
    with tempfile.TemporaryDirectory(prefix="hyfuse-bench-") as folder:
        if corpus is None:
            manifest = synthetic_corpus(Path(folder), audio_s=audio_seconds, files=files)
        else:
            manifest = open_corpus(corpus, data_root=data_root, cache_dir=Path(folder) / "cache")
        for name in names:
            encoder = load_encoder(name, weights=weights, device=chosen, weights_dir=weights_dir, precision=precision)
            measured = bench_extract(encoder, manifest, repeats=repeats, naive_s=naive_seconds, weights_dir=weights_dir)
            typer.echo(json.dumps(measured))


@app.command("scale")
def scale(
    rows: Annotated[int, typer.Option("--rows", min=1, help="Utterances of the simulated corpus.")] = 1_000_000,
    folder: Annotated[
        Path | None, typer.Option("--folder", help="Where to work; a temporary folder unless given. Kept, if given.")
    ] = None,
) -> None:
    """Memory of a huge corpus: extract it with an encoder that costs nothing, then read 1000 rows as training does."""
    from pipelines.extraction.scale import bench_scale

    typer.echo(json.dumps(bench_scale(rows, folder=folder)))


@app.command("train")
def train(
    fusion: Annotated[list[str] | None, typer.Option("--fusion", help="Fusion; repeatable.")] = None,
    left_dim: Annotated[int, typer.Option("--left-dim", min=1, help="Features of the left input.")] = 512,
    right_dim: Annotated[int, typer.Option("--right-dim", min=1, help="Features of the right input.")] = 128,
    dim: Annotated[int | None, typer.Option("--dim", min=1, help="Features of either input.")] = None,
    utterances: Annotated[int, typer.Option("--utterances", min=50, help="Made-up utterances.")] = 535,
    classes: Annotated[int, typer.Option("--num-classes", min=2, help="Made-up emotions.")] = 7,
    heads: Annotated[int, typer.Option("--heads", min=1, help="Heads in all.")] = 20,
    loop_heads: Annotated[
        int,
        typer.Option("--loop-heads", min=0, help="How many of them the plain loop trains as well; 0 leaves it out."),
    ] = 10,
    epochs: Annotated[int, typer.Option("--epochs", min=1, help="Epochs.")] = 30,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Utterances per step.")] = 32,
    processes: Annotated[
        int | None, typer.Option("--processes", min=1, help="For the whole machine; one per core unless given.")
    ] = None,
    device: Device = "cpu",
) -> None:
    """Heads trained in stacks against a plain PyTorch loop of the same mathematics, and whether they agree; random numbers."""
    from pipelines.fusion.catalogue import fusion_spec
    from pipelines.training.bench import bench_train
    from pipelines.training.trainer import TrainConfig

    names = fusion or ["concat", "hyperbolic"]
    for name in names:  # before anything slow
        fusion_spec(name)
    for name in names:
        measured = bench_train(
            fusion=name,
            left_dim=dim or left_dim,
            right_dim=dim or right_dim,
            utterances=utterances,
            num_classes=classes,
            heads=heads,
            loop_heads=min(loop_heads, heads),
            config=TrainConfig(epochs=epochs, batch_size=batch_size),
            processes=processes,
            device=device,
        )
        typer.echo(json.dumps(measured))


@app.command("grid")
def grid(
    encoders: Annotated[
        int, typer.Option("--encoders", min=1, help="Made-up encoders of either family; 4 make 16 pairs and 8 singles.")
    ] = 4,
    dim: Annotated[int, typer.Option("--dim", min=1, help="Features of each; training takes mean and std.")] = 768,
    utterances: Annotated[int, typer.Option("--utterances", min=100, help="Made-up utterances.")] = 535,
    speakers: Annotated[int, typer.Option("--speakers", min=10, help="Made-up speakers.")] = 10,
    classes: Annotated[int, typer.Option("--num-classes", min=2, help="Made-up emotions.")] = 7,
    fusions: Annotated[
        str, typer.Option("--fusions", help="Fusions, comma separated.")
    ] = "concat,attention,hyperbolic",
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Seeds of every head.")] = 5,
    pool: Annotated[str, typer.Option("--pool", help="mean, std or mean+std.")] = "mean+std",
    workers: Workers = None,
) -> None:
    """A whole comparison, from stores of random numbers to the scores, five folds: how long, and how much memory."""
    from hyfuse_cli.heads import split_names
    from pipelines.fusion.catalogue import fusion_spec

    names = split_names(fusions)
    for name in names:  # before anything slow
        fusion_spec(name)

    from pipelines.studies.bench import bench_grid

    measured = bench_grid(
        encoders_per_family=encoders,
        dim=dim,
        utterances=utterances,
        speakers=speakers,
        num_classes=classes,
        fusions=names,
        seeds=seeds,
        pool=pool,
        workers=workers,
    )
    typer.echo(json.dumps(measured))
