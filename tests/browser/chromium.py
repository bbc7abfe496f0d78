"""Debian's Chromium, headless, driven through Selenium; for the tests of this folder and for ``docs/make_screenshots.py``."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

# Without the flags against background traffic the browser asks for hosts at every start; no page of ours needs a network.
_FLAGS = (
    "--headless",
    "--no-sandbox",  # Chromium refuses to run as root otherwise, as in a container
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--force-color-profile=srgb",
)


def missing() -> str:
    """What is not there of what the tests need, as a reason to skip; empty if nothing."""
    try:
        import selenium  # noqa: F401
    except ImportError:
        return "selenium is not installed; install it with `pip install selenium`"
    for program in ("chromium", "chromedriver"):
        if shutil.which(program) is None:
            return f"{program} is not installed; install it with `apt-get install chromium chromium-driver`"
    return ""


@contextmanager
def browser() -> Iterator[Chrome]:
    """A browser of its own, with an empty profile, that keeps what pages write to the console."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    with tempfile.TemporaryDirectory(prefix="hyfuse-chromium-", ignore_cleanup_errors=True) as profile:
        options = webdriver.ChromeOptions()
        options.binary_location = shutil.which("chromium") or "chromium"
        for flag in (*_FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        # The path is given, so that Selenium does not look for a driver in the network.
        driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
        try:
            yield driver
        finally:
            driver.quit()


def show_as(driver: Chrome, *, width: int = 1280, height: int = 900, dark: bool = False, phone: bool = False) -> None:
    """Set the size of the page's window, its colours, and whether it is a phone."""
    driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": phone},
    )
    driver.execute_cdp_cmd(
        "Emulation.setEmulatedMedia",
        {"features": [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]},
    )


def open_report(driver: Chrome, path: Path) -> None:
    """Open a report and wait until its script has done its work.

    From an empty page: opening the page that is open already may return before it was loaded again (seen once in some fifty).
    """
    from selenium.webdriver.support.wait import WebDriverWait

    driver.get("about:blank")
    driver.get(path.as_uri())
    ready = "const cell = document.getElementById('cell'); return document.readyState === 'complete' && cell && !cell.hidden"
    WebDriverWait(driver, 20, poll_frequency=0.05).until(lambda page: page.execute_script(ready))
