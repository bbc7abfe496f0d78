"""Photograph the demo page in a headless Chromium, into ``docs/screenshots/demo-*.png``.

Those in the repository are of Emo-DB with the real weights of BYOL-S and SoundStream-Lyra, and one of its recordings:

    hyfuse train --pair byols soundstream-lyra --corpus emodb --run emodb
    hyfuse export runs/emodb --pair byols soundstream-lyra --out models/emodb
    python docs/make_demo_screenshots.py models/emodb DIR/wav/03a02Ta.wav --weights-dir DIR

Needs Debian's ``chromium`` and ``chromium-driver``, ``selenium`` and ``hyfuse[demo]``. Every picture stays below 300 KB.
"""

from __future__ import annotations

import argparse
import io
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from pipelines.deployment.demo_page import serve  # noqa: E402
from pipelines.deployment.predict import load_model  # noqa: E402
from tests.browser.chromium import browser, missing, show_as  # noqa: E402

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

FOLDER = ROOT / "docs" / "screenshots"
LIMIT = 300_000
SHOTS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("demo-answer", {"width": 1180, "height": 900}),
    ("demo-dark", {"width": 1180, "height": 900, "dark": True}),
    ("demo-phone", {"width": 390, "height": 844, "phone": True}),
)


def judged(driver: Chrome, address: str, recording: Path, **options: Any) -> None:
    """Open the page, upload a recording and wait for what is said of it."""
    from selenium.webdriver.support.wait import WebDriverWait

    wait = WebDriverWait(driver, 60, poll_frequency=0.1)

    def there(selector: str) -> Any:
        return wait.until(lambda page: page.find_elements("css selector", selector))[0]

    show_as(driver, **options)
    driver.get("about:blank")
    driver.get(address)
    there("#recording input[type=file]").send_keys(str(recording.resolve()))
    there("#recording .component-wrapper, #recording audio")
    time.sleep(1.5)  # the wave is drawn, with no sign of its end
    there("#recognise").click()
    there("#worth .hf-worth")
    time.sleep(0.5)  # the border that tells of work fades
    driver.execute_script("document.activeElement.blur(); scrollTo(0, 0)")


def small(picture: bytes) -> bytes:
    """The same picture without what the browser has added, packed better; its colours are as they are."""
    from PIL import Image

    content = io.BytesIO()
    Image.open(io.BytesIO(picture)).convert("RGB").save(content, "PNG", optimize=True)
    return content.getvalue()


def main() -> None:
    """Make all pictures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("model", type=Path, help="folder of hyfuse export")
    parser.add_argument("recording", type=Path)
    parser.add_argument("--weights-dir", type=Path)
    parser.add_argument("--port", type=int, default=7899)
    parser.add_argument("--out", type=Path, default=FOLDER)
    given = parser.parse_args()
    if missing():
        sys.exit(missing())
    given.out.mkdir(parents=True, exist_ok=True)
    with (
        serve(load_model(given.model, weights_dir=given.weights_dir), port=given.port) as address,
        browser() as driver,
    ):
        for name, options in SHOTS:
            judged(driver, address, given.recording, **options)
            height = driver.execute_script("return document.documentElement.scrollHeight")
            show_as(driver, **{**options, "height": height})
            time.sleep(0.3)
            picture = small(driver.get_screenshot_as_png())
            if len(picture) > LIMIT:
                sys.exit(f"{name} has {len(picture)} bytes, more than {LIMIT}.")
            (given.out / f"{name}.png").write_bytes(picture)
            print(f"{given.out / name}.png: {len(picture) / 1000:.0f} kB")


if __name__ == "__main__":
    main()
