"""The pages of studies, and of runs on dimensions, in a real browser; skipped with a reason where there is none."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pipelines.reports.page import write_page
from pipelines.reports.run_data import read_run_data
from pipelines.reports.study_page import write_study_page
from tests.browser.chromium import browser, missing, open_report, show_as
from tests.reports.fake_run import HOSTILE, make_run
from tests.reports.fake_study import layers_outcome, noise_outcome

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing() or "everything is there")

PHONE = {"width": 360, "height": 740, "phone": True}


@pytest.fixture(scope="module")
def driver() -> Iterator[Chrome]:
    with browser() as started:
        yield started


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    outcomes = {
        "noise": noise_outcome(warnings=("RANDOM weights: byols.",)),
        "layers": layers_outcome(),
        "hostile": noise_outcome(name=HOSTILE[0], corpus=HOSTILE[1], warnings=HOSTILE),
    }
    for name, outcome in outcomes.items():
        write_study_page(outcome, folder / f"{name}.html", "run")
    write_page(read_run_data(make_run(folder / "run", dimensions=("arousal", "valence"))), folder / "values.html")
    return {name: folder / f"{name}.html" for name in (*outcomes, "values")}


@pytest.fixture
def opened(driver: Chrome, pages: dict[str, Path]) -> Any:
    """Opens a page; afterwards, that nothing was written to the console and nothing was asked of a network."""
    from selenium.webdriver.support.wait import WebDriverWait

    driver.get_log("browser")
    driver.get_log("performance")

    def visit(name: str, **options: Any) -> Chrome:
        show_as(driver, **options)
        if name == "values":
            open_report(driver, pages[name])
            return driver
        driver.get("about:blank")
        driver.get(pages[name].as_uri())
        ready = "const h = document.querySelector('.needs-script'); return document.readyState === 'complete' && h && !h.hidden"
        WebDriverWait(driver, 20, poll_frequency=0.05).until(lambda page: page.execute_script(ready))
        return driver

    yield visit
    assert driver.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    asked = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    assert [url for url in asked if not url.startswith(("file:", "data:", "about:"))] == []


def _texts(driver: Chrome, column: int) -> list[str]:
    return list(
        driver.execute_script(
            "return [...document.querySelector('table.sortable').tBodies[0].rows]"
            ".map(row => (row.cells[arguments[0]].querySelector('.value') || row.cells[arguments[0]]).textContent.trim())",
            column,
        )
    )


def test_a_column_of_numbers_sorts_down_up_and_back(opened: Any) -> None:
    driver = opened("noise")
    before = _texts(driver, 0)
    header = driver.find_element("css selector", 'table.sortable button[data-column="1"]')
    header.click()
    down = _texts(driver, 1)
    assert down == ["70.1", "62.4", "53.4", "–"]  # what there is not stands below
    assert header.find_element("xpath", "..").get_attribute("aria-sort") == "descending"
    header.click()
    assert _texts(driver, 1) == ["53.4", "62.4", "70.1", "–"]
    header.click()
    assert _texts(driver, 0) == before
    assert header.find_element("xpath", "..").get_attribute("aria-sort") is None
    driver.find_element("css selector", 'table.sortable button[data-column="0"]').click()
    assert _texts(driver, 0) == ["byols", "byols+soundstream-lyra concat", "minilm", "soundstream-lyra"]


def test_figures_are_drawn_and_named(opened: Any) -> None:
    driver = opened("layers")
    figures = driver.find_elements("css selector", "#figures figure svg")
    assert len(figures) == 3
    sizes = driver.execute_script(
        "return [...document.querySelectorAll('#figures figure svg')].map(f => f.getBoundingClientRect())"
        ".map(box => [box.width, box.height])"
    )
    assert all(width > 200 and height > 80 for width, height in sizes)
    assert [figure.get_attribute("role") for figure in figures] == ["img"] * 3
    pictures = driver.find_elements("css selector", "#figures svg image")  # the colours beside the heat maps
    assert len(pictures) == 2


@pytest.mark.parametrize("name", ["noise", "layers", "hostile", "values"])
def test_a_phone_scrolls_down_only(opened: Any, name: str) -> None:
    driver = opened(name, **PHONE)
    assert driver.execute_script("return document.documentElement.scrollWidth") == 360
    beyond = driver.execute_script(
        "return [...document.body.querySelectorAll('*')].filter(e => !e.closest('.scroll, svg, #tip, .skip, select')"
        " && e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 80))"
    )
    assert beyond == []


def test_hostile_names_do_nothing(opened: Any) -> None:
    driver = opened("hostile")
    for header in driver.find_elements("css selector", "table.sortable thead button"):
        header.click()
    assert driver.find_elements("css selector", "img") == []
    assert len(driver.find_elements("css selector", "script")) == 1
    # An alert would have to be dismissed before anything else answers.
    assert driver.execute_script("return document.title") == "Noise: what it costs"


def test_paper_is_white_and_holds_the_tables(opened: Any) -> None:
    driver = opened("noise", dark=True)
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print", "features": []})
    try:
        seen = driver.execute_script(
            "const shown = (s) => document.querySelector(s).checkVisibility();"
            "return [getComputedStyle(document.body).backgroundColor, shown('nav'), shown('table.sortable'), shown('#figures svg')]"
        )
        assert seen == ["rgb(255, 255, 255)", False, True, True]
        pdf = base64.b64decode(driver.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})["data"])
        assert pdf.startswith(b"%PDF")
    finally:
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": []})


def test_without_scripts_the_tables_and_figures_are_still_there(opened: Any) -> None:
    driver = opened("noise")
    driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        driver.refresh()
        assert len(driver.find_elements("css selector", "table.sortable tbody tr")) == 4
        assert not driver.find_element("css selector", ".needs-script").is_displayed()
    finally:
        driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


# ------------------------------------------------------------------------------------------------ a run on dimensions


def test_the_table_shows_a_dimension_of_ones_choice(opened: Any) -> None:
    from selenium.webdriver.support.select import Select

    driver = opened("values")
    read = "return document.querySelector('#heat button.cell .value').textContent"
    mean = driver.execute_script(read)
    assert len(mean.rstrip("†↑↓‡")) == len("0.123")
    select = Select(driver.find_element("id", "metric"))
    assert [option.text for option in select.options][:3] == [
        "CCC, mean over the dimensions", "CCC of arousal", "CCC of valence",
    ]  # fmt: skip
    select.select_by_visible_text("CCC of valence")
    assert driver.execute_script(read) != mean
    assert driver.find_element("id", "heat-caption").text.startswith("CCC of valence [95 % interval]")


def test_true_and_predicted_values_are_drawn(opened: Any) -> None:
    from selenium.webdriver.support.select import Select

    driver = opened("values")
    assert len(driver.find_elements("css selector", "#cell-agreement circle")) == 54
    before = driver.find_element("css selector", "#cell-agreement circle").get_attribute("cx")
    Select(driver.find_element("id", "dimension-choice")).select_by_visible_text("valence")
    assert driver.find_element("css selector", "#cell-agreement circle").get_attribute("cx") != before
    assert (
        driver.find_element("css selector", "#cell-agreement svg")
        .get_attribute("aria-label")
        .endswith("over true valence")
    )
    assert len(driver.find_elements("css selector", "#cell-dimensions tr")) == 2
    assert len(driver.find_elements("css selector", "#cell-speakers tr")) == 6
    assert "%" not in driver.find_element("id", "cell-speakers").text
    assert driver.find_elements("id", "cell-confusion") == []
