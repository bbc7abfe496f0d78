"""Options that several verbs share, declared once."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hyfuse_cli import completion
from pipelines.locations import Location, as_location

__all__ = [
    "DEFAULT_CACHE",
    "AsJson",
    "CacheDir",
    "CorpusOption",
    "DataRoot",
    "Device",
    "RunName",
    "RunsDir",
    "Weights",
    "WeightsDir",
    "Workers",
]

DEFAULT_CACHE = Path("cache")
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, one object per line.")]
if TYPE_CHECKING:
    CacheDir = Location
else:  # typer takes no unions
    CacheDir = Annotated[
        Path,
        typer.Option(
            "--cache-dir",
            envvar="HYFUSE_CACHE",
            metavar="DIR|s3://…|gs://…",
            parser=lambda text: as_location(str(text)),
            help="Where manifests and embedding stores lie.",
        ),
    ]
DataRoot = Annotated[
    Path | None, typer.Option("--data-root", help="Folder of the corpus; remembered after the first time.")
]
WeightsDir = Annotated[
    Path | None, typer.Option("--weights-dir", help="Folder of weights, before $HYFUSE_WEIGHTS and the Hub cache.")
]
Weights = Annotated[
    str, typer.Option("--weights", envvar="HYFUSE_WEIGHTS_KIND", help="pretrained, or random (for trying things out).")
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")]
CorpusOption = Annotated[
    str | None,
    typer.Option(
        "--corpus",
        help="Name (see `hyfuse corpora list`), path of a CSV/Parquet manifest, or folder. Default: the cached one.",
        autocompletion=completion.corpora,
    ),
]
RunsDir = Annotated[Path, typer.Option("--runs-dir", help="Folder of runs.")]
RunName = Annotated[
    str | None, typer.Option("--run", help="Name of the run folder; the same name goes on with that run.")
]
Workers = Annotated[int | None, typer.Option("--workers", min=1, help="Processes; one per core unless given.")]
