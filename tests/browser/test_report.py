"""The report in a real browser. Where Chromium or Selenium is absent, the tests skip and say what to install."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pipelines.reports.page import write_page
from pipelines.reports.run_data import read_run_data
from tests.browser.chromium import browser, missing, open_report, show_as
from tests.reports.fake_run import HOSTILE, make_run

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
    """Reports of an ordinary run, of one with hostile names everywhere, and of one as big as they get."""
    folder = tmp_path_factory.mktemp("runs")
    runs = {
        "plain": make_run(folder / "plain", rights=("encodec", "dac"), random=("dac",), ignored=("concat",), layers=("layer_00",)),
        "hostile": make_run(
            folder / "hostile", corpus=HOSTILE[0], lefts=HOSTILE[:4], rights=HOSTILE[4:], classes=HOSTILE[:5], speakers=HOSTILE[:6],
            per_speaker=10,
        ),
        "big": make_run(
            folder / "big", lefts=[f"left-{n}" for n in range(4)], rights=[f"right-{n}" for n in range(4)],
            fusions=("concat", "gated", "attention", "bilinear", "hyperbolic", "mobius", "midpoint", "beta-concat"),
            speakers=("a", "b", "c"), per_speaker=6, seeds=5, epochs=50,
        ),
    }  # fmt: skip
    for name, run in runs.items():
        write_page(read_run_data(run), folder / f"{name}.html")
    return {name: folder / f"{name}.html" for name in runs}


@pytest.fixture
def opened(driver: Chrome, pages: dict[str, Path]) -> Any:
    """Opens a page as asked for; afterwards, that nothing was written to the console and nothing was asked of a network."""
    driver.get_log("browser")
    driver.get_log("performance")

    def visit(name: str = "plain", **options: Any) -> Chrome:
        show_as(driver, **options)
        open_report(driver, pages[name])
        return driver

    yield visit
    assert driver.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    asked = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    assert [url for url in asked if not url.startswith(("file:", "data:", "about:"))] == []


def _rows(driver: Chrome) -> list[str]:
    return list(
        driver.execute_script(
            "return [...document.querySelectorAll('#heat tbody tr')].filter(r => !r.hidden).map(r => r.cells[0].textContent)"
        )
    )


def _column(driver: Chrome, number: int) -> list[float]:
    texts = driver.execute_script(
        "return [...document.querySelectorAll('#heat tbody tr')]"
        ".map(r => r.cells[arguments[0]].querySelector('.value').textContent)",
        number,
    )
    return [float(text.rstrip("†↑↓‡*").replace("−", "-").replace("+", "")) for text in texts]


def test_a_column_sorts_down_up_and_back(opened: Any) -> None:
    driver = opened()
    before = _rows(driver)
    assert before == ["wavlm + encodec", "wavlm + dac", "xvector + encodec", "xvector + dac"]
    header = driver.find_element("css selector", '#heat thead button[data-column="5"]')
    header.click()
    values = _column(driver, 6)
    assert values == sorted(values, reverse=True)
    assert header.find_element("xpath", "..").get_attribute("aria-sort") == "descending"
    header.click()
    values = _column(driver, 6)
    assert values == sorted(values)
    header.click()
    assert _rows(driver) == before
    assert header.find_element("xpath", "..").get_attribute("aria-sort") is None
    names = driver.find_element("css selector", '#heat thead button[data-column="-1"]')
    names.click()
    assert _rows(driver) == sorted(before)


def test_a_cell_that_is_pressed_is_shown(opened: Any) -> None:
    driver = opened()
    cell = driver.find_element("css selector", '#heat button[aria-label^="xvector+dac hyperbolic"]')
    cell.click()
    assert cell.get_attribute("aria-pressed") == "true"
    assert driver.find_element("id", "cell-remarks").text.startswith("xvector+dac hyperbolic")
    assert len(driver.find_elements("css selector", "#cell-recalls tr")) == 3
    assert len(driver.find_elements("css selector", "#cell-confusion tbody td")) == 9
    assert len(driver.find_elements("css selector", "#cell-shuffle tr")) == 3
    assert len(driver.find_elements("css selector", "#cell-speakers tr")) == 6
    assert driver.find_element("css selector", "#cell-curve svg").is_displayed()
    rows = driver.execute_script(
        "return [...document.querySelectorAll('#cell-confusion tbody tr')].map(r => [...r.cells].slice(1).map(c => +c.textContent))"
    )
    assert all(98 <= sum(row) <= 102 for row in rows)  # per cent, rounded
    single = driver.find_element("css selector", '#heat button[aria-label^="wavlm:"]')
    single.click()
    assert not driver.find_element("id", "cell-shuffle-block").is_displayed()
    assert driver.find_element("id", "cell-layers-block").is_displayed()


def test_the_list_of_cells_chooses_as_well(opened: Any) -> None:
    from selenium.webdriver.support.select import Select

    driver = opened()
    Select(driver.find_element("id", "cell-choice")).select_by_visible_text("wavlm+dac concat")
    assert driver.find_element("id", "cell-remarks").text.startswith("wavlm+dac concat")
    assert "does not depend on the right input" in driver.find_element("id", "cell-remarks").text
    pressed = driver.find_elements("css selector", '#heat button[aria-pressed="true"]')
    assert [button.get_attribute("aria-label").partition(":")[0] for button in pressed] == ["wavlm+dac concat"]


def test_resting_on_a_cell_shows_interval_and_n(opened: Any) -> None:
    from selenium.webdriver import ActionChains

    driver = opened()
    tip = driver.find_element("id", "tip")
    assert not tip.is_displayed()
    cell = driver.find_element("css selector", '#heat button[aria-label^="xvector+encodec concat"]')
    driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", cell)
    ActionChains(driver).move_to_element(cell).perform()
    assert tip.is_displayed()
    assert "54 utterances, 6 speakers, 3 folds × 2 seeds" in tip.text
    assert cell.find_element("class name", "interval").text in tip.text
    box = driver.execute_script("const r = arguments[0].getBoundingClientRect(); return [r.left, r.right, r.top]", tip)
    assert box[0] >= 0
    assert box[1] <= 1280
    assert box[2] >= 0


def test_the_keyboard_is_enough(opened: Any) -> None:
    from selenium.webdriver import ActionChains, Keys

    driver = opened()
    focus = "return document.activeElement.getAttribute('aria-label')"
    tabbable = driver.find_elements("css selector", '#heat tbody button[tabindex="0"]')
    assert len(tabbable) == 1  # one stop for the whole table
    driver.execute_script("arguments[0].focus()", tabbable[0])

    def press(*keys: str) -> str:
        ActionChains(driver).send_keys(*keys).perform()
        return str(driver.execute_script(focus))

    assert press(Keys.HOME).startswith(("wavlm:", "xvector:"))
    for _ in range(4):
        press(Keys.ARROW_UP)
    assert press(Keys.HOME).startswith("wavlm:")
    assert press(Keys.ARROW_RIGHT).startswith("encodec:")
    assert press(Keys.ARROW_DOWN).startswith("dac:")
    assert press(Keys.END).startswith("wavlm+dac logistic")
    assert driver.find_element("id", "tip").is_displayed()
    assert press(Keys.ENTER).startswith("wavlm+dac logistic")
    assert driver.find_element("id", "cell-remarks").text.startswith("wavlm+dac logistic")
    press(Keys.ESCAPE)
    assert not driver.find_element("id", "tip").is_displayed()


def test_another_metric_paints_the_table_anew(opened: Any) -> None:
    from selenium.webdriver.support.select import Select

    driver = opened()
    before = _column(driver, 6)
    select = Select(driver.find_element("id", "metric"))
    select.select_by_value("right_drop")
    after = _column(driver, 6)
    assert after != before
    assert "right input is shuffled" in driver.find_element("id", "heat-caption").text
    starred = driver.find_element("css selector", "#heat tbody td:nth-child(8) .value").text
    assert starred.endswith("*")  # the cost of a fusion that needs its right input is significant
    ignored = _column(driver, 5)
    assert ignored == [0, 0, 0, 0]  # concat ignores its right input in this run
    singles = driver.execute_script(
        "return document.querySelector('#heat tbody tr').cells[1].querySelector('.value').textContent"
    )
    assert singles == "–"
    select.select_by_value("gain")
    assert any(value < 0 for value in _column(driver, 7)) or any(value > 0 for value in _column(driver, 7))


def test_rows_are_filtered_by_name(opened: Any) -> None:
    driver = opened()
    field = driver.find_element("id", "filter")
    field.send_keys("DAC")
    assert _rows(driver) == ["wavlm + dac", "xvector + dac"]
    field.clear()
    field.send_keys("nothing like it")
    assert _rows(driver) == []


@pytest.mark.parametrize("name", ["plain", "hostile", "big"])
def test_a_phone_scrolls_down_only(opened: Any, name: str) -> None:
    driver = opened(name, **PHONE)
    assert driver.execute_script("return innerWidth") == 360
    assert driver.execute_script("return document.documentElement.scrollWidth") == 360
    beyond = driver.execute_script(
        "return [...document.body.querySelectorAll('*')].filter(e => !e.closest('.scroll, svg, #tip, .skip, select')"
        " && e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 80))"
    )
    assert beyond == []
    small = driver.execute_script(
        "return [...document.querySelectorAll('#heat button.cell')].filter(b => b.getBoundingClientRect().height < 40).length"
    )
    assert small == 0  # a finger needs room


def test_hostile_names_do_nothing(opened: Any) -> None:
    from selenium.webdriver import ActionChains

    driver = opened("hostile")
    for cell in driver.find_elements("css selector", "#heat button.cell")[::9]:
        driver.execute_script("arguments[0].scrollIntoView({block: 'center'}); arguments[0].click()", cell)
        ActionChains(driver).move_to_element(cell).perform()
    assert driver.find_element("css selector", "h1").text.startswith(HOSTILE[0])
    assert driver.find_elements("css selector", "img") == []
    assert len(driver.find_elements("css selector", "script")) == 2
    names = driver.execute_script("return [...document.querySelectorAll('#cell-recalls th')].map(e => e.textContent)")
    assert names == list(HOSTILE[:5])
    # An alert would have to be dismissed before anything else answers.
    assert driver.execute_script("return document.title").startswith(HOSTILE[0])


def test_the_biggest_run_answers_at_once(opened: Any, pages: dict[str, Path]) -> None:
    driver = opened("big")
    assert len(driver.find_elements("css selector", "#heat tbody tr")) == 16
    assert pages["big"].stat().st_size < 3_000_000
    spent_ms = driver.execute_script(
        "const cells = [...document.querySelectorAll('#heat button.cell')], began = performance.now();"
        "for (const cell of cells.slice(0, 20)) cell.click();"
        "document.querySelector('#heat thead button[data-column=\"6\"]').click();"
        "return (performance.now() - began) / 21"
    )
    assert spent_ms < 100


@pytest.mark.parametrize("dark", [False, True])
def test_text_stands_out_from_what_is_behind_it(opened: Any, dark: bool) -> None:
    """Every text of the page against the nearest background that is not transparent (WCAG 2.2 AA: 4.5)."""
    driver = opened(dark=dark)
    low = driver.execute_script(
        """
        const parse = (text) => text.match(/[\\d.]+/g).map(Number);
        const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
          .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
          .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
        const found = [];
        for (const element of document.querySelectorAll("main *, header *, footer *")) {
          const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
          if (!own || element.closest("svg, script, noscript, option") || !element.checkVisibility()) continue;
          let behind = element;
          let colour = [0, 0, 0, 0];
          while (behind && (colour.length === 4 && colour[3] === 0)) {
            colour = parse(getComputedStyle(behind).backgroundColor);
            behind = behind.parentElement;
          }
          const [a, b] = [light(parse(getComputedStyle(element).color)), light(colour)].sort((x, y) => y - x);
          if ((a + 0.05) / (b + 0.05) < 4.5) found.push(element.outerHTML.slice(0, 120));
        }
        return found;
        """
    )
    assert low == []


def test_paper_holds_the_whole_page(opened: Any) -> None:
    """Printed in the dark theme: white paper, no controls, the whole table."""
    import base64

    driver = opened(dark=True)
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print", "features": []})
    try:
        seen = driver.execute_script(
            "const shown = (id) => document.getElementById(id).checkVisibility();"
            "return [getComputedStyle(document.body).backgroundColor, shown('table-controls'), shown('heat'),"
            " shown('cell-confusion')]"
        )
        assert seen == ["rgb(255, 255, 255)", False, True, True]
        pdf = base64.b64decode(driver.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})["data"])
        assert pdf.startswith(b"%PDF")
    finally:
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": []})


def test_without_scripts_the_table_is_still_there(opened: Any) -> None:
    driver = opened()
    driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        driver.refresh()
        assert len(driver.find_elements("css selector", "#heat button.cell")) == 4 * 7
        assert driver.find_element("css selector", "noscript .warning").is_displayed()
        assert not driver.find_element("id", "table-controls").is_displayed()
        assert not driver.find_element("id", "cell").is_displayed()
    finally:
        driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
