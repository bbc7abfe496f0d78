"""``hyfuse extract``: recordings to embeddings, once per corpus, encoder and condition."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hyfuse_cli import completion, console
from hyfuse_cli.options import DEFAULT_CACHE, CacheDir, DataRoot, Device, Weights, WeightsDir

if TYPE_CHECKING:
    from pipelines.audio.conditions import Condition, Distortion
    from pipelines.corpora.manifest import Manifest
    from pipelines.encoders.catalogue import EncoderSpec
    from pipelines.extraction.engines.local import ExtractionProgress
    from pipelines.extraction.texts import CorpusTexts
    from pipelines.locations import Location
    from pipelines.store.embeddings import EmbeddingStore, FrameSpec

__all__ = ["duration", "extract", "open_corpus"]


def open_corpus(corpus: str, *, data_root: Path | None, cache_dir: Location) -> Manifest:
    """Find the corpus and say what is odd about it."""
    from pipelines.corpora.resolve import resolve_corpus

    with console.meter(f"reading {corpus}", "utterances") as update:
        prepared = resolve_corpus(corpus, cache_dir=cache_dir, data_root=data_root, progress=update)
    console.show_findings(prepared.findings)
    return prepared.manifest


def extract(
    model: Annotated[
        list[str],
        typer.Option(
            "--model", "-m", help="Encoder (see `hyfuse models list`); repeatable.", autocompletion=completion.encoders
        ),
    ],
    corpus: Annotated[
        str,
        typer.Option(
            "--corpus",
            "-c",
            help="Name (see `hyfuse corpora list`), path of a CSV/Parquet manifest, or folder.",
            autocompletion=completion.corpora,
        ),
    ],
    data_root: DataRoot = None,
    weights: Weights = "pretrained",
    weights_dir: WeightsDir = None,
    device: Device = "auto",
    cache_dir: CacheDir = DEFAULT_CACHE,
    condition: Annotated[
        list[str] | None,
        typer.Option(
            "--condition",
            help="What is done to the recordings: clean, noise:NAME@5dB, babble@10dB, white@0dB, pink@0dB, reverb:0.6s,"
            " telephone; joined with +. Repeatable.",
        ),
    ] = None,
    transcripts: Annotated[
        str,
        typer.Option(
            "--transcripts",
            help="What encoders of text read: manual, the corpus' own, or asr:MODEL, what `hyfuse transcribe` wrote under"
            " --condition.",
        ),
    ] = "manual",
    noise_dir: Annotated[
        list[Path] | None, typer.Option("--noise-dir", help="Folder of noise sets, before $HYFUSE_NOISE; repeatable.")
    ] = None,
    condition_seed: Annotated[int, typer.Option("--condition-seed", min=0, help="Draws other noise.")] = 0,
    precision: Annotated[
        str, typer.Option("--precision", help="float32, or bf16 where the model offers it (`hyfuse models show`).")
    ] = "float32",
    frames: Annotated[
        bool, typer.Option("--frames", help="Also keep every frame of the default representation.")
    ] = False,
    frames_of: Annotated[
        list[str] | None,
        typer.Option("--frames-of", help="Keep the frames of this representation; repeatable, or `all`."),
    ] = None,
    frames_dtype: Annotated[str, typer.Option("--frames-dtype", help="float16 or float32.")] = "float16",
    workers: Annotated[
        int, typer.Option("--workers", min=1, help="Processes: one per GPU, or sharing the cores of the CPU.")
    ] = 1,
    decode_workers: Annotated[
        int | None,
        typer.Option(
            "--decode-workers", min=1, help="Processes that decode; threads on a CPU, all cores on a GPU if left out."
        ),
    ] = None,
    shard: Annotated[
        str | None, typer.Option("--shard", help="i/n with i from 0: do every n-th block only, others do the rest.")
    ] = None,
    engine: Annotated[str, typer.Option("--engine", help="local, or ray for a Ray cluster.")] = "local",
    max_failures: Annotated[
        str, typer.Option("--max-failures", help="Stop when more recordings failed: a number, or a share such as 1%.")
    ] = "1%",
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Try recordings that failed once more.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be done, how long and how much disk it would take.")
    ] = False,
) -> None:
    """Encode every recording of a corpus, or its transcripts, and store the pooled embeddings.

    Runs once per corpus, encoder and condition. Stop it at any time: the same command goes on from there. Recordings that cannot be
    used are kept in the store with the reason, and named at the end.
    """
    from pipelines.encoders.catalogue import encoder_spec

    names = list(dict.fromkeys(model))
    specs = {name: encoder_spec(name, weights_dir=weights_dir) for name in names}  # before anything slow
    share = _shard(shard)
    _check_engine(engine, share)
    kept = {name: _frames(spec, frames, frames_of or [], frames_dtype) for name, spec in specs.items()}

    from pipelines.audio.conditions import parse_condition, prepare_condition

    conditions = [parse_condition(text) for text in dict.fromkeys(condition or ["clean"])]
    _check_transcripts(transcripts, list(specs.values()), all(parsed.is_clean for parsed in conditions))
    manifest = open_corpus(corpus, data_root=data_root, cache_dir=cache_dir)

    from pipelines.extraction.engines.local import choose_device
    from pipelines.extraction.sink import parse_max_failures
    from pipelines.extraction.texts import corpus_texts

    allowed = parse_max_failures(max_failures, len(manifest))
    chosen = choose_device(device)
    readers = [name for name, spec in specs.items() if spec.takes_text]
    texts = [
        corpus_texts(manifest, transcripts=transcripts, condition=parsed.name, cache_dir=cache_dir)
        for parsed in (_seeded(parsed, condition_seed) for parsed in conditions)
    ] if readers else []  # fmt: skip
    distortions: list[Distortion | None] = [
        None
        if parsed.is_clean or len(readers) == len(names)
        else prepare_condition(parsed, manifest=manifest, noise_dirs=noise_dir or (), seed=condition_seed)
        for parsed in conditions
    ]
    if dry_run:
        total_s, total_bytes = 0.0, 0
        for name in names:
            inputs = [(None, read) for read in texts] if name in readers else [(one, None) for one in distortions]
            spent = _estimate(
                specs[name],
                manifest,
                inputs,
                cache_dir=cache_dir,
                frames=kept[name],
                device=str(chosen),
                precision=precision,
            )
            total_s, total_bytes = total_s + spent[0], total_bytes + spent[1]
        parts = max(1, workers) if chosen.type == "cuda" else 1
        _say_total(total_s / parts / (share[1] if share else 1), total_bytes, cache_dir)
        return
    for name in names:
        start = _engine(
            engine=engine,
            name=name,
            device=str(chosen),
            workers=workers,
            shard=share,
            loading={"weights": weights, "weights_dir": weights_dir, "precision": precision},
        )
        inputs = [(None, read) for read in texts] if name in readers else [(one, None) for one in distortions]
        for distortion, read in inputs:
            what = read.condition if read is not None else distortion.name if distortion is not None else "clean"
            _extract_one(
                start=partial(
                    start,
                    manifest,
                    cache_dir=cache_dir,
                    distortion=distortion,
                    texts=read,
                    frames=kept[name],
                    decode_workers=decode_workers,
                    max_failures=allowed,
                    retry_failed=retry_failed,
                ),
                title=f"{name} on {chosen}" + (f", {what}" if what != "clean" else ""),
                spec=specs[name],
                total=len(manifest),
            )
            if read is not None and read.asr_weights == "random":
                console.say(f"The transcripts by {read.asr_model} are nonsense: it had random weights.")
    console.note(f"Next: `hyfuse compare --corpus {manifest.corpus}`.")


def _estimate(
    spec: EncoderSpec,
    manifest: Manifest,
    inputs: Sequence[tuple[Distortion | None, CorpusTexts | None]],
    *,
    cache_dir: Location,
    frames: FrameSpec | None,
    device: str,
    precision: str,
) -> tuple[float, int]:
    """Say what one encoder would do; seconds and bytes in all."""
    from pipelines.encoders.catalogue import load_encoder
    from pipelines.guidance.estimate import estimate_extraction

    encoder = load_encoder(spec.name, weights="random", device=device, precision=precision)  # nothing is downloaded
    seconds, size = 0.0, 0
    for distortion, read in inputs:
        found = estimate_extraction(
            manifest, encoder, cache_dir=cache_dir, distortion=distortion, frames=frames, texts=read
        )
        what = read.condition if read is not None else distortion.name if distortion is not None else "clean"
        left = found.utterances - found.done
        audio = f", {found.audio_s / 3600:.2f} h of audio" if found.audio_s else ""
        console.out.print(
            f"{spec.name}, {what}: {left} of {found.utterances} utterances to do{audio}; about {duration(found.seconds)} and"
            f" {found.disk_bytes / 1e6:.0f} MB.",
            markup=False,
            soft_wrap=True,
        )
        seconds, size = seconds + found.seconds, size + (found.disk_bytes if left else 0)
    return seconds, size


def _say_total(seconds: float, size: int, cache_dir: Location) -> None:
    import shutil

    from pipelines.locations import ObjectPath

    room = ""
    if not isinstance(cache_dir, ObjectPath):
        there = next(path for path in (cache_dir.absolute(), *cache_dir.absolute().parents) if path.exists())
        free = shutil.disk_usage(there).free
        room = f"; {free / 1e9:.0f} GB are free there" + (": NOT ENOUGH" if free < size else "")
    console.out.print(
        f"In all about {duration(seconds)} on this machine as busy as it is now, and {size / 1e6:.0f} MB in {cache_dir}{room}."
        " Nothing was done. Loading of weights is not counted.",
        markup=False,
        soft_wrap=True,
    )


def duration(seconds: float) -> str:
    """Seconds for people."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _check_transcripts(transcripts: str, specs: list[EncoderSpec], clean: bool) -> None:
    """Whether ``--transcripts`` goes with the models and conditions."""
    from pipelines.errors import ConfigError
    from pipelines.extraction.texts import parse_transcripts

    readers = [spec.name for spec in specs if spec.takes_text]
    asr_model = parse_transcripts(transcripts)
    if asr_model is not None and not readers:
        raise ConfigError(
            f"--transcripts is for encoders of text, and {', '.join(spec.name for spec in specs)} takes recordings. Leave it out."
        )
    if readers and asr_model is None and not clean:
        raise ConfigError(
            f"{readers[0]} reads transcripts by hand, which no --condition changes. Extract it without --condition, or from what a"
            " recogniser hears under it: `--transcripts asr:whisper`, after `hyfuse transcribe` with the same --condition."
        )


