"""``hyfuse transcribe``: what is said in a corpus, written down by a recogniser."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hyfuse_cli import completion, console
from hyfuse_cli.extract import open_corpus
from hyfuse_cli.options import DEFAULT_CACHE, CacheDir, DataRoot, Device, Weights, WeightsDir

if TYPE_CHECKING:
    from pipelines.audio.conditions import Distortion
    from pipelines.corpora.manifest import Manifest
    from pipelines.evaluation.statistics import Interval
    from pipelines.evaluation.word_errors import WordErrors
    from pipelines.extraction.engines.local import ExtractionProgress
    from pipelines.store.transcripts import Transcripts

__all__ = ["transcribe"]


def transcribe(
    model: Annotated[
        list[str],
        typer.Option("--model", "-m", help="Recogniser: whisper or wav2vec2-ctc, for trying with -tiny; repeatable."),
    ],
    corpus: Annotated[
        str,
        typer.Option(
            "--corpus",
            "-c",
            help="Name (see `hyfuse corpora list`) or path of a CSV/Parquet manifest.",
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
        typer.Option("--condition", help="What is done to the recordings first, as in `hyfuse extract`; repeatable."),
    ] = None,
    noise_dir: Annotated[
        list[Path] | None, typer.Option("--noise-dir", help="Folder of noise sets, before $HYFUSE_NOISE; repeatable.")
    ] = None,
    condition_seed: Annotated[int, typer.Option("--condition-seed", min=0, help="Draws other noise.")] = 0,
    language: Annotated[
        str | None,
        typer.Option(
            "--language",
            help="ISO 639-1 code, or auto: recording by recording. Default: the corpus' language if it has one, else auto.",
        ),
    ] = None,
    decode_workers: Annotated[
        int | None, typer.Option("--decode-workers", min=1, help="Processes that decode; two threads if left out.")
    ] = None,
    max_failures: Annotated[
        str, typer.Option("--max-failures", help="Stop when more recordings failed: a number, or a share such as 1%.")
    ] = "1%",
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Try recordings that failed once more.")] = False,
    anew: Annotated[bool, typer.Option("--anew", help="Forget transcripts that are there and begin again.")] = False,
) -> None:
    """Write down what is said in every recording, with word error rates against the corpus' own transcripts.

    Decoding is greedy, so a recording has one transcript. Stop it at any time: the same command goes on from there. The texts serve
    `hyfuse extract --model bert --transcripts asr:MODEL`.
    """
    from pipelines.encoders.recognition import recogniser_spec

    names = list(dict.fromkeys(recogniser_spec(name).name for name in model))  # before anything slow

    from pipelines.audio.conditions import parse_condition, prepare_condition

    conditions = [parse_condition(text) for text in dict.fromkeys(condition or ["clean"])]
    manifest = open_corpus(corpus, data_root=data_root, cache_dir=cache_dir)

    from pipelines.encoders.recognition import load_recogniser
    from pipelines.extraction.engines.local import choose_device
    from pipelines.extraction.sink import parse_max_failures
    from pipelines.extraction.transcribe import transcribe_corpus

    allowed = parse_max_failures(max_failures, len(manifest))
    chosen = choose_device(device)
    distortions: list[Distortion | None] = [
        None
        if parsed.is_clean
        else prepare_condition(parsed, manifest=manifest, noise_dirs=noise_dir or (), seed=condition_seed)
        for parsed in conditions
    ]
    made: list[Transcripts] = []
    for name in names:
        with console.meter(f"weights of {name}", "bytes") as meter:
            recogniser = load_recogniser(
                name,
                weights=weights,
                device=chosen,
                weights_dir=weights_dir,
                progress=lambda file, done, total, meter=meter: meter(done, total, file),  # type: ignore[misc]
                language=_language(name, language, manifest),
            )
        for distortion in distortions:
            title = f"{name} on {chosen}" + (f", {distortion.name}" if distortion is not None else "")
            started = time.monotonic()
            with console.meter(title, "utterances") as update:

                def show(
                    progress: ExtractionProgress, started: float = started, update: console.Meter = update
                ) -> None:
                    speed = progress.audio_s / max(time.monotonic() - started, 1e-9)
                    parts = [f"{speed:.0f} s of audio per s"] if progress.audio_s else []
                    parts += [f"{progress.rows_failed} failed"] if progress.rows_failed else []
                    update(progress.rows_done, progress.rows_total, ", ".join(parts))

                made.append(
                    transcribe_corpus(
                        manifest,
                        recogniser,
                        cache_dir=cache_dir,
                        distortion=distortion,
                        decode_workers=decode_workers,
                        max_failures=allowed,
                        retry_failed=retry_failed,
                        anew=anew,
                        progress=show,
                    )
                )
            _say_done(made[-1])
    _show_errors(made, manifest)
    if any(transcripts.provenance.weights_kind == "random" for transcripts in made):
        console.out.print(
            "RANDOM WEIGHTS: these texts are nonsense and say nothing about a recogniser; they are for trying commands.",
            style="bold yellow",
        )
    last = made[-1].provenance
    under = "" if last.condition == "clean" else f" --condition {last.condition}"
    console.note(
        f"Next: `hyfuse extract --corpus {manifest.corpus} --model bert --transcripts asr:{last.model}{under}`."
    )


def _language(name: str, asked: str | None, manifest: Manifest) -> str:
    """What a recogniser is told: what the user says, else the corpus' one language, if it is whisper that has a choice."""
    from pipelines.encoders.recognition import AUTO

    if asked is not None:
        return asked.lower()
    spoken = set(manifest.table["language"]) - {""}
    if not name.startswith("whisper"):
        if spoken - {"en"}:
            console.say(
                f"{name} knows English only, and {manifest.corpus} is in {', '.join(sorted(spoken))}: its words will be wrong. Use"
                " `--model whisper`."
            )
        return AUTO
    return spoken.pop() if len(spoken) == 1 and "" not in set(manifest.table["language"]) else AUTO


