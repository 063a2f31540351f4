"""Compares encoders, or styles, in one labelled picture: a row for each prompt, with the same noise all along it.

  python -m launch.grid --cascade=scenes --prompt="a red circle left of a blue square" --out=encoders.png
  python -m launch.grid --cascade=scenes --prompt="a red circle" --style=a.png --style=b.png --out=styles.png

Without --style the columns are T5 only, CLIP only, and both. With one or more, they are no style and each of the
references, which stand above. Several prompts: repeat --prompt, or --prompts_file=FILE with one a line.
"""

from __future__ import annotations

from absl import flags

from ._main import refuse_overrides, run

CASCADE = flags.DEFINE_string("cascade", "scenes", "Bundled name, release folder, or training workdir.")
PROMPT = flags.DEFINE_multi_string("prompt", [], "What to show. May be repeated.")
PROMPTS_FILE = flags.DEFINE_string("prompts_file", None, "Text file with one prompt a line.")
STYLE = flags.DEFINE_multi_string("style", [], "Picture whose style to take. May be repeated.")
STYLE_WEIGHT = flags.DEFINE_string("style_weight", None, "Guidance by the style: a number, or stage=w,stage=w.")
SEED = flags.DEFINE_integer("seed", 0, "Same seed and settings, same pictures.")
GUIDANCE = flags.DEFINE_string("guidance", None, "Weight w, 0 = none: a number for the base, or stage=w,stage=w.")
STEPS = flags.DEFINE_string("steps", None, "Solver steps for all stages, or stage=n,stage=n.")
OUT = flags.DEFINE_string("out", None, "PNG to write.", required=True)


def main(overrides: list[str]) -> None:
    """Samples column by column and writes the sheet."""
    refuse_overrides(overrides)
    from ediffi_jax import cascade, devices, grids, pictures, samples, stores

    prompts = samples.read_prompts(PROMPT.value, PROMPTS_FILE.value)
    wishes = {
        "seed": SEED.value,
        "guidance": samples.per_stage(GUIDANCE.value, float, "guidance"),
        "steps": samples.per_stage(STEPS.value, int, "steps"),
        "style_weight": samples.per_stage(STYLE_WEIGHT.value, float, "style_weight"),
    }
    out = stores.at(OUT.value).expanduser()
    loaded = cascade.load(CASCADE.value, devices=devices.use_cores())
    pictures.make_folder(out.parent, remote=True)
    if STYLE.value:
        sheet = grids.styles(loaded, prompts, STYLE.value, **wishes)
    else:
        sheet = grids.encoders(loaded, prompts, **wishes)
    pictures.write_png(out, sheet)
    print(f"{len(prompts)} prompts in {out}")


if __name__ == "__main__":
    run(main, remote=("cascade", "prompts_file", "style", "out"))
