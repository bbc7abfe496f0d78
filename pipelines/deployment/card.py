"""The model card: what a model is, how well it did, on whom, and what it is not for.

After Mitchell et al. 2019 (arXiv 1810.03993): intended use, training data, evaluation with its protocol and uncertainty, limits.
The header between dashes is what the Hugging Face Hub reads. Every number comes from the run that the model was exported from.
Shares are in per cent, and what a shuffled input costs in points of the score.
"""

from __future__ import annotations

import json
import re
import shlex
from typing import Any

from pipelines.corpora.cards import card_names, read_card
from pipelines.deployment.export import ALL_DATA
from pipelines.deployment.model_folder import ModelFolder

__all__ = ["model_card"]

_EMOTION_SCORES = (("uar", "UAR (unweighted average recall)"), ("accuracy", "accuracy"), ("macro_f1", "macro-F1"))


def model_card(model: ModelFolder, *, folder: str) -> str:
    """The card as Markdown.

    Args:
        model: what it is about.
        folder: name of the model's folder, for the commands.
    """
    parts = [
        _header(model),
        f"# {_title(model)}\n",
        _summary(model),
        *(f"> **Warning.** {warning}\n" for warning in model.warnings),
        _how_to_use(model, folder),
        _scores(model),
        _inputs(model),
        _training(model),
        _limits(model),
    ]
    return "\n".join(parts)


def _title(model: ModelFolder) -> str:
    name = f"{model.name}, trained on {model.trained_on['corpus']}"
    return f"{name} (RANDOM encoder weights, for trying things out only)" if model.random else name


def _header(model: ModelFolder) -> str:
    """YAML for the Hub; every value as JSON, which is YAML too."""
    corpus = str(model.trained_on["corpus"])  # a tag, not one of "datasets": these are names of repositories
    tags = ["hyfuse", "speech-emotion-recognition", corpus, model.fusion, *(one.encoder for one in model.inputs)]
    lines = {
        "license": "other",  # those of the corpus and of the encoders' weights, which the card names
        "library_name": "hyfuse",
        "pipeline_tag": "audio-classification",
        "language": [name for name in model.trained_on["language"] if re.fullmatch("[a-z]{2,3}", name)],
        "tags": [*tags, *(["random-weights"] if model.random else [])],
    }
    listed = [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in lines.items() if value]
    return "\n".join(["---", *listed, "---", ""])


def _summary(model: ModelFolder) -> str:
    inputs = " and ".join(f"`{one.encoder}` ({one.family}, {one.weights_kind} weights)" for one in model.inputs)
    what = "one of " + ", ".join(model.outputs) if model.target == "emotion" else ", ".join(model.outputs)
    fused = f", fused by the head `{model.fusion}`" if len(model.inputs) == 2 else ""
    count = len(model.heads)
    averaged = f"; {count} heads of different seeds, whose outputs are averaged" if count > 1 else "; one head"
    made = f"Made by hyfuse {model.versions['hyfuse']}."
    return f"Recognises {what} in recorded speech, from frozen representations: {inputs}{fused}{averaged}. {made}\n"


def _how_to_use(model: ModelFolder, folder: str) -> str:
    transcripts = model.takes_text
    files = "list.csv  # columns: path, transcript" if transcripts else "recording.wav"
    call = (
        'model.predict(["recording.wav"], transcripts=["what was said"])'
        if transcripts
        else 'model.predict(["recording.wav"])'
    )
    return f"""## How to use it

```sh
hyfuse predict {shlex.quote(folder)} {files}
```

```python
from pipelines.deployment.predict import load_model

model = load_model({json.dumps(folder, ensure_ascii=False)})
for found in {call}:
    print(found.label, found.scores)
```
"""


def _scores(model: ModelFolder) -> str:
    scores = model.scores
    who = "speakers that no head had seen" if scores["speaker_independent"] else "speakers that were also in training"
    seeds, folds = scores["seeds"], scores["folds"]
    subject = (
        "The model itself was trained on all utterances and could not be tested. What follows is of the run's heads of the same"
        f" kind, {folds} folds × {seeds} seeds, each tested on {who}."
        if model.trained_on["fold"] == ALL_DATA
        else f"Of all {folds} folds × {seeds} seeds of the run, each tested on {who}; this model is that of fold"
        f" {model.trained_on['fold']}."
    )
    kept = (
        f" The run kept the epoch with the best validation {scores['selection']}; this model has no validation part and keeps its"
        " last."
        if model.trained_on["fold"] == ALL_DATA and scores["selection"] not in ("fixed", "last")
        else ""
    )
    many = (
        f" They are means of single heads; that {len(model.heads)} are averaged here was not measured."
        if len(model.heads) > 1
        else ""
    )
    tested = f"Protocol `{scores['protocol']}`, {scores['utterances']} utterances, {scores['speakers']} speakers."
    rows = []
    for name, title in _titles(model):
        if name in scores:
            value, low, high = (_number(scores[f"{name}{end}"], model) for end in ("", "_low", "_high"))
            rows.append(f"| {title} | {value} | {low} to {high} |")
    return "\n".join(
        [
            "## How well it did",
            "",
            f"{tested} {subject}{kept}{many}",
            "Intervals: 95 %, by bootstrap over speakers.",
            "",
            "| score | value | interval |",
            "|---|---|---|",
            *rows,
            "",
            *_shuffles(model),
        ]
    )


