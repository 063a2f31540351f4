"""The page's layout, and what its buttons do."""

from __future__ import annotations

import contextlib
import html
import logging
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from jaxtyping import UInt8

from ediffi_jax.cascade import Cascade
from ediffi_jax.conditioning import ENCODERS
from ediffi_jax.errors import UserError
from ediffi_jax.paint import PAINT_WEIGHT
from ediffi_jax.pictures import contact_sheet
from ediffi_jax.studio_page.jobs import Done, Jobs, Step
from ediffi_jax.studio_page.limits import Limits
from ediffi_jax.studio_page.painter import painter, repainted
from ediffi_jax.studio_page.results import Result, Results
from ediffi_jax.studio_page.wishes import read_wishes

PREVIEW = 256  # pixels, side of the previews
PROMPT = "a red circle and a blue square on a gray background"
EXAMPLE = (("red circle", 0.06, 0.25, 0.4, 0.5), ("blue square", 0.54, 0.25, 0.4, 0.5))
INTRODUCTION = """# Studio
1. Write what to show.
2. Choose a coloured phrase and paint where it belongs, or press *Clear* and leave the canvas empty.
3. Press **Generate**: each stage of the cascade shows what it expects of the picture, step by step."""
STYLE_HELP = "A picture whose style to take; its content comes from the prompt."
LABELS = {"t5": "T5 text", "clip_text": "CLIP text", "clip_image": "CLIP image (style)"}


class Page:
    """One page on one cascade.

    Attributes:
        blocks: the Gradio app.
        results: where finished requests are kept.
    """

    def __init__(self, cascade: Cascade, results: Results, limits: Limits) -> None:
        self.cascade, self.results, self.limits = cascade, results, limits
        self.jobs = Jobs(cascade)
        clean_up = (3600, 6 * 3600)  # every hour, files of Gradio's own older than six
        self.blocks = gr.Blocks(title="ediffi_jax studio", analytics_enabled=False, delete_cache=clean_up)
        with self.blocks:
            self._build()
        self.blocks.queue(max_size=limits.waiting, default_concurrency_limit=4)

    def _build(self) -> None:
        gr.Markdown(INTRODUCTION)
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                inputs, generate, cancel = self._controls()
            with gr.Column(scale=3, min_width=320):
                outputs = self._results()
        status, *_ = outputs
        # One at a time, over all users: the others see their place in the queue.
        run = generate.click(
            self.generate, [*inputs, outputs[-1]], outputs, concurrency_limit=1, concurrency_id="cascade",
            show_progress="minimal", api_visibility="private",
        )  # fmt: skip
        stopped = cancel.click(None, cancels=[run], queue=False, api_visibility="private")
        stopped.then(_cancelled, None, status, queue=False, api_visibility="private")

    def _controls(self) -> tuple[list[gr.components.Component], gr.Button, gr.Button]:
        """The left side: its components in the order of `read_wishes`, and its two buttons."""
        base, limits = self.cascade.stages[0].spec, self.limits
        prompt = gr.Textbox(PROMPT, label="Prompt", lines=2, max_length=limits.characters, elem_id="prompt")
        paint = painter(PROMPT, EXAMPLE)
        prompt.change(
            repainted, prompt, paint, show_progress="hidden", trigger_mode="always_last", api_visibility="private"
        )
        weight = gr.Slider(0, 5, PAINT_WEIGHT, step=0.1, label="Paint weight", info="0 does not paint")
        with gr.Row():
            seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=2**32 - 1, elem_id="seed")
            num = gr.Slider(1, limits.pictures, 1, step=1, label="Pictures", elem_id="num")
        with gr.Row():
            generate = gr.Button("Generate", variant="primary", elem_id="generate")
            cancel = gr.Button("Cancel", elem_id="cancel")
        with gr.Accordion("Style", open=False):
            style, style_weight = self._style()
        with gr.Accordion("More", open=False):
            steps = gr.Slider(1, limits.steps, base.sampler.steps, step=1, label="Steps of the first stage")
            guidance = gr.Slider(0, 10, base.sampler.guidance, step=0.1, label="Guidance", info="0 is none")
            negative = gr.Textbox(label="Negative prompt", info="what guidance leads away from", lines=1)
            names = [name for name in ENCODERS if name != "clip_image" or self.cascade.encoders.image_size]
            choices = [(LABELS[name], name) for name in names]
            encoders = gr.CheckboxGroup(choices, value=names, label="Condition on", elem_id="encoders")
        inputs = [prompt, paint, style, encoders, seed, num, steps, guidance, weight, style_weight, negative]
        return inputs, generate, cancel

    def _style(self) -> tuple[gr.State, gr.Textbox]:
        """Upload, thumbnail and weight of the style picture; its path is state."""
        path = gr.State(None)
        gr.Markdown(STYLE_HELP)
        with gr.Row():
            upload = gr.UploadButton("Choose a picture…", elem_id="style")
            remove = gr.Button("Remove")
        shown = gr.Image(label="Style", interactive=False, height=160, visible=False, elem_id="style_shown")
        weight = gr.Textbox("", label="Style weight", info="empty: guided together with the text")
        upload.upload(self.take_style, upload, [path, shown], api_visibility="private")
        remove.click(lambda: (None, gr.Image(None, visible=False)), None, [path, shown], api_visibility="private")
        return path, weight

    def _results(self) -> list[gr.components.Component]:
        """The right side; its components in the order that `generate` yields."""
        status = gr.HTML(_status("Ready: an example is loaded."), elem_id="status")
        with gr.Row():
            previews = [
                gr.Image(label=f"{spec.name}, {spec.resolution}×{spec.resolution}", format="png", interactive=False,
                         min_width=160, elem_id=f"preview_{spec.name}", buttons=[])
                for spec in (stage.spec for stage in self.cascade.stages)
            ]  # fmt: skip
        history = gr.State([])
        gallery = gr.Gallery(label="Finished (choose one to see its command)", columns=4, object_fit="contain",
                             height=320, elem_id="gallery")  # fmt: skip
        command = gr.Textbox(label="Command that makes it again", interactive=False, lines=3, max_lines=8,
                             buttons=["copy"], elem_id="command")  # fmt: skip
        archive = gr.File(label="All of it: pictures, inputs, command", interactive=False, elem_id="archive")
        gallery.select(self.choose, history, [command, archive], api_visibility="private")
        return [status, *previews, gallery, command, archive, history]

    def generate(self, *values: Any) -> Iterator[tuple[Any, ...]]:
        """From the controls' values to the right side's, update by update."""
        *controls, history = values
        same = [gr.skip()] * len(self.cascade.stages)
        rest = [gr.skip()] * 4
        yield (_status("Checking …"), *same, *rest)
        try:
            wishes = read_wishes(self.limits, *controls)
            request = wishes.request(self.cascade)
            yield (_status("Waiting for the first step (a new kind of request is compiled once) …"), *same, *rest)
            with contextlib.closing(self.jobs.run(request)) as events:  # cancelled, it stops the sampling
                for event in events:
                    if isinstance(event, Step):
                        yield (_progress(event), *self._preview(event), *rest)
                        continue
                    result = self.results.write(wishes, request, event.images[self.cascade.stages[-1].spec.name])
                    history = [*history, *((str(path), result) for path in result.pictures)]
                    yield (_status("Done."), *self._finished(event), *_shown(history, result), history)
        except UserError as error:
            yield (_status(str(error), bad=True), *same, *rest)
            raise gr.Error(str(error), title="That cannot be done", print_exception=False) from error
        except Exception as error:
            logging.exception("the studio failed on a request")
            raise gr.Error(
                f"{type(error).__name__}; the server's log says more", title="Failed", print_exception=False
            ) from error

    def take_style(self, path: str | None) -> tuple[str | None, Any]:
        """The uploaded style picture's path and thumbnail; a message if it is none."""
        try:
            picture = self.limits.open_picture(path, "the style picture").convert("RGB") if path else None
        except UserError as error:
            raise gr.Error(str(error), title="That cannot be done", print_exception=False) from error
        if picture is not None:
            picture.thumbnail((320, 320))
        return path, gr.Image(picture, visible=picture is not None)

    def choose(self, history: list[tuple[str, Result]], event: gr.SelectData) -> tuple[str, str]:
        """Command and archive of the picture chosen in the gallery."""
        result = history[event.index][1]
        return result.command, str(result.archive)

    def _preview(self, step: Step) -> list[Any]:
        """This step's pictures in its stage's place."""
        names = [stage.spec.name for stage in self.cascade.stages]
        return [_sheet(step.images) if name == step.stage else gr.skip() for name in names]

    def _finished(self, done: Done) -> list[Any]:
        return [_sheet(done.images[stage.spec.name]) for stage in self.cascade.stages]


