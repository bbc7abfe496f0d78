"""``hyfuse cache``: the embedding stores."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hyfuse_cli import completion, console
from hyfuse_cli.options import DEFAULT_CACHE, CacheDir, DataRoot, Device, WeightsDir

if TYPE_CHECKING:
    from pipelines.corpora.manifest import Manifest
    from pipelines.extraction.texts import CorpusTexts
    from pipelines.locations import Location

__all__ = ["app"]

app = typer.Typer(help="The embedding stores: list, verify, export, import, remove.", no_args_is_help=True)

_NAME_HELP = "CORPUS, CORPUS/MODEL or CORPUS/MODEL/CONDITION, as `hyfuse cache list` shows them."


def _label(path: Location) -> str:
    """CORPUS/MODEL/CONDITION of a store."""
    return "/".join((path.parent.parent.name, path.parent.name, path.name.removesuffix(".zarr")))


def _matching(name: str | None, cache_dir: Location) -> list[Location]:
    """Stores that a name stands for.

    Raises:
        UnknownNameError: none.
    """
    from pipelines.errors import unknown_name
    from pipelines.store.embeddings import find_stores

    stores = {_label(path): path for path in find_stores(cache_dir)}
    if name is None:
        return list(stores.values())
    wanted = name.rstrip("/")
    found = [path for key, path in stores.items() if key == wanted or key.startswith(wanted + "/")]
    if not found:
        raise unknown_name("store", name, stores, hint=f"The cache is {cache_dir}; another one: --cache-dir.")
    return found


@app.command("list")
def list_stores(
    cache_dir: CacheDir = DEFAULT_CACHE,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per store.")] = False,
) -> None:
    """List the stores."""
    from pipelines.errors import StoreError
    from pipelines.locations import size_of
    from pipelines.store.embeddings import find_stores, open_store

    paths = find_stores(cache_dir)
    if not paths:
        console.say(
            f"No store in {cache_dir}. Make one: `hyfuse extract --model wavlm --corpus demo --weights random`."
        )
        return
    entries: list[dict[str, Any]] = []
    for path in paths:
        entry: dict[str, Any] = {"store": _label(path), "path": str(path)}
        try:
            store = open_store(path, complete=False)
            todo, done, failed = store.counts
            entry |= {
                "done": done,
                "failed": failed,
                "todo": todo,
                "bytes": size_of(path),
                **store.provenance.to_attributes(),
            }
        except StoreError as error:
            entry["error"] = str(error)
        entries.append(entry)
    if as_json:
        for entry in entries:
            typer.echo(json.dumps(entry, ensure_ascii=False))
        return

    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in ("store", "weights", "done", "failed", "to do", "R × D", "MB"):
        table.add_column(column, justify="left" if column in {"store", "weights"} else "right")
    for entry in entries:
        if "error" in entry:
            table.add_row(entry["store"], "damaged: see `hyfuse cache verify`")
            continue
        counts = (str(entry[name]) for name in ("done", "failed", "todo"))
        shape = f"{len(entry['representations'])} × {entry['dim']}"
        table.add_row(entry["store"], entry["weights_kind"], *counts, shape, f"{entry['bytes'] / 1e6:.1f}")
    console.out.print(table)


@app.command("verify")
def verify(
    name: Annotated[
        str | None,
        typer.Argument(
            help=_NAME_HELP + " All, if left out.",
            autocompletion=completion.stores,
        ),
    ] = None,
    audio_sample: Annotated[
        int, typer.Option("--audio-sample", min=0, help="Compute so many rows per store again from the recordings.")
    ] = 0,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Draws other rows.")] = 0,
    data_root: DataRoot = None,
    weights_dir: WeightsDir = None,
    noise_dir: Annotated[
        list[Path] | None, typer.Option("--noise-dir", help="Folder of noise sets, for stores with noise; repeatable.")
    ] = None,
    device: Device = "auto",
    cache_dir: CacheDir = DEFAULT_CACHE,
) -> None:
    """Read every number of the stores, check checksums and contract. Exit status 1 if something is wrong.

    With --audio-sample, rows drawn at random are computed again from the recordings, one by one, and compared; this needs the
    recordings and the weights that the store was made with.
    """
    from pipelines.errors import StoreError
    from pipelines.store.embeddings import open_store, store_digest, verify_store

    paths = _matching(name, cache_dir)
    wrong = False
    for path in paths:
        label = _label(path)
        digest = ""
        try:
            problems = verify_store(path)
            todo, done, failed = open_store(path, complete=False).counts
            state = f"{done} done, {failed} failed, {todo} to do"
            if not problems:
                digest = store_digest(path)
        except StoreError as error:
            problems, state = [str(error)], "unreadable"
        console.out.print(f"{label}: {'ok' if not problems else 'DAMAGED'} ({state})", markup=False)
        if digest:
            console.out.print(f"  content {digest}", markup=False, soft_wrap=True)
        for problem in problems:
            console.out.print(f"  {problem}", markup=False, soft_wrap=True)
        if audio_sample and not problems:
            problems = _recheck(
                path,
                sample=audio_sample,
                seed=seed,
                data_root=data_root,
                weights_dir=weights_dir,
                noise_dir=noise_dir or (),
                device=device,
                cache_dir=cache_dir,
            )
        wrong = wrong or bool(problems)
    if wrong:
        raise typer.Exit(1)


def _recheck(
    path: Location,
    *,
    sample: int,
    seed: int,
    data_root: Path | None,
    weights_dir: Path | None,
    noise_dir: Sequence[Path],
    device: str,
    cache_dir: Location,
) -> list[str]:
    """Compute some rows of a store again and say what came of it; gives what is wrong."""
    from dataclasses import replace

    from pipelines.audio.conditions import parse_condition, prepare_condition
    from pipelines.corpora.resolve import recall_corpus
    from pipelines.encoders.catalogue import load_encoder
    from pipelines.errors import DataRootError
    from pipelines.extraction.engines.local import choose_device
    from pipelines.extraction.recheck import recheck_rows
    from pipelines.store.embeddings import open_store
    from pipelines.store.interchange import is_imported

    store = open_store(path, complete=False)
    made = store.provenance
    if is_imported(made):
        console.out.print("  not computed again: these embeddings were imported from a file", markup=False)
        return []
    manifest = recall_corpus(made.corpus, cache_dir=cache_dir)
    if data_root is not None:
        manifest = replace(manifest, root=data_root)
    if made.family != "LEX" and (manifest.root is None or not manifest.root.is_dir()):
        raise DataRootError(
            f"The recordings of {made.corpus!r} were at {manifest.root}, which is not there any more. Name the folder with"
            " `--data-root DIR`."
        )
    distortion = texts = None
    if made.family == "LEX":
        texts = _texts_of(made.condition, manifest, cache_dir)
    elif not (condition := parse_condition(made.condition)).is_clean:
        distortion = prepare_condition(condition, manifest=manifest, noise_dirs=noise_dir)
    with console.meter(f"weights of {made.encoder}", "bytes") as bytes_meter:
        encoder = load_encoder(
            made.encoder,
            weights=made.weights_kind,
            device=choose_device(device),
            weights_dir=weights_dir,
            progress=lambda file, done, total: bytes_meter(done, total, file),
            precision=made.precision,
        )
    with console.meter(f"{made.encoder} again", "utterances") as update:
        found = recheck_rows(
            store, manifest, encoder, sample=sample, seed=seed, distortion=distortion, texts=texts, progress=update
        )
    outcome = "agree" if not found.problems else "DO NOT AGREE"
    console.out.print(
        f"  {found.rows} rows computed again from the {'texts' if texts else 'recordings'} {outcome}: largest relative difference"
        f" {found.largest:.1e}{f' ({found.where})' if found.where else ''}, allowed {found.tolerance:.0e}",
        markup=False,
        soft_wrap=True,
    )
    for line in (*found.problems, *found.environment):
        console.out.print(f"  {line}", markup=False, soft_wrap=True)
    return list(found.problems)


def _texts_of(condition: str, manifest: Manifest, cache_dir: Location) -> CorpusTexts:
    """What a store of text embeddings under a condition was made from."""
    from pipelines.extraction.texts import manual_texts, recognised_texts
    from pipelines.store.transcripts import parse_text_condition

    model, audio_condition = parse_text_condition(condition)
    if model is None:
        return manual_texts(manifest)
    return recognised_texts(manifest, model=model, condition=audio_condition, cache_dir=cache_dir)


@app.command("export")
def export(
    name: Annotated[
        str,
        typer.Argument(
            help="CORPUS/MODEL or CORPUS/MODEL/CONDITION.",
            autocompletion=completion.stores,
        ),
    ],
    out: Annotated[Path, typer.Argument(help="File to write: .h5, .npz, .parquet or .csv.")],
    representation: Annotated[
        list[str] | None, typer.Option("--representation", help="Which one, repeatable; all, if left out.")
    ] = None,
    pool: Annotated[str, typer.Option("--pool", help="mean, std or mean+std of the frames.")] = "mean+std",
    cache_dir: CacheDir = DEFAULT_CACHE,
) -> None:
    """Write a store to a file that other programs read, with ids, speakers, labels and provenance.

    Recordings that failed are listed with their reasons. docs/interchange.md shows how to read the file without hyfuse.
    """
    from pipelines.corpora.resolve import recall_corpus
    from pipelines.errors import ConfigError
    from pipelines.store.embeddings import open_store
    from pipelines.store.feature_files import check_suffix
    from pipelines.store.interchange import export_store

    check_suffix(out)
    paths = _matching(name, cache_dir)
    if len(paths) > 1:
        listed = ", ".join(_label(path) for path in paths)
        raise ConfigError(f"{name!r} stands for {len(paths)} stores: {listed}. Export one at a time.")
    store = open_store(paths[0])
    manifest = recall_corpus(store.provenance.corpus, cache_dir=cache_dir)
    with console.meter(f"writing {out.name}", "utterances") as update:
        written = export_store(store, manifest, out, representations=representation or (), pool=pool, progress=update)
    names = written.representations
    console.say(
        f"{written.rows} utterances are in {out}: {' and '.join(written.arrays)} of"
        f" {', '.join(names) if len(names) < 4 else f'{names[0]} … {names[-1]}'}."
    )
    if store.provenance.weights_kind == "random":
        console.note("The weights were random, and the file says so.")
    if written.failed:
        console.say(f"{written.failed} recording(s) that could not be used are listed there with their reasons.")
    console.note("How to read it with numpy, pandas or h5py: docs/interchange.md.")


@app.command("import")
def import_file(
    file: Annotated[Path, typer.Argument(help="File of embeddings: .h5, .npz, .parquet or .csv.")],
    corpus: Annotated[
        str, typer.Option("--corpus", "-c", help="Name, or path of a CSV/Parquet manifest, of the corpus they are of.")
    ],
    name: Annotated[str, typer.Option("--name", help="What to call them, such as my-features.")],
    family: Annotated[
        str | None,
        typer.Option(
            "--family", help="RLR (representation learning, the default) or CBR (codec): their side of a pair."
        ),
    ] = None,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Leave utterances that are not in the file out of every comparison.")
    ] = False,
    data_root: DataRoot = None,
    cache_dir: CacheDir = DEFAULT_CACHE,
) -> None:
    """Make a store of embeddings that another tool wrote, to fuse and compare them with everything else.

    Rows are matched by utterance id, or by path or file name. Tables say "imported" where they name the weights.
    """
    from pipelines.corpora.resolve import is_folder, is_table, recall_corpus
    from pipelines.encoders.catalogue import canonical_name, encoder_names
    from pipelines.store.feature_files import check_suffix
    from pipelines.store.interchange import check_import_name, import_features

    taken = encoder_names(tiny=True)
    if canonical_name(name) != name:
        taken.append(name)
    check_suffix(file)  # before anything slow
    check_import_name(name, taken)
    if is_table(corpus) or is_folder(corpus) or data_root is not None or corpus == "demo":
        from hyfuse_cli.extract import open_corpus

        manifest = open_corpus(corpus, data_root=data_root, cache_dir=cache_dir)
    else:
        manifest = recall_corpus(corpus, cache_dir=cache_dir)
    with console.meter(f"importing {file.name}", "utterances") as update:
        done = import_features(
            file,
            manifest,
            name=name,
            cache_dir=cache_dir,
            family=family or "",
            taken=taken,
            allow_missing=allow_missing,
            progress=update,
        )
    made = done.store.provenance
    _, rows, failed = done.store.counts
    shape = f"{len(made.representations)} representation(s) of {made.dim} numbers"
    console.say(f"{name} ({made.weights_kind}): {rows} utterances in {done.store.path}; {shape}.")
    if done.ignored:
        console.say(f"Not taken for features: {_few(done.ignored)}.")
    if done.unused:
        console.say(
            f"{len(done.unused)} row(s) of the file fit no utterance of {manifest.corpus!r}: {_few(done.unused)}."
        )
    if failed:
        console.say(f"{failed} utterance(s) have no embedding and are left out of training:")
        for utterance, reason in list(done.failed.items())[:5]:
            console.say(f"  {utterance}: {reason}")
        if failed > 5:
            console.say(f"  … and {failed - 5} more")
    console.note(
        f'Next: `hyfuse compare --corpus {manifest.corpus} --models "{name} …"` with a model of the other family.'
    )


def _few(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")


@app.command("remove")
def remove(
    name: Annotated[
        str,
        typer.Argument(
            help=_NAME_HELP,
            autocompletion=completion.stores,
        ),
    ],
    cache_dir: CacheDir = DEFAULT_CACHE,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Remove stores; their embeddings have to be extracted again."""
    from pipelines.locations import size_of
    from pipelines.store.embeddings import remove_store

    paths = _matching(name, cache_dir)
    console.say(f"To be removed: {', '.join(str(path) for path in paths)} ({sum(map(size_of, paths)) / 1e6:.1f} MB)")
    if not yes:
        typer.confirm("Remove?", abort=True, err=True)
    for path in paths:
        remove_store(path)
    console.say(f"Removed {len(paths)} store(s).")
