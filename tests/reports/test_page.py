from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import recall_score

from pipelines.errors import RunError
from pipelines.reports.page import HEAT_STEPS, build_page, contrast, heat_colours, write_page
from pipelines.reports.run_data import RunData, read_run_data
from tests.reports.fake_run import HOSTILE, make_run
from tests.reports.parsed import Page


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> RunData:
    return read_run_data(
        make_run(tmp_path_factory.mktemp("runs") / "toy", rights=("encodec", "dac"), ignored=("hyperbolic",))
    )


def test_the_page_is_well_formed_and_asks_for_nothing(data: RunData) -> None:
    html = build_page(data)
    page = Page(html)
    assert page.wrong == []
    assert page.inside == []
    for tag, attributes in page.elements:
        for name in ("src", "href", "action", "data", "poster", "srcset"):
            address = attributes.get(name) or ""
            assert address.startswith("#") or address in ("", "data:,"), (tag, name, address)
    assert "url(" not in re.sub(r"url\(#", "", html)
    assert "@import" not in html
    (policy,) = [a["content"] for _, a in page.elements if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert "unsafe-inline" not in policy.partition("script-src")[2]


def test_the_same_run_gives_the_same_bytes(data: RunData, tmp_path: Path) -> None:
    write_page(data, tmp_path / "a.html")
    assert (tmp_path / "a.html").read_text(encoding="utf-8") == build_page(read_run_data(data.run.path))


def test_every_cell_stands_in_the_table_with_its_interval(data: RunData) -> None:
    page = Page(build_page(data))
    labels = [attributes["aria-label"] or "" for tag, attributes in page.elements if "data-cell" in attributes]
    # Per pair: two singles, two by logistic regression, two fusions and logistic regression.
    assert len(labels) == 4 * (4 + 3)
    score = next(score for score in data.scores if score.cell == "wavlm+encodec concat")
    interval = f"[{100 * score.uar_interval.low:.1f}, {100 * score.uar_interval.high:.1f}]"
    assert f"wavlm+encodec concat: UAR {100 * score.uar:.1f}" in " ".join(labels)
    assert interval in page.text
    assert data.grid.columns == (
        "left alone", "right alone", "left alone, logistic", "right alone, logistic", "concat", "hyperbolic", "logistic",
    )  # fmt: skip
    assert [line.title for line in data.grid.rows] == [
        "wavlm + encodec", "wavlm + dac", "xvector + encodec", "xvector + dac",
    ]  # fmt: skip
    assert data.grid.corner == "Pair"


def test_of_two_pairs_the_heads_are_the_rows(tmp_path: Path) -> None:
    data = read_run_data(make_run(tmp_path / "run"))
    assert data.grid.corner == "Head"
    assert data.grid.columns == ("wavlm + encodec", "xvector + encodec")
    assert [line.title for line in data.grid.rows][:3] == ["left alone", "right alone", "left alone, logistic"]
    cells = {line.title: [data.titles[index] for index in line.cells if index is not None] for line in data.grid.rows}
    assert cells["left alone"] == ["wavlm", "xvector"]
    assert cells["right alone"] == ["encodec", "encodec"]
    assert cells["concat"] == ["wavlm+encodec concat", "xvector+encodec concat"]


def test_what_the_script_gets_is_what_the_predictions_say(data: RunData) -> None:
    """Recall, confusion and speakers against scikit-learn on the predictions themselves."""
    cells = json.loads(Page(build_page(data)).data)["cells"]
    table = pd.read_parquet(data.run.path / "predictions.parquet")
    cell = next(cell for cell in cells if cell["title"] == "wavlm+encodec concat")
    mine = table[table["cell"] == cell["title"]]
    classes = list(data.classes)
    expected = [
        recall_score(part["label"], part["prediction"], labels=classes, average=None)
        for _, part in mine.groupby("seed")
    ]
    np.testing.assert_allclose(cell["recalls"], np.mean(expected, axis=0), atol=1e-5)
    confusion = pd.crosstab(mine["label"], mine["prediction"]).reindex(index=classes, columns=classes) / 2
    np.testing.assert_allclose(cell["confusion"], confusion.to_numpy(), atol=0.01)
    assert cell["supports"] == [18.0, 18.0, 18.0]
    by_speaker = {name: value for name, value, _ in cell["speakers"]}
    for speaker, part in mine.groupby("speaker"):
        recalls = [recall_score(p["label"], p["prediction"], average="macro") for _, p in part.groupby("seed")]
        assert by_speaker[speaker] == pytest.approx(np.mean(recalls), abs=1e-3)
    for low_high, recall in zip(cell["recall_intervals"], cell["recalls"], strict=True):
        assert low_high[0] <= recall <= low_high[1]


def test_a_fusion_that_ignores_an_input_says_so(data: RunData) -> None:
    cell = next(cell for cell in data.cells if cell.title == "wavlm+encodec hyperbolic")
    assert "†" in cell.marks
    assert any("does not depend on the right input" in remark for remark in cell.remarks)
    payload = json.loads(Page(build_page(data)).data)["cells"]
    shown = next(entry for entry in payload if entry["title"] == cell.title)
    assert shown["values"]["right_drop"] == 0
    assert shown["values"]["left_drop"] > 0.1


def test_learning_curves_are_means_and_ranges_of_heads(data: RunData) -> None:
    cell = next(cell for cell in data.cells if cell.title == "wavlm+encodec concat")
    assert list(cell.curves) == ["train_loss"]  # the validation loss was never measured
    np.testing.assert_allclose(cell.curves["train_loss"].mean, [2, 1, 2 / 3, 0.5])
    rung = next(cell for cell in data.cells if cell.title == "wavlm+encodec logistic")
    assert rung.curves == {}


def test_layer_weights_are_shown(tmp_path: Path) -> None:
    data = read_run_data(make_run(tmp_path / "run", layers=("layer_00", "layer_01")))
    cell = next(cell for cell in data.cells if cell.title == "wavlm+encodec concat")
    assert cell.layer_weights == {"left": {"layer_00": 0.5, "layer_01": 0.5}}
    assert '"layers":[["left",[["layer_00",0.5],["layer_01",0.5]]]]' in build_page(data)


def test_warnings_stand_above_everything(tmp_path: Path) -> None:
    data = read_run_data(make_run(tmp_path / "run", random=("encodec",), speaker_independent=False))
    html = build_page(data)
    head = html[: html.index("<main>")]
    assert "RANDOM weights: encodec" in head
    assert "speaker-dependent" in head
    assert head.count('class="warning"') == 2


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    run = make_run(
        tmp_path / "run", corpus=HOSTILE[0], lefts=HOSTILE[:4], rights=HOSTILE[4:], classes=(*HOSTILE[:3], "x"),
        speakers=HOSTILE[:6], layers=("<b>0</b>", "1"), per_speaker=8,
    )  # fmt: skip
    data = read_run_data(run)
    html = build_page(data)
    page = Page(html)
    assert page.wrong == []
    tags = [tag for tag, _ in page.elements]
    assert tags.count("script") == 2
    assert not {"img", "b0"} & set(tags)
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    for name in HOSTILE:
        assert " ".join(name.split()) in page.text
    assert json.loads(page.data)["classes"] == [*HOSTILE[:3], "x"]
    assert "<script>alert" not in html
    assert "</script><img" not in html


def test_a_backtick_in_a_name_does_not_make_code_of_the_rest(tmp_path: Path) -> None:
    data = read_run_data(make_run(tmp_path / "run", lefts=("a`<i>", "b"), random=("a`<i>",)))
    html = build_page(data)
    assert "<i>" not in html[: html.index('<p class="key"')]
    assert "a`&lt;i&gt;" in html


def test_singles_alone_make_a_page_too(tmp_path: Path) -> None:
    data = read_run_data(make_run(tmp_path / "run", rights=(), fusions=()))
    assert data.grid.columns == ("alone", "logistic")
    page = Page(build_page(data))
    assert page.wrong == []
    assert "left_drop" not in [kind["key"] for kind in json.loads(page.data)["metrics"]]


def test_one_speaker_has_no_intervals_and_no_number_is_nan(tmp_path: Path) -> None:
    data = read_run_data(make_run(tmp_path / "run", speakers=("only",), folds=1, per_speaker=30))
    html = build_page(data)
    payload = json.loads(Page(html).data)
    assert payload["cells"][0]["intervals"]["uar"] == [None, None]
    assert not re.findall(r"\bnan\b", html[html.index("<main>") : html.index("<script")], re.IGNORECASE)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_numbers_on_the_heat_map_can_be_read(theme: str) -> None:
    steps = heat_colours(theme)
    assert len(steps) == HEAT_STEPS
    assert min(contrast(background, text) for background, text in steps) >= 4.5
    bright = [contrast(background, "#000000") for background, _ in steps]
    assert bright == sorted(bright, reverse=theme == "light")  # order survives in grey


def test_contrast_is_that_of_the_standard() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)  # WebAIM's well-known failure