def _shown(history: list[tuple[str, Result]], result: Result) -> tuple[Any, str, str]:
    """Gallery, command and archive after a request."""
    pictures = [(path, Path(path).parent.name) for path, _ in history]
    return gr.Gallery(pictures, selected_index=None), result.command, str(result.archive)


def _sheet(images: UInt8[np.ndarray, "b r r 3"]) -> UInt8[np.ndarray, "h w 3"]:
    """One picture of all, pixels enlarged to be seen."""
    times = max(1, PREVIEW // images.shape[1])
    large = images.repeat(times, axis=1).repeat(times, axis=2)
    return large[0] if len(large) == 1 else contact_sheet(list(large))


def _progress(step: Step) -> str:
    place = f"step {min(step.number, step.of)} of {step.of}"
    return _status(f"{step.stage}: {place}, σ = {step.sigma:.3g}, expert {step.expert + 1}", share=step.share)


def _status(text: str, share: float = 0.0, bad: bool = False) -> str:
    colour = "#e03131" if bad else "inherit"
    bar = f'<div style="height:4px;background:#1971c2;width:{100 * share:.0f}%"></div>'
    return f'<div role="status" style="color:{colour};min-height:2.4em">{html.escape(text)}{bar}</div>'


def _cancelled() -> str:
    time.sleep(0.5)  # a step that is on its way to the browser arrives before
    return _status("Cancelled.")


def scratch() -> str:
    """A folder for results that nobody asked to keep."""
    return tempfile.mkdtemp(prefix="ediffi_studio_")
