"""``hyfuse study distill``: a teacher who knows the words, students who only hear noise, and small systems."""

from __future__ import annotations

from typing import Annotated

import typer

from hyfuse_cli import console
from hyfuse_cli.heads import HeadSettings, split_names, takes_settings

__all__ = ["study_distill"]


@takes_settings
def study_distill(
    *,
    acoustic: Annotated[str, typer.Option("--acoustic", help="Encoder of speech of the teacher.")],
    text: Annotated[str, typer.Option("--text", help="Encoder of text of the teacher.")],
    conditions: Annotated[
        str,
        typer.Option(
            "--conditions",
            help="Under which students work besides --condition: as of `hyfuse extract --condition`, commas or spaces between.",
        ),
    ],
    student: Annotated[
        str | None, typer.Option("--student", help="Encoder of speech of the students; default: the teacher's.")
    ] = None,
    student_layers: Annotated[
        int, typer.Option("--student-layers", min=0, help="Students hear layer K: their encoder cut off behind it.")
    ] = 0,
    transcripts: Annotated[
        str, typer.Option("--transcripts", help="Of the teacher: manual, or asr:MODEL (what it heard).")
    ] = "manual",
    ways: Annotated[
        str,
        typer.Option(
            "--training",
            help="Students learn from: multi (all conditions together), noisy (all but --condition) or matched (one student each).",
        ),
    ] = "multi",
    fusion: Annotated[str, typer.Option("--fusion", help="Of the teacher.")] = "concat",
    embedding_dim: Annotated[
        int,
        typer.Option("--embedding-dim", min=0, help="Dense layer before the output of teacher and students; 0: none."),
    ] = 128,
    alpha: Annotated[
        str,
        typer.Option("--alpha", help="Weight of the embedding match; of several, commas between, validation chooses."),
    ] = "1",
    beta: Annotated[str, typer.Option("--beta", help="Weight of the output match, likewise.")] = "1",
    embedding_match: Annotated[str, typer.Option("--embedding-match", help="mse or cosine.")] = "mse",
    output_match: Annotated[
        str | None, typer.Option("--output-match", help="kl (of emotion), ccc or mse (of dimensions; default ccc).")
    ] = None,
    temperature: Annotated[float, typer.Option("--temperature", help="By which kl softens distributions.")] = 2.0,
    efficient: Annotated[
        bool, typer.Option("--efficient", help="Set small systems beside --acoustic: score, parameters, time.")
    ] = False,
    small: Annotated[str, typer.Option("--small", help="With --efficient: the small encoder of speech.")] = (
        "distilhubert"
    ),
    small_text: Annotated[str, typer.Option("--small-text", help="With --efficient: the small encoder of text.")] = (
        "minilm"
    ),
    settings: HeadSettings,
) -> None:
    """Train a teacher on clean speech and its words, and students that hear noisy speech alone, with and without its help.

    The student is compared with the same head without a teacher under every condition, by paired tests. Every condition must have
    been extracted (`hyfuse extract --condition …`); what is missing is listed with the commands that make it.
    """
    from pipelines.audio.condition_text import parse_condition
    from pipelines.encoders.catalogue import canonical_name
    from pipelines.errors import ConfigError
    from pipelines.fusion.catalogue import fusion_names
    from pipelines.studies.distill import DistillConfig, run_distill
    from pipelines.studies.efficiency import EfficiencyConfig

    if settings.order == "both":
        raise ConfigError("--order both means nothing to `hyfuse study distill`; name one order.")
    name = canonical_name(acoustic)
    config = DistillConfig(
        acoustic=name,
        lexical=canonical_name(text),
        conditions=tuple(parse_condition(one).name for one in split_names(conditions)),
        student=canonical_name(student) if student else "",
        student_layers=student_layers,
        transcripts=transcripts,
        training=ways,
        fusion=fusion,
        options=settings.options_of([fusion] if fusion in fusion_names() else []),
        embedding_dim=embedding_dim,
        alphas=_weights("--alpha", alpha),
        betas=_weights("--beta", beta),
        embedding_match=embedding_match,
        output_match=output_match or "",
        temperature=temperature,
        efficient=EfficiencyConfig(small=canonical_name(small), small_text=canonical_name(small_text))
        if efficient
        else None,
        comparison=settings.config(),
    )
    manifest = settings.manifest()
    layers = f"layer{student_layers}" if student_layers else ""
    differs = (student, layers, "" if ways == "multi" else ways, "" if fusion == "concat" else fusion)
    run_dir = settings.run_dir((manifest.corpus, "distill", name, *differs))
    with console.meter("training", "heads") as update:
        outcome = run_distill(
            manifest,
            config=config,
            cache_dir=settings.cache_dir,
            run_dir=run_dir,
            workers=settings.processes(),
            device=settings.device,
            command=console.typed(),
            progress=update,
        )
    console.show_study(outcome, run_dir, files="study.json, config.json, results.jsonl, predictions.parquet, parts/")


def _weights(option: str, given: str) -> tuple[float, ...]:
    """Numbers separated by commas or spaces."""
    from pipelines.errors import ConfigError

    try:
        return tuple(float(one) for one in split_names(given))
    except ValueError:
        raise ConfigError(f"{option} must be a number, or several such as 0,0.5,1, not {given!r}.") from None
