"""The studio as people use it: in a real Chromium, on the bundled cascade, in a process of its own.

What is painted on the left and on the right has to be there in the finished picture's pixels, and the command that
the page shows has to make the same picture again.
"""

from __future__ import annotations

import io
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ediffi_jax.data import scenes
from ediffi_jax.evaluation import style_recognition

SWITCHES = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    " --disable-component-update --disable-sync"
).split()
PATIENCE = 240_000  # milliseconds: the first request is compiled, on busy cores


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Iterator[str]:
    """A studio in a process of its own; it has to end on Ctrl-C with a word and no traceback."""
    folder = tmp_path_factory.mktemp("studio")
    command = [sys.executable, "-m", "launch.studio", f"--results={folder}", "--max_upload_mb=0.5", "--max_steps=60"]
    with open(folder / "errors.txt", "w") as errors:
        process = subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, stderr=errors, text=True)
    line = process.stdout.readline()
    found = re.search(r"studio at (http://\S+)", line)
    assert found, line + (folder / "errors.txt").read_text()
    yield found[1]
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0
    assert "closed" in process.stdout.read()
    assert "Traceback" not in (folder / "errors.txt").read_text()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    path = os.environ.get("CHROMIUM") or shutil.which("chromium")
    assert path, "the studio's tests need Chromium; install it, or set CHROMIUM to its path"
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=SWITCHES)
        yield started
        started.close()


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    """A fresh user's page; no script of ours may fail in it."""
    errors: list[str] = []
    opened = browser.new_page(viewport={"width": 1300, "height": 1100})
    opened.set_default_timeout(60_000)
    opened.on("pageerror", lambda error: errors.append(str(error)))
    opened.goto(address)
    opened.wait_for_selector("#painter canvas")
    opened.wait_for_selector("#painter .chips button")
    yield opened
    opened.close()
    assert not errors


def chips(page: Any) -> list[str]:
    return page.locator("#painter .chips button").all_inner_texts()


def wait_for_status(page: Any, pattern: str) -> str:
    page.wait_for_function(
        "pattern => RegExp(pattern).test(document.querySelector('#status').innerText)", arg=pattern, timeout=PATIENCE
    )
    return page.inner_text("#status").strip()


def paint(page: Any, chip: str, box: tuple[float, float, float, float]) -> None:
    """Chooses a chip and drags the mouse in rows over a box, fractions of the canvas."""
    page.locator("#painter .chips button", has_text=re.compile(f"^{chip}$")).click()
    canvas = page.locator("#painter canvas").bounding_box()
    x0, x1 = (canvas["x"] + canvas["width"] * box[i] for i in (0, 2))
    page.mouse.move(x0, canvas["y"] + canvas["height"] * box[1])
    page.mouse.down()
    for row, fraction in enumerate(np.linspace(box[1], box[3], 6)):
        y = canvas["y"] + canvas["height"] * fraction
        for x in (x0, x1) if row % 2 == 0 else (x1, x0):
            page.mouse.move(x, y, steps=8)
    page.mouse.up()


def finished(page: Any) -> tuple[str, zipfile.ZipFile]:
    """The command shown, and the archive downloaded."""
    with page.expect_download() as download:
        page.locator("#archive a").first.click()
    content = Path(download.value.path()).read_bytes()
    return page.input_value("#command textarea"), zipfile.ZipFile(io.BytesIO(content))


def objects(picture: np.ndarray) -> dict[str, scenes.Seen]:
    return {f"{thing.colour} {thing.shape}": thing for thing in scenes.read(picture)}


@pytest.mark.slow
def test_what_is_painted_is_in_the_pixels_and_the_command_makes_it_again(page: Any, tmp_path: Path, root: Path) -> None:
    page.fill("#prompt textarea", "a green square and a yellow circle")
    page.wait_for_function("document.querySelectorAll('#painter .chips button')[0].innerText === 'green square'")
    assert chips(page) == ["green square", "yellow circle", "eraser"]
    page.click("#painter .clear")
    paint(page, "yellow circle", (0.15, 0.38, 0.35, 0.62))
    paint(page, "green square", (0.65, 0.38, 0.85, 0.62))
    page.click("#generate")
    assert re.match(r"(base|sr64|sr256): step \d+ of \d+, σ = [\d.e+-]+, expert \d", wait_for_status(page, "step \\d"))
    wait_for_status(page, "Done")
    page.wait_for_selector("#archive a")
    shown = page.input_value("#command textarea")
    command, archive = finished(page)
    assert command == shown
    picture = np.asarray(Image.open(io.BytesIO(archive.read("0000.png"))))
    seen = objects(picture)
    assert set(seen) == {"yellow circle", "green square"}
    assert seen["yellow circle"].x < 0.5 < seen["green square"].x

    archive.extractall(tmp_path)
    words = shlex.split(archive.read("command.txt").decode())
    assert " ".join(words[2:4]) == "launch.sample --cascade=scenes"
    environment = {**os.environ, "PYTHONPATH": str(root)}
    subprocess.run([sys.executable, *words[1:]], cwd=tmp_path, env=environment, check=True, timeout=300)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "again" / "0000.png")), picture)
    for stage in ("base", "sr64", "sr256"):  # three previews side by side
        assert page.locator(f"#preview_{stage} img").count() == 1