def test_a_folder_that_is_no_finished_run_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"There is no run folder .*gone.*hyfuse compare"):
        read_run_data(tmp_path / "gone")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError, match=r"is not a run"):
        read_run_data(tmp_path / "empty")
    run = make_run(tmp_path / "run")
    (run / "predictions.parquet").rename(run / "aside")
    with pytest.raises(RunError, match=r"not finished: predictions.parquet.*Run the same `hyfuse compare`"):
        read_run_data(run)
    (run / "predictions.parquet").write_bytes((run / "aside").read_bytes()[:2000])
    with pytest.raises(RunError, match=r"predictions.parquet cannot be read.*Run the same"):
        read_run_data(run)
    (run / "aside").rename(run / "predictions.parquet")
    (run / "config.json").write_text("{")
    with pytest.raises(RunError, match=r"config.json.*cannot be read.*Run the same"):
        read_run_data(run)


# ------------------------------------------------------------------------------------------------ dimensions


@pytest.fixture(scope="module")
def values(tmp_path_factory: pytest.TempPathFactory) -> RunData:
    folder = tmp_path_factory.mktemp("runs") / "values"
    return read_run_data(make_run(folder, dimensions=("arousal", "valence"), ignored=("hyperbolic",), per_speaker=60))


def test_a_run_on_dimensions_has_a_page_without_emotions(values: RunData) -> None:
    html = build_page(values)
    page = Page(html)
    assert page.wrong == []
    assert "6 speakers, arousal, valence; speaker-3fold" in page.text
    assert "cell-confusion" not in {attributes.get("id") for _, attributes in page.elements}
    assert "UAR" not in page.text
    payload = json.loads(page.data)
    assert [kind["key"] for kind in payload["metrics"]][:3] == ["ccc", "ccc_arousal", "ccc_valence"]
    assert payload["metrics"][1]["text"] == "CCC of arousal"
    assert page.text.count("The same for") == 2  # the answers of each dimension alone
    assert "ridge regression" in page.text


