"""The studio: a web page on a cascade (Gradio), for paint-with-words, style transfer and comparing settings.

    controls ─▶ wishes ─▶ Request ─▶ jobs (one at a time) ─▶ previews, step by step ─▶ results on disk
    painter: the prompt's phrases as chips and a canvas          limits: what a stranger may ask for
"""

from __future__ import annotations

import logging
import os
import socket
from pathlib import Path
from typing import Any

from ediffi_jax.cascade import Cascade
from ediffi_jax.errors import UserError, install
from ediffi_jax.studio_page.limits import Limits, StudioError

__all__ = ["Limits", "StudioError", "open_page", "studio"]


def open_page(
    cascade: Cascade,
    *,
    results: str | os.PathLike | None = None,
    limits: Limits | None = None,
    host: str = "127.0.0.1",
    port: int | None = None,
    share: bool = False,
    **launch: Any,
) -> tuple[Any, str]:
    """Serves the page in the background.

    Args:
        cascade: what it samples from.
        results: folder to keep results in; default one that the system clears.
        limits: what one request may ask for.
        host: interface to listen on; 0.0.0.0 is all of them.
        port: default the first free one from 7860.
        share: also through a public address of Gradio's.
        launch: further arguments of `gradio.Blocks.launch`.

    Returns:
        The Gradio app, whose `close()` ends it, and the page's address.

    Raises:
        StudioError: Gradio is not installed, or the port is taken.
        PictureError: the folder cannot be written.
    """
    try:
        import gradio as gr
    except ImportError as error:
        raise StudioError(f"launch.studio needs gradio: {install('studio')}") from error
    from ediffi_jax.studio_page.page import Page, scratch
    from ediffi_jax.studio_page.results import Results

    _check_place(host, port)
    limits = limits or Limits()
    kept = Results(scratch() if results is None else results, cascade)
    page = Page(cascade, kept, limits)
    try:
        logging.getLogger("httpx").setLevel(logging.WARNING)  # Gradio asks its own server whether it is there
        _, address, public = page.blocks.launch(
            server_name=host, server_port=port, share=share, prevent_thread_lock=True, quiet=True, show_error=False,
            max_file_size=int(limits.upload_mb * 1e6), allowed_paths=[str(kept.folder)], footer_links=[],
            theme=gr.themes.Soft(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
            enable_monitoring=False, ssr_mode=False, **launch,
        )  # fmt: skip
    except OSError as error:  # taken since, or none free of the hundred that Gradio tries
        raise StudioError(f"cannot serve on {host}: {error}; expected a free port") from error
    return page.blocks, public or address


def _check_place(host: str, port: int | None) -> None:
    """Raises StudioError unless the interface is this machine's and the port free."""
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(host, port or 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind(place)
    except OSError as error:
        where = f"{host}:{port}" if port else host
        expected = "an address of this machine, such as 127.0.0.1 or 0.0.0.0, and a free port"
        raise StudioError(f"cannot serve on {where}: {error.strerror}; expected {expected}") from error


def studio(cascade: Cascade | str = "scenes", *, height: int = 900, **options: Any) -> None:
    """Opens the page inside a notebook's cell, Jupyter or Colab.

    Args:
        cascade: a loaded cascade, or what `load` takes.
        height: of the frame, pixels.
        options: of `open_page`: results, limits, host, port, share.

    Raises:
        UserError: what is no cascade; and what `open_page` raises.
    """
    from ediffi_jax.cascade import load

    loaded = load(cascade) if isinstance(cascade, (str, Path)) else cascade
    if not isinstance(loaded, Cascade):
        raise UserError(f"studio of a {type(cascade).__name__}; expected a cascade, as ed.load gives it")
    open_page(loaded, inline=True, height=height, **options)