def _titles(model: ModelFolder) -> list[tuple[str, str]]:
    if model.target == "emotion":
        return list(_EMOTION_SCORES)
    return [("ccc", "CCC, mean"), *((f"ccc_{name}", f"CCC, {name}") for name in model.outputs)]


def _number(value: Any, model: ModelFolder) -> str:
    if value is None:
        return "–"
    return f"{100 * value:.1f} %" if model.target == "emotion" else f"{value:.3f}"


def _shuffles(model: ModelFolder) -> list[str]:
    """What either input is worth."""
    if len(model.inputs) < 2:
        return []
    left, right = (model.scores.get(f"{side}_drop") for side in ("left", "right"))
    if left is None or right is None:
        return []
    first, second = (one.encoder for one in model.inputs)
    costs = [
        f"{100 * drop:.1f} points of UAR" if model.target == "emotion" else f"{drop:.3f} of CCC"
        for drop in (left, right)
    ]
    return [
        f"Shuffled among the test utterances, `{first}` costs {costs[0]} and `{second}` {costs[1]}: an input whose shuffling costs"
        " nothing is not used.",
        "",
    ]


def _inputs(model: ModelFolder) -> str:
    lines = [
        "## What it listens with",
        "",
        "| encoder | representation | weights | revision | digest | licence |",
        "|---|---|---|---|---|---|",
    ]
    for one in model.inputs:
        names = "layers, weighted" if one.weighted else one.representations[0]
        lines.append(
            f"| `{one.encoder}` | {names}, {one.pool} | {one.weights_kind}: {one.weights_source} | {one.weights_revision or '–'} |"
            f" `{one.weights_digest[:12]}` | {one.weights_licence} |"
        )
    said = "The encoders' weights are not in this folder; their licences hold for whoever uses the model."
    return "\n".join([*lines, "", said, ""])


def _training(model: ModelFolder) -> str:
    made = model.trained_on
    corpus = str(made["corpus"])
    lines = [
        "## What it was trained on",
        "",
        f"{made['utterances']} utterances of {made['speakers']} speakers of `{corpus}`"
        + (f" under the condition `{made['condition']}`" if made["condition"] != "clean" else "")
        + ("." if made["fold"] == ALL_DATA else f" (fold {made['fold']}).")
        + (" It learned the shares of the raters' votes." if made["labels"] == "soft" else ""),
    ]
    if made["condition"] != "clean":
        lines.append(
            "The scores above are of recordings under that condition, too; `hyfuse predict` takes recordings as they are and"
            " applies none."
        )
    if corpus in card_names():
        card = read_card(corpus)
        lines.append(f"Licence of the corpus: {card.licence}. Cite: {card.citation}")
    settings = ", ".join(f"{name} {value}" for name, value in model.options.items()) or "none"
    epochs = (
        f"Options of the head: {settings}. Training: {model.train.epochs} epochs, selection {model.train.selection}."
    )
    return "\n".join([*lines, epochs, ""])


def _limits(model: ModelFolder) -> str:
    corpus = f"`{model.trained_on['corpus']}`"
    random = (
        "\nIts encoders have random weights: it shows that the parts work together and recognises nothing worth having.\n"
        if model.random
        else ""
    )
    return f"""## Intended use and limits
{random}
For research on emotion in speech. It was trained and tested on {corpus} alone: other languages, microphones, rooms, ages and ways
of speaking are outside of what was measured; scores there are unknown and usually lower. It always gives an answer, also for noise,
music or an emotion it does not know. It tells what the raters or actors of that corpus would have said, not what a person feels. It
must not be used to judge or monitor people; inferring emotions at work and in education is prohibited in the European Union but
for medical and safety reasons (Regulation 2024/1689, article 5).
"""
