"""What share of held-out prompts a cascade draws right, guided and unguided.

    python -m benchmarks.scenes_accuracy --cascade=scenes --number=300 --guidance=default,0 --out=accuracy.json

The prompts have two objects in combinations that training never saw (`data/scenes/heldout.py`); one
picture each, seed 0. `--binding` takes prompts with a colour on a shape that training never showed.
Prints shares in percent with their standard errors, the share per relation, and how far colours drift from
the first stage to the last; writes all of it, with the settings, as JSON.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import time

from absl import app, flags

FLAGS = flags.FLAGS
CASCADE = flags.DEFINE_string("cascade", "scenes", "Bundled name, release folder, or workdir of a base.")
NUMBER = flags.DEFINE_integer("number", 300, "Prompts.", lower_bound=1)
SEED = flags.DEFINE_integer("seed", 0, "Of the pictures.")
PROMPT_SEED = flags.DEFINE_integer("prompt_seed", 0, "Of the choice of prompts; choose settings on another one.")
BINDING = flags.DEFINE_bool("binding", False, "Prompts with a colour and shape never seen together.")
GUIDANCE = flags.DEFINE_list("guidance", ["default", "0"], "Weights of the base to try; default = the cascade's own.")
STEPS = flags.DEFINE_integer("steps", None, "Solver steps of all stages; default the cascade's own.")
OUT = flags.DEFINE_string("out", None, "JSON file to write.")
PICTURES = flags.DEFINE_string("pictures", None, "PNG file for a sheet of the first 64 pictures.")


def main(argv: list[str]) -> None:
    del argv
    import jax

    import ediffi_jax as ed
    from ediffi_jax import pictures
    from ediffi_jax.data import scenes
    from ediffi_jax.evaluation.scenes_accuracy import accuracy, colour_drift

    cascade = ed.load(CASCADE.value)
    prompts, wanted = zip(*scenes.heldout_prompts(NUMBER.value, PROMPT_SEED.value, BINDING.value))
    rows = []
    for text in GUIDANCE.value:
        guidance = None if text == "default" else float(text)
        began = time.perf_counter()
        images = cascade.sample(
            list(prompts), seed=SEED.value, guidance=guidance, steps=STEPS.value, batch_size=16, return_stages=True
        )
        names = list(images)
        found = accuracy(images[names[-1]], wanted)
        row = {"guidance": text, "seconds": time.perf_counter() - began, **dataclasses.asdict(found)}
        print(f"guidance {text}: {found.row()}")
        for name, (share, count) in found.by_relation.items():
            print(f"    {name:10s} {100 * share:5.1f} of {count}")
        for name in names[:-1]:
            row[f"at_{name}"] = dataclasses.asdict(accuracy(images[name], wanted))
            print(f"    read at {name}: {accuracy(images[name], wanted).row()}")
        if len(names) > 1:
            drift = colour_drift(images[names[0]], images[names[-1]])
            row["drift"] = dataclasses.asdict(drift)
            print(f"    colour drift: {drift.absolute:.2f}/255 absolute, bias {drift.bias}")
        rows.append(row)
        if PICTURES.value:
            pictures.write_png(PICTURES.value, pictures.contact_sheet(images[names[-1]][:64]))
    settings = {key: FLAGS[key].value for key in ("cascade", "number", "seed", "prompt_seed", "binding", "steps")}
    if OUT.value:
        report = {"settings": settings, "jax": jax.__version__, "fingerprint": cascade.fingerprint, "rows": rows}
        pathlib.Path(OUT.value).write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    app.run(main)
