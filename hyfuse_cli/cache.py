"""``hyfuse cache``: the embedding stores."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hyfuse_cli import console
from hyfuse_cli.options import CacheDir

__all__ = ["app"]

app = typer.Typer(help="The embedding stores: list, verify, remove.", no_args_is_help=True)

_NAME_HELP = "CORPUS, CORPUS/MODEL or CORPUS/MODEL/CONDITION, as `hyfuse cache list` shows them."


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def _matching(name: str | None, cache_dir: Path) -> list[Path]:
    """Stores that a name stands for.

    Raises:
        UnknownNameError: none.
    """
    from pipelines.errors import unknown_name
    from pipelines.store.embeddings import find_stores

    stores = {path.relative_to(cache_dir).with_suffix("").as_posix(): path for path in find_stores(cache_dir)}
    if name is None:
        return list(stores.values())
    wanted = name.rstrip("/")
    found = [path for key, path in stores.items() if key == wanted or key.startswith(wanted + "/")]
    if not found:
        raise unknown_name("store", name, stores, hint=f"The cache is {cache_dir}; another one: --cache-dir.")
    return found


@app.command("list")
def list_stores(cache_dir: CacheDir = Path("cache")) -> None:
    """List the stores."""
    from rich.table import Table

    from pipelines.errors import StoreError
    from pipelines.store.embeddings import find_stores, open_store

    paths = find_stores(cache_dir)
    if not paths:
        console.say(
            f"No store in {cache_dir}. Make one: `hyfuse extract --model wavlm --corpus demo --weights random`."
        )
        return
    table = Table(box=None, pad_edge=False)
    for column in ("store", "weights", "done", "failed", "to do", "R × D", "MB"):
        table.add_column(column, justify="left" if column in {"store", "weights"} else "right")
    for path in paths:
        name = path.relative_to(cache_dir).with_suffix("").as_posix()
        try:
            store = open_store(path, complete=False)
            todo, done, failed = store.counts
        except StoreError:
            table.add_row(name, "damaged: see `hyfuse cache verify`")
            continue
        made = store.provenance
        shape = f"{len(made.representations)} × {made.dim}"
        table.add_row(name, made.weights_kind, str(done), str(failed), str(todo), shape, f"{_size(path) / 1e6:.1f}")
    console.out.print(table)


@app.command("verify")
def verify(
    name: Annotated[str | None, typer.Argument(help=_NAME_HELP + " All, if left out.")] = None,
    cache_dir: CacheDir = Path("cache"),
) -> None:
    """Read every number of the stores, check checksums and contract. Exit status 1 if something is wrong."""
    from pipelines.errors import StoreError
    from pipelines.store.embeddings import open_store, verify_store

    paths = _matching(name, cache_dir)
    wrong = False
    for path in paths:
        label = path.relative_to(cache_dir).with_suffix("").as_posix()
        try:
            problems = verify_store(path)
            todo, done, failed = open_store(path, complete=False).counts
            state = f"{done} done, {failed} failed, {todo} to do"
        except StoreError as error:
            problems, state = [str(error)], "unreadable"
        wrong = wrong or bool(problems)
        console.out.print(f"{label}: {'ok' if not problems else 'DAMAGED'} ({state})", markup=False)
        for problem in problems:
            console.out.print(f"  {problem}", markup=False, soft_wrap=True)
    if wrong:
        raise typer.Exit(1)


@app.command("remove")
def remove(
    name: Annotated[str, typer.Argument(help=_NAME_HELP)],
    cache_dir: CacheDir = Path("cache"),
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Remove stores; their embeddings have to be extracted again."""
    from pipelines.store.embeddings import remove_store

    paths = _matching(name, cache_dir)
    console.say(f"To be removed: {', '.join(str(path) for path in paths)} ({sum(map(_size, paths)) / 1e6:.1f} MB)")
    if not yes:
        typer.confirm("Remove?", abort=True, err=True)
    for path in paths:
        remove_store(path)
    console.say(f"Removed {len(paths)} store(s).")
