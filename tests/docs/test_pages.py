"""What the documentation tells people to type works."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest
import typer

from tests.docs.pages import PAGES, ROOT, Block, blocks, hyfuse_commands
from tests.docs.walk import walk

_LIMIT_S = 600.0  # of a page, wall-clock: the tutorial promises ten minutes
# Pages whose blocks stand on their own, in an empty folder. The first takes minutes, so it runs in CI only.
_RUN = [
    "tutorial.md", "cluster.md", "hyperbolic.md", "why-batch-independence.md", "why-speaker-independent.md", "own-encoder.md",
    "own-fusion.md",
]  # fmt: skip
# Pages whose Python reads a store: what has to be there first.
_STORE = "hyfuse extract --corpus demo --weights random --model wavlm-tiny --frames"


def _names(pages: list[Path]) -> list[str]:
    return [page.name for page in pages]


@pytest.mark.parametrize("page", PAGES, ids=_names(PAGES))
def test_every_command_exists_with_its_options(page: Path) -> None:
    from hyfuse_cli.app import app

    program = typer.main.get_command(app)
    for block in blocks(page):
        for arguments in hyfuse_commands(block):
            line = f"{page.name}: hyfuse {' '.join(arguments)}"
            command, names, rest = program, ["hyfuse"], list(arguments)
            while hasattr(command, "commands") and rest and not rest[0].startswith("-"):
                assert rest[0] in command.commands, line
                names.append(rest[0])
                command = command.commands[rest.pop(0)]
            known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
            known |= {"--help", "-h", "--debug"}
            given = {word.split("=")[0] for word in rest if re.match(r"--?[a-z]", word)}
            assert given <= known, f"{line}: {given - known}"
            required = [one for one in command.params if isinstance(one, click.Option) and one.required]
            assert all(set(one.opts) & given for one in required), line


@pytest.mark.parametrize("page", PAGES, ids=_names(PAGES))
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        if not target.startswith(("http://", "https://", "mailto:")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_rule_tells_what_runs() -> None:
    def runs(text: str) -> bool:
        return Block(Path("x.md"), "sh", text).runs

    assert runs("hyfuse extract --corpus demo --model wavlm-tiny --weights random\nhyfuse cache list")
    assert runs("hyfuse doctor || true  # says what is missing; NAME in a comment is no matter")
    for text in (
        "hyfuse models show NAME",
        "hyfuse extract --corpus emodb --data-root /data/emodb",
        "hyfuse embed FILE… --model wavlm",
        "hyfuse compare --cache-dir s3://bucket/prefix",
        "pip install .",
        "srun hyfuse extract --shard $SLURM_ARRAY_TASK_ID/8",
    ):
        assert not runs(text), text


def test_the_tutorial_leaves_nothing_out() -> None:
    """Every block of the tutorial is run."""
    found = blocks(ROOT / "docs" / "tutorial.md")
    assert len(found) >= 5
    assert [block.text for block in found if not block.runs] == []


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", _RUN)
def test_blocks_run(name: str, tmp_path: Path) -> None:
    page = ROOT / "docs" / name
    pieces = [block for block in blocks(page) if block.runs]
    if name.startswith("own-"):
        pieces = []  # what these pages install is installed, and used, by tests/plugins/test_examples.py
        assert any("pip install" in block.text for block in blocks(page))
    else:
        assert pieces
    taken_s = sum(seconds for _, seconds in walk(pieces, tmp_path / "empty folder", limit_s=_LIMIT_S))
    assert taken_s < _LIMIT_S


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_python_blocks_run_on_a_store(tmp_path: Path) -> None:
    """Of the pages that show how to read what was extracted."""
    pages = [ROOT / "docs" / name for name in ("extraction.md",)]
    pieces = [block for page in pages for block in blocks(page) if block.language == "python"]
    assert pieces
    done = list(walk([Block(Path("store"), "sh", _STORE), *pieces], tmp_path, limit_s=500))
    assert len(done) == len(pieces) + 1
