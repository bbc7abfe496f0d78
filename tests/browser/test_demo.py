"""The demo page in a real browser, with an uploaded recording; skipped with a reason where there is none."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import soundfile

from tests.browser.chromium import browser, missing, show_as
from tests.deployment.project import LEFT, RIGHT, _project

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

GRADIO = "" if importlib.util.find_spec("gradio") else "gradio is not installed; install it with `pip install gradio`"
pytestmark = pytest.mark.skipif(bool(missing() or GRADIO), reason=missing() or GRADIO or "everything is there")

ANSWERED = "#answer .hf-answer, #answer .hf.error"


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    from pipelines.deployment.demo_page import serve
    from pipelines.deployment.predict import load_model

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with serve(load_model(_project().model()), port=port) as found:
        assert found.startswith(f"http://127.0.0.1:{port}")
        uploads = Path(os.environ["GRADIO_TEMP_DIR"])
        assert uploads.is_dir()
        yield found
    assert not uploads.exists()  # nobody's voice is left behind


@pytest.fixture(scope="module")
def driver(address: str) -> Iterator[Chrome]:
    with browser() as started:
        show_as(started, width=1280, height=1000)
        started.get("about:blank")
        started.get_log("performance")
        started.get(address)
        yield started
        events = [json.loads(entry["message"])["message"] for entry in started.get_log("performance")]
        asked = {
            event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"
        }
        assert any(url.startswith(address) for url in asked)
        assert [url for url in asked if not url.startswith((address, "data:", "blob:", "about:"))] == []
        errors = [entry for entry in started.get_log("browser") if entry["level"] == "SEVERE"]
        assert errors == []


def _wait(driver: Chrome, selector: str) -> str:
    from selenium.webdriver.support.wait import WebDriverWait

    wait = WebDriverWait(driver, 30, poll_frequency=0.05)
    return str(wait.until(lambda page: page.find_elements("css selector", selector))[0].text)


def _upload(driver: Chrome, path: Path) -> None:
    """Upload a recording in place of the one before, and have it judged."""
    clear = driver.find_elements("css selector", "#recording button[aria-label='Clear']")
    if clear:
        driver.execute_script("arguments[0].click()", clear[0])
    _wait(driver, "#recording input[type=file]")
    driver.find_element("css selector", "#recording input[type=file]").send_keys(str(path))
    _wait(driver, "#recording .component-wrapper, #recording audio, #recording #waveform")
    driver.execute_script("document.querySelectorAll('#answer .hf').forEach(e => e.remove())")
    driver.find_element("css selector", "#recognise").click()


def test_without_a_recording_it_says_what_to_do(driver: Chrome) -> None:
    _wait(driver, "#recognise")
    driver.find_element("css selector", "#recognise").click()
    assert "If there is no microphone, or the browser refuses, upload a file." in _wait(driver, "#answer .hf.error")


def test_random_weights_are_said_at_the_top(driver: Chrome) -> None:
    assert _wait(driver, "#about .warn").startswith(f"RANDOM weights: {LEFT}, {RIGHT}.")


def test_an_uploaded_recording_is_judged_as_predict_does(driver: Chrome, tmp_path: Path) -> None:
    from pipelines.deployment.predict import load_model

    path = _project().data / "s0_anger_0.wav"
    _upload(driver, path)
    answer = _wait(driver, "#answer .hf-answer")
    (found,) = load_model(_project().model()).predict([path])
    assert found.label in answer
    assert f"{100 * max(found.scores.values()):.1f} %" in answer
    assert "In the Poincaré disk" in _wait(driver, "#map .hf-map")
    assert "Without" in _wait(driver, "#worth .hf-worth")
    assert "anger" in _wait(driver, "#time .hf-time")
    boxes = driver.execute_script(
        "return ['#time svg', '#map svg'].map(s => document.querySelector(s).getBoundingClientRect())"
        ".map(box => [box.width, box.height])"
    )
    assert all(width > 250 and height > 80 for width, height in boxes)


def test_silence_and_a_click_are_explained(driver: Chrome, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "nothing.wav", np.zeros(16000), 16000)
    _upload(driver, tmp_path / "nothing.wav")
    assert "nothing.wav is silent" in _wait(driver, "#answer .hf.error")
    assert driver.find_elements("css selector", "#map .hf-map") == []
    soundfile.write(tmp_path / "click.wav", np.full(1600, 0.3), 16000)
    _upload(driver, tmp_path / "click.wav")
    assert "too short" in _wait(driver, "#answer .hf.error")


def test_a_phone_scrolls_down_only(driver: Chrome) -> None:
    show_as(driver, width=390, height=800, phone=True)
    try:
        assert driver.execute_script("return document.documentElement.scrollWidth") <= 390
    finally:
        show_as(driver, width=1280, height=1000)