def _seeded(condition: Condition, seed: int) -> Condition:
    """A condition by the name that its transcripts have."""
    from dataclasses import replace

    return replace(condition, seed=seed) if seed and condition.is_random and not condition.seed else condition


def _shard(text: str | None) -> tuple[int, int] | None:
    """``i/n`` as numbers."""
    from pipelines.errors import ConfigError

    if text is None:
        return None
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if found is None or not 0 <= int(found[1]) < int(found[2]):
        raise ConfigError(
            f"--shard is {text!r}; expected i/n with i from 0 to n - 1, such as 0/8 in the first of eight jobs."
            " With Slurm: `--shard $SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT` and `--array=0-7`."
        )
    return int(found[1]), int(found[2])


def _check_engine(engine: str, shard: tuple[int, int] | None) -> None:
    from pipelines.errors import ConfigError, unknown_name

    if engine not in {"local", "ray"}:
        raise unknown_name("engine", engine, ["local", "ray"])
    if engine == "ray" and shard is not None:
        raise ConfigError(
            "--shard divides the work among jobs, --engine ray among the nodes of a cluster: use one of them."
        )


def _frames(spec: EncoderSpec, default: bool, names: list[str], dtype: str) -> FrameSpec | None:
    """Which frames to keep."""
    from pipelines.errors import ConfigError, unknown_name

    if dtype not in {"float16", "float32"}:
        raise ConfigError(f"--frames-dtype is {dtype!r}; expected float16 or float32.")
    wanted = ([spec.default_representation] if default else []) + names
    if not wanted:
        return None
    if "all" in wanted:
        wanted = list(spec.representations)
    for name in wanted:
        if name not in spec.representations:
            raise unknown_name(f"representation of {spec.name}", name, [*spec.representations, "all"])
    from pipelines.store.embeddings import FrameSpec

    return FrameSpec(tuple(name for name in spec.representations if name in wanted), dtype)


