"""Make the report of a run and photograph it, in a headless Chromium, into ``docs/screenshots/``.

Those in the repository are of Emo-DB with the real weights of BYOL-S and SoundStream-Lyra:

    hyfuse extract --corpus emodb --data-root DIR --model byols --model soundstream-lyra --weights-dir DIR
    hyfuse compare --corpus emodb --models "byols soundstream-lyra" --fusions all --order both --run emodb-all
    python docs/make_screenshots.py runs/emodb-all

The run of a study is photographed in the same way, its answers and figures as ``study-<name>.png``:

    python docs/make_screenshots.py runs/emodb-noise

Needs Debian's ``chromium`` and ``chromium-driver``, and ``selenium``. Every picture stays below 300 KB: a
report has few colours, and a palette of 256 holds them.
"""

from __future__ import annotations

import argparse
import base64
import io
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from pipelines.locations import as_location  # noqa: E402
from pipelines.reports.page import write_page  # noqa: E402
from pipelines.reports.run_data import read_run_data  # noqa: E402
from pipelines.reports.spaces import read_pictures  # noqa: E402
from pipelines.reports.study_page import write_study_page  # noqa: E402
from pipelines.studies.outcome import OUTCOME_FILE, read_outcome  # noqa: E402
from tests.browser.chromium import browser, missing, open_report, show_as  # noqa: E402

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

FOLDER = ROOT / "docs" / "screenshots"
LIMIT = 300_000

# Name, window, and which sections are in the picture: from the top of the first to the end of the last.
SHOTS: tuple[tuple[str, dict[str, Any], str, str], ...] = (
    ("report-table", {"width": 1100}, "header", "#table"),
    ("report-cell", {"width": 1100}, "#cell", "#cell"),
    ("report-disk", {"width": 1100}, "#disk", "#disk"),
    ("report-spaces", {"width": 1100}, "#spaces", "#spaces"),
    ("report-dark", {"width": 1100, "dark": True}, "header", "#cell"),
    ("report-phone", {"width": 390, "height": 844, "phone": True}, "header", "#table"),
)


def photograph(driver: Chrome, first: str, last: str) -> bytes:
    """PNG of the page from the top of one element to the bottom of another."""
    top, bottom, width = driver.execute_script(
        "const box = (s) => document.querySelector(s).getBoundingClientRect();"
        "return [box(arguments[0]).top + scrollY, box(arguments[1]).bottom + scrollY, innerWidth]",
        first,
        last,
    )
    clip = {"x": 0, "y": max(0, top - 8), "width": width, "height": bottom - top + 16, "scale": 1}
    shot = driver.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True, "clip": clip})
    return base64.b64decode(shot["data"])


def small(png: bytes) -> bytes:
    """The same picture in 256 colours."""
    from PIL import Image

    with Image.open(io.BytesIO(png)) as image:
        content = io.BytesIO()
        image.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(content, format="png", optimize=True)
    return content.getvalue()


def keep(name: str, png: bytes) -> None:
    """Write a picture, unless it is too large for a repository."""
    picture = small(png)
    if len(picture) > LIMIT:
        sys.exit(f"{name}.png would have {len(picture)} bytes; {LIMIT} are allowed.")
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / f"{name}.png").write_bytes(picture)
    print(f"{FOLDER / name}.png, {len(picture) // 1000} KB")


def photograph_study(run: Path) -> None:
    """The answers and figures of a study."""
    outcome = read_outcome(run)
    with tempfile.TemporaryDirectory() as folder, browser() as driver:
        page = Path(folder) / "report.html"
        write_study_page(outcome, page, run.resolve().name)
        show_as(driver, width=1100)
        driver.get(page.as_uri())
        last = "#figures" if outcome.figures else "#tables"
        keep(f"study-{outcome.study}", photograph(driver, "header", last))
        if problems := driver.get_log("browser"):
            sys.exit(f"The page wrote to the console: {problems}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of the run")
    parser.add_argument("--cache-dir", help="where the stores lie now; default: where the run found them")
    arguments = parser.parse_args()
    if reason := missing():
        sys.exit(reason)
    if (arguments.run / OUTCOME_FILE).is_file():
        photograph_study(arguments.run)
        return
    data = read_run_data(arguments.run)
    pictures = read_pictures(data, cache_dir=as_location(arguments.cache_dir) if arguments.cache_dir else None)
    if not pictures.spaces or not pictures.disks:
        sys.exit(f"{pictures.space_note}\n{pictures.disk_note}")
    with tempfile.TemporaryDirectory() as folder, browser() as driver:
        page = Path(folder) / "report.html"
        write_page(data, page, pictures)
        for name, window, first, last in SHOTS:
            show_as(driver, **window)
            open_report(driver, page)
            keep(name, photograph(driver, first, last))
        if problems := driver.get_log("browser"):
            sys.exit(f"The page wrote to the console: {problems}")


if __name__ == "__main__":
    main()
