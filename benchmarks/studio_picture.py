"""A picture of the studio at work, for the docs: a real Chromium opens it, paints, generates, and is photographed.

    python -m benchmarks.studio_picture --out=docs/images/studio.png

Needs Playwright and a Chromium (`launch/test.sh` installs both); its path in the variable CHROMIUM if it is not on
PATH. Prints how long the request took in the browser, the first (which compiles) and again.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from typing import Any

from absl import app, flags

FLAGS = flags.FLAGS
CASCADE = flags.DEFINE_string("cascade", "scenes", "Bundled name, release folder, or workdir of a base.")
PROMPT = flags.DEFINE_string("prompt", "a yellow moon and a purple heart on a navy background", "What to show.")
OUT = flags.DEFINE_string("out", None, "PNG to write.", required=True)
SWITCHES = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking".split()


def stroke(page: Any, chip: int, points: list[tuple[float, float]]) -> None:
    """Chooses a chip and draws through points, fractions of the canvas."""
    page.locator("#painter .chips button").nth(chip).click()
    box = page.locator("#painter canvas").bounding_box()
    places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in points]
    page.mouse.move(*places[0])
    page.mouse.down()
    for place in places:
        page.mouse.move(*place, steps=6)
    page.mouse.up()


def generate(page: Any) -> float:
    """Presses the button, waits for the end; seconds."""
    began = time.perf_counter()
    page.click("#generate")
    page.wait_for_function("document.querySelector('#status').innerText.includes('step')", timeout=600_000)
    page.wait_for_function("document.querySelector('#status').innerText.includes('Done')", timeout=600_000)
    return time.perf_counter() - began


def main(argv: list[str]) -> None:
    """Serves, photographs, closes."""
    del argv
    from playwright.sync_api import sync_playwright

    import ediffi_jax as ed
    from ediffi_jax import studio_page

    browser = os.environ.get("CHROMIUM") or shutil.which("chromium")
    if browser is None:
        sys.exit("error: no Chromium on PATH; expected its path in CHROMIUM")
    served, address = studio_page.open_page(ed.load(CASCADE.value))
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser, args=SWITCHES)
        page = chromium.new_page(viewport={"width": 1180, "height": 1010})
        page.goto(address)
        page.wait_for_selector("#painter .chips button")
        page.fill("#prompt textarea", PROMPT.value)
        page.wait_for_function("document.querySelectorAll('#painter .chips button').length === 4")
        page.click("#painter .clear")
        stroke(page, 0, [(0.7, 0.15), (0.85, 0.25), (0.7, 0.35), (0.8, 0.2)])
        stroke(page, 1, [(0.15, 0.6), (0.35, 0.6), (0.15, 0.8), (0.35, 0.8)])
        first, again = generate(page), generate(page)
        page.wait_for_timeout(1000)
        page.screenshot(path=OUT.value, full_page=True)
        chromium.close()
    served.close(verbose=False)
    print(f"first request {first:.1f} s (compiled in it), again {again:.1f} s; {OUT.value}")


if __name__ == "__main__":
    app.run(main)
