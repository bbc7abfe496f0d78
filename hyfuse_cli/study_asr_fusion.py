"""``hyfuse study asr-fusion``: emotion from speech and from what a recogniser makes of it, on frames."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated

import typer

from hyfuse_cli import console
from hyfuse_cli.heads import split_names
from hyfuse_cli.options import DEFAULT_CACHE, CacheDir, CorpusOption, Device, RunName, RunsDir, WeightsDir, Workers

__all__ = ["study_asr_fusion"]

NONE = "none"


def study_asr_fusion(
    corpus: CorpusOption = None,
    acoustic: Annotated[
        str, typer.Option("--acoustic", help="Encoder of the acoustic frames, extracted with --frames.")
    ] = "wavlm",
    acoustic_layer: Annotated[
        str, typer.Option("--acoustic-layer", help="Whose frames, such as layer_09; default: what the store keeps.")
    ] = "",
    asr: Annotated[
        str,
        typer.Option("--asr", help="Recogniser whose hidden frames are a stream, extracted with --frames; or none."),
    ] = "wav2vec2-ctc",
    asr_layer: Annotated[str, typer.Option("--asr-layer", help="Whose frames; default: the last layer.")] = "",
    text: Annotated[str, typer.Option("--text", help="Encoder of text, extracted with --frames.")] = "bert",
    transcripts: Annotated[
        str,
        typer.Option(
            "--transcripts",
            help="Comma separated: manual, asr (by the recogniser of --asr), asr:MODEL, none (no text).",
        ),
    ] = "manual,asr,none",
    heads: Annotated[
        str, typer.Option("--heads", help="Comma separated: early, cross, hierarchical.")
    ] = "early,cross,hierarchical",
    order: Annotated[
        str,
        typer.Option("--order", help="What joins first in hierarchical co-attention: asr-text, text-asr, or both."),
    ] = "asr-text",
    ctc_weights: Annotated[
        str,
        typer.Option(
            "--ctc-weights", "--lambda", help="λ of λ CTC + (1 - λ) emotion, comma separated, each in [0, 1)."
        ),
    ] = "0,0.1,0.5",
    condition: Annotated[
        str, typer.Option("--condition", help="Of the recordings (see `hyfuse cache list`).")
    ] = "clean",
    target: Annotated[
        str, typer.Option("--target", help="What is learned: emotion, or dimensions (by CCC).")
    ] = "emotion",
    dimensions: Annotated[
        str | None,
        typer.Option(
            "--dimensions",
            help="With --target dimensions: some of arousal (or activation), valence, dominance; default: all there are.",
        ),
    ] = None,
    classes: Annotated[
        str | None, typer.Option("--classes", help="Emotions, comma separated; default: the corpus' own.")
    ] = None,
    protocol: Annotated[
        str | None, typer.Option("--protocol", help="How speakers are divided; default: the corpus' own.")
    ] = None,
    seeds: Annotated[int, typer.Option("--seeds", help="Number of seeds.")] = 1,
    stride: Annotated[
        int,
        typer.Option("--stride", help="Acoustic and ASR frames that are averaged to one; 2 halves time and memory."),
    ] = 1,
    epochs: Annotated[int, typer.Option("--epochs", help="Epochs of training.")] = 20,
    batch_size: Annotated[int, typer.Option("--batch-size", help="Utterances per step.")] = 16,
    learning_rate: Annotated[float, typer.Option("--learning-rate", help="Step size of AdamW.")] = 1e-3,
    hidden_dim: Annotated[int, typer.Option("--hidden-dim", help="Width of the shared stack and of the heads.")] = 128,
    stack_layers: Annotated[int, typer.Option("--stack-layers", help="Transformer layers of the shared stack.")] = 1,
    attention_heads: Annotated[int, typer.Option("--attention-heads", help="Parallel attentions.")] = 4,
    dropout: Annotated[float, typer.Option("--dropout", help="Share dropped in training.")] = 0.1,
    class_weights: Annotated[
        str,
        typer.Option("--class-weights", help="none, or balanced: rare classes count as much as frequent ones."),
    ] = "none",
    selection: Annotated[
        str | None,
        typer.Option(
            "--selection",
            help="Epoch kept: fixed or last (nothing selected), loss, uar or (of dimensions) ccc: best on validation.",
        ),
    ] = None,
    fine_tune: Annotated[
        int,
        typer.Option("--fine-tune", help="Train so many of the last layers of a wav2vec2-like encoder, too; 0: none."),
    ] = 0,
    fine_tune_model: Annotated[
        str, typer.Option("--fine-tune-model", help="Which encoder; default: that of --acoustic.")
    ] = "",
    fine_tune_epochs: Annotated[int, typer.Option("--fine-tune-epochs", help="Epochs of it.")] = 5,
    fine_tune_batch_size: Annotated[int, typer.Option("--fine-tune-batch-size", help="Utterances per step of it.")] = 8,
    fine_tune_rate: Annotated[
        float,
        typer.Option("--fine-tune-rate", help="Step size for the layers; the head's is 0.001 or this, if larger."),
    ] = 5e-5,
    weights: Annotated[
        str,
        typer.Option(
            "--weights", help="Of the fine-tuned encoder: pretrained or random; default: as the acoustic store."
        ),
    ] = "",
    weights_dir: WeightsDir = None,
    run: RunName = None,
    runs_dir: RunsDir = Path("runs"),
    cache_dir: CacheDir = DEFAULT_CACHE,
    workers: Workers = None,
    device: Device = "cpu",
) -> None:
    """Fuse acoustic frames, a recogniser's hidden frames and the tokens of a text; learn to recognise words beside emotion.

    Is text worth having, is that of a recogniser as good as one by hand, which head fuses best, does CTC on a shared stack help?
    With --fine-tune also: is training the encoder itself better, and which layers does it change? Stop it at any time: the same
    command goes on from there. Stores must keep frames: `hyfuse extract … --frames`.
    """
    from pipelines.corpora.resolve import recall_corpus
    from pipelines.encoders.catalogue import canonical_name
    from pipelines.extraction.fine_tuning import FineTuneConfig
    from pipelines.studies.asr_fusion import AsrFusionConfig, run_asr_fusion
    from pipelines.training.data import canonical_dimensions
    from pipelines.training.frame_trainer import FrameConfig

    tuning = None
    if fine_tune:
        tuning = FineTuneConfig(
            layers=fine_tune,
            epochs=fine_tune_epochs,
            batch_size=fine_tune_batch_size,
            learning_rate=fine_tune_rate,
            head_learning_rate=max(1e-3, fine_tune_rate),
        )
    kinds = tuple(split_names(transcripts))
    config = AsrFusionConfig(
        acoustic=canonical_name(acoustic),
        acoustic_representation=acoustic_layer,
        asr="" if asr == NONE else canonical_name(asr),
        asr_representation=asr_layer,
        text="" if text == NONE else canonical_name(text),
        transcripts=kinds,
        heads=tuple(split_names(heads)),
        order=order,
        ctc_weights=tuple(map(_weight, split_names(ctc_weights))),
        condition=condition,
        target=target,
        classes=tuple(split_names(classes)),
        dimensions=canonical_dimensions(split_names(dimensions)),
        protocol=protocol or "",
        seeds=seeds,
        stride=stride,
        fine_tune=tuning,
        fine_tune_model=canonical_name(fine_tune_model) if fine_tune_model else "",
        selection=selection or "",
        train=FrameConfig(
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            class_weights=class_weights,
            hidden_dim=hidden_dim,
            stack_layers=stack_layers,
            attention_heads=attention_heads,
            dropout=dropout,
        ),
    )
    manifest = recall_corpus(corpus, cache_dir=cache_dir)
    run_dir = runs_dir / _run_name(run, manifest.corpus, config.acoustic, target, condition, protocol)
    with console.meter("training", "models") as update:
        outcome = run_asr_fusion(
            manifest,
            config=config,
            cache_dir=cache_dir,
            run_dir=run_dir,
            workers=workers or os.cpu_count() or 1,
            device=device,
            weights=weights,
            weights_dir=weights_dir,
            command=console.typed(),
            progress=update,
        )
    tuned = (
        f"Fine-tuned encoders: {run_dir}/checkpoints/fine-tuned, read by `hyfuse extract --model hf:fine-tuned/fold-…"
        f" --weights-dir {run_dir}/checkpoints --corpus {manifest.corpus}`."
    )
    console.show_study(
        outcome, run_dir, files="study.json, results.jsonl, predictions.parquet", more=tuned if fine_tune else ""
    )


def _weight(text: str) -> float:
    from pipelines.errors import ConfigError

    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"--ctc-weights are numbers in [0, 1), such as 0,0.1,0.5; {text!r} is none.") from None


def _run_name(run: str | None, corpus: str, acoustic: str, target: str, condition: str, protocol: str | None) -> str:
    """As named, or named after what is not as usual."""
    from pipelines.errors import ConfigError

    parts = (
        corpus,
        "asr-fusion",
        acoustic,
        "" if target == "emotion" else target,
        "" if condition == "clean" else condition,
        protocol,
    )
    chosen = run or re.sub(r"[^\w.+-]", "-", "-".join(filter(None, parts)))
    if not re.fullmatch(r"\w[\w.+-]{0,150}", chosen):
        raise ConfigError(f"--run {chosen!r} cannot be a folder's name. Use letters, digits, '.', '_', '+' and '-'.")
    return chosen
