"""``hyfuse corpora``: what corpora there are, and whether yours is in order."""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hyfuse_cli import completion, console, corpora_fetch, corpora_new
from hyfuse_cli.options import DEFAULT_CACHE, AsJson, CacheDir

if TYPE_CHECKING:
    from pipelines.corpora.resolve import Columns
    from pipelines.locations import Location

__all__ = ["app", "prepare"]

app = typer.Typer(help="The corpora: what they are, how to get them, whether yours is in order.", no_args_is_help=True)
app.command("fetch")(corpora_fetch.fetch_corpus)
app.command("new")(corpora_new.new_corpus)

_NAME = Annotated[
    str,
    typer.Argument(
        help="Corpus, the path of a CSV/Parquet manifest, or a folder of recordings.", autocompletion=completion.corpora
    ),
]
_ROOT = Annotated[Path | None, typer.Option("--root", help="Folder of the corpus.")]


@app.command("list")
def list_corpora(as_json: AsJson = False) -> None:
    """List the corpora that hyfuse reads."""
    if as_json:
        from pipelines.corpora.cards import card_names, read_card

        for name in card_names():
            typer.echo(json.dumps(asdict(read_card(name)), ensure_ascii=False))
        return
    from rich.table import Table

    from pipelines.corpora.cards import card_names, read_card

    table = Table(box=None, pad_edge=False)
    for column in ("name", "utterances", "speakers", "emotions", "language", "default protocol", "what it is"):
        table.add_column(column, justify="right" if column in {"utterances", "speakers", "emotions"} else "left")
    for name in card_names():
        card = read_card(name)
        table.add_row(
            card.name,
            f"{card.expected_utterances:,}" if card.expected_utterances else "",
            f"{card.expected_speakers:,}" if card.expected_speakers else "",
            str(len(card.classes)),
            card.language,
            card.default_protocol,
            card.title,
        )
    console.out.print(table)
    console.note(
        "One corpus: `hyfuse corpora show NAME`. Download an open one: `hyfuse corpora fetch NAME`. A corpus of your own: `hyfuse"
        " corpora new FOLDER --pattern '{speaker}_{emotion}_*.wav'`."
    )


@app.command("show")
def show_corpus(name: _NAME, as_json: AsJson = False) -> None:
    """Show a corpus' card: licence, how to get it, labels, protocols, expected counts."""
    from pipelines.corpora.cards import read_card

    card = read_card(name)
    if as_json:
        typer.echo(json.dumps(asdict(card), ensure_ascii=False))
        return
    emotions = ", ".join(f"{emotion} {count}" for emotion, count in card.expected_emotions.items())
    lines = {
        "name": card.name,
        "what it is": card.title,
        "language": card.language,
        "version": card.version,
        "licence": card.licence,
        "cite": card.citation,
        "where": card.url,
        "expected": f"{card.expected_utterances} utterances, {card.expected_speakers} speakers"
        + (f" ({emotions})" if emotions else ""),
        "classes": ", ".join(card.classes),
        "labels": ", ".join(f"{raw} → {emotion or '(none)'}" for raw, emotion in card.label_map.items()),
        "protocols": ", ".join(
            f"{name} (default)" if name == card.default_protocol else name for name in card.protocols
        ),
        "warnings": " ".join(card.warnings),
        "download": f"`hyfuse corpora fetch {card.name}` (audb: {card.audb.name} {card.audb.version})"
        if card.audb
        else "",
        "how to get it": card.obtain,
    }
    width = max(map(len, lines))
    for head, text in lines.items():
        if text:
            indented = text.replace("\n", "\n" + " " * (width + 2))
            console.out.print(f"{head:<{width}}  {indented}", markup=False, soft_wrap=True)


@app.command("prepare")
def prepare_corpus(
    name: _NAME,
    root: _ROOT = None,
    table: Annotated[
        list[str] | None,
        typer.Option("--table", help="Of an audformat database: take the emotion from this table; repeatable."),
    ] = None,
    emotion: Annotated[
        str, typer.Option("--emotion", help="Of a database or audiofolder: column of the emotion.")
    ] = "",
    speaker: Annotated[
        str, typer.Option("--speaker", help="Of a database or audiofolder: column of the speaker.")
    ] = "",
    cache_dir: CacheDir = DEFAULT_CACHE,
) -> None:
    """Read a corpus, check it, and remember its manifest.

    A corpus is an official folder (checked against its card), a CSV or Parquet of your own, an audformat database (a folder with
    db.yaml) or an audiofolder (a folder per class, or metadata.csv).
    """
    from pipelines.corpora.resolve import Columns

    prepare(name, root, Columns(tuple(table or ()), emotion, speaker), cache_dir)


