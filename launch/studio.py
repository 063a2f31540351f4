"""Opens a page in the browser to paint with words, transfer styles and compare settings.

  python -m launch.studio --cascade=scenes

serves http://127.0.0.1:7860 until Ctrl-C. --cascade is a bundled name, a release folder, or the workdir of a base's
training run. Every finished request is kept in a folder of its own below --results, with the command line that makes
its pictures again; without --results the folder is temporary.

The page is for this machine alone. --host=0.0.0.0 opens it to the network and --share to the world, through an
address of Gradio's: whoever knows the address can use the cascade, one request at a time, within --max_steps,
--max_pictures, --max_upload_mb and --max_waiting. In a notebook: `import ediffi_jax as ed; ed.studio("scenes")`.
"""

from __future__ import annotations

import threading

from absl import flags

from ._main import refuse_overrides, run

CASCADE = flags.DEFINE_string("cascade", "scenes", "Bundled name, release folder, or training workdir.")
HOST = flags.DEFINE_string("host", "127.0.0.1", "Interface to listen on; 0.0.0.0 is all of them.")
PORT = flags.DEFINE_integer("port", None, "Port; default the first free one from 7860.", 1, 65535)
SHARE = flags.DEFINE_boolean("share", False, "Also serve at a public address, through Gradio.")
RESULTS = flags.DEFINE_string("results", None, "Folder to keep results in; default temporary.")
MAX_STEPS = flags.DEFINE_integer("max_steps", 100, "Solver steps that may be asked for.", 1)
MAX_PICTURES = flags.DEFINE_integer("max_pictures", 4, "Pictures that may be asked for at once.", 1)
MAX_UPLOAD_MB = flags.DEFINE_float("max_upload_mb", 8.0, "Size of a style picture, in 10^6 bytes.", 0.001)
MAX_WAITING = flags.DEFINE_integer("max_waiting", 16, "Requests in the queue, over all users.", 1)


def main(overrides: list[str]) -> None:
    """Loads the cascade, serves, waits."""
    refuse_overrides(overrides)
    from ediffi_jax import cascade, studio_page

    limits = studio_page.Limits(
        upload_mb=MAX_UPLOAD_MB.value,
        steps=MAX_STEPS.value,
        pictures=MAX_PICTURES.value,
        waiting=MAX_WAITING.value,
    )
    loaded = cascade.load(CASCADE.value)
    app, address = studio_page.open_page(
        loaded, results=RESULTS.value, limits=limits, host=HOST.value, port=PORT.value, share=SHARE.value
    )
    print(f"studio at {address} (Ctrl-C ends it)", flush=True)
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        print("closed")
    finally:
        app.close(verbose=False)


if __name__ == "__main__":
    run(main, remote=("cascade",))
