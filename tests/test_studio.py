"""The studio without a browser: jobs, limits, what the controls say, results, and the page inside a notebook."""

from __future__ import annotations

import base64
import io
import shlex
import sys
import threading
import types
import urllib.error
import urllib.request
import zipfile
from pathlib import Path
from typing import Any

import cascade_fakes
import numpy as np
import pytest
from PIL import Image

import ediffi_jax as ed
from ediffi_jax import cascade, studio_page
from ediffi_jax.cascade import Cascade
from ediffi_jax.studio_page.jobs import Done, Jobs, Step
from ediffi_jax.studio_page.limits import Limits, StudioError
from ediffi_jax.studio_page.results import Results
from ediffi_jax.studio_page.wishes import Wishes, read_canvas, read_wishes

PROMPT = "a red circle left of a blue square"
RED, BLUE = "#e03131", "#1971c2"


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Cascade:
    folder = tmp_path_factory.mktemp("studio")
    return cascade.from_release(cascade_fakes.make_release(folder), folder)


def png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()


def painted(colours: dict[str, tuple[int, int, int, int]], size: int = 64) -> dict[str, Any]:
    """The painter's value with boxes (x0, y0, x1, y1) of these colours."""
    canvas = Image.new("RGBA", (size, size))
    for colour, box in colours.items():
        canvas.paste(colour, box)
    url = "data:image/png;base64," + base64.b64encode(png(canvas)).decode()
    return {"canvas": url, "legend": {RED: "red circle", BLUE: "blue square"}}


def controls(**changes: Any) -> dict[str, Any]:
    values = {
        "prompt": PROMPT, "painted": {}, "style": None, "encoders": ["clip_text", "t5", "clip_image"], "seed": 3,
        "num": 2, "steps": 4, "guidance": 1.5, "paint_weight": 1.6, "style_weight": "", "negative": "",
    }  # fmt: skip
    return {**values, **changes}


def wishes(limits: Limits = Limits(), **changes: Any) -> Wishes:  # noqa: B008 (frozen)
    return read_wishes(limits, **controls(**changes))


def test_a_job_tells_every_step_and_ends_with_what_sample_gives(loaded: Cascade) -> None:
    events = list(Jobs(loaded).run(wishes().request(loaded)))
    steps = [event for event in events if isinstance(event, Step)]
    assert isinstance(events[-1], Done)
    assert [step.stage for step in steps] == sorted(step.stage for step in steps)  # base before sr16
    assert [step.share for step in steps] == sorted(step.share for step in steps)
    assert steps[0].images.shape == (2, 8, 8, 3)
    assert steps[-1].images.shape == (2, 16, 16, 3)
    cut_sigmas = loaded.stages[0].ensemble.cut_sigmas
    for step in steps:
        if step.stage == "base":
            assert step.expert == sum(step.sigma >= cut for cut in cut_sigmas)
    expected = loaded.sample(PROMPT, num=2, seed=3, guidance=1.5, steps={"base": 4}, return_stages=True, progress=False)
    for name, images in expected.items():
        np.testing.assert_array_equal(events[-1].images[name], images)