def _engine(
    *,
    engine: str,
    name: str,
    device: str,
    workers: int,
    shard: tuple[int, int] | None,
    loading: dict[str, Any],
) -> Callable[..., EmbeddingStore]:
    """The extraction function of an engine, lacking only what differs from one condition to the next."""
    from pipelines.encoders.catalogue import load_encoder

    if engine == "ray":
        from pipelines.extraction.engines.ray import extract_with_ray

        load = partial(load_encoder, name, **loading)
        count = workers if workers > 1 else None
        return lambda manifest, **rest: extract_with_ray(
            manifest, load, device=device.partition(":")[0], workers=count, **rest
        )
    if workers > 1:
        from pipelines.extraction.engines.processes import extract_in_processes

        devices = _devices(device, workers)
        load = partial(load_encoder, name, **loading)
        return lambda manifest, **rest: extract_in_processes(manifest, load, devices=devices, shard=shard, **rest)

    from pipelines.extraction.engines.local import extract_corpus

    with console.meter(f"weights of {name}", "bytes") as meter:
        encoder = load_encoder(
            name, device=device, progress=lambda file, done, total: meter(done, total, file), **loading
        )
    return lambda manifest, **rest: extract_corpus(manifest, encoder, shard=shard, **rest)


def _devices(device: str, workers: int) -> list[str]:
    """A device for every worker."""
    from pipelines.errors import DeviceError

    if device == "cpu":
        return ["cpu"] * workers
    import torch

    there = torch.cuda.device_count()
    if ":" in device or workers > there:
        raise DeviceError(
            f"--workers {workers} with --device {device}: there is one process per GPU, and this machine has {there}. Use"
            f" `--device cuda --workers {there}`, or leave --workers out."
        )
    return [f"cuda:{index}" for index in range(workers)]


