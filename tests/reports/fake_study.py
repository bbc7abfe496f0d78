"""Outcomes of studies that were never made: drawn at random, with every kind of table cell and figure."""

from __future__ import annotations

import math

import numpy as np

from pipelines.studies.outcome import Cell, Column, Figure, Outcome, Series, Table

__all__ = ["layers_outcome", "noise_outcome"]

CONDITIONS = ("clean", "20 dB", "10 dB", "5 dB", "0 dB")


def _around(values: np.ndarray, width: float) -> dict[str, tuple[float, ...]]:
    return {"y": tuple(values), "low": tuple(values - width), "high": tuple(values + width)}


def noise_outcome(*, name: str = "byols", warnings: tuple[str, ...] = (), corpus: str = "emodb") -> Outcome:
    """Degradation curves, areas as bars, WER against emotion as a scatter."""
    generator = np.random.default_rng(0)
    models = (name, "soundstream-lyra", f"{name}+soundstream-lyra concat")
    lost = np.array([0, 3, 9, 16, 27.0])
    curves = {model: 70 - 8 * place - lost + generator.normal(0, 1, 5) for place, model in enumerate(models)}
    rows = tuple(
        (
            model,
            *(
                Cell(value=float(v), low=float(v) - 6, high=float(v) + 5, mark="*" * (k == 4))
                for k, v in enumerate(curve)
            ),
        )
        for model, curve in curves.items()
    )
    missing = ("minilm", Cell(value=math.nan), *(Cell(value=50.0 + k) for k in range(4)))
    table = Table(
        name="uar", title="UAR by condition", about="UAR, per cent [95 % interval]. * below clean, p < .05, Holm.",
        columns=(Column(title="model"), *(Column(title=condition) for condition in CONDITIONS)), rows=(*rows, missing),
    )  # fmt: skip
    x = tuple(float(k) for k in range(5))
    lines = Figure(
        name="degradation", title="UAR under noise", about="ESC-10 at four ratios; heads trained on clean recordings.",
        kind="lines", x_label="condition", y_label="UAR %", ticks=CONDITIONS,
        series=(
            *(Series(name=model, x=x, **_around(curve, 5.0)) for model, curve in curves.items()),
            Series(name="minilm", x=x, y=(math.nan, 50.0, 51.0, math.nan, 53.0)),
        ),
    )  # fmt: skip
    areas = np.array([60.0, 52.0, 63.0])
    bars = Figure(
        name="areas", title="Area under the curve", about="Mean UAR over the conditions, by training.", kind="bars",
        x_label="", y_label="UAR %", ticks=models,
        series=tuple(
            Series(name=training, x=(0.0, 1.0, 2.0), **_around(areas + shift, 4.0))
            for training, shift in (("clean", 0.0), ("matched", 5.0), ("multi-condition", 3.5))
        ),
    )  # fmt: skip
    wer = np.array([4.0, 9, 22, 38, 61])
    scatter = Figure(
        name="wer", title="Emotion against word errors", about="One point per condition.", kind="scatter",
        x_label="WER %", y_label="CCC, valence",
        series=(
            Series(name="text", x=tuple(wer), labels=CONDITIONS, **_around(0.62 - 0.005 * wer, 0.06)),
            Series(name="text + voice", x=tuple(wer), y=tuple(0.66 - 0.003 * wer)),
        ),
    )  # fmt: skip
    return Outcome(
        study="noise", title="Noise: what it costs", corpus=corpus, target="emotion",
        answers=(
            "Does noise cost the voice more than the text? Yes: 27.0 points [20.1, 33.3] against 2.0 [−1.0, 5.1], p = .002.",
            "Does training on noisy recordings help? Not shown: +3.5 points [−0.4, 7.2], p = .081 (Holm).",
        ),
        notes=("Corpus: emodb, 535 utterances, 10 speakers.", "Noise: `hyfuse extract --condition noise:esc10@5dB`."),
        warnings=warnings, tables=(table,), figures=(lines, bars, scatter),
        command=f"hyfuse study noise --corpus {corpus} --models {name}", settings={"seeds": 5, "protocol": "speaker-5fold"},
    )  # fmt: skip


def layers_outcome() -> Outcome:
    """Layers by target as a heat map, differences between two checkpoints as another, a curve over numbers."""
    generator = np.random.default_rng(1)
    layers = tuple(f"layer_{k:02d}" for k in range(13))
    x = tuple(float(k) for k in range(13))
    depth = np.linspace(0, 1, 13)
    curves = {"arousal": 0.6 - 0.2 * depth, "valence": 0.2 + 0.35 * depth, "dominance": 0.5 - 0.1 * (depth - 0.4) ** 2}
    table = Table(
        name="by-layer", title="CCC by layer", about="CCC with 95 % intervals. † not below the best layer.",
        columns=(Column(title="layer"), *(Column(title=target, digits=3) for target in curves)),
        rows=tuple(
            (layer, *(Cell(value=float(c[k]), low=float(c[k]) - 0.05, high=float(c[k]) + 0.05) for c in curves.values()))
            for k, layer in enumerate(layers)
        ),
    )  # fmt: skip
    heat = Figure(
        name="layers", title="CCC by layer and target", about="A probe on each layer alone.", kind="heatmap", x_label="layer",
        y_label="CCC", ticks=layers, series=tuple(Series(name=target, x=x, y=tuple(c)) for target, c in curves.items()),
    )  # fmt: skip
    names = ("MFCC", "F0", "loudness", "spectral")
    change = Figure(
        name="change", title="What fine-tuning changed", about="PWCCA with each group of descriptors, fine-tuned minus pretrained.",
        kind="heatmap", x_label="layer", y_label="PWCCA difference", ticks=layers,
        series=tuple(Series(name=one, x=x, y=tuple(generator.normal(0, 0.1, 13))) for one in names),
    )  # fmt: skip
    truncated = Figure(
        name="truncated", title="Truncated encoders", about="The encoder cut after so many layers.", kind="lines",
        x_label="layers kept", y_label="CCC",
        series=tuple(Series(name=target, x=x, **_around(c, 0.04)) for target, c in curves.items()),
    )  # fmt: skip
    return Outcome(
        study="layers", title="Layers of wavlm-tiny", corpus="demo", target="dimensions",
        answers=("Which layer is best for valence? layer_12: CCC .550 [.500, .600]; not shown to differ from layer_11 (p = .41).",),
        notes=("Corpus: demo.",), warnings=("RANDOM weights: wavlm-tiny. These scores say nothing about it.",),
        tables=(table,), figures=(heat, change, truncated), command="hyfuse study layers --corpus demo",
        settings={"seeds": 1, "nested": {"a": [1, 2]}},
    )  # fmt: skip
