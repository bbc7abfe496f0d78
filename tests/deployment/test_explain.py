"""What is said of one recording, and how it is drawn."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
import socket
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import soundfile

from pipelines.deployment.demo_drawings import about_html, answer_html, error_html, map_html, time_html, worth_html
from pipelines.deployment.demo_page import check_gradio, check_port
from pipelines.deployment.explain import Explanation, explain
from pipelines.deployment.model_folder import write_model
from pipelines.deployment.predict import Model, load_model
from pipelines.errors import AudioError, ConfigError, InstallationError
from tests.cli.conftest import Runner, hyfuse
from tests.deployment.project import LEFT, RIGHT, TEXT, Project, project

__all__ = ["hyfuse", "project"]

DRAWINGS = (answer_html, time_html, map_html, worth_html)


@pytest.fixture
def model(project: Project) -> Model:
    return load_model(project.model())


def _texts(html: str) -> str:
    """What a reader sees; the piece must be well formed."""
    root = ElementTree.fromstring(html.replace("&nbsp;", " "))
    return " ".join("".join(root.itertext()).split())


def _explained(model: Model, path: Path, **options: object) -> Explanation:
    return explain(model, path, segment_s=0.3, **options)  # type: ignore[arg-type]


def test_the_whole_and_its_parts_are_predictions(project: Project, model: Model) -> None:
    path = project.data / "s0_anger_0.wav"
    found = _explained(model, path)
    (whole,) = model.predict([path])
    np.testing.assert_array_equal(found.outputs, np.float32(list(whole.scores.values())))
    assert found.label == whole.label
    assert list(found.parts) == list(model.predict_segments(path, segment_s=0.3, step_s=0.15))
    assert found.duration_s == whole.end_s


def test_worth_is_what_is_lost(project: Project, model: Model) -> None:
    found = _explained(model, project.data / "s0_anger_0.wav")
    inside = model.look_inside(project.data / "s0_anger_0.wav")
    best = int(found.outputs.argmax())
    assert [worth.encoder for worth in found.worths] == [LEFT, RIGHT]
    assert inside.without_right is not None
    for worth, without in zip(found.worths, (inside.without_left, inside.without_right), strict=True):
        assert worth.change == pytest.approx(float(found.outputs[best] - without[best]))


@pytest.mark.parametrize(
    ("changes", "driver"),
    [((0.5, 0.1), LEFT), ((0.1, 0.5), RIGHT), ((0.3, 0.29), ""), ((-0.2, 0.01), ""), ((-0.2, 0.1), RIGHT)],
)
def test_who_drove_the_decision(changes: tuple[float, float], driver: str) -> None:
    from pipelines.deployment.explain import Worth, _driver

    nothing = np.zeros(3, np.float32)
    worths = [Worth(name, nothing, change) for name, change in zip((LEFT, RIGHT), changes, strict=True)]
    assert _driver(worths, True) == driver
    assert _driver(worths[:1], True) == ""


def test_recordings_that_cannot_be_explained(model: Model, tmp_path: Path) -> None:
    noise = 0.1 * np.random.default_rng(0).standard_normal(8000 * 301)
    for name, samples, message in (
        ("short.wav", noise[:1600], r"lasts 0\.20 s, which is too short: speak for 0\.3 s or longer"),
        ("long.wav", noise, r"lasts 5 minutes.*hyfuse predict MODEL FILE --segment 2"),
        ("silent.wav", np.zeros(8000), "is silent"),
    ):
        soundfile.write(tmp_path / name, samples, 8000)
        with pytest.raises(AudioError, match=message):
            explain(model, tmp_path / name)


def test_drawings_of_emotions(project: Project, model: Model) -> None:
    found = _explained(model, project.data / "s0_anger_0.wav")
    answer, over_time, space, worth = (_texts(draw(found, model.folder)) for draw in DRAWINGS)
    assert f"{100 * found.outputs.max():.1f} %" in answer
    assert "mean of 2 heads" in answer
    assert f"{len(found.parts)} parts of 0.3 s" in over_time
    assert len(re.findall("<rect ", time_html(found, model.folder))) == 3 * len(found.parts)
    assert f"√c·|p| = {np.linalg.norm(found.point):.2f}" in space
    assert len(re.findall("<circle ", map_html(found, model.folder))) == 4 + 36 + 2
    assert f"{100 * found.worths[0].change:+.1f} points" in worth
    assert "replaced by its mean over the training utterances" in worth


def test_the_point_is_drawn_where_it_is(project: Project, model: Model) -> None:
    found = dataclasses.replace(_explained(model, project.data / "s0_anger_0.wav"), point=np.array([0.5, -0.25]))
    (here,) = re.findall(r'<circle class="here" cx="([\d.]+)" cy="([\d.]+)"', map_html(found, model.folder))
    assert [float(value) for value in here] == [200 + 0.5 * 190, 200 + 0.25 * 190]


def test_drawings_of_other_models(project: Project, tmp_path: Path) -> None:
    path = project.data / "s0_anger_0.wav"
    single = load_model(project.model(LEFT))
    found = _explained(single, path)
    assert f"The model has one representation, {LEFT}." in _texts(worth_html(found, single.folder))
    assert "has no hyperbolic space" in _texts(map_html(found, single.folder))
    run = project.run("dimensions", "train", "--pair", LEFT, RIGHT, "--fusion", "gated", "--target", "dimensions")
    write_model(project.exported(run, f"{LEFT}+{RIGHT} gated"), tmp_path / "values", "card")
    values = load_model(tmp_path / "values")
    found = _explained(values, path)
    told = [_texts(draw(found, values.folder)) for draw in DRAWINGS]
    assert f"{found.outputs[0]:.2f}" in told[0]
    assert "standard deviations" in told[3]
    assert found.label == ""
    run = project.run("text", "train", "--pair", TEXT, RIGHT, "--fusion", "concat", "--pool", "mean")
    write_model(project.exported(run, f"{TEXT}+{RIGHT} concat"), tmp_path / "text", "card")
    text = load_model(tmp_path / "text")
    found = _explained(text, path, transcript="No!")
    assert "judges whole recordings" in _texts(time_html(found, text.folder))
    with pytest.raises(AudioError, match="has no transcript"):
        _explained(text, path, transcript="")


def test_parts_that_failed_are_drawn_empty(project: Project, model: Model, tmp_path: Path) -> None:
    noise = 0.1 * np.random.default_rng(0).standard_normal(8000)
    soundfile.write(tmp_path / "a.wav", np.concatenate([noise, np.zeros(16000), noise]), 16000)
    found = _explained(model, tmp_path / "a.wav")
    assert any(part.failure for part in found.parts)
    assert "Dashed: silent" in _texts(time_html(found, model.folder))


def test_what_must_not_be_overlooked(project: Project, model: Model) -> None:
    assert f"RANDOM weights: {LEFT}, {RIGHT}" in about_html(model.folder)
    assert "random weights)" in about_html(model.folder)


def test_names_are_text(project: Project, model: Model) -> None:
    nasty = "<img src=x onerror=alert(1)>"
    folder = dataclasses.replace(model.folder, name=nasty, outputs=(nasty, "b", "c"), warnings=(f"RANDOM {nasty}",))
    found = dataclasses.replace(_explained(model, project.data / "s0_anger_0.wav"), label=nasty, driver=nasty)
    parts = tuple(
        dataclasses.replace(part, scores={nasty: 0.2, "b": 0.3, "c": 0.5}, label=nasty) for part in found.parts
    )
    found = dataclasses.replace(found, parts=parts)
    pieces = [draw(found, folder) for draw in DRAWINGS] + [about_html(folder), error_html(nasty)]
    assert not any("<img" in piece for piece in pieces)


def test_a_port_in_use(hyfuse: Runner, project: Project) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"Port {port} of 127\.0\.0\.1 cannot be used.*`--port {port + 1}`"):
            check_port(port)
        done = hyfuse("demo", project.model(), "--port", port)
        assert done.status == 2
        assert "Name another one with" in done.err
    check_port(port)


def test_without_gradio(hyfuse: Runner, project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "gradio" else real(name, *rest)
    )
    with pytest.raises(InstallationError, match=r"pip install 'hyfuse\[demo\]'"):
        check_gradio()
    done = hyfuse("demo", project.model())
    assert done.status == 2
    assert "pip install 'hyfuse[demo]'" in done.err
