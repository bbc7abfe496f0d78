"""Writes docs/reference/ from the code: commands with their options, encoders, fusions, corpora, store, exit codes.

    python docs/make_reference.py            # writes
    python docs/make_reference.py --check    # says what is out of date, status 1

``tests/docs/test_reference.py`` holds that the pages are what this would write.
"""

from __future__ import annotations

import argparse
import inspect
import re
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent / "reference"
_MADE = "<!-- Made by docs/make_reference.py from the code; do not edit. -->\n\n"


def _cell(text: object) -> str:
    """Text in a cell of a table."""
    return " ".join(str(text).split()).replace("|", "\\|")


def _commands(command: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Every command below a group, with what one types."""
    for name, child in sorted(getattr(command, "commands", {}).items()):
        if child.hidden:
            continue
        if hasattr(child, "commands"):
            yield from _commands(child, f"{path} {name}")
        else:
            yield f"{path} {name}", child


def _default(parameter: Any) -> str:
    value = parameter.default
    if parameter.required:
        return "required"
    if value is None or value is False or callable(value) or "Sentinel" in type(value).__name__ or value == ():
        return ""
    return f"`{value}`" if not isinstance(value, bool) else "on"


def commands() -> str:
    """Every command, its arguments and options."""
    import typer

    from hyfuse_cli.app import app

    lines = [
        "# Commands\n",
        "`--debug` anywhere on the line shows the traceback of an error. Exit codes: [exit-codes.md](exit-codes.md).\n",
    ]
    for path, command in _commands(typer.main.get_command(app), "hyfuse"):
        lines += [f"## `{path}`\n", f"{inspect.cleandoc(command.help or '')}\n"]
        rows = []
        for parameter in command.params:
            if parameter.name == "help":
                continue
            is_argument = parameter.param_type_name == "argument"
            names = (parameter.metavar or parameter.name.upper()) if is_argument else ", ".join(parameter.opts)
            variable = f" (`${parameter.envvar}`)" if getattr(parameter, "envvar", None) else ""
            rows.append(
                f"| `{names}` | {_cell(getattr(parameter, 'help', None) or '')}{variable} | {_cell(_default(parameter))} |"
            )
        if rows:
            lines += ["| | | default |", "|---|---|---|", *rows, ""]
    return "\n".join(lines)


def encoders() -> str:
    """The catalogue."""
    from pipelines.encoders.catalogue import CATALOGUE

    lines = [
        "# Encoders\n",
        "Families: RLR (representation learning), CBR (neural codecs), DSP (signal processing), LEX (texts). Each but those of DSP",
        "also in a size `-tiny` with random weights. `hyfuse models show NAME` says the same of one, `hyfuse models check NAME`",
        "tries it.\n",
        "| name | family | rate (Hz) | samples per frame | D | representations | default | weights | revision | licence |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for spec in CATALOGUE.values():
        if spec.is_tiny:
            continue
        names = spec.representations
        listed = ", ".join(f"`{name}`" for name in names) if len(names) <= 3 else f"`{names[0]}` … `{names[-1]}`"
        rate = "text" if spec.takes_text else str(spec.sample_rate_hz)
        hop = spec.hop_samples or "whole recording"
        source = f"{_cell(spec.repository or 'none')} | {spec.revision[:12]} | {_cell(spec.licence)}"
        lines.append(
            f"| `{spec.name}` | {spec.family} | {rate} | {hop} | {spec.dim} | {listed} |"
            f" `{spec.default_representation}` | {source} |"
        )
    lines += ["", "## What to know of each\n"]
    lines += [
        f"* **`{spec.name}`**: {_cell(spec.title)}. {_cell(spec.notes)}"
        for spec in CATALOGUE.values()
        if not spec.is_tiny
    ]
    return "\n".join(lines) + "\n"


def fusions() -> str:
    """The heads and their options."""
    from pipelines.fusion.catalogue import FUSIONS, fusion_spec

    lines = ["# Fusions\n", "Formulas and what each can do: [fusion.md](../fusion.md).\n"]
    for name in (*FUSIONS, "single"):
        spec = fusion_spec(name)
        order = "operands may be exchanged" if spec.commutative else "operands have an order"
        lines += [f"## `{name}`\n", f"{_cell(spec.summary)}. From: {_cell(spec.source)}; {order}.\n"]
        lines += ["| option | what it does | values | default |", "|---|---|---|---|"]
        for key, option in spec.options.items():
            values = ", ".join(option.choices) or f"{option.minimum:g} to {option.maximum:g}"
            lines.append(f"| `{key}` | {_cell(option.about)} | {values} | {option.default} |")
        lines.append("")
    return "\n".join(lines)


def corpora() -> str:
    """The cards."""
    from pipelines.corpora.cards import card_names, read_card

    lines = [
        "# Corpora\n",
        "From the cards in `data_manifests/`. How to obtain one, and its label map: `hyfuse corpora show NAME`.\n",
    ]
    lines += ["| name | title | language | utterances | speakers | classes | protocols (default first) | licence |"]
    lines += ["|---|---|---|---|---|---|---|---|"]
    for name in card_names():
        card = read_card(name)
        protocols = [card.default_protocol, *(one for one in card.protocols if one != card.default_protocol)]
        lines.append(
            f"| `{name}` | {_cell(card.title)} | {card.language} | {card.expected_utterances or ''} |"
            f" {card.expected_speakers or ''} |"
            f" {', '.join(card.classes)} | {', '.join(protocols)} | {_cell(card.licence)} |"
        )
    lines += ["", "## Citations\n"]
    lines += [f"* `{name}`: {_cell(read_card(name).citation)}" for name in card_names()]
    return "\n".join(lines) + "\n"


def _attributes(kind: type) -> Iterator[tuple[str, str]]:
    """Fields of a dataclass with what its docstring says of them."""
    text = inspect.cleandoc(kind.__doc__ or "")
    section = text.partition("Attributes:\n")[2]
    described = {
        name: " ".join(about.split())
        for name, about in re.findall(r"^    (\w+): (.*?)(?=^    \w+: |\Z)", section, re.MULTILINE | re.DOTALL)
    }
    for one in fields(kind):  # type: ignore[arg-type]
        yield one.name, described.get(one.name, "")


def store() -> str:
    """What a store is made of."""
    from pipelines.store import embeddings
    from pipelines.store.provenance import ENVIRONMENT_FIELDS, IDENTITY_FIELDS, SCHEMA_VERSION, Provenance

    lines = [
        "# The store\n",
        f"Schema version {SCHEMA_VERSION}; `pipelines/store/embeddings.py`. Read it with"
        " `pipelines.store.embeddings.open_store` or any Zarr 3 library.\n",
        "## Arrays\n",
        "```text",
        inspect.cleandoc(embeddings.__doc__ or ""),
        "```\n",
        "## Attributes\n",
        "A store whose *identity* differs from what is asked for is refused; one whose *environment* differs is read, but not"
        " continued.\n",
        "| attribute | what it says | |",
        "|---|---|---|",
    ]
    for name, about in _attributes(Provenance):
        kind = "identity" if name in IDENTITY_FIELDS else "environment" if name in ENVIRONMENT_FIELDS else ""
        lines.append(f"| `{name}` | {_cell(about)} | {kind} |")
    return "\n".join(lines) + "\n"


def exit_codes() -> str:
    """What the shell is told, and the mistakes that are explained."""
    from pipelines import errors

    lines = [
        "# Exit codes\n",
        "| status | meaning |",
        "|---|---|",
        "| 0 | done |",
        "| 1 | a check found something (`doctor`, `corpora check`, `cache verify`, `models check`, `fusions check`), or recordings"
        " could not be predicted |",
        "| 2 | a mistake, explained in one paragraph on standard error; `--debug` for the traceback. Also a wrong option |",
        "| 130 | interrupted by Ctrl-C; what was finished is kept |\n",
        "Tables and results go to standard output, progress and advice to standard error.\n",
        "## Mistakes that are explained\n",
        "From Python: `pipelines.errors`, all below `HyfuseError`.\n",
        "| type | also a | when |",
        "|---|---|---|",
    ]
    for name, kind in sorted(vars(errors).items()):
        if inspect.isclass(kind) and issubclass(kind, errors.HyfuseError) and kind is not errors.HyfuseError:
            also = ", ".join(base.__name__ for base in kind.__bases__ if not issubclass(base, errors.HyfuseError))
            lines.append(f"| `{name}` | {also} | {_cell(kind.__doc__ or '')} |")
    return "\n".join(lines) + "\n"


PAGES = {
    "commands.md": commands,
    "encoders.md": encoders,
    "fusions.md": fusions,
    "corpora.md": corpora,
    "store.md": store,
    "exit-codes.md": exit_codes,
}


def pages() -> dict[str, str]:
    """File name to what it should hold."""
    return {name: _MADE + make().rstrip() + "\n" for name, make in PAGES.items()}


def out_of_date() -> list[str]:
    """Pages that are not what this program would write."""
    return [
        name
        for name, text in pages().items()
        if not (FOLDER / name).is_file() or (FOLDER / name).read_text(encoding="utf-8") != text
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing")
    if parser.parse_args().check:
        stale = out_of_date()
        for name in stale:
            print(f"docs/reference/{name} is out of date: python docs/make_reference.py")
        sys.exit(bool(stale))
    FOLDER.mkdir(exist_ok=True)
    for name, text in pages().items():
        (FOLDER / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
