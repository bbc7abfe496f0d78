"""``hyfuse export`` and ``hyfuse predict``: a result as a model, and the model on recordings."""

from __future__ import annotations

import csv
import json
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from hyfuse_cli import console
from hyfuse_cli.options import DEFAULT_CACHE, CacheDir, Device, WeightsDir

if TYPE_CHECKING:
    from pipelines.deployment.model_folder import ModelFolder
    from pipelines.deployment.predict import Model, Prediction

__all__ = ["ModelArgument", "export", "predict"]

_FORMATS = ("csv", "jsonl")

ModelArgument = Annotated[
    str, typer.Argument(metavar="MODEL", help="Folder of `hyfuse export`, or hf:owner/name[@revision] on the Hub.")
]


def export(
    run: Annotated[Path, typer.Argument(help="Folder of a run of `hyfuse compare`, `train` or `tune`.")],
    pair: Annotated[
        tuple[str, str] | None, typer.Option("--pair", help="Two encoders, as in the run.", metavar="LEFT RIGHT")
    ] = None,
    single: Annotated[str | None, typer.Option("--single", help="One encoder instead of a pair.")] = None,
    fusion: Annotated[str, typer.Option("--fusion", help="Of the pair.")] = "hyperbolic",
    order: Annotated[str, typer.Option("--order", help="left-right or right-left, where the run has both.")] = "",
    cell: Annotated[str, typer.Option("--cell", help="Title of the cell in the table, in place of all of these.")] = "",
    fold: Annotated[
        str,
        typer.Option("--fold", help="Train on this fold of the run only, as the run did; default: on all utterances."),
    ] = "all",
    seeds: Annotated[
        int | None,
        typer.Option("--seeds", min=1, help="Heads whose outputs are averaged; default: as many as the run."),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder to write; default: models/<corpus>-<cell>.")] = None,
    cache_dir: CacheDir = DEFAULT_CACHE,
) -> None:
    """Train one cell of a run for use and write it to a folder: tensors, configuration, label map, model card."""
    from pipelines.errors import ConfigError

    if sum((pair is not None, single is not None, bool(cell))) != 1:
        raise ConfigError("Say what to export: --pair LEFT RIGHT with --fusion, --single NAME, or --cell TITLE.")

    from pipelines.deployment.card import model_card
    from pipelines.deployment.export import choose_cell, default_folder, export_cell
    from pipelines.deployment.model_folder import write_model
    from pipelines.evaluation.runs import read_run

    found = read_run(run)
    left, right = pair or (single or "", "")
    chosen, score = choose_cell(
        found, left=left, right=right, fusion=fusion if pair else "" if cell else "single", order=order, title=cell
    )
    folder = out or default_folder(found, chosen, fold)
    with console.meter(f"training {chosen.title}", "heads") as progress:
        model = export_cell(found, chosen, score, cache_dir=cache_dir, fold=fold, seeds=seeds, progress=progress)
    write_model(model, folder, model_card(model, folder=folder.name))
    for warning in model.warnings:
        console.out.print(warning, style="bold yellow", markup=False)
    count = f"{len(model.heads)} head{'s' if len(model.heads) > 1 else ''}"
    console.say(f"{chosen.title} ({count}) is in {folder}; {folder / 'README.md'} says what it is for.")
    files = "LIST.csv" if model.takes_text else "FILE…"
    named = shlex.quote(str(folder))
    console.note(f"Next: `hyfuse predict {named} {files}`, or try it: `hyfuse demo {named}`.")


def predict(
    model: ModelArgument,
    recordings: Annotated[
        list[str],
        typer.Argument(help="Recordings, folders, patterns, or CSV lists with a column 'path' (and 'transcript')."),
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", help="CSV or JSONL file that is added to; what it has already is not computed again."),
    ] = None,
    form: Annotated[str, typer.Option("--format", help="csv or jsonl; of --out by its name, else csv.")] = "",
    segment: Annotated[
        float | None,
        typer.Option("--segment", min=0.1, help="Seconds per part, for long recordings: one prediction each."),
    ] = None,
    step: Annotated[
        float | None,
        typer.Option("--step", min=0.01, help="Seconds from one part to the next; default: the part's length."),
    ] = None,
    device: Device = "auto",
    weights_dir: WeightsDir = None,
) -> None:
    """Predict recordings with an exported model, one row each, as they come; exit status 1 if one of them failed."""
    from pipelines.errors import ConfigError, unknown_name

    suffix = out.suffix.lower().lstrip(".") if out is not None else "csv"
    chosen = form or suffix
    if chosen not in _FORMATS:
        hint = "" if form else f"Name it with --format, or let --out end so; it is {out}."
        raise unknown_name("format", chosen, _FORMATS, hint=hint)
    if step is not None and segment is None:
        raise ConfigError("--step goes with --segment: say how long the parts are.")

    from pipelines.deployment.hub import model_path
    from pipelines.deployment.lists import Wanted, read_wanted
    from pipelines.deployment.model_folder import read_model
    from pipelines.deployment.predict import load_model, segments
    from pipelines.extraction.engines.local import choose_device

    folder = model_path(model)
    described = read_model(folder)  # before anything slow
    if segment is not None:
        segments(1.0, segment_s=segment, step_s=step)
    wanted: list[Wanted] = read_wanted(recordings)
    rows = _Rows(chosen, described, segment, step)
    done, failed = rows.resume(out) if out is not None else (set(), set())
    waiting = [one for one in wanted if str(one.path) not in done]
    if len(waiting) < len(wanted):
        console.say(f"{len(wanted) - len(waiting)} of {len(wanted)} recordings are in {out} already.")
    failures = sum(str(one.path) in failed for one in wanted)
    if waiting:
        loaded = load_model(folder, device=str(choose_device(device)), weights_dir=weights_dir)
        with rows.opened(out), console.meter("predicting", "recordings") as progress:
            for count, found in enumerate(_predictions(loaded, waiting, segment, step), start=1):
                broken = False
                for one in found:
                    rows.write(one)
                    broken |= bool(one.failure)
                failures += broken
                progress(count, len(waiting))
    for name in described.random:
        console.say(f"RANDOM weights: {name}. These predictions mean nothing.")
    if failures:
        console.say(f"{failures} recording(s) could not be used, or not all of them; the column 'failure' says why.")
        raise typer.Exit(1)


def _predictions(
    model: Model, wanted: Sequence[Any], segment: float | None, step: float | None
) -> Iterator[Iterator[Prediction]]:
    """Predictions of one recording after the other."""
    if segment is not None:
        for one in wanted:
            yield model.predict_segments(one.path, segment_s=segment, step_s=step)
        return
    texts = [one.transcript for one in wanted] if model.takes_text else None
    for found in model.predict([one.path for one in wanted], transcripts=texts):
        yield iter([found])


class _Rows:
    """Predictions as lines of a file, each written at once and whole.

    Columns of CSV: path, start_s, end_s, label, ``p_<class>`` or ``<dimension>``, failure, segments, model. JSONL has them as keys,
    the scores together under ``scores``.
    """

    def __init__(self, form: str, model: ModelFolder, segment: float | None, step: float | None) -> None:
        self._form = form
        self._scores = {name: f"p_{name}" if model.target == "emotion" else name for name in model.outputs}
        self._made = {
            "segments": "" if segment is None else f"{segment:g} s every {segment if step is None else step:g} s",
            "model": model.digest[:12],
        }
        self._fields = ["path", "start_s", "end_s", "label", *self._scores.values(), "failure", *self._made]
        self._stream: TextIO = sys.stdout

    def resume(self, out: Path) -> tuple[set[str], set[str]]:
        """What a file has already; the rest of it is cut off.

        The last recording is done again, since some of its parts may be missing, and so are those that could not be read, since
        they may have come meanwhile.

        Returns:
            Recordings that are done, and those among them with parts that failed.

        Raises:
            ConfigError: the file is of another model, of other segments, or none of ours.
            StorageError: it cannot be read or written.
        """
        from pipelines.errors import ConfigError, StorageError
        from pipelines.files import write_atomically

        parts = f"in segments of {self._made['segments']}" if self._made["segments"] else "of whole recordings"
        other = f"{out} holds something else than predictions of this model {parts}. Name another file with --out, or remove it."
        try:
            content = out.read_bytes() if out.is_file() else b""  # a pipe or a device has nothing to go on from
        except OSError as error:
            raise StorageError(f"{out} cannot be read: {error.strerror or error}.") from error
        text = content[: content.rfind(b"\n") + 1].decode("utf-8", "surrogateescape")
        lines = _csv_lines(text) if self._form == "csv" else [f"{line}\n" for line in text.split("\n")[:-1]]
        head, lines = (lines[:1], lines[1:]) if self._form == "csv" else ([], lines)
        begun = (",".join(self._fields) if self._form == "csv" else '{"path": "').encode()
        try:
            if not content.startswith(begun) and not begun.startswith(content):
                raise ConfigError(other)
            if head and next(csv.reader(head)) != self._fields:
                raise ConfigError(other)
            rows = [self._parsed(line) for line in lines]
            if any({name: row[name] for name in self._made} != self._made for row in rows):
                raise ConfigError(other)
            again = {row["path"] for row in rows if row["failure"] and row["end_s"] in ("", None)}
            again |= {row["path"] for row in rows[-1:]}
            broken = {row["path"] for row in rows if row["failure"]}
        except (ValueError, KeyError, TypeError, csv.Error) as error:
            raise ConfigError(other) from error
        kept = [line for line, row in zip(lines, rows, strict=True) if row["path"] not in again]
        whole = "".join([*head, *kept]).encode("utf-8", "surrogateescape")
        if whole != content:
            write_atomically(out, whole, option="--out")
        done = {row["path"] for row in rows} - again
        return done, broken & done

    def _parsed(self, line: str) -> dict[str, Any]:
        if self._form == "jsonl":
            row = json.loads(line)
            if not isinstance(row, dict):
                raise TypeError(line)
            return row
        values = next(csv.reader([line]))
        return dict(zip(self._fields, values, strict=True))

    def opened(self, out: Path | None) -> _Writing:
        """Write to a file, at its end, or to standard output."""
        return _Writing(self, out)

    def begin(self, stream: TextIO, *, header: bool) -> None:
        """Write here from now on."""
        self._stream = stream
        if self._form == "csv" and header:
            csv.writer(stream, lineterminator="\n").writerow(self._fields)

    def write(self, found: Prediction) -> None:
        """Write one and hand it to the system at once."""
        scores = {name: found.scores.get(name) for name in self._scores}
        row: dict[str, Any] = {
            "path": str(found.path),
            "start_s": round(found.start_s, 6),
            "end_s": None if found.end_s != found.end_s else round(found.end_s, 6),
            "label": found.label,
        }
        tail = {"failure": " ".join(found.failure.split()), **self._made}
        if self._form == "csv":
            row |= {self._scores[name]: value for name, value in scores.items()} | tail
            values = ["" if row[name] is None else row[name] for name in self._fields]
            csv.writer(self._stream, lineterminator="\n").writerow(values)
        else:
            row |= {"scores": scores, **tail}
            self._stream.write(json.dumps(row, ensure_ascii=False) + "\n")
        self._stream.flush()


def _csv_lines(text: str) -> list[str]:
    """Text cut into rows, without one that was not finished: a line end within quotes, as of a file name, ends none."""
    found: list[str] = []
    quotes = 0
    for line in text.split("\n")[:-1]:
        if quotes % 2:
            found[-1] += line + "\n"
        else:
            found.append(line + "\n")
        quotes += line.count('"')
    return found[:-1] if quotes % 2 else found


class _Writing:
    """A file, or standard output, while rows are written to it; explains a disk that takes no more."""

    def __init__(self, rows: _Rows, out: Path | None) -> None:
        self._rows, self._out = rows, out
        self._stream: TextIO | None = None

    def __enter__(self) -> None:
        if self._out is None:
            if hasattr(sys.stdout, "reconfigure"):
                sys.stdout.reconfigure(errors="surrogateescape")  # names of files may be no text
            self._rows.begin(sys.stdout, header=True)
            return
        try:
            self._out.parent.mkdir(parents=True, exist_ok=True)
            self._stream = self._out.open("a", encoding="utf-8", errors="surrogateescape", newline="")
            self._stream.seek(0, 2)
            self._rows.begin(self._stream, header=self._stream.tell() == 0)
        except OSError as error:
            raise self._explained(error) from error

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if self._stream is not None:
            try:
                self._stream.close()
            except OSError as full:
                raise self._explained(full) from full
        from pipelines.errors import HyfuseError

        if self._out is not None and isinstance(error, OSError) and not isinstance(error, HyfuseError):
            raise self._explained(error) from error

    def _explained(self, error: OSError) -> Exception:
        from pipelines.errors import StorageError

        return StorageError(
            f"{self._out} cannot be written: {error.strerror or error}. What is in it is kept; make room, or name another file with"
            " --out."
        )