@pytest.mark.slow
def test_the_example_at_first_sight_can_be_generated_at_once(page: Any) -> None:
    assert chips(page) == ["red circle", "blue square", "gray background", "eraser"]
    page.click("#generate")
    wait_for_status(page, "Done")
    page.wait_for_selector("#archive a")
    command, archive = finished(page)
    assert "--canvas=canvas.png" in command
    seen = objects(np.asarray(Image.open(io.BytesIO(archive.read("0000.png")))))
    assert seen["red circle"].x < 0.5 < seen["blue square"].x


@pytest.mark.slow
def test_a_style_picture_is_taken_shown_and_part_of_the_result(page: Any, tmp_path: Path) -> None:
    scene = scenes.Scene(objects=(scenes.Object(colour="green", shape="ring"),), style="neon", background="navy")
    Image.fromarray(scenes.render(scene, 128)).save(tmp_path / "neon.png")
    page.locator("button", has_text="Style").first.click()
    page.locator("input[type=file]").first.set_input_files(tmp_path / "neon.png")
    page.wait_for_selector("#style_shown img")
    page.click("#generate")
    wait_for_status(page, "Done")
    page.wait_for_selector("#archive a")
    command, archive = finished(page)
    assert "--style=style.png" in command
    kept = np.asarray(Image.open(io.BytesIO(archive.read("style.png"))))
    np.testing.assert_array_equal(kept, scenes.render(scene, 128))
    picture = np.asarray(Image.open(io.BytesIO(archive.read("0000.png"))))
    assert style_recognition.trained()([picture]) == ["neon"]


@pytest.mark.slow
def test_cancel_stops_and_the_page_goes_on(page: Any) -> None:
    page.locator("button", has_text="More").first.click()
    steps = page.get_by_label("number input for Steps of the first stage")
    steps.fill("60")
    steps.press("Tab")
    page.click("#generate")
    wait_for_status(page, "base: step \\d+ of 60")
    page.click("#cancel")
    wait_for_status(page, "Cancelled")
    time.sleep(2)
    assert "Cancelled" in page.inner_text("#status")  # no later step overwrites it
    steps.fill("2")
    steps.press("Tab")
    page.click("#generate")
    wait_for_status(page, "Done")


@pytest.mark.slow
def test_wrong_uploads_and_values_show_a_message_and_no_trace(page: Any, tmp_path: Path) -> None:
    (tmp_path / "style.png").write_text("this is no picture")
    (tmp_path / "noise.png").write_bytes(b"\x89PNG\r\n\x1a\n" + os.urandom(600_000))
    page.locator("button", has_text="Style").first.click()
    for name, expected in (("style.png", "not a picture"), ("noise.png", "size|MB")):
        page.locator("input[type=file]").first.set_input_files(tmp_path / name)
        toast = page.locator(".toast-body", has_text=re.compile(expected, re.IGNORECASE)).first
        toast.wait_for()
        assert "Traceback" not in page.inner_text("body")
        page.reload()
        page.wait_for_selector("#painter .chips button")
        page.locator("button", has_text="Style").first.click()
    page.fill("#prompt textarea", "")
    page.click("#generate")
    assert "the prompt is empty" in wait_for_status(page, "prompt")


@pytest.mark.slow
def test_two_users_at_once_queue_and_both_are_served(page: Any, browser: Any, address: str) -> None:
    other = browser.new_page()
    other.goto(address)
    other.wait_for_selector("#painter .chips button")
    page.get_by_label("Seed").fill("5")
    for user in (page, other):
        user.click("#generate")
    for user in (page, other):
        wait_for_status(user, "Done")
        user.wait_for_selector("#archive a")
    pictures = [finished(user)[1].read("0000.png") for user in (page, other)]
    assert "--seed=5" in page.input_value("#command textarea")
    assert pictures[0] != pictures[1]
    other.close()
