"""``hyfuse compare``: every pair under every fusion, and all singles."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hyfuse_cli import console
from hyfuse_cli.options import DEFAULT_CACHE, CacheDir, CorpusOption, Device, RunName, RunsDir, Workers

if TYPE_CHECKING:
    from pipelines.corpora.manifest import Manifest
    from pipelines.locations import Location
    from pipelines.studies.pairs import Comparison, ComparisonConfig
    from pipelines.training.grid import Cell

__all__ = ["Representation", "compare", "make_config", "parse_representations", "run_comparison"]

Representation = Annotated[
    list[str] | None,
    typer.Option("--representation", help="ENCODER=REPRESENTATION, for instance wavlm=layer_06; repeatable."),
]
Protocol = Annotated[str | None, typer.Option("--protocol", help="How speakers are divided; default: the corpus' own.")]
Seeds = Annotated[int, typer.Option("--seeds", help="Number of seeds.")]
Pool = Annotated[str, typer.Option("--pool", help="mean, std or mean+std of the frames.")]
Classes = Annotated[str | None, typer.Option("--classes", help="Emotions, comma separated; default: the corpus' own.")]
Condition = Annotated[
    str, typer.Option("--condition", help="Under which the recordings were encoded (see `hyfuse cache list`).")
]
Epochs = Annotated[int | None, typer.Option("--epochs", help="Epochs of training.")]
BatchSize = Annotated[int | None, typer.Option("--batch-size", help="Utterances per step.")]
Selection = Annotated[
    str | None,
    typer.Option("--selection", help="Epoch kept: fixed or last (nothing selected), loss or uar (best on validation)."),
]
LearningRate = Annotated[float | None, typer.Option("--learning-rate", help="Step size of AdamW.")]


def parse_representations(given: Sequence[str] | None) -> dict[str, str]:
    """``ENCODER=REPRESENTATION`` options as a mapping.

    Raises:
        ConfigError: not of that form.
    """
    from pipelines.errors import ConfigError

    parsed = {}
    for entry in given or ():
        encoder, equals, name = entry.partition("=")
        if not (encoder and equals and name):
            raise ConfigError(
                f"--representation must be ENCODER=REPRESENTATION, such as wavlm=layer_06, not {entry!r}."
            )
        parsed[encoder] = name
    return parsed


def make_config(
    *,
    protocol: str | None,
    seeds: int,
    pool: str,
    representation: Sequence[str] | None,
    classes: str | None,
    condition: str,
    selection: str | None,
    **hyper_parameters: Any,
) -> ComparisonConfig:
    """Settings from options; options that were not given keep their defaults."""
    from pipelines.studies.pairs import ComparisonConfig
    from pipelines.training.trainer import TrainConfig

    given = {name: value for name, value in hyper_parameters.items() if value is not None}
    return ComparisonConfig(
        protocol=protocol or "",
        seeds=seeds,
        pool=pool,
        representations=parse_representations(representation),
        classes=tuple(name.strip() for name in classes.split(",")) if classes else (),
        condition=condition,
        selection=selection or "",
        train=TrainConfig.from_mapping(given),
    )


def run_comparison(
    manifest: Manifest,
    cells: Sequence[Cell],
    config: ComparisonConfig,
    *,
    cache_dir: Location,
    run_dir: Path,
    workers: int | None,
    device: str,
    save_heads: bool = False,
) -> Comparison:
    """Train, score, show and write the table."""
    from pipelines.reports.tables import build_table, write_table
    from pipelines.studies.pairs import compare_cells

    with console.meter("training", "heads") as update:
        comparison = compare_cells(
            manifest,
            cells,
            config=config,
            cache_dir=cache_dir,
            run_dir=run_dir,
            workers=workers or os.cpu_count() or 1,
            device=device,
            save_heads=save_heads,
            progress=update,
        )
    table = build_table(comparison)
    write_table(table, run_dir)
    console.show_table(table)
    console.out.print(
        f"{comparison.trained} heads trained in {comparison.seconds:.0f} s, {comparison.reused} taken from an earlier call."
    )
    return comparison


def run_folder(runs_dir: Path, name: str | None, default: str) -> Path:
    """Folder of a run; its name may not lead elsewhere.

    Raises:
        ConfigError: a name with path separators or other odd characters.
    """
    from pipelines.errors import ConfigError

    chosen = name or re.sub(r"[^\w.+-]", "-", default)
    if not re.fullmatch(r"\w[\w.+-]{0,150}", chosen):
        raise ConfigError(f"--run {chosen!r} cannot be a folder's name. Use letters, digits, '.', '_', '+' and '-'.")
    return runs_dir / chosen


def compare(
    corpus: CorpusOption = None,
    models: Annotated[
        str | None,
        typer.Option("--models", help="Encoders, separated by commas or spaces; default: all that are cached."),
    ] = None,
    fusions: Annotated[
        str, typer.Option("--fusions", help="Fusions, comma separated.")
    ] = "concat,attention,hyperbolic",
    pairs: Annotated[
        str, typer.Option("--pairs", help="heterogeneous (RLR × CBR), homogeneous (within a family) or all.")
    ] = "heterogeneous",
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
    """Compare every pair of cached representations under every fusion, and all singles.

    Writes the table (CSV, Markdown, LaTeX), every result row and every test prediction to the run folder. Stop it at any
    time: the same command goes on from there.
    """
    from pipelines.corpora.resolve import recall_corpus
    from pipelines.errors import ConfigError, StoreError, unknown_name
    from pipelines.store.embeddings import find_stores, open_store
    from pipelines.training.grid import make_cells, pair_up

    manifest = recall_corpus(corpus, cache_dir=cache_dir)
    cached = {path.parent.name: path for path in find_stores(cache_dir, manifest.corpus) if path.stem == condition}
    names = [name for name in re.split(r"[\s,]+", models) if name] if models else list(cached)
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
    chosen = pair_up(families, pairs)
    if not chosen:
        listed = ", ".join(f"{name} ({family})" for name, family in families.items())
        missing = "a second model of one family" if pairs == "homogeneous" else "a model of the other family"
        raise ConfigError(f"There is no {pairs} pair among {listed}. Extract {missing}, or choose another --pairs.")
    cells = make_cells(chosen, [name for name in re.split(r"[\s,]+", fusions) if name], names)
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
    differs = (protocol, "" if pairs == "heterogeneous" else pairs, under.removeprefix(" --condition "))
    run_dir = run_folder(runs_dir, run, "-".join(filter(None, (manifest.corpus, *differs))))
    run_comparison(manifest, cells, config, cache_dir=cache_dir, run_dir=run_dir, workers=workers, device=device)
    console.say(f"Everything is in {run_dir}: table.csv, table.md, table.tex, results.jsonl, predictions.parquet.")
