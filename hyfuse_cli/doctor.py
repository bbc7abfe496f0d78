"""``hyfuse doctor`` and ``hyfuse`` alone: is everything in order here, and what comes next?"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from hyfuse_cli import console
from hyfuse_cli.options import DEFAULT_CACHE, CacheDir, RunsDir
from pipelines.locations import Location

__all__ = ["doctor", "what_next"]

_STYLES = {"ok": "green", "note": "dim", "warning": "yellow", "error": "bold red"}
_SHOWN = 4  # steps; more would be a manual


def doctor(
    cache_dir: CacheDir = DEFAULT_CACHE,
    runs_dir: RunsDir = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per check.")] = False,
) -> None:
    """Check Python, libraries, GPU, Hub, disk, caches and corpora, and say how to mend what is wrong.

    Exit status 1 if something is broken.
    """
    from pipelines.guidance.diagnosis import diagnose

    broken = False
    for check in diagnose(cache_dir, runs_dir):
        broken |= check.status == "error"
        if as_json:
            typer.echo(json.dumps(asdict(check), ensure_ascii=False))
            continue
        style = _STYLES[check.status]
        console.out.print(f"[{style}]{check.status:<8}[/]{check.name:<10}{escape(check.found)}", soft_wrap=True)
        if check.fix:
            console.out.print(f"{'':<18}→ {escape(check.fix)}", soft_wrap=True)
    if broken:
        raise typer.Exit(1)


def what_next(cache_dir: Location, runs_dir: Path) -> None:
    """What is in this folder, and the next commands."""
    from pipelines.guidance.next_steps import look, next_steps

    state = look(cache_dir, runs_dir)
    console.out.print("[bold]hyfuse[/]: which frozen speech representations, fused how, recognise emotion best?\n")
    for corpus in state.corpora:
        listed = ", ".join(f"{name} ({family})" for name, family in corpus.finished.items()) or "no finished embeddings"
        more = f", and {corpus.conditions} under other conditions" if corpus.conditions else ""
        console.out.print(escape(f"{corpus.name} in {cache_dir}: {listed}{more}."), soft_wrap=True)
    for run in state.runs[:3]:
        what = "interrupted" if not run.finished else "with a page" if run.reported else "finished"
        console.out.print(escape(f"{run.path}: {what}."), soft_wrap=True)
    if state.corpora or state.runs:
        console.out.print("")
    console.out.print("Next:")
    option = "" if cache_dir == DEFAULT_CACHE else f"--cache-dir {cache_dir}"
    for step in next_steps(state, cache_option=option)[:_SHOWN]:
        console.out.print(f"  [bold]{escape(step.command)}[/]\n      {escape(step.why)}", soft_wrap=True)
    console.out.print("\nAll commands: `hyfuse --help`. Is everything in order here? `hyfuse doctor`.")