def _extract_one(*, start: Callable[..., EmbeddingStore], title: str, spec: EncoderSpec, total: int) -> None:
    """One encoder under one condition."""
    unit = "tokens" if spec.takes_text else "s of audio"
    started = time.monotonic()
    audio_s = 0.0
    with console.meter(title, "utterances") as update:

        def show(progress: ExtractionProgress) -> None:
            nonlocal audio_s
            audio_s = progress.audio_s
            speed = progress.audio_s / max(time.monotonic() - started, 1e-9)
            parts = [f"{speed:.0f} {unit} per s"] if progress.audio_s else []
            parts += [f"{progress.rows_failed} failed"] if progress.rows_failed else []
            update(progress.rows_done, progress.rows_total, ", ".join(parts))

        store = start(progress=show)
    todo, done, failed = store.counts
    seconds = time.monotonic() - started
    work = f"{audio_s:.0f} {unit} in {seconds:.0f} s" if audio_s else "nothing was left to do"
    left = f", {todo} left to other shards" if todo else ""
    console.say(
        f"{spec.name} ({store.provenance.weights_kind}): {done} of {total} utterances in {store.path}{left}; {work}."
    )
    if spec.takes_text:
        from pipelines.extraction.texts import LONGEST_TEXT

        if long := int((store.num_frames > LONGEST_TEXT).sum()):
            console.say(
                f"{long} text(s) have more than {LONGEST_TEXT} tokens and went through overlapping windows; no word is left out."
            )
    if failed:
        reasons = list(store.failures().items())
        what = "utterance(s) have no text" if spec.takes_text else "recording(s) could not be used"
        console.say(f"{failed} {what} and are left out of training:")
        for utterance, reason in reasons[:5]:
            console.say(f"  {utterance}: {reason}")
        if failed > 5:
            console.say(f"  … and {failed - 5} more")