def prepare(name: str, root: Path | None, columns: Columns | None, cache_dir: Location) -> None:
    """Prepare a corpus, show it, and name the next command."""
    from pipelines.corpora.resolve import resolve_corpus

    with console.meter(f"reading {name}", "utterances") as update:
        prepared = resolve_corpus(name, cache_dir=cache_dir, data_root=root, columns=columns, progress=update)
    console.show_findings(prepared.findings)
    manifest = prepared.manifest
    table = manifest.table
    console.out.print(
        f"{manifest.corpus}: {len(table)} utterances, {table['speaker'].nunique()} speakers,"
        f" {table['duration_s'].sum() / 3600:.2f} h, digest {manifest.digest[:12]}",
        markup=False,
    )
    console.out.print(f"manifest: {cache_dir / manifest.corpus / 'manifest.csv'}", markup=False, soft_wrap=True)
    console.note(f"Next: `hyfuse extract --model wavlm --corpus {shlex.quote(manifest.corpus)}`.")


@app.command("check")
def check_corpus(
    name: _NAME,
    root: _ROOT = None,
    split: Annotated[
        Path | None,
        typer.Option(
            "--split",
            help="CSV/Parquet of folds to check for leaks instead: utterance_id, fold, part; or utterance_id, split.",
        ),
    ] = None,
    near: Annotated[
        bool, typer.Option("--near", help="With --split: also look for copies at another level, coding or rate.")
    ] = False,
    cache_dir: CacheDir = DEFAULT_CACHE,
) -> None:
    """Decode every recording of a corpus and report what is odd, or, with --split, what leaks from training to test.

    Exit status 1 if something is wrong.
    """
    from pipelines.errors import ConfigError

    if split is not None:
        _check_folds(name, split, root=root, near=near, cache_dir=cache_dir)
        return
    if near:
        raise ConfigError("--near compares training with test recordings and needs their folds: add --split FOLDS.csv.")
    from pipelines.corpora.resolve import audit_corpus

    with console.meter(f"checking {name}", "recordings") as update:
        audit = audit_corpus(name, cache_dir=cache_dir, data_root=root, progress=update)
    summary = audit.summary
    lengths = summary["duration_s"]
    lines = {
        "utterances": summary["utterances"],
        "speakers": summary["speakers"],
        "emotions": ", ".join(f"{emotion or '(no label)'} {count}" for emotion, count in summary["emotions"].items()),
        "duration": f"{lengths['total'] / 3600:.2f} h; {lengths['min']:.2f} to {lengths['max']:.2f} s,"
        f" mean {lengths['mean']:.2f} s",
        "rates Hz": ", ".join(f"{rate} ({count})" for rate, count in summary["rates_hz"].items()),
        "channels": ", ".join(f"{channels} ({count})" for channels, count in summary["channels"].items()),
        "formats": ", ".join(f"{name} ({count})" for name, count in summary["formats"].items()),
    }
    for head, text in lines.items():
        console.out.print(f"{head:<12}{text}", markup=False, soft_wrap=True)
    if summary["agreement"]:
        console.out.print("raters      agreement as Krippendorff's alpha (1 perfect, 0 chance):", markup=False)
    for found in summary["agreement"]:
        torn = f"; without {found.torn} in which a rater named several" if found.torn else ""
        console.out.print(
            f"            {found.what} {found.alpha:.2f} ({found.answers} answers on {found.utterances} utterances{torn})",
            markup=False,
            soft_wrap=True,
        )
    console.show_findings(audit.findings)
    if not audit.findings:
        console.out.print("Nothing odd was found.")
    if any(finding.level == "error" for finding in audit.findings):
        raise typer.Exit(1)
    console.note(f"Next: `hyfuse extract --model wavlm --corpus {shlex.quote(name)}`.")


def _check_folds(name: str, split: Path, *, root: Path | None, near: bool, cache_dir: Location) -> None:
    """Check a user's folds; the corpus is remembered, as by ``prepare``."""
    from pipelines.corpora.leaks import audit_split, read_split
    from pipelines.corpora.resolve import resolve_corpus

    manifest = resolve_corpus(name, cache_dir=cache_dir, data_root=root).manifest
    given = read_split(split, manifest)
    with console.meter(f"checking {split.name}", "recordings") as update:
        findings = audit_split(manifest, given, near=near, progress=update)
    for fold in given.split.folds:
        parts = ", ".join(f"{part} {len(getattr(fold, part))}" for part in ("train", "validation", "test"))
        console.out.print(f"fold {fold.name:<8}{parts}", markup=False, soft_wrap=True)
    console.show_findings(findings)
    wrong = sum(finding.level == "error" for finding in findings)
    if wrong:
        console.out.print(
            f"{split.name} leaks: {wrong} finding{'s' if wrong > 1 else ''} of level error.", markup=False
        )
        raise typer.Exit(1)
    console.out.print(f"Nothing leaks from training to test in {split.name}.", markup=False)
