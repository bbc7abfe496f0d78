"""``hyfuse embed``: embeddings of single files, without a corpus."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hyfuse_cli import completion, console
from hyfuse_cli.options import Device, Weights, WeightsDir

if TYPE_CHECKING:
    from pipelines.encoders.catalogue import EncoderSpec
    from pipelines.extraction.single_files import FileEmbedding

__all__ = ["embed"]

_SHOWN = 4  # numbers of a vector in the table


def embed(
    files: Annotated[list[str], typer.Argument(help="Recordings, folders of them, or patterns in quotation marks.")],
    model: Annotated[
        str,
        typer.Option(
            "--model",
            "-m",
            help="Encoder (see `hyfuse models list`).",
            autocompletion=completion.encoders,
        ),
    ],
    representation: Annotated[
        list[str] | None,
        typer.Option("--representation", help="Which one, repeatable, or all; default: the encoder's own."),
    ] = None,
    pool: Annotated[str, typer.Option("--pool", help="mean, std or mean+std of the frames.")] = "mean",
    frames: Annotated[bool, typer.Option("--frames", help="The frames too; with --json, .npz or .h5.")] = False,
    out: Annotated[
        str | None,
        typer.Option("--out", "-o", help="Save to a file: .npz, .h5, .parquet or .csv; - prints CSV."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per file and representation.")] = False,
    weights: Weights = "pretrained",
    weights_dir: WeightsDir = None,
    device: Device = "auto",
) -> None:
    """Embed single recordings: print their embeddings, or save them with --out.

    The numbers are those of `hyfuse extract`, one recording at a time; for a whole corpus that is the faster way. A file that
    cannot be used is named with the reason and the others are embedded; the exit status is 1 then.
    """
    from pipelines.encoders.catalogue import encoder_spec
    from pipelines.errors import ConfigError

    spec = encoder_spec(model, weights_dir=weights_dir)
    if spec.takes_text:
        raise ConfigError(
            f"{spec.name!r} encodes texts, and this command takes recordings. Encode the transcripts of a corpus with"
            f" `hyfuse extract --model {spec.name} --corpus CORPUS`."
        )
    if out is not None and as_json:
        raise ConfigError("Give either --out or --json.")
    if frames and not as_json and Path(out or "-").suffix.lower() not in {".npz", ".h5", ".hdf5", ".hdf"}:
        raise ConfigError("--frames needs a place for them: --json, or --out with a name that ends in .npz or .h5.")

    from pipelines.extraction.engines.local import choose_device
    from pipelines.extraction.single_files import check_choice, embed_files, embedding_table, find_recordings
    from pipelines.store.feature_files import check_suffix
    from pipelines.store.feature_writing import write_csv, write_features

    if out is not None and out != "-":
        check_suffix(Path(out))
    names, arrays = check_choice(spec, representation or (), pool)
    paths = find_recordings(files)

    from pipelines.encoders.catalogue import load_encoder

    with console.meter(f"weights of {model}", "bytes") as bytes_meter:
        encoder = load_encoder(
            model,
            weights=weights,
            device=choose_device(device),
            weights_dir=weights_dir,
            progress=lambda file, done, total: bytes_meter(done, total, file),
        )
    found: list[FileEmbedding] = []
    failed = 0
    with console.meter(f"{model} on {encoder.device}", "recordings") as update:
        for count, embedding in enumerate(embed_files(paths, encoder, frames=frames), start=1):
            failed += bool(embedding.failure)
            if as_json:
                for line in _json_lines(embedding, spec, encoder.weights.kind, names, arrays, frames=frames):
                    typer.echo(line)
            else:
                found.append(embedding)
            if embedding.failure:
                named = embedding.failure.startswith(str(embedding.path))
                console.say(embedding.failure if named else f"{embedding.path}: {embedding.failure}")
            if len(paths) > 1:
                update(count, len(paths))
    if not as_json and failed < len(paths):
        if out is None:
            _show(found, spec, names, arrays)
        else:
            table = embedding_table(found, encoder, representations=names, arrays=arrays, frames=frames)
            if out == "-":
                write_csv(table, sys.stdout)
            else:
                write_features(table, Path(out))
                console.say(f"{len(table)} embedding(s) by {model} ({encoder.weights.kind}) are in {out}.")
    if encoder.weights.kind == "random":
        console.note("These weights are random: the numbers say nothing about the pretrained encoder of that name.")
    if failed:
        console.say(f"{failed} of {len(paths)} file(s) could not be used.")
        raise typer.Exit(1)


def _vector(embedding: FileEmbedding, spec: EncoderSpec, name: str, arrays: Sequence[str]) -> list[float]:
    """What ``train`` would see: the mean, the std, or one behind the other."""
    index = spec.representations.index(name)
    return [value for array in arrays for value in getattr(embedding, array)[index].tolist()]


def _json_lines(
    embedding: FileEmbedding,
    spec: EncoderSpec,
    weights_kind: str,
    names: Sequence[str],
    arrays: Sequence[str],
    *,
    frames: bool,
) -> Iterator[str]:
    """One JSON object per representation, or one that says why there is none."""
    line: dict[str, Any] = {"file": str(embedding.path), "encoder": spec.name, "weights": weights_kind}
    if embedding.failure:
        yield json.dumps({**line, "error": embedding.failure}, ensure_ascii=False)
        return
    for name in names:
        vector = _vector(embedding, spec, name, arrays)
        described: dict[str, Any] = {
            **line,
            "representation": name,
            "pool": "+".join(arrays),
            "duration_s": embedding.duration_s,
            "num_frames": embedding.num_frames,
            "dim": len(vector),
            "embedding": vector,
        }
        if frames:
            described["frames"] = embedding.frames[name].tolist()
        yield json.dumps(described, ensure_ascii=False)


def _show(found: Sequence[FileEmbedding], spec: EncoderSpec, names: Sequence[str], arrays: Sequence[str]) -> None:
    """A compact table: the beginning of every vector."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in ("file", "seconds", "frames", "representation", "D", "first numbers"):
        table.add_column(column, justify="right" if column in {"seconds", "frames", "D"} else "left")
    for embedding in found:
        if embedding.failure:
            continue
        for name in names:
            vector = _vector(embedding, spec, name, arrays)
            numbers = " ".join(f"{value:.4g}" for value in vector[:_SHOWN]) + (" …" if len(vector) > _SHOWN else "")
            table.add_row(
                escape(str(embedding.path)),
                f"{embedding.duration_s:.2f}",
                str(embedding.num_frames),
                f"{name} ({'+'.join(arrays)})",
                str(len(vector)),
                numbers,
            )
    console.out.print(table)
    console.note("All numbers: --json, or --out with a name that ends in .npz, .h5, .parquet or .csv.")
