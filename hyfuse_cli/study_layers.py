"""``hyfuse study layers``: which layer of an encoder serves which target, and what its layers are like."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hyfuse_cli import completion, console
from hyfuse_cli.heads import HeadSettings, split_names, takes_settings

__all__ = ["study_layers"]


@takes_settings
def study_layers(
    *,
    model: Annotated[
        str,
        typer.Option(
            "--model", "-m", help="Encoder with layers, extracted before.", autocompletion=completion.extracted
        ),
    ],
    descriptors: Annotated[
        str,
        typer.Option(
            "--descriptors", help="What layers are compared with: descriptors, egemaps (comma separated) or none."
        ),
    ] = "descriptors",
    against: Annotated[
        str | None,
        typer.Option(
            "--against", help="Another encoder, or with --against-cache another checkpoint, to compare layers with."
        ),
    ] = None,
    against_cache: Annotated[
        Path | None, typer.Option("--against-cache", help="Cache folder of the store of --against.", file_okay=False)
    ] = None,
    probe: Annotated[
        str | None,
        typer.Option("--probe", help="logistic (default for emotion), ridge (default for dimensions) or head."),
    ] = None,
    curve: Annotated[
        str,
        typer.Option(
            "--curve", help="Of the truncated encoder: best (layer of those left) or weighted (heads as well)."
        ),
    ] = "best",
    weighted: Annotated[
        bool, typer.Option("--weighted/--no-weighted", help="Heads on the weighted sum of all layers.")
    ] = True,
    similarity_rows: Annotated[
        int, typer.Option("--similarity-rows", min=0, help="Utterances that similarity is computed on; 0 for all.")
    ] = 2000,
    raw_columns: Annotated[
        bool, typer.Option("--raw-columns", help="Similarity sees columns of layers as they are, not at deviation 1.")
    ] = False,
    settings: HeadSettings,
) -> None:
    """Probe every layer of an encoder and compare the layers: with each other, with acoustic descriptors, with another encoder.

    Which layer is best for each target, and is the difference significant; which layers cannot be told from it; what a truncated
    encoder would give; what the layers are like. The best layer is chosen by training speakers, never by test scores.
    """
    from pipelines.encoders.catalogue import canonical_name
    from pipelines.errors import ConfigError
    from pipelines.studies.layers import LayersConfig
    from pipelines.studies.layers import study_layers as run_study

    if settings.layer or settings.representation:
        option = "--layer" if settings.layer else "--representation"
        raise ConfigError(f"{option} means nothing to `hyfuse study layers`, which looks at all layers. Leave it out.")
    if against_cache is not None and not against:
        raise ConfigError("--against-cache names where the store of --against lies; give --against NAME as well.")
    name = canonical_name(model)
    other = canonical_name(against) if against else ""
    names = [] if descriptors == "none" else split_names(descriptors)
    config = LayersConfig(
        model=name,
        comparison=settings.config(),
        probe=probe or "",
        descriptors=tuple(map(canonical_name, names)),
        against=other,
        against_cache=against_cache,
        weighted=weighted,
        curve=curve,
        rows=similarity_rows,
        raw=raw_columns,
    )
    manifest = settings.manifest()
    run_dir = settings.run_dir((manifest.corpus, "layers", name, probe, other and f"against-{other}"))
    with console.meter("layers", "steps") as update:
        outcome = run_study(
            manifest,
            config,
            cache_dir=settings.cache_dir,
            run_dir=run_dir,
            workers=settings.processes(),
            device=settings.device,
            command=console.typed(),
            progress=update,
        )
    console.show_study(outcome, run_dir, files="study.json, probes/, parts/, similarity/")
