"""``hyfuse compare``: every pair under every fusion, and all singles."""

from __future__ import annotations

from typing import Annotated

import typer

from hyfuse_cli import completion, console
from hyfuse_cli.heads import ALL, DryRun, HeadSettings, run_comparison, say_estimate, split_names, takes_settings

__all__ = ["compare"]

_USUAL = ("concat", "attention")  # beside the recipe's own fusion


@takes_settings
def compare(
    *,
    models: Annotated[
        str | None,
        typer.Option(
            "--models",
            help="Encoders, separated by commas or spaces; default: all that are cached.",
            autocompletion=completion.lists_of,
        ),
    ] = None,
    fusions: Annotated[
        str | None,
        typer.Option(
            "--fusions", help="Fusions, comma separated, or all; default: concat, attention and the recipe's."
        ),
    ] = None,
    pairs: Annotated[
        str, typer.Option("--pairs", help="heterogeneous (RLR × CBR), homogeneous (within a family) or all.")
    ] = "heterogeneous",
    dry_run: DryRun = False,
    settings: HeadSettings,
) -> None:
    """Compare every pair of cached representations under every fusion, and all singles, with a linear model beside them.

    Writes the table (CSV, Markdown, LaTeX), every result row and every test prediction to the run folder. Stop it at any
    time: the same command goes on from there.
    """
    from pipelines.errors import ConfigError, StoreError, unknown_name
    from pipelines.fusion.catalogue import fusion_names
    from pipelines.store.embeddings import find_stores, open_store
    from pipelines.training.grid import pair_up

    chosen = split_names(fusions) or [*_USUAL, settings.chosen_recipe().fusion]
    chosen = fusion_names() if chosen == [ALL] else list(dict.fromkeys(chosen))
    settings.options_of(chosen)  # before anything slow
    manifest = settings.manifest()
    condition, cache_dir = settings.condition, settings.cache_dir
    cached = {path.parent.name: path for path in find_stores(cache_dir, manifest.corpus) if path.stem == condition}
    names = split_names(models) or list(cached)
    under = "" if condition == "clean" else f" --condition {condition}"
    if not names:
        raise StoreError(
            f"No embeddings of {manifest.corpus!r}{under and f' under {condition!r}'} are cached in {cache_dir}. Make some, for"
            f" instance `hyfuse extract --model wavlm --model encodec --corpus {manifest.corpus}{under}`."
        )
    for name in names:
        if name not in cached:
            raise unknown_name(
                f"store of corpus {manifest.corpus!r}",
                name,
                cached,
                hint=f"Make it with `hyfuse extract --model {name} --corpus {manifest.corpus}{under}`.",
            )
    families = {name: open_store(cached[name], complete=False).provenance.family for name in names}
    found = pair_up(families, pairs)
    if not found:
        listed = ", ".join(f"{name} ({family})" for name, family in families.items())
        missing = "a second model of one family" if pairs == "homogeneous" else "a model of the other family"
        raise ConfigError(f"There is no {pairs} pair among {listed}. Extract {missing}, or choose another --pairs.")
    cells = settings.cells(found, chosen, names)
    run_dir = settings.run_dir((manifest.corpus, "" if pairs == "heterogeneous" else pairs))
    if dry_run:
        say_estimate(manifest, cells, settings=settings, run_dir=run_dir)
        return
    run_comparison(manifest, cells, settings=settings, run_dir=run_dir)
    console.say(f"Everything is in {run_dir}: table.csv, table.md, table.tex, results.jsonl, predictions.parquet.")
    console.note(f"Next: `hyfuse report {run_dir}`, and `hyfuse export {run_dir}` with the cell you like.")
