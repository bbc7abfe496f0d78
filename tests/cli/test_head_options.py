"""Options of heads and training on the command lines of train, compare and tune, on made-up embeddings."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from pipelines.corpora.prepare import remember
from pipelines.fusion.catalogue import FUSIONS
from tests.cli.conftest import Runner
from tests.training.toy import make_corpus

QUICK = ("--protocol", "speaker-3fold", "--seeds", 1, "--epochs", 1, "--workers", 1, "--run", "r")
PAIR = ("train", "--pair", "ssl", "codec")


@pytest.fixture(autouse=True)
def toy(tmp_path: Path) -> None:
    """The corpus ``toy`` in the cache of the working folder."""
    remember(make_corpus(tmp_path / "cache"), tmp_path / "cache")


def rows(tmp_path: Path) -> list[dict]:
    return [json.loads(line) for line in (tmp_path / "runs/r/results.jsonl").read_text().splitlines()]


def test_recipe_paper(hyfuse: Runner, tmp_path: Path) -> None:
    done = hyfuse(*PAIR, "--recipe", "paper", *QUICK)
    assert done.status == 0, done.err
    assert "recipe paper" in done.out
    assert "best epoch by loss" in done.out
    (mobius, *_) = (row for row in rows(tmp_path) if row["fusion"] == "mobius")
    assert mobius["options"]["front_end"] == "cnn"
    assert mobius["hyper_parameters"]["patience"] == 10
    assert mobius["hyper_parameters"]["epochs"] == 1  # what is given wins
    (single, *_) = (row for row in rows(tmp_path) if row["fusion"] == "single")
    assert single["options"]["front_end"] == "cnn"
    fixed = hyfuse(*PAIR, "--recipe", "paper", "--selection", "fixed", *QUICK)
    assert fixed.status == 0, fixed.err
    assert rows(tmp_path)[-4]["hyper_parameters"]["patience"] == 0


def test_options_reach_the_fusions_that_have_them(hyfuse: Runner, tmp_path: Path) -> None:
    given = ("--option", "max_radius=0.3", "--option", "concat.modality_dropout=0.1", "--classifier", "mlr")
    chosen = ("compare", "--fusions", "concat,hyperbolic", "--models", "ssl codec")
    done = hyfuse(*chosen, *given, "--set", "label_smoothing=0", "--class-weights", "balanced", *QUICK)
    assert done.status == 0, done.err
    by_fusion = {row["fusion"]: row for row in rows(tmp_path)}
    assert by_fusion["hyperbolic"]["options"]["max_radius"] == 0.3
    assert by_fusion["hyperbolic"]["options"]["classifier"] == "mlr"
    assert by_fusion["hyperbolic"]["options"]["modality_dropout"] == 0
    assert by_fusion["concat"]["options"]["modality_dropout"] == 0.1
    assert by_fusion["concat"]["hyper_parameters"]["label_smoothing"] == 0
    assert by_fusion["concat"]["hyper_parameters"]["class_weights"] == "balanced"
    assert by_fusion["logistic"]["hyper_parameters"]["class_weights"] == "balanced"
    assert "classes weighted by their rarity" in done.out


def test_layers_of_one_and_of_all_encoders(hyfuse: Runner, tmp_path: Path) -> None:
    done = hyfuse(*PAIR, "--layer", "weighted", *QUICK)
    assert done.status == 0, done.err
    assert "Layer weights of ssl" in done.out
    assert {row["left_source"]["representation"] for row in rows(tmp_path) if row["left"] == "ssl"} == {"weighted"}
    assert "left_layer_02" in rows(tmp_path)[0]["diagnostics"]
    one = hyfuse(*PAIR, "--layer", "ssl=0", *QUICK)
    assert "ssl layer_00, codec latent" in one.out


@pytest.mark.slow
def test_all_fusions(hyfuse: Runner, tmp_path: Path) -> None:
    done = hyfuse("compare", "--fusions", "all", "--models", "ssl,codec", *QUICK)
    assert done.status == 0, done.err
    with (tmp_path / "runs/r/table.csv").open() as handle:
        fused = [row["fusion"] for row in csv.DictReader(handle) if row["right"]]
    assert fused == [*FUSIONS, "logistic"]


def test_both_orders(hyfuse: Runner, tmp_path: Path) -> None:
    done = hyfuse(*PAIR, "--fusion", "hyperbolic", "--order", "both", *QUICK)
    assert done.status == 0, done.err
    orders = [row["options"]["order"] for row in rows(tmp_path) if row["fusion"] == "hyperbolic"]
    assert orders == ["left-right"] * 3 + ["right-left"] * 3
    assert "(ssl+codec hyperbolic)" in done.out
    assert "(ssl+codec hyperbolic (right-left))" in done.out


def test_tune(hyfuse: Runner, tmp_path: Path) -> None:
    pytest.importorskip("optuna", reason="tuning is an optional extra: pip install 'hyfuse[tune]'")
    line = ("tune", "--pair", "ssl", "codec", "--fusion", "concat", "--inner-folds", 2, "--search", "dropout", *QUICK)
    done = hyfuse(*line, "--trials", 2)
    assert done.status == 0, done.err
    assert "6 trials made, 0 taken from an earlier call" in done.out
    assert "Fold 1: inner UAR" in done.out
    assert len(json.loads((tmp_path / "runs/r/tuning.json").read_text())) == 3
    again = hyfuse(*line, "--trials", 3)
    assert "3 trials made, 6 taken from an earlier call" in again.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((*PAIR, "--recipe", "papper"), "Unknown recipe 'papper'. Did you mean 'paper'"),
        (
            (*PAIR, "--fusion", "concat", "--option", "radius=1"),
            "Unknown option of concat 'radius'. Valid names: dense_dim, front_end, modality_dropout",
        ),
        ((*PAIR, "--option", "max_radius"), "--option must be NAME=VALUE, such as max_radius=0.3, not 'max_radius'"),
        ((*PAIR, "--option", "concat.front_end=cnn"), "Unknown fusion in --option 'concat'"),
        ((*PAIR, "--option", "max_radius=9"), "'max_radius' of fusion 'hyperbolic' is 9.0, but must lie between"),
        ((*PAIR, "--option", "front_end=rnn"), "Unknown front_end of fusion 'single' 'rnn'"),
        ((*PAIR, "--fusion", "concat", "--classifier", "mlr"), "--classifier means nothing to 'concat'. Options: "),
        (("train", "--single", "ssl", "--option", "order=x"), "Unknown option of single 'order'"),
        ((*PAIR, "--set", "epoch=3"), "Unknown training option in --set 'epoch'. Did you mean 'epochs'"),
        ((*PAIR, "--set", "epochs=many"), "--set epochs=many: int is expected"),
        ((*PAIR, "--set", "epochs"), "--set must be NAME=VALUE"),
        ((*PAIR, "--class-weights", "equal"), "Unknown class_weights 'equal'. Valid names: balanced, none"),
        ((*PAIR, "--layer", "12"), "Unknown representation of ssl '12'"),
        ((*PAIR, "--layer", "1", "--layer", "2"), "--layer was given as 1 and 2. Name the encoder: --layer wavlm=2"),
        ((*PAIR, "--layer", "vector=1"), "Unknown encoder in --representation 'vector'"),
        (("compare", "--fusions", "concat,mid"), "Unknown fusion 'mid'. Did you mean 'midpoint'"),
        (("tune",), "Give either --pair LEFT RIGHT or --single NAME"),
        (("tune", "--pair", "ssl", "ssl"), "two different encoders"),
        (("tune", "--pair", "ssl", "codec", "--order", "both"), "--order both would tune two heads at once"),
        (("tune", "--pair", "ssl", "codec", "--search", "depth"), "Unknown setting to search for hyperbolic 'depth'"),
        (("tune", "--pair", "ssl", "codec", "--trials", "0"), "--trials must be at least 1, not 0"),
        (("train", "--single", "ssl", "--device", "tpu"), "--device must be auto, cpu, cuda or cuda:N, not 'tpu'"),
    ],
)
def test_mistakes_are_explained(hyfuse: Runner, arguments: tuple[object, ...], message: str) -> None:
    done = hyfuse(*arguments)
    assert done.status == 2, done.out
    assert message in done.err
    assert "Traceback" not in done.err
