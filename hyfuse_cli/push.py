"""``hyfuse push``: a model on the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hyfuse_cli import console

__all__ = ["push"]


def push(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Folder of `hyfuse export`.")],
    repository: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="Repository; made if it is not there.")],
    public: Annotated[bool, typer.Option("--public", help="Everybody may see it; otherwise it is private.")] = False,
    message: Annotated[str, typer.Option("--message", "-m", help="Of the commit.")] = "",
    revision: Annotated[str, typer.Option("--revision", help="Branch; made if it is not there.")] = "main",
    allow_random: Annotated[
        bool, typer.Option("--allow-random", help="Also a model whose encoders have random weights.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be uploaded.")] = False,
) -> None:
    """Put an exported model on the Hugging Face Hub, private unless said otherwise; the token is read from $HF_TOKEN."""
    from pipelines.deployment.hub import check_push, push_model

    described, files = check_push(model, repository, allow_random=allow_random)
    listed = ", ".join(f"{name} ({size / 1000:.1f} kB)" for name, size in files.items())
    seen = "public" if public else "private"
    console.say(f"To {repository} ({revision}, {seen}): {listed}. No weights of encoders, no recordings.")
    for warning in described.warnings:
        console.out.print(warning, style="bold yellow", markup=False)
    if dry_run:
        console.note("Nothing was uploaded: --dry-run.")
        return
    done = push_model(model, repository, public=public, message=message, revision=revision, allow_random=allow_random)
    made = "a new " if done.created else ""
    console.say(
        f"{described.name} is at {done.url} ({made}{'private' if done.private else 'public'} repository, {done.commit[:12]})."
    )
    at = f"@{revision}" if revision != "main" else ""
    console.note(f"Next, wherever the encoders' weights are: `hyfuse predict hf:{repository}{at} FILE…`.")
