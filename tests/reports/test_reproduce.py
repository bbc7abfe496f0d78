from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

from pipelines.reports.reproduce import commands
from tests.reports.fake_run import make_run


def _config(folder: Path, **changes: Any) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((make_run(folder / "run") / "config.json").read_text())
    return {**config, **changes}


def test_commands_name_everything_that_decides_a_number(tmp_path: Path) -> None:
    config = _config(tmp_path)
    config["sources"]["encodec"]["weights_kind"] = "random"
    extract, random, compare = commands(config, "mine")
    assert extract == "hyfuse extract --corpus toy --model wavlm --model xvector"
    assert random == "hyfuse extract --corpus toy --model encodec --weights random"
    words = shlex.split(compare)
    assert words[:2] == ["hyfuse", "compare"]
    for option, value in {
        "--models": "wavlm xvector encodec", "--fusions": "concat,hyperbolic", "--pairs": "heterogeneous", "--corpus": "toy",
        "--protocol": "speaker-3fold", "--seeds": "2", "--classes": "anger,joy,neutral", "--selection": "fixed", "--epochs": "4",
        "--learning-rate": "0.002", "--run": "mine",
    }.items():  # fmt: skip
        assert words[words.index(option) + 1] == value
    assert words.count("--representation") == 3
    assert "label_smoothing=0.1" not in words  # as the recipe has it


def test_options_orders_and_training(tmp_path: Path) -> None:
    config = _config(tmp_path, condition="noise:esc10@5dB")
    for cell in config["cells"]:
        if cell["fusion"] == "hyperbolic":
            cell["options"] = {"max_radius": 0.3}
    turned = [
        {**cell, "options": {**cell["options"], "order": "right-left"}}
        for cell in config["cells"]
        if cell["fusion"] == "hyperbolic"
    ]
    config["cells"] += turned
    config["hyper_parameters"]["label_smoothing"] = 0.0
    words = shlex.split(commands(config, "mine")[-1])
    assert words.count("--order") == 1
    assert words[words.index("--order") + 1] == "both"
    assert words[words.index("--option") + 1] == "hyperbolic.max_radius=0.3"
    assert words[words.index("--set") + 1] == "label_smoothing=0.0"
    assert words[words.index("--condition") + 1] == "noise:esc10@5dB"


def test_runs_of_train(tmp_path: Path) -> None:
    config = _config(tmp_path)
    config["cells"] = [cell for cell in config["cells"] if cell["left"] == "wavlm" and cell["fusion"] != "concat"]
    words = shlex.split(commands(config, "mine")[-1])
    assert words[1:6] == ["train", "--pair", "wavlm", "encodec", "--fusion"]
    config["cells"] = [cell for cell in config["cells"] if not cell["right"]]
    config["sources"] = {"wavlm": config["sources"]["wavlm"]}
    assert shlex.split(commands(config, "mine")[-1])[1:4] == ["train", "--single", "wavlm"]


def test_targets_and_labels(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "values", dimensions=("arousal", "valence"))
    words = shlex.split(commands(json.loads((folder / "config.json").read_text()), "mine")[-1])
    assert words[words.index("--target") + 1] == "dimensions"
    assert words[words.index("--dimensions") + 1] == "arousal,valence"
    assert words[words.index("--fusions") + 1] == "concat,hyperbolic"  # the linear rung comes by itself
    assert "--classes" not in words
    words = shlex.split(commands(_config(tmp_path, labels="soft"), "mine")[-1])
    assert words[words.index("--labels") + 1] == "soft"
    assert "--target" not in words


def test_runs_of_tune(tmp_path: Path) -> None:
    config = _config(tmp_path)
    config["tuning"] = {
        "trials": 12, "inner_folds": 4, "inner_seeds": 2, "search": [], "space": {"dropout": {}, "max_radius": {}},
    }  # fmt: skip
    config["sources"] = {name: config["sources"][name] for name in ("wavlm", "encodec")}
    config["cells"] = [{"left": "wavlm", "right": "encodec", "fusion": "hyperbolic", "options": {"classifier": "mlr"}}]
    words = shlex.split(commands(config, "mine")[-1])
    assert words[1:7] == ["tune", "--pair", "wavlm", "encodec", "--fusion", "hyperbolic"]
    for option, value in {
        "--trials": "12", "--inner-folds": "4", "--inner-seeds": "2", "--search": "dropout,max_radius", "--seeds": "2",
        "--option": "hyperbolic.classifier=mlr", "--run": "mine",
    }.items():  # fmt: skip
        assert words[words.index(option) + 1] == value
    config["cells"] = [{"left": "wavlm", "right": "", "fusion": "single", "options": {}}]
    assert shlex.split(commands(config, "mine")[-1])[1:4] == ["tune", "--single", "wavlm"]


def test_odd_names_are_quoted_and_unknown_fusions_kept(tmp_path: Path) -> None:
    config = _config(tmp_path, corpus="my corpus; rm -rf /")
    for cell in config["cells"]:
        cell["fusion"] = cell["fusion"].replace("hyperbolic", "of-tomorrow")
    words = shlex.split(commands(config, "mine")[-1])
    assert words[words.index("--corpus") + 1] == "my corpus; rm -rf /"
    assert "concat,of-tomorrow" in words
