"""Style transfer on the scenes cascade: is the reference's style there, and is the content still the prompt's?

    python -m benchmarks.style_transfer --number=4 --out=style_transfer

For each style, --number held-out reference pictures with unrelated prompts of two objects that name no style. All
prompts are sampled with their reference and without, with the same seeds; an independent classifier fitted on renders
names the style (`evaluation/style_recognition.py`), the exact scorer reads the objects where it can
(`evaluation/style_transfer.py` says what is counted). --style_weight is the weight of guidance by the style image,
--guidance that by the text, each a number for the base or stage=w,stage=w.

Writes OUT/style_transfer.json, and OUT/style_transfer.png: references, pictures with and pictures without.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from absl import app, flags

FLAGS = flags.FLAGS
CASCADE = flags.DEFINE_string("cascade", "scenes", "Bundled name, release folder, or workdir of a base.")
NUMBER = flags.DEFINE_integer("number", 4, "References of every style.", lower_bound=1)
RELATION = flags.DEFINE_bool("relation", True, "Prompts say how their objects stand to one another.")
SEED = flags.DEFINE_integer("seed", 0, "Of the references, the prompts and the pictures.")
STYLE_WEIGHT = flags.DEFINE_string("style_weight", None, "Guidance by the style image; default together with the text.")
GUIDANCE = flags.DEFINE_string("guidance", None, "Guidance of the stages; default the cascade's own.")
BATCH_SIZE = flags.DEFINE_integer("batch_size", 12, "Pictures at a time.", lower_bound=1)
OUT = flags.DEFINE_string("out", None, "Folder to write.", required=True)


def main(argv: list[str]) -> None:
    """Samples with and without the references, reads, writes."""
    del argv
    import jax

    import ediffi_jax as ed
    from ediffi_jax import pictures, samples
    from ediffi_jax.data import scenes
    from ediffi_jax.evaluation import style_recognition
    from ediffi_jax.evaluation.style_transfer import make_cases, measure

    out = pictures.make_folder(OUT.value)
    cascade = ed.load(CASCADE.value)
    classify = style_recognition.trained()
    cases = make_cases(NUMBER.value, SEED.value, RELATION.value)
    references = [scenes.render(case.reference, 256) for case in cases]
    guidance = samples.per_stage(GUIDANCE.value, float, "guidance")
    weight = samples.per_stage(STYLE_WEIGHT.value, float, "style_weight")
    names = ("cascade", "number", "seed", "relation", "style_weight", "guidance", "batch_size")
    report: dict[str, Any] = {
        "settings": {name: FLAGS[name].value for name in names},
        "fingerprint": cascade.fingerprint,
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
    }
    shown = references[:]
    for name, wishes in (("with", {"style": references, "style_weight": weight}), ("without", {})):
        images = cascade.sample(
            [case.prompt for case in cases], seed=SEED.value, guidance=guidance, batch_size=BATCH_SIZE.value, **wishes
        )
        found = measure(images, cases, classify)
        print(f"{name} the reference: {found.row()}", flush=True)
        report[name] = dataclasses.asdict(found)
        shown += [pictures.read_style(image, references[0].shape[0]) for image in images]
        (out / "style_transfer.json").write_text(json.dumps(report, indent=1))
    captions = [f"{case.style} reference" for case in cases] + [case.prompt for case in cases] * 2
    columns = min(len(cases), 12)
    order = [
        part * len(cases) + index
        for start in range(0, len(cases), columns)
        for part in range(3)
        for index in range(start, min(start + columns, len(cases)))
    ]
    sheet = pictures.contact_sheet([shown[i] for i in order], [captions[i] for i in order], columns=columns)
    pictures.write_png(out / "style_transfer.png", sheet)


if __name__ == "__main__":
    app.run(main)
