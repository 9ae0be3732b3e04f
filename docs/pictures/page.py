"""Makes the README's picture of the page from a running server of the demo models:

    python docs/pictures/page.py http://127.0.0.1:8000

Needs playwright and Chromium. The left half shows panoptic masks, the right one what the model
attended to for one of them.
"""

import argparse
import re
import shutil
from pathlib import Path

from playwright.sync_api import Locator, Page, expect, sync_playwright

OUT = Path(__file__).with_name("page.jpg")
SAMPLE = "triangle.jpg"
TRIANGLE = (0.62, 0.25)  # where the triangle is, as shares of width and height
WIDTH, HEIGHT = 1400, 880


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url", help="address of the server")
    url = parser.parse_args().url
    chromium = shutil.which("chromium") or shutil.which("chrome")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(
            viewport={"width": WIDTH, "height": HEIGHT}, device_scale_factor=1.5
        )
        page.goto(url)
        show(page)
        page.screenshot(path=OUT, type="jpeg", quality=82)
        browser.close()


def show(page: Page) -> None:
    """Two panes of one picture: segments, and the attention of the clicked one."""
    page.click(f'[data-name="{SAMPLE}"]')
    panes = page.locator(".pane")
    choose_segment(page, panes.first)
    page.click("#compare")
    choose_segment(page, panes.nth(1))
    view = panes.nth(1).locator(".view")
    box = view.bounding_box()
    assert box is not None
    view.click(position={"x": TRIANGLE[0] * box["width"], "y": TRIANGLE[1] * box["height"]})
    expect(panes.nth(1).locator(".look")).to_be_visible()
    page.mouse.move(0, 0)
    idle(page)
    expect(page.locator("#batch")).to_have_text(re.compile(r"\d"))  # the strip has counted these


def choose_segment(page: Page, pane: Locator) -> None:
    pane.locator('.tasks input[value="segment"]').check(force=True)
    idle(page)


def idle(page: Page) -> None:
    page.wait_for_timeout(200)
    expect(page.locator(".working")).to_have_count(0)


if __name__ == "__main__":
    main()
