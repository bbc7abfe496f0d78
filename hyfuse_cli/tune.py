"""``hyfuse tune``: settings of one cell, searched inside every outer training part."""

from __future__ import annotations

from typing import Annotated

import typer

from hyfuse_cli import completion, console
from hyfuse_cli.heads import HeadSettings, show_comparison, split_names, takes_settings

__all__ = ["tune"]


@takes_settings
def tune(
    *,
    pair: Annotated[
        tuple[str, str] | None,
        typer.Option(
            "--pair", help="Two encoders: LEFT RIGHT.", metavar="LEFT RIGHT", autocompletion=completion.extracted
        ),
    ] = None,
    single: Annotated[
        str | None,
        typer.Option(
            "--single",
            help="One encoder: a baseline without fusion.",
            autocompletion=completion.extracted,
        ),
    ] = None,
    fusion: Annotated[
        str | None,
        typer.Option(
            "--fusion",
            help="One of `hyfuse compare --fusions all`; default: the recipe's.",
            autocompletion=completion.fusions,
        ),
    ] = None,
    trials: Annotated[int, typer.Option("--trials", help="Settings to try per outer fold.")] = 30,
    inner_folds: Annotated[int, typer.Option("--inner-folds", help="Folds inside a training part.")] = 3,
    inner_seeds: Annotated[int, typer.Option("--inner-seeds", help="Seeds of every trial.")] = 1,
    search: Annotated[
        str | None, typer.Option("--search", help="Settings to search, comma separated; default: all that apply.")
    ] = None,
    settings: HeadSettings,
) -> None:
    """Search the settings of one pair under one fusion by nested folds, and score each outer test part once.

    Needs Optuna: `pip install 'hyfuse[tune]'`. Stop it at any time: the same command goes on from there, and with more
    --trials it goes further. What was chosen is in tuning.json.
    """
    from pipelines.errors import ConfigError
    from pipelines.fusion.catalogue import SINGLE
    from pipelines.studies.tune import TuneConfig, tune_cell
    from pipelines.training.grid import Cell

    if (pair is None) == (single is None):
        raise ConfigError(
            "Give either --pair LEFT RIGHT or --single NAME, such as `hyfuse tune --pair xvector soundstream`."
        )
    if pair is not None and pair[0] == pair[1]:
        raise ConfigError(f"--pair needs two different encoders, not {pair[0]} twice.")
    if settings.order == "both":
        raise ConfigError("--order both would tune two heads at once. Leave it out, and the order is searched, too.")
    chosen = (fusion or settings.chosen_recipe().fusion) if pair is not None else SINGLE
    options = settings.options_of([chosen] if pair is not None else [])[chosen]
    left, right = pair or (str(single), "")
    tuning = TuneConfig(
        trials=trials, inner_folds=inner_folds, inner_seeds=inner_seeds, search=tuple(split_names(search))
    )
    manifest = settings.manifest()
    run_dir = settings.run_dir((manifest.corpus, f"{left}+{right}-{chosen}" if right else left, "tuned"))
    with console.meter("tuning", "trials") as update:
        found = tune_cell(
            manifest,
            Cell(left, right, chosen, options),
            config=settings.config(),
            tuning=tuning,
            cache_dir=settings.cache_dir,
            run_dir=run_dir,
            workers=settings.processes(),
            device=settings.device,
            progress=update,
        )
    show_comparison(found.comparison, run_dir)
    measure = found.comparison.scores[0].measure
    for fold in found.folds:
        listed = ", ".join(
            f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"
            for name, value in fold.best.items()
        )
        console.out.print(
            f"Fold {fold.fold}: inner {measure.name} {measure.text(fold.inner_score)} (start"
            f" {measure.text(fold.start_score)}) with {listed}."
        )
    console.out.print(f"{found.searched} trials made, {found.reused} taken from an earlier call.")
    console.say(f"Everything is in {run_dir}: tuning.json, tuning/, table.csv, results.jsonl, predictions.parquet.")
