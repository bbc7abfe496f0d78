"""``hyfuse train``: one pair under one fusion, beside both of its singles, or one single representation."""

from __future__ import annotations

from typing import Annotated

import typer

from hyfuse_cli import completion, console
from hyfuse_cli.heads import DryRun, HeadSettings, run_comparison, say_estimate, takes_settings

__all__ = ["train"]


@takes_settings
def train(
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
    dry_run: DryRun = False,
    settings: HeadSettings,
) -> None:
    """Train one pair under one fusion on every fold and seed, and show it beside both of its single representations.

    Logistic regression on the same embeddings (of --target dimensions: ridge regression) is always shown, too. Writes the trained
    heads as well as the table, the result rows and every test prediction. With --single, one representation alone.
    """
    from pipelines.errors import ConfigError

    if (pair is None) == (single is None):
        raise ConfigError(
            "Give either --pair LEFT RIGHT or --single NAME, such as `hyfuse train --pair xvector soundstream`."
        )
    if pair is not None and pair[0] == pair[1]:
        raise ConfigError(f"--pair needs two different encoders, not {pair[0]} twice.")
    chosen = fusion or settings.chosen_recipe().fusion
    fusions = [chosen] if pair is not None else []
    cells = settings.cells([pair] if pair else [], fusions, pair or [str(single)])
    manifest = settings.manifest()
    title = f"{pair[0]}+{pair[1]}-{chosen}" if pair is not None else str(single)
    run_dir = settings.run_dir((manifest.corpus, title))
    if dry_run:
        say_estimate(manifest, cells, settings=settings, run_dir=run_dir)
        return
    comparison = run_comparison(manifest, cells, settings=settings, run_dir=run_dir, save_heads=True)
    for fused in comparison.scores:
        if fused.right and fused.fusion == chosen:
            measure = fused.measure
            of = f"points of {measure.name}" if measure.unit == "points" else f"of {measure.name}"
            console.out.print(
                f"Shuffling {fused.left} among the test utterances costs {measure.text(fused.left_drop)} {of},"
                f" shuffling {fused.right} costs {measure.text(fused.right_drop)} ({fused.cell})."
            )
    console.say(f"Everything is in {run_dir}: heads/, table.csv, results.jsonl, predictions.parquet.")
    console.note(f"Next: `hyfuse report {run_dir}`.")
