"""``hyfuse corpora new``: a manifest from the names of files."""

from __future__ import annotations

import shlex
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hyfuse_cli import console

if TYPE_CHECKING:
    from pipelines.corpora.from_names import Named, Pattern

__all__ = ["new_corpus"]

_SHOWN = 5


def new_corpus(
    folder: Annotated[Path, typer.Argument(help="Folder of the recordings; those in folders below it count.")],
    pattern: Annotated[
        str,
        typer.Option(
            "--pattern",
            help="How the names are made, in quotation marks: '{speaker}_{emotion}_{take}.wav', '{speaker}/{emotion}/*.wav',"
            " '{speaker:2}{text:3}{emotion:1}*'.",
        ),
    ],
    labels: Annotated[
        str, typer.Option("--labels", help="What the names write for emotions: W=anger,L=boredom,x= (none).")
    ] = "",
    out: Annotated[Path | None, typer.Option("--out", help="The manifest; FOLDER.csv here unless given.")] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Write without asking.")] = False,
) -> None:
    """Make a manifest from the names of files, after a preview.

    Says how many names fit the pattern, which do not, who speaks and which emotions were found, looks at every recording's header,
    and writes a CSV for --corpus.
    """
    from pipelines.corpora.from_names import parse_labels, parse_pattern, read_names
    from pipelines.errors import ConfigError, ManifestError

    parsed, map_of = parse_pattern(pattern), parse_labels(labels)
    named = read_names(folder, parsed, map_of)
    target = out or Path(f"{folder.resolve().name or 'corpus'}.csv")
    if target.suffix.lower() != ".csv":
        raise ConfigError(f"--out {target} must end in .csv.")
    _preview(named, parsed)
    if not named.rows:
        raise ManifestError(
            f"No name in {folder} fits {pattern!r}. A name is {(named.unmatched or named.ambiguous or named.unusable)[0]!r}; write"
            " the pattern after it, with {speaker} and {emotion} where they are."
        )
    from pipelines.corpora.manifest import manifest_from_rows, write_manifest
    from pipelines.corpora.prepare import prepare_manifest

    # Relative where the recordings lie beside or below the table, so that both can be moved together.
    base = target.resolve().parent
    below = folder.resolve()
    prefix = below.relative_to(base).as_posix() if below.is_relative_to(base) else below.as_posix()
    rows = [{**row, "path": str(row["path"]) if prefix == "." else f"{prefix}/{row['path']}"} for row in named.rows]
    manifest = manifest_from_rows(target.stem, rows, root=base, origin=str(folder))
    with console.meter(f"reading {folder.name}", "recordings") as update:
        prepared = prepare_manifest(manifest, target.name, progress=update)
    console.show_findings(prepared.findings)
    if target.exists() and not _same(target, prepared.manifest.digest):
        raise ConfigError(f"{target} exists and says something else. Name another file with --out, or remove it.")
    if not yes:
        again = shlex.join(["hyfuse", "corpora", "new", *_given(folder, pattern, labels, out), "--yes"])
        if not sys.stdin.isatty():
            console.note(f"Nothing was written. If this is right: `{again}`.")
            return
        typer.confirm(f"Write {len(manifest)} utterances to {target}?", abort=True, err=True)
    write_manifest(prepared.manifest, target)
    console.out.print(f"{len(manifest)} utterances are in {target}.", markup=False, soft_wrap=True)
    quoted = shlex.quote(str(target))
    console.note(
        f"Next: `hyfuse extract --model wavlm --corpus {quoted}`; to decode every recording first: `hyfuse corpora check {quoted}`."
    )


def _given(folder: Path, pattern: str, labels: str, out: Path | None) -> list[str]:
    given = [str(folder), "--pattern", pattern]
    if labels:
        given += ["--labels", labels]
    return [*given, "--out", str(out)] if out else given


def _same(path: Path, digest: str) -> bool:
    from pipelines.corpora.manifest import read_manifest
    from pipelines.errors import ManifestError

    try:
        return read_manifest(path).digest == digest
    except ManifestError:
        return False


def _preview(named: Named, pattern: Pattern) -> None:
    """What was found, and what was not."""
    from rich.markup import escape
    from rich.table import Table

    console.out.print(f"{len(named.rows)} of {named.files} recordings fit {pattern.text}", markup=False, soft_wrap=True)
    if named.rows:
        table = Table(box=None, pad_edge=False)
        columns = ["path", *pattern.fields]
        for column in columns:
            table.add_column(column)
        # Not the first few, which are of one speaker: some from everywhere.
        step = max(1, len(named.rows) // _SHOWN)
        for row in named.rows[::step][:_SHOWN]:
            table.add_row(*(escape(_cell(row, column)) for column in columns))
        console.out.print(table)
        console.out.print(f"speakers   {_counts(named.rows, 'speaker')}", markup=False, soft_wrap=True)
        if "emotion" in pattern.fields:
            console.out.print(f"emotions   {_counts(named.rows, 'emotion')}", markup=False, soft_wrap=True)
    for names, what in (
        (named.unmatched, "do not fit the pattern and are left out"),
        ([f"{file}: {why}" for file, why in named.ambiguous], "can be read in several ways and are left out; give a field a"
         " number of characters, such as {speaker:2}, or write more of the text between fields"),
        ([f"{file!a}: {why}" for file, why in named.unusable], "have names that a table cannot hold; rename them"),
    ):  # fmt: skip
        if names:
            some = "; ".join(ascii(name) if not name.isprintable() else name for name in names[:_SHOWN])
            console.say(f"warning: {len(names)} recording(s) {what}: {some}{' …' if len(names) > _SHOWN else ''}")
    for raw, near in named.unknown.items():
        meant = (
            f" Did you mean {' or '.join(near)}? `--labels {raw}={near[0]}`"
            if near
            else f" `--labels {raw}=anger`, say,"
        )
        console.say(f"note: {raw!r} is no emotion that hyfuse knows; it becomes a class of its own.{meant} maps it.")
    if named.unused:
        console.say(f"warning: --labels names {', '.join(named.unused)}, which no file has.")


def _cell(row: Mapping[str, object], column: str) -> str:
    value = str(row.get(column, ""))
    if column == "emotion" and row.get("emotion_raw") != value:
        return f"{row.get('emotion_raw')} → {value or '(none)'}"
    return value


def _counts(rows: Sequence[Mapping[str, object]], column: str) -> str:
    found = Counter(str(row.get(column, "")) for row in rows)
    shown = ", ".join(f"{value or '(none)'} {count}" for value, count in sorted(found.items())[:12])
    return f"{len(found)}: {shown}{', …' if len(found) > 12 else ''}"
