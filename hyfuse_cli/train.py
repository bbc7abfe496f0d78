"""``hyfuse train``: one pair under one fusion, beside both of its singles, or one single representation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hyfuse_cli import console
from hyfuse_cli.compare import (
    BatchSize,
    Classes,
    Condition,
    Epochs,
    LearningRate,
    Pool,
    Protocol,
    Representation,
    Seeds,
    Selection,
    make_config,
    run_comparison,
    run_folder,
)
from hyfuse_cli.options import DEFAULT_CACHE, CacheDir, CorpusOption, Device, RunName, RunsDir, Workers

__all__ = ["train"]


def train(
    pair: Annotated[
        tuple[str, str] | None, typer.Option("--pair", help="Two encoders: LEFT RIGHT.", metavar="LEFT RIGHT")
    ] = None,
    single: Annotated[str | None, typer.Option("--single", help="One encoder: a baseline without fusion.")] = None,
    fusion: Annotated[str, typer.Option("--fusion", help="concat, attention or hyperbolic.")] = "hyperbolic",
    corpus: CorpusOption = None,
    order: Annotated[
        str | None, typer.Option("--order", help="Operand order of a fusion that has one: left-right or right-left.")
    ] = None,
    protocol: Protocol = None,
    seeds: Seeds = 5,
    pool: Pool = "mean+std",
    representation: Representation = None,
    classes: Classes = None,
    condition: Condition = "clean",
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    learning_rate: LearningRate = None,
    selection: Selection = None,
    run: RunName = None,
    runs_dir: RunsDir = Path("runs"),
    cache_dir: CacheDir = DEFAULT_CACHE,
    workers: Workers = None,
    device: Device = "cpu",
) -> None:
    """Train one pair under one fusion on every fold and seed, and show it beside both of its single representations.

    Writes the trained heads as well as the table, the result rows and every test prediction. With --single, one
    representation alone.
    """
    from pipelines.corpora.resolve import recall_corpus
    from pipelines.errors import ConfigError
    from pipelines.fusion.catalogue import fusion_spec
    from pipelines.training.grid import Cell, make_cells

    if (pair is None) == (single is None):
        raise ConfigError(
            "Give either --pair LEFT RIGHT or --single NAME, such as `hyfuse train --pair xvector soundstream`."
        )
    options: dict[str, object] = {}
    if pair is not None:
        if pair[0] == pair[1]:
            raise ConfigError(f"--pair needs two different encoders, not {pair[0]} twice.")
        spec = fusion_spec(fusion)
        if order is not None:
            if "order" not in spec.options:
                raise ConfigError(f"--order means nothing to {fusion!r}: its two inputs have no order.")
            options["order"] = order
    manifest = recall_corpus(corpus, cache_dir=cache_dir)
    if single is not None:
        cells = make_cells([], [], [single])
        title = single
    else:
        assert pair is not None
        cells = [*make_cells([], [fusion], pair), Cell(pair[0], pair[1], fusion, options)]
        title = f"{pair[0]}+{pair[1]}-{fusion}"
    config = make_config(
        protocol=protocol,
        seeds=seeds,
        pool=pool,
        representation=representation,
        classes=classes,
        condition=condition,
        selection=selection,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
    )
    differs = (order, protocol, "" if condition == "clean" else condition)
    run_dir = run_folder(runs_dir, run, "-".join(filter(None, (manifest.corpus, title, *differs))))
    comparison = run_comparison(
        manifest, cells, config, cache_dir=cache_dir, run_dir=run_dir, workers=workers, device=device, save_heads=True
    )
    fused = comparison.scores[-1]
    if fused.right:
        console.out.print(
            f"Shuffling {fused.left} among the test utterances costs {100 * fused.left_drop:.1f} points of UAR,"
            f" shuffling {fused.right} costs {100 * fused.right_drop:.1f}."
        )
    console.say(f"Everything is in {run_dir}: heads/, table.csv, results.jsonl, predictions.parquet.")
