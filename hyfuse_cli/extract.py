"""``hyfuse extract``: recordings to embeddings, once per corpus and encoder."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hyfuse_cli import console
from hyfuse_cli.options import CacheDir, DataRoot, Device, Weights, WeightsDir

if TYPE_CHECKING:
    from pipelines.corpora.manifest import Manifest

__all__ = ["extract", "open_corpus"]


def open_corpus(corpus: str, *, data_root: Path | None, cache_dir: Path) -> Manifest:
    """Find the corpus and say what is odd about it."""
    from pipelines.corpora.resolve import resolve_corpus

    with console.meter(f"reading {corpus}", "utterances") as update:
        prepared = resolve_corpus(corpus, cache_dir=cache_dir, data_root=data_root, progress=update)
    console.show_findings(prepared.findings)
    return prepared.manifest


def extract(
    model: Annotated[list[str], typer.Option("--model", "-m", help="Encoder (see `hyfuse models list`); repeatable.")],
    corpus: Annotated[
        str, typer.Option("--corpus", "-c", help="Name (see `hyfuse corpora list`) or path of a CSV/Parquet manifest.")
    ],
    data_root: DataRoot = None,
    weights: Weights = "pretrained",
    weights_dir: WeightsDir = None,
    device: Device = "auto",
    cache_dir: CacheDir = Path("cache"),
) -> None:
    """Encode every recording of a corpus and store its pooled embeddings.

    Runs once per corpus and encoder. Stop it at any time: the same command goes on from there. Recordings that cannot be
    used are kept in the store with the reason, and named at the end.
    """
    from pipelines.encoders.catalogue import encoder_spec

    names = list(dict.fromkeys(model))
    for name in names:  # before anything slow
        encoder_spec(name)
    manifest = open_corpus(corpus, data_root=data_root, cache_dir=cache_dir)

    from pipelines.encoders.catalogue import load_encoder
    from pipelines.extraction.engines.local import ExtractionProgress, choose_device, extract_corpus

    chosen = choose_device(device)
    for name in names:
        with console.meter(f"weights of {name}", "bytes") as bytes_meter:
            encoder = load_encoder(
                name,
                weights=weights,
                device=chosen,
                weights_dir=weights_dir,
                progress=lambda file, done, total, update=bytes_meter: update(done, total, file),  # type: ignore[misc]
            )
        started = time.monotonic()
        last = ExtractionProgress(0, len(manifest), 0, 0.0)
        with console.meter(f"{name} on {chosen}", "utterances") as update:

            def show(progress: ExtractionProgress) -> None:
                nonlocal last
                last = progress
                speed = progress.audio_s / max(time.monotonic() - started, 1e-9)  # noqa: B023 - used within the loop
                text = f"{speed:.0f} s of audio per s" if progress.audio_s else ""
                update(progress.rows_done, progress.rows_total, text)

            store = extract_corpus(manifest, encoder, cache_dir=cache_dir, progress=show)
        _, done, failed = store.counts
        seconds = time.monotonic() - started
        work = f"{last.audio_s:.0f} s of audio in {seconds:.0f} s" if last.audio_s else "nothing was left to do"
        console.say(f"{name} ({encoder.weights.kind}): {done} utterances in {store.path}; {work}.")
        if failed:
            reasons = list(store.failures().items())
            console.say(f"{failed} recording(s) could not be used and are left out of training:")
            for utterance, reason in reasons[:5]:
                console.say(f"  {utterance}: {reason}")
            if failed > 5:
                console.say(f"  … and {failed - 5} more")
    console.note(f"Next: `hyfuse compare --corpus {manifest.corpus}`.")
