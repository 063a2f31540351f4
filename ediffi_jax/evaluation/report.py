"""A report as one HTML file: headings, text, tables, figures and pictures, everything inside the file.

    report = Report(title="Quick start")
    report.heading("Samples")
    report.pictures(images, captions)      # uint8 [N, H, W, 3] and N strings
    report.figure(loss_figure(...), path=folder / "loss.png")
    report.table(("step", "seconds"), rows)
    report.write(folder / "report.html")

Pictures travel inside the HTML as PNG, so the file can be sent or moved alone.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from ediffi_jax import figures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLE = """
body { font: 16px/1.55 system-ui, sans-serif; color: #1c1e21; max-width: 1120px; margin: 2.5rem auto; padding: 0 1.2rem; }
h1 { font-size: 1.9rem; margin-bottom: .3rem; } h2 { font-size: 1.25rem; margin-top: 2.4rem; }
p { max-width: 75ch; } code { font: .88em ui-monospace, monospace; background: #f3f4f6; padding: .1em .3em; }
table { border-collapse: collapse; font-size: .92rem; } th { text-align: left; color: #5b6068; font-weight: 600; }
th, td { padding: .35rem .9rem .35rem 0; border-bottom: 1px solid #e5e7eb; vertical-align: top; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(210px, 1fr)); gap: 1.1rem; }
figure { margin: 0; } figcaption { font-size: .88rem; color: #3c4046; } img { max-width: 100%; border-radius: 4px; }
"""


def png_bytes(image: np.ndarray) -> bytes:
    """A picture, uint8 [H, W, 3], as the bytes of a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(image)).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def _embedded(png: bytes, alt: str) -> str:
    data = base64.b64encode(png).decode("ascii")
    return f'<img src="data:image/png;base64,{data}" alt="{html.escape(alt, quote=True)}">'


def _cell(value: object) -> str:
    kind = ' class="number"' if isinstance(value, (int, float, np.number)) else ""
    text = f"{value:.4g}" if isinstance(value, (float, np.floating)) else html.escape(str(value))
    return f"<td{kind}>{text}</td>"


class Report:
    """Collects the parts of a page in reading order; `write` puts them into one file."""

    def __init__(self, *, title: str) -> None:
        self.title = title
        self._parts: list[str] = []

    def heading(self, text: str) -> None:
        self._parts.append(f"<h2>{html.escape(text)}</h2>")

    def text(self, text: str) -> None:
        """A paragraph; text between backquotes is set as code."""
        pieces = html.escape(text).split("`")
        marked = [f"<code>{piece}</code>" if index % 2 else piece for index, piece in enumerate(pieces)]
        self._parts.append(f"<p>{''.join(marked)}</p>")

    def table(self, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """A table; numbers are aligned right, floats get four digits."""
        head = "".join(f"<th>{html.escape(name)}</th>" for name in header)
        body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
        self._parts.append(f"<table><tr>{head}</tr>{body}</table>")

    def pictures(self, images: Sequence[np.ndarray], captions: Sequence[str]) -> None:
        """Pictures, uint8 [H, W, 3] each, with a caption under every one."""
        items = [
            f"<figure>{_embedded(png_bytes(image), caption)}<figcaption>{html.escape(caption)}</figcaption></figure>"
            for image, caption in zip(images, captions, strict=True)
        ]
        self._parts.append(f'<div class="pictures">{"".join(items)}</div>')

    def figure(self, figure: Figure, *, path: Path, alt: str) -> None:
        """A matplotlib figure, put into the page and saved as a PNG at `path`."""
        figure.savefig(path, dpi=130, bbox_inches="tight")
        _pyplot().close(figure)
        self._parts.append(f"<figure>{_embedded(path.read_bytes(), alt)}</figure>")

    def page(self) -> str:
        """The HTML."""
        title = html.escape(self.title)
        return (
            f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
            f"<style>{STYLE}</style></head>\n<body><h1>{title}</h1>\n" + "\n".join(self._parts) + "\n</body></html>\n"
        )

    def write(self, path: Path) -> None:
        path.write_text(self.page(), encoding="utf-8")


def contact_sheet(images: Sequence[np.ndarray], *, columns: int = 4, gap: int = 4) -> np.ndarray:
    """Pictures of one size, uint8 [H, W, 3] each, side by side in rows on white."""
    height, width = images[0].shape[:2]
    rows = -(-len(images) // columns)
    shape = (rows * (height + gap) + gap, columns * (width + gap) + gap, 3)
    sheet = np.full(shape, 255, np.uint8)
    for index, image in enumerate(images):
        top, left = gap + index // columns * (height + gap), gap + index % columns * (width + gap)
        sheet[top : top + height, left : left + width] = image
    return sheet


def _pyplot() -> ModuleType:
    return figures.pyplot("a figure", "eval")


def loss_figure(curves: Mapping[str, np.ndarray], *, cuts: Sequence[float], sigma_at: Mapping[float, float]) -> Figure:
    """Loss against the quantile of the noise level, above its ratio to the first curve.

    Args:
        curves: name -> mean loss in equal cells of [0, 1]; all of one length. The first is the reference.
        cuts: quantiles at which experts meet, drawn as lines.
        sigma_at: quantile -> sigma, for the labels of the axis.
    """
    figure, (above, below) = _pyplot().subplots(2, 1, figsize=(8.5, 6.2), sharex=True, height_ratios=(2, 1))
    reference = next(iter(curves.values()))
    edges = np.linspace(0, 1, len(reference) + 1)
    for name, values in curves.items():
        above.stairs(values, edges, baseline=None, label=name, linewidth=1.8)
        below.stairs(100 * (values / reference - 1), edges, baseline=None, linewidth=1.8)
    for axis in (above, below):
        for cut in cuts:
            axis.axvline(cut, color="0.6", linestyle="--", linewidth=1)
        axis.grid(alpha=0.25)
    above.set_ylabel("weighted denoising loss")
    above.set_yscale("log")
    above.legend(frameon=False)
    below.set_ylabel(f"against {next(iter(curves))}, %")
    below.set_xlabel("quantile of the noise level (sigma below)")
    below.set_xlim(0, 1)
    below.set_xticks(list(sigma_at), [f"{q:g}\n{sigma:.2g}" for q, sigma in sigma_at.items()])
    return figure