def test_closing_a_job_stops_the_sampling_and_frees_the_cascade(
    loaded: Cascade, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[Any] = []
    monkeypatch.setattr(studio_page.jobs, "to_uint8", lambda x0: taken.append(x0) or cascade.to_uint8(x0))
    jobs = Jobs(loaded)
    events = jobs.run(wishes(steps=60).request(loaded))
    first = next(events)
    assert isinstance(first, Step)
    assert "studio job" in [thread.name for thread in threading.enumerate()]
    events.close()
    assert "studio job" not in [thread.name for thread in threading.enumerate()]
    assert len(taken) < 60
    assert isinstance(list(jobs.run(wishes().request(loaded)))[-1], Done)


def test_what_a_callback_raises_ends_the_sampling_and_is_raised(
    loaded: Cascade, caplog: pytest.LogCaptureFixture
) -> None:
    class Enough(Exception):
        pass

    seen = []

    def listen(stage: str, step: int, *rest: Any) -> None:
        seen.append(step)
        if len(seen) == 2:
            raise Enough(stage)

    with pytest.raises(Enough, match="base"):
        loaded.sample(PROMPT, callback=listen, progress=False)
    assert seen == [0, 1]
    assert not caplog.records  # no traceback of the runtime's beside it
    again = loaded.sample(PROMPT, callback=lambda *_: None, progress=False)
    np.testing.assert_array_equal(again, loaded.sample(PROMPT, progress=False))


def test_two_users_take_turns(loaded: Cascade) -> None:
    jobs, finished = Jobs(loaded), []

    def user(seed: int) -> None:
        finished.append(list(jobs.run(wishes(seed=seed).request(loaded)))[-1])

    threads = [threading.Thread(target=user, args=(seed,)) for seed in (1, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    np.testing.assert_array_equal(finished[0].images["sr16"], finished[1].images["sr16"])


def test_a_sampling_error_reaches_the_reader(loaded: Cascade, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any, **kwargs: Any) -> None:
        raise MemoryError("out of memory")

    monkeypatch.setattr(Cascade, "run", broken)
    with pytest.raises(MemoryError, match="out of memory"):
        list(Jobs(loaded).run(wishes().request(loaded)))


def test_only_colours_on_the_canvas_paint() -> None:
    canvas, legend = read_canvas(painted({RED: (0, 0, 20, 64)}), Limits())
    assert legend == {RED: "red circle"}
    assert canvas is not None
    assert read_canvas(painted({}), Limits()) == (None, {})
    assert read_canvas({}, Limits()) == (None, {})


def test_the_canvas_paints_as_masks_made_in_code_do(loaded: Cascade) -> None:
    asked = wishes(painted=painted({RED: (0, 0, 32, 64), BLUE: (32, 0, 64, 64)}), paint_weight=0.8)
    plan = asked.request(loaded).paint
    same = loaded.request(
        PROMPT, paint={"red circle": ed.paint.left(), "blue square": ed.paint.right()}, paint_weight=0.8
    ).paint
    np.testing.assert_array_equal(plan.painting().masks, same.painting().masks)
    np.testing.assert_array_equal(plan.painting().weight, same.painting().weight)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": "  "}, "the prompt is empty"),
        ({"prompt": "x" * 1001}, "1001 characters; expected at most 1000"),
        ({"num": 5}, "pictures is 5; expected a number from 1 to 4"),
        ({"num": 1.5}, "expected a whole number"),
        ({"seed": None}, "seed is None"),
        ({"seed": -1}, "seed is -1"),
        ({"steps": 101}, "steps is 101; expected a number from 1 to 100"),
        ({"guidance": float("nan")}, "guidance is nan"),
        ({"paint_weight": -0.1}, "paint weight is -0.1"),
        ({"encoders": []}, "no encoder is chosen"),
        ({"painted": {"canvas": "data:image/png;base64,?!"}}, "the canvas is damaged"),
        ({"painted": {"canvas": "http://somewhere/else.png"}}, "the canvas is damaged"),
        ({"painted": {"canvas": "data:image/png;base64,AAAA"}}, "the canvas is not a picture"),
    ],
)
def test_controls_beyond_the_limits_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(StudioError, match=message.replace("?", r"\?")):
        wishes(**changes)


def test_style_weight_without_a_number_is_refused(tmp_path: Path) -> None:
    Image.new("RGB", (9, 9)).save(tmp_path / "style.png")
    with pytest.raises(StudioError, match="style weight is 'much'"):
        wishes(style=tmp_path / "style.png", style_weight="much")


def test_uploads_are_checked_before_they_are_decoded(tmp_path: Path) -> None:
    limits = Limits(upload_mb=0.001, pixels=100)
    (tmp_path / "big.png").write_bytes(b"x" * 2000)
    with pytest.raises(StudioError, match="the picture has 0.0 MB; expected at most 0.001 MB"):
        limits.open_picture(tmp_path / "big.png", "the picture")
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(StudioError, match="not a picture that can be read; expected PNG, JPEG"):
        limits.open_picture(tmp_path / "text.png", "the picture")
    many = png(Image.new("1", (11, 10)))
    with pytest.raises(StudioError, match="11x10 pixels; expected at most 0.0001 million"):
        limits.open_picture(many, "the picture")
    with pytest.raises(StudioError, match="the picture is damaged|not a picture"):
        limits.open_picture(png(Image.new("RGB", (10, 10), "red"))[:-30], "the picture")
    bomb = png(Image.new("1", (20_000, 20_000)))  # few bytes, many pixels
    with pytest.raises(StudioError, match="20000x20000 pixels|not a picture"):
        Limits().open_picture(bomb, "the picture")


def test_a_result_holds_pictures_inputs_and_the_command(loaded: Cascade, tmp_path: Path) -> None:
    Image.new("RGB", (20, 20), "red").save(tmp_path / "ref.png")
    asked = wishes(
        painted=painted({RED: (0, 0, 32, 64)}), style=tmp_path / "ref.png", style_weight="2", negative="a star"
    )
    request = asked.request(loaded)
    images = np.random.default_rng(0).integers(256, size=(2, 16, 16, 3), dtype=np.uint8)
    results = Results(tmp_path / "results", loaded)
    first, second = (results.write(asked, request, images) for _ in range(2))
    assert first.folder != second.folder
    for path, image in zip(first.pictures, images, strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(path)), image)
    with zipfile.ZipFile(first.archive) as archive:
        assert set(archive.namelist()) == {
            "0000.png", "0001.png", "canvas.png", "style.png", "samples.jsonl", "command.txt"
        }  # fmt: skip
    words = shlex.split(first.command)
    assert words[:3] == ["python", "-m", "launch.sample"]
    assert f"--prompt={PROMPT}" in words
    assert {"--canvas=canvas.png", f"--legend={RED}=red circle", "--paint_weight=1.6", "--style=style.png"} <= {*words}
    assert {"--num=2", "--seed=3", "--guidance=base=1.5,sr16=0", "--steps=base=4,sr16=2"} <= {*words}
    assert {"--negative=a star", "--style_weight=base=2"} <= {*words}


