"""``hyfuse corpora fetch``: download an open corpus, and prepare it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hyfuse_cli import console
from hyfuse_cli.options import DEFAULT_CACHE, CacheDir

if TYPE_CHECKING:
    from pipelines.corpora.cards import Card

__all__ = ["fetch_corpus"]


def fetch_corpus(
    name: Annotated[str, typer.Argument(help="Corpus (see `hyfuse corpora list`).")],
    to: Annotated[Path | None, typer.Option("--to", help="Folder for the recordings; data/NAME unless given.")] = None,
    version: Annotated[
        str, typer.Option("--version", help="Another release than the card's, which published numbers belong to.")
    ] = "",
    accept_licence: Annotated[
        bool,
        typer.Option(
            "--accept-licence", "--accept-license", help="Accept the licence shown; remembered, so only once."
        ),
    ] = False,
    cache_dir: CacheDir = DEFAULT_CACHE,
) -> None:
    """Download an open corpus through audb, and prepare it.

    Stop it at any time: the same command goes on. For a corpus that has to be asked for, the steps are shown instead.
    """
    from pipelines.corpora.cards import read_card
    from pipelines.corpora.fetch import fetch, not_offered

    card = read_card(name)
    if name == "demo":
        from pipelines.errors import ConfigError

        raise ConfigError("The demo corpus is made, not fetched: `hyfuse corpora prepare demo`.")
    if card.audb is None:
        raise not_offered(card)
    _agree(card, accept_licence)
    root = to or Path("data") / card.name
    with console.meter(f"fetching {card.name} {version or card.audb.version}", "files") as update:
        done = fetch(card, root, version=version, progress=update)
    console.say(
        f"{done.files} files of {card.audb.name} {done.version} are in {done.root} ({done.new} new)."
        if done.new
        else f"{done.root} has all {done.files} files of {card.audb.name} {done.version} already."
    )
    if card.audb.remark:
        console.note(card.audb.remark)

    from hyfuse_cli.corpora import prepare

    prepare(card.name, done.root, None, cache_dir)


def _agree(card: Card, accept: bool) -> None:
    """Show the licence and have it accepted, unless it was before."""
    from pipelines.corpora.fetch import accept_licence, licence_accepted
    from pipelines.errors import ConfigError

    if licence_accepted(card):
        return
    for head, text in (("corpus", card.title), ("licence", card.licence), ("page", card.url), ("cite", card.citation)):
        console.out.print(f"{head:<9}{text}", markup=False, soft_wrap=True)
    if not accept:
        if not sys.stdin.isatty():
            raise ConfigError(
                f"The licence of {card.name} has to be accepted once. If you do: `hyfuse corpora fetch {card.name}"
                " --accept-licence`."
            )
        typer.confirm("Do you accept this licence?", abort=True, err=True)
    console.note(f"Remembered in {accept_licence(card)}.")