def test_values_are_those_of_the_predictions(values: RunData) -> None:
    """CCC, its parts by speaker, and the sample of true and predicted values, against the predictions themselves."""
    payload = json.loads(Page(build_page(values)).data)
    table = pd.read_parquet(values.run.path / "predictions.parquet")
    cell = next(cell for cell in payload["cells"] if cell["title"] == "wavlm+encodec concat")
    mine = table[table["cell"] == cell["title"]]

    def ccc(part: pd.DataFrame, name: str) -> float:
        x, y = part[f"predicted_{name}"].astype(float), part[f"true_{name}"].astype(float)
        shared = 2 * np.cov(x, y, bias=True)[0, 1]
        return float(shared / (x.var(ddof=0) + y.var(ddof=0) + (x.mean() - y.mean()) ** 2))

    for name in ("arousal", "valence"):
        expected = np.mean([ccc(part, name) for _, part in mine.groupby("seed")])
        assert cell["values"][f"ccc_{name}"] == pytest.approx(expected, abs=1e-4)
    both = np.mean([cell["values"][f"ccc_{name}"] for name in ("arousal", "valence")])
    assert cell["values"]["ccc"] == pytest.approx(both, abs=1e-4)
    by_speaker = {name: value for name, value, _ in cell["speakers"]}
    for speaker, part in mine.groupby("speaker"):
        expected = np.mean([[ccc(p, name) for name in ("arousal", "valence")] for _, p in part.groupby("seed")])
        assert by_speaker[speaker] == pytest.approx(expected, abs=1e-3)
    assert len(payload["sample"]) == len(cell["predicted"][0]) == len(payload["truth"][1]) == 300  # of 360
    means = mine.groupby("utterance_id")[["predicted_valence", "true_valence"]].mean().loc[payload["sample"]]
    np.testing.assert_allclose(cell["predicted"][1], means["predicted_valence"], atol=1e-3)
    np.testing.assert_allclose(payload["truth"][1], means["true_valence"], atol=1e-3)
    assert set(cell["drops"]) == {"arousal", "valence"}


def test_an_ignored_input_is_seen_in_dimensions_too(values: RunData) -> None:
    cell = next(cell for cell in values.cells if cell.title == "wavlm+encodec hyperbolic")
    assert "†" in cell.marks
    assert cell.drops.left_mark == "*"
    assert cell.drops.right_mark == ""
    assert values.group_names == ("low arousal", "middle arousal", "high arousal")
    assert np.bincount(values.groups).tolist() == pytest.approx([120, 120, 120], abs=12)
