"""Samples pictures from a cascade: prompts in, PNGs out.

  python -m launch.sample --cascade=scenes --prompt="a red circle left of a blue square" --num=4 --out=samples

writes samples/0000.png … (index = prompt * num + k), contact_sheet.png, and samples.jsonl with every setting.

--cascade is a bundled name, a release folder, or the workdir of a base's training run. Several prompts: repeat
--prompt, or --prompts_file=FILE with one a line.

Guidance follows D = D_c + w (D_c - D_0): --guidance=0 is none, larger follows the prompt more closely. A number
is the base stage's weight; --guidance=base=3,sr64=1 reaches any stage. Default: what the cascade was tuned for.
--paint puts phrases of the prompt where you want them (paint-with-words), and may be repeated:

  --paint="red circle=left" --paint="blue square=mask.png" --paint="red circle#2=box:0.5,0,1,0.5"

A mask is a picture of any size (white is the phrase's own, gray is softer), left, right, top, bottom, or a box
x0,y0,x1,y1 in fractions; "#2" is the phrase's second occurrence. Or one colour-coded picture for all:
--canvas=canvas.png --legend="#ff0000=red circle,#0000ff=blue square". Masks may overlap; where a word has
several they add. All prompts are painted alike. --paint_weight (0 = not painted) says how strongly.

--negative says what to lead away from. --style=photo.png takes the style of a picture; --style_weight guides by
it apart from the text. --encoders=t5 conditions on T5 alone (of t5, clip_text, clip_image). --sampler and --steps
hold for all stages, or per stage as above.
"""

from __future__ import annotations

from absl import flags

from ._main import refuse_overrides, run

CASCADE = flags.DEFINE_string("cascade", "scenes", "Bundled name, release folder, or training workdir.")
PROMPT = flags.DEFINE_multi_string("prompt", [], "What to show. May be repeated.")
PROMPTS_FILE = flags.DEFINE_string("prompts_file", None, "Text file with one prompt a line.")
NUM = flags.DEFINE_integer("num", 1, "Pictures per prompt.")
SEED = flags.DEFINE_integer("seed", 0, "Same seed and settings, same pictures.")
GUIDANCE = flags.DEFINE_string("guidance", None, "Weight w, 0 = none: a number for the base, or stage=w,stage=w.")
NEGATIVE = flags.DEFINE_multi_string("negative", None, "What guidance leads away from: once, or once per prompt.")
STYLE = flags.DEFINE_multi_string("style", None, "Picture whose style to take: once, or once per prompt.")
STYLE_WEIGHT = flags.DEFINE_string("style_weight", None, "Guidance by the style, like --guidance; default that.")
ENCODERS = flags.DEFINE_list("encoders", None, "Only these of t5, clip_text, clip_image.")
PAINT = flags.DEFINE_multi_string("paint", [], "phrase=mask: where a phrase belongs. May be repeated.")
CANVAS = flags.DEFINE_string("canvas", None, "Colour-coded picture that paints the phrases of --legend.")
LEGEND = flags.DEFINE_string("legend", None, "colour=phrase,colour=phrase of --canvas.")
PAINT_WEIGHT = flags.DEFINE_float("paint_weight", None, "How strongly phrases are painted; 0 = not at all.")
SAMPLER = flags.DEFINE_string("sampler", None, "Solver for all stages, or stage=name,stage=name.")
STEPS = flags.DEFINE_string("steps", None, "Solver steps for all stages, or stage=n,stage=n.")
BATCH_SIZE = flags.DEFINE_integer("batch_size", None, "Pictures at a time; default 8 per device.")
OUT = flags.DEFINE_string("out", None, "Folder, or gs://BUCKET/PREFIX, to write.", required=True)


def main(overrides: list[str]) -> None:
    """Checks everything, then samples."""
    refuse_overrides(overrides)
    from ediffi_jax import cascade, devices, paint, pictures, samples

    prompts = samples.read_prompts(PROMPT.value, PROMPTS_FILE.value)
    wishes = {
        "num": NUM.value,
        "seed": SEED.value,
        "guidance": samples.per_stage(GUIDANCE.value, float, "guidance"),
        "negative": NEGATIVE.value,
        "style": STYLE.value,
        "style_weight": samples.per_stage(STYLE_WEIGHT.value, float, "style_weight"),
        "encoders": ENCODERS.value,
        "paint": paint.parse(PAINT.value, CANVAS.value, LEGEND.value),
        "paint_weight": PAINT_WEIGHT.value,
        "sampler": samples.per_stage(SAMPLER.value, str, "sampler"),
        "steps": samples.per_stage(STEPS.value, int, "steps"),
        "batch_size": BATCH_SIZE.value,
    }
    loaded = cascade.load(CASCADE.value, devices=devices.use_cores())
    request = loaded.request(prompts, **wishes)
    pictures.make_folder(OUT.value, remote=True)
    folder = samples.write_samples(OUT.value, loaded, request, STYLE.value)
    print(f"{request.total} pictures in {folder}")


if __name__ == "__main__":
    run(main, remote=("cascade", "prompts_file", "style", "canvas", "out"))
