"""The commands that make a run again, written from its ``config.json``: extraction, then ``compare``, ``train`` or ``tune``.

Everything that decides a number is named, also where it is the default of this version: the corpus' classes, protocol, seeds,
representations and the settings of training that differ from the recipe's. What cannot change a number (device, processes, folders)
is left out. Words with blanks or other odd letters are quoted for a POSIX shell. (A study says its command itself:
``studies.outcome``.)
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from pipelines.fusion.catalogue import SINGLE, applicable_options, fusion_names
from pipelines.training.grid import LINEAR, PAIRINGS, pair_up
from pipelines.training.recipes import RECIPES

__all__ = ["commands", "ordered_sources"]

_OPTIONS_OF_THEIR_OWN = ("epochs", "batch_size", "learning_rate", "class_weights", "selection")


def commands(config: Mapping[str, Any], run_name: str) -> tuple[str, ...]:
    """Extraction, one command per kind of weights, then the comparison or the search.

    Args:
        config: content of ``config.json``.
        run_name: name of the run's folder.
    """
    return tuple(shlex.join(words) for words in (*_extract(config), _compare(config, run_name)))


def ordered_sources(config: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Encoder to source in the order of the cells, which decides who is left in a pair; the file has them by name."""
    sources: Mapping[str, Mapping[str, Any]] = config["sources"]
    named = dict.fromkeys(name for cell in config["cells"] for name in (cell["left"], cell["right"]) if name)
    return {name: sources[name] for name in (*named, *sources) if name in sources}


def _extract(config: Mapping[str, Any]) -> Iterator[list[str]]:
    condition = str(config["condition"])
    by_kind: dict[str, list[str]] = {}
    for name, source in ordered_sources(config).items():
        by_kind.setdefault(str(source["weights_kind"]), []).append(name)
    for kind, names in by_kind.items():
        words = ["hyfuse", "extract", "--corpus", str(config["corpus"])]
        words += [word for name in names for word in ("--model", name)]
        words += [] if kind == "pretrained" else ["--weights", kind]
        yield words + ([] if condition == "clean" else ["--condition", condition])


def _compare(config: Mapping[str, Any], run_name: str) -> list[str]:
    cells: Sequence[Mapping[str, Any]] = config["cells"]
    sources = ordered_sources(config)
    recipe = RECIPES.get(str(config.get("recipe", "")), next(iter(RECIPES.values())))
    pairs = list(dict.fromkeys((cell["left"], cell["right"]) for cell in cells if cell["right"]))
    fusions = list(
        dict.fromkeys(cell["fusion"] for cell in cells if cell["right"] and cell["fusion"] not in LINEAR.values())
    )
    tuning: Mapping[str, Any] = config.get("tuning") or {}
    verb = _tune(cells[0], tuning) if tuning else _verb(sources, pairs, fusions)
    words = ["hyfuse", *verb, "--corpus", str(config["corpus"])]
    words += ["--recipe", recipe.name, "--protocol", str(config["protocol"]), "--seeds", str(len(config["seeds"]))]
    for name, source in sources.items():
        words += ["--representation", f"{name}={source['representation']}"]
    words += ["--pool", str(config["pool"])]
    if config.get("target", "emotion") == "dimensions":
        words += ["--target", "dimensions", "--dimensions", ",".join(config["dimensions"])]
    else:
        words += ["--classes", ",".join(config["classes"])]
        labels = str(config.get("labels", "hard"))
        words += [] if labels == "hard" else ["--labels", labels]
    words += [] if config["condition"] == "clean" else ["--condition", str(config["condition"])]
    both = False
    for fusion in (SINGLE, *fusions):
        given_options = [cell["options"] for cell in cells if cell["fusion"] == fusion]
        orders = {str(options.get("order", "left-right")) for options in given_options}
        both |= len(orders) > 1
        words += _options(fusion, given_options, recipe.head_options, leave_out={"order"} if len(orders) > 1 else set())
    words += ["--order", "both"] if both else []
    usual = asdict(recipe.train)
    given: Mapping[str, Any] = config["hyper_parameters"]
    for name, value in given.items():
        if name in ("selection", "epochs"):
            words += [f"--{name}", str(value)]
        elif name in usual and usual[name] != value:
            own = name in _OPTIONS_OF_THEIR_OWN
            words += [f"--{name.replace('_', '-')}", str(value)] if own else ["--set", f"{name}={value}"]
    return [*words, "--run", run_name]


def _verb(
    sources: Mapping[str, Mapping[str, Any]], pairs: Sequence[tuple[str, str]], fusions: Sequence[str]
) -> list[str]:
    """``compare`` with the pairs it made, or ``train`` for what compare does not make: one pair, or one encoder."""
    if not pairs:
        return ["train", "--single", next(iter(sources))]
    families = {name: str(source["family"]) for name, source in sources.items()}
    for pairing in PAIRINGS:
        if set(pair_up(families, pairing)) == set(pairs):
            return ["compare", "--models", " ".join(sources), "--fusions", ",".join(fusions), "--pairs", pairing]
    return ["train", "--pair", *pairs[0], "--fusion", fusions[0]]


def _tune(cell: Mapping[str, Any], tuning: Mapping[str, Any]) -> list[str]:
    """``tune`` of the cell. What is searched is named, also where it is all that can be: a later version may search more."""
    what = ["--pair", cell["left"], cell["right"], "--fusion", cell["fusion"]]
    words = ["tune", *(what if cell["right"] else ["--single", cell["left"]])]
    for name in ("trials", "inner_folds", "inner_seeds"):
        words += [f"--{name.replace('_', '-')}", str(tuning[name])]
    return [*words, "--search", ",".join(tuning["space"])]


def _options(
    fusion: str, given: Sequence[Mapping[str, Any]], of_recipe: Mapping[str, Any], *, leave_out: set[str]
) -> list[str]:
    """Options of one fusion where they differ from the recipe's."""
    # A run of another version may have fusions that are unknown here; its report is still made.
    usual = applicable_options(fusion, of_recipe) if fusion in (SINGLE, *fusion_names()) else {}
    return [
        word
        for name, value in (given[0] if given else {}).items()
        if name not in leave_out and usual.get(name) != value
        for word in ("--option", f"{fusion}.{name}={value}")
    ]