def get(url: str) -> int:
    try:
        with urllib.request.urlopen(url, timeout=20) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


@pytest.fixture
def served(loaded: Cascade, tmp_path: Path) -> Any:
    pytest.importorskip("gradio")
    app, address = studio_page.open_page(loaded, results=tmp_path / "results")
    yield app, address
    app.close(verbose=False)


def test_only_files_of_its_own_folder_are_served(served: Any, tmp_path: Path, root: Path) -> None:
    _, address = served
    (tmp_path / "results" / "mine.txt").write_text("mine")
    (tmp_path / "secret.txt").write_text("secret")
    assert get(address) == 200
    assert get(f"{address}gradio_api/file={tmp_path}/results/mine.txt") == 200
    for other in (tmp_path / "secret.txt", Path("/etc/passwd"), root / "setup.py"):
        assert other.exists()
        assert get(f"{address}gradio_api/file={other}") == 403
    assert get(f"{address}gradio_api/file={tmp_path}/results/../secret.txt") == 403


def test_a_taken_port_and_a_missing_gradio_are_said(
    loaded: Cascade, served: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = int(served[1].rstrip("/").rsplit(":", 1)[1])
    with pytest.raises(StudioError, match="cannot serve on 127.0.0.1"):
        studio_page.open_page(loaded, port=port)
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(StudioError, match=r"pip install '.*\[studio\]'"):
        studio_page.open_page(loaded)


def test_in_colab_the_page_goes_through_colabs_proxy(
    loaded: Cascade, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A browser cannot reach 127.0.0.1 of Colab's machine: the cell asks Colab for the port's address."""
    gradio = pytest.importorskip("gradio")
    display = pytest.importorskip("IPython.display")
    shown: list[Any] = []
    monkeypatch.setattr(display, "display", shown.append)
    monkeypatch.setattr(gradio.utils, "colab_check", lambda: True)
    monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("google.colab"))
    try:
        ed.studio(loaded, results=tmp_path)
        code = shown[-1].data
        assert "google.colab.kernel.proxyPort" in code
    finally:
        gradio.close_all(verbose=False)


def test_studio_of_something_else_is_refused() -> None:
    with pytest.raises(ed.UserError, match="studio of a int; expected a cascade"):
        ed.studio(3)