def _say_done(made: Transcripts) -> None:
    """Where the texts are, an example, and what failed."""
    about = made.provenance
    language = f", language {about.language}" if about.language else ""
    console.say(
        f"{about.model} ({about.weights_kind}{language}): {len(made.by_id)} of {len(made)} utterances in {made.path}."
    )
    silent = sum(not text for text in made.by_id.values())
    if silent:
        console.say(f"In {silent} of them no words were heard; their transcript is empty, which is kept as such.")
    example = next(((name, text) for name, text in made.by_id.items() if text), None)
    if example is not None:
        console.note(f"  {example[0]}: {example[1][:100]}")
    if made.failures:
        console.say(f"{len(made.failures)} recording(s) could not be used and have no transcript:")
        for utterance, reason in list(made.failures.items())[:5]:
            console.say(f"  {utterance}: {reason}")
        if len(made.failures) > 5:
            console.say(f"  … and {len(made.failures) - 5} more")


def _show_errors(made: list[Transcripts], manifest: Manifest) -> None:
    """Word and character error rates against the manifest's transcripts, one row per recogniser and condition."""
    from rich.table import Table

    from pipelines.evaluation.word_errors import NORMALISATION_VERSION, word_errors

    references = dict(zip(manifest.utterance_ids, manifest.table["transcript"], strict=True))
    speakers = dict(zip(manifest.utterance_ids, manifest.table["speaker"], strict=True))
    if not any(references.values()):
        console.say(f"{manifest.corpus} has no transcripts of its own, so there is no word error rate.")
        return
    table = Table(box=None, pad_edge=False)
    for column in ("recogniser", "condition", "utterances", "words", "WER %", "CER %", "sub", "del", "ins"):
        table.add_column(column, justify="left" if column in {"recogniser", "condition"} else "right")
    left_out: list[WordErrors] = []
    for transcripts in made:
        found = word_errors(references, transcripts.by_id, speakers)
        about, words = transcripts.provenance, found.words
        table.add_row(
            about.model + (" (random)" if about.weights_kind == "random" else ""),
            about.condition,
            str(len(found.by_utterance)),
            str(words.total),
            _percent(found.wer, found.wer_interval),
            _percent(found.cer, found.cer_interval),
            *(
                f"{100 * part / max(1, words.total):.1f}"
                for part in (words.substitutions, words.deletions, words.insertions)
            ),
        )
        left_out.append(found)
    console.out.print(table)
    console.note(
        f"Against the transcripts of the manifest, normalisation {NORMALISATION_VERSION}; intervals of 95 % over speakers."
    )
    if missing := left_out[0].without_reference:
        console.note(f"{missing} utterance(s) have no transcript in the manifest and are left out of the rates.")


def _percent(rate: float, interval: Interval) -> str:
    if math.isnan(rate):
        return ""
    bounds = "" if math.isnan(interval.low) else f" [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"
    return f"{100 * rate:.1f}{bounds}"
