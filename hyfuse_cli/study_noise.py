"""``hyfuse study noise``: what noise costs, whom it hurts, and which training helps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from hyfuse_cli import console
from hyfuse_cli.heads import ALL, HeadSettings, split_names, takes_settings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipelines.corpora.manifest import Manifest
    from pipelines.locations import Location

__all__ = ["study_noise"]


@takes_settings
def study_noise(
    *,
    models: Annotated[
        str,
        typer.Option("--models", help="Encoders of speech and, if there are any, of text; commas or spaces between."),
    ],
    conditions: Annotated[
        str | None,
        typer.Option(
            "--conditions",
            help="As of `hyfuse extract --condition`, commas or spaces between; clean is always among them. Default: all that"
            " are cached for every encoder of speech.",
        ),
    ] = None,
    ways: Annotated[
        str,
        typer.Option(
            "--training",
            help="clean (tested under noise), matched (trained under the condition tested) and multi (under all together);"
            " commas between.",
        ),
    ] = "clean,matched,multi",
    multi_conditions: Annotated[
        str | None,
        typer.Option(
            "--multi-conditions",
            help="What multi is trained on beside clean, for instance other noise; default: --conditions.",
        ),
    ] = None,
    fusions: Annotated[
        str, typer.Option("--fusions", help="Fusions, comma separated, all, or none.")
    ] = "concat,hyperbolic",
    transcripts: Annotated[
        str,
        typer.Option(
            "--transcripts", help="Of encoders of text: manual, or asr:MODEL (what it heard under each condition)."
        ),
    ] = "manual",
    settings: HeadSettings,
) -> None:
    """Train encoders and fusions on clean, matched and mixed conditions, and test them under every condition.

    Degradation curves with intervals, the area under them, what fusion and noisy training are worth. Every condition must have been
    extracted (`hyfuse extract --condition …`); what is missing is listed with the command that makes it.
    """
    from pipelines.errors import ConfigError
    from pipelines.fusion.catalogue import fusion_names
    from pipelines.studies.noise import NoiseConfig, noise_cells
    from pipelines.studies.noise import study_noise as run_study

    if settings.order == "both":
        raise ConfigError("--order both means nothing to `hyfuse study noise`; name one order.")
    chosen = [] if fusions == "none" else split_names(fusions)
    chosen = fusion_names() if chosen == [ALL] else list(dict.fromkeys(chosen))
    options = settings.options_of(chosen)  # before anything slow
    asked, learned = _conditions(conditions), _conditions(multi_conditions)
    manifest = settings.manifest()
    families = _families(split_names(models), manifest, settings.cache_dir)
    if conditions is None:
        asked = _cached([name for name, family in families.items() if family != "LEX"], manifest, settings.cache_dir)
    config = NoiseConfig(
        conditions=tuple(asked),
        training=tuple(split_names(ways)),
        multi_conditions=tuple(learned),
        transcripts=transcripts,
        comparison=settings.config(),
    )
    run_dir = settings.run_dir((manifest.corpus, "noise"))
    with console.meter("training", "heads") as update:
        outcome = run_study(
            manifest,
            noise_cells(families, chosen, options=options),
            families=families,
            config=config,
            cache_dir=settings.cache_dir,
            run_dir=run_dir,
            workers=settings.processes(),
            device=settings.device,
            command=console.typed(),
            progress=update,
        )
    console.show_study(outcome, run_dir, files="study.json, config.json, results.jsonl, predictions.parquet, parts/")


def _conditions(given: str | None) -> list[str]:
    """Canonical names."""
    from pipelines.audio.condition_text import parse_condition

    return [parse_condition(text).name for text in split_names(given)]


def _families(names: Sequence[str], manifest: Manifest, cache_dir: Location) -> dict[str, str]:
    """Encoder to family: of its stores, or of the catalogue where there are none yet."""
    from pipelines.encoders.catalogue import encoder_spec
    from pipelines.errors import ConfigError
    from pipelines.store.embeddings import find_stores, open_store

    if not names:
        raise ConfigError("--models names no encoder; expected for instance --models 'wavlm encodec bert'.")
    stored = {path.parent.name: path for path in find_stores(cache_dir, manifest.corpus)}
    found = {}
    for name in dict.fromkeys(names):
        known = name if name in stored else encoder_spec(name).name
        found[known] = (
            open_store(stored[known], complete=False).provenance.family
            if known in stored
            else encoder_spec(name).family
        )
    return found


def _cached(names: Sequence[str], manifest: Manifest, cache_dir: Location) -> list[str]:
    """Conditions that every encoder of speech has a store of."""
    from pipelines.store.embeddings import find_stores

    of_encoder: dict[str, set[str]] = {}
    for path in find_stores(cache_dir, manifest.corpus):
        of_encoder.setdefault(path.parent.name, set()).add(path.name.removesuffix(".zarr"))
    return sorted(set.intersection(*(of_encoder.get(name, set()) for name in names))) if names else []
